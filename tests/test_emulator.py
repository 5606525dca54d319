"""The emulator that runs the CUDA kernels without a GPU: right kernels pass under every schedule,
and each kind of mistake is reported."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ctypes import (
    POINTER,
    c_bool,
    c_char_p,
    c_float,
    c_int,
    c_longlong,
    c_size_t,
    c_uint,
    c_ulonglong,
)
from typing import Any

import emulator
import numpy as np
import pytest
from emulator import Emulator
from numpy.typing import NDArray

# Mistakes of sample_kernels.cu.
(
    NONE,
    NO_BARRIER_BEFORE_READ,
    NO_BARRIER_BEFORE_REUSE,
    NOT_INITIALISED,
    PLAIN_ADD_SHARED,
    PLAIN_ADD_GLOBAL,
    DIVERGENT_BARRIER,
    ABSENT_LANE,
    NOT_IN_MASK,
    DIFFERENT_MASKS,
    DIFFERENT_OPERATIONS,
    DEADLOCK,
    OUTSIDE_SHARED_MEMORY,
    MISALIGNED,
    MISALIGNED_LDG,
    NULL_POINTER,
    WILD_POINTER,
    OUTSIDE_ARRAY,
    TRAP,
) = range(19)

(
    NO_MISTAKE,
    NO_CLUSTER_BARRIER_BEFORE_READ,
    NO_CLUSTER_BARRIER_BEFORE_REUSE,
    READ_OF_ANOTHER_CLUSTER,
    WAIT_WITHOUT_ARRIVAL,
    TWO_ARRIVALS,
    BLOCK_BARRIER_INSTEAD,
) = range(7)

# cudaError_t
SUCCESS, INVALID_VALUE, INVALID_CONFIGURATION = 0, 1, 9
INVALID_RESOURCE_HANDLE, LAUNCH_FAILURE, INVALID_CLUSTER_SIZE = 400, 719, 912

SEEDS = range(40)


@pytest.fixture(scope="module")
def samples() -> Emulator:
    """Compiled once; `device` gives it to a test in order."""
    return emulator.samples()


@pytest.fixture
def device(samples: Emulator) -> Iterator[Emulator]:
    samples.configure()
    yield samples
    samples.reset()


def pointer(array: NDArray[Any], kind: Any) -> Any:
    return array.ctypes.data_as(POINTER(kind))


def run_sums(device: Emulator, mistake: int) -> bool:
    """Whether the launch succeeds and the sums are right."""
    generator = np.random.default_rng(0)
    x = generator.integers(-8, 8, 3000).astype(np.float32)  # sums are exact in any order
    bins = generator.integers(0, 5, x.size).astype(np.int32)
    sums, counts = np.zeros(2, np.float32), np.zeros(5, np.int32)
    error = device.library.sample_sums(
        pointer(x, c_float),
        pointer(bins, c_int),
        c_int(x.size),
        pointer(sums, c_float),
        pointer(counts, c_int),
        c_int(counts.size),
        c_int(3),
        c_int(mistake),
    )
    expected = np.array([x.sum(), (x * x).sum()])
    return (
        error == SUCCESS
        and np.array_equal(sums, expected)
        and np.array_equal(counts, np.bincount(bins))
    )


@pytest.mark.parametrize("resident_blocks", [1, 4])
def test_right_kernel_is_right_under_every_schedule(device: Emulator, resident_blocks: int) -> None:
    for seed in SEEDS:
        device.configure(seed=seed, resident_blocks=resident_blocks)
        assert run_sums(device, NONE), device.last_message
        assert device.launches == 1
        assert device.last_message == ""


@pytest.mark.parametrize(
    ("mistake", "at_least"),
    [
        (NO_BARRIER_BEFORE_READ, len(SEEDS)),
        (NO_BARRIER_BEFORE_REUSE, len(SEEDS) // 4),  # needs a warp far ahead of another
        (NOT_INITIALISED, len(SEEDS)),
    ],
)
def test_mistake_gives_wrong_sums(device: Emulator, mistake: int, at_least: int) -> None:
    wrong = 0
    for seed in SEEDS:
        device.configure(seed=seed, find_races=False)
        wrong += not run_sums(device, mistake)
        assert device.last_message == ""
    assert wrong >= at_least


@pytest.mark.parametrize(
    "mistake",
    [NO_BARRIER_BEFORE_READ, NO_BARRIER_BEFORE_REUSE, PLAIN_ADD_SHARED, PLAIN_ADD_GLOBAL],
)
def test_race_is_found_under_every_schedule(device: Emulator, mistake: int) -> None:
    for seed in SEEDS:
        device.configure(seed=seed)
        assert not run_sums(device, mistake)
        place = r"(read|write) .*at \S+/sample_kernels.cu:\d+"
        assert re.search(f"race: {place}, .* {place}", device.last_message)


@pytest.mark.emulated
def test_build_of_the_package_is_not_blind() -> None:
    """The library of the package's kernels reports the mistakes of the samples that are in it."""
    build = emulator.device()
    data = np.zeros(64 + 4, np.float32)
    data = data[(-data.ctypes.data // 4) % 4 :]
    try:
        for seed in range(5):
            build.configure(seed=seed)
            assert run_sums(build, NONE), build.last_message
            for mistake in (NO_BARRIER_BEFORE_READ, PLAIN_ADD_SHARED, PLAIN_ADD_GLOBAL):
                build.configure(seed=seed)
                assert not run_sums(build, mistake)
                assert ": race: " in build.last_message
            build.configure(seed=seed)
            build.library.sample_mistake(pointer(data, c_float), c_int(MISALIGNED))
            assert "is not aligned to 16 bytes" in build.last_message
    finally:
        build.configure()


def test_same_seed_is_same_schedule(device: Emulator) -> None:
    def outcomes() -> list[bool]:
        device.configure(seed=7, find_races=False)
        return [run_sums(device, NO_BARRIER_BEFORE_REUSE) for _ in range(12)]

    first = outcomes()
    assert outcomes() == first
    assert len(set(first)) == 2  # launches after the same seed differ from each other


def test_last_block_sees_all_others(device: Emulator) -> None:
    for seed in SEEDS:
        device.configure(seed=seed)
        counts, ticket = np.zeros(8, np.int32), np.zeros(1, np.uint32)
        error = device.library.sample_last_block(
            pointer(counts, c_int), pointer(ticket, c_uint), c_int(7)
        )
        assert error == SUCCESS
        assert counts.tolist() == [64] * 7 + [7 * 64]


def run_cluster(
    device: Emulator, mistake: int = NO_MISTAKE, *, blocks: int = 12, cluster: int = 4
) -> int:
    """The error of the launch; where there is none, the sums are right."""
    numbers, sums = np.zeros(blocks, np.int32), np.zeros(blocks, np.int32)
    error = device.library.sample_cluster(
        pointer(numbers, c_int),
        pointer(sums, c_int),
        c_int(blocks),
        c_int(cluster),
        c_int(mistake),
    )
    if error == SUCCESS:
        of_cluster = np.arange(blocks).reshape(-1, cluster).sum(1)
        np.testing.assert_array_equal(sums, np.repeat(2 * of_cluster + cluster, cluster))
    return int(error)


@pytest.mark.parametrize("resident_blocks", [1, 6])
def test_blocks_of_a_cluster_wait_for_each_other(device: Emulator, resident_blocks: int) -> None:
    for seed in SEEDS:
        device.configure(seed=seed, resident_blocks=resident_blocks)
        assert run_cluster(device) == SUCCESS, device.last_message


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (NO_CLUSTER_BARRIER_BEFORE_READ, "race: "),
        (NO_CLUSTER_BARRIER_BEFORE_REUSE, "race: "),
        (READ_OF_ANOTHER_CLUSTER, "race: "),
        (WAIT_WITHOUT_ARRIVAL, "without having arrived"),
        (TWO_ARRIVALS, "arrives twice"),
        (BLOCK_BARRIER_INSTEAD, "deadlock: "),
    ],
)
def test_mistake_of_a_cluster_fails_the_launch(
    device: Emulator, mistake: int, message: str
) -> None:
    for seed in SEEDS:
        device.configure(seed=seed, resident_blocks=12)
        assert run_cluster(device, mistake) == LAUNCH_FAILURE
        assert message in device.last_message
        assert "sample_kernels.cu:" in device.last_message


def test_limits_of_a_cluster(device: Emulator) -> None:
    assert run_cluster(device, blocks=8, cluster=8) == SUCCESS
    assert run_cluster(device, blocks=9, cluster=9) == INVALID_CLUSTER_SIZE
    assert run_cluster(device, blocks=9, cluster=4) == INVALID_CLUSTER_SIZE
    device.configure(compute_capability=8)
    assert run_cluster(device) == INVALID_VALUE


def test_hash_table_by_compare_and_swap(device: Emulator) -> None:
    generator = np.random.default_rng(0)
    keys = generator.choice(generator.integers(0, 2**62, 50), 500)
    tables = []
    for seed in range(10):
        device.configure(seed=seed)
        table = np.full(64, 2**64 - 1, np.uint64)
        slots = np.zeros(keys.size, np.int32)
        error = device.library.sample_hash(
            pointer(keys, c_longlong),
            c_int(keys.size),
            pointer(table, c_ulonglong),
            pointer(slots, c_int),
            c_int(table.size),
        )
        assert error == SUCCESS
        assert np.array_equal(table[slots].astype(np.int64), keys)
        tables.append(table.tobytes())
    assert len(set(tables)) > 1  # the order of insertion follows the seed


def test_built_ins(device: Emulator) -> None:
    out = np.zeros((64, 14), np.int32)
    assert device.library.sample_built_ins(pointer(out, c_int), c_int(14)) == SUCCESS
    lane, warp = np.arange(64) % 32, np.arange(64) // 32 * 32
    thirds = sum(1 << i for i in range(0, 32, 3))
    fives = [sum(1 << j for j in range(32) if j // 5 == i // 5) for i in range(32)]
    expected = [
        warp + 3,
        warp + lane // 8 * 8 + (lane + 1) % 8,
        warp + np.where(lane % 16 >= 2, lane - 2, lane),
        warp + np.where(lane % 8 < 3, lane + 5, lane),
        # Lanes beyond the segment of eight are out of reach, those before it are not.
        warp + np.where(lane // 8 % 2 == 1, lane ^ 9, lane),
        warp + (lane ^ 1),
        np.full(64, np.uint32(thirds).astype(np.int32)),
        np.repeat([0, 1], 32),
        np.repeat([1, 0], 32),
        np.array(fives * 2, np.uint32).astype(np.int32),
        np.full(64, 22),
        np.zeros(64),
        np.ones(64),
        warp + np.where(lane < 8, lane ^ 4, lane ^ 1),
    ]
    for column, values in enumerate(expected):
        np.testing.assert_array_equal(out[:, column], values, err_msg=f"column {column}")


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (DIVERGENT_BARRIER, "divergent barrier: "),
        (ABSENT_LANE, "which does not take part"),
        (NOT_IN_MASK, "whose mask 0000ffff does not name it"),
        (DIFFERENT_MASKS, "while lanes"),
        (DIFFERENT_OPERATIONS, "wait in a different one"),
        (DEADLOCK, "deadlock: "),
        (OUTSIDE_SHARED_MEMORY, "wrote outside its 256 bytes of shared memory"),
        (MISALIGNED, "is not aligned to 16 bytes"),
        (MISALIGNED_LDG, "is not aligned to 16 bytes"),
        (NULL_POINTER, "null pointer"),
        (WILD_POINTER, "illegal memory access"),
        (OUTSIDE_ARRAY, "index outside the array"),
        (TRAP, r"thread \(5,0,0\): __trap\(\)"),
    ],
)
def test_mistake_fails_the_launch(device: Emulator, mistake: int, message: str) -> None:
    data = np.zeros(64 + 4, np.float32)
    data = data[(-data.ctypes.data // 4) % 4 :]  # on a multiple of 16 bytes
    device.library.sample_error_string.restype = c_char_p
    for seed in range(5):
        device.configure(seed=seed)
        arguments = (pointer(data, c_float), c_int(mistake))
        assert device.library.sample_mistake(*arguments) == LAUNCH_FAILURE
        text = device.library.sample_error_string(c_int(LAUNCH_FAILURE)).decode()
        assert text == f"cudaErrorLaunchFailure: {device.last_message}"
        assert re.search(message, text)
        assert f"[seed {seed}, launch 1]" in text
        if "illegal memory access" not in text and mistake != OUTSIDE_SHARED_MEMORY:
            assert "sample_kernels.cu:" in text

        # As on a device, nothing works any more, until the test repairs it.
        assert not run_sums(device, NONE)
        device.reset()
        assert run_sums(device, NONE)


def launch(
    device: Emulator,
    *,
    blocks: int = 1,
    threads: int = 32,
    shared_bytes: int = 4096,
    set_attribute: bool = False,
    on_other_stream: bool = False,
) -> int:
    data = np.zeros(2048, np.float32)
    error = device.library.sample_launch(
        pointer(data, c_float),
        c_int(blocks),
        c_int(threads),
        c_size_t(shared_bytes),
        c_bool(set_attribute),
        c_bool(on_other_stream),
    )
    if error == SUCCESS:
        # Shared memory that nobody has written is NaN.
        assert np.isnan(data[:threads]).all()
        assert not np.isnan(data[threads:]).any()
    return int(error)


def test_limits_of_a_launch(device: Emulator) -> None:
    assert launch(device) == SUCCESS
    assert launch(device, threads=1024) == SUCCESS
    assert launch(device, threads=1025) == INVALID_CONFIGURATION
    assert launch(device, threads=0) == INVALID_CONFIGURATION
    assert launch(device, blocks=0) == INVALID_CONFIGURATION
    assert launch(device, shared_bytes=48 * 1024) == SUCCESS
    assert launch(device, shared_bytes=48 * 1024 + 1) == INVALID_VALUE
    assert launch(device, shared_bytes=227 * 1024, set_attribute=True) == SUCCESS
    assert launch(device, shared_bytes=227 * 1024 + 1, set_attribute=True) == INVALID_VALUE
    device.configure(shared_memory_per_block=64 * 1024)
    assert launch(device, shared_bytes=64 * 1024 + 1, set_attribute=True) == INVALID_VALUE
    assert launch(device, shared_bytes=64 * 1024) == INVALID_VALUE  # without the attribute
    assert launch(device, shared_bytes=64 * 1024, set_attribute=True) == SUCCESS
    assert "65536 allowed" not in device.last_message


def test_other_stream_is_refused(device: Emulator) -> None:
    assert launch(device, on_other_stream=True) == INVALID_RESOURCE_HANDLE
    assert device.last_message == "a launch is not on the current stream"
    data = np.ones(1, np.float32)
    memset = device.library.sample_memset
    assert memset(pointer(data, c_float), c_bool(True)) == INVALID_RESOURCE_HANDLE
    assert data[0] == 1
    assert memset(pointer(data, c_float), c_bool(False)) == SUCCESS
    assert data[0] == 0
