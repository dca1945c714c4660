"""Verdicts of runs, as their manifests record them: whether a run forgot, with the rules that say so."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dipo_pl.errors import InputError
from dipo_pl.evaluation.verdict import TITLES, judge
from dipo_pl.evaluation.verdict_rules import Evidence, Thresholds
from dipo_pl.report.run import Kind, Run, printable
from dipo_pl.storage.run_folder import forgotten_sets

NO_VERDICT = "no verdict"
# Verdicts of runs whose values may be marked as best; a run without a verdict is one of an earlier version.
FORGOT = ("forgotten", "partly", None)
# Metrics that rules are about; of a sequence's last request they are shown by the names of the forget set. Membership is of
# the worst of several attacks.
METRICS = {
    "forget_probability": "forget_probability",
    "forget_rouge": "forget_rouge_l_recall",
    "extraction_strength": "forget_extraction_strength",
    "forget_verbatim": "forget_verbatim",
    "forget_knowledge": "forget_knowledge",
    "forget_quality": "forget_quality",
    "utility": "model_utility",
}
_STATUSES = ("met", "partly", "missed", "not_tested")


@dataclass(frozen=True)
class Reason:
    """One rule of a verdict.

    Attributes:
        rule: its name, such as `forget_probability`.
        status: `met`, `partly`, `missed` or `not_tested`.
        evidence: what the value was compared with, such as `retain-only model`; `none` if with nothing.
        text: a sentence with the figures and the threshold.
    """

    rule: str
    status: str
    evidence: str
    text: str


@dataclass(frozen=True)
class Verdict:
    """Verdict of an unlearning run.

    Attributes:
        value: a key of `TITLES`; None if there is none.
        reasons: its rules, in the order of the manifest.
        computed: True if the run recorded none, so that the report has judged by the default thresholds.
    """

    value: str | None = None
    reasons: tuple[Reason, ...] = ()
    computed: bool = False

    @property
    def label(self) -> str:
        """The verdict in words."""
        return NO_VERDICT if self.value is None else TITLES[self.value]

    @property
    def missed(self) -> frozenset[str]:
        """Metrics of the rules that are missed."""
        return frozenset(METRICS[each.rule] for each in self.of_status("missed") if each.rule in METRICS)

    @property
    def sentence(self) -> str:
        """The verdict with the rules that speak against it."""
        against = "; ".join(each.text for each in self.of_status("missed", "partly"))
        return f"{self.label}: {against}" if against else self.label

    def of_status(self, *statuses: str) -> tuple[Reason, ...]:
        """Return the reasons of some statuses."""
        return tuple(each for each in self.reasons if each.status in statuses)


def verdict_of(run: Run, retain_only: Run | None) -> Verdict | None:
    """Return the verdict of an unlearning run; None for any other run, since only these are to forget."""
    if run.kind is not Kind.UNLEARNING:
        return None
    recorded = read_verdict(run.manifest)
    return recorded if recorded.value is not None else _judged(run, retain_only)


def _judged(run: Run, retain_only: Run | None) -> Verdict:
    """Return the verdict on a run that recorded none; a collapse is seen only while a run trains."""
    target = run.evaluations[0].metrics if run.first is not None else {}
    now = run.metrics if run.result is not run.first else {}
    rows = {name: len(each.rows) for name, each in run.result.sets.items()}
    retain = None if retain_only is None else retain_only.metrics
    found = judge(Evidence(target, now, retain, forgotten_sets(run.manifest), rows=rows), Thresholds())
    reasons = (asdict(each) for each in found.reasons if each.rule != "collapse")
    return Verdict(found.name, tuple(map(_reason, reasons)), computed=True)


def read_verdict(manifest: Mapping[str, Any]) -> Verdict:
    """Return the verdict in a manifest.

    Raises:
        InputError: it is none that this version knows.
    """
    value, reasons = manifest.get("verdict"), manifest.get("verdict_reasons")
    if value is not None and not (isinstance(value, str) and value in TITLES):
        raise InputError(f"verdict must be one of {', '.join(TITLES)} (got {printable(str(value))[:80]})")
    if not isinstance(reasons, list | None):
        raise InputError(f"verdict_reasons must be a list (got {printable(str(reasons))[:80]})")
    return Verdict(value, tuple(map(_reason, reasons or ())))


def _reason(given: Any) -> Reason:
    if not isinstance(given, dict) or not {"rule", "status", "text"} <= given.keys():
        raise InputError(
            f"verdict_reasons must have rule, status and text (got {printable(str(given))[:80]})"
        )
    rule, evidence, text = (printable(str(given.get(key) or "")) for key in ("rule", "evidence", "text"))
    if given["status"] not in _STATUSES:
        raise InputError(
            f"the status of {rule} in verdict_reasons must be one of {', '.join(_STATUSES)} "
            f"(got {printable(str(given['status']))[:80]})"
        )
    return Reason(rule, given["status"], evidence or "none", text)
