"""Trains and evaluates one growing model: model, optimizer, data order, random streams, ledger."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from esper.kasmina.gradients import stacked, tensor_norms, total_norm
from esper.kasmina.growable import COPIES, origins
from esper.kasmina.growing import GrowingModel
from esper.kasmina.incubation import probe_backward
from esper.kasmina.precision import Autocast
from esper.kasmina.prefix import Prefix
from esper.kasmina.sharded import as_shards, local, unmarked_ones
from esper.kasmina.trial import ForwardCall, held, mode, train
from esper.leyline import AlphaConfig, EnvSpec, Promise, Sink, TrainResult, UsageError
from esper.tasks.losses import one_number
from esper.tasks.tree import size
from esper.tolaria import booking, evaluation, ledger, rates, saved, schedules, surgery
from esper.tolaria.audition import Audition
from esper.tolaria.epoch import Epoch, Share, probing, timed
from esper.tolaria.evaluation import Evaluation, Reading, SettledConfig
from esper.tolaria.host_copies import HostCopies
from esper.tolaria.ledger import Ledger, Macs
from esper.tolaria.lessons import Lesson, weight
from esper.tolaria.nested import State
from esper.tolaria.observed import ObservedStep
from esper.tolaria.order import Untouched
from esper.tolaria.ranks import Arrivals, WrittenBuffers
from esper.tolaria.rng import Streams, derive, seeded
from esper.tolaria.setup import PRECISIONS, Criterion, GrowthTask, MakeSetup, TrainerConfig
from esper.tolaria.shared_batches import SharedBatches
from esper.tolaria.work import StepMacs, count_step


class Trainer:
    """One growing model with all it needs to learn. Knows nothing of policies, gates or episodes."""

    def __init__(
        self, spec: EnvSpec, task: GrowthTask, prepare: MakeSetup, config: TrainerConfig, on_telemetry: Sink
    ) -> None:
        self.task, self.config = task, config
        self.max_epochs = spec.max_epochs
        self.streams = Streams(spec.seed)
        self.setup = prepare(spec, self.streams)
        self.ranks = self.setup.ranks
        if self.ranks.rank:
            self.streams["train"].manual_seed(derive(spec.seed, "train", self.ranks.rank))  # dropout of its own
        self.gates = replace(config.thresholds, metric=task.metric)
        """What the gates ask."""
        self.sample = ForwardCall(self.setup.sample, self.setup.forward)
        """A few examples, for trial passes."""
        self.device = torch.device(config.device)
        self.held = held(self.setup.host)
        with self._precision():
            self.model = GrowingModel.wrap(
                self.setup.host,
                task.sites,
                self.sample,
                thresholds=self.gates,
                config=replace(config.slot, copies=any(name in COPIES for name in task.blueprints)),
                on_telemetry=on_telemetry,
            )
            self.autocast = Autocast.now(self.device)
            """The state that passes are computed in: that of the latest training pass."""
        self.prefix = self.model.prefix = Prefix(self.model, self.sample, self.setup.sample_examples)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "16-mixed")
        self.host_size = sum(p.numel() for p in self.model.host_parameters())
        """Parameters of the host, frozen ones too."""
        self.learning_size = sum(p.numel() for p in self.model.host_parameters() if p.requires_grad)
        self._infinite = {name for name, buffer in self.model.named_buffers() if not torch.isfinite(buffer).all()}
        """Buffers that are not finite as they come, such as a mask of minus infinities."""
        self.optimizer = self.setup.optimizer
        self.batches = self.setup.batches
        self.ledger = Ledger.begun(self.setup.spent)
        self._copies = HostCopies()
        self.completed = 0
        """Epochs trained so far; a rollback takes it back."""
        self.births: dict[str, float] = {}
        """seed id -> time of birth of a live seed, epochs."""
        self.past_births: list[float] = []
        self._macs: Macs | None = None
        self._step_counted: tuple[tuple[tuple[str, ...], tuple[bool, ...]], StepMacs] | None = None
        """A step's MACs, and what they were counted for: who learns behind the host, and what learns at all."""
        self.untouched = Untouched()
        """Asked before seeds are taught; it knows of what is watched in a loop of the user's own."""
        self.on_backward: Callable[[], None] | None = None
        """Called after every backward pass, when all gradients are there."""
        self.auditioned: Mapping[str, str] = {}
        """slot -> blueprint of the candidates that learn in the next epoch."""
        self._epoch = self.begin_epoch(0)
        self.promises: Mapping[str, tuple[str, Promise]] = {}
        """slot -> blueprint and what it promises, of the audition in the latest epoch."""
        self._arrivals = Arrivals(self.ranks, together=self.model.sharding is not None)
        self._lessons: list[Lesson] = []
        """Of the losses that backward has reached since :meth:`after_backward`."""

    # --- topology -------------------------------------------------------------------------------------------------

    def adopt(self, seed_id: str) -> None:
        """Give a freshly germinated seed its parameter group and its own schedule."""
        slot, _ = self.model.parts[seed_id]
        number = rates.neighbour(self.optimizer, self.model.host, self.model.places[slot].path)
        beside, multiple = surgery.host_groups(self.optimizer)[number], self.config.schedule.seed_multiplier
        base = float(beside.get(surgery.BASE_RATE, beside["lr"])) * multiple
        options = rates.inherited(self.optimizer, number)
        group = surgery.add_seed_group(self.optimizer, seed_id, self._seed_named(seed_id), lr=base, **options)
        group[surgery.HOST_GROUP] = number
        surgery.inherit(self.optimizer, origins(self.model.slots[slot]))
        if self.config.schedule.shape == "external":
            group[rates.MULTIPLE] = multiple
            rates.follow(self.optimizer)
        self.births[seed_id] = float(self.completed)
        self._macs = self._step_counted = None

    def release(self, seed_id: str) -> None:
        """Forget a pruned seed: its parameter group, its schedule, and book what it cost as discarded."""
        surgery.remove_seed_group(self.optimizer, seed_id)
        self.past_births.append(self.births.pop(seed_id))
        self.ledger.discard(seed_id)
        self._macs = self._step_counted = None

    @property
    def macs(self) -> Macs:
        """MACs per example of the present topology with every live seed in play."""
        if self._macs is None:
            seeds = {seed_id: part.seed for seed_id, (_, part) in self.model.parts.items()}
            inputs, n = self.setup.sample, self.setup.sample_examples
            with self.as_trained(), self.model.alphas({name: 1.0 for name, s in self.model.slots.items() if s.live}):
                self._macs = ledger.count(lambda: self._run(inputs), n, seeds, model=self.model)
        return self._macs

    def state(self) -> dict[str, Any]:
        """All it takes to continue bit for bit: ``{"tensors": {name: tensor}, "plain": JSON-able}``. Tensors are
        :class:`HostCopies`, not to be written to; of shards, which are named so, this process's own."""
        optimizer = surgery.named_state(self.optimizer, self.model.named_parameters())
        parts = {"model": self.model.state_dict(), "optimizer": optimizer.tensors, "stream": self.streams.state()}
        parts |= {"batches": self.batches.state()}
        return {
            "tensors": self._copies.of(as_shards({f"{p}/{n}": each for p in parts for n, each in parts[p].items()})),
            "plain": {
                "topology": self.model.topology(),
                "optimizer": optimizer.plain,
                "completed": self.completed,
                "births": dict(self.births),
                "past_births": list(self.past_births),
                "ledger": self.ledger.state(),
                **({"scaler": self.scaler.state_dict()} if self.scaler.is_enabled() else {}),
            },
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Undo of :meth:`state`, also from another topology; where tensors of shards are whole, this process's rows."""
        plain = saved.by_seed_id(state["plain"])
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "stream": {}, "batches": {}}
        for name, tensor in state["tensors"].items():
            part, _, rest = name.partition("/")
            parts[part][rest] = tensor
        for seed_id in list(self.births):
            surgery.remove_seed_group(self.optimizer, seed_id)
        self.model.restore_topology(plain["topology"])
        self.model.load_state_dict(parts["model"])
        self.births = dict(plain["births"])
        for seed_id in self.births:
            surgery.add_seed_group(self.optimizer, seed_id, self._seed_named(seed_id))
        known = surgery.OptimizerState(unmarked_ones(parts["optimizer"], self.model.sharding), plain["optimizer"])
        surgery.load_named_state(self.optimizer, self.model.named_parameters(), known)
        self.streams.load(parts["stream"])
        self.batches.load(parts["batches"])
        self.completed = int(plain["completed"])
        self.past_births = list(plain["past_births"])
        self.ledger = Ledger.load(plain["ledger"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(plain["scaler"])
        self._macs = self._step_counted = None

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """What is trained within is undone behind it; what was counted of the topology, which stays, is kept."""
        state = self.state()
        try:
            yield
        finally:
            counted = self._macs, self._step_counted
            self.load(state)
            self._macs, self._step_counted = counted

    def rewind(self, state: Mapping[str, Any]) -> None:
        """:meth:`load` an earlier state; rates that somebody else moves stay where they are."""
        with ExitStack() as stack:
            if self.config.schedule.shape == "external":
                stack.enter_context(rates.host_rates_kept(self.optimizer))
            self.load(state)

    def network(self) -> dict[str, Any]:
        """What the model computes, on the CPU: ``{"tensors", "plain"}`` without optimizer, streams and ledger."""
        found = self._copies.of(as_shards({f"model/{n}": tensor for n, tensor in self.model.state_dict().items()}))
        return {"tensors": {n.removeprefix("model/"): t for n, t in found.items()}, "plain": self.model.topology()}

    def become(self, network: Mapping[str, Any], seeds: Collection[str]) -> None:
        """Compute what :meth:`network` was taken from; of its newest seeds only those with the ids ``seeds`` live on.

        The optimizer keeps what it knows of the host and of the seeds that live now.
        """
        known = {
            seed_id: [self.optimizer.state.get(parameter) for parameter in part.seed.parameters()]
            for seed_id, (_, part) in self.model.parts.items()
        }
        for seed_id in list(self.births):
            surgery.remove_seed_group(self.optimizer, seed_id)
        self.births.clear()
        self.model.load(network["plain"], network["tensors"])
        for slot in self.model.slots.values():
            if slot.state is not None and slot.state.seed_id not in seeds:
                slot.clear()
        for seed_id, (_, part) in self.model.parts.items():
            self.adopt(seed_id)
            for parameter, entries in zip(part.seed.parameters(), known.get(seed_id, ()), strict=False):
                if entries is not None:
                    self.optimizer.state[parameter] = entries
        self._macs = self._step_counted = None

    def _seed_named(self, seed_id: str) -> list[tuple[str, nn.Parameter]]:
        return list(self.model.parts[seed_id][1].seed.named_parameters(prefix="seed"))

    # --- training -------------------------------------------------------------------------------------------------

    def train_epoch(self, steps: int | None = None) -> TrainResult:
        """One pass over the training split, or its first ``steps``."""
        epoch = self.begin_epoch(len(self.batches))
        train(self.model.host, self.held)
        with self.streams.active("train", self.device):
            for inputs, targets, wait in islice(timed(self.batches.epoch()), steps):
                epoch.waited += wait
                self.set_rates(epoch.step, epoch.steps)
                self.optimizer.zero_grad(set_to_none=True)
                with self._precision():
                    loss = self.loss(inputs, targets)
                if isinstance(self.batches, SharedBatches):
                    loss = loss * self.batches.weight
                torch.autograd.backward(self.scaler.scale(loss))
                self.after_backward()
                self._step()
        return self.end_epoch()

    def _precision(self) -> AbstractContextManager[Any]:
        precision = self.config.precision
        return nullcontext() if precision is None else torch.autocast(self.device.type, PRECISIONS[precision])

    def _step(self) -> None:
        """One step of the optimizer. A scaler leaves it out where a gradient is not finite."""
        if not self._scaling:
            self.optimizer.step()
            return
        self.scaler.step(self.optimizer)
        self.scaler.update()

    @property
    def _scaling(self) -> bool:
        """Whether there are gradients of a scaled loss; in a frozen host without a seed there are none."""
        learners = (p for group in self.optimizer.param_groups for p in group["params"])
        return self.scaler.is_enabled() and any(p.grad is not None for p in learners)

    def begin_epoch(self, steps: int) -> Epoch:
        """Make ready for an epoch of ``steps`` steps (0: not known), each of them :meth:`loss`, backward and
        :meth:`after_backward`."""
        samples = self.config.gradient_samples
        measured = frozenset(steps - 1 - i * steps // samples for i in range(samples)) if steps else frozenset({0})
        with self.as_trained():
            self.prefix.look()
        self._epoch = Epoch(steps, probing(self.model), measured, torch.zeros((), device=self.config.device))
        if chosen := self.auditioned:
            with seeded(derive(self.streams.seed, "audition", self.completed)):
                self._epoch.audition = Audition(self.model, chosen, self._seed_rate(), self.ranks)
        self.auditioned = {}
        self._buffers = WrittenBuffers(self.ranks, self.model)
        return self._epoch

    def _seed_rate(self) -> float:
        """The rate that a seed would be given now."""
        return self.config.schedule.seed_multiplier * max(float(g["lr"]) for g in surgery.host_groups(self.optimizer))

    def loss(self, inputs: Any, targets: Any, criterion: Criterion | None = None) -> Tensor:
        """Training loss of one batch, by ``criterion`` or the set-up's own.

        What seeds behind the host need to learn from it is kept for their second pass, as long as the loss is. What is
        done to the loss before ``backward`` (a scale, a share, a sum with others) is done to what they learn.
        """
        epoch, own = self._epoch, criterion or self.setup.criterion
        self.autocast = Autocast.now(self.device)
        self._arrivals.come((inputs, targets))
        with self.autocast.entered(), self.model.teaching(), self.prefix.used(), ExitStack() as stack:
            tape = stack.enter_context(self.model.record(epoch.probing)) if epoch.probing else None
            loss = one_number(own(self._run(inputs), targets))
        lesson = Lesson(lambda output: one_number(own(output, targets)), tuple(epoch.probing), tape)
        if self._auditions:
            lesson.again = lambda: one_number(own(self._run(inputs), targets))
        return self._taken(loss, lesson, size(inputs, targets) if self.setup.counted else 1)

    @property
    def _auditions(self) -> bool:
        audition = self._epoch.audition
        return audition is not None and audition.due and torch.is_grad_enabled()

    @contextmanager
    def observing(self, step: ObservedStep, examples: int, times: float = 1.0) -> Iterator[Callable[[Tensor], Tensor]]:
        """Within, the step of somebody else's loop is made. What is given is told its loss, and gives what to minimise.

        ``times`` is what it must be multiplied by to be that of the batch alone.
        """
        epoch = self._epoch
        self.autocast = Autocast.now(self.device)
        with self.autocast.entered(), self.model.teaching(), ExitStack() as recording:
            tape = recording.enter_context(self.model.record(epoch.probing)) if epoch.probing else None
            lesson = Lesson(one_number, tuple(epoch.probing), tape, times=times)
            if self._auditions:
                lesson.again = lambda: one_number(step.again())
            if again := tape is not None or lesson.again is not None:
                step.keep()
            if tape is not None:
                tape.again = step.again

            def taken(loss: Tensor) -> Tensor:
                recording.close()
                if again:
                    step.kept()
                return self._taken(one_number(loss), lesson, examples)

            yield taken

    def _taken(self, loss: Tensor, lesson: Lesson, examples: int) -> Tensor:
        """Book a loss, and wait for its gradient."""
        lesson.examples = examples
        self._epoch.total.add_(loss.detach(), alpha=examples * lesson.times)
        self._epoch.examples += examples
        if not torch.is_grad_enabled():
            return loss
        if not loss.requires_grad:
            loss = loss.detach().requires_grad_()  # nothing in it learns: backward is for seeds behind the host alone
        loss.register_hook(partial(self._reached, lesson))  # type: ignore[no-untyped-call]
        return loss

    def _reached(self, lesson: Lesson, gradient: Tensor) -> None:
        """Backward has begun at a loss, or come to it."""
        if lesson.over:
            raise UsageError("backward went through a loss once more after after_backward(); call loss() again for it")
        lesson.gradients.append(gradient.detach().clone())
        if lesson not in self._lessons:
            self._lessons.append(lesson)

    def after_backward(self) -> None:
        """Teach the seeds behind the host, and measure gradients where it is their turn. The optimizer steps next.

        To be called before gradients are unscaled or clipped. Raises ``UsageError`` where that has been done, and where
        there was no backward pass.
        """
        epoch, lessons = self._epoch, self._lessons
        if not lessons:
            raise UsageError("after_backward() was called, but backward() of no loss from here was since the last time")
        self._lessons = []
        self.untouched.check(now=epoch.step in epoch.measured)
        for lesson in lessons:
            self._teach(lesson)
        self.ranks.average(parameter for parameter in self.model.parameters() if parameter.requires_grad)
        self._buffers.after_step()
        if self._scaling:
            self.scaler.unscale_(self.optimizer)
        if epoch.step in epoch.measured:
            scales = self.ranks.all(1.0 if self._scaling else weight(lessons))
            epoch.host_norm = self.measure_gradients(sum(scales) / len(scales))
        if self.on_backward is not None:
            self.on_backward()
        epoch.step += 1

    def _teach(self, lesson: Lesson) -> None:
        """The second pass of each seed that was behind the host when the loss was taken."""
        if lesson.tape is not None:
            with self.model.teaching():
                for slot in lesson.probing:
                    probe_backward(self.model, lesson.tape, lesson.criterion, slot, sum(lesson.gradients))  # type: ignore[arg-type]
        if lesson.again is not None and self._epoch.audition is not None:
            with self.model.teaching(), self.as_trained():
                scale = self.scaler.get_scale() if self.scaler.is_enabled() else 1.0
                self._epoch.audition.step(lesson.again, lesson.examples, scale, self.ranks)
        lesson.tape, lesson.again, lesson.over = None, None, True

    def end_epoch(self) -> TrainResult:
        """Sum up the epoch and book its work."""
        epoch = self._epoch
        self.untouched.check(now=True)
        self.completed += 1
        self._buffers.after_epoch()
        whole = Share.sum(self.ranks.all(epoch.share(self.model.slots, self._weights_finite()), "end of an epoch"))
        for slot_id, slot in self.model.slots.items():
            slot.monitor.counts = whole.monitored[slot_id]
        booking.training(self, whole.examples, epoch.probing)
        self.prefix.reviewed(epoch.examples)
        self.promises = {}
        if (audition := epoch.audition) is not None:
            with self.as_trained():
                each = audition.macs(lambda: self._run(self.setup.sample), self.setup.sample_examples)
            booking.charge(self, "probe", whole.auditioned, each)
            self.promises = audition.promises(whole.auditioned * each)
        return TrainResult(
            loss=whole.total / whole.examples,
            examples=whole.examples,
            learning_rate=float(surgery.host_groups(self.optimizer)[0]["lr"]),
            host_gradient_norm=epoch.host_norm,
            weights_finite=whole.finite,
            seconds=time.perf_counter() - epoch.started,
            input_wait_seconds=epoch.waited,
        )

    def epoch_state(self) -> State:
        """The epoch under way, as it is between two steps of the optimizer."""
        return self._epoch.state(self.model.slots)

    def load_epoch(self, state: Mapping[str, Any]) -> None:
        """Undo of :meth:`epoch_state`, after :meth:`load`."""
        self._epoch = Epoch.load(state, self.model, self.device)
        self._buffers = WrittenBuffers(self.ranks, self.model)

    def set_rates(self, step: int, steps: int) -> None:
        """Of all groups of the optimizer, for that step of this epoch's ``steps``."""
        surgery.set_rates(self.optimizer, *self.rate_factors(step, steps))

    def rate_factors(self, step: int, steps: int) -> tuple[float, dict[str, float]]:
        """What :meth:`set_rates` multiplies base rates by: the host's, and each live seed's."""
        now = schedules.moment(self.config.schedule, self.completed, step, steps)
        return schedules.learning_rates(self.config.schedule, now, self.max_epochs, self.births, self.past_births)

    def measure_gradients(self, scale: float) -> float | None:
        """Note each live seed's gradient ratio and health; returns the norm of the host's gradient.

        ``scale`` is what the loss was multiplied by. Where a scale was too large for the format nothing is measured.
        """
        trained = [p for p in self.model.host_parameters() if p.requires_grad]
        host_norm = total_norm([norm / scale for norm in tensor_norms(p.grad for p in trained)])
        if (self._scaling or scale != 1.0) and host_norm is not None and not math.isfinite(host_norm):
            return None
        host_size = sum(p.numel() for p in trained)
        for slot in self.model.slots.values():
            if slot.live:
                slot.record_gradients([p.grad for p in slot.seed_parameters()], host_norm, host_size, scale)
        return host_norm

    def _weights_finite(self) -> bool:
        buffers = [buffer for name, buffer in self.model.named_buffers() if name not in self._infinite]
        here = map(local, (*self.model.parameters(), *buffers))
        norms = torch._foreach_norm([t for t in here if t.is_floating_point() and t.numel()], ord=math.inf)
        return bool(torch.isfinite(stacked(norms)).all())

    def step_macs(self, probing: tuple[str, ...]) -> StepMacs:
        """MACs of a step in the present topology, counted anew where it, or what learns, is another."""
        learning = tuple(parameter.requires_grad for parameter in self.model.parameters())
        if self._step_counted is None or self._step_counted[0] != (probing, learning):
            with self.as_trained():
                counted = count_step(
                    self.model, lambda: self._run(self.setup.sample), self.setup.sample_examples, probing
                )
            self._step_counted = (probing, learning), counted
        return self._step_counted[1]

    # --- evaluation -----------------------------------------------------------------------------------------------

    def evaluate(self, configs: Sequence[AlphaConfig], split: str, settled: SettledConfig | None = None) -> Evaluation:
        """Metric and loss under each configuration, without a trace in model, buffers or random state."""
        data, forward, ranks = self.setup.splits[split], self.setup.forward, self.ranks
        reading = Reading.of(data, self.config, self.macs.forward)
        kept, chance = self.prefix.used(fill=split != "test"), self.streams.active("counterfactual", self.device)
        with torch.no_grad(), self.as_trained(), mode(self.model, False), chance, kept:
            found = evaluation.evaluate(self.model, self.task, data, configs, reading, forward, ranks, settled)
        booking.evaluation(self, found, split, configs[0])
        return found

    @torch.no_grad()
    def outputs(self, split: str) -> tuple[Any, Tensor]:
        """What the model as it is says of a split whose outputs and targets are tensors, in eval mode, with targets."""
        data = self.setup.splits[split]
        with self.as_trained(), mode(self.model, False), data.reading(self.config.evaluation_batch) as batches:
            outputs, targets = zip(*((self._run(inputs), each) for inputs, each, _ in batches), strict=True)
        booking.charge(self, "validation", len(data), self.macs.forward)
        return torch.cat(outputs), torch.cat(targets)

    def _run(self, inputs: Any) -> Any:
        """One pass, as the user makes it."""
        return self.model.run(ForwardCall(inputs, self.setup.forward))

    def as_trained(self) -> AbstractContextManager[None]:
        """Within, passes are computed in the precision of the training passes."""
        return self.autocast.entered()
