"""The report of a study, worked by hand from its records."""

import json
import math

import pytest
from study_records import curve, record

from dipo_pl.commands.study.measure import relearning_area
from dipo_pl.commands.study.page import as_markdown, resolution
from dipo_pl.commands.study.plots import plots_of
from dipo_pl.commands.study.results import Results
from dipo_pl.commands.study.summary import summary_of


def test_the_relearning_area_is_the_mean_difference_over_the_steps():
    """Differences .1, .3, .1 at steps 0, 2, 4: two trapezoids of .4, over 4 steps."""
    assert relearning_area(curve(0.2, 0.5, 0.4), curve(0.1, 0.2, 0.3)) == pytest.approx(0.8 / 4)
    assert relearning_area(curve(0.2, 0.5), curve(0.3, 0.6)) == pytest.approx(-0.1)
    # Only steps that both have.
    assert relearning_area(curve(0.2, 0.5, 0.9), curve(0.1, 0.2)) == pytest.approx(0.2)
    assert relearning_area(curve(0.2), curve(0.1)) is None
    assert relearning_area([{"step": 0}, {"step": 1}], curve(0.1, 0.2)) is None


def p(rows: int, gap: int) -> float:
    """Hodges 1958: 2 [binom(2n, n - h) - binom(2n, n - 2h) + ...] / binom(2n, n)."""
    terms = ((-1) ** (k - 1) * math.comb(2 * rows, rows - k * gap) for k in range(1, rows // gap + 1))
    return 2 * sum(terms) / math.comb(2 * rows, rows)


def test_the_resolution_of_forget_quality():
    """On 5 rows p of D = 4/5 is 20 / 252 and of 1 it is 2 / 252."""
    steps = "On 5 forget rows the KS statistic is a multiple of 1/5, so that Forget Quality takes 5 values"
    assert resolution(5) == f"{steps}; those next to 0.05 are 0.0794 (KS 0.8) and 0.00794 (KS 1)."
    assert p(40, 12) > 0.05 > p(40, 13)
    assert f"are {p(40, 12):.3g} (KS 0.3) and {p(40, 13):.3g} (KS 0.325)." in resolution(40)
    assert resolution(2).endswith("takes 2 values, none of which is on the other side of 0.05.")


def test_lines_hold_every_seed_with_intervals(results):
    summary = summary_of(results)
    assert [each.name for each in summary.lines] == ["target", "retain-only", "A", "B"]
    line = summary.line("A")
    assert line.values["forget_probability"] == {0: 0.1, 1: 0.2, 2: 0.6}
    mean, low, high = line.intervals["forget_probability"]
    assert (mean, low, high) == (pytest.approx(0.3), pytest.approx(0.1), pytest.approx(0.6))
    # Differences .1 and .3, .4, .5: means .2, .25, .3.
    assert line.values["relearning_area"] == {seed: pytest.approx(0.2 + seed / 20) for seed in range(3)}
    # As the rows measured it before training, not as the target's own run did.
    assert summary.line("target").values["forget_probability"] == {0: 0.9, 1: 0.91, 2: 0.92}
    assert summary.line("retain-only").values["forget_quality_log10_p"] == {0: 0, 1: 0, 2: 0}
    assert (summary.line("B").seeds, summary.line("B").failed) == ([0], (1,))
    assert summary.line("old") is None


@pytest.mark.parametrize("seed", [1, 7])
def test_one_model_for_all_seeds_is_one_line_of_one_seed(results, seed):
    """Its seed may be none of the table's."""
    results.study["file"] |= {name: {"configs": [], "seed": seed} for name in ("target", "retain_only")}
    for name in ("target", "retain_only", "retain_only/relearn"):
        folder, _, probe = name.partition("/")
        keys = [f"{folder}/seed-{each}{f'-{probe}' if probe else ''}" for each in (0, 1, 2)]
        kept = [results.runs.pop(each) for each in keys][1]
        results.runs[keys[0].replace("seed-0", f"seed-{seed}")] = kept | {"seed": seed}
    summary = summary_of(results)
    assert summary.line("A").values["relearning_area"] == {
        each: pytest.approx(0.2 + each / 20) for each in range(3)
    }
    assert (summary.line("target").seeds, summary.line("retain-only").seeds) == ([seed], [seed])
    # The value is that of a run before training, whatever its own seed.
    assert summary.line("target").values["forget_probability"] == {seed: 0.92}
    assert summary.line("retain-only").values["forget_probability"] == {seed: 0.05}


def test_the_page_names_what_it_rests_on(results):
    page = as_markdown(results, summary_of(results))
    for line in (
        "- Seeds: 0, 1, 2 (3); 4 of 6 runs of the table are finished",
        "- Command: `dipo-pl study --config s.yaml --data.path '/my data'`",
        r"- Machine: A \| B, 2 core(s), AVX2",
        "- dipo-pl: 1 at commit c0ffee",
        "- Time: 2026-01-01 10:00 to 2026-01-03 10:00 UTC",
        r"- rows/b/seed-1 **failed**: no \| memory",
        "- 1 record(s) of runs that the study has no longer are kept in results.json, and do not count",
        "| row | seeds | verdicts | log10 p | P(forget) |",
        r"| A | 3 | 3 partly | -1.00 \[-2.00, 0.00\] | 0.300 \[0.100, 0.600\] |",
        "| retain-only | 3 |  | 0.00 | 0.050 |",
        "| B | 1, 1 failed | 1 forgotten |  | 0.300 |",
        r"| A | 3 | 0.250 \[0.200, 0.300\] |",
        "| A | -2 | **-1** |",
        "    dipo-pl study --config s.yaml --row ROW --name again --data.path '/my data'",
        "    dipo-pl fit A",
    ):
        assert line in page, line


def test_a_mean_over_fewer_seeds_than_the_row_has_says_so(results):
    """Seed 2 measured what is not finite, and seed 1 lost its relearning attack."""
    del results.runs["rows/a/seed-2"]["metrics"]["forget_probability"]
    del results.runs["rows/a/seed-1-relearn"]
    page = as_markdown(results, summary_of(results))
    assert r"| 0.150 \[0.100, 0.200\] (2 of 3 seeds) |" in page
    assert r"| A | 3 | 0.250 \[0.200, 0.300\] (2 of 3 seeds) |" in page
    assert r"-1.00 \[-2.00, 0.00\] |" in page


@pytest.mark.parametrize(("changes", "gone"), [
    ({"after": {}}, ["relearning_area"]),
    ({"after": {}, "retain_only": None}, ["retain-only", "relearning_area"]),
    ({"target": None, "seeds": [0, 2]}, ["1 failed"]),
])  # fmt: skip
def test_records_of_what_the_file_has_no_longer_do_not_count(results, changes, gone):
    """The target is a line still, as the rows measured it before training."""
    shown = [*results.runs]
    results.study["file"] |= changes
    current = results.current
    summary = summary_of(results)
    found = {key for line in summary.lines for key in (line.name, *line.values)}
    found |= {f"{len(line.failed)} failed" for line in summary.lines}
    assert found.isdisjoint(gone)
    assert {"target", "A", "B", "forget_probability"} <= found
    page = as_markdown(results, summary)
    assert f"- {len(shown) - len(current)} record(s) of runs that the study has no longer" in page
    assert ("**failed**" in page) == (1 in results.study["file"]["seeds"])


def test_a_row_that_keeps_its_learning_rate_now_has_no_scores_in_the_table(results):
    assert "## Learning rates" in as_markdown(results, summary_of(results))
    results.study["file"]["rows"][0]["tune"] = False
    assert "## Learning rates" not in as_markdown(results, summary_of(results))


def test_a_learning_rate_is_marked_when_all_of_them_have_ended(results):
    results.study["file"]["learning_rate"]["seeds"] = [100, 101]
    assert "| A | -2 | -1 |" in as_markdown(results, summary_of(results))


def test_a_quantization_attack_adds_no_column_to_the_results(results):
    quantized = {bits: {"forget_probability": 0.2, "retain_probability": 0.8} for bits in ("int8", "nf4")}
    results.study["file"]["after"]["quantize"] = {}
    for name, row in (("rows/a", "A"), ("retain_only", None)):
        results.runs[f"{name}/seed-0-quantize"] = record("quantize", row, 0, quantized=quantized)
    summary = summary_of(results)
    assert [each.key for each in summary.columns] == ["forget_quality_log10_p", "forget_probability"]
    assert summary.line("A").values["nf4_forget_probability"] == {0: 0.2}
    assert summary.line("retain-only").values["int8_forget_probability"] == {0: 0.2}


@pytest.mark.parametrize(
    ("first", "again", "told"), [("a", "b", True), ("a", "a", False), ("a", None, False)]
)
def test_a_model_that_was_made_again_with_other_weights_is_named(results, first, again, told):
    made_again = [{"weights": {"weights_at_end": each}} for each in (first, again)]
    results.runs["target/seed-1"] |= {"weights": {"weights_at_end": first}, "made_again": made_again}
    page = as_markdown(results, summary_of(results))
    assert ("- target/seed-1 was made again with **other weights**" in page) == told


def test_learning_rates_of_an_earlier_file_are_neither_shown_nor_marked(results):
    """The file has no 3e-4 and no seed 101 any more; their records stay."""
    for key, seed, rate in (("3", 100, 3e-4), ("1", 101, 1e-4)):
        results.runs[f"tuning/a/{key}/seed-{seed}"] = record(
            "tuning", "A", seed, metrics={}, learning_rate=rate, score=9.0
        )
    page = as_markdown(results, summary_of(results))
    assert "| row | 0.0001 | 0.0002 |" in page
    assert "| A | -2 | **-1** |" in page


def test_the_command_has_the_name_that_was_given(results):
    results.study["folder"] = "my study"
    assert "`dipo-pl study --config s.yaml --name 'my study' --data.path" in as_markdown(
        results, summary_of(results)
    )


def test_trajectories_are_means_over_the_seeds_that_have_the_step(results):
    """Seed 1 was evaluated at one step less, and seed 2 by an earlier version, which kept none."""
    assert not [each for each in plots_of(results, summary_of(results)) if "trajectory" in each.name]
    for seed, values in enumerate(((0.9, 0.4, 0.2), (0.7, 0.6))):
        results.runs[f"rows/a/seed-{seed}"]["trajectory"] = [
            {"step": 5 * place, "forget_probability": each} for place, each in enumerate(values)
        ]
    (plot,) = [each for each in plots_of(results, summary_of(results)) if "trajectory" in each.name]
    assert (plot.name, plot.description) == ("trajectory_forget_probability", "A 0.800 to 0.200.")
    (curve,) = plot.draw.keywords["curves"]
    assert (curve.x, curve.y) == ([0, 5, 10], pytest.approx([0.8, 0.5, 0.2]))


def test_more_curves_than_can_be_told_apart_are_cells(results):
    """A row of cells for each, with the values as numbers; a step that was not evaluated has none."""
    rows = results.study["rows"]
    for place in range(14):
        rows.append(f"row {place}")
        curve = [{"step": step, "held_back_probability": place / 20} for step in ((0, 2) if place else (2,))]
        results.runs[f"rows/row-{place}/seed-0-relearn"] = record("relearn", f"row {place}", 0, curve=curve)
    (plot,) = [each for each in plots_of(results, summary_of(results)) if each.name == "relearning"]
    axes = plot.figure().subfigs[0].axes[0]
    names = [each.get_text() for each in axes.get_yticklabels()]
    assert names[-14:] == [f"row {place}" for place in range(14)]
    shown = {each.get_position(): each.get_text() for each in axes.texts}
    last, steps = len(names) - 1, [each.get_text() for each in axes.get_xticklabels()]
    assert shown[steps.index("2"), last] == shown[steps.index("0"), last] == "0.65"
    assert (steps.index("0"), last - 13) not in shown
    assert plot.figure().subfigs[0].axes[1].get_ylabel() == "P(held back)"


def test_results_are_read_as_they_were_written(results):
    results.save()
    again = Results.read(results.path.parent)
    assert (again.study, again.runs) == (results.study, results.runs)
    assert json.loads(results.path.read_text())["runs"].keys() == results.runs.keys()
