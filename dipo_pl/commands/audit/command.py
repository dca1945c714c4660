"""The command `dipo-pl audit`: attack a finished run's model beside its target and a model that never knew."""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from dipo_pl.cli.command_parser import Parser
from dipo_pl.cli.new_files import NewFiles
from dipo_pl.commands.probes.finished_run import FinishedRun
from dipo_pl.errors import InputError, check_count
from dipo_pl.signals import Interrupted, interruption
from dipo_pl.storage.files import locked
from dipo_pl.storage.run_folder import RunFolder
from dipo_pl.storage.signature import refuse_signed

# Attacks and settings unless others are given.
CONFIG = "audit.yaml"

DESCRIPTION = """\
Attack the model of a finished run, its target and a model that never saw the forget rows, and say for each attack whether
the first can be told from the last. The result is the run folder RUN-audit; it holds numbers of rows and figures, but no
question, no answer and no generated text. Attacks and their settings are those of audit.yaml; give another --config, or
options such as --removed 0.8. The same command goes on where it was stopped, and repeats no finished attack."""

EXAMPLES = """\
examples:
  dipo-pl audit runs/tofu --against runs/tofu-retain90
  dipo-pl audit runs/tofu --against my-org/never-saw-it --target my-org/knows-it --config my_attacks.yaml
"""


def audit(arguments: Sequence[str], debug: bool = False) -> int:
    """Run all attacks that are not finished; return 0, or 128 + n if signal n ended it."""
    given, options = parser().parse_known_args(arguments)
    check_count("--devices", given.devices)
    if given.references is not None and given.references.exists() and not given.references.is_dir():
        raise InputError(f"--references must be a folder (got {given.references}): name another one")
    run = FinishedRun.read(given.run)
    folder = RunFolder(run.folder("audit"))
    refuse_signed(folder.path)
    # These take seconds to import.
    from dipo_pl.cli.processes import is_first_process
    from dipo_pl.commands.audit.audit import Audit, fabric_of
    from dipo_pl.commands.audit.checks import check_never_saw
    from dipo_pl.commands.audit.config import AuditConfig
    from dipo_pl.commands.audit.fingerprints import check_key
    from dipo_pl.commands.audit.models import check_tokenizers, sources_of
    from dipo_pl.commands.audit.worst_rows import worst_rows
    from dipo_pl.report.audits import audit_table, left_open, read_audit
    from dipo_pl.storage.keyed import read_key

    config = AuditConfig.parse(given.config or [CONFIG], options)
    if config.utility is not None:
        config.utility.load()
    sources = sources_of(run, given.target, given.against)
    check_tokenizers(dict(sources))
    check_never_saw(run, sources)
    # The key is read before other ranks are started, since one that is not there is made.
    key = None if given.key is None else read_key(given.key, (run.path, folder.path))
    check_key(folder, key)
    fabric = fabric_of(run, given.devices)
    made = Audit(run, folder, config, sources, fabric, key, given.references)
    new_files = NewFiles(folder)
    # Other ranks run this same command once they are started, and would wait for one that the lock has refused.
    is_first = is_first_process()
    with interruption.listening():
        try:
            with locked(folder.path) if is_first else nullcontext():
                if is_first:
                    try:
                        made.check_models(given.target is not None)
                    except InputError:
                        new_files.discard()
                        raise
                fabric.launch()
                made.run(arguments)
        except Interrupted as interrupted:
            print(f"dipo-pl: {interrupted}: the same command goes on from here", file=sys.stderr)
            return int(interrupted.code or 0)
    if fabric.is_global_zero:
        found = read_audit(folder)
        shown = worst_rows(made.outcomes, made.subject.forget.rows) if given.show_texts else []
        print("\n".join(["", audit_table(found).to_text(), *left_open(found), *shown, f"\n{folder.path}"]))
    return 0


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    made = Parser("audit", DESCRIPTION, epilog=EXAMPLES)
    made.add_argument("run", metavar="RUN", help="folder of a finished run")
    against = "run, model folder or hub id of a model that never saw the forget rows (default: that of the run's result)"
    made.add_argument("--against", metavar="RETAIN_ONLY", help=against)
    target = "run, model folder or hub id of the model before unlearning (default: what the run started from)"
    made.add_argument("--target", metavar="TARGET", help=target)
    config = "attacks and their settings; repeatable (default: audit.yaml)"
    made.add_argument("--config", "-c", action="append", help=config)
    key = "file of a key, made if there is none: rows.json then has fingerprints of the rows that nobody guesses without it"
    made.add_argument("--key", metavar="FILE", type=Path, help=key)
    references = (
        "folder that keeps what is found of the target and the retain-only model: audits of other runs beside the same two "
        "take it from there (default: found anew)"
    )
    made.add_argument("--references", metavar="DIR", type=Path, help=references)
    show_texts = "also print the rows that each attack got most out of, with their texts, which no file of the audit holds"
    made.add_argument("--show_texts", action="store_true", help=show_texts)
    made.add_argument("--devices", type=int, default=1, help="devices that share the rows (default: 1)")
    return made
