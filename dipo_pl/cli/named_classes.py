"""Limits on what a config may name: classes, of the kind that the key takes, and nothing else that can be called."""

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

# What a config may name beside this package's classes and those derived from them. Without this, a key that takes any
# callable, such as a hook, would make an object of any class whose objects are callable.
KINDS = (
    Accelerator, Callback, CheckpointIO, ClusterEnvironment, LayerSync, LightningDataModule, LightningModule, Logger,
    Optimizer, Precision, Profiler, Strategy,
)  # fmt: skip

_load = get_loader("yaml")


def guard_configs() -> None:
    """Restrict jsonargparse: no objects from keys of any type, no imports of modules that run commands."""
    set_parsing_settings(import_path_denylist=[], instantiate_subclass_spec_in_any=False)
    set_loader("yaml", _load_setting, (yaml.YAMLError,))


def refuse_functions(settings: Namespace) -> None:
    """Refuse a parsed configuration that names something other than classes of the allowed kinds.

    Raises:
        InputError: a key or its class_path names a function, which instantiating the configuration would call, or a class
            that is none of `KINDS` and not derived from a class of this package.
    """
    for key, value in _leaves(settings, ""):
        place = key.removesuffix(".class_path").replace(".init_args", "")
        named = locate(value) if key.endswith("class_path") else value
        if key.endswith("class_path") and isinstance(named, type) and not _is_allowed(named):
            raise InputError(
                f"{place}: using {value} from a config is not allowed: name a class derived from one of dipo_pl, or a "
                "callback, logger, strategy, plugin, profiler, module or optimizer"
            )
        # jsonargparse's paths of files are callable, too.
        if callable(named) and not isinstance(named, type) and not hasattr(named, "__fspath__"):
            name = f"{named.__module__}.{getattr(named, '__qualname__', type(named).__qualname__)}"
            raise InputError(f"{place}: {name} is no class; a config may name classes only")


def _load_setting(text: str) -> Any:
    check_yaml(text)
    # jsonargparse hands a null of the command line to the class that has the argument as Python writes it.
    return None if text == "None" else _load(text)


def _is_allowed(named: type) -> bool:
    return issubclass(named, KINDS) or any(each.__module__.startswith("dipo_pl.") for each in named.__mro__)


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    # Plain mappings are values, such as a model's configuration; nothing is instantiated from them.
    if isinstance(value, Namespace):
        for name, each in vars(value).items():
            yield from _leaves(each, f"{key}.{name}".removeprefix("."))
    elif isinstance(value, list | tuple):
        for number, each in enumerate(value):
            yield from _leaves(each, f"{key}[{number}]")
    else:
        yield key, value
