"""Scores of an audit: what a model still knows, whether it can be told from one that never knew, what it can still do."""

from statistics import harmonic_mean

from dipo_pl.errors import InputError, check_share


def memorization_score(
    extraction_strength: float, exact_memorization: float, paraphrased_probability: float, truth_ratio: float
) -> float:
    r"""Return H(1 - ES, 1 - EM, 1 - P, 1 - TR), H the harmonic mean; 1 is that nothing is known.

    Source: OpenUnlearning, arXiv:2506.12618, "memorization".

    Args:
        extraction_strength: ES, the mean of `extraction_strength` over the forget set.
        exact_memorization: EM, that of `exact_memorization`.
        paraphrased_probability: P, the mean probability of the answers in other words, as of `answer_probability`.
        truth_ratio: TR, the mean of `truth_ratio_knowledge`.

    Returns:
        In [0, 1].

    Raises:
        InputError: an argument is outside of [0, 1].
    """
    parts = {
        "extraction_strength": extraction_strength,
        "exact_memorization": exact_memorization,
        "paraphrased_probability": paraphrased_probability,
        "truth_ratio": truth_ratio,
    }
    for name, value in parts.items():
        check_share(name, value, zero=True)
    return float(harmonic_mean([1 - value for value in parts.values()]))


def membership_distance(auc: float, retain_auc: float) -> float:
    r"""Return s = clip(1 - |AUC - AUC_retain| / AUC_retain, 0, 1); 1 is the AUC of the retain-only model.

    A model that forgot too hard is as far from it as one that remembers.

    Source: OpenUnlearning, arXiv:2506.12618.

    Args:
        auc: `auroc` of the model.
        retain_auc: that of the retain-only model, on the same rows.

    Raises:
        InputError: an area is outside of [0, 1], or the retain-only model's is 0.
    """
    check_share("auc", auc, zero=True)
    check_share("retain_auc", retain_auc)
    return min(1.0, max(0.0, 1 - abs(auc - retain_auc) / retain_auc))


def membership_score(loss: float, zlib: float, min_k: float, min_k_plus_plus: float) -> float:
    r"""Return H(s of the loss, zlib, Min-K% and Min-K%++ attacks), H the harmonic mean: the score `privacy_mia`.

    Source: OpenUnlearning, arXiv:2506.12618. Arguments are values of `membership_distance`.

    Raises:
        InputError: an argument is outside of [0, 1].
    """
    return _mean(loss=loss, zlib=zlib, min_k=min_k, min_k_plus_plus=min_k_plus_plus)


def privacy_score(membership: float, depth: float) -> float:
    r"""Return H(privacy_mia, UDS), H the harmonic mean.

    Source: arXiv:2605.24614. OpenUnlearning's own privacy is `membership_score` alone; an audit reports both.

    Args:
        membership: value of `membership_score`.
        depth: the Unlearning Depth Score.

    Raises:
        InputError: an argument is outside of [0, 1].
    """
    return _mean(membership=membership, depth=depth)


def utility_score(
    model_utility: float,
    target_utility: float,
    fluency: float | None = None,
    target_fluency: float | None = None,
) -> float:
    r"""Return min(1, H(MU, F) / H(MU_target, F_target)), H the harmonic mean; without fluency F of MU alone.

    Source: arXiv:2605.24614, whose fluency is a classifier's.

    Args:
        model_utility: Model Utility of the model.
        target_utility: that of the target.
        fluency: share of fluent text in the model's answers, by the measure that the caller names.
        target_fluency: that of the target.

    Returns:
        In [0, 1]; 1 is that nothing was lost.

    Raises:
        InputError: a value is outside of [0, 1], the target's utility or fluency is 0, or one fluency is given alone.
    """
    if (fluency is None) != (target_fluency is None):
        raise InputError(
            f"fluency and target_fluency must be given together (got {fluency} and {target_fluency})"
        )
    check_share("model_utility", model_utility, zero=True)
    check_share("target_utility", target_utility)
    if fluency is None or target_fluency is None:
        return min(1.0, model_utility / target_utility)
    check_share("target_fluency", target_fluency)
    now = _mean(model_utility=model_utility, fluency=fluency)
    return min(1.0, now / _mean(target_utility=target_utility, target_fluency=target_fluency))


def overall_score(memorization: float, privacy: float, utility: float) -> float:
    r"""Return H(memorization, privacy, utility), H the harmonic mean: any of them at 0 makes it 0.

    Source: OpenUnlearning, arXiv:2506.12618.

    Raises:
        InputError: an argument is outside of [0, 1].
    """
    return _mean(memorization=memorization, privacy=privacy, utility=utility)


def _mean(**values: float) -> float:
    for name, value in values.items():
        check_share(name, value, zero=True)
    return float(harmonic_mean(values.values()))
