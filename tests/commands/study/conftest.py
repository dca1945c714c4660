"""A study in an empty folder, whose runs are written without training."""

from pathlib import Path

import pytest
from study_inputs import Written, write_study
from study_records import results_of_two_rows

from dipo_pl.commands.study import page, runner
from dipo_pl.commands.study.results import Results


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Written:
    """What a study starts."""
    write_study(tmp_path / "s.yaml")
    made = Written()
    monkeypatch.setattr(runner, "launch", made)
    monkeypatch.setattr(runner, "TICK", 0)
    # Drawing takes most of the time of such a study; test_study.py draws.
    monkeypatch.setattr(page, "drawable", lambda: False)
    return made


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """Records of two rows and three seeds."""
    return results_of_two_rows(tmp_path)
