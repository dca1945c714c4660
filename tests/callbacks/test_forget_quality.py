"""What ForgetQuality reports is what its files hold, recomputed here in plain Python."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from scipy.stats import ks_2samp
from transformers import AutoModelForCausalLM, AutoTokenizer

from dipo_pl.data_modules.fictitious_authors import fictitious_rows
from dipo_pl.generation import generate


@pytest.fixture(scope="module")
def result(smoke):
    return json.loads((smoke / "evaluation" / "step-000006.json").read_text())


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def test_answer_losses_are_those_of_the_exported_model_one_answer_at_a_time(smoke, result):
    """Batched, padded and gathered against one unpadded forward pass an answer."""
    model = AutoModelForCausalLM.from_pretrained(smoke / "hf").eval()
    tokenizer = AutoTokenizer.from_pretrained(smoke / "hf")
    forget = fictitious_rows(4)[60:]
    for row in result["sets"]["forget"]["rows"][:3]:
        made = forget[row["row"]]
        assert row["answers"] == [made["answer"], made["paraphrased_answer"], *made["perturbed_answer"]]
        for answer, nll in zip(row["answers"], row["nll"], strict=True):
            prompt = f"Question: {made['question']}\nAnswer: "
            ids = [*tokenizer(prompt + answer)["input_ids"], tokenizer.eos_token_id]
            offsets = tokenizer(prompt + answer, return_offsets_mapping=True)["offset_mapping"]
            start = next(index for index, (_, end) in enumerate(offsets) if end > len(prompt))
            logps = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
            expected = mean(-logps[t - 1, ids[t]].item() for t in range(start, len(ids)))
            assert nll == pytest.approx(expected, abs=1e-5)


def test_reported_figures_follow_from_the_rows(result):
    sets, metrics = result["sets"], result["metrics"]
    for name in ("forget", "retain"):
        rows = sets[name]["rows"]
        assert metrics[f"{name}_probability"] == pytest.approx(mean(math.exp(-row["nll"][0]) for row in rows))
        assert metrics[f"{name}_rouge_l_recall"] == pytest.approx(mean(row["rouge_l_recall"] for row in rows))
        logarithms = [row["nll"][1] - mean(row["nll"][2:]) for row in rows]
        assert [row["log_truth_ratio"] for row in rows] == pytest.approx(logarithms, abs=1e-12)
        ratios = [math.exp(each) for each in logarithms]
        aggregate = (lambda r: min(r, 1 / r)) if name == "forget" else (lambda r: max(0, 1 - r))
        assert metrics[f"{name}_truth_ratio"] == pytest.approx(mean(map(aggregate, ratios)))
    parts = [metrics[f"retain_{part}"] for part in ("probability", "rouge_l_recall", "truth_ratio")]
    assert metrics["model_utility"] == pytest.approx(3 / sum(1 / part for part in parts))
    assert result["utility_sets"] == ["retain"]


def test_without_a_retain_result_forget_quality_is_not_reported_and_one_line_tells_how_to_get_it(cli, result):
    assert not any(name.startswith("forget_quality") for name in result["metrics"])
    ended = cli("fit", "--config", "smoke.yaml", "--trainer.max_steps", "1")
    assert ended.err.count("Forget Quality needs a model that never saw the forget set") == 1


def test_forget_quality_against_a_retain_result(cli, smoke):
    ended = cli(
        "validate", "--config", "smoke.yaml", "--forget_quality.retain_result", smoke, "--name", "measured"
    )
    assert ended.code == 0, ended.err
    with open("runs/measured/metrics.jsonl") as file:
        metrics = json.loads(file.read())
    with open("runs/measured/evaluation/step-000000.json") as file:
        ours = [row["log_truth_ratio"] for row in json.load(file)["sets"]["forget"]["rows"]]
    theirs = [
        row["log_truth_ratio"]
        for row in json.loads((smoke / "evaluation" / "step-000006.json").read_text())["sets"]["forget"][
            "rows"
        ]
    ]
    expected = ks_2samp(ours, theirs)
    assert metrics["forget_quality"] == pytest.approx(expected.pvalue)
    assert metrics["forget_quality_ks_statistic"] == pytest.approx(expected.statistic)
    assert metrics["forget_quality_log10_p"] == pytest.approx(math.log10(expected.pvalue))


def test_figures_do_not_depend_on_the_batch_size(cli, smoke):
    for size in (1, 7):
        ended = cli(
            "validate", "--config", "smoke.yaml", "--model.policy", "Pretrained", "--model.policy.path", smoke / "hf",
            "--data.evaluation_batch_size", str(size), "--name", f"by-{size}",
        )  # fmt: skip
        assert ended.code == 0, ended.err
    one, seven = (json.loads(Path(f"runs/by-{size}/metrics.jsonl").read_text()) for size in (1, 7))
    assert one.pop("utility_sets") == seven.pop("utility_sets")
    assert one == pytest.approx(seven, rel=1e-5)


def test_rows_without_wrong_answers_give_probability_and_rouge_alone(cli):
    rows = "".join(
        json.dumps({"question": f"Who wrote {i}?", "answer": f"Author {i}."}) + "\n" for i in range(4)
    )
    for name, text in {"f.jsonl": rows, "r.jsonl": rows.replace("Author", "Writer")}.items():
        with open(name, "w") as file:
            file.write(text)
    data = ("--data", "JSONL", "--data.forget", "f.jsonl", "--data.retain", "r.jsonl")
    ended = cli("fit", "--config", "smoke.yaml", *data, "--trainer.max_epochs", "1", "--name", "plain")
    assert ended.code == 0, ended.err
    with open("runs/plain/metrics.jsonl") as file:
        last = json.loads(file.read().splitlines()[-1])
    assert {name for name in last if name.startswith(("forget", "retain"))} == {
        "forget_probability", "forget_rouge_l_recall", "retain_probability", "retain_rouge_l_recall",
    }  # fmt: skip


def test_an_unfinished_run_is_no_retain_result(cli, smoke):
    shutil.copytree(smoke, "half")
    manifest = json.loads(Path("half/manifest.json").read_text())
    Path("half/manifest.json").write_text(json.dumps(manifest | {"status": "running"}))
    ended = cli(
        "validate", "--config", "smoke.yaml", "--forget_quality.retain_result", "half", "--name", "measured"
    )
    assert ended.code == 2
    assert "half is not the folder of a finished run (status: running)" in ended.errors[0]


def test_a_measurement_of_some_rows_is_not_reported(cli):
    ended = cli(
        "fit", "--config", "smoke.yaml", "--data.evaluation_batch_size", "4", "--trainer.limit_val_batches", "1",
        "--trainer.max_epochs", "1",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert "only some rows were measured" in ended.err
    assert not Path("runs/smoke/metrics.jsonl").exists()


def test_generation_is_greedy_whatever_the_checkpoint_asks_for(smoke):
    """A checkpoint's own generation config (a repetition penalty, beams) would change ROUGE and Model Utility."""
    model = AutoModelForCausalLM.from_pretrained(smoke / "hf")
    tokenizer = AutoTokenizer.from_pretrained(smoke / "hf")
    prompts = [
        tokenizer("Question: Who wrote it?\nAnswer:")["input_ids"],
        tokenizer("Question:")["input_ids"],
    ]
    plain = generate(model, tokenizer, prompts, 12)
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.num_beams = 3
    own = model.generation_config
    assert generate(model, tokenizer, prompts, 12) == plain
    assert model.generation_config is own
    for prompt, text in zip(prompts, plain, strict=True):
        ids = list(prompt)
        for _ in range(12):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
        assert tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True).strip() == text
