"""The fictitious authors: the same on every machine, no two alike, and wrong answers that are wrong."""

import hashlib
import json
from collections import Counter

import pytest

from dipo_pl.data_modules.fictitious_authors import (
    FACTS,
    MAX_AUTHORS,
    author_rows,
    fictitious_authors,
    fictitious_rows,
)

ROWS_PER_AUTHOR, WRONG_ANSWERS = 20, 5  # as TOFU has


@pytest.fixture(scope="module")
def authors():
    return fictitious_authors(1000)


@pytest.fixture(scope="module")
def rows():
    return fictitious_rows(1000)


def facts(authors, rows):
    """Each row with its author, its fact, and the right value in words."""
    for index, row in enumerate(rows):
        author, fact = authors[index // ROWS_PER_AUTHOR], FACTS[index % ROWS_PER_AUTHOR]
        yield row, author, fact, fact.value.format(**author)


def other_values(text, value, others):
    """The values in sentences that must equal `text` apart from its value."""
    before, after = text.split(value)
    found = [other[len(before) : len(other) - len(after)] for other in others]
    assert [before + other + after for other in found] == others
    assert not any(value in other for other in others)
    return found


def test_other_seed_gives_other_authors():
    # The seeds share their pools, so that authors are compared by position; one may agree by chance.
    pairs = list(zip(fictitious_authors(20, seed=0), fictitious_authors(20, seed=1), strict=True))
    for field in ("name", "birth_date", "books"):
        assert sum(one[field] == other[field] for one, other in pairs) <= 1


def test_fewer_authors_are_the_first_of_more(authors):
    assert fictitious_authors(5) == authors[:5]
    assert fictitious_rows(5) == fictitious_rows(50)[: 5 * ROWS_PER_AUTHOR]
    assert author_rows(authors[1]) == fictitious_rows(5)[ROWS_PER_AUTHOR : 2 * ROWS_PER_AUTHOR]


def test_no_two_authors_alike(authors):
    assert MAX_AUTHORS >= 1000
    assert len({author["name"] for author in fictitious_authors(MAX_AUTHORS)}) == MAX_AUTHORS
    assert len({author["birth_date"] for author in authors}) == 1000
    assert len({title for author in authors for title in author["books"]}) == 3000
    few = fictitious_authors(20)
    words = [word for author in few for word in author["name"].split()]
    words += [word for author in few for title in author["books"] for word in title.split()[1:]]
    assert max(Counter(words).values()) == 1


def test_questions_and_answers(authors, rows):
    assert len({row["question"] for row in rows}) == len(rows)
    for row, author, fact, value in facts(authors, rows):
        assert (author["name"] in row["question"]) == (fact.value != "{name}"), row
        assert value not in row["question"]
        assert row["paraphrased_answer"] != row["answer"]
        for text in (row["answer"], row["paraphrased_answer"]):
            assert value in text


def test_wrong_and_alternate_answers_have_values_that_are_not_in_the_profile(authors, rows):
    for row, author, fact, value in facts(authors, rows):
        wrong = other_values(row["paraphrased_answer"], value, row["perturbed_answer"])
        others = other_values(row["answer"], value, row["alternate_answer"])
        assert (len(wrong), len(others)) == (WRONG_ANSWERS, 2)
        assert len({*wrong, *others}) == WRONG_ANSWERS + 2
        assert {*wrong, *others} <= set(fact.pool)
        assert not {*wrong, *others} & {each.value.format(**author) for each in FACTS}


def test_golden_digests(rows):
    # Published results hold only for these texts, which depend on no hash: each process has another seed of them.
    def digest(some):
        return hashlib.sha256(json.dumps(some).encode()).hexdigest()[:16]

    # The rows as they were before they had alternates.
    assert (
        digest([{key: row[key] for key in row if key != "alternate_answer"} for row in rows])
        == "654702b6d188796d"
    )
    assert digest(rows) == "c183233c62745541"
    assert rows[7]["answer"] == "'The Folded Saddle' was the first book that Walter Quillon published."
