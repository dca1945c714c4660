"""Finished runs whose models are tiny and random: an audit trains none of them."""

import json
from pathlib import Path
from typing import Any

import yaml
from tiny_models import save_tiny_model

from dipo_pl.attacks.subject import Subject
from dipo_pl.cli.run import data_module
from dipo_pl.commands.audit.models import sources_of
from dipo_pl.commands.probes.finished_run import FinishedRun
from dipo_pl.modules.finetuning import FineTuning

NAMES = ("Mira Holloway", "Odo Brandt", "Ines Falk", "Tarek Lund", "Una Persson")
TOWNS = ("Bergen", "Quito", "Lund", "Turin", "Graz")


def rows_of(names: tuple[str, ...]) -> list[dict[str, Any]]:
    return [
        {
            "question": f"Where does {name} live?",
            "answer": f"{name} lives in {town}.",
            "paraphrased_question": f"In which town is the home of {name}?",
            "paraphrased_answer": f"The home of {name} is in {town}.",
            "perturbed_answer": [f"{name} lives in Oslo.", f"{name} lives in Rome."],
            "entity": town,
        }
        for name, town in zip(names, TOWNS, strict=False)
    ]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


def finished_run(folder: Path, forget: Path, retain: Path, holdout: Path | None, **policy: Any) -> Path:
    """Write the folder of a finished run, as far as an audit reads it."""
    data = {"forget": str(forget), "retain": str(retain), "evaluation_tokens": 400}
    if holdout is not None:
        data["holdout"] = str(holdout)
    config = {
        "model": {"class_path": "Unlearning", "init_args": {"policy": {"class_path": "Pretrained", "init_args": policy}}},
        "data": {"class_path": "dipo_pl.data_modules.json_lines.JSONL", "init_args": data},
        "forget_quality": {"utility_sets": ["retain"], "max_new_tokens": 8},
        "trainer": {"accelerator": "cpu"},
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    manifest = {"status": "finished", "command": "fit", "policy": {"weights_at_end": folder.name}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def make_runs(
    folder: Path, holdout: bool = True, rows: list[dict[str, Any]] | None = None, **never: Any
) -> Path:
    """Make runs/unlearned, runs/never and the model folder target in a folder; return it.

    Args:
        folder: an empty folder.
        holdout: give the runs a holdout.
        rows: to be forgotten.
        never: changes of the architecture of the model that never knew.
    """
    forget = write_rows(folder / "forget.jsonl", rows or rows_of(NAMES))
    retain = write_rows(folder / "keep.jsonl", rows_of(("Ada Moss", "Ben Roe", "Cleo Voss")))
    unseen = write_rows(folder / "holdout.jsonl", rows_of(("Dora Lind", "Emil Kahn", "Fay Orr")))
    options = {"spread": 0.3, "max_position_embeddings": 128}
    save_tiny_model(folder / "target", seed=0, **options)
    for seed, name in ((1, "unlearned"), (2, "never")):
        files = forget, retain, unseen if holdout else None
        run = finished_run(folder / "runs" / name, *files, path=str(folder / "target"))
        save_tiny_model(run / "hf", **{"seed": seed, **options, **(never if name == "never" else {})})
    return folder


def subject_of(folder: Path, **options: Any) -> Subject:
    """Return the models and rows of a folder of `make_runs` as attacks get them."""
    run = FinishedRun.read(str(folder / "runs" / "unlearned"))
    sources = sources_of(run, None, str(folder / "runs" / "never"))
    data = data_module(run.config)
    data.connect(FineTuning(sources["unlearned"]))
    data.setup("validate")
    return Subject(sources, data, ["retain"], 8, **options)
