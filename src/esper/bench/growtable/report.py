"""What a table says, as Markdown: what was sampled, what is best in each world, and the regret of policies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from esper.bench.growtable.admit import Admission
from esper.bench.growtable.check import PredictionCheck
from esper.bench.growtable.families import FamilyScore
from esper.bench.growtable.host import TableHost
from esper.bench.growtable.reading import ALL, Reading
from esper.bench.growtable.score import ArmScore, BreakEven, Duel, Tally, oracle_of
from esper.bench.growtable.sequences import Choices, name_of, singles
from esper.bench.growtable.table import Table
from esper.bench.growtable.tabular import value
from esper.karn.stats import Interval


def sampled(table: Table) -> str:
    """One row a world: what it is, what was tabulated, and how much there is to win."""
    rows = [
        "| world | | hosts | single choices of | pairs | epochs | static | random | oracle | oracle's choices |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    whole = table.whole
    for name in table.worlds:
        every, hosts = table.of(name), whole.of(name)
        world = hosts[0].world
        alone = max(sum(len(c) == 1 for c in host.records) for host in hosts)
        both = max(sum(len(c) == 2 for c in host.records) for host in hosts)
        static = fmean(value(host, host.records[()], test=True) for host in hosts)
        random = fmean(fmean(value(host, r, test=True) for r in host.records.values()) for host in hosts)
        few = "" if len(hosts) == len(every) else f" on {len(hosts)}"
        rows.append(
            f"| `{name}` | {'held out' if world.held_out else 'training'} | {len(every)} | {alone} of "
            f"{len(singles(world))} | {both}{few} | {world.epochs} | {static:.1f} | {random:.1f} | {_oracle(hosts)} |"
        )
    return "\n".join(rows)


def _oracle(hosts: Sequence[TableHost]) -> str:
    if len(hosts) < 2:
        return "- | needs two hosts"
    found = oracle_of(hosts)
    names = dict.fromkeys(_plainly(choices) for choices, _ in found.values())
    return f"{fmean(outcome.objective for _, outcome in found.values()):.1f} | {'; '.join(names)}"


def _plainly(choices: Choices) -> str:
    return ", ".join(f"{c.blueprint} in {c.slot} at {c.epoch}" for c in choices) or "nothing"


def regrets(lines: Sequence[ArmScore], schedule: Choices, ranking: Sequence[str]) -> str:
    """One row an arm."""
    worlds = list(lines[0].by_world)
    rows = [
        f"Best fixed schedule of the training worlds: `{name_of(schedule)}`; best constant ranking: "
        f"{' > '.join(ranking)}.",
        "",
        f"| arm | regret | better than the schedule by | MACs a run | {' | '.join(f'`{name}`' for name in worlds)} |",
        f"|---|---:|---:|---:|{'---:|' * len(worlds)}",
    ]
    for each in lines:
        by_world = " | ".join("–" if value is None else f"{value:.2f}" for value in each.by_world.values())
        better = "" if each.better_than_fixed is None else _bounds(each.better_than_fixed)
        rows.append(f"| {each.arm} | {_bounds(each.regret)} | {better} | {each.macs:.2e} | {by_world} |")
    return "\n".join(rows)


def admissions(found: Sequence[Admission]) -> str:
    """One row a family of candidates."""
    rows = [
        "| family | hosts | best on its worlds | knowing the world wins | a reader goes by | p | blind price | |",
        "|---|---:|---|---:|---|---:|---:|---|",
    ]
    for each in found:
        best = "; ".join(f"`{name.removeprefix(each.family)}` {_plainly(c)}" for name, c in each.best.items())
        verdict = "**admitted**" if each.admitted else f"refused: {'; '.join(each.refusals)}"
        rows.append(
            f"| `{each.family}` | {each.hosts} | {best} | {_bounds(each.differs)} | {each.shown} | {each.p:.2f} | "
            f"{_bounds(each.price)} | {verdict} |"
        )
    return "\n".join(rows)


def _bounds(found: Interval | None) -> str:
    if found is None:
        return ""
    if found.low is None or found.high is None:
        return f"{found.mean:.2f}"
    return between(found.mean, found.low, found.high)


def between(mean: float, low: float, high: float) -> str:
    """``1.20 (0.40 to 2.00)``."""
    return f"{mean:.2f} ({low:.2f} to {high:.2f})"


def duels(found: Sequence[Duel]) -> str:
    """One row a policy and rival."""
    rows = [
        "| policy, in the table | minus | points | hosts | in regret |",
        "|---|---|---:|---:|---:|",
    ]
    rows += [
        f"| {each.policy} | {each.rival} | {_bounds(each.points)} | {each.points.n} | {_bounds(each.regret)} |"
        for each in found
    ]
    return "\n".join(rows)


def families(found: Sequence[FamilyScore]) -> str:
    """One row a policy and family; empty where there is none."""
    if not found:
        return ""
    rivals = list(found[0].over)
    rows = [
        f"| policy, in the table | family | hosts | {' | '.join(f'minus {rival}' for rival in rivals)} | loses, shown "
        "another host's |",
        f"|---|---|---:|{'---:|' * (len(rivals) + 1)}",
    ]
    for each in found:
        over = " | ".join(_bounds(each.over[rival]) for rival in rivals)
        rows.append(f"| {each.policy} | `{each.family}` | {each.lost.n} | {over} | {_bounds(each.lost)} |")
    return "\n".join(rows)


def reading_test(found: Mapping[str, Sequence[Reading]]) -> str:
    """One row a policy, group and scope."""
    rows = [
        "| policy | sees of another host | which | does anything else | points lost | so it is |",
        "|---|---|---|---:|---:|---|",
    ]
    rows += [
        f"| {policy} | {each.group} | {each.scope} | {each.changed} of {each.episodes} | {_bounds(each.lost)} | "
        f"{_verdict(each)} |"
        for policy, those in found.items()
        for each in those
    ]
    return "\n".join(rows)


def _verdict(each: Reading) -> str:
    if each.reads:
        return "a reader"
    return "a constant" if each.changed == 0 else "a constant, as far as these hosts show"


def read(found: Sequence[Reading]) -> str:
    """The reading test in a sentence or two."""
    widest = [each for each in found if each.scope == found[0].scope]
    whole = next(each for each in widest if each.group == ALL)
    lost = f"shown another host's, it loses {_bounds(whole.lost)} points and does anything else in"
    begin = f"Reading test: {lost} {whole.changed} of {whole.episodes} episodes."
    if whole.changed == 0:
        return f"{begin} It reads nothing of a host: in these worlds it is a constant."
    kinds = [each for each in found if each.group != ALL]
    read_of = [f"{each.group} ({each.scope})" for each in kinds if each.reads]
    if read_of:
        return f"{begin} It reads {', '.join(read_of)}; of the rest it is a constant, as far as these hosts show."
    if whole.reads:
        return f"{begin} It reads its hosts, though no group alone costs it anything beyond doubt."
    return f"{begin} It loses nothing beyond doubt: in these worlds it is a constant, as far as these hosts show."


def refused(tally: Tally) -> str:
    """One sentence on what the table does not hold."""
    if not tally.refused:
        return f"Of {tally.asked} actions that it asked for in the table none was illegal."
    return (
        f"Of {tally.asked} actions that it asked for in the table {tally.refused} were illegal and became what is done "
        f"without them (WAIT, or a seed's next gate); the first: {tally.first}."
    )


def unheard(worlds: Sequence[str]) -> str:
    """One sentence on worlds without the audition that a policy has in real runs."""
    return f"In the table of {', '.join(worlds)} it saw nothing that places promise: no audition is held there."


def ahead(where: str, rival: str, differences: Interval) -> str:
    """One sentence on paired differences in objective."""
    return f"In {where} it is ahead of {rival} by {_bounds(differences)} points, {differences.n} hosts."


def paid_off(even: BreakEven) -> str:
    """One sentence on break-even."""
    cost = f"Training the policy took {even.training_macs:.2e} MACs, tabulating the training worlds included"
    if even.uses is None:
        return (
            f"{cost}; searching at random for as good a result costs no more than a run of the policy: no break-even."
        )
    return f"{cost}; it saves {even.saved_per_use:.2e} MACs a use: break-even after {even.uses:.0f} uses."


def checked(comparisons: Sequence[PredictionCheck]) -> str:
    """One sentence on how the table predicts hosts that it never saw."""
    within = sum(each.within for each in comparisons)
    error = fmean(abs(each.predicted - each.real) for each in comparisons)
    worlds = ", ".join(f"`{name}`" for name in dict.fromkeys(each.world for each in comparisons))
    return (
        f"Of {len(comparisons)} tabulated sequences of {worlds}, each played on a fresh host, {within} "
        f"({100 * within / len(comparisons):.0f} %) end within two standard errors of what the table predicts; "
        f"the mean absolute difference is {error:.1f} points."
    )
