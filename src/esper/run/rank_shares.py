"""What each of several ranks keeps of its own: streams of chance, where it is in its share of the examples, and what it
has counted in the epoch under way."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Final

import torch
from torch import Tensor

from esper.kasmina.sharded import unmarked
from esper.tolaria import rng
from esper.tolaria.epoch import Share
from esper.tolaria.nested import State, join, split
from esper.tolaria.ranks import Ranks

_OWN: Final = re.compile(r"(^|/)(stream|batches)/")
"""Of the tensors of a run, by name; all others are the same on every rank."""
_TRAINING: Final = re.compile(r"(^|/)stream/train$")


def gathered(ranks: Ranks, parts: Mapping[str, State]) -> State:
    """What all ranks but the first have of their own, of the ``run`` and its ``chance``."""
    mine = {name: tensor for name, tensor in parts["run"]["tensors"].items() if _OWN.search(name)}
    counted = astuple(_share(parts["run"])) if _under_way(parts["run"]) else None
    here = join({"run": {"tensors": mine, "plain": counted}, "chance": parts["chance"]})
    # as arrays: torch 2.13 pickles tensors of unsigned 32-bit numbers, numpy's stream, so that it cannot read them
    arrays = {name: tensor.cpu().numpy() for name, tensor in here["tensors"].items()}
    everyone = ranks.all((arrays, here["plain"]), "state_dict")
    states = [
        State(tensors={n: torch.from_numpy(a) for n, a in found.items()}, plain=plain) for found, plain in everyone
    ]
    return join({str(rank): each for rank, each in enumerate(states) if rank})


def whole(ranks: Ranks, state: State) -> State:
    """The state with its shards put together, one after the other, on rank 0; without them elsewhere."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in state["tensors"].items():
        plain, shape = unmarked(name)
        if (put_together := tensor if shape is None else ranks.whole(tensor, shape)) is not None:
            tensors[plain] = put_together
    return State(tensors=tensors, plain=state["plain"])


def taken(ranks: Ranks, parts: dict[str, State], shares: State | None) -> dict[str, State]:
    """The parts as this rank goes on with them. Where others have saved them, its chance is made from rank 0's."""
    saved = [] if shares is None else [split(each) for each in split(shares).values()]
    alike, run = len(saved) == ranks.count - 1, parts["run"]
    if _under_way(run):
        run = _counting(run, [_share(run), *(Share(*each["run"]["plain"]) for each in saved)], ranks.rank, alike)
    if ranks.rank == 0:
        return parts | {"run": run}
    if alike:
        own = saved[ranks.rank - 1]
        return {
            "run": State(tensors=run["tensors"] | own["run"]["tensors"], plain=run["plain"]),
            "chance": own["chance"],
        }
    tensors = {name: _other(t, ranks.rank) if _TRAINING.search(name) else t for name, t in run["tensors"].items()}
    chance = parts["chance"]["tensors"]
    other = State(tensors=chance | {"torch": _other(chance["torch"], ranks.rank)}, plain=parts["chance"]["plain"])
    return {"run": State(tensors=tensors, plain=run["plain"]), "chance": other}


def _under_way(run: State) -> bool:
    """Whether the run was saved in the midst of an epoch."""
    return "epoch" in run["plain"]


def _share(run: State) -> Share:
    return Share.of(split(run)["epoch"])


def _counting(run: State, shares: Sequence[Share], rank: int, alike: bool) -> State:
    """The run as a rank goes on that counted its own of ``shares``; where others have counted, all is rank 0's."""
    share = shares[rank] if alike else Share.sum(shares) if rank == 0 else shares[0].none()
    parts = split(run)
    return join(parts | {"epoch": share.within(parts["epoch"])})


def _other(position: Tensor, rank: int) -> Tensor:
    """Another stream's position, made from that of rank 0's."""
    seed = int.from_bytes(hashlib.sha256(position.numpy().tobytes()).digest()[:7], "big")
    return torch.Generator().manual_seed(rng.derive(seed, "rank", rank)).get_state()
