"""What each of two processes does in `test_ranks.py`, run as a module with RANK DIRECTORY."""

import os
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from flatminima.perturb import ASAM, GLAD, GSAM, NSO, RSAM, SAM, LookSAM, Plain

from .cases import VARIANTS, sgd, through_a_file

SAMPLES = 8
STEPS = 4
WRAPS = {
    "plain": Plain,
    "nso": lambda base: NSO(base, sigma=0.1, num_perturbations=2),
    "nso-shared": lambda base: NSO(base, sigma=0.1, noise_per_rank=False),
    "sam": lambda base: SAM(base, rho=0.1),
    "sam-unsynchronized": lambda base: SAM(base, rho=0.1),
    "sam-shared-unsynchronized": lambda base: SAM(base, rho=0.1, shared_ascent=True),
    "sam-shared": lambda base: SAM(base, rho=0.1, shared_ascent=True),
    "asam-shared": lambda base: ASAM(base, rho=0.5, shared_ascent=True),
    "rsam-shared": lambda base: RSAM(
        base, rho=0.1, sigma=0.1, noise_per_rank=False, shared_ascent=True
    ),
    "gsam": lambda base: GSAM(base, rho=0.1),
    "glad": lambda base: GLAD(base, rho=0.1),
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
            alone = name.endswith("-unsynchronized") and not optimizer.must_synchronize
            with net.no_sync() if alone else nullcontext():
                loss(*(part if batch else (x, y))).backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.stack(moves), [p.detach().clone() for p in model.parameters()]


def counted(variant, rank):
    """What each step of a method costs: (samples forward, backwards, all-reduces)."""
    model = network()
    net = DistributedDataParallel(model)
    forwards, backwards, reduced, steps = [], [], [], []

    def hook(_, bucket):
        reduced.append(1)
        return allreduce_hook(None, bucket)

    net.register_comm_hook(None, hook)
    model.register_forward_pre_hook(lambda _, inputs: forwards.append(len(inputs[0])))
    model[2].register_full_backward_hook(lambda *_: backwards.append(1))
    optimizer = variant.wrap(sgd(model.parameters()))
    for step in range(STEPS):
        x, y = (part.chunk(2)[rank] for part in data(step))
        for x_, y_ in optimizer.passes(x, y):
            with optimizer.synchronizing(net):
                cross_entropy(net(x_), y_).backward()
        optimizer.step()
        optimizer.zero_grad()
        steps.append((sum(forwards), len(backwards), len(reduced)))
        for found in (forwards, backwards, reduced):
            found.clear()
    return steps, [p.detach().clone() for p in model.parameters()]


def accumulated(variant, rank):
    """The weights after steps of two micro-batches, the first under `no_sync()`."""
    model = network()
    net = DistributedDataParallel(model)
    optimizer = variant.wrap(sgd(model.parameters()))
    for step in range(STEPS):
        x, y = (part.chunk(2)[rank] for part in data(step))
        for part, (x_, y_) in enumerate(zip(x.chunk(2), y.chunk(2), strict=True)):
            with nullcontext() if part else net.no_sync():
                for x__, y__ in optimizer.passes(x_, y_):
                    with optimizer.synchronizing(net):
                        (cross_entropy(net(x__), y__) / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach().clone() for p in model.parameters()]


def resumed(variant, rank):
    """Whether saving, loading into a fresh model and going on equals never having stopped."""

    def take(net, optimizer, steps):
        for step in steps:
            x, y = (part.chunk(2)[rank] for part in data(step))
            for x_, y_ in optimizer.passes(x, y):
                cross_entropy(net(x_), y_).backward()
            optimizer.step()
            optimizer.zero_grad()

    model, other = network(), network()
    net, optimizer = DistributedDataParallel(model), variant.wrap(sgd(model.parameters()), seed=3)
    take(net, optimizer, range(2))
    saved = through_a_file([model.state_dict(), optimizer.state_dict()])
    take(net, optimizer, range(2, 5))
    fresh = variant.wrap(sgd(other.parameters()), seed=3)
    other.load_state_dict(saved[0])
    fresh.load_state_dict(saved[1])
    take(DistributedDataParallel(other), fresh, range(2, 5))
    return all(map(torch.equal, model.parameters(), other.parameters()))


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
    by_method = [variant for variant in VARIANTS if variant.name != "plain"]
    costs = {str(variant): counted(variant, rank) for variant in by_method}
    same = {str(variant): resumed(variant, rank) for variant in by_method}
    weights = {str(variant): accumulated(variant, rank) for variant in by_method}
    torch.save((found, costs, same, weights), directory / f"{rank}.pt")
    distributed.barrier()  # a rank that leaves early may abort the other
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
    os._exit(0)  # threads of gloo may abort an interpreter that winds down
