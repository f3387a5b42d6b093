"""A picture of the masks that a run of pretraining ended with."""

from __future__ import annotations

from pathlib import Path

from flatminima.errors import InputError, require
from flatminima.models.hard_patches import MaskedViT
from flatminima.models.hard_patches.picture import mask_plot
from flatminima.objectives import HardPatchesMining
from flatminima.training import checkpoint
from flatminima.training.data.encode import encode
from flatminima.training.directory import RunDirectory
from flatminima.training.minimized import objective
from flatminima.training.prepared import prepare, restore

IMAGES = 8


def draw_masks(out: Path) -> Path:
    """Draw masks on images that were not trained on, in the run's directory; costs a second.

    Args:
        out: Of a run of the task masked-images.

    Returns:
        Where the picture is.

    Raises:
        InputError: there is no such run, it kept no checkpoint, or matplotlib is not installed.
    """
    require("matplotlib", "plot")
    directory = RunDirectory(out)
    prepared = prepare(directory.read_recipe())
    model = prepared.built.model
    if not isinstance(model, MaskedViT):
        raise InputError(f"{out} is no run of the task masked-images: it has no masks")
    kept = {"best": "best", "swa": "averaged", "ema": "averaged"}
    wanted = kept.get(prepared.recipe.loop.keep, "last")
    names = (checkpoint.BAKED, wanted, "last", "previous")
    restore(prepared, checkpoint.find(directory.checkpoints, names))
    data = prepared.data
    examples = data.test if len(data.test) else data.train
    chosen = range(0, len(examples), max(1, len(examples) // IMAGES))[:IMAGES]
    images = encode(examples, data, prepared.built.encoding).__getitems__(list(chosen))["inputs"]
    minimized = objective(prepared.recipe, data)
    mining = minimized if isinstance(minimized, HardPatchesMining) else None
    figure = mask_plot(model, images, mining)
    file = out / "masks.png"
    figure.savefig(file, dpi=150)
    require("matplotlib.pyplot", "plot").close(figure)
    return file
