"""Unlearning depth: in how many of the layers that encode what is to be forgotten it is gone."""

import torch
from torch import Tensor

from dipo_pl.errors import check_number
from dipo_pl.metrics.inputs import Numbers, as_float64, as_sample, reject


def depth_scores(
    full: Numbers, retain: Numbers, unlearned: Numbers, threshold: float = 0.05
) -> tuple[Tensor, Tensor]:
    r"""Return the Unlearning Depth Score of each row, and which rows have one.

        D1_l = s - s1_l,   D2_l = s - s2_l
        UDS = sum_l D1_l clip(D2_l / D1_l, 0, 1) / sum_l D1_l,   over the layers l with D1_l > threshold

    where s is the mean log-probability of a row's entity tokens under the target, and s1_l and s2_l are the same with the
    output of layer l, at the positions that predict them, replaced by the retain-only model's and the unlearned model's.
    1 is erased as in the retain-only model, 0 is intact. A row without such layers has no score.

    Source: arXiv:2605.24614.

    Args:
        full: s, [N] nats per token.
        retain: s1, [N, L].
        unlearned: s2, [N, L].
        threshold: nats per token, at least 0.

    Returns:
        [N] float64 on the CPU, in [0, 1], 0 where there is none; [N] bool.

    Raises:
        ValueError: shapes disagree, there are no rows, or a value is not finite.
        InputError: the threshold is negative.
    """
    check_number("threshold", threshold, minimum=0)
    s = as_sample("full", full)
    s1, s2 = as_float64("retain", retain, "N, L"), as_float64("unlearned", unlearned, "N, L")
    for name, values in (("retain", s1), ("unlearned", s2)):
        reject(name, values, lambda each: ~each.isfinite(), "finite", "check that the model has not diverged")
    if s1.shape != s2.shape or len(s1) != len(s):
        raise ValueError(
            f"retain and unlearned must have one row of layers for each of {len(s)} rows of full (got "
            f"{list(s1.shape)} and {list(s2.shape)})"
        )
    lost, gone = s[:, None] - s1, s[:, None] - s2
    encodes = lost > threshold
    weight = torch.where(encodes, lost, 0.0)
    share = (gone / torch.where(encodes, lost, 1.0)).clamp(0, 1)
    total = weight.sum(1)
    has = total > 0
    return torch.where(has, (weight * share).sum(1) / torch.where(has, total, 1.0), 0.0), has


def layer_shares(
    full: Numbers, retain: Numbers, unlearned: Numbers, threshold: float = 0.05
) -> tuple[Tensor, Tensor]:
    r"""Return for each layer the share that is gone there, as `depth_scores` over rows, and how many rows it encodes.

        share_l = sum_rows D1_l clip(D2_l / D1_l, 0, 1) / sum_rows D1_l,   over the rows with D1_l > threshold

    Arguments and errors are those of `depth_scores`.

    Returns:
        [L] float64 on the CPU, in [0, 1], 0 where no row encodes anything; [L] int64.
    """
    s = as_sample("full", full)
    s1, s2 = as_float64("retain", retain, "N, L"), as_float64("unlearned", unlearned, "N, L")
    depth_scores(s, s1, s2, threshold)
    # A layer over rows is what a row is over layers.
    lost, gone = (s[:, None] - s1).T, (s[:, None] - s2).T
    shares, _ = depth_scores(torch.zeros(len(lost)), -lost, -gone, threshold)
    return shares, (lost > threshold).sum(1)
