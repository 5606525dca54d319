"""What ``make test`` leaves to ``make test-all``: the one list. pytest by itself runs all of it.

An entry is a regular expression for the beginning of a test's id, and what of the same kind stays
in ``make test``.
"""

from __future__ import annotations

import re

ONLY_IN_TEST_ALL = {
    r"tests/test_cuda_compiles\.py::test_compiles_to_what_the_design_says\[(?!75\]|90\])": (
        "the oldest architecture and the one that brought clusters stay"
    ),
    r"tests/test_cuda_compiles\.py::test_kernels_that_may_come_early_wait_first": (
        "no build has these launches unless it is asked to; the checks' own tests stay"
    ),
    r"tests/test_transforms\.py::test_opcheck\[cuda_emulated": (
        "on the CPU it stays; schema, fake kernel and autograd are the same for both"
    ),
    r"tests/test_gradients\.py::test_grad(grad)?check_of_loss_and_terms\[cuda_emulated-_function": (
        "the public functions' stay, on the same kernels; and this way to them on the CPU"
    ),
    # Sums of many tiles and of one, images and clouds, both norms, an id that is ignored.
    r"tests/(?!test_values\.py::test_every_case\[cuda_compiled-"
    r"(image_d16|d17|mixed_counts|two_hundred_instances|several_ignored|norm1_d33|clouds_d16)\])"
    r".*\[cuda_compiled": (
        "a few cases stay, and the tests of test_compiled_code.py, which launch every kernel"
    ),
    r"tests/test_compiled_code\.py::test_every_kernel_is_launched\[7\]": (
        "the code for the two newer architectures stays"
    ),
    r"tests/test_kernel_counts\.py::test_counts_have_not_risen\[(?!voronoi-float32\])": (
        "the usual workload stays"
    ),
}


def entry_of(nodeid: str) -> str | None:
    """The entry that leaves a test out, None where it stays."""
    return next((entry for entry in ONLY_IN_TEST_ALL if re.match(entry, nodeid)), None)
