"""
Video Swin: attention within small windows, which move by half a window in every other block.

Attention over all N tokens of a clip takes N^2 products. Here a token meets only the n = 8 * 7 * 7
tokens of its window (t, h, w), so that the cost grows with N. What lies on both sides of a border
would never meet; so every second block moves all borders by half a window, (4, 3, 3).

    y_i = sum_j a_ij v_j,   a_ij = softmax_j(q_i . k_j / sqrt(d) + bias[i - j] + mask_ij)

    i, j    tokens of the same window; all of this for each head, of d channels
    bias    a learned number for each offset in t, h, w: all that a token knows of its position
    mask    0, or -100 for two tokens that only the roll has made neighbours

To move borders the clip is rolled; along one axis, 8 tokens, windows of 4:

    | 0 1 2 3 | 4 5 6 7 |   ->   | 2 3 4 5 | 6 7 0 1 |   6 7 and 0 1 are far apart: masked

    clip     (B, 3, T, H, W)          32 frames of 224 x 224
    stem     (B, T/2, H/4, W/4, C)    2 x 4 x 4 pixels are a token: 16 x 56 x 56 of them
    stages   the same, then (B, T/2, H/8, W/8, 2C), and so on: 2 x 2 tokens become one
    logits   (B, num_classes)         norm, mean over all tokens, Linear

Cost in multiply-adds, a token and block: 12 C^2 + 2 n C, where n = 392; without windows 12 C^2 +
2 N C, where N = 50,176 in the first stage.

Often said, and wrong: the shift is half of the window, not of the clip; windows tile the clip, they
do not stand on its diagonal; no stage shortens T. "84.9 % with 604 G" is two networks: Swin-L has
83.1 on Kinetics-400 with 604 G at 224 pixels, and 84.9 with 2,107 G at 384.
Where copies go wrong:
  - zeros fill up the last windows after the norm, before qkv: they become keys, and are not masked;
  - an axis that fits into one window has a window of its own length, and no shift; others still do.
    Its offsets are those of the first tokens of the full window: right if only t is shorter, else
    not the true ones. Kept, it is what the weights know;
  - tokens merge in the order (0,0), (1,0), (0,1), (1,1) of (row, column);
  - LayerNorm has eps 1e-5, GELU is the exact one. torchvision's G are for 16 frames.

Source: Liu et al. 2021, arXiv:2106.13230, and its code; torchvision, the same network. Weights of
both: swin3d_{t,s,b}*.pth, swin_*_patch244_window877_*.pth; to start from: the authors' image
networks, swin_*_patch4_window7_224.pth.
Run it from the repository's root:  python -m zoo.video_swin --model swin_toy
    python -m zoo.video_swin --model swin_t --data k400 --root DIR --init swin3d_t.pth --eval
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

import train
from backbone import MODELS, Block, PatchEmbed, drop_path_rates, rename


def pad_to(x, window):
    """(B, T, H, W, C) with zeros at the end of T, H and W, so that whole windows fill it."""
    t, h, w = (-n % size for n, size in zip(x.shape[1:4], window))
    return F.pad(x, (0, 0, 0, w, 0, h, 0, t))  # F.pad counts axes from the last


def cut(x, window):
    """(B, T, H, W, C) -> (B, windows, n, C), n = t h w: a window is a small clip of its own."""
    B, T, H, W, C = x.shape
    t, h, w = window
    x = x.reshape(B, T//t, t, H//h, h, W//w, w, C)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(B, -1, t*h*w, C)


def paste(x, window, size):
    """(B, windows, n, C) -> (B, T, H, W, C), size = (T, H, W): back from `cut`."""
    T, H, W = size
    t, h, w = window
    x = x.reshape(len(x), T//t, H//h, W//w, t, h, w, -1)
    return x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(len(x), T, H, W, -1)


def offsets(window):
    """(n, n): which row of the bias table belongs to tokens i and j of a window."""
    t, h, w = window
    place = torch.cartesian_prod(torch.arange(t), torch.arange(h), torch.arange(w))  # (n, 3)
    dt, dh, dw = (place[:, None] - place).unbind(-1)  # -(t-1) .. t-1, and so on

    # The three offsets, from 0 on, are the digits of one number.
    return ((dt + t-1) * (2*h-1) + dh + h-1) * (2*w-1) + dw + w-1


def shift_mask(size, window, shift, device):
    """(windows, 1, n, n): -100 where one token came round an end and the other did not, else 0."""
    # A bit for each axis: the last `shift` places of the rolled axis came round.
    t, h, w = (torch.arange(n, device=device) >= n - s for n, s in zip(size, shift))
    came = 4*t[:, None, None] + 2*h[:, None] + 1*w  # (T, H, W)
    came = cut(came[None, ..., None], window)[0]  # (windows, n, 1)
    return -100.0 * (came != came.transpose(-2, -1))[:, None]


class WindowAttention(nn.Module):
    """(B, T, H, W, dim) -> same, any T, H, W. window: (t, h, w); shift: by half of it."""

    def __init__(self, dim, heads, window, shift):
        super().__init__()
        self.heads = heads
        self.window = window
        self.shift = [n // 2 if shift else 0 for n in window]
        self.qkv = nn.Linear(dim, 3*dim)
        self.proj = nn.Linear(dim, dim)

        # Called .._embed, so that AdamW does not decay it: as released.
        t, h, w = window
        self.offset_embed = nn.Parameter(torch.zeros((2*t-1) * (2*h-1) * (2*w-1), heads))
        self.register_buffer("index", offsets(window), persistent=False)

    def forward(self, x):
        """x: (B, T, H, W, C) -> same."""
        T, H, W, C = x.shape[1:]

        # An axis that fits into one window has nothing to shift.
        window = [min(n, size) for n, size in zip((T, H, W), self.window)]
        shift = [s if n > size else 0 for n, size, s in zip((T, H, W), self.window, self.shift)]

        # Whole windows, with other borders.
        x = pad_to(x, window)
        size = x.shape[1:4]
        x = x.roll([-s for s in shift], (1, 2, 3))
        x = cut(x, window)  # (B, windows, n, C)

        # What is added to the scores. A smaller window takes the corner of the index: see above.
        n = x.shape[2]
        bias = self.offset_embed[self.index[:n, :n]].permute(2, 0, 1)  # (heads, n, n)
        if any(shift):
            bias = bias + shift_mask(size, window, shift, x.device)  # (windows, heads, n, n)

        # Attention, in each window and head on its own.
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5)  # (B, windows, heads, n, d) each
        a = (q * q.shape[-1]**-0.5) @ k.transpose(-2, -1) + bias
        y = a.softmax(-1) @ v
        y = self.proj(y.transpose(2, 3).flatten(-2))  # (B, windows, n, C)

        # Everything back to its place, without what was padded.
        y = paste(y, window, size).roll(shift, (1, 2, 3))
        return y[:, :T, :H, :W]


class Merge(nn.Module):
    """2 x 2 tokens become one: (B, T, H, W, C) -> (B, T, H/2, W/2, 2C), rounded up."""

    def __init__(self, dim):
        super().__init__()
        self.norm = nn.LayerNorm(4*dim)
        self.reduction = nn.Linear(4*dim, 2*dim, bias=False)

    def forward(self, x):
        x = pad_to(x, (1, 2, 2))
        x = torch.cat([x[:, :, 0::2, 0::2], x[:, :, 1::2, 0::2],
                       x[:, :, 0::2, 1::2], x[:, :, 1::2, 1::2]], dim=-1)
        return self.reduction(self.norm(x))


class VideoSwin(nn.Module):
    """
    (B, 3, T, H, W) -> (B, num_classes), any T, H, W; num_frames and image_size say what it is for.
    dim: channels of the first stage; depths, heads: blocks of each stage, and their heads.
    """

    def __init__(self, num_classes=400, num_frames=32, image_size=224, dim=96, depths=(2, 2, 6, 2),
                 heads=(3, 6, 12, 24), window=(8, 7, 7), drop_path=0.1, dropout=0.5):
        super().__init__()
        self.num_frames = num_frames
        self.image_size = image_size
        self.window = window
        self.patch_embed = PatchEmbed(3, dim, kernel=4, stride=4, tubelet=2)

        # Every second block of a stage is shifted. Block: x + window(norm(x)), x + mlp(norm(x)).
        rates = drop_path_rates(drop_path, sum(depths))
        self.layers = nn.ModuleList()
        for s, depth in enumerate(depths):
            c = dim * 2**s
            blocks = nn.ModuleList()
            for i in range(depth):
                attention = WindowAttention(c, heads[s], window, shift=i % 2 == 1)
                blocks.append(Block(c, {"window": attention}, drop_path=rates.pop(0)))
            self.layers.append(nn.ModuleDict({"blocks": blocks}))
            if s < len(depths) - 1:
                self.layers[s]["downsample"] = Merge(c)

        # The end, and the start values of Linear layers and tables. Released biases start at 0.
        self.norm = nn.LayerNorm(c)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(c, num_classes) if num_classes else nn.Identity()
        for p in self.parameters():
            if p.ndim == 2:
                nn.init.trunc_normal_(p, std=0.02)

    def our_names(self, state):
        """Names of torchvision, the authors' video and image networks -> ours, which pass."""
        state = rename(state, (
            (r"^(backbone|cls_head)\.", ""),
            (r"^fc_cls\.", "head."),
            # torchvision counts stages and merges in one row.
            (r"^features\.([0246])", lambda match: f"layers.{int(match[1]) // 2}.blocks"),
            (r"^features\.([135])", lambda match: f"layers.{int(match[1]) // 2}.downsample"),
            (r"\.norm1\.", ".window.norm."),
            (r"\.attn\.", ".window.f."),
            (r"\.relative_position_bias_table$", ".offset_embed"),
            (r"\.norm2\.", ".mlp.norm."),
            (r"\.mlp\.(0|fc1)\.", ".mlp.f.fc1."),
            (r"\.mlp\.(3|fc2)\.", ".mlp.f.fc2."),
        ))
        t, h, w = self.window
        ours = {}
        for name, value in state.items():
            # An image network has offsets in h and w: the same for each of the 2t - 1 in time.
            if name.endswith("offset_embed") and len(value) == (2*h-1) * (2*w-1):
                value = value.repeat(2*t-1, 1)
            if not name.endswith(("relative_position_index", "attn_mask")):  # computed here
                ours[name] = value
        return ours

    def forward(self, clip):
        """clip: (B, 3, T, H, W), normalised -> (B, num_classes)."""
        x = clip.permute(0, 2, 3, 4, 1)  # channels-last
        x = self.patch_embed(pad_to(x, (2, 4, 4)))  # (B, T/2, H/4, W/4, dim)
        for stage in self.layers:
            for block in stage["blocks"]:
                x = block(x)
            if "downsample" in stage:
                x = stage["downsample"](x)
        x = self.norm(x).mean((1, 2, 3))  # (B, C)
        return self.head(self.dropout(x))


# Kinetics-400 top-1, 32 frames, every second, 4x3 views: the authors' | ours
MODELS |= {
    "swin_t": dict(trunk=VideoSwin),  # 78.8 | not run
    "swin_s": dict(trunk=VideoSwin, depths=(2, 2, 18, 2)),  # 80.6 | not run
    "swin_b": dict(trunk=VideoSwin, dim=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32),
                   drop_path=0.3),  # 80.6, from ImageNet-22K 82.7 | not run
    # Ours, for the toy data: two stages, 4 x 16 x 16 and 4 x 8 x 8 tokens.
    "swin_toy": dict(trunk=VideoSwin, num_classes=8, num_frames=8, image_size=64, dim=32,
                     depths=(2, 2), heads=(2, 4), window=(2, 4, 4), drop_path=0.0, dropout=0.0),
}

# As released; mean and std are the defaults. But: theirs are frames 0, 2, .. 62 (torchvision: 15 a
# second, whatever the video's rate; 12 clips, 1 crop), from the middles of 4 equal parts; the head
# learns ten times as fast as the rest, from image weights; weight_decay is 0.05 for swin_b.
K400 = dict(sampling="dense", interval=2, views="4x3", epochs=30.0, warmup=2.5/30, warmup_lr=0.1,
            min_lr=0.0, optimizer="adamw", base_lr=1e-4, lr_batch=64, weight_decay=0.02,
            clip_grad=0.0, jitter=0.0, grey=0.0, mixup=0.0, cutmix=0.0, smoothing=0.0)
train.RECIPES["swin"] = {"toy": train.LVT_TOY, "own": train.OWN, "k400": K400,
                         "ssv2": K400 | dict(flip=0.0)}

if __name__ == "__main__":
    train.main()
