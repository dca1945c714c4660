"""Greedy generation in batches is what a plain loop over whole sequences gives, row for row."""

from functools import wraps

import pytest
import torch
from tiny_models import ARCHITECTURES, lively_model
from transformers import GenerationConfig

from dipo_pl.errors import InputError
from dipo_pl.models.generation import _gaps, generate
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
    # Rows that leave at different times.
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


@pytest.fixture
def forwards():
    """Call with a model: the shapes of what its decoder is given from then on."""
    hooks = []

    def recorded(model):
        shapes = []

        def note(module, inputs, options):
            ids = inputs[0] if inputs else options["input_ids"]
            shapes.append(tuple(ids.shape))

        hooks.append(model.get_decoder().register_forward_pre_hook(note, with_kwargs=True))
        return shapes

    yield recorded
    for hook in hooks:
        hook.remove()


def test_no_more_tokens_at_a_time_than_the_cache_may_hold(tokenizer, forwards):
    model = model_of("llama")
    generate(model, tokenizer, prompts_of([1]), 1)  # The first call also tries batches.
    shapes = forwards(model)
    # 3 x (6 + 4), then 1 x (20 + 4) for a fourth would be 4 x 24, then 2 x (20 + 4).
    generate(model, tokenizer, prompts_of([5, 6, 2, 20, 1, 3]), 4, cache_tokens=48)
    assert [shape for shape in shapes if shape[1] > 1] == [(3, 6), (2, 20), (1, 3)]


def test_a_row_is_computed_no_longer_than_it_lasts(tokenizer, forwards):
    model = model_of("llama")
    prompts = prompts_of([3, 11, 1, 24, 7, 12, 5, 30])
    lengths = [len(plain(model, tokenizer, prompt, 40)[0]) for prompt in prompts]
    generate(model, tokenizer, prompts_of([1]), 1)
    shapes = forwards(model)
    generate(model, tokenizer, prompts, 40)
    rows = [sum(length > step for length in lengths) for step in range(max(lengths))]
    assert [shape[0] for shape in shapes] == rows
    assert len(set(rows)) > 3


@pytest.mark.parametrize(
    ("family", "once"), [("llama", True), ("gpt2", True), ("gemma2", False), ("mpt", False)]
)
def test_what_all_prompts_begin_with_is_computed_once(tokenizer, forwards, family, once):
    """Unless windows or slopes would count the padding that follows it."""
    model = model_of(family) if family != "mpt" else lively_model(family)
    model.generation_config.eos_token_id = [1]
    system, *questions = prompts_of([9, 3, 6, 1])
    prompts = [system + question for question in questions]
    expected = [decoded(tokenizer, plain(model, tokenizer, each, 12)[0]) for each in prompts]
    generate(model, tokenizer, prompts_of([1]), 1)
    assert _gaps[model] == (family != "mpt")
    shapes = forwards(model)
    assert generate(model, tokenizer, prompts, 12) == expected
    assert shapes[:2] == ([(1, 9), (3, 6)] if once else [(3, 15), (3, 1)])


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_prompt_within_another_and_the_same_twice(tokenizer, family):
    model = model_of(family)
    system, question = prompts_of([9, 3])
    for prompts in ([system, system + question, system], [system, system], [[5], [5, 6]]):
        expected = [decoded(tokenizer, plain(model, tokenizer, each, 12)[0]) for each in prompts]
        assert generate(model, tokenizer, prompts, 12) == expected


@pytest.mark.parametrize("cache_tokens", [1, 10**6])
def test_tokens_that_are_known_are_not_generated_again(tokenizer, forwards, cache_tokens):
    model = model_of("llama")
    prompts = prompts_of([3, 11, 1, 24, 7])
    whole = [plain(model, tokenizer, prompt, 20)[0] for prompt in prompts]
    expected = [decoded(tokenizer, ids) for ids in whole]
    # None, some, all but one, all with the stop token or up to the limit, and more than may be said.
    known = [whole[0][:0], whole[1][:4], whole[2][:-1], whole[3], [*whole[4], 5, 6]]
    ended = []
    texts = generate(model, tokenizer, prompts, 20, cache_tokens, ended.append, known)
    assert texts == expected
    assert sum(ended) == 5
    shapes = forwards(model)
    assert generate(model, tokenizer, prompts[3:], 20, known=known[3:]) == expected[3:]
    assert shapes == []
    assert generate(model, tokenizer, prompts[2:], 20, known=known[2:]) == expected[2:]
    assert shapes == [(1, len(prompts[2]) + len(whole[2]) - 1)]


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


def test_a_batch_that_ignores_padding_is_noticed(tokenizer, monkeypatch, forwards):
    model = model_of("gpt2")
    model.generation_config.eos_token_id = [1]
    decoder = model.get_decoder()
    whole = decoder.forward

    @wraps(whole)
    def without_mask(*arguments, attention_mask=None, **options):
        unpadded = None if attention_mask is None else torch.ones_like(attention_mask)
        return whole(*arguments, attention_mask=unpadded, **options)

    monkeypatch.setattr(decoder, "forward", without_mask)
    shapes = forwards(model)
    generate(model, tokenizer, prompts_of([3, 9]), 2)
    # The two are never in a batch, but those of the trials are.
    assert shapes[-4:] == [(1, 3), (1, 1), (1, 9), (1, 1)]
    assert (2, 7) in shapes
    assert _gaps[model] is None


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
