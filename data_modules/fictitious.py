"""FictitiousAuthors: a data module in TOFU's form that needs no download."""

from typing import Any

from dipo_pl.data_modules.fictitious_authors import MAX_AUTHORS, fictitious_rows
from dipo_pl.data_modules.forget_retain import ForgetRetain
from dipo_pl.data_modules.row_files import row_from
from dipo_pl.data_modules.row_sets import RowSets
from dipo_pl.errors import check_number
from dipo_pl.evaluation_set import EvaluationSet


class FictitiousAuthors(ForgetRetain):
    """Data module of generated authors with 20 questions each, the last of whom are to be forgotten.

    Evaluation sets: `forget`, `retain`, and `holdout`: further authors that no model is trained on, as many as are to be
    forgotten if the generator has so many, for membership inference.

    Args:
        authors: number of authors to forget or retain.
        forget_authors: number of authors to forget.
        author_seed: seed of the generator.
        options: arguments of ForgetRetain.
    """

    def __init__(
        self, authors: int = 20, forget_authors: int = 2, author_seed: int = 0, **options: Any
    ) -> None:
        super().__init__(**options)
        check_number("data.authors", authors, minimum=2, maximum=MAX_AUTHORS)
        check_number("data.forget_authors", forget_authors, minimum=1, below=authors)
        self.authors = authors
        self.forget_authors = forget_authors
        self.author_seed = author_seed

    def read(self) -> RowSets:
        """Generate the authors."""
        count = min(self.authors + self.forget_authors, MAX_AUTHORS)
        rows = [
            row_from(each, f"row {index}")
            for index, each in enumerate(fictitious_rows(count, self.author_seed))
        ]
        per_author = len(rows) // count
        forget_at, end = (self.authors - self.forget_authors) * per_author, self.authors * per_author
        sets = {"forget": rows[forget_at:end], "retain": rows[:forget_at], "holdout": rows[end:]}
        measured = [EvaluationSet(name, each) for name, each in sets.items() if each]
        return RowSets(sets["forget"], sets["retain"], measured)
