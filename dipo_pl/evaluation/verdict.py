"""The verdict of an unlearning run: whether its rows are forgotten, made from rules with thresholds.

| what the rules say | verdict |
|---|---|
| there is no evaluation of the judged weights or of the target | `cannot_tell` |
| the model has collapsed: its low figures show no forgetting | `cannot_tell` |
| P(forget) was not measured, or the target's is nearly that of a model that never saw the rows | `cannot_tell` |
| P(forget), ROUGE, extraction strength, VerbMem or KnowMem: one is missed | `not_forgotten` |
| one of these is partly met | `partly` |
| all are met; membership, Forget Quality, utility or fluency is not, or an earlier request came back | `partly` |
| all are met; no answers to forget rows were generated, or utility or fluency was not measured | `cannot_tell` |
| all are met | `forgotten` |

The first line that applies decides. A measure by which the target had nothing to forget does not count, nor does a test
of membership that had no holdout or too few rows. Warnings of the run, and attacks that were not tried, are reported
beside the verdict and do not change it.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from dipo_pl.evaluation.membership_rule import membership
from dipo_pl.evaluation.verdict_notes import notes
from dipo_pl.evaluation.verdict_rules import (
    MEASURES,
    Evidence,
    Reason,
    Thresholds,
    collapse,
    earlier_requests,
    fluency,
    forget_quality,
    forgetting,
    utility,
)

Name = Literal["forgotten", "partly", "not_forgotten", "cannot_tell"]
# In the order in which `--require` compares them.
RANKS: dict[str, int] = {"cannot_tell": 0, "not_forgotten": 0, "partly": 1, "forgotten": 2}
TITLES = {
    "forgotten": "forgotten",
    "partly": "partly forgotten",
    "not_forgotten": "not forgotten",
    "cannot_tell": "cannot tell",
}
# What `forgotten` needs to have been measured.
_NEEDED = ("utility", "fluency")


@dataclass(frozen=True)
class Verdict:
    """A verdict with its reasons.

    Attributes:
        name: the verdict.
        reasons: the outcome of each rule, those that decide first.
    """

    name: Name
    reasons: tuple[Reason, ...]

    @property
    def entries(self) -> dict[str, Any]:
        """The entries of manifest.json and metrics.jsonl."""
        return {"verdict": self.name, "verdict_reasons": [asdict(each) for each in self.reasons]}


def judge(evidence: Evidence, thresholds: Thresholds) -> Verdict:
    """Return the verdict on the judged weights; see the table of this module."""
    if not evidence.target or not evidence.now:
        missing = "before training" if not evidence.target else "of the exported weights"
        why = Reason("forget_probability", "not_tested", "none", f"there is no evaluation {missing}")
        return Verdict("cannot_tell", (why, *notes(evidence)))
    gone = forgetting(evidence, thresholds)
    useful, fluent = utility(evidence, thresholds), fluency(evidence, thresholds)
    broken = collapse(evidence, {useful.status, fluent.status} != {"not_tested"})
    others = [
        membership(evidence, thresholds),
        forget_quality(evidence, thresholds),
        earlier_requests(evidence),
    ]
    others += [useful, fluent, broken]
    rules = [*gone, *(each for each in others if each is not None)]
    said = (*rules, *notes(evidence))
    return Verdict(_name({each.rule: each for each in rules}), said)


def _name(rules: dict[str, Reason]) -> Name:
    if rules["collapse"].status == "missed":
        return "cannot_tell"
    if "forget_probability" not in rules or rules["forget_probability"].status == "not_tested":
        return "cannot_tell"
    gone = {each.status for rule, each in rules.items() if rule in MEASURES}
    if "missed" in gone:
        return "not_forgotten"
    others = {each.status for rule, each in rules.items() if rule not in MEASURES}
    if "partly" in gone or {"partly", "missed"} & others:
        return "partly"
    needed = [rules[each] for each in _NEEDED if each in rules]
    if any(each.status == "not_tested" for each in needed) or _no_answers(rules.values()):
        return "cannot_tell"
    return "forgotten"


def _no_answers(reasons: Iterable[Reason]) -> bool:
    return any(each.rule == "forget_rouge" and each.evidence == "none" for each in reasons)
