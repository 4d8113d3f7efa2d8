"""Reading many things at once: their order, the first that cannot be read, the threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from dlplatform.errors import UsageError
from trainers.data.folders import View, load_folders
from trainers.data.readers import read_all

PATIENCE_S = 20.0


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 3])
def test_results_are_in_order_and_the_first_error_is_raised(threads: int) -> None:
    torch.set_num_threads(threads)
    assert read_all(lambda n: n * n, range(20)) == [n * n for n in range(20)]
    assert read_all(str, []) == []

    def read(number: int) -> int:
        if number in (5, 9):
            raise UsageError(f"{number} is broken")
        return number

    with pytest.raises(UsageError, match=r"^5 is broken"):
        read_all(read, range(20))


def test_as_many_are_read_at_once_as_there_are_threads() -> None:
    torch.set_num_threads(3)
    meeting = threading.Barrier(3)  # nobody goes on before three are here
    assert len(read_all(lambda _: meeting.wait(PATIENCE_S), range(6))) == 6


def test_another_thread_reads_with_as_many() -> None:
    """The number is the worker's, not the thread's that reads ahead."""
    torch.set_num_threads(3)
    meeting, done = threading.Barrier(3), []
    thread = threading.Thread(
        target=lambda: done.extend(read_all(lambda _: meeting.wait(PATIENCE_S), range(3)))
    )
    thread.start()
    thread.join(2 * PATIENCE_S)
    assert len(done) == 3


def test_pictures_of_folders_are_the_same_with_any_number_of_threads(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for n in range(8):
            noise = Image.effect_noise((40 + n, 30), 80).convert("RGB")
            noise.save(tmp_path / label / f"{n}.jpg")
    part = load_folders(tmp_path, View(16, (20, 30)))["train"]
    found = []
    for threads in (1, 4):
        torch.set_num_threads(threads)
        found.append(part.crops(7)[0])
    assert torch.equal(*found)
