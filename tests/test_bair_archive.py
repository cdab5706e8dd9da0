"""What can be wrong with BAIR's archive, met on the whole path: one line that names it, and nothing left behind."""

import tarfile

import numpy as np
import pytest
from making_bair import (
    CONTENTS,
    TRAJECTORIES,
    bytes_feature,
    example,
    features_of,
    fetch,
    field,
    files,
    float_feature,
    framed,
    write_folder,
    write_tar,
)

from vsr_lightning.data.clip_store import ClipStore
from vsr_lightning.errors import UserError


@pytest.fixture
def tar(tmp_path):
    return write_tar(tmp_path / "given" / "archive.tar")


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def test_other_members_of_a_tar_are_passed_over(tmp_path):
    others = {f"train/{name}": b"not a record" for name in ("._traj_0_to_4", "../traj", "deeper/traj")}
    fetch(write_tar(tmp_path / "t.tar", others | CONTENTS))
    assert len(ClipStore("data/bair-train.h5")) == 6


def altered(key: str, value: bytes | None) -> dict[str, bytes]:
    """The archive's contents, with one feature of the second trajectory of a file replaced or left out."""
    features = features_of(TRAJECTORIES["train/traj_5_to_7"][1])
    features[key] = value
    records = [features_of(TRAJECTORIES["train/traj_5_to_7"][0]), {k: v for k, v in features.items() if v is not None}]
    return CONTENTS | {"train/traj_5_to_7": b"".join(framed(example(record)) for record in records)}


RECORD = "train/traj_5_to_7.tfrecords: record 1"
BAD_RECORDS = {
    "no image": (altered("29/image_aux1/encoded", None), f"{RECORD}: has no '29/image_aux1/encoded'"),
    "no action": (altered("3/action", None), f"{RECORD}: has no '3/action'"),
    "no position": (altered("0/endeffector_pos", None), f"{RECORD}: has no '0/endeffector_pos'"),
    "larger image": (
        altered("4/image_aux1/encoded", bytes_feature(bytes(3 * 128 * 128))),
        f"{RECORD}: '4/image_aux1/encoded' is 49,152 bytes, not 64 x 64 x 3",
    ),
    "another frame": (
        altered("30/image_aux1/encoded", bytes_feature(bytes(3 * 64 * 64))),
        f"{RECORD}: has more than 30 frames",
    ),
    "empty image": (altered("4/image_aux1/encoded", b""), f"{RECORD}: '4/image_aux1/encoded' is 0 bytes"),
    "two images": (
        altered("4/image_aux1/encoded", field(1, 2 * field(1, bytes(12_288)))),
        f"{RECORD}: '4/image_aux1/encoded' is 24,576 bytes",
    ),
    "longer action": (altered("9/action", float_feature(np.ones(5))), f"{RECORD}: '9/action' is 5 numbers, not 4"),
    "no example": (CONTENTS | {"train/traj_5_to_7": framed(b"\x0a\xff")}, "record 0: not a tf.train.Example"),
    "no files": ({}, r"holds no softmotion30_44k/{train,test}/\*.tfrecords"),
}


@pytest.mark.parametrize("contents", BAD_RECORDS.values(), ids=BAD_RECORDS)
def test_a_bad_record_is_named(tmp_path, contents):
    contents, message = contents
    with pytest.raises(UserError, match=message) as error:
        fetch(write_tar(tmp_path / "bad.tar", contents))
    assert str(error.value).startswith(f"{tmp_path / 'bad.tar'}: ")
    assert "\n" not in str(error.value)
    assert files() == []


@pytest.mark.parametrize("place", [2, 9, 300_000, -1], ids=["length", "its checksum", "data", "their checksum"])
@pytest.mark.parametrize("write", [write_tar, write_folder])
def test_an_altered_byte_is_found(tmp_path, write, place):
    content = bytearray(CONTENTS["train/traj_5_to_7"])
    size = len(content) // 3  # of a record
    content[size + place] ^= 4
    with pytest.raises(UserError, match=f"record {int(place >= 0)}.* has a wrong checksum"):
        fetch(write(tmp_path / "bad", CONTENTS | {"train/traj_5_to_7": bytes(content)}))
    assert files() == []


@pytest.mark.parametrize("padded", [False, True], ids=["short", "ends as a tar does"])
@pytest.mark.parametrize("share", [0.0, 0.0001, 0.1, 0.6, 0.99])
def test_a_truncated_tar_is_found(tar, share, padded):
    whole = tar.read_bytes()
    # A tar may end in zeros by chance, where the last pixels are black: then the record tells.
    tar.write_bytes(whole[: int(share * len(whole))] + padded * bytes(1024))
    with pytest.raises(UserError, match=f"{tar}: .*(truncated|wrong checksum|holds no)"):
        fetch(tar)
    assert files() == []


def test_a_tar_that_lost_whole_files_and_its_end_is_found(tar):
    with tarfile.open(tar) as opened:
        last = opened.getmembers()[-1]
    tar.write_bytes(tar.read_bytes()[: last.offset])
    with pytest.raises(UserError, match="truncated"):
        fetch(tar)


@pytest.mark.parametrize("filler", [b"\0", b"\xff"])
def test_a_damaged_header_inside_a_tar_is_found(tar, filler):
    """tarfile takes it for the end, and the rest would be lost without a word."""
    with tarfile.open(tar) as archive:
        header = archive.getmembers()[-1].offset
    content = bytearray(tar.read_bytes())
    content[header : header + 512] = 512 * filler
    tar.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged after byte .*get it again"):
        fetch(tar)
    assert not [name for name in files() if name.endswith(".h5")]


def test_a_truncated_file_of_a_folder_is_found(tmp_path):
    short = CONTENTS | {"test/traj_0_to_1": CONTENTS["test/traj_0_to_1"][:-1]}
    with pytest.raises(UserError, match="test/traj_0_to_1.tfrecords: record 1: truncated"):
        fetch(write_folder(tmp_path / "bad", short))
    assert files() == []


def test_a_source_that_is_none_is_refused(tmp_path):
    for source in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(UserError, match=f"data.source: {source} is neither a tar nor a folder"):
            fetch(source)
    (tmp_path / "text").write_text("text" * 1000)
    with pytest.raises(UserError, match="text: not a tar"):
        fetch(tmp_path / "text")
