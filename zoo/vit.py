r"""
Plain ViTs, made to watch: weights for images exist for every size, and time is added to them.

An image network knows what things look like. A clip is T images; what is missing is a way from one
frame to the next. Each block gets it in front of what it has:

    x = x + time(norm(x))         with the T tokens at its own place; starts as zero, fresh
    x = x + space(norm(x))        with all tokens of its frame; the image network's weights
    x = x + mlp(norm(x))          each token alone; the image network's weights

    clip (B, 3, T, H, W) -- patches, 16 x 16 --> x (B, T, 196, C), + where, + when, for 224 x 224
    x, and a class token in each frame: (B, T, 1, 197, C), to attention across space a frame is a
    row of 197 tokens; norm, the class token's mean over T, Linear -> logits (B, num_classes)

Identity start: the last layer of `time`, its projection, is zero at first. So before any training
the network says of a clip what the image network says of its frames: the class tokens' mean. Of a
still clip it says exactly the same. Training starts there, and moves away as time turns out useful.
(ViViT's model 3 starts so, arXiv:2103.15691; TimeSformer, arXiv:2102.05095, has a second projection
that is zero; it also starts as a copy of space where ours starts at random, and one class token for
the whole clip where ours has one in each frame, that looks along time as all others do.)

What it costs: the embedding of time starts at zero too, so at first the frames may come in any
order. On the toy, whose classes are directions, training does not find out what order is:

    --model vit_toy      top-1, seed 0 (chance 12.5); 2026-11-26, 2 shared CPU cores, torch 2.13.0
    --temporal_shift 0   46.9    knows the pair, left or right, in 93.2 %, guesses which of the two
    --temporal_shift 4   99.0    keys and values of the frames beside: neighbourhood association

So vit_toy has the shift. It puts zeros before the first frame and after the last, and then a still
clip is no longer exactly what the image network says: the other presets, for weights, have none.

The paper's kernel and gate on weights that exist: the Linear Video Transformer started from an
image network of its own kind, whose weights were not published. Here qkv and proj come from a ViT
that knew only the softmax; the gate starts fresh, and training has to bring them together:

    python -m zoo.vit --data k400 --root DIR --model deit_s \
        --init deit_small_patch16_224-cd65a155.pth \
        --kernel relu --fixation qkv_shared --temporal_shift 8            (not run)

    GFLOPs of --mixer    time+space                        joint              an image
    --kernel             softmax    relu    relu + gate    softmax    relu    softmax    parameters
    vit_ti, deit_ti        12.87   12.32          13.72      20.04    9.07       1.25     5,717,416
    vit_s, deit_s          48.06   46.96          49.74      56.82   34.86       4.60    22,050,664
    vit_b, deit_b         185.36  183.15         188.73     180.56  136.66      17.56    86,567,656

10^9 multiply-adds of one clip, 8 frames of 224 x 224 with 400 classes, counted by count_macs; of an
image with 1000. With time there are 7,386,448, 28,928,272 and 114,479,248 parameters, with gates
4 % to 0.3 % more. A linear kernel hardly pays within a frame, whose 197 tokens are few; it pays in
`joint`, for all 1,576 at once, which needs nothing fresh but the gate and the embedding of time.

Weights (--init): DeiT's files, {'model': ..}, for deit_*; timm's for vit_*, saved once as
    torch.save(timm.create_model("vit_small_patch16_224", pretrained=True).state_dict(), "vit_s.pt")
They differ in the mean that they want subtracted, so they are two families with a recipe each. Any
number of classes (the head starts fresh if it differs) and any image size (the table of places is
resized, bicubically, as timm does). `--pool mean` is for weights without a class token; given some
with it, it is left out. Not here: distilled DeiTs (two class tokens), DeiT III (layer scale).

Sources: Dosovitskiy et al. 2020, arXiv:2010.11929 (ViT); Touvron et al. 2020, arXiv:2012.12877
(DeiT); names and resizing as in github.com/huggingface/pytorch-image-models. The rates are those of
the Linear Video Transformer's recipe: a choice of ours, not tuned, not run.
Try it, from the root of the repository:  python -m zoo.vit --model vit_toy
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

import train
from backbone import MODELS, Block, drop_path_rates, init_weights, make_mixers, rename, words_of
from focal import across_space
from linear_attn import Attention


def resized(table, first, H, W):
    """
    A table of places, (1, first + G*G, C), for H x W patches: (1, first + H*W, C). The first rows
    belong to class tokens and stay.
    """
    G = round((table.shape[1] - first)**0.5)
    if (H, W) == (G, G):
        return table
    # As timm does, antialiased where the grid gets smaller.
    grid = table[:, first:].unflatten(1, (G, G)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, (H, W), mode="bicubic", antialias=True)
    return torch.cat([table[:, :first], grid.flatten(2).mT], dim=1)


class ViT(nn.Module):
    """
    A plain ViT for clips, (B, 3, T, H, W) -> (B, num_classes).

    num_classes, num_frames, image_size    0 classes: no head; T must be num_frames; clips of other
                     H and W resize the table of places
    patch, dim, depth    side of a patch in pixels; width and number of blocks
    pool             'token': each frame has a class token, their mean over T is the feature
                     'mean': there is none, the mean of all tokens is
    drop_path        rate of the last block, rising from 0
    weight_init      of what no weights are loaded for, see backbone.Plain
    mixer, options   see backbone.Pyramid. 'time+space', 'space' (each frame alone) and 'joint' (all
                     tokens) take image weights
    """

    # What an image network lacks: attention along time, when a frame was, gates, kernels' weights.
    image_lacks = r"\.time\.|^temp_embed$|gate|\.attend\."

    def __init__(self, num_classes=400, num_frames=8, image_size=224, patch=16, dim=384, depth=12,
                 pool="token", drop_path=0.0, weight_init="scratch", mixer="time+space",
                 options=None):
        super().__init__()
        options = options or {}
        check_options(pool, mixer, options)
        self.num_classes = num_classes
        self.num_frames = num_frames
        self.image_size = image_size
        self.patch = patch
        self.pool = pool
        self.mixer = mixer
        self.check(num_frames, image_size, image_size)

        # Pixels -> tokens; where each is, and when. The first row is the class token's place.
        G = image_size // patch
        self.grid = G
        self.first = 1 if pool == "token" else 0
        self.patch_embed = nn.Conv2d(3, dim, patch, stride=patch)
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, self.first + G*G, dim))
        self.temp_embed = nn.Parameter(torch.zeros(1, num_frames, 1, dim))
        # timm's cls_token. AdamW does not decay what is called embed.
        self.cls_embed = nn.Parameter(torch.zeros(1, 1, dim)) if self.first else None

        # The blocks. With a class token a frame is a row, as it has no place in a square.
        size = (num_frames, 1, 1 + G*G) if self.first else (num_frames, G, G)
        self.blocks = nn.ModuleList(
            Block(dim, make_mixers(mixer, dim, size, options), drop_path=rate, eps=1e-6)
            for rate in drop_path_rates(drop_path, depth))
        self.norm = nn.LayerNorm(dim, 1e-6)
        self.head = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        init_weights(self, weight_init)

        # At first, time adds nothing. (Biases are zero already.)
        for module in self.modules():
            if isinstance(module, Attention) and module.word == "time":
                nn.init.zeros_(module.proj.weight)

    def check(self, T, H, W):
        """Raises ValueError for a clip this network cannot take."""
        if T != self.num_frames:
            raise ValueError(f"{T} frames: the embedding of time has {self.num_frames}; make the "
                             f"network with num_frames={T}")
        if min(H, W) < 1 or H % self.patch or W % self.patch:
            raise ValueError(f"{H} x {W} pixels: height and width must be multiples of "
                             f"{self.patch}, the patch")

    def our_names(self, state):
        """timm's and DeiT's names -> ours, which pass unchanged; the table in our size."""
        other = "joint" if "joint" in words_of(self.mixer) else "space"
        state = rename(state, (
            (r"^patch_embed\.proj\.", "patch_embed."),
            (r"^cls_token$", "cls_embed"),
            (r"\.norm1\.", f".{other}.norm."),
            (r"\.attn\.", f".{other}.f."),
            (r"\.norm2\.", ".mlp.norm."),
            (r"\.mlp\.fc", ".mlp.f.fc"),
        ))
        # One row of the table per patch, and one more if there is a class token.
        table = state.get("pos_embed")
        first = int("cls_embed" in state)
        if torch.is_tensor(table) and ((table.shape[1] - first)**0.5).is_integer():
            state["pos_embed"] = resized(table, first, self.grid, self.grid)
            if first and self.pool == "mean":
                state["pos_embed"] = state["pos_embed"][:, 1:]
                del state["cls_embed"]
                print("class token left out: with pool='mean' the network has none")
        return state

    def forward(self, clip):
        """clip: (B, 3, T, H, W), normalised -> (B, num_classes)."""
        self.check(*clip.shape[2:])
        x = clip.permute(0, 2, 3, 4, 1)  # channels-last
        x = across_space(self.patch_embed, x)  # (B, T, G, G, C)
        B, T, H, W, C = x.shape
        x = x.flatten(2, 3)  # (B, T, G*G, C)

        # A class token in front of each frame; where a token is, the same in all frames; and when.
        if self.pool == "token":
            x = torch.cat([self.cls_embed.expand(B, T, 1, C), x], dim=2)
        x = x + resized(self.pos_embed, self.first, H, W) + self.temp_embed

        # With a class token a frame is a row to the blocks, (B, T, 1, 1 + G*G, C).
        x = x.unflatten(2, (1, -1) if self.pool == "token" else (H, W))
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        x = x[:, :, 0, 0].mean(1) if self.pool == "token" else x.mean((1, 2, 3))  # (B, C)
        return self.head(x)


def check_options(pool, mixer, options):
    """Raises ValueError for what a row of tokens cannot do: it has no rows and columns."""
    if pool not in ("token", "mean"):
        raise ValueError(f"pool={pool!r}: use 'token' or 'mean'")
    if pool == "mean":
        return
    if set(words_of(mixer)) - {"time", "space", "joint"}:
        raise ValueError(f"mixer={mixer!r} needs rows and columns of tokens, and a class token is "
                         "in none: use pool='mean', or a mixer of 'time', 'space', 'joint'")
    if options.get("spatial_shift"):
        raise ValueError(f"spatial_shift={options['spatial_shift']}: a class token has no "
                         "neighbours; use 0 (off), or pool='mean'")


# --------------------------------------------------- presets and recipes

# What the weights were trained with: the softmax, no gates, no shifts.
PLAIN = dict(trunk=ViT, kernel="softmax", fixation="none", temporal_shift=0, spatial_shift=0)
TINY = PLAIN | dict(dim=192, heads=3)
SMALL = PLAIN | dict(dim=384, heads=6)
BASE = PLAIN | dict(dim=768, heads=12)

MODELS |= {  # as image networks with 1000 classes 5.7, 22.1 and 86.6 M parameters; not run
    "vit_ti": TINY,
    "vit_s": SMALL,
    "vit_b": BASE,
    "deit_ti": TINY,
    "deit_s": SMALL,
    "deit_b": BASE,
    # Ours, for the toy data: two blocks of 4 x 4 tokens, and a shift, see the header.
    "vit_toy": PLAIN | dict(image_size=64, dim=64, depth=2, heads=2, temporal_shift=4,
                            num_classes=8),
}

# timm's ViTs want pixels from -1 to 1; DeiT's, the mean and deviation of ImageNet.
HALF = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
for family, pixels in (("vit", HALF), ("deit", IMAGENET)):
    train.RECIPES[family] = {
        "toy": train.LVT_TOY,
        "own": train.OWN | pixels,
        "k400": train.LVT_KINETICS | pixels,
        "ssv2": train.LVT | pixels,
    }


if __name__ == "__main__":
    train.main()
