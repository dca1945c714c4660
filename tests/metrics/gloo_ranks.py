"""What two processes collect and make of it: apart, since spawned processes import it by name."""

import datetime
import math
from pathlib import Path

import torch
import torch.distributed as dist

from dipo_pl.metrics import (
    AnswerProbability,
    ExactMemorization,
    ExtractionStrength,
    ForgetQualityTest,
    MembershipAUC,
    ModelUtility,
    OptionProbability,
    PerRow,
    RougeLRecall,
    TruthRatio,
    truth_ratio_margin,
)


def batch(rows, columns=3):
    """Values that name their row, and need more than float32."""
    rows = torch.tensor(rows, dtype=torch.int64)
    values = rows[:, None].double() + torch.arange(columns) / 10 + 1e-12
    return rows, values


# For each case, the batches of rank 0 and of rank 1.
CASES = {
    "odd split": ([[4, 0], [6], [2]], [[5, 1, 3]]),
    "rank 1 has no batch": ([[1, 0], [2]], []),
    "rank 0 has no batch": ([], [[1, 0], [2]]),
    "rank 1 has an empty batch": ([[1, 0], [2]], [[]]),
    "no rank has a batch": ([], []),
    "padding repeats rows": ([[0, 2], [4]], [[1, 3], [0]]),
    "one row": ([[7]], []),
    "row numbers past float64": ([[2**53 + 1]], [[2**53, 2**60 + 1]]),
}

# 0 comes to both, as padding.
SPLIT = ([[4, 0], [6], [2]], [[5, 1, 3], [0]])
WORDS = ["she", "wrote", "nine", "novels", "about", "the", "sea", "and", "old", "ships"]


def correct_nll(row):
    return 0.2 + 0.37 * row


def wrong_nll(row):
    return [1.1, 0.4 + 0.21 * row, 3.0 - 0.17 * row]


def score(row):
    return math.sin(row)


def predictions(row):
    """Of `row` + 2 tokens, of which all but the one at `row` // 2 are right."""
    return [7 if place == row // 2 else place for place in range(row + 2)]


def generation(row):
    return " ".join(WORDS[: row + 1])


def of(function, rows):
    return torch.tensor([function(row) for row in rows], dtype=torch.float64)


def feed_losses(metric, rows):
    metric.update(torch.tensor(rows), of(correct_nll, rows), of(wrong_nll, rows))


def feed_tokens(metric, rows):
    metric.update(torch.tensor(rows), [predictions(row) for row in rows], [range(row + 2) for row in rows])


def feed_texts(metric, rows):
    metric.update(torch.tensor(rows), [generation(row) for row in rows], [" ".join(WORDS)] * len(rows))


def feed_scores(metric, rows):
    # Both sets number their rows from 0; some scores of one are also in the other.
    metric.update(torch.tensor(rows), of(score, rows), members=True)
    metric.update(torch.tensor(rows), of(lambda row: score(row + 2), rows), members=False)


def feed_parts(metric, rows):
    metric.update("probability", torch.tensor(rows), of(correct_nll, rows))
    feed_losses(metric.parts["truth_ratio"], rows)


# For each metric, how to make it and how to give it a batch.
FIGURES = {
    "AnswerProbability": (
        AnswerProbability,
        lambda metric, rows: metric.update(torch.tensor(rows), of(correct_nll, rows)),
    ),
    "OptionProbability": (OptionProbability, feed_losses),
    "TruthRatio": (TruthRatio, feed_losses),
    "RougeLRecall": (RougeLRecall, feed_texts),
    "ExactMemorization": (ExactMemorization, feed_tokens),
    "ExtractionStrength": (ExtractionStrength, feed_tokens),
    "ForgetQualityTest": (lambda: ForgetQualityTest([0.1 * row - 0.2 for row in range(7)]), feed_losses),
    "MembershipAUC": (MembershipAUC, feed_scores),
    "ModelUtility": (
        lambda: ModelUtility(
            {"probability": AnswerProbability(), "truth_ratio": TruthRatio(truth_ratio_margin)}
        ),
        feed_parts,
    ),
}


def run(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/init",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=30),
    )
    seen = {
        "results": _collect(rank),
        "error": _disagree(rank),
        "resumed": _resume(rank),
        "figures": _figures(rank),
        "diverged": _diverge(rank),
    }
    torch.save(seen, result(folder, rank))
    dist.destroy_process_group()


def result(folder, rank):
    return Path(folder) / f"rank{rank}.pt"


def _collect(rank):
    results = {}
    for name, batches in CASES.items():
        metric = PerRow()
        for rows in batches[rank]:
            metric.update(*batch(rows))
        results[name] = metric.compute()
    return results


def _disagree(rank):
    # 1 * 1 + 1 * 3 numbers for 2 rows: as many as 2 columns would give.
    metric = PerRow()
    metric.update(*batch([rank], columns=1 + 2 * rank))
    try:
        metric.compute()
    except ValueError as error:
        return str(error)
    return None


def _resume(rank):
    """Gather, go on where this process was, gather again, then start anew."""
    metric = PerRow()
    if rank == 0:
        metric.update(*batch([0]))
    first = metric.compute()
    metric.update(*batch([1 + rank]))
    second = metric.compute()
    metric.reset()
    metric.update(*batch([5 + rank], columns=2))
    return first, second, metric.compute()


def _figures(rank):
    figures = {}
    for name, (make, feed) in FIGURES.items():
        metric = make()
        for rows in SPLIT[rank]:
            feed(metric, rows)
        figures[name] = torch.as_tensor(metric.compute(), dtype=torch.float64)
    return figures


def _diverge(rank):
    """A loss that is NaN on one process alone, then a fresh start."""
    metric = AnswerProbability()
    metric.update(torch.tensor([rank]), torch.tensor([math.nan if rank else 0.5]))
    try:
        metric.compute()
    except ValueError as error:
        message = str(error)
    metric.reset()
    metric.update(torch.tensor([rank]), torch.tensor([0.0]))
    return message, metric.compute()
