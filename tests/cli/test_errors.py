"""Bad input: one line that names the thing and says what to do, exit code 2, nothing half-written."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

SMOKE = ("fit", "--config", "smoke.yaml")

# What is given, and what the one line must say.
CONFIGURATION = [
    (
        ("fit", "--config", "nope.yaml"),
        "no config nope.yaml: neither a file here nor a shipped config (altpo.yaml, ",
    ),
    (("fit", "--config", "no/such.yaml"), "no config file no/such.yaml"),
    (("fit", "--config", "broken.yaml"), "in the config broken.yaml"),
    (("fit", "--config", "empty.yaml"), "in the config empty.yaml"),
    (("fit",), "required: fit.data, fit.model"),
    (("fly",), "no command 'fly'"),
    ((*SMOKE, "--foo", "1"), "--foo"),
    ((*SMOKE, "--model.betta", "1"), "model: there is no option 'betta'"),
    ((*SMOKE, "--model.forget_loss.betta", "1"), "model.forget_loss: there is no option 'betta'"),
    (
        (*SMOKE, "--model.forget_loss.beta", "x"),
        "model.forget_loss.beta: must be a value of type float, got x",
    ),
    (
        (*SMOKE, "--model.forget_loss", "NPOO"),
        "model.forget_loss: no class NPOO (`--model.help Unlearning`",
    ),
    ((*SMOKE, "--model", "Unlearn"), "model: no class Unlearn: use FineTuning, Unlearning"),
    (
        (*SMOKE, "--data.prompt.system", "x"),
        "data.prompt: name a class first: use ChatTemplate, Continuation",
    ),
    (
        (*SMOKE, "--data.train_on", "x"),
        "data.train_on: must be one of 'pairs', 'all', 'forget', 'retain', got x",
    ),
    ((*SMOKE, "--trainer.max_epochs", "x"), "trainer.max_epochs: must be a value of type int, got x"),
    ((*SMOKE, "--trainer.strategy", "zz"), "strategy='zz'"),
    ((*SMOKE, "--model.forget_loss.beta", "-1"), "DiPO.beta must be a finite number > 0, got -1"),
    ((*SMOKE, "--model.retain_loss.beta", "0"), "DiPORetain.beta must be a finite number > 0, got 0"),
    ((*SMOKE, "--model.constructor.alpha", "0"), "LogitModulation.alpha must be a finite number > 0, got 0"),
    ((*SMOKE, "--model.constructor.filter.rate", "1.5"), "TopFraction.rate must lie in (0, 1], got 1.5"),
    (
        (*SMOKE, "--model.retain_loss", "DiPO"),
        "set model.forget_loss to DiPO and model.retain_loss to DiPORetain",
    ),
    (
        (*SMOKE, "--model.retain_loss", "DPO"),
        "model.retain_loss: DPO compares a row with its alternate, which only forget rows have",
    ),
    (
        (*SMOKE, "--model.forget_loss", "RMU", "--model.forget_loss.layer", "2"),
        "a loss acts on layer 2, and LlamaForCausalLM has layers 0 to 1: set its `layer`",
    ),
    (
        (*SMOKE, "--model.reference", "AdapterOff"),
        "model.reference is AdapterOff, and the policy has no adapter to be switched off",
    ),
    ((*SMOKE, "--model.retain_weight", "-1"), "model.retain_weight must be a finite number >= 0, got -1"),
    ((*SMOKE, "--model.warmup", "1"), "model.warmup must be a share of the steps in [0, 1), got 1"),
    ((*SMOKE, "--model.token_budget", "0"), "model.token_budget must be at least 1, got 0"),
    ((*SMOKE, "--data.batch_size", "0"), "data.batch_size must be at least 1, got 0"),
    (
        (*SMOKE, "--data.forget_authors", "4"),
        "data.forget_authors must lie between 1 and data.authors - 1, got 4 of 4",
    ),
    ((*SMOKE, "--data.evaluate", "[forget, nought]"), "data.evaluate names 'nought'"),
    ((*SMOKE, "--forget_quality.utility_sets", "[nought]"), "forget_quality.utility_sets names 'nought'"),
    (
        (*SMOKE, "--forget_quality.max_new_tokens", "0"),
        "forget_quality.max_new_tokens must be at least 1, got 0",
    ),
    (
        (*SMOKE, "--model.retain_loss", "NPOO"),
        "model.retain_loss: no class NPOO: use CEU, CrossEntropy, DPO",
    ),
    ((*SMOKE, "--data.train_on", "all"), "Unlearning trains on pairs, and data.train_on is all"),
    (
        (*SMOKE, "--model", "FineTuning"),
        "FineTuning trains on all or retain or forget, and data.train_on is pairs",
    ),
    (
        (*SMOKE, "--trainer.max_epochs", "-1"),
        "training has no end: set trainer.max_epochs or trainer.max_steps",
    ),
    (
        (*SMOKE, "--model.policy", "Pretrained", "--model.policy.path", "there/nope"),
        "no model folder there/nope",
    ),
    ((*SMOKE, "--output_dir", "empty.yaml"), "cannot make the run folder empty.yaml/smoke"),
    ((*SMOKE, "--name", ""), "--name must be the name of one folder, got ''"),
    ((*SMOKE, "--name", "../out"), "--name must be the name of one folder, got '../out'"),
    ((*SMOKE, "--config", "no_trainer.yaml"), "trainer: must be a mapping of keys, got null"),
    ((*SMOKE, "--model.optimizer.lr", "-1"), "Invalid learning rate: -1"),
    ((*SMOKE, "--data.workers", "-1"), "data.workers must be at least 0, got -1"),
    ((*SMOKE, "--ckpt_path", "list.ckpt"), "cannot read the checkpoint list.ckpt"),
    ((*SMOKE, "--samples.rows", "-1"), "samples.rows must be at least 0"),
    (
        (*SMOKE, "--forget_quality.generate_every", "-1"),
        "forget_quality.generate_every must be at least 0, got -1",
    ),
    (
        (*SMOKE, "--trainer.val_check_interval", "0"),
        "trainer.val_check_interval must be greater than 0, got 0",
    ),
    (
        (*SMOKE, "--trainer.check_val_every_n_epoch", "0"),
        "trainer.check_val_every_n_epoch must be greater than 0, got 0",
    ),
    (
        (*SMOKE, "--data.evaluate", "[]", "--forget_quality.utility_sets", "[]"),
        "data.evaluate names no set; this data has forget, retain, holdout",
    ),
    (
        (*SMOKE, "--collapse_guard.lost_utility", "0"),
        "collapse_guard.lost_utility must be a share in (0, 1], got 0",
    ),
    ((*SMOKE, "--selection.stop", "true"), "there is no rule to stop by: set selection.rule"),
    ((*SMOKE, "--export.best", "true"), "set checkpoint.monitor"),
    ((*SMOKE, "--ckpt_path", "no.ckpt"), "no checkpoint no.ckpt"),
    ((*SMOKE, "--forget_quality.retain_result", "nowhere"), "nowhere does not exist: give the run folder"),
    ((*SMOKE, "--data.max_length", "8"), "more than data.max_length 8"),
    ((*SMOKE, "--model.policy.vocab_size", "10"), "vocab_size must be at least 259"),
    (
        (*SMOKE, "--model.policy.config", "{model_type: lama}"),
        "model.policy.config is not a model configuration",
    ),
    (
        (*SMOKE, "--model.policy", "Pretrained", "--model.policy.path", "./nowhere"),
        "no model folder ./nowhere",
    ),
]


@pytest.mark.parametrize(
    ("arguments", "line"),
    CONFIGURATION,
    ids=lambda each: " ".join(each[-2:]) if isinstance(each, tuple) else "",
)
def test_configuration_error_is_one_line(cli, arguments, line):
    Path("broken.yaml").write_text("model: [1\n")
    Path("empty.yaml").write_text("")
    Path("no_trainer.yaml").write_text("trainer: null\n")
    Path("there").mkdir()
    torch.save([1], "list.ckpt")
    before = set(Path().rglob("*"))
    ended = cli(*arguments)
    said = [each for each in ended.err.splitlines() if each.startswith("dipo-pl: ") and "warning" not in each]
    assert ended.code == 2
    assert len(said) == 1
    assert line in said[0]
    assert "Traceback" not in ended.err + ended.out
    assert set(Path().rglob("*")) == before


def write(name: str, *lines: str) -> str:
    Path(name).write_text("".join(line + "\n" for line in lines))
    return name


def question(number: int, **more: object) -> str:
    return json.dumps({"question": f"Who wrote book {number}?", "answer": f"Author {number}."} | more)


def jsonl(forget: str, retain: str, *more: str | Path) -> tuple[str | Path, ...]:
    """A run on two files with smoke.yaml's model."""
    data = ("--data", "JSONL", "--data.forget", forget, "--data.retain", retain)
    return "fit", "--config", "smoke.yaml", *data, *more


def test_malformed_line_is_named(cli):
    ended = cli(*jsonl(write("f.jsonl", question(1), '{"question": '), write("r.jsonl", question(2))))
    assert ended.code == 2
    assert "f.jsonl, line 2: not valid JSON" in ended.errors[0]


def test_rows_in_both_files_are_told(cli):
    rows = [question(each) for each in range(8)]
    ended = cli(*jsonl(write("f.jsonl", *rows[:4]), write("r.jsonl", *rows[2:]), "--trainer.max_epochs", "1"))
    assert ended.code == 0, ended.err
    assert "dipo-pl: warning: 2 of 4 forget rows also stand in the retain set" in ended.err


def test_answer_longer_than_the_context_is_refused(cli):
    config = "{model_type: gpt2, n_embd: 32, n_layer: 1, n_head: 2, n_positions: 16}"
    ended = cli(*SMOKE, "--model.policy.config", config)
    assert ended.code == 2
    assert (
        "the model's context is 16: set data.max_length to 16 and data.too_long to truncate"
        in ended.errors[0]
    )
    assert not Path("runs").exists()


def test_truth_ratios_of_other_rows_are_refused(cli, smoke):
    other = (*SMOKE, "--forget_quality.retain_result", smoke, "--name", "other")
    fewer = cli(*other, "--data.evaluation_rows", "5")
    assert fewer.code == 2
    assert "has 10 forget rows and this run measures 5" in fewer.errors[0]
    elsewhere = cli(*other, "--data.author_seed", "1")
    assert elsewhere.code == 2
    assert "was measured on other forget rows" in elsewhere.errors[0]
    unfinished = cli(*SMOKE, "--forget_quality.retain_result", ".", "--name", "other")
    assert unfinished.code == 2
    assert "is not the folder of a finished run" in unfinished.errors[0]
    not_one = cli(*SMOKE, "--forget_quality.retain_result", smoke / "manifest.json", "--name", "other")
    assert not_one.code == 2
    assert "is not an evaluation" in not_one.errors[0]


def test_unreadable_checkpoint_is_named_and_kept(cli, smoke):
    shutil.copytree(smoke, "runs/smoke")
    checkpoint = Path("runs/smoke/checkpoints/last.ckpt")
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    ended = cli(*SMOKE, "--trainer.max_epochs", "3")
    assert ended.code == 2
    assert "cannot read the checkpoint runs/smoke/checkpoints/last.ckpt" in ended.errors[0]
    assert checkpoint.stat().st_size == 1000
    assert (Path("runs/smoke/metrics.jsonl")).read_text() == (smoke / "metrics.jsonl").read_text()


def test_checkpoint_with_code_in_it_is_refused(cli):
    class Payload:
        def __reduce__(self):
            return (Path("ran").touch, ())

    torch.save({"state_dict": Payload()}, "evil.ckpt")
    ended = cli(*SMOKE, "--ckpt_path", "evil.ckpt")
    assert ended.code == 2
    assert "cannot read the checkpoint evil.ckpt" in ended.errors[0]
    assert not Path("ran").exists()


def test_raw_memory_of_negative_logits_refuses_and_names_the_cure(cli):
    ended = cli(*SMOKE, "--model.constructor.center", "false", "--model.constructor.filter.rate", "0.9")
    assert ended.code == 2
    assert "Set center to true, or keep fewer tokens" in ended.errors[0]


DIVERGING = """
from dipo_pl.losses import CrossEntropy


class Diverging(CrossEntropy):
    steps = 0

    def terms_and_gradient(self, logits, targets, reference_logits):
        Diverging.steps += 1
        terms = super().terms_and_gradient(logits, targets, reference_logits)
        return terms._replace(values=terms.values * (float("nan") if Diverging.steps > 4 else 1))
"""


def test_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(process, tmp_path):
    (tmp_path / "diverging.py").write_text(DIVERGING)
    ended = process(*SMOKE, "--model.forget_loss", "diverging.Diverging", modules=tmp_path)
    assert ended.code == 1
    (line,) = ended.errors
    assert "the loss is nan at epoch 1, step 4 (forget rows [" in line
    assert "retain rows [" in line
    run = tmp_path / "runs" / "smoke"
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3
    assert all(each.isfinite().all() for each in checkpoint["state_dict"].values())
    assert "TrainingError" in (run / "error.log").read_text()
    assert json.loads((run / "manifest.json").read_text())["status"].startswith("failed: the loss is nan")
    assert not (run / "hf").exists()


def test_debug_shows_the_traceback(cli):
    ended = cli(*SMOKE, "--model.forget_loss.beta", "-1", "--debug")
    assert ended.code == 2
    assert "Traceback" in ended.err


def test_rows_that_changed_under_the_same_name_are_refused(cli):
    rows = [question(each) for each in range(8)]
    run = jsonl(
        write("f.jsonl", *rows[:4]), write("r.jsonl", *rows[4:]), "--forget_quality.generate_every", "0"
    )
    assert cli(*run, "--trainer.max_epochs", "1").code == 0
    before = {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}
    write("f.jsonl", *(question(each) for each in range(10, 14)))
    ended = cli(*run, "--trainer.max_epochs", "2")
    assert ended.code == 2
    assert "the forget rows are not those that runs/smoke was trained on (4 rows, there 4)" in ended.errors[0]
    assert {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()} == before


def test_fewer_epochs_than_are_done_are_refused(cli, smoke):
    shutil.copytree(smoke, "runs/smoke")
    ended = cli(*SMOKE, "--trainer.max_epochs", "1")
    assert ended.code == 2
    assert (
        "trainer.max_epochs is 1, and runs/smoke/checkpoints/last.ckpt has 2 epochs behind it"
        in ended.errors[0]
    )
    endless = cli(*SMOKE, "--trainer.max_epochs", "-1")
    assert endless.code == 2
    assert "training has no end" in endless.errors[0]
    assert Path("runs/smoke/config.yaml").read_text() == (smoke / "config.yaml").read_text()


def test_broken_records_of_a_run_are_named(cli, smoke):
    shutil.copytree(smoke, "runs/smoke")
    whole = Path("runs/smoke/metrics.jsonl").read_text()
    Path("runs/smoke/metrics.jsonl").write_text(whole + '{"step": 7, "ep')
    ended = cli(*SMOKE, "--trainer.max_epochs", "3")
    assert ended.code == 2
    assert "runs/smoke/metrics.jsonl, line 4 is not an evaluation" in ended.errors[0]
    Path("runs/smoke/metrics.jsonl").write_text(whole)
    Path("runs/smoke/config.yaml").write_text("- a\n- b\n")
    ended = cli(*SMOKE, "--trainer.max_epochs", "3")
    assert ended.code == 2
    assert "cannot read runs/smoke/config.yaml" in ended.errors[0]


def test_model_with_broken_weights_is_refused(cli, smoke):
    model = AutoModelForCausalLM.from_pretrained(smoke / "hf")
    with torch.no_grad():
        model.lm_head.weight[3, 3] = float("nan")
    model.save_pretrained("broken")
    AutoTokenizer.from_pretrained(smoke / "hf").save_pretrained("broken")
    ended = cli(*SMOKE, "--model.policy", "Pretrained", "--model.policy.path", "./broken")
    assert ended.code == 2
    assert "its weights are broken" in ended.errors[0]
    assert not Path("runs").exists()


def test_ctrl_c_leaves_one_line_and_the_run_goes_on_from_there(tmp_path):
    command = [
        sys.executable,
        "-m",
        "dipo_pl",
        *SMOKE,
        "--trainer.max_epochs",
        "500",
        "--data.evaluation_rows",
        "2",
    ]
    started = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    checkpoint = tmp_path / "runs" / "smoke" / "checkpoints" / "last.ckpt"
    for _ in range(600):
        if checkpoint.is_file():
            break
        time.sleep(0.1)
    started.send_signal(signal.SIGINT)
    _, err = started.communicate(timeout=60)
    assert started.returncode == 130, err
    assert "dipo-pl: interrupted: the same command goes on from the last checkpoint" in err
    assert "Traceback" not in err
    torch.load(checkpoint, weights_only=True)
