"""Whether the forget set can be told from texts that no model has seen, by six membership attacks."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dipo_pl.errors import InputError
from dipo_pl.evaluation.result import EvaluationResult, SetResult
from dipo_pl.measures.base import FORGET, HOLDOUT, Answered, Measure
from dipo_pl.metrics.functional import auroc, min_k, min_k_plus_plus, priv_leak, zlib


class Membership(Measure):
    """Membership scores of forget and holdout rows, the higher the less likely a member, and each one's AUC.

    `membership_NAME_auc` is the share of (forget, holdout) pairs in which the holdout row scores higher: 1.0 is
    a forget set fully recognised, 0.5 one that cannot be told from unseen texts, less is forgotten beyond that.
    Needs an evaluation set `holdout`. `priv_leak` compares the Min-K% AUC with a retain-only model's.

    Args:
        k: the share of an answer's least probable tokens that Min-K% and Min-K%++ average, in (0, 1].
        gradient_norm: measure the gradient-norm attack too, a backward pass a row.
    """

    def __init__(self, k: float = 0.4, gradient_norm: bool = False) -> None:
        if not 0 < k <= 1:
            raise InputError(f"Membership's k must be a share in (0, 1], got {k}")
        self.k = k
        self.needs_gradient_norms = gradient_norm

    @property
    def settings(self) -> dict[str, float]:
        return {"membership_k": self.k}

    def rows(self, answered: Answered) -> dict[str, Tensor]:
        if answered.name not in (FORGET, HOLDOUT):
            return {}
        observed = answered.observations
        original = torch.tensor([each.nll[0] for each in observed], dtype=torch.float64)
        tokens = [each.log_probabilities for each in observed]
        means, variances = [each.means for each in observed], [each.variances for each in observed]
        values = {
            "loss": original,
            "zlib": zlib(original, [row.answer for row in answered.evaluation_set.rows]),
            "min_k": min_k(tokens, self.k),
            "min_k_plus_plus": min_k_plus_plus(tokens, means, variances, self.k),
        }
        if answered.retain is not None:
            theirs: list[Any] = [row["nll"] for row in answered.retain.rows]
            values["reference"] = original - torch.tensor([nll[0] for nll in theirs], dtype=torch.float64)
        if self.needs_gradient_norms:
            values["gradient_norm"] = torch.tensor([each.gradient_norm for each in observed])
        return values

    def figures(self, answered: Answered, values: Mapping[str, Tensor]) -> dict[str, float]:
        return {}

    def across(self, sets: Mapping[str, SetResult], retain: EvaluationResult | None) -> dict[str, float]:
        if FORGET not in sets or HOLDOUT not in sets:
            return {}
        members, others = sets[FORGET], sets[HOLDOUT]
        attacks = ("loss", "zlib", "min_k", "min_k_plus_plus", "reference", "gradient_norm")
        figures = {
            f"membership_{attack}_auc": auroc(members.values(attack), others.values(attack))
            for attack in attacks
            if all(attack in each.rows[0] for each in (members, others))
        }
        retrained = _of_same_holdout(others, retain)
        # A retain-only model that recognises every member leaves nothing to compare with.
        if retrained is not None and retrained < 1:
            figures["priv_leak"] = priv_leak(figures["membership_min_k_auc"], retrained)
        return figures


def _of_same_holdout(holdout: SetResult, retain: EvaluationResult | None) -> float | None:
    """The Min-K% AUC of a retain-only model, unless it is known to be of other holdout rows."""
    if retain is None:
        return None
    theirs = retain.sets.get(HOLDOUT)
    if theirs is not None and theirs.fingerprint not in (None, holdout.fingerprint):
        return None
    return retain.metrics.get("membership_min_k_auc")
