"""The page holds all it needs, and nothing in the data becomes markup."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from flatminima.report import html, read, write_report
from flatminima.report.flatness import flatness
from report.conftest import write, write_run, write_study

EVIL = '<script>alert("x")</script><img src=x onerror=alert(1)>'


class Elements(HTMLParser):
    """The tags of a page with their attributes, and the text of some."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def tags(self, name):
        return [attributes for tag, attributes in self.found if tag == name]


def figures(page: str) -> list:
    text = re.search(r'id="figures">(.*?)</script>', page, re.DOTALL)[1]
    return json.loads(text)


def test_the_page_fetches_nothing(study):
    page = Elements(html(read([study])))
    assert not page.tags("link")
    assert not page.tags("iframe")
    for tag, attributes in page.found:
        for name in ("src", "href", "action", "data"):
            address = attributes.get(name)
            local = address is None or address.startswith(("#", "data:image/png;base64,"))
            assert local, (tag, address)


def test_all_sections_are_there_for_a_full_study(study):
    page = Elements(html(read([study])))
    keys = [attributes["id"] for attributes in page.tags("section")]
    assert keys == ["outcomes", "curves", "flatness", "landscapes", "mistakes", "provenance"]
    titles = [f["aria-label"] for f in page.tags("div") if "data-figure" in f]
    assert len(figures(html(read([study])))) == len(titles) >= 14


def test_what_comes_from_data_and_names_stays_text(tmp_path):
    folder = write_study(tmp_path / "study", {"plain": 0.5, "nso": 0.6}, seeds=2)
    for file in folder.glob("*/seed-*/predictions.json"):
        kept = json.loads(file.read_text())
        kept["classes"] = [EVIL, "b", "c"]
        kept["examples"] = {key: {"text": EVIL} for key in kept["examples"]}
        write(file, kept)
    for file in folder.glob("*/seed-*/results.json"):
        results = json.loads(file.read_text())
        curvature = results["curvature"]
        curvature["trace"]["blocks"] = {EVIL: {"value": 1.0, "stderr": 0.1}}
        results["metrics"][EVIL] = 1.0
        write(file, {**results, "task": EVIL})
        (file.parent / "recipe.yaml").write_text(EVIL)
        write(file.parent / "environment.json", {EVIL: EVIL})
        write(file.parent / "data.json", {"name": EVIL, "train": {"count": EVIL, "origin": EVIL}})
    write(folder / "results.json", {"failed": [{"method": EVIL, "seed": EVIL, "error": EVIL}]})
    page = html(read([folder]))
    elements = Elements(page)
    assert len(elements.tags("script")) == 3
    assert all(not a.get("src") or a["src"].startswith("data:") for a in elements.tags("img"))
    assert not any("onerror" in attributes for _, attributes in elements.found)
    # Plotly reads tags in its words: there they must have been entities.
    assert "<img" not in json.dumps(figures(page))


def test_a_picture_that_is_no_base64_is_not_shown(study):
    file = study / "plain" / "seed-0" / "predictions.json"
    kept = json.loads(file.read_text())
    evil = {"png": 'x" onerror="alert(1)'}
    kept["examples"] = dict.fromkeys(kept["examples"], evil)
    write(file, kept)
    page = Elements(html(read([study])))
    assert not any("onerror" in attributes for _, attributes in page.found)


def test_labels_of_methods_are_the_same_colour_in_all_figures(study):
    bars = [t for f in figures(html(read([study]))) for t in f["data"] if t["type"] == "bar"]
    colours = {}
    for trace in bars:
        if isinstance(trace["marker"]["color"], list):
            for name, tone in zip(trace["x"], trace["marker"]["color"], strict=True):
                assert colours.setdefault(name, tone) == tone
    assert set(colours) == {"plain", "nso", "sam"}


def test_the_dots_are_the_runs(study):
    found = read([study])
    dots = figures(html(found))[0]["data"]
    shown = {t["text"][0].split(",")[0]: t["x"] for t in dots if "text" in t}
    for method, values in found.values["test_accuracy"].items():
        assert shown[method] == pytest.approx([100 * v for v in values.values()], rel=1e-4)


def test_curves_are_means_over_seeds(study):
    found = figures(html(read([study])))
    curve = next(f for f in found if f["layout"].get("yaxis", {}).get("type") == "log")
    plain = next(t for t in curve["data"] if t.get("name") == "plain")
    steps = [round(10 * at) for at in plain["x"]]
    expected = [2 * 2.718281828 ** (-step / 20) + 0.01 * 2 for step in steps]
    assert plain["y"] == pytest.approx(expected, rel=1e-3)


def test_the_ratios_of_a_spectrum_are_those_that_measuring_says(study):
    from flatminima.measure import spectral_criteria

    density = json.loads((study / "nso" / "seed-0" / "measure.json").read_text())["density"]
    expected = spectral_criteria(density["nodes"], density["weights"])
    shown = next(
        block
        for block in flatness(read([study])).blocks
        if block.kind == "table" and "spectrum" in block.caption
    )
    row = next(row for row in shown.rows if row[0].text.startswith("nso"))
    assert row[1].value == pytest.approx(expected.edge_ratio)
    assert row[2].value == pytest.approx(expected.mass_ratio)


def test_gaps_in_a_landscape_are_drawn_as_gaps_and_counted(study):
    file = study / "nso" / "seed-0" / "landscape.json"
    told = json.loads(file.read_text())
    told["loss"][2][3] = None
    write(file, told)
    page = html(read([study]))
    contours = [t for f in figures(page) for t in f["data"] if t["type"] == "contour"]
    assert sum(value is None for t in contours for row in t["z"] for value in row) == 1
    assert "gaps: 1 of 81 points" in page


def test_a_landscape_without_any_finite_loss_is_left_out(study):
    for file in study.glob("*/seed-0/landscape.json"):
        told = json.loads(file.read_text())
        told["loss"] = [[None] * 9] * 9
        write(file, told)
    keys = [a["id"] for a in Elements(html(read([study]))).tags("section")]
    assert "landscapes" not in keys


def test_ten_methods_and_twenty_seeds_stay_small(tmp_path):
    methods = {f"method-{i}": 0.5 + 0.02 * i for i in range(10)}
    folder = write_study(tmp_path / "large", methods, seeds=20, steps=500)
    write_report([folder], tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 15e6


def test_a_single_run_has_a_page_too(tmp_path):
    write_run(tmp_path / "run", "nso", 0, 0.8)
    page = html(read([tmp_path / "run"]))
    assert "One seed" in page


def test_a_report_needs_no_torch(study, tmp_path):
    code = (
        "import sys; from pathlib import Path; from flatminima.report import write_report; "
        f"write_report([Path({str(study)!r})], Path({str(tmp_path / 'r.html')!r})); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
