"""Arguments that the commands of model arithmetic share."""

from dipo_pl.cli.command_parser import Parser


def two_models(command: str, description: str, first: str, second: str) -> Parser:
    """Return a parser with two model folders and --output.

    Args:
        command: name of the command.
        description: text of its help.
        first: name of the first model.
        second: name of the second model.
    """
    made = Parser(command, description)
    for name in (first, second):
        made.add_argument(
            name, metavar=name.upper(), help="model folder, or folder of a finished run; of one architecture"
        )
    made.add_argument("--output", required=True, metavar="FOLDER", help="new folder for the model")
    return made
