"""Checks of a study before anything runs: every configuration is valid, and no two rows are the same."""

from typing import Any

from dipo_pl.cli.console import cause_of, near
from dipo_pl.cli.option_check import TOP_LEVEL
from dipo_pl.cli.run import resolved, selection_rule
from dipo_pl.commands.audit import command as audit
from dipo_pl.commands.audit.config import AuditConfig
from dipo_pl.commands.probes import quantize, relearn
from dipo_pl.commands.study.plan import Job, Kind, Plan
from dipo_pl.errors import InputError
from dipo_pl.report.run import recipe_of


def checked(plan: Plan) -> list[dict[str, Any]]:
    """Return the resolved configurations of a study, one for each row and each model.

    Raises:
        InputError: one of them is wrong, or two rows have the same.
    """
    if plan.file.learning_rate is not None:
        _naming("learning_rate.rule", selection_rule, plan.file.learning_rate.rule)
    configs: list[dict[str, Any]] = []
    recipes: dict[tuple[str, bool], str | None] = {}
    seen: set[tuple[Kind, str | None]] = set()
    for job in plan.jobs:
        # A tuning run without options of its own is a run of its row with another learning rate.
        is_same = job.kind is Kind.TUNING and plan.file.learning_rate and not plan.file.learning_rate.options
        if is_same or (job.kind, job.row) in seen:
            continue
        seen.add((job.kind, job.row))
        words = job.words(plan.folder, job.tuned_by[0].rate if job.tuned_by else job.rate)
        if job.kind.is_probe:
            _naming(f"after.{job.kind}", _check_probe, job.kind, words[1:])
            continue
        where = str(job.kind) if job.row is None else f"row {job.row!r}"
        config = _naming(where, resolved, words)
        _check_config(job, config, where)
        configs.append(config)
        if job.kind is Kind.ROW:
            recipe = recipe_of(config), bool(job.tuned_by)
            if (same := recipes.setdefault(recipe, job.row)) != job.row:
                raise InputError(
                    f"rows {same!r} and {job.row!r} have the same configuration: leave one of them out"
                )
    return configs


def _check_probe(kind: Kind, words: list[str]) -> None:
    command = {Kind.RELEARN: relearn, Kind.QUANTIZE: quantize, Kind.AUDIT: audit}[kind]
    given, further = command.parser().parse_known_args(words)
    if kind is Kind.AUDIT:
        AuditConfig.parse(given.config or [audit.CONFIG], further)
        return
    # Options of `fit` may follow; their values are left to the run.
    of_fit = (*TOP_LEVEL, "config")
    known = [*(key for key in vars(given) if key not in ("runs", "run")), *of_fit]
    for word in further:
        name = word.partition("=")[0].lstrip("-").removesuffix("+").split(".")[0]
        if word.startswith("--") and name not in of_fit:
            advice = near(name, known) or f" (dipo-pl {kind} --help shows all)"
            raise InputError(f"there is no option {name!r}{advice}")


def _check_config(job: Job, config: dict[str, Any], where: str) -> None:
    if job.retain_only is not None and (key := "forget_quality.retain_result") in job.recipe.options:
        raise InputError(f"{where}: {key} is the result of the study's retain_only: leave one of them out")
    if config["trainer"]["fast_dev_run"]:
        raise InputError(
            f"{where}: trainer.fast_dev_run makes no results: give trainer.max_steps or limit_train_batches"
        )
    if (job.tuned_by or job.kind is Kind.TUNING) and config["trainer"]["num_sanity_val_steps"] == 0:
        raise InputError(
            f"{where} has no evaluation before training, which learning_rate.rule compares with: set "
            "trainer.num_sanity_val_steps to -1"
        )


def _naming(where: str, check: Any, *arguments: Any) -> Any:
    """Return what a check returns; name `where` in its error."""
    try:
        return check(*arguments)
    except Exception as error:
        raise InputError(f"{where}: {cause_of(error)[0]}") from error
