"""How the report names columns, orders them, and rounds the numbers beneath."""

from collections.abc import Sequence

# What runs differ in, in the order in which the page names it.
SETTINGS = (
    *("num_frames", "order", "factor", "kernel", "sigma_h", "sigma_y", "sampler", "steps", "zeta"),
    *("seed", "prior", "dataset"),
)
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
}
VARIANTS = {"_bicubic": "bicubic", "_vae": "VAE", "_of_mean": "mean of samples", "_difference": "difference"}
DECIMALS = {"psnr": 2, "ssim": 3, "temporal_error": 4, "residual_rms": 4, "seconds": 1}  # by the column's beginning


def place(name: str, known: Sequence[str]) -> tuple[int, str]:
    """To sort by: the place in `known`, all others after them by name."""
    return (known.index(name) if name in known else len(known)), name


def label(column: str) -> str:
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
    """Fixed decimals where DECIMALS has them, so that a column lines up; else an integer, or so many digits."""
    for beginning, decimals in DECIMALS.items():
        if column.startswith(beginning):
            return f"{number:.{decimals}f}"
    return str(int(number)) if number.is_integer() else f"{number:.{digits}g}"
