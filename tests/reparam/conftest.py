"""What tests of reparametrized runs have in common."""

import json

import pytest
import torch
from safetensors.torch import load_file

from flatminima.training import loop
from flatminima.training.recipe import Recipe
from flatminima.training.run import finetune, resume


def weights(run, kind="last"):
    return load_file(run / f"checkpoints/{kind}/model.safetensors")


@pytest.fixture
def whole_and_cut(tmp_path, monkeypatch):
    """Runs a recipe at one go, and again with a Ctrl-C at its third checkpoint and a resume.

    The weights of both are the same to the bit, as trained and as baked, and so is the test loss;
    returns the places of the two runs.
    """

    def run_both(**values):
        recipe = Recipe.from_flat({**values, "save_every": 2})
        places = tmp_path / "whole", tmp_path / "cut"
        finetune(recipe, places[0], say=lambda text: None)
        save, seen = loop.save, []

        def stop_after_three(run, state, name="last"):
            save(run, state, name)
            seen.append(state.step)
            if len(seen) == 3:
                raise KeyboardInterrupt

        monkeypatch.setattr(loop, "save", stop_after_three)
        with pytest.raises(KeyboardInterrupt):
            finetune(recipe, places[1], say=lambda text: None)
        monkeypatch.setattr(loop, "save", save)
        resume(places[1], say=lambda text: None)
        for kind in ("last", "baked"):
            whole, cut = (weights(place, kind) for place in places)
            assert all(torch.equal(whole[name], cut[name]) for name in whole)
        found = [json.loads((place / "results.json").read_text()) for place in places]
        assert found[0]["metrics"]["test_loss"] == found[1]["metrics"]["test_loss"]
        return places

    return run_both
