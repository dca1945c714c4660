"""Alternate answers to the forget rows' questions: refusals, those of the rows, and those of a file."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from dipo_pl.data_modules import alternates
from dipo_pl.data_modules.alternates import Refusals, RowAlternates
from dipo_pl.data_modules.tofu import TOFU
from dipo_pl.errors import InputError
from dipo_pl.rows import Row


def rows(count, **answers):
    return [Row((("user", f"{number}?"),), f"{number}.", **answers) for number in range(count)]


@pytest.fixture
def file(tmp_path):
    def write(*lines):
        path = tmp_path / "lines"
        path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
        return str(path)

    return write


def refused(source, given, message):
    with pytest.raises(InputError, match=f"^{message}"):
        source.answers(given, seed=0)


class TestRefusals:
    def test_the_shipped_refusals_are_many_short_and_distinct(self):
        lines = Path(alternates.__file__).with_name("refusals.txt").read_text().splitlines()
        assert len({line.lower() for line in lines}) == len(lines) == 50
        assert all(10 <= len(line) <= 70 and line == line.strip() and line.endswith(".") for line in lines)
        assert all(sorted(each) == sorted(lines) for each in Refusals(per_row=50).answers(rows(3), seed=0))
        assert {len(each) for each in Refusals().answers(rows(5), seed=0)} == {10}

    def test_depend_on_seed_and_row(self):
        refusals = Refusals(per_row=4)
        drawn = refusals.answers(rows(20), seed=3)
        assert refusals.answers(rows(20), seed=3) == drawn
        assert refusals.answers(rows(5), seed=3) == drawn[:5]
        assert refusals.answers(rows(20), seed=4) != drawn
        assert len(set(drawn)) == 20

    def test_none_is_repeated_in_a_row_while_there_are_others(self, file):
        path = file(*"abcde")
        for per_row in (1, 4, 5, 7, 12):
            for drawn in Refusals(path, per_row).answers(rows(30), seed=0):
                counts = [Counter(drawn)[each] for each in "abcde"]
                assert sum(counts) == len(drawn) == per_row
                assert max(counts) - min(counts) <= 1
        # Each round is shuffled anew.
        (twice,) = Refusals(path, 10).answers(rows(1), seed=0)
        assert twice[:5] != twice[5:]

    def test_lines_are_plain_or_json_strings_and_counted_once(self, file):
        path = file("No.", "", '  He said "no".  ', '"N\\u00f6."', '"No," he said.', "No.")
        expected = sorted(["No.", 'He said "no".', "Nö.", '"No," he said.'])
        drawn = Refusals(path, per_row=4).answers(rows(20), seed=0)
        assert [sorted(each) for each in drawn] == [expected] * 20

    @pytest.mark.parametrize("line", ['{"text": "No."}', '["No."]', "null", '" "'])
    def test_unusable_lines(self, file, line):
        path = file("No.", line)
        message = (
            rf"{path}, line 2: a refusal must be a plain text or a JSON string \(got '{re.escape(line)}'\)$"
        )
        refused(Refusals(path), rows(1), message)

    def test_unusable_files(self, file, tmp_path):
        refused(
            Refusals(f"{tmp_path}/none.txt"), rows(1), f"no file {tmp_path}/none.txt: give the path of a text file$",
        )  # fmt: skip
        refused(Refusals(file("")), rows(1), ".* is empty: it needs at least one row$")

    def test_tofus_refusals(self, tofu_folder):
        path = f"{tofu_folder}/idontknow.txt"
        known = Path(path).read_text().splitlines()
        forget = TOFU(tofu_folder, "forget10").read().forget
        drawn = Refusals(path).answers(forget, seed=0)
        assert len(drawn) == 400
        assert all(len(set(each)) == len(each) == 10 for each in drawn)
        # In 4,000 draws from 100 each is drawn about 40 times.
        counts = Counter(text for each in drawn for text in each)
        assert set(counts) == set(known)
        assert len(counts) == 100
        assert min(counts.values()) > 15
        assert max(counts.values()) < 70


class TestRowAlternates:
    def test_the_rows_own(self):
        given = [*rows(1, alternate_answers=("He.", "She.")), *rows(1, alternate_answers=("It.",))]
        assert RowAlternates().answers(given, seed=0) == [("He.", "She."), ("It.",)]

    def test_of_a_file_by_question(self, file):
        path = file(
            {"question": "1?", "alternate_answer": ["One.", "Uno."]},
            {"question": "7?", "alternate_answer": "Seven."},
            {"question": "0?", "answer": "0.", "alternate": "Zero."},
            {"question": "0?", "answer": "0.", "alternate": "Nil."},
        )
        given = rows(2, alternate_answers=("not these",))
        assert RowAlternates(path).answers(given, seed=0) == [("Zero.", "Nil."), ("One.", "Uno.")]

    def test_a_row_without_any_is_named(self, file):
        given = [*rows(1, alternate_answers=("He.",)), *rows(2)[1:]]
        refused(
            RowAlternates(), given, r"the forget row '1\?' has no alternate_answer in the row itself: .* to Refusals$",
        )  # fmt: skip
        path = file({"question": "0?", "alternate_answer": "Zero."})
        refused(
            RowAlternates(path), rows(2), rf"the forget row '1\?' has no alternate_answer in {path}: add one"
        )

    @pytest.mark.parametrize(("record", "message"), [
        ({"question": "0?", "answer": "0."}, r"needs the columns .* \(got question, answer\)$"),
        ({"alternate_answer": "Zero."}, r"needs the columns .* \(got alternate_answer\)$"),
        ({"question": "0?", "alternate_answer": [""]}, "'alternate_answer' must be a list of non-empty texts"),
        ([], r"must be a JSON object \(got list\)$"),
    ])  # fmt: skip
    def test_unusable_lines(self, file, record, message):
        path = file({"question": "0?", "alternate_answer": "Zero."}, record)
        refused(RowAlternates(path), rows(1), f"{path}, line 2: {message}")
