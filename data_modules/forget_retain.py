"""The base of all data modules: forget and retain rows, tokenised, paired, batched; evaluation sets."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase

from dipo_pl.batch import Batch, Encoded, EvaluationBatch, collate
from dipo_pl.data_modules.alternates import Alternates
from dipo_pl.data_modules.companions import companion_answers
from dipo_pl.data_modules.encoding import encode
from dipo_pl.data_modules.evaluation_batches import evaluation_batches
from dipo_pl.data_modules.grouping import grouped_by_length
from dipo_pl.data_modules.pairing import ResumableSampler, forget_retain_pairs, permutation
from dipo_pl.data_modules.requests import joined, listed, refuse_overlaps, without
from dipo_pl.errors import InputError
from dipo_pl.evaluation_set import EvaluationSet
from dipo_pl.prompts import PromptFormat, QuestionAnswer
from dipo_pl.rows import Row, shared_rows
from dipo_pl.storage.fingerprints import (
    rows_fingerprint,
    settings_fingerprint,
    texts_fingerprint,
    tokenizer_fingerprint,
)

TrainOn = Literal["pairs", "all", "forget", "retain"]

# For each section of a batch, the set that a sequence comes from and its place there.
Item = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class RowSets:
    """What a data module reads: the rows to forget, those to retain, and the sets to measure."""

    forget: Sequence[Row]
    retain: Sequence[Row]
    evaluation: Sequence[EvaluationSet]


class ForgetRetain(LightningDataModule):
    """Pairs every forget row with a retain row, and serves the evaluation sets.

    A subclass reads its rows in `read`; all else is here. Pairs are a pure function of (seed, epoch, row)
    and batches of these and the global batch size, so that workers, ranks and a resumed run see the same
    ones. A batch of pairs holds the sections that the LightningModule's `sections` names, in that order:
    `forget`, `retain`, and of the forget rows `alternate` (the question with one of its other answers) and
    `mismatched` (the question with the next row's answer).

    Args:
        prompt: how a question becomes the text before its answer.
        train_on: what training steps hold: `pairs` of a forget and a retain row (unlearning), or `all`
            rows, or those of one set (fine-tuning: `all` makes a target, `retain` a retain-only model).
        forget_share: with train_on `forget`, the share of its rows that training steps hold, drawn by the seed, in
            (0, 1]; a smaller share is part of a larger one.
        batch_size: rows that one device takes at once; with `pairs`, that many of each set.
        global_batch_size: rows of an optimizer step over all devices; how many batches are accumulated follows from
            it, from batch_size and from the number of devices, and the same rows make a step however they
            are split. Null is batch_size times devices times trainer.accumulate_grad_batches.
        evaluation_tokens: tokens measured at once on one device, padding included; a row is measured with all its
            answers, and goes alone where these are more.
        evaluation_rows: measure only the first rows of each evaluation set; null measures all.
        evaluate: names of the evaluation sets to measure; null measures all that the data has.
        alternates: other answers to the forget rows' questions, for losses that ask for them; null takes the
            rows' own, where they have any.
        group_by_length: put items of similar length into one batch, which spares padding; pairs stay as
            they are.
        max_length: tokens of a sequence, EOS included.
        too_long: what is done with a longer row: `error` refuses it, `truncate` cuts it and tells the count.
        requests: names of forget sets, in the order in which they are asked for, each measured as a set of its own
            (`request_1`, ...); what is to be forgotten now is among them, and what stands in them is not retained.
        requests_to_come: names of forget sets that will be asked for later, as far as they are known: still retained, but
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
        counts = {
            "batch_size": batch_size,
            "evaluation_tokens": evaluation_tokens,
            "max_length": max_length,
        }
        if workers < 0:
            raise InputError(f"data.workers must be at least 0, got {workers}")
        for name, value in counts.items():
            if value < 1:
                raise InputError(f"data.{name} must be at least 1, got {value}")
        if global_batch_size is not None and global_batch_size < 1:
            raise InputError(
                f"data.global_batch_size must be at least 1, or null for none, got {global_batch_size}"
            )
        if evaluation_rows is not None and evaluation_rows < 1:
            raise InputError(
                f"data.evaluation_rows must be at least 1, or null for all, got {evaluation_rows}"
            )
        if not 0 < forget_share <= 1:
            raise InputError(f"data.forget_share must be in (0, 1], got {forget_share}")
        if forget_share < 1 and train_on != "forget":
            raise InputError(
                f"data.forget_share is for data.train_on forget, which is {train_on}: leave it at 1, got {forget_share}"
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
        self.row_sets: RowSets | None = None
        self._forget_sets: dict[str, Sequence[Row]] = {}
        self.companions: dict[str, list[tuple[str, ...]]] = {}
        self._sampler: ResumableSampler | None = None
        self.resume_at: tuple[int, int] | None = None

    @abstractmethod
    def read(self) -> RowSets:
        """Reads the rows.

        Raises:
            InputError: a file or column is missing or malformed.
        """

    def read_forget(self, name: str) -> Sequence[Row]:
        """The rows of one forget set.

        Raises:
            InputError: there is none of this name, or this data has no forget sets by name.
        """
        raise InputError(f"data.requests names {name!r}, and {type(self).__name__} has one forget set alone")

    def named_forget(self, names: str | Sequence[str]) -> Sequence[Row]:
        """The rows of one forget set, or of several, those that stand in more than one once."""
        if isinstance(names, str):
            return self.forget_set(names)
        return joined(map(self.forget_set, listed(names)))

    def forget_set(self, name: str) -> Sequence[Row]:
        """As `read_forget`, read once."""
        if name not in self._forget_sets:
            self._forget_sets[name] = self.read_forget(name)
        return self._forget_sets[name]

    def request_sets(self, place: int, name: str, rows: Sequence[Row]) -> list[EvaluationSet]:
        """What is measured of the forget set that the request at `place`, from 1 on, is for."""
        return [EvaluationSet(f"request_{place}", rows)]

    @property
    def settings(self) -> dict[str, Any]:
        """What else changes figures, by name."""
        return {}

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.derive_accumulation()
        if self.row_sets is None:
            self._read()
        if stage == "fit" and self.train_on == "pairs":
            self._encode_companions()

    def derive_accumulation(self) -> None:
        """Has the trainer accumulate as many batches as `global_batch_size` asks for, where it does.

        Raises:
            InputError: the devices cannot take exactly this many rows, or another accumulation is asked for.
        """
        if (size := self.global_batch_size) is None:
            return
        assert self.trainer is not None
        devices, given = self.trainer.world_size, self.trainer.accumulate_grad_batches
        accumulation, rest = divmod(size, self.batch_size * devices)
        if rest or not accumulation:
            fitting = [each for each in range(1, self.batch_size + 1) if size % (each * devices) == 0]
            advice = f"a data.batch_size of {fitting[-1]}" if fitting else f"a multiple of {devices}"
            raise InputError(
                f"data.global_batch_size is {size}, and {devices} device{'s' * (devices > 1)} with data.batch_size "
                f"{self.batch_size} take {self.batch_size * devices} rows at once, which does not divide it: {advice} does"
            )
        if given not in (1, accumulation):
            raise InputError(
                f"data.global_batch_size {size} and trainer.accumulate_grad_batches {given} both say how many batches "
                "are accumulated: leave the second at 1"
            )
        self.trainer.accumulate_grad_batches = accumulation

    def _read(self) -> None:
        self.row_sets = rows = self._without_requests(self.read())
        if overlap := shared_rows(rows.forget, rows.retain):
            rank_zero_warn(
                f"{overlap} of {len(rows.forget)} forget rows also stand in the retain set: they are pulled "
                "both ways, and will not be forgotten well"
            )
        self.evaluation_sets = [*self._chosen(rows.evaluation), *self._requested()]
        for each in self.evaluation_sets:
            if each.name != "holdout":
                continue
            known = [*rows.forget, *rows.retain, *self._asked_for(self.requests)]
            if seen := shared_rows(each.rows, known):
                raise InputError(
                    f"{seen} of {len(each.rows)} holdout rows also stand in the forget or retain set: a holdout is for rows "
                    "that no model has seen"
                )
        self.tokenizer: PreTrainedTokenizerBase = self._module.policy.tokenizer(self.texts())
        self.evaluation_sets = [self._with_cut_answers(each) for each in self.evaluation_sets]
        self._encode_training_rows()
        self._encode_evaluation_sets()

    @property
    def _module(self) -> Any:
        assert self.trainer is not None
        return self.trainer.lightning_module

    @property
    def _sections(self) -> tuple[str, ...]:
        """Of a training batch of pairs."""
        sections: tuple[str, ...] = self._module.sections
        return sections

    def _chosen(self, sets: Sequence[EvaluationSet]) -> list[EvaluationSet]:
        known = {evaluation_set.name: evaluation_set for evaluation_set in sets}
        names = list(known) if self.evaluate is None else self.evaluate
        if not names:
            raise InputError(f"data.evaluate names no set; this data has {', '.join(known)}")
        for name in names:
            if name not in known:
                raise InputError(f"data.evaluate names {name!r}; this data has {', '.join(known)}")
        return [self._first_rows(known[name]) for name in names]

    def _first_rows(self, evaluation_set: EvaluationSet) -> EvaluationSet:
        return replace(evaluation_set, rows=evaluation_set.rows[: self.evaluation_rows])

    def _asked_for(self, names: Sequence[str]) -> list[Row]:
        return joined(map(self.forget_set, names))

    def _requested(self) -> list[EvaluationSet]:
        """Of each request what no earlier one has asked for: MUSE's growing sets hold those before."""
        return [
            self._first_rows(each)
            for place, name in enumerate(self.requests, start=1)
            for each in self.request_sets(
                place, name, without(self.forget_set(name), self._asked_for(self.requests[: place - 1]))
            )
        ]

    def _without_requests(self, rows: RowSets) -> RowSets:
        """Nothing that was ever asked to be forgotten is retained."""
        if not self.requests:
            return rows
        refuse_overlaps({name: self.forget_set(name) for name in self.requests}, nested=True)
        requested = self._asked_for(self.requests)
        if missing := len(without(rows.forget, requested)):
            raise InputError(
                f"{missing} of {len(rows.forget)} forget rows stand in none of data.requests ({', '.join(self.requests)}): "
                "what is to be forgotten now must be among them"
            )
        retain = without(rows.retain, requested)
        if not retain:
            raise InputError("all retain rows stand in one of data.requests: give others to retain")
        unmeasured = [*requested, *self._asked_for(self.requests_to_come)]
        evaluation = [
            replace(each, rows=without(each.rows, unmeasured)) if each.name == "retain" else each
            for each in rows.evaluation
        ]
        return RowSets(rows.forget, retain, [each for each in evaluation if each.rows])

    def _with_cut_answers(self, evaluation_set: EvaluationSet) -> EvaluationSet:
        length = evaluation_set.new_tokens
        if not length:
            return evaluation_set
        answers = self.tokenizer([row.answer for row in evaluation_set.rows])["input_ids"]
        cut = self.tokenizer.batch_decode([ids[:length] for ids in answers], skip_special_tokens=True)
        return replace(evaluation_set, cut_answers=cut)

    def texts(self) -> Iterable[str]:
        """What a tokenizer is made of: all training texts of both sets, whatever is trained on, and the holdout's.

        One that knew the words of the forget set alone would tell the two apart.
        """
        assert self.row_sets is not None
        holdout = (each.rows for each in self.row_sets.evaluation if each.name == "holdout")
        sets = (self.row_sets.forget, self.row_sets.retain, *holdout)
        return (text for rows in sets for row in rows for text in row.texts())

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that training or evaluation will show the policy."""
        lengths = [len(each.ids) for rows in self._training.values() for each in rows]
        lengths += [len(each.ids) for rows in self._evaluation for answers in rows for each in answers]
        return max(lengths)

    @property
    def training_sequences(self) -> dict[str, list[Encoded]]:
        """All sequences that training batches are made of, by section; `Batch.rows` counts in these."""
        if self.train_on != "pairs":
            return self._training
        return {name: self._training[name] for name in self._sections}

    @property
    def identity(self) -> dict[str, str]:
        """Fingerprints of what the training sequences were made from, by name."""
        assert self.row_sets is not None
        return {
            "tokenizer": tokenizer_fingerprint(self.tokenizer),
            "prompt format": settings_fingerprint(self.prompt),
            "forget rows": rows_fingerprint(self.row_sets.forget),
            "retain rows": rows_fingerprint(self.row_sets.retain),
            **{f"{name} answers": texts_fingerprint(answers) for name, answers in self.companions.items()},
        }

    @property
    def trained_forget_rows(self) -> Sequence[int]:
        """Places of the forget rows that training steps hold."""
        assert self.row_sets is not None
        order = permutation(self.seed, "forget_share", 0, len(self.row_sets.forget))
        return sorted(order[: max(1, round(self.forget_share * len(order)))])

    def _encode_training_rows(self) -> None:
        assert self.row_sets is not None
        self._training = {
            "forget": [self._encoded(row, row.answer) for row in self.row_sets.forget],
            "retain": [self._encoded(row, row.answer) for row in self.row_sets.retain],
        }
        self._warn_of_cuts("training rows", self._training.values())

    def _encode_companions(self) -> None:
        """What only some losses ask for. Where a row has K such answers, answer k of row r stands at r * K + k."""
        assert self.row_sets is not None
        rows = self.row_sets.forget
        for name in self._sections:
            if name not in self._training:
                self.companions[name] = companion_answers(name, rows, self.alternates, self.seed)
                self._training[name] = [
                    self._encoded(row, answer)
                    for row, answers in zip(rows, self.companions[name], strict=True)
                    for answer in answers
                ]
                self._warn_of_cuts(f"{name} answers", [self._training[name]])

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
                    [self._encoded(row, answer, evaluation_set.prompt) for answer in row.measured_answers]
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

    def _encoded(self, row: Row, answer: str, prompt: PromptFormat | None = None) -> Encoded:
        return encode(
            row,
            answer,
            prompt or self.prompt,
            self.tokenizer,
            self.max_length,
            truncate=self.too_long == "truncate",
        )

    def _items(self, epoch: int) -> Sequence[Item]:
        """The epoch's items in training order."""
        assert self.trainer is not None
        items = self._pairs(epoch) if self.train_on == "pairs" else self._rows(epoch)
        if not self.group_by_length:
            return items
        return grouped_by_length(
            items,
            self._length,
            self.global_batch_size or self.batch_size * self.trainer.world_size,
            self.seed,
            epoch,
        )

    def _pairs(self, epoch: int) -> list[Item]:
        forget, retain = (len(self._training[name]) for name in ("forget", "retain"))

        def place(section: str, row: int, partner: int) -> tuple[str, int]:
            if section == "retain":
                return section, partner
            answers = len(self._training[section]) // forget
            return section, row * answers + epoch % answers

        return [
            tuple(place(section, *pair) for section in self._sections)
            for pair in forget_retain_pairs(self.seed, epoch, forget, retain)
        ]

    def _rows(self, epoch: int) -> list[Item]:
        names = ("forget", "retain") if self.train_on == "all" else (self.train_on,)
        places: dict[str, Sequence[int]] = {name: range(len(self._training[name])) for name in names}
        if "forget" in places:
            places["forget"] = self.trained_forget_rows
        rows = [(name, row) for name in names for row in places[name]]
        return [(rows[place],) for place in permutation(self.seed, "train", epoch, len(rows))]

    def _length(self, item: Item) -> int:
        return max(len(self._training[name][row].ids) for name, row in item)

    def train_dataloader(self) -> DataLoader[Batch]:
        self._sampler = self._ordered()
        if self.resume_at is not None:
            self._sampler.resume(*self.resume_at)
        sections = self._sections if self.train_on == "pairs" else ("train",)
        return self._loader(_TrainingBatches(self._training, sections), self._sampler)

    def _ordered(self) -> ResumableSampler:
        assert self.trainer is not None
        return ResumableSampler(
            self._items,
            self.batch_size,
            self.trainer.global_rank,
            self.trainer.world_size,
            None if self.global_batch_size is None else self.trainer.accumulate_grad_batches,
        )

    def loss_weight(self, batch: int) -> float:
        """What the loss of this batch of an epoch counts; 1 but where data.global_batch_size leaves a smaller step."""
        if self._sampler is None or self.trainer is None:
            return 1.0
        return self._sampler.weight(batch, int(self.trainer.num_training_batches))

    def val_dataloader(self) -> list[DataLoader[EvaluationBatch]]:
        assert self.trainer is not None
        return [
            self._loader(
                _EvaluationBatches(evaluation_set.rows, encoded),
                evaluation_batches(
                    encoded, self.evaluation_tokens, self.trainer.global_rank, self.trainer.world_size
                ),
            )
            for evaluation_set, encoded in zip(self.evaluation_sets, self._evaluation, strict=True)
        ]

    def _loader(self, dataset: Dataset[Any], sampler: Iterable[Any]) -> DataLoader[Any]:
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
        state = {"epoch": self.trainer.current_epoch, "batches_done": done}
        if self.global_batch_size is not None:
            state["accumulation"] = self.trainer.accumulate_grad_batches
        return state

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Lightning calls this before it asks for the training loader, or with sharded models after that."""
        assert self.trainer is not None
        epoch, done = state_dict["epoch"], state_dict["batches_done"]
        if (before := state_dict.get("accumulation")) is not None:
            # Checkpoints are of whole steps, which are other numbers of batches on other numbers of devices.
            done = min(-(-done // before) * self.trainer.accumulate_grad_batches, len(self._ordered()))
        self.resume_at = epoch, done
        if self._sampler is not None:
            self._sampler.resume(epoch, done)
        rank_zero_info(f"resuming in epoch {epoch} after {done} batches")


class _TrainingBatches(Dataset[Batch]):
    def __init__(self, sequences: dict[str, list[Encoded]], sections: Sequence[str]) -> None:
        self.sequences = sequences
        self.sections = sections

    def __getitem__(self, items: Sequence[Item]) -> Batch:
        columns = list(zip(*items, strict=True))
        return collate(
            {
                section: [self.sequences[name][row] for name, row in column]
                for section, column in zip(self.sections, columns, strict=True)
            },
            [row for column in columns for _, row in column],
        )


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
            closing=tuple(each.closing for each in originals),
        )
