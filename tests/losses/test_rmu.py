"""RMU and its retain term against slow float64 loops, on states and in a real decoder."""

import math
import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dipo_pl.batch import Encoded, collate
from dipo_pl.errors import InputError
from dipo_pl.losses import RMU, Loss, RMURetain
from dipo_pl.losses.base import Section
from dipo_pl.losses.engine import joint_objective, sequence_objective
from dipo_pl.models.head import OutputHead
from dipo_pl.models.hidden_states import answer_states

# Largest error allowed, as a share of the largest entry of the float64 result.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
SHAPES = {"one": ([1], 2), "uneven": ([7, 3, 5], 6), "empty": ([0, 4, 0, 3, 0], 5)}


def loop(states, lengths, target):
    """The definition, number by number; `target` gives that of a position as a list."""
    total, answered, start = torch.zeros((), dtype=torch.float64), 0, 0
    for length in lengths:
        sequence = torch.zeros((), dtype=torch.float64)
        for t in range(start, start + length):
            distances = [
                (states[t, i] - wanted) ** 2
                for i, wanted in zip(range(states.shape[1]), target(t), strict=True)
            ]
            sequence = sequence + sum(distances) / len(distances)
        if length:
            total, answered = total + sequence / length, answered + 1
        start += length
    return total / max(answered, 1)


def draw(lengths, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    states, reference = (
        torch.randn(sum(lengths), width, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    return states, reference


def package(loss, states, lengths, reference=None, budget=1000):
    """The head has no part in it: another width, and nothing but ones."""
    head = OutputHead(torch.ones(11, 3, requires_grad=True))
    targets = torch.zeros(len(states), dtype=torch.long)
    return sequence_objective(states, targets, lengths, head, loss, reference, None, budget)


def close(ours, theirs, tolerance):
    limit = tolerance * float(theirs.detach().abs().max())
    torch.testing.assert_close(ours.detach().double(), theirs.detach(), rtol=0, atol=limit)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("budget", [1, 3, 7, 1000])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("loss", [RMU(1.7, 0, seed=4), RMURetain(0)], ids=lambda each: type(each).__name__)
def test_matches_the_definition(loss, shape, budget, dtype):
    lengths, width = SHAPES[shape]
    states, reference = (each.to(dtype) for each in draw(lengths, width))
    ours = states.clone().requires_grad_()
    before = ours.detach().clone(), reference.clone()
    objective = package(loss, ours, lengths, reference, budget)
    objective.loss.backward()
    theirs = states.double().requires_grad_()
    if isinstance(loss, RMU):
        u = loss.direction(width, torch.device("cpu")).tolist()
        value = loop(theirs, lengths, lambda t: [1.7 * each for each in u])
    else:
        value = loop(theirs, lengths, lambda t: reference[t].double().tolist())
    value.backward()
    assert objective.loss.dtype == torch.float32
    close(objective.loss, value, TOLERANCE[dtype])
    assert ours.grad.dtype == dtype
    close(ours.grad, theirs.grad, TOLERANCE[dtype])
    # Both are the models' own.
    assert torch.equal(ours.detach(), before[0])
    assert torch.equal(reference, before[1])


@pytest.mark.parametrize("loss", [RMU(1.7, 0), RMURetain(0)], ids=lambda each: type(each).__name__)
def test_terms_are_those_of_the_closed_form(loss):
    states, reference = (each.float() for each in draw([9], 12))
    targets = torch.zeros(9, dtype=torch.long)
    plain = Loss.terms_and_gradient(loss, states, targets, reference)
    closed = loss.terms_and_gradient(states, targets, reference)
    torch.testing.assert_close(closed.values, plain.values)
    torch.testing.assert_close(closed.gradient, plain.gradient)


def test_states_on_the_target_are_at_the_minimum():
    states, _ = (each.float() for each in draw([3], 8))
    same = states.clone().requires_grad_()
    objective = package(RMURetain(0), same, [3], states)
    objective.loss.backward()
    assert objective.loss.item() == 0.0
    assert torch.equal(same.grad, torch.zeros(3, 8))
    loss = RMU(3.0, 0)
    there = (3.0 * loss.direction(8, torch.device("cpu"))).repeat(3, 1)
    assert package(loss, there, [3]).loss.item() == 0.0


def test_a_known_distance():
    """From 0, c u is c away: c^2 / d = 9 / 8."""
    assert package(RMU(3.0, 0), torch.zeros(4, 8), [3, 1]).loss.item() == pytest.approx(9 / 8)


@pytest.mark.parametrize("width", [1, 64, 4096])
def test_direction_is_uniform_draws_normalised(width):
    u = RMU().direction(width, torch.device("cpu"))
    assert u.dtype == torch.float32
    assert u.norm().item() == pytest.approx(1.0, rel=1e-6)
    assert (u >= 0).all()
    if width == 4096:
        # Uniform on [0, 1): a mean of 1/2 and a mean square of 1/3 before they are normalised.
        assert u.mean().item() * 64 == pytest.approx(0.5 * math.sqrt(3), rel=0.02)
        assert u.max().item() * 64 == pytest.approx(math.sqrt(3), rel=0.02)


def test_direction_is_the_same_in_every_process():
    """A function of seed and width: whatever was drawn before, and whatever the default dtype."""
    script = (
        "import torch; from dipo_pl.losses import RMU; torch.manual_seed(5); torch.rand(7); "
        "torch.set_default_dtype(torch.bfloat16); "
        "print(RMU(seed=3).direction(16, torch.device('cpu')).tolist())"
    )
    there = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert there.returncode == 0, there.stderr
    loss = RMU(seed=3)
    here = loss.direction(16, torch.device("cpu"))
    assert str(here.tolist()) == there.stdout.strip()
    assert loss.direction(16, torch.device("cpu")) is here
    assert not torch.equal(RMU(seed=4).direction(16, torch.device("cpu")), here)
    assert loss.direction(8, torch.device("cpu")).shape == (8,)


# In a decoder.


@pytest.fixture(scope="module")
def llama():
    config = AutoConfig.for_model(
        "llama",
        vocab_size=47,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config)


ROWS = [Encoded((5, 6, 7, 8, 9, 10), 4), Encoded((11, 12, 13, 14), 1)]


@pytest.mark.parametrize(
    ("layer", "number"), [(0, 0), (2, 2), (3, 3), (0.0, 0), (0.22, 0), (0.25, 1), (0.5, 2), (0.99, 3)]
)
def test_layer_by_number_or_by_share_of_the_depth(llama, layer, number):
    batch = collate({"forget": ROWS}, [0, 1])
    states = answer_states(llama, batch, {layer, None})
    # transformers counts the embeddings as well, and its last entry is after the final norm.
    all_states = llama(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True
    ).hidden_states
    if number < 3:
        expected = all_states[number + 1].flatten(0, 1)[batch.positions]
        torch.testing.assert_close(states[layer], expected)
    else:
        torch.testing.assert_close(llama.get_decoder().norm(states[layer]), states[None])


@pytest.mark.parametrize("layer", [4, 1.0])
def test_a_layer_that_is_not_there(llama, layer):
    with pytest.raises(InputError, match=rf"acts on layer {layer}, and LlamaForCausalLM has layers 0 to 3"):
        answer_states(llama, collate({"forget": ROWS}, [0, 1]), {layer})


def test_layers_beyond_it_learn_nothing(llama):
    """Forget rows, and rows to be kept against a reference that is a little elsewhere."""
    batch = collate({"forget": ROWS, "retain": ROWS}, [0, 1, 0, 1])
    states, targets = (
        batch.by_section(each) for each in (answer_states(llama, batch, {1})[1], batch.targets)
    )
    sections = {
        name: Section(
            loss, states[name], targets[name], batch.sections[name].lengths, states[name].detach() + 0.1
        )
        for name, loss in {"forget": RMU(2.0, 1), "retain": RMURetain(1)}.items()
    }
    objective = joint_objective(sections, OutputHead.of(llama))
    assert objective.sections["retain"].loss.item() == pytest.approx(0.01, rel=1e-4)
    llama.zero_grad()
    objective.loss.backward()
    for index, layer in enumerate(llama.get_decoder().layers):
        gradients = [each.grad for each in layer.parameters()]
        if index <= 1:
            assert all(each.abs().max() > 0 for each in gradients)
        else:
            assert gradients == [None] * len(gradients)


@pytest.mark.parametrize("steering", [0, -1.0, math.nan, math.inf])
def test_steering_is_refused(steering):
    with pytest.raises(InputError, match=rf"^RMU\.steering must be a finite number > 0, got {steering}$"):
        RMU(steering)


@pytest.mark.parametrize("layer", [-1, -0.5, 1.0, 7.0, math.nan])
@pytest.mark.parametrize("loss", [RMU, RMURetain])
def test_layer_is_refused(loss, layer):
    with pytest.raises(InputError, match=rf"^{loss.__name__}\.layer must be .* in \[0, 1\), got {layer}$"):
        loss(layer=layer)


def test_defaults_are_the_papers():
    """Zephyr-7B."""
    assert (RMU().steering, RMU().layer, RMURetain().layer) == (6.5, 7, 7)
