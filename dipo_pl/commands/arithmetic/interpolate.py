"""The command `dipo-pl interpolate`: make a model between two."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dipo_pl.cli.command_parser import Parser
from dipo_pl.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

DESCRIPTION = """\
Makes a model folder of two: W = (1 - weight) W_A + weight W_B. Between a target and its unlearned model it trades
what is forgotten against what is kept. Measure the result with
`dipo-pl validate --config ... --model.policy.path FOLDER`."""


def interpolate(arguments: Sequence[str], debug: bool = False) -> int:
    """Returns 0, 2 where what was given is wrong, 1 where something else failed."""
    given = parser().parse_args(arguments)
    if not 0 <= given.weight <= 1:
        raise InputError(f"--weight must be from 0 (A) to 1 (B), got {given.weight}")
    from dipo_pl.commands.arithmetic.combination import combine

    combine(
        {"a": given.a, "b": given.b},
        given.output,
        lambda a, b: interpolated(a, b, given.weight),
        "interpolate",
        weight=given.weight,
    )
    return 0


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    made = Parser("interpolate", DESCRIPTION)
    made.add_argument("a", metavar="A", help="model folder, or the folder of a finished run")
    made.add_argument("b", metavar="B", help="the same, of another model of this architecture")
    made.add_argument("--output", required=True, metavar="FOLDER", help="a new folder for the model")
    made.add_argument("--weight", type=float, default=0.5, help="of B, from 0 to 1; 0.5 by default")
    return made


def interpolated(a: "Tensor", b: "Tensor", weight: float) -> "Tensor":
    """(1 - weight) W_A + weight W_B; where the two are equal, exactly that.

    Args:
        a, b: of any one shape and one floating dtype.
    """
    # The sum would turn -0 into 0.
    return (b if weight else a) if weight in (0, 1) else a.lerp(b, weight)
