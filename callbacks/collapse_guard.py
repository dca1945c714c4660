"""Watches evaluations for the ways in which unlearning fails."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from dipo_pl.callbacks.forget_quality import ForgetQuality
from dipo_pl.errors import InputError, TrainingError

Figures = Mapping[str, Any]

# Probability and utility of a target below which there is nothing to forget or to lose.
KNOWS_NOTHING = 0.1
# TOFU's utility, and MUSE's.
UTILITIES = {"model_utility": "Model Utility", "retain_knowledge": "KnowMem(retain)"}


class CollapseGuard(Callback):
    """Says in a line, once each, when unlearning shows a sign of failure, and what to try.

    The signs: Model Utility, or MUSE's KnowMem of the retain set, has fallen far; what is to be forgotten is still known
    after half of the training; Forget Quality or utility swings; generated answers to what is to be kept repeat
    themselves or run out of words.
    Each is told against the evaluation before training, and none of a target that knew nothing. (Numbers that are not
    finite end a run in any case.)

    Args:
        stop: end the run as failed at the first sign.
        lost_utility: share of the target's Model Utility below which it counts as lost.
        still_known: share of the target's probability of forget answers above which they count as known, from half
            of the training on.
        swing: log10 units of Forget Quality, and tenths of Model Utility, by which three evaluations in a row must go
            back and forth.
        repetitive: mean share of repeated word 4-grams in answers to retain questions, beyond the target's.
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
        shares = {
            "lost_utility": lost_utility,
            "still_known": still_known,
            "repetitive": repetitive,
            "fewer_words": fewer_words,
        }
        for name, value in shares.items():
            if not 0 < value <= 1:
                raise InputError(f"collapse_guard.{name} must be a share in (0, 1], got {value}")
        if swing <= 0:
            raise InputError(f"collapse_guard.swing must be greater than 0, got {swing}")
        self.stop = stop
        self.lost_utility = lost_utility
        self.still_known = still_known
        self.swing = swing
        self.repetitive = repetitive
        self.fewer_words = fewer_words
        self._said: set[str] = set()

    def state_dict(self) -> dict[str, list[str]]:
        return {"said": sorted(self._said)}

    def load_state_dict(self, state_dict: dict[str, list[str]]) -> None:
        self._said = set(state_dict["said"])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        training = trainer.state.fn == "fit" and not trainer.sanity_checking
        module: Any = pl_module
        if not training or ForgetQuality.of(trainer).result is None or "pairs" not in module.trains_on:
            return
        records = ForgetQuality.trajectory(trainer)
        done = trainer.global_step / max(trainer.estimated_stepping_batches, 1)
        for sign, line in self.signs(records, done).items():
            if sign in self._said:
                continue
            self._said.add(sign)
            if self.stop:
                raise TrainingError(f"{line} (collapse_guard.stop is true)")
            rank_zero_warn(line)

    def signs(self, records: Sequence[Figures], done: float) -> dict[str, str]:
        """The signs that a run shows now, each with a line about it.

        Args:
            records: evaluations so far; without one before training there is nothing to compare with.
            done: share of the training that is behind them.
        """
        target, now = records[0], records[-1]
        found: dict[str, str] = {}
        name, title = next((each for each in UTILITIES.items() if each[0] in target), ("", ""))
        utility = _pair(target, now, name)
        known = _pair(target, now, _last_request(now)) or _pair(target, now, "forget_probability")
        if target["step"] != 0 or (utility and utility[0] < KNOWS_NOTHING):
            return found
        if utility and utility[1] < self.lost_utility * utility[0]:
            found["utility"] = (
                f"{title} has fallen from {utility[0]:.3f} to {utility[1]:.3f} at step {now['step']}: lower "
                "the learning rate, alpha or beta, raise model.retain_weight, or give more retain rows"
            )
        if known and known[0] >= KNOWS_NOTHING and done >= 0.5 and known[1] > self.still_known * known[0]:
            found["stalled"] = (
                f"forgetting has stalled: answers to be forgotten still have probability {known[1]:.3f} ({known[0]:.3f} "
                f"before) at step {now['step']}: raise the learning rate or alpha, train longer, or change the filter"
            )
        swinging = [("forget_quality_log10_p", "log10 of Forget Quality", 1.0), (name, title, 0.1)]
        for key, what, unit in swinging:
            last = [each[key] for each in records[1:] if key in each][-3:]
            if _swings(last, self.swing * unit):
                found[key] = (
                    f"{what} swings ({', '.join(f'{each:.3g}' for each in last)}) up to step {now['step']}: lower the "
                    "learning rate, or raise the batch"
                )
        repeats = _pair(target, now, "retain_repetition")
        if repeats and repeats[1] > repeats[0] + self.repetitive:
            found["repetitive"] = (
                f"answers to retain questions repeat themselves ({repeats[1]:.0%} of word 4-grams, {repeats[0]:.0%} "
                f"before) at step {now['step']}: lower the learning rate, alpha or beta, or raise model.retain_weight"
            )
        words = _pair(target, now, "retain_word_entropy")
        if words and words[1] < self.fewer_words * words[0]:
            found["words"] = (
                f"answers to retain questions have lost their words (entropy {words[1]:.2f} nats, {words[0]:.2f} before) "
                f"at step {now['step']}: lower the learning rate, alpha or beta, or raise model.retain_weight"
            )
        return found


def _last_request(now: Figures) -> str:
    """How probable what was asked for last is: MUSE's forget set is the first fold's texts, whatever is forgotten."""
    places = [each.removeprefix("request_").removesuffix("_probability") for each in now]
    return f"request_{max((int(each) for each in places if each.isdecimal()), default=0)}_probability"


def _pair(before: Figures, now: Figures, key: str) -> tuple[float, float] | None:
    return (before[key], now[key]) if key in before and key in now else None


def _swings(values: Sequence[float], least: float) -> bool:
    """Whether the last three values go one way and then back, by at least this much each time."""
    if len(values) < 3:
        return False
    first, second = values[1] - values[0], values[2] - values[1]
    return first * second < 0 and min(abs(first), abs(second)) >= least
