"""Audits: what each attack on a run's model has found, beside its target and a model that never knew."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dipo_pl.errors import InputError
from dipo_pl.report.run import Run, lookup, printable
from dipo_pl.report.table import Table
from dipo_pl.report.verdicts import Reason, Verdict
from dipo_pl.storage.run_folder import RunFolder

# Status of a rule of the verdict by the judgement of an attack; a rule whose attack has another judgement was not tested.
STATUSES = {"indistinguishable": "met", "distinguishable": "partly", "not_forgotten": "missed"}
# Attacks that test what a training run says that it has not tested.
COVERED = {
    "relearning": "relearning_forget",
    "quantization": "quantization",
    "paraphrased_questions": "paraphrased_question",
    "sampling": "leak_at_k",
}
MODELS = {"target": "target", "unlearned": "unlearned", "retain_only": "retain-only"}


@dataclass(frozen=True)
class AuditedAttack:
    """What an attack has found.

    Attributes:
        name: of the attack.
        status: `indistinguishable`, `distinguishable`, `not_forgotten`, `cannot_tell` or `not_tried`.
        reason: its figures, or what was missing.
        values: of the models, by name.
        interval: of 95 % confidence, of the unlearned model's value; None where it is not known.
        settle: what would settle what it cannot tell; empty where nothing is open.
        headline: what the values are.
        series: by name the values of a curve, one of them what the others are drawn against.
    """

    name: str
    status: str
    reason: str
    values: Mapping[str, float]
    interval: tuple[float, float] | None
    settle: str = ""
    headline: str = ""
    series: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def cell(self, model: str) -> str:
        """Return a model's value as a table shows it; empty if there is none."""
        if model not in self.values:
            return ""
        value = f"{self.values[model]:.3f}"
        if model != "unlearned" or self.interval is None:
            return value
        return f"{value} [{self.interval[0]:.3f}, {self.interval[1]:.3f}]"


@dataclass(frozen=True)
class Audit:
    """Audit of a run.

    Attributes:
        name: name of its folder.
        path: the folder.
        weights: fingerprint of the weights that were attacked.
        of: folder of the audited run, as the audit has it.
        status: its judgement as a whole.
        reason: which attacks it rests on.
        attacks: in order.
        metrics: all values by key.
    """

    name: str
    path: Path
    weights: str | None
    of: str
    status: str
    reason: str
    attacks: tuple[AuditedAttack, ...]
    metrics: Mapping[str, float]


def is_audit(path: Path) -> bool:
    """Return whether a folder is that of an audit."""
    return path.is_dir() and lookup(RunFolder(path).read_manifest(), "probe", "kind") == "audit"


def read_audit(folder: RunFolder) -> Audit:
    """Return the audit in a folder.

    Raises:
        InputError: it is not finished, or its files are damaged.
    """
    manifest = folder.read_manifest()
    if manifest.get("status") != "finished":
        raise InputError(
            f"{folder.path} is not finished: give the same dipo-pl audit again, which goes on with it"
        )
    try:
        return Audit(
            printable(folder.path.resolve().name),
            folder.path,
            manifest["probe"].get("weights"),
            printable(str(manifest["probe"]["of"])),
            printable(str(manifest["verdict"]["status"])),
            printable(str(manifest["verdict"]["reason"])),
            tuple(_attack(name, each) for name, each in manifest["attacks"].items()),
            {printable(key): each for key, each in folder.final_metrics.items() if type(each) is float},
        )
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(
            f"{folder.path} cannot be read as an audit ({' '.join(repr(error).split())[:200]}): remove it, and audit again"
        ) from None


def audit_of(run: Run, audits: Iterable[Audit]) -> Audit | None:
    """Return the audit of a run, which lies beside it, unless the run was trained again since; None if there is none."""
    beside = run.path.resolve().with_name(f"{run.path.resolve().name}-audit")
    weights = lookup(run.manifest, "policy", "weights_at_end") or lookup(
        run.manifest, "policy", "weights_at_start"
    )
    found = (each for each in audits if each.path.resolve() == beside and each.weights == weights)
    return next(found, None)


def audited_verdict(verdict: Verdict, audit: Audit) -> Verdict:
    """Return a run's verdict as it is after its audit, which can only make it worse.

    A run that is not forgotten by an attack is not forgotten; one that can be told from a model that never knew is partly
    forgotten at most. The audit's attacks come first among the reasons, in place of what the run had not tried.

    Args:
        verdict: of the run itself.
        audit: of the same weights.
    """
    value = verdict.value
    if audit.status == "not_forgotten":
        value = "not_forgotten"
    elif audit.status == "distinguishable" and value == "forgotten":
        value = "partly"
    tried = {each.name for each in audit.attacks if each.status != "not_tried"}
    covered = {rule for rule, attack in COVERED.items() if attack in tried}
    attacks = tuple(
        Reason(
            each.name,
            STATUSES.get(each.status, "not_tested"),
            "retain-only model",
            f"{each.name}: {each.reason}",
        )
        for each in audit.attacks
    )
    rest = tuple(each for each in verdict.reasons if each.rule not in covered)
    return replace(verdict, value=value, reasons=(*attacks, *rest))


def audit_table(audit: Audit) -> Table:
    """Return one row for each attack: the models' values with the unlearned model's interval, and the judgement."""
    shown = [each for each in MODELS if any(each in attack.values for attack in audit.attacks)]
    rows = [
        [each.name, *(each.cell(model) for model in shown), each.status.replace("_", " ")]
        for each in audit.attacks
    ]
    caption = f"{audit.status.replace('_', ' ')}, {audit.reason}"
    head = ["attack", *(MODELS[each] for each in shown), "judgement"]
    return Table(f"Audit of {audit.of}", caption, head, rows)


def left_open(audit: Audit) -> list[str]:
    """Return a line on each attack that was not tried, with the reason, or cannot tell, with what would settle it."""
    lines = []
    for each in audit.attacks:
        if each.status == "not_tried":
            lines.append(f"{each.name} was not tried: {each.reason}")
        elif each.status == "cannot_tell":
            lines.append(f"{each.name} cannot tell: {each.settle} would settle it")
    return lines


def _attack(name: str, given: Mapping[str, Any]) -> AuditedAttack:
    values, interval = given.get("values") or {}, (given.get("intervals") or {}).get("value")
    return AuditedAttack(
        printable(name),
        printable(str(given["status"])),
        printable(str(given["reason"])),
        {key: _number(values[key]) for key in MODELS if key in values},
        None if interval is None else (_number(interval[0]), _number(interval[1])),
        printable(str(given.get("settle") or "")),
        printable(str(given.get("headline") or "")),
        # Names of changes of the weights are no numbers, and are not drawn.
        {
            printable(key): [_number(each) for each in column]
            for key, column in (given.get("series") or {}).items()
            if all(type(each) in (int, float) for each in column)
        },
    )


def _number(value: Any) -> float:
    if not math.isfinite(number := float(value)):
        raise ValueError(f"{value} is no finite number")
    return number
