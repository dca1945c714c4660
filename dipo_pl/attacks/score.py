"""The score of an audit, from the metrics that its attacks have found."""

from collections.abc import Mapping, Sequence
from statistics import harmonic_mean

from dipo_pl.attacks.base import by_model, keyed
from dipo_pl.attacks.subject import MODELS, RETAIN_ONLY, TARGET
from dipo_pl.metrics.audit_scores import overall_score, privacy_score, utility_score

# Depths of the other models, by definition.
DEPTH = {TARGET: 0.0, RETAIN_ONLY: 1.0}


def scores(metrics: Mapping[str, float], tasks: Sequence[str] = ()) -> dict[str, float]:
    """Return the scores of each model, as far as their parts are known.

    These are `privacy_score`, `utility_score`, `overall_score` and `overall_score_mia`, with the prefixes of the other
    models. `overall_score` is made with the privacy of membership and depth, `overall_score_mia` with OpenUnlearning's own,
    which is membership alone; see `dipo_pl.metrics.audit_scores`. With tasks, utility is the harmonic mean of Model Utility,
    where it was measured, and of the tasks' values.

    Args:
        metrics: metrics of all attacks by key, those of the target with the prefix `target_`.
        tasks: keys of the tasks' values, shares that are higher the more a model can do.
    """
    return by_model({model: _scores(metrics, tasks, model) for model in MODELS})


def _scores(metrics: Mapping[str, float], tasks: Sequence[str], model: str) -> dict[str, float]:
    found: dict[str, float] = {}
    membership = metrics.get(keyed(model, "privacy_mia"))
    if model == RETAIN_ONLY and "privacy_mia" in metrics:
        # This model is compared with itself, so that no other is closer.
        membership = 1.0
    depth = metrics.get("unlearning_depth")
    if membership is not None and depth is not None:
        found["privacy_score"] = privacy_score(membership, DEPTH.get(model, depth))
    parts = [
        key for key in ("model_utility", *tasks) if {keyed(model, key), keyed(TARGET, key)} <= metrics.keys()
    ]
    now, before = (_mean([metrics[keyed(each, key)] for key in parts]) for each in (model, TARGET))
    if now is not None and before:
        fluency = metrics.get(keyed(model, "fluency")), metrics.get("target_fluency")
        both = fluency if None not in fluency and fluency[1] else (None, None)
        found["utility_score"] = utility_score(now, before, *both)
    memorization = metrics.get(keyed(model, "memorization_score"))
    if memorization is not None and "utility_score" in found:
        for key, privacy in (
            ("overall_score", found.get("privacy_score")),
            ("overall_score_mia", membership),
        ):
            if privacy is not None:
                found[key] = overall_score(memorization, privacy, found["utility_score"])
    return found


def _mean(values: Sequence[float]) -> float | None:
    """Return the harmonic mean; None if there are no values."""
    return harmonic_mean(values) if values else None
