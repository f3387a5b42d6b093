import errno
import json
import resource
import signal

import pytest
import torch
from torch import nn

from flatminima.errors import InputError
from flatminima.training import checkpoint


def network(seed=0, width=4):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 2))


@pytest.fixture
def folder(tmp_path):
    """Two checkpoints, `last` at step 2 and `previous` at step 1."""
    for step in (1, 2):
        checkpoint.save(tmp_path / "last", network(step), {"step": step}, {"step": step})
    return tmp_path


def test_what_was_saved_comes_back(folder):
    found = checkpoint.find(folder)
    model = network(9)
    found.load_model(model)
    assert found.state["step"] == 2
    assert found.warning == ""
    assert found.load_optimizer() == {"step": 2}
    assert all(map(torch.equal, model.state_dict().values(), network(2).state_dict().values()))


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt", "state.json"])
@pytest.mark.parametrize("damage", ["truncate", "tamper", "remove"])
def test_a_damaged_checkpoint_is_noticed_and_the_previous_one_used(folder, file, damage):
    path = folder / "last" / file
    content = path.read_bytes()
    if damage == "remove":
        path.unlink()
    elif damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    elif file == "state.json":
        state = json.loads(content)
        state["progress"]["step"] = 7
        path.write_text(json.dumps(state))
    else:
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    found = checkpoint.find(folder)
    assert found.state["step"] == 1
    assert "last" in found.warning
    assert "using" in found.warning
    assert found.folder.name == "previous"


def test_all_checkpoints_damaged(folder):
    for name in ("last", "previous"):
        (folder / name / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="truncated or changed"):
        checkpoint.find(folder)


def test_no_checkpoint(tmp_path):
    with pytest.raises(InputError, match="no checkpoint in"):
        checkpoint.find(tmp_path)


def test_killed_between_the_two_renames(folder):
    (folder / "last").rename(folder / "half-way")
    assert checkpoint.find(folder).state["step"] == 1


def test_a_full_disk_leaves_what_was_there(folder, monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match=r"cannot write the checkpoint .*free space"):
        checkpoint.save(folder / "last", network(3), {"step": 3}, {"step": 3})
    assert checkpoint.find(folder).state["step"] == 2
    assert sorted(path.name for path in folder.iterdir()) == ["last", "previous"]


def test_another_architecture_is_refused(folder):
    with pytest.raises(InputError, match="another architecture"):
        checkpoint.find(folder).load_model(network(width=5))


def test_tied_weights_and_companions(tmp_path):
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    checkpoint.save(
        tmp_path / "best", model, None, {}, lambda f: (f / "config.json").write_text("{}")
    )
    found = checkpoint.read(tmp_path / "best")
    assert (found.folder / "config.json").is_file()
    found.load_model(model)


@pytest.mark.parametrize("content", ["{}", "[]", "5", '{"progress": {}}'])
def test_a_state_file_of_something_else_is_no_checkpoint(folder, content):
    (folder / "last/state.json").write_text(content)
    assert checkpoint.find(folder).state["step"] == 1


def test_a_disk_that_takes_no_more_is_one_line_and_leaves_no_rubbish(folder):
    # The limit makes every writer fail as a full disk does, each with an error of its own type.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, hard))
    try:
        with pytest.raises(InputError, match="cannot write the checkpoint"):
            checkpoint.save(folder / "last", network(3, width=50), {"step": 3}, {"step": 3})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert checkpoint.find(folder).state["step"] == 2
    assert sorted(path.name for path in folder.iterdir()) == ["last", "previous"]
