"""A mark for parameters: a longer form of what the others show, too."""

from __future__ import annotations

import pytest

LONG = pytest.mark.long
