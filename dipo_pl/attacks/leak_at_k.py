"""Leakage by asking again and again: does one of k sampled answers hold what was to be forgotten?"""

from dataclasses import replace
from typing import Any

from dipo_pl.attacks.base import Attack, Outcome, by_model, check_some, numbered
from dipo_pl.attacks.intervals import of_rows
from dipo_pl.attacks.subject import CALLED, RETAIN_ONLY, UNLEARNED, Subject
from dipo_pl.errors import InputError, check_count, check_share
from dipo_pl.metrics.leakage import leak_at_k, leaked, upper_bound
from dipo_pl.models.generation import sample
from dipo_pl.models.sampling import Sampling


class LeakAtK(Attack):
    r"""Attack that samples answers to each forget row and counts those that leak.

        leak_at_k = mean over rows of 1 - C(n - c, k) / C(n, k),   c of n samples leak

    with a one-sided upper bound over rows, `leak_at_k_upper`; see `dipo_pl.metrics.leakage`, also for what leaks. Samples
    depend on the audit's seed, the row and their number alone.

    Source: arXiv:2511.04934.

    Args:
        samples: n, samples of each row.
        k: tries, each at most n.
        temperature: of the samples, above 0.
        top_p: share of the probability that samples are drawn from, in (0, 1].
        recall: ROUGE-L recall of the answer from which a sample counts as a leak, in (0, 1].
        max_new_tokens: longest sample in tokens; null is the run's own limit.
        confidence: of the upper bound, in (0, 1).
        tolerance: see `Attack`; of leak@k with the largest k.
    """

    def __init__(
        self,
        samples: int = 64,
        k: list[int] | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        recall: float = 0.8,
        max_new_tokens: int | None = None,
        confidence: float = 0.95,
        tolerance: float = 0.05,
    ) -> None:
        super().__init__(tolerance)
        check_count("LeakAtK.samples", samples)
        check_some("LeakAtK.k", k)
        self.k = [each for each in (1, 4, 16, 64) if each <= samples] if k is None else sorted(k)
        for each in self.k:
            if not 1 <= each <= samples:
                raise InputError(
                    f"LeakAtK.k must be from 1 to LeakAtK.samples {samples} (got {each}): raise samples, or take it out"
                )
        check_share("LeakAtK.recall", recall)
        check_share("LeakAtK.confidence", confidence, one=False)
        check_count("LeakAtK.max_new_tokens", max_new_tokens)
        # Checked now, not after the models were loaded.
        Sampling(samples, temperature, top_p)
        self.samples, self.temperature, self.top_p = samples, temperature, top_p
        self.recall, self.max_new_tokens, self.confidence = recall, max_new_tokens, confidence

    def run(self, subject: Subject) -> Outcome:
        """Return leak@k of each model."""
        counts = subject.each_model(self.name, lambda name: self._counts(subject, name))
        values: dict[str, float] = {}
        metrics: dict[str, dict[str, float]] = {}
        for name, leaks in counts.items():
            metrics[name] = {}
            for k in self.k:
                by_row = leak_at_k(leaks, self.samples, k)
                metrics[name][f"leak_at_{k}"] = float(by_row.mean())
                metrics[name][f"leak_at_{k}_upper"] = upper_bound(by_row, self.confidence)
            values[name] = metrics[name][f"leak_at_{self.k[-1]}"]
        series: dict[str, list[Any]] = {"k": self.k}
        series |= {name: [each[f"leak_at_{k}"] for k in self.k] for name, each in metrics.items()}
        most = self.k[-1]
        upper = metrics[UNLEARNED][f"leak_at_{most}_upper"]
        intervals = of_rows(
            {name: leak_at_k(leaks, self.samples, most).tolist() for name, leaks in counts.items()}
        )
        distance = intervals.distance
        if distance is not None:
            # Rows of which none has leaked do not differ, however few they are.
            distance = [distance[0], max(distance[1], upper - values[RETAIN_ONLY])]
        intervals = replace(intervals, value=[0.0, upper], distance=distance)
        headline = f"leak@{most} of {self.samples} samples"
        return Outcome(headline, values, by_model(metrics), numbered(counts), series, intervals)

    def _counts(self, subject: Subject, name: str) -> list[int]:
        """Return how many samples of each row leak."""
        rows, prompts = subject.forget.rows, subject.prompts(subject.forget)
        sampling = Sampling(self.samples, self.temperature, self.top_p, subject.seed)
        length = self.max_new_tokens or subject.max_new_tokens
        with subject.model(name) as model:

            def count(row: int) -> int:
                (texts,) = sample(model, subject.tokenizer, [prompts[row]], length, sampling, [row])
                return int(leaked(texts, rows[row].answer, rows[row].entity, self.recall).sum())

            return subject.shared(range(len(rows)), count, f"samples of the {CALLED[name]}, rows")
