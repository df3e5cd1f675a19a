"""
Train, evaluate, predict: one straight loop, and the command line around it.

    python train.py                                        toy data, a small focal net, on a CPU
    python train.py --data k400 --root DIR --model focal_t --init focalnet_tiny_srf.pth
    torchrun --nproc_per_node 8 train.py --data k400 ...   several GPUs (or CPU processes)
    python train.py --resume                               go on with out/last.pt, exactly
    python train.py --eval --data k400 --root DIR --model focal_t --init ckpt.pth --views 4x3
    python train.py --predict clip.mp4 --init out/best.pt  the five most probable classes

A step: set the learning rate -> `accumulate` batches forward and backward -> clip the gradient ->
SGD. What is random in a step comes from (seed, step, batch, process), what is random in the data
from (seed, epoch, sample). So weights, optimizer and the number of the step are all there is to
save: a run that was killed and resumed ends with the same bits as one that was not.

Source of the recipes: configs and code released with arXiv:2307.06947. Where the paper's text says
something else, or we do, the line says so.
"""
import argparse
import ast
import contextlib
import inspect
import json
import math
import os
import signal
import sys
import time

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from tqdm import tqdm

import data as D
from backbone import MODELS, create_model, load_weights, read_checkpoint, trunk_of

FOCAL = D.PIPELINES["focal"] | dict(       # Video-FocalNets; configs differ in model and flip only
    epochs=120, warmup=20/120,             # the share of training in which lr rises
    batch_size=8, accumulate=1, optimizer="sgd", momentum=0.9, betas=(0.9, 0.999),
    lr=0.1, warmup_lr=0.001, min_lr=0.001, # peak, first and last, for a global batch of
    lr_batch=512,                          # 512 clips, scaled with it: 4 GPUs x 8 clips -> 0.00625
    weight_decay=0.0,                      # the paper says 1e-4, but its code puts every parameter
                                           # into the group without decay ('' is in every name)
    clip_grad=5.0, smoothing=0.1, mixup=0.8, cutmix=1.0, switch=0.5)
LVT = D.PIPELINES["lvt_ssv2"] | dict(      # Linear Video Transformer, SSv2; the paper says lr 0.035
    epochs=35, warmup=5/35, batch_size=4, accumulate=1,
    optimizer="sgd", momentum=0.9, betas=(0.9, 0.999), weight_decay=1e-4,
    lr=0.03, warmup_lr=0.003, min_lr=0.0, lr_batch=32,
    clip_grad=0.0, smoothing=0.0, mixup=0.0, cutmix=0.0, switch=0.5)           # 0: no clipping
LVT_KINETICS = LVT | D.PIPELINES["lvt_kinetics"] | dict(                       # paper: 35 epochs
    epochs=40, warmup=5/40, lr=0.035, warmup_lr=0.01, weight_decay=1e-5, smoothing=0.3, mixup=0.4)
CHARADES = LVT_KINETICS | dict(            # from K400 weights; there is no loader for it here
    epochs=60, warmup=5/60, warmup_lr=0.001, smoothing=0.0, mixup=0.0, views="10x3")
TOY = D.PIPELINES["toy"] | dict(           # ours, by trial: at lr 0.2 some seeds never leave chance
    epochs=7, warmup=0.1, batch_size=32, accumulate=1,
    optimizer="sgd", momentum=0.9, betas=(0.9, 0.98), weight_decay=0.0,
    lr=0.1, warmup_lr=0.0, min_lr=0.0, lr_batch=32,
    clip_grad=1.0, smoothing=0.1, mixup=0.0, cutmix=0.0, switch=0.5)
RECIPES = {                                # by the family of the model and the data set
    "focal": {"toy": TOY, "k400": FOCAL, "k600": FOCAL, "diving48": FOCAL, "activitynet": FOCAL,
              "ssv2": FOCAL | dict(flip=0.0)},                       # classes say left and right
    "lvt": {"toy": TOY | dict(optimizer="adamw", lr=0.003, weight_decay=0.05),     # not with SGD
            "ssv2": LVT, "k400": LVT_KINETICS, "k600": LVT_KINETICS, "charades": CHARADES},
}
STUDIES = {                                # name: (the command, {row: what --set changes in it})
    "temporal": ("--steps 200", {          # questions of the focal paper
        "as released": "", "no temporal branch": "temporal=False",
        "no spatial branch": "spatial=False", "sequential, not parallel": "design=sequential",
        "one 3-d branch": "design=joint3d", "modulators added": "fusion=add",
        "averaged": "fusion=average", "projected": "fusion=project", "1 level": "levels=1",
        "3 levels": "levels=3"}),
    "attention": ("--model lvt_toy --steps 160 --set temp_embed=False stride=16", {
        "no shifts, no fixation (Table 3)": "fixation=none temporal_shift=0 spatial_shift=0",
        "spatial shift": "fixation=none temporal_shift=0",
        "temporal shift": "fixation=none spatial_shift=0", "both shifts": "fixation=none",
        "fixation": "temporal_shift=0 spatial_shift=0",
        "both shifts and fixation: the default": "", "fixation, then shifts": "shift_first=False",
        "separate gates (Table 4)": "fixation=separate", "gates from QK": "fixation=qk",
        "one gate from QK": "fixation=qk_shared", "gates from QKV": "fixation=qkv",
        "one gate from QKV, by addition": "fixation_by=add",
        "by multiplication": "fixation_by=multiply",
        "relu without offset (Table 5)": "kernel=relu_paper", "elu + 1": "kernel=elu",
        "sigmoid": "kernel=sigmoid", "no kernel": "kernel=identity",
        "cosFormer (Table 1)": "kernel=cosformer", "Performer": "kernel=performer",
        "Linformer": "kernel=linformer", "Orthoformer": "kernel=orthoformer",
        "softmax": "kernel=softmax", "joint (Table 6)": "pattern=joint",
        "windowed": "pattern=space spatial_shift=0", "space, then time": "order=space_time"}),
}
DTYPES = dict(float32=torch.float32, bfloat16=torch.bfloat16, float16=torch.float16)


def lr_at(step, steps, warmup, peak, first, last):
    """Learning rate of a step: a line from `first` to `peak` over `warmup`, a cosine to `last`."""
    if step < warmup:
        return first + (peak - first) * step / warmup
    # The released cosine counts from step 0: it drops by 6.6 % at the seam, where ours begins.
    return last + (peak - last) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def save(path, checkpoint):
    """Written beside and renamed: a reader sees the old file or the new one, never half of one."""
    torch.save(checkpoint, path + ".tmp")
    os.replace(path + ".tmp", path)


def autocast(device, dtype):
    return torch.autocast(device.type, DTYPES[dtype], enabled=dtype != "float32")


@torch.no_grad()
def evaluate(model, dataset, s, device, workers, rank=0, world=1):
    """
    Mean of softmax over the views of each video, each video once, whatever the batch and the
    processes -> {top1, top5, mean_class} in percent, {videos, bad}. An unreadable video counts as
    wrong: to drop it would flatter. (Released: Video-FocalNet drops the odd video of a process; the
    transformer sums logits, where one view that is very sure outvotes the others.)
    """
    model.eval()
    views = dataset.views[0] * dataset.views[1]
    per_batch, mine = max(1, s["batch_size"] // views), range(rank, len(dataset), world)
    batches = [[(0, i) for i in mine[k:k+per_batch]] for k in range(0, len(mine), per_batch)]
    scores = torch.zeros(len(dataset), len(dataset.classes), device=device)
    bad = torch.zeros(len(dataset), device=device)
    for batch in D.loader(dataset, batches, workers, device):
        x = D.to_device(batch, s, device)                            # (videos * views, 3, T, S, S)
        with autocast(device, s["dtype"]):
            logits = torch.cat([model(part).float() for part in x.split(s["batch_size"])])
        scores[batch["index"]] = logits.softmax(-1).unflatten(0, (-1, views)).mean(1)
        for i, reason in zip(batch["index"], batch["bad"]):
            if reason:
                bad[i] = 1
                print(f"counted as wrong: {reason}", file=sys.stderr)
    if world > 1:                                                    # a row is one process's
        dist.all_reduce(scores)
        dist.all_reduce(bad)
    model.train()
    scores, bad, labels = scores.cpu(), bad.cpu() > 0, torch.tensor(dataset.labels)
    top = scores.topk(min(5, scores.shape[1])).indices               # (videos, 5)
    good = ~bad & scores.isfinite().all(1)                           # nan is no answer
    hits = ((top == labels[:, None]) & good[:, None]).float()
    per_class = torch.stack([hits[labels == c, 0].mean() for c in labels.unique()])
    return dict(top1=100 * hits[:, 0].mean().item(), top5=100 * hits.sum(1).mean().item(),
                mean_class=100 * per_class.mean().item(), videos=len(labels), bad=int(bad.sum()))


def report(metrics, views):
    return (f"{metrics['videos']} videos, {views} views: top-1 {metrics['top1']:.2f} %, top-5 "
            f"{metrics['top5']:.2f} %, mean class accuracy {metrics['mean_class']:.2f} %"
            + f", {metrics['bad']} unreadable counted as wrong" * (metrics["bad"] > 0))


def mean_gates(model, dataset, s, device):
    """
    What the gates of a focal net do, over four clips: {'stage 1 gates': [level 1, .., L, global]}.
    A level that stays at 0, or a temporal branch whose gates all do, is not being used.
    """
    if not any(name.endswith(".focal") for name, _ in model.named_modules()):
        return {}
    chosen, maps, means = np.linspace(0, len(dataset) - 1, 4).astype(int), [], {}
    batch = torch.utils.data.default_collate([dataset[0, i] for i in chosen])
    model.eval()
    with torch.no_grad(), autocast(device, s["dtype"]):
        model(D.to_device(batch, s, device)[:4], maps)
    model.train()
    for number, stage in enumerate(maps, 1):
        for key in ("gates", "gates_temporal"):
            if key in stage[0]:                                      # (B, T, H, W, L+1)
                gates = torch.stack([block[key].float().mean((0, 1, 2, 3)) for block in stage])
                means[f"stage {number} {key}"] = gates.mean(0).tolist()
    return means


def train(model, sets, s, args, device, rank, world, resumed):
    """
    The loop. sets: 'train' and 'val', VideoSets; s: the settings; resumed: a checkpoint or None.
    Returns the last metrics, or, stopped by a signal, its number.
    """
    data = sets["train"]
    per_epoch = len(data) // (s["batch_size"] * world)               # batches of each process
    if per_epoch == 0:
        raise ValueError(f"{len(data)} training clips do not fill one batch of {s['batch_size']} "
                         f"on each of {world} processes: lower --batch_size")
    steps_per_epoch = -(-per_epoch // s["accumulate"])               # the last window may be shorter
    steps = s["steps"] or round(s["epochs"] * steps_per_epoch)
    warmup = round(s["warmup"] * steps)
    global_batch = s["batch_size"] * s["accumulate"] * world
    peak = s["peak_lr"] or s["lr"] * global_batch / s["lr_batch"]
    first, last = s["warmup_lr"] * peak / s["lr"], s["min_lr"] * peak / s["lr"]
    if s["optimizer"] == "sgd":
        optimizer = torch.optim.SGD(model.parameters(), peak, s["momentum"], nesterov=True,
                                    weight_decay=s["weight_decay"])
    else:
        optimizer = torch.optim.AdamW(model.parameters(), peak, s["betas"],
                                      weight_decay=s["weight_decay"])
    scaler = torch.amp.GradScaler(device.type, enabled=s["dtype"] == "float16")
    step, best, log = 0, -1.0, {}
    if resumed:
        here = dict(global_batch=global_batch, steps_per_epoch=steps_per_epoch)
        if resumed["shape"] != here:
            raise ValueError(f"the checkpoint was made with {resumed['shape']}, this is {here}: to "
                             "go on exactly, keep batch_size x accumulate x processes")
        optimizer.load_state_dict(resumed["optimizer"])
        scaler.load_state_dict(resumed["scaler"])
        step, best, log = resumed["step"], resumed["best"], resumed["metrics"]
    if rank == 0:
        os.makedirs(args.out, exist_ok=True)
        for name in ("last.pt", "best.pt", "log.jsonl") * (not resumed):
            if os.path.exists(path := os.path.join(args.out, name)):
                os.replace(path, path + ".old")                      # kept, until the next run
    net = eval_net = torch.compile(model) if args.compile else model
    if world > 1:
        net = torch.nn.parallel.DistributedDataParallel(net)
    if rank == 0:
        print(f"{s['model']}: {sum(p.numel() for p in model.parameters()):,} parameters | "
              f"{len(data)} clips to train on, {len(sets['val'])} to validate, "
              f"{len(data.classes)} classes | {s['num_frames']} frames of {s['image_size']} x "
              f"{s['image_size']} | {device}, {s['dtype']}\n{steps} steps of {global_batch} "
              f"clips ({s['batch_size']} x {s['accumulate']} x {world} processes), "
              f"{steps / steps_per_epoch:.3g} epochs, peak lr {peak:.3g}")

    def save_as(name):
        if rank == 0:
            save(os.path.join(args.out, name), dict(
                model=model.state_dict(), optimizer=optimizer.state_dict(),
                scaler=scaler.state_dict(), step=step, epoch=step / steps_per_epoch, best=best,
                metrics=log, settings=s, classes=data.classes,
                shape=dict(global_batch=global_batch, steps_per_epoch=steps_per_epoch)))

    def validate():
        """One view of each validation video: completes `log`, writes its line, keeps the best."""
        nonlocal best
        log.update(evaluate(eval_net, sets["val"], s, device, args.workers, rank, world))
        if rank == 0:
            log.update(mean_gates(model, sets["val"], s, device))
            with open(os.path.join(args.out, "log.jsonl"), "a") as file:
                file.write(json.dumps(log) + "\n")
        if log["top1"] > best:
            best = log["top1"]
            save_as("best.pt")
        save_as("last.pt")

    if log and "top1" not in log:                                    # killed while it validated
        validate()
    caught = []

    def stop(number, frame):
        caught.append(number)                                        # the loop ends after this step
        signal.signal(number, signal.SIG_DFL)                        # a second one ends it at once
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}

    epoch, done = divmod(step, steps_per_epoch)
    start, stop_before = epoch * per_epoch + done * s["accumulate"], math.ceil(
        steps / steps_per_epoch) * per_epoch                         # numbers of batches
    order = D.stream(len(data), s["batch_size"], s["seed"], start, stop_before, rank, world)
    batches = iter(D.loader(data, order, args.workers, device))
    bar = tqdm(total=steps, initial=step, unit="step", dynamic_ncols=True,
               disable=True if rank > 0 else None)                   # None: only in a terminal
    named, losses, norms, clips, waited, infinite = set(), [], [], 0, 0.0, 0
    started = time.perf_counter()
    while step < steps:
        lr = lr_at(step, steps, warmup, peak, first, last)
        for group in optimizer.param_groups:
            group["lr"] = lr
        window = min(s["accumulate"], per_epoch - step % steps_per_epoch * s["accumulate"])
        loss_sum = 0.0
        for k in range(window):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            for reason in set(batch["bad"]) - named - {""}:
                named.add(reason)
                bar.write(f"another clip stands in for {reason}")
            rng = np.random.default_rng((s["seed"], step, k, rank))
            torch.manual_seed(int(rng.integers(2**62)))              # drop path and dropout
            x, targets = D.mix(D.to_device(batch, s, device), batch["label"].to(device),
                               len(data.classes), rng, s["mixup"], s["cutmix"], s["switch"],
                               s["smoothing"])
            with net.no_sync() if world > 1 and k < window - 1 else contextlib.nullcontext():
                with autocast(device, s["dtype"]):
                    logits = net(x)
                loss = F.cross_entropy(logits.float(), targets)      # - sum targets log softmax
                scaler.scale(loss / window).backward()
            loss_sum += loss.item() / window
            clips += len(x) * world
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), s["clip_grad"] or math.inf).item()
        if math.isfinite(norm):
            losses.append(loss_sum)
            norms.append(norm)
            scaler.step(optimizer)
        else:
            infinite += 1                                            # counted, shown; no step
        scaler.update()
        optimizer.zero_grad()
        step += 1

        seconds = time.perf_counter() - started
        speed = (f"{clips / seconds:.0f} clips/s, {100 * waited / seconds:.0f} % waiting for data"
                 + f", {infinite} steps with an infinite gradient left out" * (infinite > 0))
        bar.set_postfix_str(f"loss {loss_sum:.3f}, lr {lr:.1e}, {speed}", refresh=False)
        bar.update()
        if step % steps_per_epoch == 0 or step == steps:
            log = dict(epoch=step / steps_per_epoch, step=step, lr=lr,
                       loss=float(np.mean(losses or [math.nan])),
                       grad_norm=float(np.mean(norms or [math.nan])), clips_per_s=clips / seconds,
                       waiting=waited / seconds, infinite=infinite, replaced=len(named))
            save_as("last.pt")                                       # first: this may take long
            validate()
            if rank == 0:
                bar.write(f"epoch {log['epoch']:.3g} | loss {log['loss']:.3f} | val top-1 "
                          f"{log['top1']:.1f} % | top-5 {log['top5']:.1f} % | lr {lr:.1e} | "
                          f"gradient {log['grad_norm']:.2f} | {speed}")
            losses, norms, clips, waited, started = [], [], 0, 0.0, time.perf_counter()
        if world > 1:                                                # all stop at the same step
            flag = torch.tensor(max(caught, default=0), device=device)
            dist.all_reduce(flag, dist.ReduceOp.MAX)
            caught = [flag.item()] * (flag.item() > 0)
        if caught:
            save_as("last.pt")
            break
    bar.close()
    for number, handler in before.items():
        signal.signal(number, handler)
    return caught[0] if caught else log


def predict(model, files, classes, s, device):
    """Prints the most probable classes of each file, preprocessed as in evaluation -> status"""
    dataset = D.VideoSet(files, [0] * len(files), classes, s, s["num_frames"], s["image_size"],
                         views=s["views"])
    model.eval()
    status = 0
    for i, path in enumerate(files):
        batch = torch.utils.data.default_collate([dataset[0, i]])
        if batch["bad"][0]:
            print(f"error: {batch['bad'][0]}", file=sys.stderr)
            status = 1
            continue
        with torch.no_grad(), autocast(device, s["dtype"]):
            scores = model(D.to_device(batch, s, device)).float().softmax(-1).mean(0)
        print(path)
        for value, c in zip(*scores.topk(min(5, len(classes)))):
            print(f"  {100 * value:5.1f} %  {classes[c]}")
    return status


def study(name, out):
    """Asks the questions of a paper on the toy data: each row of STUDIES, from three seeds."""
    command, rows = STUDIES[name]
    print(f"python train.py {command}; val top-1, %\n| | seeds 0, 1, 2 | mean |\n|---|---|---|")
    for row, changes in rows.items():
        top1 = []
        for seed in range(3):
            folder = os.path.join(out, "study")
            with contextlib.redirect_stdout(None):
                run(command.split() + ["--seed", str(seed), "--out", folder]
                    + ["--set", *changes.split()] * bool(changes))
            with open(os.path.join(folder, "log.jsonl")) as file:
                top1.append(json.loads(file.readlines()[-1])["top1"])
        print(f"| {row} | {', '.join(f'{value:.1f}' for value in top1)} | {np.mean(top1):.1f} |",
              flush=True)


# ----------------------------------------------------------------------------- the command line

def parse(argv):
    parser = argparse.ArgumentParser(description="Train, evaluate and use video networks.")
    flag = parser.add_argument
    flag("--data", help=f"toy, {', '.join(D.NAMED)}, a folder or a list file (default toy)")
    flag("--root", help="where the videos are (default data/NAME)")
    flag("--model", help=f"{', '.join(MODELS)} (default focal_toy for toy, else focal_t)")
    flag("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
         help="any argument of the model, any number of the recipe: --set drop_path=0.1 mixup=0")
    flag("--init", metavar="FILE", help="weights: ours, released, or an image FocalNet's, inflated")
    flag("--temporal_init", choices=("fresh", "identity"), default="fresh",
         help="start of the temporal branch of an inflated network (default fresh, as released)")
    flag("--resume", nargs="?", const="", metavar="FILE", help="go on exactly (OUT/last.pt)")
    flag("--out", default="out", metavar="DIR", help="for last.pt, best.pt, log.jsonl (out)")
    flag("--epochs", type=float, help="passes over the training data (default: the recipe's)")
    flag("--steps", type=int, help="optimizer steps, in place of --epochs")
    flag("--batch_size", type=int, help="clips per process and pass (default: the recipe's)")
    flag("--accumulate", type=int, help="forward passes per optimizer step (default 1)")
    flag("--optimizer", choices=("sgd", "adamw"), help="default: the recipe's")
    flag("--lr", type=float, help="the peak itself (default: lr x global batch / lr_batch)")
    flag("--image_size", type=int, help="side of a clip in pixels (default: the model's)")
    flag("--num_frames", type=int, help="frames of a clip (default: the model's)")
    flag("--workers", type=int, help="loader processes (default: 0 for toy, else one per CPU core)")
    flag("--seed", type=int, help="of weights, order, augmentation and toy data (default 0)")
    flag("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    flag("--dtype", choices=DTYPES, help="of autocast (default bfloat16 on cuda, float32 on cpu)")
    flag("--compile", action="store_true", help="torch.compile the network (for GPUs)")
    flag("--eval", action="store_true", help="evaluate --init on the validation videos")
    flag("--views", metavar="CLIPSxCROPS", help="to evaluate with (recipe's; for --predict 1x1)")
    flag("--predict", nargs="+", metavar="VIDEO", help="print the most probable classes of each")
    flag("--study", choices=STUDIES, help="questions of the papers, asked on the toy data: a table")
    return parser.parse_args(argv)


def resolve(args, saved, device):
    """
    Command line over checkpoint (`saved`: its settings, or None) over recipe and preset -> one flat
    dict of plain values, the settings. Raises ValueError for what is unknown or cannot work.
    """
    s = dict(saved or {})
    data = args.data or s.get("data", "toy")
    model = args.model or s.get("model", "focal_toy" if data == "toy" else "focal_t")
    known = {key: p.default for key, p in inspect.signature(trunk_of(model)).parameters.items()}
    known |= MODELS[model]
    if not saved:                                                    # folders, lists: as k400
        recipes = RECIPES[model.split("_")[0]]
        s |= recipes.get(data, recipes["k400"])
    s["data"] = data
    if model != s.get("model"):
        s |= dict(model=model, model_args={}, num_frames=known["num_frames"],
                  image_size=known["image_size"])
    s = dict(steps=None, peak_lr=None, seed=0,
             dtype="bfloat16" if device.type == "cuda" else "float32") | s
    s |= {key: value for key, value in dict(
        epochs=args.epochs, steps=args.steps, batch_size=args.batch_size, peak_lr=args.lr,
        accumulate=args.accumulate, optimizer=args.optimizer, image_size=args.image_size,
        num_frames=args.num_frames, seed=args.seed, dtype=args.dtype, views=args.views,
    ).items() if value is not None}
    numbers = list(LVT_KINETICS | FOCAL)
    for item in args.set:
        key, _, value = item.partition("=")
        with contextlib.suppress(ValueError, SyntaxError):           # what is no literal is a word
            value = ast.literal_eval(value)
        if key in numbers:
            s[key] = value
        elif key in known and key not in ("num_classes", "num_frames", "image_size"):
            s["model_args"] = s["model_args"] | {key: value}
        else:
            raise ValueError(f"--set {item}: no such key. The model takes {', '.join(known)}; the "
                             f"recipe has {', '.join(numbers)}")
    for key in ("epochs", "batch_size", "accumulate", "lr", "lr_batch", "num_frames", "image_size",
                "steps", "peak_lr"):
        optional = key in ("steps", "peak_lr") and s[key] is None
        if not optional and (not isinstance(s[key], (int, float)) or s[key] <= 0):
            raise ValueError(f"{key}={s[key]}: must be a number above 0")
    D.parse_views(s["views"])
    with torch.device("meta"):                                       # free, and finds what cannot be
        create_model(model, 10, s["num_frames"], s["image_size"], **s["model_args"])
    return s


def run(argv):
    """One command, from its words to its exit status. `main` turns its errors into one line."""
    args = parse(argv)
    if args.study:
        return study(args.study, args.out)
    rank, world, local = (int(os.environ.get(key, value)) for key, value in
                          (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    if rank > 0:
        sys.stdout = open(os.devnull, "w")                           # one voice
    try:
        device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"--device {args.device}: {str(error).splitlines()[0]}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {args.device}: this torch sees no GPU; leave the flag out")
    if device.type == "cuda" and world > 1:
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if (args.eval or args.predict) and not args.init:
        raise ValueError("--eval and --predict need weights: --init FILE, as in --init out/best.pt")
    resumed = None
    if args.resume is not None:
        path = args.resume or os.path.join(args.out, "last.pt")
        resumed = read_checkpoint(path)
        if "settings" not in resumed:
            raise ValueError(f"--resume {path}: holds weights only, nothing to go on with; start "
                             f"from it: --init {path}")
    source = read_checkpoint(args.init) if args.init and not resumed else {}
    use = args.eval or args.predict
    saved = resumed["settings"] if resumed else source.get("settings") if use else None
    s = resolve(args, saved, device)
    if resumed:
        differ = [f"{key} was {saved[key]}, is {s[key]}" for key in s
                  if s[key] != saved.get(key) and key not in ("batch_size", "accumulate")]
        if differ:
            raise ValueError("--resume goes on exactly as before, but " + "; ".join(differ)
                             + "\n  leave these flags out, or start from the weights with --init")
    if args.workers is not None and args.workers < 0:
        raise ValueError(f"--workers {args.workers}: must be 0 (load in this process) or more")
    if args.workers is None:
        args.workers = 0 if s["data"] == "toy" else os.cpu_count()
    clip = s["num_frames"], s["image_size"]

    if args.predict:
        classes = source.get("classes")
        if classes is None:                                          # released: without names
            classes = D.class_names(s["data"]) if s["data"] in D.NAMED else []
            head = source.get("model", source).get("head.weight", ())
            if len(classes) != len(head):
                raise ValueError(f"{args.init} has {len(head)} classes and no names for them, "
                                 f"--data {s['data']} has {len(classes)}: name the data set it was "
                                 f"trained on, one of {', '.join(D.NAMED)}")
    else:
        splits = ["val"] if args.eval else ["train", "val"]
        sets = D.open_data(s["data"], args.root or os.path.join("data", s["data"]), splits, s,
                           *clip, s["seed"], s["views"] if args.eval else "1x1")
        val, names = sets["val"], source.get("classes") if args.eval else None
        if names and val.classes != names:                           # same names, another order
            if not set(val.classes) <= set(names):
                raise ValueError(f"{args.init} was not trained on the classes of {s['data']}: it "
                                 f"does not know {sorted(set(val.classes) - set(names))[0]!r}")
            val.labels = [names.index(val.classes[label]) for label in val.labels]
            val.classes = names
        classes = val.classes
    torch.manual_seed(s["seed"])
    model = create_model(s["model"], len(classes), *clip, **s["model_args"])
    if resumed:
        model.load_state_dict(resumed["model"])
    elif source:
        if load_weights(model, args.init, args.temporal_init)["left_over"] and use:
            raise ValueError(f"{args.init} was not trained on the {len(classes)} classes of "
                             f"{s['data']}: its head does not fit")
    elif "scratch" not in (s["model_args"].get("init"), MODELS[s["model"]].get("init")):
        print(f"warning: {s['model']} starts as released, for image weights, and does not learn "
              "from nothing: add --init WEIGHTS (focalnet_tiny_srf.pth) or --set init=scratch")
    model.to(device)
    if args.predict:
        return predict(model, args.predict, classes, s | dict(views=args.views or "1x1"), device)

    if world > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    if args.eval:
        metrics = evaluate(model, sets["val"], s, device, args.workers, rank, world)
    else:
        metrics = train(model, sets, s, args, device, rank, world, resumed)
        if isinstance(metrics, int):
            print(f"\nstopped by {signal.Signals(metrics).name}; saved {args.out}/last.pt, go on "
                  "with --resume")
            return 128 + metrics
        if s["views"] != "1x1":                                      # as the papers test: last weights
            test = D.VideoSet(val.clips, val.labels, classes, s, *clip, views=s["views"])
            metrics = evaluate(model, test, s, device, args.workers, rank, world)
    if rank == 0:
        print(report(metrics, s["views"]))
    if world > 1:
        dist.destroy_process_group()
    return 0


def main(argv=None):
    try:
        sys.exit(run(argv))
    except (ValueError, FileNotFoundError, D.BadVideo) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
