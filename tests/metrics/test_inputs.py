"""What all functions on numbers share: the kinds of input they take, and how they refuse one."""

import numpy as np
import pytest
import torch

from dipo_pl.metrics import (
    answer_probability,
    arithmetic_truth_ratio,
    forget_quality,
    log_truth_ratio,
    option_probability,
    truth_ratio,
    truth_ratio_closeness,
    truth_ratio_margin,
)

CORRECT = [0.5, 1.0, 2.0]
WRONG = [[1.0, 2.0], [0.25, 4.0], [2.0, 2.0]]
ONE = [answer_probability, truth_ratio_closeness, truth_ratio_margin]
PAIR = [option_probability, truth_ratio, log_truth_ratio, arithmetic_truth_ratio]

# All of these values are exact in bfloat16.
CONVERSIONS = {
    "list": lambda x: x,
    "tuple": lambda x: tuple(x),
    "float64 array": lambda x: np.array(x),
    "float32 array": lambda x: np.array(x, dtype=np.float32),
    "strided array": lambda x: np.array(x)[::-1].copy()[::-1],
    "bfloat16 tensor": lambda x: torch.tensor(x, dtype=torch.bfloat16),
    "tensor with gradient": lambda x: torch.tensor(x, requires_grad=True),
    "list of tensors": lambda x: [torch.tensor(row) for row in x],
}


@pytest.mark.parametrize("convert", CONVERSIONS.values(), ids=CONVERSIONS.keys())
@pytest.mark.parametrize("function", [*ONE, *PAIR])
def test_takes_numbers_of_any_kind(function, convert):
    args = (CORRECT, WRONG) if function in PAIR else (CORRECT,)
    result = function(*map(convert, args))
    assert result.dtype == torch.float64
    assert result.shape == (3,)
    assert not result.requires_grad
    assert torch.equal(result, function(*args))


@pytest.mark.parametrize("function", [*ONE, *PAIR])
def test_leaves_its_input_alone(function):
    args = [np.array(CORRECT), np.array(WRONG)] if function in PAIR else [np.array(CORRECT)]
    function(*args).zero_()
    assert args[0].tolist() == CORRECT


@pytest.mark.parametrize("function", [*ONE, *PAIR])
def test_no_rows_give_no_rows(function):
    args = (torch.empty(0), torch.empty(0, 5)) if function in PAIR else ([],)
    assert function(*args).shape == (0,)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), None])
@pytest.mark.parametrize("function", PAIR)
def test_pair_names_rows_that_are_not_finite(function, bad):
    with pytest.raises(ValueError, match=r"correct_nll must be finite, got \S+ at row 1 \(1 of 3 rows\)"):
        function([0.5, bad, 2.0], WRONG)
    with pytest.raises(ValueError, match=r"wrong_nll must be finite, got \S+ at row 0, 2 \(2 of 3 rows\)"):
        function(CORRECT, [[1.0, bad], [0.25, 4.0], [bad, bad]])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_answer_probability_names_rows_that_are_not_finite(bad):
    with pytest.raises(
        ValueError, match=r"nll must be finite, got \S+ at row 0, 1, 2, 3, 4, ... \(7 of 8 rows\)"
    ):
        answer_probability([bad] * 7 + [0.5])


def test_log_probabilities_are_refused_as_losses():
    with pytest.raises(
        ValueError, match=r"nll must be >= 0 nats per token, got -2 at row 1 .*minus the mean"
    ):
        answer_probability([0.1, -2.0])
    with pytest.raises(ValueError, match="correct_nll must be >= 0"):
        truth_ratio([-0.5], [[1.0]])
    with pytest.raises(ValueError, match="wrong_nll must be >= 0"):
        option_probability([0.5], [[-1.0]])


def test_rounding_below_zero_is_no_log_probability():
    assert answer_probability([-1e-6]).item() == pytest.approx(1, abs=2e-6)


@pytest.mark.parametrize("bad", [float("nan"), -0.1, float("-inf")])
@pytest.mark.parametrize("function", [truth_ratio_closeness, truth_ratio_margin])
def test_ratio_names_rows_that_are_no_ratio(function, bad):
    with pytest.raises(
        ValueError, match=r"ratio must be a number >= 0, got \S+ at row 2 .*not log_truth_ratio"
    ):
        function([0.5, 1.0, bad])


@pytest.mark.parametrize("function", PAIR)
def test_pair_refuses_shapes_that_disagree(function):
    with pytest.raises(ValueError, match=r"correct_nll and wrong_nll must have the same N, got 2 and 3"):
        function(CORRECT[:2], WRONG)
    with pytest.raises(ValueError, match=r"correct_nll must have shape \[N\], got \[3, 1\]"):
        function([[x] for x in CORRECT], WRONG)
    with pytest.raises(ValueError, match=r"wrong_nll must have shape \[N, K\], got \[3\]"):
        function(CORRECT, CORRECT)
    with pytest.raises(ValueError, match=r"at least one wrong answer a question, got shape \[3, 0\]"):
        function(CORRECT, torch.empty(3, 0))
    with pytest.raises(ValueError, match=r"wrong_nll must be numbers of shape \[N, K\].*every row the same"):
        function(CORRECT, [[1.0], [1.0, 2.0], [1.0]])


@pytest.mark.parametrize("function", ONE)
def test_one_argument_refuses_other_shapes(function):
    for bad, shape in ((0.5, r"\[\]"), ([[0.5]], r"\[1, 1\]")):
        with pytest.raises(ValueError, match=rf"must have shape \[N\], got {shape}"):
            function(bad)
    with pytest.raises(ValueError, match="must be numbers"):
        function(["half"])


def test_forget_quality_takes_numbers_of_any_kind():
    other = [0.25, 1.5, 3.0]
    expected = forget_quality(CORRECT, other)
    for convert in CONVERSIONS.values():
        assert forget_quality(convert(CORRECT), convert(other)) == expected
