"""The dashboard is built and serialised without a network; its panels find the metrics that training and sweeps log."""

import json
import re
import sys

import pytest

from vsr_lightning import dashboard

LOGGED = {
    "PSNR of the first frame [dB]": ["frame_count/random/psnr_first", "frame_count/sigma_h=2/sequential/psnr_first"],
    "PSNR of the mean over noise instances [dB]": ["frame_count/random/psnr_first_of_mean"],
    "SSIM": ["frame_count/sequential/ssim_mean"],
    "Reconstruction and posterior check: PSNR [dB]": ["val/psnr", "val/dps_psnr_first"],
    "Loss": ["train/loss", "train/mse"],
    "Validation loss by noise level": ["val/loss", "val/loss_t0"],
    "Training [videos/s]": ["train/videos_per_s"],
    "Sampling [s per restoration]": ["frame_count/random/seconds", "frame_count/sigma_h=2/sequential/seconds"],
}


@pytest.fixture
def sections():
    """The sections as they would be sent to W&B, by name."""
    content = json.loads(dashboard.workspace("lab", "vsr-lightning")._to_model().model_dump_json(by_alias=True))
    assert (content["entity"], content["project"], content["displayName"]) == ("lab", "vsr-lightning", dashboard.NAME)
    return {section["name"]: section["panels"] for section in content["spec"]["section"]["panelBankConfig"]["sections"]}


def test_the_sections_a_reader_wants_first(sections):
    assert list(sections) == ["Sweeps", "Training", "Speed", "Tables", "Pictures"]
    assert "tables/summary" in json.dumps(sections["Tables"][0])
    assert {"tables/paired", "tables/samplers"} <= set(dashboard.TABLES)
    keys = [panel["config"]["mediaKeys"] for panel in sections["Pictures"]]
    assert [names[0] for names in keys] == ["pictures/reconstruction", "figures/fig2", "clips/restored"]
    assert "figures/samplers" in keys[1]


def test_the_speed_of_sampling_is_a_bar_for_each_run(sections):
    (bars,) = [panel["config"] for panel in sections["Speed"] if panel["viewType"] == "Bar Chart"]
    assert bars["metrics"] == ["speed/sample_steps_per_s"]


def test_every_curve_finds_its_metrics(sections):
    panels = {
        panel["config"]["chartTitle"]: panel["config"]
        for name in dashboard.CURVES
        for panel in sections[name]
        if panel["viewType"] == "Run History Line Plot"
    }
    assert panels.keys() == LOGGED.keys()
    for title, metrics in LOGGED.items():
        assert panels[title]["useMetricRegex"]
        assert all(re.search(panels[title]["metricRegex"], metric) for metric in metrics)
    assert panels["SSIM"]["xAxis"] == "frame_count/num_frames"
    assert panels["Loss"]["xAxis"] == "trainer/global_step"


def test_without_a_key_it_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    assert dashboard.main([]) == 2
    assert "logging.mode: a dashboard needs a W&B API key" in capsys.readouterr().err


def test_without_the_package_it_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    assert dashboard.main(["logging.entity=lab"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install -c constraints.txt -e '.[dashboard]'" in line


def test_what_wandb_refuses_is_one_line(monkeypatch, capsys):
    import wandb

    def refuse(*_):
        raise wandb.errors.CommError("no route\nto host")

    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr(wandb, "Api", refuse)
    assert dashboard.main([]) == 2
    assert capsys.readouterr().err == "error: W&B: no route\n"
