"""MUSE's published retrained models: their metrics, what they are compared with, and PrivLeak as MUSE computes it."""

import random

import pytest
import torch

from dipo_pl.errors import InputError
from dipo_pl.evaluation.published_results import published, published_names
from dipo_pl.evaluation.retain_result import check_comparable, read_result
from dipo_pl.evaluation_set import EvaluationSet
from dipo_pl.metrics import MeasuredSet, Membership, Observations
from dipo_pl.metrics.base import all_values, collection, set_result
from dipo_pl.metrics.conventions import CONVENTIONS
from dipo_pl.metrics.membership import priv_leak
from dipo_pl.rows import Row

# VerbMem, KnowMem on forget and on retain, in percent, as MUSE's repository has them of its retrained models; and the
# Min-40% area between forget and holdout that its code divides by, in its direction.
MUSE = {
    "muse_news_retrained": ("MUSE-News", 20.8, 33.1, 55.0, 0.4772),
    "muse_books_retrained": ("MUSE-Books", 14.3, 28.9, 74.5, 0.5393),
}
TEXTS = [Row((), f"Article {each}.") for each in range(100)]


@pytest.mark.parametrize("name", MUSE)
def test_metrics_are_muses_own(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    corpus, *percents, area = MUSE[name]
    result = read_result(name)
    assert result == published(name)
    assert result.convention == "muse"
    assert result.settings["corpus"] == corpus
    names = ("forget_verbatim", "forget_knowledge", "retain_knowledge")
    assert [round(100 * result.metrics[each], 1) for each in names] == percents
    assert result.metrics["membership_min_k_auc"] == pytest.approx(1 - area)
    # For the convention of open-unlearning there is the area alone.
    alone = published(f"{name}_area")
    assert alone.convention == "open_unlearning"
    assert alone.metrics == {"membership_min_k_auc": result.metrics["membership_min_k_auc"]}
    assert alone.settings == result.settings


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


def found_on(kind, texts):
    rows = [Row((), f"{kind} {row}") for row in range(len(texts))]
    set_ = EvaluationSet(kind, rows, new_tokens=0)
    metrics = collection([Membership()], MeasuredSet(set_, CONVENTIONS["muse"], generates=False))
    tokens = [torch.tensor(each) for each in texts]
    variances = [torch.ones_like(each) for each in tokens]
    seen = Observations(
        torch.arange(len(texts)), torch.ones(len(texts), 1), log_probabilities=tokens, means=tokens,
        variances=variances,
    )  # fmt: skip
    metrics.update(seen)
    return set_result(metrics)


@pytest.mark.parametrize("name", MUSE)
def test_priv_leak_from_tokens_in_muses_direction(name):
    """MUSE labels holdout 1 and scores -Min-K%: its area is the share of pairs where the holdout text is likelier."""
    rng = random.Random(0)
    tokens = {
        kind: [[-rng.uniform(0, top) for _ in range(rng.randint(1, 9))] for _ in range(12)]
        for kind, top in (("forget", 4.0), ("holdout", 5.0))
    }
    forget, holdout = ([lowest_mean(each) for each in tokens[kind]] for kind in ("forget", "holdout"))
    wins = sum(0.5 if b == a else b < a for a in forget for b in holdout)
    area, retrained = wins / 144, MUSE[name][-1]
    assert 0 < area < 0.5
    sets = {kind: found_on(kind, texts) for kind, texts in tokens.items()}
    found = all_values(sets, [Membership()], published(name))
    assert found["membership_min_k_auc"] == pytest.approx(1 - area)
    assert found["priv_leak"] == pytest.approx(100 * (area - retrained) / retrained, abs=1e-6)
    assert found["priv_leak"] < 0


def settings(**changes):
    return {"corpus": "MUSE-News", "membership_k": 0.4, "prompt": "QuestionAnswer"} | changes


@pytest.mark.parametrize(("convention", "rows", "here", "line"), [
    ("muse", TEXTS, settings(corpus="MUSE-Books"), "(corpus MUSE-News there and MUSE-Books here)"),
    ("muse", TEXTS, settings(membership_k=0.2), "(membership_k 0.4 there and 0.2 here)"),
    ("muse", TEXTS[:10], settings(), "(forget_rows 100 there and 10 here)"),
    ("muse", TEXTS, {"prompt": "QuestionAnswer"}, "(here unnamed, there MUSE-News)"),
    ("open_unlearning", TEXTS, settings(), "follows the convention muse and this run open_unlearning"),
])  # fmt: skip
def test_what_a_published_model_is_not_compared_with(convention, rows, here, line):
    name = "muse_news_retrained"
    check_comparable(published(name), name, "muse", TEXTS, settings())
    with pytest.raises(InputError) as error:
        check_comparable(published(name), name, convention, rows, here)
    assert str(error.value).startswith(f"forget_quality.retain_result {name} ")
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_published_name():
    assert published_names() == [
        "llama2-7b_full", "llama2-7b_retain90",
        "muse_books_retrained", "muse_books_retrained_area", "muse_news_retrained", "muse_news_retrained_area",
    ]  # fmt: skip
    with pytest.raises(
        InputError, match="no published result 'phi': use llama2-7b_full, llama2-7b_retain90, muse"
    ):
        published("phi")
