"""
The networks: video clip in, class scores out.

One block serves them all: a row of residual branches, x = x + branch(norm(x)), the last of them an MLP. What sits in front of
the MLP, the mixer, decides what the network is: focal modulation (focal.py) is one branch that mixes space and time at once.
Inside, everything is channels-last, (B, T, H, W, C), and no layer knows H, W or T: one set of weights runs on any clip.

    Pyramid     clip (B, 3, T, H, W) -> stem, stride 4 -> stage 1: dim x H/4 x W/4 -> stage 2: 2 dim x H/8 x W/8 -> ...
                -> norm -> mean over T, H, W -> Linear -> (B, num_classes).   T never shrinks (the stem may, by `tubelet`).

Sources: Video-FocalNets, Wasim et al. 2023, arXiv:2307.06947; FocalNets (image), Yang et al. 2022, arXiv:2203.11926.
No network here has a position embedding: zero padding of the convolutions is all that tells a token where it is.

Try it: python backbone.py    prints every preset with its parameters and multiply-adds, 15 s on a CPU
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

# Every preset is the arguments of its class that are not its defaults; `python backbone.py` prints what it amounts to.
MODELS = {
    # Video-FocalNets                                                          paper: K400 top-1, 4x3 views | ours
    "focal_t": dict(dim=96, depths=(2, 2, 6, 2), drop_path=0.2),                   # 79.8                   | not run
    "focal_s": dict(dim=96, depths=(2, 2, 18, 2), drop_path=0.3),                  # 81.4                   | not run
    "focal_b": dict(dim=128, depths=(2, 2, 18, 2), drop_path=0.5),                 # 83.6                   | not run
    # the same network for the toy data: what learns within two minutes on two CPU cores
    "focal_toy": dict(num_classes=8, image_size=64, patch=8, dim=32, depths=(1, 2), drop_path=0.0, init="scratch"),
}


class PatchEmbed(nn.Module):
    """A strided convolution and a LayerNorm: the stem, and the step between two stages. (B, T, H, W, C) -> fewer tokens."""

    def __init__(self, in_dim, dim, kernel, stride, padding=0, tubelet=1):
        super().__init__()
        if tubelet == 1:
            self.proj = nn.Conv2d(in_dim, dim, kernel, stride, padding)
        else:
            self.proj = nn.Conv3d(in_dim, dim, (tubelet, kernel, kernel), (tubelet, stride, stride), (0, padding, padding))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x):
        if isinstance(self.proj, nn.Conv2d):
            return self.norm(across_space(self.proj, x))
        return self.norm(self.proj(x.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1))


class Mlp(nn.Module):
    """Two linear maps with a GELU between, 4 times as wide inside; every token on its own."""

    def __init__(self, dim):
        super().__init__()
        self.fc1 = nn.Linear(dim, 4*dim)
        self.fc2 = nn.Linear(4*dim, dim)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """
    Residual branches, one after the other: x = x + drop_path(gamma * branch(norm(x))), shapes (B, T, H, W, dim) throughout.

    branches     dict {name: module}, in order; the last one is the MLP
    drop_path    probability that a branch is left out in training, drawn for every frame of every clip on its own
    postln       x + norm(branch(x)) in place of x + branch(norm(x));  layerscale: a learned gamma per channel, from 1e-4
    """

    def __init__(self, dim, branches, drop_path, postln=False, layerscale=False):
        super().__init__()
        self.branches = nn.ModuleDict(branches)
        self.norms = nn.ModuleDict({name: nn.LayerNorm(dim) for name in branches})
        self.gammas = nn.ParameterDict({name: nn.Parameter(torch.full((dim,), 1e-4)) for name in branches if layerscale})
        self.drop_path, self.postln = drop_path, postln

    def forward(self, x, maps=None):
        """x: (B, T, H, W, dim) -> same; appends what the mixers show of themselves to the list `maps`, if there is one."""
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
                # As released: one draw per frame, so a clip loses the branch in some of its frames and not in others.
                keep = torch.rand(y.shape[:2], device=y.device).ge(self.drop_path).to(y.dtype) / (1 - self.drop_path)
                y = y * keep[:, :, None, None, None]                                   # mean one: nothing to do in eval()
            x = x + y
        return x


class Pyramid(nn.Module):
    """
    Stages of blocks; between two stages the image shrinks by 2 each way and the channels double. Video-FocalNet.

    num_classes          size of the output; 0 = no head, the output is the pooled feature of the last stage
    num_frames, image_size   what it is meant for: only checked here; any T, H, W that the strides divide runs
    patch                side of the square the stem turns into one token, pixels
    dim, depths          channels of the first stage; number of blocks of each stage (as many stages as there are numbers)
    levels, windows      of focal modulation, one number for all stages or one for each
    tubelet              frames that the stem merges into one (1: none; its 2-d convolution becomes a 3-d one)
    conv_embed           overlapping convolutions (7x7 stem, 3x3 between the stages) in place of disjoint patches
    layerscale, postln   see Block;  postln_in_modulation, normalize_modulator, temporal, spatial, design, fusion: see focal.py
    drop_path            rate of the last block; it rises linearly from 0 at the first
    init                 'released': Linear N(0, .02^2), biases 0, convolutions and h as torch does: a start for image weights
                         'scratch':  Linear N(0, 1/fan_in), biases 0, the biases of h and h_temporal one
                         The released start cannot learn from nothing: q, m_s and m_t are all near 0 and y is their product,
                         so every gradient carries two small factors. A modulator that starts around one passes it on.
    """

    def __init__(self, num_classes=400, num_frames=8, image_size=224, patch=4, dim=96, depths=(2, 2, 6, 2), levels=2, windows=3,
                 tubelet=1, conv_embed=False, layerscale=False, postln=False, postln_in_modulation=False,
                 normalize_modulator=False, drop_path=0.2, temporal=True, spatial=True, design="parallel", fusion="multiply",
                 init="released"):
        super().__init__()
        if tubelet > 1 and conv_embed:
            raise ValueError(f"tubelet={tubelet} with conv_embed=True: there is no such network to be faithful to (the released "
                             "code crashes on it). Use tubelet=1 or conv_embed=False.")
        if conv_embed and patch != 4:
            raise ValueError(f"patch={patch} with conv_embed=True: the overlapping stem has stride 4; leave patch at 4")
        if init not in ("released", "scratch"):
            raise ValueError(f"init={init!r}: use 'released' (then load image weights) or 'scratch'")
        stages = len(depths)
        levels, windows = ([v] * stages if isinstance(v, int) else list(v) for v in (levels, windows))
        if len(levels) != stages or len(windows) != stages:
            raise ValueError(f"levels={levels}, windows={windows}: give one number, or one for each of the {stages} stages")
        self.num_classes, self.num_frames, self.image_size = num_classes, num_frames, image_size
        self.stride, self.tubelet = patch * 2**(stages - 1), tubelet
        self.check(num_frames, image_size, image_size)
        dims = [dim * 2**s for s in range(stages)]
        rates = [drop_path * i / max(sum(depths) - 1, 1) for i in range(sum(depths))]

        if conv_embed:
            self.patch_embed = PatchEmbed(3, dim, 7, 4, padding=2)
        else:
            self.patch_embed = PatchEmbed(3, dim, patch, patch, tubelet=tubelet)
        self.layers = nn.ModuleList()
        for s in range(stages):
            blocks = nn.ModuleList()
            for _ in range(depths[s]):
                mixer = SpatioTemporalFocalModulation(dims[s], levels[s], windows[s], temporal, spatial, design, fusion,
                                                      normalize_modulator, postln_in_modulation)
                blocks.append(Block(dims[s], {"focal": mixer, "mlp": Mlp(dims[s])}, rates.pop(0), postln, layerscale))
            self.layers.append(nn.ModuleDict({"blocks": blocks}))
            if s < stages - 1:
                kernel, padding = (3, 1) if conv_embed else (2, 0)
                self.layers[s]["downsample"] = PatchEmbed(dims[s], dims[s+1], kernel, 2, padding)
        self.norm = nn.LayerNorm(dims[-1])
        self.head = nn.Linear(dims[-1], num_classes) if num_classes else nn.Identity()
        init_weights(self, init)

    def check(self, T, H, W):
        """Raises ValueError for a clip size that the strides do not divide, and names the nearest one that works."""
        if T < 1 or T % self.tubelet:
            raise ValueError(f"{T} frames: this network takes multiples of {self.tubelet} (its tubelet)")
        if min(H, W) < 1 or H % self.stride or W % self.stride:
            near = [max(1, round(side / self.stride)) * self.stride for side in (H, W)]
            raise ValueError(f"{H} x {W} pixels: height and width must be multiples of {self.stride}, the stride of the last "
                             f"stage; the nearest is {near[0]} x {near[1]}")

    def forward(self, clip, maps=None):
        """clip: (B, 3, T, H, W), normalised -> logits (B, num_classes). `maps`: a list that receives one list per stage."""
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


def init_weights(model, init):
    """Start values, see the docstrings of the trunks. h and h_temporal are 1x1 convolutions in the released code: as torch does."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and re.search(r"\.h(_temporal)?$", name):
            if init == "scratch":
                nn.init.ones_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02 if init == "released" else module.in_features**-0.5)
            nn.init.zeros_(module.bias)


def create_model(name, num_classes=None, num_frames=None, image_size=None, **overrides):
    """
    The only way in: a preset of MODELS, with any argument of its class overridden. None keeps the preset's value: 400 classes,
    8 frames, 224 pixels for the paper's networks. Raises ValueError for unknown names, arguments and impossible values.
    """
    if name not in MODELS:
        raise ValueError(f"no model {name!r}; there are {', '.join(MODELS)}")
    trunk = Pyramid
    known = list(inspect.signature(trunk).parameters)
    unknown = [key for key in overrides if key not in known]
    if unknown:
        raise ValueError(f"model {name} has no argument {', '.join(unknown)}; it takes {', '.join(known)}")
    sizes = dict(num_classes=num_classes, num_frames=num_frames, image_size=image_size)
    return trunk(**{**MODELS[name], **{k: v for k, v in sizes.items() if v is not None}, **overrides})


# ------------------------------------------------------------------------------------------------- weights

def read_checkpoint(path):
    """
    A checkpoint as a dict, on the CPU. Reads data only (weights_only=True): a file cannot run code here. Released
    Video-FocalNet files hold a pickled yacs node beside the weights; it is read as the plain dict it is.
    Raises FileNotFoundError, or ValueError for a damaged file (every byte is checked against the zip's own CRCs).
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
                         "  it is damaged or holds more than weights; copy or download it again") from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{path} holds a {type(checkpoint).__name__}, not a dict of weights")
    return checkpoint


def our_names(model, state):
    """Released key names -> ours: {'layers.0.blocks.1.modulation.f.weight': w} -> {'layers.0.blocks.1.branches.focal.f.weight': w}."""
    block = next(module for module in model.modules() if isinstance(module, Block))
    mixer = list(block.branches)[-2]                                    # 'focal': the branch in front of the MLP
    ours = {}
    for key, value in state.items():
        key = re.sub(r"\.modulation\.", f".branches.{mixer}.", key)
        key = re.sub(r"(blocks\.\d+)\.mlp\.", r"\1.branches.mlp.", key)
        key = re.sub(r"\.norm1\.", f".norms.{mixer}.", key)
        key = re.sub(r"\.norm2\.", ".norms.mlp.", key)
        key = re.sub(r"\.gamma_1$", f".gammas.{mixer}", key)
        key = re.sub(r"\.gamma_2$", ".gammas.mlp", key)
        ours[key] = value
    return ours


def load_weights(model, path_or_state_dict, temporal_init="fresh"):
    """
    Fill `model` from a checkpoint file or a state dict: ours, a released Video-FocalNet, or an image FocalNet (Microsoft's
    focalnet_*_srf.pth), which is inflated: the network acts on every frame, and its temporal branch stays
      'fresh'     as initialised (what the released code does: the start is 20 to 30 times smaller than the image network's), or
      'identity'  h_temporal = (weight 0, bias 1): m_t is exactly one, and a clip of one repeated frame computes what the image
                  network computes on that frame. Ours; needs design 'parallel' or 'sequential', fusion 'multiply'.
    With a tubelet the stem's kernel is repeated along time and divided by its length.
    A head with another class count stays fresh. Returns and prints {'loaded', 'fresh', 'left_over'}: lists of keys.
    Raises ValueError for anything else that is missing, unexpected, or of another shape: nothing is skipped in silence.
    """
    if temporal_init not in ("fresh", "identity"):
        raise ValueError(f"temporal_init={temporal_init!r}: use 'fresh' or 'identity'")
    source = path_or_state_dict if isinstance(path_or_state_dict, dict) else read_checkpoint(path_or_state_dict)
    where = "weights" if isinstance(path_or_state_dict, dict) else path_or_state_dict
    own = model.state_dict()
    state = our_names(model, source.get("model", source))
    temporal = [key for key in own if "_temporal" in key]
    inflate = bool(temporal) and not any(key in state for key in temporal)        # an image network knows nothing of time
    fresh, left_over, problems = list(temporal) if inflate else [], [], []
    for key, value in state.items():
        if key not in own:
            problems.append(f"unexpected: {key} {tuple(value.shape) if torch.is_tensor(value) else type(value).__name__}")
            continue
        want = own[key].shape
        if value.squeeze().shape == own[key].squeeze().shape:       # a 1x1 convolution is a Linear, a Conv1d a k x 1 Conv2d:
            state[key] = value.reshape(want)                        # the same numbers with or without axes of length one
        elif key == "patch_embed.proj.weight" and inflate and value.ndim == 4 and want[:2] + want[3:] == value.shape:
            state[key] = value.unsqueeze(2).expand(want) / want[2]  # the mean over the tubelet's frames
        elif key.startswith("head.") and value.shape[1:] == want[1:]:
            fresh.append(key)
            left_over.append(key)
        else:
            problems.append(f"shape: {key} is {tuple(value.shape)} there and {tuple(want)} here")
    problems += [f"missing: {key}" for key in own if key not in state and key not in fresh]
    if problems:
        more = f"\n  and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise ValueError(f"{where} does not fit this network ({len(problems)} problems):\n  " + "\n  ".join(problems[:6]) + more
                         + "\n  is it the right --model, and are its arguments (--set) those it was trained with?")
    loaded = [key for key in own if key not in fresh]
    model.load_state_dict({key: state[key] if key in loaded else own[key] for key in own}, strict=True)
    if temporal_init == "identity" and inflate:
        for name, module in model.named_modules():
            if isinstance(module, SpatioTemporalFocalModulation):
                if module.fusion != "multiply":
                    raise ValueError(f"temporal_init='identity' makes a factor one; with fusion={module.fusion!r} there is none")
                nn.init.zeros_(module.h_temporal.weight)
                nn.init.ones_(module.h_temporal.bias)
    notes = [f"{len(loaded)} of {len(own)} tensors loaded"]
    if inflate:
        notes.append(f"inflated from an image network, {len(temporal)} temporal tensors "
                     + ("fresh" if temporal_init == "fresh" else "start as the identity"))
    if left_over:
        notes.append(f"head swapped: {len(state[left_over[0]])} classes there, {len(own[left_over[0]])} here, it starts fresh")
    print(f"{where}: " + "; ".join(notes))
    return dict(loaded=loaded, fresh=fresh, left_over=left_over)


# ------------------------------------------------------------------------------------------------- cost

def count_macs(model):
    """Multiply-adds of one clip of the size the model was made for: what both papers call FLOPs. Convolutions and matmuls only."""
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
        print(f"{name:<10} {parameters:>12,} {count_macs(model) / 1e9:>12.2f} G   {model.num_frames} frames of "
              f"{model.image_size} x {model.image_size}, {model.num_classes} classes")
