"""Where the records of a run go: metrics.jsonl always, TensorBoard on request."""

from __future__ import annotations

from typing import Any

from flatminima.errors import require
from flatminima.training.directory import RunDirectory


class Log:
    """Takes the records of a run.

    Args:
        directory: Of the run; None writes nothing, for processes other than the first.
        tensorboard: Whether to write TensorBoard's files too, under `tensorboard/`.
    """

    def __init__(self, directory: RunDirectory | None, *, tensorboard: bool = False) -> None:
        self._directory = directory
        self._writer: Any = None
        self._tensorboard = tensorboard and directory is not None
        if self._tensorboard:
            require("tensorboard", "tensorboard")

    def write(self, record: dict[str, Any]) -> None:
        """Write a record; its "step" is the axis, its other numbers are curves."""
        if self._directory is None:
            return
        self._directory.log(record)
        if self._tensorboard and self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._directory.path / "tensorboard"))
        if self._writer is not None:
            for name, value in record.items():
                if name != "step" and isinstance(value, (int, float)):
                    self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Flush what is buffered."""
        if self._writer is not None:
            self._writer.close()
