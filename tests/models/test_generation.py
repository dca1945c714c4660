"""Greedy generation in batches is what a plain loop over whole sequences gives, row for row."""

import pytest
import torch
from tiny_models import ARCHITECTURES, lively_model
from transformers import GenerationConfig

from dipo_pl.errors import InputError
from dipo_pl.models.generation import BURST, generate
from dipo_pl.models.key_value_cache import RESERVE
from dipo_pl.models.lora import LoRA
from dipo_pl.models.tokenizer import train_tokenizer

GEMMA2 = {
    "num_key_value_heads": 2, "query_pre_attn_scalar": 8, "sliding_window": 6, "final_logit_softcapping": 30.0,
}  # fmt: skip
CONTEXT = 128


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["a few words"], 259)


def model_of(family, context=CONTEXT):
    model = lively_model(family, max_position_embeddings=context, **(GEMMA2 if family == "gemma2" else {}))
    # Some of 256 bytes, so that rows end soon and at different times.
    model.generation_config.eos_token_id = list(range(100, 120))
    return model


def prompts_of(lengths):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 259, (length,), generator=generator).tolist() for length in lengths]


@torch.no_grad()
def plain(model, tokenizer, prompt, max_new_tokens, context=CONTEXT):
    """One sequence, unpadded, without a cache; its tokens and whether it came to an end of its own."""
    stops = {tokenizer.eos_token_id, *model.generation_config.eos_token_id}
    ids = list(prompt)
    for _ in range(max(1, min(max_new_tokens, context - len(prompt)))):
        ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] in stops:
            return ids[len(prompt) :], True
    return ids[len(prompt) :], False


def decoded(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=True).strip(" ")


@pytest.mark.parametrize("family", ARCHITECTURES)
@pytest.mark.parametrize("cache_tokens", [1, 300, 10**6])
def test_texts_are_those_of_one_row_at_a_time(tokenizer, family, cache_tokens):
    model = model_of(family)
    prompts = prompts_of([3, 11, 1, 24, 7, 12, 5, 30])
    expected = [plain(model, tokenizer, prompt, 40) for prompt in prompts]
    lengths = [len(ids) for ids, _ in expected]
    # Rows that leave early, and some that outlast a stretch.
    assert min(lengths) <= BURST < max(lengths)
    assert len(set(lengths)) > 2
    texts = generate(model, tokenizer, prompts, 40, cache_tokens)
    assert texts == [decoded(tokenizer, ids) for ids, _ in expected]


@pytest.mark.parametrize("cache_tokens", [1, 10**6])
@pytest.mark.parametrize("family", ARCHITECTURES)
def test_rows_at_the_end_of_the_context_have_a_limit_of_their_own(tokenizer, family, cache_tokens):
    model = model_of(family, context=32)
    model.generation_config.eos_token_id = [1]
    prompts = prompts_of([32, 31, 5, 26, 20])
    expected = [plain(model, tokenizer, prompt, 20, context=32)[0] for prompt in prompts]
    # GPT-2 here says EOS by itself, two tokens earlier than its fourth row must end.
    assert [len(ids) for ids in expected] == [1, 1, 20, 4 if family == "gpt2" else 6, 12]
    texts = generate(model, tokenizer, prompts, 20, cache_tokens)
    assert texts == [decoded(tokenizer, ids) for ids in expected]


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_caches_grow_beyond_their_room(tokenizer, family):
    model = model_of(family, context=512)
    model.generation_config.eos_token_id = [1]
    prompts = prompts_of([9, 2])
    new = 2 * RESERVE + 3
    expected = [decoded(tokenizer, plain(model, tokenizer, each, new, context=512)[0]) for each in prompts]
    assert generate(model, tokenizer, prompts, new) == expected


def test_no_more_tokens_at_a_time_than_the_cache_may_hold(tokenizer, monkeypatch):
    model = model_of("llama")
    generate(model, tokenizer, prompts_of([1]), 1)  # The first call also tries batches.
    shapes = []
    whole = model.generate

    def noted(input_ids, **options):
        shapes.append(tuple(input_ids.shape))
        return whole(input_ids=input_ids, **options)

    monkeypatch.setattr(model, "generate", noted)
    # 3 x (6 + 4), then 1 x (20 + 4) for a fourth would be 4 x 24, then 2 x (20 + 4).
    generate(model, tokenizer, prompts_of([5, 6, 2, 20, 1, 3]), 4, cache_tokens=48)
    assert shapes == [(3, 6), (2, 20), (1, 3)]


def test_each_end_of_the_model_and_of_the_tokenizer_ends_a_row(tokenizer):
    model = model_of("llama")
    (prompt,) = prompts_of([6])
    model.generation_config.eos_token_id = []
    whole, _ = plain(model, tokenizer, prompt, 12)
    place = next(index for index in range(2, 12) if whole[index] not in whole[:index])
    model.generation_config.eos_token_id = [1, whole[place]]
    assert generate(model, tokenizer, [prompt], 12) == [decoded(tokenizer, whole[: place + 1])]
    model.generation_config.eos_token_id = whole[place]
    assert generate(model, tokenizer, [prompt], 12) == [decoded(tokenizer, whole[: place + 1])]
    model.generation_config.eos_token_id = None
    assert generate(model, tokenizer, [prompt], 12) == [decoded(tokenizer, whole)]


def test_the_model_is_left_as_it_was(tokenizer):
    model = model_of("gpt2").train()  # with dropout, which generation must not see
    own = model.generation_config
    own.repetition_penalty, own.num_beams, own.max_length = 5.0, 3, 2
    prompts = prompts_of([4, 9])
    texts = generate(model, tokenizer, prompts, 12)
    assert model.training
    assert model.generation_config is own
    model.eval()
    assert texts == [decoded(tokenizer, plain(model, tokenizer, each, 12)[0]) for each in prompts]


def test_with_adapters(tokenizer):
    model = model_of("llama")
    prompts = prompts_of([4, 9, 2])
    before = generate(model, tokenizer, prompts, 12)
    LoRA(rank=2).apply(model)
    model.eval()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=2.0)
    texts = generate(model, tokenizer, prompts, 12)
    assert texts == [decoded(tokenizer, plain(model, tokenizer, each, 12)[0]) for each in prompts]
    assert texts != before


def test_in_bfloat16(tokenizer):
    """Ties are common in bfloat16, and sums differ with the padding; a row by itself must agree."""
    model = model_of("llama").bfloat16()
    for prompt in prompts_of([4, 9]):
        assert generate(model, tokenizer, [prompt], 6) == [
            decoded(tokenizer, plain(model, tokenizer, prompt, 6)[0])
        ]


@pytest.mark.parametrize(("kind", "in_batches"), [
    ("mamba", False), ("rwkv", False), ("recurrent_gemma", False), ("minimax", False), ("bart", False),
    ("mixtral", True), ("qwen3_next", True), ("deepseek_v3", True), ("opt", True),
])  # fmt: skip
def test_every_architecture_gives_the_texts_of_transformers(tokenizer, caplog, kind, in_batches):
    """In batches where these are right, else one at a time, and that is said once."""
    model = lively_model(kind)
    model.generation_config = GenerationConfig(eos_token_id=list(range(100, 106)))
    prompts = prompts_of([3, 11, 1, 7])
    stops = GenerationConfig(
        do_sample=False, max_new_tokens=12, pad_token_id=1, eos_token_id=[1, *range(100, 106)]
    )
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        whole = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=stops)
        expected.append(decoded(tokenizer, whole[0, len(prompt) :].tolist()))
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        assert generate(model, tokenizer, prompts, 12) == expected
        assert generate(model, tokenizer, prompts[:2], 12) == expected[:2]
    said = [each for each in caplog.messages if each.startswith("answers are generated one at a time: ")]
    assert len(said) == (0 if in_batches else 1)


def test_a_batch_that_ignores_padding_is_noticed(tokenizer, monkeypatch):
    """Though the tokens are those of single prompts: weights this small change none."""
    model = model_of("gpt2")
    whole = model.generate
    shapes = []

    def without_mask(input_ids, attention_mask, **options):
        shapes.append(len(input_ids))
        return whole(input_ids=input_ids, attention_mask=torch.ones_like(attention_mask), **options)

    monkeypatch.setattr(model, "generate", without_mask)
    generate(model, tokenizer, prompts_of([3, 9]), 2)
    # Each alone, both, the one that is left, and from then on each alone.
    assert shapes == [1, 1, 2, 1, 1, 1]


def test_a_model_that_cannot_generate_is_refused_in_a_line(tokenizer, monkeypatch):
    model = model_of("llama")

    def broken(**_):
        raise ValueError("no\ncache")

    monkeypatch.setattr(model, "generate", broken)
    with pytest.raises(
        InputError, match=r"^LlamaForCausalLM cannot generate text \(no cache\): set forget_quality"
    ):
        generate(model, tokenizer, prompts_of([3]), 2)


def test_no_prompts(tokenizer):
    assert generate(model_of("llama"), tokenizer, [], 5) == []
