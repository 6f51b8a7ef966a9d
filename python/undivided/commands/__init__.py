"""One file a subcommand: `add_arguments(parser)` and `run(args) -> exit code`. Imported when it is asked for."""

from __future__ import annotations

COMMANDS = {
    "info": "what this machine and this installation can run",
    "verify": "check every kernel that runs here against the float64 reference",
    "bench": "time the kernels against their peers",
    "data": "list or fetch the datasets of the tasks",
    "tasks": "list the tasks, or the scores that are committed for them",
    "train": "train a model on a task",
    "finetune": "train on a task from the weights of a checkpoint",
    "compare": "train several kinds of model on a task, side by side, or measure a claim about them",
    "evaluate": "score a checkpoint beside published figures",
    "generate": "run a checkpoint on your own input",
    "transcribe": "write down what is said in audio files",
    "export": "write a checkpoint's model to a smaller file",
    "demo": "info, a quick verify, a short training, its score and an example",
}


class CommandError(Exception):
    """What the user asked for cannot be done; the text is shown as one line."""
