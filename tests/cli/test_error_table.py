"""Bad input, case by case: the command, the line that is printed, the fault, and that nothing on disk is touched."""

import json
import pickle
import re
import shlex
from pathlib import Path

import pytest
import torch
from faults import (
    BOMB,
    RAN,
    SHARD,
    as_pickle,
    bit_of_a_shard,
    both,
    broken_weights,
    change_shards,
    checkpoint_of_another_version,
    class_at,
    config_of_another_version,
    config_without_keys,
    end_of_a_shard,
    file,
    half_a_checkpoint,
    half_a_tensor,
    in_shards,
    model_of_smoke,
    more_metrics,
    nothing,
    overlay,
    pickle_at,
    pickle_named_safetensors,
    pickled_optimizer,
    pickled_rest,
    pickled_store,
    rows,
    run_of_smoke,
    template_that_escapes,
    unfinished,
    with_remote_code,
    without,
    without_a_tensor,
)  # fmt: skip

from dipo_pl.storage.checkpoints import AtomicCheckpointIO

OPTIMIZER = "model.init_args.optimizer"
MINE = "--config mine.yaml "
JSONL = "--data JSONL --data.forget f.jsonl --data.retain r.jsonl "
PRETRAINED = "--model.policy Pretrained --model.policy.path ./model "
GPT2 = shlex.quote("{model_type: gpt2, n_embd: 32, n_layer: 1, n_head: 2, n_positions: 16}")
empty_file, folder_there = file("empty.yaml", ""), file("there/a", "")

# Words of `dipo-pl` (those that begin with an option follow `fit --config smoke.yaml`), a part of the one line, and what
# is wrong on disk.
SETTINGS = [
    ("fit --config nope.yaml", "no config nope.yaml, neither here nor among the shipped ones (`dipo-pl configs` lists "
     "them; did you mean npo.yaml?"),
    ("fit --config no/such.yaml", "no config file no/such.yaml"),
    ("fit --config broken.yaml", "in the config broken.yaml", file("broken.yaml", "model: [1\n")),
    ("fit --config empty.yaml", "empty.yaml must be a mapping of keys (got an empty file)", empty_file),
    ("fit --config ''", "--config must name a config (got ''): see dipo-pl configs"),
    ("fit smoke.yaml", "unexpected argument 'smoke.yaml': options begin with --, such as --config smoke.yaml"),
    ("--name a b", "unexpected argument 'b'"),
    ("fit", "give --model and --data, or a --config that has it (see dipo-pl configs)"),
    ("fly", "no command 'fly'"),
    ("--foo 1", "there is no option 'foo' (--help shows all)"),
    ("--data.author 3", "data: there is no option 'author' (did you mean authors?)"),
    ("--forget_quality.measures '[Membership]'",
     "forget_quality: there is no option 'measures' (it is called metrics now)"),
    ("--data ''", "data: name a class (got ''): use FictitiousAuthors, "),
    ("--data.authors ''", "data.authors: must be of type int (got '')"),
    ("--data.authors null", "data.authors must not be null: give a value, or leave it out"),
    ("--model.retain_weight null", "model.retain_weight must not be null"),
    ("--model.constructor.filter.rate null", "model.constructor.filter.rate must not be null"),
    ("--forget_quality.metrics '[{class_path: Membership, init_args: {k: null}}]'",
     "forget_quality.metrics[0].k must not be null"),
    ("--trainer.accumulate_grad_batches null", "trainer.accumulate_grad_batches: must be of type int"),
    ("--forget_quality.max_new_tokens null", "forget_quality.max_new_tokens: must be of type int"),
    ("--trainer.accumulate_grad_batches 0", "trainer.accumulate_grad_batches must be at least 1 (got 0)"),
    ("--trainer.gradient_clip_val -1", "trainer.gradient_clip_val must be a finite number >= 0 (got -1)"),
    ("--trainer '{max_epochs: x}'", "error: trainer.max_epochs: must be"),
    ("--ckpt_path ''", "--ckpt_path must name a checkpoint (got ''): leave it out"),
    ("--model.betta 1", "model: there is no option 'betta'"),
    ("--model.forget_loss.betta 1", "model.forget_loss: there is no option 'betta'"),
    ("--model.forget_loss.beta x", "model.forget_loss.beta: must be of type float (got x)"),
    ("--model.forget_loss NPOO", "model.forget_loss: there is no class NPOO (did you mean NPO?)"),
    ("--model.retain_loss NPOO", "model.retain_loss: there is no class NPOO (did you mean NPO?): use CEU, CrossEntropy"),
    ("--model Unlearn", "model: there is no class Unlearn (did you mean Unlearning?): use FineTuning, Unlearning"),
    ("--data.prompt.system x", "data.prompt: name a class first: use ChatTemplate, "),
    ("--data.train_on x", "data.train_on: must be one of 'pairs', 'all', 'forget', 'retain' (got x)"),
    ("--trainer.max_epochs x", "trainer.max_epochs: must be of type int (got x)"),
    ("--trainer.strategy zz", "strategy='zz'"),
    ("--model.forget_loss.beta -1", "DiPO.beta must be a finite number > 0 (got -1"),
    ("--data.batch_size 0", "data.batch_size must be at least 1 (got 0)"),
    ("--samples.rows -1", "samples.rows must be at least 0"),
    ("--model.optimizer.lr -1", "Invalid learning rate: -1"),
    ("--model.retain_loss DiPO", "set model.forget_loss to DiPO and model.retain_loss to DiPORetain"),
    ("--model.retain_loss DPO", "model.retain_loss: DPO compares a row with its alternate, which only forget rows have"),
    ("--data.global_batch_size 12", "data.global_batch_size is 12, and 1 device with data.batch_size 8 take 8 rows at once, "
     "which does not divide it: a data.batch_size of 6 does"),
    ("--data.global_batch_size 16 --trainer.accumulate_grad_batches 4",
     "data.global_batch_size 16 and trainer.accumulate_grad_batches 4 both say how many batches are accumulated"),
    ("--trainer.strategy fsdp2 --forget_quality.metrics '[{class_path: Membership, init_args: {gradient_norm: true}}]'",
     "Membership needs gradient norms, which are not supported for sharded models"),
    ("--config fsdp.yaml", "the config fsdp.yaml no longer exists: use fsdp2.yaml"),
    ("--config deepspeed.yaml", "the config deepspeed.yaml no longer exists: use fsdp2.yaml"),
    ("--trainer.strategy fsdp_cpu_offload", "trainer.strategy fsdp_cpu_offload is not supported (it cannot consolidate "
     "checkpoints): set trainer.strategy fsdp2"),
    ("--trainer.strategy FSDPStrategy", "FSDPStrategy is not supported (it cannot consolidate"),
    ("--trainer.strategy ModelParallelStrategy", "is not supported (it cannot consolidate checkpoints)"),
    ("--trainer.strategy deepspeed_stage_3", "deepspeed_stage_3 is not supported: set trainer.strategy fsdp2"),
    ("--trainer.strategy DeepSpeedStrategy", "DeepSpeedStrategy is not supported: set trainer.strategy fsdp2"),
    ("""--trainer.strategy '{"class_path": "dipo_pl.strategies.fsdp.FSDP2Strategy", "init_args": {"nope": 1}}'""",
     "trainer.strategy: there is no option 'nope'"),
    ("--forget_quality.utility_sets '[nought]'", "forget_quality.utility_sets names 'nought'"),
    ("--data.train_on all", "Unlearning trains on pairs, and data.train_on is all"),
    ("--model FineTuning", "FineTuning trains on all or retain or forget, and data.train_on is pairs"),
    ("--trainer.max_epochs -1", "training has no end: set trainer.max_epochs or trainer.max_steps"),
    ("--trainer.max_epoch 3", "trainer: there is no option 'max_epoch' (did you mean max_epochs?)"),
    ("--trainer.max_ep=3", "trainer: there is no option 'max_ep'"),
    ("--outpu x", "there is no option 'outpu' (did you mean output_dir?)"),
    ("plan --config smoke.yaml --device 3", "there is no option 'device'"),
    ("report runs/x --outpu x", "dipo-pl report: unrecognized arguments: --outpu x"),
    ("demo --outpu x", "dipo-pl demo: unrecognized arguments: --outpu x"),
    ("--trainer.callbacks '[{class_path: EarlyStopping, init_args: {monitr: x}}]'",
     "trainer.callbacks: there is no option 'monitr' (--print_config shows all)"),
    ("--forget_quality.metrics '[{class_path: Membership, init_args: {kk: 1}}]'",
     "forget_quality.metrics: there is no option 'kk' (--print_config shows all)"),
    ("--trainer.logger NeptuneLogger", "trainer.logger: there is no class NeptuneLogger: use the import path of a class"),
    ("--trainer.callbacks Timer", "Timer has an option of the type Interval whose default config.yaml cannot hold: give "
     "that option a value, such as step"),
    ("--trainer.overfit_batches 1", "trainer.overfit_batches is not supported (got 1): the rows of each epoch are"),
    ("--trainer.overfit_batches 0.5", "trainer.overfit_batches is not supported (got 0.5): "),
    ("--trainer.barebones true", "trainer.barebones is not supported (got True): a run is measured, logged and saved"),
    ("--trainer.enable_checkpointing false", "trainer.enable_checkpointing is not supported (got False): a run resumes"),
    ("--trainer.use_distributed_sampler true", "trainer.use_distributed_sampler is not supported (got True): "),
    ("--trainer.default_root_dir other", "trainer.default_root_dir is not supported (got other): the run folder is"),
    ("--trainer.limit_val_batches 0.5", "trainer.limit_val_batches 0.5 would measure some rows of each set"),
    ("--trainer.limit_train_batches 0", "trainer.limit_train_batches 0 trains nothing: use dipo-pl validate"),
    ("--trainer.callbacks StochasticWeightAveraging --trainer.callbacks.swa_lrs 0.1",
     "trainer.callbacks: StochasticWeightAveraging averages weights that evaluation, checkpoints and export do not know of"),
    ("--trainer.callbacks '[{class_path: BatchSizeFinder}]'", "trainer.callbacks: BatchSizeFinder trains before the first"),
    ("--config npo.yaml --model.constructor.alpha 2", "model.constructor makes preference pairs, and neither "
     "model.forget_loss nor model.retain_loss uses one: leave it out"),
    (JSONL + "--data.columns '{question: q}'", "data.columns must map one form of row", rows("")),
    (JSONL + "--data.forget '[]'", "data.forget names no rows: give a name, or a list of them (got [])", rows("")),
    (JSONL, "f.jsonl, line 2: 'labels' would be left out beside 'text': give --data.columns '{question: text, answer: "
     "labels}'",
     rows('{"text": "Who?", "labels": "Me."}')),
    ("--data TOFU --data.path there", "no file there/full.jsonl: data.path must be a folder with TOFU's full",
     folder_there),
    ("--trainer.val_check_interval 0", "trainer.val_check_interval must be greater than 0 (got 0)"),
    ("--trainer.check_val_every_n_epoch 0", "trainer.check_val_every_n_epoch must be greater than 0 (got 0)"),
    ("--trainer.check_val_every_n_epoch -1", "trainer.check_val_every_n_epoch must be greater than 0 (got -1)"),
    ("--trainer.min_epochs 5 --trainer.max_epochs 1", "trainer.min_epochs 5 is more than trainer.max_epochs 1: leave"),
    ("--trainer.min_steps 5 --trainer.max_steps 3", "trainer.min_steps 5 is more than trainer.max_steps 3: leave out one"),
    ("--selection.stop true", "there is no rule: set selection.rule"),
    ("--export.best true", "set checkpoint.monitor"),
    ("--checkpoint.save_last true", "leave it out, since last_checkpoint writes last.ckpt"),
    ("--export.adapter true", "export.adapter is true, but the policy has no adapter"),
    ("--model.reference AdapterOff", "the policy has no adapter: set"),
    ("--output_dir empty.yaml", "cannot make the run folder empty.yaml/smoke", empty_file),
    ("--output_dir ''", "--output_dir must name a folder (got '')"),
    ("--name ''", "--name must be the name of one folder (got '')"),
    ("--name ../out", "--name must be the name of one folder (got '../out')"),
    (f"--name {'n' * 300}", "--name must have at most 200 bytes (got 300: nnnnnnnnnnnnnnnnnnnn...)"),
    ("--data TOFU --data.path empty.yaml", "data.path empty.yaml is a file: give its folder", empty_file),
    ("--data MUSE --data.corpus News --data.path empty.yaml", "data.path empty.yaml is a file: give its folder", empty_file),
    ("--config no_trainer.yaml", "trainer must be a mapping of keys (got null)", file("no_trainer.yaml", "trainer: null\n")),
    ("--trainer null", "trainer: must be a mapping of keys (got null)"),
    ("--model null", "model is missing or null"),
    ("--model.policy null", "model.policy is missing or null: give --model.policy, or a --config that has it"),
    ("fit --config jsonl.yaml", "model.policy.path is missing or null: give --model.policy.path, or a --config"),
    ("fit --config jsonl.yaml --model.policy.path m", "data.forget and data.retain are missing or null: give --data.forget "
     "and --data.retain, or a --config that has it"),
    ("plan --config jsonl.yaml --model.policy.path m --data.forget f.jsonl", "data.retain is missing or null: give"),
    ("--model.policy.quantization null", "model.policy: there is no option 'quantization'"),
    ("--weights_only false", "there is no option 'weights_only'"),
    (f"--model.policy.config {GPT2}", "the model's context is 16: set data.max_length to 16 and data.too_long to truncate"),
    (JSONL, "f.jsonl, line 2: not valid JSON", rows('{"question": ')),
    ("--model.policy Pretrained --model.policy.path there/nope", "no model folder there/nope", folder_there),
]  # fmt: skip
CONFIG_FILES = [
    (MINE, "mine.yaml is not UTF-8 text (byte 0xff at 0): save it as UTF-8", file("mine.yaml", "name: a", "utf-16")),
    (MINE, "in the config mine.yaml: the key 'name' is given twice (line 2)", file("mine.yaml", "name: a\nname: b")),
    (MINE, "in the config mine.yaml: the key 'lr' is given twice (line 1)",
     file("mine.yaml", "model: {init_args: {optimizer: {init_args: {lr: 1, lr: 2}}}}")),
    (MINE, "the config mine.yaml must be a mapping of keys (got ['a'])", file("mine.yaml", "- a")),
    (MINE, "in the config mine.yaml: data must be a mapping of keys (got null)", file("mine.yaml", "data:\n")),
    (MINE, "mine.yaml: mapping values are not allowed in this context at line 1, column 5", file("mine.yaml", "a: b: c")),
    ("--model.forget_loss own_loss.Own", "No module named 'own_loss', but own_loss.py is in this folder: put PYTHONPATH=. "
     "before the command", file("own_loss.py", "")),
    (MINE, "in the config mine.yaml: model.forget_loss: No module named 'own_loss', but own_loss.py is in this folder",
     both(file("own_loss.py", ""), overlay("model.init_args.forget_loss", "own_loss.Own"))),
    (MINE, "in the config mine.yaml: data.class_path must name a class (got ['a'])", overlay("data.class_path", ["a"])),
    (MINE, "in the config mine.yaml: data.init_args must be a mapping of keys (got 3)", overlay("data.init_args", 3)),
    (MINE, "aliases expand it to more than 100,000 values (line 5)", file("mine.yaml", BOMB)),
    (MINE, "an alias stands for a value that it is part of (line 1)", file("mine.yaml", "data: &a {init_args: *a}")),
    (MINE, "could not determine a constructor for the tag 'tag:yaml.org,2002:python/object/apply:os.system'",
     file("mine.yaml", f"name: !!python/object/apply:os.system ['touch {RAN}']")),
    ("fit --config npo.yaml --config smoke.yaml", "the config npo.yaml sets arguments of model and names no class for it"),
    ("fit --config lora.yaml", "put the config that it changes before it (--config tofu.yaml --config lora.yaml)"),
    ("fit --config news_requests.yaml",
     "holds requests, not the configuration of a run: use dipo-pl sequence news_requests.yaml"),
    ("sequence smoke.yaml", "has the unknown key 'data': the keys of a sequence are configs, requests, mode"),
    ("sequence mine.yaml", "mine.yaml is not UTF-8 text", file("mine.yaml", "configs: [a]", "utf-16")),
    ("sequence mine.yaml", "the key 'requests' is given twice (line 2)",
     file("mine.yaml", "requests: [a]\nrequests: [b]")),
    ("sequence nope.yaml", "no config nope.yaml"),
]  # fmt: skip

CALLBACK = "lightning.pytorch.callbacks.LambdaCallback"
LAUNCH = {
    "class_path": "torch.distributed.launcher.api.elastic_launch",
    "init_args": {"entrypoint": "touch", "config": {"min_nodes": 1, "max_nodes": 1, "nproc_per_node": 1}},
}
REMOTE = {"model_type": "clip", "auto_map": {"AutoModelForCausalLM": "x/y--mine.Model"}}
# A config or a model from a stranger.
STRANGERS = [
    (MINE, "model.optimizer: importing os.system from a config is not allowed",
     class_at(OPTIMIZER, "os.system", command=f"touch {RAN}")),
    (MINE, "model.optimizer: importing subprocess.Popen from a config is not allowed",
     class_at(OPTIMIZER, "subprocess.Popen", args=["touch", RAN])),
    (MINE, "model.optimizer: torch.hub.load is no class; a config may name classes only",
     class_at(OPTIMIZER, "torch.hub.load", repo_or_dir="x/y")),
    ("--model.optimizer torch.nn.Linear", "to be a subclass of <class 'Optimizer'>"),
    (MINE, "trainer.callbacks[0].setup: dipo_pl.cli.run.run is no class",
     class_at("trainer.callbacks", CALLBACK, in_list=True, setup="dipo_pl.cli.run.run")),
    (MINE, "trainer.callbacks[0].on_fit_start: using torch.distributed.launcher.elastic_launch from a config is not allowed",
     class_at("trainer.callbacks", CALLBACK, in_list=True, on_fit_start=LAUNCH)),
    *((MINE, f"trainer.{key}: ", class_at(f"trainer.{key}", "subprocess.Popen", in_list=True, args=["touch", RAN]))
      for key in ("callbacks", "logger", "plugins")),
    *((f"--{key} torch.nn.Linear", "does not correspond to a subclass of") for key in (
        "model", "data", "model.policy", "model.forget_loss", "data.prompt", "trainer.callbacks", "trainer.logger")),
    ("--model.policy.config config.json", "cannot create a random config.json", file("config.json", json.dumps(REMOTE))),
    (PRETRAINED, "./model has no *.safetensors, only pytorch_model.bin, a pickle, which can run code when it is read",
     model_of_smoke(as_pickle)),
    (PRETRAINED, "cannot load the model of './model'", model_of_smoke(pickle_named_safetensors)),
    (PRETRAINED, "its weights are broken", model_of_smoke(broken_weights)),
    (PRETRAINED, "its own code: read that code, then set model.policy.trust_remote_code to true",
     model_of_smoke(with_remote_code)),
    (PRETRAINED + "--data.prompt ChatTemplate", "the chat template of ./model refuses the row that begins ",
     model_of_smoke(template_that_escapes)),
    ("--ckpt_path no.ckpt", "no checkpoint no.ckpt"),
    ("--ckpt_path list.ckpt", "cannot read the checkpoint list.ckpt", lambda smoke: torch.save([1], "list.ckpt")),
    ("--ckpt_path evil.ckpt", "cannot read the checkpoint evil.ckpt (it holds more than tensors and plain values",
     lambda smoke: pickle_at("evil.ckpt")),
    ("validate --config smoke.yaml --ckpt_path evil.ckpt", "cannot read the checkpoint evil.ckpt (it holds more",
     lambda smoke: pickle_at("evil.ckpt")),
    ("--model.reference StoredStates --model.reference.path store",
     "store holds no usable reference states (manifest.json cannot be read", pickled_store),
]  # fmt: skip

MORE_EPOCHS = "--trainer.max_epochs 3"
UNREADABLE = "cannot read the checkpoint runs/smoke/checkpoints/last.ckpt ("
COMPARED = "--name other --forget_quality.retain_result "
OPEN = COMPARED + "TOFU_EVAL.json --forget_quality.convention open_unlearning"
# A finished run is there.
RUNS = [
    ("validate --config smoke.yaml --ckpt_path no.ckpt",
     "no checkpoint no.ckpt: give a file or a folder of shards, or leave ckpt_path out"),
    (MORE_EPOCHS, f"{UNREADABLE}it holds more", run_of_smoke(pickled_optimizer)),
    (MORE_EPOCHS, UNREADABLE[:-2], run_of_smoke(half_a_checkpoint)),
    ("--trainer.max_epochs 1", "trainer.max_epochs is 1 and runs/smoke/checkpoints/last.ckpt has completed 2 epochs",
     run_of_smoke()),
    ("--trainer.max_epochs -1", "training has no end", run_of_smoke()),
    (MORE_EPOCHS, "runs/smoke holds a run of another version of dipo-pl (dipo_pl.unlearning.Unlearning does not exist "
     "in this one)", run_of_smoke(config_of_another_version)),
    ("--name other --ckpt_path runs/smoke/checkpoints/last.ckpt", "runs/smoke/checkpoints/last.ckpt (another version of "
     "dipo-pl has written it): give another as ckpt_path", run_of_smoke(checkpoint_of_another_version)),
    (MORE_EPOCHS, "another version of dipo-pl has written it): remove it and previous.ckpt to start afresh",
     run_of_smoke(checkpoint_of_another_version)),
    (MORE_EPOCHS, "cannot read runs/smoke/config.yaml", run_of_smoke(without("config.yaml"))),
    (MORE_EPOCHS, "cannot read runs/smoke/config.yaml", run_of_smoke(config_without_keys)),
    (MORE_EPOCHS, "runs/smoke/manifest.json does not record which rows its checkpoints were trained on",
     run_of_smoke(lambda run: (run / "manifest.json").write_text("{}"))),
    (MORE_EPOCHS, "runs/smoke is finished and has no checkpoint to resume from: give another --name",
     run_of_smoke(without("checkpoints"))),
    ("--name other --ckpt_path runs/smoke/checkpoints/last.ckpt --trainer.max_epochs 3 --model.optimizer SGD",
     "model.optimizer is SGD, and the checkpoint has the state of AdamW: set model.optimizer to AdamW", run_of_smoke()),
    (MORE_EPOCHS, "runs/smoke/metrics.jsonl, line 4 is not an evaluation", run_of_smoke(more_metrics('{"step": "x"}\n'))),
    (MORE_EPOCHS, "runs/smoke/metrics.jsonl, line 4 is not an evaluation", run_of_smoke(more_metrics('{"step": 7, "ep'))),
    ("--model.forget_loss.beta 0.5", "runs/smoke holds a run with another configuration (model.init_args.forget_loss."
     "init_args.beta: 0.05 there, 0.5 here)", run_of_smoke()),
    ("--forget_quality.convention arithmetic", "another configuration (forget_quality.convention: ", run_of_smoke()),
    ("validate --config smoke.yaml --name smoke", "runs/smoke holds a training run: give this evaluation another --name",
     run_of_smoke()),
    (COMPARED + "runs/smoke --data.evaluation_rows 5", "has 10 forget rows and this run 5", run_of_smoke()),
    (COMPARED + "runs/smoke --data.author_seed 1", "was evaluated on other forget rows", run_of_smoke()),
    (OPEN, "TOFU_EVAL.json is not an evaluation: it cannot be read ('utf-8'", file("TOFU_EVAL.json", "{}", "utf-16")),
    *((command, "TOFU_EVAL.json is not what it looks like (ValueError",
       file("TOFU_EVAL.json", json.dumps({"forget_quality": {"agg_value": -1}})))
      for command in (OPEN, "report TOFU_EVAL.json")),
    (OPEN, "TOFU_EVAL.json, forget_Q_A_Prob must have values by row (got 5)",
     file("TOFU_EVAL.json", json.dumps({"forget_Q_A_Prob": {"value_by_index": 5}}))),
    ("report runs/smoke", "runs/smoke is not finished (status: running)", run_of_smoke(unfinished)),
    ("quantize runs/smoke", "cannot read the configuration of the run in runs/smoke/config.yaml",
     run_of_smoke(config_without_keys)),
    *((f"{command} runs/smoke --yes", "runs/smoke is not finished (status: running)", run_of_smoke(unfinished))
      for command in ("audit", "purge")),
    ("audit runs/smoke --against runs/none", "--against: no model folder runs/none", run_of_smoke()),
    ("audit runs/smoke --attacks Hinted", "attacks", run_of_smoke()),
    ("purge runs/smoke", "nothing is removed without a yes: give --yes", run_of_smoke()),
    ("sign runs/smoke", "the following arguments are required: --key", run_of_smoke()),
    ("verify runs/smoke", "runs/smoke is not signed (no signature.json)", run_of_smoke()),
]  # fmt: skip
CONSOLIDATE = "consolidate runs/smoke --output one.ckpt"
SHARDS = [
    ("consolidate runs/smoke", "the following arguments are required: --output", in_shards()),
    (CONSOLIDATE, "runs/smoke/checkpoints/last.ckpt is one file already", run_of_smoke()),
    ("consolidate nowhere --output one.ckpt", "no checkpoint nowhere: give the folder of a sharded checkpoint"),
    ("consolidate there --output one.ckpt", "there is not a sharded checkpoint (it has no", folder_there),
    ("consolidate runs/smoke --output empty.yaml", "--output empty.yaml already exists", both(in_shards(), empty_file)),
    (CONSOLIDATE, f"{UNREADABLE}{SHARD} is damaged): give another", in_shards(bit_of_a_shard)),
    (CONSOLIDATE, f"{UNREADABLE}it holds more than tensors", in_shards(pickled_rest)),
    (CONSOLIDATE, f"{UNREADABLE}{SHARD} is not a file of this checkpoint", in_shards(change_shards)),
    (CONSOLIDATE, "is not complete): give another", in_shards(half_a_tensor)),
    (CONSOLIDATE, "is not complete): give another", in_shards(without_a_tensor)),
    ("consolidate runs/smoke --output runs/smoke/checkpoints/last.ckpt/x", "is inside the checkpoint: give a file elsewhere",
     in_shards()),
    ("consolidate runs/smoke --output " + 300 * "n", "cannot be a file (File name too long)", in_shards()),
    ("consolidate runs/smoke --output empty.yaml/x", "empty.yaml is not a folder", in_shards(empty_file)),
    (MORE_EPOCHS, f"{UNREADABLE}{SHARD} is damaged): remove it", in_shards(bit_of_a_shard)),
    (MORE_EPOCHS, f"{UNREADABLE}{SHARD} is damaged): remove it", in_shards(end_of_a_shard)),
    (MORE_EPOCHS, f"{UNREADABLE}{SHARD} is missing): remove it", in_shards(without(SHARD))),
    (MORE_EPOCHS, f"{UNREADABLE}[Errno 2] No such file", in_shards(without("checkpoint.pt"))),
    (MORE_EPOCHS, f"{UNREADABLE}it holds more than tensors", in_shards(pickled_rest)),
]  # fmt: skip

CASES = [
    (command, line, *(fault or [nothing]))
    for command, line, *fault in (*SETTINGS, *CONFIG_FILES, *STRANGERS, *RUNS, *SHARDS)
]


def on_disk() -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in Path().rglob("*")}


def words_of(command: str) -> list[str]:
    return (["fit", "--config", "smoke.yaml"] if command.startswith("--") else []) + shlex.split(command)


def the_line(ended) -> str:
    assert ended.code == 2, ended.err
    assert not re.search(r"Traceback|Union subtypes|NestedArg|\x1b", ended.err + ended.out)
    said = [each for each in ended.err.splitlines() if not each.startswith("dipo-pl: warning: ")]
    (line,) = said
    assert len(line) <= 640
    return line


@pytest.mark.parametrize(
    ("command", "line", "fault"), CASES, ids=[f"{command} ({line[:40]})" for command, line, _ in CASES]
)
def test_what_is_wrong_is_said_in_a_line_and_nothing_is_touched(cli, smoke, command, line, fault):
    fault(smoke)
    before = on_disk()
    assert line in the_line(cli(*words_of(command)))
    assert on_disk() == before


def test_what_shows_only_once_a_run_has_begun_leaves_its_record(cli):
    command = "--model.constructor.center false --model.constructor.filter.rate 0.9"
    ended = cli(*words_of(command))
    assert ended.code == 2
    assert "Set center to true, or keep fewer tokens" in ended.errors[0]
    assert Path("runs/smoke/manifest.json").exists()


def test_the_payload_runs_where_pickles_are_trusted(tmp_path, monkeypatch):
    """Without which the cases with one would show nothing."""
    monkeypatch.chdir(tmp_path)
    pickle_at("evil.ckpt")
    torch.load("evil.ckpt", weights_only=False)
    assert Path(RAN).exists()


def test_a_checkpoint_is_never_unpickled_whatever_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle_at("evil.ckpt")
    with pytest.raises(pickle.UnpicklingError):
        AtomicCheckpointIO().load_checkpoint("evil.ckpt", weights_only=False)
    assert not Path(RAN).exists()


def test_a_null_is_a_null_on_the_command_line(cli):
    nulls = "--model.policy.quantization null --model.policy.revision null --print_config"
    ended = cli(*words_of(PRETRAINED + nulls))
    assert ended.code == 0, ended.err
    assert "quantization: null" in ended.out
    assert "revision: null" in ended.out
