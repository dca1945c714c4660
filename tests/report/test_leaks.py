"""What still leaks: the words that a generated answer has in common with the true one, row by row, worst first."""

import json

import pytest
from sample_runs import alter, forgotten

from dipo_pl.report.cards import cards
from dipo_pl.report.contents import read_report
from dipo_pl.report.leaks import compared_words, leaks_of, shared_spans
from dipo_pl.report.page import as_html
from dipo_pl.report.texts import Texts

BORN = "Mira Holloway was born on November 17, 1970 in Oslo."


def marked(pieces):
    return [each.text.strip() for each in pieces if each.shared]


@pytest.fixture
def leaks(copied):
    """What leaks of one row, and of a second one that says nothing, given a retain-only model's answer."""

    def of(question, truth, answer, guess="", texts=Texts.FULL, **values):
        def change(evaluation):
            rows = evaluation["sets"]["forget"]["rows"][:2]
            evaluation["sets"]["forget"]["rows"] = rows
            rows[1].pop("generation")
            rows[1]["answers"] = ["Nothing."]
            rows[0] |= {"question": question, "answers": [truth], "generation": answer, **values}

        def guessed(evaluation):
            change(evaluation)
            evaluation["sets"]["forget"]["rows"][0]["generation"] = guess

        run, reference = copied("unlearned-0", evaluation=change), copied("retain-only", evaluation=guessed)
        found = read_report([run], retain_only=reference, texts=texts)
        return found.leaks[0]

    return of


@pytest.mark.parametrize(("question", "truth", "answer", "guess", "spans", "leaked"), [
    ("When was Mira Holloway born?", BORN, "She was born in Bergen on November 17, 1983.", "", ["November 17"], "2 of 4"),
    # What a model guesses that never saw the row, in the same words, is no leak; another guess does not hide a part.
    ("When was Mira Holloway born?", BORN, "On November 17.", "It was November 17.", [], "0 of 4"),
    ("When was Mira Holloway born?", BORN, "On November 17.", "It was November 3.", ["November 17"], "2 of 4"),
    # Words of the question and function words alone say nothing.
    ("Where was Mira Holloway born?", BORN, "Mira Holloway was born in the city.", "", [], "0 of 4"),
    ("Who?", "The secret code.", "SECRET CODE or secret code", "", ["SECRET CODE", "secret code"], "2 of 2"),
    ("Quis?", "Straße 12", "strasse", "", ["strasse"], "1 of 2"),
    ("\N{CJK UNIFIED IDEOGRAPH-8C01}?", "这本书是米拉写的。", "作者是米拉。", "", ["是米拉"], "3 of 8"),
    ("Who?", "", "anything", "", [], "0 of 0"),
    ("Who?", "Something.", "", "", [], "0 of 1"),
])  # fmt: skip
def test_spans(leaks, question, truth, answer, guess, spans, leaked):
    row = next(each for each in leaks(question, truth, answer, guess).rows if each.row == 0)
    assert marked(row.answer) == spans
    assert f"{row.leaked} of {row.telling}" == leaked
    assert "".join(each.text for each in row.answer) == answer
    assert row.longest == max(map(len, map(compared_words, spans)), default=0)


@pytest.mark.parametrize("texts", [Texts.REDACTED, Texts.NONE])
def test_masks_tell_lengths_only(leaks, texts):
    (row, _) = leaks("When?", BORN, "Born on November 17, 1983.", texts=texts).rows
    assert (row.leaked, row.question) == (3, "")
    assert [each.words for each in row.answer if each.shared] == ([4] if texts is Texts.REDACTED else [])
    assert {*"".join(each.text for each in row.answer)} <= {"\N{BLACK RECTANGLE}", " "}


def test_a_long_answer_is_cut_to_where_it_leaks(leaks):
    (row, _) = leaks("When?", BORN, "word " * 300 + "November 17 " + "word " * 300).rows
    assert marked(row.answer) == ["November 17"]
    text = "".join(each.text for each in row.answer)
    assert len(compared_words(text)) == 60
    assert text.startswith("\N{HORIZONTAL ELLIPSIS} ")
    assert text.endswith(" \N{HORIZONTAL ELLIPSIS}")


def test_the_worst_rows_come_first(report):
    found = next(each for each in report.leaks if each.run == "unlearned-0")
    keys = [(-each.share, -each.rouge, -each.probability) for each in found.rows]
    assert keys == sorted(keys)
    assert sorted(each.row for each in found.rows) == list(range(10))
    (run,) = (each for each in report.runs if each.name == "unlearned-0")
    (reference,) = (each for each in report.runs if each.name == "retain-only")
    expected = reference.result.sets["forget"].rows
    assert [each.expected for each in found.rows] == [
        expected[each.row]["probability"] for each in found.rows
    ]
    assert all(each.expected is None for each in leaks_of(run, None, Texts.FULL).rows)


def test_shared_spans_are_the_longest_ones_in_any_order():
    assert shared_spans("a b c d".split(), "c d a b c x d".split()) == [(2, 0, 2), (0, 2, 3), (3, 6, 1)]
    assert shared_spans([], ["a"]) == shared_spans(["a"], []) == []


def section_of(page, name):
    return page.split(f'<section id="{name}"')[1].split("</section>")[0]


REASONS = [
    {"rule": "forget_probability", "status": "missed", "evidence": "retain-only model", "text": "P fell <b>too</b> little"},
    {"rule": "utility", "status": "met", "evidence": "target", "text": "Utility is kept"},
    {"rule": "warnings", "status": "missed", "evidence": "this run", "text": "forgetting stalled"},
    {"rule": "relearning", "status": "not_tested", "evidence": "none", "text": "relearning was not tried"},
    {"rule": "paraphrased", "status": "not_tested", "evidence": "none", "text": "paraphrases were not tried"},
    {"rule": "quantization", "status": "not_tested", "evidence": "none", "text": "rounding was not tried"},
]  # fmt: skip


def judged(value, reasons=REASONS):
    return lambda manifest: manifest.update(verdict=value, verdict_reasons=reasons)


def test_a_card_answers_the_first_questions(runs, copied):
    run = copied("unlearned-0", manifest=judged("not_forgotten"))
    alter(copied("unlearned-0-relearn") / "manifest.json", lambda each: each["probe"].update(of=str(run)))
    report = read_report([run, run.with_name("unlearned-0-relearn"), runs / "retain-only"])
    (card,) = cards(report)
    texts = {question: [each.text for each in found] for question, found in card.answers.items()}
    assert texts["Was it forgotten?"] == ["P fell <b>too</b> little."]
    assert texts["What did it cost?"] == ["Utility is kept."]
    assert texts["How sure is this?"] == [
        "Compared with: retain-only model.", "10 forget rows, one seed.", "Forgetting stalled.",
    ]  # fmt: skip
    # What an attack of this report has tested is not named as untested.
    said = [each.partition(":")[0] for each in texts["Is it reversible?"]]
    assert said == ["Rounding was not tried.", "After 4 steps of relearning"]
    assert card.not_tested == ["Paraphrases were not tried."]
    first = section_of(as_html(report), "verdicts")
    assert '<span class="badge not_forgotten">not forgotten</span>' in first
    assert "P fell &lt;b&gt;too&lt;/b&gt; little" in first
    assert '<li class="warning"><span class="hidden">warning: </span>Forgetting stalled.</li>' in first
    assert "retain-only (retain-only: never saw it)" in first
    results = section_of(as_html(report), "results")
    assert results.count("(misses its threshold)") == 2  # in the short table and in the whole one


@pytest.mark.parametrize(("verdicts", "starred"), [
    (("forgotten", "forgotten"), {"unlearned-0", "unlearned-1"}),
    (("forgotten", "partly"), {"unlearned-0", "unlearned-1"}),
    (("forgotten", "not_forgotten"), set()),
    (("not_forgotten", "cannot_tell"), set()),
])  # fmt: skip
def test_no_star_for_a_run_that_did_not_forget(runs, copied, verdicts, starred):
    paths = [
        copied(f"unlearned-{number}", manifest=judged(value, [])) for number, value in enumerate(verdicts)
    ]
    results = read_report([*paths, runs / "retain-only"]).results
    assert {results.rows[row].name for row, _ in results.best} == starred
    hint = "No value of a run is best that did not forget"
    assert (hint in results.legend) == (not starred)
    assert next(row.standing for row in results.rows) == "reference"


def test_a_value_that_misses_its_threshold_is_not_best(runs, copied):
    paths = [copied(f"unlearned-{number}", manifest=judged("partly")) for number in range(2)]
    best = {key for _, key in read_report([*paths, runs / "retain-only"]).results.best}
    assert "model_utility" in best
    assert "forget_probability" not in best


def test_a_run_without_a_verdict_is_judged_and_that_is_said(runs, copied):
    run = copied(
        "unlearned-0", manifest=lambda each: [each.pop(key, None) for key in ("verdict", "verdict_reasons")]
    )
    report = read_report([run, runs / "retain-only"])
    (card,) = cards(report)
    assert card.verdict.computed
    # P(forget) went from .0385 to .0337, and the retain-only model has .00915.
    assert card.verdict.value == "not_forgotten"
    assert "The run recorded no verdict" in section_of(as_html(report), "verdicts")
    alter(run / "manifest.json", forgotten)
    assert not cards(read_report([run, runs / "retain-only"]))[0].verdict.computed


@pytest.mark.parametrize(("entries", "said"), [
    ({"verdict": "yes"}, "verdict must be one of forgotten, partly, not_forgotten, cannot_tell (got yes)"),
    ({"verdict": ["forgotten"]}, "verdict must be one of"),
    ({"verdict": "partly", "verdict_reasons": {}}, "verdict_reasons must be a list (got {})"),
    ({"verdict": "partly", "verdict_reasons": ["x"]}, "verdict_reasons must have rule, status and text (got x)"),
    ({"verdict": "partly", "verdict_reasons": [{"rule": "a", "status": "b", "text": ""}]}, "the status of a in"),
])  # fmt: skip
def test_a_wrong_verdict_is_named_and_the_run_left_out(cli, runs, copied, entries, said):
    broken = copied("unlearned-1", "broken", manifest=lambda each: each.update(entries))
    ended = cli("report", runs / "unlearned-0", broken, "--format", "json")
    assert ended.code == 0
    (line,) = ended.err.splitlines()
    assert said in line
    assert str(broken) in line
    assert [each["name"] for each in json.loads(ended.out)["runs"]] == ["retain-only", "unlearned-0"]
