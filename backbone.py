"""
The networks: a video clip in, class scores out.

One block serves them all: residual branches, one after the other.

    x = x + mixer(norm(x))        for each of its mixers: mixes tokens
    x = x + mlp(norm(x))          acts on each token alone

The mixer defines the network: focal modulation (focal.py) mixes space and time at once; attention
(linear_attn.py) usually has two mixers, along time first, then across space. Two trunks take
either:

    Pyramid  Video-FocalNet
        clip     (B, 3, T, H, W)         8 frames of 224 x 224
        stem     (B, T, H/4, W/4, C)     a 4 x 4 convolution with stride 4: 56 x 56 tokens a frame
        stage 1  (B, T, H/4, W/4, C)     blocks (H/patch: 4 is the default)
        stage 2  (B, T, H/8, W/8, 2C)    half as many tokens each way, twice the channels; blocks
        ...      norm, mean over T, H, W, Linear  ->  logits (B, num_classes)

    Plain    Linear Video Transformer
        clip     (B, 3, T, H, W)         16 frames of 224 x 224
        tokens   (B, T, 17, 17, C)       patches of 16 x 16, stride 14; plus an embedding of time
        blocks   (B, T, 17, 17, C)       12 of them, all of one size
                 norm, mean over T, H, W, MLP  ->  logits (B, num_classes)

Inside, everything is channels-last: (B, T, H, W, C). Almost no layer knows H and W (Linformer's
does, its weights are one per token), and there is no position embedding in space: position enters
through the zero padding of convolutions and shifts only (and cosFormer's index).

Sources: Wasim et al. 2023, arXiv:2307.06947 (Video-FocalNet); Yang et al. 2022, arXiv:2203.11926
(FocalNet); "Linear Video Transformer with Feature Fixation", arXiv:2210.08164.
Try it: python backbone.py            every preset with its parameters and multiply-adds, 10 s
        python backbone.py --scale    time and memory against frames and pixels, and a plot
"""
import collections
import concurrent.futures
import copy
import inspect
import multiprocessing
import os
import re
import sys
import time
import zipfile

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from focal import SpatioTemporalFocalModulation, across_both, across_space
from linear_attn import Attention


# --------------------------------------------------- the parts: embedding, MLP, block

class PatchEmbed(nn.Module):
    """
    Strided convolution, then LayerNorm: the stem, and the step from one stage to the next.
    (B, T, H, W, C) -> (B, T / tubelet, H / stride, W / stride, dim).
    """

    def __init__(self, in_dim, dim, kernel, stride, padding=0, tubelet=1, norm=True):
        super().__init__()
        # A tubelet of frames becomes one: then the convolution is 3-d.
        if tubelet == 1:
            self.proj = nn.Conv2d(in_dim, dim, kernel, stride, padding)
        else:
            self.proj = nn.Conv3d(in_dim, dim, (tubelet, kernel, kernel),
                                  stride=(tubelet, stride, stride),
                                  padding=(0, padding, padding))
        self.norm = nn.LayerNorm(dim) if norm else nn.Identity()

    def forward(self, x):
        if isinstance(self.proj, nn.Conv2d):
            x = across_space(self.proj, x)
        else:
            x = across_both(self.proj, x)
        return self.norm(x)


class Mlp(nn.Module):
    """
    Linear to four times the width, GELU, Linear back: (B, T, H, W, dim) -> same. With dwconv a
    depthwise 3x3 convolution stands before the GELU; its padding tells a token where it is.
    """

    def __init__(self, dim, dwconv=False):
        super().__init__()
        self.fc1 = nn.Linear(dim, 4*dim)
        self.dwconv = nn.Conv2d(4*dim, 4*dim, 3, padding=1, groups=4*dim) if dwconv else None
        self.fc2 = nn.Linear(4*dim, dim)

    def forward(self, x):
        x = self.fc1(x)  # (B, T, H, W, 4 dim)
        if self.dwconv is not None:
            x = across_space(self.dwconv, x)
        return self.fc2(F.gelu(x))


def drop_branch(y, rate, per_frame):
    """
    Leaves a branch out at random: y (B, T, H, W, C) -> y / (1 - rate) with probability 1 - rate,
    else 0, drawn for each clip, or for each frame of each clip. The mean stays y, so that
    evaluation needs no factor. Source: arXiv:1603.09382.
    """
    # The rest of the shape is one: a branch is left out for all tokens and channels alike.
    B, T = y.shape[:2]
    draw = torch.rand(B, T if per_frame else 1, 1, 1, 1, device=y.device)
    kept = draw >= rate
    return y * kept / (1 - rate)


class Block(nn.Module):
    """
    x = x + mixer(norm(x)) for each of its mixers, then x = x + mlp(norm(x)), (B, T, H, W, dim).

    mixers       a list of modules, (B, T, H, W, dim) -> same; with return_maps=True also a dict of
                 what there is to look at: modulators and gates, or q, k and fixation
    drop_path    probability that a branch is left out in training
    per_frame    draw it for each frame of a clip, not for each clip (released Video-FocalNet)
    postln       x + norm(branch(x)), not x + branch(norm(x))
    layerscale   a learned factor per channel and branch, from 1e-4

    Where the released names fit, they are kept: norm2, mlp, gamma_2.
    """

    def __init__(self, dim, mixers, dwconv=False, drop_path=0.0, per_frame=False, postln=False,
                 layerscale=False, eps=1e-5):
        super().__init__()
        self.drop_path = drop_path
        self.per_frame = per_frame
        self.postln = postln

        # Each branch has a norm, and maybe a layer scale, of its own: without layer scale there is
        # no parameter for it.
        self.norms = nn.ModuleList(nn.LayerNorm(dim, eps) for _ in mixers)
        self.mixers = nn.ModuleList(mixers)
        self.norm2 = nn.LayerNorm(dim, eps)
        self.mlp = Mlp(dim, dwconv)
        if layerscale:
            self.gammas = nn.ParameterList(torch.full((dim,), 1e-4) for _ in mixers)
            self.gamma_2 = nn.Parameter(torch.full((dim,), 1e-4))
        else:
            self.gammas = [None for _ in mixers]
            self.gamma_2 = None

    def scaled(self, y, norm, gamma):
        """What is added to x: y after post-norm, layer scale and drop path, where they are on."""
        if self.postln:
            y = norm(y)
        if gamma is not None:
            y = gamma * y
        if self.training and self.drop_path > 0:
            y = drop_branch(y, self.drop_path, self.per_frame)
        return y

    def forward(self, x, maps=None):
        """x: (B, T, H, W, dim) -> same. `maps`: a list that receives the dict of each mixer."""
        # The mixers, one after the other.
        for mixer, norm, gamma in zip(self.mixers, self.norms, self.gammas):
            y = x if self.postln else norm(x)
            if maps is None:
                y = mixer(y)
            else:
                y, shown = mixer(y, return_maps=True)
                maps.append(shown)
            x = x + self.scaled(y, norm, gamma)

        # The MLP: each token on its own.
        y = self.mlp(x if self.postln else self.norm2(x))
        return x + self.scaled(y, self.norm2, self.gamma_2)


def drop_path_rates(last, blocks):
    """Drop path of each block: linear from 0 at the first to `last` at the last."""
    return [last * i / max(blocks - 1, 1) for i in range(blocks)]


def attention_mixers(dim, pattern, temporal_shift, spatial_shift, **options):
    """
    The attentions of a block, one for each word of a pattern:
        'time+space'           divided, as released; 'space+time' is the paper's text
        'time+height+width'    axial: three lines through a token
        'window+grid'          near, then far at the same place of all windows (TimeSformer's
                               local-global, MaxViT)
        'joint', 'space'       one attention; 'time|space' one as well, with its heads split
    The words are those of linear_attn.AXES.

    The shifts are crossed, as released: an attention gets the shift along what it does not see.
    Attention across space gets the temporal one, so that its keys bring something of the frames
    around; attention along time the spatial one; joint attention, which sees everything, both.
    'space' with the temporal shift alone is XViT's window of three frames (arXiv:2106.05968).
    Raises ValueError for an unknown word.
    """
    # One after the other, as the block adds them; each has weights of its own.
    mixers = []
    for word in pattern.split("+"):
        mixers.append(Attention(dim, pattern=word,
                                temporal_shift=0 if word == "time" else temporal_shift,
                                spatial_shift=0 if word == "space" else spatial_shift,
                                **options))
    return mixers


def pattern_of_blocks(pattern, blocks, temporal_shift=0, spatial_shift=0):
    """
    'time+space' -> the same for all blocks; a list, or 'space,space,time', has one for each. Raises
    ValueError for another number, and for a shift that no word takes.
    """
    # One for all, or a list.
    patterns = pattern.split(",") if isinstance(pattern, str) else list(pattern)
    if len(patterns) == 1:
        patterns = patterns * blocks
    if len(patterns) != blocks:
        raise ValueError(f"pattern={pattern!r}: one pattern, or one for each of {blocks} blocks")

    # Attention along time takes no temporal shift, attention across space no spatial one: if there
    # is nothing else in the network, the shift would be dropped in silence.
    words = set("+".join(patterns).split("+"))
    for name, shift, word in (("temporal_shift", temporal_shift, "time"),
                              ("spatial_shift", spatial_shift, "space")):
        if shift and words == {word}:
            raise ValueError(f"pattern={pattern!r} with {name}={shift}: that shift is for an "
                             f"attention that does not see all of {word}; set {name}=0")
    return patterns


def mean_around(x):
    """(B, C, T, H, W) -> same: the mean of 3x3x3 tokens, of those that there are at a border."""
    # Sums with zeros around, divided by how many of the 27 are inside.
    total = F.avg_pool3d(F.pad(x, (1, 1, 1, 1, 1, 1)), 3, stride=1)
    share = F.avg_pool3d(F.pad(torch.ones_like(x[:1, :1]), (1, 1, 1, 1, 1, 1)), 3, stride=1)
    return total / share


class Baseline(nn.Module):
    """
    What the ideas have to beat, in the mixer's place, (B, T, H, W, dim) -> same. kind:
        'conv3d'        a dense 3x3x3 convolution: the role of C3D and R3D. 27 C^2 a token
        'conv2plus1d'   1x3x3, GELU, 3x1x1: R(2+1)D (arXiv:1711.11248). 12 C^2 a token
        'pool'          the mean of 3x3x3 tokens minus the token: MetaFormer's floor
                        (arXiv:2111.11418). No parameters
    """

    def __init__(self, dim, kind):
        super().__init__()
        # All keep T, H, W: they pad by one.
        if kind == "conv3d":
            self.conv = nn.Conv3d(dim, dim, 3, padding=1)
        elif kind == "conv2plus1d":
            self.conv = nn.Sequential(nn.Conv3d(dim, dim, (1, 3, 3), padding=(0, 1, 1)), nn.GELU(),
                                      nn.Conv3d(dim, dim, (3, 1, 1), padding=(1, 0, 0)))
        elif kind == "pool":
            self.conv = mean_around
        else:
            raise ValueError(f"mixer={kind!r}: use 'focal', 'attention', {', '.join(BASELINES)}")
        self.kind = kind

    def forward(self, x, return_maps=False):
        # What the token has already, the residual adds.
        y = across_both(self.conv, x)
        if self.kind == "pool":
            y = y - x
        return (y, {}) if return_maps else y


BASELINES = ("conv3d", "conv2plus1d", "pool")


# --------------------------------------------------- the trunks

class Pyramid(nn.Module):
    """
    Stages of blocks; between two stages the image shrinks by 2 each way, the channels double.

    num_classes      size of the output; 0 = no head: the output is the pooled feature
    num_frames, image_size    what it is for; mixer='focal' runs any T, H, W that the strides divide
    patch            side of the square that becomes a token, pixels
    dim, depths      channels of the first stage; blocks of each stage, as many stages as numbers
    levels, windows  of focal modulation, one number for all stages or one for each
    tubelet          frames that the stem merges into one; its convolution is 3-d if more than 1
    conv_embed       overlapping convolutions (7x7 stem, 3x3 between stages), not disjoint patches
    layerscale, postln, drop_path    see Block; drop_path is the last block's, rising from 0
    postln_in_modulation, normalize_modulator, global_level, temporal, spatial, design, fusion
                     see focal.py
    weight_init      'released': Linear N(0, .02^2) with biases 0, the rest as torch does it, h and
                     h_temporal too (they are convolutions there). A start for image weights: from
                     nothing it hardly learns, with SGD not at all, as q * m_s * m_t is a product
                     of three small terms and each gradient holds two of them.
                     'scratch': Linear N(0, 1/fan_in), biases of h and h_temporal one: modulators
                     that start around one let the gradient pass.
    mixer            'focal', 'attention', or one of Baseline's kinds
    kernel, heads, pattern, window, shifted, kv_pool    of attention. heads: of the first stage,
                     they double as the channels do; pattern: see attention_mixers, one for all
                     blocks or one for each; shifted: in every second block; the rest: see
                     linear_attn.py. The fixation and the shifts are the Linear Video Transformer's.
    """

    def __init__(self, num_classes=400, num_frames=8, image_size=224, patch=4, dim=96,
                 depths=(2, 2, 6, 2), levels=2, windows=3, tubelet=1, conv_embed=False,
                 layerscale=False, postln=False, postln_in_modulation=False,
                 normalize_modulator=False, global_level=True, drop_path=0.2, temporal=True,
                 spatial=True, design="parallel", fusion="multiply", weight_init="released",
                 mixer="focal", kernel="relu", pattern="time+space", window=(1, 1, 1),
                 shifted=False, kv_pool=(1, 1, 1), heads=3):
        super().__init__()
        # Sizes; the stride of the last stage has to divide the image, so that no token is cut.
        check_stem(patch, tubelet, conv_embed)
        stages = len(depths)
        levels = per_stage("levels", levels, stages)
        windows = per_stage("windows", windows, stages)
        self.num_classes = num_classes
        self.num_frames = num_frames
        self.image_size = image_size
        self.tubelet = tubelet
        self.stride = patch * 2**(stages - 1)
        self.check(num_frames, image_size, image_size)

        # The stem: pixels -> tokens.
        if conv_embed:
            self.patch_embed = PatchEmbed(3, dim, kernel=7, stride=4, padding=2)
        else:
            self.patch_embed = PatchEmbed(3, dim, kernel=patch, stride=patch, tubelet=tubelet)

        # The stages; between two of them the side halves and the channels double. All have the same
        # kind of mixer; heads double with the channels, so that their width stays.
        rates = drop_path_rates(drop_path, sum(depths))
        patterns = pattern_of_blocks(pattern, sum(depths))
        self.layers = nn.ModuleList()
        for s in range(stages):
            c = dim * 2**s
            side = image_size // patch // 2**s
            blocks = nn.ModuleList()
            for i in range(depths[s]):
                if mixer == "focal":
                    mixers = [SpatioTemporalFocalModulation(
                        c, levels=levels[s], window=windows[s], temporal=temporal,
                        spatial=spatial, design=design, fusion=fusion,
                        normalize_modulator=normalize_modulator, global_level=global_level,
                        postln_in_modulation=postln_in_modulation)]
                elif mixer == "attention":
                    mixers = attention_mixers(
                        c, patterns.pop(0), temporal_shift=4, spatial_shift=1, heads=heads * 2**s,
                        kernel=kernel, window=window, shifted=shifted and i % 2 == 1,
                        kv_pool=kv_pool, size=(num_frames // tubelet, side, side))
                else:
                    mixers = [Baseline(c, mixer)]
                blocks.append(Block(c, mixers, drop_path=rates.pop(0), per_frame=True,
                                    postln=postln, layerscale=layerscale))
            self.layers.append(nn.ModuleDict({"blocks": blocks}))
            if s < stages - 1:
                self.layers[s]["downsample"] = PatchEmbed(
                    c, 2*c, kernel=3 if conv_embed else 2, stride=2, padding=int(conv_embed))

        # The end: norm, mean (in forward), scores. Without classes the feature is the output.
        self.norm = nn.LayerNorm(c)
        self.head = nn.Linear(c, num_classes) if num_classes else nn.Identity()
        init_weights(self, weight_init)

    def check(self, T, H, W):
        """Raises ValueError for a clip that the strides do not divide, and names the nearest."""
        # Along time only the tubelet has a stride.
        if T < 1 or T % self.tubelet:
            raise ValueError(f"{T} frames: this network takes multiples of {self.tubelet}, "
                             "its tubelet")
        if min(H, W) < 1 or H % self.stride or W % self.stride:
            near_h = max(1, round(H / self.stride)) * self.stride
            near_w = max(1, round(W / self.stride)) * self.stride
            raise ValueError(f"{H} x {W} pixels: height and width must be multiples of "
                             f"{self.stride}, the stride of the last stage; "
                             f"the nearest is {near_h} x {near_w}")

    def forward(self, clip, maps=None):
        """clip: (B, 3, T, H, W), normalised -> (B, num_classes). `maps` gets a list per stage."""
        self.check(*clip.shape[2:])
        x = clip.permute(0, 2, 3, 4, 1)  # channels-last
        x = self.patch_embed(x)  # (B, T/tubelet, H/patch, W/patch, dim)

        # Stage by stage; `shown` gets the dicts of its mixers.
        for stage in self.layers:
            shown = None if maps is None else []
            for block in stage["blocks"]:
                x = block(x, shown)
            if maps is not None:
                maps.append(shown)
            if "downsample" in stage:
                x = stage["downsample"](x)  # half the side, twice the channels

        # One vector for the clip, and its scores: all tokens of all frames count alike, there is no
        # class token.
        x = self.norm(x).mean((1, 2, 3))  # (B, C)
        return self.head(x)


def check_stem(patch, tubelet, conv_embed):
    """Raises ValueError, with the rule, for stems that cannot be."""
    # The overlapping stem is 2-d, 7 x 7 with stride 4, and nothing else.
    if tubelet > 1 and conv_embed:
        raise ValueError(f"tubelet={tubelet} with conv_embed=True: the released code crashes on "
                         "it, there is no network to be faithful to; use tubelet=1 or "
                         "conv_embed=False")
    if conv_embed and patch != 4:
        raise ValueError(f"patch={patch} with conv_embed=True: the overlapping stem has stride 4, "
                         "leave patch at 4")


def per_stage(name, value, stages):
    """2 -> [2, 2, 2, 2]; a sequence has to have one number for each stage, else ValueError."""
    # One number stands for all stages.
    if isinstance(value, int):
        return [value] * stages
    if len(value) != stages:
        raise ValueError(f"{name}={value}: one number, or one for each of {stages} stages")
    return list(value)


class Plain(nn.Module):
    """
    A ViT for clips: all blocks have the same tokens and width, no class token.

    num_classes, num_frames, image_size    see Pyramid; the temporal embedding binds num_frames
    dim, depth, heads    width, blocks, attention heads
    patch, stride        of the embedding; it overlaps, and pads by patch // 2, where stride < patch
    mixer                'attention', 'focal' (2 levels, window 3), or one of Baseline's kinds; what
                         follows is attention's
    kernel, window, kv_pool, fixation, fixation_by, temporal_shift, spatial_shift, shift_first,
    qkv_bias             see linear_attn.py; shifted: in every second block
    pattern              see attention_mixers; one for all blocks, or one for each
    pos_embed            a learned table over space, resized bicubically for another grid, as a ViT
                         has it; embed_norm: LayerNorm after the patches, which a ViT has not
    temp_embed           a learned vector for each frame, from 0. The released one is 8 long for
                         any T, so that frames t and t + 8 share it; ours has one per frame
    mlp                  'dwconv' (with a 3x3 depthwise convolution) or 'plain'
    head_hidden          width of the head's MLP; 768 as released, whatever dim is; 0: one Linear
    drop_path            rate of the last block, drawn per clip
    dropout              on the tokens before the mean, and in the head
    weight_init          'released': Linear N(0, .02^2), convolutions N(0, 2/fan_out), biases 0
                         'scratch': Linear N(0, 1/fan_in), the rest as above
    """

    def __init__(self, num_classes=174, num_frames=16, image_size=224, dim=512, depth=12, heads=8,
                 patch=16, stride=14, mixer="attention", kernel="relu", pattern="time+space",
                 window=(1, 1, 1), shifted=False, kv_pool=(1, 1, 1), fixation="qkv_shared",
                 fixation_by="concat", temporal_shift=4, spatial_shift=1, shift_first=True,
                 qkv_bias=True, temp_embed=True, pos_embed=False, embed_norm=True, mlp="dwconv",
                 head_hidden=768, drop_path=0.0, dropout=0.5, weight_init="released"):
        super().__init__()
        if mlp not in ("dwconv", "plain"):
            raise ValueError(f"mlp={mlp!r}: use 'dwconv' or 'plain'")

        # Sizes. As released, patches overlap by two pixels, and the image is padded for them. Any
        # image size works: no weight depends on it (but Linformer's).
        self.num_classes = num_classes
        self.num_frames = num_frames
        self.image_size = image_size
        self.patch = patch
        self.stride = stride
        self.padding = patch // 2 if stride < patch else 0
        self.temp_embed = nn.Parameter(torch.zeros(1, num_frames, 1, dim)) if temp_embed else None
        self.check(num_frames, image_size, image_size)

        # Pixels -> tokens: 224 x 224 give 17 x 17, 336 x 336 give 25 x 25.
        self.patch_embed = PatchEmbed(3, dim, kernel=patch, stride=stride, padding=self.padding,
                                      norm=embed_norm)
        side = (image_size + 2*self.padding - patch) // stride + 1

        self.pos_embed = nn.Parameter(torch.zeros(1, side, side, dim)) if pos_embed else None

        # Blocks, each with its pattern and its drop path.
        self.blocks = nn.ModuleList()
        patterns = pattern_of_blocks(pattern, depth, temporal_shift, spatial_shift)
        for i, rate in enumerate(drop_path_rates(drop_path, depth)):
            if mixer == "attention":
                mixers = attention_mixers(
                    dim, patterns[i], temporal_shift, spatial_shift, heads=heads, kernel=kernel,
                    window=window, shifted=shifted and i % 2 == 1, kv_pool=kv_pool,
                    fixation=fixation, fixation_by=fixation_by, shift_first=shift_first,
                    qkv_bias=qkv_bias, size=(num_frames, side, side))
            elif mixer == "focal":
                mixers = [SpatioTemporalFocalModulation(dim)]
            else:
                mixers = [Baseline(dim, mixer)]
            self.blocks.append(Block(dim, mixers, dwconv=mlp == "dwconv", drop_path=rate, eps=1e-6))

        # The end: norm, mean (in forward), an MLP for the scores.
        self.norm = nn.LayerNorm(dim, 1e-6)
        self.dropout = nn.Dropout(dropout)
        if num_classes == 0:
            self.head = nn.Identity()
        elif head_hidden == 0:
            self.head = nn.Linear(dim, num_classes)
        else:
            self.head = nn.Sequential(
                nn.LayerNorm(dim), nn.Linear(dim, head_hidden), nn.GELU(), nn.Dropout(dropout),
                nn.Linear(head_hidden, num_classes))
        init_weights(self, weight_init)

    def check(self, T, H, W):
        """Raises ValueError for a clip this network cannot take."""
        if T < 1 or self.temp_embed is not None and T != self.num_frames:
            raise ValueError(
                f"{T} frames: the temporal embedding has {self.num_frames}; make the network with "
                f"num_frames={T}, or with temp_embed=False for any number")
        if min(H, W) + 2*self.padding < self.patch:
            raise ValueError(f"{H} x {W} pixels: height and width must be at least "
                             f"{self.patch - 2*self.padding}, one patch")

    def forward(self, clip, maps=None):
        """clip: (B, 3, T, H, W), normalised -> (B, num_classes). `maps` gets one list."""
        self.check(*clip.shape[2:])
        x = clip.permute(0, 2, 3, 4, 1)  # channels-last
        x = self.patch_embed(x)  # (B, T, G, G, C)
        if self.pos_embed is not None:
            x = x + resized(self.pos_embed, x.shape[2:4])[:, None]  # (1, 1, G, G, C): all frames
        if self.temp_embed is not None:
            x = x + self.temp_embed[..., None, :]  # (1, T, 1, 1, C): the same for a whole frame

        # The blocks; `shown` gets the dicts of their mixers.
        shown = None if maps is None else []
        for block in self.blocks:
            x = block(x, shown)
        if maps is not None:
            maps.append(shown)

        # One vector for the clip, and its scores. As released, this dropout acts on tokens, before
        # the mean.
        x = self.dropout(self.norm(x)).mean((1, 2, 3))  # (B, C)
        return self.head(x)


def resized(table, size):
    """A position table (1, G, G, C), bicubically in another size (H, W): (1, H, W, C)."""
    if table.shape[1:3] == size:
        return table

    # As timm does, antialiased where the grid gets smaller.
    table = F.interpolate(table.permute(0, 3, 1, 2), size, mode="bicubic", antialias=True)
    return table.permute(0, 2, 3, 1)


def init_weights(model, weight_init):
    """Start values: see `weight_init` of the two trunks. Raises ValueError for an unknown name."""
    if weight_init not in ("released", "scratch"):
        raise ValueError(f"weight_init={weight_init!r}: use 'released' or 'scratch'")
    for name, module in model.named_modules():
        # h and h_temporal of focal modulation are 1x1 convolutions there: they start as torch's do.
        if re.search(r"mixers\.\d+\.h(_temporal)?$", name):
            if weight_init == "scratch":
                nn.init.ones_(module.bias)
        # All other Linear layers.
        elif isinstance(module, nn.Linear):
            std = 0.02 if weight_init == "released" else module.in_features**-0.5
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        # The transformer's convolutions; those of the Video-FocalNets stay as torch makes them.
        elif isinstance(model, Plain) and isinstance(module, nn.Conv2d) and "mixers" not in name:
            fan_out = module.weight[0, 0].numel() * module.out_channels / module.groups
            nn.init.normal_(module.weight, std=(2 / fan_out)**0.5)
            nn.init.zeros_(module.bias)


# --------------------------------------------------- presets


# What a plain ViT has, and the Linear Video Transformer has not, and the other way round.
VIT = dict(num_classes=400, num_frames=8, stride=16, kernel="softmax", fixation="none",
           temporal_shift=0, spatial_shift=0, pos_embed=True, embed_norm=False, mlp="plain",
           head_hidden=0, dropout=0.0)

# A preset is its class and the arguments that differ from the defaults there, which are the
# paper's.
MODELS = {
    # Video-FocalNets. Paper, K400 top-1 with 4x3 views | ours
    "focal_t": dict(trunk=Pyramid, dim=96, depths=(2, 2, 6, 2), drop_path=0.2),  # 79.8 | not run
    "focal_s": dict(trunk=Pyramid, dim=96, depths=(2, 2, 18, 2), drop_path=0.3),  # 81.4 | not run
    "focal_b": dict(trunk=Pyramid, dim=128, depths=(2, 2, 18, 2), drop_path=0.5,
                    heads=4),  # 83.6 | not run
    # Ours, for the toy data: two stages of 8 x 8 and 4 x 4 tokens.
    "focal_toy": dict(trunk=Pyramid, image_size=64, patch=8, dim=32, depths=(1, 2), heads=2,
                      drop_path=0.0, weight_init="scratch", num_classes=8),

    # Linear Video Transformer. Paper (Table 7), SSv2 top-1 with 2x3 views | ours
    "lvt": dict(trunk=Plain, num_frames=16),  # 65.46 | not run
    "lvt_s": dict(trunk=Plain, num_frames=8),  # 63.48 | not run
    "lvt_h": dict(trunk=Plain, num_frames=32),  # 65.67 | not run
    "lvt_hr": dict(trunk=Plain, num_frames=16, image_size=336),  # 65.85 | not run
    # Ours, for the toy data: two blocks of 5 x 5 tokens.
    "lvt_toy": dict(trunk=Plain, num_frames=8, image_size=64, dim=64, depth=2, heads=2,
                    head_hidden=96, dropout=0.0, weight_init="scratch", num_classes=8),

    # Not run here; TimeSformer's K400 top-1 from ImageNet-21k weights is no figure of this network.
    # Plain ViTs as timm has them, with attention along time added before that across space:
    # TimeSformer's divided attention, without its class token and its second projection of time.
    "vit_ti": dict(trunk=Plain, dim=192, heads=3, **VIT),
    "vit_s": dict(trunk=Plain, dim=384, heads=6, **VIT),
    "vit_b": dict(trunk=Plain, dim=768, heads=12, **VIT),
}

# What means nothing to a network with the other mixer.
FOCAL_ONLY = ("levels", "windows", "temporal", "spatial", "design", "fusion",
              "postln_in_modulation", "normalize_modulator", "global_level")
ATTENTION_ONLY = ("kernel", "pattern", "window", "shifted", "kv_pool", "heads", "fixation",
                  "fixation_by", "temporal_shift", "spatial_shift", "shift_first", "qkv_bias")

# Whole numbers that may be 0, and those of which there may be several. For all others 0 or a list
# would be a mistake.
ZERO_IS_OFF = ("num_classes", "temporal_shift", "spatial_shift", "head_hidden")
MAY_BE_SEVERAL = ("levels", "windows", "temporal_shift")


def arguments(name):
    """
    All arguments of a preset with their values, {'num_classes': 400, ..}. ValueError: no such.
    """
    if name not in MODELS:
        raise ValueError(f"no model {name!r}; there are {', '.join(MODELS)}")

    # The defaults of its class, and what the preset changes.
    signature = inspect.signature(MODELS[name]["trunk"])
    defaults = {key: parameter.default for key, parameter in signature.parameters.items()}
    return {key: MODELS[name].get(key, default) for key, default in defaults.items()}


def create_model(name, num_classes=None, num_frames=None, image_size=None, **overrides):
    """
    A preset of MODELS, with any argument of its class overridden. None keeps the preset's value:
    400 classes, 8 frames, 224 pixels for focal_t; 174, 16, 224 for lvt.
    Raises ValueError for unknown names and arguments, and for values that cannot work.
    """
    # The three that everybody has stand by name. None leaves them at the preset's, so that a caller
    # can pass on what it does not know.
    known = arguments(name)
    for key, value in (("num_classes", num_classes), ("num_frames", num_frames),
                       ("image_size", image_size)):
        if value is not None:
            overrides[key] = value

    # Everything that was asked for has to exist, to mean something, and to be of its kind.
    for key, value in overrides.items():
        if key not in known:
            raise ValueError(f"model {name} has no argument {key}; it takes {', '.join(known)}")
        check_argument(key, value, known[key])

    # An option of the mixer that is not there would change nothing.
    mixer = overrides.get("mixer", known["mixer"])
    others = {"focal": ATTENTION_ONLY, "attention": FOCAL_ONLY}
    others = others.get(mixer, FOCAL_ONLY + ATTENTION_ONLY)
    idle = [key for key in overrides if key in others and overrides[key] != known[key]]
    if idle:
        raise ValueError(f"{', '.join(idle)}: means nothing to model {name} with mixer={mixer!r}; "
                         "leave it out, or set another mixer, 'focal' or 'attention'")
    return MODELS[name]["trunk"](**known | overrides)


def check_argument(key, value, default):
    """Raises ValueError, with the value and the rule, unless `value` is of the default's kind."""
    # Most are whole numbers, one or several.
    values = value if isinstance(value, (tuple, list)) else [value]
    lowest = 0 if key in ZERO_IS_OFF else 1
    whole = len(values) > 0 and all(type(one) is int and one >= lowest for one in values)

    # The kind of the default decides.
    if isinstance(default, bool):
        good = isinstance(value, bool)
        rule = "True or False"
    elif isinstance(default, str):
        words = [value] if isinstance(value, str) or key != "pattern" else value
        good = all(isinstance(word, str) for word in words)  # the layer knows which there are
        rule = f"a word, as in {default}"
    elif isinstance(default, float):
        # A probability of leaving out: at 1 nothing would be left.
        good = isinstance(value, (int, float)) and 0 <= value < 1
        rule = "a number from 0 to below 1"
    elif isinstance(default, tuple):
        good = isinstance(value, (tuple, list)) and whole
        rule = f"whole numbers from {lowest} on, as in {','.join(map(str, default))}"
    else:
        good = whole and (values is not value or key in MAY_BE_SEVERAL)
        rule = f"a whole number from {lowest} on"
        if key in MAY_BE_SEVERAL:
            rule += ", or several, as in 2,2"
    if not good:
        raise ValueError(f"{key}={value!r}: must be {rule}")


# --------------------------------------------------- weights: read, rename, inflate, report

def read_checkpoint(path):
    """
    A checkpoint as a dict, on the CPU. Reads data only (weights_only=True): a file cannot run code.
    Released Video-FocalNets hold a pickled yacs node beside the weights, read as a plain dict.
    Raises FileNotFoundError, or ValueError for a damaged file (the zip's CRCs check every byte).
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        # torch itself does not look at the checksums.
        if zipfile.is_zipfile(path):
            damaged = zipfile.ZipFile(path).testzip()
            if damaged:
                raise ValueError(f"the checksum of {damaged} inside is wrong")
        # Two names are safe to read: an ordered dict, and a settings node that becomes one.
        with torch.serialization.safe_globals([(collections.OrderedDict, "yacs.config.CfgNode")]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a checkpoint: {str(error).splitlines()[0]}\n"
                         "  it is damaged or holds more than weights; "
                         "copy or download it again") from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{path} holds a {type(checkpoint).__name__}, not a dict of weights")
    return checkpoint


def our_names(model, state):
    """
    Released key names -> ours, {'layers.0.blocks.1.modulation.f.weight': w} ->
    {'layers.0.blocks.1.mixers.0.f.weight': w}. Ours pass unchanged. What the released Linear Video
    Transformer carries but never uses, new_fc, goes.
    """
    # Which mixer of a block is the one along time, which the other one?
    block = next(module for module in model.modules() if isinstance(module, Block))
    words = [getattr(mixer, "pattern", "focal") for mixer in block.mixers]
    time = words.index("time") if "time" in words else 0
    other = next((i for i, word in enumerate(words) if word != "time"), 0)

    renames = [
        (r"^base_model\.", ""),
        (r"^consensus\.mlp_head\.", "head."),
        (r"\.dwconv\.dwconv\.", ".dwconv."),
        (r"\.temporal_norm1\.", f".norms.{time}."),
        (r"\.temporal_attn\.", f".mixers.{time}."),
        (r"\.norm1\.", f".norms.{other}."),
        (r"\.(modulation|attn)\.", f".mixers.{other}."),
        (r"\.gamma_1$", f".gammas.{other}"),
    ]

    # One after the other: a key may need several.
    ours = {}
    for key, value in state.items():
        for theirs, name in renames:
            key = re.sub(theirs, name, key)
        if not key.startswith("new_fc."):
            ours[key] = value
    return ours


def fitted(key, value, own):
    """A checkpoint's tensor in the shape of `own`, this network's; None if that cannot be."""
    want = own.shape

    # timm's table of positions is flat, and has a row for the class token in front, or none.
    if key == "pos_embed" and value.ndim == 3:
        side = int(value.shape[1]**0.5)
        table = value[:, value.shape[1] - side**2:].unflatten(1, (side, side))
        return resized(table, want[1:3]) if value.shape[2] == want[3] else None

    # A 1x1 convolution is a Linear, a Conv1d is a Conv2d: the same but for axes of length one.
    if value.squeeze().shape == own.squeeze().shape:
        return value.reshape(want)
    # An image stem sees a tubelet: the mean over its frames.
    if key == "patch_embed.proj.weight" and own.ndim == 5 and value.ndim == 4:
        if value.shape == want[:2] + want[3:]:
            return value.unsqueeze(2).expand(want) / want[2]
    # The released temporal embedding is 8 long whatever the clip: frame t gets row t mod 8.
    if key == "temp_embed" and value.shape[2:] == want[2:] and want[1] % value.shape[1] == 0:
        return value.repeat(1, want[1] // value.shape[1], 1, 1)
    return None


def weights_of(checkpoint):
    """The weights of a checkpoint: they stand alone, or beside an optimizer's state, say."""
    for name in ("model", "model_state", "state_dict_ema"):
        if name in checkpoint:
            return checkpoint[name]
    return checkpoint


def load_weights(model, path_or_state_dict, temporal_init="fresh", where="weights"):
    """
    Fill `model` from a checkpoint file or a state dict: ours, a released Video-FocalNet, or an
    image network, Microsoft's FocalNets (focalnet_*_srf.pth) or timm's plain ViTs, which is
    inflated: the network acts on every frame, and what it has for time stays
      'fresh'     as initialised (what the released code does: the start is 20 to 30 times smaller
                  than the image network's), or
      'identity'  h_temporal = (weight 0, bias 1), so that m_t is exactly one, or an attention along
                  time whose projection is 0: a clip of one repeated frame computes what the image
                  network computes on that frame. Ours; needs design 'parallel' or 'sequential',
                  fusion 'multiply'.
    With a tubelet the stem's kernel is repeated along time and divided by its length. A head with
    another class count stays fresh. Returns and prints {'loaded', 'fresh', 'left_over'}: lists of
    keys. `where` names the weights in messages, if they come as a dict. Raises ValueError for
    anything else that is missing, unexpected, or of another shape.
    """
    if temporal_init not in ("fresh", "identity"):
        raise ValueError(f"temporal_init={temporal_init!r}: use 'fresh' or 'identity'")

    # Read.
    source = path_or_state_dict
    if not isinstance(source, dict):
        where = source
        source = read_checkpoint(source)

    # Rename, then inflate: an image network has no weights for time. What does not fit raises.
    named = our_names(model, weights_of(source))
    own = model.state_dict()
    temporal = weights_of_time(model)
    inflate = bool(temporal) and not any(key in named for key in temporal)
    fresh = temporal if inflate else []
    if "pos_embed" in named:
        fresh = fresh + added_to_a_vit(own, named, fresh)
    class_token = named.pop("cls_token", None)
    state, swapped = fit_all(where, named, own, fresh)
    model.load_state_dict(state)

    # The start of what is fresh.
    if temporal_init == "identity" and not inflate:
        raise ValueError(f"temporal_init='identity': {where} is no image network, or this one has "
                         "no temporal branch; leave it at 'fresh'")
    if temporal_init == "identity":
        time_to_identity(model)

    # Report: a head that was swapped starts fresh as well.
    fresh = fresh + swapped
    loaded = [key for key in own if key not in fresh]
    report = f"{where}: {len(loaded)} of {len(own)} tensors loaded"
    if inflate:
        start = "fresh" if temporal_init == "fresh" else "start as the identity"
        report += f"; inflated from an image network, {len(temporal)} temporal tensors {start}"
    # What was left out.
    if class_token is not None:
        report += "; class token dropped: this network pools by mean"
    if swapped:
        there = len(named[swapped[0]])
        report += (f"; head swapped: {there} classes there, {len(own[swapped[0]])} here, "
                   "it starts fresh")
    print(report)
    return dict(loaded=loaded, fresh=fresh, left_over=swapped)


def added_to_a_vit(own, named, fresh):
    """
    What the transformer adds to a plain ViT, and starts fresh: gates, time, a kernel's weights.
    """
    # Attentions along time are in `fresh` already.
    return [key for key in own if key not in named and key not in fresh
            and ("gate" in key or key == "temp_embed" or key.endswith(".W"))]


def fit_all(where, state, own, fresh):
    """
    -> (a full state dict, the keys of a head that stays fresh as its classes differ). Everything
    else that is missing, unexpected or of another shape is collected, and raises ValueError.
    """
    # Tensor by tensor: loaded, a head of other classes, or a problem.
    result = dict(own)
    swapped = []
    problems = []
    for key, value in state.items():
        # What this network has no place for.
        if not torch.is_tensor(value):
            problems.append(f"unexpected: {key}, a {type(value).__name__}")
            continue
        if key not in own:
            problems.append(f"unexpected: {key} {tuple(value.shape)}")
            continue

        # What fits, maybe in another shape, or may stay fresh.
        tensor = fitted(key, value, own[key])
        if tensor is not None:
            result[key] = tensor
        elif key.startswith("head.") and value.shape[1:] == own[key].shape[1:]:
            swapped.append(key)
        else:
            problems.append(f"shape: {key} is {tuple(value.shape)} there "
                            f"and {tuple(own[key].shape)} here")

    # And the other way round: what this network has and the checkpoint lacks.
    for key in own:
        if key not in state and key not in fresh:
            problems.append(f"missing: {key}")

    # All at once, so that one look tells what kind of mistake it is.
    if problems:
        shown = "\n  ".join(problems[:6])
        if len(problems) > 6:
            shown += f"\n  and {len(problems) - 6} more"
        raise ValueError(f"{where} does not fit this network ({len(problems)} problems):\n  {shown}"
                         "\n  is it the right --model, and are its arguments those it was "
                         "trained with?")
    return result, swapped


def weights_of_time(model):
    """
    Names of the parameters that an image network lacks: temporal branches, attentions along time.
    """
    # The names are built as state_dict builds them.
    names = []
    for prefix, module in model.named_modules():
        if isinstance(module, SpatioTemporalFocalModulation):
            names += [f"{prefix}.{key}" for key in module.state_dict() if "_temporal" in key]
        if isinstance(module, Block):
            for i, mixer in enumerate(module.mixers):
                if getattr(mixer, "pattern", "") == "time":
                    names += [f"{prefix}.norms.{i}.{key}" for key in module.norms[i].state_dict()]
                    names += [f"{prefix}.mixers.{i}.{key}" for key in mixer.state_dict()]
    return names


def time_to_identity(model):
    """
    Time changes nothing at first: h_temporal = (weight 0, bias 1), so that m_t = 1; the projection
    of an attention along time is 0, so that it adds nothing. ValueError where m_t is not a factor.
    """
    # A factor of one changes nothing: the network acts on every frame, as the image network did.
    for module in model.modules():
        if isinstance(module, SpatioTemporalFocalModulation):
            if module.fusion != "multiply":
                raise ValueError("temporal_init='identity' makes a factor one; "
                                 f"with fusion={module.fusion!r} there is none")
            nn.init.zeros_(module.h_temporal.weight)
            nn.init.ones_(module.h_temporal.bias)
        if isinstance(module, Attention) and module.pattern == "time":
            nn.init.zeros_(module.proj.weight)
            nn.init.zeros_(module.proj.bias)


# --------------------------------------------------- cost

def count_macs(model):
    """Multiply-adds (the papers' FLOPs) of one clip of its size; convolutions and matmuls only."""
    # On the meta device shapes are computed, numbers are not. A copy goes there, the model stays.
    side = model.image_size
    clip = torch.empty(1, 3, model.num_frames, side, side, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(model).to("meta").eval()(clip)
    return counter.get_total_flops() // 2  # the counter counts a multiply-add as two


# What is compared: the two networks, and the transformer with softmax in place of linear attention,
# along time and across space in turn, as it is, and over all tokens at once.
SCALED = {
    "focal_t": dict(name="focal_t"),
    "lvt": dict(name="lvt"),
    "lvt, softmax": dict(name="lvt", kernel="softmax", fixation="none"),
    "lvt, joint softmax": dict(name="lvt", kernel="softmax", fixation="none", pattern="joint"),
}
FRAMES = [(frames, 224) for frames in (4, 8, 16, 32, 64)]
PIXELS = [(8, pixels) for pixels in (128, 224, 320, 448)]  # focal_t has a stride of 32
LARGE = [(64, 448), (96, 336), (96, 448)]  # Table 8 of arXiv:2210.08164, on a GPU


@torch.no_grad()
def time_and_memory(options, frames, pixels):
    """
    One clip forward -> seconds, the best of up to three runs, and MiB: on a CPU, one thread, the
    peak of this process, which has to be a new one; on a GPU the peak of torch's memory.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)
    model = create_model(**options, num_frames=frames, image_size=pixels).eval().to(device)
    clip = torch.randn(1, 3, frames, pixels, pixels, device=device)

    # Again if it was quick: the first run has more to prepare.
    times = []
    while len(times) < 3 and sum(times) < 5:
        started = time.perf_counter()
        model(clip).cpu()  # waits for the result
        times.append(time.perf_counter() - started)
    if device == "cuda":
        return min(times), torch.cuda.max_memory_allocated() / 2**20
    return min(times), peak_memory()


def peak_memory():
    """MiB that this process had at most, the code of Python and torch included."""
    # On Linux; what `resource` says there may be the peak of the process that started this one.
    if os.path.exists("/proc/self/status"):
        with open("/proc/self/status") as file:
            return int(re.search(r"VmHWM:\s+(\d+) kB", file.read())[1]) / 2**10
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes, on a Mac


def scale(limit=30):
    """
    Prints and draws time and memory against frames and pixels, to scale.png. Every point has a
    process of its own; one that is predicted to take more than `limit` seconds is skipped.
    """
    gpu = torch.cuda.is_available()
    where = torch.cuda.get_device_name() if gpu else "CPU, one thread"
    print(f"one clip forward, float32, {where}, torch {torch.__version__}\n")
    print("| model | frames | pixels | multiply-adds | seconds | MiB |\n|---|---|---|---|---|---|")

    # From small to large, so that the point before tells what the next one takes.
    found = {}
    for label, options in SCALED.items():
        pace = 0.0  # seconds for a multiply-add
        for frames, pixels in dict.fromkeys(FRAMES + PIXELS + (LARGE if gpu else [])):
            with torch.device("meta"):
                macs = count_macs(create_model(**options, num_frames=frames, image_size=pixels))
            row = f"| {label} | {frames} | {pixels} | {macs / 1e9:.1f} G |"
            if pace * macs > limit:
                print(f"{row} skipped | |", flush=True)
                continue

            # What was used before would count as memory: a new process.
            spawn = multiprocessing.get_context("spawn")
            with concurrent.futures.ProcessPoolExecutor(1, spawn) as pool:
                try:
                    point = pool.submit(time_and_memory, options, frames, pixels).result()
                except (torch.OutOfMemoryError, concurrent.futures.process.BrokenProcessPool):
                    print(f"{row} out of memory | |", flush=True)
                    continue
            found[label, frames, pixels] = point
            pace = point[0] / macs
            print(f"{row} {point[0]:.2f} | {point[1]:.0f} |", flush=True)
    draw_scale(found, "scale.png", where)


def draw_scale(found, path, where):
    """Two plots of time, two of memory; found: {(label, frames, pixels): (seconds, MiB)}."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(1, 4, figsize=(13, 3.2))
    for i, what in enumerate(("seconds", "MiB")):
        for j, points in enumerate((FRAMES, PIXELS)):
            # One line for each network; what was skipped is missing.
            axis = axes[2*i + j]
            for label in SCALED:
                there = [point for point in points if (label, *point) in found]
                axis.plot([point[j] for point in there],
                          [found[label, *point][i] for point in there], "o-", label=label)

            # Time: straight lines are powers. Memory has a constant part, Python and torch, and is
            # drawn from 0. The sizes themselves are the ticks.
            axis.set_title(what)
            axis.set_xlabel("pixels a side, 8 frames" if j else "frames of 224 x 224")
            axis.set_xscale("log")
            ticks = [point[j] for point in points]
            axis.set_xticks(ticks, ticks)
            if what == "seconds":
                axis.set_yscale("log")
                axis.yaxis.set_major_formatter("{x:g}")
            else:
                axis.set_ylim(bottom=0)
            axis.minorticks_off()
    # One legend for all four, where no line is.
    axes[3].legend(fontsize=8, loc="lower right")
    figure.suptitle(f"one clip forward, float32, {where}", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    print(f"\n{path}")


# The zoo: every preset, and what it costs. On the meta device, so that no weights are made.
if __name__ == "__main__":
    if sys.argv[1:] == ["--scale"]:
        sys.exit(scale())
    if sys.argv[1:]:
        sys.exit("error: python backbone.py takes nothing, or --scale")
    print(f"{'model':<10} {'parameters':>12} {'multiply-adds':>14}   one view")
    for name in MODELS:
        with torch.device("meta"):
            model = create_model(name)
        parameters = sum(p.numel() for p in model.parameters())
        print(f"{name:<10} {parameters:>12,} {count_macs(model) / 1e9:>12.2f} G   "
              f"{model.num_frames} frames of {model.image_size} x {model.image_size}, "
              f"{model.num_classes} classes")
