"""SimNPO, DPO and KTO in the engine against slow float64 loops: values and gradients."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dipo_pl.batch import Encoded, collate
from dipo_pl.errors import InputError
from dipo_pl.losses import DPO, KTO, SimNPO
from dipo_pl.losses.engine import sequence_objective
from dipo_pl.models.head import OutputHead
from dipo_pl.models.hidden_states import decoder_states

# Largest error allowed, as a share of the largest entry of the float64 result, or of 0.1 where that is
# less: log p is a difference of numbers of order 1, known to 1e-7 however small it is itself.
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 3e-2}


# The definitions. Nothing below, up to `Problem`, uses the package.


def log_probability(state, weight, bias, target):
    """log p(target), in nats, of one position."""
    z = weight @ state + bias
    return torch.log(torch.exp(z - z.max())[target] / torch.exp(z - z.max()).sum())


def answer_sums(problem, reference=False):
    """log p of each answer; None for one without tokens."""
    prefix = "reference_" if reference else ""
    states, weight, bias = (getattr(problem, prefix + name) for name in ("states", "weight", "bias"))
    sums, start = [], 0
    for length in problem.lengths:
        total = torch.zeros((), dtype=torch.float64)
        for t in range(start, start + length):
            total = total + log_probability(states[t], weight, bias, int(problem.targets[t]))
        sums.append(total if length else None)
        start += length
    return sums


def answer_ratios(problem):
    """log p - log p_ref of each answer; None for one without tokens."""
    pairs = zip(answer_sums(problem), answer_sums(problem, reference=True), strict=True)
    return [None if policy is None else policy - reference for policy, reference in pairs]


def pairs_of(problem):
    """(the row's own, its companion's) log ratio, of rows where both answers have tokens."""
    ratios = answer_ratios(problem)
    rows = len(ratios) // 2
    pairs = [(ratios[row], ratios[row + rows]) for row in range(rows)]
    return [pair for pair in pairs if pair[0] is not None and pair[1] is not None]


def sigma(x):
    return 1 / (1 + torch.exp(-x))


def mean(values):
    return sum(values, torch.zeros((), dtype=torch.float64)) / max(len(values), 1)


def loop_sim_npo(problem, beta, gamma):
    sums = zip(answer_sums(problem), problem.lengths, strict=True)
    return mean(
        [-2 / beta * torch.log(sigma(-beta / n * total - gamma)) for total, n in sums if total is not None]
    )


def loop_dpo(problem, beta):
    return mean([-torch.log(sigma(beta * alternate - beta * own)) for own, alternate in pairs_of(problem)])


def loop_kto(problem, beta):
    pairs = pairs_of(problem)
    drift = sum(float(mismatched.detach()) for _, mismatched in pairs) / max(len(pairs), 1)
    baseline = max(0.0, drift)
    return mean([1 - sigma(beta * (baseline - own)) for own, _ in pairs])


DEFINITIONS = {
    "SimNPO": (SimNPO(2.5), lambda problem: loop_sim_npo(problem, 2.5, 0.0)),
    "SimNPO with a margin": (SimNPO(0.7, 3.0), lambda problem: loop_sim_npo(problem, 0.7, 3.0)),
    "DPO": (DPO(0.3), lambda problem: loop_dpo(problem, 0.3)),
    "KTO": (KTO(0.3), lambda problem: loop_kto(problem, 0.3)),
}
PAIRED = ["DPO", "KTO"]


@dataclass
class Problem:
    """Random inputs, which the package gets in a dtype and the loop in float64.

    Where a loss has companions, the first half of the answers is the rows' own.
    """

    states: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    reference_states: torch.Tensor
    reference_weight: torch.Tensor
    reference_bias: torch.Tensor
    targets: torch.Tensor
    lengths: list[int]

    @property
    def leaves(self):
        return [self.states, self.weight, self.bias]

    def to(self, dtype):
        moved = {
            name: value.detach().to(dtype, copy=True)
            for name, value in vars(self).items()
            if isinstance(value, torch.Tensor) and name != "targets"
        }
        problem = replace(self, **moved)
        for leaf in problem.leaves:
            leaf.requires_grad_()
        return problem

    def of_answers(self, chosen):
        """The same with these answers alone, in this order."""
        starts = [sum(self.lengths[:answer]) for answer in range(len(self.lengths))]
        index = [starts[answer] + t for answer in chosen for t in range(self.lengths[answer])]
        return replace(
            self,
            states=self.states[index],
            reference_states=self.reference_states[index],
            targets=self.targets[index],
            lengths=[self.lengths[answer] for answer in chosen],
        )

    def at_the_reference(self):
        return replace(
            self, reference_states=self.states, reference_weight=self.weight, reference_bias=self.bias
        )

    def package(self, loss, budget=1000):
        return sequence_objective(
            self.states,
            self.targets,
            self.lengths,
            OutputHead(self.weight, self.bias),
            loss,
            self.reference_states,
            OutputHead(self.reference_weight, self.reference_bias),
            budget,
        )


def draw(lengths, vocabulary, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    positions = sum(lengths)
    return Problem(
        normal(positions, 5),
        normal(vocabulary, 5),
        normal(vocabulary),
        normal(positions, 4),
        normal(vocabulary, 4),
        normal(vocabulary),
        torch.randint(vocabulary, (positions,), generator=generator),
        list(lengths),
    )


def close(ours, theirs, tolerance=5e-6):
    largest = float(theirs.detach().abs().max()) if theirs.numel() else 0.0
    limit = tolerance * max(largest, 0.1)
    torch.testing.assert_close(ours.detach().double(), theirs.detach().double(), rtol=0, atol=limit)


def compare(problem, loss, definition, dtype=torch.float32, budget=1000):
    ours = problem.to(dtype)
    # Inputs rounded to dtype, so that only the arithmetic differs.
    theirs = ours.to(torch.float64)
    objective, value = ours.package(loss, budget), definition(theirs)
    assert objective.loss.dtype == torch.float32
    close(objective.loss, value, TOLERANCE[dtype])
    objective.loss.backward()
    value.backward()
    for our_leaf, their_leaf in zip(ours.leaves, theirs.leaves, strict=True):
        assert our_leaf.grad.dtype == dtype
        close(our_leaf.grad, their_leaf.grad, TOLERANCE[dtype])
    return objective


# Of 4 answers, or 2 rows with companions: pairs of 6 and 11 positions in the last two.
LENGTHS = {
    (4, 1, 2): [1, 1, 1, 1],
    (4, 7, 11): [4, 7, 2, 4],
    (4, 6, 257): [5, 6, 1, 5],
}


@pytest.mark.parametrize(
    "budget", ["one", "uneven", "answer", "pair", "less than a pair", "exact", "oversize"]
)
@pytest.mark.parametrize("shape", LENGTHS, ids=str)
@pytest.mark.parametrize("name", DEFINITIONS)
def test_matches_the_definition(name, shape, budget):
    lengths = LENGTHS[shape]
    largest_pair = max(lengths[0] + lengths[2], lengths[1] + lengths[3])
    tokens = {
        "one": 1,
        "uneven": 3,
        "answer": max(lengths),
        "pair": largest_pair,
        "less than a pair": largest_pair - 1,
        "exact": sum(lengths),
        "oversize": 1000,
    }
    compare(draw(lengths, shape[2]), *DEFINITIONS[name], budget=tokens[budget])


@pytest.mark.parametrize("budget", [1, 4, 9, 1000])
@pytest.mark.parametrize(
    "lengths", [[0, 4, 3, 5, 2, 0], [4, 3, 0, 2, 0, 5, 1, 3], [6, 5, 4, 0, 3, 2]], ids=str
)
@pytest.mark.parametrize("name", DEFINITIONS)
def test_answers_without_tokens_are_not_counted(name, lengths, budget):
    """A pair with one goes as a whole, and out of KTO's baseline too."""
    compare(draw(lengths, 23), *DEFINITIONS[name], budget=budget)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_nothing_to_learn_from_is_exactly_zero(name):
    loss = DEFINITIONS[name][0]
    for lengths in ([], [0, 0], [3, 0, 0, 4] if loss.companions else [0]):
        problem = draw(lengths, 11).to(torch.float32)
        objective = problem.package(loss)
        assert objective.loss.item() == 0.0
        objective.loss.backward()
        for leaf in problem.leaves:
            assert torch.equal(leaf.grad, torch.zeros_like(leaf))


@pytest.mark.parametrize("budget", [1, 4, 1000])
@pytest.mark.parametrize("name", DEFINITIONS)
def test_bfloat16_model(name, budget):
    compare(draw([5, 3, 6, 2], 37), *DEFINITIONS[name], dtype=torch.bfloat16, budget=budget)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_autocast(name):
    loss, definition = DEFINITIONS[name]
    problem = draw([5, 3, 6, 2], 37)
    ours, theirs = problem.to(torch.float32), problem.to(torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        objective = ours.package(loss)
    objective.loss.backward()
    value = definition(theirs)
    value.backward()
    close(objective.loss, value, TOLERANCE[torch.bfloat16])
    for our_leaf, their_leaf in zip(ours.leaves, theirs.leaves, strict=True):
        close(our_leaf.grad, their_leaf.grad, TOLERANCE[torch.bfloat16])


# Known values.


def by_hand(problem, budget, loss, expected_value, combination):
    """The loss at `problem`, and that its gradient is the one of `combination`, of the answers' log p."""
    ours, theirs = problem.to(torch.float32), problem.to(torch.float64)
    objective = ours.package(loss, budget)
    assert objective.loss.item() == pytest.approx(expected_value, rel=1e-6)
    objective.loss.backward()
    combination(answer_sums(theirs)).backward()
    for one, other in zip(ours.leaves, theirs.leaves, strict=True):
        close(one.grad, other.grad)
    return objective


@pytest.mark.parametrize("budget", [2, 1000])
@pytest.mark.parametrize("beta", [0.1, 2.5])
def test_dpo_at_the_reference_is_ln_2(beta, budget):
    problem = draw([5, 3, 2, 6], 29).at_the_reference()
    objective = by_hand(
        problem, budget, DPO(beta), math.log(2), lambda s: beta / 2 * (s[0] + s[1] - s[2] - s[3]) / 2
    )
    assert objective.parts["margin"].item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("budget", [2, 1000])
@pytest.mark.parametrize("beta", [0.1, 2.5])
def test_kto_at_the_reference_is_one_half(beta, budget):
    problem = draw([5, 3, 2, 6], 29).at_the_reference()
    objective = by_hand(problem, budget, KTO(beta), 0.5, lambda s: beta / 4 * (s[0] + s[1]) / 2)
    assert objective.parts["baseline"].item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 3.0])
@pytest.mark.parametrize("beta", [0.7, 4.5])
def test_sim_npo_of_a_certain_answer(beta, gamma):
    """p(y) = 1: 2 ln 2 / beta without a margin, whatever the lengths."""
    problem = draw([5, 3], 29).to(torch.float32)
    problem.targets.zero_()
    with torch.no_grad():
        problem.bias[0] = 300.0
    objective = problem.package(SimNPO(beta, gamma))
    assert objective.loss.item() == pytest.approx(2 / beta * math.log(1 + math.exp(gamma)), rel=1e-6)
    assert objective.parts["log_probability"].item() == 0


@pytest.mark.parametrize("lengths", [[5, 3], [1, 40]], ids=str)
def test_sim_npo_of_equally_probable_tokens(lengths):
    """-ln 8 a token: 1 + p^beta e^gamma, the length divided out."""
    problem = draw(lengths, 8).to(torch.float32)
    with torch.no_grad():
        problem.weight.zero_()
        problem.bias.zero_()
    expected = 2 / 1.5 * math.log(1 + 8**-1.5 * math.exp(0.5))
    assert problem.package(SimNPO(1.5, 0.5)).loss.item() == pytest.approx(expected, rel=1e-6)


def test_sim_npo_without_inverse_temperature_is_ascent_over_tokens():
    """beta -> 0: the gradient of mean_s log p(y_s) / n_s."""
    problem = draw([5, 3, 4], 29)
    theirs = problem.to(torch.float64)
    mean([total / n for total, n in zip(answer_sums(theirs), [5, 3, 4], strict=True)]).backward()
    distances = []
    for beta in (1e-1, 1e-2, 1e-3):
        ours = problem.to(torch.float32)
        ours.package(SimNPO(beta)).loss.backward()
        difference = (ours.weight.grad.double() - theirs.weight.grad).abs().max()
        distances.append(float(difference / theirs.weight.grad.abs().max()))
    assert distances[0] > 5 * distances[1] > 25 * distances[2]
    assert distances[2] < 5e-3


def test_sim_npo_of_the_known_codes():
    """Their margin stands within beta, as open-unlearning's delta does: gamma = beta * delta."""
    beta, delta = 2.5, 0.8
    problem = draw([5, 3, 4], 29)
    theirs = zip(answer_sums(problem), problem.lengths, strict=True)
    expected = mean([-2 / beta * torch.log(sigma(beta * (-total / n - delta))) for total, n in theirs])
    close(problem.to(torch.float32).package(SimNPO(beta, beta * delta)).loss, expected)


def test_dpo_of_an_answer_over_itself_has_nothing_to_learn():
    problem = draw([5, 3], 29).of_answers([0, 1, 0, 1]).to(torch.float32)
    objective = problem.package(DPO(0.3))
    assert objective.loss.item() == pytest.approx(math.log(2), rel=1e-6)
    objective.loss.backward()
    close(problem.weight.grad, torch.zeros_like(problem.weight))
    close(problem.bias.grad, torch.zeros_like(problem.bias))


def test_dpo_pulls_an_answer_and_its_alternate_apart():
    """Against the gradient, own answers get less likely and alternates more so; KTO moves its own alone."""
    problem = draw([5, 3, 2, 6], 29)
    for loss, moves in ((DPO(0.3), (-1, 1)), (KTO(0.3), (-1, 0))):
        ours = problem.to(torch.float32)
        ours.package(loss).loss.backward()
        step = replace(problem, states=problem.states - 1e-3 * ours.states.grad.double())
        changes = [float(new - old) for new, old in zip(answer_sums(step), answer_sums(problem), strict=True)]
        assert [math.copysign(1, each) if each else 0 for each in changes] == [moves[0]] * 2 + [moves[1]] * 2


# KTO's baseline.


def drifting(sign):
    """All mismatched answers more (1) or less (-1) likely than at the reference."""
    problems = (draw([5, 3, 4, 2, 6, 3], 29, seed) for seed in range(100))
    return next(each for each in problems if all(float(pair[1]) * sign > 0.5 for pair in pairs_of(each)))


@pytest.mark.parametrize("budget", [1, 8, 1000])
@pytest.mark.parametrize("sign", [1, -1])
def test_kto_on_both_sides_of_its_clamp(sign, budget):
    problem = drifting(sign)
    objective = compare(problem, *DEFINITIONS["KTO"], budget=budget)
    baseline = max(0.0, float(mean([mismatched for _, mismatched in pairs_of(problem)])))
    assert (baseline > 0) == (sign > 0)
    assert objective.parts["baseline"].item() == pytest.approx(baseline, rel=1e-5)


def test_kto_takes_its_baseline_for_a_constant():
    """It moves the loss, but no gradient flows into the mismatched answers."""
    problem = drifting(1).to(torch.float32)
    objective = problem.package(KTO(0.3))
    objective.loss.backward()
    own = sum(problem.lengths[:3])
    assert problem.states.grad[:own].any(dim=1).all()
    assert not problem.states.grad[own:].any()
    fewer = problem.of_answers([0, 1, 2, 3, 3, 3]).package(KTO(0.3))
    assert abs(fewer.loss.item() - objective.loss.item()) > 1e-3


@pytest.mark.parametrize("name", DEFINITIONS)
def test_only_kto_depends_on_how_a_batch_is_divided(name):
    loss = DEFINITIONS[name][0]
    problem = drifting(1)
    whole = problem.to(torch.float32).package(loss).loss.item()
    if loss.companions:
        parts = [problem.of_answers([row, row + 3]) for row in range(3)]
    else:
        parts = [problem.of_answers([answer]) for answer in range(6)]
    divided = sum(part.to(torch.float32).package(loss).loss.item() for part in parts) / len(parts)
    if name == "KTO":
        assert abs(divided - whole) > 1e-3
    else:
        assert divided == pytest.approx(whole, rel=1e-5)


def test_kto_on_drift_below_zero_does_not_depend_on_how_a_batch_is_divided():
    """The clamp makes every baseline 0."""
    problem, loss = drifting(-1), KTO(0.3)
    whole = problem.to(torch.float32).package(loss).loss.item()
    each = [
        problem.of_answers([row, row + 3]).to(torch.float32).package(loss).loss.item() for row in range(3)
    ]
    assert sum(each) / 3 == pytest.approx(whole, rel=1e-5)


# What holds whatever the numbers.


@pytest.mark.parametrize("budget", [3, 1000])
@pytest.mark.parametrize("name", DEFINITIONS)
def test_order_of_a_batch_changes_nothing(name, budget):
    loss = DEFINITIONS[name][0]
    problem = draw([5, 3, 4, 2, 6, 3], 29)
    order = [2, 0, 1, 5, 3, 4] if loss.companions else [4, 1, 5, 0, 3, 2]
    one, other = problem.to(torch.float32), problem.of_answers(order).to(torch.float32)
    first, second = one.package(loss), other.package(loss, budget)
    close(second.loss, first.loss)
    first.loss.backward()
    second.loss.backward()
    close(other.weight.grad, one.weight.grad)


@pytest.fixture(scope="module")
def llamas():
    """Policy and reference: two random models."""
    config = AutoConfig.for_model(
        "llama",
        vocab_size=47,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config), AutoModelForCausalLM.from_config(config)


def encoded(shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    return [
        Encoded(tuple(torch.randint(3, 47, (prompt + answer,), generator=generator).tolist()), prompt)
        for prompt, answer in shapes
    ]


@pytest.mark.parametrize("name", DEFINITIONS)
def test_padding_changes_nothing(llamas, name):
    """Rows of 7 to 10 tokens alone, and in a batch with one of 40; whatever id the padding has."""
    loss = DEFINITIONS[name][0]
    policy, reference = llamas
    forget = {
        "forget": encoded([(3, 5), (7, 2), (1, 9)], 0),
        "other": encoded([(3, 4), (7, 3), (1, 8)], 1),
    }

    def evaluate(sections, pad=0):
        batch = collate(sections, range(sum(map(len, sections.values()))))
        ids = batch.input_ids.masked_fill(~batch.attention_mask, pad)
        tokens = sum(batch.lengths[:6])
        states = [
            decoder_states(model, ids, batch.attention_mask).flatten(0, 1)[batch.positions][:tokens]
            for model in (policy, reference)
        ]
        objective = sequence_objective(
            states[0],
            batch.targets[:tokens],
            batch.lengths[:6],
            OutputHead.of(policy),
            loss,
            states[1].detach(),
            OutputHead.of(reference),
            16,
        )
        gradients = torch.autograd.grad(objective.loss, list(policy.parameters()))
        return objective.loss, torch.cat([gradient.flatten() for gradient in gradients])

    alone = evaluate(forget)
    for sections, pad in (({**forget, "retain": encoded([(10, 30)], 2)}, 0), (forget, 13)):
        for one, other in zip(evaluate(sections, pad), alone, strict=True):
            close(one, other, 1e-5)


OWN, COMPANIONS = slice(0, 10), slice(10, 18)


def far_away(loss, answers, likelier):
    """The rows' own answers, or their companions, thousands of nats likelier than the reference has them, or less."""
    problem = draw([6, 4, 5, 3], 23).to(torch.float32)
    with torch.no_grad():
        # Whoever's states are large finds all but one token impossible.
        (problem.reference_states if likelier else problem.states)[answers] *= 2000
    objective = problem.package(loss)
    objective.loss.backward()
    for value in (objective.loss, *(leaf.grad for leaf in problem.leaves)):
        assert torch.isfinite(value).all()
    return objective.loss.item(), {name: part.item() for name, part in objective.parts.items()}


def test_dpo_of_thousands_of_nats():
    """Linear in the margin where it is wrong, 0 where it is right."""
    for wrong in ((OWN, True), (COMPANIONS, False)):
        loss, parts = far_away(DPO(1.0), *wrong)
        assert loss == pytest.approx(-parts["margin"], rel=1e-5)
        assert loss > 1000
    for right in ((OWN, False), (COMPANIONS, True)):
        loss, parts = far_away(DPO(1.0), *right)
        assert loss == pytest.approx(0, abs=1e-6)
        assert parts["margin"] > 1000


def test_kto_of_thousands_of_nats():
    """Between 0 and 1, from both ends; the baseline is never below 0."""
    loss, parts = far_away(KTO(1.0), OWN, True)
    assert parts["log_ratio"] > 1000
    assert loss == 1
    loss, parts = far_away(KTO(1.0), OWN, False)
    assert parts["log_ratio"] < -1000
    assert loss == 0
    loss, parts = far_away(KTO(1.0), COMPANIONS, True)
    assert parts["baseline"] > 1000
    assert loss == 0
    loss, parts = far_away(KTO(1.0), COMPANIONS, False)
    assert parts["baseline"] == 0
    assert 0 < loss < 1


@pytest.mark.parametrize("gamma", [0.0, 3.0])
def test_sim_npo_of_thousands_of_nats(gamma):
    problem = draw([6, 4], 23).to(torch.float32)
    with torch.no_grad():
        problem.states.mul_(2000)
    objective = problem.package(SimNPO(4.5, gamma))
    objective.loss.backward()
    assert objective.parts["log_probability"].item() < -1000
    assert objective.loss.item() == pytest.approx(0, abs=1e-6)
    for leaf in problem.leaves:
        assert torch.isfinite(leaf.grad).all()


def test_what_is_watched():
    """Of 5 rows, 3 of which have both answers."""
    problem = draw([5, 0, 3, 4, 1, 2, 2, 6, 0, 3], 29)
    pairs = [tuple(float(each) for each in pair) for pair in pairs_of(problem)]
    own = sum(pair[0] for pair in pairs) / 3
    companions = sum(pair[1] for pair in pairs) / 3
    sums = zip(answer_sums(problem), problem.lengths, strict=True)
    expected = {
        "SimNPO": {"log_probability": sum(float(total) / n for total, n in sums if n) / 8},
        "DPO": {
            "log_ratio": own,
            "margin": companions - own,
            "margin_positive": sum(pair[1] > pair[0] for pair in pairs) / 3,
        },
        "KTO": {"log_ratio": own, "baseline": max(0.0, companions)},
    }
    for name, parts in expected.items():
        for budget in (2, 8, 1000):
            watched = problem.to(torch.float32).package(DEFINITIONS[name][0], budget).parts
            assert {key: value.item() for key, value in watched.items()} == pytest.approx(parts, rel=1e-5)


def test_defaults_are_the_papers():
    assert (SimNPO().beta, SimNPO().gamma) == (4.5, 0)
    assert DPO().beta == KTO().beta == 0.1


@pytest.mark.parametrize("beta", [0, 0.0, -0.1, math.nan, math.inf])
@pytest.mark.parametrize("loss", [SimNPO, DPO, KTO])
def test_beta_is_refused(loss, beta):
    with pytest.raises(InputError, match=rf"^{loss.__name__}\.beta must be a finite number > 0, got {beta}$"):
        loss(beta)


@pytest.mark.parametrize("gamma", [-0.1, math.nan, math.inf])
def test_gamma_is_refused(gamma):
    with pytest.raises(InputError, match=rf"^SimNPO\.gamma must be a finite number >= 0, got {gamma}$"):
        SimNPO(gamma=gamma)


@pytest.mark.parametrize("name", PAIRED)
def test_a_row_without_its_companion_is_refused(name):
    with pytest.raises(ValueError, match=f"^{name} needs 2 sequences a row"):
        draw([5, 3, 4], 7).to(torch.float32).package(DEFINITIONS[name][0])
