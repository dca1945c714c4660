"""How much likelier a model holds wrong answers than the right one, and TOFU's two ways to score it."""

import math

import torch
from torch import Tensor

from dipo_pl.metrics.functional._inputs import Numbers, as_answer_nlls, as_float64, reject


def log_truth_ratio(correct_nll: Numbers, wrong_nll: Numbers) -> Tensor:
    r"""log R = nll_correct - mean_j nll_wrong_j, the form of `truth_ratio` that cannot overflow.

    Source and arguments: as `truth_ratio`.

    Returns: [N] float64 on the CPU, nats, finite.
    Raises: ValueError: as `truth_ratio`.
    """
    correct, wrong = as_answer_nlls(correct_nll, wrong_nll)
    return correct - wrong.mean(dim=1)


def truth_ratio(correct_nll: Numbers, wrong_nll: Numbers) -> Tensor:
    r"""R = (prod_j P_wrong_j)^(1/K) / P_correct = exp(nll_correct - mean_j nll_wrong_j), P = exp(-nll).

    Source: TOFU, arXiv:2401.06121, section 2.2, "Truth Ratio", as its `aggregate_eval_stat.py` and
    open-unlearning compute it. Differs: the paper writes the arithmetic mean of the wrong answers'
    probabilities (`arithmetic_truth_ratio`), and published numbers use the geometric mean.
    open-unlearning adds 1e-10 to P_correct, which sends R to 0 once nll_correct passes about 18.

    Args:
        correct_nll: [N] nats per token, of the paraphrased answer, or of the answer where a set has none.
        wrong_nll: [N, K] nats per token, K >= 1, in any order.
    Returns: [N] float64 on the CPU, >= 0; inf or 0 where |log R| passes about 709 nats.
    Raises: ValueError: shapes disagree, K is 0, or a value is not finite or negative.
    """
    return torch.exp(log_truth_ratio(correct_nll, wrong_nll))


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
    correct, wrong = as_answer_nlls(correct_nll, wrong_nll)
    return torch.exp(correct + torch.logsumexp(-wrong, dim=1) - math.log(wrong.shape[1]))


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
