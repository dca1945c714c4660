"""Run folders as tests read them; commands that are refused or killed."""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def manifest() -> Callable[..., dict[str, Any]]:
    """The manifest of a run folder, after changes to it."""

    def read(run: Path, **changes: Any) -> dict[str, Any]:
        content = json.loads((run / "manifest.json").read_text()) | changes
        if changes:
            (run / "manifest.json").write_text(json.dumps(content))
        return content

    return read


@pytest.fixture
def metrics() -> Callable[[Path], list[dict[str, Any]]]:
    """The evaluations of a run folder."""

    def read(run: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]

    return read


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def refused(cli: Callable[..., Any], tmp_path: Path) -> Callable[..., str]:
    """Run `dipo-pl ...`, check that it fails with one line and changes no file, and return the line."""

    def run(*arguments: str) -> str:
        before = contents(tmp_path)
        ended = cli(*arguments)
        assert (ended.code, len(ended.errors)) == (2, 1), ended.err
        assert contents(tmp_path) == before
        return ended.errors[0]

    return run


@pytest.fixture
def killed(cli: Callable[..., Any]) -> Callable[..., None]:
    """Run `dipo-pl ...` in a forked process, and kill it at a hook of callbacks as soon as `when` is true."""
    from dipo_pl.callbacks.forget_quality import ForgetQuality

    def run(when: Callable[[Any], bool], *arguments: str, hook: str = "on_train_epoch_start") -> None:
        def kill(self: ForgetQuality, trainer: Any, *_: Any) -> None:
            if when(trainer):
                os.kill(os.getpid(), signal.SIGKILL)

        def command() -> None:
            setattr(ForgetQuality, hook, kill)
            cli(*arguments)

        # Forked: importing torch takes seconds.
        process = multiprocessing.get_context("fork").Process(target=command)
        process.start()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL

    return run
