"""Run folders of sequences written by hand, and what tests of reports share."""

import hashlib
import json

import yaml

from dipo_pl.metrics.result import EvaluationResult, SetResult
from dipo_pl.report.plots import all_plots
from dipo_pl.storage.run_folder import RunFolder

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>&amp;\"'"
PATH = "../requests/2026-02 <b>&|_$.jsonl"
THREE = ["a", PATH, "c"]


def alter(path, change):
    """Alter a JSON file, or each line of a JSONL file, in place."""
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    found = [json.loads(line) for line in lines]
    for each in found:
        change(each)
    path.write_text("".join(json.dumps(each) + "\n" for each in found))


def forgotten(manifest):
    """A manifest, its verdict altered."""
    manifest |= {"verdict": "forgotten", "verdict_reasons": []}


def plot_names(report):
    return {each.name for plots in all_plots(report).values() for each in plots}


def plot(report, name):
    (found,) = (each for plots in all_plots(report).values() for each in plots if each.name == name)
    return found


def lines_of(axes):
    """Points of each line that the legend names."""
    named = {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}
    return {name: points for name, points in named.items() if not name.startswith("_")}


def write_sequence(
    folder, mode="sustainability", requests=THREE, shape="muse", method=0.0, retained=False, change=None
):
    """Write the run folders of a sequence of requests.

    Args:
        shape: `muse` with knowledge and without truth ratios, or `tofu` with Forget Quality and Model Utility.
        method: shifts its metrics.
        retained: whether each stage was measured against a retain-only model.
        change: given (stage, step, metrics), alters the metrics.
    """
    sustained = mode == "sustainability"
    for stage in range(1, len(requests) + 1):
        asked = requests[:stage]
        forget = asked[-1:] if sustained else asked
        start, end = (stage - 1, f"{stage}") if sustained else (0, f"s{stage}")
        against = folder / f"stage-{stage}-retain_only"
        config = {
            "name": f"stage-{stage}",
            "data": {"class_path": "dipo_pl.data_modules.MUSE", "init_args": {"forget": forget, "requests": asked}},
            "forget_quality": {"retain_result": str(against) if retained else None},
        }  # fmt: skip
        manifest = {
            "command": "fit", "status": "finished", "seed": 0, "arguments": ["fit", "--config", "a.yaml"],
            "started": f"2026-01-0{stage}T10:00:00", "ended": f"2026-01-0{stage}T11:00:00",
            "policy": {
                "source": f"{folder.name}/{start}", "weights_at_start": f"{folder.name}{start}",
                "weights_at_end": f"{folder.name}{end}",
            },
            "sequence": {"name": folder.name, "mode": mode, "stage": stage, "requests": asked},
        }  # fmt: skip
        run = _write_run(folder / f"stage-{stage}", config, manifest)
        for step, made in ((0, start), (4, stage)):
            metrics = _metrics(mode, stage, made, shape, method)
            if step and shape == "tofu":
                metrics |= {"forget_quality": 0.3, "forget_quality_log10_p": -0.52}
            if change is not None:
                change(stage, step, metrics)
            _evaluation(step, metrics, forget, asked, shape).save(run)
        if retained:
            config["forget_quality"]["retain_result"] = None
            del manifest["sequence"]
            reference = _write_run(against, config, manifest | {"command": "validate"})
            metrics = _metrics(mode, stage, stage, shape, method)
            metrics["retain_knowledge" if shape == "muse" else "model_utility"] = 0.66 + 0.001 * stage
            _evaluation(0, metrics, forget, asked, shape).save(reference)
    return folder


def _write_run(path, config, manifest):
    run = RunFolder(path)
    path.mkdir(parents=True)
    run.config.write_text(yaml.safe_dump(config))
    run.manifest.write_text(json.dumps(manifest))
    return run


def _metrics(mode, stage, made, shape, method):
    """Metrics at a stage after `made` requests: utility falls, and what was forgotten comes back bit by bit."""

    def forgotten(place):
        return 0.9 - 0.01 * made if made < place else 0.1 + 0.07 * (made - place) + 0.02 * method

    utility = 0.7 - (0.08 if mode == "sustainability" else 0.05) * made * (1 + method)
    metrics = {"retain_probability": utility - 0.1, "forget_probability": forgotten(stage)}
    metrics |= {f"request_{place}_probability": forgotten(place) / 2 for place in range(1, stage + 1)}
    if shape == "tofu":
        return metrics | dict.fromkeys(
            ("model_utility", "retain_rouge_l_recall", "retain_truth_ratio"), utility
        )
    metrics |= {f"request_{place}_knowledge": forgotten(place) for place in range(1, stage + 1)}
    return metrics | {
        "retain_knowledge": utility, "forget_knowledge": forgotten(stage), "forget_verbatim": forgotten(stage) / 3,
        "membership_min_k_auc": 0.4, "priv_leak": -9.0,
    }  # fmt: skip


def _evaluation(step, metrics, forget, asked, shape):
    names = {"forget": forget, "retain": ["retain"], "retain_questions": ["questions"]}
    names |= {f"request_{place}": [name] for place, name in enumerate(asked, start=1)}
    if shape == "muse":
        names |= {"verbatim": forget, "forget_questions": forget}
    sets = {}
    for name, texts in names.items():
        rows = [
            {
                "row": index, "question": f"{text}: question {index}?", "answers": [f"{text}: answer {index}"],
                "nll": [1.0 + index], "generation": f"{text} at step {step}", "min_k": float(index),
            }
            for text in texts for index in range(3)
        ]  # fmt: skip
        if shape == "tofu" and name == "forget":
            rows = [row | {"log_truth_ratio": 0.1 * row["row"] + 0.01 * step} for row in rows]
        sets[name] = SetResult({}, rows, hashlib.sha256(repr(texts).encode()).hexdigest())
    convention, utility_sets = ("dipo_pl", ["retain"]) if shape == "tofu" else ("muse", [])
    return EvaluationResult(convention, metrics, sets, step / 2, step, utility_sets)
