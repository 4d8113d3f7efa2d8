"""Many channels, thresholds for alarms, and films found again by what they show."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from detectors import begun, certain
from torch import nn

from dlplatform.errors import UsageError
from trainers.data.instances import Found, Instances, Kinds
from trainers.data.scenes import Bytes
from trainers.human.instances import Objects
from trainers.pipeline.frame import Frame
from trainers.pipeline.judged import Threshold, counted, threshold_at, threshold_for
from trainers.pipeline.streams import Server, Serving, paced, panned, together
from trainers.pipeline.tags import Tagger, cosine, tag_f1
from trainers.pipeline.tracker import Tracker

SIDE = 24


class Brightest(nn.Module):
    """A convolution that finds the brightest place: a detector that needs no training."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Conv2d(3, 1, 5, padding=2, bias=False)
        nn.init.constant_(self.mean.weight, 1 / 75)

    @torch.inference_mode()
    def forward(self, images: Sequence[Bytes]) -> list[Found]:
        x_BCHW = torch.from_numpy(np.stack(images)).movedim(-1, 1) / 255
        best_B = self.mean(x_BCHW).flatten(1).argmax(1)
        rows_B, columns_B = best_B // x_BCHW.shape[3], best_B % x_BCHW.shape[3]
        middle_B2 = torch.stack([columns_B, rows_B], 1) + 0.5
        boxes_B14 = torch.cat([middle_B2 - 2.5, middle_B2 + 2.5], 1)[:, None]
        return [Found(box_14, torch.zeros(1).long(), torch.ones(1)) for box_14 in boxes_B14]


def stream(name: str, count: int, first: int) -> Iterator[Frame]:
    """Yield frames of a bright square that moves down."""
    for number in range(count):
        image_HW3 = np.zeros((SIDE, SIDE, 3), np.uint8)
        image_HW3[number : number + 5, first : first + 5] = 255
        yield Frame(image_HW3, number / 10, name, number)


def test_a_hundred_channels_are_served_and_none_starves() -> None:
    names = [f"camera {number}" for number in range(100)]
    server = Server(Brightest(), names, Serving(batch=16), lambda name: Tracker())
    sources = {name: stream(name, 12, place % 19) for place, name in enumerate(names)}
    served = list(server.run(sources, seconds=60))
    told = server.report()
    assert told["starved"] == [] and told["least"] > 0 and len(told["channels"]) == 100
    assert told["served"] == len(served) and max(server.batches) <= 16
    for row in told["channels"]:
        assert row["offered"] == 12 == row["served"] + row["dropped"]
        assert row["latency_ms"]["most"] >= row["latency_ms"]["median"] > 0
    for name, place in zip(names, range(100), strict=True):
        own = [frame for frame in served if frame.source == name]
        assert own[-1].number == 11  # the newest frame is always answered
        for frame in own:
            wanted = [place % 19, frame.number, place % 19 + 5, frame.number + 5]
            assert frame.found.boxes_N4.tolist() == [wanted]


def test_turns_are_fair_however_fast_one_sends() -> None:
    server = Server(Brightest(), ["greedy", "b", "c", "d", "e"], Serving(batch=2, queue=3))
    frame = next(stream("", 1, 0))
    for name in ("b", "c", "d", "e"):
        server.offer(name, frame)
    order = []
    for _ in range(4):
        for _ in range(10):
            server.offer("greedy", frame)
        order += [one.source for one in server.step()]
    assert order == ["greedy", "b", "c", "d", "e", "greedy", "greedy"]
    assert server.channels["greedy"].dropped == 40 - 3 - 2
    assert server.channels["b"].dropped == 0 and server.batches == [2, 2, 2, 1]


def test_queues_drop_the_oldest() -> None:
    server = Server(Brightest(), ["one"], Serving(queue=2))
    for frame in stream("one", 5, 0):
        server.offer("one", frame)
    assert [server.step()[0].number for _ in range(2)] == [3, 4] and server.step() == []


def test_a_channel_that_breaks_ends_alone_and_is_named() -> None:
    def broken() -> Iterator[Frame]:
        yield from stream("bad", 2, 0)
        raise UsageError("the cable is cut")

    server = Server(Brightest(), ["good", "bad", "silent"])
    sources = {"good": stream("good", 5, 0), "bad": broken(), "silent": iter(())}
    list(server.run(sources, seconds=30))
    good, bad, silent = server.report()["channels"]
    assert (good["broken"], bad["broken"]) == ("", "the cable is cut")
    assert bad["offered"] == 2 and silent["offered"] == 0 and not silent["starved"]


def test_a_channel_without_answers_is_called_starved() -> None:
    server = Server(Brightest(), ["one", "other"], Serving(batch=1))
    for frame in stream("", 3, 0):
        server.offer("one", frame)
        server.offer("other", frame)
    server.step()
    assert server.report()["starved"] == ["other"]


@torch.no_grad()
def test_pictures_looked_at_together_are_answered_as_one_by_one() -> None:
    task = Objects(side=64, width=16, shown=0.0, most=5)
    models = certain(begun(task))
    random = np.random.RandomState(0)
    sizes = ((64, 64), (40, 90), (120, 70))
    images = [random.randint(0, 255, (*size, 3)).astype(np.uint8) for size in sizes]
    for image_HW3, found in zip(images, together(task, models)(images), strict=True):
        alone = task.look(models, image_HW3)
        assert len(found.scores_N) and found.labels_N.tolist() == alone.labels_N.tolist()
        torch.testing.assert_close(found.boxes_N4, alone.boxes_N4, atol=1e-2, rtol=1e-3)


@pytest.mark.slow
def test_the_script_serves_an_untrained_detector_and_reports() -> None:
    root = Path(__file__).resolve().parents[3]
    words = ["--channels", "3", "--rate", "1", "--seconds", "8", "--batch", "3", "--json"]
    line = [sys.executable, str(root / "scripts" / "serve_streams.py"), *words]
    done = subprocess.run(line, capture_output=True, text=True, check=True, cwd=root)
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["served"] > 0 and len(told["channels"]) == 3


def test_panned_streams_move_over_a_picture_and_paced_ones_do_not_hurry() -> None:
    image_HW3 = np.random.RandomState(0).randint(0, 255, (40, 60, 3)).astype(np.uint8)
    one, other = panned(image_HW3, "pan", 2, 16)
    assert (one.image_HW3[1:, 2:] == other.image_HW3[:-1, :-2]).all()
    begin = time.monotonic()
    list(paced(panned(image_HW3, "pan", 4, 16), rate=50))
    assert time.monotonic() - begin >= 3 / 50


def boxes(*corners: int) -> torch.Tensor:
    return torch.tensor([[corner, 0.0, corner + 10, 10.0] for corner in corners]).reshape(-1, 4)


def test_the_threshold_keeps_false_alarms_at_one_in_ten_pictures() -> None:
    random = np.random.RandomState(1)
    answers = []
    for _ in range(200):
        true = Instances(boxes(0), torch.zeros(1).long())
        scores = [random.beta(5, 2), random.beta(2, 5)]
        answers.append(
            (Found(boxes(0, 50), torch.zeros(2).long(), torch.tensor(scores).float()), true)
        )
    chosen = threshold_at(answers[:100])
    again = counted(answers[:100], chosen.score)
    assert again == chosen and chosen.false_per_picture == 0.1
    lower = counted(answers[:100], chosen.score - 0.01)
    assert lower.false_per_picture >= 0.1 and lower.recall >= chosen.recall > 0.5
    assert counted(answers[100:], chosen.score).false_per_picture == pytest.approx(0.1, abs=0.08)


def test_thresholds_know_doubles_other_kinds_and_what_is_ignored() -> None:
    truth = Instances(boxes(0, 20), torch.tensor([1, 1]), ignored_N=torch.tensor([False, True]))
    found = Found(  # right, its double, on the ignored one, another kind, nowhere
        boxes(0, 1, 20, 0, 70), torch.tensor([1, 1, 1, 0, 1]),
        torch.tensor([0.9, 0.8, 0.7, 0.95, 0.1]),
    )  # fmt: skip
    assert counted([(found, truth)], 0.5, labels=(1,)) == (Threshold(0.5, 1.0, 0.5, 1.0))
    assert counted([(found, truth)], 0.5).false_per_picture == 2
    strict = threshold_at([(found, truth)], 0.1, labels=(1,))
    assert strict.score == pytest.approx(0.9) and strict.recall == 1
    assert threshold_at([(Found(*found.take(found.labels_N == 0)[:3]), truth)], 0.1).score == 1.0


def test_the_threshold_finds_as_many_as_are_wanted_and_no_more() -> None:
    scores = [[0.9, 0.2], [0.8, 0.7], [0.6, 0.5], [0.4, 0.3]]  # of a right and of a false answer
    answers = [
        (Found(boxes(0, 50), torch.zeros(2).long(), torch.tensor(pair)),
         Instances(boxes(0), torch.zeros(1).long()))
        for pair in scores
    ]  # fmt: skip
    chosen = threshold_for(answers, 0.75)
    assert chosen.score == pytest.approx(0.6)
    assert (chosen.recall, chosen.precision, chosen.false_per_picture) == (0.75, 0.75, 0.25)
    assert threshold_for(answers, 0.76).recall == 1 == counted(answers, 0.4 - 1e-6).recall
    missing = [*answers, (Found(boxes(50), torch.zeros(1).long(), torch.ones(1)), answers[0][1])]
    assert threshold_for(missing, 0.95).recall == 0.8, "more are not found at any score"


KINDS = Kinds(("disc", "square", "star"))


def shown(tagger: Tagger, source: str, story: Sequence[tuple[str, ...]]) -> None:
    """Show ten frames of each stretch of a film."""
    for number, names in enumerate(some for some in story for _ in range(10)):
        labels_N = torch.tensor([KINDS.names.index(name) for name in names]).long()
        found = Found(torch.zeros(len(names), 4), labels_N, torch.full((len(names),), 0.8))
        image_HW3 = np.zeros((2, 2, 3), np.uint8)
        tagger(Frame(image_HW3, number / 10, source, number, found))


@pytest.fixture
def tagger() -> Tagger:
    made = Tagger(KINDS)
    shown(made, "a", [("disc",), ("disc", "square"), (), ("disc",)])
    shown(made, "b", [("disc",), ("disc",), ("square",), ()])
    shown(made, "c", [("star",), ("star",), (), ()])
    return made


def test_films_are_found_by_what_they_show_when(tagger: Tagger) -> None:
    hits = [(hit.source, hit.begin, hit.end) for hit in tagger.search("disc")]
    assert hits == [("a", 0, 2), ("a", 3, 4), ("b", 0, 2)]
    assert tagger.search("square")[0].begin == 1
    assert tagger.record()["a"]["seen"] == {"disc": [[0, 2], [3, 4]], "square": [[1, 2]]}


def test_films_that_show_alike_things_are_alike(tagger: Tagger) -> None:
    (first, alike), (last, apart) = tagger.alike("a")
    assert (first, last, apart) == ("b", "c", 0)
    assert alike == pytest.approx((3 * 2 + 1 * 1) / np.sqrt(10 * 5))
    assert cosine({}, {"disc": 1.0}) == 0


def test_doubtful_and_fleeting_answers_are_no_tags() -> None:
    tagger = Tagger(KINDS, sure=0.9)
    shown(tagger, "a", [("disc",)])
    assert tagger.tags("a") == set()
    tagger = Tagger(KINDS)
    for number in range(10):
        found = Found(torch.zeros(1, 4), torch.zeros(1).long(), torch.ones(1) * (number == 3))
        tagger(Frame(np.zeros((2, 2, 3), np.uint8), number / 10, "a", number, found))
    assert tagger.tags("a") == set()


def test_tags_are_scored_by_f1() -> None:
    assert tag_f1({(0, "disc"), (1, "disc")}, {(0, "disc"), (1, "star"), (2, "star")}) == 0.4
    assert tag_f1(set(), set()) == 0


def test_an_index_is_saved_and_read_again(tagger: Tagger, tmp_path: Path) -> None:
    tagger.save(tmp_path / "index.json")
    again = Tagger(KINDS)
    again.load(tmp_path / "index.json")
    assert again.record() == tagger.record()
    (tmp_path / "index.json").write_text("[]")
    with pytest.raises(UsageError, match="is no index of films"):
        again.load(tmp_path / "index.json")
