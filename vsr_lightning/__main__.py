"""The command line: `python -m vsr_lightning COMMAND experiments/….yaml [key=value …]`."""

import argparse
import os
import sys
import warnings
from pathlib import Path
from typing import NoReturn

from vsr_lightning.config import Experiment, UserError, load_config, to_yaml

COMMANDS = {
    "data": "fetch, verify and convert the data that the experiment names",
    "train": "train the network of training.stage, or go on with it",
    "export": "write the prior's folder from the last checkpoint",
    "sweep": "restore every item of the grid, or finish a sweep; write tables, figures and a W&B run",
    "figures": "draw the figures of a finished sweep again",
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, or 2 after one line on stderr for a mistake of the user's."""
    options = _parse(arguments)
    try:
        experiment = load_config(options.experiment, options.overrides)
        if options.command in ("sweep", "figures"):
            experiment = _fit_to_machine(experiment, options)
        if options.print_config:
            print(to_yaml(experiment), end="")
            return 0
        _quiet()
        run(options.command, experiment)
    except UserError as error:
        if options.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # no permission, no space, a file where a folder should be
        if options.debug:
            raise
        print(f"error: {error.filename + ': ' if error.filename else ''}{error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from what is on disk", file=sys.stderr)
        return 130
    return 0


def run(command: str, experiment: Experiment) -> None:
    # Imports are local: `--help` and `--print-config` need neither torch's compiler nor Lightning.
    if command == "data":
        from vsr_lightning.training.run import make_datamodule

        make_datamodule(experiment).fetch()
    elif command == "train":
        from vsr_lightning.training.run import train

        train(experiment)
    elif command == "export":
        from vsr_lightning.training.run import export

        if not experiment.prior:
            raise UserError("prior: name the folder to write, as prior=data/checkpoints/mine")
        export(experiment, Path(experiment.prior))
    elif command == "sweep":
        from vsr_lightning.evaluation.run import sweep

        sweep(experiment)
    elif command == "figures":
        from vsr_lightning.evaluation.run import make_figures

        for path in make_figures(experiment, Path(experiment.runs_dir) / experiment.name):
            print(path)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see --help\n")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    commands = "\n".join(f"  {name:8} {text}" for name, text in COMMANDS.items())
    parser = _Parser(
        prog="python -m vsr_lightning",
        description=f"Video super-resolution with a video diffusion prior.\n\ncommands:\n{commands}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of the commands above")
    parser.add_argument("experiment", help="YAML file, as experiments/moving_mnist/sweep_frames.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as sampler.steps=250 grid.num_frames=[1,10]")
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")
    parser.add_argument("--debug", action="store_true", help="show the traceback of errors")
    return parser.parse_intermixed_args(arguments)  # overrides may follow an option


def _fit_to_machine(experiment: Experiment, options: argparse.Namespace) -> Experiment:
    """Without a GPU, the experiment's small preset, unless full=true asks for the whole grid."""
    import torch

    if not experiment.without_gpu or experiment.full or torch.cuda.is_available():
        return experiment
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(
            "no GPU here: taking the small preset; add full=true for the whole grid (days on a CPU)",
            file=sys.stderr,
        )
    return load_config(options.experiment, [*experiment.without_gpu, *options.overrides])


def _quiet() -> None:
    """Hide notices that tell a user nothing to act on."""
    import logging

    os.environ.setdefault("POSSIBLE_USER_WARNINGS", "off")
    for name in ("utilities.rank_zero", "accelerators.cuda", "trainer.connectors.checkpoint_connector"):
        logging.getLogger(f"lightning.pytorch.{name}").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*Lazy modules.*",
        ".*lr_scheduler.step.*",
        ".*The `srun` command.*",
    ):
        warnings.filterwarnings("ignore", message)


if __name__ == "__main__":
    sys.exit(main())
