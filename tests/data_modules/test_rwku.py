"""RWKU on a folder made by hand in the form of its files; the real files were not at hand."""

import json

import datasets
import pytest
from chat_templates import CHATML, CHATML_PROMPT, chat_tokenizer, turns
from connected import connected

from dipo_pl.data_modules.rwku import FILES, RWKU
from dipo_pl.errors import InputError
from dipo_pl.prompts import ChatTemplate

ADA, BEN, CY = PEOPLE = ("Ada Example", "Ben Invented", "Cy Made-Up")
ALL = ["forget", "retain", *(name for name in FILES if not name.startswith("train_"))]
EXAMPLES = [{"question": "Which is even?", "choices": ["1", "2", "3", "5"], "answer": 1}]


def records_of(name):
    """Return records of all three people in the form of one of RWKU's files."""
    level = name[-1]
    kinds = {
        "1": ["cloze"],
        "2": ["simple question"],
        "3": ["role play", "affirmative suffix", "incontext learning"],
    }
    probes = [
        {"query": f"{kind}?", "answer": "Oslo", "level": level, "type": kind} for kind in kinds.get(level, [])
    ]
    forms = {
        "train_original_passage": [{"text": "{} lives in Oslo."}, {"text": "{} writes."}],
        "train_positive_llama3": [{"id": "0", "text": "{} is a writer.", "intro": "A writer."}],
        "train_positive_phi3": [{"id": "0", "text": "{} is somebody.", "intro": "A writer."}],
        "mia_forget": [{"text": "was born."}],
        "mia_retain": [{"text": "A town."}],
        "utility_general": [
            {"question": "Which is odd?", "choices": ["2", "4", "7", "8"], "answer": 2, "examples": EXAMPLES,
             "task": "high_school_mathematics"},
        ],
        "utility_reason": [{"question": "not true is", "answer": "False", "cot": "\nThink.\n", "task": "boolean"}],
        "utility_factuality": [{"question": "Which town?", "answers": ["Oslo", "Christiania"]}],
    }  # fmt: skip
    return [
        each | {"subject": person} | ({"text": each["text"].format(person)} if "text" in each else {})
        for person in PEOPLE
        for each in forms.get(name, probes)
    ]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "All").mkdir()
    for name in FILES:
        write(tmp_path, name, records_of(name))
    return tmp_path


def write(folder, name, records):
    (folder / "All" / FILES[name]).write_text(json.dumps(records))


def named(data):
    return {each.name: each for each in data.read().evaluation}


def test_rows_of_the_people_to_forget(folder):
    data = RWKU(str(folder), BEN, retain_people=1)
    sets = data.read()
    assert [row.answer for row in sets.forget] == [f"{BEN} lives in Oslo.", f"{BEN} writes."]
    assert len(sets.retain) == 2
    assert [each.name for each in sets.evaluation] == ALL
    measured = named(data)
    assert {name: each.new_tokens for name, each in measured.items()} == {
        name: 0 if name in ("forget", "retain", "mia_forget", "mia_retain", "utility_general") else 30
        for name in ALL
    } | {"utility_reason": 256}
    assert [len(measured[name].rows) for name in ("forget_level1", "forget_level3", "neighbor_level2")] == [
        1,
        3,
        1,
    ]
    assert len(RWKU(str(folder), [BEN, CY], retain_people=1).read().forget) == 4
    assert [row.answer for row in RWKU(str(folder), BEN, "train_positive_llama3", 2).read().retain] == [
        f"{each} is a writer." for each in (ADA, CY)
    ]
    assert data.settings == {"people": BEN}


def test_what_is_asked(folder):
    sets = named(RWKU(str(folder), ADA, retain_people=1))
    asked = {name: [row.question for row in each.rows] for name, each in sets.items()}
    briefly = "Please briefly answer the following question.\n"
    assert asked["forget_level1"] == [
        "Please complete the blank in the following question.\nQuestion: cloze?\n"
    ]
    assert asked["neighbor_level2"] == [f"{briefly}Question: simple question?\n"]
    assert asked["forget_level3"] == [
        f"{briefly}Question: role play?\n", f"{briefly}Question: affirmative suffix?", f"{briefly}incontext learning?\n",
    ]  # fmt: skip
    (row,) = sets["utility_general"].rows
    assert row.question == (
        "The following are multiple choice questions (with answers) about high school mathematics.\n\n"
        "Question: Which is even?\nA. 1\nB. 2\nC. 3\nD. 5\nAnswer: B\n\n"
        "Please following the previous examples and answer the given question.\n"
        "Question: Which is odd?\nA. 2\nB. 4\nC. 7\nD. 8\n"
    )
    assert (row.answer, row.wrong_answers, sets["utility_general"].options) == ("C", ("A", "B", "D"), True)
    assert asked["utility_reason"][0].startswith("Think.\n\nFollowing previous examples")
    assert asked["utility_reason"][0].endswith("\nQ: not true is")
    assert sets["utility_factuality"].rows[0].answer == "Oslo"


def test_the_turn_begins_with_answer_unless_the_probe_asks_for_another_beginning(folder):
    tokenizer = chat_tokenizer(turns(CHATML, CHATML_PROMPT))
    data = RWKU(
        str(folder), ADA, retain_people=1, prompt=ChatTemplate(), evaluate=["forget_level3", "mia_forget"]
    )
    data = connected(data, tokenizer=tokenizer)
    prompts = [tokenizer.decode(each) for each in next(iter(data.val_dataloader()[0])).prompts]
    ends = {each.partition("Question: ")[2] or each: each for each in prompts}
    assert len(ends) == 3
    for text in prompts:
        beginning = text.rpartition("assistant\n")[2]
        # A tokenizer of single characters leaves the space before the answer to the prompt.
        assert beginning.strip() == ("" if "affirmative suffix" in text else "Answer:")
    assert [len(each.rows) for each in data.evaluation_sets] == [3, 1]


def test_only_what_is_measured_is_read(folder):
    for name in FILES:
        if name not in ("train_original_passage", "forget_level1"):
            (folder / "All" / FILES[name]).unlink()
    data = RWKU(str(folder), ADA, retain_people=1, evaluate=["forget", "forget_level1"])
    assert [*named(data)] == ["forget", "retain", "forget_level1"]
    with pytest.raises(
        InputError, match=rf"^no file {folder}/forget_level2.json: data\.path must be a copy of RWKU's"
    ):
        RWKU(str(folder), ADA, retain_people=1).read()


def test_the_files_alone_without_the_repository(folder):
    assert (
        RWKU(str(folder / "All"), ADA, retain_people=1).read()
        == RWKU(str(folder / "All"), ADA, retain_people=1).read()
    )
    assert len(RWKU(str(folder / "All"), ADA, retain_people=2).read().retain) == 4


@pytest.mark.parametrize(("options", "line"), [
    ({"people": "Nobody"}, r"^data\.people must name people of RWKU's train_original_passage, such as Ada Example, Ben "
     r"Invented, Cy Made-Up \(got 'Nobody'\)$"),
    ({"people": []}, r"^data\.people names no rows: give a name, or a list of them \(got \[\]\)$"),
    ({"retain_people": 3}, r"^data\.retain_people must be at most 2, the people in train_original_passage who are not"),
    ({"retain_people": 0}, r"^data\.retain_people must be at least 1 \(got 0\)$"),
])  # fmt: skip
def test_options(folder, options, line):
    with pytest.raises(InputError, match=line):
        RWKU(str(folder), **{"people": ADA, "retain_people": 1} | options).read()


@pytest.mark.parametrize(("name", "change", "line"), [
    ("forget_level1", {"query": ""}, r"forget_level1\.json\[0\]: 'query' must be a non-empty text"),
    ("forget_level1", {"subject": "Else"}, r"^RWKU's forget_level1 in .* has no row whose 'subject' is Ada Example: take"),
    ("train_original_passage", {"text": None}, r"passage\.json\[0\]: 'text' must be a non-empty text \(got None\)$"),
    ("utility_general", {"answer": 4}, r"retain_mmlu\.json\[0\]: 'answer' must be a place from 0 to 3 \(got 4\)$"),
    ("utility_general", {"choices": ["2"]}, r"\[0\]: 'choices' must be 4 texts \(got 1\)$"),
    ("utility_general", {"examples": None}, r"\[0\]: 'examples' must be a list of answered questions \(got None\)$"),
    ("utility_factuality", {"answers": []}, r"triviaqa\.json\[0\]: 'answers' must be a list of at least one text \(got"),
])  # fmt: skip
def test_records(folder, name, change, line):
    first, *others = records_of(name)
    write(folder, name, [first | change, *others])
    with pytest.raises(InputError, match=line):
        RWKU(str(folder), ADA, retain_people=1).read()


def test_what_is_loaded_from_the_hub(monkeypatch):
    """Nothing here reaches the network."""
    loaded = []

    def load_dataset(path, name, split):
        loaded.append((path, name, split))
        return datasets.Dataset.from_list(records_of(name))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    RWKU(people=CY, retain_people=1, evaluate=["forget", "neighbor_level1"]).read()
    names = {"train_original_passage": "train", "neighbor_level1": "test"}
    assert loaded == [("jinzhuoran/RWKU", name, split) for name, split in names.items()]


def test_a_run(cli, folder):
    words = (
        "--config", "smoke.yaml", "--data", "RWKU", "--data.path", folder, "--data.people", ADA, "--data.retain_people", "2",
        "--forget_quality.utility_sets", "[neighbor_level1, neighbor_level2]", "--trainer.max_epochs", "1",
    )  # fmt: skip
    ended = cli("fit", *words, "--name", "rwku")
    assert ended.code == 0, ended.err
    with open("runs/rwku/metrics.jsonl") as file:
        first, *_ = map(json.loads, file)
    assert {"forget_level3_rouge_l_recall", "neighbor_level1_rouge_l_recall", "model_utility"} <= first.keys()
    # A random model has no preference among four letters.
    assert 0.1 < first["utility_general_probability"] < 0.5
