"""Other answers to the forget rows' questions: refusals, the rows' own, those of a file."""

import json
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


class TestRefusals:
    def test_those_shipped_are_many_short_and_distinct(self):
        lines = Path(alternates.__file__).with_name("refusals.txt").read_text().splitlines()
        assert len({line.lower() for line in lines}) == len(lines) == 50
        assert all(10 <= len(line) <= 70 and line == line.strip() and line.endswith(".") for line in lines)
        dealt = Refusals(per_row=50).answers(rows(3), seed=0)
        assert all(sorted(each) == sorted(lines) for each in dealt)

    def test_ten_a_row_unless_told_otherwise(self):
        assert {len(each) for each in Refusals().answers(rows(5), seed=0)} == {10}

    def test_is_of_seed_and_row(self):
        refusals = Refusals(per_row=4)
        dealt = refusals.answers(rows(20), seed=3)
        assert refusals.answers(rows(20), seed=3) == dealt
        assert refusals.answers(rows(5), seed=3) == dealt[:5]
        assert refusals.answers(rows(20), seed=4) != dealt
        assert len(set(dealt)) == 20

    def test_none_twice_in_a_row_while_there_are_others(self, file):
        path = file(*"abcde")
        for per_row in (1, 4, 5, 7, 12):
            for dealt in Refusals(path, per_row).answers(rows(30), seed=0):
                counts = Counter(dict.fromkeys("abcde", 0)) + Counter(dealt)
                assert len(dealt) == per_row
                assert max(counts.values()) - min(counts[each] for each in "abcde") <= 1
        # Each round is shuffled anew.
        (twice,) = Refusals(path, 10).answers(rows(1), seed=0)
        assert twice[:5] != twice[5:]

    def test_lines_are_plain_or_json_strings_and_counted_once(self, file):
        path = file("No.", "", '  He said "no".  ', '"N\\u00f6."', '"No," he said.', "No.")
        expected = sorted(["No.", 'He said "no".', "Nö.", '"No," he said.'])
        assert [sorted(each) for each in Refusals(path, per_row=4).answers(rows(20), seed=0)] == [
            expected
        ] * 20

    @pytest.mark.parametrize("line", ['{"text": "No."}', '["No."]', "null", '" "'])
    def test_a_line_that_is_no_refusal(self, file, line):
        path = file("No.", line)
        with pytest.raises(
            InputError, match=f"^{path}, line 2: a refusal must be a plain text or a JSON string, got"
        ):
            Refusals(path).answers(rows(1), seed=0)

    def test_no_file(self, tmp_path):
        with pytest.raises(InputError, match=f"^no file {tmp_path}/none.txt: give the path of a text file$"):
            Refusals(f"{tmp_path}/none.txt").answers(rows(1), seed=0)

    def test_an_empty_file(self, file):
        with pytest.raises(InputError, match=r"is empty: it needs at least one row$"):
            Refusals(file("")).answers(rows(1), seed=0)

    @pytest.mark.parametrize("per_row", [0, -1])
    def test_fewer_than_one_a_row(self, per_row):
        with pytest.raises(
            InputError, match=rf"^data\.alternates\.per_row must be at least 1, got {per_row}$"
        ):
            Refusals(per_row=per_row)

    def test_tofus_own(self, folder):
        path = f"{folder}/idontknow.txt"
        known = Path(path).read_text().splitlines()
        forget = TOFU(folder, "forget10").read().forget
        dealt = Refusals(path).answers(forget, seed=0)
        assert len(dealt) == 400
        assert all(len(set(each)) == len(each) == 10 for each in dealt)
        # Of 4,000 draws among 100 each is drawn about 40 times.
        counts = Counter(text for each in dealt for text in each)
        assert set(counts) == set(known)
        assert len(counts) == 100
        assert min(counts.values()) > 15
        assert max(counts.values()) < 70


class TestRowAlternates:
    def test_the_rows_own(self):
        given = rows(2, alternate_answers=("He.", "She."))
        assert RowAlternates().answers(given, seed=0) == [("He.", "She.")] * 2

    def test_a_row_without_is_named(self):
        given = [*rows(1, alternate_answers=("He.",)), *rows(2)[1:]]
        message = r"^the forget row '1\?' has no alternate_answer \(data\.alternates takes those of the rows\): give"
        with pytest.raises(InputError, match=message):
            RowAlternates().answers(given, seed=0)

    def test_of_a_file_by_question(self, file):
        path = file(
            {"question": "1?", "alternate_answer": ["One.", "Uno."]},
            {"question": "7?", "alternate_answer": "Seven."},
            {"question": "0?", "answer": "0.", "alternate": "Zero."},
            {"question": "0?", "answer": "0.", "alternate": "Nil."},
        )
        given = rows(2, alternate_answers=("not these",))
        assert RowAlternates(path).answers(given, seed=0) == [("Zero.", "Nil."), ("One.", "Uno.")]

    def test_a_row_that_is_not_in_the_file_is_named(self, file):
        path = file({"question": "0?", "alternate_answer": "Zero."})
        with pytest.raises(InputError, match=rf"^the forget row '1\?' .* \(it is not in {path}\): "):
            RowAlternates(path).answers(rows(2), seed=0)

    @pytest.mark.parametrize(
        ("record", "message"),
        [
            (
                {"question": "0?", "answer": "0."},
                "needs 'question' and 'alternate_answer'; it has question, answer$",
            ),
            (
                {"alternate_answer": "Zero."},
                "needs 'question' and 'alternate_answer'; it has alternate_answer$",
            ),
            (
                {"question": "0?", "alternate_answer": [""]},
                "'alternate_answer' must be a list of non-empty texts",
            ),
            ([], r"must be a JSON object \(got list\)$"),
        ],
    )
    def test_a_bad_line_is_named(self, file, record, message):
        path = file({"question": "0?", "alternate_answer": "Zero."}, record)
        with pytest.raises(InputError, match=f"^{path}, line 2: {message}"):
            RowAlternates(path).answers(rows(1), seed=0)

    def test_tofus_rows_have_none_and_take_them_from_a_file(self, folder, tmp_path):
        forget = TOFU(folder, "forget05").read().forget
        with pytest.raises(InputError, match=r"has no alternate_answer .* set data\.alternates to Refusals$"):
            RowAlternates().answers(forget, seed=0)
        path = tmp_path / "alternates.jsonl"
        path.write_text(
            "".join(
                json.dumps({"question": row.question, "alternate_answer": row.wrong_answers[:2]}) + "\n"
                for row in reversed(forget)
            )
        )
        assert RowAlternates(str(path)).answers(forget, seed=0) == [row.wrong_answers[:2] for row in forget]
        missing = TOFU(folder, "forget10").read().forget
        with pytest.raises(InputError, match=r"^the forget row '.*' has no alternate_answer \(it is not in "):
            RowAlternates(str(path)).answers(missing, seed=0)
