"""Checks of the arguments of metric functions: numbers become float64 tensors, or an error says what is wrong."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dipo_pl.errors import check_number

Numbers: TypeAlias = Tensor | npt.NDArray[Any] | Sequence[Any]
# One sequence of numbers for each of N answers; a 2-D tensor or array holds answers of equal length.
Answers: TypeAlias = Tensor | npt.NDArray[Any] | Sequence[Numbers]

# A float32 logsumexp over large logits can round the loss of a certain token to slightly below 0.
NLL_ROUNDING = 1e-3


def as_float64(name: str, values: Numbers, axes: str) -> Tensor:
    """Return a detached float64 copy on the CPU: MPS has no float64, and SciPy reads CPU memory only.

    Args:
        name: the name of the values in an error.
        values: a tensor of any dtype and device, an array, or a (nested) list of numbers.
        axes: the shape that the values must have, such as "N" or "N, K".

    Raises:
        ValueError: the values are no numbers, rows have unequal lengths, or the number of axes differs.
    """
    numbers = _tensor(f"{name} must be numbers of shape [{axes}], every row with as many", values, np.float64)
    if numbers.ndim != len(axes.split(",")):
        raise ValueError(f"{name} must have shape [{axes}] (got {list(numbers.shape)}): reshape it")
    return numbers.double()


def as_sample(name: str, values: Numbers) -> Tensor:
    """Return finite numbers of at least one row, [N] float64.

    Raises:
        ValueError: see `as_float64`; or there are no values, or one is NaN or infinite.
    """
    sample = as_float64(name, values, "N")
    if len(sample) == 0:
        raise ValueError(f"{name} must have at least one row (got none): evaluate the set first")
    reject(name, sample, lambda each: ~each.isfinite(), "finite", "check that the model has not diverged")
    return sample


def as_nll(name: str, values: Numbers, axes: str) -> Tensor:
    """Return negative log-likelihoods in nats per token, as `as_float64` does.

    Raises:
        ValueError: see `as_float64`; or a value is NaN, infinite or negative.
    """
    nll = as_float64(name, values, axes)
    advice = "such a row has no answer tokens, or the model has diverged"
    reject(name, nll, lambda each: ~each.isfinite(), "finite", advice)
    advice = "pass minus the mean log-probability of the tokens"
    reject(name, nll, lambda each: each < -NLL_ROUNDING, ">= 0 nats per token", advice)
    return nll


def as_answer_nlls(correct_nll: Numbers, wrong_nll: Numbers) -> tuple[Tensor, Tensor]:
    """Return the NLL of the correct answers and of the wrong ones, [N] and [N, K], checked against each other.

    Raises:
        ValueError: see `as_nll`; or N differs, or K is 0.
    """
    correct, wrong = as_nll("correct_nll", correct_nll, "N"), as_nll("wrong_nll", wrong_nll, "N, K")
    check_lengths("correct_nll", correct, "wrong_nll", wrong)
    if wrong.shape[1] == 0:
        raise ValueError(
            f"wrong_nll must have at least one wrong answer a row (got shape {list(wrong.shape)})"
        )
    return correct, wrong


def log_epsilon(epsilon: float) -> Tensor:
    """Return log(epsilon), which for 0 is -inf: a term that adds nothing to a logsumexp.

    Raises:
        InputError: epsilon is negative or not finite.
    """
    check_number("epsilon", epsilon, minimum=0)
    return torch.tensor(epsilon, dtype=torch.float64).log()


def as_token_ids(name: str, answers: Answers) -> list[Tensor]:
    """Return the token ids of each answer, [n] int64 on the CPU.

    Raises:
        ValueError: this is no sequence of sequences, an answer has no tokens, or an id is negative or no whole number.
    """
    ids = _per_answer(name, answers)
    for row, each in enumerate(ids):
        if each.is_floating_point() or each.is_complex() or each.dtype == torch.bool:
            raise ValueError(f"{name} must be whole numbers (got {each.dtype} at row {row}): pass token ids")
    reject(name, ids, lambda each: each < 0, "token ids >= 0", "leave masked positions out")
    return [each.long() for each in ids]


def as_token_values(name: str, answers: Answers) -> list[Tensor]:
    """Return one number for each token of each answer, [n] float64 on the CPU.

    Raises:
        ValueError: this is no sequence of sequences, an answer has no tokens, or a value is NaN or infinite.
    """
    values = [each.double() for each in _per_answer(name, answers)]
    advice = "the model has diverged, or a probability was rounded to 0 before its logarithm was taken"
    reject(name, values, lambda each: ~each.isfinite(), "finite", advice)
    return values


def reject(
    name: str, rows: Tensor | Sequence[Tensor], bad: Callable[[Tensor], Tensor], requirement: str, advice: str
) -> None:
    """Refuse values for which `bad` holds, and name their rows; raise ValueError if `bad` holds for a value."""
    found = {row: each[bad(each)] for row, each in enumerate(rows) if bool(bad(each).any())}
    if found:
        shown = ", ".join(map(str, [*found][:5])) + (", ..." if len(found) > 5 else "")
        raise ValueError(
            f"{name} must be {requirement} (got {next(iter(found.values()))[0].item():g} at row {shown}; "
            f"{len(found)} of {len(rows)} rows): {advice}"
        )


def check_lengths(
    name: str, values: Sequence[Any] | Tensor, other_name: str, others: Sequence[Any] | Tensor
) -> None:
    """Refuse two arguments that describe different numbers of rows; raise ValueError if the numbers differ."""
    if len(values) != len(others):
        raise ValueError(
            f"{name} and {other_name} must have as many rows (got {len(values)} and {len(others)})"
        )


def check_tokens(name: str, answers: Sequence[Tensor], other_name: str, others: Sequence[Tensor]) -> None:
    """Refuse two descriptions of the same answers with different numbers of answers or tokens.

    Raises:
        ValueError: the numbers differ.
    """
    check_lengths(name, answers, other_name, others)
    for row, (answer, other) in enumerate(zip(answers, others, strict=True)):
        if len(answer) != len(other):
            raise ValueError(
                f"{name} and {other_name} must have as many tokens (got {len(answer)} and {len(other)} at row {row})"
            )


def check_texts(name: str, texts: Sequence[str]) -> None:
    """Refuse what is no list of strings; raise ValueError if `texts` is a single string, or an entry is no string."""
    # A string is a sequence of strings too, and would be scored letter by letter.
    if isinstance(texts, str):
        raise ValueError(f"{name} must be a list of strings (got the string {texts!r}): put it in a list")
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"{name} must be strings (got {text!r} at row {row}): decode the tokens")


def _per_answer(name: str, answers: Answers) -> list[Tensor]:
    """Return the numbers of each answer, a vector on the CPU."""
    if isinstance(answers, Tensor | np.ndarray) and answers.ndim == 0:
        raise ValueError(
            f"{name} must be a sequence of answers (got a single number): put it in a list of lists"
        )
    found = [_tensor(f"{name} must be plain numbers at row {row}", each) for row, each in enumerate(answers)]
    for row, each in enumerate(found):
        if each.ndim != 1:
            raise ValueError(
                f"{name} must have one sequence of numbers for each answer (got shape {list(each.shape)} at row "
                f"{row}): put a single answer in a list"
            )
        if len(each) == 0:
            raise ValueError(
                f"{name} has an answer without tokens at row {row}: leave such rows out of the set"
            )
    return found


def _tensor(requirement: str, values: Numbers, dtype: type[np.float64] | None = None) -> Tensor:
    """Return a detached copy on the CPU."""
    if isinstance(values, Tensor):
        return values.detach().to("cpu", copy=True)
    try:
        return torch.from_numpy(np.array(values, dtype=dtype))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{requirement} (got {values!r:.60}: {error})") from error
