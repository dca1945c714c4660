"""File that lists the requests of a sequence."""

from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self, get_args

from dipo_pl.errors import InputError
from dipo_pl.storage.text import read_yaml

# Keys of a request in the register: free texts, and dates as they are written.
ABOUT = ("id", "received", "decided", "decision", "by")
Mode = Literal["sustainability", "scalability"]


@dataclass(frozen=True)
class RequestsFile:
    """Content of a file of requests.

    Attributes:
        configs: configs of every stage, as `dipo-pl fit --config` takes them.
        requests: names of forget sets, as `data.forget` takes them, in order.
        mode: `sustainability`: each stage starts from the model of the stage before, compares with that model, and
            forgets its own request; `scalability`: each stage starts from the target and forgets all requests so far.
        retain_only: model that never saw any of the requests (folder, run folder or hub id), or one for each stage; it
            is evaluated on the data of each stage, for Forget Quality, PrivLeak and selection.
        epochs_of_first: let the stages after the first train for as many epochs as the first one's selection chose
            (MUSE's protocol), without a selection of their own.
        register: for a request by name what its register is to say: `id`, `received`, `decided`, `decision`, `by`.
    """

    configs: list[str]
    requests: list[str]
    mode: Mode = "sustainability"
    retain_only: str | list[str] | None = None
    epochs_of_first: bool = False
    register: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, **given: Any) -> Self:
        """Return the content of a file.

        Args:
            path: the file, in YAML.
            **given: values by key in place of the file's; None keeps the file's.

        Raises:
            InputError: the file cannot be read, or a key is missing, unknown or has a wrong value.
        """
        content = read_yaml(path, "the requests in")
        keys = {each.name: each for each in fields(cls)}
        if not isinstance(content, dict):
            raise InputError(f"{path} must be a mapping with the keys configs and requests")
        if unknown := sorted(map(str, content.keys() - keys.keys())):
            raise InputError(
                f"{path} has the unknown key {unknown[0]!r}: the keys of a sequence are {', '.join(keys)} (give the "
                "config of a run to dipo-pl fit --config)"
            )
        if missing := [name for name, key in keys.items() if _is_needed(key) and name not in content]:
            raise InputError(f"{path} lacks the key {missing[0]!r}, which every sequence has")
        read = cls(**content | {name: value for name, value in given.items() if value is not None})
        read.check(path)
        return read

    def check(self, path: Path) -> None:
        """Check the types and values of all keys.

        Raises:
            InputError: a value is not one that the key can have; `path` is the file that is named.
        """
        several = "a list of at least one text"
        requests = self.requests if _are_texts(self.requests) else []
        duplicate = next((each for each in requests if requests.count(each) > 1), None)
        models = self.retain_only
        for name, expected, valid in (
            ("configs", several, _are_texts(self.configs)),
            ("requests", several, _are_texts(self.requests)),
            ("requests", f"a list without duplicates of {duplicate}", duplicate is None),
            ("mode", " or ".join(get_args(Mode)), self.mode in get_args(Mode)),
            ("retain_only", f"a text or {several}", isinstance(models, str | None) or _are_texts(models)),
            (
                "retain_only",
                f"one model, or one for each of the {len(requests)} requests",
                not isinstance(models, list) or len(models) >= len(requests),
            ),
            ("epochs_of_first", "true or false", isinstance(self.epochs_of_first, bool)),
        ):
            if not valid:
                raise InputError(f"{path}: {name} must be {expected} (got {getattr(self, name)!r})")
        _check_register(self.requests, self.register, path)


def _is_needed(key: Field[Any]) -> bool:
    return key.default is MISSING and key.default_factory is MISSING


def _check_register(requests: list[str], given: object, path: Path) -> None:
    example = "such as {author_1: {id: R-17, received: 2026-01-02, decided: 2026-01-05, by: K. Ito}}"
    if not isinstance(given, dict) or not all(isinstance(each, dict) for each in given.values()):
        raise InputError(f"{path}: register must be a mapping of requests, {example} (got {given!r})")
    for name, about in given.items():
        if name not in requests:
            raise InputError(
                f"{path}: register has {name!r}, which is none of the requests {', '.join(requests)}"
            )
        if unknown := [key for key in about if key not in ABOUT]:
            raise InputError(f"{path}: register says {unknown[0]!r} of {name}: it may say {', '.join(ABOUT)}")


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, str) for each in value)
