"""Evaluation sets as they are measured: those chosen, their first rows, and answers cut to what is generated."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from dipo_pl.errors import InputError
from dipo_pl.evaluation_set import EvaluationSet
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
        raise InputError(f"data.evaluate names no set; this data has {', '.join(known)}")
    for name in names:
        if name not in known:
            raise InputError(f"data.evaluate names {name!r}; this data has {', '.join(known)}")
    return [known[name] for name in names]


def first_rows(evaluation_set: EvaluationSet, count: int | None) -> EvaluationSet:
    """Return the set with its first rows alone; None keeps all."""
    return replace(evaluation_set, rows=evaluation_set.rows[:count])


def refuse_seen_holdout(sets: Iterable[EvaluationSet], known: Sequence[Row]) -> None:
    """Refuse a holdout that shares rows with those that a model has seen.

    Raises:
        InputError: it does.
    """
    for each in sets:
        if each.name == "holdout" and (seen := shared_rows(each.rows, known)):
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
