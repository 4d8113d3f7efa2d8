"""The parts of ``scripts/chaos.py``: what is done, who does it, and what must come out."""
