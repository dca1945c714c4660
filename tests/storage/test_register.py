"""The register of requests: its entries are read as they were written."""

import pytest

from dipo_pl.errors import InputError
from dipo_pl.storage.register import add_to_register, read_register


def test_entries_are_read_as_they_were_written(tmp_path):
    entries = [
        {"stage": 1, "by": "K. Ito\u2028Legal\u0085\x0b"},
        {"stage": 2, "by": "\u2029 \U0001f600\n\r"},
        {"stage": 1, "by": "again"},
    ]
    assert [add_to_register(tmp_path, each) for each in (*entries, entries[2])] == [True, True, True, False]
    assert read_register(tmp_path) == entries


def test_a_file_in_another_encoding_is_named(tmp_path):
    (tmp_path / "register.jsonl").write_bytes('{"stage": 1, "by": "Müller"}\n'.encode("latin-1"))
    with pytest.raises(
        InputError, match=r"register.jsonl, line 1 is no entry of a register: restore the file$"
    ):
        read_register(tmp_path)
