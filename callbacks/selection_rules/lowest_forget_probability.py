"""Rule that looks at the probability of the forget rows alone."""

from collections.abc import Sequence

from dipo_pl.callbacks.selection_rules.utility_kept import UtilityKept
from dipo_pl.evaluation.verdict_rules import Evidence, baseline


class LowestForgetProbability(UtilityKept):
    """Rule that keeps the lowest P(forget) among evaluations that keep utility, else the best utility.

    P(forget) counts as 0 from where a model is that never saw the rows: at or below the retain-only model's, or without one
    what the model before training gives to holdout rows. So training does not go on to erase what is forgotten already.
    """

    needs_answers = False

    def distance(self, evidence: Evidence) -> float:
        """Return P(forget) minus where it should be, of the set that is forgotten least."""
        aims = {rows: baseline(evidence, rows, "probability")[0] or 0.0 for rows in evidence.forgotten}
        return max(0.0, *(float(evidence.now[f"{rows}_probability"] - aim) for rows, aim in aims.items()))

    def ends(self, scores: Sequence[float]) -> str | None:
        """Return whether P(forget) is where it should be, or no better score is expected."""
        if scores and scores[-1] == 0:
            return "P(forget) is that of a model that never saw the rows"
        return super().ends(scores)
