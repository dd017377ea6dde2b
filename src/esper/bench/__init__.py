"""Evidence. Baselines, GrowTable, comparisons at equal compute."""
