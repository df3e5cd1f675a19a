"""
From video files to batches. The way of a clip, in the order of this file:

    find      a table, a list or class folders   -> paths and labels
    decode    only the frames that are wanted    -> uint8 (frames, H, W, 3)
    sample    T frame numbers, over the whole video or in a window of it
    crop      AutoAugment, one box for all frames -> uint8 (T, S, S, 3)
    batch     clips and a few random numbers     -> uint8 (B, T, S, S, 3)
    colour    on the device: flip, jitter, grey, normalise, erase -> float (B, 3, T, S, S)
    mix       targets: smoothing, then mixup or CutMix with another clip of the batch

Everything random about sample i in epoch e comes from a generator made from (seed, e, i), and the
order of an epoch from (seed, e). So training is one numbered stream of batches, the same for any
number of workers, processes and restarts: to go on after step k, start the stream at step k.

The default data, `toy`, needs no files: an L moves left or right, up or down, turns or grows. Its
classes are pairs of each other's time reversals, so a network that is blind to the order of frames
can identify the pair but not its direction.

Source: the pipelines released with arXiv:2307.06947 (Video-FocalNets) and arXiv:2210.08164 (Linear
Video Transformer); where ours differs, the line says so.
Try it: python data.py --show sheet.png                         what the network gets, drawn
        python data.py --data k400 --root DIR --show sheet.png  files, as Kinetics' recipe has them
"""
import argparse
import collections
import contextlib
import csv
import io
import itertools
import json
import math
import os
import re
import signal
import sys
import tempfile
import warnings
import zlib
from functools import lru_cache
from types import SimpleNamespace

import av
import numpy as np
import torch
import torch.nn.functional as F
from av.sidedata.sidedata import Type
from av.video.reformatter import VideoReformatter
from PIL import Image, ImageEnhance, ImageOps

HERE = os.path.dirname(os.path.abspath(__file__))


# --------------------------------------------------- settings

NAMED = ("k400", "k600", "ssv2", "diving48", "activitynet")  # class names in assets/classes/

# name: (default, what is allowed, meaning). Allowed are the words, or the lowest and the highest
# number; None: anything of the default's type. train.py makes a flag of each. The defaults are
# those of the released Video-FocalNets on Kinetics.
SETTINGS = {
    "data": ("toy", None, f"toy, {', '.join(NAMED)}, a folder of class folders, or a list file"),
    "root": ("", None, "where the videos are (default data/NAME)"),
    "split": ("ready", ("ready", "group"), "train and val as they are, or made here: a fifth of "
              "the recordings to validate with (names that are alike before the last _)"),
    "seed": (0, (0, 2**31), "of toy data, order and augmentation (and of weights)"),
    "num_frames": (8, (1, 10**4), "of a clip"),
    "image_size": (224, (1, 10**4), "side of a clip, pixels"),
    # which frames, and which part of them
    "sampling": ("segments", ("segments", "tsn", "dense"), "how the frames of a clip are chosen"),
    "interval": (4, (1, 1000), "dense: frames of the window per frame; segments: all it does is "
                 "hide the last interval - 1 frames, in validation too"),
    "margin": (256/224, (1, 4), "short side before cropping, in units of image_size"),
    "crop": ("area", ("none", "area", "short_side", "multi_scale"), "random crop in training"),
    "crop_range": ((0.08, 1.0), (0.01, 10), "area: share of the frame; short_side: side in crops"),
    "views": ("4x3", None, "evaluation: CLIPSxCROPS of each video, crops 1 or 3"),
    # what of them
    "input": ("rgb", ("rgb", "diff"), "colours, or how they change from frame to frame"),
    # flips and colours, in training
    "flip": (0.5, (0, 1), "probability of a horizontal flip"),
    "jitter": (0.8, (0, 1), "probability of other brightness, contrast, saturation and hue"),
    "jitter_per_frame": (True, None, "draw the jitter anew for every frame: colours flicker"),
    "grey": (0.2, (0, 1), "probability of grey"),
    "auto_augment": (False, None, "AutoAugment, policy v0"),
    "erase": (0.0, (0, 1), "probability of a box that is blanked"),
    "mean": ((0.485, 0.456, 0.406), (0, 1), "of red, green, blue, subtracted"),
    "std": ((0.229, 0.224, 0.225), (0.001, 1), "of red, green, blue, divided by"),
    # what the network is asked, in training
    "mixup": (0.8, (0, 100), "alpha of mixup; 0: off"),
    "cutmix": (1.0, (0, 100), "alpha of CutMix; 0: off"),
    "switch": (0.5, (0, 1), "probability of CutMix, where both are on"),
    "smoothing": (0.1, (0, 1), "label smoothing: the share that all classes get alike"),
}

# No augmentation at all: clips as validation sees them.
AS_IT_IS = dict(interval=1, margin=1.0, crop="none", views="1x1", flip=0.0, jitter=0.0, grey=0.0,
                mixup=0.0, cutmix=0.0)

# What the toy changes: a flip would be another class.
TOY = AS_IT_IS | dict(image_size=64, mean=(0.35, 0.35, 0.35), std=(0.3, 0.3, 0.3))


# --------------------------------------------------- random numbers: a stream for each use

# numpy pads a seed with zeros: (0, 3) and (0, 3, 0) are the same numbers. So each use has a tag of
# its own, in front, and always the same number of keys behind it.
WEIGHTS = 1  # seed
DRAWN = 2  # seed, split: 0 and 1 of toy
ORDER = 3  # seed, epoch
SAMPLE = 4  # seed, epoch, i
STEP = 5  # seed, step, micro-batch, rank
SPLIT = 7  # seed


def generator(use, *keys):
    """The random numbers of one use: generator(SAMPLE, seed, epoch, i)."""
    return np.random.default_rng((use, *keys))


def torch_seed(rng):
    """A seed for torch, from a generator of numpy's."""
    return int(rng.integers(2**62))


# --------------------------------------------------- find the files

VIDEOS = (".mp4", ".webm", ".avi", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts",
          ".mts", ".m2ts", ".3gp", ".3g2", ".ogv", ".ogg", ".gif", ".vob", ".asf", ".mxf", ".divx",
          ".f4v", ".rm", ".rmvb", ".y4m", ".h264", ".264", ".hevc", ".265", ".mjpeg", ".dv")
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")
NOTES = (".txt", ".csv", ".json", ".md", ".xml", ".srt", ".vtt", ".log", ".tsv", ".pkl")

NO_DATA = """no {split} videos of {data} in {root}. One of these is expected there:
  {root}/{split}/CLASS/*.mp4    class folders (or videos_{split}/, {split}_256/); pictures too
  {root}/CLASS/*.mp4            class folders without train/ and val/: add --split group
  {root}/{split}.csv or .txt    a list, one 'path label' or 'path,label' a line
  {root}/annotations/{split}.csv and {root}/{split}/ID_START_END.mp4    Kinetics
  {root}/something-something-v2-{long}.json, Diving48_V2_{test}.json or \
activity_net.v1-3.min.json, and the videos below
have the videos elsewhere: --root DIR      just looking: python train.py"""


class BadVideo(Exception):
    """A video that cannot be used: 'path: reason'."""


def whole(path):
    """A clip is (path, first second, last second): this one is all of a file."""
    return path, 0.0, math.inf


def stem_of(path):
    """'run/set1_seq01_04.avi' -> 'set1_seq01_04'."""
    return os.path.splitext(os.path.basename(path))[0]


def read_text(path):
    """A text file without empty lines at its end. Bytes that are no UTF-8 stay: names may be."""
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        return file.read().rstrip()


def videos_below(folder):
    """
    The videos under a folder, sorted; none for a folder that is not there. Where there are none,
    its pictures: numbered ones, CLASS/VIDEO/img_00001.jpg, are the frames of one video, the folder;
    all others are videos of one frame. What is left out is said.
    """
    videos = []
    pictures = collections.defaultdict(list)  # by folder
    others = []
    seen = set()
    for where, folders, names in os.walk(folder, followlinks=True):
        # Each real folder once, whatever links there are; no .cache, no @eaDir.
        if os.path.realpath(where) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(where))
        folders[:] = [name for name in sorted(folders) if name[0] not in ".@"]
        for name in names:
            path = os.path.join(where, name)
            kind = os.path.splitext(name)[1].lower()
            if name[0] == "." or kind in NOTES:  # ._x.mp4 is litter of archives made on a Mac
                continue
            elif kind in VIDEOS:
                videos.append(path)
            elif kind in PICTURES:
                pictures[where].append(path)
            else:
                others.append(path)

    # Thumbnails beside videos are no videos.
    if videos:
        others += sum(pictures.values(), [])
        pictures.clear()
    if others:
        print(f"{folder}: {len(others)} other files left out, {others[0]} for one")
    for where, paths in pictures.items():
        prefixes = {stem_of(path).rstrip("0123456789") for path in paths}
        deep = os.path.dirname(os.path.relpath(where, folder))  # CLASS, of CLASS/VIDEO
        videos += [where] if deep and len(paths) > 1 and len(prefixes) == 1 else paths
    return sorted(videos)


def by_stem(folder):
    """{'78687': clip of '.../78687.webm'}, of all videos under a folder."""
    return {stem_of(path): whole(path) for path in videos_below(folder)}


# The finders, one for each layout: (listing, root, split) -> rows (clip, label). clip is None if
# the video is not on the disk, label None if there is no row for the video; labels are names, or
# numbers (int) where a list has numbers.

def kinetics_rows(listing, root, split):
    """A table, 'label,youtube_id,time_start,..': files are called ID_START_END, or ID."""
    # Later folders win: repaired copies of broken videos stand in one of their own.
    folders = split_folders(root, split)
    if split == "train":
        folders.append(os.path.join(root, "replacement"))
    on_disk = {}
    for folder in folders:
        on_disk |= {stem_of(path)[:18]: path for path in videos_below(folder)}  # 11 + 1 + 6 letters

    # An id may be there several times, with other starts and labels.
    rows = []
    with open(listing, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        for row in csv.DictReader(file):
            start = int(float(row["time_start"]))
            path = on_disk.get(f"{row['youtube_id']}_{start:06d}") or on_disk.get(row["youtube_id"])
            rows.append((whole(path) if path else None, row["label"]))

    # Rows without a file, and files without a row, are kept: they are counted.
    listed = {clip for clip, _ in rows}
    extra = [whole(path) for path in sorted(on_disk.values())]
    return rows + [(clip, None) for clip in extra if clip not in listed]


def list_rows(listing, root, split):
    """
    A list, 'path label' or 'path,label' a line, paths from `root` on, labels whole numbers. In a
    csv a path may be quoted. ValueError with the line.
    """
    # A Kinetics table is a csv as well: it has a header, lists have none.
    text = read_text(listing)
    if "youtube_id" in text.partition("\n")[0]:
        return kinetics_rows(listing, root, split)

    # The label comes last, so that a path may hold spaces and commas.
    rows = []
    reader = csv.reader(io.StringIO(text))
    for fields in reader:
        line = ",".join(fields).strip()
        match = re.fullmatch(r"(?s)(.*[^\s,])\s*[\s,]\s*(\d+)", line)
        if line and not match:
            raise ValueError(f"{listing}, line {reader.line_num}: {line[:80]!r} is not "
                             "'path label' or 'path,label' with a number as label")
        if line:
            path = os.path.join(root, match[1])  # an absolute path stays as it is
            rows.append((whole(path) if os.path.exists(path) else None, int(match[2])))
    return rows


def ssv2_rows(listing, root, split):
    """Something-Something V2: the label is the template without its brackets; ID.webm."""
    # Ids are text in the file, and names of files on the disk.
    on_disk = by_stem(root)
    table = json.loads(read_text(listing))
    return [(on_disk.get(row["id"]), re.sub(r"[\[\]]", "", row["template"])) for row in table]


def diving48_rows(listing, root, split):
    """
    Diving48 V2: vid_name and the number of the class; the frames are those of the whole file. V1
    has the same keys and other labels: V2 lists 15,027 and 1,970 videos.
    """
    on_disk = by_stem(root)
    return [(on_disk.get(row["vid_name"]), row["label"]) for row in json.loads(read_text(listing))]


def activitynet_rows(listing, root, split):
    """ActivityNet v1.3: one clip for each labelled segment; files are called v_ID."""
    on_disk = by_stem(root)
    subset = {"train": "training", "val": "validation"}[split]
    rows = []
    for key, video in json.loads(read_text(listing))["database"].items():
        if video["subset"] == subset:  # videos for testing have no annotations
            clip = on_disk.get("v_" + key)
            for one in video["annotations"]:
                start, end = one["segment"]
                rows.append((clip and (clip[0], max(start, 0.0), float(end)), one["label"]))
    return rows


def folder_rows(folder):
    """Class folders, CLASS/**/*.mp4: the topmost folder is the label. Files beside it are left."""
    rows = []
    for path in videos_below(folder):
        label, slash, _ = os.path.relpath(path, folder).partition(os.sep)
        if slash:
            rows.append((whole(path), label))
    return rows


# Where a data set's own lists are, below the root, and who reads them: see NAMES.
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


# What else the splits are called.
NAMES = {"train": dict(split="train", long="train", test="train"),
         "val": dict(split="val", long="validation", test="test")}


def split_folders(root, split):
    """The folder of a split, in a list; an empty one if there is none."""
    names = (f"videos_{split}", f"{split}_256", f"videos/{split}", *NAMES[split].values())
    folders = [os.path.join(root, name) for name in (split, *names)]
    return [folder for folder in folders if os.path.isdir(folder)][:1]


def find_split(data, root, split):
    """-> (where it was found, rows) of the first layout that is there, or (None, [])."""
    # A list file brings the other split's list: my_train.txt has my_val.txt beside it.
    if os.path.isfile(data):
        folder, name = os.path.split(data)
        for word in NAMES[split].values():
            listing = os.path.join(folder, name.replace("train", word))
            if os.path.isfile(listing):
                return listing, list_rows(listing, root, split)
        return None, []

    # A list in the root, with the videos below it; or nothing but folders, one for each class.
    for name, rows_of in LISTS:
        listing = os.path.join(root, name.format(**NAMES[split]))
        if os.path.isfile(listing):
            return listing, rows_of(listing, root, split)
    for folder in split_folders(root, split):
        return folder, folder_rows(folder)
    return None, []


def split_rows(rows, seed):
    """
    Rows -> {'train': rows, 'val': rows}, a fifth of each class or a little more to validate with.
    A function of names and seed alone. What is called alike before the last _, set1_seq01_04.avi
    and set1_seq01_05.avi, is taken for pieces of one recording and stays together. ValueError for a
    class that would be missing on one side.
    """
    recordings = collections.defaultdict(list)
    for row in sorted(rows):
        stem = stem_of(row[0][0])
        recordings[stem.rpartition("_")[0] or stem].append(row)
    total = collections.Counter(label for _, label in rows)
    held = collections.Counter()  # clips to validate with, of each class

    # One after the other, in random order: taken if it brings a class nearer to its fifth, and
    # leaves half of each class to train on.
    splits = dict(train=[], val=[])
    names = list(recordings)
    for k in generator(SPLIT, seed).permutation(len(names)):
        here = collections.Counter(label for _, label in recordings[names[k]])
        short = any(held[label] < max(1, total[label] // 5) for label in here)
        fits = all(held[label] + here[label] <= total[label] / 2 for label in here)
        splits["val" if short and fits else "train"] += recordings[names[k]]
        held += here if short and fits else collections.Counter()
    if len(held) < len(total):
        label = min(total.keys() - held.keys())
        raise ValueError(f"--split group: the {total[label]} videos of {label!r} are one recording "
                         "by their names (the part before the last _): add some, or make train/ "
                         "and val/ yourself")
    return splits


# --------------------------------------------------- classes: their names and numbers

def class_names(data):
    """The classes of a named data set, in the order of the released heads."""
    return read_text(os.path.join(HERE, "assets", "classes", data + ".txt")).split("\n")


def plain(label):
    """'"Air_drumming"' -> 'air drumming': names circulate in several spellings."""
    return label.strip(' "').replace("_", " ").lower()


def number_classes(labels, data, folder):
    """
    -> (classes, {label: index}) for a set of labels. Numbers of a list are indices, with names from
    the data set or, if it has none, from classes.txt in `folder`, a name a line. Names have
    official indices if all of them are official, else the alphabetical order counts, and a line
    says so if some are. ValueError for a number that is too large.
    """
    # Names, whatever their spelling.
    classes = class_names(data) if data in NAMED else None
    if not all(isinstance(label, int) for label in labels):
        official = {plain(name): k for k, name in enumerate(classes or [])}
        others = [label for label in labels if plain(label) not in official]
        if not others:
            return classes, {label: official[plain(label)] for label in labels}
        if len(others) < len(labels):
            print(f"{others[0]!r} is no class of {data} ({len(others)} such names): classes are "
                  "numbered in alphabetical order, not in the official one")
        classes = sorted(labels)
        return classes, {label: k for k, label in enumerate(classes)}

    # Numbers, which may begin at 1.
    highest = max(labels, default=-1)
    if classes is None and os.path.isfile(os.path.join(folder, "classes.txt")):
        classes = read_text(os.path.join(folder, "classes.txt")).split("\n")
    first = 1 if 0 not in labels and highest >= len(classes or []) else 0
    if first:
        print(f"labels start at 1 in {folder}: 1 is the first class, {highest} the last")
    classes = classes or [str(k) for k in range(first, highest + 1)]
    if highest - first >= len(classes):
        raise ValueError(f"label {highest} in {folder}, but {data} has {len(classes)} classes")
    if len(labels) < len(classes) / 2:
        print(f"warning: {len(labels)} of {len(classes)} classes have videos in {folder}: are the "
              "numbers of the list indices?")
    return classes, {label: label - first for label in labels}


# --------------------------------------------------- open a data set

def root_of(data, root):
    """The folder that the videos of --data are in; ValueError or FileNotFoundError for none."""
    if root and not os.path.isdir(root):
        raise FileNotFoundError(f"--root {root}: no such folder")
    if data in NAMED:
        return root or os.path.join("data", data)
    if os.path.isdir(data):
        return root or data
    if os.path.isfile(data):
        return root or os.path.dirname(data) or "."
    raise ValueError(f"--data {data}: neither a folder, nor a list file, "
                     f"nor one of toy, {', '.join(NAMED)}")


def open_data(cfg, splits, views="1x1"):
    """
    The data set cfg.data -> {split: VideoSet}; prints what was found. 'train' has training's
    samples, 'val' evaluation's `views`. cfg: an object with all of SETTINGS.
    Raises FileNotFoundError with the expected layout, ValueError for unknown names and labels.
    """
    sets = {}
    if cfg.data == "toy":  # drawn, not read
        for split in splits:
            clips, labels = toy_split(split, cfg.seed, cfg.num_frames, cfg.image_size)
            sets[split] = VideoSet(clips, labels.tolist(), TOY_CLASSES, cfg,
                                   None if split == "train" else views)
        return sets

    # Both splits are read, whatever is asked for: a class may be in one of them only.
    root = root_of(cfg.data, cfg.root)
    found = {split: find_split(cfg.data, root, split) for split in ("train", "val")}
    if cfg.split == "group":
        rows = [row for _, rows in found.values() for row in rows if None not in row]
        made = split_rows(set(rows) or folder_rows(root), cfg.seed)
        found = {split: (root, made[split]) for split in made}
    elif os.path.isfile(cfg.data) and "train" in splits and found["train"][0] == found["val"][0]:
        raise ValueError(f"--data {cfg.data}: this list would be trained on and validated with; "
                         "two lists are needed, my_train.txt and, beside it, my_val.txt, or "
                         "--split group")
    labels = {label for _, rows in found.values() for _, label in rows if label is not None}
    beside = os.path.dirname(cfg.data) if os.path.isfile(cfg.data) else root
    classes, index = number_classes(labels, cfg.data, beside)
    if len(labels) == 1 and "train" in splits:
        raise ValueError(f"--data {cfg.data}: one class only, {labels.pop()!r}: nothing to tell "
                         "apart; a folder, or a number in a list, for each class is needed")

    # Say what was found. Missing videos are no mistake, most copies of Kinetics lack some; none at
    # all is one.
    for split in splits:
        where, rows = found[split]
        listed = [row for row in rows if row[1] is not None]
        there = [row for row in listed if row[0] is not None]
        if not there:
            raise FileNotFoundError(NO_DATA.format(data=cfg.data, root=root, **NAMES[split]))
        print(f"{split}: {where} lists {len(listed)} videos, {len(there)} are there, "
              f"{len(listed) - len(there)} missing, {len(rows) - len(listed)} more have no label")
        sets[split] = VideoSet([clip for clip, _ in there], [index[label] for _, label in there],
                               classes, cfg, None if split == "train" else views)
    if len(sets) == 2 and not set(sets["val"].labels) <= set(sets["train"].labels):
        print("warning: some classes have videos in val only: they cannot be learned")
    return sets


# --------------------------------------------------- decode: file -> frames

# Text in a file that is no UTF-8, a title say, is not needed; later versions do not read it.
OLD_AV = int(av.__version__.split(".")[0]) < 19
TAGS = dict(metadata_errors="replace") if OLD_AV else {}


@contextlib.contextmanager
def open_video(path):
    """-> container, stream: decoded by one thread, as the workers are the parallelism."""
    with av.open("file:" + path, **TAGS) as container:  # cam:1.mp4 would be a protocol
        stream = container.streams.best("video")
        if stream is None:
            raise BadVideo(f"{path}: no video stream in it")
        stream.thread_type = "NONE"
        yield container, stream


def read_packets(path):
    """
    Reads a file once, without decoding and without keeping it -> packets, a list of (time, is a key
    frame, is shown) in the order of the file; do these times tell which frames there are, and in
    which order they are shown; the time that seconds are counted from; seconds of a unit; units
    from frame to frame.
    """
    with open_video(path) as (container, stream):
        packets = [(p.pts, p.is_keyframe, not p.is_discard)  # an edit list cuts frames away
                   for p in container.demux(stream) if p.size]
        times = [pts for pts, _, _ in packets]

        # Elsewhere (avi) times lie. And in an mp4 that was made of an avi they may be those of
        # decoding: they rise steadily, although the decoder has frames to put into another order.
        trusted = any(name in container.format.name for name in ("mp4", "matroska"))
        trusted = trusted and None not in times and len(set(times)) == len(times) > 0
        if trusted and stream.codec_context.has_b_frames:
            trusted = times != sorted(times)
        unit = float(stream.time_base)
        step = 1 / (stream.average_rate or 30) / unit
        return packets, trusted, stream.start_time or 0, unit, step


def decode_wanted(path, packets, wanted):
    """
    Decodes as little as gives the frames of the sorted times `wanted` -> {time: frame}, or {} if
    something is damaged.
    """
    # Decoding can start at key frames only: at which packet for which time?
    keys = [k for k, (_, is_key, _) in enumerate(packets) if is_key]
    targets = set(wanted)
    found = {}
    with open_video(path) as (container, stream):
        codec = stream.codec_context
        coming = (p for p in container.demux(stream) if p.size)
        at = 0  # number of the next packet
        shown = -math.inf  # the time of the newest frame that came out
        for pts in wanted:
            # Nothing before the last key frame is needed: pass over it.
            start = max((k for k in keys if packets[k][0] <= pts), default=0)
            if start > at:
                codec.flush_buffers()
                shown = -math.inf
            while at < start:
                next(coming)
                at += 1

            # Feed packets until the wanted frame has come out; None, at the end, drains the
            # decoder. Of the others, it leaves out those that no frame refers to.
            while shown < pts and at <= len(packets):
                packet = next(coming, None)
                at += 1
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


def decode_all(path):
    """Yields all frames that decode, in the order they are shown."""
    with open_video(path) as (container, stream):
        packets = (p for p in container.demux(stream) if p.size)
        for packet in itertools.chain(packets, [None]):  # None drains the decoder
            try:
                yield from stream.codec_context.decode(packet)
            except av.error.InvalidDataError:
                continue  # one damaged packet does not end the video


def wanted_frames(clip, choose):
    """The decoded frames of choose(number of frames); see read_clip, which tells the rules."""
    path, start, end = clip
    packets, trusted, zero, unit, step = read_packets(path)
    low = zero + start / unit
    high = zero + end / unit

    def part_of(times):
        """The places of those from `low` to `high`; segments of no length are labelled, too."""
        part = [k for k, pts in enumerate(times) if low <= pts < high]
        return part or [min(range(len(times)), key=lambda k: abs(times[k] - low))]
    if trusted:
        times = sorted(pts for pts, _, is_shown in packets if is_shown)
        part = part_of(times)
        wanted = [times[part[i]] for i in choose(len(part))]
        found = decode_wanted(path, packets, sorted(set(wanted)))
        if all(pts in found for pts in wanted):
            return [found[pts] for pts in wanted]

    # The slow way: decode everything, once to count, once to keep. The frames that decode are the
    # video; with large holes it would be another one.
    good = [frame.pts for frame in decode_all(path)]
    lost = len(times) - len(good) if trusted else 0
    if not good or lost > len(good):
        raise BadVideo(f"{path}: {len(good)} of {len(packets)} frames decode")
    if lost > 0:
        warnings.warn(f"{path}: {lost} of {len(times)} frames do not decode, "
                      "the others are taken for the video")
    part = part_of(good if trusted else [zero + k * step for k in range(len(good))])
    order = [part[i] for i in choose(len(part))]
    kept = {k: frame for k, frame in enumerate(decode_all(path)) if k in order}
    return [kept[k] for k in order]


def resized_to(height, width, short_side):
    """The size with this short side, -> (height, width): rounded half up, as mmcv does."""
    if not short_side or min(height, width) == short_side:
        return height, width
    scale = short_side / min(height, width)
    return int(height * scale + 0.5), int(width * scale + 0.5)


def upright(image, frame):
    """
    Cameras note how a frame is turned or mirrored beside the pixels, as a matrix in fixed point:
    (x, y) is shown at (a x + c y, b x + d y). image (H, W, 3) -> as it is shown.
    """
    try:
        matrix = frame.side_data.get(Type.DISPLAYMATRIX)
    except ValueError:  # there is side data of a kind that this PyAV does not know
        return np.rot90(image, round(frame.rotation / 90))
    if matrix is None:
        return image
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5]
    if abs(b) > abs(a):
        image = image.transpose(1, 0, 2)  # x and y change places
        a = c
        d = b
    return image[::-1 if d < 0 else 1, ::-1 if a < 0 else 1]


# What undoes an EXIF orientation.
TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
         4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
         6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90}


def read_pictures(paths, short_side):
    """Pictures as the frames of a video, all in the size of the first -> uint8 (n, H, W, 3)."""
    images = []
    size = None
    for path in paths:
        try:
            with Image.open(path) as image:
                turn = TURNS.get(image.getexif().get(0x112))
                if image.mode.startswith("I"):  # 16 bits, which Pillow would clip to 8
                    image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
                image = image.convert("RGB")
        except Exception as error:  # what is damaged may raise anything
            raise BadVideo(f"{path}: {error}") from error
        if turn is not None:
            image = image.transpose(turn)
        size = size or resized_to(image.height, image.width, short_side)
        images.append(np.array(image.resize(size[::-1], Image.Resampling.BILINEAR)))  # antialiased
    return torch.from_numpy(np.stack(images))


def read_clip(clip, choose, short_side=None):
    """
    Frames of a clip, (path, first second, last second); a path may also be a picture, a video of
    one frame, or a folder of numbered ones. choose(num_frames) -> indices, in any order, repeats
    allowed. Returns uint8 (len(indices), H, W, 3), RGB, upright. short_side: resize to it, keeping
    the aspect (bilinear with antialiasing, in the decoder; the released pipeline's has none).

    mp4, mov, webm, mkv: the packets' times are the table of frames, and only what is needed is
    decoded. Elsewhere, and where times cannot be trusted, frames are counted by decoding them. The
    frames that decode are the video; a warning counts the others. Raises BadVideo: no video, no
    frames, or more than half of them do not decode.
    """
    path, _, _ = clip
    if os.path.isdir(path):
        names = [name for name in os.listdir(path) if name.lower().endswith(PICTURES)]
        names.sort(key=lambda name: [int(n) for n in re.findall(r"\d+", name)[-1:]])
        if not names:
            raise BadVideo(f"{path}: a folder without pictures")
        return read_pictures([os.path.join(path, names[i]) for i in choose(len(names))], short_side)
    if os.path.exists(path) and not os.path.isfile(path):  # a named pipe would wait for ever
        raise BadVideo(f"{path}: not a regular file")
    if path.lower().endswith(PICTURES):
        return read_pictures([path], short_side)[choose(1)]
    try:
        frames = wanted_frames(clip, choose)
    except (av.error.FFmpegError, OSError) as error:
        raise BadVideo(f"{path}: {error.strerror or error}") from error

    # A repeated frame is converted once.
    height, width = resized_to(frames[0].height, frames[0].width, short_side)
    reformatter = VideoReformatter()
    images = {}
    for frame in frames:
        if id(frame) not in images:
            rgb = reformatter.reformat(frame, width, height, "rgb24", interpolation="BILINEAR")
            images[id(frame)] = upright(rgb.to_ndarray(), frame)
    return torch.from_numpy(np.stack([images[id(frame)] for frame in frames]))


# --------------------------------------------------- sample: which frames make a clip

# Each way: (n, T, interval, clips, rng) -> frame numbers of a video of n frames, (clips * T,): with
# rng one random clip to train on, without it `clips` of them to evaluate.

def segments(n, T, interval, clips=1, rng=None):
    """
    A frame of each of T equal segments: a random one to train, 300 frames, T 8, interval 4:
    segments of 37; the middle to validate, 18 55 92 129 167 204 241 278. To test, clip v takes
    frame floor(i a + (v + .5) a / clips) of segment i, a = n / T, so clips interleave; 4 clips:

        clip 0      4   42   79  117  154  192  229  267
        clip 1     14   51   89  126  164  201  239  276
        clip 2     23   60   98  135  173  210  248  285
        clip 3     32   70  107  145  182  220  257  295

    The released test draws its 4 clips at random, as in training, so that its score changes from
    run to run (+-0.3, its README says); ours does not.
    """
    usable = max(n - interval + 1, 0)
    if rng is None and clips == 1:
        return (2 * np.arange(T) + 1) * usable // (2 * T)
    if rng is None:
        i = np.arange(T)
        v = np.arange(clips)[:, None]
        return ((2 * clips * i + 2 * v + 1) * n // (2 * clips * T)).reshape(-1)

    # Enough frames: one of each segment. Fewer: sorted random ones, with repeats. Hardly any:
    # evenly spaced, with repeats.
    segment = usable // T
    if segment > 0:
        return np.arange(T) * segment + rng.integers(segment, size=T)
    if n > max(T, interval):
        return np.sort(rng.integers(usable, size=T))
    return np.around(np.arange(T) * usable / T).astype(int)  # half to even, as numpy does


def tsn(n, T, interval, clips=1, rng=None):
    """
    The same with segments that share their ends. To validate their middles; of two test clips the
    second has their starts: 50 frames, T 8: 0 6 12 18 24 31 37 43. interval means nothing here.
    """
    if rng is None and clips > 2:
        return segments(n, T, interval, clips)
    edges = np.round((n - 1) / T * np.arange(T + 1)).astype(int)  # half to even
    start = edges[:-1]
    end = edges[1:]
    if rng is not None:
        return rng.integers(start, end + 1)
    return np.concatenate([(start + end) // 2, start][:clips])


def dense(n, T, interval, clips=1, rng=None):
    """
    T frames spread over a window of T * interval: at random to train, in the middle to validate,
    at v / clips of where it fits to test, so never at the end, as released. Indices past the end
    are clamped to n - 1. T 8, interval 4, at the start: 0 4 8 13 17 22 26 31.
    """
    if rng is not None:
        positions = [rng.random()]
    else:
        positions = [0.5] if clips == 1 else [v / clips for v in range(clips)]
    indices = []
    for position in positions:
        start = position * max(n - T * interval, 0)
        window = torch.linspace(start, start + T * interval - 1, T).long()
        indices.append(window.clamp(max=n - 1).numpy())
    return np.concatenate(indices)


SAMPLING = {"segments": segments, "tsn": tsn, "dense": dense}


# --------------------------------------------------- crop: which part of the frames

# Each kind: (height, width, crop_range, rng) -> (top, left, h, w).

def centre_box(height, width, span, rng):
    """The largest square in the centre, as in validation."""
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def random_box(height, width, area, rng, aspects=(3/4, 4/3)):
    """Random resized crop: a share `area` (low, high) of the frame, width / height `aspects`."""
    # Draw an area and an aspect; ten tries to fit them into the frame.
    for _ in range(10):
        pixels = rng.uniform(*area) * height * width
        aspect = np.exp(rng.uniform(*np.log(aspects)))
        h = round((pixels / aspect)**0.5)
        w = round((pixels * aspect)**0.5)
        if 0 < h <= height and 0 < w <= width:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    return centre_box(height, width, area, rng)


def short_side_box(height, width, sides, rng):
    """A square: the short side is `sides` (low, high) times as long as it."""
    side = int(min(height, width) / rng.uniform(*sides))
    return int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1)), side, side


def multi_scale_box(height, width, span, rng):
    """
    Crop of TSN: sides of 1, .875, .75 or .66 of the short side, at most one step apart; in the
    middle, at an edge, in a corner or halfway to one. TSN makes sides within 2 pixels of the
    network's input equal to it; that rule is left out (224 of 256 is 224 anyway).
    """
    # Two sides that are alike or one step apart.
    sides = [int(min(height, width) * scale) for scale in (1, .875, .75, .66)]
    shapes = [(h, w) for i, h in enumerate(sides) for w in sides[max(i-1, 0):i+2]]
    h, w = rng.choice(shapes).tolist()

    # 13 places, in quarters of what is left over.
    places = [(y, x) for y in range(5) for x in range(5) if y % 2 == x % 2]
    y, x = rng.choice(places).tolist()
    return y * ((height - h) // 4), x * ((width - w) // 4), h, w


CROPS = {"none": centre_box, "area": random_box, "short_side": short_side_box,
         "multi_scale": multi_scale_box}


def erase_box(height, width, rng, probability):
    """
    With this probability a box to set to 0 -> (top, left, h, w): 1/50 to 1/3 of the frame, w / h .3
    to 1/.3; else h = w = 0. Source: arXiv:1708.04896, timm.
    """
    if rng.random() >= probability:
        return 0, 0, 0, 0
    return random_box(height, width, (1/50, 1/3), rng, aspects=(0.3, 1/0.3))


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


# What moves pixels: (x, y) gets what was at (ax + by + c, dx + ey + f), grey from outside. timm
# interpolates bicubically half of the time.
def moved(image, *matrix):
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR,
                           fillcolor=(128, 128, 128))


# On a PIL image, with timm's arguments; s: level / 10, its sign drawn at random where it has one.
OPERATIONS = {
    "Equalize": lambda image, s: ImageOps.equalize(image),
    "AutoContrast": lambda image, s: ImageOps.autocontrast(image),
    "Invert": lambda image, s: ImageOps.invert(image),
    # Keeps the highest bits; Pillow's own operator refuses to keep none.
    "Posterize": lambda image, s: image.point(
        [i & 256 - (1 << (8 - int(4 * abs(s)))) for i in range(256)] * 3),
    "Solarize": lambda image, s: ImageOps.solarize(image, int(256 * abs(s))),  # inverts bright ones
    "SolarizeAdd": lambda image, s: image.point(
        [min(255, i + int(110 * abs(s))) if i < 128 else i for i in range(256)] * 3),
    "Color": lambda image, s: ImageEnhance.Color(image).enhance(0.1 + 1.8 * abs(s)),
    "Rotate": lambda image, s: image.rotate(30 * s, Image.Resampling.BILINEAR,
                                            fillcolor=(128, 128, 128)),
    "ShearX": lambda image, s: moved(image, 1, 0.3 * s, 0, 0, 1, 0),
    "ShearY": lambda image, s: moved(image, 1, 0, 0, 0.3 * s, 1, 0),
    "TranslateYRel": lambda image, s: moved(image, 1, 0, 0, 0, 1, 0.45 * s * image.height),
}


def auto_augment(clip, rng):
    """AutoAugment (arXiv:1805.09501) on uint8 (T, H, W, 3): 1 of the 25 pairs, all frames alike."""
    images = [Image.fromarray(frame) for frame in clip.numpy()]

    # Both operations of a pair are drawn for, whether they are applied or not.
    for name, probability, level in AUTO_AUGMENT[rng.integers(len(AUTO_AUGMENT))]:
        apply = rng.random() < probability
        sign = -1 if rng.random() < 0.5 else 1
        if apply:
            images = [OPERATIONS[name](image, sign * level / 10) for image in images]
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

    clips     toy: uint8 (n, T, H, W, 3);   else a list of n clips, (path, first, last second)
    labels    n class indices;              classes: their names
    cfg       an object with all of SETTINGS
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
        return self.training_sample(i, generator(SAMPLE, self.cfg.seed, epoch, i))

    def name(self, i):
        """The path of clip i, or its number in a data set that is in memory."""
        return f"clip {i}" if torch.is_tensor(self.clips) else self.clips[i][0]

    def fingerprint(self):
        """A number for names and labels: the same clips elsewhere are the same data."""
        names = [f"{os.path.basename(self.name(i))} {label}" for i, label in enumerate(self.labels)]
        return zlib.crc32("\n".join(names).encode(errors="surrogateescape"))

    def read(self, i, short_side, clips=1, rng=None):
        """The sampled frames of video i, uint8 (clips * T, H, W, 3)."""
        sample = SAMPLING[self.cfg.sampling]

        def choose(n):
            # Very short videos start again.
            return sample(n, self.cfg.num_frames, self.cfg.interval, clips, rng) % n
        if torch.is_tensor(self.clips):
            return self.clips[i][choose(self.clips.shape[1])]
        return read_clip(self.clips[i], choose, short_side)

    def training_sample(self, i, rng):
        cfg = self.cfg
        size = cfg.image_size

        # T frames of one size. The replacements are drawn too, so that epoch 3 has the same ones
        # whenever it is run.
        bad = ""
        j = i
        for _ in range(10):
            try:
                frames = self.read(j, int(cfg.margin * size), rng=rng)
                break
            except BadVideo as error:
                bad = bad or str(error)
                j = int(rng.integers(len(self)))
        else:
            raise BadVideo(f"10 unusable videos in a row, the first is {bad}")
        if cfg.auto_augment:
            frames = auto_augment(frames, rng)  # as released, before the crop

        # One crop for all frames, so that what stands still stays where it is; then the size that
        # the network wants.
        top, left, h, w = CROPS[cfg.crop](*frames.shape[1:3], cfg.crop_range, rng)
        clip = resize(frames[:, top:top+h, left:left+w], size)

        # Brightness, contrast, saturation, hue: factors for each frame, that change nothing or do.
        T = len(clip)
        colour = np.tile((1, 1, 1, 0), (T, 1))
        if rng.random() < cfg.jitter:
            rows = T if cfg.jitter_per_frame else 1
            drawn = rng.uniform((.6, .6, .8, -.1), (1.4, 1.4, 1.2, .1), (rows, 4))
            colour = np.broadcast_to(drawn, (T, 4))
        # The device does the work; here it is only drawn.
        return dict(
            clip=clip, label=self.labels[j], index=i, bad=bad,
            colour=torch.tensor(colour, dtype=torch.float32),
            flip=rng.random() < cfg.flip,
            grey=rng.random() < cfg.grey,
            erase=torch.tensor(erase_box(size, size, rng, cfg.erase)),
        )

    def evaluation_sample(self, i):
        clips, crops = self.views
        T = self.cfg.num_frames
        size = self.cfg.image_size
        bad = ""

        # As released: three crops come from a frame with short side 224, the one crop from 256.
        short_side = size if crops == 3 else int(self.cfg.margin * size)
        try:
            frames = self.read(i, short_side, clips)  # one decode for all views
        except BadVideo as error:
            frames = torch.zeros(clips * T, size, size, 3, dtype=torch.uint8)
            bad = str(error)
        frames = frames.unflatten(0, (clips, T))  # (clips, T, H, W, 3)

        # All clips of the first crop, then all of the next.
        views = []
        for top, left in crop_offsets(*frames.shape[2:4], size, crops):
            views.append(frames[:, :, top:top+size, left:left+size])
        return dict(clip=torch.cat(views), label=self.labels[i], index=i, bad=bad)


def batch_keys(n, seed, first, last, batch_size, accumulate=1, rank=0, world=1):
    """
    Yields this process's micro-batches of the steps `first` to `last` - 1, lists of (epoch, i),
    `accumulate` for each step. Every epoch is a permutation of the n samples, cut into steps of
    accumulate * world * batch_size; each process takes its part. What does not fill a step is left
    out: another rest in every epoch.
    """
    steps = n // (accumulate * world * batch_size)  # of an epoch
    for step in range(first, last):
        epoch, j = divmod(step, steps)
        if step == first or j == 0:
            order = generator(ORDER, seed, epoch).permutation(n)
        for k in range(accumulate):
            at = ((j * accumulate + k) * world + rank) * batch_size
            yield [(epoch, int(i)) for i in order[at:at+batch_size]]


def ignore_ctrl_c(worker):
    """In a loader's process: Ctrl-C is for the loop, which decides when to end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def loader(dataset, batches, workers, pin_memory=False):
    """A DataLoader over an iterable of lists of (epoch, i), with so many processes."""
    # Tensors come through a socket in this folder; the name of a socket has about 100 letters.
    if workers and len(tempfile.gettempdir()) > 70:
        raise ValueError(f"the folder for temporary files, {tempfile.gettempdir()}, has a name too "
                         "long for loader processes: TMPDIR=/tmp, or --workers 0")
    return torch.utils.data.DataLoader(dataset, batch_sampler=batches, num_workers=workers,
                                       pin_memory=pin_memory, worker_init_fn=ignore_ctrl_c)


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


def prepare(batch, cfg, device):
    """
    Moves a batch to the device, augments and normalises it there: uint8 (B, T, S, S, 3), or
    (videos, views, T, S, S, 3), whose views become clips -> float (B, 3, T, S, S).
    """
    # Send bytes, convert to float on the device.
    x = batch["clip"].flatten(0, -5)  # (B, T, S, S, 3)
    x = x.to(device, non_blocking=True).permute(0, 4, 1, 2, 3).float() / 255

    # Training samples bring what was drawn for them.
    if "flip" in batch and cfg.flip:
        x = torch.where(per_clip(batch["flip"], device), x.flip(-1), x)
    if "colour" in batch and cfg.jitter:
        x = colour_jitter(x, batch["colour"].to(device))
    if "grey" in batch and cfg.grey:
        x = torch.where(per_clip(batch["grey"], device), grey_of(x), x)

    # Normalise; a blanked box has the mean colour after it.
    mean = torch.tensor(cfg.mean, device=device).view(1, 3, 1, 1, 1)
    std = torch.tensor(cfg.std, device=device).view(1, 3, 1, 1, 1)
    x = (x - mean) / std
    if "erase" in batch and cfg.erase:
        x = blank(x, batch["erase"].to(device))

    # What changes from frame to frame (arXiv:1608.00859, RGB difference): a background that stands
    # still is gone. A small network trained on few clips learns backgrounds by heart otherwise.
    if cfg.input == "diff":
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


@lru_cache(maxsize=6)
def toy_split(split, seed, num_frames=8, size=64):
    """-> clips, labels. 'train': 2048. 'val': 256 others, then their exact reversals, noise too."""
    # Validation has each clip and its reversal, whose labels differ. A network that is blind to
    # time gives both the same answer: at most half of its answers are right.
    if split == "train":
        return toy_clips(2048, torch_seed(generator(DRAWN, seed, 0)), num_frames, size)[:2]
    clips, labels, _ = toy_clips(256, torch_seed(generator(DRAWN, seed, 1)), num_frames, size)
    return torch.cat([clips, clips.flip(1)]), torch.cat([labels, labels ^ 1])


# --------------------------------------------------- looking at it

def contact_sheet(dataset, path, rows=8):
    """Draws a training clip of each class as the network gets it, a row each."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    chosen = [dataset.labels.index(c) for c in sorted(set(dataset.labels))][:rows]
    batch = torch.utils.data.default_collate([dataset[0, int(i)] for i in chosen])

    # As the network gets them, but for the normalising; the frames of a clip side by side.
    as_is = SimpleNamespace(**vars(dataset.cfg) | dict(mean=(0., 0., 0.), std=(1., 1., 1.)))
    clips = prepare(batch, as_is, "cpu").clamp(0, 1)  # (B, 3, T, S, S)
    strips = clips.permute(0, 3, 2, 4, 1).flatten(2, 3)  # (B, S, T*S, 3)
    T = clips.shape[2]

    # One row for each clip, its class at the left.
    figure, axes = plt.subplots(len(chosen), 1, figsize=(T, 1.05 * len(chosen)), squeeze=False)
    for axis, strip, label in zip(axes[:, 0], strips, batch["label"]):
        axis.imshow(strip)
        axis.set(xticks=[], yticks=[])
        axis.set_ylabel(dataset.classes[label].replace("$", r"\$"), rotation=0, ha="right",
                        va="center")
    figure.subplots_adjust(hspace=0.05)
    figure.savefig(path, dpi=80, bbox_inches="tight")
    size = clips.shape[-1]
    print(f"{path}: {len(chosen)} clips, {T} frames of {size} x {size} pixels")


def main():
    """The command line: checks a data set, and draws what a network gets of it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", default="toy", help=SETTINGS["data"][2])
    parser.add_argument("--root", default="", help=SETTINGS["root"][2])
    parser.add_argument("--split", default="ready", choices=SETTINGS["split"][1])
    parser.add_argument("--show", metavar="PNG", help="draw training clips as a network gets them")
    args = parser.parse_args()
    cfg = {name: default for name, (default, _, _) in SETTINGS.items()}
    if args.data == "toy":
        cfg |= TOY
    sets = open_data(SimpleNamespace(**cfg | vars(args)), ["train", "val"])

    # What is there, in numbers, and in a picture.
    for split, dataset in sets.items():
        print(f"{split}: {len(dataset)} clips of {len(set(dataset.labels))} "
              f"of {len(dataset.classes)} classes")
    if args.show:
        contact_sheet(sets["train"], args.show)


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, BadVideo) as error:
        sys.exit(f"error: {error}")
