"""Callback that recognizes the ways in which unlearning fails."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from dipo_pl.callbacks.advice import gentler, stronger
from dipo_pl.callbacks.forget_quality import ForgetQuality
from dipo_pl.data_modules.forget_retain import ForgetRetain
from dipo_pl.errors import TrainingError, check_number, check_share
from dipo_pl.evaluation.verdict_rules import (
    KNOWS_NOTHING,
    UTILITIES,
    Metrics,
    kept_utility,
    measured_again,
)


class Sign(NamedTuple):
    """Sign that unlearning fails: what is seen, and what to do about it."""

    what: str
    advice: str

    def __str__(self) -> str:
        return f"{self.what}: {self.advice}"


class CollapseGuard(Callback):
    """Callback that warns once about each sign that unlearning fails, and says what to try.

    The signs: utility (Model Utility, KnowMem of the retain set, else P(retain)) has fallen far; the forget set is still
    known after half of the training; Forget Quality or utility oscillates; generated answers to retain questions repeat
    themselves or lose their vocabulary. Each is judged against the evaluation before training, and not at all if the
    target knew nothing. (Non-finite numbers end a run in any case.)

    Args:
        stop: end the run as failed at the first sign.
        lost_utility: share of the target's utility below which it counts as lost.
        still_known: share of the target's probability of forget answers above which they count as known, from half
            of the training on.
        swing: size of an oscillation in log10 units of Forget Quality, or in tenths of utility: three consecutive
            evaluations that go back and forth by this much.
        repetitive: mean share of repeated word 4-grams in answers to retain questions, above the target's.
        fewer_words: share of the target's mean word entropy of these answers below which they count as empty.
    """

    def __init__(
        self,
        stop: bool = False,
        lost_utility: float = 0.5,
        still_known: float = 0.9,
        swing: float = 2.0,
        repetitive: float = 0.3,
        fewer_words: float = 0.5,
    ) -> None:
        check_share("collapse_guard.lost_utility", lost_utility)
        check_share("collapse_guard.still_known", still_known)
        check_number("collapse_guard.swing", swing, above=0)
        check_share("collapse_guard.repetitive", repetitive)
        check_share("collapse_guard.fewer_words", fewer_words)
        self.stop = stop
        self.lost_utility = lost_utility
        self.still_known = still_known
        self.swing = swing
        self.repetitive = repetitive
        self.fewer_words = fewer_words
        self._reported: set[str] = set()

    def state_dict(self) -> dict[str, list[str]]:
        """Return the signs that were reported."""
        return {"reported": sorted(self._reported)}

    def load_state_dict(self, state_dict: dict[str, list[str]]) -> None:
        """Restore the signs that were reported."""
        self._reported = set(state_dict["reported"])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report new signs; raise TrainingError if there is a sign, and `stop` is set."""
        training = trainer.state.fn == "fit" and not trainer.sanity_checking
        module: Any = pl_module
        if not training or ForgetQuality.of(trainer).result is None or "pairs" not in module.trains_on:
            return
        records = ForgetQuality.trajectory(trainer)
        done = trainer.global_step / max(trainer.estimated_stepping_batches, 1)
        forgotten = ForgetRetain.of(trainer).forgotten
        for name, sign in self.signs(records, done, forgotten, module.learning_rate).items():
            if name in self._reported:
                continue
            self._reported.add(name)
            if self.stop:
                raise TrainingError(f"{sign} (collapse_guard.stop is true)")
            rank_zero_warn(str(sign))

    def signs(
        self,
        records: Sequence[Metrics],
        done: float,
        forgotten: Sequence[str] = ("forget",),
        rate: float | None = None,
    ) -> dict[str, Sign]:
        """Return the signs that a run shows now.

        Args:
            records: the evaluations so far; if the first is not from before training, there is nothing to compare with.
            done: share of the training that is done.
            forgotten: names of the evaluation sets that are to be forgotten.
            rate: the learning rate, for the advice; None if it is not known.
        """
        target, now = records[0], records[-1]
        if target["step"] != 0:
            return {}
        found: dict[str, Sign] = {}
        at, less = f"at step {now['step']}", gentler(rate)
        utility = kept_utility(measured_again(target, now), now)
        if utility and utility.share < self.lost_utility:
            what = f"{utility.title} fell from {utility.before:.3f} to {utility.now:.3f} {at}"
            found["utility"] = Sign(what, f"{less}, or add retain rows")
        pairs = (_pair(target, now, f"{rows}_probability") for rows in forgotten)
        known = [pair for pair in pairs if pair and pair[0] >= KNOWS_NOTHING]
        was, still = max(known, key=lambda pair: pair[1] / pair[0], default=(0.0, 0.0))
        if done >= 0.5 and still > self.still_known * was:
            what = (
                f"forgetting has stalled: the probability of forget answers is {still:.3f} ({was:.3f} before training) "
                f"{at}"
            )
            found["stalled"] = Sign(
                what, f"{stronger(rate)}, or train longer (trainer.max_steps, trainer.max_epochs)"
            )
        name = next((each for each in UTILITIES if target.get(each, 0) >= KNOWS_NOTHING), "")
        for key, title, unit in [
            ("forget_quality_log10_p", "log10 of Forget Quality", 1.0),
            (name, UTILITIES.get(name, ""), 0.1),
        ]:
            last = [each[key] for each in records[1:] if key in each][-3:]
            if _oscillates(last, self.swing * unit):
                what = f"{title} oscillates ({', '.join(f'{each:.3g}' for each in last)}) {at}"
                found[key] = Sign(what, f"{less}, or a larger batch (data.batch_size)")
        repeated = _pair(target, now, "retain_repetition")
        if repeated and repeated[1] > repeated[0] + self.repetitive:
            what = (
                f"answers to retain questions are repetitive ({repeated[1]:.0%} of word 4-grams repeated, "
                f"{repeated[0]:.0%} before training) {at}"
            )
            found["repetitive"] = Sign(what, less)
        words = _pair(target, now, "retain_word_entropy")
        if words and words[1] < self.fewer_words * words[0]:
            what = (
                f"answers to retain questions have lost their vocabulary (word entropy {words[1]:.2f} nats, "
                f"{words[0]:.2f} before training) {at}"
            )
            found["words"] = Sign(what, less)
        return found


def _pair(before: Metrics, now: Metrics, key: str) -> tuple[float, float] | None:
    return (before[key], now[key]) if key in before and key in now else None


def _oscillates(values: Sequence[float], least: float) -> bool:
    """Return whether three values go one way and then back, by at least `least` each time."""
    if len(values) < 3:
        return False
    first, second = values[1] - values[0], values[2] - values[1]
    return first * second < 0 and min(abs(first), abs(second)) >= least
