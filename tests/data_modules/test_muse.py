"""MUSE's data module on miniatures in the layout of the benchmark's repository, and of its hub."""

import json
import re

import datasets
import pytest
from connected import connected

from dipo_pl.data_modules.blocks import muse_blocks, open_unlearning_blocks
from dipo_pl.data_modules.muse import MUSE
from dipo_pl.errors import InputError
from dipo_pl.prompts import Continuation, FewShot

SETS = ["forget", "retain", "holdout", "verbatim", "forget_questions", "retain_questions"]


def articles(kind, count):
    return [f"The {kind} of day {day} cost {day + 2} crowns.\n\nNobody minded." for day in range(count)]


def questions(kind, count):
    return [
        {"question": f"What did the {kind} of day {day} cost?", "answer": f"{day + 2} crowns"}
        for day in range(count)
    ]


def measured(forget, holdout):
    passages = [{"prompt": text[:20].strip(), "gt": text[20:].strip()} for text in articles(forget, 3)]
    return {
        "verbmem/forget": passages,
        "knowmem/forget_qa": questions(forget, 4),
        "knowmem/forget_qa_icl": questions("mayor", 10),
        "knowmem/retain_qa": questions("bridge", 5),
        "knowmem/retain_qa_icl": questions("tower", 10),
        "privleak/forget": articles(forget, 3),
        "privleak/retain": articles("bridge", 4),
        "privleak/holdout": articles(holdout, 5),
    }


FOLDS = {
    1: articles("fair", 6),
    2: articles("flood", 4),
    3: articles("fire", 4),
    4: articles("storm", 4),
}

NEWS = measured("fair", "match") | {
    "raw/forget": FOLDS[1],
    "raw/retain1": articles("harvest", 5),
    "raw/retain2": articles("bridge", 7),
    "raw/holdout": articles("match", 5),
    **{f"sust/forget_{fold}": FOLDS[fold] for fold in FOLDS},
    **{
        f"scal/forget_{fold}": [text for each in FOLDS if each <= fold for text in FOLDS[each]]
        for fold in FOLDS
    },
}

BOOKS = measured("duel", "siege") | {
    "raw/forget": articles("duel", 4),
    "raw/retain1": articles("feast", 3),
    "raw/retain2": articles("bridge", 3),
    "raw/holdout": articles("siege", 2),
}

TEXTS = {"raw", "scal", "sust"}


def write(folder, corpus, kinds=("json", "txt")):
    """The files of a corpus, documents as the repository has them: both as a list and in one text."""
    for name, content in corpus.items():
        path = folder / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        documents = path.parent.name in TEXTS
        if not documents or "json" in kinds:
            path.write_text(json.dumps(content))
        if documents and "txt" in kinds:
            path.with_suffix(".txt").write_text("\n\n".join(content))
    return folder


@pytest.fixture
def news(tmp_path):
    return write(tmp_path / "data" / "news", NEWS)


@pytest.fixture
def books(tmp_path):
    return write(tmp_path / "data" / "books", BOOKS)


def texts(rows):
    assert not any(row.messages for row in rows)
    return [row.answer for row in rows]


def pairs(rows, question, answer):
    return [{question: row.question, answer: row.answer} for row in rows]


def ready(data, sections=("forget", "retain"), world_size=1):
    """As a trainer has it after setup; a tokenizer made from its texts."""
    connected(data, sections, world_size=world_size, vocabulary=300)
    data.offered = data.module.texts
    return data


def in_blocks(folder, **options):
    """Of 24 tokens, which questions behind examples would not fit into."""
    return ready(MUSE(str(folder), "News", **{"max_length": 24, "evaluate": ["holdout"]} | options))


def check_whole(sets, corpus):
    assert texts(sets.forget) == corpus["raw/forget"]
    assert texts(sets.retain) == corpus["raw/retain1"]
    by_name = {each.name: each for each in sets.evaluation}
    assert list(by_name) == SETS
    for name in ("forget", "retain", "holdout"):
        assert texts(by_name[name].rows) == corpus[f"privleak/{name}"]
        assert (by_name[name].new_tokens, by_name[name].prompt) == (0, None)
    assert pairs(by_name["verbatim"].rows, "prompt", "gt") == corpus["verbmem/forget"]
    assert by_name["verbatim"].new_tokens == 128
    assert isinstance(by_name["verbatim"].prompt, Continuation)
    for name in ("forget", "retain"):
        asked = by_name[f"{name}_questions"]
        assert pairs(asked.rows, "question", "answer") == corpus[f"knowmem/{name}_qa"]
        assert asked.new_tokens == 32
        assert isinstance(asked.prompt, FewShot)
        examples = [{"question": question, "answer": answer} for question, answer in asked.prompt.examples]
        assert examples == corpus[f"knowmem/{name}_qa_icl"]


class TestFolder:
    @pytest.mark.parametrize("kinds", [("json", "txt"), ("json",)])
    def test_news(self, tmp_path, kinds):
        check_whole(MUSE(str(write(tmp_path / "news", NEWS, kinds)), "News").read(), NEWS)

    def test_books(self, books):
        check_whole(MUSE(str(books), "Books").read(), BOOKS)

    def test_a_list_of_records_is_one_of_texts(self, news):
        path = news / "raw" / "forget.json"
        path.write_text(json.dumps([{"text": text, "url": "none"} for text in FOLDS[1]]))
        check_whole(MUSE(str(news), "News").read(), NEWS)

    def test_former_names(self, books):
        for name, former in {
            "privleak/retain": "retain2", "knowmem/retain_qa": "retain2_qa", "knowmem/retain_qa_icl": "retain2_qa_icl",
        }.items():  # fmt: skip
            path = books / f"{name}.json"
            path.rename(path.with_stem(former))
        check_whole(MUSE(str(books), "Books").read(), BOOKS)

    def test_a_text_is_one_document(self, tmp_path):
        sets = MUSE(str(write(tmp_path, BOOKS, ["txt"])), "Books").read()
        assert texts(sets.forget) == ["\n\n".join(BOOKS["raw/forget"])]
        assert texts(sets.retain) == ["\n\n".join(BOOKS["raw/retain1"])]

    def test_blocks_of_texts_and_of_lists_are_the_same(self, tmp_path):
        folders = [write(tmp_path / kind, NEWS, [kind]) for kind in ("json", "txt")]
        lists, text = (in_blocks(each) for each in folders)
        assert (len(lists.row_sets.forget), len(text.row_sets.forget)) == (6, 1)
        assert lists.tokenizer.get_vocab() == text.tokenizer.get_vocab()
        assert lists.training_sequences == text.training_sequences

    @pytest.mark.parametrize("count", [9, 11])
    def test_another_number_of_examples_is_told(self, news, monkeypatch, count):
        told = []
        monkeypatch.setattr("dipo_pl.data_modules.muse.rank_zero_warn", told.append)
        (news / "knowmem" / "retain_qa_icl.json").write_text(json.dumps(questions("tower", count)))
        sets = MUSE(str(news), "News").read()
        assert len(sets.evaluation[-1].prompt.examples) == count
        assert len(told) == 1
        assert re.search(rf"has {count} answered examples in retain_qa_icl, and MUSE has 10", told[0])


class TestForgetSets:
    @pytest.mark.parametrize("fold", [1, 2, 3, 4])
    @pytest.mark.parametrize("kind", ["scal", "sust"])
    def test_folds(self, news, kind, fold):
        sets = MUSE(str(news), "News", f"{kind}_{fold}").read()
        assert texts(sets.forget) == NEWS[f"{kind}/forget_{fold}"]
        assert texts(sets.retain) == NEWS["raw/retain1"]
        assert texts(sets.evaluation[0].rows) == NEWS["privleak/forget"]

    def test_a_list_holds_every_document_once(self, news):
        sets = MUSE(str(news), "News", ["sust_2", "scal_3", "forget"]).read()
        assert texts(sets.forget) == FOLDS[2] + FOLDS[1] + FOLDS[3]

    def test_requests_are_measured_by_their_documents(self, news):
        data = ready(MUSE(str(news), "News", "sust_2", requests=["sust_1", "sust_2"], evaluation_rows=5))
        requested = data.evaluation_sets[-2:]
        assert [each.name for each in requested] == ["request_1", "request_2"]
        assert [texts(each.rows) for each in requested] == [FOLDS[1][:5], FOLDS[2]]
        assert {each.new_tokens for each in requested} == {0}
        assert set(FOLDS[1]) <= set(data.offered)

    @pytest.mark.parametrize("name", ["scal_0", "scal_5", "sust_", "sust_11", "forget_1", "forget10", ""])
    def test_what_news_does_not_have(self, news, name):
        message = (
            "^data.forget and data.requests must name forget sets of MUSE-News: forget, scal_1 to scal_4, "
            rf"sust_1 to sust_4 \(got {name!r}\)$"
        )
        with pytest.raises(InputError, match=message):
            MUSE(str(news), "News", name).read()

    @pytest.mark.parametrize("name", ["scal_1", "sust_4", "forget10"])
    def test_what_books_does_not_have(self, news, name):
        message = (
            rf"^data.forget and data.requests must name forget sets of MUSE-Books: forget \(got {name!r}\)$"
        )
        with pytest.raises(InputError, match=message):
            MUSE(str(news), "Books", name).read()

    def test_overlapping_folds(self, news):
        (news / "sust" / "forget_2.json").write_text(json.dumps(FOLDS[2] + FOLDS[1][:1]))
        data = MUSE(str(news), "News", "sust_2", requests=["sust_1", "sust_2"])
        with pytest.raises(InputError, match="sust_1 and sust_2 overlap: 1 of 5 rows"):
            ready(data)


class TestCorpus:
    @pytest.mark.parametrize(
        ("path", "name"),
        [
            ("muse-bench/MUSE-News", "News"),
            ("muse-bench/MUSE-Books", "Books"),
            ("me/muse-books/", "Books"),
        ],
    )
    def test_comes_from_the_name_of_the_path(self, path, name):
        for corpus in (None, name):
            assert MUSE(path, corpus).settings["corpus"] == f"MUSE-{name}"

    def test_of_a_folder(self, news):
        assert MUSE(str(news), "News").settings["corpus"] == "MUSE-News"
        message = rf"^data.corpus must be News or Books .* \(got null, '{news}'\)$"
        with pytest.raises(InputError, match=message):
            MUSE(str(news))

    def test_disagrees_with_the_name_of_the_path(self):
        message = r"^data.corpus must be News, as in data.path 'muse-bench/MUSE-News', or null \(got Books\)$"
        with pytest.raises(InputError, match=message):
            MUSE("muse-bench/MUSE-News", "Books")


class TestBadFiles:
    @pytest.mark.parametrize(
        "name", sorted(set(NEWS) - {"raw/holdout"} - {f"scal/forget_{n}" for n in FOLDS})
    )
    def test_missing(self, news, name):
        for kind in (".json", ".txt"):
            (news / f"{name}{kind}").unlink(missing_ok=True)
        fold = re.fullmatch(r"sust/forget_(\d)", name)
        forget = f"sust_{fold[1]}" if fold else "forget"
        stem = name.split("/")[1]
        message = rf"^no file {news}/{name}\.json or {stem}\.txt: data.path must be the folder of one corpus of MUSE"
        with pytest.raises(InputError, match=message):
            MUSE(str(news), "News", forget).read()

    def test_no_folder_of_a_corpus(self, news):
        with pytest.raises(InputError, match=rf"^no file {news.parent}/raw/forget\.json"):
            MUSE(str(news.parent), "News").read()

    @pytest.mark.parametrize("name", ["raw/forget", "verbmem/forget", "knowmem/retain_qa"])
    @pytest.mark.parametrize(
        ("content", "why"),
        [
            (b"[1, 2", "{path}: not valid JSON (Expecting ',' delimiter at column"),
            (b"", "{path}: not valid JSON (Expecting value at column 1)"),
            (b'["caf\xe9"]', "{path} is not UTF-8 text (byte 0xe9 at 5)"),
            (rb'["\ud83d"]', "{path}: contains '\\ud83d', an unpaired surrogate"),
            (b"[" * 20000, "{path}: JSON is nested too deeply"),
            (b"[]", "{path} must be a JSON list of at least one text or record (got []"),
            (b'{"text": "A."}', "{path} must be a JSON list of at least one text or record (got {'text'"),
            (b"null", "{path} must be a JSON list of at least one text or record (got None"),
        ],
        ids=["cut off", "empty", "Latin-1", "half a surrogate", "deep", "no row", "a record", "null"],
    )
    def test_no_list(self, news, name, content, why):
        path = news / f"{name}.json"
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"^{re.escape(why.replace('{path}', str(path)))}") as raised:
            MUSE(str(news), "News").read()
        assert "\n" not in str(raised.value)

    def test_a_text_that_is_not_utf8(self, books):
        (books / "raw" / "forget.json").unlink()
        path = books / "raw" / "forget.txt"
        path.write_bytes(b"caf\xe9")
        with pytest.raises(InputError, match=rf"^{path} is not UTF-8 text"):
            MUSE(str(books), "Books").read()

    @pytest.mark.parametrize("content", ["", "\n\n \n\n"])
    def test_an_empty_text(self, books, content):
        (books / "raw" / "forget.json").unlink()
        path = books / "raw" / "forget.txt"
        path.write_text(content)
        with pytest.raises(InputError, match=rf"^{path}\[0\]: 'text' must be a non-empty text \(got "):
            MUSE(str(books), "Books").read()

    @pytest.mark.parametrize(
        ("name", "row", "key"),
        [
            ("raw/forget", "", "text"),
            ("raw/retain2", " \n", "text"),
            ("raw/forget", 7, "text"),
            ("raw/forget", {"title": "A."}, "text"),
            ("raw/forget", ["A."], "text"),
            ("privleak/holdout", {"text": None}, "text"),
            ("verbmem/forget", {"prompt": "A", "gt": ""}, "gt"),
            ("verbmem/forget", {"gt": "B"}, "prompt"),
            ("verbmem/forget", "A text.", "prompt"),
            ("knowmem/forget_qa", {"question": " ", "answer": "A"}, "question"),
            ("knowmem/retain_qa_icl", {"question": "Q?", "answer": 3}, "answer"),
        ],
    )
    def test_an_empty_document_or_question(self, news, name, row, key):
        path = news / f"{name}.json"
        path.write_text(json.dumps([*NEWS[name][:2], row, *NEWS[name][2:]]))
        with pytest.raises(InputError, match=rf"^{path}\[2\]: '{key}' must be a non-empty text \(got "):
            MUSE(str(news), "News").read()

    def test_blocks_of_a_single_token(self):
        with pytest.raises(InputError, match=r"^data.max_length must be at least 2 \(got 1\)$"):
            MUSE(max_length=1)


class TestTraining:
    @pytest.mark.parametrize(
        ("chunking", "blocks"), [("muse", muse_blocks), ("open_unlearning", open_unlearning_blocks)]
    )
    def test_sequences_are_blocks_of_the_documents(self, news, chunking, blocks):
        data = in_blocks(news, chunking=chunking, batch_size=2)
        expected = {
            name: blocks(NEWS[f"raw/{file}"], data.tokenizer, 24)
            for name, file in {"forget": "forget", "retain": "retain1"}.items()
        }
        assert data.training_sequences == expected
        assert len(data.train_dataloader()) == -(-len(expected["forget"]) // 2)
        shown = [
            tuple(ids[mask].tolist())
            for batch in data.train_dataloader()
            for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
        ]
        dealt = [expected["retain"][retain] for (_, _), (_, retain) in data.items(0)]
        assert len(set(dealt)) == min(len(expected["retain"]), len(expected["forget"]))
        assert sorted(shown) == sorted(each.ids for each in [*expected["forget"], *dealt])

    @pytest.mark.parametrize("train_on", ["pairs", "forget", "retain", "all"])
    def test_seen_documents_are_part_of_making_a_target_alone(self, news, train_on):
        data = in_blocks(news, train_on=train_on)
        seen = NEWS["raw/retain2"] if train_on in ("retain", "all") else []
        assert texts(data.row_sets.retain) == NEWS["raw/retain1"] + seen
        retain = muse_blocks(NEWS["raw/retain1"] + seen, data.tokenizer, 24)
        assert data.training_sequences["retain"] == retain
        if train_on != "pairs":
            items = sorted(data.items(0))
            names = [train_on] if train_on != "all" else ["forget", "retain"]
            assert items == [
                ((name, row),) for name in names for row in range(len(data.training_sequences[name]))
            ]

    def test_the_tokenizer_is_offered_all_documents_whatever_is_trained_on(self, news):
        everything = {
            *NEWS["scal/forget_4"],
            *NEWS["raw/retain1"],
            *NEWS["raw/retain2"],
            *NEWS["privleak/holdout"],
        }
        offered = []
        for options in (
            {"train_on": "pairs", "forget": "scal_4"},
            {"train_on": "retain", "forget": "scal_4"},
            {"train_on": "pairs", "forget": "sust_4", "requests": [f"sust_{fold}" for fold in FOLDS]},
        ):
            data = ready(MUSE(str(news), "News", **options))
            assert sorted(data.offered) == sorted(everything)
            offered.append(data.tokenizer.get_vocab())
        assert offered[0] == offered[1] == offered[2]

    def test_a_share_is_of_documents_and_no_block_holds_any_other(self, news):
        data = in_blocks(news, train_on="forget", forget_share=0.5)
        places = data.trained_forget_rows
        assert len(places) == 3
        chosen = [NEWS["raw/forget"][place] for place in places]
        assert data.training_sequences["forget"] == muse_blocks(chosen, data.tokenizer, 24)
        shown = sorted(row for ((_, row),) in data.items(0))
        assert shown == list(range(len(data.training_sequences["forget"])))

    def test_identity_tells_blocks_apart(self, news):
        def identity(**options):
            return in_blocks(news, **options).identity

        plain = identity(max_length=32)
        assert identity(max_length=32) == plain
        for other in ({"max_length": 33}, {"max_length": 32, "chunking": "open_unlearning"}):
            found = identity(**other)
            assert {name for name in plain if found[name] != plain[name]} == {"blocks"}

    def test_measured_texts_are_cut_at_the_length_of_a_block(self, news):
        (news / "privleak" / "forget.json").write_text(
            json.dumps([" ".join(FOLDS[1]), *NEWS["privleak/forget"]])
        )
        data = ready(MUSE(str(news), "News", max_length=60, evaluate=["forget", "holdout"]))
        lengths = [len(answers[0].ids) for answers in data.evaluation_sequences[0]]
        assert lengths[0] == 60
        assert data.longest == 60
        with pytest.raises(InputError, match=r"more than data\.max_length 60"):
            ready(MUSE(str(news), "News", max_length=60, evaluate=["forget"], too_long="error"))

    def test_a_holdout_that_was_trained_on_is_refused(self, news):
        (news / "privleak" / "holdout.json").write_text(json.dumps(NEWS["raw/forget"][:2]))
        with pytest.raises(InputError, match="2 of 2 holdout rows are also in the forget or retain set"):
            ready(MUSE(str(news), "News"))


class TestHub:
    """Nothing here reaches the network."""

    def columns(self, subset, split):
        content = NEWS[f"{subset}/{split}"]
        return [{"text": each} for each in content] if isinstance(content[0], str) else content

    def test_what_is_asked_of_it(self, monkeypatch):
        asked = set()

        def load_dataset(path, name, split):
            asked.add((path, name, split))
            return datasets.Dataset.from_list(self.columns(name, split))

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        check_whole(MUSE().read(), NEWS)
        assert MUSE(forget="scal_2").read().forget == MUSE(forget=["sust_1", "sust_2"]).read().forget
        files = set(NEWS) - {
            "raw/holdout",
            *(f"{kind}/forget_{n}" for kind in ("scal", "sust") for n in (3, 4)),
        }
        files -= {"scal/forget_1"}
        assert asked == {("muse-bench/MUSE-News", *name.split("/")) for name in files}

    def test_a_copy_of_its_repository(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        folder = tmp_path / "MUSE-News"
        configurations = {}
        for name in NEWS:
            subset, split = name.split("/")
            file = folder / subset / f"{split}-00000-of-00001.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            datasets.Dataset.from_list(self.columns(subset, split)).to_parquet(str(file))
            configurations.setdefault(subset, []).append(f"  - split: {split}\n    path: {subset}/{split}-*")
        lines = [
            f"- config_name: {subset}\n  data_files:\n" + "\n".join(files)
            for subset, files in configurations.items()
        ]
        (folder / "README.md").write_text("---\nconfigs:\n" + "\n".join(lines) + "\n---\n")
        check_whole(MUSE(str(folder)).read(), NEWS)

    def test_a_bad_row_names_its_place(self, monkeypatch):
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: [{"text": "A."}, {"text": ""}])
        with pytest.raises(
            InputError, match=r"^me/MUSE-News raw/forget\[1\]: 'text' must be a non-empty text"
        ):
            MUSE("me/MUSE-News").read()

    @pytest.mark.parametrize(
        ("error", "cause"),
        [
            (ConnectionError("Couldn't reach\nthe hub"), "Couldn't reach the hub"),
            (TimeoutError(), "TimeoutError"),
        ],
    )
    def test_out_of_reach(self, monkeypatch, error, cause):
        def load_dataset(*_, **__):
            raise error

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        message = (
            "cannot read MUSE's sust/forget_2: data.path 'muse-bench/MUSE-News' is neither a local folder nor a data set "
            f"that the hub returns ({cause})"
        )
        with pytest.raises(InputError, match=f"^{re.escape(message)}$") as raised:
            MUSE(forget="sust_2").read()
        assert raised.value.__cause__ is error


CONFIG = """
model:
  class_path: Unlearning
  init_args:
    policy:
      class_path: FromConfig
      init_args:
        config:
          {model_type: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 2}
        vocab_size: 512
    forget_loss: DiPO
    retain_loss: DiPORetain
data:
  class_path: MUSE
  init_args: {path: data/news, corpus: News, max_length: 512, batch_size: 2, evaluation_rows: 2}
forget_quality: {convention: muse, utility_sets: []}
trainer: {accelerator: cpu, devices: 1, max_epochs: 1}
"""


@pytest.mark.parametrize("chunking", ["muse", "open_unlearning"])
def test_a_run_on_a_folder(cli, news, tmp_path, chunking):
    (tmp_path / "muse.yaml").write_text(CONFIG)
    ended = cli(
        "fit", "--config", "muse.yaml", "--name", "run", "--data.chunking", chunking, "--data.forget", "sust_2",
        "--data.requests", '["sust_1", "sust_2"]',
    )  # fmt: skip
    assert ended.code == 0, ended.err
    run = tmp_path / "runs" / "run"
    before, after = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    assert (before["step"], after["step"], after["epoch"]) == (0, 1, 1)
    for name in ("forget_verbatim", "forget_knowledge", "retain_knowledge", "membership_min_k_auc"):
        assert 0 <= after[name] <= 1
    result = json.loads((run / "evaluation" / "step-000001.json").read_text())
    assert result["settings"]["corpus"] == "MUSE-News"
    assert list(result["sets"]) == [*SETS, "request_1", "request_2"]
    answered = {
        name: all("generation" in row for row in each["rows"]) for name, each in result["sets"].items()
    }
    assert [name for name, generated in answered.items() if generated] == SETS[3:]
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["data"]["forget"]["rows"] == len(FOLDS[2])
