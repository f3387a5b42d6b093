"""Training into flat minima with Noise Stability Optimization, and measuring what it did.

    optimizer = flatminima.NSO(torch.optim.AdamW(model.parameters(), lr=1e-4), sigma=0.01)

    for _ in optimizer.passes():
        loss_fn(model(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()

The names below are imported when they are first used, so that the command line starts quickly.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    imported.name: statement.module
    for statement in ast.parse(Path(__file__).with_suffix(".pyi").read_text()).body
    if isinstance(statement, ast.ImportFrom) and statement.module
    for imported in statement.names
}
"""Public names, and the modules where they live."""

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
