"""Train PyTorch models on memory boxes.

import dlplatform
job = dlplatform.init()
optimizer = dlplatform.distribute(optimizer, model, rule="easgd")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlplatform.errors import PlatformError
    from dlplatform.job import Job, distribute, init
    from dlplatform.memorybox.buffer import SharedBuffer
    from dlplatform.memorybox.cluster import Cluster
    from dlplatform.memorybox.counter import Counter
    from dlplatform.memorybox.process import Boxes
    from dlplatform.rules.rule import Rule
    from dlplatform.task import Task
    from dlplatform.world import World

__version__ = "0.1.0"

# Loaded on first use, so that a box process starts without what only workers need.
_HOMES = {
    "Boxes": "memorybox.process",
    "Cluster": "memorybox.cluster",
    "Counter": "memorybox.counter",
    "Job": "job",
    "Payload": "memorybox.payload",
    "PlatformError": "errors",
    "Quorum": "memorybox.quorum",
    "Rule": "rules.rule",
    "SharedBuffer": "memorybox.buffer",
    "Task": "task",
    "World": "world",
    "distribute": "job",
    "init": "job",
}
__all__ = [
    "Boxes",
    "Cluster",
    "Counter",
    "Job",
    "Payload",
    "PlatformError",
    "Quorum",
    "Rule",
    "SharedBuffer",
    "Task",
    "World",
    "distribute",
    "init",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dlplatform' has no attribute {name!r}")
    return getattr(import_module(f"dlplatform.{_HOMES[name]}"), name)
