"""The parts of a table that is being built: one file per played sequence, whole or not there."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors
from safetensors.numpy import save

from esper.bench.growtable.record import COLUMNS, Ending, Record
from esper.bench.growtable.sequences import Choices, choices_of, name_of
from esper.bench.growtable.worlds import WorldSpec
from esper.leyline import DataError
from esper.leyline.files import write_atomically

FORMAT = "esper-growtable-part-2"


@dataclass(frozen=True, slots=True)
class PlayedSequence:
    """A sequence that was played on host ``number`` of a world."""

    world: WorldSpec
    number: int
    choices: Choices
    record: Record


class Parts:
    """A directory of parts, ``<world>/<host>/<sequence>.safetensors``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, world: WorldSpec, number: int, choices: Choices) -> Path:
        """Where a part belongs."""
        return self.root / world.name / str(number) / f"{name_of(choices)}.safetensors"

    def done(self, world: WorldSpec, number: int) -> set[Choices]:
        """The sequences that were played on a host so far."""
        found = (self.root / world.name / str(number)).glob("*.safetensors")
        return {choices_of(path.name.removesuffix(".safetensors")) for path in found if not path.name.startswith(".")}

    def write(self, part: PlayedSequence) -> None:
        """Keep a part."""
        path = self.path(part.world, part.number, part.choices)
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {"format": FORMAT, "world": part.world.fingerprint, "start_metric": repr(part.record.start_metric)}
        about |= {name: repr(value) for name, value in asdict(part.record.ending).items()}
        write_atomically(path, save(part.record.steps, metadata=about))

    def read(self, world: WorldSpec, number: int, choices: Choices) -> PlayedSequence:
        """A part that was kept. Raises ``DataError`` where it is damaged, or of another definition of the world."""
        path = self.path(world, number, choices)
        try:
            with safetensors.safe_open(str(path), framework="np") as file:
                about = file.metadata() or {}
                steps = {name: file.get_tensor(name) for name in COLUMNS}
        except (OSError, safetensors.SafetensorError) as error:
            raise DataError(f"{path}: {error}; delete it and build again") from error
        if about.get("format") != FORMAT or about.get("world") != world.fingerprint:
            raise DataError(f"{path}: of another definition of world {world.name}; build in another directory")
        ending = Ending(
            validation_metric=float(about["validation_metric"]),
            test_metric=float(about["test_metric"]),
            test_loss=float(about["test_loss"]),
            total_macs=int(about["total_macs"]),
            kept_parameters=int(about["kept_parameters"]),
        )
        return PlayedSequence(world, number, choices, Record(steps, float(about["start_metric"]), ending))
