"""The page as a file: all texts escaped, nothing to load, every subject there or said to be missing."""

import json
import re
import sys
from html.parser import HTMLParser

import pytest

from dipo_pl.report.contents import read_report
from dipo_pl.report.generations import side_by_side
from dipo_pl.report.page import as_html
from dipo_pl.report.pictures import all_pictures

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>&amp;\"'"
# A name is drawn as the outlines of its letters.
SVG_ONLY = ("path", "use", "g", "defs")
SUBJECTS = [
    "forgotten", "results", "seeds", "sequences", "trajectory", "truth-ratio", "membership", "generations",
    "relearning", "quantization", "meanings",
]  # fmt: skip


class Read(HTMLParser):
    """Elements with their attributes, and the text that is no script or style."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.text, self._inside = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside.append(tag)

    def handle_endtag(self, tag):
        if self._inside and self._inside[-1] == tag:
            self._inside.pop()

    def handle_data(self, data):
        if not self._inside:
            self.text.append(data)


@pytest.fixture(scope="module")
def page(all_runs):
    return as_html(read_report(all_runs))


def test_all_subjects_are_there_with_their_pictures(page):
    read = Read(page)
    sections = [found["id"] for tag, found in read.elements if tag == "section"]
    assert sections == SUBJECTS
    titles = re.findall(r"<title id=[^>]*>([^<]*)</title>", page)
    for part in (
        "by epoch",
        "Truth ratios on the forget set",
        "Membership inference by Min-K%",
        "Relearning: P(forget)",
    ):
        assert any(part in each for each in titles)
    assert 'class="missing"' in page.split('id="quantization"')[1].split("</section>")[0]
    assert "dipo-pl quantize" in page


def test_nothing_is_loaded_and_ids_are_of_one_element_each(page):
    read = Read(page)
    ids = [found["id"] for _, found in read.elements if "id" in found]
    assert len(ids) == len(set(ids))
    for tag, found in read.elements:
        for name in ("src", "href", "xlink:href", "action", "data", "srcset"):
            assert found.get(name, "#").startswith(("#", "data:")), (tag, found)
        if (found.get("href") or found.get("xlink:href") or "#").startswith("#"):
            target = (found.get("href") or found.get("xlink:href") or "#")[1:]
            assert not target or target in ids
        for target in re.findall(r"url\(#([^)]*)\)", str(found)):
            assert target in ids
    assert not re.search(r"@import|url\((?!#)", page)
    for _, found in read.elements:
        for name in ("aria-labelledby", "aria-describedby"):
            assert found.get(name) is None or found[name] in ids


def page_of_runs_that_say(text, copied):
    """A page of runs in which every name and text that another may have chosen is this one."""
    name = text.replace("/", "\N{FRACTION SLASH}")

    def into_evaluation(evaluation):
        evaluation["convention"] = text
        if "retain" in evaluation["sets"]:
            evaluation["sets"][text] = evaluation["sets"].pop("retain")
        for row in evaluation["sets"]["forget"]["rows"]:
            row["generation"] = row["question"] = text
            row["answers"][0] = text

    def into_manifest(manifest):
        manifest["arguments"].append(text)
        manifest["policy"] |= {
            "source": text,
            "weights_at_start": text,
            "weights_at_end": text,
            "class": text,
        }
        manifest |= {"started": text, "ended": text, "dipo_pl": text, "epochs": text, "status": text}
        manifest["data"]["forget"] = {"rows": text, "fingerprint": text}

    def quantised(manifest):
        into_manifest(manifest)
        manifest["probe"] = {"kind": "quantization", "of": str(first), "bits": 8}

    first = copied("unlearned-0", f"{name} seed 0", manifest=into_manifest)
    runs = [
        first,
        copied("unlearned-1", f"{name} seed 1", manifest=into_manifest),
        copied("retain-only", f"{name} retain-only", manifest=into_manifest),
        copied("unlearned-0", f"{name} int8", manifest=quantised),
        copied("unlearned-0-relearn", f"{name} relearn"),
    ]
    for run in runs:
        for path in (run / "evaluation").iterdir():
            evaluation = json.loads(path.read_text())
            into_evaluation(evaluation)
            path.write_text(json.dumps(evaluation))
        metrics = run / "metrics.jsonl"
        metrics.write_text(metrics.read_text().replace('"forget_distinct_2"', json.dumps(text)))
        config = run / "config.yaml"
        config.write_text(config.read_text().replace("dipo_pl.losses.DiPO\n", json.dumps(text) + "\n"))
    broken = copied("target", f"{name} broken")
    (broken / "manifest.json").unlink()
    report = read_report([*runs, broken], unfinished=True)
    assert (len(report.runs), len(report.seeds), len(report.left_out)) == (5, 1, 1)
    return as_html(report)


@pytest.mark.parametrize("drawn", [True, False])
def test_texts_of_runs_are_escaped_everywhere(copied, tmp_path, monkeypatch, drawn):
    if not drawn:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
    read = Read(page_of_runs_that_say(EVIL, copied))
    (tmp_path / "copies").rename(tmp_path / "evil")
    plain = Read(page_of_runs_that_say("plain", copied))
    assert sum(tag == "script" for tag, _ in read.elements) == 1
    assert [(tag, sorted(found)) for tag, found in read.elements if tag not in SVG_ONLY] == [
        (tag, sorted(found)) for tag, found in plain.elements if tag not in SVG_ONLY
    ]
    # Question, truth, and the answers before and after, row by row, come out as they went in.
    assert "".join(read.text).count(EVIL) >= 4 * 10
    assert any(found.get("data-set") == EVIL for _, found in read.elements)


def test_a_dollar_or_an_underscore_in_a_name_is_drawn_as_it_is(copied):
    report = read_report(
        [copied("unlearned-0", "_a$x_{1"), copied("unlearned-1", r"b$\frac$"), copied("retain-only")]
    )
    for picture in (each for group in all_pictures(report) for each in group.pictures):
        figure = picture.draw()
        (legend,) = figure.legends
        names = " ".join(each.get_text() for each in legend.get_texts())
        if picture.name == "trajectory":
            assert "_a$x_{1" in names
            assert r"b$\frac$" in names
    assert "<svg" in as_html(report)


def test_generations_are_side_by_side_row_by_row(runs):
    report = read_report([runs / each for each in ("unlearned-0", "unlearned-1", "retain-only")])
    rows = side_by_side(report.runs)
    forget = [each for each in rows if each.set_name == "forget"]
    assert [each.row for each in forget] == list(range(10))
    assert [each.set_name for each in rows[:10]] == ["forget"] * 10
    by_name = {each.name: each for each in report.runs}
    for each in forget:
        source = {name: run.result.sets["forget"].rows[each.row] for name, run in by_name.items()}
        assert each.question == source["unlearned-0"]["question"]
        assert each.truth == source["unlearned-0"]["answers"][0]
        before = by_name["unlearned-0"].first.sets["forget"].rows[each.row]["generation"]
        assert each.answers == (
            ("before unlearning", before),
            ("retain-only", source["retain-only"]["generation"]),
            ("unlearned-0", source["unlearned-0"]["generation"]),
            ("unlearned-1", source["unlearned-1"]["generation"]),
        )


def test_what_was_not_measured_is_said_with_how_to_get_it(copied):
    def nothing_much(evaluation):
        for each in evaluation["sets"].values():
            for row in each["rows"]:
                for key in (
                    "generation",
                    "log_truth_ratio",
                    "min_k",
                    "zlib",
                    "loss",
                    "nll",
                    "min_k_plus_plus",
                ):
                    row.pop(key, None)
        del evaluation["sets"]["holdout"]

    run = copied("target", "bare", nothing_much)
    page = as_html(read_report([run]))
    for name in (
        "seeds",
        "sequences",
        "trajectory",
        "truth-ratio",
        "membership",
        "generations",
        "relearning",
        "quantization",
    ):
        section = page.split(f'<section id="{name}"')[1].split("</section>")[0]
        assert section.count('class="missing"') == 1, name
        assert "<svg" not in section


def test_the_auc_of_the_pictures_is_that_of_the_table(runs):
    report = read_report([runs / "unlearned-0", runs / "retain-only"])
    (pictures,) = (each for each in all_pictures(report) if each.name == "membership")
    assert {each.name for each in pictures.pictures} >= {
        f"membership_{each}" for each in ("loss", "zlib", "min_k")
    }
    for picture in pictures.pictures:
        for run in report.runs:
            value = run.metrics.get(f"{picture.name}_auc")
            if value is not None:
                assert f"{run.name}: AUC = {value:.3f}" in picture.description


def test_the_gap_of_the_picture_is_the_statistic_of_the_table(runs):
    report = read_report([runs / "unlearned-0", runs / "retain-only"])
    (pictures,) = (each for each in all_pictures(report) if each.name == "truth-ratio")
    (run,) = (each for each in report.runs if each.name == "unlearned-0")
    assert f"D = {run.metrics['forget_quality_ks_statistic']:.3f}," in pictures.pictures[0].description


def test_the_way_through_training_has_only_points_of_like_utility(copied):
    run = copied("unlearned-0")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    del lines[1]["retain_rouge_l_recall"]
    (run / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    (pictures,) = (each for each in all_pictures(read_report([run])) if each.name == "trajectory")
    axes = pictures.pictures[0].draw().axes[0]
    (way,) = (line for line in axes.get_lines() if line.get_label() == "unlearned-0")
    assert way.get_xdata().tolist() == [each["model_utility"] for each in (lines[0], lines[2])]
    assert way.get_ydata().tolist() == [each["forget_quality_log10_p"] for each in (lines[0], lines[2])]


def test_relearning_is_drawn_beside_that_of_the_retain_only_model(all_runs):
    report = read_report(all_runs)
    (pictures,) = (each for each in all_pictures(report) if each.name == "relearning")
    (picture,) = (each for each in pictures.pictures if each.name == "relearning_forget_probability")
    lines = {line.get_label(): line for line in picture.draw().axes[0].get_lines()}
    assert lines.keys() == {"retain-only", "unlearned-0"}
    for run in report.runs:
        if run.name == "unlearned-0-relearn":
            assert lines["unlearned-0"].get_xdata().tolist() == [each.step for each in run.points]
            assert lines["unlearned-0"].get_ydata().tolist() == [
                each.metrics["forget_probability"] for each in run.points
            ]
