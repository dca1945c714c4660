"""The command `dipo-pl sequence`: carry out requests to forget, one after another, each in a run of its own."""

import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from dipo_pl.cli.command_parser import Parser
from dipo_pl.commands.sequence.requests_file import RequestsFile
from dipo_pl.commands.sequence.stages import Stage
from dipo_pl.configs import resolve
from dipo_pl.errors import InputError
from dipo_pl.storage.files import locked
from dipo_pl.storage.run_folder import check_name

DESCRIPTION = """\
Carries out requests to forget, one after another; each stage is a run folder, runs/NAME/stage-1 and so on. FILE says

  configs: [tofu.yaml]               of every stage, as `dipo-pl fit --config` takes them
  requests: [author_1, author_2]     forget sets, as data.forget takes them, in order
  mode: sustainability               each from the model before; or scalability: each k together, from the target
  retain_only: runs/retain/hf        optional: never saw any of them; measured on each stage's data
  epochs_of_first: false             optional: later stages train as long as the first one's selection chose

After each stage all requests so far are measured again (request_1_probability, ...): does one come back? Run
again, a sequence goes on where it stopped, and does no finished stage again: a request that has come in since
is a line more in FILE. Any key of `dipo-pl fit` can be given too, after FILE."""

EXAMPLES = """\
examples:
  dipo-pl sequence news_requests.yaml                                 shipped: MUSE-shaped news made offline
  dipo-pl sequence news_requests.yaml --config npo.yaml --mode scalability
  dipo-pl sequence my_requests.yaml --model.policy.path my-org/my-model --name deletions
"""


def sequence(arguments: Sequence[str], debug: bool = False) -> int:
    """Returns the exit code of the first stage that fails, else 0. What is finished is not repeated."""
    given, further = parser().parse_known_args(arguments)
    for word in further:
        if word.split("=")[0] in ("--data.forget", "--data.requests", "--data.requests_to_come"):
            raise InputError(f"{word.split('=')[0]} is each stage's own: give requests in {given.file}")
    file = resolve(given.file)
    plan = RequestsFile.read(file, mode=given.mode, retain_only=given.retain_only)
    configs = [*plan.configs, *given.config]
    name = given.name or "-".join([file.stem, *(Path(each).stem for each in given.config), plan.mode])
    check_name(name)
    shared = [*(word for each in configs for word in ("--config", each)), *further]
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    from dipo_pl.cli.run import is_finished, resolved

    config = resolved(["fit", *shared])
    _check_model(config)
    stages = _stages(plan, Path(given.output_dir) / name, config)
    for each in stages:
        each.check()
        if each.finished and not is_finished(each.words(shared)):
            raise InputError(
                f"{each.run.path} is finished, and was trained to another limit (see trainer.max_epochs): give the "
                "sequence another --name, or remove this and all later stages"
            )
    # Further ranks of this same command work beside it.
    keep_out = locked(stages[0].folder) if rank_zero_only.rank == 0 else nullcontext()  # type: ignore[attr-defined]
    with keep_out:
        code = _run(stages, shared, debug)
    if code == 0:
        rank_zero_only(_show)(stages[0].folder)
    return code


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    made = Parser("sequence", DESCRIPTION, epilog=EXAMPLES)
    made.add_argument("file", metavar="FILE", help="of requests, or the bare name of a shipped one")
    made.add_argument("--mode", help="sustainability or scalability, in place of the file's")
    made.add_argument("--retain_only", help="a model that saw none of the requests, in place of the file's")
    made.add_argument(
        "--config", "-c", action="append", default=[], help="an overlay after the file's configs; repeatable"
    )
    made.add_argument("--name", help="of the sequence's folder; file, overlays and mode by default")
    made.add_argument("--output_dir", default="runs", help="folder that it is made in; runs")
    return made


def _run(stages: Sequence[Stage], shared: Sequence[str], debug: bool) -> int:
    """The exit code of the first stage that fails, else 0."""
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    from dipo_pl.cli.run import run

    for each in stages:
        rank_zero_only(print)(
            f"\n[{each.number}/{len(stages)}] {each.requests[-1]}"
            f"{' is finished' if each.finished else f' -> {each.run.path}'}",
            flush=True,
        )
        if each.finished:
            continue
        each.check()
        measuring = each.measuring_words(shared)
        for words in [*([] if measuring is None else [measuring]), each.words(shared)]:
            if code := run(words, debug):
                return code
    return 0


def _check_model(config: dict[str, Any]) -> None:
    model, export = config["model"]["init_args"], config.get("export") or {}
    policy = model["policy"]
    if policy["class_path"].split(".")[-1] != "Pretrained":
        raise InputError(
            f"model.policy is {policy['class_path'].split('.')[-1]}, and a sequence starts from a model that is there: give "
            "a Pretrained with a path"
        )
    if config["trainer"].get("fast_dev_run"):
        raise InputError(
            "trainer.fast_dev_run leaves no model for the next stage: give trainer.max_steps or limit_train_batches"
        )
    if not export.get("enabled", True) or export.get("adapter"):
        raise InputError(
            "a stage starts from the whole model that the one before exported: set export.enabled true and "
            "export.adapter false"
        )


def _stages(plan: RequestsFile, folder: Path, config: dict[str, Any]) -> list[Stage]:
    """
    Raises:
        InputError: a request's rows cannot be read, or two requests overlap.
    """
    from dipo_pl.cli.run import data_module
    from dipo_pl.data_modules.requests import joined, refuse_overlaps
    from dipo_pl.storage.fingerprints import rows_fingerprint

    data = data_module(config)
    rows = {name: data.read_forget(name) for name in plan.requests}
    refuse_overlaps(rows, nested=plan.mode == "scalability")
    stages = []
    for number in range(1, len(plan.requests) + 1):
        so_far = [rows[name] for name in plan.requests[:number]]
        forget = so_far[-1] if plan.mode == "sustainability" else joined(so_far)
        stages.append(Stage(plan, folder, number, config, rows_fingerprint(forget)))
    return stages


def _show(folder: Path) -> None:
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
        print("\nFor a plot by stage: pip install 'dipo-pl[plots]', and give the same command again")
    where = shlex.join(["dipo-pl", "report", str(folder), "--output", str(folder / "report")])
    print(f"For a report as a page: {where}")
