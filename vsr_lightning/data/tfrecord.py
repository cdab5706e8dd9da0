"""TFRecord files without TensorFlow: the framing of records, and the tf.train.Example in one.

A file is a sequence of records, each of them: length (uint64), masked CRC-32C of the length (uint32), data, masked
CRC-32C of the data (uint32), integers little-endian: https://www.tensorflow.org/tutorials/load_data/tfrecord
"""

import itertools
import struct
from collections.abc import Iterator, Mapping
from typing import IO, Any

import google_crc32c

from vsr_lightning.errors import UserError

HEADER = struct.Struct("<QI")
FOOTER = struct.Struct("<I")
OVERHEAD = HEADER.size + FOOTER.size  # bytes of a record beside its data


def read_records(stream: IO[bytes], name: str) -> Iterator[bytes]:
    """The data of one record after another, each verified. Memory holds one of them.

    Raises UserError, with `name` and the number of the record (from 0), where the stream is damaged or ends early.
    """
    for number in itertools.count():
        header = stream.read(HEADER.size)
        if not header:
            return
        where = f"{name}: record {number}"
        # An altered length is found before it is believed: it may be any number of bytes.
        length, length_crc = HEADER.unpack(_whole(header, HEADER.size, where))
        _check(header[:8], length_crc, f"{where}: its length")
        data = _whole(stream.read(length), length, where)
        (data_crc,) = FOOTER.unpack(_whole(stream.read(FOOTER.size), FOOTER.size, where))
        _check(data, data_crc, where)
        yield data


def parse_example(record: bytes, name: str) -> Mapping[str, Any]:
    """The features of a tf.train.Example by their key, as protocol buffers. Raises UserError with `name`."""
    # Local: importing tensorflow_datasets takes half a second. It does not import TensorFlow.
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_generated_pb2

    try:
        return tf_example_generated_pb2.Example.FromString(record).features.feature
    except DecodeError as error:
        raise UserError(f"{name}: not a tf.train.Example") from error


def masked_crc32c(data: bytes) -> int:
    """The checksum of data as TFRecord files hold it: rotated right by 15 bits, plus a constant.

    So that data which holds its own checksum, as files of files do, has no degenerate one.
    """
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _whole(data: bytes, length: int, where: str) -> bytes:
    if len(data) < length:
        raise UserError(f"{where}: truncated; get the file again")
    return data


def _check(data: bytes, masked_crc: int, where: str) -> None:
    if masked_crc32c(data) != masked_crc:
        raise UserError(f"{where} has a wrong checksum, so the file is damaged; get it again")
