"""A prior's folder: what comes back from disk, and one clear line for whatever is wrong with it."""

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn

from vsr_lightning.errors import UserError
from vsr_lightning.models import prior as prior_module
from vsr_lightning.models.prior import Prior, load_prior, load_vae, read_card, save_prior
from vsr_lightning.models.schedule import LinearSchedule
from vsr_lightning.models.vae import VAE
from vsr_lightning.models.video_dit import VideoDiT
from vsr_lightning.targets import build

CARD = {
    "vae": {"target": "vsr_lightning.models.vae.VAE", "latent_channels": 2, "widths": [8, 8, 8]},
    "dit": {
        "target": "vsr_lightning.models.video_dit.VideoDiT",
        "latent_channels": 2,
        "num_frames": 3,
        "latent_size": 2,
        "width": 16,
        "depth": 1,
        "heads": 2,
    },
    "schedule": {"target": "vsr_lightning.models.schedule.LinearSchedule", "num_steps": 50, "beta_end": 0.2},
    "training": [{"steps": 7, "digits": "embedded"}],
}
MEAN, STD = [0.123456789, -1.0], [1.00390625001, 3.3333333]  # not bf16 numbers


def networks() -> tuple[VAE, VideoDiT]:
    torch.manual_seed(0)
    vae, dit = build(CARD["vae"], "vae"), build(CARD["dit"], "dit")
    for network in (vae, dit):
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.2)
    vae.latent_mean.copy_(torch.tensor(MEAN))
    vae.latent_std.copy_(torch.tensor(STD))
    return vae, dit


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_prior(tmp_path / "prior", CARD, *networks())
    return tmp_path / "prior"


def test_weights_of_the_type_that_layers_compute_in_change_nothing(tiny_prior, monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda module, options, **_: compiled.append((module, options)))
    prior = load_prior(tiny_prior)
    z, t = torch.randn(2, *prior.latent_shape), torch.tensor([3, 700])

    def results() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            return prior.eps(z, t), prior.decode(z)

    before = results()
    prior.compile_for_sampling(torch.bfloat16)
    assert [module for module, _ in compiled] == [prior.dit, prior.vae.decoder]
    assert all(options["triton.cudagraphs"] for _, options in compiled)
    for network in (prior.dit, prior.vae.decoder):
        layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
        assert layers
        assert {layer.weight.dtype for layer in layers} == {torch.bfloat16}
    others = [prior.dit.final_table, *prior.vae.encoder.parameters(), *prior.vae.buffers()]
    assert {tensor.dtype for tensor in others} == {torch.float32}
    for plain, converted in zip(before, results(), strict=True):
        assert torch.equal(plain, converted)


def test_round_trip_loses_only_bf16_rounding(folder):
    prior = load_prior(folder)
    for before, after in zip(networks(), (prior.vae, prior.dit), strict=True):
        for name, parameter in before.named_parameters():
            loaded = after.get_parameter(name)
            assert loaded.dtype == torch.float32
            assert not loaded.requires_grad
            assert torch.equal(loaded, parameter.detach().bfloat16().float())
    assert not prior.training
    assert not any(module.training for module in prior.modules())
    assert prior.latent_shape == (3, 2, 2, 2)
    assert prior.video_shape == (3, 1, 16, 16)
    assert prior.schedule.num_steps == 50
    torch.testing.assert_close(prior.schedule.alpha_bar, LinearSchedule(50, beta_end=0.2).alpha_bar, rtol=0, atol=0)


def test_latent_statistics_keep_full_precision(folder):
    for vae in (load_prior(folder).vae, load_vae(folder)):
        assert torch.equal(vae.latent_mean, torch.tensor(MEAN))
        assert torch.equal(vae.latent_std, torch.tensor(STD))


def test_files_are_what_the_contract_says(folder):
    assert {path.name for path in folder.iterdir()} == {"vae.safetensors", "dit.safetensors", "card.yaml"}
    for name in ("vae", "dit"):
        assert {value.dtype for value in load_file(folder / f"{name}.safetensors").values()} == {torch.bfloat16}
    card = read_card(folder)
    assert {key: card[key] for key in CARD} == CARD
    assert load_prior(folder).card == card


def test_encode_and_decode_are_the_vaes(folder):
    prior = load_prior(folder)
    x = torch.rand(2, *prior.video_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    z = prior.encode(x)
    expected = (prior.vae.moments(x)[0] - torch.tensor(MEAN).view(2, 1, 1)) / torch.tensor(STD).view(2, 1, 1)
    torch.testing.assert_close(z, expected)
    assert prior.decode(z).shape == x.shape
    z.requires_grad_()
    assert torch.autograd.grad(prior.decode(z).sum(), z)[0].abs().max() > 0  # though its parameters take none


def test_folder_of_a_vae_alone(tmp_path):
    vae, _ = networks()
    save_prior(tmp_path, {"vae": CARD["vae"]}, vae)
    loaded = load_vae(tmp_path)
    assert torch.equal(loaded.get_parameter("decoder.layers.0.weight"), vae.decoder.layers[0].weight.bfloat16().float())
    with pytest.raises(UserError, match="VAE only") as caught:
        load_prior(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_an_interrupted_export_leaves_the_old_prior(folder, monkeypatch):
    """Weights of two trainings under one card would load without a word."""
    before = load_prior(folder).state_dict()

    def save(state, path):
        if path.name.startswith("dit"):
            raise KeyboardInterrupt
        save_file(state, path)

    monkeypatch.setattr(prior_module, "save_file", save)
    with pytest.raises(KeyboardInterrupt):
        save_prior(folder, CARD, *networks())
    after = load_prior(folder).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_no_pickle_is_loaded(folder, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a pickle is loaded")

    for name in ("torch.load", "pickle.load", "pickle.loads", "pickle.Unpickler"):
        monkeypatch.setattr(name, refuse)
    assert isinstance(load_prior(folder), Prior)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_eps_is_the_noise_whatever_the_network_predicts(prediction):
    """For z_0 ~ N(m, s^2 I) the best predictions of eps and of v are known."""
    m, s = 0.7, 1.3
    schedule = LinearSchedule()
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)

    def expected_eps(z_t, t):
        a = alpha_bar[t].view(-1, 1, 1, 1, 1)
        return (1 - a).sqrt() * (z_t - a.sqrt() * m) / (a * s**2 + 1 - a)

    class BestNetwork(nn.Module):
        latent_shape = (3, 4, 2, 2)

        def forward(self, z_t, t):
            a = alpha_bar[t].view(-1, 1, 1, 1, 1)
            eps = expected_eps(z_t, t)
            z_0 = m + a.sqrt() * s**2 / (a * s**2 + 1 - a) * (z_t - a.sqrt() * m)  # Wiener filter
            return (eps if prediction == "eps" else a.sqrt() * eps - (1 - a).sqrt() * z_0).float()

    network = BestNetwork()
    network.prediction = prediction
    prior = Prior(VAE(), network, schedule)
    z_t = torch.randn(4, *network.latent_shape, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0, 10, 500, 999])
    torch.testing.assert_close(prior.eps(z_t, t), expected_eps(z_t, t).float(), atol=1e-5, rtol=1e-5)


def test_networks_that_do_not_fit_together():
    with pytest.raises(UserError, match=r"dit\.latent_channels: 2 is not the VAE's 4"):
        Prior(VAE(widths=[8, 8, 8]), networks()[1], LinearSchedule())


# Damaged folders


def edit_card(**changes):
    def edit(folder):
        card = yaml.safe_load((folder / "card.yaml").read_text())
        for key, value in changes.items():
            section, _, name = key.partition("__")
            target = card[section] if name else card
            if value is None:
                del target[name or key]
            else:
                target[name or key] = value
        (folder / "card.yaml").write_text(yaml.safe_dump(card))

    return edit


def edit_weights(name, edit):
    def damage(folder):
        state = load_file(folder / name)
        edit(state)
        save_file(state, folder / name)

    return damage


def truncate(name, keep):
    def damage(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * keep)])

    return damage


def replace(name, content):
    return lambda folder: (folder / name).write_bytes(content)


DAMAGES = {
    "no card": ("card.yaml", lambda folder: (folder / "card.yaml").unlink()),
    "no VAE": ("vae.safetensors", lambda folder: (folder / "vae.safetensors").unlink()),
    "no DiT": ("dit.safetensors", lambda folder: (folder / "dit.safetensors").unlink()),
    "truncated VAE": ("vae.safetensors", truncate("vae.safetensors", 0.7)),
    "truncated DiT header": ("dit.safetensors", truncate("dit.safetensors", 0.01)),
    "empty DiT": ("dit.safetensors", truncate("dit.safetensors", 0)),
    "not safetensors": ("dit.safetensors", replace("dit.safetensors", b"\x80\x04pickle" * 100)),
    "wrong shape": (
        "dit.safetensors.*final.bias.*(5,)",
        edit_weights("dit.safetensors", lambda state: state.update({"final.bias": torch.zeros(5)})),
    ),
    "missing tensor": (
        "vae.safetensors.*latent_std",
        edit_weights("vae.safetensors", lambda state: state.pop("latent_std")),
    ),
    "extra tensor": (
        "vae.safetensors.*surplus",
        edit_weights("vae.safetensors", lambda state: state.update(surplus=torch.zeros(1))),
    ),
    "card of another size": ("dit.safetensors.*shape", edit_card(dit__width=32)),
    "card of another kind": ("dit.safetensors.*time_attention", edit_card(dit__attention="factorized")),
    "unknown format": ("card.yaml.*format 2", edit_card(format=2)),
    "no format": ("card.yaml.*format", edit_card(format=None)),
    "not YAML": ("card.yaml", replace("card.yaml", b"vae: [unclosed")),
    "not text": ("card.yaml", replace("card.yaml", b"\xff\xfe\x00")),
    "not a mapping": ("card.yaml", replace("card.yaml", b"- 1\n")),
    "no vae section": ("card.yaml.*vae", edit_card(vae=None)),
    "vae not a section": ("card.yaml.*vae", edit_card(vae=3)),
    "no target": ("card.yaml.*vae.target", edit_card(vae__target=None)),
    "forbidden target": ("card.yaml.*os.system", edit_card(dit__target="os.system")),
    "target of another class": ("card.yaml.*schedule", edit_card(schedule=CARD["vae"])),
    "unknown parameter": ("card.yaml.*dit.widht.*width", edit_card(dit__widht=16)),
    "impossible parameter": ("card.yaml.*dit.heads", edit_card(dit__heads=0)),
    "impossible schedule": ("card.yaml.*schedule", edit_card(schedule__num_steps=0)),
    "no latent": ("card.yaml.*latent", edit_card(latent=None)),
    "latent not a section": ("card.yaml.*latent", edit_card(latent="normal")),
    "no latent mean": ("card.yaml.*latent.mean", edit_card(latent__mean=None)),
    "latent of another size": ("card.yaml.*latent.std", edit_card(latent__std=[1.0])),
    "latent not numbers": ("card.yaml.*latent.std", edit_card(latent__std=["a", "b"])),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_one_line_naming_the_file(folder, damage):
    named, apply = DAMAGES[damage]
    apply(folder)
    with pytest.raises(UserError, match=named.replace("(", r"\(").replace(")", r"\)")) as caught:
        load_prior(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).count(str(folder)) == 1


def test_no_folder(tmp_path):
    with pytest.raises(UserError, match=r"nowhere.*card\.yaml: no such file"):
        load_prior(tmp_path / "nowhere")


def test_networks_of_different_latents(tmp_path):
    vae, _ = networks()
    dit = {**CARD["dit"], "latent_channels": 3}
    save_prior(tmp_path, {**CARD, "dit": dit}, vae, build(dit, "dit"))
    with pytest.raises(UserError, match=r"card\.yaml.*dit\.latent_channels: 3"):
        load_prior(tmp_path)
