"""Run configuration: flags beat the file, the file beats the task's preset, the preset beats the default.

A setting is declared once, as a field: its type, default, bounds, and what the command line says about it. Every value
remembers where it came from, so that ``run.json`` can say so. Importing this loads no torch.
"""

from __future__ import annotations

import codecs
import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Generic, Literal, TypeVar, get_type_hints

import msgspec

from esper.leyline import DataError, UsageError, decode_json
from esper.leyline.decoding import MAX_DEPTH, told, value_too_deep
from esper.leyline.files import read_regular
from esper.nissa import manifest
from esper.nissa.manifest import Setting
from esper.tamiyo.policies.registry import LEARNED

GROW: Final = "what to grow"
DECIDE: Final = "who decides"
HOST: Final = "how hosts train"
AGAIN: Final = "how to go on after an interruption"
RECORD: Final = "what to record"

CONFIG_BYTES: Final = 1 << 20
CODE: Final = ("task", "blueprints", "policy", "compare")
"""Settings that may name code, as ``module:Attr``."""


@dataclass(frozen=True, slots=True)
class Flag:
    """What there is to know of a setting besides its type and default."""

    group: str
    """Heading on the help page."""
    help: str | Callable[[], str]
    metavar: str | None = None
    name: str | None = None
    """On the command line; ``None`` is the field's own name."""
    least: int | None = None
    above: float | None = None


def setting(default: Any, group: str, help: str | Callable[[], str], **more: Any) -> Any:
    """A field of a configuration; ``more`` goes to :class:`Flag`. A default that can change is given as its type."""
    flag = {"flag": Flag(group, help, **more)}
    return field(default_factory=default, metadata=flag) if default is dict else field(default=default, metadata=flag)


def _policies() -> str:
    from esper.tamiyo.policies.registry import policy_names

    return f"{', '.join(policy_names())}, a learned one's file, or module:Attr"


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonConfig:
    """What every run that trains hosts is asked. ``None`` leaves the choice to the task's budget."""

    task: str = setting("digits", GROW, "a built-in task, or module:Attr of your own")
    slots: tuple[str, ...] | None = setting(None, GROW, "use only these slots, comma-separated", metavar="NAMES")
    blueprints: tuple[str, ...] | None = setting(
        None, GROW, "use only these blueprints, comma-separated, or module:Attr of your own", metavar="NAMES"
    )
    max_seeds: int | None = setting(None, GROW, "most seeds alive at once", metavar="N", least=1)
    generations: int = setting(
        1, GROW, "most seeds that a slot keeps, one on top of the other: it opens again when one was kept", metavar="N",
        least=1,
    )  # fmt: skip
    param_budget: int | None = setting(None, GROW, "most parameters of all live seeds together", metavar="N", least=1)
    incubation: Literal["probe", "graft", "straight_through"] | None = setting(
        None, GROW, "how a seed learns before it may change the output"
    )
    batch_size: int | None = setting(None, HOST, "examples in a training step", metavar="N", least=1)
    lr: float | None = setting(None, HOST, "peak learning rate of the host", metavar="RATE", above=0)
    seed_lr_multiplier: float | None = setting(
        None, HOST, "a new seed's peak rate over the host's", metavar="X", above=0
    )
    precision: Literal["bf16-mixed", "16-mixed"] | None = setting(
        None, HOST, "mixed precision (default: as the weights are)"
    )
    weight_decay: float | None = setting(None, HOST, "of AdamW, decoupled", metavar="X", least=0)
    optimizer: dict[str, Any] = setting(
        dict, HOST, "AdamW's own, such as betas=[0.9,0.99]; may be repeated", metavar="NAME=VALUE",
        name="optimizer-option",
    )  # fmt: skip
    seed: int = setting(0, HOST, "of the run; all chance follows from it")
    device: str = setting("auto", HOST, "auto, cpu or cuda:N")
    threads: int = setting(1, HOST, "torch's intra-op threads; small models want 1", metavar="N", least=1)
    stack: bool = setting(
        False, HOST, "train environments without a live seed as one computation where a trial finds that faster; their "
        "figures are then the same to float tolerance only",
    )  # fmt: skip
    """What is summed in another order differs in its last bits, and by who shares a worker: off by default, since runs
    are otherwise the same bit for bit with any number of workers."""
    checkpoint_every: int = setting(
        10, AGAIN, "epochs between checkpoints; 0 writes one only on SIGTERM or Ctrl-C", metavar="N", least=0
    )
    run_dir: str | None = setting(None, RECORD, "where the run goes (default: a fresh one below runs/)", metavar="DIR")
    telemetry_level: Literal["off", "minimal", "normal", "debug"] = setting("normal", RECORD, "how much is told")
    telemetry_lifecycle_only: bool = setting(False, RECORD, "keep only what must be kept")
    diagnostics_profile: Literal["minimal", "standard", "diagnostic", "research"] | None = setting(
        None, RECORD, "deep look every K epochs"
    )
    diagnostics_every: int = setting(10, RECORD, "epochs between deep looks", metavar="K", least=1)
    counterfactual_every: int = setting(1, RECORD, "epochs between counterfactual evaluations", metavar="K", least=1)
    quiet: bool = setting(False, RECORD, "only what there is to say at the end")

    def __post_init__(self) -> None:
        for each in fields(self):
            value, flag = getattr(self, each.name), flag_of(each)
            if flag is None or value is None:
                continue
            if isinstance(value, float) and not math.isfinite(value):
                raise UsageError(f"{each.name} is {value}; it must be a finite number")
            if flag.least is not None and not value >= flag.least:
                raise UsageError(f"{each.name} is {value}; it must be {flag.least} or more")
            if flag.above is not None and not value > flag.above:
                raise UsageError(f"{each.name} is {value}; it must be above {flag.above}")

    @property
    def episode_epochs(self) -> int | None:
        """Epochs of an episode; ``None`` is the task's own number."""
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig(CommonConfig):
    """A run of fixed policies."""

    policy: str = setting("heuristic", DECIDE, _policies)
    compare: tuple[str, ...] = setting(
        ("random", "static"), DECIDE, "policies to run on the same seeds, each an arm of its own", metavar="NAMES"
    )
    episodes: int = setting(3, DECIDE, "paired seeds; episode e has seed + e", metavar="N", least=1)
    max_epochs: int | None = setting(None, DECIDE, "epochs of an episode", metavar="N", least=1)
    export: bool = setting(True, DECIDE, "do not write the grown model")

    @property
    def episode_epochs(self) -> int | None:
        """See :class:`CommonConfig`."""
        return self.max_epochs


def named_code(config: Mapping[str, Any]) -> dict[str, str]:
    """Setting -> its value as a flag takes it, of those settings (name -> value) that name code to import."""
    found = {}
    for setting in CODE:
        value = config.get(setting)
        names = [value] if isinstance(value, str) else [*value] if isinstance(value, list | tuple) else []
        if any(":" in name and not name.endswith(LEARNED) for name in map(str, names)):
            found[setting] = ",".join(map(str, names))
    return found


def flag_of(declared: Field[Any]) -> Flag | None:
    """What the field of a configuration declares for the command line."""
    found: Flag | None = declared.metadata.get("flag")
    return found


C = TypeVar("C", bound=CommonConfig)


@dataclass(frozen=True, slots=True)
class Resolved(Generic[C]):
    """A configuration and, per field, its value with the source of it."""

    config: C
    settings: dict[str, Setting]

    @property
    def values(self) -> dict[str, Any]:
        """name -> value."""
        return {name: setting.value for name, setting in self.settings.items()}


def resolve(
    of: type[C],
    flags: Mapping[str, Any],
    file: Mapping[str, Any] | None = None,
    preset: Mapping[str, Any] | None = None,
) -> Resolved[C]:
    """Merge the layers into the configuration dataclass ``of``.

    Raises ``UsageError`` for an unknown key, a wrong type or a value out of range.
    """
    kinds = get_type_hints(of)
    settings = manifest.resolve(
        {each.name: default_of(each) for each in fields(of)},
        preset=_checked(preset or {}, kinds),
        file=_checked(file or {}, kinds),
        flag=_checked(flags, kinds),
    )
    return Resolved(of(**{name: setting.value for name, setting in settings.items()}), settings)


def default_of(declared: Field[Any]) -> Any:
    """The default of a configuration's field."""
    return declared.default if declared.default_factory is MISSING else declared.default_factory()


def _checked(layer: Mapping[str, Any], kinds: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _converted(name, value, kinds[name]) if name in kinds else value for name, value in layer.items()}


def _converted(name: str, value: Any, kind: Any) -> Any:
    """``value`` as the field's type; text with commas is a list of names where names are wanted."""
    if isinstance(value, str) and kind in (tuple[str, ...], tuple[str, ...] | None):
        value = [part.strip() for part in value.split(",") if part.strip()]
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise UsageError(f"{name} is {told(repr(value))}: {told(error)}") from None


def read_config_file(path: str | Path) -> dict[str, Any]:
    """Read a TOML or JSON file of configuration keys (``-`` and ``_`` are the same). Raises ``UsageError``."""
    path = Path(path)
    if path.suffix not in (".toml", ".json"):
        raise UsageError(f"configuration file {path}: the name must end in .toml or .json")
    try:
        # editors on Windows write a mark before the first key
        text = read_regular(path, CONFIG_BYTES, follow=True).removeprefix(codecs.BOM_UTF8)
        content = _toml(text, path) if path.suffix == ".toml" else decode_json(text, path)
    except OSError as error:
        raise UsageError(f"configuration file {path}: {error.strerror}") from error
    except DataError as error:
        raise UsageError(f"configuration file {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"configuration file {path}: holds a {type(content).__name__}, a table of keys is needed")
    return {key.replace("-", "_"): value for key, value in content.items()}


def _toml(text: bytes, path: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(text.decode())
    except ValueError as error:
        raise DataError(f"{path}: {told(error)}") from None
    except RecursionError:
        content = None
    if content is None or value_too_deep(content):
        raise DataError(f"{path}: nested deeper than {MAX_DEPTH} levels")
    return content
