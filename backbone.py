"""
The networks: a video clip in, class scores out.

A block is residual branches, one after the other:

    x = x + mixer(norm(x))        for each of its mixers: mixes tokens
    x = x + mlp(norm(x))          acts on each token alone

The mixer defines the network. Focal modulation (focal.py) mixes space and time at once; attention
(linear_attn.py) usually comes twice, along time first, then across space. Two trunks take either:

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

Inside, everything is channels-last: (B, T, H, W, C). No weight depends on H and W, and nothing is
told where in the image it is: position enters through the zero padding of convolutions and shifts.

Your own mixer is one line, from a file of your own: MIXERS["name"] = lambda dim, size, options: ...
Your own network, too: MODELS["name"] = dict(trunk=YourClass, ...).

Sources: Wasim et al. 2023, arXiv:2307.06947 (Video-FocalNet); Yang et al. 2022, arXiv:2203.11926
(FocalNet); "Linear Video Transformer with Feature Fixation", arXiv:2210.08164.
Try it: python backbone.py    every preset with its parameters and multiply-adds, 5 s
"""
import collections
import copy
import inspect
import os
import re
import zipfile

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from focal import SpatioTemporalFocalModulation, across_both, across_space
from linear_attn import Attention


# --------------------------------------------------- the parts: embedding, MLP, branch, block

class PatchEmbed(nn.Module):
    """
    Strided convolution, then LayerNorm: the stem, and the step from one stage to the next.
    (B, T, H, W, C) -> (B, T / tubelet, H / stride, W / stride, dim).
    """

    def __init__(self, in_dim, dim, kernel, stride, padding=0, tubelet=1):
        super().__init__()
        # A tubelet of frames becomes one: then the convolution is 3-d.
        if tubelet == 1:
            self.proj = nn.Conv2d(in_dim, dim, kernel, stride, padding)
        else:
            self.proj = nn.Conv3d(in_dim, dim, (tubelet, kernel, kernel),
                                  stride=(tubelet, stride, stride), padding=(0, padding, padding))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x):
        look = across_space if isinstance(self.proj, nn.Conv2d) else across_both
        return self.norm(look(self.proj, x))


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


class Branch(nn.Module):
    """
    x + gamma * f(norm(x)), (B, T, H, W, dim) -> same. In training it is left out at random.

    f            any module, (B, T, H, W, dim) -> same
    drop_path    probability that it is left out: then x passes as it is (arXiv:1603.09382)
    per_frame    draw that for each frame of a clip, not for each clip (released Video-FocalNet)
    postln       x + gamma * norm(f(x))
    layerscale   gamma, a learned factor per channel, from 1e-4; without it there is none
    """

    def __init__(self, dim, f, drop_path=0.0, per_frame=False, postln=False, layerscale=False,
                 eps=1e-5):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps)
        self.f = f
        self.gamma = nn.Parameter(torch.full((dim,), 1e-4)) if layerscale else None
        self.postln = postln
        self.drop_path = drop_path
        self.per_frame = per_frame

    def forward(self, x):
        y = self.norm(self.f(x)) if self.postln else self.f(self.norm(x))
        if self.gamma is not None:
            y = self.gamma * y
        if self.training and self.drop_path > 0:
            # The mean stays y, so that evaluation needs no factor.
            B, T = y.shape[:2]
            draw = torch.rand(B, T if self.per_frame else 1, 1, 1, 1, device=y.device)
            kept = draw >= self.drop_path
            y = y * kept / (1 - self.drop_path)
        return x + y


class Block(nn.Sequential):
    """
    Its mixers, {'time': module, 'space': module}, then the MLP, each in a Branch of that name:
    x = block.time(x), x = block.space(x), x = block.mlp(x). See Branch for the arguments.
    """

    def __init__(self, dim, mixers, dwconv=False, drop_path=0.0, per_frame=False, postln=False,
                 layerscale=False, eps=1e-5):
        parts = mixers | {"mlp": Mlp(dim, dwconv)}
        super().__init__(collections.OrderedDict(
            (name, Branch(dim, f, drop_path, per_frame, postln, layerscale, eps))
            for name, f in parts.items()))


def drop_path_rates(last, blocks):
    """Drop path of each block: linear from 0 at the first to `last` at the last."""
    return [last * i / max(blocks - 1, 1) for i in range(blocks)]


# --------------------------------------------------- mixers: words, joined by +

def defaults(f):
    """The arguments of a function or a class that have a default, {'levels': 2, ..}."""
    parameters = inspect.signature(f).parameters
    return {name: p.default for name, p in parameters.items() if p.default is not p.empty}


# word: f(dim, size, options) -> a module, (B, T, H, W, dim) -> same. size: (T, H, W) of the tokens;
# options: a dict, those of OPTIONS. 'time+space' is divided attention, as released; 'space+time'
# the text's order; 'space' alone, with its temporal shift, XViT's (arXiv:2106.05968).
MIXERS = {
    "focal": lambda dim, size, options: SpatioTemporalFocalModulation(dim, **options),
    "time": lambda dim, size, options: Attention(dim, "time", size, **options),
    "space": lambda dim, size, options: Attention(dim, "space", size, **options),
    "joint": lambda dim, size, options: Attention(dim, "joint", size, **options),
}

# What a mixer may be told, with its defaults: each is an argument of a network that has it. A word
# that is not here has no options.
OPTIONS = {
    "focal": defaults(SpatioTemporalFocalModulation),
    "time": defaults(Attention),
    "space": defaults(Attention),
    "joint": defaults(Attention),
}


def words_of(mixer):
    """'time+space' -> ['time', 'space']; ValueError for an unknown word, or one twice."""
    words = mixer.split("+")
    for word in words:
        if word not in MIXERS:
            raise ValueError(f"mixer={mixer!r}: there is no {word!r} here, but "
                             f"{', '.join(MIXERS)}; does another file add it (python -m zoo.NAME)?")
    if len(set(words)) < len(words):
        raise ValueError(f"mixer={mixer!r}: each word once")
    return words


def make_mixers(mixer, dim, size, options):
    """'time+space' -> {'time': module, 'space': module}, each told its own options only."""
    mixers = {}
    for word in words_of(mixer):
        own = {name: options[name] for name in OPTIONS.get(word, {}) if name in options}
        mixers[word] = MIXERS[word](dim, size, own)
    return mixers


# --------------------------------------------------- the trunks

class Pyramid(nn.Module):
    """
    Stages of blocks; between two stages the image shrinks by 2 each way, the channels double.

    num_classes      size of the output; 0 = no head: the output is the pooled feature
    num_frames, image_size    what it is for; mixer='focal' runs any T, H, W that the strides divide
    patch            side of the square that becomes a token, pixels
    dim, depths      channels of the first stage; blocks of each stage, as many stages as numbers
    tubelet          frames that the stem merges into one; its convolution is 3-d if more than 1
    conv_embed       overlapping convolutions (7x7 stem, 3x3 between stages), not disjoint patches
    layerscale, postln, drop_path    see Branch; drop_path is the last block's, rising from 0
    weight_init      'scratch': Linear N(0, 1/fan_in), biases of h and h_temporal one: modulators
                     that start around one let the gradient pass.
                     'released': Linear N(0, .02^2) with biases 0, the rest as torch does it, h and
                     h_temporal too (they are convolutions there). A start for image weights: from
                     nothing it hardly learns, with SGD not at all, as q * m_s * m_t is a product
                     of three small terms and each gradient holds two of them.
    mixer, options   words of MIXERS joined by +, and what they are told: a dict, see OPTIONS.
                     those of PER_STAGE may be a tuple, one number for each stage
    """

    # What an image network lacks: load_weights may leave these names fresh, all or none.
    image_lacks = r"_temporal|\.time\."

    def __init__(self, num_classes=400, num_frames=8, image_size=224, patch=4, dim=96,
                 depths=(2, 2, 6, 2), tubelet=1, conv_embed=False, layerscale=False, postln=False,
                 drop_path=0.2, weight_init="scratch", mixer="focal", options=None):
        super().__init__()
        if conv_embed and (tubelet > 1 or patch != 4):
            # With a tubelet the released code crashes: there is nothing to be faithful to.
            raise ValueError(f"conv_embed=True with patch={patch}, tubelet={tubelet}: the "
                             "overlapping stem is 2-d and has stride 4, use patch=4, tubelet=1")
        stages = len(depths)
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

        # The stages; between two of them the side halves and the channels double.
        rates = drop_path_rates(drop_path, sum(depths))
        self.layers = nn.ModuleList()
        for s, depth in enumerate(depths):
            c = dim * 2**s
            side = image_size // (patch * 2**s)
            own = options_of_stage(options or {}, s, stages)
            blocks = nn.ModuleList()
            for _ in range(depth):
                mixers = make_mixers(mixer, c, (num_frames // tubelet, side, side), own)
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

    def our_names(self, state):
        """Released Video-FocalNets' and image FocalNets' names -> ours, which pass unchanged."""
        return rename(state, (
            (r"\.norm1\.", ".focal.norm."),
            (r"\.modulation\.", ".focal.f."),
            (r"\.gamma_1$", ".focal.gamma"),
            (r"\.norm2\.", ".mlp.norm."),
            (r"\.mlp\.fc", ".mlp.f.fc"),
            (r"\.gamma_2$", ".mlp.gamma"),
        ))

    def forward(self, clip):
        """clip: (B, 3, T, H, W), normalised -> (B, num_classes)."""
        self.check(*clip.shape[2:])
        x = clip.permute(0, 2, 3, 4, 1)  # channels-last
        x = self.patch_embed(x)  # (B, T/tubelet, H/patch, W/patch, dim)
        for stage in self.layers:
            for block in stage["blocks"]:
                x = block(x)
            if "downsample" in stage:
                x = stage["downsample"](x)  # half the side, twice the channels

        # All tokens of all frames count alike, there is no class token.
        x = self.norm(x).mean((1, 2, 3))  # (B, C)
        return self.head(x)


PER_STAGE = ("levels", "window", "heads")  # one number for all stages of a Pyramid, or one for each


def options_of_stage(options, s, stages):
    """The options of a network -> those of stage s. ValueError for another number of stages."""
    own = dict(options)
    for name in PER_STAGE:
        value = options.get(name)
        if isinstance(value, (tuple, list)):
            if len(value) != stages:
                raise ValueError(f"{name}={value}: one number, or one for each of {stages} stages")
            own[name] = value[s]
    return own


class Plain(nn.Module):
    """
    A ViT for clips: all blocks have the same tokens and width, no class token.

    num_classes, num_frames, image_size    see Pyramid; the temporal embedding binds num_frames
    dim, depth       width, number of blocks
    patch, stride    of the embedding; it overlaps, and pads by patch // 2, where stride < patch
    temp_embed       a learned vector for each frame, from 0. The released one is 8 long for any T,
                     so that frames t and t + 8 share it; ours has one per frame
    head_hidden      width of the head's MLP; 768 as released, whatever dim is
    drop_path        rate of the last block, drawn per clip
    dropout          on the tokens before the mean, and in the head
    weight_init      'scratch': Linear N(0, 1/fan_in); 'released': Linear N(0, .02^2); with both
                     convolutions N(0, 2/fan_out), biases 0
    mixer, options   see Pyramid
    """

    image_lacks = r"\.time\."

    def __init__(self, num_classes=174, num_frames=16, image_size=224, dim=512, depth=12, patch=16,
                 stride=14, temp_embed=True, head_hidden=768, drop_path=0.0, dropout=0.5,
                 weight_init="scratch", mixer="time+space", options=None):
        super().__init__()
        # As released, patches overlap by two pixels, and the image is padded for them.
        self.num_classes = num_classes
        self.num_frames = num_frames
        self.image_size = image_size
        self.patch = patch
        self.padding = patch // 2 if stride < patch else 0
        self.mixer = mixer
        self.temp_embed = nn.Parameter(torch.zeros(1, num_frames, 1, dim)) if temp_embed else None
        self.check(num_frames, image_size, image_size)

        # Pixels -> tokens: 224 x 224 give 17 x 17, 336 x 336 give 25 x 25.
        self.patch_embed = PatchEmbed(3, dim, kernel=patch, stride=stride, padding=self.padding)
        side = (image_size + 2*self.padding - patch) // stride + 1

        # The blocks, all alike.
        self.blocks = nn.ModuleList()
        for rate in drop_path_rates(drop_path, depth):
            mixers = make_mixers(mixer, dim, (num_frames, side, side), options or {})
            self.blocks.append(Block(dim, mixers, dwconv=True, drop_path=rate, eps=1e-6))

        # The end: norm, mean (in forward), an MLP for the scores.
        self.norm = nn.LayerNorm(dim, 1e-6)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, head_hidden), nn.GELU(), nn.Dropout(dropout),
            nn.Linear(head_hidden, num_classes)) if num_classes else nn.Identity()
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

    def our_names(self, state):
        """The released transformer's names -> ours. new_fc, which it never uses, goes."""
        other = "joint" if "joint" in self.mixer.split("+") else "space"
        state = rename(state, (
            (r"^base_model\.", ""),
            (r"^consensus\.mlp_head\.", "head."),
            (r"\.temporal_norm1\.", ".time.norm."),
            (r"\.temporal_attn\.", ".time.f."),
            (r"\.norm1\.", f".{other}.norm."),
            (r"\.attn\.", f".{other}.f."),
            (r"\.norm2\.", ".mlp.norm."),
            (r"\.mlp\.dwconv\.dwconv\.", ".mlp.f.dwconv."),
            (r"\.mlp\.fc", ".mlp.f.fc"),
        ))
        return {name: value for name, value in state.items() if not name.startswith("new_fc.")}

    def forward(self, clip):
        """clip: (B, 3, T, H, W), normalised -> (B, num_classes)."""
        self.check(*clip.shape[2:])
        x = clip.permute(0, 2, 3, 4, 1)  # channels-last
        x = self.patch_embed(x)  # (B, T, G, G, C)
        if self.temp_embed is not None:
            x = x + self.temp_embed[..., None, :]  # (1, T, 1, 1, C): the same for a whole frame
        for block in self.blocks:
            x = block(x)

        # As released, this dropout acts on tokens, before the mean.
        x = self.dropout(self.norm(x)).mean((1, 2, 3))  # (B, C)
        return self.head(x)


def init_weights(model, weight_init):
    """Start values: see `weight_init` of the two trunks. Raises ValueError for an unknown name."""
    if weight_init not in ("released", "scratch"):
        raise ValueError(f"weight_init={weight_init!r}: use 'released' or 'scratch'")
    for name, module in model.named_modules():
        # h and h_temporal of focal modulation are 1x1 convolutions there: they start as torch's do.
        if re.search(r"\.focal\.f\.h(_temporal)?$", name):
            if weight_init == "scratch":
                nn.init.ones_(module.bias)
        # All other Linear layers.
        elif isinstance(module, nn.Linear):
            std = 0.02 if weight_init == "released" else module.in_features**-0.5
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        # The transformer's convolutions; those of the Video-FocalNets stay as torch makes them.
        elif isinstance(model, Plain) and name.endswith(("patch_embed.proj", ".dwconv")):
            if module is not None:
                fan_out = module.weight[0, 0].numel() * module.out_channels / module.groups
                nn.init.normal_(module.weight, std=(2 / fan_out)**0.5)
                nn.init.zeros_(module.bias)


# --------------------------------------------------- presets

# A preset is its class and the arguments that differ from the defaults there, which are the
# paper's; an argument may also be an option of its mixer. Beside each the paper's top-1 | ours.
MODELS = {
    # Video-FocalNets: K400, 4x3 views
    "focal_t": dict(trunk=Pyramid, dim=96, depths=(2, 2, 6, 2), drop_path=0.2),  # 79.8 | not run
    "focal_s": dict(trunk=Pyramid, dim=96, depths=(2, 2, 18, 2), drop_path=0.3),  # 81.4 | not run
    "focal_b": dict(trunk=Pyramid, dim=128, depths=(2, 2, 18, 2), drop_path=0.5),  # 83.6 | not run
    # Ours, for the toy data: two stages of 8 x 8 and 4 x 4 tokens.
    "focal_toy": dict(trunk=Pyramid, image_size=64, patch=8, dim=32, depths=(1, 2), drop_path=0.0,
                      num_classes=8),

    # Linear Video Transformer: SSv2, 2x3 views (Table 7)
    "lvt": dict(trunk=Plain, num_frames=16),  # 65.46 | not run
    "lvt_s": dict(trunk=Plain, num_frames=8),  # 63.48 | not run
    "lvt_h": dict(trunk=Plain, num_frames=32),  # 65.67 | not run
    "lvt_hr": dict(trunk=Plain, num_frames=16, image_size=336),  # 65.85 | not run
    # Ours, for the toy data: two blocks of 5 x 5 tokens.
    "lvt_toy": dict(trunk=Plain, num_frames=8, image_size=64, dim=64, depth=2, heads=2,
                    head_hidden=96, dropout=0.0, num_classes=8),
}


def arguments(name, mixer=None):
    """
    Everything a preset can be told, with its value, {'num_classes': 400, ..}: the arguments of its
    class and the options of its mixer, or of another `mixer`. ValueError: no such preset.
    """
    if name not in MODELS:
        raise ValueError(f"no model {name!r} here; there are {', '.join(MODELS)}. Does another "
                         "file add it (python -m zoo.NAME)?")
    preset = {key: value for key, value in MODELS[name].items() if key != "trunk"}
    known = defaults(MODELS[name]["trunk"])
    known.pop("options", None)
    if "mixer" in known:  # a class without mixers has no options
        preset["mixer"] = mixer or preset.get("mixer", known["mixer"])
        for word in words_of(preset["mixer"]):
            known |= OPTIONS.get(word, {})
    return known | {key: value for key, value in preset.items() if key in known}


def create_model(name, **changes):
    """
    A preset of MODELS, with any of its arguments changed; None keeps the preset's value. ValueError
    for unknown names and arguments (an option of another mixer is one), and what cannot be.
    """
    changes = {key: value for key, value in changes.items() if value is not None}
    known = arguments(name, changes.get("mixer"))
    for key in changes:
        if key not in known:
            raise ValueError(f"{name} has no argument {key} with mixer={known.get('mixer')!r}; it "
                             f"takes {', '.join(known)}")

    # The class has arguments, its mixers have options.
    known |= changes
    trunk = MODELS[name]["trunk"]
    signature = defaults(trunk)
    own = {key: value for key, value in known.items() if key in signature}
    if "options" in signature:
        own["options"] = {key: value for key, value in known.items() if key not in signature}
    return trunk(**own)


# --------------------------------------------------- weights: read, rename, inflate, report

def read_checkpoint(path):
    """
    A checkpoint as a dict, on the CPU. Reads data only (weights_only=True): a file cannot run code.
    Released Video-FocalNets hold a pickled yacs node beside the weights, read as a plain dict.
    Raises FileNotFoundError, or ValueError for what is damaged (the zip's CRCs check every byte),
    or holds more than weights.
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
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused:
            raise ValueError(
                f"{path} holds a {refused[1]}, and only tensors and plain values are read. If you "
                "trust it, save its weights alone: ckpt = torch.load(path, weights_only=False); "
                "torch.save({'model': ckpt['model']}, 'weights.pt')") from error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "it is empty"
        raise ValueError(f"{path} cannot be read as a checkpoint of torch: {reason}\n  it is "
                         "damaged, or of another kind; copy or download it again") from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{path} holds a {type(checkpoint).__name__}, not a dict of weights")
    return checkpoint


def weights_of(checkpoint, model):
    """
    The weights of a checkpoint, which stand alone, or beside an optimizer's state, say; without the
    prefixes that DistributedDataParallel and torch.compile leave, by the names of `model`: its
    our_names(state), if it has one, knows other programs' names.
    """
    for name in ("model", "model_state", "state_dict", "model_state_dict", "state_dict_ema"):
        if isinstance(checkpoint.get(name), dict):
            checkpoint = checkpoint[name]
            break
    state = {re.sub(r"^((module|_orig_mod)\.)+", "", str(name)): value
             for name, value in checkpoint.items()}
    return model.our_names(state) if hasattr(model, "our_names") else state


def rename(state, renames):
    """{key: value} with each (pattern, replacement) applied to its keys, one after the other."""
    ours = {}
    for name, value in state.items():
        for pattern, replacement in renames:
            name = re.sub(pattern, replacement, name)
        ours[name] = value
    return ours


def fitted(name, value, want):
    """A checkpoint's tensor in the shape `want` of this network's; None if that cannot be."""
    # A 1x1 convolution is a Linear, a Conv1d is a Conv2d: the same but for axes of length one.
    if [n for n in value.shape if n != 1] == [n for n in want if n != 1]:
        return value.reshape(want)
    # An image stem sees a tubelet: the mean over its frames.
    if name == "patch_embed.proj.weight" and value.shape == want[:2] + want[3:]:
        return value.unsqueeze(2).expand(want) / want[2]
    # The released temporal embedding is 8 long whatever the clip: frame t gets row t mod 8.
    if name == "temp_embed" and value.shape[2:] == want[2:] and want[1] % value.shape[1] == 0:
        return value.repeat(1, want[1] // value.shape[1], 1, 1)
    return None


def fit(where, state, own, fresh):
    """
    Puts the tensors of `state` into `own`, a network's state dict -> names of a head that stays as
    it is, since its classes differ. ValueError with all that is missing (but `fresh`), unexpected,
    of another shape or not finite.
    """
    swapped = []
    problems = [f"missing: {name}" for name in own if name not in state and name not in fresh]
    for name, value in state.items():
        if not torch.is_tensor(value) or name not in own:
            problems.append(f"unexpected: {name}")
            continue
        tensor = fitted(name, value, own[name].shape)
        if tensor is None and name.startswith("head.") and value.shape[1:] == own[name].shape[1:]:
            swapped.append(name)
        elif tensor is None:
            problems.append(f"shape: {name} is {tuple(value.shape)} there "
                            f"and {tuple(own[name].shape)} here")
        elif not tensor.isfinite().all():
            problems.append(f"not finite: {name} holds nan or inf")
        else:
            own[name] = tensor

    # All at once, so that one look tells what kind of mistake it is.
    if problems:
        more = f"\n  and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise ValueError(f"{where} does not fit this network ({len(problems)} problems):\n  "
                         + "\n  ".join(problems[:6]) + more + "\n  is it the right --model, and "
                         "are its arguments those it was trained with?")
    return swapped


def load_weights(model, path_or_state_dict, temporal_init="fresh", where="weights"):
    """
    Fill `model` from a checkpoint file or a state dict: ours, a released Video-FocalNet, the
    released transformer's layout, or Microsoft's image FocalNets (focalnet_*_srf.pth). These are
    inflated: the network acts on every frame, and what it has for time stays
      'fresh'     as initialised (what the released code does: the start is 20 to 30 times smaller
                  than the image network's), or
      'identity'  h_temporal = (weight 0, bias 1), so that m_t is exactly one, or an attention along
                  time whose projection is 0: a clip of one repeated frame computes what the image
                  network computes on that frame. Ours.
    A head with another class count stays fresh. Returns and prints {'loaded', 'fresh',
    'left_over'}: lists of names. `where` names the weights in messages, if they come as a dict.
    Raises ValueError for anything else that is missing, unexpected, of another shape or not finite.
    """
    if isinstance(path_or_state_dict, dict):
        checkpoint = path_or_state_dict
    else:
        where = path_or_state_dict
        checkpoint = read_checkpoint(where)
    state = weights_of(checkpoint, model)
    own = model.state_dict()

    # An image network lacks all that is for time; a video network lacks nothing.
    lacks = getattr(model, "image_lacks", None)
    temporal = [name for name in own if lacks and re.search(lacks, name)]
    inflate = bool(temporal) and not any(name in state for name in temporal)
    if temporal_init == "identity" and not inflate:
        raise ValueError(f"temporal_init='identity': {where} is no image network, or this one has "
                         "no weights for time: leave it at 'fresh'")

    fresh = temporal if inflate else []
    swapped = fit(where, state, own, fresh)
    model.load_state_dict(own)
    if temporal_init == "identity":
        time_to_identity(model)

    # Report: a head that was swapped starts fresh as well.
    loaded = [name for name in own if name not in fresh and name not in swapped]
    report = f"{where}: {len(loaded)} of {len(own)} tensors loaded"
    if inflate:
        start = "start fresh" if temporal_init == "fresh" else "start as the identity"
        report += f"; inflated: {len(temporal)} that it lacks {start}"
    if swapped:
        report += (f"; head swapped: {len(state[swapped[0]])} classes there, "
                   f"{len(own[swapped[0]])} here, it starts fresh")
    print(report)
    return dict(loaded=loaded, fresh=fresh + swapped, left_over=swapped)


def time_to_identity(model):
    """
    Time changes nothing at first: h_temporal = (weight 0, bias 1), so that m_t = 1; the projection
    of an attention along time is 0, so that it adds nothing. ValueError where m_t is not a factor.
    """
    for module in model.modules():
        if isinstance(module, SpatioTemporalFocalModulation) and module.temporal:
            if module.fusion != "multiply":
                raise ValueError("temporal_init='identity' makes a factor one; "
                                 f"with fusion={module.fusion!r} there is none")
            nn.init.zeros_(module.h_temporal.weight)
            nn.init.ones_(module.h_temporal.bias)
        if isinstance(module, Attention) and module.word == "time":
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


if __name__ == "__main__":
    print(f"{'model':<10} {'parameters':>12} {'multiply-adds':>14}   one view")
    for name in MODELS:
        with torch.device("meta"):  # no weights are made
            model = create_model(name)
        parameters = sum(p.numel() for p in model.parameters())
        print(f"{name:<10} {parameters:>12,} {count_macs(model) / 1e9:>12.2f} G   "
              f"{model.num_frames} frames of {model.image_size} x {model.image_size}, "
              f"{model.num_classes} classes")
