"""Results files are read as far as they can be, and what is missing is said."""

import json
import shutil

import pytest

from flatminima.errors import InputError
from flatminima.report import html, read
from report.conftest import landscape, write, write_run, write_study


def test_a_study_is_read_with_its_methods_in_order(study):
    found = read([study])
    assert found.methods == ["plain", "nso", "sam"]
    assert found.reference == "plain"
    assert found.seeds == [0, 1, 2, 3, 4]
    assert len(found.all_runs()) == 15
    assert found.values["test_accuracy"]["nso"][1] == pytest.approx(0.8145, abs=0.005)
    assert found.notes == []


def test_methods_with_options_are_found_in_their_folders(tmp_path):
    found = read([write_study(tmp_path, {"plain": 0.5, "nso:sigma=0.2": 0.6}, seeds=2)])
    assert len(found.runs["nso:sigma=0.2"]) == 2


def test_runs_are_compared_by_their_method(tmp_path):
    for method in ("plain", "nso"):
        write_run(tmp_path / method, method, 0, 0.5)
    found = read([tmp_path / "plain", tmp_path / "nso"])
    assert found.methods == ["plain", "nso"]


def test_runs_of_one_method_and_seed_are_told_apart_by_their_folders(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / name, "nso", 0, 0.5)
    found = read([tmp_path / "a", tmp_path / "b"])
    assert found.methods == [f"nso ({tmp_path / 'a'})", f"nso ({tmp_path / 'b'})"]


def test_a_summary_alone_makes_a_report_with_a_note(tmp_path):
    entry = {"mean": 0.6, "ci95": None, "values": [0.5, 0.7], "samples": 2}
    summary = {
        "task": "animals",
        "seeds": [0, 1],
        "reference": "plain",
        "methods": {"plain": {"test_accuracy": entry}, "nso": {"test_accuracy": entry}},
        "paired": {},
        "failed": [],
    }
    file = tmp_path / "results.json"
    file.write_text(json.dumps(summary))
    found = read([file])
    assert found.values["test_accuracy"]["plain"] == {0: 0.5, 1: 0.7}
    assert "alone" in found.notes[0]
    assert "No gain over plain" in html(found) or "No method is better" in html(found)


@pytest.mark.parametrize(
    "name",
    [
        "environment.json",
        "data.json",
        "metrics.jsonl",
        "predictions.json",
        "measure.json",
        "bound.json",
        "landscape.json",
    ],
)
@pytest.mark.parametrize("content", ["", "{", "[1, 2]", '{"a": null}', "\x00\xff"])
def test_a_damaged_file_is_left_out_and_the_page_is_made(study, name, content):
    damaged = study / "nso" / "seed-0" / name
    damaged.write_text(content)
    found = read([study])
    assert len(found.all_runs()) == 15
    whole = content == "" and name == "metrics.jsonl"
    if not whole and content != '{"a": null}':
        assert any(str(damaged) in note for note in found.notes)
        assert name in html(found)
    else:
        html(found)


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", '{"metrics": 3}'])
def test_a_run_with_damaged_results_is_left_out_and_named(study, content):
    (study / "nso" / "seed-3" / "results.json").write_text(content)
    found = read([study])
    assert 3 not in found.runs["nso"]
    assert any("nso, seed 3" in note for note in found.notes)
    html(found)


def test_values_that_are_no_finite_numbers_are_left_out(study):
    file = study / "sam" / "seed-0" / "results.json"
    results = json.loads(file.read_text())
    results["metrics"] = {"test_accuracy": None, "test_loss": "NaN", "hessian_trace": True}
    file.write_text(json.dumps(results))
    found = read([study])
    assert 0 not in found.values["test_accuracy"]["sam"]
    assert 0 not in found.values["hessian_trace"]["sam"]
    html(found)


def test_a_study_without_its_study_file_content_is_read_from_its_folders(study):
    (study / "study.json").write_text("{")
    found = read([study])
    assert set(found.methods) == {"plain", "nso", "sam"}
    assert any("study.json" in note for note in found.notes)


def test_an_unfinished_study_names_the_runs_that_are_missing(study):
    shutil.rmtree(study / "sam" / "seed-4")
    assert any("sam, seed 4" in note for note in read([study]).notes)


def test_what_is_no_study_and_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="no study and no run"):
        read([tmp_path])
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(InputError, match="no results of a study"):
        read([tmp_path / "results.json"])
    with pytest.raises(InputError, match="nothing to report"):
        read([tmp_path])


def test_a_study_among_runs_is_refused(study, tmp_path):
    write_run(tmp_path / "run", "nso", 0, 0.5)
    (study / "results.json").write_text("{}")
    with pytest.raises(InputError, match="is a study"):
        read([study, tmp_path / "run"])


def damage(study, name, change):
    """Change a file of one run."""
    file = study / "nso" / "seed-0" / name
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return html(read([study]))


def first_point(content):
    return content["noise_stability"]["points"][0]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("landscape.json", lambda c: c["axes"][0].update(values=["a"] * 9)),
        ("landscape.json", lambda c: c["axes"][0].update(values=[10**400] * 9)),
        ("landscape.json", lambda c: c.update(path=[1, 2])),
        ("landscape.json", lambda c: c.update(path=[[1]])),
        ("landscape.json", lambda c: c.update(corners=3)),
        ("landscape.json", lambda c: c["axes"][0].update(normalization=["x"])),
        ("landscape.json", lambda c: c["loss"][0].__setitem__(0, 1e300)),
        ("landscape.json", lambda c: c.update(accuracy="none")),
        ("measure.json", lambda c: c["density"].update(nodes=[[1e308] * 4] * 2)),
        ("measure.json", lambda c: c["density"].update(weights=3)),
        ("measure.json", lambda c: c["trace"].update(blocks=[1])),
        ("measure.json", lambda c: c["noise_stability"].update(points=[1, None])),
        ("measure.json", lambda c: first_point(c)["predicted"].update(value="x")),
        ("predictions.json", lambda c: c.update(classes=3)),
        ("predictions.json", lambda c: c.update(id=[1])),
        ("bound.json", lambda c: c.update(terms=[1])),
        ("bound.json", lambda c: c.update(delta="x")),
        ("results.json", lambda c: c["metrics"].update(test_accuracy=1e308)),
        ("results.json", lambda c: c["metrics"].update(test_accuracy=10**400)),
        ("results.json", lambda c: c.update(curvature=[1])),
        ("environment.json", lambda c: c.update(packages=3)),
        ("data.json", lambda c: c.update(train=3, label_noise=4)),
    ],
)
def test_a_file_with_other_content_than_it_should_have_breaks_nothing_else(study, name, change):
    page = damage(study, name, change)
    assert "Where this comes from" in page
    assert "Loss landscapes" in page


def test_deep_nesting_and_large_numbers_are_left_out_with_a_note(study):
    (study / "nso" / "seed-0" / "bound.json").write_text("[" * 100_000)
    page = damage(study, "results.json", lambda c: c["metrics"].update(test_loss=1e40))
    assert "too large, and left out" in page
    assert "bound.json is damaged" in page
    assert "on what is missing or damaged" in page


def test_copies_of_run_folders_do_not_replace_runs(study):
    shutil.copytree(study / "nso" / "seed-0", study / "nso" / "seed-0 copy")
    shutil.copytree(study / "nso" / "seed-0", study / "nso" / "seed-7")
    file = study / "nso" / "seed-0 copy" / "results.json"
    content = json.loads(file.read_text())
    content["metrics"]["test_accuracy"] = 0.1
    file.write_text(json.dumps(content))
    found = read([study])
    assert found.values["test_accuracy"]["nso"][0] > 0.7
    assert set(found.runs["nso"]) == {0, 1, 2, 3, 4}
    assert any("seed-7" in note for note in found.notes)


def test_one_damaged_line_does_not_cut_a_curve_short(study):
    file = study / "nso" / "seed-2" / "metrics.jsonl"
    lines = file.read_text().splitlines()
    lines[3] = "{"
    file.write_text("\n".join(lines))
    page = html(read([study]))
    text = page.split('id="figures">')[1].split("</script>")[0]
    curves = [
        trace
        for figure in json.loads(text)
        for trace in figure["data"]
        if trace.get("name") == "nso" and figure["layout"].get("yaxis", {}).get("type") == "log"
    ]
    assert len(curves[0]["x"]) == 39


def test_the_recipe_asks_for_the_seeds_that_were_planned(study):
    for method in ("plain", "nso", "sam"):
        shutil.rmtree(study / method / "seed-0")
    page = html(read([study]))
    assert "seeds: 5\nseed: 0\n" in page


def test_every_landscape_of_a_run_is_shown(study):
    between = {**landscape(), "corners": ["a", "b", "c"]}
    write(study / "nso" / "seed-0" / "landscape-between.json", between)
    page = html(read([study]))
    assert "Through a, b, c" in page
    assert 'aria-label="landscapes between"' in page


def test_no_method_is_crowded_out_of_the_landscapes(study):
    for place in study.glob("*/seed-*"):
        write(place / "landscape.json", landscape(5))
    page = html(read([study]))
    for method in ("plain", "nso", "sam"):
        assert f"<h3>{method}, seed 0</h3>" in page
    assert "8 of 15 landscapes are shown" in page


def test_runs_of_several_recipes_of_one_method_are_not_pooled(tmp_path):
    for name, seed, rate in (("a", 0, 0.1), ("b", 1, 0.2)):
        write_run(tmp_path / name, "nso", seed, 0.5)
        (tmp_path / name / "recipe.yaml").write_text(f"lr: {rate}\nseed: {seed}\n")
    assert len(read([tmp_path / "a", tmp_path / "b"]).methods) == 2
    (tmp_path / "b" / "recipe.yaml").write_text("lr: 0.1\nseed: 1\n")
    assert read([tmp_path / "a", tmp_path / "b"]).methods == ["nso"]


def test_runs_that_cannot_be_compared_are_refused(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / name, "nso", 0, 0.5)
    with pytest.raises(InputError, match="given twice"):
        read([tmp_path / "a", tmp_path / "a"])
    file = tmp_path / "b" / "results.json"
    file.write_text(file.read_text().replace("animals", "plants"))
    with pytest.raises(InputError, match="different data"):
        read([tmp_path / "a", tmp_path / "b"])


def test_a_study_whose_reference_has_no_results_is_compared_with_the_next(study):
    shutil.rmtree(study / "plain")
    found = read([study])
    assert found.reference == "nso"
    assert "difference to nso" in html(found)
