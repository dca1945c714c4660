"""The page in a real browser: no error, no request; sorted, filtered and searched by mouse and by keyboard."""

import shutil
from itertools import pairwise

import pytest
from sample_runs import alter, forgotten, write_sequence

from dipo_pl.report.contents import read_report
from dipo_pl.report.page import as_html
from dipo_pl.report.texts import Texts

SCRIPT = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
LONG = SCRIPT + "unbroken" * 20


@pytest.fixture(scope="module")
def file(runs, tmp_path_factory):
    """The page of real runs, one of which has been answered with a script."""
    folder = tmp_path_factory.mktemp("page")
    shutil.copytree(runs, folder / "runs", ignore=shutil.ignore_patterns("hf", "checkpoints", "events*"))

    def answer(evaluation):
        rows = evaluation["sets"]["forget"]["rows"]
        rows[2]["generation"], rows[3]["generation"] = SCRIPT, "Zanzibar " + "unbroken" * 60

    alter(folder / "runs" / "unlearned-1" / "evaluation" / "step-000006.json", answer)
    for name in ("unlearned-0", "unlearned-1"):
        alter(folder / "runs" / name / "manifest.json", forgotten)
    path = folder / "report.html"
    path.write_text(
        as_html(read_report(sorted((folder / "runs").iterdir()), texts=Texts.FULL)), encoding="utf-8"
    )
    return path


@pytest.fixture(scope="module")
def page_of_sequences(tmp_path_factory):
    """Two sequences; the name of a request is a script."""
    folder = tmp_path_factory.mktemp("page")
    folders = [
        write_sequence(folder / mode, mode, ["sust_1", LONG, "sust_3"], retained=True)
        for mode in ("sustainability", "scalability")
    ]
    path = folder / "report.html"
    path.write_text(as_html(read_report(folders)), encoding="utf-8")
    return path


@pytest.fixture
def opened(browser, file):
    """Open a page; at the end there must have been no message on the console, no dialog and no request."""
    contexts, said, asked, given = [], [], set(), set()

    def open_page(file=file, **options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: asked.add(request.url))
        given.add(file.as_uri())
        page.goto(file.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []
    assert asked <= given


def open_all(page):
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")


def column(page, name):
    """The shown cells of the results below a heading, top to bottom."""
    return page.evaluate(
        """name => {
            const table = document.querySelector('table.results');
            const index = [...table.tHead.rows[0].cells].findIndex(each => each.textContent === name);
            return [...table.tBodies[0].rows].filter(each => !each.hidden).map(each => each.cells[index].dataset.value);
        }""",
        name,
    )


def test_headings_sort_both_ways_and_say_so(opened):
    page = opened()
    heading = page.locator("#results-table-caption + .scroll").get_by_role(
        "columnheader", name="Model Utility"
    )
    before = column(page, "Model Utility")
    assert "" in before
    examples = (["1e-21", "0.5", "-20.7", "", "3e-7", "0.04"], ["", "0.5", "", "-20.7", "3e-7", "-1.5"])
    for values in (before, *examples):
        page.evaluate(
            """values => values.forEach((value, index) => {
                const table = document.querySelector('table.results');
                const column = [...table.tHead.rows[0].cells].findIndex(each => each.textContent === 'Model Utility');
                table.tBodies[0].rows[index].cells[column].dataset.value = value;
            })""",
            values,
        )
        # Numbers by size; what was not measured stays last.
        numbers, empty = sorted((each for each in values if each), key=float), [""] * values.count("")
        orders = {"descending": numbers[::-1] + empty, "ascending": numbers + empty}
        for _ in range(3):
            heading.get_by_role("button").click()
            assert column(page, "Model Utility") == orders[heading.get_attribute("aria-sort")]
    table = page.locator("#results-table-caption + .scroll")
    table.get_by_role("columnheader", name="Model", exact=True).get_by_role("button").click()
    names = column(page, "Model")
    assert names == sorted(names, reverse=True)
    assert page.locator("th[aria-sort]").count() == 1


def test_the_results_are_filtered_and_extended(opened):
    page = opened()
    page.get_by_role("searchbox", name="Model").fill("unlearned 1")
    assert column(page, "Model") == ["unlearned-1"]
    assert page.locator("#model-count").inner_text() == "1 of 6 shown"
    page.get_by_role("searchbox", name="Model").fill("")
    page.get_by_role("combobox", name="Kind").select_option("relearned")
    assert column(page, "Model") == ["retain-only-relearn", "unlearned-0-relearn"]
    page.get_by_role("combobox", name="Kind").select_option("")
    assert len(column(page, "Model")) == 6
    assert page.locator("table.results.short th[scope=col]").count() == 2 + 6
    heading = page.get_by_role("columnheader", name="TR(retain)")
    for shown in (0, 1, 0):
        assert heading.count() == shown
        page.locator("#all-metrics summary").click()


def test_generated_answers_are_searched_and_a_script_in_one_is_a_text(opened):
    page = opened()
    page.locator("#generations summary").click()
    shown, total = page.locator("#generations article.row:visible"), 30
    count, search = page.locator("#row-count"), page.get_by_role("searchbox", name="Words")
    assert (shown.count(), count.inner_text()) == (20, f"20 of {total} matching rows shown")
    page.get_by_role("button", name="Show more rows").click()
    assert (shown.count(), count.inner_text()) == (total, f"{total} of {total} shown")
    assert not page.get_by_role("button", name="Show more rows").is_visible()
    search.fill("ZANZIBAR unbroken")
    assert shown.count() == 1
    assert shown.locator("small").inner_text() == "forget 3"
    search.fill("</script><script>alert(1)")
    assert shown.count() == 1
    assert "<img src=x onerror=alert(1)>" in shown.inner_text()
    search.fill("")
    page.get_by_role("combobox", name="Set").select_option("retain")
    assert shown.count() == 10
    search.fill("nothing has this in it")
    assert shown.count() == 0
    assert count.inner_text() == f"0 of {total} shown"


def test_a_phone_needs_no_sideways_scrolling_of_the_page(opened):
    page = opened(viewport={"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollHeight") < 12_000
    cards = page.locator("table.results.short tbody tr").all()
    assert all(each.bounding_box()["width"] <= 360 for each in cards)
    assert cards[3].get_by_role("cell").first.inner_text().strip() == "forgotten"
    open_all(page)
    widths = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert widths[0] <= widths[1]
    outside = page.evaluate(
        """() => [...document.querySelectorAll('main *')].filter(each =>
            !each.closest('.scroll, svg, .hidden') && each.getClientRects().length &&
            each.getBoundingClientRect().right > innerWidth + 1).map(each => each.outerHTML.slice(0, 80))"""
    )
    assert outside == []
    # The name of the model stays in sight when its metrics are scrolled to.
    page.evaluate("document.querySelector('table.results.all').parentElement.scrollLeft = 400")
    assert page.locator("table.results.all th[scope=row]").first.bounding_box()["x"] >= 0
    for each in page.get_by_role("searchbox").all() + page.get_by_role("combobox").all():
        assert each.bounding_box()["height"] >= 24
    smallest = page.evaluate(
        "Math.min(...[...document.querySelectorAll('main p, main td, main dd, main dt')]"
        ".map(each => parseFloat(getComputedStyle(each).fontSize)))"
    )
    assert smallest >= 12


def fits_on_paper(page, tables):
    # Landscape A4 less margins, at 96 dots an inch: nothing in the tables is cut off.
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 1032, "height": 700})
    boxes = [each.bounding_box() for each in tables.all()]
    assert boxes
    assert all(each["x"] + each["width"] <= 1032 for each in boxes)


def test_print_has_no_controls_and_dark_ink_on_white(opened, tmp_path):
    page = opened(color_scheme="dark")
    fits_on_paper(page, page.locator("table:visible"))
    for name in ("nav", ".controls"):
        assert not page.locator(name).first.is_visible()
    colors = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    assert colors == ["rgb(0, 0, 0)", "rgb(255, 255, 255)"]
    assert page.locator("table.results.short").is_visible()
    assert page.pdf(path=tmp_path / "report.pdf", prefer_css_page_size=True).startswith(b"%PDF")


def test_everything_can_be_done_by_keyboard(opened):
    page = opened()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        name, outline = page.evaluate(
            "[document.activeElement.textContent.trim() || document.activeElement.id, "
            "getComputedStyle(document.activeElement).outlineStyle]"
        )
        reached.append(name)
        assert outline != "none", name
        if name == "ES(forget)":
            break
    assert "model-filter" in reached
    heading = page.locator("table.results.short").get_by_role("columnheader", name="ES(forget)")
    page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    page.keyboard.press("Space")
    assert heading.get_attribute("aria-sort") == "ascending"
    page.locator("#generations summary").focus()
    page.keyboard.press("Enter")
    page.get_by_role("searchbox", name="Words").focus()
    page.keyboard.type("zanzibar")
    assert page.locator("#generations article.row:visible").count() == 1


def test_a_screen_reader_finds_landmarks_names_and_captions(opened):
    page = opened()
    open_all(page)
    assert page.evaluate("document.documentElement.lang") == "en"
    for landmark in ("banner", "navigation", "main", "contentinfo", "search"):
        assert page.get_by_role(landmark).count() == 1, landmark
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3')].map(each => Number(each.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert page.get_by_role("img").count() == page.locator("svg").count() > 4
    assert page.evaluate("""() => [...document.querySelectorAll('svg')].every(each =>
        each.querySelector(':scope > title').textContent.length > 5 &&
        each.querySelector(':scope > desc').textContent.length > 20)""")
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, a[href], summary, input, select')].filter(each =>
            !each.textContent.trim() && !each.labels?.length && !each.ariaLabel).length"""
    )
    assert nameless == 0
    assert page.evaluate(
        "[...document.querySelectorAll('input, select')].every(each => each.labels.length === 1)"
    )
    assert page.evaluate("""() => [...document.querySelectorAll('table')].every(each =>
        each.caption && each.caption.textContent.trim().length > 3 &&
        [...each.querySelectorAll('th')].every(head => head.scope) &&
        [...each.rows].every(row => row.cells.length === each.rows[0].cells.length))""")
    assert page.evaluate(
        "[...document.querySelectorAll('.scroll')].every(each => each.tabIndex === 0 && each.ariaLabel && each.role)"
    )
    best = page.locator("td.best").first
    assert best.inner_text().strip().endswith("(best)")
    assert best.locator("strong").count() == 1
    assert page.get_by_role("status").count() == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_of_texts_is_at_least_four_and_a_half_to_one(opened, scheme):
    page = opened(color_scheme=scheme)
    open_all(page)
    found = page.evaluate(
        """() => {
            const light = color => color.match(/[\\d.]+/g).slice(0, 3).map(each => each / 255)
                .map(each => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4)
                .reduce((sum, each, index) => sum + each * [0.2126, 0.7152, 0.0722][index], 0);
            const behind = element => {
                for (let each = element; each; each = each.parentElement) {
                    const color = getComputedStyle(each).backgroundColor;
                    if (color !== 'rgba(0, 0, 0, 0)') return color;
                }
                return 'rgb(255, 255, 255)';
            };
            return [...document.querySelectorAll('body *')]
                .filter(each => !each.closest('svg, script, .skip') && [...each.childNodes].some(
                    node => node.nodeType === 3 && node.textContent.trim()))
                .map(each => {
                    const [a, b] = [light(getComputedStyle(each).color), light(behind(each))];
                    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), each.outerHTML.slice(0, 90)];
                }).sort((a, b) => a[0] - b[0])[0];
        }"""
    )
    assert found[0] >= 4.5, found


def test_without_script_everything_is_there(browser, file):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(file.as_uri())
    assert page.locator("article.card").first.is_visible()
    assert page.locator("article.row").first.is_visible()
    assert page.get_by_role("columnheader", name="Model Utility").first.is_visible()
    page.locator("#generations summary").click()
    assert page.locator("#generations article.row:visible").count() == 30
    context.close()


@pytest.mark.parametrize("width", [360, 1200])
def test_stages_are_read_row_by_row_at_any_width(opened, page_of_sequences, width):
    page = opened(page_of_sequences, viewport={"width": width, "height": 740})
    section = page.get_by_role("region", name="Continual unlearning", exact=True)
    assert section.get_by_role("table").count() == 2
    for name in ("sustainability (sustainability)", "scalability (scalability)"):
        assert section.get_by_role("heading", name=name, exact=True).count() == 1
        scrolled = section.get_by_role("region", name=f"Continual unlearning: {name}, table")
        table = section.get_by_role("table", name=f"Continual unlearning: {name}", exact=True)
        caption = "each => document.getElementById(each.getAttribute('aria-describedby')).textContent"
        assert table.evaluate(caption).startswith("Request 1, 2, ...: ROUGE-L F1 of the answers")
        scrolled.focus()
        assert scrolled.evaluate("each => document.activeElement === each")
        assert table.get_by_role("columnheader").all_inner_texts() == [
            "stage", "request", "KnowMem(retain)", "KnowMem(forget)", "VerbMem", "request 1", "request 2", "request 3",
        ]  # fmt: skip
        assert table.get_by_role("rowheader").all_inner_texts() == ["0", "1", "2", "3"]
        requests = [
            table.get_by_role("row").nth(stage).get_by_role("cell").first.inner_text() for stage in (2, 3, 4)
        ]
        assert requests == ["sust_1", LONG, "sust_3"]
        # What a screen reader says of a request that was not yet made.
        last = table.get_by_role("row").nth(2).get_by_role("cell").last
        assert last.locator(".hidden").inner_text() == "not measured"
    widths = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert widths[0] <= widths[1]


def test_plots_of_sequences_are_told_in_words_and_printed(opened, page_of_sequences):
    page = opened(page_of_sequences)
    section = page.locator("#continual")
    told = section.locator("svg").evaluate_all(
        "all => all.map(each => ['title', 'desc'].map(part => each.querySelector(`:scope > ${part}`).textContent))"
    )
    assert [title for title, _ in told] == [
        "KnowMem(retain) by stage",
        "Requests by stage: sustainability (sustainability)",
        "Requests by stage: scalability (scalability)",
    ]
    assert "sustainability (sustainability): 0.700 at stage 0, 0.620 at stage 1" in told[0][1]
    assert "retain-only: 0.661 at stage 1" in told[0][1]
    fits_on_paper(page, section.locator("table"))
