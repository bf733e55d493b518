"""Help of fit, validate, test and predict: what most users need, of the parser's 1,900 lines."""

from __future__ import annotations

import argparse

from ssl_lightning.cli.examples import program, shown
from ssl_lightning.cli.short_help import PlainHelp

FULL_HELP = "--help-all"
USAGE = "%(prog)s [--config FILE.yaml ...] [options]"
OPTIONS: dict[str, list[tuple[str, str, str]]] = {
    "configs": [
        ("config", "FILE", "YAML file of these options; of several, the later ones count"),
        ("print_config", "", "print the config with all defaults, and exit"),
        ("import", "MODULE", "module of your own to import first, such as one that calls "
         "`register_backbone`"),
        ("seed_everything", "NUMBER", "of all random generators (default: 0)"),
    ],
    "what is trained": [
        ("model.backbone", "NAME", "lenet, resnet20, timm:<name>, torchvision:<name>, zoo:<name>, "
         "or the class of your own network (default: lenet)"),
        ("model.backbone_args", "ARGS", "of a backbone by name, such as '{pretrained: true}'"),
        ("model.input_shape", "SHAPE", "[C, H, W], where a network of your own does not tell it"),
        ("model.init_from", "SOURCE", "weights to begin with: zoo:<name>, a checkpoint, "
         "or a file of weights (.pt, .safetensors)"),
        ("model.optimizer", "CLASS", "such as torch.optim.SGD; --model.optimizer.lr 0.1 and "
         "others for its arguments (default: SGD, lr 0.01, momentum 0.9)"),
        ("model.lr_scheduler", "CLASS", "of torch, or StageLR"),
        ("model.loss", "CLASS", "for other tasks than classification, with --model.metrics"),
    ],
    "what becomes sparse": [
        ("budget.macs", "NUMBER", "share of the multiply-adds that the compact network may have; "
         "also parameters, size, depth, latency (docs/budgets.md)"),
        ("model.penalties", "LIST", "such as '[{kind: filter, layers: \"conv*\", strength: 1e-3}]';"
         " one value of it: --model.penalties.0.strength 1e-3"),
        ("trainer.callbacks+", "CLASS", "add ThresholdPruning, SparsityMonitor, CompactDuringFit, "
         "Distill, ... of this library or Lightning; --trainer.callbacks.start 1 and others for "
         "its arguments"),
    ],
    "data": [
        ("data", "CLASS", "MNISTDataModule (ships with the package), CIFAR10DataModule, "
         "ImagenetteDataModule, ImageFolderDataModule, SyntheticDataModule, ... or your own"),
        ("data.batch_size", "NUMBER", "and other arguments of that class, such as --data.source "
         "download or --data.root FOLDER (default folder: SSL_DATA_DIR, else ./data)"),
    ],
    "how it runs": [
        ("trainer.max_epochs", "NUMBER", "epochs to train"),
        ("trainer.default_root_dir", "FOLDER", "of the run (default: runs/default)"),
        ("trainer.accelerator", "NAME", "cpu, gpu, ... (default: auto)"),
        ("trainer.devices", "NUMBER", "of them (default: auto)"),
        ("trainer.precision", "NAME", "such as bf16-mixed (default: 32-true)"),
        ("trainer.logger", "CLASS", "CSVLogger, TensorBoardLogger, WandbLogger, or false"),
        ("trainer.limit_train_batches", "NUMBER", "batches of an epoch, or a share of them, to "
         "try things out; also val, test and predict"),
        ("trainer.enable_progress_bar", "BOOL", "false: a line for each epoch instead"),
        ("ckpt_path", "FILE", "checkpoint to go on from, or to measure"),
    ],
}  # fmt: skip
"""Title -> name of an option, what stands for its value, and what it does."""
END = f"""{FULL_HELP} shows all options; those of a class: --data.help CLASS,
--model.optimizer.help CLASS, --trainer.callbacks.help CLASS.
"""


def help_of(name: str, summary: str) -> str:
    """Return the short help of one of the four commands.

    Args:
        name: of the command.
        summary: what it does.
    """
    parser = argparse.ArgumentParser(
        prog=f"{program()} {name}",
        usage=USAGE,
        description=f"{summary[0].upper()}{summary[1:]}.",
        add_help=False,
        formatter_class=PlainHelp,
    )
    for title, rows in OPTIONS.items():
        group = parser.add_argument_group(title)
        for option, value, text in rows:
            settings = {"metavar": value} if value else {"action": "store_true"}
            group.add_argument(f"--{option}", help=text, **settings)  # type: ignore[arg-type]
    return f"{parser.format_help()}\n{END}{shown(name)}"
