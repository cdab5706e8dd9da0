"""The clip viewer's pictures and data, as they stand on the report's page."""

import io

import numpy as np
import pytest
from fabricated import FACTOR, SIZE, decode, make_run, restored_clip, strip_of, truth_clip
from PIL import Image


@pytest.mark.parametrize("channels", [1, 3])
def test_every_condition_has_its_clip(report, tmp_path, channels):
    (data,) = report(make_run(tmp_path / "run", channels)).clips
    assert data["values"] == {"num_frames": ["1", "2", "10"], "order": ["random", "sequential"]}
    assert [clip["choice"] for clip in data["clips"]] == [
        {"num_frames": 0, "order": 1},
        {"num_frames": 1, "order": 0},
        {"num_frames": 1, "order": 1},
        {"num_frames": 2, "order": 1},
    ]
    assert [clip["frames"] for clip in data["clips"]] == [[0], [0, 9], [0, 1], list(range(10))]
    for clip, number in zip(data["clips"], (1, 2, 2, 10), strict=True):
        sprite = {name: Image.open(io.BytesIO(decode(data["sprites"][i]))) for name, i in clip["sprites"].items()}
        assert sprite.keys() == {"observed", "restored", "truth", "error"} | ({"bicubic"} if number == 10 else set())
        assert np.array_equal(sprite["restored"], strip_of(restored_clip(number, channels)))
        assert np.array_equal(sprite["truth"], strip_of(truth_clip(channels)))
        assert np.array_equal(sprite["observed"], strip_of(truth_clip(channels)[:, ::FACTOR, ::FACTOR]))
    assert len(data["sprites"]) == 2 + 3 + 3, "the same picture is kept once"


def test_error_map_and_psnr(report, finished_run):
    page = report(finished_run)
    (data,) = page.clips
    # One frame: 100 above a black pixel, 20 below a white one. Ten frames: 110 below a white one, the largest error.
    assert f"{110 / 255:.2f}" in page.text
    error = Image.open(io.BytesIO(decode(data["sprites"][data["clips"][0]["sprites"]["error"]])))
    levels = np.asarray(error)  # of the palette
    assert set(levels[:, 1:SIZE].flat) == {round(255 * 100 / 110)}
    assert set(levels[:, 0]) == {round(255 * 20 / 110)}
    palette = np.array(error.getpalette()).reshape(-1, 3).sum(axis=1)
    assert palette[0] < palette[100] < palette[255]
    mse = (15 * 100**2 + 20**2) / 16 / 255**2
    assert data["clips"][0]["notes"]["restored"][0] == f"{-10 * np.log10(mse):.1f} dB"
