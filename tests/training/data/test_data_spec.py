from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import pytest

from flatminima.errors import InputError
from flatminima.training.data import DataSpec


def test_every_field_has_a_default_and_a_help_text() -> None:
    for field in dataclasses.fields(DataSpec):
        assert field.default is not dataclasses.MISSING
        assert field.metadata["help"]


def test_importing_the_spec_imports_nothing_slow() -> None:
    code = (
        "import sys; import flatminima; before = set(sys.modules); "
        "import flatminima.training.data.spec; new = set(sys.modules) - before; "
        "sys.exit(str([m for m in ('torch', 'pandas', 'sklearn', 'PIL', 'datasets', 'kornia') "
        "if m in new] or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == ""


def test_the_functions_are_not_shadowed_by_the_files_of_the_same_name() -> None:
    import flatminima.training.data.encode
    import flatminima.training.data.load

    assert callable(flatminima.training.data.load)
    assert callable(flatminima.training.data.encode)
    assert flatminima.training.data.Encoded.__name__ == "Encoded"
    with pytest.raises(AttributeError, match="nothing"):
        flatminima.training.data.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data", " ", "data is ' ': give a built-in name"),
        ("test_fraction", 0, r"test_fraction is 0: give a number of more than 0 and less than 1"),
        ("test_fraction", 1.0, r"test_fraction is 1.0: .*--test-fraction"),
        ("validation_fraction", -0.1, r"validation_fraction is -0.1: .*--validation-fraction"),
        ("per_class", "30/20", "per_class is '30/20': give three whole numbers as 30/20/20"),
        ("per_class", "30/x/20", r"three whole numbers as 30/20/20 \(--per-class\)"),
        ("per_class", "30/20/0", "training and testing need at least 1 of every class"),
        ("label_noise", 1.5, r"label_noise is 1.5: give a number of at least 0 and at most 1"),
        ("label_noise", float("nan"), r"label_noise is nan"),
        ("label_noise", "much", r"label_noise is 'much'"),
        ("train_size", 1, r"train_size is 1: give a whole number of at least 2 \(--train-size\)"),
        ("train_size", 10.0, r"train_size is 10.0"),
        ("train_size", True, r"train_size is True"),
        ("max_length", 0, r"max_length is 0"),
        ("image_size", 0, r"image_size is 0"),
        ("text_column", "", r"text_column is '': give the name of a column \(--text-column\)"),
        ("augment", "standart", r"unknown value of --augment 'standart': did you mean 'standard'"),
        ("on_bad_file", "ignore", r"unknown value of --on-bad-file 'ignore': .*skip, stop"),
    ],
)
def test_values_out_of_range(field: str, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        DataSpec(**{field: value})
