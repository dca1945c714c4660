"""The chosen learning rate is the one with the highest mean score."""

from dipo_pl.commands.study.rates import chosen_rate


def test_the_highest_mean_is_chosen_and_the_lowest_of_equal_ones():
    tried = {1e-3: [-1.0, -9.0], 1e-4: [-4.0, -4.0], 5e-4: [-3.0, -5.0], 1e-5: [-1e6, -1.0]}
    assert chosen_rate(tried) == (1e-4, {1e-5: -500000.5, 1e-4: -4.0, 5e-4: -4.0, 1e-3: -5.0})
    assert chosen_rate({0.1: [-1e6], 0.2: [-1e5]}).rate == 0.2
