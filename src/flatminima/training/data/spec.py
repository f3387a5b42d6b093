"""What the user says about the data.

The command line makes one flag of each field, so this file imports nothing that is slow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from flatminima.errors import InputError, unknown

OnBadFile = Literal["stop", "skip"]
Augment = Literal["none", "standard"]
Task = Literal["classification", "regression", "rationales", "contrastive"]


@dataclass(frozen=True)
class DataSpec:
    """Which data to train on, and how it is divided, corrupted and augmented.

    Attributes:
        data: A built-in name ("diabetes", "digits", "glyphs", "pydocs", "scenes",
            "scene-classes"), a path (a folder of images with one sub-folder per class; a .csv,
            .tsv, .jsonl or .parquet file; a folder with train.csv, test.csv, ...; a copy written by
            `datasets.save_to_disk`), or a Hugging Face id, `owner/name` or
            `owner/name:configuration`.
        task: What the data are for: classes; numbers to be predicted; questions with rationales and
            answers; or images with texts that fit them, which need no labels. None: as the data set
            has it; the labels of tables and of the Hub are classes unless this says otherwise.
        label_bin: Width of the bins that the labels of a regression are counted in, in their unit.
            None: a hundredth of the range of the training labels.
        few_shot: A label is few-shot where its bin has fewer training labels than this.
        many_shot: A label is many-shot where its bin has more training labels than this.
        text_column: The column with the text; two columns, `first,second`, make pairs of texts.
        label_column: The column with the label.
        image_column: The column with the path of the image, relative to the table.
        train_size: Keep this many training examples, stratified by class.
        validation_fraction: Part of the training examples set aside for validation where the source
            has no validation split. None: the data set's own default (0 for digits, else 0.1).
        test_fraction: Part of all examples set aside for testing where the source has no test
            split.
        label_noise: Part of the training labels drawn anew, uniformly over all classes. None: the
            data set's own default (0.2 for digits, else 0).
        on_bad_file: Stop at images that cannot be read, or skip and report them.
        augment: Random changes to the training images.
        max_length: Longest text, in tokens; longer ones are truncated.
        image_size: Side of the images given to the model, in pixels. None: what the model asks for.

    Raises:
        InputError: a value is out of its range.
    """

    data: str = field(
        default="digits",
        metadata={
            "help": "digits, glyphs or pydocs (built in), path of a file or folder, or Hugging "
            "Face id (owner/name)"
        },
    )
    task: Task | None = field(
        default=None,
        metadata={
            "help": "what the data are for: classes, numbers to predict, questions with rationales "
            "and answers, or images with texts that fit them (default: as the data have it)"
        },
    )
    label_bin: float | None = field(
        default=None,
        metadata={
            "help": "regression: width of the bins that labels are counted in, for the scores by "
            "shot group (default: a hundredth of their range)"
        },
    )
    few_shot: int = field(
        default=20,
        metadata={"help": "regression: bins with fewer training labels than this are few-shot"},
    )
    many_shot: int = field(
        default=100,
        metadata={"help": "regression: bins with more training labels than this are many-shot"},
    )
    text_column: str | None = field(
        default=None,
        metadata={"help": "column with the text; 'first,second' makes pairs of sentences"},
    )
    label_column: str | None = field(default=None, metadata={"help": "column with the label"})
    image_column: str | None = field(
        default=None, metadata={"help": "column with the image's path, relative to the table"}
    )
    train_size: int | None = field(
        default=None,
        metadata={"help": "keep this many training examples, the same share of every class"},
    )
    validation_fraction: float | None = field(
        default=None,
        metadata={
            "help": "part of the training examples kept for validation where the source has no "
            "such split (default: 0 for digits, else 0.1)"
        },
    )
    test_fraction: float = field(
        default=0.2,
        metadata={
            "help": "part of the examples kept for testing where the source has no such split"
        },
    )
    label_noise: float | None = field(
        default=None,
        metadata={
            "help": "part of the training labels drawn anew, uniformly over all classes "
            "(default: 0.2 for digits, else 0)"
        },
    )
    on_bad_file: OnBadFile = field(
        default="stop",
        metadata={"help": "stop at images that cannot be read, or skip and report them"},
    )
    augment: Augment = field(
        default="none", metadata={"help": "random changes to the training images"}
    )
    max_length: int = field(
        default=128, metadata={"help": "longest text in tokens; longer ones are truncated"}
    )
    image_size: int | None = field(
        default=None,
        metadata={"help": "side of the images in pixels (default: what the model asks for)"},
    )

    def __post_init__(self) -> None:
        if not isinstance(self.data, str) or not self.data.strip():
            raise InputError(
                f"data is {self.data!r}: give a built-in name, a path or a Hugging Face id (--data)"
            )
        for name in ("text_column", "label_column", "image_column"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise InputError(f"{name} is {value!r}: give the name of a column ({_flag(name)})")
        _check_whole("train_size", self.train_size, least=2, optional=True)
        _check_whole("max_length", self.max_length, least=1)
        _check_whole("image_size", self.image_size, least=1, optional=True)
        _check_fraction("test_fraction", self.test_fraction, above_zero=True, below_one=True)
        if self.validation_fraction is not None:
            _check_fraction("validation_fraction", self.validation_fraction, below_one=True)
        if self.label_noise is not None:
            _check_fraction("label_noise", self.label_noise)
        _check_whole("few_shot", self.few_shot, least=0)
        _check_whole("many_shot", self.many_shot, least=self.few_shot)
        if self.label_bin is not None and not 0 < self.label_bin < math.inf:
            raise InputError(
                f"label_bin is {self.label_bin!r}: give a finite width above 0 (--label-bin)"
            )
        if self.task is not None and self.task not in get_args(Task):
            raise unknown("value of --task", self.task, get_args(Task))
        for name, known in (("on_bad_file", OnBadFile), ("augment", Augment)):
            if getattr(self, name) not in get_args(known):
                raise unknown(f"value of {_flag(name)}", getattr(self, name), get_args(known))


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _check_whole(name: str, value: object, *, least: int, optional: bool = False) -> None:
    if value is None and optional:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(
            f"{name} is {value!r}: give a whole number of at least {least} ({_flag(name)})"
        )


def _check_fraction(
    name: str, value: object, *, above_zero: bool = False, below_one: bool = False
) -> None:
    low = "more than 0" if above_zero else "at least 0"
    high = "less than 1" if below_one else "at most 1"
    fits = isinstance(value, int | float) and not isinstance(value, bool)
    if fits:
        number = float(value)  # type: ignore[arg-type]
        fits = math.isfinite(number) and 0 <= number <= 1
        fits = fits and not (above_zero and number == 0) and not (below_one and number == 1)
    if not fits:
        raise InputError(f"{name} is {value!r}: give a number of {low} and {high} ({_flag(name)})")
