"""Scores of the tasks: how well they do, and nothing of how."""
