"""What two processes collect for `test_per_row`: apart, since spawned processes import it by name."""

import datetime
from pathlib import Path

import torch
import torch.distributed as dist

from dipo_pl.metrics import PerRow


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


def run(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/init",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=30),
    )
    torch.save(
        {"results": _collect(rank), "error": _disagree(rank), "resumed": _resume(rank)}, result(folder, rank)
    )
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
