"""Records of a study that no longer hold: what is refused, dropped and made again; runs are written without training."""

from pathlib import Path

import yaml
from study_inputs import ALL, RUN, STUDY, done, records, write_study


def test_a_changed_config_is_refused_until_it_is_to_be_made_again(cli, written, refused):
    overlay = {"model": {"init_args": {"forget_loss": {"class_path": "NPO"}, "retain_loss": "CrossEntropy"}}}
    Path("mine.yaml").write_text(yaml.safe_dump(overlay))
    write_study(Path("s.yaml"), rows={"DiPO": {}, "mine": {"configs": ["mine.yaml"]}})
    done(cli)
    Path("mine.yaml").write_text("# A comment changes nothing.\n" + yaml.safe_dump(overlay))
    written.commands.clear()
    done(cli)
    assert written.commands == []
    overlay["model"]["init_args"]["forget_loss"]["init_args"] = {"beta": 0.2}
    Path("mine.yaml").write_text(yaml.safe_dump(overlay))
    line = refused(*RUN)
    assert (
        "6 record(s) in runs/s/results.json were made with other configs, options or learning rates" in line
    )
    assert (
        "(tuning/mine/0.0001/seed-100, tuning/mine/0.001/seed-100, rows/mine/seed-0 and 3 more): give" in line
    )
    assert written.commands == []
    done(cli, *RUN, "--redo")
    models = ["target/seed-100", "target/seed-0", "target/seed-1"]
    assert sorted(written.made) == sorted(
        [*models, *(each.replace("npo-ce", "mine") for each in ALL if "npo" in each)]
    )
    assert records()["rows/mine/seed-0"]["status"] == "finished"


def test_a_learning_rate_that_is_chosen_anew_makes_records_stale(cli, written):
    one_row = {"rows": {"DiPO": {}}, "seeds": [0], "after": None}
    write_study(Path("s.yaml"), **one_row)
    done(cli)
    # 2e-4 forgets more, and keeps utility.
    write_study(Path("s.yaml"), **one_row, learning_rate={"seeds": [100], "values": [1e-4, 2e-4, 1e-3]})
    written.commands.clear()
    text = done(cli, code=1)
    assert written.made == ["target/seed-100", "tuning/dipo/0.0002/seed-100"]
    assert (
        "failed: DiPO, seed 0: its record is of another learning rate than is chosen now: give --redo" in text
    )
    assert records()["rows/dipo/seed-0"]["learning_rate"] == 1e-4
    written.commands.clear()
    done(cli, *RUN, "--redo")
    assert written.made == ["target/seed-0", "rows/dipo/seed-0"]
    assert records()["rows/dipo/seed-0"]["learning_rate"] == 2e-4


def test_with_redo_it_is_made_again_at_once_with_its_probe(cli, written):
    one_row = {"rows": {"DiPO": {}}, "seeds": [0]}
    write_study(Path("s.yaml"), **one_row)
    done(cli)
    write_study(Path("s.yaml"), **one_row, learning_rate={"seeds": [100], "values": [1e-4, 2e-4, 1e-3]})
    written.commands.clear()
    done(cli, *RUN, "--redo")
    row = ["target/seed-0", "rows/dipo/seed-0", "rows/dipo/seed-0-relearn"]
    assert written.made == ["target/seed-100", "tuning/dipo/0.0002/seed-100", *row]


def test_redo_of_one_row_leaves_the_records_of_others(cli, written, refused):
    """A changed option of every row makes all records stale, and only one row would be made again."""
    done(cli)
    before = records()
    write_study(Path("s.yaml"), options=STUDY["options"] | {"data.evaluation_rows": 4})
    line = refused(*RUN, "--redo", "--row", "DiPO")
    assert "--redo with --row would remove records of other rows (tuning/npo-ce/0.0001/seed-100, " in line
    assert records() == before


WITHOUT = dict.fromkeys(("learning_rate", "after", "target", "retain_only"))


def test_a_failed_record_of_another_row_does_not_stop_a_row(cli, written):
    """It is of an earlier file, and stays until its row runs."""
    rows = {"DiPO": {}, "mine": {"options": {"data.batch_size": 2}}}
    write_study(Path("s.yaml"), rows=rows, seeds=[0], **WITHOUT)
    written.fails = {"rows/(mine|dipo)": "dipo-pl: error: no memory"}
    done(cli, code=1)
    written.fails = {}
    write_study(Path("s.yaml"), rows=rows, seeds=[0], options={"data.evaluation_rows": 4}, **WITHOUT)
    done(cli, *RUN, "--row", "DiPO")
    assert {key: each["status"] for key, each in records().items()} == {
        "rows/dipo/seed-0": "finished",
        "rows/mine/seed-0": "failed",
    }
    done(cli)
    assert records()["rows/mine/seed-0"]["status"] == "finished"


def test_an_attack_that_the_study_has_no_longer_goes_with_its_model(cli, written):
    write_study(Path("s.yaml"), rows={"DiPO": {}}, seeds=[0], learning_rate=None)
    done(cli)
    changed = STUDY["options"] | {"data.evaluation_rows": 4}
    write_study(Path("s.yaml"), rows={"DiPO": {}}, seeds=[0], learning_rate=None, after=None, options=changed)
    done(cli, *RUN, "--redo")
    assert sorted(records()) == ["retain_only/seed-0", "rows/dipo/seed-0", "target/seed-0"]
    assert not [*Path("runs/s").rglob("*-relearn")]


def test_a_seed_on_other_rows_is_refused_until_they_are_restored(cli, written):
    """A row of the table may have rows of its own."""
    rows = {"DiPO": {}, "fewer": {"options": {"data.author_seed": 7}}}
    written.rows = {"rows/fewer": "of its own", "seed-1 --output_dir runs/s/rows/dipo": "edited"}
    write_study(Path("s.yaml"), rows=rows, **WITHOUT)
    text = done(cli, code=1)
    assert (
        "failed: DiPO, seed 1: its forget rows (fingerprint edited) are not those of rows/dipo/seed-0 (abc): restore them, "
        "or give another --name" in text
    )
    assert records()["rows/fewer/seed-1"]["status"] == "finished"
    assert records()["rows/dipo/seed-1"]["status"] == "failed"
    written.rows.popitem()
    done(cli)
    assert records()["rows/dipo/seed-1"]["status"] == "finished"


def test_a_probe_of_a_stale_model_is_not_run(cli, written):
    """The chosen rate changes while an attack is still missing: it must not attack the model of the earlier rate."""
    one_row = {"rows": {"DiPO": {}}, "seeds": [0]}
    write_study(Path("s.yaml"), **one_row, after=None, keep_weights=True)
    done(cli)
    rates = {"seeds": [100], "values": [1e-4, 2e-4, 1e-3]}
    write_study(Path("s.yaml"), **one_row, keep_weights=True, learning_rate=rates)
    text = done(cli, code=1)
    assert "rows/dipo/seed-0-relearn" not in records()
    assert (
        "DiPO, seed 0, relearn: not run: rows/dipo/seed-0 is of another learning rate than is chosen now"
        in text
    )


def test_learning_rates_that_differ_late_are_two(cli, written):
    rates = {"seeds": [100], "values": [1.0000001e-4, 1.0000002e-4]}
    write_study(Path("s.yaml"), rows={"DiPO": {}}, seeds=[0], after=None, learning_rate=rates)
    done(cli)
    assert [each for each in written.made if "tuning" in each] == [
        "tuning/dipo/0.00010000001/seed-100",
        "tuning/dipo/0.00010000002/seed-100",
    ]
    assert "--model.optimizer.lr 0.00010000002 " in written.commands[-1]
    assert records()["rows/dipo/seed-0"]["learning_rate"] == 1.0000002e-4
