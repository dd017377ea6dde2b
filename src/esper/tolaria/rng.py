"""Named random streams, all derived from the run's seed.

Each use of chance has a stream of its own, so that drawing more from one (another augmentation, an extra
counterfactual) leaves the others where they were. Streams are part of a checkpoint.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import numpy as np
import torch
from torch import Generator, Tensor

from esper.leyline import DataError, unknown

STREAMS: Final = ("init", "order", "augment", "train", "probe", "counterfactual", "diagnostic", "policy")
"""What the streams are for: weights of hosts and seeds, order of examples, augmentation, chance inside a training step
(dropout), inside an incubation pass, inside an evaluation, in diagnostics, and a policy's draws."""

_CPU: Final = torch.device("cpu")


def derive(seed: int, *path: str | int) -> int:
    """A seed in ``[0, 2**63)`` for ``path`` below ``seed``, the same on every machine (sha256).

    >>> derive(0, "init") == derive(0, "init") != derive(0, "order")
    True
    """
    text = "\x1f".join([str(int(seed)), *(f"{type(part).__name__}:{part}" for part in path)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class Streams(Mapping[str, Generator]):
    """The run's CPU generators by name, made on first use from ``seed``.

    >>> streams = Streams(7)
    >>> torch.equal(torch.rand(2, generator=streams["order"]), torch.rand(2, generator=Streams(7)["order"]))
    True
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._generators: dict[str, Generator] = {}

    def __getitem__(self, name: str) -> Generator:
        if name not in STREAMS:
            raise unknown("random stream", name, STREAMS)
        if name not in self._generators:
            generator = Generator()
            generator.manual_seed(derive(self.seed, name))
            self._generators[name] = generator
        return self._generators[name]

    def __iter__(self) -> Iterator[str]:
        return iter(STREAMS)

    def __len__(self) -> int:
        return len(STREAMS)

    @contextmanager
    def active(self, name: str, device: torch.device = _CPU) -> Iterator[None]:
        """Let code that draws from torch's global generators (dropout) draw from stream ``name`` instead: from that of
        the CPU, and from that of an accelerator, which begins where a number of the stream says."""
        stream, away = self[name], device.type != "cpu"
        kind = device.type if away else "cuda"
        with torch.random.fork_rng([device.index or 0] if away else [], device_type=kind):
            if away:
                seed = int(torch.randint(2**63 - 1, (), generator=stream))
                getattr(torch, kind).set_rng_state(_position(device, seed), device.index or 0)
            torch.set_rng_state(stream.get_state())
            try:
                yield
            finally:
                stream.set_state(torch.get_rng_state())

    def state(self) -> dict[str, Tensor]:
        """Position of every stream: name -> uint8 tensor."""
        return {name: self[name].get_state() for name in STREAMS}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Put every stream where :meth:`state` found it. Raises :class:`DataError` and changes nothing otherwise."""
        if set(state) != set(STREAMS):
            odd = ", ".join(sorted(set(state) ^ set(STREAMS)))
            raise DataError(f"saved random streams differ in {odd}; expected {', '.join(STREAMS)}")
        restored = {}
        for name, position in state.items():
            restored[name] = Generator()
            try:
                restored[name].set_state(position.cpu())
            except (RuntimeError, TypeError) as error:
                raise DataError(f"saved position of random stream {name!r} is not one: {error}") from error
        for name, generator in restored.items():
            # the generator that others hold stays the same object
            self[name].set_state(generator.get_state())


def _position(device: torch.device, seed: int) -> Tensor:
    return Generator(device).manual_seed(seed).get_state()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run code under global generators (torch CPU, ``random``, ``numpy.random``) seeded with ``seed``; restored after.

    For code that cannot be handed a generator, such as the initialisation of a user's host.
    """
    plain, legacy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        # not torch.manual_seed: that would seed accelerators too, whose state is not restored here
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(plain)
            np.random.set_state(legacy)


def seed_process(seed: int) -> None:
    """Seed the global generators of ``random``, numpy and torch, from which user code may draw."""
    random.seed(derive(seed, "process", "random"))
    np.random.seed(derive(seed, "process", "numpy") % 2**32)
    torch.manual_seed(derive(seed, "process", "torch"))
