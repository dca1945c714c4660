"""Early check of configs and option names, before PyTorch and Lightning are imported, which takes seconds.

The names that a class takes are read from its source. Most classes of other packages, and all values, are left to the
parser.
"""

import ast
import re
from collections.abc import Iterator, Sequence
from functools import cache
from glob import glob
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from dipo_pl.cli.console import near
from dipo_pl.configs import resolve
from dipo_pl.errors import InputError
from dipo_pl.storage.text import load_yaml, read_text

PACKAGE = Path(__file__).parents[1]
# Options that are callbacks of every run, in the order in which the trainer calls them: the verdict is on what was
# exported, and the last checkpoint has to know the best one of its epoch. As text, since importing a class takes as long as
# importing Lightning.
CALLBACKS = {
    "forget_quality": "dipo_pl.callbacks.forget_quality.ForgetQuality",
    "lm_eval": "dipo_pl.callbacks.lm_eval.LMEval",
    "samples": "dipo_pl.callbacks.samples.Samples",
    "selection": "dipo_pl.callbacks.selection.Selection",
    "collapse_guard": "dipo_pl.callbacks.collapse_guard.CollapseGuard",
    "export": "dipo_pl.callbacks.export.Export",
    "verdict": "dipo_pl.callbacks.verdict.Judge",
    "checkpoint": "dipo_pl.callbacks.best_checkpoint.BestCheckpoint",
    "last_checkpoint": "dipo_pl.callbacks.last_checkpoint.LastCheckpoint",
}
SINGLE = ("name", "output_dir", "ckpt_path", "require", "seed_everything")
# Arguments whose value is a class with arguments of its own.
CLASSES = ("model", "data")
TOP_LEVEL = (*SINGLE, *CLASSES, "trainer", *CALLBACKS)
TRAINER = "lightning.pytorch.trainer.trainer.Trainer"
# Classes of other packages whose source is read: package and file.
EXTERNAL = {
    "Trainer": ("lightning", "pytorch/trainer/trainer.py"),
    "ModelCheckpoint": ("lightning", "pytorch/callbacks/model_checkpoint.py"),
    **{name: ("torch", f"optim/{name.lower()}.py") for name in ("Adam", "AdamW", "SGD")},
}
# Names of earlier versions.
RENAMED = {"measures": "metrics", "figure": "metric"}


def check_options(words: Sequence[str]) -> dict[str, str | None]:
    """Check what can be told of a command line of `fit` or `validate` without importing anything heavy.

    Args:
        words: the arguments after the command.

    Returns:
        By key, such as `data`, the class that was named last; None for one that is not known here. Empty where help is
        asked for.

    Raises:
        InputError: a config cannot be read, an option does not exist, or neither config nor option names the model
            or the data.
    """
    options = list(_options(words))
    if any(name in ("h", "help") or name.endswith(".help") for name, _ in options):
        return {}
    check = _Check()
    for name, value in options:
        if name in ("c", "config"):
            check.config(value)
        elif not name.startswith("print_"):
            check.option(name, value)
    missing = [key for key in CLASSES if key not in check.classes]
    if missing and not any(name.startswith("print_") for name, _ in options):
        raise InputError(f"give --{' and --'.join(missing)}, or a --config that has it (see dipo-pl configs)")
    return check.classes


def read_config(name: str) -> Any:
    """Return the content of a config file.

    Args:
        name: a path, or the bare name of a shipped config.

    Raises:
        InputError: there is no such file, it is no YAML, or it holds requests instead of a run's configuration.
    """
    try:
        content = load_yaml(read_text(resolve(name)))
    except (OSError, yaml.YAMLError) as error:
        said = " ".join(str(error).split()).replace(' in "<unicode string>",', " at")
        raise InputError(f"in the config {name}: {said}") from error
    if isinstance(content, dict) and {"configs", "requests"} <= content.keys():
        raise InputError(
            f"{name} holds requests, not the configuration of a run: use dipo-pl sequence {name}"
        )
    return content


class _Check:
    """State of the check while configs and options are read in their order.

    Attributes:
        classes: by key, such as `model.forget_loss`, the class that was named last; None for one that is not known here.
    """

    def __init__(self) -> None:
        self.classes: dict[str, str | None] = {"trainer": TRAINER, **CALLBACKS}

    def config(self, name: str) -> None:
        content = read_config(name)
        if not isinstance(content, dict):
            shown = "an empty file" if content is None else repr(content)[:80]
            raise InputError(f"the config {name} must be a mapping of keys (got {shown})")
        for key in CLASSES:
            value = content.get(key)
            if isinstance(value, dict) and "class_path" not in value and key not in self.classes:
                raise InputError(
                    f"the config {name} sets arguments of {key} and names no class for it: put the config that it "
                    f"changes before it (--config tofu.yaml --config {name})"
                )
        try:
            for key, value in content.items():
                self._top_level(str(key))
                if value is None and key not in SINGLE:
                    raise InputError(f"{key} must be a mapping of keys (got null)")
                self._value(str(key), value)
        except InputError as error:
            raise InputError(f"in the config {name}: {error}") from None

    def option(self, name: str, text: str) -> None:
        *parents, last = [each for each in name.split(".") if each != "init_args"]
        self._top_level(parents[0] if parents else last)
        for depth in range(1, len(parents)):
            self._argument(".".join(parents[:depth]), parents[depth])
        key = ".".join(parents)
        if last == "class_path":
            self._class(key, text)
            return
        if parents:
            self._argument(key, last)
            key += "."
        try:
            value = load_yaml(text) if text.startswith("{") else text
        except yaml.YAMLError:
            value = None
        self._value(key + last, value)

    def _top_level(self, name: str) -> None:
        if name not in TOP_LEVEL:
            raise InputError(f"there is no option {name!r}{near(name, TOP_LEVEL) or ' (--help shows all)'}")

    def _argument(self, key: str, name: str) -> None:
        named = self.classes.get(key)
        known = None if named is None else argument_names(named)
        if known is not None and name not in (*known, "class_path", "dict_kwargs"):
            new = RENAMED.get(name)
            advice = f" (it is called {new} now)" if new in known else near(name, known)
            raise InputError(f"{key}: there is no option {name!r}{advice or ' (--print_config shows all)'}")

    def _value(self, key: str, value: Any) -> None:
        if isinstance(value, dict):
            if "class_path" in value:
                if not isinstance(named := value["class_path"], str):
                    raise InputError(f"{key}.class_path must name a class (got {named!r})")
                self._class(key, named)
            is_bare = not {"class_path", "init_args", "dict_kwargs"} & value.keys()
            arguments = value if is_bare else value.get("init_args") or {}
            if not isinstance(arguments, dict):
                raise InputError(f"{key}.init_args must be a mapping of keys (got {arguments!r})")
            for name, each in arguments.items():
                self._argument(key, str(name))
                self._value(f"{key}.{name}", each)
        elif isinstance(value, str) and ("." in key or key in CLASSES):
            self._class(key, value)

    def _class(self, key: str, named: str) -> None:
        if self.classes.get(key) != named:
            # What an argument of the class before was set to may not be what the new one has.
            for each in [each for each in self.classes if each.startswith(f"{key}.")]:
                self.classes[each] = None
        self.classes[key] = named


def _options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the options of a command line as name and value; `+`, which appends to a list, is left out.

    Raises:
        InputError: a word is neither an option nor the value of one.
    """
    is_value = False
    for word, after in zip(words, [*words[1:], "--"], strict=False):
        name, given, value = word.partition("=")
        if is_value:
            is_value = False
        elif word.startswith("--") or word in ("-c", "-h"):
            is_value = not given and not after.startswith("--")
            yield name.lstrip("-").removesuffix("+"), after if is_value else value
        elif not word.startswith("-"):
            raise InputError(f"unexpected argument {word!r}: options begin with --, such as --config {word}")


@cache
def argument_names(named: str) -> tuple[str, ...] | None:
    """Return the names of a class's constructor arguments as its source has them.

    Args:
        named: import path of the class, or its name for a class of this package.

    Returns:
        The names; None if the class is not found, or if it takes arguments that its source does not name.
    """
    node = _source(named)
    if node is None or node.decorator_list:
        return None
    for each in node.body:
        if isinstance(each, ast.FunctionDef) and each.name == "__init__":
            given = each.args
            names = tuple(each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs))[1:]
            # jsonargparse takes those of the base class for `**options`.
            inherited = _inherited(node) if given.kwarg else ()
            return None if inherited is None else (*names, *inherited)
    return _inherited(node)


def _inherited(node: ast.ClassDef) -> tuple[str, ...] | None:
    bases = [each for each in map(ast.unparse, node.bases) if each != "ABC"]
    return () if not bases else argument_names(bases[0]) if len(bases) == 1 else None


@cache
def _source(named: str) -> ast.ClassDef | None:
    module, _, name = named.rpartition(".")
    paths: list[Path | None] = []
    if not module or module.startswith("dipo_pl"):
        paths = [PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py"), class_files().get(name)]
    package, file = EXTERNAL.get(name, ("", ""))
    if package and module.partition(".")[0] in ("", package):
        paths.append(_external_file(package, file))
    for path in paths:
        nodes = ast.parse(path.read_text(encoding="utf-8")).body if path and path.is_file() else []
        for each in nodes:
            if isinstance(each, ast.ClassDef) and each.name == name:
                return each
    return None


def _external_file(package: str, file: str) -> Path | None:
    # The specification of a package alone imports nothing; that of a module in it would import the package.
    spec = find_spec(package)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / file


@cache
def class_files() -> dict[str, Path]:
    """Return the file of every class of this package whose name no second class has."""
    found: dict[str, list[Path]] = {}
    # Unlike Path.rglob, glob follows the symbolic links of a plain checkout.
    for path in map(Path, glob(f"{PACKAGE}/**/*.py", recursive=True)):
        for name in re.findall(r"^class (\w+)", path.read_text(encoding="utf-8"), flags=re.MULTILINE):
            found.setdefault(name, []).append(path)
    return {name: paths[0] for name, paths in found.items() if len(paths) == 1}
