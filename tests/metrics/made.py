"""Evaluation sets and observations made by hand."""

import torch

from dipo_pl.evaluation_set import EvaluationSet
from dipo_pl.metrics import MeasuredSet, Observations
from dipo_pl.metrics.base import collection, set_result
from dipo_pl.metrics.conventions import CONVENTIONS
from dipo_pl.rows import Row


def observed(*nll, hits=(True, True, False, True), low=-3.0, generation=None, norm=0.0):
    """Return the fields of one row: losses of its answers, and tokens of the first, some predicted, from `low` up."""
    count = len(hits)
    scores = torch.linspace(low, -0.1, count, dtype=torch.float32)
    places = torch.arange(count)
    return {
        "nll": torch.tensor(nll, dtype=torch.float64), "targets": places,
        "predictions": torch.where(torch.tensor(hits), places, 99), "log_probabilities": scores, "means": scores - 1,
        "variances": scores**2 + 0.5, "generation": generation, "gradient_norm": torch.tensor(norm),
    }  # fmt: skip


def batch(rows, places=None):
    """Return observed rows as one batch, with their places in the set."""
    fields = {name: [row[name] for row in rows] for name in (rows[0] if rows else observed(1.0))}
    places = range(len(rows)) if places is None else places
    for name in ("nll", "gradient_norm"):
        fields[name] = torch.stack(fields[name]) if rows else torch.empty(0)
    return Observations(torch.tensor(places, dtype=torch.int64), **fields)


def measured(
    name, rows, convention="dipo_pl", answers=None, options=False, cut=None, scored=None, retain=None
):
    """Return the set of these observed rows; they have as many wrong answers as losses of some."""
    wrong = ("wrong",) * (len(rows[0]["nll"]) - 2)
    known = [
        Row((("user", f"{name} {i}?"),), answers[i] if answers else f"{name} {i}.", wrong_answers=wrong)
        for i in range(len(rows))
    ]
    generates = rows[0]["generation"] is not None
    made = EvaluationSet(name, known, options, new_tokens=4, cut_answers=cut, scored_answers=scored)
    return MeasuredSet(made, CONVENTIONS[convention], generates, retain)


def result(metrics, name, *rows, **changes):
    """Return the result of metrics on a set of these observed rows."""
    metrics = collection(metrics, measured(name, rows, **changes))
    metrics.update(batch(rows))
    return set_result(metrics)
