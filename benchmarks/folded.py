"""What low-rank seeds that were folded into a pretrained host cost and compute where there is no Esper.

    OMP_NUM_THREADS=1 uv run python benchmarks/folded.py [emoji mnist-m]

A seed of rank 8 beside every linear layer or pointwise convolution learns for twenty steps and is kept. Exported are
the host before it grew, the grown one, and the grown one with its seeds not folded, to show what folding saves. Another
Python, in which ``import esper`` fails, loads these files, and the host's a second time, to show what the measurement
itself is worth. It compares outputs on the validation split with the growing model's, and classes and shapes with the
host's; times are CPU seconds on one thread, of passes that take turns in an order drawn anew each round: median of the
ratios to the host's pass of the same round, with the middle half of them, and the median's 95 % interval by bootstrap.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file

from esper.kasmina.export import compare, export, save_export
from esper.kasmina.growing import GrowingModel
from esper.leyline import SeedStage
from esper.tasks import Batches, TaskSpec, get_task

STEPS, RATE = 20, 1e-3
BLUEPRINT = "lora8"
EXAMPLES = {"emoji": (1, 32), "mnist-m": (1, 32)}
"""Task -> examples of a pass."""
ROUNDS = 200
"""Of passes of one example; larger ones get a fourth."""

CHILD = """
import importlib.util, json, random, statistics, sys, time
sys.modules["esper"] = sys.modules["safetensors"] = None
import torch

torch.set_num_threads(1)
batches, rounds = json.loads(sys.argv[1]), int(sys.argv[2])


def load(folder):
    spec = importlib.util.spec_from_file_location("model_" + folder, folder + "/model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, module.load()


files, bare = load("host")
again, grown, apart = load("host")[1], load("folded")[1], load("apart")[1]
given = files.read_tensors("given.safetensors")
form = lambda model: [(n, type(m).__name__) for n, m in model.named_modules()]
shapes = lambda model: [(n, tuple(p.shape), p.dtype) for n, p in model.named_parameters()]
found = {"same_form": form(bare) == form(grown) and shapes(bare) == shapes(grown)}
found["apart_is_other"] = form(bare) != form(apart)


@torch.no_grad()
def outputs(model):
    return torch.cat([model(part) for part in given["inputs"].split(50)])


def gap(model):
    there = outputs(model)
    difference = (there - given["outputs"]).abs() / given["outputs"].abs().clamp(min=1.0)
    return {"largest": float(difference.max()), "answers": float((there.argmax(1) != given["outputs"].argmax(1)).sum())}


found["folded"], found["apart"], found["host"] = gap(grown), gap(apart), gap(bare)
models = {"host": bare, "host again": again, "folded": grown, "not folded": apart}
found["times"] = {}
with torch.no_grad():
    for size in batches:
        sample = given["inputs"][:size].clone()
        seconds = {name: [] for name in models}
        for turn in range((rounds if size == 1 else rounds // 4) + 3):
            order = list(models)
            random.Random(turn).shuffle(order)
            for name in order:
                start = time.process_time()
                models[name](sample)
                if turn >= 3:  # the first passes find their memory
                    seconds[name].append(time.process_time() - start)
        found["times"][str(size)] = seconds
found["esper"] = [name for name in sys.modules if name.split(".")[0] == "esper" and sys.modules[name] is not None]
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Told:
    """Ratios of one kind of pass to the host's."""

    median: float
    low: float
    high: float
    quarter: float
    three_quarters: float


def told(ratios: list[float]) -> Told:
    """The median, its interval, and the middle half."""
    values = torch.tensor(ratios, dtype=torch.float64)
    chance = torch.Generator().manual_seed(0)
    drawn = values[torch.randint(len(values), (2000, len(values)), generator=chance)].quantile(0.5, dim=1)
    low, high = drawn.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    quarter, _, three_quarters = statistics.quantiles(ratios, n=4)
    return Told(statistics.median(ratios), low, high, quarter, three_quarters)


def wrapped(task: TaskSpec) -> GrowingModel:
    torch.manual_seed(0)
    return GrowingModel.wrap(task.host(), task.sites, task.data.train.inputs[:4]).eval()


def learn(model: GrowingModel, task: TaskSpec) -> None:
    """Seeds everywhere learn together with the head, and are kept."""
    for slot in model.slots.values():
        assert slot.germinate(BLUEPRINT).passed and slot.state is not None
        slot.state.stage, slot.state.alpha = SeedStage.FOSSILIZED, 1.0
    seeds = [parameter for slot_id in model.slots for parameter in model.seed_parameters(slot_id)]
    for parameter in seeds:
        parameter.requires_grad_(True)
    head = [parameter for parameter in model.host.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW([*seeds, *head], lr=RATE)
    source = Batches(task.data.train, task.budget.batch_size)
    batches = chain.from_iterable(source.epoch() for _ in range(STEPS))
    for inputs, targets in islice(batches, STEPS):
        optimizer.zero_grad()
        task.loss(model.run(inputs), targets).mean().backward()
        optimizer.step()


def measured(name: str, folder: Path) -> dict[str, Any]:
    """What the other Python found."""
    task = get_task(name, train=320)
    sample, inputs = task.data.train.inputs[:8], task.data.validation.inputs
    model = wrapped(task)
    save_export(model, folder / "host", sample)
    learn(model, task)
    model.eval()
    exported = save_export(model, folder / "folded", sample)
    assert not exported.unfolded and len(exported.shape.folded) == len(task.sites), exported.unfolded
    with torch.no_grad():
        outputs = torch.cat([model.run(part) for part in inputs.split(50)])
    save_file({"inputs": inputs.contiguous(), "outputs": outputs.contiguous()}, folder / "given.safetensors")
    tolerance = compare(model, export(model, sample=sample), sample).tolerance
    model.folds.clear()
    save_export(model, folder / "apart", sample)
    command = [sys.executable, "-c", CHILD, json.dumps(EXAMPLES[name]), str(ROUNDS)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout) | {"tolerance": tolerance, "seeds": len(task.sites), "examples": len(inputs)}


def main() -> None:
    torch.set_num_threads(1)
    for name in sys.argv[1:] or EXAMPLES:
        with TemporaryDirectory() as folder:
            found = measured(name, Path(folder))
        assert not found["esper"] and found["same_form"] and found["apart_is_other"]
        print(f"{name}: {found['seeds']} seeds {BLUEPRINT}; {found['examples']} examples of validation", flush=True)
        for kind in ("folded", "apart", "host"):
            gap = found[kind]
            print(f"  outputs, {kind}: differ by {gap['largest']:.2g}, other answers {gap['answers']:.0f}")
        print(f"  tolerance {found['tolerance']:.0e}")
        for size, seconds in found["times"].items():
            host = seconds.pop("host")
            print(f"  {size} examples a pass, host {statistics.median(host) * 1e3:.2f} ms, {len(host)} rounds")
            for kind, each in seconds.items():
                it = told([one / other for one, other in zip(each, host, strict=True)])
                print(
                    f"    {kind:<11}{it.median:.4f} ({it.low:.4f} to {it.high:.4f}); "
                    f"middle half {it.quarter:.3f} to {it.three_quarters:.3f}"
                )
        assert found["folded"]["largest"] <= found["tolerance"] < found["host"]["largest"]


if __name__ == "__main__":
    main()
