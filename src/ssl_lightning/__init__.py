"""Structured sparsity learning (group lasso, Wen et al., NIPS 2016) for PyTorch Lightning.

All public names, imported when they are first used: ``import ssl_lightning`` itself loads nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_lightning import zoo
    from ssl_lightning.backbones import BACKBONES, create_backbone, list_backbones
    from ssl_lightning.callbacks import (
        CompactDuringFit,
        DepthCollapse,
        FilterPictures,
        PruneLike,
        SaveCompact,
        SparsityMonitor,
        ThresholdPruning,
    )
    from ssl_lightning.checkpoints import load_backbone
    from ssl_lightning.compaction import (
        Plan,
        apply_plan,
        choose_layers,
        compact,
        for_inference,
        load_compact,
        make_plan,
        save_compact,
    )
    from ssl_lightning.data import (
        CIFAR10DataModule,
        FashionMNISTDataModule,
        ImageFolderDataModule,
        ImageNetDataModule,
        ImagenetteDataModule,
        MNISTDataModule,
    )
    from ssl_lightning.export import ExportResult, export_model
    from ssl_lightning.graph import Inputs
    from ssl_lightning.groups import (
        GroupKind,
        GroupSet,
        Member,
        Selector,
        group_norms,
        kept_groups,
        register_kind,
        resolve_groups,
    )
    from ssl_lightning.kernels import ColumnSparseConv2d, column_sparse_conv2d
    from ssl_lightning.locks import GroupLocks
    from ssl_lightning.measure import BenchmarkResult, benchmark, count_macs
    from ssl_lightning.module import SSLLightningModule
    from ssl_lightning.penalties import (
        MCP,
        SCAD,
        GroupLasso,
        Penalty,
        PenaltyFunction,
        Regularizer,
        group_lasso,
        group_lasso_subgradient,
        prox_group_lasso,
        register_penalty_function,
    )
    from ssl_lightning.prune import PruneReport, prune_, prune_like_
    from ssl_lightning.report import RunReport, bar_chart, comparison_table, filter_picture
    from ssl_lightning.schedules import (
        Constant,
        Cosine,
        Ramp,
        Schedule,
        StageLR,
        Window,
        register_schedule,
    )

_ROOMS: dict[str, tuple[str, ...]] = {
    "backbones": ("BACKBONES", "create_backbone", "list_backbones"),
    "measure": ("BenchmarkResult", "benchmark", "count_macs"),
    "callbacks": (
        "CompactDuringFit",
        "DepthCollapse",
        "FilterPictures",
        "PruneLike",
        "SaveCompact",
        "SparsityMonitor",
        "ThresholdPruning",
    ),
    "checkpoints": ("load_backbone",),
    "compaction": (
        "Plan",
        "apply_plan",
        "choose_layers",
        "compact",
        "for_inference",
        "load_compact",
        "make_plan",
        "save_compact",
    ),
    "data": (
        "CIFAR10DataModule",
        "FashionMNISTDataModule",
        "ImageFolderDataModule",
        "ImageNetDataModule",
        "ImagenetteDataModule",
        "MNISTDataModule",
    ),
    "export": ("ExportResult", "export_model"),
    "graph": ("Inputs",),
    "groups": (
        "GroupKind",
        "GroupSet",
        "Member",
        "Selector",
        "group_norms",
        "kept_groups",
        "register_kind",
        "resolve_groups",
    ),
    "kernels": ("ColumnSparseConv2d", "column_sparse_conv2d"),
    "locks": ("GroupLocks",),
    "module": ("SSLLightningModule",),
    "penalties": (
        "MCP",
        "SCAD",
        "GroupLasso",
        "Penalty",
        "PenaltyFunction",
        "Regularizer",
        "group_lasso",
        "group_lasso_subgradient",
        "prox_group_lasso",
        "register_penalty_function",
    ),
    "prune": ("PruneReport", "prune_", "prune_like_"),
    "report": ("RunReport", "bar_chart", "comparison_table", "filter_picture"),
    "schedules": (
        "Constant",
        "Cosine",
        "Ramp",
        "Schedule",
        "StageLR",
        "Window",
        "register_schedule",
    ),
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names}
_MODULES = ("zoo",)
"""Rooms that are public names themselves."""

__version__ = "0.1.0"
__all__ = sorted([*_HOME, *_MODULES])


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
