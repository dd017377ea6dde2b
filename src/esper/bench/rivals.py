"""What growing is compared with on a pretrained host: adapters of the library PEFT, and fine-tuning of all weights.

A rival is a task whose host has its adapters from the start; it goes through the executor like every arm.
Its learning rates are tuned on a grid of their own.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from esper.bench.arms import RIVALS
from esper.kasmina.sites import site_of
from esper.leyline import MissingExtraError, UsageError
from esper.tasks.base import TaskSpec
from esper.tolaria.setup import OptimizerFactory, Parameters, TrainerConfig

ADAPTER: Final = "default"
"""PEFT's own name for an adapter."""
ATTENTION: Final = ("query", "value", "q_proj", "v_proj", "q_lin", "v_lin")
"""What the maps to queries and values are called."""


class RivalTask:
    """A task with the adapted host, and what its training needs besides.

    Raises ``UsageError`` where the host has nothing that the rival adapts.
    """

    def __init__(self, task: TaskSpec, arm: str, steps: int) -> None:
        """``steps`` is how many the optimizer will make."""
        self._task, self._arm, self._rival, self._steps = task, arm, RIVALS[arm], steps
        self._tuner: Any = None
        self.task = replace(task, host=self._host, loss=self._loss)

    def trainer(self, config: TrainerConfig) -> TrainerConfig:
        """The configuration as the rival needs it. DoRA works on weights, once a batch: its work is counted on one."""
        examples = config.batch_size if self._rival.kind == "dora" else config.sample_examples
        return replace(config, optimizer=self.optimizer(config.optimizer), sample_examples=examples)

    def optimizer(self, make: OptimizerFactory) -> OptimizerFactory:
        """The same optimizer; AdaLoRA distributes its ranks after each step."""
        if self._rival.kind != "adalora":
            return make

        def made(parameters: Parameters, lr: float, weight_decay: float) -> Optimizer:
            optimizer, taken = make(parameters, lr, weight_decay), 0

            def stepped(*_: Any) -> None:
                nonlocal taken
                taken += 1
                self._tuner.update_and_allocate(taken)

            optimizer.register_step_post_hook(stepped)
            return optimizer

        return made

    def _host(self) -> nn.Module:
        host = self._task.host()
        if self._rival.kind == "full":
            return host.requires_grad_(True)
        learns = {name for name, parameter in host.named_parameters() if parameter.requires_grad}
        self._tuner = adapted(host, self._config(host))
        for name, parameter in host.named_parameters():
            parameter.requires_grad_(parameter.requires_grad or name in learns)
        return host

    def _config(self, host: nn.Module) -> Any:
        try:
            from peft import AdaLoraConfig, LoraConfig
        except ImportError as error:
            raise MissingExtraError(f"arm {self._arm!r}", "peft") from error
        rank, targets = self._rival.rank, self._targets(host)
        if self._rival.kind != "adalora":
            # alpha twice the rank, as is usual; the learning rate is tuned
            dora = self._rival.kind == "dora"
            return LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=targets, use_dora=dora)
        return AdaLoraConfig(
            init_r=rank * 3 // 2,
            target_r=rank,
            lora_alpha=2 * rank,
            lora_dropout=0.0,
            target_modules=targets,
            total_step=self._steps,
            tinit=self._steps // 10,
            tfinal=3 * self._steps // 10,
            deltaT=max(1, self._steps // 100),
        )

    def _targets(self, host: nn.Module) -> list[str]:
        """Paths of the modules that are adapted."""
        places = [site_of(written) for written in self._task.sites.values()]
        paths = [place.path for place in places if place.beside]
        if self._rival.attention:
            paths = [path for path in paths if path.rpartition(".")[2] in ATTENTION]
        if not paths:
            what = f"beside a module named {', '.join(ATTENTION)}" if self._rival.attention else "beside a module"
            raise UsageError(
                f"arm {self._arm!r}: task {self._task.name!r} has no site {what}, so there is none to adapt"
            )
        others = [path for path in paths if not isinstance(host.get_submodule(path), nn.Linear)]
        if others and self._rival.kind == "adalora":
            raise UsageError(
                f"arm 'adalora' adapts linear layers alone; of task {self._task.name!r} {others[0]} is none"
            )
        return paths

    def _loss(self, output: Any, targets: Any) -> Tensor:
        """The task's, with AdaLoRA's regularisation in training."""
        loss = self._task.loss(output, targets)
        if self._rival.kind != "adalora" or not torch.is_grad_enabled():
            return loss
        weight: float = self._tuner.peft_config[ADAPTER].orth_reg_weight
        return loss + weight * _from_orthogonal(self._tuner.model)


def adapting(task: TaskSpec, arm: str) -> int:
    """Parameters that learn in the adapted host and not in the host itself."""
    hosts = (RivalTask(task, arm, steps=1).task.host(), task.host())
    adapted, bare = (sum(each.numel() for each in host.parameters() if each.requires_grad) for host in hosts)
    return adapted - bare


def adapted(host: nn.Module, config: Any) -> Any:
    """Put the adapters into the host, in place; returns PEFT's own model around it."""
    from peft import AdaLoraConfig, AdaLoraModel, LoraModel

    with warnings.catch_warnings():
        # the host has no configuration of Hugging Face's, and needs none
        warnings.simplefilter("ignore")
        kind = AdaLoraModel if isinstance(config, AdaLoraConfig) else LoraModel
        return kind(host, config, ADAPTER)


def _from_orthogonal(model: nn.Module) -> Tensor:
    """Mean distance of AdaLoRA's factors from orthogonal ones (Zhang et al., 2023, equation 4, as PEFT takes it).

    PEFT adds it only to a loss that the model returns itself.
    """
    distances = [torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=gram.device)) for gram in _grams(model)]
    return torch.stack(distances).mean()


def _grams(model: nn.Module) -> Iterator[Tensor]:
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            yield parameter @ parameter.T
        elif "lora_B" in name:
            yield parameter.T @ parameter
