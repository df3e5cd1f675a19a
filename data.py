"""
From video files to batches. The way of a clip, in the order of this file:

    find the files    a table, a list or class folders   -> paths and labels
    decode            only the frames that are asked for -> uint8 (frames, H, W, 3)
    sample            T frame numbers over the whole video, or in a window of it
    crop              AutoAugment, one box for all frames -> uint8 (T, S, S, 3)
    batch             clips and a few random numbers     -> uint8 (B, T, S, S, 3)
    colour            on the device: flip, jitter, grey, normalise, erase -> float (B, 3, T, S, S)
    mix               targets: smoothing, then mixup or CutMix with another clip of the batch

Everything random about sample i in epoch e comes from a generator made from (seed, e, i), and the
order of an epoch from (seed, e). So training is one numbered stream of batches, the same for any
number of workers, processes and restarts: to go on after step k, start the stream at step k.

The default data, `toy`, needs no files: an L moves left or right, up or down, turns or grows. Its
classes are pairs of each other's time reversals, so a network that is blind to the order of frames
can identify the pair but not its direction.

Source: the pipeline released with arXiv:2307.06947; where ours differs, the line says so.
Try it: python data.py --show sheet.png                         what the network gets, drawn
        python data.py --data k400 --root DIR --show sheet.png  the same from files; what is missing
        python data.py --make_toy DIR                           the toy data as mp4 files
"""
import argparse
import collections
import csv
import fractions
import functools
import itertools
import json
import math
import multiprocessing
import os
import re
import signal
import sys
import time
import warnings

import av
import numpy as np
import torch
import torch.nn.functional as F
from av.video.reformatter import VideoReformatter
from tqdm import tqdm

TOYS = ("toy", "toy_far")  # drawn
NAMED = ("k400", "k600", "ssv2", "diving48", "activitynet")  # class names in assets/classes/


# --------------------------------------------------- settings: how a clip is cut and coloured

# name: (default, what is allowed, meaning). Allowed are the words, or the lowest and the highest
# number; None: anything of the default's type. train.py makes a flag of each.
SETTINGS = {
    # which videos; group: by the name before the last _
    "split": ("ready", ("ready", "group", "file"), "train and val as they are, or made here"),
    # which frames, and which part of them
    "sampling": ("segments", ("segments", "tsn", "dense"), "how the frames of a clip are chosen"),
    "interval": (1, (1, 1000), "dense: frames of the window per frame; segments: see sample_val"),
    "margin": (1.0, (1, 4), "short side before cropping, in units of image_size"),
    "crop": ("none", ("none", "area", "short_side", "multi_scale"), "random crop in training"),
    "crop_range": ((0.08, 1.0), (0.01, 10), "area: share of the frame; short_side: side in crops"),
    "views": ("1x1", None, "evaluation: CLIPSxCROPS of each video, crops 1 or 3"),
    "frames": ("normal", ("normal", "reversed", "shuffled", "still"), "evaluation: their order"),
    # what of them
    "input": ("rgb", ("rgb", "diff"), "colours, or how they change from frame to frame"),
    # flips and colours, in training
    "flip": (0.0, (0, 1), "probability of a horizontal flip"),
    "jitter": (0.0, (0, 1), "probability of other brightness, contrast, saturation and hue"),
    "jitter_per_frame": (False, None, "draw the jitter anew for every frame: colours flicker"),
    "grey": (0.0, (0, 1), "probability of grey"),
    "auto_augment": (False, None, "AutoAugment, policy v0"),
    "erase": (0.0, (0, 1), "probability of a box that is blanked"),
    "mean": ((0.485, 0.456, 0.406), (0, 1), "of red, green, blue, subtracted"),
    "std": ((0.229, 0.224, 0.225), (0.001, 1), "of red, green, blue, divided by"),
    # what the network is asked, in training
    "mixup": (0.0, (0, 100), "alpha of mixup; 0: off"),
    "cutmix": (0.0, (0, 100), "alpha of CutMix; 0: off"),
    "switch": (0.5, (0, 1), "probability of CutMix, where both are on"),
    "smoothing": (0.0, (0, 1), "label smoothing: the share that all classes get alike"),
}

# What the papers' pipelines change in these. train.py's recipes add how it is learned.
PIPELINES = {
    # ours; a flip would change the class
    "toy": dict(mean=(0.35, 0.35, 0.35), std=(0.3, 0.3, 0.3), smoothing=0.1),
    # ours, for a few hundred clips of one's own
    "own": dict(margin=256/224, crop="area", crop_range=(0.5, 1.0), flip=0.5, smoothing=0.1),
    # released Video-FocalNets, for all data sets
    "focal": dict(
        interval=4,  # their name; all it does is hide the last 3 frames, in validation too
        margin=256/224,
        crop="area",
        flip=0.5,
        jitter=0.8,
        jitter_per_frame=True,
        grey=0.2,
        mixup=0.8,
        cutmix=1.0,
        smoothing=0.1,
        views="4x3",
    ),
    # released Linear Video Transformer, Something-Something
    "lvt_ssv2": dict(
        sampling="tsn",
        margin=256/224,
        crop="short_side",
        crop_range=(256/224, 320/224),
        auto_augment=True,
        erase=0.5,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        views="2x3",
    ),
    # released Linear Video Transformer, Kinetics
    "lvt_kinetics": dict(
        sampling="dense",
        interval=16,  # windows of 16 T frames; theirs are longer at over 30 frames a second
        margin=256/224,
        crop="multi_scale",
        flip=0.5,
        auto_augment=True,
        mixup=0.4,
        smoothing=0.3,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        views="4x3",
    ),
}


# --------------------------------------------------- random numbers: a stream for each use

# numpy pads a seed with zeros: (0, 3) and (0, 3, 0) are the same numbers. So each use has a tag of
# its own, in front, and always the same number of keys behind it.
WEIGHTS = 1  # seed
TOY = 2  # seed, split: 0 and 1 of toy, 2 and 3 of toy_far
ORDER = 3  # seed, epoch
SAMPLE = 4  # seed, epoch, i
STEP = 5  # seed, step, micro-batch, rank
SHUFFLE = 6  # i
SPLIT = 7  # seed


def generator(use, *keys):
    """The random numbers of one use: generator(SAMPLE, seed, epoch, i)."""
    return np.random.default_rng((use, *keys))


def torch_seed(rng):
    """A seed for torch, from a generator of numpy's."""
    return int(rng.integers(2**62))


# --------------------------------------------------- find the files

VIDEO_FILES = (".mp4", ".webm", ".avi", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv")
IMAGE_FILES = (".jpg", ".jpeg", ".png")

NO_DATA = """no {split} videos of {data} in {root}. One of these is expected there:
  {root}/{split}/CLASS/*.mp4    class folders (or videos_{split}/, {split}_256/); jpg and png too
  {root}/CLASS/*.mp4            class folders without train/ and val/: add --split group
  {root}/{split}.csv or .txt    a list, one 'path label' or 'path,label' a line
  {root}/annotations/{split}.csv and {root}/{split}/ID_START_END.mp4    Kinetics
  {root}/something-something-v2-{long}.json, Diving48_V2_{test}.json or \
activity_net.v1-3.min.json, and the videos below
have the videos elsewhere: --root DIR      just looking: python train.py"""


class BadVideo(Exception):
    """A video that cannot be used: 'path: reason'."""


def segment_of(clip):
    """
    'a.mp4#t=24.2,38' -> ('a.mp4', 24.2, 38.0): a part of a video, from .. to in seconds, written as
    on the web (W3C media fragments). A whole file is 0 to infinity.
    """
    match = re.fullmatch(r"(.+)#t=(\d+\.?\d*),(\d+\.?\d*)", clip)
    if not match:
        return clip, 0.0, math.inf
    return match[1], float(match[2]), float(match[3])


def is_there(clip):
    """Is the file of this clip on the disk?"""
    path, _, _ = segment_of(clip)
    return os.path.isfile(path)


def stem_of(clip):
    """'run/set1_seq01_04.avi' -> 'set1_seq01_04'."""
    path, _, _ = segment_of(clip)
    return os.path.splitext(os.path.basename(path))[0]


def videos_below(folder):
    """All video and image files under a folder, sorted; none for a folder that is not there."""
    # Sorted, so that the order does not depend on the disk.
    paths = []
    for where, _, names in sorted(os.walk(folder, followlinks=True)):
        for name in sorted(names):
            # ._x.mp4 is litter that archives made on a Mac leave.
            if name.lower().endswith(VIDEO_FILES + IMAGE_FILES) and not name.startswith("._"):
                paths.append(os.path.join(where, name))
    return paths


def by_stem(folder):
    """{'78687': '.../78687.webm'}, of all videos under a folder, not of thumbnails beside them."""
    return {stem_of(path): path for path in videos_below(folder)
            if not path.lower().endswith(IMAGE_FILES)}


# The finders, one for each layout: (listing, root, split) -> rows (clip, label), where clip is None
# if the video is not on the disk, and label None if there is no row for the video.

def kinetics_rows(listing, root, split):
    """A table, 'label,youtube_id,time_start,..': files begin with the id, 11 characters."""
    # Later folders win: repaired copies of broken videos stand in one of their own.
    folders = split_folders(root, split)
    if split == "train":
        folders = folders + [os.path.join(root, "replacement")]
    on_disk = {}
    for folder in folders:
        for path in videos_below(folder):
            on_disk[os.path.basename(path)[:11]] = path

    # Rows without a file, and files without a row, are kept: they are counted.
    with open(listing, newline="", encoding="utf-8-sig") as file:
        labels = {row["youtube_id"]: row["label"] for row in csv.DictReader(file)}
    rows = [(on_disk.get(key), label) for key, label in labels.items()]
    unlabelled = sorted(on_disk.keys() - labels.keys())
    return rows + [(on_disk[key], None) for key in unlabelled]


def list_rows(listing, root, split):
    """
    A list, 'path label' or 'path,label' a line, paths from `root` on, or 'FOLDER/path' alone, whose
    folder is the label; ValueError with the line.
    """
    # A Kinetics table is a csv as well: it has a header, lists have none.
    with open(listing, encoding="utf-8-sig", errors="replace") as file:
        lines = file.read().splitlines()
    if lines and lines[0].startswith("label,youtube_id"):
        return kinetics_rows(listing, root, split)

    # The label comes last, so that a path may hold spaces and commas. Only a path: its folder.
    rows = []
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line:
            continue

        # A path alone, or a label behind it.
        file, _, _ = segment_of(line)
        if file.lower().endswith(VIDEO_FILES + IMAGE_FILES):
            path = line
            label = os.path.basename(os.path.dirname(file))
        else:
            separator = "," if line.rpartition(",")[2].strip().isdigit() else None
            path, *last = line.rsplit(separator, 1)
            label = last[0].strip() if last and last[0].strip().isdigit() else ""
        if not label:
            raise ValueError(f"{listing}, line {number}: {line[:80]!r} is not 'path label' "
                             "or 'path,label' with a number as label")
        # An absolute path stays as it is.
        path = os.path.join(root, path.strip())
        rows.append((path if is_there(path) else None, label))
    return rows


def ssv2_rows(listing, root, split):
    """Something-Something V2: the label is the template without its brackets; ID.webm."""
    # Ids are text in the file, and names of files on the disk.
    on_disk = by_stem(root)
    with open(listing, encoding="utf-8") as file:
        table = json.load(file)
    return [(on_disk.get(row["id"]), re.sub(r"[\[\]]", "", row["template"])) for row in table]


def diving48_rows(listing, root, split):
    """Diving48 V2: vid_name and the number of the class; the frames are those of the whole file."""
    on_disk = by_stem(root)
    with open(listing, encoding="utf-8") as file:
        table = json.load(file)

    # V1 has the same keys and other labels: only the length tells.
    official = {"train": 15027, "val": 1970}[split]
    if len(table) != official:
        print(f"{listing} has {len(table)} rows, V2's has {official}: is it another version?")
    return [(on_disk.get(row["vid_name"]), str(row["label"])) for row in table]


def activitynet_rows(listing, root, split):
    """ActivityNet v1.3: one clip for each labelled segment, VIDEO#t=START,END; v_ID.mp4."""
    on_disk = by_stem(root)

    # Its own names of the splits.
    subset = {"train": "training", "val": "validation"}[split]
    with open(listing, encoding="utf-8") as file:
        videos = json.load(file)["database"]

    # Videos without a label have no annotations.
    rows = []
    for key, video in videos.items():
        if video["subset"] == subset:
            path = on_disk.get("v_" + key)
            for one in video["annotations"]:
                start, end = one["segment"]
                part = f"{path}#t={max(start, 0):.3f},{end:.3f}"
                rows.append((part if path else None, one["label"]))
    return rows


def folder_rows(folder):
    """Class folders, CLASS/**/*.mp4: the topmost folder is the label. Files beside it are left."""
    rows = []
    for path in videos_below(folder):
        label, slash, _ = os.path.relpath(path, folder).partition(os.sep)
        if slash:
            rows.append((path, label))
    return rows


# Where a data set's own lists are, below the root, and who reads them: see other_names.
LISTS = (
    ("annotations/{split}.csv", list_rows),  # Kinetics, as the CVDF scripts leave it
    ("annotations/{split}.txt", list_rows),
    ("{split}.csv", list_rows),
    ("{split}.txt", list_rows),
    ("something-something-v2-{long}.json", ssv2_rows),  # as 20BN named it
    ("labels/{long}.json", ssv2_rows),  # as Qualcomm does
    ("Diving48_V2_{test}.json", diving48_rows),
    ("activity_net.v1-3.min.json", activitynet_rows),
)


def other_names(split):
    """What else a split is called: train, train, train; val, validation, test."""
    return dict(split=split, long={"train": "train", "val": "validation"}[split],
                test={"train": "train", "val": "test"}[split])


def split_folders(root, split):
    """The folder of a split, in a list; an empty one if there is none."""
    names = (split, f"videos_{split}", f"{split}_256", f"videos/{split}",
             *other_names(split).values())
    folders = [os.path.join(root, name) for name in names]
    return [folder for folder in folders if os.path.isdir(folder)][:1]


def find_split(data, root, split):
    """-> (where it was found, rows) of the first layout that is there, or (None, [])."""
    # A list file brings the other split's list: my_train.txt has my_val.txt beside it, or, in
    # UCF101, testlist01.txt.
    if os.path.isfile(data):
        folder, name = os.path.split(data)
        for word in other_names(split).values():
            listing = os.path.join(folder, name.replace("train", word))
            if os.path.isfile(listing):
                return listing, list_rows(listing, root, split)
        return None, []

    # A list in the root, with the videos below it.
    for name, rows_of in LISTS:
        listing = os.path.join(root, name.format(**other_names(split)))
        if os.path.isfile(listing):
            return listing, rows_of(listing, root, split)

    # Nothing but folders, one for each class.
    for folder in split_folders(root, split):
        return folder, folder_rows(folder)
    return None, []


# --------------------------------------------------- split: which videos are kept to validate with

def group_of(clip):
    """
    'run/set1_seq01_04.avi' -> 'set1_seq01', the name before the last _: what is called alike is
    taken for pieces of one recording.
    """
    return stem_of(clip).rpartition("_")[0] or stem_of(clip)


def split_rows(rows, seed, by):
    """
    Rows (clip, label) -> {'train': rows, 'val': rows}, a fifth of each class or a little more to
    validate with. by: 'group' keeps the clips of a group_of together, 'file' does not. ValueError
    for a class that would be missing on one side.
    """
    # Who has to stay together, and how many of each class a fifth is.
    groups = collections.defaultdict(list)
    for clip, label in rows:
        groups[group_of(clip) if by == "group" else segment_of(clip)[0]].append((clip, label))
    total = collections.Counter(label for _, label in rows)
    held = collections.Counter()  # clips to validate with, of each class

    # Group after group, in random order: taken if it brings a class nearer to its fifth, and leaves
    # half of each class to train on.
    val = []
    names = sorted(groups)
    for k in generator(SPLIT, seed).permutation(len(names)):
        here = collections.Counter(label for _, label in groups[names[k]])
        short = any(held[label] < max(1, total[label] // 5) for label in here)
        if short and all(held[label] + here[label] <= total[label] / 2 for label in here):
            held += here
            val += groups[names[k]]

    # A class that is one recording has no second one to validate with.
    for label in total:
        if not held[label]:
            count = sum(any(own == label for _, own in group) for group in groups.values())
            raise ValueError(
                f"--split {by}: {label!r} cannot be in both splits, its {total[label]} videos are "
                f"{count} recordings (by 'group', what is called alike before the last _ is one; "
                "by 'file', a file is): add videos, or make train/ and val/ yourself")
    taken = set(val)
    return dict(train=[row for row in rows if row not in taken],
                val=[row for row in rows if row in taken])


def saved_split(path, root, rows, cfg):
    """
    The split that is noted at `path`, a csv of path,label,split; made and noted if it is not there.
    -> {'train': rows, 'val': rows}
    """
    # Noted by an earlier run: what it does not know is left out, and counted.
    if os.path.isfile(path):
        with open(path, newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            if not {"path", "split"} <= set(table.fieldnames or ()):
                raise ValueError(f"{path}: its first line must be path,label,split")
            noted = {row["path"]: row["split"] for row in table}
        splits = dict(train=[], val=[])
        for clip, label in rows:
            split = noted.get(os.path.relpath(clip, root))
            if split in splits:
                splits[split].append((clip, label))

        # A note that knows none of them is of another data set: a new one takes its place.
        known = len(splits["train"]) + len(splits["val"])
        if known:
            print(f"split: as noted in {path}; {len(rows) - known} videos are not in it: left out")
            return splits

    # A new one, noted with paths from the root on, so that the data set may move. An evaluation
    # makes none: what it was trained on would be in it.
    if cfg["eval"]:
        raise ValueError(f"{path} is of another data set than {root}: evaluate one that is split, "
                         "with --split ready")
    splits = split_rows(rows, cfg["seed"], cfg["split"])

    # One of several processes writes.
    if path and cfg["rank"] == 0:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(path + ".tmp", "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(("path", "label", "split"))
            for split, own in splits.items():
                table.writerows((os.path.relpath(clip, root), label, split) for clip, label in own)
        os.replace(path + ".tmp", path)  # another process sees all of it, or nothing
    print(f"split: {len(splits['train'])} to train on, {len(splits['val'])} to validate with"
          + (f"; noted in {path}" if path else ""))
    return splits


def warn_of_shared_groups(found):
    """Says how many recordings are in both of two ready splits: validation would be too easy."""
    names = {}
    for split, (_, rows) in found.items():
        # A name without _ says nothing of recordings.
        stems = [stem_of(clip) for clip, _ in rows if clip]
        names[split] = {stem.rpartition("_")[0] for stem in stems} - {""}

    # One warning, with a number and an example.
    shared = sorted(names["train"] & names["val"])
    if shared:
        print(f"warning: {len(shared)} of {len(names['val'])} recordings in val are in train too, "
              f"{shared[0]} for one (the name before the last _): val may be easier than new ones")


# --------------------------------------------------- classes: their names and numbers

def class_names(data):
    """The classes of a named data set, in the order of the released heads."""
    here = os.path.dirname(os.path.abspath(__file__))
    with open(os.path.join(here, "assets", "classes", data + ".txt"), encoding="utf-8") as file:
        return file.read().splitlines()


def plain(label):
    """'"Air_drumming"' -> 'air drumming': names circulate in several spellings."""
    return label.strip(' "').replace("_", " ").lower()


def names_of_numbers(folder, rows):
    """
    {'1': 'ApplyEyeMakeup'}: what the numbers of a list mean, from UCF101's classInd.txt or from
    classes.txt beside it, a name a line, or from the folders of its clips, if each number has its
    own. {} if nothing tells.
    """
    # A file that says it.
    if os.path.isfile(os.path.join(folder, "classInd.txt")):
        with open(os.path.join(folder, "classInd.txt"), encoding="utf-8-sig") as file:
            return dict(line.split(maxsplit=1) for line in file.read().splitlines() if line.strip())
    if os.path.isfile(os.path.join(folder, "classes.txt")):
        # Names for 0 .. N - 1, or for 1 .. N if N is there.
        with open(os.path.join(folder, "classes.txt"), encoding="utf-8-sig") as file:
            names = file.read().splitlines()
        first = 1 if str(len(names)) in {label for _, label in rows} else 0
        return {str(k): name for k, name in enumerate(names, first)}

    # Or the folders, one to one.
    pairs = {(label, os.path.basename(os.path.dirname(clip))) for clip, label in rows
             if clip and label.isdigit()}
    numbers = {number for number, _ in pairs}
    folders = {name for _, name in pairs}
    return dict(pairs) if len(pairs) == len(numbers) == len(folders) else {}


def class_index(labels, data, root, names):
    """
    -> (classes, {label: index}) for a set of labels. Numbers are indices, called as `names` says.
    Names have official indices if all of them are official, else the alphabetical order counts, and
    a line says so if some are. ValueError for a number that is too large.
    """
    # Numbers: of a named data set, or as many classes as the highest one says.
    classes = class_names(data) if data in NAMED else None
    number_of = {name: number for number, name in names.items()}
    if all(label.isdigit() or label in number_of for label in labels):
        numbers = {label: int(number_of.get(label, label)) for label in labels}
        highest = max(numbers.values(), default=-1)

        # Do they start at 1? A part of the official ones, or of those with names, may lack 0.
        first = starts_at(numbers.values())
        if classes is not None and highest < len(classes) or "0" in names:
            first = 0
        if first:
            print(f"labels start at 1 in {root}: 1 is taken for the first class, {highest} for the "
                  "last")
        if classes is None:
            classes = [names.get(str(k), str(k)) for k in range(first, highest + 1)]
        if highest - first >= len(classes):
            raise ValueError(f"label {highest} in {root}, but {data} has {len(classes)} classes, "
                             f"0 to {len(classes) - 1}")
        return classes, {label: number - first for label, number in numbers.items()}

    # Names: if all are official, whatever their spelling, their indices; else alphabetical order.
    official = {plain(name): k for k, name in enumerate(classes or [])}
    others = sorted(label for label in labels if plain(label) not in official)
    if others:
        if len(others) < len(labels) and classes:
            print(f"{others[0]!r} is no class of {data} ({len(others)} such names): classes are "
                  "numbered in alphabetical order, not in the official one")
        classes = sorted(labels)
        return classes, {label: k for k, label in enumerate(classes)}
    return classes, {label: official[plain(label)] for label in labels}


def starts_at(numbers):
    """Where labels begin: 1 if there is a 1 and no 0, else 0."""
    return 1 if 1 in numbers and 0 not in numbers else 0


# --------------------------------------------------- open a data set

def root_of(data, root):
    """The folder that the videos of --data are in; ValueError or FileNotFoundError for none."""
    # A folder is its own root.
    if data in TOYS:
        raise ValueError(f"--data {data} is drawn, there are no files")
    if data not in NAMED and os.path.isdir(data):
        if root:
            raise ValueError(f"--root {root}: --data {data} is a folder and its own root")
        return data
    if data not in NAMED and not os.path.isfile(data):
        raise ValueError(f"--data {data}: neither a folder, nor a list file, "
                         f"nor one of {', '.join(TOYS + NAMED)}")
    if root and not os.path.isdir(root):
        raise FileNotFoundError(f"--root {root}: no such folder")

    # That of a list is the list's folder, unless --root says another one.
    if data in NAMED:
        return root or os.path.join("data", data)
    return root or os.path.dirname(data) or "."


def split_anew(found, root, cfg):
    """All videos that were found, of both splits or of neither, split by --split."""
    # Each once, labelled and on the disk. Without train/ and val/ the root has the class folders.
    rows = dict.fromkeys(row for _, own in found.values() for row in own if None not in row)
    rows = list(rows) if any(where for where, _ in found.values()) else folder_rows(root)
    if not rows:
        return found

    # An evaluation looks for the note beside the weights.
    folder = os.path.dirname(cfg["init"]) if cfg["eval"] else cfg["out"]
    path = os.path.join(folder, "split.csv") if cfg["out"] else ""
    if cfg["eval"] and not os.path.isfile(path):
        raise ValueError(f"no {path}, where training notes its split: copy it there, or evaluate a "
                         "data set that is split, with --split ready")
    splits = saved_split(path, root, rows, cfg)
    return {split: (root, own) for split, own in splits.items()}


def check_classes(sets, data):
    """ValueError if there is one class only; says which ones cannot be learned."""
    train = sets["train"]
    if len(train.classes) == 1:
        raise ValueError(f"--data {data}: one class only, {train.classes[0]!r}: nothing to tell "
                         "apart; a folder, or a number in a list, for each class is needed")

    # Classes that only val has.
    unseen = sorted(set(sets["val"].labels) - set(train.labels)) if "val" in sets else []
    if unseen:
        print(f"warning: {len(unseen)} classes have videos in val only, "
              f"{train.classes[unseen[0]]!r} for one: they cannot be learned, and count as wrong")


def open_data(cfg, splits, views="1x1"):
    """
    The data set cfg["data"] -> {split: VideoSet}; prints what was found. It is a name of TOYS or
    NAMED, a folder or a list file. 'train' has training's samples, any other split evaluation's
    `views`.
    Raises FileNotFoundError with the expected layout, ValueError for unknown names and labels.
    """
    # The toys are drawn, not read.
    data = cfg["data"]
    sets = {}
    if data in TOYS:
        make, classes = (toy_split, TOY_CLASSES) if data == "toy" else (far_split, FAR_CLASSES)
        for split in splits:
            clips, labels = make(split, cfg["seed"], cfg["num_frames"], cfg["image_size"])
            sets[split] = VideoSet(clips, labels.tolist(), classes, cfg,
                                   None if split == "train" else views)
        return sets

    # Both splits are read, whatever is asked for: a class may be in one of them only.
    root = root_of(data, cfg["root"])
    found = {split: find_split(data, root, split) for split in ("train", "val")}
    if cfg["split"] != "ready":
        found = split_anew(found, root, cfg)
    elif os.path.isfile(data) and "train" in splits and found["train"][0] == found["val"][0]:
        raise ValueError(f"--data {data}: this list would be trained on and validated with; two "
                         "lists are needed, my_train.txt and, beside it, my_val.txt, or --split "
                         "group")
    elif data not in NAMED:
        warn_of_shared_groups(found)

    # Their labels, as numbers. Where a list has numbers, something else may say their names.
    labelled = [row for _, rows in found.values() for row in rows if row[1] is not None]
    labels = {label for _, label in labelled}
    names = {}
    if any(label.isdigit() for label in labels) and data not in NAMED:
        # Beside a list file, or in the root.
        beside = os.path.dirname(data) if os.path.isfile(data) else root
        names = names_of_numbers(beside, labelled)
    classes, index = class_index(labels, data, root, names)

    # Say what was found, use what is there and has a label.
    for split in splits:
        where, rows = found[split]
        listed = [row for row in rows if row[1] is not None]
        there = [row for row in listed if row[0] is not None]

        # Missing videos are no mistake, most copies of Kinetics lack some; none at all is one.
        if where:
            said = (f"{split}: {where} lists {len(listed)} videos, {len(there)} are there, "
                    f"{len(listed) - len(there)} missing")
            if len(rows) > len(listed):
                said += f", {len(rows) - len(listed)} more have no label"
            print(said)
        if not there:
            raise FileNotFoundError(NO_DATA.format(data=data, root=root, **other_names(split)))
        sets[split] = VideoSet([clip for clip, _ in there], [index[label] for _, label in there],
                               classes, cfg, None if split == "train" else views)
    if "train" in sets:
        check_classes(sets, data)
    return sets


# --------------------------------------------------- decode: file -> frames

def open_stream(container, path):
    """The video stream of a file, to be decoded by one thread: the workers are the parallelism."""
    stream = container.streams.best("video")
    if stream is None:
        raise BadVideo(f"{path}: no video stream in it")
    stream.thread_type = "NONE"
    return stream


def packets_from(container, stream, start, end):
    """
    The packets that show `start` to `end` (excluded), in seconds, and what these need -> packets,
    and the two times in the stream's units.
    """
    zero = stream.start_time or 0
    low = zero + start / float(stream.time_base)
    high = zero + end / float(stream.time_base)

    # Jump to a key frame. A second early, as files are indexed by when packets are decoded, which
    # is a few frames before they are shown.
    if start > 1:
        container.seek(int(low - 1 / stream.time_base), stream=stream)

    def packets():
        for packet in container.demux(stream):
            if packet.size:
                yield packet
            # What is decoded later is shown later still.
            if packet.dts is not None and packet.dts >= high:
                return
    return packets(), low, high


def every_frame(clip):
    """All frames that decode, in the order they are shown; packets that do not are passed over."""
    path, start, end = segment_of(clip)
    with av.open(path) as container:
        stream = open_stream(container, path)
        packets, low, high = packets_from(container, stream, start, end)
        for packet in itertools.chain(packets, [None]):  # None drains the decoder
            # One damaged packet does not end the video.
            try:
                frames = stream.codec_context.decode(packet)
            except av.error.InvalidDataError:
                continue
            for frame in frames:
                if frame.pts is None or low <= frame.pts < high:
                    yield frame


def wanted_frames(codec, packets, wanted):
    """Decode as little as gives the sorted times `wanted` -> {timestamp: frame}, {} if damaged."""
    # Decoding can start at key frames only.
    keys = [k for k, packet in enumerate(packets) if packet.is_keyframe]
    targets = set(wanted)
    found = {}
    at = 0  # the next packet
    shown = -1 << 62  # the time of the newest frame that came out
    for pts in wanted:
        # Nothing before the last key frame is needed: jump there.
        start = max((k for k in keys if packets[k].pts <= pts), default=0)
        if start > at:
            codec.flush_buffers()
            at = start
            shown = -1 << 62

        # Feed packets until the wanted frame has come out; None, at the end, drains the decoder.
        while shown < pts and at <= len(packets):
            packet = packets[at] if at < len(packets) else None
            at += 1
            # Of the others, the decoder leaves out those that no frame refers to.
            needed = packet is None or packet.pts in targets
            codec.skip_frame = "DEFAULT" if needed else "NONREF"
            try:
                frames = codec.decode(packet)
            except av.error.InvalidDataError:
                return {}  # what refers to this frame will be wrong, too
            # Frames come out in the order they are shown, later than their packets go in.
            for frame in frames:
                shown = max(shown, frame.pts)
                if frame.pts in targets:
                    found[frame.pts] = frame
    return found


def chosen_frames(clip, choose):
    """The decoded frames of choose(number of frames); see read_clip, which tells the rules."""
    path, start, end = segment_of(clip)
    with av.open(path) as container:
        stream = open_stream(container, path)

        # The packets' timestamps are the table of frames, where they can be trusted. What an edit
        # list cuts away is there, but marked.
        packets, low, high = packets_from(container, stream, start, end)
        packets = list(packets)
        table = sorted(p.pts for p in packets if p.pts is not None and not p.is_discard
                       and low <= p.pts < high)
        known = any(name in container.format.name for name in ("mp4", "matroska"))
        stamped = all(p.pts is not None for p in packets)
        honest = known and stamped and len(set(table)) == len(table) > 0
        if honest:
            times = [table[i] for i in choose(len(table))]
            found = wanted_frames(stream.codec_context, packets, sorted(set(times)))
            if all(time in found for time in times):
                return [found[time] for time in times]

    # The slow way: decode everything, once to count, once to keep.
    good = [frame.pts for frame in every_frame(clip)]
    if not good:
        raise BadVideo(f"{clip}: no frames in it")

    # Known times: the nearest frame that decodes. Else the count is known only now.
    if honest:
        order = nearest_good(clip, times, good)
    else:
        order = choose(len(good))
    wanted = set(order)
    kept = {k: frame for k, frame in enumerate(every_frame(clip)) if k in wanted}
    return [kept[k] for k in order]


def length_in_seconds(path):
    """
    How long a video is, by its packets: headers lie. Without decoding, and without keeping them.
    """
    try:
        with av.open(path) as container:
            stream = open_stream(container, path)
            times = ((p.dts if p.pts is None else p.pts, p.duration or 0)
                     for p in container.demux(stream))
            ends = (time + duration for time, duration in times if time is not None)
            return float((max(ends, default=0) - (stream.start_time or 0)) * stream.time_base)
    except (av.error.FFmpegError, OSError) as error:
        raise BadVideo(f"{path}: {error.strerror or error}") from error


def nearest_good(clip, times, good):
    """For each of `times` the number of the nearest of the good frames; says how many are lost."""
    # A video with large holes would be another video.
    lost = sum(time not in good for time in times)
    if lost * 2 > len(times):
        raise BadVideo(f"{clip}: {lost} of {len(times)} frames do not decode")
    if lost:
        warnings.warn(f"{clip}: {lost} of {len(times)} frames do not decode, "
                      "the nearest good ones stand in")
    return [np.abs(np.array(good) - time).argmin() for time in times]


def resized_to(height, width, short_side):
    """The size with this short side, -> (height, width): rounded half up, as mmcv does."""
    if not short_side or min(height, width) == short_side:
        return height, width
    scale = short_side / min(height, width)
    return int(height * scale + 0.5), int(width * scale + 0.5)


def read_image(path, short_side=None):
    """A picture as a video of one frame -> uint8 (1, H, W, 3), upright."""
    from PIL import Image, ImageOps
    try:
        with Image.open(path) as image:
            # Cameras note the turn beside the pixels.
            image = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadVideo(f"{path}: {error}") from error

    # As the decoder resizes frames.
    height, width = resized_to(image.height, image.width, short_side)
    image = image.resize((width, height), Image.Resampling.BILINEAR)  # antialiased
    return torch.from_numpy(np.array(image))[None]


def read_clip(clip, choose, short_side=None):
    """
    Frames of a video, a part of it (see segment_of) or an image, which is a video of one frame.
    choose(num_frames) -> indices, in any order, repeats allowed.
    Returns uint8 (len(indices), H, W, 3), RGB, upright. short_side: resize to it, keeping the
    aspect (bilinear with antialiasing, in the decoder; the released pipeline's has none).

    mp4, mov, webm, mkv: the packets' timestamps are the table of frames, and only what is needed is
    decoded. Elsewhere (avi) timestamps lie: frames are counted by decoding them, then read.
    A frame that does not decode is replaced by the nearest that does, with a warning that counts.
    Raises BadVideo: no video, no frames, or more than half of the wanted ones do not decode.
    """
    # Opening a named pipe would wait for ever for somebody to write into it.
    path, _, _ = segment_of(clip)
    if os.path.exists(path) and not os.path.isfile(path):
        raise BadVideo(f"{path}: not a regular file")
    if path.lower().endswith(IMAGE_FILES):
        return read_image(path, short_side)[choose(1)]
    try:
        frames = chosen_frames(clip, choose)
    except (av.error.FFmpegError, OSError) as error:
        raise BadVideo(f"{path}: {error.strerror or error}") from error

    # A repeated frame is converted once.
    height, width = resized_to(frames[0].height, frames[0].width, short_side)
    reformatter = VideoReformatter()
    images = {}
    for frame in frames:
        if id(frame) not in images:
            rgb = reformatter.reformat(frame, width, height, "rgb24", interpolation="BILINEAR")
            turns = round(frame.rotation / 90)  # phones note the turn beside the pixels
            images[id(frame)] = np.rot90(rgb.to_ndarray(), turns)
    return torch.from_numpy(np.stack([images[id(frame)] for frame in frames]))


# --------------------------------------------------- sample: which frames make a clip

def sample_train(n, T, interval, rng):
    """One random frame from each of T equal segments of n. 300 frames, T 8: segments of 37."""
    # Enough frames: one of each segment. Fewer: sorted random ones, with repeats. Hardly any:
    # evenly spaced, with repeats.
    usable = max(n - interval + 1, 0)
    segment = usable // T
    if segment > 0:
        indices = np.arange(T) * segment + rng.integers(segment, size=T)
    elif n > max(T, interval):
        indices = np.sort(rng.integers(usable, size=T))
    else:
        indices = np.around(np.arange(T) * usable / T).astype(int)  # half to even, as numpy does
    return indices % n


def sample_val(n, T, interval):
    """
    The middle of each segment; the last interval - 1 frames are never used. 300 frames, T 8,
    interval 4: 18 55 92 129 167 204 241 278.
    """
    return (2 * np.arange(T) + 1) * max(n - interval + 1, 0) // (2 * T)


def sample_test(n, T, clips):
    """
    -> (clips, T). Clip v takes frame floor(i a + (v + .5) a / clips) of segment i, a = n / T: the
    clips interleave. 300 frames, T 8, 4 clips (a = 37.5):

        clip 0      4   42   79  117  154  192  229  267
        clip 1     14   51   89  126  164  201  239  276
        clip 2     23   60   98  135  173  210  248  285
        clip 3     32   70  107  145  182  220  257  295

    The released test draws its 4 clips at random, as in training, so that its score changes from
    run to run (+-0.3, its README says); ours does not.
    """
    i = np.arange(T)
    v = np.arange(clips)[:, None]
    return (2 * clips * i + 2 * v + 1) * n // (2 * clips * T)


def sample_tsn(n, T, rng=None, clip=0):
    """
    A random frame from each of T segments of n frames, which share their ends; without rng its
    middle or start (clip 0, 1). 50 frames, T 8, clip 1: 0 6 12 18 24 31 37 43.
    """
    # T + 1 edges, the first frame and the last one among them.
    edges = np.round((n - 1) / T * np.arange(T + 1)).astype(int)  # half to even
    start = edges[:-1]
    end = edges[1:]
    if rng is not None:
        return rng.integers(start, end + 1)
    return start if clip == 1 else (start + end) // 2


def sample_dense(n, T, interval, position):
    """
    T frames spread over a window of T * interval at `position`, 0 to 1, of where it fits. Indices
    past the end are clamped to n - 1. T 8, interval 4, position 0: 0 4 8 13 17 22 26 31.
    """
    # A window that is longer than the video starts at its first frame.
    start = position * max(n - T * interval, 0)
    return torch.linspace(start, start + T * interval - 1, T).long().clamp(max=n - 1).numpy()


def choose_frames(n, cfg, clips=1, rng=None):
    """Frame numbers of a video of n frames: (T,) in training (with rng), else (clips * T,)."""
    # Each way of choosing: in training at random, one clip to validate with, several to test with.
    # First, a frame of each of T segments.
    T = cfg["num_frames"]
    if cfg["sampling"] == "segments":
        if rng is not None:
            return sample_train(n, T, cfg["interval"], rng)
        if clips == 1:
            return sample_val(n, T, cfg["interval"])
        return sample_test(n, T, clips).reshape(-1)
    # Segments again, which share their ends.
    elif cfg["sampling"] == "tsn":
        if rng is not None:
            return sample_tsn(n, T, rng)
        if clips > 2:
            return sample_test(n, T, clips).reshape(-1)
        # As released: the first test clip has the middles, the second one the starts.
        return np.concatenate([sample_tsn(n, T, clip=v) for v in range(clips)])
    # A window of frames that follow each other.
    elif cfg["sampling"] == "dense":
        if rng is not None:
            return sample_dense(n, T, cfg["interval"], rng.random())
        if clips == 1:
            return sample_dense(n, T, cfg["interval"], 0.5)
        # As released: test clips start at v / clips, never at the end.
        return np.concatenate([sample_dense(n, T, cfg["interval"], v / clips)
                               for v in range(clips)])
    else:
        raise ValueError(f"sampling={cfg['sampling']!r}: use 'segments', 'tsn' or 'dense'")


def frame_order(T, word, i):
    """The order in which sample i shows its T frames, T numbers; see --frames."""
    if word == "normal":
        return np.arange(T)
    elif word == "reversed":
        return np.arange(T)[::-1].copy()
    elif word == "shuffled":
        return generator(SHUFFLE, i).permutation(T)
    elif word == "still":
        return np.full(T, T // 2)  # the middle one, repeated
    else:
        raise ValueError(f"frames={word!r}: use 'normal', 'reversed', 'shuffled' or 'still'")


# --------------------------------------------------- crop: which part of the frames

def random_box(height, width, area, rng):
    """Random resized crop -> (top, left, h, w): a share `area` of the frame, aspect 3/4 to 4/3."""
    # Draw an area and an aspect; ten tries to fit them into the frame.
    for _ in range(10):
        pixels = rng.uniform(*area) * height * width
        aspect = np.exp(rng.uniform(np.log(3/4), np.log(4/3)))
        h = round((pixels / aspect)**0.5)
        w = round((pixels * aspect)**0.5)
        if 0 < h <= height and 0 < w <= width:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w

    # None of ten fits: the largest square in the centre.
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def short_side_box(height, width, sides, rng):
    """A square -> (top, left, h, w): the short side is `sides` (low, high) times as long as it."""
    side = int(min(height, width) / rng.uniform(*sides))
    return int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1)), side, side


def multi_scale_box(height, width, rng):
    """
    Crop of TSN -> (top, left, h, w): sides of 1, .875, .75 or .66 of the short side, at most one
    step apart; in the middle, at an edge, in a corner or halfway to one. TSN makes sides within 2
    pixels of the network's input equal to it; that rule is left out (224 of 256 is 224 anyway).
    """
    # Two sides that are alike or one step apart.
    sides = [int(min(height, width) * scale) for scale in (1, .875, .75, .66)]
    shapes = [(h, w) for i, h in enumerate(sides) for w in sides[max(i-1, 0):i+2]]
    h, w = rng.choice(shapes).tolist()

    # 13 places, in quarters of what is left over.
    places = [(y, x) for y in range(5) for x in range(5) if y % 2 == x % 2]
    y, x = rng.choice(places).tolist()
    return y * ((height - h) // 4), x * ((width - w) // 4), h, w


def training_box(height, width, cfg, rng):
    """(top, left, h, w) of the crop that the settings ask for."""
    if cfg["crop"] == "none":
        side = min(height, width)  # the centre, as in validation
        return (height - side) // 2, (width - side) // 2, side, side
    elif cfg["crop"] == "area":
        return random_box(height, width, cfg["crop_range"], rng)
    elif cfg["crop"] == "short_side":
        return short_side_box(height, width, cfg["crop_range"], rng)
    elif cfg["crop"] == "multi_scale":
        return multi_scale_box(height, width, rng)
    else:
        raise ValueError(f"crop={cfg['crop']!r}: use 'none', 'area', 'short_side', 'multi_scale'")


def erase_box(height, width, rng, probability):
    """
    With this probability a box to set to 0 -> (top, left, h, w): 1/50 to 1/3 of the frame, h / w .3
    to 1/.3; h = w = 0 otherwise and where none fits in 10 tries. Source: arXiv:1708.04896, timm.
    """
    # As a crop is drawn, with a wider range of aspects.
    tries = 10 if rng.random() < probability else 0
    for _ in range(tries):
        pixels = rng.uniform(1/50, 1/3) * height * width
        aspect = np.exp(rng.uniform(np.log(0.3), np.log(1/0.3)))
        h = round((pixels * aspect)**0.5)
        w = round((pixels / aspect)**0.5)
        if h < height and w < width:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    return 0, 0, 0, 0


def crop_offsets(height, width, size, crops):
    """[(top, left)] of 1 crop in the centre, or of 3 along the longer side: start, middle, end."""
    # One of the two steps is 0: the short side is as long as the crop.
    step_y = (height - size) // 2
    step_x = (width - size) // 2
    if crops == 1:
        return [(step_y, step_x)]
    return [(k * step_y, k * step_x) for k in range(3)]


def resize(clip, size):
    """uint8 (T, H, W, 3) -> (T, size, size, 3), bilinear, no antialiasing, as released (cv2)."""
    if clip.shape[1:3] == (size, size):
        return clip
    clip = F.interpolate(clip.permute(0, 3, 1, 2), (size, size), mode="bilinear")
    return clip.permute(0, 2, 3, 1)


# AutoAugment, policy "v0" as in timm: pairs of (operation, probability, level out of 10). Some do
# nothing, as released: probability 0, Solarize at 10. Posterize at 2 keeps 0 bits: a black clip.
AUTO_AUGMENT = [
    [("Equalize", 0.8, 1), ("ShearY", 0.8, 4)],
    [("Color", 0.4, 9), ("Equalize", 0.6, 3)],
    [("Color", 0.4, 1), ("Rotate", 0.6, 8)],
    [("Solarize", 0.8, 3), ("Equalize", 0.4, 7)],
    [("Solarize", 0.4, 2), ("Solarize", 0.6, 2)],
    [("Color", 0.2, 0), ("Equalize", 0.8, 8)],
    [("Equalize", 0.4, 8), ("SolarizeAdd", 0.8, 3)],
    [("ShearX", 0.2, 9), ("Rotate", 0.6, 8)],
    [("Color", 0.6, 1), ("Equalize", 1.0, 2)],
    [("Invert", 0.4, 9), ("Rotate", 0.6, 0)],
    [("Equalize", 1.0, 9), ("ShearY", 0.6, 3)],
    [("Color", 0.4, 7), ("Equalize", 0.6, 0)],
    [("Posterize", 0.4, 6), ("AutoContrast", 0.4, 7)],
    [("Solarize", 0.6, 8), ("Color", 0.6, 9)],
    [("Solarize", 0.2, 4), ("Rotate", 0.8, 9)],
    [("Rotate", 1.0, 7), ("TranslateYRel", 0.8, 9)],
    [("ShearX", 0.0, 0), ("Solarize", 0.8, 4)],
    [("ShearY", 0.8, 0), ("Color", 0.6, 4)],
    [("Color", 1.0, 0), ("Rotate", 0.6, 2)],
    [("Equalize", 0.8, 4), ("Equalize", 0.0, 8)],
    [("Equalize", 1.0, 4), ("AutoContrast", 0.6, 2)],
    [("ShearY", 0.4, 7), ("SolarizeAdd", 0.6, 7)],
    [("Posterize", 0.8, 2), ("Solarize", 0.6, 10)],
    [("Solarize", 0.6, 8), ("Equalize", 0.6, 1)],
    [("Color", 0.8, 6), ("Rotate", 0.4, 5)],
]


def augment(image, name, level, sign):
    """One operation of AutoAugment on a PIL image, with timm's arguments; level 0..10, sign +-1."""
    from PIL import Image, ImageEnhance, ImageOps

    # What changes colours.
    share = level / 10
    if name == "Equalize":
        return ImageOps.equalize(image)
    elif name == "AutoContrast":
        return ImageOps.autocontrast(image)
    elif name == "Invert":
        return ImageOps.invert(image)
    elif name == "Posterize":
        # Keeps the highest bits; Pillow's own operator refuses to keep none.
        mask = 256 - (1 << (8 - int(4 * share)))
        return image.point([i & mask for i in range(256)] * 3)
    elif name == "Solarize":
        return ImageOps.solarize(image, int(256 * share))  # inverts what is brighter
    elif name == "SolarizeAdd":
        table = [min(255, i + int(110 * share)) if i < 128 else i for i in range(256)]
        return image.point(table * 3)
    elif name == "Color":
        return ImageEnhance.Color(image).enhance(0.1 + 1.8 * share)

    # What moves pixels: (x, y) gets what was at (ax + by + c, dx + ey + f), grey from outside.
    # timm interpolates bicubically half of the time.
    if name == "Rotate":
        return image.rotate(30 * sign * share, Image.Resampling.BILINEAR, fillcolor=(128, 128, 128))
    elif name == "ShearX":
        matrix = (1, 0.3 * sign * share, 0, 0, 1, 0)
    elif name == "ShearY":
        matrix = (1, 0, 0, 0.3 * sign * share, 1, 0)
    elif name == "TranslateYRel":
        matrix = (1, 0, 0, 0, 1, 0.45 * sign * share * image.height)
    else:
        raise ValueError(f"AutoAugment has no operation {name!r}")
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR,
                           fillcolor=(128, 128, 128))


def auto_augment(clip, rng):
    """AutoAugment (arXiv:1805.09501) on uint8 (T, H, W, 3): 1 of the 25 pairs, all frames alike."""
    from PIL import Image
    images = [Image.fromarray(frame) for frame in clip.numpy()]

    # Both operations of a pair are drawn for, whether they are applied or not.
    for name, probability, level in AUTO_AUGMENT[rng.integers(len(AUTO_AUGMENT))]:
        apply = rng.random() < probability
        sign = -1 if rng.random() < 0.5 else 1
        if apply:
            images = [augment(image, name, level, sign) for image in images]
    return torch.from_numpy(np.stack([np.asarray(image) for image in images]))


# --------------------------------------------------- a sample, and how samples become batches

def parse_views(views):
    """'4x3' -> (4, 3): clips along time x crops along the longer side."""
    clips, _, crops = str(views).partition("x")
    if not (clips.isdigit() and int(clips) > 0 and crops in ("1", "3")):
        raise ValueError(f"views {views!r}: write CLIPSxCROPS with 1 or 3 crops, as in 4x3 or 1x1")
    return int(clips), int(crops)


class VideoSet(torch.utils.data.Dataset):
    """
    The samples of one split, indexed with (epoch, i).

    clips     toy: uint8 (n, T, H, W, 3);   else a list of n paths
    labels    n class indices;              classes: their names
    cfg       the settings: num_frames, image_size, seed, and those at the top of this file
    views     None: training samples;       else CLIPSxCROPS: 1x1 is the released validation

    A sample is a dict: clip, uint8 (T, S, S, 3) in training and (views, T, S, S, 3) otherwise, S =
    image_size; label; index; bad, '' or why this video cannot be used; in training also flip, grey,
    colour (T, 4) and erase (4,), for `prepare`. A bad video is replaced in training, by a sample
    drawn from the same generator, and never in evaluation: there it stays, as zeros.
    """

    def __init__(self, clips, labels, classes, cfg, views=None):
        self.clips = clips
        self.labels = labels
        self.classes = classes
        self.cfg = cfg
        self.views = parse_views(views) if views else None

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, key):
        epoch, i = key
        if self.views:
            return self.evaluation_sample(i)
        return self.training_sample(i, generator(SAMPLE, self.cfg["seed"], epoch, i))

    def read(self, i, short_side, clips=1, rng=None):
        """The sampled frames of video i, uint8 (clips * T, H, W, 3)."""
        # From memory, or from a file.
        if torch.is_tensor(self.clips):
            return self.clips[i][choose_frames(self.clips.shape[1], self.cfg, clips, rng)]
        return read_clip(self.clips[i], lambda n: choose_frames(n, self.cfg, clips, rng),
                         short_side)

    def read_or_replace(self, i, rng):
        """-> frames, the sample that they are of, and '' or why it is not sample i."""
        # The replacements are drawn too, so that epoch 3 has the same ones whenever it is run.
        bad = ""
        j = i
        short_side = int(self.cfg["margin"] * self.cfg["image_size"])
        for _ in range(10):
            try:
                return self.read(j, short_side, rng=rng), j, bad
            except BadVideo as error:
                bad = bad or str(error)
                j = int(rng.integers(len(self)))
        raise BadVideo(f"10 unusable videos in a row, the first is {bad}")

    def training_sample(self, i, rng):
        cfg = self.cfg
        size = cfg["image_size"]

        # T frames of one size.
        frames, j, bad = self.read_or_replace(i, rng)
        if cfg["auto_augment"]:
            frames = auto_augment(frames, rng)  # as released, before the crop

        # One crop for all frames, so that what stands still stays where it is; then the size that
        # the network wants.
        top, left, h, w = training_box(*frames.shape[1:3], cfg, rng)
        clip = resize(frames[:, top:top+h, left:left+w], size)

        # Brightness, contrast, saturation, hue: factors for each frame, that change nothing or do.
        T = len(clip)
        colour = np.tile((1, 1, 1, 0), (T, 1))
        if rng.random() < cfg["jitter"]:
            rows = T if cfg["jitter_per_frame"] else 1
            drawn = rng.uniform((.6, .6, .8, -.1), (1.4, 1.4, 1.2, .1), (rows, 4))
            colour = np.broadcast_to(drawn, (T, 4))
        # The device does the work; here it is only drawn.
        return dict(
            clip=clip, label=self.labels[j], index=i, bad=bad,
            colour=torch.tensor(colour, dtype=torch.float32),
            flip=rng.random() < cfg["flip"],
            grey=rng.random() < cfg["grey"],
            erase=torch.tensor(erase_box(size, size, rng, cfg["erase"])),
        )

    def evaluation_sample(self, i):
        clips, crops = self.views
        T = self.cfg["num_frames"]
        size = self.cfg["image_size"]
        bad = ""

        # As released: three crops come from a frame with short side 224, the one crop from 256.
        short_side = size if crops == 3 else int(self.cfg["margin"] * size)
        try:
            frames = self.read(i, short_side, clips)  # one decode for all views
        except BadVideo as error:
            frames = torch.zeros(clips * T, size, size, 3, dtype=torch.uint8)
            bad = str(error)

        # In another order, to see what the network knows of time.
        frames = frames.unflatten(0, (clips, T))  # (clips, T, H, W, 3)
        frames = frames[:, frame_order(T, self.cfg["frames"], i)]

        # All clips of the first crop, then all of the next.
        views = []
        for top, left in crop_offsets(*frames.shape[2:4], size, crops):
            views.append(frames[:, :, top:top+size, left:left+size])
        return dict(clip=torch.cat(views), label=self.labels[i], index=i, bad=bad)


def steps_in_epoch(n, batch_size, accumulate, world):
    """
    -> batches of each process in an epoch of n samples, and optimizer steps. 100, 8, 4, 1: 12, 3.
    """
    batches = n // (batch_size * world)
    return batches, -(-batches // accumulate)  # rounded up: the last step may have fewer batches


def step_keys(n, cfg, first, last):
    """
    Yields, for each step from `first` to `last` - 1, this process's batches: lists of (epoch, i).
    Every epoch is a permutation of the n samples, cut into global batches of world * batch_size;
    each process takes its part. What does not fill a batch is left out: another rest in every
    epoch.
    """
    size = cfg["batch_size"]
    per_epoch, steps = steps_in_epoch(n, size, cfg["accumulate"], cfg["world"])
    for step in range(first, last):
        # A new epoch has a new permutation.
        epoch, j = divmod(step, steps)
        if step == first or j == 0:
            order = generator(ORDER, cfg["seed"], epoch).permutation(n)

        # The last step of an epoch has what is left of it.
        batches = []
        for k in range(j * cfg["accumulate"], min((j + 1) * cfg["accumulate"], per_epoch)):
            at = (k * cfg["world"] + cfg["rank"]) * size
            batches.append([(epoch, int(i)) for i in order[at:at+size]])
        yield batches


def start_worker(worker):
    """In a loader's process: Ctrl-C is for the loop, which decides when to end."""
    # The parent may end first, killed or done: that is no news.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = without_the_other_side


def without_the_other_side(kind, error, trace):
    """The thread that hands tensors over prints no traceback if the other side is gone."""
    if not issubclass(kind, (OSError, EOFError)):
        sys.__excepthook__(kind, error, trace)


def loader(dataset, batches, cfg):
    """A DataLoader over an iterable of lists of (epoch, i), with cfg["workers"] processes."""
    return torch.utils.data.DataLoader(
        dataset, batch_sampler=batches, num_workers=cfg["workers"],
        pin_memory=cfg["device"].startswith("cuda"),
        worker_init_fn=start_worker)


def stream(dataset, cfg, first, last):
    """Yields, for each step from `first` to `last` - 1, the list of its batches, loaded."""
    # One loader for the whole run: its processes work ahead, over the ends of epochs.
    n = len(dataset)
    keys = (batch for step in step_keys(n, cfg, first, last) for batch in step)
    batches = iter(loader(dataset, keys, cfg))

    # Hand the batches out, as many as belong to a step.
    for step in step_keys(n, cfg, first, last):
        yield [next(batches) for _ in step]


# --------------------------------------------------- colour: on the device, a batch at a time

def grey_of(x):
    """(B, 3, ...) -> (B, 1, ...): the luma of ITU-R 601, as PIL and torchvision take it."""
    return 0.299 * x[:, 0:1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:3]


def colour_jitter(x, colour):
    """
    Brightness, contrast, saturation, hue, in this order, of every frame: x float (B, 3, T, H, W) in
    0..1, colour (B, T, 4): three factors, and a turn of the hue (1 = once round the colour circle).
    """
    factors = colour[:, None, :, None, None]  # (B, 1, T, 1, 1, 4)
    brightness, contrast, saturation, hue = factors.unbind(-1)

    # Brightness: a factor.
    x = (x * brightness).clamp(0, 1)

    # Contrast: towards the mean grey of the frame. Saturation: towards the grey of the pixel.
    x = torch.lerp(grey_of(x).mean((-2, -1), keepdim=True), x, contrast).clamp(0, 1)
    x = torch.lerp(grey_of(x), x, saturation).clamp(0, 1)

    # RGB -> hue, in sixths of the circle. Grey has no hue: any will do.
    value = x.amax(1, keepdim=True)
    chroma = value - x.amin(1, keepdim=True)
    r, g, b = x.split(1, dim=1)
    c = chroma.clamp(min=1e-8)
    sixth = torch.where(value == r, (g - b) / c,
                        torch.where(value == g, (b - r) / c + 2, (r - g) / c + 4))

    # Turn it, and go back: HSV -> RGB, one formula for all three colours.
    offset = torch.tensor([5., 3., 1.], device=x.device).view(1, 3, 1, 1, 1)
    k = (offset + sixth + 6 * hue) % 6
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)


def per_clip(flags, device):
    """(B,) -> (B, 1, 1, 1, 1): one flag for all of a clip."""
    return flags.to(device)[:, None, None, None, None]


def blank(x, boxes):
    """x (B, 3, T, H, W): sets the box (top, left, h, w) of each clip to 0, in all frames."""
    # Is a pixel in the box of its clip? A box of height 0 has none.
    top, left, h, w = boxes[:, :, None, None].unbind(1)  # (B, 1, 1) each
    row = torch.arange(x.shape[-2], device=x.device)[:, None]
    column = torch.arange(x.shape[-1], device=x.device)
    inside = (row >= top) & (row < top + h) & (column >= left) & (column < left + w)  # (B, H, W)
    return x.masked_fill(inside[:, None, None], 0)


def prepare(batch, cfg):
    """
    Moves a batch to the device, augments and normalises it there: uint8 (B, T, S, S, 3), or
    (videos, views, T, S, S, 3), whose views become clips -> float (B, 3, T, S, S).
    """
    # Send bytes, convert to float on the device.
    device = cfg["device"]
    x = batch["clip"].flatten(0, -5)  # (B, T, S, S, 3)
    x = x.to(device, non_blocking=True).permute(0, 4, 1, 2, 3).float() / 255

    # Training samples bring what was drawn for them.
    if "flip" in batch and cfg["flip"]:
        x = torch.where(per_clip(batch["flip"], device), x.flip(-1), x)
    if "colour" in batch and cfg["jitter"]:
        x = colour_jitter(x, batch["colour"].to(device))
    if "grey" in batch and cfg["grey"]:
        x = torch.where(per_clip(batch["grey"], device), grey_of(x), x)

    # Normalise; a blanked box has the mean colour after it.
    mean = torch.tensor(cfg["mean"], device=device).view(1, 3, 1, 1, 1)
    std = torch.tensor(cfg["std"], device=device).view(1, 3, 1, 1, 1)
    x = (x - mean) / std
    if "erase" in batch and cfg["erase"]:
        x = blank(x, batch["erase"].to(device))

    # What changes from frame to frame (arXiv:1608.00859, RGB difference): a background that stands
    # still is gone. A small network trained on few clips learns backgrounds by heart otherwise.
    if cfg["input"] == "diff":
        x = 2 * (x - x.roll(1, dims=2))
        x[:, :, 0] = 0  # before the first frame there is none
    return x


# --------------------------------------------------- mix: targets, and two clips make one

def mix(x, labels, num_classes, rng, mixup=0.0, cutmix=0.0, switch=0.5, smoothing=0.0):
    """
    Smoothed targets, then mixup or CutMix with a permutation of the batch, one lambda for all.
    x (B, 3, T, H, W), labels (B,) -> x, targets (B, num_classes). mixup, cutmix: alpha of the Beta,
    0 = off; switch: probability of CutMix if both are on. Source: arXiv:1710.09412, 1905.04899.
    """
    # Smoothed targets: a share for all classes alike, the rest for the right one.
    targets = torch.full((len(x), num_classes), smoothing / num_classes, device=x.device)
    targets.scatter_(1, labels[:, None], 1 - smoothing + smoothing / num_classes)
    if not mixup and not cutmix:
        return x, targets

    # lam is the share that is left of a clip; its partner has the rest.
    partner = torch.from_numpy(rng.permutation(len(x))).to(x.device)
    if cutmix and (not mixup or rng.random() < switch):
        top, bottom, left, right = cutmix_box(*x.shape[-2:], cutmix, rng)
        x = x.clone()
        x[..., top:bottom, left:right] = x[partner][..., top:bottom, left:right]
        lam = 1 - (bottom - top) * (right - left) / (x.shape[-2] * x.shape[-1])
    else:
        lam = rng.beta(mixup, mixup)
        x = lam * x + (1 - lam) * x[partner]
    return x, lam * targets + (1 - lam) * targets[partner]


def cutmix_box(H, W, alpha, rng):
    """-> (top, bottom, left, right), the same in every frame: sides sqrt(1 - lambda), clipped."""
    # A centre anywhere: what would stick out is cut off, and counted as it is.
    side = (1 - rng.beta(alpha, alpha))**0.5  # share of each side
    y = rng.integers(H)
    x = rng.integers(W)
    half_h = int(H * side) // 2
    half_w = int(W * side) // 2
    return max(y - half_h, 0), min(y + half_h, H), max(x - half_w, 0), min(x + half_w, W)


# --------------------------------------------------- the toy data

TOY_CLASSES = ["left", "right", "up", "down", "clockwise", "anticlockwise", "grow", "shrink"]


def toy_clips(n, seed, num_frames=8, size=64):
    """
    n clips of a moving L -> uint8 (n, T, S, S, 3), labels (n,), masks of the L bool (n, T, S, S).
    Lengths in units of half the canvas, [-1, 1] each way, y down; time from -.5 to .5. Every motion
    is odd in time: the reversed clip is a clip of the partner class, c ^ 1, with the same place,
    size, angle, speed and colours. The ranges are what makes it learnable: with wider ranges of
    colour, smaller shapes or slower turns a small network stays at chance. 3 ms a clip.
    """
    g = torch.Generator().manual_seed(seed)

    def uniform(low, high, *shape):
        return torch.rand(n, *shape, generator=g) * (high - low) + low

    # Even classes are odd ones backwards.
    labels = torch.arange(n) % 8
    direction = (labels % 2 * 2 - 1)[:, None]
    t = torch.linspace(-0.5, 0.5, num_frames) * direction  # (n, T)
    kind = labels[:, None] // 2  # 0 left or right, 1 up or down, 2 turns, 3 grows or shrinks

    # Where the L is in each frame, how it is turned, how large it is: (n, T) each.
    x = uniform(-.3, .3, 1) + (kind == 0) * t * uniform(.5, .9, 1)
    y = uniform(-.3, .3, 1) + (kind == 1) * t * uniform(.5, .9, 1)
    angle = uniform(0, 2 * torch.pi, 1) - (kind == 2) * t * uniform(1.3, 2.34, 1)  # radians
    radius = uniform(.38, .5, 1) * torch.exp((kind == 3) * -t * uniform(.65, 1.17, 1))
    ground = uniform(0, .3, 3)
    colour = uniform(.3, 1, 3)

    # 32 clips at a time fit the cache.
    clips = torch.empty(n, num_frames, size, size, 3, dtype=torch.uint8)
    masks = torch.empty(n, num_frames, size, size, dtype=torch.bool)
    for i in range(0, n, 32):
        # The L over the ground, and noise over both.
        part = slice(i, i + 32)
        alpha = draw_l(x[part], y[part], angle[part], radius[part], size)
        low = ground[part, None, None, None]
        high = colour[part, None, None, None]
        image = low + alpha[..., None] * (high - low)
        image += 0.05 * torch.randn(image.shape, generator=g)
        clips[part] = (image * 255 + 0.5).clamp(0, 255).to(torch.uint8)
        masks[part] = alpha > 0.5
    return clips, labels, masks


def draw_l(x, y, angle, radius, size):
    """
    An L at (x, y), turned and scaled, (n, T) each -> how much of each pixel it covers (n, T, S, S).
    """
    # Where each pixel is, seen from the L.
    grid = (torch.arange(size) + 0.5) * 2 / size - 1
    dx = grid - x[..., None, None]  # (n, T, 1, S)
    dy = grid[:, None] - y[..., None, None]  # (n, T, S, 1)

    # In the frame of the L: u to its right, v down.
    cos = angle.cos()[..., None, None]
    sin = angle.sin()[..., None, None]
    r = radius[..., None, None]
    u = (dx * cos + dy * sin) / r
    v = (dy * cos - dx * sin) / r

    # Distances to its foot and its stem, negative inside; one pixel of anti-aliasing.
    foot = torch.maximum(u.abs() - 1, (v - .6).abs() - .35)
    stem = torch.maximum((u - .65).abs() - .35, v.abs() - .95)
    return (0.5 - torch.minimum(foot, stem) * r * size / 2).clamp(0, 1)


FAR_CLASSES = ["0 degrees", "90 degrees", "180 degrees", "270 degrees"]


def far_clips(n, seed, num_frames=8, size=32, together=1):
    """
    n clips -> uint8 (n, T, S, S, 3), labels (n,): an L near the left edge in the first frame, one
    near the right edge in the last, and nothing but noise between. The class is how the second is
    turned against the first. together: so many clips in a row share their noise; 16 have each of 4
    turns of the first with each of the second, so that whoever sees only one of the two, or only
    what is between, is right in exactly one of four. Places and colours do not vary: where they
    did, no network that was tried left chance, from nothing and with 8 frames.
    """
    g = torch.Generator().manual_seed(seed)

    # All 16 pairs of turns, one after the other.
    first = torch.arange(n) // 4 % 4
    second = torch.arange(n) % 4
    labels = (second - first) % 4
    turns = torch.stack([first, second], 1) * torch.pi / 2  # (n, 2)

    # Left and right; units as in toy_clips.
    x = torch.tensor([[-.6, .6]]).expand(n, 2)
    y = torch.zeros(n, 2)
    alpha = draw_l(x, y, turns, torch.full((n, 2), .35), size)[..., None]  # (n, 2, S, S, 1)

    # Dark ground, a bright L at both ends, noise everywhere.
    clips = torch.empty(n, num_frames, size, size, 3, dtype=torch.uint8)
    for i in range(0, n, together):
        own = slice(i, i + together)
        image = torch.full((together, num_frames, size, size, 3), 0.1)
        image[:, [0, -1]] += 0.8 * alpha[own]
        image += 0.05 * torch.randn(image.shape[1:], generator=g)  # the same for all of them
        clips[own] = (image * 255 + 0.5).clamp(0, 255).to(torch.uint8)
    return clips, labels


@functools.lru_cache(maxsize=6)
def far_split(split, seed, num_frames=8, size=32):
    """-> clips, labels of toy_far. 'train': 2048, 'val': 32 times 16 that differ in turns alone."""
    if split == "train":
        return far_clips(2048, torch_seed(generator(TOY, seed, 2)), num_frames, size)
    return far_clips(512, torch_seed(generator(TOY, seed, 3)), num_frames, size, together=16)


@functools.lru_cache(maxsize=6)
def toy_split(split, seed, num_frames=8, size=64):
    """-> clips, labels. 'train': 2048. 'val': 256 others, then their exact reversals, noise too."""
    # Validation has each clip and its reversal, whose labels differ. A network that is blind to
    # time gives both the same answer: at most half of its answers are right.
    if split == "train":
        return toy_clips(2048, torch_seed(generator(TOY, seed, 0)), num_frames, size)[:2]
    clips, labels, _ = toy_clips(256, torch_seed(generator(TOY, seed, 1)), num_frames, size)
    return torch.cat([clips, clips.flip(1)]), torch.cat([labels, labels ^ 1])


def toy_masks(n, seed, num_frames=8, size=64):
    """n of the toy's clips that are not trained on, with masks of the L: see toy_clips."""
    return toy_clips(n, torch_seed(generator(TOY, seed, 1)), num_frames, size)


def make_toy(folder, seed=0):
    """The toy data as mp4 files, DIR/{train,val}/CLASS/00000.mp4: H.264, 8 frames a second."""
    for split in ("train", "val"):
        clips, labels = toy_split(split, seed)
        for name in TOY_CLASSES:
            os.makedirs(os.path.join(folder, split, name), exist_ok=True)

        # crf 12: hardly any loss.
        for i, (clip, label) in enumerate(zip(clips.numpy(), labels)):
            path = os.path.join(folder, split, TOY_CLASSES[label], f"{i:05d}.mp4")
            with av.open(path, "w") as container:
                video = container.add_stream("libx264", rate=8, options={"crf": "12"})
                video.width = 64
                video.height = 64
                video.pix_fmt = "yuv420p"
                for image in clip:
                    container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
                container.mux(video.encode())
        print(f"{folder}/{split}: {len(clips)} videos in {len(TOY_CLASSES)} class folders")


# --------------------------------------------------- a smaller copy of a data set

def copy_smaller(job):
    """
    Writes a video or an image again with its short side at `side` pixels (never enlarged): H.264
    with a key frame every 12 frames, so that any frame is near one. -> '' or what is wrong with it.
    job: (source, target, side), one argument, as pools of processes want it.
    """
    source, target, side = job

    # Written beside and renamed: a file with its final name is whole, and a second call skips it.
    # Names with ._ in front are never taken for videos.
    folder, name = os.path.split(target)
    unfinished = os.path.join(folder, f"._{os.getpid()}_{name}")
    os.makedirs(folder, exist_ok=True)

    # A file that cannot be read does not end the others.
    try:
        if source.lower().endswith(IMAGE_FILES):
            copy_image(source, unfinished, side)
            lost = 0
        else:
            lost = copy_video(source, unfinished, side)
        os.replace(unfinished, target)
    except (BadVideo, av.error.FFmpegError, OSError) as error:
        if os.path.exists(unfinished):
            os.remove(unfinished)
        known = isinstance(error, BadVideo)
        return str(error) if known else f"{source}: {error.strerror or error}"
    return f"{source}: {lost} frames do not decode, the others were copied" if lost > 0 else ""


def copy_image(source, target, side):
    """A picture, upright, with its short side at `side` pixels or less."""
    # Never larger than it was.
    from PIL import Image
    image = read_image(source)[0]
    height, width = resized_to(*image.shape[:2], min(side, *image.shape[:2]))
    image = Image.fromarray(image.numpy()).resize((width, height), Image.Resampling.BILINEAR)
    image.save(target, quality=95)


def copy_video(source, target, side):
    """A video, frame by frame, each at its time -> how many frames do not decode."""
    # Times are kept where they can be trusted; elsewhere (avi) frames are counted.
    with av.open(source) as container:
        stream = open_stream(container, source)
        timed = any(name in container.format.name for name in ("mp4", "matroska"))
        rate = stream.average_rate or 30
        unit = stream.time_base if timed else 1 / fractions.Fraction(rate)
        listed = sum(p.size > 0 and not p.is_discard for p in container.demux(stream))

    # The first frame tells the size. The colours of 4:2:0 have half of it: sides are even.
    frames = every_frame(source)
    first = next(frames, None)
    if first is None:
        raise BadVideo(f"{source}: no frames in it")
    size = resized_to(first.height, first.width, min(side, first.height, first.width))
    height, width = (max(2, length // 2 * 2) for length in size)

    # Frame after frame. The note about the turn goes along.
    reformatter = VideoReformatter()
    written = 0
    with av.open(target, "w") as container:
        video = container.add_stream("libx264", rate=rate, width=width, height=height,
                                     pix_fmt="yuv420p", time_base=unit,
                                     options={"crf": "18", "g": "12", "preset": "fast",
                                              "tune": "fastdecode"})
        video.codec_context.thread_count = 1  # files are the parallelism
        if first.rotation:
            video.set_display_rotation(first.rotation)
        # Scaled, in the colours that a file without notes is taken for, with its time, encoded; a
        # packet comes out some frames later.
        for frame in itertools.chain([first], frames):
            small = reformatter.reformat(frame, width, height, "yuv420p", interpolation="BILINEAR",
                                         dst_colorspace="ITU601", dst_color_range="MPEG")
            small.pts = frame.pts if timed else written
            small.time_base = unit
            container.mux(video.encode(small))
            written += 1
        container.mux(video.encode())
    return listed - written if timed else 0


def smaller_name(path):
    """'a.avi' -> 'a.mp4', what a copy is called; images keep their name."""
    stem, kind = os.path.splitext(path)
    return path if kind.lower() in IMAGE_FILES else stem + ".mp4"


def copy_all(data, root, side, out):
    """
    A data set again, smaller, in the same layout: data.py --data X --root R --resize 128 OUT. What
    is there already is not made again.
    """
    # Not into itself: a copy inside of the original would be taken for a part of it.
    root = root_of(data, root)
    if not 16 <= side <= 4096:
        raise ValueError(f"--resize {side}: must be from 16 to 4096 pixels")
    if is_inside(os.path.join(out, "x"), root) or is_inside(os.path.join(root, "x"), out):
        raise ValueError(f"--resize {side} {out}: choose a folder outside of {root}")

    # What there is, and what it will be called.
    sources = videos_below(root)
    targets = [os.path.join(out, smaller_name(os.path.relpath(path, root))) for path in sources]
    twice = [name for name, n in collections.Counter(targets).items() if n > 1]
    if twice:
        raise ValueError(f"{len(twice)} copies would have the name of another, {twice[0]} for one: "
                         "rename or remove one of the two videos")
    if not sources:
        raise FileNotFoundError(NO_DATA.format(data=data, root=root, **other_names("train")))

    # Lists first: they are quick.
    copy_lists(data, root, out)

    # In as many processes as there are cores. Ctrl-C ends them with this one; what they have
    # finished stays.
    todo = [(source, target, side) for source, target in zip(sources, targets)
            if not os.path.exists(target)]
    print(f"{root}: {len(sources)} videos, {len(sources) - len(todo)} are in {out} already")
    try:
        with multiprocessing.Pool(os.cpu_count(), start_worker, (0,)) as pool:
            done = pool.imap_unordered(copy_smaller, todo)
            problems = list(tqdm(done, total=len(todo), unit="video", disable=None))
    finally:
        remove_unfinished(out)

    # What is wrong comes last, where it is seen.
    problems = sorted(problem for problem in problems if problem)
    for problem in problems:
        print(problem)
    print(f"{out}: {len(sources)} videos, {len(problems)} with problems")


def remove_unfinished(out):
    """What a copy that was stopped leaves: ._PROCESS_NAME."""
    # Those of this call, and of earlier ones that were killed.
    for where, _, names in os.walk(out):
        for name in names:
            if re.match(r"\._\d+_", name):
                os.remove(os.path.join(where, name))


def is_inside(path, folder):
    """Is the file in this folder, or below?"""
    return os.path.abspath(path).startswith(os.path.abspath(folder) + os.sep)


def copy_lists(data, root, out):
    """Copies lists, tables and class names of a data set; what they name ends in .mp4 then."""
    # Those below the root, and those beside a list file that is elsewhere.
    endings = "|".join(kind[1:] for kind in VIDEO_FILES)
    ending = re.compile(rb"(?im)\.(" + endings.encode() + rb")(?=[\s,\"#]|$)")
    start = os.path.abspath(root).encode() + os.sep.encode()
    folders = [where for where, _, _ in os.walk(root, followlinks=True)]
    if os.path.isfile(data) and not is_inside(data, root):
        folders.append(os.path.dirname(data) or ".")
    for folder in folders:
        for name in os.listdir(folder):
            path = os.path.join(folder, name)
            if not name.endswith((".txt", ".csv", ".json")):
                continue

            # At the same place; bytes, so that line ends and letters stay as they are.
            place = os.path.relpath(folder, root) if is_inside(path, root) else ""
            os.makedirs(os.path.join(out, place), exist_ok=True)
            with open(path, "rb") as file:
                text = file.read()

            # New endings; and paths that began at the top of the disk begin at the new root.
            with open(os.path.join(out, place, name), "wb") as file:
                file.write(ending.sub(b".mp4", text.replace(start, b"")))


def clips_per_second(dataset, seconds=5):
    """How many training clips one process reads a second."""
    # Other clips at every measurement would be another number: in the order of epoch 0.
    order = generator(ORDER, 0, 0).permutation(len(dataset))
    start = time.perf_counter()
    read = 0

    # Again from the first one, if there are few.
    while time.perf_counter() - start < seconds:
        dataset[0, int(order[read % len(order)])]
        read += 1
    return read / (time.perf_counter() - start)


# --------------------------------------------------- looking at it

def contact_sheet(dataset, path, rows=8):
    """Draws training clips as the network gets them, one a row, labelled; each class once first."""
    try:
        import matplotlib
    except ImportError:
        sys.exit("--show draws with matplotlib: pip install matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    # The first clip of each class, then the second of each, ...
    seen = collections.Counter()
    turn = []
    for label in dataset.labels:
        turn.append(seen[label])
        seen[label] += 1
    chosen = np.lexsort((dataset.labels, turn))[:rows]
    batch = torch.utils.data.default_collate([dataset[0, int(i)] for i in chosen])

    # As the network gets them, but for the normalising; the frames of a clip side by side.
    as_is = dict(dataset.cfg, mean=(0., 0., 0.), std=(1., 1., 1.))
    clips = prepare(batch, as_is).clamp(0, 1)  # (B, 3, T, S, S)
    strips = clips.permute(0, 3, 2, 4, 1).flatten(2, 3)  # (B, S, T*S, 3)
    T = clips.shape[2]

    # One row for each clip, its class at the left.
    figure, axes = plt.subplots(len(chosen), 1, figsize=(T, 1.05 * len(chosen)), squeeze=False)
    for axis, strip, label in zip(axes[:, 0], strips, batch["label"]):
        axis.imshow(strip)
        axis.set(xticks=[], yticks=[])
        axis.set_ylabel(dataset.classes[label], rotation=0, ha="right", va="center")
    figure.subplots_adjust(hspace=0.05)
    figure.savefig(path, dpi=80, bbox_inches="tight")
    size = clips.shape[-1]
    print(f"{path}: {len(chosen)} clips, {T} frames of {size} x {size} pixels")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="Check a data set, draw what the network sees, write the toy data as mp4.")
    parser.add_argument("--data", default="toy", help=f"{', '.join(TOYS + NAMED)}, a folder, "
                        "or a list file (default toy)")
    parser.add_argument("--root", default="", help="where the videos are (default data/NAME)")
    parser.add_argument("--split", default="ready", choices=SETTINGS["split"][1],
                        help="as they are, or made here, by the name before the last _, or by file")
    parser.add_argument("--image_size", type=int, default=64, help="of --show and --speed")
    parser.add_argument("--show", metavar="PNG",
                        help="draw training clips as the network gets them")
    parser.add_argument("--speed", action="store_true", help="read training clips for 5 s, count")
    parser.add_argument("--resize", nargs=2, metavar=("PIXELS", "OUT"),
                        help="write the data set again, its short side at so many pixels, to OUT")
    parser.add_argument("--make_toy", metavar="DIR",
                        help="write the toy data as mp4 files in class folders, then stop")
    args = parser.parse_args()

    # What writes files ends there.
    if args.make_toy:
        sys.exit(make_toy(args.make_toy))

    if args.resize:
        pixels, out = args.resize
        try:
            sys.exit(copy_all(args.data, args.root, int(pixels) if pixels.isdigit() else 0, out))
        except (OSError, ValueError) as error:
            sys.exit(f"error: {error}")
        except KeyboardInterrupt:
            sys.exit(f"\nstopped; the same command goes on with what is missing in {out}")

    # The settings of a recipe's clips, without what train.py's changes for a data set.
    toy = args.data in TOYS
    cfg = {name: default for name, (default, _, _) in SETTINGS.items()}
    cfg |= PIPELINES["toy" if toy else "focal" if args.data in NAMED else "own"]
    cfg |= dict(data=args.data, root=args.root, split=args.split, seed=0, num_frames=8,
                image_size=args.image_size, device="cpu", rank=0, eval=False, out="")

    # What is there, in numbers, and in a picture.
    try:
        sets = open_data(cfg, ["train", "val"])
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    for split, dataset in sets.items():
        print(f"{split}: {len(dataset)} clips of {len(set(dataset.labels))} "
              f"of {len(dataset.classes)} classes")

    # How fast is it read?
    if args.speed:
        print(f"{clips_per_second(sets['train']):.1f} training clips a second, one process, "
              f"{cfg['num_frames']} frames of {cfg['image_size']} x {cfg['image_size']}")
    if args.show:
        try:
            contact_sheet(sets["train"], args.show)
        except BadVideo as error:
            sys.exit(f"error: {error}")
