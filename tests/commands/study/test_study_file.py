"""A study file is read strictly: each wrong key or value is one line that names it."""

from pathlib import Path

import pytest
from study_inputs import STUDY, write_study

from dipo_pl.commands.study.study_file import StudyFile
from dipo_pl.errors import InputError


def read(folder: Path, **changes: object) -> StudyFile:
    write_study(folder / "s.yaml", **changes)
    return StudyFile.read(folder / "s.yaml")


def test_a_sweep_is_a_row_for_each_combination(tmp_path):
    sweep = {"a.b": [0.1, 1], "c": {"few": {"class_path": "X"}, "many": None}}
    rows = read(tmp_path, rows={"alpha": {"sweep": sweep, "options": {"d": 2}, "tune": False}}).rows
    assert [each.name for each in rows] == ["alpha 0.1 few", "alpha 0.1 many", "alpha 1 few", "alpha 1 many"]
    assert rows[0].options == {"d": 2, "a.b": 0.1, "c": {"class_path": "X"}}
    assert rows[3].options == {"d": 2, "a.b": 1, "c": None}
    assert [each.slug for each in rows][:2] == ["alpha-0.1-few", "alpha-0.1-many"]
    assert not any(each.tune for each in rows)


def test_a_name_may_be_in_any_script(tmp_path):
    rows = read(tmp_path, rows={"λ 0.1": {}, "δ 0.1": {}, "Метод (2)": {}, "方法": {}, "a_b": {}}).rows
    assert [each.slug for each in rows] == ["λ-0.1", "δ-0.1", "метод-2", "方法", "a-b"]


def test_learning_rates_may_be_written_as_yaml_reads_texts(tmp_path):
    (tmp_path / "s.yaml").write_text(
        "configs: [smoke.yaml]\nrows: {A: }\nseeds: [0]\nlearning_rate: {seeds: [1], values: [5e-5, 1.0e-4]}\n"
    )
    assert StudyFile.read(tmp_path / "s.yaml").learning_rate.rates == [5e-5, 1e-4]


RATES = STUDY["learning_rate"]


@pytest.mark.parametrize(("changes", "line"), [
    ({"rwos": {}}, "has the unknown key 'rwos' (did you mean rows?): the keys are configs, rows"),
    ({"rows": None}, "lacks the key 'rows'"),
    ({"rows": {}}, "rows must be a mapping of at least one name to its configs (got {})"),
    ({"rows": ["DiPO"]}, "rows must be a mapping of at least one name to its configs (got ['DiPO'])"),
    ({"rows": {"A": {"option": {}}}}, "row 'A' has the unknown key 'option' (did you mean options?)"),
    ({"rows": {"A": ["npo.yaml"]}}, "row 'A' must be a mapping with some of the keys configs, options, sweep, tune"),
    ({"rows": {"A": {"name": "B"}}}, "row 'A' has the unknown key 'name'"),
    ({"rows": {"A": {"configs": "npo.yaml"}}}, "row 'A': configs must be a list of texts (got 'npo.yaml')"),
    ({"rows": {"A": {"options": {"seed_everything": 1}}}}, "gives seed_everything, which the study sets for each run"),
    ({"rows": {"A": {"sweep": {"x": 3}}}}, "sweep of x must be a list, or a mapping of labels to values (got 3)"),
    ({"rows": {"A": {"sweep": {"x": [1]}, "options": {"x": 2}}}}, "gives x both in sweep and in options"),
    ({"rows": {"A": {"tune": 1}}}, "row 'A': tune must be true or false (got 1)"),
    ({"rows": {"NPO+CE": {}, "NPO CE": {}}}, "rows 'NPO+CE' and 'NPO CE' would share the folder rows/npo-ce: rename one"),
    ({"rows": {"A": {"sweep": {"x": [1, 1]}}}}, "two rows are named 'A 1'"),
    ({"rows": {"+": {}}}, "row '+' needs a name with a letter or a digit (got '+')"),
    ({"rows": {"λ": {}, "Λ": {}}}, "rows 'λ' and 'Λ' would share the folder rows/λ: rename one"),
    ({"rows": {"A": {"options": {"model.optimizer.lr": 1}}}}, "row 'A' gives model.optimizer.lr, which learning_rate"),
    ({"rows": {"A": {"sweep": {"model.optimizer.lr": [1]}}}}, "row 'A 1' gives model.optimizer.lr, which learning_rate"),
    ({"rows": {"A": {"options": {"model.policy.path": "x"}}}}, "row 'A' gives model.policy.path, and every row starts from"),
    ({"configs": []}, "configs must be a list of at least one text (got [])"),
    ({"seeds": []}, "seeds must be a list of at least one whole number, none below 0 (got [])"),
    ({"seeds": [0, -1]}, "seeds must be a list of at least one whole number, none below 0 (got [0, -1])"),
    ({"after": {"audit": {"config": ["a.yaml"]}}}, "after.audit.config must be the name of one config (got ['a.yaml'])"),
    ({"after": {"audit": {"against": "x"}}}, "after.audit gives against, which the study sets for each run"),
    ({"seeds": [1, 1]}, "seeds must be a list without duplicates (got [1, 1])"),
    ({"seeds": [0, 100]}, "seed 100 is both in seeds and in learning_rate.seeds"),
    ({"threads": 0}, "threads must be at least 1 (got 0)"),
    ({"threads": "2"}, "threads must be a whole number (got '2')"),
    ({"keep_weights": "no way"}, "keep_weights must be true or false (got 'no way')"),
    ({"after": {"steal": {}}}, "after has the unknown probe 'steal': the probes are relearn, quantize, audit"),
    ({"after": ["relearn"]}, "after must be a mapping of probes to their options (got ['relearn'])"),
    ({"after": {"relearn": 5}}, "after.relearn must be a mapping of dotted keys to values (got 5)"),
    ({"after": {"relearn": {"name": "x"}}}, "after.relearn gives name, which the study sets for each run"),
    ({"after": {"relearn": {"config": "mine.yaml"}}}, "after.relearn gives config, which the study sets for each run"),
    ({"after": {"quantize": {"output_dir": "x"}}}, "after.quantize gives output_dir, which the study sets for each run"),
    ({"after": {"audit": {"seed_everything": 1}}}, "after.audit gives seed_everything, which the study sets for each run"),
    ({"target": {"config": []}}, "target has the unknown key 'config' (did you mean configs?)"),
    ({"target": {"seed": "0"}}, "target: seed must be a whole number, not below 0 (got '0')"),
    ({"retain_only": {"seed": -1}}, "retain_only: seed must be a whole number, not below 0 (got -1)"),
    ({"retain_only": {"seed": True}}, "retain_only: seed must be a whole number, not below 0 (got True)"),
    ({"rows": {"A": {"seed": 1}}}, "row 'A' has the unknown key 'seed'"),
    ({"learning_rate": RATES | {"values": []}}, "values must be a list of at least one learning rate (got [])"),
    ({"learning_rate": RATES | {"values": ["x"]}}, "learning_rate.values must be numbers (got ['x'])"),
    ({"learning_rate": RATES | {"values": [0]}}, "learning_rate.values must be a finite number > 0 (got 0.0)"),
    ({"learning_rate": RATES | {"values": [1e-4, "1e-4"]}}, "gives a learning rate twice"),
    ({"learning_rate": RATES | {"options": {"model.optimizer.lr": 1}}}, "gives model.optimizer.lr, which takes each of"),
    ({"learning_rate": {"seeds": [1]}}, "learning_rate lacks the key 'values'"),
    ({"options": {"name": "x"}}, "options gives name, which the study sets for each run"),
])  # fmt: skip
def test_what_is_wrong_is_named(tmp_path, changes, line):
    with pytest.raises(InputError) as caught:
        read(tmp_path, **changes)
    assert line in str(caught.value)
    assert (
        str(caught.value).startswith(str(tmp_path / "s.yaml")) or "learning_rate" in line or "threads" in line
    )


@pytest.mark.parametrize("content", [b"rows: [", b"a: 1\na: 2", b"rows: \xff", None], ids=str)
def test_a_file_that_cannot_be_read(tmp_path, content):
    path = tmp_path / "s.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=f"^cannot read the study in {path} \\(.+\\)$"):
        StudyFile.read(path)


def test_a_file_that_is_no_mapping(tmp_path):
    (tmp_path / "s.yaml").write_text("- 1")
    with pytest.raises(InputError, match=r"s\.yaml must be a mapping"):
        StudyFile.read(tmp_path / "s.yaml")
