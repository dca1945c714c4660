"""Bad input, case by case: the command, the fault, the line that is printed, the exit code, and what stays on disk."""

import json
import pickle
import re
import shlex
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from dipo_pl.storage.checkpoints import AtomicCheckpointIO

RAN = "code-of-a-pickle-ran"
SHARD = "shard-00001-model-00001-of-00001.safetensors"


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self):
        return (Path(RAN).touch, ())


def pickle_at(path: str) -> None:
    torch.save({"state_dict": Payload()}, path)


def nothing(smoke: Path) -> None:
    """The command alone is wrong."""


def file(name: str, text: str, encoding: str = "utf-8") -> Callable[[Path], None]:
    def fault(smoke: Path) -> None:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text, encoding=encoding)

    return fault


def record(**values: object) -> str:
    return json.dumps({"question": "Who wrote it?", "answer": "An author."} | values) + "\n"


def rows(forget: str = record(), encoding: str = "utf-8") -> Callable[[Path], None]:
    """Two files of rows, of which the first has the fault."""

    def fault(smoke: Path) -> None:
        Path("f.jsonl").write_text(forget, encoding=encoding)
        Path("r.jsonl").write_text(record(answer="Another."))

    return fault


def run_of_smoke(change: Callable[[Path], None] = nothing) -> Callable[[Path], None]:
    """A finished run at runs/smoke, changed."""

    def fault(smoke: Path) -> None:
        shutil.copytree(smoke, "runs/smoke")
        change(Path("runs/smoke"))

    return fault


def model_of_smoke(change: Callable[[Path], None] = nothing) -> Callable[[Path], None]:
    """A model folder, changed."""

    def fault(smoke: Path) -> None:
        shutil.copytree(smoke / "hf", "model")
        change(Path("model"))

    return fault


def as_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    pickle_at(str(folder / "pytorch_model.bin"))


def pickle_named_safetensors(folder: Path) -> None:
    pickle_at(str(folder / "model.safetensors"))


def as_adapter(folder: Path) -> None:
    settings = {"peft_type": "LORA", "base_model_name_or_path": "model", "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    pickle_at(str(folder / "adapter_model.bin"))


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
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["optimizer_states"] = [Payload()]
    torch.save(checkpoint, path)
    (run / "checkpoints" / "previous.ckpt").unlink()


def in_shards(change: Callable[[Path], None] = nothing) -> Callable[[Path], None]:
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
    content = torch.load(checkpoint / "checkpoint.pt", weights_only=True)
    files = {SHARD: zlib.crc32((checkpoint / SHARD).read_bytes())}
    torch.save(content | {"shards": {"files": files}}, checkpoint / "checkpoint.pt")


def without_files(checkpoint: Path) -> None:
    content = torch.load(checkpoint / "checkpoint.pt", weights_only=True)
    torch.save(content | {"shards": {}}, checkpoint / "checkpoint.pt")


def half_a_tensor(checkpoint: Path) -> None:
    first, *others = load_file(checkpoint / SHARD).items()
    write_shard(checkpoint, {**dict(others), first[0]: first[1][: len(first[1]) // 2].contiguous()})


def without_a_tensor(checkpoint: Path) -> None:
    write_shard(checkpoint, dict([*load_file(checkpoint / SHARD).items()][1:]))


def without(name: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def bit_of_a_shard(checkpoint: Path) -> None:
    content = bytearray((checkpoint / SHARD).read_bytes())
    content[-1] ^= 1
    (checkpoint / SHARD).write_bytes(content)


def end_of_a_shard(checkpoint: Path) -> None:
    content = (checkpoint / SHARD).read_bytes()
    (checkpoint / SHARD).write_bytes(content[:-1])


def without_a_shard(checkpoint: Path) -> None:
    (checkpoint / SHARD).unlink()


def without_the_rest(checkpoint: Path) -> None:
    (checkpoint / "checkpoint.pt").unlink()


def pickled_rest(checkpoint: Path) -> None:
    pickle_at(str(checkpoint / "checkpoint.pt"))


def half_a_line_of_metrics(run: Path) -> None:
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "ep')


def config_without_keys(run: Path) -> None:
    (run / "config.yaml").write_text("- a\n- b\n")


def config_of_another_version(run: Path) -> None:
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("dipo_pl.Unlearning", "dipo_pl.unlearning.Unlearning"))


def checkpoint_of_another_version(run: Path) -> None:
    for path in (run / "checkpoints").iterdir():
        checkpoint = torch.load(path, weights_only=True)
        del checkpoint["dipo_pl_format"]
        torch.save(checkpoint, path)


def unfinished(run: Path) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(manifest | {"status": "running"}))


def pickled_store(smoke: Path) -> None:
    Path("store").mkdir()
    for name in ("manifest.json", "forget-000000.safetensors"):
        pickle_at(f"store/{name}")


def foreign(**metrics: object) -> Callable[[Path], None]:
    return file("TOFU_EVAL.json", json.dumps(metrics))


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdef", "bcdefg", strict=True)
)
broken_yaml = file("broken.yaml", "model: [1\n")
empty_file = file("empty.yaml", "")
no_trainer = file("no_trainer.yaml", "trainer: null\n")
folder_there = file("there/a", "")


def list_checkpoint(smoke: Path) -> None:
    torch.save([1], "list.ckpt")


def evil_checkpoint(smoke: Path) -> None:
    pickle_at("evil.ckpt")


def overlay(key: str, value: object) -> Callable[[Path], None]:
    """mine.yaml, with one key."""
    for name in reversed(key.split(".")):
        value = {name: value}
    return file("mine.yaml", json.dumps(value))


REMOTE = json.dumps({"model_type": "clip", "auto_map": {"AutoModelForCausalLM": "x/y--mine.Model"}})
OPTIMIZER = "model.init_args.optimizer"
MINE = "--config mine.yaml "
JSONL = "--data JSONL --data.forget f.jsonl --data.retain r.jsonl "
PRETRAINED = "--model.policy Pretrained --model.policy.path "


@dataclass(frozen=True)
class Case:
    """A command that is refused, after which the working directory is as it was, byte for byte.

    Attributes:
        command: words of `dipo-pl`; those that begin with an option follow `fit --config smoke.yaml`.
        line: part of the one line.
        fault: makes what is wrong, given the folder of a finished run of smoke.yaml.
        begun: it shows only once the run has begun, which then leaves its record.
    """

    command: str
    line: str
    fault: Callable[[Path], None] = nothing
    code: int = 2
    begun: bool = False

    @property
    def words(self) -> list[str]:
        base = ["fit", "--config", "smoke.yaml"] if self.command.startswith("--") else []
        return base + shlex.split(self.command)


SETTINGS = [
    Case(
        "fit --config nope.yaml",
        "no config nope.yaml, neither here nor among the shipped ones (`dipo-pl configs` lists them; did you mean npo.yaml?",
    ),
    Case("fit --config no/such.yaml", "no config file no/such.yaml"),
    Case("fit --config broken.yaml", "in the config broken.yaml", broken_yaml),
    Case("fit --config empty.yaml", "empty.yaml must be a mapping of keys (got an empty file)", empty_file),
    Case("fit --config ''", "--config must name a config (got ''): see dipo-pl configs"),
    Case(
        "fit smoke.yaml",
        "unexpected argument 'smoke.yaml': options begin with --, such as --config smoke.yaml",
    ),
    Case("--name a b", "unexpected argument 'b'"),
    Case("fit", "give --model and --data, or a --config that has it (see dipo-pl configs)"),
    Case("fly", "no command 'fly'"),
    Case("--foo 1", "there is no option 'foo' (--help shows all)"),
    Case("--data.author 3", "data: there is no option 'author' (did you mean authors?)"),
    Case(
        "--forget_quality.measures '[Membership]'",
        "forget_quality: there is no option 'measures' (it is called metrics now)",
    ),
    Case("--data ''", "data: name a class (got ''): use FictitiousAuthors, "),
    Case("--data.authors ''", "data.authors: must be of type int (got '')"),
    Case("--data.authors null", "data.authors must not be null: give a value, or leave it out"),
    Case("--model.retain_weight null", "model.retain_weight must not be null"),
    Case("--model.constructor.filter.rate null", "model.constructor.filter.rate must not be null"),
    Case(
        "--forget_quality.metrics '[{class_path: Membership, init_args: {k: null}}]'",
        "forget_quality.metrics[0].k must not be null",
    ),
    Case("--trainer.accumulate_grad_batches null", "trainer.accumulate_grad_batches: must be of type int"),
    Case("--forget_quality.max_new_tokens null", "forget_quality.max_new_tokens: must be of type int"),
    Case("--trainer.accumulate_grad_batches 0", "trainer.accumulate_grad_batches must be at least 1 (got 0)"),
    Case("--trainer.gradient_clip_val -1", "trainer.gradient_clip_val must be a finite number >= 0 (got -1)"),
    Case("--trainer '{max_epochs: x}'", "error: trainer.max_epochs: must be"),
    Case("--ckpt_path ''", "--ckpt_path must name a checkpoint (got ''): leave it out"),
    Case("--model.betta 1", "model: there is no option 'betta'"),
    Case("--model.forget_loss.betta 1", "model.forget_loss: there is no option 'betta'"),
    Case("--model.forget_loss.beta x", "model.forget_loss.beta: must be of type float (got x)"),
    Case("--model.forget_loss NPOO", "model.forget_loss: there is no class NPOO (did you mean NPO?)"),
    Case(
        "--model Unlearn",
        "model: there is no class Unlearn (did you mean Unlearning?): use FineTuning, Unlearning",
    ),
    Case("--data.prompt.system x", "data.prompt: name a class first: use ChatTemplate, "),
    Case("--data.train_on x", "data.train_on: must be one of 'pairs', 'all', 'forget', 'retain' (got x)"),
    Case("--trainer.max_epochs x", "trainer.max_epochs: must be of type int (got x)"),
    Case("--trainer.strategy zz", "strategy='zz'"),
    Case("--model.forget_loss.beta -1", "DiPO.beta must be a finite number > 0 (got -1"),
    Case("--model.retain_loss.beta 0", "DiPORetain.beta must be a finite number > 0 (got 0"),
    Case("--model.constructor.alpha 0", "LogitModulation.alpha must be a finite number > 0 (got 0"),
    Case("--model.constructor.filter.rate 1.5", "TopFraction.rate must be a share in (0, 1] (got 1.5)"),
    Case("--model.retain_loss DiPO", "set model.forget_loss to DiPO and model.retain_loss to DiPORetain"),
    Case(
        "--model.retain_loss DPO",
        "model.retain_loss: DPO compares a row with its alternate, which only forget rows have",
    ),
    Case(
        "--model.forget_loss RMU --model.forget_loss.layer 2",
        "a loss acts on layer 2, and LlamaForCausalLM has layers 0 to 1: set its `layer`",
    ),
    Case(
        "--model.reference AdapterOff",
        "model.reference is AdapterOff and the policy has no adapter",
    ),
    Case("--model.retain_weight -1", "model.retain_weight must be a finite number >= 0 (got -1"),
    Case("--model.warmup 1", "model.warmup must be a share in [0, 1) (got 1"),
    Case("--model.token_budget 0", "model.token_budget must be at least 1 (got 0)"),
    Case("--data.batch_size 0", "data.batch_size must be at least 1 (got 0)"),
    Case("--data.global_batch_size 0", "data.global_batch_size must be at least 1 (got 0)"),
    Case(
        "--data.global_batch_size 12",
        "data.global_batch_size is 12, and 1 device with data.batch_size 8 take 8 rows at once, which does not divide it: "
        "a data.batch_size of 6 does",
    ),
    Case(
        "--data.global_batch_size 16 --trainer.accumulate_grad_batches 4",
        "data.global_batch_size 16 and trainer.accumulate_grad_batches 4 both say how many batches are accumulated",
    ),
    Case(
        "--trainer.strategy fsdp2 --forget_quality.metrics "
        "'[{class_path: Membership, init_args: {gradient_norm: true}}]'",
        "Membership needs gradient norms, which are not supported for sharded models",
    ),
    Case("--config fsdp.yaml", "the config fsdp.yaml no longer exists: use fsdp2.yaml"),
    Case("--config deepspeed.yaml", "the config deepspeed.yaml no longer exists: use fsdp2.yaml"),
    Case(
        "--trainer.strategy fsdp_cpu_offload",
        "trainer.strategy fsdp_cpu_offload is not supported (it cannot consolidate checkpoints): set trainer.strategy fsdp2",
    ),
    Case("--trainer.strategy FSDPStrategy", "FSDPStrategy is not supported (it cannot consolidate"),
    Case("--trainer.strategy FSDP1Strategy", "FSDP1Strategy"),
    Case("--trainer.strategy ModelParallelStrategy", "is not supported (it cannot consolidate checkpoints)"),
    Case(
        "--trainer.strategy deepspeed_stage_3",
        "trainer.strategy deepspeed_stage_3 is not supported: set trainer.strategy fsdp2",
    ),
    Case(
        "--trainer.strategy DeepSpeedStrategy",
        "DeepSpeedStrategy is not supported: set trainer.strategy fsdp2",
    ),
    Case("--data.forget_authors 4", "data.forget_authors must be a finite number >= 1 and < 4 (got 4)"),
    Case("--data.evaluate '[forget, nought]'", "data.evaluate names 'nought'"),
    Case("--forget_quality.utility_sets '[nought]'", "forget_quality.utility_sets names 'nought'"),
    Case("--forget_quality.max_new_tokens 0", "forget_quality.max_new_tokens must be at least 1 (got 0)"),
    Case(
        "--model.retain_loss NPOO",
        "model.retain_loss: there is no class NPOO (did you mean NPO?): use CEU, CrossEntropy, DPO",
    ),
    Case("--data.train_on all", "Unlearning trains on pairs, and data.train_on is all"),
    Case("--model FineTuning", "FineTuning trains on all or retain or forget, and data.train_on is pairs"),
    Case("--trainer.max_epochs -1", "training has no end: set trainer.max_epochs or trainer.max_steps"),
    Case(
        "--model.policy Pretrained --model.policy.path there/nope", "no model folder there/nope", folder_there
    ),
    Case("--output_dir empty.yaml", "cannot make the run folder empty.yaml/smoke", empty_file),
    Case("--name ''", "--name must be the name of one folder (got '')"),
    Case("--name ../out", "--name must be the name of one folder (got '../out')"),
    Case(f"--name {'n' * 300}", "--name must have at most 200 bytes (got 300: nnnnnnnnnnnnnnnnnnnn...)"),
    Case("--data TOFU --data.path empty.yaml", "data.path empty.yaml is a file: give its folder", empty_file),
    Case(
        "--data MUSE --data.corpus News --data.path empty.yaml",
        "data.path empty.yaml is a file: give its folder",
        empty_file,
    ),
    Case("--config no_trainer.yaml", "trainer must be a mapping of keys (got null)", no_trainer),
    Case("--model.optimizer.lr -1", "Invalid learning rate: -1"),
    Case("--data.workers -1", "data.workers must be at least 0 (got -1)"),
    Case("--ckpt_path list.ckpt", "cannot read the checkpoint list.ckpt", list_checkpoint),
    Case("--samples.rows -1", "samples.rows must be at least 0"),
    Case("--forget_quality.generate_every -1", "forget_quality.generate_every must be at least 0 (got -1)"),
    Case("--trainer.val_check_interval 0", "trainer.val_check_interval must be greater than 0 (got 0)"),
    Case(
        "--trainer.check_val_every_n_epoch 0",
        "trainer.check_val_every_n_epoch must be greater than 0 (got 0)",
    ),
    Case(
        "--data.evaluate '[]' --forget_quality.utility_sets '[]'",
        "data.evaluate names no set; this data has forget, retain, holdout",
    ),
    Case(
        "--collapse_guard.lost_utility 0", "collapse_guard.lost_utility must be a share in (0, 1] (got 0.0)"
    ),
    Case("--selection.stop true", "there is no rule: set selection.rule"),
    Case("--export.best true", "set checkpoint.monitor"),
    Case("--ckpt_path no.ckpt", "no checkpoint no.ckpt"),
    Case("--forget_quality.retain_result nowhere", "nowhere does not exist: give the run folder"),
    Case("--data.max_length 8", "more than data.max_length 8"),
    Case("--model.policy.vocab_size 10", "vocab_size must be at least 259"),
    Case("--model.policy.config '{model_type: lama}'", "model.policy.config is not a model configuration"),
    Case("--model.policy Pretrained --model.policy.path ./nowhere", "no model folder ./nowhere"),
]

SETTINGS += [
    Case("--model.policy null", "model: policy is missing or null"),
    Case("--model null", "model is missing or null"),
    Case("--trainer null", "trainer: must be a mapping of keys (got null)"),
    Case("--model.policy.quantization null", "model.policy: there is no option 'quantization'"),
    Case("--weights_only false", "there is no option 'weights_only'"),
    Case("--output_dir ''", "--output_dir must name a folder (got '')"),
]

CONFIG_FILES = [
    Case(
        MINE,
        "mine.yaml is not UTF-8 text (byte 0xff at 0): save it as UTF-8",
        file("mine.yaml", "name: a", "utf-16"),
    ),
    Case(
        MINE,
        "in the config mine.yaml: the key 'name' is given twice (line 2)",
        file("mine.yaml", "name: a\nname: b"),
    ),
    Case(
        MINE,
        "in the config mine.yaml: the key 'lr' is given twice (line 1)",
        file("mine.yaml", "model: {init_args: {optimizer: {init_args: {lr: 1, lr: 2}}}}"),
    ),
    Case(MINE, "the config mine.yaml must be a mapping of keys (got ['a'])", file("mine.yaml", "- a")),
    Case(
        MINE,
        "in the config mine.yaml: data must be a mapping of keys (got null)",
        file("mine.yaml", "data:\n"),
    ),
    Case(
        MINE,
        "mine.yaml: mapping values are not allowed in this context at line 1, column 5",
        file("mine.yaml", "a: b: c"),
    ),
    Case(
        MINE,
        "in the config mine.yaml: data.class_path must name a class (got ['a'])",
        overlay("data.class_path", ["a"]),
    ),
    Case(
        MINE,
        "in the config mine.yaml: data.init_args must be a mapping of keys (got 3)",
        overlay("data.init_args", 3),
    ),
    Case(MINE, "aliases expand it to more than 100,000 values (line 5)", file("mine.yaml", BOMB)),
    Case(
        MINE,
        "an alias stands for a value that it is part of (line 1)",
        file("mine.yaml", "data: &a {init_args: *a}"),
    ),
    Case(
        MINE,
        "could not determine a constructor for the tag 'tag:yaml.org,2002:python/object/apply:os.system'",
        file("mine.yaml", f"name: !!python/object/apply:os.system ['touch {RAN}']"),
    ),
    Case(
        "fit --config npo.yaml --config smoke.yaml",
        "the config npo.yaml sets arguments of model and names no class for it",
    ),
    Case(
        "fit --config lora.yaml",
        "put the config that it changes before it (--config tofu.yaml --config lora.yaml)",
    ),
    Case(
        "fit --config news_requests.yaml",
        "holds requests, not the configuration of a run: use dipo-pl sequence news_requests.yaml",
    ),
    Case(
        "sequence smoke.yaml",
        "has the unknown key 'data': the keys of a sequence are configs, requests, mode",
    ),
    Case("sequence mine.yaml", "mine.yaml is not UTF-8 text", file("mine.yaml", "configs: [a]", "utf-16")),
    Case(
        "sequence mine.yaml",
        "the key 'requests' is given twice (line 2)",
        file("mine.yaml", "requests: [a]\nrequests: [b]"),
    ),
    Case("sequence nope.yaml", "no config nope.yaml"),
]

# A config from a stranger.
STRANGERS = [
    Case(
        MINE,
        "model.optimizer: importing os.system from a config is not allowed",
        overlay(OPTIMIZER, {"class_path": "os.system", "init_args": {"command": f"touch {RAN}"}}),
    ),
    Case(
        MINE,
        "model.optimizer: importing subprocess.Popen from a config is not allowed",
        overlay(OPTIMIZER, {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", RAN]}}),
    ),
    Case(
        MINE,
        "model.optimizer: torch.hub.load is no class; a config may name classes only",
        overlay(OPTIMIZER, {"class_path": "torch.hub.load", "init_args": {"repo_or_dir": "x/y"}}),
    ),
    Case("--model.optimizer torch.nn.Linear", "to be a subclass of <class 'Optimizer'>"),
    Case(
        MINE,
        "trainer.callbacks[0].setup: dipo_pl.cli.run.run is no class",
        overlay(
            "trainer.callbacks",
            [
                {
                    "class_path": "lightning.pytorch.callbacks.LambdaCallback",
                    "init_args": {"setup": "dipo_pl.cli.run.run"},
                }
            ],
        ),
    ),
    Case(
        MINE,
        "trainer.callbacks[0].on_fit_start: using torch.distributed.launcher.elastic_launch from a config is not allowed",
        overlay(
            "trainer.callbacks",
            [
                {
                    "class_path": "lightning.pytorch.callbacks.LambdaCallback",
                    "init_args": {
                        "on_fit_start": {
                            "class_path": "torch.distributed.launcher.api.elastic_launch",
                            "init_args": {
                                "entrypoint": "touch",
                                "config": {"min_nodes": 1, "max_nodes": 1, "nproc_per_node": 1},
                            },
                        }
                    },
                }
            ],
        ),
    ),
    *(
        Case(
            MINE,
            f"trainer.{key}: ",
            overlay(
                f"trainer.{key}", [{"class_path": "subprocess.Popen", "init_args": {"args": ["touch", RAN]}}]
            ),
        )
        for key in ("callbacks", "logger", "plugins")
    ),
    *(
        Case(f"--{key} torch.nn.Linear", "does not correspond to a subclass of")
        for key in (
            "model",
            "data",
            "model.policy",
            "model.forget_loss",
            "data.prompt",
            "trainer.callbacks",
            "trainer.logger",
        )
    ),
    Case(
        "--model.policy.config config.json", "cannot create a random config.json", file("config.json", REMOTE)
    ),
]

ROWS = [
    Case(JSONL, "f.jsonl, line 2: not valid JSON", rows(record() + '{"question": ')),
    Case(JSONL, "f.jsonl is not UTF-8 text (byte 0xff at 0): save it as UTF-8", rows(encoding="utf-16")),
    Case(JSONL, "f.jsonl is empty: it needs at least one row", rows("\n")),
    Case(JSONL, "f.jsonl, line 1: must be a JSON object (got list)", rows("[1]\n")),
    Case(JSONL, "f.jsonl, line 1: 'answer' must be a non-empty text (got ' ')", rows(record(answer=" "))),
    Case(JSONL, "no file f.jsonl: give the path of a JSON-lines file"),
    Case(
        "--model.policy.config "
        + shlex.quote("{model_type: gpt2, n_embd: 32, n_layer: 1, n_head: 2, n_positions: 16}"),
        "the model's context is 16: set data.max_length to 16 and data.too_long to truncate",
    ),
    Case(
        "--model.constructor.center false --model.constructor.filter.rate 0.9",
        "Set center to true, or keep fewer tokens",
        begun=True,
    ),
]

MODELS = [
    Case(
        PRETRAINED + "./model",
        "./model has no *.safetensors, only pytorch_model.bin, a pickle, which can run code when it is read",
        model_of_smoke(as_pickle),
    ),
    Case(
        PRETRAINED + "./model", "cannot load the model of './model'", model_of_smoke(pickle_named_safetensors)
    ),
    Case(
        PRETRAINED + "./model", "./model holds an adapter, not a complete model", model_of_smoke(as_adapter)
    ),
    Case(PRETRAINED + "./model", "its weights are broken", model_of_smoke(broken_weights)),
    Case(
        PRETRAINED + "./model",
        "its own code: read that code, then set model.policy.trust_remote_code to true",
        model_of_smoke(with_remote_code),
    ),
    Case(
        PRETRAINED + "./model --data.prompt ChatTemplate",
        "the tokenizer's chat template refuses the row",
        model_of_smoke(template_that_escapes),
    ),
    Case(
        "task-vector model model --output out",
        "model has no *.safetensors, only pytorch_model.bin",
        model_of_smoke(as_pickle),
    ),
    Case("task-vector model model --output model", "--output model is one of the models", model_of_smoke()),
    Case("interpolate model nope --output out", "no model folder nope", model_of_smoke()),
    Case(
        "interpolate model model --output out --weight 2",
        "--weight must be a share in [0, 1] (got 2.0)",
        model_of_smoke(),
    ),
]

RESUMING = [
    Case(
        "--ckpt_path evil.ckpt",
        "cannot read the checkpoint evil.ckpt (it holds more than tensors and plain values",
        evil_checkpoint,
    ),
    Case(
        "validate --config smoke.yaml --ckpt_path evil.ckpt",
        "cannot read the checkpoint evil.ckpt (it holds more",
        evil_checkpoint,
    ),
    Case(
        "validate --config smoke.yaml --ckpt_path no.ckpt",
        "no checkpoint no.ckpt: give a file or a folder of shards, or leave ckpt_path out",
    ),
    Case(
        "--trainer.max_epochs 3",
        "cannot read the checkpoint runs/smoke/checkpoints/last.ckpt (it holds more",
        run_of_smoke(pickled_optimizer),
    ),
    Case(
        "--trainer.max_epochs 3",
        "cannot read the checkpoint runs/smoke/checkpoints/last.ckpt",
        run_of_smoke(half_a_checkpoint),
    ),
    Case(
        "--trainer.max_epochs 1",
        "trainer.max_epochs is 1 and runs/smoke/checkpoints/last.ckpt has completed 2 epochs",
        run_of_smoke(),
    ),
    Case("--trainer.max_epochs -1", "training has no end", run_of_smoke()),
    Case(
        "--trainer.max_epochs 3",
        "runs/smoke holds a run of another version of dipo-pl (dipo_pl.unlearning.Unlearning does not exist in this one)",
        run_of_smoke(config_of_another_version),
    ),
    Case(
        "--name other --ckpt_path runs/smoke/checkpoints/last.ckpt",
        "runs/smoke/checkpoints/last.ckpt (another version of dipo-pl has written it): give another as ckpt_path",
        run_of_smoke(checkpoint_of_another_version),
    ),
    Case(
        "--trainer.max_epochs 3",
        "another version of dipo-pl has written it): remove it and previous.ckpt to start afresh",
        run_of_smoke(checkpoint_of_another_version),
    ),
    Case(
        "--trainer.max_epochs 3", "cannot read runs/smoke/config.yaml", run_of_smoke(without("config.yaml"))
    ),
    Case(
        "--trainer.max_epochs 3",
        "runs/smoke/manifest.json does not record which rows its checkpoints were trained on",
        run_of_smoke(lambda run: (run / "manifest.json").write_text("{}")),
    ),
    Case(
        "--trainer.max_epochs 3",
        "runs/smoke is finished and has no checkpoint to resume from: give another --name",
        run_of_smoke(without("checkpoints")),
    ),
    Case(
        "--name other --ckpt_path runs/smoke/checkpoints/last.ckpt --trainer.max_epochs 3 --model.optimizer SGD",
        "model.optimizer is SGD, and the checkpoint has the state of AdamW: set model.optimizer to AdamW",
        run_of_smoke(),
    ),
    Case(
        "--trainer.max_epochs 3",
        "runs/smoke/metrics.jsonl, line 4 is not an evaluation",
        run_of_smoke(lambda run: (run / "metrics.jsonl").open("a").write('{"step": "x"}\n')),
    ),
    Case(
        """--trainer.strategy '{"class_path": "dipo_pl.strategies.fsdp.FSDP2Strategy", "init_args": {"nope": 1}}'""",
        "trainer.strategy: there is no option 'nope'",
    ),
    Case(
        "--trainer.max_epochs 3",
        "runs/smoke/metrics.jsonl, line 4 is not an evaluation",
        run_of_smoke(half_a_line_of_metrics),
    ),
    Case("--trainer.max_epochs 3", "cannot read runs/smoke/config.yaml", run_of_smoke(config_without_keys)),
    Case(
        "--model.forget_loss.beta 0.5",
        "runs/smoke holds a run with another configuration (model.init_args.forget_loss",
        run_of_smoke(),
    ),
    Case(
        "validate --config smoke.yaml --name smoke",
        "runs/smoke holds a training run: give this evaluation another --name",
        run_of_smoke(),
    ),
    Case(
        "--model.reference StoredStates --model.reference.path store",
        "store holds no usable reference states (manifest.json cannot be read",
        pickled_store,
    ),
]

RESULTS = "--name other --forget_quality.retain_result "
OF_OPEN_UNLEARNING = RESULTS + "TOFU_EVAL.json --forget_quality.convention open_unlearning"
COMPARED = [
    Case(
        RESULTS + "runs/smoke --data.evaluation_rows 5",
        "has 10 forget rows and this run 5",
        run_of_smoke(),
    ),
    Case(RESULTS + "runs/smoke --data.author_seed 1", "was evaluated on other forget rows", run_of_smoke()),
    Case(RESULTS + ".", "is not the folder of a finished run"),
    Case(RESULTS + "runs/smoke/manifest.json", "is not an evaluation", run_of_smoke()),
    *(
        Case(command, "TOFU_EVAL.json" + line, fault)
        for command in (OF_OPEN_UNLEARNING, "report TOFU_EVAL.json")
        for line, fault in (
            (
                " is not an evaluation: it cannot be read (Expecting",
                file("TOFU_EVAL.json", '{"forget_Q_A_Prob": 5'),
            ),
            (" is not an evaluation: it cannot be read ('utf-8'", file("TOFU_EVAL.json", "{}", "utf-16")),
            (
                ", forget_Q_A_Prob must be a finite number (got nan)",
                foreign(forget_Q_A_Prob={"agg_value": float("nan")}),
            ),
            (
                ", forget_Q_A_Prob must have values by row (got 5)",
                foreign(forget_Q_A_Prob={"value_by_index": 5}),
            ),
            (" is not what it looks like (ValueError", foreign(forget_quality={"agg_value": -1})),
            (
                ", forget_Q_A_ROUGE, row 0 is not what open-unlearning writes",
                foreign(forget_Q_A_ROUGE={"value_by_index": {"0": 5}}),
            ),
        )
    ),
]

OTHER_COMMANDS = [
    Case("report nowhere", "nowhere"),
    Case("report runs/smoke --output ''", "argument --output: invalid folder value: ''", run_of_smoke()),
    Case(
        "report runs/smoke --format docx",
        "--format must name some of html, markdown, csv, json, latex, png",
        run_of_smoke(),
    ),
    Case(
        "report runs/smoke --format html",
        "--format html needs --output DIR",
        run_of_smoke(),
    ),
    Case("report runs/smoke", "runs/smoke is not finished (status: running)", run_of_smoke(unfinished)),
    Case(
        "relearn runs/smoke",
        "runs/smoke is not finished (status: running): finish that run first",
        run_of_smoke(unfinished),
    ),
    Case("relearn nowhere", "nowhere is not a run folder"),
    Case(
        "relearn runs/smoke --share 0",
        "--share must be a share in (0, 1] (got 0.0)",
        run_of_smoke(),
    ),
    Case(
        "quantize runs/smoke",
        "cannot read the configuration of the run in runs/smoke/config.yaml",
        run_of_smoke(config_without_keys),
    ),
]

UNREADABLE = "cannot read the checkpoint runs/smoke/checkpoints/last.ckpt ("
CONSOLIDATE = "consolidate runs/smoke --output one.ckpt"
SHARDS = [
    Case("consolidate runs/smoke", "the following arguments are required: --output", in_shards()),
    Case(CONSOLIDATE, "runs/smoke/checkpoints/last.ckpt is one file already", run_of_smoke()),
    Case(
        "consolidate nowhere --output one.ckpt",
        "no checkpoint nowhere: give the folder of a sharded checkpoint",
    ),
    Case("consolidate there --output one.ckpt", "there is not a sharded checkpoint (it has no", folder_there),
    Case(
        "consolidate runs/smoke --output empty.yaml",
        "--output empty.yaml already exists",
        lambda smoke: (in_shards()(smoke), empty_file(smoke))[0],
    ),
    Case(CONSOLIDATE, f"{UNREADABLE}{SHARD} is damaged): give another", in_shards(bit_of_a_shard)),
    Case(CONSOLIDATE, f"{UNREADABLE}it holds more than tensors", in_shards(pickled_rest)),
    Case(CONSOLIDATE, f"{UNREADABLE}{SHARD} is not a file of this checkpoint", in_shards(without_files)),
    Case(CONSOLIDATE, "is not complete): give another", in_shards(half_a_tensor)),
    Case(CONSOLIDATE, "is not complete): give another", in_shards(without_a_tensor)),
    Case(
        "consolidate runs/smoke --output runs/smoke/checkpoints/last.ckpt/x",
        "is inside the checkpoint: give a file elsewhere",
        in_shards(),
    ),
    Case(
        "consolidate runs/smoke --output " + 300 * "n", "cannot be a file (File name too long)", in_shards()
    ),
    Case("consolidate runs/smoke --output empty.yaml/x", "empty.yaml is not a folder", in_shards(empty_file)),
    Case("--trainer.max_epochs 3", f"{UNREADABLE}{SHARD} is damaged): remove it", in_shards(bit_of_a_shard)),
    Case("--trainer.max_epochs 3", f"{UNREADABLE}{SHARD} is damaged): remove it", in_shards(end_of_a_shard)),
    Case("--trainer.max_epochs 3", f"{UNREADABLE}{SHARD} is missing): remove it", in_shards(without_a_shard)),
    Case("--trainer.max_epochs 3", f"{UNREADABLE}[Errno 2] No such file", in_shards(without_the_rest)),
    Case("--trainer.max_epochs 3", f"{UNREADABLE}it holds more than tensors", in_shards(pickled_rest)),
]

CASES = [*SETTINGS, *CONFIG_FILES, *STRANGERS, *ROWS, *MODELS, *RESUMING, *COMPARED, *OTHER_COMMANDS, *SHARDS]


def on_disk() -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in Path().rglob("*")}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.command} ({case.line[:40]})")
def test_what_is_wrong_is_said_in_a_line_and_nothing_is_touched(cli, smoke, case):
    case.fault(smoke)
    before = on_disk()
    ended = cli(*case.words)
    said = [each for each in ended.err.splitlines() if each.startswith("dipo-pl: ") and "warning" not in each]
    assert ended.code == case.code, ended.err
    (line,) = said
    assert case.line in line
    assert len(line) <= 640
    assert not re.search(r"Traceback|Union subtypes|NestedArg|\x1b", ended.err + ended.out)
    after = on_disk()
    assert after == before or case.begun
    assert after | before == after


def test_the_payload_runs_where_pickles_are_trusted(tmp_path, monkeypatch):
    """Without which the cases with one would show nothing."""
    monkeypatch.chdir(tmp_path)
    pickle_at("evil.ckpt")
    torch.load("evil.ckpt", weights_only=False)
    assert Path(RAN).exists()


def test_a_checkpoint_is_never_unpickled_whatever_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle_at("evil.ckpt")
    with pytest.raises(pickle.UnpicklingError):
        AtomicCheckpointIO().load_checkpoint("evil.ckpt", weights_only=False)
    assert not Path(RAN).exists()


def test_a_null_is_a_null_on_the_command_line(cli):
    ended = cli(
        "fit",
        "--config",
        "smoke.yaml",
        *shlex.split(PRETRAINED),
        "x",
        "--model.policy.quantization",
        "null",
        "--model.policy.revision",
        "null",
        "--print_config",
    )
    assert ended.code == 0, ended.err
    assert "quantization: null" in ended.out
    assert "revision: null" in ended.out
