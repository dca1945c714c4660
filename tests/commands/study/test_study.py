"""A study whose runs train: killed in the midst it goes on, and its report is made of what they measured."""

import json
import os
import signal
from pathlib import Path

import forked
import pytest
import yaml
from study_inputs import fork_run, until, write_study

from dipo_pl.commands.study import runner
from dipo_pl.configs import shipped
from dipo_pl.storage.run_folder import RunFolder

SCORES = (
    "memorization_score",
    "privacy_score",
    "privacy_mia",
    "unlearning_depth",
    "utility_score",
    "overall_score",
)
RUN = ("study", "--config", "s.yaml", "--jobs", "1")


AUDIT = yaml.safe_load(shipped()["study_smoke.yaml"].read_text())["after"]["audit"]


def test_a_whole_study_with_tuning_relearning_and_audits(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "launch", fork_run)
    write_study(
        tmp_path / "s.yaml",
        seeds=[0],
        rows={"DiPO": {}, "NPO + CE": {"configs": ["npo.yaml"], "tune": False}},
        after={"relearn": {"share": 0.2, "steps": 2, "lr": 1e-3}, "audit": AUDIT},
    )
    ended = cli(*RUN)
    assert ended.code == 0, ended.err
    results = json.loads(Path("runs/s/results.json").read_text())
    runs = results["runs"]
    assert {each["status"] for each in runs.values()} == {"finished"}
    row, tried = (
        runs["rows/dipo/seed-0"],
        (runs[f"tuning/dipo/{rate}/seed-100"] for rate in ("0.0001", "0.001")),
    )
    assert (
        row["learning_rate"]
        == max(tried, key=lambda each: (each["score"], -each["learning_rate"]))["learning_rate"]
    )
    run = RunFolder("runs/s/rows/dipo/seed-0")
    assert row["metrics"].items() <= run.final_metrics.items()
    assert row["before"].items() <= run.read_metrics()[0].items()
    assert row["weights"]["weights_at_start"] == runs["target/seed-0"]["weights"]["weights_at_end"]
    assert row["metrics"]["forget_quality"] <= 1
    assert row["step_seconds"] > 0
    assert row["memory_mib"] > 100
    assert [each["step"] for each in runs["rows/dipo/seed-0-relearn"]["curve"]] == [0, 2]
    page = Path("runs/s/README.md").read_text()
    assert "| DiPO | 1 | 1 cannot tell |" in page
    audits = {name: runs[f"rows/{name}/seed-0-audit"] for name in ("dipo", "npo-ce")}
    assert "retain_only/seed-0-audit" not in runs
    assert all("torch" in each["versions"] for each in runs.values())
    # The two models beside them are attacked once for both rows.
    kept = [each.name for each in Path("runs/s/references").rglob("*.json")]
    assert len(kept) == len({*kept}) == 6
    for name, audit in audits.items():
        scores = {key: audit["metrics"][key] for key in SCORES}
        assert all(0 <= each <= 1 for each in scores.values())
        last = RunFolder(f"runs/s/rows/{name}/seed-0-audit").final_metrics
        assert scores.items() <= last.items()
        assert list(audit["audit"]["attacks"]) == [
            "plain_question",
            "leak_at_k",
            "membership",
            "unlearning_depth",
        ]
        assert "not_tried" not in {
            audit["audit"]["attacks"][each] for each in ("membership", "unlearning_depth")
        }
        title = {"dipo": "DiPO", "npo-ce": "NPO + CE"}[name]
        cells = " | ".join(f"{scores[key]:.3f}" for key in SCORES)
        status = audit["audit"]["status"].replace("_", " ")
        assert f"| {title} | 1 | 1 {status} | {cells} |" in page
        # The models beside them are in the table too.
        assert audit["metrics"]["retain_only_privacy_score"] == 1
    assert "| memorization | privacy |" in page.lower()
    # Nothing needs the models any more.
    assert not [*Path("runs/s").rglob("*.safetensors")]
    assert row["command"] in page
    for name in (
        "forget_quality_log10_p",
        "forget_probability",
        "model_utility",
        "priv_leak",
        "relearning_area",
        "overall_score",
    ):
        assert f"]({name}.png)" in page
        assert Path(f"runs/s/{name}.png").stat().st_size > 5000
    again = cli(*RUN, "--report")
    assert again.code == 0, again.err
    assert Path("runs/s/README.md").read_text() == page
    # The row's command alone repeats it.
    words = row["command"].split()[1:]
    assert cli("study", "--config", "s.yaml", "--report", "--results", "nowhere").code == 2
    assert words[:3] == ["fit", "--config", "smoke.yaml"]


def test_killed_in_the_midst_it_takes_its_runs_along_and_goes_on(cli, tmp_path):
    """A real process, killed with SIGKILL while its run trains."""
    held = {"class_path": "study_inputs.HoldOnce", "init_args": {"step": 4}}
    without = dict.fromkeys(("target", "retain_only", "learning_rate", "after"))
    rows = {"DiPO": {"options": {"trainer.callbacks": [held]}}}
    write_study(tmp_path / "s.yaml", seeds=[0], rows=rows, **without)
    study = forked.command(
        RUN, tmp_path / "out", folder=tmp_path, environment={"PYTHONPATH": os.environ["PYTHONPATH"]}
    )
    until(Path("held").exists)
    run = int(Path("held").read_text())
    os.kill(study, signal.SIGKILL)
    assert forked.wait(study) == -signal.SIGKILL
    # Its run does not outlive it.
    until(lambda: not Path(f"/proc/{run}").exists())
    record = json.loads(Path("runs/s/results.json").read_text())["runs"]["rows/dipo/seed-0"]
    assert record["status"] == "running"
    ended = cli(*RUN)
    assert ended.code == 0, ended.err
    record = json.loads(Path("runs/s/results.json").read_text())["runs"]["rows/dipo/seed-0"]
    assert record["status"] == "finished"
    assert record["resumed_at_steps"] == [3]


@pytest.fixture(autouse=True)
def _runs_find_what_the_tests_import(monkeypatch):
    import sys

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
