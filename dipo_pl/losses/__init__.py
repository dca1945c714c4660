"""Losses: one concept a file. A config names the class; a loss of one's own is named by its class path."""

from dipo_pl.losses.base import Loss, Terms
from dipo_pl.losses.cross_entropy import CrossEntropy
from dipo_pl.losses.dipo import DiPO, DiPORetain
from dipo_pl.losses.gradient_ascent import GradientAscent
from dipo_pl.losses.log_probability import LogProbabilityLoss
from dipo_pl.losses.npo import NPO

__all__ = [
    "NPO",
    "CrossEntropy",
    "DiPO",
    "DiPORetain",
    "GradientAscent",
    "LogProbabilityLoss",
    "Loss",
    "Terms",
]
