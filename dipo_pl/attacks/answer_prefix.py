"""The beginning of an answer put into the model's mouth: how much of the rest comes out?"""

from collections.abc import Sequence

from dipo_pl.attacks.base import Attack, Outcome, by_model
from dipo_pl.attacks.intervals import of_rows
from dipo_pl.attacks.subject import CALLED, Subject
from dipo_pl.errors import check_count
from dipo_pl.metrics.rouge import rouge_l_recall
from dipo_pl.models.generation import generate

# Rows that are answered together on a rank.
TOGETHER = 32


class AnswerPrefix(Attack):
    """Attack that begins the answer and lets the model go on.

    The answer begins with `words`, or with the true answer's own first tokens, and what the model says next is compared
    with the rest of the true answer. Metrics are `answer_prefix_0_rouge_l_recall` after the words, and
    `answer_prefix_M_rouge_l_recall` after M tokens; rows whose answer is no longer than M tokens do not count.

    Args:
        words: what the answer begins with.
        tokens: numbers of true tokens that it begins with.
        tolerance: see `Attack`; of the largest recall.
    """

    def __init__(
        self,
        words: str = "Sure, here is the answer:",
        tokens: list[int] | None = None,
        tolerance: float = 0.05,
    ) -> None:
        super().__init__(tolerance)
        self.words = words
        self.tokens = [1, 2, 4] if tokens is None else tokens
        for each in self.tokens:
            check_count("AnswerPrefix.tokens", each)

    def run(self, subject: Subject) -> Outcome:
        """Return the recall of each model."""
        found = subject.each_model(self.name, lambda name: self._recalls(subject, name))
        metrics: dict[str, dict[str, float]] = {}
        for name, recalls in found.items():
            means = {}
            for count, by_row in recalls.items():
                if any(each is not None for each in by_row):
                    means[f"{self.name}_{count}_rouge_l_recall"] = _mean(by_row)
            metrics[name] = means
        values = {name: max(each.values()) for name, each in metrics.items()}
        rows = [
            {"row": row}
            | {name: {count: each[row] for count, each in recalls.items()} for name, recalls in found.items()}
            for row in range(len(subject.forget.rows))
        ]
        largest = {
            name: max(recalls.values(), key=lambda by_row: _mean(by_row)) for name, recalls in found.items()
        }
        headline = "largest ROUGE-L recall of the rest of the answer"
        return Outcome(headline, values, by_model(metrics), rows, intervals=of_rows(largest))

    def _recalls(self, subject: Subject, name: str) -> dict[str, list[float | None]]:
        """Return for each beginning the recall of the rest of each row's answer; None where nothing is left."""
        encoded = [answers[0] for answers in subject.encoded(subject.forget)]
        tokenizer = subject.tokenizer
        words = tokenizer(self.words, add_special_tokens=False)["input_ids"]
        found: dict[str, list[float | None]] = {}
        with subject.model(name) as model:
            for count in (0, *self.tokens):
                asked: list[tuple[int, list[int], str]] = []
                for row, each in enumerate(encoded):
                    start = each.answer_start
                    rest = each.ids[start + count : len(each.ids) - each.closing]
                    begun = [*each.ids[:start], *words] if count == 0 else list(each.ids[: start + count])
                    if rest:
                        asked.append((row, begun, tokenizer.decode(rest, skip_special_tokens=True)))

                def recall(some: list[tuple[int, list[int], str]]) -> list[float]:
                    prompts = [begun for _, begun, _ in some]
                    texts = generate(model, tokenizer, prompts, subject.max_new_tokens)
                    return [float(each) for each in rouge_l_recall(texts, [rest for *_, rest in some])]

                batches = [asked[start : start + TOGETHER] for start in range(0, len(asked), TOGETHER)]
                what = f"answers that begin with {count or 'other'} tokens, {CALLED[name]}, batches"
                recalls = [each for batch in subject.shared(batches, recall, what) for each in batch]
                by_row: list[float | None] = [None] * len(encoded)
                for (row, *_), value in zip(asked, recalls, strict=True):
                    by_row[row] = value
                found[str(count)] = by_row
        return found


def _mean(by_row: Sequence[float | None]) -> float:
    """Return the mean of the rows that have a value; -1 if none has."""
    known = [each for each in by_row if each is not None]
    return sum(known) / len(known) if known else -1.0
