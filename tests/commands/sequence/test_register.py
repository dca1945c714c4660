"""The register of a sequence: a line for each request that was carried out, and one more after an audit."""

import json
import re

import pytest
import yaml
from sequence_inputs import NAMES, write_requests

RUN = ("sequence", "deletions.yaml", "--name", "s")
ABOUT = {
    NAMES[0]: {
        "id": "R-17",
        "received": "2026-01-02",
        "decided": "2026-01-05",
        "decision": "erase",
        "by": "K. Ito",
    },
    NAMES[1]: {"id": 18},
}


def register(folder):
    return [json.loads(line) for line in (folder / "runs" / "s" / "register.jsonl").read_text().splitlines()]


def test_each_request_is_registered_with_what_came_of_it(cli, inputs, manifest):
    write_requests(inputs, requests=NAMES[:2], register=ABOUT)
    assert cli(*RUN).code == 0
    first, second = register(inputs)
    stages = [inputs / "runs" / "s" / f"stage-{number}" for number in (1, 2)]
    made = [manifest(each) for each in stages]
    assert first == {
        "stage": 1, "request": NAMES[0], **ABOUT[NAMES[0]],
        "started": made[0]["started"], "finished": made[0]["ended"],
        "model_before": made[0]["policy"]["weights_at_start"], "model_after": made[0]["exported_weights"],
        "verdict": made[0]["verdict"],
    }  # fmt: skip
    assert second["id"] == "18"
    assert second["model_before"] == first["model_after"]
    # The same command adds nothing, but for an audit of the same weights.
    assert cli(*RUN).code == 0
    assert register(inputs) == [first, second]
    audit = stages[0].with_name("stage-1-audit")
    audit.mkdir()
    content = {
        "status": "finished", "verdict": {"status": "distinguishable", "reason": "by membership"},
        "probe": {"kind": "audit", "of": "stage-1", "weights": first["model_after"]},
        "attacks": {"membership": {"status": "distinguishable", "reason": ""}},
    }  # fmt: skip
    (audit / "manifest.json").write_text(json.dumps(content | {"status": "running"}))
    assert cli(*RUN).code == 0
    assert len(register(inputs)) == 2
    (audit / "manifest.json").write_text(
        json.dumps(content | {"probe": content["probe"] | {"weights": "others"}})
    )
    assert cli(*RUN).code == 0
    assert len(register(inputs)) == 2
    (audit / "manifest.json").write_text(json.dumps(content))
    (audit / "metrics.jsonl").write_text('{"step": 0}\n')
    assert cli(*RUN).code == 0
    added = {"audit": "distinguishable", "attacks": {"membership": "distinguishable"}}
    assert register(inputs) == [first, second, first | added]
    # An audit that is made again, or whose folder is gone, does not make the register forget what it said.
    (audit / "manifest.json").write_text(json.dumps(content | {"status": "running"}))
    assert cli(*RUN).code == 0
    assert register(inputs) == [first, second, first | added]
    (audit / "manifest.json").write_text(json.dumps(content))
    report = cli("report", "runs/s")
    assert report.code == 0, report.err
    assert "Register of s" in report.out
    assert re.search(r"1 +requests/1.jsonl +R-17 +2026-01-02 +2026-01-05 +erase +K. Ito", report.out)
    # The audit of a stage is part of the report of its sequence.
    assert "Audit of stage-1" in report.out


def test_a_damaged_register_is_named_and_left_alone(cli, inputs):
    folder = inputs / "runs" / "s"
    folder.mkdir(parents=True)
    (folder / "register.jsonl").write_text('{"stage": 1}\nno entry\n')
    ended = cli(*RUN)
    assert (ended.code, len(ended.errors)) == (2, 1)
    assert "register.jsonl, line 2 is no entry of a register: restore the file" in ended.errors[0]
    assert (folder / "register.jsonl").read_text() == '{"stage": 1}\nno entry\n'
    assert not (folder / "stage-1").exists()


@pytest.mark.parametrize(("given", "line"), [
    ("R-17", "register must be a mapping of requests, such as {author_1: "),
    ({NAMES[0]: "R-17"}, "register must be a mapping of requests"),
    ({"others.jsonl": {"id": 1}}, "register has 'others.jsonl', which is none of the requests requests/1.jsonl"),
    ({NAMES[0]: {"who": "K. Ito"}}, "register says 'who' of requests/1.jsonl: it may say id, received, "),
])  # fmt: skip
def test_what_a_register_cannot_say_is_refused(cli, inputs, given, line):
    content = yaml.safe_load((inputs / "deletions.yaml").read_text())
    (inputs / "deletions.yaml").write_text(yaml.safe_dump(content | {"register": given}))
    ended = cli(*RUN)
    assert (ended.code, len(ended.errors)) == (2, 1)
    assert line in ended.errors[0]
