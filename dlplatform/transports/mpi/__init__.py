"""Boxes that are ranks of an MPI job: a shared window on one host, messages and RMA beyond."""
