"""Rules of training together, one file each; importing this package registers them."""

from dlplatform.rules import (
    adiloco,
    alone,
    asgd,
    dcasgd,
    diloco,
    eamsgd,
    easgd,
    halos,
    hybrid,
    localsgd,
    quorum,
    ssgd,
    ssp,
)

__all__ = [
    "adiloco",
    "alone",
    "asgd",
    "dcasgd",
    "diloco",
    "eamsgd",
    "easgd",
    "halos",
    "hybrid",
    "localsgd",
    "quorum",
    "ssgd",
    "ssp",
]
