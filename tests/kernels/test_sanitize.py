"""The sanitizers over the C kernels: memory errors, undefined behaviour, data races."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "sanitize.sh"


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
def test_the_sanitizers_report_nothing() -> None:
    ended = subprocess.run(["bash", str(SCRIPT)], capture_output=True, text=True, timeout=280)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    assert "PASSED" in ended.stdout
