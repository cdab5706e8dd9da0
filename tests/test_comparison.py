"""Table I and Figs. 6 and 7 are made from result files; their numbers are checked against hand-made rows."""

import math

import numpy as np
import pytest
import result_rows
from PIL import Image

from vsr_lightning.evaluation.results import RowWriter, read_table, write_means, write_tables
from vsr_lightning.evaluation.videos import Clip, ClipWriter, merge_clips
from vsr_lightning.figures.comparison import clips_by_kernel, draw_fig6, draw_fig7, make_figures
from vsr_lightning.figures.reading import read_clips
from vsr_lightning.files import DamagedFile

FRAMES, SIZE = 10, 64
SETTING = {"num_frames": 10, "prior": "push_sim@3827d8a3", "dataset": "push_sim test"}
OPERATORS = ((4, "bicubic", 0.0), (4, "gaussian", 2.0), (8, "bicubic", 0.0), (8, "gaussian", 4.0))
METHODS = ["bicubic upsampling", "ours, one sample", "ours, mean of 2 samples", "VAE reconstruction (ceiling)"]


def item(operator, video, noise, psnr=20.0, **other):
    measured = {
        score + of: value + step
        for of, step in {"": 0.0, "_bicubic": -0.5, "_vae": 0.5}.items()
        for score, value in {"psnr_mean": psnr, "ssim_mean": psnr / 100, "temporal_error": psnr / 1000}.items()
    }
    columns = dict(zip(("factor", "kernel", "sigma_h"), operator, strict=True)) | {"psnr_first": 1.0}
    return result_rows.item(video, noise, **(SETTING | columns | measured | other))


def of_mean(operator, video, psnr, n_samples=2):
    scores = {"psnr_mean_of_mean": psnr, "ssim_mean_of_mean": psnr / 100, "temporal_error_of_mean": psnr / 1000}
    return result_rows.mean_of(item(operator, video, 0), n_samples, **scores)


def coloured_video(video):
    """uint8 (F, SIZE, SIZE, 3): a square of the video's own colour moving over a grey ramp."""
    clip = np.empty((FRAMES, SIZE, SIZE, 3), np.uint8)
    clip[:] = np.linspace(60, 160, SIZE, dtype=np.uint8)[:, None]
    for frame in range(FRAMES):
        clip[frame, 4 * frame : 4 * frame + 16, 10:26] = np.roll([250, 120, 20], video)
    return clip


def append_clip(run_dir, row, channels=3, bicubic=True):
    """Restored 51 levels too bright, upsampled 102 levels too bright, at the true video's own resolution."""
    truth = coloured_video(row["video"])[..., :channels] // 2
    observed = truth[:, :: row["factor"], :: row["factor"]]
    baseline = {"bicubic": truth + 102} if bicubic else {}
    ClipWriter(run_dir).append([Clip(row, observed, truth + 51, truth, range(row["num_frames"]), **baseline)])


def write_run(run_dir, operators, channels=3, videos=2):
    RowWriter(run_dir).append(
        [item(o, video, noise, psnr=20 + 4 * video + noise) for o in operators for video in (0, 1) for noise in (0, 1)]
    )
    write_means(run_dir, [of_mean(o, video, 22 + 2 * video) for o in operators for video in (0, 1)])
    write_tables(run_dir)
    for operator in operators:
        for video in range(videos):
            append_clip(run_dir, item(operator, video, 0), channels)
    merge_clips(run_dir)
    return run_dir


@pytest.fixture
def run_dir(tmp_path):
    """An evaluation of two videos and two noise instances at 4x and 8x with two kernels, clips in colour."""
    return write_run(tmp_path, OPERATORS)


def table_of(run_dir):
    make_figures(run_dir)
    return read_table(run_dir / "table1.csv")


# ------------------------------------------------------------------------------------------- Table I


def test_table_has_a_line_for_each_operator_and_method(run_dir):
    measured = [line for line in table_of(run_dir) if line["source"] == "measured"]
    keys = [(line["factor"], line["kernel"], line["sigma_h"], line["method"]) for line in measured]
    assert keys == [(*operator, method) for operator in OPERATORS for method in METHODS]
    assert {(line["dataset"], line["prior"], line["clips"]) for line in measured} == {
        ("push_sim test", "push_sim@3827d8a3", 2)
    }


def test_table_counts_a_video_once(run_dir):
    """Per-video means 20.5 and 24.5: mean 22.5, deviation sqrt(8), error 2, whatever the noise instances do."""
    bicubic, one, mean, vae = table_of(run_dir)[:4]
    assert (one["psnr"], one["psnr_se"]) == (pytest.approx(22.5), pytest.approx(2))
    assert (one["ssim"], one["ssim_se"]) == (pytest.approx(0.225), pytest.approx(0.02))
    assert (one["temporal_error"], one["temporal_error_se"]) == (pytest.approx(0.0225), pytest.approx(0.002))
    assert (bicubic["psnr"], vae["psnr"]) == (pytest.approx(22), pytest.approx(23))
    assert (mean["psnr"], mean["psnr_se"], mean["clips"]) == (pytest.approx(23), pytest.approx(1), 2)


def test_what_the_paper_printed_is_marked_and_apart(run_dir):
    table = table_of(run_dir)
    quoted = [line for line in table if line["source"] != "measured"]
    assert table[-3:] == quoted
    assert [(line["method"], line["psnr"], line["ssim"]) for line in quoted] == [
        *[("IART (paper)", 24.80, 0.886), ("FMA-Net (paper)", 25.35, 0.897), ("VDM-VSR (paper)", 27.44, 0.928)]
    ]
    for line in quoted:
        assert line["source"] == "quoted from the paper, measured on real BAIR"
        assert line["factor"] == 4
        assert {line["dataset"], line["prior"], line["temporal_error"], line["psnr_se"], line["clips"]} == {None}


def test_markdown_names_the_data_and_keeps_the_paper_apart(run_dir):
    make_figures(run_dir)
    measured, quoted = (run_dir / "table1.md").read_text().split("## Quoted from the paper, not measured here")
    assert measured.startswith("## Measured on push_sim test\n")
    assert "BAIR" not in measured
    assert "27.44" not in measured
    assert (
        "| 4× | gaussian, sigma_h 2 | ours, one sample | 22.50 ± 2.00 | 0.225 ± 0.020 | 0.0225 ± 0.0020 | 2 |"
        in measured
    )
    assert "real BAIR" in quoted
    assert "| 4× | VDM-VSR (paper) | 27.44 | 0.928 |" in quoted


def test_markdown_names_the_samplers_parameters_where_they_are_known(run_dir):
    make_figures(run_dir)
    assert "temperature" not in (run_dir / "table1.md").read_text()
    section = "{target: vsr_lightning.inference.dps_restart.dps_restart_sample, steps: 250, temperature: 0.5}"
    (run_dir / "config.yaml").write_text(f"sampler: {section}")
    make_figures(run_dir)
    measured, _ = (run_dir / "table1.md").read_text().split("## Quoted")
    assert "dps_restart_sample: steps 250, temperature 0.5" in measured


@pytest.mark.parametrize("text", ["grid: {sampler: [gone]}", "grid: [1]\nsamplers: {a: 3}", "sampler: x"])
def test_a_configuration_that_is_none_is_named(run_dir, text):
    (run_dir / "config.yaml").write_text(text)
    with pytest.raises(DamagedFile, match=r"config.yaml: .*remove it"):
        make_figures(run_dir)
    assert not (run_dir / "table1.csv").exists()


def test_each_setting_has_a_table_of_its_own(tmp_path):
    bair = {"dataset": "bair test"}
    RowWriter(tmp_path).append([item(OPERATORS[0], 0, 0), item(OPERATORS[0], 0, 0, **bair)])
    write_tables(tmp_path)
    make_figures(tmp_path)
    headings = [line for line in (tmp_path / "table1.md").read_text().splitlines() if line.startswith("## Measured")]
    assert headings == ["## Measured on bair test", "## Measured on push_sim test"]


def test_only_8x_quotes_nothing_and_draws_fig7(tmp_path):
    paths = make_figures(write_run(tmp_path, OPERATORS[2:]))
    assert [path.name for path in paths] == ["table1.csv", "table1.md", "fig7.png"]
    assert "paper" not in paths[1].read_text()


def test_only_4x_draws_fig6(tmp_path):
    paths = make_figures(write_run(tmp_path, OPERATORS[:1]))
    assert [path.name for path in paths] == ["table1.csv", "table1.md", "fig6.png"]


def test_one_clip_has_no_error_and_one_sample_no_mean(tmp_path):
    RowWriter(tmp_path).append([item(OPERATORS[0], 0, 0, psnr=20.0)])
    write_means(tmp_path, [of_mean(OPERATORS[0], 0, 20.0, n_samples=1)])
    write_tables(tmp_path)
    table = table_of(tmp_path)
    assert [line["method"] for line in table[:3]] == [METHODS[0], METHODS[1], METHODS[3]]
    assert table[1]["psnr_se"] is None
    assert "| ours, one sample | 20.00 | 0.200 | 0.0200 | 1 |" in (tmp_path / "table1.md").read_text()


def test_means_of_fewer_samples_than_most_stay_out(tmp_path):
    RowWriter(tmp_path).append([item(OPERATORS[0], video, noise) for video in (0, 1) for noise in (0, 1)])
    write_means(tmp_path, [of_mean(OPERATORS[0], video, 22.0, n_samples=2 + 2 * video) for video in (0, 1)])
    write_tables(tmp_path)
    (line,) = [line for line in table_of(tmp_path) if line["method"] == "ours, mean of 4 samples"]
    assert line["clips"] == 1


def test_failed_items_and_missing_columns_stay_out(tmp_path):
    failed = item(OPERATORS[0], 1, 0, psnr=math.nan, status="non-finite at step 3")
    old = item(OPERATORS[0], 0, 0)
    for column in [name for name in old if name.startswith("temporal") or name.endswith(("_vae", "_bicubic"))]:
        del old[column]
    RowWriter(tmp_path).append([old, failed])
    write_tables(tmp_path)
    (line,) = [line for line in table_of(tmp_path) if line["source"] == "measured"]
    assert (line["method"], line["psnr"], line["temporal_error"], line["clips"]) == (METHODS[1], 20, None, 1)


# ------------------------------------------------------------------------------------------- pictures


def panels_of(figure, columns):
    return np.array(figure.axes).reshape(-1, columns)


def test_fig6_shows_the_middle_frame_in_colour(run_dir):
    panels = panels_of(draw_fig6(clips_by_kernel(read_clips(run_dir / "clips.h5"), 4)), 6)
    assert [axes.get_title() for axes in panels[0]] == [
        *["observed", "bicubic", "restored", "truth", "error, bicubic", "error, restored"]
    ]
    assert [axes.get_ylabel() for axes in panels[:, 0]] == [
        *["video 0\n4×, bicubic", "video 1\n4×, bicubic"],
        *["video 0\n4×, $\\sigma_h$ 2 px", "video 1\n4×, $\\sigma_h$ 2 px"],
    ]
    for row, video in enumerate((0, 1, 0, 1)):
        truth = coloured_video(video)[4] // 2  # the 5th frame
        np.testing.assert_array_equal(panels[row, 3].images[0].get_array(), truth)
        np.testing.assert_array_equal(panels[row, 2].images[0].get_array(), truth + 51)
        np.testing.assert_array_equal(panels[row, 1].images[0].get_array(), truth + 102)
        assert panels[row, 0].images[0].get_array().shape == (16, 16, 3)
    # Errors of 2/5 and 1/5 of the range: white and half of it, 8.0 and 14.0 dB.
    assert [set(axes.images[0].get_array().ravel()) for axes in panels[0, 4:]] == [{255}, {128}]
    assert [axes.texts[0].get_text() for axes in panels[0, 4:]] == ["8.0 dB", "14.0 dB"]


def test_fig6_without_a_kept_baseline(tmp_path):
    for video in range(5):
        append_clip(tmp_path, item(OPERATORS[0], video, 0), bicubic=False)
    merge_clips(tmp_path)
    panels = panels_of(draw_fig6(clips_by_kernel(read_clips(tmp_path / "clips.h5"), 4)), 4)
    assert [axes.get_title() for axes in panels[0]] == ["observed", "restored", "truth", "error, restored"]
    assert [axes.get_ylabel().split("\n")[0] for axes in panels[:, 0]] == ["video 0", "video 1", "video 2"]


def test_fig7_shows_every_second_frame(run_dir):
    panels = panels_of(draw_fig7(clips_by_kernel(read_clips(run_dir / "clips.h5"), 8)), 5)
    assert [axes.get_title() for axes in panels[0]] == [f"frame {number}" for number in (1, 3, 5, 7, 9)]
    assert [axes.get_ylabel() for axes in panels[:, 0]] == [
        *["video 0\n8×, bicubic\nobserved\n8×8", "restored\n14.0 dB", "truth"],
        *["video 0\n8×, $\\sigma_h$ 4 px\nobserved\n8×8", "restored\n14.0 dB", "truth"],
    ]
    np.testing.assert_array_equal(panels[2, 3].images[0].get_array(), coloured_video(0)[6] // 2)
    np.testing.assert_array_equal(panels[4, 1].images[0].get_array(), coloured_video(0)[2] // 2 + 51)


def test_of_each_kernel_the_condition_with_most_frames_is_drawn(tmp_path):
    for number in (3, 10, 5):
        append_clip(tmp_path, item(OPERATORS[0], 0, 0, num_frames=number))
    append_clip(tmp_path, item(OPERATORS[1], 1, 0, num_frames=5))
    merge_clips(tmp_path)
    groups = clips_by_kernel(read_clips(tmp_path / "clips.h5"), 4)
    assert [[(clip["kernel"], clip["num_frames"]) for clip in group] for group in groups] == [
        *[[("bicubic", 10)], [("gaussian", 5)]]
    ]
    assert clips_by_kernel(read_clips(tmp_path / "clips.h5"), 8) == []


@pytest.mark.parametrize("channels", [1, 3])
def test_make_figures_writes_pictures(tmp_path, channels):
    paths = make_figures(write_run(tmp_path, OPERATORS, channels))
    assert [path.name for path in paths] == ["table1.csv", "table1.md", "fig6.png", "fig7.png"]
    for path in paths[2:]:
        pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
        assert min(pixels.shape[:2]) >= 600
        colour = (pixels.max(axis=-1) - pixels.min(axis=-1) > 50).sum()
        assert (colour > 1000) == (channels == 3)
        # A margin of white all around: no label is cut off.
        assert (np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]) == 255).all()


def test_nothing_is_made_of_nothing(tmp_path):
    assert make_figures(tmp_path) == []
