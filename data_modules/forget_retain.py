"""Base of all data modules: forget and retain rows, tokenized, paired and batched; evaluation sets."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, Literal, Self

from lightning import LightningDataModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase

from dipo_pl.batch import Batch, Encoded, EvaluationBatch
from dipo_pl.connection import TrainedModule
from dipo_pl.data_modules.alternates import Alternates, companion_answers
from dipo_pl.data_modules.evaluation_sets import (
    EvaluationBatches,
    chosen_sets,
    evaluation_batches,
    first_rows,
    flat,
    refuse_seen_holdout,
    scored_answers,
    warn_of_retained,
    with_cut_answers,
)
from dipo_pl.data_modules.requests import named_rows, new_rows, sets_to_forget, without_requests
from dipo_pl.data_modules.row_encoder import RowEncoder
from dipo_pl.data_modules.stored_rows import stored
from dipo_pl.data_modules.training_batches import (
    Item,
    ResumableSampler,
    TrainingBatches,
    accumulated_batches,
    grouped_by_length,
    pair_items,
    permutation,
    row_items,
)
from dipo_pl.errors import InputError, check_count, check_objects, check_share
from dipo_pl.evaluation_set import EvaluationSet, RowSets
from dipo_pl.prompts import PromptFormat, QuestionAnswer
from dipo_pl.rows import Row
from dipo_pl.storage import fingerprints

TrainOn = Literal["pairs", "all", "forget", "retain"]


class ForgetRetain(LightningDataModule, ABC):
    """Data module that pairs every forget row with a retain row, and serves the evaluation sets.

    A subclass reads its rows in `read`. Pairs are a pure function of (seed, epoch, row), and batches of these and the
    global batch size, so that workers, ranks and a resumed run see the same ones. A batch of pairs holds the kinds of
    sequences that the LightningModule's `sections` name: `forget`, `retain`, and of the forget rows `alternate` (the
    question with one of its other answers) and `mismatched` (the question with the next row's answer).

    Args:
        prompt: how a question becomes the text before its answer.
        train_on: what training steps hold: `pairs` of a forget and a retain row (unlearning), or `all`
            rows, or those of one set (fine-tuning: `all` makes a target, `retain` a retain-only model).
        forget_share: with train_on `forget`, the share of its rows that training steps hold, drawn by the seed, in
            (0, 1]; a smaller share is part of a larger one.
        batch_size: rows that one device takes at once; with `pairs`, that many of each set.
        global_batch_size: rows of an optimizer step over all devices; how many batches are accumulated follows from it, and
            the same rows make a step however they are split. Null is batch_size times devices times
            trainer.accumulate_grad_batches. A step is the mean over its rows, also an epoch's last, which may have fewer.
        evaluation_tokens: tokens measured at once on one device, padding included; a row is measured with all its
            answers, and goes alone where these are more.
        evaluation_rows: measure only the first rows of each evaluation set; null measures all.
        evaluate: names of the evaluation sets to measure; null measures all that the data has.
        alternates: other answers to the forget rows' questions, for losses that ask for them; null takes the rows' own.
        group_by_length: put items of similar length into one batch, which saves padding; pairs stay as they are.
        max_length: tokens of a sequence, EOS included.
        too_long: what is done with a longer row: `error` refuses it, `truncate` cuts it and warns with the count.
        requests: names of forget sets, in the order in which they are requested, each measured as a set of its own
            (`request_1`, ...); what is to be forgotten now is among them, and their rows are not retained.
        requests_to_come: names of forget sets that will be requested later, as far as they are known: still retained, but
            not measured as such, so that utility is that of the same rows before and after.
        seed: of pairing and order; null takes seed_everything on the command line, else 0.
        workers: processes that make batches beside the training process.
    """

    def __init__(
        self,
        prompt: PromptFormat | None = None,
        train_on: TrainOn = "pairs",
        forget_share: float = 1.0,
        batch_size: int = 8,
        global_batch_size: int | None = None,
        evaluation_tokens: int = 8192,
        evaluation_rows: int | None = None,
        evaluate: list[str] | None = None,
        alternates: Alternates | None = None,
        group_by_length: bool = True,
        max_length: int = 512,
        too_long: Literal["error", "truncate"] = "error",
        requests: list[str] | None = None,
        requests_to_come: list[str] | None = None,
        seed: int | None = None,
        workers: int = 0,
    ) -> None:
        super().__init__()
        check_objects("data", prompt=prompt, alternates=alternates)
        counts = {"batch_size": batch_size, "global_batch_size": global_batch_size, "max_length": max_length}
        counts |= {"evaluation_tokens": evaluation_tokens, "evaluation_rows": evaluation_rows}
        for name, value in counts.items():
            check_count(f"data.{name}", value)
        check_count("data.workers", workers, 0)
        check_share("data.forget_share", forget_share)
        if forget_share < 1 and train_on != "forget":
            raise InputError(
                f"data.forget_share must be 1 unless data.train_on is forget (got {forget_share} with {train_on})"
            )
        self.prompt = prompt or QuestionAnswer()
        self.train_on = train_on
        self.forget_share = forget_share
        self.batch_size = batch_size
        self.global_batch_size = global_batch_size
        self.evaluation_tokens = evaluation_tokens
        self.evaluation_rows = evaluation_rows
        self.evaluate = evaluate
        self.alternates = alternates
        self.group_by_length = group_by_length
        self.max_length = max_length
        self.too_long = too_long
        self.requests = requests or []
        self.requests_to_come = requests_to_come or []
        self.seed = seed or 0
        self.workers = workers
        # Made by setup(), with the names of the sets that are forgotten now: of the requests, or `forget`.
        self.evaluation_sets: list[EvaluationSet] = []
        self.forgotten: list[str] = ["forget"]
        self.tokenizer: PreTrainedTokenizerBase
        self.companions: dict[str, list[tuple[str, ...]]] = {}
        self.evaluation_sequences: list[Sequence[Sequence[Encoded]]] = []
        self.resume_at: tuple[int, int] | None = None
        self._module: TrainedModule | None = None
        self._row_sets: RowSets | None = None
        self._training: dict[str, Sequence[Encoded]] = {}
        self._forget_sets: dict[str, Sequence[Row]] = {}
        self._sampler: ResumableSampler | None = None
        # Items of an optimizer step over all devices.
        self._step_size = global_batch_size or batch_size

    @classmethod
    def of(cls, trainer: Trainer) -> Self:
        """Return the trainer's data module; TypeError where it has none of this class."""
        data: object = getattr(trainer, "datamodule", None)
        if not isinstance(data, cls):
            raise TypeError(f"the trainer has no {cls.__name__}: call it with datamodule=... (got {data})")
        return data

    @abstractmethod
    def read(self) -> RowSets:
        """Read the rows; raise InputError if a file or column is missing or malformed."""

    def read_forget(self, name: str) -> Sequence[Row]:
        """Read the rows of one forget set.

        Raises:
            InputError: there is none of this name, or this data has no forget sets by name.
        """
        raise InputError(f"data.requests names {name!r}, but {type(self).__name__} has only one forget set")

    def forget_set(self, name: str) -> Sequence[Row]:
        """Return the rows of one forget set, which is read once."""
        if name not in self._forget_sets:
            self._forget_sets[name] = self.read_forget(name)
        return self._forget_sets[name]

    def named_forget(self, names: str | Sequence[str]) -> Sequence[Row]:
        """Return the rows of one forget set, or of several, each without the rows of those before it."""
        return named_rows(names, self.forget_set)

    def request_sets(self, place: int, name: str, rows: Sequence[Row]) -> list[EvaluationSet]:
        """Return what is measured of the forget set `name` of the request at `place`, from 1 on."""
        return [EvaluationSet(f"request_{place}", rows)]

    @property
    def settings(self) -> dict[str, Any]:
        """Further settings that change metrics, by name."""
        return {}

    def connect(self, module: TrainedModule) -> None:
        """Introduce this data module and the LightningModule that it serves to each other."""
        self._module = module
        module.connect(self)

    def setup(self, stage: str) -> None:
        """Read and tokenize rows; Lightning calls this before anything of the LightningModule.

        Raises:
            InputError: rows or arguments are wrong, or the LightningModule does not train on `train_on`.
        """
        if self.trainer is not None:
            module = self.trainer.lightning_module
            if not isinstance(module, TrainedModule):
                raise InputError(f"{type(module).__name__} does not derive from dipo_pl's LanguageModule")
            self.connect(module)
        if stage == "fit":
            if self.train_on not in (accepted := self.module.trains_on):
                raise InputError(
                    f"{type(self.module).__name__} trains on {' or '.join(accepted)}, and data.train_on is {self.train_on}"
                )
            self.derive_accumulation()
        if self._row_sets is None:
            self._read()
            self._encode()
        if stage == "fit" and self.train_on == "pairs":
            self._encode_companions()

    @property
    def module(self) -> TrainedModule:
        """The LightningModule that this data module serves."""
        if self._module is None:
            raise RuntimeError("no LightningModule is connected: call connect(module) before setup()")
        return self._module

    @property
    def row_sets(self) -> RowSets:
        """The rows, once setup() has read them."""
        if self._row_sets is None:
            raise RuntimeError("the rows are used before setup() has read them")
        return self._row_sets

    def derive_accumulation(self) -> None:
        """Set trainer.accumulate_grad_batches to what `global_batch_size` asks for; see `accumulated_batches`."""
        if self.trainer is None:
            return
        ranks, given = self.trainer.world_size, self.trainer.accumulate_grad_batches
        self._step_size = self.batch_size * ranks * given
        if self.global_batch_size is not None:
            accumulation = accumulated_batches(self.global_batch_size, self.batch_size, ranks, given)
            self.trainer.accumulate_grad_batches = accumulation
            self._step_size = self.global_batch_size

    def _read(self) -> None:
        rows = self.read()
        requests = {name: self.forget_set(name) for name in self.requests}
        rows = without_requests(rows, requests, map(self.forget_set, self.requests_to_come))
        warn_of_retained(rows)
        sets = chosen_sets(rows.evaluation, self.evaluate)
        for place, (name, own) in enumerate((new := new_rows(requests)).items(), start=1):
            sets += self.request_sets(place, name, own)
        self.forgotten = sets_to_forget(new.values(), rows.forget)
        self.evaluation_sets = [first_rows(each, self.evaluation_rows) for each in sets]
        refuse_seen_holdout(self.evaluation_sets, [rows.forget, rows.retain, *requests.values()])
        self._row_sets = rows

    def texts(self) -> Iterable[str]:
        """Return what a new tokenizer is trained on: the texts of both sets, whatever is trained on, and of the holdout.

        A tokenizer that knew the words of the forget set alone would tell the two apart.
        """
        holdout = (each.rows for each in self.row_sets.evaluation if each.name == "holdout")
        sets = (self.row_sets.forget, self.row_sets.retain, *holdout)
        return (text for rows in sets for row in rows for text in row.texts())

    def _encode(self) -> None:
        self.tokenizer = self.module.tokenizer(self.texts())
        self.evaluation_sets = [with_cut_answers(each, self.tokenizer) for each in self.evaluation_sets]
        forget = stored(self.row_sets.forget[place] for place in self.trained_forget_rows)
        self._training = self.encode_training(forget, self.row_sets.retain)
        self._encoder.warn_of_changes("training rows", chain.from_iterable(self._training.values()))
        self.evaluation_sequences = [self._encoder.measured(each) for each in self.evaluation_sets]
        self.evaluation_sets = [
            replace(
                each,
                tokens=fingerprints.sequences_fingerprint(flat([sequences])),
                scored_answers=scored_answers(each, sequences, self.tokenizer),
            )
            for each, sequences in zip(self.evaluation_sets, self.evaluation_sequences, strict=True)
        ]
        self._encoder.warn_of_changes("answers to be measured", flat(self.evaluation_sequences))

    @property
    def _encoder(self) -> RowEncoder:
        return RowEncoder(self.tokenizer, self.prompt, self.max_length, self.too_long)

    def encode_training(self, forget: Sequence[Row], retain: Sequence[Row]) -> dict[str, Sequence[Encoded]]:
        """Return the training sequences of both sets."""
        return {"forget": self._encoder.rows(forget), "retain": self._encoder.rows(retain)}

    def _encode_companions(self) -> None:
        """Make what only some losses ask for."""
        rows = self.row_sets.forget
        for kind in self._kinds:
            if kind not in self._training:
                self.companions[kind] = companion_answers(kind, rows, self.alternates, self.seed)
                self._training[kind] = self._encoder.companions(rows, self.companions[kind])
                self._encoder.warn_of_changes(f"{kind} answers", self._training[kind])

    @property
    def _kinds(self) -> list[str]:
        return [kind for kinds in self.module.sections.values() for kind in kinds]

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that training or evaluation will show the policy."""
        return max(len(each.ids) for each in chain(*self._training.values(), flat(self.evaluation_sequences)))

    @property
    def training_sequences(self) -> dict[str, Sequence[Encoded]]:
        """All sequences that training batches are made of, by kind; `BatchSection.rows` counts in these."""
        if self.train_on != "pairs":
            return self._training
        return {kind: self._training[kind] for kind in self._kinds}

    @property
    def training_tokens(self) -> dict[str, str]:
        """Fingerprint of the token ids of the training sequences, by kind."""
        return {kind: fingerprints.sequences_fingerprint(each) for kind, each in self._training.items()}

    @property
    def identity(self) -> dict[str, str]:
        """Fingerprints of what the training sequences were made from, by name."""
        return {
            "tokenizer": fingerprints.tokenizer_fingerprint(self.tokenizer),
            "forget rows": fingerprints.rows_fingerprint(self.row_sets.forget),
            "retain rows": fingerprints.rows_fingerprint(self.row_sets.retain),
            **{
                f"{kind} answers": fingerprints.texts_fingerprint(each)
                for kind, each in self.companions.items()
            },
        }

    @property
    def trained_forget_rows(self) -> list[int]:
        """Indices of the forget rows that training steps hold."""
        order = permutation(self.seed, "forget_share", 0, len(self.row_sets.forget))
        return sorted(order[: max(1, round(self.forget_share * len(order)))])

    def items(self, epoch: int) -> Sequence[Item]:
        """Return what the epoch's batches are made of, in training order."""
        counts = {name: len(each) for name, each in self._training.items()}
        if self.train_on == "pairs":
            items = pair_items(self._kinds, counts, self.seed, epoch)
        else:
            names = ("forget", "retain") if self.train_on == "all" else (self.train_on,)
            items = row_items({name: counts[name] for name in names}, self.seed, epoch)
        if not self.group_by_length:
            return items

        def length(item: Item) -> int:
            return max(len(self._training[name][row].ids) for name, row in item)

        return grouped_by_length(items, length, self._step_size, self.seed, epoch)

    @property
    def _ranks(self) -> tuple[int, int]:
        """This process's rank, and the world size."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of training batches, from where a resumed run goes on."""
        self._sampler = self._new_sampler()
        if self.resume_at is not None:
            self._sampler.resume(*self.resume_at)
        return self._loader(TrainingBatches(self._training, self.module.sections), self._sampler)

    def _new_sampler(self) -> ResumableSampler:
        return ResumableSampler(self.items, self.batch_size, *self._ranks)

    def loss_weight(self, batch: int) -> float:
        """Return the factor on the loss of an epoch's batch that makes a step the mean over its rows."""
        if self._sampler is None or self.trainer is None:
            return 1.0
        # Read anew: a callback may change how many batches are accumulated from one epoch to the next.
        accumulation, batches = self.trainer.accumulate_grad_batches, int(self.trainer.num_training_batches)
        return self._sampler.weight(batch, accumulation, batches)

    def val_dataloader(self) -> list[DataLoader[EvaluationBatch]]:
        """Return one loader for each evaluation set."""
        tokens, sets = self.evaluation_tokens, self.evaluation_sequences
        batches = [evaluation_batches(each, tokens, *self._ranks) for each in sets]
        return [self._loader(EvaluationBatches(each), of) for each, of in zip(sets, batches, strict=True)]

    def _loader(self, dataset: Dataset[Any], sampler: Iterable[Any]) -> DataLoader[Any]:
        workers: dict[str, Any] = {"num_workers": self.workers, "persistent_workers": self.workers > 0}
        # The sampler yields whole batches, so automatic batching is off: dataset[items] is the batch.
        return DataLoader(dataset, sampler=sampler, batch_size=None, **workers)

    def state_dict(self) -> dict[str, int]:
        """Return the place in training, in batches of this world size."""
        assert self.trainer is not None
        done = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        state = {"epoch": self.trainer.current_epoch, "batches_done": done}
        if self.global_batch_size is not None:
            state["accumulation"] = self.trainer.accumulate_grad_batches
        return state

    def load_state_dict(self, state_dict: Mapping[str, int]) -> None:
        """Go on from a place; Lightning calls this before it asks for the training loader, or with shards after that."""
        assert self.trainer is not None
        epoch, done = (state_dict[each] for each in ("epoch", "batches_done"))
        if (before := state_dict.get("accumulation")) is not None:
            # Checkpoints are of whole steps, which are other numbers of batches at another world size.
            done = min(-(-done // before) * self.trainer.accumulate_grad_batches, len(self._new_sampler()))
        self.resume_at = epoch, done
        if self._sampler is not None:
            self._sampler.resume(epoch, done)
        if self.trainer.state.fn == "fit":
            rank_zero_info(f"resuming in epoch {epoch} after {done} batches")
