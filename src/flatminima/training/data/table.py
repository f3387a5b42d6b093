"""Tables: CSV, TSV, JSON lines and Parquet, one file or one per split."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatminima.errors import InputError, require
from flatminima.progress import Progress
from flatminima.training.data import captions
from flatminima.training.data.columns import check_unique, choose, choose_captioned
from flatminima.training.data.examples import Raw
from flatminima.training.data.frames import assemble
from flatminima.training.data.rationales import of_frames
from flatminima.training.data.spec import DataSpec
from flatminima.training.data.splits import SPLIT_NAMES

if TYPE_CHECKING:
    from pandas import DataFrame

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


def load(spec: DataSpec, seed: int, progress: Progress) -> Raw:
    """Read one table, or those called train, validation and test in a folder.

    Paths of images are relative to the table.

    Raises:
        InputError: a table cannot be read, or see `choose` and `assemble`.
    """
    path = Path(spec.data).expanduser()
    files = split_files(path) if path.is_dir() else {"train": path}
    frames = {split: read(file) for split, file in files.items()}
    where = {split: file.name for split, file in files.items()}
    for split, frame in frames.items():
        check_unique(list(frame.columns), where[split])
    if spec.task == "rationales":
        return of_frames(frames, spec, name=path.resolve().stem, where=where)
    train = frames["train"]
    if spec.task == "contrastive":
        return captions.assemble(
            frames,
            choose_captioned(list(train.columns), spec, where["train"]),
            spec,
            seed,
            name=path.resolve().stem,
            where=where,
            folder=files["train"].parent,
            progress=progress,
        )
    is_number = require("pandas", "tables").api.types.is_numeric_dtype
    numeric = [name for name in train.columns if is_number(train[name])]
    columns = choose(list(train.columns), spec, numeric, where["train"])
    return assemble(
        frames,
        columns,
        name=path.resolve().stem,
        where=where,
        folder=files["train"].parent,
        on_bad_file=spec.on_bad_file,
        progress=progress,
        task=spec.task,
    )


def split_files(folder: Path) -> dict[str, Path]:
    """The tables of a folder that are called after a split, if there is a training table.

    Raises:
        InputError: two tables claim the same split.
    """
    tables = [file for file in sorted(folder.iterdir()) if file.suffix.lower() in SUFFIXES]
    found = {}
    for split, names in SPLIT_NAMES.items():
        matching = [file for file in tables if file.stem.lower() in names]
        if len(matching) > 1:
            raise InputError(
                f"{folder} has several {split} tables ({', '.join(f.name for f in matching)}): "
                "keep one of them"
            )
        if matching:
            found[split] = matching[0]
    return found if "train" in found else {}


def read(path: Path) -> DataFrame:
    """Read a table by its suffix.

    Raises:
        InputError: the suffix is none of those known, or the content is not what it says.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(
            f"{path.name} is no table this library reads: give a file that ends in "
            f"{', '.join(SUFFIXES)}, or a folder of images"
        )
    if suffix == ".parquet":
        return _read_parquet(path)
    text = _read_text(path)
    if not text.strip():
        raise InputError(f"{path.name} is empty: it needs a row for every example")
    if suffix == ".jsonl":
        return _read_json_lines(text, path.name)
    return _read_separated(text, "\t" if suffix == ".tsv" else ",", path.name)


def _read_text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror or error}): check its permissions"
        ) from error
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path.name} is not UTF-8: byte {error.start} (line {line}) is "
            f"0x{content[error.start]:02x}; save as UTF-8"
        ) from error


def _read_separated(text: str, separator: str, where: str) -> DataFrame:
    pandas = require("pandas", "tables")
    try:
        header = next(csv.reader(io.StringIO(text), delimiter=separator, skipinitialspace=True))
        # "NA" and "null" are words like any other in a text; only an empty cell is missing.
        frame = pandas.read_csv(
            io.StringIO(text),
            sep=separator,
            skipinitialspace=True,
            keep_default_na=False,
            na_values=[""],
            low_memory=False,
        )
    except (ValueError, csv.Error) as error:
        reason = str(error).strip().splitlines()[0].removeprefix("Error tokenizing data. C error: ")
        raise InputError(
            f"{where} is not well-formed: {reason}; mend that line, and quote cells that contain "
            f"the separator {separator!r} or a line break"
        ) from error
    if not isinstance(frame.index, pandas.RangeIndex) or len(header) != len(frame.columns):
        raise InputError(
            f"{where} has rows with more cells than its header: name every column, and quote cells "
            f"that contain the separator {separator!r}"
        )
    # Pandas renames duplicates; the names as written are needed to tell the user of them.
    frame.columns = [name.strip() for name in header]
    # A column without a name is the index that `DataFrame.to_csv` writes.
    return frame.loc[:, [name != "" for name in frame.columns]]


def _read_json_lines(text: str, where: str) -> DataFrame:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_unique_keys)
        except json.JSONDecodeError as error:
            raise InputError(
                f"line {number} of {where} is not JSON ({error.msg} at column {error.colno}): "
                "write one JSON object per line"
            ) from error
        except KeyError as error:
            raise InputError(
                f"line {number} of {where} has more than one value for {error}: keep one"
            ) from error
        if not isinstance(row, dict):
            raise InputError(
                f"line {number} of {where} is a JSON {type(row).__name__}: "
                'write one object per line, such as {"text": "...", "label": 0}'
            )
        rows.append(row)
    # Column by column, so that pandas does not turn whole numbers beside a missing one to floats.
    names = list(dict.fromkeys(name for row in rows for name in row))
    return require("pandas", "tables").DataFrame(
        {name: [row.get(name) for row in rows] for name in names}
    )


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise KeyError(key)
        found[key] = value
    return found


def _read_parquet(path: Path) -> DataFrame:
    pandas = require("pandas", "tables")
    require("pyarrow", "tables")
    try:
        frame = pandas.read_parquet(path)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{path.name} is not a readable Parquet file ({reason}): write it again"
        ) from error
    frame.columns = [str(name) for name in frame.columns]
    return frame.reset_index(drop=True)
