"""Structured sparsity learning (group lasso, Wen et al., NIPS 2016) for PyTorch Lightning.

All public names, imported when they are first used: ``import ssl_lightning`` itself loads nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ssl_lightning import lazy

if TYPE_CHECKING:
    from ssl_lightning import publishing, zoo
    from ssl_lightning.backbones import (
        BACKBONES,
        create_backbone,
        list_backbones,
        register_backbone,
    )
    from ssl_lightning.callbacks import (
        Budget,
        CompactDuringFit,
        DepthCollapse,
        Distill,
        FilterPictures,
        LowRank,
        NormPictures,
        PruneLike,
        SaveCompact,
        Sparsify,
        SparsityMonitor,
        ThresholdPruning,
    )
    from ssl_lightning.checkpoints import load_backbone
    from ssl_lightning.compaction import (
        Plan,
        apply_plan,
        choose_layers,
        compact,
        expand,
        for_inference,
        load_compact,
        make_plan,
        save_compact,
    )
    from ssl_lightning.costs import LatencyMeter, preferred_multiple
    from ssl_lightning.data import (
        ArrayDataModule,
        CIFAR10DataModule,
        FashionMNISTDataModule,
        ImageDataModule,
        ImageFolderDataModule,
        ImageNetDataModule,
        ImagenetteDataModule,
        LabelledImages,
        MNISTDataModule,
        SyntheticDataModule,
    )
    from ssl_lightning.export import (
        ExportResult,
        Int8Result,
        compare_precisions,
        export_int8,
        export_model,
    )
    from ssl_lightning.graph import Inputs, Rule, register_rule, register_shrinker
    from ssl_lightning.groups import (
        GroupKind,
        GroupSet,
        Selector,
        group_norms,
        kept_groups,
        register_kind,
        resolve_groups,
    )
    from ssl_lightning.kernels import ColumnSparseConv2d, column_sparse_conv2d
    from ssl_lightning.locks import GroupLocks
    from ssl_lightning.low_rank import LowRankReport, factorise
    from ssl_lightning.measure import (
        BenchmarkResult,
        Engine,
        benchmark,
        count_macs,
        register_engine,
    )
    from ssl_lightning.module import SSLLightningModule, StructuredSparsity
    from ssl_lightning.penalties import (
        MCP,
        SCAD,
        CappedLasso,
        GroupLasso,
        Penalty,
        PenaltyFunction,
        Regularizer,
        group_lasso,
        group_lasso_subgradient,
        prox_group_lasso,
        register_penalty_function,
    )
    from ssl_lightning.prune import PruneReport, Sensitivity, prune_, prune_like_, sensitivity
    from ssl_lightning.schedules import (
        Constant,
        Cosine,
        Ramp,
        Schedule,
        StageLR,
        Window,
        register_schedule,
    )

__version__ = "0.2.0"
__all__ = [
    "BACKBONES",
    "MCP",
    "SCAD",
    "ArrayDataModule",
    "BenchmarkResult",
    "Budget",
    "CIFAR10DataModule",
    "CappedLasso",
    "ColumnSparseConv2d",
    "CompactDuringFit",
    "Constant",
    "Cosine",
    "DepthCollapse",
    "Distill",
    "Engine",
    "ExportResult",
    "FashionMNISTDataModule",
    "FilterPictures",
    "GroupKind",
    "GroupLasso",
    "GroupLocks",
    "GroupSet",
    "ImageDataModule",
    "ImageFolderDataModule",
    "ImageNetDataModule",
    "ImagenetteDataModule",
    "Inputs",
    "Int8Result",
    "LabelledImages",
    "LatencyMeter",
    "LowRank",
    "LowRankReport",
    "MNISTDataModule",
    "NormPictures",
    "Penalty",
    "PenaltyFunction",
    "Plan",
    "PruneLike",
    "PruneReport",
    "Ramp",
    "Regularizer",
    "Rule",
    "SSLLightningModule",
    "SaveCompact",
    "Schedule",
    "Selector",
    "Sensitivity",
    "Sparsify",
    "SparsityMonitor",
    "StageLR",
    "StructuredSparsity",
    "SyntheticDataModule",
    "ThresholdPruning",
    "Window",
    "apply_plan",
    "benchmark",
    "choose_layers",
    "column_sparse_conv2d",
    "compact",
    "compare_precisions",
    "count_macs",
    "create_backbone",
    "expand",
    "export_int8",
    "export_model",
    "factorise",
    "for_inference",
    "group_lasso",
    "group_lasso_subgradient",
    "group_norms",
    "kept_groups",
    "list_backbones",
    "load_backbone",
    "load_compact",
    "make_plan",
    "preferred_multiple",
    "prox_group_lasso",
    "prune_",
    "prune_like_",
    "publishing",
    "register_backbone",
    "register_engine",
    "register_kind",
    "register_penalty_function",
    "register_rule",
    "register_schedule",
    "register_shrinker",
    "resolve_groups",
    "save_compact",
    "sensitivity",
    "zoo",
]
__getattr__, __dir__ = lazy.attach(__name__)
