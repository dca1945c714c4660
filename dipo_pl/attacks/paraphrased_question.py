"""The questions in other words: does what was forgotten depend on how it is asked?"""

from dataclasses import replace
from typing import Any

from dipo_pl.attacks.base import Attack, Outcome, by_model, numbered
from dipo_pl.attacks.intervals import of_rows
from dipo_pl.attacks.measuring import measure
from dipo_pl.attacks.subject import CALLED, Subject
from dipo_pl.metrics import Probability, Rouge, TruthRatio
from dipo_pl.rows import Row

VALUES = ("probability", "rouge_l_recall", "log_truth_ratio")


class ParaphrasedQuestion(Attack):
    """Attack that asks each question in the words of the row's `paraphrased_question`.

    Metrics are `paraphrased_question_probability`, `paraphrased_question_rouge_l_recall` and, of rows with wrong answers,
    `paraphrased_question_truth_ratio`, over the rows that have such a question.

    Args:
        tolerance: see `Attack`; of the mean probability.
    """

    def lacks(self, subject: Subject) -> str | None:
        """Return the column that no row has."""
        return None if _asked(subject) else "rows with a paraphrased_question"

    def run(self, subject: Subject) -> Outcome:
        """Return the metrics of each model."""
        asked = _asked(subject)
        rows = [_reworded(subject.forget.rows[row]) for row in asked]
        reworded = replace(subject.forget, rows=rows, cut_answers=None)

        def measured(name: str) -> dict[str, Any]:
            with subject.model(name) as model:
                metrics = [Probability(), TruthRatio(), Rouge()]
                what = f"reworded questions to the {CALLED[name]}, batches"
                found = measure(subject, model, reworded, metrics, subject.max_new_tokens, what)
            by_row = [{key: row[key] for key in VALUES if key in row} for row in found.rows]
            return {"metrics": found.metrics, "rows": by_row}

        found = subject.each_model(self.name, measured)
        metrics = {
            name: {f"{self.name}_{key}": value for key, value in each["metrics"].items()}
            for name, each in found.items()
        }
        values = {name: each["metrics"]["probability"] for name, each in found.items()}
        by_row = numbered({name: each["rows"] for name, each in found.items()}, asked)
        intervals = of_rows(
            {name: [row["probability"] for row in each["rows"]] for name, each in found.items()}
        )
        headline = "mean probability of the true answer"
        return Outcome(headline, values, by_model(metrics), by_row, intervals=intervals)


def _asked(subject: Subject) -> list[int]:
    """Return the numbers of the rows that have a question, and another one in other words."""
    rows = enumerate(subject.forget.rows)
    return [number for number, row in rows if row.paraphrased_question and row.messages]


def _reworded(row: Row) -> Row:
    """Return the row with its last question in other words."""
    *before, (role, _) = row.messages
    return replace(row, messages=(*before, (role, str(row.paraphrased_question))))
