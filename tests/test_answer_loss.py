"""Answer losses against a slow float64 loop, whatever the budget."""

import math

import pytest
import torch

from dipo_pl.answer_loss import answer_nll
from dipo_pl.head import OutputHead


@pytest.mark.parametrize("budget", [1, 3, 100])
def test_answer_nll_matches_a_loop(budget):
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(7, 4, generator=generator)
    head = OutputHead(
        torch.randn(11, 4, generator=generator), torch.randn(11, generator=generator), scale=0.5
    )
    targets, lengths = torch.tensor([0, 10, 3, 3, 7, 1, 2]), (1, 4, 2)
    expected, start = [], 0
    for length in lengths:
        total = 0.0
        for t in range(start, start + length):
            row = [
                0.5 * (sum(float(h) * float(w) for h, w in zip(states[t], weight, strict=True)) + float(bias))
                for weight, bias in zip(head.weight, head.bias, strict=True)
            ]
            total += math.log(sum(math.exp(z) for z in row)) - row[targets[t]]
        expected.append(total / length)
        start += length
    assert answer_nll(states, targets, lengths, head, budget).tolist() == pytest.approx(expected, rel=1e-5)


def test_answer_nll_is_float32_whatever_the_default_and_the_dtype():
    """Lightning changes the default dtype during a step with precision bf16-true or 64-true."""
    states, head = torch.randn(3, 4, dtype=torch.bfloat16), OutputHead(torch.randn(5, 4))
    torch.set_default_dtype(torch.bfloat16)
    try:
        nll = answer_nll(states, torch.tensor([0, 1, 2]), (2, 1), head, 8)
    finally:
        torch.set_default_dtype(torch.float32)
    assert nll.dtype == torch.float32
