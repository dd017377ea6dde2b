"""Operator's view (Karn remembers).

Aggregator, snapshot, anomaly score, replay, reports, Overwatch. Never imports the trainer.
"""
