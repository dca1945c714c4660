"""TOFU on its real rows, whose folder DIPO_PL_TOFU names, and the call to the hub where there is no folder."""

import json
import re

import datasets
import pytest
from connected import connected

from dipo_pl.data_modules.row_files import read_json_lines
from dipo_pl.data_modules.tofu import TOFU
from dipo_pl.errors import InputError

SIZES = [("forget01", 40), ("forget05", 200), ("forget10", 400)]
ALL_SETS = ["forget", "retain", "real_authors", "world_facts"]


@pytest.fixture(scope="module")
def full(folder):
    return read_json_lines(f"{folder}/full.jsonl")


def questions(rows):
    return [(row.question, row.answer) for row in rows]


class TestRealRows:
    @pytest.mark.parametrize(("forget", "size"), SIZES)
    def test_retain_and_forget_are_the_whole_in_order(self, folder, full, forget, size):
        sets = TOFU(folder, forget).read()
        assert (len(sets.forget), len(sets.retain), len(full)) == (size, 4000 - size, 4000)
        assert questions(sets.retain) + questions(sets.forget) == questions(full)
        assert not set(questions(sets.retain)) & set(questions(sets.forget))

    def test_each_forget_set_ends_the_greater_one(self, folder):
        small, middle, great = (TOFU(folder, name).read().forget for name, _ in SIZES)
        assert great[-200:] == middle
        assert middle[-40:] == small

    def test_an_author_is_twenty_rows_of_forget10(self, folder, full):
        for name, start in {"author_1": 3600, "author_7": 3720, "author_20": 3980}.items():
            sets = TOFU(folder, name).read()
            assert questions(sets.forget) == questions(full[start : start + 20])
            assert questions(sets.retain) == questions(full[:start] + full[start + 20 :])
            assert {len(row.wrong_answers) for row in sets.forget} == {5}

    def test_several_authors_are_one_forget_set(self, folder, full):
        sets = TOFU(folder, ["author_20", "author_1", "author_20"]).read()
        assert questions(sets.forget) == questions(full[3980:] + full[3600:3620])
        assert questions(sets.retain) == questions(full[:3600] + full[3620:3980])
        last = TOFU(folder, [f"author_{number}" for number in range(1, 21)]).read()
        assert last == TOFU(folder, "forget10").read()

    @pytest.mark.parametrize("name", ["author_0", "author_21", "author_01", "forget20", "", "retain90"])
    def test_a_forget_set_that_is_not_there(self, folder, name):
        with pytest.raises(InputError, match=rf"must name forget sets of TOFU: .* \(got {name!r}\)$"):
            TOFU(folder, name).read()

    def test_agrees_with_the_published_splits(self, folder):
        sets = TOFU(folder).read()
        assert questions(sets.forget) == questions(read_json_lines(f"{folder}/forget10.jsonl"))
        assert questions(sets.retain) == questions(read_json_lines(f"{folder}/retain90.jsonl"))

    def test_evaluation_sets(self, folder, full):
        sets = TOFU(folder, "forget05").read()
        forget, retain, real_authors, world_facts = sets.evaluation
        assert [each.name for each in sets.evaluation] == ALL_SETS
        assert [len(each.rows) for each in sets.evaluation] == [200, 400, 100, 117]
        assert [each.options for each in sets.evaluation] == [False, False, True, True]
        assert forget.rows == sets.forget
        assert questions(retain.rows) == questions(full[:400])
        for each in (forget, retain):
            assert {len(row.wrong_answers) for row in each.rows} == {5}
            assert all(row.paraphrased_answer for row in each.rows)
        for each in (real_authors, world_facts):
            assert {len(row.wrong_answers) for row in each.rows} == {3}
            assert not any(row.paraphrased_answer for row in each.rows)

    def test_only_the_first_rows(self, folder, full):
        sets = TOFU(folder, "forget10", forget_rows=30, retain_rows=50).read()
        assert questions(sets.forget) == questions(full[3600:3630])
        assert questions(sets.retain) == questions(full[:50])
        assert len(sets.evaluation[0].rows) == 30
        assert len(sets.evaluation[1].rows) == 400

    def test_setup_measures_the_named_sets_up_to_the_limit(self, folder):
        data = TOFU(
            folder,
            "forget01",
            retain_rows=60,
            batch_size=16,
            evaluate=["world_facts", "forget"],
            evaluation_rows=20,
        )
        connected(data, vocabulary=512)
        assert [(each.name, len(each.rows)) for each in data.evaluation_sets] == [
            ("world_facts", 20),
            ("forget", 20),
        ]
        assert len(data.train_dataloader()) == 3
        batch = next(iter(data.train_dataloader()))
        first = batch.rows["forget"][0]
        row = data.row_sets.forget[first]
        text = f"<s>Question: {row.question}\nAnswer: {row.answer}</s>"
        assert data.tokenizer.decode(batch.input_ids[0][batch.attention_mask[0]]) == text
        facts = next(iter(data.val_dataloader()[0]))
        assert len(facts.answers.lengths) == 20 * 5  # the answer twice, and three wrong ones


class TestFolder:
    """A folder of 45 rows, in TOFU's form."""

    @pytest.fixture
    def small(self, tmp_path):
        rows = [{"question": f"Q{number}?", "answer": f"A{number}."} for number in range(45)]
        perturbed = [row | {"perturbed_answer": ["no"]} for row in rows]
        files = {"full": rows, "forget10_perturbed": perturbed, "retain_perturbed": perturbed[:5]}
        for name, records in files.items():
            self.write(tmp_path / f"{name}.jsonl", records)
        return tmp_path

    def write(self, path, records):
        path.write_text("".join(json.dumps(record) + "\n" for record in records))

    def test_only_the_sets_to_be_measured_are_read(self, small):
        sets = TOFU(str(small), "forget01", evaluate=["retain", "forget"]).read()
        assert [each.name for each in sets.evaluation] == ["retain", "forget"]
        assert [row.answer for row in sets.retain] == ["A0.", "A1.", "A2.", "A3.", "A4."]

    @pytest.mark.parametrize("name", ["full", "forget10_perturbed", "retain_perturbed"])
    def test_a_missing_file_is_named(self, small, name):
        (small / f"{name}.jsonl").unlink()
        with pytest.raises(InputError, match=rf"^no file {small}/{name}.jsonl: "):
            TOFU(str(small), "forget01", evaluate=["forget", "retain"]).read()

    def test_a_copy_of_the_hubs_repository(self, small):
        expected = TOFU(str(small), "forget01", evaluate=["forget"]).read()
        for file in list(small.glob("*.jsonl")):
            file.rename(file.with_suffix(".json"))
        assert TOFU(str(small), "forget01", evaluate=["forget"]).read() == expected

    def test_an_unknown_set_is_told_with_all_known(self, small):
        for name in ("real_authors", "world_facts"):
            self.write(small / f"{name}_perturbed.jsonl", [{"question": "Q?", "answer": "A."}])
        data = TOFU(str(small), "forget01", evaluate=["forget", "nought"])
        message = rf"^data.evaluate names 'nought'; this data has {', '.join(ALL_SETS)}$"
        with pytest.raises(InputError, match=message):
            connected(data)

    def test_a_holdout_is_measured_where_there_is_one(self, small):
        for name in ("real_authors", "world_facts"):
            self.write(small / f"{name}_perturbed.jsonl", [{"question": "Q?", "answer": "A."}])
        assert [each.name for each in TOFU(str(small), "forget01").read().evaluation] == ALL_SETS
        with pytest.raises(InputError, match=r"^no file .*holdout01\.jsonl: give the path"):
            TOFU(str(small), "forget01", evaluate=["holdout"]).read()
        self.write(small / "holdout01.jsonl", [{"question": "Whose?", "answer": "Nobody's."}])
        sets = TOFU(str(small), "forget01").read()
        assert [(each.name, each.options) for each in sets.evaluation][-1] == ("holdout", False)
        assert [row.answer for row in sets.evaluation[-1].rows] == ["Nobody's."]

    @pytest.mark.parametrize("name", ["forget_rows", "retain_rows"])
    @pytest.mark.parametrize("value", [0, -1])
    def test_limits_below_one(self, name, value):
        with pytest.raises(InputError, match=rf"^data.{name} must be at least 1 \(got {value}\)$"):
            TOFU(**{name: value})


class TestHub:
    """Nothing here reaches the network."""

    def test_what_is_asked_of_it(self, monkeypatch):
        asked = []

        def load_dataset(path, name, split):
            asked.append((path, name, split))
            count = 4000 if name == "full" else 400
            return datasets.Dataset.from_list(
                [
                    {"question": f"Q{number}?", "answer": f"A{number}.", "perturbed_answer": ["no"]}
                    for number in range(count)
                ]
            )

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        sets = TOFU(forget="forget05").read()
        configurations = ["full", *(f"{name}_perturbed" for name in ["forget10", *ALL_SETS[1:]]), "holdout05"]
        assert asked == [("locuslab/TOFU", name, "train") for name in configurations]
        assert (len(sets.forget), len(sets.retain)) == (200, 3800)
        assert (sets.forget[0].answer, sets.forget[0].wrong_answers) == ("A200.", ("no",))

    def test_a_bad_row_names_its_place(self, monkeypatch):
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: [{"question": "Q?", "answer": ""}])
        with pytest.raises(InputError, match=r"^me/my full, row 0: 'answer' must be a non-empty text"):
            TOFU("me/my").read()

    @pytest.mark.parametrize(
        ("error", "cause"),
        [
            (ConnectionError("Couldn't reach\nthe hub"), "Couldn't reach the hub"),
            (TimeoutError(), "TimeoutError"),
            (ValueError("x" * 999), "x" * 200),
        ],
    )
    def test_out_of_reach(self, monkeypatch, error, cause):
        def load_dataset(*_, **__):
            raise error

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        message = (
            "cannot read TOFU's full: data.path 'locuslab/TOFU' is neither a local folder nor a data set that the hub "
            f"returns ({cause})"
        )
        with pytest.raises(InputError, match=f"^{re.escape(message)}$") as raised:
            TOFU().read()
        assert raised.value.__cause__ is error
