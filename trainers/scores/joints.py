"""How near joints and landmarks come: likeness (OKS), share that is right (PCK), error (NME).

Shape legend: D answers, G true objects, N pairs of them, J joints, 3 is x, y and visibility in
the truth, x, y and confidence in an answer.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from trainers.data.instances import Skeleton

NEAR = 0.2
"""How far off a joint may be to be right, as a share of the torso."""


def likeness(
    found_DJ3: Tensor, truth_GJ3: Tensor, area_G: Tensor, boxes_G4: Tensor, skeleton: Skeleton
) -> Tensor:
    """Return COCO's object keypoint similarity of all pairs, from 0 to 1; fp64.

    A labelled joint d pixels off gives ``exp(-d^2 / (2 area (2 sigma)^2))``; the mean over
    labelled joints is taken. Without any, d is how far joints lie outside the doubled box.
    """
    found_D1J3, truth_GJ3 = found_DJ3.double()[:, None], truth_GJ3.double()
    labelled_GJ = truth_GJ3[..., 2] > 0
    some_G1 = labelled_GJ.any(1, keepdim=True)
    offset_DGJ2 = found_D1J3[..., :2] - truth_GJ3[..., :2]
    size_G12 = (boxes_G4[:, 2:] - boxes_G4[:, :2]).double()[:, None]
    low_G12 = boxes_G4[:, None, :2] - size_G12
    high_G12 = boxes_G4[:, None, 2:] + size_G12
    beyond_DGJ2 = (low_G12 - found_D1J3[..., :2]).clamp(min=0)
    beyond_DGJ2 = beyond_DGJ2 + (found_D1J3[..., :2] - high_G12).clamp(min=0)
    square_DGJ = torch.where(some_G1[..., None], offset_DGJ2, beyond_DGJ2).square().sum(-1)
    sigma_J = torch.tensor(skeleton.sigmas, dtype=torch.float64)
    spread_GJ = 2 * (2 * sigma_J) ** 2 * (area_G.double()[:, None] + 2.0**-52)
    counted_GJ = (labelled_GJ | ~some_G1).double()
    alike_DGJ = torch.exp(-square_DGJ / spread_GJ) * counted_GJ
    return alike_DGJ.sum(-1) / counted_GJ.sum(-1)


def torso(truth_NJ3: Tensor, skeleton: Skeleton) -> Tensor:
    """Return the larger diagonal between shoulders and hips in pixels; 0 where not labelled.

    A body seen end on keeps some torso by this, from the width of its shoulders.
    """
    ends = (("left_shoulder", "right_hip"), ("right_shoulder", "left_hip"))
    lengths = []
    for one, other in ends:
        one_N3, other_N3 = (truth_NJ3[:, skeleton.names.index(name)] for name in (one, other))
        known_N = (one_N3[:, 2] > 0) & (other_N3[:, 2] > 0)
        lengths.append((one_N3 - other_N3)[:, :2].norm(dim=1) * known_N)
    return torch.stack(lengths).amax(0)


def joints_right(
    found_NJ3: Tensor, truth_NJ3: Tensor, size_N: Tensor, near: float = NEAR
) -> tuple[Tensor, Tensor]:
    """Return which joints are near enough and which are judged (labelled, of a known size)."""
    off_NJ = (found_NJ3 - truth_NJ3)[..., :2].norm(dim=-1)
    judged_NJ = (truth_NJ3[..., 2] > 0) & (size_N > 0)[:, None]
    return (off_NJ <= near * size_N[:, None]) & judged_NJ, judged_NJ


def pck(found_NJ3: Tensor, truth_NJ3: Tensor, size_N: Tensor, near: float = NEAR) -> float:
    """Return the share of labelled joints at most ``near`` sizes off; NaN where there is none.

    Source: Yang and Ramanan (2013); sizes are those of ``torso`` for people.
    """
    right_NJ, judged_NJ = joints_right(found_NJ3, truth_NJ3, size_N, near)
    return float(right_NJ.sum() / judged_NJ.sum())


def nme(found_NJ3: Tensor, truth_NJ3: Tensor, eyes: tuple[int, int] = (0, 1)) -> float:
    """Return the mean error of landmarks as a share of the distance between the eyes.

    Faces of which an eye is not labelled are left out; NaN where there is no other.
    """
    one_N3, other_N3 = truth_NJ3[:, eyes[0]], truth_NJ3[:, eyes[1]]
    apart_N = (one_N3 - other_N3)[:, :2].norm(dim=1)
    judged_NJ = truth_NJ3[..., 2] > 0
    judged_NJ = judged_NJ & (judged_NJ[:, eyes].all(1) & (apart_N > 0))[:, None]
    off_NJ = (found_NJ3 - truth_NJ3)[..., :2].norm(dim=-1) / apart_N.clamp(min=1e-12)[:, None]
    return float((off_NJ * judged_NJ).sum() / judged_NJ.sum())


def auroc(sure_N: Tensor, right_N: Tensor) -> float:
    """Return how well sureness tells right from wrong: 1 entirely, 0.5 not at all; NaN if all same.

    It is the chance that a right one is surer than a wrong one, ties counted as half.
    """
    _, place_N, count_U = np.unique(sure_N.numpy(), return_inverse=True, return_counts=True)
    rank_U = count_U.cumsum() - (count_U - 1) / 2
    right = float(right_N.sum())
    wrong = len(right_N) - right
    if not right or not wrong:
        return float("nan")
    return (float(rank_U[place_N][right_N.numpy()].sum()) - right * (right + 1) / 2) / (
        right * wrong
    )
