"""Which training stacks a model can grow under, and whether that is what a plain loop with ``Grower`` does.

    uv run python benchmarks/compatibility_stacks.py --into docs/compatibility.md

Each row is one way to train, on a small model with fixed batches and a seed that germinates, learns behind the model
and is blended in. A cell is passed, or refused with the sentence that a user is told, or failed. The checks are those
of ``tests/stacks``.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests" / folder) for folder in ("stacks", "kasmina", ".")]
os.environ["HF_HUB_OFFLINE"] = "1"
warnings.simplefilter("ignore")

import torch  # noqa: E402
from accelerate_runs import Accelerated, forget  # noqa: E402
from adapters import Adapted  # noqa: E402
from kit import Stack, Way, check_checkpoint, check_gradients, check_resume  # noqa: E402
from lightning_runs import Lightning, Manual, Named  # noqa: E402
from loops import Own, timm_tools, torchvision_tools  # noqa: E402
from test_lightning import Iterated, Pair, Twice  # noqa: E402
from transformers_runs import Counting, HuggingFace  # noqa: E402

from esper import EsperError, library  # noqa: E402
from esper.karn.report import write_report  # noqa: E402

START, END = "<!-- stacks: begin -->", "<!-- stacks: end -->"
ALL = Way(micro=2, clip=0.05, bf16=True, scheduled=True)
CHECKS: dict[str, Callable[[Stack, Path], None]] = {
    "as a plain loop": check_gradients,
    "checkpoint": check_checkpoint,
    "resumed": check_resume,
}
STEPS = {"save_strategy": "steps", "save_steps": 2}
BEST = {"save_strategy": "epoch", "eval_strategy": "epoch", "load_best_model_at_end": True}

STACKS: dict[str, dict[str, Any]] = {
    "Lightning": {
        "automatic optimization": Lightning(),
        "manual optimization": Lightning(kind=Manual),
        "manual, accumulated, LambdaLR": Lightning(Way(micro=2, scheduled=True), Manual),
        "loss in a dictionary": Lightning(kind=Named),
        "bf16-mixed": Lightning(Way(bf16=True)),
        "accumulate_grad_batches": Lightning(Way(micro=2)),
        "gradient_clip_val": Lightning(Way(clip=0.05)),
        "LambdaLR by step": Lightning(Way(scheduled=True)),
        "EarlyStopping": Lightning(stopping=True),
        "val_check_interval": Lightning(Way(rounds=2)),
        "all of these, checkpoints in mid-epoch": Lightning(ALL, every=("every_n_train_steps", 1)),
        "two optimizers": Lightning(kind=Pair),
        "two backward passes in a step": Lightning(kind=Twice),
        "dataloader_iter": Lightning(kind=Iterated),
    },
    "Hugging Face Trainer": {
        "as it is": HuggingFace(),
        "gradient accumulation": HuggingFace(Way(micro=2)),
        "gradient accumulation, num_items_in_batch": HuggingFace(Way(micro=2), Counting),
        "bf16": HuggingFace(Way(bf16=True)),
        "max_grad_norm": HuggingFace(Way(clip=0.05)),
        "its linear schedule": HuggingFace(linear=True),
        "load_best_model_at_end": HuggingFace(options=BEST),
        "eval_strategy steps": HuggingFace(Way(rounds=2), options=STEPS | {"eval_strategy": "steps", "eval_steps": 2}),
        "all of these, checkpoints in mid-epoch": HuggingFace(ALL, Counting, options=STEPS),
        "auto_find_batch_size": HuggingFace(options={"auto_find_batch_size": True}),
        "torch_compile": HuggingFace(options={"torch_compile": True}),
    },
    "Accelerate": {
        "prepare": Accelerated(),
        "accumulate, clip_grad_norm_": Accelerated(Way(micro=2, clip=0.05)),
        "mixed_precision bf16": Accelerated(Way(bf16=True)),
        "all of these, a prepared schedule": Accelerated(ALL),
    },
    "PEFT": {
        "LoRA adapters under the Trainer": Adapted(),
    },
    "a loop of one's own": {
        "GradScaler": Own(),
        "GradScaler, accumulated, clipped, scheduled": Own(Way(micro=2, clip=0.05, scheduled=True)),
        "timm: Mixup, soft targets, its clipping, ModelEmaV3": Own(
            Way(micro=2, clip=0.05, scheduled=True), tools=timm_tools
        ),
        "torchvision: label smoothing, average with buffers": Own(
            Way(clip=0.05, scheduled=True), tools=torchvision_tools
        ),
    },
}


WHAT = """
*As a plain loop*: gradients, weights and rates of host and seeds, at every step of the optimizer, are those of a plain
loop with `Grower` on the same batches: bit for bit, but for PEFT (a thousandth), where one side divides a sum over
tokens and the other takes their mean. *Checkpoint*: what the stack wrote loads strictly into model and optimizer
without Esper (Lightning's once the key is taken out that says that seeds are missing), and the seeds stand beside.
*Resumed*: killed, and gone on with in a fresh model from that checkpoint, it is the uninterrupted run, bit for bit.
"""


def cell(check: Callable[[Stack, Path], None], stack: Stack) -> str:
    """What became of one check."""
    forget()
    with tempfile.TemporaryDirectory(prefix="stacks-") as folder:
        try:
            check(stack, Path(folder))
        except EsperError as error:
            return f"refused: {error}"
        except Exception as error:
            return f"FAILED: {type(error).__name__}: {str(error).splitlines()[0]}"
    return "passed"


def row(stack: Stack) -> list[str]:
    """A refusal is told once."""
    cells: list[str] = []
    for check in CHECKS.values():
        cells.append(cell(check, stack))
        if cells[-1].startswith("refused"):
            return cells + ["–"] * (len(CHECKS) - len(cells))
    return cells


def page(rows: Sequence[tuple[str, str, list[str]]]) -> str:
    """The section."""
    passed = sum(all(each == "passed" for each in cells) for *_, cells in rows)
    refused = sum(cells[0].startswith("refused") for *_, cells in rows)
    lines = [
        START,
        "## Stacks",
        "",
        f"Written by `benchmarks/compatibility_stacks.py` on the CPU, with {versions()}. {len(rows)} ways to train:",
        f"{passed} passed, {refused} refused, {len(rows) - passed - refused} failed in part.",
        *WHAT.splitlines(),
        "",
        f"| stack | variant | {' | '.join(CHECKS)} |",
        "|---|---|" + "---|" * len(CHECKS),
    ]
    told = [" | ".join(each.replace("|", "\\|") for each in cells) for *_, cells in rows]
    lines += [f"| {stack} | {name} | {cells} |" for (stack, name, _), cells in zip(rows, told, strict=True)]
    return "\n".join([*lines, END])


def versions() -> str:
    """Of what is tried."""
    names = ("torch", "lightning", "transformers", "accelerate", "peft", "timm", "torchvision")
    return ", ".join(f"{name} {version(name).partition('+')[0]}" for name in names)


def put(section: str, path: Path) -> None:
    """Into the page, in place of the section that is there."""
    text = path.read_text(encoding="utf-8") if path.exists() else "# What can be grown\n"
    before, begun, rest = text.partition(START)
    _, _, after = rest.partition(END)
    text = before.rstrip("\n") + "\n\n" + section + ("\n" + after.lstrip("\n") if begun else "\n")
    path.write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="STACK", help="of these stacks alone")
    parser.add_argument("--into", type=Path, metavar="FILE", help="write the section into this page")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    library.write_report = partial(write_report, figures=False)  # they take longer to draw than these runs
    rows = []
    for stack, ways in STACKS.items():
        for name, way in ways.items() if not options.only or stack in options.only else ():
            began = time.perf_counter()
            rows.append((stack, name, row(way)))
            print(f"{stack:22} {name:52} {time.perf_counter() - began:5.1f} s  {rows[-1][2]}", flush=True)
    (partial(put, path=options.into) if options.into else print)(page(rows))


if __name__ == "__main__":
    main()
