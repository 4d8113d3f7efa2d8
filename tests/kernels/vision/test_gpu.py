"""The Triton kernels against their definitions: on a GPU, or on the CPU by Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from kernels import reference as vectors
from kernels.vision import deform_conv2d, reference
from kernels.vision.reference import Window

ROOT = Path(__file__).parents[3]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
triton = pytest.mark.skipif(not find_spec("triton"), reason="no Triton on this machine")
runs = pytest.mark.skipif(
    not (INTERPRETED or torch.cuda.is_available()), reason="no GPU, and TRITON_INTERPRET is not 1"
)
DEVICE = "cpu" if INTERPRETED else "cuda"


@triton
@runs
def test_the_elastic_step_is_that_of_the_definition() -> None:
    from kernels.vision import gpu

    rng = np.random.default_rng(1)
    y, x = (rng.standard_normal(2500).astype(np.float32) for _ in range(2))
    left, right = (torch.from_numpy(one.copy()).to(DEVICE) for one in (y, x))
    gpu.elastic(left, right, 0.3)
    new_y, new_x, _ = vectors.elastic(y, x, y, 0.3, 0.0)
    np.testing.assert_allclose(left.cpu().numpy(), new_y, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(right.cpu().numpy(), new_x, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="allowed: two contiguous tensors of float32"):
        gpu.elastic(left, right[:5], 0.3)


@triton
@runs
@pytest.mark.parametrize("integer", [False, True])
def test_sampling_and_its_derivative_are_those_of_the_definition(integer: bool) -> None:
    from kernels.vision import gpu

    rng = torch.Generator().manual_seed(2)
    window = Window((3, 2), (2, 1), (1, 2), (1, 2))
    x_BCHW = torch.randn(2, 9, 6, 11, generator=rng)
    offset = torch.randn(2, 12, *window.output(6, 11), generator=rng) * 2
    offset[0, :, 0, 0] = 0.5  # halves are rounded to even
    offset[1, 0, 0, 0] = torch.nan
    there = [one.to(DEVICE) for one in (x_BCHW, offset)]
    cols = gpu.deform_sample(*there, window, integer).cpu()
    torch.testing.assert_close(cols, reference.deform_sample(x_BCHW, offset, window, integer))
    grad = torch.randn(cols.shape, generator=rng)
    ours = gpu.deform_sample_backward(grad.to(DEVICE), *there, window, integer)
    for one, by in zip(
        ours, reference.deform_sample_backward(grad, x_BCHW, offset, window, integer), strict=True
    ):
        torch.testing.assert_close(one.cpu(), by, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_operator_on_a_gpu_is_that_of_the_cpu() -> None:
    inputs = [torch.randn(s) for s in ((2, 5, 8, 9), (2, 18, 8, 9), (4, 5, 3, 3))]
    found = []
    for device in ("cpu", "cuda"):
        leaves = [one.detach().clone().to(device).requires_grad_() for one in inputs]
        y = deform_conv2d(*leaves, padding=1)
        y.sum().backward()
        grads = [one.grad for one in leaves if one.grad is not None]
        assert len(grads) == len(leaves)
        found.append([y.detach().cpu(), *(grad.cpu() for grad in grads)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@triton
@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="these are the tests that it would start")
def test_the_interpreter_agrees() -> None:
    """Run the tests above on the CPU: the variable has to be there before Triton is imported."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=ROOT, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0 and "3 passed" in done.stdout, done.stdout[-3000:]
