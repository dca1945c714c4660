"""The rule of membership: can forget rows be told from rows that no model has seen, by the worst of all attacks?"""

import math
from statistics import NormalDist
from typing import NamedTuple

from dipo_pl.evaluation.verdict_rules import Baseline, Evidence, Reason, Status, Thresholds

# Attacks that tell forget rows from a holdout without another model, by their names in metrics. PrivLeak uses Min-K%.
MEMBERSHIP = {"loss": "loss", "zlib": "zlib", "min_k": "Min-K%", "min_k_plus_plus": "Min-K%++"}
# Chance that a model which never saw the rows is told from one by an attack, of all together: that of two standard errors.
CHANCE_OF_ERROR = 2 * (1 - NormalDist().cdf(2))


class Gap(NamedTuple):
    """Area of an attack, the area that it should have, and what says so."""

    area: float
    aim: float
    source: Baseline


def membership(evidence: Evidence, thresholds: Thresholds) -> Reason:
    """Return whether forget rows can be told from unseen ones by the worst of all attacks.

    The area that is farthest from a retain-only model's, else from 0.5, must be within the threshold, or within the error of
    few rows: that many standard errors of which one of k attacks exceeds one as rarely as a single attack two (Bonferroni),
    2.5 of four attacks.
    """
    found = {name: gap for name in MEMBERSHIP if (gap := area_gap(evidence, name)) is not None}
    if not found:
        why = "whether the rows can be told from unseen ones was not tested: it needs a holdout"
        return Reason("membership", "not_tested", "none", why)
    worst = max(found, key=lambda name: abs(found[name].area - found[name].aim))
    area, aim, source = found[worst]
    seen, unseen = (evidence.rows.get(each) for each in ("forget", "holdout"))
    noise = area_noise(evidence, len(found))
    distance, bound = abs(area - aim), max(thresholds.membership, noise)
    which = (
        MEMBERSHIP[worst] if len(found) == 1 else f"{MEMBERSHIP[worst]}, the worst of {len(found)} attacks,"
    )
    whose = "chance" if source == "holdout" else "a retain-only model's"
    of = f"membership AUC of {which} is {area:.2f}, {aim:.2f} is {whose}"
    if distance <= bound and noise > 2 * thresholds.membership:
        why = f"{of}: {seen} and {unseen} rows are too few to tell (error {noise:.2f})"
        return Reason("membership", "not_tested", source, why, distance, bound)
    status: Status = "met" if distance <= bound else "partly" if distance <= 2 * bound else "missed"
    what = (
        ""
        if status == "met"
        else ", the rows are recognized as seen"
        if area > aim
        else ", the rows look erased"
    )
    text = f"{of}{what} (at most {bound:.2f} apart)"
    return Reason("membership", status, source, text, distance, bound)


def area_gap(evidence: Evidence, attack: str) -> Gap | None:
    """Return the area of an attack and where it should be; None if it was not measured."""
    key = f"membership_{attack}_auc"
    if key not in evidence.now:
        return None
    theirs = (evidence.retain or {}).get(key)
    return (
        Gap(evidence.now[key], 0.5, "holdout")
        if theirs is None
        else Gap(evidence.now[key], theirs, "retain-only model")
    )


def area_noise(evidence: Evidence, attacks: int = 1) -> float:
    """Return the error of the worst area of some attacks; 0 if the numbers of rows are not known.

    Twice the standard error of a single one; see `membership`.
    """
    seen, unseen = (evidence.rows.get(each) for each in ("forget", "holdout"))
    errors = NormalDist().inv_cdf(1 - CHANCE_OF_ERROR / (2 * attacks))
    return errors * math.sqrt((seen + unseen + 1) / (12 * seen * unseen)) if seen and unseen else 0.0
