"""Make a language model forget chosen data, and show that it forgot.

The names in `__all__` are the public API for notebooks and scripts. Each is imported at its first use, so that
`import dipo_pl` and `dipo-pl --version` load nothing heavy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dipo_pl.version import __version__

if TYPE_CHECKING:
    from dipo_pl import metrics
    from dipo_pl.callbacks.collapse_guard import CollapseGuard
    from dipo_pl.callbacks.export import Export
    from dipo_pl.callbacks.forget_quality import ForgetQuality
    from dipo_pl.callbacks.selection import BestForgetQuality, FirstForgotten, Selection
    from dipo_pl.data_modules.alternates import Refusals, RowAlternates
    from dipo_pl.data_modules.fictitious import FictitiousAuthors
    from dipo_pl.data_modules.fictitious_news import FictitiousNews
    from dipo_pl.data_modules.forget_retain import ForgetRetain
    from dipo_pl.data_modules.json_lines import JSONL
    from dipo_pl.data_modules.muse import MUSE
    from dipo_pl.data_modules.tofu import TOFU
    from dipo_pl.errors import InputError
    from dipo_pl.losses import (
        CEU,
        DPO,
        KTO,
        NPO,
        PDU,
        RMU,
        UNDIAL,
        WGA,
        CrossEntropy,
        DiPO,
        DiPORetain,
        GradientAscent,
        LogProbabilityLoss,
        Loss,
        MaximumEntropy,
        ReferenceKL,
        RMURetain,
        SatImp,
        SimNPO,
    )
    from dipo_pl.losses.base import Section
    from dipo_pl.losses.engine import joint_objective, sequence_objective
    from dipo_pl.losses.retain_weight import DualWeight
    from dipo_pl.models.from_config import FromConfig
    from dipo_pl.models.head import OutputHead
    from dipo_pl.models.lora import LoRA
    from dipo_pl.models.pretrained import Pretrained
    from dipo_pl.modules.finetuning import FineTuning
    from dipo_pl.modules.unlearning import Unlearning
    from dipo_pl.preferences.constructors import LogitModulation, PreferenceConstructor
    from dipo_pl.preferences.filters import (
        AllOf,
        EffectiveTokens,
        Filter,
        Nucleus,
        RelativeProbability,
        TargetToken,
        TopFraction,
    )
    from dipo_pl.prompts import ChatTemplate, Llama2Chat, QuestionAnswer
    from dipo_pl.references.adapter_off import AdapterOff
    from dipo_pl.references.frozen_copy import FrozenCopy
    from dipo_pl.references.stored_states import StoredStates

__all__ = [
    "CEU",
    "DPO",
    "JSONL",
    "KTO",
    "MUSE",
    "NPO",
    "PDU",
    "RMU",
    "TOFU",
    "UNDIAL",
    "WGA",
    "AdapterOff",
    "AllOf",
    "BestForgetQuality",
    "ChatTemplate",
    "CollapseGuard",
    "CrossEntropy",
    "DiPO",
    "DiPORetain",
    "DualWeight",
    "EffectiveTokens",
    "Export",
    "FictitiousAuthors",
    "FictitiousNews",
    "Filter",
    "FineTuning",
    "FirstForgotten",
    "ForgetQuality",
    "ForgetRetain",
    "FromConfig",
    "FrozenCopy",
    "GradientAscent",
    "InputError",
    "Llama2Chat",
    "LoRA",
    "LogProbabilityLoss",
    "LogitModulation",
    "Loss",
    "MaximumEntropy",
    "Nucleus",
    "OutputHead",
    "PreferenceConstructor",
    "Pretrained",
    "QuestionAnswer",
    "RMURetain",
    "ReferenceKL",
    "Refusals",
    "RelativeProbability",
    "RowAlternates",
    "SatImp",
    "Section",
    "Selection",
    "SimNPO",
    "StoredStates",
    "TargetToken",
    "TopFraction",
    "Unlearning",
    "__version__",
    "joint_objective",
    "metrics",
    "sequence_objective",
]

# The module of each name; type checkers and editors read the imports above instead.
_NAMES = {
    "callbacks.collapse_guard": "CollapseGuard",
    "callbacks.export": "Export",
    "callbacks.forget_quality": "ForgetQuality",
    "callbacks.selection": "BestForgetQuality FirstForgotten Selection",
    "data_modules.alternates": "Refusals RowAlternates",
    "data_modules.fictitious": "FictitiousAuthors",
    "data_modules.fictitious_news": "FictitiousNews",
    "data_modules.forget_retain": "ForgetRetain",
    "data_modules.json_lines": "JSONL",
    "data_modules.muse": "MUSE",
    "data_modules.tofu": "TOFU",
    "errors": "InputError",
    "losses": "CEU CrossEntropy DiPO DiPORetain DPO GradientAscent KTO LogProbabilityLoss Loss MaximumEntropy NPO "
    "PDU ReferenceKL RMU RMURetain SatImp SimNPO UNDIAL WGA",
    "losses.base": "Section",
    "losses.engine": "joint_objective sequence_objective",
    "losses.retain_weight": "DualWeight",
    "models.from_config": "FromConfig",
    "models.head": "OutputHead",
    "models.lora": "LoRA",
    "models.pretrained": "Pretrained",
    "modules.finetuning": "FineTuning",
    "modules.unlearning": "Unlearning",
    "preferences.constructors": "LogitModulation PreferenceConstructor",
    "preferences.filters": "AllOf EffectiveTokens Filter Nucleus RelativeProbability TargetToken TopFraction",
    "prompts": "ChatTemplate Llama2Chat QuestionAnswer",
    "references.adapter_off": "AdapterOff",
    "references.frozen_copy": "FrozenCopy",
    "references.stored_states": "StoredStates",
}
_MODULE_OF = {name: f"dipo_pl.{module}" for module, names in _NAMES.items() for name in names.split()}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import a public name at its first use."""
        if name == "metrics":
            return import_module("dipo_pl.metrics")
        if name not in _MODULE_OF:
            raise AttributeError(f"module 'dipo_pl' has no attribute {name!r}")
        found = globals()[name] = getattr(import_module(_MODULE_OF[name]), name)
        return found


def __dir__() -> list[str]:
    return sorted(__all__)
