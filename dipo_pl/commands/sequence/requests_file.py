"""What a sequence of requests is, as its file says it."""

from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self, get_args

import yaml

from dipo_pl.errors import InputError
from dipo_pl.storage.text import load_yaml, read_text

Mode = Literal["sustainability", "scalability"]


@dataclass(frozen=True)
class RequestsFile:
    """A sequence of requests.

    Attributes:
        configs: of every stage, as `dipo-pl fit --config` takes them; the first one names model and data.
        requests: names of forget sets, as `data.forget` takes them, in the order in which they are asked for.
        mode: `sustainability`: each stage starts from the model before, forgets its own request, and compares with that
            model; `scalability`: each stage starts from the target and forgets all requests so far.
        retain_only: a model that never saw any of the requests (folder, run folder or hub id), or one for each
            stage; it is measured on each stage's data, for Forget Quality, PrivLeak and selection.
        epochs_of_first: let the stages after the first train as many epochs as the first one's selection chose (MUSE's
            protocol), without a selection of their own.
    """

    configs: list[str]
    requests: list[str]
    mode: Mode = "sustainability"
    retain_only: str | list[str] | None = None
    epochs_of_first: bool = False

    @classmethod
    def read(cls, path: Path, **given: Any) -> Self:
        """
        Args:
            given: what takes the place of what the file says, where it is not None.
        Raises:
            InputError: there is no such file, it is no YAML mapping, or a key is missing, unknown or of another type.
        """
        try:
            content = load_yaml(read_text(path))
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            raise InputError(f"cannot read the requests in {path} ({' '.join(str(error).split())})") from None
        keys = {each.name: each for each in fields(cls)}
        if not isinstance(content, dict):
            raise InputError(f"{path} holds no mapping: it needs the keys configs and requests")
        if unknown := sorted(map(str, content.keys() - keys.keys())):
            raise InputError(
                f"{path} has the key {unknown[0]!r}: a sequence has {', '.join(keys)} (the config of a run is given to "
                f"dipo-pl fit --config)"
            )
        content |= {name: value for name, value in given.items() if value is not None}
        for name, key in keys.items():
            if key.default is MISSING and name not in content:
                raise InputError(f"{path} lacks the key {name!r}: a sequence has {', '.join(keys)}")
        _check(content, path)
        return cls(**content)


def _check(content: dict[str, Any], path: Path) -> None:
    def is_texts(value: Any) -> bool:
        return isinstance(value, list) and bool(value) and all(isinstance(each, str) for each in value)

    for name in ("configs", "requests"):
        if not is_texts(content[name]):
            raise InputError(f"{path}: {name} must be a list of at least one text, got {content[name]!r}")
    requests = content["requests"]
    for each in requests:
        if requests.count(each) > 1:
            raise InputError(f"{path}: the request {each} stands twice in the list: leave one out")
    if content.get("mode", "sustainability") not in get_args(Mode):
        raise InputError(f"{path}: mode must be one of {', '.join(get_args(Mode))}, got {content['mode']!r}")
    models = content.get("retain_only")
    if models is not None and not isinstance(models, str) and not is_texts(models):
        raise InputError(f"{path}: retain_only must be a text or a list of texts, got {models!r}")
    if isinstance(models, list) and len(models) < len(requests):
        raise InputError(
            f"{path}: retain_only names {len(models)} models for {len(requests)} requests: give one for each, or one "
            "for all"
        )
    if not isinstance(content.get("epochs_of_first", False), bool):
        raise InputError(f"{path}: epochs_of_first must be true or false, got {content['epochs_of_first']!r}")
