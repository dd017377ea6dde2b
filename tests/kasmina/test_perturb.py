"""A probe changes the part that it says, and nothing else."""

from __future__ import annotations

import torch
from keeping_hosts import GPT, Masked, tokens
from torch import Tensor, nn

from esper.kasmina.perturb import DRAWS, Pass, embeddings_disturbed, halves, paddings


def test_halves_cover_every_axis_and_leave_the_other_half() -> None:
    x = torch.randn(3, 4, 5)
    pairs = list(halves(nn.Identity(), ((x,), {})))
    assert [probe.axis for pair in pairs for probe in pair] == [
        ((0, 0), axis, x.shape[axis]) for axis in (0, 0, 1, 1, 2, 2)
    ]
    for (late, early), size, axis in zip(pairs, x.shape, range(3), strict=True):
        assert late.untouched == (size // 2) / size and late.untouched + early.untouched == 1
        assert len(late.changed) == DRAWS
        for draw in range(DRAWS):
            (one,), (other,) = (probe.changed[draw].arguments[0] for probe in (late, early))
            parts = [(one == x).narrow(axis, 0, size // 2), (other == x).narrow(axis, size // 2, size - size // 2)]
            assert all(part.all() for part in parts)
            assert not (one == x).all() and ((one == x) ^ (other == x)).all()


def test_tokens_become_others_of_the_batch_in_every_draw() -> None:
    x = tokens()
    ((late, _), *_rest) = halves(GPT(), ((x,), {}))
    for run in late.changed:
        (new,) = run.arguments[0]
        assert (new[1] != x[1]).all() and set(new.flatten().tolist()) <= set(x.flatten().tolist())


def test_masks_are_set_and_never_disturbed() -> None:
    call = ((), {"x": tokens(), "attention_mask": torch.ones(2, 12, dtype=torch.long)})
    assert {probe.axis[0] for pair in halves(Masked(), call) for probe in pair if probe.axis} == {(1, "x")}
    found = [contrast for masked, contrast in paddings(Masked(), call) if masked]
    assert len(found) == 4  # either sense, either end
    for contrast in found:
        masks: list[Tensor] = [
            each.arguments[1]["attention_mask"]
            for probe in (contrast.padded, contrast.control)
            for each in (probe.reference, probe.changed[0])
        ]
        assert torch.equal(masks[0], masks[1]) and torch.equal(masks[2], masks[3])
        assert (masks[0] != masks[2]).sum() == 2 * 3 and len(masks[2].unique()) == 1
        before, after = (run.arguments[1]["x"] for run in (contrast.padded.reference, contrast.padded.changed[0]))
        assert torch.equal(before != after, masks[0] != masks[2])


def test_embeddings_give_noise_where_they_are_told() -> None:
    host, where = nn.Embedding(16, 4), torch.tensor([[False, True, False]])
    x = torch.tensor([[1, 1, 2]])
    plain = host(x)
    with embeddings_disturbed(host, Pass(((x,), {}), where)):
        noisy = host(x)
        assert torch.equal(host(x[:, :2]), plain[:, :2])
    assert torch.equal((noisy != plain).any(-1), where)
    assert torch.equal(host(x), plain)
