# SPDX-License-Identifier: MIT
"""Run all cases, or those whose names contain an argument."""

from __future__ import annotations

import os
import sys
import unittest

from ssa.test.vm.guest.ktls import case_life, case_receiving, case_sending
from ssa.test.vm.guest.ktls.case import KTLSCase


def main(wanted: list[str]) -> int:
    """
    @param wanted: parts of names; empty for all.
    @return: the exit status.
    """
    loader = unittest.TestLoader()
    loader.testNamePatterns = [f"*{part}*" for part in wanted] or None
    suite = unittest.TestSuite(loader.loadTestsFromModule(module) for module in (case_receiving, case_sending, case_life))
    result = unittest.TextTestRunner(sys.stdout, verbosity=2).run(suite)
    for daemon in KTLSCase.daemons:
        daemon.kill()
    return 0 if result.wasSuccessful() and result.testsRun else 1


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)  # threads of a failed case may wait for ever
