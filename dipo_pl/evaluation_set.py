"""A named set of rows that an evaluation measures."""

from collections.abc import Sequence
from dataclasses import dataclass

from dipo_pl.prompts import PromptFormat
from dipo_pl.rows import Row


@dataclass(frozen=True)
class EvaluationSet:
    """A named set of rows that an evaluation measures.

    Attributes:
        name: the set's name in configs and results.
        rows: the rows.
        options: normalize an answer's probability over the row's answers, as multiple choice does.
        prompt: the set's own prompt format; None uses that of the data module.
        new_tokens: maximum length of a generated answer in tokens; None uses forget_quality.max_new_tokens, 0 generates
            no answers.
        cut_answers: the answers up to `new_tokens` tokens, counting the special tokens that the tokenizer puts before a
            text; the data module fills them in for sets whose `new_tokens` is above 0.
        scored_answers: the answers as far as data.max_length leaves them to be scored; the data module fills them in for
            sets in which it cuts some.
        whole: number of rows of the whole set, where `data.evaluation_rows` has it measured in part.
        tokens: fingerprint of the token ids of all measured answers with their prompts; the data module fills it in.
    """

    name: str
    rows: Sequence[Row]
    options: bool = False
    prompt: PromptFormat | None = None
    new_tokens: int | None = None
    cut_answers: Sequence[str] | None = None
    scored_answers: Sequence[str] | None = None
    tokens: str | None = None
    whole: int | None = None


@dataclass(frozen=True)
class RowSets:
    """The rows to forget, those to retain, and the sets to measure."""

    forget: Sequence[Row]
    retain: Sequence[Row]
    evaluation: Sequence[EvaluationSet]
