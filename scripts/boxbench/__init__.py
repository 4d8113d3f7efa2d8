"""The parts of ``scripts/bench_box.py``: what the memory boxes do, in turns with bounds and peers.

One file for each group of rows. Files that a peer's own interpreter runs import nothing heavy.
"""
