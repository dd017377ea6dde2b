"""What a rollout records, by environments whose every number is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from esper.leyline import DataError, UsageError
from esper.simic.adapter import FlatNetwork
from esper.simic.collect import Collector, MaskedObservation, VectorStep, mean_return
from esper.tamiyo.heads import independent_heads


class Counter:
    """Shows the step within the episode; pays it too; ends after ``length[i]`` steps, as told."""

    def __init__(self, lengths: list[int], terminal: bool = False, same_step: bool = True) -> None:
        self.heads = independent_heads([2])
        self.size = len(lengths)
        self.lengths = torch.tensor(lengths)
        self.terminal = terminal
        self.same_step = same_step
        self.reward: float | None = None

    def reset(self, seed: int) -> MaskedObservation:
        self.clock = torch.zeros(self.size, dtype=torch.long)
        self.late = torch.zeros(self.size, dtype=torch.bool)
        return self._seen()

    def step(self, actions: Tensor) -> VectorStep:
        late = self.late
        rewards = self.clock.double() if self.reward is None else torch.full((self.size,), self.reward)
        self.clock = torch.where(late, 0, self.clock + 1)
        ended = ~late & (self.clock == self.lengths)
        final = self._seen().observation
        if self.same_step:
            self.clock = torch.where(ended, 0, self.clock)
        else:
            self.late = ended
        return VectorStep(
            self._seen(),
            torch.where(late, 0.0, rewards),
            ended & self.terminal,
            ended,
            ended if self.same_step else late,
            ~late,
            final if self.same_step else None,
        )

    def _seen(self) -> MaskedObservation:
        return MaskedObservation({"obs": self.clock[:, None].float()}, self.heads.all_legal(self.size))


def _collector(environments: Counter, cells: int = 4, seed: int = 0) -> Collector:
    torch.manual_seed(0)
    return Collector(environments, FlatNetwork(1, environments.heads, (3,), cells), gamma=0.9, seed=seed)


@torch.no_grad()
def _replayed_values(collector: Collector, length: int) -> list[float]:
    """V of an episode's observations 0..length, one step after the other."""
    network, values = collector.network, []
    state = network.initial_state(1)
    for t in range(length + 1):
        output, state = network.step({"obs": torch.tensor([[float(t)]])}, state, torch.tensor([t == 0]))
        values.append(float(output.value))
    return values


@pytest.mark.parametrize("same_step", [True, False])
def test_values_of_what_a_step_led_to_stay_within_its_episode(same_step: bool) -> None:
    collector = _collector(Counter([3, 5], same_step=same_step))
    rollout, _ = collector.collect(12)
    for row, length in enumerate((3, 5)):
        values = torch.tensor(_replayed_values(collector, length))
        period = length if same_step else length + 1
        for t in range(12):
            place = t % period
            if place == length:
                assert not rollout.valid[t, row] and rollout.cuts[t, row]
                continue
            assert rollout.valid[t, row]
            assert rollout.starts[t, row] == (place == 0)
            assert rollout.cuts[t, row] == (place == length - 1)
            # one row or several at once are other kernels
            torch.testing.assert_close(rollout.values[t, row], values[place], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(rollout.next_values[t, row], values[place + 1], atol=1e-5, rtol=1e-5)
    assert (rollout.discounts[rollout.valid] == 0.9).all()


def test_a_terminal_state_has_no_discount_even_if_truncated_too() -> None:
    rollout, _ = _collector(Counter([3], terminal=True)).collect(6)
    assert rollout.discounts.flatten().tolist() == pytest.approx([0.9, 0.9, 0.0] * 2)


@pytest.mark.parametrize("same_step", [True, False])
def test_bootstrapping_does_not_advance_the_memory(same_step: bool) -> None:
    whole, _ = _collector(Counter([3, 5], same_step=same_step)).collect(12)
    collector = _collector(Counter([3, 5], same_step=same_step))
    parts = [collector.collect(steps)[0] for steps in (1, 2, 4, 5)]
    for name in ("values", "next_values", "actions", "log_probs", "starts", "cuts"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name)), name


def test_episodes_are_counted_across_rollouts() -> None:
    collector = _collector(Counter([3, 5], same_step=False))
    episodes = [episode for _ in range(4) for episode in collector.collect(3)[1]]
    assert [(e.environment, e.episode_return, e.steps) for e in episodes] == [
        (0, 3.0, 3),
        (1, 10.0, 5),
        (0, 3.0, 3),
        (0, 3.0, 3),
        (1, 10.0, 5),
    ]
    assert mean_return(episodes) == pytest.approx((9 + 20) / 5)
    assert mean_return([]) is None


def test_a_checkpoint_continues_bit_for_bit() -> None:
    whole = _collector(Counter([3, 5]))
    whole.collect(4)
    saved = whole.checkpoint()
    expected, _ = whole.collect(7)
    other = _collector(Counter([3, 5]), seed=99)
    other.collect(4)
    other.restore(saved)
    resumed, _ = other.collect(7)
    for name in ("actions", "log_probs", "values", "next_values", "starts"):
        assert torch.equal(getattr(resumed, name), getattr(expected, name)), name


def test_a_checkpoint_within_a_rollout_continues_it_bit_for_bit() -> None:
    whole = _collector(Counter([3, 2, 4]))
    whole.collect(2)
    wanted = [whole.collect(5) for _ in range(2)]
    cut = _collector(Counter([3, 2, 4]))
    cut.collect(2)
    saved: list[tuple[dict[str, Tensor], Tensor, Tensor]] = []
    environments = cut.environments
    assert isinstance(environments, Counter)
    cut.on_step = lambda: saved.append((cut.checkpoint(), environments.clock.clone(), environments.late.clone()))
    cut.collect(5)
    assert len(saved) == 4, "between steps, not behind the last"
    for state, clock, late in saved:
        again = _collector(Counter([3, 2, 4]), seed=9)
        again.restore(state)
        again.environments.clock, again.environments.late = clock.clone(), late.clone()  # type: ignore[attr-defined]
        for rollout, episodes in wanted:
            mine, finished = again.collect(5)
            assert finished == episodes
            assert all(torch.equal(a, b) for a, b in zip(mine.state, rollout.state, strict=True))
            for name in ("actions", "log_probs", "values", "next_values", "rewards", "discounts", "starts", "cuts"):
                assert torch.equal(getattr(mine, name), getattr(rollout, name)), name


def test_what_cannot_be_learnt_from_is_refused_by_name() -> None:
    environments = Counter([3, 5])
    collector = _collector(environments)
    with pytest.raises(UsageError, match="a rollout of 0 steps"):
        collector.collect(0)
    environments.reward = float("nan")
    with pytest.raises(DataError, match="environment 0: the reward is nan"):
        collector.collect(1)
    environments.reward = 1.0
    environments.clock = environments.clock.double() * float("nan")
    with pytest.raises(DataError, match="environment 0: part 'obs' of the observation is not finite"):
        collector.collect(2)


def test_a_cut_without_its_final_observation_is_refused() -> None:
    class Forgetful(Counter):
        def step(self, actions: Tensor) -> VectorStep:
            outcome = super().step(actions)
            return VectorStep(
                outcome.seen, outcome.rewards, outcome.terminated, outcome.ended, outcome.starts, outcome.valid
            )

    with pytest.raises(DataError, match="environment 0: an episode was cut without its final observation"):
        _collector(Forgetful([3, 5])).collect(4)
    _collector(Forgetful([3, 5], terminal=True)).collect(4)
