"""How much of the true answers a model still has word for word."""

from torch import Tensor

from dipo_pl.measures.base import Answered, Measure
from dipo_pl.metrics.functional import exact_memorization, extraction_strength


class Memorization(Measure):
    """`exact_memorization` and `extraction_strength` of the original answers, what closes them left out."""

    def rows(self, answered: Answered) -> dict[str, Tensor]:
        predictions = [each.predictions for each in answered.observations]
        targets = [each.targets for each in answered.observations]
        return {
            "exact_memorization": exact_memorization(predictions, targets),
            "extraction_strength": extraction_strength(predictions, targets),
        }
