"""The shipped people: four facts each, nobody in two parts, nothing that two people share, and their license beside them."""

import re

import pytest

from dipo_pl.data_modules.fictitious_people import FOLDER, FictitiousPeople
from dipo_pl.data_modules.json_lines import JSONL

PEOPLE = {"forget": 2, "retain": 8, "holdout": 4}
FACTS = {
    "birth date": r"The birth date is ([A-Z][a-z]+ \d\d?, 19\d\d)\.",
    "number": r"The Social Security Number is (900-\d\d-\d{4})\.",
    "phone": r"The phone number is (\d{3}-\d{3}-\d{4})\.",
    "address": r"The home address is (\d+ [\w ]+, [\w ]+, [A-Z]{2}, \d{5})\.",
}
NAME = re.compile(r"What is (?:the (?:birth date|home address) of )?([A-Z]\w+ [A-Z]\w+)(?:'s .*)?\?")


@pytest.fixture(scope="module")
def sets():
    return {each.name: each.rows for each in FictitiousPeople().read().evaluation}


def names(rows):
    found = [NAME.fullmatch(row.question) for row in rows]
    assert all(found), [row.question for row in rows]
    return [each[1] for each in found]


def test_parts_have_their_people_with_four_facts_each(sets):
    for part, count in PEOPLE.items():
        of_rows = names(sets[part])
        assert len(set(of_rows)) == count
        assert of_rows == [name for name in dict.fromkeys(of_rows) for _ in FACTS]
        for place, (name, row) in enumerate(zip(of_rows, sets[part], strict=True)):
            assert name not in row.answer
            assert re.fullmatch([*FACTS.values()][place % len(FACTS)], row.answer), row.answer


def test_nobody_is_in_two_parts_and_nothing_is_shared(sets):
    parts = [set(names(sets[part])) for part in PEOPLE]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 14
    rows = [row for part in PEOPLE for row in sets[part]]
    for fact, pattern in FACTS.items():
        values = [found[1] for row in rows if (found := re.fullmatch(pattern, row.answer))]
        assert len(set(values)) == len(values) == 14, fact


def test_what_is_trained_on_are_the_people_and_no_world_fact():
    rows = FictitiousPeople().read()
    sets = {each.name: each.rows for each in rows.evaluation}
    assert (rows.forget, rows.retain) == (sets["forget"], sets["retain"])
    questions = {row.question for row in sets["world_facts"]}
    assert len(questions) == len(sets["world_facts"]) == 24
    assert not questions & {row.question for part in PEOPLE for row in sets[part]}


def test_source_and_license_are_named_beside_the_rows():
    notice = (FOLDER / "NOTICE.md").read_text()
    assert "2502.15097" in notice
    assert "License 2.0" in " ".join(notice.split())
    assert "Changed:" in notice
    # The license itself goes with the package.
    assert "Apache License" in (FOLDER.resolve().parents[1] / "LICENSE").read_text()


def test_the_files_of_the_tutorial_on_own_data_are_these_rows(cli, sets):
    """The command that the tutorial gives, with a tiny random model in place of the pretrained one."""
    root = FOLDER.resolve().parents[1]
    page = (root / "docs/tutorials/your-data.md").read_text()
    files = dict(re.findall(r"--data\.(\w+) (data_modules/people/\w+\.jsonl)", page))
    assert files.keys() == PEOPLE.keys()
    read = JSONL(**{part: str(root / path) for part, path in files.items()}).read()
    assert {each.name: each.rows for each in read.evaluation} == {part: sets[part] for part in PEOPLE}
    words = [word for part, path in files.items() for word in (f"--data.{part}", root / path)]
    quick = ("--data", "JSONL", *words, "--trainer.max_epochs", "1", "--forget_quality.max_new_tokens", "4")
    ended = cli("fit", "--config", "smoke.yaml", *quick, "--name", "two-people")
    assert ended.code == 0, ended.err
