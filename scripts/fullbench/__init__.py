"""What ``scripts/bench_full.py`` is made of: folders of data, recipes, runs."""
