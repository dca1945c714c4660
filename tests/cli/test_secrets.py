"""What gives access to something is in no file that a run leaves behind, and in no line that it prints."""

import json
from pathlib import Path

import pytest
import yaml

from dipo_pl.storage.secrets import redact, redact_arguments, redact_values

TOKEN = "hf_" + "QwErTyUiOpAsDfGhJkLzXcVbNm12345678"
SECRETS = {
    "TOKEN": TOKEN, "PASSWORD": "hunter2-of@the-url", "API_KEY": "key, of the 'logger'", "LISTED": "one of several",
}  # fmt: skip
URL = f"https://someone:{SECRETS['PASSWORD']}@example.org/models"

LOGGER = {
    "class_path": "user_classes.Remote",
    "init_args": {"save_dir": "runs", "name": "smoke", "server": URL},
}


@pytest.fixture
def run(process):
    def run(*words):
        given = {"api_key": SECRETS["API_KEY"], "auth_token": ["first", SECRETS["LISTED"]]}
        logger = json.dumps([LOGGER | {"init_args": LOGGER["init_args"] | given}])
        quick = (
            "--trainer.max_epochs 1 --forget_quality.generate_every 0 --trainer.limit_train_batches 1".split()
        )
        return process(
            "fit", "--config", "smoke.yaml", *quick, "--trainer.logger", logger, *words,
            HF_TOKEN=TOKEN, HUGGING_FACE_HUB_TOKEN=TOKEN,
        )  # fmt: skip

    return run


def refuse_secrets(ended, folder: Path) -> None:
    written = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert any("tfevents" in path.name for path in written)
    for name, secret in SECRETS.items():
        assert secret not in ended.out + ended.err, name
        assert [path.name for path, content in written.items() if secret.encode() in content] == [], name


def test_a_run_writes_none(run, tmp_path):
    ended = run()
    assert ended.code == 0, ended.err
    refuse_secrets(ended, tmp_path / "runs")
    folder = tmp_path / "runs" / "smoke"
    assert "https://REDACTED@example.org/models" in (folder / "config.yaml").read_text()
    assert (
        yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["logger"][0]["init_args"]["api_key"]
        == "REDACTED"
    )
    again = run()
    assert again.code == 0, again.err
    assert "nothing to do" in again.out


def test_a_run_that_fails_writes_none(run, tmp_path):
    ended = run("--model.forget_loss", "user_classes.Failing", "--model.forget_loss.server", URL)
    assert ended.code == 1
    assert "no answer from https://REDACTED@example.org/models" in ended.errors[0]
    folder = tmp_path / "runs" / "smoke"
    assert "no answer from https://REDACTED@example.org" in (folder / "error.log").read_text()
    assert (
        "no answer from https://REDACTED@example.org"
        in json.loads((folder / "manifest.json").read_text())["status"]
    )
    refuse_secrets(ended, tmp_path / "runs")


def test_a_key_that_does_not_exist_says_nothing_of_its_value(cli):
    ended = cli("fit", "--config", "smoke.yaml", "--model.policy.token", TOKEN)
    assert ended.code == 2
    assert "there is no option 'token'" in ended.errors[0]
    assert TOKEN not in ended.err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        (f"cannot reach {URL}", "cannot reach https://REDACTED@example.org/models"),
        ("s3://key@bucket/x", "s3://REDACTED@bucket/x"),
        (f"with {TOKEN}.", "with REDACTED."),
        ("api_key: abc\nwandb_api_key: abc", "api_key: REDACTED\nwandb_api_key: REDACTED"),
        ("password='two words' failed", "password='REDACTED' failed"),
        (r'{"token": "a\"b c"}', '{"token": "REDACTED"}'),
        ("https://u:p@ss@h/x", "https://REDACTED@h/x"),
        ('{"auth_token": "abc", "lr": 1}', '{"auth_token": "REDACTED", "lr": 1}'),
        ("https://example.org/?token=abc&x=1", "https://example.org/?token=REDACTED&x=1"),
        *((text, text) for text in (
            "token: null", "evaluation_tokens: 8192", "token_budget: 64", "max_new_tokens: 16", "mail me@example.org",
            "https://example.org/a@b", "tokenizer: hf_folder", "user_classes.Remote", "path: hub/my_token_model",
        )),
    ],
)  # fmt: skip
def test_redaction(text, hidden):
    assert redact(text) == hidden


def test_a_secret_key_hides_all_that_it_holds():
    given = {
        "api_key": "two words, and 'more'", "auth_token": ["a", "b"], "githubToken": "abc",
        "aws": {"credentials": {"a": "b"}},
        "private_key": "-----\nlines\n", "pad_token": "<pad>", "tokens": 8, "lr": 0.1, "token": None,
        "server": [f"see {URL}", {"passwd": 1}],
    }  # fmt: skip
    assert redact_values(given) == {
        "api_key": "REDACTED", "auth_token": "REDACTED", "githubToken": "REDACTED", "aws": {"credentials": "REDACTED"},
        "private_key": "REDACTED", "pad_token": "<pad>", "tokens": 8, "lr": 0.1, "token": None,
        "server": ["see https://REDACTED@example.org/models", {"passwd": "REDACTED"}],
    }  # fmt: skip


@pytest.mark.parametrize(("word", "hidden"), [
    ("--x.token=correct horse", "--x.token=REDACTED"),
    ("--logger={api_key: 'S3C,RET two words'}", '--logger={"api_key": "REDACTED"}'),
    ('[{"auth_token": ["A", "B"]}]', '[{"auth_token": "REDACTED"}]'),
    ("{lr: 0.1,  seed: 1}", "{lr: 0.1,  seed: 1}"),
    ("--trainer.logger.token+=abc", "--trainer.logger.token+=REDACTED"),
    ("{password: half", "{password: REDACTED"),
])  # fmt: skip
def test_a_word_of_the_command_line(word, hidden):
    assert redact_arguments([word]) == [hidden]


def test_the_word_after_a_secret_option_is_hidden():
    given = [
        "fit", "--trainer.logger.api_key", "abc", "--x.token=abc", "--data.evaluation_tokens", "8", "--lr", "1",
    ]  # fmt: skip
    expected = [
        "fit", "--trainer.logger.api_key", "REDACTED", "--x.token=REDACTED", "--data.evaluation_tokens", "8", "--lr",
        "1",
    ]  # fmt: skip
    assert redact_arguments(given) == expected
