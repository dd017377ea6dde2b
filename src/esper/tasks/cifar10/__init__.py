"""CIFAR-10 (Krizhevsky, 2009) from files that the user brings: nothing is downloaded, nothing is made up."""

from esper.tasks.cifar10.task import cifar10

__all__ = ["cifar10"]
