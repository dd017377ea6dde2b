"""A model in ``DistributedDataParallel``, as training frameworks give it: it grows inside of its wrapper.

The wrapper's reducer knows neither seeds nor second passes, so that it keeps quiet while the model grows, and gradients
are averaged here (:mod:`esper.tolaria.ranks`). Afterwards it is made anew for the parameters that the model then has.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parallel import DistributedDataParallel

from esper.leyline import UsageError
from esper.tolaria.ranks import started

_SETTINGS: Final = (
    "device_ids",
    "output_device",
    "dim",
    "process_group",
    "find_unused_parameters",
    "gradient_as_bucket_view",
    "static_graph",
    "skip_all_reduce_unused_params",
    "batched_grad_copy",
    "forward_sync_buffers",
)
"""What a wrapper was made with, under the names of its arguments."""
_FLAGS: Final = ("require_backward_grad_sync", "require_forward_param_sync")


def unwrapped(model: nn.Module) -> tuple[nn.Module, DistributedDataParallel | None]:
    """The model that grows, and its wrapper. Raises ``UsageError`` for a wrapper that does more than to average."""
    if not isinstance(model, DistributedDataParallel):
        return model, None
    if (odd := _odd(model)) is not None:
        raise UsageError(
            f"the model's DistributedDataParallel has {odd}, and gradients are averaged here as they are, over all"
            " ranks; legal: one without (autocast and GradScaler are heeded)"
        )
    return model.module, model


def _odd(wrapper: DistributedDataParallel) -> str | None:
    if wrapper.mixed_precision is not None:
        return "mixed_precision"
    if wrapper._comm_hooks or hasattr(wrapper, "buffer_hook"):
        return "a communication hook"
    if wrapper._delay_all_reduce_params:
        return "delay_all_reduce_named_params"
    return "a process_group of its own" if wrapper.process_group.size() != started() else None


@contextmanager
def quiet(wrapper: DistributedDataParallel | None) -> Iterator[None]:
    """Within, the wrapper passes on what it is called with and exchanges nothing.

    Afterwards it averages what the model has then; all ranks leave together. Where an error is what ends it, others may
    be gone: the wrapper then says when it is called that it is of no use any more.
    """
    if wrapper is None:
        yield
        return
    before = {name: getattr(wrapper, name) for name in _FLAGS}
    held = list(wrapper.module.parameters())
    vars(wrapper).update(dict.fromkeys(_FLAGS, False))
    try:
        yield
    except BaseException:
        vars(wrapper).update(before)
        if _others(held, wrapper.module):
            vars(wrapper)["forward"] = _outgrown
        raise
    if _others(held, wrapper.module):
        _make_anew(wrapper)
    vars(wrapper).update(before)


def _others(held: list[nn.Parameter], module: nn.Module) -> bool:
    """Whether the module has other parameters than those."""
    return list(map(id, held)) != list(map(id, module.parameters()))


def _outgrown(*args: Any, **kwargs: Any) -> Any:
    raise UsageError(
        "the model has grown since it was wrapped, and its DistributedDataParallel would not average what grew; wrap"
        " the module inside anew"
    )


def _make_anew(wrapper: DistributedDataParallel) -> None:
    """The same object with a reducer for the parameters that the module has now, and what else it had."""
    settings = {name: getattr(wrapper, name) for name in _SETTINGS}
    if not wrapper.bucket_bytes_cap_default:
        settings["bucket_cap_mb"] = wrapper.bucket_bytes_cap / 2**20
    kept = {name: value for name, value in vars(wrapper).items() if "_hooks" in name and name != "_accum_grad_hooks"}
    kept["training"] = wrapper.training
    DistributedDataParallel.__init__(wrapper, wrapper.module, **settings)
    vars(wrapper).update(kept)


@contextmanager
def no_wrapper_called() -> Iterator[None]:
    """Raise ``UsageError`` where a wrapper is called within: which one cannot be known beforehand, so it would average
    what it knows of, and exchange buffers in passes that not all ranks make."""

    def look(module: nn.Module, args: Any) -> None:
        if isinstance(module, DistributedDataParallel):
            raise UsageError(
                "forward calls a DistributedDataParallel, which is not the model that was given; give the wrapped"
                " model itself, and let forward call what it gets"
            )

    if started() == 1:
        yield
        return
    handle = register_module_forward_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()
