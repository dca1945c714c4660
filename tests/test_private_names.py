"""Private names of other libraries: each still is what it was, and all are in one file."""

import ast
import inspect
import os
import re
from argparse import ArgumentParser
from importlib.util import find_spec, module_from_spec
from io import StringIO
from pathlib import Path

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from lightning.pytorch.strategies.launchers import subprocess_script
from lm_eval.api import model as lm_eval_model
from lm_eval.api import task as lm_eval_task
from lm_eval.models import huggingface as lm_eval_huggingface
from transformers import LlamaConfig, modeling_gguf_pytorch_utils

import dipo_pl
from dipo_pl import private_names

ROOT = Path(dipo_pl.__file__).parent
# Methods of a class that begin with an underscore and are public all the same.
PUBLIC = {"_asdict", "_replace", "_exit", "_make"}


def parameters(function):
    return [*inspect.signature(function).parameters]


# Private methods that classes of the project override or call through super().
OVERRIDDEN = {
    torch.nn.Module._apply: ["self", "fn", "recurse"],
    ModelCheckpoint._save_topk_checkpoint: ["self", "trainer", "monitor_candidates"],
}


@pytest.mark.parametrize("method", OVERRIDDEN, ids=lambda method: method.__qualname__)
def test_overridden_methods_have_their_parameters(method):
    assert parameters(method) == OVERRIDDEN[method]


def test_modules_and_tensors():
    module = torch.nn.Linear(2, 2)
    private_names.apply_to(module, lambda each: each.double())
    assert module.weight.dtype == torch.float64
    view, other = module.weight[0], torch.zeros(2)
    assert private_names.storage_key(view) == private_names.storage_key(module.weight)
    assert private_names.storage_key(other) != private_names.storage_key(view)
    assert [*private_names.tree_iter({"a": [1, (2,)]})] == [1, 2]


def test_operations():
    assert private_names.CAST(torch.zeros(2), dtype=torch.float64).dtype == torch.float64
    ends = torch.tensor([1, 3], dtype=torch.int32)
    product = private_names.GROUPED_PRODUCT(torch.ones(3, 16), torch.ones(2, 16, 16), ends)
    assert torch.equal(product, torch.full((3, 16), 16.0))


def test_a_module_without_a_trainer():
    module = LightningModule()
    assert private_names.trainer_of(module) is None
    trainer = Trainer(logger=False, accelerator="cpu")
    module.trainer = trainer
    assert private_names.trainer_of(module) is trainer


def test_signal_handlers_of_lightning():
    trainer = Trainer(logger=False, accelerator="cpu")
    assert parameters(trainer._signal_connector.register_signal_handlers) == []
    private_names.leave_signals_alone(trainer)
    assert trainer._signal_connector.register_signal_handlers() is None


def test_observer_of_launched_processes(monkeypatch):
    before = subprocess_script._launch_process_observer
    # As Lightning has it: a run in this process may have replaced it.
    spec = find_spec(subprocess_script.__name__)
    unchanged = module_from_spec(spec)
    spec.loader.exec_module(unchanged)
    assert parameters(unchanged._launch_process_observer) == ["child_processes"]
    # The launcher looks the name up in its module when it calls it.
    launch = inspect.getsource(subprocess_script._SubprocessScriptLauncher.launch)
    assert "_launch_process_observer(self.procs)" in launch
    assert private_names.launched_processes(Trainer(logger=False, accelerator="cpu")) is None
    two = Trainer(logger=False, accelerator="cpu", devices=2, strategy="ddp")
    assert private_names.launched_processes(two) == []
    monkeypatch.setattr(subprocess_script, "_launch_process_observer", before)
    private_names.observe_launched(print)
    assert subprocess_script._launch_process_observer is print


def test_options_of_a_parser():
    parser = ArgumentParser(add_help=False)
    added = parser.add_argument("--thing")
    assert private_names.options_of(parser) == [added]


def test_strategies():
    ddp = DDPStrategy()
    private_names.find_unused_parameters(ddp)
    assert ddp._ddp_kwargs == {"find_unused_parameters": True}
    assert "**self._ddp_kwargs" in inspect.getsource(DDPStrategy._setup_model)
    sharded = ModelParallelStrategy()
    assert (sharded._data_parallel_size, sharded._tensor_parallel_size) == ("auto", "auto")
    private_names.set_data_parallel(sharded)
    assert (sharded._data_parallel_size, sharded._tensor_parallel_size) == (0, 1)


def test_configurations_of_transformers():
    config = LlamaConfig(attn_implementation="eager")
    assert private_names.attention_implementation(config) == "eager"


def test_the_bar_of_gguf_files():
    before = modeling_gguf_pytorch_utils.tqdm
    source = inspect.getsource(modeling_gguf_pytorch_utils.load_gguf_checkpoint)
    assert "in tqdm(reader.tensors" in source
    with private_names.bar_of_dequantization():
        bar = modeling_gguf_pytorch_utils.tqdm([1], desc="read", file=StringIO())
        # No terminal.
        assert bar.disable
    assert modeling_gguf_pytorch_utils.tqdm is before


def test_the_bars_of_lm_eval():
    modules = [lm_eval_model, lm_eval_task, lm_eval_huggingface]
    before = [each.tqdm for each in modules]
    for each in modules:
        assert re.search(r"\btqdm\(", inspect.getsource(each))
    with private_names.without_bars_of_lm_eval():
        assert all(each.tqdm([1], disable=False, file=StringIO()).disable for each in modules)
    assert [each.tqdm for each in modules] == before


def private_uses(path: Path) -> list[str]:
    """Imports of private modules and names, and private attributes of anything but `self`, `cls` and super()."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith("dipo_pl"):
            names = [*node.module.split("."), *(each.name for each in node.names)]
        elif isinstance(node, ast.Attribute) and not (
            (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
            or (isinstance(node.value, ast.Call) and getattr(node.value.func, "id", "") == "super")
        ):
            names = [node.attr]
        else:
            continue
        private = [each for each in names if each.startswith("_") and not each.startswith("__")]
        found += [f"{path.name}:{node.lineno} {each}" for each in private if each not in PUBLIC]
    return found


def test_no_other_file_uses_one():
    # Folders of the package may be symbolic links.
    folders = [(Path(folder), names) for folder, _, names in os.walk(ROOT, followlinks=True)]
    files = [folder / name for folder, names in folders for name in names if name.endswith(".py")]
    files.remove(ROOT / "private_names.py")
    assert len(files) > 100
    assert [use for path in files for use in private_uses(path)] == []
