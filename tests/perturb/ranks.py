"""What each of two processes does in `test_ranks.py`: python ranks.py RANK DIRECTORY."""

import os
import sys
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from flatminima.perturb import GSAM, NSO, SAM, LookSAM, Plain

SAMPLES = 8
STEPS = 4
WRAPS = {
    "plain": Plain,
    "nso": lambda base: NSO(base, sigma=0.1, num_perturbations=2),
    "nso-shared": lambda base: NSO(base, sigma=0.1, noise_per_rank=False),
    "sam": lambda base: SAM(base, rho=0.1),
    "gsam": lambda base: GSAM(base, rho=0.1),
    "looksam": lambda base: LookSAM(base, rho=0.1, k=2),
    "one-pass": lambda base: NSO(base, sigma=0.1, signs="split"),
    "one-pass-by-rank": lambda base: NSO(base, sigma=0.1, signs="split"),
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def data(step):
    g = torch.Generator().manual_seed(step)
    return torch.randn(SAMPLES, 4, generator=g), torch.randint(0, 3, (SAMPLES,), generator=g)


def train(name, *, rank=0, ranks=1, face="passes", **ddp):
    """Displacements of the first weight in the first step, and the weights at the end."""
    model = network()
    net = DistributedDataParallel(model, **ddp) if ranks > 1 else model
    optimizer = WRAPS[name](torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    home, moves = model[0].weight.detach().clone(), []

    def loss(x, y):
        if optimizer.steps == 0:
            moves.append(model[0].weight.detach() - home)
        return cross_entropy(net(x), y)

    for step in range(STEPS):
        x, y = (part.chunk(ranks)[rank] for part in data(step))
        if face == "closure":

            def closure(x=x, y=y):
                optimizer.zero_grad()
                value = loss(x, y)
                value.backward()
                return value

            optimizer.step(closure)
            continue
        batch = (x, y) if name != "one-pass-by-rank" else ()
        for part in optimizer.passes(*batch):
            loss(*(part if batch else (x, y))).backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.stack(moves), [p.detach().clone() for p in model.parameters()]


def main(rank, directory):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=2
    )
    found = {name: train(name, rank=rank, ranks=2) for name in WRAPS}
    for name in ("nso", "sam", "nso-shared", "gsam", "looksam"):
        for view in (False, True):
            found[f"{name}-closure-{view}"] = train(
                name, rank=rank, ranks=2, face="closure", gradient_as_bucket_view=view
            )
    torch.save(found, directory / f"{rank}.pt")
    distributed.barrier()  # a rank that leaves early may abort the other
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
    os._exit(0)  # threads of gloo may abort an interpreter that winds down
