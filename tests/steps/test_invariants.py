"""What a scheme does not depend on: how a step is divided, mixed precision, activations that are computed again."""

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from scheme_loop import length
from training import batches, largest_difference, model, sequence, train, unlearning

from dipo_pl.batch import collate
from dipo_pl.losses import (
    KTO,
    NPO,
    CrossEntropy,
    DiPO,
    DiPORetain,
    ReferenceKL,
)
from dipo_pl.losses.base import Loss
from dipo_pl.models.lora import LoRA
from dipo_pl.steps.gradient_rectified import GradientRectified
from dipo_pl.steps.joint import JointStep
from dipo_pl.steps.sharpness_aware import SharpnessAware

SCHEMES = {"joint": JointStep, "sam": lambda: SharpnessAware(0.5), "gru": GradientRectified}
every_scheme = pytest.mark.parametrize("scheme", SCHEMES)


class MeanAscent(Loss):
    """Gradient ascent whose mean is over sequences, so that batches of equal numbers of rows weigh the same."""

    def terms(self, logits, targets, reference_logits):
        return logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]

    def sequence_loss(self, sums, lengths):
        return sums / lengths


def together(batch_list, module):
    """The rows of some batches in one."""
    numbers = {kind: [] for kinds in module.sections.values() for kind in kinds}
    for batch in batch_list:
        for kind, rows in batch.rows.items():
            numbers[kind] += rows
    sequences = {kind: [sequence(kind, row) for row in rows] for kind, rows in numbers.items()}
    return collate(sequences, [row for rows in numbers.values() for row in rows], module.sections)


@every_scheme
@pytest.mark.parametrize("retain", [ReferenceKL(), DiPORetain(0.3)], ids=["KL", "DiPO"])
def test_accumulated_batches_are_the_big_batch(scheme, retain):
    losses = (MeanAscent(), retain)
    split, whole = (unlearning(SCHEMES[scheme](), *losses) for _ in range(2))
    parts = batches(split, [2] * 6)
    ours = train(split, parts, accumulate=3)
    theirs = train(whole, [together(parts[:3], whole), together(parts[3:], whole)])
    assert len(ours.weights) == len(theirs.weights) == 2
    for number in range(2):
        assert largest_difference(ours.gradients[number], theirs.gradients[number]) < 1e-5
        assert largest_difference(ours.weights[number], theirs.weights[number]) < 1e-5


def same_rows(module):
    """Batches whose retain rows are their forget rows."""
    rows = [sequence("forget", row) for row in range(4)]
    return [collate({"forget": rows, "retain": rows}, [*range(4)] * 2, module.sections)]


def test_a_rectified_forget_gradient_has_nothing_of_the_retain_gradient():
    """With a retain weight of 0 it is all there is; without rectifying it is nearly the opposite of the retain gradient."""
    rectified, plain = (
        unlearning(step, MeanAscent(), CrossEntropy(), retain_weight=0.0)
        for step in (GradientRectified(), None)
    )
    retain = unlearning(None, CrossEntropy(), None)
    found, before = (train(each, same_rows(each)).gradients[0] for each in (rectified, plain))
    kept = train(retain, [each.only(["forget"]) for each in same_rows(rectified)]).gradients[0]

    def cosine(gradient):
        return (
            sum(float((gradient[name] * each).sum()) for name, each in kept.items())
            / length(gradient)
            / length(kept)
        )

    assert cosine(before) < -0.5
    assert abs(cosine(found)) < 1e-4
    assert length(found) == pytest.approx(length(before) * (1 - cosine(before) ** 2) ** 0.5, rel=1e-3)


def test_gradients_of_one_mind_are_left_as_they_are():
    ours, theirs = (unlearning(step, MeanAscent(), MeanAscent()) for step in (GradientRectified(), None))
    gradients = [train(each, same_rows(each)).gradients[0] for each in (ours, theirs)]
    assert largest_difference(*gradients) < 1e-5


def lora(checkpointing=False):
    policy = model()
    LoRA(rank=2, alpha=4.0).apply(policy)
    if checkpointing:
        policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        policy.enable_input_require_grads()
    return policy.train()


@every_scheme
@pytest.mark.parametrize(
    "losses", [(DiPO(0.3), DiPORetain(0.3)), (KTO(0.3), CrossEntropy())], ids=["DiPO", "KTO"]
)
def test_activations_that_are_computed_again_change_nothing(scheme, losses):
    """With adapters, whose weights alone have a gradient."""
    kept, again = (
        unlearning(SCHEMES[scheme](), *losses, policy=lora(checkpointing)) for checkpointing in (False, True)
    )
    ours, theirs = (train(each, batches(each, [2, 2]), 2) for each in (again, kept))
    assert all("lora_" in name for name in ours.gradients[0])
    assert all(torch.equal(ours.weights[0][name], each) for name, each in theirs.weights[0].items())


def mixed(kind, scale=2.0**10):
    scaler = torch.amp.GradScaler("cpu", init_scale=scale) if kind == "16-mixed" else None
    return {"plugins": [MixedPrecision(kind, "cpu", scaler)]}


@every_scheme
@pytest.mark.parametrize("kind", ["bf16-mixed", "16-mixed"])
def test_mixed_precision_rounds_and_no_more(scheme, kind):
    """A loss scaler's factor is in no direction, no coefficient and no gradient."""
    ours, theirs = (unlearning(SCHEMES[scheme](), NPO(), CrossEntropy()) for _ in range(2))
    half = train(ours, batches(ours, [2, 3, 1, 2]), 2, **mixed(kind))
    full = train(theirs, batches(theirs, [2, 3, 1, 2]), 2)
    limit = {"bf16-mixed": 0.08, "16-mixed": 0.01}[kind]
    assert largest_difference(half.gradients[0], full.gradients[0]) < limit
    assert all(each.dtype == torch.float32 for each in half.weights[0].values())


@every_scheme
def test_a_step_that_a_loss_scaler_skips_leaves_the_weights_bitwise(scheme):
    module = unlearning(SCHEMES[scheme](), NPO(), CrossEntropy())
    before = {name: each.detach().clone() for name, each in module.trained_weights.items()}
    train(module, batches(module, [2, 3]), 2, **mixed("16-mixed", 2.0**60))
    assert all(torch.equal(each, before[name]) for name, each in module.trained_weights.items())


@pytest.mark.filterwarnings("ignore:.*self.log")
@every_scheme
def test_another_training_starts_without_what_was_left_of_the_first(scheme):
    """A first one that ended between two batches of a step."""
    module, fresh = (unlearning(SCHEMES[scheme](), NPO(), CrossEntropy()) for _ in range(2))
    module.step.prepare(module.trained_weights)
    module.backward(module.training_step(batches(module, [3])[0], 0))
    ours, theirs = (train(each, batches(each, [2])).gradients[0] for each in (module, fresh))
    assert all(torch.equal(ours[name], each) for name, each in theirs.items())
