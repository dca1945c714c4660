"""Miniatures of MUSE's corpora, and what a whole one is read as."""

import json

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
        "verbmem/forget": passages, "knowmem/forget_qa": questions(forget, 4),
        "knowmem/forget_qa_icl": questions("mayor", 10), "knowmem/retain_qa": questions("bridge", 5),
        "knowmem/retain_qa_icl": questions("tower", 10), "privleak/forget": articles(forget, 3),
        "privleak/retain": articles("bridge", 4), "privleak/holdout": articles(holdout, 5),
    }  # fmt: skip


FOLDS = {1: articles("fair", 6), 2: articles("flood", 4), 3: articles("fire", 4), 4: articles("storm", 4)}
NEWS = measured("fair", "match") | {
    "raw/forget": FOLDS[1],
    "raw/retain1": articles("harvest", 5),
    "raw/retain2": articles("bridge", 7),
    **{f"sust/forget_{fold}": FOLDS[fold] for fold in FOLDS},
    **{
        f"scal/forget_{fold}": [text for each in range(1, fold + 1) for text in FOLDS[each]] for fold in FOLDS
    },
}
BOOKS = measured("duel", "siege") | {
    "raw/forget": articles("duel", 4),
    "raw/retain1": articles("feast", 3),
    "raw/retain2": articles("bridge", 3),
}


def write(folder, corpus, kinds=("json", "txt")):
    """Write the files of a corpus, documents as the repository has them: as a list and as one text."""
    for name, content in corpus.items():
        path = folder / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        documents = path.parent.name in ("raw", "scal", "sust")
        if not documents or "json" in kinds:
            path.write_text(json.dumps(content))
        if documents and "txt" in kinds:
            path.with_suffix(".txt").write_text("\n\n".join(content))
    return folder


def texts(rows):
    assert not any(row.messages for row in rows)
    return [row.answer for row in rows]


def pairs(rows, question, answer):
    return [{question: row.question, answer: row.answer} for row in rows]


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
