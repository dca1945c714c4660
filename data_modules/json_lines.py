"""JSONL: a data module for any two files, rows to forget and rows to retain."""

from collections.abc import Sequence
from typing import Any

from dipo_pl.data_modules.forget_retain import ForgetRetain
from dipo_pl.data_modules.row_files import read_json_lines
from dipo_pl.evaluation_set import EvaluationSet, RowSets
from dipo_pl.rows import Row


class JSONL(ForgetRetain):
    """Data module for JSON-lines files of {question, answer}, {text} or {messages: [{role, content}]}.

    Rows may also have `paraphrased_answer` (a text) and `perturbed_answer` (a list of wrong answers, the same number in
    every row), which the truth ratio and Forget Quality need. Forget rows may have `alternate_answer` (other answers to
    the question, the same number in every row), which some losses need. Evaluation sets: `forget`, `retain`, and
    `holdout` if it is given.

    Args:
        forget: file of the rows to forget, or several files.
        retain: file of the rows to retain.
        holdout: file of rows like those to forget that no model has seen, for membership inference.
        options: arguments of ForgetRetain.
    """

    def __init__(
        self, forget: str | list[str], retain: str, holdout: str | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        self.forget = forget
        self.retain = retain
        self.holdout = holdout

    def read(self) -> RowSets:
        """Read the files."""
        forget, retain = self.named_forget(self.forget), read_json_lines(self.retain)
        evaluation = [EvaluationSet("forget", forget), EvaluationSet("retain", retain)]
        if self.holdout is not None:
            evaluation.append(EvaluationSet("holdout", read_json_lines(self.holdout)))
        return RowSets(forget, retain, evaluation)

    def read_forget(self, name: str) -> Sequence[Row]:
        """Read the file of this name."""
        return read_json_lines(name)
