"""The memory that a call on the CPU takes."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from discloss_cuda import discriminative_loss

# Of 16 MB, which the C library's heap holds.
MANY_CALLS = """
import resource, torch
from discloss_cuda import discriminative_loss
torch.set_num_threads(1)
labels = torch.arange(512 * 512).view(1, 512, 512) // 4096
x = torch.rand(1, 16, 512, 512, requires_grad=True)
def page_faults(calls):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(calls):
        torch.autograd.grad(discriminative_loss(x, labels, max_instances=64), x)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
page_faults(5)
print(page_faults(20))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_gradient_lies_where_the_last_one_was() -> None:
    """New pages for every third gradient would be thousands of faults."""
    command = [sys.executable, "-c", MANY_CALLS]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    assert int(result.stdout) < 200


def test_gradient_is_an_ordinary_tensor() -> None:
    labels = torch.arange(64).view(1, 8, 8) // 16
    x = torch.rand(1, 5, 8, 8, requires_grad=True)
    (grad,) = torch.autograd.grad(discriminative_loss(x, labels), x)
    assert grad.data_ptr() % 64 == 0
    values = grad.clone()
    assert grad.resize_(2, 5, 8, 8).numel() == 2 * values.numel()
    assert torch.equal(grad[:1], values)
    grad.untyped_storage().resize_(0)
    assert grad.untyped_storage().nbytes() == 0
