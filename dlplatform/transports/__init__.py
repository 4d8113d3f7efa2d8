"""Ways to reach a memory box, one file each behind ``Transport``."""
