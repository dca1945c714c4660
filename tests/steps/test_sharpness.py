"""SharpnessAware whatever the losses: weights come back, a gradient of 0 moves nothing, half precision is told."""

import pytest
import torch
from tiny_models import tiny_model
from training import VOCABULARY, batches, largest_difference, model, train, unlearning

from dipo_pl.losses import NPO, RMU, CrossEntropy, GradientAscent, Loss, RMURetain
from dipo_pl.models.lora import LoRA
from dipo_pl.steps.gradient_rectified import GradientRectified
from dipo_pl.steps.sharpness_aware import SharpnessAware


def prepared(step, *losses, **options):
    """A module that has been through the passes of two batches, but has not finished the step."""
    module = unlearning(step, *losses, **options)
    module.step.prepare(module.trained_weights)
    for number, batch in enumerate(batches(module, [2, 3])):
        module.backward(module.training_step(batch, number))
    return module


def copies(module):
    return {name: each.detach().clone() for name, each in module.trained_weights.items()}


def adapted():
    policy = model()
    LoRA(rank=2, alpha=4.0).apply(policy)
    for name, each in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(each)
    return policy.train()


POLICIES = {
    "all weights": model,
    "adapters": adapted,
    "bfloat16": lambda: tiny_model(vocab_size=VOCABULARY, dtype=torch.bfloat16).train(),
    "tied": lambda: model(tie_word_embeddings=True),
}


@pytest.mark.filterwarnings("ignore:.*self.log")
@pytest.mark.parametrize("policy", POLICIES)
def test_weights_are_moved_by_rho_and_come_back_bitwise(policy):
    """Large beside many of them, so that adding and subtracting would round."""
    module = prepared(SharpnessAware(10.0), NPO(), CrossEntropy(), policy=POLICIES[policy]())
    before, seen = copies(module), []

    def evaluate(batch, weights):
        seen.append(copies(module))
        return module.objective(batch, weights)

    module.step.finish(evaluate, 1)
    assert len(seen) == 2
    for moved in seen:
        distance = (
            sum(float((moved[name].double() - each).square().sum()) for name, each in before.items()) ** 0.5
        )
        assert distance == pytest.approx(10.0, rel=0.01 if policy == "bfloat16" else 1e-5)
    after = copies(module)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], each) for name, each in before.items())
    moved_back = {name: seen[0][name] - (seen[0][name] - each) for name, each in before.items()}
    assert not all(torch.equal(moved_back[name], each) for name, each in before.items())


@pytest.mark.filterwarnings("ignore:.*self.log")
def test_weights_come_back_also_from_a_pass_that_fails():
    module = prepared(SharpnessAware(10.0), NPO(), CrossEntropy())
    before = copies(module)

    def evaluate(batch, weights):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        module.step.finish(evaluate, 1)
    after = copies(module)
    assert all(torch.equal(after[name], each) for name, each in before.items())


class Nothing(Loss):
    """A loss without a gradient."""

    def terms(self, logits, targets, reference_logits):
        return 0 * logits.sum(-1)


@pytest.mark.parametrize("step", [SharpnessAware(0.5), GradientRectified()], ids=["sam", "gru"])
@pytest.mark.parametrize(
    "pair", [(Nothing(), CrossEntropy()), (CrossEntropy(), Nothing())], ids=["forget", "retain"]
)
def test_a_gradient_of_0_is_no_direction(step, pair):
    module = unlearning(step, *pair)
    found = train(module, batches(module, [2]))
    assert all(each.isfinite().all() for each in found.weights[0].values())
    assert all(each.isfinite().all() for each in found.gradients[0].values())
    plain = unlearning(None, *pair)
    joint = train(plain, batches(plain, [2]))
    if isinstance(pair[0], Nothing) or isinstance(step, GradientRectified):
        assert largest_difference(found.gradients[0], joint.gradients[0]) < 1e-6


@pytest.mark.filterwarnings("ignore:.*self.log")
def test_weights_that_no_loss_reaches_have_no_gradient():
    """As without a scheme: AdamW decays what has one, be it 0."""
    for step in (None, SharpnessAware(0.5), GradientRectified()):
        module = prepared(step, RMU(1.0, 0), RMURetain(0))
        module.step.finish(module.objective, 1)
        without = {name for name, each in module.trained_weights.items() if each.grad is None}
        assert {name for name in module.trained_weights if ".layers.1." in name} <= without
        assert "model.embed_tokens.weight" not in without


def test_bfloat16_weights_that_the_distance_does_not_move_are_told(recwarn):
    policy = POLICIES["bfloat16"]()
    module = unlearning(SharpnessAware(), GradientAscent(), CrossEntropy(), policy=policy)
    module.step.check(module.trained_weights)
    (told,) = [str(each.message) for each in recwarn if "SharpnessAware" in str(each.message)]
    share = told.partition("which changes ")[2].partition("%")[0]
    assert "the trained weights are bfloat16: SharpnessAware moves a weight by about" in told
    assert 0 < float(share) < 99
    recwarn.clear()
    whole = unlearning(SharpnessAware(), GradientAscent(), CrossEntropy())
    whole.step.check(whole.trained_weights)
    assert not [each for each in recwarn if "SharpnessAware" in str(each.message)]
