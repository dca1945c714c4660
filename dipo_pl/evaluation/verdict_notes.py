"""What is told beside a verdict and does not change it: warnings, and what was not tried."""

from dipo_pl.evaluation.verdict_rules import Evidence, Reason

# Rules that nothing of a training run tests.
PROBES = {
    "relearning": "whether training on a few of the rows brings the others back was not tested",
    "quantization": "whether rounding the weights brings the rows back was not tested",
    "paraphrased_questions": "whether the rows come back when asked in other words was not tested",
    "sampling": "whether the rows come back when many answers are sampled was not tested (one greedy answer was)",
}


def notes(evidence: Evidence) -> list[Reason]:
    """Return what the verdict does not rest on: warnings of the run, and what was not tried."""
    warned = [Reason("warnings", "missed", "this run", each) for each in evidence.warnings]
    untested = dict(PROBES)
    # Training goes on to teach them, which raises what is measured on them.
    if evidence.rows and evidence.rows.keys() <= {"forget", "retain", "holdout"}:
        untested["other_knowledge"] = "what the model can do beyond the retain rows was not tested"
    return warned + [Reason(rule, "not_tested", "none", text) for rule, text in untested.items()]
