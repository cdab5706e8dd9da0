"""Samplers compared: numbers against hand-made rows, and a figure that is drawn of them."""

import math

import pytest
from PIL import Image

from vsr_lightning.evaluation.results import RowWriter, write_means, write_tables
from vsr_lightning.figures import samplers
from vsr_lightning.figures.reading import read_table
from vsr_lightning.figures.samplers import COLUMNS, MARKERS, compare, draw, make_figures

CONDITION = {
    "factor": 8,
    "kernel": "gaussian",
    "num_frames": 10,
    "order": "sequential",
    "sigma_h": 2.0,
    "sigma_y": 0.02,
    "seed": 0,
    "prior": "moving_mnist@0",
    "dataset": "moving_mnist mnist val",
}


def item(sampler, steps, zeta, video, noise, psnr):
    key = {"sampler": sampler, "steps": steps, "zeta": zeta, "video": video, "noise": noise}
    return CONDITION | key | {"psnr_first": psnr, "psnr_mean": psnr, "seconds": steps / 100, "status": "ok"}


@pytest.fixture
def rows():
    """Videos differ by 4 dB, settings by what is asserted: only pairs can tell."""
    gains = {("slow", 1000, 3.0): 1.0, ("slow", 1000, 9.0): 0.5, ("fast", 100, 0.5): 0.8, ("fast", 250, 0.5): 1.1}
    return [
        item(*setting, video, noise, 20 + 4 * video + noise + gain + (0.2 * video if setting[1] == 100 else 0.0))
        for setting, gain in gains.items()
        for video in (0, 1)
        for noise in (0, 1)
    ]


def test_differences_are_paired_with_the_best_of_the_longest_runs(rows):
    table = {(line["sampler"], line["steps"], line["zeta"]): line for line in compare(rows)}
    reference = table["slow", 1000, 3.0]
    assert (reference["difference"], reference["difference_se"]) == (0, 0)
    assert table["slow", 1000, 9.0]["difference"] == pytest.approx(-0.5)
    fast = table["fast", 100, 0.5]
    assert fast["difference"] == pytest.approx(-0.2 + 0.1)  # videos -0.2 and 0.0
    assert fast["difference_se"] == pytest.approx(0.1)
    assert fast["psnr_first"] == pytest.approx(20 + 2 + 0.5 + 0.8 + 0.1)
    assert (fast["seconds"], fast["videos"]) == (1.0, 2)


def test_items_that_the_reference_lacks_are_no_pair(rows):
    lacking = [row for row in rows if not (row["steps"] == 1000 and row["video"] == 1)]
    line = next(line for line in compare(lacking) if line["steps"] == 100)
    assert line["difference"] == pytest.approx(-0.2)
    assert math.isnan(line["difference_se"])


def test_settings_without_a_common_item_are_no_error(rows):
    apart = [row for row in rows if row["video"] == (1 if row["steps"] == 1000 else 0)]
    line = next(line for line in compare(apart) if line["steps"] == 100)
    assert math.isnan(line["difference"])


def test_seconds_are_not_those_of_start_up(rows):
    (first, *_) = [row for row in rows if row["steps"] == 100]
    first["seconds"] = 60.0
    assert {line["seconds"] for line in compare(rows) if line["steps"] == 100} == {1.0}


def test_observations_are_compared_apart(rows):
    few = [row | {"num_frames": 1, "psnr_first": row["psnr_first"] - 5} for row in rows]
    table = compare([*rows, *few])
    assert len(table) == 2 * len(compare(rows))
    for line in table:
        assert abs(line["difference"]) < 1
    titles = [axes.get_title() for axes in draw(table, rows).axes]
    assert len(titles) == 4
    assert "1 frame observed" in titles[0]
    assert "10 frames observed" in titles[2]


def test_samplers_that_differ_in_their_steps_alone_are_one_curve():
    rows = [
        item(f"{name}_{steps}", steps, 0.5, video, 0, 20.0 + video)
        for name in ("short", "long_100")
        for steps in (100, 250, 1000)
        for video in (0, 1)
    ]
    (axes,) = draw(compare(rows), rows).axes
    curves = {container.get_label(): container.lines[0] for container in axes.containers}
    assert {name: len(curve.get_xdata()) for name, curve in curves.items()} == {"short": 3, "long_100": 3}


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ([("s_100", 100), ("s_250", 250)], ["s", "s"]),
        ([("s_100", 100), ("s_100", 250)], ["s_100"]),  # by grid.steps
        ([("s", 100), ("s_100", 100)], ["s", "s_100"]),
        ([("s_1000", 100)], ["s_1000"]),
    ],
)
def test_a_name_is_shortened_only_if_that_says_as_much(settings, names):
    lines = [{"sampler": sampler, "steps": steps} for sampler, steps in settings]
    assert list(samplers.families(lines).values()) == names


def test_where_zeta_is_no_choice_only_seconds_are_drawn(rows):
    chosen = [row for row in rows if (row["steps"], row["zeta"]) != (1000, 9.0)]
    (axes,) = draw(compare(chosen), chosen).axes
    assert axes.get_xlabel().startswith("seconds")


def test_settings_that_take_as_long_stand_side_by_side_under_one_label(rows):
    slower = [row | {"sampler": "slower", "steps": 850, "seconds": 9.0} for row in rows if row["steps"] == 1000]
    axes = draw(compare([*rows, *slower]), rows).axes[1]
    assert [text.get_text() for text in axes.texts] == ["100", "250", "850, 1000"]
    places = [x for line in axes.lines if line.get_marker() in MARKERS for x in line.get_xdata()]
    assert len(set(places)) == len(places) == 4
    ends = [[*line.get_xdata()] for line in axes.lines if line.get_color() == "dimgrey"]
    assert sorted(places) == sorted({end for pair in ends for end in pair})
    assert ends[2][1] / ends[2][0] == pytest.approx(1.025)


def test_settings_side_by_side_are_in_order_of_seconds(rows):
    faster = [row | {"sampler": "z", "steps": 2000, "seconds": 9.9} for row in rows if row["steps"] == 1000]
    group = samplers._equally_fast(compare([*rows, *faster]))[-1]
    assert [(line["steps"], line["seconds"]) for line in group] == [(2000, 9.9), (1000, 10.0)]


def test_a_large_group_reaches_no_farther_than_a_fifth():
    places = samplers._side_by_side([{"seconds": 1.0}] * 40)
    assert 1.15 < places[-1] / places[0] < 1.2
    assert math.prod(places) == pytest.approx(1)


def test_settings_that_all_take_as_long_are_ranked(rows):
    gains = {"second": 1.0, "best": 2.0, "worst": -1.0}
    one = [row for row in rows if row["steps"] == 100]
    table = compare(
        [row | {"sampler": name, "psnr_first": row["psnr_first"] + g} for row in one for name, g in gains.items()]
    )
    scores, pairs = draw(table, rows).axes
    assert [label.get_text() for label in scores.get_yticklabels()] == [
        f"{name}, 100 steps, 1 s" for name in ("worst", "second", "best")
    ]
    assert [bar.lines[0].get_xdata()[0] for bar in pairs.containers] == pytest.approx([-3, -1, 0])
    assert "of best, 100 steps" in pairs.get_xlabel()


def test_many_settings_that_take_as_long_are_ranked_beside_a_longer_run(rows):
    chosen = [row for row in rows if (row["steps"], row["zeta"]) == (1000, 3.0)]
    many = [row | {"sampler": f"s{i}", "steps": 100, "seconds": 1.0} for i in range(11) for row in chosen]
    scores, _ = draw(compare([*chosen, *many]), chosen).axes
    assert len(scores.get_yticklabels()) == 12
    few = [row for row in many if row["sampler"] != "s8"]
    assert len(draw(compare([*chosen, *few]), chosen).axes) == 1  # against seconds


@pytest.mark.parametrize("zetas", [1, 2], ids=["one panel", "two panels"])
@pytest.mark.parametrize("name", ["three_momentum_less", "a_name_that_is_longer_than_one_would_think_of"])
def test_the_legend_is_within_the_figure(rows, name, zetas):
    chosen = [row for row in rows if row["steps"] == 1000 and (zetas == 2 or row["zeta"] == 3.0)]
    several = [row | {"sampler": f"{name}_{i}", "steps": 100 * i, "seconds": i} for i in range(1, 8) for row in chosen]
    figure = draw(compare(several), chosen)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert len(figure.axes) == zetas
    assert len(legend.get_texts()) == 7
    assert 0 <= box.x0 < box.x1 <= figure.bbox.x1


def test_a_guidance_scale_of_zero_has_its_place(rows):
    figure = draw(compare([*rows, *(row | {"zeta": 0.0} for row in rows if row["steps"] == 100)]), rows)
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["0", "0.5", "3", "9"]


def test_figure_and_table_of_a_run_folder(rows, tmp_path):
    with RowWriter(tmp_path) as writer:
        writer.append(rows)
    means = [row | {"psnr_first_of_mean": row["psnr_first"] + 2, "n_samples": 2} for row in rows if row["noise"] == 0]
    write_means(tmp_path, [{k: v for k, v in row.items() if k not in ("noise", "psnr_first")} for row in means])
    write_tables(tmp_path)
    paths = make_figures(tmp_path)
    assert [path.name for path in paths] == ["samplers.png", "samplers.csv"]
    assert Image.open(paths[0]).size[0] > 1000
    table = read_table(paths[1])
    assert tuple(table[0]) == COLUMNS
    assert [line["sampler"] for line in table] == ["fast", "fast", "slow", "slow"]
    assert all(line["psnr_first_of_mean"] for line in table)


def test_no_results_no_figure(tmp_path):
    assert make_figures(tmp_path) == []
