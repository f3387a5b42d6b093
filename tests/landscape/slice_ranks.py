"""What each process does in `test_sharing.py`, run as a module with RANK DIRECTORY."""

import sys
from pathlib import Path

import torch
from torch import distributed

from flatminima.landscape import around, loss_slice, random_directions
from measure.cases import cross_entropy, mlp, split


def measured():
    model, batch = mlp()
    return model, split(batch, 9, 4, 11)


def whole(**settings):
    model, batches = measured()
    frame = around(random_directions(model, 2, seed=0))
    return loss_slice(model, cross_entropy, batches, frame, points=7, **settings)


def failing(model, batch):
    if distributed.is_initialized() and distributed.get_rank() == 1:
        raise ValueError("this process has no data")
    return cross_entropy(model, batch)


def main(rank: int, directory: Path) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{directory / 'meeting'}", rank=rank, world_size=2
    )
    found = whole()
    model, batches = measured()
    frame = around(random_directions(model, 2, seed=0))
    try:
        loss_slice(model, failing, batches, frame, points=5)
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
    cut = whole(max_seconds=1e-6, say=lambda text: None)
    kept = {
        "loss": torch.from_numpy(found.loss),
        "failure": failure,
        "stopped": cut.stopped,
        "evaluated": torch.from_numpy(cut.evaluated),
    }
    torch.save(kept, directory / f"{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
