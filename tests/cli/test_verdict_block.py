"""What is printed under a verdict: the reasons, what was not tested in one line, and the next step in numbers."""

import pytest

from dipo_pl.cli.verdict_block import is_less, verdict_block
from dipo_pl.storage.run_folder import RunFolder

CONFIG = "model: {init_args: {optimizer: {init_args: {lr: 1.0e-5}}}}"


def reason(rule, status="met", evidence="holdout"):
    return {"rule": rule, "status": status, "evidence": evidence, "text": f"{rule} it is"}


@pytest.mark.parametrize(("verdict", "reasons", "advice"), [
    ("forgotten", [reason("forget_probability")], "dipo-pl audit {run} (whether the rows are gone or only hidden)"),
    ("not_forgotten", [reason("forget_probability", "missed")],
     "try model.optimizer.lr 5e-05 (five times this) and another --name"),
    ("cannot_tell", [reason("collapse", "missed")], "try model.optimizer.lr 2e-06 (a fifth of this) and another --name"),
    ("partly", [reason("utility", "missed")], "try model.optimizer.lr 2e-06 (a fifth of this) and another --name"),
    ("partly", [reason("utility", "partly")], "try model.optimizer.lr 2e-06 (a fifth of this) and another --name"),
    ("partly", [reason("membership", "missed")], "dipo-pl audit {run} (whether the rows are gone or only hidden)"),
    ("partly", [reason("forget_rouge", "partly")], "try model.optimizer.lr 5e-05 (five times this) and another --name"),
    # A run that lost utility is not told to go faster.
    ("not_forgotten", [reason("forget_probability", "missed"), reason("utility", "missed")],
     "try model.optimizer.lr 2e-06 (a fifth of this) and another --name"),
    ("cannot_tell", [reason("membership", "not_tested", "none")],
     "give --data.holdout FILE, rows of the same form that no model has seen, and another --name"),
    # A holdout was given, with too few rows.
    ("cannot_tell", [reason("membership", "not_tested")], "dipo-pl report {run}"),
])  # fmt: skip
def test_block(tmp_path, verdict, reasons, advice):
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.config.write_text(CONFIG)
    untested = [reason(each, "not_tested", "none") for each in ("relearning", "quantization")]
    warned = [{**reason("warnings", "missed", "this run"), "text": "step 3 was better"}]
    run.add_to_manifest(verdict=verdict, verdict_step=4, verdict_reasons=[*reasons, *warned, *untested])
    block = verdict_block(run)
    assert f"(step 4, {run.path})" in block.splitlines()[0]
    assert "  warning    step 3 was better" in block
    assert "relearning, quantization" in block
    assert f"  next       {advice.format(run=run.path)}" in block
    assert block.endswith(f"  next       dipo-pl report {run.path}")
    assert ("--data.holdout" in block) == (reasons[0]["evidence"] == "none")
    assert [is_less(run, each) for each in (None, "partly", "forgotten")] == [
        False, verdict not in ("partly", "forgotten"), verdict != "forgotten",
    ]  # fmt: skip


def test_a_run_without_a_verdict_prints_none_and_meets_no_requirement(tmp_path):
    run = RunFolder(tmp_path)
    assert (verdict_block(run), is_less(run, None), is_less(run, "partly")) == ("", False, True)
