"""The base of all metrics: whatever the batches and ranks, each row counts once and in its place."""

import copy
import math
import pickle

import pytest
import torch
from gloo_ranks import COUNT, SPLITS, fed, row
from made import batch, measured, observed, result

from dipo_pl.errors import TrainingError
from dipo_pl.metrics import EvaluationMetric, Observations, Probability, Rouge
from dipo_pl.metrics.base import collection, set_result

ALL = list(range(COUNT))


class Tokens(EvaluationMetric):
    """A metric of one's own: the mean number of tokens."""

    inputs = ("targets",)

    def per_row(self, seen):
        return {"tokens": torch.tensor([len(each) for each in seen.targets], dtype=torch.float64)}


@pytest.fixture(scope="module")
def one():
    """The result in one batch on one rank."""
    return set_result(fed([ALL]))


@pytest.mark.parametrize("batches", [[[each] for each in ALL[::-1]], [[3, 0, 5], [], [1, 4, 2, 6], [5, 3]]])
def test_batches_do_not_matter(one, batches):
    assert set_result(fed(batches)) == one


def test_rows_are_those_of_the_observations(one):
    assert [each["row"] for each in one.rows] == ALL
    for place, found in enumerate(one.rows):
        made = row(place)
        assert found["question"] == f"forget {place}?"
        assert found["nll"] == made["nll"].tolist()
        assert found["generation"] == made["generation"]
        assert found["exact_memorization"] == (place + 1) / (place + 2)
        assert found["gradient_norm"] == pytest.approx(0.1 * place)
    expected = sum(math.exp(-row(place)["nll"][0]) for place in ALL) / COUNT
    assert one.metrics["probability"] == pytest.approx(expected, rel=1e-14)


def test_the_first_of_repeated_rows_stays():
    metrics = collection([Probability()], measured("forget", [observed(1.0)] * 2))
    metrics.update(batch([observed(2.0), observed(1.0)], [1, 0]))
    metrics.update(batch([observed(3.0), observed(4.0)], [0, 1]))
    assert [each["nll"] for each in set_result(metrics).rows] == [[1.0], [2.0]]


@pytest.mark.parametrize("case", [name for name in SPLITS if name.startswith(("rows are", "no rank"))])
@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_of_an_incomplete_set_nothing_is_reported(ranks, case):
    first, second = SPLITS[case]
    assert set_result(fed([*first, *second])) is None
    assert [rank["results"][case] for rank in ranks] == [None, None]


@pytest.mark.parametrize("case", [name for name in SPLITS if not name.startswith(("rows are", "no rank"))])
def test_two_ranks_give_what_one_gives(ranks, one, case):
    for rank in ranks:
        assert rank["results"][case] == repr(one)


def test_two_ranks_refuse_together(ranks):
    for rank in ranks:
        assert rank["diverged"].startswith("nll must be finite (got nan at row 1; 1 of 2 rows)")


def test_two_ranks_go_on_after_compute(ranks):
    for rank in ranks:
        first, values = rank["resumed"]
        assert first == {}
        assert values == pytest.approx([math.exp(-1)] * 2 + [math.exp(-2)] * 2)


def test_reset_in_inference_mode_and_going_on_outside(one):
    metrics = fed([ALL])
    with torch.inference_mode():
        metrics.compute()
        metrics.reset()
        metrics.update(batch([row(0), row(1)]))
    for place in ALL[2:]:
        metrics.update(batch([row(place)], [place]))
    assert set_result(metrics) == one


def test_copies_are_their_own(one):
    metrics = fed([[0, 1, 2]])
    for each in (copy.deepcopy(metrics), pickle.loads(pickle.dumps(metrics)), metrics):
        each.update(batch([row(place) for place in (3, 4, 5, 6)], (3, 4, 5, 6)))
        assert set_result(each) == one


def test_keeps_copies_without_a_graph():
    metric = Probability().for_set(measured("forget", [observed(1.0)]))
    nll = torch.ones(1, 1, requires_grad=True)
    places = torch.tensor([0], dtype=torch.int32)
    metric(Observations(places, nll=nll))
    nll.data.zero_(), places.fill_(5)
    assert not metric.nll[0].requires_grad
    assert metric.compute()["probability"] == math.exp(-1)


def test_mps_has_no_float64(monkeypatch):
    metric = Probability()
    assert metric._cell("nll", [1.0]).dtype == torch.float64
    monkeypatch.setattr(Probability, "device", torch.device("mps"))
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device, dtype: tensor.type(dtype))
    assert metric._cell("nll", [1.0]).dtype == torch.float32
    assert metric._cell("targets", torch.tensor([2**53 + 1])).tolist() == [2**53 + 1]


def test_inputs_have_an_entry_for_each_row():
    metric = Rouge().for_set(measured("forget", [observed(1.0, generation="a")] * 2))
    with pytest.raises(ValueError, match=r"generation must have one entry for each of 2 rows \(got 1\)"):
        metric.update(Observations(torch.tensor([0, 1]), generation=["a"]))


def test_a_metric_of_ones_own():
    found = result([Tokens()], "forget", observed(1.0), observed(1.0, hits=[True]))
    assert found.metrics == {"tokens": 2.5}
    assert [each["tokens"] for each in found.rows] == [4, 1]


@pytest.mark.parametrize("values", [[1.0, math.nan], [1.0], [[1.0], [2.0]]])
def test_a_metric_of_ones_own_that_goes_wrong_is_named(values):
    class Mine(EvaluationMetric):
        inputs = ("nll",)

        def per_row(self, seen):
            return {"mine": torch.tensor(values)}

    with pytest.raises(
        TrainingError, match=r"^Mine must give a finite number mine for each of the 2 rows of forget"
    ):
        result([Mine()], "forget", observed(1.0), observed(2.0))
