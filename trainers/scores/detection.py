"""Average precision of boxes, masks and joints, as COCO and VOC count it.

Answers are held against the truth picture by picture, the surest first; what is ignored in the
truth is neither right nor wrong to find. Overlap is intersection over union of boxes or masks, or
the likeness of joints (``trainers/scores/joints.py``). Sources: Lin et al., "Microsoft COCO"
(2014), and its evaluation; Everingham et al., "The PASCAL VOC Challenge" (2010), section 4.2.

Shape legend: D answers, G true objects, T overlaps that are asked for, R ranges of sizes,
K classes, P pairs, S states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainers.data.instances import Found, Instances, Kinds
from trainers.scores.f1 import confusion
from trainers.scores.overlap import (
    Bools,
    Floats,
    What,
    Whole,
    areas,
    box_overlaps,
    covered,
    ignored,
    match,
    overlaps,
    plain,
)

OVERLAPS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
SIZES = ("all", "small", "medium", "large")
COCO_AREAS = (32.0**2, 96.0**2)
"""Up to where an object is small, and up to where medium, in square pixels."""
MOST = 100
"""Answers of a picture and class that count."""


@dataclass(frozen=True)
class _Judged:
    """What came of the answers of one picture, or of many."""

    scores_D: Floats
    labels_D: Whole
    right_RTD: Bools
    wrong_RTD: Bools
    """An answer that is neither right nor wrong does not count."""
    truth_RK: Whole
    """True objects that count."""
    nearest_D: Whole
    """The true object of the largest overlap, -1 for none; numbered through the pictures."""
    overlap_D: Floats
    """With that object."""
    void_G: Bools
    """True objects that are ignored."""


class DetectionTally:
    """Collects the answers to pictures one by one and says how good all of them are.

    What an object covers is its mask where it has one, else its box. For masks, an object without
    one is ignored; for joints, one without any.
    """

    def __init__(
        self,
        kinds: Kinds,
        what: Sequence[What] = ("box",),
        bounds: tuple[float, float] = COCO_AREAS,
        most: int = MOST,
    ) -> None:
        self.kinds, self.most = kinds, most
        small, medium = bounds
        self._ranges_R2 = np.array([(0, 1e10), (0, small), (small, medium), (medium, 1e10)])
        self._parts: dict[What, list[_Judged]] = {kind: [] for kind in what}
        self.pictures = 0

    def add(self, found: Found, truth: Instances) -> None:
        """Hold one picture's answers against its objects."""
        found, truth = _ranked(plain(found), self.most), plain(truth)
        area_G = areas(truth)
        for kind, parts in self._parts.items():
            parts.append(self._judge(kind, found, truth, area_G))
        self.pictures += 1

    def scores(self) -> dict[str, float]:
        """Return AP, AP50, AP75, AP by size and AR of each kind, as in ``box_AP50``.

        A size that no object has is left out; so is all of a kind of which there is no object.
        """
        result: dict[str, float] = {}
        for kind, parts in self._parts.items():
            precision_RTK, recall_RTK = _curves(_joined(parts, len(self.kinds.names)))
            named = {
                "AP": precision_RTK[0],
                "AP50": precision_RTK[0, 0],
                "AP75": precision_RTK[0, 5],
                **{f"AP_{size}": precision_RTK[n] for n, size in enumerate(SIZES) if n},
                "AR": recall_RTK[0],
            }
            for name, values in named.items():
                if not np.isnan(values).all():
                    result[f"{kind}_{name}"] = float(np.nanmean(values))
        return result

    def by_class(self, kind: What = "box", overlap: float | None = None) -> list[float]:
        """Return the AP of each class, NaN where it never occurs; at one overlap of ``OVERLAPS``.

        By default it is the mean over all overlaps.
        """
        precision_TK = _curves(_joined(self._parts[kind], len(self.kinds.names)))[0][0]
        if overlap is not None:
            precision_TK = precision_TK[_place(overlap)][None]
        return [float(value) for value in precision_TK.mean(0)]

    def voc(self, overlap: float = 0.5, eleven: bool = False) -> float:
        """Return VOC's mean AP of boxes: all points (2010 on), or the eleven of 2007.

        There an answer belongs to the object of the largest overlap, even if a surer answer has
        that one already.
        """
        every = _joined(self._parts["box"], len(self.kinds.names))
        values = []
        for label in np.flatnonzero(every.truth_RK[0]):
            mine = np.flatnonzero(every.labels_D == label)
            mine = mine[np.argsort(-every.scores_D[mine], kind="stable")]
            near = every.overlap_D[mine] >= overlap
            void = near & every.void_G[every.nearest_D[mine]] if mine.size else near
            whose = np.where(near & ~void, every.nearest_D[mine], -1)
            first = np.zeros(len(mine), bool)
            first[np.unique(whose, return_index=True)[1]] = True
            right = (first & (whose >= 0))[~void]
            values.append(_voc_area(right, int(every.truth_RK[0, label]), eleven))
        return float(np.mean(values)) if values else float("nan")

    def at(self, score: float, overlap: float = 0.5) -> dict[str, float]:
        """Return precision, recall and false alarms a picture of boxes at least so sure."""
        every, place = _joined(self._parts["box"], len(self.kinds.names)), _place(overlap)
        sure_D = every.scores_D >= score
        right = int((every.right_RTD[0, place] & sure_D).sum())
        wrong = int((every.wrong_RTD[0, place] & sure_D).sum())
        return {
            "precision": right / max(right + wrong, 1),
            "recall": right / max(int(every.truth_RK[0].sum()), 1),
            "false_alarms": wrong / max(self.pictures, 1),
        }

    def _judge(self, kind: What, found: Found, truth: Instances, area_G: Floats) -> _Judged:
        skeleton = self.kinds.skeleton
        plain_DG, crowded_DG, known_G = overlaps(kind, found, truth, area_G, skeleton)
        crowd_G = ignored(truth)
        labels_D, labels_G = found.labels_N.numpy(), truth.labels_N.numpy()
        classes = len(self.kinds.names)
        same_DG = labels_D[:, None] == labels_G
        overlap_DG = np.where(same_DG, np.where(crowd_G, crowded_DG, plain_DG), -1.0)
        beyond_RG = crowd_G | ~known_G | self._beyond(area_G)
        whose_RTD = match(overlap_DG, beyond_RG, crowd_G, OVERLAPS)
        beyond_RD = self._beyond(covered(kind, found))
        away_RTD = np.broadcast_to(beyond_RD[:, None], whose_RTD.shape)
        lone_RTD, rows = whose_RTD < 0, np.arange(len(SIZES))[:, None, None]
        padded_RG = np.pad(beyond_RG, ((0, 0), (0, 1)))  # so that -1 is no object
        void_RTD = padded_RG[rows, whose_RTD] | (lone_RTD & away_RTD)
        nearest_D, best_D = _nearest(np.where(same_DG, plain_DG, -1.0))
        return _Judged(
            found.scores_N.numpy().astype(np.float64),
            labels_D,
            ~lone_RTD & ~void_RTD,
            lone_RTD & ~void_RTD,
            np.array([np.bincount(labels_G[~b_G], minlength=classes) for b_G in beyond_RG]),
            nearest_D,
            best_D,
            crowd_G | ~known_G,
        )

    def _beyond(self, area_N: Floats) -> Bools:
        low_R1, high_R1 = self._ranges_R2[:, :1], self._ranges_R2[:, 1:]
        beyond_RN: Bools = (area_N < low_R1) | (area_N > high_R1)
        return beyond_RN


def pairs(
    found: Found, truth: Instances, overlap: float = 0.5, score: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return which answers are which true objects: their numbers and the overlap of their boxes.

    The surest answers choose first, among objects of their class; ignored objects are in no pair.
    """
    found, truth = plain(found), plain(truth)
    order_D = torch.argsort(-found.scores_N, stable=True)
    order_D = order_D[found.scores_N[order_D] >= score]
    ranked, void_G = found.take(order_D), ignored(truth)
    overlap_DG, crowded_DG = box_overlaps(ranked.boxes_N4, truth.boxes_N4)
    same_DG = (ranked.labels_N[:, None] == truth.labels_N).numpy()
    overlap_DG = np.where(same_DG, np.where(void_G, crowded_DG, overlap_DG), -1.0)
    whose_D = match(overlap_DG, void_G[None], void_G, np.array([overlap]))[0, 0]
    kept = np.flatnonzero((whose_D >= 0) & ~np.append(void_G, True)[whose_D])
    chosen = torch.from_numpy(whose_D[kept])
    return order_D[kept], chosen, torch.from_numpy(overlap_DG[kept, whose_D[kept]])


def named(found: Found, truth: Instances, overlap: float = 0.5) -> tuple[int, int]:
    """Return how many objects the surest answer there names right, and of how many.

    That answer may be of any kind; whoever is not found is not named. Ignored objects are left out.
    """
    found, truth = plain(found), plain(truth)
    truth = truth.take(torch.from_numpy(~ignored(truth)))
    if not len(found.scores_N) or not len(truth.labels_N):
        return 0, len(truth.labels_N)
    near_DG = torch.from_numpy(box_overlaps(found.boxes_N4, truth.boxes_N4)[0] >= overlap)
    sure_G, best_G = torch.where(near_DG, found.scores_N[:, None].double(), -1.0).max(0)
    right_G = (sure_G >= 0) & (found.labels_N[best_G] == truth.labels_N)
    return int(right_G.sum()), len(truth.labels_N)


def state_table(found: Found, truth: Instances, states: int, score: float = 0.5) -> Tensor:
    """Return counts of (true state, answered state) of one picture, the last one "nobody there".

    Somebody who is not found is a miss of their state, an answer with nobody there a false one.
    """
    found, truth = plain(found), plain(truth)
    said_D, true_G = torch.full((len(found.scores_N),), states), torch.full_like(truth.labels_N, -1)
    if found.states_NS is not None and len(said_D):
        said_D = found.states_NS.argmax(1)
    if truth.states_N is not None:
        true_G = truth.states_N.clone()
    true_G[torch.from_numpy(ignored(truth))] = -1
    chosen_P, whose_P, _ = pairs(found, truth, score=score)
    missed_G = true_G >= 0
    missed_G[whose_P] = False
    alone_D = torch.from_numpy(_alone(found, truth)) & (found.scores_N >= score)
    alone_D[chosen_P] = False
    known_P = true_G[whose_P] >= 0
    nobody = torch.full((len(missed_G) + len(alone_D),), states)
    rows = [true_G[whose_P][known_P], true_G[missed_G], nobody[: int(alone_D.sum())]]
    columns = [said_D[chosen_P][known_P], nobody[: int(missed_G.sum())], said_D[alone_D]]
    return confusion(torch.cat(rows), torch.cat(columns), states + 1)


def _alone(found: Found, truth: Instances) -> Bools:
    """Return which answers cover no ignored object."""
    crowded_DG = box_overlaps(found.boxes_N4, truth.boxes_N4)[1][:, ignored(truth)]
    alone_D: Bools = ~(crowded_DG >= OVERLAPS[0]).any(1)
    return alone_D


def _curves(every: _Judged) -> tuple[Floats, Floats]:
    """Return AP (mean precision at 101 recalls) and the recall in the end, each of shape RTK."""
    shape = (*every.right_RTD.shape[:2], every.truth_RK.shape[1])
    precision_RTK, recall_RTK = np.full(shape, np.nan), np.full(shape, np.nan)
    for label in np.flatnonzero(every.truth_RK[0]):
        mine = np.flatnonzero(every.labels_D == label)
        mine = mine[np.argsort(-every.scores_D[mine], kind="stable")]
        right_RTD = every.right_RTD[..., mine].cumsum(-1).astype(np.float64)
        wrong_RTD = every.wrong_RTD[..., mine].cumsum(-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            recall_RTD = right_RTD / every.truth_RK[:, label, None, None]
        precise_RTD = right_RTD / (right_RTD + wrong_RTD + np.spacing(1))
        best_RTD = np.maximum.accumulate(precise_RTD[..., ::-1], -1)[..., ::-1]
        best_RTD = np.pad(best_RTD, ((0, 0), (0, 0), (0, 1)))  # what is never reached has none
        for size, asked in np.ndindex(shape[:2]):
            if every.truth_RK[size, label]:
                reached = np.searchsorted(recall_RTD[size, asked], RECALLS, side="left")
                precision_RTK[size, asked, label] = best_RTD[size, asked, reached].mean()
                recall_RTK[size, asked, label] = recall_RTD[size, asked, -1] if mine.size else 0.0
    return precision_RTK, recall_RTK


def _voc_area(right: Bools, total: int, eleven: bool) -> float:
    recall = right.cumsum() / total
    precision = right.cumsum() / np.arange(1, len(right) + 1)
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    if eleven:
        return float(best[np.searchsorted(recall, np.linspace(0, 1, 11) - 1e-12)].mean())
    return float((np.diff(recall, prepend=0.0) * best[:-1]).sum())


def _nearest(overlap_DG: Floats) -> tuple[Whole, Floats]:
    if not overlap_DG.shape[1]:
        return np.full(len(overlap_DG), -1), np.zeros(len(overlap_DG))
    return overlap_DG.argmax(1), overlap_DG.max(1)


def _joined(parts: Sequence[_Judged], classes: int) -> _Judged:
    """Return the answers to all pictures as those to one."""
    starts = np.cumsum([0, *(len(part.void_G) for part in parts)])
    nearest = [p.nearest_D + start for p, start in zip(parts, starts[:-1], strict=True)]
    empty_RTD = np.zeros((len(SIZES), len(OVERLAPS), 0), bool)
    return _Judged(
        np.concatenate([np.zeros(0), *(part.scores_D for part in parts)]),
        np.concatenate([np.zeros(0, np.int64), *(part.labels_D for part in parts)]),
        np.concatenate([empty_RTD, *(part.right_RTD for part in parts)], -1),
        np.concatenate([empty_RTD, *(part.wrong_RTD for part in parts)], -1),
        sum((part.truth_RK for part in parts), np.zeros((len(SIZES), classes), np.int64)),
        np.concatenate([np.zeros(0, np.int64), *nearest]),
        np.concatenate([np.zeros(0), *(part.overlap_D for part in parts)]),
        np.concatenate([np.zeros(0, bool), *(part.void_G for part in parts)]),
    )


def _ranked(found: Found, most: int) -> Found:
    """Return the answers from the surest on, at most so many of each class."""
    found = found.take(torch.argsort(-found.scores_N, stable=True))
    if len(found.scores_N) <= most:
        return found
    same_DD = (found.labels_N[:, None] == found.labels_N).tril(-1)
    return found.take(same_DD.sum(1) < most)


def _place(overlap: float) -> int:
    place = int(np.abs(OVERLAPS - overlap).argmin())
    if abs(OVERLAPS[place] - overlap) > 1e-6:
        raise ValueError(f"overlap {overlap} is not one of {OVERLAPS.round(2).tolist()}")
    return place
