"""The command `dipo-pl verify`: say what of a signed run is as it was signed, and what is not."""

from collections.abc import Sequence
from pathlib import Path

from dipo_pl.cli.command_parser import Parser
from dipo_pl.storage.run_folder import RunFolder

DESCRIPTION = """\
Compare a signed run or audit with its signature. The exit code is 0 if everything is as it was signed, else 1. Give the
public key of who signed it: the one that the signature itself names could have been put there by whoever changed it."""


def verify(arguments: Sequence[str], debug: bool = False) -> int:
    """Check the folders; return 0 if all are as they were signed, else 1."""
    given = parser().parse_args(arguments)
    from dipo_pl.storage.signature import check

    holds = True
    for each in given.runs:
        found = check(RunFolder(each).path, given.key)
        holds &= found.holds
        whose = given.key or f"{found.key}, which the signature names itself: compare it with the signer's"
        print(f"{each}: signed {found.signed} with {whose}")
        if not found.valid:
            print("  the signature is not of this key, or its list was changed")
        for title, names in (("changed", found.changed), ("missing", found.missing), ("added", found.added)):
            for name in names:
                print(f"  {title}: {name}")
        verdict = "everything is as it was signed" if found.holds else "NOT as it was signed"
        print(f"  {verdict} ({len(found.as_signed)} files as signed)")
    return 0 if holds else 1


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    made = Parser("verify", DESCRIPTION)
    made.add_argument("runs", nargs="+", metavar="RUN", help="folder of a signed run or audit")
    made.add_argument("--key", type=Path, metavar="FILE", help="public key of who signed it, PEM")
    return made
