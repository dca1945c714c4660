"""Private names of PyTorch, Lightning and transformers: all that the project uses where no public name does the same.

tests/test_private_names.py fails when one of them changes, or when another file uses one.
"""

import subprocess
from argparse import Action, ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

if TYPE_CHECKING:
    from lightning import LightningModule, Trainer
    from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

Launched = list[subprocess.Popen[bytes]]

__all__ = ["CAST", "GROUPED_PRODUCT", "FakeTensorMode", "TorchDispatchMode", "tree_iter"]

# The operation of Tensor.to.
CAST = torch.ops.aten._to_copy.default
# The operation of a mixture of experts; without contents it is refused in float32, which it computes with contents.
GROUPED_PRODUCT = torch.ops.aten._grouped_mm.default


def apply_to(module: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
    """Apply a function to all parameters and buffers, in place, as nn.Module.to does."""
    module._apply(function)


def storage_key(tensor: Tensor | torch.UntypedStorage) -> int:
    """Return a number that tensors have in common exactly if they share memory; fake ones have no data pointer."""
    storage = tensor.untyped_storage() if isinstance(tensor, Tensor) else tensor
    key: int = storage._cdata
    return key


def trainer_of(module: "LightningModule") -> "Trainer | None":
    """Return the module's trainer, None where it is not attached to one."""
    return module._trainer


def leave_signals_alone(trainer: "Trainer") -> None:
    """Keep a trainer from installing signal handlers.

    Lightning's would save nothing on SIGTERM, wait for other ranks within the handler, and under SLURM write a checkpoint
    that may be between two steps; see `dipo_pl.signals`.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]


def launched_processes(trainer: "Trainer") -> Launched | None:
    """Return the processes that a trainer has launched on this machine; None if it does not launch any itself.

    The list is empty until the first call of `fit` or `validate`; call again after it.
    """
    # Imported late, also below: Lightning takes a second.
    from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

    launcher = trainer.strategy.launcher
    return launcher.procs if isinstance(launcher, _SubprocessScriptLauncher) else None


def observe_launched(observe: Callable[[Launched], None]) -> None:
    """Replace Lightning's observer of launched processes, which kills this process before it can report a cause."""
    from lightning.pytorch.strategies.launchers import subprocess_script

    subprocess_script._launch_process_observer = observe  # type: ignore[assignment]


def find_unused_parameters(strategy: "DDPStrategy") -> None:
    """Have DDP wait for no gradients of parameters that a forward pass does not use."""
    strategy._ddp_kwargs["find_unused_parameters"] = True


def set_data_parallel(strategy: "ModelParallelStrategy") -> None:
    """Make all ranks data parallel, before the mesh is made; the number of ranks is not known when one is constructed."""
    strategy._data_parallel_size = strategy.num_nodes * strategy.num_processes
    strategy._tensor_parallel_size = 1


def options_of(parser: ArgumentParser) -> list[Action]:
    """Return the options and arguments that a parser knows."""
    return list(parser._actions)


def attention_implementation(config: Any) -> str:
    """Return how a transformers model computes attention: eager, sdpa, flash_attention_2, ..."""
    return str(config._attn_implementation)


@contextmanager
def bar_of_dequantization() -> Iterator[None]:
    """Have transformers show its progress on a GGUF file on a terminal only, and remove the bar at its end."""
    # Imported late: transformers takes seconds.
    from transformers import modeling_gguf_pytorch_utils as loading

    before = loading.tqdm
    loading.tqdm = partial(before, disable=None, leave=False)
    try:
        yield
    finally:
        loading.tqdm = before


@contextmanager
def without_bars_of_lm_eval() -> Iterator[None]:
    """Have lm-eval show no progress bars, which would cut through the line of a run or command."""
    # Imported late: lm-eval may not be installed.
    from lm_eval.api import model, task
    from lm_eval.models import huggingface

    modules = {each: each.tqdm for each in (model, task, huggingface)}
    for module, bar in modules.items():
        module.tqdm = partial(_hidden, bar)
    try:
        yield
    finally:
        for module, bar in modules.items():
            module.tqdm = bar


def _hidden(bar: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    return bar(*arguments, **{**options, "disable": True})
