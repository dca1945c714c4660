"""The fused update is torch's default to float rounding, in every training, and where it is not it is not chosen."""

import copy

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.optim import SGD, Adam, AdamW
from training import batches, model, train, unlearning

from dipo_pl.losses import NPO, CrossEntropy
from dipo_pl.models.from_config import FromConfig
from dipo_pl.models.lora import LoRA
from dipo_pl.modules.finetuning import FineTuning
from dipo_pl.modules.fused_update import fused_update
from dipo_pl.steps.gradient_rectified import GradientRectified
from dipo_pl.steps.sharpness_aware import SharpnessAware

# With remainders beside whole vectors.
SHAPES = ((7, 13), (1,), (64, 3), (5,))


def parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def steps(optimizer, count, seed=1):
    """Steps, in every second of which the last weight has no gradient; the first one is among these."""
    generator = torch.Generator().manual_seed(seed)
    for number in range(count):
        for group in optimizer.param_groups:
            for each in group["params"]:
                drawn = torch.randn(each.shape, generator=generator).to(each.dtype)
                each.grad = None if each.shape == SHAPES[-1] and number % 2 == 0 else drawn
        optimizer.step()


@pytest.mark.parametrize(
    ("kind", "options"), [(AdamW, {"weight_decay": 0.1}), (Adam, {}), (AdamW, {"amsgrad": True})]
)
def test_weights_and_moments_are_those_of_the_default(kind, options):
    (ours, fused), (theirs, plain) = (
        (weights, kind(weights, lr=1e-2, **options)) for weights in (parameters(), parameters())
    )
    fused_update(fused)
    assert [group["fused"] for group in fused.param_groups] == [True]
    steps(fused, 6)
    steps(plain, 6)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(fused.state[one], plain.state[two], rtol=1e-6, atol=1e-8)


def test_bfloat16_weights_are_rounded_once():
    ours = parameters(torch.bfloat16)
    whole = [nn.Parameter(each.detach().float()) for each in ours]
    optimizers = fused_update(AdamW(ours, lr=1e-2)), AdamW(whole, lr=1e-2)
    gradients = [torch.randn_like(each) for each in ours]
    for weights in (ours, whole):
        for each, gradient in zip(weights, gradients, strict=True):
            each.grad = gradient.to(each.dtype)
    for each in optimizers:
        each.step()
    assert all(torch.equal(one, two.bfloat16()) for one, two in zip(ours, whole, strict=True))


class OwnAdamW(AdamW):
    pass


def strided():
    return [*parameters(), nn.Parameter(torch.zeros(4, 6)[:, ::2])]


@pytest.mark.parametrize("make", [
    lambda: AdamW(parameters(), fused=False),
    lambda: AdamW(parameters(), foreach=True),
    lambda: Adam(parameters(), foreach=False),
    lambda: AdamW(parameters(), differentiable=True),
    lambda: AdamW([{"params": parameters(), "foreach": False}]),
    lambda: SGD(parameters(), lr=0.1, momentum=0.9),
    lambda: OwnAdamW(parameters()),
    lambda: AdamW([nn.Parameter(torch.zeros(2, device="meta"))]),
    lambda: AdamW(strided()),
], ids=["fused", "foreach", "no foreach", "differentiable", "group", "SGD", "own class", "device", "layout"])  # fmt: skip
def test_what_is_named_or_not_supported_stays(make):
    optimizer = make()
    before = [dict(group) for group in optimizer.param_groups]
    assert fused_update(optimizer) is optimizer
    assert [
        {name: group[name] for name in ("fused", "foreach")} for group in optimizer.param_groups
    ] == [{name: group[name] for name in ("fused", "foreach")} for group in before]  # fmt: skip


@pytest.mark.parametrize("began_fused", [False, True])
def test_a_loaded_state_goes_on_with_the_update_that_it_began_with(began_fused):
    """One of a version without the fused update too, bitwise."""
    weights = parameters()
    straight = AdamW(weights, lr=1e-2)
    if began_fused:
        fused_update(straight)
    steps(straight, 3)
    saved = copy.deepcopy((weights, straight.state_dict()))
    steps(straight, 2, seed=2)
    resumed = fused_update(AdamW(saved[0], lr=1e-2))
    resumed.load_state_dict(saved[1])
    assert [group["fused"] for group in resumed.param_groups] == [True if began_fused else None]
    steps(resumed, 2, seed=2)
    assert all(torch.equal(one, two) for one, two in zip(saved[0], weights, strict=True))


def fine_tuning(**options):
    module = FineTuning(FromConfig({"model_type": "llama"}), **options)
    module.model = model()
    return module


def adapted(**options):
    torch.manual_seed(0)
    policy = model()
    LoRA(rank=2, alpha=4.0).apply(policy)
    return unlearning(None, NPO(), CrossEntropy(), policy=policy.train(), **options)


MODULES = {
    "unlearning": lambda **options: unlearning(None, NPO(), CrossEntropy(), **options),
    "sam": lambda **options: unlearning(SharpnessAware(0.5), NPO(), CrossEntropy(), **options),
    "gru": lambda **options: unlearning(GradientRectified(), NPO(), CrossEntropy(), **options),
    "LoRA": adapted,
    "fine-tuning": fine_tuning,
}
MIXED = {
    "32-true": dict,
    "bf16-mixed": lambda: {"plugins": [MixedPrecision("bf16-mixed", "cpu")]},
    "16-mixed": lambda: {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", 2.0**10))]},
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "precision"),
    [*((name, "32-true") for name in MODULES), ("unlearning", "bf16-mixed"), ("unlearning", "16-mixed")],
)
def test_a_training_ends_where_it_does_without(name, precision):
    """With accumulated and clipped gradients; those of 16-mixed are unscaled before."""
    ended = []
    for fused in (None, False):
        module = MODULES[name](optimizer=lambda weights, fused=fused: AdamW(weights, lr=1e-3, fused=fused))
        recorder = train(module, batches(module, [2, 3, 1, 2]), 2, clip=0.1, **MIXED[precision]())
        groups = module.trainer.optimizers[0].param_groups
        assert [group["fused"] for group in groups] == [fused is None]
        ended.append(recorder.weights)
    for ours, theirs in zip(*ended, strict=True):
        # A step is up to 1e-3, also where rounding is much of a gradient.
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=1e-6)
