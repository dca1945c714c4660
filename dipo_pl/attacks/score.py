"""The score of an audit, from the metrics that its attacks have found."""

from collections.abc import Mapping

from dipo_pl.metrics.audit_scores import overall_score, privacy_score, utility_score


def scores(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return `privacy_score`, `utility_score`, `overall_score` and `overall_score_mia`, as far as their parts are known.

    `overall_score` is made with the privacy of membership and depth, `overall_score_mia` with OpenUnlearning's own, which is
    membership alone; see `dipo_pl.metrics.audit_scores`.

    Args:
        metrics: metrics of all attacks by key, those of the target with the prefix `target_`.
    """
    found: dict[str, float] = {}
    membership, depth = metrics.get("privacy_mia"), metrics.get("unlearning_depth")
    if membership is not None and depth is not None:
        found["privacy_score"] = privacy_score(membership, depth)
    now, before = metrics.get("model_utility"), metrics.get("target_model_utility")
    if now is not None and before:
        fluency = metrics.get("fluency"), metrics.get("target_fluency")
        both = fluency if None not in fluency and fluency[1] else (None, None)
        found["utility_score"] = utility_score(now, before, *both)
    memorization = metrics.get("memorization_score")
    if memorization is not None and "utility_score" in found:
        for key, privacy in (
            ("overall_score", found.get("privacy_score")),
            ("overall_score_mia", membership),
        ):
            if privacy is not None:
                found[key] = overall_score(memorization, privacy, found["utility_score"])
    return found
