"""Requests as JSON lines, and the configurations of a small target and of the stages."""

import json
from pathlib import Path

import yaml

from dipo_pl.data_modules.fictitious_authors import fictitious_rows

TARGET = yaml.safe_load("""
model:
  class_path: FineTuning
  init_args:
    policy:
      class_path: FromConfig
      init_args:
        config: {model_type: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 2}
        vocab_size: 400
    optimizer: {class_path: AdamW, init_args: {lr: 3.0e-3}}
data:
  class_path: JSONL
  init_args: {forget: requests/1.jsonl, retain: keep.jsonl, train_on: all, evaluation_rows: 4}
forget_quality: {utility_sets: [retain], generate_every: 0}
trainer: {accelerator: cpu, devices: 1, max_epochs: 2, num_sanity_val_steps: 0}
""")
STAGE = yaml.safe_load("""
model:
  class_path: Unlearning
  init_args:
    policy: {class_path: Pretrained, init_args: {path: runs/target/hf}}
    forget_loss: DiPO
    retain_loss: DiPORetain
    optimizer: {class_path: AdamW, init_args: {lr: 1.0e-3}}
data:
  class_path: JSONL
  init_args: {forget: requests/1.jsonl, retain: everyone.jsonl, evaluation_rows: 4}
forget_quality: {utility_sets: [retain], max_new_tokens: 4}
samples: {rows: 0}
trainer: {accelerator: cpu, devices: 1, max_epochs: 2}
""")
NAMES = ["requests/1.jsonl", "requests/2.jsonl", "requests/3.jsonl"]


def write_rows(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_inputs(folder: Path) -> None:
    """Write three requests of 10 rows each, all people, those to retain, and the two configurations."""
    rows = fictitious_rows(3, 0)
    for number, name in enumerate(NAMES):
        write_rows(folder / name, rows[10 * number : 10 * number + 10])
    write_rows(folder / "everyone.jsonl", rows)
    write_rows(folder / "keep.jsonl", rows[30:])
    (folder / "target.yaml").write_text(yaml.safe_dump(TARGET))
    (folder / "stage.yaml").write_text(yaml.safe_dump(STAGE))


def write_requests(folder: Path, **keys: object) -> None:
    (folder / "deletions.yaml").write_text(yaml.safe_dump({"configs": ["stage.yaml"]} | keys))
