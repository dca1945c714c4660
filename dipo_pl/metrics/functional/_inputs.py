"""What every metric does first: turn numbers into float64 tensors, or say why it cannot."""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Numbers: TypeAlias = Tensor | npt.NDArray[Any] | Sequence[Any]
# Of N answers, one sequence each; a 2-D tensor or array is N answers of equal length.
Answers: TypeAlias = Tensor | npt.NDArray[Any] | Sequence[Numbers]

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


def as_answers(name: str, answers: Answers) -> list[Tensor]:
    """Detached copies on the CPU of one sequence of numbers for each answer, of any lengths from 1 on.

    Raises: ValueError: no sequence of sequences, or an answer without tokens.
    """
    if isinstance(answers, Tensor | np.ndarray) and answers.ndim == 0:
        raise ValueError(
            f"{name} must be a sequence of answers, got a single number; put it in a list of lists"
        )
    return [_as_answer(name, row, answer) for row, answer in enumerate(answers)]


def _as_answer(name: str, row: int, answer: Numbers) -> Tensor:
    if isinstance(answer, Tensor):
        tokens = answer.detach().to("cpu", copy=True)
    else:
        try:
            tokens = torch.from_numpy(np.array(answer))
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{name} must hold plain numbers, got {answer!r} at row {row} ({error}); pass one number a token"
            ) from error
    if tokens.ndim != 1:
        raise ValueError(
            f"{name} must hold one sequence of numbers for each answer, got shape {list(tokens.shape)} at row {row}; "
            "put a single answer in a list"
        )
    if len(tokens) == 0:
        raise ValueError(f"{name} has an answer without tokens at row {row}; leave such rows out of the set")
    return tokens


def as_token_ids(name: str, answers: Answers) -> list[Tensor]:
    """`as_answers`, for token ids, as int64.

    Raises: ValueError: also where an id is negative or no whole number.
    """
    ids = as_answers(name, answers)
    for row, each in enumerate(ids):
        if each.is_floating_point() or each.is_complex() or each.dtype == torch.bool:
            raise ValueError(f"{name} must be whole numbers, got {each.dtype} at row {row}; pass token ids")
        if each.min() < 0:
            raise ValueError(
                f"{name} must be token ids >= 0, got {each.min().item()} at row {row}; leave masked positions out"
            )
    return [each.long() for each in ids]


def as_token_values(name: str, answers: Answers) -> list[Tensor]:
    """`as_answers`, for one number of any kind a token, as float64.

    Raises: ValueError: also where a value is NaN or infinite.
    """
    values = [each.double() for each in as_answers(name, answers)]
    advice = "the model has diverged, or a probability was rounded to 0 before its logarithm was taken"
    reject_tokens(name, values, lambda each: ~torch.isfinite(each), "finite", advice)
    return values


def reject_tokens(
    name: str, answers: Sequence[Tensor], bad: Callable[[Tensor], Tensor], requirement: str, advice: str
) -> None:
    """Name the first answer where `bad` holds of a token, if there is one.

    Raises: ValueError: `bad` holds somewhere.
    """
    for row, each in enumerate(answers):
        where = bad(each)
        if bool(where.any()):
            raise ValueError(
                f"{name} must be {requirement}, got {each[where][0].item():g} at row {row}; {advice}"
            )


def check_pairs(name: str, answers: Sequence[Tensor], other_name: str, others: Sequence[Tensor]) -> None:
    """Whether two descriptions of the same answers agree about their number and lengths.

    Raises: ValueError: they do not.
    """
    if len(answers) != len(others):
        raise ValueError(
            f"{name} and {other_name} must have the same N, got {len(answers)} and {len(others)} answers; "
            "pass both for each answer"
        )
    for row, (answer, other) in enumerate(zip(answers, others, strict=True)):
        if len(answer) != len(other):
            raise ValueError(
                f"{name} and {other_name} must have the same number of tokens, got {len(answer)} and {len(other)} "
                f"at row {row}; pass one of each for every answer token"
            )


def check_texts(name: str, texts: Sequence[str]) -> None:
    """Whether `texts` is a sequence of strings.

    Raises: ValueError: it is a single string, or an entry is none.
    """
    # A string is a sequence of strings too, and would be scored letter by letter.
    if isinstance(texts, str):
        raise ValueError(f"{name} must be a list of strings, got the string {texts!r}; put it in a list")
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"{name} must be strings, got {text!r} at row {row}; decode the tokens")


def log_epsilon(epsilon: float) -> Tensor:
    """log(epsilon), which is -inf for 0: a term that adds nothing to a logsumexp.

    Returns: scalar float64.
    Raises: ValueError: epsilon is negative or not finite.
    """
    if not (math.isfinite(epsilon) and epsilon >= 0):
        raise ValueError(f"epsilon must be a finite number >= 0, got {epsilon}; 0 adds nothing")
    return torch.tensor(epsilon, dtype=torch.float64).log()


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
