# SPDX-License-Identifier: MIT
"""The validation plug-ins that come with SSA: L{ssa.validation}."""

from ssa.firstuse import FirstUseValidator
from ssa.tls.pinning import PinValidator

pin = PinValidator()
firstUse = FirstUseValidator()
