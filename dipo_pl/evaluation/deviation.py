"""Distance of a checkpoint from a model that never saw the rows, by which one is chosen."""

import math
from statistics import fmean

from dipo_pl.evaluation.membership_rule import area_gap, area_noise
from dipo_pl.evaluation.verdict_rules import MEASURES, Evidence, Thresholds, least_removed, lowest_p

# A part counts as exceeding 1 by at most this.
FARTHEST = 1000.0


def deviation(evidence: Evidence, thresholds: Thresholds) -> float | None:
    """Return how far the weights are from a model that never saw the rows, in units of the thresholds.

    The parts are (1 - removed share) / (1 - threshold) for each measure of forgetting, |AUC - aim| / threshold for
    membership by Min-K% alone (the worst of all attacks is often one that no step moves), and log p / log threshold for
    Forget Quality. Where all of these rules are met, the deviation is the largest part, at most 1; else it is 1 plus the
    mean of what the parts exceed 1 by, so that it falls as long as any of them comes nearer: an AUC of 1 and a p-value of
    few rows stay where they are for long. It rises again once rows are erased so far that they can be told from unseen ones
    by that.

    None if there is no measure of forgetting.
    """
    shares = [least_removed(evidence, name, thresholds) for _, name in MEASURES.values()]
    # The threshold may be 1: all has to be gone.
    allowed = max(1 - thresholds.removed, 1 / FARTHEST)
    left = [(1 - each) / allowed for each in shares if each is not None]
    if not left:
        return None
    gap = area_gap(evidence, "min_k")
    bound = max(thresholds.membership, area_noise(evidence))
    if gap is not None and bound:
        left.append(abs(gap.area - gap.aim) / bound)
    if "forget_quality_log10_p" in evidence.now and lowest_p(evidence) <= thresholds.forget_quality > 0:
        # With a threshold of 1 the rule cannot be met, since no p-value is above 1.
        bound = -math.log10(thresholds.forget_quality)
        left.append(-evidence.now["forget_quality_log10_p"] / bound if bound else FARTHEST)
    beyond = fmean(min(max(each - 1, 0.0), FARTHEST) for each in left)
    return 1 + beyond if beyond else max(0.0, *left)
