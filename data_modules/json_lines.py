"""Any two files of one's own: what to forget and what to retain."""

from collections.abc import Sequence
from typing import Any

from dipo_pl.data_modules.forget_retain import ForgetRetain, RowSets
from dipo_pl.data_modules.row_files import read_json_lines
from dipo_pl.evaluation_set import EvaluationSet
from dipo_pl.rows import Row


class JSONL(ForgetRetain):
    """Two files of one JSON object a line: {question, answer}, {text} or {messages: [{role, content}]}.

    Rows may also carry `paraphrased_answer` (a text) and `perturbed_answer` (a list of wrong answers, the
    same number in every row): the truth ratio, and with it Forget Quality, are measured only where they do.
    Forget rows may carry `alternate_answer` (other answers to the question, the same number in every row), for
    losses that ask for them. Evaluation sets: `forget`, `retain`, and `holdout` where it is given.

    Args:
        forget: file of the rows to forget, or several.
        retain: file of rows that stand for what must be kept.
        holdout: file of rows like those to forget that no model has seen, for membership attacks.
        options: of the base class.
    """

    def __init__(
        self, forget: str | list[str], retain: str, holdout: str | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        self.forget = forget
        self.retain = retain
        self.holdout = holdout

    def read(self) -> RowSets:
        forget, retain = self.named_forget(self.forget), read_json_lines(self.retain)
        evaluation = [EvaluationSet("forget", forget), EvaluationSet("retain", retain)]
        if self.holdout is not None:
            evaluation.append(EvaluationSet("holdout", read_json_lines(self.holdout)))
        return RowSets(forget, retain, evaluation)

    def read_forget(self, name: str) -> Sequence[Row]:
        return read_json_lines(name)
