"""LoKU from the command line: adapters by FILA, resumed and exported as whole models, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from at_step import killed_and_gone_on
from safetensors.torch import load_file

from dipo_pl.models.from_config import FromConfig

RUN = (
    "fit", "--config", "smoke.yaml", "--config", "loku.yaml", "--forget_quality.generate_every", "0",
    "--data.evaluation_rows", "2", "--samples.rows", "0", "--model.policy.adapter.rank", "4",
    "--model.policy.adapter.alpha", "8", "--model.optimizer.lr", "0.003",
)  # fmt: skip
FOLDER = Path("runs/smoke-loku")
FILA = "model.policy.adapter.initialization"


@pytest.fixture(scope="module")
def trained(fit_once) -> Path:
    return fit_once("loku", *RUN[1:]) / "smoke-loku"


def manifest(run: Path) -> dict:
    return json.loads((run / "manifest.json").read_text())


def model(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "hf" / "model.safetensors")


def test_the_export_is_the_start_and_what_was_trained(trained):
    """Weights under adapters have moved by a step's size, not by the part that went into the adapters."""
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    start = FromConfig({"model_type": "llama", **shape}, tokenizer=str(trained / "hf")).model().state_dict()
    after = model(trained)
    assert start.keys() == after.keys()
    moved = {name: float((each - start[name]).abs().max()) for name, each in after.items()}
    adapted = {name for name in moved if "_proj" in name}
    assert len(adapted) == 14
    assert all(0 < moved[name] < 0.2 for name in adapted)
    assert not any(moved[name] for name in moved.keys() - adapted)
    saved = torch.load(trained / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(".lora_" in name for name in saved)


def test_killed_run_ends_as_if_nothing_had_happened(cli, process, trained):
    """The importance is computed again, and the frozen weights are compared with those of the checkpoint."""
    often = (*RUN, "--last_checkpoint.every_n_steps", "2")
    killed_and_gone_on(cli, process, often, hook="on_train_batch_end", step=5)
    assert manifest(FOLDER)["resumed_at_steps"] == [4]
    assert manifest(FOLDER)["policy"] == manifest(trained)["policy"]
    assert all(torch.equal(each, model(trained)[name]) for name, each in model(FOLDER).items())


def test_a_loss_that_compares_has_a_frozen_copy(cli):
    """At the start the policy is the copy: NPO of equal models is 2 / beta log 2."""
    ended = cli(
        *RUN, "--model.forget_loss", "NPO", "--model.forget_loss.beta", "1", "--trainer.max_steps", "1"
    )
    assert ended.code == 0, ended.err
    assert (
        "FILA: adapters start from the weights that matter for 20 forget rows against 20 retain rows"
        in ended.err
    )


@pytest.mark.parametrize(("words", "line"), [
    (("--model.forget_loss", "NPO", "--model.reference", "AdapterOff"),
     f"model.reference is AdapterOff, and with {FILA} FILA the policy without adapters is not the model before training"),
    (("--export.adapter", "true"), f"export.adapter is true, and {FILA} FILA changes the weights under the adapter"),
    (("--model.retain_loss", "null"), f"{FILA} FILA compares forget rows with retain rows, and model.retain_loss is null"),
    (("--model.policy.adapter.initialization.rows", "0"), "FILA.rows must be at least 1 (got 0)"),
    (("--trainer.strategy", "fsdp2"), f"{FILA}: FILA needs a whole model, which fsdp2 has on no rank"),
])  # fmt: skip
def test_refused_in_one_line(cli, words, line):
    ended = cli(*RUN, *words, "--name", "refused")
    assert ended.code == 2
    assert len(ended.errors) == 1
    assert line in ended.errors[0]
    assert not Path("runs/refused/hf").exists()
