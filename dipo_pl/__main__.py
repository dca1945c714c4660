"""The command `dipo-pl`. Nothing heavy is imported before it is known to be needed."""

import logging
import sys
from collections.abc import Sequence
from pkgutil import resolve_name

from dipo_pl.version import __version__

HELP = f"""\
dipo-pl {__version__}: make a language model forget chosen data, and show that it forgot.

  dipo-pl demo                           the whole story offline on fictitious authors, in minutes on a CPU
  dipo-pl fit --config tofu.yaml         unlearn (or, with a fine-tuning config, make a model)
  dipo-pl plan --config tofu.yaml        what a run will need: memory, files, tokens, steps
  dipo-pl validate --config tofu.yaml    measure a model without training it
  dipo-pl sequence requests.yaml         one request to forget after another, each its own run
  dipo-pl relearn runs/A runs/B          fine-tune finished models on a share of the forget set: what comes back?
  dipo-pl quantize runs/A                measure finished models with weights rounded to 8 and 4 bits
  dipo-pl task-vector A B --output DIR   model A less what made B of it: what training on the forget set adds
  dipo-pl interpolate A B --output DIR   a model between two
  dipo-pl consolidate runs/A --output FILE    one checkpoint file of one that was written in shards
  dipo-pl report runs/A runs/B           runs side by side: a table; with --output DIR also pages and pictures
  dipo-pl configs                        list the shipped configs

  --config NAME may be given several times: later ones overlay earlier ones. A bare name is looked for in
  the working directory, then among the shipped configs. Every key can be set: --model.forget_loss NPO
  --model.forget_loss.beta 0.1 --name my-run.

  dipo-pl fit --help                     all that can be set, with what it means
  dipo-pl fit --model.help Unlearning    what a class takes (--data.help TOFU, --model.forget_loss.help NPO)
  dipo-pl fit --config ... --print_config    the resulting config, without running it

  --debug      show the traceback of an error instead of one line
  --version    print the version
"""

# Where each of the other commands is; imported only then.
COMMANDS = {
    "demo": "commands.demo:demo",
    "plan": "commands.plan.command:plan",
    "sequence": "commands.sequence.command:sequence",
    "relearn": "commands.probes.relearn:relearn",
    "quantize": "commands.probes.quantize:quantize",
    "task-vector": "commands.arithmetic.task_vector:task_vector",
    "interpolate": "commands.arithmetic.interpolate:interpolate",
    "consolidate": "commands.consolidate:consolidate",
    "report": "commands.report:report",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns 0, or 2 where the input is wrong, 1 where the run failed, 128 + n on signal n."""
    try:
        return _dispatch(arguments)
    except KeyboardInterrupt:
        print("dipo-pl: interrupted", file=sys.stderr)
        return 130


def _dispatch(arguments: Sequence[str] | None) -> int:
    # transformers imports torchao wherever it is installed, which then tells what it cannot do on this machine.
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [each for each in given if each != "--debug"]
    if not given or given[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if given[0] in ("--version", "version"):
        print(__version__)
        return 0
    if given[0] == "configs":
        from dipo_pl.configs import describe

        print(describe(), end="")
        return 0
    if given[0] in ("fit", "validate"):
        from dipo_pl.cli.app import run

        return run(given, debug)
    if given[0] in COMMANDS:
        command = resolve_name(f"dipo_pl.{COMMANDS[given[0]]}")
        code: int = command(given[1:], debug)
        return code
    commands = ", ".join(("fit", "validate", *COMMANDS, "configs"))
    print(f"dipo-pl: no command {given[0]!r}: try {commands} or --help", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
