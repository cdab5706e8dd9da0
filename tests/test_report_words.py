"""How the report calls columns, and rounds what stands beneath."""

import pytest

from vsr_lightning.figures.report_words import format_cell, in_reading_order, label, place, rounded


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("num_frames", "observed frames"),
        ("psnr_first_of_mean", "PSNR, first frame (dB), mean of samples"),
        ("ssim_mean_bicubic", "SSIM, bicubic"),
        ("comment", "comment"),
    ],
)
def test_labels(column, expected):
    assert label(column) == expected


@pytest.mark.parametrize(
    ("table", "column", "expected"),
    [
        ("samplers", "difference", "PSNR, first frame (dB), minus the best of the most steps"),
        ("convergence", "difference", "PSNR, first frame (dB), sharpest minus blurriest"),
        ("paired", "psnr_first_difference", "PSNR, first frame (dB), random minus sequential"),
        ("paired", "psnr_first", "PSNR, first frame (dB)"),
    ],
)
def test_a_difference_says_what_from_what(table, column, expected):
    assert label(column, table) == expected


def test_measured_columns_stand_by_score():
    columns = ["steps", "n", "psnr_first", "ssim_mean", "seconds", "psnr_first_vae", "psnr_mean", "psnr_first_of_mean"]
    assert in_reading_order(columns) == [
        *("steps", "n", "psnr_first", "psnr_first_of_mean", "psnr_first_vae", "psnr_mean", "ssim_mean", "seconds")
    ]
    assert in_reading_order(["b", "a"]) == ["b", "a"]


@pytest.mark.parametrize(
    ("column", "text", "expected"),
    [
        ("psnr_first", "21", "21.00"),
        ("ssim_mean_vae", "0.98765", "0.988"),
        ("sigma_y", "0.02", "0.02"),
        ("zeta", "13.0", "13"),
        ("residual_rms", "nan", "nan"),
        ("seconds", "0.0316", "0.032"),
        ("seconds", "2.2131", "2.2"),
        ("seconds", "224.2", "224"),
        ("difference", "-1.2090", "-1.21"),
        ("spread", "inf", "inf"),
        ("prior", "a@01", "a@01"),
        ("prior", "", ""),
    ],
)
def test_cells(column, text, expected):
    assert format_cell(column, text) == expected


def test_errors_have_two_digits_where_no_decimals_are_fixed():
    assert [rounded(column, 0.12345, digits=2) for column in ("ratio", "psnr_first")] == ["0.12", "0.12"]
    assert rounded("ratio", 0.0012345, digits=2) == "0.0012"


def test_known_names_stand_first():
    assert sorted("dbca", key=lambda name: place(name, "cb")) == ["c", "b", "a", "d"]
