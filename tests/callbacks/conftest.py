"""A model that has learned the smoke data, to be made to forget it, and one that never saw the forget rows."""

from pathlib import Path

import pytest

LEARNING = """
model:
  class_path: FineTuning
  init_args:
    policy:
      class_path: FromConfig
      init_args:
        config: {model_type: llama, hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2, num_attention_heads: 4}
        vocab_size: 512
    optimizer: {class_path: AdamW, init_args: {lr: 5.0e-3}}
data:
  class_path: FictitiousAuthors
  init_args: {train_on: all, authors: 4, forget_authors: 1, evaluation_rows: 10, batch_size: 16}
forget_quality: {utility_sets: [retain], max_new_tokens: 16}
trainer: {accelerator: cpu, devices: 1, max_epochs: 30, gradient_clip_val: 1.0, num_sanity_val_steps: 0,
  check_val_every_n_epoch: 30}
"""


@pytest.fixture(scope="session")
def learning(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tmp_path_factory.mktemp("learning") / "learn.yaml"
    config.write_text(LEARNING)
    return config


@pytest.fixture(scope="session")
def learned(fit_once, learning: Path) -> Path:
    """The run folder of a target; not to be written to."""
    return fit_once("learned", "--config", learning, "--name", "target") / "target"


@pytest.fixture(scope="session")
def retain_only(fit_once, learning: Path) -> Path:
    """The run folder of a retain-only model; not to be written to."""
    words = ("--config", learning, "--config", "retain_only.yaml", "--name", "retain-only")
    return fit_once("learned-retain-only", *words) / "retain-only"
