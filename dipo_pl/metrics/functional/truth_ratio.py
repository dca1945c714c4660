"""How much likelier a model holds wrong answers than the right one, and TOFU's two ways to score it."""

import math

import torch
from torch import Tensor

from dipo_pl.metrics.functional._inputs import Numbers, as_answer_nlls, as_float64, log_epsilon, reject


def log_truth_ratio(correct_nll: Numbers, wrong_nll: Numbers, epsilon: float = 0.0) -> Tensor:
    r"""log R = -log(P_correct + epsilon) - mean_j nll_wrong_j, the form of `truth_ratio` that cannot overflow.

    With epsilon = 0 that is nll_correct - mean_j nll_wrong_j.

    Source and arguments: as `truth_ratio`.

    Returns: [N] float64 on the CPU, nats, finite.
    Raises: ValueError: as `truth_ratio`.
    """
    correct, wrong = as_answer_nlls(correct_nll, wrong_nll)
    return -torch.logaddexp(-correct, log_epsilon(epsilon)) - wrong.mean(dim=1)


def truth_ratio(correct_nll: Numbers, wrong_nll: Numbers, epsilon: float = 0.0) -> Tensor:
    r"""R = (prod_j P_wrong_j)^(1/K) / (P_correct + epsilon), P = exp(-nll).

    With epsilon = 0 that is exp(nll_correct - mean_j nll_wrong_j).

    Source: TOFU, arXiv:2401.06121, section 2.2, "Truth Ratio", as its `aggregate_eval_stat.py` and
    open-unlearning compute it. Differs: the paper writes the arithmetic mean of the wrong answers'
    probabilities (`arithmetic_truth_ratio`), and published numbers use the geometric mean.
    epsilon is open-unlearning's, 1e-10 there; it sends R to 0 once the answers of a collapsed model pass
    about 23 nats per token.

    Args:
        correct_nll: [N] nats per token, of the paraphrased answer, or of the answer where a set has none.
        wrong_nll: [N, K] nats per token, K >= 1, in any order.
        epsilon: >= 0.
    Returns: [N] float64 on the CPU, >= 0; inf or 0 where |log R| passes about 709 nats.
    Raises: ValueError: shapes disagree, K is 0, or a value is not finite or negative.
    """
    return torch.exp(log_truth_ratio(correct_nll, wrong_nll, epsilon))


def arithmetic_truth_ratio(correct_nll: Numbers, wrong_nll: Numbers) -> Tensor:
    r"""R = (1/K sum_j P_wrong_j) / P_correct, P = exp(-nll): never below `truth_ratio`.

    Source: TOFU, arXiv:2401.06121, section 2.2, "Truth Ratio", as the text has it and as TOFU's
    evaluation during training computes it. Not comparable with published numbers; see `truth_ratio`.

    Args:
        correct_nll: [N] nats per token.
        wrong_nll: [N, K] nats per token, K >= 1, in any order.
    Returns: [N] float64 on the CPU, >= 0; inf or 0 where |log R| passes about 709 nats.
    Raises: ValueError: shapes disagree, K is 0, or a value is not finite or negative.
    """
    return torch.exp(log_arithmetic_truth_ratio(correct_nll, wrong_nll))


def log_arithmetic_truth_ratio(correct_nll: Numbers, wrong_nll: Numbers) -> Tensor:
    r"""log R of `arithmetic_truth_ratio`, the form that cannot overflow.

    Source and arguments: as `arithmetic_truth_ratio`.

    Returns: [N] float64 on the CPU, nats, finite.
    Raises: ValueError: as `arithmetic_truth_ratio`.
    """
    correct, wrong = as_answer_nlls(correct_nll, wrong_nll)
    return correct + torch.logsumexp(-wrong, dim=1) - math.log(wrong.shape[1])


def truth_ratio_closeness(ratio: Numbers) -> Tensor:
    r"""min(R, 1/R): 1 where the model cannot tell the right answer from the wrong ones.

    TOFU averages it over the forget set. Source: its `aggregate_eval_stat.py`.

    Args:
        ratio: [N] truth ratios, >= 0. inf is allowed: it is what an overflowing `truth_ratio` gives.
    Returns: [N] float64 on the CPU, in [0, 1].
    Raises: ValueError: ratio is not [N], or holds NaN or a negative number.
    """
    checked = _as_ratio(ratio)
    return torch.minimum(checked, 1 / checked)


def truth_ratio_margin(ratio: Numbers) -> Tensor:
    r"""max(0, 1 - R): how far the right answer leads; 0 where the wrong ones are at least as likely.

    TOFU averages it over the retain set, real authors and world facts. Source: its
    `aggregate_eval_stat.py`.

    Args:
        ratio: [N] truth ratios, >= 0. inf is allowed: it is what an overflowing `truth_ratio` gives.
    Returns: [N] float64 on the CPU, in [0, 1].
    Raises: ValueError: ratio is not [N], or holds NaN or a negative number.
    """
    return torch.clamp(1 - _as_ratio(ratio), min=0)


def _as_ratio(ratio: Numbers) -> Tensor:
    checked = as_float64("ratio", ratio, "N")
    bad = torch.isnan(checked) | (checked < 0)
    reject("ratio", checked, bad, "a number >= 0", "pass truth_ratio, not log_truth_ratio")
    return checked
