"""Time left of a study, worked by hand."""

import pytest

from dipo_pl.commands.study.progress import readable, seconds_left


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
    ([("rows", 5.0, None)], ["rows"], {}, 1, None),
])  # fmt: skip
def test_seconds_left(running, waiting, known, at_a_time, left):
    assert seconds_left(running, waiting, known, at_a_time) == (None if left is None else pytest.approx(left))


@pytest.mark.parametrize(
    ("seconds", "text"), [(12.4, "12 s"), (60, "1 min"), (3599, "1 h 0 min"), (9000, "2 h 30 min")]
)
def test_readable(seconds, text):
    assert readable(seconds) == text
