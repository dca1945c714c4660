"""A rank of DeepSpeed on a CPU: Lightning's checks that it has a GPU are lifted, nothing else."""

import os
import runpy
from argparse import Namespace
from pathlib import Path

os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed
from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.strategies import deepspeed as module

initialize = deepspeed.initialize


def on_cpu(args, **options):
    return initialize(args=Namespace(device_rank=0), **options)


def setup_environment(self):
    super(DeepSpeedStrategy, self).setup_environment()


DeepSpeedStrategy.setup_environment = setup_environment
module._validate_device_index_selection = lambda devices: None
deepspeed.initialize = on_cpu
runpy.run_path(str(Path(__file__).parents[1] / "scale" / "ranks.py"))
