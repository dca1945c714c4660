"""Filters on logits whose kept tokens can be worked out by hand."""

import math

import pytest
import torch

from dipo_pl.errors import InputError
from dipo_pl.preferences.filters import (
    AllOf,
    AnyOf,
    EffectiveTokens,
    Filter,
    Nucleus,
    RelativeProbability,
    TargetToken,
    TopFraction,
)


def first(logits):
    """Targets that no filter here looks at."""
    return torch.zeros(len(logits), dtype=torch.long)


def kept(filter, *rows):
    """The kept token ids of each row."""
    logits = torch.tensor(rows)
    return [row.nonzero().flatten().tolist() for row in filter.keep(logits, first(logits))]


def log(*probabilities):
    return [math.log(each) for each in probabilities]


def test_top_fraction():
    """rate 0.4 of 5 tokens: round(2.0) = 2, so ranks 1 and 2 stay, row by row."""
    assert kept(TopFraction(0.4), [3.0, 1.0, 5.0, 4.0, 2.0], [-1.0, -2.0, -3.0, -4.0, -5.0]) == [
        [2, 3],
        [0, 1],
    ]


def test_top_fraction_keeps_ties():
    """rate 0.5 of 4: 2 tokens. Rank 2 has logit 3, which tokens 0, 2 and 3 share: they all stay."""
    assert kept(TopFraction(0.5), [3.0, 5.0, 3.0, 3.0]) == [[0, 1, 2, 3]]
    assert kept(TopFraction(0.5), [3.0, 5.0, 3.0, 1.0]) == [[0, 1, 2]]
    # rate 0.25: 1 token, of rank 1; the tie below it is out.
    assert kept(TopFraction(0.25), [3.0, 5.0, 3.0, 3.0]) == [[1]]
    # All tie: all stay.
    assert kept(TopFraction(0.25), [7.0, 7.0, 7.0, 7.0]) == [[0, 1, 2, 3]]


@pytest.mark.parametrize(("rate", "vocabulary", "count"), [
    (0.05, 1, 1),  # round(0.05) = 0, at least 1
    (0.05, 2, 1),
    (0.05, 29, 1),  # round(1.45)
    (0.05, 31, 2),  # round(1.55)
    (0.05, 100, 5),
    (0.05, 32_000, 1600),
    (1e-9, 100, 1),
    (0.999, 100, 100),  # round(99.9)
    (1.0, 7, 7),
    (1, 7, 7),
])  # fmt: skip
def test_top_fraction_counts(rate, vocabulary, count):
    """max(1, round(rate * V))."""
    logits = torch.arange(vocabulary, dtype=torch.float32)[None]
    mask = TopFraction(rate).keep(logits, first(logits))
    assert mask.sum() == count
    assert mask[0, vocabulary - count :].all()


def test_top_fraction_default_is_the_papers():
    assert TopFraction().rate == 0.05


def test_relative_probability():
    """Probabilities 0.5, 0.24, 0.16, 0.1; the largest times 0.3 is 0.15, which the first three reach."""
    assert kept(RelativeProbability(0.3), log(0.1, 0.5, 0.16, 0.24)) == [[1, 2, 3]]
    # 0.5 * 0.4 = 0.2: the first two.
    assert kept(RelativeProbability(0.4), log(0.1, 0.5, 0.16, 0.24)) == [[1, 3]]


def test_relative_probability_needs_no_normalised_logits():
    """Logits 2, 1, 0, -1: probabilities relative to the largest are 1, e^-1 = 0.37, e^-2 = 0.14, e^-3 = 0.05."""
    rows = [2.0, 1.0, 0.0, -1.0]
    assert kept(RelativeProbability(0.36), rows) == [[0, 1]]
    assert kept(RelativeProbability(0.38), rows) == [[0]]
    assert kept(RelativeProbability(0.05), rows) == [[0, 1, 2]]  # 0.0498 is just below
    assert kept(RelativeProbability(0.049), rows) == [[0, 1, 2, 3]]


def test_relative_probability_of_one_keeps_the_maxima():
    """rate 1: only tokens as probable as the most probable one; two tie here."""
    assert kept(RelativeProbability(1.0), [4.0, 1.0, 4.0, 3.999]) == [[0, 2]]


def test_relative_probability_follows_the_confidence():
    """A confident position keeps 1 of 4 tokens, an undecided one all of them."""
    assert kept(RelativeProbability(0.1), log(0.97, 0.01, 0.01, 0.01), log(0.3, 0.3, 0.2, 0.2)) == [
        [0],
        [0, 1, 2, 3],
    ]


def test_nucleus():
    """Probabilities in order 0.5, 0.3, 0.15, 0.05 sum to 0.5, 0.8, 0.95, 1.

    Mass 0.7 is not reached by the first, and crossed by the second, which stays; 0.9 is crossed by the third.
    """
    row = log(0.15, 0.5, 0.05, 0.3)
    assert kept(Nucleus(0.4), row) == [[1]]
    assert kept(Nucleus(0.7), row) == [[1, 3]]
    assert kept(Nucleus(0.9), row) == [[0, 1, 3]]
    assert kept(Nucleus(0.99), row) == [[0, 1, 2, 3]]


def test_nucleus_stops_where_the_mass_is_reached():
    """Probabilities 1/2, 1/4, 1/8, 1/8, which floats hold exactly: the first two hold 0.75, no third is needed."""
    row = [2.0 * math.log(2), math.log(2), 0.0, 0.0]
    assert kept(Nucleus(0.75), row) == [[0, 1]]
    assert kept(Nucleus(0.751), row) == [[0, 1, 2]]


def test_nucleus_of_all_mass_keeps_all_tokens():
    """Even one of probability e^-40 = 4e-18, which a float32 sum that has come to 1 no longer notices."""
    assert kept(Nucleus(1.0), [0.0, -40.0, 1.0], [0.0, 0.0, 0.0]) == [[0, 1, 2], [0, 1, 2]]
    assert kept(Nucleus(1), [0.0, -500.0]) == [[0, 1]]
    logits = 10 * torch.randn(3, 32_000, generator=torch.Generator().manual_seed(0))
    assert Nucleus(1.0).keep(logits, first(logits)).all()


def test_nucleus_of_a_certain_position():
    """One token holds all the mass that floats can tell."""
    assert kept(Nucleus(0.999), [0.0, 200.0, 0.0]) == [[1]]


def test_nucleus_of_tied_tokens_keeps_the_fewest():
    """Four tokens of 1/4: two of them reach 0.5."""
    mask = Nucleus(0.5).keep(torch.zeros(1, 4), torch.tensor([0]))
    assert mask.sum() == 2


def test_all_of_intersects():
    """Logits 3, 2, 1, 0 (relative 1, 0.37, 0.14, 0.05).

    The top half keeps tokens 0 and 1; at least 0.1 of the largest keeps 0, 1 and 2; at least 0.5 keeps 0.
    """
    row = [3.0, 2.0, 1.0, 0.0]
    top, loose, strict = TopFraction(0.5), RelativeProbability(0.1), RelativeProbability(0.5)
    assert kept(AllOf([top, loose]), row) == [[0, 1]]
    assert kept(AllOf([loose, top]), row) == [[0, 1]]
    assert kept(AllOf([top, strict]), row) == [[0]]
    assert kept(AllOf([top, loose, strict]), row) == [[0]]
    assert kept(AllOf([loose]), row) == [[0, 1, 2]]


def test_any_of_is_the_union():
    """Of 4 tokens, half are 2; at least 0.2 times as probable as the first are 3, and at least 0.6 times 1."""
    row = log(0.5, 0.24, 0.21, 0.05)
    top, loose, strict = TopFraction(0.5), RelativeProbability(0.2), RelativeProbability(0.6)
    assert kept(AnyOf([top, loose]), row) == [[0, 1, 2]]
    assert kept(AnyOf([loose, top]), row) == [[0, 1, 2]]
    assert kept(AnyOf([top, strict]), row) == [[0, 1]]
    assert kept(AnyOf([strict]), row) == [[0]]
    # Neither contains the other.
    assert kept(AnyOf([Even(), top]), row) == [[0, 1, 2]]


class Even(Filter):
    def keep(self, logits, targets):
        return (torch.arange(logits.shape[-1]) % 2 == 0).expand_as(logits)


def test_all_of_takes_a_filter_of_ones_own_and_leaves_its_mask_alone():
    row = [3.0, 2.0, 1.0, 0.0]
    assert kept(AllOf([Even(), RelativeProbability(0.1)]), row) == [[0, 2]]
    assert kept(Even(), row) == [[0, 2]]


FILTERS = {
    "top": TopFraction(0.05),
    "relative": RelativeProbability(0.05),
    "relative_one": RelativeProbability(1.0),
    "nucleus": Nucleus(0.9),
    "nucleus_little": Nucleus(1e-6),
    "nucleus_all": Nucleus(1.0),
    "all_of": AllOf([TopFraction(0.05), RelativeProbability(0.05), Nucleus(0.5)]),
    "any_of": AnyOf([TopFraction(0.05), RelativeProbability(0.05), Nucleus(0.5)]),
    "effective": EffectiveTokens(),
    "effective_many": EffectiveTokens(8.0),
}


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("vocabulary", [1, 2, 3, 50, 1000])
@pytest.mark.parametrize("spread", [0.0, 1e-3, 1.0, 30.0])
def test_at_least_the_most_probable_token_is_kept(name, vocabulary, spread):
    """Of tied maxima at least one; the mask has the logits' shape and is bool."""
    logits = spread * torch.randn(20, vocabulary, generator=torch.Generator().manual_seed(vocabulary))
    mask = FILTERS[name].keep(logits, first(logits))
    assert mask.shape == logits.shape
    assert mask.dtype == torch.bool
    assert (mask & (logits == logits.amax(-1, keepdim=True))).any(-1).all()


@pytest.mark.parametrize("name", FILTERS)
def test_no_less_probable_token_is_kept_without_the_more_probable_ones(name):
    logits = 3 * torch.randn(20, 200, generator=torch.Generator().manual_seed(0))
    mask = FILTERS[name].keep(logits, first(logits))
    lowest_kept = logits.masked_fill(~mask, torch.inf).amin(-1)
    highest_dropped = logits.masked_fill(mask, -torch.inf).amax(-1)
    assert (lowest_kept > highest_dropped).all()


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("shift", [-300.0, 0.0, 64.0])
def test_a_constant_added_to_all_logits_changes_nothing(name, shift):
    """Logits are quarters and shifts whole numbers, so that adding loses no digit."""
    generator = torch.Generator().manual_seed(5)
    logits = torch.randint(-40, 40, (10, 60), generator=generator) / 4
    constants = shift + torch.randint(0, 50, (10, 1), generator=generator)
    assert torch.equal(
        FILTERS[name].keep(logits, first(logits)), FILTERS[name].keep(logits + constants, first(logits))
    )


def test_effective_tokens_follow_the_uncertainty():
    """Two tokens of 1/2 are 2 effective ones, four of 1/4 are 4, and a certain one is 1.

    Probabilities 1/2, 1/4, 1/8, 1/8 have the entropy 1.75 ln 2, so 2^1.75 = 3.36 effective tokens: 3 are kept,
    and the fourth because it ties with the third; half as many, 1.68, are 2.
    """
    rows = [log(0.5, 0.5, 1e-9, 1e-9), log(0.25, 0.25, 0.25, 0.25), log(1e-9, 1, 1e-9, 1e-9)]
    assert kept(EffectiveTokens(), *rows) == [[0, 1], [0, 1, 2, 3], [1]]
    assert kept(EffectiveTokens(), log(0.125, 0.5, 0.125, 0.25)) == [[0, 1, 2, 3]]
    assert kept(EffectiveTokens(0.5), log(0.125, 0.5, 0.125, 0.25)) == [[1, 3]]
    assert kept(EffectiveTokens(100.0), log(0.1, 0.9)) == [[0, 1]]


def test_target_token_is_kept_whatever_its_probability():
    logits = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    mask = TargetToken().keep(logits, torch.tensor([2, 0]))
    assert mask.tolist() == [[False, False, True], [True, False, False]]


@pytest.mark.parametrize("kind", [AllOf, AnyOf])
def test_a_combination_of_nothing_is_refused(kind):
    line = rf"^{kind.__name__}\.filters must name at least one filter \(got none\)$"
    with pytest.raises(InputError, match=line):
        kind([])
