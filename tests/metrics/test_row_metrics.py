"""The torchmetrics on the pure functions: one value a row, whatever the batches and processes."""

import copy
import functools
import math
import pickle
import random

import gloo_ranks
import pytest
import torch
from gloo_ranks import FIGURES, SPLIT, WORDS, correct_nll, generation, score, wrong_nll

from dipo_pl.metrics import (
    AnswerProbability,
    ExactMemorization,
    ExtractionStrength,
    ForgetQualityTest,
    MembershipAUC,
    ModelUtility,
    OptionProbability,
    RougeLRecall,
    TruthRatio,
    arithmetic_truth_ratio,
    forget_quality,
    truth_ratio,
    truth_ratio_margin,
)

ROWS = range(7)


def ratio(row):
    return math.exp(correct_nll(row) - sum(wrong_nll(row)) / 3)


def loop_option(row, epsilon=0.0):
    right = math.exp(-correct_nll(row))
    return right / (right + sum(math.exp(-wrong) for wrong in wrong_nll(row)) + epsilon)


def loop_strength(row):
    """The right end of an answer whose token at row // 2 is wrong."""
    return (row + 2 - (row // 2 + 1)) / (row + 2)


def loop_auc():
    won = 0.0
    for member in ROWS:
        for other in ROWS:
            first, second = score(member), score(other + 2)
            won += 1 if second > first else 0.5 if second == first else 0
    return won / 49


def mean(function):
    return sum(map(function, ROWS)) / 7


MEANS = {
    "AnswerProbability": lambda row: math.exp(-correct_nll(row)),
    "OptionProbability": loop_option,
    "TruthRatio": lambda row: min(ratio(row), 1 / ratio(row)),
    "RougeLRecall": lambda row: (row + 1) / len(WORDS),
    "ExactMemorization": lambda row: (row + 1) / (row + 2),
    "ExtractionStrength": loop_strength,
}
EXPECTED = {name: mean(function) for name, function in MEANS.items()} | {
    "MembershipAUC": loop_auc(),
    "ModelUtility": 2
    / (1 / mean(MEANS["AnswerProbability"]) + 1 / mean(lambda row: max(0.0, 1 - ratio(row)))),
    "ForgetQualityTest": list(
        forget_quality([math.log(ratio(row)) for row in ROWS], [0.1 * row - 0.2 for row in ROWS])
    ),
}


def collect(name, *batches):
    make, feed = FIGURES[name]
    metric = make()
    for rows in batches:
        feed(metric, rows)
    return metric


@pytest.mark.parametrize("name", FIGURES)
def test_matches_loop_whatever_the_batches(name):
    order = list(ROWS)
    random.Random(0).shuffle(order)
    whole = collect(name, list(ROWS)).compute()
    figures = torch.as_tensor(whole, dtype=torch.float64).tolist()
    assert figures == pytest.approx(EXPECTED[name], rel=1e-12)
    assert collect(name, *([row] for row in order)).compute() == whole
    assert collect(name, order[:3], order[3:], order[2:5]).compute() == whole


@pytest.mark.parametrize("name", FIGURES)
def test_two_processes_give_what_one_gives(ranks, name):
    one = torch.as_tensor(collect(name, *SPLIT[0], *SPLIT[1]).compute(), dtype=torch.float64)
    for rank in ranks:
        assert torch.equal(rank["figures"][name], one)


def test_two_processes_refuse_together(ranks):
    for rank in ranks:
        message, afresh = rank["diverged"]
        assert message.startswith("nll must be finite, got nan at row 1 (1 of 2 rows)")
        assert afresh == 1


@pytest.mark.parametrize("name", FIGURES)
def test_starts_anew_after_reset(name):
    make, feed = FIGURES[name]
    metric = make()
    feed(metric, [9, 8])
    metric.reset()
    feed(metric, list(ROWS))
    assert metric.compute() == collect(name, list(ROWS)).compute()


@pytest.mark.parametrize("name", sorted({*FIGURES} - {"MembershipAUC", "ModelUtility"}))
def test_calling_it_is_updating_it(name):
    make, feed = FIGURES[name]
    metric = make()

    class Called:
        update = staticmethod(metric)

    assert feed(Called, list(ROWS)) is None
    assert metric.compute() == collect(name, list(ROWS)).compute()


@pytest.mark.parametrize("name", FIGURES)
def test_copies_are_their_own(name):
    metric = collect(name, [3, 4, 5, 6])
    for copied in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        FIGURES[name][1](copied, [0, 1, 2])
        assert copied.compute() == collect(name, list(ROWS)).compute()
    FIGURES[name][1](metric, [0, 1, 2])
    assert metric.compute() == collect(name, list(ROWS)).compute()


def test_options_of_torchmetrics_reach_what_collects():
    option = {"sync_on_compute": False}
    metrics = [AnswerProbability(**option), OptionProbability(**option), TruthRatio(**option)]
    metrics += [ForgetQualityTest([0.1], **option), ExtractionStrength(**option)]
    collecting = [metric.collected for metric in metrics]
    auc = MembershipAUC(**option)
    assert not any(each.sync_on_compute for each in [*collecting, auc.members, auc.nonmembers])


@pytest.mark.parametrize("name", MEANS)
def test_per_row(name):
    rows, scores = collect(name, [6, 2], [0, 2]).per_row()
    assert rows.tolist() == [0, 2, 6]
    assert scores.dtype == torch.float64
    expected = ratio if name == "TruthRatio" else MEANS[name]
    assert scores.tolist() == pytest.approx([expected(row) for row in (0, 2, 6)], rel=1e-12)


def test_per_row_of_forget_quality_is_in_log_space():
    metric = ForgetQualityTest([0.0, 1.0])
    metric.update(torch.tensor([1, 0]), torch.tensor([9000.0, 1.0]), torch.tensor([[1.0], [9000.0]]))
    rows, scores = metric.per_row()
    assert rows.tolist() == [0, 1]
    assert scores.tolist() == [-8999, 8999]


def test_both_sets_of_a_membership_score_are_reachable():
    metric = collect("MembershipAUC", [1, 0])
    for part, shift in ((metric.members, 0), (metric.nonmembers, 2)):
        rows, scores = part.compute()
        assert rows.tolist() == [0, 1]
        assert scores.flatten().tolist() == [math.sin(shift), math.sin(1 + shift)]


def feed_all(metric):
    gloo_ranks.feed_losses(metric, list(ROWS))
    return metric.compute().item()


def test_truth_ratio_of_what_is_kept():
    margin = mean(lambda row: max(0.0, 1 - ratio(row)))
    assert feed_all(TruthRatio(truth_ratio_margin)) == pytest.approx(margin, rel=1e-12)


def test_variants():
    def arithmetic(row):
        return sum(math.exp(-wrong) for wrong in wrong_nll(row)) / 3 / math.exp(-correct_nll(row))

    expected = mean(lambda row: min(arithmetic(row), 1 / arithmetic(row)))
    assert feed_all(TruthRatio(ratio=arithmetic_truth_ratio)) == pytest.approx(expected, rel=1e-12)
    with_epsilon = mean(lambda row: loop_option(row, 0.25))
    assert feed_all(OptionProbability(epsilon=0.25)) == pytest.approx(with_epsilon, rel=1e-12)

    def geometric(row):
        return math.exp(-sum(wrong_nll(row)) / 3) / (math.exp(-correct_nll(row)) + 0.25)

    metric = TruthRatio(ratio=functools.partial(truth_ratio, epsilon=0.25))
    expected = mean(lambda row: min(geometric(row), 1 / geometric(row)))
    assert feed_all(metric) == pytest.approx(expected, rel=1e-12)


def test_keeps_the_more_precise_of_two_dtypes():
    metric = ForgetQualityTest([0.0])
    wrong = torch.tensor([[1 / 3]], dtype=torch.float64)
    metric.update(torch.tensor([0]), torch.tensor([0.5]), wrong)
    assert metric.per_row()[1].item() == 0.5 - 1 / 3


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric PerRow was called before")
@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (
            AnswerProbability(),
            "AnswerProbability has no rows; update it with those of its set before compute",
        ),
        (RougeLRecall(), "RougeLRecall has no rows"),
        (ForgetQualityTest([0.5]), "ForgetQualityTest has no rows"),
        (MembershipAUC(), "members must hold at least one score, got none"),
        (ModelUtility({"retain": TruthRatio()}), "TruthRatio has no rows"),
    ],
)
def test_refuses_to_make_a_figure_of_nothing(metric, message):
    with pytest.raises(ValueError, match=message):
        metric.compute()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([0, 1, 3], r"got 3 rows \(0 to 3\) and 3; measure every row of the set"),
        ([0, 1], r"got 2 rows \(0 to 1\) and 3"),
        ([0, 1, 2, 3], r"got 4 rows \(0 to 3\) and 3"),
    ],
)
def test_forget_quality_refuses_other_rows_than_the_retain_models(rows, message):
    metric = ForgetQualityTest([0.1, 0.2, 0.3])
    gloo_ranks.feed_losses(metric, rows)
    with pytest.raises(ValueError, match=message):
        metric.compute()


def test_forget_quality_refuses_retain_ratios_of_another_shape():
    with pytest.raises(ValueError, match=r"retain must have shape \[N\], got \[1, 2\]"):
        ForgetQualityTest([[0.1, 0.2]])


@pytest.mark.parametrize(
    ("correct", "wrong"), [((2,), (3, 1)), ((2, 1), (2, 1)), ((2,), (2,)), ((2,), (2, 0)), ((), (2, 1))]
)
def test_refuses_answers_that_do_not_pair_up(correct, wrong):
    with pytest.raises(ValueError, match=r"must have shapes \[R\] and \[R, K\], K >= 1, got \["):
        TruthRatio().update(torch.tensor([0, 1]), torch.ones(correct), torch.ones(wrong))


@pytest.mark.parametrize("shape", [(), (2, 1), (3,)])
def test_refuses_losses_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"values must have shape \[2, K\]"):
        AnswerProbability().update(torch.tensor([0, 1]), torch.ones(shape))
    with pytest.raises(ValueError, match=r"values must have shape \[2, K\]"):
        MembershipAUC().update(torch.tensor([0, 1]), torch.ones(shape), members=True)


@pytest.mark.parametrize("metric", [ExactMemorization, ExtractionStrength])
def test_refuses_answers_without_tokens(metric):
    with pytest.raises(ValueError, match="predictions has an answer without tokens at row 1"):
        metric().update(torch.tensor([4, 5]), [[1], []], [[1], []])


def test_refuses_a_negative_epsilon_at_once():
    with pytest.raises(ValueError, match="epsilon must be a finite number >= 0, got -1"):
        OptionProbability(epsilon=-1)


def test_model_utility_names_its_parts():
    metric = ModelUtility({"retain": RougeLRecall(), "facts": RougeLRecall()})
    with pytest.raises(ValueError, match="no part 'fact'; its parts are retain, facts"):
        metric.update("fact", torch.tensor([0]), ["a"], ["a"])
    with pytest.raises(ValueError, match="at least one part, got none"):
        ModelUtility({})
    metric.update("retain", torch.tensor([0]), [generation(3)], [generation(3)])
    metric.update("facts", torch.tensor([0]), ["sea"], ["a b c d"])
    assert metric.compute() == 0
