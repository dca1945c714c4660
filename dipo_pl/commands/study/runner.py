"""Scheduler of a study: starts what can be started, records what has ended, and goes on when a run fails."""

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from dipo_pl.cli.console import cause_of
from dipo_pl.cli.processes import end_of
from dipo_pl.commands.study import attached
from dipo_pl.commands.study.folders import drop_weights, is_there, lacks_model, make_room
from dipo_pl.commands.study.measure import diverged, measured, other_rows
from dipo_pl.commands.study.plan import Job, Plan, attacks_on, command_text
from dipo_pl.commands.study.rates import choice_of
from dipo_pl.commands.study.results import FAILED, FINISHED, RUNNING, Results, has_other_weights
from dipo_pl.errors import InputError
from dipo_pl.storage.secrets import redact, redact_arguments

# Seconds between two looks at the running processes, and for which interrupted ones are waited for.
TICK, PATIENCE = 0.2, 120.0
SHOWN = 300  # characters of an error
STALE = "its record is of another learning rate than is chosen now: give --redo to make it again"


class Process(Protocol):
    """A started command, as subprocess.Popen is one."""

    pid: int

    def poll(self) -> int | None:
        """Return the exit code; None while it runs."""

    def terminate(self) -> None:
        """Ask it to end."""

    def kill(self) -> None:
        """End it at once."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; return the exit code."""


Launch = Callable[[Sequence[str], Path, Mapping[str, str]], Process]


def launch(words: Sequence[str], log: Path, environment: Mapping[str, str]) -> Process:
    """Start `dipo-pl` with these arguments in a process of its own, whose output is added to a log."""
    with log.open("ab") as file:
        # In a session of its own: Ctrl-C is for the study, which then asks each run to end once.
        return subprocess.Popen(
            [sys.executable, "-m", attached.__name__, *words], stdin=subprocess.DEVNULL, stdout=file,
            stderr=subprocess.STDOUT, env=os.environ | environment, start_new_session=True,
        )  # fmt: skip


@dataclass(frozen=True)
class Started:
    """A run that is running.

    Attributes:
        devices: the GPUs that it has.
        since: when it was started, by time.monotonic.
        log: file with its output.
        offset: bytes that earlier starts have left in the log.
    """

    job: Job
    process: Process
    devices: tuple[str, ...]
    since: float
    log: Path
    offset: int


class Runner:
    """Scheduler of a study.

    Args:
        plan: its runs.
        results: its records.
        at_a_time: runs at a time.
        devices: GPUs of each place for a run; empty on CPUs.
        facts: what is recorded of every run beside its own: machine, threads, version and commit.
        redo: make runs again whose records are of another configuration.
        rows: names of the rows to run.
        say: prints a line.
        start: starts a command; None is `launch`.

    Attributes:
        todo: the runs that have not been finished.
        running: those that are running.
        failed: why a run failed or was not started, by run.
    """

    def __init__(
        self,
        plan: Plan,
        results: Results,
        at_a_time: int,
        devices: Sequence[tuple[str, ...]],
        facts: Mapping[str, Any],
        redo: bool,
        rows: Iterable[str],
        say: Callable[[str], None] = print,
        start: Launch | None = None,
    ) -> None:
        self.plan, self.results, self._facts, self._redo, self._say, self._start = (
            plan, results, facts, redo, say, start or launch
        )  # fmt: skip
        self._selected = plan.jobs_of(rows)
        self._places = deque(devices or [()] * at_a_time)
        self.todo: list[Job] = []
        self.running: list[Started] = []
        self.failed: dict[Job, str] = {}
        self.ended = 0

    @property
    def total(self) -> int:
        """Number of runs that are to be finished, with those that are."""
        return self.ended + len(self.todo) + len(self.running) + len(self.failed)

    def prepare(self) -> None:
        """Find out what is to be done.

        Raises:
            InputError: a record is of another configuration, and is not to be made again.
        """
        stale = [each for each in self.plan.jobs if self._is_stale(each)]
        kept = [each.key for each in stale if self.results.runs[each.key]["status"] != FAILED]
        if kept and not self._redo:
            names = ", ".join(kept[:3]) + (f" and {len(kept) - 3} more" if len(kept) > 3 else "")
            raise InputError(
                f"{len(kept)} record(s) in {self.results.path} were made with other configs, options or learning rates "
                f"({names}): give --redo to make these runs again, restore the configs, or give another --name"
            )
        selected = [each for each in stale if each in self._selected]
        if others := [each for each in kept if each not in {job.key for job in selected}]:
            raise InputError(
                f"--redo with --row would remove records of other rows ({', '.join(others[:3])}) and not make them again: "
                "give --redo without --row"
            )
        for each in selected:
            self._discard(each)
        wanted = [each for each in self._selected if self._record(each) is None]
        # A run whose record stands is made again where its folder is needed and gone.
        for each in wanted:
            wanted += [
                need
                for need in each.needs
                if need not in wanted and not is_there(need, each, self.plan.folder)
            ]
        self.todo, self.failed = [each for each in self.plan.jobs if each in wanted], {}
        self.ended = len({*self._selected} - {*self.todo})

    def run(self) -> None:
        """Run all that is to be done; what fails is in `failed`."""
        try:
            self._run_all()
            # A row's record may be of another learning rate than its tuning runs have chosen just now.
            while self._redo and any(map(self._is_stale, self._selected)):
                self.prepare()
                self._run_all()
        finally:
            self._end_all()
        for job in filter(self._is_stale, self._selected):
            self.failed.setdefault(job, STALE)

    def _run_all(self) -> None:
        while self.todo or self.running:
            self._collect()
            self._start_some()
            if self.running:
                time.sleep(TICK)

    def rate(self, job: Job) -> float | None:
        """Return the learning rate of a run; None if it is as configured, or not chosen yet."""
        if job.kind.is_probe and job.start is not None:
            return self.rate(job.start)
        if job.tuned_by and all(self._record(each) for each in job.tuned_by):
            return choice_of(job.tuned_by, self.results.runs).rate
        return job.rate

    def _record(self, job: Job) -> dict[str, Any] | None:
        return self.results.finished(job.key)

    def _is_stale(self, job: Job) -> bool:
        """Return whether a record is of another configuration; False while the run's learning rate is not known."""
        record, tuned_by = (
            self.results.runs.get(job.key),
            (job.start if job.kind.is_probe and job.start else job).tuned_by,
        )
        if record is None or not all(self._record(each) for each in tuned_by):
            return False
        return bool(record["fingerprint"] != job.fingerprint(self.rate(job)))

    def _discard(self, job: Job) -> None:
        self._say(f"{job.title}: made again, with another configuration than before")
        # Attacks that the study has no longer are of the model that goes; those that it has are stale themselves.
        planned = {each.key for each in self.plan.jobs}
        gone = [job, *(each for each in attacks_on(job) if each.key not in planned)]
        for each in gone:
            make_room(each, self.plan.folder)
            self.results.runs.pop(each.key, None)
        self.results.save()

    def _start_some(self) -> None:
        unfinished = {*self._unfinished}
        for job in [*self.todo]:
            start = job.start if job.kind.is_probe else None
            awaited = (*job.needs, *job.tuned_by, *(start.tuned_by if start else ()))
            if blocking := next((each for each in awaited if each in self.failed), None):
                self.todo.remove(job)
                self.failed[job] = f"not run: it needs {blocking.key}"
            elif start and unfinished.isdisjoint(awaited) and self._is_stale(start):
                # The model that is there has another learning rate; `run` tells it, or makes both again.
                self.todo.remove(job)
                if not self._redo:
                    self.failed[job] = f"not run: {start.key} is of another learning rate than is chosen now"
            elif self._places and unfinished.isdisjoint(awaited):
                self.todo.remove(job)
                self._start_one(job)

    @property
    def _unfinished(self) -> list[Job]:
        return [*self.todo, *(each.job for each in self.running)]

    def _start_one(self, job: Job) -> None:
        if self._is_stale(job):
            if self._record(job) is not None and not self._redo:
                self.failed[job] = STALE
                return
            # An earlier, unfinished start had another learning rate, which is known only now.
            self._discard(job)
        if lacks_model(job, self.todo, self.plan.folder):
            self._say(f"{job.title}: made again, since other runs need its model, which is gone")
            make_room(job, self.plan.folder)
        rate, log = self.rate(job), self.plan.folder / "logs" / f"{job.key.replace('/', '-')}.log"
        words = job.words(self.plan.folder, rate)
        if self._record(job) is None:
            self.results.put(job.key, self._begun(job, words, rate) | {"status": RUNNING})
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {"OMP_NUM_THREADS": str(self._facts["threads"]), attached.STUDY: str(os.getpid())}
        devices = self._places.popleft()
        if devices:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
        offset = log.stat().st_size if log.is_file() else 0
        process = self._start(words, log, environment)
        self.running.append(Started(job, process, devices, time.monotonic(), log, offset))

    def _begun(self, job: Job, words: list[str], rate: float | None) -> dict[str, Any]:
        return {
            "kind": str(job.kind), "row": job.row, "seed": job.seed, "fingerprint": job.fingerprint(rate),
            "command": command_text(redact_arguments(words)), "learning_rate": rate,
            "started": datetime.now(UTC).isoformat(timespec="seconds"), **self._facts,
        }  # fmt: skip

    def _same_runs(self, job: Job) -> dict[str, dict[str, Any]]:
        """Return the records of a run and of its other seeds; other lines of the table may have rows of their own."""
        return {
            each.key: record
            for each in self.plan.jobs
            if (each.kind, each.row) == (job.kind, job.row)
            and (record := self._record(each)) is not None
            and not self._is_stale(each)
        }

    def _collect(self) -> None:
        for each in [*self.running]:
            if (code := each.process.poll()) is None:
                continue
            self.running.remove(each)
            self._places.append(each.devices)
            self._finish(each, code)

    def _finish(self, ended: Started, code: int) -> None:
        job, seconds = ended.job, time.monotonic() - ended.since
        before = self.results.runs[job.key]
        try:
            found = measured(job, self.plan.folder) if code == 0 else diverged(job, self.plan.folder)
            error = "" if found is not None else error_of(ended.log, ended.offset, code)
            if found is not None and (other := other_rows(found, self._same_runs(job))):
                make_room(job, self.plan.folder)
                found, error = None, other
        except Exception as problem:
            # A damaged folder can fail in any way.
            found, error = None, cause_of(problem)[0]
        if found is None:
            self.failed[job] = f"{error[:SHOWN]} (log: {ended.log})"
            self._say(f"{job.title}: failed: {self.failed[job]}")
            if before["status"] != FINISHED:
                self.results.put(job.key, before | {"status": FAILED, "error": error[:SHOWN]})
            return
        self.ended += 1
        record = before | {"status": FINISHED, "seconds": round(seconds, 1)} | found
        if before["status"] == FINISHED:
            # The first record counts, and is not overwritten.
            made_again = {"seconds": round(seconds, 1), **self._facts, "weights": found.get("weights")}
            record = before | {"made_again": [*before.get("made_again", []), made_again]}
            if has_other_weights(before, made_again):
                self._say(
                    f"{job.title}: made again with other weights, since rounding differs between machines: the runs that "
                    "need it do not all have the same model"
                )
        self.results.put(job.key, record)
        verdict = record.get("verdict")
        self._say(f"{job.title}: finished in {seconds:.0f} s{f', {verdict}' if verdict else ''}")
        if not self.plan.file.keep_weights:
            drop_weights(self.plan, self.results, self._unfinished, job)

    def _end_all(self) -> None:
        for each in self.running:
            each.process.terminate()
        deadline = time.monotonic() + PATIENCE
        for each in self.running:
            try:
                each.process.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                each.process.kill()
                each.process.wait()


def error_of(log: Path, offset: int, code: int) -> str:
    """Return the error line of a failed run, or how it ended.

    Args:
        log: file with its output.
        offset: where its own begins.
        code: its exit code, negative for a signal.
    """
    if code < 0:
        return str(end_of(0, code).line).removeprefix("local rank 0 ")
    lines = log.read_bytes()[offset:].decode(errors="replace").splitlines() if log.is_file() else []
    said = [line for line in lines if line.startswith(("dipo-pl: error: ", "dipo-pl: failed: "))]
    last = (
        said[-1].split(": ", 2)[2] if said else next((line for line in reversed(lines) if line.strip()), "")
    )
    return redact(last) or f"exit code {code}"
