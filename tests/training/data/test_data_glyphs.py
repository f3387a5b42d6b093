from __future__ import annotations

import json
import string
import sys
from pathlib import Path

import numpy as np
import pytest

from flatminima.errors import InputError
from flatminima.training.data import DataSet, DataSpec, fonts, glyphs, load

pytest.importorskip("matplotlib")

BROUGHT = tuple(file for file in fonts.find() if "mpl-data" in file.parts)
PARTS = ("source", "train", "validation", "test")


@pytest.fixture(scope="module")
def task() -> DataSet:
    """With the fonts of matplotlib only, so that it is the same on every machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fonts, "find", lambda: BROUGHT)
        return load(DataSpec("glyphs"), 0)


def pixels(part: object) -> np.ndarray:
    return np.asarray(part.inputs)  # type: ignore[attr-defined]


def test_glyphs_is_a_transfer_task_of_26_letters(task: DataSet) -> None:
    assert task.kind == "image"
    assert task.classes == tuple(string.ascii_uppercase)
    assert task.source is not None
    for part, each in ((task.source, 40), (task.train, 20), (task.validation, 10), (task.test, 40)):
        images = pixels(part)
        assert images.shape == (26 * each, 1, 16, 16)
        assert images.dtype == np.float32
        assert 0 <= images.min() < images.max() <= 1
        assert np.array_equal(np.bincount(part.targets), np.full(26, each))
    assert np.array_equal(task.train.targets, task.clean_targets)


def test_every_image_is_another_and_no_letter_is_cut_off(task: DataSet) -> None:
    assert task.source is not None
    images = np.concatenate([pixels(getattr(task, part)) for part in PARTS])[:, 0]
    assert len({image.tobytes() for image in images}) == len(images)
    assert images.max(axis=(1, 2)).min() > 0.2
    border = np.ones((16, 16), dtype=bool)
    border[1:-1, 1:-1] = False
    # 85 % of 16 pixels, turned and shifted, may touch the border; little of the ink does.
    assert images[:, border].sum() < 0.01 * images.sum()


def test_no_family_of_fonts_is_in_two_parts(task: DataSet) -> None:
    dealt = task.report["details"]["fonts"]
    families = [family for part in PARTS for family in dealt[part]]
    assert len(set(families)) == len(families) == 11
    assert [len(dealt[part]) for part in PARTS] == [4, 3, 1, 3]
    assert set(families) == set(fonts.read(BROUGHT).families)
    named = [name for part in PARTS for members in dealt[part].values() for name in members]
    assert len(set(named)) == len(named)
    json.dumps(task.report)


def test_a_seed_gives_the_same_letters_and_another_deals_out_other_fonts(
    task: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fonts, "find", lambda: BROUGHT)
    fonts.read.cache_clear()
    same, other = (load(DataSpec("glyphs"), seed) for seed in (0, 1))
    assert same.report == task.report
    assert np.array_equal(pixels(same.source), pixels(task.source))
    assert other.report["details"]["fonts"]["test"] != task.report["details"]["fonts"]["test"]


def test_the_letters_can_be_read_but_not_perfectly_from_fonts_never_seen(task: DataSet) -> None:
    from sklearn.linear_model import LogisticRegression

    flat = {part: pixels(getattr(task, part)).reshape(-1, 256) for part in ("train", "test")}
    model = LogisticRegression(max_iter=200).fit(flat["train"], task.train.targets)
    assert 0.4 < model.score(flat["test"], task.test.targets) < 0.95


def test_the_images_show_the_letter_they_are_labelled_with(task: DataSet) -> None:
    """The mean image of a class is nearest to that letter of a font drawn without any change."""
    from PIL import Image

    drawn = []
    for letter in string.ascii_uppercase:
        ink = fonts.ink(fonts.read(BROUGHT).families["DejaVu Sans"][2].face, letter)
        canvas = Image.new("L", (64, 64))
        scaled = ink.resize([round(side * 48 / max(ink.size)) for side in ink.size])
        canvas.paste(scaled, ((64 - scaled.width) // 2, (64 - scaled.height) // 2))
        drawn.append(np.asarray(canvas.reduce(4), dtype=float).ravel())
    plain = np.stack(drawn) - np.mean(drawn, axis=0)
    means = np.stack([pixels(task.test)[task.test.targets == c].mean(0).ravel() for c in range(26)])
    means -= means.mean(axis=0)
    plain, means = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (plain, means))
    assert np.mean((means @ plain.T).argmax(axis=1) == np.arange(26)) >= 0.8


def test_an_image_without_change_is_the_letter_in_the_middle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from PIL import Image

    class Middle(np.random.Generator):
        def uniform(self, low=0.0, high=1.0, size=None):  # type: ignore[no-untyped-def]
            return np.full(size, (low + high) / 2) if size else (low + high) / 2

    monkeypatch.setattr(glyphs, "SMALLEST", 0.75)
    monkeypatch.setattr(glyphs, "LARGEST", 0.75)
    bar = Image.new("L", (24, 48), 255)
    image = glyphs._placed(bar, Middle(np.random.PCG64(0)))
    expected = np.zeros((16, 16), dtype=np.float32)
    expected[2:14, 5:11] = 1.0
    assert np.array_equal(image, expected)


def test_fonts_of_symbols_are_left_out_and_told() -> None:
    found = fonts.read(BROUGHT)
    assert {"cmex10 Regular", "cmsy10 Regular"} <= set(found.left_out)
    assert any(name.startswith("Last Resort") for name in found.left_out)
    assert any(name.startswith("STIXSize") for name in found.left_out)
    kept = [name for members in fonts.described(found.families).values() for name in members]
    assert not set(kept) & set(found.left_out)
    assert "DejaVu Sans Book" in kept


def test_copies_of_a_font_under_another_name_are_of_one_family() -> None:
    found = fonts.read(BROUGHT)
    fitting = {name: members[0] for name, members in found.families.items()}
    shapes = {(name, "a"): fonts._shapes(font.face) for name, font in fitting.items()}
    opened = {name: fonts.Font(*name, None) for name in shapes}
    assert len(fonts._families(opened, shapes)) == len(found.families)
    for style in "bc":
        copy = ("DejaVu Sans Clone", style)
        shapes[copy] = shapes["DejaVu Sans", "a"]
        opened[copy] = fonts.Font(*copy, None)
    joined = fonts._families(opened, shapes)
    assert len(joined) == len(found.families)
    assert {font.family for font in joined["DejaVu Sans Clone"]} == {
        "DejaVu Sans",
        "DejaVu Sans Clone",
    }


def test_files_that_are_no_fonts_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    (tmp_path / "empty.otf").write_bytes(b"")
    files = (tmp_path / "broken.ttf", tmp_path / "empty.otf", tmp_path / "missing.ttf")
    assert set(fonts.read(files).families) == set(fonts.read(()).families)


def test_too_few_fonts_are_said_with_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "find", lambda: ())
    with pytest.raises(InputError, match=r"needs 8 families .*pip install 'flatminima\[plot\]'"):
        load(DataSpec("glyphs"), 0)


@pytest.mark.skipif(sys.platform != "linux", reason="folders of Linux")
def test_fonts_are_sought_in_the_usual_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = tmp_path / "fonts" / "deep"
    inside.mkdir(parents=True)
    for name in ("a.TTF", "b.otf", "c.ttc", "d.txt", "e.pfb"):
        (inside / name).touch()
    monkeypatch.setenv("XDG_DATA_DIRS", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "none"))
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "nobody")
    found = fonts.find()
    assert found[: len(BROUGHT)] == BROUGHT
    assert [file.name for file in found[len(BROUGHT) :]] == ["a.TTF", "b.otf", "c.ttc"]
    monkeypatch.setattr(fonts, "MOST_FILES", 20)
    few = fonts.find()
    assert 10 < len(few) <= 20
    assert few == found[:: -(-len(found) // 20)]
