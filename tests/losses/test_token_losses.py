"""Losses with a term at each token, in the engine against slow float64 loops: values and gradients."""

import math
from dataclasses import dataclass, field, replace

import pytest
import torch

from dipo_pl.errors import InputError
from dipo_pl.losses import CEU, PDU, UNDIAL, WGA, GradientAscent, Loss, MaximumEntropy, ReferenceKL, SatImp
from dipo_pl.losses.engine import sequence_objective
from dipo_pl.models.head import OutputHead

# Largest error allowed, as a share of the largest entry of the float64 result, or of 0.1 where that is
# less: log-probabilities are differences of numbers of order 1, known to 1e-7 however small they are.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
# (sequences, longest sequence, vocabulary): positions of each sequence.
LENGTHS = {(1, 1, 2): [1], (3, 7, 11): [7, 3, 5], (2, 5, 257): [5, 2]}
HEADS = {"plain": {}, "scale": {"scale": 0.7}, "softcap": {"scale": 0.7, "softcap": 2.0}}


# The definitions. Nothing below, up to `Problem`, uses the package.


def loop_logits(state, weight, bias, scale=1.0, softcap=None):
    z = weight @ state
    if bias is not None:
        z = z + bias
    z = z * scale
    return z if softcap is None else softcap * torch.tanh(z / softcap)


def loop_softmax(z):
    powers = torch.exp(z - z.detach().max())
    return powers / powers.sum()


def reference_kl(z, z_reference, target):
    p, q = loop_softmax(z), loop_softmax(z_reference)
    return sum(q[v] * (torch.log(q[v]) - torch.log(p[v])) for v in range(len(z)))


def undial(beta):
    def term(z, z_reference, target):
        lowered = torch.tensor(
            [float(each) - (beta if v == target else 0) for v, each in enumerate(z_reference)],
            dtype=torch.float64,
        )
        return -(loop_softmax(lowered) * torch.log(loop_softmax(z))).sum()

    return term


def weighted(weight):
    """Ascent with a weight that is a Python number, so that no gradient goes through it."""

    def term(z, z_reference, target):
        p = loop_softmax(z)[target]
        return weight(p.item()) * torch.log(p)

    return term


def ce_u(z, z_reference, target):
    others = [v for v in range(len(z)) if v != target]
    wanted = loop_softmax(z.detach()[others])
    p = loop_softmax(z)
    return -sum(wanted[index] * torch.log(p[v]) for index, v in enumerate(others))


def pdu(z, z_reference, target):
    return (z[int(z.detach().argmax())] - sum(z) / len(z)) ** 2


def from_uniform(z, z_reference, target):
    p = loop_softmax(z)
    return sum(each * torch.log(each * len(z)) for each in p)


def to_uniform(z, z_reference, target):
    p = loop_softmax(z)
    return sum(torch.log(1 / (each * len(z))) for each in p) / len(z)


# By name: the loss, its term, over what its mean is taken, answer tokens left out at the start.
DEFINITIONS = {
    "ReferenceKL": (ReferenceKL(), reference_kl, "sequences", 0),
    "UNDIAL": (UNDIAL(3.0), undial(3.0), "tokens", 0),
    "WGA": (WGA(0.7), weighted(lambda p: p**0.7), "tokens", 0),
    "SatImp": (SatImp(1.3, 0.6), weighted(lambda p: p**1.3 * (1 - p) ** 0.6), "tokens", 0),
    "CEU": (CEU(skip=0), ce_u, "tokens", 0),
    "CEU without the first": (CEU(), ce_u, "tokens", 1),
    "PDU": (PDU(), pdu, "sequences", 0),
    "MaximumEntropy": (MaximumEntropy(), from_uniform, "sequences", 0),
    "MaximumEntropy reversed": (MaximumEntropy(reverse=True), to_uniform, "sequences", 0),
}
LOSSES = {name: definition[0] for name, definition in DEFINITIONS.items()}


def loop(problem, term, mean_over, skip):
    sums, counts, start = [], [], 0
    for length in problem.lengths:
        total = torch.zeros((), dtype=torch.float64)
        for t in range(start + skip, start + length):
            z = loop_logits(problem.states[t], problem.weight, problem.bias, **problem.head)
            z_reference = loop_logits(
                problem.reference_states[t], problem.reference_weight, None, **problem.head
            )
            total = total + term(z, z_reference, int(problem.targets[t]))
        if length > skip:
            sums.append(total)
            counts.append(length - skip)
        start += length
    if not sums:
        return torch.zeros((), dtype=torch.float64)
    if mean_over == "tokens":
        return sum(sums) / sum(counts)
    return sum(total / count for total, count in zip(sums, counts, strict=True)) / len(sums)


@dataclass
class Problem:
    """Random inputs, which the package gets in a dtype and the loop in float64."""

    states: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    reference_states: torch.Tensor
    reference_weight: torch.Tensor
    targets: torch.Tensor
    lengths: list[int]
    head: dict = field(default_factory=dict)

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

    def package(self, loss, budget=1000):
        return sequence_objective(
            self.states,
            self.targets,
            self.lengths,
            OutputHead(self.weight, self.bias, **self.head),
            loss,
            self.reference_states,
            OutputHead(self.reference_weight, **self.head),
            budget,
        )

    def at_the_reference(self):
        return replace(self, weight=self.reference_weight, states=self.reference_states, bias=None)


def draw(lengths, vocabulary, bias=True, seed=0, **head):
    """The policy's states have another width than the reference's."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    positions = sum(lengths)
    return Problem(
        normal(positions, 5),
        normal(vocabulary, 5),
        normal(vocabulary) if bias else None,
        normal(positions, 4),
        normal(vocabulary, 4),
        torch.randint(vocabulary, (positions,), generator=generator),
        list(lengths),
        head,
    )


def close(ours, theirs, tolerance):
    largest = float(theirs.detach().abs().max()) if theirs.numel() else 0.0
    limit = tolerance * max(largest, 0.1)
    torch.testing.assert_close(ours.detach().double(), theirs.detach(), rtol=0, atol=limit)


def compare(problem, name, dtype=torch.float32, budget=1000):
    loss, *definition = DEFINITIONS[name]
    ours = problem.to(dtype)
    # Inputs rounded to dtype, so that only the arithmetic differs.
    theirs = ours.to(torch.float64)
    objective, value = ours.package(loss, budget), loop(theirs, *definition)
    assert objective.loss.dtype == torch.float32
    close(objective.loss, value, TOLERANCE[dtype])
    if not value.requires_grad:
        return
    objective.loss.backward()
    value.backward()
    for our_leaf, their_leaf in zip(ours.leaves, theirs.leaves, strict=True):
        assert our_leaf.grad.dtype == dtype
        close(our_leaf.grad, their_leaf.grad, TOLERANCE[dtype])


@pytest.mark.parametrize("budget", ["one", "uneven", "sequence", "exact", "oversize"])
@pytest.mark.parametrize("shape", LENGTHS, ids=str)
@pytest.mark.parametrize("name", DEFINITIONS)
def test_matches_the_definition(name, shape, budget):
    lengths = LENGTHS[shape]
    tokens = {"one": 1, "uneven": 3, "sequence": max(lengths), "exact": sum(lengths), "oversize": 1000}
    compare(draw(lengths, shape[2]), name, budget=tokens[budget])


@pytest.mark.parametrize("budget", [3, 1000])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", DEFINITIONS)
def test_every_kind_of_head(name, head, budget):
    compare(draw([5, 3, 6], 37, bias=False, **HEADS[head]), name, budget=budget)


@pytest.mark.parametrize("budget", [1, 4, 1000])
@pytest.mark.parametrize("lengths", [[0, 4, 0, 0, 3, 1, 0], [1, 1, 12]], ids=str)
@pytest.mark.parametrize("name", DEFINITIONS)
def test_sequences_without_answer_tokens_are_not_counted(name, lengths, budget):
    """With `skip`, one of a single token has none either."""
    compare(draw(lengths, 23), name, budget=budget)


@pytest.mark.parametrize("budget", [3, 1000])
@pytest.mark.parametrize("name", DEFINITIONS)
def test_bfloat16_model(name, budget):
    compare(draw([5, 3, 6], 37), name, torch.bfloat16, budget)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_autocast(name):
    loss, *definition = DEFINITIONS[name]
    problem = draw([5, 3, 6], 37)
    ours, theirs = problem.to(torch.float32), problem.to(torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        objective = ours.package(loss)
    objective.loss.backward()
    value = loop(theirs, *definition)
    value.backward()
    close(objective.loss, value, TOLERANCE[torch.bfloat16])
    for our_leaf, their_leaf in zip(ours.leaves, theirs.leaves, strict=True):
        close(our_leaf.grad, their_leaf.grad, TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_terms_are_those_of_the_closed_form(loss):
    """`terms` and its autograd; a token mean is walked by the closed form alone."""
    generator = torch.Generator().manual_seed(1)
    logits, reference = (3 * torch.randn(9, 31, generator=generator) for _ in range(2))
    targets = torch.randint(31, (9,), generator=generator)
    plain = Loss.terms_and_gradient(loss, logits.clone(), targets, reference.clone())
    closed = loss.terms_and_gradient(logits.clone(), targets, reference.clone())
    torch.testing.assert_close(closed.values, plain.values, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(closed.gradient, plain.gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("largest", [30.0, 300.0])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_token_of_probability_one_or_zero(loss, largest):
    """Policy and reference sure of token 0, of another, and of opposite ones, where 0 and where 2 stands."""
    policy, reference = torch.zeros(4, 5), torch.zeros(4, 5)
    policy[:, 0] = largest
    reference[:, 0] = torch.tensor([largest, -largest, largest, 0.0])
    targets = torch.tensor([0, 0, 2, 2])
    values, gradient, parts = loss.terms_and_gradient(policy.clone(), targets, reference.clone())
    for each in (values, gradient, loss.terms(policy, targets, reference), *parts.values()):
        assert torch.isfinite(each).all()


@pytest.mark.parametrize("budget", [4, 1000])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_order_of_sequences_changes_nothing(loss, budget):
    problem = draw([5, 3, 6], 37)
    start, sequences = 0, []
    for length in problem.lengths:
        sequences.append(list(range(start, start + length)))
        start += length
    order = [2, 0, 1]
    positions = [t for index in order for t in sequences[index]]
    shuffled = replace(
        problem,
        states=problem.states[positions],
        reference_states=problem.reference_states[positions],
        targets=problem.targets[positions],
        lengths=[problem.lengths[index] for index in order],
    )
    one, other = problem.to(torch.float32), shuffled.to(torch.float32)
    first, second = one.package(loss, budget).loss, other.package(loss, budget).loss
    close(second, first.double(), TOLERANCE[torch.float32])
    first.backward()
    second.backward()
    close(other.weight.grad, one.weight.grad.double(), TOLERANCE[torch.float32])


@pytest.mark.parametrize("name", DEFINITIONS)
def test_micro_batches(name):
    """Sequence means add up; token means weigh each micro-batch by its tokens, as documented."""
    loss, _, mean_over, skip = DEFINITIONS[name]
    problem = draw([5, 3, 6], 37).to(torch.float32)
    whole, parts, counts, start = problem.package(loss).loss.item(), [], [], 0
    for length in problem.lengths:
        piece = slice(start, start + length)
        part = replace(
            problem,
            states=problem.states[piece],
            reference_states=problem.reference_states[piece],
            targets=problem.targets[piece],
            lengths=[length],
        )
        parts.append(part.package(loss).loss.item())
        counts.append(length - skip)
        start += length
    by_tokens = sum(part * count for part, count in zip(parts, counts, strict=True)) / sum(counts)
    right, wrong = (by_tokens, sum(parts) / 3) if mean_over == "tokens" else (sum(parts) / 3, by_tokens)
    assert whole == pytest.approx(right, rel=1e-5)
    assert whole != pytest.approx(wrong, rel=1e-3)


# Known values.


@pytest.mark.parametrize("budget", [2, 1000])
def test_divergence_from_the_reference_itself_is_exactly_zero(budget):
    problem = draw([5, 3], 29).at_the_reference().to(torch.float32)
    objective = problem.package(ReferenceKL(), budget)
    objective.loss.backward()
    assert objective.loss.item() == 0.0
    for leaf in problem.leaves:
        assert torch.equal(leaf.grad, torch.zeros_like(leaf))


def evaluate(loss, logits, target=0, reference=None):
    """Term and gradient of one position."""
    terms = loss.terms_and_gradient(
        torch.tensor([logits], dtype=torch.float32),
        torch.tensor([target]),
        None if reference is None else torch.tensor([reference], dtype=torch.float32),
    )
    return terms.values.item(), terms.gradient[0].tolist()


def test_divergence_from_a_fair_coin():
    """Reference (1/2, 1/2), policy (3/4, 1/4): ln(4/3)/2 = 0.1438 nats; a constant on the logits is nothing."""
    for constant in (0.0, 40.0):
        value, gradient = evaluate(ReferenceKL(), [math.log(3) + constant, constant], reference=[-7.0, -7.0])
        assert value == pytest.approx(math.log(4 / 3) / 2, abs=5e-6)
        assert gradient == pytest.approx([0.25, -0.25], abs=1e-6)


def test_undial_without_adjustment_is_cross_entropy_to_the_reference():
    """Reference (3/4, 1/4), policy (1/2, 1/2): ln 2, and nothing to learn where the policy is the reference."""
    value, gradient = evaluate(UNDIAL(0.0), [1.0, 1.0], reference=[math.log(3), 0.0])
    assert value == pytest.approx(math.log(2))
    assert gradient == pytest.approx([-0.25, 0.25], abs=1e-6)
    problem = draw([5, 3], 29).at_the_reference().to(torch.float32)
    problem.package(UNDIAL(0.0)).loss.backward()
    assert problem.weight.grad.abs().max() < 1e-6


def test_undial_ends_at_the_adjusted_reference():
    """Its entropy is the minimum: token 2 of three equal ones is e^-beta as likely as the others."""
    value, gradient = evaluate(UNDIAL(math.log(2)), [0.0, 0.0, -math.log(2)], 2, [5.0, 5.0, 5.0])
    assert value == pytest.approx(-2 * 0.4 * math.log(0.4) - 0.2 * math.log(0.2))
    assert gradient == pytest.approx([0.0, 0.0, 0.0], abs=1e-6)


def test_undial_of_a_token_that_the_reference_is_sure_of():
    """p_ref(y) = 1 in float32: the other tokens are imitated in the proportions that they still have."""
    value, gradient = evaluate(UNDIAL(60.0), [0.0, 0.0, 0.0], 0, [30.0, math.log(3), 0.0])
    assert value == pytest.approx(math.log(3), rel=1e-6)
    assert gradient == pytest.approx([1 / 3, 1 / 3 - 3 / 4, 1 / 3 - 1 / 4], abs=1e-6)


def test_wga_without_weight_is_gradient_ascent():
    problem = draw([5, 3], 29)
    ours, theirs = problem.to(torch.float32), problem.to(torch.float32)
    one, other = ours.package(WGA(0.0)).loss, theirs.package(GradientAscent()).loss
    assert one.item() == other.item()
    one.backward()
    other.backward()
    assert torch.equal(ours.weight.grad, theirs.weight.grad)


def test_wga_descends_the_probability_itself():
    """p ln p with p held still: its gradient is that of p, p (onehot - p) = (3/16, -3/16) at (3/4, 1/4)."""
    value, gradient = evaluate(WGA(), [math.log(3), 0.0])
    assert value == pytest.approx(0.75 * math.log(0.75))
    assert gradient == pytest.approx([3 / 16, -3 / 16])


def test_satimp_without_importance_is_wga():
    problem = draw([5, 3], 29)
    ours, theirs = problem.to(torch.float32), problem.to(torch.float32)
    one, other = ours.package(SatImp(0.7, 0.0)).loss, theirs.package(WGA(0.7)).loss
    assert one.item() == pytest.approx(other.item(), rel=1e-6)
    one.backward()
    other.backward()
    close(ours.weight.grad, theirs.weight.grad.double(), 1e-6)


def test_satimp_weighs_neither_the_forgotten_nor_the_certain():
    """0 at p = 0 and at p = 1; at p = 3/4 it is (3/4)^5 / 4."""
    log_p = torch.tensor([-300.0, 0.0, 1e-7, math.log(0.75)])
    weights = SatImp().weight(log_p).tolist()
    assert weights == pytest.approx([0.0, 0.0, 0.0, 0.75**5 / 4])
    assert max(range(1, 100), key=lambda p: SatImp(3.0, 1.0).weight(torch.tensor([p / 100]).log())) == 75


def test_weights_are_watched():
    problem = draw([5, 3], 29).to(torch.float32)
    p = torch.stack([
        loop_softmax(loop_logits(state, problem.weight, problem.bias))[target]
        for state, target in zip(problem.states, problem.targets, strict=True)
    ])  # fmt: skip
    for loss, expected in ((WGA(2.0), p**2), (SatImp(2.0, 1.0), p**2 * (1 - p))):
        for budget in (3, 1000):
            part = problem.package(loss, budget).parts["token_weight"]
            assert part.item() == pytest.approx(expected.mean().item(), rel=1e-5)


def test_ce_u_moves_probability_in_proportion():
    """p = (1/2, 3/8, 1/8), token 0: the entropy of (3/4, 1/4), plus ln 2, and p_0 (1, -3/4, -1/4)."""
    value, gradient = evaluate(CEU(), [math.log(4), math.log(3), 0.0])
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert value == pytest.approx(entropy + math.log(2))
    assert gradient == pytest.approx([0.5, -0.375, -0.125])


def test_ce_u_of_a_certain_token_does_not_vanish():
    """p_0 = 1 in float32: -ln(1 - p_0) = 30 - ln 4, and the whole of it is to move."""
    value, gradient = evaluate(CEU(), [30.0, math.log(3), 0.0])
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert value == pytest.approx(entropy + 30 - math.log(4), rel=1e-6)
    assert gradient == pytest.approx([1.0, -0.75, -0.25], rel=1e-6)


@pytest.mark.parametrize("budget", [2, 1000])
def test_ce_u_leaves_the_first_tokens_out(budget):
    problem = draw([5, 1, 3], 29)
    changed = replace(problem, states=problem.states.clone(), targets=problem.targets.clone())
    for t in (0, 5, 6):
        changed.states[t] += 1
        changed.targets[t] = (changed.targets[t] + 1) % 29
    ours, theirs = problem.to(torch.float32), changed.to(torch.float32)
    one, other = ours.package(CEU(), budget).loss, theirs.package(CEU(), budget).loss
    assert one.item() == other.item() != 0.0
    one.backward()
    assert torch.equal(ours.states.grad[[0, 5, 6]], torch.zeros(3, 5))
    assert (ours.states.grad[[1, 2, 3, 4, 7, 8]].abs().sum(dim=1) > 0).all()
    assert ours.package(CEU(skip=0), budget).loss.item() != theirs.package(CEU(skip=0), budget).loss.item()


def test_pdu_of_two_tokens():
    """((z_0 - z_1) / 2)^2 where z_0 is the larger, whatever constant is on both; 0 for equals."""
    for constant in (0.0, -50.0):
        value, gradient = evaluate(PDU(), [3.0 + constant, constant], target=1)
        assert value == 2.25
        assert gradient == [1.5, -1.5]
    assert evaluate(PDU(), [7.0] * 8)[0] == 0.0


@pytest.mark.parametrize("reverse", [False, True])
def test_entropy_is_greatest_where_all_tokens_are_alike(reverse):
    value, gradient = evaluate(MaximumEntropy(reverse), [4.0] * 8)
    assert value == pytest.approx(0.0, abs=1e-6)
    assert gradient == pytest.approx([0.0] * 8, abs=1e-7)


def test_entropies_of_two_tokens():
    """(3/4, 1/4): KL(p||u) is ln 2 - H(p), KL(u||p) is -ln 2 - ln(3/16)/2; a certain token has ln V."""
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    value, gradient = evaluate(MaximumEntropy(), [math.log(3), 0.0])
    assert value == pytest.approx(math.log(2) - entropy)
    assert gradient == pytest.approx([3 / 16 * math.log(3), -3 / 16 * math.log(3)])
    value, gradient = evaluate(MaximumEntropy(reverse=True), [math.log(3), 0.0])
    assert value == pytest.approx(-math.log(2) - math.log(3 / 16) / 2)
    assert gradient == pytest.approx([0.25, -0.25])
    assert evaluate(MaximumEntropy(), [300.0, 0.0, 0.0, 0.0])[0] == pytest.approx(math.log(4))


def test_defaults_are_the_papers():
    assert UNDIAL().beta == 10.0
    assert WGA().beta == 1.0
    assert (SatImp().beta1, SatImp().beta2) == (5.0, 1.0)
    assert CEU().skip == 1
    assert MaximumEntropy().reverse is False


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
@pytest.mark.parametrize(
    ("loss", "name"), [(UNDIAL, "beta"), (WGA, "beta"), (SatImp, "beta1"), (SatImp, "beta2")]
)
def test_bad_arguments_are_refused(loss, name, value):
    wanted = rf"^{loss.__name__}\.{name} must be a finite number >= 0, got {value}$"
    with pytest.raises(InputError, match=wanted):
        loss(**{name: value})


def test_a_negative_skip_is_refused():
    with pytest.raises(InputError, match=r"^CEU\.skip must be at least 0, got -1$"):
        CEU(skip=-1)
