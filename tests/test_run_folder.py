"""Files of a run are whole or absent, and a second try at a step takes the first one's place."""

import pytest

from dipo_pl.run_folder import RunFolder, replacing, write_text


def test_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def interrupted():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with path.open() as reader:
        write_text(path, "new")
        assert reader.read() == "old"
    assert path.read_text() == "new"


def test_a_step_measured_again_replaces_itself_and_what_came_after(tmp_path):
    run = RunFolder(tmp_path)
    for step, value in ((0, 1.0), (5, 2.0), (10, 3.0), (5, 4.0)):
        run.add_metrics({"step": step, "value": value})
    assert run.read_metrics() == [{"step": 0, "value": 1.0}, {"step": 5, "value": 4.0}]


def test_a_manifest_that_is_missing_or_broken_reads_as_none(tmp_path):
    run = RunFolder(tmp_path)
    assert run.read_manifest() == {}
    run.manifest.write_text("{")
    assert run.read_manifest() == {}
