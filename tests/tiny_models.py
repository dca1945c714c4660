"""One factory of the tiny random models and tokenizers that tests use, of every architecture with a property of its own."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from dipo_pl.models.lora import LoRA
from dipo_pl.models.tokenizer import train_tokenizer

TEXTS = ("Who wrote the book? She wrote the book.", "Where was she born? She was born there.")
SIZES = {
    "vocab_size": 61, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip
ARCHITECTURES: dict[str, dict[str, Any]] = {
    # Grouped queries, an untied head.
    "llama": {"num_key_value_heads": 1},
    # Weights held transposed, a tied head, dropout, learned positions.
    "gpt2": {},
    # Biases everywhere, in the head too.
    "phi": {},
    # A soft cap that small logits feel, alternating attention windows, a tied head.
    "gemma2": {"num_key_value_heads": 1, "head_dim": 8, "final_logit_softcapping": 0.5},
    # Biases of queries, keys and values, a tied head.
    "qwen2": {"num_key_value_heads": 1, "tie_word_embeddings": True},
}
# Only for what few tests need.
FURTHER: dict[str, dict[str, Any]] = {
    "granite": {"num_key_value_heads": 1, "logits_scaling": 8.0},
    "cohere": {"num_key_value_heads": 1, "logit_scale": 0.0625},
    "mixtral": {"num_key_value_heads": 2, "num_local_experts": 4},
    # A router that is a linear layer and returns a tuple, noise of its own in train mode.
    "phimoe": {"num_key_value_heads": 2, "num_local_experts": 4},
    # Experts that all tokens share beside those in one tensor; a recurrent layer.
    "qwen3_next": {
        "num_key_value_heads": 2,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 8,
        "head_dim": 8,
        "shared_expert_intermediate_size": 8,
        "linear_num_value_heads": 2,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "deepseek_v3": {
        "num_key_value_heads": 2,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 8,
        "n_shared_experts": 2,
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
    },
    # Experts held transposed.
    "gpt_oss": {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
    # A router that is a linear layer within a module beside the experts.
    "jetmoe": {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2, "kv_channels": 8},
    # Recurrent, with caches of their own; a layer whose weights are read past its forward pass.
    "mamba": {"state_size": 4},
    "rwkv": {"attention_hidden_size": 16, "context_length": 64},
    "recurrent_gemma": {
        "num_hidden_layers": 3,
        "num_key_value_heads": 1,
        "lru_width": 16,
        "head_dim": 8,
        "attention_window_size": 16,
        "block_types": ["recurrent", "recurrent", "attention"],
    },
    "minimax": {
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "head_dim": 8,
        "block_size": 4,
        "layer_types": ["linear_attention", "full_attention"],
    },
    # The decoder of an encoder-decoder model, with positions that count padding.
    "bart": {
        "d_model": 16,
        "decoder_layers": 2,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 32,
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
    },
    # Slopes that count the places between two tokens, padding too.
    "mpt": {"expansion_ratio": 2},
    # Dropout in the layers themselves, and whole layers dropped.
    "opt": {"ffn_dim": 32, "word_embed_proj_dim": 16, "layerdrop": 0.5},
    # Says that its decoder is the whole model.
    "llama4_text": {
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "head_dim": 8,
        "intermediate_size_mlp": 32,
    },
}


def tiny_config(kind: str = "llama", **changes: Any) -> PreTrainedConfig:
    """Return the configuration of an architecture; `changes` are its own names or those of `SIZES`."""
    config: PreTrainedConfig = AutoConfig.for_model(kind, **SIZES | (ARCHITECTURES | FURTHER)[kind] | changes)
    return config


def tiny_model(
    kind: str = "llama",
    seed: int = 0,
    spread: float = 0.0,
    dtype: torch.dtype = torch.float32,
    **changes: Any,
) -> PreTrainedModel:
    """Return a model in eval mode that depends on the arguments only.

    Args:
        kind: architecture.
        seed: seed of the weights.
        spread: standard deviation of noise on all parameters: also biases and norms then differ from 0 and 1.
        dtype: of the parameters, rounded from float32.
        changes: see `tiny_config`.
    """
    with torch.random.fork_rng(), torch.device("cpu"):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(tiny_config(kind, **changes))
        if spread:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(spread * torch.randn(parameter.shape))
    return model.to(dtype).eval()


def lively_model(kind: str = "llama", **changes: Any) -> PreTrainedModel:
    """Return a model of 259 tokens, in eval mode, whose weights are so large that no token follows another for ever."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            tiny_config(kind, vocab_size=259, **changes)
        )
        for weight in model.parameters():
            if weight.ndim == 2:
                torch.nn.init.normal_(weight, std=0.4)
    return model.eval()


@cache
def tiny_tokenizer(vocab_size: int = 280) -> PreTrainedTokenizerBase:
    """Return a byte-level BPE tokenizer with BOS 0, EOS 1 and padding 2; not to be changed."""
    return train_tokenizer(TEXTS, vocab_size)


def save_tiny_model(folder: Path, kind: str = "llama", vocab_size: int = 280, **options: Any) -> Path:
    """Write a model and its tokenizer to a folder, and return that."""
    tiny_model(kind, vocab_size=vocab_size, **options).save_pretrained(folder)
    tiny_tokenizer(vocab_size).save_pretrained(folder)
    return folder


def adapters(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    """Return the parameters of the adapters by name."""
    return {name: each for name, each in model.named_parameters() if "lora_" in name}


def adapted_model(
    kind: str = "llama", dtype: torch.dtype = torch.float32, trained: bool = True, **options: Any
) -> PreTrainedModel:
    """Return `tiny_model(kind, spread=0.1, dtype=dtype)` with LoRA adapters, in train mode.

    Args:
        kind: architecture.
        dtype: of the weights under the adapters.
        trained: fill B, which starts at 0, with noise.
        options: of LoRA; rank 3 and alpha 12 by default.
    """
    model = tiny_model(kind, spread=0.1, dtype=dtype)
    LoRA(**{"rank": 3, "alpha": 12.0} | options).apply(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapters(model).items():
            if trained and "lora_B" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.train()
