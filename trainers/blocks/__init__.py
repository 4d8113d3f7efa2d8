"""Networks, heads and losses that several tasks share."""
