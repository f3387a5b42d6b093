"""Hugging Face data sets: by id, or from a copy on disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flatminima.errors import InputError, require
from flatminima.progress import Progress
from flatminima.training.data import captions
from flatminima.training.data.columns import choose, choose_captioned
from flatminima.training.data.examples import Raw
from flatminima.training.data.frames import assemble
from flatminima.training.data.rationales import of_frames
from flatminima.training.data.spec import DataSpec
from flatminima.training.data.splits import SPLIT_NAMES


def is_saved(folder: Path) -> bool:
    """Whether `datasets.save_to_disk` wrote this folder."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file()
    )


def load(spec: DataSpec, seed: int, progress: Progress) -> Raw:
    """Read the train, validation and test splits of a data set.

    A validation or test split whose labels are all hidden (-1 or missing) is left out, as if the
    data set had none. The id may name a configuration: "nyu-mll/glue:mrpc".

    Raises:
        InputError: the data set cannot be reached, does not exist or has no training split, or see
            `choose` and `assemble`.
    """
    progress("reading data set", 0, 1)
    local = Path(spec.data).expanduser()
    opened = _open_saved(local) if local.is_dir() else _open_remote(spec.data)
    splits, unused = _splits(opened, spec.data)
    name = local.resolve().name if local.is_dir() else spec.data
    if spec.task == "rationales":
        read = {split: part.to_pandas() for split, part in splits.items()}
        where = {split: f"the {split} split of {spec.data}" for split in read}
        progress("reading data set", 1, 1)
        return of_frames(read, spec, name=name, where=where)
    features = splits["train"].features
    if spec.task == "contrastive":
        return _captioned(splits, unused, spec, seed, local, progress)
    columns = choose(
        list(features),
        spec,
        [name for name in features if _is_number(features[name])],
        spec.data,
    )
    label_names = getattr(features[columns.label], "names", None)
    frames, hidden = {}, []
    for split, part in splits.items():
        chosen = [name for name in (*columns.inputs, columns.label) if name in part.features]
        frame = _undecoded(part.select_columns(chosen)).to_pandas()
        if split != "train" and columns.label in frame and _hides(frame[columns.label]):
            hidden.append(split)
            continue
        frames[split] = frame
    progress("reading data set", 1, 1)
    raw = assemble(
        frames,
        columns,
        name=name,
        where={split: f"the {split} split of {spec.data}" for split in frames},
        folder=local if local.is_dir() else Path(),
        on_bad_file=spec.on_bad_file,
        progress=progress,
        label_names=label_names,
        task=spec.task,
    )
    raw.details.update(unused_splits=unused, splits_without_labels=hidden)
    return raw


def _captioned(
    splits: Mapping[str, Any],
    unused: list[str],
    spec: DataSpec,
    seed: int,
    local: Path,
    progress: Progress,
) -> Raw:
    columns = choose_captioned(list(splits["train"].features), spec, spec.data)
    frames = {
        split: _undecoded(
            part.select_columns([name for name in columns.inputs if name in part.features])
        ).to_pandas()
        for split, part in splits.items()
    }
    progress("reading data set", 1, 1)
    raw = captions.assemble(
        frames,
        columns,
        spec,
        seed,
        name=local.resolve().name if local.is_dir() else spec.data,
        where={split: f"the {split} split of {spec.data}" for split in frames},
        folder=local if local.is_dir() else Path(),
        progress=progress,
    )
    raw.details.update(unused_splits=unused)
    return raw


def _open_saved(folder: Path) -> Any:
    try:
        return require("datasets", "hub").load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{folder} is not a complete copy of a data set ({_first_line(error)}): "
            "write it again by save_to_disk"
        ) from error


def _open_remote(identifier: str) -> Any:
    datasets = require("datasets", "hub")
    name, _, configuration = identifier.partition(":")
    try:
        with _quiet():
            return datasets.load_dataset(name, configuration or None)
    except ConnectionError as error:
        raise InputError(
            f"{name!r} cannot be reached on the Hugging Face Hub, and no file or folder here is "
            "called so: check the spelling and the connection, or save a copy elsewhere by "
            "save_to_disk and give its folder (--data)"
        ) from error
    except datasets.exceptions.DatasetNotFoundError as error:
        raise InputError(
            f"there is no data set {name!r} on the Hugging Face Hub (or it is private), and no "
            "file or folder here is called so: check the spelling (--data)"
        ) from error
    except ValueError as error:
        if "config" not in str(error).lower():
            raise InputError(f"{name!r} cannot be loaded: {_first_line(error)} (--data)") from error
        raise InputError(
            f"{name!r} has several configurations: write one as {name}:configuration; "
            f"{' '.join(str(error).split())}"
        ) from error
    except (RuntimeError, OSError) as error:
        raise InputError(f"{name!r} cannot be loaded: {_first_line(error)} (--data)") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the client's lines about each retry from burying the one that says what is wrong."""
    logging = require("huggingface_hub.utils.logging", "hub")
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _splits(opened: Any, name: str) -> tuple[dict[str, Any], list[str]]:
    if not isinstance(opened, Mapping):
        return {"train": opened}, []
    if len(opened) == 1:
        return {"train": next(iter(opened.values()))}, []
    splits = {
        split: opened[called]
        for split, usual in SPLIT_NAMES.items()
        for called in usual
        if called in opened
    }
    if "train" not in splits:
        raise InputError(
            f"{name} has no split called train (it has {', '.join(opened)}): "
            "save the split to train on by save_to_disk, and give that folder (--data)"
        )
    used = {called for usual in SPLIT_NAMES.values() for called in usual}
    return splits, [called for called in opened if called not in used]


def _undecoded(part: Any) -> Any:
    image = require("datasets", "hub").Image
    for name, feature in part.features.items():
        if isinstance(feature, image):
            part = part.cast_column(name, image(decode=False))
    return part


def _is_number(feature: Any) -> bool:
    return str(getattr(feature, "dtype", "")).startswith(("int", "uint", "float", "bool"))


def _hides(labels: Any) -> bool:
    return len(labels) > 0 and bool((labels.isna() | labels.isin([-1])).all())


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
