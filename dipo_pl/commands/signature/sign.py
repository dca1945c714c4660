"""The command `dipo-pl sign`: sign the manifest, figures and exported model of a finished run or audit."""

from collections.abc import Sequence
from pathlib import Path

from dipo_pl.cli.command_parser import Parser
from dipo_pl.errors import InputError
from dipo_pl.storage.run_folder import RunFolder

DESCRIPTION = """\
Sign what a finished run or audit has left: its config, manifest and figures, and the exported model. The signature is
signature.json in the folder; `dipo-pl verify` says later what is as it was signed. Make a key once:

  openssl genpkey -algorithm ed25519 -out my.pem
  openssl pkey -in my.pem -pubout -out my.pub       for those who verify"""


def sign(arguments: Sequence[str], debug: bool = False) -> int:
    """Sign the folders; return 0."""
    given = parser().parse_args(arguments)
    runs = [RunFolder(each) for each in given.runs]
    for run in runs:
        if (status := run.read_manifest().get("status")) != "finished":
            raise InputError(f"{run.path} is not a finished run (status: {status}): sign what is finished")
        if run.path.resolve() in given.key.resolve().parents:
            raise InputError(f"--key {given.key} is in {run.path}, which may be handed on: keep it elsewhere")
    from dipo_pl.storage.signature import FILE
    from dipo_pl.storage.signature import sign as write

    for run in runs:
        count = write(run.path, given.key)
        print(f"signed {count} files: {run.path / FILE}")
    return 0


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    made = Parser("sign", DESCRIPTION)
    made.add_argument("runs", nargs="+", metavar="RUN", help="folder of a finished run or audit")
    made.add_argument("--key", required=True, type=Path, metavar="FILE", help="private key, PEM")
    return made
