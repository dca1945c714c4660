"""The page as a file: all texts escaped, nothing to load, every subject there or how to get it."""

import json
import re
import sys
from html.parser import HTMLParser

import pytest
from sample_runs import EVIL, alter

from dipo_pl.report.contents import read_report
from dipo_pl.report.generations import generated_rows
from dipo_pl.report.page import as_html
from dipo_pl.report.texts import Texts

# A name is drawn as the outlines of its letters.
SVG_ONLY = ("path", "use", "g", "defs")
SUBJECTS = [
    "verdicts", "leaks", "results", "trajectory", "truth-ratio", "membership", "attacks", "seeds", "generations",
    "definitions", "provenance",
]  # fmt: skip
ALWAYS = ["verdicts", "results", "definitions", "provenance"]


class Read(HTMLParser):
    """Elements with their attributes, and the text outside of script and style."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.text, self._inside = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside = tag

    def handle_endtag(self, tag):
        if self._inside == tag:
            self._inside = ""

    def handle_data(self, data):
        if not self._inside:
            self.text.append(data)


def section(page, name):
    return page.split(f'<section id="{name}"')[1].split("</section>")[0]


def test_all_subjects_are_there_with_their_plots(page):
    read = Read(page)
    assert [found["id"] for tag, found in read.elements if tag == "section"] == SUBJECTS
    assert [found["href"] for tag, found in read.elements if tag == "a"][1:] == [
        f"#{each}" for each in SUBJECTS
    ]
    titles = re.findall(r"<title id=[^>]*>([^<]*)</title>", page)
    for part in (
        "by epoch",
        "Truth ratios on the forget set",
        "Membership inference by Min-K%",
        "Relearning: P(forget)",
    ):
        assert any(part in each for each in titles)
    assert "Not tested in this report: Quantization</summary>" in section(page, "verdicts")
    assert "dipo-pl quantize" in page


def test_nothing_is_loaded_and_ids_are_of_one_element_each(page):
    read = Read(page)
    ids = [found["id"] for _, found in read.elements if "id" in found]
    assert len(ids) == len(set(ids))
    for tag, found in read.elements:
        for name in ("src", "href", "xlink:href", "action", "data", "srcset"):
            assert found.get(name, "#").startswith(("#", "data:")), (tag, found)
        references = [
            found[name][1:] for name in ("href", "xlink:href") if found.get(name, "").startswith("#")
        ]
        references += re.findall(r"url\(#([^)]*)\)", str(found))
        references += [found[name] for name in ("aria-labelledby", "aria-describedby") if name in found]
        assert set(references) <= {*ids}
    assert not re.search(r"@import|url\((?!#)", page)


def page_of_runs_that_say(text, copied):
    """Return a page of runs in which every name and text that another may have chosen is this one."""
    name = text.replace("/", "\N{FRACTION SLASH}")

    def into_evaluation(evaluation):
        evaluation["convention"] = text
        if "retain" in evaluation["sets"]:
            evaluation["sets"][text] = evaluation["sets"].pop("retain")
        for row in evaluation["sets"]["forget"]["rows"]:
            row["generation"] = row["question"] = row["answers"][0] = text

    def into_manifest(manifest):
        manifest["arguments"].append(text)
        manifest["policy"] |= dict.fromkeys(("source", "weights_at_start", "weights_at_end", "class"), text)
        manifest |= dict.fromkeys(("started", "ended", "dipo_pl", "epochs", "status"), text)
        manifest["data"]["forget"] = {"rows": text, "fingerprint": text}

    def quantized(manifest):
        into_manifest(manifest)
        manifest["probe"] = {"kind": "quantization", "of": str(first), "bits": 8, text: text}

    first = copied("unlearned-0", f"{name} seed 0", manifest=into_manifest)
    runs = [
        first, copied("unlearned-1", f"{name} seed 1", manifest=into_manifest),
        copied("retain-only", f"{name} retain-only", manifest=into_manifest),
        copied("unlearned-0", f"{name} int8", manifest=quantized), copied("unlearned-0-relearn", f"{name} relearn"),
    ]  # fmt: skip
    for run in runs:
        for path in (run / "evaluation").iterdir():
            alter(path, into_evaluation)
        metrics, config = run / "metrics.jsonl", run / "config.yaml"
        metrics.write_text(metrics.read_text().replace('"forget_distinct_2"', json.dumps(text)))
        config.write_text(config.read_text().replace("dipo_pl.DiPO\n", json.dumps(text) + "\n"))
    broken = copied("target", f"{name} broken")
    (broken / "manifest.json").unlink()
    report = read_report([*runs, broken], unfinished=True, texts=Texts.FULL)
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


def test_generated_answers_are_side_by_side_row_by_row(runs):
    paths = [runs / each for each in ("unlearned-0", "unlearned-1", "retain-only")]
    report = read_report(paths, texts=Texts.FULL)
    rows = generated_rows(report.runs)
    assert [(each.set_name, each.row) for each in rows[:10]] == [("forget", row) for row in range(10)]
    assert not any(each.set_name == "forget" for each in rows[10:])
    by_name = {each.name: each for each in report.runs}
    for each in rows[:10]:
        source = {name: run.result.sets["forget"].rows[each.row] for name, run in by_name.items()}
        assert each.question == source["unlearned-0"]["question"]
        assert each.truth == source["unlearned-0"]["answers"][0]
        before = by_name["unlearned-0"].first.sets["forget"].rows[each.row]["generation"]
        names = ("retain-only", "unlearned-0", "unlearned-1")
        assert each.answers == [
            ("before unlearning", before),
            *((name, source[name]["generation"]) for name in names),
        ]


def test_what_was_not_measured_is_named_with_how_to_get_it(copied):
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

    page = as_html(read_report([copied("target", "bare", nothing_much)]))
    assert [found["id"] for tag, found in Read(page).elements if tag == "section"] == ALWAYS
    told = section(page, "verdicts")
    for subject, how in (
        ("Forget Quality", "perturbed answers"),
        ("Membership inference", "--data.holdout"),
        ("Relearning", "dipo-pl relearn"),
        ("Quantization", "dipo-pl quantize"),
        ("Several seeds", "--seed_everything"),
        ("Generated answers", "generate_every"),
    ):
        assert re.search(f"<strong>{subject}.</strong> [^<]*{how}", told)
    assert "No run of this report was to forget anything" in told
    assert "<svg" not in page


def test_provenance_names_rows_weights_and_command(page, report):
    text = section(page, "provenance")
    (run,) = (each for each in report.runs if each.name == "unlearned-0")
    for said in (
        f'title="{run.manifest["data"]["forget"]["fingerprint"]}"',
        f'title="{run.manifest["policy"]["weights_at_end"]}"',
        f'title="{run.recipe}"',
        "DiPO + DiPORetain",
        f"{run.manifest['policy']['parameters']:,} parameters",
        f"<code>dipo-pl {' '.join(run.manifest['arguments'])}</code>",
    ):
        assert said in text
    assert f">{run.recipe[:12]}<" in text
