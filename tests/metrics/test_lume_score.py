"""LUME's score: exact match, the mean of all rates, membership; against plain loops and the published leaderboard."""

import random

import pytest
from made import observed, result

from dipo_pl.metrics import ExactMatch, Fluency, LUMEScore, Membership, Rouge
from dipo_pl.metrics.base import all_values
from dipo_pl.metrics.exact_match import exact_match
from dipo_pl.metrics.lume_score import lume_aggregate, membership_score, task_aggregate

METRICS = [Rouge(), ExactMatch(), Membership(), LUMEScore()]


@pytest.mark.parametrize(("said", "true", "match"), [
    ("Madera", "Madera", 1), (" madera\n", "Madera", 1), ("MADERA", " madera ", 1), ("Madera.", "Madera", 0),
    ("Madera, a city", "Madera", 0), ("", "Madera", 0), ("721 625 3765", "7216253765", 0), ("Éva", "éva", 1),
])  # fmt: skip
def test_exact_match(said, true, match):
    assert exact_match(["x", said], ["y", true]).tolist() == [0, match]


@pytest.mark.parametrize(("arguments", "line"), [
    (("Madera", ["Madera"]), "predictions must be a list of strings"),
    ((["a"], ["a", "b"]), "predictions and references must have as many rows"),
    (([1], ["1"]), "predictions must be strings"),
])  # fmt: skip
def test_exact_match_of_what_are_no_texts(arguments, line):
    with pytest.raises(ValueError, match=line):
        exact_match(*arguments)


def by_hand(forget, retain):
    total = 0.0
    for rate in forget:
        if rate == 1:
            return 0.0
        total += 1 / (1 - rate)
    for rate in retain:
        if rate == 0:
            return 0.0
        total += 1 / rate
    return (len(forget) + len(retain)) / total


@pytest.mark.parametrize("tasks", [1, 3])
def test_task_aggregate_is_the_harmonic_mean(tasks):
    draw = random.Random(tasks)
    for _ in range(20):
        forget, retain = ([draw.random() for _ in range(2 * tasks)] for _ in range(2))
        assert task_aggregate(forget, retain) == pytest.approx(by_hand(forget, retain), rel=1e-12)
        # In any order.
        assert task_aggregate(forget[::-1], retain) == pytest.approx(task_aggregate(forget, retain))


@pytest.mark.parametrize(("forget", "retain", "value"), [
    ([0, 0], [1, 1], 1.0), ([1, 0], [1, 1], 0.0), ([0, 0], [1, 0], 0.0), ([0.5, 0.5], [0.5, 0.5], 0.5),
])  # fmt: skip
def test_the_ends_of_task_aggregate(forget, retain, value):
    assert task_aggregate(forget, retain) == pytest.approx(value)


@pytest.mark.parametrize(("auc", "value"), [(0.5, 1.0), (1.0, 0.0), (0.0, 0.0), (0.75, 0.5), (0.25, 0.5)])
def test_membership_is_best_in_the_middle(auc, value):
    assert membership_score(auc) == pytest.approx(value)


# Task aggregate, MIA score, MMLU and final score of the organizers' leaderboard of 7B models.
LEADERBOARD = [(0.827, 0.847, 0.443, 0.706), (0.944, 0.048, 0.471, 0.487), (0.387, 0.256, 0.485, 0.376)]


@pytest.mark.parametrize(("task", "membership", "mmlu", "final"), LEADERBOARD)
def test_the_published_aggregate(task, membership, mmlu, final):
    assert lume_aggregate(task, membership, mmlu) == pytest.approx(final, abs=1e-3)


@pytest.mark.parametrize(("call", "line"), [
    (lambda: task_aggregate([1.5], [0.5]), r"forget must be rates in \[0, 1\]"),
    (lambda: task_aggregate([0.5], [-0.1]), r"retain must be rates in \[0, 1\]"),
    (lambda: task_aggregate([], [0.5]), "forget must have at least one row"),
    (lambda: membership_score(1.1), r"auc must be an area in \[0, 1\] \(got 1.1\)"),
    (lambda: lume_aggregate(0.8, 0.8, 44.3), r"parts must be in \[0, 1\]"),
])  # fmt: skip
def test_values_out_of_range(call, line):
    with pytest.raises(ValueError, match=line):
        call()


def sets_of(pairs, tasks=(1, 3), metrics=METRICS):
    """Return results of sets with answers that are or are not the true ones, by the name of the set."""
    found = {}
    for name, hits in pairs.items():
        for task in tasks:
            for kind, truth in (("regurgitation", "he walked home alone"), ("knowledge", "Madera")):
                said = [truth if hit else "no idea" for hit in hits]
                rows = [observed(1.0, generation=each) for each in said]
                key = f"{name}_task{task}_{kind}"
                found[key] = result(metrics, key, *rows, answers=[truth] * len(said))
    return found


def test_rates_and_aggregate_of_the_tasks_that_are_measured():
    sets = sets_of({"forget": (1, 0, 0, 0), "retain": (1, 1, 0), "holdout": (0, 0)})
    found = all_values(sets, METRICS)
    assert (
        found["forget_task3_knowledge_exact_match"]
        == found["forget_task1_regurgitation_rouge_l_recall"]
        == 0.25
    )
    assert "forget_task1_regurgitation_exact_match" not in found
    rates = [
        found[f"{name}_{rate}"]
        for name in ("forget", "retain", "holdout")
        for rate in ("regurgitation", "exact_match")
    ]
    assert rates == pytest.approx([0.25, 0.25, 2 / 3, 2 / 3, 0, 0])
    assert found["lume_task_aggregate"] == pytest.approx(by_hand([0.25] * 4, [2 / 3] * 4))
    # Nothing to measure membership with.
    assert not {"lume_membership", "lume_without_mmlu"} & found.keys()


def test_means_are_of_each_task_and_not_of_all_rows():
    sets = sets_of({"forget": (1, 0), "retain": (1, 0)}, tasks=[1]) | sets_of(
        {"forget": (0,) * 9, "retain": (1,) * 9}, [2]
    )
    found = all_values(sets, METRICS)
    assert found["forget_exact_match"] == pytest.approx(1 / 11)
    assert found["lume_task_aggregate"] == pytest.approx(by_hand([0.5, 0.5, 0, 0], [0.5, 0.5, 1, 1]))


@pytest.mark.parametrize("lacking", [["forget_task1_knowledge"], ["retain_task3_regurgitation"], [
    "forget_task1_knowledge", "forget_task1_regurgitation", "retain_task3_knowledge", "retain_task3_regurgitation",
]])  # fmt: skip
def test_no_aggregate_where_a_set_is_not_measured(lacking):
    sets = sets_of({"forget": (1, 0), "retain": (1, 0)})
    for each in lacking:
        del sets[each]
    assert "lume_task_aggregate" not in all_values(sets, METRICS)


def losses(name, *values):
    return result(METRICS, name, *(observed(each) for each in values))


def test_membership_of_answers_or_of_documents():
    tasks = sets_of({"forget": (0, 0), "retain": (1, 1)})
    answers = {"forget": losses("forget", 0.1, 3.0), "holdout": losses("holdout", 2.0, 4.0)}
    found = all_values(tasks | answers, METRICS)
    assert found["membership_loss_auc"] == 0.75
    assert (found["lume_membership"], found["lume_task_aggregate"]) == (0.5, 1.0)
    assert found["lume_without_mmlu"] == 0.75
    # Documents come first, as in the benchmark.
    documents = {"member": losses("member", 1.0, 1.0), "nonmember": losses("nonmember", 1.0, 1.0)}
    assert all_values(tasks | answers | documents, METRICS)["lume_membership"] == 1.0
    assert "member_document_loss" not in all_values(documents, METRICS)


def test_other_data_have_no_score():
    answers = {"forget": losses("forget", 0.1, 3.0), "holdout": losses("holdout", 2.0, 4.0)}
    assert not any("lume" in each or "exact_match" in each for each in all_values(answers, METRICS))


def test_generated_answers_of_all_rows():
    """The sets of all rows have no answers of their own; these are the answers of the tasks' sets."""
    metrics = [*METRICS, Fluency()]
    tasks = sets_of({"forget": (1, 0)}, metrics=metrics)
    whole = losses("forget", *[1.0] * 8)
    found = all_values(tasks | {"forget": whole}, metrics)
    assert found["forget_rouge_l_recall"] == pytest.approx(0.5)
    rows = [row for each in tasks.values() for row in each.rows]
    for name in ("repetition", "distinct_2", "word_entropy", "refusals"):
        assert found[f"forget_{name}"] == pytest.approx(sum(row[name] for row in rows) / 8)
    # A part of the rows is not all of them.
    assert "forget_rouge_l_recall" not in all_values(
        tasks | {"forget": losses("forget", *[1.0] * 9)}, metrics
    )
    assert "forget_rouge_l_recall" not in all_values(tasks, metrics)


def test_without_generated_answers_membership_alone():
    name = "forget_task1_knowledge"
    sets = {name: losses(name, 1.0), "forget": losses("forget", 1.0), "holdout": losses("holdout", 1.0)}
    found = all_values(sets, METRICS)
    assert {each for each in found if each.startswith("lume_")} == {"lume_membership"}
