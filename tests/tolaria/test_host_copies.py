"""A state that is held is held once, and never changes."""

from __future__ import annotations

import gc
from pathlib import Path

import torch

from esper.library import Budget, Grower, OwnChoices
from esper.tolaria.host_copies import HostCopies
from own_loop import LOSS, TRAIN, narrow
from ranked_loop import GATES, LIFE, VALIDATION, Moves


def test_what_did_not_change_is_not_copied_again() -> None:
    copies, frozen, learns = HostCopies(), torch.randn(3), torch.nn.Parameter(torch.randn(4))
    first = copies.of({"frozen": frozen, "learns": learns})
    with torch.no_grad():
        learns.add_(1.0)
    second = copies.of({"frozen": frozen, "learns": learns})
    assert second["frozen"] is first["frozen"] and second["frozen"] is not frozen
    assert torch.equal(second["learns"], learns) and torch.equal(first["learns"] + 1.0, learns)
    assert not second["learns"].requires_grad
    learns.data[0] = -0.0
    first = copies.of({"learns": learns})
    learns.data[0] = 0.0
    assert copies.of({"learns": learns})["learns"] is not first["learns"], "every bit counts"
    del first, second
    gc.collect()
    assert not copies._given, "nothing is held here"


def test_good_state_best_network_and_checkpoint_are_one_copy(tmp_path: Path) -> None:
    model = narrow()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    budget = Budget(epochs=10, parameters=5000, gates=GATES)
    choices = OwnChoices(LOSS, at=["1", "3"], budget=budget, device="cpu")
    grower = Grower(model, optimizer, val=VALIDATION, choices=choices, policy=Moves(LIFE), run_dir=tmp_path / "run")
    with grower:
        for _ in range(4):
            for x, y in TRAIN:
                optimizer.zero_grad()
                grower.loss(x, y).backward()
                grower.after_backward()
                optimizer.step()
            grower.after_epoch()
        tensors = grower.state_dict()["tensors"]
        before = {name: tensor.clone() for name, tensor in tensors.items()}
        good = {name: tensor for name, tensor in tensors.items() if "/governor/" in name}
        assert any(name.endswith("/exp_avg") for name in good)
        for name, tensor in good.items():
            assert tensors[name.replace("/governor/", "/engine/")] is tensor, name
        best = {name: tensor for name, tensor in tensors.items() if "/best/" in name}
        held = {id(tensor) for tensor in good.values()}
        assert best and all(id(tensor) in held for tensor in best.values()), "it was the best of all"
        for x, y in TRAIN:
            optimizer.zero_grad()
            grower.loss(x, y).backward()
            grower.after_backward()
            optimizer.step()
        assert all(torch.equal(tensor, before[name]) for name, tensor in tensors.items())
        for tensor in tensors.values():
            tensor.zero_()
        (env,) = grower._loop.executor._envs
        for name, tensor in env.governor.state()["tensors"].items():
            (saved,) = [each for end, each in before.items() if end.endswith(f"/governor/{name}")]
            assert torch.equal(tensor, saved), "what a caller does to the state is not done to the run"
