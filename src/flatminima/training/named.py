"""What the names in a recipe say before anything is read: mistakes in them cost no download."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from flatminima.errors import InputError, unknown
from flatminima.training import language_models
from flatminima.training.built import read_config
from flatminima.training.data.builtin import builtin, misspelt
from flatminima.training.data.spec import DataSpec
from flatminima.training.data.table import SUFFIXES
from flatminima.training.dual import CLIPS, PROMPTED
from flatminima.training.knobs import check_knobs_named
from flatminima.training.recipe import Recipe

CLOSE = 0.8
"""How alike a name is to a built-in one that it is taken for a slip: t5-small is not bert-small."""

FITTING: dict[str, tuple[str, ...]] = {
    "matrix-sensing": ("matrix-factor",),
    "cosines": ("cosines",),
    "rationales": (language_models.TINY,),
    "contrastive": tuple(CLIPS),
    "base-to-novel": tuple(PROMPTED + name for name in CLIPS),
    "masked-images": ("vit-tiny",),
    "image": ("mlp", "cnn", "vit-tiny"),
    "vector": ("mlp",),
    "text": ("bert-small", "minilm"),
}
"""The built-in models for a task, or for classes and numbers of a kind of inputs."""

OURS_ALONE = ("matrix-sensing", "cosines", "vector")
"""What no model of transformers is for."""

WORDS = {
    "contrastive": "images with texts",
    "base-to-novel": "images, their classes told by prompts",
    "image": "images",
    "vector": "vectors",
    "text": "texts",
}


COLUMNS = ("text_column", "label_column", "image_column", "domain_column")
FOLDERS = ("domain_folders", "folders of images")


@dataclass(frozen=True)
class Known:
    """What is known of data before they are read.

    Attributes:
        kind: What their inputs are, "" where that is not known.
        task: What they are for, "" where that is not known.
        validates: Whether there can be samples to validate on.
    """

    kind: str
    task: str
    validates: bool


def known(spec: DataSpec) -> Known:
    """What a recipe says of its data, and what is known of built-in ones.

    Raises:
        InputError: a built-in name, or an option of one, that is misspelt; a task that a built-in
            data set is not for; columns or folders of one.
    """
    data = spec.data
    # Of three numbers the one in the middle; a wrong word is refused where the recipe is made.
    validates = spec.per_class is None or spec.counts_per_class()[1] > 0
    found = builtin(data)
    if found is not None:
        _check_no_files(spec)
        task = _task_of(spec, found.kind, found.task)
        share = found.validation if spec.validation_fraction is None else spec.validation_fraction
        return Known(found.kind, task, validates and (found.validation is None or share != 0))
    path = Path(data).expanduser()
    elsewhere = "/" in data or "\\" in data or path.suffix.lower() in SUFFIXES
    if not elsewhere and not path.exists() and (wrong := misspelt(data, CLOSE)):
        raise InputError(
            f"{wrong}; or give the path of a file or folder that exists, or a Hugging Face id as "
            "owner/name (--data)"
        )
    if path.suffix.lower() in SUFFIXES and spec.validation_fraction == 0:
        validates = False
    said = {"rationales": "text", "contrastive": "captioned", "masked-images": "image"}
    kind = said.get(spec.task or "", "")
    if not kind and (spec.image_column is not None or spec.domain_folders):
        kind = "image"
    elif not kind and spec.text_column is not None:
        kind = "text"
    return Known(kind, spec.task or "", validates)


def check_named(recipe: Recipe) -> None:
    """Refuse data and model whose names alone say that they cannot be, or not together.

    Nothing is read but a model's config, where the recipe names a file of one.

    Raises:
        InputError: as `known`; a model that does not exist or is not for such data; a knob that
            does not; choosing or tuning by validation where nothing is there to validate on.
    """
    data = known(recipe.data)
    if recipe.model.model is not None:
        _check_model(recipe.model.model, data, recipe.data.data)
    if recipe.tune.tune:
        check_knobs_named(recipe.tune.tune)
    if not data.validates:
        check_choosing(recipe, recipe.data.data)


def check_choosing(recipe: Recipe, data: str) -> None:
    """Refuse to choose or to tune by validation, for data that have no validation samples.

    Raises:
        InputError: the recipe does.
    """
    mend = f"{data} has no validation samples: set --validation-fraction, such as 0.2"
    if recipe.loop.keep == "best" or recipe.loop.early_stopping is not None:
        raise InputError(f"--keep best and --early-stopping choose by validation score, and {mend}")
    if recipe.tune.tune:
        raise InputError(f"--tune learns from validation samples, and {mend}")


def _task_of(spec: DataSpec, kind: str, task: str) -> str:
    hides_patches = spec.task == "masked-images" and kind == "image"
    if spec.task not in (None, task) and not hides_patches:
        raise InputError(
            f"--task {spec.task} does not fit {spec.data}, whose labels are for {task}: leave it "
            "out, or give a table with the labels that you mean"
        )
    return spec.task or task


def _check_no_files(spec: DataSpec) -> None:
    """Refuse what says how to read a table or a folder where a built-in data set is asked for."""
    for name, of in (*((column, "tables") for column in COLUMNS), FOLDERS):
        if getattr(spec, name):
            raise InputError(
                f"--{name.replace('_', '-')} is for {of}, and {spec.data} is built in: leave it "
                "out, or give such data"
            )


def _check_model(name: str, data: Known, source: str) -> None:
    own = name.removeprefix(PROMPTED)
    ours = {name for names in FITTING.values() for name in names}
    if own.startswith("config:"):
        try:
            read_config(Path(own.removeprefix("config:")).expanduser())
        except InputError as error:
            raise InputError(f"--model: {error}") from error
    elif own.startswith((".", "/", "~")) and not Path(own).expanduser().exists():
        raise InputError(f"no such model folder: {own} (--model)")
    elif name not in ours and not Path(own).exists() and _close(own, ours):
        raise unknown("value of --model", name, ours)
    about = data.task if data.task in FITTING else data.kind
    if about not in FITTING or name in FITTING[about]:
        return
    prompted = name.startswith(PROMPTED) and about in ("image", "base-to-novel")
    if (name in ours or about in OURS_ALONE or name.startswith(PROMPTED)) and not prompted:
        others = "" if about in OURS_ALONE else ", or a folder or hub id of a transformers model"
        holds = f"holds {WORDS[about]}" if about in WORDS else f"is for {about}"
        raise InputError(
            f"--model {name} does not fit {source}, which {holds}: take "
            f"{', '.join(FITTING[about])}{others}"
        )


def _close(name: str, ours: set[str]) -> bool:
    # Two letters of three that change places are less alike than names of others are.
    closeness = CLOSE if len(name) > 3 else 0.6
    bare = {model.removeprefix(PROMPTED) for model in ours}
    return bool(get_close_matches(name, bare, n=1, cutoff=closeness))
