"""Seconds of an evaluation on a pretrained model, by part: `make bench OPTIONS='--evaluation --model FOLDER'`.

`dipo-pl validate` of the first 40 rows (--rows) each of TOFU's forget set, retain set and world facts, with the model's chat
template. All answers are teacher-forced, and answers of at most 60 tokens are generated. DIPO_PL_TOFU names the folder of
TOFU's files. A part's seconds are of its own functions, without those of other parts that they call.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from clock import Clock

from dipo_pl.callbacks import forget_quality
from dipo_pl.cli.run import run
from dipo_pl.data_modules.forget_retain import ForgetRetain
from dipo_pl.metrics import observations
from dipo_pl.modules import base

SETS = ("forget", "retain", "world_facts")
PARTS: Sequence[tuple[Any, str, str]] = (
    (ForgetRetain, "setup", "tokenization"),
    (base.LanguageModule, "configure_model", "loading"),
    (observations, "row_states", "teacher forcing: decoder"),
    (observations, "answer_scores", "teacher forcing: head"),
    (base, "generate", "generation"),
    (forget_quality.ForgetQuality, "on_validation_batch_end", "metrics"),
    (forget_quality.ForgetQuality, "on_validation_epoch_end", "metrics"),
)


def main(options: argparse.Namespace) -> int:
    if "DIPO_PL_TOFU" not in os.environ:
        raise SystemExit("DIPO_PL_TOFU must name the folder of TOFU's files")
    torch.set_num_threads(options.threads)
    clock = Clock(time.process_time if options.clock == "processor" else time.perf_counter)
    with clock.timing(PARTS), TemporaryDirectory() as folder:
        with clock.part("the rest: reading options, Lightning, files"):
            code = run([
                "validate", "--config", "jsonl.yaml", "--data", "TOFU", "--data.path", os.environ["DIPO_PL_TOFU"],
                "--data.forget_rows", "40", "--data.retain_rows", "160", "--data.prompt", "ChatTemplate",
                "--data.evaluation_rows", str(options.rows or 40), "--data.evaluate", json.dumps(SETS),
                "--forget_quality.utility_sets", json.dumps(SETS[1:]), "--forget_quality.max_new_tokens", "60",
                "--samples.rows", "0", "--selection.rule", "null", "--selection.stop", "false",
                "--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.precision", options.precision,
                "--model.policy.path", str(options.model),
                "--output_dir", folder, "--name", "evaluation",
            ])  # fmt: skip
        metrics = Path(folder, "evaluation", "metrics.jsonl").read_text()
    print(f"\n{options.threads} threads, {options.precision}, seconds of {options.clock} time")
    print(clock.lines())
    evaluation = sum(taken for part, taken in clock.taken.items() if part[:3] in ("tea", "gen", "met"))
    print(f"{'the evaluation itself':45}{evaluation:8.1f}\n\n{metrics}")
    return code
