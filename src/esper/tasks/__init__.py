"""Workloads: real data, a host to grow, where seeds may sit, how it is scored, and a budget."""

from esper.tasks.base import Budget, Data, Split, TaskSpec
from esper.tasks.pipeline import Batches
from esper.tasks.registry import get_task, task_names

__all__ = ["Batches", "Budget", "Data", "Split", "TaskSpec", "get_task", "task_names"]
