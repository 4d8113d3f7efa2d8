"""The joints of people and the landmarks of faces, as public sets name and order them."""

from __future__ import annotations

from trainers.data.instances import Skeleton

PEOPLE = Skeleton(
    (
        *("nose", "left_eye", "right_eye", "left_ear", "right_ear"),
        *("left_shoulder", "right_shoulder", "left_elbow", "right_elbow"),
        *("left_wrist", "right_wrist", "left_hip", "right_hip"),
        *("left_knee", "right_knee", "left_ankle", "right_ankle"),
    ),
    (
        *((15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6)),
        *((5, 7), (7, 9), (6, 8), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4)),
    ),
    (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15),
    (
        *(0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072),
        *(0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089),
    ),
)
"""The 17 joints of COCO; left is the person's own left."""

NECKED = Skeleton(
    (*PEOPLE.names, "neck"),
    (*PEOPLE.bones, (0, 17), (5, 17), (6, 17)),
    (*PEOPLE.mirrored, 17),
    (*PEOPLE.sigmas, 0.079),
)
"""COCO's joints and the middle of the shoulders (OpenPose's 18)."""

FACES = Skeleton(
    ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth"),
    ((0, 1), (0, 2), (1, 2), (2, 3), (2, 4), (3, 4)),
    (1, 0, 2, 4, 3),
    (0.025, 0.025, 0.026, 0.03, 0.03),
)
"""Five landmarks in the order of RetinaFace; left is that of the picture."""

STATES = ("Lying", "Crouch", "Sitting", "Walking", "Standing", "Running")
"""What a person may be doing."""
