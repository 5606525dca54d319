"""The corner cases of the definition: each row has one answer, and it is not NaN."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.budget import DTYPES, HALF, LAYOUTS, assert_within_budget, run
from support.cases import INT64_MAX, INT64_MIN, Case, get_case
from torch import Tensor

from discloss_cuda import (
    DiscriminativeLossTerms,
    _ops,
    discriminative_loss,
    discriminative_loss_packed,
    reference,
)

FUNCTIONS = (discriminative_loss, discriminative_loss_packed)


def terms_and_grad(
    x: Tensor, labels: Tensor, **options: Any
) -> tuple[DiscriminativeLossTerms, Tensor]:
    """The terms of each image, and the gradient of the sum of the losses."""
    leaf = x.detach().requires_grad_()
    terms = discriminative_loss(leaf, labels, reduction="none", return_terms=True, **options)
    (grad,) = torch.autograd.grad(terms.loss.sum(), leaf)
    return terms, grad


# --- nothing there --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "name", ["no_image", "no_pixel", "no_pixel_2d", "all_ignored", "no_cloud", "empty_clouds"]
)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_nothing_gives_zero_with_a_live_graph(
    device: torch.device, name: str, dtype: torch.dtype, reduction: str
) -> None:
    case = get_case(name)
    x = case.leaf(device, dtype)
    function = FUNCTIONS[case.offsets is not None]
    for more in ({}, {"max_instances": 0}, {"max_instances": 3}):
        loss = function(x, *case.arguments(device), reduction=reduction, **case.options, **more)
        assert loss.shape == ((case.images,) if reduction == "none" else ())
        assert loss.requires_grad
        assert torch.equal(loss, torch.zeros_like(loss))
        (grad,) = torch.autograd.grad(loss.sum(), x)
        assert torch.equal(grad, torch.zeros_like(x))
        assert grad.dtype == dtype


def test_rows_without_an_instance_are_zero(device: torch.device) -> None:
    case, rows = get_case("mixed_counts"), 41
    x = case.embeddings.to(device, torch.float32)
    results = _ops.current().forward(
        x, case.labels.to(device), None, rows, [0.5, 1.5, 1.0, 1.0, 0.001, 2], [0]
    )
    _, _, _, _, _, instances, *tables = results
    empty = torch.arange(rows, device=device) >= instances[:, None]
    assert instances.tolist() == [0, 1, 2, 39]
    for table in tables:  # counts, means, pull, push
        assert not table[empty].any()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_image_without_instances_has_gradient_zero_whatever_its_pixels(
    device: torch.device, value: float
) -> None:
    x = get_case("image_d16").embeddings.clone()
    x[0] = value
    labels = get_case("image_d16").labels.clone()
    labels[0] = 0
    terms, grad = terms_and_grad(x.to(device), labels.to(device), ignore_label=0)
    assert torch.equal(grad[0], torch.zeros_like(grad[0]))
    assert [term[0].item() for term in terms] == [0.0] * 4
    assert grad[1].isfinite().all()
    mean = discriminative_loss(x.to(device), labels.to(device), ignore_label=0)
    torch.testing.assert_close(mean, terms.loss[1].detach() / 2)  # it counts in the mean


def test_one_instance_has_nothing_to_be_pushed_from(device: torch.device) -> None:
    case = get_case("one_instance")
    terms, _ = terms_and_grad(case.embeddings.to(device), case.labels.to(device), beta=1e9)
    assert torch.equal(terms.distance, torch.zeros_like(terms.distance))
    assert (terms.variance > 0).all()


# --- where the norm has no derivative, and hinges -------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", [1, 2])
def test_equal_embeddings(device: torch.device, norm: int, dtype: torch.dtype) -> None:
    """All means equal: the push is at its largest and has no direction."""
    x = torch.full((1, 3, 12), 0.25, dtype=dtype, device=device)
    labels = torch.arange(12, device=device)[None] // 4
    terms, grad = terms_and_grad(x, labels, norm=norm, gamma=0.0)
    assert terms.distance.item() == 9.0
    assert terms.variance.item() == 0.0
    assert torch.equal(grad, torch.zeros_like(grad))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", [1, 2])
def test_zero_embeddings(device: torch.device, norm: int, dtype: torch.dtype) -> None:
    x = torch.zeros(1, 3, 12, dtype=dtype, device=device)
    labels = torch.arange(12, device=device)[None] // 4
    terms, grad = terms_and_grad(x, labels, norm=norm, gamma=1.0, delta_var=0.0)
    assert terms.regularization.item() == 0.0
    assert torch.equal(grad, torch.zeros_like(grad))


@pytest.mark.parametrize("dtype", DTYPES)
def test_exactly_on_the_hinges(device: torch.device, dtype: torch.dtype) -> None:
    case = get_case("on_the_hinge")
    x, labels = case.embeddings.to(device, dtype), case.labels.to(device)
    terms, grad = terms_and_grad(x, labels, **case.options)
    assert [term.item() for term in terms[:3]] == [0.0, 0.0, 0.0]
    assert torch.equal(grad, torch.zeros_like(grad))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", [1, 2])
def test_a_single_pixel_is_its_own_mean(
    device: torch.device, norm: int, dtype: torch.dtype
) -> None:
    x = get_case("single_pixels").embeddings.to(device, dtype)
    labels = get_case("single_pixels").labels.to(device)
    terms, grad = terms_and_grad(x, labels, norm=norm, delta_var=0.0, beta=0.0, gamma=0.0)
    assert torch.equal(terms.variance, torch.zeros_like(terms.variance))
    assert torch.equal(grad, torch.zeros_like(grad))


# --- ids ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", [(0, 1), (-1, 0), (INT64_MIN, INT64_MAX), (2**40, 2**40 + 2**32)])
def test_no_id_is_a_sentinel(device: torch.device, ids: tuple[int, int]) -> None:
    x = get_case("two_instances").embeddings.to(device)
    labels = get_case("two_instances").labels
    renamed = torch.where(labels == 1, ids[0], ids[1]).to(device)
    plain, plain_grad = terms_and_grad(x, labels.to(device))
    for ignored in (None, (), 12345):
        terms, grad = terms_and_grad(x, renamed, ignore_label=ignored)
        torch.testing.assert_close(list(terms), list(plain), rtol=1e-13, atol=0)
        torch.testing.assert_close(grad, plain_grad)


def test_ids_that_agree_in_their_low_bits_are_different(device: torch.device) -> None:
    x = torch.randn(1, 2, 64, dtype=torch.float64, device=device)
    number = torch.arange(64, device=device)[None] % 8
    terms, _ = terms_and_grad(x, number)
    for shift in (8, 16, 32, 48, 60):
        shifted, _ = terms_and_grad(x, number << shift)
        torch.testing.assert_close(list(shifted), list(terms), rtol=1e-13, atol=0)


def test_minus_one_is_not_255_and_two_to_the_40_is_not_0(device: torch.device) -> None:
    x = get_case("two_instances").embeddings.to(device)
    labels = get_case("two_instances").labels.to(device)
    for dtype, ids, ignored in (
        (torch.uint8, (255, 0), (-1, 256)),
        (torch.uint16, (65535, 0), (-1, 65536)),
        (torch.int8, (-1, 0), (255, 256)),
        (torch.int32, (-1, 0), (2**40, 2**32 - 1)),
    ):
        renamed = torch.where(labels == 1, ids[0], ids[1]).to(dtype)
        terms, _ = terms_and_grad(x, renamed, ignore_label=ignored, delta_dist=9.0)
        assert (terms.distance > 0).all(), dtype  # both ids are there
        terms, _ = terms_and_grad(x, renamed, ignore_label=ids[0], delta_dist=9.0)
        assert torch.equal(terms.distance, torch.zeros_like(terms.distance)), dtype


def test_minus_one_and_zero_among_many_ids(device: torch.device) -> None:
    """Whatever place a table keeps for a special id, no other id may be found there."""
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(INT64_MIN, INT64_MAX, (40,), generator=generator)
        ids[:3] = torch.tensor([-1, 0, INT64_MIN])
        x = torch.randn(1, 2, 120, generator=generator, dtype=torch.float64).to(device)
        number = torch.arange(120) * 7 % 40
        rank = ids.argsort().argsort()[number] + 3
        terms, _ = terms_and_grad(x, ids[number][None].to(device))
        plain, _ = terms_and_grad(x, rank[None].to(device))
        torch.testing.assert_close(list(terms), list(plain), rtol=1e-13, atol=0)


# --- NaN and inf ----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "padded"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_inf_propagate_and_stay_in_their_image(
    device: torch.device, value: float, norm: int, dtype: torch.dtype, layout: str
) -> None:
    case = get_case("several_ignored")
    x = case.embeddings.to(device, dtype, copy=True)
    labels = case.labels.to(device)
    options = {**case.options, "norm": norm}
    clean, clean_grad = terms_and_grad(LAYOUTS[layout](x), labels, **options)
    ignored = labels == 0
    x.movedim(1, -1)[ignored] = value  # these must not matter
    pixel = (labels[0] == 5).nonzero()[3].tolist()
    x[0, 2, pixel[0], pixel[1]] = value
    terms, grad = terms_and_grad(LAYOUTS[layout](x), labels, **options)

    for name in ("loss", "variance", "regularization"):
        assert not getattr(terms, name)[0].isfinite(), name
    # A mean at infinity is too far from any other to be pushed; one that is NaN is not.
    plain: Any = reference.discriminative_loss(
        x, labels, reduction="none", return_terms=True, **options
    )
    torch.testing.assert_close(terms.distance[0], plain.distance[0], equal_nan=True)
    assert terms.distance[0].isnan() == math.isnan(value)
    of_instance = (labels[0] == 5).expand_as(grad[0])
    assert not grad[0][of_instance].isfinite().any()

    ignored |= (labels == 3) | (labels == 7)
    assert torch.equal(grad.movedim(1, -1)[ignored], torch.zeros_like(grad.movedim(1, -1)[ignored]))
    torch.testing.assert_close([t[1] for t in terms], [t[1] for t in clean], rtol=0, atol=0)
    torch.testing.assert_close(grad[1], clean_grad[1], rtol=0, atol=0)


@pytest.mark.parametrize("term", ["variance", "distance", "regularization"])
@pytest.mark.parametrize("norm", [1, 2])
def test_nan_reaches_the_gradient_through_each_term(
    device: torch.device, norm: int, term: str
) -> None:
    x = get_case("image_d16").embeddings.to(device, torch.float32, copy=True)
    labels = get_case("image_d16").labels.to(device)
    first = labels[0] == labels[0, 0, 0]
    x[0, :, 0, 0] = torch.nan
    leaf = x.requires_grad_()
    terms = discriminative_loss(leaf, labels, norm=norm, reduction="none", return_terms=True)
    (grad,) = torch.autograd.grad(getattr(terms, term).sum(), leaf)
    assert grad[0][:, first].isnan().all()
    assert grad[1].isfinite().all()


@pytest.mark.parametrize("channel", [0, 15])
@pytest.mark.parametrize("values", [[torch.nan], [torch.inf], [torch.inf, torch.inf]])
def test_means_that_are_not_finite_meet_all_others(
    device: torch.device, values: list[float], channel: int
) -> None:
    """However far apart the means are: in one channel they are NaN, or both infinite."""
    labels = torch.arange(60, device=device)[None] // 10
    x = torch.zeros(1, 16, 60, device=device)
    x[0, 1] = 100.0 * labels[0]
    for instance, value in enumerate(values):
        x[0, channel, 10 * instance] = value
    expected: Any = reference.discriminative_loss(x, labels, return_terms=True)
    # A small batch, and one that has room for too many instances to be small.
    for max_instances in (6, 600):
        terms = discriminative_loss(x, labels, return_terms=True, max_instances=max_instances)
        assert terms.distance.isnan() == (values != [torch.inf])
        torch.testing.assert_close(terms.distance, expected.distance, equal_nan=True)


@pytest.mark.parametrize("norm", [1, 2])
def test_a_nan_where_no_hinge_is_open(device: torch.device, norm: int) -> None:
    """Nothing else asks for the pull: it must not be left out."""
    x = torch.zeros(1, 3, 70, device=device)
    x[0, 1, 69] = torch.nan
    labels = torch.arange(70, device=device)[None] // 60
    terms, grad = terms_and_grad(x, labels, norm=norm)
    assert terms.variance.isnan().all()
    assert grad[..., 60:].isnan().all()


# --- memory ---------------------------------------------------------------------------------------

# A page that may not be touched follows the last element of the embeddings, of the labels and of
# the gradient, and another one precedes the first, one after the other.
GUARDED = """
import ctypes, mmap, sys
import torch
from support.budget import LAYOUTS
from discloss_cuda import discriminative_loss

torch.set_num_threads(1)
libc = ctypes.CDLL(None, use_errno=True)
page = mmap.PAGESIZE
behind = True
gradients = 0

def guarded(shape, strides, dtype):
    elements = 1 + sum((n - 1) * s for n, s in zip(shape, strides))
    used = elements * dtype.itemsize
    size = -(-used // page) * page
    memory = mmap.mmap(-1, size + 2 * page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for guard in (address, address + page + size):
        assert libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0) == 0
    offset = page + (size - used if behind else 0)
    flat = torch.frombuffer(memory, dtype=dtype, count=elements, offset=offset)
    return flat.as_strided(shape, strides)

def guarded_copy(x):
    return guarded(x.shape, x.stride(), x.dtype).copy_(x)

# What the ops allocate their gradient by.
def empty_like(x, memory_format=None, **options):
    global gradients
    gradients += 1
    like = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
    like = torch.empty_like(like, memory_format=memory_format or torch.preserve_format)
    return guarded(like.shape, like.stride(), like.dtype)

allocation = torch.library.Library("aten", "IMPL")
allocation.impl("empty_like", empty_like, "CPU")

for dim in (1, 2, 3, 7, 8, 12, 13, 16, 17, 20, 40, 70):
    for pixels in ((1,), (7,), (67,), (515,), (13, 31)):
        for layout in ("contiguous", "channels_last", "cropped_channels_last"):
            for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
                for behind in (True, False):
                    count = torch.Size(pixels).numel()
                    labels = torch.arange(2 * count).reshape(2, *pixels) // 5 % 4
                    labels = guarded_copy(labels.to(torch.uint8))
                    x = LAYOUTS[layout](torch.randn(2, dim, *pixels).to(dtype))
                    x = guarded_copy(x).requires_grad_()
                    loss = discriminative_loss(x, labels, ignore_label=3)
                    gradients = 0
                    torch.autograd.grad(loss, x)
                    assert gradients > 0
print("finished")
"""


def test_nothing_is_touched_beyond_the_inputs_and_the_gradient() -> None:
    tests = Path(__file__).parent
    folders = [str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    result = subprocess.run(
        [sys.executable, "-c", GUARDED], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "finished"


# --- half precision -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", HALF)
def test_sums_beyond_the_range_of_half(device: torch.device, dtype: torch.dtype) -> None:
    """An instance whose sum, and whose squared distances, float16 cannot hold."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 700, generator=generator, dtype=torch.float64) * 300 + 500
    labels = (torch.arange(700) >= 690).long().expand(2, 700)
    case = Case(x, labels)
    assert x[..., :690].sum(-1).min() > 4 * 65504
    for layout in ("contiguous", "channels_last"):
        outcome = run(*FUNCTIONS, case, LAYOUTS[layout](x.to(device, dtype)))
        assert_within_budget(case, outcome, layout=layout)


@pytest.mark.parametrize("norm", [1, 2])
def test_a_norm_whose_square_underflows_counts_as_zero(device: torch.device, norm: int) -> None:
    """In value as in gradient; the sum of absolute values has no square."""
    x = torch.full((1, 4, 1, 5), 1e-25, device=device).requires_grad_()
    labels = torch.zeros(1, 1, 5, dtype=torch.int64, device=device)
    for function in (discriminative_loss, reference.discriminative_loss):
        terms = function(x, labels, norm=norm, gamma=1.0, return_terms=True)
        (gradient,) = torch.autograd.grad(terms.loss, x)
        if norm == 2:
            assert terms.regularization.item() == 0
            assert torch.equal(gradient, torch.zeros_like(x))
        else:
            assert terms.regularization.item() == pytest.approx(4e-25, rel=1e-6)
            torch.testing.assert_close(gradient, torch.full_like(x, 0.2))
