"""Losses, one method a file. A config names the class; a class of your own is named by its import path."""

from dipo_pl.losses.base import Loss, Terms
from dipo_pl.losses.ce_u import CEU
from dipo_pl.losses.cross_entropy import CrossEntropy
from dipo_pl.losses.dipo import DiPO, DiPORetain
from dipo_pl.losses.dpo import DPO
from dipo_pl.losses.entropy import Entropy
from dipo_pl.losses.gap import GapLoss, GapWeights
from dipo_pl.losses.gradient_ascent import GradientAscent
from dipo_pl.losses.inverted_hinge import InvertedHinge
from dipo_pl.losses.kto import KTO
from dipo_pl.losses.log_probability import LogProbabilityLoss
from dipo_pl.losses.maximum_entropy import MaximumEntropy
from dipo_pl.losses.npo import NPO
from dipo_pl.losses.pdu import PDU
from dipo_pl.losses.reference_kl import ReferenceKL
from dipo_pl.losses.rmu import RMU, RMURetain
from dipo_pl.losses.satimp import SatImp
from dipo_pl.losses.shred import SHRED
from dipo_pl.losses.sim_npo import SimNPO
from dipo_pl.losses.undial import UNDIAL
from dipo_pl.losses.wga import WGA

__all__ = [
    "CEU",
    "DPO",
    "KTO",
    "NPO",
    "PDU",
    "RMU",
    "SHRED",
    "UNDIAL",
    "WGA",
    "CrossEntropy",
    "DiPO",
    "DiPORetain",
    "Entropy",
    "GapLoss",
    "GapWeights",
    "GradientAscent",
    "InvertedHinge",
    "LogProbabilityLoss",
    "Loss",
    "MaximumEntropy",
    "RMURetain",
    "ReferenceKL",
    "SatImp",
    "SimNPO",
    "Terms",
]
