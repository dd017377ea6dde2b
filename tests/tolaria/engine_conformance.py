"""What every engine must do, whatever it is made of. A test module subclasses this and says how to make one."""

from __future__ import annotations

from esper.leyline import Blend, EnvSpec, EpochMeasurement, FactoredAction, HostEngine, Metric, Op, SeedStage
from esper.tolaria.counterfactual import plan, read

METRIC = Metric("accuracy", "%", chance=10.0)


def spec(env_id: int = 0, seed: int = 3, epochs: int = 12) -> EnvSpec:
    return EnvSpec(env_id, 0, seed, epochs, "grown", "test")


class EngineConformance:
    """``make_engine`` gives a fresh engine with two slots or more; ``blueprint`` names one that fits the first slot."""

    blueprint = "good"

    def make_engine(self) -> HostEngine:
        raise NotImplementedError

    def germinate(self, engine: HostEngine, env: int = 0) -> None:
        slot = engine.views([env])[0].slots[0].slot_id
        action = FactoredAction(Op.GERMINATE, slot, self.blueprint, Blend.LINEAR, 1.0, 1)
        (outcome,) = engine.apply([env], [action])
        assert outcome.success, outcome.why_not

    def epoch(self, engine: HostEngine, envs: list[int], number: int) -> list[float]:
        """Train, measure and settle; the training losses."""
        trained = engine.train_epoch(envs)
        plans = [plan(view) for view in engine.views(envs)]
        result = engine.evaluate(envs, [each.configs for each in plans])
        readouts = [read(each, result, i, METRIC) for i, each in enumerate(plans)]
        engine.settle(envs, number, [EpochMeasurement(r.metric, r.loss, r.facts) for r in readouts])
        return [each.loss for each in trained]

    def test_it_has_the_protocol(self) -> None:
        assert isinstance(self.make_engine(), HostEngine)

    def test_rows_with_the_same_seed_are_the_same_and_do_not_feel_each_other(self) -> None:
        alone, beside = self.make_engine(), self.make_engine()
        alone.reset([spec()])
        beside.reset([spec(1, seed=9), spec(0)])
        for number in (1, 2):
            assert self.epoch(alone, [0], number)[0] == self.epoch(beside, [0, 1], number)[1]
        assert alone.views([0])[0].metric == beside.views([1])[0].metric

    def test_an_illegal_action_changes_nothing(self) -> None:
        engine = self.make_engine()
        engine.reset([spec()])
        before = engine.views([0])
        (outcome,) = engine.apply([0], [FactoredAction(Op.FOSSILIZE, before[0].slots[0].slot_id)])
        assert outcome.illegal and outcome.why_not
        assert engine.views([0])[0].slots == before[0].slots

    def test_evaluation_leaves_no_trace(self) -> None:
        one, other = self.make_engine(), self.make_engine()
        for engine in (one, other):
            engine.reset([spec()])
            self.germinate(engine)
        slot = one.views([0])[0].slots[0].slot_id
        for _ in range(3):
            one.evaluate([0], [({}, {slot: 1.0}, {slot: 0.5})])
        assert self.epoch(one, [0], 1) == self.epoch(other, [0], 1)
        assert one.views([0])[0].metric == other.views([0])[0].metric

    def test_the_first_configuration_has_no_error_and_padding_is_nan(self) -> None:
        engine = self.make_engine()
        engine.reset([spec(0), spec(1)])
        self.germinate(engine, 1)
        slot = engine.views([1])[0].slots[0].slot_id
        result = engine.evaluate([0, 1], [({},), ({}, {slot: 1.0})])
        assert result.metric.shape == (2, 2) and result.metric[0, 1] != result.metric[0, 1]
        assert result.passes.shape == result.seconds.shape == (2,)

    def test_state_and_load_continue_bit_for_bit_also_from_another_topology(self) -> None:
        engine, other = self.make_engine(), self.make_engine()
        engine.reset([spec()])
        other.reset([spec(seed=77)])
        self.epoch(engine, [0], 1)
        self.germinate(engine)
        self.epoch(engine, [0], 2)
        other.load(0, engine.state(0))
        for number in (3, 4, 5):
            assert self.epoch(engine, [0], number) == self.epoch(other, [0], number)
            assert engine.views([0])[0].metric == other.views([0])[0].metric
        assert engine.views([0])[0].slots == other.views([0])[0].slots

    def test_a_state_does_not_move_with_the_row(self) -> None:
        engine = self.make_engine()
        engine.reset([spec()])
        kept = engine.state(0)
        first = [self.epoch(engine, [0], number)[0] for number in (1, 2)]
        engine.load(0, kept)
        assert [self.epoch(engine, [0], number)[0] for number in (1, 2)] == first

    def test_a_rewound_row_repeats_itself_but_keeps_its_clock_and_its_bill(self) -> None:
        engine = self.make_engine()
        engine.reset([spec()])
        self.epoch(engine, [0], 1)
        kept = engine.state(0)
        losses = [self.epoch(engine, [0], number)[0] for number in (2, 3)]
        spent = engine.costs([0])[0].spent["total_macs"]
        engine.rewind(0, kept)
        assert engine.costs([0])[0].spent["total_macs"] == spent
        assert engine.views([0])[0].epoch == 3
        assert [self.epoch(engine, [0], number)[0] for number in (4, 5)] == losses
        assert engine.costs([0])[0].spent["total_macs"] > spent

    def test_what_others_charge_is_on_the_rows_bill(self) -> None:
        engine = self.make_engine()
        engine.reset([spec(), spec(1)])
        before = [cost.spent["total_macs"] for cost in engine.costs([0, 1])]
        engine.charge(1, "policy", 12)
        after = engine.costs([0, 1])
        assert [cost.spent["total_macs"] for cost in after] == [before[0], before[1] + 12]
        assert after[1].spent["policy_macs"] == 12

    def test_quarantine_empties_the_slot_and_keeps_it_empty(self) -> None:
        engine = self.make_engine()
        engine.reset([spec()])
        self.germinate(engine)
        slot = engine.views([0])[0].slots[0].slot_id
        engine.quarantine(0, slot, 3, "it exploded")
        view = engine.views([0])[0]
        assert slot in view.vetoed and not view.slots[0].live

    def test_conclude_leaves_only_what_was_fossilized(self) -> None:
        engine = self.make_engine()
        engine.reset([spec()])
        self.germinate(engine)
        self.epoch(engine, [0], 1)
        engine.conclude([0], (), "over")
        assert not any(slot.live for slot in engine.views([0])[0].slots)

    def test_a_network_is_delivered_as_it_was_with_the_seeds_that_took_part(self) -> None:
        engine = self.make_engine()
        engine.reset([spec()])
        self.epoch(engine, [0], 1)
        expected = engine.evaluate([0], [({},)])
        network = engine.network(0)
        self.germinate(engine)
        for number in (2, 3):
            self.epoch(engine, [0], number)
        spent = engine.costs([0])[0].spent["total_macs"]
        engine.deliver(0, network, 1)
        (view,) = engine.views([0])
        assert view.epoch == 3 and not any(slot.live for slot in view.slots)
        assert engine.costs([0])[0].spent["total_macs"] == spent
        found = engine.evaluate([0], [({},)])
        assert (found.metric[0, 0], found.loss[0, 0]) == (expected.metric[0, 0], expected.loss[0, 0])

    def test_costs_name_every_purpose_once(self) -> None:
        engine = self.make_engine()
        engine.reset([spec()])
        self.epoch(engine, [0], 1)
        (cost,) = engine.costs([0])
        assert cost.total_parameters >= cost.host_parameters > 0
        assert {"train_forward_macs", "validation_macs", "total_macs"} <= set(cost.spent)

    def test_stages_are_those_of_the_lifecycle(self) -> None:
        engine = self.make_engine()
        engine.reset([spec()])
        self.germinate(engine)
        assert engine.views([0])[0].slots[0].stage is SeedStage.GERMINATED
        self.epoch(engine, [0], 1)
        assert engine.views([0])[0].slots[0].stage is SeedStage.TRAINING
