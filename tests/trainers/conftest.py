"""Trainers are tested as ``dlp train`` runs them: without torch.compile, which takes seconds."""

from __future__ import annotations

from dlplatform.lean import leave_compiler_out

leave_compiler_out()
