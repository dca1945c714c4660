"""`dipo-pl demo-smollm2` with a tiny random model in place of SmolLM2: all steps, what is printed, and where it goes on."""

import json
import re
from pathlib import Path

import pytest
import torch
from chat_templates import CHATML, CHATML_PROMPT, turns
from tiny_models import tiny_config
from transformers import AutoModelForCausalLM

from dipo_pl.cli.run import resolved
from dipo_pl.commands import demo_smollm2 as command
from dipo_pl.commands.demo_answers import RELEARNED, RETAIN_ONLY, TARGET, UNLEARNED, answers
from dipo_pl.data_modules.fictitious_people import FictitiousPeople
from dipo_pl.models.tokenizer import train_tokenizer

RUNS = [TARGET, RETAIN_ONLY, UNLEARNED, *RELEARNED]
# The same steps in seconds.
QUICK = [
    "--trainer.max_steps",
    "2",
    "--forget_quality.max_new_tokens",
    "8",
    "--trainer.val_check_interval",
    "1",
]
QUICK += ["--trainer.check_val_every_n_epoch", "null", "--data.batch_size", "4"]


def make_model(folder):
    """A tiny Llama with a tokenizer for the people, whose template is SmolLM2's."""
    rows = FictitiousPeople().read()
    texts = [text for each in rows.evaluation for row in each.rows for text in row.texts()]
    tokenizer = train_tokenizer(texts, 400)
    tokenizer.chat_template = turns(CHATML, CHATML_PROMPT)
    torch.manual_seed(0)
    tokens = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = tiny_config(vocab_size=len(tokenizer), max_position_embeddings=256, **tokens)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="session")
def model(once):
    return once("model_for_people", make_model)


@pytest.fixture
def quick(monkeypatch):
    steps = command.demo_steps

    def demo_steps(*arguments):
        made = steps(*arguments)
        for each in made:
            if each.command[0] == "fit":
                each.command.extend(QUICK)
        return made

    monkeypatch.setattr(command, "demo_steps", demo_steps)


def statuses(folder):
    return {
        path.parent.name: json.loads(path.read_text())["status"] for path in folder.glob("*/manifest.json")
    }


def test_the_whole_demo_and_again(cli, model, quick, tmp_path):
    ended = cli("demo-smollm2", "--model", model)
    assert ended.code == 0, ended.err
    assert statuses(tmp_path / "runs") == dict.fromkeys(RUNS, "finished")
    for number in range(1, 5):
        assert f"[{number}/4] " in ended.out
    block = ended.out[ended.out.index("== People to forget") :]
    # Three forgotten, two kept and three general questions, each with truth and the answers of four models.
    assert len(re.findall(r"^  question ", block, re.MULTILINE)) == 8
    for name in ("truth", "as it came", "before", "after", "never saw"):
        assert len(re.findall(rf"^  {name}  ", block, re.MULTILINE)) == 8, name
    assert "The birth date is June 24, 1988." in block
    assert "truth       The capital is Canberra." in block
    assert re.search(r"^verdict: (forgotten|partly|not forgotten|cannot tell) ", block, re.MULTILINE)
    assert re.search(r"They (stay away|come back)", " ".join(block.split()))
    assert f"dipo-pl report {' '.join(f'runs/{name}' for name in RUNS)}" in block

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.json*")}
    again = cli("demo-smollm2", "--model", model)
    assert again.code == 0, again.err
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.json*")} == before
    assert again.out[again.out.index("== ") :].partition("Duration")[0] == block.partition("Duration")[0]


def test_a_demo_that_was_killed_goes_on(cli, killed, model, quick, tmp_path):
    def in_second_run(trainer):
        return RETAIN_ONLY in str(trainer.default_root_dir) and trainer.global_step == 1

    killed(in_second_run, "demo-smollm2", "--model", str(model), hook="on_train_batch_start")
    assert statuses(tmp_path / "runs") == {TARGET: "finished", RETAIN_ONLY: "running"}
    ended = cli("demo-smollm2", "--model", model)
    assert ended.code == 0, ended.err
    assert statuses(tmp_path / "runs") == dict.fromkeys(RUNS, "finished")


def test_a_step_that_fails_ends_the_demo_with_its_code(cli, model, monkeypatch):
    seen = []

    def run(words, debug):
        seen.append(words)
        return 7 if len(seen) == 2 else 0

    monkeypatch.setattr(command, "_run", run)
    assert cli("demo-smollm2", "--model", model, "--seed", "3").code == 7
    assert len(seen) == 2
    # Each seed has run folders of its own.
    assert all(
        "runs/seed-3" in words and words[words.index("--seed_everything") + 1] == "3" for words in seen
    )


def test_without_the_model_one_line_says_how_it_is_made(refused):
    line = refused("demo-smollm2")
    assert "pretrained/smollm2" in line
    assert "make pretrained" in line
    assert "--seed must be" in refused("demo-smollm2", "--seed", "-1")


def test_each_step_needs_only_what_those_before_it_leave(monkeypatch):
    monkeypatch.setattr("sys.argv", ["dipo-pl"])
    written = set()
    for step in command.demo_steps(Path("model"), Path("elsewhere"), 3):
        if step.command[0] == "relearn":
            assert {Path(word) for word in step.command[1:3]} <= written
            assert step.command[step.command.index("--seed") + 1] == "3"
            continue
        config = resolved(step.command)
        path = Path(config["model"]["init_args"]["policy"]["init_args"]["path"])
        assert path == Path("model") or path.parent in written
        retain_result = config["forget_quality"]["retain_result"]
        assert retain_result is None or Path(retain_result) in written
        assert config["seed_everything"] == 3
        written |= {Path("elsewhere") / name for name in step.runs}


@pytest.mark.parametrize(
    ("seconds", "done", "left", "text"),
    [
        (0, 0, 17, " (on two idle cores about 0:17:00 left)"),
        # Twice as slow as there.
        (600, 5, 6, " (about 0:12:00 left)"),
        (600, 5, 0.4, " (about 0:00:48 left)"),
        (600, 5, 0, ""),
    ],
)
def test_time_left(seconds, done, left, text):
    assert command._time_left(seconds, done, left) == text


def made_run(folder, records, sets):
    """Write a run folder with these evaluations, of which each holds the rows of `sets`."""
    (folder / "evaluation").mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"status": "finished", "verdict": "partly"}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    for each in records:
        result = {"convention": "dipo_pl", "metrics": each, "sets": sets(each["step"])}
        (folder / "evaluation" / f"step-{each['step']:06d}.json").write_text(json.dumps(result))


@pytest.mark.parametrize(
    ("relearned", "words"),
    [
        # (.9 - .41) / (.9 - .3) = .82 of the way to a model that never saw them is left.
        (0.41, "They stay away"),
        (0.43, "They come back"),
    ],
)
def test_answers_of_made_runs(tmp_path, relearned, words):
    def sets(said):
        rows = [
            {
                "question": f"question {place}?",
                "answers": [f"truth {place}"],
                "generation": said,
                "rouge_l_recall": share,
            }
            for place, share in enumerate([1.0, 0.99, 1.0, 0.5, 0.0, 0.0, 0.0, 0.0])
        ]
        return {
            name: {"metrics": {"probability": 0.25}, "rows": rows}
            for name in ("forget", "retain", "holdout", "world_facts")
        }

    points = {
        TARGET: [{"step": 0}, {"step": 80}],
        RETAIN_ONLY: [{"step": 0}, {"step": 64}],
        UNLEARNED: [{"step": 0, "forget_probability": 0.9}, {"step": 20}],
        RELEARNED[0]: [
            {"step": 0, "relearned_probability": 0.31, "held_back_probability": 0.29},
            {"step": 10, "relearned_probability": 0.8, "held_back_probability": relearned},
        ],
        RELEARNED[1]: [
            {"step": 0, "relearned_probability": 0.21, "held_back_probability": 0.22},
            {"step": 10, "relearned_probability": 0.6, "held_back_probability": 0.3},
        ],
    }
    for name, records in points.items():
        made_run(tmp_path / name, records, lambda step, name=name: sets(f"{name} at {step}"))
    text = answers(tmp_path)
    for name, said in {
        "as it came": f"{TARGET} at 0",
        "before": f"{UNLEARNED} at 0",
        "after": f"{UNLEARNED} at 20",
    }.items():
        assert len(re.findall(rf"^  {name} +{said}$", text, re.MULTILINE)) == 8
    assert len(re.findall(rf"^  never saw +{RETAIN_ONLY} at 64$", text, re.MULTILINE)) == 8
    assert text.count("2 of 8, 0.250") == 16
    assert "verdict: partly" in text
    assert re.search(rf"^ *10 +0.800 +{relearned:.3f} +0.600 +0.300$", text, re.MULTILINE), text
    assert words in " ".join(text.split())
    # But for the path of the run, no line is wider than where there is no terminal.
    assert max(len(line) for line in text.splitlines() if str(tmp_path) not in line) <= 100
