"""What ForgetQuality reports is what its files hold, recomputed here in plain Python."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from scipy.stats import ks_2samp
from transformers import AutoModelForCausalLM, AutoTokenizer

from dipo_pl.callbacks.forget_quality import ForgetQuality
from dipo_pl.data_modules.fictitious_authors import fictitious_rows
from dipo_pl.errors import InputError, TrainingError
from dipo_pl.evaluation.published_results import published
from dipo_pl.metrics import Membership, Observations, Probability
from dipo_pl.metrics.fluency import repetition, word_entropy
from dipo_pl.models.generation import generate

NORMS = ("--forget_quality.metrics", "[{class_path: Membership, init_args: {gradient_norm: true}}]")
NO_ANSWERS = ("--forget_quality.generate_every", "0")


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def evaluation(run, step=0):
    return json.loads((Path(run) / "evaluation" / f"step-{step:06d}.json").read_text())


def lines(run):
    return [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]


def measured(cli, name, policy, *options):
    """Return the result of an evaluation of a model, in the run folder `name`."""
    given = () if policy is None else ("--model.policy", "Pretrained", "--model.policy.path", policy / "hf")
    ended = cli("validate", "--config", "smoke.yaml", *given, "--name", name, *options)
    assert ended.code == 0, ended.err
    return evaluation(f"runs/{name}")


@pytest.fixture(scope="module")
def result(smoke):
    return evaluation(smoke, 6)


@pytest.fixture(scope="module")
def logits_of(smoke):
    """Return a function from question and answer to the answer's ids, end of sequence included, and their logits."""
    model = AutoModelForCausalLM.from_pretrained(smoke / "hf").eval()
    tokenizer = AutoTokenizer.from_pretrained(smoke / "hf")

    def logits(question, answer):
        """One unpadded forward pass an answer."""
        prompt = f"Question: {question}\nAnswer: "
        coded = tokenizer(prompt + answer, return_offsets_mapping=True)
        ids = [*coded["input_ids"], tokenizer.eos_token_id]
        start = next(index for index, (_, end) in enumerate(coded["offset_mapping"]) if end > len(prompt))
        return ids[start:], model(torch.tensor([ids])).logits[0, start - 1 : -1].double()

    return logits


def test_answer_losses_are_those_of_the_exported_model_one_answer_at_a_time(result, logits_of):
    forget = fictitious_rows(4)[60:]
    for row in result["sets"]["forget"]["rows"][:3]:
        made = forget[row["row"]]
        assert row["answers"] == [made["answer"], made["paraphrased_answer"], *made["perturbed_answer"]]
        for answer, nll in zip(row["answers"], row["nll"], strict=True):
            ids, logits = logits_of(made["question"], answer)
            expected = -logits.log_softmax(-1)[range(len(ids)), ids].mean().item()
            assert nll == pytest.approx(expected, abs=1e-5)


def test_memorization_and_fluency_follow_from_one_answer_at_a_time(result, logits_of):
    for row in result["sets"]["forget"]["rows"][:4]:
        # Without what closes the answer.
        ids, logits = (each[:-1] for each in logits_of(row["question"], row["answers"][0]))
        hits = [int(each.argmax()) == token for each, token in zip(logits, ids, strict=True)]
        missing = max((index + 1 for index, hit in enumerate(hits) if not hit), default=0)
        assert row["exact_memorization"] == pytest.approx(mean(hits))
        assert row["extraction_strength"] == pytest.approx(1 - missing / len(hits))
        true = sorted(logits.log_softmax(-1)[range(len(ids)), ids].tolist())
        assert row["min_k"] == pytest.approx(-mean(true[: max(1, int(0.4 * len(true)))]), abs=1e-4)
    texts = [row["generation"] for row in result["sets"]["forget"]["rows"]]
    assert result["metrics"]["forget_repetition"] == pytest.approx(float(repetition(texts).mean()))
    assert result["metrics"]["forget_word_entropy"] == pytest.approx(float(word_entropy(texts).mean()))


def test_reported_metrics_follow_from_the_rows(learned):
    result = json.loads(next((learned / "evaluation").iterdir()).read_text())
    metrics = result["metrics"]
    for name in ("forget", "retain"):
        rows = result["sets"][name]["rows"]
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


def test_a_model_that_knows_the_forget_set_is_found_out(learned, retain_only):
    """Its answers can be told from those it never saw; a retain-only model's cannot, or hardly."""
    (knows,), (does_not,) = lines(learned), lines(retain_only)
    for attack in ("loss", "zlib", "min_k", "min_k_plus_plus"):
        assert knows[f"membership_{attack}_auc"] > 0.95
        assert 0.1 < does_not[f"membership_{attack}_auc"] < 0.9
    assert knows["forget_extraction_strength"] > 0.8 > 0.5 > does_not["forget_extraction_strength"]


def test_what_is_measured_against_a_retain_only_model(cli, learned, retain_only):
    """The reference attack, PrivLeak, and the gradient norms, each recomputed from the files or the model."""
    ours = measured(cli, "against", learned, "--forget_quality.retain_result", retain_only, *NORMS)
    theirs = json.loads((next((retain_only / "evaluation").iterdir())).read_text())
    for name in ("forget", "holdout"):
        for row, retrained in zip(ours["sets"][name]["rows"], theirs["sets"][name]["rows"], strict=True):
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
    model(input_ids=ids, labels=ids.masked_fill(torch.arange(ids.shape[1]) < start, -100)).loss.backward()
    norms = [float(each.grad.norm()) for each in model.parameters()]
    assert row["gradient_norm"] == pytest.approx(mean(norms), rel=1e-4)


def test_forget_quality_against_a_retain_result(cli, smoke, result):
    found = measured(cli, "against", None, "--forget_quality.retain_result", smoke, *NO_ANSWERS)
    ours, theirs = (
        [row["log_truth_ratio"] for row in each["sets"]["forget"]["rows"]] for each in (found, result)
    )
    expected = ks_2samp(ours, theirs)
    assert found["metrics"]["forget_quality"] == pytest.approx(expected.pvalue)
    assert found["metrics"]["forget_quality_ks_statistic"] == pytest.approx(expected.statistic)
    assert found["metrics"]["forget_quality_log10_p"] == pytest.approx(math.log10(expected.pvalue))


def test_gradient_norms_leave_accumulated_gradients_alone(cli, smoke):
    """An evaluation in the middle of an accumulation."""
    weights = []
    for name, metrics in (("without", ("--forget_quality.metrics", "[]")), ("with", NORMS)):
        ended = cli(
            "fit", "--config", "smoke.yaml", *NO_ANSWERS, "--name", name, *metrics,
            "--trainer.accumulate_grad_batches", "2", "--trainer.val_check_interval", "1",
            "--data.evaluation_rows", "3", "--trainer.max_epochs", "1",
        )  # fmt: skip
        assert ended.code == 0, ended.err
        weights.append(json.loads(Path(f"runs/{name}/manifest.json").read_text())["policy"]["weights_at_end"])
    assert weights[0] == weights[1]
    assert any("membership_gradient_norm_auc" in line for line in lines("runs/with"))


def test_generating_seldom_and_measuring_every_few_steps(cli):
    ended = cli(
        "fit", "--config", "smoke.yaml", "--trainer.check_val_every_n_epoch", "null", "--trainer.val_check_interval", "2",
        "--trainer.max_epochs", "3", "--forget_quality.generate_every", "3", "--data.evaluation_rows", "3",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    found = lines("runs/smoke")
    assert [line["step"] for line in found] == [0, 2, 4, 6, 8, 9]
    # At the start, at the third of those in training, and at the end.
    generated = [line["step"] for line in found if "forget_rouge_l_recall" in line]
    assert generated == [line["step"] for line in found if "model_utility" in line] == [0, 6, 9]
    assert all("forget_probability" in line and "forget_extraction_strength" in line for line in found)
    # Without a retain result Forget Quality is not reported, and one line tells how to get it.
    assert not any(name.startswith("forget_quality") for line in found for name in line)
    assert ended.err.count("Forget Quality is not measured: it needs a retain-only model\n") == 1


def test_conventions(cli, smoke):
    """What `open_unlearning` and `arithmetic` change, recomputed from the losses in the files."""
    found = {}
    for convention in ("open_unlearning", "arithmetic"):
        options = ("--forget_quality.convention", convention, *NO_ANSWERS)
        found[convention] = measured(cli, convention, smoke, *options)
        assert found[convention]["convention"] == convention
    for row in found["open_unlearning"]["sets"]["forget"]["rows"]:
        wrong = math.exp(-mean(row["nll"][2:]))
        assert math.exp(row["log_truth_ratio"]) == pytest.approx(wrong / (math.exp(-row["nll"][1]) + 1e-10))
    for row in found["arithmetic"]["sets"]["forget"]["rows"]:
        wrong = mean(math.exp(-each) for each in row["nll"][2:])
        assert math.exp(row["log_truth_ratio"]) == pytest.approx(wrong / math.exp(-row["nll"][1]))


def unfinished(run):
    shutil.copytree(run, "half")
    manifest = json.loads(Path("half/manifest.json").read_text())
    Path("half/manifest.json").write_text(json.dumps(manifest | {"status": "running"}))
    return "half"


@pytest.mark.parametrize(("options", "line"), [
    (lambda run: ("--forget_quality.retain_result", run, "--forget_quality.convention", "arithmetic"),
     "follows the convention dipo_pl and this run arithmetic"),
    (lambda run: ("--forget_quality.retain_result", unfinished(run)),
     "half is not the folder of a finished run (status: running)"),
    (lambda run: ("--data.authors", "20", "--data.evaluation_rows", "null", "--forget_quality.convention", "tofu"),
     "forget_quality.convention tofu takes at most 300 rows of a set, and retain has 380: set data.evaluation_rows"),
])  # fmt: skip
def test_what_it_refuses_before_anything_is_written(cli, smoke, options, line):
    ended = cli("validate", "--config", "smoke.yaml", "--name", "refused", *options(smoke))
    assert ended.code == 2
    assert line in ended.errors[0]
    assert not Path("runs/refused").exists()


@pytest.mark.parametrize("metrics", [[Membership(), Membership(0.2)], [Probability()]])
def test_a_metric_is_named_once(metrics):
    with pytest.raises(
        InputError, match=r"forget_quality\.metrics would have (Membership|Probability) twice"
    ):
        ForgetQuality(metrics=metrics)


def test_a_loss_that_is_not_finite_on_another_rank_ends_the_run_on_this_one():
    asked = []

    def any_rank(here, all):
        asked.append((here, all))
        return True

    trainer = SimpleNamespace(strategy=SimpleNamespace(reduce_boolean_decision=any_rank), global_step=3)
    for loss, broken in ((1.0, False), (math.nan, True), (math.inf, True)):
        seen = Observations(torch.tensor([0]), nll=torch.tensor([[1.0, loss]]))
        with pytest.raises(TrainingError, match="an answer's loss is not finite at step 3"):
            ForgetQuality().on_validation_batch_end(trainer, None, {"observations": seen}, None, 0)
        assert asked.pop() == (broken, False)


def test_metrics_do_not_depend_on_the_batch_size(cli, smoke):
    one, many = (
        measured(cli, f"by-{size}", smoke, "--data.evaluation_tokens", str(size))["metrics"]
        for size in (1, 2000)
    )
    assert one == pytest.approx(many, rel=1e-5)


def test_two_ranks_give_the_metrics_of_one(cli, process, learned, tmp_path):
    """9 rows a set, so that the last batch of one rank repeats a row; generated answers travel as well."""
    quick = ("--data.evaluation_rows", "9", *NORMS)
    one = measured(cli, "one", learned, *quick)
    ended = process(
        "validate", "--config", "smoke.yaml", "--model.policy", "Pretrained", "--model.policy.path", learned / "hf",
        *quick, "--name", "two", "--trainer.devices", "2", "--trainer.strategy", "ddp",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    two = evaluation(tmp_path / "runs/two")
    assert one["metrics"] == pytest.approx(two["metrics"], rel=1e-5)
    for name, found in one["sets"].items():
        assert len(two["sets"][name]["rows"]) == 9
        for row, other in zip(found["rows"], two["sets"][name]["rows"], strict=True):
            assert row["generation"] == other["generation"]
            assert row["nll"] == pytest.approx(other["nll"], rel=1e-5)
    assert json.loads((tmp_path / "runs/two/manifest.json").read_text())["world_size"] == 2


def test_rows_without_wrong_answers_give_probability_and_rouge_alone(cli):
    rows = "".join(
        json.dumps({"question": f"Who wrote {i}?", "answer": f"Author {i}."}) + "\n" for i in range(4)
    )
    Path("f.jsonl").write_text(rows)
    Path("r.jsonl").write_text(rows.replace("Author", "Writer"))
    data = ("--data", "JSONL", "--data.forget", "f.jsonl", "--data.retain", "r.jsonl")
    last = measured(cli, "plain", None, *data)["metrics"]
    assert {"forget_probability", "forget_rouge_l_recall", "retain_extraction_strength"} <= set(last)
    assert not any("truth_ratio" in name or name.startswith(("membership", "holdout")) for name in last)


OWN = """
import torch
from dipo_pl.metrics import EvaluationMetric

class AnswerLength(EvaluationMetric):
    inputs = ("generation",)

    def per_row(self, seen):
        return {"words": torch.tensor([len(text.split()) for text in seen.generation], dtype=torch.float64)}

    def across(self, sets, retain):
        return {"words_in_all": sum(sum(found.values("words")) for found in sets.values())}
"""


def test_a_metric_of_ones_own_is_a_config_line_and_the_report_shows_it(cli, monkeypatch):
    Path("answer_length.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(Path().resolve()))
    found = measured(
        cli, "own", None, "--forget_quality.metrics", "[answer_length.AnswerLength, Memorization]"
    )
    words = {
        name: [len(row["generation"].split()) for row in each["rows"]] for name, each in found["sets"].items()
    }
    for name, each in found["sets"].items():
        assert [row["words"] for row in each["rows"]] == words[name]
        assert found["metrics"][f"{name}_words"] == pytest.approx(mean(words[name]))
    assert found["metrics"]["words_in_all"] == sum(map(sum, words.values()))
    report = cli("report", "runs/own", "--format", "csv")
    assert report.code == 0, report.err
    assert "forget_words" in report.out
    assert "words_in_all" in report.out


def test_a_measurement_of_some_rows_is_not_reported(cli):
    some = ("--data.evaluation_tokens", "800", "--trainer.limit_val_batches", "1")
    ended = cli("fit", "--config", "smoke.yaml", *some, "--trainer.max_epochs", "1")
    assert ended.code == 0, ended.err
    assert "only some rows were measured" in ended.err
    assert not Path("runs/smoke/metrics.jsonl").exists()


def test_generation_is_greedy_whatever_the_checkpoint_asks_for(smoke):
    """A checkpoint's own generation config (a repetition penalty, beams) would change ROUGE and Model Utility."""
    model = AutoModelForCausalLM.from_pretrained(smoke / "hf")
    tokenizer = AutoTokenizer.from_pretrained(smoke / "hf")
    prompts = [tokenizer(text)["input_ids"] for text in ("Question: Who wrote it?\nAnswer:", "Question:")]
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

    def options(self, folder):
        return (
            "--data", "TOFU", "--data.path", folder, "--data.evaluation_rows", "300", "--data.evaluate", "[forget]",
            "--forget_quality.utility_sets", "[]", "--forget_quality.retain_result", "llama2-7b_retain90", *NO_ANSWERS,
        )  # fmt: skip

    def test_forget_quality_without_a_retain_model_of_ones_own(self, cli, tofu_folder):
        result = measured(
            cli, "tofu", None, *self.options(tofu_folder), "--forget_quality.convention", "tofu"
        )
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
        ended = cli(
            "validate", "--config", "smoke.yaml", *self.options(tofu_folder), *options, "--name", "tofu"
        )
        assert ended.code == 2
        assert line in ended.errors[0]
        assert not Path("runs/tofu").exists()
