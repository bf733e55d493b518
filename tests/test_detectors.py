"""Detectors compute the same after compaction: torchvision's, and one in the manner of YOLO."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torchvision.models.detection import RetinaNet, fasterrcnn_mobilenet_v3_large_320_fpn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from ssl_lightning import compact, count_macs, export_model, make_plan, prune_
from ssl_lightning.measure.engines import prepare
from yolo import BINS, C2f, C2fSplit, Yolo

X = torch.zeros(1, 3, 64, 64)


def awake(net):
    """Give batch norms statistics as training leaves them, so that no channel is like another."""
    generator = torch.Generator().manual_seed(3)

    def numbers(like, low, high):
        return low + (high - low) * torch.rand(like.shape, generator=generator)

    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.copy_(numbers(module.running_mean, -0.2, 0.2))
                module.running_var.copy_(numbers(module.running_var, 0.5, 1.5))
                module.weight.copy_(numbers(module.weight, 0.5, 1.5))
                module.bias.copy_(numbers(module.bias, -0.2, 0.2))
    return net.eval()


def flat(outputs):
    from ssl_lightning.compaction.equality import tensors_of

    return tensors_of(outputs)


@pytest.fixture(scope="module", params=[C2f, C2fSplit], ids=["chunk", "split"])
def yolo(request):
    torch.manual_seed(0)
    net = awake(Yolo(block=request.param))
    prune_(net, X, budget={"macs": 0.5})
    plan = make_plan(net, X)
    return net, plan, compact(net, plan), request.param


def test_yolo_computes_the_same_at_all_sizes(yolo):
    net, _, small, _ = yolo
    assert count_macs(small, X) < 0.55 * count_macs(Yolo(), X)
    dense, small = copy.deepcopy(net).double(), copy.deepcopy(small).double()
    for size in ((64, 64), (96, 64), (128, 128), (64, 64)):  # anchors are made anew for each
        x = torch.randn(
            2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
        )
        with torch.no_grad():
            for a, b in zip(flat(dense(x)), flat(small(x)), strict=True):
                assert float((a - b).abs().max()) < 1e-9 * float(a.abs().max())


def test_yolo_trains_on_after_compaction(yolo):
    net, _, small, _ = yolo
    small = copy.deepcopy(small).train()
    x = torch.randn(2, 3, 64, 64)
    raw = small(x)
    assert [tuple(level.shape) for level in raw] == [
        tuple(level.shape) for level in copy.deepcopy(net).train()(x)
    ]
    sum(level.square().mean() for level in raw).backward()
    trained = {name for name, p in small.named_parameters() if p.grad is not None}
    assert trained == {name for name, p in small.named_parameters() if p.requires_grad}


def test_distributions_have_all_bins_and_splits_by_numbers_are_named(yolo):
    net, plan, small, block = yolo
    bins = torch.randn(1, 4 * BINS, 7)
    torch.testing.assert_close(small.model[12].dfl(bins), net.model[12].dfl(bins))
    for branch in small.model[12].cv2:
        assert branch[2].out_channels == 4 * BINS
    noted = [note for note in plan.notes if "split" in note]
    assert bool(noted) is (block is C2fSplit)
    widths = [
        m.cv1.conv.out_channels < n.cv1.conv.out_channels
        for m, n in zip(small.model, net.model, strict=True)
        if isinstance(n, C2f)
    ]
    assert any(widths), "blocks become narrower"
    assert any("the network itself refuses" in check for check in plan.checks)


def test_yolo_is_exported(yolo, tmp_path):
    small = copy.deepcopy(yolo[2])
    with torch.no_grad():
        expected = small(X)[0]
    small.model[12].shape = None  # what is cached for a size is made while it is captured
    call = prepare("onnxruntime", small, X)
    assert small.model[12].shape is None, "the network itself was not captured"
    with torch.no_grad():
        assert torch.equal(small(X)[0], expected)
    torch.testing.assert_close(call()[0], expected, rtol=1e-4, atol=1e-4)
    result = export_model(small, X, tmp_path / "yolo.onnx", size="fixed")
    assert result.difference < result.tolerance


class Dense(nn.Module):
    """What a detector computes before it selects boxes."""

    def __init__(self, detector):
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, images):
        return self.head(list(self.backbone(images).values()))


class FirstStage(nn.Module):
    """Backbone, pyramid and the head that proposes regions."""

    def __init__(self, detector):
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.rpn.head

    def forward(self, images):
        maps = list(self.backbone(images).values())
        return maps, self.head(maps)


def detections(detector, x):
    detector = copy.deepcopy(detector).double().eval()
    with torch.no_grad():
        return flat(detector([x.double()]))


def test_retinanet_finds_the_same_boxes():
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
    )
    anchors = AnchorGenerator(tuple((8 * 2**i,) for i in range(5)), ((1.0,),) * 5)
    net = RetinaNet(
        backbone, 3, anchor_generator=anchors, min_size=64, max_size=64, score_thresh=0.0
    )
    awake(net)
    dense = Dense(net)
    prune_(dense, X, budget={"macs": 0.5}, importance="l1")
    image = torch.rand(3, 64, 64)
    before, size = detections(net, image), sum(p.numel() for p in net.parameters())
    small = compact(dense, make_plan(dense, X))
    net.backbone, net.head = small.backbone, small.head
    assert sum(p.numel() for p in net.parameters()) < 0.8 * size
    after = detections(net, image)
    assert len(before[0]) > 10, "boxes are found"
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_faster_rcnn_finds_the_same_boxes():
    torch.manual_seed(0)
    net = fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=3, min_size=64, max_size=64
    )
    net.roi_heads.score_thresh = 0.0
    awake(net)
    first = FirstStage(net)
    second = nn.Sequential(net.roi_heads.box_head, net.roi_heads.box_predictor)
    regions = torch.zeros(1, 256, 7, 7)
    prune_(first, X, budget={"macs": 0.5}, importance="l1")
    prune_(second, regions, budget={"macs": 0.5}, importance="l1")
    image = torch.rand(3, 64, 64)
    before, size = detections(net, image), sum(p.numel() for p in net.parameters())
    small = compact(first, make_plan(first, X))
    net.backbone, net.rpn.head = small.backbone, small.head
    head = compact(second, make_plan(second, regions))
    net.roi_heads.box_head, net.roi_heads.box_predictor = head[0], head[1]
    assert sum(p.numel() for p in net.parameters()) < 0.8 * size
    after = detections(net, image)
    assert len(before[0]) > 0, "boxes are found"
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
