"""Batches of observations through Lightning's prediction loop: what is observed, restored, measured and reported."""

import math
from dataclasses import replace
from functools import partial

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vsr_lightning.degradation.downsample import Downsample, upsample_bicubic
from vsr_lightning.degradation.frame_mask import frame_mask
from vsr_lightning.errors import UserError
from vsr_lightning.inference.dps import dps_sample
from vsr_lightning.inference.lit_vsr import (
    WARM_UP_STEPS,
    FailureLog,
    LitVSR,
    ObservationBatch,
    Restoration,
    check_frames,
)
from vsr_lightning.inference.noise import sensor_noise
from vsr_lightning.metrics import psnr
from vsr_lightning.models.prior import Prior, load_prior

SCORES = ("psnr_first", "psnr_mean", "ssim_mean", "temporal_error")
MEASURED = {"residual_rms", "seconds", *(score + of for score in SCORES for of in ("", "_bicubic", "_vae"))}
STEPS = 4


@pytest.fixture
def prior(tiny_prior) -> Prior:
    """Networks whose output depends on all of their input, as a trained prior's does."""
    prior = load_prior(tiny_prior)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, parameter in prior.dit.named_parameters():
            if not name.endswith(("q_norm.weight", "k_norm.weight")):
                nn.init.normal_(parameter, std=0.1)
    return prior


def make_batch(prior: Prior, items: list[int], size: int | None = None, **changes) -> ObservationBatch:
    """Item i is a video of its own, observed under conditions of its own."""
    distinct = [*dict.fromkeys(items)]
    clips = [torch.rand(prior.video_shape, generator=torch.Generator().manual_seed(100 + i)) * 2 - 1 for i in distinct]
    observed = [list(range(1 + 3 * i)) for i in items]
    values = {
        "clips": torch.stack(clips),
        "clip_of": torch.tensor([distinct.index(i) for i in items]),
        "mask": frame_mask(observed, prior.video_shape[0]),
        "sigma_h": [1.0 + i for i in items],
        "sigma_y": torch.tensor([0.02 + 0.1 * i for i in items]),
        "keys": [(0, i, 7) for i in items],
        "factor": 8,
        "kernel": "gaussian",
        "sampler": "dps",
        "steps": STEPS,
        "zeta": torch.tensor([1.0 + i for i in items]),
        "size": size or len(items),
    }
    return ObservationBatch(**{**values, **changes})


def predict(module: LitVSR, *batches: ObservationBatch) -> list[Restoration]:
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        inference_mode=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    return trainer.predict(module, torch.utils.data.DataLoader(list(batches), batch_size=None))


def make_module(prior: Prior, sampler=dps_sample) -> LitVSR:
    return LitVSR(prior, Downsample(), {"dps": sampler})


def without_seconds(measured: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in measured]


def answer_with(x_hat: Tensor):
    """A sampler that needs no work."""
    return lambda prior, observation, noise, *, steps, zeta, on_step: x_hat


def test_a_mixed_batch_equals_its_items_alone(prior):
    """Other blur, noise, frames and zeta beside it change nothing of a sample."""
    module = make_module(prior)
    together, *alone = predict(module, make_batch(prior, [0, 1, 2]), *[make_batch(prior, [i]) for i in range(3)])
    assert together.x_hat.std(dim=0).mean() > 0.01
    for i, single in enumerate(alone):
        torch.testing.assert_close(single.y[0], together.y[i], atol=1e-5, rtol=0)
        for column in MEASURED - {"seconds"}:
            assert single.measured[0][column] == pytest.approx(together.measured[i][column], abs=0.05), column
        assert (single.x_hat[0] - together.x_hat[i]).square().mean().sqrt() < 1e-3


def test_restoration_of_a_batch(prior):
    (result,) = predict(make_module(prior), make_batch(prior, [0, 2]))
    frames, channels, height, width = prior.video_shape
    assert result.x_hat.shape == (2, *prior.video_shape)
    assert result.y.shape == (2, frames, channels, height // 8, width // 8)
    assert result.status == ["ok", "ok"]
    assert [set(row) for row in result.measured] == [MEASURED, MEASURED]
    assert all(np.isfinite(value) for row in result.measured for value in row.values())
    assert not result.x_hat.requires_grad


def test_padding_changes_nothing_and_is_dropped(prior):
    module = make_module(prior)
    last = make_batch(prior, [0, 1, 1], size=2)
    other = make_batch(prior, [0, 1, 2], size=2)
    other.clips[2] = torch.nan
    for padded in predict(module, last, other):
        assert len(padded.y) == len(padded.x_hat) == len(padded.measured) == len(padded.status) == 2
    first, second = predict(module, last, other)
    assert torch.equal(first.x_hat, second.x_hat)
    assert without_seconds(first.measured) == without_seconds(second.measured)
    assert second.status == ["ok", "ok"]
    (plain,) = predict(module, make_batch(prior, [0, 1]))
    torch.testing.assert_close(first.x_hat, plain.x_hat, atol=1e-3, rtol=0)


def test_observation_is_made_from_the_raw_video(prior):
    """Block means of x plus the sample's own noise, on observed frames; the VAE's reconstruction is far from x."""
    sigma_y = torch.tensor([0.0, 0.3])
    batch = make_batch(prior, [0, 1], kernel="box", sigma_h=[0.0, 0.0], sigma_y=sigma_y)
    (result,) = predict(make_module(prior), batch)
    frames, channels, height, width = prior.video_shape
    blocks = batch.x.view(2, frames, channels, height // 8, 8, width // 8, 8).mean(dim=(4, 6))
    noise = sensor_noise(batch.keys, blocks.shape[1:])
    expected = (blocks + sigma_y.view(2, 1, 1, 1, 1) * noise) * batch.mask[:, :, None, None, None]
    torch.testing.assert_close(result.y, expected, atol=1e-5, rtol=0)
    assert result.y[0, 1:].abs().max() == 0
    reconstruction = prior.decode(prior.encode(batch.x)).view(2, frames, channels, height // 8, 8, width // 8, 8)
    assert (reconstruction.mean(dim=(4, 6)) - blocks).abs().mean() > 0.01


def test_observation_made_from_the_reconstruction_where_that_is_asked_for(prior):
    keys = [(0, 0, 7), (0, 0, 8), (0, 1, 7)]  # of samples 0 and 1 the clip is one
    batch = make_batch(prior, [0, 0, 1], keys=keys, sigma_y=torch.zeros(3))
    module = LitVSR(prior, Downsample(kernel="box"), {"dps": answer_with(batch.x)}, observe_reconstruction=True)
    (result,) = predict(module, replace(batch, kernel="box", sigma_h=[0.0] * 3))
    with torch.no_grad():
        reconstruction = prior.decode(prior.encode(batch.x))
    blocks = reconstruction.unflatten(-1, (-1, 8)).unflatten(-3, (-1, 8)).mean(dim=(-3, -1))
    assert (blocks[0, 0] - blocks[2, 0]).abs().max() > 0.01
    torch.testing.assert_close(result.y[:, 0], blocks[:, 0])
    assert all(row["psnr_first"] == math.inf for row in result.measured)  # measured against the truth all the same


def test_the_time_of_a_padded_batch_is_shared_by_what_it_is_for(prior):
    (result,) = predict(make_module(prior), make_batch(prior, [0, 1, 1, 1], size=2))
    assert [row["seconds"] for row in result.measured] == pytest.approx([result.seconds / 2] * 2)


def test_the_vae_sees_each_clip_once(prior, monkeypatch):
    """Clips of samples 0 and 1 are one, under two noise instances, and come again in another batch."""
    seen, encode = [], prior.encode
    monkeypatch.setattr(prior, "encode", lambda x: (seen.append(len(x)), encode(x))[1])
    batch = make_batch(prior, [0, 0, 1], keys=[(0, 0, 7), (0, 0, 8), (0, 1, 7)])
    batches = [batch, make_batch(prior, [2, 0])]
    results = predict(make_module(prior), *batches)
    assert seen == [1, 1, 1]
    for batch, result in zip(batches, results, strict=True):
        expected = psnr(prior.decode(encode(batch.x)), batch.x)[:, 0]
        assert [row["psnr_first_vae"] for row in result.measured] == pytest.approx(expected.tolist(), abs=1e-4)


def test_sensor_noise_of_a_frame_does_not_depend_on_which_are_observed(prior):
    shape = prior.video_shape[0]
    few, all_ = (make_batch(prior, [1], mask=frame_mask([frames], shape)) for frames in ([0, 2], range(shape)))
    first, second = predict(make_module(prior), few, all_)
    assert torch.equal(first.y[:, [0, 2]], second.y[:, [0, 2]])
    assert first.y[:, 1].abs().max() == 0 < second.y[:, 1].abs().max()


def test_measurements(prior):
    """A restoration off by 0.2 on frame 0 and by 0.02 elsewhere, without blur or decimation."""
    batch = make_batch(prior, [0, 1], factor=1, sigma_h=[0.0, 0.0], sigma_y=torch.tensor([0.0, 0.5]))
    batch.clips *= 0.5  # away from the ends, where clamping would change the error
    offset = torch.full((prior.video_shape[0], 1, 1, 1), 0.02)
    offset[0] = 0.2
    (result,) = predict(make_module(prior, sampler=answer_with(batch.x + offset)), batch)
    decibels = -10 * np.log10((offset.flatten().numpy() / 2) ** 2)  # [0, 1] is half as wide as [-1, 1]
    with torch.no_grad():
        coded = prior.decode(prior.encode(batch.x)).clamp(-1, 1)
    for i, row in enumerate(result.measured):
        assert row["psnr_first"] == pytest.approx(20, abs=1e-3)
        assert row["psnr_mean"] == pytest.approx(decibels.mean(), abs=1e-3)
        assert 0.5 < row["ssim_mean"] < 1
        # Frame differences are wrong once, by (0.2 - 0.02) / 2, and right in the other eight of nine.
        assert row["temporal_error"] == pytest.approx(0.09 / 3, rel=1e-3)
        vae_mse = ((coded[i] - batch.x[i]) / 2).square().mean(dim=(1, 2, 3)).numpy()
        assert row["psnr_first_vae"] == pytest.approx(-10 * np.log10(vae_mse[0]), abs=1e-3)
        assert row["psnr_mean_vae"] == pytest.approx(-10 * np.log10(vae_mse).mean(), abs=1e-3)
        assert row["ssim_mean_vae"] < row["ssim_mean"]
        assert row["seconds"] > 0
    # One frame is observed of item 0, exactly; four of item 1, with noise of 0.5.
    assert result.measured[0]["residual_rms"] == pytest.approx(0.2, rel=1e-3)
    assert result.measured[0]["psnr_first_bicubic"] > 60  # the observation itself
    torch.testing.assert_close(result.bicubic, result.y, atol=1e-5, rtol=0)
    grey = batch.x[0, 1:] / 2  # frames that were not observed: the bicubic baseline knows nothing of them
    decibels = -10 * np.log10(grey.square().mean(dim=(1, 2, 3)).numpy())
    first = result.measured[0]["psnr_first_bicubic"]
    assert result.measured[0]["psnr_mean_bicubic"] == pytest.approx((first + decibels.sum()) / 10, abs=0.05)
    assert result.measured[1]["residual_rms"] == pytest.approx(
        np.hypot(0.5, np.sqrt((0.2**2 + 3 * 0.02**2) / 4)), rel=0.05
    )


@pytest.mark.parametrize(("factor", "kernel", "sigma_h"), [(4, "bicubic", 0.0), (8, "gaussian", 4.0), (2, "box", 0.0)])
def test_each_batch_has_an_operator_of_its_own(prior, factor, kernel, sigma_h):
    """One module; the observation and the baseline are those of the batch's factor and kernel."""
    still = {"sigma_h": [sigma_h] * 2, "sigma_y": torch.zeros(2), "mask": torch.ones(2, prior.video_shape[0])}
    batch = make_batch(prior, [0, 1], factor=factor, kernel=kernel, **still)
    other, result = predict(make_module(prior), make_batch(prior, [0]), batch)
    own = Downsample(factor, kernel)
    y = own.operator([sigma_h], *batch.x.shape[-2:])(batch.x)
    torch.testing.assert_close(result.y, y, atol=1e-5, rtol=0)
    torch.testing.assert_close(result.bicubic, upsample_bicubic(y, own), atol=1e-5, rtol=0)
    assert other.y.shape[-1] == batch.x.shape[-1] // 8


def test_a_failing_sample_is_reported_and_the_others_go_on(prior):
    module = make_module(prior)
    good, bad = predict(
        module, make_batch(prior, [0, 1, 2]), make_batch(prior, [0, 1, 2], zeta=torch.tensor([1.0, torch.inf, 3.0]))
    )
    assert bad.status == ["ok", "non-finite at step 1 with zeta inf", "ok"]
    assert torch.equal(bad.x_hat[[0, 2]], good.x_hat[[0, 2]])
    assert without_seconds(bad.measured)[::2] == without_seconds(good.measured)[::2]
    assert np.isnan(bad.measured[1]["psnr_first"])


def test_random_streams_and_conditions_reach_the_sampler(prior):
    heard = {}

    def sampler(prior, observation, noise, *, steps, zeta, on_step, note):
        clean = observation.degrade(batch.x)
        heard.update(draw=noise(), steps=steps, zeta=zeta, clean=clean, note=note, blur=observation.blur)
        return batch.x

    batch = make_batch(prior, [0, 1], sigma_y=torch.zeros(2))
    (result,) = predict(make_module(prior, sampler=partial(sampler, note="bound")), batch)
    assert heard["draw"].shape == (2, *prior.latent_shape)
    assert heard["steps"] == STEPS
    assert heard["zeta"].tolist() == [1, 2]
    assert heard["note"] == "bound"
    assert heard["blur"] == pytest.approx([1.0, 2.0], abs=0.01)
    torch.testing.assert_close(heard["clean"], result.y)  # the masked operator, the same that observed


def test_the_sampler_is_told_how_wide_the_operators_blur_is(prior):
    """By its matrix: a box of 8 pixels has no `sigma_h`, and is no single pixel."""
    heard = []

    def sampler(prior, observation, noise, *, steps, zeta, on_step):
        heard.append(observation.blur)
        return batch.x

    batch = make_batch(prior, [0, 1], kernel="box", sigma_h=[0.0, 0.0])
    predict(make_module(prior, sampler=sampler), batch)
    assert heard == [pytest.approx([((8**2 - 1) / 12) ** 0.5] * 2)]


def test_noise_norm_is_what_the_noise_leaves_to_the_truth(prior):
    """Unobserved frames do not count. The norm of N standard normal numbers is mostly within 2 of sqrt(N)."""
    heard = {}

    def sampler(prior, observation, noise, *, steps, zeta, on_step):
        norm = (observation.y - observation.degrade(batch.x)).flatten(1).norm(dim=1)
        heard.update(ratio=norm / observation.noise_norm)
        return batch.x

    batch = make_batch(prior, [0, 1, 2], sigma_y=torch.tensor([0.02, 0.1, 0.3]))
    predict(make_module(prior, sampler=sampler), batch)
    numbers = batch.mask.sum(dim=1).min().item() * 64
    assert (heard["ratio"] - 1).abs().max() < 2 / numbers**0.5


def test_listeners_hear_of_every_step(prior):
    calls = []
    module = make_module(prior)
    module.step_listeners.append(lambda: calls.append(1))
    predict(module, make_batch(prior, [0]), make_batch(prior, [1]))
    assert len(calls) == 2 * STEPS


def test_failure_log_keeps_the_first_step():
    log = FailureLog(4, torch.device("cpu"))
    nan, inf = float("nan"), float("inf")
    for index, residual in enumerate([[1, 1, 1, 1], [1, nan, 1, 1], [inf, nan, 1, 1], [1, 1, 1, 1]]):
        log.record(index, torch.tensor(residual, dtype=torch.float32))
    x_hat = torch.zeros(4, 2, 1, 2, 2)
    x_hat[2, 1, 0, 0, 0] = inf
    assert log.status(x_hat, torch.tensor([1.0, 20.0, 0.5, 3.0])) == [
        "non-finite at step 2 with zeta 1",
        "non-finite at step 1 with zeta 20",
        "non-finite at the last step with zeta 0.5",
        "ok",
    ]


@pytest.mark.parametrize("number", [0, -1, 11])
def test_numbers_of_frames_that_the_prior_does_not_have(prior, number):
    check_frames(prior, [1, 10])
    with pytest.raises(UserError, match=rf"grid\.num_frames: {number} .*10"):
        check_frames(prior, [1, number])


def test_compilation_is_no_sampling_time(prior, monkeypatch):
    """Compiled networks are run until graphs are captured, before the clock starts, and only before the first batch."""
    monkeypatch.setattr(nn.Module, "compile", lambda module, **options: None)
    evaluated = []
    monkeypatch.setattr(prior.dit, "forward", lambda z_t, t: evaluated.append(len(z_t)) or torch.zeros_like(z_t))
    batch = make_batch(prior, [0, 0, 1])
    module = make_module(prior, sampler=answer_with(batch.x))  # needs no network
    module.compile_networks()
    predict(module, batch, batch)
    assert evaluated == [3] * WARM_UP_STEPS
