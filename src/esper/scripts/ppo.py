"""``esper train ppo``: learn a policy that decides what to grow, and save it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from esper.leyline import Metric
from esper.run.resume import ResumeRequest
from esper.scripts.summary import print_summary
from esper.simic.ppo_config import PPORunConfig
from esper.simic.training import PPOTraining
from esper.simic.vectorized import RoundReport


def run_ppo(flags: Mapping[str, Any], file: Mapping[str, Any], asked: ResumeRequest | None = None) -> int:
    """Learn and save, or go on with the run that was ``asked`` for, showing each round; returns the exit status."""
    training, console = PPOTraining(flags, file, asked), Console(highlight=False)
    config, metric = training.config, training.metric
    shown = Console(highlight=False, quiet=config.quiet)
    path = training.train(
        lambda report: shown.print(line(report, config, metric), soft_wrap=True),
        lambda lines: shown.print(*lines, sep="\n", soft_wrap=True),
    )
    print_summary(path.parent, console)
    console.print(Text.assemble(("policy ", "dim"), str(path)), soft_wrap=True)
    return 0


def line(report: RoundReport, config: PPORunConfig, metric: Metric) -> Text:
    """One round in one line."""
    update = report.update
    explained = "–" if update.explained_variance is None else f"{update.explained_variance:.2f}"
    return Text(
        f"round {report.number}/{config.rounds}  return {report.mean_return:+.2f}  objective {report.mean_gain:+.2f}  "
        f"{metric.name} {report.mean_metric:.1f} {metric.unit}  kept {report.mean_kept:.1f}  "
        f"entropy {update.entropy:.2f}  KL {update.kl:.3f}  explained {explained}"
    )
