"""RMU's direction, and its losses in a real decoder; their values are tested with those of all losses."""

import math

import pytest
import torch
from tiny_models import tiny_model

from dipo_pl.batch import Encoded, collate
from dipo_pl.errors import InputError
from dipo_pl.losses import RMU, RMURetain
from dipo_pl.losses.base import Section
from dipo_pl.losses.engine import joint_objective
from dipo_pl.models.head import OutputHead
from dipo_pl.models.hidden_states import answer_states


@pytest.mark.parametrize("width", [1, 64, 4096])
def test_direction_is_uniform_draws_normalized(width):
    u = RMU().direction(width, torch.device("cpu"))
    assert u.dtype == torch.float32
    assert u.norm().item() == pytest.approx(1.0, rel=1e-6)
    assert (u >= 0).all()
    if width == 4096:
        # Uniform on [0, 1): a mean of 1/2 and a mean square of 1/3 before they are normalized.
        assert u.mean().item() * 64 == pytest.approx(0.5 * math.sqrt(3), rel=0.02)
        assert u.max().item() * 64 == pytest.approx(math.sqrt(3), rel=0.02)


def test_direction_is_a_function_of_seed_and_width():
    """Whatever was drawn before, and whatever the default dtype."""
    loss = RMU(seed=3)
    here = loss.direction(16, torch.device("cpu"))
    torch.manual_seed(5)
    try:
        torch.set_default_dtype(torch.bfloat16)
        assert torch.equal(RMU(seed=3).direction(16, torch.device("cpu")), here)
    finally:
        torch.set_default_dtype(torch.float32)
    assert loss.direction(16, torch.device("cpu")) is here
    assert not torch.equal(RMU(seed=4).direction(16, torch.device("cpu")), here)
    assert loss.direction(8, torch.device("cpu")).shape == (8,)


@pytest.fixture(scope="module")
def llama():
    return tiny_model("llama", num_hidden_layers=4, initializer_range=0.2)


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
    with pytest.raises(InputError, match=rf"layer {layer}.* LlamaForCausalLM has layers 0 to 3"):
        answer_states(llama, collate({"forget": ROWS}, [0, 1]), {layer})


def test_layers_beyond_it_learn_nothing(llama):
    """Forget rows, and rows to be kept against a reference that is a little elsewhere."""
    batch = collate({"forget": ROWS, "retain": ROWS}, [0, 1, 0, 1])
    states = batch.by_section(answer_states(llama, batch, {1})[1])
    targets = batch.by_section(batch.targets)
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
        by_layer = [each.grad for each in layer.parameters()]
        if index <= 1:
            assert all(each.abs().max() > 0 for each in by_layer)
        else:
            assert by_layer == [None] * len(by_layer)
