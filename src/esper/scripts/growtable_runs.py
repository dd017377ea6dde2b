"""What the commands of ``esper growtable`` do."""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.text import Text

from esper.bench.growtable import report, submissions
from esper.bench.growtable.admit import admission
from esper.bench.growtable.arms import Scores, rivals, scored
from esper.bench.growtable.build import BuildPlan, BuildProgress, build, planned, units
from esper.bench.growtable.check import compare
from esper.bench.growtable.host import TableHost
from esper.bench.growtable.learn import LearnPlan, learn
from esper.bench.growtable.parts import Parts
from esper.bench.growtable.score import table_macs
from esper.bench.growtable.table import STORED, Table, identity_of, load_table, save_table, table_of
from esper.bench.growtable.tune import Look, TunePlan, tune
from esper.bench.growtable.worlds import CANDIDATES, TRAINING, WORLDS, chosen
from esper.bench.report import into_page
from esper.karn.stats import Interval
from esper.leyline import DataError, UsageError
from esper.leyline.files import write_atomically
from esper.tamiyo.policies.learned import SHIPPED, SHIPPED_FILE, file_of, load_policy, save_policy


def run(args: argparse.Namespace) -> None:
    """Do what was asked for."""
    torch.set_num_threads(1)
    if getattr(args, "table", args) is None and args.command != "admit":
        args.table = [STORED] if args.command == "train" else STORED
    if args.command == "build" and args.output is None:
        args.output = STORED
    console = Console(highlight=False)
    {
        "admit": run_admit,
        "build": run_build,
        "check": run_check,
        "train": run_train,
        "tune": run_tune,
        "score": run_score,
        "leaderboard": run_leaderboard,
        "ship": run_ship,
    }[args.command](args, console)


def run_build(args: argparse.Namespace, console: Console) -> None:
    """Play what is missing, then write the table."""
    plan = replace(BuildPlan(_names(args, WORLDS)), **_given(args, "seeds", "singles", "pairs", "pair_seeds"))
    if not args.pack_only:
        build(plan, args.parts, args.workers, _teller(console))
    parts = list(planned(plan, Parts(args.parts)))
    if not parts:
        raise DataError(f"{args.parts}: holds no host that has played this plan; build without --pack-only")
    missing = sum(len(unit.wanted) for unit in units(plan, Parts(args.parts)))
    about = {"plan": asdict(plan), "missing": missing, "torch": torch.__version__}
    size = save_table(table_of(parts, about), args.output)
    _say(console, f"{args.output}: {len(parts):,} sequences, {missing:,} missing, {size / 1e6:.2f} MB")


def run_admit(args: argparse.Namespace, console: Console) -> None:
    """Play candidates, or take a table's; judge them, and write the table of those that were admitted."""
    table, families = _candidates(args, console)
    found, few = [], []
    for family in families:
        try:
            found.append(admission(family, table))
        except DataError as error:
            few.append(str(error))
    _publish(args.into, "growtable-admission", "\n\n".join([report.admissions(found), *few]), console)
    if args.judged is not None:
        judged = {each.family for each in found}
        size = save_table(
            Table([host for host in _hosts(table) if host.world.group in judged], table.about), args.judged
        )
        _say(console, f"{args.judged}: {', '.join(sorted(judged))}, {size / 1e6:.2f} MB")
    if args.output is None:
        return
    admitted = {each.family for each in found if each.admitted}
    hosts = [host for host in _hosts(table) if host.world.group in admitted]
    if not hosts:
        raise DataError(f"{args.output}: not written, since no world was admitted")
    if args.fresh:
        hosts = [host for host in hosts if not host.world.held_out] + _fresh(args, admitted, console)
    size = save_table(Table(hosts, {**table.about, "fresh": args.fresh}), args.output)
    _say(console, f"{args.output}: {', '.join(sorted(admitted))}, {size / 1e6:.2f} MB")


def _candidates(args: argparse.Namespace, console: Console) -> tuple[Table, Iterable[str]]:
    """Hosts that are to be judged, and the families that were asked for."""
    if args.table is not None:
        table = load_table(args.table).level
        return table, dict.fromkeys(host.world.group for host in _hosts(table))
    plan = BuildPlan(_names(args, CANDIDATES), args.seeds, pairs=0, pair_seeds=0)
    if not args.judge_only:
        build(plan, args.parts, args.workers, _teller(console))
    # the same hosts of every world of a family, so that none is rarer
    table = table_of(planned(plan, Parts(args.parts)), {"plan": asdict(plan), "torch": torch.__version__}).level
    return table, dict.fromkeys(world.group for world in chosen(plan.worlds))


def _fresh(args: argparse.Namespace, families: Collection[str], console: Console) -> list[TableHost]:
    """Hosts of held-out worlds that had no part in admitting their families, which they would flatter."""
    names = tuple(
        name
        for name in _names(args, CANDIDATES)
        if any(world.held_out and world.group in families for world in chosen([name]))
    )
    plan = BuildPlan(names, args.seeds + args.fresh, pairs=0, pair_seeds=0)
    if not args.judge_only:
        build(plan, args.parts, args.workers, _teller(console))
    table = table_of(planned(plan, Parts(args.parts)), {}).level
    return [host for host in _hosts(table) if host.world.held_out and host.number >= args.seeds]


def _names(args: argparse.Namespace, default: Iterable[str]) -> tuple[str, ...]:
    return tuple(default) if args.worlds is None else tuple(name.strip() for name in args.worlds.split(","))


def _teller(console: Console) -> Callable[[BuildProgress], None]:
    def tell(progress: BuildProgress) -> None:
        left = time.strftime("%H:%M:%S", time.gmtime(progress.remaining_seconds))
        _say(console, f"{progress.done}/{progress.of}  {progress.unit.world.name}, host {progress.unit.number}  {left}")

    return tell


def run_check(args: argparse.Namespace, console: Console) -> None:
    """Compare with real runs."""
    found = []
    for each in compare(load_table(args.table), args.count):
        found.append(each)
        mark = "" if each.within else "  outside"
        _say(
            console,
            f"{each.world} {each.sequence}: {each.predicted:.1f} predicted, {each.real:.1f} real, "
            f"standard error {each.standard_error:.1f}{mark}",
        )
    _publish(args.into, "growtable-check", report.checked(found), console)


def run_train(args: argparse.Namespace, console: Console) -> None:
    """Learn, and save the policy with its card."""
    tables = _training(args.table)
    worlds = [name for table in tables for name in table.worlds]
    # tables count alike: the smaller one's hosts come as often, in whole turns
    most = max(map(len, map(_hosts, tables)))
    hosts = [host for table in tables for host in _hosts(table) * max(1, round(most / len(_hosts(table))))]
    began = time.perf_counter()

    def tell(update: int, mean_return: float, entropy: float) -> None:
        if update % 10 == 0:
            _say(console, f"update {update}: mean return {mean_return:.2f}, entropy {entropy:.2f} nats")

    plan = replace(LearnPlan(), **_given(args, "updates", "seed"))
    learned = learn(hosts, plan, tell)
    seconds = time.perf_counter() - began
    card = {
        "trained_on": "GrowTable",
        "worlds": worlds,
        "hosts": sum(map(len, map(_hosts, tables))),
        "seed": plan.seed,
        "steps": learned.steps,
        "policy_macs": learned.macs,
        "table_macs": sum(table_macs(table, table.worlds) for table in tables),
    }
    auditions = any(host.world.audition is not None for host in hosts)
    written = save_policy(args.output, learned.network, card, nurture=True, auditions=auditions)
    _say(console, f"{args.output}: {written.bytes:,} bytes, {learned.steps:,} steps in {seconds:.0f} s")


def run_tune(args: argparse.Namespace, console: Console) -> None:
    """Learn on in real runs, and save what did best on fresh hosts."""
    saved = load_policy(args.policy)
    if saved.auditions:
        raise UsageError(
            f"policy {args.policy}: rules audition places for it, and real runs of the training worlds hold no "
            "audition to learn on in; legal: a policy that learned in tables without auditions"
        )
    usual = TunePlan()
    plan = replace(usual, ppo=replace(usual.ppo, **_given(args, "updates", "seed")))
    began = time.perf_counter()

    def tell(look: Look) -> None:
        learning = "" if look.mean_return is None else f", mean return {look.mean_return:.2f}"
        _say(console, f"update {look.update}: objective {look.objective:.2f} on fresh hosts{learning}")

    tuned = tune(saved.network, chosen(TRAINING), plan, tell)
    best = max(tuned.looks, key=lambda look: look.objective)
    card = saved.card | {
        "tuned_on": "real runs of the training worlds",
        "tuning_seed": plan.ppo.seed,
        "tuning_steps": saved.card.get("tuning_steps", 0) + tuned.steps,
        "tuning_macs": saved.card.get("tuning_macs", 0) + tuned.macs,
        "tuning_objective": [tuned.looks[0].objective, best.objective],
    }
    written = save_policy(args.output, tuned.network, card, nurture=True)
    seconds = time.perf_counter() - began
    _say(console, f"{args.output}: {written.bytes:,} bytes, of update {best.update}, {seconds:.0f} s")


def run_score(args: argparse.Namespace, console: Console) -> None:
    """Regret on held-out worlds."""
    table = load_table(args.table)
    if args.submit is not None:
        submissions.places(args.submit, _named(args.policy))
    policies = {SHIPPED: str(SHIPPED_FILE), **_named(args.policy)}
    found = scored(*_split(table, args.table), policies, real_runs=not args.table_only)
    tables = [report.sampled(table), report.regrets(found.lines, found.schedule, found.ranking)]
    tables += [report.duels(found.duels), report.families(found.families), report.reading_test(found.readings)]
    text = "\n\n".join([*filter(None, tables), *found.remarks])
    _publish(args.into, args.mark, text, console)
    if args.output is not None:
        write_atomically(args.output, _csv(found.rows()).encode())
        _say(console, f"{args.output}: written")
    if args.submit is not None:
        _submit(args, found, console)


def _csv(rows: Sequence[dict[str, str | int | float]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _submit(args: argparse.Namespace, found: Scores, console: Console) -> None:
    field = submissions.Field(_split(load_table(args.table), args.table)[0], identity_of(args.table), found.rivals)
    for name, reference in _named(args.policy).items():
        arm, file = f"`{name}`", file_of(reference)
        checksum = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
        table = "" if args.table == STORED else f" --table {args.table}"
        command = f"esper growtable score{table} --table-only --policy {reference}"
        given = submissions.submission(
            field, (name, reference, checksum), command, found.led[arm], found.whole(arm), found.tallies[arm]
        )
        _say(console, f"{submissions.write(args.submit, given)}: submission of {name}")


def run_leaderboard(args: argparse.Namespace, console: Console) -> None:
    """One table of what was submitted, every figure computed anew."""
    table, training, held_out = _split(load_table(args.table), args.table)
    field = submissions.Field(table, identity_of(args.table), rivals(table, training, held_out))
    found = [submissions.load(path, field) for path in args.files]
    names = [each.name for each in found]
    for path, name in zip(args.files, names, strict=True):
        if names.count(name) > 1:
            raise DataError(f"submission {path}: another one is called {name}, too")
    _publish(args.into, "leaderboard", submissions.leaderboard(found), console)


def run_ship(args: argparse.Namespace, console: Console) -> None:
    """Score a policy, write the scores on its card and the file into the package."""
    saved = load_policy(args.policy)
    table, training, held_out = _split(load_table(args.table), args.table)
    found = scored(table, training, held_out, {args.name: str(args.policy)}, real_runs=not args.table_only)
    families = {
        each.family: {"ahead": {rival: _ends(points) for rival, points in each.over.items()}, "lost": _ends(each.lost)}
        for each in found.families
    }
    scores = {
        "scored_on": held_out,
        "regret": {each.arm: _ends(each.regret) for each in found.lines if each.regret},
        "ahead": {each.rival: _ends(each.points) for each in found.duels},
        "families": families,
        "remarks": [*found.remarks, *args.remark],
    }
    # in one order, so that one that is shipped again is the same bytes
    card = {name: each for name, each in saved.card.items() if name not in scores} | scores
    place = file_of(args.name)
    written = save_policy(place, saved.network, card, nurture=saved.nurture, auditions=saved.auditions)
    _say(console, f"{place}: {written.bytes:,} bytes")


def _ends(found: Interval) -> list[float | None]:
    return [found.low, found.mean, found.high]


def _named(policies: Sequence[str]) -> dict[str, str]:
    """Name -> file or ``module:Callable``. A file goes by its stem where no other has it."""
    stems = [Path(each).stem for each in policies]
    return {
        stem if ":" not in each and stems.count(stem) == 1 else each: each
        for stem, each in zip(stems, policies, strict=True)
    }


def _given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """What was said on the command line; the rest is the plan's own."""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _training(paths: Sequence[Path]) -> list[Table]:
    """The tables with nothing but whole hosts of training worlds. Raises ``UsageError`` where one has none, or two have
    a world in common.
    """
    found: list[Table] = []
    for path in paths:
        table = load_table(path).whole
        training = Table((host for host in _hosts(table) if not host.world.held_out), table.about)
        if not training.worlds:
            raise UsageError(f"table {path}: holds no training world")
        if twice := {name for table in found for name in table.worlds} & set(training.worlds):
            raise UsageError(f"table {path}: holds {min(twice)}, as one before it does; legal: tables of other worlds")
        found.append(training)
    return found


def _hosts(table: Table) -> list[TableHost]:
    return [host for name in table.worlds for host in table.of(name)]


def _split(every: Table, path: Path) -> tuple[Table, list[str], list[str]]:
    """A table's whole hosts, with its worlds to learn in and to be scored on. Raises ``UsageError`` where it lacks
    either.
    """
    table = every.whole
    training = [name for name in table.worlds if not table.of(name)[0].world.held_out]
    # an oracle needs a host to be chosen on and one to be scored on
    held_out = [name for name in table.worlds if name not in training and len(table.of(name)) > 1]
    if not training or not held_out:
        raise UsageError(f"table {path}: holds no {'held-out world with two hosts' if training else 'training world'}")
    return table, training, held_out


def _publish(page: Path | None, name: str, text: str, console: Console) -> None:
    console.print(Text(text), soft_wrap=True)
    if page is not None:
        into_page(page, name, text)


def _say(console: Console, text: str) -> None:
    console.print(Text(text, style="dim"), soft_wrap=True)
