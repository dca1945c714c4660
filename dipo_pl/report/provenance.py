"""Provenance: what each run was to forget, when it ran, and what produced it."""

from typing import Any, NamedTuple

from dipo_pl.report.run import FORGET, Run, lookup


class Fact(NamedTuple):
    """A fact about a run.

    Attributes:
        text: empty if it is unknown.
        code: a fingerprint, path or command.
    """

    title: str
    text: str
    code: str = ""


def main_facts(run: Run) -> list[Fact]:
    """Return what every run is compared by, in the same order for all runs."""
    measured = run.result.sets.get(FORGET)
    return [
        Fact("Forget set", *_rows(run, FORGET)),
        Fact("Retain set", *_rows(run, "retain")),
        Fact("Measured forget rows", *(_set(len(measured.rows), measured.fingerprint) if measured else ("", ""))),
        Fact("Time (UTC)", _time(run)),
        Fact("Losses", " + ".join(filter(None, (_class(_model(run).get(f"{each}_loss")) for each in (FORGET, "retain"))))),
        Fact("Model", _joined(lookup(run.manifest, "policy", "source"), _parameters(run))),
        Fact("Weights before", "", _text(lookup(run.manifest, "policy", "weights_at_start"))),
        Fact("Weights after", "", _text(lookup(run.manifest, "policy", "weights_at_end"))),
        Fact("Config", "", run.recipe if run.config else ""),
        Fact("Seed", _text(run.manifest.get("seed"))),
    ]


def more_facts(run: Run) -> list[Fact]:
    """Return the other facts about a run that are known."""
    data, arguments = run.config.get("data"), run.manifest.get("arguments")
    given = _arguments(data)
    counts = {"epochs": "epochs", "steps": "steps", "global_batch": "rows a step"}
    facts = [
        Fact("Path", "", str(run.path)),
        Fact("Status", _text(run.manifest.get("status"))),
        Fact("Data", _joined(_class(data), *(f"{key} {given[key]}" for key in ("path", "forget") if given.get(key)))),
        Fact("Class", _text(lookup(run.manifest, "policy", "class"))),
        Fact("Training", _joined(*(f"{run.manifest[key]} {name}" for key, name in counts.items() if key in run.manifest))),
        Fact("Attack", _joined(*(f"{key} {value}" for key, value in run.probe.items()))),
        Fact("Retain-only result", _text(run.retain_result)),
        Fact("dipo-pl, torch", _joined(run.manifest.get("dipo_pl"), lookup(run.manifest, "versions", "torch"))),
        Fact("Command", "", " ".join(["dipo-pl", *map(str, arguments)]) if isinstance(arguments, list) else ""),
    ]
    return [each for each in facts if each.text or each.code]


def _rows(run: Run, name: str) -> tuple[str, str]:
    known = lookup(run.manifest, "data", name)
    return _set(known.get("rows"), known.get("fingerprint")) if isinstance(known, dict) else ("", "")


def _set(rows: Any, fingerprint: Any) -> tuple[str, str]:
    return f"{rows} rows", _text(fingerprint)


def _time(run: Run) -> str:
    """Return start and end to the minute, a common day once."""
    started, ended = (str(run.manifest.get(each) or "")[:16].replace("T", " ") for each in ("started", "ended"))
    if not ended:
        return started
    return f"{started} to {ended[11:] if ended[:10] == started[:10] else ended}"


def _parameters(run: Run) -> str:
    size = lookup(run.manifest, "policy", "parameters")
    return f"{size:,} parameters" if isinstance(size, int) else ""


def _model(run: Run) -> dict[str, Any]:
    return _arguments(run.config.get("model"))


def _arguments(part: Any) -> dict[str, Any]:
    given = lookup(part, "init_args")
    return given if isinstance(given, dict) else {}


def _class(part: Any) -> str:
    return str(lookup(part, "class_path") or "").rpartition(".")[2]


def _joined(*parts: Any) -> str:
    return ", ".join(str(each) for each in parts if each)


def _text(value: Any) -> str:
    return "" if value is None else str(value)
