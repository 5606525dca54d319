"""The interpreter that runs what nvcc compiles: its arithmetic is that of numpy, right kernels pass
under every schedule, and each kind of mistake is reported."""

from __future__ import annotations

from collections.abc import Iterator
from ctypes import c_int, c_void_p
from typing import Any

import numpy as np
import ptx
import pytest
import torch
from numpy.typing import NDArray
from ptx import Interpreter

# Mistakes of sample_kernels.cu.
(
    NONE,
    NO_BARRIER,
    NOT_INITIALISED,
    READ_OUTSIDE_BUFFER,
    WRITE_OUTSIDE_BUFFER,
    OUTSIDE_SHARED_MEMORY,
    MISALIGNED,
    TWO_BARRIERS,
    ABSENT_LANE,
    NOT_IN_MASK,
    DEADLOCK,
    TRAP,
) = range(12)

WAIT_WITHOUT_ARRIVAL, TWO_ARRIVALS, NO_CLUSTER_BARRIER = 1, 2, 3

SUCCESS, INVALID_VALUE, LAUNCH_FAILURE = 0, 1, 719  # cudaError_t
SEEDS = range(20)
CAPABILITIES = tuple(ptx.ARCHITECTURES)


@pytest.fixture
def device() -> Iterator[Interpreter]:
    samples = ptx.samples()
    samples.configure()
    yield samples
    samples.reset()


def call(device: Interpreter, name: str, *arguments: NDArray[Any] | int) -> int:
    """The error of a launch; kernels may touch its arrays."""
    given = [each for each in arguments if isinstance(each, np.ndarray)]
    with device.given([(each.ctypes.data, each.nbytes) for each in given]):
        converted = [
            c_void_p(each.ctypes.data) if isinstance(each, np.ndarray) else c_int(each)
            for each in arguments
        ]
        return int(getattr(device.library, name)(*converted))


def run_scan(device: Interpreter, mistake: int = NONE) -> bool:
    """Whether the sums are right; they are exact in any order."""
    x = np.random.default_rng(0).integers(-8, 8, 256).astype(np.float32)
    out = np.zeros_like(x)
    assert call(device, "sample_scan", x, out, mistake) == SUCCESS, device.last_message
    return bool(np.array_equal(out, np.cumsum(x)))


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_right_kernel_is_right_under_every_schedule(device: Interpreter, capability: int) -> None:
    for seed in SEEDS:
        device.configure(seed=seed, compute_capability=capability)
        assert run_scan(device)
        assert device.launches == 1


def test_what_nobody_has_written_is_not_a_number(device: Interpreter) -> None:
    for seed in SEEDS:
        device.configure(seed=seed)
        assert not run_scan(device, NOT_INITIALISED)


def test_missing_barrier_is_found_under_every_schedule(device: Interpreter) -> None:
    for seed in SEEDS:
        device.configure(seed=seed)
        x = np.zeros(256, np.float32)
        assert call(device, "sample_scan", x, x.copy(), NO_BARRIER) == LAUNCH_FAILURE
        assert "race: another warp comes to the same shared memory" in device.last_message


def test_same_seed_is_same_schedule(device: Interpreter) -> None:
    def places() -> list[str]:
        messages = []
        for seed in SEEDS:
            device.configure(seed=seed)
            x = np.zeros(256, np.float32)
            call(device, "sample_scan", x, x.copy(), NO_BARRIER)
            messages.append(device.last_message)
        return messages

    first = places()
    assert places() == first
    assert len({message.partition("race")[0] for message in first}) > 4


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (READ_OUTSIDE_BUFFER, "`ld.global.f32"),
        (READ_OUTSIDE_BUFFER, "are not allocated"),
        (WRITE_OUTSIDE_BUFFER, "`st.global.u32"),
        (OUTSIDE_SHARED_MEMORY, "4 bytes at 256 of the block's 256 bytes of shared memory"),
        (MISALIGNED, "is not aligned to 8 bytes"),
        (TWO_BARRIERS, "a part of a warp waits at another barrier"),
        (ABSENT_LANE, "reads from lane 20, which does not take part"),
        (NOT_IN_MASK, "whose mask does not name it"),
        (DEADLOCK, "deadlock: "),
        (TRAP, "trap a number is 0"),
    ],
)
def test_mistake_fails_the_launch(
    device: Interpreter, mistake: int, message: str, capability: int
) -> None:
    for seed in SEEDS:
        device.configure(seed=seed, compute_capability=capability)
        data = np.zeros(64, np.float32)
        assert call(device, "sample_mistake", data, mistake) == LAUNCH_FAILURE
        assert message in device.last_message
        assert "mistake_kernel" in device.last_message


def test_right_access_and_repair(device: Interpreter) -> None:
    data = np.zeros(64, np.float32)
    assert call(device, "sample_mistake", data, TRAP) == LAUNCH_FAILURE
    assert call(device, "sample_mistake", data, NONE) == LAUNCH_FAILURE
    device.reset()
    assert call(device, "sample_mistake", data, NONE) == SUCCESS
    assert data.tolist() == [1] * 64
    assert call(device, "sample_mistake", data, TRAP) == SUCCESS


def test_memory_is_given_for_one_call(device: Interpreter) -> None:
    data = np.zeros(64, np.float32)
    assert call(device, "sample_mistake", data, NONE) == SUCCESS
    assert device.library.sample_mistake(c_void_p(data.ctypes.data), c_int(NONE)) == LAUNCH_FAILURE
    assert "are not allocated" in device.last_message


def test_unknown_instruction_fails_the_launch(device: Interpreter) -> None:
    assert call(device, "sample_sine", np.zeros(64, np.float32)) == LAUNCH_FAILURE
    assert "sine_kernel" in device.last_message
    assert "unknown instruction: sin.approx.f32" in device.last_message


def run_cluster(device: Interpreter, mistake: int = NONE, cluster: int = 4) -> int:
    """The error of the launch; where there is none, the sums are right."""
    numbers, sums = np.zeros(12, np.int32), np.zeros(12, np.int32)
    error = call(device, "sample_cluster", numbers, sums, 12, cluster, mistake)
    if error == SUCCESS and mistake == NONE:
        expected = np.arange(12).reshape(-1, cluster).sum(1).repeat(cluster)
        np.testing.assert_array_equal(sums, expected)
    return error


@pytest.mark.parametrize("resident_blocks", [1, 6])
def test_blocks_of_a_cluster_wait_for_each_other(device: Interpreter, resident_blocks: int) -> None:
    for seed in SEEDS:
        device.configure(seed=seed, resident_blocks=resident_blocks)
        assert run_cluster(device) == SUCCESS, device.last_message
    device.configure(compute_capability=8)
    assert run_cluster(device) == INVALID_VALUE


@pytest.mark.parametrize(
    ("mistake", "message"),
    [(WAIT_WITHOUT_ARRIVAL, "without having arrived"), (TWO_ARRIVALS, "arrives twice")],
)
def test_mistake_of_a_cluster_fails_the_launch(
    device: Interpreter, mistake: int, message: str
) -> None:
    for seed in SEEDS:
        device.configure(seed=seed)
        assert run_cluster(device, mistake) == LAUNCH_FAILURE
        assert message in device.last_message


def test_arithmetic_is_that_of_numpy(device: Interpreter) -> None:
    count = 65536
    generator = np.random.default_rng(0)
    a, b, c = (special_floats(generator, count) for _ in range(3))
    i, j = (generator.integers(-(2**31), 2**31, count).astype(np.int32) for _ in range(2))
    i[:] = (i & ~0xFFFF) | np.arange(count)  # every half
    expected = arithmetic(a, b, c, i, j)
    out = np.zeros((len(expected), count), np.uint32)
    assert call(device, "sample_arithmetic", a, b, c, i, j, count, out) == SUCCESS
    for ours, (name, truth) in zip(out, expected.items(), strict=True):
        bits = truth.view(np.uint32) if truth.dtype == np.float32 else truth.astype(np.uint32)
        wrong = ours != bits
        if truth.dtype == np.float32:
            wrong &= ~(np.isnan(truth) & np.isnan(ours.view(np.float32)))
        assert not wrong.any(), (name, a[wrong][0], b[wrong][0], i[wrong][0], j[wrong][0])


def special_floats(generator: np.random.Generator, count: int) -> NDArray[np.float32]:
    """Of every size; zeros, infinities, NaN and what is halfway between two halves among them."""
    x = generator.standard_normal(count) * 2.0 ** generator.integers(-30, 20, count)
    with np.errstate(over="ignore"):
        halves = generator.standard_normal(count).astype(np.float16)
    x[::3] = (halves + np.spacing(halves).astype(np.float64) / 2)[::3]
    x[:5] = [0.0, -0.0, np.inf, -np.inf, np.nan]
    return generator.permutation(x.astype(np.float32))


def arithmetic(
    a: NDArray[np.float32],
    b: NDArray[np.float32],
    c: NDArray[np.float32],
    i: NDArray[np.int32],
    j: NDArray[np.int32],
) -> dict[str, NDArray[Any]]:
    """The functions of sample_kernels.cu, in its order."""
    u, v = i.view(np.uint32), j.view(np.uint32)
    i64, j64, u64, v64 = i.astype(np.int64), j.astype(np.int64), u.astype(object), v.astype(object)
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    modulus = 2**32
    with np.errstate(all="ignore"):
        quotient = np.trunc(i64 / (j64 | 1)).astype(np.int64)
        bits = [f"{x:032b}" for x in u.tolist()]
        byte = [(v, 5 - 4), (u, 1), (v, 6 - 4), (u, 2)]  # of the selectors 0x2615, lowest first
        return {
            "add": a + b,
            "sub": a - b,
            "mul": a * b,
            "fma": fused(a, b, c),
            "div": a / b,
            "sqrt": np.sqrt(np.abs(a)),
            "compare": (a < b) | (a == c) * 2 | ~(a >= b) * 4,
            "add_int": i64 + j64 & modulus - 1,
            "mul_int": np.array(u64 * v64 % modulus, np.uint64),
            "mulhi": (i64 * j64 >> 32) & modulus - 1,
            "umulhi": np.array(u64 * v64 // modulus, np.uint64),
            "div_int": quotient & modulus - 1,
            "rem": u % (v | 1),
            "min": np.minimum(i, j).view(np.uint32),
            "max": np.maximum(u, v),
            "shl": np.where(v % 40 < 32, u << np.minimum(v % 40, 31), 0),
            "shr": (i >> (v % 32).astype(np.int32)).view(np.uint32),
            "brev": np.array([int(x[::-1], 2) for x in bits]),
            "popc": np.array([x.count("1") for x in bits]),
            "clz": np.array([len(x) - len(x.lstrip("0")) for x in bits]),
            "prmt": sum((x >> np.uint32(8 * n) & 0xFF) << 8 * k for k, (x, n) in enumerate(byte)),
            "mul_wide": (i64 * j64 >> 13) & modulus - 1,
            "to_half": half_bits(torch.float16, a),
            "to_bfloat16": half_bits(torch.bfloat16, a),
            "of_half": of_bits(torch.float16, u),
            "of_bfloat16": of_bits(torch.bfloat16, u),
            "of_int": i.astype(np.float32),
            "of_double": (a64 * b64).astype(np.float32),
            "truncate": truncated(a64),
        }


def fused(a: NDArray[Any], b: NDArray[Any], c: NDArray[Any]) -> NDArray[np.float32]:
    """a b + c, rounded once: the product is exact in float64, the sum is rounded to odd there."""
    product, addend = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    total = product + addend
    small = total - product
    error = (product - (total - small)) + (addend - small)
    inexact = (error != 0) & np.isfinite(total)
    even = total.view(np.int64) & 1 == 0
    towards = np.where(error > 0, np.inf, -np.inf)
    odd = np.where(inexact & even, np.nextafter(total, towards), total)
    return odd.astype(np.float32)


def half_bits(dtype: torch.dtype, x: NDArray[np.float32]) -> NDArray[np.int64]:
    """A NaN is 0x7fff on a device."""
    bits = torch.from_numpy(x).to(dtype).view(torch.int16).numpy().astype(np.int64) & 0xFFFF
    return np.where(np.isnan(x), 0x7FFF, bits)


def of_bits(dtype: torch.dtype, bits: NDArray[np.uint32]) -> NDArray[np.float32]:
    low = torch.from_numpy(bits.astype(np.uint16).view(np.int16))
    return low.view(dtype).float().numpy()


def truncated(x: NDArray[np.float64]) -> NDArray[np.int64]:
    """The low 32 bits of the nearest int64 towards 0; of NaN, those of the least int64."""
    least, greatest = -(2**63), 2**63 - 1
    whole = [least if n != n else greatest if n >= 2**63 else int(max(n, least)) for n in x]
    return np.array([n % 2**32 for n in whole])
