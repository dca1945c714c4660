"""What is trained, in which data type and without noise, and what is exported, from the command line."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_models import save_tiny_model
from transformers import AutoModelForCausalLM

from dipo_pl.storage.fingerprints import weights_fingerprint

QUICK = (
    "fit", "--config", "smoke.yaml", "--forget_quality.generate_every", "0", "--data.evaluation_rows", "2",
    "--samples.rows", "0", "--trainer.max_epochs", "1", "--model.policy", "Pretrained", "--model.policy.path", "model",
    "--model.optimizer.lr", "1e-5", "--model.warmup", "0",
)  # fmt: skip
GPT2 = "{model_type: gpt2, n_embd: 32, n_layer: 2, n_head: 2, n_positions: 128}"
RUN = Path("runs/smoke")


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A published checkpoint: bfloat16, with files beside its weights."""
    monkeypatch.chdir(tmp_path)
    folder = save_tiny_model(tmp_path / "model", dtype=torch.bfloat16, max_position_embeddings=256)
    for name in ("preprocessor_config.json", "processor_config.json"):
        (folder / name).write_text('{"size": 4}')
    return folder


def manifest():
    return json.loads((RUN / "manifest.json").read_text())


def dtypes():
    return {each.dtype for each in load_file(RUN / "hf/model.safetensors").values()}


def test_a_half_precision_checkpoint_is_trained_in_float32(cli, checkpoint):
    ended = cli(*QUICK)
    assert ended.code == 0, ended.err
    policy = manifest()["policy"]
    assert policy["dtype"] == "torch.float32"
    assert policy["changed_share"] > 0.5
    assert dtypes() == {torch.float32}
    assert json.loads((RUN / "hf/config.json").read_text())["dtype"] == "float32"
    said = manifest()["exported_as"]
    assert said.startswith("in float32, as trained and measured: in bfloat16, as the checkpoint was, ")
    assert said in ended.err
    assert (RUN / "hf/preprocessor_config.json").read_text() == '{"size": 4}'
    assert (RUN / "hf/processor_config.json").exists()


def test_an_export_in_another_data_type_is_asked_for(cli, checkpoint):
    ended = cli(*QUICK, "--export.dtype", "bfloat16")
    assert ended.code == 0, ended.err
    assert dtypes() == {torch.bfloat16}
    assert json.loads((RUN / "hf/config.json").read_text())["dtype"] == "bfloat16"
    assert manifest()["exported_as"].startswith("in bfloat16, in which ")
    # The fingerprint is that of a run that starts from them.
    loaded = AutoModelForCausalLM.from_pretrained(RUN / "hf", dtype=torch.float32)
    assert manifest()["exported_weights"] == weights_fingerprint(loaded)
    assert manifest()["exported_weights"] != manifest()["policy"]["weights_at_end"]


@pytest.mark.parametrize("asked", [
    ("--model.policy.dtype", "bfloat16"),
    ("--trainer.precision", "bf16-true"),
])  # fmt: skip
def test_trained_weights_in_bfloat16_are_warned_about(cli, checkpoint, asked):
    ended = cli(*QUICK, *asked, "--model.optimizer.lr", "1e-6")
    assert ended.code == 0, ended.err
    assert "the trained weights are bfloat16: a step of the learning rate 1e-06 changes" in ended.err
    share = manifest()["policy"]["changed_share"]
    assert share < 0.1
    assert f"only {share:.1%} of the trained weights have changed after 3 steps" in ended.err


@pytest.mark.parametrize("asked", [
    ("--model.policy.dtype", "float16"),
    ("--trainer.precision", "16-true"),
    ("--config", "lora.yaml", "--trainer.precision", "16-true"),
])  # fmt: skip
def test_trained_weights_in_float16_are_refused(cli, checkpoint, asked):
    ended = cli(*QUICK, *asked)
    assert ended.code == 2
    assert (
        "the trained weights are float16, in which small gradients and AdamW's epsilon are 0"
        in ended.errors[0]
    )


def losses():
    return [each.value for each in EventAccumulator(str(RUN)).Reload().Scalars("train/forget_loss")]


@pytest.mark.parametrize("dropout", [False, True])
def test_policy_and_reference_are_compared_without_dropout_unless_it_is_asked_for(cli, dropout):
    words = ("--model.policy.config", GPT2, "--model.policy.vocab_size", "300", "--model.forget_loss", "NPO")
    ended = cli(*QUICK[:11], *words, "--model.forget_loss.beta", "1", "--model.dropout", str(dropout).lower())
    assert ended.code == 0, ended.err
    # NPO of equal models is 2 / beta log 2.
    assert (losses()[0] == pytest.approx(2 * 0.693147, abs=1e-5)) is not dropout
    said = "dropout is off while unlearning (the model has resid_pdrop 0.1, embd_pdrop 0.1, attn_pdrop 0.1)"
    assert ended.err.count(said) == (0 if dropout else 1)


def test_dropout_of_adapters_needs_dropout(cli, checkpoint):
    ended = cli(*QUICK, "--config", "lora.yaml", "--model.policy.adapter.dropout", "0.1")
    assert ended.code == 2
    assert "adapter.dropout is 0.1, and model.dropout false trains without dropout: set" in ended.errors[0]


MIXTRAL = (
    "{model_type: mixtral, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2, \
num_key_value_heads: 2, num_local_experts: 4}"
)
JETMOE = (
    "{model_type: jetmoe, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_key_value_heads: 2, \
kv_channels: 8, num_local_experts: 4}"
)
MAMBA = "{model_type: mamba, hidden_size: 32, num_hidden_layers: 2, state_size: 4}"


@pytest.mark.parametrize("config", [MIXTRAL, MAMBA])
def test_experts_and_recurrent_layers_are_planned(cli, config):
    ended = cli(
        "plan",
        "--config",
        "smoke.yaml",
        "--model.policy.config",
        config,
        "--tokens",
        "8",
        "--rows",
        "4",
        "--json",
    )
    assert ended.code == 0, ended.err
    assert "Traceback" not in ended.err
    assert json.loads(ended.out)["bytes"]["peak"] > 0


def test_what_cannot_be_planned_is_said_without_a_traceback(cli, caplog):
    ended = cli("plan", "--config", "smoke.yaml", "--model.policy.config", JETMOE)
    assert ended.code == 2
    assert "cannot follow a step of JetMoeForCausalLM on tensors without contents" in ended.errors[0]
    assert "Traceback" not in ended.err + caplog.text


def test_recurrent_models_are_unlearned_and_measured(cli):
    ended = cli(
        "fit", "--config", "smoke.yaml", "--model.policy.config", MAMBA, "--data.evaluation_rows", "2",
        "--trainer.max_epochs", "1", "--forget_quality.max_new_tokens", "3", "--data.forget_authors", "1",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert ended.err.count("answers are generated one at a time: MambaForCausalLM") == 1
    assert (RUN / "hf/model.safetensors").exists()
