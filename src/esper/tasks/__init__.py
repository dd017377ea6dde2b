"""Workloads: real data, a host to grow, where seeds may sit, how it is scored, and a budget."""

from esper.tasks.base import Data, Split, TaskBudget, TaskSpec
from esper.tasks.pipeline import Batches
from esper.tasks.registry import get_task, task_names

__all__ = ["Batches", "TaskBudget", "Data", "Split", "TaskSpec", "get_task", "task_names"]
