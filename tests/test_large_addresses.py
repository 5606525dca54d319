"""The kernels' address arithmetic where elements number more than 2^31: called from the host, since
no tensor of that size fits into a test."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import pytest
from emulator.build import HERE, build, emulator_sources, kernel_source


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    source = kernel_source(HERE / "addresses.cu")
    return ctypes.CDLL(str(build("addresses", [*emulator_sources(), source])))


def function(library: ctypes.CDLL, name: str) -> Callable[..., int]:
    found = getattr(library, name)
    found.restype = ctypes.c_int64
    return lambda *arguments: int(found(*(ctypes.c_int64(argument) for argument in arguments)))


@pytest.mark.parametrize(
    ("image", "tile", "channel", "channels", "pixels"),
    [
        (0, 3, 5, 16, 2**12),
        (0, 3, 63, 64, 2**27),  # the channel lies far away
        (0, 2**23, 7, 64, 2**33),  # the tile
        (70000, 2, 9, 64, 2**12),  # the image
    ],
)
def test_where_a_tile_begins(
    library: ctypes.CDLL, image: int, tile: int, channel: int, channels: int, pixels: int
) -> None:
    tile_offset = function(library, "tile_offset")
    size, pixel = channels * pixels, tile * 512
    contiguous = tile_offset(image, tile, channel, pixels, size, pixels, 1)
    assert contiguous == image * size + channel * pixels + pixel
    channels_last = tile_offset(image, tile, channel, pixels, size, 1, channels)
    assert channels_last == image * size + pixel * channels + channel


@pytest.mark.parametrize("line", [2**10, 2**26, 2**31, 2**40])
def test_last_vector_of_a_tile(library: ctypes.CDLL, line: int) -> None:
    last_offset = function(library, "last_offset")
    assert last_offset(64, line, 1) == 63 * line + 511
    assert last_offset(64, 1, line) == 511 * line + 63


@pytest.mark.parametrize("images", [1, 3, 70000])
@pytest.mark.parametrize("pixels", [2**12, 2**33])
def test_range_of_the_last_block(library: ctypes.CDLL, images: int, pixels: int) -> None:
    length = 2**20 - 32
    image = ctypes.c_int64()
    found = library.first_pixel_of_last_block
    found.restype = ctypes.c_int64
    sizes = (ctypes.c_int64(size) for size in (images, pixels, length))
    first = found(*sizes, ctypes.byref(image))
    assert divmod((images * pixels - 1) // length * length, pixels) == (image.value, first)
