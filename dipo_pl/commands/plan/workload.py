"""Amount of work of a run: its largest batches, tokens and steps, from its data or from given lengths."""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from dipo_pl.batch import Encoded
from dipo_pl.commands.plan.machine import Machine
from dipo_pl.commands.plan.step import Shapes
from dipo_pl.data_modules.forget_retain import ForgetRetain
from dipo_pl.errors import InputError, check_count
from dipo_pl.modules.base import LanguageModule
from dipo_pl.modules.unlearning import Unlearning

# Default of generate() for the tokens of prompts and answers at a time.
CACHE_TOKENS = 16_384


@dataclass(frozen=True)
class Lengths:
    """Lengths that stand for the data.

    Attributes:
        tokens: tokens of a sequence, prompt and answer.
        rows: rows of a training epoch (forget rows if they are paired); None is unknown.
        retain_rows: retain rows of a store of reference states; None is as many as `rows`.
        answer_tokens: tokens of the answer; None is all but one.

    Raises:
        InputError: a number is below 1, or no token is left for the prompt.
    """

    tokens: int
    rows: int | None = None
    retain_rows: int | None = None
    answer_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("tokens", "rows", "retain_rows", "answer_tokens"):
            check_count(f"--{name}", getattr(self, name))
        if self.tokens <= (self.answer_tokens or 1):
            raise InputError(
                f"--tokens must be greater than --answer_tokens, as it includes the prompt (got {self.tokens} and "
                f"{self.answer_tokens or 1})"
            )


@dataclass(frozen=True)
class Workload:
    """Amount of work of a run; what is unknown is None.

    Attributes:
        shapes: shapes of the largest batches.
        vocabulary: tokens of the tokenizer; None is the vocabulary of the model.
        rows: rows of an epoch.
        batches: batches of an epoch; one on every device counts as one.
        epochs: epochs of the run.
        steps: optimizer steps of the run.
        tokens: tokens of an epoch, all sections together, without padding.
        answer_tokens: those in answers.
        store_positions: positions whose states a store of the reference holds.
    """

    shapes: Shapes
    vocabulary: int | None
    rows: int | None
    batches: int | None
    epochs: int | None
    steps: int | None
    tokens: int | None
    answer_tokens: int | None
    store_positions: int | None


def workload_of_lengths(
    module: LanguageModule, data: ForgetRetain, config: Mapping[str, Any], machine: Machine, lengths: Lengths
) -> Workload:
    """Return the work of a run on rows of given lengths."""
    answer, rows = lengths.answer_tokens or lengths.tokens - 1, lengths.rows
    row = Encoded((0,) * lengths.tokens, lengths.tokens - answer)
    kinds = [kind for kinds in module.sections.values() for kind in kinds]
    data.trainer = ranks = _ranks(module, config, machine)
    data.derive_accumulation()
    accumulation = ranks.accumulate_grad_batches
    batches = tokens = answers = stored = None
    if rows is not None:
        batches = -(-rows // (data.batch_size * machine.devices))
        tokens, answers = (rows * len(kinds) * each for each in (lengths.tokens, answer))
        retain_rows = lengths.retain_rows or rows
        stored = answer * sum(retain_rows if name == "retain" else rows for name in _compared(module))
    shapes = Shapes(
        training={name: [row] * data.batch_size for name in kinds},
        evaluation=(max(1, data.evaluation_tokens // lengths.tokens), lengths.tokens),
        generation=_generation(config, lengths.tokens - answer, CACHE_TOKENS),
        accumulates=accumulation > 1,
    )
    steps = _steps(config["trainer"], batches, accumulation)
    return Workload(shapes, _known_vocabulary(module), rows, *steps, tokens, answers, stored)


def workload_of_data(
    module: LanguageModule, data: ForgetRetain, config: Mapping[str, Any], machine: Machine
) -> Workload:
    """Return the work of a run on its own data.

    Raises:
        InputError: rows or tokenizer cannot be read, or do not fit each other.
    """
    data.trainer = ranks = _ranks(module, config, machine)
    data.setup("fit")
    sequences = data.training_sequences
    tokens = answers = rows = batches = 0
    largest: tuple[int, dict[str, list[Encoded]]] = (0, {})
    measured = (0, 0)
    for rank in range(machine.devices):
        ranks.global_rank = rank
        training: Any = data.train_dataloader()
        batches = len(training.sampler)
        for items in training.sampler:
            batch = training.dataset.chosen(items)
            lengths = [len(each.ids) for section in batch.values() for each in section]
            rows += len(items)
            tokens += sum(lengths)
            answers += sum(each.answer_length for section in batch.values() for each in section)
            largest = max(largest, (len(lengths) * max(lengths), batch), key=lambda each: each[0])
        for loader, encoded in zip(data.val_dataloader(), data.evaluation_sequences, strict=True):
            sampler: Any = loader.sampler
            for items in sampler:
                widths = [len(each.ids) for item in items for each in encoded[item]]
                if widths and len(widths) * max(widths) > math.prod(measured):
                    measured = len(widths), max(widths)
    prompt = max(row[0].answer_start for encoded in data.evaluation_sequences for row in encoded)
    room = sum(len(each.rows) for each in data.evaluation_sets) * (prompt + _new_tokens(config))
    stored = sum(each.answer_length for name in _compared(module) for each in sequences[name])
    accumulation = ranks.accumulate_grad_batches
    generation = _generation(config, prompt, min(CACHE_TOKENS, room))
    shapes = Shapes(largest[1], measured, generation, accumulation > 1)
    steps = _steps(config["trainer"], batches, accumulation)
    return Workload(shapes, len(data.tokenizer), rows, *steps, tokens, answers, stored)


def _compared(module: LanguageModule) -> tuple[str, ...]:
    return module.reference_kinds if isinstance(module, Unlearning) else ()


def _known_vocabulary(module: LanguageModule) -> int | None:
    """Return the vocabulary of the tokenizer that would be trained for a configuration without a vocabulary."""
    values = getattr(module.policy, "config", None)
    if isinstance(values, dict) and "vocab_size" not in values:
        return int(getattr(module.policy, "vocab_size", 0)) or None
    return None


def _ranks(module: LanguageModule, config: Mapping[str, Any], machine: Machine) -> Any:
    """Return a stand-in for the trainer, with everything that a data module reads of it."""
    return SimpleNamespace(
        lightning_module=module,
        global_rank=0,
        world_size=machine.devices,
        num_training_batches=sys.maxsize,
        accumulate_grad_batches=int(config["trainer"]["accumulate_grad_batches"] or 1),
    )


def _new_tokens(config: Mapping[str, Any]) -> int:
    return int(config["forget_quality"]["max_new_tokens"])


def _generation(config: Mapping[str, Any], prompt: int, room: int) -> tuple[int, int]:
    width = prompt + _new_tokens(config)
    return (0, width) if config["forget_quality"]["generate_every"] == 0 else (max(1, room // width), width)


def _steps(
    trainer: Mapping[str, Any], batches: int | None, accumulation: int
) -> tuple[int | None, int | None, int | None]:
    """Return batches of an epoch, epochs and optimizer steps, within the trainer's limits."""
    most, epochs = trainer["max_steps"], trainer["max_epochs"]
    most = None if most == -1 else most
    if batches is None:
        return None, epochs, most
    limit = trainer["limit_train_batches"]
    if limit is not None:
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    # Lightning also steps at the last batch of an epoch.
    an_epoch = -(-batches // accumulation)
    if epochs is None and most is None:
        # Default of Lightning.
        epochs = 1000
    steps = None if epochs in (None, -1) else epochs * an_epoch
    if most is not None:
        steps = most if steps is None else min(steps, most)
        epochs = -(-steps // an_epoch) if an_epoch else 0
    return batches, epochs, steps
