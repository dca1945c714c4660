"""The command `dipo-pl purge`: remove what still holds the forgotten rows from a finished run, which still reports."""

import glob
import json
import operator
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from dipo_pl.cli.command_parser import Parser
from dipo_pl.errors import InputError
from dipo_pl.evaluation.published_results import published_names
from dipo_pl.paths import expanded
from dipo_pl.storage.files import locked, remove, write_text
from dipo_pl.storage.run_folder import RunFolder, exported_weights
from dipo_pl.storage.signature import refuse_signed
from dipo_pl.storage.text import load_yaml, read_text

DESCRIPTION = """\
Remove what still holds the forgotten rows from a finished run: the texts of its evaluations, TensorBoard's samples, the
reference's states on the rows, checkpoints from before the end, and with --target the model that knows the rows. The
list comes first, and nothing is removed without a yes. Figures of every row stay, so that the run can be reported and
audited; it can no longer be resumed. Nothing is overwritten on the disk: snapshots and backups are yours to remove."""

# Texts of a row in an evaluation's file.
TEXTS = ("question", "answers", "generation")


@dataclass(frozen=True)
class Purge:
    """Parts that are removed from a run, and parts that stay and may hold the rows.

    Attributes:
        run: the run's folder.
        target: folder of the run whose model is removed too, if any.
        evaluations: files whose texts are removed.
        removed: files and folders that are removed, with what they hold.
        left: what holds the rows and is not removed, with what to do about it.
        kept: what stays, with the reason.
    """

    run: RunFolder
    target: RunFolder | None
    evaluations: tuple[Path, ...]
    removed: tuple[tuple[Path, str], ...]
    left: tuple[str, ...]
    kept: tuple[str, ...]

    @classmethod
    def of(cls, run: RunFolder, target: RunFolder | None = None) -> "Purge":
        """Return what there is to remove from a run. The caller holds the locks of both folders.

        Args:
            run: the run's folder.
            target: folder of the run that it started from, if that run's model is to be removed too.

        Raises:
            InputError: a run is not finished, the run's own weights or those it needs would be lost, the target's model
                is not the one that the run started from, an evaluation is damaged, or a file is a symbolic link.
        """
        manifest = run.read_manifest()
        _check_finished(run, manifest)
        # A probe's weights are those of an attack, which nobody keeps.
        if "probe" not in manifest and not _has_model(run) and _holds_files(run.checkpoints):
            raise InputError(
                f"{run.hf} has no exported model: the weights are only in {run.checkpoints}, which purge removes: train "
                f"that run again with export.enabled true, or remove {run.path}"
            )
        removed = [
            (run.checkpoints, "weights from before the end"),
            (run.reference, "the reference's states on the rows"),
            (run.error_log, "messages that may show a row"),
            *((path, "a short run of --tune, with its texts and weights") for path in _trials(run)),
            *((path, "sample answers and curves") for path in _events(run)),
        ]
        left = [*_states_elsewhere(run), *_measured_elsewhere(run)]
        if target is not None:
            _check_target(run, manifest, target)
            what = "of the target, which knows the rows"
            removed += [(target.hf, f"the model {what}"), (target.checkpoints, f"checkpoints {what}")]
            left += _rows_of_target(target)
        for path in (run.evaluation, *(path for path, _ in removed)):
            _check_no_links(path)
        return cls(
            run,
            target,
            tuple(_with_texts(run)),
            tuple((path, what) for path, what in removed if path.exists()),
            tuple(left),
            _kept(run, manifest, target is not None),
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
        if self.left:
            lines += ["still holds the rows:", *(f"  {each}" for each in self.left)]
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
        self._record(self.run, ["evaluation texts"] * bool(self.evaluations))
        if self.target is not None:
            self._record(self.target, [])

    def _record(self, run: RunFolder, removed: Sequence[str]) -> None:
        """Add to a run's manifest what was removed from its folder."""
        paths = [path for path, _ in self.removed]
        removed = [*removed, *(each.name for each in paths if each.parent == run.path)]
        removed += [f"{each.parent.name}/{each.name}" for each in paths if each.parent == _search(run)]
        earlier = (run.read_manifest().get("purged") or {}).get("removed", [])
        now = datetime.now(UTC).isoformat(timespec="seconds")
        run.add_to_manifest(purged={"at": now, "removed": sorted({*earlier, *removed})})


def purge(arguments: Sequence[str], debug: bool = False) -> int:
    """Remove what holds the rows after a confirmation; return 0, or 1 if the answer is no."""
    given = parser().parse_args(arguments)
    run = RunFolder(RunFolder(given.run).path.resolve())
    if not run.read_manifest():
        raise InputError(
            f"{given.run} is not a run folder (no readable manifest.json): give one, such as runs/tofu"
        )
    with locked(run.path):
        target = _target(run) if given.target else None
        targets = [] if target is None else [target.path]
        for each in (run.path, *targets):
            refuse_signed(each)
        with ExitStack() as stack:
            for each in (*targets, *_trials(run)):
                stack.enter_context(locked(each))
            found = Purge.of(run, target)
            print("\n".join(found.lines()), flush=True)
            if not given.yes:
                if not sys.stdin.isatty():
                    raise InputError("nothing is removed without a yes: give --yes, or answer at a terminal")
                if input("remove? [y/N] ").strip().lower() not in ("y", "yes"):
                    print("nothing was removed")
                    return 1
            found.run_now()
    print(f"done: {run.path} holds figures{' and the exported model' if _has_model(run) else ''}")
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


def _with_texts(run: RunFolder) -> Iterator[Path]:
    return (path for path in sorted(run.evaluation.glob("step-*.json")) if _has_texts(path))


def _events(run: RunFolder) -> list[Path]:
    return sorted(run.path.glob("events.out.tfevents.*"))


def _holds_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _is_adapter(run: RunFolder) -> bool:
    return (run.hf / "adapter_config.json").is_file()


def _has_model(run: RunFolder) -> bool:
    """Return whether the run has exported a complete model or an adapter."""
    return (_is_adapter(run) or (run.hf / "config.json").is_file()) and any(run.hf.glob("*.safetensors"))


def _check_finished(run: RunFolder, manifest: dict[str, Any]) -> None:
    if (status := manifest.get("status")) != "finished":
        raise InputError(
            f"{run.path} is not finished (status: {status}): finish that run first, or remove its folder"
        )


def _check_no_links(path: Path) -> None:
    """Refuse links: only the link would be removed, and what it points to would stay."""
    for each in (path, *path.rglob("*")):
        if each.is_symlink():
            raise InputError(
                f"{each} is a symbolic link to {each.readlink()}: put the file or folder itself there, or remove both"
            )


def _target(run: RunFolder) -> RunFolder:
    source = str((run.read_manifest().get("policy") or {}).get("source"))
    exported = Path(expanded(source))
    target = RunFolder(exported.parent.resolve())
    if exported.name != target.hf.name or not target.read_manifest():
        raise InputError(
            f"--target: {source} is not the exported model of a run, seen from {Path.cwd()}: give the command where the "
            "run was started, or remove that model by hand if it is yours to remove"
        )
    if target.path == run.path:
        raise InputError(f"--target: {run.path} started from its own model: leave --target out")
    return target


def _check_target(run: RunFolder, manifest: dict[str, Any], target: RunFolder) -> None:
    by_hand = f"leave --target out, and remove {target.hf} by hand if it is yours to remove"
    if _is_adapter(run):
        raise InputError(
            f"--target: {run.hf} holds an adapter, which needs {target.hf} as its base: leave --target out"
        )
    if "probe" in manifest or not _has_model(run):
        raise InputError(f"--target: {run.path} has no exported model of its own: {by_hand}")
    recorded = target.read_manifest()
    _check_finished(target, recorded)
    before, after = manifest.get("policy") or {}, recorded.get("policy") or {}
    if before.get("frozen_weights") or (after.get("frozen_weights") and not recorded.get("exported_weights")):
        # The fingerprints are of the trained weights alone, others than those of the model.
        made, used, same = recorded.get("ended"), manifest.get("started"), operator.le
    else:
        made, used, same = exported_weights(recorded), before.get("weights_at_start"), operator.eq
    if made is None or used is None:
        of = target if made is None else run
        raise InputError(
            f"--target: {of.manifest} does not record what would show that {run.path} started from {target.hf}: {by_hand}"
        )
    if not same(made, used):
        raise InputError(
            f"--target: {target.hf} is not the model that {run.path} started from (its run exported other weights, or "
            f"ended later): {by_hand}"
        )


def _rows_of_target(target: RunFolder) -> list[str]:
    holds = ["texts of its evaluations"] if any(_with_texts(target)) else []
    if _events(target):
        holds.append("TensorBoard's samples")
    return [f"{target.path}: {', '.join(holds)}: dipo-pl purge {target.path}"] if holds else []


def _search(run: RunFolder) -> Path:
    """Return the folder of the run's search of a learning rate (--tune)."""
    return run.path.with_name(f"{run.path.name}-tune")


def _trials(run: RunFolder) -> list[Path]:
    """Return the folders of the short runs of the search, each named by a rate."""
    return sorted(each for each in _search(run).glob("*") if each.is_dir() and _is_number(each.name))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _measured_elsewhere(run: RunFolder) -> list[str]:
    """Return a line on each other run that has measured the rows: the retain-only model, other stages of a sequence."""
    lines, others = [], set()
    given = str((_config(run).get("forget_quality") or {}).get("retain_result") or "")
    path = Path(expanded(given))
    if path.exists():
        # A run's folder, or one of its evaluations.
        others.add((path.parent.parent if path.parent.name == run.evaluation.name else path).resolve())
    elif not path.is_absolute() and given not in published_names():
        lines.append(f"{given}, a relative path: if it is a run, texts of its evaluations: purge it too")
    if re.fullmatch(r"stage-\d+", run.path.name):
        others |= {*run.path.parent.glob("stage-*")}
    found = (RunFolder(each) for each in sorted(others - {run.path}))
    return lines + [
        f"{each.path}: texts of its evaluations: dipo-pl purge {each.path}"
        for each in found
        if _may_have_texts(each)
    ]


def _may_have_texts(run: RunFolder) -> bool:
    try:
        return any(_with_texts(run))
    except InputError:
        return True


def _states_elsewhere(run: RunFolder) -> list[str]:
    """Return a line on stored states that the config puts elsewhere; other runs may share them."""
    try:
        given = _config(run)["model"]["init_args"]["reference"]["init_args"]["path"]
    except (KeyError, TypeError):
        # No config, or no reference with a path.
        return []
    if not given or (path := Path(expanded(str(given)))).resolve() == run.reference:
        return []
    # A relative path may be one of another folder.
    if path.is_absolute() and not path.exists():
        return []
    return [f"{given}: the reference's states on the rows: remove by hand"]


def _config(run: RunFolder) -> dict[str, Any]:
    """Return the run's config, empty where there is none."""
    try:
        config = load_yaml(read_text(run.config))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(
            f"cannot read {run.config} ({' '.join(str(error).split())[:200]}), which says where else the rows are: put that "
            "file back as it was, and purge again"
        ) from None
    return config if isinstance(config, dict) else {}


def _kept(run: RunFolder, manifest: dict[str, Any], target: bool) -> tuple[str, ...]:
    kept = [f"{run.hf}: the unlearned model and its tokenizer"] if run.hf.is_dir() else []
    kept.append(f"{run.metrics}, {run.config}, {run.manifest}: figures")
    for path in sorted(run.path.parent.glob(f"{glob.escape(run.path.name)}-*")):
        if (probe := RunFolder(path).read_manifest().get("probe") or {}).get("kind") not in (None, "audit"):
            kept.append(
                f"{path}: a {probe['kind']} probe, with texts and weights of its own: remove it, or purge it too"
            )
    source = (manifest.get("policy") or {}).get("source")
    if source and not target:
        kept.append(f"{source}: the model that the run started from, which knows the rows (--target)")
    return (*kept, "the data files, the caches of libraries, and backups")
