"""Advice that can be followed as it is printed: learning rates in numbers, and the command for a retain-only model."""

import shlex
from collections.abc import Sequence

# A step in the learning rate that is seen in the result.
STEP = 5
# Options of an unlearning run that its retain-only model has no use for, or sets itself.
_NOT_TAKEN = (
    "name", "ckpt_path", "require", "selection", "checkpoint", "export", "verdict", "forget_quality.retain_result",
    "data.train_on", "model.policy.path", "model.policy.gguf_file", "model.forget_loss", "model.retain_loss",
    "model.retain_weight", "model.constructor", "model.reference", "model.step",
)  # fmt: skip


def gentler(rate: float | None) -> str:
    """Return the advice for a run that loses what it should keep."""
    return _try(None if rate is None else rate / STEP, "a fifth of this")


def stronger(rate: float | None) -> str:
    """Return the advice for a run that does not forget."""
    return _try(None if rate is None else rate * STEP, "five times this")


def _try(rate: float | None, relation: str) -> str:
    return f"try model.optimizer.lr {'' if rate is None else f'{rate:.3g} '}({relation})"


def retain_only_command(arguments: Sequence[str], name: str, from_path: bool) -> str:
    """Return the command that makes the retain-only model of an unlearning run.

    Args:
        arguments: those of the unlearning run, with the command before them.
        name: name of the retain-only model's run.
        from_path: the policy is loaded from a path, for which BASE then stands: a model from before it saw the rows.
    """
    options = [option for option in _options(arguments[1:]) if _is_taken(_key(option[0]))]
    configs = [word for option in options if _key(option[0]) in ("config", "c") for word in option]
    others = [word for option in options if _key(option[0]) not in ("config", "c") for word in option]
    words = ["fit", *configs, "--config", "retain_only.yaml", *others]
    words += ["--model.policy.path", "BASE"] if from_path else []
    return f"dipo-pl {shlex.join([*words, '--name', name])}"


def _options(words: Sequence[str]) -> list[list[str]]:
    """Return each option with its values."""
    options: list[list[str]] = []
    for word in words:
        if word.startswith("--") or word == "-c" or not options:
            options.append([])
        options[-1].append(word)
    return options


def _key(option: str) -> str:
    parts = option.partition("=")[0].lstrip("-").removesuffix("+").split(".")
    return ".".join(each for each in parts if each != "init_args")


def _is_taken(key: str) -> bool:
    # A class of the model, such as Unlearning, comes from the overlay.
    is_class = key in ("model", "model.class_path")
    return not is_class and not any(key == each or key.startswith(f"{each}.") for each in _NOT_TAKEN)
