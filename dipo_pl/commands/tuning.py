"""Search of a learning rate by short runs on the user's own rows, for `dipo-pl fit --tune`."""

import io
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dipo_pl.cli.command_parser import as_options, one_line_errors
from dipo_pl.errors import NOT_FINITE, InputError
from dipo_pl.storage.run_folder import RunFolder, forgotten_sets

if TYPE_CHECKING:
    from dipo_pl.callbacks.selection_rules import SelectionRule

# Optimizer steps of a trial, and how often it is evaluated.
STEPS, EVERY = 20, 5
# Between one learning rate and the next.
FACTOR = 2.5
# Scores below mean that utility was lost.
LOST = -1e5
# The score of a run that ended with numbers that are not finite: below that of any lost utility.
DIVERGED = 100 * LOST
# Learning rates above and below the configured one.
HIGHER, LOWER = 4, 3
# A trial needs neither the best checkpoint nor an export, and neither its length nor its learning rate depends on epochs.
TRIAL = {
    "trainer.max_epochs": -1,
    "trainer.max_steps": STEPS,
    "trainer.val_check_interval": EVERY,
    "trainer.check_val_every_n_epoch": "null",
    "model.schedule": "constant_with_warmup",
    "selection.rule": "null",
    "selection.stop": False,
    "collapse_guard.stop": False,
    "checkpoint.monitor": "null",
    "export.enabled": False,
    "export.best": False,
    "samples.rows": 0,
    "require": "null",
}


@dataclass(frozen=True)
class Trial:
    """Outcome of a short run.

    Attributes:
        rate: its learning rate.
        score: best score of its evaluations by the rule `NearestToUnseen`, with the run's own arguments if it is the rule of
            the run; -1 and above is forgotten.
        text: the outcome in one line.
    """

    rate: float
    score: float
    text: str

    @property
    def keeps_utility(self) -> bool:
        """True if an evaluation of the trial kept utility."""
        return self.score > LOST


def tune(arguments: Sequence[str], debug: bool = False) -> int:
    """Run `fit` with the learning rate with which short runs forget most and keep utility.

    Each short run takes 20 optimizer steps and has a folder of its own beside the run's, NAME-tune/RATE. The first one has
    the configured learning rate; the next ones have 2.5 times more as long as that forgets more and utility is kept, or less
    until it is kept. One that ends with numbers that are not finite has lost utility; on several devices it ends the search.
    Finished ones are not repeated.

    Args:
        arguments: options of `fit`.
        debug: print the traceback of an error.

    Returns:
        The exit code of the first run that fails, else that of the final one.
    """
    # Loads Lightning, which takes seconds.
    from dipo_pl.cli.run import resolved, run

    config: dict[str, Any] = {}
    found: list[Trial] = []

    def prepare() -> int:
        config.update(resolved(["fit", *arguments]))
        _rate(config)
        return 0

    def add(rate: float, run: RunFolder) -> int:
        found.append(outcome(rate, run, config))
        return 0

    if code := one_line_errors(prepare, debug):
        return code
    folder = Path(config["output_dir"]) / f"{config['name']}-tune"
    while (rate := next_rate(_rate(config), found)) is not None:
        name = f"{rate:.3g}"
        _say(
            f"short run {len(found) + 1} of at most {1 + max(HIGHER, LOWER)}: learning rate {name}, {STEPS} steps"
        )
        own = TRIAL | {"model.optimizer.lr": rate, "name": name, "output_dir": str(folder)}
        # The verdict of a short run, with what to do next, is no verdict on the run that was asked for.
        with redirect_stdout(io.StringIO()):
            code = run(["fit", *arguments, *as_options(own)], debug)
        short = RunFolder(folder / name)
        # Ranks that have failed cannot begin another run together.
        if code and (not has_diverged(short) or short.read_manifest()["world_size"] > 1):
            return code
        if code := one_line_errors(partial(add, rate, short), debug):
            return code
    best = chosen(found)
    for each in found:
        _say(f"{each.text}{', chosen' if each is best else ''}")
    if not best.keeps_utility:
        _say("no learning rate kept utility: the lowest one is used, and the verdict will say what it does")
    return run(["fit", *arguments, "--model.optimizer.lr", f"{best.rate:.3g}"], debug)


def next_rate(first: float, found: Sequence[Trial]) -> float | None:
    """Return the learning rate to try next; None if the search is done.

    Args:
        first: the configured learning rate.
        found: the trials so far, in order.
    """
    if not found:
        return float(f"{first:.3g}")
    last, best = found[-1], max(found, key=lambda each: each.score)
    if not found[0].keeps_utility:
        ends, factor, most = last.keeps_utility, 1 / FACTOR, LOWER
    else:
        ends, factor, most = last is not best or last.score >= -1, FACTOR, HIGHER
    return None if ends or len(found) > most else float(f"{last.rate * factor:.3g}")


def chosen(found: Sequence[Trial]) -> Trial:
    """Return the trial with the highest score, of equal ones that with the lowest learning rate."""
    return max(found, key=lambda each: (each.score, -each.rate))


def _rate(config: dict[str, Any]) -> float:
    optimizer = config["model"]["init_args"]["optimizer"]
    rate = (optimizer.get("init_args") or {}).get("lr")
    if "forget_loss" not in config["model"]["init_args"]:
        raise InputError(
            "--tune searches the learning rate of an unlearning run, and model is FineTuning: leave it out"
        )
    if not isinstance(rate, float | int) or rate <= 0:
        raise InputError(f"--tune needs a first learning rate > 0 (got model.optimizer.lr {rate}): give one")
    return float(rate)


def outcome(rate: float, run: RunFolder, config: dict[str, Any]) -> Trial:
    """Return what a short run has shown."""
    if has_diverged(run):
        return Trial(rate, DIVERGED, f"learning rate {rate:.3g}: ended with numbers that are not finite")
    # These load torch, which takes seconds.
    from dipo_pl.callbacks.selection_rules import NearestToUnseen

    given = config["selection"]["rule"] or {}
    is_same = str(given.get("class_path")).endswith(f".{NearestToUnseen.__name__}")
    rule = NearestToUnseen(**(given.get("init_args") or {} if is_same else {}))
    (score, best), target = max(scored(rule, run, config), key=lambda each: each[0]), run.read_metrics()[0]
    keys = (f"{rows}_probability" for rows in forgotten_sets(run.read_manifest()))
    key = max(keys, key=lambda each: float(best[each]))
    lost = "" if score > LOST else ", utility lost"
    text = f"learning rate {rate:.3g}: P(forget) {target[key]:.3g} -> {best[key]:.3g} at step {best['step']}{lost}"
    return Trial(rate, score, text)


def scored(
    rule: "SelectionRule", run: RunFolder, config: Mapping[str, Any]
) -> list[tuple[float, dict[str, Any]]]:
    """Return a run's evaluations after training began that a rule can score, with their scores.

    Args:
        rule: scores the evaluations.
        run: the run.
        config: its resolved configuration.

    Raises:
        InputError: there is no evaluation before training, or none after it that the rule can score.
    """
    # These load torch, which takes seconds.
    from dipo_pl.callbacks.verdict import wrong_answers
    from dipo_pl.evaluation.retain_result import comparable_metrics, read_result
    from dipo_pl.evaluation.verdict_rules import Thresholds
    from dipo_pl.metrics.base import HOLDOUT

    result = config["forget_quality"].get("retain_result")
    manifest = run.read_manifest()
    sets = manifest["data"]["evaluation"]
    holdout = sets.get(HOLDOUT, {}).get("fingerprint")
    retain = None if result is None else comparable_metrics(read_result(result), holdout)
    rule.rows = {name: each["rows"] for name, each in sets.items()}
    target, *records = run.read_metrics()
    rule.forgotten, rule.thresholds = forgotten_sets(manifest), Thresholds(**config["verdict"])
    rule.wrong_answers = wrong_answers(run, target, rule.forgotten)
    scores = [(score, each) for each in records if (score := rule.score(each, target, retain)) is not None]
    if target["step"] != 0 or not scores:
        raise InputError(
            f"{run.path} has no evaluation before or after training that can be compared: remove it"
        )
    return scores


def has_diverged(run: RunFolder) -> bool:
    """Return whether a run has failed because a loss or a gradient was not finite."""
    status = str(run.read_manifest().get("status"))
    return status.startswith("failed: ") and NOT_FINITE in status


def _say(text: str) -> None:
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    rank_zero_only(print)(f"dipo-pl: tune: {text}", file=sys.stderr, flush=True)
