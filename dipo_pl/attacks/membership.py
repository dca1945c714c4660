"""Membership inference: can the forget rows be told from rows that no model has seen?"""

from typing import Any

from dipo_pl.attacks.base import Attack, Outcome, by_model
from dipo_pl.attacks.intervals import area_draws, of_draws
from dipo_pl.attacks.measuring import measure
from dipo_pl.attacks.subject import CALLED, RETAIN_ONLY, UNLEARNED, Subject
from dipo_pl.errors import check_share
from dipo_pl.evaluation.membership_rule import MEMBERSHIP
from dipo_pl.metrics import Membership as MembershipMetric
from dipo_pl.metrics.audit_scores import membership_distance, membership_score
from dipo_pl.metrics.base import FORGET, HOLDOUT
from dipo_pl.metrics.membership import auroc

# The attacks that OpenUnlearning's score of privacy averages over too.
SCORED = tuple(MEMBERSHIP)
# The area of an attack that recognizes nothing.
CHANCE = 0.5


class Membership(Attack):
    r"""Attack that tells forget rows from holdout rows by the loss, zlib, Min-K% and Min-K%++.

    Metrics are the area under the curve of each, `membership_ATTACK_auc`, and with a retain-only model the closeness to its
    area, `membership_ATTACK_closeness`, and their harmonic mean `privacy_mia`; see `dipo_pl.metrics.audit_scores`. Judged is
    the attack whose area is farthest from the retain-only model's, with an interval as wide as a choice among four asks for
    (Bonferroni). Attacks that compare with a reference model or need gradients are those of an evaluation, and left out.

    Args:
        k: share of an answer's least probable tokens that Min-K% and Min-K%++ average, in (0, 1].
        tolerance: see `Attack`; of the area that differs most from the retain-only model's.
    """

    def __init__(self, k: float = 0.4, tolerance: float = 0.05) -> None:
        super().__init__(tolerance)
        check_share("Membership.k", k)
        self.k = k

    def lacks(self, subject: Subject) -> str | None:
        """Return the holdout where there is none, or rows where there is one."""
        if subject.holdout is None:
            return "a holdout (data.holdout of the run)"
        fewest = min(len(subject.forget.rows), len(subject.holdout.rows))
        return "at least two rows of forget set and holdout" if fewest < 2 else None

    def run(self, subject: Subject) -> Outcome:
        """Return the areas of each model."""
        scores = subject.each_model(self.name, lambda name: self._scores(subject, name))
        areas = {
            name: {attack: auroc(each[FORGET][attack], each[HOLDOUT][attack]) for attack in SCORED}
            for name, each in scores.items()
        }
        metrics = {
            name: {f"membership_{attack}_auc": area for attack, area in each.items()}
            for name, each in areas.items()
        }
        farthest = SCORED[0]
        if RETAIN_ONLY in areas:
            theirs = areas[RETAIN_ONLY]
            farthest = max(SCORED, key=lambda attack: abs(areas[UNLEARNED][attack] - theirs[attack]))
            for name in areas:
                # A model that never saw the rows and recognizes none of them tells nothing.
                if name != RETAIN_ONLY and all(theirs.values()):
                    close = {each: membership_distance(areas[name][each], theirs[each]) for each in SCORED}
                    metrics[name] |= {f"membership_{each}_closeness": value for each, value in close.items()}
                    metrics[name]["privacy_mia"] = membership_score(**close)
        values = {name: each[farthest] for name, each in areas.items()}
        series: dict[str, list[Any]] = {"attack": list(SCORED)}
        series |= {name: [each[attack] for attack in SCORED] for name, each in areas.items()}
        intervals = of_draws(
            {
                name: area_draws(each[FORGET][farthest], each[HOLDOUT][farthest])
                for name, each in scores.items()
            },
            min(len(each[farthest]) for each in scores[UNLEARNED].values()),
            CHANCE,
            len(SCORED),
        )
        headline = f"AUC of the {farthest} attack"
        return Outcome(headline, values, by_model(metrics), [], series, intervals, CHANCE)

    def _scores(self, subject: Subject, name: str) -> dict[str, dict[str, list[float]]]:
        """Return the scores of the rows of both sets by attack."""
        metric = MembershipMetric(self.k)
        found = {}
        with subject.model(name) as model:
            for each in (subject.forget, subject.holdout):
                assert each is not None
                what = f"{each.name} rows of the {CALLED[name]}, batches"
                rows = measure(subject, model, each, [metric], what=what).rows
                found[each.name] = {attack: [float(row[attack]) for row in rows] for attack in SCORED}
        return found
