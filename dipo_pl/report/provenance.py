"""What was forgotten, when, and what each run was made of."""

from collections.abc import Callable
from html import escape
from typing import Any

from dipo_pl.report.contents import Report
from dipo_pl.report.markup import NOT_MEASURED, table_html
from dipo_pl.report.runs import FORGET, Run


def facts(report: Report) -> str:
    """What each run forgot, when, and what it was made of."""
    columns: list[tuple[str, str, Callable[[Run], str]]] = [
        ("Forgotten", "", lambda run: _rows(run, FORGET)),
        ("Kept", "", lambda run: _rows(run, "retain")),
        ("Measured forget rows", "", _measured),
        ("When (UTC)", "", _when),
        ("Losses", "", _losses),
        ("Model", "wide", _model),
        ("Weights before", "", lambda run: _hash(_of(run, "policy", "weights_at_start"))),
        ("Weights after", "", lambda run: _hash(_of(run, "policy", "weights_at_end"))),
        ("Config", "", lambda run: _hash(run.recipe if run.config else None)),
        ("Seed", "", lambda run: _text(run.manifest.get("seed"))),
    ]
    head = "".join(
        f'<th scope="col" class="left">{name}</th>' for name in ("Run", *(name for name, _, _ in columns))
    )
    body = "".join(
        f'<tr><th scope="row">{escape(run.name)} <small>{run.kind}</small></th>'
        + "".join(f'<td class="left {kind}">{cell(run) or NOT_MEASURED}</td>' for _, kind, cell in columns)
        + "</tr>"
        for run in report.runs
    )
    caption = (
        "Fingerprints are the first 12 digits of a SHA-256: of all texts of the rows in order, of the weights, and of the "
        "config without seeds and names. Equal ones are of equal contents."
    )
    more = "".join(_more(run) for run in report.runs)
    return (
        table_html(caption, head, body, "What was forgotten", "facts")
        + f"<details><summary>Data, training, versions and commands of each run</summary>{more}</details>"
    )


def _more(run: Run) -> str:
    lines = [
        ("Folder or file", f"<code>{escape(str(run.path))}</code>"),
        ("Status", _text(run.manifest.get("status"))),
        ("Data", _data(run)),
        ("Class", _text(_of(run, "policy", "class"))),
        ("Training", _training(run)),
        ("Probe", _text(", ".join(f"{key} {value}" for key, value in run.probe.items()))),
        ("Retain-only result", _text(run.retain_result)),
        ("dipo-pl, torch", _versions(run)),
        ("Command", _command(run)),
    ]
    pairs = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in lines if value)
    return f'<div class="row"><h3>{escape(run.name)}</h3><dl>{pairs}</dl></div>'


def _of(run: Run, *keys: str) -> Any:
    found: Any = run.manifest
    for each in keys:
        found = found.get(each) if isinstance(found, dict) else None
    return found


def _text(value: object) -> str:
    return "" if value is None else escape(str(value))


def _hash(value: object) -> str:
    return f'<code title="{escape(str(value))}">{escape(str(value)[:12])}</code>' if value else ""


def _rows(run: Run, name: str) -> str:
    known = _of(run, "data", name)
    if not isinstance(known, dict):
        return ""
    return f"{_text(known.get('rows'))} rows<br>{_hash(known.get('fingerprint'))}"


def _when(run: Run) -> str:
    """To the minute; both ends on one day name it once."""
    started, ended = (
        str(run.manifest.get(each) or "")[:16].replace("T", " ") for each in ("started", "ended")
    )
    return _text(f"{started} to {ended[11:] if ended[:10] == started[:10] else ended}" if ended else started)


def _measured(run: Run) -> str:
    found = run.result.sets.get(FORGET)
    return "" if found is None else f"{len(found.rows)} rows<br>{_hash(found.fingerprint)}"


def _data(run: Run) -> str:
    data = run.config.get("data")
    if not isinstance(data, dict):
        return ""
    given = _init_args(data)
    named = [f"{key} {given[key]}" for key in ("path", "forget") if given.get(key)]
    return _text(", ".join([_class(data), *named]))


def _losses(run: Run) -> str:
    model = run.config.get("model")
    given = _init_args(model)
    named = [_class(given.get(each)) for each in ("forget_loss", "retain_loss")]
    return _text(" + ".join(each for each in named if each))


def _init_args(part: Any) -> dict[str, Any]:
    given = part.get("init_args") if isinstance(part, dict) else None
    return given if isinstance(given, dict) else {}


def _class(part: Any) -> str:
    return str(part.get("class_path", "")).split(".")[-1] if isinstance(part, dict) else ""


def _training(run: Run) -> str:
    found = {each: run.manifest.get(each) for each in ("epochs", "steps", "global_batch")}
    names = {"epochs": "epochs", "steps": "steps", "global_batch": "rows a step"}
    return _text(", ".join(f"{value} {names[key]}" for key, value in found.items() if value is not None))


def _model(run: Run) -> str:
    parts = [_of(run, "policy", "source")]
    size = _of(run, "policy", "parameters")
    return _text(
        ", ".join(
            [
                *(str(each) for each in parts if each),
                *([f"{size:,} parameters"] if isinstance(size, int) else []),
            ]
        )
    )


def _versions(run: Run) -> str:
    found = [run.manifest.get("dipo_pl"), _of(run, "versions", "torch")]
    return _text(", ".join(str(each) for each in found if each))


def _command(run: Run) -> str:
    given = run.manifest.get("arguments")
    words = " ".join(map(str, given)) if isinstance(given, list) else ""
    return f"<code>dipo-pl {escape(words)}</code>" if words else ""
