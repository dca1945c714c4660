"""The command `dipo-pl interpolate`: make a model between two."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dipo_pl.cli.command_parser import Parser
from dipo_pl.commands.arithmetic.arguments import two_models
from dipo_pl.errors import check_share

if TYPE_CHECKING:
    from torch import Tensor

DESCRIPTION = """\
Write the model W = (1 - weight) W_A + weight W_B. Between a target and its unlearned model it trades forgetting
against utility. Evaluate the model with `dipo-pl validate --config ... --model.policy.path FOLDER`."""


def interpolate(arguments: Sequence[str], debug: bool = False) -> int:
    """Interpolate two models; return the exit code."""
    given = parser().parse_args(arguments)
    check_share("--weight", given.weight, zero=True)
    # torch takes seconds to import.
    from dipo_pl.commands.arithmetic.combination import combine

    def rule(a: "Tensor", b: "Tensor") -> "Tensor":
        return interpolated(a, b, given.weight)

    combine({"a": given.a, "b": given.b}, given.output, rule, "interpolate", weight=given.weight)
    return 0


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    made = two_models("interpolate", DESCRIPTION, "a", "b")
    made.add_argument("--weight", type=float, default=0.5, help="weight of B, in [0, 1] (default: 0.5)")
    return made


def interpolated(a: "Tensor", b: "Tensor", weight: float) -> "Tensor":
    """Return (1 - weight) W_A + weight W_B of two tensors of one shape and dtype, exactly W_A where they are equal."""
    # The sum would turn -0 into 0.
    return (b if weight else a) if weight in (0, 1) else a.lerp(b, weight)
