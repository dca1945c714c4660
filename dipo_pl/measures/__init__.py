"""Families of figures that an evaluation reports; a config names those beyond the benchmark's own."""

from dipo_pl.measures.base import Answered, Measure
from dipo_pl.measures.fluency import Fluency
from dipo_pl.measures.knowledge import Knowledge
from dipo_pl.measures.membership import Membership
from dipo_pl.measures.memorization import Memorization
from dipo_pl.measures.probability import Probability
from dipo_pl.measures.rouge import Rouge
from dipo_pl.measures.truth_ratio import TruthRatio
from dipo_pl.measures.verbatim import Verbatim

__all__ = [
    "Answered",
    "Fluency",
    "Knowledge",
    "Measure",
    "Membership",
    "Memorization",
    "Probability",
    "Rouge",
    "TruthRatio",
    "Verbatim",
]
