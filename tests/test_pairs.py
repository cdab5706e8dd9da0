"""`compare`: differences in pairs against scipy and by hand, what makes a pair, and mistakes."""

import numpy as np
import pytest
from scipy import stats

from vsr_lightning.__main__ import main
from vsr_lightning.conditions import CONDITION, ITEM
from vsr_lightning.errors import UserError
from vsr_lightning.files import read_table, write_table
from vsr_lightning.pairs import compare

FIXED = {"kernel": "gaussian", "order": "sequential", "sigma_y": 0.02, "seed": 0, "dataset": "digits val"}
GAIN = {0.5: 0.0, 0.8: 1.0}


@pytest.fixture
def run(tmp_path):
    """Write a sweep's folder of rows with PSNR `score(row)`, and return its path."""

    def run(score, name="guidance", zetas=(0.5, 0.8), steps=(100, 250), factors=(4, 8), videos=3, noises=2, **shared):
        rows = [
            FIXED
            | {"sampler": "polyak", "zeta": zeta, "steps": each, "factor": factor, "sigma_h": 2.0, "num_frames": 10}
            | {"prior": "p@1", "video": video, "noise": noise, "status": "ok"}
            | shared
            for zeta in zetas
            for each in steps
            for factor in factors
            for video in range(videos)
            for noise in range(noises)
        ]
        rows = [row | {"psnr_first": score(row), "ssim_mean": ""} for row in rows]
        (tmp_path / name).mkdir(parents=True)
        write_table(tmp_path / name / "results.csv", (*CONDITION, *ITEM, "status", "psnr_first", "ssim_mean"), rows)
        means = [
            row | {"psnr_first_of_mean": row["psnr_first"] + 1, "n_samples": noises} for row in rows if not row["noise"]
        ]
        columns = (*CONDITION, "video", "n_samples", "psnr_first_of_mean")
        write_table(tmp_path / name / "means.csv", columns, [{c: row[c] for c in columns} for row in means])
        return tmp_path / name

    return run


def by_parts(row):
    """Videos differ much, the gain of zeta by video and factor: only pairs can tell."""
    return 10 * row["video"] + row["noise"] + GAIN[row["zeta"]] * (1 + row["video"]) * row["factor"] / 4


def test_errors_are_those_of_a_paired_test(run):
    generator = np.random.default_rng(0)
    scores = {}

    def score(row):
        key = (row["zeta"], row["steps"], row["factor"], row["video"], row["noise"])
        return scores.setdefault(key, generator.normal(20 + row["video"], 1))

    (line,) = compare([run(score, factors=(8,), steps=(250,))], {"zeta": "0.5"})
    videos = {zeta: [np.mean([scores[zeta, 250, 8, v, n] for n in (0, 1)]) for v in range(3)] for zeta in GAIN}
    t = stats.ttest_rel(videos[0.8], videos[0.5]).statistic
    assert line["difference"] / line["difference_se"] == pytest.approx(t)
    assert (line["mean"], line["mean_se"]) == pytest.approx((np.mean(videos[0.8]), stats.sem(videos[0.8])))
    assert line["videos"] == 3


def test_pairs_have_the_same_steps_and_observation(run):
    folder = run(by_parts)
    lines = compare([folder], {"zeta": "0.5"})
    assert [(line["steps"], line["difference"]) for line in lines] == [
        (100, 3.0),
        (250, 3.0),
    ]  # videos 1, 2, 3; factors 1, 2
    lines = compare([folder], {"zeta": "0.5"}, by=["factor"])
    assert [(line["factor"], line["steps"], line["difference"]) for line in lines] == [
        *((4, 100, 2.0), (8, 100, 4.0), (4, 250, 2.0), (8, 250, 4.0)),
    ]


def test_a_pair_may_differ_in_what_the_reference_has_one_of(run):
    """250 steps of zeta 0.8, too, are compared with 100 steps of zeta 0.5."""
    lines = compare([run(by_parts)], {"zeta": "0.5", "steps": "100"}, by=["factor"])
    assert [(line["zeta"], line["steps"], line["factor"], line["difference"]) for line in lines] == [
        *((0.5, 250, 4, 0.0), (0.5, 250, 8, 0.0)),
        *((0.8, 100, 4, 2.0), (0.8, 100, 8, 4.0), (0.8, 250, 4, 2.0), (0.8, 250, 8, 4.0)),
    ]


def test_a_column_of_the_observation_may_be_the_reference(run):
    folder = run(lambda row: 20.0 + row["factor"] * (1 + row["zeta"]), steps=(100,))
    lines = compare([folder], {"factor": "4"})
    assert [(line["zeta"], line["factor"]) for line in lines] == [(0.5, 8), (0.8, 8)]
    assert [line["difference"] for line in lines] == pytest.approx([4 * 1.5, 4 * 1.8])


def test_one_run_against_another(run):
    folders = [
        run(by_parts, steps=(100,)),
        run(lambda row: by_parts(row) + 0.25, name="other", steps=(100,), prior="p@2", factors=(8,)),
    ]
    lines = compare(folders, {"run": "guidance"})
    assert [line["mean"] for line in lines] == [10.75, 14.75]  # of factor 8 alone, as only that is in both
    assert [(line["run"], line["zeta"], line["difference"]) for line in lines] == [
        ("other", 0.5, 0.25),
        ("other", 0.8, 0.25),
    ]


def test_means_of_samples(run):
    (line,) = compare([run(by_parts, steps=(100,), factors=(4,))], {"zeta": "0.5"}, metric="psnr_first_of_mean")
    assert (line["mean"], line["difference"], line["videos"]) == (10 + 2 + 1, 2.0, 3)


def test_means_of_more_samples_are_no_pair(run):
    folders = [run(by_parts), run(by_parts, name="other", noises=4)]
    with pytest.raises(UserError, match="run=guidance: nothing else has the same video, noise"):
        compare(folders, {"run": "guidance"}, metric="psnr_first_of_mean")


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"dataset": "digits test"}, {"sigma_h": 4.0}, {"order": "random"}], ids=str
)
def test_other_observations_are_no_pair(run, other):
    folders = [run(by_parts), run(by_parts, name="other", **other)]
    with pytest.raises(UserError, match="run=guidance: nothing else has the same video, noise"):
        compare(folders, {"run": "guidance"})


def test_ways_without_a_pair_are_left_out(run):
    folders = [run(by_parts), run(by_parts, name="other", videos=5), run(by_parts, name="seeded", seed=1)]
    lines = compare(folders, {"run": "guidance"}, by=["zeta"])
    assert {(line["run"], line["videos"]) for line in lines} == {("other", 3)}


def test_runs_of_one_name_are_told_apart_by_their_folders(run, tmp_path):
    folders = [run(by_parts, name="a/sweep"), run(lambda row: by_parts(row) + 1, name="b/sweep")]
    lines = compare(folders, {"run": str(tmp_path / "a/sweep")})
    assert {(line["run"], line["difference"]) for line in lines} == {(str(tmp_path / "b/sweep"), 1.0)}
    with pytest.raises(UserError, match="a folder is named twice"):
        compare([folders[0], folders[0].parent / "." / "sweep"], {"zeta": "0.5"})


def test_a_single_video_has_no_error(run, capsys):
    folder = run(by_parts, videos=1, steps=(100,))
    (line,) = compare([folder], {"zeta": "0.5"})
    assert (line["mean_se"], line["difference_se"]) == (None, None)
    assert main(["compare", str(folder), "--reference", " zeta=0.5", "--by", "zeta"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["0.8", "2.00", "+1.50", "1"]


def test_a_table_is_printed_and_written(run, tmp_path, capsys):
    folder, target = run(by_parts), tmp_path / "new" / "lines.csv"
    command = ["compare", str(folder), "--reference", "zeta=0.5", "--by", "factor", "--by", " sigma_h"]
    command += ["--output", str(target)]
    assert main(command) == 0
    header, first, *_ = capsys.readouterr().out.splitlines()
    assert header.split() == ["steps", "zeta", "factor", "sigma_h", "psnr_first", "difference", "videos"]
    assert first.split() == ["100", "0.8", "4", "2", "12.50", "±", "6.35", "+2.00", "±", "0.58", "3"]
    lines = read_table(target, "")
    assert [(line["factor"], line["metric"], line["difference"]) for line in lines[:2]] == [
        ("4", "psnr_first", "2.0"),
        ("8", "psnr_first", "4.0"),
    ]


@pytest.mark.parametrize(
    ("reference", "by", "metric", "message"),
    [
        ({"zeta": "0.6"}, [], "psnr_first", "reference zeta=0.6: is not among .* zeta 0.5, 0.8$"),
        ({"steps": "9"}, [], "psnr_first", "which have steps 100, 250$"),
        ({"zta": "0.5"}, [], "psnr_first", "'zta' is no column .* did you mean 'zeta'"),
        ({"zeta": "half"}, [], "psnr_first", "zeta: 'half' is not a number"),
        (
            *({"sampler": "polyak"}, [], "psnr_first"),
            "nothing else has the same video, .*; the reference has steps 100, 250, name one; .* zeta 0.5, 0.8",
        ),
        ({"zeta": "0.5"}, ["frames"], "psnr_first", "'frames' is no column .* did you mean 'num_frames'"),
        ({"zeta": "0.5"}, [], "psnr_frist", "results.csv: has no column 'psnr_frist'; did you mean 'psnr_first'"),
        ({"zeta": "0.5"}, [], "status", "status: 'ok' is not a number"),
        ({"zeta": "0.5"}, [], "ssim_mean", "ssim_mean: was not measured in .*guidance"),
    ],
)
def test_mistakes(run, reference, by, metric, message):
    with pytest.raises(UserError, match=message):
        compare([run(by_parts)], reference, by, metric)


def test_a_folder_without_results(tmp_path):
    with pytest.raises(UserError, match="results.csv: is missing; name the folder of a sweep"):
        compare([tmp_path], {"zeta": "0.5"})


def test_a_reference_names_a_column_once(run, capsys):
    command = ["compare", str(run(by_parts)), "--reference", "zeta=0.5"]
    assert main([*command, "--reference", "zeta=0.8"]) == 2
    assert "error: --reference: names a column twice" in capsys.readouterr().err
    assert main([*command, "--reference", "steps=100"]) == 0


@pytest.mark.parametrize("reference", ["zeta", "zeta=0.5,steps", "", "=0.5"])
def test_a_reference_that_is_no_assignment(reference, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["compare", str(tmp_path), "--reference", reference])
    assert "is not as zeta=0.5" in capsys.readouterr().err
