"""Experiments as YAML: includes, overrides, references, and one clear error for every mistake."""

from pathlib import Path

import pytest

from vsr_lightning.config import check_heeded, load_config, to_yaml
from vsr_lightning.errors import UserError
from vsr_lightning.experiment import Experiment

SCHEDULE = "vsr_lightning.models.schedule.LinearSchedule"


@pytest.fixture
def load(tmp_path):
    """Write the files given by name (`main.yaml` is the one to load) and load them with overrides."""

    def load(main: str, *overrides: str, **others: str) -> Experiment:
        for name, text in {"main": main, **others}.items():
            path = tmp_path / f"{name.replace('__', '/')}.yaml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        return load_config(tmp_path / "main.yaml", overrides)

    return load


# What a configuration means


@pytest.mark.parametrize("override", ["training.optimizer=muon", "training.timesteps=logit_normal"])
def test_what_only_the_dit_has_is_refused_for_the_vae(override):
    folder = Path(__file__).parents[1] / "experiments" / "moving_mnist"
    with pytest.raises(UserError, match="is for stage dit"):
        load_config(folder / "vae.yaml", [override])
    load_config(folder / "dit.yaml", [override])


def test_defaults(load):
    assert load("") == Experiment()


def test_includes_merge_left_to_right_and_the_file_itself_comes_last(load):
    experiment = load(
        "include: [a.yaml, b.yaml]\nname: main",
        a="{name: a, seed: 1, grid: {videos: 1, noises: 1}}",
        b="{name: b, seed: 2, grid: {noises: 2}}",
    )
    assert (experiment.name, experiment.seed) == ("main", 2)
    assert (experiment.grid.videos, experiment.grid.noises) == (1, 2)


def test_include_paths_are_relative_to_their_own_file(load):
    assert load("include: sub/a.yaml", sub__a="include: ../b.yaml", b="seed: 3").seed == 3


def test_a_sampler_includes_the_section_of_a_file(load):
    sampler = "vsr_lightning.inference.dps.dps_sample"
    experiment = load(
        "samplers: {long: &long {include: sub/a.yaml, steps: 9}, longer: {<<: *long, steps: 10}}\nsampler: {}",
        "samplers.longer.zeta=3.0",
        sub__a="{include: ../b.yaml, seed: 1, sampler: {zeta: 2.0}}",
        b=f"sampler: {{target: {sampler}, steps: 8, zeta: 1.0}}",
    )
    assert experiment.samplers == {
        "long": {"target": sampler, "steps": 9, "zeta": 2.0},
        "longer": {"target": sampler, "steps": 10, "zeta": 3.0},
    }
    assert (experiment.sampler, experiment.seed) == ({}, 0)  # of the file no other section is taken


def test_another_target_drops_the_parameters_of_an_included_sampler(load):
    other = "vsr_lightning.inference.dps_polyak.dps_polyak_sample"
    included = "sampler: {target: vsr_lightning.inference.dps.dps_sample, zeta: 20.0}"
    experiment = load(f"samplers: {{a: {{include: part.yaml, target: {other}, steps: 5}}}}", part=included)
    assert experiment.samplers["a"] == {"target": other, "steps": 5}


def test_lists_are_replaced_not_merged(load):
    assert load("include: a.yaml\ngrid: {num_frames: [3]}", a="grid: {num_frames: [1, 2]}").grid.num_frames == [3]


def test_overrides_win_and_the_last_one_most(load):
    assert load("seed: 1", "seed=2", "seed=3").seed == 3
    assert load("grid: {num_frames: [1]}", "grid.num_frames=[4,5]").grid.num_frames == [4, 5]


def test_references_are_resolved_after_the_overrides(load):
    experiment = load("{name: old, prior: 'data/${name}', grid: {videos: '${seed}'}}", "name=new", "seed=7")
    assert (experiment.prior, experiment.grid.videos) == ("data/new", 7)


def test_another_target_drops_the_parameters_of_the_old_one(load):
    base = f"schedule: {{target: {SCHEDULE}, num_steps: 10}}"
    other = "vsr_lightning.models.vae.VAE"
    assert load(f"include: a.yaml\nschedule: {{target: {other}}}", a=base).schedule == {"target": other}
    assert load(f"include: a.yaml\nschedule: {{target: {SCHEDULE}, beta_end: 0.1}}", a=base).schedule == {
        "target": SCHEDULE,
        "num_steps": 10,
        "beta_end": 0.1,
    }


@pytest.mark.parametrize("text", ["1e-3", "1.0e-3", "0.001", "1E-3"])
def test_numbers_in_scientific_notation(load, text):
    assert load(f"training: {{lr: {text}}}").training.lr == 0.001
    assert load("", f"training.lr={text}").training.lr == 0.001
    assert load(f"schedule: {{target: {SCHEDULE}, beta_start: {text}}}").schedule["beta_start"] == 0.001


def test_whole_numbers_are_floats_where_a_float_is_meant(load):
    assert isinstance(load("grid: {sigma_h: [2]}").grid.sigma_h[0], float)


def test_yaml_round_trip(load):
    experiment = load(
        f"""
        name: a=b
        prior: data/${{name}}
        schedule: {{target: {SCHEDULE}, beta_start: 1e-5}}
        figures: [vsr_lightning.figures.frame_count.make_figures]
        training: {{kl_weight: 1e-7}}
        trainer: {{max_minutes: 0.5}}
        """
    )
    assert load(to_yaml(experiment)) == experiment


# Mistakes: the message names the file or the key, in one line

MISTAKES = [
    ("sede: 1", "main.yaml: unknown key 'sede'; did you mean 'seed'"),
    ("grid: {vidoes: 1}", "main.yaml: unknown key 'grid.vidoes'; did you mean 'videos'"),
    ("1: 2", "main.yaml: unknown key '1'"),
    ("seed: one", "main.yaml.*'seed'"),
    ("seed: 1.5", "main.yaml.*'seed'"),
    ("seed: -1", "seed: -1"),
    ("seed: 1_000_000_000_000_000_000_000", "seed: 1000000000000000000000"),
    ("seed: {a: 1}", "main.yaml: 'seed' is a value"),
    ("name: [a]", "main.yaml.*'name'"),
    ("name: null", "main.yaml.*'name'"),
    ("name: ''", "name: ''"),
    ("name: a/../../b", "name: 'a/../../b'"),
    ("name: /tmp/a", "name: '/tmp/a'"),
    ("full: maybe", "main.yaml.*'full'"),
    ("data: 5", "main.yaml.*'data'"),
    ("data: null", "main.yaml.*'data'"),
    ("grid: 5", "main.yaml: 'grid' is a section"),
    ("grid: null", "main.yaml: 'grid' is a section"),
    ("grid: {num_frames: 5}", r"main.yaml: 'grid.num_frames' is a list.*\[5\]"),
    ("grid: {num_frames: [one]}", "main.yaml.*grid.num_frames"),
    ("grid: {num_frames: []}", "grid.num_frames: the list is empty"),
    ("grid: {num_frames: [1, 1]}", "grid.num_frames.*twice"),
    ("grid: {order: [backward]}", "grid.order: 'backward'"),
    ("grid: {split: train}", "grid.split: 'train'"),
    ("grid: {factor: [4, 4]}", "grid.factor.*twice"),
    ("grid: {factor: [4.5]}", "main.yaml.*grid.factor"),
    ("grid: {kernel: [box, box]}", "grid.kernel.*twice"),
    ("grid: {sigma_h_per_factor: [0.5, 0.5]}", "grid.sigma_h_per_factor.*twice"),
    ("grid: {sigma_h_per_factor: [-1]}", "grid.sigma_h_per_factor.*negative"),
    ("grid: {keep_videos: -1}", "grid.keep_videos: -1"),
    ("grid: {noises: 0}", "grid.noises: 0"),
    ("grid: {sigma_h: [-1]}", "grid.sigma_h.*negative"),
    ("grid: {sigma_y: [.nan]}", "grid.sigma_y.*not finite"),
    ("training: {stage: gan}", "training.stage: 'gan'"),
    ("training: {lr: fast}", "main.yaml.*training.lr"),
    ("training: {lr: -1}", "training.lr: -1"),
    ("training: {max_steps: 0}", "training.max_steps: 0"),
    ("training: {betas: [0.9]}", "training.betas"),
    ("training: {betas: [0.9, 1.0]}", "training.betas"),
    ("training: {ema_decay: 1}", "training.ema_decay"),
    ("trainer: {devices: 0}", "trainer.devices: 0"),
    ("trainer: {devices: true}", "main.yaml.*trainer.devices"),
    ("trainer: {precision: float8}", "trainer.precision: 'float8'"),
    ("trainer: {accelerator: quantum}", "trainer.accelerator: 'quantum'"),
    ("trainer: {compile: maybe}", "trainer.compile: 'maybe'"),
    ("logging: {mode: loud}", "logging.mode: 'loud'"),
    ("figures: vsr_lightning.figures.frame_count.make_figures", "main.yaml: 'figures' is a list"),
    ("prior: ${nme}", "main.yaml.*'prior'.*nme"),
    ("name: ${name}", "main.yaml.*'name'.*[Rr]ecursive"),
    ("seed: 1\nseed: 2", "main.yaml.*line 2.*duplicate key seed"),
    ("seed: [1", "main.yaml: cannot be read as YAML"),
    ("- 1", "main.yaml: is not a mapping"),
    ("5", "main.yaml: cannot be read"),
    ("include: main.yaml", "main.yaml: includes itself"),
    ("include: nope.yaml", "nope.yaml: no such file"),
    ("include: 5", "main.yaml: 'include'"),
    ("include: null", "main.yaml: 'include'"),
    ("samplers: 5", "main.yaml.*'samplers'"),
    ("samplers: {a: {include: 5}}", "main.yaml: 'include'"),
    ("samplers: {a: {include: nope.yaml}}", "nope.yaml: no such file"),
    ("samplers: {a: {include: main.yaml}}", "main.yaml: includes itself"),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES)
def test_mistakes_in_a_file(load, text, message):
    with pytest.raises(UserError, match=message) as caught:
        load(text)
    assert "\n" not in str(caught.value)


def test_a_mistake_names_the_included_file(load):
    with pytest.raises(UserError, match="part.yaml: unknown key 'sede'"):
        load("include: part.yaml", part="sede: 1")


def test_a_sampler_that_includes_a_file_without_one(load):
    with pytest.raises(UserError, match="main.yaml: samplers.a: part.yaml has no section 'sampler'"):
        load("samplers: {a: {include: part.yaml}}", part="seed: 1")


@pytest.mark.parametrize(
    ("grid", "override", "message"),
    [
        (
            "sampler: [a, b]",
            "sampler.steps=9",
            "as grid.sampler names others; set samplers.a.steps, or grid.steps for all",
        ),
        ("sampler: [a, b]", "sampler={steps: 9}", "as grid.sampler names others; set samplers.a.steps, or grid.steps"),
        ("sampler: [a, b]", "sampler.eta=0.5", "as grid.sampler names others; set samplers.a.eta$"),
        ("sampler: [a, b]", "sampler={eta: 0.5, start: 0.8}", "as grid.sampler names others; set samplers.a$"),
        ("{sampler: [a], zeta: [0.5]}", "samplers.a.zeta=0.8", r"as grid.zeta lists \[0.5\]; set that"),
        ("{sampler: [a], zeta: [0.5]}", "sampler.zeta=0.8", r"as grid.zeta lists \[0.5\]; set that"),
        ("zeta: [0.5]", "sampler.zeta=0.8", r"as grid.zeta lists \[0.5\]; set that"),
        ("zeta: [0.5]", "sampler.steps=9", None),
        ("{sampler: [a], zeta: [0.5]}", "samplers.a.steps=9", None),
        ("{sampler: [a], zeta: [0.5]}", "samplers.b.eta=0.5", "as grid.sampler does not name b$"),
        ("videos: 2", "samplers.b.eta=0.5", "as grid.sampler does not name b$"),
        ("videos: 2", "sampler.zeta=0.8", None),
    ],
)
def test_an_override_of_a_sampler_that_nothing_would_heed(load, grid, override, message):
    sampler = "{target: vsr_lightning.inference.dps_polyak.dps_polyak_sample}"
    grid = grid if grid.startswith("{") else f"{{{grid}}}"
    experiment = load(f"samplers: {{a: {sampler}, b: {sampler}}}\nsampler: {sampler}\ngrid: {grid}", override)
    if message is None:
        check_heeded(experiment, ["seed=1", override])
    else:
        with pytest.raises(UserError, match=message) as caught:
            check_heeded(experiment, ["seed=1", override])
        assert str(caught.value).startswith(f"override '{override}': is not heeded, ")


def test_files_that_include_each_other(load):
    with pytest.raises(UserError, match="includes itself"):
        load("include: a.yaml", a="include: main.yaml")


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="x.yaml: cannot be read as YAML"):
        load_config(tmp_path / "x.yaml")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sede=1", "override 'sede=1': unknown key 'sede'; did you mean 'seed'"),
        ("grid.vidoes=1", "unknown key 'grid.vidoes'; did you mean 'videos'"),
        ("seed", "write it as key=value"),
        ("=1", "unknown key ''"),
        ("seed=", "'seed'"),
        ("seed=one", "'seed'"),
        ("seed.a=1", "'seed' is a value"),
        ("grid=1", "'grid' is a section"),
        ("grid.num_frames=1", r"'grid.num_frames' is a list.*write \[1\]"),
        ("grid.num_frames.0=1", "'grid.num_frames' is a value"),
        ("grid.num_frames=[1", r"override 'grid.num_frames=\[1'"),
        ("schedule.num_steps=ten", "schedule.num_steps: 'ten' is not of type int"),
        ("include=a.yaml", "unknown key 'include'"),
    ],
)
def test_mistakes_in_an_override(load, override, message):
    with pytest.raises(UserError, match=message) as caught:
        load(f"schedule: {{target: {SCHEDULE}}}", override)
    assert "\n" not in str(caught.value)


def test_figures_are_checked_before_hours_of_sampling(load):
    with pytest.raises(UserError, match="figures.*did you mean 'make_figures'"):
        load("figures: [vsr_lightning.figures.frame_count.make_figure]")
    with pytest.raises(UserError, match="figures.*run_dir"):
        load("figures: [vsr_lightning.metrics.psnr]")
