"""A fabricated run folder with every file that a sweep leaves, and a parser of the report's page."""

import base64
import json
from html.parser import HTMLParser

import numpy as np
import result_rows
import yaml

from vsr_lightning.evaluation.results import RowWriter, write_means, write_tables
from vsr_lightning.evaluation.videos import Clip, ClipWriter, merge_clips
from vsr_lightning.figures.frame_count import make_figures

FRAMES, SIZE, FACTOR = 10, 16, 4
NUMBERS = (1, 2, 10)  # as text, 10 would come before 2
SETTING = result_rows.SETTING | {
    "factor": FACTOR,
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
    "precision": "bf16-mixed",
    "resumed": [{"started": "2026-01-03T00:00:00Z", "git": "ba9876543210", "hardware": "CPU, 4 cores"}],
}


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
        ClipWriter(folder).append([Clip(condition | {"video": 0}, observed, restored, truth, frames, bicubic)])
    failed = conditions[0] | {"video": 2, "noise": 0, "psnr_first": None, "status": "non-finite at step 3"}
    RowWriter(folder).append([*rows, failed])
    write_means(folder, [result_rows.mean_of(row, n_samples=1, psnr_first_of_mean=20.0) for row in rows])
    write_tables(folder)
    merge_clips(folder)
    make_figures(folder)
    (folder / "meta.json").write_text(json.dumps(META))
    (folder / "config.yaml").write_text(yaml.safe_dump({"name": folder.name, "seed": 7}))
    return folder


def make_large_run(folder):
    """A sweep of 2,000 items in 100 conditions, a clip of each: 64 x 64 with grain, which no picture format shrinks."""
    rng = np.random.default_rng(0)
    truth = np.kron(rng.integers(0, 2, (FRAMES, 8, 8, 1)), np.ones((1, 8, 8, 1))) * 200
    conditions = [
        SETTING | {"num_frames": number, "order": order, "sigma_h": width}
        for number in range(1, FRAMES + 1)
        for order in ("sequential", "random")
        for width in (0.0, 1.0, 2.0, 3.0, 4.0)
    ]
    measured = {"psnr_first": 20.0, "psnr_mean": 20.0, "ssim_mean": 0.9, "seconds": 0.25, "status": "ok"}
    rows = [condition | {"video": video, "noise": 0} | measured for condition in conditions for video in range(20)]
    writers = [ClipWriter(folder, rank) for rank in range(FRAMES)]  # each writes all of its clips at every one
    for condition in conditions:
        restored, bicubic = ((truth + rng.normal(20, 2, truth.shape)).astype(np.uint8) for _ in range(2))
        arrays = truth[:, ::8, ::8].astype(np.uint8), restored, truth.astype(np.uint8)
        frames = observed_frames(condition["num_frames"], condition["order"])
        writers[condition["num_frames"] - 1].append([Clip(condition | {"video": 0}, *arrays, frames, bicubic)])
    RowWriter(folder).append(rows)
    write_means(folder, [result_rows.mean_of(row, n_samples=1, psnr_first_of_mean=20.0) for row in rows])
    write_tables(folder)
    merge_clips(folder)
    return folder


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


def decode(uri):
    prefix, _, content = uri.partition(",")
    assert prefix == "data:image/png;base64"
    return base64.b64decode(content)


def strip_of(clip):
    """(F, H, W, C) -> (H, F W, C), or (H, F W) in grey."""
    strip = np.concatenate(list(clip), axis=1)
    return strip[..., 0] if strip.shape[-1] == 1 else strip
