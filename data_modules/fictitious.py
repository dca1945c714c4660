"""Fictitious authors made on the spot: TOFU's shape without a download."""

from typing import Any

from dipo_pl.data_modules.fictitious_authors import MAX_AUTHORS, fictitious_rows
from dipo_pl.data_modules.forget_retain import ForgetRetain, RowSets
from dipo_pl.data_modules.row_files import row_from
from dipo_pl.errors import InputError
from dipo_pl.evaluation_set import EvaluationSet


class FictitiousAuthors(ForgetRetain):
    """Authors that exist nowhere else, 20 questions each; the last ones are to be forgotten.

    Evaluation sets: `forget`, `retain`, and `holdout`: as many further authors as are to be forgotten, as far as there
    are more, which no model is trained on, for membership attacks.

    Args:
        authors: in all.
        forget_authors: how many of them are to be forgotten.
        author_seed: another seed, other authors.
        options: of the base class.
    """

    def __init__(
        self, authors: int = 20, forget_authors: int = 2, author_seed: int = 0, **options: Any
    ) -> None:
        super().__init__(**options)
        if not 2 <= authors <= MAX_AUTHORS:
            raise InputError(f"data.authors must lie between 2 and {MAX_AUTHORS}, got {authors}")
        if not 0 < forget_authors < authors:
            raise InputError(
                f"data.forget_authors must lie between 1 and data.authors - 1, got {forget_authors} of {authors}"
            )
        self.authors = authors
        self.forget_authors = forget_authors
        self.author_seed = author_seed

    def read(self) -> RowSets:
        further = min(self.forget_authors, MAX_AUTHORS - self.authors)
        records = fictitious_rows(self.authors + further, self.author_seed)
        rows = [row_from(record, f"fictitious row {index}") for index, record in enumerate(records)]
        an_author = len(rows) // (self.authors + further)
        forget_at, end = (self.authors - self.forget_authors) * an_author, self.authors * an_author
        sets = {"forget": rows[forget_at:end], "retain": rows[:forget_at], "holdout": rows[end:]}
        measured = [EvaluationSet(name, each) for name, each in sets.items() if each]
        return RowSets(sets["forget"], sets["retain"], measured)
