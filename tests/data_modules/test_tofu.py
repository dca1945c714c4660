"""TOFU on its real rows, whose folder DIPO_PL_TOFU names, and its calls to the hub where there is no folder."""

import json
import re
from dataclasses import replace

import datasets
import pytest
from connected import connected

from dipo_pl.data_modules.row_files import read_rows
from dipo_pl.data_modules.tofu import ENTITIES, TOFU, with_entities
from dipo_pl.errors import InputError
from dipo_pl.rows import Row

SIZES = [("forget01", 40), ("forget05", 200), ("forget10", 400)]
ALL_SETS = ["forget", "retain", "real_authors", "world_facts"]


@pytest.fixture(scope="module")
def full(tofu_folder):
    return read_rows(f"{tofu_folder}/full.jsonl")


def questions(rows):
    return [(row.question, row.answer) for row in rows]


class TestRealRows:
    @pytest.mark.parametrize(("forget", "size"), SIZES)
    def test_retain_and_forget_are_the_whole_in_order(self, tofu_folder, full, forget, size):
        sets = TOFU(tofu_folder, forget).read()
        assert (len(sets.forget), len(sets.retain), len(full)) == (size, 4000 - size, 4000)
        assert questions(sets.retain) + questions(sets.forget) == questions(full)
        assert sets.forget == TOFU(tofu_folder, "forget10").read().forget[-size:]

    def test_authors(self, tofu_folder, full):
        for name, start in {"author_1": 3600, "author_7": 3720, "author_20": 3980}.items():
            sets = TOFU(tofu_folder, name).read()
            assert questions(sets.forget) == questions(full[start : start + 20])
            assert questions(sets.retain) == questions(full[:start] + full[start + 20 :])
            assert {len(row.wrong_answers) for row in sets.forget} == {5}
        sets = TOFU(tofu_folder, ["author_20", "author_1", "author_20"]).read()
        assert questions(sets.forget) == questions(full[3980:] + full[3600:3620])
        assert questions(sets.retain) == questions(full[:3600] + full[3620:3980])
        everybody = [f"author_{number}" for number in range(1, 21)]
        assert TOFU(tofu_folder, everybody).read() == TOFU(tofu_folder, "forget10").read()

    @pytest.mark.parametrize(("options", "line"), [
        ({"forget": "author_3", "forget_rows": 21}, "data.forget_rows must be at most 20, the rows of author_3 (got 21)"),
        ({"retain_rows": 5000}, "data.retain_rows must be at most 3600, the rows of the retain set (got 5000)"),
    ])  # fmt: skip
    def test_more_rows_than_there_are(self, tofu_folder, options, line):
        with pytest.raises(InputError, match=re.escape(line)):
            TOFU(tofu_folder, **options).read()

    def test_no_row_of_an_author_who_was_requested_earlier_is_retained(self, tofu_folder, full):
        requests = ["author_1", "author_2"]
        data = connected(TOFU(tofu_folder, "author_2", forget_rows=10, requests=requests, max_length=2048))
        assert questions(data.row_sets.forget) == questions(full[3620:3630])
        assert questions(data.row_sets.retain) == questions(full[:3600] + full[3640:])

    @pytest.mark.parametrize("name", ["author_0", "author_21", "author_01", "forget20", "", "retain90"])
    def test_an_unknown_forget_set(self, tofu_folder, name):
        with pytest.raises(InputError, match=rf"must name forget sets of TOFU: .* \(got {name!r}\)$"):
            TOFU(tofu_folder, name).read()

    def test_agrees_with_the_published_splits(self, tofu_folder):
        sets = TOFU(tofu_folder).read()
        assert questions(sets.forget) == questions(read_rows(f"{tofu_folder}/forget10.jsonl"))
        assert questions(sets.retain) == questions(read_rows(f"{tofu_folder}/retain90.jsonl"))

    def test_evaluation_sets(self, tofu_folder, full):
        sets = TOFU(tofu_folder, "forget05").read()
        assert [(each.name, len(each.rows), each.options) for each in sets.evaluation] == list(
            zip(ALL_SETS, [200, 400, 100, 117], [False, False, True, True], strict=True)
        )
        forget, retain, *options = (each.rows for each in sets.evaluation)
        assert forget == sets.forget
        assert questions(retain) == questions(full[:400])
        assert all(row.paraphrased_answer and len(row.wrong_answers) == 5 for row in [*forget, *retain])
        assert all(
            not row.paraphrased_answer and len(row.wrong_answers) == 3 for rows in options for row in rows
        )

    def test_only_the_first_rows(self, tofu_folder, full):
        sets = TOFU(tofu_folder, "forget10", forget_rows=30, retain_rows=50).read()
        assert questions(sets.forget) == questions(full[3600:3630])
        assert questions(sets.retain) == questions(full[:50])
        # Utility is of rows that the model trains on.
        assert [questions(each.rows) for each in sets.evaluation[:2]] == [
            questions(sets.forget),
            questions(sets.retain),
        ]

    def test_setup_measures_the_named_sets_up_to_the_limit(self, tofu_folder):
        options = {"batch_size": 16, "evaluate": ["world_facts", "forget"], "evaluation_rows": 20}
        data = connected(TOFU(tofu_folder, "forget01", retain_rows=60, **options), vocabulary=512)
        measured = [(each.name, len(each.rows)) for each in data.evaluation_sets]
        assert measured == [("world_facts", 20), ("forget", 20)]
        assert len(data.train_dataloader()) == 3
        batch = next(iter(data.train_dataloader()))
        row = data.row_sets.forget[batch.rows["forget"][0]]
        text = f"<s>Question: {row.question}\nAnswer: {row.answer}</s>"
        assert data.tokenizer.decode(batch.input_ids[0][batch.attention_mask[0]]) == text
        facts = next(iter(data.val_dataloader()[0]))
        assert len(facts.answers.lengths) == 20 * 5  # the answer twice, and three wrong ones


class TestFolder:
    """A folder of 45 rows in TOFU's form."""

    @pytest.fixture
    def small(self, tmp_path):
        rows = [{"question": f"Q{number}?", "answer": f"A{number}."} for number in range(45)]
        perturbed = [row | {"perturbed_answer": ["no"]} for row in rows]
        one = [{"question": "Q?", "answer": "A."}]
        files = {"full": rows, "forget10_perturbed": perturbed, "retain_perturbed": perturbed[:5]}
        for name, records in (files | {"real_authors_perturbed": one, "world_facts_perturbed": one}).items():
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        return tmp_path

    def test_only_the_sets_to_be_measured_are_read(self, small):
        (small / "real_authors_perturbed.jsonl").unlink()
        sets = TOFU(str(small), "forget01", evaluate=["retain", "forget"]).read()
        assert [each.name for each in sets.evaluation] == ["retain", "forget"]
        assert [row.answer for row in sets.retain] == ["A0.", "A1.", "A2.", "A3.", "A4."]

    @pytest.mark.parametrize("name", ["full", "forget10_perturbed", "retain_perturbed"])
    def test_a_missing_file_is_named(self, small, name):
        (small / f"{name}.jsonl").unlink()
        with pytest.raises(InputError, match=rf"^no file {small}/{name}.jsonl: "):
            TOFU(str(small), "forget01", evaluate=["forget", "retain"]).read()

    def test_a_copy_of_the_hubs_repository(self, small):
        expected = TOFU(str(small), "forget01").read()
        for file in list(small.glob("*.jsonl")):
            file.rename(file.with_suffix(".json"))
        assert TOFU(str(small), "forget01").read() == expected

    def test_an_unknown_set_is_refused_with_those_known(self, small):
        with pytest.raises(InputError, match=f"'nought'.*{', '.join(ALL_SETS)}"):
            connected(TOFU(str(small), "forget01", evaluate=["forget", "nought"]))

    def test_a_holdout_is_measured_if_there_is_one(self, small):
        assert [each.name for each in TOFU(str(small), "forget01").read().evaluation] == ALL_SETS
        with pytest.raises(
            InputError,
            match=r"^no file .*holdout01\.jsonl: data\.path must be a folder with",
        ):
            TOFU(str(small), "forget01", evaluate=["holdout"]).read()
        (small / "holdout01.jsonl").write_text('{"question": "Whose?", "answer": "Nobody\'s."}\n')
        holdout = TOFU(str(small), "forget01").read().evaluation[-1]
        assert (holdout.name, holdout.options, [row.answer for row in holdout.rows]) == (
            "holdout",
            False,
            ["Nobody's."],
        )

    def test_no_retain_row_to_measure_is_trained(self, small):
        file = small / "retain_perturbed.jsonl"
        file.write_text("".join(file.read_text().splitlines(keepends=True)[2:]))
        assert len(TOFU(str(small), "forget01", retain_rows=3).read().evaluation[1].rows) == 1
        line = "no row of .*'s retain_perturbed is among the first 2 rows of the retain set: raise data.retain_rows"
        with pytest.raises(InputError, match=line):
            TOFU(str(small), "forget01", retain_rows=2).read()
        assert TOFU(str(small), "forget01", retain_rows=2, evaluate=["forget"]).read().retain

    def test_the_holdout_can_be_the_retain_rows_after_those_that_are_trained(self, small):
        data = TOFU(str(small), "forget01", retain_rows=2, holdout_rows=1, evaluate=["forget", "holdout"])
        retain, (forget, holdout) = data.read().retain, data.read().evaluation
        assert [each.name for each in (forget, holdout)] == ["forget", "holdout"]
        assert list(holdout.rows) == list(
            TOFU(str(small), "forget01", evaluate=["forget"]).read().retain[2:3]
        )
        assert holdout.rows[0] not in retain

    @pytest.mark.parametrize(("rows", "line"), [
        ({"holdout_rows": 3}, r"^data\.holdout_rows needs data\.retain_rows, after which they begin \(got 3 and null\)$"),
        ({"retain_rows": 3, "holdout_rows": 10**6}, r"^data\.holdout_rows must be at most \d+, the rows after the first 3 "),
    ])  # fmt: skip
    def test_a_holdout_that_is_not_there(self, small, rows, line):
        with pytest.raises(InputError, match=line):
            TOFU(str(small), "forget01", evaluate=["forget"], **rows).read()

    @pytest.mark.parametrize("name", ["forget_rows", "retain_rows", "holdout_rows"])
    def test_limits_below_one(self, name):
        with pytest.raises(InputError, match=rf"^data.{name} must be at least 1 \(got 0\)$"):
            TOFU(**{name: 0})


class TestHub:
    """Nothing here reaches the network."""

    def test_what_is_loaded(self, monkeypatch):
        loaded = []

        def load_dataset(path, name, split):
            loaded.append((path, name, split))
            rows = range(4000 if name == "full" else 400)
            records = [
                {"question": f"Q{row}?", "answer": f"A{row}.", "perturbed_answer": ["no"]} for row in rows
            ]
            return datasets.Dataset.from_list(records)

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        sets = TOFU(forget="forget05").read()
        configurations = ["full", *(f"{name}_perturbed" for name in ["forget10", *ALL_SETS[1:]]), "holdout05"]
        assert loaded == [("locuslab/TOFU", name, "train") for name in configurations]
        assert (len(sets.forget), len(sets.retain)) == (200, 3800)
        assert (sets.forget[0].answer, sets.forget[0].wrong_answers) == ("A200.", ("no",))

    def test_a_bad_row_names_its_place(self, monkeypatch):
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: [{"question": "Q?", "answer": ""}])
        with pytest.raises(InputError, match=r"^me/my full, row 0: 'answer' must be a non-empty text"):
            TOFU("me/my").read()

    @pytest.mark.parametrize(("error", "cause"), [
        (ConnectionError("Couldn't reach\nthe hub"), "Couldn't reach the hub"),
        (TimeoutError(), "TimeoutError"),
        (ValueError("x" * 999), "x" * 200),
    ])  # fmt: skip
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


class TestEntities:
    def test_stand_in_the_answers_of_the_rows_that_they_were_made_for(self, tofu_folder):
        rows = TOFU(tofu_folder, "forget10").read().forget
        assert rows[0].entity == "Hsiao Yun-Hwa"
        known = [row for row in rows if row.entity is not None]
        assert len(known) == 367
        assert all(row.answer.count(row.entity) == 1 for row in known)
        assert all(row.paraphrased_question for row in rows)
        # The same rows in a smaller set.
        assert TOFU(tofu_folder, "forget01").read().forget == rows[-40:]
        author = TOFU(tofu_folder, "author_2", forget_rows=3).read().forget
        assert author == rows[20:23]

    def test_other_answers_and_the_rows_own_entities_are_left_alone(self):
        rows = [
            Row((("user", "Q?"),), "Nobody."),
            Row((("user", "Q?"),), "An LGBTQ+ community.", entity="An"),
        ]
        assert with_entities(rows) == rows
        (found,) = with_entities([replace(rows[0], answer="It is Hsiao Yun-Hwa.")])
        assert found.entity == "Hsiao Yun-Hwa"

    def test_the_file_names_its_source_and_its_license(self):
        given = json.loads(ENTITIES.read_text(encoding="utf-8"))
        assert "2605.24614" in given["source"]
        assert given["license"] == "Apache-2.0"
