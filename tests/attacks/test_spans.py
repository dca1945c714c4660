import torch

from dipo_pl.attacks.spans import in_row_order


def test_values_of_batches_are_put_in_the_order_of_rows():
    found = in_row_order([[1, 2], [0]], [torch.tensor([[10.0], [20.0]]), torch.tensor([[30.0]])])
    assert found.tolist() == [[30.0], [10.0], [20.0]]
