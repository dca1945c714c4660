"""`dipo-pl demo`: each command can be given by itself, and needs only what those before it write."""

from pathlib import Path

import pytest

from dipo_pl.cli.run import resolved
from dipo_pl.commands.demo import CORPORA, _steps


@pytest.mark.parametrize("name", CORPORA)
def test_each_step_needs_only_what_those_before_it_write(name, monkeypatch):
    monkeypatch.setattr("sys.argv", ["dipo-pl"])
    corpus, written = CORPORA[name], set()
    for _, words in _steps(corpus, Path("elsewhere")):
        config = resolved(words)
        policy = config["model"]["init_args"]["policy"]["init_args"]
        assert "path" not in policy or Path(policy["path"]).parent in written
        retain_result = config["forget_quality"]["retain_result"]
        assert retain_result is None or Path(retain_result) in written
        configs = "-".join(Path(word).stem for word in words if word.endswith(".yaml"))
        written.add(Path(config["output_dir"]) / (config["name"] or configs))
    shown = {corpus.target, corpus.retain_only, corpus.retain_result, corpus.run}
    assert written == {Path("elsewhere") / each for each in shown}


def test_unknown_corpus(cli):
    ended = cli("demo", "--corpus", "books")
    assert ended.code == 2
    assert "invalid choice: 'books'" in ended.errors[0]
