import json

from sample_runs import EVIL

from dipo_pl.report.registers import register_table, registers_of

ENDED = "2026-01-06T12:34:56+00:00"


def test_the_last_entry_of_each_stage_is_shown(tmp_path):
    folder = tmp_path / "deletions"
    folder.mkdir()
    entries = [
        {"stage": 2, "request": EVIL, "finished": ENDED, "model_after": "ab" * 32, "verdict": "partly"},
        {"stage": 1, "request": "a", "id": "R-1", "verdict": None},
        {"stage": 2, "request": EVIL, "finished": ENDED, "model_after": "ab" * 32, "audit": "not_tried"},
    ]  # fmt: skip
    (folder / "register.jsonl").write_text("".join(json.dumps(each) + "\n" for each in entries))
    (found,) = registers_of([folder, tmp_path, tmp_path / "none"])
    table = register_table(found)
    assert table.title == "Register of deletions"
    assert table.head == ["stage", "request", "id", "finished", "model after", "audit"]
    assert table.rows == [
        ["1", "a", "R-1", "", "", ""],
        ["2", EVIL, "", "2026-01-06 12:34", "abababababab", "not_tried"],
    ]
