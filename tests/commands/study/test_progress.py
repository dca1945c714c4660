"""Time left of a study, worked by hand."""

import json
import time
from types import SimpleNamespace

import pytest

from dipo_pl.commands.study.plan import Job, Kind
from dipo_pl.commands.study.progress import Part, seconds_left, shares, status_text
from dipo_pl.commands.study.study_file import Recipe


@pytest.mark.parametrize(("running", "waiting", "known", "at_a_time", "left"), [
    # 60 s of 100 are over; two of 100 wait.
    ([("rows", 60.0, None)], ["rows", "rows"], {"rows": [90.0, 110.0]}, 1, 240.0),
    # The share that is done tells more than others of its kind: a quarter in 50 s is 200 s.
    ([("rows", 50.0, 0.25)], [], {"rows": [100.0]}, 1, 150.0),
    ([("rows", 50.0, 0.25)], ["rows"], {}, 1, 350.0),
    # Longer than others: about to end.
    ([("rows", 130.0, None)], ["target"], {"rows": [100.0], "target": [40.0]}, 1, 40.0),
    # Two at a time, but not faster than the longest one.
    ([("rows", 0.0, None), ("target", 0.0, None)], ["rows"], {"rows": [100.0], "target": [300.0]}, 2, 300.0),
    ([("rows", 0.0, None)], ["rows"] * 3, {"rows": [100.0]}, 2, 200.0),
    # A kind of which none has ended counts as the others do.
    ([], ["relearn", "rows"], {"rows": [100.0]}, 1, 200.0),
    ([], ["relearn"], {"rows": [100.0] * 3, "target": [300.0]}, 1, 150.0),
    ([("rows", 5.0, None)], ["rows"], {}, 1, None),
    # Resumed at half: a quarter took 50 s, so that the last quarter takes as long, and a whole run 200 s.
    ([("rows", 50.0, 0.75, 0.5)], ["rows"], {}, 1, 250.0),
    # Resumed at half, and nothing done yet since: half of what others took.
    ([("rows", 10.0, 0.5, 0.5)], [], {"rows": [100.0]}, 1, 40.0),
])  # fmt: skip
def test_seconds_left(running, waiting, known, at_a_time, left):
    parts = [Part(*each) for each in running]
    assert seconds_left(parts, waiting, known, at_a_time) == (None if left is None else pytest.approx(left))


@pytest.mark.parametrize(("resumed", "limit", "expected"), [
    ([], {"max_steps": 10, "max_epochs": -1}, (0.6, 0.0)),
    ([2, 4], {"max_steps": 10, "max_epochs": -1}, (0.6, 0.4)),
    # Six steps are three epochs of four.
    ([4], {"max_steps": -1, "max_epochs": 4}, (0.75, 0.5)),
    ([6], {"max_steps": 10, "max_epochs": -1}, (0.6, 0.6)),
])  # fmt: skip
def test_the_share_that_earlier_starts_had_done(tmp_path, resumed, limit, expected):
    (tmp_path / "run").mkdir()
    manifest = {"status": "running", "resumed_at_steps": resumed} | limit
    (tmp_path / "run/manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "run/metrics.jsonl").write_text(json.dumps({"step": 6, "epoch": 3.0}) + "\n")
    assert shares(Job("run", Kind.ROW, 0, Recipe([], {})), tmp_path) == pytest.approx(expected)


def test_the_status_line_says_how_far_each_run_is(tmp_path):
    """Six of ten steps took a minute."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/manifest.json").write_text(json.dumps({"status": "running", "max_steps": 10}))
    (tmp_path / "run/metrics.jsonl").write_text(json.dumps({"step": 6}) + "\n")
    running = [
        SimpleNamespace(job=Job(key, Kind.ROW, 0, Recipe([], {}), row=row), since=time.monotonic() - 60)
        for key, row in (("run", "A"), ("none", "B"))
    ]
    runner = SimpleNamespace(
        running=running, todo=[], ended=1, total=3, plan=SimpleNamespace(folder=tmp_path)
    )
    text = status_text(runner, SimpleNamespace(runs={}), 2, {}, None)
    assert text == "study: 1/3 runs done, about 0:00:40 left; running: A, seed 0 (60%); B, seed 0"
