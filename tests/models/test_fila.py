"""FILA against float64 loops that share no code: the importance of weights, and the adapters that are made of it."""

import math

import pytest
import torch
from tiny_models import tiny_model
from transformers.pytorch_utils import Conv1D

from dipo_pl.batch import Encoded
from dipo_pl.errors import InputError
from dipo_pl.models.adapters import adapted_layers, merged
from dipo_pl.models.fila import FILA, importance
from dipo_pl.models.from_config import FromConfig
from dipo_pl.models.lora import LoRA
from dipo_pl.modules.finetuning import FineTuning

FORGET = [Encoded((5, 6, 7, 8, 9, 10), 4), Encoded((11, 12, 13, 14), 1), Encoded((3, 4, 5), 2)]
RETAIN = [
    Encoded((20, 21, 22, 23, 24), 2),
    Encoded((30, 31, 32), 1),
    Encoded((40, 41, 42, 43), 3),
    Encoded((50, 51), 1),
]
EPSILON, ALPHA, RANK = 1e-5, 12, 3


def bare(kind):
    return tiny_model(kind, spread=0.1)


def fisher(model, names, sequences):
    """sum_s n_s g_s^2 / sum_s n_s, of gradients of single answers in float64 by the model's own logits."""
    model = model.double().eval()
    sums, tokens = dict.fromkeys(names, 0.0), 0
    for each in sequences:
        model.zero_grad()
        model.requires_grad_(True)
        log_p = model(input_ids=torch.tensor([each.ids])).logits[0].log_softmax(-1)
        places = range(each.answer_start, len(each.ids))
        loss = -sum(log_p[t - 1, each.ids[t]] for t in places) / len(places)
        loss.backward()
        for name in names:
            sums[name] = sums[name] + len(places) * model.get_parameter(f"{name}.weight").grad ** 2
        tokens += len(places)
    return {name: each / tokens for name, each in sums.items()}


def best_of_rank(matrix, rank):
    """The closest matrix of a rank, by the eigenvectors of M M^T."""
    _, vectors = torch.linalg.eigh(matrix @ matrix.T)
    top = vectors[:, -rank:]
    return top @ top.T @ matrix


@pytest.fixture(params=["llama", "gpt2", "qwen2"])
def initialized(request):
    """The kind of a model, and the model with adapters by FILA."""
    model = bare(request.param)
    LoRA(rank=RANK, alpha=ALPHA, initialization=FILA()).apply(model)
    FILA().apply(model, FORGET, RETAIN)
    return request.param, model


def test_importance_is_of_single_answers_weighted_by_their_tokens():
    model = bare("llama")
    LoRA(rank=RANK).apply(model)
    weights = {name: each.get_base_layer().weight for name, each in adapted_layers(model).items()}
    before = {name: each.requires_grad for name, each in model.named_parameters()}
    mode = model.training
    found = importance(model, weights, FORGET)
    expected = fisher(bare("llama"), list(weights), FORGET)
    for name, each in found.items():
        torch.testing.assert_close(
            each.double(), expected[name], rtol=1e-4, atol=1e-6 * float(expected[name].max())
        )
    assert {name: each.requires_grad for name, each in model.named_parameters()} == before
    assert all(each.grad is None for each in model.parameters())
    assert model.training == mode


def test_adapters_are_the_best_of_their_rank_for_the_relative_importance(initialized):
    kind, model = initialized
    layers, plain = adapted_layers(model), bare(kind)
    forget, retain = (fisher(bare(kind), list(layers), rows) for rows in (FORGET, RETAIN[:3]))
    scale = ALPHA / RANK
    for name, layer in layers.items():
        relative = forget[name] / (EPSILON + retain[name])
        weight = plain.get_parameter(f"{name}.weight").double()
        if isinstance(plain.get_submodule(name), Conv1D):
            relative, weight = relative.T, weight.T
        rows = torch.tensor([math.sqrt(sum(row)) for row in relative.tolist()], dtype=torch.float64)
        expected = best_of_rank(rows[:, None] * weight, RANK) / (EPSILON + rows)[:, None] / scale
        a, b = (part["default"].weight.detach().double() for part in (layer.lora_A, layer.lora_B))
        assert (a.shape, b.shape) == ((RANK, weight.shape[1]), (weight.shape[0], RANK))
        torch.testing.assert_close(b @ a, expected, rtol=0, atol=2e-3 * float(expected.abs().max()))
        # Both have the same share of a singular value, and the directions of A are orthogonal.
        squares = torch.linalg.svdvals(rows[:, None] * weight)[:RANK] / scale
        torch.testing.assert_close(a @ a.T, torch.diag(squares), rtol=0, atol=1e-3 * float(squares.max()))


def test_the_model_computes_what_it_did(initialized):
    kind, model = initialized
    ids = torch.tensor([[1, 5, 9, 40, 33, 2]])
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(ids).logits, bare(kind).eval()(ids).logits, rtol=0, atol=1e-5)
    start = bare(kind).state_dict()
    back = merged(model, model.state_dict())
    moved = 0
    for name, layer in adapted_layers(model).items():
        torch.testing.assert_close(back[f"{name}.weight"], start[f"{name}.weight"], rtol=0, atol=1e-6)
        moved += not torch.allclose(layer.get_base_layer().weight, start[f"{name}.weight"], atol=1e-4)
    assert moved == len(adapted_layers(model))
    trained = {name for name, each in model.named_parameters() if each.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if ".lora_" in name}


def test_what_is_kept_of_the_start_is_from_before(initialized):
    kind, _ = initialized
    model, fila = bare(kind), FILA()
    LoRA(rank=RANK, initialization=fila).apply(model)
    fila.apply(model, FORGET, RETAIN)
    start = bare(kind).state_dict()
    assert fila.before.keys() == {f"{name}.weight" for name in adapted_layers(model)}
    assert all(torch.equal(each, start[name].flatten()) for name, each in fila.before.items())


def test_rows_are_evenly_spaced_and_as_many_of_both(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "dipo_pl.models.fila.importance",
        lambda model, weights, rows: (
            seen.append(rows) or {name: torch.ones_like(each) for name, each in weights.items()}
        ),
    )
    for rows in (None, 2, 9):
        model = bare("llama")
        LoRA(rank=RANK).apply(model)
        FILA(rows).apply(model, FORGET, [*RETAIN, Encoded((1, 2), 2)])
    assert seen[:2] == [FORGET, [RETAIN[0], RETAIN[1], RETAIN[2]]]
    assert seen[2:4] == [FORGET[:2], [RETAIN[0], RETAIN[2]]]
    assert seen[4:] == seen[:2]


def test_a_rank_above_that_of_the_layer():
    model = bare("llama")
    LoRA(rank=40, alpha=40).apply(model)
    FILA().apply(model, FORGET, RETAIN)
    layer = adapted_layers(model)["model.layers.0.self_attn.k_proj"]
    # 8 x 16: all of W is in the adapter.
    product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    start = bare("llama").get_parameter("model.layers.0.self_attn.k_proj.weight")
    torch.testing.assert_close(product, start, rtol=0, atol=1e-3)
    assert layer.get_base_layer().weight.abs().max() < 1e-3


def test_experts_in_one_tensor_are_refused():
    model = tiny_model("mixtral")
    LoRA(rank=RANK, targets="all").apply(model)
    with pytest.raises(InputError, match="FILA cannot initialize adapters of experts in one tensor"):
        FILA().apply(model, FORGET, RETAIN)


def test_fine_tuning_has_no_forget_rows():
    policy = FromConfig({"model_type": "llama"}, adapter=LoRA(initialization=FILA()))
    with pytest.raises(
        InputError, match="needs forget and retain rows, and FineTuning has none apart: leave it out"
    ):
        FineTuning(policy)
