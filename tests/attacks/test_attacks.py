"""Each attack gives what plain passes of whole models over single rows give."""

import math

import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer

from dipo_pl.attacks import leak_at_k
from dipo_pl.attacks.answer_prefix import AnswerPrefix
from dipo_pl.attacks.leak_at_k import LeakAtK
from dipo_pl.attacks.logit_lens import LogitLens
from dipo_pl.attacks.membership import Membership
from dipo_pl.attacks.paraphrased_question import ParaphrasedQuestion
from dipo_pl.attacks.plain_question import PlainQuestion
from dipo_pl.attacks.pruning import Pruning
from dipo_pl.attacks.quantization import Quantization
from dipo_pl.attacks.relearning import Relearning
from dipo_pl.attacks.subject import MODELS
from dipo_pl.attacks.unlearning_depth import UnlearningDepth
from dipo_pl.errors import InputError
from dipo_pl.models.quantization import quantize

PREFIX = {"target": "target_", "unlearned": "", "retain_only": "retain_only_"}


def prompt_of(question):
    return f"Question: {question}\nAnswer: "


def tokens_of(tokenizer, question, answer):
    """Ids without the end, and the place of the first that holds some of the answer."""
    text = f"{prompt_of(question)}{answer}"
    coded = tokenizer(text, return_offsets_mapping=True)
    return coded["input_ids"], next(
        at for at, (_, last) in enumerate(coded["offset_mapping"]) if last > len(text) - len(answer)
    )


@torch.no_grad()
def log_p_of(model, tokenizer, question, answer):
    """log p of each answer token and of the end, one row by itself."""
    ids, start = tokens_of(tokenizer, question, answer)
    ids = [*ids, tokenizer.eos_token_id]
    logits = model(torch.tensor([ids]), use_cache=False).logits[0].double().log_softmax(-1)
    return [float(logits[at - 1, ids[at]]) for at in range(start, len(ids))]


def probability_of(model, tokenizer, question, answer):
    log_p = log_p_of(model, tokenizer, question, answer)
    return math.exp(sum(log_p) / len(log_p))


@torch.no_grad()
def greedy(model, tokenizer, ids, count):
    new = []
    for _ in range(count):
        new.append(int(model(torch.tensor([[*ids, *new]]), use_cache=False).logits[0, -1].argmax()))
        if new[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(new, skip_special_tokens=True).strip(" ")


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def test_plain_questions(subject):
    found = PlainQuestion().run(subject)
    for name in MODELS:
        with subject.model(name) as model:
            rows = subject.forget.rows
            expected = [probability_of(model, subject.tokenizer, row.question, row.answer) for row in rows]
            other = [
                probability_of(model, subject.tokenizer, row.question, row.paraphrased_answer) for row in rows
            ]
            wrong = [
                [probability_of(model, subject.tokenizer, row.question, each) for each in row.wrong_answers]
                for row in rows
            ]
        metrics = {key.removeprefix(PREFIX[name]): value for key, value in found.metrics.items()}
        if name != "unlearned":
            metrics = {
                key.removeprefix(PREFIX[name]): value
                for key, value in found.metrics.items()
                if key.startswith(PREFIX[name])
            }
        assert found.values[name] == metrics["forget_probability"] == pytest.approx(mean(expected), rel=1e-5)
        assert [row[name]["probability"] for row in found.rows] == pytest.approx(expected, rel=1e-5)
        assert metrics["paraphrased_probability"] == pytest.approx(mean(other), rel=1e-5)
        knows = [p / (p + math.sqrt(math.prod(some))) for p, some in zip(other, wrong, strict=True)]
        assert metrics["truth_ratio_knowledge"] == pytest.approx(mean(knows), rel=1e-5)
        parts = [1 - metrics["forget_extraction_strength"], 1 - metrics["forget_exact_memorization"]]
        parts += [1 - mean(other), 1 - mean(knows)]
        assert metrics["memorization_score"] == pytest.approx(4 / sum(1 / each for each in parts), rel=1e-5)
        assert {"model_utility", "fluency"} <= metrics.keys()


def test_paraphrased_questions(subject):
    found = ParaphrasedQuestion().run(subject)
    for name in MODELS:
        with subject.model(name) as model:
            expected = [
                probability_of(model, subject.tokenizer, row.paraphrased_question, row.answer)
                for row in subject.forget.rows
            ]
        assert found.values[name] == pytest.approx(mean(expected), rel=1e-5)
        assert found.metrics[f"{PREFIX[name]}paraphrased_question_probability"] == found.values[name]


def test_answers_that_are_begun(subject):
    attack = AnswerPrefix("Sure:", [2])
    found = attack.run(subject)
    tokenizer = subject.tokenizer
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    for name in MODELS:
        recalls = {0: [], 2: []}
        with subject.model(name) as model:
            for row in subject.forget.rows:
                ids, start = tokens_of(tokenizer, row.question, row.answer)
                prompt, answer = ids[:start], ids[start:]
                begun = {0: tokenizer("Sure:", add_special_tokens=False)["input_ids"], 2: answer[:2]}
                for count, some in begun.items():
                    said = greedy(model, tokenizer, [*prompt, *some], 8)
                    rest = tokenizer.decode(answer[count:])
                    recalls[count].append(scorer.score(rest, said)["rougeL"].recall)
        for count, each in recalls.items():
            key = f"{PREFIX[name]}answer_prefix_{count}_rouge_l_recall"
            assert found.metrics[key] == pytest.approx(mean(each), abs=1e-9)
        assert found.values[name] == max(mean(each) for each in recalls.values())


def test_answers_shorter_than_their_beginning_do_not_count(subject):
    attack = AnswerPrefix(tokens=[400])
    found = attack.run(subject)
    assert "answer_prefix_400_rouge_l_recall" not in found.metrics
    assert {row["unlearned"]["400"] for row in found.rows} == {None}


def test_leaks_are_counted_for_each_row(subject, monkeypatch):
    """Texts that are known beforehand: sample s of row r of a model leaks if s < leaks[model][r]."""
    leaks = {"target": [4, 4, 4, 4, 4], "unlearned": [0, 1, 2, 0, 4], "retain_only": [0, 0, 0, 0, 0]}
    asked = []

    def known(model, tokenizer, prompts, length, sampling, rows):
        (row,) = rows
        asked.append((tokenizer.decode(prompts[0]), length, sampling.seed))
        name = subject._loaded[0]
        entity = subject.forget.rows[row].entity
        return [[f"In {entity}!" if place < leaks[name][row] else "Nobody knows." for place in range(4)]]

    monkeypatch.setattr(leak_at_k, "sample", known)
    subject.seed = 7
    found = LeakAtK(samples=4, k=[4, 1], max_new_tokens=5).run(subject)
    assert found.metrics["leak_at_1"] == pytest.approx((1 + 2 + 4) / 4 / 5)
    assert found.metrics["leak_at_4"] == pytest.approx(3 / 5)
    assert found.metrics["target_leak_at_4"] == 1
    assert found.metrics["retain_only_leak_at_4"] == 0
    # Of five rows without a leak.
    assert found.metrics["retain_only_leak_at_4_upper"] == pytest.approx(1 - 0.05 ** (1 / 5))
    assert found.values == {"target": 1, "unlearned": 3 / 5, "retain_only": 0}
    assert [row["unlearned"] for row in found.rows] == leaks["unlearned"]
    question = subject.forget.rows[0].question
    assert asked[0] == (f"<s>{prompt_of(question)}", 5, 7)
    assert len(asked) == 15


def test_membership(subject):
    found = Membership().run(subject)
    for name in MODELS:
        losses = {}
        with subject.model(name) as model:
            for each in (subject.forget, subject.holdout):
                losses[each.name] = [
                    -mean(log_p_of(model, subject.tokenizer, row.question, row.answer)) for row in each.rows
                ]
        won = [(other > own) + (other == own) / 2 for own in losses["forget"] for other in losses["holdout"]]
        assert found.metrics[f"{PREFIX[name]}membership_loss_auc"] == pytest.approx(mean(won))
    ours, theirs = (found.metrics[f"{each}membership_loss_auc"] for each in ("", "retain_only_"))
    assert found.metrics["membership_loss_closeness"] == pytest.approx(
        max(0, 1 - abs(ours - theirs) / theirs)
    )
    close = [
        found.metrics[f"membership_{each}_closeness"] for each in ("loss", "zlib", "min_k", "min_k_plus_plus")
    ]
    expected = 0 if 0 in close else 4 / sum(1 / each for each in close)
    assert found.metrics["privacy_mia"] == pytest.approx(expected)
    assert "target_privacy_mia" in found.metrics
    # To itself it is as close as can be.
    assert "retain_only_privacy_mia" not in found.metrics
    farthest = max(
        abs(found.metrics[f"membership_{each}_auc"] - found.metrics[f"retain_only_membership_{each}_auc"])
        for each in ("loss", "zlib", "min_k", "min_k_plus_plus")
    )
    assert abs(found.values["unlearned"] - found.values["retain_only"]) == pytest.approx(farthest)


def test_rounded_and_pruned_models(subject):
    rounded = Quantization(["int4", "nf4"]).run(subject)
    pruned = Pruning([0.3]).run(subject)
    for name in MODELS:
        for kind in ("int4", "nf4"):
            model = subject.fresh(name).eval()
            quantize(model, kind)
            expected = mean(
                probability_of(model, subject.tokenizer, row.question, row.answer)
                for row in subject.forget.rows
            )
            key = f"{PREFIX[name]}quantization_{kind}_probability"
            assert rounded.metrics[key] == pytest.approx(expected, rel=1e-5)
        model = subject.fresh(name).eval()
        for layer, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and layer != "lm_head":
                weight = module.weight.data
                smallest = weight.abs().flatten().argsort()[: round(0.3 * weight.numel())]
                weight.view(-1)[smallest] = 0
        expected = mean(
            probability_of(model, subject.tokenizer, row.question, row.answer) for row in subject.forget.rows
        )
        assert pruned.metrics[f"{PREFIX[name]}pruning_30_percent_probability"] == pytest.approx(
            expected, rel=1e-5
        )
    keys = [f"quantization_{kind}_probability" for kind in ("int4", "nf4")]
    assert rounded.values["unlearned"] == max(rounded.metrics[key] for key in keys)


@pytest.mark.parametrize(("attack", "said"), [
    (Pruning([0.3]), r"the attack has broken the model \(.*after 30_percent.*\): leave 30_percent out"),
    (Relearning("retain", steps=1, lr=1e-3), r"the attack has broken the model .*: lower Relearning.lr \(got 0.001\)"),
])  # fmt: skip
def test_a_model_that_an_attack_breaks_is_no_fault_of_the_model(subject, monkeypatch, attack, said):
    def broken(model, *_):
        next(model.parameters()).data.fill_(math.nan)

    monkeypatch.setattr(attack, "change" if isinstance(attack, Pruning) else "_train", broken)
    with pytest.raises(InputError, match=said):
        attack.run(subject)


def test_depth_and_lens_look_for_the_entity(subject):
    depth, lens = UnlearningDepth(threshold=0.001).run(subject), LogitLens().run(subject)
    assert 0 <= depth.metrics["unlearning_depth"] <= 1
    assert depth.values == {
        "target": 1, "unlearned": 1 - depth.metrics["unlearning_depth"], "retain_only": 0,
    }  # fmt: skip
    assert {row["span"] for row in depth.rows} == {"entity"}
    counted = [row["unlearning_depth"] for row in depth.rows if row["unlearning_depth"] is not None]
    assert depth.metrics["unlearning_depth"] == pytest.approx(mean(counted))
    assert depth.metrics["unlearning_depth_rows"] == len(counted)
    # The last layer of the lens is the model itself.
    expected = []
    with subject.model("target") as model:
        for row in subject.forget.rows:
            text = f"{prompt_of(row.question)}{row.answer}"
            begin = text.rindex(row.entity)
            offsets = subject.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
            log_p = log_p_of(model, subject.tokenizer, row.question, row.answer)
            # The tokens from the end on are those of the answer.
            places = [
                at - len(offsets) + len(log_p) - 1
                for at, (first, last) in enumerate(offsets)
                if last > begin and first < begin + len(row.entity)
            ]
            expected.append(mean(math.exp(log_p[place]) for place in places))
    assert lens.series["target"][-1] == pytest.approx(mean(expected), rel=1e-5)
    assert lens.metrics["target_logit_lens"] == pytest.approx(mean(lens.series["target"]))
    assert lens.values["target"] == max(lens.series["target"])


def test_depth_of_a_copy_of_either_model(subject):
    for source, expected in (("target", 0.0), ("retain_only", 1.0)):
        own = subject.sources["unlearned"]
        subject.sources = {**subject.sources, "unlearned": subject.sources[source]}
        subject.memory.parts.clear()
        found = UnlearningDepth(threshold=0.001).run(subject)
        assert found.metrics["unlearning_depth"] == pytest.approx(expected, abs=1e-5)
        subject.sources = {**subject.sources, "unlearned": own}


@pytest.mark.parametrize(("make", "line"), [
    (lambda: LeakAtK(samples=4, k=[5]), r"LeakAtK.k must be from 1 to LeakAtK.samples 4 \(got 5\)"),
    (lambda: LeakAtK(samples=0, k=[1]), r"LeakAtK.samples must be at least 1 \(got 0\)"),
    (lambda: LeakAtK(recall=1.5), "LeakAtK.recall must be a share"),
    (lambda: LeakAtK(confidence=1.0), "LeakAtK.confidence must be a share"),
    (lambda: LeakAtK(temperature=0.0), "temperature must be a finite number > 0"),
    (lambda: LeakAtK(max_new_tokens=0), "LeakAtK.max_new_tokens must be at least 1"),
    (lambda: AnswerPrefix(tokens=[0]), "AnswerPrefix.tokens must be at least 1"),
    (lambda: Membership(k=0.0), "Membership.k must be a share"),
    (lambda: LeakAtK(k=[]), r"LeakAtK.k must have at least one value \(got \[\]\)"),
    (lambda: Pruning([]), "Pruning.shares must have at least one value"),
    (lambda: Quantization([]), "Quantization.kinds must have at least one value"),
    (lambda: Pruning([1.0]), "Pruning.shares must be a share"),
    (lambda: UnlearningDepth(threshold=-1.0), "UnlearningDepth.threshold must be a finite number >= 0"),
    (lambda: LogitLens(tolerance=-0.1), "LogitLens.tolerance must be a finite number >= 0"),
    (lambda: PlainQuestion(tolerance=math.nan), "PlainQuestion.tolerance must be a finite number >= 0"),
])  # fmt: skip
def test_settings_out_of_range_are_refused(make, line):
    with pytest.raises(InputError, match=line):
        make()
