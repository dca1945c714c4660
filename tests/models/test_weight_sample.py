"""What a step does to weights of a data type, and what is left of a change when an export is rounded."""

import warnings

import pytest
import torch

from dipo_pl.errors import InputError
from dipo_pl.models import weight_sample
from dipo_pl.models.weight_sample import (
    changed_share,
    check_trained_dtype,
    export_dtype,
    kept_share,
    movable_share,
    sampled,
)

HALF, WHOLE = torch.bfloat16, torch.float32


def test_a_step_moves_weights_whose_spacing_is_at_most_twice_as_large():
    """bfloat16 has 8 bits: between 2^e and 2^(e+1) values are 2^(e-7) apart, and a step of over half of that moves one."""
    weights = torch.tensor([1.0, 0.5, 0.25, 0.125, 2.0**-9, 0.0], dtype=HALF)
    assert movable_share([weights], 0.0011) == pytest.approx(4 / 6)  # 0.25 is 2^-2: half of 2^-9 is 0.00098
    assert movable_share([weights], 0.00097) == pytest.approx(3 / 6)
    assert movable_share([weights.float()], 1e-5) == 1


def test_a_sample_is_evenly_spaced_in_each_tensor(monkeypatch):
    monkeypatch.setattr(weight_sample, "SAMPLE", 5)
    weights = {"a": torch.arange(12.0).view(3, 4), "b": torch.arange(3.0)}
    assert {name: each.tolist() for name, each in sampled(weights).items()} == {"a": [0, 3, 6, 9], "b": [0]}
    before = sampled(weights)
    weights["a"].zero_()
    assert before["a"][1] == 3


def test_shares_of_changed_weights():
    before = {"w": torch.tensor([1.0, 1.0, 1.0, 1.0])}
    after = {"w": torch.tensor([1.0, 1.001, 1.01, 0.9])}
    assert changed_share(before, after) == 0.75
    # 1.001 is rounded to 1 in bfloat16.
    assert kept_share(before, after, HALF) == pytest.approx(2 / 3)
    assert kept_share(before, before, HALF) == 1
    # A weight that was rounded when training began has not been trained.
    assert changed_share({"w": torch.tensor([1.001])}, {"w": torch.tensor([1.0], dtype=HALF)}) == 0


@pytest.mark.parametrize(("change", "stored", "asked", "dtype", "said"), [
    (0.1, HALF, None, HALF, "in bfloat16, in which 100.0% of the changed weights are still changed"),
    (0.001, HALF, None, WHOLE, "in float32, as trained and measured: in bfloat16, as the checkpoint was, 0.0% of the "
     "changed weights would still be changed (--export.dtype bfloat16)"),
    (0.001, HALF, HALF, HALF, "in bfloat16, in which 0.0% of the changed weights are still changed"),
    (0.001, None, None, WHOLE, "in float32"),
    (0.001, WHOLE, torch.float16, torch.float16, "in float16, in which 100.0% of the changed weights are still changed"),
])  # fmt: skip
def test_an_export_is_rounded_only_where_no_change_is_lost_or_where_that_is_asked_for(
    change, stored, asked, dtype, said
):
    before = {"w": torch.ones(10)}
    assert export_dtype(before, {"w": torch.ones(10) + change}, stored, asked) == (dtype, said)


def test_trained_weights_in_half_precision_are_told():
    weights = {"w": torch.tensor([1.0, 1e-4, 1e-5, 0.0])}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_trained_dtype(weights, 1e-5)
        check_trained_dtype({"w": torch.zeros(3, dtype=HALF)}, 1e-5)
    half = {name: each.to(HALF) for name, each in weights.items()}
    with pytest.warns(
        match=r"are bfloat16: a step of the learning rate 1e-05 changes 75.0% of them, .*--config bf16"
    ):
        check_trained_dtype(half, 1e-5)
    with pytest.raises(
        InputError, match=r"trained weights are float16, .*: set model.policy.dtype to float32"
    ):
        check_trained_dtype({"w": torch.ones(1).half()}, 1e-5)
