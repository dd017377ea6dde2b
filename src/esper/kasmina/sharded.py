"""Hosts that ``torch.distributed.fsdp.fully_shard`` has spread over processes, and seeds that are spread as they are.

FSDP gathers weights in hooks around a module's forward and backward pass, each once a step and in one order. A host
that grows is run otherwise too: from a slot on, several times before one backward pass, for a seed's gradient alone. So
FSDP rests meanwhile, and a module gathers each weight where it reads it. Parameters stay the shards that they are, for
the optimizer as well; a gradient is the mean over the processes of what each has of its own loss, as FSDP has it. Every
pass is made by all processes together.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeGuard, cast
from weakref import ref

import torch
import torch.distributed as dist
from torch import Tensor, nn

from esper.kasmina.structure import own_modules
from esper.leyline import UsageError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

ONE_DEVICE: Final = "legal: a host that fits on each device, its gradients averaged here, under torchrun"
_ONE_MESH: Final = "legal: fully_shard on one mesh of all processes, of one dimension"
_FSDP: Final = "torch.distributed.fsdp"
_HOOKS: Final = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_state_dict_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
_MARKS: Final = ("__composable_api_state_key", "_is_fsdp_managed_module", "_fsdp_use_orig_params")
"""Attributes that FSDP leaves on a module."""
_SHARD: Final = re.compile(r"\.\.([\dx]+)$")
"""Ends the name of a shard among saved tensors, with the shape of the whole. No module has an empty name, so nothing
else ends like that."""


def is_shard(tensor: Any) -> TypeGuard[DTensor]:
    """Whether a tensor is spread over processes."""
    return type(tensor).__name__ == "DTensor"  # by its name: its module loads slowly


def local(tensor: Tensor) -> Tensor:
    """What this process has of a tensor, without a graph: all of it where it is no shard."""
    return cast("DTensor", tensor.detach()).to_local() if is_shard(tensor) else tensor.detach()


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a tensor, on every process, which all of them ask for; backward gives each its share of the mean of
    their gradients. One that is no shard comes back as it is."""
    if not is_shard(tensor):
        return tensor
    whole: Tensor = _Gathered.apply(tensor)  # type: ignore[no-untyped-call]
    if torch.is_grad_enabled():
        _whole[whole.untyped_storage().data_ptr()] = ref(whole), tensor
    return whole


_whole: Final[dict[int, tuple[ref[Tensor], Tensor]]] = {}
"""Address of a weight that was gathered -> that weight, while it is there, and its shard."""


@contextmanager
def let_go() -> Iterator[None]:
    """Within, a weight that was gathered is not kept for backward, which gathers it again."""

    def pack(tensor: Tensor) -> Any:
        at = tensor.untyped_storage().data_ptr()
        whole, shard = _whole.get(at, (None, None))
        there = None if whole is None else whole()
        if there is None or shard is None or there.untyped_storage().data_ptr() != at:
            return tensor
        return shard, local(shard)._version, (tensor.shape, tensor.stride(), tensor.storage_offset())

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        shard, version, view = packed
        if local(shard)._version != version:
            raise RuntimeError("a weight was written between a pass and its backward, which needs it as it was")
        return torch.as_strided(shard.detach().full_tensor(), *view)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        try:
            yield
        finally:
            _whole.clear()


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shard: DTensor) -> Tensor:
        ctx.mesh, ctx.placements = shard.device_mesh, shard.placements
        return shard.full_tensor()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor, Partial

        mine = DTensor.from_local(gradient.contiguous(), ctx.mesh, [Partial()], run_check=False)
        mean: Tensor = mine.redistribute(placements=ctx.placements) / ctx.mesh.size()
        return mean


@dataclass(frozen=True)
class Sharding:
    """How the parameters of a host are spread: by rows, over all processes of a mesh of one dimension."""

    mesh: DeviceMesh

    def shard(self, module: nn.Module) -> nn.Module:
        """Make a module whose weights are alike on all processes one of shards, which gathers what it reads. In place.

        Raises ``UsageError`` for a parameter without rows.
        """
        made: dict[nn.Parameter, nn.Parameter] = {}
        for owner in module.modules():
            for name, parameter in owner._parameters.items():
                if parameter is None or is_shard(parameter):
                    continue
                if parameter.ndim == 0:
                    raise UsageError(
                        f"parameter {name!r} of a {type(owner).__name__} is a single number, which cannot be sharded;"
                        " legal in a host of fully_shard: parameters of one axis or more, such as [1]"
                    )
                if parameter not in made:
                    made[parameter] = nn.Parameter(self.of(parameter), parameter.requires_grad)
                owner._parameters[name] = made[parameter]
            _gather_in(owner)
        return module

    def of(self, whole: Tensor) -> Tensor:
        """This process's rows of what all have."""
        from torch.distributed.tensor import Shard, distribute_tensor

        there = whole.detach().to(self.mesh.device_type)
        return distribute_tensor(there, self.mesh, [Shard(0)], src_data_rank=None)

    def joined(self, rows: Tensor, shape: Iterable[int]) -> Tensor:
        """The tensor of this ``shape`` of which each process has its rows."""
        from torch.distributed.tensor import DTensor, Shard

        size = torch.Size(shape)
        stride = torch.empty(size, device="meta").stride()
        there = rows.to(self.mesh.device_type)
        return DTensor.from_local(there, self.mesh, [Shard(0)], run_check=False, shape=size, stride=stride)

    def fitted(self, tensors: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same tensors, of those whose target of that name is spread this process's rows."""
        return {
            name: self.of(tensor) if is_shard(targets.get(name)) and not is_shard(tensor) else tensor
            for name, tensor in unmarked_ones(tensors, self).items()
        }

    def sums(self, figures: Tensor) -> Tensor:
        """The sums over the processes of figures of their rows."""
        dist.all_reduce(figures, group=self.mesh.get_group())
        return figures


def as_shards(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What this process has of each; the name of a shard says so, and of what shape the whole is."""
    return {
        f"{name}..{'x'.join(map(str, tensor.shape))}" if is_shard(tensor) else name: local(tensor)
        for name, tensor in tensors.items()
    }


def unmarked(name: str) -> tuple[str, list[int] | None]:
    """A name among saved tensors without what makes it a shard's, and the shape of the whole; ``None`` of no shard."""
    mark = _SHARD.search(name)
    return (name, None) if mark is None else (name[: mark.start()], [int(size) for size in mark[1].split("x")])


def unmarked_ones(tensors: Mapping[str, Tensor], sharding: Sharding | None) -> dict[str, Tensor]:
    """Undo of :func:`as_shards`; what is no shard there is left alone."""
    if sharding is None:
        return dict(tensors)
    found = {}
    for name, tensor in tensors.items():
        plain, shape = unmarked(name)
        found[plain] = tensor if shape is None else sharding.joined(tensor, shape)
    return found


def sharding_in(host: nn.Module) -> Sharding | None:
    """How a host is spread that is :func:`resting`; ``None`` where it is not."""
    shard = next((each for each in host.parameters() if is_shard(each)), None)
    return None if shard is None else Sharding(shard.device_mesh)


@contextmanager
def resting(host: nn.Module) -> Iterator[None]:
    """Within, FSDP does nothing in a host that it has sharded, and its modules gather what they read.

    Afterwards FSDP goes on as before; what has grown meanwhile gathers for itself. Raises ``UsageError`` for a host
    that is spread in another way.
    """
    sharded = [module for module in host.modules() if _is_fsdp(module)]
    if not sharded:
        yield
        return
    _check(host, sharded)
    with ExitStack() as stack:
        for module in sharded:
            cast(Any, module).reshard()
        for module in host.modules():
            for kind in _HOOKS:
                stack.enter_context(_without(module, kind))
            stack.callback(setattr, module, "__class__", type(module))
            if _is_fsdp(module):
                module.__class__ = _origin(type(module))
            _gather_in(module)
        yield


def _is_fsdp(module: nn.Module) -> bool:
    return any(kind.__name__ == "FSDPModule" for kind in type(module).__mro__)


def _origin(kind: type) -> type:
    """The class of a module before FSDP, or gathering, made it another."""
    if "gathers" in vars(kind):
        return _origin(kind.__mro__[1])
    fsdp = kind.__mro__[1]
    return kind.__mro__[2] if fsdp.__name__ == "FSDPModule" else kind


def _check(host: nn.Module, sharded: Iterable[Any]) -> None:
    managed: set[nn.Parameter] = set()
    for module in sharded:
        state = module._get_fsdp_state()
        if len(state._modules) > 1:
            raise UsageError("the model has a fully_shard of several modules at once; legal: fully_shard of each")
        for group in state._fsdp_param_groups:
            policy = group.mp_policy
            if any((policy.param_dtype, policy.reduce_dtype, policy.output_dtype)):
                raise UsageError(
                    "the model's fully_shard has a MixedPrecisionPolicy; legal: one without, under torch.autocast"
                )
            if type(group.offload_policy).__name__ != "OffloadPolicy":
                raise UsageError("the model's fully_shard has a CPUOffloadPolicy; legal: one without")
            managed.update(each.sharded_param for each in group.fsdp_params)
    meshes = {each.device_mesh for each in managed if is_shard(each)}
    for path, module in host.named_modules():
        where = f"of submodule {path!r}" if path else "of the model"
        if module._compiled_call_impl is not None:
            raise UsageError(f"the forward pass {where} is compiled, and the host sharded; legal: one of the two")
        for name, parameter in module._parameters.items():
            if parameter is None or "gathers" in vars(type(module)):
                continue
            if not is_shard(parameter):
                raise UsageError(
                    f"parameter {name!r} {where} is not sharded, and others are; legal: fully_shard around the whole"
                    " model, too"
                )
            rows = [str(each) for each in parameter.placements] == ["S(0)"]
            if parameter not in managed or not rows or len(meshes) > 1:
                raise UsageError(
                    f"parameter {name!r} {where} is spread over devices in another way than by rows, by fully_shard"
                    f" (tensor parallel, HSDP, a placement of its own); {_ONE_MESH}"
                )
    if any(mesh.size() != dist.get_world_size() for mesh in meshes):
        raise UsageError(f"the model is sharded over some of the {dist.get_world_size()} processes; {_ONE_MESH}")


@contextmanager
def _without(module: nn.Module, kind: str) -> Iterator[None]:
    """Within, a module is without FSDP's hooks of a kind; others keep their places among them."""
    hooks: dict[int, Any] = getattr(module, kind)
    with_kwargs: dict[int, bool] = getattr(module, f"{kind}_with_kwargs", {})
    order = list(hooks)
    own = {key: hooks.pop(key) for key in order if _of_fsdp(hooks[key])}
    flags = {key: with_kwargs.pop(key) for key in own if key in with_kwargs}
    try:
        yield
    finally:
        now = dict(hooks)
        hooks.clear()
        hooks.update({key: own.get(key, now.get(key)) for key in order if key in own or key in now})
        hooks.update({key: hook for key, hook in now.items() if key not in hooks})
        with_kwargs.update(flags)


def _of_fsdp(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith(_FSDP)


def _gather_in(module: nn.Module) -> None:
    """Have a module gather those of its own parameters that are shards where it reads them."""
    names = frozenset(name for name, each in module._parameters.items() if is_shard(each))
    if names and "gathers" not in vars(type(module)):
        module.__class__ = _gathering(cast(Any, type(module)), names)


@functools.cache
def _gathering(kind: type, names: frozenset[str]) -> type:
    def reader(name: str) -> property:
        return property(lambda module: gathered(module._parameters[name]))

    own = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__, "gathers": names}
    return type(kind.__name__, (kind,), own | {name: reader(name) for name in names})


@contextmanager
def put_together(model: nn.Module) -> Iterator[None]:
    """Within, the process with rank 0 has all of ``model``, on the CPU, where it needs no other to run it; the others
    have what they had. All of them enter.
    """
    places: list[dict[str, Any]] = [kind for each in model.modules() for kind in (each._parameters, each._buffers)]
    held = [(place, name, tensor) for place in places for name, tensor in place.items() if tensor is not None]
    whole: dict[Tensor, Tensor] = {}
    first = dist.get_rank() == 0
    for tensor in dict.fromkeys(tensor for _, _, tensor in held):
        with torch.no_grad():
            all_of_it = gathered(tensor)
        if first:
            here = all_of_it.detach().to("cpu")
            learns = isinstance(tensor, nn.Parameter)
            whole[tensor] = nn.Parameter(here, tensor.requires_grad) if learns else here
    try:
        for place, name, tensor in held if first else ():
            place[name] = whole[tensor]
        yield
    finally:
        for place, name, tensor in held if first else ():
            place[name] = tensor


def plainly_copied(module: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy in which nothing is FSDP's, and nothing gathers. Of a model that was :func:`put_together`."""
    memo = {} if memo is None else memo
    for each in own_modules(module):
        memo.update({id(value): {} for name, value in vars(each).items() if name.startswith(_MARKS[0])})
    twin = copy.deepcopy(module, memo)
    for each in own_modules(twin):
        each.__class__ = _origin(type(each))
        for name in [name for name in vars(each) if name.startswith(_MARKS)]:
            del each.__dict__[name]
    return twin


def norms(tensors: Iterable[Tensor], of: Callable[[list[Tensor]], list[Tensor]]) -> list[Tensor]:
    """Euclidean norms ``of`` tensors, those that are spread put together from the norms of their rows."""
    tensors = list(tensors)
    found = of([local(each) for each in tensors])
    spread = [number for number, each in enumerate(tensors) if is_shard(each)]
    if spread:
        squares = torch.stack([found[number].double().square() for number in spread])
        shard = tensors[spread[0]]
        assert is_shard(shard)
        sums = Sharding(shard.device_mesh).sums(squares).sqrt()
        for number, norm in zip(spread, sums, strict=True):
            found[number] = norm.to(found[number].dtype)
    return found
