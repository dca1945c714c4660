"""Arguments that the commands of model arithmetic share."""

from dipo_pl.cli.command_parser import Parser


def two_models(command: str, description: str, first: str, second: str) -> Parser:
    """Return a parser with --output and two model folders, of these names."""
    made = Parser(command, description)
    model = "model folder, or folder of a finished run; of one architecture"
    for name in (first, second):
        made.add_argument(name, metavar=name.upper(), help=model)
    made.add_argument("--output", required=True, metavar="FOLDER", help="new folder for the model")
    return made
