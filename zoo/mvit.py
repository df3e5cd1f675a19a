"""
MViT: attention that pools its queries, keys and values, so that tokens become fewer and wider.

A ViT has the same tokens in every block. A convolutional network begins with many narrow ones, for
detail, and ends with few wide ones, for meaning. Here attention itself takes such steps:

    q, k, v = P_q(x W_q), P_k(x W_k), P_v(x W_v)    P: depthwise 3x3x3 convolution, then LayerNorm
    y = softmax(q k^T / sqrt(d)) v                            version 1
    y = softmax(q k^T / sqrt(d) + r) v + q                    version 2
    r_ij = q_i . (R_t[t_i - t_j] + R_h[h_i - h_j] + R_w[w_i - w_j])

    stage                  1       2       3       4    x: (B, 1 + T H W, C), from 16 frames
    T H W              8 56^2  8 28^2  8 14^2   8 7^2   the 1 is a class token: the logits' only one
    C                     96     192     384     768    heads of 96
    blocks                 1       2      11       2
    stride of P_k, P_v     8       4       2       1    in space, so that keys are always 8 x 7^2
    stride of P_q          1    2, 1    2, 1    2, 1    at 2 the residual adds a maximum of 3 x 3
Attention costs 2 N_q N_k C multiply-adds a block: in stage 1 a 64th of the usual 2 N^2 C.

Often said, and wrong: only space is pooled, 1 x 2 x 2; T halves once, in the stem. Queries are
pooled too. "32 frames, 70 G, 81.2 %": version 1, B, has 78.4 with 16 frames, 70 G, and 81.2 with 64
frames, 455 G. Version 2, L, has 86.1 with 40 frames, 2,828 G; 84.4 is version 2, B, on ImageNet.
Where copies go wrong:
  - P is one head wide, all heads share it; the class token skips its convolution, not its norm;
  - r takes q before it is divided by sqrt(d); the class token has neither r nor "+ q";
  - version 1 widens in the MLP of the block before a stage, version 2 in the attention of its first
    block. Either way the residual adds a Linear of the NORMALISED input;
  - where q and k have other strides, offsets are those of the finer grid, cut to whole numbers;
  - every LayerNorm has eps 1e-6. (The bias of P_k's has gradient 0: it moves a row's scores alike.)

Source: Fan et al. 2021, arXiv:2104.11227 (1); Li et al. 2021, arXiv:2112.01526 (2); the code
released with them, PySlowFast; torchvision, the same networks. Weights of both: mvit_v1_b-*.pth,
mvit_v2_s-*.pth, MViTv2_S_16x4_k400_*.pyth, mvit/k400.pyth (--num_frames 32 --interval 3).
Run it from the repository's root:  python -m zoo.mvit --model mvit_toy
    python -m zoo.mvit --model mvit_v2_s --data k400 --root DIR --init mvit_v2_s.pth --eval
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

import train
from backbone import MODELS, drop_path_rates, rename


def pool(f, x, size):
    """f, a pooling, on all tokens but the first: (B, 1 + N, C) -> fewer, their size."""
    patches = f(x[:, 1:].transpose(1, 2).unflatten(2, size))  # (B, C, T, H, W)
    return torch.cat([x[:, :1], patches.flatten(2).transpose(1, 2)], dim=1), patches.shape[2:]


class Pool(nn.Module):
    """P: (B, heads, 1 + N, d) -> fewer, and the new size; size: (T, H, W) of the N tokens."""

    def __init__(self, d, stride):
        super().__init__()
        self.conv = nn.Conv3d(d, d, 3, (1, stride, stride), padding=1, groups=d, bias=False)
        self.norm = nn.LayerNorm(d, 1e-6)

    def forward(self, x, size):
        y, size = pool(self.conv, x.flatten(0, 1), size)  # a head is a batch item
        return self.norm(y).unflatten(0, x.shape[:2]), size


def rows(table, q, k):
    """R of one axis, (offsets, d) -> (q, k, d): its row for each of q queries and k keys."""
    # As many offsets as the finer grid has; a table made for another size is stretched.
    n = 2 * max(q, k) - 1
    if len(table) != n:
        table = F.interpolate(table.T[None], n, mode="linear")[0].T

    # Places of the coarser grid are further apart. The smallest offset is row 0.
    i = torch.arange(q, device=table.device) * max(k / q, 1)
    j = (torch.arange(k, device=table.device) - (k - 1)) * max(q / k, 1)
    return table[(i[:, None] - j).long()]


def relative(q, tables, size, size_k):
    """r, (B, heads, N_q, N_k), for queries (B, heads, N_q, d); neither has a class token."""
    q = q.unflatten(2, size)  # (B, heads, T, H, W, d)
    R_t, R_h, R_w = (rows(*axis) for axis in zip(tables, size, size_k))
    t = torch.einsum("bnthwd,tkd->bnthwk", q, R_t)
    h = torch.einsum("bnthwd,hkd->bnthwk", q, R_h)
    w = torch.einsum("bnthwd,wkd->bnthwk", q, R_w)
    r = t[..., :, None, None] + h[..., None, :, None] + w[..., None, None, :]
    return r.flatten(5).flatten(2, 4)


class PoolingAttention(nn.Module):
    """(B, 1 + N, dim) -> (B, 1 + N_q, width), and the new size."""

    def __init__(self, dim, width, heads, size, stride, kv_stride, version):
        super().__init__()
        d = width // heads
        self.heads = heads
        self.version = version
        self.qkv = nn.Linear(dim, 3*width)
        self.proj = nn.Linear(width, width)
        self.pool_q = Pool(d, stride) if version == 2 or stride > 1 else None
        self.pool_k = Pool(d, kv_stride)
        self.pool_v = Pool(d, kv_stride)

        # R of version 2. Tables are called .._embed, so that AdamW does not decay them.
        if version == 2:
            offsets = 2 * (size[1] // min(stride, kv_stride)) - 1  # in the finer grid
            self.t_embed = nn.Parameter(torch.zeros(2*size[0] - 1, d))
            self.h_embed = nn.Parameter(torch.zeros(offsets, d))
            self.w_embed = nn.Parameter(torch.zeros(offsets, d))

    def forward(self, x, size):
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, 1 + N, d) each
        k, size_k = self.pool_k(k, size)
        v, _ = self.pool_v(v, size)
        if self.pool_q is not None:
            q, size = self.pool_q(q, size)

        # Version 2 adds something, but not for the class token, which is row and column 0.
        r = more = 0
        if self.version == 2:
            tables = self.t_embed, self.h_embed, self.w_embed
            r = F.pad(relative(q[:, :, 1:], tables, size, size_k), (1, 0, 1, 0))
            more = F.pad(q[:, :, 1:], (0, 0, 1, 0))
        a = (q * q.shape[-1]**-0.5) @ k.transpose(-2, -1) + r  # (B, heads, 1 + N_q, 1 + N_k)
        y = a.softmax(-1) @ v + more
        return self.proj(y.transpose(1, 2).flatten(2)), size


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): dim channels, then width, then out."""

    def __init__(self, dim, width, out, heads, size, stride, kv_stride, version, drop_path):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, 1e-6)
        self.attn = PoolingAttention(dim, width, heads, size, stride, kv_stride, version)
        self.norm2 = nn.LayerNorm(width, 1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, 4*width), nn.GELU(), nn.Linear(4*width, out))

        # What the residual needs where channels or tokens change; what leaves out a branch.
        self.project = nn.Linear(dim, out) if dim != out else None
        self.widens = "attention" if dim != width else "mlp" if width != out else "nowhere"
        self.shrink = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)) if stride > 1 else None
        self.drop = nn.Dropout(drop_path)

    def forward(self, x, size):
        one = x.new_ones(len(x), 1, 1)  # in training `drop` makes it 0 for some clips
        y = self.norm1(x)
        x = self.project(y) if self.widens == "attention" else x
        x = pool(self.shrink, x, size)[0] if self.shrink else x
        y, size = self.attn(y, size)
        x = x + self.drop(one) * y

        y = self.norm2(x)
        x = self.project(y) if self.widens == "mlp" else x
        return x + self.drop(one) * self.mlp(y), size


class MViT(nn.Module):
    """dim: channels of stage 1, and of a head; kv_stride: in stage 1. Version 1 has one size."""

    def __init__(self, num_classes=400, num_frames=16, image_size=224, version=2, dim=96,
                 depths=(1, 2, 11, 2), kv_stride=8, drop_path=0.2, dropout=0.5):
        super().__init__()
        if version not in (1, 2):
            raise ValueError(f"version={version}: there are 1 and 2")
        self.version = version
        self.num_frames = num_frames
        self.image_size = image_size
        T, H, W = self.size = num_frames // 2, image_size // 4, image_size // 4

        # Tokens, the class token, and, in version 1, where they are.
        self.patch_embed = nn.Conv3d(3, dim, (3, 7, 7), stride=(2, 4, 4), padding=(1, 3, 3))
        self.token_embed = nn.Parameter(torch.zeros(1, 1, dim))
        if version == 1:
            self.class_embed = nn.Parameter(torch.zeros(1, 1, dim))
            self.temporal_embed = nn.Parameter(torch.zeros(T, 1, dim))
            self.spatial_embed = nn.Parameter(torch.zeros(H*W, dim))

        # A block gets dim, width, out. Version 1 widens after its attention, version 2 before.
        widths = [dim * 2**s for s, depth in enumerate(depths) for _ in range(depth)]
        rates = drop_path_rates(drop_path, len(widths))
        self.blocks = nn.ModuleList()
        for i, width in enumerate(widths):
            before = widths[max(i - 1, 0)]
            after = widths[min(i + 1, len(widths) - 1)]
            dims = (width, width, after) if version == 1 else (before, width, width)
            heads = width // dim
            stride = 2 if width > before else 1
            self.blocks.append(Block(*dims, heads, (T, H, W), stride, max(1, kv_stride // heads),
                                     version, rates[i]))
            H = W = H // stride

        # The end, and the start values of Linear layers and tables. Released biases start at 0.
        self.norm = nn.LayerNorm(width, 1e-6)
        self.head = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(width, num_classes)) if num_classes else nn.Identity()
        for p in self.parameters():
            if p.ndim in (2, 3):
                nn.init.trunc_normal_(p, std=0.02)

    def our_names(self, state):
        """Names of torchvision's and PySlowFast's networks -> ours, which pass."""
        return rename(state, (
            (r"^(conv_proj|patch_embed\.proj)\.", "patch_embed."),
            (r"^(pos_encoding\.class|cls)_token$", "token_embed"),
            (r"^pos_(encoding\.|embed_)(class|temporal|spatial)(_pos)?$", r"\2_embed"),
            (r"\.rel_pos_([thw])$", r".\1_embed"),
            (r"^(blocks\.\d+)\.proj\.", r"\1.project."),
            (r"\.project\.0\.", ".proj."),
            (r"\.pool_([qkv])\.(pool\.)?weight$", r".pool_\1.conv.weight"),
            (r"\.(pool_([qkv])\.norm_act\.0|norm_([qkv]))\.", r".pool_\2\3.norm."),
            (r"\.mlp\.fc1\.", ".mlp.0."),
            (r"\.mlp\.(3|fc2)\.", ".mlp.2."),
            (r"^head\.projection\.", "head.1."),
        ))

    def forward(self, clip):
        """clip: (B, 3, T, H, W), normalised -> (B, num_classes)."""
        x = self.patch_embed(clip)  # (B, dim, T/2, H/4, W/4)
        size = tuple(x.shape[2:])
        x = x.flatten(2).transpose(1, 2)  # (B, N, dim)
        token = self.token_embed
        if self.version == 1:
            if size != self.size:
                raise ValueError(f"{size} tokens: version 1 is for {self.size}, T/2, H/4, W/4")
            x = x + (self.temporal_embed + self.spatial_embed).flatten(0, 1)
            token = token + self.class_embed
        x = torch.cat([token.expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            x, size = block(x, size)
        return self.head(self.norm(x)[:, 0])


# Kinetics-400 top-1, 16 frames, every fourth, 5x1 views: torchvision's | ours
MODELS |= {
    "mvit_v1_b": dict(trunk=MViT, version=1),  # 78.5 | not run
    "mvit_v2_s": dict(trunk=MViT, version=2),  # 80.8 | not run
    "mvit_toy": dict(trunk=MViT, num_classes=8, num_frames=8, image_size=64, dim=32, depths=(1, 2),
                     kv_stride=4, drop_path=0.0, dropout=0.0),  # ours, for the toy data
}

# As released, but: theirs are 7.5 frames a second, whatever the video's rate; the last of 5 clips
# ends with the video; RandAugment, not AutoAugment; 16 videos a step, each twice.
K400 = dict(sampling="dense", interval=4, views="5x1", mean=(0.45,) * 3, std=(0.225,) * 3,
            epochs=200.0, warmup=30/200, optimizer="adamw", base_lr=1e-4, lr_batch=32,
            weight_decay=0.05, clip_grad=1.0, jitter=0.0, grey=0.0, auto_augment=True, erase=0.25)
train.RECIPES["mvit"] = {"toy": train.LVT_TOY, "own": train.OWN, "k400": K400,
                         "ssv2": K400 | dict(flip=0.0)}

if __name__ == "__main__":
    train.main()
