"""Overwatch in the browser: a read-only server on the loopback interface."""
