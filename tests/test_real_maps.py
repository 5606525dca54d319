"""Label maps of real nuclei and of a real embryo, in all four dtypes, within the error budget."""

from __future__ import annotations

import functools

import pytest
import torch
from support.budget import DTYPES, LAYOUTS, assert_within_budget, run
from support.cases import Case, clustered_embeddings, on, real_clouds, real_labels

from discloss_cuda import discriminative_loss, discriminative_loss_packed

FUNCTIONS = (discriminative_loss, discriminative_loss_packed)


def _clouds(clouds: int, dim: int, keep: int | None = None) -> Case:
    """Frames of the embryo as packed clouds, of each the first ``keep`` points."""
    labels, offsets = real_clouds(clouds)
    if keep is not None:
        bounds = offsets.tolist()
        labels = torch.cat([labels[first : first + keep] for first in bounds[:-1]])
        offsets = torch.arange(clouds + 1) * keep
    x = clustered_embeddings(labels[None], dim, dtype=torch.float64)[0].t().contiguous()
    return Case(x, labels, {}, offsets)


WHOLE = {
    "nuclei": lambda: on(real_labels("nuclei"), 8, ignore_label=0),
    "nuclei_with_background": lambda: on(real_labels("nuclei"), 2),
    "nuclei_batch": lambda: on(real_labels("nuclei_batch"), 4, ignore_label=0),
    "volume": lambda: on(real_labels("volume"), 16, ignore_label=0),
    "embryo_clip": lambda: on(real_labels("embryo")[None, :4, :, :64, :64], 3, ignore_label=0),
    "embryo_clouds": lambda: _clouds(3, 5),
}

CROPS = {
    "nuclei": lambda: on(real_labels("nuclei")[:, 200:248, 200:250], 8, ignore_label=0),
    "nuclei_batch": lambda: on(real_labels("nuclei_batch")[:, :30, 100:131], 4, ignore_label=0),
    "volume": lambda: on(real_labels("volume")[:, 10:20, 20:37, 20:35], 16, ignore_label=0),
    "embryo_clip": lambda: on(
        real_labels("embryo")[None, :3, 10:18, 40:55, 70:83], 3, ignore_label=0
    ),
    "embryo_clouds": lambda: _clouds(4, 5, keep=611),
}


@functools.cache
def _case(size: str, name: str) -> Case:
    return (WHOLE if size == "whole" else CROPS)[name]()


@pytest.mark.parametrize("device", ["cpu", "cuda"], indirect=True)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", WHOLE)
def test_whole_maps(device: torch.device, name: str, dtype: torch.dtype) -> None:
    case = _case("whole", name)
    assert_within_budget(case, run(*FUNCTIONS, case, case.embeddings.to(device, dtype)))


@pytest.mark.parametrize("threads", [2, 3, 7])
@pytest.mark.parametrize("name", WHOLE)
def test_any_number_of_threads(name: str, threads: int) -> None:
    case = _case("whole", name)
    torch.set_num_threads(threads)
    try:
        assert_within_budget(case, run(*FUNCTIONS, case, case.embeddings.float()))
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CROPS)
def test_crops_in_two_layouts(device: torch.device, name: str, dtype: torch.dtype) -> None:
    case = _case("crop", name)
    assert len(case.labels.unique()) > 2
    for layout in ("contiguous", "channels_last"):
        x = LAYOUTS[layout](case.embeddings.to(device, dtype))
        assert_within_budget(case, run(*FUNCTIONS, case, x), layout=layout)


@pytest.mark.parametrize("device", ["cpu", "cuda"], indirect=True)
def test_all_clouds_of_the_embryo(device: torch.device) -> None:
    """Nearly two million points in 31 clouds of different sizes."""
    case = _clouds(31, 3)
    assert_within_budget(case, run(*FUNCTIONS, case, case.embeddings.to(device, torch.float32)))
