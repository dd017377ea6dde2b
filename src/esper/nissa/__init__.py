"""Telemetry (Nissa listens). Hub, sinks, the run journal and its reader, run directories, diagnostic profiles."""
