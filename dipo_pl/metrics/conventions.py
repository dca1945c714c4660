"""Conventions: named choices of benchmarks that change values; results of different conventions are not compared."""

from dataclasses import dataclass
from typing import Literal

# The sets that Model Utility averages over on TOFU.
UTILITY_SETS = ("retain", "real_authors", "world_facts")

ConventionName = Literal["dipo_pl", "tofu", "muse", "open_unlearning", "arithmetic", "prob_mean"]


@dataclass(frozen=True)
class Convention:
    """Choices that a benchmark's code makes where its paper leaves them open or other code differs.

    Attributes:
        name: the name in configs and results.
        rows: evaluate at most this many rows of a set, the first ones; None is all.
        arithmetic_truth_ratio: average the probabilities of the wrong answers, as TOFU's text says, instead of their
            losses, as all published values do.
        epsilon: added to the denominators of truth ratio and option probability.
        extraction_floor: the extraction strength of an answer of n tokens is at least 1/n, also if no token is right.
        stemmed_f1: compute ROUGE-L F1 on Porter-stemmed words.
        whole_references: compare a continuation with all of the text that follows, not with as many tokens of it.
        prob_mean: the truth ratio of the forget set is the mean of P_correct / (P_correct + P_wrong).
    """

    name: ConventionName
    rows: int | None = None
    arithmetic_truth_ratio: bool = False
    epsilon: float = 0.0
    extraction_floor: bool = False
    stemmed_f1: bool = False
    whole_references: bool = False
    prob_mean: bool = False


# `open_unlearning`: https://github.com/locuslab/open-unlearning at d3d7cf9; `tofu`: https://github.com/locuslab/tofu;
# `muse`: https://github.com/jaechan-repo/muse_bench; `prob_mean`: an aggregator of open-unlearning since its #163.
CONVENTIONS: dict[str, Convention] = {
    each.name: each
    for each in (
        Convention("dipo_pl"),
        Convention("tofu", rows=300),
        Convention("muse"),
        Convention(
            "open_unlearning", epsilon=1e-10, extraction_floor=True, stemmed_f1=True, whole_references=True
        ),
        Convention("arithmetic", arithmetic_truth_ratio=True),
        Convention("prob_mean", prob_mean=True),
    )
}
