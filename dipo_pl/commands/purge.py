"""The command `dipo-pl purge`: remove what still holds the forgotten rows from a finished run, which still reports."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dipo_pl.cli.command_parser import Parser
from dipo_pl.errors import InputError
from dipo_pl.storage.files import locked, remove, write_text
from dipo_pl.storage.run_folder import RunFolder

DESCRIPTION = """\
Remove what still holds the forgotten rows from a finished run: the texts of its evaluations, TensorBoard's samples, the
reference's states on the rows, checkpoints from before the end, and with --target the model that knows the rows. The
list comes first, and nothing is removed without a yes. Figures of every row stay, so that the run can be reported and
audited; it can no longer be resumed. Nothing is overwritten on the disk: snapshots and backups are yours to remove."""

# Texts of a row in an evaluation's file.
TEXTS = ("question", "answers", "generation")


@dataclass(frozen=True)
class Purge:
    """What is removed from a run, and what stays that may hold the rows.

    Attributes:
        run: the run's folder.
        evaluations: files whose texts are removed.
        removed: files and folders that are removed, with what they hold.
        kept: what stays, with the reason.
    """

    run: RunFolder
    evaluations: tuple[Path, ...]
    removed: tuple[tuple[Path, str], ...]
    kept: tuple[str, ...]

    @classmethod
    def of(cls, given: str, target: bool) -> "Purge":
        """Return what there is to remove from a run.

        Args:
            given: the run's folder.
            target: also the model that the run started from.

        Raises:
            InputError: the folder holds no finished run, or the target is not a run's own.
        """
        run = RunFolder(given)
        manifest = run.read_manifest()
        if not manifest:
            raise InputError(
                f"{given} is not a run folder (no readable manifest.json): give one, such as runs/tofu"
            )
        if (status := manifest.get("status")) != "finished":
            raise InputError(
                f"{given} is not finished (status: {status}): finish that run first, or remove its folder"
            )
        removed = [
            (run.checkpoints, "weights from before the end"),
            (run.reference, "the reference's states on the rows"),
            (run.error_log, "messages that may show a row"),
            *((path, "sample answers and curves") for path in sorted(run.path.glob("events.out.tfevents.*"))),
        ]
        if target:
            removed += _of_target(run, manifest)
        with_texts = [path for path in sorted(run.evaluation.glob("step-*.json")) if _has_texts(path)]
        return cls(
            run,
            tuple(with_texts),
            tuple((path, what) for path, what in removed if path.exists()),
            _kept(run, manifest, target),
        )

    def lines(self) -> list[str]:
        """Return what is removed and what stays, for people."""
        lines = [f"removes from {self.run.path}:"]
        if self.evaluations:
            lines.append(
                f"  evaluation/: questions, answers and generated texts of {len(self.evaluations)} files"
            )
        lines += [f"  {path}: {what}" for path, what in self.removed]
        if len(lines) == 1:
            lines.append("  nothing: it holds no such files")
        return [*lines, "keeps:", *(f"  {each}" for each in self.kept)]

    def run_now(self) -> None:
        """Remove it all, and say so in the manifest; a second call goes on where a killed one stopped.

        Raises:
            WriteError: a file cannot be written; those before it are done.
        """
        for path in self.evaluations:
            content = json.loads(path.read_text(encoding="utf-8"))
            for each in content["sets"].values():
                each["rows"] = [{key: row[key] for key in row if key not in TEXTS} for row in each["rows"]]
            write_text(path, json.dumps(content, indent=1))
        for path, _ in self.removed:
            remove(path)
        left = [str(path) for path, _ in self.removed if path.exists()]
        if left:
            raise InputError(
                f"cannot remove {left[0]}: change its permissions, and give the same command again"
            )
        removed = ["evaluation texts"] * bool(self.evaluations) + [path.name for path, _ in self.removed]
        earlier = (self.run.read_manifest().get("purged") or {}).get("removed", [])
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.run.add_to_manifest(purged={"at": now, "removed": sorted({*earlier, *removed})})


def purge(arguments: Sequence[str], debug: bool = False) -> int:
    """Remove what holds the rows after a confirmation; return 0, or 1 if the answer is no."""
    given = parser().parse_args(arguments)
    found = Purge.of(given.run, given.target)
    print("\n".join(found.lines()), flush=True)
    if not given.yes:
        if not sys.stdin.isatty():
            raise InputError("nothing is removed without a yes: give --yes, or answer at a terminal")
        if input("remove? [y/N] ").strip().lower() not in ("y", "yes"):
            print("nothing was removed")
            return 1
    with locked(found.run.path):
        found.run_now()
    print(f"done: {found.run.path} holds figures and the exported model")
    return 0


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    made = Parser("purge", DESCRIPTION)
    made.add_argument("run", metavar="RUN", help="folder of a finished run")
    target = "also remove the exported model and checkpoints of the run that this one started from"
    made.add_argument("--target", action="store_true", help=target)
    made.add_argument("--yes", action="store_true", help="do not ask")
    return made


def _has_texts(path: Path) -> bool:
    try:
        sets = json.loads(path.read_text(encoding="utf-8"))["sets"].values()
        return any(key in row for each in sets for row in each["rows"] for key in TEXTS)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not an evaluation ({error!r}): remove it, and purge again") from None


def _of_target(run: RunFolder, manifest: dict[str, Any]) -> list[tuple[Path, str]]:
    source = str((manifest.get("policy") or {}).get("source"))
    target = RunFolder(Path(source).parent)
    if Path(source).name != target.hf.name or not target.read_manifest():
        raise InputError(
            f"--target: {source} is not the exported model of a run: remove it by hand if it is yours to remove"
        )
    if target.path.resolve() == run.path.resolve():
        raise InputError(f"--target: {run.path} started from its own model: leave --target out")
    what = "of the target, which knows the rows"
    return [(target.hf, f"the model {what}"), (target.checkpoints, f"checkpoints {what}")]


def _kept(run: RunFolder, manifest: dict[str, Any], target: bool) -> tuple[str, ...]:
    kept = [
        f"{run.hf}: the unlearned model and its tokenizer",
        f"{run.metrics}, {run.config}, {run.manifest}: figures",
    ]
    for path in sorted(run.path.parent.glob(f"{run.path.name}-*")):
        if (probe := RunFolder(path).read_manifest().get("probe") or {}).get("kind") not in (None, "audit"):
            kept.append(
                f"{path}: a {probe['kind']} probe, with texts and weights of its own: remove it, or purge it too"
            )
    if not target:
        source = (manifest.get("policy") or {}).get("source")
        kept.append(f"{source}: the model that the run started from, which knows the rows (--target)")
    return (*kept, "the data files, the caches of libraries, and backups")
