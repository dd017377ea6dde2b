"""Our learner beside Stable-Baselines3 on CartPole, with and without velocities: steps to the threshold, five seeds.

    uv run python benchmarks/conformance.py [--seeds 5] [--output docs/conformance.md]

Every 2,048 transitions ten greedy episodes are played; "steps" is the first such point at which their mean return
reaches the threshold. Hyper-parameters are those of the reference (RL Zoo for CartPole-v1, sb3-contrib's own test for
CartPole without velocities) on both sides, but that ours also normalises returns, has one trunk for policy and value,
cuts minibatches by environments, does not anneal the clip range, and normalises observations without velocities.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from esper.simic.adapter import GymEnvironments, GymPolicyAdapter, LearnProgress
from esper.simic.ppo import PPOConfig

WHAT = """CartPole-v1 with and without velocities. Steps are transitions until ten greedy episodes, played every 2,048
transitions, reach the threshold on average. Both sides have the hyper-parameters of the reference (RL Zoo; the test of
RecurrentPPO in sb3-contrib), less what the head of the script names. A budget of 100,000 transitions a seed."""
EVERY = 2_048
GAMES = 10


@dataclass(frozen=True)
class Outcome:
    """One seed. ``steps`` is ``None`` where the threshold was not reached within the budget."""

    steps: int | None
    best: float
    seconds: float


@dataclass(frozen=True)
class Contest:
    """One environment, two learners and their control."""

    name: str
    threshold: float
    budget: int
    make: Callable[[], gym.Env[Any, Any]]
    ours: Callable[[int], GymPolicyAdapter]
    ours_schedule: Callable[[float], float]
    theirs: Callable[[int], Any]
    control: Callable[[int], GymPolicyAdapter] | None = None


def cartpole() -> gym.Env[Any, Any]:
    """CartPole-v1."""
    return gym.make("CartPole-v1")


def without_velocities() -> gym.Env[Any, Any]:
    """CartPole-v1 that shows position and angle only: memory is needed."""
    env = gym.make("CartPole-v1")
    space = env.observation_space
    assert isinstance(space, gym.spaces.Box)
    seen = gym.spaces.Box(space.low[[0, 2]], space.high[[0, 2]], dtype=np.float32)
    return gym.wrappers.TransformObservation(env, lambda obs: obs[[0, 2]], seen)


def vector(make: Callable[[], gym.Env[Any, Any]], count: int) -> SyncVectorEnv:
    """``count`` environments that reset within the step that ends."""
    return SyncVectorEnv([make] * count, autoreset_mode=AutoresetMode.SAME_STEP)


def greedy_return(adapter: GymPolicyAdapter, make: Callable[[], gym.Env[Any, Any]], seed: int) -> float:
    """Mean return of ``GAMES`` first episodes under the likeliest actions."""
    environments = GymEnvironments(vector(make, GAMES))
    seen = environments.reset(seed)
    state, starts = adapter.network.initial_state(GAMES), torch.ones(GAMES, dtype=torch.bool)
    returns, playing = torch.zeros(GAMES), torch.ones(GAMES, dtype=torch.bool)
    while playing.any():
        actions, state = adapter.act(seen, state, starts)
        outcome = environments.step(actions)
        returns += outcome.rewards * playing
        playing &= ~outcome.ended
        seen, starts = outcome.seen, outcome.starts
    return float(returns.mean())


def run_ours(contest: Contest, adapter: GymPolicyAdapter, seed: int) -> Outcome:
    """Train ours until the threshold or the budget."""
    started, best, reached, due = time.perf_counter(), 0.0, None, EVERY

    def judge(progress: LearnProgress) -> bool:
        nonlocal best, reached, due
        if progress.steps < due:
            return False
        due += EVERY
        score = greedy_return(adapter, contest.make, 10_000 + seed)
        best = max(best, score)
        reached = progress.steps if score >= contest.threshold else None
        return reached is not None

    adapter.learn(contest.budget, judge, contest.ours_schedule)
    return Outcome(reached, best, time.perf_counter() - started)


class _Judge(BaseCallback):
    def __init__(self, contest: Contest, seed: int) -> None:
        super().__init__()
        self.contest = contest
        self.env = make_vec_env(contest.make, GAMES, seed=10_000 + seed)
        self.due = EVERY
        self.best = 0.0
        self.reached: int | None = None

    def _on_step(self) -> bool:
        return self.reached is None

    def _on_rollout_start(self) -> None:
        if self.num_timesteps < self.due:
            return
        self.due += EVERY
        score, _ = evaluate_policy(self.model, self.env, GAMES, warn=False)
        assert isinstance(score, float)
        self.best = max(self.best, float(score))
        if score >= self.contest.threshold:
            self.reached = self.num_timesteps


def run_theirs(contest: Contest, seed: int) -> Outcome:
    """Train SB3 until the threshold or the budget."""
    started = time.perf_counter()
    judge = _Judge(contest, seed)
    contest.theirs(seed).learn(contest.budget, judge)
    return Outcome(judge.reached, judge.best, time.perf_counter() - started)


ZOO = PPOConfig(gamma=0.98, gae_lambda=0.8, learning_rate=1e-3, entropy_coefficient=0.0, epochs=20, target_kl=None)
RECURRENT = PPOConfig(
    gamma=0.99,
    gae_lambda=0.98,
    learning_rate=7e-4,
    entropy_coefficient=0.0,
    epochs=10,
    minibatches=4,
    max_grad_norm=1.0,
    target_kl=None,
    normalise_observations=True,
)


def contests() -> list[Contest]:
    """C15 and C14."""

    def theirs(seed: int) -> PPO:
        return PPO(
            "MlpPolicy",
            make_vec_env(cartpole, 8, seed=seed),
            n_steps=32,
            batch_size=256,
            n_epochs=20,
            gamma=0.98,
            gae_lambda=0.8,
            ent_coef=0.0,
            learning_rate=lambda left: 1e-3 * left,
            clip_range=lambda left: 0.2 * left,
            seed=seed,
            device="cpu",
        )

    def their_memory(seed: int) -> RecurrentPPO:
        return RecurrentPPO(
            "MlpLstmPolicy",
            make_vec_env(without_velocities, 8, seed=seed),
            n_steps=128,
            batch_size=256,
            n_epochs=10,
            learning_rate=7e-4,
            gae_lambda=0.98,
            max_grad_norm=1,
            policy_kwargs={
                "net_arch": {"vf": [64], "pi": []},
                "lstm_hidden_size": 64,
                "ortho_init": False,
                "enable_critic_lstm": True,
            },
            seed=seed,
            device="cpu",
        )

    return [
        Contest(
            "C15 CartPole-v1",
            475,
            100_000,
            cartpole,
            lambda seed: GymPolicyAdapter(vector(cartpole, 8), ZOO, 32, seed=seed),
            lambda progress: 1 - progress,
            theirs,
        ),
        Contest(
            "C14 CartPole-v1 without velocities",
            450,
            100_000,
            without_velocities,
            lambda seed: GymPolicyAdapter(
                vector(without_velocities, 8), RECURRENT, 128, hidden=(64,), cells=64, seed=seed
            ),
            lambda progress: 1.0,
            their_memory,
            lambda seed: GymPolicyAdapter(vector(without_velocities, 8), RECURRENT, 128, seed=seed),
        ),
    ]


@dataclass(frozen=True)
class Result:
    """A contest over several seeds."""

    contest: Contest
    ours: list[Outcome]
    theirs: list[Outcome]
    control: list[Outcome]

    def summary(self) -> list[str]:
        """Lines of Markdown."""
        lines = [f"### {self.contest.name}, threshold {self.contest.threshold:g}", ""]
        lines += [
            "| learner | steps to the threshold, by seed | median | best greedy return, by seed |",
            "|---|---|---|---|",
        ]
        for name, outcomes in (("Esper", self.ours), ("SB3", self.theirs), ("no memory (Esper)", self.control)):
            if outcomes:
                steps = ", ".join("not reached" if each.steps is None else f"{each.steps:,}" for each in outcomes)
                best = ", ".join(f"{each.best:.0f}" for each in outcomes)
                lines.append(f"| {name} | {steps} | {median_steps(outcomes):,.0f} | {best} |")
        return [*lines, ""]


def median_steps(outcomes: list[Outcome]) -> float:
    """Median over seeds; a seed that never got there counts as infinitely many."""
    return statistics.median(float("inf") if outcome.steps is None else outcome.steps for outcome in outcomes)


def play(contest: Contest, seeds: range) -> Result:
    """Run every learner on every seed, side by side."""
    ours, theirs, control = [], [], []
    for seed in seeds:
        ours.append(run_ours(contest, contest.ours(seed), seed))
        theirs.append(run_theirs(contest, seed))
        if contest.control is not None:
            control.append(run_ours(contest, contest.control(seed), seed))
        print(contest.name, f"seed {seed}", ours[-1], theirs[-1], *control[-1:], flush=True)
    return Result(contest, ours, theirs, control)


def main() -> None:
    """Run every contest and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = [play(contest, range(arguments.seeds)) for contest in contests()]
    text = "\n".join(line for result in results for line in result.summary())
    if arguments.output is None:
        print(text)
    else:
        head = f"# Our learner beside Stable-Baselines3\n\n    uv run python benchmarks/conformance.py\n\n{WHAT}\n\n"
        arguments.output.write_text(head + text, encoding="utf-8")


if __name__ == "__main__":
    main()
