import random

import pytest

from dipo_pl.errors import InputError
from dipo_pl.metrics.unlearning_depth import depth_scores, layer_shares


def loop_depth(s, s1, s2, threshold):
    """The definition, layer by layer; None where no layer encodes the row."""
    above = below = 0.0
    for layer in range(len(s1)):
        lost = s - s1[layer]
        if lost > threshold:
            above += lost * min(1.0, max(0.0, (s - s2[layer]) / lost))
            below += lost
    return above / below if below else None


@pytest.mark.parametrize("threshold", [0.05, 0.0, 1.0])
def test_matches_loop(threshold):
    rng = random.Random(0)
    full = [-abs(rng.gauss(0, 2)) for _ in range(50)]
    retain = [[s - rng.gauss(0.3, 1) for _ in range(4)] for s in full]
    unlearned = [[s - rng.gauss(0.3, 1) for _ in range(4)] for s in full]
    scores, has = depth_scores(full, retain, unlearned, threshold)
    expected = [loop_depth(*row, threshold) for row in zip(full, retain, unlearned, strict=True)]
    assert has.tolist() == [each is not None for each in expected]
    assert scores.tolist() == pytest.approx([each or 0.0 for each in expected], rel=1e-12)
    # A layer over rows is what a row is over layers.
    shares, counts = layer_shares(full, retain, unlearned, threshold)
    for layer in range(4):
        above = below = rows = 0.0
        for s, s1, s2 in zip(full, retain, unlearned, strict=True):
            if s - s1[layer] > threshold:
                above += min(s - s1[layer], max(0.0, s - s2[layer]))
                below += s - s1[layer]
                rows += 1
        assert shares[layer] == pytest.approx(above / below, rel=1e-12)
        assert counts[layer] == rows


def test_worked_by_hand():
    # Layers lose 1, 3 and nothing without the knowledge; a half, all and more is gone: (0.5 + 3) / 4.
    scores, has = depth_scores([-1.0], [[-2.0, -4.0, -1.02]], [[-1.5, -9.0, -5.0]])
    assert (scores.tolist(), has.tolist()) == ([3.5 / 4], [True])
    # At the threshold itself a layer does not count, and what became likelier is not gone.
    scores, has = depth_scores([0.0, 0.0], [[-0.05], [-1.0]], [[-1.0], [2.0]])
    assert (scores.tolist(), has.tolist()) == ([0, 0], [False, True])


def test_the_target_is_intact_and_the_retain_only_model_is_erased():
    full, retain = [-0.1, -0.2], [[-1.0, -0.2], [-3.0, -2.0]]
    target = [[each, each] for each in full]
    assert depth_scores(full, retain, target)[0].tolist() == [0, 0]
    assert depth_scores(full, retain, retain)[0].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("call", "error", "line"),
    [
        (lambda: depth_scores([], [], []), ValueError, "full must have at least one row"),
        (
            lambda: depth_scores([0.0], [[0.0]], [[0.0, 1.0]]),
            ValueError,
            r"1 rows of full \(got \[1, 1\] and \[1, 2\]",
        ),
        (
            lambda: depth_scores([0.0], [[0.0]] * 2, [[0.0]] * 2),
            ValueError,
            "one row of layers for each of 1 rows",
        ),
        (lambda: depth_scores([0.0], [0.0], [0.0]), ValueError, r"retain must have shape \[N, L\]"),
        (lambda: depth_scores([0.0], [[float("nan")]], [[0.0]]), ValueError, "retain must be finite"),
        (lambda: depth_scores([0.0], [[0.0]], [[float("inf")]]), ValueError, "unlearned must be finite"),
        (
            lambda: depth_scores([0.0], [[0.0]], [[0.0]], -0.1),
            InputError,
            "threshold must be a finite number >= 0",
        ),
    ],
)
def test_names_what_it_refuses(call, error, line):
    with pytest.raises(error, match=line):
        call()
