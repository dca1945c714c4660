"""Which rows of an evaluation set are measured at once."""

from collections.abc import Sequence

from dipo_pl.batch import Encoded


def evaluation_batches(
    rows: Sequence[Sequence[Encoded]], tokens: int, rank: int = 0, world_size: int = 1
) -> list[list[int]]:
    """The batches of one rank, the longest rows first, so that one that does not fit into memory is met at once.

    Every rank has equally many batches, of similar lengths step by step; where their number is no
    multiple of the ranks, some ranks measure the last one again.

    Args:
        rows: the answers of each row, with their prompts.
        tokens: padded tokens of a batch, at most; a single row that has more goes alone. With several
            ranks fewer, so that there is a batch for each.
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
