"""The benchmark's counting against torch's own counter, its reference loop against the product, and a tiny run."""

import csv
import json
import sys
from pathlib import Path

import bench_devices
import pytest
import torch
from bench import IN_BF16, bench_experiment, forward_flops, guidance_flops, main, short_training, training_flops
from reference_dps import reference_dps
from test_dps import SHAPE, CurvedPrior, first_frame, normal, replay, seen
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vsr_lightning.inference.dps import dps_sample
from vsr_lightning.models.prior import load_prior
from vsr_lightning.models.schedule import LinearSchedule
from vsr_lightning.models.video_dit import VideoDiT

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("attention", ["full", "factorized"])
def test_forward_flops_are_those_of_torchs_counter(attention):
    dit = VideoDiT(num_frames=3, latent_size=4, width=32, depth=2, heads=2, attention=attention)
    inputs = torch.zeros(2, *dit.latent_shape), torch.zeros(2, dtype=torch.long)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        dit(*inputs)
    assert sum(forward_flops(dit, *inputs)) == pytest.approx(counter.get_total_flops())


def test_guidance_flops_are_those_of_torchs_counter(tiny_prior):
    """Forward and backward through DiT and decoder, no parameter having a gradient."""
    prior = load_prior(tiny_prior)
    z = torch.zeros(1, *prior.latent_shape, requires_grad=True)
    t = torch.zeros(1, dtype=torch.long)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        (prior.dit(z, t).sum() + prior.decode(z).sum()).backward()
    # The time embedding has no gradient by z: counted twice here, once there.
    assert sum(guidance_flops(prior).values()) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_reference_loop_is_the_products_sampler():
    prior = CurvedPrior(LinearSchedule(60, 1e-3, 0.2))
    y, draws = normal(4, 1, *SHAPE[1:], seed=1), normal(31, 4, *SHAPE, seed=2)
    expected = reference_dps(prior, first_frame, y, replay(draws), steps=30, zeta=0.7)
    x_hat = dps_sample(prior, seen(y), replay(draws), steps=30, zeta=0.7)
    torch.testing.assert_close(x_hat, expected, atol=1e-4, rtol=0)  # alpha_bar is float32 there


@pytest.mark.parametrize("has_bf16", [True, False])
def test_a_tiny_run_keeps_its_table(has_bf16, tiny_prior, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("bench.multiplies_bf16", lambda: has_bf16)
    monkeypatch.setattr("bench.matrix_rates", lambda device, dtype: (1e12, 5e11))
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **options: None)  # a minute of C++ otherwise
    arguments = ["--prior", tiny_prior, "--output", tmp_path / "bench", "--batch", 1, "--train-batch", 1]
    monkeypatch.setattr(sys, "argv", ["bench.py", *map(str, arguments), "--steps", "1", "--repeats", "1", "--profile"])
    main()
    rows = list(csv.DictReader((tmp_path / "bench" / "bench.csv").open()))
    assert [row["kind"] for row in rows] == ["sampling"] * (3 + has_bf16) + ["part"] * 2 + ["training"]
    assert float(rows[0]["ratio"]) == 1
    in_bf16 = [rows.pop(place) for place, row in enumerate(rows) if row["subject"] == IN_BF16]
    assert [(row["share_of_matrix_rate"], float(row["ratio"]) > 0) for row in in_bf16] == [("", True)] * has_bf16
    assert all(float(row["share_of_matrix_rate"]) == pytest.approx(float(row["tflops"])) for row in rows)
    assert all(float(row["share_of_sustained_rate"]) == pytest.approx(2 * float(row["tflops"])) for row in rows)
    for name in ("sampling", "training"):
        assert "aten::" in (tmp_path / "bench" / f"profile-{name}.txt").read_text()
    machine = json.loads((tmp_path / "bench" / "machine.json").read_text())
    assert (machine["matrix_tflops"], machine["sustained_matrix_tflops"]) == (1, 0.5)
    assert machine["command"] == " ".join(["python", "tests/bench.py", *sys.argv[1:]])
    assert "x the reference" in capsys.readouterr().out


def test_the_loader_and_the_train_command_are_measured_too(tiny_prior, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    card = load_prior(tiny_prior).card
    sizes = [f"dit.{key}={value}" for key, value in card["dit"].items() if key != "target"]
    experiment = short_training(
        str(ROOT / "experiments/moving_mnist/dit.yaml"),
        [
            *(f"training.vae_prior={tiny_prior}", "trainer.accelerator=cpu", "data.digits=embedded", *sizes),
            *("data.batch_size=2", "data.num_workers=0", "data.val_videos=2"),
        ],
        steps=3,
    )
    loader, whole = bench_experiment(experiment, torch.device("cpu"))
    assert (loader["subject"], whole["subject"]) == ("loader alone", "steps of the train command")
    assert loader["per_second"] > whole["per_second"] > 0
    flops = training_flops(load_prior(tiny_prior).dit, torch.zeros(1, *load_prior(tiny_prior).latent_shape))
    assert whole["tflops"] == pytest.approx(whole["per_second"] * flops / 1e12)
    assert "tflops" not in loader
    assert not (tmp_path / "runs").exists()


def test_training_alone_is_of_the_experiments_dit(tiny_prior, tmp_path, monkeypatch):
    """Wider than the prior's, and beside rates that are measured."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bench.SUSTAINED_SECONDS", 0.01)
    dit = {**load_prior(tiny_prior).card["dit"], "width": 64}
    monkeypatch.setattr("bench.provenance.hardware", lambda: "NVIDIA H200")
    arguments = ["--prior", tiny_prior, "--only", "training", "--train-batch", 2, "--repeats", 1]
    arguments += ["--train", ROOT / "experiments/moving_mnist/dit.yaml", f"training.vae_prior={tiny_prior}"]
    arguments += ["trainer.accelerator=cpu", "data.digits=embedded", "data.batch_size=2", "data.num_workers=0"]
    arguments += ["data.val_videos=2", *(f"dit.{key}={value}" for key, value in dit.items() if key != "target")]
    monkeypatch.setattr(sys, "argv", ["bench.py", *map(str, arguments)])
    main()
    folder = tmp_path / "experiments/results/bench/nvidia-h200"
    rows = list(csv.DictReader((folder / "bench.csv").open()))
    assert [row["subject"] for row in rows] == ["DiT training", "loader alone", "steps of the train command"]
    wide = VideoDiT(**{key: value for key, value in dit.items() if key != "target"})
    flops = training_flops(wide, torch.zeros(1, *wide.latent_shape))
    for row in (rows[0], rows[2]):
        assert float(row["tflops"]) == pytest.approx(float(row["per_second"]) * flops / 1e12)
    machine = json.loads((folder / "machine.json").read_text())
    shares = float(rows[0]["share_of_matrix_rate"]), float(rows[0]["share_of_sustained_rate"])
    rates = machine["matrix_tflops"], machine["sustained_matrix_tflops"]
    assert [share * rate for share, rate in zip(shares, rates, strict=True)] == pytest.approx(
        [float(rows[0]["tflops"])] * 2
    )
    assert 0.2 < rates[1] / rates[0] < 5  # noisy machines


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--train", str(ROOT / "experiments/moving_mnist/vae.yaml")], "vae.yaml: trains a VAE"),
        (["--train", str(ROOT / "experiments/moving_mnist/dit.yaml"), "--train-steps", "1"], "--train-steps: must be"),
        (["--train", str(ROOT / "experiments/moving_mnist/dit.yaml"), "data.bach_size=2"], "bach_size"),
        (["--train", str(ROOT / "experiments/moving_mnist/dit.yaml"), "--only", "sampling"], "leave --train out"),
        (["data.batch_size=2"], "data.batch_size=2: is for the experiment of --train"),
        (["--prior", "nowhere"], "error: nowhere"),
        (["--steps", "5000"], "error: --steps: sampler.steps: 5000 is not between 1 and 1000"),
        *(
            ([f"--{name}", number], f"error: argument --{name}: must be a whole number of at least 1, not {number}")
            for name in ("repeats", "batch", "steps", "train-batch", "train-steps")
            for number in ("0", "-3", "two")
        ),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(arguments, line, tiny_prior, monkeypatch, capsys):
    monkeypatch.setattr("bench.matrix_rates", lambda device, dtype: pytest.fail("measured"))
    monkeypatch.setattr(sys, "argv", ["bench.py", "--prior", str(tiny_prior), *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert line in capsys.readouterr().err


def test_a_gpu_that_is_too_small(tiny_prior, tmp_path, monkeypatch, capsys):
    def too_much(*args):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nMore of it")

    monkeypatch.setattr("bench.matrix_rates", lambda device, dtype: (1e12, 5e11))
    monkeypatch.setattr("bench.bench_sampling", too_much)
    monkeypatch.setattr(sys, "argv", ["bench.py", "--prior", str(tiny_prior), "--output", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    assert "allocate 20 GiB. A smaller --batch or --train-batch takes less.\n" in capsys.readouterr().err


def test_curves_of_one_device_and_of_several_are_compared_step_by_step(tiny_prior, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(bench_devices, "WARM_UP", 1)
    monkeypatch.setattr(bench_devices, "SMOOTHED", 1)
    sizes = [f"dit.{key}={value}" for key, value in load_prior(tiny_prior).card["dit"].items() if key != "target"]
    arguments = [
        *("--devices", "1", "--batch", "2", "--steps", "4", "--output", tmp_path / "devices", *sizes),
        *(f"training.vae_prior={tiny_prior}", "trainer.accelerator=cpu", "data.digits=embedded"),
        *("data.num_workers=0", "data.val_videos=2"),
    ]
    monkeypatch.setattr(sys, "argv", ["bench_devices.py", *map(str, arguments)])
    bench_devices.main()
    capsys.readouterr()
    one = list(csv.DictReader((tmp_path / "devices" / "losses-1.csv").open()))
    losses = [float(row["loss"]) for row in one]
    assert len(losses) == 4
    assert all(0 < loss < 5 for loss in losses)
    assert float(one[0]["videos_per_second"]) > 0

    two = [loss + gap for loss, gap in zip(losses, (9, 9, 0.25, 0.75), strict=True)]  # the first half does not count
    lines = [f"{step},{loss},2,{3 * float(one[0]['videos_per_second'])}" for step, loss in enumerate(two, start=1)]
    header = "step,loss,batch,videos_per_second"
    (tmp_path / "devices" / "losses-2.csv").write_text("\n".join([header, *lines, ""]))
    alone, beside = bench_devices.compare(tmp_path / "devices")
    assert (alone["ratio"], alone["loss_difference"], beside["ratio"]) == (1, 0, pytest.approx(3))
    assert (beside["loss_difference"], beside["loss_difference_se"]) == (pytest.approx(0.5), pytest.approx(0.25))
    assert (tmp_path / "devices" / "devices.png").stat().st_size > 1000
