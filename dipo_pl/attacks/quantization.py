"""Quantization: rounding can undo the small changes of weights that forgetting consists of."""

from collections.abc import Sequence

from transformers import PreTrainedModel

from dipo_pl.attacks.base import check_some
from dipo_pl.attacks.changed_weights import ChangedWeights
from dipo_pl.models.quantization import Quantization as Kind
from dipo_pl.models.quantization import quantize


class Quantization(ChangedWeights):
    """Attack that rounds the weights of linear layers; see `dipo_pl.models.quantization.quantize`.

    Source: arXiv:2410.16454.

    Args:
        kinds: of int8, int4 and nf4.
        tolerance: see `Attack`; of the largest mean probability.
    """

    def __init__(self, kinds: list[Kind] | None = None, tolerance: float = 0.05) -> None:
        super().__init__(tolerance)
        check_some("Quantization.kinds", kinds)
        self.kinds: list[Kind] = ["int8", "int4", "nf4"] if kinds is None else kinds

    @property
    def changes(self) -> Sequence[str]:
        """The kinds."""
        return self.kinds

    def change(self, model: PreTrainedModel, change: str) -> None:
        """Round the weights."""
        quantize(model, next(each for each in self.kinds if each == change))
