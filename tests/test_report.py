"""The report's page: what it holds, parsed from its HTML, and mistakes of the user's."""

import json
import shutil
from operator import attrgetter
from pathlib import Path

import pytest
import yaml
from damage import DAMAGES
from fabricated import META, SETTING, Page, decode, make_run, truth_clip

from vsr_lightning.__main__ import main
from vsr_lightning.errors import UserError
from vsr_lightning.evaluation.results import read_table
from vsr_lightning.evaluation.videos import Clip, ClipWriter, merge_clips
from vsr_lightning.figures.report import make_report

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments/results"


# ------------------------------------------------------------------------------------------- what it holds


def test_nothing_is_fetched(report, finished_run):
    page = report(finished_run, ROOT / "experiments/results/demo")
    for _, attributes in page.tags:
        assert not attributes.keys() & {"srcset", "action", "poster"}
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:"))
    code = "".join(page.raw["style"]) + page.raw["script"][-1]
    assert not [word for word in ("http", "@import", "url(", "@font-face", "fetch(", "import(") if word in code]
    policies = [meta["content"] for meta in page.attributes("meta") if "http-equiv" in meta]
    assert policies[0].startswith("default-src 'none'; img-src data:;")


def test_every_figure_is_embedded(report, finished_run):
    images = report(finished_run).attributes("img")
    assert [decode(image["src"]) for image in images] == [
        (finished_run / name).read_bytes() for name in ("fig2.png", "fig3.png")
    ]
    assert all(image["alt"] for image in images)


def test_what_a_reader_wants_first_comes_first(report, finished_run):
    page = report(finished_run)
    places = [page.html.index(f"<h3>{title}</h3>") for title in ("Clips", "Figures", "Tables", "Provenance")]
    assert places == sorted(places)


def test_provenance(report, finished_run):
    text = report(finished_run).text
    told = [META[name] for name in ("command", "started", "git", "hardware", "precision")]
    for fact in (*told, "torch 2.13.0, python 3.11.7"):
        assert fact in text
    assert "2026-01-03T00:00:00Z (ba9876543210, CPU, 4 cores)" in text
    assert SETTING["prior"] in text
    assert "seed: 7" in text, "config.yaml in full"


def test_several_runs(report, finished_run, tmp_path):
    other = make_run(tmp_path / "other", zeta=20.0)
    page = report(finished_run, other)
    links = [link["href"] for link in page.attributes("a")]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert links == ["#run-1", "#run-2", "#comparison"]
    assert {link[1:] for link in links} < set(ids)
    assert len(ids) == len(set(ids))
    header, *rows = page.tables[-1]
    assert header[0] == "run"
    assert [row[0] for row in rows] == ["frame_count"] * 4 + ["other"] * 4
    assert [row[header.index("zeta")] for row in rows] == ["13"] * 4 + ["20"] * 4


def test_runs_of_one_name_are_told_apart(report, finished_run, run_copy):
    page = report(finished_run, run_copy)
    assert f"frame_count ({finished_run})" in page.text
    assert f"frame_count ({run_copy})" in page.text


def test_values_are_escaped(report, run_copy):
    plain = report(run_copy)
    name = "<script>alert('name')</script>"
    (run_copy / "config.yaml").write_text(yaml.safe_dump({"name": name}))
    (run_copy / "meta.json").write_text(json.dumps(META | {"command": '"><img src=x onerror=alert(1)>'}))
    (run_copy / "paired.csv").write_text('num_frames,note\n1,<b>bold</b>\n2,"a"\n')
    row = SETTING | {"num_frames": 2, "order": "</script><script>alert(2)</script>", "video": 0}
    clip = truth_clip(1)
    ClipWriter(run_copy).append([Clip(row, clip, clip, clip, [0, 1])])
    merge_clips(run_copy)
    page = report(run_copy)
    assert [tag for tag, _ in page.tags if tag in ("script", "img", "b")] == [
        tag for tag, _ in plain.tags if tag in ("script", "img", "b")
    ]
    assert name in page.text
    assert "onerror=alert(1)" in page.text
    assert "</script><script>alert(2)</script>" in page.clips[0]["values"]["order"]


@pytest.mark.parametrize(
    "missing",
    [
        "results.csv",
        "clips.h5",
        "summary.csv",
        "means.csv",
        "paired.csv",
        "config.yaml",
        "meta.json",
        "fig2.png",
        "*[!s].*",
    ],
)
def test_what_is_missing_is_left_out(report, run_copy, missing):
    for path in run_copy.glob(missing):
        if path.name != "results.csv" or missing == "results.csv":
            path.unlink()
    page = report(run_copy)
    assert "frame_count" in page.text
    assert bool(page.clips) == (run_copy / "clips.h5").exists()


def test_without_results_the_summary_is_counted(report, run_copy):
    (run_copy / "results.csv").unlink()
    text = report(run_copy).text
    assert "8 restorations, counted in summary.csv" in text
    assert SETTING["prior"] in text


@pytest.mark.parametrize("folder", sorted({path.parent for path in RESULTS.rglob("*.csv")}), ids=attrgetter("name"))
def test_every_shipped_result_has_its_page(report, folder):
    page = report(folder)
    assert folder.name in page.text
    assert page.tables or page.attributes("img")


def test_a_large_page_is_small_enough_to_send(large_page):
    assert large_page.stat().st_size < 15e6


def test_the_shipped_results(report):
    folder = ROOT / "experiments/results/demo"
    page = report(folder)
    assert len(page.attributes("img")) == 2
    for row in read_table(folder / "summary.csv"):
        assert f"{row['psnr_first']:.2f}" in page.text


def test_an_empty_sweep(report, tmp_path):
    (tmp_path / "results.csv").write_text("video,noise,status\n")
    (tmp_path / "summary.csv").write_text("num_frames,n\n")
    assert "0 restorations of 0 videos" in report(tmp_path).text


def test_the_same_page_each_time(finished_run, tmp_path):
    pages = [make_report([finished_run], tmp_path / name).read_bytes() for name in ("a.html", "b.html")]
    assert pages[0] == pages[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.html"]


# ------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("named", "output", "complaint"),
    [
        ("empty", "report.html", "empty: has no table, picture, clips or meta.json; name folders that a sweep wrote"),
        ("nowhere", "report.html", "nowhere: does not exist; name folders that a sweep wrote, as runs/frame_count"),
        ("runs/a/results.csv", "report.html", "runs/a/results.csv: is a file; name the folder that it is in, runs/a"),
        ("runs/a", "empty", "empty: is a folder; name a file, as --output empty/report.html"),
    ],
)
def test_what_is_named_by_mistake(tmp_path, monkeypatch, capsys, named, output, complaint):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("runs/a").mkdir(parents=True)
    Path("runs/a/results.csv").write_text("video,noise,status\n")
    assert main(["report", named, "--output", output]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {complaint}")
    assert not Path("report.html").exists()


def test_no_folder_at_all(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["report"])
    assert stopped.value.code == 2
    assert "RUN" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("results.csv", b"\xff\xfe\x00"),
        ("summary.csv", b"a,b\n1,2,3\n"),
        ("clips.h5", b"not HDF5"),
        ("config.yaml", b"a: ["),
        ("config.yaml", b"grid: 3\n"),
        ("config.yaml", b"grid: {sampler: [a]}\n"),
        ("meta.json", b'["a list"]'),
        ("fig2.png", b"not a picture"),
    ],
)
def test_a_damaged_file_is_named(run_copy, tmp_path, name, content):
    (run_copy / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: cannot be read"):
        make_report([run_copy], tmp_path / "report.html")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["results.csv", "summary.csv", "means.csv", "clips.h5", "meta.json", "fig2.png"])
def test_a_file_that_a_disk_damaged_is_named(run_copy, tmp_path, capsys, name, damage):
    damage(run_copy / name)
    page = tmp_path / "report.html"
    assert main(["report", str(run_copy), "--output", str(page)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {run_copy / name}: cannot be read (")
    assert not page.exists()
    if name != "results.csv":
        (run_copy / name).unlink()  # the way out
        assert main(["report", str(run_copy), "--output", str(page)]) == 0


def test_command_line(run_copy, monkeypatch, capsys):
    monkeypatch.chdir(run_copy.parents[1])
    assert main(["report", "runs/frame_count"]) == 0
    assert capsys.readouterr().out == "runs/report.html\n"
    shutil.copytree("runs/frame_count", "runs/again")
    named = ["runs/frame_count", "--output", "elsewhere/page.html", "runs/again", str(run_copy)]
    assert main(["report", *named]) == 0
    assert Page(Path("elsewhere/page.html")).text.count("Provenance") == 2, "the third is the first"
