"""The names of ``import ssl_lightning``: which there are, and that each shows how it is used."""

from __future__ import annotations

import doctest
import inspect
import re

import pytest

import ssl_lightning

PUBLIC = """
ArrayDataModule BACKBONES BenchmarkResult Budget CIFAR10DataModule CappedLasso ColumnSparseConv2d
CompactDuringFit Constant Cosine DepthCollapse Distill ExportResult FashionMNISTDataModule
FilterPictures GroupKind GroupLasso GroupLocks GroupSet ImageDataModule ImageFolderDataModule
ImageNetDataModule ImagenetteDataModule Inputs LabelledImages MCP MNISTDataModule Penalty
PenaltyFunction Plan PruneLike PruneReport Ramp Regularizer SSLLightningModule SCAD SaveCompact
Schedule Selector Sparsify SparsityMonitor StageLR StructuredSparsity SyntheticDataModule
ThresholdPruning Window apply_plan benchmark choose_layers column_sparse_conv2d compact count_macs
create_backbone expand export_model for_inference group_lasso group_lasso_subgradient group_norms
kept_groups list_backbones load_backbone load_compact make_plan prox_group_lasso prune_
prune_like_ register_kind register_penalty_function register_schedule resolve_groups save_compact
zoo Engine Rule Sensitivity publishing register_backbone register_engine register_rule
register_shrinker LatencyMeter LowRank LowRankReport factorise preferred_multiple sensitivity
Int8Result compare_precisions export_int8 NormPictures
""".split()

NO_EXAMPLE = {
    "BACKBONES",  # a dictionary
    "publishing",
    "zoo",  # packages
}


def test_the_public_names_are_these():
    assert sorted(ssl_lightning.__all__) == sorted(PUBLIC)


ELSEWHERE = "other arguments"  # a subclass says whose they are


@pytest.mark.parametrize("name", sorted(set(PUBLIC) - NO_EXAMPLE))
def test_every_parameter_is_described(name):
    found = getattr(ssl_lightning, name)
    text = inspect.getdoc(found)
    if ELSEWHERE in text or (inspect.isclass(found) and "__init__" not in vars(found)):
        return
    names = set(inspect.signature(found).parameters) - {"args", "kwargs"}
    described = set(re.findall(r"^ {4}(\w+(?:, \w+)*)(?: \(.*\))?:", text, re.MULTILINE))
    described = {part for several in described for part in several.split(", ")}
    assert names <= described, f"{name} does not describe {sorted(names - described)}"


@pytest.mark.parametrize("name", sorted(set(PUBLIC) - NO_EXAMPLE))
def test_every_public_name_has_a_docstring_with_an_example(name):
    """The doctests of src run all examples; here it is enough that there is one."""
    found = getattr(ssl_lightning, name)
    assert found.__module__.startswith("ssl_lightning.")
    text = vars(found).get("__doc__") if inspect.isclass(found) else found.__doc__
    examples = doctest.DocTestParser().get_examples(text or "")
    assert [e for e in examples if not e.options.get(doctest.SKIP)], f"{name}: no example"
    assert text.splitlines()[0].rstrip().endswith(".")
