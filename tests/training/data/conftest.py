from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(1)


@pytest.fixture
def draw() -> Callable[..., Path]:
    """Writes a small image of one colour with a darker left half."""
    from PIL import Image

    def write(path: Path, colour: int = 200, size: tuple[int, int] = (12, 10)) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((size[1], size[0], 3), colour, dtype=np.uint8)
        pixels[:, : size[0] // 2] //= 2
        Image.fromarray(pixels).save(path)
        return path

    return write


@pytest.fixture
def photos(tmp_path: Path, draw: Callable[..., Path]) -> Path:
    """A folder of 10 cats and 10 dogs."""
    root = tmp_path / "photos"
    for index, name in enumerate(("cat", "dog")):
        for number in range(10):
            draw(root / name / f"{number}.png", colour=100 * index + 10 * number)
    return root


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    """A CSV of 20 texts with two classes."""
    path = tmp_path / "reviews.csv"
    rows = [f'"it is, number {n}",{"bad" if n % 2 else "good"}' for n in range(20)]
    path.write_text("text,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return path
