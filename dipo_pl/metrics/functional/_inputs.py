"""What every metric does first: turn numbers into float64 tensors, or say why it cannot."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Numbers: TypeAlias = Tensor | npt.NDArray[Any] | Sequence[Any]

# A float32 logsumexp over large logits can round the loss of a certain token to slightly below 0.
NLL_ROUNDING = 1e-3


def as_float64(name: str, values: Numbers, axes: str) -> Tensor:
    """A detached float64 copy on the CPU: MPS has no float64, and SciPy reads CPU memory only.

    Args:
        name: what to call the values in an error.
        values: a tensor of any dtype and device, an array, or a (nested) list of numbers.
        axes: the shape the values must have, such as "N" or "N, K".
    Returns: [*axes] float64.
    Raises: ValueError: not numbers, rows of unequal length, or another number of axes.
    """
    if isinstance(values, Tensor):
        numbers = values.detach().to(device="cpu", dtype=torch.float64, copy=True)
    else:
        try:
            numbers = torch.from_numpy(np.array(values, dtype=np.float64))
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{name} must be numbers of shape [{axes}], got values that make no such array ({error}); "
                "give every row the same number of plain numbers"
            ) from error
    if numbers.ndim != len(axes.split(",")):
        raise ValueError(f"{name} must have shape [{axes}], got {list(numbers.shape)}; reshape it")
    return numbers


def reject(name: str, values: Tensor, bad: Tensor, requirement: str, advice: str) -> None:
    """Name the rows where `bad` holds, if there are any.

    Args:
        values, bad: [N] or [N, K]; `bad` is bool.
    Raises: ValueError: `bad` holds somewhere.
    """
    if not bool(bad.any()):
        return
    rows = bad.reshape(len(bad), -1).any(dim=1).nonzero().flatten().tolist()
    shown = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
    raise ValueError(
        f"{name} must be {requirement}, got {values[bad][0].item():g} "
        f"at row {shown} ({len(rows)} of {len(bad)} rows); {advice}"
    )


def as_nll(name: str, values: Numbers, axes: str) -> Tensor:
    """`as_float64`, for negative log-likelihoods in nats per token.

    Raises: ValueError: also where a value is NaN, infinite or negative.
    """
    nll = as_float64(name, values, axes)
    advice = "such a row has no answer tokens, or the model has diverged"
    reject(name, nll, ~torch.isfinite(nll), "finite", advice)
    advice = "pass minus the mean log-probability of the tokens"
    reject(name, nll, nll < -NLL_ROUNDING, ">= 0 nats per token", advice)
    return nll


def as_answer_nlls(correct_nll: Numbers, wrong_nll: Numbers) -> tuple[Tensor, Tensor]:
    """The right answer of each question and its wrong ones, [N] and [N, K], checked against each other.

    Raises: ValueError: as `as_nll`; N differs; K is 0.
    """
    correct = as_nll("correct_nll", correct_nll, "N")
    wrong = as_nll("wrong_nll", wrong_nll, "N, K")
    if len(correct) != len(wrong):
        raise ValueError(
            f"correct_nll and wrong_nll must have the same N, got {len(correct)} and {len(wrong)}; "
            "pass one row of wrong answers for each right answer"
        )
    if wrong.shape[1] == 0:
        raise ValueError(
            f"wrong_nll must hold at least one wrong answer a question, got shape {list(wrong.shape)}"
        )
    return correct, wrong
