"""What is told beside a verdict and does not change it: warnings, and what was not tried."""

from dipo_pl.evaluation.verdict_rules import Evidence, Reason, Thresholds, area_noise

# Attacks beside the one that the verdict rests on.
OTHER_ATTACKS = {"loss": "loss", "zlib": "zlib", "Min-K%++": "min_k_plus_plus"}
# Rules that nothing of a training run tests.
PROBES = {
    "relearning": "whether training on a few of the rows brings the others back was not tested",
    "quantization": "whether rounding the weights brings the rows back was not tested",
    "paraphrased_questions": "whether the rows come back when asked in other words was not tested",
    "sampling": "whether the rows come back when many answers are sampled was not tested (one greedy answer was)",
}


def other_attacks(evidence: Evidence, thresholds: Thresholds) -> list[Reason]:
    """Return a warning on the attacks beside Min-K% that tell the rows from unseen ones; nothing if there are none."""
    bound, apart = max(thresholds.membership, area_noise(evidence)), []
    for title, name in OTHER_ATTACKS.items():
        key = f"membership_{name}_auc"
        aim = (evidence.retain or {}).get(key, 0.5)
        if key in evidence.now and abs(evidence.now[key] - aim) > bound:
            apart.append(f"{title} {evidence.now[key]:.2f} ({aim:.2f})")
    if not apart:
        return []
    whose = "chance" if evidence.retain is None else "a retain-only model's"
    text = (
        f"by other attacks the rows are told from unseen ones, recognized or erased too far: AUC of {', '.join(apart)}; in "
        f"brackets {whose}, at most {bound:.2f} apart"
    )
    return [Reason("warnings", "missed", "retain-only model" if evidence.retain else "holdout", text)]


def notes(evidence: Evidence) -> list[Reason]:
    """Return what the verdict does not rest on: warnings of the run, and what was not tried."""
    warned = [Reason("warnings", "missed", "this run", each) for each in evidence.warnings]
    untested = dict(PROBES)
    # Training goes on to teach them, which raises what is measured on them.
    if evidence.rows and evidence.rows.keys() <= {"forget", "retain", "holdout"}:
        untested["other_knowledge"] = "what the model can do beyond the retain rows was not tested"
    return warned + [Reason(rule, "not_tested", "none", text) for rule, text in untested.items()]
