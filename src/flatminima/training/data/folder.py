"""A folder of images: one sub-folder per class, perhaps below train/, validation/ and test/.

Or one sub-folder per domain, and in each one per class.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from flatminima.errors import InputError
from flatminima.progress import Progress
from flatminima.training.data.examples import Examples, Raw
from flatminima.training.data.images import SUFFIXES, sound
from flatminima.training.data.labels import check_left, check_several
from flatminima.training.data.spec import DataSpec
from flatminima.training.data.splits import SPLIT_NAMES


def load(spec: DataSpec, seed: int, progress: Progress) -> Raw:
    """Take the names of the sub-folders for the classes, and every image below for an example.

    Every image is decoded once to find the bad ones. Other files and hidden ones are left out.
    For masked images there are no classes: every image counts, wherever below it lies.

    Raises:
        InputError: there are no class folders, only one, or one without images; images cannot be
            read; or a later split has a class that train/ has not.
    """
    root = Path(spec.data).expanduser()
    if spec.domain_folders:
        return _load_domains(root, spec, progress)
    if spec.task == "masked-images":
        return _unlabelled(root, spec, progress)
    found = {split: _class_folders(folder, root) for split, folder in _split_folders(root).items()}
    classes = tuple(found["train"])
    check_several(classes, f"the folder {_called(found, root)}")
    splits, skipped, ignored = {}, [], 0
    for split, by_class in found.items():
        for name in by_class:
            if name not in classes:
                raise InputError(
                    f"the folder {split}/{name} has a class that train/ has not: "
                    "rename it, or add training images of that class"
                )
        paths = [path for files in by_class.values() for path in files if _is_image(path)]
        ignored += sum(len(files) for files in by_class.values()) - len(paths)
        labels = [
            classes.index(name)
            for name, files in by_class.items()
            for path in files
            if _is_image(path)
        ]
        names = [path.relative_to(root).as_posix() for path in paths]
        good, bad = sound(paths, names, spec.on_bad_file, progress)
        skipped += bad
        targets = np.array(labels, dtype=np.int64)
        splits[split] = Examples(paths, targets).take(good)
        if split == "train":
            check_left(classes, targets, targets[good])
    return Raw(
        name=root.resolve().name,
        kind="image",
        classes=classes,
        splits=splits,
        details={"skipped": skipped, "files_that_are_no_images": ignored},
    )


def _load_domains(root: Path, spec: DataSpec, progress: Progress) -> Raw:
    """Folders DOMAIN/CLASS: all of it in one split, since a domain is what is left out."""
    found = {folder.name: _class_folders(folder, root) for folder in _visible_folders(root)}
    if not found:
        raise InputError(f"the folder {root} has no folder in it: it needs one for each domain")
    domains = tuple(found)
    classes = tuple(sorted({name for by_class in found.values() for name in by_class}))
    check_several(classes, f"the folder {root}")
    rows = [
        (path, classes.index(name), domains.index(domain))
        for domain, by_class in found.items()
        for name, files in by_class.items()
        for path in files
    ]
    images = [row for row in rows if _is_image(row[0])]
    paths = [path for path, _, _ in images]
    names = [path.relative_to(root).as_posix() for path in paths]
    good, skipped = sound(paths, names, spec.on_bad_file, progress)
    targets, places = np.array([row[1:] for row in images], dtype=np.int64).T
    check_left(classes, targets, targets[good])
    return Raw(
        name=root.resolve().name,
        kind="image",
        classes=classes,
        splits={"train": Examples(paths, targets, places).take(good)},
        details={"skipped": skipped, "files_that_are_no_images": len(rows) - len(images)},
        domains=domains,
    )


def _unlabelled(root: Path, spec: DataSpec, progress: Progress) -> Raw:
    """Every image below, wherever it lies, for where labels are not looked at."""
    splits, skipped, ignored = {}, [], 0
    for split, folder in _split_folders(root).items():
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        files = [path for path in files if not _hidden(path.relative_to(folder))]
        paths = [path for path in files if _is_image(path)]
        ignored += len(files) - len(paths)
        if not paths:
            raise InputError(
                f"the folder {folder} has no images ({', '.join(sorted(SUFFIXES))}): add some"
            )
        names = [path.relative_to(root).as_posix() for path in paths]
        good, bad = sound(paths, names, spec.on_bad_file, progress)
        skipped += bad
        splits[split] = Examples(paths, np.zeros(len(paths), dtype=np.int64)).take(good)
    return Raw(
        name=root.resolve().name,
        kind="image",
        classes=("image",),
        splits=splits,
        details={"skipped": skipped, "files_that_are_no_images": ignored},
    )


def _split_folders(root: Path) -> dict[str, Path]:
    folders = {folder.name.lower(): folder for folder in _visible_folders(root)}
    splits = {
        split: folders[name]
        for split, names in SPLIT_NAMES.items()
        for name in names
        if name in folders
    }
    # Classes may be called "train" and "plane"; a split holds folders where a class holds images.
    if not splits or (
        len(splits) < len(folders) and not ("train" in splits and _visible_folders(splits["train"]))
    ):
        return {"train": root}
    if "train" not in splits:
        raise InputError(
            f"the folder {root} has {' and '.join(sorted(folders))} but no train: add the folder "
            "train, with one sub-folder of images per class"
        )
    return splits


def _class_folders(folder: Path, root: Path) -> dict[str, list[Path]]:
    classes = {}
    for inside in _visible_folders(folder):
        files = sorted(
            path
            for path in inside.rglob("*")
            if path.is_file() and not _hidden(path.relative_to(folder))
        )
        if not any(_is_image(path) for path in files):
            raise InputError(
                f"the class folder {inside.relative_to(root.parent)} has no images "
                f"({', '.join(sorted(SUFFIXES))}): add some, or remove the folder"
            )
        classes[inside.name] = files
    if classes:
        return classes
    images = any(path.is_file() and _is_image(path) for path in folder.iterdir())
    raise InputError(
        f"the folder {folder} has its images side by side: put those of each class in a "
        "sub-folder of that class's name"
        if images
        else f"the folder {folder} is empty of data: it needs one sub-folder of images per class, "
        "or train.csv (.tsv, .jsonl, .parquet)"
    )


def _visible_folders(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))
    )


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "__")) for part in path.parts)


def _called(found: Mapping[str, object], root: Path) -> str:
    return str(root / "train") if len(found) > 1 else str(root)
