"""Conventions that change numbers, by name; results of different ones are not compared."""

from dataclasses import dataclass
from typing import Literal

# What Model Utility is made of on TOFU.
UTILITY_SETS = ("retain", "real_authors", "world_facts")

ConventionName = Literal["dipo_pl", "tofu", "open_unlearning", "arithmetic"]


@dataclass(frozen=True)
class Convention:
    """What a benchmark's code does where its paper leaves a choice, or another code chooses otherwise.

    Attributes:
        rows: most rows of a set, the first ones; None is all.
        arithmetic_truth_ratio: average the wrong answers' probabilities, as TOFU's text has it, in place of
            their losses, as all published numbers do.
        epsilon: added to the denominators of truth ratio and option probability.
        extraction_floor: an answer of n tokens has an extraction strength of at least 1/n, also if none is extracted.
    """

    name: ConventionName
    rows: int | None = None
    arithmetic_truth_ratio: bool = False
    epsilon: float = 0.0
    extraction_floor: bool = False


# `open_unlearning`: https://github.com/locuslab/open-unlearning at d3d7cf9; `tofu`: https://github.com/locuslab/tofu.
CONVENTIONS: dict[str, Convention] = {
    each.name: each
    for each in (
        Convention("dipo_pl"),
        Convention("tofu", rows=300),
        Convention("open_unlearning", epsilon=1e-10, extraction_floor=True),
        Convention("arithmetic", arithmetic_truth_ratio=True),
    )
}
