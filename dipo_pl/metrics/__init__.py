"""Metrics of unlearning: for each a file with pure functions of values of rows and the torchmetrics class over them.

The names in `__init__.pyi` are imported at their first use: results of evaluations are read without torch.
"""

from dipo_pl.public_names import lazy

__all__, __getattr__ = lazy(__name__)
