"""Hydra's configuration groups, as package data."""
