"""Every shipped config parses and names only what exists; every overlay runs."""

from pathlib import Path

import pytest
import yaml

from dipo_pl.cli.run import data_module, resolved
from dipo_pl.commands.sequence.requests_file import RequestsFile
from dipo_pl.commands.study.checks import checked
from dipo_pl.commands.study.plan import Plan
from dipo_pl.commands.study.study_file import StudyFile
from dipo_pl.configs import resolve, shipped
from dipo_pl.data_modules.muse import MUSE
from dipo_pl.data_modules.tofu import TOFU
from dipo_pl.errors import InputError


def is_overlay(name: str) -> bool:
    content = yaml.safe_load(shipped()[name].read_text())
    return "class_path" not in content.get("model", {}) or "class_path" not in content.get("data", {})


def is_sequence(name: str) -> bool:
    return "requests" in yaml.safe_load(shipped()[name].read_text())


def is_study(name: str) -> bool:
    return {"rows", "seeds"} <= yaml.safe_load(shipped()[name].read_text()).keys()


SEQUENCES = sorted(filter(is_sequence, shipped()))
# tests/commands/audit runs it.
AUDIT = "audit.yaml"
STUDIES = sorted(filter(is_study, shipped()))
NAMES = sorted({*shipped()} - {*SEQUENCES, *STUDIES, AUDIT})
OVERLAYS = [name for name in NAMES if is_overlay(name)]
# These need what a test machine may not have.
GPU_ONLY = ["gpu.yaml"]
HUB_ONLY = ["mmlu.yaml"]


@pytest.mark.parametrize("name", [name for name in NAMES if not is_overlay(name)])
def test_config_parses(cli, name):
    ended = cli("fit", "--config", name, "--print_config")
    assert ended.code == 0, ended.err
    printed = yaml.safe_load(ended.out)
    given = yaml.safe_load(shipped()[name].read_text())
    assert printed["model"]["class_path"].endswith(given["model"]["class_path"])
    assert printed["data"]["class_path"].endswith(given["data"]["class_path"])
    assert shipped()[name].read_text().startswith("# ")


def fine_tunes(name: str) -> bool:
    return yaml.safe_load(shipped()[name].read_text()).get("model", {}).get("class_path") == "FineTuning"


@pytest.mark.parametrize("name", sorted({*filter(fine_tunes, OVERLAYS)} - {"relearn.yaml"}))
def test_a_fine_tuning_overlay_leaves_the_choice_of_an_unlearned_checkpoint_out(name):
    config = resolved(["fit", "--config", "demo.yaml", "--config", name])
    assert (config["selection"]["rule"], config["selection"]["stop"]) == (None, False)
    assert config["checkpoint"]["monitor"] is None


@pytest.mark.parametrize("name", SEQUENCES)
def test_requests_are_forget_sets_of_the_configs(name, tofu_folder):
    plan = RequestsFile.read(shipped()[name])
    words = [word for each in plan.configs for word in ("--config", each)]
    data = data_module(resolved(["fit", *words]))
    if isinstance(data, MUSE):
        # The files are not here; that these are its names is.
        assert {each.rpartition("_")[0] for each in plan.requests} <= {"scal", "sust"}
    else:
        if isinstance(data, TOFU):
            data.path = tofu_folder
        assert all(data.read_forget(each) for each in plan.requests)
    assert shipped()[name].read_text().startswith("# Requests: ")


@pytest.mark.parametrize("name", STUDIES)
def test_all_configurations_of_a_study_parse(name):
    file = StudyFile.read(shipped()[name])
    models = [each for each in (file.target, file.retain_only) if each is not None]
    # Runs that choose a learning rate count where they have options of their own.
    tunes = file.learning_rate is not None and bool(file.learning_rate.options)
    tuning = sum(each.tune for each in file.rows) if tunes else 0
    assert len(checked(Plan(file, Path("runs/x"), {}))) == len(file.rows) + tuning + len(models)
    assert shipped()[name].read_text().startswith("# Study: ")


@pytest.mark.parametrize("name", GPU_ONLY)
def test_overlay_for_gpus_parses(cli, name):
    ended = cli("fit", "--config", "smoke.yaml", "--config", name, "--print_config")
    assert yaml.safe_load(ended.out)["trainer"]["accelerator"] == "gpu", ended.err
    assert shipped()[name].read_text().startswith("# Overlay: ")


def test_overlay_of_mmlu_names_the_task(cli):
    ended = cli("fit", "--config", "smoke.yaml", "--config", "mmlu.yaml", "--print_config")
    assert yaml.safe_load(ended.out)["lm_eval"]["tasks"] == ["mmlu"], ended.err
    assert shipped()["mmlu.yaml"].read_text().startswith("# Overlay: ")


@pytest.mark.parametrize("name", sorted({*OVERLAYS} - {*GPU_ONLY, *HUB_ONLY}))
def test_overlay_runs(cli, name):
    """On texts in blocks; those that need questions, on rows that have some."""
    quick = (
        "--config", name, "--trainer.max_steps", "2", "--forget_quality.generate_every", "0",
        "--trainer.num_sanity_val_steps", "0", "--samples.rows", "0",
    )  # fmt: skip
    ended = cli("fit", "--config", "smoke_news.yaml", *quick, "--data.evaluate", "[forget]")
    if name in ("idk_dpo.yaml", "altpo.yaml", "kto.yaml"):
        assert ended.code == 2
        assert "has no question: give rows of {question, answer}" in ended.errors[0]
        ended = cli("fit", "--config", "smoke.yaml", *quick)
    if name == "rmu_layers.yaml":
        # Two layers have no layer 7; tests/cli/test_trainable.py trains others.
        assert ended.code == 2
        assert "model.trainable: " in ended.errors[0]
        return
    assert ended.code == 0, ended.err


@pytest.mark.parametrize(("overlay", "forget", "retain"), [
    ("npo.yaml", "NPO", "CrossEntropy"),
    ("graddiff.yaml", "GradientAscent", "CrossEntropy"),
    ("dipo_union.yaml", "DiPO", "DiPORetain"),
    ("dipo_gd.yaml", "DiPO", "CrossEntropy"),
    ("dipo_forget.yaml", "DiPO", None),
    ("kl_min.yaml", "GradientAscent", "ReferenceKL"),
    ("simnpo.yaml", "SimNPO", "CrossEntropy"),
    ("idk_dpo.yaml", "DPO", "CrossEntropy"),
    ("altpo.yaml", "DPO", "CrossEntropy"),
    ("kto.yaml", "KTO", "CrossEntropy"),
    ("rmu.yaml", "RMU", "RMURetain"),
    ("rmu_layers.yaml", "RMU", "RMURetain"),
    ("undial.yaml", "UNDIAL", None),
    ("wga.yaml", "WGA", "CrossEntropy"),
    ("satimp.yaml", "SatImp", "CrossEntropy"),
    ("ceu.yaml", "CEU", None),
    ("pdu.yaml", "PDU", "CrossEntropy"),
    ("maximum_entropy.yaml", "MaximumEntropy", "CrossEntropy"),
    ("ihl.yaml", "InvertedHinge", "CrossEntropy"),
    ("loku.yaml", "InvertedHinge", "CrossEntropy"),
    ("shred.yaml", "SHRED", None),
])  # fmt: skip
def test_overlay_swaps_the_losses(cli, overlay, forget, retain):
    model = yaml.safe_load(cli("fit", "--config", "tofu.yaml", "--config", overlay, "--print_config").out)[
        "model"
    ]
    assert model["init_args"]["forget_loss"]["class_path"].endswith(f".{forget}")
    chosen = model["init_args"]["retain_loss"]
    assert chosen is None if retain is None else chosen["class_path"].endswith(f".{retain}")
    uses = "DiPO" in forget or "DiPO" in str(retain)
    assert (model["init_args"]["constructor"] is not None) == uses
    if forget == "NPO":
        assert model["init_args"]["forget_loss"]["init_args"] == {"beta": 0.1}


def test_missing_config_names_those_there_are():
    with pytest.raises(InputError, match=r"no config nothing.yaml, neither here"):
        resolve("nothing.yaml")
