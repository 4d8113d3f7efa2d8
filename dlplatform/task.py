"""Task: one problem - nets, batches, losses, scores, pictures - and the registry of tasks.

A task never sees a box, a rule or a rank. Its minibatches are a pure function of their
number, so whoever trains number 17 trains the same 17.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

from dlplatform.errors import UsageError, closest
from dlplatform.plugins import plugins

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor, nn

Batch = Any


class Mean(NamedTuple):
    """A loss that is a mean over as many things as a batch happens to have.

    Joints that are seen, boxes that are found: workers that average their gradients divide by
    the things of all of them, as one worker would on all their minibatches together.
    """

    total: Tensor
    """Sum over the things of this minibatch."""
    number: Tensor | float
    """How many there are, or the sum of their weights; where nobody has any, 1."""


Terms = Mapping[str, "Tensor | Mean"]
Models = dict[str, "nn.Module"]
T = TypeVar("T", bound="type[Task]")

_REGISTRY: dict[str, type[Task]] = {}


@dataclass
class Split:
    """A task's network as stages that run one after another, each in a worker of its own."""

    stages: list[nn.Module]
    """Each takes the tensor that the one before returned; none changes it in place."""
    inputs: Callable[[Batch], Tensor]
    """Returns what the first stage takes."""
    loss: Callable[[Tensor, Batch], Tensor]
    """Returns the mean loss over the samples of a batch, from what the last stage returned."""


class Export(NamedTuple):
    """What ``dlp export`` writes: a network, and what goes in and comes out of it by name."""

    net: nn.Module
    inputs: dict[str, Tensor]
    """An example of each."""
    outputs: tuple[str, ...]
    rows: tuple[str, ...] = ()
    """Inputs that may have any number of rows."""


@dataclass
class Task(ABC):
    """One problem to train on; subclass as a dataclass, its fields are its configuration.

    A simple task writes ``models``, ``batch``, ``loss``, ``score`` and ``predict``; everything
    else has a default. Set ``primary`` to the score that ranks runs (higher is better).
    """

    primary: ClassVar[str] = "accuracy"
    source: ClassVar[str] = ""
    parameters: ClassVar[int] = 0
    """Values that its networks train, as it is set by default; for ``dlp tasks``."""
    expected: ClassVar[str] = ""
    """The test score it reaches as it is set by default; for ``dlp tasks``."""

    seed: int = 0

    @abstractmethod
    def models(self) -> Models:
        """Build the networks by name; weights are initialised from the global torch seed."""

    @abstractmethod
    def batch(self, split: str, number: int) -> Batch:
        """Return minibatch ``number`` of ``train``: a pure function of seed and number."""

    @abstractmethod
    def batches(self, split: str) -> Iterable[Batch]:
        """Return all of ``val`` or ``test`` (or un-augmented ``train``), each sample once."""

    @abstractmethod
    def loss(self, models: Models, batch: Batch) -> Tensor | Terms:
        """Return the loss to minimise, or its named terms, which are added.

        A term may be a ``Mean``; a task has the same terms in every minibatch.
        """

    @abstractmethod
    def score(self, models: Models, batches: Iterable[Batch]) -> dict[str, float]:
        """Return the scores of the models (in eval mode, without gradients)."""

    @abstractmethod
    def predict(self, models: Models, raw: Path) -> dict[str, Any]:
        """Return the answer for one file of the user's: JSON-ready values."""

    def losses(self, models: Models, batch: Batch) -> Iterator[tuple[str, Tensor | Terms]]:
        """Yield (group, loss); the loop steps that group, then resumes here."""
        yield next(iter(self.groups(models))), self.loss(models, batch)

    def groups(self, models: Models) -> dict[str, Iterable[nn.Parameter]]:
        """Return the parameters of each group; one group has one optimizer and one buffer."""
        return {"main": [p for net in models.values() for p in net.parameters()]}

    def split(self, models: Models, count: int) -> Split:
        """Cut the networks into ``count`` stages for a pipeline of workers (model parallelism).

        Raises:
            UsageError: when they cannot be cut so often; by default they cannot be cut.
        """
        raise UsageError(
            f"stages={count} of a {type(self).__name__} task, which is not made to be cut - "
            "allowed: stages=1 - do: write its split, see docs/model_parallel.md"
        )

    def optimizer(self, group: str, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return the optimizer of a group (default: Adam, 1e-3)."""
        from torch.optim import Adam

        return Adam(parameters, lr=1e-3)

    def begin(self, models: Models) -> str:
        """Give the networks of a new run weights of another one; return a line that says so.

        By default they begin as ``models`` made them, and there is nothing to say.
        """
        return ""

    def rate(self, progress: float) -> float:
        """Return the factor on every learning rate at a progress from 0 to 1 (default: 1)."""
        return 1.0

    def after(self, models: Models, number: int) -> None:
        """Run after the step of minibatch ``number`` (target networks, annealing)."""

    def state(self) -> dict[str, Tensor]:
        """Return what a worker keeps beside the networks, for checkpoints (default: nothing).

        A replay memory, a target network: the chief's is saved, and given to every worker that
        goes on from there.
        """
        return {}

    def restore(self, models: Models, state: dict[str, Tensor]) -> None:
        """Take back what ``state`` returned; called before the first minibatch of a resumed job."""

    def baselines(self) -> dict[str, float]:
        """Return the primary test score of simple methods, by name."""
        return {}

    def picture(self, models: Models) -> Image.Image | None:
        """Draw predictions on held-out data, for TensorBoard and the result picture."""
        return None

    def example(self) -> tuple[Tensor, ...] | None:
        """Return example inputs of the first model, for export."""
        return None

    def export(self, models: Models) -> Export:
        """Return what ``dlp export`` writes (default: the first network, for its example).

        Raises:
            UsageError: there is no example.
        """
        example = self.example()
        if example is None:
            raise UsageError(
                f"a {type(self).__name__} task cannot be exported - allowed: tasks with an example "
                "of their inputs - do: write its example"
            )
        inputs = {f"input{number}": value for number, value in enumerate(example)}
        return Export(next(iter(models.values())), inputs, ("output0",))


def numbers(terms: Tensor | Terms) -> dict[str, float]:
    """Return what each ``Mean`` of a loss is a mean over, by its name."""
    if not isinstance(terms, Mapping):
        return {}
    return {name: float(one.number) for name, one in terms.items() if isinstance(one, Mean)}


def added(terms: Tensor | Terms, over: Mapping[str, float] | None = None) -> Tensor:
    """Return the sum of a loss's terms.

    Args:
        terms: of the loss.
        over: what each ``Mean`` is divided by, by its name (default: its own number).
    """
    if not isinstance(terms, Mapping):
        return terms
    over = numbers(terms) if over is None else over
    values = [
        one.total / (over[name] or 1.0) if isinstance(one, Mean) else one
        for name, one in terms.items()
    ]
    return sum(values[1:], values[0])


def task(name: str) -> Callable[[T], T]:
    """Register a task class under ``family/name``."""

    def register(cls: T) -> T:
        _REGISTRY[name] = cls
        return cls

    return register


def tasks() -> dict[str, type[Task]]:
    """Return every registered task: the project's own and those of installed packages."""
    for entry in plugins("tasks"):
        entry.load()
    return dict(sorted(_REGISTRY.items()))


def find_task(name: str) -> type[Task]:
    """Return the class of a task, or say which name was probably meant."""
    known = tasks()
    if name not in known:
        raise UsageError(f"task={name} is not a task{closest(name, known)}. All tasks: dlp tasks")
    return known[name]
