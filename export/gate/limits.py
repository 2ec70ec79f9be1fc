"""The limits of the gate, which lie where the machines that serve can read them, too."""

from __future__ import annotations

from ensemble.gate.limits import LIMITS as LIMITS
from ensemble.gate.limits import Limits as Limits
from ensemble.gate.limits import limits_of as limits_of
