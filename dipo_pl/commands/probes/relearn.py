"""The command `dipo-pl relearn`: fine-tune finished models on a share of the forget set, to see what comes back."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from dipo_pl.cli.command_parser import Parser
from dipo_pl.commands.probes.finished_run import FinishedRun
from dipo_pl.errors import InputError, check_count, check_number, check_share
from dipo_pl.report.model_card import write_model_card
from dipo_pl.storage.run_folder import RunFolder

# Settings of the probed run's evaluation that relearning does not change.
KEPT = ("retain_result", "convention", "max_new_tokens")

DESCRIPTION = """\
Fine-tune the model of each finished run on a share of its forget set and evaluate it during training: a relearning
attack (arXiv:2406.13356). Give the retain-only model's run as well: what an unlearned model gains beyond it from the
same rows in the same steps was never forgotten. The results are the run folders RUN-relearn. Other settings are those
of relearn.yaml; options of `dipo-pl fit` can follow the runs."""


def relearn(arguments: Sequence[str], debug: bool = False) -> int:
    """Run relearning attacks, except finished ones; return the exit code of the first that fails, else 0."""
    given, further = parser().parse_known_args(arguments)
    check_share("--share", given.share)
    check_count("--steps", given.steps)
    check_count("--every", given.every)
    check_number("--lr", given.lr, above=0)
    runs = [FinishedRun.read(each) for each in given.runs]
    for other in runs[1:]:
        if _forget_rows(other) != _forget_rows(runs[0]):
            raise InputError(
                f"{runs[0].path} and {other.path} have different forget rows, so their relearning cannot be compared: "
                "give runs of one forget set, or one run at a time"
            )
    folders = {str(each.path): each.folder(given.name) for each in runs}
    # Lightning takes seconds to import.
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    for each in runs:
        quality = each.config.get("forget_quality") or {}
        settings = {
            **{f"forget_quality.{key}": quality.get(key) for key in KEPT},
            "config": "relearn.yaml",
            "model.policy": {"class_path": "Pretrained", "init_args": each.policy},
            "model.optimizer.lr": given.lr,
            "data.forget_share": given.share,
            # This replaces the probed run's own seed, which `data` has.
            "data.seed": given.seed,
            "seed_everything": given.seed,
            # An epoch has at least one step; the callback ends training after --steps.
            "trainer.max_epochs": given.steps,
            "trainer.val_check_interval": given.every,
        }
        steps = {"steps": given.steps}
        callback = {"class_path": "dipo_pl.commands.probes.probe.Relearning", "init_args": steps}
        if code := each.probe("fit", folders[str(each.path)], callback, settings, further, debug):
            return code
        rank_zero_only(write_model_card)(RunFolder(each.path))
    rank_zero_only(_show)(folders)
    return 0


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    made = Parser("relearn", DESCRIPTION)
    made.add_argument("runs", nargs="+", metavar="RUN", help="folder of a finished run")
    share = "share of the forget rows to train on, in (0, 1] (default: 0.1)"
    made.add_argument("--share", type=float, help=share)
    made.add_argument("--steps", type=int, default=20, help="optimizer steps (default: 20)")
    made.add_argument("--lr", type=float, help="learning rate (default: 1e-5, too small for a small model)")
    made.add_argument("--every", type=int, help="steps between evaluations (default: 2)")
    made.add_argument("--seed", type=int, default=0, help="seed of the choice and order of rows (default: 0)")
    made.add_argument("--name", default="relearn", help="suffix of the run folders' names (default: relearn)")
    return made


def _forget_rows(run: FinishedRun) -> list[object]:
    data = run.manifest.get("data", {})
    return [data.get("forget"), data.get("evaluation", {}).get("forget")]


def _show(folders: Mapping[str, Path]) -> None:
    print("\nP(forget) by steps, of the rows trained on and of those held back")
    for name, folder in folders.items():
        print(f"\n{name}\n{'steps':>8}{'relearned':>12}{'held back':>12}")
        for each in RunFolder(folder).read_metrics():
            parts = (each.get(f"{part}_probability") for part in ("relearned", "held_back"))
            cells = "".join(f"{'-' if part is None else format(part, '.4f'):>12}" for part in parts)
            print(f"{each['step']:>8}{cells}")
