"""Fingerprints: equal where the content is equal, and nowhere else."""

import copy
import hashlib
from dataclasses import replace

import pytest
import torch
from torch import nn

from dipo_pl.data_modules.rows import Row
from dipo_pl.fingerprint import rows_fingerprint, weights_fingerprint

ROW = Row((("user", "Who?"),), "Me.", "It was mé.", ("You.", "They."))
OTHER = Row((), "Once.")


class TestRows:
    def test_stays_the_same_from_release_to_release(self):
        # Stored results are compared by it: one JSON array a row, of its fields, each with a line break.
        lines = '[[["user", "Who?"]], "Me.", "It was mé.", ["You.", "They."]]\n[[], "Once.", null, []]\n'
        expected = "67756219b37c76c6aa7fd1dcda12cb52549934e5f4ac2716a72160ff702acb87"
        assert rows_fingerprint([ROW, OTHER]) == hashlib.sha256(lines.encode()).hexdigest() == expected

    def test_is_of_the_content(self):
        twin = Row((("user", "Who?"),), "Me.", "It was mé.", ("You.", "They."))
        assert rows_fingerprint([ROW, OTHER]) == rows_fingerprint(iter((twin, OTHER)))

    @pytest.mark.parametrize(
        "rows",
        [
            [],
            [ROW],
            [OTHER, ROW],
            [ROW, OTHER, OTHER],
            [replace(ROW, messages=(("system", "Who?"),)), OTHER],
            [replace(ROW, messages=(("user", "Who"),)), OTHER],
            [replace(ROW, messages=(("user", ""), ("user", "Who?"))), OTHER],
            [replace(ROW, answer="Me"), OTHER],
            [replace(ROW, paraphrased_answer="It was me."), OTHER],
            [replace(ROW, paraphrased_answer=None), OTHER],
            [replace(ROW, wrong_answers=("They.", "You.")), OTHER],
            [replace(ROW, wrong_answers=("You.They.",)), OTHER],
            [replace(ROW, wrong_answers=()), OTHER],
        ],
    )
    def test_any_change_of_text_place_or_order_shows(self, rows):
        assert rows_fingerprint(rows) != rows_fingerprint([ROW, OTHER])


class Model(nn.Module):
    """A matrix, a scalar, and a buffer that is no weight."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.weight = nn.Parameter(torch.arange(6, dtype=dtype).view(2, 3))
        self.scale = nn.Parameter(torch.tensor(2.0, dtype=dtype))
        self.register_buffer("cache", torch.zeros(2))


class TestWeights:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
    def test_equal_weights(self, dtype):
        model = Model(dtype)
        assert weights_fingerprint(model) == weights_fingerprint(copy.deepcopy(model))
        assert len(weights_fingerprint(model)) == 64

    def test_of_no_account(self):
        model = Model()
        before = weights_fingerprint(model)
        model.eval().requires_grad_(False)
        model.cache += 1
        assert weights_fingerprint(model) == before

    def test_memory_layout_is_of_no_account(self):
        model, other = Model(), Model()
        other.weight = nn.Parameter(model.weight.detach().T.contiguous().T)
        assert not other.weight.is_contiguous()
        assert weights_fingerprint(model) == weights_fingerprint(other)

    def test_the_least_change_of_one_weight_shows(self):
        model = Model()
        before = weights_fingerprint(model)
        changed = copy.deepcopy(model)
        with torch.no_grad():
            changed.weight[1, 2] = changed.weight[1, 2].nextafter(torch.tensor(9.0))
        assert weights_fingerprint(changed) != before
        negative_zero = copy.deepcopy(model)
        with torch.no_grad():
            negative_zero.weight[0, 0] = -0.0
        assert weights_fingerprint(negative_zero) != before

    def test_dtype_shape_and_name_show(self):
        # All of the same bytes.
        def fingerprint(name="weight", dtype=torch.float16, shape=(2, 3)):
            return weights_fingerprint(nn.ParameterDict({name: torch.zeros(shape, dtype=dtype)}))

        others = [fingerprint("weights"), fingerprint(dtype=torch.bfloat16), fingerprint(shape=(3, 2))]
        assert len({fingerprint(), *others}) == 4
        assert fingerprint() == fingerprint()

    def test_tied_weights_count_once(self):
        model = nn.ModuleDict({"one": nn.Linear(2, 2), "two": nn.Linear(2, 2)})
        untied = weights_fingerprint(model)
        model["two"].weight = model["one"].weight
        assert weights_fingerprint(model) != untied
        assert weights_fingerprint(model) == weights_fingerprint(copy.deepcopy(model))
