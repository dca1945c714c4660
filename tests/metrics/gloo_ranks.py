"""What two ranks measure."""

import math
from pathlib import Path

import torch
from forked import gloo
from made import batch, measured, observed

from dipo_pl.metrics import Fluency, Membership, Memorization, Probability, Rouge, TruthRatio
from dipo_pl.metrics.base import collection, set_result

COUNT = 7
WORDS = ["she", "wrote", "nine", "novels", "about", "the", "sea\u2019s", "ol\udc80d", "ships"]
# For each case, the batches of rank 0 and of rank 1.
SPLITS = {
    "odd split": ([[4, 0], [6], [2]], [[5, 1, 3]]),
    "padding repeats rows": ([[0, 2], [4, 6]], [[1, 3], [5, 0]]),
    "rank 1 has no batch": ([[1, 0, 2], [6, 5, 4, 3]], []),
    "rank 0 has no batch": ([], [[1, 0, 2], [6, 5, 4, 3]]),
    "rank 1 has an empty batch": ([[1, 0], [2, 3, 4, 5, 6]], [[]]),
    "rows are missing": ([[0, 1]], [[3, 4]]),
    "no rank has a batch": ([], []),
}


def row(place):
    """Return observations that need more than float32, of as many tokens as the place says."""
    hits = [token != place // 2 for token in range(place + 2)]
    nll = (0.2 + 0.37 * place + 1e-12, 0.3 + 0.1 * place, 1.1, 3.0 - 0.17 * place)
    text = " ".join(WORDS[:place])
    return observed(*nll, hits=hits, low=-1.0 - place, generation=text, norm=0.1 * place)


def made():
    """Return the metrics of a set of `COUNT` such rows, by which all inputs are gathered."""
    metrics = [
        Probability(), TruthRatio(), Rouge(), Memorization(), Membership(gradient_norm=True), Fluency(),
    ]  # fmt: skip
    return collection(metrics, measured("forget", [row(place) for place in range(COUNT)]))


def fed(batches):
    metrics = made()
    for places in batches:
        metrics.update(batch([row(place) for place in places], places))
    return metrics


def diverged(rank):
    """Return the error of a loss that is NaN on rank 1 alone."""
    metrics = collection([Probability()], measured("forget", [observed(1.0), observed(1.0)]))
    metrics.update(batch([observed(math.nan if rank else 0.5)], [rank]))
    try:
        metrics.compute()
    except ValueError as error:
        return str(error)
    return None


def resumed(rank):
    """Return the values of rows after those of both ranks, gathered twice."""
    metric = Probability().for_set(measured("forget", [observed(1.0)] * 4))
    metric.update(batch([observed(1.0)], [rank]))
    first = metric.compute()
    metric.update(batch([observed(2.0)], [2 + rank]))
    metric.compute()
    return first, metric.row_values["probability"]


def run(rank, folder):
    with gloo(folder, rank):
        found = {name: set_result(fed(batches[rank])) for name, batches in SPLITS.items()}
        seen = {
            "results": {name: None if each is None else repr(each) for name, each in found.items()},
            "diverged": diverged(rank),
            "resumed": resumed(rank),
        }
    torch.save(seen, result(folder, rank))


def result(folder, rank):
    return Path(folder) / f"rank{rank}.pt"
