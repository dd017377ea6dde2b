"""A host with slots: any ``nn.Module``, grown at submodules named by path, without a change to its code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from esper.kasmina.auto import auto_sites
from esper.kasmina.compiled import as_written
from esper.kasmina.copies import Twin
from esper.kasmina.exposure import Exposure, hidden
from esper.kasmina.fold import Folds, rehearse
from esper.kasmina.generations import Part
from esper.kasmina.hosts import check_host
from esper.kasmina.leaving import leave, strip
from esper.kasmina.mixing import measure
from esper.kasmina.probe import Place, Site, survey
from esper.kasmina.repeating import blocks
from esper.kasmina.replay import Tape, prove, running
from esper.kasmina.sharded import Sharding, let_go, put_together, sharding_in
from esper.kasmina.sites import Sites, site_of, spread
from esper.kasmina.slot import SeedSlot, SlotConfig
from esper.kasmina.structure import same, same_bits
from esper.kasmina.tap import Tap, tap_of
from esper.kasmina.trial import Arguments, ForwardCall, Sample, device_of, invoke, random_kept, trial
from esper.leyline import AlphaConfig, GateThresholds, Sink, UsageError, unknown

if TYPE_CHECKING:
    from esper.kasmina.prefix import Prefix

_SPREAD: Final = "its host is spread over processes (fully_shard), and a copy of a block would have to be put together"


class GrowingModel(nn.Module):
    """Owns a host and its slots; calling it is calling the host. Made by :meth:`wrap`.

    ``slots`` are in network order. A copy is made by wrapping a fresh host and :meth:`load`, not by ``deepcopy``.
    """

    slots: Mapping[str, SeedSlot]

    def __init__(self, host: nn.Module, places: Mapping[str, Place], slots: Mapping[str, SeedSlot]) -> None:
        super().__init__()
        self.host = host
        self.slots = nn.ModuleDict(slots)  # type: ignore[assignment]
        self.places = dict(places)
        self.sites = {slot_id: host.get_submodule(place.path) for slot_id, place in places.items()}
        self.taps = {slot_id: Tap(slots[slot_id], place, host) for slot_id, place in places.items()}
        self.cuts: dict[str, tuple[tuple[nn.Module, int], ...]] = {}
        """Per slot the maximal submodules that have returned when its site has, with the number of their calls."""
        self.sharing: dict[str, bool] = {}
        """Per slot whether the work in front of it can be shared, as proven at wrap in evaluation mode."""
        self.alike: dict[Any, int] = {}
        """How often several batches were to be run in one pass; -1 where that gave other bits than one by one."""
        self.writes_buffers = False
        """Whether a pass in evaluation mode changes buffers of the host."""
        self.macs = 0
        """Multiply-accumulates of one pass of the host over the sample."""
        self.macs_behind: dict[str, int] = {}
        self.buffered = [module for module in host.modules() if module._buffers]
        """Modules of the host that have buffers of their own."""
        self.seed_macs: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
        self.exposures: list[Exposure] = []
        """What answers for seeds among the host's modules: one, or none."""
        self.sharding: Sharding | None = None
        """How the host is spread over processes, where it is."""
        self.folds: Folds = {}
        """Per slot beside a module whether and how a seed can be folded into its weight."""
        self.prefix: Prefix | None = None
        """What is kept of the frozen part in front of all that learns."""
        self.replaying = False
        """Whether passes begin behind a slot."""
        self._tape: Tape | None = None

    @classmethod
    def wrap(
        cls,
        host: nn.Module,
        sites: Sites,
        sample: Sample,
        *,
        slot_factory: type[SeedSlot] = SeedSlot,
        thresholds: GateThresholds | None = None,
        config: SlotConfig | None = None,
        on_telemetry: Sink | None = None,
    ) -> GrowingModel:
        """Put a slot behind each named submodule, or beside it. The host's outputs stay the same, bit for bit.

        Trial passes over ``sample`` (one batch, as the host takes it) find where the tensor is in each output, its
        axes and its width, prove where work can be shared and measure what a seed may mix; they leave no trace. A site
        that is called several times has one seed for all calls. Raises ``UsageError`` for a site that cannot carry a
        slot, naming its path: unknown, never called, giving no dense floating-point tensor, written in place behind
        the slot, without a batch axis, of no effect, or beside which no seed fits; and for a host that
        :func:`check_host` refuses.
        """
        check_host(host)
        if any(isinstance(tap_of(module), Twin) for module in host.modules()):
            leave(host)  # a copy of one that grows: what has grown in it becomes part of it
        chosen = named_sites(auto_sites(host, sample) if sites == "auto" else spread(host, sites))
        found = survey(host, chosen.values(), sample)
        places: dict[str, Place] = {}
        for slot_id, site in chosen.items():
            place = found.places[site.path]
            if isinstance(place, UsageError):
                raise place
            places[slot_id] = place
        modules = {slot_id: host.get_submodule(place.path) for slot_id, place in places.items()}
        if len(set(modules.values())) < len(modules):
            raise UsageError(f"two slots on one submodule: {', '.join(site.path for site in chosen.values())}")
        order = sorted(places, key=lambda slot_id: found.trace.order(modules[slot_id]))
        config = config or SlotConfig()
        slots = {
            slot_id: slot_factory(
                slot_id,
                places[slot_id].channels,
                places[slot_id].device,
                thresholds,
                on_telemetry,
                config=replace(config, layout=places[slot_id].layout),
            )
            for slot_id in order
        }
        for slot_id, slot in slots.items():
            slot.dtype = places[slot_id].dtype
        sharding = sharding_in(host)
        copies = blocks(host, places, sample) if config.copies and sharding is None else {}
        for slot_id, slot in slots.items():
            slot.sharding, slot.block = sharding, copies.get(slot_id, slot.block if sharding is None else _SPREAD)
        model = cls(host, {slot_id: places[slot_id] for slot_id in order}, slots)
        model.sharding = sharding
        model.training = host.training
        model.slots.train(host.training)  # type: ignore[attr-defined]
        model.cuts = {slot_id: found.trace.completed_before(modules[slot_id]) for slot_id in order}
        try:
            model._attach(sample)
            for slot_id, may_mix in measure(model, sample).items():
                slots[slot_id].may_mix = may_mix
            model.folds = rehearse(model, sample) if config.fold else {}
        except BaseException:
            strip(host)
            raise
        return model

    def _attach(self, sample: Sample) -> None:
        def output() -> Any:
            with random_kept(device_of(self.host)):
                return invoke(self.host, sample)

        with trial(self.host):
            buffers = [(buffer, buffer.clone()) for buffer in self.host.buffers()]
            bare = output()
            self.writes_buffers = not all(same_bits(buffer, before) for buffer, before in buffers)
            for slot_id, tap in self.taps.items():
                tap.attach(self.sites[slot_id])
            minds = any(isinstance(module, nn.TransformerEncoderLayer) for module in self.host.modules())
            if minds or not same(output(), bare):  # a module that computes otherwise when there are hooks
                for slot_id, tap in self.taps.items():
                    tap.attach_inside(self.sites[slot_id])
        proof = prove(self, sample)
        self.sharing, self.macs, self.macs_behind = proof.sharing, proof.macs, proof.macs_behind

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the host gives for these arguments, grown."""
        return self.run(ForwardCall((args, kwargs), _call))

    def run(self, sample: Sample) -> Any:
        """What the host gives for ``sample``, grown; a replay of this pass runs the same way."""
        for tap in self.taps.values():
            if isinstance(tap, Tap):
                tap.set_mode()  # here, and not in a graph, of which there would be one for each mode that comes before
        if self._tape is not None:
            self._tape.again = lambda: self._invoked(sample)
        if self.prefix is not None and self.prefix.active and isinstance(sample, ForwardCall):
            return self.prefix.run(sample.inputs, lambda: self._invoked(sample))
        return self._invoked(sample)

    def _invoked(self, sample: Sample) -> Any:
        with nullcontext() if self.sharding is None else let_go():
            return invoke(self.host, sample)

    def _apply(self, fn: Any, recurse: bool = True) -> GrowingModel:
        """What ``to``, ``half`` and their like do; seeds to come are built where and as their site's weights are."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.alike.clear()
        for slot in self.slots.values():
            moved = fn(torch.empty(0, device=slot.device, dtype=slot.dtype))
            slot.device, slot.dtype = moved.device, moved.dtype
        return self

    def check_slots(self, named: Mapping[str, Any] | Sequence[str]) -> None:
        """Raise ``UsageError`` unless every name is a slot's."""
        for slot_id in named:
            if slot_id not in self.slots:
                raise unknown("slot", slot_id, self.slots)

    @contextmanager
    def alphas(self, config: AlphaConfig) -> Iterator[None]:
        """Within, the named slots use these alphas; the slots themselves are not written to."""
        self.check_slots(config)
        before = {slot_id: self.taps[slot_id].alpha for slot_id in config}
        try:
            for slot_id, alpha in config.items():
                self.taps[slot_id].alpha = alpha
            with as_written() if config else nullcontext():
                yield
        finally:
            for slot_id, alpha_before in before.items():
                self.taps[slot_id].alpha = alpha_before

    @contextmanager
    def sown(self, blueprints: Mapping[str, str]) -> Iterator[None]:
        """Within, a fresh seed of the named blueprint is in each of the slots, at alpha 1, if gate G0 lets it in.

        Raises ``UsageError`` unless the slots are empty.
        """
        self.check_slots(blueprints)
        taken = [slot_id for slot_id in blueprints if self.slots[slot_id].state is not None]
        if taken:
            raise UsageError(f"slot {taken[0]!r} is {self.slots[taken[0]].stage.name}; seeds are sown in empty slots")
        chosen = [(self.slots[slot_id], blueprint) for slot_id, blueprint in blueprints.items()]
        before = [(slot, slot.germinations, slot.on_telemetry) for slot, _ in chosen]
        try:
            for slot, blueprint in chosen:
                slot.on_telemetry = None
                slot.germinate(blueprint)
                if slot.state is not None:
                    slot.state.alpha = 1.0
            yield
        finally:
            for slot, germinations, telemetry in before:
                slot.clear()
                slot.germinations, slot.on_telemetry = germinations, telemetry

    @contextmanager
    def record(self, slot_ids: Sequence[str] | None = None) -> Iterator[Tape]:
        """Within, a call of the model is kept on a tape, to be replayed from any of the slots (default: all)."""
        wanted = tuple(self.slots) if slot_ids is None else tuple(slot_ids)
        self.check_slots(wanted)
        self._tape = tape = Tape(self, [slot_id for slot_id in wanted if self.sharing[slot_id]])
        try:
            with running(self, None, tape):
                yield tape
        finally:
            self._tape = None

    @contextmanager
    def teaching(self) -> Iterator[None]:
        """Within, seeds are in training mode, also where the host is held in evaluation mode."""
        before = [(tap, tap.training) for tap in self.taps.values()]
        try:
            for tap, _ in before:
                tap.training = True
            yield
        finally:
            for tap, training in before:
                tap.training = training

    @contextmanager
    def exposed(self) -> Iterator[Exposure]:
        """Within, whoever asks the host, or a module around or in it, for its parameters is given the seeds' too."""
        exposure = Exposure(self.host, {place.path: self.taps[slot_id] for slot_id, place in self.places.items()})
        with exposure.open():
            self.exposures = [exposure]
            try:
                yield exposure
            finally:
                self.exposures = []

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Module]]:
        """Host and slots, each seed in its slot."""
        modules = super().named_modules(*args, **kwargs)
        if self.exposures:
            with hidden(self.exposures):
                modules = iter(list(modules))
        yield from modules

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Of host and slots."""
        with hidden(self.exposures):
            return super().state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Undo of :meth:`state_dict`, for the same topology."""
        with hidden(self.exposures):
            if self.sharding is not None:
                args = (self.sharding.fitted(args[0], super().state_dict()), *args[1:])
            return super().load_state_dict(*args, **kwargs)

    @contextmanager
    def put_together(self) -> Iterator[None]:
        """Within, a model that is spread over processes is whole where rank is 0; see :func:`sharded.put_together`."""
        if self.sharding is None:
            yield
            return
        before = {slot: (slot.sharding, slot.device) for slot in self.slots.values()}
        with hidden(self.exposures), put_together(self):
            try:
                for slot in before:
                    slot.sharding, slot.device = None, torch.device("cpu")
                yield
            finally:
                for slot, (sharding, device) in before.items():
                    slot.sharding, slot.device = sharding, device

    def host_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the host alone."""
        with hidden(self.exposures):
            found = list(self.host.parameters())
        return iter(found)

    def seed_parameters(self, slot_id: str) -> Iterator[nn.Parameter]:
        """Parameters of the slot's newest seed; none without one."""
        self.check_slots([slot_id])
        return self.slots[slot_id].seed_parameters()

    @property
    def parts(self) -> dict[str, tuple[str, Part]]:
        """seed id -> slot and seed, of all seeds that are there; slots in network order, in each the oldest first."""
        return {part.seed_id: (slot_id, part) for slot_id, slot in self.slots.items() for part in slot.parts()}

    def topology(self) -> dict[str, Any]:
        """What has grown, JSON-able: every slot's lifecycle, without weights."""
        return {slot_id: slot.lifecycle() for slot_id, slot in self.slots.items()}

    def restore_topology(self, plain: Mapping[str, Any]) -> None:
        """Undo of :meth:`topology`: seeds are built anew, with weights still to be loaded.

        Raises ``UsageError`` when the slots are not the same.
        """
        if set(plain) != set(self.slots):
            raise UsageError(f"slots {sorted(plain)} cannot be restored into slots {sorted(self.slots)}")
        for slot_id, slot in self.slots.items():
            slot.load_lifecycle(plain[slot_id])

    def load(self, topology: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Become the model that :meth:`topology` and ``state_dict`` were taken from."""
        self.restore_topology(topology)
        self.load_state_dict(tensors)


def _call(host: nn.Module, arguments: Arguments) -> Any:
    args, kwargs = arguments
    return host(*args, **kwargs)


def named_sites(sites: Sites) -> dict[str, Site]:
    """slot -> site. Places that would share a name, such as ``b.0`` and ``b_0``, get numbers behind it.

    Raises ``UsageError`` where that is no list or mapping of places.
    """
    if isinstance(sites, str):
        raise UsageError(f"sites are a list of submodule paths, a mapping slot -> path, or 'auto'; not {sites!r}")
    pairs = list(sites.items()) if isinstance(sites, Mapping) else [(None, each) for each in sites]
    named: dict[str, Site] = {}
    for name, each in pairs:
        if not isinstance(each, str | Site):
            raise UsageError(f"a site is the path of a submodule, or a Site; not a {type(each).__name__}")
        site = site_of(each)
        slot_id = name
        if slot_id is None:
            plain = slot_id = site.path.replace(".", "_")
            while slot_id in named and named[slot_id].path != site.path:
                slot_id = f"{plain}_{sum(other.path.replace('.', '_') == plain for other in named.values()) + 1}"
        if not slot_id or "." in slot_id or hasattr(nn.ModuleDict, slot_id) or slot_id == "training":
            raise UsageError(f"slot name {slot_id!r}; legal: any name without a dot that no dict method has")
        if slot_id in named:
            raise UsageError(f"site {site.path!r} is named twice")
        named[slot_id] = site
    if not named:
        raise UsageError("no sites given; name at least one submodule, or say 'auto'")
    return named
