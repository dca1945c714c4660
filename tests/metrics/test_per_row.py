import copy
import pickle

import pytest
import torch
from gloo_ranks import CASES, batch

from dipo_pl.metrics import PerRow

ROWS = [3, 0, 5, 1, 4, 2, 6]


def collect(*batches):
    metric = PerRow()
    for rows in batches:
        metric.update(*batch(rows))
    return metric.compute()


def assert_holds(result, rows, columns=3):
    """Bit for bit the values that `batch` gives these rows."""
    expected_rows, expected_values = batch(sorted(rows), columns)
    assert result[0].dtype == torch.int64
    assert result[0].tolist() == expected_rows.tolist()
    assert result[1].dtype == torch.float64
    assert result[1].shape == expected_values.shape
    assert torch.equal(result[1], expected_values)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("rows", [ROWS, ROWS[::-1], sorted(ROWS)])
def test_batches_do_not_matter(rows, size):
    assert_holds(collect(*(rows[i : i + size] for i in range(0, 7, size))), ROWS)


def test_a_repeated_row_counts_once():
    assert_holds(collect([2, 0, 2], [1, 0], [2]), [0, 1, 2])


def test_the_first_of_repeated_rows_stays():
    metric = PerRow()
    metric.update(torch.tensor([1, 0]), torch.tensor([[10.0], [20.0]]))
    metric.update(torch.tensor([0, 1]), torch.tensor([[21.0], [11.0]]))
    rows, values = metric.compute()
    assert rows.tolist() == [0, 1]
    assert values.tolist() == [[20], [10]]


@pytest.mark.parametrize("columns", [1, 2])
def test_one_row_keeps_its_axes(columns):
    metric = PerRow()
    metric.update(*batch([4], columns))
    for copied in (metric, copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        assert_holds(copied.compute(), [4], columns)
        assert_holds(copied.compute(), [4], columns)


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric PerRow was called before")
def test_nothing_collected_is_empty():
    metric = PerRow()
    for _ in range(2):
        rows, values = metric.compute()
        assert rows.dtype == torch.int64
        assert rows.shape == (0,)
        assert values.dtype == torch.float64
        assert values.shape == (0, 0)
        metric.reset()


def test_empty_batches_add_nothing():
    assert_holds(collect([], [1], [], [0]), [0, 1])
    rows, values = collect([])
    assert rows.shape == (0,)
    assert values.shape == (0, 3)


def test_goes_on_after_compute():
    metric = PerRow()
    metric.update(*batch([1]))
    metric.compute()
    metric.update(*batch([0]))
    assert_holds(metric.compute(), [0, 1])


def test_forward_gives_the_batch_and_keeps_it():
    metric = PerRow()
    assert_holds(metric(*batch([2, 1])), [1, 2])
    assert_holds(metric(*batch([0])), [0])
    assert_holds(metric.compute(), [0, 1, 2])


def test_reset_in_inference_mode():
    metric = PerRow()
    with torch.inference_mode():
        metric.reset()
        metric.update(*batch([1]))
    metric.update(*batch([0]))
    assert_holds(metric.compute(), [0, 1])


def test_keeps_copies():
    metric = PerRow()
    rows, values = batch([1, 0])
    metric.update(rows, values)
    rows.zero_(), values.zero_()
    assert_holds(metric.compute(), [0, 1])


def test_keeps_no_graph():
    metric = PerRow()
    values = torch.ones(2, 1, dtype=torch.float64, requires_grad=True)
    # `forward` updates with gradients on, `update` alone without.
    metric(torch.tensor([0, 1]), values)
    assert not metric.values[0].requires_grad


def test_takes_other_dtypes():
    metric = PerRow()
    metric.update(
        torch.tensor([1, 0], dtype=torch.int32), torch.tensor([[0.5], [0.25]], dtype=torch.bfloat16)
    )
    rows, values = metric.compute()
    assert (rows.dtype, values.dtype) == (torch.int64, torch.float64)
    assert values.tolist() == [[0.25], [0.5]]


def test_mps_has_no_float64(monkeypatch):
    metric = PerRow()
    assert metric._value_dtype == torch.float64
    monkeypatch.setattr(PerRow, "device", torch.device("mps"))
    assert metric._value_dtype == torch.float32


def test_values_that_are_not_finite_pass_through():
    metric = PerRow()
    metric.update(torch.tensor([1, 0]), torch.tensor([[float("nan")], [float("inf")]]))
    assert metric.compute()[1].tolist() == [[float("inf")], [pytest.approx(float("nan"), nan_ok=True)]]


def test_refuses_another_number_of_columns():
    metric = PerRow()
    metric.update(*batch([0, 1], columns=3))
    with pytest.raises(ValueError, match="values must have 3 columns, as in the batches before, got 2"):
        metric.update(*batch([2, 3], columns=2))
    metric.reset()
    metric.update(*batch([2], columns=2))
    assert_holds(metric.compute(), [2], columns=2)


@pytest.mark.parametrize(
    "rows", [torch.tensor([0.0, 1.0]), torch.tensor([True, False]), torch.tensor([[0, 1]])]
)
def test_refuses_rows_that_are_no_positions(rows):
    with pytest.raises(
        ValueError, match=r"rows must be whole numbers of shape \[R\], got torch\.\w+ of shape"
    ):
        PerRow().update(rows, torch.ones(2, 1))


@pytest.mark.parametrize("shape", [(2,), (3, 1), (1, 2), (2, 0), (2, 1, 1)])
def test_refuses_values_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"values must have shape \[2, K\], K >= 1, for 2 rows, got \["):
        PerRow().update(torch.tensor([0, 1]), torch.ones(shape))


@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_what_one_gives(ranks, case):
    first, second = CASES[case]
    rows = {row for rows in first + second for row in rows}
    for rank in ranks:
        result = rank["results"][case]
        if rows:
            assert_holds(result, rows)
        else:
            assert [list(part.shape) for part in result] == [[0], [0, 0]]


def test_two_processes_disagree_about_columns(ranks):
    for rank in ranks:
        assert (
            "must have the same number of columns in every process, got 4 numbers for 2 rows" in rank["error"]
        )


def test_two_processes_go_on_after_compute(ranks):
    for rank in ranks:
        first, second, anew = rank["resumed"]
        assert_holds(first, [0])
        assert_holds(second, [0, 1, 2])
        assert_holds(anew, [5, 6], columns=2)
