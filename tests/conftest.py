"""What all tests share: bounded threads, the command line in this process or in a real one, one finished run."""

import fcntl
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import forked
import pytest
import torch

torch.set_num_threads(1)


@dataclass
class Ended:
    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The error lines: there must be one at most."""
        return [
            line for line in self.err.splitlines() if line.startswith(("dipo-pl: error", "dipo-pl: failed"))
        ]


@pytest.fixture
def cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ended]:
    """Runs `dipo-pl ...` in this process, in an empty folder."""
    from dipo_pl.__main__ import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["dipo-pl"])

    def run(*arguments: str | Path) -> Ended:
        capsys.readouterr()
        for logger in (logging.root, *logging.root.manager.loggerDict.values()):
            # Handlers hold on to the standard error there was when they were made, another test's.
            for handler in getattr(logger, "handlers", []):
                if type(handler) is logging.StreamHandler:
                    handler.stream = sys.stderr
        code = main([str(each) for each in arguments])
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return run


@pytest.fixture(autouse=True)
def _same_environment_afterwards() -> Iterator[None]:
    """Undo what runs with a process group leave in this process: their port, which is taken, and the group."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture(autouse=True)
def _no_modules_of_its_own_afterwards(request: pytest.FixtureRequest) -> Iterator[None]:
    """Forget modules that a test has written: the next one may write another of that name."""
    # A folder for each of the thousands of tests that write nothing would take longer than they do.
    own = str(request.getfixturevalue("tmp_path").resolve()) if "tmp_path" in request.fixturenames else None
    yield
    if own is not None:
        for name, module in [*sys.modules.items()]:
            if (getattr(module, "__file__", None) or "").startswith(own):
                del sys.modules[name]


@pytest.fixture
def process(tmp_path: Path) -> Callable[..., Ended]:
    """Runs `dipo-pl ...` as a process of its own, in an empty folder."""

    def run(*arguments: str | Path, fresh: bool = False, **environment: str) -> Ended:
        """Run the command in a copy of this process, or in a new one.

        Args:
            arguments: of the command.
            fresh: start Python anew, which takes seconds.
            environment: added to this process's.
        """
        words = [*map(str, arguments)]
        # Lightning starts further processes, which need what these tests import.
        environment = {"PYTHONPATH": os.pathsep.join(sys.path)} | environment
        if fresh:
            done = subprocess.run(
                [sys.executable, "-m", "dipo_pl", *words], cwd=tmp_path, env=os.environ | environment,
                capture_output=True, text=True, timeout=300,
            )  # fmt: skip
            return Ended(done.returncode, done.stdout, done.stderr)
        out, err = tmp_path / ".out", tmp_path / ".err"
        child = forked.command(words, out, err, tmp_path, environment)
        ended = Ended(forked.wait(child, timeout=300), out.read_text(), err.read_text())
        if ended.code < 0:
            # TensorBoard reads event files in the order of their seconds; a start within the same one may come first.
            time.sleep(1 - time.time() % 1)
        out.unlink()
        err.unlink()
        return ended

    return run


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Returns a folder of this name, which is filled by one of the workers and not written to afterwards."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def folder(name: str, fill: Callable[[Path], object]) -> Path:
        made, done = root / name, root / f"{name}.done"
        with open(root / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                made.mkdir()
                fill(made)
                done.touch()
        return made

    return folder


def folder_of_rows(variable: str, whose: str) -> str:
    """Return the folder that an environment variable names."""
    path = os.environ.get(variable)
    if not path:
        reason = f"{variable} names no folder with {whose} rows"
        # On CI the data must be there: a skip would go unseen.
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return str(path)


@pytest.fixture(scope="session")
def tofu_folder() -> str:
    """Where TOFU's real rows lie."""
    return folder_of_rows("DIPO_PL_TOFU", "TOFU's")


@pytest.fixture(scope="session")
def lume_folder() -> str:
    """Where LUME's real rows lie."""
    return folder_of_rows("DIPO_PL_LUME", "LUME's")


@pytest.fixture(scope="session")
def fit_once(once: Callable[..., Path]) -> Callable[..., Path]:
    """Runs `dipo-pl fit ...` in one of the workers, and returns the run's parent folder; not to be written to."""
    from dipo_pl.cli.run import run

    def fit(name: str, *words: str | Path) -> Path:
        def fill(folder: Path) -> None:
            assert run(["fit", *map(str, words), "--output_dir", str(folder)]) == 0

        return once(name, fill)

    return fit


@pytest.fixture(scope="session")
def smoke(fit_once: Callable[..., Path]) -> Path:
    """The folder of a finished run of smoke.yaml; not to be written to."""
    return fit_once("smoke", "--config", "smoke.yaml") / "smoke"
