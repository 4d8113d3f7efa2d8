"""Vision operators for detectors and deformable nets: C on the CPU, with derivatives.

Importing this package imports torch and registers the operators as ``torch.ops.dlplatform.*``.
"""

from kernels.vision.deform import deform_conv2d, deform_sample
from kernels.vision.regions import roi_align, roi_pool
from kernels.vision.suppress import batched_nms, nms, soft_nms

__all__ = [
    "batched_nms",
    "deform_conv2d",
    "deform_sample",
    "nms",
    "roi_align",
    "roi_pool",
    "soft_nms",
]
