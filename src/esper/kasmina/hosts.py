"""Hosts that cannot be grown as they come, each with what its user can do."""

from __future__ import annotations

from typing import Final

import torch
from torch import nn

from esper.kasmina.sharded import ONE_DEVICE, is_shard
from esper.kasmina.tap import Tap, tap_of
from esper.kasmina.trial import Sample, invoke, modes_kept
from esper.leyline import UsageError

_ADVICE: Final = {
    "DistributedDataParallel": "legal: one around the whole model, whose gradients are averaged here",
    "DataParallel": "give the module inside, {its}.module, which is then trained on one device",
    "FullyShardedDataParallel": "legal: fully_shard of torch.distributed.fsdp instead",
    "FSDPModule": ONE_DEVICE,
}
"""By the kind of a host that spreads its work over devices."""


def check_host(host: nn.Module) -> None:
    """Raise ``UsageError`` for a host that is scripted, wrapped by ``torch.compile`` or for distribution, lazy, or has
    slots already.
    """
    for name, module in host.named_modules():
        where = f"submodule {name!r}" if name else "the model"
        kinds = {kind.__name__ for kind in type(module).__mro__}
        if isinstance(module, torch.jit.ScriptModule):
            raise UsageError(f"{where} is scripted, which takes no hooks; give the module that it was made from")
        if "OptimizedModule" in kinds:
            inner = "the module inside, its _orig_mod" if name else "the module inside, model._orig_mod"
            raise UsageError(
                f"{where} is what torch.compile made; give {inner}, and compile it in place with its compile() method,"
                " before or after"
            )
        for kind in kinds & _ADVICE.keys():
            advice = _ADVICE[kind].format(its="its" if name else "model")
            raise UsageError(f"{where} is a {type(module).__name__}, which spreads its work over devices; {advice}")
        if "GrowingModel" in kinds or isinstance(tap_of(module), Tap):
            raise UsageError(f"{where} is being grown already; leave that block first, or give another copy")
        for parameter, tensor in module.named_parameters(recurse=False):
            if is_shard(tensor) and parameter not in vars(type(module)).get("gathers", ()):
                raise UsageError(
                    f"parameter {parameter!r} of {where} is spread over devices (DTensor: tensor parallel or"
                    f" fully_shard); {ONE_DEVICE}"
                )
        if _is_lazy(module):
            raise UsageError(
                f"{where} is lazy and has no weights yet; call the model on one batch before you make its optimizer"
            )


def fill_lazy(host: nn.Module, sample: Sample) -> None:
    """Let layers that learn their shapes from a first batch have one; optimizers that hold their parameters hold them
    afterwards.
    """
    if any(_is_lazy(module) for module in host.modules()):
        with torch.no_grad(), modes_kept(host):
            invoke(host.eval(), sample)


def _is_lazy(module: nn.Module) -> bool:
    tensors = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return any(nn.parameter.is_lazy(tensor) for tensor in tensors)
