"""Judgement of one attack: what the model still knows by it, beside the target and the model that never knew."""

from dataclasses import dataclass
from typing import Literal

from dipo_pl.attacks.base import Outcome
from dipo_pl.attacks.subject import CALLED, MODELS, RETAIN_ONLY, TARGET, UNLEARNED

Status = Literal["indistinguishable", "distinguishable", "not_forgotten", "not_tried"]


@dataclass(frozen=True)
class Judgement:
    """Finding of an attack on the unlearned model.

    Attributes:
        status: `indistinguishable` from the model that never knew, `distinguishable` from it, `not_forgotten`, or
            `not_tried`.
        reason: the figures, or what was missing.
    """

    status: Status
    reason: str


def not_tried(reason: str) -> Judgement:
    """Return the judgement of an attack that was not tried."""
    return Judgement("not_tried", reason)


def judge(outcome: Outcome, tolerance: float, removed: float) -> Judgement:
    r"""Return what an attack says of the unlearned model, with values t, u and r of the three models.

        not_tried           |u - r| <= tolerance and |t - r| <= tolerance: there was nothing to forget by this attack
        indistinguishable   otherwise, if |u - r| <= tolerance
        not_forgotten       otherwise, if t - r > tolerance and (t - u) / (t - r) < removed
        distinguishable     otherwise

    Without a retain-only model r counts as the outcome's floor, as if the best had been reached, for `not_forgotten` alone:
    nothing else can be said.

    Args:
        outcome: what the attack found.
        tolerance: the attack's.
        removed: share of the way from the target to the retain-only model that counts as forgotten.
    """
    values = outcome.values
    shown = ", ".join(f"{CALLED[name]} {values[name]:.3g}" for name in MODELS if name in values)
    reason = f"{outcome.headline}: {shown}"
    now, target, base = values[UNLEARNED], values.get(TARGET), values.get(RETAIN_ONLY)
    if base is not None and abs(now - base) <= tolerance:
        if target is not None and abs(target - base) <= tolerance:
            return not_tried(f"{reason}; it cannot tell the target from the retain-only model either")
        return Judgement("indistinguishable", reason)
    distance = 0.0 if target is None else target - (outcome.floor if base is None else base)
    if target is not None and distance > tolerance and target - now < removed * distance:
        return Judgement("not_forgotten", reason)
    if base is None:
        return not_tried(f"{reason}; it takes a retain-only model to compare with (--against)")
    return Judgement("distinguishable", reason)


def overall(judgements: dict[str, Judgement]) -> Judgement:
    """Return the judgement of an audit: that of its worst attack, and how many were not tried."""
    worst: tuple[Status, ...] = ("not_forgotten", "distinguishable")
    for status in worst:
        found = [name for name, each in judgements.items() if each.status == status]
        if found:
            return Judgement(status, f"by {', '.join(found)}")
    tried = [name for name, each in judgements.items() if each.status != "not_tried"]
    missing = len(judgements) - len(tried)
    if not tried:
        return not_tried("no attack could be compared")
    rest = f"; {missing} not tried" if missing else ""
    return Judgement("indistinguishable", f"by {', '.join(tried)}{rest}")
