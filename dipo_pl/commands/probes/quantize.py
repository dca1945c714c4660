"""The command `dipo-pl quantize`: evaluate finished models with weights rounded to 8 and 4 bits."""

from collections.abc import Mapping, Sequence
from typing import Any

from dipo_pl.cli.command_parser import Parser, as_options
from dipo_pl.commands.probes.finished_run import FinishedRun
from dipo_pl.errors import InputError
from dipo_pl.storage.run_folder import RunFolder

DESCRIPTION = """\
Measures the model of each finished run with the weights of its linear layers rounded to 8 and to 4 bits, as
the run was measured itself. Rounding can undo small changes of weights, and with them the forgetting
(arXiv:2410.16454). Output head and embeddings are not rounded. Each result is a run folder of its own,
RUN-int8 and RUN-int4. Any key of `dipo-pl validate` can be given too, after the runs."""


def quantize(arguments: Sequence[str], debug: bool = False) -> int:
    """Returns the exit code of the first run that fails, else 0."""
    given, further = parser().parse_known_args(arguments)
    if any(each.split("=")[0] in ("--name", "--output_dir") for each in further):
        raise InputError(
            "quantize names its folders itself, RUN-int8 and RUN-int4: leave --name and --output_dir out"
        )
    kinds = [f"int{bits}" for bits in dict.fromkeys(given.bits or (8, 4))]
    runs = [FinishedRun.read(each) for each in given.runs]
    for each in runs:
        for kind in kinds:
            each.refuse_stale(each.folder(kind))
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    from dipo_pl.cli.run import run

    for each in runs:
        quality = each.config.get("forget_quality") or {}
        for kind in kinds:
            folder = each.folder(kind)
            settings = each.settings("Quantized", folder) | {
                **{f"forget_quality.{key}": value for key, value in quality.items()},
                "model": "FineTuning",
                "model.policy": {
                    "class_path": "Pretrained",
                    "init_args": each.policy | {"quantization": kind},
                },
                "samples.rows": 0,
                "seed_everything": each.config.get("seed_everything"),
            }
            rank_zero_only(print)(f"\n{each.path} -> {folder}", flush=True)
            if code := run(["validate", *as_options(settings), *further], debug):
                return code
    for each in runs:
        figures = {kind: (RunFolder(each.folder(kind)).read_metrics() or [{}])[-1] for kind in kinds}
        rank_zero_only(_show)({str(each.path): each.figures, **figures})
    return 0


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    made = Parser("quantize", DESCRIPTION)
    made.add_argument("runs", nargs="+", metavar="RUN", help="folder of a finished run")
    made.add_argument(
        "--bits", type=int, choices=(8, 4), action="append", help="of a weight; repeatable; both by default"
    )
    return made


def _show(figures: Mapping[str, Mapping[str, Any]]) -> None:
    from dipo_pl.callbacks.forget_quality import headlines

    width = max(map(len, figures))
    titles = headlines({key for measured in figures.values() for key in measured})
    print(f"\n{'':{width}}" + "".join(f"{title:>16}" for title in titles))
    for name, measured in figures.items():
        cells = (f"{measured[key]:.3g}" if key in measured else "-" for key in titles.values())
        print(f"{name:{width}}" + "".join(f"{cell:>16}" for cell in cells))
