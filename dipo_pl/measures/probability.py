"""How probable the true answers are."""

from torch import Tensor

from dipo_pl.errors import InputError
from dipo_pl.measures.base import Answered, Measure
from dipo_pl.metrics.functional import answer_probability, option_probability


class Probability(Measure):
    """`probability`: of the original answer, per token; on sets of options, among the answers."""

    def rows(self, answered: Answered) -> dict[str, Tensor]:
        original = [nll[0] for nll in answered.nll]
        if not answered.evaluation_set.options:
            return {"probability": answer_probability(original)}
        if not answered.has_wrong_answers:
            raise InputError(f"the evaluation set {answered.name!r} needs wrong answers (perturbed_answer)")
        wrong = [nll[2:] for nll in answered.nll]
        return {"probability": option_probability(original, wrong, epsilon=answered.convention.epsilon)}
