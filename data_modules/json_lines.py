"""JSONL: a data module for any files of rows, those to forget and those to retain."""

from collections.abc import Mapping, Sequence
from typing import Any

from dipo_pl.data_modules.columns import check_columns
from dipo_pl.data_modules.forget_retain import ForgetRetain
from dipo_pl.data_modules.requests import joined, listed
from dipo_pl.data_modules.row_files import read_rows
from dipo_pl.errors import InputError
from dipo_pl.evaluation_set import EvaluationSet, RowSets
from dipo_pl.rows import Row

Files = str | list[str]


class JSONL(ForgetRetain):
    """Data module for files of {question, answer}, {text} or {messages: [{role, content}]}, as JSON lines or otherwise.

    A file holds JSON lines, a JSON list, CSV, Parquet or Arrow, see `read_records`. Rows may also have `system` (a system
    message), `paraphrased_answer` (a text) and `perturbed_answer` (a list of wrong answers, the same number in every row),
    which the truth ratio and Forget Quality need. Forget rows may have `alternate_answer` (other answers to the question,
    the same number in every row), which some losses need. A null is as good as no column; columns that are not read are
    named in a warning. Evaluation sets: `forget`, `retain`, and `holdout` if it is given.

    Args:
        forget: file of the rows to forget, or several files.
        retain: file of the rows to retain, or several files.
        holdout: file of rows like those to forget that no model has seen, for membership inference, or several files.
        columns: for files with other columns, what each part of a row is made of, such as
            `{question: prompt, answer: completion}`; a list joins several by an empty line:
            `{question: [instruction, input], answer: output}`. Columns not named here need not be read then.
        options: arguments of ForgetRetain.
    """

    def __init__(
        self,
        forget: Files,
        retain: Files,
        holdout: Files | None = None,
        columns: dict[str, str | list[str]] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        for name, files in {"forget": forget, "retain": retain, "holdout": holdout}.items():
            if files is not None and not all(listed(files, f"data.{name}")):
                raise InputError(f"data.{name} must name a file, or a list of files (got {files!r})")
        if columns is not None:
            check_columns(columns)
        self.forget = forget
        self.retain = retain
        self.holdout = holdout
        self.columns: Mapping[str, str | list[str]] | None = columns

    def read(self) -> RowSets:
        """Read the files."""
        forget, retain = self.named_forget(self.forget), self._rows(self.retain)
        evaluation = [EvaluationSet("forget", forget), EvaluationSet("retain", retain)]
        if self.holdout is not None:
            evaluation.append(EvaluationSet("holdout", self._rows(self.holdout)))
        return RowSets(forget, retain, evaluation)

    def read_forget(self, name: str) -> Sequence[Row]:
        """Read the file of this name."""
        return read_rows(name, self.columns)

    def _rows(self, files: Files) -> list[Row]:
        """Return the rows of one file, or of several, each row once."""
        if isinstance(files, str):
            return read_rows(files, self.columns)
        return joined(read_rows(each, self.columns) for each in files)
