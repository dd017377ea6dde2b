"""Tests of the CIFAR-10 task, on tiny files made here."""
