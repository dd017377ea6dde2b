"""Learners of other packages on the table, unchanged: whether they train, keep to the masks, and how fast they step.

    uv run python benchmarks/clients.py --into docs/environments.md      # those that `uv sync` installs
    .ci/clients                                                          # the others, each with what it pins
    uv run python benchmarks/clients.py --speed --into docs/environments.md

A client that is not named is tried where its package is installed. Rows of clients that were not run stay as they are.
Steps a second are CPU time of one thread, learning included; the return is the mean of the last 20 training episodes.
A client that is given the masks and acts illegally all the same ends the program with status 1.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.wrappers import RecordEpisodeStatistics

from esper.bench.report import into_page

HEADS, FLAT = "esper:esper/GrowTable-v0", "esper:esper/GrowTableFlat-v0"
STEPS = 512
HEADER = "| client | package | actions | masks | steps | illegal | return | steps a CPU second |\n"
SPEED = "| environment | made with | steps a CPU second | % outside of the host |\n|---|---|--:|--:|"
HEADER += "|---|---|---|---|--:|--:|--:|--:|"


@dataclass(frozen=True)
class Client:
    """``train(environments, steps)`` with ``rows`` environments; ``masked``: whether it is given the masks."""

    package: str
    distribution: str
    environment: str
    masked: bool
    rows: int
    train: Callable[[list[Any], int], Any]


@dataclass(frozen=True)
class Trained:
    """What a client did."""

    steps: int
    illegal: int
    returns: list[float]
    seconds: float


def make(name: str) -> Any:
    """One environment, counted."""
    return RecordEpisodeStatistics(gymnasium.make(name, worlds="digits"))


def run(client: Client, steps: int = STEPS) -> Trained:
    """Train for about so many steps, and count what the environments saw."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)
    envs = [make(client.environment) for _ in range(client.rows)]
    for i, env in enumerate(envs):
        env.action_space.seed(i)
    began = time.process_time()
    # what trained may hold other copies of the environments, where a client insists on making them
    envs = client.train(envs, steps) or envs
    seconds = time.process_time() - began
    returns = [float(value) for env in envs for value in env.get_wrapper_attr("return_queue")]
    made = sum(sum(env.get_wrapper_attr("length_queue")) + _unfinished(env) for env in envs)
    illegal = sum(env.get_wrapper_attr("illegal_actions") for env in envs)
    return Trained(int(made), int(illegal), returns, seconds)


def _unfinished(env: Any) -> int:
    """Steps of the episode under way."""
    view = env.unwrapped.view
    return 0 if env.unwrapped.over else view.epoch


def ours(envs: list[Any], steps: int) -> None:
    """The package's learner through Gymnasium."""
    from gymnasium.vector import SyncVectorEnv

    from esper.simic.adapter import GymPolicyAdapter
    from esper.simic.ppo import PPOConfig

    members = [lambda env=env: env for env in envs]
    GymPolicyAdapter(SyncVectorEnv(members), PPOConfig(gamma=1.0), 32).learn(steps)  # type: ignore[arg-type]


def sb3(name: str, **options: Any) -> Callable[[list[Any], int], None]:
    """A learner of stable-baselines3 or sb3-contrib."""

    def train(envs: list[Any], steps: int) -> None:
        import sb3_contrib
        import stable_baselines3
        from stable_baselines3.common.vec_env import DummyVecEnv

        kind = getattr(stable_baselines3, name, None) or getattr(sb3_contrib, name)
        policy = "MlpLstmPolicy" if name == "RecurrentPPO" else "MlpPolicy"
        model = kind(policy, DummyVecEnv([lambda env=env: env for env in envs]), seed=0, device="cpu", **options)
        before = [p.clone() for p in model.policy.parameters()]
        model.learn(steps)
        assert any(not torch.equal(a, b) for a, b in zip(before, model.policy.parameters(), strict=True))

    return train


def mlp(width: int, out: int) -> torch.nn.Sequential:
    """Two layers of tanh."""
    layers = torch.nn.Sequential(torch.nn.Linear(width, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64), torch.nn.Tanh())
    return layers.append(torch.nn.Linear(64, out))


def cleanrl(envs: list[Any], steps: int) -> None:
    """PPO in one function, as cleanrl writes it, with masks from ``info``."""
    from gymnasium.vector import AutoresetMode, SyncVectorEnv

    rows, length = len(envs), 32
    vector = SyncVectorEnv([lambda env=env: env for env in envs], autoreset_mode=AutoresetMode.SAME_STEP)  # type: ignore[misc]
    width, choices = vector.single_observation_space.shape[0], int(vector.single_action_space.n)  # type: ignore[index,attr-defined]
    actor, critic = mlp(width, choices), mlp(width, 1)
    parameters = [*actor.parameters(), *critic.parameters()]
    optimizer = torch.optim.Adam(parameters, 1e-3)

    def masked(seen: torch.Tensor, mask: torch.Tensor) -> torch.distributions.Categorical:
        return torch.distributions.Categorical(logits=actor(seen).masked_fill(~mask, -1e8))

    seen, info = vector.reset(seed=0)
    for _ in range(max(1, steps // (rows * length))):
        kept: list[tuple[torch.Tensor, ...]] = []
        for _ in range(length):
            now, mask = torch.tensor(seen), torch.tensor(info["action_mask"], dtype=torch.bool)
            with torch.no_grad():
                distribution = masked(now, mask)
                action, value = distribution.sample(), critic(now)[:, 0]
            seen, reward, terminated, _, info = vector.step(action.numpy())
            paid, over = torch.tensor(reward / 20, dtype=torch.float32), torch.tensor(terminated)
            kept.append((now, mask, action, distribution.log_prob(action), value, paid, over))
        with torch.no_grad():
            following, last = critic(torch.tensor(seen))[:, 0], torch.zeros(rows)
        advantages = []
        for *_, value, paid, over in reversed(kept):
            going = (~over).float()
            last = paid + following * going - value + 0.95 * going * last
            following = value
            advantages.insert(0, last)
        now, mask, action, log_prob, value, _, _ = (torch.cat(parts) for parts in zip(*kept, strict=True))
        advantage = torch.cat(advantages)
        target = advantage + value
        for _ in range(4):
            distribution = masked(now, mask)
            ratio = (distribution.log_prob(action) - log_prob).exp()
            scaled = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
            gain = torch.min(ratio * scaled, ratio.clamp(0.8, 1.2) * scaled).mean()
            loss = (critic(now)[:, 0] - target).square().mean() / 2 - gain - 0.01 * distribution.entropy().mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 0.5)
            optimizer.step()


def torchrl(envs: list[Any], steps: int) -> None:
    """PPO from TorchRL's parts; its reader of ``info`` brings the mask to a masked categorical."""
    from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
    from torchrl.collectors import Collector
    from torchrl.data import Composite, Unbounded
    from torchrl.envs import GymWrapper
    from torchrl.envs.gym_like import default_info_dict_reader
    from torchrl.modules import MaskedCategorical, ProbabilisticActor, ValueOperator
    from torchrl.objectives import ClipPPOLoss
    from torchrl.objectives.value import GAE

    (env,) = envs
    choices, width = int(env.action_space.n), env.observation_space.shape[0]
    spec = Composite(action_mask=Unbounded((choices,), dtype=torch.int8))
    wrapped = GymWrapper(env, categorical_action_encoding=True)
    wrapped.set_info_dict_reader(default_info_dict_reader(["action_mask"], spec=spec))
    net = mlp(width, choices)

    def logits(seen: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return net(seen), mask.bool()

    class Policy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, seen: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return logits(seen, mask)

    actor: ProbabilisticTensorDictSequential = ProbabilisticActor(
        TensorDictModule(Policy(), ["observation", "action_mask"], ["logits", "mask"]),
        in_keys=["logits", "mask"],
        distribution_class=MaskedCategorical,
        return_log_prob=True,
    )
    critic = ValueOperator(mlp(width, 1), in_keys=["observation"])
    loss, gae = ClipPPOLoss(actor, critic), GAE(gamma=1.0, lmbda=0.95, value_network=critic)
    optimizer = torch.optim.Adam(loss.parameters(), 1e-3)
    collector = Collector(wrapped, actor, frames_per_batch=128, total_frames=steps)
    for batch in collector:
        for _ in range(4):
            gae(batch)
            parts = loss(batch)
            total = parts["loss_objective"] + parts["loss_critic"] + parts["loss_entropy"]
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
    collector.shutdown(close_env=False)


def skrl(envs: list[Any], steps: int) -> None:
    """PPO of skrl, which takes no masks."""
    from skrl.agents.torch.ppo import PPO, PPO_CFG
    from skrl.envs.wrappers.torch import wrap_env
    from skrl.memories.torch import RandomMemory
    from skrl.models.torch import CategoricalMixin, DeterministicMixin, Model
    from skrl.trainers.torch import SequentialTrainer

    env = wrap_env(envs[0], wrapper="gymnasium", verbose=False)
    spaces = {"observation_space": env.observation_space, "action_space": env.action_space, "device": env.device}

    class Actor(CategoricalMixin, Model):
        def __init__(self) -> None:
            Model.__init__(self, **spaces)
            CategoricalMixin.__init__(self)
            self.net = mlp(self.num_observations, self.num_actions)

        def compute(self, inputs: Any, role: str = "") -> Any:
            return self.net(inputs["observations"]), {}

    class Critic(DeterministicMixin, Model):
        def __init__(self) -> None:
            Model.__init__(self, **spaces)
            DeterministicMixin.__init__(self)
            self.net = mlp(self.num_observations, 1)

        def compute(self, inputs: Any, role: str = "") -> Any:
            return self.net(inputs["observations"]), {}

    config = PPO_CFG()
    config.rollouts, config.mini_batches, config.learning_epochs = 64, 2, 4
    config.experiment.write_interval = config.experiment.checkpoint_interval = 0
    agent = PPO(
        models={"policy": Actor(), "value": Critic()},
        memory=RandomMemory(memory_size=64, num_envs=1, device=env.device),
        cfg=config,
        observation_space=env.observation_space,
        action_space=env.action_space,
        device=env.device,
    )
    trainer = SequentialTrainer(
        cfg={"timesteps": steps, "disable_progressbar": True, "close_environment_at_exit": False}, env=env, agents=agent
    )
    trainer.train()


class WithMask(gymnasium.Wrapper[Any, Any, Any, Any]):
    """The observation and its mask, as clients want them that read masks from observations."""

    def __init__(self, env: Any, names: tuple[str, str]) -> None:
        super().__init__(env)
        self.names = names
        mask = gymnasium.spaces.Box(0, 1, (int(env.action_space.n),), np.float32)
        self.observation_space = gymnasium.spaces.Dict({names[0]: env.observation_space, names[1]: mask})

    def _both(self, seen: Any, info: Any) -> Any:
        mask = info["action_mask"]
        return {self.names[0]: seen, self.names[1]: mask.astype(np.float32 if self.names[1] != "mask" else bool)}

    def reset(self, **options: Any) -> Any:
        seen, info = self.env.reset(**options)
        return self._both(seen, info), info

    def step(self, action: Any) -> Any:
        seen, *rest, info = self.env.step(action)
        return self._both(seen, info), *rest, info


def tianshou(envs: list[Any], steps: int) -> None:
    """DQN of Tianshou, which reads ``obs.mask``."""
    from tianshou.algorithm import DQN
    from tianshou.algorithm.modelfree.dqn import DiscreteQLearningPolicy
    from tianshou.algorithm.optim import AdamOptimizerFactory
    from tianshou.data import Collector, VectorReplayBuffer
    from tianshou.env import DummyVectorEnv

    vector = DummyVectorEnv([lambda env=env: WithMask(env, ("obs", "mask")) for env in envs])  # type: ignore[misc]
    space, choices = envs[0].observation_space, envs[0].action_space

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(space.shape[0], int(choices.n))

        def forward(self, obs: Any, state: Any = None, info: Any = None) -> Any:
            seen = obs.obs if hasattr(obs, "obs") else obs
            return self.net(torch.as_tensor(seen, dtype=torch.float32)), state

    policy = DiscreteQLearningPolicy(model=Net(), action_space=choices, eps_training=0.1, eps_inference=0.0)
    algorithm = DQN(policy=policy, optim=AdamOptimizerFactory(lr=1e-3), gamma=1.0, target_update_freq=50)
    buffer = VectorReplayBuffer(4096, len(envs))
    collector: Any = Collector(algorithm, vector, buffer, exploration_noise=True)
    collector.reset()
    with torch.random.fork_rng():
        for _ in range(steps // 64):
            collector.collect(n_step=64)
            from tianshou.utils.torch_utils import policy_within_training_step

            with policy_within_training_step(policy):
                algorithm.update(buffer=buffer, sample_size=64)


def rllib(envs: list[Any], steps: int) -> list[Any]:
    """PPO of RLlib with its module for masks."""
    import ray
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.core.rl_module.rl_module import RLModuleSpec
    from ray.rllib.examples.rl_modules.classes.action_masking_rlm import ActionMaskingTorchRLModule
    from ray.tune.registry import register_env

    register_env("masked", lambda context: WithMask(make(FLAT), ("observations", "action_mask")))
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        config = (
            PPOConfig()
            .environment("masked")
            .env_runners(num_env_runners=0)
            .training(train_batch_size=128, minibatch_size=64, num_epochs=2, gamma=1.0)
            .rl_module(
                rl_module_spec=RLModuleSpec(
                    module_class=ActionMaskingTorchRLModule, model_config={"head_fcnet_hiddens": [64, 64]}
                )
            )
        )
        algorithm = config.build_algo()
        for _ in range(max(1, steps // 128)):
            algorithm.train()
        return list(algorithm.env_runner.env.unwrapped.envs)
    finally:
        ray.shutdown()


SB3 = "stable-baselines3"
CLIENTS: dict[str, Client] = {
    "ours": Client("esper", "esper-grow", FLAT, True, 4, ours),
    "sb3-ppo": Client("stable_baselines3", SB3, HEADS, False, 4, sb3("PPO", n_steps=32, batch_size=64, gamma=1.0)),
    "sb3-a2c": Client("stable_baselines3", SB3, HEADS, False, 4, sb3("A2C", gamma=1.0)),
    "sb3-dqn": Client("stable_baselines3", SB3, FLAT, False, 4, sb3("DQN", learning_starts=64, gamma=1.0)),
    "sb3-maskable-ppo": Client(
        "sb3_contrib", "sb3-contrib", FLAT, True, 4, sb3("MaskablePPO", n_steps=32, batch_size=64, gamma=1.0)
    ),
    "sb3-recurrent-ppo": Client(
        "sb3_contrib", "sb3-contrib", HEADS, False, 4, sb3("RecurrentPPO", n_steps=32, batch_size=64, gamma=1.0)
    ),
    "cleanrl-style": Client("torch", "torch", FLAT, True, 4, cleanrl),
    "torchrl": Client("torchrl", "torchrl", FLAT, True, 1, torchrl),
    "skrl": Client("skrl", "skrl", FLAT, False, 1, skrl),
    "tianshou": Client("tianshou", "tianshou", FLAT, True, 4, tianshou),
    "rllib": Client("ray.rllib.algorithms", "ray", FLAT, True, 1, rllib),
}


def installed(client: Client) -> bool:
    """Whether its package can be imported; of RLlib, what it needs besides Ray."""
    if client.distribution == "ray" and importlib.util.find_spec("lz4") is None:
        return False
    return importlib.util.find_spec(client.package.partition(".")[0]) is not None


def row(name: str, client: Client, trained: Trained) -> str:
    """A line of the table."""
    last = float(np.mean(trained.returns[-20:]))
    version = importlib.metadata.version(client.distribution)
    actions = "one number" if client.environment == FLAT else "heads"
    return (
        f"| {name} | {client.distribution} {version} | {actions} | {'yes' if client.masked else 'takes none'} "
        f"| {trained.steps} | {trained.illegal} | {last:.1f} | {trained.steps / trained.seconds:.0f} |"
    )


def rows_of(page: Path) -> dict[str, str]:
    """Rows that stand in the page, by client."""
    lines = page.read_text(encoding="utf-8").splitlines()
    cells = {line: line.split("|")[1].strip() for line in lines if line.startswith("| ")}
    return {name: line for line, name in cells.items() if name in CLIENTS}


def speed(name: str, **options: Any) -> str:
    """A line of the table of speed: random legal actions for four episodes after one that is not counted."""
    torch.set_num_threads(1)
    env = gymnasium.make(name, **options)
    env.action_space.seed(0)
    host, within, steps, spent = env.unwrapped, 0.0, 0, 0.0
    play = host.act  # type: ignore[attr-defined]

    def timed(action: Any) -> Any:
        nonlocal within
        began = time.process_time()
        answer = play(action)
        within += time.process_time() - began
        return answer

    host.act = timed  # type: ignore[attr-defined]
    for episode in range(5):
        _, info = env.reset(seed=episode)
        if episode == 1:
            within, steps, spent = 0.0, 0, 0.0
        ended, began = False, time.process_time()
        while not ended:
            _, _, ended, _, info = env.step(env.action_space.sample(info["action_mask"]))
            steps += 1
        spent += time.process_time() - began
    told = ", ".join(f"{key}={value!r}" for key, value in options.items())
    return f"| `{name.partition(':')[2]}` | `{told}` | {steps / spent:.1f} | {100 * (1 - within / spent):.1f} |"


def main() -> None:
    """Run the clients that are named, or installed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("clients", nargs="*", choices=[*CLIENTS, []], help="by name")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--into", type=Path, help="put the rows between the marks of this page, too")
    parser.add_argument("--speed", action="store_true", help="measure the environments alone")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.speed:
        lines = [speed("esper:esper/Grow-v0", task="digits", episode_length=14), speed(HEADS), speed(FLAT)]
        print("\n".join(lines))
        if given.into:
            into_page(given.into, "environments", "\n".join([SPEED, *lines]))
        return
    rows, wrong = rows_of(given.into) if given.into else {}, 0
    for name in given.clients or [name for name, client in CLIENTS.items() if installed(client)]:
        trained = run(CLIENTS[name], given.steps)
        rows[name] = row(name, CLIENTS[name], trained)
        print(rows[name], flush=True)
        wrong += CLIENTS[name].masked and trained.illegal > 0
    if given.into:
        into_page(given.into, "clients", "\n".join([HEADER, *(rows[name] for name in CLIENTS if name in rows)]))
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
