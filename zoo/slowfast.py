"""
SlowFast: one network looks at few frames closely, a thin one beside it at many frames.

What is in a picture changes slowly, how it moves changes fast. So two ResNets read the same clip:
the slow way gets one frame in alpha and has all the channels; the fast way gets all frames, with an
eighth of the channels and a tenth of the cost. The slow one takes along what the fast one has seen:

    slow <- [slow, relu(norm(conv(fast)))]   lateral: k x 1 x 1, stride alpha in time, 2x channels

    224 x 224    slow, alpha = 4: 8 frames    fast: 32 frames             lateral, to the slow way
    stem, pool   (B, 64, 8, 56, 56)           (B, 8, 32, 56, 56)          16 channels
    stage 1      (B, 256, 8, 56, 56)          (B, 32, 32, 56, 56)         64
    stage 2      (B, 512, 8, 28, 28)          (B, 64, 32, 28, 28)         128
    stage 3      (B, 1024, 8, 14, 14)         (B, 128, 32, 14, 14)        256
    stage 4      (B, 2048, 8, 7, 7)           (B, 256, 32, 7, 7)
    means over 32 x 7 x 7, side by side: 2304 -> dropout, Linear -> logits (B, num_classes)

A block is relu(shortcut(x) + f(x)), f = k x 1 x 1 along time, 1 x 3 x 3 across space, 1 x 1 x 1,
with BatchNorm. None strides in time. How much of it a block sees is k:

    slow    1, but 3 in stages 3 and 4: before, what moves has left the place by the next frame
    fast    3 everywhere, 5 in the stem
    i3d     3 in every or every second block, 5 in the stem: an image network, inflated, W2d / k
    c2d     1 everywhere: frames meet in poolings only, in pairs after stage 1, as in i3d, and last

What a survey says, and what is so. "SlowFast Transformer": convolutions throughout. Its row "R101
16x4, 66 G, 53 M, 79.0 %" is of no network: 66 G is R50 8x8, of 34.6 M; R101 8x8 has 126 G, 62.9 M.
The 28 M of its I3D are this i3d; the paper's own is an Inception, see inception3d.py.

What trips whoever writes it anew. The slow frames are linspace(0, T-1, T/alpha), cut to whole
numbers: 0 4 8 13 17 22 26 31; every alpha-th, 0 4 8 12 .., is 0.09 off in the logits. The head's
window is that of training, 7 x 7: an image of 256 has 8 x 8 places, and the mean over its 2 x 2
windows is not that over all places. Laterals are appended, not added. The stride is the 3x3's.

Source: Feichtenhofer et al. 2019, arXiv:1812.03982. Numbers and weights: pytorchvideo's model zoo
(SLOWFAST_8x8_R50.pyth, ..). PySlowFast takes a softmax at each window before it takes the mean.
Try it, from the root: python -m zoo.slowfast --model slowfast_toy
    python -m zoo.slowfast --data k400 --root DIR --model slow_r50 --init SLOW_8x8_R50.pyth --eval
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

import train
from backbone import MODELS, rename

# Kernels along time: of the stem, and of the blocks of stages 1 to 4, which take turns.
IN_TIME = {
    "slow": (1, (1,), (1,), (3,), (3,)),
    "fast": (5, (3,), (3,), (3,), (3,)),
    "i3d": (5, (3,), (3, 1), (3, 1), (1, 3)),
    "c2d": (1, (1,), (1,), (1,), (1,)),
}


# pytorchvideo's names -> ours, within a part.
WITHIN = [
    (r"\.(res_blocks|branch2)\.", "."),
    (r"\.branch1_conv\.", ".shortcut.0."),
    (r"\.branch1_norm\.", ".shortcut.1."),
    (r"^(slow|fast)\.0\.conv\.", r"\1.0.0."),
    (r"^(slow|fast)\.0\.norm\.", r"\1.0.1."),
    (r"^blocks\.\d\.proj\.", "head."),
]


# --------------------------------------------------- the parts: block, way, head

class Block(nn.Module):
    """relu(shortcut(x) + f(x)): (B, i, T, H, W) -> (B, 4c, T, H/stride, W/stride)."""

    def __init__(self, i, c, k, stride):
        super().__init__()
        self.conv_a = nn.Conv3d(i, c, (k, 1, 1), padding=(k//2, 0, 0), bias=False)
        self.norm_a = nn.BatchNorm3d(c)
        self.conv_b = nn.Conv3d(c, c, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False)
        self.norm_b = nn.BatchNorm3d(c)
        self.conv_c = nn.Conv3d(c, 4*c, 1, bias=False)
        self.norm_c = nn.BatchNorm3d(4*c)
        self.shortcut = nn.Identity()
        if stride != 1 or i != 4*c:
            self.shortcut = nn.Sequential(
                nn.Conv3d(i, 4*c, 1, (1, stride, stride), bias=False), nn.BatchNorm3d(4*c))

    def forward(self, x):
        y = F.relu(self.norm_a(self.conv_a(x)))  # along time
        y = F.relu(self.norm_b(self.conv_b(y)))  # across space
        return F.relu(self.shortcut(x) + self.norm_c(self.conv_c(y)))


def way(kind, width, depths, extra=(0, 0, 0, 0)):
    """
    Stem and four stages, a ModuleList: (B, 3, T, H, W) -> (B, 32 width, T, H/32, W/32). extra:
    channels that come in from the side before each stage.
    """
    k, *kernels = IN_TIME[kind]
    parts = nn.ModuleList([nn.Sequential(
        nn.Conv3d(3, width, (k, 7, 7), (1, 2, 2), padding=(k//2, 3, 3), bias=False),
        nn.BatchNorm3d(width), nn.ReLU(), nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)))])
    i = width
    for s, depth in enumerate(depths):
        i += extra[s]
        c = width * 2**s
        blocks = []
        for n in range(depth):
            k = kernels[s][n % len(kernels[s])]
            blocks.append(Block(i, c, k, stride=2 if s > 0 and n == 0 else 1))
            i = 4*c
        if s == 0 and kind in ("i3d", "c2d"):
            blocks.append(nn.MaxPool3d((2, 1, 1)))  # of two frames one
        parts.append(nn.Sequential(*blocks))
    return parts


def windows(x, side):
    """(B, C, T, H, W) -> (B, C, 1, n, m): means over all frames of side x side places, stride 1."""
    T, H, W = x.shape[2:]
    return F.avg_pool3d(x, (T, min(side, H), min(side, W)), stride=1)


def init_weights(model):
    """Convolutions N(0, 2/fan_out); a block's last norm has g = 0, so that f starts at 0."""
    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, Block):
            nn.init.zeros_(module.norm_c.weight)


# --------------------------------------------------- the networks

class OneWay(nn.Module):
    """
    Slow, I3D and C2D: (B, 3, T, H, W) -> (B, num_classes), for any T, H, W.

    kind           slow, i3d or c2d
    width, depths  channels of the stem; blocks of each stage: the default is a ResNet-50
    window         side of the head's windows, places: the training crop / 32
    """

    def __init__(self, num_classes=400, num_frames=8, image_size=224, kind="slow", width=64,
                 depths=(3, 4, 6, 3), window=7, dropout=0.5):
        super().__init__()
        if kind not in ("slow", "i3d", "c2d"):
            raise ValueError(f"kind={kind!r}: use slow, i3d or c2d")
        self.num_frames = num_frames
        self.image_size = image_size
        self.kind = kind
        self.window = window
        self.slow = way(kind, width, depths)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(32*width, num_classes) if num_classes else nn.Identity()
        init_weights(self)

    def our_names(self, state):
        """blocks.4.res_blocks.0.branch2.conv_a is slow.3.0.conv_a: the pooling of pairs counts."""
        blocks = (0, 1, 2, 3, 4) if self.kind == "slow" else (0, 1, 3, 4, 5)
        renames = [(rf"^blocks\.{n}\.(?!proj)", f"slow.{s}.") for s, n in enumerate(blocks)]
        return rename(state, renames + WITHIN)

    def forward(self, clip):
        """clip: (B, 3, T, H, W), normalised -> (B, num_classes)."""
        x = clip
        for part in self.slow:
            x = part(x)
        x = self.dropout(windows(x, self.window))
        return self.head(x.mean((2, 3, 4)))  # the mean of the windows' scores: the head is linear


class SlowFast(nn.Module):
    """
    (B, 3, T, H, W) -> (B, num_classes), for any H, W; alpha divides T, the fast way's.

    alpha, beta  how many times more frames, how many times fewer channels the fast way has
    lateral      frames that a lateral convolution sees
    """

    def __init__(self, num_classes=400, num_frames=32, image_size=224, alpha=4, beta=8, lateral=7,
                 width=64, depths=(3, 4, 6, 3), window=7, dropout=0.5):
        super().__init__()
        if num_frames % alpha:
            raise ValueError(f"num_frames={num_frames}: must be a multiple of alpha={alpha}")
        self.num_frames = num_frames
        self.image_size = image_size
        self.alpha = alpha
        self.window = window
        thin = width // beta
        fast = (thin, 4*thin, 8*thin, 16*thin)  # channels there, after the stem and stages 1 to 3
        self.slow = way("slow", width, depths, extra=[2*c for c in fast])
        self.fast = way("fast", thin, depths)
        self.lateral = nn.ModuleList(nn.Sequential(
            nn.Conv3d(c, 2*c, (lateral, 1, 1), (alpha, 1, 1), (lateral//2, 0, 0), bias=False),
            nn.BatchNorm3d(2*c), nn.ReLU()) for c in fast)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(32*(width + thin), num_classes) if num_classes else nn.Identity()
        init_weights(self)

    def our_names(self, state):
        """blocks.1.multipathway_blocks.0 is slow.1, .1 fast.1; multipathway_fusion is lateral."""
        return rename(state, [
            (r"^blocks\.(\d)\.multipathway_blocks\.0\.", r"slow.\1."),
            (r"^blocks\.(\d)\.multipathway_blocks\.1\.", r"fast.\1."),
            (r"^blocks\.(\d)\.multipathway_fusion\.conv_fast_to_slow\.", r"lateral.\1.0."),
            (r"^blocks\.(\d)\.multipathway_fusion\.norm\.", r"lateral.\1.1."),
        ] + WITHIN)

    def forward(self, clip):
        """clip: (B, 3, T, H, W), normalised -> (B, num_classes)."""
        T = clip.shape[2]
        frames = torch.linspace(0, T - 1, T // self.alpha, device="cpu").long()
        slow = clip[:, :, frames]
        fast = clip
        for i in range(5):
            slow = self.slow[i](slow)
            fast = self.fast[i](fast)
            if i < 4:
                slow = torch.cat([slow, self.lateral[i](fast)], dim=1)
        x = torch.cat([windows(slow, self.window), windows(fast, self.window)], dim=1)
        return self.head(self.dropout(x).mean((2, 3, 4)))


# --------------------------------------------------- presets, recipes

MODELS |= {  # parameters, multiply-adds at 224 and at 256, K400 top-1: pytorchvideo's | ours
    "c2d_r50": dict(trunk=OneWay, kind="c2d"),  # 24.3 M, 19.5 G, 25.5 G, 71.5 | not run
    "i3d_r50": dict(trunk=OneWay, kind="i3d"),  # 28.0 M, 28.4 G, 37.1 G, 73.3 | not run
    "slow_r50": dict(trunk=OneWay),  # 32.5 M, 41.7 G, 54.5 G, 74.6 | not run
    "slowfast_r50": dict(trunk=SlowFast),  # 34.6 M, 50.3 G, 65.7 G, 76.9 | not run
    "slowfast_4x16": dict(trunk=SlowFast, alpha=8,
                          lateral=5),  # 34.5 M, 27.6 G, 36.1 G, 75.3 | not run
    "slowfast_toy": dict(trunk=SlowFast, num_frames=8, image_size=64, beta=2, lateral=5, width=8,
                         depths=(1, 1, 1, 1), window=2, dropout=0.0, num_classes=8),  # ours
}

# PySlowFast's, for 30 frames a second (it asks a video for its rate, the core does not). Tested at
# 256, but trained at 224: to train add --image_size 224. Its norms do not decay, and get new
# running numbers from 200 batches before a test; here neither.
PUBLISHED = dict(
    image_size=256, views="10x3", epochs=196.0, warmup=34/196, warmup_lr=0.1, base_lr=0.1,
    lr_batch=64, min_lr=0.0, weight_decay=1e-4, clip_grad=0.0, crop="short_side",
    crop_range=(256/224, 320/224), jitter=0.0, grey=0.0, mixup=0.0, cutmix=0.0, smoothing=0.0)

for family, interval in (("c2d", 8), ("i3d", 8), ("slow", 8), ("slowfast", 2)):
    clips = dict(sampling="dense", interval=interval, mean=(0.45,) * 3, std=(0.225,) * 3)
    train.RECIPES[family] = {"k400": clips | PUBLISHED, "own": train.OWN | clips,
                             "toy": train.FOCAL_TOY | dict(epochs=3.0)}

if __name__ == "__main__":
    train.main()
