"""
Hybrid: an image network looks at each frame, a transformer looks along time.

The oldest way to a video network, and still the cheapest to try: whatever is known about images is
reused as it is. A frame becomes one vector, T of them are a sentence, a transformer reads it:

    clip      (B, 3, T, H, W)       T frames of H x W
    frames    (B, T, C)             any image network, frame by frame: features, no head
    sentence  (B, 1 + T, C)         a class token in front; a learned position for each frame
    blocks    (B, 1 + T, C)         x = x + attend(norm(x)), then x = x + mlp(norm(x))
    norm, then token 0 (or, with --pool mean, the mean of the frames), Linear -> (B, num_classes)

    attend(z)_i = sum_j softmax_j(q_i . k_j / sqrt(d)) v_j       i, j: frames of one clip

What is cheap: time. T tokens meet, not T H W, and the transformer is a small part of the sum:

    8 frames, 224 x 224     parameters   multiply-adds   of these the transformer's
    focal_t                 49,553,272          63.0 G   (for comparison: time in every layer)
    hybrid_t                56,325,652          35.5 G   0.26 G
    hybrid_conv             23,996,880          14.6 G   0.11 G

What is lost: a frame is one vector before it meets another. Where something was must be in that
vector, nothing can be looked up later. It is, though the vector is a mean over all places: the zero
padding of convolutions says where the border is.

Without positions attention is a function of a set: the logits of a clip do not change with the
order of its frames. All that these networks know of time is in T learned vectors. On the toy, whose
validation has each clip and its reversal, so that 50 % is all a set can reach (top-1, one seed, 7
epochs; 2 shared CPU cores, AMD EPYC, torch 2.13.0, 2026-11-26):

    hybrid_toy                     85.9 %
    hybrid_toy --positions False   45.5 %

The frame network is any preset of MODELS that can look at a single frame: --frames focal_t, without
its temporal branch, is Microsoft's image FocalNet; lvt_s works as well. Below stands one more, a
plain ResNet: 3 x 3 convolutions, BatchNorm, ReLU. By itself, as resnet_18, it is the frame-by-frame
baseline: the mean of the features of all frames, whatever their order.

Source: a survey of video transformers, section 6, "CNN backbone + temporal transformer". With an
LSTM: Donahue et al. 2015, arXiv:1411.4389; with a transformer that attends within windows: Neimark
et al. 2021, arXiv:2102.00719. ResNet: He et al. 2015, arXiv:1512.03385. Sizes and recipes are ours.
--init takes the frame network's weights, an image FocalNet's (focalnet_tiny_srf.pth) or resnet18's
in torchvision's layout; the transformer and the head start fresh then.
Try it: python -m zoo.hybrid --model hybrid_toy    from the repository's root
    python -m zoo.hybrid --data k400 --root DIR --model hybrid_t --init focalnet_tiny_srf.pth
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

import train
from backbone import MODELS, Block, arguments, create_model, rename
from linear_attn import Attention


# --------------------------------------------------- a plain image network

class Residual(nn.Module):
    """relu(x + conv(relu(conv(x)))), (B, in, H, W) -> (B, out, H / stride, W / stride)."""

    def __init__(self, in_dim, dim, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(in_dim, dim, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(dim)
        self.conv2 = nn.Conv2d(dim, dim, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(dim)
        self.downsample = nn.Sequential()
        if stride > 1 or in_dim != dim:
            self.downsample = nn.Sequential(nn.Conv2d(in_dim, dim, 1, stride, bias=False),
                                            nn.BatchNorm2d(dim))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(self.downsample(x) + y)


class ResNet(nn.Module):
    """
    Each frame alone, then the mean over all places and frames: (B, 3, T, H, W) -> (B, num_classes).
    width, depths: channels of the first stage, blocks of each; a stage halves the image and doubles
    the channels. small: a stem for small images, 3 x 3 with stride 2 and no pooling.
    """

    def __init__(self, num_classes=400, num_frames=8, image_size=224, width=64,
                 depths=(2, 2, 2, 2), small=False):
        super().__init__()
        self.num_frames = num_frames
        self.image_size = image_size
        self.conv1 = nn.Conv2d(3, width, 3 if small else 7, 2, 1 if small else 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.pool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)

        # The first stage keeps the size, all others halve it.
        self.layers = nn.ModuleList()
        dim = width
        for s, depth in enumerate(depths):
            blocks = [Residual(dim, width * 2**s, 2 if s else 1)]
            dim = width * 2**s
            blocks += [Residual(dim, dim, 1) for _ in range(depth - 1)]
            self.layers.append(nn.Sequential(*blocks))
        self.head = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def our_names(self, state):
        """torchvision's names -> ours: layer1 to layer4 are layers.0 to layers.3 here."""
        state = rename(state, ((r"^fc\.", "head."),))
        return rename(state, [(rf"^layer{s + 1}\.", f"layers.{s}.") for s in range(4)])

    def forward(self, clip):
        T = clip.shape[2]
        x = clip.transpose(1, 2).flatten(0, 1)  # (B*T, 3, H, W): frames are images
        x = self.pool(F.relu(self.bn1(self.conv1(x))))
        for blocks in self.layers:
            x = blocks(x)
        x = x.mean((2, 3)).unflatten(0, (-1, T)).mean(1)  # (B, C)
        return self.head(x)


# --------------------------------------------------- frames, then time

def frame_network(name, image_size):
    """A preset of MODELS without head, made for clips of one frame."""
    changes = {"temporal": False} if "temporal" in arguments(name) else {}
    return create_model(name, num_classes=0, num_frames=1, image_size=image_size, **changes)


class Hybrid(nn.Module):
    """
    frames      a preset that looks at each frame
    depth, heads    blocks of the transformer over time; heads divides the width of the features
    pool        'cls': the class token is the clip's feature; 'mean': the mean of the frames is
    positions   a learned vector for each frame, which binds num_frames; False: frames are a set
    drop_path   of the transformer's blocks
    """

    image_lacks = r"^(?!frames\.)"  # all but the frame network

    def __init__(self, num_classes=400, num_frames=8, image_size=224, frames="focal_t", depth=4,
                 heads=8, pool="cls", positions=True, drop_path=0.0):
        super().__init__()
        if pool not in ("cls", "mean"):
            raise ValueError(f"pool={pool!r}: use 'cls' or 'mean'")
        self.num_frames = num_frames
        self.image_size = image_size
        self.frames = frame_network(frames, image_size)

        # How long is a feature? Ask a copy that has no numbers in it: that costs nothing.
        with torch.device("meta"):
            frame = torch.empty(1, 3, 1, image_size, image_size)
            dim = frame_network(frames, image_size)(frame).shape[1]

        # The core's block, with attention as of 2017: softmax, no gate, no shifts. All 1 + T tokens
        # meet: to the core they are a clip of as many frames, of one pixel each.
        self.cls_token = nn.Parameter(0.02 * torch.randn(dim)) if pool == "cls" else None
        self.time_embed = None
        if positions:
            self.time_embed = nn.Parameter(0.02 * torch.randn(1, num_frames, dim))
        tokens = num_frames + (pool == "cls")
        self.blocks = nn.Sequential()
        for _ in range(depth):
            attention = Attention(dim, "joint", (tokens, 1, 1), heads, "softmax", "none",
                                  temporal_shift=0, spatial_shift=0)
            self.blocks.append(Block(dim, {"time": attention}, drop_path=drop_path))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes) if num_classes else nn.Identity()

    def our_names(self, state):
        """Ours pass; an image network's become those of the frame network, without its head."""
        if any(name.startswith("frames.") for name in state):
            return state
        return {f"frames.{name}": value for name, value in self.frames.our_names(state).items()
                if not name.startswith("head.")}

    def features(self, clip):
        """(B, 3, T, H, W) -> (B, T, C): what the image network says of each frame."""
        B, _, T, _, _ = clip.shape
        frames = clip.transpose(1, 2).flatten(0, 1)[:, :, None]  # (B*T, 3, 1, H, W)
        return self.frames(frames).unflatten(0, (B, T))

    def forward(self, clip):
        """clip: (B, 3, T, H, W), normalised -> (B, num_classes)."""
        x = self.features(clip)  # (B, T, C)
        if self.time_embed is not None:
            if x.shape[1] != self.num_frames:
                raise ValueError(f"{x.shape[1]} frames: there are positions for {self.num_frames}; "
                                 "positions=False takes any number")
            x = x + self.time_embed
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(len(x), 1, -1), x], dim=1)  # (B, 1 + T, C)

        # Frames meet, and only here.
        x = self.blocks(x[:, :, None, None])[:, :, 0, 0]
        x = self.norm(x)
        x = x.mean(1) if self.cls_token is None else x[:, 0]
        return self.head(x)


# --------------------------------------------------- presets and recipes

MODELS |= {  # ours; none of them was run on Kinetics
    "resnet_18": dict(trunk=ResNet),
    "resnet_toy": dict(trunk=ResNet, image_size=64, width=16, depths=(1, 1, 1), small=True,
                       num_classes=8),
    "hybrid_t": dict(trunk=Hybrid),
    "hybrid_conv": dict(trunk=Hybrid, frames="resnet_18"),
    "hybrid_toy": dict(trunk=Hybrid, image_size=64, frames="focal_toy", depth=2, heads=2,
                       num_classes=8),
    "hybrid_conv_toy": dict(trunk=Hybrid, image_size=64, frames="resnet_toy", depth=2, heads=2,
                            num_classes=8),
}

# Transformers want AdamW. For Kinetics it is what train.py does with a few hundred clips, with the
# views and the augmentation of the core's FocalNets: nobody has run it.
K400 = dict(epochs=60.0, optimizer="adamw", base_lr=0.0005, lr_batch=256, weight_decay=0.05,
            clip_grad=1.0)
for family in ("hybrid", "resnet"):
    train.RECIPES[family] = {"toy": train.LVT_TOY, "own": train.OWN, "k400": K400,
                             "ssv2": K400 | dict(flip=0.0)}  # classes say left and right

if __name__ == "__main__":
    train.main()
