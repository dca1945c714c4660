"""Relearning gives the curves of a plain training loop."""

import math

import pytest
import torch
from audit_runs import write_rows

from dipo_pl.attacks.relearning import Relearning
from dipo_pl.errors import InputError
from dipo_pl.storage.fingerprints import settings_fingerprint


def sequence(tokenizer, row):
    text = f"Question: {row.question}\nAnswer: {row.answer}"
    coded = tokenizer(text, return_offsets_mapping=True)
    start = next(
        at for at, (_, last) in enumerate(coded["offset_mapping"]) if last > len(text) - len(row.answer)
    )
    return [*coded["input_ids"], tokenizer.eos_token_id], start


def probability(model, tokenizer, rows):
    found = []
    with torch.no_grad():
        for row in rows:
            ids, start = sequence(tokenizer, row)
            log_p = model(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
            found.append(
                math.exp(
                    sum(float(log_p[at - 1, ids[at]]) for at in range(start, len(ids))) / (len(ids) - start)
                )
            )
    return sum(found) / len(found)


def plain_curve(model, tokenizer, batches, measured, every, lr):
    """Whole batches of single rows, gradients clipped by hand."""
    model.eval()
    curve = [probability(model, tokenizer, measured)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    for step, rows in enumerate(batches, start=1):
        total, tokens = 0.0, 0
        for row in rows:
            ids, start = sequence(tokenizer, row)
            logits = model(torch.tensor([ids]), use_cache=False).logits[0]
            total = total + torch.nn.functional.cross_entropy(
                logits[start - 1 : -1], torch.tensor(ids[start:]), reduction="sum"
            )
            tokens += len(ids) - start
        (total / tokens).backward()
        norm = torch.sqrt(sum((each.grad**2).sum() for each in model.parameters()))
        for each in model.parameters():
            each.grad *= min(1.0, 1.0 / (float(norm) + 1e-6))
        optimizer.step()
        optimizer.zero_grad()
        if step % every == 0 or step == len(batches):
            curve.append(probability(model, tokenizer, measured))
    return curve


def test_curves_are_those_of_a_plain_loop(subject):
    attack = Relearning("forget", share=0.4, steps=3, every=2, batch_size=2, lr=1e-2)
    rows, held_back = attack._rows(subject)
    assert len(rows) == 2
    assert [*rows, *held_back.rows] != subject.forget.rows
    assert sorted(row.question for row in [*rows, *held_back.rows]) == sorted(
        row.question for row in subject.forget.rows
    )
    found = attack.run(subject)
    assert found.series["step"] == [0, 2, 3]
    for name in ("unlearned", "retain_only"):
        # Every step holds both rows.
        batches = [rows] * 3
        expected = plain_curve(subject.fresh(name), subject.tokenizer, batches, held_back.rows, 2, 1e-2)
        assert found.series[name] == pytest.approx(expected, rel=1e-3)
        assert len(set(expected)) == 3
        assert found.values[name] == pytest.approx(sum(found.series[name]) / 3)
    assert found.values["target"] == pytest.approx(
        probability(subject.fresh("target").eval(), subject.tokenizer, held_back.rows), rel=1e-5
    )
    assert found.metrics["relearning_forget_area"] == pytest.approx(
        found.values["unlearned"] - found.values["retain_only"]
    )
    assert found.metrics["relearning_forget_probability"] == found.series["unlearned"][-1]
    # Each run starts from the model as it is.
    again = {**subject.memory.parts}
    subject.memory.parts.clear()
    assert attack.run(subject) == found
    assert subject.memory.parts == again


def test_each_source(subject, tmp_path):
    text = write_rows(tmp_path / "text.jsonl", [{"text": "The sea is wide."}, {"text": "The hill is steep."}])
    for source, rows in (
        ("retain", subject.data.row_sets.retain),
        ("holdout", subject.holdout.rows),
        ("benign", None),
    ):
        attack = Relearning(source, file=str(text) if source == "benign" else None, steps=1)
        trained, measured = attack._rows(subject)
        assert attack.name == f"relearning_{source}"
        assert attack.lacks(subject) is None
        assert measured is subject.forget
        if rows is None:
            assert [row.answer for row in trained] == ["The sea is wide.", "The hill is steep."]
        else:
            assert list(trained) == list(rows)
    # Every row comes once before any comes twice: 3 rows are a step of 2 and one of 1.
    sequences = subject.encoder.rows(subject.data.row_sets.retain)
    batches = Relearning("retain", batch_size=2)._batches(subject, sequences)
    for _ in range(2):
        dealt = [next(batches) for _ in range(2)]
        assert [len(each) for each in dealt] == [2, 1]
        assert {each.ids for some in dealt for each in some} == {each.ids for each in sequences}


def test_steps_until_half_of_it_is_back(subject, monkeypatch):
    curves = {"target": [0.9], "unlearned": [0.1, 0.4, 0.5, 0.8], "retain_only": [0.1, 0.1, 0.2, 0.2]}
    attack = Relearning("retain", steps=6, every=2)
    monkeypatch.setattr(attack, "_curve", lambda subject, name, *_: [[each] for each in curves[name]])
    found = attack.run(subject)
    assert found.metrics["relearning_retain_half_steps"] == 4
    assert found.metrics["relearning_retain_area"] == pytest.approx((0.3 + 0.3 + 0.6) / 4)
    assert found.values["target"] == 0.9
    subject.memory.parts.clear()
    curves["unlearned"] = [0.95, 0.4, 0.5, 0.6]
    assert "relearning_retain_half_steps" not in attack.run(subject).metrics
    subject.memory.parts.clear()
    curves["unlearned"] = [0.1, 0.2, 0.3, 0.4]
    assert "relearning_retain_half_steps" not in attack.run(subject).metrics


def test_another_text_is_another_attack(tmp_path):
    """Also where the files of a pattern change, whose name stays."""
    pattern = str(tmp_path / "*.jsonl")
    found = []
    for text in ("The sea is wide.", "The sea is wide.", "The hill is steep."):
        write_rows(tmp_path / "text.jsonl", [{"text": text}])
        found.append(settings_fingerprint(Relearning("benign", file=pattern)))
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(("options", "line"), [
    ({"share": 1.0}, r"Relearning.share must be a share in \(0, 1\) \(got 1.0\)"),
    ({"steps": 0}, "Relearning.steps must be at least 1"),
    ({"every": 0}, "Relearning.every must be at least 1"),
    ({"batch_size": 0}, "Relearning.batch_size must be at least 1"),
    ({"lr": 0.0}, "Relearning.lr must be a finite number > 0"),
    ({"source": "benign", "file": "none.jsonl"}, "no file none.jsonl: give the path of"),
    ({"source": "retain", "file": "x"}, r"Relearning.file is for the source benign \(got retain\)"),
])  # fmt: skip
def test_settings_out_of_range_are_refused(options, line):
    with pytest.raises(InputError, match=line):
        Relearning(**options)
