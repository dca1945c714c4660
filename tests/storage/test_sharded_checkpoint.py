"""Sharded checkpoints: written by some ranks, read by any number of others."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from dipo_pl.errors import InputError, TrainingError
from dipo_pl.storage import sharded_checkpoint
from dipo_pl.storage.sharded_checkpoint import (
    check_shards,
    full_checkpoint,
    load_into,
    read_sharded,
    save_sharded,
)


@pytest.fixture
def mesh(tmp_path) -> Iterator[object]:
    begun = not dist.is_initialized()
    if begun:
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    if begun:
        dist.destroy_process_group()


def test_written_and_read(mesh, tmp_path, monkeypatch):
    """Several files of a rank; tied weights once; numbers, empty tensors and tensors that are not sharded."""
    monkeypatch.setattr(sharded_checkpoint, "FILE_BYTES", 100)

    def sharded(tensor):
        return distribute_tensor(tensor, mesh, [Shard(0)])

    tied = sharded(torch.randn(4, 3).to(torch.bfloat16))
    weights = {"a": tied, "b": sharded(torch.randn(6, 5)), "c": tied, "d": sharded(torch.empty(0, 3))}
    state = {0: {"step": torch.tensor(3.0), "exp_avg": sharded(torch.randn(6, 5)), "note": "x"}}
    optimizer = {"state": state, "param_groups": [{"lr": 0.1, "params": [0]}]}
    path = tmp_path / "last.ckpt"
    save_sharded({"state_dict": weights, "optimizer_states": [optimizer], "global_step": 3}, path)
    assert len(list(path.glob("shard-00001-*.safetensors"))) == 3
    names = [name for each in path.glob("*.safetensors") for name in load_file(each)]
    assert sorted(names) == ["optimizer_states.0.state.0.exp_avg", "state_dict.a", "state_dict.b"]
    check_shards(path)
    read = full_checkpoint(read_sharded(path))
    assert read["global_step"] == 3
    assert "shards" not in read
    for name, each in weights.items():
        assert torch.equal(read["state_dict"][name], each.full_tensor())
    assert read["state_dict"]["c"] is read["state_dict"]["a"]
    ours = read["optimizer_states"][0]
    assert torch.equal(ours["state"][0]["exp_avg"], state[0]["exp_avg"].full_tensor())
    assert (ours["state"][0]["step"], ours["state"][0]["note"]) == (torch.tensor(3.0), "x")
    assert ours["param_groups"] == optimizer["param_groups"]
    # Where a model does not tie them, each target is filled.
    one, other = torch.zeros(4, 3).bfloat16(), torch.zeros(4, 3).bfloat16()
    load_into({"state_dict.c": one, "state_dict.a": other}, read_sharded(path))
    assert torch.equal(one, other)
    assert torch.equal(one, tied.full_tensor())
    with pytest.raises(InputError, match=r"of shape \(6, 5\) where this model has \(6, 4\)"):
        load_into({"state_dict.b": torch.zeros(6, 4)}, read_sharded(path))


def test_a_full_checkpoint_is_read_in_shards(mesh):
    whole = torch.randn(5, 2)
    target = distribute_tensor(torch.zeros(5, 2), mesh, [Shard(0)])
    load_into({"state_dict.a": target}, {"state_dict": {"a": whole}})
    assert torch.equal(target.full_tensor(), whole)


def test_ranks_that_do_not_share_a_folder_write_no_checkpoint(mesh, tmp_path, monkeypatch):
    """The file of another rank is on another machine."""
    monkeypatch.setattr(sharded_checkpoint, "_write_shards", lambda *_: {"shard-00002.safetensors": 0})
    with pytest.raises(
        TrainingError, match=r"rank 0 cannot see .*: set output_dir to a folder that all machines"
    ):
        save_sharded({"state_dict": {}, "optimizer_states": []}, tmp_path / "shards" / "last.ckpt")
    assert not list((tmp_path / "shards").iterdir())
