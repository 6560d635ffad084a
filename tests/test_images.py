"""Images and masks of other depths than 8 bits: read as what they show, or refused, and never clipped."""

import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from semples_plugin.data.images import read_image, read_mask

WIDE = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_of_16_bits_the_upper_8_count(tmp_path, suffix, channels):
    path = tmp_path / f"wide.{suffix}"
    cv2.imwrite(str(path), np.dstack([WIDE] * channels) if channels > 1 else WIDE)
    pixels = read_image(path)
    assert pixels.dtype == np.uint8 and pixels.shape == (64, 64, 3)
    assert all(np.array_equal(pixels[..., channel], WIDE >> 8) for channel in range(3))


@pytest.mark.parametrize(("kind", "named"), [(np.int32, "whole numbers of 32 bits"), (np.float32, "floating-point")])
def test_numbers_without_a_white_are_refused(tmp_path, kind, named):
    Image.fromarray(WIDE.astype(kind)).save(tmp_path / "wide.tif")
    with pytest.raises(ValueError, match=rf"wide\.tif: expected 8 or 16 bits per channel, got {named}"):
        read_image(tmp_path / "wide.tif")


def write_grey(path, row: bytes, bits: int, width: int) -> None:
    """A PNG of one row in grey of 1 to 16 bits."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, 1, bits, 0, 0, 0, 0)
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


def test_class_numbers_are_never_stretched(tmp_path):
    path = tmp_path / "mask.png"
    write_grey(path, bytes([0, 1, 20]), 8, 3)
    assert read_mask(path).tolist() == [[0, 1, 20]]
    for bits, named in ((4, "got grey of 4 bits: save it with 8"), (2, "got grey of 2 bits"), (1, "got bool"),
                        (16, "got uint16")):  # fmt: skip
        write_grey(path, bytes([0x1B, 0x01, 0x01]), bits, max(8 // bits, 1))
        with pytest.raises(ValueError, match=rf"mask\.png: expected .*class numbers in bytes, {named}"):
            read_mask(path)
