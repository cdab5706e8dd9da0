"""The TFRecord reader against records framed here, with a CRC-32C of our own, and against every kind of damage."""

import io
import struct
import subprocess
import sys

import numpy as np
import pytest

from vsr_lightning.data.tfrecord import OVERHEAD, masked_crc32c, parse_example, read_records
from vsr_lightning.errors import UserError

RECORDS = [b"first", b"", np.random.default_rng(0).bytes(300)]


def crc32c(data: bytes) -> int:
    """Bit by bit, with the reversed Castagnoli polynomial (RFC 3720, B.4)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15) + (crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) % 2**32)


def framed(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + masked(length) + data + masked(data)


def read(content: bytes) -> list[bytes]:
    return list(read_records(io.BytesIO(content), "traj.tfrecords"))


def test_checksum():
    assert crc32c(b"123456789") == 0xE3069283  # the check value of the catalogues of CRCs
    for data in RECORDS:
        assert struct.pack("<I", masked_crc32c(data)) == masked(data)


def test_records_are_read_as_they_were_written():
    content = b"".join(map(framed, RECORDS))
    assert read(content) == RECORDS
    assert len(content) == sum(len(data) + OVERHEAD for data in RECORDS)
    assert read(b"") == []


def test_records_are_read_one_at_a_time():
    stream = io.BytesIO(framed(b"first") + b"rubbish")
    records = read_records(stream, "traj.tfrecords")
    assert next(records) == b"first"
    assert stream.tell() == len(framed(b"first"))


@pytest.mark.parametrize(
    ("place", "what"),
    [(0, "its length"), (7, "its length"), (8, "its length"), (12, "checksum"), (-5, "checksum"), (-1, "checksum")],
    ids=["length", "length, high byte", "its checksum", "data", "end of data", "their checksum"],
)
def test_an_altered_byte_is_found_and_its_record_named(place, what):
    damaged = bytearray(framed(b"the second record"))
    damaged[place] ^= 0x40
    with pytest.raises(UserError, match=f"^traj.tfrecords: record 1.*{what}"):
        read(framed(b"first") + bytes(damaged))


@pytest.mark.parametrize("kept", [1, 11, 12, 20, -4, -1])
def test_a_lost_end_is_found_and_its_record_named(kept):
    with pytest.raises(UserError, match="^traj.tfrecords: record 1: truncated"):
        read(framed(b"first") + framed(b"the second record")[:kept])


def test_example():
    numbers = struct.pack("<2f", 0.5, -2)
    image = b"\x0a\x05\x0a\x03RGB"  # Feature { bytes_list { value: "RGB" } }
    state = b"\x12\x0a\x0a\x08" + numbers  # Feature { float_list { value: [0.5, -2] } }
    entries = [b"\x0a\x01i\x12\x07" + image, b"\x0a\x01s\x12\x0c" + state]  # map entries { key, value }
    features = b"".join(b"\x0a" + bytes([len(entry)]) + entry for entry in entries)
    parsed = parse_example(b"\x0a" + bytes([len(features)]) + features, "record")
    assert set(parsed) == {"i", "s"}
    assert parsed["i"].bytes_list.value == [b"RGB"]
    assert parsed["s"].float_list.value == [0.5, -2]


def test_what_is_no_example_is_named():
    with pytest.raises(UserError, match="traj.tfrecords: record 7: not a tf.train.Example"):
        parse_example(b"\x0a\xff", "traj.tfrecords: record 7")


def test_tensorflow_is_not_imported():
    code = (
        "import sys; from vsr_lightning.data.tfrecord import parse_example\n"
        "assert 'tensorflow_datasets' not in sys.modules\n"  # slow, so not before it is needed
        "parse_example(b'', ''); assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
