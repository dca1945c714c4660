"""Titles of metrics, and which value is better."""

import pytest

from dipo_pl.report.columns import Better, column_of, columns_of


@pytest.mark.parametrize(("key", "title", "better", "headline"), [
    ("forget_verbatim", "VerbMem", Better.NEAR_RETAIN_ONLY, True),
    ("forget_knowledge", "KnowMem(forget)", Better.NEAR_RETAIN_ONLY, True),
    ("retain_knowledge", "KnowMem(retain)", Better.HIGHER, True),
    ("lume_task_aggregate", "Task Aggregate", Better.HIGHER, True),
    ("lume_membership", "LUME membership", Better.HIGHER, True),
    ("forget_exact_match", "Exact(forget)", Better.NEAR_RETAIN_ONLY, True),
    ("retain_regurgitation", "Regurgitation(retain)", Better.HIGHER, True),
    ("forget_task2_knowledge_exact_match", "Exact(forget task2 knowledge)", Better.NEAR_RETAIN_ONLY, False),
    ("holdout_task1_regurgitation_probability", "P(holdout task1 regurgitation)", Better.NEITHER, False),
    ("forget_probability", "P(forget)", Better.NEAR_RETAIN_ONLY, True),
    ("retain_probability", "P(retain)", Better.HIGHER, True),
    ("retain_repetition", "Repetition(retain)", Better.LOWER, False),
    ("verbatim_probability", "P(verbatim)", Better.NEAR_RETAIN_ONLY, False),
    ("forget_questions_probability", "P(forget questions)", Better.NEAR_RETAIN_ONLY, False),
    ("retain_questions_probability", "P(retain questions)", Better.HIGHER, False),
    ("real_authors_truth_ratio", "TR(real authors)", Better.HIGHER, False),
    ("holdout_probability", "P(holdout)", Better.NEITHER, False),
    ("held_back_probability", "P(held back)", Better.NEITHER, False),
    ("membership_min_k_auc", "AUC Min-K%", Better.NEAR_UNSEEN, True),
    ("request_2_questions_probability", "P(request 2 questions)", Better.NEAR_RETAIN_ONLY, False),
    ("request_2_refusals", "Refusals(request 2)", Better.NEITHER, False),
    ("lm_eval_mmlu_acc", "mmlu acc", Better.HIGHER, True),
    ("lm_eval_mmlu_acc_stderr", "mmlu acc SE", Better.NEITHER, False),
    ("lm_eval_arc_easy_acc_norm", "arc_easy acc_norm", Better.HIGHER, True),
    ("lm_eval_wmdp_bio_acc", "wmdp_bio acc", Better.LOWER, True),
    ("lm_eval_gsm8k_exact_match_strict_match", "gsm8k exact_match strict match", Better.HIGHER, True),
    ("lm_eval_wikitext_word_perplexity", "wikitext word_perplexity", Better.LOWER, True),
    ("lm_eval_mine_odd", "lm_eval_mine_odd", Better.NEITHER, True),
    ("forget_level3_rouge_l_recall", "ROUGE(forget level3)", Better.NEAR_RETAIN_ONLY, False),
    ("neighbor_level1_rouge_l_recall", "ROUGE(neighbor level1)", Better.HIGHER, False),
    ("my_own\x1b[31m\n", "my_own?[31m?", Better.NEITHER, True),
])  # fmt: skip
def test_columns(key, title, better, headline):
    column = column_of(key)
    assert (column.key, column.title, column.better, column.headline) == (key, title, better, headline)


def test_requests_follow_in_their_order_and_metrics_without_a_description_are_last():
    keys = [
        "request_10_probability", "request_2_mine", "request_2_knowledge", "request_2_probability", "priv_leak",
        "request_2_questions_probability", "model_utility", "mine",
    ]  # fmt: skip
    assert [each.title for each in columns_of(keys)] == [
        "Model Utility", "PrivLeak", "KnowMem(request 2)", "P(request 2)", "P(request 2 questions)", "P(request 10)",
        "mine", "request_2_mine",
    ]  # fmt: skip
    assert column_of("request_2_probability").meaning.startswith("forget set of request 2: mean probability")
    assert column_of("request_2_questions_probability").meaning.startswith(
        "questions about the forget set of request 2"
    )


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("model_utility", 0.6227, "0.623"), ("model_utility", 0.0, "0.000"), ("model_utility", None, ""),
        ("forget_quality", 1.834e-21, "1.8e-21"), ("forget_quality", 0.0005, "0.001"),
        ("forget_quality_log10_p", -20.7366, "-20.74"), ("forget_quality_log10_p", -0.0, "0.00"),
        ("priv_leak", -1e-12, "-1.0e-12"), ("priv_leak", 37.44, "37.4"),
    ],
)  # fmt: skip
def test_values_as_text(key, value, text):
    assert column_of(key).text(value) == text
