"""Sampling of next tokens, in which every sample of every row has random numbers of its own."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor

from dipo_pl.errors import TrainingError, check_count, check_number, check_share


@dataclass(frozen=True)
class Sampling:
    r"""Distribution that samples are drawn from, and the random numbers that draw them.

        p = softmax(z / T), of the most probable tokens that together have at least top_p, renormalized
        y_t = min {v: p(1) + ... + p(v) > u_t}

    with logits z. The numbers u_0, u_1, ... in [0, 1) are those of numpy's generator with the seed sequence (seed, row,
    sample), so that a sample does not depend on what else is sampled, in which order or where.

    Source: nucleus sampling, arXiv:1904.09751, where a token that is as probable as the last one kept may differ.

    Attributes:
        samples: samples of each prompt.
        temperature: T, above 0; greedy decoding is `generate`.
        top_p: in (0, 1]; 1 keeps all tokens.
        seed: at least 0.

    Raises:
        InputError: a value is out of its range.
    """

    samples: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_count("samples", self.samples)
        check_number("temperature", self.temperature, above=0)
        check_share("top_p", self.top_p)
        check_count("seed", self.seed, 0)

    def numbers(self, row: int, tokens: int) -> Tensor:
        """Return u of each sample of a row, [samples, tokens] float64 on the CPU."""
        rows = [
            np.random.default_rng([self.seed, row, sample]).random(tokens) for sample in range(self.samples)
        ]
        return torch.from_numpy(np.stack(rows))

    def choose(self, logits: Tensor, numbers: Tensor) -> Tensor:
        """Return a token for each of B distributions.

        Args:
            logits: [B, V].
            numbers: u, [B] float64.

        Returns:
            [B] int64.

        Raises:
            TrainingError: logits are not finite, or all of a row are minus infinity.
        """
        p = (logits.float() / self.temperature).softmax(-1)
        if self.top_p < 1:
            ordered, tokens = p.sort(dim=-1, descending=True, stable=True)
            # A token stays where those before it do not reach top_p yet: the first one always does.
            kept = ordered.cumsum(-1, dtype=torch.float64) - ordered < self.top_p
            p = torch.zeros_like(p).scatter_(-1, tokens, ordered * kept)
        sums = p.cumsum(-1, dtype=torch.float64)
        if not sums[:, -1].isfinite().all():
            raise TrainingError(
                "logits are not finite while texts are sampled: the model's weights are broken"
            )
        # Below the last sum, also where u is the largest number below 1.
        below = numbers.to(sums.device)[:, None] * sums[:, -1:]
        return torch.searchsorted(sums, below, right=True)[:, 0]

    def processor(self, numbers: Tensor, width: int) -> LogitsProcessor:
        """Return the processor with which greedy generation draws samples.

        Args:
            numbers: [B, tokens], u of each sequence of the batch.
            width: tokens of the padded prompts.
        """
        return _Choice(self.choose, numbers, width)


class _Choice(LogitsProcessor):
    """Processor that makes the drawn token the most likely one."""

    def __init__(self, choose: Callable[[Tensor, Tensor], Tensor], numbers: Tensor, width: int) -> None:
        self.choose, self.numbers, self.width = choose, numbers, width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen = self.choose(scores, self.numbers[:, input_ids.shape[1] - self.width])
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen[:, None], 0.0)
