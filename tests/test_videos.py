"""Clips to look at: of all ranks, over reruns and kills; damage is noticed; the GIF shows them side by side."""

import h5py
import numpy as np
import pytest
from PIL import Image
from result_rows import SETTING, clip, item

from vsr_lightning.evaluation import videos
from vsr_lightning.evaluation.results import item_key, video_key
from vsr_lightning.evaluation.videos import (
    Clip,
    ClipWriter,
    drop_unmeasured,
    load_restored,
    merge_clips,
    read_clips,
    restored_files,
    save_restored,
    write_gif,
)
from vsr_lightning.figures import reading
from vsr_lightning.files import SEAL_SIZE, DamagedFile


def test_clips_of_all_ranks_are_merged_and_read_back(tmp_path):
    ClipWriter(tmp_path, rank=0).append([Clip(item(num_frames=10), **clip(1))])
    ClipWriter(tmp_path, rank=0).append([Clip(item(num_frames=3), **clip(2))])
    ClipWriter(tmp_path, rank=1).append([Clip(item(num_frames=3, order="random"), **clip(3))])
    merge_clips(tmp_path)
    merge_clips(tmp_path)
    clips = read_clips(tmp_path)
    assert [(c["num_frames"], c["order"], c["restored"][0, 0, 0, 0]) for c in clips] == [
        *[(3, "random", 3), (3, "sequential", 2), (10, "sequential", 1)]
    ]
    assert {column: clips[0][column] for column in SETTING} == SETTING
    assert clips[0]["frames"] == [0, 2]
    for name in ("observed", "truth"):
        assert clips[0][name].dtype == np.uint8
        np.testing.assert_array_equal(clips[0][name], clip()[name])


def test_clips_of_several_videos_and_the_baseline(tmp_path):
    baseline = np.full((10, 16, 16, 1), 7, np.uint8)
    for video in (2, 0):
        ClipWriter(tmp_path).append([Clip(item(video), **clip(video), bicubic=baseline + video)])
    ClipWriter(tmp_path).append([Clip(item(1), **clip(1))])
    merge_clips(tmp_path)
    clips = read_clips(tmp_path)
    assert [(c["video"], c["restored"].max()) for c in clips] == [(0, 0), (1, 1), (2, 2)]
    assert [c["bicubic"].max() if "bicubic" in c else None for c in clips] == [7, None, 9]


def test_a_rerun_adds_and_replaces_clips_and_keeps_the_others(tmp_path):
    ClipWriter(tmp_path).append([Clip(item(num_frames=1), **clip(1))])
    ClipWriter(tmp_path).append([Clip(item(num_frames=3), **clip(2))])
    merge_clips(tmp_path)
    (tmp_path / "rows" / "clips-rank-0.h5").unlink()
    ClipWriter(tmp_path).append([Clip(item(num_frames=3), **clip(20))])
    ClipWriter(tmp_path).append([Clip(item(num_frames=3.0), **clip(30))])
    ClipWriter(tmp_path).append([Clip(item(num_frames=5), **clip(4))])
    merge_clips(tmp_path)
    restored = {c["num_frames"]: c["restored"].max() for c in read_clips(tmp_path)}
    assert restored == {1: 1, 3: 30, 5: 4}


def test_a_writer_killed_midway_leaves_the_clips_readable(tmp_path):
    writer = ClipWriter(tmp_path)
    writer.append([Clip(item(num_frames=1), **clip(1))])
    writer.path.with_name(writer.path.name + ".tmp").write_bytes(b"half a file")
    ClipWriter(tmp_path).append([Clip(item(num_frames=2), **clip(2))])
    merge_clips(tmp_path)
    assert [c["num_frames"] for c in read_clips(tmp_path)] == [1, 2]


def test_damaged_clips_do_not_last(tmp_path):
    gathered = tmp_path / "clips.h5"
    gathered.write_bytes(b"damaged")
    merge_clips(tmp_path)
    assert not gathered.exists()
    for video, rank in ((0, 0), (1, 1)):
        ClipWriter(tmp_path, rank).append([Clip(item(video), **clip(video))])
    (tmp_path / "rows" / "clips-rank-0.h5").write_bytes(b"damaged")
    gathered.write_bytes(b"damaged")
    merge_clips(tmp_path)
    assert [c["video"] for c in read_clips(tmp_path)] == [1]
    ClipWriter(tmp_path, rank=0).append([Clip(item(2), **clip(2))])
    merge_clips(tmp_path)
    assert [c["video"] for c in read_clips(tmp_path)] == [1, 2]


def remove_seal(path):
    """Make of a file of clips what versions before the seal wrote."""
    with h5py.File(path) as sealed, h5py.File(path.with_suffix(".old"), "w") as plain:
        for name in sealed:
            sealed.copy(name, plain)
    path.with_suffix(".old").replace(path)


def test_sealed_clips_are_gathered_without_reading_each(tmp_path, monkeypatch):
    ClipWriter(tmp_path).append([Clip(item(), **clip(1))])
    with monkeypatch.context() as patch:
        patch.setattr(videos, "read_clip_file", None)
        merge_clips(tmp_path)
    assert read_clips(tmp_path)[0]["restored"].max() == 1


def test_clips_without_a_seal_are_read_and_go_on(tmp_path):
    writer = ClipWriter(tmp_path)
    writer.append([Clip(item(0), **clip(1))])
    remove_seal(writer.path)
    ClipWriter(tmp_path).append([Clip(item(1), **clip(2))])
    merge_clips(tmp_path)
    assert [(c["video"], c["restored"].max()) for c in read_clips(tmp_path)] == [(0, 1), (1, 2)]


def test_damage_is_noticed_wherever_it_is(tmp_path):
    """Without a seal, HDF5 reads on past some of it, and never returns from some."""
    ClipWriter(tmp_path).append([Clip(item(0), **clip())])
    merge_clips(tmp_path)
    path = tmp_path / "clips.h5"
    whole = path.read_bytes()
    for start in range(SEAL_SIZE, len(whole) - 64, 397):
        for size in (1, 64):
            damaged = bytearray(whole)
            damaged[start : start + size] = bytes(255 - byte for byte in whole[start : start + size])
            path.write_bytes(damaged)
            with pytest.raises(DamagedFile):
                read_clips(tmp_path)
            with pytest.raises(DamagedFile):
                reading.read_clips(path)
    path.write_bytes(whole)
    assert len(read_clips(tmp_path)) == len(reading.read_clips(path)) == 1


@pytest.mark.parametrize("change", ["sigma_h", "video", "truth", "frames"])
def test_clips_that_are_not_what_was_written(tmp_path, change):
    """In an older file, without a seal, a flipped bit can leave this: HDF5 itself sees nothing wrong."""
    ClipWriter(tmp_path).append([Clip(item(0), **clip())])
    merge_clips(tmp_path)
    remove_seal(tmp_path / "clips.h5")
    read_clips(tmp_path)
    with h5py.File(tmp_path / "clips.h5", "a") as file:
        (group,) = file.values()
        if change in group:
            del group[change]
        else:
            group.attrs[change] = 7
    with pytest.raises(DamagedFile, match=r"clips\.h5"):
        read_clips(tmp_path)


def test_no_clips_make_no_file(tmp_path):
    merge_clips(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_float_clips_are_refused(tmp_path):
    with pytest.raises(ValueError, match="restored must be uint8"):
        ClipWriter(tmp_path).append([Clip(item(), **(clip() | {"restored": np.zeros((10, 16, 16, 1))}))])


def test_what_no_row_measures_is_dropped(tmp_path):
    """A whole batch, a part of one whose rows were cut off, and a clip; what is damaged stays, to be named."""
    rows = [item(video) for video in range(4)]
    for value, batch in ((1, rows[:2]), (2, rows[1:3]), (3, rows[3:])):
        save_restored(tmp_path, batch, np.full((len(batch), *clip()["restored"].shape), value, np.uint8))
    damaged = tmp_path / "rows" / "restored" / "damaged.npz"
    damaged.write_bytes(b"damaged")
    for video, rank in ((0, 0), (1, 0), (2, 1)):
        ClipWriter(tmp_path, rank).append([Clip(rows[video], **clip(video))])

    drop_unmeasured(tmp_path, {item_key(rows[0]), item_key(rows[2])}, {video_key(rows[0])})
    damaged.unlink()
    assert {key: video.max() for key, video in load_restored(tmp_path).items()} == {
        item_key(rows[0]): 1,
        item_key(rows[2]): 2,
    }
    assert len(restored_files(tmp_path)) == 2
    merge_clips(tmp_path)
    assert [c["video"] for c in read_clips(tmp_path)] == [0]
    ClipWriter(tmp_path, rank=1).append([Clip(rows[2], **clip(9))])
    merge_clips(tmp_path)
    assert [(c["video"], c["restored"].max()) for c in read_clips(tmp_path)] == [(0, 0), (2, 9)]


def test_gif_keeps_colours(tmp_path):
    red, blue = (np.broadcast_to(np.array(colour, np.uint8), (2, 64, 64, 3)) for colour in ([250, 0, 0], [0, 0, 250]))
    path = tmp_path / "clip.gif"
    write_gif({"observed": red[:, :8, :8], "restored": blue, "truth": red, "frames": [0, 1]}, path)
    with Image.open(path) as gif:
        picture = np.asarray(gif.convert("RGB"), dtype=int)
    shown = [picture[96, x] for x in (96, 192 + 4 + 96, 2 * (192 + 4) + 96)]
    np.testing.assert_allclose(shown, [[250, 0, 0], [0, 0, 250], [250, 0, 0]], atol=8)  # a palette of 256


def test_gif_shows_observed_restored_truth(tmp_path):
    frames = 3
    truth = np.zeros((frames, 64, 64, 1), np.uint8)
    truth[1] = 200
    observed = np.full((frames, 8, 8, 1), 90, np.uint8)
    restored = np.full_like(truth, 30) + np.arange(frames, dtype=np.uint8)[:, None, None, None] * 20
    path = tmp_path / "clip.gif"
    write_gif({"observed": observed, "restored": restored, "truth": truth, "frames": [0, 2]}, path)
    with Image.open(path) as gif:
        assert (gif.n_frames, gif.size) == (frames, (3 * 192 + 8, 192))
        shown = []
        for index in range(frames):
            gif.seek(index)
            picture = np.asarray(gif.convert("L"), dtype=int)
            shown.append([picture[96, x] for x in (96, 192 + 4 + 96, 2 * (192 + 4) + 96)])
    # The second frame was not observed: black on the left.
    np.testing.assert_allclose(shown, [[90, 30, 0], [0, 50, 200], [90, 70, 0]], atol=2)
