"""Sharing the work in front of a slot between passes that differ only from there on.

During one pass the outputs of the maximal submodules that have returned by the time a slot's site has are kept. In a
replay from that slot they answer with what they gave, and only the code between and behind them runs again. That this
gives the bits of a whole pass is proven at wrap, slot by slot, with noise put in at the slot; where it does not hold,
whole passes are made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from esper.kasmina import growable
from esper.kasmina.checkpointing import CannotAnswerAgain, computed_anew, reentrant_ones_replaced
from esper.kasmina.compiled import as_written
from esper.kasmina.macs import counted
from esper.kasmina.portable import Call
from esper.kasmina.precision import Autocast
from esper.kasmina.probe import NOISES
from esper.kasmina.repeating import Block
from esper.kasmina.structure import mapped, same, tensors, version
from esper.kasmina.tap import KEEPS, Forward, Tap, substituted, untapped_forward
from esper.kasmina.trial import Sample, buffers_kept, device_of, livened, mode, random_kept, trial
from esper.leyline import AlphaConfig, UsageError

if TYPE_CHECKING:
    from esper.kasmina.growing import GrowingModel


class Tape:
    """What the modules in front of some slots gave in one pass. It holds no part of the pass's autograd graph."""

    def __init__(self, model: GrowingModel, slot_ids: Iterable[str]) -> None:
        self.model = model
        self.slot_ids = tuple(slot_ids)
        self.autocast = Autocast.now(device_of(model))
        """The state in which the pass was made, and is made again."""
        self.again: Callable[[], Any] | None = None
        """Runs the pass again, with the same arguments; ``None`` until there was one."""
        self._taken: dict[nn.Module, list[Any]] = {}
        self._grown: dict[nn.Module, Any] = {}
        self._versions: dict[str, list[tuple[Tensor, int]]] = {}

    def shared(self, slot_id: str) -> bool:
        """Whether a replay from the slot needs no whole pass."""
        return (
            self.model.sharing[slot_id]
            and slot_id in self._versions
            and all(version(tensor) == seen for tensor, seen in self._versions[slot_id])
        )

    def replay(self, slot_id: str, config: AlphaConfig | None = None) -> Any:
        """The model's output with the alphas of ``config``, which may name this slot and later ones.

        A whole pass where sharing was not proven, where the recorded pass did not reach the slot, or where a kept
        tensor was written since. Raises ``UsageError`` when nothing was recorded.
        """
        with self.replaying(slot_id, config) as again:
            return again()

    @contextmanager
    def replaying(
        self, slot_id: str, config: AlphaConfig | None = None, whole: bool = False
    ) -> Iterator[Callable[[], Any]]:
        """Within, :meth:`replay` by a call, and a backward pass in which checkpoints compute parts of it anew.

        With ``whole`` nothing is shared. A backward pass raises :class:`CannotAnswerAgain` where that is needed.
        """
        again = self.again
        if again is None:
            raise UsageError("nothing was recorded: call the model inside `with model.record(...)`")

        def run() -> Any:
            with self.autocast.entered():
                return again()

        start = (slot_id, self) if not whole and self.shared(slot_id) else None
        with self.model.alphas(config or {}), running(self.model, start, None):
            yield run

    def recorders(self, players: dict[nn.Module, Forward]) -> dict[nn.Module, Forward]:
        """A stand-in for each module in front of the slots that keeps what it, or its player, gives."""
        modules = dict.fromkeys(module for slot_id in self.slot_ids for module, _ in self.model.cuts[slot_id])
        return {module: self._recorder(module, players.get(module) or untapped_forward(module)) for module in modules}

    def _recorder(self, module: nn.Module, inner: Forward) -> Forward:
        taken: list[Any] = []
        self._taken[module] = taken
        slot_id = next((each for each in self.slot_ids if self.model.sites[each] is module), None)

        def keep(output: Any) -> None:
            taken.append(mapped(output, Tensor.detach))
            if slot_id is not None:
                kept = [tensor for outputs in self._taken.values() for _, tensor in tensors(outputs)]
                self._versions[slot_id] = [(tensor, version(tensor)) for tensor in kept]

        def forward(*args: Any, **kwargs: Any) -> Any:
            output = inner(*args, **kwargs)
            keep(output)
            return output

        setattr(forward, KEEPS, keep)
        return forward

    def listener(self, module: nn.Module) -> Callable[[Any], None]:
        """Keeps what a slot made of the module's output."""

        def hear(output: Any) -> None:
            self._grown[module] = mapped(output, Tensor.detach)

        return hear

    def players(self, slot_id: str) -> dict[nn.Module, Forward]:
        """A stand-in for each module in front of the slot that gives what it gave, call by call."""
        own = self.model.sites[slot_id]
        return {
            module: _player(
                [self._grown[module]] if module is not own and module in self._grown else self._taken[module][:count],
                untapped_forward(module),
            )
            for module, count in self.model.cuts[slot_id]
        }


def _player(outputs: Sequence[Any], inner: Forward) -> Forward:
    calls = 0

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        if computed_anew():
            if calls > 1:
                raise CannotAnswerAgain
        else:
            calls += 1
        return mapped(outputs[calls - 1], lambda tensor: tensor) if calls <= len(outputs) else inner(*args, **kwargs)

    return forward


@contextmanager
def running(model: GrowingModel, start: tuple[str, Tape] | None, onto: Tape | None) -> Iterator[None]:
    """Within, a pass begins behind the slot of ``start`` with what its tape holds, and is recorded ``onto`` a tape."""
    players = start[1].players(start[0]) if start else {}
    stand_ins = players if onto is None else players | onto.recorders(players)
    before = [(tap, tap.muted, tap.listener) for tap in model.taps.values()]
    outer, model.replaying = model.replaying, start is not None
    try:
        if start:
            for slot_id in takewhile(lambda each: each != start[0], model.taps):
                model.taps[slot_id].muted = True
        if onto is not None:
            for slot_id, tap in model.taps.items():
                tap.listener = onto.listener(model.sites[slot_id])
        with ExitStack() as stack:
            if stand_ins:
                stack.enter_context(as_written())
                stack.enter_context(substituted(stand_ins))
            yield
    finally:
        model.replaying = outer
        for tap, muted, listener in before:
            tap.muted, tap.listener = muted, listener


Take = Callable[[int, Any], None]
"""``(number of the configuration, output)``"""


@dataclass(frozen=True)
class ConfigCost:
    """What it took to run one batch under some configurations.

    ``passes`` counts whole passes of the first configuration: every run's multiply-accumulates, measured at wrap for
    the host and on first use for a seed, over those of that pass (elementwise work is not in it). Where the host does
    none, every run counts as one pass. ``runs`` is the number of runs, shared or whole; ``shared`` says whether any
    run began behind a slot.
    """

    passes: float
    runs: int
    shared: bool


def evaluate_configs(model: GrowingModel, sample: Sample, configs: Sequence[AlphaConfig], take: Take) -> ConfigCost:
    """Give ``take`` the model's output on ``sample`` under each configuration of alphas, bit-equal to a whole pass.

    The first configuration comes first, the others in any order; no output is kept. Evaluation mode, no gradients.
    Every pass sees the same random numbers. The configurations are walked as a tree over the slots in network order, so
    that each shares the longest possible beginning with one before it. Nothing in the model is changed, also when a
    pass raises.
    """
    for config in configs:
        model.check_slots(config)
    live = [slot_id for slot_id, slot in model.slots.items() if slot.seed is not None]
    asked: dict[Key, list[int]] = {}
    for i, config in enumerate(configs):
        asked.setdefault(tuple(config.get(slot_id) for slot_id in live), []).append(i)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(reentrant_ones_replaced())
        stack.enter_context(as_written())
        if any(module.training for module in model.modules()):
            stack.enter_context(mode(model, False))
        if model.writes_buffers:
            stack.enter_context(buffers_kept(model.modules()))
        walk = _Walk(model, partial(model.run, sample), live, lambda key, output: _give(take, asked[key], output))
        if asked:
            walk.solve(list(asked), None, {})
    return ConfigCost(walk.passes, len(walk.starts), any(start is not None for _, start in walk.starts))


def _give(take: Take, numbers: Iterable[int], output: Any) -> None:
    for i in numbers:
        take(i, output)


Key = tuple[float | None, ...]
"""Alpha of the newest seed of each live slot, in network order; ``None`` is the slot's own."""


class _Walk:
    """Depth-first walk over the tree of configurations."""

    def __init__(
        self, model: GrowingModel, call: Callable[[], Any], live: list[str], take: Callable[[Key, Any], None]
    ) -> None:
        self.model = model
        self.call = call
        self.live = live
        self.take = take
        self.device = device_of(model)
        self.starts: list[tuple[Key, str | None]] = []

    def solve(self, keys: list[Key], start: str | None, tapes: dict[str, Tape]) -> None:
        """Run ``keys``, which agree before slot ``start``; ``tapes`` holds a recorded pass per slot to begin at."""
        first, *others = keys
        branches: dict[int, list[Key]] = {}
        for key in others:
            branches.setdefault(self._divergence(first, key), []).append(key)
        restarts = {depth: self._restart(depth) for depth in branches}
        tape = Tape(self.model, {slot_id for slot_id in restarts.values() if slot_id is not None})
        self._run(first, start, tapes, tape)
        tapes = tapes | {slot_id: tape for slot_id in tape.slot_ids if tape.shared(slot_id)}
        for depth in sorted(branches, reverse=True):
            restart = restarts[depth]
            usable = restart is not None and restart in tapes and tapes[restart].shared(restart)
            self.solve(branches[depth], restart if usable else None, tapes)

    def _run(self, key: Key, start: str | None, tapes: dict[str, Tape], onto: Tape) -> None:
        config = {slot_id: alpha for slot_id, alpha in zip(self.live, key, strict=True) if alpha is not None}
        with (
            random_kept(self.device),
            self.model.alphas(config),
            running(self.model, None if start is None else (start, tapes[start]), onto if onto.slot_ids else None),
        ):
            output = self.call()
        self.starts.append((key, start))
        self.take(key, output)

    @staticmethod
    def _divergence(one: Key, other: Key) -> int:
        return next(depth for depth, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)

    def _restart(self, depth: int) -> str | None:
        """The last slot up to ``depth`` behind which a pass may begin."""
        return next((slot_id for slot_id in reversed(self.live[: depth + 1]) if self.model.sharing[slot_id]), None)

    @property
    def passes(self) -> float:
        """Work done, in whole passes of the first configuration."""
        if not self.starts:
            return 0.0
        whole = self._macs(self.starts[0][0], None)
        if self.model.macs == 0 or whole == 0:
            return float(len(self.starts))
        return sum(self._macs(key, start) for key, start in self.starts) / whole

    def _macs(self, key: Key, start: str | None) -> int:
        total = self.model.macs if start is None else self.model.macs_behind[start]
        began, alphas = start is None, dict(zip(self.live, key, strict=True))
        for slot_id, slot in self.model.slots.items():
            began = began or slot_id == start
            for part in slot.parts() if began else ():
                alpha = alphas.get(slot_id) if part.seed is slot.seed else None
                if (part.alpha if alpha is None else alpha) != 0.0:
                    total += seed_macs(self.model, slot_id, part.seed)
        return total


def seed_macs(model: GrowingModel, slot_id: str, seed: nn.Module) -> int:
    """Multiply-accumulates of a seed of the slot on a feature of the shape that was probed."""
    if seed not in model.seed_macs:
        slot = model.slots[slot_id]
        feature = model.places[slot_id].blank(slot.device, slot.dtype)
        with trial(seed):
            model.seed_macs[seed] = model.places[slot_id].calls * counted(lambda: growable.called(slot, seed, feature))
    return model.seed_macs[seed]


class _Noise:
    """Stands in for a slot with a seed, and adds the same noise to its feature in every pass.

    Beside a module the noise is of the strength of what the module was given, as it was given.
    """

    bare = False
    training = False

    def __init__(self, size: float, of_call: bool) -> None:
        """``of_call``: whether the noise is also of the strength of all that the module was called with."""
        self.size, self.of_call = size, of_call

    def __call__(self, h: Tensor, alpha: float | None, x: Tensor | None = None, call: Call | None = None) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(h.shape, generator=generator).to(device=h.device, dtype=h.dtype)
        strength = h.abs().mean() + 0.1
        if x is not None:
            strength = strength * (1 + x.to(h.dtype).sin().mean())
        for _, each in tensors(call) if self.of_call and call is not None else ():
            strength = strength * (1 + each.to(h.dtype).nan_to_num().sin().mean() / 8)
        return h + noise * (self.size * strength)


@contextmanager
def _noise(tap: Tap, size: float) -> Iterator[None]:
    slot = tap.slot
    tap.slot = _Noise(size, isinstance(slot.block, Block))  # type: ignore[assignment]
    try:
        yield
    finally:
        tap.slot = slot


def _reaching(tap: Tap, whole: Callable[[], Any], plain: Any) -> tuple[float, Any]:
    """Size of noise at the slot that changes the model's output from ``plain``, and what the output is then."""
    for size in NOISES:
        with _noise(tap, size):
            noisy = whole()
        if not same(noisy, plain):
            return size, noisy
    if not any(bool(tensor.isfinite().any()) for _, tensor in tensors(plain)):
        raise UsageError(
            "the model's output holds no finite number in eval(): look at the running statistics of its norms"
        )
    raise UsageError(
        f"what stands behind site {tap.place.path!r} does not reach the model's output"
        + _past(tap.host, tap.place.path)
    )


def _past(host: nn.Module, path: str) -> str:
    """What helps where torch's fast path goes past the site."""
    around = [host.get_submodule(path.rsplit(".", n)[0]) for n in range(1, path.count(".") + 1)]
    if not any(isinstance(module, nn.TransformerEncoderLayer) for module in around):
        return ""
    return (
        ": in eval() a TransformerEncoderLayer goes past its parts;"
        " torch.backends.mha.set_fastpath_enabled(False) keeps it from that"
    )


@dataclass(frozen=True)
class Proof:
    """What trial passes showed: per slot whether sharing is bit-equal, and the work behind it where it is."""

    sharing: dict[str, bool]
    macs: int
    macs_behind: dict[str, int]


def prove(model: GrowingModel, sample: Sample) -> Proof:
    """Compare a replay with a whole pass, with noise at the slot, for each slot. All slots must be empty.

    Where a site is called several times, a pass cannot begin behind it, nor behind what comes after its first call.

    Raises ``UsageError`` where the noise does not reach the model's output: a slot there would be idle.
    """

    def whole() -> Any:
        with random_kept(device_of(model)):
            return model.run(sample)

    with trial(model), livened(model):
        plain = whole()
        macs = counted(whole)
        once = list(takewhile(lambda slot_id: model.places[slot_id].calls == 1, model.slots))
        tape = Tape(model, once)
        model.sharing = {slot_id: slot_id in once for slot_id in model.slots}
        with running(model, None, tape):
            whole()
        tape.again = whole
        sharing: dict[str, bool] = {}
        behind: dict[str, int] = {}
        for slot_id, tap in model.taps.items():
            size, reference = _reaching(tap, whole, plain)
            with _noise(tap, size):
                shared = tape.shared(slot_id)
                replayed = [tape.replay(slot_id) for _ in range(2)] if shared else []
            sharing[slot_id] = shared and tape.shared(slot_id) and all(same(each, reference) for each in replayed)
            if sharing[slot_id]:
                behind[slot_id] = counted(partial(tape.replay, slot_id))
    return Proof(sharing, macs, behind)
