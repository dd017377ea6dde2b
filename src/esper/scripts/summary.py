"""What a person sees at the end of a run: the arms, what was grown and why it was kept or pruned, where things are."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from esper.karn.evidence import SeedLife
from esper.karn.plain import verdict_lines
from esper.karn.report import read_evidence, write_report
from esper.karn.results import STATIC, EndTable, difference_line, with_interval
from esper.karn.words import ABSENT, duration
from esper.leyline import visible

SEEDS_SHOWN = 12
PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def print_summary(directory: Path, console: Console) -> None:
    """Print the end table from the journal and write the report."""
    evidence, damage = read_evidence(directory, str(directory))
    console.print()
    styles = {"critical": "bold red", "bad": "bold red", "watch": "bold yellow", "ok": "bold green"}
    for line in verdict_lines(evidence.verdict):
        style = styles[evidence.verdict.level] if line.startswith("VERDICT") else ""
        console.print(Text(line, style=style), soft_wrap=True)
    console.print()
    console.print(arms_table(evidence.table))
    for difference in evidence.table.differences:
        console.print(Text(visible(difference_line(difference, evidence.table))), soft_wrap=True)
    arm = next((row.arm for row in evidence.table.arms if row.arm != STATIC), None)
    grown = [seed for seed in evidence.seeds if seed.arm == arm]
    if grown:
        console.print()
        newest = evidence.run.get("kind") == "ppo"  # of a learner what it does now counts
        shown = grown[-SEEDS_SHOWN:] if newest else grown[:SEEDS_SHOWN]
        console.print(seeds_table(shown, evidence.table.unit))
        if len(grown) > SEEDS_SHOWN:
            console.print(Text(f"{len(grown) - SEEDS_SHOWN} more stand in the report.", style="dim"))
    for problem in damage:
        console.print(Text(visible(f"journal: {problem.text}"), style="yellow"), soft_wrap=True)
    report = write_report(directory)
    console.print()
    places = [("run", directory), ("report", report)]
    if (directory / "model").is_dir():
        places.append(("model", directory / "model"))
    for name, path in places:
        console.print(Text.assemble((f"{name:<7}", "dim"), str(path)), soft_wrap=True)


def arms_table(table: EndTable) -> Table:
    """One line per arm: means over episodes with 95 % intervals."""
    unit = f" ({table.unit})" if table.unit else ""
    episodes = max((arm.episodes for arm in table.arms), default=0)
    title = f"test {table.metric}{unit}, means over {episodes} episode{'s' * (episodes != 1)} with 95 % intervals"
    view = Table(
        box=box.SIMPLE_HEAD, title=Text(visible(title)), title_style="dim", title_justify="left", pad_edge=False
    )
    view.add_column("arm", style="bold", no_wrap=True)
    for heading in ("test", "params", "MACs/pass", "spent", "kept", "time"):
        view.add_column(heading, justify="right", no_wrap=True)
    for arm in table.arms:
        view.add_row(
            Text(visible(arm.arm)),
            with_interval(arm.test),
            ABSENT if arm.parameters is None else f"{arm.parameters:,.0f}",
            short(arm.inference_macs),
            short(arm.total_macs),
            ABSENT if arm.seeds_kept is None else f"{arm.seeds_kept:.1f}",
            ABSENT if arm.seconds is None else duration(arm.seconds),
        )
    return view


def seeds_table(seeds: list[SeedLife], unit: str) -> Table:
    """One line per seed of the policy's arm: what became of it, and why."""
    view = Table(box=box.SIMPLE_HEAD, title="what was grown", title_style="dim", title_justify="left")
    for heading in ("episode", "slot", "blueprint", "epochs", "outcome", "why"):
        view.add_column(heading, overflow="fold", justify="right" if heading in ("episode", "epochs") else "left")
    styles = {"kept": "green", "fossilized": "green", "pruned": "magenta"}
    for seed in seeds:
        began = "?" if seed.germinated_epoch is None else str(seed.germinated_epoch)
        ended = "" if seed.end_epoch is None else f"–{seed.end_epoch}"
        view.add_row(
            str(seed.episode),
            Text(visible(seed.slot)),
            Text(visible(seed.blueprint or "?")),
            began + ended,
            Text(seed.outcome, style=styles.get(seed.outcome, "yellow")),
            Text(visible(_why(seed, unit))),
        )
    return view


def _why(seed: SeedLife, unit: str) -> str:
    """What decided: the measured removal cost of a kept seed, else the stated reason."""
    if seed.outcome != "kept" or seed.removal_cost is None:
        return seed.reason
    spread = "" if seed.removal_cost_se is None else f" ± {1.96 * seed.removal_cost_se:.1f}"
    return f"without it {seed.removal_cost:.1f}{spread} {unit} worse"


def short(value: float | None) -> str:
    """``1.2 G``; three significant digits."""
    if value is None:
        return ABSENT
    for size, prefix in PREFIXES:
        if value >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.3g}"
