"""Names of arguments as the early check reads them from source, and as the parser knows them."""

from pydoc import locate

import pytest
from jsonargparse import ArgumentParser

from dipo_pl.cli.error_lines import concrete_classes
from dipo_pl.cli.option_check import CALLBACKS, TRAINER, argument_names
from dipo_pl.cli.pluggable import import_pluggable
from dipo_pl.cli.run_cli import BASES
from dipo_pl.losses.base import Loss
from dipo_pl.metrics.base import EvaluationMetric
from dipo_pl.models.source import ModelSource

import_pluggable()
OURS = [
    f"{each.__module__}.{each.__qualname__}"
    for base in (*BASES.values(), Loss, EvaluationMetric, ModelSource)
    for each in concrete_classes(base)
    if each.__module__.startswith("dipo_pl.")
]
OPTIMIZERS = [f"torch.optim.{name}" for name in ("Adam", "AdamW", "SGD")]


@pytest.mark.parametrize("name", [*CALLBACKS.values(), TRAINER, *OPTIMIZERS, *OURS])
def test_no_name_that_the_parser_accepts_is_refused(name):
    parser = ArgumentParser(exit_on_error=False)
    parsed = parser.add_class_arguments(locate(name), "x", fail_untyped=False)
    found = argument_names(name)
    assert found is not None
    assert {each.removeprefix("x.") for each in parsed} <= {*found}


def test_a_short_name_of_two_classes_is_left_to_the_parser():
    assert argument_names("ForgetQuality") is None
    assert argument_names("mine.NPO") is None
    assert argument_names("mine.SGD") is None
