"""Two processes: one all-reduce a step under DDP, and FSDP2 equal to one process.

Starts its two processes itself, over gloo on the CPU; in earnest: torchrun --nproc_per_node 2 ...
"""

import os
import tempfile

import torch
from torch import distributed
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import flatminima

PROCESSES, STEPS = 2, 5
x = torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
y = torch.randint(0, 3, (64,), generator=torch.Generator().manual_seed(1))


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(10, 32), torch.nn.GELU(), torch.nn.Linear(32, 3))


def distributed_data_parallel(method: str, rank: int, **strength: float) -> float:
    """All-reduces a step."""
    model = network()
    net = DistributedDataParallel(model)
    reduced = []

    def hook(state, bucket):
        reduced.append(bucket)
        return allreduce_hook(state, bucket)

    net.register_comm_hook(None, hook)
    optimizer = flatminima.make(method, torch.optim.AdamW(model.parameters(), lr=1e-2), **strength)
    x_, y_ = x.chunk(PROCESSES)[rank], y.chunk(PROCESSES)[rank]
    for _ in range(STEPS):
        for _ in optimizer.passes():
            with optimizer.synchronizing(net):  # only the last pass needs the other process
                cross_entropy(net(x_), y_).backward()
        optimizer.step()
        optimizer.zero_grad()
    return len(reduced) / STEPS


def train(model: torch.nn.Module, x_: torch.Tensor, y_: torch.Tensor) -> torch.nn.Module:
    base = torch.optim.AdamW(model.parameters(), lr=1e-2)
    optimizer = flatminima.NSO(base, sigma=0.05, seed=0, noise_per_rank=False)
    for _ in range(STEPS):
        for _ in optimizer.passes():
            cross_entropy(model(x_), y_).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def fully_sharded(rank: int) -> float:
    """The largest difference of a weight to training in one process on the whole batch."""
    model = network()
    fully_shard(model, mesh=init_device_mesh("cpu", (PROCESSES,)))
    train(model, x.chunk(PROCESSES)[rank], y.chunk(PROCESSES)[rank])
    alone = train(network(), x, y)
    pairs = zip(model.parameters(), alone.parameters(), strict=True)
    return max((ours.full_tensor() - one).abs().max().item() for ours, one in pairs)


def process(rank: int, meeting: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=PROCESSES
    )
    counts = {
        "nso": distributed_data_parallel("nso", rank, sigma=0.05),
        "sam": distributed_data_parallel("sam", rank, rho=0.05),
    }
    difference = fully_sharded(rank)
    if rank == 0:
        for method, count in counts.items():
            print(f"DDP, {method}: {count:g} all-reduce a step for its two gradients")
        print(f"FSDP2, nso: weights differ from those of one process by {difference:.1e} at most")
    assert set(counts.values()) == {1.0}
    assert difference < 1e-4
    distributed.barrier()
    distributed.destroy_process_group()
    os._exit(0)  # threads of gloo may abort an interpreter that winds down


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(process, (os.path.join(folder, "meeting"),), nprocs=PROCESSES)
