"""The section of explanations, from files of any content."""

import pytest

from flatminima.report import html, read
from flatminima.report.explanations import explanations
from report.conftest import png, write, write_study


def explained(degrees: float, *, images: int = 2, predicted: str = "dog") -> dict:
    """As `flatminima explain` writes it."""
    rows = [
        {
            "id": f"sample{i}",
            "label": "cat",
            "predicted": predicted,
            "confidence": 0.75,
            "image": png(),
            "map": png(),
        }
        for i in range(images)
    ]
    return {
        "test_accuracy": 0.5 + degrees / 1000,
        "head": {"mean_degrees": degrees, "median_strength": 1.5, "mean_distance": 0.8},
        "plane": {
            "classes": ["cat", "dog"],
            "points": [[-1.0, 0.5], [1.0, -0.5], [2.0, 0.0]],
            "labels": [0, 1, 1],
            "normal": [0.8, 0.6],
            "offset": 0.1,
            "degrees": degrees,
            "samples": 300,
        },
        "maps": {"method": "norm-grad", "layers": ["1"], "why": "they differ", "images": rows},
    }


@pytest.fixture
def folder(tmp_path):
    place = write_study(tmp_path / "study", {"plain": 0.6, "nso": 0.8}, seeds=2)
    for method, degrees, predicted in (("plain", 40.0, "dog"), ("nso", 30.0, "cow")):
        for seed in (0, 1):
            images = 2 if seed == 0 else 0
            slope = 1 if method == "plain" else 2
            told = explained(degrees + slope * seed, images=images, predicted=predicted)
            write(place / method / f"seed-{seed}" / "explain.json", told)
    return place


def test_heads_are_told_beside_accuracies_as_means_over_runs(folder):
    table, *_ = explanations(read([folder])).blocks
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["plain", "2", "54.05 ± 0.64", "40.5 ± 6.4", "1.500", "0.8000", "-"],
        ["nso", "2", "53.1 ± 1.3", "31 ± 13", "1.500", "0.8000", "-9.5 [-15.9, -3.1]"],
    ]


def test_an_infinite_strength_is_said_to_be_one(folder):
    for seed, method in ((0, "plain"), (0, "nso"), (1, "nso")):
        told = explained(95.0)
        told["head"]["median_strength"] = None
        write(folder / method / f"seed-{seed}" / "explain.json", told)
    table, *_ = explanations(read([folder])).blocks
    assert [row[4].text for row in table.rows] == ["infinite in 1 of 2 runs", "infinite"]
    assert "infinite where the angle is 90 degrees or more" in " ".join(table.notes)


def test_a_file_without_a_strength_says_nothing_of_one(folder):
    for seed in (0, 1):
        told = explained(40.0)
        del told["head"]["median_strength"]
        write(folder / "plain" / f"seed-{seed}" / "explain.json", told)
    table, *_ = explanations(read([folder])).blocks
    assert table.rows[0][4].text == "-"


def test_each_image_is_shown_with_the_map_of_each_run(folder):
    galleries = [b for b in explanations(read([folder])).blocks if b.kind == "gallery"]
    assert [g.title for g in galleries] == ["Where they look: cat"] * 2
    samples = galleries[0].samples
    assert [s.lines[0] for s in samples] == ["label: cat", "plain, seed 0: map", "nso, seed 0: map"]
    assert [s.lines[1] for s in samples[1:]] == ["predicted: dog (75 %)", "predicted: cow (75 %)"]
    assert all(s.image.startswith("data:image/png;base64,") for s in samples)


def test_the_plane_is_drawn_with_its_boundary(folder):
    (tabs,) = [b for b in explanations(read([folder])).blocks if b.kind == "tabs"]
    assert list(tabs.views) == ["plain", "nso"]
    (figure,) = tabs.views["plain"]
    assert "3 of 300" in figure.caption
    boundary = next(trace for trace in figure.data if trace["name"] == "boundary")
    for x, y in zip(boundary["x"], boundary["y"], strict=True):
        assert 0.8 * x + 0.6 * y + 0.1 == pytest.approx(0, abs=1e-3)


def test_without_its_files_there_is_no_section(study):
    assert explanations(read([study])) is None
    assert 'id="explanations"' not in html(read([study]))


EVIL = '<script>alert("x")</script>'


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"head": None, "plane": None, "maps": None},
        {"head": {"mean_degrees": "many"}, "plane": {"points": 3}, "maps": {"images": [4]}},
        {"plane": {**explained(1.0)["plane"], "labels": [0, 1, 5]}},
        {"plane": {**explained(1.0)["plane"], "points": []}},
        {"maps": {"images": [{"id": 1, "map": "http://away", "image": EVIL}], "why": EVIL}},
        {"maps": {"images": 7}},
        {"head": 3, "maps": "no"},
    ],
)
def test_damaged_files_cost_no_more_than_what_they_hold(folder, broken):
    write(folder / "plain/seed-0/explain.json", broken)
    page = html(read([folder]))
    assert "How heads are tilted" in page or "could not be drawn" in page
    assert EVIL not in page
    assert "http://away" not in page


def test_words_of_a_file_stay_text(folder):
    told = explained(20.0)
    told["plane"]["classes"] = [EVIL, "dog"]
    told["maps"]["why"] = told["maps"]["images"][0]["label"] = EVIL
    write(folder / "plain/seed-0/explain.json", told)
    assert EVIL not in html(read([folder]))
