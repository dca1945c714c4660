"""Report of a study: a page in Markdown with tables and pictures, made of its records alone."""

import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from dipo_pl.callbacks.pace import duration
from dipo_pl.commands.study.cells import cell_text, meanings, seeds_text, study_command
from dipo_pl.commands.study.plan import Kind
from dipo_pl.commands.study.plots import LEVEL, plots_of
from dipo_pl.commands.study.rates import chosen_rate
from dipo_pl.commands.study.results import FAILED, FINISHED, Results, has_other_weights
from dipo_pl.commands.study.summary import (
    ATTACKS,
    AUDIT,
    COSTS,
    Line,
    Summary,
    records_of,
    summary_of,
    versions_of,
)
from dipo_pl.report.columns import Column
from dipo_pl.report.drawing import HOW_TO_GET_PLOTS, Plot, drawable, write_png
from dipo_pl.report.intervals import METHOD
from dipo_pl.report.table import Table, markdown_escaped, terminal_width
from dipo_pl.storage.files import write_text

PAGE = "README.md"


def write_page(results: Results) -> None:
    """Write README.md and the pictures beside results.json, and print the table.

    Raises:
        WriteError: a file cannot be written.
    """
    summary, folder = summary_of(results), results.path.parent
    if not summary.lines:
        print("no run of the table is finished: no report")
        return
    plots = plots_of(results, summary) if drawable() else []
    for plot in plots:
        write_png(folder / f"{plot.name}.png", plot)
    write_text(folder / PAGE, as_markdown(results, summary, plots))
    table = _table(f"Study {results.study['name']}", summary, summary.columns, JUDGED["Results"])
    print(f"\n{table.to_text(terminal_width())}\nreport: {folder / PAGE}")
    if not plots:
        print(f"dipo-pl: {HOW_TO_GET_PLOTS}", file=sys.stderr)


def as_markdown(results: Results, summary: Summary, plots: Sequence[Plot] = ()) -> str:
    """Return the page."""
    parts = [f"# Study {markdown_escaped(results.study['name'])}\n", *_about(results, summary)]
    tables = (("Results", summary.columns), ("Attacks", ATTACKS), ("Audits", AUDIT), ("Cost", COSTS))
    for title, columns in tables:
        measured = [each for each in columns if any(each.key in line.values for line in summary.lines)]
        if measured:
            table = _table(title, summary, measured, JUDGED.get(title, {}))
            parts += [f"## {title}\n", table.to_markdown(), meanings(measured)]
    if rates := _rates(results):
        parts += ["## Learning rates\n", rates.to_markdown()]
    if plots:
        pictures = [f"![{each.title}: {each.description}]({each.name}.png)\n" for each in plots]
        parts += ["## Pictures\n", *pictures]
    return "\n".join([*parts, *_commands(results)])


def resolution(rows: int) -> str:
    """Return what values Forget Quality can have on so many forget rows, in a sentence.

    The KS statistic of two samples of n values is a multiple of 1/n.
    """
    # Loads SciPy, which takes half a second.
    from dipo_pl.metrics.forget_quality import forget_quality

    def p(gap: int) -> float:
        ours, theirs = (
            [float(each) for each in range(rows)],
            [float(each + gap) - 0.5 for each in range(rows)],
        )
        return forget_quality(ours, theirs).forget_quality

    above = next((gap for gap in range(rows, 0, -1) if p(gap) > LEVEL), None)
    text = f"On {rows} forget rows the KS statistic is a multiple of 1/{rows}, so that Forget Quality takes {rows} values"
    if above is None or above == rows:
        return f"{text}, none of which is on the other side of {LEVEL:g}."
    near = f"{p(above):.3g} (KS {above / rows:.3g}) and {p(above + 1):.3g} (KS {(above + 1) / rows:.3g})"
    return f"{text}; those next to {LEVEL:g} are {near}."


def _about(results: Results, summary: Summary) -> list[str]:
    study, runs = results.study, results.current
    done = [each for each in runs.values() if each["status"] == FINISHED]
    seeds = study["file"]["seeds"]
    expected, found = (
        len(study["rows"]) * len(seeds),
        sum(len(records_of(results, Kind.ROW, each)) for each in study["rows"]),
    )
    machines = [
        f"{each['processor']}, {each['cores']} core(s), {each['aten_cpu_capability']}"
        + "".join(f", {gpu}" for gpu in each["gpus"])
        for (each,) in versions_of(results, "machine")
    ]
    times = [datetime.fromisoformat(each["started"]) for each in done]
    whole = duration(sum(each["seconds"] for each in done))
    lines = {
        "Seeds": f"{', '.join(map(str, seeds))} ({len(seeds)}); {found} of {expected} runs of the table are finished",
        "Command": f"`{study_command(results)}`",
        "Machine": "; ".join(map(markdown_escaped, machines)),
        "Threads of a run": ", ".join(str(each) for (each,) in versions_of(results, "threads")),
        "dipo-pl": "; ".join(
            f"{version} at commit {commit}" if commit else str(version)
            for version, commit in versions_of(results, "dipo_pl", "commit")
        ),
        "Forget rows": "; ".join(
            dict.fromkeys(
                f"fingerprint {each['forget'][:16]}" for (each,) in versions_of(results, "data") if each
            )
        ),
        "Packages": "; ".join(
            ", ".join(f"{name} {version}" for name, version in each.items())
            for (each,) in versions_of(results, "versions")
            if each
        ),
        "Time": f"{min(times):%Y-%m-%d %H:%M} to {max(times):%Y-%m-%d %H:%M} UTC; {whole} of runs" if times else "",
    }  # fmt: skip
    about = [f"- {name}: {text}" for name, text in lines.items() if text]
    sizes = {each["rows"]["forget"] for each in done if "forget" in (each.get("rows") or {})}
    if "forget_quality" in {key for line in summary.lines for key in line.values}:
        about += [f"- {resolution(size)}" for size in sorted(sizes)]
    about += [
        f"- {key} **failed**: {markdown_escaped(str(each.get('error')))}"
        for key, each in runs.items()
        if each["status"] == FAILED
    ]
    about += [
        f"- {key} was made again with **other weights**, since rounding differs between machines: the runs that need it do "
        "not all have the same model"
        for key, each in runs.items()
        if any(has_other_weights(each, again) for again in each.get("made_again", ()))
    ]
    if others := len(results.runs) - len(runs):
        about.append(
            f"- {others} record(s) of runs that the study has no longer are kept in results.json, and do not count"
        )
    made = "Made by `dipo-pl study` from `results.json`; do not edit. `--report` makes it again.\n"
    return [made, "\n".join(about) + "\n"]


# Columns that count the verdicts of a line, by the title of their table and their head.
JUDGED: Mapping[str, Mapping[str, Callable[[Line], str]]] = {
    "Results": {"verdicts": lambda line: line.verdict},
    "Audits": {"judgements": lambda line: line.audited},
}


def _table(
    title: str, summary: Summary, columns: Sequence[Column], judged: Mapping[str, Callable[[Line], str]]
) -> Table:
    head = ["row", "seeds", *judged, *(each.title for each in columns)]
    rows = [
        [
            line.name,
            seeds_text(line),
            *(count(line) for count in judged.values()),
            *(cell_text(line, each) for each in columns),
        ]
        for line in summary.lines
    ]
    caption = f"Mean [low, high]: {METHOD}; a single seed has no interval."
    return Table(title, caption, head, rows, labels=2 + len(judged))


def _rates(results: Results) -> Table | None:
    chosen = results.study["file"]["learning_rate"]
    if chosen is None:
        return None
    scores: dict[str, dict[float, list[float]]] = {}
    for each in results.current.values():
        if each["kind"] == str(Kind.TUNING) and each["status"] == FINISHED:
            scores.setdefault(each["row"], {}).setdefault(each["learning_rate"], []).append(each["score"])
    if not scores:
        return None
    rates = sorted({rate for each in scores.values() for rate in each})
    rows: list[list[str]] = []
    best: set[tuple[int, int]] = set()
    for name in (each for each in results.study["rows"] if each in scores):
        choice = chosen_rate(scores[name])
        # Until all have ended none is chosen.
        if sum(map(len, scores[name].values())) == len(chosen["values"]) * len(chosen["seeds"]):
            best.add((len(rows), 1 + rates.index(choice.rate)))
        rows.append(
            [name, *(f"{choice.scores[rate]:.4g}" if rate in choice.scores else "" for rate in rates)]
        )
    seeds = ", ".join(map(str, chosen["seeds"]))
    caption = (
        f"Score of a run's last (or selected) evaluation by the rule {chosen['rule']}, mean over seeds {seeds}, not in "
        "the table; the marked rate is used. About -1e6: utility was lost, or the run diverged."
    )
    return Table(
        "Learning rates", caption, ["row", *(f"{each:g}" for each in rates)], rows, best=frozenset(best)
    )


def _commands(results: Results) -> list[str]:
    parts = [
        "## Commands\n",
        "A row with all that it needs, made anew in another folder:\n",
        f"    {study_command(results, 'ROW')}\n",
        "The run of each seed, which needs the models that it names; the study removes these once no run needs them, unless "
        "its file has `keep_weights: true`:\n",
    ]
    for row in results.study["rows"]:
        commands = [each["command"] for each in records_of(results, Kind.ROW, row).values()]
        if commands:
            parts += [f"{markdown_escaped(row)}:\n", "".join(f"    {each}\n" for each in commands)]
    for kind in (Kind.TARGET, Kind.RETAIN_ONLY):
        commands = [each["command"] for each in records_of(results, kind).values()]
        if commands:
            parts += [f"{kind}:\n", "".join(f"    {each}\n" for each in commands)]
    return parts
