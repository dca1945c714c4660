"""Judgement of one attack: what the model still knows by it, beside the target and the model that never knew."""

import math
from dataclasses import dataclass
from typing import Literal

from dipo_pl.attacks.base import Outcome
from dipo_pl.attacks.subject import CALLED, MODELS, RETAIN_ONLY, TARGET, UNLEARNED

Status = Literal["indistinguishable", "distinguishable", "not_forgotten", "cannot_tell", "not_tried"]
# More rows than this nobody has.
MANY = 100_000


@dataclass(frozen=True)
class Judgement:
    """Finding of an attack on the unlearned model.

    Attributes:
        status: `indistinguishable` from the model that never knew, `distinguishable` from it, `not_forgotten`,
            `cannot_tell` where the rows are too few for any of these, or `not_tried`.
        reason: the figures, or what was missing.
        settle: what would settle it; empty where it is settled.
    """

    status: Status
    reason: str
    settle: str = ""


def not_tried(reason: str, settle: str = "") -> Judgement:
    """Return the judgement of an attack that was not tried."""
    return Judgement("not_tried", reason, settle)


def judge(outcome: Outcome, tolerance: float, removed: float) -> Judgement:
    r"""Return what an attack says of the unlearned model, with values t, u and r of the three models.

    With [low, high] the 95 % interval of u - r over rows, and g that of the share (t - u) / (t - r) that is gone:

        not_tried           |t - r| <= tolerance, unless u - r is outside of it: there was nothing to forget by this attack
        indistinguishable   otherwise, if -tolerance <= low and high <= tolerance
        not_forgotten       otherwise, if low > tolerance and all of g is below removed
        distinguishable     otherwise, if low > tolerance or high < -tolerance
        cannot_tell         otherwise: the interval holds distances of both kinds

    Without a retain-only model r counts as the outcome's floor, as if the best had been reached, for `not_forgotten` alone:
    nothing else can be said. Where an attack knows no intervals, its values stand for them; fewer than two rows of one that
    does cannot tell.

    Args:
        outcome: what the attack found.
        tolerance: the attack's: distances up to this count as none.
        removed: share of the way from the target to the retain-only model that counts as forgotten.
    """
    values, intervals = outcome.values, outcome.intervals
    shown = ", ".join(f"{CALLED[name]} {values[name]:.3g}" for name in MODELS if name in values)
    reason = f"{outcome.headline}: {shown}"
    now, target, base = values[UNLEARNED], values.get(TARGET), values.get(RETAIN_ONLY)
    way = 0.0 if target is None else target - (outcome.floor if base is None else base)
    kept = target is not None and way > tolerance and _most(outcome, way) < removed
    if base is None:
        if kept:
            return Judgement("not_forgotten", reason)
        missing = "a retain-only model to compare with (--against)"
        return not_tried(f"{reason}; it takes {missing}", missing)
    if intervals is not None and intervals.rows < 2:
        return Judgement(
            "cannot_tell", f"{reason}: too few rows to tell", f"two rows or more (got {intervals.rows})"
        )
    low, high = now - base, now - base
    if intervals is not None and intervals.distance is not None:
        low, high = intervals.distance
        reason += f"; distance {now - base:.3g} [{low:.3g}, {high:.3g}], at most {tolerance:g}"
    apart = low > tolerance or high < -tolerance
    if target is not None and abs(way) <= tolerance and not apart:
        return not_tried(f"{reason}; it cannot tell the target from the retain-only model either")
    if -tolerance <= low and high <= tolerance:
        return Judgement("indistinguishable", reason)
    if apart:
        return Judgement("not_forgotten" if kept and low > tolerance else "distinguishable", reason)
    assert intervals is not None
    rows = _rows_to_tell(now - base, (low, high), tolerance, intervals.rows)
    settle = f"about {rows} rows (these are {intervals.rows})" if rows <= MANY else "another tolerance"
    return Judgement("cannot_tell", f"{reason}: too few rows to tell", settle)


def _most(outcome: Outcome, way: float) -> float:
    """Return the most that may be gone, as a share of the way from the target."""
    intervals = outcome.intervals
    if intervals is not None and intervals.rows < 2:
        return math.inf
    if intervals is not None and intervals.gone is not None:
        return intervals.gone[1]
    return (outcome.values[TARGET] - outcome.values[UNLEARNED]) / way


def _rows_to_tell(distance: float, interval: tuple[float, float], tolerance: float, rows: int) -> int:
    """Return about how many rows, in two digits, make an interval narrow enough, whose widths fall with their root.

    An interval need not be as wide on both sides: what counts is the side that crosses a tolerance.
    """
    most = 1.0
    for bound in (-tolerance, tolerance):
        if interval[0] < bound < interval[1]:
            crossing = interval[0] if bound < distance else interval[1]
            width, margin = abs(crossing - distance), abs(bound - distance)
            if margin * math.sqrt(MANY) < width * math.sqrt(rows):
                return MANY + 1
            most = max(most, width / margin)
    return max(rows + 1, int(float(f"{rows * most**2:.2g}")))


def overall(judgements: dict[str, Judgement]) -> Judgement:
    """Return the judgement of an audit: that of its worst attack, how many were not tried, what would settle the rest."""
    settle = "; ".join(f"{name}: {each.settle}" for name, each in judgements.items() if each.settle)
    worst: tuple[Status, ...] = ("not_forgotten", "distinguishable", "cannot_tell")
    for status in worst:
        found = [name for name, each in judgements.items() if each.status == status]
        if found:
            return Judgement(status, f"by {', '.join(found)}", settle)
    tried = [name for name, each in judgements.items() if each.status != "not_tried"]
    missing = len(judgements) - len(tried)
    if not tried:
        return not_tried("no attack could be compared", settle)
    rest = f"; {missing} not tried" if missing else ""
    return Judgement("indistinguishable", f"by {', '.join(tried)}{rest}", settle)
