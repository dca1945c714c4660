"""MUSE's data module on miniatures in the layout of the benchmark's repository."""

import json
import re

import pytest
from connected import connected
from muse_corpora import BOOKS, FOLDS, NEWS, SETS, check_whole, questions, texts, write

from dipo_pl.data_modules.blocked_texts import muse_blocks, open_unlearning_blocks
from dipo_pl.data_modules.muse import MUSE
from dipo_pl.errors import InputError


@pytest.fixture
def news(tmp_path):
    return write(tmp_path / "data" / "news", NEWS)


def set_up(folder, forget="forget", **options):
    return connected(MUSE(str(folder), "News", forget, **options), vocabulary=300)


def in_blocks(folder, **options):
    """Blocks of 24 tokens, which the few-shot questions would not fit into."""
    return set_up(folder, **{"max_length": 24, "evaluate": ["holdout"]} | options)


class TestFolder:
    @pytest.mark.parametrize(("name", "corpus"), [("News", NEWS), ("Books", BOOKS)])
    @pytest.mark.parametrize("kinds", [("json", "txt"), ("json",)])
    def test_lists(self, tmp_path, name, corpus, kinds):
        check_whole(MUSE(str(write(tmp_path, corpus, kinds)), name).read(), corpus)

    def test_former_names_and_records_of_texts(self, tmp_path):
        books = write(tmp_path, BOOKS)
        path = books / "raw" / "forget.json"
        path.write_text(json.dumps([{"text": text, "url": "none"} for text in BOOKS["raw/forget"]]))
        for name, former in {
            "privleak/retain": "retain2", "knowmem/retain_qa": "retain2_qa", "knowmem/retain_qa_icl": "retain2_qa_icl",
        }.items():  # fmt: skip
            path = books / f"{name}.json"
            path.rename(path.with_stem(former))
        check_whole(MUSE(str(books), "Books").read(), BOOKS)

    def test_a_text_is_one_document_that_gives_the_same_blocks(self, tmp_path):
        folders = [write(tmp_path / kind, NEWS, [kind]) for kind in ("json", "txt")]
        sets = MUSE(str(folders[1]), "News").read()
        assert texts(sets.forget) == ["\n\n".join(NEWS["raw/forget"])]
        assert texts(sets.retain) == ["\n\n".join(NEWS["raw/retain1"])]
        lists, text = (in_blocks(each) for each in folders)
        assert (len(lists.row_sets.forget), len(text.row_sets.forget)) == (6, 1)
        assert lists.tokenizer.get_vocab() == text.tokenizer.get_vocab()
        assert lists.training_sequences == text.training_sequences

    @pytest.mark.parametrize("count", [9, 11])
    def test_another_number_of_examples_gives_a_warning(self, news, count):
        (news / "knowmem" / "retain_qa_icl.json").write_text(json.dumps(questions("tower", count)))
        with pytest.warns(
            UserWarning, match=f"has {count} answered examples in retain_qa_icl, and MUSE has 10"
        ):
            sets = MUSE(str(news), "News").read()
        assert len(sets.evaluation[-1].prompt.examples) == count


class TestForgetSets:
    @pytest.mark.parametrize("fold", FOLDS)
    @pytest.mark.parametrize("kind", ["scal", "sust"])
    def test_folds(self, news, kind, fold):
        sets = MUSE(str(news), "News", f"{kind}_{fold}").read()
        assert texts(sets.forget) == NEWS[f"{kind}/forget_{fold}"]
        assert texts(sets.retain) == NEWS["raw/retain1"]
        assert texts(sets.evaluation[0].rows) == NEWS["privleak/forget"]

    def test_a_list_has_every_document_once(self, tmp_path):
        names = ["sust_2", "scal_3", "forget"]
        lists, text = (write(tmp_path / kind, NEWS, [kind]) for kind in ("json", "txt"))
        assert texts(MUSE(str(lists), "News", names).read().forget) == FOLDS[2] + FOLDS[1] + FOLDS[3]
        # Of texts, the largest contains the others.
        assert texts(MUSE(str(text), "News", names).read().forget) == [
            "\n\n".join(FOLDS[1] + FOLDS[2] + FOLDS[3])
        ]

    @pytest.mark.parametrize("kind", ["json", "txt"])
    def test_all_growing_requests_are_forgotten_together(self, tmp_path, kind):
        names = ["scal_1", "scal_2"]
        folder = write(tmp_path, NEWS, [kind])
        assert in_blocks(folder, forget=names, requests=names).forgotten == ["request_1", "request_2"]

    def test_requests_are_measured_by_their_documents(self, news):
        data = set_up(news, "sust_2", requests=["sust_1", "sust_2"], evaluation_rows=5)
        requested = data.evaluation_sets[-2:]
        assert [each.name for each in requested] == ["request_1", "request_2"]
        assert [texts(each.rows) for each in requested] == [FOLDS[1][:5], FOLDS[2]]
        assert {each.new_tokens for each in requested} == {0}
        assert data.forgotten == ["request_2"]
        assert set(FOLDS[1]) <= set(data.module.texts)

    @pytest.mark.parametrize(
        ("corpus", "name", "known"),
        [
            *(("News", name, "forget, scal_1 to scal_4, sust_1 to sust_4")
              for name in ("scal_0", "scal_5", "sust_", "sust_11", "forget_1", "forget10", "")),
            *(("Books", name, "forget") for name in ("scal_1", "sust_4", "forget10")),
        ],
    )  # fmt: skip
    def test_unknown_names(self, news, corpus, name, known):
        message = rf"^data.forget and data.requests must name forget sets of MUSE-{corpus}: {known} \(got {name!r}\)$"
        with pytest.raises(InputError, match=message):
            MUSE(str(news), corpus, name).read()


class TestCorpus:
    @pytest.mark.parametrize(
        ("path", "name"),
        [("muse-bench/MUSE-News", "News"), ("muse-bench/MUSE-Books", "Books"), ("me/muse-books/", "Books")],
    )
    def test_comes_from_the_name_of_the_path(self, path, name):
        for corpus in (None, name):
            assert MUSE(path, corpus).settings["corpus"] == f"MUSE-{name}"

    def test_must_be_given_for_a_folder_and_agree_with_the_path(self, news):
        assert MUSE(str(news), "News").settings["corpus"] == "MUSE-News"
        with pytest.raises(
            InputError, match=rf"^data.corpus must be News or Books .* \(got null, '{news}'\)$"
        ):
            MUSE(str(news))
        message = r"^data.corpus must be News, as in data.path 'muse-bench/MUSE-News', or null \(got Books\)$"
        with pytest.raises(InputError, match=message):
            MUSE("muse-bench/MUSE-News", "Books")


class TestBadFiles:
    @pytest.mark.parametrize("name", sorted(set(NEWS) - {f"scal/forget_{n}" for n in FOLDS}))
    def test_missing(self, news, name):
        for kind in (".json", ".txt"):
            (news / f"{name}{kind}").unlink(missing_ok=True)
        fold = re.fullmatch(r"sust/forget_(\d)", name)
        stem = name.split("/")[1]
        message = rf"^no file {news}/{name}\.json or {stem}\.txt: data.path must be the folder of one corpus of MUSE"
        with pytest.raises(InputError, match=message):
            MUSE(str(news), "News", f"sust_{fold[1]}" if fold else "forget").read()

    @pytest.mark.parametrize(("name", "content", "message"), [
        ("verbmem/forget.json", b"[1, 2", "{path}: not valid JSON (Expecting ',' delimiter at column"),
        ("verbmem/forget.json", b'["caf\xe9"]', "{path} is not UTF-8 text (byte 0xe9 at 5)"),
        ("raw/forget.json", b"[]", "{path} must be a JSON list of at least one text or record (got []"),
        ("raw/forget.json", b'{"text": "A."}',
         "{path} must be a JSON list of at least one text or record (got {'text'"),
        ("raw/forget.json", b"null", "{path} must be a JSON list of at least one text or record (got None"),
        ("raw/forget.txt", b"caf\xe9", "{path} is not UTF-8 text (byte 0xe9 at 3)"),
        ("raw/forget.txt", b"\n\n \n", "{path}[0]: 'text' must be a non-empty text (got "),
    ])  # fmt: skip
    def test_unusable_files(self, news, name, content, message):
        path = news / name
        path.with_suffix(".json").unlink()
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"^{re.escape(message.replace('{path}', str(path)))}") as raised:
            MUSE(str(news), "News").read()
        assert "\n" not in str(raised.value)

    @pytest.mark.parametrize(
        ("name", "row", "key"),
        [
            ("raw/forget", "", "text"), ("raw/retain2", " \n", "text"), ("raw/forget", 7, "text"),
            ("raw/forget", {"title": "A."}, "text"), ("raw/forget", ["A."], "text"),
            ("privleak/holdout", {"text": None}, "text"), ("verbmem/forget", {"prompt": "A", "gt": ""}, "gt"),
            ("verbmem/forget", {"gt": "B"}, "prompt"), ("verbmem/forget", "A text.", "prompt"),
            ("knowmem/forget_qa", {"question": " ", "answer": "A"}, "question"),
            ("knowmem/retain_qa_icl", {"question": "Q?", "answer": 3}, "answer"),
        ],
    )  # fmt: skip
    def test_unusable_rows(self, news, name, row, key):
        path = news / f"{name}.json"
        path.write_text(json.dumps([*NEWS[name][:2], row, *NEWS[name][2:]]))
        with pytest.raises(InputError, match=rf"^{path}\[2\]: '{key}' must be a non-empty text \(got "):
            MUSE(str(news), "News").read()


class TestTraining:
    @pytest.mark.parametrize(
        ("chunking", "blocks"), [("muse", muse_blocks), ("open_unlearning", open_unlearning_blocks)]
    )
    def test_sequences_are_blocks_of_the_documents(self, news, chunking, blocks):
        data = in_blocks(news, chunking=chunking, batch_size=2)
        files = {"forget": "forget", "retain": "retain1"}
        expected = {name: blocks(NEWS[f"raw/{file}"], data.tokenizer, 24) for name, file in files.items()}
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
    def test_seen_documents_are_trained_on_only_for_a_target_or_retain_only_model(self, news, train_on):
        data = in_blocks(news, train_on=train_on)
        seen = NEWS["raw/retain2"] if train_on in ("retain", "all") else []
        assert texts(data.row_sets.retain) == NEWS["raw/retain1"] + seen
        retain = muse_blocks(NEWS["raw/retain1"] + seen, data.tokenizer, 24)
        assert data.training_sequences["retain"] == retain
        if train_on != "pairs":
            names = [train_on] if train_on != "all" else ["forget", "retain"]
            counts = {name: range(len(data.training_sequences[name])) for name in names}
            assert sorted(data.items(0)) == [((name, row),) for name in names for row in counts[name]]

    def test_the_tokenizer_is_trained_on_all_documents_whatever_is_trained_on(self, news):
        names = ("scal/forget_4", "raw/retain1", "raw/retain2", "privleak/holdout")
        everything = sorted({text for name in names for text in NEWS[name]})
        requests = [f"sust_{fold}" for fold in FOLDS]
        for options in (
            {"train_on": "pairs", "forget": "scal_4"},
            {"train_on": "retain", "forget": "scal_4"},
            {"train_on": "pairs", "forget": "sust_4", "requests": requests},
        ):
            assert sorted(set_up(news, **options).module.texts) == everything

    def test_a_share_is_of_documents_and_blocks_have_no_others(self, news):
        data = in_blocks(news, train_on="forget", forget_share=0.5)
        places = data.trained_forget_rows
        assert len(places) == 3
        chosen = [NEWS["raw/forget"][place] for place in places]
        assert data.training_sequences["forget"] == muse_blocks(chosen, data.tokenizer, 24)
        shown = sorted(row for ((_, row),) in data.items(0))
        assert shown == list(range(len(data.training_sequences["forget"])))

    def test_identity_tells_blocks_apart(self, news):
        plain = in_blocks(news, max_length=32).identity
        for options, differences in (
            ({}, set()),
            ({"max_length": 33}, {"blocks"}),
            ({"chunking": "open_unlearning"}, {"blocks"}),
        ):
            found = in_blocks(news, **{"max_length": 32} | options).identity
            assert {name for name in plain if found[name] != plain[name]} == differences

    def test_measured_texts_are_cut_at_the_length_of_a_block(self, news):
        (news / "privleak" / "forget.json").write_text(
            json.dumps([" ".join(FOLDS[1]), *NEWS["privleak/forget"]])
        )
        options = {"max_length": 60, "evaluate": ["forget", "holdout"]}
        data = set_up(news, **options)
        assert len(data.evaluation_sequences[0][0][0].ids) == data.longest == 60
        with pytest.raises(InputError, match=r"more than data\.max_length 60"):
            set_up(news, **options, too_long="error")


@pytest.mark.parametrize("chunking", ["muse", "open_unlearning"])
def test_a_run_on_a_folder(cli, news, tmp_path, chunking):
    ended = cli(
        "fit", "--config", "smoke_news.yaml", "--name", "run", "--trainer.max_epochs", "1", "--data", "MUSE", "--data.path",
        news, "--data.corpus", "News", "--data.chunking", chunking, "--data.forget", "sust_2", "--data.requests",
        '["sust_1", "sust_2"]', "--data.max_length", "512", "--data.batch_size", "2", "--data.evaluation_rows", "2",
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
    generated = [
        name for name, each in result["sets"].items() if all("generation" in row for row in each["rows"])
    ]
    assert generated == SETS[3:]
    assert json.loads((run / "manifest.json").read_text())["data"]["forget"]["rows"] == len(FOLDS[2])
