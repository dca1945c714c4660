"""How much of the true answers the generated ones recall."""

from torch import Tensor

from dipo_pl.measures.base import Answered, Measure
from dipo_pl.metrics.functional import rouge_l_recall


class Rouge(Measure):
    """`rouge_l_recall` of generations."""

    def rows(self, answered: Answered) -> dict[str, Tensor]:
        texts = answered.generations
        if texts is None:
            return {}
        return {"rouge_l_recall": rouge_l_recall(texts, [row.answer for row in answered.evaluation_set.rows])}
