"""Evaluation batches: which rows of a set are measured at once, and the batches made of them."""

from collections.abc import Sequence

import torch
from torch.utils.data import Dataset

from dipo_pl.batch import Encoded, EvaluationBatch, collate


def evaluation_batches(
    rows: Sequence[Sequence[Encoded]], tokens: int, rank: int = 0, world_size: int = 1
) -> list[list[int]]:
    """Return the batches of one rank, the longest rows first: one that does not fit into memory fails at the start.

    Every rank has equally many batches, of similar lengths step by step; where their number is not a
    multiple of the world size, some ranks measure the last one again.

    Args:
        rows: the answers of each row, with their prompts.
        tokens: padded tokens of a batch, at most; a single row that has more is a batch alone. With several
            ranks fewer, so that there is a batch for each.
        rank: this process's.
        world_size: number of processes.
    """
    longest = [max(len(answer.ids) for answer in answers) for answers in rows]
    tokens = min(tokens, -(-sum(map(len, rows)) * max(longest) // world_size))
    batches: list[list[int]] = []
    width = sequences = 0
    for row in sorted(range(len(rows)), key=longest.__getitem__, reverse=True):
        if not batches or (sequences + len(rows[row])) * width > tokens:
            batches.append([])
            width, sequences = longest[row], 0
        batches[-1].append(row)
        sequences += len(rows[row])
    batches += batches[-1:] * (-len(batches) % world_size)
    return batches[rank::world_size]


class EvaluationBatches(Dataset[EvaluationBatch]):
    """Data set whose index is a list of rows, and whose values are whole batches.

    Args:
        encoded: the answers of each row, with their prompts.
    """

    def __init__(self, encoded: Sequence[Sequence[Encoded]]) -> None:
        self.encoded = encoded

    def __getitem__(self, rows: Sequence[int]) -> EvaluationBatch:
        """Return the batch of some rows."""
        sequences = [answer for row in rows for answer in self.encoded[row]]
        originals = [self.encoded[row][0] for row in rows]
        return EvaluationBatch(
            answers=collate({"answers": sequences}, [row for row in rows for _ in self.encoded[row]]),
            rows=torch.tensor(rows),
            prompts=[list(each.ids[: each.answer_start]) for each in originals],
            closing=tuple(each.closing for each in originals),
        )
