"""What each of two processes does in `test_fsdp.py`, run as a module with RANK DIRECTORY."""

import os
import sys
from pathlib import Path

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy

from .cases import VARIANTS, Variant, adamw, takes_closure, through_a_file

SAMPLES, STEPS, RANKS = 8, 5, 2
VARIANTS = [
    *VARIANTS,
    Variant("nso", {"scale": "layer"}),
    Variant("nso", {"scale": "filter"}),
    Variant("sam", {"interval": 2}),
]


class Network(nn.Module):
    """Layers whose parameters do not divide by 2, one of a single element."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.gain * self.second(torch.tanh(self.first(x)))


def network():
    torch.manual_seed(0)
    return Network().double()


def data(step, rank=None):
    """A rank's samples; or all, in an order whose parts are made of the ranks' parts."""
    g = torch.Generator().manual_seed(step)
    x = torch.randn(SAMPLES, 4, generator=g, dtype=torch.float64)
    y = torch.randint(0, 3, (SAMPLES,), generator=g)
    if rank is not None:
        return x.chunk(RANKS)[rank], y.chunk(RANKS)[rank]
    order = torch.arange(SAMPLES).reshape(RANKS, -1).T.flatten()
    return x[order], y[order]


def build(variant, *, mesh=None, reshard=True, lr=0.01):
    model = network()
    if mesh is not None:
        fully_shard(model.first, mesh=mesh, reshard_after_forward=reshard)
        fully_shard(model, mesh=mesh)
    base = adamw(model.named_parameters(), lr=lr)
    return model, variant.wrap(base, strength=0.05, seed=7) if variant.name != "plain" else (
        variant.wrap(base)
    )


def train(variant, steps=range(STEPS), *, parts=None, rank=None, face="passes", **how):
    """Train with an evaluation and a clip in each step, and return model and optimizer."""
    model, optimizer = parts or build(variant, **how)
    for step in steps:
        x, y = data(step, rank)
        with torch.no_grad():
            model(x)
        if face == "closure":

            def closure(x=x, y=y):
                optimizer.zero_grad()
                loss = cross_entropy(model(x), y)
                loss.backward()
                return loss

            optimizer.step(closure)
            continue
        for x_, y_ in optimizer.passes(x, y):
            cross_entropy(model(x_), y_).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def whole(model):
    return [
        (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone()
        for p in model.parameters()
    ]


def shards(model):
    return [p.to_local().detach().clone() for p in model.parameters()]


def resumed(variant, mesh, rank):
    """Whether saving, loading into a fresh model and going on equals never having stopped."""
    model, optimizer = train(variant, range(3), mesh=mesh, rank=rank)
    weights, saved = shards(model), through_a_file(optimizer.state_dict())
    train(variant, range(3, STEPS), parts=(model, optimizer), rank=rank)
    fresh = build(variant, mesh=mesh)
    with torch.no_grad():
        for p, shard in zip(fresh[0].parameters(), weights, strict=True):
            p.to_local().copy_(shard)
    fresh[1].load_state_dict(saved)
    train(variant, range(3, STEPS), parts=fresh, rank=rank)
    return all(map(torch.equal, shards(model), shards(fresh[0])))


def comes_home(variant, mesh, rank):
    """Whether the weights are back after an exception in a pass, and stay at lr = 0."""
    model, optimizer = build(variant, mesh=mesh, lr=0.0)
    before = shards(model)
    x, y = data(0, rank)
    try:
        for x_, y_ in optimizer.passes(x, y):
            cross_entropy(model(x_), y_).backward()
            raise KeyError
    except KeyError:
        optimizer.zero_grad()
    after_break = all(map(torch.equal, before, shards(model)))
    train(variant, range(2), parts=(model, optimizer), rank=rank)
    return after_break and all(map(torch.equal, before, shards(model)))


def main(rank, directory):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=RANKS
    )
    mesh = init_device_mesh("cpu", (RANKS,))
    found = {}
    for variant in VARIANTS:
        result = {
            "passes": whole(train(variant, mesh=mesh, rank=rank)[0]),
            "kept gathered": whole(train(variant, mesh=mesh, rank=rank, reshard=False)[0]),
            "resumed": resumed(variant, mesh, rank),
            "home": comes_home(variant, mesh, rank),
        }
        if takes_closure(build(variant, mesh=mesh)[1]):
            result["closure"] = whole(train(variant, mesh=mesh, rank=rank, face="closure")[0])
        found[str(variant)] = result
    torch.save(found, directory / f"{rank}.pt")
    distributed.barrier()  # a rank that leaves early may abort the other
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
    os._exit(0)  # threads of gloo may abort an interpreter that winds down
