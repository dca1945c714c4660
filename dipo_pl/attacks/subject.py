"""Subject of an audit: its models and rows, and the share of the work that falls to this rank."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dipo_pl.batch import Encoded
from dipo_pl.data_modules.forget_retain import ForgetRetain
from dipo_pl.data_modules.row_encoder import RowEncoder
from dipo_pl.distributed import on_all_ranks
from dipo_pl.errors import InputError, TrainingError
from dipo_pl.evaluation_set import EvaluationSet
from dipo_pl.metrics.base import FORGET, HOLDOUT
from dipo_pl.models.eval_mode import eval_mode
from dipo_pl.models.source import ModelSource

TARGET, UNLEARNED, RETAIN_ONLY = MODELS = ("target", "unlearned", "retain_only")
# Names of the models in lines for people.
CALLED = {TARGET: "target", UNLEARNED: "unlearned model", RETAIN_ONLY: "retain-only model"}

T = TypeVar("T")
R = TypeVar("R")


class Memory:
    """Memory of finished parts of an attack, by name; this one forgets everything at the end of the process."""

    def __init__(self) -> None:
        self.parts: dict[str, Any] = {}

    def part(self, name: str, make: Callable[[], Any]) -> Any:
        """Return a part as plain values of JSON; it is made if it is not known yet."""
        if name not in self.parts:
            self.parts[name] = make()
        return self.parts[name]


@dataclass
class Subject:
    """Models that are attacked, and the rows that they are attacked on.

    Attributes:
        sources: for each model where it comes from; the unlearned one is always there.
        data: the data module, set up with the models' tokenizer.
        utility_sets: names of the evaluation sets that Model Utility averages over.
        max_new_tokens: longest generated answer.
        device: where models run.
        seed: of all random choices.
        memory: what was found already, of this or an interrupted audit.
        memories: by name of a model, where what is found of it alone is kept instead, for other audits.
        started: called with what is done next and how many pieces of work it has.
        advanced: called with the pieces of work that are done since.
    """

    sources: Mapping[str, ModelSource]
    data: ForgetRetain
    utility_sets: Sequence[str] = ()
    max_new_tokens: int = 200
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seed: int = 0
    memory: Memory = field(default_factory=Memory)
    memories: Mapping[str, Memory] = field(default_factory=dict)
    started: Callable[[str, int], None] = lambda what, pieces: None
    advanced: Callable[[int], None] = lambda pieces: None
    _loaded: tuple[str, PreTrainedModel] | None = None

    @property
    def names(self) -> list[str]:
        """Names of the models that there are."""
        return [each for each in MODELS if each in self.sources]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The models' tokenizer."""
        return self.data.tokenizer

    @property
    def encoder(self) -> RowEncoder:
        """The encoder of the data module's rows."""
        data = self.data
        return RowEncoder(data.tokenizer, data.prompt, data.max_length, data.too_long)

    def set_of(self, name: str) -> EvaluationSet | None:
        """Return an evaluation set; None if the data has none of this name."""
        return next((each for each in self.data.evaluation_sets if each.name == name), None)

    @property
    def forget(self) -> EvaluationSet:
        """The rows that were to be forgotten; raise InputError if the data measures none."""
        found = self.set_of(FORGET)
        if found is None:
            raise InputError(
                "the run's data.evaluate leaves out the forget set, which an audit attacks: add it"
            )
        return found

    @property
    def holdout(self) -> EvaluationSet | None:
        """Rows like the forget set's that no model has seen, if there are any."""
        return self.set_of(HOLDOUT)

    def encoded(self, evaluation_set: EvaluationSet) -> Sequence[Sequence[Encoded]]:
        """Return the measured answers of each row of an evaluation set, with their prompts."""
        return self.encoder.measured(evaluation_set)

    def prompts(self, evaluation_set: EvaluationSet) -> list[list[int]]:
        """Return the tokens of each row's prompt."""
        return [list(answers[0].ids[: answers[0].answer_start]) for answers in self.encoded(evaluation_set)]

    @contextmanager
    def model(self, name: str) -> Iterator[PreTrainedModel]:
        """Yield one of the models in eval mode, without gradients; it stays loaded until another one is asked for."""
        if self._loaded is None or self._loaded[0] != name:
            self._loaded = None
            self._loaded = name, self.fresh(name)
        with eval_mode(self._loaded[1]), torch.no_grad():
            yield self._loaded[1]

    def fresh(self, name: str) -> PreTrainedModel:
        """Return one of the models, newly loaded, which may be changed.

        Raises:
            TrainingError: it cannot be loaded: no attack can be tried then.
        """
        self._loaded = None
        try:
            return self.sources[name].load().to(self.device)
        except InputError as error:
            raise TrainingError(f"the {CALLED[name]} cannot be loaded: {error}") from None

    def shared(self, items: Sequence[T], work: Callable[[T], R], what: str) -> list[R]:
        """Return `work` of each item, in order; each rank does its share, and all return the same.

        An item must give the same whichever rank does it, and plain values or tensors on the CPU.

        Raises:
            TrainingError: the work of any rank has failed; raised on all of them.
        """
        rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        mine = range(rank, len(items), ranks)
        self.started(what, len(mine))

        def share() -> dict[int, R]:
            found = {}
            for place in mine:
                found[place] = work(items[place])
                self.advanced(1)
            return found

        parts = on_all_ranks(share) if ranks > 1 else [share()]
        found = {place: value for part in parts for place, value in part.items()}
        return [found[place] for place in range(len(items))]

    def each_model(
        self, attack: str, work: Callable[[str], Any], names: Iterable[str] | None = None
    ) -> dict[str, Any]:
        """Return `work` of each model by name, plain values of JSON; what is known already is not done again.

        The work of a model may depend on the rows and on that model, but on no other one: audits of other runs can share it.
        """
        chosen = self.names if names is None else [each for each in names if each in self.sources]
        return {
            name: self.memories.get(name, self.memory).part(f"{attack}-{name}", partial(work, name))
            for name in chosen
        }

    def lacks_retain_only(self) -> str | None:
        """Return what is missing where there is no retain-only model."""
        return None if RETAIN_ONLY in self.sources else "a retain-only model (--against)"
