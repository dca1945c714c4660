"""The commands of the demo: each can be given as it stands, and takes what the ones before it make."""

from pathlib import Path

import pytest

from dipo_pl.cli.run import resolved
from dipo_pl.commands.demo import CORPORA, _steps


@pytest.mark.parametrize("name", CORPORA)
def test_each_step_takes_what_those_before_it_make(name, monkeypatch):
    monkeypatch.setattr("sys.argv", ["dipo-pl"])
    made: set[Path] = set()
    for _, words in _steps(CORPORA[name], Path("elsewhere")):
        config = resolved(words)
        policy = config["model"]["init_args"]["policy"]["init_args"]
        if "path" in policy:
            assert Path(policy["path"]).parent in made
        retain_result = config["forget_quality"]["retain_result"]
        assert retain_result is None or Path(retain_result) in made
        configs = "-".join(Path(word).stem for word in words if word.endswith(".yaml"))
        made.add(Path(config["output_dir"]) / (config["name"] or configs))
    corpus = CORPORA[name]
    shown = {corpus.target, corpus.retain_only, corpus.retain_result, corpus.run}
    assert made == {Path("elsewhere") / each for each in shown}


def test_another_corpus(cli):
    ended = cli("demo", "--corpus", "books")
    assert ended.code == 2
    assert "invalid choice: 'books'" in ended.errors[0]
