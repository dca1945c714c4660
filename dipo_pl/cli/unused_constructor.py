"""The constructor of preference pairs in a configuration whose losses use none: left out, so as not to be taken for used."""

from pydoc import locate

from jsonargparse import Namespace

from dipo_pl.losses.dipo import DiPO


def without_unused_constructor(model: Namespace | None) -> bool:
    """Set a model's `constructor` to null, in place, if no loss uses it; return whether one was given."""
    arguments = None if model is None else model.get("init_args")
    if (
        not isinstance(arguments, Namespace)
        or arguments.get("constructor") is None
        or "forget_loss" not in arguments
    ):
        return False
    losses = [arguments.get(each) for each in ("forget_loss", "retain_loss")]
    classes = [
        locate(each["class_path"]) for each in losses if isinstance(each, Namespace) and "class_path" in each
    ]
    if not classes or any(not isinstance(each, type) or issubclass(each, DiPO) for each in classes):
        return False
    arguments["constructor"] = None
    return True
