"""Tiny random models in the shapes of the field's families, and what a run from end to end finds of each."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from tiny_models import SIZES, tiny_tokenizer
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from dipo_pl.cli.run import run
from dipo_pl.models.eval_mode import eval_mode

# The tokenizer's tokens, and room in the model for those that transformers adds for some families.
TOKENS, VOCABULARY = 280, 288
GROUPED, TIED = {"num_key_value_heads": 1}, {"tie_word_embeddings": True}
WINDOW = {"sliding_window": 8}


@dataclass(frozen=True)
class Family:
    """Shape of a family's models.

    Attributes:
        architecture: name of it in transformers.
        traits: what it has, in words, apart from its sizes.
        changes: of the configuration.
    """

    architecture: str
    traits: str
    changes: dict[str, Any]


FAMILIES = {
    "Llama-2": Family("llama", "an untied head", {}),
    "Llama-3": Family(
        "llama",
        "grouped queries, scaled rotations, a tied head (3.2)",
        GROUPED
        | TIED
        | {
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
            }
        },
    ),
    "Qwen2.5": Family("qwen2", "grouped queries, biases of queries, keys and values, a tied head", GROUPED | TIED),
    "Qwen3": Family("qwen3", "grouped queries, norms of queries and keys, a tied head", GROUPED | TIED | {"head_dim": 12}),
    "Gemma-2": Family(
        "gemma2", "a soft cap of logits, every other layer with a window, a tied head", GROUPED | WINDOW | {"head_dim": 8}
    ),
    "Gemma-3": Family(
        "gemma3_text",
        "norms of queries and keys, layers with a window and without, a tied head",
        GROUPED | WINDOW | {"head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "Phi-3": Family("phi3", "queries, keys and values in one weight, gate and up too", GROUPED | WINDOW),
    "Mistral": Family("mistral", "grouped queries, a window", GROUPED | WINDOW),
    "OLMo-2": Family("olmo2", "norms after the layers, norms of queries and keys", {}),
    "SmolLM2": Family("llama", "grouped queries, a tied head", GROUPED | TIED),
    "GPT-2": Family("gpt2", "weights held transposed, learned positions, dropout, a tied head", {}),
    "Mixtral": Family("mixtral", "four experts, two for each token", {"num_key_value_heads": 2, "num_local_experts": 4}),
    "Qwen3-MoE": Family(
        "qwen3_moe",
        "four experts, two for each token, norms of queries and keys",
        {
            "num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8,
            "head_dim": 8,
        },
    ),
}  # fmt: skip


class KeptLogits(Callback):
    """Callback that keeps the trained model's logits of some tokens, for the test of its export."""

    tokens = torch.arange(3, 43)[None]
    logits: Tensor

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        model: Any = pl_module.language_model
        KeptLogits.logits = logits_of(model)


def logits_of(model: Any) -> Tensor:
    """The logits of the tokens, in eval mode."""
    with eval_mode(model), torch.no_grad():
        found: Tensor = model(KeptLogits.tokens).logits
    return found


def make_model(family: Family, folder: Path) -> Path:
    """Write a random model and a tokenizer to a folder, and return that."""
    config = AutoConfig.for_model(
        family.architecture,
        **SIZES | {"vocab_size": VOCABULARY, "max_position_embeddings": 256} | family.changes,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                # Biases and norms then differ from 0 and 1.
                parameter.add_(0.05 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    tiny_tokenizer(TOKENS).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class EndToEnd:
    """What runs of a family have found.

    Attributes:
        model: class of the model.
        unmoved: names of weights that a training of all weights left as they were.
        exported: largest difference of a logit of the exported and reloaded model from the one in memory.
        adapted: the same with LoRA adapters, which the export has merged.
        adapters_move: logits with trained adapters differ from those of the model under them.
        evaluated: largest difference of a metric of the exported model, evaluated by `validate`, from the run's last one.
    """

    model: str
    unmoved: list[str]
    exported: float
    adapted: float
    adapters_move: bool
    evaluated: float


def end_to_end(name: str, folder: Path) -> EndToEnd:
    """Train, train adapters, export, reload and evaluate a family through the command line, in an empty folder."""
    source = make_model(FAMILIES[name], folder / "model")
    small = (
        "--config", "smoke.yaml", "--output_dir", str(folder / "runs"), "--data.authors", "2", "--data.evaluation_rows", "2",
        "--data.batch_size", "4", "--forget_quality.max_new_tokens", "4", "--data.max_length", "250",
    )  # fmt: skip
    policy = ("--model.policy", "Pretrained", "--model.policy.path")
    quick = (
        "--trainer.max_steps", "2", "--trainer.num_sanity_val_steps", "0",
        "--trainer.callbacks+", "model_families.KeptLogits",
    )  # fmt: skip
    _run("fit", *small, *policy, source, *quick, "--name", "whole")
    whole = AutoModelForCausalLM.from_pretrained(folder / "runs" / "whole" / "hf")
    exported = _difference(logits_of(whole), KeptLogits.logits)
    before = AutoModelForCausalLM.from_pretrained(source)
    unmoved = [
        each for each, weight in before.named_parameters() if torch.equal(weight, whole.get_parameter(each))
    ]
    _run("validate", *small, *policy, folder / "runs" / "whole" / "hf", "--name", "again")
    last, again = (_last(folder / "runs" / each) for each in ("whole", "again"))
    assert last.keys() == again.keys()
    evaluated = max(abs(last[key] - again[key]) for key in last)
    adapter = ("--config", "lora.yaml", "--model.optimizer.lr", "0.01", "--name", "adapted")
    _run("fit", *small, *policy, source, *quick, *adapter)
    adapted = logits_of(AutoModelForCausalLM.from_pretrained(folder / "runs" / "adapted" / "hf"))
    moved = _difference(adapted, logits_of(before)) > 1e-3
    return EndToEnd(
        type(before).__name__, unmoved, exported, _difference(adapted, KeptLogits.logits), moved, evaluated
    )


def _run(*words: str | Path) -> None:
    code = run([*map(str, words)])
    assert code == 0, f"exit code {code} of {' '.join(map(str, words))}"


def _difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max())


def _last(run_folder: Path) -> dict[str, float]:
    record = json.loads((run_folder / "metrics.jsonl").read_text().splitlines()[-1])
    return {
        name: value
        for name, value in record.items()
        if isinstance(value, float) and name not in ("epoch", "step")
    }
