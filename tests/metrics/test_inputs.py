"""What all functions on numbers share: the kinds of input they take, and how they refuse one."""

import math

import numpy as np
import pytest
import torch

from dipo_pl.metrics.forget_quality import forget_quality
from dipo_pl.metrics.membership import min_k, min_k_plus_plus
from dipo_pl.metrics.memorization import exact_memorization, extraction_strength
from dipo_pl.metrics.probability import answer_probability, option_probability
from dipo_pl.metrics.truth_ratio import (
    log_arithmetic_truth_ratio,
    log_truth_ratio,
    truth_ratio_closeness,
    truth_ratio_margin,
)

# Exact in bfloat16.
CORRECT = [0.5, 1.0, 2.0]
WRONG = [[1.0, 2.0], [0.25, 4.0], [2.0, 2.0]]
IDS = [[3, 1, 2], [4, 0, 6]]
LOGS = [[-0.5, -1.25, -2.0], [-0.25, -4.0, -0.125]]
SQUARES = [[0.5, 1.25, 2.0], [0.25, 4.0, 0.125]]

ONE = [answer_probability, truth_ratio_closeness, truth_ratio_margin]
PAIR = [option_probability, log_truth_ratio, log_arithmetic_truth_ratio]
# Functions on answers of unequal lengths: their arguments by name.
TOKENS = {
    exact_memorization: {"predictions": IDS, "targets": IDS},
    extraction_strength: {"predictions": IDS, "targets": IDS},
    min_k: {"token_log_probs": LOGS},
    min_k_plus_plus: {"token_log_probs": LOGS, "means": LOGS, "variances": SQUARES},
}
ARGUMENTS = [(function, name) for function, given in TOKENS.items() for name in given]
CALLS = [
    *((function, [CORRECT]) for function in ONE),
    *((function, [CORRECT, WRONG]) for function in PAIR),
    *((function, list(given.values())) for function, given in TOKENS.items()),
]


def small(values):
    whole = isinstance(values[0], list) and isinstance(values[0][0], int)
    return torch.tensor(values, dtype=torch.int32 if whole else torch.bfloat16)


CONVERSIONS = {
    "tuple": lambda x: tuple(x),
    "array": np.array,
    "strided array": lambda x: np.array(x)[::-1].copy()[::-1],
    "tensor": torch.tensor,
    "small dtypes": small,
    "list of arrays": lambda x: [np.array(row) for row in x],
    "list of tensors": lambda x: [torch.tensor(row) for row in x],
    "lists of tensors": lambda x: [list(torch.tensor(row)) if isinstance(row, list) else row for row in x],
}


@pytest.mark.parametrize("convert", CONVERSIONS.values(), ids=CONVERSIONS.keys())
@pytest.mark.parametrize(("function", "given"), CALLS)
def test_takes_numbers_of_any_kind(function, given, convert):
    result = function(*map(convert, given))
    assert result.dtype == torch.float64
    assert result.shape == (len(given[0]),)
    assert torch.equal(result, function(*given))
    other = [0.25, 1.5, 3.0]
    assert forget_quality(convert(CORRECT), convert(other)) == forget_quality(CORRECT, other)


# torch warns where a value with a graph becomes a plain number.
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("function", "given"), [each for each in CALLS if each[1][0] is not IDS])
def test_keeps_no_graph_and_leaves_its_input_alone(function, given):
    tensors = [torch.tensor(each, dtype=torch.float64, requires_grad=True) for each in given]
    result = function(*tensors)
    assert not result.requires_grad
    arrays = [np.array(each) for each in given]
    function(*arrays).zero_()
    assert [each.tolist() for each in arrays] == given


@pytest.mark.parametrize(("function", "given"), CALLS)
def test_no_rows_give_no_rows(function, given):
    assert function(*(torch.empty(0, 5) if each is WRONG else [] for each in given)).shape == (0,)


def test_computes_in_float64():
    # Exact in bfloat16, unlike their mean; whole numbers have no mean of their own.
    values = [[-1.0, -1.0078125, -64.0]]
    mean = 66.0078125 / 3
    assert min_k(torch.tensor(values, dtype=torch.bfloat16), k=1.0).item() == pytest.approx(mean, rel=1e-15)
    assert min_k([[-3, -1], [-2]], k=1.0).tolist() == [2, 2]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None])
@pytest.mark.parametrize("function", PAIR)
def test_pair_names_rows_that_are_not_finite(function, bad):
    with pytest.raises(ValueError, match=r"correct_nll must be finite \(got \S+ at row 1; 1 of 3 rows\)"):
        function([0.5, bad, 2.0], WRONG)
    with pytest.raises(ValueError, match=r"wrong_nll must be finite \(got \S+ at row 0, 2; 2 of 3 rows\)"):
        function(CORRECT, [[1.0, bad], [0.25, 4.0], [bad, bad]])


def test_many_bad_rows_are_not_all_named():
    with pytest.raises(
        ValueError, match=r"nll must be finite \(got nan at row 0, 1, 2, 3, 4, ...; 7 of 8 rows\)"
    ):
        answer_probability([math.nan] * 7 + [0.5])


def test_log_probabilities_are_refused_as_losses():
    with pytest.raises(
        ValueError, match=r"nll must be >= 0 nats per token \(got -2 at row 1; .*minus the mean"
    ):
        answer_probability([0.1, -2.0])
    with pytest.raises(ValueError, match="correct_nll must be >= 0"):
        log_truth_ratio([-0.5], [[1.0]])
    with pytest.raises(ValueError, match="wrong_nll must be >= 0"):
        option_probability([0.5], [[-1.0]])
    # Rounding below 0 is no log-probability.
    assert answer_probability([-1e-6]).item() == pytest.approx(1, abs=2e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("function", [truth_ratio_closeness, truth_ratio_margin])
def test_ratio_names_rows_that_are_not_finite(function, bad):
    with pytest.raises(
        ValueError, match=r"log_ratio must be finite \(got \S+ at row 2; 1 of 3 rows\): pass log_truth_r"
    ):
        function([0.5, 1.0, bad])


@pytest.mark.parametrize("function", PAIR)
@pytest.mark.parametrize(("correct", "wrong", "line"), [
    (CORRECT[:2], WRONG, r"correct_nll and wrong_nll must have as many rows \(got 2 and 3\)"),
    ([[x] for x in CORRECT], WRONG, r"correct_nll must have shape \[N\] \(got \[3, 1\]\)"),
    (CORRECT, CORRECT, r"wrong_nll must have shape \[N, K\] \(got \[3\]\)"),
    (CORRECT, torch.empty(3, 0), r"at least one wrong answer a row \(got shape \[3, 0\]\)"),
    (CORRECT, [[1.0], [1.0, 2.0], [1.0]], r"wrong_nll must be numbers of shape \[N, K\], every row with as many"),
])  # fmt: skip
def test_pair_refuses_shapes_that_disagree(function, correct, wrong, line):
    with pytest.raises(ValueError, match=line):
        function(correct, wrong)


@pytest.mark.parametrize("function", ONE)
@pytest.mark.parametrize(("given", "line"), [
    (0.5, r"must have shape \[N\] \(got \[\]\)"),
    ([[0.5]], r"must have shape \[N\] \(got \[1, 1\]\)"),
    (["half"], "must be numbers"),
])  # fmt: skip
def test_one_argument_refuses_other_shapes(function, given, line):
    with pytest.raises(ValueError, match=line):
        function(given)


def refusal(function, **changes):
    with pytest.raises(ValueError, match=r".") as error:
        function(**{**TOKENS[function], **changes})
    return str(error.value)


@pytest.mark.parametrize(("function", "name"), ARGUMENTS)
def test_refuses_what_is_no_sequence_of_answers(function, name):
    numbers = TOKENS[function][name]
    for nothing in ([], torch.empty(0), np.array([], dtype=np.int64)):
        line = f"{name} has an answer without tokens at row 1: leave such rows"
        assert refusal(function, **{name: [numbers[0], nothing]}).startswith(line)
    for given, shape in ((numbers[0], []), (torch.tensor(numbers[0]), []), ([numbers], [2, 3])):
        line = f"{name} must have one sequence of numbers for each answer (got shape {shape} at row 0)"
        assert refusal(function, **{name: given}).startswith(line)
    for scalar in (torch.tensor(1), np.array(1)):
        assert f"{name} must be a sequence of answers (got a single number)" in refusal(
            function, **{name: scalar}
        )
    for bad in (["a"], [[1], [1, 2]]):
        assert refusal(function, **{name: [bad]}).startswith(f"{name} must be ")


@pytest.mark.parametrize(("function", "name"), [each for each in ARGUMENTS if each[0] is not min_k])
def test_refuses_lengths_that_differ(function, name):
    numbers = TOKENS[function][name]
    assert "must have as many rows (got" in refusal(function, **{name: numbers[:1]})
    line = refusal(function, **{name: [numbers[0], numbers[1][:2]]})
    assert "must have as many tokens (got" in line
    assert "at row 1" in line


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("function", "name"), ARGUMENTS[4:])
def test_names_the_row_that_is_not_finite(function, name, bad):
    line = refusal(function, **{name: [LOGS[0], [-0.5, bad, -1.0]]})
    assert line.startswith(
        f"{name} must be finite (got {bad:g} at row 1; 1 of 2 rows): the model has diverged"
    )


@pytest.mark.parametrize(("function", "name"), ARGUMENTS[:4])
def test_names_the_row_that_holds_no_token_ids(function, name):
    for bad in ([0.5], [math.nan], [True]):
        line = refusal(function, **{name: [IDS[0], bad]})
        assert line.startswith(f"{name} must be whole numbers (got torch.")
        assert line.endswith("at row 1): pass token ids")
    line = refusal(function, **{name: [IDS[0], [4, -100, -100]]})
    assert line.startswith(f"{name} must be token ids >= 0 (got -100 at row 1; 1 of 2 rows): leave masked")
