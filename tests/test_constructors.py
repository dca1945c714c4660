"""The preference pair: what it is for numbers that can be worked out by hand, and what always holds."""

import math

import pytest
import torch

from dipo_pl.constructors import LogitModulation, Pair, PreferenceConstructor
from dipo_pl.errors import InputError
from dipo_pl.filters import AllOf, Nucleus, RelativeProbability, TopFraction

FILTERS = {
    "top": TopFraction(0.05),
    "relative": RelativeProbability(0.3),
    "nucleus": Nucleus(0.5),
    "both": AllOf([TopFraction(0.1), RelativeProbability(0.1)]),
}


def first(logits):
    """Targets that no filter here looks at."""
    return torch.zeros(len(logits), dtype=torch.long)


def draw(n=12, vocabulary=101, offset=0.0, seed=0):
    logits = 2 * torch.randn(n, vocabulary, generator=torch.Generator().manual_seed(seed))
    return logits - logits.mean(-1, keepdim=True) + offset


def test_pair_by_hand():
    """Logits ln 8, 0, 0 have the mean ln 2 (8 = 2^3), so m = (ln 8 - ln 2, 0, 0) = (ln 4, 0, 0).

    alpha 1: z - m = (ln 2, 0, 0), softmax (2, 1, 1) / 4; z + m = (ln 32, 0, 0), softmax (32, 1, 1) / 34.
    """
    logits = torch.tensor([[math.log(8), 0.0, 0.0]])
    pair = LogitModulation(TopFraction(0.05)).pair(logits, first(logits))
    torch.testing.assert_close(pair.forgetting, torch.tensor([[2, 1, 1]]) / 4)
    torch.testing.assert_close(pair.remembering, torch.tensor([[32, 1, 1]]) / 34)


def test_raw_pair_by_hand():
    """Uncentred, m = (ln 8, 0, 0). alpha 1: z - m = 0, softmax 1/3 each; z + m = (ln 64, 0, 0): (64, 1, 1) / 66."""
    logits = torch.tensor([[math.log(8), 0.0, 0.0]])
    pair = LogitModulation(TopFraction(0.05), center=False).pair(logits, first(logits))
    torch.testing.assert_close(pair.forgetting, torch.full((1, 3), 1 / 3))
    torch.testing.assert_close(pair.remembering, torch.tensor([[64, 1, 1]]) / 66)


def test_alpha_by_hand():
    """alpha 2 of the centred example: z - 2m = (ln 8 - ln 16, 0, 0), softmax (1/2, 1, 1) / 2.5."""
    logits = torch.tensor([[math.log(8), 0.0, 0.0]])
    pair = LogitModulation(TopFraction(0.05), alpha=2).pair(logits, first(logits))
    torch.testing.assert_close(pair.forgetting, torch.tensor([[0.2, 0.4, 0.4]]))
    torch.testing.assert_close(pair.remembering, torch.tensor([[128, 1, 1]]) / 130)


def test_memory_is_the_kept_logits_over_their_mean():
    memory, kept = LogitModulation(TopFraction(0.5)).memory(torch.tensor([[1.0, 5.0, 3.0, -1.0]]))
    assert memory.tolist() == [[0.0, 3.0, 1.0, 0.0]]  # mean 2
    assert kept.tolist() == [[False, True, True, False]]
    memory, _ = LogitModulation(TopFraction(0.5), center=False).memory(torch.tensor([[1.0, 5.0, 3.0, -1.0]]))
    assert memory.tolist() == [[0.0, 5.0, 3.0, 0.0]]


def test_defaults_are_the_papers_but_centred():
    constructor = LogitModulation()
    assert isinstance(constructor.filter, TopFraction)
    assert constructor.filter.rate == 0.05
    assert constructor.alpha == 1.0
    assert constructor.center is True


@pytest.mark.parametrize("alpha", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("name", FILTERS)
def test_a_pair_is_two_distributions(name, alpha):
    logits = draw()
    constructor = LogitModulation(FILTERS[name], alpha)
    for probabilities in constructor.pair(logits, first(logits)):
        assert probabilities.shape == logits.shape
        assert (probabilities >= 0).all()
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(len(logits)))
    torch.testing.assert_close(
        constructor.difference(logits, first(logits)).values.sum(-1),
        torch.zeros(len(logits)),
        rtol=0,
        atol=1e-6,
    )


@pytest.mark.parametrize("alpha", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("name", FILTERS)
def test_kept_tokens_lose_by_forgetting_and_gain_by_remembering(name, alpha):
    """Together, against the policy's own distribution, as long as they lie over the mean."""
    logits = draw()
    constructor = LogitModulation(FILTERS[name], alpha)
    kept = constructor.filter.keep(logits, first(logits))
    assert (logits.masked_fill(~kept, torch.inf).amin(-1) > 0).all()

    def mass(probabilities):
        return probabilities.double().masked_fill(~kept, 0).sum(-1)

    pair = constructor.pair(logits, first(logits))
    assert (mass(pair.forgetting) < mass(logits.softmax(-1))).all()
    assert (mass(pair.remembering) > mass(logits.softmax(-1))).all()


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("name", FILTERS)
def test_difference_is_the_pairs(name, center):
    logits = draw(offset=0.0 if center else 30.0)
    constructor = LogitModulation(FILTERS[name], 0.7, center)
    pair, difference = constructor.pair(logits, first(logits)), constructor.difference(logits, first(logits))
    torch.testing.assert_close(difference.values, pair.forgetting - pair.remembering, rtol=1e-5, atol=1e-7)
    assert torch.equal(difference.kept, constructor.filter.keep(logits, first(logits)).sum(-1))
    base = PreferenceConstructor.difference(constructor, logits, first(logits))
    torch.testing.assert_close(difference.values, base.values, rtol=1e-5, atol=1e-7)


def test_logits_are_left_alone():
    logits = draw(offset=30.0)
    before = logits.clone()
    for center in (True, False):
        constructor = LogitModulation(center=center)
        constructor.pair(logits, first(logits))
        constructor.difference(logits, first(logits))
    assert torch.equal(logits, before)


@pytest.mark.parametrize("name", FILTERS)
def test_centred_does_not_see_a_constant(name):
    """Quarters plus whole numbers: adding loses no digit, so nothing but the mean's rounding differs."""
    generator = torch.Generator().manual_seed(5)
    logits = torch.randint(-40, 40, (10, 64), generator=generator) / 4
    constants = torch.randint(-90, 90, (10, 1), generator=generator)
    constructor = LogitModulation(FILTERS[name])
    plain, moved = (
        constructor.difference(logits, first(logits)),
        constructor.difference(logits + constants, first(logits)),
    )
    torch.testing.assert_close(moved.values, plain.values, rtol=0, atol=1e-5)
    assert torch.equal(moved.kept, plain.kept)
    assert torch.equal(constructor.memory(logits)[1], constructor.memory(logits + constants)[1])


def test_raw_does_see_a_constant():
    """Which is why centring is the default: the same model, another preference."""
    logits = draw(offset=20.0)
    constructor = LogitModulation(alpha=0.1, center=False)
    one, other = (
        constructor.difference(logits, first(logits)).values,
        constructor.difference(logits + 10, first(logits)).values,
    )
    assert (one - other).abs().max() > 0.1


@pytest.mark.parametrize("name", FILTERS)
def test_centred_is_raw_where_the_mean_is_0(name):
    """Rows v and -v side by side have the mean 0 exactly."""
    half = draw(vocabulary=50)
    logits = torch.cat([half, -half], -1)
    centred = LogitModulation(FILTERS[name]).difference(logits, first(logits))
    raw = LogitModulation(FILTERS[name], center=False).difference(logits, first(logits))
    torch.testing.assert_close(centred.values, raw.values, rtol=1e-5, atol=1e-6)
    assert torch.equal(centred.kept, raw.kept)


@pytest.mark.parametrize("method", ["pair", "difference"])
def test_raw_refuses_kept_logits_that_are_not_positive(method):
    """One such position among many is enough; 0 is refused too, since it could not be suppressed."""
    constructor = LogitModulation(TopFraction(0.05), center=False)
    logits = draw(offset=50.0)
    getattr(constructor, method)(logits, first(logits))
    logits[7] -= 150
    lowest = float(logits[7].sort(descending=True).values[4])  # 5 of 101 are kept
    with pytest.raises(InputError) as caught:
        getattr(constructor, method)(logits, first(logits))
    message = str(caught.value)
    assert f"a kept logit is {lowest:.3g}, not positive" in message
    assert "Set center to true" in message
    assert "\n" not in message
    with pytest.raises(InputError, match="a kept logit is 0, not positive"):
        getattr(constructor, method)(torch.tensor([[0.0, -1.0]]), torch.tensor([0]))


def test_raw_minds_only_the_kept_logits():
    LogitModulation(TopFraction(0.3), center=False).pair(torch.tensor([[4.0, -3.0, -9.0]]), torch.tensor([0]))


class TopToken(PreferenceConstructor):
    """A constructor of one's own: without, and with nothing but, the most probable token."""

    def pair(self, logits, targets):
        top = torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1])
        return Pair(logits.masked_fill(top.bool(), -torch.inf).softmax(-1), top.float())


def test_default_difference_of_ones_own_constructor():
    """Probabilities 1/2, 1/4, 1/4: without the top token (0, 1/2, 1/2), minus (1, 0, 0); one token disagrees."""
    difference = TopToken().difference(torch.tensor([[math.log(2), 0.0, 0.0]]), torch.tensor([0]))
    torch.testing.assert_close(difference.values, torch.tensor([[-1.0, 0.5, 0.5]]))
    assert difference.kept.tolist() == [1]


@pytest.mark.parametrize("alpha", [0, 0.0, -1.0, math.nan, math.inf])
def test_alpha_is_refused(alpha):
    with pytest.raises(InputError) as caught:
        LogitModulation(alpha=alpha)
    assert str(caught.value) == f"LogitModulation.alpha must be a finite number > 0, got {alpha}"


def test_pair_is_required():
    with pytest.raises(TypeError, match="pair"):
        PreferenceConstructor()
