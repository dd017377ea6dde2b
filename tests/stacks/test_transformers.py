"""Growth under Hugging Face's Trainer is growth in a plain loop."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from kit import EPOCHS, TRAIN, VALIDATION, Way, budget, check_checkpoint, check_gradients, check_resume, quick
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers_runs import Counting, HuggingFace, InOrder, Model

from esper.leyline import UsageError
from esper.stacks.transformers import GrowCallback
from own_loop import LOSS

pytestmark = pytest.mark.usefixtures("without_figures", "fresh_state")

STACKS = {
    "plain": HuggingFace(),
    "accumulated": HuggingFace(Way(micro=2)),
    "accumulated by items": HuggingFace(Way(micro=2), Counting),
    "clipped": HuggingFace(Way(clip=0.05)),
    "bf16": HuggingFace(Way(bf16=True)),
    "LambdaLR": HuggingFace(Way(scheduled=True)),
    "linear": HuggingFace(linear=True),
    "evaluated by steps": HuggingFace(Way(rounds=2), options={"eval_strategy": "steps", "eval_steps": 2}),
    "all": HuggingFace(Way(micro=2, clip=0.05, bf16=True, scheduled=True), Counting),
}


@pytest.mark.parametrize("stack", quick(STACKS, "all"))
def test_gradients_are_those_of_a_plain_loop(stack: HuggingFace, tmp_path: Path) -> None:
    check_gradients(stack, tmp_path)


def test_a_loss_that_is_computed_again_leaves_the_trainer_alone(tmp_path: Path) -> None:
    _, trainer, growth = HuggingFace().trained(tmp_path)
    assert trainer.seen == EPOCHS * len(TRAIN)
    assert [log["seen"] for log in trainer.state.log_history if "seen" in log] == list(range(1, trainer.seen + 1))
    assert not {"train", "compute_loss", "training_step", "save_model", "_load_best_model"} & set(vars(trainer))
    assert growth not in trainer.callback_handler.callbacks


@pytest.mark.slow
def test_a_checkpoint_loads_without_esper_and_has_the_seeds_beside(tmp_path: Path) -> None:
    check_checkpoint(STACKS["all"], tmp_path)


MIDWAY = {"save_strategy": "steps", "save_steps": 2}


def test_evaluations_that_do_not_divide_an_epoch_end_no_more_epochs_of_growth_than_there_are(tmp_path: Path) -> None:
    _, _, growth = HuggingFace(options={"eval_strategy": "steps", "eval_steps": 3}).trained(tmp_path)
    assert growth.grower is not None
    assert growth.grower.view.epoch == -(-EPOCHS * len(TRAIN) // 3), "the Trainer evaluates its last step"


@pytest.mark.parametrize("options", quick({"epochs": HuggingFace().options, "mid-epoch": MIDWAY}, "mid-epoch"))
def test_a_run_that_goes_on_from_a_checkpoint_is_the_uninterrupted_one(options: Any, tmp_path: Path) -> None:
    check_resume(HuggingFace(Way(clip=0.05, scheduled=True), Counting, options=options), tmp_path)


BEST = {"save_strategy": "epoch", "eval_strategy": "epoch", "load_best_model_at_end": True}


def test_the_best_model_at_the_end_has_its_seeds(tmp_path: Path) -> None:
    _, trainer, growth = HuggingFace(options=BEST).trained(tmp_path)
    evaluated = [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
    assert trainer.state.best_metric == min(evaluated)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(evaluated), abs=1e-6)
    batch = {"x": VALIDATION[0][0], "labels": VALIDATION[0][1]}
    trainer.model.eval()
    assert torch.equal(growth.result.model(**batch)["logits"], trainer.model(**batch)["logits"])


# --- refused ----------------------------------------------------------------------------------------------------------


class Apart(InOrder):
    """Computes its loss where nobody sees it."""

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Any:
        loss = LOSS(model(inputs["x"])["logits"], inputs["labels"])
        torch.autograd.backward(loss)
        return loss.detach()


def refused(where: Path, stack: HuggingFace, told: str, kind: type[InOrder] = InOrder, **growth: Any) -> None:
    model = Model()
    before = [p.clone() for p in model.parameters()]
    trainer = stack.trainer(where, model, kind)
    GrowCallback(trainer, {"site": "net.1"}, budget(), run_dir=where / "growth", **growth)
    with pytest.raises(UsageError, match=re.escape(told)):
        trainer.train()
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), before, strict=True))
    assert not {"train", "compute_loss", "training_step"} & set(vars(trainer)), "nothing of ours is left"


def test_a_loss_from_elsewhere_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, HuggingFace(), "training_step does not take its loss from compute_loss", Apart)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")  # torch's own, when it compiles
@pytest.mark.parametrize("option", ["torch_compile", "auto_find_batch_size"])
def test_options_that_cannot_be_had_are_refused(option: str, tmp_path: Path) -> None:
    stack = HuggingFace(options={option: True, "save_strategy": "no"})
    refused(tmp_path, stack, f"TrainingArguments({option}=True) cannot be had")


def test_two_ways_to_say_what_is_best_are_refused(tmp_path: Path) -> None:
    stack = HuggingFace(options=BEST | {"metric_for_best_model": "f1", "greater_is_better": True})
    refused(tmp_path, stack, "load_best_model_at_end goes by 'f1', and growth delivers the best by the loss")


@pytest.mark.slow
def test_a_checkpoint_without_growth_is_refused(tmp_path: Path) -> None:
    trainer = HuggingFace().trainer(tmp_path, Model())
    trainer.train()
    checkpoint = next((tmp_path / "trainer").glob("checkpoint-*"))
    trainer = HuggingFace().trainer(tmp_path, Model())
    GrowCallback(trainer, {"site": "net.1"}, run_dir=tmp_path / "growth")
    with pytest.raises(UsageError, match="has no growth.pt, so that nothing is known of its seeds"):
        trainer.train(resume_from_checkpoint=str(checkpoint))


def test_an_accuracy_of_labels_that_the_model_shifts_is_refused(tmp_path: Path) -> None:
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2)
    )
    trainer = HuggingFace().trainer(tmp_path, model)
    GrowCallback(trainer, metric="accuracy", run_dir=tmp_path / "growth")
    with pytest.raises(UsageError, match="LlamaForCausalLM shifts its labels by one token"):
        trainer.train()
