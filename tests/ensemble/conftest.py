"""Modules that run inside Triton's processes are imported here with a stand-in for Triton's Python API."""

from __future__ import annotations

import sys

from tests.ensemble import fake_triton

sys.modules.setdefault(fake_triton.module.__name__, fake_triton.module)

from tests.ensemble.engine_model import held, start, sub_models  # noqa: E402, F401
