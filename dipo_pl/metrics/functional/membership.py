"""Whether a text was trained on: scores of single texts, and how well a score sets trained ones apart.

All scores are HIGHER for a text that is LESS likely a member of the training set. Two more need no function: the
loss itself, in nats per token, and the loss less that of a reference model.

The caller leaves out the end of sequence that closes an answer; open-unlearning drops the last labelled token
always, also where it is a real one.
"""

import math
import zlib as compression
from collections.abc import Sequence

import torch
from torch import Tensor

from dipo_pl.metrics.functional._inputs import (
    NLL_ROUNDING,
    Answers,
    Numbers,
    as_float64,
    as_nll,
    as_token_values,
    check_pairs,
    check_texts,
    reject,
    reject_tokens,
)

# Below this a variance is taken for this: the next token is certain, and its score would be 0 / 0.
LEAST_VARIANCE = 1e-6


def min_k(token_log_probs: Answers, k: float = 0.4) -> Tensor:
    r"""-1/m sum of the m lowest log p(y_t | y_<t), m = max(1, int(k n)): Min-K% Prob.

    Source: Shi et al., arXiv:2310.16789, "Min-K% Prob"; k = 0.4 as in MUSE, arXiv:2407.06460.

    Args:
        token_log_probs: N answers, each of n_i >= 1 log-probabilities, nats.
        k: share of the tokens, 0 < k <= 1.
    Returns: [N] float64 on the CPU, nats, >= 0 up to rounding; higher is less likely a member.
    Raises: ValueError: an answer has no tokens, a value is not finite or > 0, or k is out of range.
    """
    return _mean_of_lowest(_as_log_probs(token_log_probs), k)


def min_k_plus_plus(token_log_probs: Answers, means: Answers, variances: Answers, k: float = 0.4) -> Tensor:
    r"""-1/m sum of the m lowest (log p(y_t) - mu_t) / sqrt(max(sigma_t^2, 1e-6)), m = max(1, int(k n)): Min-K%++.

    mu_t = sum_v p_t(v) log p_t(v) and sigma_t^2 = sum_v p_t(v) (log p_t(v) - mu_t)^2, over the vocabulary.

    Source: Zhang et al., arXiv:2404.02936, "Min-K%++"; the bound of the variance is open-unlearning's.

    Args:
        token_log_probs, means, variances: N answers, each of n_i >= 1 numbers, nats and nats^2.
        k: share of the tokens, 0 < k <= 1.
    Returns: [N] float64 on the CPU; higher is less likely a member.
    Raises: ValueError: shapes disagree, an answer has no tokens, a value is not finite, a log-probability or mean is
        > 0, a variance < 0, or k is out of range.
    """
    log_probs, mu = _as_log_probs(token_log_probs), as_token_values("means", means)
    reject_tokens(
        "means", mu, lambda each: each > NLL_ROUNDING, "<= 0 nats", "pass means of log-probabilities"
    )
    sigma2 = as_token_values("variances", variances)
    advice = "pass variances, not their logarithms"
    reject_tokens("variances", sigma2, lambda each: each < -NLL_ROUNDING, ">= 0", advice)
    check_pairs("token_log_probs", log_probs, "means", mu)
    check_pairs("token_log_probs", log_probs, "variances", sigma2)
    scores = [
        (log_prob - mean) / variance.clamp(min=LEAST_VARIANCE).sqrt()
        for log_prob, mean, variance in zip(log_probs, mu, sigma2, strict=True)
    ]
    return _mean_of_lowest(scores, k)


def zlib(nll: Numbers, texts: Sequence[str]) -> Tensor:
    r"""nll / |zlib(text)|: the loss in nats per token over the bytes of the compressed text.

    Source: Carlini et al., arXiv:2012.07805, "zlib entropy"; with the loss per token as open-unlearning has it.

    Args:
        nll: [N] mean negative log-likelihood of each text, nats per token.
        texts: the N texts whose loss that is, without the prompt; compressed as UTF-8 at zlib's default level.
    Returns: [N] float64 on the CPU, nats per byte; higher is less likely a member.
    Raises: ValueError: nll is not [N], not finite or negative, the lengths differ, or a text is empty or no string.
    """
    losses = as_nll("nll", nll, "N")
    check_texts("texts", texts)
    if len(losses) != len(texts):
        raise ValueError(
            f"nll and texts must pair up, got {len(losses)} and {len(texts)}; pass one text for each loss"
        )
    for row, text in enumerate(texts):
        if not text:
            raise ValueError(
                f"texts has an answer without tokens at row {row}; leave such rows out of the set"
            )
    sizes = [len(compression.compress(text.encode())) for text in texts]
    return losses / torch.tensor(sizes, dtype=torch.float64)


def auroc(members: Numbers, nonmembers: Numbers) -> float:
    r"""P(nonmember > member) + P(nonmember = member) / 2, over all pairs; exact.

    1: every member of the forget set is recognised, as in a model that saw it; 0.5: members cannot be told from
    texts never seen; below 0.5: they look less seen than those, forgotten too hard. This is open-unlearning's
    direction; MUSE's own code writes the area the other way round, 1 less this.

    Args:
        members: [N] scores of texts that are to be forgotten, higher for those less likely a member.
        nonmembers: [M] scores of texts of the same kind that no model has seen (the holdout set).
    Returns: in [0, 1].
    Raises: ValueError: not [N] and [M], empty, or not finite.
    """
    seen, unseen = _as_scores("members", members), _as_scores("nonmembers", nonmembers)
    ordered = seen.sort().values
    # Members below each nonmember, without those equal to it and with them: a pair won counts 2, a tie 1.
    won = torch.searchsorted(ordered, unseen, right=False) + torch.searchsorted(ordered, unseen, right=True)
    return int(won.sum()) / (2 * len(seen) * len(unseen))


def priv_leak(auc: float, retain_auc: float = 0.5) -> float:
    r"""100 [(1 - auc) - (1 - retain_auc)] / (1 - retain_auc + 1e-10), in percent; 0 is best.

    Negative: the forget set is still recognised (under-unlearned), down to -100; positive: it looks less seen than
    what a model without it makes of it (over-unlearned).

    Source: MUSE, arXiv:2407.06460, "PrivLeak", on Min-K% Prob. MUSE's own code has A = 1 - auc for the area, and
    so (A - A_retain) / A_retain: the same value and sign. 1e-10 is open-unlearning's.

    Args:
        auc: `auroc` of the unlearned model.
        retain_auc: of a model that never saw the forget set; 0.5, a coin, where there is none.
    Raises: ValueError: an area is not in [0, 1], or retain_auc is 1.
    """
    for name, area in (("auc", auc), ("retain_auc", retain_auc)):
        if not 0 <= area <= 1:
            raise ValueError(f"{name} must be an area in [0, 1], got {area}; pass what auroc gives")
    # Any other model would differ from it by billions of percent.
    if retain_auc == 1:
        raise ValueError(
            "retain_auc must be below 1, got 1: a model that never saw the members cannot recognise all of them; "
            "check which set is which, and take a holdout set of the same kind, or leave retain_auc at 0.5"
        )
    return 100 * ((1 - auc) - (1 - retain_auc)) / (1 - retain_auc + 1e-10)


def _mean_of_lowest(values: Sequence[Tensor], k: float) -> Tensor:
    if not (math.isfinite(k) and 0 < k <= 1):
        raise ValueError(f"k must be a share of the tokens, 0 < k <= 1, got {k}; MUSE takes 0.4")
    lowest = [each.sort().values[: max(1, int(k * len(each)))].mean() for each in values]
    return -torch.tensor(lowest, dtype=torch.float64)


def _as_log_probs(answers: Answers) -> list[Tensor]:
    values = as_token_values("token_log_probs", answers)
    advice = "pass log-probabilities, not losses or probabilities"
    reject_tokens("token_log_probs", values, lambda each: each > NLL_ROUNDING, "<= 0 nats", advice)
    return values


def _as_scores(name: str, values: Numbers) -> Tensor:
    scores = as_float64(name, values, "N")
    if len(scores) == 0:
        raise ValueError(f"{name} must hold at least one score, got none; score the set first")
    reject(name, scores, ~torch.isfinite(scores), "finite", "check that the model has not diverged")
    return scores
