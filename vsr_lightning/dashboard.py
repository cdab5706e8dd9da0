"""The W&B workspace as code: `python -m vsr_lightning.dashboard [logging.project=… logging.entity=…]`.

It shows what a reader looks at first: PSNR against the number of observed frames, validation PSNR, losses, speed,
then tables, figures, pictures and clips. Saved anew at each call, as a view of its own.
"""

import sys
from typing import Any

from vsr_lightning import wandb_logger
from vsr_lightning.config import load_config
from vsr_lightning.errors import UserError, first_line

NAME = "Video super-resolution"
# Section: panels, each a title, a regular expression of the metrics, and the metric of the x axis.
CURVES = {
    "Sweeps": [
        ("PSNR of the first frame [dB]", r"frame_count/.*psnr_first$", "frame_count/num_frames"),
        ("PSNR of the mean over noise instances [dB]", r"frame_count/.*psnr_first_of_mean$", "frame_count/num_frames"),
        ("SSIM", r"frame_count/.*ssim_mean$", "frame_count/num_frames"),
    ],
    "Training": [
        ("Reconstruction and posterior check: PSNR [dB]", r"val/(psnr|dps_psnr_first)$", "trainer/global_step"),
        ("Loss", r"train/(loss|mse)$", "trainer/global_step"),
        ("Validation loss by noise level", r"val/loss", "trainer/global_step"),
    ],
    "Speed": [
        ("Training [videos/s]", r"train/videos_per_s$", "trainer/global_step"),
        ("Sampling [s per restoration]", r"frame_count/.*seconds$", "frame_count/num_frames"),
    ],
}
# Section: numbers of a whole run, a bar each.
BARS = {"Speed": [("Sampling [sample-steps/s of a device]", "speed/sample_steps_per_s")]}
MEDIA = {
    "Reconstruction, above the truth; samples": ["pictures/reconstruction", "pictures/restoration", "pictures/sample"],
    "Figures of sweeps": [*(f"figures/fig{number}" for number in range(2, 8)), "figures/samplers"],
    "Clips: observed, restored, true": ["clips/restored"],
}
TABLES = tuple(f"tables/{name}" for name in ("summary", "paired", "convergence", "samplers", "table1", "results"))


def workspace(entity: str, project: str) -> Any:
    """The workspace of a W&B project, not saved yet. Needs no network. Raises UserError."""
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ImportError:
        raise UserError(
            f"wandb-workspaces: is not installed; {wandb_logger.BIN}pip install -c constraints.txt -e '.[dashboard]'"
        ) from None

    sections = []
    for name, panels in CURVES.items():
        plots: list[Any] = [wr.LinePlot(title=title, x=x, metric_regex=metrics) for title, metrics, x in panels]
        plots += [wr.BarPlot(title=title, metrics=[metric]) for title, metric in BARS.get(name, [])]
        sections.append(ws.Section(name, plots, is_open=True))
    tables: list[Any] = [wr.WeavePanelSummaryTable(table_name=name) for name in TABLES]
    media: list[Any] = [wr.MediaBrowser(title=title, media_keys=keys) for title, keys in MEDIA.items()]
    sections += [ws.Section("Tables", tables), ws.Section("Pictures", media)]
    return ws.Workspace(entity=entity, project=project, name=NAME, sections=sections)


def main(overrides: list[str] | None = None) -> int:
    """Save the workspace and print its address. Returns the exit code: 0, or 2 after one line on stderr."""
    try:
        experiment = load_config("experiments/base.yaml", sys.argv[1:] if overrides is None else overrides)
        if wandb_logger.logging_mode(experiment) != "online":
            raise UserError("logging.mode: a dashboard needs a W&B API key; run `wandb login`, or set WANDB_API_KEY")
        url = _save(experiment.logging.entity, experiment.logging.project)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(url)
    return 0


def _save(entity: str, project: str) -> str:
    """Save the workspace; returns its address. Raises UserError."""
    import wandb

    try:
        view = workspace(entity or wandb.Api().default_entity or "", project)
        view.save()
    except wandb.errors.Error as error:  # of the key, the network, the project
        raise UserError(f"W&B: {first_line(error)}") from None
    return view.url


if __name__ == "__main__":
    sys.exit(main())
