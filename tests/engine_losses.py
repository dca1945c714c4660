"""Losses that only tests of the engine have: rows with companions, coupled rows, skipped tokens, layers."""

import torch
from loss_definitions import Definition

from dipo_pl.losses import GapLoss, GapWeights, Loss, Terms


class Curved(Loss):
    """Only terms and f, nothing in closed form; every logit, the target, the reference and the lengths matter."""

    uses_reference = True

    def terms(self, logits, targets, reference_logits):
        log_p = logits.log_softmax(-1)
        entropy = -(log_p.exp() * log_p).sum(-1)
        chosen = log_p.gather(-1, targets[:, None])[:, 0]
        return entropy + 0.3 * chosen * torch.tanh(logits - reference_logits).mean(-1)

    def terms_and_gradient(self, logits, targets, reference_logits):
        values, gradient, _ = super().terms_and_gradient(logits, targets, reference_logits)
        return Terms(values, gradient, {"target": targets.float()})

    def sequence_loss(self, sums, lengths):
        return torch.log1p((sums / lengths) ** 2)

    def sequence_parts(self, sums, lengths):
        return {"per_token": (sums / lengths).view(len(sums), -1)[:, -1]}


class OverTokens(Curved):
    mean_over = "tokens"


class Pairs(Curved):
    """Neither member may take the other's place."""

    companions = ("alternate",)

    def sequence_loss(self, sums, lengths):
        own, alternate = sums.unbind(-1)
        return torch.tanh(own / lengths[:, 0] - 0.4 * alternate / lengths[:, 1] ** 2) + 0.01 * own * alternate


class Triples(Curved):
    companions = ("alternate", "mismatched")

    def sequence_loss(self, sums, lengths):
        own, alternate, mismatched = sums.unbind(-1)
        return own * torch.sigmoid(0.1 * alternate) - (0.1 * mismatched) ** 2 / lengths[:, 2]


class Coupled(Curved):
    """Each row's loss depends on all sums, and on which is its own."""

    couples_sequences = True

    def sequence_loss(self, sums, lengths):
        return lengths * (sums / 10).softmax(0) + torch.tanh(0.1 * sums * sums.mean())


class CoupledPairs(Pairs):
    couples_sequences = True

    def sequence_loss(self, sums, lengths):
        baseline = sums[:, 1].detach().mean()
        coupled = 0.1 * sums[:, 1] * sums[:, 0].mean()
        return torch.sigmoid(0.2 * (sums[:, 0] - baseline)) / lengths[:, 0] + coupled


class WithConstants(Loss):
    """The middle one of three sequences is a constant, and what takes the place of its sum mixes all rows."""

    uses_reference = True
    companions = ("alternate", "mismatched")
    constant_companions = ("alternate",)
    terms = Curved.terms

    def constant_sums(self, sums, lengths):
        return torch.tanh(0.1 * sums.mean(0) + sums / lengths)

    def sequence_loss(self, sums, lengths):
        own, alternate, mismatched = sums.unbind(-1)
        return own * torch.sigmoid(alternate / lengths[:, 1]) - (0.1 * mismatched) ** 2 / lengths[:, 2]


class OfTheGap(GapLoss):
    """Weights that do not sum to 0, so that the bias and every constant on the logits matter."""

    uses_reference = True

    def __init__(self, weights_from):
        self.weights_from = weights_from

    def gap_weights(self, logits, targets):
        weights = torch.tanh(logits).scatter_add(1, targets[:, None], torch.ones_like(logits))
        return GapWeights(weights, {"target": targets.float()})

    def sequence_loss(self, sums, lengths):
        return torch.log1p((sums / lengths) ** 2)


class OnALayer(Curved):
    """Hidden states in the place of logits; positions' targets among them."""

    layer = 3

    def terms(self, logits, targets, reference_logits):
        chosen = logits.gather(-1, targets[:, None] % logits.shape[-1])[:, 0]
        return (torch.sin(logits) * (logits - reference_logits)).sum(-1) + chosen**2


class PairsOnALayer(OnALayer, Pairs):
    pass


class SumOfLogits(Loss):
    """As little as a loss can be; its gradient by the logits is one number seen V times."""

    def terms(self, logits, targets, reference_logits):
        return logits.sum(-1)


class OneLogit(Loss):
    """Its terms are a view of its logits, whose memory the next piece's overwrite."""

    def terms(self, logits, targets, reference_logits):
        return logits[:, 1]

    def sequence_loss(self, sums, lengths):
        return torch.nn.functional.softplus(sums)


def skipping(loss, skip):
    loss.skip = skip
    return loss


def definition_of(loss):
    """By the loss's own functions, in float64, a position and a row at a time."""

    def f(sums, lengths):
        stacked = torch.stack([torch.stack(row) for row in sums])
        counts = torch.tensor(lengths)
        for kind in loss.constant_companions:
            each = [1 + loss.companions.index(kind)]
            stacked[:, each] = loss.constant_sums(stacked[:, each].detach(), counts[:, each])
        if not loss.companions:
            stacked, counts = stacked[:, 0], counts[:, 0]
        return [loss.sequence_loss(stacked, counts).sum()]

    def parts(sums, lengths):
        return {"per_token": [s[-1] / n[-1] for s, n in zip(sums, lengths, strict=True)]}

    watched = isinstance(loss, Curved)
    return Definition(
        loss,
        lambda z, z_ref, y: loss.terms(z[None], torch.tensor([y]), z_ref[None])[0],
        None if loss.mean_over == "tokens" else f,
        loss.skip,
        parts=parts if watched and loss.mean_over == "sequences" else Definition.parts,
        token_parts=(lambda z, z_ref, y: {"target": float(y)}) if watched else Definition.token_parts,
    )


def definition_of_gap(loss):
    def term(z, z_ref, y):
        weights = torch.tanh((z if loss.weights_from == "policy" else z_ref).detach())
        return (weights * (z - z_ref)).sum() + z[y] - z_ref[y]

    return Definition(
        loss,
        term,
        lambda sums, lengths: [
            torch.log(1 + (own / n) ** 2) for (own,), (n,) in zip(sums, lengths, strict=True)
        ],
        token_parts=lambda z, z_ref, y: {"target": float(y)},
    )


OWN = {
    name: definition_of(loss)
    for name, loss in {
        "curved": Curved(),
        "over tokens": OverTokens(),
        "terms only": SumOfLogits(),
        "view": OneLogit(),
        "pairs": Pairs(),
        "triples": Triples(),
        "coupled": Coupled(),
        "coupled pairs": CoupledPairs(),
        "constants": WithConstants(),
        "skip": skipping(Curved(), 2),
        "skip over tokens": skipping(OverTokens(), 2),
        "skip in pairs": skipping(Pairs(), 1),
        "skip in coupled pairs": skipping(CoupledPairs(), 2),
        "skip in constants": skipping(WithConstants(), 1),
        "skip on a layer": skipping(OnALayer(), 1),
        "pairs on a layer": PairsOnALayer(),
    }.items()
} | {f"gap, {model}": definition_of_gap(OfTheGap(model)) for model in ("policy", "reference")}
