"""The page of several studies, and its table that a browser sorts."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from study_records import record

from dipo_pl.commands.leaderboard import as_markdown, table_of
from dipo_pl.commands.study.results import Results
from dipo_pl.commands.study.summary import summary_of

ROOT = Path(__file__).parents[3]


def ranks(results: Results) -> list[tuple[str, str]]:
    return [(row[0], row[1]) for row in table_of(results, summary_of(results)).rows]


def finish_b(results: Results, **metrics: float) -> None:
    for seed in range(3):
        results.runs[f"rows/b/seed-{seed}"] = record("rows", "B", seed, metrics={**metrics})


def test_the_order_is_that_of_forget_quality_where_nothing_was_audited(results):
    """A has a mean log10 p of -1 and B none, until it has -0.5 for each seed."""
    assert ranks(results) == [("1", "A"), ("", "B"), ("", "target"), ("", "retain-only")]
    finish_b(results, forget_quality_log10_p=-0.5)
    assert ranks(results)[:2] == [("1", "B"), ("2", "A")]


@pytest.mark.parametrize("lost", ["failed", "not finite"])
def test_a_method_that_lacks_a_seed_has_no_rank(results, lost):
    """The two seeds that B has would put it first."""
    finish_b(results, forget_quality_log10_p=-0.5)
    if lost == "failed":
        results.runs["rows/b/seed-1"] |= {"status": "failed", "error": "no memory"}
    else:
        del results.runs["rows/b/seed-1"]["metrics"]["forget_quality_log10_p"]
    assert ranks(results)[:2] == [("1", "A"), ("", "B")]
    page = as_markdown([(results, summary_of(results))])
    assert "Without a rank, for lack of log10 p for each seed: B (2 of 3)." in page
    assert "|  | B | " in page
    assert "--row B --name again" in page


def test_the_order_is_that_of_the_overall_score_where_there_is_one(results):
    finish_b(results, forget_quality_log10_p=-0.5)
    for seed, score in enumerate((0.5, 0.7, 0.9)):
        results.runs[f"rows/a/seed-{seed}"]["metrics"]["overall_score"] = score
    assert ranks(results)[:2] == [("1", "A"), ("", "B")]
    finish_b(results, overall_score=0.8)
    assert ranks(results)[:2] == [("1", "B"), ("2", "A")]


def test_each_row_has_the_command_that_makes_it(results):
    page = as_markdown([(results, summary_of(results))])
    assert (
        "| 1 | A | 3 | -1.00 \\[-2.00, 0.00\\] | 0.300 \\[0.100, 0.600\\] | 0.250 \\[0.200, 0.300\\] | "
        in page
    )
    assert "dipo-pl study --config s.yaml --row A --name again --data.path '/my data' |" in page
    assert "- P(forget): " in page


def test_the_command_writes_the_page_and_prints_the_tables(cli, results):
    results.save()
    folder = str(results.path.parent)
    ended = cli("leaderboard", folder, "--output", "board/page.md")
    assert ended.code == 0, ended.err
    assert Path("board/page.md").read_text() == as_markdown([(results, summary_of(results))])
    assert "leaderboard: board/page.md" in ended.out
    assert "--row" not in ended.out


def test_a_folder_without_results_is_refused(refused, results):
    assert "nowhere is no folder: give the folder of a study's results.json" in refused(
        "leaderboard", "nowhere"
    )
    results.save()
    folder = str(results.path.parent)
    assert f"{folder}/. is given twice: leave one of them out" in refused(
        "leaderboard", folder, f"{folder}/."
    )
    Path("empty").mkdir()
    assert "empty/results.json has no finished run of a table: give the folder" in refused(
        "leaderboard", "empty"
    )
    results.runs = {key: each for key, each in results.runs.items() if "tuning" in key}
    results.save()
    assert "has no finished run of a table" in refused("leaderboard", str(results.path.parent))
    assert not Path("leaderboard.md").exists()


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_click_on_a_head_sorts_the_table(tmp_path):
    cells = ["-1.00 [-2.00, 0.00]", "", "0.5", "-10.0 [-12.0, -8.0]", "2"]
    body = "".join(f"<tr><td>{place}</td><td>{each}</td></tr>" for place, each in enumerate(cells))
    page = f"""<article><table><thead><tr><th>name</th><th>value</th></tr></thead><tbody>{body}</tbody></table></article>
      <script>const document$ = {{subscribe: (each) => each()}};</script>
      <script>{(ROOT / "docs/javascripts/sortable.js").read_text()}</script>
      <script>
        const order = () => [...document.querySelectorAll("td:first-child")].map((each) => each.textContent).join("");
        const [name, value] = document.querySelectorAll("th");
        const found = [];
        for (const each of [value, value, name]) {{ each.click(); found.push(order()); }}
        document.title = found.join(" ") + " " + name.getAttribute("aria-sort") + " " + value.getAttribute("aria-sort");
      </script>"""
    (tmp_path / "page.html").write_text(page)
    browser = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}",
        "--dump-dom",
    ]
    dom = subprocess.run(
        [*browser, f"file://{tmp_path}/page.html"], capture_output=True, text=True, timeout=60, check=True
    )
    assert re.search("<title>(.*)</title>", dom.stdout)[1] == "30241 42031 01234 ascending null"
