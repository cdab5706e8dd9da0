"""A frame-count sweep that takes seconds: 2 videos x 2 noise instances x 2 numbers of frames, 8 items, 3 a batch."""

from pathlib import Path

SWEEP = Path(__file__).parents[1] / "experiments" / "moving_mnist" / "sweep_frames.yaml"
TINY = [
    *("data.digits=embedded", "data.test_videos=2", "sampler.steps=3", "sampler.zeta=0.5", "sampler.restarts=[0.5]"),
    *("grid.videos=2", "grid.noises=2", "grid.num_frames=[1,3]", "grid.order=[random]"),
    *("trainer.accelerator=cpu", "trainer.progress=false", "trainer.batch_size=3"),
]
