"""Runs commands of `dipo-pl` one after another in this rank: what starts a process is paid once."""

import json
import sys

from dipo_pl.cli import run

for arguments in json.loads(sys.argv[1]):
    if code := run(arguments):
        sys.exit(code)
