"""Evaluation sets as they are measured: those chosen, their first rows, and answers cut to what is generated."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from dipo_pl.batch import Encoded, EvaluationBatch, collate
from dipo_pl.errors import InputError
from dipo_pl.evaluation_set import EvaluationSet, RowSets
from dipo_pl.rows import Row, shared_rows


def chosen_sets(sets: Sequence[EvaluationSet], names: Sequence[str] | None) -> list[EvaluationSet]:
    """Return the sets of these names, in this order; None chooses all.

    Raises:
        InputError: there is no name, or no set of a name.
    """
    known = {each.name: each for each in sets}
    if names is None:
        return list(sets)
    if not names:
        raise InputError(
            "data.evaluate must name at least one set (got []): null measures all that there are"
        )
    for name in names:
        if name not in known:
            raise InputError(f"data.evaluate names {name!r}; this data has {', '.join(known)}")
    return [known[name] for name in names]


def first_rows(evaluation_set: EvaluationSet, count: int | None) -> EvaluationSet:
    """Return the set with its first `count` rows alone, which then knows how many there are; None takes all."""
    rows = evaluation_set.rows
    if count is None or count >= len(rows):
        return evaluation_set
    return replace(evaluation_set, rows=rows[:count], whole=len(rows))


def warn_of_retained(rows: RowSets) -> None:
    """Warn of forget rows that are also retained."""
    if overlap := shared_rows(rows.forget, rows.retain):
        rank_zero_warn(
            f"{overlap} of {len(rows.forget)} forget rows are also in the retain set: they will not be forgotten well"
        )


def refuse_seen_holdout(sets: Iterable[EvaluationSet], known: Iterable[Iterable[Row]]) -> None:
    """Raise an InputError if a holdout shares rows with the sets that a model has seen."""
    for each in sets:
        if each.name == "holdout" and (seen := shared_rows(each.rows, chain.from_iterable(known))):
            raise InputError(
                f"{seen} of {len(each.rows)} holdout rows are also in the forget or retain set: a holdout is for rows "
                "that no model has seen"
            )


def with_cut_answers(evaluation_set: EvaluationSet, tokenizer: PreTrainedTokenizerBase) -> EvaluationSet:
    """Return the set with its answers cut to `new_tokens`, where it has that."""
    length = evaluation_set.new_tokens
    if not length:
        return evaluation_set
    answers = tokenizer([row.answer for row in evaluation_set.rows])["input_ids"]
    cut = tokenizer.batch_decode([ids[:length] for ids in answers], skip_special_tokens=True)
    return replace(evaluation_set, cut_answers=cut)


def scored_answers(
    evaluation_set: EvaluationSet, sequences: Sequence[Sequence[Encoded]], tokenizer: PreTrainedTokenizerBase
) -> list[str] | None:
    """Return the answers as far as they were not cut; None where none was."""
    # One at a time: there may be a million.
    if not any(each[0].cut for each in sequences):
        return None
    found = []
    for row, (original, *_) in zip(evaluation_set.rows, sequences, strict=True):
        kept = original.ids[original.answer_start : len(original.ids) - original.closing]
        found.append(str(tokenizer.decode(kept)) if original.cut else row.answer)
    return found


def flat(sets: Iterable[Sequence[Sequence[Encoded]]]) -> Iterator[Encoded]:
    """Yield all measured answers of all rows of all sets, one in memory at a time."""
    return chain.from_iterable(chain.from_iterable(sets))


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
        rank: rank of this process.
        world_size: number of ranks.
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
    """Data set whose index is a list of rows, and whose values are batches of all their answers with their prompts."""

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
