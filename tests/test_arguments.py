"""The range of every argument that has one: its edge passes, and the rest is refused by name, range and value."""

import ast
import inspect
import math
from functools import partial
from pathlib import Path

import pytest
from tiny_models import tiny_model

import dipo_pl
from dipo_pl import losses
from dipo_pl.callbacks.collapse_guard import CollapseGuard
from dipo_pl.callbacks.forget_quality import ForgetQuality
from dipo_pl.callbacks.last_checkpoint import LastCheckpoint
from dipo_pl.callbacks.lm_eval import LMEval
from dipo_pl.callbacks.samples import Samples
from dipo_pl.callbacks.selection_rules import BestForgetQuality, NearestToUnseen
from dipo_pl.data_modules.alternates import Refusals
from dipo_pl.data_modules.fictitious_articles import MAX_ARTICLES, FictitiousNews, fictitious_articles
from dipo_pl.data_modules.fictitious_authors import MAX_AUTHORS, FictitiousAuthors, fictitious_rows
from dipo_pl.data_modules.json_lines import JSONL
from dipo_pl.data_modules.lume import LUME
from dipo_pl.data_modules.muse import MUSE
from dipo_pl.data_modules.rwku import RWKU
from dipo_pl.data_modules.tofu import TOFU
from dipo_pl.data_modules.wmdp import WMDP
from dipo_pl.errors import InputError
from dipo_pl.losses.retain_weight import DualWeight, FixedWeight
from dipo_pl.metrics.audit_scores import membership_distance, utility_score
from dipo_pl.metrics.fluency import distinct_ngrams
from dipo_pl.metrics.leakage import leaked, upper_bound
from dipo_pl.metrics.membership import Membership, min_k, min_k_plus_plus
from dipo_pl.metrics.probability import option_probability
from dipo_pl.metrics.truth_ratio import log_truth_ratio
from dipo_pl.metrics.unlearning_depth import depth_scores
from dipo_pl.models.fila import FILA
from dipo_pl.models.from_config import FromConfig
from dipo_pl.models.lora import LoRA
from dipo_pl.models.pruning import prune
from dipo_pl.models.sampling import Sampling
from dipo_pl.modules.finetuning import FineTuning
from dipo_pl.modules.unlearning import Unlearning
from dipo_pl.preferences.constructors import LogitModulation
from dipo_pl.preferences.filters import EffectiveTokens, Nucleus, RelativeProbability, TopFraction
from dipo_pl.references.stored_states import StoredStates
from dipo_pl.steps.sharpness_aware import SharpnessAware

CHECKS = ("check_count", "check_number", "check_share")
rows = partial(JSONL, "f.jsonl", "r.jsonl")
module = partial(FineTuning, FromConfig({"model_type": "llama"}))
unlearning = partial(
    Unlearning, FromConfig({"model_type": "llama"}), losses.GradientAscent(), losses.CrossEntropy()
)
share_of_CHECKS = ("check_count", "check_number", "check_share")
rows = partial(rows, train_on="forget")


def count(minimum, *more):
    return f"at least {minimum}", minimum, (minimum - 1, -3, *more)


def whole(minimum, maximum):
    return f"a finite number >= {minimum} and <= {maximum}", maximum, (minimum - 1, -1, maximum + 1)


POSITIVE = "a finite number > 0", 1e-9, (0, 0.0, -0.1, math.nan, math.inf)
NOT_NEGATIVE = "a finite number >= 0", 0, (-0.1, -1e-10, math.nan, math.inf)
SHARE = "a share in (0, 1]", 1, (0, 0.0, -0.05, 1.0001, math.nan, math.inf)
SHARE_OR_0 = "a share in [0, 1]", 0, (-0.1, 1.0001, math.nan, math.inf)
BELOW_1 = "a share in [0, 1)", 0, (-0.1, 1, 1.0, math.nan)
ONE, NONE = [[-1.0]], [[1.0]]

# By name: a class that takes the argument, or a function of the value; its range, the edge of it, values outside.
ARGUMENTS = {
    **{f"{name}.beta": (getattr(losses, name), *POSITIVE) for name in ("DiPO", "DiPORetain", "NPO", "SimNPO", "DPO", "KTO")},
    **{f"{name}.beta": (getattr(losses, name), *NOT_NEGATIVE) for name in ("UNDIAL", "WGA")},
    "SimNPO.gamma": (losses.SimNPO, *NOT_NEGATIVE),
    "SatImp.beta1": (losses.SatImp, *NOT_NEGATIVE),
    "SatImp.beta2": (losses.SatImp, *NOT_NEGATIVE),
    "RMU.steering": (losses.RMU, *POSITIVE),
    "CEU.skip": (losses.CEU, *count(0)),
    "SHRED.share": (losses.SHRED, *SHARE),
    "SHRED.top": (losses.SHRED, *count(2)),
    "SHRED.skip": (losses.SHRED, *count(0)),
    "DualWeight.initial": (DualWeight, *NOT_NEGATIVE),
    "DualWeight.epsilon": (DualWeight, "a finite number", -1e9, (math.nan, -math.inf)),
    "DualWeight.step": (DualWeight, *POSITIVE),
    "DualWeight.warmup_epochs": (DualWeight, *count(0)),
    "model.forget_entropy": (unlearning, "a finite number", -1e9, (math.nan, math.inf)),
    "model.retain_entropy": (unlearning, "a finite number", -1e9, (math.nan, -math.inf)),
    "SharpnessAware.rho": (SharpnessAware, *POSITIVE),
    "model.retain_weight": (lambda value: FixedWeight(value), *NOT_NEGATIVE),
    "LogitModulation.alpha": (LogitModulation, *POSITIVE),
    "TopFraction.rate": (TopFraction, *SHARE),
    "RelativeProbability.rate": (RelativeProbability, *SHARE),
    "Nucleus.mass": (Nucleus, *SHARE),
    "EffectiveTokens.scale": (EffectiveTokens, *POSITIVE),
    "StoredStates.batch_tokens": (StoredStates, *count(1)),
    "Membership's k": (lambda k: Membership(k), *SHARE),
    "k of Min-K%": (lambda k: min_k(ONE, k), *SHARE),
    "k of Min-K%++": (lambda k: min_k_plus_plus(ONE, ONE, NONE, k), *SHARE),
    "n": (lambda n: distinct_ngrams(["a"], n), *count(1)),
    "epsilon of probabilities": (lambda epsilon: option_probability([1.0], NONE, epsilon), *NOT_NEGATIVE),
    "epsilon of truth ratios": (lambda epsilon: log_truth_ratio([1.0], NONE, epsilon), *NOT_NEGATIVE),
    "model.warmup": (module, *BELOW_1),
    "model.token_budget": (module, *count(1)),
    "FILA.rows": (FILA, *count(1)),
    "FILA.epsilon": (FILA, *POSITIVE),
    "model.policy.adapter.rank": (LoRA, *count(1)),
    "model.policy.adapter.alpha": (LoRA, *POSITIVE),
    "model.policy.adapter.dropout": (LoRA, *BELOW_1),
    **{
        f"data.{name}": (rows, *count(1))
        for name in ("batch_size", "global_batch_size", "evaluation_tokens", "evaluation_rows", "max_length")
    },
    "data.workers": (rows, *count(0)),
    "data.forget_share": (partial(rows, train_on="forget"), *SHARE),
    "data.forget_rows": (TOFU, *count(1)),
    "data.retain_rows": (TOFU, *count(1)),
    "data.holdout_rows": (partial(TOFU, retain_rows=1), *count(1)),
    "data.forget_documents": (LUME, *count(1)),
    "data.retain_documents": (LUME, *count(1)),
    "data.holdout_documents": (partial(LUME, retain_documents=1), *count(1)),
    "data.retain_people": (RWKU, *count(1)),
    "data.max_length of blocks": (MUSE, "at least 2", 2, (1,)),
    "data.shortest": (partial(WMDP, "corpora"), *count(0)),
    "data.alternates.per_row": (Refusals, *count(1)),
    "data.authors": (FictitiousAuthors, *whole(2, MAX_AUTHORS)),
    "data.forget_authors": (partial(FictitiousAuthors, authors=4), "a finite number >= 1 and < 4", 3, (0, -1, 4, 5)),
    "count of authors": (fictitious_rows, *whole(1, MAX_AUTHORS)),
    "count of articles": (fictitious_articles, *whole(1, MAX_ARTICLES)),
    **{f"data.{name}": (FictitiousNews, *count(1)) for name in ("folds", "retain_articles", "editions")},
    **{f"data.{name}": (FictitiousNews, *count(4)) for name in ("fold_articles", "seen_articles")},
    "samples of a row": (lambda value: Sampling(samples=value), *count(1)),
    "temperature": (Sampling, *POSITIVE),
    "top_p": (Sampling, *SHARE),
    "seed": (Sampling, *count(0)),
    "share": (lambda value: prune(tiny_model(), value), "a share in (0, 1)", 0.5, (0, 0.0, 1, 1.1, math.nan)),
    "recall": (lambda value: leaked([], "a", recall=value), *SHARE),
    "confidence": (lambda value: upper_bound([0.5], value), "a share in (0, 1)", 0.5, (0, 1, 1.1, math.nan)),
    "threshold": (lambda value: depth_scores([0.0], [[0.0]], [[0.0]], value), *NOT_NEGATIVE),
    "auc": (lambda value: membership_distance(value, 0.5), *SHARE_OR_0),
    "retain_auc": (lambda value: membership_distance(0.5, value), *SHARE),
    "model_utility": (lambda value: utility_score(value, 0.5), *SHARE_OR_0),
    "target_utility": (lambda value: utility_score(0.5, value), *SHARE),
    "target_fluency": (lambda value: utility_score(0.5, 0.5, 0.5, value), *SHARE),
    "lm_eval.limit": (partial(LMEval, ["mmlu"]), *count(1)),
    "lm_eval.num_fewshot": (partial(LMEval, ["mmlu"]), *count(0)),
    "lm_eval.batch_size": (partial(LMEval, ["mmlu"]), *count(1)),
    "samples.rows": (Samples, *count(0)),
    "selection.rule.utility_share": (BestForgetQuality, *SHARE),
    "selection.rule.patience": (BestForgetQuality, *count(1)),
    "selection.rule.forget_quality": (NearestToUnseen, *SHARE_OR_0),
    "last_checkpoint.every_n_epochs": (LastCheckpoint, *count(1)),
    "last_checkpoint.every_n_steps": (LastCheckpoint, *count(1)),
    **{
        f"collapse_guard.{name}": (CollapseGuard, *SHARE)
        for name in ("lost_utility", "still_known", "repetitive", "fewer_words")
    },
    "collapse_guard.swing": (CollapseGuard, *POSITIVE),
    "forget_quality.max_new_tokens": (ForgetQuality, *count(1)),
    "forget_quality.generate_every": (ForgetQuality, *count(0)),
}  # fmt: skip


def keyword(make, name):
    return lambda value: make(**{name: value})


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_argument_outside_of_its_range_is_refused(name):
    make, stated, edge, outside = ARGUMENTS[name]
    said = name.partition(" of ")[0]
    make = make if inspect.isfunction(make) else keyword(make, said.rpartition(".")[2])
    make(edge)
    for value in outside:
        with pytest.raises(InputError) as raised:
            make(value)
        assert str(raised.value) == f"{said} must be {stated} (got {value})"


def test_every_check_of_the_package_is_in_the_table():
    """Options of commands are tested with their commands, and the engine's budget with the engine."""
    names = set()
    for folder in (
        "losses",
        "preferences",
        "references",
        "steps",
        "metrics",
        "models",
        "modules",
        "data_modules",
        "callbacks",
    ):
        for path in Path(dipo_pl.__file__).parent.joinpath(folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                checks = isinstance(node, ast.Call) and getattr(node.func, "id", "") in CHECKS
                if checks and isinstance(node.args[0], ast.Constant):
                    names.add(node.args[0].value)
    known = {name.partition(" of ")[0] for name in ARGUMENTS}
    assert names - known == {"token_budget"}
    assert len(names) > 45
