"""The command line of ``esper train``."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from esper.leyline import TelemetryEventType as T
from esper.leyline import UsageError
from esper.nissa.reader import read_journal
from esper.scripts.train import build_parser, given_flags, main
from esper.simic.vectorized import PPORun, RoundReport
from esper.tamiyo.policies.learned import SHIPPED_FILE, load_policy

TINY = f"{Path(__file__).parents[1] / 'simic'}"


def test_diagnostics_flags_wired():
    import esper.scripts.train as train

    parser = train.build_parser()
    args = parser.parse_args(["heuristic", "--diagnostics-profile", "diagnostic", "--diagnostics-every", "5"])
    assert args.diagnostics_profile == "diagnostic"
    assert args.diagnostics_every == 5


@pytest.mark.parametrize("kind", ["heuristic", "ppo"])
def test_defaults_of_both_kinds_are_the_configurations(kind: str) -> None:
    from esper.run.config import RunConfig
    from esper.simic.ppo_config import PPORunConfig

    said = vars(build_parser().parse_args([kind]))
    config: Any = RunConfig() if kind == "heuristic" else PPORunConfig()
    compared = said.keys() & {field.name for field in fields(config)}
    assert {"task", "seed", "telemetry_level", "diagnostics_profile", "diagnostics_every"} <= compared
    for name in compared:
        value, declared = said[name], getattr(config, name)
        assert value == (",".join(declared) if isinstance(declared, tuple) else declared), name


def test_only_what_was_said_beats_the_file() -> None:
    assert given_flags(["ppo", "--rounds", "3"]) == {"kind": "ppo", "rounds": 3}


def test_the_help_page_says_defaults_and_what_is_legal(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["ppo", "--help"])
    page = " ".join(capsys.readouterr().out.split())
    assert "(default: 40)" in page and "{objective,simplified,sparse,shaped}" in page and "(default: None)" not in page


@pytest.mark.parametrize(
    "argv", [["ppo", "--reward", "bounty"], ["ppo", "--rounds", "0"], ["ppo", "--gamma", "2"], ["nothing"], []]
)
def test_mistakes_are_usage_errors(argv: list[str]) -> None:
    with pytest.raises(UsageError):
        main(argv)


@pytest.fixture
def tiny_task() -> str:
    return "tiny:tiny"


def test_ppo_learns_saves_and_goes_on(tiny_task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    flags = ["--task", tiny_task, "--envs", "2", "--episode-length", "3", "--device", "cpu", "--cells", "8"]
    config = tmp_path / "run.toml"
    config.write_text('rounds = 2\nreward = "shaped"\n')
    deep = ["--diagnostics-profile", "minimal", "--diagnostics-every", "2"]
    assert main(["ppo", *flags, "--config", str(config), "--run-dir", str(first), *deep]) == 0
    shown = capsys.readouterr().out
    assert "round 2/2" in shown and "policy.safetensors" in shown
    policy = str(first / "policy.safetensors")
    again = ["--rounds", "1", "--policy-checkpoint", policy, "--run-dir", str(second), "--quiet"]
    assert main(["ppo", *flags, *again]) == 0
    events = list(read_journal(first, validate=True))
    kinds = {event.data["kind"] for event in events if event.event_type is T.ANALYTICS_SNAPSHOT}
    assert kinds == {
        "last_action", "action_distribution", "throughput", "reward_summary", "mask_hit_rates", "diagnostic_snapshot",
    }  # fmt: skip
    types = {event.event_type for event in events}
    assert {T.TRAINING_STARTED, T.PPO_UPDATE_COMPLETED, T.CHECKPOINT_SAVED, T.TRAINING_ENDED} <= types
    assert T.REWARD_COMPUTED not in types, "the full breakdown is for the debug level"
    (loaded,) = [event for event in read_journal(second, validate=True) if event.event_type is T.CHECKPOINT_LOADED]
    assert loaded.data["path"] == policy and loaded.data["step"] == 2
    begun, gone_on = load_policy(Path(policy)), load_policy(second / "policy.safetensors")
    spent = [event.data["total_macs"] for event in events if event.event_type is T.COMPUTE_SPENT]
    assert begun.card["run_macs"] > sum(spent) > 0, "learning counts, too"
    assert gone_on.training_macs == begun.training_macs + gone_on.card["run_macs"]


def test_the_full_breakdown_is_told_at_debug_level(tiny_task: str, tmp_path: Path) -> None:
    flags = ["--task", tiny_task, "--envs", "2", "--episode-length", "2", "--rounds", "1", "--device", "cpu", "--quiet"]
    assert main(["ppo", *flags, "--run-dir", str(tmp_path / "run"), "--telemetry-level", "debug"]) == 0
    events = read_journal(tmp_path / "run", validate=True)
    rewards = [event for event in events if event.event_type is T.REWARD_COMPUTED]
    assert rewards and rewards[0].data["components"].keys() == {"metric", "rent", "control"}


def test_a_damaged_policy_is_named(tiny_task: str, tmp_path: Path) -> None:
    broken = tmp_path / "policy.safetensors"
    broken.write_bytes(b"not a policy")
    with pytest.raises(Exception, match=r"policy\.safetensors"):
        main(["ppo", "--task", tiny_task, "--policy-checkpoint", str(broken), "--run-dir", str(tmp_path / "run")])


def test_a_start_that_is_gone_by_the_end_loses_nothing(
    tiny_task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["ppo", "--task", tiny_task, "--envs", "2", "--episode-length", "2", "--rounds", "1", "--device", "cpu"]
    assert main([*flags, "--run-dir", str(tmp_path / "a"), "--quiet"]) == 0
    start = tmp_path / "a" / "policy.safetensors"
    begun, play = load_policy(start), PPORun.play_round

    def without_it(run: PPORun) -> RoundReport:
        start.unlink()
        return play(run)

    monkeypatch.setattr(PPORun, "play_round", without_it)
    assert main([*flags, "--run-dir", str(tmp_path / "b"), "--quiet", "--policy-checkpoint", str(start)]) == 0
    assert load_policy(tmp_path / "b" / "policy.safetensors").card["earlier_macs"] == begun.training_macs > 0


def test_a_policy_that_leaves_gates_to_rules_is_not_gone_on_with(tiny_task: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="leaves gates and pruning to rules"):
        main(["ppo", "--task", tiny_task, "--policy-checkpoint", str(SHIPPED_FILE), "--run-dir", str(tmp_path / "run")])


def test_heuristic_runs_look_deep_too(tiny_task: str, tmp_path: Path) -> None:
    flags = ["--task", tiny_task, "--compare", "static", "--episodes", "1", "--device", "cpu", "--quiet", "--no-export"]
    deep = ["--diagnostics-profile", "standard", "--diagnostics-every", "3"]
    assert main(["heuristic", *flags, "--run-dir", str(tmp_path / "run"), *deep]) == 0
    found = [event for event in read_journal(tmp_path / "run") if event.data.get("kind") == "diagnostic_snapshot"]
    assert {(event.env_id, event.epoch) for event in found} == {(0, 3), (0, 6), (1, 3), (1, 6)}
