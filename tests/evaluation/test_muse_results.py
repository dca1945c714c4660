"""MUSE's published retrained models: their figures, whom they are compared with, and PrivLeak the way MUSE counts."""

import random

import numpy as np
import pytest

from dipo_pl.errors import InputError
from dipo_pl.evaluation.conventions import CONVENTIONS
from dipo_pl.evaluation.measurement import measured
from dipo_pl.evaluation.observation import Observation
from dipo_pl.evaluation.published_results import published, published_names
from dipo_pl.evaluation.result import EvaluationResult, SetResult
from dipo_pl.evaluation.retain_result import check_comparable, read_result
from dipo_pl.evaluation_set import EvaluationSet
from dipo_pl.measures import Answered, Membership
from dipo_pl.metrics.functional import priv_leak
from dipo_pl.rows import Row

# VerbMem, KnowMem on forget and on retain, in percent, as MUSE's repository has them of its retrained models; and the
# Min-40% area between forget and holdout that its code divides by, in its direction.
MUSE = {
    "muse_news_retrained": ("MUSE-News", 20.8, 33.1, 55.0, 0.4772),
    "muse_books_retrained": ("MUSE-Books", 14.3, 28.9, 74.5, 0.5393),
}
TEXTS = [Row((), f"Article {each}.") for each in range(100)]


@pytest.mark.parametrize("name", MUSE)
def test_figures_are_muses_own(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    corpus, *percents, area = MUSE[name]
    result = read_result(name)
    assert result == published(name)
    assert result.convention == "muse"
    assert result.settings["corpus"] == corpus
    names = ("forget_verbatim", "forget_knowledge", "retain_knowledge")
    assert [round(100 * result.metrics[each], 1) for each in names] == percents
    assert result.metrics["membership_min_k_auc"] == pytest.approx(1 - area)


# The same areas of MUSE's target models, in its direction, and the leaks that they are.
@pytest.mark.parametrize(
    ("name", "area", "leak"),
    [("muse_news_retrained", 0.0009, -99.8), ("muse_books_retrained", 0.2291, -57.5)],
)
def test_priv_leak_of_the_published_targets(name, area, leak):
    retain_auc = published(name).metrics["membership_min_k_auc"]
    assert priv_leak(1 - area, retain_auc) == pytest.approx(leak, abs=0.05)
    assert priv_leak(1.0, retain_auc) == pytest.approx(-100)
    assert priv_leak(retain_auc, retain_auc) == 0


def lowest_mean(log_probabilities):
    lowest = sorted(log_probabilities)[: max(1, int(0.4 * len(log_probabilities)))]
    return -sum(lowest) / len(lowest)


def observed(tokens):
    scores = np.array(tokens, dtype=np.float32)
    ids = np.arange(len(tokens))
    return Observation((1.0,), ids, ids, scores, scores, np.ones_like(scores))


@pytest.mark.parametrize("name", MUSE)
def test_priv_leak_from_tokens_in_muses_direction(name):
    """MUSE labels holdout 1 and scores -Min-K%: its area is the share of pairs where the holdout text is likelier."""
    rng = random.Random(0)
    tokens = {
        kind: [[-rng.uniform(0, top) for _ in range(rng.randint(1, 9))] for _ in range(12)]
        for kind, top in (("forget", 4.0), ("holdout", 5.0))
    }
    sets = [
        Answered(
            EvaluationSet(kind, [Row((), f"{kind} {row}") for row in range(12)], new_tokens=0),
            [observed(each) for each in texts],
            CONVENTIONS["muse"],
        )
        for kind, texts in tokens.items()
    ]
    forget, holdout = ([lowest_mean(each) for each in tokens[kind]] for kind in ("forget", "holdout"))
    wins = sum(0.5 if b == a else b < a for a in forget for b in holdout)
    area, retrained = wins / 144, MUSE[name][-1]
    assert 0 < area < 0.5
    found = measured(sets, [Membership()], [], published(name)).metrics
    assert found["membership_min_k_auc"] == pytest.approx(1 - area)
    assert found["priv_leak"] == pytest.approx(100 * (area - retrained) / retrained, abs=1e-6)
    assert found["priv_leak"] < 0
    assert "forget_quality" not in found


def settings(**changes):
    return {"corpus": "MUSE-News", "membership_k": 0.4, "prompt": "QuestionAnswer"} | changes


@pytest.mark.parametrize(
    ("convention", "rows", "here", "line"),
    [
        ("muse", TEXTS, settings(corpus="MUSE-Books"), "(corpus MUSE-News there and MUSE-Books here)"),
        ("muse", TEXTS, settings(membership_k=0.2), "(membership_k 0.4 there and 0.2 here)"),
        ("muse", TEXTS[:10], settings(), "(forget_rows 100 there and 10 here)"),
        ("muse", TEXTS, {"prompt": "QuestionAnswer"}, "(unnamed, there MUSE-News) is not known"),
        ("open_unlearning", TEXTS, settings(), "follows the convention muse and this run open_unlearning"),
    ],
)
def test_whom_a_published_model_is_not_compared_with(convention, rows, here, line):
    name = "muse_news_retrained"
    check_comparable(published(name), name, "muse", TEXTS, settings())
    with pytest.raises(InputError) as error:
        check_comparable(published(name), name, convention, rows, here)
    assert str(error.value).startswith(f"forget_quality.retain_result {name} ")
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_priv_leak_wants_the_same_holdout():
    area = {"membership_min_k_auc": 0.5}
    rows = [{"row": 0, "min_k": 1.0}]
    sets = {"forget": SetResult({}, rows, "f"), "holdout": SetResult({}, rows, "h")}
    other = EvaluationResult("muse", area, {"holdout": SetResult({}, rows, "other")})
    assert "priv_leak" not in Membership().across(sets, other)
    assert Membership().across(sets, EvaluationResult("muse", area, {}))["priv_leak"] == 0


def test_unknown_published_name():
    assert published_names() == [
        "llama2-7b_full", "llama2-7b_retain90",
        "muse_books_retrained", "muse_books_retrained_area", "muse_news_retrained", "muse_news_retrained_area",
    ]  # fmt: skip
    with pytest.raises(
        InputError, match="no published result 'phi': use llama2-7b_full, llama2-7b_retain90, muse"
    ):
        published("phi")


@pytest.mark.parametrize("name", MUSE)
def test_for_open_unlearning_there_is_the_area_alone(name):
    whole, area = published(name), published(f"{name}_area")
    assert area.convention == "open_unlearning"
    assert area.metrics == {"membership_min_k_auc": whole.metrics["membership_min_k_auc"]}
    assert area.settings == whole.settings
