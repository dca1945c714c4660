"""Small GGUF files of Llamas, as llama.cpp's converter writes them."""

import json
import zlib
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tiny_models import tiny_model, tiny_tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Rows are of whole blocks of 32 weights.
SIZES = {
    "vocab_size": 280, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
LAYER = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
# Offsets of the float16 scales in a block of a K-quant; all other bytes may have any value.
SCALES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<s>' + message['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>' }}{% endif %}"
)


def llama(**changes: Any) -> PreTrainedModel:
    """Return a Llama whose norms differ from 1 too."""
    return tiny_model("llama", spread=0.05, **SIZES | changes)


def write_gguf(
    path: Path,
    model: PreTrainedModel | None = None,
    kind: str = "Q8_0",
    chat_template: str | None = CHAT_TEMPLATE,
    leave_out: str | None = None,
    further: dict[str, tuple[np.ndarray, Any]] | None = None,
    parts: int = 1,
) -> Path:
    """Write a model with `tiny_tokenizer`, and return the path.

    Args:
        path: the file.
        model: a Llama of `SIZES`; `llama()` by default.
        kind: type of the matrices; vectors are F32.
        chat_template: of the tokenizer.
        leave_out: GGUF name of a tensor that is missing.
        further: tensors by GGUF name, each with its raw type.
        parts: number of files that the model is said to be split into.
    """
    model = llama() if model is None else model
    path.parent.mkdir(parents=True, exist_ok=True)
    config: Any = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Nonsense Name")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    if parts > 1:
        writer.add_uint16("split.count", parts)
    _add_tokenizer(writer, tiny_tokenizer(), chat_template)
    for name, weight in model.state_dict().items():
        stem, _, end = name.rpartition(".")
        if config.tie_word_embeddings and stem == "lm_head":
            continue
        found = OUTER.get(stem)
        if found is None:
            layer, _, part = stem.removeprefix("model.layers.").partition(".")
            found = f"blk.{layer}.{LAYER[part]}"
        stored, raw = _quantized(weight.numpy(), kind)
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
        if (count := heads.get(found.rpartition(".")[2])) is not None:
            stored = _interleaved(stored, count)
        if f"{found}.{end}" != leave_out:
            writer.add_tensor(f"{found}.{end}", stored, raw_dtype=raw)
    for name, (values, raw) in (further or {}).items():
        writer.add_tensor(name, values, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def dequantized(weight: Any, kind: str) -> np.ndarray:
    """Return what is left of a weight, by the package gguf alone."""
    result: np.ndarray = gguf.dequantize(*_quantized(weight.numpy(), kind))
    return result


def _quantized(values: np.ndarray, kind: str) -> tuple[np.ndarray, gguf.GGMLQuantizationType]:
    raw = gguf.GGMLQuantizationType[kind if values.ndim > 1 else "F32"]
    return (_k_blocks(values, kind) if raw.name in SCALES else gguf.quantize(values, raw)), raw


def _k_blocks(values: np.ndarray, kind: str) -> np.ndarray:
    """Return blocks that stand for a matrix of this shape: the package can read K-quants and not write them."""
    weights, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    generator = np.random.default_rng(zlib.crc32(values.tobytes()))
    blocks = generator.integers(0, 256, (len(values), values.shape[1] // weights, size), dtype=np.uint8)
    for offset in SCALES[kind]:
        scales = generator.uniform(1e-4, 1e-3, (*blocks.shape[:2], 1)).astype(np.float16)
        blocks[..., offset : offset + 2] = scales.view(np.uint8)
    return blocks.reshape(len(values), -1)


def _interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Return rows in llama.cpp's order: those that are rotated together next to each other."""
    size = len(weight) // heads
    order = [
        head * size + half * size // 2 + each
        for head in range(heads)
        for each in range(size // 2)
        for half in (0, 1)
    ]
    return weight[order]


def _add_tokenizer(writer: Any, tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> None:
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    special = set(tokenizer.all_special_tokens)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if each in special else 1 for each in tokens])
    writer.add_token_merges([" ".join(each) for each in merges])
    writer.add_add_bos_token(True)
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
