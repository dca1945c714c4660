"""The preference pair: what it is for numbers that can be worked out by hand, and what always holds."""

import math

import pytest
import torch

from dipo_pl.errors import InputError
from dipo_pl.preferences.constructors import LogitModulation, Pair, PreferenceConstructor
from dipo_pl.preferences.filters import (
    AllOf,
    EffectiveTokens,
    Nucleus,
    RelativeProbability,
    TargetToken,
    TopFraction,
)

FILTERS = {
    "top": TopFraction(0.05),
    "relative": RelativeProbability(0.3),
    "nucleus": Nucleus(0.5),
    "both": AllOf([TopFraction(0.1), RelativeProbability(0.1)]),
}
# These keep tokens below the mean, or none at all.
LOOSE = {
    "effective": EffectiveTokens(0.5),
    "target": TargetToken(),
    "all": Nucleus(1.0),
    "target_if_confident": AllOf([TopFraction(0.05), TargetToken()]),
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
    logits = torch.tensor([[1.0, 5.0, 3.0, -1.0]])
    memory, kept = LogitModulation(TopFraction(0.5)).memory(logits, first(logits))
    assert memory.tolist() == [[0.0, 3.0, 1.0, 0.0]]  # mean 2
    assert kept.tolist() == [[False, True, True, False]]
    memory, _ = LogitModulation(TopFraction(0.5), center=False).memory(logits, first(logits))
    assert memory.tolist() == [[0.0, 5.0, 3.0, 0.0]]


def test_defaults_are_the_papers_but_centred():
    constructor = LogitModulation()
    assert isinstance(constructor.filter, TopFraction)
    assert constructor.filter.rate == 0.05
    assert constructor.alpha == 1.0
    assert constructor.center is True


@pytest.mark.parametrize("alpha", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("name", FILTERS | LOOSE)
def test_a_pair_is_two_distributions(name, alpha):
    logits = draw()
    constructor = LogitModulation((FILTERS | LOOSE)[name], alpha)
    for probabilities in constructor.pair(logits, first(logits)):
        assert probabilities.shape == logits.shape
        assert (probabilities >= 0).all()
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(len(logits)))
    torch.testing.assert_close(
        constructor.difference(logits.clone(), first(logits)).values.sum(-1), torch.zeros(len(logits)), rtol=0,
        atol=1e-6,
    )  # fmt: skip


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
@pytest.mark.parametrize("name", FILTERS | LOOSE)
def test_difference_is_the_pairs(name, center):
    logits = draw(offset=0.0 if center else 30.0)
    constructor = LogitModulation((FILTERS | LOOSE)[name], 0.7, center)
    pair, difference = (
        constructor.pair(logits, first(logits)),
        constructor.difference(logits.clone(), first(logits)),
    )
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
        constructor.difference(logits.clone(), first(logits))
    assert torch.equal(logits, before)


@pytest.mark.parametrize("name", FILTERS)
def test_centred_does_not_see_a_constant(name):
    """Quarters plus whole numbers: adding loses no digit, so nothing but the mean's rounding differs."""
    generator = torch.Generator().manual_seed(5)
    logits = torch.randint(-40, 40, (10, 64), generator=generator) / 4
    constants = torch.randint(-90, 90, (10, 1), generator=generator)
    constructor = LogitModulation(FILTERS[name])
    plain, moved = (
        constructor.difference(logits.clone(), first(logits)),
        constructor.difference(logits + constants, first(logits)),
    )
    torch.testing.assert_close(moved.values, plain.values, rtol=0, atol=1e-5)
    assert torch.equal(moved.kept, plain.kept)
    assert torch.equal(
        constructor.memory(logits, first(logits))[1], constructor.memory(logits + constants, first(logits))[1]
    )


def test_raw_does_see_a_constant():
    """Which is why centring is the default: the same model, another preference."""
    logits = draw(offset=20.0)
    constructor = LogitModulation(alpha=0.1, center=False)
    one, other = (
        constructor.difference(logits.clone(), first(logits)).values,
        constructor.difference(logits + 10, first(logits)).values,
    )
    assert (one - other).abs().max() > 0.1


@pytest.mark.parametrize("name", FILTERS)
def test_centred_is_raw_where_the_mean_is_0(name):
    """Rows v and -v side by side have the mean 0 exactly."""
    half = draw(vocabulary=50)
    logits = torch.cat([half, -half], -1)
    centred = LogitModulation(FILTERS[name]).difference(logits.clone(), first(logits))
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


def test_pair_is_required():
    with pytest.raises(TypeError, match="pair"):
        PreferenceConstructor()


@pytest.mark.parametrize("gap", [50.0, 200.0, 1000.0])
def test_one_token_far_above_all_others(gap):
    """Their exponentials underflow beside it, and yet they are all there is once it is suppressed.

    Logits gap, 0, 0, 0 have the mean gap / 4: suppressed, the first stands at gap / 4, and has e^(gap / 4) of
    e^(gap / 4) + 3. With alpha 2 it stands at -gap / 2, and the other three share everything.
    """
    logits = torch.tensor([[gap, 0.0, 0.0, 0.0]])
    difference = LogitModulation(TopFraction(0.25)).difference(logits.clone(), first(logits)).values
    share = 1 / (1 + 3 * math.exp(-gap / 4))
    expected = torch.tensor([[share - 1, *[(1 - share) / 3] * 3]])
    torch.testing.assert_close(difference, expected, rtol=1e-5, atol=1e-7)
    difference = LogitModulation(TopFraction(0.25), alpha=2).difference(logits.clone(), first(logits)).values
    torch.testing.assert_close(difference, torch.tensor([[-1.0, 1 / 3, 1 / 3, 1 / 3]]), rtol=1e-5, atol=1e-6)


def test_a_row_that_keeps_nothing_has_no_preference():
    """The target is not confident in the first row, and is in the second."""
    logits = torch.tensor([[3.0, 1.0, 0.0, 0.0], [3.0, 1.0, 0.0, 0.0]])
    difference = LogitModulation(AllOf([TopFraction(0.25), TargetToken()])).difference(
        logits, torch.tensor([1, 0])
    )
    assert difference.kept.tolist() == [0, 1]
    assert torch.equal(difference.values[0], torch.zeros(4))
    assert difference.values[1, 0] < -0.1


def test_a_kept_token_below_the_mean_is_left_as_it_is():
    """Suppressing it towards the mean would amplify it: the pair is one distribution, and nothing is pulled."""
    logits = torch.tensor([[5.0, 1.0, 0.0]])
    pair = LogitModulation(TargetToken()).pair(logits, torch.tensor([1]))
    assert torch.equal(pair.forgetting, pair.remembering)
    assert torch.equal(pair.forgetting, logits.softmax(-1))
