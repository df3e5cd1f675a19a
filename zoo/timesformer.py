"""
TimeSformer: a ViT whose patches look along time, then across their frame.

A clip has T frames of H x W patches. Joint attention compares all T H W of them with each other.
Divided attention takes two steps instead, each with its residual, in every one of the 12 blocks:

    x = x + fc(attend(norm(x)))   time: with the T patches at its place. The class token waits
    x = x + attend(norm(x))       space: with the H W patches of its frame and the class token
    x = x + mlp(norm(x))          each token alone
    attend(z)_i = sum_j softmax_j(q_i . k_j / sqrt(d)) v_j    q, k, v = qkv(z), j in i's group

A step cuts x (B, T, H, W, C) into groups (B, G, n, C) of n tokens that meet: a window of t x h x w
of them, or ("global") every second one along each axis. A scheme is a list of steps:

    --scheme           meets                          parameters  multiply-adds   K400   SSv2
    space              H W, its frame                 86,106,256      140.5 G     76.9   36.6
    joint              T H W, all                     86,112,400      179.6 G     77.4   58.5
    time+space         T, then H W ("divided")       121,566,352      195.8 G     78.0   59.5
    local+global       T H/2 W/2, then T/2 H/2 W/2   121,566,352      206.9 G     75.9   56.3
    time+width+height  T, then W, then H ("axial")   157,020,304      249.4 G     73.5   56.2

8 frames of 224 x 224; accuracies are Table 1's. A further step costs 5 C^2 a token (qkv, proj, fc):
divided attention is cheaper than joint only where clips are long or large.

A survey of the field says wrongly: space comes first (that is worse); divided has T N + T N
products (T N (T + N), N = H W); local is space, global time (both are both); axial is H, W, T (T,
W, H); time starts at random (as a copy of space, and fc is 0).

What trips a re-implementation:
  - the class token has place 0 and no time; only the last step sees it, as one more token of each
    group (in divided attention a frame), and its answers are averaged;
  - with "space" each frame has its own, averaged BEFORE the last norm; there is no time table;
  - drop path acts on groups, and before fc; eps is 1e-6; tables of another size: NEAREST entry;
  - Hugging Face's processor subtracts ImageNet's mean: the weights want .45 and .225, as below.

Source: Bertasius et al. 2021, arXiv:2102.05095; github.com/facebookresearch/TimeSformer (weights CC
BY-NC 4.0): .pyth files, Hugging Face's facebook/timesformer-*; or start from an image ViT in timm's
layout. The last two schemes were never released: their class token is our reading. Tests there
take frames from 0 on, here the middle; the rate drops twice there, here it is a cosine.
On the toy, from nothing, both times, places and fc, start at zero: it stays at 18 to 32 %.
Try it: python -m zoo.timesformer --model timesformer_toy    from the repository's root
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

import train
from backbone import MODELS, drop_path_rates, rename


def window(step, T, H, W):
    """(t, h, w): a step groups t x h x w of the T x H x W tokens; ValueError if it cannot."""
    windows = {"time": (T, 1, 1), "space": (1, H, W), "joint": (T, H, W), "width": (1, 1, W),
               "height": (1, H, 1), "local": (T, H//2, W//2), "global": (2, 2, 2)}
    if step not in windows:
        raise ValueError(f"scheme: there is no step {step!r}, but {', '.join(windows)}")
    if step in ("local", "global") and (T % 2 or H % 2 or W % 2):
        raise ValueError(f"scheme: {step!r} halves {T} x {H} x {W} tokens, they must be even")
    return windows[step]


def cut(x, step):
    """(B, T, H, W, C) -> (B, G, n, C): G groups of n tokens that meet."""
    t, h, w = window(step, *x.shape[1:4])
    x = x.unflatten(3, (-1, w)).unflatten(2, (-1, h)).unflatten(1, (-1, t))
    x = x.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4, 6).flatten(1, 3)  # (B, windows, t h w, C)
    return x.transpose(1, 2) if step == "global" else x  # the first tokens of all windows, ..


def paste(x, step, T, H, W):
    """(B, G, n, C) -> (B, T, H, W, C), back from `cut`."""
    t, h, w = window(step, T, H, W)
    x = x.transpose(1, 2) if step == "global" else x
    x = x.unflatten(2, (t, h, w)).unflatten(1, (T//t, H//h, W//w))
    return x.permute(0, 1, 4, 2, 5, 3, 6, 7).flatten(5, 6).flatten(3, 4).flatten(1, 2)


class Attention(nn.Module):
    """Softmax attention, (B, G, n, C) -> same."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3*dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        qkv = self.qkv(x).flatten(0, 1).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B*G, heads, n, d)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.proj(y.reshape(x.shape))


class Block(nn.Module):
    """The steps of a scheme, then the MLP: cls (B, 1, C), x (B, T, H, W, C) -> both."""

    def __init__(self, dim, heads, steps, drop_path):
        super().__init__()
        self.drop_path = drop_path
        self.steps = nn.ModuleDict()
        for step in steps:
            f = nn.ModuleDict({"norm": nn.LayerNorm(dim, 1e-6), "attn": Attention(dim, heads)})
            if step != steps[-1]:
                f["fc"] = nn.Linear(dim, dim)
            self.steps[step] = f
        self.norm2 = nn.LayerNorm(dim, 1e-6)
        self.mlp = nn.Sequential(nn.Linear(dim, 4*dim), nn.GELU(), nn.Linear(4*dim, dim))

    def drop(self, y):
        """In training drop path leaves out groups of y (B, G, n, C) at random."""
        return y * F.dropout(torch.ones_like(y[..., :1, :1]), self.drop_path, self.training)

    def forward(self, cls, x):
        for step, f in self.steps.items():
            groups = cut(x, step)  # (B, G, n, C)
            if "fc" in f:
                y = self.drop(f["attn"](f["norm"](groups)))
                x = x + paste(f["fc"](y), step, *x.shape[1:4])
            else:
                # The class token is in every group, and takes the mean of its answers.
                groups = torch.cat([cls[:, None].expand(-1, groups.shape[1], -1, -1), groups], 2)
                y = self.drop(f["attn"](f["norm"](groups)))
                cls = cls + y[:, :, 0].mean(1, keepdim=True)
                x = x + paste(y[:, :, 1:], step, *x.shape[1:4])

        # For the MLP all tokens are one group.
        tokens = torch.cat([cls, x.flatten(1, 3)], dim=1)[:, None]  # (B, 1, 1 + T H W, C)
        tokens = tokens + self.drop(self.mlp(self.norm2(tokens)))
        return tokens[:, 0, :1], tokens[:, 0, 1:].view_as(x)


def nearest(table, *size):
    """(1, entries, C) -> (1, *size, C), the nearest entries: of a line (T), or a square (H, W)."""
    side = round(table.shape[1]**(1/len(size)))
    if side**len(size) != table.shape[1]:
        raise ValueError(f"pos_embed does not fit this network: {table.shape[1]} is no square")
    table = table.unflatten(1, (side,) * len(size)).movedim(-1, 1)
    return F.interpolate(table, size, mode="nearest").movedim(1, -1)


class TimeSformer(nn.Module):
    """scheme: steps joined by +. num_classes=0: no head. drop_path: the last block's, from 0 on."""

    image_lacks = r"\.fc\.|^time_embed$"  # our_names gives it all else

    def __init__(self, num_classes=400, num_frames=8, image_size=224, patch=16, dim=768, depth=12,
                 heads=12, scheme="time+space", drop_path=0.1):
        super().__init__()
        if image_size % patch or dim % heads:
            raise ValueError(f"{patch=} must divide {image_size=}, {heads=} must divide {dim=}")
        self.num_frames = num_frames
        self.image_size = image_size
        self.grid = image_size // patch
        self.steps = scheme.split("+")
        for step in self.steps:
            window(step, num_frames, self.grid, self.grid)  # raises for what cannot be
            if self.steps.count(step) > 1:
                raise ValueError(f"{scheme=}: each step once")

        self.patch_embed = nn.Conv2d(3, dim, patch, stride=patch)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + self.grid**2, dim))
        times = nn.Parameter(torch.empty(1, num_frames, dim))
        self.time_embed = None if scheme == "space" else times
        self.blocks = nn.ModuleList(Block(dim, heads, self.steps, rate)
                                    for rate in drop_path_rates(drop_path, depth))
        self.norm = nn.LayerNorm(dim, 1e-6)
        self.head = nn.Linear(dim, num_classes) if num_classes else nn.Identity()

        # With fc and times zero it starts as a ViT that sees each frame alone.
        for name, weight in self.named_parameters():
            if name.endswith(("bias", ".fc.weight", "time_embed")):
                nn.init.zeros_(weight)
            elif weight.ndim > 1:
                nn.init.trunc_normal_(weight, std=0.02)

    def our_names(self, state):
        """Released names, Hugging Face's, an image ViT's -> ours; tables in our size."""
        *first, last = self.steps
        state = rename(state, (
            (r"^(model|timesformer)\.(embeddings\.|encoder\.)?", ""),
            (r"^(pos|time)(ition)?_embeddings$", r"\1_embed"),
            (r"^patch_embed(dings\.projection|\.proj)\.", "patch_embed."),
            (r"^layer\.", "blocks."),
            (r"\.(temporal_)?attention\.attention\.qkv\.", r".\1attn.qkv."),
            (r"\.(temporal_)?attention\.output\.dense\.", r".\1attn.proj."),
            (r"\.temporal_(norm1|layernorm)\.", ".steps.time.norm."),
            (r"\.temporal_attn\.", ".steps.time.attn."),
            (r"\.temporal_(fc|dense)\.", ".steps.time.fc."),
            (r"\.(norm1|layernorm_before)\.", f".steps.{last}.norm."),
            (r"^(blocks\.\d+)\.attn\.", rf"\1.steps.{last}.attn."),
            (r"\.layernorm_after\.", ".norm2."),
            (r"\.(mlp\.fc1|intermediate\.dense)\.", ".mlp.0."),
            (r"\.(mlp\.fc2|output\.dense)\.", ".mlp.2."),
            (r"^layernorm\.", "norm."),
            (r"^classifier\.", "head."),
        ))
        # An image ViT has one attention: all steps start with it.
        for step in first:
            if not any(f".steps.{step}." in name for name in state):
                state |= {name.replace(f".steps.{last}.", f".steps.{step}."): weight
                          for name, weight in state.items()}
        # Tables, as in forward. (The released loader takes the places for a line: not the same.)
        places, times = state.get("pos_embed"), state.get("time_embed")
        if "cls_token" in state and torch.is_tensor(places) and places.ndim == 3:
            square = nearest(places[:, 1:], self.grid, self.grid).flatten(1, 2)
            state["pos_embed"] = torch.cat([places[:, :1], square], dim=1)
        if torch.is_tensor(times) and times.ndim == 3:
            state["time_embed"] = nearest(times, self.num_frames)
        return state

    def forward(self, clip):
        """clip: (B, 3, T, H, W), normalised -> (B, num_classes)."""
        B, _, T, _, _ = clip.shape
        x = self.patch_embed(clip.transpose(1, 2).flatten(0, 1))  # (B*T, C, H, W), of tokens now
        x = x.unflatten(0, (B, T)).movedim(2, -1)  # (B, T, H, W, C)
        x = x + nearest(self.pos_embed[:, 1:], *x.shape[2:4])[:, None]

        # Without time each frame is a clip of its own.
        if self.time_embed is None:
            x = x.flatten(0, 1)[:, None]  # (B*T, 1, H, W, C)
        else:
            x = x + nearest(self.time_embed, T)[:, :, None, None]
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)  # one per clip
        for block in self.blocks:
            cls, x = block(cls, x)
        if self.time_embed is None:
            cls = cls.unflatten(0, (B, T)).mean(1)
        return self.head(self.norm(cls)[:, 0])


MODELS |= {  # K400 top-1 of the released files, 1x3 views | ours
    "timesformer": dict(trunk=TimeSformer),  # 77.9 | not run
    "timesformer-hr": dict(trunk=TimeSformer, num_frames=16, image_size=448),  # 79.6 | not run
    "timesformer-l": dict(trunk=TimeSformer, num_frames=96),  # 80.6 | not run
    "timesformer_toy": dict(trunk=TimeSformer, image_size=64, dim=64, depth=2, heads=2,
                            drop_path=0.0, num_classes=8),
}

# As released, but for the cosine.
K400 = dict(epochs=15.0, warmup=0.0, batch_size=8, base_lr=0.005, lr_batch=0, min_lr=0.0,
            weight_decay=1e-4, clip_grad=0.0, sampling="dense", views="1x3", crop="short_side",
            crop_range=(256/224, 320/224), jitter=0.0, grey=0.0, mean=(0.45, 0.45, 0.45),
            std=(0.225, 0.225, 0.225), mixup=0.0, cutmix=0.0, smoothing=0.0)
SSV2 = K400 | dict(sampling="tsn", flip=0.0)  # classes say left and right
HR = dict(interval=16, crop_range=(448/448, 512/448))
for name, own in (("", dict(interval=32)), ("-hr", HR), ("-l", dict(interval=4))):
    train.RECIPES["timesformer" + name] = {"toy": train.LVT_TOY, "own": train.OWN,
                                           "k400": K400 | own, "ssv2": SSV2 | own}

if __name__ == "__main__":
    train.main()
