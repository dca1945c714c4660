"""The command `dipo-pl plan`: estimate what a run will need: memory, files, tokens, steps."""

import json
from collections.abc import Sequence
from functools import partial

from dipo_pl.cli.command_parser import Parser
from dipo_pl.errors import InputError, check_number

DESCRIPTION = """\
Estimate the memory of a device, the sizes of files, and the number of tokens and steps of a run. All options of
`dipo-pl fit` are accepted. No weights are loaded: a training step is followed operation by operation on tensors that
have shapes only. A model on the hub needs only its config.json and tokenizer; --tokens and --rows replace the data."""

EXAMPLES = """\
examples:
  dipo-pl plan --config tofu.yaml --devices 8 --data.batch_size 4 --memory 80
  dipo-pl plan --config tofu.yaml --config lora.yaml --tokens 256 --answer_tokens 170 --rows 400
"""


def plan(arguments: Sequence[str], debug: bool = False) -> int:
    """Print what a run will need; return the exit code."""
    given, further = parser().parse_known_args(arguments)
    check_number("--memory", given.memory, above=0)
    for name in ("rows", "retain_rows", "answer_tokens"):
        if getattr(given, name) is not None and given.tokens is None:
            raise InputError(f"--{name} needs --tokens, the length of the longest sequence: give both")
    # torch and transformers take seconds to import.
    from dipo_pl.commands.plan.estimate import estimate, remedies
    from dipo_pl.commands.plan.table import record, table, verdict
    from dipo_pl.commands.plan.workload import Lengths

    lengths = None
    if given.tokens is not None:
        lengths = Lengths(given.tokens, given.rows, given.retain_rows, given.answer_tokens)
    of_words = partial(estimate, devices=given.devices, nodes=given.nodes, lengths=lengths)
    found, fitting = of_words(further), {}
    if given.memory is not None and not found.fits(given.memory):
        fitting = remedies(found, given.memory, lambda settings: of_words([*further, *settings]))
    if given.json:
        print(json.dumps(record(found, given.memory, fitting), indent=2))
    else:
        print("\n".join(table(found)))
        if given.memory is not None:
            print("\n".join(["", *verdict(found, given.memory, fitting)]))
    return 0


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    made = Parser("plan", DESCRIPTION, epilog=EXAMPLES)
    made.add_argument("--devices", type=int, help="devices of a node (default: trainer.devices)")
    made.add_argument("--nodes", type=int, help="number of nodes (default: trainer.num_nodes)")
    fits = "memory of a device: does the run fit, or what would make it fit?"
    made.add_argument("--memory", type=float, metavar="GIB", help=fits)
    made.add_argument("--tokens", type=int, help="tokens of the longest sequence; the data are not read")
    made.add_argument("--answer_tokens", type=int, help="tokens of its answer (default: all but one)")
    made.add_argument("--rows", type=int, help="rows of an epoch (forget rows), with --tokens")
    made.add_argument("--retain_rows", type=int, help="retain rows of stored states (default: --rows)")
    made.add_argument("--json", action="store_true", help="print bytes and counts as JSON")
    return made
