"""Answer losses and token scores against a slow float64 loop, whatever the budget."""

import math

import pytest
import torch

from dipo_pl.models.answer_scores import answer_scores
from dipo_pl.models.head import OutputHead

TARGETS, LENGTHS = torch.tensor([0, 10, 3, 3, 7, 1, 2]), (1, 4, 2)


@pytest.fixture
def states():
    return torch.randn(7, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def head():
    generator = torch.Generator().manual_seed(1)
    return OutputHead(
        torch.randn(11, 4, generator=generator), torch.randn(11, generator=generator), scale=0.5
    )


def log_distribution(state, head):
    """log p over the vocabulary, number by number."""
    logits = [
        0.5 * (sum(float(h) * float(w) for h, w in zip(state, weight, strict=True)) + float(bias))
        for weight, bias in zip(head.weight, head.bias, strict=True)
    ]
    normaliser = math.log(sum(math.exp(z) for z in logits))
    return [z - normaliser for z in logits]


@pytest.mark.parametrize("budget", [1, 3, 100])
def test_answer_losses_match_a_loop(states, head, budget):
    expected, start = [], 0
    for length in LENGTHS:
        places = range(start, start + length)
        expected.append(-sum(log_distribution(states[t], head)[TARGETS[t]] for t in places) / length)
        start += length
    nll, _ = answer_scores(states, TARGETS, LENGTHS, head, token_budget=budget)
    assert nll.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("budget", [1, 3, 100])
@pytest.mark.parametrize("detailed", [None, [0, 1, 1, 0, 0, 0, 1], [0] * 7])
def test_token_scores_match_a_loop(states, head, budget, detailed):
    chosen = [t for t in range(7) if detailed is None or detailed[t]]
    mask = None if detailed is None else torch.tensor(detailed, dtype=torch.bool)
    _, scores = answer_scores(states, TARGETS, LENGTHS, head, mask, budget)
    rows = [log_distribution(states[t], head) for t in chosen]
    means = [sum(math.exp(each) * each for each in row) for row in rows]
    variances = [
        sum(math.exp(each) * (each - mean) ** 2 for each in row)
        for row, mean in zip(rows, means, strict=True)
    ]
    assert scores.targets.tolist() == [int(TARGETS[t]) for t in chosen]
    assert scores.predictions.tolist() == [row.index(max(row)) for row in rows]
    true = [row[TARGETS[t]] for row, t in zip(rows, chosen, strict=True)]
    assert scores.log_probabilities.tolist() == pytest.approx(true, rel=1e-5)
    assert scores.means.tolist() == pytest.approx(means, rel=1e-5)
    assert scores.variances.tolist() == pytest.approx(variances, rel=1e-4)


@pytest.mark.parametrize("budget", [1, 2, 100])
def test_states_that_predict_several_tokens(states, head, budget):
    """Scores are those of a state for each token, in the order of the tokens."""
    places = torch.tensor([2, 0, 3, 0, 1, 2, 2])
    detailed = torch.tensor([1, 0, 1, 1, 1, 0, 1], dtype=torch.bool)
    few = states[:4]
    nll, scores = answer_scores(few, TARGETS, LENGTHS, head, detailed, budget, places)
    expected_nll, expected = answer_scores(few[places], TARGETS, LENGTHS, head, detailed)
    assert nll.tolist() == pytest.approx(expected_nll.tolist(), rel=1e-6)
    for name, column in vars(scores).items():
        assert column.tolist() == pytest.approx(getattr(expected, name).tolist(), rel=1e-5), name


def test_losses_are_float32_whatever_the_default_and_the_dtype(states):
    """Lightning changes the default dtype during a step with precision bf16-true or 64-true."""
    head = OutputHead(torch.randn(5, 4))
    torch.set_default_dtype(torch.bfloat16)
    try:
        nll, scores = answer_scores(states[:3].bfloat16(), torch.tensor([0, 1, 2]), (2, 1), head)
    finally:
        torch.set_default_dtype(torch.float32)
    assert nll.dtype == scores.means.dtype == scores.variances.dtype == torch.float32
