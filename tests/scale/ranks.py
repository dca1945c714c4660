"""Runs commands of `dipo-pl` one after another in this rank: what starts a process is paid once."""

import json
import sys

from dipo_pl.__main__ import main

for arguments in json.loads(sys.argv[1]):
    if code := main(arguments):
        sys.exit(code)
