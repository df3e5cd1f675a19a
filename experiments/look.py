"""
What happens inside for one clip? Does a network look where the object is?

Why it matters: in the pictures of the Video-FocalNets' paper (arXiv:2307.06947) modulators lie on
what moves and matters. A picture of one network is no evidence; numbers of several may be.

    python -m experiments.look toy:clockwise --init out/best.pt       a picture, OUT/look.png
    python -m experiments.look clip.mp4 --seconds 2 4 --init out/best.pt
    python -m experiments.look toy --init out/best.pt                 the shares of the table

Hooks do it, the core knows nothing of it. A network of zoo/NAME.py needs an `import zoo.NAME` here.

The picture has a row each for the length of the modulators in every token; for what the token that
argues most for the answer attends to, where there is attention; for what the answer depends on,
|gradient of the winning logit times input|; and for the mean size of the gates, near to global.
assets/look_toy.png is such a picture. assets/look_clip.png is a network trained on UT-Interaction
(differences of frames) that sees two seconds of Big Buck Bunny, (c) 2008 Blender Foundation,
bigbuckbunny.org, CC BY 3.0: nobody does any of its six classes there, so the answer means nothing.

In numbers: the toy knows where its L is. Below is the share of a map that lies on the L, divided by
the share of the pixels that the L covers, over 64 new clips. 1.0 is no better than a blind guess.

    network                                map                               seeds 0, 1, 2     mean
    focal_toy                              spatial modulator, first block    1.76, 0.93, 1.18  1.29
                                           temporal modulator, first block   1.82, 1.10, 1.67  1.53
                                           spatial modulator, last block     0.86, 1.00, 1.34  1.07
                                           temporal modulator, last block    1.28, 0.99, 1.05  1.11
                                           what the answer depends on        1.23, 0.82, 1.02  1.02
    --kernel softmax --fixation none       attention of the strongest token  5.30, 1.98, 1.87  3.05
                                           what the answer depends on        2.90, 2.97, 2.82  2.90
    --fixation none (linear)               attention of the strongest token  3.07, 3.42, 2.74  3.08
                                           what the answer depends on        2.67, 2.96, 2.62  2.75
    as it is (linear, feature fixation)    attention of the strongest token  2.98, 2.93, 2.07  2.66
                                           what the answer depends on        3.35, 2.86, 3.05  3.09

`python train.py`, and `--model lvt_toy --patch 8 --stride 8`, so that its tokens do not overlap and
are as large as those of the focal net's first block. All are right on 98 % of the clips or more;
the standard error over clips is 0.23 or less. 2 CPU cores (AMD EPYC), commit 63d0020. Again with
the code of today (2026-11-26, seed 0, the first two networks): 1.70, 1.84, 0.82, 1.26, 1.25; 5.35,
2.74.

Verdict: attention lies on the L in all nine transformers, and what their answer depends on does,
too. Of the modulators only the temporal one of the first block is above 1 in all three networks, in
one of them hardly: here modulators do not mean "where the object is". Softmax, linear, fixation:
not decided, seeds differ more than they do. What this does not say: a modulator is multiplied with
a query in every token; the attention of one token is one token's; tokens of the focal net's last
block are 16 pixels wide; one moving shape is not a video. To confirm the paper's pictures in
numbers takes its weights, and videos with the outlines of what is in them.
"""
import argparse
import math
import os
import sys

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

import train
from data import (DRAWN, TOY_CLASSES, BadVideo, VideoSet, generator, open_data, prepare, toy_clips,
                  torch_seed)
from focal import SpatioTemporalFocalModulation
from linear_attn import Attention, group


class AsModule(nn.Module):
    """A function as a module, so that a hook can hang on it."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *given):
        return self.function(*given)


def look_inside(model, x):
    """
    One clip x (1, 3, T, S, S) through the network and back -> scores (classes,), and two dicts by
    name: maps (t, h, w), where something is large, and gates, a mean for each level.
    """
    # Hooks write down what goes into each module, and what comes out.
    focal = [m for m in model.modules() if isinstance(m, SpatioTemporalFocalModulation)]
    attention = [m for m in model.modules() if isinstance(m, Attention)]
    for mixer in attention:
        if not isinstance(mixer.attend, nn.Module):
            mixer.attend = AsModule(mixer.attend)
    seen = {}

    def keep(module, given, y):
        seen[module] = given, y
    hooks = [module.register_forward_hook(keep) for module in model.modules()]

    # Forward, and back: how the winning logit would change with each pixel, times the pixel.
    x = x.detach().requires_grad_()
    logits = model.eval()(x)[0]
    winner = logits.argmax()
    gradient, = torch.autograd.grad(logits[winner], x)
    for hook in hooks:
        hook.remove()

    # The modulators come out of h, the gates are the last channels of f.
    maps = {}
    gates = {}
    for place, mixer in zip(("first block", "last block"), focal[:1] + focal[-1:]):
        for branch, has, end in (("spatial", mixer.spatial, ""),
                                 ("temporal", mixer.temporal, "_temporal")):
            if has:
                _, modulator = seen[getattr(mixer, "h" + end)]  # (1, t, h, w, C)
                _, f = seen[getattr(mixer, "f" + end)]
                maps[f"{branch} modulator, {place}"] = modulator[0].detach().norm(dim=-1)
                means = f[..., -mixer.num_gates:].abs().mean((0, 1, 2, 3))
                gates[f"{branch} gates, {place}"] = means.tolist()

    # The head says of each token, one by one, what it argues for. In windows no map is a whole one.
    for mixer in attention[-1:]:
        _, tokens = seen[model.norm]  # the mean of these goes into the head
        (given,), _ = seen[mixer]
        if given.shape == tokens.shape:
            argues = model.head(tokens)[0, ..., winner].detach()  # (t, h, w)
            maps["attention of the strongest token"] = attention_of(
                mixer, *seen[mixer.attend][0], int(argues.argmax()), argues.shape)
    maps["what the answer depends on"] = (gradient * x.detach()).abs().sum(1)[0]
    return logits.detach().softmax(-1), maps, gates


def attention_of(mixer, q, k, v, token, grid):
    """
    The weights with which one token, a number in the grid (t, h, w), attends to the others, a mean
    over heads -> (t, h, w), nan outside of its group. q, k, v (groups, heads, N, d).
    """
    # Which tokens are in each group, and in which group, at which place, is ours?
    places = torch.arange(math.prod(grid)).view(1, *grid, 1, 1)
    places = group(places, mixer.word)[:, 0, :, 0]  # (groups, N)
    where, at = (places == token).nonzero()[0].tolist()

    # y_i = sum_j a_ij v_j: the weight a_ij is the gradient of y_i with respect to v_j, whatever the
    # kernel, and no N x N matrix is needed.
    v = v.detach().requires_grad_()
    y = mixer.attend(q.detach(), k.detach(), v)
    gradient, = torch.autograd.grad(y[where, :, at].sum(), v)
    row = torch.full((math.prod(grid),), math.nan)
    row[places[where]] = gradient[where].mean(-1).abs().mean(0).float().cpu()
    return row.view(grid)


def draw(frames, maps, gates, path, title):
    """A row of frames (T, S, S, 3), a row for each map over the frames, and the gates as bars."""
    import matplotlib
    matplotlib.use("Agg")  # no window
    import matplotlib.pyplot as plt

    # Eight frames of a longer clip, side by side.
    T, S = frames.shape[:2]
    chosen = np.linspace(0, T - 1, min(T, 8)).round().astype(int)
    frames = np.concatenate(list(frames.numpy()[chosen]), axis=1)  # (S, 8 S, 3)
    rows = 1 + len(maps) + bool(gates)
    figure, axes = plt.subplots(rows, figsize=(1.25 * len(chosen) + 2.6, 1.3 * rows))
    figure.subplots_adjust(0.2, 0.06, 0.93, 1 - 0.35 / rows, hspace=0.12)
    figure.suptitle(title.replace("$", r"\$"))
    for axis, (name, heat) in zip(axes, [("clip", None), *maps.items()]):
        axis.imshow(frames if heat is None else frames.mean(-1), "gray", vmin=0, vmax=255)
        axis.set(xticks=[], yticks=[])
        axis.set_ylabel(name.replace(", ", "\n").replace(" of", "\nof"), rotation=0, ha="right")
        if heat is not None:
            # One scale for each map; a few bright pixels do not darken the rest.
            heat = F.interpolate(heat[None, None].float().cpu(), (T, S, S))[0, 0].numpy()
            low, high = np.nanquantile(heat, (0, 0.995))
            image = axis.imshow(np.concatenate(list(heat[chosen]), axis=1), "inferno", vmin=low,
                                vmax=high, alpha=0.7)
            figure.colorbar(image, cax=axis.inset_axes((1.01, 0, 0.015, 1)), ticks=[low, high],
                            format="%.2g")
        for k in range(1, len(chosen)):
            axis.axvline(k * S - 0.5, color="white", linewidth=4)

    # A group of bars for each block and branch, a bar for each level, the last one is global.
    for k, (name, means) in enumerate(gates.items()):
        axes[-1].bar(k + np.linspace(-0.3, 0.3, len(means)), means, 0.5 / len(means))
        axes[-1].set_xticks(range(k + 1), list(gates)[:k+1])
        axes[-1].set_ylabel("mean |gate|\nlevel 1 .. global", rotation=0, ha="right")
    figure.savefig(path, dpi=90)
    plt.close(figure)


def share_on(heat, mask):
    """
    The share of heat (t, h, w), nan where nothing was looked at, that lies on a mask (T, S, S),
    divided by the share of the pixels that does.
    """
    covered = F.adaptive_avg_pool3d(mask[None, None].float(), heat.shape)[0, 0]  # of each token
    seen = ~heat.isnan()
    on = (heat[seen] * covered[seen]).sum() / heat[seen].sum()
    return float(on / covered[seen].mean())


def print_shares(model, classes, cfg, clips=64):
    """A column of the table above -> {map: share}. Clips whose L a map cannot see are left out."""
    seed = torch_seed(generator(DRAWN, cfg.seed, 2))  # 0 and 1 are training and validation
    images, labels, masks = toy_clips(clips, seed, cfg.num_frames, cfg.image_size)
    shares = {}
    right = 0
    for image, label, mask in zip(images, labels, masks):
        scores, maps, _ = look_inside(model, prepare(dict(clip=image[None]), cfg, cfg.device))
        right += classes[scores.argmax()] == TOY_CLASSES[label]
        for name, heat in maps.items():
            shares.setdefault(name, []).append(share_on(heat.cpu(), mask))
    print(f"{cfg.init}: {100 * right / clips:.1f} % of {clips} clips right; share on the L:")
    for name, values in shares.items():
        values = np.array(values)[np.isfinite(values)]
        shares[name] = values.mean()
        error = values.std() / len(values)**0.5  # of the mean over so many clips
        print(f"  {name:<34} {shares[name]:.2f} +- {error:.2f}, {len(values)} clips")
    return shares


def main(words):
    """What to look at, then flags; see above. Returns the shares, for `toy`."""
    if not words or words[0].startswith("--"):
        raise ValueError("first what to look at, a video, toy:clockwise or toy; then --init FILE")
    what = words[0]
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--seconds", nargs=2, type=float, default=(0, math.inf))
    args, rest = parser.parse_known_args(words[1:])

    # The settings are those that the network was trained with.
    cfg, checkpoint = train.parse_args([*rest, "--predict", what])
    train.where_to_run(cfg)
    classes = train.classes_of(checkpoint, cfg)
    model = train.build_model(checkpoint, classes, cfg)
    if what == "toy":
        return print_shares(model, classes, cfg)

    # toy:left is the first clip of that class to validate with.
    dataset = VideoSet([(what, *args.seconds)], [0], classes, cfg, views="1x1")
    i = 0
    if what in [f"toy:{name}" for name in TOY_CLASSES]:
        cfg.data = "toy"
        dataset = open_data(cfg, ["val"])["val"]
        i = dataset.labels.index(TOY_CLASSES.index(what[4:]))
    batch = torch.utils.data.default_collate([dataset[0, i]])
    if batch["bad"][0]:
        raise BadVideo(batch["bad"][0])
    scores, maps, gates = look_inside(model, prepare(batch, cfg, cfg.device))

    # The answer stands above the picture.
    path = os.path.join(cfg.out, "look.png")
    os.makedirs(cfg.out, exist_ok=True)
    answer = f"{classes[scores.argmax()]}, {100 * scores.max():.1f} %"
    draw(batch["clip"][0, 0], maps, gates, path, f"{os.path.basename(what)}: {answer}")
    print(f"{path}: {answer}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (OSError, ValueError, BadVideo) as error:
        sys.exit(f"error: {error}")
