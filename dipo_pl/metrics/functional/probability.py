"""The probability that a model gives an answer, per token and among options."""

import torch
from torch import Tensor

from dipo_pl.metrics.functional._inputs import Numbers, as_answer_nlls, as_nll, log_epsilon


def answer_probability(nll: Numbers) -> Tensor:
    r"""P(a|q)^(1/|a|) = exp(-nll): the geometric mean of the answer's token probabilities.

    Source: TOFU, arXiv:2401.06121, section 2.2, "Probability", for its retain and forget sets.

    Args:
        nll: [N] mean negative log-likelihood of each answer, nats per token.
    Returns: [N] float64 on the CPU, in [0, 1] up to rounding.
    Raises: ValueError: nll is not [N], not finite, or negative.
    """
    return torch.exp(-as_nll("nll", nll, "N"))


def option_probability(correct_nll: Numbers, wrong_nll: Numbers, epsilon: float = 0.0) -> Tensor:
    r"""P_correct / (P_correct + sum_j P_wrong_j + epsilon), P = exp(-nll): multiple choice among the answers.

    Source: TOFU, arXiv:2401.06121, section 2.2, "Probability", for its real authors and world facts.
    Differs: the paper writes whole-sequence probabilities; its code and open-unlearning take them per
    token, as here. epsilon is open-unlearning's, 1e-10 there; with it the score goes to 0 once all answers
    pass about 23 nats per token, whatever their order.

    Args:
        correct_nll: [N] nats per token.
        wrong_nll: [N, K] nats per token, K >= 1, in any order.
        epsilon: >= 0.
    Returns: [N] float64 on the CPU, in [0, 1].
    Raises: ValueError: shapes disagree, K is 0, or a value is not finite or negative.
    """
    correct, wrong = as_answer_nlls(correct_nll, wrong_nll)
    spare = log_epsilon(epsilon).expand(len(correct), 1)
    # softmax subtracts the largest logit, so losses in the thousands give 0 or 1 and never 0 / 0.
    return torch.softmax(torch.cat([-correct.unsqueeze(1), -wrong, spare], dim=1), dim=1)[:, 0]
