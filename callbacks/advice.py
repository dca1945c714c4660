"""Advice in numbers on what to change after a run that forgot too little or lost too much."""

from lightning import Trainer

# A step in the learning rate that is seen in the result.
STEP = 5


def learning_rate(trainer: Trainer) -> float | None:
    """Return the highest learning rate of the schedule; None before there is an optimizer."""
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    return max((float(group.get("initial_lr", group["lr"])) for group in groups), default=None)


def gentler(rate: float | None) -> str:
    """Return the advice for a run that loses what it should keep."""
    return _try(None if rate is None else rate / STEP, "a fifth of this")


def stronger(rate: float | None) -> str:
    """Return the advice for a run that does not forget."""
    return _try(None if rate is None else rate * STEP, "five times this")


def _try(rate: float | None, relation: str) -> str:
    return f"try model.optimizer.lr {'' if rate is None else f'{rate:.3g} '}({relation})"
