"""Parts of ``scripts/study_rules.py``: what the rules learn, at what price."""
