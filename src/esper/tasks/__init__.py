"""Workloads. Real data, host factories, sites, loss, metric and budget presets."""
