"""What the figures of MUSE and of requests are called, and which is better."""

from dipo_pl.report.columns import COLUMNS, Better, columns_of


def test_muses_figures_are_headlines():
    found = {key: COLUMNS[key] for key in ("forget_verbatim", "forget_knowledge", "retain_knowledge")}
    assert [each.title for each in found.values()] == ["VerbMem", "KnowMem(forget)", "KnowMem(retain)"]
    assert all(each.headline for each in found.values())
    assert [each.better for each in found.values()] == [
        Better.NEAR_RETAIN_ONLY,
        Better.NEAR_RETAIN_ONLY,
        Better.HIGHER,
    ]


def test_sets_of_muse_are_known_and_no_headlines():
    for name, better in (
        ("verbatim", Better.NEAR_RETAIN_ONLY),
        ("forget_questions", Better.NEAR_RETAIN_ONLY),
        ("retain_questions", Better.HIGHER),
        ("holdout", Better.NEITHER),
    ):
        column = COLUMNS[f"{name}_probability"]
        assert (column.title, column.better, column.headline) == (f"P({name})", better, False)
    assert COLUMNS["forget_probability"].headline
    assert COLUMNS["retain_probability"].better is Better.HIGHER


def test_requests_follow_in_their_order():
    keys = [
        "request_10_probability", "request_2_knowledge", "request_2_probability", "priv_leak",
        "request_2_questions_probability", "request_2_mine",
    ]  # fmt: skip
    columns = columns_of(keys)
    assert [each.title for each in columns] == [
        "PrivLeak",
        "P(request 2)",
        "P(request 2 questions)",
        "KnowMem(request 2)",
        "P(request 10)",
        "request_2_mine",
    ]
    requests = columns[1:5]
    assert {each.better for each in requests} == {Better.NEAR_RETAIN_ONLY}
    assert not any(each.headline for each in requests)
    assert requests[0].meaning.startswith("what was to be forgotten by request 2: mean probability")
    assert requests[1].meaning.startswith("questions about what was to be forgotten by request 2: mean")
