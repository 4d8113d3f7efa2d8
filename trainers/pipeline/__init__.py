"""Networks at work on pictures and films: read, find, follow, raise alarms, write down, draw."""
