"""The command `dipo-pl quantize`: evaluate finished models with weights rounded to 8 and 4 bits."""

from collections.abc import Sequence

from dipo_pl.cli.command_parser import Parser
from dipo_pl.commands.headline_table import headline_table
from dipo_pl.commands.probes.finished_run import FinishedRun
from dipo_pl.errors import InputError
from dipo_pl.storage.run_folder import RunFolder
from dipo_pl.storage.signature import refuse_signed

DESCRIPTION = """\
Evaluate the model of each finished run as the run did, with the weights of its linear layers rounded to 8 and to 4
bits, and to the 16 levels of NF4. Rounding can undo small changes of weights, and forgetting with them
(arXiv:2410.16454). Output head and embeddings are not rounded. The results are the run folders RUN-int8, RUN-int4 and
RUN-nf4. Options of `dipo-pl validate` can follow the runs."""

# By the values of --bits, the roundings of the attack `Quantization`, in the order in which it tries them.
KINDS = {"8": "int8", "4": "int4", "nf4": "nf4"}


def quantize(arguments: Sequence[str], debug: bool = False) -> int:
    """Evaluate rounded models; return the exit code of the first evaluation that fails, else 0."""
    given, further = parser().parse_known_args(arguments)
    if any(each.split("=")[0] in ("--name", "--output_dir") for each in further):
        raise InputError(
            "quantize chooses its folders, RUN-int8, RUN-int4 and RUN-nf4: leave --name and --output_dir out"
        )
    kinds = [KINDS[bits] for bits in dict.fromkeys(given.bits or KINDS)]
    runs = [FinishedRun.read(each) for each in given.runs]
    folders = [{kind: each.folder(kind) for kind in kinds} for each in runs]
    for of_run in folders:
        for folder in of_run.values():
            refuse_signed(folder)
    for each, of_run in zip(runs, folders, strict=True):
        quality = each.config.get("forget_quality") or {}
        for kind, folder in of_run.items():
            policy = {"class_path": "Pretrained", "init_args": each.policy | {"quantization": kind}}
            settings = {
                **{f"forget_quality.{key}": value for key, value in quality.items()},
                "model": "FineTuning",
                "model.policy": policy,
                "samples.rows": 0,
                "seed_everything": each.config.get("seed_everything"),
            }
            callback = {"class_path": "dipo_pl.commands.probes.probe.Quantized", "init_args": {}}
            if code := each.probe("validate", folder, callback, settings, further, debug):
                return code
    # Lightning takes seconds to import.
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    for each, of_run in zip(runs, folders, strict=True):
        models = {str(each.path): RunFolder(each.path).final_metrics}
        models |= {kind: (RunFolder(folder).read_metrics() or [{}])[-1] for kind, folder in of_run.items()}
        rank_zero_only(print)(f"\n{headline_table(models)}")
    return 0


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    made = Parser("quantize", DESCRIPTION)
    made.add_argument("runs", nargs="+", metavar="RUN", help="folder of a finished run")
    bits = "bits of a weight, nf4 for the 4 of NF4; repeatable (default: all)"
    made.add_argument("--bits", choices=KINDS, action="append", help=bits)
    return made
