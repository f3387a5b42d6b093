"""What each process does in `test_data_parallel.py`, run as a module with RANK DIRECTORY."""

import sys
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from flatminima.errors import InputError
from flatminima.measure import (
    EmpiricalFisher,
    GaussNewton,
    Hessian,
    hessian_trace,
    top_eigenvalues,
)

from .cases import cross_entropy, mlp, split

SIZES = (9, 4, 11)
OF_RANK = ([0, 2], [1])
"""Which batches each rank has."""


def batches(rank=None):
    everything = split(mlp()[1], *SIZES)
    return everything if rank is None else [everything[i] for i in OF_RANK[rank]]


def vectors():
    return torch.randn(57, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def operators(model, rank=None, **options):
    own = batches(rank)
    return {
        "autograd": Hessian(model, cross_entropy, own, backend="autograd", **options),
        "forward": Hessian(model, cross_entropy, own, backend="forward", **options),
        "differences": Hessian(model, cross_entropy, own, backend="differences", **options),
        "gauss-newton": GaussNewton(model, cross_entropy, own, **options),
        "fisher": EmpiricalFisher(model, cross_entropy, own, **options),
    }


def measured(model, rank=None, **options):
    """Products, loss, samples of each operator, and what estimators say."""
    found = {}
    for name, operator in operators(model, rank, **options).items():
        products = operator.matmat(vectors())
        found[name] = (products, operator.loss, operator.samples, operator.gradients)
    operator = Hessian(model, cross_entropy, batches(rank), **options)
    trace = hessian_trace(operator, probes=20, method="hutchinson")
    top = top_eigenvalues(operator, 2)
    return found, (trace.value, trace.stderr, trace.data_stderr), top.values


def reductions(model, rank):
    """How many all-reduces three products of five vectors take."""
    counted, original = [], distributed.all_reduce

    def count(*args, **kwargs):
        counted.append(1)
        return original(*args, **kwargs)

    operator = Hessian(model, cross_entropy, batches(rank), data_parallel=True)
    distributed.all_reduce = count
    try:
        for _ in range(3):
            operator.matmat(vectors())
    finally:
        distributed.all_reduce = original
    return len(counted)


def message(make, v):
    try:
        make().matmat(v)
    except InputError as error:
        return str(error)
    return None


def refused(rank):
    """What each rank says where one of them cannot go on, or has something else."""
    model, _ = mlp()
    own = batches(rank)

    def hessian(model=model, own=own):
        return Hessian(model, cross_entropy, own, data_parallel=True)

    def other_weights():
        other, _ = mlp()
        with torch.no_grad():
            other[0].weight.mul_(1 + rank)
        return hessian(other)

    def bad_batch():
        bad = [(x.clone(), y) for x, y in own]
        bad[-1][0][0] = float("nan") if rank else 1.0
        return hessian(own=bad)

    other_vectors = torch.randn(57, 5, generator=torch.Generator().manual_seed(rank))
    return {
        "weights": message(other_weights, vectors()),
        "vectors": message(hessian, other_vectors),
        "nan": message(bad_batch, vectors()),
        "empty": message(lambda: hessian(own=own if rank == 0 else []), vectors()),
        "none": message(hessian, vectors()),
    }


def main(rank, directory):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=2
    )
    model, _ = mlp()
    found = measured(model, rank, data_parallel=True)
    wrapped = measured(DistributedDataParallel(mlp()[0]), rank, data_parallel=True)
    single = Hessian(
        nn.Sequential(*model).float(),
        cross_entropy,
        [(x.float(), y) for x, y in batches(rank)],
        data_parallel=True,
    )
    products = single.matmat(vectors().float())
    model.double()
    torch.save(
        {
            "found": found,
            "wrapped": wrapped,
            "float32": (products, single.loss, single.samples),
            "reductions": reductions(mlp()[0], rank),
            "refused": refused(rank),
        },
        directory / f"{rank}.pt",
    )
    distributed.barrier()  # a rank that leaves early may abort the other
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
