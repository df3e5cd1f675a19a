"""
From video files to batches: find, decode, sample, crop on the CPU; colours, flips and mixing on the device, a batch at a time.

    file -> frames   read_clip decodes only what was asked for: from the key frame before it, skipping what nobody refers to
    frames -> clip   uint8 (T, H, W, 3): T indices over the whole video (one per segment), one crop for all of them
    clips -> batch   uint8 (B, T, H, W, 3) + a few random numbers per clip -> float (B, 3, T, H, W), normalised

Everything random about sample i in epoch e is drawn from a generator seeded with (seed, e, i), and the order of an epoch from
(seed, e). So training is one numbered stream of batches, the same for any number of workers, processes and restarts: to go on
after batch k, start the stream at k + 1. No generator state is ever saved.

The default data, `toy`, needs no files: an L-shape moves left or right, up or down, turns or grows. Its classes are pairs of
each other's time reversals, so a network that does not see the order of frames cannot tell the two of a pair apart.

Sources: Video-FocalNets' released pipeline (arXiv:2307.06947); what differs from it is said where it happens.
Try it: python data.py --show sheet.png                        what the network gets, drawn
        python data.py --data k400 --root DIR --show sheet.png    the same from files, and what was found or is missing there
        python data.py --make_toy DIR                          the toy data as mp4 files in class folders
"""
import argparse
import csv
import os
import signal
import sys
import warnings

import av
import numpy as np
import torch
import torch.nn.functional as F
from av.video.reformatter import VideoReformatter

VIDEO_FILES = (".mp4", ".webm", ".avi", ".mkv", ".mov")
NAMED = ("k400", "k600", "ssv2", "diving48", "activitynet")                # sets whose class names are in assets/classes/

# How a clip is cut and coloured; train.py's recipes add how it is learned. Any number here answers to `--set key=value` there.
PIPELINES = {
    "toy": dict(interval=1, area=None, flip=0.0, jitter=0.0, jitter_per_frame=False, grey=0.0,   # a flip would change the class
                mean=(0.35, 0.35, 0.35), std=(0.3, 0.3, 0.3), views="1x1"),
    "focal": dict(                               # released Video-FocalNets, all data sets; SSv2 with flip=0: it has left and right
        interval=4,                              # the name is the code's; all it does is hide the last 3 frames from training
        area=(0.08, 1.0),                        # random resized crop: share of the frame, aspect 3/4 to 4/3
        flip=0.5,
        jitter=0.8, jitter_per_frame=True,       # probability; brightness .4, contrast .4, saturation .2, hue .1. As released the
        grey=0.2,                                # colours are drawn anew for every frame (they flicker); False: once for the clip
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), views="4x3"),
}


class BadVideo(Exception):
    """A video that cannot be used: 'path: reason'."""


# ------------------------------------------------------------------------------------------------- file -> frames

def every_frame(path):
    """All frames of a video that decode, in the order they are shown; packets that do not decode are passed over."""
    with av.open(path) as container:
        stream = container.streams.best("video")
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1      # workers are the parallelism; threads may hang them
        for packet in container.demux(stream):                                 # ends with an empty packet that drains the decoder
            try:
                yield from packet.decode()
            except av.error.InvalidDataError:
                pass


def wanted_frames(container, stream, packets, wanted):
    """Decode as little as gives the frames with the timestamps `wanted` (sorted): returns {timestamp: frame}, some may be missing."""
    codec, keys = stream.codec_context, [k for k, packet in enumerate(packets) if packet.is_keyframe]
    targets, found, at, shown = set(wanted), {}, 0, -1 << 62                   # at: the next packet; shown: the newest frame out
    for pts in wanted:
        start = max((k for k in keys if packets[k].pts <= pts), default=0)
        if start > at:                                                         # nothing between here and that key frame is needed
            codec.flush_buffers()
            at, shown = start, -1 << 62
        while shown < pts and at <= len(packets):
            packet = packets[at] if at < len(packets) else None                # None drains the decoder
            at += 1
            codec.skip_frame = "DEFAULT" if packet is None or packet.pts in targets else "NONREF"   # skip what no frame refers to
            try:
                frames = codec.decode(packet)
            except av.error.InvalidDataError:
                continue
            for frame in frames:
                shown = max(shown, frame.pts)
                if frame.pts in targets:
                    found[frame.pts] = frame
    return found


def read_clip(path, choose, short_side=None):
    """
    Frames of a video: choose(num_frames) -> indices, any order, repeats allowed. Returns uint8 (len(indices), H, W, 3), RGB,
    upright; with short_side the frames are resized to it (pixels, bilinear with antialiasing, aspect kept).

    mp4, mov, webm and mkv: the timestamps of the packets are the table of frames, and only what is needed is decoded (1.5 times
    the speed of decoding all). Other containers' timestamps lie: there, frames are counted by decoding them, then read.
    Frames that do not decode are replaced by the nearest that does, with a warning that counts them.
    Raises BadVideo: not a video, no video stream, no frames, or more than half of the wanted frames do not decode.
    """
    try:
        with av.open(path) as container:
            stream = container.streams.best("video")
            if stream is None:
                raise BadVideo(f"{path}: no video stream in it")
            stream.thread_type, stream.codec_context.thread_count = "NONE", 1
            packets = [packet for packet in container.demux(stream) if packet.size]
            table = [packet.pts for packet in packets if not packet.is_discard]       # is_discard: cut away by an edit list
            lies = not any(name in container.format.name for name in ("mp4", "matroska"))
            lies = lies or any(packet.pts is None for packet in packets) or len(set(table)) < len(table)
            if not lies:
                table.sort()
                indices = [int(i) for i in choose(len(table))] if table else []
                found = wanted_frames(container, stream, packets, sorted({table[i] for i in indices}))
                frames = [found.get(table[i]) for i in indices]
        if lies:
            count = sum(1 for _ in every_frame(path))
            indices = order = [int(i) for i in choose(count)] if count else []
        elif None in frames:
            good = [frame.pts for frame in every_frame(path)]
            lost = sum(table[i] not in set(good) for i in indices)
            if lost * 2 > len(indices):
                raise BadVideo(f"{path}: {lost} of {len(indices)} frames do not decode")
            warnings.warn(f"{path}: {lost} of {len(indices)} frames do not decode, the nearest good ones stand in")
            order = [int(np.abs(np.array(good) - table[i]).argmin()) for i in indices]
        if not indices:
            raise BadVideo(f"{path}: no frames in it")
        if lies or None in frames:
            wanted = set(order)
            kept = {k: frame for k, frame in enumerate(every_frame(path)) if k in wanted}
            frames = [kept[k] for k in order]
    except (av.error.FFmpegError, OSError) as error:
        raise BadVideo(f"{path}: {error.strerror or error}") from error

    height, width = frames[0].height, frames[0].width
    if short_side and min(height, width) != short_side:
        scale = short_side / min(height, width)
        height, width = int(height * scale + 0.5), int(width * scale + 0.5)
    reformatter, images = VideoReformatter(), {}
    for frame in frames:                                                       # a repeated frame is converted once
        if id(frame) not in images:
            rgb = reformatter.reformat(frame, width, height, "rgb24", interpolation="BILINEAR").to_ndarray()
            images[id(frame)] = np.rot90(rgb, round(frame.rotation / 90))      # phones write the turn beside the pixels
    return torch.from_numpy(np.stack([images[id(frame)] for frame in frames]))


# ------------------------------------------------------------------------------------------------- frames -> clip

def sample_train(n, T, interval, rng):
    """One random frame out of each of T equal segments of n frames, as released: 300 frames, T 8 -> segments of 37."""
    usable = max(n - interval + 1, 0)
    segment = usable // T
    if segment > 0:
        indices = np.arange(T) * segment + rng.integers(segment, size=T)
    elif n > max(T, interval):
        indices = np.sort(rng.integers(usable, size=T))
    else:
        indices = np.around(np.arange(T) * usable / T).astype(int)             # half to even, as numpy does
    return indices % n


def sample_val(n, T, interval):
    """The middle of each segment, as released: 300 frames, T 8, interval 4 -> 18 55 92 129 167 204 241 278."""
    usable = max(n - interval + 1, 0)
    return np.floor((np.arange(T) + 0.5) * usable / T).astype(int) if usable else np.zeros(T, int)


def sample_test(n, T, clips):
    """
    `clips` clips that interleave: clip v takes frame floor(i a + (v + .5) a / clips) of segment i, a = n / T -> (clips, T).
    The released test draws its 4 clips at random, as in training, and gives another number every time; ours is deterministic.
    """
    i, v = np.arange(T), np.arange(clips)[:, None]
    return np.minimum((i * n / T + (v + 0.5) * n / T / clips).astype(int), n - 1)


def random_box(height, width, area, rng):
    """Random resized crop -> (top, left, h, w): `area` a share of the frame, aspect log-uniform in 3/4..4/3, 10 tries, as released."""
    for _ in range(10):
        target, aspect = rng.uniform(*area) * height * width, np.exp(rng.uniform(np.log(3/4), np.log(4/3)))
        w, h = int(round((target * aspect)**0.5)), int(round((target / aspect)**0.5))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def crop_offsets(height, width, size, crops):
    """[(top, left)] of one centre crop, or of three along the longer side: its start, middle and end, as released."""
    if crops == 1:
        return [((height - size) // 2, (width - size) // 2)]
    step_y, step_x = (height - size) // 2, (width - size) // 2                 # one of them is 0: the short side is `size`
    return [(k * step_y, k * step_x) for k in range(3)]


def resize(clip, size):
    """uint8 (T, H, W, 3) -> (T, size, size, 3), bilinear without antialiasing, as cv2 does it in the released pipeline."""
    if clip.shape[1:3] == (size, size):
        return clip
    return F.interpolate(clip.permute(0, 3, 1, 2), (size, size), mode="bilinear").permute(0, 2, 3, 1)


def parse_views(views):
    """'4x3' -> (4, 3): clips along time x crops along the longer side."""
    clips, _, crops = str(views).partition("x")
    if not (clips.isdigit() and int(clips) > 0 and crops in ("1", "3")):
        raise ValueError(f"views={views!r}: write CLIPSxCROPS with 1 or 3 crops, as in 4x3 or 1x1")
    return int(clips), int(crops)


class VideoSet(torch.utils.data.Dataset):
    """
    The samples of one split. Index it with (epoch, i); a training sample depends on (seed, epoch, i) and on nothing else.

    clips      toy: uint8 (n, T, H, W, 3);  otherwise a list of n paths       labels   n class indices       classes   names
    views      None for training, else 'CLIPSxCROPS': 1x1 is the released validation, 4x3 the released test

    A sample is a dict: clip uint8, (T, S, S, 3) in training and (views, T, S, S, 3) otherwise, S = image_size; label; index; bad,
    '' or the reason why this video could not be used; in training also flip, grey and colour (T, 4), for `to_device`.
    In training a bad video is replaced by another sample, drawn from the same generator; in evaluation it stays, as zeros.
    """

    def __init__(self, clips, labels, classes, pipeline, num_frames, image_size, seed=0, views=None):
        self.clips, self.labels, self.classes, self.pipeline = clips, labels, classes, pipeline
        self.num_frames, self.image_size, self.seed = num_frames, image_size, seed
        self.views = views and parse_views(views)

    def __len__(self):
        return len(self.labels)

    def read(self, i, choose, short_side):
        if torch.is_tensor(self.clips):
            return self.clips[i][choose(self.clips.shape[1])]
        return read_clip(self.clips[i], choose, short_side)

    def __getitem__(self, key):
        epoch, i = key
        return self.evaluation_sample(i) if self.views else self.training_sample(i, np.random.default_rng((self.seed, epoch, i)))

    def training_sample(self, i, rng):
        p, T, size, bad, j = self.pipeline, self.num_frames, self.image_size, "", i
        for _ in range(10):
            try:
                frames = self.read(j, lambda n: sample_train(n, T, p["interval"], rng), int(256 / 224 * size))
                break
            except BadVideo as error:
                bad, j = bad or str(error), int(rng.integers(len(self)))
        else:
            raise BadVideo(f"10 unusable videos in a row, the first: {bad}")
        if p["area"]:
            top, left, h, w = random_box(*frames.shape[1:3], p["area"], rng)
            frames = frames[:, top:top+h, left:left+w]
        sample = dict(clip=resize(frames, size), label=self.labels[j], index=i, bad=bad)
        sample["flip"], sample["grey"] = rng.random() < p["flip"], rng.random() < p["grey"]
        if p["jitter"] and rng.random() < p["jitter"]:
            rows = T if p["jitter_per_frame"] else 1
            colour = rng.uniform([.6, .6, .8, -.1], [1.4, 1.4, 1.2, .1], (rows, 4)).repeat(T // rows, axis=0)
        else:
            colour = np.tile([1., 1., 1., 0.], (T, 1))
        sample["colour"] = torch.tensor(colour, dtype=torch.float32)           # brightness, contrast, saturation, hue
        return sample

    def evaluation_sample(self, i):
        (clips, crops), T, size, bad = self.views, self.num_frames, self.image_size, ""
        short_side = size if crops == 3 else int(256 / 224 * size)             # released: 224 for 3 crops, 256 for the centre one
        choose = (lambda n: sample_val(n, T, self.pipeline["interval"])) if clips == 1 else (
                  lambda n: sample_test(n, T, clips).reshape(-1))
        try:
            frames = self.read(i, choose, short_side)                          # one decode for all views
            if torch.is_tensor(self.clips):                                    # toy clips have the right size already
                frames = resize(frames, size)
        except BadVideo as error:
            frames, bad = torch.zeros(clips * T, size, size, 3, dtype=torch.uint8), str(error)
        views = [frames[:, y:y+size, x:x+size].unflatten(0, (clips, T)) for y, x in crop_offsets(*frames.shape[1:3], size, crops)]
        return dict(clip=torch.cat(views), label=self.labels[i], index=i, bad=bad)


# ------------------------------------------------------------------------------------------------- clips -> batch

def stream(n, batch_size, seed, start, stop, rank=0, world=1):
    """
    Batches `start` to `stop` - 1 of training, as lists of (epoch, i): every epoch a permutation drawn from (seed, epoch), cut
    into global batches of world * batch_size, of which each process takes its part; the rest of an epoch is dropped.
    """
    per_epoch = n // (batch_size * world)
    for k in range(start, stop):
        epoch, j = divmod(k, per_epoch)
        if k == start or j == 0:
            order = np.random.default_rng((seed, epoch)).permutation(n)
        at = (j * world + rank) * batch_size
        yield [(epoch, int(i)) for i in order[at:at+batch_size]]


def leave_ctrl_c_to_the_parent(worker):
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def loader(dataset, batches, workers, device):
    """A DataLoader over an iterable of lists of (epoch, i)."""
    return torch.utils.data.DataLoader(dataset, batch_sampler=batches, num_workers=workers, pin_memory=device.type == "cuda",
                                       worker_init_fn=leave_ctrl_c_to_the_parent)


def colour_jitter(x, colour):
    """
    Brightness, contrast, saturation and hue of every frame, in this order. x: float (B, 3, T, H, W) in 0..1, colour: (B, T, 4),
    the first three are factors (1 = as it is), hue is a turn of the colour circle (0 = as it is, 1 = all the way round).
    """
    brightness, contrast, saturation, hue = (c[:, None, :, None, None] for c in colour.unbind(-1))      # (B, 1, T, 1, 1)

    def grey(x):
        return x[:, :1] * 0.299 + x[:, 1:2] * 0.587 + x[:, 2:] * 0.114

    x = (x * brightness).clamp(0, 1)
    x = torch.lerp(grey(x).mean((-2, -1), keepdim=True), x, contrast).clamp(0, 1)
    x = torch.lerp(grey(x), x, saturation).clamp(0, 1)
    value, chroma = x.amax(1, keepdim=True), x.amax(1, keepdim=True) - x.amin(1, keepdim=True)
    r, g, b = x.split(1, dim=1)
    c = chroma.clamp(min=1e-8)                                                 # grey has no hue; any will do
    h = torch.where(value == r, (g - b) / c % 6, torch.where(value == g, (b - r) / c + 2, (r - g) / c + 4)) + 6 * hue
    k = (torch.tensor([5., 3., 1.], device=x.device).view(1, 3, 1, 1, 1) + h) % 6      # HSV -> RGB: v - chroma * clamp(min(k, 4 - k))
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)


def to_device(batch, pipeline, device):
    """A loaded batch -> network input: uint8 (.., T, H, W, 3) to float (B, 3, T, H, W), flipped, coloured (if training), normalised."""
    x = batch["clip"].flatten(0, -5).to(device, non_blocking=True).permute(0, 4, 1, 2, 3).float() / 255
    if "flip" in batch and batch["flip"].any():
        x = torch.where(batch["flip"].to(device)[:, None, None, None, None], x.flip(-1), x)
    if "colour" in batch and pipeline["jitter"]:
        x = colour_jitter(x, batch["colour"].to(device))
    if "grey" in batch and batch["grey"].any():
        grey = (x * torch.tensor([0.299, 0.587, 0.114], device=device).view(1, 3, 1, 1, 1)).sum(1, keepdim=True)
        x = torch.where(batch["grey"].to(device)[:, None, None, None, None], grey, x)
    mean, std = (torch.tensor(pipeline[key], device=device).view(1, 3, 1, 1, 1) for key in ("mean", "std"))
    return (x - mean) / std


def mix(x, labels, num_classes, rng, mixup=0.0, cutmix=0.0, switch=0.5, smoothing=0.0):
    """
    Smoothed targets, then mixup or CutMix of the batch with a permutation of itself, one lambda for all of it, as released.
    x (B, 3, T, H, W), labels (B,) -> x, targets (B, num_classes). mixup, cutmix: the alpha of Beta(alpha, alpha), 0 = off;
    switch: the probability of CutMix where both are on. Sources: arXiv:1710.09412, arXiv:1905.04899.
    """
    targets = torch.full((len(x), num_classes), smoothing / num_classes, device=x.device)
    targets.scatter_(1, labels[:, None], 1 - smoothing + smoothing / num_classes)
    if not (mixup or cutmix):
        return x, targets
    partner = torch.from_numpy(rng.permutation(len(x))).to(x.device)
    if cutmix and (not mixup or rng.random() < switch):
        H, W = x.shape[-2:]
        share = (1 - rng.beta(cutmix, cutmix))**0.5                            # the box is `share` of each side, in every frame
        half_h, half_w, y, z = int(H * share) // 2, int(W * share) // 2, int(rng.integers(H)), int(rng.integers(W))
        top, bottom, left, right = max(y - half_h, 0), min(y + half_h, H), max(z - half_w, 0), min(z + half_w, W)
        x = x.clone()
        x[..., top:bottom, left:right] = x[partner][..., top:bottom, left:right]
        lam = 1 - (bottom - top) * (right - left) / (H * W)                    # what is left of the clip itself, after clipping
    else:
        lam = rng.beta(mixup, mixup)
        x = lam * x + (1 - lam) * x[partner]
    return x, lam * targets + (1 - lam) * targets[partner]


# ------------------------------------------------------------------------------------------------- what is on the disk

TOY_CLASSES = ["left", "right", "up", "down", "clockwise", "anticlockwise", "grow", "shrink"]      # partner of class c: c ^ 1


def toy_clips(n, seed, num_frames=8, size=64):
    """
    n clips of a moving L -> uint8 (n, T, S, S, 3), labels (n,), masks bool (n, T, S, S). Vectorised, 3 ms a clip.
    Lengths are in units of half the canvas, [-1, 1] each way, y down; time runs from -.5 to .5, and the motion is odd in it, so
    the reversed clip is a clip of the partner class with the same place, size, angle, speed and colours.
    """
    g = torch.Generator().manual_seed(seed)

    def uniform(low, high, *shape):
        return torch.rand(n, *shape, generator=g) * (high - low) + low

    labels = torch.arange(n) % 8
    t = torch.linspace(-0.5, 0.5, num_frames) * (labels % 2 * 2 - 1)[:, None]            # (n, T): even classes run backwards
    kind = labels // 2                                                                   # 0 left/right, 1 up/down, 2 turn, 3 scale
    centre, angle, radius = uniform(-.3, .3, 2), uniform(0, 2 * torch.pi), uniform(.38, .5)
    travel, turn, growth = uniform(.5, .9), uniform(1.3, 2.34), uniform(.65, 1.17)
    ground, colour = uniform(0, .3, 3), uniform(.3, 1, 3)
    cx = centre[:, :1] + t * (travel * (kind == 0))[:, None]                             # class 1, right: x grows
    cy = centre[:, 1:] + t * (travel * (kind == 1))[:, None]                             # class 3, down: y grows
    a = angle[:, None] - t * (turn * (kind == 2))[:, None]                               # class 5, anticlockwise: y points down
    r = radius[:, None] * torch.exp(-t * (growth * (kind == 3))[:, None])                # class 7, shrink
    grid = (torch.arange(size) + 0.5) * 2 / size - 1
    clips = torch.empty(n, num_frames, size, size, 3, dtype=torch.uint8)
    masks = torch.empty(n, num_frames, size, size, dtype=torch.bool)
    for i in range(0, n, 32):                                                            # a few at a time: it fits the cache
        cut = [value[i:i+32, :, None, None] for value in (cx, cy, a, r)]
        dx, dy = grid - cut[0], grid[:, None] - cut[1]                                   # (32, T, 1, S), (32, T, S, 1)
        u = (dx * cut[2].cos() + dy * cut[2].sin()) / cut[3]                             # in the frame of the shape
        v = (dy * cut[2].cos() - dx * cut[2].sin()) / cut[3]
        bar = torch.maximum(u.abs() - 1, (v - .6).abs() - .35)                           # < 0 inside: the foot of the L ...
        stem = torch.maximum((u - .65).abs() - .35, v.abs() - .95)                       # ... and its stem
        inside = (0.5 - torch.minimum(bar, stem) * cut[3] * size / 2).clamp(0, 1)        # one pixel of anti-aliasing
        low, high = (c[i:i+32, None, None, None] for c in (ground, colour))
        image = low + inside[..., None] * (high - low)
        image += torch.randn(image.shape, generator=g) * 0.05
        clips[i:i+32], masks[i:i+32] = (image * 255 + 0.5).clamp_(0, 255).to(torch.uint8), inside > 0.5
    return clips, labels, masks


def toy_split(split, seed, num_frames, size):
    """'train': 2048 clips. 'val': 256 others and their exact reversals, noise included -> uint8 (n, T, S, S, 3), labels (n,)."""
    if split == "train":
        return toy_clips(2048, 2 * seed, num_frames, size)[:2]
    clips, labels, _ = toy_clips(256, 2 * seed + 1, num_frames, size)
    return torch.cat([clips, clips.flip(1)]), torch.cat([labels, labels ^ 1])


def class_names(data):
    """The classes of a named data set in the order of the released heads."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "assets", "classes", data + ".txt")
    with open(path, encoding="utf-8") as file:
        return file.read().splitlines()


def is_video(name):
    return name.lower().endswith(VIDEO_FILES) and not name.startswith("._")              # ._x.mp4: litter of macOS archives


def plain(name):
    """'"air_drumming"' -> 'air drumming': class folders and csv files circulate in several spellings."""
    return name.strip().strip('"').replace("_", " ").lower()


def find_videos(data, root, split):
    """
    -> files, labels, classes, and a line that says what was found. `data`: a name, a folder, or a list file; see NO_DATA.
    Raises FileNotFoundError with the expected layout when nothing is there, ValueError for a list that cannot be read.
    """
    lists = [os.path.join(root, *place) for kind in (".csv", ".txt") for place in (("annotations", split + kind), (split + kind,))]
    if os.path.isfile(data):
        lists, root = [data], root if os.path.isdir(root) else os.path.dirname(data)
        beside = os.path.basename(data).replace("train", split)                          # my_train.csv brings my_val.csv
        lists = [path for path in (os.path.join(os.path.dirname(data), beside), data) if os.path.isfile(path)][:1]
    folders = [os.path.join(root, name) for name in (split, f"videos_{split}", f"{split}_256", os.path.join("videos", split))]
    folder = next((path for path in folders if os.path.isdir(path)), None)
    listing = next((path for path in lists if os.path.isfile(path)), None)
    if listing is None and folder is None:
        raise FileNotFoundError(NO_DATA.format(data=data, root=root, split=split))
    names = class_names(data) if data in NAMED else None
    header = open(listing, encoding="utf-8-sig").readline() if listing else ""

    if header.startswith("label,youtube_id"):                                            # Kinetics, as its CVDF copy has it
        on_disk = {}
        places = [folder] + [os.path.join(root, "replacement")] * (split == "train")     # later ones win: repaired videos
        for path in (os.path.join(d, f) for place in places if place for d, _, fs in os.walk(place) for f in fs if is_video(f)):
            on_disk[os.path.basename(path)[:11]] = path                                  # the YouTube id: 11 characters, any of A-z0-9_-
        with open(listing, newline="", encoding="utf-8-sig") as file:
            rows = {row["youtube_id"]: row["label"] for row in csv.DictReader(file)}
        labels_of = {os.path.join(os.path.dirname(listing), s + ".csv") for s in ("train", "val")}
        found = set(rows.values())
        for other in (path for path in labels_of if os.path.isfile(path)):
            with open(other, newline="", encoding="utf-8-sig") as file:
                found |= {row["label"] for row in csv.DictReader(file)}
        pairs = [(on_disk[key], label) for key, label in rows.items() if key in on_disk]
        listed, unlisted = len(rows), len(on_disk.keys() - rows.keys())
    elif listing:                                                                        # 'path label' or 'path,label', no header
        pairs, listed, unlisted = [], 0, 0
        for number, line in enumerate(open(listing, encoding="utf-8-sig").read().splitlines(), 1):
            path, _, label = line.strip().rpartition("," if "," in line and line.rpartition(",")[2].strip().isdigit() else " ")
            if not (path.strip() and label.strip().isdigit()):
                raise ValueError(f"{listing}, line {number}: {line!r} is not 'path label' or 'path,label' with a label of 0 or more")
            listed += 1
            path = os.path.join(root, path.strip())
            if os.path.isfile(path):
                pairs.append((path, int(label)))
        top = max((label for _, label in pairs), default=0)
        classes = names if names and top < len(names) else [str(k) for k in range(top + 1)]
    else:                                                                                # class folders
        pairs = [(os.path.join(d, f), os.path.basename(d)) for d, _, fs in sorted(os.walk(folder)) for f in sorted(fs) if is_video(f)
                 and d != folder]
        found = {name for path in (folder, folder.replace(split, "train"), folder.replace(split, "val")) if os.path.isdir(path)
                 for name in os.listdir(path) if os.path.isdir(os.path.join(path, name))}
        listed, unlisted = len(pairs), 0
    if not (listing and not header.startswith("label,youtube_id")):                      # names to indices: the official ones if
        official = {plain(name): k for k, name in enumerate(names or [])}                # all are official, else ranks
        if found and all(plain(name) in official for name in found):
            classes, pairs = names, [(path, official[plain(label)]) for path, label in pairs]
        else:
            classes = sorted(found)
            pairs = [(path, classes.index(label)) for path, label in pairs]
    where = listing or folder
    if not pairs:
        raise FileNotFoundError(f"{where} is there, but none of its {listed} videos is.\n" + NO_DATA.format(data=data, root=root, split=split))
    report = f"{split}: {listed} videos in {where}, {len(pairs)} on disk, {listed - len(pairs)} missing, {unlisted} on disk without a label"
    return [path for path, _ in pairs], [label for _, label in pairs], classes, report


NO_DATA = """no {split} videos of {data} in {root}. One of these layouts is expected there:
  {root}/annotations/{split}.csv + {root}/{split}/ID_START_END.mp4     Kinetics as the CVDF scripts leave it
  {root}/{split}/CLASS/*.mp4                                           class folders (or videos_{split}/, {split}_256/)
  {root}/{split}.csv or .txt                                           a list: 'path label' or 'path,label' in each line
  have the videos elsewhere: --root DIR          just looking: python train.py   (toy data, nothing to download)"""


def open_data(data, root, split, pipeline, num_frames, image_size, seed=0, views=None):
    """A data set by name, folder or list file -> VideoSet. views None: with training's sampling; else evaluation's. Prints what it found."""
    if data == "toy":
        clips, labels = toy_split(split, seed, num_frames, image_size)
        return VideoSet(clips, labels.tolist(), TOY_CLASSES, pipeline, num_frames, image_size, seed, views)
    if os.path.isdir(data):
        root = data
    elif not os.path.isfile(data) and data not in NAMED:
        raise ValueError(f"--data {data}: neither a folder, nor a list file, nor one of toy, {', '.join(NAMED)}")
    files, labels, classes, report = find_videos(data, root, split)
    print(report)
    return VideoSet(files, labels, classes, pipeline, num_frames, image_size, seed, views)


# ------------------------------------------------------------------------------------------------- looking at it

def contact_sheet(dataset, path, clips=8):
    """Draw training clips as the network gets them, one a row, frames left to right, with their labels; one clip of each class first."""
    try:
        import matplotlib
        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        sys.exit("drawing needs matplotlib: pip install matplotlib")
    first = {label: i for i, label in reversed(list(enumerate(dataset.labels)))}
    chosen = sorted(sorted(first.values()) + [i for i in range(len(dataset)) if i not in first.values()][:clips], key=lambda i: (
        i not in first.values(), dataset.labels[i]))[:clips]
    batch = torch.utils.data.default_collate([dataset[0, i] for i in chosen])
    x = to_device(batch, dataset.pipeline, torch.device("cpu"))                          # (B, 3, T, H, W)
    mean, std = (torch.tensor(dataset.pipeline[key]).view(1, 3, 1, 1, 1) for key in ("mean", "std"))
    rows = (x * std + mean).clamp(0, 1).permute(0, 3, 2, 4, 1).flatten(2, 3)             # (B, H, T*W, 3)
    figure, axes = plt.subplots(len(rows), 1, figsize=(1.1 * dataset.num_frames + 1.6, 1.15 * len(rows)), squeeze=False)
    for axis, row, label in zip(axes[:, 0], rows, batch["label"]):
        axis.imshow(row.numpy())
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_ylabel(dataset.classes[label], rotation=0, ha="right", va="center", fontsize=9)
    figure.tight_layout(pad=0.4)
    figure.savefig(path, dpi=100)
    print(f"{path}: {len(rows)} clips of {dataset.num_frames} frames, {dataset.image_size} x {dataset.image_size} pixels")


def make_toy(folder, seed=0):
    """The toy data as mp4 files, DIR/{train,val}/CLASS/00000.mp4: H.264, 8 frames a second."""
    for split in ("train", "val"):
        clips, labels = toy_split(split, seed, 8, 64)
        for name in TOY_CLASSES:
            os.makedirs(os.path.join(folder, split, name), exist_ok=True)
        for i, (clip, label) in enumerate(zip(clips.numpy(), labels.tolist())):
            with av.open(os.path.join(folder, split, TOY_CLASSES[label], f"{i:05d}.mp4"), "w") as container:
                video = container.add_stream("libx264", rate=8, options={"crf": "12"})
                video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
                for image in clip:
                    container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
                container.mux(video.encode())
        print(f"{folder}/{split}: {len(clips)} videos in {len(TOY_CLASSES)} class folders")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="check a data set, draw what the network sees, write the toy data as mp4 files")
    parser.add_argument("--data", default="toy", help=f"toy, {', '.join(NAMED)}, a folder, or a list file (default: toy)")
    parser.add_argument("--root", help="where the videos are (default: data/NAME)")
    parser.add_argument("--show", metavar="PNG", help="draw clips as the network gets them in training")
    parser.add_argument("--make_toy", metavar="DIR", help="write the toy data as mp4 files in class folders")
    args = parser.parse_args()
    if args.make_toy:
        make_toy(args.make_toy)
        sys.exit()
    try:
        size = 64 if args.data == "toy" else 224
        pipeline = PIPELINES["toy" if args.data == "toy" else "focal"]
        for split in ("val", "train"):
            dataset = open_data(args.data, args.root or os.path.join("data", args.data), split, pipeline, 8, size)
            print(f"{split}: {len(dataset)} clips, {len(dataset.classes)} classes")
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
    if args.show:
        contact_sheet(dataset, args.show)
