"""How the report calls columns, and rounds what stands beneath."""

import pytest

from vsr_lightning.figures.report_words import format_cell, label, place, rounded


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
    ("column", "text", "expected"),
    [
        ("psnr_first", "21", "21.00"),
        ("ssim_mean_vae", "0.98765", "0.988"),
        ("sigma_y", "0.02", "0.02"),
        ("zeta", "13.0", "13"),
        ("residual_rms", "nan", "nan"),
        ("spread", "inf", "inf"),
        ("prior", "a@01", "a@01"),
        ("prior", "", ""),
    ],
)
def test_cells(column, text, expected):
    assert format_cell(column, text) == expected


def test_errors_have_two_digits_where_no_decimals_are_fixed():
    assert [rounded(column, 0.12345, digits=2) for column in ("spread", "psnr_first")] == ["0.12", "0.12"]
    assert rounded("spread", 0.0012345, digits=2) == "0.0012"


def test_known_names_stand_first():
    assert sorted("dbca", key=lambda name: place(name, "cb")) == ["c", "b", "a", "d"]
