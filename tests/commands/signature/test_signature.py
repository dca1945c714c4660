"""`dipo-pl sign` and `dipo-pl verify` on a folder with the files of a run."""

import hashlib
import json
import sys

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

PEM, PLAIN = serialization.Encoding.PEM, serialization.NoEncryption()


def write_key(path, private):
    path.write_bytes(private.private_bytes(PEM, serialization.PrivateFormat.PKCS8, PLAIN))
    public = private.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    path.with_suffix(".pub").write_bytes(public)
    return private


@pytest.fixture
def folder(tmp_path):
    run = tmp_path / "runs" / "forgotten"
    (run / "hf").mkdir(parents=True)
    (run / "attacks" / "parts").mkdir(parents=True)
    for name, content in {
        "manifest.json": '{"status": "finished"}', "metrics.jsonl": '{"step": 0}\n', "hf/model.safetensors": "weights",
        "attacks/parts/leak_at_k-target.json": "[1]", "events.out.tfevents.1": "curves",
    }.items():  # fmt: skip
        (run / name).write_text(content)
    write_key(tmp_path / "my.pem", ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
    write_key(tmp_path / "other.pem", ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32)))
    return run


def test_what_is_signed_is_as_it_was_signed(folder, cli):
    ended = cli("sign", folder, "--key", "my.pem")
    assert ended.code == 0, ended.err
    content = json.loads((folder / "signature.json").read_text())
    # TensorBoard's files are no figures of the run.
    assert list(content["files"]) == [
        "manifest.json", "metrics.jsonl", "attacks/parts/leak_at_k-target.json", "hf/model.safetensors",
    ]  # fmt: skip
    assert content["files"]["metrics.jsonl"] == hashlib.sha256(b'{"step": 0}\n').hexdigest()
    message = json.dumps({"files": content["files"], "signed": content["signed"]}, sort_keys=True).encode()
    public = ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(content["public_key"]))
    public.verify(bytes.fromhex(content["signature"]), message)
    ended = cli("verify", folder, "--key", "my.pub")
    assert ended.code == 0
    assert "everything is as it was signed (4 files as signed)" in ended.out
    ended = cli("verify", folder)
    assert ended.code == 0
    assert "which the signature names itself: compare it with the signer's" in ended.out


def test_linked_folders_are_signed_too(folder, cli):
    """A model folder or its parts may lie elsewhere; a circle of links ends."""
    elsewhere = folder.parent.parent / "elsewhere"
    (elsewhere / "assets").mkdir(parents=True)
    (elsewhere / "assets" / "extra.json").write_text("{}")
    (folder / "hf" / "assets").symlink_to(elsewhere / "assets")
    (folder / "hf" / "again").symlink_to(folder / "hf")
    ended = cli("sign", folder, "--key", "my.pem")
    assert ended.code == 0, ended.err
    files = json.loads((folder / "signature.json").read_text())["files"]
    assert "hf/assets/extra.json" in files
    assert not any("again" in name for name in files)
    (elsewhere / "assets" / "extra.json").write_text("[]")
    ended = cli("verify", folder)
    assert ended.code == 1
    assert "hf/assets/extra.json" in ended.out
    (folder / "hf" / "assets").unlink()
    (folder / "hf" / "assets").symlink_to(folder.parent)
    assert "added: hf/assets/forgotten/manifest.json" in cli("verify", folder).out


def test_each_change_is_named(folder, cli):
    assert cli("sign", folder, "--key", "my.pem").code == 0
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    (folder / "hf" / "model.safetensors").unlink()
    (folder / "rows.json").write_text("{}")
    ended = cli("verify", folder, "--key", "my.pub")
    assert ended.code == 1
    lines = [line.strip() for line in ended.out.splitlines()[1:]]
    assert lines == [
        "changed: metrics.jsonl", "missing: hf/model.safetensors", "added: rows.json",
        "NOT as it was signed (2 files as signed)",
    ]  # fmt: skip


@pytest.mark.parametrize("key", ["files", "signed", "signature", "public_key"])
def test_a_changed_signature_is_none(folder, cli, key):
    assert cli("sign", folder, "--key", "my.pem").code == 0
    path = folder / "signature.json"
    content = json.loads(path.read_text())
    other = {
        # The list of a file that was changed with it.
        "files": content["files"] | {"metrics.jsonl": hashlib.sha256(b"{}").hexdigest()},
        "signed": "2020-01-01", "signature": "00" * 64, "public_key": "11" * 32,
    }  # fmt: skip
    path.write_text(json.dumps(content | {key: other[key]}))
    if key == "files":
        (folder / "metrics.jsonl").write_text("{}")
    ended = cli("verify", folder)
    assert ended.code == 1
    assert "the signature is not of this key, or its list was changed" in ended.out


def test_several_folders(folder, cli, tmp_path):
    other = tmp_path / "runs" / "other"
    other.mkdir()
    (other / "manifest.json").write_text('{"status": "finished"}')
    assert cli("sign", folder, other, "--key", "my.pem").code == 0
    (folder / "metrics.jsonl").write_text("")
    ended = cli("verify", folder, other)
    assert ended.code == 1
    assert ended.out.count("as it was signed") == 2


@pytest.fixture
def refused_line(folder, cli):
    def run(*words):
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        ended = cli(*words)
        assert (ended.code, len(ended.errors)) == (2, 1), ended.err
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
        return ended.errors[0]

    return run


def test_wrong_input_is_one_line(folder, refused_line, cli, tmp_path, monkeypatch):
    assert "is not signed (no signature.json)" in refused_line("verify", folder)
    assert "--key none.pem cannot be read" in refused_line("sign", folder, "--key", "none.pem")
    (tmp_path / "text.pem").write_text("no key")
    assert "--key text.pem cannot be read" in refused_line("sign", folder, "--key", "text.pem")
    write_key(tmp_path / "rsa.pem", rsa.generate_private_key(65537, 1024))
    assert "--key rsa.pem is no Ed25519 key" in refused_line("sign", folder, "--key", "rsa.pem")
    (folder / "my.pem").write_bytes((tmp_path / "my.pem").read_bytes())
    assert "which may be handed on" in refused_line("sign", folder, "--key", folder / "my.pem")
    (folder / "manifest.json").write_text('{"status": "running"}')
    assert "is not a finished run (status: running)" in refused_line("sign", folder, "--key", "my.pem")
    (folder / "manifest.json").write_text('{"status": "finished"}')
    assert cli("sign", folder, "--key", "my.pem").code == 0
    assert "was made with another key than other.pub" in refused_line("verify", folder, "--key", "other.pub")
    assert "--key my.pem cannot be read" in refused_line("verify", folder, "--key", "my.pem")
    assert "--key rsa.pub is no Ed25519 key" in refused_line("verify", folder, "--key", "rsa.pub")
    (folder / "signature.json").write_text("{}")
    assert "signature.json is no signature" in refused_line("verify", folder)
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives", None)
    assert "pip install 'dipo-pl[sign]'" in refused_line("sign", folder, "--key", "my.pem")
