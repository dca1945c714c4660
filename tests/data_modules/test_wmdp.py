"""WMDP's corpora from a folder: which documents are read, as blocks, and a run of RMU on them."""

import json
from pathlib import Path

import pytest
from connected import connected

from dipo_pl.data_modules.blocked_texts import muse_blocks
from dipo_pl.data_modules.wmdp import WMDP
from dipo_pl.errors import InputError


def documents(kind, count):
    return [
        f"The {kind} number {place} is described at such length that it is kept." for place in range(count)
    ]


def write(folder):
    """Write the corpora in three of the formats that people have."""
    bio = [
        {"title": "t", "abstract": "a", "text": text} for text in [*documents("bacterium", 3), "too short"]
    ]
    (folder / "bio-forget-corpus.jsonl").write_text("".join(json.dumps(each) + "\n" for each in bio))
    (folder / "cyber-forget-corpus.json").write_text(
        json.dumps([{"text": each} for each in documents("port", 2)])
    )
    (folder / "wikitext.txt").write_text("\n\n".join(documents("village", 4)))
    return folder


def test_documents_and_evaluation_sets(tmp_path):
    data = WMDP(str(write(tmp_path)), ["bio-forget-corpus", "cyber-forget-corpus"])
    rows = data.read()
    assert [row.answer for row in rows.forget] == [*documents("bacterium", 3), *documents("port", 2)]
    assert [row.answer for row in rows.retain] == ["\n\n".join(documents("village", 4))]
    assert {each.name: len(each.rows) for each in rows.evaluation} == {"forget": 5, "retain": 1}
    assert all(each.new_tokens == 0 for each in rows.evaluation)


def test_training_sequences_are_muses_blocks(tmp_path):
    data = connected(WMDP(str(write(tmp_path)), max_length=16))
    expected = muse_blocks(documents("bacterium", 3), data.tokenizer, 16)
    assert [each.ids for each in data.training_sequences["forget"]] == [each.ids for each in expected]


def test_short_documents(tmp_path):
    folder = str(write(tmp_path))
    assert len(WMDP(folder, shortest=0).read().forget) == 4
    with pytest.raises(
        InputError, match=r"^all 4 documents of bio-forget-corpus in \S+ have fewer than 900 characters"
    ):
        WMDP(folder, shortest=900).read()


@pytest.mark.parametrize(("options", "message"), [
    ({"path": "nowhere"}, r"data\.path must be a folder with the corpora of WMDP \(got 'nowhere'\)"),
    ({"forget": "chem"}, r"no file \S+chem\.jsonl"),
    ({"retain": []}, r"data\.retain names no rows"),
    ({"shortest": -1}, r"data\.shortest must be at least 0 \(got -1\)"),
])  # fmt: skip
def test_errors(tmp_path, options, message):
    with pytest.raises(InputError, match=f"^{message}"):
        WMDP(**{"path": str(write(tmp_path))} | options).read()


def test_the_shipped_config_trains_on_them(cli, tmp_path):
    """The shipped config runs as it is, but for the model with its layers, the size and the tasks of the hub."""
    from own_tasks import write_tasks
    from tiny_models import save_tiny_model

    (tmp_path / "corpora").mkdir()
    write(tmp_path / "corpora")
    write_tasks(tmp_path / "tasks")
    save_tiny_model(tmp_path / "model", spread=0.1)
    ended = cli(
        "fit", "--config", "wmdp.yaml", "--config", "cpu.yaml", "--model.policy.path", "model", "--data.path", "corpora",
        "--data.max_length", "32", "--trainer.max_steps", "2", "--lm_eval.tasks", "[first]", "--lm_eval.include_path",
        "tasks", "--model.trainable", "[model.layers.0.mlp.down_proj.weight]",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert (
        "bio-forget-corpus: 1 of 4 documents have fewer than 50 characters and are left out"
        in ended.out + ended.err
    )
    last = json.loads(Path("runs/wmdp-cpu/metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 2
    assert last.keys() >= {"forget_probability", "retain_probability", "lm_eval_first_acc"}
