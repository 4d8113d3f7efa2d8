"""Groups whose vectors are on a GPU: the optimizer steps there, rules see a copy in host memory.

Copies go over page-locked memory. What a rule sends behind the computation is copied on a side
stream, so that the next minibatch need not wait for it; what comes back is added on the GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from dlplatform.errors import EnvironmentMissing
from dlplatform.flat import FlatGroup, vector
from dlplatform.memorybox.memory import Memory
from dlplatform.world import World

PORTABLE = 1
"""Flag of cudaHostRegister: page-locked for all contexts."""


def choose(wanted: str, world: World, stages: int = 1, setting: str = "run.device") -> torch.device:
    """Return the device of this worker: auto (a GPU if there is one), cpu, cuda or cuda:N.

    Workers of a host take its GPUs in turn; stages of a network are trained on the CPU.

    Raises:
        EnvironmentMissing: when there is no such GPU.
    """
    count = torch.cuda.device_count()
    if wanted == "cpu" or (wanted == "auto" and (stages > 1 or not count)):
        return torch.device("cpu")
    number = wanted.partition(":")[2]
    index = int(number) if number else world.local_rank % max(count, 1)
    if index >= count:
        raise EnvironmentMissing(
            f"{setting}={wanted} on a machine with {count} GPU(s) - allowed: "
            f"{', '.join(['cpu', *(f'cuda:{n}' for n in range(count))])} - do: {setting}=auto, "
            "or see dlp doctor"
        )
    return torch.device("cuda", index)


def reseed(seed: int) -> None:
    """Seed torch's random numbers, those of GPUs in use included: once for every minibatch.

    ``torch.manual_seed`` takes half a millisecond for stack traces, one for each kind of device
    that is not in use.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)


@contextmanager
def computing(device: torch.device, precision: str) -> Iterator[None]:
    """Compute in a run's precision; say of a layer that a processor lacks in it what to do."""
    lower = precision == "bf16"
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=lower, cache_enabled=False):
            yield
    except RuntimeError as error:
        if not lower or "could not create a primitive" not in str(error):
            raise
        raise EnvironmentMissing(
            f"run.precision={precision}: {str(error).partition('. ')[0]} on this processor - "
            "allowed: fp32 here - do: run.precision=fp32, or train on a GPU"
        ) from error


def moved(batch: Any, device: torch.device) -> Any:
    """Return a batch with its tensors on a device."""
    return changed(batch, lambda tensor: tensor.to(device, non_blocking=True))


def changed(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a batch with its tensors changed: tensors in tuples, lists and dicts."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, dict):
        return {key: changed(value, change) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        parts = [changed(value, change) for value in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return batch


def _cuda() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


class Locked:
    """Host memory that a GPU can reach: page-locked as long as this object lives.

    Args:
        address: of the memory.
        length: fp32 elements.
        owner: kept alive, and freed afterwards.
    """

    def __init__(self, address: int, length: int, owner: object, device: torch.device) -> None:
        self.address, self._owner = address, owner
        self._locked = False
        if device.type == "cuda":
            with torch.cuda.device(device):
                code = _cuda().cudaHostRegister(address, 4 * length, PORTABLE)
            self._locked = int(code) == 0  # else copies are slower, and as right

    def unlock(self) -> None:
        """Let the pages go; before the memory is unmapped."""
        if self._locked:
            _cuda().cudaHostUnregister(self.address)
        self._locked = False

    def __del__(self) -> None:
        self.unlock()


class Side:
    """A stream for copies beside the computation; on a device without streams, none."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream: Any = None
        if device.type == "cuda":
            self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def now(self) -> torch.cuda.Event | None:
        """Return the moment that the computation of this thread has come to."""
        if self.stream is None:
            return None
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        return event

    def after(self, event: torch.cuda.Event | None) -> Any:
        """Return a context in which copies go on the side stream, after a moment."""
        if self.stream is None:
            return nullcontext()
        if event is not None:
            self.stream.wait_event(event)
        return torch.cuda.stream(self.stream)

    def done(self) -> torch.cuda.Event | None:
        """Return the moment at which the copies begun so far are done."""
        return self.stream.record_event() if self.stream is not None else None

    def finish(self) -> None:
        """Wait for the copies."""
        if self.stream is not None:
            self.stream.synchronize()


class DeviceGroup(FlatGroup):
    """A flat group on a GPU.

    ``weight`` and ``grad`` are there; ``weight_address`` and ``grad_address`` are in host memory.
    The host's weights are brought when somebody asks for their address, and go back afterwards.
    """

    def __init__(self, name: str, parameters: Iterable[nn.Parameter]) -> None:
        parameters = list(parameters)
        self.side = Side(parameters[0].device)
        super().__init__(name, parameters)
        self._room = self.room()
        self._host = vector(self._room.address, self.length)
        self._region: Locked | None = None
        self._stale, self._lent = True, False
        self._sent: torch.cuda.Event | None = None
        self._complete: torch.cuda.Event | None = None
        self._taken: torch.cuda.Event | None = None
        self._lifted, self._back = 0, torch.empty(0)

    def _zeros(self) -> Tensor:
        return torch.zeros(self.length, device=self.device)

    def room(self) -> Locked:
        """Return page-locked memory of the group's length."""
        memory = Memory(self.length)
        return Locked(memory.address, self.length, memory, self.device)

    # -- weights ---------------------------------------------------------------------------

    @property
    def weight_address(self) -> int:
        """Return where the host has the weights, which may be changed there."""
        if self._stale:
            self._host.copy_(self.weight)
        self._stale, self._lent = False, True
        return self._room.address

    def copy_weight(self, into: int) -> None:
        """Copy the weights to the host's memory at address ``into``."""
        vector(into, self.length).copy_(self.weight)

    def changed(self) -> None:
        """Take note that the weights have changed on the GPU."""
        self._stale = True

    def give_back(self) -> None:
        """Bring the weights back that somebody may have changed on the host."""
        if self._lent:
            self.weight.copy_(self._host)
        self._lent = False

    def hand_over(self) -> int:
        """Begin to copy the weights of now to the host; return where they will be."""
        with self.side.after(self.side.now()):
            self._host.copy_(self.weight, non_blocking=True)
        self._sent = self.side.done()
        return self._room.address

    def landed(self) -> None:
        """Wait until what was handed over is on the host."""
        if self._sent is not None:
            self._sent.synchronize()

    def settle(self) -> None:
        """Keep the optimizer from changing weights that are still being handed over."""
        if self._sent is not None:
            torch.cuda.current_stream(self.device).wait_event(self._sent)

    def lift(self, address: int) -> None:
        """Bring a vector of the host to the GPU ahead of ``take``; in any thread."""
        if not len(self._back):
            self._back = self._zeros()
        with self.side.after(self._taken):
            self._back.copy_(vector(address, self.length), non_blocking=True)
        self.side.finish()
        self._lifted = address

    def take(self, address: int) -> None:
        """Subtract a vector of the host from the weights."""
        if self._lifted != address:
            self.lift(address)
        self.weight.sub_(self._back)
        self._lifted, self._stale, self._taken = 0, True, self.side.now()

    # -- gradients ---------------------------------------------------------------------------

    @property
    def grad_address(self) -> int:
        """Return where the host has the gradients."""
        if self._region is None:
            self._region = self.room()
        return self._region.address

    def place_grad(self, address: int, owner: object) -> None:
        """Keep the host's gradients in other memory from now on."""
        self._region = Locked(address, self.length, owner, self.device)
        self.zero_grad()

    def collect_grad(self) -> None:
        """Copy in gradients that a foreign loop replaced."""
        super().collect_grad()
        self._complete = self.side.now()

    def _completed(self, index: int, p: Tensor) -> None:
        self._complete = self.side.now()  # in the thread and on the stream of backward
        super()._completed(index, p)

    def export_grad(self, start: int = 0, count: int | None = None) -> None:
        """Bring gradients to the host."""
        self._copy_grad(start, count, self._complete, True)

    def import_grad(self, start: int = 0, count: int | None = None) -> None:
        """Bring gradients back from the host."""
        self._copy_grad(start, count, None, False)

    def _copy_grad(
        self, start: int, count: int | None, after: torch.cuda.Event | None, out: bool
    ) -> None:
        span = slice(start, self.length if count is None else start + count)
        host, device = vector(self.grad_address, self.length)[span], self.grad.data[span]
        into, of = (host, device) if out else (device, host)
        with self.side.after(after):
            into.copy_(of, non_blocking=True)
        self.side.finish()

    def close(self) -> None:
        """Let the pages of memory go that others unmap."""
        if self._region is not None:
            self._region.unlock()
