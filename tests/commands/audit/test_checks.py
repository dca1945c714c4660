"""An audit's rows and models are those of its run, or one line says which are not."""

import json
import shutil

import pytest
import yaml
from audit_runs import NAMES, rows_of, write_rows
from tiny_models import save_tiny_model

from dipo_pl.cli.run import data_module
from dipo_pl.commands.audit.checks import check_never_saw, check_rows, check_weights
from dipo_pl.commands.audit.models import sources_of
from dipo_pl.commands.probes.finished_run import FinishedRun
from dipo_pl.errors import InputError
from dipo_pl.models.pretrained import Pretrained
from dipo_pl.modules.finetuning import FineTuning
from dipo_pl.storage.fingerprints import rows_fingerprint, weights_fingerprint


@pytest.fixture
def audited(world, monkeypatch, manifest):
    """Read the audited run with other entries in its manifest."""
    monkeypatch.chdir(world)

    def read(**entries):
        manifest(world / "runs" / "unlearned", **entries)
        return FinishedRun.read("runs/unlearned")

    return read


def data_of(run):
    data = data_module(run.config)
    data.connect(FineTuning(Pretrained(**run.policy)))
    data.setup("validate")
    return data


def test_a_real_run_is_its_own(tmp_path, cli):
    save_tiny_model(tmp_path / "target", max_position_embeddings=256)
    short = (
        "forget_quality.generate_every=0 samples.rows=0 trainer.max_epochs=1 trainer.limit_train_batches=1"
    )
    policy = ("--model.policy", "Pretrained", "--model.policy.path", "target")
    ended = cli("fit", "--config", "smoke.yaml", *policy, *(f"--{each}" for each in short.split()))
    assert ended.code == 0, ended.err
    run = FinishedRun.read("runs/smoke")
    assert run.manifest["data"]["evaluation"].keys() >= {"forget", "retain"}
    check_rows(run, data_of(run))
    sources = sources_of(run, None, None)
    assert sources.keys() == {"target", "unlearned"}
    check_weights(run, sources, False)
    save_tiny_model(tmp_path / "target", seed=1, max_position_embeddings=256)
    with pytest.raises(InputError, match="is no longer the model"):
        check_weights(run, sources, False)


def test_rows_of_the_next_request_are_not_audited_under_this_runs_name(audited):
    run = audited()
    rows = data_of(run).row_sets.forget
    before = {"rows": len(rows), "fingerprint": rows_fingerprint(rows)}
    run = audited(data={"forget": before, "evaluation": {"forget": before}})
    check_rows(run, data_of(run))
    write_rows(run.path.parent.parent / "forget.jsonl", rows_of(NAMES[:4]))
    line = "the forget rows are not those of runs/unlearned \\(5 rows then, 4 now\\): put the data back"
    with pytest.raises(InputError, match=line):
        check_rows(run, data_of(run))
    del run.manifest["data"]["forget"]
    with pytest.raises(InputError, match="the forget rows measured are not those of runs/unlearned"):
        check_rows(run, data_of(run))


@pytest.mark.parametrize(("command", "train_on", "rows", "refused", "warned"), [
    ("fit", "retain", "ours", False, False),
    ("fit", "all", "ours", True, False),
    ("fit", "forget", "ours", True, False),
    ("fit", "pairs", "ours", True, False),
    ("validate", "all", "ours", False, False),
    ("fit", "retain", "others", False, True),
    ("fit", "all", None, False, False),
])  # fmt: skip
def test_a_run_that_was_trained_on_the_rows_knew_them(
    audited, manifest, capsys, command, train_on, rows, refused, warned
):
    run = audited(data={"forget": {"fingerprint": "ours"}})
    never = run.path.with_name("never")
    manifest(never, command=command, data={"forget": {"fingerprint": rows}} if rows else {})
    config = yaml.safe_load((never / "config.yaml").read_text())
    config["data"]["init_args"]["train_on"] = train_on
    (never / "config.yaml").write_text(yaml.safe_dump(config))
    sources = {"retain_only": Pretrained("runs/never/hf")}
    if refused:
        with pytest.raises(InputError, match=f"trained with the forget rows .*data.train_on {train_on}"):
            check_never_saw(run, sources)
    else:
        check_never_saw(run, sources)
    assert ("runs/never has other forget rows than runs/unlearned" in capsys.readouterr().err) == warned


@pytest.mark.parametrize(("against", "line"), [
    ("runs/unlearned", "the retain-only model runs/unlearned/hf is the unlearned model runs/unlearned/hf: their weights"),
    ("target", "the retain-only model target is the target target: their weights"),
    ("copy", "the retain-only model copy is the unlearned model runs/unlearned/hf: their weights"),
])  # fmt: skip
def test_a_model_is_not_compared_with_itself(world, refused_line, against, line):
    shutil.copytree(world / "runs" / "unlearned" / "hf", world / "copy")
    assert line in refused_line("audit", "runs/unlearned", "--against", against)


def test_the_target_is_what_the_run_started_from(audited, world):
    start = weights_fingerprint(Pretrained("target").load())
    rounded = weights_fingerprint(Pretrained("target").load().bfloat16())
    for dtype, weights in (("torch.float32", start), ("torch.bfloat16", rounded)):
        run = audited(policy={"weights_at_start": weights, "dtype": dtype})
        assert check_weights(run, sources_of(run, None, None), False)["target"] == start
    run = audited(policy={"weights_at_start": "others", "dtype": "torch.float32"})
    with pytest.raises(
        InputError, match="the target target is no longer the model that runs/unlearned started from"
    ):
        check_weights(run, sources_of(run, None, None), False)
    # The user says what the target is.
    check_weights(run, sources_of(run, "target", None), True)


@pytest.mark.parametrize(("ended", "holds"), [("2026-01-01", True), ("2026-01-03", False), (None, True)])
def test_the_target_of_frozen_weights_has_ended_before(audited, world, ended, holds):
    shutil.copytree(world / "target", world / "runs" / "knows" / "hf")
    (world / "runs" / "knows" / "manifest.json").write_text(json.dumps({"ended": ended}))
    run = audited(policy={"frozen_weights": "a", "weights_at_start": "b"}, started="2026-01-02")
    sources = {"target": Pretrained("runs/knows/hf")}
    if holds:
        assert check_weights(run, sources, False).keys() == {"target"}
    else:
        with pytest.raises(InputError, match="is no longer the model"):
            check_weights(run, sources, False)
