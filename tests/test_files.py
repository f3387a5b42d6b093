import errno
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flatminima.errors import InputError
from flatminima.files import read_json, write_bytes, write_json, write_text

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=10,
)


@given(value=json_values)
@settings(max_examples=50, deadline=None)
def test_json_comes_back(value, tmp_path_factory):
    path = tmp_path_factory.mktemp("json") / "a.json"
    write_json(path, value)
    assert read_json(path) == value


def test_json_is_standard_and_takes_the_types_of_results(tmp_path):
    @dataclass
    class Result:
        value: float

        def to_dict(self):
            return {"value": self.value}

    path = tmp_path / "a.json"
    write_json(
        path,
        {
            "nan": float("nan"),
            "infinite": [-float("inf"), np.float64("nan"), np.float32("inf")],
            "numpy": (np.float32(0.5), np.int64(3), np.bool_(True), np.arange(2)),
            "path": Path("a") / "b",
            "result": Result(float("inf")),
            "name": "Müller",
        },
    )
    assert json.loads(path.read_text("utf-8"), parse_constant=pytest.fail) == {
        "nan": None,
        "infinite": [None, None, None],
        "numpy": [0.5, 3, True, [0, 1]],
        "path": str(Path("a") / "b"),
        "result": {"value": None},
        "name": "Müller",
    }
    assert "Müller" in path.read_text("utf-8")


def test_what_has_no_form_in_json_leaves_the_old_file(tmp_path):
    write_json(path := tmp_path / "a.json", 1)
    with pytest.raises(TypeError, match="object"):
        write_json(path, [object()])
    assert read_json(path) == 1


def test_folders_are_created_and_nothing_else_is_left(tmp_path):
    write_text(tmp_path / "a" / "b" / "c.txt", "grün\n")
    assert (tmp_path / "a" / "b" / "c.txt").read_bytes() == "grün\n".encode()
    write_bytes(tmp_path / "a" / "b" / "c.txt", b"\x00new")
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["c.txt"]
    assert (tmp_path / "a" / "b" / "c.txt").read_bytes() == b"\x00new"


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("error", "mend"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "free space"),
        (OSError(errno.EROFS, "Read-only file system"), "choose another folder"),
        (OSError("odd"), "choose another path"),
        (KeyboardInterrupt(), ""),
    ],
)
def test_an_interrupted_write_leaves_the_old_file_and_no_rubbish(
    tmp_path, monkeypatch, step, error, mend
):
    write_text(path := tmp_path / "a.txt", "old")

    def fail(*args):
        raise error

    monkeypatch.setattr(os, step, fail)
    with pytest.raises((InputError, KeyboardInterrupt)) as raised:
        write_text(path, "new")
    if mend:
        assert str(path) in str(raised.value)
        assert mend in str(raised.value)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_a_folder_that_may_not_be_written_names_itself_and_the_mend(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match=r"a\.txt.*writable"):
        write_text(tmp_path / "a.txt", "x")
    tmp_path.chmod(0o700)


def test_a_path_through_a_file_or_to_a_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="choose another"):
        write_text(tmp_path / "file" / "a.txt", "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="choose another"):
        write_text(tmp_path / "folder", "x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_the_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "usual").touch()
    write_text(tmp_path / "a.txt", "x")
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_reading_says_what_is_wrong(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_json(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        read_json(tmp_path / "bad.json")
