"""The results in docs/results: every page is what the command makes of the records beside it."""

import json
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "docs" / "results"
STUDIES = sorted(path.parent for path in RESULTS.glob("*/results.json"))


def name_of(folder: Path) -> str:
    return json.loads((folder / "results.json").read_text())["study"]["name"]


# Studies of code that was tried and is not kept are left out.
SHIPPED = [each for each in STUDIES if (ROOT / "configs" / f"{name_of(each)}.yaml").exists()]


def test_results_are_published():
    assert SHIPPED


@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)
def test_the_page_and_its_pictures_are_what_the_command_makes(cli, folder, tmp_path):
    shutil.copy(folder / "results.json", tmp_path)
    # A report rests on the records alone, whatever the study file.
    assert cli("study", "--config", "study_smoke.yaml", "--results", str(tmp_path), "--report").code == 0
    assert (tmp_path / "README.md").read_text() == (folder / "README.md").read_text()
    assert files(tmp_path) == files(folder)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name != ".lock"}


def test_the_leaderboard_is_what_the_command_makes(cli, tmp_path):
    page = tmp_path / "leaderboard.md"
    assert cli("leaderboard", *map(str, SHIPPED), "--output", str(page)).code == 0
    assert page.read_text() == (RESULTS.parent / "leaderboard.md").read_text()


@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)
def test_every_record_names_its_command_machine_commit_and_time(folder):
    runs = json.loads((folder / "results.json").read_text())["runs"].values()
    finished = [each for each in runs if each["status"] == "finished"]
    assert all(
        each[key] for each in finished for key in ("command", "machine", "commit", "started", "seconds")
    )
    # Audits recorded no versions of packages until this study was made; its other runs, of the same hours, do.
    early = [each for each in finished if not each.get("versions")]
    assert len(early) == (3 if folder.name == "audits" else 0)
    assert {each["kind"] for each in early} <= {"audit"}
