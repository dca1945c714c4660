"""Closed-form gradients against the base class's autograd, and what the base class gives a subclass."""

import pytest
import torch

from dipo_pl.losses import (
    CEU,
    DPO,
    KTO,
    NPO,
    PDU,
    RMU,
    UNDIAL,
    WGA,
    CrossEntropy,
    DiPO,
    DiPORetain,
    GradientAscent,
    Loss,
    MaximumEntropy,
    ReferenceKL,
    RMURetain,
    SatImp,
    SimNPO,
)
from dipo_pl.preferences.constructors import LogitModulation
from dipo_pl.preferences.filters import TopFraction

SHIPPED = [
    DiPO(0.2, LogitModulation(TopFraction(0.2))),
    DiPORetain(0.2, LogitModulation(TopFraction(0.2))),
    NPO(0.2),
    SimNPO(),
    DPO(0.2),
    KTO(0.2),
    GradientAscent(),
    CrossEntropy(),
    ReferenceKL(),
    UNDIAL(),
    WGA(),
    SatImp(),
    CEU(),
    PDU(),
    MaximumEntropy(),
    MaximumEntropy(reverse=True),
    RMU(),
    RMURetain(),
]


def name(loss):
    return type(loss).__name__


def draw(n, vocabulary, spread=3.0):
    generator = torch.Generator().manual_seed(n)
    logits = spread * torch.randn(n, vocabulary, generator=generator)
    reference = spread * torch.randn(n, vocabulary, generator=generator)
    return logits, torch.randint(vocabulary, (n,), generator=generator), reference


def test_every_shipped_loss_is_here():
    import dipo_pl.losses

    classes = {getattr(dipo_pl.losses, each) for each in dipo_pl.losses.__all__}
    concrete = {
        each
        for each in classes
        if issubclass(each, Loss) and each.__name__ not in ("Loss", "LogProbabilityLoss")
    }
    assert concrete == {type(loss) for loss in SHIPPED}


@pytest.mark.parametrize(("n", "vocabulary"), [(1, 2), (7, 11), (5, 257)])
@pytest.mark.parametrize("loss", SHIPPED, ids=name)
def test_closed_form_equals_autograd(loss, n, vocabulary):
    """float32 on both sides, values of order 10: 1e-5 in the terms, 1e-6 in gradients that are at most 1."""
    logits, targets, reference = draw(n, vocabulary)
    reference = reference if loss.uses_reference else None
    closed = loss.terms_and_gradient(
        logits.clone(), targets, None if reference is None else reference.clone()
    )
    plain = Loss.terms_and_gradient(loss, logits.clone(), targets, reference)
    torch.testing.assert_close(closed.values, plain.values, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(closed.gradient, plain.gradient, rtol=1e-5, atol=1e-6)
    assert closed.values.shape == plain.values.shape == (n,)
    assert closed.gradient.shape == plain.gradient.shape == (n, vocabulary)
    assert not closed.values.requires_grad
    assert not closed.gradient.requires_grad
    assert all(part.shape == (n,) for part in closed.parts.values())


@pytest.mark.parametrize("loss", SHIPPED, ids=name)
def test_terms_do_not_write_into_the_logits(loss):
    """Autograd needs them as they were; only `terms_and_gradient` may overwrite them."""
    logits, targets, reference = draw(4, 19)
    before = logits.clone(), reference.clone()
    loss.terms(logits, targets, reference if loss.uses_reference else None)
    assert torch.equal(logits, before[0])
    assert torch.equal(reference, before[1])


@pytest.mark.parametrize("loss", SHIPPED, ids=name)
def test_one_token_of_probability_one(loss):
    """A confident model's other tokens underflow to 0; nothing is nan."""
    logits = torch.zeros(3, 5)
    logits[:, 0] = 300.0
    reference = torch.zeros(3, 5) if loss.uses_reference else None
    values, gradient, _ = loss.terms_and_gradient(logits, torch.tensor([0, 1, 2]), reference)
    assert torch.isfinite(values).all()
    assert torch.isfinite(gradient).all()


class LogSpread(Loss):
    """As little as a subclass can give."""

    def terms(self, logits, targets, reference_logits):
        return logits.logsumexp(-1) - logits.mean(-1)


class SumOfLogits(Loss):
    def terms(self, logits, targets, reference_logits):
        return logits.sum(-1)


def test_defaults_of_the_base_class():
    loss = LogSpread()
    sums, lengths = torch.tensor([1.0, -2.0]), torch.tensor([3, 1])
    assert loss.uses_reference is False
    assert loss.mean_over == "sequences"
    assert torch.equal(loss.sequence_loss(sums, lengths), sums)
    assert loss.sequence_parts(sums, lengths) == {}
    logits, targets, _ = draw(4, 6)
    values, gradient, parts = loss.terms_and_gradient(logits, targets, None)
    torch.testing.assert_close(values, logits.exp().sum(-1).log() - logits.sum(-1) / 6)
    torch.testing.assert_close(gradient, logits.softmax(-1) - 1 / 6)
    assert parts == {}
    assert not values.requires_grad
    assert not logits.requires_grad


def test_gradient_can_be_written_into():
    """Autograd's gradient of a sum is one number seen V times."""
    logits, targets, _ = draw(2, 4)
    gradient = SumOfLogits().terms_and_gradient(logits, targets, None).gradient
    gradient.mul_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert torch.equal(gradient[0], torch.tensor([1.0, 2.0, 3.0, 4.0]))


def test_terms_is_required():
    with pytest.raises(TypeError, match="terms"):
        Loss()
