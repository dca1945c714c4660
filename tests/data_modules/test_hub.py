"""Data sets as the library `datasets` loads them, from a copy of a repository on the hub; nothing is downloaded."""

import datasets
import huggingface_hub
import pandas
import pytest

from dipo_pl.data_modules.record_files import read_records
from dipo_pl.data_modules.row_files import read_rows
from dipo_pl.errors import InputError

CARD = """---
configs:
- config_name: people
  data_files: people/*.parquet
- config_name: damaged
  data_files: damaged/*.parquet
- config_name: places
  data_files:
  - {split: train, path: places/train.parquet}
  - {split: test, path: places/test.parquet}
---
"""


@pytest.fixture(autouse=True)
def copy(tmp_path, monkeypatch):
    """A copy of a repository in the folder `copy`: a configuration has one split, one two, one a damaged file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for module in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", True)
    for name in ("people", "damaged", "places"):
        (tmp_path / "copy" / name).mkdir(parents=True)
    (tmp_path / "copy" / "README.md").write_text(CARD)
    people = [{"conversations": turns(f"Who is {each}?", f"{each}.")} for each in "ABC"]
    pandas.DataFrame(people).to_parquet(tmp_path / "copy/people/rows.parquet")
    (tmp_path / "copy/damaged/rows.parquet").write_bytes(b"PAR1 and no more")
    for split in ("train", "test"):
        rows = [{"prompt": f"{split} {each}?", "completion": f"{each}!"} for each in range(3)]
        pandas.DataFrame(rows).to_parquet(tmp_path / "copy/places" / f"{split}.parquet")


def turns(question, answer):
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


@pytest.mark.parametrize(("given", "questions"), [
    ("copy:people", ["Who is A?", "Who is B?", "Who is C?"]),
    ("copy:people:train", ["Who is A?", "Who is B?", "Who is C?"]),
    ("copy:places:test", ["test 0?", "test 1?", "test 2?"]),
    ("copy:places:train[1:]", ["train 1?", "train 2?"]),
])  # fmt: skip
def test_configurations_and_splits(given, questions):
    rows = read_rows(given)
    assert [row.question for row in rows] == questions
    assert [row.where for row in rows] == [f"{given}, row {number}" for number in range(1, len(rows) + 1)]


def test_the_default_configuration():
    assert [row.question for row in read_rows("copy/places::test")] == ["test 0?", "test 1?", "test 2?"]


@pytest.mark.parametrize(("given", "message"), [
    ("copy:places", "^copy:places has the splits train, test: give one of them, such as copy:places:train$"),
    ("copy:", r"^cannot read copy:: .* NAME:CONFIGURATION:SPLIT, .*available configs: \['people', 'damaged', 'places'\]"),
    ("copy:damaged", "^cannot read copy:damaged: .*Parquet"),
    ("copy:animals", "^cannot read copy:animals: .*animals"),
    ("copy:places:dev", '^cannot read copy:places:dev: .*Unknown split "dev"'),
    ("my/data", "^cannot read my/data: it is no file or folder here, and as a data set of the hub, NAME:CONF"),
    ("my/data-v1.0:all:train", "^cannot read my/data-v1.0:all:train: "),
])  # fmt: skip
def test_what_cannot_be_loaded(given, message):
    with pytest.raises(InputError, match=message) as raised:
        list(read_records(given))
    assert "\n" not in str(raised.value)
