"""Benchmarks (`make bench`): speed of sampling and training, beside the most that the machine's matrix unit reaches.

All of a run's numbers come from one process, so that their ratios are good on a noisy machine. FLOPs are counted from
the model: guidance takes the forward pass and the gradient by the input, 2 forward passes' worth for linear layers and
convolutions and 3 for attention, whose both factors depend on the input; training takes 3. Nothing is counted twice
where a kernel computes it again.
"""

import argparse
import csv
import json
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from reference_dps import reference_dps
from torch import Tensor, nn

from vsr_lightning import provenance
from vsr_lightning.config import load_config
from vsr_lightning.degradation.downsample import Downsample
from vsr_lightning.errors import UserError
from vsr_lightning.experiment import Experiment
from vsr_lightning.inference.dps import Observation, dps_sample
from vsr_lightning.inference.noise import SamplerNoise
from vsr_lightning.models.prior import Prior, load_prior
from vsr_lightning.models.video_dit import Attention, VideoDiT
from vsr_lightning.processes import multiplies_bf16
from vsr_lightning.training.run import check_clips, compile_for_training, make_datamodule, make_module, train

Result = dict[str, Any]
IN_BF16 = "ours, eager, bf16"  # on a CPU
SUSTAINED_SECONDS = 3.0  # of matrix products, of whose rate the second half counts


# ------------------------------------------------------------------------------------------------ counting


def forward_flops(network: nn.Module, *inputs: Tensor) -> tuple[float, float]:
    """FLOPs of one forward pass: of linear layers and convolutions, and of attention."""
    dense, attention = 0.0, 0.0

    def count_dense(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal dense
        weight: Tensor = module.weight  # type: ignore[assignment]
        dense += 2 * output.numel() * weight[0].numel()

    def count_attention(module: Attention, args: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal dense, attention
        batch, tokens, width = args[0].shape
        dense += 2 * batch * tokens * module.qkv.weight.numel()  # applied by its weight, so no hook hears of it
        attention += 4 * batch * tokens**2 * width  # q k^T, and the weights times v

    hooks = []
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            hooks.append(module.register_forward_hook(count_dense))
        elif isinstance(module, Attention):
            hooks.append(module.register_forward_hook(count_attention))
    with torch.no_grad():
        network(*inputs)
    for hook in hooks:
        hook.remove()
    return dense, attention


def guidance_flops(prior: Prior) -> dict[str, float]:
    """FLOPs of one guided step of one video, forward and gradient by the input, of DiT and decoder."""
    z = torch.zeros(1, *prior.latent_shape)
    parts = {
        "DiT": forward_flops(prior.dit, z, torch.zeros(1, dtype=torch.long)),
        "decoder": forward_flops(prior.vae.decoder, z.flatten(0, 1)),
    }
    return {name: 2 * dense + 3 * attention for name, (dense, attention) in parts.items()}


def training_flops(dit: nn.Module, z: Tensor) -> float:
    """FLOPs of one training step of one video."""
    return 3 * sum(forward_flops(dit, z[:1], torch.zeros(1, dtype=torch.long)))


# ------------------------------------------------------------------------------------------------- timing


def seconds(work: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Median time of one call, after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        synchronise(device)
        start = time.perf_counter()
        work()
        synchronise(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_rates(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """FLOP/s of a large square matrix product: the most that this machine reaches, and what it sustains.

    A GPU at its power limit slows down after some tenths of a second, and steps take longer than that.
    """
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))

    def products(count: int) -> None:
        for _ in range(count):
            a @ b

    shortest = seconds(lambda: products(1), device, repeats=10)
    half = max(1, round(SUSTAINED_SECONDS / 2 / shortest))
    return 2 * size**3 / shortest, 2 * size**3 * half / seconds(lambda: products(half), device, repeats=1)


# ------------------------------------------------------------------------------------------------ subjects


def observation(prior: Prior, batch: int, device: torch.device) -> Observation:
    """8x observations of grey clips; what is seen does not change the speed."""
    blur = [2.0] * batch
    operator = Downsample(factor=8).operator(blur, *prior.video_shape[-2:], device)
    y = operator(torch.zeros(batch, *prior.video_shape, device=device))
    return Observation(y, operator, torch.ones(batch, device=device), blur)


def check_steps(prior: Prior, steps: int) -> None:
    """Raise UserError where the prior's schedule has fewer steps."""
    try:
        prior.schedule.respaced(steps)
    except UserError as error:
        raise UserError(f"--steps: {error}") from None


def bench_sampling(
    prior_folder: str, batch: int, steps: int, device: torch.device, repeats: int, profile_to: Path | None = None
) -> list[Result]:
    """Algorithm 1, plain and compiled, and the eager float32 reference; then the two networks of a step alone."""
    prior = load_prior(prior_folder).to(device)
    flops = guidance_flops(load_prior(prior_folder))
    seen = observation(prior, batch, device)
    keys = [(0, video, 0) for video in range(batch)]

    def noise() -> SamplerNoise:
        return SamplerNoise(keys, prior.latent_shape, device)

    def ours(bf16: bool = False) -> Tensor:
        with autocast(device, bf16):
            return dps_sample(prior, seen, noise(), steps=steps, zeta=1.0)

    def reference() -> Tensor:
        return reference_dps(prior, seen.degrade, seen.y, noise(), steps, 1.0)

    def measure(name: str, kind: str, work: Callable[[], Any], steps: int, flops: float) -> Result:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        rate = batch * steps / seconds(work, device, repeats)
        return {
            "subject": name,
            "kind": kind,
            "batch": batch,
            "per_second": rate,
            "unit": "sample-steps",
            "tflops": rate * flops / 1e12,
            "peak_memory_gib": peak_memory(device),
        }

    whole = sum(flops.values())
    results = [
        measure("reference, eager float32", "sampling", reference, steps, whole),
        measure("ours, eager", "sampling", ours, steps, whole),
    ]
    if device.type == "cpu" and multiplies_bf16():
        results.append(measure(IN_BF16, "sampling", lambda: ours(bf16=True), steps, whole))
    prior.compile_for_sampling(torch.bfloat16 if device.type == "cuda" else None)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    ours()
    # The memory of CUDA graphs is taken when they are captured: a replay's is not counted.
    first_use = {"first_use_seconds": time.perf_counter() - start, "peak_memory_gib": peak_memory(device)}
    results.append(measure("ours, compiled", "sampling", ours, steps, whole) | first_use)
    for result in results:
        result["ratio"] = result["per_second"] / results[0]["per_second"]
    for name, work in networks(prior, batch, device).items():
        results.append(measure(f"{name} alone, compiled", "part", work, 1, flops[name]))
    if profile_to is not None:
        profile(ours, device, profile_to)
    return results


def networks(prior: Prior, batch: int, device: torch.device) -> dict[str, Callable[[], Any]]:
    """Each network's share of a step: forward, and the gradient by its input."""
    z = torch.randn(batch, *prior.latent_shape, device=device, requires_grad=True)
    t = torch.zeros(batch, dtype=torch.long, device=device)

    def gradient(network: Callable[[Tensor], Tensor]) -> Tensor:
        with autocast(device):
            return torch.autograd.grad(network(z).sum(), z)[0]

    return {
        "DiT": lambda: gradient(lambda z_t: prior.dit(z_t, t)),
        "decoder": lambda: gradient(prior.decode),
    }


def autocast(device: torch.device, bf16: bool = False) -> torch.autocast:
    """bf16 on a GPU, or where it is asked for."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16 or device.type == "cuda")


def bench_training(
    dit: VideoDiT, batch: int, device: torch.device, repeats: int, profile_to: Path | None = None
) -> list[Result]:
    """Steps of a DiT's training, compiled on a GPU: forward, backward and optimiser, on latents that are there."""
    z = torch.randn(batch, *dit.latent_shape)
    flops = training_flops(dit, z)
    dit.to(device).requires_grad_(True).train()
    z = z.to(device)
    optimiser = torch.optim.AdamW(dit.parameters(), lr=1e-6, fused=True)
    t = torch.zeros(batch, dtype=torch.long, device=device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        compile_for_training(dit)

    def work() -> None:
        with autocast(device):
            loss = (dit(z, t) - z).square().mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    rate = batch / seconds(work, device, repeats)
    if profile_to is not None:
        profile(work, device, profile_to)
    return [
        {
            "subject": "DiT training",
            "kind": "training",
            "batch": batch,
            "per_second": rate,
            "unit": "videos",
            "tflops": rate * flops / 1e12,
            "peak_memory_gib": peak_memory(device),
        }
    ]


def bench_experiment(experiment: Experiment, device: torch.device) -> list[Result]:
    """What `bench_training` leaves out: the loader alone, and steps as `train` makes them, with loader, VAE, average of
    the weights and logging. FLOPs are still the DiT's."""
    batch = experiment.data["batch_size"]
    rates = {"loader alone": loader_rate(experiment, device), "steps of the train command": train_rate(experiment)}
    dit = make_module(experiment).dit
    flops = training_flops(dit, torch.zeros(1, *dit.latent_shape))
    common = {"kind": "training", "batch": batch, "unit": "videos"}
    return [
        {"subject": name, **common, "per_second": rate} | ({"tflops": rate * flops / 1e12} if "train" in name else {})
        for name, rate in rates.items()
    ]


def loader_rate(experiment: Experiment, device: torch.device) -> float:
    """Videos a second that reach the device, nothing being done with them."""
    datamodule = make_datamodule(experiment)
    loader = datamodule.train_dataloader()
    batches = iter(loader)
    # When the clock starts, workers have so many ready: as many are taken before, and many times as many after.
    ready = loader.num_workers * (loader.prefetch_factor or 0) + 1

    def take(count: int) -> None:
        for _ in range(count):
            datamodule.on_after_batch_transfer(next(batches).to(device, non_blocking=True), 0)
        synchronise(device)

    take(ready)
    start = time.perf_counter()
    take(10 * ready)
    return 10 * ready * datamodule.batch_size / (time.perf_counter() - start)


def train_rate(experiment: Experiment) -> float:
    """Videos a second of `train`'s steps, without the first one, which compiles."""
    with tempfile.TemporaryDirectory() as folder:
        experiment.runs_dir = folder
        checkpoint = torch.load(train(experiment) / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)
    videos = (checkpoint["global_step"] - 1) * experiment.data["batch_size"]
    return videos / checkpoint["callbacks"]["Throughput"]["seconds"]


def short_training(path: str, overrides: list[str], steps: int, devices: int = 1) -> Experiment:
    """A DiT's experiment cut to so many steps, compiled on a GPU, neither checked nor logged.

    Raises UserError.
    """
    compiled = "always" if torch.cuda.is_available() else "never"
    settings = [f"training.max_steps={steps}", f"training.val_every={steps}", "training.check_videos=0"]
    settings += [f"trainer.compile={compiled}", f"trainer.devices={devices}", "trainer.progress=false"]
    settings += ["logging.mode=disabled"]
    experiment = load_config(path, [*overrides, *settings])
    if experiment.training.stage != "dit":
        raise UserError(f"{path}: trains a VAE; name the experiment of a DiT")
    if steps < 2:
        raise UserError(f"--train-steps: must be at least 2, not {steps}: the first one compiles")
    check_clips(make_datamodule(experiment), make_module(experiment), experiment)
    return experiment


# ---------------------------------------------------------------------------------------------- profiling


def profile(work: Callable[[], Any], device: torch.device, path: Path, rows: int = 40) -> None:
    """Write which kernels the time of one call goes to, the longest first."""
    activity = torch.profiler.ProfilerActivity.CUDA if device.type == "cuda" else torch.profiler.ProfilerActivity.CPU
    work()
    synchronise(device)
    with torch.profiler.profile(activities=[activity]) as profiler:
        work()
        synchronise(device)
    table = profiler.key_averages().table(sort_by=f"self_{device.type}_time_total", row_limit=rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(table + "\n")
    print(path)


def peak_memory(device: torch.device) -> float | None:
    """GiB of GPU memory since the last reset; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None


# ------------------------------------------------------------------------------------------------ command


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text}")
    return int(text)


def describe_run() -> dict[str, Any]:
    """The command and the machine."""
    return {"command": provenance.command_line("tests/" + Path(sys.argv[0]).name), **provenance.describe_machine()}


def results_folder() -> Path:
    """Beside the results that are shipped, by hardware, as experiments/results/bench/nvidia-h200."""
    return Path("experiments/results/bench") / re.sub(r"\W+", "-", provenance.hardware().lower())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="data/checkpoints/moving_mnist")
    parser.add_argument("--output", type=Path, default=results_folder(), help="folder (%(default)s)")
    parser.add_argument("--batch", type=positive, help="videos a step (160 on a GPU, as sweeps take; 2 on a CPU)")
    parser.add_argument("--train-batch", type=positive, help="videos a training step (256 on a GPU, 4 on a CPU)")
    parser.add_argument("--steps", type=positive, help="sampler steps a measurement (100 on a GPU, 2 on a CPU)")
    parser.add_argument(
        "--repeats", type=positive, default=3, help="measurements, of which the median counts (%(default)s)"
    )
    parser.add_argument("--profile", action="store_true", help="also write which kernels the time goes to")
    parser.add_argument("--only", choices=("sampling", "training"), help="measure this alone")
    parser.add_argument("--train", metavar="YAML", help="train this DiT, also with the loader and as the command does")
    parser.add_argument("--train-steps", type=positive, help="such steps (300 on a GPU, 3 on a CPU)")
    parser.add_argument("overrides", nargs="*", help="key=value, of the experiment of --train")
    options = parser.parse_intermixed_args()

    on_gpu = torch.cuda.is_available()
    batch, steps = options.batch or (160 if on_gpu else 2), options.steps or (100 if on_gpu else 2)
    train_batch = options.train_batch or (256 if on_gpu else 4)
    training = None
    try:  # before minutes of measurements
        check_steps(load_prior(options.prior), steps)
        if options.train and options.only == "sampling":
            raise UserError("--only sampling: trains nothing; leave --train out")
        if options.train:
            training = short_training(options.train, options.overrides, options.train_steps or (300 if on_gpu else 3))
        elif options.overrides:
            raise UserError(f"{options.overrides[0]}: is for the experiment of --train, which is missing")
    except UserError as error:
        parser.exit(2, f"error: {error}\n")
    device = torch.device("cuda" if on_gpu else "cpu")
    torch.set_float32_matmul_precision("high")  # TF32, for the reference too
    torch.backends.cudnn.benchmark = True  # for the reference too, as sweeps and training have it
    peak, sustained = matrix_rates(device, torch.bfloat16 if on_gpu else torch.float32)
    profiles = [
        options.output / f"profile-{name}.txt" if options.profile else None for name in ("sampling", "training")
    ]
    results = []
    try:
        if options.only != "training":
            results += bench_sampling(options.prior, batch, steps, device, options.repeats, profiles[0])
        if options.only != "sampling":
            dit = make_module(training).dit if training else load_prior(options.prior).dit
            results += bench_training(dit, train_batch, device, options.repeats, profiles[1])
            if training:
                results += bench_experiment(training, device)
    except torch.cuda.OutOfMemoryError as error:
        parser.exit(1, f"error: {str(error).splitlines()[0]} A smaller --batch or --train-batch takes less.\n")
    for result in results:
        if "tflops" in result and result["subject"] != IN_BF16:  # a CPU's rate is that of float32
            result["share_of_matrix_rate"] = result["tflops"] * 1e12 / peak
            result["share_of_sustained_rate"] = result["tflops"] * 1e12 / sustained
    rates = {"matrix_tflops": peak / 1e12, "sustained_matrix_tflops": sustained / 1e12}
    machine = {**rates, "host": platform.machine(), **describe_run()}
    write(results, machine, options.output)


def write(results: list[Result], machine: dict[str, Any], folder: Path) -> None:
    """Print the table, and keep it as `bench.csv` beside `machine.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(column for result in results for column in result))
    with (folder / "bench.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(results)
    (folder / "machine.json").write_text(json.dumps(machine, indent=2) + "\n")
    print(
        f"matrix rate {machine['matrix_tflops']:.2f} TFLOP/s, {machine['sustained_matrix_tflops']:.2f} sustained; "
        "shares are of these"
    )
    for result in results:
        ratio = f", {result['ratio']:.2f} x the reference" if "ratio" in result else ""
        compiling = f", {result['first_use_seconds']:.0f} s on first use" if result.get("first_use_seconds") else ""
        share = (
            f", {result['tflops']:.2f} TFLOP/s ({result['share_of_matrix_rate']:.1%}, "
            f"{result['share_of_sustained_rate']:.1%})"
            if "share_of_matrix_rate" in result
            else ""
        )
        print(
            f"{result['subject']:26} batch {result['batch']:3}: {result['per_second']:9.2f} {result['unit']}/s"
            f"{share}{ratio}{compiling}"
        )
    print(folder / "bench.csv")


if __name__ == "__main__":
    main()
