"""Whether generations are still language: what suppresses confident tokens may leave none."""

from torch import Tensor

from dipo_pl.measures.base import Answered, Measure
from dipo_pl.metrics.functional import distinct_ngrams, refusals, repetition, word_entropy


class Fluency(Measure):
    """`repetition`, `distinct_2`, `word_entropy` and `refusals` of generations."""

    def rows(self, answered: Answered) -> dict[str, Tensor]:
        texts = answered.generations
        if texts is None:
            return {}
        return {
            "repetition": repetition(texts),
            "distinct_2": distinct_ngrams(texts, 2),
            "word_entropy": word_entropy(texts),
            "refusals": refusals(texts),
        }
