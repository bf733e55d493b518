"""Which architectures the exactness of compaction is tested on, and the two ways they are zeroed.

``python tests/zoo_matrix.py [coupled|uncoupled] [NAME ...]`` prints one line per architecture.
"""

from __future__ import annotations

import copy
import resource
import sys
import time
from dataclasses import dataclass

import torch
from torch import nn

from nets_with_zeros import assert_same, outputs_of, randomise_
from ssl_lightning.backbones import create_backbone
from ssl_lightning.compaction import compact, make_plan
from ssl_lightning.graph import trace
from ssl_lightning.measure import count_macs, num_parameters
from ssl_lightning.prune import prune_

TORCHVISION = {
    "alexnet": 96, "convnext_tiny": 64, "densenet121": 64, "efficientnet_b0": 64,
    "efficientnet_v2_s": 64, "googlenet": 96, "inception_v3": 128, "maxvit_t": 224,
    "mnasnet0_5": 64, "mobilenet_v2": 64, "mobilenet_v3_small": 64, "regnet_x_400mf": 64,
    "regnet_y_400mf": 64, "resnet18": 64, "resnet50": 64, "resnext50_32x4d": 64,
    "shufflenet_v2_x0_5": 64, "squeezenet1_1": 64, "swin_t": 64, "swin_v2_t": 64, "vgg11": 64,
    "vgg11_bn": 64, "vit_b_32": 64, "wide_resnet50_2": 64,
}  # fmt: skip
"""Torchvision's classifiers, one size of each family -> input size."""

TIMM = {
    "beit_base_patch16_224": 64, "botnet26t_256": 128, "lambda_resnet26t": 128,
    "halonet26t": 128, "eca_resnext26ts": 64, "gernet_s": 64, "repvgg_a0": 64,
    "mobileone_s0": 64, "cait_xxs24_224": 64, "coat_lite_tiny": 64, "coat_tiny": 64,
    "convit_tiny": 64, "convmixer_768_32": 64, "convnext_atto": 64, "convnextv2_atto": 64,
    "crossvit_tiny_240": 240, "cspresnet50": 64, "cs3darknet_focus_s": 64, "davit_tiny": 64,
    "deit_tiny_distilled_patch16_224": 64, "deit3_small_patch16_224": 64, "densenet121": 64,
    "dla34": 64, "dpn48b": 64, "edgenext_xx_small": 64, "efficientformer_l1": 224,
    "efficientformerv2_s0": 224, "efficientnet_b0": 64, "tf_efficientnetv2_b0": 64,
    "efficientnet_b0_gn": 64, "mixnet_s": 64, "mnasnet_small": 64, "spnasnet_100": 64,
    "tinynet_e": 64, "efficientvit_b0": 64, "efficientvit_m0": 64, "eva02_tiny_patch14_224": 56,
    "fastvit_t8": 64, "fasternet_t0": 64, "focalnet_tiny_srf": 64, "gcvit_xxtiny": 224,
    "ghostnet_050": 64, "ghostnetv3_050": 64, "hardcorenas_a": 64, "hgnetv2_b0": 64,
    "hiera_tiny_224": 224, "hrnet_w18_small": 64, "inception_next_atto": 64,
    "inception_resnet_v2": 128, "inception_v4": 128, "lcnet_050": 64, "levit_128s": 224,
    "mambaout_femto": 64, "coatnet_nano_rw_224": 64, "maxvit_tiny_rw_224": 224,
    "poolformer_s12": 64, "caformer_s18": 64, "mixer_s32_224": 224, "gmlp_ti16_224": 224,
    "resmlp_12_224": 224, "mobilenetv3_small_050": 64, "mobilenetv4_conv_small_050": 64,
    "mobilevit_xxs": 64, "mobilevitv2_050": 64, "mvitv2_tiny": 64, "nest_tiny": 128,
    "nf_resnet26": 64, "nfnet_f0": 64, "nf_regnet_b0": 64, "pit_ti_224": 224,
    "pvt_v2_b0": 64, "rdnet_tiny": 64, "regnetx_002": 64, "regnety_002": 64, "regnetz_b16": 64,
    "repghostnet_050": 64, "repvit_m0_9": 64, "res2net50_14w_8s": 64, "resnest14d": 64,
    "resnet18": 64, "resnet26t": 64, "resnetblur18": 64, "seresnet18": 64,
    "resnetv2_18": 64, "resnetv2_50x1_bit": 64, "rexnet_100": 64, "selecsls42": 64,
    "legacy_seresnet18": 64, "sequencer2d_s": 224, "shvit_s1": 64, "skresnet18": 64,
    "starnet_s1": 64, "swiftformer_xs": 64, "swin_tiny_patch4_window7_224": 224,
    "swinv2_tiny_window8_256": 256, "tiny_vit_5m_224": 64, "tnt_s_patch16_224": 64,
    "tresnet_m": 64, "twins_svt_small": 64, "twins_pcpvt_small": 64, "vgg11": 64,
    "visformer_tiny": 224, "vit_tiny_patch16_224": 64, "vit_relpos_small_patch16_224": 64,
    "vit_small_r26_s32_224": 64, "vitamin_small_224": 64, "volo_d1_224": 64,
    "vovnet39a": 64, "ese_vovnet19b_dw": 64, "legacy_xception": 64, "xception41": 64,
    "xcit_nano_12_p16_224": 64,
}  # fmt: skip
"""Timm's classifiers -> input size."""

NOT_TRACED = {
    "timm:halonet26t": "torch.export: its position logits need sizes that are known when traced",
}
"""Architectures that torch.export does not capture, and why."""

AMPLIFY_ROUNDING = {"timm:visformer_tiny"}
"""With random weights this network's own float32 outputs are a percent off its float64 ones."""

PRODUCTS = {"matmul", "softmax", "scaled_dot_product_attention", "einsum", "bmm", "lstm"}
"""Operations that convolutional networks do not have."""

SIZED = ("img_size", "image_size")
ARCHITECTURES = {
    **{f"torchvision:{name}": size for name, size in TORCHVISION.items()},
    **{f"timm:{name}": size for name, size in TIMM.items()},
}


@dataclass(frozen=True)
class Outcome:
    """Sizes before and after, and the time that planning and compacting took."""

    macs: tuple[int, int]
    parameters: tuple[int, int]
    convolutional: bool
    seconds: float

    @property
    def macs_left(self) -> float:
        return self.macs[1] / self.macs[0]

    @property
    def parameters_left(self) -> float:
        return self.parameters[1] / self.parameters[0]


def network(name: str) -> tuple[nn.Module, torch.Tensor]:
    """Return a network with random statistics, scales, shifts and biases, and its input."""
    size = ARCHITECTURES[name]
    torch.manual_seed(0)
    net = None
    for argument in SIZED:
        try:
            net = create_backbone(name, **{argument: size})
            break
        except (ValueError, TypeError):
            continue
    net = create_backbone(name) if net is None else net
    return randomise_(net).eval(), torch.zeros(1, 3, size, size)


@torch.no_grad()
def zero_filters_(net: nn.Module, fraction: float = 0.4) -> None:
    """Zero filters of every convolution at random, weights and bias only."""
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            count = len(module.weight)
            zero = torch.randperm(count, generator=generator)[: round(fraction * count)]
            module.weight[zero] = 0
            if module.bias is not None:
                module.bias[zero] = 0


def is_convolutional(net: nn.Module, x: torch.Tensor) -> bool:
    """Whether convolutions, no products between tokens, mix what is at different positions."""
    kinds = [op.kind for op in trace(net, x).ops]
    mixing = sum(kind.startswith("conv") for kind in kinds)
    return not PRODUCTS & set(kinds) and mixing > 4


def own_rounding(net: nn.Module, images: torch.Tensor) -> float:
    """Return how far a network's float32 outputs are from its float64 ones, of their scale."""
    single = outputs_of(net, images)
    double = outputs_of(copy.deepcopy(net).double(), images.double())
    pairs = zip(single, double, strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def check(name: str, way: str) -> Outcome:
    """Zero, plan, compact and compare in float32 and float64; return what was removed."""
    net, x = network(name)
    if way == "coupled":
        prune_(net, x, fraction=0.4)
    else:
        zero_filters_(net)
    start = time.perf_counter()
    plan = make_plan(net, x)
    small = compact(net, plan)
    seconds = time.perf_counter() - start
    outcome = Outcome(
        (count_macs(net, x), count_macs(small, x)),
        (num_parameters(net), num_parameters(small)),
        is_convolutional(net, x),
        seconds,
    )
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, *x.shape[1:], generator=generator)
    tolerance = 3 * own_rounding(net, images) if name in AMPLIFY_ROUNDING else 1e-5
    assert_same(net, small, images, tolerance=tolerance)
    small = compact(net.double(), plan)
    assert_same(net, small, images.double(), tolerance=1e-10)
    return outcome


def main() -> None:
    """Print one line per architecture."""
    way, *names = sys.argv[1:] or ["coupled"]
    start = time.perf_counter()
    for name in names or ARCHITECTURES:
        try:
            found = check(name, way)
        except Exception as error:
            print(f"{name:45} {type(error).__name__}: {str(error)[:300]!r}", flush=True)
            continue
        print(
            f"{name:45} MACs {found.macs_left:.3f} parameters {found.parameters_left:.3f} "
            f"{found.seconds:6.1f} s{' convolutional' if found.convolutional else ''}",
            flush=True,
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{time.perf_counter() - start:.0f} s in all, peak memory {peak:.1f} GB")


if __name__ == "__main__":
    main()
