"""Passes that begin in the middle of a decoder give what whole passes with hooks on its layers give."""

import pytest
import torch
from tiny_models import ARCHITECTURES, FURTHER, adapted_model, tiny_model

from dipo_pl.batch import Encoded, collate
from dipo_pl.errors import InputError
from dipo_pl.metrics.unlearning_depth import depth_scores
from dipo_pl.models.hidden_states import decoder_layers
from dipo_pl.models.upper_layers import (
    check_layers,
    lens_probabilities,
    patched_log_probabilities,
    position_states,
)

# Tokens, and where the part begins that is to be predicted: of different lengths, one of a single token.
SEQUENCES = [
    ([3, 7, 9, 11, 4, 8], 3), ([5, 6, 12, 3, 9, 30, 41, 7, 2], 6), ([8, 9, 10], 2), ([4, 4, 5, 6], 1),
]  # fmt: skip


def batch():
    return collate({"answers": [Encoded(tuple(ids), start) for ids, start in SEQUENCES]}, range(4))


@torch.no_grad()
def whole_pass(model, ids, start, patched=None, states=None, seen=None):
    """One sequence through the whole model with hooks on all layers; one of them may replace its output."""
    span = slice(start - 1, len(ids) - 1)

    def hook(number):
        def replace(module, inputs, output):
            hidden = output[0] if isinstance(output, tuple) else output
            if seen is not None:
                seen[number] = hidden[0, span].clone()
            if number == patched:
                hidden = hidden.clone()
                hidden[0, span] = states[number]
                return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
            return output

        return replace

    hooks = [layer.register_forward_hook(hook(number)) for number, layer in enumerate(decoder_layers(model))]
    try:
        logits = model(torch.tensor([ids]), use_cache=False).logits[0].double()
    finally:
        for each in hooks:
            each.remove()
    log_p = [float(logits[place - 1].log_softmax(-1)[ids[place]]) for place in range(start, len(ids))]
    return sum(log_p) / len(log_p)


def slow_depth(full, retain, unlearned):
    """The score by its definition: three whole passes for each row and layer."""
    above, below, rows = 0.0, 0.0, []
    for ids, start in SEQUENCES:
        theirs = []
        for model in (retain, unlearned):
            theirs.append({})
            whole_pass(model, ids, start, seen=theirs[-1])
        s = whole_pass(full, ids, start)
        above = below = 0.0
        for layer in theirs[0]:
            lost, gone = (s - whole_pass(full, ids, start, layer, states) for states in theirs)
            if lost > 0.05:
                above += lost * min(1.0, max(0.0, gone / lost))
                below += lost
        rows.append(above / below if below else None)
    return rows


def quick_depth(full, retain, unlearned):
    patches = {"retain": position_states(retain, batch()), "unlearned": position_states(unlearned, batch())}
    s, found = patched_log_probabilities(full, batch(), patches)
    return depth_scores(s, found["retain"], found["unlearned"])


@pytest.mark.parametrize("family", [*ARCHITECTURES, "mixtral", "cohere", "granite", "opt", "mamba"])
def test_the_depth_is_that_of_whole_passes(family):
    options = {"num_hidden_layers": 3, "spread": 0.3}
    models = [tiny_model(family, seed=seed, **options) for seed in range(3)]
    check_layers(models[0])
    scores, has = quick_depth(*models)
    expected = slow_depth(*models)
    assert has.tolist() == [each is not None for each in expected]
    assert scores.tolist() == pytest.approx([each or 0.0 for each in expected], abs=1e-5)
    assert any(0.01 < each < 0.99 for each in scores.tolist())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_zero_on_the_target_and_one_on_the_retain_only_model(family):
    full, retain = (tiny_model(family, seed=seed, spread=0.2, num_hidden_layers=3) for seed in range(2))
    scores, has = quick_depth(full, retain, full)
    assert scores[has].tolist() == pytest.approx([0.0] * int(has.sum()), abs=1e-6)
    scores, has = quick_depth(full, retain, retain)
    assert scores[has].tolist() == [1.0] * int(has.sum())
    assert has.any()


def test_lower_layers_are_not_computed_again(monkeypatch):
    model = tiny_model("llama", num_hidden_layers=4)
    states = position_states(model, batch())
    computed = []
    hooks = [
        layer.mlp.register_forward_hook(lambda module, inputs, output, number=number: computed.append(number))
        for number, layer in enumerate(decoder_layers(model))
    ]
    patched_log_probabilities(model, batch(), {"other": states})
    for each in hooks:
        each.remove()
    assert sorted(computed) == [0, 1, 1, 2, 2, 2, 3, 3, 3, 3]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_the_lens_is_the_norm_and_the_head_on_each_layer(family):
    model = tiny_model(family, spread=0.2, num_hidden_layers=3)
    norm = model.transformer.ln_f if family == "gpt2" else model.model.norm
    found = lens_probabilities(model, batch())
    for row, (ids, start) in enumerate(SEQUENCES):
        with torch.no_grad():
            # The last of these has gone through the norm already.
            states = model(torch.tensor([ids]), output_hidden_states=True, use_cache=False).hidden_states
            for layer in range(3):
                each = norm(states[layer + 1]) if layer < 2 else states[3]
                logits = model.lm_head(each)[0]
                if family == "gemma2":
                    logits = torch.tanh(logits / 0.5) * 0.5
                p = [float(logits[at - 1].softmax(-1)[ids[at]]) for at in range(start, len(ids))]
                assert found[row, layer] == pytest.approx(sum(p) / len(p), rel=1e-4)


def test_the_model_is_left_as_it_was():
    model = tiny_model("llama")
    own = vars(model.model.layers[1])["forward"] = model.model.layers[1].forward
    before = [sorted(vars(each)) for each in model.model.layers]
    lens_probabilities(model, batch())
    assert [sorted(vars(each)) for each in model.model.layers] == before
    assert vars(model.model.layers[1])["forward"] is own
    assert not any(each._forward_hooks for each in model.model.layers)


def test_with_adapters():
    model = adapted_model("llama").eval()
    check_layers(model)
    states = position_states(tiny_model("llama", seed=5), batch())
    s, found = patched_log_probabilities(model, batch(), {"other": states})
    for row, (ids, start) in enumerate(SEQUENCES):
        assert s[row] == pytest.approx(whole_pass(model, ids, start), abs=1e-5)
        seen = {}
        whole_pass(tiny_model("llama", seed=5), ids, start, seen=seen)
        expected = [whole_pass(model, ids, start, layer, seen) for layer in range(2)]
        assert found["other"][row].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("family", [*ARCHITECTURES, *FURTHER])
def test_every_family_goes_on_from_its_own_states(family):
    model = tiny_model(family, spread=0.2)
    check_layers(model)
    s, found = patched_log_probabilities(model, batch(), {"own": position_states(model, batch())})
    assert torch.allclose(found["own"], s[:, None].expand_as(found["own"]), atol=1e-4)


def test_a_decoder_whose_layers_hand_on_more_is_refused(monkeypatch):
    model = tiny_model("llama", spread=0.2)
    first, second = model.model.layers
    own_first, own_second = first.forward, second.forward
    aside = []

    def remember(hidden, *arguments, **options):
        aside.append(hidden * 0 + len(aside))
        return own_first(hidden, *arguments, **options)

    monkeypatch.setattr(first, "forward", remember)
    monkeypatch.setattr(second, "forward", lambda hidden, *a, **o: own_second(hidden + aside.pop(), *a, **o))
    with pytest.raises(InputError, match="LlamaForCausalLM cannot be started from one of its layers"):
        check_layers(model)
    # Or they change from pass to pass, and give other states in silence.
    passes = []

    def changing(hidden, *arguments, **options):
        passes.append(hidden)
        return own_second(hidden * len(passes), *arguments, **options)

    monkeypatch.setattr(first, "forward", own_first)
    monkeypatch.setattr(second, "forward", changing)
    with pytest.raises(InputError, match="LlamaForCausalLM gives other states when it is started"):
        check_layers(model)
