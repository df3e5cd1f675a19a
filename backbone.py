"""
The networks: a video clip in, class scores out.

One block serves them all: a row of residual branches, x = x + branch(norm(x)), of which the last is
an MLP. What stands before it, the mixer, says what the network is: focal modulation (focal.py)
mixes space and time at once, attention (linear_attn.py) usually along time first, then space.

    Pyramid  Video-FocalNet: clip -> stem, stride 4 -> stage 1, H/4 x W/4 tokens a frame -> stage 2,
             half as many each way, twice the channels -> ... -> norm -> mean over T, H, W -> Linear
    Plain    Linear Video Transformer: clip -> patches of 16, stride 14 -> blocks of one size ->
             norm -> mean over T, H, W -> MLP
    clip (B, 3, T, H, W)  ->  logits (B, num_classes);  inside, channels-last: (B, T, H, W, C)

Either trunk takes either mixer. No layer knows H and W, and no network has a position embedding in
space: the zero padding of its convolutions is all that tells a token where it is.

Sources: Wasim et al. 2023, arXiv:2307.06947 (Video-FocalNet); Yang et al. 2022, arXiv:2203.11926
(FocalNet); "Linear Video Transformer with Feature Fixation", arXiv:2210.08164.
Try it: python backbone.py    every preset with its parameters and multiply-adds, 10 s on a CPU
"""
import collections
import inspect
import os
import re
import zipfile

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from focal import SpatioTemporalFocalModulation, across_space
from linear_attn import Attention

# A preset is the arguments of its class that differ from the defaults there, which are the paper's.
MODELS = {
    # Pyramid: Video-FocalNets                                         paper, K400 top-1 | ours
    "focal_t": dict(dim=96, depths=(2, 2, 6, 2), drop_path=0.2),       # 79.8 (4x3 views)  | not run
    "focal_s": dict(dim=96, depths=(2, 2, 18, 2), drop_path=0.3),      # 81.4              | not run
    "focal_b": dict(dim=128, depths=(2, 2, 18, 2), drop_path=0.5, heads=4),      # 83.6    | not run
    "focal_toy": dict(num_classes=8, image_size=64, patch=8, dim=32, depths=(1, 2), drop_path=0.0,
                      heads=2, init="scratch"),
    # Plain: the Linear Video Transformer (Table 7)                    paper, SSv2 top-1 | ours
    "lvt": dict(num_frames=16),                                        # 65.46 (2x3 views) | not run
    "lvt_s": dict(num_frames=8),                                       # 63.48             | not run
    "lvt_h": dict(num_frames=32),                                      # 65.67             | not run
    "lvt_hr": dict(num_frames=16, image_size=336),                     # 65.85             | not run
    "lvt_toy": dict(num_classes=8, num_frames=8, image_size=64, dim=64, depth=2, heads=2,
                    head_hidden=96, dropout=0.0, init="scratch"),
}


class PatchEmbed(nn.Module):
    """Strided convolution, LayerNorm: stem, and between stages. (B, T, H, W, C) -> fewer tokens."""

    def __init__(self, in_dim, dim, kernel, stride, padding=0, tubelet=1):
        super().__init__()
        if tubelet == 1:
            self.proj = nn.Conv2d(in_dim, dim, kernel, stride, padding)
        else:
            self.proj = nn.Conv3d(in_dim, dim, (tubelet, kernel, kernel),
                                  (tubelet, stride, stride), (0, padding, padding))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x):
        if isinstance(self.proj, nn.Conv2d):
            return self.norm(across_space(self.proj, x))
        return self.norm(self.proj(x.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1))


class Mlp(nn.Module):
    """Linear, GELU, Linear, 4 times as wide inside; dwconv: depthwise 3x3 conv before the GELU."""

    def __init__(self, dim, dwconv=False):
        super().__init__()
        self.fc1 = nn.Linear(dim, 4*dim)
        self.dwconv = nn.Conv2d(4*dim, 4*dim, 3, padding=1, groups=4*dim) if dwconv else None
        self.fc2 = nn.Linear(4*dim, dim)

    def forward(self, x):
        x = self.fc1(x)                                     # (B, T, H, W, 4C)
        if self.dwconv is not None:
            x = across_space(self.dwconv, x)                # tells a token where it is, by the zero padding
        return self.fc2(F.gelu(x))


class Block(nn.Module):
    """
    Residual branches, one after the other: x = x + drop_path(gamma * branch(norm(x))), shapes
    (B, T, H, W, dim) throughout.

    branches     {name: module}, in order; the last is the MLP, the others are mixers
    drop_path    probability that a branch is left out in training, drawn for each clip, or
    per_frame    for each frame of each clip (released Video-FocalNet: a clip loses a branch in some
                 of its frames and keeps it in the others)
    postln       x + norm(branch(x)), not x + branch(norm(x))
    layerscale   a learned gamma per channel, from 1e-4
    """

    def __init__(self, dim, branches, drop_path, per_frame=False, postln=False, layerscale=False,
                 eps=1e-5):
        super().__init__()
        self.branches = nn.ModuleDict(branches)
        self.norms = nn.ModuleDict({name: nn.LayerNorm(dim, eps) for name in branches})
        self.gammas = nn.ParameterDict({name: nn.Parameter(torch.full((dim,), 1e-4))
                                        for name in branches if layerscale})
        self.drop_path, self.per_frame, self.postln = drop_path, per_frame, postln

    def forward(self, x, maps=None):
        """x: (B, T, H, W, dim) -> same. `maps`: a list that receives what each mixer shows."""
        for name, branch in self.branches.items():
            y = x if self.postln else self.norms[name](x)
            if maps is None or name == "mlp":
                y = branch(y)
            else:
                y, shown = branch(y, return_maps=True)
                maps.append(shown)
            if self.postln:
                y = self.norms[name](y)
            if name in self.gammas:
                y = self.gammas[name] * y
            if self.training and self.drop_path > 0:
                B, T = y.shape[:2]
                draw = torch.rand(B, T if self.per_frame else 1, 1, 1, 1, device=y.device)
                y = y * (draw >= self.drop_path) / (1 - self.drop_path)      # its mean is y: eval() needs no factor
            x = x + y
        return x


def attention_branches(dim, pattern, order, temporal_shift, spatial_shift, size, **options):
    """
    {name: Attention} of a block. 'divided' has two, along time and across space, in this order as
    released ('time_space') or in the paper's ('space_time'); 'space' and 'joint' have one.

    The shifts are crossed, as released: attention across space gets the temporal one, so that its
    keys bring something of the frames around, attention along time the spatial one; joint attention
    both. 'space' with the temporal shift alone is XViT's window of three frames (arXiv:2106.05968).
    """
    if pattern not in ("divided", "space", "joint"):
        raise ValueError(f"pattern={pattern!r}: use 'divided', 'space' or 'joint'")
    if order not in ("time_space", "space_time"):
        raise ValueError(f"order={order!r}: use 'time_space' (released) "
                         "or 'space_time' (the paper's text)")
    if pattern == "space" and spatial_shift:
        raise ValueError(f"pattern='space' with spatial_shift={spatial_shift}: the spatial shift "
                         "belongs to the attention along time, which this pattern lacks; "
                         "set spatial_shift=0")
    return {name: Attention(
                dim, pattern=name, temporal_shift=0 if name == "time" else temporal_shift,
                spatial_shift=0 if name == "space" else spatial_shift, size=size, **options)
            for name in (order.split("_") if pattern == "divided" else [pattern])}


def branch_rates(drop_path, blocks):
    """Drop path of each block: linear from 0 at the first to `drop_path` at the last."""
    return [drop_path * i / max(blocks - 1, 1) for i in range(blocks)]


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
    postln_in_modulation, normalize_modulator, temporal, spatial, design, fusion    see focal.py
    init             'released': Linear N(0, .02^2) with biases 0, the rest as torch does it, h and
                     h_temporal too (they are convolutions there). A start for image weights: from
                     nothing it does not learn, as q * m_s * m_t is a product of three small terms
                     and each gradient holds two of them.
                     'scratch': Linear N(0, 1/fan_in), biases of h and h_temporal one: modulators
                     that start around one let the gradient pass.
    mixer            'focal' or 'attention', then: kernel, pattern ('divided', 'space', 'joint') and
                     heads (of the first stage; they double as the channels do). The fixation and
                     the shifts are the Linear Video Transformer's.
    """

    def __init__(self, num_classes=400, num_frames=8, image_size=224, patch=4, dim=96,
                 depths=(2, 2, 6, 2), levels=2, windows=3, tubelet=1, conv_embed=False,
                 layerscale=False, postln=False, postln_in_modulation=False,
                 normalize_modulator=False, drop_path=0.2, temporal=True, spatial=True,
                 design="parallel", fusion="multiply", init="released", mixer="focal",
                 kernel="relu", pattern="divided", heads=3):
        super().__init__()
        if tubelet > 1 and conv_embed:
            raise ValueError(f"tubelet={tubelet} with conv_embed=True: the released code crashes "
                             "on it, there is no network to be faithful to; use tubelet=1 or "
                             "conv_embed=False")
        if conv_embed and patch != 4:
            raise ValueError(f"patch={patch} with conv_embed=True: the overlapping stem has stride "
                             "4, leave patch at 4")
        stages = len(depths)
        levels, windows = ([v] * stages if isinstance(v, int) else list(v)
                           for v in (levels, windows))
        if not len(levels) == len(windows) == stages:
            raise ValueError(f"levels={levels}, windows={windows}: one number, "
                             f"or one for each of {stages} stages")
        self.num_classes, self.num_frames, self.image_size = num_classes, num_frames, image_size
        self.stride, self.tubelet = patch * 2**(stages - 1), tubelet
        self.check(num_frames, image_size, image_size)
        rates = branch_rates(drop_path, sum(depths))

        if conv_embed:
            self.patch_embed = PatchEmbed(3, dim, 7, 4, padding=2)
        else:
            self.patch_embed = PatchEmbed(3, dim, patch, patch, tubelet=tubelet)
        self.layers = nn.ModuleList()
        for s in range(stages):
            c, side = dim * 2**s, image_size // patch // 2**s
            blocks = nn.ModuleList()
            for _ in range(depths[s]):
                if mixer == "focal":
                    branches = {"focal": SpatioTemporalFocalModulation(
                        c, levels[s], windows[s], temporal, spatial, design, fusion,
                        normalize_modulator, postln_in_modulation)}
                elif mixer == "attention":
                    branches = attention_branches(
                        c, pattern, "time_space", 4, 0 if pattern == "space" else 1,
                        (num_frames // tubelet, side, side), heads=heads * 2**s, kernel=kernel)
                else:
                    raise ValueError(f"mixer={mixer!r}: use 'focal' or 'attention'")
                branches["mlp"] = Mlp(c)
                blocks.append(Block(c, branches, rates.pop(0), True, postln, layerscale))
            self.layers.append(nn.ModuleDict({"blocks": blocks}))
            if s < stages - 1:
                kernel_size, padding = (3, 1) if conv_embed else (2, 0)
                self.layers[s]["downsample"] = PatchEmbed(c, 2*c, kernel_size, 2, padding)
        self.norm = nn.LayerNorm(c)
        self.head = nn.Linear(c, num_classes) if num_classes else nn.Identity()
        init_weights(self, init)

    def check(self, T, H, W):
        """Raises ValueError for a clip that the strides do not divide, and names the nearest."""
        if T < 1 or T % self.tubelet:
            raise ValueError(f"{T} frames: this network takes multiples of {self.tubelet}, "
                             "its tubelet")
        if min(H, W) < 1 or H % self.stride or W % self.stride:
            near = [max(1, round(side / self.stride)) * self.stride for side in (H, W)]
            raise ValueError(f"{H} x {W} pixels: height and width must be multiples of "
                             f"{self.stride}, the stride of the last stage; "
                             f"the nearest is {near[0]} x {near[1]}")

    def forward(self, clip, maps=None):
        """clip: (B, 3, T, H, W), normalised -> (B, num_classes). `maps` gets a list per stage."""
        self.check(*clip.shape[2:])
        x = self.patch_embed(clip.permute(0, 2, 3, 4, 1))               # (B, T', H/4, W/4, dim)
        for stage in self.layers:
            shown = None if maps is None else []
            for block in stage["blocks"]:
                x = block(x, shown)
            if maps is not None:
                maps.append(shown)
            if "downsample" in stage:
                x = stage["downsample"](x)                              # (B, T', H/2, W/2, 2C)
        return self.head(self.norm(x).mean((1, 2, 3)))                  # (B, C) -> (B, num_classes)


class Plain(nn.Module):
    """
    A ViT for clips: all blocks have the same tokens and width, no class token.

    num_classes, num_frames, image_size    as above; the temporal embedding binds num_frames
    dim, depth, heads    width, blocks, attention heads
    patch, stride        of the embedding; it overlaps, and pads by patch // 2, where stride < patch
    mixer                'attention' or 'focal' (2 levels, window 3; what follows is attention's)
    kernel, fixation, fixation_by, temporal_shift, spatial_shift, shift_first    see linear_attn.py
    pattern, order       see attention_branches
    temp_embed           a learned vector for each frame, from 0. The released one is 8 long for
                         any T, so that frames t and t + 8 share it; ours has one per frame
    mlp                  'dwconv' (with a 3x3 depthwise convolution) or 'plain'
    head_hidden          width of the head's MLP; 768 as released, whatever dim is
    drop_path, dropout   the last block's, drawn per clip; before and inside the head
    init                 'released': Linear N(0, .02^2), convolutions N(0, 2/fan_out), biases 0
                         'scratch': Linear N(0, 1/fan_in), the rest as above
    """

    def __init__(self, num_classes=174, num_frames=16, image_size=224, dim=512, depth=12, heads=8,
                 patch=16, stride=14, mixer="attention", kernel="relu", pattern="divided",
                 order="time_space", fixation="qkv_shared", fixation_by="concat",
                 temporal_shift=4, spatial_shift=1, shift_first=True, temp_embed=True,
                 mlp="dwconv", head_hidden=768, drop_path=0.0, dropout=0.5, init="released"):
        super().__init__()
        if mlp not in ("dwconv", "plain"):
            raise ValueError(f"mlp={mlp!r}: use 'dwconv' or 'plain'")
        self.num_classes, self.num_frames, self.image_size = num_classes, num_frames, image_size
        self.patch, self.stride, self.padding = patch, stride, patch // 2 if stride < patch else 0
        self.temp_embed = nn.Parameter(torch.zeros(1, num_frames, 1, dim)) if temp_embed else None
        self.check(num_frames, image_size, image_size)
        side = (image_size + 2 * self.padding - patch) // stride + 1    # 224 -> 17, 336 -> 25
        self.patch_embed = PatchEmbed(3, dim, patch, stride, self.padding)
        self.blocks = nn.ModuleList()
        for rate in branch_rates(drop_path, depth):
            if mixer == "attention":
                branches = attention_branches(
                    dim, pattern, order, temporal_shift, spatial_shift, (num_frames, side, side),
                    heads=heads, kernel=kernel, fixation=fixation, fixation_by=fixation_by,
                    shift_first=shift_first)
            elif mixer == "focal":
                branches = {"focal": SpatioTemporalFocalModulation(dim)}
            else:
                raise ValueError(f"mixer={mixer!r}: use 'attention' or 'focal'")
            branches["mlp"] = Mlp(dim, mlp == "dwconv")
            self.blocks.append(Block(dim, branches, rate, eps=1e-6))
        self.norm = nn.LayerNorm(dim, 1e-6)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, head_hidden), nn.GELU(), nn.Dropout(dropout),
            nn.Linear(head_hidden, num_classes)) if num_classes else nn.Identity()
        init_weights(self, init)

    def check(self, T, H, W):
        """Raises ValueError for a clip this network cannot take."""
        if T < 1 or self.temp_embed is not None and T != self.num_frames:
            raise ValueError(
                f"{T} frames: the temporal embedding has {self.num_frames}; make the network with "
                f"num_frames={T}, or with temp_embed=False for any number")
        if min(H, W) + 2 * self.padding < self.patch:
            raise ValueError(f"{H} x {W} pixels: height and width must be at least "
                             f"{self.patch - 2 * self.padding}, one patch")

    def forward(self, clip, maps=None):
        """clip: (B, 3, T, H, W), normalised -> (B, num_classes). `maps` gets one list."""
        self.check(*clip.shape[2:])
        x = self.patch_embed(clip.permute(0, 2, 3, 4, 1))               # (B, T, G, G, C)
        if self.temp_embed is not None:
            x = x + self.temp_embed[..., None, :]                       # (1, T, 1, 1, C)
        shown = None if maps is None else []
        for block in self.blocks:
            x = block(x, shown)
        if maps is not None:
            maps.append(shown)
        return self.head(self.dropout(self.norm(x)).mean((1, 2, 3)))    # the dropout acts on tokens, as released


def init_weights(model, init):
    """Start values: see `init` of the two trunks. Raises ValueError for an unknown name."""
    if init not in ("released", "scratch"):
        raise ValueError(f"init={init!r}: use 'released' or 'scratch'")
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and re.search(r"focal\.h(_temporal)?$", name):
            if init == "scratch":
                nn.init.ones_(module.bias)                              # else as torch does: 1x1 convolutions there
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight,
                            std=0.02 if init == "released" else module.in_features**-0.5)
            nn.init.zeros_(module.bias)
        elif isinstance(model, Plain) and re.search(r"patch_embed\.proj$|dwconv$", name):
            fan_out = module.weight[0, 0].numel() * module.out_channels / module.groups
            nn.init.normal_(module.weight, std=(2 / fan_out)**0.5)
            nn.init.zeros_(module.bias)


def trunk_of(name):
    """The class of a preset. Raises ValueError for an unknown name."""
    if name not in MODELS:
        raise ValueError(f"no model {name!r}; there are {', '.join(MODELS)}")
    return Pyramid if name.startswith("focal") else Plain


FOCAL_ONLY = ("levels", "windows", "temporal", "spatial", "design", "fusion",
              "postln_in_modulation", "normalize_modulator")
ATTENTION_ONLY = ("kernel", "pattern", "heads", "order", "fixation", "fixation_by",
                  "temporal_shift", "spatial_shift", "shift_first")


def create_model(name, num_classes=None, num_frames=None, image_size=None, **overrides):
    """
    The only way in: a preset of MODELS with any argument of its class overridden. None keeps the
    preset's value: 400 classes, 8 frames, 224 pixels for focal_t, 174, 16, 224 for lvt.
    Raises ValueError for unknown names and arguments, and for values that cannot work.
    """
    trunk = trunk_of(name)
    known = list(inspect.signature(trunk).parameters)
    unknown = [key for key in overrides if key not in known]
    if unknown:
        raise ValueError(f"model {name} has no argument {', '.join(unknown)}; "
                         f"it takes {', '.join(known)}")
    mixer = overrides.get("mixer", inspect.signature(trunk).parameters["mixer"].default)
    others = FOCAL_ONLY if mixer == "attention" else ATTENTION_ONLY
    idle = [key for key in overrides if key in others]
    if idle:
        raise ValueError(f"{', '.join(idle)}: means nothing to model {name} with mixer={mixer!r}; "
                         "leave it out, or set the other mixer, 'focal' or 'attention'")
    sizes = dict(num_classes=num_classes, num_frames=num_frames, image_size=image_size)
    return trunk(**MODELS[name] | {key: value for key, value in sizes.items() if value is not None}
                 | overrides)


# ----------------------------------------------------------------------------- weights

def read_checkpoint(path):
    """
    A checkpoint as a dict, on the CPU. Reads data only (weights_only=True): a file cannot run code.
    Released Video-FocalNets hold a pickled yacs node beside the weights, read as a plain dict.
    Raises FileNotFoundError, or ValueError for a damaged file (the zip's CRCs check every byte).
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        if zipfile.is_zipfile(path) and (bad := zipfile.ZipFile(path).testzip()):
            raise ValueError(f"the checksum of {bad} inside is wrong")
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
    {'layers.0.blocks.1.branches.focal.f.weight': w}. Ours pass unchanged. What the released Linear
    Video Transformer carries but never uses, new_fc, goes.
    """
    block = next(module for module in model.modules() if isinstance(module, Block))
    mixer = next(name for name in block.branches if name not in ("time", "mlp"))
    ours = {}
    for key, value in state.items():
        for pattern, name in (
                (r"^base_model\.", ""), (r"^consensus\.mlp_head\.", "head."),
                (r"\.temporal_norm1\.", ".norms.time."), (r"\.temporal_attn\.", ".branches.time."),
                (r"\.norm1\.", f".norms.{mixer}."), (r"\.norm2\.", ".norms.mlp."),
                (r"(blocks\.\d+)\.(modulation|attn)\.", rf"\1.branches.{mixer}."),
                (r"(blocks\.\d+)\.mlp\.", r"\1.branches.mlp."), (r"dwconv\.dwconv", "dwconv"),
                (r"\.gamma_1$", f".gammas.{mixer}"), (r"\.gamma_2$", ".gammas.mlp")):
            key = re.sub(pattern, name, key)
        if not key.startswith("new_fc."):
            ours[key] = value
    return ours


def load_weights(model, path_or_state_dict, temporal_init="fresh"):
    """
    Fill `model` from a checkpoint file or a state dict: ours, a released Video-FocalNet, or an
    image FocalNet (Microsoft's focalnet_*_srf.pth), which is inflated: the network acts on every
    frame, and its temporal branch stays
      'fresh'     as initialised (what the released code does: the start is 20 to 30 times smaller
                  than the image network's), or
      'identity'  h_temporal = (weight 0, bias 1): m_t is exactly one, and a clip of one repeated
                  frame computes what the image network computes on that frame. Ours; needs design
                  'parallel' or 'sequential', fusion 'multiply'.
    With a tubelet the stem's kernel is repeated along time and divided by its length. A head with
    another class count stays fresh. Returns and prints {'loaded', 'fresh', 'left_over'}: lists of
    keys. Raises ValueError for anything else that is missing, unexpected, or of another shape.
    """
    if temporal_init not in ("fresh", "identity"):
        raise ValueError(f"temporal_init={temporal_init!r}: use 'fresh' or 'identity'")
    source = (path_or_state_dict if isinstance(path_or_state_dict, dict)
              else read_checkpoint(path_or_state_dict))
    where = "weights" if isinstance(path_or_state_dict, dict) else path_or_state_dict
    own = model.state_dict()
    state = next((source[key] for key in ("model", "model_state", "state_dict_ema")
                  if key in source), source)
    state = our_names(model, state)
    temporal = [key for key in own if "_temporal" in key]
    inflate = bool(temporal) and not any(key in state for key in temporal)        # an image network knows no time
    fresh, left_over, problems = list(temporal) if inflate else [], [], []
    for key, value in list(state.items()):
        if key not in own:
            problems.append(
                f"unexpected: {key} "
                f"{tuple(value.shape) if torch.is_tensor(value) else type(value).__name__}")
            continue
        want = own[key].shape
        if value.squeeze().shape == own[key].squeeze().shape:       # a 1x1 convolution is a Linear, Conv1d a Conv2d:
            state[key] = value.reshape(want)                        # the same numbers, but for axes of length one
        elif (key == "patch_embed.proj.weight" and inflate and value.ndim == 4
              and want[:2] + want[3:] == value.shape):
            state[key] = value.unsqueeze(2).expand(want) / want[2]  # the mean over the tubelet's frames
        elif key == "temp_embed" and want[1] % value.shape[1] == 0 and value.shape[2:] == want[2:]:
            state[key] = value.repeat(1, want[1] // value.shape[1], 1, 1)          # frame t gets row t mod 8
        elif key.startswith("head.") and value.shape[1:] == want[1:]:
            fresh.append(key)
            left_over.append(key)
        else:
            problems.append(f"shape: {key} is {tuple(value.shape)} there and {tuple(want)} here")
    problems += [f"missing: {key}" for key in own if key not in state and key not in fresh]
    if problems:
        more = f"\n  and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise ValueError(f"{where} does not fit this network ({len(problems)} problems):\n  "
                         + "\n  ".join(problems[:6]) + more + "\n  is it the right --model, "
                         "and are its arguments (--set) those it was trained with?")
    loaded = [key for key in own if key not in fresh]
    model.load_state_dict({key: state[key] if key in loaded else own[key] for key in own},
                          strict=True)
    if temporal_init == "identity" and not inflate:
        raise ValueError(f"temporal_init='identity': {where} is no image network, or this one has "
                         "no temporal branch; leave it at 'fresh'")
    if temporal_init == "identity":
        for name, module in model.named_modules():
            if isinstance(module, SpatioTemporalFocalModulation):
                if module.fusion != "multiply":
                    raise ValueError("temporal_init='identity' makes a factor one; "
                                     f"with fusion={module.fusion!r} there is none")
                nn.init.zeros_(module.h_temporal.weight)
                nn.init.ones_(module.h_temporal.bias)
    notes = [f"{len(loaded)} of {len(own)} tensors loaded"]
    if inflate:
        notes.append(f"inflated from an image network, {len(temporal)} temporal tensors "
                     + ("fresh" if temporal_init == "fresh" else "start as the identity"))
    if left_over:
        notes.append(f"head swapped: {len(state[left_over[0]])} classes there, "
                     f"{len(own[left_over[0]])} here, it starts fresh")
    print(f"{where}: " + "; ".join(notes))
    return dict(loaded=loaded, fresh=fresh, left_over=left_over)


# ----------------------------------------------------------------------------- cost

def count_macs(model):
    """Multiply-adds (the papers' FLOPs) of one clip of its size; convolutions and matmuls only."""
    clip = torch.empty(1, 3, model.num_frames, model.image_size, model.image_size, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.to("meta").eval()(clip)
    return counter.get_total_flops() // 2                                # the counter counts a multiply-add as two


if __name__ == "__main__":
    print(f"{'model':<10} {'parameters':>12} {'multiply-adds':>14}   one view")
    for name in MODELS:
        with torch.device("meta"):
            model = create_model(name)
        parameters = sum(p.numel() for p in model.parameters())
        print(f"{name:<10} {parameters:>12,} {count_macs(model) / 1e9:>12.2f} G   "
              f"{model.num_frames} frames of {model.image_size} x {model.image_size}, "
              f"{model.num_classes} classes")
