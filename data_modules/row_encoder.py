"""Rows as token ids, with a warning that counts those that were cut."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from lightning.pytorch.utilities import rank_zero_warn
from transformers import PreTrainedTokenizerBase

from dipo_pl.batch import Encoded
from dipo_pl.data_modules.encoding import encode
from dipo_pl.errors import InputError
from dipo_pl.evaluation_set import EvaluationSet
from dipo_pl.prompts import PromptFormat
from dipo_pl.rows import Row


@dataclass(frozen=True)
class RowEncoder:
    """Tokenizes rows and their answers.

    Attributes:
        tokenizer: the policy's.
        prompt: format of the text before an answer, where no other is given.
        max_length: tokens of a sequence, EOS included.
        too_long: `error` refuses a longer row, `truncate` cuts it.
    """

    tokenizer: PreTrainedTokenizerBase
    prompt: PromptFormat
    max_length: int
    too_long: Literal["error", "truncate"]

    def encode(self, row: Row, answer: str, prompt: PromptFormat | None = None) -> Encoded:
        """Return the ids of the row's prompt and of one answer to it."""
        return encode(
            row,
            answer,
            prompt or self.prompt,
            self.tokenizer,
            self.max_length,
            truncate=self.too_long == "truncate",
        )

    def rows(self, rows: Iterable[Row]) -> list[Encoded]:
        """Return each row with its own answer."""
        return [self.encode(row, row.answer) for row in rows]

    def companions(self, rows: Iterable[Row], answers: Iterable[Sequence[str]]) -> list[Encoded]:
        """Return each row with each of K other answers; answer k of row r is at r * K + k."""
        return [self.encode(row, answer) for row, some in zip(rows, answers, strict=True) for answer in some]

    def measured(self, evaluation_set: EvaluationSet) -> list[list[Encoded]]:
        """Return all measured answers of each row of an evaluation set.

        Raises:
            InputError: rows have different numbers of wrong answers.
        """
        counts = {len(row.wrong_answers) for row in evaluation_set.rows}
        if len(counts) > 1:
            raise InputError(
                f"rows of the evaluation set {evaluation_set.name!r} have {sorted(counts)} wrong answers: "
                "give every row the same number, or none"
            )
        return [
            [self.encode(row, answer, evaluation_set.prompt) for answer in row.measured_answers]
            for row in evaluation_set.rows
        ]

    def warn_of_cuts(self, what: str, sequences: Iterable[Encoded]) -> None:
        """Warn with the number of sequences that were cut, if any was."""
        cut = [each.cut for each in sequences]
        if any(cut):
            rank_zero_warn(
                f"{sum(cut)} of {len(cut)} {what} are longer than data.max_length {self.max_length} "
                "with their prompt, and are cut there"
            )
