"""Progress on a terminal and in a file: whole lines, the right counts, nothing of Lightning's own messages."""

import re
import signal
from types import SimpleNamespace

import pytest
import torch
from at_step import at
from lightning import Callback, LightningModule, Trainer
from terminal import Screen, on_terminal

from dipo_pl.__main__ import main
from dipo_pl.callbacks import status_line
from dipo_pl.callbacks.generation_queue import GenerationQueue
from dipo_pl.callbacks.pace import Pace
from dipo_pl.callbacks.progress import Progress, Schedule

QUICK = (
    "fit",
    "--config",
    "smoke.yaml",
    "--data.evaluation_rows",
    "3",
    "--forget_quality.max_new_tokens",
    "4",
)


class Counted(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, batch_idx):
        return (self.weight * batch).sum()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(7), batch_size=1)

    def val_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(1), batch_size=1)


class Seen(Callback):
    def __init__(self):
        self.evaluated, self.batches = [], {}

    def on_train_start(self, trainer, pl_module):
        self.schedule = Schedule.of(trainer)

    def on_train_batch_end(self, trainer, *_):
        self.batches[trainer.global_step] = len(self.batches)

    def on_validation_end(self, trainer, *_):
        if not trainer.sanity_checking:
            self.evaluated.append(trainer.global_step)


@pytest.mark.parametrize("settings", [
    {"max_epochs": 3},
    {"max_epochs": 3, "accumulate_grad_batches": 2},
    {"max_epochs": 5, "check_val_every_n_epoch": 2},
    {"max_epochs": 4, "check_val_every_n_epoch": 2, "val_check_interval": 3},
    {"max_epochs": 3, "val_check_interval": 0.5},
    {"max_epochs": 3, "val_check_interval": 4, "check_val_every_n_epoch": None},
    {"max_epochs": -1, "max_steps": 10},
    {"max_epochs": 3, "max_steps": 5, "accumulate_grad_batches": 3},
    {"max_epochs": 2, "limit_val_batches": 0},
])  # fmt: skip
def test_evaluations_to_come_are_those_that_the_trainer_makes(settings):
    seen = Seen()
    trainer = Trainer(
        **settings, accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False,
        enable_progress_bar=False, callbacks=[seen], log_every_n_steps=1, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(Counted())
    last = trainer.global_step
    assert seen.schedule.steps == last
    # At the end of a run, one is made where none was due; see Session.
    made = [*seen.evaluated, *([] if last in seen.evaluated else [last])]
    for step in range(last):
        to_come = sum(each > step for each in made)
        assert seen.schedule.evaluations_between(step, last) == to_come, step


def test_no_line_is_overdrawn_and_nothing_stays(tmp_path):
    def run() -> int:
        status_line.TICK = 0.01
        return main([*QUICK, "--trainer.callbacks", "terminal.Talkative"])

    code, lines, last = on_terminal(run, tmp_path)
    assert code == 0, lines
    stays = "\n".join(lines)
    for step in (0, 3, 6):
        summary = "".join(lines).split(f"step {step}: ")[1]
        assert re.match(r"(\w[\w ]*(\(\w+\))? [\d.e-]+, ){4}ROUGE\(retain\) [\d.e-]+", summary), summary
    assert {"dipo-pl: warning: warned", "printed", "to the error stream"} <= {*lines}
    assert not re.search("━|─|left", stays)
    drawn = [each for each in last if "━" in each]
    assert len(drawn) > 5
    assert any(
        re.fullmatch(r"step 3/6 ━+─+  50%  evaluating \d/9 rows, \d/9 answers, .*left", each)
        for each in drawn
    )
    assert any(
        re.fullmatch(r"step 2/6 ━+─+  33%  loss [\d.]+, [\d.e+]+ rows/s, (over )?\d:\d\d:\d\d left", each)
        for each in drawn
    )
    assert all(len(each) < 80 for each in drawn)


def test_an_interruption_leaves_no_bar_behind(tmp_path):
    def run() -> int:
        status_line.TICK = 0.01
        return main([*QUICK, *at("Send", hook="on_train_batch_start", step=4, number=int(signal.SIGINT))])

    code, lines, last = on_terminal(run, tmp_path)
    assert code == 130
    assert any("━" in each for each in last)
    assert "━" not in "".join(lines)
    assert lines[-2] == "dipo-pl: interrupted by SIGINT: the same command resumes the run"


def test_in_a_file_lines_have_a_time_and_nothing_else_is_said(cli, monkeypatch):
    monkeypatch.setattr(status_line, "PERIOD", 0.005)
    ended = cli(*QUICK, "--trainer.max_epochs", "3")
    assert ended.code == 0
    assert "\x1b" not in ended.err + ended.out
    assert "\r" not in ended.err + ended.out
    time = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    timed = [each for each in ended.err.splitlines() if re.match(time, each)]
    left = r"((over )?\d:\d\d:\d\d left|time left unknown)"
    training = rf"{time} step [1-8] of 9, loss [\d.]+, [\d.e+]+ rows/s, {left}"
    measuring = rf"{time} step \d of 9, evaluating \d of 9 rows, \d of 9 answers, {left}"
    for pattern in (training, measuring):
        assert any(re.fullmatch(pattern, each) for each in timed), "\n".join({*timed})
    known = (
        r"Forget Quality is not measured|the verdict compares with|step \d: Model Utility|training ended at step 9 of 9, |"
        r"exported the model to"
    )
    # Where the root logger has a handler, as under pytest, it puts the level first.
    others = [each.removeprefix("INFO: ") for each in ended.err.splitlines() if each not in timed]
    assert [each for each in others if not re.match(known, each)] == []


def test_a_resumed_run_counts_from_where_it_resumes(cli, monkeypatch):
    assert cli(*QUICK, "--trainer.max_epochs", "1").code == 0
    monkeypatch.setattr(status_line, "PERIOD", 0.005)
    ended = cli(*QUICK)
    assert ended.code == 0
    steps = [int(each) for each in re.findall(r"step (\d) of 6, (?:loss|evaluating)", ended.err)]
    assert steps
    assert steps == sorted(steps)
    assert steps[0] >= 3
    assert "training ended at step 6 of 6" in ended.err


def test_a_bar_can_be_left_out(cli, monkeypatch):
    monkeypatch.setattr(status_line, "PERIOD", 0.005)
    ended = cli("validate", *QUICK[1:], "--trainer.enable_progress_bar", "false")
    assert ended.code == 0
    assert not re.search(r"rows/s|left|of 6", ended.err)


def progress(columns_of=None, **state):
    made = Progress()
    made._phase = "training"
    made._schedule = Schedule(steps=60, epoch=10, accumulated=1, every=10, every_epochs=1)
    made._evaluation = SimpleNamespace(
        queue=GenerationQueue(), generates=True, generating=lambda count: count // 2
    )
    for name, value in state.items():
        setattr(made, f"_{name}", value)
    return made


@pytest.mark.parametrize(("state", "left"), [
    # 48 steps of 2 s, and five evaluations to come of 100 rows at 50 a second and, twice, 40 answers at 4 a second.
    ({}, "0:02:06 left"),
    # Of this evaluation, 60 rows and 30 answers are left.
    ({"phase": "evaluating", "rows": 40, "all_rows": 100, "answers_if_any": 40}, "0:02:15 left"),
    ({"measured": Pace(), "generation": Pace()}, "over 0:01:36 left"),
    ({"steps": Pace(), "measured": Pace(), "generation": Pace()}, "time left unknown"),
])  # fmt: skip
def test_time_left_is_from_the_speed_of_each_kind_of_work(state, left):
    seen = {"steps": Pace(3, 6), "measured": Pace(100, 2), "generation": Pace(8, 2), "rows_of_each": 100,
            "answers_of_each": 40}  # fmt: skip
    made = progress(**seen | state)
    made._evaluation.queue.answers = 10
    made._reach(12)
    assert made.text(None).endswith(f", {left}")


def test_the_time_of_generation_counts_as_that_alone(monkeypatch):
    shown = Progress()
    shown._mark = 0.0
    clock = iter([10.0, 20.0])
    monkeypatch.setattr("dipo_pl.callbacks.progress.time", SimpleNamespace(monotonic=lambda: next(clock)))
    shown._generation.add(4, 3.0)
    assert [shown._lap(), shown._lap()] == [7.0, 10.0]


def test_a_line_fits_its_terminal():
    made = progress(step=12, steps=Pace(1, 1), trained_rows=Pace(100, 12.3), loss=1.23456)
    made._reach(12)
    for columns in range(1, 200):
        text = made.text(columns)
        assert len(text) <= columns
        assert text.startswith("step 12/60"[:columns])
    assert "━" * 8 + "─" * 32 in made.text(160)


def test_the_screen_of_these_tests_shows_an_overdrawn_line():
    screen = Screen(10)
    screen.write("bar ends\rstep\nnext\r\x1b[K0123456789abc")
    assert screen.lines == ["stepends", "0123456789", "abc"]
