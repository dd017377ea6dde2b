"""Trainer (Tolaria is the workshop).

The executor, counterfactual evaluation, optimizer surgery, governor, checkpoints, compute ledger.
"""
