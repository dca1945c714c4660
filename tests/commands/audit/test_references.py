"""`dipo-pl audit --references`: what is found of the target and the retain-only model is kept for other audits."""

import shutil
from pathlib import Path

import pytest
from audit_inputs import SHORT, figures
from tiny_models import save_tiny_model

KEPT = ("--references", "kept")


@pytest.fixture
def audited(world, cli):
    """Audit a run, and return its figures."""
    second = world / "runs" / "second"
    shutil.copytree(world / "runs" / "unlearned", second)
    save_tiny_model(second / "hf", seed=5, spread=0.3, max_position_embeddings=128)

    def run(name, *options):
        ended = cli("audit", f"runs/{name}", *SHORT[2:], *options)
        assert ended.code == 0, ended.err
        return figures(world / "runs" / f"{name}-audit")

    return run


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.json")}


def test_the_second_audit_takes_what_the_first_has_found(world, audited):
    alone = audited("second")
    shutil.rmtree(world / "runs" / "second-audit")
    assert audited("unlearned", *KEPT) != alone
    kept = times(world / "kept")
    # Four attacks on two models.
    assert len({path.name for path in kept}) == len(kept) == 8
    assert not any("unlearned" in path.name for path in kept)
    assert audited("second", *KEPT) == alone
    assert times(world / "kept") == kept
    # Only the run's own model was attacked.
    parts = {path.stem for path in (world / "runs" / "second-audit" / "attacks" / "parts").iterdir()}
    assert {each.rpartition("-")[2] for each in parts} == {"unlearned", "weights"}


def test_what_was_found_of_another_model_or_by_other_settings_is_not_taken(world, audited):
    audited("unlearned", *KEPT)
    kept = times(world / "kept")
    save_tiny_model(world / "runs" / "never" / "hf", seed=7, spread=0.3, max_position_embeddings=128)
    alone = audited("second")
    shutil.rmtree(world / "runs" / "second-audit")
    assert audited("second", *KEPT) == alone
    new = times(world / "kept").keys() - kept.keys()
    assert {each.stem.rpartition("-")[2] for each in new} == {"retain_only"}
    assert len(new) == 4
    before = len(times(world / "kept"))
    audited("second", *KEPT, "--seed", "1")
    assert len(times(world / "kept")) == before + 8


def test_a_damaged_file_is_made_again(world, audited):
    whole = audited("unlearned", *KEPT)
    for path in times(world / "kept"):
        path.write_text('{"identity": "x", "value": 0}' if "target" in path.name else "{")
    shutil.rmtree(world / "runs" / "unlearned-audit")
    assert audited("unlearned", *KEPT) == whole


def test_a_file_in_the_folders_place_is_refused(world, refused_line):
    (world / "kept").write_text("")
    assert refused_line(*SHORT, *KEPT) == (
        "dipo-pl: error: --references must be a folder (got kept): name another one"
    )
