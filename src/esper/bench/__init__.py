"""Evidence: whether growing pays at equal compute, and a tabular world whose oracle is known. Bench: a workbench."""
