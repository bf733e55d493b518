"""fit, validate, test and predict: LightningCLI with this library's module."""

from __future__ import annotations

import inspect
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings
from lightning.pytorch import (
    Callback,
    LightningDataModule,
    Trainer,
    callbacks,
    loggers,
)
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from torch import optim

from ssl_lightning.callbacks import CALLBACKS, Budget, SaveCompact
from ssl_lightning.checkpoints import read_checkpoint
from ssl_lightning.cli.admission import admit_classes, check_parsed
from ssl_lightning.cli.config_files import files_given, mistake_in
from ssl_lightning.cli.data import check_channels
from ssl_lightning.cli.epoch_lines import EpochLines
from ssl_lightning.cli.examples import suggest
from ssl_lightning.cli.items import split_items
from ssl_lightning.cli.parse import IMPORT, add_import, import_modules
from ssl_lightning.cli.parser_errors import OneSentenceParser
from ssl_lightning.cli.run_folder import RunFolderConfig
from ssl_lightning.cli.summary import Summary
from ssl_lightning.cli.tables import say
from ssl_lightning.data import DATA_MODULES
from ssl_lightning.files import Traces
from ssl_lightning.module import SSLLightningModule, is_trained
from ssl_lightning.module.parts import check_source, refuse_spawning
from ssl_lightning.sweep.paths import set_at

DEFAULT_FOLDER = "runs/default"
LAST = "last"
"""Name of the checkpoint that runs store unless told otherwise: of the last epoch."""
FOUND_BY_LIGHTNING = ("best", "last", "hpc", "registry")
"""Values of ``ckpt_path`` that are no paths."""
DUMP = inspect.signature(ArgumentParser.dump).parameters
KEEP_NONE = "skip_unset" if "skip_unset" in DUMP else "skip_none"
"""Name of the parser's argument, which was another once."""
BUDGET = "what the compact network may cost, such as `--budget.macs 0.5`: a Budget callback"
USAGE = "%(prog)s [--config FILE.yaml ...] [--help] [options]"

set_parsing_settings(instantiate_subclass_spec_in_any=False)  # `admit_classes` says which


class TrainingParser(OneSentenceParser, LightningArgumentParser):
    """Says in one sentence what is wrong with a config, if it knows how."""

    classes = MappingProxyType(
        {
            "trainer.callbacks": [*CALLBACKS, *callbacks.__all__],
            "trainer.logger": loggers.__all__,
            "data": [kind.__name__ for kind in DATA_MODULES.values()],
            "model.optimizer": [n for n in optim.__all__ if inspect.isclass(getattr(optim, n))],
            "model.lr_scheduler": ["StageLR", *optim.lr_scheduler.__all__],
            "budget": ["Budget"],
        }
    )


class SSLCLI(LightningCLI):
    """LightningCLI that builds only the asked subcommand's parser and checks ``ckpt_path``."""

    asked: str = "fit"
    given: Sequence[str] = ()
    items: Mapping[str, Any] = MappingProxyType({})
    traces: Mapping[str, Traces] = MappingProxyType({})
    suggests: bool = True
    epochs_done: int = 0

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the asked subcommand only: building all four takes four times as long."""
        return {SSLCLI.asked: LightningCLI.subcommands()[SSLCLI.asked]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Let configs and the command line name modules to import, and a budget."""
        add_import(parser)
        parser.add_argument("--budget", type=Budget | None, help=BUDGET)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Refuse configs that the parser would take silently or without naming the file."""
        parsers: dict[str, Any] = getattr(self, "_subcommand_parsers", {})
        for asked in parsers.values():  # one, or none where only the classes are made
            options = [action.dest for action in asked._actions]
            for found in filter(None, (mistake_in(p, options) for p in files_given(self.given))):
                asked.refuse(found)
        super().parse_arguments(parser, args)
        import_modules(self.config.get(self.asked, self.config).get(IMPORT))
        if self.items:
            content = whole(parsers[self.asked], self.config[self.asked])
            for path, value in self.items.items():
                set_at(content, path, value)
            self.config = parser.parse_object({"subcommand": self.asked, self.asked: content})

    def before_fit(self) -> None:
        """Refuse, before processes are started, what each of them would refuse."""
        refuse_spawning(self.trainer.strategy)
        check_channels(self.model.backbone, self.datamodule)
        root = Path(self.trainer.default_root_dir).absolute()
        last = root / "checkpoints" / f"{LAST}.ckpt"
        if self.model.init_from is not None and not self.config.fit.ckpt_path:
            check_source(self.model.init_from)
        if self.suggests:
            self.warn_of_no_steps()
        told = self.suggests and self.trainer.is_global_zero and self.trainer.checkpoint_callback
        if told and last.exists() and not self.config.fit.ckpt_path:
            say(f"note: {os.path.relpath(last)} is of an earlier run and will be replaced. To keep "
                "it, give another --trainer.default_root_dir.")  # fmt: skip
        logs = [logger.log_dir for logger in self.trainer.loggers if logger.log_dir]
        self.traces = {
            "run": Traces([root], [root / "config.yaml", root / ".lock"]),
            "logs": Traces([], [], [Path(log).absolute() for log in logs]),
        }

    def _run_subcommand(self, subcommand: str) -> None:
        """Carry out the subcommand; of a run that is refused nothing is written."""
        try:
            super()._run_subcommand(subcommand)
        except BaseException:
            self._take_back()
            raise

    def warn_of_no_steps(self) -> None:
        """Say that nothing is trained, if so."""
        most, steps, done = self.trainer.max_epochs, self.trainer.max_steps, self.epochs_done
        if 0 in (most, steps):
            say("note: nothing is trained: trainer.max_epochs or max_steps is 0.")
        elif most is not None and 0 < most <= done:
            say(f"note: nothing is trained: the checkpoint has {done} epochs behind it, and "
                f"trainer.max_epochs is {most}.")  # fmt: skip

    def warn_of_fresh(self) -> None:
        """Say that nothing but fresh weights is measured, if so."""
        given = self.config[self.asked]
        model = yaml.safe_load(self._parser(self.asked).dump(given))["model"]
        if given.ckpt_path is None and not is_trained(model):
            say("note: the network has fresh weights. Give a checkpoint: --ckpt_path FILE.")

    before_validate = before_test = before_predict = warn_of_fresh

    def after_fit(self) -> None:
        """Say what may be done next with the checkpoint."""
        trainer: Any = self.trainer
        stored = getattr(trainer.checkpoint_callback, "last_model_path", "") or getattr(
            trainer.checkpoint_callback, "best_model_path", ""
        )
        if stored and self.suggests and trainer.is_global_zero:
            path = Path(os.path.relpath(stored))
            given = self.config[self.asked]
            sparse = given.model.penalties or given.budget
            compacted = any(isinstance(each, SaveCompact) for each in trainer.callbacks)
            after = f"benchmark {path}" if compacted else f"compact {path}"
            suggest(after if sparse else f"prune {path} --macs 0.5")

    def _take_back(self) -> None:
        """Remove what the run wrote, unless it has begun, or another works in its folder."""
        trainer: Any = self.trainer
        configs = [c for c in trainer.callbacks if isinstance(c, RunFolderConfig)]
        if self.traces and trainer.is_global_zero and not any(c.begun for c in configs):
            self.traces["logs"].remove()
            if any(c.held for c in configs):
                self.traces["run"].remove()

    def instantiate_trainer(self, **settings: Any) -> Trainer:
        """Make the trainer, with the budget as the first of its callbacks."""
        given = settings.get("callbacks", self._get(self.config_init, "trainer.callbacks"))
        others = given if isinstance(given, list) else [given] if given else []
        budget = self._get(self.config_init, "budget")
        first = [] if budget is None else [budget]
        settings["callbacks"] = [*first, *others, *self.own_callbacks(others)]
        settings["enable_model_summary"] = False  # Lightning's own
        return super().instantiate_trainer(**settings)

    def own_callbacks(self, given: Sequence[Callback]) -> list[Callback]:
        """Return what a run has without being asked: summary, epoch lines and checkpoints."""
        trainer = self._get(self.config_init, "trainer")
        own: list[Callback] = [EpochLines()]
        if trainer.enable_model_summary is not False and not any_of(given, callbacks.ModelSummary):
            own.append(Summary())
        if trainer.enable_checkpointing is not False and not any_of(given, callbacks.Checkpoint):
            folder = Path(trainer.default_root_dir).absolute() / "checkpoints"
            own.append(callbacks.ModelCheckpoint(folder, LAST, enable_version_counter=False))
        return own

    def instantiate_classes(self) -> None:
        """Make everything; let checkpoints hold what a backbone given by class was called with."""
        config = self.config.get(str(self.subcommand), self.config)
        admit_classes(config.model.penalties or [])
        super().instantiate_classes()
        if isinstance(config.model.backbone, Namespace):
            text = self._parser(self.subcommand).dump(config)
            arguments = yaml.safe_load(text)["model"]["backbone"].get("init_args") or {}
            self.model.hparams["backbone_init_args"] = arguments

    def _parse_ckpt_path(self) -> None:
        """Check the checkpoint; take the model's settings from it only if none were given.

        LightningCLI lets a checkpoint's settings replace those of configs and command line, so
        that ``fit --ckpt_path X --model.penalties ...`` would silently train with the old ones.
        """
        path = self.config.get(self.asked, {}).get("ckpt_path")
        content = read_checkpoint(path) if path and is_path_of_file(path) else None
        self.epochs_done = epochs_of(content or {})
        given = (argument.partition("=")[0] for argument in self.given)
        if any(name in ("-c", "--config") or name.startswith("--model") for name in given):
            return
        if content is not None:
            check_parsed(content, path)
        super()._parse_ckpt_path()


def any_of(given: Iterable[Callback], kind: type[Callback]) -> bool:
    """Whether one of the callbacks is of a kind."""
    return any(isinstance(each, kind) for each in given)


def epochs_of(content: Mapping[str, Any]) -> int:
    """Return how many whole epochs a checkpoint has behind it; 0 if it does not say."""
    progress = content.get("loops", {}).get("fit_loop", {}).get("epoch_progress", {})
    return int(progress.get("current", {}).get("processed", 0))


def is_path_of_file(path: str | Path) -> bool:
    """Whether a ``ckpt_path`` names a file, not a folder of shards or what Lightning finds itself.

    Example:
        >>> [is_path_of_file(p) for p in ("runs/mine/last.ckpt", "best", ".")]
        [True, False, False]
    """
    by_name = str(path) in FOUND_BY_LIGHTNING or str(path).startswith("registry:")
    return not by_name and not Path(path).is_dir()


def run(name: str, arguments: list[str]) -> None:
    """Run one of LightningCLI's subcommands."""
    quieten()
    keep_wandb_offline_without_key()
    with warnings.catch_warnings():
        if name != "fit":  # what the callbacks of training remember is of no use to a measurement
            warnings.filterwarnings("ignore", message=r".*callbacks used to create the checkpoint")
        carry_out(name, arguments)


def carry_out(
    name: str,
    arguments: Sequence[str],
    cli: type[SSLCLI] = SSLCLI,
    content: Mapping[str, Any] | None = None,
    callbacks: Sequence[Callback] = (),
) -> SSLCLI:
    """Let LightningCLI parse the arguments and run the subcommand.

    Args:
        name: of the subcommand.
        arguments: of the command line.
        cli: the class to do it.
        content: plain values of a config, in place of arguments.
        callbacks: that the trainer gets besides those of the config.
    """
    SSLCLI.asked = name
    SSLCLI.given = arguments
    SSLCLI.items, others = split_items(arguments)
    program, sys.argv = sys.argv, [sys.argv[0], name, *others]
    if content is not None:
        sys.argv = sys.argv[:1]
    try:
        return cli(
            SSLLightningModule,
            LightningDataModule,
            subclass_mode_data=True,
            seed_everything_default=0,
            save_config_callback=RunFolderConfig,
            trainer_defaults={"default_root_dir": DEFAULT_FOLDER, "callbacks": list(callbacks)},
            parser_class=TrainingParser,
            parser_kwargs={name: {"usage": USAGE}},
            args=None if content is None else {"subcommand": name, name: content},
        )
    finally:
        sys.argv, SSLCLI.items = program, {}


class ContinuedCLI(SSLCLI):
    """Stores checkpoints, and continues from one if there is any."""

    checkpoint: Path | None = None
    suggests = False

    def instantiate_trainer(self, **settings: Any) -> Trainer:
        """Make the trainer, which may store checkpoints whatever the config says."""
        return super().instantiate_trainer(**{**settings, "enable_checkpointing": True})

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Name the checkpoint, of which nothing but the state of the run is taken."""
        given: dict[str, Any] = super()._prepare_subcommand_kwargs(subcommand)
        return given if self.checkpoint is None else {**given, "ckpt_path": self.checkpoint}


class ParsedOnly(SSLCLI):
    """Parses arguments, and makes and does nothing."""

    def _set_seed(self) -> None:
        """Leave the random generators alone."""

    def instantiate_classes(self) -> None:
        """Make nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Do nothing."""


def resolved(
    name: str, arguments: Sequence[str] = (), content: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], str]:
    """Return the config that a subcommand would run with: all of it, and as ``fit`` stores it.

    Args:
        name: of the subcommand.
        arguments: of the command line.
        content: plain values of a config, in place of arguments.
    """
    cli = carry_out(name, arguments, ParsedOnly, content)
    parser, config = cli._parser(name), cli.config[name]
    return whole(parser, config), parser.dump(config)


def whole(parser: LightningArgumentParser, config: Namespace) -> dict[str, Any]:
    """Return a config as plain values, with those that are None."""
    content: dict[str, Any] = yaml.safe_load(parser.dump(config, **{KEEP_NONE: False}))
    return content


def quieten() -> None:
    """Drop advertisements and third-party deprecation notes from the output."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "Tip:" not in record.getMessage()
    )
    warnings.filterwarnings("ignore", message=r".*LeafSpec.*")


def keep_wandb_offline_without_key() -> None:
    """Let Weights & Biases log to files where it has no key, so that it never asks for one."""
    known = "WANDB_API_KEY" in os.environ or (Path.home() / ".netrc").exists()
    if not known:
        os.environ.setdefault("WANDB_MODE", "offline")


__all__ = ["SSLCLI", "run"]
