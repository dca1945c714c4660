import hashlib
import json
import stat

import pytest

from dipo_pl.errors import InputError
from dipo_pl.rows import Row
from dipo_pl.storage.keyed import key_check, read_key, row_fingerprint

ROW = Row((("user", "Who?"),), "Me, Zoë.")


def plain_hmac(key, message):
    """RFC 2104, written out."""
    padded = key.ljust(64, b"\0")
    inner = hashlib.sha256(bytes(each ^ 0x36 for each in padded) + message).digest()
    return hashlib.sha256(bytes(each ^ 0x5C for each in padded) + inner).hexdigest()


def test_a_fingerprint_is_the_hmac_of_the_conversation():
    key = bytes(range(32))
    text = json.dumps([[["user", "Who?"]], "Me, Zoë."], ensure_ascii=False)
    assert row_fingerprint(key, ROW) == plain_hmac(key, f"row {text}".encode())
    assert row_fingerprint(bytes(32), ROW) != row_fingerprint(key, ROW)
    assert row_fingerprint(key, Row(ROW.messages, "Me.")) != row_fingerprint(key, ROW)
    assert row_fingerprint(key, Row(ROW.messages, ROW.answer, wrong_answers=("You.",))) == row_fingerprint(
        key, ROW
    )
    assert key_check(key) not in (key_check(bytes(32)), row_fingerprint(key, ROW))


def test_a_key_is_made_once_for_its_owner(tmp_path):
    path = tmp_path / "my.key"
    key = read_key(path, [])
    assert len(key) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_key(path, []) == key
    assert read_key(tmp_path / "other.key", []) != key


def test_what_is_no_key_is_refused(tmp_path):
    for content in ("", "abc", "00" * 31, "zz" * 32, "00" * 33):
        (tmp_path / "bad").write_text(content)
        with pytest.raises(InputError, match=r"bad must hold 64 hexadecimal digits"):
            read_key(tmp_path / "bad", [])
        assert (tmp_path / "bad").read_text() == content
    with pytest.raises(InputError, match="which may be handed on"):
        read_key(tmp_path / "run" / "deep" / "key", [tmp_path / "run"])
    assert not (tmp_path / "run").exists()


def test_a_key_in_no_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"there is no folder .*none: make it"):
        read_key(tmp_path / "none" / "key", [])
