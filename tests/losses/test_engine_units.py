"""What f is taken over: rows with companions, coupled sequences, answers without their first tokens.

Each against autograd in float64 over all sequences at once, with losses that only these tests have.
"""

from itertools import accumulate

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dipo_pl.losses import Loss
from dipo_pl.losses.base import Section, Terms
from dipo_pl.losses.engine import joint_objective, sequence_objective
from dipo_pl.models.head import OutputHead


class Curved(Loss):
    """A term in which every logit, the target and the reference matter."""

    uses_reference = True

    def terms(self, logits, targets, reference_logits):
        log_p = logits.log_softmax(-1)
        entropy = -(log_p.exp() * log_p).sum(-1)
        chosen = log_p.gather(-1, targets[:, None])[:, 0]
        return entropy + 0.3 * chosen * torch.tanh(logits - reference_logits).mean(-1)


class Pairs(Curved):
    """Neither member may take the other's place."""

    companions = ("alternate",)

    def sequence_loss(self, sums, lengths):
        own, alternate = sums.unbind(-1)
        return torch.tanh(own / lengths[:, 0] - 0.4 * alternate / lengths[:, 1] ** 2) + 0.01 * own * alternate

    def sequence_parts(self, sums, lengths):
        return {"gap": sums[:, 0] - 2 * sums[:, 1], "length": lengths[:, 0] + 10.0 * lengths[:, 1]}


class Triples(Curved):
    companions = ("alternate", "mismatched")

    def sequence_loss(self, sums, lengths):
        own, alternate, mismatched = sums.unbind(-1)
        return own * torch.sigmoid(0.1 * alternate) - (0.1 * mismatched) ** 2 / lengths[:, 2]


class Coupled(Curved):
    """Each sequence's loss depends on all sums, and on which is its own."""

    couples_sequences = True

    def sequence_loss(self, sums, lengths):
        return lengths * (sums / 10).softmax(0) + torch.tanh(0.1 * sums * sums.mean())

    def sequence_parts(self, sums, lengths):
        return {"from_mean": (sums - sums.mean()) ** 2}


class CoupledPairs(Pairs):
    couples_sequences = True

    def sequence_loss(self, sums, lengths):
        baseline = sums[:, 1].detach().mean()
        return (
            torch.sigmoid(0.2 * (sums[:, 0] - baseline)) / lengths[:, 0]
            + 0.1 * sums[:, 1] * sums[:, 0].mean()
        )


class OverTokens(Curved):
    mean_over = "tokens"


class OnALayer(Curved):
    """Hidden states stand where logits do; positions' targets among them."""

    layer = 3

    def terms(self, logits, targets, reference_logits):
        chosen = logits.gather(-1, targets[:, None] % logits.shape[-1])[:, 0]
        return (torch.sin(logits) * (logits - reference_logits)).sum(-1) + chosen**2


class PairsOnALayer(OnALayer, Pairs):
    pass


def skipping(loss, skip):
    loss.skip = skip
    return loss


LOSSES = {
    "pairs": Pairs(),
    "triples": Triples(),
    "coupled": Coupled(),
    "coupled pairs": CoupledPairs(),
    "skip": skipping(Curved(), 2),
    "skip over tokens": skipping(OverTokens(), 2),
    "skip in pairs": skipping(Pairs(), 1),
    "skip in coupled pairs": skipping(CoupledPairs(), 2),
    "skip on a layer": skipping(OnALayer(), 1),
    "pairs on a layer": PairsOnALayer(),
}
# Multiples of 6, so that pairs and triples take them too.
LENGTHS = {
    "all": [5, 3, 4, 2, 6, 3],
    "empty": [4, 0, 3, 5, 0, 6, 4, 2, 0, 7, 3, 1],
    "short": [1, 4, 2, 6, 3, 1, 2, 7, 3, 5, 2, 4],
    "long": [3, 9, 2, 4, 8, 5],
}


class Inputs:
    """Random states, head and reference."""

    def __init__(self, lengths, vocabulary=19, width=6, seed=0):
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, generator=generator)

        count = sum(lengths)
        self.lengths = lengths
        self.states = normal(count, width).requires_grad_()
        self.weight = normal(vocabulary, width).requires_grad_()
        self.bias = normal(vocabulary).requires_grad_()
        self.targets = torch.randint(vocabulary, (count,), generator=generator)
        self.reference_states = normal(count, width)
        self.reference_weight = normal(vocabulary, width)

    @property
    def leaves(self):
        return [self.states, self.weight, self.bias]

    def section(self, loss, weight=1.0):
        reference = self.reference_states if loss.uses_reference else None
        return Section(loss, self.states, self.targets, self.lengths, reference, weight)

    def evaluate(self, loss, budget):
        return sequence_objective(
            self.states,
            self.targets,
            self.lengths,
            OutputHead(self.weight, self.bias),
            loss,
            self.reference_states,
            OutputHead(self.reference_weight),
            budget,
        )


def plainly(loss, inputs, states, weight, bias):
    """The definition: every position's term, one graph, and a Python loop over rows."""
    reference = inputs.reference_states.to(states)
    logits = states
    if loss.layer is None:
        logits, reference = states @ weight.T + bias, reference @ inputs.reference_weight.to(states).T
    terms = loss.terms(logits, inputs.targets, reference)
    ends = list(accumulate(inputs.lengths))
    kept = [
        list(range(end - length, end))[loss.skip :] for end, length in zip(ends, inputs.lengths, strict=True)
    ]
    if loss.mean_over == "tokens":
        positions = [position for sequence in kept for position in sequence]
        return terms[positions].mean()
    rows = len(kept) // (1 + len(loss.companions))
    units = [[kept[row + rows * member] for member in range(1 + len(loss.companions))] for row in range(rows)]
    units = [unit for unit in units if all(unit)]
    sums = torch.stack([torch.stack([terms[sequence].sum() for sequence in unit]) for unit in units])
    counts = torch.tensor([[len(sequence) for sequence in unit] for unit in units])
    if not loss.companions:
        sums, counts = sums[:, 0], counts[:, 0]
    return loss.sequence_loss(sums, counts).sum() / len(units)


def in_double(inputs):
    return [leaf.detach().double().requires_grad_() for leaf in inputs.leaves]


def close(ours, theirs, tolerance=2e-5):
    """float32 against float64, within a share of the largest entry."""
    limit = tolerance * float(theirs.detach().abs().max())
    torch.testing.assert_close(ours.detach().double(), theirs.detach().double(), rtol=0, atol=limit)


def gradients(value, leaves):
    """None, where a loss on a layer leaves the head alone, as 0."""
    return torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("budget", [1, 3, 8, 16, 1000])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("name", LOSSES)
def test_equals_autograd_over_all_sequences_at_once(name, lengths, budget):
    """Budgets of one position, less than a unit, one unit or two, and everything."""
    loss, inputs = LOSSES[name], Inputs(LENGTHS[lengths])
    objective = inputs.evaluate(loss, budget)
    leaves = in_double(inputs)
    value = plainly(loss, inputs, *leaves)
    close(objective.loss, value)
    ours, theirs = gradients(objective.loss, inputs.leaves), gradients(value, leaves)
    for one, other in zip(ours, theirs, strict=True):
        close(one, other)
    assert theirs[0].abs().max() > 1e-3


@pytest.mark.parametrize("budget", [1, 5, 1000])
def test_sections_of_every_kind_add_up(budget):
    """Each weighted, with its own counts; on one head."""
    chosen = {"pairs": 0.7, "coupled": 2.0, "skip over tokens": 0.25, "skip on a layer": 1.5}
    inputs = {name: Inputs(LENGTHS["empty"], seed=seed) for seed, name in enumerate(chosen)}
    head = inputs["pairs"]
    for each in inputs.values():
        each.weight, each.bias, each.reference_weight = head.weight, head.bias, head.reference_weight
    joint = joint_objective(
        {name: inputs[name].section(LOSSES[name], weight) for name, weight in chosen.items()},
        OutputHead(head.weight, head.bias),
        OutputHead(head.reference_weight),
        budget,
    )
    weight, bias = (leaf.detach().double().requires_grad_() for leaf in (head.weight, head.bias))
    states = {name: each.states.detach().double().requires_grad_() for name, each in inputs.items()}
    values = {name: plainly(LOSSES[name], inputs[name], states[name], weight, bias) for name in chosen}
    for name, value in values.items():
        close(joint.sections[name].loss, value)
    total = sum(chosen[name] * value for name, value in values.items())
    close(joint.loss, total)
    ours = torch.autograd.grad(
        joint.loss, [head.weight, head.bias, *(each.states for each in inputs.values())]
    )
    theirs = torch.autograd.grad(total, [weight, bias, *states.values()])
    for one, other in zip(ours, theirs, strict=True):
        close(one, other)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("budget", [4, 1000])
def test_no_row_left_is_exactly_zero(name, budget):
    """No sequences at all; and rows that each want one sequence, or are skipped whole."""
    loss = LOSSES[name]
    for lengths in (
        [],
        [0] * 6,
        [loss.skip] * 6,
        [loss.skip + 3, 0, 0, 0, 0, 0][: 6 if loss.companions else 0],
    ):
        inputs = Inputs(lengths)
        objective = inputs.evaluate(loss, budget)
        assert objective.loss.item() == 0
        for gradient in gradients(objective.loss, inputs.leaves):
            assert torch.equal(gradient, torch.zeros_like(gradient))


def test_what_is_left_out_gets_no_gradient():
    inputs = Inputs([3, 2, 4, 0, 5, 1])
    (by_state,) = torch.autograd.grad(inputs.evaluate(skipping(Pairs(), 1), 1000).loss, inputs.states)
    # Rows: 3 with nothing, 2 with 5, 4 with 1 token, of which none is left.
    moved = (by_state != 0).any(dim=1).tolist()
    assert moved == [*[False] * 3, False, True, *[False] * 4, False, *[True] * 4, False]


@pytest.mark.parametrize("name", ["pairs", "skip in pairs", "coupled pairs"])
def test_rows_and_companions_keep_together_in_any_order(name):
    inputs = Inputs(LENGTHS["short"])
    rows, order = 6, [4, 0, 5, 2, 1, 3]
    sequences = [row + rows * member for member in range(2) for row in order]
    positions = [
        list(range(end - n, end)) for end, n in zip(accumulate(inputs.lengths), inputs.lengths, strict=True)
    ]
    index = [position for sequence in sequences for position in positions[sequence]]
    shuffled = Inputs([inputs.lengths[sequence] for sequence in sequences])
    shuffled.states = inputs.states.detach()[index].requires_grad_()
    shuffled.targets, shuffled.reference_states = inputs.targets[index], inputs.reference_states[index]
    for budget in (3, 1000):
        one, other = inputs.evaluate(LOSSES[name], budget), shuffled.evaluate(LOSSES[name], budget)
        close(one.loss, other.loss, 1e-5)
        (ours,), (theirs,) = (
            torch.autograd.grad(one.loss, inputs.states),
            torch.autograd.grad(other.loss, shuffled.states),
        )
        close(ours[index], theirs, 1e-5)


@pytest.mark.parametrize("name", ["pairs", "coupled", "coupled pairs", "skip in pairs"])
def test_parts_do_not_depend_on_the_budget(name):
    """Of sequences: averaged over rows that count; of terms: over positions that count."""

    class Watched(type(LOSSES[name])):
        skip = LOSSES[name].skip

        def terms_and_gradient(self, logits, targets, reference_logits):
            values, gradient, _ = super().terms_and_gradient(logits, targets, reference_logits)
            return Terms(values, gradient, {"target": targets.float()})

    loss, inputs = Watched(), Inputs([4, 0, 3, 1, 2, 5])
    members, rows = (2, 3) if loss.companions else (1, 6)
    lengths = [max(0, length - loss.skip) for length in inputs.lengths]
    counted = [row for row in range(rows) if all(lengths[row + rows * member] for member in range(members))]
    starts = [0, *accumulate(inputs.lengths)]
    targets = [
        int(inputs.targets[position])
        for row in counted
        for sequence in range(row, members * rows, rows)
        for position in range(starts[sequence] + loss.skip, starts[sequence + 1])
    ]
    whole = inputs.evaluate(loss, 1000).parts
    assert whole["target"].item() == pytest.approx(sum(targets) / len(targets), rel=1e-5)
    if members == 2:
        expected = sum(lengths[row] + 10 * lengths[row + rows] for row in counted) / len(counted)
        assert whole["length"].item() == pytest.approx(expected, rel=1e-5)
    for budget in (1, 4, 6):
        parts = inputs.evaluate(loss, budget).parts
        assert parts.keys() == whole.keys()
        for key, value in whole.items():
            assert parts[key].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-5)


class LargestTensor(TorchDispatchMode):
    """Records the size of the largest tensor that any operation returns."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for each in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(each, torch.Tensor):
                self.largest = max(self.largest, each.numel())
        return result


@pytest.mark.parametrize("name", ["pairs", "triples", "coupled", "coupled pairs", "skip", "skip in pairs"])
def test_no_tensor_outgrows_the_budget(name):
    """60 positions, 211 tokens, 2 dimensions: 8 x 211 is more than any tensor but logits needs."""
    inputs = Inputs([3, 7, 1, 24, 12, 13], vocabulary=211, width=2)
    with LargestTensor() as recorder:
        inputs.evaluate(LOSSES[name], 8).loss.backward()
    assert 0 < recorder.largest <= 8 * 211


@pytest.mark.parametrize(
    ("name", "passes"),
    [("pairs", 1), ("skip", 1), ("skip over tokens", 1), ("coupled", 2), ("coupled pairs", 2)],
)
def test_logits_are_computed_twice_only_where_sequences_are_coupled(monkeypatch, name, passes):
    """Groups of units that fit the budget need one pass, whatever the order that their sequences come in."""
    computed = 0
    logits_of = OutputHead.logits

    def spy(head, states, **options):
        nonlocal computed
        computed += len(states)
        return logits_of(head, states, **options)

    monkeypatch.setattr(OutputHead, "logits", spy)
    loss, inputs = LOSSES[name], Inputs(LENGTHS["all"])
    inputs.evaluate(loss, 16)
    left = sum(max(0, length - loss.skip) for length in inputs.lengths)
    assert computed == 2 * passes * left  # of policy and reference


@pytest.mark.parametrize("name", LOSSES)
def test_inputs_are_left_alone(name):
    inputs = Inputs(LENGTHS["all"])
    tensors = [*inputs.leaves, inputs.targets, inputs.reference_states, inputs.reference_weight]
    before = [tensor.detach().clone() for tensor in tensors]
    for budget in (3, 1000):
        inputs.evaluate(LOSSES[name], budget).loss.backward()
    assert all(torch.equal(one, other) for one, other in zip(before, tensors, strict=True))


@pytest.mark.parametrize(("loss", "wants"), [(Pairs(), 2), (Triples(), 3)], ids=["pairs", "triples"])
def test_companions_that_are_missing_are_refused(loss, wants):
    with pytest.raises(ValueError, match=f"^{type(loss).__name__} needs {wants} sequences a row"):
        Inputs([1, 2, 3, 1, 2, 3, 1]).evaluate(loss, 4)
