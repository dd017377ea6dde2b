"""One run: configuration, assembly, episode loop, session, and how it goes on after an interruption."""
