"""The command `dipo-pl study`: many runs of several methods and seeds, in a table with intervals."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dipo_pl.cli.command_parser import Parser
from dipo_pl.commands.study.study_file import OWN, RATE, StudyFile
from dipo_pl.configs import resolve
from dipo_pl.errors import InputError
from dipo_pl.storage.files import locked
from dipo_pl.storage.run_folder import check_name

DESCRIPTION = """\
Run a study: several methods or settings, each with several seeds, in a table with means and bootstrap intervals. FILE:

  configs: [demo.yaml]                        configs of every unlearning run
  options: {data.evaluation_rows: 40}         optional: options of every run, by dotted key
  target: {configs: [demo_target.yaml]}       optional: made once a seed; every row starts from its model
  retain_only: {configs: [demo_target.yaml, retain_only.yaml]}
                                              optional: made once a seed; every row is compared with it
  seeds: [0, 1, 2]                            seeds of the table
  rows:                                       the lines of the table: configs and options beside those above
    DiPO: {}
    NPO + CE: {configs: [npo.yaml]}
    alpha: {sweep: {model.constructor.alpha: [0.1, 0.3]}}    a line for each value: alpha 0.1, alpha 0.3
    DiPO as it is: {tune: false}              with the configured learning rate
  learning_rate:                              optional: one rule for all rows, on seeds that are not in the table
    seeds: [100]
    values: [1e-4, 2e-4, 5e-4]
    rule: NearestToUnseen                     as selection.rule: the rate with the highest score is chosen
  after: {relearn: {lr: 1e-3}, quantize: {}, audit: {}}
                                              optional: attacks on every run, with the options of their commands
  threads: 1                                  threads of a run (default: 1)
  keep_weights: false                         keep exported models (default: false)

The same command goes on where it was cut, skips what is done and tries again what failed. Each run is an ordinary run folder
runs/NAME/rows/ROW/seed-N, made by the command that results.json names. Options of `dipo-pl fit` can follow, for every run:
--data.path FOLDER."""

EXAMPLES = """\
examples:
  dipo-pl study --config study_smoke.yaml                             shipped: tiny random models, in minutes
  dipo-pl study --config study_tofu.yaml --data.path TOFU --jobs 2
  dipo-pl study --config study_tofu.yaml --row DiPO --name check      one row, with what it needs, made anew
  dipo-pl study --config study_tofu.yaml --report                     write the report again; runs nothing
"""


def study(arguments: Sequence[str], debug: bool = False) -> int:
    """Run what is missing of a study and write its report; return the exit code, 1 if a run failed."""
    given, words = parser().parse_known_args(arguments)
    further = _options(words)
    path = resolve(given.config)
    file = StudyFile.read(path)
    if given.threads is not None:
        file = replace(file, threads=given.threads)
        file.check(str(path))
    name = given.name or path.stem
    check_name(name)
    folder = Path(given.output_dir) / name
    results = folder if given.results is None else Path(given.results)
    if given.report:
        return _report_again(results, path, file)
    names = [each.name for each in file.rows]
    for each in given.row:
        if each not in names:
            raise InputError(f"--row must name a row of {path} (got {each!r}): {', '.join(names)}")
    return _run(path, file, folder, results, further, given)


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    made = Parser("study", DESCRIPTION, epilog=EXAMPLES)
    made.add_argument(
        "--config", "-c", required=True, metavar="FILE", help="study file, or bare name of a shipped one"
    )
    made.add_argument("--name", help="name of the study's folder (default: the file's)")
    made.add_argument("--output_dir", default="runs", help="parent of that folder (default: runs)")
    results = (
        "folder of results.json, tables and pictures, whose records are not made again (default: the study's)"
    )
    made.add_argument("--results", metavar="DIR", help=results)
    made.add_argument("--jobs", type=int, help="runs at a time (default: as many as cores or devices allow)")
    made.add_argument("--threads", type=int, help="threads of a run (default: the file's)")
    made.add_argument(
        "--row", action="append", default=[], metavar="ROW", help="run this row only; repeatable"
    )
    redo = "make runs again whose records are of other configs or options than now"
    made.add_argument("--redo", action="store_true", help=redo)
    made.add_argument("--report", action="store_true", help="write the report from results.json; run nothing")
    return made


def _run(
    path: Path, file: StudyFile, folder: Path, results_folder: Path, further: dict[str, Any], given: Any
) -> int:
    # These load torch or pandas, which takes seconds.
    from dipo_pl.callbacks.status_line import StatusLine
    from dipo_pl.commands.study import machine
    from dipo_pl.commands.study.checks import checked
    from dipo_pl.commands.study.plan import Plan
    from dipo_pl.commands.study.progress import status_text
    from dipo_pl.commands.study.results import Results
    from dipo_pl.commands.study.runner import Runner
    from dipo_pl.signals import Interrupted, interruption
    from dipo_pl.version import __version__

    machine.jobs_at_a_time(given.jobs, file.threads, 0, 0)
    if RATE in further and any(file.tunes(row) for row in file.rows):
        raise InputError(
            f"--{RATE} is chosen by learning_rate of {path}: leave it out, or give the rows tune: false"
        )
    plan = Plan(file, folder, further)
    configs = checked(plan)
    each, devices = max((machine.devices_of(config) for config in configs), key=lambda found: found[0])
    jobs = machine.jobs_at_a_time(given.jobs, file.threads, each, len(devices))
    places = [tuple(devices[first * each : (first + 1) * each]) for first in range(jobs)] if each else []
    here = machine.this_machine()
    facts = {"machine": here, "threads": file.threads, "at_a_time": jobs, "dipo_pl": __version__}
    facts["commit"] = machine.commit()
    with _both_locked(folder, results_folder):
        results = Results.read(results_folder)
        if (other := results.study.get("name", path.stem)) != path.stem:
            raise InputError(
                f"{results.path} holds the results of the study {other}: give another --results or --name"
            )
        rows = given.row or [row.name for row in file.rows]
        runner = Runner(plan, results, jobs, places, facts, given.redo, rows)
        runner.prepare()
        results.study = {
            "name": path.stem,
            # The page is published, and a folder of this machine means nothing elsewhere.
            "config": path.name if Path(given.config).is_absolute() else given.config,
            "threads": given.threads,
            "folder": folder.name,
            "rows": [row.name for row in file.rows],
            "file": asdict(file),
            "options": further,
        }
        results.save()
        if runner.todo:
            machine.warn_if_busy()
            print(
                f"{len(runner.todo)} of {runner.total} runs to do, {jobs} at a time with {file.threads} thread(s) each; "
                f"logs: {folder / 'logs'}", flush=True,
            )  # fmt: skip
        line = StatusLine(lambda width: status_text(runner, results, jobs, here, width))
        try:
            with interruption.listening():
                line.open()
                runner.run()
        except Interrupted as interrupted:
            print(f"dipo-pl: {interrupted}: the same command goes on", file=sys.stderr)
            raise
        finally:
            line.close()
        for job, why in runner.failed.items():
            print(f"dipo-pl: failed: {job.title}: {why}", file=sys.stderr)
        if runner.failed:
            print(
                f"{len(runner.failed)} run(s) not finished: the same command tries them again",
                file=sys.stderr,
            )
        _report(results)
    return 1 if runner.failed else 0


def _report_again(folder: Path, path: Path, file: StudyFile) -> int:
    # These load pandas, which takes a second.
    from dipo_pl.commands.study.results import Results

    results = Results.read(folder)
    if not results.runs:
        raise InputError(f"{results.path} has no records: run the study first, or give its --results")
    if not _is_of(results, path, file):
        print(
            f"dipo-pl: warning: {results.path} is not of {path} as it is now: the report is of the study as it ran",
            file=sys.stderr,
        )
    with locked(folder):
        _report(results)
    return 0


def _is_of(results: Any, path: Path, file: StudyFile) -> bool:
    """Return whether results are of a file's study, whatever the number of threads."""
    then = results.study["file"]
    now = json.loads(json.dumps(asdict(file)))
    same = all(now.get(key) == value for key, value in then.items() if key != "threads")
    return same and results.study["name"] == path.stem


def _report(results: Any) -> None:
    # Loads pandas and SciPy, which takes a second.
    from dipo_pl.commands.study.page import write_page

    write_page(results)


@contextmanager
def _both_locked(folder: Path, results: Path) -> Iterator[None]:
    with ExitStack() as held:
        held.enter_context(locked(folder))
        if not (results.exists() and results.samefile(folder)):
            held.enter_context(locked(results, "--results"))
        yield


def _options(words: Sequence[str]) -> dict[str, Any]:
    """Return options of `fit` by key, as texts."""
    found: dict[str, Any] = {}
    rest = list(words)
    while rest:
        key, given, value = rest.pop(0).partition("=")
        if not key.startswith("--") or not (given or (rest and not rest[0].startswith("--"))):
            raise InputError(
                f"options of the runs must be --key value (got {key!r}): see dipo-pl study --help"
            )
        if key[2:] in OWN:
            raise InputError(f"{key} is set by the study for each run: leave it out")
        found[key[2:]] = value if given else rest.pop(0)
    return found
