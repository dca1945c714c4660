"""DiPO in the engine against its definition: four Kullback-Leibler divergences in a slow float64 loop."""

import math
from dataclasses import dataclass, field, replace

import pytest
import torch

from dipo_pl.errors import InputError
from dipo_pl.losses import DiPO, DiPORetain
from dipo_pl.losses.engine import sequence_objective
from dipo_pl.models.head import OutputHead
from dipo_pl.preferences.constructors import LogitModulation, Pair, PreferenceConstructor
from dipo_pl.preferences.filters import AllOf, Filter, RelativeProbability, TopFraction

# Largest error allowed, as a share of the largest entry of the float64 result.
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 2e-2, torch.float16: 4e-3}
LOSSES = {"forget": DiPO, "retain": DiPORetain}
# (sequences, longest sequence, vocabulary): positions of each sequence.
LENGTHS = {(1, 1, 2): [1], (3, 7, 11): [7, 3, 5], (2, 5, 257): [5, 2]}


# The definition. Nothing below, up to `Problem`, uses the package.


def loop_preferences(logits, keep, alpha, center=True):
    """softmax(z - alpha m) and softmax(z + alpha m) of one position, in Python numbers."""
    z = [float(each) for each in logits]
    middle = sum(z) / len(z) if center else 0.0
    memory = [value - middle if kept else 0.0 for value, kept in zip(z, keep(z), strict=True)]
    if center:
        memory = [max(0.0, value) for value in memory]

    def softmax(values):
        top = max(values)
        powers = [math.exp(value - top) for value in values]
        return torch.tensor([power / sum(powers) for power in powers], dtype=torch.float64)

    forgetting = softmax([value - alpha * m for value, m in zip(z, memory, strict=True)])
    remembering = softmax([value + alpha * m for value, m in zip(z, memory, strict=True)])
    return forgetting, remembering


def keep_top(rate):
    def keep(z):
        rank = max(1, round(rate * len(z)))
        last = sorted(z, reverse=True)[rank - 1]
        return [value >= last for value in z]

    return keep


def keep_relative(rate):
    return lambda z: [math.exp(value - max(z)) >= rate for value in z]


def keep_both(one, other):
    return lambda z: [a and b for a, b in zip(one(z), other(z), strict=True)]


def keep_first(count):
    return lambda z: [index < count for index in range(len(z))]


def loop_logits(state, head):
    z = head["weight"] @ state
    if head["bias"] is not None:
        z = z + head["bias"]
    z = z * head["scale"]
    if head["softcap"] is not None:
        z = head["softcap"] * torch.tanh(z / head["softcap"])
    return z


def divergence(p, logits):
    """D(p || softmax(logits)), in nats."""
    log_q = logits - torch.logsumexp(logits, 0)
    return (p * (torch.log(p) - log_q)).sum()


def loop_dipo(
    states, head, reference_states, reference_head, lengths, beta, retain, preferences, from_reference=False
):
    total = torch.zeros((), dtype=torch.float64)
    start = answered = 0
    for length in lengths:
        bracket = torch.zeros((), dtype=torch.float64)
        for t in range(start, start + length):
            z = loop_logits(states[t], head)
            z_reference = loop_logits(reference_states[t], reference_head)
            forgetting, remembering = preferences(z_reference if from_reference else z.detach())
            w, l = (remembering, forgetting) if retain else (forgetting, remembering)  # noqa: E741
            bracket = bracket + divergence(l, z) - divergence(w, z)
            bracket = bracket + divergence(w, z_reference) - divergence(l, z_reference)
        if length:
            total = total - torch.log(1 / (1 + torch.exp(-beta * bracket)))
            answered += 1
        start += length
    return total / max(answered, 1)


@dataclass
class Problem:
    """Random inputs, which the package gets in a dtype and the loop in float64."""

    states: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    reference_states: torch.Tensor
    reference_weight: torch.Tensor
    reference_bias: torch.Tensor | None
    targets: torch.Tensor
    lengths: list[int]
    head: dict = field(default_factory=lambda: {"scale": 1.0, "softcap": None})

    @property
    def leaves(self):
        return [each for each in (self.states, self.weight, self.bias) if each is not None]

    def to(self, dtype):
        moved = {
            name: value.detach().to(dtype)
            for name, value in vars(self).items()
            if isinstance(value, torch.Tensor) and name != "targets"
        }
        problem = replace(self, **moved)
        for leaf in problem.leaves:
            leaf.requires_grad_()
        return problem

    def package(self, loss, budget=1000, weight=None, states=None):
        return sequence_objective(
            self.states if states is None else states,
            self.targets,
            self.lengths,
            OutputHead(self.weight if weight is None else weight, self.bias, **self.head),
            loss,
            self.reference_states,
            OutputHead(self.reference_weight, self.reference_bias, **self.head),
            budget,
        )

    def definition(self, beta, retain, preferences, states=None, from_reference=False):
        return loop_dipo(
            self.states if states is None else states,
            {"weight": self.weight, "bias": self.bias, **self.head},
            self.reference_states,
            {"weight": self.reference_weight, "bias": self.reference_bias, **self.head},
            self.lengths,
            beta,
            retain,
            preferences,
            from_reference,
        )


def draw(lengths, vocabulary, width=5, reference_width=4, bias=False, spread=1.0, seed=0, **head):
    """Logits with a spread of a few nats; the reference's have another width and other weights."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * spread

    positions = sum(lengths)
    return Problem(
        normal(positions, width),
        normal(vocabulary, width),
        normal(vocabulary) if bias else None,
        normal(positions, reference_width),
        normal(vocabulary, reference_width),
        normal(vocabulary) if bias else None,
        torch.randint(vocabulary, (positions,), generator=generator),
        list(lengths),
        {"scale": 1.0, "softcap": None, **head},
    )


def close(ours, theirs, tolerance):
    largest = float(theirs.abs().max()) if theirs.numel() else 0.0
    torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=tolerance * largest)


def compare(problem, loss, retain, preferences, dtype=torch.float32, budget=1000):
    """Value and gradients of the package in `dtype` against the definition in float64."""
    ours = problem.to(dtype)
    # Inputs rounded to dtype, so that only the arithmetic differs.
    theirs = ours.to(torch.float64)
    objective = ours.package(loss, budget)
    value = theirs.definition(loss.beta, retain, preferences, from_reference=loss.pairs_from == "reference")
    assert objective.loss.dtype == torch.float32
    assert objective.loss.shape == ()
    close(objective.loss.detach(), value.detach(), TOLERANCE[dtype])
    objective.loss.backward()
    value.backward()
    for our_leaf, their_leaf in zip(ours.leaves, theirs.leaves, strict=True):
        assert our_leaf.grad.dtype == dtype
        close(our_leaf.grad, their_leaf.grad, TOLERANCE[dtype])
    return objective


class FirstTokens(Filter):
    """Keeps the same tokens whatever the logits, so that no rounding of a logit changes what is kept."""

    def __init__(self, count):
        self.count = count

    def keep(self, logits, targets):
        return (torch.arange(logits.shape[-1]) < self.count).expand_as(logits)


@pytest.mark.parametrize("budget", ["one", "uneven", "sequence", "exact", "oversize"])
@pytest.mark.parametrize("shape", LENGTHS, ids=str)
@pytest.mark.parametrize("side", LOSSES)
def test_matches_the_definition(side, shape, budget):
    """Whatever the budget cuts: single positions, uneven pieces, exact fits, or nothing."""
    lengths = LENGTHS[shape]
    tokens = {"one": 1, "uneven": 3, "sequence": max(lengths), "exact": sum(lengths), "oversize": 1000}
    loss = LOSSES[side](beta=0.3, constructor=LogitModulation(TopFraction(0.2)))
    compare(
        draw(lengths, shape[2]),
        loss,
        side == "retain",
        lambda z: loop_preferences(z, keep_top(0.2), 1.0),
        budget=tokens[budget],
    )


@pytest.mark.parametrize("beta", [0.05, 2.0])
@pytest.mark.parametrize("alpha", [0.1, 1.0, 3.0])
def test_matches_the_definition_for_other_strengths(alpha, beta):
    loss = DiPO(beta, LogitModulation(TopFraction(0.05), alpha))
    compare(draw([4, 1, 6], 53), loss, False, lambda z: loop_preferences(z, keep_top(0.05), alpha), budget=5)


@pytest.mark.parametrize("side", LOSSES)
@pytest.mark.parametrize("budget", [3, 1000])
def test_pairs_from_the_reference(side, budget):
    loss = LOSSES[side](0.2, LogitModulation(TopFraction(0.1)), pairs_from="reference")
    compare(
        draw([5, 3, 6], 37),
        loss,
        side == "retain",
        lambda z: loop_preferences(z, keep_top(0.1), 1.0),
        budget=budget,
    )


def test_defaults_are_the_papers():
    """beta 0.05, alpha 1, the top 5 % of the tokens."""
    loss = DiPO()
    assert loss.beta == 0.05
    objective = compare(draw([4, 2], 61), loss, False, lambda z: loop_preferences(z, keep_top(0.05), 1.0))
    # round(0.05 * 61) = 3
    assert float(objective.parts["kept"]) == 3.0


def test_rank_and_relative_filter_together():
    constructor = LogitModulation(AllOf([TopFraction(0.2), RelativeProbability(0.3)]))
    keep = keep_both(keep_top(0.2), keep_relative(0.3))
    compare(draw([5, 3], 41), DiPO(0.4, constructor), False, lambda z: loop_preferences(z, keep, 1.0))


@pytest.mark.parametrize("side", LOSSES)
def test_raw_logits_where_they_are_positive(side):
    """center=False: the paper's letter. A bias of 40 makes every logit positive."""
    problem = draw([3, 4], 31, bias=True)
    problem.bias += 40
    loss = LOSSES[side](0.1, LogitModulation(TopFraction(0.1), alpha=0.05, center=False))
    compare(
        problem,
        loss,
        side == "retain",
        lambda z: loop_preferences(z, keep_top(0.1), 0.05, center=False),
    )


@pytest.mark.parametrize("budget", [1, 4, 5, 1000])
@pytest.mark.parametrize("side", LOSSES)
@pytest.mark.parametrize("lengths", [[0, 4, 0, 0, 3, 5, 0], [4, 3, 0, 5], [0, 0, 12]], ids=str)
def test_sequences_without_answer_tokens_are_not_counted(lengths, side, budget):
    """The mean is over the sequences that have answer tokens, wherever the empty ones stand."""
    loss = LOSSES[side](0.3, LogitModulation(TopFraction(0.2)))
    preferences = lambda z: loop_preferences(z, keep_top(0.2), 1.0)  # noqa: E731
    objective = compare(draw(lengths, 23), loss, side == "retain", preferences, budget=budget)
    full = [length for length in lengths if length]
    without = draw(full, 23).to(torch.float32).package(loss, budget)
    assert objective.loss.item() == without.loss.item()
    assert objective.parts == without.parts


@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0]], ids=str)
@pytest.mark.parametrize("side", LOSSES)
def test_nothing_to_learn_from_is_exactly_zero(lengths, side):
    problem = draw(lengths, 11, bias=True).to(torch.float32)
    objective = problem.package(LOSSES[side]())
    assert objective.loss.item() == 0.0
    objective.loss.backward()
    for leaf in problem.leaves:
        assert torch.equal(leaf.grad, torch.zeros_like(leaf))


HEADS = {
    "bias": {"bias": True},
    "scale": {"scale": 0.25},
    "softcap": {"softcap": 2.0},
    "all": {"bias": True, "scale": 1.7, "softcap": 3.0},
}


@pytest.mark.parametrize("budget", [2, 1000])
@pytest.mark.parametrize("side", LOSSES)
@pytest.mark.parametrize("name", HEADS)
def test_heads(name, side, budget):
    """With a soft cap as low as this most logits sit where tanh bends."""
    loss = LOSSES[side](0.3, LogitModulation(TopFraction(0.2)))
    compare(
        draw([5, 3], 29, **HEADS[name]),
        loss,
        side == "retain",
        lambda z: loop_preferences(z, keep_top(0.2), 1.0),
        budget=budget,
    )


@pytest.mark.parametrize("budget", [2, 1000])
@pytest.mark.parametrize("side", LOSSES)
def test_tied_head_gets_the_embeddings_gradient_too(side, budget):
    """The states are a function of the head's own weight, as in a model with tied embeddings."""
    problem = draw([5, 3], 29, spread=0.7)
    loss = LOSSES[side](0.3, LogitModulation(TopFraction(0.2)))
    mixing = torch.randn(5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tokens = torch.arange(8).remainder(6)
    ours, theirs = problem.to(torch.float32), problem.to(torch.float64)

    states = torch.tanh(ours.weight[tokens] @ mixing.float())
    ours.package(loss, budget, states=states).loss.backward()
    states = torch.tanh(theirs.weight[tokens] @ mixing)
    theirs.definition(
        0.3, side == "retain", lambda z: loop_preferences(z, keep_top(0.2), 1.0), states=states
    ).backward()
    close(ours.weight.grad, theirs.weight.grad, 2e-5)


@pytest.mark.parametrize("budget", [2, 1000])
def test_frozen_head_gets_no_gradient(budget):
    problem = draw([5, 3], 29, bias=True)
    ours, theirs = problem.to(torch.float32), problem.to(torch.float64)
    ours.weight.requires_grad_(False)
    ours.bias.requires_grad_(False)
    loss = DiPO(0.3, LogitModulation(TopFraction(0.2)))
    ours.package(loss, budget).loss.backward()
    theirs.definition(0.3, False, lambda z: loop_preferences(z, keep_top(0.2), 1.0)).backward()
    assert ours.weight.grad is None
    assert ours.bias.grad is None
    close(ours.states.grad, theirs.states.grad, TOLERANCE[torch.float32])


@pytest.mark.parametrize("budget", [2, 1000])
def test_frozen_decoder_trains_the_head_alone(budget):
    problem = draw([5, 3], 29, bias=True)
    ours, theirs = problem.to(torch.float32), problem.to(torch.float64)
    ours.states.requires_grad_(False)
    loss = DiPO(0.3, LogitModulation(TopFraction(0.2)))
    ours.package(loss, budget).loss.backward()
    theirs.definition(0.3, False, lambda z: loop_preferences(z, keep_top(0.2), 1.0)).backward()
    assert ours.states.grad is None
    close(ours.weight.grad, theirs.weight.grad, TOLERANCE[torch.float32])
    close(ours.bias.grad, theirs.bias.grad, TOLERANCE[torch.float32])


@pytest.mark.parametrize("budget", [1, 3, 1000])
@pytest.mark.parametrize("side", LOSSES)
@pytest.mark.parametrize("name", ["bias", "scale", "softcap", "all"])
def test_bfloat16_model(name, side, budget):
    """Weights and states in bfloat16 (8 bits of mantissa); value and gradient sums stay float32."""
    loss = LOSSES[side](0.3, LogitModulation(FirstTokens(4), alpha=0.5))
    compare(
        draw([5, 3, 6], 37, spread=0.7, **HEADS[name]),
        loss,
        side == "retain",
        lambda z: loop_preferences(z, keep_first(4), 0.5),
        torch.bfloat16,
        budget,
    )


@pytest.mark.parametrize("budget", [3, 1000])
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("states", [torch.float32, "half"], ids=str)
def test_autocast(states, half, budget):
    """float32 weights; the states that come out of an autocast decoder may be of either dtype."""
    problem = draw([5, 3, 6], 37, spread=0.7, bias=True)
    loss = DiPO(0.3, LogitModulation(FirstTokens(4), alpha=0.5))
    ours, theirs = problem.to(torch.float32), problem.to(torch.float64)
    with torch.autocast("cpu", half):
        given = ours.states.to(half) if states == "half" else ours.states
        objective = ours.package(loss, budget, states=given)
    assert objective.loss.dtype == torch.float32
    objective.loss.backward()
    value = theirs.definition(0.3, False, lambda z: loop_preferences(z, keep_first(4), 0.5))
    value.backward()
    close(objective.loss.detach(), value.detach(), TOLERANCE[half])
    for our_leaf, their_leaf in zip(ours.leaves, theirs.leaves, strict=True):
        assert our_leaf.grad.dtype == torch.float32
        close(our_leaf.grad, their_leaf.grad, TOLERANCE[half])
    # It did run in the lower precision: in float32 the loss would differ by 5e-6 at most.
    assert abs(objective.loss.item() - value.item()) > 5e-6 * abs(value.item())


def test_float16_keeps_small_gradients():
    """A loss scaler multiplies the finished loss: what is lost in float16 before that stays lost.

    Of 2,001 almost equally probable tokens each has a gradient of about 0.025 / 8 / 2001 = 1.6e-6, and
    float16's smallest number is 6e-8.
    """
    problem = draw([1] * 8, 2001, spread=0.3)
    loss = DiPO(0.05, LogitModulation(FirstTokens(1000)))
    ours, theirs = problem.to(torch.float32), problem.to(torch.float64)
    with torch.autocast("cpu", torch.float16):
        states = ours.states.to(torch.float16)
        (ours.package(loss, states=states).loss * 2**16).backward()
    theirs.definition(0.05, False, lambda z: loop_preferences(z, keep_first(1000), 1.0)).backward()
    close(ours.states.grad / 2**16, theirs.states.grad, TOLERANCE[torch.float16])
    close(ours.weight.grad / 2**16, theirs.weight.grad, TOLERANCE[torch.float16])


@pytest.mark.parametrize("budget", [2, 1000])
@pytest.mark.parametrize("side", LOSSES)
def test_at_the_reference_the_loss_is_ln_2(side, budget):
    """All four divergences cancel, yet the gradient is -beta sigma(0) (w - l) / B."""
    problem = draw([5, 3], 29, bias=True)
    problem = replace(
        problem,
        reference_states=problem.states,
        reference_weight=problem.weight,
        reference_bias=problem.bias,
    ).to(torch.float32)
    loss = LOSSES[side](0.3, LogitModulation(TopFraction(0.2)))
    objective = problem.package(loss, budget)
    assert objective.loss.item() == pytest.approx(math.log(2), abs=1e-7)
    assert float(objective.parts["margin"]) == 0.0
    assert float(objective.parts["margin_positive"]) == 0.0
    objective.loss.backward()

    expected = []
    for state in problem.states.detach().double():
        z = problem.weight.detach().double() @ state + problem.bias.detach().double()
        forgetting, remembering = loop_preferences(z, keep_top(0.2), 1.0)
        preferred = 1 if side == "forget" else -1
        expected.append(-0.3 * 0.5 * preferred * (forgetting - remembering) / 2)
    expected = torch.stack(expected)
    close(problem.bias.grad, expected.sum(0), TOLERANCE[torch.float32])
    close(problem.states.grad, expected @ problem.weight.detach().double(), TOLERANCE[torch.float32])


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_at_the_reference_under_autocast(half):
    """Policy and reference are rounded alike, so that training starts at ln 2 exactly there too."""
    problem = draw([5, 30], 300)
    problem = replace(problem, reference_states=problem.states, reference_weight=problem.weight).to(
        torch.float32
    )
    with torch.autocast("cpu", half):
        objective = problem.package(DiPO())
    assert float(objective.parts["margin"]) == 0.0
    assert objective.loss.item() == pytest.approx(math.log(2), abs=1e-7)


@pytest.mark.parametrize("side", LOSSES)
def test_one_step_moves_towards_the_preferred_distribution(side):
    """On forget rows the confident tokens lose probability, on retain rows they gain it."""
    problem = draw([4], 41).to(torch.float32)
    constructor = LogitModulation(TopFraction(0.1))
    problem.package(LOSSES[side](0.1, constructor)).loss.backward()
    with torch.no_grad():
        before = problem.states @ problem.weight.T
        after = (problem.states - 0.1 * problem.states.grad) @ problem.weight.T
        kept = constructor.filter.keep(before, problem.targets)
        change = (after.softmax(-1) - before.softmax(-1)).masked_fill(~kept, 0).sum(-1)
    assert ((change < 0) if side == "forget" else (change > 0)).all()


def test_forget_and_retain_are_mirror_images():
    """One's margin is the other's, negated: -log sigma(x) and -log sigma(-x) = -log sigma(x) + x."""
    problem = draw([4, 3], 41).to(torch.float32)
    constructor = LogitModulation(TopFraction(0.1))
    forget = problem.package(DiPO(0.1, constructor))
    retain = problem.package(DiPORetain(0.1, constructor))
    assert float(forget.parts["margin"]) == pytest.approx(-float(retain.parts["margin"]), rel=1e-6)
    assert (retain.loss - forget.loss).item() == pytest.approx(0.1 * float(forget.parts["margin"]), rel=1e-4)


@pytest.mark.parametrize("budget", [2, 7, 1000])
def test_parts(budget):
    """margin: mean over sequences of M_s; margin_positive: the share with M_s > 0; kept: mean over positions."""
    problem = draw([5, 0, 3, 4], 23)
    # A reference that is surer of the same tokens makes a sequence's margin positive.
    sureness = torch.tensor([2.0] * 5 + [0.5] * 3 + [1.5] * 4, dtype=torch.float64)[:, None]
    problem = replace(problem, reference_states=problem.states * sureness, reference_weight=problem.weight)
    theirs = problem.to(torch.float64)
    margins, start = [], 0
    for length in (5, 3, 4):
        part = replace(
            theirs,
            states=theirs.states[start : start + length],
            reference_states=theirs.reference_states[start : start + length],
            lengths=[length],
        )
        loss = part.definition(1.0, False, lambda z: loop_preferences(z, keep_top(0.2), 1.0))
        margins.append(-math.log(math.expm1(loss.item())))
        start += length
    objective = problem.to(torch.float32).package(DiPO(1.0, LogitModulation(TopFraction(0.2))), budget)
    assert set(objective.parts) == {"kept", "margin", "margin_positive"}
    assert float(objective.parts["margin"]) == pytest.approx(sum(margins) / 3, rel=1e-5)
    assert [margin > 0 for margin in margins] == [True, False, True]
    assert float(objective.parts["margin_positive"]) == pytest.approx(2 / 3)
    assert float(objective.parts["kept"]) == pytest.approx(5)  # round(0.2 * 23)
    assert not any(part.requires_grad for part in objective.parts.values())


@pytest.mark.parametrize("direction", [1, -1])
def test_margins_of_thousands_of_nats(direction):
    """-log sigma(x) is 0 or -x there, never inf or nan."""
    problem = draw([6, 4], 23).to(torch.float32)
    with torch.no_grad():
        problem.reference_states.mul_(direction * 20_000)
    loss = DiPO(2.0, LogitModulation(TopFraction(0.2)))
    objective = problem.package(loss)
    assert abs(float(objective.parts["margin"])) > 1000
    objective.loss.backward()
    for value in (objective.loss, *(leaf.grad for leaf in problem.leaves)):
        assert torch.isfinite(value).all()


class Temperatures(PreferenceConstructor):
    """A constructor of one's own that gives only the pair: flatter and sharper."""

    def pair(self, logits, targets):
        return Pair((logits / 2).softmax(-1), (logits * 2).softmax(-1))


@pytest.mark.parametrize("budget", [2, 1000])
@pytest.mark.parametrize("side", LOSSES)
def test_a_constructor_of_ones_own(side, budget):
    compare(
        draw([5, 3], 29),
        LOSSES[side](0.3, Temperatures()),
        side == "retain",
        lambda z: ((z / 2).softmax(-1), (z * 2).softmax(-1)),
        budget=budget,
    )


def shifted(problem, offsets, reference_offsets):
    """The same model with a constant added to all logits of a position: a column of ones in the head."""

    def widen(states, weight, constants):
        ones = torch.ones(len(weight), 1, dtype=weight.dtype)
        return torch.cat([states, constants[:, None]], 1), torch.cat([weight, ones], 1)

    states, weight = widen(problem.states, problem.weight, offsets)
    reference_states, reference_weight = widen(
        problem.reference_states, problem.reference_weight, reference_offsets
    )
    return replace(
        problem,
        states=states,
        weight=weight,
        reference_states=reference_states,
        reference_weight=reference_weight,
    )


@pytest.mark.parametrize("side", LOSSES)
def test_gauge(side):
    """Logits mean the same with any constant added a position: so do value, gradients and kept tokens."""
    problem = draw([5, 3], 29)
    generator = torch.Generator().manual_seed(3)
    offsets = -40 + 10 * torch.randn(8, generator=generator, dtype=torch.float64)
    moved = shifted(problem, offsets, 25 - offsets).to(torch.float32)
    problem = problem.to(torch.float32)
    loss = LOSSES[side](0.3, LogitModulation(AllOf([TopFraction(0.2), RelativeProbability(0.1)])))
    plain, shift = problem.package(loss), moved.package(loss)
    assert shift.loss.item() == pytest.approx(plain.loss.item(), rel=2e-5)
    assert float(shift.parts["kept"]) == float(plain.parts["kept"])
    plain.loss.backward()
    shift.loss.backward()
    close(moved.states.grad[:, :-1], problem.states.grad.double(), 1e-4)
    close(moved.weight.grad[:, :-1], problem.weight.grad.double(), 1e-4)
    # The constant itself is not learned.
    assert float(moved.states.grad[:, -1].abs().max()) < 1e-6 * float(problem.states.grad.abs().max())


def test_raw_logits_that_are_negative_are_refused():
    """GPT-2's are all negative: uncentred, what should be forgotten would be amplified."""
    problem = draw([5, 3], 29, bias=True)
    problem.bias -= 100
    loss = DiPO(0.3, LogitModulation(TopFraction(0.2), center=False))
    with pytest.raises(InputError, match=r"a kept logit is -\d+.*not positive.*Set center to true"):
        problem.to(torch.float32).package(loss)


@pytest.mark.parametrize("beta", [0, 0.0, -0.05, math.nan, math.inf])
@pytest.mark.parametrize("loss", LOSSES.values())
def test_beta_is_refused(loss, beta):
    with pytest.raises(InputError, match=rf"^{loss.__name__}\.beta must be a finite number > 0, got {beta}$"):
        loss(beta)
