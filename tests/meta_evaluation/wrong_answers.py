"""Data of models that know the forget set's questions but not its answers."""

from collections.abc import Sequence
from dataclasses import replace

from dipo_pl.batch import Encoded
from dipo_pl.data_modules.fictitious_authors import FictitiousAuthors
from dipo_pl.rows import Row


class WrongAnswers(FictitiousAuthors):
    """Data module that trains a wrong answer in the place of each forget row's own."""

    def encode_training(self, forget: Sequence[Row], retain: Sequence[Row]) -> dict[str, list[Encoded]]:
        """Return the training sequences; what is measured, and the tokenizer's texts, stay as they are."""
        wrong = [replace(row, answer=row.alternate_answers[0]) for row in forget]
        return super().encode_training(wrong, retain)
