"""``esper train``: train a host that grows. ``heuristic`` runs a rule or schedule beside its controls, ``ppo``
learns a policy.

Also runnable as ``python -m esper.scripts.train``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from esper.leyline import UsageError
from esper.scripts.cli import Parser

LEVELS = ("off", "minimal", "normal", "debug")
PROFILES = ("minimal", "standard", "diagnostic", "research")
REWARDS = ("objective", "simplified", "sparse", "shaped")
INCUBATION = ("probe", "graft", "straight_through")


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``esper train``; one subcommand per kind of run."""
    parser = Parser(prog="esper train", description="Train a network that grows while it trains.")
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    heuristic = kinds.add_parser(
        "heuristic",
        help="a rule, a schedule or chance decides what to grow; controls run beside it on the same seeds",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _add_workload(heuristic)
    _add_arms(heuristic)
    _add_host(heuristic)
    _add_checkpoints(heuristic, 10, "epochs")
    _add_telemetry(heuristic)
    ppo = kinds.add_parser(
        "ppo",
        help="a recurrent policy learns by PPO what to grow; every environment grows a host of its own",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _add_workload(ppo)
    _add_learning(ppo)
    _add_host(ppo)
    _add_checkpoints(ppo, 20, "steps of the environments")
    _add_telemetry(ppo)
    return parser


def _add_workload(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to grow")
    group.add_argument("--task", default="digits", help="a built-in task, or module:Attr of your own")
    group.add_argument("--slots", metavar="NAMES", help="use only these slots, comma-separated")
    group.add_argument("--blueprints", metavar="NAMES", help="use only these blueprints, comma-separated")
    group.add_argument("--max-seeds", type=int, metavar="N", help="most seeds alive at once")
    group.add_argument("--param-budget", type=int, metavar="N", help="most parameters of all live seeds together")
    group.add_argument("--incubation", choices=INCUBATION, help="how a seed learns before it may change the output")


def _add_arms(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("who decides")
    group.add_argument(
        "--policy",
        default="heuristic",
        help="heuristic, frugal, esper-v1, schedule, random, nurtured, static, a learned one's file, or module:Attr",
    )
    group.add_argument("--compare", default="random,static", metavar="NAMES", help="policies to run on the same seeds")
    group.add_argument("--episodes", type=int, default=3, metavar="N", help="paired seeds; episode e has seed + e")
    group.add_argument("--max-epochs", type=int, metavar="N", help="epochs of an episode")
    group.add_argument("--no-export", dest="export", action="store_false", help="do not write the grown model")


def _add_learning(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how to learn (presets per task)")
    group.add_argument("--rounds", type=int, default=40, metavar="N", help="episodes per environment, an update each")
    group.add_argument("--envs", type=int, default=8, metavar="N", help="environments side by side")
    group.add_argument(
        "--workers", type=_workers, default=1, metavar="N", help="processes that environments are spread over; or ray, "
        "or ray://HOST:PORT"
    )  # fmt: skip
    group.add_argument("--episode-length", type=int, metavar="N", help="epochs of an episode")
    group.add_argument("--reward", default="objective", choices=REWARDS, help="what the policy is paid for")
    group.add_argument("--rent", type=float, default=0.5, metavar="POINTS", help="for every doubling of the network")
    group.add_argument("--rent-on", default="parameters", choices=("parameters", "macs"))
    group.add_argument("--no-control", dest="control", action="store_false", help="do not pay relative to static hosts")
    group.add_argument("--hosts", type=int, default=32, metavar="N", help="distinct hosts to learn on; 0 for ever new")
    group.add_argument("--policy-checkpoint", metavar="FILE", help="go on from a saved policy")
    group.add_argument("--learning-rate", type=float, default=1e-3, metavar="RATE", help="of the policy")
    group.add_argument("--entropy", type=float, default=0.01, metavar="X", help="reward per nat of entropy")
    group.add_argument("--gamma", type=float, default=1.0, metavar="X", help="discount; rewards telescope under it")
    group.add_argument("--gae-lambda", type=float, default=0.95, metavar="X")
    group.add_argument("--ppo-epochs", type=int, default=6, metavar="N", help="passes over a rollout")
    group.add_argument("--minibatches", type=int, default=2, metavar="N")
    group.add_argument("--cells", type=int, default=64, metavar="N", help="LSTM cells of the policy; 0 for no memory")


def _workers(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def _add_host(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how hosts train")
    group.add_argument("--batch-size", type=int, metavar="N")
    group.add_argument("--lr", type=float, metavar="RATE", help="peak learning rate of the host")
    group.add_argument("--seed-lr-multiplier", type=float, metavar="X", help="a new seed's peak rate over the host's")
    group.add_argument("--seed", type=int, default=0, help="of the run; all chance follows from it")
    group.add_argument("--device", default="auto", help="auto, cpu or cuda:N")
    group.add_argument("--threads", type=int, default=1, metavar="N", help="torch threads; small models want 1")
    group.add_argument("--config", metavar="FILE", help="TOML or JSON with any of these keys; flags win")


def _add_checkpoints(parser: argparse.ArgumentParser, every: int, unit: str) -> None:
    group = parser.add_argument_group("how to go on after an interruption")
    group.add_argument(
        "--checkpoint-every", type=int, default=every, metavar="N", help=f"{unit} between checkpoints; 0 "
        "writes one only on SIGTERM or Ctrl-C"
    )  # fmt: skip
    group.add_argument("--resume", metavar="RUN", help="go on with this run, from its newest checkpoint")
    group.add_argument("--override", action="store_true", help="change settings of a resumed run, where that is safe")


def _add_telemetry(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to record")
    group.add_argument("--run-dir", metavar="DIR", help="where the run goes (default: a fresh one below runs/)")
    group.add_argument("--telemetry-level", choices=LEVELS, default="normal")
    group.add_argument("--telemetry-lifecycle-only", action="store_true", help="keep only what must be kept")
    group.add_argument("--diagnostics-profile", default=None, choices=PROFILES, help="deep look every K epochs")
    group.add_argument("--diagnostics-every", type=int, default=10, metavar="K")
    group.add_argument("--counterfactual-every", type=int, default=1, metavar="K", help="epochs between them")
    group.add_argument("--quiet", action="store_true", help="only the table at the end")
    group.add_argument("--overwatch", action="store_true", help="watch the run in the browser; prints the link")


def given_flags(argv: Sequence[str]) -> dict[str, Any]:
    """What was said on the command line, without defaults: these beat the configuration file."""
    parser = build_parser()
    pending: list[argparse.ArgumentParser] = [parser]
    while pending:
        for action in pending.pop()._actions:
            action.default = argparse.SUPPRESS
            if isinstance(action, argparse._SubParsersAction):
                pending.extend(action.choices.values())
    return vars(parser.parse_args(argv))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    flags = given_flags(arguments)
    kind = flags.pop("kind")
    path = flags.pop("config", None)
    run, override = flags.pop("resume", None), flags.pop("override", False)
    if override and run is None:
        raise UsageError("--override changes settings of a resumed run; it needs --resume RUN")
    from esper.karn.runs import resolve_run
    from esper.run.config import read_config_file
    from esper.run.resume import Asked

    asked = None if run is None else Asked(resolve_run(run), override)
    file = {} if path is None else read_config_file(path)
    if flags.pop("overwatch", False):
        from esper.scripts.overwatch import start_beside

        start_beside(asked.run if asked is not None else flags.get("run_dir") or file.get("run_dir") or "runs")
    if kind == "ppo":
        from esper.scripts.ppo import run_ppo

        return run_ppo(flags, file, asked)
    from esper.scripts.heuristic import run_heuristic

    return run_heuristic(flags, file, asked)


if __name__ == "__main__":
    from esper.scripts.main import guarded

    sys.exit(guarded(main))
