"""The report: what the page holds, parsed from its HTML, and how it behaves in headless Chromium."""

import base64
import io
import json
import shutil
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from damage import DAMAGES
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from vsr_lightning.__main__ import main
from vsr_lightning.config import UserError
from vsr_lightning.evaluation.results import RowWriter, read_table, write_means, write_tables
from vsr_lightning.evaluation.videos import ClipWriter, merge_clips
from vsr_lightning.figures.frame_count import make_figures
from vsr_lightning.figures.report import make_report

ROOT = Path(__file__).parents[1]
FRAMES, SIZE, FACTOR = 10, 16, 4
NUMBERS = (1, 2, 10)  # as text, 10 would come before 2
SETTING = {
    "factor": FACTOR,
    "kernel": "gaussian",
    "sigma_h": 2.0,
    "sigma_y": 0.02,
    "sampler": "dps",
    "steps": 250,
    "zeta": 13.0,
    "seed": 7,
    "prior": "moving_mnist@0123abcd",
    "dataset": "moving_mnist test",
}
META = {
    "command": "python -m vsr_lightning sweep experiments/moving_mnist/sweep_frames.yaml",
    "started": "2026-01-02T03:04:05Z",
    "git": "0123456789ab",
    "versions": {"torch": "2.13.0", "python": "3.11.7"},
    "hardware": "CPU, 2 cores",
    "resumed": [{"started": "2026-01-03T00:00:00Z", "git": "ba9876543210", "hardware": "CPU, 4 cores"}],
}


# ------------------------------------------------------------------------------- a fabricated run folder


def observed_frames(num_frames, order):
    """Indices from 0; in random order the first, then every other one backwards."""
    return list(range(num_frames)) if order == "sequential" else [0, *range(FRAMES - 1, 0, -1)][:num_frames]


def truth_clip(channels):
    """uint8 (F, SIZE, SIZE, C): frame f has a bright column f, so that no two frames are equal."""
    clip = np.zeros((FRAMES, SIZE, SIZE, channels), np.uint8)
    for frame in range(FRAMES):
        clip[frame, :, frame] = [240, 160, 80][:channels]
    return clip


def restored_clip(num_frames, channels):
    """Off by 100 / num_frames everywhere."""
    return truth_clip(channels) // 2 + np.uint8(100 // num_frames)


def make_run(folder, channels=1, **setting):
    """A sweep over NUMBERS of frames with every file that a sweep leaves; both orders where they differ, for 2."""
    conditions = [
        SETTING | {"num_frames": number, "order": order} | setting
        for number in NUMBERS
        for order in ("sequential", "random")
        if order == "sequential" or number == 2
    ]
    rows = []
    for condition in conditions:
        for video in (0, 1):
            psnr = 15.0 + condition["num_frames"] + video
            measured = {"psnr_first": psnr, "ssim_mean": 0.5 + 0.01 * video, "psnr_first_bicubic": 16.0, "status": "ok"}
            rows.append(condition | {"video": video, "noise": 0} | measured)
        restored, truth = restored_clip(condition["num_frames"], channels), truth_clip(channels)
        frames = observed_frames(condition["num_frames"], condition["order"])
        # The baseline is kept where all frames are observed, so that one panel is not always there.
        bicubic = truth if condition["num_frames"] == FRAMES else None
        observed = truth[:, ::FACTOR, ::FACTOR]
        ClipWriter(folder).append(condition | {"video": 0}, observed, restored, truth, frames, bicubic)
    failed = conditions[0] | {"video": 2, "noise": 0, "psnr_first": None, "status": "non-finite at step 3"}
    RowWriter(folder).append([*rows, failed])
    write_means(folder, [row | {"psnr_first_of_mean": 20.0, "n_samples": 1} for row in map(condition_and_video, rows)])
    write_tables(folder)
    merge_clips(folder)
    make_figures(folder)
    (folder / "meta.json").write_text(json.dumps(META))
    (folder / "config.yaml").write_text(yaml.safe_dump({"name": folder.name, "seed": 7}))
    return folder


def condition_and_video(row):
    return {column: row[column] for column in (*SETTING, "num_frames", "order", "video")}


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """Made once, and only read."""
    return make_run(tmp_path_factory.mktemp("runs") / "frame_count")


@pytest.fixture
def run_dir(finished_run, tmp_path):
    """A copy to change."""
    return Path(shutil.copytree(finished_run, tmp_path / "runs" / "frame_count"))


# ---------------------------------------------------------------------------------------- reading a page


class Page(HTMLParser):
    """Tags with their attributes, the text of the body, tables as lists of rows, and the viewers' data."""

    def __init__(self, path):
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.tags, self.text, self.tables, self.raw = [], "", [], {"script": [], "style": []}
        self._within = ""
        self.feed(self.html)
        self.clips = [json.loads(text) for text in self.raw["script"][:-1]]

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._within = tag
        if tag in self.raw:
            self.raw[tag].append("")
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        if tag != "button":
            self._within = ""

    def handle_data(self, data):
        if self._within in self.raw:
            self.raw[self._within][-1] += data
            return
        self.text += data
        if self._within in ("button", "td") and self.tables and self.tables[-1] and self.tables[-1][-1]:
            self.tables[-1][-1][-1] += data.strip()

    def attributes(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def report(tmp_path):
    """Write the report about some run folders, and parse it."""
    return lambda *folders: Page(make_report(folders, tmp_path / "out" / "report.html"))


def decode(uri):
    prefix, _, content = uri.partition(",")
    assert prefix == "data:image/png;base64"
    return base64.b64decode(content)


def strip_of(clip):
    """(F, H, W, C) -> (H, F W, C), or (H, F W) in grey."""
    strip = np.concatenate(list(clip), axis=1)
    return strip[..., 0] if strip.shape[-1] == 1 else strip


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


@pytest.mark.parametrize("channels", [1, 3])
def test_every_condition_has_its_clip(report, tmp_path, channels):
    (data,) = report(make_run(tmp_path / "run", channels)).clips
    assert data["values"] == {"num_frames": ["1", "2", "10"], "order": ["random", "sequential"]}
    assert [clip["choice"] for clip in data["clips"]] == [
        {"num_frames": 0, "order": 1},
        {"num_frames": 1, "order": 0},
        {"num_frames": 1, "order": 1},
        {"num_frames": 2, "order": 1},
    ]
    assert [clip["frames"] for clip in data["clips"]] == [[0], [0, 9], [0, 1], list(range(10))]
    for clip, number in zip(data["clips"], (1, 2, 2, 10), strict=True):
        sprite = {name: Image.open(io.BytesIO(decode(data["sprites"][i]))) for name, i in clip["sprites"].items()}
        assert sprite.keys() == {"observed", "restored", "truth", "error"} | ({"bicubic"} if number == 10 else set())
        assert np.array_equal(sprite["restored"], strip_of(restored_clip(number, channels)))
        assert np.array_equal(sprite["truth"], strip_of(truth_clip(channels)))
        assert np.array_equal(sprite["observed"], strip_of(truth_clip(channels)[:, ::FACTOR, ::FACTOR]))
    assert len(data["sprites"]) == 2 + 3 + 3, "the same picture is kept once"


def test_error_map_and_psnr(report, finished_run):
    page = report(finished_run)
    (data,) = page.clips
    # One frame: 100 above a black pixel, 20 below a white one. Ten frames: 110 below a white one, the largest error.
    assert f"{110 / 255:.2f}" in page.text
    error = Image.open(io.BytesIO(decode(data["sprites"][data["clips"][0]["sprites"]["error"]])))
    levels = np.asarray(error)  # of the palette
    assert set(levels[:, 1:SIZE].flat) == {round(255 * 100 / 110)}
    assert set(levels[:, 0]) == {round(255 * 20 / 110)}
    palette = np.array(error.getpalette()).reshape(-1, 3).sum(axis=1)
    assert palette[0] < palette[100] < palette[255]
    mse = (15 * 100**2 + 20**2) / 16 / 255**2
    assert data["clips"][0]["notes"]["restored"][0] == f"{-10 * np.log10(mse):.1f} dB"


def test_numbers_are_rounded_with_their_errors(report, finished_run):
    page = report(finished_run)
    summary, paired, means = page.tables
    header, *rows = summary
    first_frame = header.index("PSNR, first frame (dB)")
    # Videos differ by 1 dB: standard error 0.5.
    assert [row[first_frame] for row in rows] == ["16.50 ± 0.50", "17.50 ± 0.50", "17.50 ± 0.50", "25.50 ± 0.50"]
    assert rows[0][header.index("SSIM")] == "0.505 ± 0.005"
    assert rows[0][header.index("PSNR, first frame (dB), bicubic")] == "16.00"
    assert paired == [["PSNR, first frame (dB), difference"], ["0.00"]]
    assert len(means) == 1 + 8
    assert not [cell for cell in header if cell.endswith("_se")]
    assert "scale factor 4" in " ".join(page.text.split()), "what does not vary stands above the table"
    assert "8 restorations of 3 videos × 1 noise instance; 1 failed" in page.text


def test_settings_that_quoted_rows_lack_stand_last(report, run_dir):
    (run_dir / "table1.csv").write_text("zeta,factor,method,psnr,psnr_se\n13,4,ours,24,0.5\n,8,quoted,27.44,\n")
    table = report(run_dir).tables[1]
    assert table[0] == ["scale factor", "method", "PSNR (dB)", "zeta"]
    assert table[1:] == [["4", "ours", "24.00 ± 0.50", "13"], ["8", "quoted", "27.44", ""]]


def test_provenance(report, finished_run):
    text = report(finished_run).text
    for fact in (META["command"], META["started"], META["git"], META["hardware"], "torch 2.13.0, python 3.11.7"):
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


def test_runs_of_one_name_are_told_apart(report, finished_run, run_dir):
    page = report(finished_run, run_dir)
    assert f"frame_count ({finished_run})" in page.text
    assert f"frame_count ({run_dir})" in page.text


def test_values_are_escaped(report, run_dir):
    plain = report(run_dir)
    name = "<script>alert('name')</script>"
    (run_dir / "config.yaml").write_text(yaml.safe_dump({"name": name}))
    (run_dir / "meta.json").write_text(json.dumps(META | {"command": '"><img src=x onerror=alert(1)>'}))
    (run_dir / "paired.csv").write_text('num_frames,note\n1,<b>bold</b>\n2,"a"\n')
    row = SETTING | {"num_frames": 2, "order": "</script><script>alert(2)</script>", "video": 0}
    clip = truth_clip(1)
    ClipWriter(run_dir).append(row, clip, clip, clip, [0, 1])
    merge_clips(run_dir)
    page = report(run_dir)
    assert [tag for tag, _ in page.tags if tag in ("script", "img", "b")] == [
        tag for tag, _ in plain.tags if tag in ("script", "img", "b")
    ]
    assert name in page.text
    assert "onerror=alert(1)" in page.text
    assert "</script><script>alert(2)</script>" in page.clips[0]["values"]["order"]


@pytest.mark.parametrize(
    "missing",
    ["clips.h5", "summary.csv", "means.csv", "paired.csv", "config.yaml", "meta.json", "fig2.png", "*[!s].*"],
)
def test_what_is_missing_is_left_out(report, run_dir, missing):
    for path in run_dir.glob(missing):
        if path.name != "results.csv":
            path.unlink()
    page = report(run_dir)
    assert "frame_count" in page.text
    assert bool(page.clips) == (run_dir / "clips.h5").exists()


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


def test_a_folder_without_results(tmp_path, capsys):
    assert main(["report", str(tmp_path), "--output", str(tmp_path / "report.html")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path}: has no results.csv; name folders that a sweep wrote")
    assert not (tmp_path / "report.html").exists()


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
        ("meta.json", b'["a list"]'),
        ("fig2.png", b"not a picture"),
    ],
)
def test_a_damaged_file_is_named(run_dir, tmp_path, name, content):
    (run_dir / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: cannot be read"):
        make_report([run_dir], tmp_path / "report.html")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["results.csv", "summary.csv", "means.csv", "clips.h5", "meta.json", "fig2.png"])
def test_a_file_that_a_disk_damaged_is_named(run_dir, tmp_path, capsys, name, damage):
    damage(run_dir / name)
    page = tmp_path / "report.html"
    assert main(["report", str(run_dir), "--output", str(page)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {run_dir / name}: cannot be read (")
    assert not page.exists()
    if name != "results.csv":
        (run_dir / name).unlink()  # the way out
        assert main(["report", str(run_dir), "--output", str(page)]) == 0


def test_command_line(run_dir, monkeypatch, capsys):
    monkeypatch.chdir(run_dir.parents[1])
    assert main(["report", "runs/frame_count"]) == 0
    assert capsys.readouterr().out == "runs/report.html\n"
    assert main(["report", "runs/frame_count", "--output", "elsewhere/page.html", "runs/frame_count"]) == 0
    assert Page(Path("elsewhere/page.html")).text.count("Provenance") == 2


# ------------------------------------------------------------------------------------- in the browser

needs_chromium = pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")),
    reason="needs chromium and chromedriver: apt-get install chromium chromium-driver",
)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
SCHEMES = ("light", "dark")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # With the driver's path given, Selenium looks for nothing and downloads nothing.
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page_url(finished_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    other = make_run(folder / "in_colour", channels=3)
    return make_report([finished_run, other], folder / "report.html").as_uri()


@pytest.fixture
def browser(chromium, page_url):
    """The page, freshly loaded in a wide window; afterwards the console must be empty."""
    show(chromium, page_url)
    yield chromium
    assert chromium.get_log("browser") == []


def show(driver, url, width=1280, scheme="light", motion="no-preference"):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": motion}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": k, "value": v} for k, v in features.items()]}
    )
    driver.get(url)
    wait_until(lambda: pixels(driver, "truth").shape == (SIZE, SIZE, 4))


def wait_until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def first_viewer(driver):
    return driver.find_element(By.CLASS_NAME, "viewer")


def control(driver, name):
    """A control of the first viewer, by the text of its label."""
    viewer = first_viewer(driver)
    (label,) = [label for label in viewer.find_elements(By.TAG_NAME, "label") if label.text == name]
    return driver.find_element(By.ID, label.get_attribute("for"))


def panel(driver, name):
    return first_viewer(driver).find_element(By.CSS_SELECTOR, f"[data-panel={name}]")


def pixels(driver, name):
    """What a panel shows: RGBA uint8 (H, W, 4)."""
    canvas = panel(driver, name).find_element(By.TAG_NAME, "canvas")
    png = decode(driver.execute_script("return arguments[0].toDataURL()", canvas))
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))


def shows(driver, name, frame):
    """Whether a panel shows this grey frame, uint8 (H, W)."""
    shown = pixels(driver, name)
    return shown.shape[:2] == frame.shape and bool(np.all(shown[..., :3] == frame[..., None]))


@needs_chromium
def test_sliders_choose_frame_and_condition_by_keyboard(browser):
    truth = truth_clip(1)[..., 0]
    wait_until(lambda: shows(browser, "truth", truth[0]))
    frame = control(browser, "frame")
    frame.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    wait_until(lambda: shows(browser, "truth", truth[2]))
    assert frame.get_attribute("aria-valuetext") == "3 of 10, not observed"
    assert "frame 3" in panel(browser, "truth").find_element(By.TAG_NAME, "canvas").get_attribute("aria-label")

    wait_until(lambda: shows(browser, "restored", restored_clip(1, 1)[2, ..., 0]))
    assert not panel(browser, "bicubic").is_displayed()
    control(browser, "observed frames").send_keys(Keys.END)
    wait_until(lambda: shows(browser, "restored", restored_clip(10, 1)[2, ..., 0]))
    wait_until(lambda: shows(browser, "bicubic", truth[2]))
    assert frame.get_attribute("aria-valuetext") == "3 of 10, observed"


@needs_chromium
def test_frames_that_were_not_observed_are_marked(browser):
    observed = truth_clip(1)[:, ::FACTOR, ::FACTOR, 0]
    wait_until(lambda: shows(browser, "observed", observed[0]))
    control(browser, "frame").send_keys(Keys.END)
    wait_until(lambda: not pixels(browser, "observed").any())
    assert "not this frame" in panel(browser, "observed").text
    marks = first_viewer(browser).find_elements(By.CSS_SELECTOR, ".timeline li")
    assert ["observed" in mark.get_attribute("class") for mark in marks] == [True] + [False] * 9


@needs_chromium
def test_a_combination_without_a_clip_shows_the_nearest(browser):
    status = first_viewer(browser).find_element(By.CLASS_NAME, "status")
    assert status.text == "Observed: frame 1 of 10."
    control(browser, "order of frames").send_keys("random")
    wait_until(lambda: "No clip of this combination. Shown: observed frames 2, order of frames random" in status.text)
    control(browser, "observed frames").send_keys(Keys.ARROW_RIGHT)
    wait_until(lambda: status.text == "Observed: frames 1, 10 of 10.")
    control(browser, "observed frames").send_keys(Keys.ARROW_RIGHT)
    wait_until(lambda: "Shown: observed frames 10, order of frames sequential" in status.text)


@needs_chromium
@pytest.mark.parametrize("motion", ["no-preference", "reduce"])
def test_play_and_pause(browser, page_url, motion):
    show(browser, page_url, motion=motion)
    frame, play = control(browser, "frame"), first_viewer(browser).find_element(By.CLASS_NAME, "play")
    play.send_keys(Keys.SPACE)
    assert play.text == "Pause"
    wait_until(lambda: int(frame.get_attribute("value")) >= 2)
    play.send_keys(Keys.SPACE)
    assert play.text == "Play"
    stopped_at = frame.get_attribute("value")
    time.sleep(0.4)
    assert frame.get_attribute("value") == stopped_at


@needs_chromium
def test_headers_sort_by_keyboard(browser):
    table = browser.find_element(By.TAG_NAME, "table")
    header = table.find_elements(By.TAG_NAME, "th")[0]
    column = lambda: [row.text.split()[0] for row in table.find_elements(By.CSS_SELECTOR, "tbody tr")]  # noqa: E731
    assert column() == ["1", "2", "2", "10"]
    header.find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
    assert (column(), header.get_attribute("aria-sort")) == (["1", "2", "2", "10"], "ascending")
    header.find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
    assert (column(), header.get_attribute("aria-sort")) == (["10", "2", "2", "1"], "descending")
    table.find_elements(By.CSS_SELECTOR, "th button")[1].click()
    assert header.get_attribute("aria-sort") == "none"
    orders = [row.text.split()[1] for row in table.find_elements(By.CSS_SELECTOR, "tbody tr")]
    assert orders == sorted(orders)


@needs_chromium
def test_empty_cells_stay_last(chromium, run_dir, tmp_path):
    (run_dir / "summary.csv").write_text("value,name\n10,a\n,b\ninf,c\n2,d\n")
    show(chromium, make_report([run_dir], tmp_path / "report.html").as_uri())
    table = chromium.find_element(By.TAG_NAME, "table")
    names = lambda: "".join(row.text[-1] for row in table.find_elements(By.CSS_SELECTOR, "tbody tr"))  # noqa: E731
    button = table.find_element(By.TAG_NAME, "button")
    button.click()
    assert names() == "dacb"
    button.click()
    assert names() == "cadb"


@needs_chromium
def test_the_tab_key_reaches_every_control(browser):
    controls = browser.find_elements(By.CSS_SELECTOR, "a, button, input, select, summary, .scroll")
    missed = {element for element in controls if element.is_displayed()}
    for _ in range(2 * len(missed)):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        missed.discard(browser.switch_to.active_element)
    assert not missed
    browser.execute_script("arguments[0].focus({focusVisible: true})", control(browser, "frame"))
    assert control(browser, "frame").value_of_css_property("outline-style") == "solid"


@needs_chromium
@pytest.mark.parametrize("width", [375, 1280])
def test_the_page_does_not_scroll_sideways(browser, page_url, width):
    show(browser, page_url, width=width)
    for details in browser.find_elements(By.TAG_NAME, "details"):
        browser.execute_script("arguments[0].open = true", details)
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert browser.execute_script("return innerWidth") == width


@needs_chromium
def test_nothing_is_requested(browser):
    requested = browser.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert not [name for name in requested if not name.startswith("data:")]


@needs_chromium
@pytest.mark.parametrize("scheme", SCHEMES)
def test_colour_schemes_have_contrast(browser, page_url, scheme):
    show(browser, page_url, scheme=scheme)
    value_of = "return getComputedStyle(document.documentElement).getPropertyValue(arguments[0])"
    names = ("page", "surface", "text", "muted", "accent")
    colour = {name: luminance(browser.execute_script(value_of, f"--{name}")) for name in names}
    assert (colour["page"] > colour["text"]) == (scheme == "light")
    for background in ("page", "surface"):
        for text in ("text", "muted", "accent"):
            assert contrast(colour[background], colour[text]) >= 4.5, "WCAG 2.2, AA"
    screenshot = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("L")
    assert (screenshot.getpixel((2, 2)) > 128) == (scheme == "light")


def luminance(colour):
    """Relative luminance of "#rrggbb" (WCAG 2.2)."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return float(np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])


def contrast(a, b):
    return (max(a, b) + 0.05) / (min(a, b) + 0.05)
