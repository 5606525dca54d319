"""Loss, terms and gradient of every case against the float64 oracle, within the error budget, in
every dtype and memory layout, on every device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.budget import DTYPES, LAYOUTS, assert_within_budget, run
from support.cases import (
    DENSE,
    LABEL_DTYPES,
    PACKED,
    Case,
    clustered_embeddings,
    get_case,
    labels_of_dtype,
)

from discloss_cuda import DiscriminativeLoss, discriminative_loss, discriminative_loss_packed

FUNCTIONS = (discriminative_loss, discriminative_loss_packed)

# The emulator is slow: a few cases of each kind stand for all dtypes and layouts there.
EMULATED = ("image_d16", "volume_d8", "d17", "lines_d2", "norm1_d1", "clouds_d3", "clouds_d16")


def _combinations() -> list[Any]:
    everywhere = [("cpu", name) for name in (*DENSE, *PACKED)]
    everywhere += [("cuda", name) for name in (*DENSE, *PACKED)]
    emulated = [(f"cuda_emulated_sm{n}", name) for n in (8, 9) for name in EMULATED]
    return [
        pytest.param(*pair, dtype, id=f"{'-'.join(pair)}-{dtype}")
        for pair in everywhere + emulated
        for dtype in DTYPES
        # Not twice: neither is worked on by a cluster of blocks.
        if pair[0] != "cuda_emulated_sm9" or (dtype != torch.float64 and "norm1" not in pair[1])
    ]


@pytest.mark.parametrize("name", [*DENSE, *PACKED])
def test_every_case(device: torch.device, name: str) -> None:
    case = get_case(name)
    x = case.embeddings.to(device, torch.float32)
    assert_within_budget(case, run(*FUNCTIONS, case, x))


@pytest.mark.parametrize(("device", "name", "dtype"), _combinations(), indirect=["device"])
def test_every_dtype_and_layout(device: torch.device, name: str, dtype: torch.dtype) -> None:
    case = get_case(name)
    for layout, lay_out in LAYOUTS.items():
        x = lay_out(case.embeddings.to(device, dtype))
        outcome = run(*FUNCTIONS, case, x)
        assert outcome.grad.dtype == dtype, layout
        assert outcome.grad.stride() == torch.empty_like(x).stride(), layout
        assert_within_budget(case, outcome, layout=layout)


@pytest.mark.parametrize("ignored", [(), (0,), (-1, 255, 2**40)])
@pytest.mark.parametrize("label_dtype", LABEL_DTYPES)
def test_every_label_dtype(
    device: torch.device, label_dtype: torch.dtype, ignored: tuple[int, ...]
) -> None:
    # -1 is no uint8 255, 2**40 is no int32 0: what is not in the labels is not ignored.
    labels = labels_of_dtype(label_dtype, (2, 11, 13))
    x = clustered_embeddings(labels, 4, dtype=torch.float64)
    case = Case(x, labels, {"ignore_label": ignored})
    assert_within_budget(case, run(*FUNCTIONS, case, x.to(device, torch.float32)))


@pytest.mark.parametrize("layout", ["transposed", "padded", "misaligned", "expanded"])
def test_every_layout_of_labels(device: torch.device, layout: str) -> None:
    case = get_case("image_d16")
    lay_out = {**LAYOUTS, "expanded": lambda labels: labels[:1].expand(2, -1, -1)}[layout]
    changed = Case(case.embeddings, lay_out(case.labels.to(device)))
    outcome = run(*FUNCTIONS, changed, case.embeddings.to(device, torch.float32))
    assert_within_budget(Case(case.embeddings, changed.labels.cpu()), outcome)


@pytest.mark.parametrize(
    ("name", "limit"), [("image_d16", 1800), ("volume_d8", 3300), ("d100", 300)]
)
def test_room_for_many_more_instances(device: torch.device, name: str, limit: int) -> None:
    """So many that their sums do not fit into the shared memory of a block."""
    case = get_case(name)
    assert limit * (case.embeddings.shape[1] + 1) * 8 > 227 * 1024
    x = case.embeddings.to(device, torch.float32)
    assert_within_budget(case, run(*FUNCTIONS, case, x, max_instances=limit))


def test_expanded_embeddings(device: torch.device) -> None:
    one = get_case("volume_d8").embeddings
    labels = torch.stack(
        [get_case("volume_d8").labels[0], torch.arange(693).reshape(7, 9, 11) // 90]
    )
    case = Case(one.expand(2, -1, -1, -1, -1), labels)
    x = one.to(device, torch.float32).expand(2, -1, -1, -1, -1)
    assert x.stride(0) == 0
    assert_within_budget(case, run(*FUNCTIONS, case, x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "max_instances"),
    [
        ("image_d16", 7),
        ("image_d16", 97),
        ("mixed_counts", 40),
        ("mixed_counts", 97),
        ("all_ignored", 3),
        ("clouds_d3", 40),
        ("d100", 400),  # a table of sums of 320 KB
    ],
)
def test_given_max_instances(
    device: torch.device, name: str, max_instances: int, dtype: torch.dtype
) -> None:
    case = get_case(name)
    x = case.embeddings.to(device, dtype)
    assert_within_budget(case, run(*FUNCTIONS, case, x, max_instances=max_instances))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", ["mixed_counts", "no_image", "clouds_d3", "no_cloud"])
def test_reductions(device: torch.device, name: str, reduction: str) -> None:
    case = get_case(name)
    x = case.embeddings.to(device)
    function = FUNCTIONS[case.offsets is not None]
    options: dict[str, Any] = {**case.options, "return_terms": True}
    per_image = function(x, *case.arguments(device), reduction="none", **options)
    reduced = function(x, *case.arguments(device), reduction=reduction, **options)
    alone = function(x, *case.arguments(device), reduction=reduction, **case.options)
    assert torch.equal(alone, reduced.loss)
    for a, b in zip(per_image, reduced, strict=True):
        assert b.shape == ()
        truth = a.sum() / (max(case.images, 1) if reduction == "mean" else 1)
        torch.testing.assert_close(b, truth, rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", ["image_d16", "several_ignored", "norm1_d33"])
def test_the_module_is_the_function(device: torch.device, name: str) -> None:
    case = get_case(name)
    x, labels = case.embeddings.to(device, torch.float32), case.labels.to(device)
    module = DiscriminativeLoss(**case.options, max_instances=50, return_terms=True)
    terms = discriminative_loss(x, labels, **case.options, max_instances=50, return_terms=True)
    for a, b in zip(module(x, labels), terms, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["clouds_d3", "clouds_d16"])
def test_batch_is_another_way_to_say_offsets(device: torch.device, name: str) -> None:
    case = get_case(name)
    assert case.offsets is not None
    batch = torch.repeat_interleave(case.offsets.diff()).to(device)
    outcome = run(
        discriminative_loss,
        lambda x, labels, _, **options: discriminative_loss_packed(
            x, labels, batch=batch, batch_size=case.images, **options
        ),
        case,
        case.embeddings.to(device, torch.float32),
    )
    assert_within_budget(case, outcome)


@pytest.mark.parametrize("device", ["cpu", "cuda"], indirect=True)
@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("data", ["constant", "offset", "small"])
def test_a_mean_over_ten_million_pixels(device: torch.device, dim: int, data: str) -> None:
    """A plain float32 running sum is off in the third digit here."""
    pixels, instances, eps = 10_000_000, dim, torch.finfo(torch.float32).eps
    if data == "constant":
        x = torch.full((1, dim, pixels), 0.1)
    else:
        x = torch.randn(1, dim, pixels, generator=torch.Generator().manual_seed(0))
        x = x + 100 if data == "offset" else x * 1e-3 + 1e-3
    labels = (torch.arange(pixels) // 7 % instances).to(torch.uint8)[None]
    leaf = x.to(device).requires_grad_()
    terms = discriminative_loss(
        leaf, labels.to(device), delta_var=0.0, max_instances=instances, return_terms=True
    )
    (grad,) = torch.autograd.grad(terms.variance, leaf)

    variance = length = 0.0
    for k in range(instances):
        exact = x[0, :, labels[0] == k].double()
        mean = exact.mean(1, keepdim=True)
        variance += (exact - mean).square().sum(0).mean().item() / instances
        length += mean.norm().item() / instances
        scale = 2 / (exact.shape[1] * instances)
        error = grad[0, :, labels[0] == k].double().cpu() - (exact - mean) * scale
        assert error.abs().max().item() <= 4 * eps * scale * exact.abs().max().item()
    assert abs(terms.regularization.item() - length) <= 2 * eps * length
    # A mean can be no nearer than a unit in its last place: (eps length)^2 of variance.
    assert abs(terms.variance.item() - variance) <= 4 * eps * variance + (eps * length) ** 2
