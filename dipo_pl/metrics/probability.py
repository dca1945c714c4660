"""Probability of the true answers: per token, and among the answers to a question."""

import torch
from torch import Tensor

from dipo_pl.errors import InputError
from dipo_pl.metrics.base import EvaluationMetric
from dipo_pl.metrics.inputs import Numbers, as_answer_nlls, as_nll, log_epsilon
from dipo_pl.metrics.observations import Observations


def answer_probability(nll: Numbers) -> Tensor:
    r"""Return P(a|q)^(1/|a|) = exp(-nll), the geometric mean of the token probabilities of each answer.

    Source: TOFU, arXiv:2401.06121, section 2.2, "Probability", for its retain and forget sets.

    Args:
        nll: [N] mean negative log-likelihood of each answer, nats per token.

    Returns:
        [N] float64 on the CPU, in [0, 1] up to rounding.

    Raises:
        ValueError: `nll` is not [N], or a value is not finite or negative.
    """
    return torch.exp(-as_nll("nll", nll, "N"))


def option_probability(correct_nll: Numbers, wrong_nll: Numbers, epsilon: float = 0.0) -> Tensor:
    r"""Return P_correct / (P_correct + sum_j P_wrong_j + epsilon), P = exp(-nll): multiple choice among the answers.

    Source: TOFU, arXiv:2401.06121, section 2.2, "Probability", for its real authors and world facts.
    Differs: the paper writes probabilities of whole sequences; its code and open-unlearning take them per token, as
    here. epsilon is open-unlearning's, 1e-10 there; with it the value goes to 0 once all answers are above about 23
    nats per token, whatever their order.

    Args:
        correct_nll: [N] nats per token.
        wrong_nll: [N, K] nats per token, K >= 1, in any order.
        epsilon: at least 0.

    Returns:
        [N] float64 on the CPU, in [0, 1].

    Raises:
        ValueError: shapes disagree, K is 0, a value is not finite or negative, or epsilon is negative.
    """
    correct, wrong = as_answer_nlls(correct_nll, wrong_nll)
    spare = log_epsilon(epsilon).expand(len(correct), 1)
    # softmax subtracts the largest logit, so losses in the thousands give 0 or 1 and never 0 / 0.
    return torch.softmax(torch.cat([-correct.unsqueeze(1), -wrong, spare], dim=1), dim=1)[:, 0]


class Probability(EvaluationMetric):
    """Metric `probability`: `answer_probability` of the original answers; on sets of options `option_probability`."""

    inputs = ("nll",)

    def per_row(self, seen: Observations) -> dict[str, Tensor]:
        """Return `probability`; raise InputError if rows of a set of options have no wrong answers."""
        if not self.measured.evaluation_set.options:
            return {"probability": answer_probability(seen.nll[:, 0])}
        if not self.measured.has_wrong_answers:
            raise InputError(
                f"the evaluation set {self.measured.name!r} needs wrong answers (perturbed_answer)"
            )
        epsilon = self.measured.convention.epsilon
        return {"probability": option_probability(seen.nll[:, 0], seen.nll[:, 2:], epsilon)}
