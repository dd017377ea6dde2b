"""The one epoch cycle, for heuristic, library and PPO runs alike.

    apply actions -> train -> evaluate (+ counterfactuals) -> governor -> slots tick -> views

The executor drives an engine's envs in step, measures, keeps them safe, and says everything in events. It never touches
an env's module.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from esper.kasmina.evidence import Shown, before_blending
from esper.leyline import (
    WAIT,
    ActionOutcome,
    AlphaConfig,
    DataError,
    Decision,
    EnvSpec,
    EnvView,
    EpochMeasurement,
    EvalResult,
    FactoredAction,
    HostEngine,
    Metric,
    Op,
    Paired,
    SeedStage,
    Sink,
    SlotView,
    TrainResult,
)
from esper.tolaria.counterfactual import CounterfactualPlan, Need, Readout, plan, read
from esper.tolaria.delivery import (
    Delivered,
    Scored,
    Validated,
    better,
    left_out,
    looks,
    taking_part,
    unproven,
    why_left_out,
)
from esper.tolaria.event_writer import EpisodeEventWriter
from esper.tolaria.governor import Governor
from esper.tolaria.nested import State, join, plain_state, split
from esper.tolaria.saved import SavedEnvs, plain_outcome, read_outcome
from esper.tolaria.spill import spill

_UPWARDS: Final = (Op.ADVANCE, Op.FOSSILIZE)
_WAITING: Final = Decision(FactoredAction(), "nothing is left to decide")

MakeGovernor = Callable[[Sink], Governor]
"""A fresh governor for one env, which sends its events to the given sink."""


@dataclass(frozen=True, slots=True)
class ExecutorConfig:
    """How often to measure what, and what an episode leaves."""

    counterfactual_every: int = 1
    """Epochs between counterfactual evaluations of live slots. At least 1."""
    shapley_every: int = 0
    """Epochs between exact Shapley values; 0 computes them after the last epoch only."""
    all_off: bool = False
    """Whether the env without any of its seeds is evaluated too, where a counterfactual is: rewards go by that."""
    test: bool = True
    """Whether there is a test split to look at in the end."""
    deliver: Literal["best", "last"] = "last"
    """``last`` is the network as training left it, without unproven seeds. ``best`` is for runs that deliver a model:
    unproven seeds stay where validation is worse without them, and the best network that was validated is gone back to
    where that was better."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """One env's epoch: what became of the action, what was measured, where the time went."""

    view: EnvView
    outcome: ActionOutcome
    train: TrainResult
    readout: Readout
    rolled_back: bool
    validate_seconds: float


@dataclass(frozen=True, slots=True)
class EpisodeResult:
    """How one env's episode ended. The test figures come from the single look at the test split, if there is one."""

    spec: EnvSpec
    view: EnvView
    validation_metric: float
    validation_loss: float
    test_metric: float | None
    test_loss: float | None
    test_examples: int | None
    total_macs: int
    seconds: float
    """The env's own time."""
    delivered: str | None = None
    """``last`` or ``best``, where a network is delivered."""
    delivered_epoch: int | None = None
    """Epoch after which it was validated like that."""

    def scores(self) -> dict[str, float | int | str]:
        """What the ``EPISODE_ENDED`` payload takes from here."""
        names = ("validation_metric", "validation_loss", "test_metric", "test_loss", "test_examples", "seconds")
        values = {name: getattr(self, name) for name in (*names, "delivered", "delivered_epoch")}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(slots=True)
class _Env:
    spec: EnvSpec
    event_writer: EpisodeEventWriter
    governor: Governor
    seconds: float = 0.0
    """The env's own time so far: training, validation and its share of deciding."""
    best: Validated | None = None
    """The best network so far, where one is delivered."""
    ended: bool = False
    """Whether its end was told."""


class Executor:
    """Runs episodes of N envs on an engine."""

    def __init__(
        self,
        engine: HostEngine,
        metric: Metric,
        emit: Sink,
        governor: MakeGovernor,
        config: ExecutorConfig | None = None,
    ) -> None:
        self.engine = engine
        self.metric = metric
        self.config = config or ExecutorConfig()
        self.epoch = 0
        self.scratch: Path | None = None
        """A folder in which the best network may lie in a file; in memory where there is none."""
        self._emit = emit
        self._make_governor = governor
        self._envs: list[_Env] = []
        self._outcomes: list[ActionOutcome] = []

    @property
    def envs(self) -> range:
        """Indices of the envs of this episode."""
        return range(len(self._envs))

    def reset(self, specs: Sequence[EnvSpec]) -> list[EnvView]:
        """Begin an episode of ``len(specs)`` envs and return their views before the first epoch."""
        self._open(specs)
        self._set_clock(0)
        views = self.engine.views(self.envs)
        for i, env in enumerate(self._envs):
            env.event_writer.episode_started(views[i])
            env.governor.keep(0, self.engine.state(i))
        return views

    def step(self, decisions: Sequence[Decision], policy_seconds: float | None = None) -> list[StepReport]:
        """Apply one decision per env, train an epoch, measure, and settle.

        ``policy_seconds`` is what deciding took, per env. Raises ``EsperError`` when an env had to be rolled back too
        often.
        """
        self.begin(decisions)
        return self.complete(self.engine.train_epoch(self.envs), policy_seconds)

    def begin(self, decisions: Sequence[Decision]) -> None:
        """The first half of :meth:`step`, for those who train the epoch themselves: act, and start the clock."""
        acted = zip(self._act(decisions), decisions, strict=True)
        self._outcomes = [replace(outcome, look=decision.look) for outcome, decision in acted]
        for i, decision in enumerate(decisions):
            if decision.audition:
                self.engine.audition(i, decision.audition)
        self._set_clock(self.epoch + 1)

    def complete(self, trained: Sequence[TrainResult], policy_seconds: float | None = None) -> list[StepReport]:
        """The second half of :meth:`step`: measure what was trained, and settle."""
        views = self.engine.views(self.envs)
        plans = [self._plan(i, view, self._outcomes[i]) for i, view in enumerate(views)]

        def settled(env: int, number: int, metric: Paired, loss: Paired) -> bool:
            return plans[env].settled(number, metric, loss, self.metric, views[env].gates)

        result = self.engine.evaluate(self.envs, [plan.configs for plan in plans], settled=settled)
        reports = []
        for i, (env, outcome) in enumerate(zip(self._envs, self._outcomes, strict=True)):
            readout = read(plans[i], result, i, self.metric)
            rolled_back = self._rolled_back(i, readout, trained[i], outcome)
            if not rolled_back:
                self._make_room(i, views[i], readout)
            view = self._settle(i, views[i], readout, result, rolled_back)
            seconds = {
                "train": trained[i].seconds,
                "input_wait": trained[i].input_wait_seconds,
                "validate": float(result.seconds[i]),
                "policy": policy_seconds,
            }
            env.seconds += sum(each or 0.0 for each in (trained[i].share_seconds, seconds["validate"], policy_seconds))
            (cost,) = self.engine.costs([i])
            env.event_writer.epoch_completed(view, cost, trained[i], readout, seconds)
            reports.append(StepReport(view, outcome, trained[i], readout, rolled_back, float(result.seconds[i])))
        return reports

    def finish(self, decisions: Sequence[Decision] | None = None, status: str = "completed") -> list[EpisodeResult]:
        """End the episode: a last word from the policy, unproven seeds out, the one look at the test split.

        Where the best network is delivered, seeds go up a stage if their gate finds the evidence sufficient; of those
        that the network feels and that are not kept for good those stay without whom validation, looked at as a whole,
        is worse; and what is then left is given up for the best network that was validated if that was better.
        """
        self._outcomes = [] if decisions is None else self._act(decisions)
        for env in self._envs:
            env.governor.let_go()
        as_is: list[Sequence[AlphaConfig]] = [({},) for _ in self._envs]
        if self.config.deliver == "best":
            delivered = self._delivered_best()
        else:
            self.engine.conclude(self.envs, (), "the episode ended before it was fossilized")
            validation = self.engine.evaluate(self.envs, as_is)
            delivered = [Delivered(*scored) for scored in _first(validation)]
        test = self.engine.evaluate(self.envs, as_is, split="test") if self.config.test else None
        return [self._end(i, each, test, status) for i, each in enumerate(delivered)]

    def salvage(self, status: str) -> list[EpisodeResult] | None:
        """End an episode that something broke off, with the best network so far; nothing is trusted that was not
        validated before, and nothing is evaluated. ``None`` where there is none, or where its end was told already."""
        if not self._envs or any(env.best is None or env.ended for env in self._envs):
            return None
        delivered = [self._go_back(i, env.best) for i, env in enumerate(self._envs) if env.best is not None]
        return [self._end(i, each, None, status) for i, each in enumerate(delivered)]

    def _end(self, i: int, delivered: Delivered, test: EvalResult | None, status: str) -> EpisodeResult:
        env, (view,), (cost,) = self._envs[i], self.engine.views([i]), self.engine.costs([i])
        result = EpisodeResult(
            spec=env.spec,
            view=view,
            validation_metric=delivered.metric,
            validation_loss=delivered.loss,
            test_metric=None if test is None else float(test.metric[i, 0]),
            test_loss=None if test is None else float(test.loss[i, 0]),
            test_examples=None if test is None else test.examples,
            total_macs=cost.spent["total_macs"],
            seconds=env.seconds,
            delivered=delivered.which,
            delivered_epoch=delivered.epoch,
        )
        env.event_writer.epoch = view.epoch  # an epoch that was broken off is none
        env.event_writer.compute_spent(cost, result.seconds)
        env.event_writer.episode_ended(view, cost, result.scores(), status)
        env.ended, env.best = True, None  # what it takes is free for the export
        return result

    def _make_room(self, i: int, view: EnvView, readout: Readout) -> None:
        """Make room for the good state that is due, and keep the network as it was just validated, if none was better;
        an ill epoch's is not kept. The best is then a part of that state, or older, and may be spilled."""
        env, scored = self._envs[i], (readout.metric, readout.loss)
        due = env.governor.snapshot_due(self.epoch)
        if due:
            env.governor.let_go()
        if self.config.deliver != "best":
            return
        before = None if env.best is None else env.best.scored
        if env.governor.healthy and better(scored, before, self.metric):
            env.best = Validated(self.epoch, *scored, taking_part(view), self.engine.network(i))
        elif due and env.best is not None:
            self._spill(env.best)

    def _spill(self, best: Validated) -> None:
        if self.scratch is None:
            return
        try:
            spill(best.network["tensors"].values(), self.scratch)
        except OSError as error:
            why = f"{self.scratch}: {error.strerror or error}"
            warnings.warn(f"the best network so far stays in memory: {why}", stacklevel=2)
            self.scratch = None

    def _delivered_best(self) -> list[Delivered]:
        """Decide by a last look at the whole of validation: which unproven seeds stay, and whether an earlier network
        was better."""
        self._ask_gates()
        views = self.engine.views(self.envs)
        slots = [unproven(view) for view in views]
        asked = [looks(each) for each in slots]
        found = self.engine.evaluate(self.envs, asked)
        out = [left_out(each, _scored(found, i, len(asked[i])), self.metric) for i, each in enumerate(slots)]
        known = all(each in these for each, these in zip(out, asked, strict=True))
        if not known:
            asked = [[each] for each in out]
            found = self.engine.evaluate(self.envs, asked)
        last = [_scored(found, i, len(these))[these.index(out[i])] for i, these in enumerate(asked)]
        return [self._chosen(i, views[i], out[i], scored) for i, scored in enumerate(last)]

    def _chosen(self, i: int, view: EnvView, out: AlphaConfig, scored: Scored) -> Delivered:
        """The last network without the seeds ``out``, or the best one before it."""
        best = self._envs[i].best
        if best is not None and (best.epoch, best.seeds) == (self.epoch, taking_part(view, out)):
            scored = best.scored  # the very network, whatever rounding says
        if best is not None and better(best.scored, scored, self.metric):
            return self._go_back(i, best)
        slots = unproven(view)
        self.engine.conclude([i], [slot for slot in slots if slot not in out], why_left_out(slots))
        return Delivered(*scored, "last", view.epoch)

    def _ask_gates(self) -> None:
        """Ask the gate of every seed that holds, and of every one behind the host that is ready to be blended in,
        unless the policy has just asked it in vain."""
        asked = {(i, outcome.action.slot) for i, outcome in enumerate(self._outcomes) if outcome.action.op in _UPWARDS}
        while True:
            decisions = [_WAITING] * len(self._envs)
            for i, view in enumerate(self.engine.views(self.envs)):
                due = next((d for s in view.slots if (i, s.slot_id) not in asked and (d := _last_step(view, s))), None)
                if due is not None:
                    asked.add((i, due.action.slot))
                    decisions[i] = due
            if decisions == [_WAITING] * len(self._envs):
                return
            self._act(decisions)

    def _go_back(self, i: int, best: Validated) -> Delivered:
        self.engine.deliver(i, best.network, best.epoch)
        return Delivered(best.metric, best.loss, "best", best.epoch)

    def state(self) -> State:
        """Everything that the episode under way needs to go on bit for bit, as it is between two epochs."""
        return self.take(self.envs).state()

    def take(self, envs: Iterable[int]) -> SavedEnvs:
        """The same of some envs; :meth:`SavedEnvs.join` puts such parts together for :meth:`load`."""
        wanted = list(envs)
        specs = tuple(self._envs[i].spec for i in wanted)
        return SavedEnvs(self.epoch, specs, tuple(self._env_state(i) for i in wanted))

    def load(self, state: Mapping[str, Any]) -> list[EnvView]:
        """Undo of :meth:`state`, without a word: the episode was announced before. Returns the envs' views."""
        envs = SavedEnvs.of(state)
        self._open(envs.specs)
        for i, env in enumerate(self._envs):
            saved = split(envs.envs[i])
            best = saved.pop("best", None)
            if set(saved) != {"own", "engine", "governor"}:
                raise DataError(f"the saved state of env {i} has the parts {', '.join(sorted(saved))}")
            env.best = None if best is None else Validated.load(best)
            self.engine.load(i, saved["engine"])
            env.governor.load(saved["governor"])
            env.seconds = saved["own"]["plain"]["seconds"]
            env.event_writer.load(saved["own"]["plain"]["narrator"])
        self._set_clock(envs.epoch)
        return self.engine.views(self.envs)

    @property
    def outcomes(self) -> list[dict[str, Any]]:
        """What became of the actions with which the epoch under way began, JSON-able."""
        return [plain_outcome(outcome) for outcome in self._outcomes]

    @outcomes.setter
    def outcomes(self, plain: Sequence[Mapping[str, Any]]) -> None:
        self._outcomes = [read_outcome(each) for each in plain]

    def _env_state(self, i: int) -> State:
        env = self._envs[i]
        own = plain_state({"seconds": env.seconds, "narrator": env.event_writer.state()})
        kept = {"own": own, "engine": self.engine.state(i), "governor": env.governor.state()}
        return join(kept if env.best is None else {**kept, "best": env.best.state()})

    def _open(self, specs: Sequence[EnvSpec]) -> None:
        """Fresh envs, not yet announced."""
        self.engine.reset(specs)
        self._envs = []
        for spec in specs:
            event_writer = EpisodeEventWriter(spec, self.metric, self._emit)
            self._envs.append(_Env(spec, event_writer, self._make_governor(event_writer.of_governor)))

    def _set_clock(self, epoch: int) -> None:
        self.epoch = epoch
        for env in self._envs:
            env.event_writer.epoch = epoch

    def _act(self, decisions: Sequence[Decision]) -> list[ActionOutcome]:
        """Act on each env's decision, then on what else it asks for; what became of the first is told."""
        outcomes = self._act_on(self.envs, decisions)
        for i, decision in enumerate(decisions):
            for another in decision.also:
                self._act_on([i], [another])
        return outcomes

    def _act_on(self, envs: Sequence[int], decisions: Sequence[Decision]) -> list[ActionOutcome]:
        """Ask the governor, then the engine; every command other than WAIT leaves two events."""
        views = self.engine.views(envs)
        vetoes: list[str | None] = []
        for i, view, decision in zip(envs, views, decisions, strict=True):
            env = self._envs[i]
            if decision.macs:
                self.engine.charge(i, "policy", decision.macs)
            env.event_writer.command_issued(decision)
            vetoes.append(env.governor.preflight(view, decision.action))
        allowed = [d.action if veto is None else FactoredAction() for d, veto in zip(decisions, vetoes, strict=True)]
        outcomes = self.engine.apply(envs, allowed, [decision.reason for decision in decisions])
        for i, (decision, veto) in enumerate(zip(decisions, vetoes, strict=True)):
            if veto is not None:
                outcomes[i] = ActionOutcome(decision.action, success=False, illegal=True, why_not=veto)
        if any(outcome.success and outcome.action != WAIT for outcome in outcomes):
            views = self.engine.views(envs)
        for i, view, outcome in zip(envs, views, outcomes, strict=True):
            self._envs[i].event_writer.command_answered(outcome)
            self._envs[i].event_writer.note_births(view)
        return outcomes

    def _plan(self, i: int, view: EnvView, outcome: ActionOutcome) -> CounterfactualPlan:
        if self.epoch % self.config.counterfactual_every or not outcome.look:
            live = [slot.slot_id for slot in view.slots if slot.live]
            return CounterfactualPlan(unread=dict.fromkeys(live, "not_scheduled"))
        every, governor = self.config.shapley_every, self._envs[i].governor.config
        due = self.epoch % every == 0 if every else self.epoch == view.max_epochs
        return plan(view, Need(due, self.config.all_off, governor.evidence_age, governor.dependence))

    def _rolled_back(self, i: int, readout: Readout, trained: TrainResult, outcome: ActionOutcome) -> bool:
        """Let the governor judge the epoch, and go back to the last good state on a panic."""
        governor = self._envs[i].governor
        verdict = governor.observe(
            self.epoch,
            train_loss=trained.loss,
            val_loss=readout.loss,
            metric=readout.metric,
            weights_finite=trained.weights_finite,
            acted=outcome.action if outcome.success else None,
        )
        if verdict.ok:
            return False
        rollback = governor.rollback(self.epoch)
        if rollback is None:
            raise RuntimeError("a state is kept before the first epoch; there is always one to go back to")
        self.engine.rewind(i, rollback.state)
        if rollback.suspect is not None:
            self.engine.quarantine(i, rollback.suspect, rollback.veto_epochs, rollback.reason)
        return True

    def _settle(self, i: int, trained: EnvView, readout: Readout, result: EvalResult, rolled_back: bool) -> EnvView:
        """Record the epoch's facts and let the slots tick; of a state that is gone nothing is recorded."""
        env = self._envs[i]
        if rolled_back:
            self.engine.settle([i], self.epoch, [EpochMeasurement(None, None, {})])
            return self.engine.views([i])[0]
        env.event_writer.counterfactuals(trained, readout, result, i)
        self.engine.settle([i], self.epoch, [EpochMeasurement(readout.metric, readout.loss, readout.facts)])
        view = self.engine.views([i])[0]
        if env.governor.snapshot_due(self.epoch):
            env.governor.keep(self.epoch, self.engine.state(i), loss=view.loss, metric=view.metric)
        return view


def _last_step(view: EnvView, slot: SlotView) -> Decision | None:
    """What is asked for a seed when the episode ends."""
    if slot.stage is SeedStage.HOLDING:
        return Decision(FactoredAction(Op.FOSSILIZE, slot.slot_id), "the episode ends: kept if it is proven")
    ready = slot.stage is SeedStage.TRAINING and slot.alpha == 0.0
    if ready and all(check.passed for check in before_blending(Shown.of_view(slot), view.gates)):
        return Decision(FactoredAction(Op.ADVANCE, slot.slot_id), "the episode ends: blended in, since it is ready")
    return None


def _scored(result: EvalResult, env: int, configs: int) -> list[Scored]:
    """Metric and loss of an env under each of its configurations."""
    return [(float(result.metric[env, i]), float(result.loss[env, i])) for i in range(configs)]


def _first(result: EvalResult) -> list[Scored]:
    """Metric and loss of every env under its first configuration."""
    return [_scored(result, env, 1)[0] for env in range(len(result.metric))]
