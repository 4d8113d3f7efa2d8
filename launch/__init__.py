"""Launchers: each is a module with ``run(config) -> score`` and ``plan(config) -> lines``."""
