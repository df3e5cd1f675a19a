"""
3-d convolutions: C3D, and the three residual networks that came after it.

A convolution sums over a small box of its input. In a video the box has a third side, time, so that
a filter can match a motion as well as a form:

    y[t, h, w] = sum_{i, j, l} W[i, j, l] x[t+i, h+j, w+l]        i, j, l = -1..1: 27 terms

Must all of the network see time? Four answers:

    C3D      3x3x3 eight times, pooling between them, three Linear layers, no norms (2014)
    R3D      ResNet-18 with 3x3x3 throughout: y = relu(x + conv(relu(conv(x))))
    MC3      3x3x3 in the stem and in layer 1, 1x3x3 from there on: motion early, form late
    R(2+1)D  each 3x3x3 is 1x3x3 to m channels, norm, ReLU, then 3x1x1: space, then time.
             m = floor(27 i o / (9 i + 3 o)) for i channels to o: as many weights as 3x3x3 has,
             and twice as many ReLUs

    clip    (B, 3, 16, 112, 112)     channels-first, as Conv3d wants it
    stem    (B, 64, 16, 56, 56)      3x7x7, stride 1x2x2
    layer1  (B, 64, 16, 56, 56)      two blocks of two convolutions, as in all layers
    layer2  (B, 128, 8, 28, 28)      the first convolution of layers 2 to 4 has stride 2, also in
    layer3  (B, 256, 4, 14, 14)      time; MC3's only in space: 16 frames to the end
    layer4  (B, 512, 2, 7, 7)
    mean over T, H, W, Linear -> logits (B, num_classes)
    cost    27 i o multiply-adds for each place of the output; for sums see the presets

BatchNorm follows each convolution, and it is two functions. For each channel:

    training    y = g (x - mean) / sqrt(var + eps) + b     mean, var of this batch, over B, T, H, W
                running <- 0.9 running + 0.1 of this batch (var with n - 1 in place of n)
    evaluation  y = g (x - running mean) / sqrt(running var + eps) + b

So in training the scores of a clip depend on the others in its micro-batch (2 x 4 clips with
--accumulate 2 are not 8 clips), and a checkpoint needs the running numbers: buffers, no parameters.

What a survey says, and what is so. C3D's 85.2 % on UCF101: three networks and an SVM. "Limited to
small temporal windows": a kernel is, a stack is not: behind layer 2 of R3D a number sees 25 frames,
more than the clip has. "Sequential processing": a convolution has all frames at once.

What trips whoever writes it anew. These stems have no max pooling. m comes from the i and o of the
BLOCK, and is the same in both of its convolutions; the stem's 45 is no result of the formula. MC3's
shortcuts stride in space only. C3D: pool5 pads H and W, so that 7 becomes 4 and fc6 sees 512*1*4*4
numbers, flattened as C, T, H, W; pixels go from 0 to 255; convolutions have a bias.

Source: Tran et al. 2015, arXiv:1412.0767 (C3D); Tran et al. 2018, arXiv:1711.11248 (the others);
weights and numbers: torchvision (r3d_18, mc3_18, r2plus1d_18), mmaction2 and c3d-pytorch (C3D).
Try it, from the root: python -m zoo.resnet3d --model r3d_toy
    python -m zoo.resnet3d --data k400 --root DIR --model r3d_18 --init r3d_18-b3b3357e.pth --eval
"""
import torch.nn as nn
import torch.nn.functional as F

import train
from backbone import MODELS, rename

# The convolutions of layers 1 to 4.
KINDS = {
    "r3d": ("3d", "3d", "3d", "3d"),
    "mc3": ("3d", "2d", "2d", "2d"),
    "r2plus1d": ("2+1d", "2+1d", "2+1d", "2+1d"),
}


# --------------------------------------------------- the residual networks

def convolution(kind, i, o, m, s=1):
    """3x3x3 and what takes its place: (B, i, T, H, W) -> (B, o, T/s, H/s, W/s); m: see above."""
    if kind == "3d":
        return nn.Conv3d(i, o, 3, s, padding=1, bias=False)
    elif kind == "2d":
        return nn.Conv3d(i, o, (1, 3, 3), (1, s, s), padding=(0, 1, 1), bias=False)
    else:  # '2+1d': the stride is shared out as well
        return nn.Sequential(
            nn.Conv3d(i, m, (1, 3, 3), (1, s, s), padding=(0, 1, 1), bias=False),
            nn.BatchNorm3d(m), nn.ReLU(),
            nn.Conv3d(m, o, (3, 1, 1), (s, 1, 1), padding=(1, 0, 0), bias=False))


class Block(nn.Module):
    """relu(shortcut(x) + conv2(relu(conv1(x)))): (B, i, T, H, W) -> (B, o, T', H', W')."""

    def __init__(self, kind, i, o, stride):
        super().__init__()
        m = 27 * i * o // (9 * i + 3 * o)
        self.conv1 = nn.Sequential(convolution(kind, i, o, m, stride), nn.BatchNorm3d(o), nn.ReLU())
        self.conv2 = nn.Sequential(convolution(kind, o, o, m), nn.BatchNorm3d(o))

        # Where the shape changes, x is brought to it: one number of each box, other channels.
        self.downsample = nn.Identity()
        if stride != 1 or i != o:
            strides = (1 if kind == "2d" else stride, stride, stride)
            self.downsample = nn.Sequential(nn.Conv3d(i, o, 1, strides, bias=False),
                                            nn.BatchNorm3d(o))

    def forward(self, x):
        return F.relu(self.downsample(x) + self.conv2(self.conv1(x)))


def stem(kind, width):
    """(B, 3, T, H, W) -> (B, width, T, H/2, W/2)."""
    if kind != "r2plus1d":
        return nn.Sequential(
            nn.Conv3d(3, width, (3, 7, 7), (1, 2, 2), padding=(1, 3, 3), bias=False),
            nn.BatchNorm3d(width), nn.ReLU())
    m = 45 * width // 64
    return nn.Sequential(
        nn.Conv3d(3, m, (1, 7, 7), (1, 2, 2), padding=(0, 3, 3), bias=False),
        nn.BatchNorm3d(m), nn.ReLU(),
        nn.Conv3d(m, width, (3, 1, 1), padding=(1, 0, 0), bias=False),
        nn.BatchNorm3d(width), nn.ReLU())


class ResNet3d(nn.Module):
    """
    R3D, MC3, R(2+1)D: (B, 3, T, H, W) -> (B, num_classes), for any T, H, W.

    num_classes    0: no head, the output is the pooled feature (B, 8 width)
    num_frames, image_size    what it is for; no weight depends on them
    kind           one of KINDS
    width          channels of layer 1; they double from layer to layer
    depths         blocks of each layer
    """

    def __init__(self, num_classes=400, num_frames=16, image_size=112, kind="r3d", width=64,
                 depths=(2, 2, 2, 2)):
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"kind={kind!r}: use one of {', '.join(KINDS)}")
        self.num_frames = num_frames
        self.image_size = image_size
        self.stem = stem(kind, width)
        self.layers = nn.ModuleList()
        i = width
        for l, depth in enumerate(depths):
            o = width * 2**l
            blocks = []
            for n in range(depth):
                blocks.append(Block(KINDS[kind][l], i, o, stride=2 if l > 0 and n == 0 else 1))
                i = o
            self.layers.append(nn.Sequential(*blocks))
        self.head = nn.Linear(o, num_classes) if num_classes else nn.Identity()
        init_weights(self)

    def our_names(self, state):
        """torchvision's names -> ours: layer1 is layers.0, fc is head."""
        renames = [(rf"^layer{l + 1}\.", f"layers.{l}.") for l in range(4)]
        return rename(state, renames + [(r"^fc\.", "head.")])

    def forward(self, clip):
        """clip: (B, 3, T, H, W), normalised -> (B, num_classes)."""
        x = self.stem(clip)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean((2, 3, 4)))


# --------------------------------------------------- C3D

class C3D(nn.Module):
    """
    (B, 3, T, H, W) -> (B, num_classes), T, H and W as told: fc6 has a weight for each place. width,
    hidden: channels of conv1; of fc6 and fc7.
    """

    def __init__(self, num_classes=400, num_frames=16, image_size=112, width=64, hidden=4096,
                 dropout=0.5):
        super().__init__()
        # Halved five times: the first time only in space, the last time padded there.
        T = num_frames // 16
        side = image_size // 16 // 2 + 1
        if T < 1:
            raise ValueError(f"num_frames={num_frames}: C3D pools 16 frames into one")
        self.num_frames = num_frames
        self.image_size = image_size
        w = width
        self.conv1 = nn.Conv3d(3, w, 3, padding=1)
        self.conv2 = nn.Conv3d(w, 2*w, 3, padding=1)
        self.conv3a = nn.Conv3d(2*w, 4*w, 3, padding=1)
        self.conv3b = nn.Conv3d(4*w, 4*w, 3, padding=1)
        self.conv4a = nn.Conv3d(4*w, 8*w, 3, padding=1)
        self.conv4b = nn.Conv3d(8*w, 8*w, 3, padding=1)
        self.conv5a = nn.Conv3d(8*w, 8*w, 3, padding=1)
        self.conv5b = nn.Conv3d(8*w, 8*w, 3, padding=1)
        self.fc6 = nn.Linear(8*w * T * side * side, hidden)
        self.fc7 = nn.Linear(hidden, hidden)
        self.head = nn.Linear(hidden, num_classes) if num_classes else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        init_weights(self)

    def our_names(self, state):
        """c3d-pytorch's names, and mmaction2's, backbone.conv1a.conv -> ours."""
        return rename(state, (
            (r"^backbone\.", ""),
            (r"^(conv\d[ab])\.conv\.", r"\1."),
            (r"^conv([12])a\.", r"conv\1."),
            (r"^(cls_head\.fc_cls|fc8)\.", "head."),
        ))

    def forward(self, clip):
        """clip: (B, 3, T, H, W), normalised -> (B, num_classes)."""
        x = F.max_pool3d(F.relu(self.conv1(clip)), (1, 2, 2))  # all frames stay, once
        x = F.max_pool3d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.conv3a(x))
        x = F.max_pool3d(F.relu(self.conv3b(x)), 2)
        x = F.relu(self.conv4a(x))
        x = F.max_pool3d(F.relu(self.conv4b(x)), 2)
        x = F.relu(self.conv5a(x))
        x = F.max_pool3d(F.relu(self.conv5b(x)), 2, padding=(0, 1, 1))  # (B, 512, 1, 4, 4)
        x = self.dropout(F.relu(self.fc6(x.flatten(1))))
        x = self.dropout(F.relu(self.fc7(x)))
        return self.head(x)


def init_weights(model):
    """Convolutions N(0, 2/fan_out), as torchvision; for C3D ours."""
    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


# --------------------------------------------------- presets, recipes

MODELS |= {  # parameters, multiply-adds; K400 top-1: torchvision's | ours
    "r3d_18": dict(trunk=ResNet3d),  # 33.4 M, 40.7 G, 63.2 | not run
    "mc3_18": dict(trunk=ResNet3d, kind="mc3"),  # 11.7 M, 43.3 G, 64.0 | not run
    "r2plus1d_18": dict(trunk=ResNet3d, kind="r2plus1d"),  # 31.5 M, 40.5 G, 67.5 | not run
    "c3d": dict(trunk=C3D),  # 79.6 M, 38.5 G; UCF101 83.1 (mmaction2) | not run
    "r3d_toy": dict(trunk=ResNet3d, num_frames=8, image_size=64, width=8, depths=(1, 1, 1, 1),
                    num_classes=8),  # ours
}

# torchvision tests with five windows of 16 frames at 15 a second. The core takes every second
# frame, whatever the rate; it keeps the aspect, where torchvision makes 128 x 171 of any frame; and
# its last window does not reach the end of the video.
TESTED = dict(sampling="dense", interval=2, margin=128/112, views="5x1",
              mean=(0.43216, 0.394666, 0.37645), std=(0.22803, 0.22145, 0.216989))
# mmaction2, UCF101: 16 frames one after the other, ten times; 0..255 minus 104, 117, 128.
TESTED_C3D = TESTED | dict(interval=1, views="10x1", mean=(104/255, 117/255, 128/255),
                           std=(1/255, 1/255, 1/255))
# Trained with random crops and flips, no more. Rates and epochs are those of the core, not theirs.
PLAIN = dict(crop="short_side", crop_range=(128/112, 128/112), jitter=0.0, grey=0.0, mixup=0.0,
             cutmix=0.0, smoothing=0.0)

TOY = train.FOCAL_TOY | dict(epochs=3.0)
for family in ("r3d", "mc3", "r2plus1d", "c3d"):
    tested = TESTED_C3D if family == "c3d" else TESTED
    train.RECIPES[family] = {"k400": tested | PLAIN, "own": train.OWN | tested, "toy": TOY}

if __name__ == "__main__":
    train.main()
