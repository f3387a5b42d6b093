"""A run directory: what one run leaves behind, in formats that any tool reads.

recipe.yaml        all settings, defaults filled in
environment.json   versions and machine
data.json          what the data were: counts, label noise as it came out, files left out
metrics.jsonl      one line a step, one line an epoch
checkpoints/       see `checkpoint.py`
predictions.json   the class predicted for each test sample, and some of the wrong ones to look at
tuned.json         what a tuner before the run found, and trials/, the runs it compared
suspects.json      the training samples whose labels an objective such as ELR suspects
results.json       what came out; written last, so it marks a finished run
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from flatminima.errors import InputError
from flatminima.files import read_json, write_json, write_text
from flatminima.training import recipe as recipes
from flatminima.training.recipe import Recipe

PACKAGES = ("flatminima", "torch", "numpy", "accelerate", "transformers", "scikit-learn")


class RunDirectory:
    """The directory of one run.

    Args:
        path: Where it is or will be.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.data = path / "data.json"
        self.tuned, self.trials = path / "tuned.json", path / "trials"

    def create(self, recipe: Recipe) -> None:
        """Start a new run here.

        Raises:
            InputError: the directory holds another run, or cannot be written.
        """
        self.check_free()
        self.write_recipe(recipe)
        write_json(self.path / "environment.json", environment())

    def check_free(self) -> None:
        """Refuse a directory that holds a run or a study.

        Raises:
            InputError: it does.
        """
        if (self.path / "recipe.yaml").exists():
            raise InputError(
                f"{self.path} holds another run: choose another --out, or continue that run with "
                f"--resume {self.path}"
            )
        if (self.path / "study.json").exists() or (self.path / "results.json").exists():
            raise InputError(f"{self.path} holds a study or results: choose another --out")

    def abandon(self) -> None:
        """Take back what was written, for a run that could not even be saved once."""
        for name in ("recipe.yaml", "environment.json", "data.json", "tuned.json"):
            (self.path / name).unlink(missing_ok=True)
        for folder in (self.checkpoints, self.trials):
            shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            self.path.rmdir()  # there is more in it, then it stays

    def write_recipe(self, recipe: Recipe) -> None:
        """Write the settings."""
        write_text(self.path / "recipe.yaml", recipes.dump(recipe))

    def read_recipe(self) -> Recipe:
        """The settings of the run here.

        Raises:
            InputError: there is no run here.
        """
        if not (self.path / "recipe.yaml").is_file():
            raise InputError(f"no run in {self.path}: it has no recipe.yaml")
        return Recipe.from_flat(recipes.read(self.path / "recipe.yaml"))

    @property
    def finished(self) -> bool:
        """Whether the run's results are written."""
        return (self.path / "results.json").is_file()

    def read_results(self) -> dict[str, Any]:
        """The results of a finished run."""
        results: dict[str, Any] = read_json(self.path / "results.json")
        return results

    def check_data(self, report: dict[str, Any]) -> None:
        """Refuse to go on with data that are not those the run began with.

        Raises:
            InputError: their fingerprints differ.
        """
        if not self.data.is_file():
            return
        before = read_json(self.data).get("fingerprint")
        if before != report["fingerprint"]:
            raise InputError(
                f"the data of {self.path} changed since the run began (fingerprint {before}, now "
                f"{report['fingerprint']}): restore them, or start a new run"
            )

    def log(self, record: dict[str, Any]) -> None:
        """Append a line to the metrics.

        Raises:
            InputError: it cannot be written.
        """
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise InputError(f"cannot write {self.metrics}: {error.strerror}") from error

    def drop_metrics_after(self, step: int) -> None:
        """Forget the lines of steps that a resumed run will take again."""
        if not self.metrics.is_file():
            return
        kept = []
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except ValueError:  # the line that was being written when the run was killed
                continue
            if isinstance(record, dict) and record.get("step", step + 1) <= step:
                kept.append(line + "\n")
        write_text(self.metrics, "".join(kept))


def environment() -> dict[str, Any]:
    """Versions and machine."""
    cuda = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if cuda else None,
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
