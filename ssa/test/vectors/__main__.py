# SPDX-License-Identifier: MIT
"""
C{python -m ssa.test.vectors [own|configured]}: run all cases and print what came of them, each refusal of a good chain too.
"""

from __future__ import annotations

import datetime
import sys

from ssa.test.vectors.cases import NoVectors, checkDates, load, path
from ssa.test.vectors.run import HARD_ACCEPTS, run


def main(argv: list[str]) -> int:
    """
    The entry point.

    @return: 0 if all is well, 1 if not, 2 where there are no vectors.
    """
    try:
        file = path()
        collection = load(file)
        checkDates(collection, datetime.datetime.now(datetime.timezone.utc))
    except NoVectors as problem:
        print(problem, file=sys.stderr)
        return 2
    result = run(file, collection, own=argv != ["configured"])
    for each in result.hard(True):
        if not each.accepted:
            print(f"{each.case.name}: {each.told}")
    print(result.summary())
    for wrong in (*result.problems, *(f"{name}: accepted" for name in result.wronglyAccepted)):
        print(wrong, file=sys.stderr)
    accepted = sum(each.accepted for each in result.hard(True))
    return 1 if result.problems or result.wronglyAccepted or accepted < HARD_ACCEPTS else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
