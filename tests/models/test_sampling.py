"""Sampled texts are those of a plain loop with the same random numbers, and distributed as transformers samples."""

import bisect
import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from tiny_models import ARCHITECTURES, lively_model, tiny_model
from transformers import GenerationConfig, TemperatureLogitsWarper, TopPLogitsWarper

from dipo_pl.errors import InputError, TrainingError
from dipo_pl.models import generation
from dipo_pl.models.generation import sample
from dipo_pl.models.sampling import Sampling
from dipo_pl.models.tokenizer import train_tokenizer

STOPS = list(range(100, 120))


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["a few words"], 259)


def model_of(family, context=128):
    model = lively_model(family, max_position_embeddings=context)
    model.generation_config.eos_token_id = STOPS
    return model


def prompts_of(lengths):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 259, (length,), generator=generator).tolist() for length in lengths]


def plain_token(logits, u, temperature, top_p):
    """Add probabilities up until they pass u, in Python's own numbers."""
    largest = max(logits)
    weights = [math.exp((each - largest) / temperature) for each in logits]
    total = math.fsum(weights)
    p = [each / total for each in weights]
    kept, mass = [], 0.0
    for token in sorted(range(len(p)), key=lambda each: -p[each]):
        if mass >= top_p:
            break
        kept.append(token)
        mass += p[token]
    kept.sort()
    sums = list(itertools.accumulate(p[token] for token in kept))
    return kept[bisect.bisect_right(sums, u * sums[-1])]


@torch.no_grad()
def plain(model, prompt, tokens, seed, row, place, temperature=1.0, top_p=1.0):
    """One sample: whole sequences, unpadded, without a cache."""
    numbers = np.random.default_rng([seed, row, place]).random(tokens)
    ids = list(prompt)
    for u in numbers:
        logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
        ids.append(plain_token(logits.tolist(), u, temperature, top_p))
        if ids[-1] in (1, *STOPS):
            break
    return ids[len(prompt) :]


def decoded(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=True).strip(" ")


@pytest.mark.parametrize("family", [*ARCHITECTURES, "mamba"])
def test_texts_are_those_of_a_plain_loop_with_the_same_numbers(tokenizer, family):
    """In a batch with a shared cache, and for recurrent models one at a time."""
    model = model_of(family)
    prompts = prompts_of([7, 1, 12])
    sampling = Sampling(5, temperature=1.3, top_p=0.95, seed=3)
    texts = sample(model, tokenizer, prompts, 20, sampling, rows=[4, 0, 9])
    expected = [
        [plain(model, prompt, 20, 3, row, place, 1.3, 0.95) for place in range(5)]
        for prompt, row in zip(prompts, [4, 0, 9], strict=True)
    ]
    assert texts == [[decoded(tokenizer, ids) for ids in some] for some in expected]
    lengths = [len(ids) for some in expected for ids in some]
    assert len(set(lengths)) > 2


def test_a_sample_does_not_depend_on_what_else_is_sampled(tokenizer):
    model = model_of("llama")
    prompts = prompts_of([5, 9, 3])
    sampling = Sampling(6, seed=1)
    whole = sample(model, tokenizer, prompts, 24, sampling, rows=[0, 1, 2])
    assert sample(model, tokenizer, prompts[::-1], 24, sampling, rows=[2, 1, 0]) == whole[::-1]
    assert sample(model, tokenizer, prompts[1:2], 24, sampling, rows=[1]) == whole[1:2]
    # Fewer samples are the first ones, and smaller batches hold the same ones.
    fewer = sample(model, tokenizer, prompts, 24, Sampling(2, seed=1), rows=[0, 1, 2])
    assert fewer == [some[:2] for some in whole]
    assert sample(model, tokenizer, prompts, 24, sampling, [0, 1, 2], cache_tokens=70) == whole
    assert len({text for some in whole for text in some}) > 15
    assert sample(model, tokenizer, prompts, 24, Sampling(6, seed=2), rows=[0, 1, 2]) != whole
    assert sample(model, tokenizer, prompts[:1], 24, sampling, rows=[7])[0] != whole[0]


def test_a_prompt_is_computed_once_for_all_samples(tokenizer, monkeypatch):
    model = model_of("llama")
    model.generation_config.eos_token_id = [1]
    sample(model, tokenizer, prompts_of([2]), 1, Sampling(), rows=[0])  # The first call also tries batches.
    tokens = []
    hook = model.model.register_forward_pre_hook(
        lambda module, inputs, options: tokens.append(tuple(options["input_ids"].shape)), with_kwargs=True
    )
    sample(model, tokenizer, prompts_of([11]), 3, Sampling(4), rows=[0])
    hook.remove()
    assert tokens == [(1, 10), (4, 1), (4, 1), (4, 1)]


def test_no_more_tokens_at_a_time_than_the_cache_may_hold(tokenizer, monkeypatch):
    model = model_of("gpt2")
    sizes = []
    whole = generation.completed

    def noted(*arguments, **options):
        sizes.append(len(arguments[1]))
        return whole(*arguments, **options)

    sample(model, tokenizer, prompts_of([2]), 1, Sampling(), rows=[0])
    monkeypatch.setattr(generation, "completed", noted)
    sample(model, tokenizer, prompts_of([6, 30]), 4, Sampling(5), rows=[0, 1], cache_tokens=20)
    # Two samples of 6 + 4 tokens at a time, and one of 30 + 4.
    assert sizes == [2, 2, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (1.7, 0.8), (1.0, 0.55)])
def test_tokens_are_distributed_as_transformers_samples_them(temperature, top_p):
    logits = torch.tensor([1.2, 0.3, -0.7, 2.0, 0.9, -2.5, 0.1])
    warped = TopPLogitsWarper(top_p)(None, TemperatureLogitsWarper(temperature)(None, logits[None].clone()))
    p = warped.softmax(-1)[0].double().numpy()
    count = 20_000
    numbers = torch.from_numpy(np.random.default_rng(0).random(count))
    chosen = Sampling(1, temperature, top_p).choose(logits.expand(count, -1), numbers)
    found = np.bincount(chosen.numpy(), minlength=len(p))
    assert found[p == 0].sum() == 0
    assert chisquare(found[p > 0], count * p[p > 0] / p.sum()).pvalue > 0.01
    # The test can tell: from another temperature or share it would be rejected.
    other = (logits / (temperature * 1.15)).softmax(-1).double().numpy()
    kept = other[p > 0] / other[p > 0].sum()
    assert chisquare(found[p > 0], count * kept).pvalue < 0.01


def test_texts_of_a_model_are_distributed_as_its_probabilities(tokenizer):
    """Over all pairs of the first two tokens of a model of five tokens."""
    model = tiny_model("llama", spread=0.4, vocab_size=5)
    model.generation_config.eos_token_id = [1]
    prompt = [3, 4, 2]
    with torch.no_grad():
        first = model(torch.tensor([prompt])).logits[0, -1].double().softmax(-1)
        second = [
            model(torch.tensor([[*prompt, token]])).logits[0, -1].double().softmax(-1) for token in range(5)
        ]
    # Token 1 ends a text at once.
    expected = {(1,): float(first[1])}
    expected |= {(one, two): float(first[one] * second[one][two]) for one in (0, 2, 3, 4) for two in range(5)}

    class Spelled:
        eos_token_id = 1

        def batch_decode(self, new, **options):
            return [" ".join(map(str, ids)) for ids in new]

    (texts,) = sample(model, Spelled(), [prompt], 2, Sampling(4000, seed=5), rows=[0])
    found = Counter(tuple(map(int, text.split())) for text in texts)
    assert found.keys() <= expected.keys()
    counts = [found[each] for each in expected]
    assert chisquare(counts, [4000 * each for each in expected.values()]).pvalue > 0.01


def test_numbers_at_both_ends_choose_tokens_that_are_possible():
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]])
    choose = Sampling().choose
    assert choose(logits, torch.tensor([0.0], dtype=torch.float64)).tolist() == [1]
    assert choose(logits, torch.tensor([1 - 2**-53], dtype=torch.float64)).tolist() == [2]
    # Sums of shares that do not add up to 1.
    many = torch.randn(1, 50_000, generator=torch.Generator().manual_seed(0))
    many[:, -3:] = -torch.inf
    assert choose(many, torch.tensor([1 - 2**-53], dtype=torch.float64)) < 49_997
    assert Sampling(top_p=1e-9).choose(torch.tensor([[0.0, 2.0, 1.0]]), torch.tensor([0.9])).tolist() == [1]


def test_one_settings_object_leaves_the_model_as_it_was(tokenizer):
    model = model_of("gpt2").train()
    own = model.generation_config
    own.repetition_penalty, own.do_sample, own.top_k = 5.0, True, 1
    texts = sample(model, tokenizer, prompts_of([4]), 6, Sampling(2), rows=[0])
    assert model.training
    assert model.generation_config is own
    model.eval()
    assert texts == [[decoded(tokenizer, plain(model, prompts_of([4])[0], 6, 0, 0, k)) for k in range(2)]]


def test_no_prompts(tokenizer):
    assert sample(model_of("llama"), tokenizer, [], 5, Sampling(), rows=[]) == []


@pytest.mark.parametrize("family", ["llama", "mamba"])
def test_broken_weights_are_named(tokenizer, family):
    model = model_of(family)
    model.generation_config = GenerationConfig(eos_token_id=1)
    sample(model, tokenizer, prompts_of([2]), 1, Sampling(), rows=[0])
    torch.nn.init.constant_(model.get_output_embeddings().weight, math.nan)
    with pytest.raises(TrainingError, match="logits are not finite while texts are sampled"):
        sample(model, tokenizer, prompts_of([3]), 2, Sampling(), rows=[0])


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"samples": 0}, r"samples must be at least 1 \(got 0\)"),
        ({"temperature": 0.0}, r"temperature must be a finite number > 0 \(got 0.0\)"),
        ({"temperature": math.nan}, "temperature must be a finite number"),
        ({"top_p": 0.0}, r"top_p must be a share in \(0, 1\] \(got 0.0\)"),
        ({"top_p": 1.1}, r"top_p must be a share in \(0, 1\] \(got 1.1\)"),
        ({"seed": -1}, r"seed must be at least 0 \(got -1\)"),
    ],
)
def test_settings_out_of_range_are_refused(values, line):
    with pytest.raises(InputError, match=line):
        Sampling(**values)
