from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flatminima.errors import InputError
from flatminima.training.data import DataSpec, load
from flatminima.training.data.images import decode, fault, pixels, resize, shrink


def test_a_folder_of_classes_is_split(photos: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    task = load(DataSpec(str(photos)), 0, progress=lambda *state: seen.append(state))
    assert task.name == "photos"
    assert task.kind == "image"
    assert task.classes == ("cat", "dog")
    assert [len(part) for part in (task.train, task.validation, task.test)] == [14, 2, 4]
    every = [*task.train.inputs, *task.validation.inputs, *task.test.inputs]
    assert len(set(every)) == 20
    for path, target in zip(task.train.inputs, task.train.targets, strict=True):
        assert isinstance(path, Path)
        assert path.parent.name == task.classes[target]
    assert seen[-1] == ("checking images", 20, 20)


def test_the_splits_may_hold_the_same_number_of_every_class(photos: Path) -> None:
    task = load(DataSpec(str(photos), per_class="5/2/3"), 0)
    assert [len(part) for part in (task.train, task.validation, task.test)] == [10, 4, 6]
    assert np.bincount(task.test.targets).tolist() == [3, 3]
    assert task.report["train"]["origin"] == "5 of every class"


def test_counts_per_class_do_not_replace_given_splits(
    tmp_path: Path, draw: Callable[..., Path]
) -> None:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            draw(tmp_path / split / name / "0.jpg")
    with pytest.raises(InputError, match="brings splits of its own"):
        load(DataSpec(str(tmp_path), per_class="1/0/1"), 0)


def test_given_splits_are_kept(tmp_path: Path, draw: Callable[..., Path]) -> None:
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        for name in ("cat", "dog"):
            for number in range(count):
                draw(tmp_path / split / name / f"{number}.jpg")
    task = load(DataSpec(str(tmp_path), validation_fraction=0.5), 0)
    assert [len(part) for part in (task.train, task.validation, task.test)] == [8, 4, 6]
    assert task.report["test"]["origin"] == "given by the source"


def test_classes_may_be_called_like_splits(tmp_path: Path, draw: Callable[..., Path]) -> None:
    for name in ("train", "plane"):
        for number in range(4):
            draw(tmp_path / name / f"{number}.png")
    assert load(DataSpec(str(tmp_path)), 0).classes == ("plane", "train")


def test_bad_images_stop_the_run_and_are_named(photos: Path) -> None:
    (photos / "cat" / "empty.png").touch()
    (photos / "dog" / "text.jpg").write_text("no image")
    whole = (photos / "dog" / "0.png").read_bytes()
    (photos / "dog" / "half.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError) as caught:
        load(DataSpec(str(photos)), 0)
    message = str(caught.value)
    assert message.startswith("3 of 23 images cannot be read: cat/empty.png (zero bytes), ")
    assert "dog/half.png (corrupt: " in message
    assert "dog/text.jpg (not an image)" in message
    assert message.endswith("leave them out by --on-bad-file skip")
    assert "\n" not in message


def test_bad_images_can_be_skipped_and_are_reported(photos: Path) -> None:
    (photos / "cat" / "empty.png").touch()
    (photos / "cat" / "notes.txt").touch()
    (photos / "cat" / ".hidden.png").touch()
    task = load(DataSpec(str(photos), on_bad_file="skip"), 0)
    assert task.report["details"] == {
        "skipped": [{"file": "cat/empty.png", "reason": "zero bytes"}],
        "files_that_are_no_images": 1,
    }
    assert len(task.train) + len(task.validation) + len(task.test) == 20


def test_a_class_of_bad_images_only(photos: Path) -> None:
    for path in (photos / "cat").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"no training image of class 'cat' can be read"):
        load(DataSpec(str(photos), on_bad_file="skip"), 0)
    for path in (photos / "dog").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"20 of 20 .* and 15 more; replace them$"):
        load(DataSpec(str(photos), on_bad_file="skip"), 0)


def test_folders_that_hold_no_task(tmp_path: Path, draw: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match=r"is empty of data: it needs one sub-folder of images"):
        load(DataSpec(str(tmp_path)), 0)
    draw(tmp_path / "0.png")
    with pytest.raises(InputError, match=r"has its images side by side: put those of each class"):
        load(DataSpec(str(tmp_path)), 0)
    draw(tmp_path / "cat" / "0.png")
    with pytest.raises(InputError, match=r"only one class, 'cat': .* needs at least two"):
        load(DataSpec(str(tmp_path)), 0)
    (tmp_path / "dog").mkdir()
    with pytest.raises(InputError, match=r"the class folder .*dog has no images \(.*\.png"):
        load(DataSpec(str(tmp_path)), 0)
    draw(tmp_path / "dog" / "0.png")
    with pytest.raises(InputError, match=r"class 'cat' has too few samples \(1\) to be split"):
        load(DataSpec(str(tmp_path)), 0)


def test_splits_that_do_not_fit(tmp_path: Path, draw: Callable[..., Path]) -> None:
    draw(tmp_path / "test" / "cat" / "0.png")
    draw(tmp_path / "val" / "cat" / "0.png")
    with pytest.raises(InputError, match="has test and val but no train: add the folder train"):
        load(DataSpec(str(tmp_path)), 0)
    draw(tmp_path / "train" / "0.png")
    with pytest.raises(InputError, match=r"train has its images side by side"):
        load(DataSpec(str(tmp_path)), 0)
    draw(tmp_path / "train" / "dog" / "0.png")
    draw(tmp_path / "train" / "fox" / "0.png")
    with pytest.raises(InputError, match="the folder validation/cat has a class that train/ has"):
        load(DataSpec(str(tmp_path)), 0)


def test_reasons_an_image_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fault(tmp_path / "none.png") == "missing"
    assert fault(b"") == "zero bytes"
    assert fault(b"abc") == "not an image"

    def refuse(self: Path) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "stat", refuse)
    assert fault(tmp_path / "closed.png") == "no permission to read it"


def test_decoding_is_rgb_upright_and_not_clipped(tmp_path: Path) -> None:
    from PIL import Image

    deep = Image.fromarray(np.array([[0, 32896, 65535]], dtype=np.uint16))
    deep.save(tmp_path / "deep.png")
    assert np.asarray(decode(tmp_path / "deep.png"))[0].tolist() == [[0] * 3, [128] * 3, [255] * 3]

    sideways = Image.new("RGB", (6, 4))
    exif = sideways.getexif()
    exif[0x0112] = 6
    sideways.save(tmp_path / "sideways.jpg", exif=exif)
    assert decode(tmp_path / "sideways.jpg").size == (4, 6)

    Image.new("P", (3, 3)).save(tmp_path / "palette.gif")
    assert decode((tmp_path / "palette.gif").read_bytes()).mode == "RGB"


@pytest.mark.parametrize("size", [(30, 20), (20, 30), (7, 7), (5, 100)])
def test_resize_gives_a_square_of_the_middle(size: tuple[int, int]) -> None:
    from PIL import Image

    image = Image.new("RGB", size)
    assert resize(image, 10).size == (10, 10)
    assert resize(image, None).size == size
    assert min(shrink(image, 8).size) == min(8, *size)
    assert pixels(image).shape == (3, size[1], size[0])
