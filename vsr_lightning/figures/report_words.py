"""How the report names columns, orders them, and rounds the numbers beneath."""

from collections.abc import Sequence

from vsr_lightning.conditions import CONDITION, FRAMES, without

# What runs differ in, in the order in which the page names it.
SETTINGS = (*FRAMES, *without(CONDITION, *FRAMES))
# How columns are called; others keep their name.
LABELS = {
    "num_frames": "observed frames",
    "order": "order of frames",
    "factor": "scale factor",
    "sigma_h": "sigma_h (px)",
    "psnr": "PSNR (dB)",
    "psnr_first": "PSNR, first frame (dB)",
    "psnr_mean": "PSNR, all frames (dB)",
    "ssim": "SSIM",
    "ssim_mean": "SSIM",
    "temporal_error": "temporal error",
    "residual_rms": "residual RMS",
    "seconds": "time (s)",
    "n": "restorations",
    "n_samples": "samples in the mean",
    "difference": "PSNR, first frame (dB), difference",
    "sharpest": "sharpest sigma_h (px)",
    "blurriest": "blurriest sigma_h (px)",
    "spread": "PSNR, first frame (dB), best width minus worst",
}
# What depends on the table: of a difference, what from what.
LABELS_IN = {
    ("samplers", "difference"): "PSNR, first frame (dB), minus the best of the most steps",
    ("convergence", "difference"): "PSNR, first frame (dB), sharpest minus blurriest",
    ("summary", "difference"): "PSNR, first frame (dB), minus the first variant",
    ("paired", "psnr_first_difference"): "PSNR, first frame (dB), random minus sequential",
}
VARIANTS = {
    "_bicubic": "bicubic",
    "_vae": "VAE",
    "_of_mean": "mean of samples",
    "_oracle": "oracle",
    "_difference": "difference",
}
# By the column's beginning.
DECIMALS = {"psnr": 2, "difference": 2, "spread": 2, "ssim": 3, "temporal_error": 4, "residual_rms": 4}
# Measured columns in their order: each score of the restoration, of the mean of samples, of bicubic, of the VAE.
MEASURED = tuple(
    score + variant
    for score in ("psnr_first", "psnr_mean", "psnr", "ssim_mean", "ssim", "temporal_error")
    for variant in ("", "_of_mean", "_bicubic", "_vae")
)


def place(name: str, known: Sequence[str]) -> tuple[int, str]:
    """To sort by: the place in `known`, all others after them by name."""
    return (known.index(name) if name in known else len(known)), name


def in_reading_order(columns: Sequence[str]) -> list[str]:
    """MEASURED columns in that order, where the first of them stood; others before and behind them as they were."""
    measured = sorted((column for column in columns if column in MEASURED), key=MEASURED.index)
    start = next((index for index, column in enumerate(columns) if column in MEASURED), len(columns))
    return [*columns[:start], *measured, *(column for column in columns[start:] if column not in MEASURED)]


def label(column: str, table: str = "") -> str:
    """What a column is called, in the file `table` without its ending."""
    if (table, column) in LABELS_IN:
        return LABELS_IN[table, column]
    for ending, variant in VARIANTS.items():
        if column.endswith(ending):
            return f"{label(column.removesuffix(ending))}, {variant}"
    return LABELS.get(column, column)


def to_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def format_cell(column: str, text: str) -> str:
    """A cell without digits that mean nothing; text that is no number stays."""
    number = to_number(text)
    return text if number is None else rounded(column, number, digits=4)


def rounded(column: str, number: float, digits: int) -> str:
    """Fixed decimals where DECIMALS has them, so that a column lines up; else an integer, or so many digits.

    Seconds have two digits, or as many as stand before the point: they span hundredths to hours.
    """
    for beginning, decimals in DECIMALS.items():
        if column.startswith(beginning):
            return f"{number:.{decimals}f}"
    if column.startswith("seconds"):
        return f"{number:.2g}" if abs(number) < 10 else f"{number:.0f}"
    return str(int(number)) if number.is_integer() else f"{number:.{digits}g}"
