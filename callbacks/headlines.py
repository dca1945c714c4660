"""The metrics that are shown first, by title, of each kind of benchmark."""

from collections.abc import Collection

# Metrics of question-answering benchmarks.
HEADLINES = {
    "Forget Quality": "forget_quality",
    "Model Utility": "model_utility",
    "P(forget)": "forget_probability",
    "ROUGE(forget)": "forget_rouge_l_recall",
    "P(retain)": "retain_probability",
    "ROUGE(retain)": "retain_rouge_l_recall",
}
MUSE_HEADLINES = {
    "VerbMem": "forget_verbatim",
    "KnowMem(forget)": "forget_knowledge",
    "KnowMem(retain)": "retain_knowledge",
    "PrivLeak": "priv_leak",
    "P(forget)": "forget_probability",
    "P(retain)": "retain_probability",
}
LUME_HEADLINES = {
    "Task Aggregate": "lume_task_aggregate",
    "Membership": "lume_membership",
    "Regurg.(forget)": "forget_regurgitation",
    "Exact(forget)": "forget_exact_match",
    "Regurg.(retain)": "retain_regurgitation",
    "Exact(retain)": "retain_exact_match",
    "P(forget)": "forget_probability",
    "P(retain)": "retain_probability",
}


def headlines(metrics: Collection[str]) -> dict[str, str]:
    """Return the metrics to show first, by title, of a result that has these metrics."""
    if not {"retain_knowledge", "retain_questions_probability"}.isdisjoint(metrics):
        return MUSE_HEADLINES
    if any(each.startswith(("lume_", "retain_task")) for each in metrics):
        return LUME_HEADLINES
    return HEADLINES
