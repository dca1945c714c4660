"""The page in a real browser: no error, no request; sorted, filtered and searched by mouse and by keyboard."""

import json
import os
import shutil
from itertools import pairwise

import pytest

from dipo_pl.report.contents import read_report
from dipo_pl.report.page import as_html

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run",
]  # fmt: skip
HOW = "needs Debian's chromium (apt-get install chromium) and playwright (pip install playwright)"


@pytest.fixture(scope="module")
def browser():
    executable = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        executable = None
    if executable is None:
        assert "CI" not in os.environ, HOW
        pytest.skip(HOW)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def file(runs, tmp_path_factory):
    """The page of real runs, one of which has been answered with a script."""
    folder = tmp_path_factory.mktemp("page")
    shutil.copytree(runs, folder / "runs", ignore=shutil.ignore_patterns("hf", "checkpoints", "events*"))
    altered = folder / "runs" / "unlearned-1" / "evaluation" / "step-000006.json"
    content = json.loads(altered.read_text())
    rows = content["sets"]["forget"]["rows"]
    rows[2]["generation"] = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    rows[3]["generation"] = "Zanzibar " + "unbroken" * 60
    altered.write_text(json.dumps(content))
    path = folder / "report.html"
    path.write_text(as_html(read_report(sorted((folder / "runs").iterdir()))), encoding="utf-8")
    return path


@pytest.fixture
def opened(browser, file):
    """Opens the page; at the end there must have been no word on the console, no dialog and no request."""
    contexts, said, asked, given = [], [], [], []

    def open_page(file=file, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: asked.append(request.url))
        given.append(file.as_uri())
        page.goto(file.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []
    assert set(asked) <= {*given}


def column(page, name):
    """The table's shown cells below a heading, top to bottom."""
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
    before = column(page, "Model Utility")
    measured = [each for each in before if each != ""]
    assert "" in before
    heading = page.get_by_role("columnheader", name="Model Utility")
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    empty = [""] * (len(before) - len(measured))
    assert column(page, "Model Utility") == sorted(measured, key=float, reverse=True) + empty
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert column(page, "Model Utility") == sorted(measured, key=float) + empty
    page.get_by_role("columnheader", name="Model", exact=True).get_by_role("button").click()
    names = column(page, "Model")
    assert names == sorted(names, reverse=True)
    assert page.locator("th[aria-sort]").count() == 1


@pytest.mark.parametrize(
    "values", [["1e-21", "0.5", "-20.7", "", "3e-7", "0.04"], ["", "0.5", "", "-20.7", "3e-7", "-1.5"]]
)
def test_numbers_are_sorted_by_size_and_what_was_not_measured_stays_last(opened, values):
    page = opened()
    page.evaluate(
        """values => values.forEach((value, index) => {
            document.querySelector('table.results').tBodies[0].rows[index].cells[1].dataset.value = value;
        })""",
        values,
    )
    numbers = sorted((each for each in values if each), key=float)
    empty = [""] * values.count("")
    button = page.get_by_role("columnheader", name="Forget Quality").get_by_role("button")
    for expected in (numbers[::-1], numbers, numbers[::-1]):
        button.click()
        assert column(page, "Forget Quality") == expected + empty


def test_the_table_is_filtered_by_name_and_kind(opened):
    page = opened()
    page.get_by_role("searchbox", name="Model").fill("unlearned 1")
    assert column(page, "Model") == ["unlearned-1"]
    assert page.locator("#model-count").inner_text() == "1 of 6 shown"
    page.get_by_role("searchbox", name="Model").fill("")
    page.get_by_role("combobox", name="Kind").select_option("relearned")
    assert column(page, "Model") == ["retain-only-relearn", "unlearned-0-relearn"]
    page.get_by_role("combobox", name="Kind").select_option("")
    assert len(column(page, "Model")) == 6


def test_all_figures_are_shown_when_asked_for(opened):
    page = opened()
    heading = page.get_by_role("columnheader", name="TR(retain)")
    assert heading.count() == 0
    page.get_by_role("checkbox", name="all figures").check()
    assert heading.is_visible()
    page.get_by_role("checkbox", name="all figures").uncheck()
    assert heading.count() == 0


def test_generations_are_searched_and_a_script_in_one_is_a_text(opened):
    page = opened()
    rows = page.locator("article.row")
    total = rows.count()
    assert page.locator("#row-count").inner_text() == f"{total} of {total} shown"
    search = page.get_by_role("searchbox", name="Words")
    search.fill("ZANZIBAR unbroken")
    assert page.locator("article.row:visible").count() == 1
    assert page.locator("article.row:visible small").inner_text() == "forget 3"
    search.fill("</script><script>alert(1)")
    assert page.locator("article.row:visible").count() == 1
    assert "<img src=x onerror=alert(1)>" in page.locator("article.row:visible").inner_text()
    search.fill("")
    page.get_by_role("combobox", name="Set").select_option("retain")
    assert page.locator("article.row:visible").count() == 10
    search.fill("nothing has this in it")
    assert page.locator("article.row:visible").count() == 0
    assert page.locator("#row-count").inner_text() == f"0 of {total} shown"


def test_a_phone_needs_no_sideways_scrolling_of_the_page(opened):
    page = opened(viewport={"width": 360, "height": 740})
    page.get_by_role("checkbox", name="all figures").check()
    for each in page.locator("details").all():
        each.locator("summary").click()
    widths = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert widths[0] <= widths[1]
    outside = page.evaluate(
        """() => [...document.querySelectorAll('main *')].filter(each =>
            !each.closest('.scroll, svg, .hidden') && each.getClientRects().length &&
            each.getBoundingClientRect().right > innerWidth + 1).map(each => each.outerHTML.slice(0, 80))"""
    )
    assert outside == []
    # The model's name stays in sight when its figures are scrolled to.
    page.evaluate("document.querySelector('table.results').parentElement.scrollLeft = 400")
    assert page.locator("table.results th[scope=row]").first.bounding_box()["x"] >= 0
    for each in page.get_by_role("searchbox").all() + page.get_by_role("combobox").all():
        assert each.bounding_box()["height"] >= 24
    smallest = page.evaluate(
        "Math.min(...[...document.querySelectorAll('main p, main td, main dd, main dt')]"
        ".map(each => parseFloat(getComputedStyle(each).fontSize)))"
    )
    assert smallest >= 12


def test_print_has_no_controls_and_dark_ink_on_white(opened, tmp_path):
    page = opened(color_scheme="dark")
    page.emulate_media(media="print")
    for name in ("nav", ".controls"):
        assert not page.locator(name).first.is_visible()
    colours = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    assert colours == ["rgb(0, 0, 0)", "rgb(255, 255, 255)"]
    assert page.locator("table.results").is_visible()
    assert page.pdf(path=tmp_path / "report.pdf", prefer_css_page_size=True).startswith(b"%PDF")
    # Landscape A4 less margins, at 96 dots an inch: nothing in the tables is cut off.
    page.set_viewport_size({"width": 1032, "height": 700})
    for table in page.locator("table:visible").all():
        box = table.bounding_box()
        assert box["x"] + box["width"] <= 1032


def test_all_that_can_be_done_can_be_done_by_keyboard(opened):
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
        if name == "log10 p":
            break
    assert {"model-filter", "every-figure"} <= set(reached)
    heading = page.get_by_role("columnheader", name="log10 p")
    page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    page.keyboard.press("Space")
    assert heading.get_attribute("aria-sort") == "ascending"
    page.get_by_role("searchbox", name="Words").focus()
    page.keyboard.type("zanzibar")
    assert page.locator("article.row:visible").count() == 1


def test_a_screen_reader_finds_landmarks_names_and_captions(opened):
    page = opened()
    assert page.evaluate("document.documentElement.lang") == "en"
    for landmark in ("banner", "navigation", "main", "contentinfo", "search"):
        assert page.get_by_role(landmark).count() == 1, landmark
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3')].map(each => Number(each.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    pictures = page.get_by_role("img")
    assert pictures.count() == page.locator("svg").count() > 4
    for picture in pictures.all():
        assert picture.evaluate("each => each.querySelector(':scope > title').textContent.length") > 5
        assert picture.evaluate("each => each.querySelector(':scope > desc').textContent.length") > 20
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, a[href], summary, input, select')].filter(each =>
            !each.textContent.trim() && !each.labels?.length && !each.ariaLabel).length"""
    )
    assert nameless == 0
    assert page.evaluate(
        "[...document.querySelectorAll('input, select')].every(each => each.labels.length === 1)"
    )
    for table in page.locator("table").all():
        assert table.evaluate("each => each.caption && each.caption.textContent.trim().length > 3")
        assert table.evaluate("each => [...each.querySelectorAll('th')].every(head => head.scope)")
        assert table.evaluate(
            "each => [...each.tBodies[0].rows].every(row => row.cells.length === each.rows[0].cells.length)"
        )
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
    for each in page.locator("details").all():
        each.locator("summary").click()
    found = page.evaluate(
        """() => {
            const light = colour => colour.match(/[\\d.]+/g).slice(0, 3).map(each => each / 255)
                .map(each => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4)
                .reduce((sum, each, index) => sum + each * [0.2126, 0.7152, 0.0722][index], 0);
            const behind = element => {
                for (let each = element; each; each = each.parentElement) {
                    const colour = getComputedStyle(each).backgroundColor;
                    if (colour !== 'rgba(0, 0, 0, 0)') return colour;
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


def test_without_script_all_is_there(browser, file):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(file.as_uri())
    assert page.locator("article.row").first.is_visible()
    assert page.get_by_role("columnheader", name="Model Utility").first.is_visible()
    context.close()


EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>" + "unbroken" * 20


@pytest.fixture
def page_of_sequences(write_sequence, tmp_path):
    """Two sequences; the name of a request is a script."""
    folders = [
        write_sequence(tmp_path / mode, mode, ["sust_1", EVIL, "sust_3"], retained=True)
        for mode in ("sustainability", "scalability")
    ]
    path = tmp_path / "report.html"
    path.write_text(as_html(read_report(folders)), encoding="utf-8")
    return path


@pytest.mark.parametrize("width", [360, 1200])
def test_stages_are_read_row_by_row_at_any_width(opened, page_of_sequences, width):
    page = opened(page_of_sequences, viewport={"width": width, "height": 740})
    section = page.get_by_role("region", name="Requests one after another")
    assert section.get_by_role("table").count() == 2
    for number, name in ((1, "sustainability (sustainability)"), (2, "scalability (scalability)")):
        assert section.get_by_role("heading", name=name, exact=True).count() == 1
        scrolled = section.get_by_role("region", name=f"Stages of sequence {number}, {name}, table")
        table = section.get_by_role("table", name=f"Stages of sequence {number}, {name}", exact=True)
        assert table.evaluate(
            "each => document.getElementById(each.getAttribute('aria-describedby')).textContent"
        ).startswith("Request 1, 2, ...: knowledge of it")
        scrolled.focus()
        assert scrolled.evaluate("each => document.activeElement === each")
        heads = table.get_by_role("columnheader").all_inner_texts()
        assert heads == [
            "stage, request", "KnowMem(retain)", "KnowMem(forget)", "VerbMem", "request 1", "request 2", "request 3",
        ]  # fmt: skip
        rows = table.get_by_role("rowheader")
        assert [each.split()[:2] for each in rows.all_inner_texts()] == [
            ["0", "none"], ["1", "sust_1"], ["2", EVIL.split()[0]], ["3", "sust_3"],
        ]  # fmt: skip
        assert EVIL in rows.nth(2).inner_text()
        # What a screen reader says of a request that was not yet made.
        last = table.get_by_role("row").nth(2).get_by_role("cell").last
        assert last.locator(".hidden").inner_text() == "not measured"
        page.keyboard.press("ArrowRight")
    widths = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert widths[0] <= widths[1]


def test_pictures_of_sequences_are_told_in_words(opened, page_of_sequences):
    page = opened(page_of_sequences)
    section = page.locator("#sequences")
    pictures = section.get_by_role("img")
    assert pictures.count() == 3
    titles = [
        each.evaluate("each => each.querySelector(':scope > title').textContent") for each in pictures.all()
    ]
    assert titles == [
        "KnowMem(retain) by stage",
        "What each request forgot, by stage: sustainability (sustainability)",
        "What each request forgot, by stage: scalability (scalability)",
    ]
    said = pictures.first.evaluate("each => each.querySelector(':scope > desc').textContent")
    assert "sustainability (sustainability): 0.700 at stage 0, 0.620 at stage 1" in said
    assert "retain-only: 0.661 at stage 1" in said
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 1032, "height": 700})
    for table in section.locator("table").all():
        box = table.bounding_box()
        assert box["x"] + box["width"] <= 1032
