"""
Train, evaluate, predict: one straight loop, and the command line around it.

    python train.py                                        toy data, a small focal net, on a CPU
    python train.py --data k400 --root DIR --model focal_t --init focalnet_tiny_srf.pth
    torchrun --nproc_per_node 8 train.py --data k400 ...   several GPUs (or CPU processes)
    python train.py --resume                               go on with out/last.pt, exactly
    python train.py --eval --data k400 --root DIR --model focal_t --init ckpt.pth --views 4x3
    python train.py --predict clip.mp4 --init out/best.pt  the five most probable classes
    python train.py --predict long.mp4 --every 2 --init .. a line for every two seconds
    python train.py --data my_videos --input diff          your own classes, a folder for each
    python train.py --freeze --init out/best.pt --data ..  a linear probe: trains the head alone
    python train.py --look clip.mp4 --init out/best.pt     a picture of what happens inside
    python train.py --sweep "fusion=add" "levels=1"        a table: a row for each change, 3 seeds
    python train.py --help --model focal_t                 every setting, with its default

A step: set the learning rate -> forward and backward over the micro-batches -> clip the gradient
-> step. What is random in a step comes from (seed, step, micro-batch, process), what is random in
the data from (seed, epoch, sample). So a checkpoint has weights, optimizer, scaler, the number of
the step, metrics, class names and settings, and a run that was killed and resumed ends with the
same bits as one that was not (on the same machine, with the same split into batches).

Source of the recipes: configs and code released with arXiv:2307.06947 (Video-FocalNets) and
arXiv:2210.08164 (the transformer). Where the text says something else, or we do, the line says so.
"""
import collections
import contextlib
import csv
import difflib
import inspect
import io
import json
import math
import os
import re
import signal
import sys
import textwrap
import time

# The threads of a sum wait for each other. By default they spin, and where something else wants the
# cores as well, a browser say, each waits for one that does not run. Let them sleep instead: a
# tenth slower on an idle machine, two to three times faster on a busy one. torch reads this when it
# is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from backbone import (MODELS, arguments, count_macs, create_model, load_weights, read_checkpoint,
                      weights_of)
from data import (NAMED, PIPELINES, STEP, TOY_CLASSES, TOYS, WEIGHTS, BadVideo, VideoSet,
                  class_names, generator, length_in_seconds, loader, mix, open_data, parse_views,
                  prepare, segment_of, steps_in_epoch, stream, torch_seed, toy_masks, videos_below)
from data import SETTINGS as CLIPS
from linear_attn import Attention, attention_map, group


# --------------------------------------------------- settings

# name: (default, what is allowed, meaning), as in data.py. Each is a flag: --lr 0.1. So is every
# argument of the model (--depths 1,1,2,1 --temporal False): see its class in backbone.py.

# Where and how to run. These are not saved in a checkpoint: say them again with --resume.
RUN = {
    # what there is, and where the rest goes
    "root": ("", None, "where the videos are (default data/NAME)"),
    "init": ("", None, "weights: ours, released, or an image FocalNet's, which are inflated"),
    "temporal_init": ("fresh", ("fresh", "identity"), "start of an inflated network's time branch"),
    "resume": ("", None, "go on exactly with a checkpoint; without a name OUT/last.pt"),
    "out": ("out", None, "folder for last.pt, best.pt, log.jsonl"),
    # the machine
    "workers": (-1, (-1, 256), "processes that load data; -1: none for toy, else one per CPU core"),
    "device": ("auto", None, "cpu, cuda, cuda:1, ..; auto: cuda if there is one"),
    "compile": (False, None, "torch.compile the network (for GPUs)"),
    # what to do instead of training
    "eval": (False, None, "evaluate --init on the validation videos; writes OUT/predictions.csv"),
    "predict": ((), None, "print the most probable classes of these videos, or folders of them"),
    "every": (0.0, (0, 1e6), "predict: a line for each so many seconds of a video; 0: one for all"),
    "look": ("", None, "draw what happens inside for a video, or for toy:CLASS; toy: in numbers"),
    "sweep": ((), None, "a table, one row for each 'name=value name=value'; '' changes nothing"),
    "seeds": (3, (1, 100), "of each row of --sweep: seed, seed + 1, .."),
}

# How a network learns: the recipe of the Video-FocalNets.
LEARNING = {
    # what is learned, and by what
    "data": ("toy", None, f"{', '.join(TOYS + NAMED)}, a folder of class folders, or a list file"),
    "model": ("focal_toy", tuple(MODELS), "see backbone.py"),
    "seed": (0, (0, 2**31), "of weights, order, augmentation and toy data"),
    "freeze": (False, None, "train the head only, on features computed once for each clip, by "
               "logistic regression: no epochs, no rate, no augmentation"),
    # training length and batch size
    "epochs": (120.0, (0.001, 1e6), "passes over the training data"),
    "steps": (0, (0, 1e9), "optimizer steps; 0: as many as epochs says"),
    "batch_size": (8, (1, 1e5), "clips per process and micro-batch"),
    "accumulate": (1, (1, 1e5), "micro-batches per optimizer step"),
    # how fast; all rates but --lr are for lr_batch clips a step, and scaled with them
    "optimizer": ("sgd", ("sgd", "adamw"), "sgd has Nesterov momentum"),
    "base_lr": (0.1, (1e-9, 1e3), "peak learning rate for lr_batch clips a step"),
    "lr_batch": (512, (1, 1e6), "clips a step that base_lr, warmup_lr and min_lr are for"),
    "lr": (0.0, (0, 1e9), "the peak itself; 0: base_lr * clips a step / lr_batch"),
    "warmup": (20/120, (0, 0.99), "share of training in which the rate rises"),
    "warmup_lr": (0.001, (0, 1e3), "rate of the first step"),
    "min_lr": (0.001, (0, 1e3), "rate that the cosine ends at"),
    # the optimizer's own numbers
    "momentum": (0.9, (0, 0.9999), "of sgd"),
    "betas": ((0.9, 0.999), (0, 0.99999), "of adamw"),
    "weight_decay": (0.0, (0, 10), "0 as in the released code; its paper says 1e-4"),
    "clip_grad": (5.0, (0, 1e9), "largest norm of the gradient; 0: any"),
    "dtype": ("auto", ("auto", "float32", "bfloat16", "float16"),
              "of matrix products; auto: bfloat16 on cuda, float32 on cpu"),
}

# Recipes hold what differs from these defaults, and from those of the clips.
FOCAL = PIPELINES["focal"]

# Linear Video Transformer, Something-Something.
LVT = PIPELINES["lvt_ssv2"] | dict(
    epochs=35.0,
    warmup=5/35,
    batch_size=4,
    base_lr=0.03,  # the paper says 0.035
    lr_batch=32,
    warmup_lr=0.003,
    min_lr=0.0,
    weight_decay=1e-4,  # of everything, norms and biases too
    clip_grad=0.0,
)

# The same, Kinetics.
LVT_KINETICS = PIPELINES["lvt_kinetics"] | dict(
    epochs=40.0,  # the paper says 35
    warmup=5/40,
    batch_size=4,
    base_lr=0.035,
    lr_batch=32,
    warmup_lr=0.01,
    min_lr=0.0,
    weight_decay=1e-5,
    clip_grad=0.0,
)

# Ours, by trial.
TOY = PIPELINES["toy"] | dict(
    epochs=7.0,
    warmup=0.1,
    batch_size=32,
    base_lr=0.1,  # at 0.2 some seeds never leave chance
    lr_batch=32,
    warmup_lr=0.0,
    min_lr=0.0,
    clip_grad=1.0,
)

# The second toy: frames of 4 x 4 tokens; long enough for joint attention over 8 frames.
FAR = TOY | dict(
    epochs=37.5,
    optimizer="adamw",
    base_lr=0.003,
    betas=(0.9, 0.98),
    weight_decay=0.05,
    image_size=32,
    patch=8,
)

# Ours, by trial: a few hundred clips, from nothing or from weights.
OWN = PIPELINES["own"] | dict(
    epochs=200.0,
    warmup=0.1,
    optimizer="adamw",
    base_lr=0.002,
    lr=0.002,  # whatever the batch
    warmup_lr=0.0,
    min_lr=0.0,
    weight_decay=0.05,
    clip_grad=1.0,
)

# Of a linear probe, --freeze: weight decay of the head.
PROBE_DECAY = 0.01

# By the family of the model and the data set. Folders and lists have `own`; what else is not here
# has the recipe of k400.
RECIPES = {
    # Video-FocalNets: the released configs differ in the model and in flips only.
    "focal": {
        "toy": TOY,
        "toy_far": FAR,
        "own": OWN,
        "k400": FOCAL,
        "k600": FOCAL,
        "diving48": FOCAL,
        "activitynet": FOCAL,
        "ssv2": FOCAL | dict(flip=0.0),  # classes say left and right
    },
    # From a fresh start the transformer does not learn with sgd; the papers start from images.
    "lvt": {
        "toy": TOY | dict(optimizer="adamw", base_lr=0.003, betas=(0.9, 0.98), weight_decay=0.05),
        "toy_far": FAR | dict(stride=8),
        "own": OWN,
        "k400": LVT_KINETICS,
        "k600": LVT_KINETICS,
        "ssv2": LVT,
    },
    # Ours: plain ViTs are trained as the transformer is.
    "vit": {
        "toy": TOY | dict(optimizer="adamw", base_lr=0.003, betas=(0.9, 0.98), weight_decay=0.05),
        "toy_far": FAR | dict(stride=8),
        "own": OWN,
        "k400": LVT_KINETICS,
        "ssv2": LVT,
    },
}


# --------------------------------------------------- learning rate and optimizer

def lr_at(step, steps, warmup, peak, first, last):
    """Linear from `first` to `peak` over `warmup` steps, then a cosine to `last`."""
    # The warm-up.
    if step < warmup:
        return first + (peak - first) * step / warmup
    # The released cosine counts from step 0, so its rate drops by 6.6 % where the warm-up ends.
    # Ours starts there, at the peak.
    progress = (step - warmup) / (steps - warmup)
    return last + (peak - last) * 0.5 * (1 + math.cos(math.pi * progress))


def make_schedule(cfg, clips):
    """Steps and learning rates for `clips` training clips; ValueError if there are too few."""
    # Steps: as many as were asked for, or as the epochs have.
    world = cfg["world"]
    batches, steps_per_epoch = steps_in_epoch(clips, cfg["batch_size"], cfg["accumulate"], world)
    if batches == 0:
        raise ValueError(f"{clips} training clips do not fill one batch of {cfg['batch_size']} "
                         f"on each of {world} processes: lower --batch_size")
    if cfg["accumulate"] > batches:
        raise ValueError(f"--accumulate {cfg['accumulate']}: an epoch has {batches} micro-batches "
                         f"of {cfg['batch_size']} clips, no step can have more")
    steps = cfg["steps"] or max(1, round(cfg["epochs"] * steps_per_epoch))

    # All rates are scaled alike, whether the peak is given or follows from the batch.
    clips_per_step = cfg["batch_size"] * cfg["accumulate"] * world
    peak = cfg["lr"] or cfg["base_lr"] * clips_per_step / cfg["lr_batch"]
    scale = peak / cfg["base_lr"]
    rates = dict(steps=steps, warmup=round(cfg["warmup"] * steps), peak=peak,
                 first=cfg["warmup_lr"] * scale, last=cfg["min_lr"] * scale)
    return dict(rates=rates, steps=steps, steps_per_epoch=steps_per_epoch,
                clips_per_step=clips_per_step)


def make_optimizer(model, cfg, peak):
    """
    SGD decays every parameter, as the released transformer does (Video-FocalNets have weight_decay
    0). AdamW does not decay norms, biases and embeddings.
    """
    if cfg["optimizer"] == "sgd":
        return torch.optim.SGD(model.parameters(), lr=peak, momentum=cfg["momentum"],
                               nesterov=True, weight_decay=cfg["weight_decay"])
    elif cfg["optimizer"] == "adamw":
        # Norms and biases have one axis; the temporal embedding has more.
        decay = []
        rest = []
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and not name.endswith("embed"):
                decay.append(parameter)
            else:
                rest.append(parameter)
        groups = [dict(params=decay, weight_decay=cfg["weight_decay"]),
                  dict(params=rest, weight_decay=0.0)]
        return torch.optim.AdamW(groups, lr=peak, betas=cfg["betas"])
    else:
        raise ValueError(f"optimizer={cfg['optimizer']!r}: use 'sgd' or 'adamw'")


def autocast(cfg):
    """The context in which the network runs in the precision of the settings."""
    device = torch.device(cfg["device"]).type
    return torch.autocast(device, getattr(torch, cfg["dtype"]), enabled=cfg["dtype"] != "float32")


# --------------------------------------------------- evaluate, predict

def evaluate(model, dataset, cfg):
    """-> {top1, top5, mean_class} in percent, {videos, bad}; see `score`."""
    scores, bad = score(model, dataset, cfg)
    return accuracies(scores, torch.tensor(dataset.labels), bad)


@torch.no_grad()
def score(model, dataset, cfg):
    """
    Mean of softmax over the views of each video, each video once, whatever the batch and the
    processes -> scores (videos, classes), bad (videos,) bool: not readable. An unreadable video
    counts as wrong: to drop it would flatter. (Released: Video-FocalNet drops the odd video of a
    process; the transformer sums logits, where one view that is very sure outvotes the others.)
    """
    # A row of scores for each video.
    model.eval()
    clips, crops = dataset.views
    views = clips * crops
    scores = torch.zeros(len(dataset), len(dataset.classes), device=cfg["device"])
    bad = torch.zeros(len(dataset), device=cfg["device"])

    # This process takes every world-th video, a few at a time.
    mine = range(cfg["rank"], len(dataset), cfg["world"])
    per_batch = max(1, cfg["batch_size"] // views)
    batches = [[(0, i) for i in mine[k:k+per_batch]] for k in range(0, len(mine), per_batch)]
    for batch in loader(dataset, batches, cfg):
        x = prepare(batch, cfg)  # (videos * views, 3, T, S, S)

        # The views of a video may be more than a batch: a part at a time.
        with autocast(cfg):
            logits = torch.cat([model(part).float() for part in x.split(cfg["batch_size"])])
        scores[batch["index"]] = logits.softmax(-1).unflatten(0, (-1, views)).mean(1)

        # What could not be read is named here, by the process that tried, and counted at the end.
        for i, reason in zip(batch["index"], batch["bad"]):
            if reason:
                bad[i] = 1
                print(f"counted as wrong: {reason}", file=sys.stderr)

    # Each row was filled by one process: the sum collects them.
    if cfg["world"] > 1:
        dist.all_reduce(scores)
        dist.all_reduce(bad)
    model.train()
    return scores.cpu(), bad.cpu() > 0


def accuracies(scores, labels, bad):
    """scores (videos, classes), labels (videos,), bad (videos,) bool -> the metrics of evaluate."""
    # Is the label among the five highest, is it the highest?
    top = scores.topk(min(5, scores.shape[1])).indices  # (videos, 5)
    good = ~bad & scores.isfinite().all(1)  # nan is no answer
    hits = ((top == labels[:, None]) & good[:, None]).float()

    # Every class counts alike, however many videos it has.
    per_class = torch.stack([hits[labels == c, 0].mean() for c in labels.unique()])
    return dict(top1=100 * hits[:, 0].mean().item(), top5=100 * hits.sum(1).mean().item(),
                mean_class=100 * per_class.mean().item(), videos=len(labels), bad=int(bad.sum()))


@torch.no_grad()
def mean_gates(model, dataset, cfg):
    """
    The size of the gates of a focal net, over four clips: {'stage 1 gates': [level 1, .., L,
    global]}, means of absolute values. A level whose gates stay near 0 is not being used.
    """
    if cfg["mixer"] != "focal":
        return {}

    # Four clips from all over the data set, with the network's maps.
    chosen = np.linspace(0, len(dataset) - 1, 4).astype(int)
    batch = torch.utils.data.default_collate([dataset[0, i] for i in chosen])
    maps = []
    model.eval()
    with autocast(cfg):
        model(prepare(batch, cfg), maps)
    model.train()

    # Stage by stage, over the blocks of each.
    means = {}
    for number, stage in enumerate(maps, 1):
        for key in ("gates", "gates_temporal"):
            if key in stage[0]:
                gates = torch.stack([block[key].float().abs() for block in stage])
                gates = gates.mean((0, 1, 2, 3, 4)).tolist()  # over blocks, clips, tokens
                means[f"stage {number} {key}"] = [finite(gate) for gate in gates]
    return means


def clip_name(dataset, i):
    """The path of clip i, or its number in a data set that is in memory."""
    return f"clip {i}" if torch.is_tensor(dataset.clips) else str(dataset.clips[i])


def write_predictions(path, dataset, scores, bad):
    """A csv with a row for each video: path, label, prediction, probability of the prediction."""
    # csv quotes what has a comma in it.
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("path", "label", "prediction", "probability"))
        for i, label in enumerate(dataset.labels):
            # Of a video that could not be read nothing is known.
            value, c = scores[i].max(0)
            answer = ("", "") if bad[i] else (dataset.classes[c], f"{value:.6f}")
            table.writerow((clip_name(dataset, i), dataset.classes[label], *answer))
    print(f"{path}: a row for each video")


def print_mistakes(dataset, scores, bad):
    """Prints the worst five classes, and the three pairs that are confused most often."""
    # Count what was answered; a video that could not be read is a miss, and no confusion.
    answers = scores.argmax(1).tolist()
    right = collections.Counter()
    confused = collections.Counter()
    total = collections.Counter(dataset.labels)
    for label, answer, broken in zip(dataset.labels, answers, bad):
        if not broken:
            right[label] += answer == label
            confused[label, answer] += answer != label

    # Worst first; of equally bad ones the larger class.
    worst = sorted(total, key=lambda c: (right[c] / total[c], -total[c]))[:5]
    print("worst classes: " + ", ".join(
        f"{dataset.classes[c]} {100 * right[c] / total[c]:.1f} % of {total[c]}" for c in worst))

    # Pairs that happen, at most three.
    common = [(pair, n) for pair, n in confused.most_common(3) if n]
    print("most frequent confusions: " + (", ".join(
        f"{dataset.classes[label]} taken for {dataset.classes[answer]} {n} times"
        for (label, answer), n in common) or "none"))


def report(model, dataset, cfg):
    """Evaluates, and says more than a number -> the metrics."""
    scores, bad = score(model, dataset, cfg)
    if cfg["rank"] == 0:
        silent = bad | ~scores.isfinite().all(1)  # nan is no answer
        print_mistakes(dataset, scores, silent)
        write_predictions(os.path.join(cfg["out"], "predictions.csv"), dataset, scores, silent)
    return accuracies(scores, torch.tensor(dataset.labels), bad)


def files_to_predict(cfg):
    """The files of --predict; a folder stands for all videos below it."""
    # A folder that has none is a mistake, most likely.
    files = []
    for path in cfg["predict"]:
        found = videos_below(path) if os.path.isdir(path) else [path]
        if not found:
            raise ValueError(f"--predict {path}: no video in this folder")
        files += found
    return files


def windows(path, seconds):
    """The parts of a video, each so many seconds long: ['a.mp4#t=0.000,2.000', ..]."""
    # Of the whole video, or of the part that was asked for.
    path, start, end = segment_of(path)
    end = min(end, length_in_seconds(path) + 0.001)  # its last frame is shown then

    # The last one has what is left; less than a tenth of a window is joined to the one before.
    count = max(1, math.ceil((end - start) / seconds - 0.1))
    edges = [start + k * seconds for k in range(count)] + [end]
    return [f"{path}#t={first:.3f},{last:.3f}" for first, last in zip(edges, edges[1:])]


@torch.no_grad()
def predict(model, classes, cfg):
    """
    Prints the most probable classes of each file, preprocessed as in evaluation; with --every a
    line for each window of it, one after the other, so that a long video needs no more memory than
    a short one. What cannot be read is named, and the rest goes on -> exit status.
    """
    # File after file; the status tells a script whether all of them could be read.
    model.eval()
    status = 0
    for path in files_to_predict(cfg):
        # A file that has no length cannot be read either: that is found below.
        clips = [path]
        if cfg["every"]:
            print(path)
            with contextlib.suppress(BadVideo):
                clips = windows(path, cfg["every"])

        # A file is one clip, or as many as it has windows.
        for clip in clips:
            try:
                scores = scores_of(model, clip, classes, cfg)
                print_scores(clip, scores, classes, cfg)
            except BadVideo as error:
                print(f"error: {error}", file=sys.stderr)
                status = 1
    return status


def one_clip(clip, classes, cfg):
    """A batch of one video, with its views as evaluation has them; BadVideo if it is none."""
    dataset = VideoSet([clip], [0], classes, cfg, views=cfg["views"])
    batch = torch.utils.data.default_collate([dataset[0, 0]])
    if batch["bad"][0]:
        raise BadVideo(batch["bad"][0])
    return batch


def scores_of(model, clip, classes, cfg):
    """The mean of softmax over the views of one clip -> (classes,)."""
    batch = one_clip(clip, classes, cfg)
    with autocast(cfg):
        return model(prepare(batch, cfg)).float().softmax(-1).mean(0)


def print_scores(clip, scores, classes, cfg):
    """The five best, the most probable first, or all if there are fewer; of a window the best."""
    # A line of the timeline says when it begins.
    values, best = scores.topk(min(5, len(classes)))
    if cfg["every"]:
        _, start, end = segment_of(clip)
        print(f"  {start:8.1f} s  {100 * values[0]:7.3f} %  {classes[best[0]]}", flush=True)
        return

    # A whole file has a line for each of the five.
    print(clip)
    for value, c in zip(values, best):
        print(f"  {100 * value:7.3f} %  {classes[c]}")


# --------------------------------------------------- looking inside

def look_inside(model, x):
    """
    One clip x (1, 3, T, S, S) through the network, and back -> scores (classes,), and two dicts by
    name: maps (t, h, w), where something is large, and gates, a list of means for each block.
        'spatial modulator, first block', ..     its length in each token; in the last block, too
        'attention of the strongest token'       the token that argues most for the answer
        'what the answer depends on'             |gradient of the winning logit times input|, summed
                                                 over colours; the input is normalised: pixels of
                                                 the mean colour count as nothing
    """
    # Forward, with the mixers' maps, and the tokens that the mean before the head is taken of.
    tokens = []
    hook = model.norm.register_forward_hook(lambda module, given, out: tokens.append(out.detach()))
    found = []
    model.eval()
    x = x.detach().requires_grad_()
    logits = model(x, found)
    hook.remove()

    # Back: how the winning logit would change with each pixel, times the pixel.
    winner = logits[0].argmax()
    gradient, = torch.autograd.grad(logits[0, winner], x)
    dependence = (gradient * x.detach()).abs().sum(1)[0]  # (T, S, S)

    # What the mixers had to show.
    blocks = [block for stage in found for block in stage]
    maps = {}
    gates = {}
    for place, block in (("first block", blocks[0]), ("last block", blocks[-1])):
        for name in ("spatial", "temporal"):
            if name in block:
                maps[f"{name} modulator, {place}"] = block[name][0].detach().norm(dim=-1)
        for name in ("gates", "gates_temporal"):
            if name in block:
                means = block[name].detach().abs().mean((0, 1, 2, 3)).tolist()
                gates[f"{name}, {place}".replace("_", " ")] = means

    # Attention: the network's head says of each token alone what it argues for.
    if "q" in blocks[-1]:
        mixer = [module for module in model.modules() if isinstance(module, Attention)][-1]
        argues = model.head(tokens[0])[0, ..., winner].detach()  # (t, h, w)
        if mixer.shifted or mixer.kv_pool != (1, 1, 1) or "|" in mixer.pattern:
            print("attention with shifted windows, kv_pool or | in its pattern is not shown")
        else:
            maps["attention of the strongest token"] = attention_of(
                mixer, blocks[-1], int(argues.argmax()), argues.shape)
    maps["what the answer depends on"] = dependence
    return logits[0].detach().softmax(-1), maps, gates


@torch.no_grad()
def attention_of(mixer, block, token, grid):
    """
    The weights with which one token attends to the others, a mean over heads -> (t, h, w), 0 where
    it does not look, nan where it cannot: not its group. token: its number in the grid (t, h, w).
    """
    # Which tokens are in each group, and in which group, at which place, is ours?
    places = torch.arange(math.prod(grid)).view(1, *grid, 1, 1)
    places = group(places, mixer.pattern, mixer.window)[:, 0, :, 0]  # (groups, N)
    where, at = (places == token).nonzero()[0].tolist()
    q = block["q"][where].detach()  # (heads, N, d)
    k = block["k"][where].detach()
    weights = attention_map(mixer.kernel, q, k, **mixer.kernel_arguments(k.shape[-2]))
    seen = torch.full((math.prod(grid),), math.nan)
    seen[places[where]] = weights[:, at].abs().mean(0).float().cpu()
    return seen.view(grid)


def clip_to_look_at(classes, cfg):
    """The clip of --look, a batch of one; toy:left is the first of that class to validate with."""
    word, _, name = cfg["look"].partition(":")
    if word != "toy":
        return one_clip(cfg["look"], classes, cfg)
    if name not in TOY_CLASSES:
        raise ValueError(f"--look {cfg['look']}: the toy's classes are {', '.join(TOY_CLASSES)}")
    dataset = open_data(cfg | dict(data="toy"), ["val"])["val"]
    first = dataset.labels.index(TOY_CLASSES.index(name))
    return torch.utils.data.default_collate([dataset[0, first]])


def look(model, classes, cfg):
    """Draws what happens inside for one clip, OUT/look.png; for --look toy prints a table -> 0."""
    # A table, or a picture.
    if cfg["look"] == "toy":
        print_shares(model, classes, cfg)
        return 0
    batch = clip_to_look_at(classes, cfg)
    scores, maps, gates = look_inside(model, prepare(batch, cfg))
    value, winner = scores.max(0)

    # The answer stands above the picture.
    path = os.path.join(cfg["out"], "look.png")
    os.makedirs(cfg["out"], exist_ok=True)
    draw_maps(batch["clip"][0, 0], maps, gates, path,
              f"{os.path.basename(cfg['look'])}: {classes[winner]}, {100 * value:.1f} %")
    print(f"{path}: {classes[winner]}, {100 * value:.1f} %")
    return 0


def draw_maps(frames, maps, gates, path, title):
    """
    A picture: a row of frames (T, S, S, 3), a row for each map, over the frames, in its own
    colours; below, the gates as bars.
    """
    import matplotlib
    matplotlib.use("Agg")  # no window
    import matplotlib.pyplot as plt

    # A grid with a column for each frame, eight of a longer clip, and one for the colour bars.
    T, S = frames.shape[:2]
    chosen = np.linspace(0, T - 1, min(T, 8)).round().astype(int)
    columns = len(chosen)
    rows = 1 + len(maps) + bool(gates)
    height = 1.3 * rows + 0.4  # inches
    figure = plt.figure(figsize=(1.25 * columns + 2.6, height))
    grid = figure.add_gridspec(rows, columns + 1, width_ratios=[1] * columns + [0.12], wspace=0.06,
                               hspace=0.12, left=0.19, right=0.93, bottom=0.06,
                               top=1 - 0.45 / height)
    figure.suptitle(title, fontsize=12)

    # The clip, then what there is in it.
    draw_strip(figure, grid, 0, "clip", frames.numpy(), chosen)
    grey = frames.float().mean(-1).numpy()
    for row, (name, heat) in enumerate(maps.items(), 1):
        heat = F.interpolate(heat[None, None].float().cpu(), (T, S, S))[0, 0].numpy()
        draw_strip(figure, grid, row, name, grey, chosen, heat)

    # Bars: a group for each block and branch, a bar for each level, the last one is global.
    if gates:
        axis = figure.add_subplot(grid[-1, :columns])
        for place, (name, means) in enumerate(gates.items()):
            left = place * (len(means) + 1) + np.arange(len(means))
            axis.bar(left, means, color=plt.cm.viridis(np.linspace(0.15, 0.85, len(means))))
            axis.text(left.mean(), -0.04, name.replace(", ", "\n"), ha="center", va="top",
                      fontsize=8, transform=axis.get_xaxis_transform())
        axis.set(xticks=[])
        axis.tick_params(labelsize=8)
        axis.set_ylabel("mean |gate|\nlevel 1 .. global", rotation=0, ha="right", va="center",
                        fontsize=9)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def draw_strip(figure, grid, row, name, frames, chosen, heat=None):
    """A row of the picture: frames side by side, maybe with a map (T, S, S) over them."""
    # One scale for the row; a few bright pixels do not darken the rest.
    if heat is not None:
        low, high = np.nanquantile(heat, (0, 0.995))
    for column, t in enumerate(chosen):
        axis = figure.add_subplot(grid[row, column])
        axis.set(xticks=[], yticks=[])
        axis.imshow(frames[t], cmap="gray", vmin=0, vmax=255)
        if heat is not None:
            image = axis.imshow(heat[t], cmap="inferno", vmin=low, vmax=high, alpha=0.7)
        if column == 0:
            axis.set_ylabel(textwrap.fill(name.replace(", ", "\n"), 20, replace_whitespace=False),
                            rotation=0, ha="right", va="center", fontsize=9)

    # What the colours mean.
    if heat is not None:
        bar = figure.colorbar(image, cax=figure.add_subplot(grid[row, -1]), ticks=[low, high])
        bar.ax.set_yticklabels([f"{low:.2g}", f"{high:.2g}"], fontsize=8)


def print_shares(model, classes, cfg, clips=64):
    """
    How much of each map lies on the L, over 64 new clips of the toy, against the share of the
    pixels that the L covers: 1.0 is a blind guess. Mean, and the standard error of it. Clips whose
    L the map cannot see (an attention along time looks at one pixel only) are left out.
    """
    # The toy knows where its L is.
    images, labels, masks = toy_masks(clips, cfg["seed"], cfg["num_frames"], cfg["image_size"])
    found = collections.defaultdict(list)
    right = 0
    for image, label, mask in zip(images, labels, masks):
        scores, maps, _ = look_inside(model, prepare(dict(clip=image[None]), cfg))
        right += classes[scores.argmax()] == TOY_CLASSES[label]
        for name, heat in maps.items():
            share = share_on(heat.cpu(), mask)
            if math.isfinite(share):
                found[name].append(share)

    # How sure the mean over so many clips is, beside it.
    print(f"{cfg['init']}, {clips} clips of the toy, {100 * right / clips:.1f} % right\n")
    print("| map | share on the L / its share of the pixels | standard error | clips |\n"
          "|---|---|---|---|")
    for name, values in found.items():
        error = np.std(values) / len(values)**0.5
        print(f"| {name} | {np.mean(values):.2f} | {error:.2f} | {len(values)} |")


def share_on(heat, mask):
    """
    heat (t, h, w), nan outside of what was looked at; mask (T, S, S) bool -> the share of the heat
    that lies on the mask, divided by the share of the pixels that does.
    """
    # The mask in the map's tokens: how much of each is covered.
    covered = F.adaptive_avg_pool3d(mask[None, None].float(), heat.shape)[0, 0]
    seen = ~heat.isnan()
    on = (heat[seen] * covered[seen]).sum() / heat[seen].sum()
    return float(on / covered[seen].mean())


# --------------------------------------------------- a linear probe

@torch.no_grad()
def features_of(model, dataset, cfg):
    """What the head sees of each clip of a data set, in the middle view -> (clips, C), labels."""
    # Evaluation's view of every clip, once, a batch at a time.
    as_is = cfg | dict(frames="normal")
    views = VideoSet(dataset.clips, dataset.labels, dataset.classes, as_is, views="1x1")
    keys = [(0, i) for i in range(len(views))]
    batches = [keys[k:k+cfg["batch_size"]] for k in range(0, len(keys), cfg["batch_size"])]

    # The network without its head. A clip that cannot be read has no features.
    head = model.head
    model.head = nn.Identity()
    model.eval()
    features = []
    labels = []
    for batch in tqdm(loader(views, batches, cfg), unit="batch", disable=None):
        # (B, C), on the device.
        with autocast(cfg):
            found = model(prepare(batch, cfg)).float()
        for feature, label, bad in zip(found, batch["label"], batch["bad"]):
            if bad:
                print(f"left out: {bad}", file=sys.stderr)
            else:
                features.append(feature)
                labels.append(label)
    model.head = head
    if not features:
        raise BadVideo(f"none of the {len(dataset)} training clips can be read")
    return torch.stack(features), torch.stack(labels).to(cfg["device"])


def fit_head(head, features, labels):
    """Multinomial logistic regression by L-BFGS on features (n, C), with a little weight decay."""
    # The features are frozen, so all of them are one batch, and the problem is convex (of a head
    # that is one Linear): no rate, no schedule.
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=300, line_search_fn="strong_wolfe")
    head.eval()

    def closure():
        optimizer.zero_grad()
        size = sum(p.square().sum() for p in head.parameters() if p.ndim > 1)
        loss = F.cross_entropy(head(features), labels) + PROBE_DECAY / 2 * size
        loss.backward()
        return loss
    optimizer.step(closure)


def probe(model, sets, cfg):
    """Trains the head alone; saves and returns what `train` does, 0 and the metrics."""
    # What comes out can be evaluated and predicted with, not gone on with: it has no optimizer.
    started = time.perf_counter()
    state = dict(step=0, epoch=0.0, best=-1.0, metrics={}, classes=sets["train"].classes, sizes={})
    if cfg["rank"] == 0:
        lock = open_folder(cfg, state, None)  # held as long as this variable lives
    n = sum(p.numel() for p in model.head.parameters())
    print(f"{cfg['model']}: only the {n:,} parameters of the head are trained, on the features of "
          f"{len(sets['train'])} clips; {len(sets['val'])} to validate")

    # Features once, a fit, and the usual end.
    features, labels = features_of(model, sets["train"], cfg)
    fit_head(model.head, features, labels)
    seconds = time.perf_counter() - started
    state["metrics"] = dict(epoch=0.0, step=0, clips_per_s=len(sets["train"]) / seconds)
    finish_epoch(model, dict(model=model), state, sets["val"], cfg)
    return 0, state["metrics"]


# --------------------------------------------------- saving, and going on

def write_whole(path, content):
    """Written beside and renamed: a reader sees the old file or the new one, never half of one."""
    try:
        with open(path + ".tmp", "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # on the disk, not only on its way there
        os.replace(path + ".tmp", path)
    # A full disk, most likely: make room, and say how much was needed.
    except OSError as error:
        with contextlib.suppress(OSError):
            os.remove(path + ".tmp")
        raise OSError(f"{path} could not be written, it needs {len(content) / 2**20:.1f} MiB: "
                      f"{error.strerror}. What was there before is still there") from error


def save(name, parts, state, cfg):
    """
    parts: {'model', 'optimizer', 'scaler'}, what has a state_dict; state: step, metrics and so on,
    plain values. Weights that are not finite are not saved: the file keeps the last that were.
    """
    path = os.path.join(cfg["out"], name)
    if cfg["rank"] > 0:
        return
    if not all(parameter.isfinite().all() for parameter in parts["model"].parameters()):
        print(f"step {state['step']}: the weights are not finite, {path} was not written")
        return

    # Made in memory first: its size is known, and a full disk is noticed by us, not inside of
    # torch.
    checkpoint = {part: value.state_dict() for part, value in parts.items()}
    content = io.BytesIO()
    torch.save(checkpoint | state | dict(settings=deciding(cfg)), content)
    write_whole(path, content.getbuffer())


def open_folder(cfg, state, resumed):
    """
    Makes --out ready, and locks it as long as this process lives: returns the lock, to be kept. An
    older run's files become *.old; a resumed run's log loses the lines that come after its state.
    """
    # One run at a time.
    out = cfg["out"]
    os.makedirs(out, exist_ok=True)
    lock = lock_folder(out)

    # Make room: what an older run left is kept, until the next one.
    for name in ("last.pt", "best.pt", "log.jsonl"):
        path = os.path.join(out, name)
        with contextlib.suppress(FileNotFoundError):
            os.remove(path + ".tmp")  # of a run that was killed while it saved
        if not resumed and os.path.exists(path):
            os.replace(path, path + ".old")

    # Killed between the line of an epoch and its checkpoint, the epoch is validated once more.
    log = os.path.join(out, "log.jsonl")
    if resumed and os.path.exists(log):
        with open(log) as file:
            lines = [line for line in file if line.endswith("\n")]
        done = state["metrics"].get("step", 0) if "top1" in state["metrics"] else state["step"] - 1
        kept = [line for line in lines if json.loads(line)["step"] <= done]
        write_whole(log, "".join(kept).encode())
    return lock


def lock_folder(out):
    """
    Raises ValueError if another run writes there. The lock goes with its process, however it ends.
    """
    # The operating system keeps the lock, so there is nothing to clean up after a kill.
    file = open(os.path.join(out, "lock"), "w")
    if os.name == "posix":
        import fcntl
        try:
            # lockf, not flock: the loader's workers would inherit that and outlive us with it.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise ValueError(f"another run is writing to {out}: give this one another --out"
                             ) from error
    return file


def restore(saved, parts, state):
    """Optimizer, scaler and state of a checkpoint; ValueError if its steps are not these steps."""
    if saved["sizes"] != state["sizes"]:
        raise ValueError(f"the checkpoint was made with {saved['sizes']}, this is "
                         f"{state['sizes']}: keep batch_size x accumulate x processes (and, to "
                         "go on to the last bit, each of the three)")
    for name in ("optimizer", "scaler"):
        parts[name].load_state_dict(saved[name])
    for key in ("step", "best", "metrics"):
        state[key] = saved[key]


# --------------------------------------------------- log lines, counters, signals

def first_lines(model, sets, schedule, cfg):
    """-> three lines: network and data; steps; recipe and what differs from it."""
    # What differs from the recipe.
    family, recipe, base = base_settings(cfg["model"], cfg["data"])
    changed = [f"{key} {shown(cfg[key])} (not {shown(value)})" for key, value in base.items()
               if key in deciding(cfg) and cfg[key] != value and key not in ("data", "dtype")]

    # Our own recipe is shown: no paper has it.
    if recipe == "own":
        numbers = RECIPES[family][recipe].items()
        recipe += " (" + ", ".join(f"{key} {shown(value)}" for key, value in numbers) + ")"
    parameters = sum(p.numel() for p in model.parameters())
    side = cfg["image_size"]
    return (
        f"{cfg['model']}: {parameters:,} parameters | {len(sets['train'])} clips to train on, "
        f"{len(sets['val'])} to validate, {len(sets['val'].classes)} classes | "
        f"{cfg['num_frames']} frames of {side} x {side} | {cfg['device']}, {cfg['dtype']}\n"
        f"{schedule['steps']} steps of {schedule['clips_per_step']} clips ({cfg['batch_size']} x "
        f"{cfg['accumulate']} x {cfg['world']} processes), "
        f"{schedule['steps'] / schedule['steps_per_epoch']:.3g} epochs, "
        f"peak lr {schedule['rates']['peak']:.3g}\n"
        f"recipe: {family} on {recipe}" + "".join(f", {change}" for change in changed))


def new_tally():
    """What is counted from one epoch's end to the next."""
    # losses, norms: one of each step; clips: of all processes; waited, started: seconds.
    return dict(losses=[], norms=[], clips=0, waited=0.0, infinite=0, started=time.perf_counter())


def record_step(tally, state, loss, norm, clips, waited):
    """
    Adds a step to the tally and advances the state. A step with a gradient that is not finite is
    counted, but its loss and norm are left out of the means.
    """
    tally["clips"] += clips
    tally["waited"] += waited
    if math.isfinite(norm):
        tally["losses"].append(loss)
        tally["norms"].append(norm)
        state["streak"] = 0
    else:
        tally["infinite"] += 1
        state["streak"] += 1

    # The step counts either way, so that the data goes on.
    state["step"] += 1
    state["epoch"] = state["step"] / state["sizes"]["steps_per_epoch"]


def sum_up(tally, state, lr, unreadable):
    """
    -> what the log keeps of an epoch. loss: of rank 0; replaced: distinct reasons for which clips
    were replaced, since this process began, of rank 0.
    """
    return dict(epoch=state["epoch"], step=state["step"], lr=lr, loss=mean_of(tally["losses"]),
                grad_norm=mean_of(tally["norms"]), replaced=len(unreadable)) | speed_of(tally)


def name_bad(batch, named, bar):
    """
    Says once of each unreadable clip that another one stands in -> `named`, with the new ones.
    """
    reasons = set(batch["bad"]) - named - {""}
    for reason in sorted(reasons):
        bar.write(f"another clip stands in for {reason}", file=sys.stderr)  # from every process
    return named | reasons


def speed_of(tally):
    """
    Clips per second, the share of time that was waited for them, and steps that were left out.
    """
    # Validation is not counted: it comes after this, and a new tally begins then.
    seconds = time.perf_counter() - tally["started"]
    return dict(clips_per_s=tally["clips"] / seconds, waiting=tally["waited"] / seconds,
                infinite=tally["infinite"])


def speed_line(speed):
    """'412 clips/s, 3 % waiting for data', and what has gone wrong."""
    line = f"{speed['clips_per_s']:.0f} clips/s, {100 * speed['waiting']:.0f} % waiting for data"
    if speed["infinite"]:
        line += f", {speed['infinite']} steps with an infinite gradient left out"
    return line


def epoch_line(metrics):
    """One line for an epoch."""
    loss = "-" if metrics["loss"] is None else f"{metrics['loss']:.3f}"
    norm = "-" if metrics["grad_norm"] is None else f"{metrics['grad_norm']:.2f}"
    return (f"epoch {metrics['epoch']:.3g} | loss {loss} | val top-1 {metrics['top1']:.1f} % | "
            f"top-5 {metrics['top5']:.1f} % | lr {metrics['lr']:.1e} | gradient {norm} | "
            + speed_line(metrics))


def final_line(metrics, views):
    """What an evaluation found."""
    # As papers report it, on one line.
    line = (f"{metrics['videos']} videos, {views} views: top-1 {metrics['top1']:.2f} %, "
            f"top-5 {metrics['top5']:.2f} %, mean class accuracy {metrics['mean_class']:.2f} %")
    if metrics["bad"]:
        line += f", {metrics['bad']} unreadable counted as wrong"
    return line


def finite(value):
    """The value, None if it is nan or infinite: JSON knows neither."""
    return value if math.isfinite(value) else None


def mean_of(values):
    """The mean, None of nothing."""
    return float(np.mean(values)) if values else None


CAUGHT = []  # numbers of the signals that came


def catch(number, frame):
    """The loop ends after this step; a second signal ends it at once."""
    CAUGHT.append(number)
    signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def catching_signals():
    """Within, Ctrl-C and SIGTERM are noted in CAUGHT."""
    # Whatever happens inside, the handlers of before come back.
    CAUGHT.clear()
    before = {number: signal.signal(number, catch) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def asked_to_stop(cfg):
    """The number of the signal that came, 0 if none did; all processes get the same answer."""
    number = max(CAUGHT, default=0)
    if cfg["world"] == 1:
        return number

    # A signal may have reached one process only, or all at different steps.
    flag = torch.tensor(number, device=cfg["device"])
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return flag.item()


class Diverged(ValueError):
    """Training that cannot go on: gradients stay infinite."""


def give_up(parts, state, cfg, lr, dataset, batches):
    """
    After 20 infinite gradients in a row: saves the weights, raises with the clips of the step.
    """
    # Steps with an infinite gradient did not change the weights: those from before are saved.
    save("last.pt", parts, state, cfg)

    # The clips of this step, by file or by number.
    clips = [clip_name(dataset, i) for batch in batches for i in batch["index"].tolist()]
    more = f" and {len(clips) - 4} more" if len(clips) > 4 else ""
    raise Diverged(f"20 infinite gradients in a row, up to step {state['step']} at lr {lr:.1e}, "
                   f"with {', '.join(clips[:4])}{more}: lower --lr, or look at these clips")


# --------------------------------------------------- the loop

def set_up(model, dataset, cfg, resumed):
    """
    -> schedule (steps and rates), parts (everything with a state_dict) and state (plain values):
    a checkpoint has parts, state and settings. With `resumed`, a checkpoint, the optimizer, the
    scaler and the state are restored; its weights are loaded in `build_model`.
    """
    # Everything with a state_dict. The scaler does nothing unless the precision is float16.
    schedule = make_schedule(cfg, len(dataset))
    optimizer = make_optimizer(model, cfg, schedule["rates"]["peak"])
    scaler = torch.amp.GradScaler(torch.device(cfg["device"]).type,
                                  enabled=cfg["dtype"] == "float16")
    parts = dict(model=model, optimizer=optimizer, scaler=scaler)

    # Plain values. The sizes have to be the same when a run goes on.
    sizes = {key: schedule[key] for key in ("clips_per_step", "steps_per_epoch")}
    state = dict(step=0, epoch=0.0, streak=0, best=-1.0, metrics={}, classes=dataset.classes,
                 sizes=sizes)
    if resumed:
        restore(resumed, parts, state)
    return schedule, parts, state


def inputs(batch, num_classes, rng, cfg):
    """
    A micro-batch on the device -> x (B, 3, T, S, S), targets (B, num_classes); rng: for mixup.
    """
    labels = batch["label"].to(cfg["device"])
    return mix(prepare(batch, cfg), labels, num_classes, rng, mixup=cfg["mixup"],
               cutmix=cfg["cutmix"], switch=cfg["switch"], smoothing=cfg["smoothing"])


def finish_epoch(net, parts, state, dataset, cfg):
    """Validates with one view of each video, writes the log's line, keeps the best and the last."""
    # The metrics have what training counted; evaluation adds its own.
    metrics = state["metrics"]
    metrics |= evaluate(net, dataset, cfg)
    if cfg["rank"] == 0:
        metrics |= mean_gates(parts["model"], dataset, cfg)
        with open(os.path.join(cfg["out"], "log.jsonl"), "a") as file:
            file.write(json.dumps(metrics, allow_nan=False) + "\n")

    # Killed before this, the run validates again when it goes on: see `train`.
    if metrics["top1"] > state["best"]:
        state["best"] = metrics["top1"]
        save("best.pt", parts, state, cfg)
    save("last.pt", parts, state, cfg)


def clip_gradient(model, limit):
    """Scales the gradient down to this norm, if it is longer -> the norm that it had."""
    return torch.nn.utils.clip_grad_norm_(model.parameters(), limit).item()


def timed(items):
    """Yields each item with the seconds that it took to come."""
    # The time between two items is the loop's, not theirs.
    items = iter(items)
    while True:
        asked = time.perf_counter()
        try:
            item = next(items)
        except StopIteration:
            return
        yield item, time.perf_counter() - asked


def train(model, sets, cfg, resumed=None):
    """
    Trains to the end, or until somebody asks to stop. sets: 'train' and 'val', VideoSets; cfg: all
    settings; resumed: a checkpoint to go on with, or None. Returns the number of the signal that
    stopped it, 0 if none did, and the metrics of the last epoch.
    """
    schedule, parts, state = set_up(model, sets["train"], cfg, resumed)
    if cfg["rank"] == 0:
        lock = open_folder(cfg, state, resumed)  # held as long as this variable lives
        print(first_lines(model, sets, schedule, cfg))

    # Training runs in a wrapper that shares gradients between processes; validation does not need
    # it, as each process has videos of its own.
    eval_net = torch.compile(model) if cfg["compile"] else model
    net = DistributedDataParallel(eval_net) if cfg["world"] > 1 else eval_net

    # Killed while it validated: the weights are those of the epoch's end, only its line is missing.
    if state["metrics"] and "top1" not in state["metrics"]:
        finish_epoch(eval_net, parts, state, sets["val"], cfg)

    # A bar, in a terminal; lines only, where the output goes into a file.
    bar = tqdm(total=schedule["steps"], initial=state["step"], unit="step", dynamic_ncols=True,
               disable=None if cfg["rank"] == 0 else True)
    with catching_signals(), bar:
        stopped = loop(net=net, eval_net=eval_net, sets=sets, schedule=schedule, parts=parts,
                       state=state, cfg=cfg, bar=bar)
    return stopped, state["metrics"]


def loop(net, eval_net, sets, schedule, parts, state, cfg, bar):
    """The loop itself, from state["step"] to the last step, or to a signal: returns its number."""
    optimizer = parts["optimizer"]
    scaler = parts["scaler"]
    tally = new_tally()
    unreadable = set()  # reasons that have been printed
    steps = stream(sets["train"], cfg, state["step"], schedule["steps"])
    for batches, waited in timed(steps):
        # Set the learning rate.
        lr = lr_at(state["step"], **schedule["rates"])
        for group in optimizer.param_groups:
            group["lr"] = lr

        # Forward and backward over the micro-batches: their gradients add up. Several processes
        # average theirs in the last backward only. The seed is for drop path and dropout.
        loss = clips = 0
        for k, batch in enumerate(batches):
            unreadable = name_bad(batch, unreadable, bar)
            rng = generator(STEP, cfg["seed"], state["step"], k, cfg["rank"])
            torch.manual_seed(torch_seed(rng))
            x, targets = inputs(batch, len(state["classes"]), rng, cfg)
            sync = cfg["world"] == 1 or k == len(batches) - 1
            with contextlib.nullcontext() if sync else net.no_sync():
                with autocast(cfg):
                    logits = net(x)  # (B, num_classes)
                micro_loss = F.cross_entropy(logits.float(), targets) / len(batches)
                scaler.scale(micro_loss).backward()
            loss += micro_loss.item()
            clips += len(x) * cfg["world"]

        # Clip the gradient and step, unless it is not finite: then only count it.
        scaler.unscale_(optimizer)
        norm = clip_gradient(parts["model"], cfg["clip_grad"] or math.inf)
        if math.isfinite(norm):
            scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        record_step(tally, state, loss=loss, norm=norm, clips=clips, waited=waited)
        if state["streak"] == 20:
            give_up(parts, state, cfg, lr=lr, dataset=sets["train"], batches=batches)

        # Show progress.
        speed = speed_line(speed_of(tally))
        bar.set_postfix_str(f"loss {loss:.3f}, lr {lr:.1e}, {speed}", refresh=False)
        bar.update()

        # At the end of an epoch: save (validation may take long), validate, log, save.
        if state["step"] % schedule["steps_per_epoch"] == 0 or state["step"] == schedule["steps"]:
            state["metrics"] = sum_up(tally, state, lr, unreadable)
            save("last.pt", parts, state, cfg)
            finish_epoch(eval_net, parts, state, sets["val"], cfg)
            bar.write(epoch_line(state["metrics"]))
            tally = new_tally()

        # Stop if somebody asked.
        stopped = asked_to_stop(cfg)
        if stopped:
            save("last.pt", parts, state, cfg)
            return stopped
    return 0


# --------------------------------------------------- the command line: flags -> settings

def parse(words):
    """['--lr', '0.1', '--eval'] -> {'lr': ['0.1'], 'eval': []}. --lr=0.1 is the same."""
    # A word with -- opens a flag, the words after it are its values. Given twice, the last one
    # counts.
    flags = {}
    for word in words:
        if word.startswith("--"):
            name, equals, text = word[2:].partition("=")
            flags[name] = [text] if equals else []
        elif flags:
            flags[name].append(word)
        else:
            raise ValueError(f"{word!r}: write --name value, as in --lr 0.1; --help lists all")
    return flags


def shown(value):
    """As it would be written on the command line: (2, 2) -> '2,2'."""
    if isinstance(value, (tuple, list)):
        return ",".join(shown(part) for part in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def parse_number(name, text, kind):
    """'3' -> 3 for int, 3.0 for float; ValueError for what is no number, nan or infinite."""
    # What is no number becomes nan, which is refused, as a nan that was written is.
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        rule = "a whole number" if kind is int else "a number"
        raise ValueError(f"--{name} {text}: must be {rule}")
    return value


def value_of(name, texts, default, allowed):
    """The words after a flag as a value of the default's type; ValueError with what is allowed."""
    # Some flags mean something without a value, two take several.
    if isinstance(default, bool) and not texts:
        return True
    if name == "resume" and not texts:
        return "last"
    if default == () and texts:
        return tuple(texts)
    if len(texts) != 1:
        many = "one value or more" if default == () else "one value"
        raise ValueError(f"--{name} {' '.join(texts)}: takes {many}, as in "
                         f"--{name} {shown(default) or 'NAME'}")
    text = texts[0]

    # True or False; a word; numbers with commas; a number.
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise ValueError(f"--{name} {text}: must be True or False")
        return text.lower() == "true"
    elif isinstance(default, str):
        if allowed and text not in allowed:
            near = difflib.get_close_matches(text, allowed, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"--{name} {text}: must be one of {', '.join(allowed)}{hint}")
        return text
    elif isinstance(default, tuple) or "," in text and not allowed:
        # Several of one kind; models also take several where the default is one.
        kind = type(default[0]) if isinstance(default, tuple) else type(default)
        value = tuple(parse_number(name, part, kind) for part in text.rstrip(",").split(","))
        if "," not in text or allowed and len(value) != len(default):
            many = len(default) if allowed else "one or more"
            raise ValueError(f"--{name} {text}: must be {many} numbers with commas, as in "
                             f"{shown(default)}, or in 3,")
    else:
        value = parse_number(name, text, type(default))

    # Numbers have a lowest and a highest value; the model checks its arguments itself, in `check`.
    for part in value if isinstance(value, tuple) else (value,):
        if allowed and not allowed[0] <= part <= allowed[1]:
            raise ValueError(f"--{name} {text}: must be from {shown(allowed[0])} "
                             f"to {shown(allowed[1])}")
    return value


def base_settings(model, data):
    """-> family, the recipe's data set, and all settings before any flag: defaults, then recipe."""
    # The number of classes is the data's.
    own = {name: value for name, value in arguments(model).items() if name != "num_classes"}

    # The recipe may change any default, of training, of clips, of the model.
    family = model.split("_")[0]
    recipe = recipe_of(data, RECIPES[family])
    base = {name: default for name, (default, _, _) in (RUN | LEARNING | CLIPS).items()}
    return family, recipe, base | own | RECIPES[family][recipe] | dict(model=model, data=data)


def recipe_of(data, recipes):
    """Which recipe a data set has."""
    if data in recipes:
        return data
    if data in NAMED:
        return "k400"
    # The toy as files, from --make_toy, is the toy.
    folder = os.path.join(data, "train")
    if os.path.isdir(folder) and sorted(os.listdir(folder)) == sorted(TOY_CLASSES):
        return "toy"
    return "own"


def deciding(cfg):
    """The settings that decide the result: all but RUN's. A checkpoint keeps these."""
    names = LEARNING.keys() | CLIPS.keys() | (arguments(cfg["model"]).keys() - {"num_classes"})
    return {name: value for name, value in cfg.items() if name in names}


def resolve(flags, saved=None):
    """
    Defaults < recipe of model and data set < `saved`, a checkpoint's settings < flags -> cfg, one
    flat dict. Raises ValueError, before any work, for what is unknown, mistyped, or cannot work.
    """
    # The settings that every model has come first: they say which model it is.
    common = RUN | LEARNING | CLIPS
    given = {name: value_of(name, texts, *common[name][:2])
             for name, texts in flags.items() if name in common}
    data = given.get("data") or (saved or {}).get("data") or "toy"
    usual = "focal_t" if data in NAMED else "focal_toy"
    model = given.get("model") or (saved or {}).get("model") or usual
    if saved and model != saved.get("model", model):
        raise ValueError(f"--model {model}: the checkpoint is of {saved['model']}; leave it out")
    _, _, cfg = base_settings(model, data)

    # The rest are the model's own arguments.
    for name, texts in flags.items():
        if name not in cfg:
            near = difflib.get_close_matches(name.replace("-", "_"), cfg, 1)
            hint = f"did you mean --{near[0]}?" if near else f"--help --model {model} lists all"
            raise ValueError(f"--{name}: no such setting for {model}; {hint}")
        if name not in common:
            given[name] = value_of(name, texts, cfg[name], None)

    # Later ones win; a rate for lr_batch clips is later than a peak of the recipe.
    if saved:
        cfg |= known_settings(saved, cfg)
    if given.keys() & {"base_lr", "lr_batch"}:
        cfg["lr"] = 0.0
    cfg |= given
    check(cfg)
    return cfg


def known_settings(saved, cfg):
    """
    -> a checkpoint's settings. ValueError for an unknown one; a missing one keeps its default.
    """
    unknown = sorted(saved.keys() - deciding(cfg).keys())
    if unknown:
        raise ValueError(f"the checkpoint has settings that this version does not know: "
                         f"{', '.join(unknown)}; start from its weights: --init FILE with --model "
                         "and --data")
    missing = sorted(deciding(cfg).keys() - saved.keys())
    if missing:
        print("not in the checkpoint, taken from the defaults: "
              + ", ".join(f"{name} {shown(cfg[name])}" for name in missing))
    return saved


def check(cfg):
    """Raises ValueError for settings that are fine alone and cannot work, before any work."""
    # Text that has a form, folders, ranges.
    parse_views(cfg["views"])
    if os.path.exists(cfg["out"]) and not os.path.isdir(cfg["out"]):
        raise ValueError(f"--out {cfg['out']}: is a file, a folder is needed")
    low, high = cfg["crop_range"]
    if low > high:
        raise ValueError(f"--crop_range {low:.4g},{high:.4g}: must be the lower number first")
    if cfg["crop"] == "area" and high > 1 or cfg["crop"] == "short_side" and low < 1:
        raise ValueError(f"--crop_range {low:.4g},{high:.4g}: with --crop area a share of the "
                         "frame, up to 1; with --crop short_side the short side in units of the "
                         "crop, from 1 on")

    # What goes together with something else only.
    if cfg["input"] == "diff" and cfg["num_frames"] == 1:
        raise ValueError("--input diff: one frame has no difference; use --input rgb")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and (
            cfg["predict"] or cfg["look"] or cfg["freeze"]):
        raise ValueError("--predict, --look and --freeze run in one process: leave torchrun out")

    # On the meta device a network costs nothing, and says what it cannot be, or cannot take.
    side = cfg["image_size"]
    with torch.device("meta"):
        network(cfg)(torch.empty(1, 3, cfg["num_frames"], side, side))


def network(cfg, num_classes=None):
    """The model of the settings, with fresh weights."""
    own = {name: cfg[name] for name in arguments(cfg["model"]) if name in cfg}
    return create_model(cfg["model"], num_classes, **own)


def where_to_run(cfg):
    """Device, processes and precision of this run -> the settings with them."""
    world = int(os.environ.get("WORLD_SIZE", 1))  # set by torchrun, as are the next two
    rank = int(os.environ.get("RANK", 0))
    local = int(os.environ.get("LOCAL_RANK", 0))

    # The device. torch names what it knows; with several processes each has a GPU of its own, all
    # have the CPU.
    name = cfg["device"]
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"

    # torch says what it knows, and whether it is there.
    try:
        device = torch.device(name)
        if device.type != "cuda":
            torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name}: {str(error).splitlines()[0]}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: this torch sees no GPU; leave the flag out")
    if device.type == "cuda" and world > 1:
        name = f"cuda:{local}"
        torch.cuda.set_device(local)

    # What is left to us: precision, and the processes that load.
    dtype = cfg["dtype"]
    if dtype == "auto":
        dtype = "bfloat16" if device.type == "cuda" else "float32"
    if dtype == "float16" and device.type == "cpu":
        print("warning: float16 works on a CPU, but is several times slower than float32")
    workers = cfg["workers"]
    if workers == -1:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # processes on this machine
        workers = 0 if cfg["data"] in TOYS else max(1, os.cpu_count() // here)
    return cfg | dict(device=name, world=world, rank=rank, dtype=dtype, workers=workers)


def show_help(flags):
    """Every setting with its default, its range and its meaning; with --model, its arguments."""
    # The defaults of a model on a data set.
    chosen = {name: value_of(name, flags[name], *LEARNING[name][:2])
              for name in ("model", "data") if name in flags}
    data = chosen.get("data", "toy")
    model = chosen.get("model", "focal_t" if data in NAMED else "focal_toy")
    family, recipe, base = base_settings(model, data)
    print(f"{__doc__}\nDefaults are those of --model {model} --data {data}, with the recipe "
          f"{family} on {recipe}.")

    # Table by table, with the recipe's value and what is allowed.
    for title, table in (("Where and how to run", RUN), ("How a network learns", LEARNING),
                         ("How a clip is cut and coloured", CLIPS)):
        print(f"\n{title}:")
        for name, (default, allowed, meaning) in table.items():
            if allowed and isinstance(default, str):
                meaning += f" ({', '.join(allowed)})"
            elif allowed:
                meaning += f" ({shown(float(allowed[0]))} to {shown(float(allowed[1]))})"
            print(f"  --{name} {shown(base[name])}".ljust(36) + meaning)

    # The model's own arguments: what they mean stands in its class.
    print(f"\nArguments of {model}:")
    for name, value in arguments(model).items():
        if name != "num_classes":  # the data's
            print(f"  --{name} {shown(value)}")
    print("\n" + inspect.getdoc(MODELS[model]["trunk"]))
    if "model" not in flags:
        print(f"\n--help --model NAME shows those of another one: {', '.join(MODELS)}")


# --------------------------------------------------- the command line: data and model

def open_sets(cfg, names):
    """
    The data sets that this run needs; labels are indices into `names`, a checkpoint's classes.
    """
    if not cfg["eval"]:
        return open_data(cfg, ["train", "val"])

    # To evaluate, the checkpoint's classes decide which index means what.
    sets = open_data(cfg, ["val"], cfg["views"])
    val = sets["val"]
    if names and val.classes != names:
        unknown = sorted(set(val.classes) - set(names))
        if unknown:
            raise ValueError(f"{cfg['init']} was not trained on the classes of {cfg['data']}: it "
                             f"does not know {unknown[0]!r}")
        # The same names in another order, or only some of them: a class that no video has stays one
        # that can be answered.
        val.labels = [names.index(val.classes[label]) for label in val.labels]
        val.classes = names
    return sets


def settle(cfg, classes, flags, initial):
    """Turns flip off where classes are mirrored, warns of weights that saw another input."""
    # A flip would make left of right, and turn clockwise round. The data sets have the same dict.
    _, recipe, _ = base_settings(cfg["model"], cfg["data"])
    mirrored = {"left", "right", "clockwise", "anticlockwise", "counterclockwise"}
    if recipe == "own" and cfg["flip"] and "flip" not in flags:
        for name in classes:
            words = re.findall("[A-Z]?[a-z]+|[A-Z]+", name)  # turn_left, TurnLeft, LEFT
            if mirrored & {word.lower() for word in words}:
                cfg["flip"] = 0.0
                print(f"flip is off: mirrored, {name!r} would be another class (--flip 0.5: on)")
                break

    # Weights that were trained on colours see differences, or the reverse.
    seen = initial.get("settings", {}).get("input", "rgb")
    if initial and seen != cfg["input"]:
        print(f"warning: {cfg['init']} was trained with --input {seen}, now it is {cfg['input']}")
    if not initial and recipe == "own" and cfg["input"] == "rgb" and cfg["num_frames"] > 1:
        print("a small network learns more from few clips with --input diff, or from weights: "
              "--init")


def classes_of(checkpoint, cfg):
    """The class names of a checkpoint; released ones carry none: those of the data set."""
    if "classes" in checkpoint:
        return checkpoint["classes"]
    classes = class_names(cfg["data"]) if cfg["data"] in NAMED else []
    # The last layer is called head.weight, or mlp_head.4.weight in the transformer.
    heads = [value for key, value in weights_of(checkpoint).items()
             if key.endswith(("head.weight", "head.4.weight"))]
    head = heads[0] if heads else ()
    if len(classes) != len(head):
        raise ValueError(f"{cfg['init']} has {len(head)} classes and no names for them, "
                         f"--data {cfg['data']} has {len(classes)}: name the data set it was "
                         f"trained on, one of {', '.join(NAMED)}")
    return classes


def build_model(cfg, classes, resumed, initial):
    """The network with the weights it starts from: resumed's, those of --init, or fresh ones."""
    # Fresh weights come from the seed; what is loaded replaces them.
    torch.manual_seed(torch_seed(generator(WEIGHTS, cfg["seed"])))
    model = network(cfg, len(classes))
    if resumed:
        model.load_state_dict(resumed["model"])
    elif initial:
        done = load_weights(model, initial, cfg["temporal_init"], where=cfg["init"])

        # To evaluate, to predict and to look, nothing may be left fresh.
        finished = cfg["eval"] or cfg["predict"] or cfg["look"]
        if finished and done["left_over"]:
            raise ValueError(f"{cfg['init']} was not trained on the {len(classes)} classes of "
                             f"{cfg['data']}: its head does not fit")
        if finished and done["fresh"] and cfg["temporal_init"] != "identity":
            raise ValueError(f"{cfg['init']} has no weights for time: train with it first, or say "
                             "--temporal_init identity, or --temporal False")
    elif cfg["weight_init"] == "released":
        print(f"warning: {cfg['model']} starts as released, for image weights, and hardly learns "
              "from nothing: add --init WEIGHTS or --weight_init scratch")
    return model.to(cfg["device"])


# --------------------------------------------------- sweeps, and main

def sweep(flags):
    """
    Asks a question in rows: each argument of --sweep changes the settings of the command line, for
    `seeds` seeds. Prints a markdown table as it grows, and writes it to OUT/sweep.md.
    """
    # A row is the command line with a few flags more.
    cfg = resolve(flags)
    if what_else(cfg) or cfg["resume"] or "WORLD_SIZE" in os.environ:
        raise ValueError("--sweep trains, in one process: leave --eval, --predict, --look, "
                         "--resume and torchrun out")
    rows = [parse(f"--{change}" for change in row.split()) for row in cfg["sweep"]]
    base = {name: texts for name, texts in flags.items() if name not in ("sweep", "seeds", "seed")}
    for row in rows:
        if row.keys() & {"seed", "out", "views", "eval", "predict", "look", "resume", "seeds"}:
            raise ValueError("--sweep: seeds, folders and views are the sweep's, see --seed and "
                             "--seeds; a row changes how a network learns")
        resolve(base | row)  # every mistake is found before the first run

    # The table grows on the screen and on the disk.
    os.makedirs(cfg["out"], exist_ok=True)
    command = " ".join(f"--{name} {' '.join(texts)}" for name, texts in base.items()
                       if name != "out")
    seeds = range(cfg["seed"], cfg["seed"] + cfg["seeds"])
    with open(os.path.join(cfg["out"], "sweep.md"), "w") as file:
        def say(line):
            print(line, flush=True)
            print(line, file=file, flush=True)

        # What the base is, the head of the table, then row by row.
        say(f"python train.py {command}; val top-1 in percent, last weights\n")
        say(f"| change | seeds {', '.join(map(str, seeds))} | mean | spread | parameters | GFLOPs "
            "| clips/s |\n|---|---|---|---|---|---|---|")
        for text, row in zip(cfg["sweep"], rows):
            runs = []
            for seed in seeds:
                own = dict(seed=[str(seed)], out=[os.path.join(cfg["out"], "sweep")], views=["1x1"])
                runs.append(one_run(base | row | own))
                if isinstance(runs[-1], int):
                    return runs[-1]  # somebody asked to stop
            say(table_row(text, runs))
    return 0


def one_run(flags):
    """
    Trains -> {top1, clips_per_s, parameters, macs}, top1 nan if it diverged; a signal's number.
    """
    # The same as from the command line, without its lines.
    words = [word for name, texts in flags.items() for word in (f"--{name}", *texts)]
    with contextlib.redirect_stdout(None):
        try:
            status = run(words)
        except Diverged:
            return dict(top1=math.nan, clips_per_s=math.nan, parameters=0, macs=0)
    if status:
        return status

    # What came out stands in the run's folder: the last weights, and a line for each epoch.
    out = flags["out"][0]
    checkpoint = read_checkpoint(os.path.join(out, "last.pt"))
    with open(os.path.join(out, "log.jsonl")) as file:
        speeds = [json.loads(line)["clips_per_s"] for line in file]

    # What it costs is counted, on a network without numbers.
    with torch.device("meta"):
        model = network(checkpoint["settings"], len(checkpoint["classes"]))
    return dict(top1=checkpoint["metrics"]["top1"], clips_per_s=float(np.mean(speeds)),
                parameters=sum(p.numel() for p in model.parameters()), macs=count_macs(model))


def table_row(text, runs):
    """
    A row of the sweep's table: its change, top-1 of each seed, mean, spread, and what it costs.
    """
    # The spread is that from the worst seed to the best.
    top1 = [one["top1"] for one in runs]
    seeds = ", ".join("diverged" if math.isnan(value) else f"{value:.1f}" for value in top1)
    speed = np.mean([one["clips_per_s"] for one in runs])
    parameters = max(one["parameters"] for one in runs)  # 0 of one that diverged
    macs = max(one["macs"] for one in runs)
    return (f"| {text or '(none)'} | {seeds} | {np.mean(top1):.1f} | {max(top1) - min(top1):.1f} | "
            f"{parameters:,} | {macs / 1e9:.3f} | {speed:.0f} |")


def what_else(cfg):
    """What is asked for instead of training: 'eval', 'predict', 'look', or '' for none."""
    asked = [name for name in ("eval", "predict", "look") if cfg[name]]
    if len(asked) > 1:
        raise ValueError(f"--{asked[0]} and --{asked[1]}: one at a time")
    return asked[0] if asked else ""


def read_start(cfg):
    """-> the checkpoint to go on with, and the one to start from; {} for none."""
    asked = what_else(cfg)
    if asked and not cfg["init"]:
        raise ValueError(f"--{asked} needs weights: --init FILE, as in --init out/best.pt")
    if cfg["resume"] and (cfg["init"] or asked):
        raise ValueError("--resume goes on with training: leave --init, --eval, --predict and "
                         "--look out")

    # Weights to start from, or nothing: then the network starts from its seed.
    if not cfg["resume"]:
        return {}, read_checkpoint(cfg["init"]) if cfg["init"] else {}

    # A run to go on with.
    path = cfg["resume"]
    if path == "last":
        path = os.path.join(cfg["out"], "last.pt")
    resumed = read_checkpoint(path)

    # The settings and the optimizer come with it; a file of weights alone, or a probe's, has none.
    if "settings" not in resumed or "optimizer" not in resumed:
        raise ValueError(f"--resume {path}: holds weights only, nothing to go on with; start from "
                         f"it: --init {path}")
    return resumed, {}


def refuse_changes(cfg, saved):
    """Raises ValueError if flags would make a resumed run another one."""
    # A batch may be cut otherwise, into micro-batches or processes: `restore` compares its size.
    changed = [f"{name} was {shown(value)}, is {shown(cfg[name])}" for name, value in saved.items()
               if cfg[name] != value and name not in ("batch_size", "accumulate")]
    if changed:
        raise ValueError("--resume goes on exactly as before, but " + "; ".join(changed)
                         + "\n  leave these flags out, or start from the weights with --init")


def run(words):
    """One command, from its words to its exit status. `main` turns its errors into one line."""
    flags = parse(words)
    if "help" in flags:
        return show_help(flags)
    if "sweep" in flags:
        return sweep(flags)

    # Weights come with settings: to go on, to evaluate and to predict with.
    early = {name: value_of(name, texts, *RUN[name][:2]) for name, texts in flags.items()
             if name in RUN}
    start = {name: default for name, (default, _, _) in RUN.items()} | early
    if start["resume"] not in ("", "last") and "out" not in flags:
        flags["out"] = [os.path.dirname(start["resume"]) or "."]  # go on in the same folder
    resumed, initial = read_start(start)

    # These settings stand between the recipe and the flags.
    saved = resumed.get("settings")
    if what_else(start):
        saved = initial.get("settings")
    cfg = where_to_run(resolve(flags, saved))
    if resumed:
        refuse_changes(cfg, saved)
    if cfg["rank"] > 0:
        sys.stdout = open(os.devnull, "w")  # only rank 0 prints

    # No data set is needed to predict or to look.
    if cfg["predict"] or cfg["look"]:
        cfg["views"] = cfg["views"] if "views" in flags else "1x1"
        classes = classes_of(initial, cfg)
        use = predict if cfg["predict"] else look
        return use(build_model(cfg, classes, resumed, initial), classes, cfg)

    # Data, model, processes. The data comes first: it knows the classes.
    sets = open_sets(cfg, initial.get("classes"))
    if not resumed and not cfg["eval"]:
        settle(cfg, sets["val"].classes, flags, initial)
    model = build_model(cfg, sets["val"].classes, resumed, initial)
    if cfg["world"] > 1:
        dist.init_process_group("nccl" if cfg["device"].startswith("cuda") else "gloo")

    # Evaluate, or train: all of it, or the head alone.
    if cfg["eval"]:
        metrics = report(model, sets["val"], cfg)
    else:
        stopped, metrics = (probe(model, sets, cfg) if cfg["freeze"]
                            else train(model, sets, cfg, resumed))
        if stopped:
            print(f"\nstopped by {signal.Signals(stopped).name}; saved {cfg['out']}/last.pt, go on "
                  "with --resume")
            return 128 + stopped
        # As the papers test: the last weights, several views.
        if cfg["views"] != "1x1":
            val = sets["val"]
            test = VideoSet(val.clips, val.labels, val.classes, cfg, views=cfg["views"])
            metrics = evaluate(model, test, cfg)
    print(final_line(metrics, cfg["views"]))
    if cfg["world"] > 1:
        dist.destroy_process_group()
    return 0


def main(words=None):
    """The command line: exit status 0, or 1 with one line that says what is wrong."""
    try:
        sys.exit(run(sys.argv[1:] if words is None else words))
    except (ValueError, OSError, BadVideo) as error:
        # A loader's process sends its traceback along: the last line is the message.
        message = str(error)
        if "Original Traceback" in message:
            message = message.strip().splitlines()[-1].partition(": ")[2]
        sys.exit(f"error: {message}")
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        sys.exit(f"error: a process that loads data was killed ({str(error).splitlines()[0]}): out "
                 "of memory? try fewer --workers. What was saved is still there: --resume")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
