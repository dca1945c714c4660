"""Checkpoints on disk in the shapes of the field's models go through fit and validate."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from dipo_pl.data_modules.fictitious_authors import fictitious_rows
from dipo_pl.models.tokenizer import train_tokenizer

TEXTS = [row[key] for row in fictitious_rows(4) for key in ("question", "answer")]
LLAMA = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}

LLAMA3_TEMPLATE = (
    "{{ '<|begin_of_text|>' }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


def llama3_tokenizer() -> PreTrainedTokenizerFast:
    """No BOS of its own accord, a chat template, and pad = EOS = <|eot_id|>, which stands inside prompts too."""
    base = train_tokenizer(TEXTS, 400)
    tokenizer = Tokenizer.from_str(base.backend_tokenizer.to_str())
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    specials = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    made.add_special_tokens({"additional_special_tokens": specials})
    made.bos_token, made.eos_token, made.pad_token = specials[0], "<|eot_id|>", "<|eot_id|>"
    made.chat_template = LLAMA3_TEMPLATE
    return made


def gpt2_tokenizer() -> PreTrainedTokenizerFast:
    """Neither BOS nor pad: one token ends everything."""
    trained = train_tokenizer(TEXTS, 400).backend_tokenizer
    vocabulary = json.loads(trained.to_str())["model"]
    bare = Tokenizer(models.BPE(vocabulary["vocab"], [tuple(merge) for merge in vocabulary["merges"]]))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = trained.decoder
    return PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="</s>")


FAMILIES = {
    "llama2": ("llama", LLAMA | {"max_position_embeddings": 256}, lambda: train_tokenizer(TEXTS, 400), "Llama2Chat"),
    "llama3": ("llama", LLAMA | {"num_key_value_heads": 1, "tie_word_embeddings": True}, llama3_tokenizer,
               "ChatTemplate"),
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128}, gpt2_tokenizer, "QuestionAnswer"),
    "phi": ("phi", LLAMA | {"max_position_embeddings": 256}, lambda: train_tokenizer(TEXTS, 400), "QuestionAnswer"),
}  # fmt: skip


def make_checkpoint(family: str, folder: Path) -> str:
    kind, values, tokenizer_of, prompt = FAMILIES[family]
    tokenizer = tokenizer_of()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(kind, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **values)
    )
    if family == "gpt2":
        # GPT-2's logits are all far below zero: a shift along one direction, which softmax does not see.
        with torch.no_grad():
            model.transformer.ln_f.bias += 3.0
            model.lm_head.weight -= 0.5
    if family == "phi":
        torch.nn.init.normal_(model.lm_head.bias)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return prompt


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpoint_goes_through_fit_and_validate(cli, family):
    prompt = make_checkpoint(family, Path(family))
    base = (
        "--config", "smoke.yaml", "--model.policy", "Pretrained", "--model.policy.path", family, "--data.prompt",
        prompt,
    )  # fmt: skip
    fitted = cli("fit", *base)
    assert fitted.code == 0, fitted.err
    trained = [json.loads(line) for line in Path("runs/smoke/metrics.jsonl").read_text().splitlines()]
    measured = cli("validate", *base)
    assert measured.code == 0, measured.err
    start = json.loads(Path("runs/smoke-validate/metrics.jsonl").read_text())
    assert start == trained[0]
    before, after = (AutoModelForCausalLM.from_pretrained(each) for each in (family, "runs/smoke/hf"))
    unmoved = [
        name for name, each in before.named_parameters() if torch.equal(each, after.get_parameter(name))
    ]
    assert unmoved == []


def test_gpt2_like_logits_are_negative_and_forgotten_all_the_same(cli):
    """The raw memory vector refuses there; the centred one lowers the forget answers' probability."""
    make_checkpoint("gpt2", Path("gpt2"))
    model = AutoModelForCausalLM.from_pretrained("gpt2")
    assert bool((model(torch.arange(10)[None]).logits < 0).all())
    base = ("fit", "--config", "smoke.yaml", "--model.policy", "Pretrained", "--model.policy.path", "gpt2")
    raw = cli(*base, "--model.constructor.center", "false", "--name", "raw")
    assert raw.code == 2
    assert "Set center to true" in raw.errors[0]
