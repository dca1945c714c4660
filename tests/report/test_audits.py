"""Audits in reports: one table each, and nothing of a folder that is damaged or from a stranger is trusted."""

import json
import shutil

import pytest
from sample_runs import EVIL, alter, lines_of

from dipo_pl.errors import InputError
from dipo_pl.report.audits import (
    Audit,
    AuditedAttack,
    audit_table,
    audited_verdict,
    is_audit,
    left_open,
    read_audit,
)
from dipo_pl.report.contents import read_report
from dipo_pl.report.formats import as_json, as_latex, as_markdown, as_text
from dipo_pl.report.page import as_html
from dipo_pl.report.plots import audit_curves
from dipo_pl.report.verdicts import Reason, Verdict
from dipo_pl.storage.run_folder import RunFolder

MANIFEST = {
    "status": "finished",
    "probe": {"kind": "audit", "of": "runs/unlearned-0", "weights": "w"},
    "verdict": {"status": "not_forgotten", "reason": "by leak_at_k"},
    "attacks": {
        "leak_at_k": {
            "status": "not_forgotten", "reason": "leak@64 of 64 samples: ...", "intervals": {"value": [0.0, 0.75]},
            "values": {"target": 1.0, "unlearned": 0.5, "retain_only": 0.125},
            "series": {"k": [1, 64], "target": [0.5, 1.0], "unlearned": [0.25, 0.5], "retain_only": [0.0, 0.125]},
        },
        "unlearning_depth": {
            "status": "distinguishable", "reason": "...", "values": {"unlearned": 0.25},
            "series": {"layer": [0, 1, 2], "gone": [0.0, 0.5, 1.0], "rows": [5, 5, 4]},
        },
        "pruning": {
            "status": "indistinguishable", "reason": "...", "values": {"unlearned": 0.25},
            "series": {"change": ["10_percent", "30_percent"], "unlearned": [0.25, 0.25]},
        },
        "membership": {"status": "not_tried", "reason": "it takes a holdout (data.holdout of the run)"},
        "logit_lens": {"status": "cannot_tell", "reason": "...", "settle": "about 120 rows (these are 40)"},
    },
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """The folder of a finished audit, written by hand."""
    made = tmp_path / "unlearned-0-audit"
    made.mkdir()
    (made / "manifest.json").write_text(json.dumps(MANIFEST))
    (made / "metrics.jsonl").write_text(json.dumps({"step": 0, "leak_at_64": 0.5}) + "\n")
    return made


def test_one_row_for_each_attack(folder):
    assert is_audit(folder)
    assert not is_audit(folder.parent)
    assert not is_audit(folder / "metrics.jsonl")
    audit = read_audit(RunFolder(folder))
    assert audit.metrics == {"leak_at_64": 0.5}
    table = audit_table(audit)
    assert table.title == "Audit of runs/unlearned-0"
    assert table.head == ["attack", "target", "unlearned", "retain-only", "judgement"]
    assert table.rows == [
        ["leak_at_k", "1.000", "0.500 [0.000, 0.750]", "0.125", "not forgotten"],
        ["unlearning_depth", "", "0.250", "", "distinguishable"],
        ["pruning", "", "0.250", "", "indistinguishable"],
        ["membership", "", "", "", "not tried"],
        ["logit_lens", "", "", "", "cannot tell"],
    ]
    assert table.caption == "not forgotten, by leak_at_k"
    assert left_open(audit) == [
        "membership was not tried: it takes a holdout (data.holdout of the run)",
        "logit_lens cannot tell: about 120 rows (these are 40) would settle it",
    ]


def test_every_format_has_it(folder, runs):
    report = read_report([runs / "unlearned-0", folder])
    assert not report.left_out
    for text in (as_text(report), as_markdown(report), as_latex(report), as_html(report)):
        assert "not tried" in text
        plain = " ".join(text.replace("\\", "").split())
        assert "0.500 [0.000, 0.750]" in plain
        assert "membership was not tried" in plain
    (found,) = json.loads(as_json(report))["audits"]
    assert found["attacks"][0]["values"]["unlearned"] == 0.5
    # Beside a run alone it is no section.
    assert 'id="audits"' in as_html(report)
    assert 'id="audits"' not in as_html(read_report([runs / "unlearned-0"]))


def test_curves_of_what_is_measured_by_numbers(folder):
    leaks, depth = audit_curves([read_audit(RunFolder(folder))])
    assert (leaks.name, depth.name) == ("audit_1_leak_at_k", "audit_1_unlearning_depth")
    assert leaks.values == [
        "target: 0.500 at 1, 1.000 at 64", "unlearned: 0.250 at 1, 0.500 at 64", "retain-only: 0.000 at 1, 0.125 at 64",
    ]  # fmt: skip
    assert depth.values == ["gone from the unlearned model's layers: 0.000 at 0, 1.000 at 2"]
    (axes,) = depth.figure().subfigs[0].axes
    assert lines_of(axes) == {"gone from the unlearned model's layers": [[0, 0], [1, 0.5], [2, 1]]}


def test_what_cannot_be_read_is_left_out_in_a_line(folder, runs):
    def left_out(change):
        (folder / "manifest.json").write_text(json.dumps(MANIFEST))
        alter(folder / "manifest.json", change)
        report = read_report([runs / "unlearned-0", folder])
        assert report.audits == ()
        (line,) = report.left_out
        assert "\n" not in line
        return line

    assert "is not finished: give the same dipo-pl audit again" in left_out(
        lambda each: each.update(status="running")
    )
    for change in (
        lambda each: each.pop("verdict"),
        lambda each: each.update(attacks=[]),
        lambda each: each["attacks"].update(other={}),
        lambda each: each["attacks"]["leak_at_k"].update(intervals={"value": [0.0]}),
        lambda each: each["attacks"]["leak_at_k"].update(intervals=3),
        lambda each: each["attacks"]["leak_at_k"]["values"].update(target="much"),
        lambda each: each["attacks"]["leak_at_k"]["values"].update(target=float("nan")),
        lambda each: each["attacks"]["leak_at_k"].update(values=7),
        lambda each: each["attacks"]["leak_at_k"].update(series=[1]),
        lambda each: each["attacks"]["leak_at_k"]["series"].update(k=[1.0, float("inf")]),
    ):
        assert "cannot be read as an audit" in left_out(change)


def test_texts_of_a_stranger_are_escaped(folder, runs):
    alter(
        folder / "manifest.json",
        lambda each: each["attacks"].update({EVIL: each["attacks"].pop("membership")}),
    )
    alter(folder / "manifest.json", lambda each: each["probe"].update(of=EVIL))
    page = as_html(read_report([runs / "unlearned-0", folder]))
    assert "<script>alert" not in page
    assert "<img src=x" not in page


def test_audits_alone_are_no_report(folder):
    with pytest.raises(InputError, match=r"^nothing to report beside audits: give the audited runs as well"):
        read_report([folder])


def audited(run, status):
    """Write the audit of a run beside a copy of it."""
    weights = json.loads((run / "manifest.json").read_text())["policy"]["weights_at_end"]
    content = MANIFEST | {
        "probe": {"kind": "audit", "of": str(run), "weights": weights},
        "verdict": {"status": status, "reason": "by leak_at_k"},
    }
    content["attacks"] = {"leak_at_k": {"status": status, "reason": "figures"}}
    made = run.with_name(f"{run.name}-audit")
    made.mkdir()
    (made / "manifest.json").write_text(json.dumps(content))
    (made / "metrics.jsonl").write_text(json.dumps({"step": 0}) + "\n")
    return made


@pytest.mark.parametrize(("own", "status", "value"), [
    ("forgotten", "indistinguishable", "forgotten"),
    ("forgotten", "distinguishable", "partly"),
    ("forgotten", "not_forgotten", "not_forgotten"),
    ("forgotten", "not_tried", "forgotten"),
    ("forgotten", "cannot_tell", "forgotten"),
    ("partly", "distinguishable", "partly"),
    ("partly", "not_forgotten", "not_forgotten"),
    ("partly", "indistinguishable", "partly"),
    ("not_forgotten", "indistinguishable", "not_forgotten"),
    ("cannot_tell", "distinguishable", "cannot_tell"),
    ("cannot_tell", "not_forgotten", "not_forgotten"),
])  # fmt: skip
def test_an_audit_can_only_make_the_verdict_worse(own, status, value):
    verdict = Verdict(own, (Reason("sampling", "not_tested", "none", "not sampled"),))
    attack = AuditedAttack("leak_at_k", status, "figures", {}, None)
    found = audited_verdict(verdict, Audit("a", None, "w", "of", status, "by", (attack,), {}))
    assert found.value == value
    # What the run has not tested, the audit has, if it was tried.
    rules = [each.rule for each in found.reasons]
    assert rules == (["leak_at_k", "sampling"] if status == "not_tried" else ["leak_at_k"])
    expected = {"indistinguishable": "met", "distinguishable": "partly", "not_forgotten": "missed"}
    assert found.reasons[0].status == expected.get(status, "not_tested")


def test_the_verdict_of_a_run_rests_on_its_audit(tmp_path, runs):
    run = tmp_path / "unlearned-0"
    shutil.copytree(runs / "unlearned-0", run)
    alter(run / "manifest.json", lambda each: each.update(verdict="forgotten", verdict_reasons=[]))
    made = audited(run, "not_forgotten")
    row = next(each for each in read_report([run, made]).results.rows if each.name == "unlearned-0")
    assert row.verdict.value == "not_forgotten"
    assert "leak_at_k: figures" in row.verdict.sentence
    # Not on that of weights from before it was trained again.
    alter(made / "manifest.json", lambda each: each["probe"].update(weights="others"))
    row = next(each for each in read_report([run, made]).results.rows if each.name == "unlearned-0")
    assert row.verdict.value == "forgotten"
