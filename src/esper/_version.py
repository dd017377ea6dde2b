"""The one place that holds the version, and the name under which the package is distributed."""

DISTRIBUTION = "esper-grow"
"""``esper`` on the public package index is another project."""

__version__ = "0.1.0"
