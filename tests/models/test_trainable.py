"""Which weights patterns of names train, on tiny models of every architecture, and what is refused."""

import pytest
from tiny_models import ARCHITECTURES, tiny_model

from dipo_pl.errors import InputError
from dipo_pl.models.from_config import FromConfig
from dipo_pl.models.lora import LoRA
from dipo_pl.models.trainable import check_reached, train_only
from dipo_pl.modules.finetuning import FineTuning

POLICY = {"model_type": "llama"}
DOWN = "model.layers.[01].mlp.down_proj.weight"


def trained(model):
    return {name for name, each in model.named_parameters() if each.requires_grad}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_only_what_matches_is_trained(kind):
    model = tiny_model(kind)
    names = [name for name, _ in model.named_parameters()]
    wanted = {name for name in names if ".1." in name and name.endswith(".weight")}
    said = train_only(model, [r".*\.1\..*\.weight"])
    assert trained(model) == wanted != set()
    count = sum(each.numel() for name, each in model.named_parameters() if name in wanted)
    whole = sum(each.numel() for each in model.parameters())
    assert said.startswith(
        f"model.trainable: {len(wanted)} of {len(names)} weights are trained, with {count:,} of {whole:,} parameters "
        f"({count / whole:.1%}), and the others are frozen; weights by pattern: "
    )
    # Chosen again from all weights, not from those left.
    train_only(model, [".*"])
    assert trained(model) == set(names)


def test_a_pattern_is_of_the_whole_name():
    model = tiny_model("llama")
    for part in ("down_proj", "mlp.down_proj.weight", "model.layers.0.mlp.down_proj.weigh"):
        with pytest.raises(InputError, match="matches no weight"):
            train_only(model, [part])
    said = train_only(model, [DOWN, ".*[.]0[.].*down_proj.*", "lm_head.weight"])
    assert trained(model) == {
        *(f"model.layers.{each}.mlp.down_proj.weight" for each in (0, 1)),
        "lm_head.weight",
    }
    assert said.endswith(f"weights by pattern: {DOWN} (2), .*[.]0[.].*down_proj.* (1), lm_head.weight (1)")
    assert said.startswith("model.trainable: 3 of ")


def test_a_shared_weight_is_trained_under_either_name():
    model = tiny_model("qwen2")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        said = train_only(model, [name])
        assert trained(model) == {"model.embed_tokens.weight"}
        assert said.startswith("model.trainable: 1 of ")


@pytest.mark.parametrize(("patterns", "line"), [
    (["model.layers.7.mlp.down_proj.weight"],
     r"model.trainable: 'model.layers.7.mlp.down_proj.weight' matches no weight of LlamaForCausalLM, whose names are such "
     r"as model.layers.\d.mlp.down_proj.weight, .*: give a regular expression of a whole name"),
    ([DOWN, "lm_head"], "model.trainable: 'lm_head' matches no weight .* lm_head.weight"),
])  # fmt: skip
def test_a_pattern_that_matches_nothing_is_refused_with_names(patterns, line):
    model = tiny_model("llama")
    with pytest.raises(InputError, match=f"^{line}"):
        train_only(model, patterns)
    assert trained(model) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize(("patterns", "line"), [
    (["model.layers.("], r"^model.trainable: 'model.layers.\(' is not a regular expression \(missing \), .*\)$"),
    ([], r"^model.trainable must be a list of regular expressions of weight names \(got \[\]\): leave it out to train all"),
    ("lm_head.weight", r"^model.trainable must be a list .* \(got 'lm_head.weight'\)"),
])  # fmt: skip
def test_patterns_are_checked_before_a_model_is_loaded(patterns, line):
    with pytest.raises(InputError, match=line):
        FineTuning(FromConfig(POLICY), trainable=patterns)


def test_adapters_and_patterns_exclude_each_other():
    with pytest.raises(
        InputError, match=r"^model.trainable is \['.*'\] and model.policy.adapter trains adapters alone"
    ):
        FineTuning(FromConfig(POLICY, adapter=LoRA()), trainable=[".*"])


@pytest.mark.parametrize(("kind", "layers", "pattern", "refused"), [
    ("llama", {0}, "model.layers.1.*", True),
    ("llama", {0.0}, "model.layers.1.*", True),
    ("llama", {0}, "lm_head.weight", True),
    ("llama", {0}, "model.layers.(0|1).*", False),
    ("llama", {0, 1}, "model.layers.1.*", False),
    ("llama", {0, None}, "lm_head.weight", False),
    ("llama", {0}, "model.embed_tokens.weight", False),
    # The head is the embedding, which the layers read.
    ("qwen2", {0}, "lm_head.weight", False),
    ("gpt2", {0}, "transformer.h.1.*", True),
])  # fmt: skip
def test_weights_that_no_loss_reaches_are_refused(kind, layers, pattern, refused):
    model = tiny_model(kind)
    if not refused:
        check_reached(model, [pattern], layers)
        return
    with pytest.raises(
        InputError, match=r"matches only weights behind layer 0, .* give weights of layers 0 to 0, or other"
    ):
        check_reached(model, [pattern], layers)
