"""
What happens when, in a long video? And which classes does a network confuse, in a folder of them?

Why it matters: both papers (arXiv:2307.06947, arXiv:2210.08164) classify clips that somebody has
cut to the action. Nobody has cut your video.

    python -m experiments.timeline long.mp4 --every 2 --init out/best.pt
    python -m experiments.timeline FOLDER --init out/best.pt --csv predictions.csv

A line for each window of so many seconds, where it begins, its class and how probable that is, and
a picture of all, OUT/NAME.png; a window is what `train.py --predict` would see if it was a file.
Without --every: a line for each video, and, where folders are called like classes, the worst
classes and what they are taken for. What cannot be read is named; the exit status is 1 then. A
network of zoo/NAME.py needs an `import zoo.NAME` here.

The video is decoded once, from its beginning to its end, and only the pictures of one window are in
memory, as small as the network takes them: 1, 4, 16 minutes of 320 x 240, 30 a second, in windows
of 2 s, take 333, 336, 346 MiB and 3.4, 6.1, 14.9 s of one CPU core, imports included.

Does it matter where windows begin? 64 of the toy's validation clips one after the other, a second
each; the windows as the clips were cut, and half a second late, so that a window has the end of one
action and the beginning of the next (either counts as right; guessing gives 25 %):

    network, seed 0                               windows   right   mean probability
    python train.py                               as cut    100 %   0.89
                                                  late       53 %   0.37
    --model lvt_toy --patch 8 --stride 8          as cut    100 %   0.91
    --kernel softmax --fixation none              late       80 %   0.54

Both: AMD EPYC, 2026-11-26. In a folder, 37 videos of UT-Interaction (Ryoo and Aggarwal 2010, see
experiments/small_data.py), trained on differences of frames, seed 0, commit 63d0020:

    worst classes: punch 71.4 % of 7, kick 83.3 % of 6, push 83.3 % of 6, handshake 100.0 % of 6, ..
    most frequent confusions: punch taken for push 2 times, kick taken for punch 1 times, ..

Verdict: it matters. A window across two actions is often called something that is neither, and its
probability is low: believe the sure lines, and try windows of another length. What this does not
say: one seed each, and real actions have no such sharp ends. Where nothing happens the network will
name a class as well, unless it was trained with one for nothing.
"""
import argparse
import collections
import csv
import itertools
import os
import sys

import av
import torch
from av.video.reformatter import VideoReformatter

import train
from data import (BadVideo, VideoSet, decode_all, parse_views, prepare, read_packets,
                  resized_to, stem_of, upright, videos_below, whole)


def timed_frames(path):
    """
    Yields (second, frame) of a video in the order they are shown, and at last (its length, None):
    the largest time shown plus its duration, as headers lie. Raises BadVideo.
    """
    if not os.path.isfile(path):  # a named pipe would wait for ever
        raise BadVideo(f"{path}: no such file")
    try:
        _, trusted, zero, unit, step = read_packets(path)
        length = 0.0
        for k, frame in enumerate(decode_all(path)):
            # Where times lie (avi), frames are counted.
            second = (frame.pts - zero if trusted else k * step) * unit
            length = second + (frame.duration if trusted else step) * unit
            yield second, frame
    except (av.error.FFmpegError, OSError) as error:
        raise BadVideo(f"{path}: {error.strerror or error}") from error
    yield length, None


def windows(path, seconds, short_side):
    """
    Yields (first second, frames) of one window after the other, uint8 (n, H, W, 3), as read_clip
    gives them. Less than a tenth of a window, at the end, is joined to the one before.
    """
    reformatter = VideoReformatter()
    k = 0  # number of the window
    held = []  # (second, picture) of this window, and of a tenth of the next
    before = None  # the picture before them
    for second, frame in timed_frames(path):
        while before is not None and second >= (k + 1.1) * seconds:
            end = (k + 1) * seconds - 1e-6  # times are rounded
            # Where a video stops for a while, its last picture stays on the screen.
            inside = [picture for when, picture in held if when < end] or [before]
            yield k * seconds, torch.stack(inside)
            held = [(when, picture) for when, picture in held if when >= end]
            before = inside[-1]
            k += 1
        if frame is not None:
            height, width = resized_to(frame.height, frame.width, short_side)
            rgb = reformatter.reformat(frame, width, height, "rgb24", interpolation="BILINEAR")
            picture = torch.from_numpy(upright(rgb.to_ndarray(), frame).copy())
            held.append((second, picture))
            before = picture if before is None else before
    if before is None:
        raise BadVideo(f"{path}: no frames in it")
    yield k * seconds, torch.stack([picture for _, picture in held] or [before])


@torch.no_grad()
def classify(model, path, label, seconds, classes, cfg):
    """
    Prints and returns rows, (path, second, label, class, probability): one for each window of a
    video, or, with seconds=0, one for the whole. The probability is the mean over the views.
    """
    # The frames of a window are a data set of one clip: it knows evaluation's frames and crops.
    _, crops = parse_views(cfg.views)
    short_side = cfg.image_size if crops == 3 else int(cfg.margin * cfg.image_size)
    parts = [(0.0, [whole(path)])]
    if seconds:
        parts = ((second, x[None]) for second, x in windows(path, seconds, short_side))
    rows = []
    print(path)
    try:
        for second, clips in parts:
            dataset = VideoSet(clips, [0], classes, cfg, cfg.views)
            batch = torch.utils.data.default_collate([dataset[0, 0]])
            if batch["bad"][0]:
                raise BadVideo(batch["bad"][0])
            with train.autocast(cfg):
                scores = model(prepare(batch, cfg, cfg.device)).float().softmax(-1).mean(0)
            p = scores.max().item()
            name = classes[scores.argmax()]
            print(f"  {second:8.1f} s  {100 * p:7.3f} %  {name}", flush=True)
            rows.append((path, second, label, name, round(p, 6)))
    except BadVideo as error:
        print(f"error: {error}", file=sys.stderr)
        rows.append((path, 0.0, label, "", 0.0))
    return rows


def print_mistakes(rows):
    """The five worst classes, and the three pairs that are confused most often."""
    # A video that could not be read is a miss of its class, and no confusion.
    total = collections.Counter(label for _, _, label, _, _ in rows)
    right = collections.Counter(label for _, _, label, name, _ in rows if label == name)
    pairs = collections.Counter((label, name) for _, _, label, name, _ in rows
                                if name not in (label, ""))
    worst = sorted(total, key=lambda label: (right[label] / total[label], -total[label]))[:5]
    print("worst classes: " + ", ".join(
        f"{label} {100 * right[label] / total[label]:.1f} % of {total[label]}" for label in worst))
    print("most frequent confusions: " + (", ".join(
        f"{label} taken for {name} {n} times" for (label, name), n in pairs.most_common(3))
        or "none"))


def draw(rows, seconds, path):
    """A bar for each window, in the row of its class, as dark as it is probable."""
    import matplotlib
    matplotlib.use("Agg")  # no window
    import matplotlib.pyplot as plt

    names = sorted({name for _, _, _, name, _ in rows})
    figure, axis = plt.subplots(figsize=(12, 1 + 0.3 * len(names)), layout="constrained")
    axis.barh([names.index(name) for _, _, _, name, _ in rows], seconds,
              left=[second for _, second, _, _, _ in rows],
              color=[(0.1, 0.2, 0.6, p) for _, _, _, _, p in rows])
    axis.set_yticks(range(len(names)), [name.replace("$", r"\$") for name in names])
    axis.set_xlabel("seconds")
    figure.savefig(path, dpi=90)
    plt.close(figure)
    print(path)


def main(words):
    """Videos and folders, then flags; see above. Returns the rows of `classify`."""
    paths = list(itertools.takewhile(lambda word: not word.startswith("--"), words))
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--every", type=float, default=0.0)
    parser.add_argument("--csv", default="")
    args, rest = parser.parse_known_args(words[len(paths):])
    if not paths or args.every < 0:
        raise ValueError("first the videos or folders, then --init FILE, and --every SECONDS")

    # The settings are those that the network was trained with.
    cfg, checkpoint = train.parse_args([*rest, "--predict", paths[0]])
    train.where_to_run(cfg)
    classes = train.classes_of(checkpoint, cfg)
    model = train.build_model(checkpoint, classes, cfg).eval()

    # A folder stands for all videos below it; those in CLASS/ are labelled.
    files = []
    labels = []
    for path in paths:
        for file in videos_below(path) if os.path.isdir(path) else [path]:
            name = os.path.relpath(file, path).split(os.sep)[0]
            files.append(file)
            labels.append(name if name in classes else "")
    if not files:
        raise ValueError(f"{paths[0]}: no videos in this folder")

    # Results are printed first, and written afterwards: the disk may be full.
    rows = []
    for file, label in zip(files, labels):
        rows += classify(model, file, label, args.every, classes, cfg)
    if any(labels):
        print_mistakes([row for row in rows if row[2]])
    if args.every:
        os.makedirs(cfg.out, exist_ok=True)
        for file in sorted({row[0] for row in rows if row[3]}):
            draw([row for row in rows if row[0] == file and row[3]], args.every,
                 os.path.join(cfg.out, stem_of(file) + ".png"))
    if args.csv:
        with open(args.csv, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            csv.writer(file).writerows([("path", "second", "label", "class", "probability"), *rows])
        print(f"{args.csv}: {len(rows)} rows")
    return rows


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # names that the terminal cannot show
    try:
        rows = main(sys.argv[1:])
    except BrokenPipeError:  # .. | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    else:
        sys.exit(int(not all(row[3] for row in rows)))
