"""What can be wrong in a working directory: each fault is a function of the folder of a finished run of smoke.yaml."""

import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

Fault = Callable[[Path], object]
RAN = "code-of-a-pickle-ran"
SHARD = "shard-00001-model-00001-of-00001.safetensors"
# Billions of values.
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdef", "bcdefg", strict=True)
)


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self):
        return (Path(RAN).touch, ())


def pickle_at(path: str | Path) -> None:
    torch.save({"state_dict": Payload()}, path)


def nothing(folder: Path) -> None:
    """The command alone is wrong."""


def file(name: str, text: str, encoding: str = "utf-8") -> Fault:
    def fault(smoke: Path) -> None:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text, encoding=encoding)

    return fault


def both(*faults: Fault) -> Fault:
    return lambda smoke: [fault(smoke) for fault in faults]


def overlay(key: str, value: object) -> Fault:
    """mine.yaml, with one key."""
    for name in reversed(key.split(".")):
        value = {name: value}
    return file("mine.yaml", json.dumps(value))


def class_at(key: str, path: str, in_list: bool = False, **arguments: object) -> Fault:
    made = {"class_path": path, "init_args": arguments}
    return overlay(key, [made] if in_list else made)


def rows(more: str) -> Fault:
    """f.jsonl with a good line and this one, and r.jsonl."""
    row = json.dumps({"question": "Who wrote it?", "answer": "An author."}) + "\n"
    return both(file("f.jsonl", row + more), file("r.jsonl", row))


def run_of_smoke(change: Fault = nothing) -> Fault:
    """A finished run at runs/smoke, changed."""
    return lambda smoke: change(shutil.copytree(smoke, Path("runs/smoke")))


def model_of_smoke(change: Fault = nothing) -> Fault:
    """A model folder, changed."""
    return lambda smoke: change(shutil.copytree(smoke / "hf", Path("model")))


def as_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    pickle_at(folder / "pytorch_model.bin")


def pickle_named_safetensors(folder: Path) -> None:
    pickle_at(folder / "model.safetensors")


def broken_weights(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight[3, 3] = float("nan")
    model.save_pretrained(folder)


def with_remote_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    code = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "mine", "auto_map": code}))
    (folder / "mine.py").write_text(f"import pathlib\npathlib.Path({RAN!r}).touch()\n")


def template_that_escapes(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages.__class__.__mro__[1].__subclasses__() }}")


def half_a_checkpoint(run: Path) -> None:
    checkpoint = run / "checkpoints" / "last.ckpt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    (run / "checkpoints" / "previous.ckpt").unlink()


def pickled_optimizer(run: Path) -> None:
    path = run / "checkpoints" / "last.ckpt"
    torch.save(torch.load(path, weights_only=True) | {"optimizer_states": [Payload()]}, path)
    (run / "checkpoints" / "previous.ckpt").unlink()


def without(name: str) -> Fault:
    def change(run: Path) -> None:
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def more_metrics(text: str) -> Fault:
    def change(run: Path) -> None:
        with open(run / "metrics.jsonl", "a") as file:
            file.write(text)

    return change


def config_without_keys(run: Path) -> None:
    (run / "config.yaml").write_text("- a\n- b\n")


def unfinished(run: Path) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(manifest | {"status": "running"}))


def pickled_store(smoke: Path) -> None:
    Path("store").mkdir()
    for name in ("manifest.json", "forget-000000.safetensors"):
        pickle_at(f"store/{name}")


def in_shards(change: Fault = nothing) -> Fault:
    """A finished run at runs/smoke whose one checkpoint is in shards, as of one process, and changed."""

    def shards(run: Path) -> None:
        (run / "checkpoints" / "previous.ckpt").unlink()
        path = run / "checkpoints" / "last.ckpt"
        checkpoint = torch.load(path, weights_only=True)
        path.unlink()
        path.mkdir()
        stored = {}
        for name, each in checkpoint["state_dict"].items():
            checkpoint["state_dict"][name] = torch.empty_like(each, device="meta")
            stored[f"state_dict.{name}"] = each.contiguous()
        torch.save(checkpoint, path / "checkpoint.pt")
        write_shard(path, stored)
        change(path)

    return run_of_smoke(shards)


def write_shard(checkpoint: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, checkpoint / SHARD)
    change_shards(checkpoint, files={SHARD: zlib.crc32((checkpoint / SHARD).read_bytes())})


def change_shards(checkpoint: Path, **shards: object) -> None:
    content = torch.load(checkpoint / "checkpoint.pt", weights_only=True)
    torch.save(content | {"shards": shards}, checkpoint / "checkpoint.pt")


def half_a_tensor(checkpoint: Path) -> None:
    first, *others = load_file(checkpoint / SHARD).items()
    write_shard(checkpoint, {**dict(others), first[0]: first[1][: len(first[1]) // 2].contiguous()})


def without_a_tensor(checkpoint: Path) -> None:
    write_shard(checkpoint, dict([*load_file(checkpoint / SHARD).items()][1:]))


def change_shard(change: Callable[[bytes], bytes]) -> Fault:
    return lambda checkpoint: (checkpoint / SHARD).write_bytes(change((checkpoint / SHARD).read_bytes()))


bit_of_a_shard = change_shard(lambda content: content[:-1] + bytes([content[-1] ^ 1]))
end_of_a_shard = change_shard(lambda content: content[:-1])


def pickled_rest(checkpoint: Path) -> None:
    pickle_at(checkpoint / "checkpoint.pt")


def config_of_another_version(run: Path) -> None:
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("dipo_pl.Unlearning", "dipo_pl.unlearning.Unlearning"))


def checkpoint_of_another_version(run: Path) -> None:
    for path in (run / "checkpoints").iterdir():
        checkpoint = torch.load(path, weights_only=True)
        del checkpoint["dipo_pl_format"]
        torch.save(checkpoint, path)
