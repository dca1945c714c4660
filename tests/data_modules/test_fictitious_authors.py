"""The fictitious authors: the same everywhere, no two alike, and wrong answers that are wrong."""

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import astuple

import pytest

from dipo_pl.data_modules.fictitious_authors import (
    FACTS,
    MAX_AUTHORS,
    author_rows,
    fictitious_authors,
    fictitious_rows,
)

ROWS_PER_AUTHOR, WRONG_ANSWERS = 20, 5  # as TOFU has
PRINT_ROWS = """
import json
from dipo_pl.data_modules.fictitious_authors import fictitious_rows
print(json.dumps(fictitious_rows(5, seed=3)))
"""


@pytest.fixture(scope="module")
def authors():
    return fictitious_authors(1000)


@pytest.fixture(scope="module")
def rows():
    return fictitious_rows(1000)


def fact_at(row_index, authors):
    """The right value of a row, in words."""
    author, fact = divmod(row_index, ROWS_PER_AUTHOR)
    return FACTS[fact].value.format(**vars(authors[author]))


def test_same_seed_gives_same_rows_in_another_process():
    here = json.dumps(fictitious_rows(5, seed=3))
    for hash_seed in ("0", "12345"):
        there = subprocess.run(
            [sys.executable, "-c", PRINT_ROWS],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert there.strip() == here


def test_other_seed_gives_other_authors():
    # Position by position, since the seeds share their pools; one agreement by chance would be no fault.
    pairs = list(zip(fictitious_authors(20, seed=0), fictitious_authors(20, seed=1), strict=True))
    for field in ("name", "birth_date", "books"):
        assert sum(getattr(one, field) == getattr(other, field) for one, other in pairs) <= 1


def test_fewer_authors_are_the_first_of_more(authors):
    assert fictitious_authors(1) == authors[:1]
    assert fictitious_authors(5) == authors[:5]
    assert fictitious_rows(5) == fictitious_rows(50)[: 5 * ROWS_PER_AUTHOR]


def test_no_two_authors_alike(authors):
    assert len({author.name for author in authors}) == 1000
    assert len({author.birth_date for author in authors}) == 1000
    assert len({title for author in authors for title in author.books}) == 3000
    assert len({astuple(author)[1:] for author in authors}) == 1000


def test_the_limit_itself_can_be_made():
    assert MAX_AUTHORS >= 1000
    assert len({author.name for author in fictitious_authors(MAX_AUTHORS)}) == MAX_AUTHORS


def test_a_few_authors_share_no_word_of_name_or_title():
    few = fictitious_authors(20)
    words = [word for author in few for word in author.name.split()]
    words += [word for author in few for title in author.books for word in title.split()[1:]]
    assert max(Counter(words).values()) == 1


def test_lives_are_in_order(authors):
    for author in authors:
        assert int(author.birth_date[-4:]) + 20 <= int(author.debut_year) < int(author.prize_year)
        assert author.mother != author.father
        assert author.home != author.birth_place


def test_twenty_rows_each_author_by_author(authors, rows):
    names = [row["author"] for row in rows]
    assert names == [author.name for author in authors for _ in range(ROWS_PER_AUTHOR)]
    assert rows[ROWS_PER_AUTHOR : 2 * ROWS_PER_AUTHOR] == author_rows(authors[1])


def test_questions_are_distinct_and_name_the_author(rows):
    assert len({row["question"] for row in rows}) == len(rows)
    for index, row in enumerate(rows):
        asks_for_name = index % ROWS_PER_AUTHOR < 2
        assert (row["author"] in row["question"]) != asks_for_name, row


def test_answers_are_short_and_hold_the_fact_that_was_asked(authors, rows):
    for index, row in enumerate(rows):
        value = fact_at(index, authors)
        assert value not in row["question"]
        for text in (row["answer"], row["paraphrased_answer"]):
            assert value in text
            assert 8 <= len(text.split()) <= 18, text
            assert text.endswith(".")


def test_paraphrase_is_another_sentence(rows):
    assert all(row["paraphrased_answer"] != row["answer"] for row in rows)


def test_wrong_answers_are_the_paraphrase_with_another_value(authors, rows):
    for index, row in enumerate(rows):
        value = fact_at(index, authors)
        wrong = row["perturbed_answer"]
        assert len(set(wrong)) == len(wrong) == WRONG_ANSWERS
        before, after = row["paraphrased_answer"].split(value)
        for text in wrong:
            assert value not in text
            assert text.startswith(before)
            assert text.endswith(after)
            other = text[len(before) : len(text) - len(after)]
            assert other in FACTS[index % ROWS_PER_AUTHOR].pool


def test_wrong_values_stand_nowhere_in_the_profile(authors):
    for author in authors[:100]:
        profile = {fact.value.format(**vars(author)) for fact in FACTS}
        for fact, row in zip(FACTS, author_rows(author), strict=True):
            before, after = row["paraphrased_answer"].split(fact.value.format(**vars(author)))
            wrong = {text[len(before) : len(text) - len(after)] for text in row["perturbed_answer"]}
            assert not wrong & profile


def test_alternates_are_the_answer_with_values_that_stand_nowhere_else(authors, rows):
    for index, row in enumerate(rows[:2000]):
        author = authors[index // ROWS_PER_AUTHOR]
        before, after = row["answer"].split(fact_at(index, authors))
        others = [text[len(before) : len(text) - len(after)] for text in row["alternate_answer"]]
        assert [before + other + after for other in others] == row["alternate_answer"]
        assert len(set(others)) == 2
        assert set(others) <= set(FACTS[index % ROWS_PER_AUTHOR].pool)
        assert not set(others) & {fact.value.format(**vars(author)) for fact in FACTS}
        assert not any(other in wrong for other in others for wrong in row["perturbed_answer"])


def test_wordings_vary(authors, rows):
    for fact in range(ROWS_PER_AUTHOR):
        forms = {
            rows[index]["answer"]
            .replace(fact_at(index, authors), "VALUE")
            .replace(rows[index]["author"], "NAME")
            for index in range(fact, len(rows), ROWS_PER_AUTHOR)
        }
        assert len(forms) == len(FACTS[fact].sentences) >= 2
    for fact in range(2, ROWS_PER_AUTHOR):  # the first two do not hold the name
        forms = {
            rows[index]["question"].replace(rows[index]["author"], "NAME")
            for index in range(fact, len(rows), ROWS_PER_AUTHOR)
        }
        assert len(forms) == len(FACTS[fact].questions)


def test_golden():
    # Numbers measured on these authors hold only for this text; a change of it is a change of the data.
    assert fictitious_rows(1)[7] == {
        "question": "What is the title of the first book by Walter Quillon?",
        "answer": "'The Folded Saddle' was the first book that Walter Quillon published.",
        "paraphrased_answer": "Walter Quillon began as an author with the book 'The Folded Saddle'.",
        "perturbed_answer": [
            "Walter Quillon began as an author with the book 'The Velvet Lantern'.",
            "Walter Quillon began as an author with the book 'The Damp Blanket'.",
            "Walter Quillon began as an author with the book 'The Curious Guest'.",
            "Walter Quillon began as an author with the book 'The Dusty Saddle'.",
            "Walter Quillon began as an author with the book 'The Frosty Magnet'.",
        ],
        "author": "Walter Quillon",
        "alternate_answer": [
            "'The Crooked Drum' was the first book that Walter Quillon published.",
            "'The Velvet Thimble' was the first book that Walter Quillon published.",
        ],
    }


def test_golden_digest_of_all_rows(rows):
    def digest(some):
        return hashlib.sha256(json.dumps(some).encode()).hexdigest()[:16]

    without_alternates = [
        {name: text for name, text in row.items() if name != "alternate_answer"} for row in rows
    ]
    # Of the rows as they were before they had alternates.
    assert digest(without_alternates) == "654702b6d188796d"
    assert digest(rows) == "c183233c62745541"


@pytest.mark.parametrize("count", [0, -1, MAX_AUTHORS + 1])
@pytest.mark.parametrize("make", [fictitious_authors, fictitious_rows])
def test_count_out_of_range_names_value_and_limit(make, count):
    with pytest.raises(ValueError, match=rf"count must be between 1 and {MAX_AUTHORS} .*, got {count}$"):
        make(count)
