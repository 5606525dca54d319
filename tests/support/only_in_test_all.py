"""What ``make test`` leaves to ``make test-all``: the one list. pytest by itself runs all of it.

An entry is a regular expression for the beginning of a test's id, and what of the same kind stays
in ``make test``.
"""

from __future__ import annotations

import re

ONLY_IN_TEST_ALL = {
    r"tests/test_cuda_compiles\.py::test_compiles_to_what_the_design_says\[(?!90\])": (
        "sm_90 is compiled; the suite runs what was written for all architectures"
    ),
}


def entry_of(nodeid: str) -> str | None:
    """The entry that leaves a test out, None where it stays."""
    return next((entry for entry in ONLY_IN_TEST_ALL if re.match(entry, nodeid)), None)
