"""Study files, and runs that are written without training; a callback that holds a run once."""

import copy
import itertools
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import forked
import yaml
from lightning import Callback

from dipo_pl.storage.run_folder import RunFolder

STUDY = yaml.safe_load("""
configs: [smoke.yaml]
options: {data.evaluation_rows: 3, forget_quality.max_new_tokens: 4, samples.rows: 0}
target: {configs: [smoke.yaml], options: {model: FineTuning, data.train_on: all}}
retain_only: {configs: [smoke.yaml, retain_only.yaml]}
seeds: [0, 1]
rows:
  DiPO: {}
  NPO + CE: {configs: [npo.yaml]}
learning_rate: {seeds: [100], values: [1.0e-4, 1.0e-3]}
after: {relearn: {share: 0.2, steps: 2, lr: 1.0e-3}}
""")

TUNED = ["target/seed-100", "retain_only/seed-100"] + [
    f"tuning/{row}/{rate}/seed-100" for row in ("dipo", "npo-ce") for rate in ("0.0001", "0.001")
]
SEED_0 = [
    "target/seed-0", "retain_only/seed-0", "retain_only/seed-0-relearn", "rows/dipo/seed-0", "rows/dipo/seed-0-relearn",
    "rows/npo-ce/seed-0", "rows/npo-ce/seed-0-relearn",
]  # fmt: skip
ALL = [*TUNED, *SEED_0, *(each.replace("seed-0", "seed-1") for each in SEED_0)]
RUN = ("study", "--config", "s.yaml", "--jobs", "1")


def records(folder: str = "runs/s") -> dict:
    return json.loads(Path(folder, "results.json").read_text())["runs"]


def done(cli, *words: str, code: int = 0) -> str:
    ended = cli(*(words or RUN))
    assert ended.code == code, ended.err
    return ended.err + ended.out


def write_study(path: Path, **changes: Any) -> dict[str, Any]:
    """Write a study file; a key of None is left out, and return what was written."""
    content = {key: each for key, each in (copy.deepcopy(STUDY) | changes).items() if each is not None}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return content


class Ended:
    """A process that has ended."""

    pid = 0

    def __init__(self, code: int) -> None:
        self.code = code

    def poll(self) -> int | None:
        return self.code

    def wait(self, timeout: float | None = None) -> int:
        return self.code

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


class Written:
    """Starts runs that write their folders at once, without training.

    Attributes:
        commands: the commands, in order.
        fails: of a run whose command matches one of these patterns, the text in its log.
        rows: of a run whose command matches one of these patterns, the fingerprint of its rows.
        weights: fingerprint of every run's last weights.
        environments: of each command.
    """

    def __init__(self) -> None:
        self.commands: list[str] = []
        self.environments: list[Mapping[str, str]] = []
        self.fails: dict[str, str] = {}
        self.rows: dict[str, str] = {}
        self.weights = "w"

    @property
    def made(self) -> list[str]:
        """The folders of all runs, below the study's."""
        return [self.folder(each) for each in self.commands]

    @staticmethod
    def folder(command: str) -> str:
        if command.startswith("relearn"):
            return re.sub(r"^[^/]+/[^/]+/", "", command.split()[1]) + "-relearn"
        name, parent = (re.search(rf"--{key} (\S+)", command)[1] for key in ("name", "output_dir"))
        return re.sub(r"^[^/]+/[^/]+/", "", f"{parent}/{name}")

    def __call__(self, words: Sequence[str], log: Path, environment: Mapping[str, str]) -> Ended:
        command = " ".join(words)
        self.commands.append(command)
        self.environments.append(environment)
        if said := next((text for pattern, text in self.fails.items() if re.search(pattern, command)), None):
            log.write_text(said)
            return Ended(1)
        is_probe = words[0] == "relearn"
        given = dict(itertools.pairwise(words))
        path = f"{words[1]}-relearn" if is_probe else f"{given['--output_dir']}/{given['--name']}"
        model = f"{words[1]}/hf" if is_probe else given.get("--model.policy.path")
        if model is not None and not Path(model, "config.json").is_file():
            log.write_text(f"dipo-pl: error: no model in {model}")
            return Ended(2)
        rows = next((each for pattern, each in self.rows.items() if re.search(pattern, command)), "abc")
        rate = float(given.get("--model.optimizer.lr", 0))
        write_run(RunFolder(path), rate, seed_of(path), rows, self.weights)
        return Ended(0)


def seed_of(path: str) -> int:
    return int(re.search(r"seed-(\d+)", path)[1])


def write_run(run: RunFolder, rate: float, seed: int, fingerprint: str, weights: str) -> None:
    """A finished run: P(forget) falls with the learning rate, and above 5e-4 utility is lost."""
    (run.path / "evaluation").mkdir(parents=True, exist_ok=True)
    for folder in (run.hf, run.checkpoints):
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text("{}")
    run.config.write_text("forget_quality: {}\nverdict: {}\n")
    start = {"epoch": 0.0, "step": 0, "forget_probability": 0.9, "retain_probability": 0.8}
    end = {"epoch": 2.0, "step": 6, "forget_probability": 0.5 - 200 * rate + 0.01 * seed}
    end |= {"retain_probability": 0.8 if rate < 5e-4 else 0.1, "forget_quality_log10_p": -1.0 - seed}
    held = {"held_back_probability": 0.2}
    run.metrics.write_text("".join(json.dumps(each | held) + "\n" for each in (start, end)))
    rows = {"rows": 3, "fingerprint": fingerprint}
    manifest = {
        "status": "finished", "command": "fit", "versions": {"torch": "2"}, "platform": "here", "device": "cpu",
        "steps": 6, "epochs": 2, "resumed_at_steps": [],
        "policy": {"parameters": 7, "weights_at_start": "w", "weights_at_end": weights},
        "data": {"forget": rows, "retain": rows, "evaluation": {"forget": rows}}, "verdict": "partly",
    }  # fmt: skip
    run.manifest.write_text(json.dumps(manifest))


class Forked:
    """A run in a copy of this process, which need not import torch anew."""

    def __init__(self, pid: int) -> None:
        self.pid, self.code = pid, None

    def poll(self) -> int | None:
        if self.code is None and (found := os.waitpid(self.pid, os.WNOHANG))[0]:
            self.code = os.waitstatus_to_exitcode(found[1])
        return self.code

    def wait(self, timeout: float | None = None) -> int:
        self.code = forked.wait(self.pid) if self.code is None else self.code
        return self.code

    def terminate(self) -> None:
        os.kill(self.pid, 15)

    def kill(self) -> None:
        os.kill(self.pid, 9)


def fork_run(words: Sequence[str], log: Path, environment: Mapping[str, str]) -> Forked:
    return Forked(forked.command(words, log, environment=environment))


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait for another process."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


class HoldOnce(Callback):
    """Holds the first run that comes to this step, and writes its process id to the file `held`."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step and not Path("held").exists():
            Path("held.part").write_text(str(os.getpid()))
            Path("held.part").rename("held")
            time.sleep(600)
