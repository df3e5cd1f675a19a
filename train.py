"""
Train, evaluate, predict: one straight loop.

    python train.py                                                    toy data, small focal net, two minutes on a laptop CPU
    python train.py --data k400 --root DIR --model focal_t --init focalnet_tiny_srf.pth
    torchrun --nproc_per_node 8 train.py --data k400 --root DIR --model focal_b --init ...     several GPUs, or CPU processes
    python train.py --eval --data k400 --root DIR --model focal_t --init ckpt.pth --views 4x3
    python train.py --predict clip.mp4 --init out/last.pt              top-5 with class names
    python train.py --resume                                           go on with out/last.pt, exactly

A step is: learning rate of this step -> `accumulate` batches forward and backward -> clip the gradient -> SGD. Everything random
in it comes from (seed, step, batch, rank), everything random in the data from (seed, epoch, sample), so (weights, optimizer, step)
is the whole state: a run that was killed and resumed ends with the same bits as one that was not.

Sources of the recipes: the configs and code released with arXiv:2307.06947; where the paper's text differs, the line says so.
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
from backbone import MODELS, Pyramid, create_model, load_weights, read_checkpoint

FOCAL = dict(                                  # Video-FocalNets, all data sets (their configs differ in classes, model and flip)
    epochs=120, warmup_epochs=20, batch_size=8, accumulate=1, optimizer="sgd", momentum=0.9,
    lr=0.1, warmup_lr=0.001, min_lr=0.001,     # for a global batch of lr_batch clips, and scaled with it: 4 GPUs x 8 -> 0.00625
    lr_batch=512,
    weight_decay=0.0,                          # the paper says 1e-4, but the released code puts every parameter into its
                                               # "no decay" group ('' is a substring of any name), so it trained with 0
    clip_grad=5.0, smoothing=0.1, mixup=0.8, cutmix=1.0, switch=0.5)
RECIPES = {
    "toy": D.PIPELINES["toy"] | dict(          # ours: found by trial, see README
        epochs=7, warmup_epochs=0.7, batch_size=32, accumulate=1, optimizer="sgd", momentum=0.9,
        lr=0.1, warmup_lr=0.0, min_lr=0.0, lr_batch=32, weight_decay=0.0, clip_grad=1.0, smoothing=0.1,
        mixup=0.0, cutmix=0.0, switch=0.5),
    "k400": D.PIPELINES["focal"] | FOCAL,      # also for a folder of class folders and for a list file
    "k600": D.PIPELINES["focal"] | FOCAL,
    "ssv2": D.PIPELINES["focal"] | FOCAL | dict(flip=0.0),
    "diving48": D.PIPELINES["focal"] | FOCAL,
    "activitynet": D.PIPELINES["focal"] | FOCAL,
}
DTYPES = dict(float32=torch.float32, bfloat16=torch.bfloat16, float16=torch.float16)
WHERE = ("root", "out", "init", "workers", "device", "compile")      # settings that do not change what is computed


def lr_at(step, steps, warmup, peak, start, end):
    """Learning rate of step 0..steps: a line from `start` to `peak` over the first `warmup`, then one cosine down to `end`."""
    if step < warmup:
        return start + (peak - start) * step / warmup
    # The released cosine counts from step 0, so it falls by 6.6 % at once where the warm-up ends. Ours starts there.
    return end + (peak - end) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


def save(path, checkpoint):
    """Written beside and renamed: a reader, or a crash, sees the old file or the new one, never half of one."""
    torch.save(checkpoint, path + ".tmp")
    os.replace(path + ".tmp", path)


def autocast(device, dtype):
    return torch.autocast(device.type, DTYPES[dtype], enabled=dtype != "float32")


@torch.no_grad()
def evaluate(net, dataset, settings, device, workers, rank=0, world=1):
    """
    Mean of softmax over the views of every video, each video once, whatever the batch and the number of processes.
    -> {top1, top5, mean_class} in percent and {videos, bad}. An unreadable video counts as wrong: dropping it would flatter.
    """
    net.eval()
    views = dataset.views[0] * dataset.views[1]
    per_batch = max(1, settings["batch_size"] // views)
    mine = range(rank, len(dataset), world)
    batches = [[(0, i) for i in mine[k:k+per_batch]] for k in range(0, len(mine), per_batch)]
    scores = torch.zeros(len(dataset), len(dataset.classes))
    bad = torch.zeros(len(dataset))
    for batch in D.loader(dataset, batches, workers, device):
        x = D.to_device(batch, settings, device)                              # (videos * views, 3, T, H, W)
        with autocast(device, settings["dtype"]):
            logits = torch.cat([net(part).float() for part in x.split(settings["batch_size"])])
        scores[batch["index"]] = logits.softmax(-1).unflatten(0, (-1, views)).mean(1).cpu()
        for i, reason in zip(batch["index"], batch["bad"]):
            if reason:
                bad[i] = 1
                print(f"counted as wrong: {reason}", file=sys.stderr)
    if world > 1:                                                             # every row was filled by one process
        scores, bad = scores.to(device), bad.to(device)
        dist.all_reduce(scores)
        dist.all_reduce(bad)
    scores, good, labels = scores.cpu(), bad.cpu() == 0, torch.tensor(dataset.labels)
    hits = (scores.topk(min(5, scores.shape[1])).indices == labels[:, None]) & good[:, None]      # (videos, 5)
    per_class = [hits[labels == c, 0].float().mean().item() for c in labels.unique()]
    net.train()
    return dict(top1=100 * hits[:, 0].float().mean().item(), top5=100 * hits.any(1).float().mean().item(),
                mean_class=100 * sum(per_class) / len(per_class), videos=len(labels), bad=int((~good).sum()))


def mean_gates(model, dataset, settings, device):
    """What the gates do, a sign of health: {'stage 1 gates': [mean of level 1, .., L, global], ..}, over eight clips."""
    batch = torch.utils.data.default_collate([dataset[0, i] for i in range(0, len(dataset), -(-len(dataset) // 8))])
    maps = []
    model.eval()
    with torch.no_grad(), autocast(device, settings["dtype"]):
        model(D.to_device(batch, settings, device), maps)
    model.train()
    return {f"stage {s} {key}": [round(v, 4) for v in torch.stack([b[key].float().mean((0, 1, 2, 3)) for b in stage]).mean(0).tolist()]
            for s, stage in enumerate(maps, 1) for key in ("gates", "gates_temporal") if key in stage[0]}


def train(model, sets, settings, args, device, rank, world, resumed):
    """The loop. sets: {'train', 'val'} -> VideoSet. Returns the exit status: 0, or 128 + the signal that ended it."""
    s, out = settings, args.out
    per_epoch = len(sets["train"]) // (s["batch_size"] * world)               # batches a process sees in an epoch
    if per_epoch == 0:
        raise ValueError(f"{len(sets['train'])} training clips do not fill one global batch of {s['batch_size']} x {world}: "
                         "lower --batch_size")
    steps_per_epoch = -(-per_epoch // s["accumulate"])                        # the last window of an epoch may be shorter
    steps = s["steps"] or round(s["epochs"] * steps_per_epoch)
    warmup = round(s["warmup_epochs"] * steps_per_epoch * steps / (s["epochs"] * steps_per_epoch))
    global_batch = s["batch_size"] * s["accumulate"] * world
    peak = s["peak_lr"] or s["lr"] * global_batch / s["lr_batch"]
    if s["optimizer"] == "sgd":
        optimizer = torch.optim.SGD(model.parameters(), peak, s["momentum"], weight_decay=s["weight_decay"], nesterov=True)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), peak, weight_decay=s["weight_decay"])
    scaler = torch.amp.GradScaler(device.type, enabled=s["dtype"] == "float16")
    step, best, log = 0, -1.0, {}
    if resumed:
        optimizer.load_state_dict(resumed["optimizer"])
        scaler.load_state_dict(resumed["scaler"])
        step, best = resumed["step"], resumed["best"]
        if resumed["global_batch"] != global_batch:
            raise ValueError(f"the checkpoint was made with a global batch of {resumed['global_batch']}, this is {global_batch}: "
                             "to go on exactly, keep batch_size x accumulate x processes")
    net = torch.compile(model) if args.compile else model
    if world > 1:
        net = torch.nn.parallel.DistributedDataParallel(net, device_ids=[device.index] if device.index is not None else None)
    if rank == 0:
        print(f"{s['model']}: {sum(p.numel() for p in model.parameters()):,} parameters | {len(sets['train'])} training clips, "
              f"{len(sets['val'])} validation, {len(sets['train'].classes)} classes | {s['num_frames']} frames of {s['image_size']} "
              f"pixels | {device}, {s['dtype']} | {steps} steps of {global_batch} clips ({s['batch_size']} x {s['accumulate']} x "
              f"{world}) | peak lr {peak:.3g}")
        os.makedirs(out, exist_ok=True)

    def checkpoint():
        return dict(model=model.state_dict(), optimizer=optimizer.state_dict(), scaler=scaler.state_dict(), step=step,
                    epoch=step / steps_per_epoch, best=best, global_batch=global_batch, settings=s,
                    classes=sets["train"].classes, metrics=log)

    caught = []                                                               # signals: finish the step, save, stop
    handlers = {sig: signal.signal(sig, lambda sig, frame: caught.append(sig)) for sig in (signal.SIGINT, signal.SIGTERM)}
    epoch, k = divmod(step, steps_per_epoch)
    last = -(-steps // steps_per_epoch) * per_epoch
    batches = iter(D.loader(sets["train"], D.stream(len(sets["train"]), s["batch_size"], s["seed"],
                                                    epoch * per_epoch + k * s["accumulate"], last, rank, world), args.workers, device))
    bar = tqdm(total=steps, initial=step, disable=rank > 0, unit="step", dynamic_ncols=True, smoothing=0.05)
    named, losses, norms, clips, waited, nonfinite, started = set(), [], [], 0, 0.0, 0, time.perf_counter()
    while step < steps:
        lr = lr_at(step, steps, warmup, peak, s["warmup_lr"] * peak / s["lr"], s["min_lr"] * peak / s["lr"])
        for group in optimizer.param_groups:
            group["lr"] = lr
        window = min(s["accumulate"], per_epoch - step % steps_per_epoch * s["accumulate"])
        total = 0.0
        for k in range(window):
            before = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - before
            for reason in set(batch["bad"]) - named - {""}:
                named.add(reason)
                bar.write(f"another clip stands in for {reason}")
            rng = np.random.default_rng((s["seed"], step, k, rank))
            torch.manual_seed(int(rng.integers(2**62)))                       # drop path and dropout of this batch
            x, target = D.mix(D.to_device(batch, s, device), batch["label"].to(device), len(sets["train"].classes), rng,
                              s["mixup"], s["cutmix"], s["switch"], s["smoothing"])
            with net.no_sync() if world > 1 and k < window - 1 else contextlib.nullcontext():
                with autocast(device, s["dtype"]):
                    logits = net(x)
                loss = F.cross_entropy(logits.float(), target) / window       # - sum target log softmax, mean over the batch
                scaler.scale(loss).backward()
            total += loss.item()
            clips += len(x) * world
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), s["clip_grad"]).item()
        if math.isfinite(norm):
            losses.append(total)
            norms.append(norm)
        else:                                                                 # counted and shown; the step is left out
            nonfinite += 1
        if math.isfinite(norm) or scaler.is_enabled():
            scaler.step(optimizer)                                            # (a scaler leaves it out by itself)
        scaler.update()
        optimizer.zero_grad()
        step += 1

        elapsed = time.perf_counter() - started
        bar.set_postfix_str(f"loss {total:.3f}, lr {lr:.1e}, {clips / elapsed:.0f} clips/s, {100 * waited / elapsed:.0f} % waiting for "
                            f"data" + f", {nonfinite} steps not finite" * bool(nonfinite), refresh=False)
        bar.update()
        if step % steps_per_epoch == 0 or step == steps:
            metrics = evaluate(net, sets["val"], s, device, args.workers, rank, world)
            log = dict(epoch=round(step / steps_per_epoch, 3), step=step, loss=float(np.mean(losses or [math.nan])), lr=lr,
                       grad_norm=float(np.mean(norms or [math.nan])), clips_per_s=clips / elapsed, waiting=waited / elapsed,
                       nonfinite=nonfinite, bad_videos=len(named), **metrics)
            if rank == 0:
                bar.write(f"epoch {log['epoch']:g} | loss {log['loss']:.3f} | val top-1 {log['top1']:.1f} % | top-5 {log['top5']:.1f} % | "
                          f"lr {lr:.2e} | grad norm {log['grad_norm']:.2f} | {log['clips_per_s']:.0f} clips/s | "
                          f"{100 * log['waiting']:.0f} % waiting for data" + f" | {nonfinite} steps not finite" * bool(nonfinite))
                log.update(mean_gates(model, sets["val"], s, device))
                with open(os.path.join(out, "log.jsonl"), "a") as file:
                    file.write(json.dumps(log) + "\n")
                if metrics["top1"] > best:
                    best = metrics["top1"]
                    save(os.path.join(out, "best.pt"), checkpoint())
                save(os.path.join(out, "last.pt"), checkpoint())
            losses, norms, clips, waited, started = [], [], 0, 0.0, time.perf_counter()
        if world > 1:                                                         # all processes stop after the same step
            flag = torch.tensor([max(caught, default=0)], device=device)
            dist.all_reduce(flag, dist.ReduceOp.MAX)
            caught = [flag.item()] if flag.item() else []
        if caught:
            bar.close()
            if rank == 0:
                save(os.path.join(out, "last.pt"), checkpoint())
                print(f"stopped after step {step}: saved {out}/last.pt, go on with the same command and --resume")
            return 128 + caught[0]
    bar.close()
    for sig, handler in handlers.items():
        signal.signal(sig, handler)
    if s["views"] != "1x1":                                                   # the papers' number: all views, last weights
        metrics = evaluate(net, sets["test"], s, device, args.workers, rank, world)
    if rank == 0:
        print(report(metrics, s["views"]))
    return 0


def report(metrics, views):
    return (f"{metrics['videos']} videos, {views} views: top-1 {metrics['top1']:.2f} %, top-5 {metrics['top5']:.2f} %, mean class "
            f"accuracy {metrics['mean_class']:.2f} %" + f", {metrics['bad']} unreadable counted as wrong" * bool(metrics["bad"]))


def predict(model, files, classes, settings, device):
    """The five most probable classes of each file, with the preprocessing of the evaluation. Returns the exit status."""
    status = 0
    dataset = D.VideoSet(files, [0] * len(files), classes, settings, settings["num_frames"], settings["image_size"],
                         views=settings["views"])
    model.eval()
    for i, path in enumerate(files):
        sample = torch.utils.data.default_collate([dataset[0, i]])
        if sample["bad"][0]:
            print(sample["bad"][0], file=sys.stderr)
            status = 1
            continue
        with torch.no_grad(), autocast(device, settings["dtype"]):
            scores = model(D.to_device(sample, settings, device)).float().softmax(-1).mean(0)
        print(path)
        for value, c in zip(*scores.topk(min(5, len(classes)))):
            print(f"  {100 * value:5.1f} %  {classes[c]}")
    return status


def parse():
    p = argparse.ArgumentParser(description="Train, evaluate and use video networks.", formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--data", help=f"toy (default), {', '.join(D.NAMED)}, a folder, or a list file")
    p.add_argument("--root", help="where the videos are (default data/NAME)")
    p.add_argument("--model", help=f"{', '.join(MODELS)} (default focal_toy for toy, focal_t otherwise)")
    p.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
                   help="any argument of the model or number of the recipe, a Python literal: drop_path=0.1 smoothing=0")
    p.add_argument("--init", metavar="FILE", help="weights to start from: ours, released, or an image FocalNet's (inflated)")
    p.add_argument("--temporal_init", choices=("fresh", "identity"), default="fresh",
                   help="temporal branch of an inflated image network (default fresh, as released)")
    p.add_argument("--resume", nargs="?", const="", metavar="FILE", help="go on exactly where FILE (default OUT/last.pt) stopped")
    p.add_argument("--out", default="out", metavar="DIR", help="for last.pt, best.pt and log.jsonl (default out)")
    p.add_argument("--epochs", type=float, help="passes over the training data (default: the recipe's)")
    p.add_argument("--steps", type=int, help="optimizer steps in all, in place of --epochs")
    p.add_argument("--batch_size", type=int, help="clips per process and forward pass (default: the recipe's)")
    p.add_argument("--accumulate", type=int, help="forward passes per optimizer step (default 1)")
    p.add_argument("--optimizer", choices=("sgd", "adamw"), help="default: the recipe's")
    p.add_argument("--lr", type=float, help="peak learning rate itself (default: the recipe's lr x global batch / lr_batch)")
    p.add_argument("--image_size", type=int, help="side of the clip, pixels (default: the model's, 224 or 64 for toy)")
    p.add_argument("--num_frames", type=int, help="frames of the clip (default: the model's, 8)")
    p.add_argument("--workers", type=int, help="loader processes (default: 0 for toy, else one per CPU core)")
    p.add_argument("--seed", type=int, help="of weights, data order and augmentation (default 0)")
    p.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    p.add_argument("--dtype", choices=DTYPES, help="of the forward pass, by autocast (default bfloat16 on cuda, float32 on cpu)")
    p.add_argument("--compile", action="store_true", help="torch.compile the network (for GPUs)")
    p.add_argument("--eval", action="store_true", help="evaluate --init on the validation videos, then stop")
    p.add_argument("--views", help="CLIPSxCROPS of the evaluation, as 4x3 (default: the recipe's; 1x1 for --predict)")
    p.add_argument("--predict", nargs="+", metavar="VIDEO", help="print the five most probable classes of each, then stop")
    return p.parse_args()


def resolve(args, saved, device):
    """
    Command line + recipe -> the settings, one flat dict of plain values. `saved`: the settings of a checkpoint to start from.
    """
    data = args.data or (saved or {}).get("data", "toy")
    settings = dict(saved or {})
    if not saved or (args.data and args.data != saved["data"]):
        settings |= RECIPES.get(data, RECIPES["k400"]) | dict(data=data, steps=None, peak_lr=None, seed=0)
        settings.setdefault("model", "focal_toy" if data == "toy" else "focal_t")
        settings.setdefault("model_args", {})
        settings.setdefault("dtype", "bfloat16" if device.type == "cuda" else "float32")
    given = dict(model=args.model, epochs=args.epochs, steps=args.steps, batch_size=args.batch_size, accumulate=args.accumulate,
                 optimizer=args.optimizer, peak_lr=args.lr, seed=args.seed, dtype=args.dtype, views=args.views)
    settings |= {key: value for key, value in given.items() if value is not None}
    if settings["model"] not in MODELS:
        raise ValueError(f"no model {settings['model']!r}; there are {', '.join(MODELS)}")
    defaults = {key: p.default for key, p in inspect.signature(Pyramid).parameters.items()} | MODELS[settings["model"]]
    if args.model and saved and args.model != saved["model"]:
        settings = {key: value for key, value in settings.items() if key not in ("num_frames", "image_size")}
    for key in ("num_frames", "image_size"):
        settings[key] = getattr(args, key) or settings.get(key, defaults[key])
    for item in args.set:
        key, equals, text = item.partition("=")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text                                                      # design=sequential needs no quotes
        numbers = [k for k in RECIPES["k400"] if k not in ("views",)]
        if key in numbers and equals:
            settings[key] = value
        elif key in defaults and key not in ("num_classes", "num_frames", "image_size") and equals:
            settings["model_args"] = settings["model_args"] | {key: value}
        else:
            raise ValueError(f"--set {item}: write KEY=VALUE with an argument of the model ({', '.join(defaults)}) or a number of "
                             f"the recipe ({', '.join(numbers)})")
    for key in ("epochs", "batch_size", "accumulate", "num_frames", "image_size", "lr", "lr_batch"):
        if not settings[key] > 0:
            raise ValueError(f"{key}={settings[key]}: must be more than 0")
    D.parse_views(settings["views"])
    return settings


def main():
    args = parse()
    rank, world, local = (int(os.environ.get(key, default)) for key, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if world > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        device = torch.device("cuda", local) if device.type == "cuda" else device
    resumed = read_checkpoint(args.resume or os.path.join(args.out, "last.pt")) if args.resume is not None else None
    if (args.eval or args.predict) and not args.init:
        raise ValueError("--eval and --predict need weights: --init FILE, as in --init out/best.pt")
    source = resumed or (read_checkpoint(args.init) if args.eval or args.predict else {})
    if resumed and "settings" not in resumed:
        raise ValueError(f"--resume {args.resume}: not a checkpoint of train.py; released weights are for --init")
    settings = resolve(args, source.get("settings"), device)
    if resumed:
        changed = [f"{key}: {resumed['settings'].get(key)} in the checkpoint, {value} now" for key, value in settings.items()
                   if value != resumed["settings"].get(key)]
        if changed:
            raise ValueError("--resume goes on exactly, but these differ: " + "; ".join(changed)
                             + "\n  leave the flags out, or start anew from the weights: --init instead of --resume")
    args.workers = args.workers if args.workers is not None else 0 if settings["data"] == "toy" else os.cpu_count()
    root = args.root or os.path.join("data", os.path.basename(settings["data"]))

    sets = {}
    for split in [] if args.predict else ["val"] if args.eval else ["train", "val"]:
        views = None if split == "train" else settings["views"] if args.eval else "1x1"
        sets[split] = D.open_data(settings["data"], root, split, settings, settings["num_frames"], settings["image_size"],
                                  settings["seed"], views)
    if args.predict:
        classes = source.get("classes")
        if classes is None:
            head = next(value for key, value in source.get("model", source).items() if key.endswith("head.weight"))
            classes = D.class_names(settings["data"]) if settings["data"] in D.NAMED else []
            if len(classes) != len(head):
                raise ValueError(f"{args.init} has {len(head)} classes, --data {settings['data']} has {len(classes)}: name the data "
                                 f"set it was trained on, {', '.join(D.NAMED)}")
    else:
        classes = sets["val"].classes
        if "train" in sets and sets["train"].classes != classes:
            raise ValueError(f"training has {len(sets['train'].classes)} classes, validation {len(classes)}, or other names")
    torch.manual_seed(settings["seed"])
    model = create_model(settings["model"], len(classes), settings["num_frames"], settings["image_size"], **settings["model_args"])
    if resumed:
        model.load_state_dict(resumed["model"])
    elif args.init:
        swapped = load_weights(model, source or args.init, args.temporal_init)["left_over"]
        if swapped and source:
            raise ValueError(f"{args.init} was trained on other classes than the {len(classes)} of {settings['data']}: there is no "
                             "head to evaluate with")
    elif settings["model"].startswith("focal") and "scratch" not in (MODELS[settings["model"]].get("init"),
                                                                    settings["model_args"].get("init")) and rank == 0:
        print(f"warning: {settings['model']} starts from the released initialisation, which learns from image weights only: add "
              "--init focalnet_tiny_srf.pth, or --set init=scratch")
    model.to(device)
    if args.predict:
        return predict(model, args.predict, classes, settings | dict(views=args.views or "1x1"), device)
    if args.eval:
        metrics = evaluate(model, sets["val"], settings, device, args.workers, rank, world)
        if rank == 0:
            print(report(metrics, settings["views"]))
        return 0
    val = sets["val"]
    sets["test"] = D.VideoSet(val.clips, val.labels, classes, settings, val.num_frames, val.image_size, views=settings["views"])
    status = train(model, sets, settings, args, device, rank, world, resumed)
    if world > 1:
        dist.destroy_process_group()
    return status


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, FileNotFoundError, D.BadVideo) as error:
        sys.exit(f"error: {error}")
