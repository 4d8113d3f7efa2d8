"""Parts of ``scripts/bench_train.py``: whole trainings beside other systems, and their model."""
