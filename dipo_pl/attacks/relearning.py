"""Relearning: how fast does what was forgotten come back while a model is trained on something else?"""

from collections.abc import Iterator, Sequence
from itertools import count
from statistics import fmean
from typing import Any, Literal

import torch
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW

from dipo_pl.attacks.base import Attack, Outcome, keyed
from dipo_pl.attacks.intervals import of_rows
from dipo_pl.attacks.measuring import measure
from dipo_pl.attacks.subject import CALLED, RETAIN_ONLY, TARGET, UNLEARNED, Subject
from dipo_pl.batch import Encoded, collate
from dipo_pl.data_modules.row_files import read_rows
from dipo_pl.data_modules.training_batches import (
    Item,
    ResumableSampler,
    grouped_by_length,
    permutation,
    row_items,
)
from dipo_pl.errors import InputError, check_count, check_number, check_share
from dipo_pl.evaluation_set import EvaluationSet
from dipo_pl.losses.cross_entropy import CrossEntropy
from dipo_pl.losses.engine import sequence_objective
from dipo_pl.metrics import Probability
from dipo_pl.models.eval_mode import eval_mode
from dipo_pl.models.head import OutputHead
from dipo_pl.models.hidden_states import answer_states
from dipo_pl.models.weight_sample import check_trained_dtype
from dipo_pl.modules.fused_update import fused_update
from dipo_pl.rows import Row
from dipo_pl.storage.fingerprints import rows_fingerprint

Source = Literal["forget", "retain", "holdout", "benign"]


class Relearning(Attack):
    r"""Attack that fine-tunes the models on a few rows and measures the forget rows that are not among them.

    Rows come from one of four sources: a share of the forget rows themselves, retain rows, the holdout (rows of the same
    form about others), or a file of any other text. The unlearned and the retain-only model are
    trained on the same rows in the same order, which with the source `forget` are those of `dipo-pl relearn` with the same
    seed, share and steps: the two give the same curve. That command trains as any run does, also sharded or in half
    precision; an attack trains a whole model on each device. Metrics are
    `relearning_SOURCE_area`, the mean over the steps of P(held back) of the unlearned model minus that of the retain-only
    one, and `relearning_SOURCE_half_steps`, the first measured step at which P(held back) of the unlearned model is half-way
    back to the target's, if there is one.

    Source: arXiv:2406.13356; with text that does not name the rows, arXiv:2410.02879 and arXiv:2506.12618.

    Args:
        source: forget, retain, holdout or benign.
        share: of the forget rows that the source `forget` trains on, in (0, 1).
        file: rows of the source `benign`, in any format that data.forget takes.
        steps: optimizer steps.
        every: steps between two measurements.
        batch_size: rows of a step.
        lr: learning rate of AdamW, constant; 1e-5 suits models of billions of parameters.
        tolerance: see `Attack`; of the mean P(held back).
    """

    def __init__(
        self,
        source: Source = "forget",
        share: float = 0.1,
        file: str | None = None,
        steps: int = 20,
        every: int = 5,
        batch_size: int = 8,
        lr: float = 1e-5,
        tolerance: float = 0.05,
    ) -> None:
        super().__init__(tolerance)
        check_share("Relearning.share", share, one=False)
        for name, value in (("steps", steps), ("every", every), ("batch_size", batch_size)):
            check_count(f"Relearning.{name}", value)
        check_number("Relearning.lr", lr, above=0)
        if file is not None and source != "benign":
            raise InputError(f"Relearning.file is for the source benign (got {source}): leave it out")
        self.source, self.share, self.file = source, share, file
        # This is part of the attack's identity: another text is another attack.
        self.file_digest = None if file is None else rows_fingerprint(read_rows(file))
        self.steps, self.every, self.batch_size, self.lr = steps, every, batch_size, lr

    @property
    def name(self) -> str:
        """The attack's name with its source."""
        return f"relearning_{self.source}"

    def lacks(self, subject: Subject) -> str | None:
        """Return the rows that there are none of."""
        if self.source == "holdout" and subject.holdout is None:
            return "a holdout (data.holdout of the run)"
        if self.source == "benign" and self.file is None:
            return "a file of other text (Relearning.file)"
        if self.source == "forget" and len(subject.forget.rows) < 2:
            return "two forget rows: one to train on, and one to hold back"
        return None

    def run(self, subject: Subject) -> Outcome:
        """Return the curves of all models."""
        rows, held_back = self._rows(subject)
        steps = self._measured
        found: dict[str, list[list[float]]] = subject.each_model(
            self.name,
            lambda name: self._curve(subject, name, rows, held_back, steps),
            (UNLEARNED, RETAIN_ONLY),
        )
        # Only what the target knows before any step is used.
        found |= subject.each_model(
            self.name, lambda name: self._curve(subject, name, rows, held_back, [0]), (TARGET,)
        )
        means = {name: [fmean(by_row) for by_row in each] for name, each in found.items()}
        before = {name: each for name, each in means.items() if name == TARGET}
        curves = {name: each for name, each in means.items() if name != TARGET}
        values = {name: fmean(each) for name, each in means.items()}
        metrics = {keyed(name, f"{self.name}_probability"): curve[-1] for name, curve in curves.items()}
        if RETAIN_ONLY in curves:
            metrics[f"{self.name}_area"] = values[UNLEARNED] - values[RETAIN_ONLY]
        if TARGET in before and before[TARGET][0] > (start := curves[UNLEARNED][0]):
            half = (before[TARGET][0] + start) / 2
            back = [step for step, each in zip(steps, curves[UNLEARNED], strict=True) if each >= half]
            if back:
                metrics[f"{self.name}_half_steps"] = float(back[0])
        series: dict[str, list[Any]] = {"step": steps, **curves}
        by_row = {name: [fmean(each) for each in zip(*steps, strict=True)] for name, steps in found.items()}
        headline = "mean P(held back) over the steps"
        return Outcome(headline, values, metrics, [], series, of_rows(by_row))

    @property
    def _measured(self) -> list[int]:
        """Steps after which the forget rows are measured."""
        return sorted({*range(0, self.steps + 1, self.every), self.steps})

    def _rows(self, subject: Subject) -> tuple[Sequence[Row], EvaluationSet]:
        """Return the rows that are trained on, and the forget rows that are measured."""
        forget = subject.forget
        if self.source == "forget":
            measured = {row.conversation for row in forget.rows}
            rows = subject.data.row_sets.forget
            # Rows that are measured of MUSE's texts have another form.
            if measured.isdisjoint(row.conversation for row in rows):
                rows = forget.rows
            order = permutation(subject.seed, "forget_share", 0, len(rows))
            trained = [
                rows[place]
                for place in sorted(order[: min(max(1, round(self.share * len(order))), len(order) - 1)])
            ]
            known = {row.conversation for row in trained}
            rest = [row for row in forget.rows if row.conversation not in known]
            if not rest:
                raise InputError(
                    f"Relearning.share {self.share} trains on all {len(measured)} forget rows that are measured: lower it, "
                    "or raise the run's data.evaluation_rows"
                )
            return trained, EvaluationSet(forget.name, rest, prompt=forget.prompt)
        if self.source == "retain":
            return subject.data.row_sets.retain, forget
        if self.source == "holdout":
            assert subject.holdout is not None
            return subject.holdout.rows, forget
        return read_rows(str(self.file)), forget

    def _curve(
        self,
        subject: Subject,
        name: str,
        rows: Sequence[Row],
        held_back: EvaluationSet,
        steps: Sequence[int],
    ) -> list[list[float]]:
        """Return the probability of each row that is held back after each of some steps."""
        batches = self._batches(subject, subject.encoder.rows(rows))
        model = subject.fresh(name)
        if steps[-1]:
            check_trained_dtype(dict(model.named_parameters()), self.lr)
        optimizer = fused_update(AdamW(model.parameters(), lr=self.lr, weight_decay=0.0))
        curve = []
        for step in range(steps[-1] + 1):
            if step in steps:
                with eval_mode(model), torch.no_grad():
                    what = f"after step {step} of {steps[-1]}, {CALLED[name]}, batches"
                    remedy = f"lower Relearning.lr (got {self.lr:g})" if step else None
                    found = measure(subject, model, held_back, [Probability()], what=what, remedy=remedy)
                    curve.append([row["probability"] for row in found.rows])
            if step < steps[-1]:
                self._train(model, optimizer, next(batches), subject.device)
        return curve

    def _batches(self, subject: Subject, sequences: Sequence[Encoded]) -> Iterator[list[Encoded]]:
        """Yield the sequences of each step, without end: those that a fine-tuning run of this seed has."""

        def items(epoch: int) -> Sequence[Item]:
            found = row_items({"train": len(sequences)}, subject.seed, epoch)
            if not subject.data.group_by_length:
                return found
            lengths = [len(each.ids) for each in sequences]
            return grouped_by_length(
                found, lambda item: lengths[item[0][1]], self.batch_size, subject.seed, epoch
            )

        sampler = ResumableSampler(items, self.batch_size)
        for epoch in count():
            sampler.set_epoch(epoch)
            for batch in sampler:
                yield [sequences[row] for ((_, row),) in batch]

    @staticmethod
    def _train(model: Any, optimizer: AdamW, sequences: Sequence[Encoded], device: torch.device) -> None:
        # Dropout is off, so that the curve depends on the rows alone.
        with eval_mode(model):
            batch = collate({"train": sequences}, range(len(sequences))).to(device)
            states = answer_states(model, batch)[None]
            head = OutputHead.of(model)
            sequence_objective(states, batch.targets, batch.lengths, head, CrossEntropy()).loss.backward()
            clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
