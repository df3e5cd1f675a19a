r"""
What the ideas have to beat: convolutions, and a mean, in the place of the mixer.

    conv3d        a dense 3x3x3 convolution: what C3D and R3D are made of      27 C^2 a token
    conv2plus1d   1x3x3, GELU, 3x1x1: the same in two steps, R(2+1)D           12 C^2 a token
    pool          the mean of the 3x3x3 tokens around, minus the token itself:
                  the floor that MetaFormer asks about. It has no weights

All map (B, T, H, W, C) -> same, and see one token further each way. Focal modulation with its two
levels costs 14 C^2 + 40 C a token, and sees everything. The rest of the network is the pyramid of
the Video-FocalNets, so that only the mixer is compared.

Sources: C3D arXiv:1412.0767; R(2+1)D arXiv:1711.11248; MetaFormer arXiv:2111.11418.

Mixers in the same pyramid. From the root of the repository, with seeds 0, 1 and 2:

    python -m zoo.baselines --mixer conv3d --optimizer adamw --base_lr 0.003 --betas 0.9,0.98 \
        --weight_decay 0.05 --steps 240 --seed 0

and the same with the mixers below. Top-1 in percent on the toy data, 8 classes, chance is 12.5:

    --mixer                  seeds 0, 1, 2        mean   spread  parameters  GFLOPs  clips/s
    focal                    100.0, 100.0, 100.0  100.0     0.0     226,842   0.040      251
    time+space --heads 2,4    57.6,  87.3,  88.5   77.8    30.9     170,472   0.035      191
    conv3d                    88.1,  91.6,  87.9   89.2     3.7     339,432   0.059      350
    conv3d --dim 24           89.1,  91.8,  92.0   91.0     2.9     192,560   0.034      427
    conv2plus1d               99.4, 100.0,  94.5   98.0     5.5     201,352   0.036      334
    pool                      25.4,  22.1,  20.9   22.8     4.5      90,440   0.017      324
    pool --dim 48             23.2,  24.6,  20.9   22.9     3.7     197,096   0.035      302

Measured at commit 63d0020, on a CPU. GFLOPs are multiply-adds of one clip; clips/s are those of
training, from a separate run on 2 threads. AdamW, as attention does not learn with SGD here.

Verdict: at similar cost (0.034 to 0.040 G) focal modulation and the convolution in two steps learn
the toy in 240 steps; a dense convolution reaches 88 to 92 %. A mean over neighbours is the same
forwards and backwards, so it cannot tell a direction. Attention (relu, both shifts, the gate) has
seeds from 58 to 89, and 100.0, 99.4, 100.0 with `--steps 640`: it is later. This is one moving
shape: it says what each mixer can see, not which one is better on real video.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

import train
from backbone import MIXERS
from focal import across_both


class Convolution(nn.Module):
    """Channels-last around a Conv3d, or several in a row: (B, T, H, W, dim) -> same."""

    def __init__(self, *layers):
        super().__init__()
        self.conv = nn.Sequential(*layers)

    def forward(self, x):
        return across_both(self.conv, x)


class MeanAround(nn.Module):
    """The mean of the 3x3x3 tokens around, minus the token: (B, T, H, W, C) -> same."""

    def forward(self, x):
        # What the token has already, the residual adds.
        return across_both(mean_around, x) - x


def mean_around(x):
    """(B, C, T, H, W) -> same: the mean of 3x3x3 tokens, of those that there are at a border."""
    # Sums with zeros around, divided by how many of the 27 are inside. torch's own option for that,
    # count_include_pad=False, refuses grids with a side of one or two tokens.
    ones = torch.ones_like(x[:1, :1])
    total = F.avg_pool3d(F.pad(x, (1, 1, 1, 1, 1, 1)), 3, stride=1)
    share = F.avg_pool3d(F.pad(ones, (1, 1, 1, 1, 1, 1)), 3, stride=1)
    return total / share


# All pad by one, so that T, H and W stay. They have no options.
MIXERS["conv3d"] = lambda dim, size, options: Convolution(
    nn.Conv3d(dim, dim, 3, padding=1))
MIXERS["conv2plus1d"] = lambda dim, size, options: Convolution(
    nn.Conv3d(dim, dim, (1, 3, 3), padding=(0, 1, 1)),
    nn.GELU(),
    nn.Conv3d(dim, dim, (3, 1, 1), padding=(1, 0, 0)))
MIXERS["pool"] = lambda dim, size, options: MeanAround()


if __name__ == "__main__":
    train.main()
