"""Conventions that change numbers, by name; results of different ones are not compared."""

from dataclasses import dataclass
from typing import Literal

# What Model Utility is made of on TOFU.
UTILITY_SETS = ("retain", "real_authors", "world_facts")

ConventionName = Literal["dipo_pl", "tofu", "muse", "open_unlearning", "arithmetic"]


@dataclass(frozen=True)
class Convention:
    """What a benchmark's code does where its paper leaves a choice, or another code chooses otherwise.

    Attributes:
        rows: most rows of a set, the first ones; None is all.
        arithmetic_truth_ratio: average the wrong answers' probabilities, as TOFU's text has it, in place of
            their losses, as all published numbers do.
        epsilon: added to the denominators of truth ratio and option probability.
        extraction_floor: an answer of n tokens has an extraction strength of at least 1/n, also if none is extracted.
        stemmed_f1: take ROUGE-L F1 of Porter-stemmed words.
        whole_references: compare a continuation with the whole text that follows, not with as many tokens of it.
    """

    name: ConventionName
    rows: int | None = None
    arithmetic_truth_ratio: bool = False
    epsilon: float = 0.0
    extraction_floor: bool = False
    stemmed_f1: bool = False
    whole_references: bool = False


# `open_unlearning`: https://github.com/locuslab/open-unlearning at d3d7cf9; `tofu`: https://github.com/locuslab/tofu;
# `muse`: https://github.com/jaechan-repo/muse_bench.
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
    )
}
