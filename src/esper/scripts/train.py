"""``esper train``: train a host that grows. ``heuristic`` runs a rule or schedule beside its controls, ``ppo``
learns a policy.

Also runnable as ``python -m esper.scripts.train``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from esper.leyline import UsageError
from esper.run.config import (
    AGAIN,
    GROW,
    HOST,
    RECORD,
    CommonConfig,
    RunConfig,
    default_of,
    flag_of,
    read_config_file,
)
from esper.scripts.alerts import NOTIFY, read_targets, start_watcher
from esper.scripts.cli import Parser, option_value
from esper.simic.ppo_config import PPORunConfig

KINDS = {
    "heuristic": (
        "a rule, a schedule or chance decides what to grow; controls run beside it on the same seeds",
        RunConfig,
    ),
    "ppo": ("a recurrent policy learns by PPO what to grow; every environment grows a host of its own", PPORunConfig),
}


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``esper train``: one subcommand per kind of run, a flag for each of its settings."""
    parser = Parser(prog="esper train", description="Train a network that grows while it trains.")
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for name, (text, of) in KINDS.items():
        kind = kinds.add_parser(name, help=text)
        groups = add_settings(kind, of)
        groups[HOST].add_argument("--config", metavar="FILE", help="TOML or JSON with any of these keys; flags win")
        groups[AGAIN].add_argument("--resume", metavar="RUN", help="go on with this run, from its newest checkpoint")
        groups[AGAIN].add_argument(
            "--override", action="store_true", help="change settings of a resumed run, where that is safe"
        )
        groups[RECORD].add_argument(
            "--overwatch", action="store_true", help="watch the run in the browser; prints the link"
        )
        groups[RECORD].add_argument("--notify", action="append", metavar="WHERE", help=NOTIFY)
    return parser


def add_settings(parser: argparse.ArgumentParser, of: type[CommonConfig]) -> dict[str, argparse._ArgumentGroup]:
    """A flag for every field that ``of`` declares; the groups of the help page by heading."""
    kinds = get_type_hints(of)
    declared = [(each, flag) for each in fields(of) if (flag := flag_of(each)) is not None]
    own = dict.fromkeys(flag.group for _, flag in declared if flag.group not in (GROW, HOST, AGAIN, RECORD))
    groups = {name: parser.add_argument_group(name) for name in (GROW, *own, HOST, AGAIN, RECORD)}
    for each, flag in declared:
        text = flag.help if isinstance(flag.help, str) else flag.help()
        spelled, default = (flag.name or each.name).replace("_", "-"), default_of(each)
        options: dict[str, Any] = {"dest": each.name, "help": text.replace("%", "%%")}
        if kinds[each.name] is bool:
            options["action"] = "store_false" if default else "store_true"
            spelled = f"no-{spelled}" if default else spelled
        elif isinstance(default, dict):
            options |= {"action": _Table, "metavar": flag.metavar, "default": default}
        else:
            shown = ",".join(default) if isinstance(default, tuple) else default
            if shown is not None:
                options["help"] += f" (default: {shown})"
            options |= {"default": shown, "metavar": flag.metavar, **_typed(kinds[each.name])}
        groups[flag.group].add_argument(f"--{spelled}", **options)
    return groups


def _typed(kind: Any) -> dict[str, Any]:
    """How argparse reads a value of the type ``kind``; what it leaves as text is converted with the configuration."""
    parts = set(get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)) - {NoneType}
    if parts == {int, str}:
        return {"type": lambda text: int(text) if text.isdigit() else text}
    (part,) = parts
    if get_origin(part) is Literal:
        return {"choices": get_args(part)}
    return {"type": part} if part in (int, float) else {}


class _Table(argparse.Action):
    """Gathers ``NAME=VALUE`` of a flag that may be repeated."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        name, value = option_value(option_string or "", values)
        setattr(namespace, self.dest, {**(getattr(namespace, self.dest, None) or {}), name: value})


def given_flags(argv: Sequence[str], parser: argparse.ArgumentParser | None = None) -> dict[str, Any]:
    """What was said on the command line, without defaults: these beat the configuration file."""
    parser = parser or build_parser()
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
    from esper.run.resume import ResumeRequest

    asked = None if run is None else ResumeRequest(resolve_run(run), override)
    file = {} if path is None else read_config_file(path)
    where = asked.run if asked is not None else flags.get("run_dir") or file.get("run_dir") or "runs"
    targets = read_targets(flags.pop("notify", []))
    # of the ranks that torchrun starts the first one writes, and it alone is watched
    first = "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK") == "0"
    if flags.pop("overwatch", False) and first:
        from esper.scripts.overwatch import start_beside

        start_beside(where)
    if targets and first:
        start_watcher(where, targets, "--beside", os.getpid())
    if kind == "ppo":
        from esper.scripts.ppo import run_ppo

        return run_ppo(flags, file, asked)
    from esper.scripts.heuristic import run_heuristic

    return run_heuristic(flags, file, asked)


if __name__ == "__main__":
    from esper.run.stopping import as_program
    from esper.scripts.main import guarded
    from esper.scripts.streams import settle

    settle()
    sys.exit(as_program(lambda: guarded(main)))
