"""Each scheme against a float64 loop: the loss of each batch, the gradient and the weights of two steps."""

import pytest
from loss_definitions import DEFINITIONS
from scheme_loop import Loop
from training import MOMENTUM, RATE, batches, largest_difference, model, train, unlearning

from dipo_pl.errors import InputError
from dipo_pl.losses import Loss
from dipo_pl.losses.retain_weight import DualWeight
from dipo_pl.steps.gradient_rectified import GradientRectified
from dipo_pl.steps.joint import JointStep
from dipo_pl.steps.sharpness_aware import SharpnessAware

RHO = 0.5
SCHEMES = {"joint": JointStep, "sam": lambda: SharpnessAware(RHO), "gru": GradientRectified}
# By name: forget loss, retain loss, retain weight.
PAIRS = {
    "GradDiff": ("GradientAscent", "CrossEntropy", 0.7),
    "DiPO": ("DiPO, fixed tokens", "DiPORetain, fixed tokens", 1.0),
    "NPO": ("NPO", "CrossEntropy", 0.3),
    "a reference on one side": ("WGA", "DiPORetain, fixed tokens", 2.0),
    "companions": ("DPO", "CrossEntropy", 0.5),
    "rows that depend on each other": ("KTO", "CrossEntropy", 0.5),
    "one layer": ("RMU", "RMURetain", 1.5),
    "a layer and logits": ("RMU", "CrossEntropy", 0.5),
    "of one mind": ("CrossEntropy", "CrossEntropy", 0.7),
    "retain rows only rectify": ("GradientAscent", "CrossEntropy", 0.0),
}
TOLERANCE = 3e-5


class Mean(Loss):
    """The mean over a sequence of a factor times log p and a factor times the entropy."""

    def __init__(self, factor, entropy=0.0):
        self.factor, self.entropy = factor, entropy

    def terms(self, logits, targets, reference_logits):
        log_p = logits.log_softmax(-1)
        chosen = log_p.gather(-1, targets[:, None])[:, 0]
        return self.factor * chosen - self.entropy * (log_p.exp() * log_p).sum(-1)

    def sequence_loss(self, sums, lengths):
        return sums / lengths


def module_and_loop(scheme, forget, retain, retain_weight, clip=None):
    losses = (DEFINITIONS[name].loss if name else None for name in (forget, retain))
    module = unlearning(SCHEMES[scheme](), *losses, retain_weight=retain_weight)
    return module, Loop(scheme, model(), forget, retain, retain_weight, RATE, MOMENTUM, RHO, clip)


def compare(module, loop, sizes, accumulate, clip=None):
    given = batches(module, sizes)
    found, expected = train(module, given, accumulate, clip), loop.run(given, accumulate)
    assert found.losses == pytest.approx(expected.losses, rel=1e-5, abs=1e-5)
    assert len(found.gradients) == len(expected.gradients) == 2
    for ours, theirs in zip(found.gradients, expected.gradients, strict=True):
        assert largest_difference(ours, theirs) < TOLERANCE
    for ours, theirs in zip(found.weights, expected.weights, strict=True):
        assert largest_difference(ours, theirs) < TOLERANCE
    return found, expected


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_two_steps_of_two_batches(scheme, pair):
    """Of uneven numbers of rows, so that batches do not weigh the same."""
    compare(*module_and_loop(scheme, *PAIRS[pair]), [2, 3, 1, 2], 2)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_clipping_is_of_the_gradient_that_a_scheme_makes(scheme):
    module, loop = module_and_loop(scheme, "GradientAscent", "CrossEntropy", 0.7, clip=0.1)
    compare(module, loop, [2, 1], 1, clip=0.1)


@pytest.mark.parametrize("scheme", ["joint", "sam"])
def test_without_a_retain_loss(scheme):
    compare(*module_and_loop(scheme, "NPO", "", 1.0), [2, 3, 1, 2], 2)


def test_the_pairs_show_what_schemes_do():
    """Gradients against each other and with each other, and forget losses that a distance changes."""
    cosines = []
    for pair in ("GradDiff", "of one mind"):
        first = {}
        for scheme in SCHEMES:
            module, loop = module_and_loop(scheme, *PAIRS[pair])
            first[scheme] = loop.run(batches(module, [2, 3]), 2).gradients[0]
            cosines += loop.cosines
        assert largest_difference(first["sam"], first["joint"]) > 100 * TOLERANCE
        changed = largest_difference(first["gru"], first["joint"])
        assert changed > 100 * TOLERANCE if cosines[-1] < 0 else changed < 1e-12
    assert min(cosines) < -0.1
    assert max(cosines) > 0.1


@pytest.mark.parametrize("pair", ["GradDiff", "of one mind", "one layer"])
def test_the_cosine_of_each_step_is_logged(pair):
    """Where the retain gradient is 0, as RMU's is at the start, so is the cosine."""
    found, expected = compare(*module_and_loop("gru", *PAIRS[pair]), [2, 3], 1)
    assert [each["train/gradient_cosine"] for each in found.logged] == pytest.approx(
        expected.cosines, rel=1e-4
    )
    assert pair != "one layer" or expected.cosines[0] == 0


def test_a_retain_weight_that_follows_the_loss_moves_between_steps():
    """The weight of a step is the one that its batches were logged with."""
    weight = DualWeight(initial=0.7, epsilon=0.1, step=2.0, warmup_epochs=0)
    losses = [DEFINITIONS[name].loss for name in ("GradientAscent", "CrossEntropy")]
    for step in (SharpnessAware(RHO), GradientRectified()):
        weight.value = 0.7
        module = unlearning(step, *losses, retain_weight=weight)
        given = batches(module, [2, 3, 2])
        found = train(module, given, 2)
        assert [each["train/retain_weight"] for each in found.logged[:2]] == pytest.approx([0.7, 0.7])
        assert found.logged[2]["train/retain_weight"] > 1
        scheme = "sam" if isinstance(step, SharpnessAware) else "gru"
        loop = Loop(scheme, model(), "GradientAscent", "CrossEntropy", 0.7, RATE, MOMENTUM, RHO)
        first = loop.run(given[:2], 2).gradients[0]
        assert largest_difference(found.gradients[0], first) < TOLERANCE


@pytest.mark.parametrize("scheme", ["sam", "gru"])
def test_entropy_terms_are_in_the_gradient_of_their_rows(scheme):
    """Forget and retain loss with entropies, by losses that have them inside."""
    beside = {"forget_entropy": 0.7, "retain_entropy": -0.4}
    module = unlearning(SCHEMES[scheme](), Mean(1.0), Mean(-1.0), retain_weight=0.5, **beside)
    inside = unlearning(SCHEMES[scheme](), Mean(1.0, 0.7), Mean(-1.0, -0.8), retain_weight=0.5)
    ours, theirs = (train(each, batches(each, [2, 3, 1, 2]), 2) for each in (module, inside))
    for number in range(2):
        assert largest_difference(ours.gradients[number], theirs.gradients[number]) < TOLERANCE


def test_an_entropy_of_retain_rows_needs_a_retain_weight():
    with pytest.raises(
        InputError, match=r"model.retain_entropy is 0.5 and the retain weight 0 or a DualWeight"
    ):
        unlearning(SharpnessAware(), Mean(1.0), Mean(-1.0), retain_weight=0.0, retain_entropy=0.5)


def test_rectifying_needs_a_retain_loss():
    with pytest.raises(InputError) as raised:
        unlearning(GradientRectified(), DEFINITIONS["NPO"].loss, None)
    assert str(raised.value) == (
        "model.step is GradientRectified, which needs the gradient of a retain loss, and model.retain_loss is null: give a "
        "retain loss, or set model.step to null"
    )


def test_a_scheme_is_an_object():
    with pytest.raises(
        InputError, match=r"model.step must be an instance: pass an object such as SharpnessAware\(\)"
    ):
        unlearning(SharpnessAware, DEFINITIONS["NPO"].loss, None)


def test_the_default_is_the_joint_step():
    losses = (DEFINITIONS["NPO"].loss, DEFINITIONS["CrossEntropy"].loss)
    assert type(unlearning(None, *losses).step) is JointStep
    assert SharpnessAware().rho == 0.01
