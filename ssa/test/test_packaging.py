# SPDX-License-Identifier: MIT
"""
C{setup.py} against the tree: nothing is found by itself, so nothing may be forgotten.
"""

from __future__ import annotations

import ast
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

import ssa

ROOT = Path(ssa.__file__).parent.parent


class PackagingTests(SynchronousTestCase):
    """
    What is installed.
    """

    def setUp(self) -> None:
        if not (ROOT / "setup.py").exists():
            raise SkipTest("this is an installed copy, without setup.py")
        tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
        call = next(node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "setup")
        self.keywords = {keyword.arg: keyword.value for keyword in call.keywords}

    def test_packages(self) -> None:
        """Every package is listed."""
        tree = sorted(
            ".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "ssa").rglob("__init__.py")
        )
        self.assertEqual(sorted(ast.literal_eval(self.keywords["packages"])), tree)

    def test_testRequirements(self) -> None:
        """Who develops has all that the tests need."""
        extras = ast.literal_eval(self.keywords["extras_require"])
        self.assertLessEqual(set(extras["test"]), set(extras["dev"]))

    def test_lowerBounds(self) -> None:
        """Every dependency has a lower bound and no upper one."""
        extras = ast.literal_eval(self.keywords["extras_require"])
        for requirement in ast.literal_eval(self.keywords["install_requires"]) + extras["test"]:
            self.assertRegex(requirement, r"^[\w.-]+ >= [\d.]+$")
