"""What grows in a user's model mixes no more than it does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from keeping_hosts import GPT, CausalConvolutions, Masked, tokens
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from esper.leyline import (
    Blend,
    Decision,
    EnvSpec,
    EnvView,
    FactoredAction,
    Op,
    UsageError,
)
from esper.library import Budget, grow
from esper.nissa.reader import read_journal
from esper.tolaria.legality import legal_blueprints
from four_classes import SHORT


class MostMixing:
    """Grows a seed in every slot, the legal one that mixes most."""

    name = "most-mixing"
    order = (
        "attention_full",
        "conv7",
        "squeeze_excite",
        "causal_conv5",
        "attention",
        "depthwise5",
        "norm",
        "pointwise",
    )

    def reset(self, specs: list[EnvSpec]) -> None:
        pass

    def decide(self, views: list[EnvView]) -> list[Decision]:
        (view,) = views
        for slot in view.slots:
            legal = legal_blueprints(view, slot.slot_id)
            for blueprint in self.order if legal else ():
                if blueprint in legal:
                    action = FactoredAction(Op.GERMINATE, slot.slot_id, blueprint, Blend.LINEAR, 1.0, 1)
                    return [Decision(action, "because it may")]
        return [Decision(FactoredAction(), "all is grown")]


@pytest.mark.parametrize(
    ("build", "sequence", "expected"),
    [
        (CausalConvolutions, True, "causal_conv5"),
        (lambda: nn.Sequential(GPT(), _Transposed()), True, "attention"),
        (Masked, False, "norm"),
    ],
    ids=["causal convolutions", "GPT", "masked encoder"],
)
def test_what_grows_in_a_users_model_mixes_no_more_than_it_does(
    build: type[nn.Module], sequence: bool, expected: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    x = tokens(48, seed=1)
    data = DataLoader(TensorDataset(x, tokens(48, seed=2) if sequence else x[:, 0] % 5), 16)
    result = grow(
        build(),
        train=data,
        val=data,
        loss=nn.CrossEntropyLoss(),
        policy=MostMixing(),
        budget=Budget(epochs=2, max_seeds=9, parameters=10**6, gates=SHORT),
        run_dir=tmp_path / "run",
    )
    grown = [e.data["blueprint"] for e in read_journal(result.run_dir) if e.event_type.name == "SEED_GERMINATED"]
    assert grown and set(grown) == {expected}


class _Transposed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


def test_where_nothing_may_grow_the_model_is_refused_with_the_reason(tmp_path: Path) -> None:
    data = DataLoader(TensorDataset(tokens(8), tokens(8, seed=2)), 8)
    with pytest.raises(UsageError, match="no output of the host depends on later positions"):
        grow(
            CausalConvolutions(),
            train=data,
            val=data,
            loss=nn.CrossEntropyLoss(),
            budget=Budget(epochs=2, blueprints=("conv5",), gates=SHORT),
            run_dir=tmp_path / "run",
        )
