"""The base of all data modules: forget and retain rows, tokenised, paired, batched; evaluation sets."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase

from dipo_pl.batch import Batch, Encoded, EvaluationBatch, collate
from dipo_pl.data_modules.encoding import encode
from dipo_pl.data_modules.pairing import ResumableSampler, forget_retain_pairs, permutation
from dipo_pl.data_modules.prompts import PromptFormat, QuestionAnswer
from dipo_pl.data_modules.rows import EvaluationSet, Row, shared_rows
from dipo_pl.errors import InputError
from dipo_pl.fingerprint import rows_fingerprint, tokenizer_fingerprint

TrainOn = Literal["pairs", "all", "forget", "retain"]


@dataclass(frozen=True)
class RowSets:
    """What a data module reads: the rows to forget, those to retain, and the sets to measure."""

    forget: Sequence[Row]
    retain: Sequence[Row]
    evaluation: Sequence[EvaluationSet]


class ForgetRetain(LightningDataModule):
    """Pairs every forget row with a retain row, and serves the evaluation sets.

    A subclass reads its rows in `read`; all else is here. Batches are a pure function of (seed, epoch,
    row), so that workers, ranks and a resumed run see the same ones.

    Args:
        prompt: how a question becomes the text before its answer.
        train_on: what training steps hold: `pairs` of a forget and a retain row (unlearning), or `all`
            rows, or those of one set (fine-tuning: `all` makes a target, `retain` a retain-only model).
        batch_size: rows of a training step on one device; with `pairs`, that many of each set.
        evaluation_batch_size: rows measured at once on one device, each with all its answers.
        evaluation_rows: measure only the first rows of each evaluation set; null measures all.
        evaluate: names of the evaluation sets to measure; null measures all that the data has.
        max_length: tokens of a sequence, EOS included.
        too_long: what is done with a longer row: `error` refuses it, `truncate` cuts it and tells the count.
        seed: of pairing and order; null takes seed_everything on the command line, else 0.
        workers: processes that make batches beside the training process.
    """

    def __init__(
        self,
        prompt: PromptFormat | None = None,
        train_on: TrainOn = "pairs",
        batch_size: int = 8,
        evaluation_batch_size: int = 16,
        evaluation_rows: int | None = None,
        evaluate: list[str] | None = None,
        max_length: int = 512,
        too_long: Literal["error", "truncate"] = "error",
        seed: int | None = None,
        workers: int = 0,
    ) -> None:
        super().__init__()
        counts = {
            "batch_size": batch_size,
            "evaluation_batch_size": evaluation_batch_size,
            "max_length": max_length,
        }
        if workers < 0:
            raise InputError(f"data.workers must be at least 0, got {workers}")
        for name, value in counts.items():
            if value < 1:
                raise InputError(f"data.{name} must be at least 1, got {value}")
        if evaluation_rows is not None and evaluation_rows < 1:
            raise InputError(
                f"data.evaluation_rows must be at least 1, or null for all, got {evaluation_rows}"
            )
        self.prompt = prompt or QuestionAnswer()
        self.train_on = train_on
        self.batch_size = batch_size
        self.evaluation_batch_size = evaluation_batch_size
        self.evaluation_rows = evaluation_rows
        self.evaluate = evaluate
        self.max_length = max_length
        self.too_long = too_long
        self.seed = seed or 0
        self.workers = workers
        self.row_sets: RowSets | None = None
        self._resume_at: tuple[int, int] | None = None

    @abstractmethod
    def read(self) -> RowSets:
        """Reads the rows.

        Raises:
            InputError: a file or column is missing or malformed.
        """

    def setup(self, stage: str) -> None:
        if self.row_sets is not None:
            return
        self.row_sets = rows = self.read()
        if overlap := shared_rows(rows.forget, rows.retain):
            rank_zero_warn(
                f"{overlap} of {len(rows.forget)} forget rows also stand in the retain set: they are pulled "
                "both ways, and will not be forgotten well"
            )
        self.evaluation_sets = self._chosen(rows.evaluation)
        assert self.trainer is not None
        module: Any = self.trainer.lightning_module
        self.tokenizer: PreTrainedTokenizerBase = module.policy.tokenizer(self.texts())
        self._encode_training_rows()
        self._encode_evaluation_sets()

    def _chosen(self, sets: Sequence[EvaluationSet]) -> list[EvaluationSet]:
        known = {evaluation_set.name: evaluation_set for evaluation_set in sets}
        names = list(known) if self.evaluate is None else self.evaluate
        for name in names:
            if name not in known:
                raise InputError(f"data.evaluate names {name!r}; this data has {', '.join(known)}")
        chosen = [known[name] for name in names]
        return [replace(each, rows=each.rows[: self.evaluation_rows]) for each in chosen]

    def texts(self) -> Iterable[str]:
        """All training texts of both sets, whatever is trained on: a tokenizer made of them serves both."""
        assert self.row_sets is not None
        return (
            text
            for rows in (self.row_sets.forget, self.row_sets.retain)
            for row in rows
            for text in row.texts()
        )

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that training or evaluation will show the policy."""
        lengths = [len(each.ids) for rows in self._training.values() for each in rows]
        lengths += [len(each.ids) for rows in self._evaluation for answers in rows for each in answers]
        return max(lengths)

    @property
    def training_sequences(self) -> dict[str, list[Encoded]]:
        """All sequences that training batches are made of, by section; `Batch.rows` counts in these."""
        return self._training

    @property
    def identity(self) -> dict[str, str]:
        """Fingerprints of what the training sequences were made from, by name."""
        assert self.row_sets is not None
        return {
            "tokenizer": tokenizer_fingerprint(self.tokenizer),
            "prompt format": type(self.prompt).__name__,
            "forget rows": rows_fingerprint(self.row_sets.forget),
            "retain rows": rows_fingerprint(self.row_sets.retain),
        }

    def _encode_training_rows(self) -> None:
        assert self.row_sets is not None
        self._training = {
            "forget": [self._encoded(row, row.answer) for row in self.row_sets.forget],
            "retain": [self._encoded(row, row.answer) for row in self.row_sets.retain],
        }
        self._warn_of_cuts("training rows", self._training.values())

    def _encode_evaluation_sets(self) -> None:
        self._evaluation = []
        for evaluation_set in self.evaluation_sets:
            counts = {len(row.wrong_answers) for row in evaluation_set.rows}
            if len(counts) > 1:
                raise InputError(
                    f"rows of the evaluation set {evaluation_set.name!r} have {sorted(counts)} wrong answers: "
                    "give every row the same number, or none"
                )
            self._evaluation.append(
                [
                    [self._encoded(row, answer) for answer in answers_to_measure(row)]
                    for row in evaluation_set.rows
                ]
            )
        self._warn_of_cuts(
            "answers to be measured", (answers for rows in self._evaluation for answers in rows)
        )

    def _warn_of_cuts(self, what: str, groups: Iterable[Iterable[Encoded]]) -> None:
        cut = [each.cut for group in groups for each in group]
        if any(cut):
            rank_zero_warn(
                f"{sum(cut)} of {len(cut)} {what} are longer than data.max_length {self.max_length} "
                "with their prompt, and are cut there"
            )

    def _encoded(self, row: Row, answer: str) -> Encoded:
        return encode(
            row, answer, self.prompt, self.tokenizer, self.max_length, truncate=self.too_long == "truncate"
        )

    def prompts(self, name: str, count: int) -> list[list[int]]:
        """The prompts of the first `count` rows of an evaluation set, as token ids up to the answer."""
        index = [each.name for each in self.evaluation_sets].index(name)
        originals = [answers[0] for answers in self._evaluation[index][:count]]
        return [list(each.ids[: each.answer_start]) for each in originals]

    def _items(self) -> Callable[[int], Sequence[Any]]:
        """The epoch's items: pairs of row numbers, or (set, row number)."""
        forget, retain = (len(self._training[name]) for name in ("forget", "retain"))
        if self.train_on == "pairs":
            return lambda epoch: forget_retain_pairs(self.seed, epoch, forget, retain)
        rows = {
            "forget": [("forget", row) for row in range(forget)],
            "retain": [("retain", row) for row in range(retain)],
        }
        rows["all"] = rows["forget"] + rows["retain"]
        chosen = rows[self.train_on]
        return lambda epoch: [chosen[i] for i in permutation(self.seed, "train", epoch, len(chosen))]

    def train_dataloader(self) -> DataLoader[Batch]:
        assert self.trainer is not None
        sampler = ResumableSampler(
            self._items(), self.batch_size, self.trainer.global_rank, self.trainer.world_size
        )
        if self._resume_at is not None:
            sampler.resume(*self._resume_at)
        module: Any = self.trainer.lightning_module
        dataset = _TrainingBatches(self._training, module.sections if self.train_on == "pairs" else None)
        return self._loader(dataset, sampler)

    def val_dataloader(self) -> list[DataLoader[EvaluationBatch]]:
        assert self.trainer is not None
        return [
            self._loader(
                _EvaluationBatches(evaluation_set.rows, encoded),
                ResumableSampler(
                    partial(_in_order, len(encoded)),
                    self.evaluation_batch_size,
                    self.trainer.global_rank,
                    self.trainer.world_size,
                ),
            )
            for evaluation_set, encoded in zip(self.evaluation_sets, self._evaluation, strict=True)
        ]

    def _loader(self, dataset: Dataset[Any], sampler: ResumableSampler) -> DataLoader[Any]:
        # The sampler yields whole batches, so automatic batching is off: dataset[items] is the batch.
        return DataLoader(
            dataset,
            sampler=sampler,
            batch_size=None,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
        )

    def state_dict(self) -> dict[str, int]:
        assert self.trainer is not None
        done = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        return {"epoch": self.trainer.current_epoch, "batches_done": done}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Lightning calls this before it asks for the training loader."""
        self._resume_at = (state_dict["epoch"], state_dict["batches_done"])
        rank_zero_info(f"resuming in epoch {self._resume_at[0]} after {self._resume_at[1]} batches")


def answers_to_measure(row: Row) -> list[str]:
    """The original answer; where wrong ones are known, also the correct one of the truth ratio, then they."""
    if not row.wrong_answers:
        return [row.answer]
    return [row.answer, row.paraphrased_answer or row.answer, *row.wrong_answers]


def _in_order(size: int, epoch: int) -> Sequence[int]:
    return range(size)


class _TrainingBatches(Dataset[Batch]):
    """Without `sections` items are not pairs, but (set, row number)."""

    def __init__(self, rows: dict[str, list[Encoded]], sections: Sequence[str] | None) -> None:
        self.rows = rows
        self.sections = sections

    def __getitem__(self, items: Sequence[Any]) -> Batch:
        if self.sections is not None:
            numbers = {"forget": [row for row, _ in items], "retain": [row for _, row in items]}
            return collate(
                {name: [self.rows[name][row] for row in numbers[name]] for name in self.sections},
                [row for name in self.sections for row in numbers[name]],
            )
        return collate({"train": [self.rows[name][row] for name, row in items]}, [row for _, row in items])


class _EvaluationBatches(Dataset[EvaluationBatch]):
    def __init__(self, rows: Sequence[Row], encoded: list[list[Encoded]]) -> None:
        self.rows = rows
        self.encoded = encoded

    def __getitem__(self, items: Sequence[int]) -> EvaluationBatch:
        sequences = [answer for item in items for answer in self.encoded[item]]
        originals = [self.encoded[item][0] for item in items]
        return EvaluationBatch(
            answers=collate({"answers": sequences}, [item for item in items for _ in self.encoded[item]]),
            rows=torch.tensor(items),
            prompts=[list(each.ids[: each.answer_start]) for each in originals],
            references=[self.rows[item].answer for item in items],
        )
