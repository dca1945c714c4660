"""Tests of README.md and docs/: what they name exists, their code runs, and no sentence stands in both."""

import json
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").rglob("*.md"))
# Files that the reader of a page writes.
OWN = {
    "capped_ascent.yaml", "csv_pairs.yaml", "answer_length.yaml", "deletions.yaml", "requests.yaml", "hint.yaml",
    "my_audit.yaml", "two_methods.yaml", "long_check.yaml",
}  # fmt: skip
# Study files of code that is not kept: docs/results.md names the commit that has it.
OF_THE_HISTORY = {"study_improvement.yaml"}


def shipped() -> set[str]:
    return {path.name for path in (ROOT / "configs").glob("*.yaml")}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [README, *PAGES], ids=name)
def test_configs_that_a_page_names_are_shipped(path):
    text = path.read_text().replace("\\_", "_")
    named = set(re.findall(r"(?<![\w/.])(\w+\.yaml)\b", text)) - OWN - OF_THE_HISTORY - {"config.yaml"}
    assert named <= shipped()


def test_the_page_of_configs_lists_all_of_them():
    assert set(re.findall(r"`(\w+\.yaml)`", (ROOT / "docs/reference/configs.md").read_text())) == shipped()


def test_the_page_of_the_api_lists_all_public_names():
    import dipo_pl
    from dipo_pl.public_names import modules_of

    text = (ROOT / "docs/reference/python.md").read_text()
    listed = set(re.findall(r"`(\w+)`", text))
    losses = {each for each in dipo_pl.__all__ if modules_of("dipo_pl")[each] == "dipo_pl.losses"}
    assert set(dipo_pl.__all__) - {"__version__"} - losses <= listed


def test_readme_is_short():
    assert len(README.read_text().splitlines()) <= 250


@pytest.mark.parametrize("path", [README, *PAGES], ids=name)
def test_files_that_a_page_links_to_exist(path):
    for target in re.findall(r"\]\(([^)#\s]+)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def sentences(text: str) -> set[str]:
    """Sentences of the running text, without code, tables and links' targets."""
    text = re.sub(r"^```.*?^```|^(?: {4}|\|)[^\n]*", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)
    found = (" ".join(each.split()) for each in re.split(r"(?<=[.:?])\s|\n\n", text))
    return {each for each in found if len(each) > 40}


def test_no_sentence_stands_in_both_readme_and_docs():
    docs = set().union(*(sentences(path.read_text()) for path in PAGES))
    assert sentences(README.read_text()) & docs == set()


def test_every_page_is_in_the_navigation():
    listed = re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text())
    assert sorted(listed) == sorted(str(path.relative_to(ROOT / "docs")) for path in PAGES)


def test_citation_is_complete():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "version", "license"} <= citation.keys()
    scope: dict = {}
    exec((ROOT / "dipo_pl/version.py").read_text(), scope)
    assert citation["version"] == scope["__version__"]


def files_of(page: str) -> dict[str, str]:
    """The files that a page shows under their names."""
    text = (ROOT / "docs" / "how-to" / page).read_text()
    return dict(re.findall(r"^`(\S+)`:\n\n```\w+\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL))


COMMANDS = {
    "custom-loss.md": [("--config", "capped_ascent.yaml")],
    "custom-metric.md": [("--config", "answer_length.yaml")],
    "custom-data.md": [("--config", "csv_pairs.yaml")],
    "custom-constructor.md": [("--model.constructor.filter", "my_pairs.AboveMean", "--name", "above-mean"),
                              ("--model.constructor", "my_pairs.TowardsUniform", "--model.constructor.mix", "0.3")],
}  # fmt: skip


@pytest.mark.parametrize("page", COMMANDS)
def test_the_example_of_a_page_runs(page, cli, monkeypatch):
    """The files as they stand there: their own tests pass, and the page's commands train."""
    for file, text in files_of(page).items():
        Path(file).write_text(text)
    monkeypatch.syspath_prepend(str(Path().resolve()))
    for file in map(str, Path().glob("test_*.py")):
        scope: dict = {}
        exec(compile(Path(file).read_text(), file, "exec"), scope)
        tests = [each for name, each in scope.items() if name.startswith("test_")]
        assert tests
        for each in tests:
            each()
    text = (ROOT / "docs" / "how-to" / page).read_text()
    for options in COMMANDS[page]:
        assert all(option in text for option in options)
        quick = ("--trainer.max_epochs", "1", "--forget_quality.max_new_tokens", "4")
        ended = cli("fit", "--config", "smoke.yaml", *options, *quick)
        assert ended.code == 0, ended.err
    if page == "custom-metric.md":
        (metrics,) = Path("runs").glob("*/metrics.jsonl")
        last = json.loads(metrics.read_text().splitlines()[-1])
        assert {"forget_words", "retain_words", "holdout_words"} <= last.keys()
