"""Procedural data: every sample is a pure function of its seed."""
