"""What a user's type checker says about calls of the package."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

USERS_CODE = """\
from typing import assert_type

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from discloss_cuda import (
    Clusters,
    DiscriminativeLoss,
    DiscriminativeLossTerms,
    EmbeddingClustering,
    cluster_embeddings,
    cluster_embeddings_packed,
    discriminative_loss,
    discriminative_loss_packed,
    reference,
)

Either = Tensor | DiscriminativeLossTerms


def functions(x: Tensor, labels: Tensor, offsets: Tensor, flag: bool) -> None:
    for call in (discriminative_loss, reference.discriminative_loss):
        assert_type(call(x, labels), Tensor)
    assert_type(discriminative_loss(x, labels), Tensor)
    assert_type(discriminative_loss(x, labels, norm=1, ignore_label=[0, 2]), Tensor)
    assert_type(discriminative_loss(x, labels, return_terms=False), Tensor)
    assert_type(discriminative_loss(x, labels, return_terms=True), DiscriminativeLossTerms)
    assert_type(discriminative_loss(x, labels, return_terms=flag), Either)
    assert_type(discriminative_loss_packed(x, labels, offsets), Tensor)
    terms = discriminative_loss_packed(x, labels, batch=offsets, return_terms=True)
    assert_type(terms, DiscriminativeLossTerms)
    assert_type(terms.variance, Tensor)
    assert_type(discriminative_loss_packed(x, labels, offsets, return_terms=flag), Either)
    assert_type(reference.discriminative_loss(x, labels, return_terms=True).loss, Tensor)
    assert_type(reference.discriminative_loss_packed(x, labels, offsets), Tensor)


def shards(x: Tensor, labels: Tensor, offsets: Tensor, group: ProcessGroup | None) -> None:
    assert_type(discriminative_loss(x, labels, max_instances=9, process_group=group), Tensor)
    assert_type(discriminative_loss_packed(x, labels, offsets, process_group=group), Tensor)
    criterion = DiscriminativeLoss(max_instances=9, process_group=group, grad_scale="ddp")
    assert_type(criterion(x, labels), Tensor)


def instances(x: Tensor, offsets: Tensor, flag: bool) -> None:
    for call in (cluster_embeddings, reference.cluster_embeddings):
        assert_type(call(x), Tensor)
    assert_type(cluster_embeddings(x, x > 0, min_size=3, return_clusters=True), Clusters)
    assert_type(cluster_embeddings(x, return_clusters=flag), Tensor | Clusters)
    assert_type(cluster_embeddings_packed(x, offsets), Tensor)
    assert_type(cluster_embeddings_packed(x, batch=offsets, return_clusters=True), Clusters)
    assert_type(reference.cluster_embeddings(x, return_clusters=True).counts, Tensor)
    assert_type(EmbeddingClustering(fragment=3)(x, x > 0), Tensor)
    assert_type(EmbeddingClustering(return_clusters=True)(x), Clusters)
    cluster_embeddings(x, sampel=3)  # expected: call-overload


class Trainer(torch.nn.Module):
    criterion: DiscriminativeLoss  # without an argument: the one that returns a tensor

    def __init__(self) -> None:
        super().__init__()
        self.criterion = DiscriminativeLoss(ignore_label=0, max_instances=64)

    def step(self, x: Tensor, labels: Tensor, flag: bool) -> Tensor:
        assert_type(DiscriminativeLoss(return_terms=True)(x, labels), DiscriminativeLossTerms)
        assert_type(DiscriminativeLoss(return_terms=True).forward(x, labels).loss, Tensor)
        assert_type(DiscriminativeLoss(return_terms=flag)(x, labels), Either)
        return self.criterion(x, labels)


def wrong(x: Tensor, labels: Tensor) -> None:
    discriminative_loss(x, labels, delta=1.0)  # expected: call-overload
    discriminative_loss(x, labels, norm="2")  # expected: call-overload
    discriminative_loss(x, labels, 0.5)  # expected: call-overload
    discriminative_loss(x, labels).variance  # expected: attr-defined
    discriminative_loss(x)  # expected: call-overload
    DiscriminativeLoss(ignore_label="0")  # expected: arg-type
    DiscriminativeLoss()(x)  # expected: call-arg
    discriminative_loss(x, labels, process_group="gloo")  # expected: call-overload
    reference.discriminative_loss(x, labels, process_group=None)  # expected: call-overload
    DiscriminativeLoss(return_terms=True)(x, labels).backward()  # expected: attr-defined
"""


def test_users_code_under_strict_mypy(tmp_path: Path) -> None:
    """Every result has its type, and every wrong call, and nothing else, is an error."""
    pytest.importorskip("mypy")
    (tmp_path / "users_code.py").write_text(USERS_CODE)
    command = [sys.executable, "-m", "mypy", "--strict", f"--cache-dir={ROOT / '.mypy_cache'}"]
    result = subprocess.run(
        [*command, "--config-file=", "users_code.py"],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    found = re.findall(r"users_code\.py:(\d+): error: .*\[([a-z-]+)\]$", result.stdout, re.M)
    expected = {
        (str(number), line.partition("# expected: ")[2])
        for number, line in enumerate(USERS_CODE.splitlines(), 1)
        if "# expected: " in line
    }
    assert set(found) == expected, result.stdout + result.stderr
