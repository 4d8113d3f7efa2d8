"""Rules of training together, one file each; importing this package registers them."""

from dlplatform.rules import alone, asgd, easgd, hybrid, ssgd

__all__ = ["alone", "asgd", "easgd", "hybrid", "ssgd"]
