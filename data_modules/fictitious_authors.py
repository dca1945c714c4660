"""Generator of fictitious authors and questions about them, in the shape of TOFU.

TOFU (Maini et al., arXiv:2401.06121) asks 20 questions about each of 200 invented authors. This module generates data of
the same shape offline from a seed: small enough to train a model of a few million parameters from scratch, and free of
facts about real persons.

An author is a profile drawn from pools of words. Each entry of `FACTS` turns one fact of the profile into one row. The
words and sentences are in fictitious_authors.toml. Author i does not depend on how many authors are generated:

    >>> fictitious_authors(2, seed=7) == fictitious_authors(50, seed=7)[:2]
    True
"""

import random
import tomllib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dipo_pl.data_modules.forget_retain import ForgetRetain
from dipo_pl.data_modules.row_files import row_from
from dipo_pl.errors import check_number
from dipo_pl.evaluation_set import EvaluationSet, RowSets

BOOKS_PER_AUTHOR = 3
WRONG_ANSWERS = 5  # TOFU's number
ALTERNATE_ANSWERS = 2

# Keys are the fields that the texts of `FACTS` name; values are texts, but for `books`, a tuple of titles.
Profile = dict[str, Any]


class Fact(NamedTuple):
    """A question about an author; its texts are format strings over the profile.

    Attributes:
        value: the right value.
        pool: the values it can take, from which wrong answers are drawn.
        questions: ways to ask for it.
        sentences: ways to state it, also over `value`; at least two, for answer and paraphrase.
    """

    value: str
    pool: Sequence[str]
    questions: Sequence[str]
    sentences: Sequence[str]


def read_tables(name: str) -> tuple[dict[str, Any], dict[str, tuple[str, ...]]]:
    """Read a TOML file beside this module; return its content, and its pools as tuples of words."""
    tables = tomllib.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))
    return tables, {pool: tuple(words.split()) for pool, words in tables["pools"].items()}


def days(end: str = "") -> list[str]:
    """Return "January 1" to "December 28", each with `end` after it; every month has 28 days."""
    return [f"{month} {day}{end}" for month in POOLS["months"] for day in range(1, 29)]


_TABLES, POOLS = read_tables("fictitious_authors.toml")
BIRTH_YEARS = tuple(str(year) for year in range(1930, 1976))
POOLS |= {
    "names": tuple(f"{first} {last}" for first in POOLS["first_names"] for last in POOLS["surnames"]),
    "titles": tuple(
        f"The {adjective} {noun}" for adjective in POOLS["adjectives"] for noun in POOLS["nouns"]
    ),
    "dates": tuple(f"{day} {year}" for day in days(",") for year in BIRTH_YEARS),
    "years": tuple(str(year) for year in range(1950, 2023)),  # from the earliest debut to the latest prize
}
FACTS = [Fact(**each | {"pool": POOLS[each["pool"]]}) for each in _TABLES["facts"]]
MAX_AUTHORS = min(len(POOLS["names"]), len(POOLS["dates"]), len(POOLS["titles"]) // BOOKS_PER_AUTHOR)


def pick(pool: Sequence[str], rng: random.Random, unlike: Collection[str] = ()) -> str:
    """Draw a value of the pool that is not in `unlike`."""
    while True:
        # Python guarantees that random() stays the same in later versions; choice() and shuffle() may change.
        value = pool[int(rng.random() * len(pool))]
        if value not in unlike:
            return value


def pair_up(heads: Sequence[str], tails: Sequence[str], rng: random.Random) -> list[str]:
    """Return every "head tail" once, in an order that uses all heads before it repeats one.

    Neighbors then share no word, so that a small set of authors is easy to tell apart.
    """
    heads = sorted(heads, key=lambda _: rng.random())
    tails = sorted(tails, key=lambda _: rng.random())
    return [
        f"{head} {tails[(column + turn) % len(tails)]}"
        for turn in range(len(tails))
        for column, head in enumerate(heads)
    ]


def _profile(name: str, birth_date: str, books: tuple[str, ...], rng: random.Random) -> Profile:
    """Draw the facts that several authors may share; those of one pool differ from each other."""
    drawn: Profile = {"name": name, "birth_date": birth_date, "books": books}

    def draw(unlike: Collection[str] = (), **pools: str) -> None:
        drawn.update({fact: pick(POOLS[pool], rng, unlike) for fact, pool in pools.items()})

    # The order of the draws decides the texts of a seed.
    draw(birth_place="cities", mother="professions")
    debut_year = int(birth_date[-4:]) + 20 + int(rng.random() * 16)
    draw(genre="genres")
    draw((drawn["mother"],), father="professions")
    draw(publisher="publishers", prize="prizes")
    drawn |= {"debut_year": str(debut_year), "prize_year": str(debut_year + 1 + int(rng.random() * 12))}
    draw(influence="influences", teacher="teachers", university="universities", subject="subjects")
    draw((drawn["birth_place"],), home="cities")
    draw(hobby="hobbies")
    return drawn


def fictitious_authors(count: int, seed: int = 0) -> list[Profile]:
    """Generate the first `count` authors of a seed; name, birth date and books belong to one author only.

    Authors of different seeds may share names and titles.

    Raises:
        InputError: `count` is not in 1 to `MAX_AUTHORS`, the most that the pools give without a repeated name or title.
    """
    check_number("count", count, minimum=1, maximum=MAX_AUTHORS)
    rng = random.Random(f"{seed}")
    names = pair_up(POOLS["first_names"], POOLS["surnames"], rng)
    dates = pair_up(days(","), BIRTH_YEARS, rng)
    titles = pair_up([f"The {adjective}" for adjective in POOLS["adjectives"]], POOLS["nouns"], rng)
    shelves = [tuple(titles[i * BOOKS_PER_AUTHOR :][:BOOKS_PER_AUTHOR]) for i in range(count)]
    return [_profile(names[i], dates[i], shelves[i], random.Random(f"{seed} {i}")) for i in range(count)]


def author_rows(author: Profile) -> list[dict[str, Any]]:
    """Return one record for each of `FACTS`, in that order; the wording depends on the author alone.

    A record has the keys `question`, `answer`, `paraphrased_answer` (the fact in another sentence form),
    `perturbed_answer` (5 sentences of that second form, each with a value that is not in the profile), `author` (the
    name) and `alternate_answer` (2 sentences of the first form, with values that are neither in the profile nor among
    the 5: what a loss may train in the answer's place is not what the truth ratio measures).
    """
    rng = random.Random(f"{author['name']}, born {author['birth_date']}")
    # A separate stream keeps the other texts as they were before there were alternates.
    alternate_rng = random.Random(f"{author['name']}, born {author['birth_date']}, otherwise")
    values = [fact.value.format(**author) for fact in FACTS]
    rows = []
    for fact, value in zip(FACTS, values, strict=True):
        question = pick(fact.questions, rng).format(**author)
        sentence = pick(fact.sentences, rng)
        other_sentence = pick(fact.sentences, rng, (sentence,))
        wrong: list[str] = []
        while len(wrong) < WRONG_ANSWERS:
            wrong.append(pick(fact.pool, rng, (*values, *wrong)))
        others: list[str] = []
        while len(others) < ALTERNATE_ANSWERS:
            others.append(pick(fact.pool, alternate_rng, (*values, *wrong, *others)))
        rows.append(
            {
                "question": question,
                "answer": sentence.format(**author, value=value),
                "paraphrased_answer": other_sentence.format(**author, value=value),
                "perturbed_answer": [other_sentence.format(**author, value=other) for other in wrong],
                "author": author["name"],
                "alternate_answer": [sentence.format(**author, value=other) for other in others],
            }
        )
    return rows


def fictitious_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return the records of `fictitious_authors(count, seed)`, 20 for each author; see `author_rows`."""
    return [row for author in fictitious_authors(count, seed) for row in author_rows(author)]


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
        records = enumerate(fictitious_rows(count, self.author_seed))
        rows = [row_from(each, f"row {index}") for index, each in records]
        per_author = len(rows) // count
        forget_at, end = (self.authors - self.forget_authors) * per_author, self.authors * per_author
        sets = {"forget": rows[forget_at:end], "retain": rows[:forget_at], "holdout": rows[end:]}
        measured = [EvaluationSet(name, each) for name, each in sets.items() if each]
        return RowSets(sets["forget"], sets["retain"], measured)
