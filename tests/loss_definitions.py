"""Every loss as a float64 loop that shares no code with the package."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dipo_pl import losses
from dipo_pl.losses.base import Loss
from dipo_pl.preferences.constructors import LogitModulation
from dipo_pl.preferences.filters import Filter, TopFraction

RMU_DIRECTION_SEED = 4


@dataclass(frozen=True)
class Definition:
    """A loss of the package, and its definition.

    Attributes:
        loss: the package's.
        term: q_t of the logits, the reference's logits and the target of one position.
        f: of the sums and lengths of each row's sequences, [rows][members], the loss of each row.
        skip: tokens that are left out at the start of each sequence.
        select: of [T, V] logits of the reference and the targets of one sequence, the targets with -1 at positions that
            the loss treats otherwise.
        parts: of sums and lengths, what is logged: its value for each row.
        token_parts: of a position, what is logged.
    """

    loss: Loss
    term: Callable[[Tensor, Tensor, int], Tensor]
    f: Callable[[list, list], list] | None = None
    skip: int = 0
    select: Callable[[Tensor, list[int]], list[int]] = lambda z_ref, targets: targets
    parts: Callable[[list, list], dict[str, list]] = lambda sums, lengths: {}
    token_parts: Callable[[Tensor, Tensor, int], dict[str, float]] = lambda z, z_ref, y: {}

    @property
    def members(self) -> int:
        return 1 + len(self.loss.companions)

    def value(self, z: Tensor, z_ref: Tensor, targets: Tensor, lengths: list[int]) -> tuple[Tensor, dict]:
        """Return the loss and its parts, of [N, V] logits."""
        sequences, start = [], 0
        for length in lengths:
            sequences.append(range(start + self.skip, start + length))
            start += length
        count = len(lengths) // self.members
        rows = [[sequences[row + count * member] for member in range(self.members)] for row in range(count)]
        rows = [row for row in rows if all(len(sequence) for sequence in row)]
        sums, token_parts = [], {}
        for row in rows:
            sums.append([])
            for sequence in row:
                total = torch.zeros((), dtype=torch.float64)
                own = self.select(z_ref[list(sequence)], [int(targets[t]) for t in sequence])
                for t, target in zip(sequence, own, strict=True):
                    given = z[t], z_ref[t], target
                    total = total + self.term(*given)
                    for name, part in self.token_parts(*given).items():
                        token_parts.setdefault(name, []).append(part)
                sums[-1].append(total)
        counts = [[len(sequence) for sequence in row] for row in rows]
        with torch.no_grad():
            parts = token_parts | (self.parts(sums, counts) if rows else {})
            parts = {name: float(sum(values)) / len(values) for name, values in parts.items()}
        if not rows:
            return z.sum() * 0, {}
        if self.f is None:
            return sum(sum(row) for row in sums) / sum(sum(row) for row in counts), parts
        return sum(self.f(sums, counts)) / len(rows), parts


# Terms and functions of sums.


def softmax(z: Tensor) -> Tensor:
    powers = torch.exp(z - z.detach().max())
    return powers / powers.sum()


def log_p(z: Tensor, z_ref: Tensor, y: int) -> Tensor:
    return torch.log(softmax(z)[y])


def log_ratio(z: Tensor, z_ref: Tensor, y: int) -> Tensor:
    return torch.log(softmax(z)[y]) - torch.log(softmax(z_ref)[y])


def sigma(x: Any) -> Any:
    return 1 / (1 + torch.exp(-x))


def per_row(f: Callable) -> Callable[[list, list], list]:
    """f of a row's own sums and lengths, apart from other rows."""
    return lambda sums, lengths: [f(*zip(s, n, strict=True)) for s, n in zip(sums, lengths, strict=True)]


token_average = per_row(lambda own: own[0] / own[1])


def kto(beta: float) -> Callable[[list, list], list]:
    return lambda sums, lengths: [1 - sigma(beta * (baseline(sums) - own)) for own, _ in sums]


def baseline(sums: list) -> float:
    """KTO's z_0, a Python number: no gradient goes through it."""
    return max(0.0, sum(float(mismatched.detach()) for _, mismatched in sums) / len(sums))


def reference_kl(z: Tensor, z_ref: Tensor, y: int) -> Tensor:
    p, q = softmax(z), softmax(z_ref)
    return sum(q[v] * (torch.log(q[v]) - torch.log(p[v])) for v in range(len(z)))


def undial(beta: float) -> Callable:
    def term(z: Tensor, z_ref: Tensor, y: int) -> Tensor:
        lowered = [float(each) - (beta if v == y else 0) for v, each in enumerate(z_ref)]
        return -(softmax(torch.tensor(lowered, dtype=torch.float64)) * torch.log(softmax(z))).sum()

    return term


def weighted(weight: Callable[[float], float]) -> dict[str, Any]:
    """Ascent with a weight that is a Python number, so that no gradient goes through it."""
    return {
        "term": lambda z, z_ref, y: weight(softmax(z)[y].item()) * torch.log(softmax(z)[y]),
        "token_parts": lambda z, z_ref, y: {"token_weight": weight(softmax(z)[y].item())},
    }


def ce_u(z: Tensor, z_ref: Tensor, y: int) -> Tensor:
    others = [v for v in range(len(z)) if v != y]
    wanted, p = softmax(z.detach()[others]), softmax(z)
    return -sum(wanted[index] * torch.log(p[v]) for index, v in enumerate(others))


def pdu(z: Tensor, z_ref: Tensor, y: int) -> Tensor:
    return (z[int(z.detach().argmax())] - sum(z) / len(z)) ** 2


def inverted_hinge(z: Tensor, z_ref: Tensor, y: int) -> Tensor:
    p = softmax(z)
    ranked = sorted((v for v in range(len(z)) if v != y), key=lambda v: -float(p.detach()[v]))
    return 1 + p[y] - p[ranked[0]]


def entropy(z: Tensor, z_ref: Tensor, y: int) -> Tensor:
    return sum(each * torch.log(1 / each) for each in softmax(z))


def rarest(share: float) -> Callable[[Tensor, list[int]], list[int]]:
    """Targets of the share of positions where the reference finds them least probable; -1 elsewhere."""

    def select(z_ref: Tensor, targets: list[int]) -> list[int]:
        found = [float(softmax(z_ref[t])[y]) for t, y in enumerate(targets)]
        count = max(1, round(share * len(targets)))
        chosen = sorted(range(len(targets)), key=lambda t: found[t])[:count]
        return [y if t in chosen else -1 for t, y in enumerate(targets)]

    return select


def shred(top: int) -> Callable:
    def term(z: Tensor, z_ref: Tensor, y: int) -> Tensor:
        kept = sorted(range(len(z)), key=lambda v: -float(z_ref[v]))[:top]
        kept = [v for v in kept if v != y]
        q, p = softmax(z_ref[kept]), softmax(z)
        return sum(q[place] * (torch.log(q[place]) - torch.log(p[v])) for place, v in enumerate(kept))

    return term


def from_uniform(z: Tensor, z_ref: Tensor, y: int) -> Tensor:
    return sum(each * torch.log(each * len(z)) for each in softmax(z))


def to_uniform(z: Tensor, z_ref: Tensor, y: int) -> Tensor:
    return sum(torch.log(1 / (each * len(z))) for each in softmax(z)) / len(z)


def squared_distance(h: Tensor, target: list) -> Tensor:
    return sum((each - wanted) ** 2 for each, wanted in zip(h, target, strict=True)) / len(h)


def steered(steering: float) -> Callable:
    def term(h: Tensor, h_ref: Tensor, y: int) -> Tensor:
        drawn = torch.rand(len(h), generator=torch.Generator().manual_seed(RMU_DIRECTION_SEED)).tolist()
        norm = math.sqrt(sum(each**2 for each in drawn))
        return squared_distance(h, [steering * each / norm for each in drawn])

    return term


def keep_top(rate: float) -> Callable[[list[float]], list[bool]]:
    def keep(z: list[float]) -> list[bool]:
        last = sorted(z, reverse=True)[max(1, round(rate * len(z))) - 1]
        return [value >= last for value in z]

    return keep


def keep_first(count: int) -> Callable[[list[float]], list[bool]]:
    return lambda z: [index < count for index in range(len(z))]


def modulated(keep: Callable, alpha: float = 1.0, center: bool = True) -> Callable:
    """softmax(z - alpha m) and softmax(z + alpha m) of one position, in Python numbers."""

    def preferences(logits: Tensor) -> tuple[Tensor, Tensor]:
        z = [float(each) for each in logits]
        middle = sum(z) / len(z) if center else 0.0
        memory = [value - middle if kept else 0.0 for value, kept in zip(z, keep(z), strict=True)]
        memory = [max(0.0, value) if center else value for value in memory]
        pair = [[value + sign * alpha * m for value, m in zip(z, memory, strict=True)] for sign in (-1, 1)]
        forgetting, remembering = (softmax(torch.tensor(each, dtype=torch.float64)) for each in pair)
        return forgetting, remembering

    return preferences


def divergence(p: Tensor, z: Tensor) -> Tensor:
    return (p * (torch.log(p) - torch.log(softmax(z)))).sum()


def dipo(loss: losses.DiPO, preferences: Callable, kept: float | None = None) -> Definition:
    """DiPO by its four divergences, on retain rows with the roles of the pair reversed."""
    retain = isinstance(loss, losses.DiPORetain)

    def term(z: Tensor, z_ref: Tensor, y: int) -> Tensor:
        forgetting, remembering = preferences((z_ref if loss.pairs_from == "reference" else z).detach())
        w, l = (remembering, forgetting) if retain else (forgetting, remembering)  # noqa: E741
        return divergence(l, z) - divergence(w, z) + divergence(w, z_ref) - divergence(l, z_ref)

    def margin(own: list) -> Tensor:
        total, length = own
        return total / length if loss.per_token else total

    def parts(sums: list, lengths: list) -> dict[str, list]:
        margins = [margin([own, n]) for (own,), (n,) in zip(sums, lengths, strict=True)]
        return {"margin": margins, "margin_positive": [each > 0 for each in margins]}

    return Definition(
        loss,
        term,
        per_row(lambda own: -torch.log(sigma(loss.beta * margin(own)))),
        parts=parts,
        token_parts=lambda z, z_ref, y: {} if kept is None else {"kept": kept},
    )


class FirstTokens(Filter):
    """Keeps the same tokens whatever the logits, so that no rounding of a logit changes what is kept."""

    def __init__(self, count: int) -> None:
        self.count = count

    def keep(self, logits: Tensor, targets: Tensor) -> Tensor:
        return (torch.arange(logits.shape[-1]) < self.count).expand_as(logits)


def modulation(rate: float = 0.2) -> LogitModulation:
    return LogitModulation(TopFraction(rate))


def _own(sums: list) -> list:
    return [row[0] for row in sums]


_FIXED = LogitModulation(FirstTokens(4), alpha=0.5)
DEFINITIONS: dict[str, Definition] = {
    "DiPO": dipo(losses.DiPO(0.3, modulation()), modulated(keep_top(0.2))),
    "DiPORetain": dipo(losses.DiPORetain(0.3, modulation()), modulated(keep_top(0.2))),
    "DiPO, fixed tokens": dipo(losses.DiPO(0.3, _FIXED), modulated(keep_first(4), 0.5)),
    "DiPORetain, fixed tokens": dipo(losses.DiPORetain(0.3, _FIXED), modulated(keep_first(4), 0.5)),
    "DiPO, pairs from the reference": dipo(
        losses.DiPO(0.2, modulation(), pairs_from="reference"), modulated(keep_top(0.2))
    ),
    "DiPORetain, pairs from the reference": dipo(
        losses.DiPORetain(0.2, modulation(), pairs_from="reference"), modulated(keep_top(0.2))
    ),
    "DiPO, margin a token": dipo(losses.DiPO(1.5, _FIXED, per_token=True), modulated(keep_first(4), 0.5)),
    "DiPORetain, margin a token": dipo(
        losses.DiPORetain(1.5, _FIXED, per_token=True), modulated(keep_first(4), 0.5)
    ),
    "NPO": Definition(
        losses.NPO(0.3),
        log_ratio,
        per_row(lambda own: 2 / 0.3 * torch.log(1 + torch.exp(0.3 * own[0]))),
        parts=lambda sums, lengths: {"log_ratio": _own(sums)},
    ),
    **{
        name: Definition(
            losses.SimNPO(beta, gamma),
            log_p,
            per_row(lambda own, b=beta, g=gamma: -2 / b * torch.log(sigma(-b / own[1] * own[0] - g))),
            parts=lambda sums, lengths: {
                "log_probability": [s / n for (s,), (n,) in zip(sums, lengths, strict=True)]
            },
        )
        for name, beta, gamma in (("SimNPO", 2.5, 0.0), ("SimNPO with a margin", 0.7, 3.0))
    },
    "DPO": Definition(
        losses.DPO(0.3),
        log_ratio,
        per_row(lambda own, alternate: -torch.log(sigma(0.3 * alternate[0] - 0.3 * own[0]))),
        parts=lambda sums, lengths: {
            "log_ratio": _own(sums),
            "margin": [alternate - own for own, alternate in sums],
            "margin_positive": [alternate > own for own, alternate in sums],
        },
    ),
    "KTO": Definition(
        losses.KTO(0.3),
        log_ratio,
        kto(0.3),
        parts=lambda sums, lengths: {"log_ratio": _own(sums), "baseline": [baseline(sums)]},
    ),
    "CrossEntropy": Definition(losses.CrossEntropy(), lambda *given: -log_p(*given)),
    "GradientAscent": Definition(losses.GradientAscent(), log_p),
    "ReferenceKL": Definition(losses.ReferenceKL(), reference_kl, token_average),
    "UNDIAL": Definition(losses.UNDIAL(3.0), undial(3.0)),
    "WGA": Definition(losses.WGA(0.7), **weighted(lambda p: p**0.7)),
    "SatImp": Definition(losses.SatImp(1.3, 0.6), **weighted(lambda p: p**1.3 * (1 - p) ** 0.6)),
    "CEU": Definition(losses.CEU(skip=0), ce_u),
    "CEU without the first": Definition(losses.CEU(), ce_u, skip=1),
    "PDU": Definition(losses.PDU(), pdu, token_average),
    "Entropy": Definition(losses.Entropy(), entropy, token_average),
    "InvertedHinge": Definition(
        losses.InvertedHinge(),
        inverted_hinge,
        token_parts=lambda z, z_ref, y: {"probability": float(softmax(z)[y])},
    ),
    **{
        name: Definition(
            losses.SHRED(share, top, skip),
            shred(top),
            skip=skip,
            select=rarest(share),
            token_parts=lambda z, z_ref, y: {"forget_positions": float(y >= 0)},
        )
        for name, share, top, skip in (
            ("SHRED", 0.5, 100, 0),
            ("SHRED of few tokens", 0.3, 5, 0),
            ("SHRED without the first", 1.0, 2, 1),
        )
    },
    "MaximumEntropy": Definition(losses.MaximumEntropy(), from_uniform, token_average),
    "MaximumEntropy, reversed": Definition(losses.MaximumEntropy(reverse=True), to_uniform, token_average),
    "RMU": Definition(losses.RMU(1.7, 0, RMU_DIRECTION_SEED), steered(1.7), token_average),
    "RMURetain": Definition(
        losses.RMURetain(0), lambda h, h_ref, y: squared_distance(h, h_ref.tolist()), token_average
    ),
}
# Those that rounding to half precision does not make discontinuous.
SMOOTH = [name for name in DEFINITIONS if name not in ("DiPO", "DiPORetain") and not name.startswith("SHRED")]
