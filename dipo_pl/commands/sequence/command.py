"""The command `dipo-pl sequence`: carry out requests to forget, one after another, each in a run of its own."""

import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from dipo_pl.cli.command_parser import Parser, as_options
from dipo_pl.cli.option_check import argument_names, check_options
from dipo_pl.commands.sequence.requests_file import RequestsFile
from dipo_pl.commands.sequence.stages import RENAME_OR_REMOVE, Stage
from dipo_pl.configs import resolve
from dipo_pl.errors import InputError
from dipo_pl.storage.files import locked
from dipo_pl.storage.register import read_register
from dipo_pl.storage.run_folder import check_name

DESCRIPTION = """\
Carry out requests to forget, one after another. Each stage is a run folder: runs/NAME/stage-1 and so on. Keys of FILE:

  configs: [tofu.yaml]               configs of every stage, as `dipo-pl fit --config` takes them
  requests: [author_1, author_2]     forget sets in order, as data.forget takes them
  mode: sustainability               each from the model before; or scalability: the first k together, from the target
  retain_only: runs/retain/hf        optional: model that never saw them, evaluated on the data of each stage
  register: {author_1: {id: R-17, received: 2026-01-02, by: K. Ito}}    optional: what register.jsonl says of a request
  epochs_of_first: false             optional: later stages train as long as the first one's selection chose

Each stage evaluates all requests so far again (request_1_probability, ...), to show whether one comes back. The same
command continues where it stopped and skips finished stages; for a new request, add a line to FILE. Options of
`dipo-pl fit` can follow FILE."""

EXAMPLES = """\
examples:
  dipo-pl sequence news_requests.yaml                                 shipped: generated news in the format of MUSE
  dipo-pl sequence news_requests.yaml --config npo.yaml --mode scalability
  dipo-pl sequence my_requests.yaml --model.policy.path my-org/my-model --name deletions
"""


def sequence(arguments: Sequence[str], debug: bool = False) -> int:
    """Run all stages that are not finished; return the exit code of the first that fails, else 0."""
    given, further = parser().parse_known_args(arguments)
    for word in further:
        if (key := word.split("=")[0]) in ("--data.forget", "--data.requests", "--data.requests_to_come"):
            raise InputError(f"{key} is set for each stage: list the requests in {given.file}")
    file = resolve(given.file)
    plan = RequestsFile.read(file, mode=given.mode, retain_only=given.retain_only)
    name = given.name or "-".join([file.stem, *(Path(each).stem for each in given.config), plan.mode])
    check_name(name)
    shared = [*(word for each in (*plan.configs, *given.config) for word in ("--config", each)), *further]
    # These take seconds to import.
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    from dipo_pl.cli.processes import is_first_process
    from dipo_pl.cli.run import is_finished, resolved

    config = resolved(["fit", *shared, *_forget_words(plan, shared)])
    _check_config(config)
    stages = _stages(plan, Path(given.output_dir) / name, config)
    # A damaged one is found before days of training, not after.
    read_register(stages[0].folder)
    for each in stages:
        each.check()
        if each.finished and not is_finished(each.fit_words(shared)):
            raise InputError(
                f"{each.run.path} is finished with another limit of epochs or steps (trainer.max_epochs): "
                f"{RENAME_OR_REMOVE}"
            )
    # Other ranks run this same command.
    lock = locked(stages[0].folder) if is_first_process() else nullcontext()
    with lock:
        code = _run(stages, shared, debug)
    if code == 0:
        rank_zero_only(_show)(stages[0].folder)
    return code


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    made = Parser("sequence", DESCRIPTION, epilog=EXAMPLES)
    made.add_argument("file", metavar="FILE", help="file of requests, or bare name of a shipped one")
    made.add_argument("--mode", help="sustainability or scalability (default: the file's)")
    made.add_argument("--retain_only", help="model that never saw any of the requests (default: the file's)")
    overlay = "overlay after the file's configs; repeatable"
    made.add_argument("--config", "-c", action="append", default=[], help=overlay)
    made.add_argument("--name", help="name of the sequence's folder (default: file, overlays and mode)")
    made.add_argument("--output_dir", default="runs", help="parent of that folder (default: runs)")
    return made


def _run(stages: Sequence[Stage], shared: Sequence[str], debug: bool) -> int:
    # Loads Lightning, which takes seconds.
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    from dipo_pl.cli.run import run
    from dipo_pl.commands.sequence.register import register

    for each in stages:
        state = "is finished" if each.finished else f"-> {each.run.path}"
        rank_zero_only(print)(f"\n[{each.number}/{len(stages)}] {each.requests[-1]} {state}", flush=True)
        if each.finished:
            # The stage was killed before this, or audited since.
            rank_zero_only(register)(each)
            continue
        each.check()
        evaluation = each.evaluation_words(shared)
        for words in [*([] if evaluation is None else [evaluation]), each.fit_words(shared)]:
            if code := run(words, debug):
                return code
        rank_zero_only(register)(each)
    return 0


def _forget_words(plan: RequestsFile, shared: Sequence[str]) -> list[str]:
    """Return the option of the rows to forget, which some data modules need to be made at all; each stage sets its own."""
    data = check_options(shared).get("data")
    takes_forget = data is not None and "forget" in (argument_names(data) or ())
    return as_options({"data.forget": plan.requests[:1]}) if takes_forget else []


def _check_config(config: dict[str, Any]) -> None:
    model, export = config["model"]["init_args"], config.get("export") or {}
    source = model["policy"]["class_path"].split(".")[-1]
    if source != "Pretrained":
        raise InputError(f"model.policy must be a Pretrained with the path of the target (got {source})")
    if config["trainer"].get("fast_dev_run"):
        raise InputError(
            "trainer.fast_dev_run leaves no model for the next stage: give trainer.max_steps or limit_train_batches"
        )
    if not export.get("enabled", True) or export.get("adapter"):
        raise InputError(
            "each stage starts from the complete model that the one before exported: set export.enabled true and "
            "export.adapter false"
        )


def _stages(plan: RequestsFile, folder: Path, config: dict[str, Any]) -> list[Stage]:
    """Return all stages; raise InputError if the rows of a request cannot be read, or two requests overlap."""
    # These import torch, which takes seconds.
    from dipo_pl.cli.run import data_module
    from dipo_pl.data_modules.requests import joined, refuse_overlaps
    from dipo_pl.storage.fingerprints import rows_fingerprint

    data = data_module(config)
    rows = {name: data.read_forget(name) for name in plan.requests}
    refuse_overlaps(rows, nested=plan.mode == "scalability")
    stages = []
    for number, name in enumerate(plan.requests, start=1):
        together = joined(rows[each] for each in plan.requests[:number])
        forget = rows[name] if plan.mode == "sustainability" else together
        stages.append(Stage(plan, folder, number, config, rows_fingerprint(forget)))
    return stages


def _show(folder: Path) -> None:
    # These import pandas and NumPy.
    from dipo_pl.report.contents import read_report
    from dipo_pl.report.drawing import drawable, write_png
    from dipo_pl.report.plots import requests_by_stage, utility_by_stage
    from dipo_pl.report.sequences import stage_table
    from dipo_pl.report.table import terminal_width

    try:
        report = read_report([folder])
    except InputError as error:
        # The stages are finished even if they cannot be compared.
        print(f"dipo-pl: warning: no table of the stages: {error}", file=sys.stderr)
        return
    for sequence in report.sequences:
        print(f"\n{stage_table(sequence, report.utility_metric).to_text(terminal_width())}", end="")
        plots = [*utility_by_stage([sequence], report.utility_metric), *requests_by_stage(sequence)]
        if plots and drawable():
            write_png(folder / "sequence.png", *plots)
            print(f"\nPlot of utility and requests by stage: {folder / 'sequence.png'}")
    if not drawable():
        print("\nFor a plot by stage: pip install 'dipo-pl[plots]', and run the same command again")
    words = ["dipo-pl", "report", str(folder), "--output", str(folder / "report")]
    print(f"Report as a page: {shlex.join(words)}")
