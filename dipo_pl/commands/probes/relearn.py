"""The command `dipo-pl relearn`: fine-tune finished models on a share of the forget set, to see what comes back."""

from collections.abc import Sequence

from dipo_pl.cli.command_parser import Parser, as_options
from dipo_pl.commands.probes.finished_run import FinishedRun
from dipo_pl.errors import InputError
from dipo_pl.report.model_card import write_model_card
from dipo_pl.storage.run_folder import RunFolder

# Of the probed run's evaluation; what else it measures, relearning does not change.
KEPT = ("retain_result", "convention", "max_new_tokens")

DESCRIPTION = """\
Fine-tunes the model of each finished run on a share of its forget set, and measures it as it goes: a
relearning attack (arXiv:2406.13356). Give the retain-only model's run as well: what it learns from the
same rows in the same steps is what there is to learn, and what an unlearned model is ahead of it was
never forgotten. Each result is a run folder of its own, RUN-relearn. What is not given here is as
relearn.yaml has it, and any key of `dipo-pl fit` can be given too, after the runs."""


def relearn(arguments: Sequence[str], debug: bool = False) -> int:
    """Returns the exit code of the first run that fails, else 0. What is finished is not repeated."""
    given, further = parser().parse_known_args(arguments)
    if given.share is not None and not 0 < given.share <= 1:
        raise InputError(f"--share must be a share of the forget rows in (0, 1], got {given.share}")
    for name in ("steps", "every"):
        if (value := getattr(given, name)) is not None and value < 1:
            raise InputError(f"--{name} must be at least 1, got {value}")
    if given.lr is not None and not 0 < given.lr < float("inf"):
        raise InputError(f"--lr must be a finite number > 0, got {given.lr}")
    runs = [FinishedRun.read(each) for each in given.runs]
    for other in runs[1:]:
        if _forget_rows(other) != _forget_rows(runs[0]):
            raise InputError(
                f"{runs[0].path} and {other.path} have other forget rows, and their relearning cannot be compared: "
                "give runs of one forget set, or one at a time"
            )
    for each in runs:
        each.refuse_stale(each.folder(given.name))
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    from dipo_pl.cli.run import run

    for each in runs:
        folder = each.folder(given.name)
        quality = each.config.get("forget_quality") or {}
        settings = each.settings("Relearning", folder, steps=given.steps) | {
            **{f"forget_quality.{key}": quality.get(key) for key in KEPT},
            "config": "relearn.yaml",
            "model.policy": {"class_path": "Pretrained", "init_args": each.policy},
            "model.optimizer.lr": given.lr,
            "data.forget_share": given.share,
            # The probed run's own seed stands in the configuration of its data.
            "data.seed": given.seed,
            "seed_everything": given.seed,
            # An epoch has a step at least; the probe ends training in time.
            "trainer.max_epochs": given.steps,
            "trainer.val_check_interval": given.every,
        }
        rank_zero_only(print)(f"\n{each.path} -> {folder}", flush=True)
        if code := run(["fit", *as_options(settings), *further], debug):
            return code
        rank_zero_only(write_model_card)(RunFolder(each.path))
    rank_zero_only(_show)({str(each.path): RunFolder(each.folder(given.name)) for each in runs})
    return 0


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    made = Parser("relearn", DESCRIPTION)
    made.add_argument("runs", nargs="+", metavar="RUN", help="folder of a finished run")
    made.add_argument("--share", type=float, help="of the forget rows to train on, in (0, 1]; 0.1")
    made.add_argument("--steps", type=int, default=20, help="optimizer steps, at least 1; 20")
    made.add_argument("--lr", type=float, help="learning rate, > 0; 1e-5, too little for a small model")
    made.add_argument("--every", type=int, help="steps from one measurement to the next, at least 1; 2")
    made.add_argument("--seed", type=int, default=0, help="of the rows that are drawn and their order; 0")
    made.add_argument("--name", default="relearn", help="of the folders, after each run's own; relearn")
    return made


def _forget_rows(run: FinishedRun) -> list[object]:
    data = run.manifest.get("data", {})
    return [data.get("forget"), data.get("evaluation", {}).get("forget")]


def _show(runs: dict[str, RunFolder]) -> None:
    print("\nP(forget) by steps: of the rows trained on, and of the others")
    for name, folder in runs.items():
        print(f"\n{name}\n{'steps':>8}{'relearned':>12}{'held back':>12}")
        for each in folder.read_metrics():
            parts = (each.get(f"{part}_probability") for part in ("relearned", "held_back"))
            cells = "".join(f"{'-' if part is None else format(part, '.4f'):>12}" for part in parts)
            print(f"{each['step']:>8}{cells}")
