"""Evaluation of one set by the project's metrics, without a trainer."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel

from dipo_pl.attacks.subject import Subject
from dipo_pl.data_modules.evaluation_sets import EvaluationBatches, evaluation_batches
from dipo_pl.errors import NOT_FINITE, InputError, TrainingError
from dipo_pl.evaluation_set import EvaluationSet
from dipo_pl.metrics import base
from dipo_pl.metrics.base import EvaluationMetric, MeasuredSet
from dipo_pl.metrics.observations import Observations
from dipo_pl.metrics.result import SetResult
from dipo_pl.models.generation import generate


def measure(
    subject: Subject,
    model: PreTrainedModel,
    evaluation_set: EvaluationSet,
    metrics: Sequence[EvaluationMetric],
    new_tokens: int = 0,
    what: str = "",
    remedy: str | None = None,
) -> SetResult:
    """Return the result of a model on a set, of all ranks together.

    Args:
        subject: the audit's.
        model: in eval mode.
        evaluation_set: the rows.
        metrics: what is measured.
        new_tokens: longest answer that is generated to a row; 0 generates none.
        what: what is done, for the line of progress.
        remedy: what to change where the attack itself has changed the model; None if it has not.

    Raises:
        InputError: an answer's loss is not finite, and the attack has changed the model: it shows nothing.
        TrainingError: an answer's loss is not finite, and the model is as it was loaded.
    """
    encoded = subject.encoded(evaluation_set)
    batches = EvaluationBatches(encoded)

    def observe(rows: list[int]) -> Observations:
        batch = batches[rows].to(subject.device)
        seen = Observations.of_model(model, batch)
        if not seen.nll.isfinite().all():
            if remedy is not None:
                raise InputError(
                    f"an answer's loss is {NOT_FINITE}: the attack has broken the model ({what}): {remedy}"
                )
            raise TrainingError(f"an answer's loss is {NOT_FINITE}: the model's weights are broken ({what})")
        if new_tokens:
            texts = generate(model, subject.tokenizer, batch.prompts, new_tokens, known=seen.greedy)
            seen = replace(seen, generation=texts)
        return _on_cpu(seen)

    found = subject.shared(evaluation_batches(encoded, subject.data.evaluation_tokens), observe, what)
    collection = base.collection(metrics, MeasuredSet(evaluation_set, generates=new_tokens > 0))
    for each in found:
        collection.update(each)
    result = base.set_result(collection)
    # Every row was measured.
    assert result is not None
    return result


def _on_cpu(seen: Observations) -> Observations:
    def moved(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.cpu()
        return [moved(each) for each in value] if isinstance(value, list | tuple) else value

    return Observations(**{name: moved(value) for name, value in vars(seen).items()})
