"""Files outside of a run's folder that hold the rows: removed with the run, or named."""

import shutil

import pytest
import yaml

from dipo_pl.storage.files import locked


@pytest.mark.parametrize(("path", "listed"), [
    ("{there}", True), ("states", True), ("{run}/reference", False), ("{there}/gone", False), (None, False),
])  # fmt: skip
def test_states_outside_of_the_run_are_named(run, cli, tmp_path, path, listed):
    there = tmp_path / "shared-states"
    there.mkdir()
    given = path and path.format(there=there, run=run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    reference = {"class_path": "dipo_pl.StoredStates", "init_args": {"path": given}}
    config["model"]["init_args"]["reference"] = reference
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    ended = cli("purge", run, "--yes")
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    line = f"  {given}: the reference's states on the rows: remove by hand"
    assert (line in lines, "still holds the rows:" in lines) == (listed, listed)
    assert there.is_dir()


def test_short_runs_of_the_search_for_a_learning_rate_go_too(run, cli, smoke, manifest):
    trials = run.with_name("smoke-tune")
    for name in ("1e-05", "2.5e-05", "mine"):
        shutil.copytree(smoke, trials / name)
    with locked(trials / "1e-05"):
        assert f"{trials / '1e-05'} is used by another process" in cli("purge", run, "--yes").errors[0]
    assert (run / "checkpoints").exists()
    ended = cli("purge", run, "--yes")
    assert ended.code == 0, ended.err
    assert (
        f"  {trials / '1e-05'}: a short run of --tune, with its texts and weights" in ended.out.splitlines()
    )
    # A folder that is not named by a rate is none of them.
    assert [each.name for each in trials.iterdir()] == ["mine"]
    assert {"smoke-tune/1e-05", "smoke-tune/2.5e-05"} < {*manifest(run)["purged"]["removed"]}


@pytest.mark.parametrize("within", ["", "evaluation/step-000006.json"])
def test_other_runs_that_measured_the_rows_are_named(run, cli, smoke, within):
    """The retain-only model, and the other stages of a sequence, until they are purged themselves."""
    stages = run.with_name("sequence")
    stages.mkdir()
    first = run.rename(stages / "stage-1")
    config = yaml.safe_load((first / "config.yaml").read_text())
    others = [run.with_name("never"), *(stages / name for name in ("stage-1-retain_only", "stage-2"))]
    for each in others:
        shutil.copytree(smoke, each)
    config["forget_quality"]["retain_result"] = str(others[0] / within)
    (first / "config.yaml").write_text(yaml.safe_dump(config))

    def named():
        ended = cli("purge", first, "--yes")
        assert ended.code == 0, ended.err
        return [
            each
            for each in others
            if f"  {each}: texts of its evaluations: dipo-pl purge {each}" in ended.out
        ]

    assert named() == others
    assert cli("purge", others[2], "--yes").code == 0
    assert named() == others[:2]
    next(others[1].glob("evaluation/*")).write_text("{")
    assert named() == others[:2]


@pytest.mark.parametrize(
    ("given", "named"), [("runs/never", True), ("llama2-7b_retain90", False), ("/no/run", False)]
)
def test_a_retain_only_run_that_cannot_be_seen_from_here_is_named(run, cli, given, named):
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["forget_quality"]["retain_result"] = given
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert (f"  {given}, a relative path: if it is a run" in cli("purge", run, "--yes").out) is named
