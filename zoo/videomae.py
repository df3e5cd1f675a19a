"""
VideoMAE: hide nine tenths of a video, predict the rest, and learn without labels.

A token is a tubelet, 2 frames x 16 x 16 pixels; a tube is one place of the image through all T:

    clip --> tokens (B, N, C) --> the visible tenth --> blocks --> norm, Linear to C/2 channels --+
    mean (p - target)^2 <-- p, hidden pixels <-- a few blocks <-- all N: a hidden one is a learned
                                                                  vector, plus its position
A token hidden at one time only could be copied from the next frame; a tube leaves no copy. Targets
are normalised, tubelet by tubelet and colour by colour: (x - mean) / (std + 1e-6), std with n - 1.
For fine-tuning the decoder goes, all tokens are seen: blocks, mean, norm, Linear -> logits.

What trips a re-implementation: positions are fixed sines over the FLAT index, and in no file; the
last norm is each token's in pretraining and goes with the decoder, the mean's in fine-tuning; the
decoder gets the visible tokens first. Hugging Face's eps is 1e-12 (the last norm's 1e-5), here the
authors' 1e-6: logits differ by less than 1e-5. Its script gives the small network 16 heads, their
code 6: same shapes. Their loss goes back to pixels 0..1 first, which the normalisation undoes.

The toy, seeds 0, 1, 2; what a linear probe on frozen features tells, % of val (pixels as they are:
normalised, most tubelets are noise). 2 shared CPU cores (AMD EPYC), torch 2.13.0, 2026-11-26:
    random weights  60.2 61.3 58.4  | they know much: positions are in the features
    12 epochs       68.2 64.8 63.3  | 2 to 3 minutes each
    24 epochs       78.3 72.7 70.1  | 3 to 8 minutes; 3 steps alone can change it by 4 points

Source: Tong et al. 2022, arXiv:2203.12602; github.com/MCG-NJU/VideoMAE. Not here: smaller rates for
earlier layers, RandAugment, two samples of a video in a batch, their start (here torch's). --init
takes the authors' .pth and Hugging Face's MCG-NJU/videomae-*; pretrained: head and norm are fresh.
Try it: python -m zoo.videomae pretrain --model videomae_toy    writes out/pretrained.pt
        python -m zoo.videomae --model videomae_toy --init out/pretrained.pt --out tuned
"""
import os
import sys

import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

import train
from backbone import MODELS, Block, drop_path_rates, rename
from data import STEP, WEIGHTS, VideoSet, batch_keys, generator, loader, prepare, torch_seed
from linear_attn import Attention


def sines(tokens, dim):
    """Positions (1, tokens, dim): channel 2i is sin(n / 10000^(2i/dim)), 2i + 1 its cosine."""
    i = torch.arange(0, dim, 2, dtype=torch.float64)
    angle = torch.arange(tokens, dtype=torch.float64)[:, None] / 10000**(i / dim)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[None].float()


class QKV(nn.Linear):
    """(.., C) -> (.., 3C). Keys have no bias: it would shift all scores of a query alike."""

    def __init__(self, dim):
        super().__init__(dim, 3*dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x):
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        return F.linear(x, self.weight, bias)


def make_blocks(dim, depth, heads, drop_path=0.0):
    """The core's blocks, attention as of 2017: (B, N, 1, 1, C) -> same, all N tokens meet."""
    blocks = nn.Sequential()
    for rate in drop_path_rates(drop_path, depth):
        attn = Attention(dim, "joint", (1, 1, 1), heads, "softmax", "none", "concat", 0, 0)
        attn.qkv = QKV(dim)
        blocks.append(Block(dim, {"attn": attn}, drop_path=rate, eps=1e-6))
    return blocks


def released_names(state):
    """The authors' names and Hugging Face's -> ours; a pretrained file has encoder.*, decoder.*"""
    state = state.get("module", state)  # as DeepSpeed saves it
    encoder = "encoder." if any(name.startswith("decoder.") for name in state) else ""
    state = rename(state, (
        (r"^videomae\.(embeddings\.|encoder\.)?", encoder),
        (r"\bpatch_embed(dings\.projection|\.proj)\.", "patch_embed."),
        (r"\b(decoder_layers|layer)\.", "blocks."),
        (r"\.attention\.attention\.", ".attn."),
        (r"\.(attention\.output\.dense|attn\.proj)\.", ".attn.f.proj."),
        (r"\.attn\.(q|v)(_|uery\.|alue\.)bias$", r".attn.f.qkv.\1_bias"),
        (r"\.attn\.(qkv|query|key|value)\.weight$", r".attn.f.\1.weight"),
        (r"\.(norm1|layernorm_before)\.", ".attn.norm."),
        (r"\.(norm2|layernorm_after)\.", ".mlp.norm."),
        (r"\.(mlp\.fc1|intermediate\.dense)\.", ".mlp.f.fc1."),
        (r"\.(mlp\.fc2|output\.dense)\.", ".mlp.f.fc2."),
        (r"\b(fc_norm|layernorm)\.", "norm."),
        (r"^classifier\.", "head."),
    ))
    # Three Linear layers there are one here.
    for name in [name for name in state if name.endswith(".query.weight")]:
        three = [state.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        state[name.replace("query", "qkv")] = torch.cat(three)
    return state


class VideoMAE(nn.Module):
    """The encoder, and a head; num_classes=0: features. tubelet, patch: frames and side of a token.
    drop_path: the last block's. mask_ratio, decoder_depth, normalize (targets): for pretraining."""

    image_lacks = r"^(norm|head)\."  # what a pretrained file lacks

    def __init__(self, num_classes=400, num_frames=16, image_size=224, tubelet=2, patch=16,
                 dim=768, depth=12, heads=12, drop_path=0.1, mask_ratio=0.9, decoder_depth=4,
                 normalize=True):
        super().__init__()
        if num_frames % tubelet or image_size % patch:
            raise ValueError(f"{tubelet=} must divide {num_frames=}, {patch=} {image_size=}")
        self.num_frames = num_frames
        self.image_size = image_size
        self.grid = (num_frames // tubelet, (image_size // patch)**2)  # T, places of a frame
        self.patch_embed = nn.Conv3d(3, dim, (tubelet, patch, patch), (tubelet, patch, patch))
        self.register_buffer("position", sines(self.grid[0] * self.grid[1], dim), persistent=False)
        self.blocks = make_blocks(dim, depth, heads, drop_path)
        self.norm = nn.LayerNorm(dim, 1e-6)
        self.head = nn.Linear(dim, num_classes) if num_classes else nn.Identity()

    def our_names(self, state):
        """Released names -> ours. Of a pretrained file the encoder stays, without its norm."""
        state = released_names(state)
        if not any(name.startswith("decoder.") for name in state):
            return state
        return {name.removeprefix("encoder."): value for name, value in state.items()
                if name.startswith("encoder.") and not name.startswith("encoder.norm.")}

    def tokens(self, clip):
        """(B, 3, T, H, W) -> (B, N, C), time-major, each with its position."""
        return self.patch_embed(clip).flatten(2).transpose(1, 2) + self.position

    def forward(self, clip):
        """clip: (B, 3, T, H, W), normalised -> (B, num_classes)."""
        x = self.blocks(self.tokens(clip)[:, :, None, None])
        return self.head(self.norm(x.mean((1, 2, 3))))


def mask_tubes(B, grid, ratio):
    """-> bool (B, N), True is hidden: of each clip the same int(ratio * places) in each frame."""
    T, places = grid
    return (torch.rand(B, places).argsort(1) < int(ratio * places)).repeat(1, T)


class MaskedTubes(nn.Module):
    """An encoder, VideoMAE with num_classes=0, and a decoder that predicts what is hidden."""

    def __init__(self, encoder, dim, depth, heads):
        super().__init__()
        self.encoder = encoder
        C, _, t, p, _ = encoder.patch_embed.weight.shape
        self.encoder_to_decoder = nn.Linear(C, dim, bias=False)
        self.mask_token = nn.Parameter(0.02 * torch.randn(dim))
        self.register_buffer("position", sines(encoder.position.shape[1], dim), persistent=False)
        self.decoder = nn.ModuleDict({"blocks": make_blocks(dim, depth, heads),
                                      "norm": nn.LayerNorm(dim, 1e-6),
                                      "head": nn.Linear(dim, 3*t*p*p)})
        self.our_names = released_names

    def forward(self, clip, mask):
        """clip (B, 3, T, H, W), mask (B, N), as many True in each row -> (B, hidden, pixels)."""
        B = len(clip)
        x = self.encoder.tokens(clip)[~mask].unflatten(0, (B, -1))  # only the visible ones
        x = self.encoder.norm(self.encoder.blocks(x[:, :, None, None])[:, :, 0, 0])
        x = self.encoder_to_decoder(x)  # (B, visible, dim)
        # To attention the order of tokens is nothing: the visible ones first, then the hidden.
        position = self.position.expand(B, -1, -1)
        x = x + position[~mask].view_as(x)
        hidden = self.mask_token + position[mask].unflatten(0, (B, -1))
        x = self.decoder["blocks"](torch.cat([x, hidden], dim=1)[:, :, None, None])[:, :, 0, 0]
        return self.decoder["head"](self.decoder["norm"](x[:, -hidden.shape[1]:]))

    def loss(self, clip, mask, normalize=True):
        """The mean square error in the hidden tubelets."""
        t, p, _ = self.encoder.patch_embed.kernel_size
        x = clip.unflatten(4, (-1, p)).unflatten(3, (-1, p)).unflatten(2, (-1, t))
        x = x.permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(4, 6)  # (B, T, H, W, t*p*p, 3)
        x = x.flatten(1, 3)[mask]  # (hidden tubelets of all clips, t*p*p, 3)
        if normalize:
            x = (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-6)
        return F.mse_loss(self(clip, mask).flatten(0, 1).float(), x.flatten(1))


@torch.no_grad()
def probe(encoder, sets, cfg):
    """Percent of val that least squares on frozen features tells, fitted to those of train."""
    features = []
    for split in (sets["train"], sets["val"]):
        views = VideoSet(split.clips, split.labels, split.classes, cfg, views="1x1")
        parts = torch.arange(len(views)).split(cfg.batch_size)
        batches = loader(views, [[(0, int(i)) for i in part] for part in parts], cfg.workers)
        x = torch.cat([encoder(prepare(batch, cfg, cfg.device)) for batch in batches])
        features.append(F.pad(x.double().cpu(), (0, 1), value=1.0))  # and a constant
    y = F.one_hot(torch.tensor(sets["train"].labels)).double()
    scores = features[1] @ torch.linalg.lstsq(features[0], y).solution
    return 100 * (scores.argmax(1) == torch.tensor(sets["val"].labels)).double().mean().item()


def pretrain(words):
    """Flags, the last of two counts -> OUT/pretrained.pt; prints a linear probe's verdict."""
    recipe = TUBES_TOY if train.parse_args(words)[0].data == "toy" else TUBES
    cfg, checkpoint = train.parse_args([f"--{k}={v}" for k, v in recipe.items()] + words)
    train.check(cfg)
    train.where_to_run(cfg)
    if checkpoint or cfg.world * cfg.accumulate > 1 or cfg.precision == "float16":
        raise ValueError("pretrain: one process, no --init, --resume, --accumulate, float16")
    sets = train.open_sets({}, cfg)

    # The decoder has half of the width, and half of the heads.
    torch.manual_seed(torch_seed(generator(WEIGHTS, cfg.seed)))
    encoder = train.network(cfg, num_classes=0)
    model = MaskedTubes(encoder, cfg.dim // 2, cfg.decoder_depth, max(1, cfg.heads // 2))
    model.to(cfg.device)
    optimizer, _, _, steps, per_epoch = train.set_up(model, sets["train"], cfg, {})
    before = probe(encoder, sets, cfg)
    keys = batch_keys(len(sets["train"]), cfg.seed, 0, steps, cfg.batch_size)
    os.makedirs(cfg.out, exist_ok=True)
    batches = loader(sets["train"], keys, cfg.workers)
    for step, batch in enumerate(tqdm(batches, total=steps, unit="step", disable=None)):
        for group in optimizer.param_groups:
            group["lr"] = train.lr_at(step, steps, cfg)
        torch.manual_seed(torch_seed(generator(STEP, cfg.seed, step, 0, 0)))
        x = prepare(batch, cfg, cfg.device)
        mask = mask_tubes(len(x), encoder.grid, cfg.mask_ratio).to(x.device)
        with train.autocast(cfg):
            loss = model.loss(x, mask, cfg.normalize)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), cfg.clip_grad or torch.inf)
        optimizer.step()
        if (step + 1) % per_epoch == 0 or step + 1 == steps:
            tqdm.write(f"epoch {(step + 1) / per_epoch:.3g} | loss {loss.item():.4f}")
            torch.save({"model": model.state_dict()}, os.path.join(cfg.out, "pretrained.pt"))
    after = probe(encoder, sets, cfg)
    print(f"a linear probe before: {before:.1f} %, after: {after:.1f} %")


MODELS |= {  # K400 top-1 of the released files, 5x3 views | ours
    "videomae_s": dict(trunk=VideoMAE, dim=384, heads=6),  # 79.0 | not run
    "videomae_b": dict(trunk=VideoMAE),  # 81.5 | not run
    "videomae_l": dict(trunk=VideoMAE, dim=1024, depth=24, heads=16, decoder_depth=12),  # 85.2 | no
    "videomae_toy": dict(trunk=VideoMAE, num_frames=8, image_size=64, patch=8, dim=64, depth=2,
                         heads=2, drop_path=0.0, decoder_depth=1, normalize=False, num_classes=8),
}
train.RANGES["mask_ratio"] = (0.01, 0.99)

# As released, for B; pretraining on Something-Something has --epochs 2400 --interval 2.
K400 = dict(epochs=75.0, warmup=5/75, optimizer="adamw", base_lr=5e-4, lr_batch=256, min_lr=0.002,
            warmup_lr=0.002, weight_decay=0.05, clip_grad=0.0, sampling="dense", views="5x3",
            jitter=0.0, grey=0.0, erase=0.25)
SSV2 = K400 | dict(epochs=30.0, warmup=5/30, sampling="tsn", views="2x3", flip=0.0)
train.RECIPES["videomae"] = {"toy": train.LVT_TOY, "own": train.OWN, "k400": K400, "ssv2": SSV2}
TUBES = K400 | dict(epochs=1600.0, warmup=40/1600, base_lr=1.5e-4, warmup_lr=0.007, min_lr=0.067,
                    betas=(0.9, 0.95), drop_path=0.0, crop="multi_scale", flip=0.0, erase=0.0)
TUBES_TOY = dict(epochs=24.0, base_lr=0.002, betas=(0.9, 0.95))  # ours, by trial

if __name__ == "__main__":
    if sys.argv[1:2] == ["pretrain"]:
        sys.exit(pretrain(sys.argv[2:]))
    train.main()
