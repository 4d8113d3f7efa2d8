"""``dlp train -m`` and ``dlp sweep``: many jobs, one table, one picture."""
