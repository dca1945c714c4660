"""Shards: what several files hold in parts is read in other parts, and never from elsewhere."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from dipo_pl.errors import InputError, TrainingError
from dipo_pl.storage import sharded_checkpoint
from dipo_pl.storage.sharded_checkpoint import (
    StoredTensor,
    check_shards,
    load_sharded,
    save_sharded,
    with_whole_tensors,
)


@pytest.fixture
def one_rank(tmp_path) -> Iterator[None]:
    begun = not dist.is_initialized()
    if begun:
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    if begun:
        dist.destroy_process_group()


@pytest.fixture
def three_ranks(tmp_path):
    """Of 7 rows, by ranks that have 3, 3 and 1 of them, and of a number."""
    whole = torch.randn(7, 5)
    parts = []
    for rank, rows in enumerate(torch.split(whole, 3)):
        save_file({"w": rows.contiguous()}, tmp_path / f"{rank}.safetensors")
        parts.append((f"{rank}.safetensors", "w", (3 * rank, 0), tuple(rows.shape)))
    return whole, StoredTensor(tmp_path, "w", (7, 5), whole.dtype, tuple(parts))


@pytest.mark.parametrize(("first", "rows"), [(0, 4), (4, 3), (2, 2), (6, 1), (0, 7), (7, 0), (3, 0)])
def test_other_numbers_of_ranks_read_what_is_theirs(three_ranks, first, rows):
    whole, stored = three_ranks
    torch.testing.assert_close(
        stored.read((first, 0), (rows, 5)), whole[first : first + rows], rtol=0, atol=0
    )


def test_what_no_shard_holds_is_not_made_up(three_ranks):
    _, stored = three_ranks
    lacking = StoredTensor(stored.folder, "w", stored.shape, stored.dtype, stored.parts[:2])
    assert lacking.read((0, 0), (6, 5)).shape == (6, 5)
    with pytest.raises(InputError, match="do not have all of w"):
        lacking.read((4, 0), (3, 5))


def test_files_elsewhere_are_not_read(three_ranks, tmp_path):
    _, stored = three_ranks
    inside = tmp_path / "checkpoint"
    inside.mkdir()
    outside = StoredTensor(inside, "w", (3, 5), stored.dtype, (("../0.safetensors", "w", (0, 0), (3, 5)),))
    with pytest.raises(FileNotFoundError):
        outside.whole()


def test_written_and_read(one_rank, tmp_path, monkeypatch):
    """Several files of a rank; tied weights once; numbers, empty tensors and what is not divided."""
    monkeypatch.setattr(sharded_checkpoint, "FILE_BYTES", 100)
    mesh = init_device_mesh("cpu", (1,))

    def divided(tensor):
        return distribute_tensor(tensor, mesh, [Shard(0)])

    tied = divided(torch.randn(4, 3).to(torch.bfloat16))
    weights = {"a": tied, "b": divided(torch.randn(6, 5)), "c": tied, "d": divided(torch.empty(0, 3))}
    state = {0: {"step": torch.tensor(3.0), "exp_avg": divided(torch.randn(6, 5)), "note": "x"}}
    optimizer = {"state": state, "param_groups": [{"lr": 0.1, "params": [0]}]}
    path = tmp_path / "last.ckpt"
    save_sharded({"state_dict": weights, "optimizer_states": [optimizer], "global_step": 3}, path)
    assert len(list(path.glob("rank-00000-*.safetensors"))) == 3
    names = [name for each in path.glob("*.safetensors") for name in load_file(each)]
    assert sorted(names) == ["optimizer_states.0.state.0.exp_avg", "state_dict.a", "state_dict.b"]
    check_shards(path)
    read = with_whole_tensors(load_sharded(path))
    assert read["global_step"] == 3
    for name, each in weights.items():
        assert torch.equal(read["state_dict"][name], each.full_tensor())
    assert read["state_dict"]["c"] is read["state_dict"]["a"]
    ours = read["optimizer_states"][0]
    assert torch.equal(ours["state"][0]["exp_avg"], state[0]["exp_avg"].full_tensor())
    assert (ours["state"][0]["step"], ours["state"][0]["note"]) == (torch.tensor(3.0), "x")
    assert ours["param_groups"] == optimizer["param_groups"]


def test_a_folder_that_ranks_do_not_share_is_no_checkpoint(one_rank, tmp_path, monkeypatch):
    """What another rank has written lies on its own machine."""
    elsewhere = ({"rank-00001-000.safetensors": 0}, [])
    monkeypatch.setattr(sharded_checkpoint, "_write", lambda *_: elsewhere)
    with pytest.raises(TrainingError, match="rank 0 does not see it: output_dir must be a folder that all"):
        save_sharded({"state_dict": {}, "optimizer_states": []}, tmp_path / "shards" / "last.ckpt")
    assert not list((tmp_path / "shards").iterdir())
