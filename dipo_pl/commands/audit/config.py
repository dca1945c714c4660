"""Config of an audit: which attacks are tried with which settings, as `--config audit.yaml` and options say."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dipo_pl.attacks.base import Attack
from dipo_pl.cli.named_classes import guard_configs, refuse_functions
from dipo_pl.cli.null_check import refuse_nulls
from dipo_pl.cli.pluggable import import_pluggable
from dipo_pl.cli.run_parser import ConfigFile, RunParser
from dipo_pl.errors import InputError, check_count, check_share
from dipo_pl.evaluation.lm_eval_tasks import LMEvalTasks


@dataclass(frozen=True)
class AuditConfig:
    """Settings of an audit.

    Attributes:
        attacks: the attacks in order.
        removed: share of the way from the target to the retain-only model that counts as forgotten.
        seed: of all random choices.
        utility: tasks of lm-eval that the score's utility averages over beside Model Utility; None if there are none.
        text: all of it as YAML.
    """

    attacks: tuple[Attack, ...]
    removed: float
    seed: int
    utility: LMEvalTasks | None
    text: str

    @classmethod
    def parse(cls, configs: Sequence[str], options: Sequence[str]) -> "AuditConfig":
        """Return the settings of config files, the later ones over the earlier, and of options over them.

        Raises:
            InputError: a key or value is wrong, a class is no attack, or two attacks have one name.
        """
        import_pluggable()
        guard_configs()
        parser = RunParser(prog="dipo-pl audit")
        parser.add_argument("--config", action=ConfigFile)
        parser.add_argument("--attacks", type=list[Attack])
        parser.add_argument("--removed", type=float, default=0.5)
        parser.add_argument("--seed", type=int, default=0)
        parser.add_argument("--utility", type=LMEvalTasks | None, default=None)
        words = [word for each in configs for word in ("--config", each)]
        parsed = parser.parse_args([*words, *options])
        refuse_functions(parsed)
        refuse_nulls(parsed)
        made: Any = parser.instantiate_classes(parsed)
        check_share("removed", made.removed)
        check_count("seed", made.seed, 0)
        names = [each.name for each in made.attacks or ()]
        if not names:
            raise InputError("attacks names no attack: give --config audit.yaml, or a config with some")
        if twice := [name for name in names if names.count(name) > 1]:
            raise InputError(f"attacks would have {twice[0]} twice: leave one of them out")
        shown = parsed.clone()
        shown.pop("config", None)
        return cls(
            tuple(made.attacks), made.removed, made.seed, made.utility, parser.dump(shown, skip_none=False)
        )
