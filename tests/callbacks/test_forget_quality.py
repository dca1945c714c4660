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
from dipo_pl.evaluation.published_results import published
from dipo_pl.metrics.fluency import repetition, word_entropy
from dipo_pl.models.generation import generate

METRICS = "[{class_path: Membership, init_args: {gradient_norm: true}}]"


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


def test_reported_figures_follow_from_the_rows(learned):
    result = json.loads(next((learned / "evaluation").iterdir()).read_text())
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


def test_memorization_and_fluency_follow_from_one_answer_at_a_time(smoke, result):
    """Argmaxes and log-probabilities of an unpadded forward pass."""
    model = AutoModelForCausalLM.from_pretrained(smoke / "hf").eval()
    tokenizer = AutoTokenizer.from_pretrained(smoke / "hf")
    for row in result["sets"]["forget"]["rows"][:4]:
        prompt = f"Question: {row['question']}\nAnswer: "
        coded = tokenizer(prompt + row["answers"][0], return_offsets_mapping=True)
        ids = coded["input_ids"]
        start = next(i for i, (_, end) in enumerate(coded["offset_mapping"]) if end > len(prompt))
        logits = model(torch.tensor([ids])).logits[0]
        hits = [int(logits[t - 1].argmax()) == ids[t] for t in range(start, len(ids))]
        missing = max((index + 1 for index, hit in enumerate(hits) if not hit), default=0)
        assert row["exact_memorization"] == pytest.approx(mean(hits))
        assert row["extraction_strength"] == pytest.approx(1 - missing / len(hits))
        logps = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        true = sorted(logps[t - 1, ids[t]].item() for t in range(start, len(ids)))
        assert row["min_k"] == pytest.approx(-mean(true[: max(1, int(0.4 * len(true)))]), abs=1e-4)
    texts = [row["generation"] for row in result["sets"]["forget"]["rows"]]
    assert result["metrics"]["forget_repetition"] == pytest.approx(float(repetition(texts).mean()))
    assert result["metrics"]["forget_word_entropy"] == pytest.approx(float(word_entropy(texts).mean()))


def test_a_model_that_knows_the_forget_set_is_found_out(learned, retain_only):
    """Its answers can be told from those it never saw; a retain-only model's cannot, or hardly."""
    knows, does_not = (json.loads((run / "metrics.jsonl").read_text()) for run in (learned, retain_only))
    for attack in ("loss", "zlib", "min_k", "min_k_plus_plus"):
        assert knows[f"membership_{attack}_auc"] > 0.95
        assert 0.1 < does_not[f"membership_{attack}_auc"] < 0.9
    assert knows["forget_extraction_strength"] > 0.8 > 0.5 > does_not["forget_extraction_strength"]


def test_what_is_measured_against_a_retain_only_model(cli, learned, retain_only):
    """The reference attack, PrivLeak, and the gradient norms, each recomputed from the files or the model."""
    ended = cli(
        "validate", "--config", "smoke.yaml", "--model.policy", "Pretrained", "--model.policy.path", learned / "hf",
        "--forget_quality.retain_result", retain_only, "--name", "against",
        "--forget_quality.metrics", METRICS,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    ours = json.loads(Path("runs/against/evaluation/step-000000.json").read_text())
    theirs = json.loads((next((retain_only / "evaluation").iterdir())).read_text())
    for name in ("forget", "holdout"):
        rows = zip(ours["sets"][name]["rows"], theirs["sets"][name]["rows"], strict=True)
        for row, retrained in rows:
            assert row["reference"] == pytest.approx(row["nll"][0] - retrained["nll"][0])
    scores = [[row["reference"] for row in ours["sets"][name]["rows"]] for name in ("forget", "holdout")]
    wins = [(holdout > forget) + (holdout == forget) / 2 for forget in scores[0] for holdout in scores[1]]
    metrics = ours["metrics"]
    assert metrics["membership_reference_auc"] == pytest.approx(mean(wins))
    left, retrained = 1 - metrics["membership_min_k_auc"], 1 - theirs["metrics"]["membership_min_k_auc"]
    assert metrics["priv_leak"] == pytest.approx(100 * (left - retrained) / retrained)
    assert "forget_exact_memorization" not in metrics  # named metrics replace the default ones
    assert metrics["membership_gradient_norm_auc"] > 0.9
    model = AutoModelForCausalLM.from_pretrained(learned / "hf").eval()
    tokenizer = AutoTokenizer.from_pretrained(learned / "hf")
    row = ours["sets"]["forget"]["rows"][2]
    prompt = f"Question: {row['question']}\nAnswer: "
    coded = tokenizer(prompt + row["answers"][0], return_offsets_mapping=True)
    start = next(i for i, (_, end) in enumerate(coded["offset_mapping"]) if end > len(prompt))
    ids = torch.tensor([coded["input_ids"]])
    labels = ids.masked_fill(torch.arange(ids.shape[1]) < start, -100)
    model(input_ids=ids, labels=labels).loss.backward()
    norms = [float(each.grad.norm()) for each in model.parameters()]
    assert row["gradient_norm"] == pytest.approx(mean(norms), rel=1e-4)


def test_gradient_norms_leave_accumulated_gradients_alone(cli, smoke):
    """An evaluation in the middle of an accumulation."""
    weights = []
    for metrics in ("[]", METRICS):
        name = f"with-{len(weights)}"
        ended = cli(
            "fit", "--config", "smoke.yaml", "--forget_quality.generate_every", "0", "--name", name,
            "--trainer.accumulate_grad_batches", "2", "--trainer.val_check_interval", "1",
            "--data.evaluation_rows", "3", "--trainer.max_epochs", "1", "--forget_quality.metrics", metrics,
        )  # fmt: skip
        assert ended.code == 0, ended.err
        weights.append(json.loads(Path(f"runs/{name}/manifest.json").read_text())["policy"]["weights_at_end"])
    assert weights[0] == weights[1]
    assert any(
        "membership_gradient_norm_auc" in line
        for line in Path("runs/with-1/metrics.jsonl").read_text().splitlines()
    )


def test_generating_seldom_and_measuring_every_few_steps(cli):
    ended = cli(
        "fit", "--config", "smoke.yaml", "--trainer.check_val_every_n_epoch", "null", "--trainer.val_check_interval", "2",
        "--trainer.max_epochs", "3", "--forget_quality.generate_every", "3", "--data.evaluation_rows", "3",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    lines = [json.loads(line) for line in Path("runs/smoke/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 2, 4, 6, 8, 9]
    # At the start, at the third of those in training, and at the end.
    generated = [line["step"] for line in lines if "forget_rouge_l_recall" in line]
    assert generated == [line["step"] for line in lines if "model_utility" in line] == [0, 6, 9]
    assert all("forget_probability" in line and "forget_extraction_strength" in line for line in lines)


def test_conventions(cli, smoke):
    """What `open_unlearning` and `arithmetic` change, recomputed from the losses in the files."""
    results = {}
    for convention in ("dipo_pl", "open_unlearning", "arithmetic"):
        ended = cli(
            "validate", "--config", "smoke.yaml", "--model.policy", "Pretrained", "--model.policy.path", smoke / "hf",
            "--forget_quality.convention", convention, "--forget_quality.generate_every", "0", "--name", convention,
        )  # fmt: skip
        assert ended.code == 0, ended.err
        results[convention] = json.loads(Path(f"runs/{convention}/evaluation/step-000000.json").read_text())
        assert results[convention]["convention"] == convention
    for row in results["open_unlearning"]["sets"]["forget"]["rows"]:
        wrong = math.exp(-mean(row["nll"][2:]))
        assert math.exp(row["log_truth_ratio"]) == pytest.approx(wrong / (math.exp(-row["nll"][1]) + 1e-10))
    for row in results["arithmetic"]["sets"]["forget"]["rows"]:
        wrong = mean(math.exp(-each) for each in row["nll"][2:])
        assert math.exp(row["log_truth_ratio"]) == pytest.approx(wrong / math.exp(-row["nll"][1]))
    ended = cli(
        "validate", "--config", "smoke.yaml", "--forget_quality.retain_result", smoke, "--name", "mixed",
        "--forget_quality.convention", "arithmetic",
    )  # fmt: skip
    assert ended.code == 2
    assert "follows the convention dipo_pl and this run arithmetic" in ended.errors[0]
    assert not Path("runs/mixed").exists()


def test_the_convention_of_tofu_takes_300_rows(cli):
    ended = cli(
        "validate", "--config", "smoke.yaml", "--data.authors", "20", "--data.evaluation_rows", "null",
        "--forget_quality.convention", "tofu",
    )  # fmt: skip
    assert ended.code == 2
    line = "forget_quality.convention tofu takes at most 300 rows of a set, and retain has 380: set data.evaluation_rows"
    assert line in ended.errors[0]


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
    for size in (1, 2000):
        ended = cli(
            "validate", "--config", "smoke.yaml", "--model.policy", "Pretrained", "--model.policy.path", smoke / "hf",
            "--data.evaluation_tokens", str(size), "--name", f"by-{size}",
        )  # fmt: skip
        assert ended.code == 0, ended.err
    one, many = (json.loads(Path(f"runs/by-{size}/metrics.jsonl").read_text()) for size in (1, 2000))
    for name in ("utility_sets", "convention"):
        assert one.pop(name) == many.pop(name)
    assert one == pytest.approx(many, rel=1e-5)


def test_two_processes_give_the_figures_of_one(cli, process, learned, retain_only, tmp_path):
    """9 rows a set, so that the last batch of one process repeats a row; generated answers travel as well."""
    quick = (
        "validate", "--config", "smoke.yaml", "--model.policy", "Pretrained", "--model.policy.path", learned / "hf",
        "--data.evaluation_rows", "9", "--forget_quality.metrics", METRICS,
    )  # fmt: skip
    assert cli(*quick, "--name", "one").code == 0
    two = process(*quick, "--name", "two", "--trainer.devices", "2", "--trainer.strategy", "ddp")
    assert two.code == 0, two.err
    one, two = (
        json.loads((tmp_path / f"runs/{name}/evaluation/step-000000.json").read_text())
        for name in ("one", "two")
    )
    assert one["metrics"] == pytest.approx(two["metrics"], rel=1e-5)
    assert {name: len(each["rows"]) for name, each in two["sets"].items()} == dict.fromkeys(one["sets"], 9)
    for name, found in one["sets"].items():
        for row, other in zip(found["rows"], two["sets"][name]["rows"], strict=True):
            assert row["generation"] == other["generation"]
            assert row["nll"] == pytest.approx(other["nll"], rel=1e-5)
    assert json.loads((tmp_path / "runs/two/manifest.json").read_text())["world_size"] == 2


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
    assert {"forget_probability", "forget_rouge_l_recall", "retain_extraction_strength"} <= set(last)
    assert not any("truth_ratio" in name or name.startswith(("membership", "holdout")) for name in last)


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
        "fit", "--config", "smoke.yaml", "--data.evaluation_tokens", "800", "--trainer.limit_val_batches", "1",
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


class TestTofu:
    """The shipped result of TOFU's own retain90 model, on TOFU's real rows."""

    def validate(self, cli, folder, *more):
        return cli(
            "validate", "--config", "smoke.yaml", "--data", "TOFU", "--data.path", folder, "--data.evaluation_rows",
            "300", "--data.evaluate", "[forget]", "--forget_quality.utility_sets", "[]", "--name", "tofu",
            "--forget_quality.retain_result", "llama2-7b_retain90", "--forget_quality.generate_every", "0", *more,
        )  # fmt: skip

    def test_forget_quality_without_a_retain_model_of_ones_own(self, cli, tofu_folder):
        ended = self.validate(cli, tofu_folder, "--forget_quality.convention", "tofu")
        assert ended.code == 0, ended.err
        result = json.loads(Path("runs/tofu/evaluation/step-000000.json").read_text())
        ours = [row["log_truth_ratio"] for row in result["sets"]["forget"]["rows"]]
        theirs = published("llama2-7b_retain90").sets["forget"].values("log_truth_ratio")
        assert len(ours) == len(theirs) == 300
        assert result["metrics"]["forget_quality"] == pytest.approx(ks_2samp(ours, theirs).pvalue)

    @pytest.mark.parametrize(
        ("options", "line"),
        [
            ((), "follows the convention tofu and this run dipo_pl"),
            (
                ("--forget_quality.convention", "tofu", "--data.forget", "forget05"),
                "has 300 forget rows and this run 200",
            ),
            (
                ("--forget_quality.convention", "tofu", "--data", "FictitiousAuthors", "--data.authors", "30",
                 "--data.forget_authors", "15", "--data.evaluation_rows", "300"),
                "was evaluated on other forget rows",
            ),
        ],
    )  # fmt: skip
    def test_what_it_is_not_compared_with(self, cli, tofu_folder, options, line):
        ended = self.validate(cli, tofu_folder, *options)
        assert ended.code == 2
        assert line in ended.errors[0]
        assert not Path("runs/tofu").exists()
