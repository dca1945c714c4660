"""Pruning: does what was hidden come back where the smallest weights are taken away?"""

from collections.abc import Sequence

from transformers import PreTrainedModel

from dipo_pl.attacks.base import check_some
from dipo_pl.attacks.changed_weights import ChangedWeights
from dipo_pl.errors import check_share
from dipo_pl.models.pruning import prune


class Pruning(ChangedWeights):
    """Attack that sets the smallest weights of each linear layer to 0; see `dipo_pl.models.pruning.prune`.

    Args:
        shares: of the weights of each layer, in (0, 1).
        tolerance: see `Attack`; of the largest mean probability.
    """

    def __init__(self, shares: list[float] | None = None, tolerance: float = 0.05) -> None:
        super().__init__(tolerance)
        check_some("Pruning.shares", shares)
        self.shares = [0.1, 0.3, 0.5] if shares is None else shares
        for each in self.shares:
            check_share("Pruning.shares", each, one=False)

    @property
    def changes(self) -> Sequence[str]:
        """The shares, in percent."""
        return [f"{100 * each:g}_percent" for each in self.shares]

    def change(self, model: PreTrainedModel, change: str) -> None:
        """Set weights to 0."""
        prune(model, self.shares[list(self.changes).index(change)])
