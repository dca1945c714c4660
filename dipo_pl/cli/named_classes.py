"""What a config may name: classes, of the kind that the key takes, and nothing else that can be called."""

from collections.abc import Iterator
from pydoc import locate
from typing import Any

import yaml
from jsonargparse import Namespace, get_loader, set_loader, set_parsing_settings
from lightning import Callback, LightningDataModule, LightningModule
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import LayerSync, Precision
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import Strategy
from torch.optim import Optimizer

from dipo_pl.errors import InputError
from dipo_pl.storage.text import check_yaml

# What a run is made of, beside the package's own classes and those derived from them. A key that takes anything that
# can be called, as a hook does, would else have an object made of any class whose objects can be.
KINDS = (
    Accelerator, Callback, CheckpointIO, ClusterEnvironment, LayerSync, LightningDataModule, LightningModule, Logger,
    Optimizer, Precision, Profiler, Strategy,
)  # fmt: skip

_load = get_loader("yaml")


def guard_configs() -> None:
    """Closes what jsonargparse leaves open: keys of any type that make objects, and modules that run commands."""
    set_parsing_settings(import_path_denylist=[], instantiate_subclass_spec_in_any=False)
    set_loader("yaml", _load_setting, (yaml.YAMLError,))


def _load_setting(text: str) -> Any:
    check_yaml(text)
    # A null on the command line reaches the class that it is an argument of as Python writes it.
    return None if text == "None" else _load(text)


def refuse_functions(settings: Namespace) -> None:
    """
    Raises:
        InputError: a key names a function, which instantiating the config would call, or its class_path does, or that
            names a class of no kind that a run is made of.
    """
    for key, value in _leaves(settings, ""):
        named = locate(value) if key.endswith("class_path") else value
        if key.endswith("class_path") and isinstance(named, type) and not _of_a_known_kind(named):
            place = key.removesuffix(".class_path").replace(".init_args", "")
            raise InputError(
                f"{place} names {value}, which is of no kind that a run is made of: a class of one's own derives from one "
                "of dipo_pl's, or is a callback, logger, strategy, plugin, profiler, module or optimizer"
            )
        # jsonargparse's own paths of files can be called, too.
        if callable(named) and not isinstance(named, type) and not hasattr(named, "__fspath__"):
            name = f"{named.__module__}.{getattr(named, '__qualname__', type(named).__qualname__)}"
            place = key.removesuffix(".class_path").replace(".init_args", "")
            raise InputError(
                f"{place} names {name}, which is no class: a config names classes, not functions"
            )


def _of_a_known_kind(named: type) -> bool:
    return issubclass(named, KINDS) or any(each.__module__.startswith("dipo_pl.") for each in named.__mro__)


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    # Plain mappings are values of a model's configuration, say, and nothing is made of them.
    if isinstance(value, Namespace):
        for name, each in vars(value).items():
            yield from _leaves(each, f"{key}.{name}".removeprefix("."))
    elif isinstance(value, list | tuple):
        for number, each in enumerate(value):
            yield from _leaves(each, f"{key}[{number}]")
    else:
        yield key, value
