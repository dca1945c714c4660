import math
import random
import zlib as compression

import pytest
import torch

from dipo_pl.metrics.membership import auroc, min_k, min_k_plus_plus, priv_leak, zlib

SHARES = [0.01, 0.2, 0.4, 0.5, 0.99, 1.0]


def loop_lowest(values, k):
    """Take away the lowest value as often as the share of the tokens says, once at least."""
    left = list(values)
    total, count = 0.0, 0
    while count < max(1, int(k * len(values))):
        lowest = min(left)
        left.remove(lowest)
        total += lowest
        count += 1
    return -total / count


def loop_token(logits, target):
    """log p of one token, and mean and variance of log p over the vocabulary, from logits made by hand."""
    total = 0.0
    for logit in logits:
        total += math.exp(logit)
    logs = [logit - math.log(total) for logit in logits]
    mean = 0.0
    for log in logs:
        mean += math.exp(log) * log
    variance = 0.0
    for log in logs:
        variance += math.exp(log) * (log - mean) ** 2
    return logs[target], mean, variance


def draw(n, vocabulary=7, seed=0):
    """Return for answers of unequal length log p, mean and variance of each token, as lists and as a model's tensors."""
    rng = random.Random(seed)
    lists, tensors = [], []
    for _ in range(n):
        length = rng.randint(1, 12)
        logits = [[rng.gauss(0, 3) for _ in range(vocabulary)] for _ in range(length)]
        targets = [rng.randrange(vocabulary) for _ in range(length)]
        lists.append([loop_token(row, target) for row, target in zip(logits, targets, strict=True)])
        log_p = torch.tensor(logits, dtype=torch.float64).log_softmax(dim=-1)
        mean = (log_p.exp() * log_p).sum(dim=-1)
        variance = (log_p.exp() * log_p**2).sum(dim=-1) - mean**2
        tensors.append((log_p[torch.arange(length), targets], mean, variance))
    return lists, [list(column) for column in zip(*tensors, strict=True)]


@pytest.mark.parametrize("k", SHARES)
@pytest.mark.parametrize("n", [1, 3, 60])
def test_matches_loop_on_logits_made_by_hand(n, k):
    answers, tensors = draw(n)
    expected = [loop_lowest([log_p for log_p, _, _ in answer], k) for answer in answers]
    assert min_k(tensors[0], k).tolist() == pytest.approx(expected, rel=1e-10)
    standardized = [
        [(log_p - mean) / math.sqrt(max(variance, 1e-6)) for log_p, mean, variance in answer]
        for answer in answers
    ]
    expected = [loop_lowest(answer, k) for answer in standardized]
    assert min_k_plus_plus(*tensors, k).tolist() == pytest.approx(expected, rel=1e-8)


def test_worked_by_hand():
    # p = (1/2, 1/4, 1/4): log p has mean -3/2 ln 2 and standard deviation 1/2 ln 2.
    ln2 = math.log(2)
    logits = [3.0, 3.0 - ln2, 3.0 - ln2]
    tokens = [loop_token(logits, target) for target in (0, 1, 0, 0, 2)]
    log_probs, means, variances = ([list(column)] for column in zip(*tokens, strict=True))
    # Two of the five tokens are the lowest 40 %.
    assert min_k(log_probs).item() == pytest.approx(2 * ln2)
    assert min_k_plus_plus(log_probs, means, variances).item() == pytest.approx(1)
    assert min_k(log_probs, k=0.6).item() == pytest.approx(5 / 3 * ln2)
    assert min_k_plus_plus(log_probs, means, variances, k=1.0).item() == pytest.approx(-1 / 5)
    # 40 % of two tokens is one.
    assert min_k([[-1.0, -3.0], [-5.0]]).tolist() == [3, 5]


def test_a_token_that_is_certain():
    # A variance of 0, rounded to either side of it, counts as 1e-6.
    for variance in (0.0, -1e-9, 1e-7):
        assert min_k_plus_plus([[-0.002]], [[-0.001]], [[variance]]).item() == pytest.approx(1)
    # Its logarithm may be rounded to above 0.
    assert min_k([[1e-6]]).item() == -1e-6


def test_members_are_below_others():
    assert min_k([[-0.1, -0.2, -0.1]]) < min_k([[-0.1, -6.0, -0.1]])
    assert min_k_plus_plus([[-0.1]], [[-2.0]], [[4.0]]) < min_k_plus_plus([[-6.0]], [[-2.0]], [[4.0]])
    assert zlib([0.1], ["ab"]) < zlib([2.0], ["ab"])


def test_zlib_matches_loop():
    texts = ["Quito", "Quito " * 50, "Kuvajtská čtvrť, 科威特", "a"]
    nll = [0.5, 0.25, 3.0, 0.0]
    expected = []
    for loss, text in zip(nll, texts, strict=True):
        compressor = compression.compressobj(-1)
        size = len(compressor.compress(bytes(text, "utf-8"))) + len(compressor.flush())
        expected.append(loss / size)
    assert zlib(nll, texts).tolist() == pytest.approx(expected, rel=1e-15)
    # Two bytes of head, four of checksum, and what one letter takes.
    assert zlib([18.0], ["a"]).item() == 2


def loop_auroc(members, nonmembers):
    won = 0.0
    for member in members:
        for nonmember in nonmembers:
            won += 1 if nonmember > member else 0.5 if nonmember == member else 0
    return won / (len(members) * len(nonmembers))


@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 5), (40, 31), (100, 100)])
@pytest.mark.parametrize("values", [2, 5, 10**6])
def test_auroc_matches_loop(n, m, values):
    rng = random.Random(n * values)
    members = [rng.randrange(values) / 8 for _ in range(n)]
    nonmembers = [rng.randrange(values) / 8 + rng.choice([0, 0.125]) for _ in range(m)]
    assert auroc(members, nonmembers) == pytest.approx(loop_auroc(members, nonmembers), rel=1e-15)


def test_auroc_worked_by_hand():
    # More than float32 can tell.
    assert auroc([1.0], [1.0 + 1e-12]) == 1
    assert auroc([0.1, 0.2], [0.3, 0.4]) == 1
    assert auroc([0.3, 0.4], [0.1, 0.2]) == 0
    assert auroc([0.5, 0.5], [0.5]) == 0.5
    # Of the six pairs 0.2 wins one and ties one, 0.3 wins three.
    assert auroc([0.1, 0.2, 0.25], [0.2, 0.3]) == 4.5 / 6


def test_auroc_turns_round_with_its_sets():
    first, second = [1.0, 2.0, 2.0, 5.0], [2.0, 3.0, 0.5]
    assert auroc(first, second) + auroc(second, first) == 1
    assert auroc([math.exp(x) for x in first], [math.exp(x) for x in second]) == auroc(first, second)


@pytest.mark.parametrize(("auc", "retain_auc", "expected"), [
    (0.5, 0.5, 0),
    # Still recognised, and forgotten too hard.
    (1.0, 0.5, -100),
    (0.0, 0.5, 100),
    (0.75, 0.5, -50),
    (0.4, 0.2, -25),
    (0.2, 0.4, 100 / 3),
    (0.5, 0.9, 400),
])  # fmt: skip
def test_priv_leak(auc, retain_auc, expected):
    assert priv_leak(auc, retain_auc) == pytest.approx(expected, abs=1e-6)
    if retain_auc == 0.5:
        assert priv_leak(auc) == priv_leak(auc, retain_auc)
    # As MUSE writes it, with the area under the curve of members against non-members.
    muse, muse_retain = 1 - auc, 1 - retain_auc
    assert priv_leak(auc, retain_auc) == pytest.approx(
        (muse - muse_retain) / muse_retain * 100, rel=1e-8, abs=1e-9
    )


def test_priv_leak_has_open_unlearnings_epsilon():
    # One pair in 160,000 short of 1.
    auc = 1 - 1 / 160_000
    assert priv_leak(0.5, auc) == pytest.approx(100 * (0.5 - (1 - auc)) / (1 - auc + 1e-10), rel=1e-13)
    assert priv_leak(0.5, auc) != pytest.approx(100 * (0.5 - (1 - auc)) / (1 - auc), rel=1e-6)


GOOD, LOSSES, ONES = [[-1.0], [-1.0, -2.0]], [[-1.0], [-1.0, 2.0]], [[1.0], [1.0, 1.0]]


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (
            lambda: min_k(LOSSES),
            r"token_log_probs must be <= 0 nats \(got 2 at row 1; 1 of 2 rows\): pass log-prob",
        ),
        (lambda: min_k_plus_plus(LOSSES, GOOD, ONES), r"token_log_probs must be <= 0 nats \(got 2 at row 1"),
        (lambda: min_k_plus_plus(GOOD, LOSSES, ONES), r"means must be <= 0 nats \(got 2 at row 1"),
        (
            lambda: min_k_plus_plus(GOOD, GOOD, [[-3.0], [1.0, 1.0]]),
            r"variances must be >= 0 \(got -3 at row 0; 1 of 2 rows\): pass variances, not",
        ),
        *(
            (lambda areas=areas: priv_leak(*areas), rf"^{name} must be an area in \[0, 1\] \(got {bad}\)")
            for bad in (-0.1, 1.1, math.nan)
            for name, areas in (("auc", (bad,)), ("retain_auc", (0.5, bad)))
        ),
        (lambda: priv_leak(0.5, 1.0), r"retain_auc must be below 1 \(got 1\): .* check which set is which"),
        (lambda: zlib([0.1, 0.2], ["a"]), r"nll and texts must have as many rows \(got 2 and 1\)"),
        (lambda: zlib([0.1, 0.2], ["a", ""]), "texts has an answer without tokens at row 1"),
        (lambda: zlib([math.nan], ["a"]), r"nll must be finite \(got nan at row 0"),
        (lambda: zlib([0.1], "a"), r"texts must be a list of strings \(got the string 'a'\)"),
        (lambda: auroc([0.1, math.nan], [0.1]), r"^members must be finite \(got nan at row 1; 1 of 2 rows\)"),
        (lambda: auroc([0.1], [math.inf]), r"nonmembers must be finite \(got inf at row 0; "),
        (lambda: auroc([], [0.1]), r"^members must have at least one row \(got none\)"),
        (lambda: auroc([0.1], []), r"nonmembers must have at least one row \(got none\)"),
    ],
)
def test_names_what_it_refuses(call, line):
    with pytest.raises(ValueError, match=line):
        call()
