"""GrowTable: a tabular world in which policies train in seconds and the oracle is exact over what is tabulated."""
