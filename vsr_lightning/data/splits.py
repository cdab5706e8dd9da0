"""The names of the splits."""

# Their order is part of the random streams of Moving MNIST's clips and of simulated trajectories.
SPLITS = ("train", "val", "test")
