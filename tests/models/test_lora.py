"""Adapters and the reference without them, on tiny models of every kind of linear layer, head and dtype."""

import copy
import json
import math
import sys
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from dipo_pl.batch import Encoded, collate
from dipo_pl.errors import InputError
from dipo_pl.losses import NPO
from dipo_pl.losses.engine import sequence_objective
from dipo_pl.models.from_config import FromConfig
from dipo_pl.models.head import OutputHead
from dipo_pl.models.hidden_states import answer_states
from dipo_pl.models.lora import LoRA, merged, save_adapter
from dipo_pl.models.pretrained import Pretrained
from dipo_pl.references.adapter_off import AdapterOff
from dipo_pl.references.frozen_copy import FrozenCopy

SPECIAL = {"vocab_size": 61, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
    **SPECIAL,
}
# GPT-2 holds its weights transposed, ties its head and has dropout; Phi and Qwen2 have biases, Phi's head too.
CONFIGS = {
    "llama": SIZES,
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, **SPECIAL},
    "phi": {**SIZES, "num_key_value_heads": 2},
    "gemma2": {**SIZES, "head_dim": 8, "final_logit_softcapping": 0.5},
    "qwen2": {**SIZES, "tie_word_embeddings": True},
}
BATCH = collate(
    {
        "forget": [Encoded((1, 5, 9, 40, 33, 2), 3), Encoded((1, 7, 8, 2), 2)],
        "retain": [Encoded((1, 3, 4), 1)],
    },
    [0, 1, 0],
)
IDS = torch.tensor([[1, 5, 9, 40, 33, 2]])


def bare(kind, dtype=torch.float32):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **CONFIGS[kind]))
        with torch.no_grad():
            for parameter in model.parameters():
                # Biases and norms that differ from what they start at, too.
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.to(dtype)


def adapted(kind, dtype=torch.float32, trained=True, **options):
    model = bare(kind, dtype)
    LoRA(**{"rank": 3, "alpha": 12.0} | options).apply(model)
    if trained:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in adapters(model).items():
                if "lora_B" in name:
                    parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.train()


def adapters(model):
    return {name: each for name, each in model.named_parameters() if "lora_" in name}


def peft_layers(model):
    return [each for each in model.modules() if isinstance(each, BaseTunerLayer)]


def base_weights(model):
    return {name: each.clone() for name, each in model.state_dict().items() if "lora_" not in name}


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def change_of(model, name, alpha, rank):
    """(alpha / rank) B A of a layer, entry by entry in float64."""
    a, b = (model.state_dict()[f"{name}.lora_{each}.default.weight"].double() for each in "AB")
    rows, columns = len(b), a.shape[1]
    change = torch.zeros(rows, columns, dtype=torch.float64)
    for row in range(rows):
        for column in range(columns):
            change[row, column] = sum(b[row, i] * a[i, column] for i in range(rank)) * alpha / rank
    return change


class TestLoRA:
    @pytest.mark.parametrize("kind", CONFIGS)
    def test_every_linear_layer_but_the_head_is_adapted_and_nothing_else_is_trained(self, kind):
        plain = bare(kind)
        linear = {
            name
            for name, module in plain.named_modules()
            if isinstance(module, nn.Linear | Conv1D) and module is not plain.get_output_embeddings()
        }
        model = adapted(kind)
        trained = {name for name, each in model.named_parameters() if each.requires_grad}
        assert trained == {f"{name}.lora_{each}.default.weight" for name in linear for each in "AB"}
        assert len(linear) == {"llama": 14, "gpt2": 8, "phi": 12, "gemma2": 14, "qwen2": 14}[kind]
        # The base's own shapes decide: [rank, in] and [out, rank].
        first = "transformer.h.0.attn.c_attn" if kind == "gpt2" else "model.layers.0.self_attn.q_proj"
        shapes = [tuple(adapters(model)[f"{first}.lora_{each}.default.weight"].shape) for each in "AB"]
        assert shapes == [(3, 16), (48 if kind == "gpt2" else 16, 3)]

    @pytest.mark.parametrize("kind", CONFIGS)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_starts_from_the_model_as_it_is(self, kind, dtype):
        model = adapted(kind, dtype, trained=False)
        assert torch.equal(logits(model), logits(bare(kind, dtype)))
        assert {each.dtype for each in adapters(model).values()} == {torch.float32}
        assert {each.dtype for each in base_weights(model).values()} == {dtype}

    def test_adapters_of_a_float64_model_are_float64(self):
        assert {each.dtype for each in adapters(adapted("llama", torch.float64)).values()} == {torch.float64}

    @pytest.mark.parametrize(
        ("kind", "name"), [("phi", "model.layers.1.mlp.fc1"), ("gpt2", "transformer.h.1.mlp.c_fc")]
    )
    def test_a_layer_by_its_definition(self, kind, name):
        plain, model = bare(kind, torch.float64).get_submodule(name), adapted(kind, torch.float64)
        x = torch.randn(5, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        expected = plain(x) + x @ change_of(model, name, 12, 3).T
        assert_close(model.get_submodule(name)(x), expected)

    def test_starting_values_depend_on_the_seed_alone(self):
        torch.manual_seed(1)
        one = adapters(adapted("llama", trained=False, seed=7))
        torch.manual_seed(2)
        before = torch.get_rng_state()
        model = bare("llama")
        LoRA(rank=3, alpha=12.0, seed=7).apply(model)
        assert torch.equal(torch.get_rng_state(), before)
        again, other = adapters(model), adapters(adapted("llama", trained=False, seed=8))
        for name, each in one.items():
            assert torch.equal(each, again[name])
            if "lora_B" in name:
                assert not each.any()
            else:
                assert not torch.equal(each, other[name])
                bound = 1 / math.sqrt(each.shape[1])
                assert bound / 2 < each.abs().max() <= bound
        assert LoRA().seed == 0

    @pytest.mark.parametrize("kind", CONFIGS)
    def test_gives_no_cause_for_warnings(self, kind):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            LoRA().apply(bare(kind))

    def test_dropout_is_of_what_the_adapter_sees(self):
        x = torch.ones(1, 16)
        layer = adapted("llama", dropout=0.5).get_submodule("model.layers.0.self_attn.q_proj")
        torch.manual_seed(0)
        assert not torch.equal(layer(x), layer(x))
        layer.eval()
        assert torch.equal(layer(x), layer(x))

    @pytest.mark.parametrize(
        ("targets", "expected"),
        [
            (["q_proj", "k_proj"], {f"model.layers.{i}.self_attn.{each}_proj" for i in (0, 1) for each in "qk"}),
            (["layers.1.mlp.up_proj"], {"model.layers.1.mlp.up_proj"}),
            (r".*\.1\..*[qk]_proj", {"model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.k_proj"}),
        ],
    )  # fmt: skip
    def test_targets(self, targets, expected):
        names = {name.partition(".lora_")[0] for name in adapters(adapted("llama", targets=targets))}
        assert names == expected

    @pytest.mark.parametrize(
        ("targets", "named"),
        [
            (["q_proj", "qproj"], "'qproj'"),
            ("q_proj", "'q_proj'"),
            (["lm_head"], "'lm_head'"),
            (["embed_tokens"], "'embed_tokens'"),
            (["self_attn"], "'self_attn'"),
            (["proj"], "'proj'"),
            (["q.proj"], "'q.proj'"),
        ],
    )
    def test_targets_that_are_not_there(self, targets, named):
        with pytest.raises(InputError) as raised:
            adapted("llama", targets=targets)
        assert str(raised.value) == (
            f"model.policy.adapter.targets: {named} matches no linear layer of LlamaForCausalLM: give "
            "all-linear, or a list of down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
        )

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"rank": 0}, r"^model.policy.adapter.rank must be at least 1 \(got 0\)$"),
            ({"alpha": 0.0}, r"^model.policy.adapter.alpha must be a finite number > 0 \(got 0.0\)$"),
            ({"alpha": math.nan}, r"^model.policy.adapter.alpha must be a finite number > 0 \(got nan\)$"),
            ({"dropout": 1.0}, r"^model.policy.adapter.dropout must be a share in \[0, 1\) \(got 1.0\)$"),
            ({"dropout": -0.1}, r"^model.policy.adapter.dropout must be a share in \[0, 1\) \(got -0.1\)$"),
            ({"targets": []}, r"^model.policy.adapter.targets is empty: name layers, or all-linear$"),
            ({"targets": "*"}, r"^model.policy.adapter.targets: '\*' is not a regular expression \(nothing to repeat"),
        ],
    )  # fmt: skip
    def test_what_cannot_be(self, options, message):
        with pytest.raises(InputError, match=message):
            adapted("llama", **options)

    def test_without_peft(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "peft", None)
        with pytest.raises(
            InputError, match=r"^model.policy.adapter needs peft .*pip install 'dipo-pl\[lora\]'$"
        ):
            adapted("llama")

    @pytest.mark.parametrize("kind", CONFIGS)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_every_matrix_moves_under_gradient_checkpointing(self, kind, dtype):
        config = CONFIGS[kind] | {"model_type": kind}
        policy = FromConfig(config, vocab_size=280, gradient_checkpointing=True, adapter=LoRA(rank=3))
        policy.tokenizer(["Who wrote it? She wrote it."])
        model = policy.model().to(dtype)
        for each in adapters(model).values():
            each.data = each.data.float()
        start = {name: each.clone() for name, each in model.named_parameters()}
        # Without weight decay, which would move a matrix that no gradient reaches.
        optimizer = torch.optim.AdamW(adapters(model).values(), lr=1e-3, weight_decay=0.0)
        for _ in range(3):
            model(IDS, labels=IDS, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        moved = {name for name, each in model.named_parameters() if not torch.equal(each, start[name])}
        assert moved == set(adapters(model))
        assert model.training

    def test_generates(self):
        model = adapted("qwen2")
        ids = model.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=4, do_sample=False)
        assert ids.shape[1] > IDS.shape[1]
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


class TestMerged:
    @pytest.mark.parametrize("kind", CONFIGS)
    def test_a_plain_model_of_the_same_logits(self, kind, tmp_path):
        model = adapted(kind)
        before = copy.deepcopy(model.state_dict())
        weights = merged(model, model.state_dict())
        assert weights.keys() == bare(kind).state_dict().keys()
        model.save_pretrained(tmp_path, state_dict=weights)
        assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
        assert not (tmp_path / "adapter_config.json").exists()
        loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values())
        assert_close(logits(loaded), logits(model), rtol=1e-5, atol=1e-5)
        assert (logits(loaded) - logits(bare(kind))).abs().max() > 0.01
        tied = kind in ("gpt2", "gemma2", "qwen2")
        assert (loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight) is tied

    @pytest.mark.parametrize(
        ("kind", "name"), [("llama", "model.layers.1.mlp.down_proj"), ("gpt2", "transformer.h.0.mlp.c_proj")]
    )
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
    def test_is_rounded_once(self, kind, name, dtype):
        model = adapted(kind, dtype)
        base = model.state_dict()[f"{name}.base_layer.weight"].double()
        change = change_of(model, name, 12, 3)
        whole = base + (change.T if kind == "gpt2" else change)
        found = merged(model, model.state_dict())[f"{name}.weight"]
        assert found.dtype == dtype
        assert_close(found, whole.to(dtype), rtol=1e-12 if dtype == torch.float64 else 0, atol=0)
        # Twice would be: the product rounded, then the sum.
        twice = (base.to(dtype) + (change.T if kind == "gpt2" else change).to(dtype)).to(dtype)
        assert dtype == torch.float64 or not torch.equal(found, twice)

    def test_of_other_weights_than_the_models_own(self):
        model, other = adapted("llama"), adapted("llama", seed=5)
        given = model.state_dict() | adapters(other)
        names = list(given)
        ours = merged(model, given)
        assert list(given) == names
        theirs = merged(other, other.state_dict())
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)

    def test_a_model_without_adapters_is_left_as_it_is(self):
        weights = bare("llama").state_dict()
        assert merged(bare("llama"), weights) == weights


class TestSaveAdapter:
    @pytest.mark.parametrize("kind", CONFIGS)
    def test_peft_reads_it(self, kind, tmp_path):
        model = adapted(kind)
        save_adapter(model, model.state_dict(), tmp_path)
        assert {each.name for each in tmp_path.iterdir()} == {
            "adapter_config.json",
            "adapter_model.safetensors",
        }
        loaded = PeftModel.from_pretrained(bare(kind), tmp_path)
        assert_close(logits(loaded), logits(model), rtol=0, atol=0)
        assert not any(each.requires_grad for each in loaded.parameters())
        # The model goes on as it was.
        assert model.peft_config["default"].inference_mode is False
        assert all(each.requires_grad for each in adapters(model).values())

    def test_its_configuration(self, tmp_path):
        bare("gpt2").save_pretrained(tmp_path / "base")
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        LoRA(rank=3, alpha=12.0, dropout=0.25).apply(model)
        texts = []
        for name in ("one", "two"):
            save_adapter(model, model.state_dict(), tmp_path / name)
            texts.append((tmp_path / name / "adapter_config.json").read_text())
        assert texts[0] == texts[1]
        config = json.loads(texts[0])
        assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (3, 12.0, 0.25)
        assert (config["task_type"], config["inference_mode"], config["fan_in_fan_out"]) == (
            "CAUSAL_LM",
            True,
            True,
        )
        assert config["base_model_name_or_path"] == str(tmp_path / "base")
        assert config["target_modules"] == sorted(config["target_modules"])


class TestAdapterOff:
    def attached(self, model):
        reference = AdapterOff()
        reference.attach(model, None)
        return reference

    @pytest.mark.parametrize("kind", CONFIGS)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("checkpointing", [False, True])
    def test_states_are_bitwise_those_of_the_bare_model(self, kind, dtype, checkpointing):
        model = adapted(kind, dtype, dropout=0.5)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        states = self.attached(model).states(BATCH, (None, 0))
        with torch.no_grad():
            expected = answer_states(bare(kind, dtype).eval(), BATCH, (None, 0))
            live = answer_states(model, BATCH, (None, 0))
        for layer in (None, 0):
            assert torch.equal(states[layer], expected[layer])
            assert not states[layer].requires_grad
            assert not torch.equal(live[layer], expected[layer])

    def test_the_head_is_the_policys_own(self):
        model = adapted("phi")
        head = self.attached(model).head
        assert head.weight is model.lm_head.weight
        assert head.bias is model.lm_head.bias

    @pytest.mark.parametrize("fails", [False, True])
    def test_leaves_the_policy_as_it_was(self, fails):
        model = adapted("gpt2")
        reference = self.attached(model)
        # Some in eval mode, some adapters not trained: put back one by one.
        model.get_submodule("transformer.h.1").eval()
        frozen = (
            model.get_submodule("transformer.h.0.attn.c_attn").lora_A["default"].weight.requires_grad_(False)
        )
        modes = {name: each.training for name, each in model.named_modules()}
        trained = {name: each.requires_grad for name, each in model.named_parameters()}
        batch = copy.copy(BATCH)
        seen = []
        model.get_decoder().register_forward_pre_hook(
            lambda module, inputs: seen.append((module.training, torch.is_grad_enabled()))
        )
        if fails:
            batch.input_ids = torch.full_like(BATCH.input_ids, 61)
            with pytest.raises(IndexError):
                reference.states(batch)
        else:
            reference.states(batch)
        assert seen == [(False, False)]
        assert {name: each.training for name, each in model.named_modules()} == modes
        assert {name: each.requires_grad for name, each in model.named_parameters()} == trained
        assert not frozen.requires_grad
        assert not any(each.disable_adapters for each in peft_layers(model))
        assert not torch.equal(logits(model), logits(bare("gpt2")))

    def test_adapters_that_are_off_stay_off(self):
        model = adapted("llama")
        for each in peft_layers(model):
            each.enable_adapters(False)
        self.attached(model).states(BATCH)
        assert all(each.disable_adapters for each in peft_layers(model))

    @pytest.mark.parametrize("kind", ["llama", "gpt2", "phi"])
    @pytest.mark.parametrize("checkpointing", [False, True])
    def test_a_step_has_the_same_gradients_whichever_reference(self, kind, checkpointing):
        losses, gradients = [], []
        for kind_of_reference in (FrozenCopy, AdapterOff):
            model = adapted(kind, trained=False)
            reference = kind_of_reference()
            reference.attach(model, None)
            with torch.no_grad():
                for name, each in adapters(model).items():
                    if "lora_B" in name:
                        each.fill_(0.02)
            if checkpointing:
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            torch.manual_seed(3)  # of dropout
            states = answer_states(model, BATCH)[None]
            objective = sequence_objective(
                states, BATCH.targets, BATCH.lengths, OutputHead.of(model), NPO(beta=0.1),
                reference.states(BATCH)[None], reference.head,
            )  # fmt: skip
            objective.loss.backward()
            losses.append(objective.loss.item())
            gradients.append({name: each.grad for name, each in adapters(model).items()})
            assert all(each.grad is None for name, each in model.named_parameters() if "lora_" not in name)
        assert losses[0] == losses[1]
        assert losses[0] != pytest.approx(2 / 0.1 * math.log(2), abs=1e-4)
        for name, each in gradients[0].items():
            assert each.any()
            assert torch.equal(each, gradients[1][name])

    def test_wants_adapters(self):
        with pytest.raises(InputError, match=r"the policy has no adapter: set model.policy.adapter to LoRA"):
            self.attached(bare("llama"))
        with pytest.raises(RuntimeError, match="before attach"):
            AdapterOff().states(BATCH)

    def test_holds_nothing_of_its_own(self):
        reference = self.attached(adapted("llama"))
        reference.apply(lambda tensor: pytest.fail("there is nothing to move"))


def test_a_folder_that_holds_an_adapter_alone_is_no_policy(tmp_path: Path):
    policy = FromConfig(SIZES | {"model_type": "llama"}, vocab_size=280)
    tokenizer = policy.tokenizer(["Who wrote it?"])
    policy.model().save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    LoRA(rank=3).apply(model)
    save_adapter(model, model.state_dict(), tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    with pytest.raises(
        InputError, match=r"adapter holds an adapter, not a complete model: give its base model"
    ):
        Pretrained(str(tmp_path / "adapter")).model()
