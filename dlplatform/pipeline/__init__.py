"""Model parallelism: a network in stages over workers, activations through the boxes (S7)."""
