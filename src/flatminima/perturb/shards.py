"""Parameters of which each process holds a part: the DTensors of FSDP2 (`fully_shard`).

Moving and restoring weights is each process's own business, on its shard. Noise is drawn as one
process would draw it, each keeping its shard, and norms are over all shards. `torch.distributed` is
not imported here: where there are DTensors, it is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from flatminima.errors import InputError


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: a view of its shard, or the tensor itself."""
    if not is_sharded(tensor):
        return tensor
    shard: Tensor = tensor.to_local()  # type: ignore[attr-defined]
    return shard


def shard_like(whole: Tensor, tensor: Tensor) -> Tensor:
    """A tensor that every process has in full, cut as `tensor` is; without communication."""
    if not is_sharded(tensor):
        return whole
    cut: Tensor = sys.modules["torch.distributed.tensor"].distribute_tensor(
        whole,
        tensor.device_mesh,  # type: ignore[attr-defined]
        tensor.placements,  # type: ignore[attr-defined]
        src_data_rank=None,
    )
    return cut


def sums(values: Iterable[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Add up what processes found on their shards; one reduction for all tensors of a mesh.

    Args:
        values: (tensor, scalar found on this process's part of it).

    Returns:
        The plain scalars of tensors that are not sharded, and the sums of the others.
    """
    plain: list[Tensor] = []
    of_mesh: dict[Any, list[Tensor]] = {}
    for tensor, value in values:
        if is_sharded(tensor):
            spec = (tensor.device_mesh, tuple(p.is_shard() for p in tensor.placements))  # type: ignore[attr-defined]
            of_mesh.setdefault(spec, []).append(value)
        else:
            plain.append(value)
    for (mesh, sharded), found in of_mesh.items():
        kinds = sys.modules["torch.distributed.tensor"]
        # Along a replicated dimension (HSDP) every process has found the same.
        placements = [kinds.Partial() if s else kinds.Replicate() for s in sharded]
        part = torch.stack([value.to(found[0]) for value in found]).sum()
        plain.append(kinds.DTensor.from_local(part, mesh, placements).full_tensor())
    return plain


def may_shard() -> bool:
    """Whether FSDP2 is loaded at all."""
    return "torch.distributed.fsdp" in sys.modules


def gather_anew(module: nn.Module) -> None:
    """Let FSDP2 drop weights that it gathered before they were moved.

    After a forward pass without a backward (an evaluation) the outermost module keeps them.
    """
    if may_shard():
        sharding = sys.modules["torch.distributed.fsdp"].FSDPModule
        for part in module.modules():
            if isinstance(part, sharding):
                part.reshard()


def check_shards(parameters: Iterable[Tensor]) -> None:
    """Refuse parameters that another library cut up in a way that cannot be moved.

    Raises:
        InputError: FSDP1 flattened them, or DeepSpeed partitioned them.
    """
    for parameter in parameters:
        if getattr(parameter, "_fsdp_flattened", False):
            raise InputError(
                "these parameters are flattened by FSDP1 (FullyShardedDataParallel), which mixes "
                "tensors and hides their shards: use FSDP2, torch.distributed.fsdp.fully_shard"
            )
        if hasattr(parameter, "ds_id"):
            raise InputError(
                "these parameters are partitioned by DeepSpeed ZeRO-3, which hides their values: "
                "use FSDP2, torch.distributed.fsdp.fully_shard, or DistributedDataParallel"
            )
