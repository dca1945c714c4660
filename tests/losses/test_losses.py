"""All losses in the engine: their definitions, and what holds for each of them."""

import math

import pytest
import torch
from loss_definitions import DEFINITIONS, SMOOTH
from loss_problems import TOLERANCE, close, compare, draw, draw_for, gradients
from tiny_models import tiny_model

import dipo_pl.losses
from dipo_pl.batch import Encoded, collate
from dipo_pl.errors import InputError
from dipo_pl.losses import (
    CEU,
    DPO,
    KTO,
    NPO,
    RMU,
    SHRED,
    UNDIAL,
    WGA,
    DiPO,
    DiPORetain,
    Loss,
    RMURetain,
    SatImp,
    SimNPO,
)
from dipo_pl.losses.base import Section
from dipo_pl.losses.engine import joint_objective
from dipo_pl.models.head import OutputHead
from dipo_pl.models.hidden_states import answer_states

every_loss = pytest.mark.parametrize("name", DEFINITIONS)
# Lengths and vocabulary; rows of two sequences where a loss has companions.
SHAPES = {
    "least": ([1, 1], 2),
    "uneven": ([4, 7, 2, 4, 3, 1], 11),
    "wide": ([5, 6, 1, 5], 257),
    "empty": ([0, 4, 3, 5, 2, 0], 23),
    "mostly empty": ([0, 4, 0, 0, 3, 0, 1, 0, 5, 2], 23),
    "one is long": ([1, 1, 12, 2], 23),
}
HEADS = {
    "no bias": {"bias": False},
    "scale": {"scale": 0.25},
    "softcap": {"softcap": 2.0},
    "all": {"scale": 1.7, "softcap": 3.0},
}


def test_every_loss_has_a_definition():
    classes = {getattr(dipo_pl.losses, each) for each in dipo_pl.losses.__all__}
    abstract = {"Loss", "GapLoss", "LogProbabilityLoss"}
    shipped = {each for each in classes if issubclass(each, Loss) and each.__name__ not in abstract}
    assert shipped == {type(each.loss) for each in DEFINITIONS.values()}


@pytest.mark.parametrize("shape", SHAPES)
@every_loss
def test_matches_the_definition(name, shape):
    """Whatever the budget cuts: single positions, uneven pieces, less than a row, a row, exact fits, nothing."""
    lengths, vocabulary = SHAPES[shape]
    rows = len(lengths) // 2
    longest = max(own + other for own, other in zip(lengths[:rows], lengths[rows:], strict=True))
    budgets = (1, 3, max(lengths), longest - 1, longest, sum(lengths), 1000)
    compare(draw_for(DEFINITIONS[name], lengths, vocabulary), DEFINITIONS[name], budgets)


@pytest.mark.parametrize("head", HEADS)
@every_loss
def test_every_kind_of_head(name, head):
    """With a soft cap as low as this most logits are where tanh bends."""
    compare(draw_for(DEFINITIONS[name], [5, 3, 6, 2], 37, **HEADS[head]), DEFINITIONS[name])


@pytest.mark.parametrize("head", [{}, {"scale": 1.7, "softcap": 3.0}], ids=["plain", "softcap"])
@pytest.mark.parametrize("name", SMOOTH)
def test_bfloat16_model(name, head):
    """Weights and states have 8 bits of mantissa; value and gradient sums stay float32."""
    problem = draw_for(DEFINITIONS[name], [5, 3, 6, 2], 37, spread=0.7, **head)
    compare(problem, DEFINITIONS[name], dtype=torch.bfloat16)


@pytest.mark.parametrize("states", ["float32", "half"])
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", SMOOTH)
def test_autocast(name, half, states):
    """Weights are float32; the states that come out of an autocast decoder may have either dtype."""
    definition = DEFINITIONS[name]
    problem = draw_for(definition, [5, 3, 6, 2], 37, spread=0.7)
    ours, theirs = problem.to(torch.float32), problem.to(torch.float64)
    value, _ = theirs.definition(definition)
    expected = gradients(value, theirs.leaves)
    for budget in (3, 1000):
        with torch.autocast("cpu", half):
            given = ours.states.to(half) if states == "half" else ours.states
            objective = ours.package(definition.loss, budget, given)
        assert objective.loss.dtype == torch.float32
        close(objective.loss, value, TOLERANCE[half])
        for one, other in zip(gradients(objective.loss, ours.leaves), expected, strict=True):
            assert one.dtype == torch.float32
            close(one, other, TOLERANCE[half])
        # It did run in the lower precision.
        if definition.loss.layer is None:
            assert abs(objective.loss.item() - value.item()) > 1e-7 * abs(value.item())


@pytest.mark.parametrize("shape", [(1, 2), (7, 11), (5, 257)], ids=str)
@every_loss
def test_closed_forms_equal_autograd(name, shape):
    """`terms` and its autograd; a token mean is evaluated by the closed form alone."""
    loss, (n, vocabulary) = DEFINITIONS[name].loss, shape
    generator = torch.Generator().manual_seed(n)
    logits, reference = (3 * torch.randn(n, vocabulary, generator=generator) for _ in range(2))
    targets = torch.randint(vocabulary, (n,), generator=generator)
    given = [logits.clone(), targets, reference.clone() if loss.uses_reference else None]
    before = [None if each is None else each.clone() for each in given]
    plain = Loss.terms_and_gradient(loss, *given)
    # Autograd needs the logits as they were: only `terms_and_gradient` may overwrite them.
    assert all(one is None or torch.equal(one, other) for one, other in zip(given, before, strict=True))
    closed = loss.terms_and_gradient(*given)
    torch.testing.assert_close(closed.values, plain.values, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(closed.gradient, plain.gradient, rtol=1e-5, atol=1e-5)
    assert closed.values.shape == (n,)
    assert closed.gradient.shape == (n, vocabulary)
    assert not closed.values.requires_grad
    assert not closed.gradient.requires_grad
    assert all(part.shape == (n,) for part in closed.parts.values())


@pytest.mark.parametrize("largest", [30.0, 300.0])
@every_loss
def test_a_token_of_probability_one_or_zero(name, largest):
    """Policy and reference certain of token 0, of another, and of opposite ones; targets are 0 and 2."""
    loss = DEFINITIONS[name].loss
    policy, reference = torch.zeros(4, 5), torch.zeros(4, 5)
    policy[:, 0] = largest
    reference[:, 0] = torch.tensor([largest, -largest, largest, 0.0])
    targets = torch.tensor([0, 0, 2, 2])
    plain = loss.terms(policy, targets, reference if loss.uses_reference else None)
    values, gradient, parts = loss.terms_and_gradient(
        policy, targets, reference if loss.uses_reference else None
    )
    for each in (values, gradient, plain, *parts.values()):
        assert torch.isfinite(each).all()


@pytest.mark.parametrize("direction", [1, -1])
@every_loss
def test_logits_of_thousands_of_nats(name, direction):
    """Where policy or reference finds all but one token impossible, nothing is infinite or NaN."""
    problem = draw_for(DEFINITIONS[name], [6, 4, 5, 3], 23).to(torch.float32)
    with torch.no_grad():
        (problem.states if direction < 0 else problem.reference_states).mul_(2000)
    objective = problem.package(DEFINITIONS[name].loss)
    for value in (objective.loss, *gradients(objective.loss, problem.leaves), *objective.parts.values()):
        assert torch.isfinite(value).all()


@every_loss
def test_micro_batches(name):
    """Sequence means add up; token means weigh micro-batches by their tokens, and KTO has a baseline in each."""
    definition = DEFINITIONS[name]
    problem = draw_for(definition, [5, 3, 6, 2, 4, 7], 37, seed=2).to(torch.float32)
    parts = (
        [[row, row + 3] for row in range(3)] if definition.loss.companions else [[row] for row in range(6)]
    )
    values = [problem.of_sequences(part).package(definition.loss).loss.item() for part in parts]
    counts = [sum(problem.lengths[each] - definition.skip for each in part) for part in parts]
    whole, mean = problem.package(definition.loss).loss.item(), sum(values) / len(values)
    if definition.f is None:
        by_tokens = sum(value * n for value, n in zip(values, counts, strict=True)) / sum(counts)
        assert whole == pytest.approx(by_tokens, rel=1e-5)
        assert whole != pytest.approx(mean, rel=1e-3)
    elif name == "KTO":
        assert whole != pytest.approx(mean, rel=1e-3)
    else:
        assert whole == pytest.approx(mean, rel=1e-5)


@every_loss
def test_upstream_gradients_scale_all_gradients(name):
    problem = draw_for(DEFINITIONS[name], [6, 2, 5, 3]).to(torch.float32)
    for budget in (3, 1000):
        plain, value = (problem.package(DEFINITIONS[name].loss, budget).loss for _ in range(2))
        for one, three in zip(
            gradients(plain, problem.leaves), gradients(-3 * value + 7, problem.leaves), strict=True
        ):
            close(three, -3 * one, 1e-6)


@every_loss
def test_value_without_gradients(name):
    loss, problem = DEFINITIONS[name].loss, draw_for(DEFINITIONS[name], [6, 2, 5, 3]).to(torch.float32)
    expected = problem.package(loss).loss.item()
    with torch.no_grad():
        value = problem.package(loss).loss
    assert not value.requires_grad
    assert value.item() == expected
    for leaf in problem.leaves:
        leaf.requires_grad_(False)
    assert problem.package(loss).loss.item() == expected


@every_loss
def test_inputs_are_left_alone(name):
    problem = draw_for(DEFINITIONS[name], [6, 2, 5, 3], scale=0.5, softcap=3.0).to(torch.float32)
    before = problem.to(torch.float32)
    for budget in (3, 512):
        gradients(problem.package(DEFINITIONS[name].loss, budget).loss, problem.leaves)
    for key, value in vars(problem).items():
        assert not isinstance(value, torch.Tensor) or torch.equal(value, getattr(before, key))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@every_loss
def test_default_dtype_changes_nothing(name, dtype):
    """Lightning sets it during a step with precision `bf16-true`, `16-true` or `64-true`."""
    problem = draw_for(DEFINITIONS[name], [6, 2, 5, 3]).to(torch.float32)
    for budget in (3, 512):
        expected = problem.package(DEFINITIONS[name].loss, budget)
        try:
            torch.set_default_dtype(dtype)
            objective = problem.package(DEFINITIONS[name].loss, budget)
        finally:
            torch.set_default_dtype(torch.float32)
        assert objective.loss.item() == expected.loss.item()
        assert all(each.dtype == torch.float32 for each in (objective.loss, *objective.parts.values()))
        for one, other in zip(
            gradients(objective.loss, problem.leaves), gradients(expected.loss, problem.leaves), strict=True
        ):
            assert torch.equal(one, other)


# Behind a real decoder.


@pytest.fixture(scope="module")
def models():
    """Policy and reference, with tied embeddings."""
    options = {"vocab_size": 47, "tie_word_embeddings": True, "initializer_range": 0.2}
    return tiny_model("llama", **options), tiny_model("llama", seed=1, **options)


def encoded(shapes, seed):
    """Sequences of given (prompt, answer) lengths."""
    generator = torch.Generator().manual_seed(seed)
    return [
        Encoded(tuple(torch.randint(3, 47, (prompt + answer,), generator=generator).tolist()), prompt)
        for prompt, answer in shapes
    ]


SEQUENCES = [encoded([(3, 5), (7, 2), (1, 9)], 0), encoded([(3, 4), (7, 3), (1, 8)], 1)]


def step(models, loss, others=(), pad=0, budget=16):
    """The loss and the gradient on all of the policy's parameters, beside retain rows."""
    kinds = ("forget", *loss.companions)
    sequences = dict(zip(kinds, SEQUENCES, strict=False)) | {"retain": others}
    batch = collate(sequences, range(12), {"forget": kinds, "retain": ("retain",)})
    batch.input_ids.masked_fill_(~batch.attention_mask, pad)
    states, reference = (
        batch.by_section(answer_states(model, batch, {loss.layer})[loss.layer])["forget"] for model in models
    )
    targets, lengths = batch.by_section(batch.targets)["forget"], batch.sections["forget"].lengths
    sections = {"forget": Section(loss, states, targets, lengths, reference.detach())}
    objective = joint_objective(sections, *map(OutputHead.of, models), budget)
    by_parameters = gradients(objective.loss, list(models[0].parameters()))
    return objective.loss, torch.cat([each.flatten() for each in by_parameters])


@every_loss
def test_padding_and_other_sections_change_nothing(models, name):
    """Rows of 7 to 10 tokens alone, and in a batch with one of 40, whatever id the padding has."""
    loss = DEFINITIONS[name].loss
    alone = step(models, loss)
    for others, pad in ((encoded([(10, 30)], 2), 0), (encoded([(10, 30)], 2), 13), ((), 13)):
        for one, other in zip(step(models, loss, others, pad), alone, strict=True):
            close(one, other)


@pytest.mark.parametrize("name", [name for name, each in DEFINITIONS.items() if each.loss.layer is None])
def test_equals_the_models_own_logits_in_one_go(models, name):
    """Positions, targets, head and reference, all from the models' own forward passes on single sequences."""
    definition = DEFINITIONS[name]
    sequences = [each for some in SEQUENCES[: definition.members] for each in some]
    logits, targets = ([], []), []
    for sequence in sequences:
        ids = torch.tensor([sequence.ids])
        for found, model in zip(logits, models, strict=True):
            with torch.no_grad():
                found += model(input_ids=ids).logits[0, sequence.answer_start - 1 : -1].double()
        targets += sequence.ids[sequence.answer_start :]
    lengths = [each.answer_length for each in sequences]
    value, _ = definition.value(*map(torch.stack, logits), torch.tensor(targets), lengths)
    close(step(models, definition.loss, budget=6)[0], value)


# Arguments.


@pytest.mark.parametrize("layer", [-1, -0.5, 1.0, 7.0, math.nan])
@pytest.mark.parametrize("loss", [RMU, RMURetain])
def test_layers_out_of_range_are_refused(loss, layer):
    with pytest.raises(InputError, match=rf"^{loss.__name__}\.layer must be .* in \[0, 1\) \(got {layer}\)$"):
        loss(layer=layer)


def test_defaults_are_the_papers():
    """DiPO's beta 0.05 and 5 % of the tokens; Zephyr-7B's layer for RMU; the others' as their docstrings say."""
    assert DiPO().beta == DiPORetain().beta == 0.05
    assert draw([4, 2], 61).to(torch.float32).package(DiPO()).parts["kept"] == 3  # round(0.05 * 61)
    assert NPO().beta == DPO().beta == KTO().beta == 0.1
    assert (SimNPO().beta, SimNPO().gamma) == (4.5, 0)
    assert (UNDIAL().beta, WGA().beta, SatImp().beta1, SatImp().beta2) == (10.0, 1.0, 5.0, 1.0)
    assert (SHRED().share, SHRED().skip) == (0.5, 0)
    assert (CEU().skip, dipo_pl.losses.MaximumEntropy().reverse) == (1, False)
    assert (RMU().steering, RMU().layer, RMURetain().layer) == (6.5, 7, 7)
