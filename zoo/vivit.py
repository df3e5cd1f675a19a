"""
ViViT: tokens are tubelets, small boxes of video, and four ways to let them meet.

A tubelet is t x p x p pixels (2 x 16 x 16), cut by a convolution that strides as far as it reaches.
A clip becomes T frames of N tubelets, x (B, T, N, C). A block is x = x + attend(norm(x)), then
x = x + mlp(norm(x)), where attend is softmax(q k^T / sqrt(d)) v among some of the tokens:

    Model 1  spatio-temporal attention: all T N, and a class token
    Model 2  factorised encoder: 12 blocks among the N of a frame; each frame's class token goes on,
             and 4 blocks let these T meet, with a class token of their own
    Model 3  factorised self-attention: each block along time (T), then across space (N), then mlp
    Model 4  factorised dot product: half of the heads look along time, half across space

    B/16x2, 32 frames of 224 x 224: T 16, N 196; 400 classes          paper: M, G, K400
    Model 1     88,954,000 parameters    451.5 G multiply-adds        88.9  455.2  80.0
    Model 2    115,062,928               283.3 G                     115.1  284.4  78.8
    Model 3    117,319,312               371.1 G                     117.3  372.3  77.4
    Model 4     88,952,464               276.2 G                      88.9  277.1  76.3

(Left: counted here.) Attention costs 2 (T N)^2 C in Model 1, 2 T N (T + N) C in 3, half of that in
4, which has no weight more than 1. Every block costs 12 C^2 a token besides, in 3 16 C^2.

What a survey of the field says wrongly: its Models 1 and 2 are both the factorised encoder, its 3
has the name of 4 and the text of 3, its 4 is 1 (the parameters above settle it); "3 has the best
trade-off" (2 has); "2 is 2 x faster than 1" (3.4 x in the paper: 17.4 and 58.9 ms); tubelets are
"patches of each frame" (that is uniform frame sampling, which they replace); "time attention starts
at random" (in Model 3 it starts silent).

What trips a re-implementation:
  - GELU is flax's, the tanh form: the exact one moves logits by up to 7e-4; LayerNorm eps is 1e-6;
  - a learned place for every token, in time-major order, the class token's first;
  - Models 3 and 4 have no class token: norm, then the mean of all tokens;
  - start from an image ViT: its patch kernel goes to frame t // 2 of the tubelet, the others get
    zeros ("central frame"), its places are repeated for each frame. Scenic's central start without
    an image ViT blanks columns of the patch, not frames (model_utils.py): not copied;
  - Model 3's time: zeros in `proj` alone. Were q, k and v zero as well, they would stay so;
  - pixels are -1..1: Hugging Face's processor makes them so, then subtracts .5 once more.

Source: Arnab et al. 2021, arXiv:2103.15691; github.com/google-research/scenic, projects/vivit. Its
three crops come from a short side of 256, this core's from 224; its last clip ends with the video,
this core's clip v of 4 starts at v / 4. --init takes Hugging Face's google/vivit-b-16x2* (Model 1),
or, with any Model, an image ViT in timm's layout; Scenic's flax files are not read.
Try it: python -m zoo.vivit --model vivit_toy --number 3    from the repository's root
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

import train
from backbone import MODELS, rename


def attend(q, k, v):
    """(.., n, heads, d) each -> same: softmax(q k^T / sqrt(d)) v, the n tokens of a row meet."""
    rows = [z.flatten(0, -4).transpose(1, 2) for z in (q, k, v)]  # (rows, heads, n, d)
    return F.scaled_dot_product_attention(*rows).transpose(1, 2).reshape(q.shape)


class Attention(nn.Module):
    """(.., n, C) -> same. With split, Model 4: (B, T, N, C) -> same, half of the heads each way."""

    def __init__(self, dim, heads, split=False):
        super().__init__()
        self.heads = heads
        self.split = split
        self.qkv = nn.Linear(dim, 3*dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(-3)  # 3 (.., n, heads, d)
        if self.split:
            h = self.heads // 2
            time = [z[..., :h, :].transpose(1, 2) for z in qkv]  # (B, N, T, h, d)
            space = [z[..., h:, :] for z in qkv]  # (B, T, N, h, d)
            y = torch.cat([attend(*time).transpose(1, 2), attend(*space)], dim=-2)
        else:
            y = attend(*qkv)
        return self.proj(y.flatten(-2))


class Block(nn.Module):
    """(.., n, C) -> same: attention, MLP. Model 3, (B, T, N, C) -> same: time comes before them."""

    def __init__(self, dim, heads, number):
        super().__init__()
        self.time = number == 3
        if self.time:
            self.norm_t = nn.LayerNorm(dim, 1e-6)
            self.attn_t = Attention(dim, heads)
        self.norm1 = nn.LayerNorm(dim, 1e-6)
        self.attn = Attention(dim, heads, split=number == 4)
        self.norm2 = nn.LayerNorm(dim, 1e-6)
        self.mlp = nn.Sequential(nn.Linear(dim, 4*dim), nn.GELU("tanh"), nn.Linear(4*dim, dim))

    def forward(self, x):
        if self.time:
            y = self.norm_t(x).transpose(1, 2)  # (B, N, T, C)
            x = x + self.attn_t(y).transpose(1, 2)
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Encoder(nn.Module):
    """Places, blocks, norm: (B, n, C) -> the class token's (B, C); Models 3 and 4: the mean of the
    tokens (B, T, N, C) -> (B, C)."""

    def __init__(self, tokens, dim, depth, heads, number):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if number <= 2 else None
        places = tokens + 1 if number <= 2 else tokens
        self.pos_embed = nn.Parameter(torch.empty(1, places, dim))
        self.blocks = nn.Sequential(*(Block(dim, heads, number) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, 1e-6)

    def forward(self, x):
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)  # (B, 1 + n, C)
            return self.norm(self.blocks(x + self.pos_embed))[:, 0]
        x = x + self.pos_embed.view(1, *x.shape[1:])  # (B, T, N, C)
        return self.norm(self.blocks(x)).mean((1, 2))


class ViViT(nn.Module):
    """number: the paper's Model, 1 to 4. tubelet, patch: frames, side of a token. depth_t: blocks
    of Model 2's temporal encoder. num_classes=0: no head. Places bind num_frames, image_size."""

    image_lacks = r"^temporal\.|_t\."  # Model 2's second encoder, Model 3's attention along time

    def __init__(self, num_classes=400, num_frames=32, image_size=224, number=1, tubelet=2,
                 patch=16, dim=768, depth=12, depth_t=4, heads=12):
        super().__init__()
        if number not in (1, 2, 3, 4):
            raise ValueError(f"number={number}: the paper's Models are 1, 2, 3 and 4")
        if num_frames % tubelet or image_size % patch:
            raise ValueError(f"{tubelet=} must divide {num_frames=}, {patch=} {image_size=}")
        if dim % heads or number == 4 and heads % 2:
            raise ValueError(f"{heads=} must divide {dim=}, and be even for Model 4")
        self.num_frames = num_frames
        self.image_size = image_size
        self.number = number
        self.T = num_frames // tubelet
        self.N = (image_size // patch)**2

        size = (tubelet, patch, patch)
        self.patch_embed = nn.Conv3d(3, dim, size, stride=size)
        if number == 2:
            self.spatial = Encoder(self.N, dim, depth, heads, number)
            self.temporal = Encoder(self.T, dim, depth_t, heads, number)
        else:
            self.encoder = Encoder(self.T * self.N, dim, depth, heads, number)
        self.head = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        self.start()

    def start(self):
        """As released: the central frame alone is seen, time (Model 3) and head say nothing yet."""
        for name, weight in self.named_parameters():
            if name.endswith(("bias", "attn_t.proj.weight", "head.weight")):
                nn.init.zeros_(weight)
            elif name.endswith("pos_embed"):
                nn.init.normal_(weight, std=0.02)
            elif weight.ndim == 2:
                for part in weight.chunk(3 if "qkv" in name else 1):
                    nn.init.xavier_uniform_(part)
        with torch.no_grad():
            kernel = self.patch_embed.weight  # (C, 3, t, p, p)
            middle = kernel.shape[2] // 2
            nn.init.normal_(kernel, std=kernel[0, :, 0].numel()**-0.5)
            kernel[:, :, :middle] = 0
            kernel[:, :, middle + 1:] = 0

    def our_names(self, state):
        """Hugging Face's names (Model 1) and those of an image ViT -> ours."""
        where = "spatial" if self.number == 2 else "encoder"
        state = rename(state, (
            (r"^vivit\.(embeddings\.|encoder\.)?", ""),
            (r"^position_embeddings$", "pos_embed"),
            (r"^patch_embed(dings\.projection|\.proj)\.", "patch_embed."),
            (r"^layer\.", "blocks."),
            (r"\.attention\.attention\.", ".attn."),
            (r"\.attention\.output\.dense\.", ".attn.proj."),
            (r"\.layernorm_before\.", ".norm1."),
            (r"\.layernorm_after\.", ".norm2."),
            (r"\.(intermediate\.dense|mlp\.fc1)\.", ".mlp.0."),
            (r"\.(output\.dense|mlp\.fc2)\.", ".mlp.2."),
            (r"^layernorm\.", "norm."),
            (r"^classifier\.", "head."),
            (r"^(cls_token|pos_embed|blocks|norm)\b", rf"{where}.\1"),
        ))
        # Three Linear layers there are one here.
        for name in [name for name in state if ".attn.query." in name]:
            three = [name.replace("query", part) for part in ("query", "key", "value")]
            if all(part in state for part in three):
                state[name.replace("query", "qkv")] = torch.cat([state.pop(part) for part in three])

        # An image ViT: the kernel goes to the central frame, places are the same in each frame.
        kernel = state.get("patch_embed.weight")
        if torch.is_tensor(kernel) and kernel.ndim == 4:
            t = self.patch_embed.stride[0]
            frames = [kernel if i == t // 2 else 0*kernel for i in range(t)]
            state["patch_embed.weight"] = torch.stack(frames, dim=2)
            places = state.get(f"{where}.pos_embed", kernel)  # (1, N, C), or (1, 1 + N, C)
            if self.number != 2 and places.shape[1] in (self.N, self.N + 1):
                repeated = places[:, -self.N:].repeat(1, self.T, 1)
                if self.number == 1:
                    repeated = torch.cat([places[:, :1], repeated], dim=1)
                state[f"{where}.pos_embed"] = repeated
            if self.number > 2:
                state.pop(f"{where}.cls_token", None)
        return state

    def forward(self, clip):
        """clip: (B, 3, T, H, W), normalised -> (B, num_classes)."""
        if clip.shape[2:] != (self.num_frames, self.image_size, self.image_size):
            raise ValueError(f"a clip of {tuple(clip.shape[2:])}: the places are learned for "
                             f"num_frames={self.num_frames}, image_size={self.image_size}")
        x = self.patch_embed(clip).flatten(3).permute(0, 2, 3, 1)  # (B, T, N, C), of tubelets now
        if self.number == 1:
            x = self.encoder(x.flatten(1, 2))
        elif self.number == 2:
            x = self.spatial(x.flatten(0, 1))  # (B*T, C): a class token for each frame
            x = self.temporal(x.unflatten(0, (-1, self.T)))
        else:
            x = self.encoder(x)
        return self.head(x)  # of (B, C)


# --------------------------------------------------- presets and recipes

MODELS |= {  # K400 top-1 of the released files, 4x3 views | ours
    "vivit": dict(trunk=ViViT),  # 79.9 | not run
    "vivit_2": dict(trunk=ViViT, number=2),  # 78.4 | not run
    "vivit_3": dict(trunk=ViViT, number=3),  # not released
    "vivit_4": dict(trunk=ViViT, number=4),  # not released
    "vivit_2_l": dict(trunk=ViViT, number=2, dim=1024, depth=24, depth_t=24, heads=16),  # 80.3 | no
    "vivit_toy": dict(trunk=ViViT, num_frames=8, image_size=64, dim=64, depth=2, depth_t=1,
                      heads=2, num_classes=8),
}

# As released; Model 2 has base_lr 0.05.
K400 = dict(epochs=30.0, warmup=2.5/30, base_lr=0.1, lr_batch=64, warmup_lr=0.0, min_lr=0.0,
            clip_grad=1.0, sampling="dense", interval=2, views="4x3", crop="short_side",
            crop_range=(0.9*256/224, 1.33*256/224), jitter_per_frame=False, grey=0.1,
            mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), mixup=0.0, cutmix=0.0, smoothing=0.0)

train.RECIPES["vivit"] = {"toy": train.LVT_TOY, "own": train.OWN, "k400": K400}

if __name__ == "__main__":
    train.main()
