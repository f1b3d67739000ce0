"""Sharded weights (FSDP2 through accelerate): every process keeps a part of each parameter."""

import copy
import os
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Shards", "local_part", "part_like", "sharded_like", "shards_of"]

_LEAST_TORCH = "2.9"
"""The first whose distributed checkpoints can be safetensors."""


class Shards:
    """Cuts nets of one kind into shards, and puts them together again.

    Args:
        accelerator: with a plugin for FSDP2.
        net: a whole net; it is not changed.
    """

    def __init__(self, accelerator: "Accelerator", net: nn.Module) -> None:
        self.accelerator = accelerator
        self.device = next(net.parameters()).device
        empty = {id(p): nn.Parameter(p.to("meta"), p.requires_grad) for p in net.parameters()}
        self.form = copy.deepcopy(net, empty)
        """The net with its buffers and without its parameters, which take no memory."""

    def cut(self, net: nn.Module) -> nn.Module:
        """Return the same net, of whose parameters this process has its shards alone; all must call this."""
        from accelerate.utils.fsdp_utils import fsdp2_prepare_model

        net.register_forward_hook(_owned)
        sharded: nn.Module = fsdp2_prepare_model(self.accelerator, net)
        return sharded

    def copied(self, sharded: nn.Module) -> nn.Module:
        """Return another sharded net with the same weights; a sharded net cannot be copied otherwise."""
        made = self.cut(self._whole_form())
        with torch.no_grad():
            for into, value in zip(made.state_dict().values(), sharded.state_dict().values(), strict=True):
                local_part(into).copy_(local_part(value))
        return made

    def whole(self, sharded: nn.Module) -> nn.Module:
        """Return an ordinary net with the same weights, for evaluation; all processes must call this."""
        made = self._whole_form()
        with torch.no_grad():
            for into, value in zip(made.state_dict().values(), sharded.state_dict().values(), strict=True):
                into.copy_(value.full_tensor() if hasattr(value, "full_tensor") else value)
        return made.eval().requires_grad_(False)

    def _whole_form(self) -> nn.Module:
        """Return a net with parameters of any value."""
        parameters = {
            id(p): nn.Parameter(torch.empty_like(p, device=self.device), p.requires_grad)
            for p in self.form.parameters()
        }
        return copy.deepcopy(self.form, parameters)


def _owned(module: nn.Module, inputs: Any, prediction: Tensor) -> Tensor:
    """Return a prediction with memory of its own: FSDP marks it to gather weights again, and a view loses the mark."""
    return prediction.clone() if prediction._base is not None else prediction


def shards_of(net: nn.Module, accelerator: "Accelerator | None") -> Shards | None:
    """Return how the weights of a net are shared out; None where every process keeps them whole.

    Accelerate knows FSDP on accelerators alone. On a CPU what it would set there is set here.

    Raises:
        ValueError: FSDP of version 1, or a torch that is too old.
    """
    from_environment = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if accelerator is None or accelerator.num_processes == 1:
        return None
    state = accelerator.state
    if from_environment and accelerator.device.type == "cpu":
        from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

        if getattr(state, "fsdp_plugin", None) is None:
            state.fsdp_plugin = FullyShardedDataParallelPlugin()
        state.distributed_type = DistributedType.FSDP
    if state.distributed_type != "FSDP":
        return None
    check_sharding(state.fsdp_plugin, torch.__version__)
    state.fsdp_plugin.cpu_ram_efficient_loading = False  # every process has built the net, and it is the first one's:
    for tensor in (*net.parameters(), *net.buffers()):
        torch.distributed.broadcast(tensor.detach(), 0)
    return Shards(accelerator, net)


def check_sharding(plugin: Any, version: str) -> None:
    """Refuse what cannot be trained with shards.

    Args:
        plugin: of accelerate.
        version: of torch.

    Raises:
        ValueError: FSDP of version 1, or a torch that is too old.
    """
    if plugin.fsdp_version != 2:
        raise ValueError(
            f"accelerate is configured for FSDP version {plugin.fsdp_version}; this library shards weights with "
            "version 2: `accelerate launch --use_fsdp --fsdp_version 2`, or FSDP_VERSION=2"
        )
    if torch.torch_version.TorchVersion(version) < _LEAST_TORCH:
        raise ValueError(
            f"torch is {version}; sharded weights (FSDP2) need torch >= {_LEAST_TORCH}, whose distributed checkpoints "
            "can be safetensors: upgrade torch, or leave --use_fsdp away"
        )


def local_part(tensor: Tensor) -> Tensor:
    """Return the part of a sharded tensor that this process keeps, in the same memory; another tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def part_like(value: Tensor, kept: Any) -> Tensor:
    """Return the part of a value that a process keeps of another tensor of the same shape."""
    if hasattr(value, "to_local") or not hasattr(kept, "placements"):
        return local_part(value)
    mesh = kept.device_mesh
    for size, place, placement in zip(mesh.shape, mesh.get_coordinate(), kept.placements, strict=True):
        if placement.is_shard():
            parts = value.chunk(size, placement.dim)
            value = parts[place] if place < len(parts) else value.narrow(placement.dim, 0, 0)
    return value


def sharded_like(value: Tensor, kept: Any) -> Tensor:
    """Return a value of the same shape as another tensor, sharded as it is."""
    if not hasattr(kept, "placements"):
        return value
    from torch.distributed.tensor import DTensor

    part = part_like(value, kept).to(local_part(kept).device)
    return DTensor.from_local(
        part, kept.device_mesh, kept.placements, run_check=False, shape=kept.shape, stride=kept.stride()
    )
