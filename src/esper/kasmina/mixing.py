"""What a seed may mix: what the host mixes anyway. Measured when a host is wrapped, by perturbation.

First the host alone. One half of an axis of an input is disturbed (:mod:`perturb`), then the other, and the outputs are
compared. The host *keeps apart* what is on either side of the cut where, along some axis of an output, at least as many
indices stay as they were as the untouched half has its share of the input; of indices that neither half moves nothing
can be said. So in a causal model the second half moves no output of the first, and the other way about it does; in a
convolution that looks both ways, each half moves an output or two beyond the cut; where a head pools, all outputs feel
both, and nothing is kept apart. Which axis is time, space or the batch need not be known. Positions that are padded
are kept out where disturbing them moves less than disturbing the same positions does when they are not padded.

Then each site: stand-ins for seeds of one kind each (mixing channels; with all positions; with earlier ones; with other
examples) take the slot, and what the host keeps apart is disturbed again. A kind is allowed where no output moves that
did not move before. A stand-in mixes all that its kind may, with weights that are nowhere zero, so no seed of that kind
mixes more; what a seed really mixes is measured at its birth (:func:`birth.spread`). Whoever keeps keys and values of
earlier positions hands a seed the newest alone, so no seed mixes positions where a cache reaches the site.

All passes are made in evaluation mode, since a batch norm mixes examples in training and none in use.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import torch
from torch import Tensor, nn

from esper.kasmina.layer import Beside, Fit
from esper.kasmina.layout import Layout
from esper.kasmina.perturb import DRAWS, Call, Contrast, Pass, Probe, embeddings_disturbed, halves, paddings
from esper.kasmina.portable import Call as ModuleCall
from esper.kasmina.portable import run_seed
from esper.kasmina.structure import Path, mapped, tensors
from esper.kasmina.tap import Tap
from esper.kasmina.trace import removed
from esper.kasmina.trial import Arguments, ForwardCall, Sample, arguments, device_of, livened, random_kept, trial
from esper.leyline import Positions, SiteMixing

if TYPE_CHECKING:
    from esper.kasmina.growing import GrowingModel

Kind = Literal["channels", "earlier", "all", "examples", "rest"]

Outputs = dict[Path, Tensor]
Moved = dict[tuple[Path, int], Tensor]
"""Per output and axis: the greatest change at each index, relative to the output's greatest value."""


def tolerance(dtype: torch.dtype) -> float:
    """Relative change below which an output counts as unmoved.

    What a model keeps apart in exact arithmetic differs by rounding at most (a causal convolution by FFT: a few eps);
    what it mixes differs by far more, as whole halves are disturbed. Types of low precision get less than their share:
    there, sums of equal shape over equal numbers are the same bit for bit.
    """
    return min(64 * torch.finfo(dtype).eps, 1e-2)


@dataclass(frozen=True, slots=True, eq=False)
class _Apart:
    """A probe that the host keeps apart, and per output and axis the indices that must not move."""

    probe: Probe
    still: dict[tuple[Path, int], Tensor]


@dataclass(frozen=True, slots=True)
class HostMixing:
    """What the host keeps apart; ``padding`` is whether padding mixes in (``None``: none could be made)."""

    halves: tuple[_Apart, ...]
    padded: tuple[_Apart, ...]
    padding: bool | None
    measured: bool
    """Whether any axis of an input could be probed."""


def measure(model: GrowingModel, sample: Sample) -> dict[str, SiteMixing]:
    """Per slot what a seed may mix. All slots must be empty.

    Where nothing can be told, since the host took no disturbed batch or gives single numbers alone, it is the least.
    """
    with trial(model.host), livened(model.host):
        for each in _calls(model.host, sample):
            call = _of_two(model.host, each)
            host = _measure_host(model.host, call)
            if host.measured:
                break
        else:
            return {slot_id: _least(tap.place.layout) for slot_id, tap in model.taps.items()}
        cached = _cached_modules(model.host, call)
        accepts = accepts_cache(model.host)
        return {
            slot_id: _measure_site(_Site(model.host, tap, host, call), accepts, _inside(model.sites[slot_id], cached))
            for slot_id, tap in model.taps.items()
        }


def _least(layout: Fit) -> SiteMixing:
    return SiteMixing(None if layout is Layout.NC or isinstance(layout, Beside) else Positions.NONE)


def _calls(host: nn.Module, sample: Sample) -> Iterator[Call]:
    """What the host itself is called with, where it is called once: a user's way to run it may unpack masks for it, or
    leave a loss of all that it says. Then the batch that the user gives.
    """
    if not isinstance(sample, ForwardCall):
        yield arguments(sample)
        return
    found: list[Arguments] = []

    def look(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        found.append((args, kwargs))

    with removed(host.register_forward_pre_hook(look, with_kwargs=True)), random_kept(device_of(host)):
        sample.forward(host, sample.inputs)
    if len(found) == 1:
        yield found[0]
    yield sample


def _of_two(host: nn.Module, call: Call) -> Call:
    """A lone example is given company, where the host takes that: else nothing could be told about examples."""
    first = next((tensor for _, tensor in tensors(call) if tensor.ndim), None)
    if first is None or first.shape[0] != 1:
        return call
    doubled: Call = mapped(
        call, lambda each: torch.cat([each, each.roll(1, -1)]) if each.ndim and each.shape[0] == 1 else each
    )
    with trial(host):
        return doubled if _outputs(host, Pass(doubled)) else call


def _measure_host(host: nn.Module, call: Call) -> HostMixing:
    runs = _Runs(host)
    pairs = [pair for pair in halves(host, call) if all(runs.moved(probe) for probe in pair)]
    padded: list[_Apart] = []
    padding: bool | None = None
    for masked, contrast in paddings(host, call):
        still = _kept_out(runs, contrast)
        if still is None:
            continue
        padded += [_Apart(contrast.padded, still)] if still else []
        if still or masked:
            padding = padding is not False and not still
    return HostMixing(tuple(_apart(runs, pairs)), tuple(padded), padding, measured=bool(pairs))


def _apart(runs: _Runs, pairs: Sequence[tuple[Probe, Probe]]) -> Iterator[_Apart]:
    """Which halves are kept apart.

    An output axis of the size of an input axis (the batch, say) whose halves never move the same index of it belongs to
    that input axis: of another, such as time, it tells nothing.
    """
    found: list[tuple[Probe, dict[tuple[Path, int], Tensor]]] = []
    split: dict[tuple[Path, int], set[tuple[Path, int, int] | None]] = {}
    for late, early in pairs:
        if not (_still(runs, late, early, draws=1) or _still(runs, early, late, draws=1)):
            continue
        stills = _still(runs, late, early), _still(runs, early, late)
        for key in stills[0].keys() & stills[1].keys():
            size = late.axis[2] if late.axis is not None else 0
            if len(stills[0][key]) == size and not (stills[0][key] & stills[1][key]).any():
                split.setdefault(key, set()).add(late.axis)
        found += zip((late, early), stills, strict=True)
    for probe, still in found:
        own = {key: value for key, value in still.items() if key not in split or probe.axis in split[key]}
        if own:
            yield _Apart(probe, own)


class _Runs:
    """Passes of a host; the outputs of reference passes are kept."""

    def __init__(self, host: nn.Module) -> None:
        self.host = host
        self.references: dict[Pass, Outputs] = {}
        self.changes: dict[Pass, Moved] = {}

    def reference(self, run: Pass) -> Outputs:
        """Outputs of a pass that several probes start from."""
        if run not in self.references:
            self.references[run] = _outputs(self.host, run)
        return self.references[run]

    def moved(self, probe: Probe, draws: int = 1) -> Moved:
        """What the probe moves at most; nothing where the host takes one of its passes not."""
        before, moved = self.reference(probe.reference), Moved()
        for run in probe.changed[:draws]:
            if run not in self.changes:
                self.changes[run] = _moved(before, _outputs(self.host, run))
            change = self.changes[run]
            moved = {key: each.maximum(moved.get(key, each)) for key, each in change.items()}
        return moved


def _moved(before: Outputs, after: Outputs) -> Moved:
    moved: Moved = {}
    for path, tensor in before.items():
        if path in after and after[path].shape == tensor.shape:
            change = _change(tensor, after[path])
            for axis in range(change.ndim):
                others = [each for each in range(change.ndim) if each != axis]
                moved[path, axis] = change.amax(others) if others else change
    return moved


def _outputs(host: nn.Module, run: Pass) -> Outputs:
    with random_kept(device_of(host)), embeddings_disturbed(host, run):
        try:
            output = run.on(host)
        except Exception:  # a batch that a foreign host refuses tells nothing
            return {}
    return {path: tensor.clone() for path, tensor in tensors(output) if tensor.ndim and tensor.is_floating_point()}


def _change(before: Tensor, after: Tensor) -> Tensor:
    """Absolute change over the greatest finite value. What was infinite or NaN and is so still has not changed."""
    same = (before == after) | (before.isnan() & after.isnan())
    finite = before.abs().nan_to_num(0.0, 0.0, 0.0).amax().clamp_min(torch.finfo(before.dtype).tiny)
    change = ((after - before).abs() / finite).nan_to_num(torch.inf, torch.inf, torch.inf)
    return change.masked_fill(same, 0.0)


def _tolerances(runs: _Runs, probe: Probe) -> dict[Path, float]:
    return {path: tolerance(tensor.dtype) for path, tensor in runs.reference(probe.reference).items()}


def _still(runs: _Runs, probe: Probe, other: Probe, draws: int = DRAWS) -> dict[tuple[Path, int], Tensor]:
    """Per output and axis the indices that a half leaves, where they are as many as it leaves of the input.

    Indices that neither half moves say nothing.
    """
    within, others = _tolerances(runs, probe), runs.moved(other, draws)
    found = {}
    for (path, axis), change in runs.moved(probe, draws).items():
        moves = change > within[path]
        alive = moves | (others[path, axis] > within[path])
        still = alive & ~moves
        if moves.any() and still.any() and int(still.sum()) >= int(probe.untouched * int(alive.sum())):
            found[path, axis] = still
    return found


def _kept_out(runs: _Runs, contrast: Contrast) -> dict[tuple[Path, int], Tensor] | None:
    """Per output and axis the indices that padding keeps what is padded from; ``None`` where nothing can be told."""
    within = _tolerances(runs, contrast.padded)
    found: dict[tuple[Path, int], Tensor] = {}
    for draws in (1, DRAWS):
        padded, control = runs.moved(contrast.padded, draws), runs.moved(contrast.control, draws)
        if not padded or not control:
            return None
        found = {}
        for (path, axis), change in padded.items():
            moves, would_move = change > within[path], control[path, axis] > within[path]
            still, alive = ~moves, moves | would_move
            kept = int((still & alive).sum())
            if (would_move & still).any() and kept >= int(contrast.padded.untouched * int(alive.sum())):
                found[path, axis] = still
        if not found:
            break
    return found


@dataclass(frozen=True, slots=True)
class _Site:
    host: nn.Module
    tap: Tap
    kept: HostMixing
    call: Call

    def reads_first_alone(self) -> bool:
        """Whether what stands behind the first position, whatever it is, moves no output."""
        plain = _outputs(self.host, Pass(self.call))
        with _standing_in(self.tap, "rest"):
            moved = _moved(plain, _outputs(self.host, Pass(self.call)))
        within = {path: tolerance(tensor.dtype) for path, tensor in plain.items()}
        return bool(moved) and not any(bool((each > within[path]).any()) for (path, _), each in moved.items())

    def fits(self, kind: Kind, with_padding: bool = True) -> bool:
        """Whether a seed of that kind moves nothing that the host keeps still."""
        return self._fits(_standing_in(self.tap, kind), with_padding)

    def fits_copy(self) -> bool:
        """Whether a copy of the block in front, if there can be one, moves nothing that the host keeps still."""
        block = self.tap.slot.block
        if isinstance(block, str):
            return False
        twin = block.copy()
        with trial(twin), livened(twin):
            return self._fits(_in_place(self.tap, _Copy(twin)))

    def _fits(self, standing_in: AbstractContextManager[None], with_padding: bool = True) -> bool:
        with standing_in:
            runs = _Runs(self.host)
            for each in self.kept.halves + (self.kept.padded if with_padding else ()):
                moved, within = runs.moved(each.probe), _tolerances(runs, each.probe)
                for (path, axis), still in each.still.items():
                    change = moved.get((path, axis))
                    if change is None or change.shape != still.shape or bool((change[still] > within[path]).any()):
                        return False
        return True


def _measure_site(site: _Site, accepts: bool, cached: bool) -> SiteMixing:
    layout = site.tap.place.layout
    if isinstance(layout, Beside):  # positions and examples are mixed as the module there mixes them, and no further
        return SiteMixing(None, channels=site.fits("channels"), padding=site.kept.padding)
    copies = site.fits_copy()
    everything = site.fits("all")
    positions: Positions | None = None
    channels = everything
    if layout is not Layout.NC:
        positions = Positions.ANY if everything else Positions.NONE
        if not everything and layout is not Layout.NCHW and site.fits("earlier"):
            positions, channels = Positions.CAUSAL, True
        cached = cached or (accepts and positions is Positions.CAUSAL and not site.fits("all", with_padding=False))
        positions = Positions.NONE if cached else positions
    return SiteMixing(
        positions=positions,
        channels=channels or site.fits("channels"),
        examples=site.fits("examples"),
        padding=site.kept.padding,
        first_alone=layout is Layout.NTC and positions is not Positions.NONE and site.reads_first_alone(),
        cached=layout is not Layout.NC and cached,
        copies=copies,
    )


class _StandIn:
    """Stands in for a slot with a seed of one kind: adds a mixture, with fixed random weights, to its feature."""

    bare = False
    training = False

    def __init__(self, kind: Kind, layout: Fit) -> None:
        self.kind = kind
        self.layout = layout
        self.drawn: dict[tuple[int, tuple[int, ...]], Tensor] = {}

    def __call__(
        self, h: Tensor, alpha: float | None, x: Tensor | None = None, call: ModuleCall | None = None
    ) -> Tensor:
        if self.kind == "rest":
            return torch.cat([h[:, :1], 1.0 - 3.0 * h[:, 1:]], dim=1)
        axis = self.layout.channel_axis % h.ndim
        channels, positions = h.shape[axis], [each for each in range(1, h.ndim) if each != axis]
        down, up = (self._weights(n, h, (axis,)) for n in range(2))
        mixed = (h * down).sum(axis, keepdim=True) / channels**0.5
        if self.kind in ("all", "earlier") and positions:
            weighted = mixed * self._weights(2, h, positions)
            count = h[:1].numel() // channels
            if self.kind == "all":
                mixed = mixed + weighted.sum(positions, keepdim=True) / count**0.5
            else:
                seen = torch.arange(1, count + 1, device=h.device, dtype=h.dtype)
                seen = seen.reshape([-1 if each in positions else 1 for each in range(h.ndim)])
                mixed = mixed + weighted.cumsum(positions[0]) / seen.sqrt()
        if self.kind == "examples":
            mixed = mixed + mixed.roll(1, 0)
        grown: Tensor = h + up * mixed
        return grown

    def _weights(self, number: int, h: Tensor, axes: Sequence[int]) -> Tensor:
        """Numbers away from zero, of either sign, along ``axes`` of ``h``; the same in every pass."""
        key = number, tuple(h.shape[each] if each in axes else 1 for each in range(h.ndim))
        if key not in self.drawn:
            generator = torch.Generator().manual_seed(number)
            uniform = torch.rand(key[1], generator=generator)
            sign = 2 * torch.randint(0, 2, uniform.shape, generator=generator) - 1
            self.drawn[key] = ((uniform + 0.5) * sign).to(h.device, h.dtype)
        return self.drawn[key]


class _Copy:
    """Stands in for a slot with a copy of the block in front."""

    bare = False
    training = False

    def __init__(self, twin: nn.Module) -> None:
        self.twin = twin

    def __call__(
        self, h: Tensor, alpha: float | None, x: Tensor | None = None, call: ModuleCall | None = None
    ) -> Tensor:
        return run_seed(self.twin, h, call=call)


def _standing_in(tap: Tap, kind: Kind) -> AbstractContextManager[None]:
    return _in_place(tap, _StandIn(kind, tap.place.layout))


@contextmanager
def _in_place(tap: Tap, stand_in: _StandIn | _Copy) -> Iterator[None]:
    slot = tap.slot
    tap.slot = stand_in  # type: ignore[assignment]
    try:
        yield
    finally:
        tap.slot = slot


_CACHE_ARGUMENTS: Final = frozenset(
    {
        "past_key_values",
        "past_key_value",
        "layer_past",
        "past",
        "use_cache",
        "kv_cache",
        "cache",
        "cache_params",
        "inference_params",
        "incremental_state",
    }
)
_STATE_ARGUMENTS: Final = frozenset({"hidden", "hx", "h0", "state", "states"})


def accepts_cache(host: nn.Module) -> bool:
    """Whether the host can be run step by step: some module takes a key-value cache or holds one, or it takes a state.

    Told by the names that such things go by.
    """
    if _parameters(host) & _STATE_ARGUMENTS:
        return True
    return any(
        _parameters(module) & _CACHE_ARGUMENTS or any("kv_cache" in name or name == "cache_k" for name in vars(module))
        for module in host.modules()
    )


def _parameters(module: nn.Module) -> set[str]:
    return set(inspect.signature(module.forward).parameters)


def _cached_modules(host: nn.Module, call: Call) -> set[nn.Module]:
    """Modules that are called with a key-value cache in one pass."""
    found: set[nn.Module] = set()

    def look(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        named = {name for name, value in kwargs.items() if value is not None and not isinstance(value, bool)}
        kinds = [type(value).__name__ for value in (*args, *kwargs.values())]
        if named & _CACHE_ARGUMENTS or any(kind.endswith("Cache") for kind in kinds):
            found.add(module)

    with ExitStack() as stack:
        for module in host.modules():
            stack.enter_context(removed(module.register_forward_pre_hook(look, with_kwargs=True)))
        _outputs(host, Pass(call))
    return found


def _inside(site: nn.Module, cached: set[nn.Module]) -> bool:
    """Whether the site holds, or stands in, a module that was called with a cache."""
    return any(module in cached for module in site.modules()) or any(
        site is child for module in cached for child in module.modules()
    )
