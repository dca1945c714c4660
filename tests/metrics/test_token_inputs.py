"""What all functions on answers of unequal length share: the kinds of input they take, and how they refuse one."""

import math

import numpy as np
import pytest
import torch

from dipo_pl.metrics import exact_memorization, extraction_strength, min_k, min_k_plus_plus

IDS = [[3, 1, 2], [4, 0, 6]]
LOGS = [[-0.5, -1.25, -2.0], [-0.25, -4.0, -0.125]]
# Each with the arguments it takes of such numbers, and their names.
FUNCTIONS = {
    exact_memorization: (IDS, ("predictions", "targets")),
    extraction_strength: (IDS, ("predictions", "targets")),
    min_k: (LOGS, ("token_log_probs",)),
    min_k_plus_plus: (LOGS, ("token_log_probs", "means", "variances")),
}


def call(function, *changes, convert=lambda answers: answers):
    """With good arguments, but for those that `changes` gives by place."""
    numbers, names = FUNCTIONS[function]
    arguments = [[[abs(x) for x in row] for row in numbers] if n == "variances" else numbers for n in names]
    for place, change in changes:
        arguments[place] = change
    return function(*map(convert, arguments))


def cases():
    return [(function, place) for function, (_, names) in FUNCTIONS.items() for place in range(len(names))]


CONVERSIONS = {
    "tuples": lambda answers: tuple(map(tuple, answers)),
    "2-D array": np.array,
    "2-D tensor": torch.tensor,
    "arrays": lambda answers: [np.array(answer) for answer in answers],
    "tensors": lambda answers: [torch.tensor(answer) for answer in answers],
    "small dtypes": lambda answers: [
        torch.tensor(answer, dtype=torch.int32 if isinstance(answer[0], int) else torch.bfloat16)
        for answer in answers
    ],
    "lists of tensors": lambda answers: [list(torch.tensor(answer)) for answer in answers],
}


@pytest.mark.parametrize("convert", CONVERSIONS.values(), ids=CONVERSIONS.keys())
@pytest.mark.parametrize("function", FUNCTIONS)
def test_takes_numbers_of_any_kind(function, convert):
    result = call(function, convert=convert)
    assert result.dtype == torch.float64
    assert result.shape == (2,)
    assert torch.equal(result, call(function))


def test_computes_in_float64():
    # Exact in bfloat16, unlike their mean; whole numbers have no mean of their own.
    values = [[-1.0, -1.0078125, -64.0]]
    mean = 66.0078125 / 3
    assert min_k(torch.tensor(values, dtype=torch.bfloat16), k=1.0).item() == pytest.approx(mean, rel=1e-15)
    assert min_k([[-3, -1], [-2]], k=1.0).tolist() == [2, 2]


# torch warns where a value with a graph becomes a plain number.
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("function", [min_k, min_k_plus_plus])
def test_keeps_no_graph(function):
    with_gradient = torch.tensor(LOGS, requires_grad=True)
    assert not call(function, (0, with_gradient)).requires_grad


@pytest.mark.parametrize("function", FUNCTIONS)
def test_no_answers_give_no_values(function):
    assert function(*[[] for _ in FUNCTIONS[function][1]]).shape == (0,)


@pytest.mark.parametrize(("function", "place"), cases())
def test_refuses_an_answer_without_tokens(function, place):
    name = FUNCTIONS[function][1][place]
    for nothing in ([], torch.empty(0), np.array([], dtype=np.int64)):
        with pytest.raises(
            ValueError, match=f"{name} has an answer without tokens at row 1; leave such rows"
        ):
            call(function, (place, [FUNCTIONS[function][0][0], nothing]))


@pytest.mark.parametrize(("function", "place"), cases())
def test_refuses_a_single_answer(function, place):
    name, numbers = FUNCTIONS[function][1][place], FUNCTIONS[function][0]
    for single in (numbers[0], torch.tensor(numbers[0])):
        with pytest.raises(ValueError, match=rf"{name} must hold one sequence .* got shape \[\] at row 0"):
            call(function, (place, single))
    with pytest.raises(ValueError, match=rf"{name} must hold one sequence .* got shape \[2, 3\] at row 0"):
        call(function, (place, [numbers]))
    for scalar in (torch.tensor(1), np.array(1)):
        with pytest.raises(ValueError, match=f"{name} must be a sequence of answers, got a single number"):
            call(function, (place, scalar))


@pytest.mark.parametrize(("function", "place"), cases())
def test_refuses_what_is_no_number(function, place):
    for bad in (["a"], [[1], [1, 2]]):
        with pytest.raises(
            ValueError, match=rf"{FUNCTIONS[function][1][place]} must hold plain numbers, got \["
        ):
            call(function, (place, [bad]))


@pytest.mark.parametrize(("function", "place"), [case for case in cases() if len(FUNCTIONS[case[0]][1]) > 1])
def test_refuses_lengths_that_differ(function, place):
    numbers, names = FUNCTIONS[function]
    fewer = [[abs(x) for x in row] for row in numbers] if names[place] == "variances" else numbers
    with pytest.raises(ValueError, match=rf"{names[0]} and \w+ must have the same N, got"):
        call(function, (place, fewer[:1]))
    with pytest.raises(
        ValueError, match=rf"{names[0]} and \w+ must have the same number of tokens, .* at row 1"
    ):
        call(function, (place, [fewer[0], fewer[1][:2]]))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("function", "place"), [case for case in cases() if FUNCTIONS[case[0]][0] is LOGS])
def test_names_the_row_that_is_not_finite(function, place, bad):
    name = FUNCTIONS[function][1][place]
    with pytest.raises(ValueError, match=rf"{name} must be finite, got \S+ at row 1; the model has diverged"):
        call(function, (place, [LOGS[0], [-0.5, bad, -1.0]]))


@pytest.mark.parametrize(("function", "place"), [case for case in cases() if FUNCTIONS[case[0]][0] is IDS])
def test_names_the_row_that_holds_no_token_ids(function, place):
    name = FUNCTIONS[function][1][place]
    for bad in ([0.5], [math.nan], [True]):
        with pytest.raises(ValueError, match=rf"{name} must be whole numbers, got torch\.\w+ at row 1; pass"):
            call(function, (place, [IDS[0], bad]))
    with pytest.raises(ValueError, match=rf"{name} must be token ids >= 0, got -100 at row 1; leave masked"):
        call(function, (place, [IDS[0], [4, -100, -100]]))
