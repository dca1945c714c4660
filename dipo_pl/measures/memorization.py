"""How much of the true answers a model still has word for word."""

import torch
from torch import Tensor

from dipo_pl.measures.base import Answered, Measure
from dipo_pl.metrics.functional import exact_memorization, extraction_strength


class Memorization(Measure):
    """`exact_memorization` and `extraction_strength` of the original answers, what closes them left out."""

    def rows(self, answered: Answered) -> dict[str, Tensor]:
        predictions = [each.predictions for each in answered.observations]
        targets = [each.targets for each in answered.observations]
        extracted = extraction_strength(predictions, targets)
        if answered.convention.extraction_floor:
            extracted = extracted.clamp(
                min=1 / torch.tensor([len(each) for each in targets], dtype=torch.float64)
            )
        return {
            "exact_memorization": exact_memorization(predictions, targets),
            "extraction_strength": extracted,
        }
