"""Objects followed from frame to frame: the boxes that are expected meet the boxes that are found.

Each of a box's middle and sides moves on with a velocity of its own, as a Kalman filter believes
it, and boxes are assigned to tracks so that they overlap most in all (Hungarian method). Sources:
Bewley et al., "Simple online and realtime tracking" (2016); noises that grow with the object from
Wojke et al., "Simple online and realtime tracking with a deep association metric" (2017).

Shape legend: T tracks, N found objects; 4: x and y of the middle, width, height; 2: value and
velocity, 22 their covariance.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from trainers.blocks.boxes import centres, pair_iou
from trainers.data.instances import Found
from trainers.pipeline.frame import UNTRACKED, Frame

Floats = NDArray[np.float64]
MEASURED = 0.05
"""Deviation of a found box, as a share of the object's size."""
CHANGED = 0.0125
"""Deviation of what a velocity changes by in one frame, as a share of the size."""
RECENT = 3
"""Frames of hiding up to which a box that changed its shape may be the same object."""
FIRST = 0.1
"""Deviation of the velocity of a new object, as a share of its size each frame."""


@dataclass(frozen=True)
class Tracking:
    """When a box belongs to a track, and when tracks begin and end."""

    overlap: float = 0.3
    """Least intersection over union of a found box with the expected one."""
    reach: float = 0.5
    """Most that middles may be apart, in longer sides, where boxes overlap too little: who falls
    is soon of another shape."""
    births: int = 3
    """Frames in a row in which something is found before it has a number; what is there in a
    source's first frame has one at once, since it cannot have come in."""
    patience: int = 30
    """Frames that an object may be hidden before its track ends."""
    sure: float = 0.0
    """Score below which nothing begins a track."""


class Tracker:
    """The stage that follows the objects of one source; numbers begin at 1, none comes again."""

    def __init__(self, tracking: Tracking | None = None) -> None:
        self.tracking = tracking or Tracking()
        self.numbers = np.zeros(0, int)
        """Of the tracks; 0 for those not born yet."""
        self._labels, self._hits, self._hidden = (np.zeros(0, int) for _ in range(3))
        self._mean_T42: Floats = np.zeros((0, 4, 2))
        self._var_T422: Floats = np.zeros((0, 4, 2, 2))
        self._last: int | None = None
        self._born = 0

    def __call__(self, frame: Frame) -> Frame:
        """Say which track each object that was found belongs to."""
        births = self.tracking.births if self._last is not None else 1
        self._move(1 if self._last is None else max(1, frame.number - self._last))
        self._last = frame.number
        self._keep(self._hidden <= self.tracking.patience)
        seen_N4 = _spelt(frame.found)
        tracks, objects = self._matched(frame.found)
        self._correct(tracks, seen_N4[objects])
        self._hits[tracks] += 1
        self._hidden[tracks] = 0
        tracks_N = np.full(len(seen_N4), -1)
        tracks_N[objects] = tracks
        fresh = np.flatnonzero((tracks_N < 0) & (_scores(frame.found) >= self.tracking.sure))
        tracks_N[fresh] = np.arange(len(fresh)) + len(self.numbers)
        self._begin(seen_N4[fresh], _labels(frame.found)[fresh])
        for track in np.flatnonzero((self.numbers == 0) & (self._hits >= births)):
            self._born += 1
            self.numbers[track] = self._born
        ids = [self.numbers[track] if track >= 0 else 0 for track in tracks_N]
        self._keep((self.numbers > 0) | (self._hidden == 0))  # hardly seen: forgotten at once
        return replace(frame, ids=tuple(int(number) or UNTRACKED for number in ids))

    def expected(self) -> Floats:
        """Return the boxes_T4 (x0, y0, x1, y1) where the tracks are believed to be."""
        middle_T2, side_T2 = self._mean_T42[:, :2, 0], self._mean_T42[:, 2:, 0].clip(1e-3)
        return np.concatenate([middle_T2 - side_T2 / 2, middle_T2 + side_T2 / 2], 1)

    def _move(self, frames: int) -> None:
        """Move the tracks on; one that is hidden keeps its size."""
        self._mean_T42[self._hidden > 0, 2:, 1] = 0
        step_22 = np.array([[1.0, frames], [0.0, 1.0]])
        # velocities wander: the exact covariance of that over so many frames
        wander_22 = np.array([[frames**3 / 3, frames**2 / 2], [frames**2 / 2, frames]])
        noise_T = (CHANGED * self._size()) ** 2
        self._mean_T42 = self._mean_T42 @ step_22.T
        self._var_T422 = step_22 @ self._var_T422 @ step_22.T
        self._var_T422 += noise_T[:, None, None, None] * wander_22
        self._hidden += frames

    def _matched(self, found: Found) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return which tracks got which objects: by overlap, then the rest by their middles."""
        expected_T4 = torch.from_numpy(self.expected())
        boxes_N4 = found.boxes_N4.detach().cpu().double()
        alike_TN = self._labels[:, None] == _labels(found)
        iou_TN = pair_iou(expected_T4, boxes_N4).numpy() * alike_TN
        tracks, objects = _assigned(np.where(iou_TN >= self.tracking.overlap, iou_TN, 0))
        apart_TN = torch.cdist(centres(expected_T4), centres(boxes_N4)).numpy()
        longer_T, longer_N = _longer(expected_T4), _longer(boxes_N4)
        near_TN = 1 - apart_TN / (self.tracking.reach * np.maximum(longer_T[:, None], longer_N))
        alike_TN[self._hidden > RECENT] = False
        alike_TN[tracks], alike_TN[:, objects] = False, False
        others, left = _assigned(near_TN.clip(0) * alike_TN)
        return np.concatenate([tracks, others]), np.concatenate([objects, left])

    def _correct(self, tracks: NDArray[np.int64], seen_M4: Floats) -> None:
        """Take in what was found of some tracks; equation 7 of Kalman (1960) for each number."""
        var_M422 = self._var_T422[tracks]
        noise_M1 = (MEASURED * _size(seen_M4)[:, None]) ** 2
        gain_M42 = var_M422[..., 0] / (var_M422[..., 0, 0] + noise_M1)[..., None]
        apart_M4 = seen_M4 - self._mean_T42[tracks][..., 0]
        self._mean_T42[tracks] += gain_M42 * apart_M4[..., None]
        self._var_T422[tracks] -= gain_M42[..., :, None] * var_M422[..., :1, :]

    def _begin(self, seen_N4: Floats, labels_N: NDArray[np.int64]) -> None:
        count, size_N11 = len(seen_N4), _size(seen_N4)[:, None, None]
        mean_N42 = np.stack([seen_N4, np.zeros_like(seen_N4)], -1)
        spread_N42 = np.broadcast_to(size_N11 * (MEASURED, FIRST), (count, 4, 2))
        var_N422 = spread_N42[..., None] ** 2 * np.eye(2)
        self._mean_T42 = np.concatenate([self._mean_T42, mean_N42])
        self._var_T422 = np.concatenate([self._var_T422, var_N422])
        self._labels = np.concatenate([self._labels, labels_N])
        self.numbers = np.concatenate([self.numbers, np.zeros(count, int)])
        self._hits = np.concatenate([self._hits, np.ones(count, int)])
        self._hidden = np.concatenate([self._hidden, np.zeros(count, int)])

    def _keep(self, kept: NDArray[np.bool_]) -> None:
        """Forget the other tracks."""
        self.numbers, self._labels = self.numbers[kept], self._labels[kept]
        self._hits, self._hidden = self._hits[kept], self._hidden[kept]
        self._mean_T42, self._var_T422 = self._mean_T42[kept], self._var_T422[kept]

    def _size(self) -> Floats:
        return _size(self._mean_T42[..., 0])


def _assigned(good_TN: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the pairs that are best in all; what is 0 is none."""
    tracks, objects = linear_sum_assignment(good_TN, maximize=True)
    good = good_TN[tracks, objects] > 0
    return tracks[good], objects[good]


def _longer(boxes_N4: Tensor) -> Floats:
    longer_N: Floats = (boxes_N4[:, 2:] - boxes_N4[:, :2]).amax(1).clamp(min=1).numpy()
    return longer_N


def _spelt(found: Found) -> Floats:
    """Return boxes as (x, y, width, height)_N4 of their middles and sides."""
    boxes_N4 = found.boxes_N4.detach().cpu().double().numpy()
    middle_N2, side_N2 = (boxes_N4[:, :2] + boxes_N4[:, 2:]) / 2, boxes_N4[:, 2:] - boxes_N4[:, :2]
    return np.concatenate([middle_N2, side_N2], 1)


def _size(spelt_N4: Floats) -> Floats:
    size_N: Floats = spelt_N4[:, 2:].mean(1).clip(1)
    return size_N


def _labels(found: Found) -> NDArray[np.int64]:
    labels_N: NDArray[np.int64] = found.labels_N.cpu().numpy()
    return labels_N


def _scores(found: Found) -> Floats:
    scores_N: Floats = found.scores_N.detach().cpu().double().numpy()
    return scores_N
