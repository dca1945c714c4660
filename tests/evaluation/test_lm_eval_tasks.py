"""Tasks of lm-eval on a model in memory: what is measured, under which names, and that nothing of the model changes."""

import copy
import sys

import pytest
import torch
from forked import gloo, run_ranks
from own_tasks import QUESTIONS, write_tasks
from tiny_models import adapted_model, tiny_model, tiny_tokenizer

from dipo_pl.errors import InputError
from dipo_pl.evaluation.lm_eval_tasks import LMEvalTasks, headline_of, key_of, metrics_of, refuse_no_share


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(write_tasks(tmp_path_factory.mktemp("own") / "tasks"))


def measured(folder, *names, model=None, **options):
    model = tiny_model(vocab_size=280, spread=0.3) if model is None else model
    return LMEvalTasks(names, folder, **options).results(model, tiny_tokenizer())


def slow_accuracy(model, rows):
    """The share of questions whose true answer has the largest sum of log probabilities, one answer at a time."""
    model, tokenizer, hits, normed = copy.deepcopy(model).double(), tiny_tokenizer(), [], []
    for row in rows:
        scores = []
        for choice in row["choices"]:
            start = tokenizer(row["question"])["input_ids"]
            whole = tokenizer(f"{row['question']} {choice}")["input_ids"]
            total = 0.0
            for place in range(len(start), len(whole)):
                with torch.no_grad():
                    logits = model(torch.tensor([whole[:place]])).logits[0, -1]
                total += float(logits[whole[place]] - logits.exp().sum().log())
            scores.append((total, total / len(choice)))
        for found, kind in ((hits, 0), (normed, 1)):
            best = max(range(len(scores)), key=lambda each: scores[each][kind])
            found.append(best == row["answer"])
    return sum(hits) / len(rows), sum(normed) / len(rows)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_accuracy_is_that_of_a_slow_loop(folder, seed):
    model = tiny_model(vocab_size=280, spread=0.3, seed=seed)
    metrics = metrics_of(measured(folder, "first", model=model))
    expected = slow_accuracy(model, QUESTIONS)
    assert (metrics["lm_eval_first_acc"], metrics["lm_eval_first_acc_norm"]) == pytest.approx(expected)


def test_a_group_has_its_own_metrics_and_a_tag_those_of_its_tasks(folder):
    group = metrics_of(measured(folder, "both"))
    tag = metrics_of(measured(folder, "pair"))
    assert {name for name in group if not name.endswith("_stderr")} == {"lm_eval_both_acc"}
    assert {name.split("_")[2] for name in tag} == {"first", "second"}
    weighted = (5 * tag["lm_eval_first_acc"] + 2 * tag["lm_eval_second_acc"]) / 7
    assert group["lm_eval_both_acc"] == pytest.approx(weighted)


def test_limit_generation_and_a_second_time(folder):
    tasks = LMEvalTasks(["second", "written"], folder, limit=1, num_fewshot=1)
    model = tiny_model(vocab_size=280, spread=0.3)
    found = tasks.results(model, tiny_tokenizer())
    assert {name: each["effective"] for name, each in found["n-samples"].items()} == {
        "second": 1,
        "written": 1,
    }
    assert found["n-shot"] == {"second": 1, "written": 1}
    assert metrics_of(found)["lm_eval_written_exact_match"] == 0.0
    again = tasks.results(model, tiny_tokenizer())
    assert again == found


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "llama", "adapters"])
def test_nothing_of_the_model_and_no_random_number_changes(folder, kind):
    model = adapted_model("llama") if kind == "adapters" else tiny_model(kind, vocab_size=280).train()
    if kind == "adapters":
        model.resize_token_embeddings(280)
    before = {name: (each, each.detach().clone()) for name, each in model.named_parameters()}
    modes, tokenizer = [each.training for each in model.modules()], tiny_tokenizer()
    padding = tokenizer.pad_token
    states = torch.get_rng_state()
    measured(folder, "first", model=model)
    assert torch.equal(torch.get_rng_state(), states)
    assert [each.training for each in model.modules()] == modes
    assert tokenizer.pad_token == padding
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    for name, (parameter, values) in before.items():
        assert after[name] is parameter
        assert torch.equal(parameter, values)
        assert parameter.grad is None


def test_the_precision_is_that_of_the_autocast_around_it(folder):
    seen = []
    model = tiny_model(vocab_size=280)
    model.model.layers[0].mlp.up_proj.register_forward_hook(lambda *given: seen.append(given[2].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        measured(folder, "second", model=model)
    measured(folder, "second", model=model)
    assert set(seen[: len(seen) // 2]) == {torch.bfloat16}
    assert set(seen[len(seen) // 2 :]) == {torch.float32}


def counted(folder):
    """What is found, and how many sequences the model has seen for it."""
    model, rows = tiny_model(vocab_size=280, spread=0.3), []
    model.model.embed_tokens.register_forward_hook(lambda *given: rows.append(len(given[2])))
    return measured(folder, "first", "second", "written", model=model), sum(rows)


def on_two_ranks(rank, where, folder):
    with gloo(where, rank):
        torch.save(counted(folder), f"{where}/found{rank}.pt")


def test_ranks_share_the_documents_and_all_have_the_metrics_of_one(folder, tmp_path):
    run_ranks(lambda rank: on_two_ranks(rank, tmp_path, folder), tmp_path)
    (one, ours), (two, theirs) = (
        torch.load(tmp_path / f"found{rank}.pt", weights_only=False) for rank in range(2)
    )
    assert one == two
    alone, all_of_them = counted(folder)
    assert metrics_of(one) == pytest.approx(metrics_of(alone), rel=1e-12)
    assert one["n-samples"] == alone["n-samples"]
    # A rank with fewer documents repeats some, so that all have as many batches.
    assert 0 < ours < 0.8 * all_of_them > theirs > 0


@pytest.mark.parametrize(("column", "key"), [
    ("acc,none", "lm_eval_t_acc"),
    ("acc_stderr,none", "lm_eval_t_acc_stderr"),
    ("exact_match,strict-match", "lm_eval_t_exact_match_strict_match"),
    ("exact_match_stderr,strict-match", "lm_eval_t_exact_match_strict_match_stderr"),
])  # fmt: skip
def test_keys(column, key):
    assert key_of("t", column) == key


def test_only_shares_that_are_better_when_higher_enter_utility(folder):
    found = measured(folder, "first")
    refuse_no_share(found)
    assert headline_of(found, "first") == "lm_eval_first_acc"
    worse = copy.deepcopy(found)
    worse["higher_is_better"]["first"]["acc"] = False
    larger = copy.deepcopy(found)
    larger["results"]["first"]["acc,none"] = 17.0
    for each in (worse, larger):
        with pytest.raises(InputError, match=r"^utility\.tasks: first has acc,none \S+, which is no share"):
            refuse_no_share(each)


ERRORS = {
    "no task": ([], {}, r"lm_eval\.tasks must be a list of names of tasks, such as \[mmlu\] \(got \[\]\)"),
    "a text": ("mmlu", {}, r"lm_eval\.tasks must be a list of names of tasks, such as \[mmlu\] \(got 'mmlu'\)"),
    "twice": (["a", "a"], {}, r"lm_eval\.tasks has a twice: leave one of them out"),
    "limit": (["first"], {"limit": 0}, r"lm_eval\.limit must be at least 1 \(got 0\)"),
    "shots": (["first"], {"num_fewshot": -1}, r"lm_eval\.num_fewshot must be at least 0 \(got -1\)"),
    "batch": (["first"], {"batch_size": 0}, r"lm_eval\.batch_size must be at least 1 \(got 0\)"),
    "unknown": (["frist"], {}, r"lm_eval\.tasks: lm-eval \S+ has no task 'frist' \(did you mean first\?\): `lm-eval ls"),
    "in a group": (["both", "first"], {}, r"lm_eval\.tasks asks for a task twice \(Duplicate task 'first'.*leave out"),
    "no folder": (["first"], {"include_path": "nowhere"}, r"lm_eval\.include_path must be a folder .* \(got 'nowhere'\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors(folder, name):
    tasks, options, message = ERRORS[name]
    with pytest.raises(InputError, match=f"^{message}"):
        LMEvalTasks(tasks, **{"include_path": folder, "option": "lm_eval"} | options).load()


def test_without_the_package_the_error_names_the_extra(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(InputError, match=r"^--tasks needs lm-eval \(.*\): pip install 'dipo-pl\[lm-eval\]'$"):
        LMEvalTasks(["first"], folder, option="-").load()


def test_a_task_of_the_hub_without_a_network(folder, monkeypatch):
    import datasets
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        InputError, match=r"^cannot load the task hub_task of --tasks \(.*come from the Hugging Face"
    ):
        LMEvalTasks(["hub_task"], folder, option="-").load()
