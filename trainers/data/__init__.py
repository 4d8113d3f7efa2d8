"""Loaders of public data formats."""
