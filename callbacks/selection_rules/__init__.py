"""Rules that choose the checkpoint to keep, one a file. A config names the class."""

from dipo_pl.callbacks.selection_rules.base import LOST, NO_RULE, SelectionRule
from dipo_pl.callbacks.selection_rules.best_forget_quality import BestForgetQuality
from dipo_pl.callbacks.selection_rules.first_forgotten import FirstForgotten
from dipo_pl.callbacks.selection_rules.lowest_forget_probability import LowestForgetProbability
from dipo_pl.callbacks.selection_rules.nearest_to_unseen import NearestToUnseen
from dipo_pl.callbacks.selection_rules.utility_kept import UtilityKept

__all__ = [
    "LOST",
    "NO_RULE",
    "BestForgetQuality",
    "FirstForgotten",
    "LowestForgetProbability",
    "NearestToUnseen",
    "SelectionRule",
    "UtilityKept",
]
