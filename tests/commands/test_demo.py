"""`dipo-pl demo`: each command can be given by itself, and needs only what those before it write."""

from pathlib import Path

import pytest

from dipo_pl.cli.run import resolved
from dipo_pl.commands.demo import CORPORA, _steps


@pytest.mark.parametrize("name", CORPORA)
@pytest.mark.parametrize("seed", [0, 3])
def test_each_step_needs_only_what_those_before_it_write(name, seed, monkeypatch):
    monkeypatch.setattr("sys.argv", ["dipo-pl"])
    corpus, written = CORPORA[name], set()
    for _, words in _steps(corpus, Path("elsewhere"), seed):
        config = resolved(words)
        assert config["seed_everything"] == seed
        policy = config["model"]["init_args"]["policy"]["init_args"]
        assert "path" not in policy or Path(policy["path"]).parent in written
        retain_result = config["forget_quality"]["retain_result"]
        assert retain_result is None or Path(retain_result) in written
        configs = "-".join(Path(word).stem for word in words if word.endswith(".yaml"))
        written.add(Path(config["output_dir"]) / (config["name"] or configs))
    shown = {corpus.target, corpus.retain_only, corpus.retain_result, corpus.run}
    assert written == {Path("elsewhere") / each for each in shown}


@pytest.mark.parametrize(("words", "said"), [
    (("--corpus", "books"), "invalid choice: 'books'"),
    (("--seed", "-1"), "--seed must be a finite number >= 0 and <= 4.29497e+09 (got -1)"),
    (("--seed", "one"), "argument --seed: invalid int value: 'one'"),
])  # fmt: skip
def test_bad_input(cli, words, said):
    ended = cli("demo", *words)
    assert ended.code == 2
    (line,) = ended.errors
    assert said in line
