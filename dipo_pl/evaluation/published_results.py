"""Results of published models that are shipped with the package."""

import json
from importlib import resources
from typing import Any

from dipo_pl.errors import InputError
from dipo_pl.evaluation import tofu_logs
from dipo_pl.metrics.result import EvaluationResult


def published_names() -> list[str]:
    """Return the names of the shipped results."""
    return sorted(
        each.name.removesuffix(".json") for each in _folder().iterdir() if each.name.endswith(".json")
    )


def published(name: str) -> EvaluationResult:
    """Return a shipped result, such as `llama2-7b_retain90` or `muse_news_retrained`.

    Raises:
        InputError: there is none of that name.
    """
    if name not in published_names():
        raise InputError(f"there is no published result {name!r}: use {', '.join(published_names())}")
    file = _folder() / f"{name}.json"
    given = json.loads(file.read_text(encoding="utf-8"))
    if tofu_logs.is_tofu_log(given):
        return tofu_logs.parse(given, name)
    with resources.as_file(file) as path:
        return EvaluationResult.read(path)


def _folder() -> Any:
    return resources.files("dipo_pl.evaluation") / "published"
