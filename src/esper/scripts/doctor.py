"""``esper doctor``: what is installed, which devices and extras work."""

from __future__ import annotations

import importlib
import os
import platform
from collections.abc import Iterator, Sequence
from importlib import metadata

from esper._version import DISTRIBUTION, __version__
from esper.scripts.cli import Parser

CORE = ("torch", "numpy", "msgspec", "safetensors", "rich", "scikit-learn")
EXTRAS = {
    "colour": ("mlxtend", "PIL"),
    "gpu": ("pynvml",),
    "mlflow": ("mlflow",),
    "mnist1d": ("mnist1d",),
    "onnx": ("onnx", "onnxscript"),
    "parquet": ("pyarrow",),
    "query": ("duckdb",),
    "ray": ("ray", "grpc"),
    "report": ("matplotlib",),
    "rl": ("gymnasium",),
    "sb3": ("stable_baselines3", "sb3_contrib"),
    "sweep": ("optuna",),
    "tensorboard": ("tensorboardX",),
    "tui": ("textual",),
    "wandb": ("wandb",),
    "web": ("starlette", "uvicorn", "websockets", "tsdownsample"),
}


def lines() -> Iterator[tuple[bool, str, str]]:
    """``(works, what, detail)`` for every part that can be checked."""
    yield True, "esper", f"{__version__} ({DISTRIBUTION})"
    if (other := namesake()) is not None:
        yield False, "namesake", other
    yield True, "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    for name in CORE:
        yield _version(name)
    yield _computes("cpu")
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for i in range(count):
        yield _computes(f"cuda:{i}")
    if not count:
        yield True, "cuda", "no device; everything runs on the CPU"
    for extra, modules in EXTRAS.items():
        missing = [name for name in modules if not _imports(name)]
        detail = (
            f"missing {', '.join(missing)}; in a checkout of Esper, pip install '.[{extra}]'"
            if missing
            else "installed"
        )
        yield not missing, f"extra {extra}", detail


def namesake() -> str | None:
    """What to do about the other project called ``esper``, where it is installed: its files replace ours."""
    try:
        version = metadata.version("esper")
    except metadata.PackageNotFoundError:
        return None
    return (
        f"another project named esper ({version}) has the same import name: "
        f"pip uninstall esper, then install {DISTRIBUTION} again"
    )


def _version(name: str) -> tuple[bool, str, str]:
    try:
        return True, name, metadata.version(name)
    except metadata.PackageNotFoundError:
        return False, name, "not installed"


def _computes(device: str) -> tuple[bool, str, str]:
    """Whether a convolution with its gradient works there."""
    import torch

    try:
        image = torch.ones(1, 1, 4, 4, device=device, requires_grad=True)
        kernel = torch.ones(1, 1, 3, 3, device=device)
        total = torch.nn.functional.conv2d(image, kernel).sum()
        (gradient,) = torch.autograd.grad(total, image)
        right = total.item() == 36.0 and float(gradient.sum()) == 36.0
    except RuntimeError as error:
        return False, device, str(error).splitlines()[0]
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else f"{os.cpu_count()} cores"
    return right, device, name if right else "gives wrong results"


def _imports(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def main(argv: Sequence[str]) -> int:
    """Print one line per part; 1 when something that is needed does not work."""
    Parser(prog="esper doctor", description=__doc__).parse_args(argv)
    needed = True
    for works, what, detail in lines():
        optional = what.startswith("extra ")
        needed = needed and (works or optional)
        print(f"{'ok' if works else '--' if optional else 'NO'}  {what:<14} {detail}")
    return 0 if needed else 1
