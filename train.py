"""
Train, evaluate, predict: one straight loop, and the command line around it.

    python train.py                                        toy data, a small focal net, on a CPU
    python train.py --data k400 --root DIR --model focal_t --init focalnet_tiny_srf.pth
    torchrun --nproc_per_node 8 train.py --data k400 ...   several GPUs (or CPU processes)
    python train.py --resume                               go on with out/last.pt, exactly
    python train.py --eval --data k400 --root DIR --model focal_t --init ckpt.pth --views 4x3
    python train.py --predict clip.mp4 --init out/best.pt  the five most probable classes
    python train.py --help --model focal_t                 every setting, with its default

A step: set the learning rate -> forward and backward over the micro-batches -> clip the gradient
-> step. What is random in a step comes from (seed, step, micro-batch, process), what is random in
the data from (seed, epoch, sample). So a checkpoint has weights, optimizer, scaler, the number of
the step, the log, class names and settings, and a run that was killed and resumed ends with the
same bits as one that was not (on the same machine, with the same split into batches).

Source of the recipes: configs and code released with arXiv:2307.06947 (Video-FocalNets) and
arXiv:2210.08164 (the transformer). Where the text says something else, or we do, the line says so.
"""
import argparse
import ast
import contextlib
import io
import json
import math
import os
import re
import signal
import sys
import time
from types import SimpleNamespace

# The threads of a sum wait for each other. By default they spin, and where something else wants the
# cores as well, a browser say, each waits for one that does not run. Let them sleep instead: a
# tenth slower on an idle machine, two to three times faster on a busy one. torch reads this when it
# is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import data
from backbone import (PER_STAGE, arguments, create_model, load_weights, read_checkpoint, weights_of)
from data import (NAMED, STEP, TOY, WEIGHTS, BadVideo, VideoSet, batch_keys, class_names, generator,
                  loader, mix, open_data, parse_views, prepare, torch_seed, whole)


# --------------------------------------------------- settings

# name: (default, what is allowed, meaning), as in data.py, whose settings belong to it. Each is a
# flag: --lr 0.1. So is every argument of the model, --depths 1,1,2,1: see its class in backbone.py.
# The defaults are those of the released Video-FocalNets.
SETTINGS = {
    # what is learned, and by what
    "model": ("focal_toy", None, "a preset of backbone.py; focal_t for the named data sets"),
    "epochs": (120.0, (0.001, 1e6), "passes over the training data"),
    "steps": (0, (0, 10**9), "optimizer steps; 0: as many as epochs says"),
    "batch_size": (8, (1, 10**5), "clips per process and micro-batch"),
    "accumulate": (1, (1, 10**5), "micro-batches per optimizer step"),
    # how fast; all rates but --lr are for lr_batch clips a step, and scaled with them
    "optimizer": ("sgd", ("sgd", "adamw"), "sgd has Nesterov momentum"),
    "base_lr": (0.1, (1e-9, 1e3), "peak learning rate for lr_batch clips a step"),
    "lr_batch": (512, (0, 10**6), "clips a step that base_lr is for; 0: any number"),
    "warmup": (20/120, (0, 0.99), "share of training in which the rate rises"),
    "warmup_lr": (0.01, (0, 1), "rate of the first step, as a share of the peak"),
    "min_lr": (0.01, (0, 1), "rate that the cosine ends at, as a share of the peak"),
    "lr": (0.0, (0, 1e9), "the peak itself, whatever the batch; 0: as base_lr says"),
    # the optimizer's own numbers
    "momentum": (0.9, (0, 0.9999), "of sgd"),
    "betas": ((0.9, 0.999), (0, 0.99999), "of adamw"),
    "weight_decay": (0.0, (0, 10), "0 as in the released code; its paper says 1e-4"),
    "clip_grad": (5.0, (0, 1e9), "largest norm of the gradient; 0: any"),
    "dtype": ("auto", ("auto", "float32", "bfloat16", "float16"),
              "of matrix products; auto: bfloat16 on cuda, float32 on cpu"),
    **data.SETTINGS,

    # Where and how to run. From here on nothing is kept in a checkpoint.
    "init": ("", None, "weights: ours, released, or an image FocalNet's, which are inflated"),
    "temporal_init": ("fresh", ("fresh", "identity"), "start of an inflated network's time branch"),
    "resume": ("", None, "go on exactly with a checkpoint; without a name OUT/last.pt"),
    "out": ("out", None, "folder for last.pt, best.pt, log.jsonl"),
    "workers": (-1, (-1, 256), "processes that load data; -1: none for toy, else one per CPU core"),
    "device": ("auto", None, "cpu, cuda, cuda:1, ..; auto: cuda if there is one"),
    "compile": (False, None, "torch.compile the network (for GPUs)"),
    "eval": (False, None, "evaluate --init on the validation videos"),
    "predict": ("", None, "print the most probable classes of this video"),
}
NOT_SAVED = ("root", "init", "temporal_init", "resume", "out", "workers", "device", "compile",
             "eval", "predict")

# Numbers of the models' arguments that may be other than 1 and more.
RANGES = {"drop_path": (0, 0.99), "dropout": (0, 0.99), "temporal_shift": (0, 10**4),
          "spatial_shift": (0, 4)}

# Linear Video Transformer, Something-Something.
LVT = dict(
    epochs=35.0,
    warmup=5/35,
    batch_size=4,
    base_lr=0.03,  # the paper says 0.035
    lr_batch=32,
    warmup_lr=0.1,
    min_lr=0.0,
    weight_decay=1e-4,  # of everything, norms and biases too
    clip_grad=0.0,
    sampling="tsn",
    interval=1,
    crop="short_side",
    crop_range=(256/224, 320/224),
    views="2x3",
    flip=0.0,
    jitter=0.0,
    grey=0.0,
    auto_augment=True,
    erase=0.5,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    mixup=0.0,
    cutmix=0.0,
    smoothing=0.0,
)

# The same, Kinetics.
LVT_KINETICS = LVT | dict(
    epochs=40.0,  # the paper says 35
    warmup=5/40,
    base_lr=0.035,
    warmup_lr=0.01/0.035,
    weight_decay=1e-5,
    sampling="dense",
    interval=16,  # windows of 16 T frames; theirs are longer at over 30 frames a second
    crop="multi_scale",
    views="4x3",
    flip=0.5,
    erase=0.0,
    mixup=0.4,
    smoothing=0.3,
)

# Ours, by trial. From nothing the transformer does not learn with sgd; papers start from images.
FOCAL_TOY = TOY | dict(
    epochs=7.0,
    warmup=0.1,
    batch_size=32,
    base_lr=0.1,  # at 0.2 some seeds never leave chance
    lr_batch=32,
    warmup_lr=0.0,
    min_lr=0.0,
    clip_grad=1.0,
)
LVT_TOY = FOCAL_TOY | dict(optimizer="adamw", base_lr=0.003, betas=(0.9, 0.98), weight_decay=0.05)

# Ours, by trial: a few hundred clips, from nothing or from weights.
OWN = data.AS_IT_IS | dict(
    epochs=200.0,
    warmup=0.1,
    optimizer="adamw",
    base_lr=0.002,
    lr_batch=0,
    warmup_lr=0.0,
    min_lr=0.0,
    weight_decay=0.05,
    clip_grad=1.0,
    margin=256/224,
    crop="area",
    crop_range=(0.5, 1.0),
    flip=0.5,
)

# By the family of the model, the first word of its name, and the data set: what differs from the
# defaults. Folders and lists have `own`, what else is not here has the recipe of k400, and an
# unknown family has focal's.
RECIPES = {
    "focal": {
        "toy": FOCAL_TOY,
        "own": OWN,
        "k400": {},
        "ssv2": dict(flip=0.0),  # classes say left and right
    },
    "lvt": {
        "toy": LVT_TOY,
        "own": OWN,
        "k400": LVT_KINETICS,
        "ssv2": LVT,
    },
}


def recipe_of(model, data_set):
    """-> the name of a recipe, 'focal on k400', and what it changes in the defaults."""
    family = model.split("_")[0]
    if family not in RECIPES:
        family = "focal"
    kind = data_set
    if kind not in RECIPES[family]:
        kind = "k400" if data_set in NAMED else "own"
    return f"{family} on {kind}", RECIPES[family][kind]


# --------------------------------------------------- learning rate and optimizer

def lr_at(step, steps, cfg):
    """Linear from a share of the peak to the peak, `warmup` of all steps long, then a cosine."""
    warmup = round(cfg.warmup * steps)
    if step < warmup:
        return cfg.peak * (cfg.warmup_lr + (1 - cfg.warmup_lr) * step / warmup)
    # The released cosine counts from step 0, so its rate drops by 6.6 % where the warm-up ends.
    # Ours starts there, at the peak.
    cosine = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
    return cfg.peak * (cfg.min_lr + (1 - cfg.min_lr) * cosine)


def make_optimizer(model, cfg):
    """
    SGD decays every parameter, as the released transformer does (Video-FocalNets have weight_decay
    0). AdamW does not decay norms, biases and embeddings.
    """
    if cfg.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=cfg.peak, momentum=cfg.momentum,
                               nesterov=True, weight_decay=cfg.weight_decay)
    # Norms and biases have one axis; the temporal embedding has more.
    decay = []
    rest = []
    for name, parameter in model.named_parameters():
        matrix = parameter.ndim > 1 and not name.endswith("embed")
        (decay if matrix else rest).append(parameter)
    groups = [dict(params=decay, weight_decay=cfg.weight_decay),
              dict(params=rest, weight_decay=0.0)]
    return torch.optim.AdamW(groups, lr=cfg.peak, betas=cfg.betas)


def autocast(cfg):
    """The context in which the network runs in the precision of this run."""
    return torch.autocast(torch.device(cfg.device).type, getattr(torch, cfg.precision),
                          enabled=cfg.precision != "float32")


# --------------------------------------------------- evaluate, predict

@torch.no_grad()
def evaluate(model, dataset, cfg):
    """
    -> {top1, top5, mean_class} in percent, {videos, bad}. The score of a video is the mean of
    softmax over its views; each video counts once, whatever the batch and the processes, an
    unreadable one as wrong: to drop it would flatter. (Released: Video-FocalNet drops the odd video
    of a process; the transformer sums logits, where one view that is very sure outvotes the
    others.)
    """
    # What a network counts along, BatchNorm's means, each process counts for itself: the first
    # one's are kept.
    if cfg.world > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)

    # A row of scores for each video.
    model.eval()
    clips, crops = dataset.views
    views = clips * crops
    scores = torch.zeros(len(dataset), len(dataset.classes), device=cfg.device)
    bad = torch.zeros(len(dataset), device=cfg.device)

    # This process takes every world-th video, a few at a time.
    mine = range(cfg.rank, len(dataset), cfg.world)
    per_batch = max(1, cfg.batch_size // views)
    batches = [[(0, i) for i in mine[k:k+per_batch]] for k in range(0, len(mine), per_batch)]
    for batch in loader(dataset, batches, cfg.workers, cfg.device.startswith("cuda")):
        x = prepare(batch, cfg, cfg.device)  # (videos * views, 3, T, S, S)

        # The views of a video may be more than a batch: a part at a time.
        with autocast(cfg):
            logits = torch.cat([model(part).float() for part in x.split(cfg.batch_size)])
        scores[batch["index"]] = logits.softmax(-1).unflatten(0, (-1, views)).mean(1)
        for i, reason in zip(batch["index"], batch["bad"]):
            if reason:
                bad[i] = 1
                print(f"counted as wrong: {reason}", file=sys.stderr)

    # Each row was filled by one process: the sum collects them.
    if cfg.world > 1:
        dist.all_reduce(scores)
        dist.all_reduce(bad)
    model.train()
    return accuracies(scores.cpu(), torch.tensor(dataset.labels), bad.cpu() > 0)


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
def predict(model, classes, cfg):
    """Prints the five most probable classes of a video, whose views are those of evaluation."""
    dataset = VideoSet([whole(cfg.predict)], [0], classes, cfg, views=cfg.views)
    batch = torch.utils.data.default_collate([dataset[0, 0]])
    if batch["bad"][0]:
        raise BadVideo(batch["bad"][0])
    model.eval()
    with autocast(cfg):
        scores = model(prepare(batch, cfg, cfg.device)).float().softmax(-1).mean(0)
    values, best = scores.topk(min(5, len(classes)))
    print(cfg.predict)
    for value, c in zip(values, best):
        print(f"  {100 * value:7.3f} %  {classes[c]}")
    return dict(classes=[classes[c] for c in best], probabilities=values.tolist())


# --------------------------------------------------- the folder of a run

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


def save(name, model, optimizer, scaler, state, cfg):
    """
    Writes a checkpoint, and the log that is in it. Weights that are not finite are not saved: the
    file keeps the last that were.
    """
    path = os.path.join(cfg.out, name)
    if cfg.rank > 0:
        return
    if not all(tensor.isfinite().all() for tensor in model.state_dict().values()):
        print(f"step {state['step']}: the weights are not finite, {path} was not written")
        return

    # Made in memory first, so that a full disk is noticed by us, not inside of torch.
    settings = {key: value for key, value in vars(cfg).items() if key in cfg.saved}
    content = io.BytesIO()
    torch.save(state | dict(model=model.state_dict(), optimizer=optimizer.state_dict(),
                            scaler=scaler.state_dict(), settings=settings), content)
    write_whole(path, content.getbuffer())
    lines = [json.dumps(line, allow_nan=False) + "\n" for line in state["log"]]
    write_whole(os.path.join(cfg.out, "log.jsonl"), "".join(lines).encode())


def open_folder(cfg):
    """
    Makes --out ready, and locks it as long as this process lives: returns the lock, to be kept. An
    older run's files become *.old. ValueError if another run writes there.
    """
    if cfg.rank > 0:
        return None
    os.makedirs(cfg.out, exist_ok=True)
    lock = open(os.path.join(cfg.out, "lock"), "w")
    if os.name == "posix":
        import fcntl
        try:
            # lockf, not flock: the loader's workers would inherit that and outlive us with it.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise ValueError(f"another run is writing to {cfg.out}: give this one another --out"
                             ) from error
        except OSError as error:
            print(f"{cfg.out} cannot be locked ({error.strerror}): start no second run in it")
    if not cfg.resume:
        for path in (os.path.join(cfg.out, name) for name in ("last.pt", "best.pt", "log.jsonl")):
            if os.path.exists(path):
                os.replace(path, path + ".old")
                print(f"{path} of an older run is now {path}.old")
    return lock


CAUGHT = []  # numbers of the signals that came


def catch(number, frame):
    """Ctrl-C or SIGTERM: the loop ends after this step; a second one ends it at once."""
    CAUGHT.append(number)
    signal.signal(number, signal.SIG_DFL)


def asked_to_stop(cfg):
    """The number of the signal that came, 0 if none did; all processes get the same answer."""
    number = max(CAUGHT, default=0)
    if cfg.world == 1:
        return number
    flag = torch.tensor(number, device=cfg.device)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return flag.item()


# --------------------------------------------------- the loop

def set_up(model, dataset, cfg, resumed):
    """
    -> optimizer, scaler, state: all that a checkpoint has beside weights and settings, as it was in
    `resumed`, a checkpoint, or at the start ({}); and the number of steps, in all and of an epoch.
    """
    n = len(dataset)
    clips_per_step = cfg.batch_size * cfg.accumulate * cfg.world
    per_epoch = n // clips_per_step
    if per_epoch == 0:
        raise ValueError(f"{n} training clips do not fill one step of {clips_per_step} "
                         f"({cfg.batch_size} x {cfg.accumulate} x {cfg.world} processes): lower "
                         "--batch_size or --accumulate")
    steps = cfg.steps or max(1, round(cfg.epochs * per_epoch))
    cfg.peak = cfg.lr or cfg.base_lr * (clips_per_step / cfg.lr_batch if cfg.lr_batch else 1)

    # The scaler does nothing unless the precision is float16.
    optimizer = make_optimizer(model, cfg)
    scaler = torch.amp.GradScaler(torch.device(cfg.device).type,
                                  enabled=cfg.precision == "float16")

    # losses, norms: sums over `counted` steps of this epoch; streak: infinite gradients in a row.
    state = dict(step=0, log=[], best=-1.0, losses=0.0, norms=0.0, counted=0, infinite=0, streak=0,
                 classes=dataset.classes, sizes=[n, clips_per_step], clips=dataset.fingerprint())
    if resumed:
        for key in ("classes", "sizes", "clips"):
            if resumed[key] != state[key]:
                raise ValueError("--resume goes on with the same clips in steps of the same size, "
                                 f"but {key} were {str(resumed[key])[:60]}, are "
                                 f"{str(state[key])[:60]} (sizes: training clips; batch_size x "
                                 "accumulate x processes)")
        state |= {key: resumed[key] for key in state}
        optimizer.load_state_dict(resumed["optimizer"])
        scaler.load_state_dict(resumed["scaler"])
    print(f"{steps} steps of {clips_per_step} clips ({cfg.batch_size} x {cfg.accumulate} x "
          f"{cfg.world} processes), {steps / per_epoch:.3g} epochs, peak lr {cfg.peak:.3g}\n"
          f"recipe: {cfg.recipe}" + "".join(f", {k} {v}" for k, v in cfg.given.items()))
    return optimizer, scaler, state, steps, per_epoch


def finish_epoch(model, dataset, metrics, parts):
    """Validates, adds a line to the log, and saves, also as best.pt if it is."""
    _, _, _, state, cfg = parts
    save("last.pt", *parts)  # validation may take long: killed there, the run goes on with it
    count = max(state["counted"], 1)
    metrics |= dict(loss=state["losses"] / count, grad_norm=state["norms"] / count,
                    infinite=state["infinite"]) | evaluate(model, dataset, cfg)
    state["log"].append(metrics)
    state |= dict(losses=0.0, norms=0.0, counted=0, infinite=0)
    if metrics["top1"] > state["best"]:
        state["best"] = metrics["top1"]
        save("best.pt", *parts)
    save("last.pt", *parts)
    return (f"epoch {metrics['epoch']:.3g} | loss {metrics['loss']:.3f} | val top-1 "
            f"{metrics['top1']:.1f} % | top-5 {metrics['top5']:.1f} % | lr {metrics['lr']:.1e} | "
            f"gradient {metrics['grad_norm']:.2f}")


def train(model, sets, cfg, resumed):
    """
    Trains to the end, or until somebody asks to stop. sets: 'train' and 'val', VideoSets; resumed:
    a checkpoint to go on with, or {}. Returns the metrics of the last epoch, and the number of the
    signal that stopped it, 0 if none did.
    """
    optimizer, scaler, state, steps, per_epoch = set_up(model, sets["train"], cfg, resumed)
    parts = model, optimizer, scaler, state, cfg  # what `save` wants
    lock = open_folder(cfg)  # held as long as this variable lives

    # Training runs in a wrapper that shares gradients between processes; validation does not need
    # it, as each process has videos of its own.
    eval_net = torch.compile(model) if cfg.compile else model
    net = DistributedDataParallel(eval_net) if cfg.world > 1 else eval_net

    # One loader for the whole run: its processes work ahead, over the ends of epochs.
    keys = batch_keys(len(sets["train"]), cfg.seed, state["step"], steps, cfg.batch_size,
                      cfg.accumulate, cfg.rank, cfg.world)
    batches = iter(loader(sets["train"], keys, cfg.workers, cfg.device.startswith("cuda")))
    named = set()  # reasons why clips were replaced
    clips = waited = 0  # since `started`
    started = time.perf_counter()
    bar = tqdm(total=steps, initial=state["step"], unit="step", dynamic_ncols=True,
               disable=None if cfg.rank == 0 else True)  # None: no bar where output is a file
    while True:
        step = state["step"]
        seconds = time.perf_counter() - started
        speed = f"{clips / seconds:.0f} clips/s, {100 * waited / seconds:.0f} % waiting for data"

        # At the end of an epoch: validate, log, save. A run that was killed while it validated
        # comes here first.
        ended = step == steps or step > 0 and step % per_epoch == 0
        if ended and step not in [line["step"] for line in state["log"]]:
            metrics = dict(epoch=step / per_epoch, step=step, lr=optimizer.param_groups[0]["lr"],
                           clips_per_s=clips / seconds, waiting=waited / seconds,
                           replaced=len(named))
            bar.write(f"{finish_epoch(eval_net, sets['val'], metrics, parts)} | {speed}")
            clips = waited = 0
            started = time.perf_counter()

        # Stop, at the end or if somebody asked.
        stopped = asked_to_stop(cfg)
        if stopped or step == steps:
            save("last.pt", *parts)
            bar.close()
            return state["log"][-1] if state["log"] else {}, stopped

        # Set the learning rate.
        lr = lr_at(step, steps, cfg)
        for group in optimizer.param_groups:
            group["lr"] = lr

        # Forward and backward over the micro-batches: their gradients add up. Several processes
        # average theirs in the last backward only. The seed is for drop path and dropout.
        loss = 0.0
        for k in range(cfg.accumulate):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            for reason in sorted(set(batch["bad"]) - named - {""}):
                bar.write(f"another clip stands in for {reason}", file=sys.stderr)
                named.add(reason)
            rng = generator(STEP, cfg.seed, step, k, cfg.rank)
            torch.manual_seed(torch_seed(rng))
            x, targets = mix(prepare(batch, cfg, cfg.device), batch["label"].to(cfg.device),
                             len(state["classes"]), rng, cfg.mixup, cfg.cutmix, cfg.switch,
                             cfg.smoothing)
            net.require_backward_grad_sync = k == cfg.accumulate - 1
            with autocast(cfg):
                logits = net(x)  # (B, num_classes)
            micro_loss = F.cross_entropy(logits.float(), targets) / cfg.accumulate
            scaler.scale(micro_loss).backward()
            loss += micro_loss.item()
            clips += len(x) * cfg.world

        # Clip the gradient and step, unless it is not finite: then only count it.
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip_grad or math.inf).item()
        if math.isfinite(norm):
            scaler.step(optimizer)
            state["losses"] += loss
            state["norms"] += norm
            state["counted"] += 1
            state["streak"] = 0
        else:
            state["infinite"] += 1
            state["streak"] += 1
        scaler.update()
        optimizer.zero_grad()
        state["step"] += 1
        if state["streak"] == 20:
            save("last.pt", *parts)  # these steps changed nothing: the weights from before
            names = [sets["train"].name(i) for i in batch["index"].tolist()[:4]]
            raise ValueError(f"20 infinite gradients in a row, up to step {step + 1} at lr "
                             f"{lr:.1e}, with {', '.join(names)}, ..: lower --lr, or look at these "
                             "clips")

        # Show progress.
        bar.set_postfix_str(f"loss {loss:.3f}, lr {lr:.1e}, {speed}", refresh=False)
        bar.update()


# --------------------------------------------------- the command line: words -> settings

def reader_of(name, default, allowed):
    """
    What argparse reads a flag with: text -> a value of the default's type. Its errors name the
    value and what is allowed.
    """
    kind = type(default)
    rule = {int: "a whole number", float: "a number", bool: "True or False",
            tuple: "numbers with commas, as in 1,2 or 3,"}
    kinds = {int: (int,), float: (int, float), bool: (bool,), tuple: (int, float)}

    def read(text):
        # Words as they are; True, 0.1 and 2,2 as Python reads them.
        if kind is str:
            if allowed and text not in allowed:
                raise argparse.ArgumentTypeError(f"{text}: must be one of {', '.join(allowed)}")
            return text
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text

        # Several numbers where the default has several, or where each stage may have its own.
        several = type(value) is tuple
        parts = value if several else (value,)
        good = several == (kind is tuple) or several and name in PER_STAGE
        good = good and all(type(one) in kinds[kind] for one in parts)
        if not good or kind is tuple and allowed and len(parts) != len(default):
            raise argparse.ArgumentTypeError(f"{text}: must be {rule[kind]}")

        # Numbers have a lowest and a highest value.
        low, high = allowed or (0 if kind is bool else 1, 10**6)
        if not all(low <= one <= high for one in parts):
            raise argparse.ArgumentTypeError(f"{text}: must be from {low:g} to {high:g}")
        return float(value) if kind is float else value
    return read


class Parser(argparse.ArgumentParser):
    """argparse for a table like SETTINGS; what is not given is not there, mistakes are raised."""

    def __init__(self, table, add_help=True):
        super().__init__(description=__doc__, usage=argparse.SUPPRESS, allow_abbrev=False,
                         add_help=add_help, argument_default=argparse.SUPPRESS,
                         formatter_class=argparse.RawDescriptionHelpFormatter)
        for name, (default, allowed, meaning) in table.items():
            words = f" ({', '.join(allowed)})" if allowed and isinstance(default, str) else ""
            optional = dict(metavar="")
            if isinstance(default, bool) or name == "resume":
                optional = dict(metavar="..", nargs="?", const="last" if name == "resume" else True)
            self.add_argument(f"--{name}", type=reader_of(name, default, allowed),
                              help=f"{meaning}{words} [{default}]".replace("%", "%%"), **optional)

    def error(self, message):
        raise ValueError(re.sub(r"^argument (--\w+): ", r"\1 ", message))


def read_start(early):
    """-> the checkpoint that a run starts from, and its settings, if they count; {} for none."""
    finished = early.get("eval") or early.get("predict")
    path = early.get("init", "")
    if finished and not path:
        raise ValueError("--eval and --predict need weights: --init FILE, as in --init out/best.pt")
    if early.get("resume"):
        if path or finished:
            raise ValueError("--resume goes on with training: leave --init, --eval, --predict out")
        path = early["resume"]
        if path == "last":
            path = os.path.join(os.path.expanduser(early.get("out", "out")), "last.pt")
    checkpoint = read_checkpoint(path) if path else {}
    if early.get("resume") and not {"settings", "optimizer", "sizes"} <= checkpoint.keys():
        raise ValueError(f"--resume {path}: holds weights only, nothing to go on with; start from "
                         f"it: --init {path}")
    return checkpoint, checkpoint.get("settings", {}) if early.get("resume") or finished else {}


def parse_args(words):
    """
    Words of the command line -> settings, a namespace, and the checkpoint to start from, {} for
    none. Defaults < recipe of model and data set < checkpoint < flags. ValueError, before any work,
    for what is unknown, mistyped, or cannot work.
    """
    # Which network and which data come first: they decide what else can be said.
    table = SETTINGS | {"mixer": ("", None, "")}
    early = vars(Parser(table, add_help=False).parse_known_args(words)[0])
    checkpoint, saved = read_start(early)
    data_set = early.get("data", saved.get("data", "toy"))
    usual = "focal_t" if data_set in NAMED else "focal_toy"
    model = early.get("model", saved.get("model", usual))
    own = arguments(model, early.get("mixer", saved.get("mixer")))
    del own["num_classes"]  # the data's

    # The recipe may change any default. With image weights a network starts as released.
    recipe, changes = recipe_of(model, data_set)
    base = {name: default for name, (default, _, _) in SETTINGS.items()} | own
    base |= {name: value for name, value in changes.items() if name in base}
    base |= dict(model=model, data=data_set)
    if early.get("init") and "weight_init" in base:
        base["weight_init"] = "released"
    unknown = sorted(saved.keys() - base.keys())
    if unknown:
        raise ValueError(f"the checkpoint has settings that {model} does not know here: "
                         f"{', '.join(unknown)}. Does another file add them (python -m zoo.NAME)? "
                         "Else start from its weights: --init FILE with --model and --data")

    # All flags, now that they are known.
    table = SETTINGS | {name: (value, RANGES.get(name), f"of {model}, see backbone.py")
                        for name, value in own.items() if name not in SETTINGS}
    table = {name: (base[name], *row[1:]) for name, row in table.items()}
    given, rest = Parser(table).parse_known_args(words)
    given = vars(given)
    if rest:
        raise ValueError(f"{' '.join(rest)}: no such setting of {model} with --mixer "
                         f"{base.get('mixer')}; write --name value; --help --model {model} lists "
                         "all")
    if early.get("resume"):
        changed = [f"{name} was {saved[name]}, is {value}" for name, value in given.items()
                   if name in saved and value != saved[name]
                   and name not in ("data", "batch_size", "accumulate")]
        if changed:
            raise ValueError("--resume goes on exactly as before, but " + "; ".join(changed)
                             + "\n  leave these flags out, or start from the weights with --init")
        if early["resume"] != "last":
            base["out"] = os.path.dirname(early["resume"]) or "."
    cfg = SimpleNamespace(**base | saved | given)
    cfg.out = os.path.expanduser(cfg.out)
    cfg.saved = sorted(base.keys() - set(NOT_SAVED))
    cfg.given = given
    cfg.recipe = recipe
    return cfg, checkpoint


def network(cfg, num_classes=None):
    """The model of the settings, with fresh weights."""
    own = {name: getattr(cfg, name) for name in arguments(cfg.model, getattr(cfg, "mixer", None))
           if name != "num_classes"}
    return create_model(cfg.model, num_classes=num_classes, **own)


def check(cfg):
    """Raises ValueError for settings that are fine alone and cannot work, before any work."""
    parse_views(cfg.views)
    low, high = cfg.crop_range
    if low > high or cfg.crop == "area" and high > 1 or cfg.crop == "short_side" and low < 1:
        raise ValueError(f"--crop_range {low:.4g},{high:.4g}: the lower number first; with --crop "
                         "area a share of the frame, up to 1; with --crop short_side the short "
                         "side in units of the crop, from 1 on")
    if cfg.input == "diff" and cfg.num_frames == 1:
        raise ValueError("--input diff: one frame has no difference; use --input rgb")
    if os.path.exists(cfg.out) and not os.path.isdir(cfg.out):
        raise ValueError(f"--out {cfg.out}: is a file, a folder is needed")

    # On the meta device a network costs nothing, and says what it cannot be, or cannot take.
    with torch.device("meta"):
        network(cfg).eval()(torch.empty(1, 3, cfg.num_frames, cfg.image_size, cfg.image_size))


def where_to_run(cfg):
    """Sets device, precision, processes and workers of this run. ValueError for a device that is
    not there."""
    cfg.world = int(os.environ.get("WORLD_SIZE", 1))  # set by torchrun, as are the next ones
    cfg.rank = int(os.environ.get("RANK", 0))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # processes on this machine
    if cfg.device == "auto":
        cfg.device = "cuda" if torch.cuda.is_available() else "cpu"

    # torch says what it knows, and whether it is there. With several processes each has a GPU.
    try:
        if cfg.device == "cuda" and cfg.world > 1:
            cfg.device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(cfg.device)
        torch.empty(0, device=cfg.device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {cfg.device}: {str(error).splitlines()[0]}") from error
    cfg.precision = cfg.dtype
    if cfg.dtype == "auto":
        cfg.precision = "bfloat16" if cfg.device.startswith("cuda") else "float32"
    if cfg.workers == -1:
        cfg.workers = 0 if cfg.data == "toy" else max(1, os.cpu_count() // here)


# --------------------------------------------------- the command line: data, model, and off

def classes_of(checkpoint, cfg):
    """The class names of a checkpoint; released ones carry none: those of the data set."""
    if "classes" in checkpoint:
        return checkpoint["classes"]
    classes = class_names(cfg.data) if cfg.data in NAMED else []
    # The network knows what its last layer, head or head.4, is called there.
    with torch.device("meta"):
        state = weights_of(checkpoint, network(cfg, len(classes)))
    heads = [len(state[name]) for name in ("head.weight", "head.4.weight") if name in state]
    if heads != [len(classes)]:
        raise ValueError(f"{cfg.init} has {sum(heads)} classes and no names for them, --data "
                         f"{cfg.data} has {len(classes)}: name the data set it was trained on, one "
                         f"of {', '.join(NAMED)}")
    return classes


def open_sets(checkpoint, cfg):
    """The data sets that this run needs; to evaluate, numbered as a checkpoint's classes are."""
    if not cfg.eval:
        sets = open_data(cfg, ["train", "val"])
        # Mirrored, left would be right. The data sets' own recipes know that.
        sided = [name for name in sets["train"].classes
                 if re.search("left|right|clockwise", name, re.IGNORECASE)]
        if sided and cfg.recipe.endswith("own") and cfg.flip and "flip" not in cfg.given:
            cfg.flip = 0.0
            print(f"flip is off: mirrored, {sided[0]!r} would be another class (--flip 0.5: on)")
        return sets

    # The same names in another order, or only some of them, are fine.
    sets = open_data(cfg, ["val"], cfg.views)
    val = sets["val"]
    names = checkpoint.get("classes", val.classes)
    unknown = sorted(set(val.classes) - set(names))
    if unknown:
        raise ValueError(f"{cfg.init} was not trained on the classes of {cfg.data}: it does not "
                         f"know {unknown[0]!r}")
    val.labels = [names.index(val.classes[label]) for label in val.labels]
    val.classes = names
    return sets


def build_model(checkpoint, classes, cfg):
    """The network with the weights it starts from: resumed ones, those of --init, or fresh ones."""
    # Fresh weights come from the seed; what is loaded replaces them.
    torch.manual_seed(torch_seed(generator(WEIGHTS, cfg.seed)))
    model = network(cfg, len(classes))
    if cfg.resume:
        model.load_state_dict(checkpoint["model"])
    elif checkpoint:
        done = load_weights(model, checkpoint, cfg.temporal_init, where=cfg.init)
        finished = cfg.eval or cfg.predict
        if finished and done["left_over"]:
            raise ValueError(f"{cfg.init} was not trained on the {len(classes)} classes of "
                             f"{cfg.data}: its head does not fit")
        if finished and done["fresh"] and cfg.temporal_init != "identity":
            raise ValueError(f"{cfg.init} has no weights for time: train with it first, or say "
                             "--temporal_init identity")
    return model.to(cfg.device)


def run(words):
    """One command, from its words to the metrics; see `main`."""
    cfg, checkpoint = parse_args(words)
    check(cfg)
    where_to_run(cfg)
    if cfg.rank > 0:
        sys.stdout = open(os.devnull, "w")  # only rank 0 prints
    if cfg.predict:
        classes = classes_of(checkpoint, cfg)
        return predict(build_model(checkpoint, classes, cfg), classes, cfg)

    # The data comes first: it knows the classes.
    sets = open_sets(checkpoint, cfg)
    val = sets["val"]
    model = build_model(checkpoint, val.classes, cfg)
    if cfg.world > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if cfg.device.startswith("cuda") else "gloo")
    stopped = 0
    if cfg.eval:
        metrics = evaluate(model, val, cfg)
    else:
        print(f"{cfg.model}: {sum(p.numel() for p in model.parameters()):,} parameters | "
              f"{len(sets['train'])} clips to train on, {len(val)} to validate, "
              f"{len(val.classes)} classes | {cfg.num_frames} frames of {cfg.image_size} x "
              f"{cfg.image_size} | {cfg.device}, {cfg.precision}")
        CAUGHT.clear()
        before = {n: signal.signal(n, catch) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            metrics, stopped = train(model, sets, cfg, checkpoint if cfg.resume else {})
        finally:
            for n, handler in before.items():
                signal.signal(n, handler)
    if stopped:
        print(f"\nstopped by {signal.Signals(stopped).name}; saved {cfg.out}/last.pt, go on "
              "with --resume")
        sys.exit(128 + stopped)

    # As the papers test: the last weights, several views.
    if not cfg.eval and cfg.views != "1x1":
        test = VideoSet(val.clips, val.labels, val.classes, cfg, views=cfg.views)
        metrics = metrics | evaluate(model, test, cfg)
    print(f"{metrics['videos']} videos, {cfg.views} views: top-1 {metrics['top1']:.2f} %, top-5 "
          f"{metrics['top5']:.2f} %, mean class accuracy {metrics['mean_class']:.2f} %"
          + (f", {metrics['bad']} unreadable counted as wrong" if metrics["bad"] else ""))
    return metrics


def main(words=None):
    """
    With words, ['--lr', '0.1'], runs that command and returns its metrics, a dict: {'top1', ..}, or
    raises. Without, it is the command line: exit status 0, or 1 with one line that says what is
    wrong.
    """
    if words is not None:
        return run([str(word) for word in words])
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # names that the terminal cannot show
    try:
        run(sys.argv[1:])
    except BrokenPipeError:  # .. | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, OSError, BadVideo, RuntimeError) as error:
        # A loader's process sends its traceback along: the last line is the message.
        message = str(error)
        if "Original Traceback" in message:
            message = message.strip().splitlines()[-1].partition(": ")[2]
        elif isinstance(error, RuntimeError) and "DataLoader worker" not in message:
            raise
        if "DataLoader worker" in message or "shared memory" in message or "torch_" in message:
            message += (": out of memory, or /dev/shm is too small? try fewer --workers, or 0. "
                        "What was saved is still there: --resume")
        sys.exit(f"error: {message}")


if __name__ == "__main__":
    main()
