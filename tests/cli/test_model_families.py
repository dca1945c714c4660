"""Every family of models goes through training, LoRA, export, reloading and evaluation."""

import pytest
from model_families import FAMILIES, end_to_end


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_from_end_to_end(name, tmp_path):
    found = end_to_end(name, tmp_path)
    # Experts that no token has chosen have no gradient.
    assert [each for each in found.unmoved if "experts" not in each] == []
    assert found.exported == 0
    assert found.evaluated == 0
    # Merging rounds each weight once.
    assert found.adapted < 1e-5
    assert found.adapters_move
