"""Records of files of every usual form, and the errors for those that cannot be read."""

import bz2
import gzip
import io
import json
import lzma
import re
import tarfile
import zipfile

import datasets
import pandas
import pyarrow
import pytest

from dipo_pl.data_modules.record_files import read_records
from dipo_pl.data_modules.row_files import read_rows
from dipo_pl.errors import InputError
from dipo_pl.rows import Row

RECORDS = [
    {"question": "Who, and why?", "answer": "Me.\nAlone.", "perturbed_answer": ["You.", "They."]},
    {"question": "Wo?", "answer": 'In "Köln".', "perturbed_answer": ["Here.", "There."]},
]
ROWS = [
    Row((("user", each["question"]),), each["answer"], wrong_answers=(*each["perturbed_answer"],))
    for each in RECORDS
]
LINES = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in RECORDS)
FRAME = pandas.DataFrame(RECORDS)
# CSV has no lists.
ANSWERED = FRAME[["question", "answer"]]


def zst(content):
    return pyarrow.compress(content, "zstd", asbytes=True)


def arrow(new):
    stream, table = io.BytesIO(), pyarrow.Table.from_pandas(FRAME)
    with new(stream, table.schema) as writer:
        writer.write_table(table)
    return stream.getvalue()


def parquet():
    stream = io.BytesIO()
    FRAME.to_parquet(stream)
    return stream.getvalue()


@pytest.mark.parametrize(("name", "content"), [
    ("rows.jsonl", LINES.encode()),
    ("rows.json", LINES.encode()),
    ("rows", LINES.encode("utf-8-sig")),
    ("rows.json", json.dumps(RECORDS, indent=2).encode()),
    ("rows.jsonl", json.dumps(RECORDS).encode()),
    ("rows.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)),
    ("rows.json.gz", gzip.compress(json.dumps(RECORDS).encode(), mtime=0)),
    ("rows.jsonl.bz2", bz2.compress(LINES.encode())),
    ("rows.jsonl.xz", lzma.compress(LINES.encode())),
    ("rows.jsonl.zst", zst(LINES.encode())),
    ("rows.parquet", parquet()),
    ("misnamed.jsonl", parquet()),
    ("rows.arrow", arrow(pyarrow.ipc.new_file)),
    ("rows.arrow", arrow(pyarrow.ipc.new_stream)),
])  # fmt: skip
def test_the_rows_are_the_same_in_every_form(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert read_rows(tmp_path / name) == ROWS


@pytest.mark.parametrize(("name", "options"), [
    ("rows.csv", {}),
    ("rows.CSV", {"sep": ";"}),
    ("rows.tsv", {"sep": "\t"}),
    ("rows.csv.gz", {"compression": "gzip"}),
    ("rows.csv", {"encoding": "utf-8-sig", "lineterminator": "\r\n"}),
])  # fmt: skip
def test_csv(tmp_path, name, options):
    ANSWERED.assign(perturbed_answer=["You.", None]).to_csv(tmp_path / name, index=False, **options)
    rows = read_rows(tmp_path / name)
    assert [(row.question, row.answer) for row in rows] == [(row.question, row.answer) for row in ROWS]
    assert [row.wrong_answers for row in rows] == [("You.",), ()]


@pytest.mark.parametrize(("content", "answers"), [
    (b'question,answer\r\nWho?,"Me,\r\nand you."\r\nWhy?,So.\r\n', ["Me,\r\nand you.", "So."]),
    (b"question,answer\rWho?,Me.\rWhy?,So.\r", ["Me.", "So."]),
    (b"\n \nquestion;answer\nWho, me?;Me, too.\n\n", ["Me, too."]),
    (b"sep=;\r\nquestion;answer\r\nWho, me?;Me, too.\r\n", ["Me, too."]),
    (b"sep=^\nquestion^answer\nWho, me?^Me, too.\n", ["Me, too."]),
    (b"question|answer\nWho?|Me.\n", ["Me."]),
    # As spreadsheets write them: an index without a name, and columns in which there is nothing.
    (b",question,answer,,\n0,Who?,Me.,,\n", ["Me."]),
    (b"instruction,input,output\nSay,who,Me.\nWho?,,So.\n", ["Me.", "So."]),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*column number 1 is not read")
def test_csv_as_programs_write_it(tmp_path, content, answers):
    (tmp_path / "rows.csv").write_bytes(content)
    assert [row.answer for row in read_rows(tmp_path / "rows.csv")] == answers


def test_patterns_take_files_in_the_order_of_their_names(tmp_path):
    for name, record in zip(("b.jsonl", "a.jsonl"), RECORDS, strict=True):
        (tmp_path / name).write_text(json.dumps(record))
    (tmp_path / "c.csv").write_text("question,answer\nWho?,Me.\n")
    assert read_rows(tmp_path / "*.jsonl") == ROWS[::-1]
    assert [row.where for row in read_rows(tmp_path / "[b-c].*")] == [
        f"{tmp_path}/b.jsonl, line 1",
        f"{tmp_path}/c.csv, line 2",
    ]


def test_folders_of_datasets(tmp_path):
    rows = datasets.Dataset.from_list(RECORDS)
    rows.save_to_disk(tmp_path / "saved", num_shards=2)
    datasets.DatasetDict(train=rows, test=rows).save_to_disk(tmp_path / "splits")
    (tmp_path / "parts").mkdir()
    for number in range(2):
        FRAME[number : number + 1].to_parquet(tmp_path / "parts" / f"train-0000{number}-of-00002.parquet")
    for name in ("saved", "splits/train", "parts"):
        assert read_rows(tmp_path / name) == ROWS, name
    with pytest.raises(
        InputError, match=r"splits holds the splits test, train: give one of them, such as .*splits/test$"
    ):
        read_rows(tmp_path / "splits")
    with pytest.raises(
        InputError,
        match=r" is a folder: give the files themselves, one, a list, or a pattern such as .*\*\.jsonl$",
    ):
        read_rows(tmp_path)
    FRAME.to_parquet(tmp_path / "parts" / "test-00000-of-00001.parquet")
    with pytest.raises(
        InputError,
        match=r"parts is a folder \(it has test-0.*parquet, train-0.*\): give the files",
    ):
        read_rows(tmp_path / "parts")


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.csv.gz", "rows"])
def test_json_lines_are_known_by_their_content(tmp_path, name):
    content = LINES.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert read_rows(tmp_path / name) == ROWS


def archive(*names, **contents):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name, content in {**dict.fromkeys(names, LINES), **contents}.items():
            file.writestr(name, content)
    return stream.getvalue()


def tar():
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as file:
        file.addfile(tarfile.TarInfo("rows.jsonl"), io.BytesIO())
    return stream.getvalue()


@pytest.mark.parametrize(("content", "message"), [
    (b"", "is empty: it needs at least one row$"),
    (b"\n \n", "is empty: it needs at least one row$"),
    (b"[]", "is empty: it needs at least one row$"),
    (gzip.compress(b"", mtime=0), "is empty: it needs at least one row$"),
    ('{"text": "zw\u00f6lf"}'.encode("latin-1"), r", line 1 is not UTF-8 text \(byte 0xf6 at 12\): save it as UTF-8$"),
    (b'{"text": "one"}\n\n{"text": "\xff"}\n', r", line 3 is not UTF-8 text \(byte 0xff at 10\)"),
    (LINES.encode("utf-16"), r", line 1 is not UTF-8 text \(byte 0xff at 0\)"),
    (archive("[Content_Types].xml", "xl/workbook.xml"), r"is a spreadsheet: save it as CSV .*read_excel\(...\).to_json\("),
    (archive("content.xml", mimetype="application/vnd.oasis.opendocument.spreadsheet"), "is a spreadsheet: save it as CSV"),
    (archive("content.xml", mimetype="application/vnd.oasis.opendocument.text"), "is a text document: write its text into"),
    (archive("[Content_Types].xml", "word/document.xml"), "is a text document: write its text into lines of "),
    (tar(), "is an archive: unpack it, and give the file in it$"),
    (gzip.compress(tar(), mtime=0), "is an archive: unpack it, and give the file in it$"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n", "a pointer of Git LFS, .* git lfs pull$"),
    (b"\x04\x22\x4d\x18abc", "is compressed by LZ4: decompress it, or take gzip"),
    (b"\x93NUMPY\x01", "is a NumPy array: write one JSON object"),
    (b"question,answer\nWho?,Me.\n", "is not JSON lines: if it is CSV, give it a name that ends in .csv; of plain text"),
    (b"question\tanswer\nWho?\tMe.\n", "is not JSON lines: if it is CSV"),
    (b"- question: Who?\n  answer: Me.\n", "is not JSON lines: write one JSON object for each row"),
    (b"Once upon a time\n", 'is not JSON lines: .*; of plain text, {"text": ...}$'),
    (b"<!DOCTYPE html>\n", "is XML or HTML: write its text into lines of"),
    (b'{"answer": "first", "answer": "second"}\n', r", line 1: JSON cannot be used \(the key 'answer' is given twice\)$"),
    (b'[{"text": "a", "system": {"b": 1, "b": 2}}]', r"\(the key 'b' is given twice\)$"),
    (archive("forget.jsonl"), r"is a zip archive \(forget.jsonl\): unpack it, and give the file in it$"),
    (b"PK\x03\x04 and no more", r"is a zip archive \(damaged\)"),
    (b"SQLite format 3\x00", "is an SQLite database: pandas.read_sql"),
    (b"\x80\x04\x95", "is a pickle, which can run code when it is read"),
    (b"%PDF-1.7", "is a PDF: extract its text"),
    (parquet()[:200], r"cannot read .*: "),
    (gzip.compress(LINES.encode(), mtime=0)[:-9], "cannot read .*: "),
    (gzip.compress(b"", mtime=0)[:10] + b"\xff" * 20, "cannot read .*: .*invalid block type"),
    (zst(LINES.encode())[:-9], "cannot read .*: "),
    (json.dumps({"data": RECORDS}, indent=1).encode(), "is one JSON object over several lines: write the list 'data' in it"),
    (json.dumps(RECORDS[0], indent=1).encode(), "is one JSON object over several lines: write one object on each line$"),
    (json.dumps([*RECORDS, "two"]).encode(), r"\[2\]: must be a JSON object \(got str\)$"),
    (json.dumps(RECORDS).encode()[:-1], r": not valid JSON \(Expecting ',' delimiter at column \d+\)$"),
    (json.dumps(RECORDS, indent=1).encode()[:-2] + b",]", r": not valid JSON \(.* at line 17, column 4\)$"),
    (json.dumps(RECORDS).encode() + b" []", r": not valid JSON \(Extra data at column \d+\)$"),
    (b'[{"text": "one"} {"text": "two"}]', r": not valid JSON \(Expecting ',' delimiter at column 18\)$"),
    (b'[{"text": "one"}, {"text": "\\ud83d"}]', r"\[1\]: contains '\\ud83d', an unpaired surrogate"),
])  # fmt: skip
def test_unusable_files(tmp_path, content, message):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as raised:
        read_rows(path)
    assert str(path) in str(raised.value)


def test_damage_inside_a_table_is_an_error_of_its_file(tmp_path):
    path = tmp_path / "rows.parquet"
    FRAME.to_parquet(path, compression=None)
    content = bytearray(path.read_bytes())
    # Of the first page's header.
    content[4:40] = b"\xff" * 36
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"^cannot read {path}: "):
        read_rows(path)


def test_a_bad_row_of_a_table_is_named_by_number(tmp_path):
    answers = ["Me."] * 1500
    answers[1200] = None
    pandas.DataFrame({"prompt": "Who?", "completion": answers}).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(
        InputError, match=r"rows.parquet, row 1201: 'completion' must be a non-empty text \(got None\)$"
    ):
        read_rows(tmp_path / "rows.parquet")


@pytest.mark.parametrize(("content", "message"), [
    ("question,answer\nWho, me?,Yes.\n", r"line 2: has 3 cells and the header 2 \(question, answer\): quote cells "),
    ("answer,answer\na,b\n", "line 1: the column 'answer' is there twice$"),
    ('question,answer\n"Who,Me.\n', r"line 2: not valid CSV \("),
    ("question,answer\n", "is empty: it needs at least one row$"),
    ("Who?,Me.\nWhere?,Here.\n", r"line 2: needs the columns .* \(got Who\?, Me\.\): the first line of CSV names the c"),
    ("question^answer\nWho?^Me.\n", r"line 2: needs .* \(got question\^answer\): .* CSV names the .* divided by ','"),
    ("question,answer\nWho?,Me.\nWhy?\n", r"line 3: has 1 cells and the header 2 \(question, answer\): quote cells "),
    ('question,answer\n\n"Wh\no?",Me.\nWhy?,\n', r"line 5: 'answer' must be a non-empty text \(got None\)$"),
    ("question,answer\nWho?,\n", r"line 2: 'answer' must be a non-empty text \(got None\)$"),
])  # fmt: skip
def test_unusable_csv(tmp_path, content, message):
    path = tmp_path / "rows.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}.*{message}"):
        read_rows(path)


def test_missing_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError,
        match=r"^no file none.jsonl: give the path of a file of JSON lines, a JSON list, CSV or",
    ):
        list(read_records("none.jsonl"))
    for name in (
        "https://x.org/a.jsonl",
        "s3://bucket/a.jsonl",
        "hf://datasets/a/b",
        "file:///tmp/rows.jsonl",
    ):
        with pytest.raises(
            InputError, match=f"^{name} is an address: download the file first, or give a data set of"
        ):
            list(read_records(name))
    for name in ("data/none.jsonl", "data/none.csv.gz", "none", "data/more/none"):
        with pytest.raises(InputError, match=f"^no file {name}: give"):
            list(read_records(name))
    with pytest.raises(InputError, match=r"^no file none-\*.jsonl: no name matches this pattern$"):
        list(read_records("none-*.jsonl"))


def test_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "rows.jsonl").write_text(LINES)
    assert read_rows("~/rows.jsonl") == ROWS
    with pytest.raises(
        InputError, match=r"^'~nobody-here/rows.jsonl' begins with ~, and there is no such home folder"
    ):
        read_rows("~nobody-here/rows.jsonl")


class TestJsonLines:
    @pytest.fixture
    def file(self, tmp_path):
        def write(content):
            path = tmp_path / "rows.jsonl"
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
            return path

        return write

    def test_reads_in_order_and_skips_blank_lines(self, file):
        lines = [json.dumps({"text": text}, ensure_ascii=False) for text in ("one", "zwölf", "three\u2028")]
        expected = [Row((), "one"), Row((), "zwölf"), Row((), "three\u2028")]
        assert read_rows(file(f"{lines[0]}\n\n  \n{lines[1]}\n{lines[2]}")) == expected
        assert read_rows(str(file("\r\n".join(lines) + "\r\n"))) == expected

    @pytest.mark.parametrize(
        ("content", "text"),
        [(b'\xef\xbb\xbf{"text": "one"}', "one"), ('{"text": "\\ud83d\\ude42"}', "🙂")],
        ids=["byte-order mark", "surrogate pair"],
    )
    def test_encodings(self, file, content, text):
        assert read_rows(file(content)) == [Row((), text)]

    @pytest.mark.parametrize(("line", "message"), [
        ('{"text": "two"', r"not valid JSON \(Expecting ',' delimiter at column 15\)$"),
        ("two", r"not valid JSON \(Expecting value at column 1\)$"),
        ("[" * 20000, r"JSON is nested too deeply$"),
        ('{"text": ' + "1" * 5000 + "}", r"JSON cannot be used \(Exceeds the limit"),
        ('["two"]', r"must be a JSON object \(got list\)$"),
        ('{"text": 2}', r"'text' must be a non-empty text \(got 2\)$"),
        ('{"text": "\\ud83d"}', r"contains '\\ud83d', an unpaired surrogate, which is not text$"),
    ], ids=["cut", "no JSON", "deep", "huge number", "list", "number", "surrogate"])  # fmt: skip
    def test_unusable_lines_are_named_by_number(self, file, line, message):
        path = file(f'{{"text": "one"}}\n\n{line}\n{{"text": "four"}}\n')
        with pytest.raises(InputError, match=f"^{path}, line 3: {message}"):
            read_rows(path)
