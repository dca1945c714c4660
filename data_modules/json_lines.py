"""JSONL: a data module for any files of rows, those to forget and those to retain."""

from collections.abc import Sequence
from typing import Any

from dipo_pl.data_modules.columns import check_columns
from dipo_pl.data_modules.forget_retain import ForgetRetain
from dipo_pl.data_modules.requests import listed, named_rows
from dipo_pl.data_modules.row_files import RowReader
from dipo_pl.errors import InputError
from dipo_pl.evaluation_set import EvaluationSet, RowSets
from dipo_pl.rows import Row

Files = str | list[str]


class JSONL(ForgetRetain):
    """Data module for files of rows in the forms that people have: JSON lines, a JSON list, CSV, Parquet, Arrow, the hub.

    A row is one of {question, answer}; {prompt, completion}; {instruction, input, output}, where input may be missing
    (Alpaca); {messages: [{role, content}]}; {conversations: [{from, value}]} (ShareGPT); {text}. Of a conversation the
    last answer is trained and measured. Rows may also have `system` (a system message), `paraphrased_answer` (a text) and
    `perturbed_answer` (a list of wrong answers, the same number in every row), which the truth ratio and Forget Quality
    need. Forget rows may have `alternate_answer` (other answers to the question, the same number in every row), which some
    losses need. A null is as good as no column; columns that are not read are named in a warning. What a run trains and is
    compared by depends on the rows alone, not on how they were written. Evaluation sets: `forget`, `retain`, and `holdout`
    if it is given.

    Args:
        forget: the rows to forget: a file (.jsonl, .json, .csv, .tsv, .parquet, .arrow, also compressed), a pattern
            (`rows/*.jsonl`), a folder of `datasets` or of the Parquet files of one split, a data set of the hub
            (`NAME:CONFIGURATION:SPLIT`), or a list of these. Rows that an earlier entry of the list has are left out, and
            their number is said; within an entry, also one of several files, all rows stay.
        retain: the rows to retain, as `forget`.
        holdout: rows like those to forget that no model has seen, for membership inference, as `forget`.
        columns: for files with other columns, what each part of a row is made of, such as
            `{question: query, answer: response}`; a list joins several by an empty line:
            `{question: [context, question], answer: answer}`. Columns not named here need not be read then; a name that no
            file has is refused.
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
        self._reader = RowReader(columns)

    def read(self) -> RowSets:
        """Read the files."""
        forget = self.named_forget(self.forget)
        retain = named_rows(self.retain, self._reader.file, "data.retain")
        evaluation = [EvaluationSet("forget", forget), EvaluationSet("retain", retain)]
        if self.holdout is not None:
            holdout = named_rows(self.holdout, self._reader.file, "data.holdout")
            evaluation.append(EvaluationSet("holdout", holdout))
        for name in (*self.requests, *self.requests_to_come):
            # Read once: a column may be in one of these alone.
            self.forget_set(name)
        self._reader.refuse_unfound()
        return RowSets(forget, retain, evaluation)

    def read_forget(self, name: str) -> Sequence[Row]:
        """Read the file of this name."""
        return self._reader.file(name)
