"""
From video files to batches: find, decode, sample and crop on the CPU; colours, flips and mixing on
the device, a batch at a time.

    file -> frames   decode only what was asked for: from the key frame before it, without the
                     frames that nobody refers to
    frames -> clip   T indices over the whole video, one crop for all of them: uint8 (T, S, S, 3)
    clips -> batch   uint8 clips and a few random numbers -> float (B, 3, T, S, S), normalised

Everything random about sample i in epoch e comes from a generator seeded with (seed, e, i), and the
order of an epoch from (seed, e). So training is one numbered stream of batches, the same for any
number of workers, processes and restarts: to go on after batch k, start the stream at k + 1.

The default data, `toy`, needs no files: an L moves left or right, up or down, turns or grows. Its
classes are pairs of each other's time reversals, so a network that is blind to the order of frames
cannot tell the two of a pair apart.

Source: the pipeline released with arXiv:2307.06947; where ours differs, the line says so.
Try it: python data.py --show sheet.png                         what the network gets, drawn
        python data.py --data k400 --root DIR --show sheet.png  the same from files; what is missing
        python data.py --make_toy DIR                           the toy data as mp4 files
"""
import argparse
import collections
import csv
import functools
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
NAMED = ("k400", "k600", "ssv2", "diving48", "activitynet")       # class names in assets/classes/

# How a clip is cut and coloured; train.py's recipes add how it is learned, and its
# `--set key=value` reaches any number here.
OFF = dict(sampling="segments", interval=1, margin=1.0, crop=None, flip=0.0, jitter=0.0,
           jitter_per_frame=False, grey=0.0, auto_augment=False, erase=0.0)
PIPELINES = {
    "toy": OFF | dict(mean=(0.35, 0.35, 0.35), std=(0.3, 0.3, 0.3), views="1x1"),   # a flip would change the class
    "focal": OFF | dict(          # released Video-FocalNets, all data sets (for SSv2 with flip=0)
        interval=4,               # the code's name; all it does is hide the last 3 frames from training
        margin=256/224,           # short side before cropping, in units of the crop
        crop=("area", 0.08, 1.0), # random resized crop: share of the frame
        flip=0.5,
        jitter=0.8,               # probability; brightness .4, contrast .4, saturation .2, hue .1
        jitter_per_frame=True,    # as released: drawn anew for every frame, so that colours flicker
        grey=0.2,
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), views="4x3"),
    "lvt_ssv2": OFF | dict(       # released Linear Video Transformer
        sampling="tsn", margin=256/224,
        crop=("short_side", 256/224, 320/224),     # of the frame that a square of 1 is cut from
        auto_augment=True, erase=0.5, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), views="2x3"),
    "lvt_kinetics": OFF | dict(
        sampling="dense", interval=16,             # windows of 16 T frames; theirs are longer at over 30 fps
        margin=256/224, crop=("multi_scale",), flip=0.5, auto_augment=True,
        mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), views="4x3"),
}


class BadVideo(Exception):
    """A video that cannot be used: 'path: reason'."""


# ----------------------------------------------------------------------------- file -> frames

def every_frame(path):
    """All frames that decode, in the order they are shown; packets that do not are passed over."""
    with av.open(path) as container:
        stream = container.streams.best("video")
        stream.thread_type = "NONE"                 # the workers are the parallelism
        for packet in container.demux(stream):      # ends with an empty packet: drains the decoder
            try:
                yield from packet.decode()
            except av.error.InvalidDataError:
                pass


def wanted_frames(codec, packets, wanted):
    """Decode as little as gives the sorted times `wanted` -> {timestamp: frame}, {} if damaged."""
    keys = [k for k, packet in enumerate(packets) if packet.is_keyframe]
    targets, found = set(wanted), {}
    at, shown = 0, -1 << 62                         # the next packet; the newest frame that came out
    for pts in wanted:
        start = max((k for k in keys if packets[k].pts <= pts), default=0)
        if start > at:                              # jump: nothing before that key frame is needed
            codec.flush_buffers()
            at, shown = start, -1 << 62
        while shown < pts and at <= len(packets):
            packet = packets[at] if at < len(packets) else None                  # None drains
            at += 1
            needed = packet is None or packet.pts in targets
            codec.skip_frame = "DEFAULT" if needed else "NONREF"                 # NONREF: nobody refers to it
            try:
                frames = codec.decode(packet)
            except av.error.InvalidDataError:
                return {}                           # what refers to this frame will be wrong, too
            for frame in frames:
                shown = max(shown, frame.pts)
                if frame.pts in targets:
                    found[frame.pts] = frame
    return found


def read_clip(path, choose, short_side=None):
    """
    Frames of a video. choose(num_frames) -> indices, in any order, repeats allowed.
    Returns uint8 (len(indices), H, W, 3), RGB, upright. short_side: resize to it, keeping the
    aspect (bilinear with antialiasing, in the decoder; the released pipeline's has none).

    mp4, mov, webm, mkv: the packets' timestamps are the table of frames, and only what is needed is
    decoded. Elsewhere (avi) timestamps lie: frames are counted by decoding them, then read.
    A frame that does not decode is replaced by the nearest that does, with a warning that counts.
    Raises BadVideo: no video, no frames, or more than half of the wanted ones do not decode.
    """
    try:
        with av.open(path) as container:
            stream = container.streams.best("video")
            if stream is None:
                raise BadVideo(f"{path}: no video stream in it")
            stream.thread_type = "NONE"
            packets = [packet for packet in container.demux(stream) if packet.size]
            table = [p.pts for p in packets if not p.is_discard]     # discard: cut by an edit list
            frames = None
            honest = any(name in container.format.name for name in ("mp4", "matroska"))
            if (honest and all(p.pts is not None for p in packets)
                    and len(set(table)) == len(table) > 0):
                table.sort()
                indices = choose(len(table))
                found = wanted_frames(stream.codec_context, packets,
                                      sorted({table[i] for i in indices}))
                frames = [found.get(table[i]) for i in indices]
        if frames is None or None in frames:                         # the slow way: decode all, twice
            good = [frame.pts for frame in every_frame(path)]
            if not good:
                raise BadVideo(f"{path}: no frames in it")
            if frames is None:
                order = choose(len(good))
            else:
                lost = sum(table[i] not in good for i in indices)
                if lost * 2 > len(frames):
                    raise BadVideo(f"{path}: {lost} of {len(frames)} frames do not decode")
                if lost:
                    warnings.warn(f"{path}: {lost} of {len(frames)} frames do not decode, "
                                  "the nearest good ones stand in")
                order = [np.abs(np.array(good) - table[i]).argmin() for i in indices]
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
    for frame in frames:                                             # a repeated frame is converted once
        if id(frame) not in images:
            rgb = reformatter.reformat(
                frame, width, height, "rgb24", interpolation="BILINEAR").to_ndarray()
            images[id(frame)] = np.rot90(rgb, round(frame.rotation / 90))    # phones note the turn beside
    return torch.from_numpy(np.stack([images[id(frame)] for frame in frames]))


# ----------------------------------------------------------------------------- frames -> clip

def sample_train(n, T, interval, rng):
    """One random frame from each of T equal segments of n. 300 frames, T 8: segments of 37."""
    usable = max(n - interval + 1, 0)
    segment = usable // T
    if segment > 0:
        indices = np.arange(T) * segment + rng.integers(segment, size=T)
    elif n > max(T, interval):
        indices = np.sort(rng.integers(usable, size=T))
    else:
        indices = np.around(np.arange(T) * usable / T).astype(int)   # half to even, as numpy does
    return indices % n


def sample_val(n, T, interval):
    """The middle of each segment. 300 frames, T 8, interval 4: 18 55 92 129 167 204 241 278."""
    return (2 * np.arange(T) + 1) * max(n - interval + 1, 0) // (2 * T)


def sample_test(n, T, clips):
    """
    -> (clips, T). Clip v takes frame floor(i a + (v + .5) a / clips) of segment i, a = n / T: the
    clips interleave. The released test draws its 4 clips at random, as in training, so that its
    score changes from run to run (+-0.3, its README says); ours does not.
    """
    i, v = np.arange(T), np.arange(clips)[:, None]
    return (2 * clips * i + 2 * v + 1) * n // (2 * clips * T)


def sample_tsn(n, T, rng=None, clip=0):
    """A random frame from each of T segments of n frames, which share their ends; without rng its
    middle, start or end (clip 0, 1, 2). 50 frames, T 8, clip 1: 0 6 12 18 24 31 37 43."""
    edges = np.round((n - 1) / T * np.arange(T + 1)).astype(int)           # half to even
    start, end = edges[:-1], edges[1:]
    return rng.integers(start, end + 1) if rng else ((start + end) // 2, start, end)[clip]


def sample_dense(n, T, interval, position):
    """T frames spread over a window of T * interval at `position`, 0 to 1, of where it fits; n - 1
    where the video is over. T 8, interval 4, position 0: 0 4 8 13 17 22 26 31."""
    start = position * max(n - T * interval, 0)
    return torch.linspace(start, start + T * interval - 1, T).long().clamp(max=n - 1).numpy()


def frames_of(p, T, clips, rng):
    """-> choose(n), a pipeline's indices: (T,) in training, (clips * T,) in evaluation (no rng)."""
    def choose(n):
        if p["sampling"] == "tsn":
            if rng or clips <= 2:                   # as released: test clip 0 the middles, clip 1 the starts
                return np.concatenate([sample_tsn(n, T, rng, v) for v in range(clips)])
        elif p["sampling"] == "dense":              # as released: test clips start at v/clips, never at the end
            where = ([rng.random()] if rng else [0.5] if clips == 1
                     else [v / clips for v in range(clips)])
            return np.concatenate([sample_dense(n, T, p["interval"], x) for x in where])
        elif rng or clips == 1:
            return (sample_train(n, T, p["interval"], rng) if rng
                    else sample_val(n, T, p["interval"]))
        return sample_test(n, T, clips).reshape(-1)
    return choose


def random_box(height, width, area, rng):
    """Random resized crop -> (top, left, h, w): a share `area` of the frame, aspect 3/4 to 4/3."""
    for _ in range(10):
        pixels = rng.uniform(*area) * height * width
        aspect = np.exp(rng.uniform(np.log(3/4), np.log(4/3)))
        h, w = round((pixels / aspect)**0.5), round((pixels * aspect)**0.5)
        if 0 < h <= height and 0 < w <= width:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def multi_scale_crop(height, width, rng):
    """Crop of TSN -> (top, left, h, w): sides of 1, .875, .75 or .66 of the short side, at most one
    step apart; in the middle, at an edge, in a corner or halfway to one. TSN makes sides within 2
    pixels of the network's input equal to it; that rule is left out (224 of 256 is 224 anyway)."""
    sides = [int(min(height, width) * scale) for scale in (1, .875, .75, .66)]
    shapes = [(h, w) for i, h in enumerate(sides) for w in sides[max(i-1, 0):i+2]]
    places = [(y, x) for y in range(5) for x in range(5) if y % 2 == x % 2]        # 13, in quarters
    (h, w), (y, x) = rng.choice(shapes).tolist(), rng.choice(places).tolist()
    return y * ((height - h) // 4), x * ((width - w) // 4), h, w


def erase_box(height, width, rng, p):
    """With probability p a box to set to 0 -> (top, left, h, w): 1/50 to 1/3 of the frame, h / w .3
    to 1/.3; h = w = 0 otherwise and where none fits in 10 tries. Source: arXiv:1708.04896, timm."""
    for _ in range(10 if rng.random() < p else 0):
        pixels = rng.uniform(1/50, 1/3) * height * width
        aspect = np.exp(rng.uniform(np.log(0.3), np.log(1/0.3)))
        h, w = round((pixels * aspect)**0.5), round((pixels / aspect)**0.5)
        if h < height and w < width:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    return 0, 0, 0, 0


def training_box(height, width, crop, rng):
    """(top, left, h, w) of a crop ('area' or 'short_side', low, high), or ('multi_scale',)."""
    if crop[0] == "area":
        return random_box(height, width, crop[1:], rng)
    if crop[0] == "multi_scale":
        return multi_scale_crop(height, width, rng)
    side = int(min(height, width) / rng.uniform(*crop[1:]))
    return int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1)), side, side


def crop_offsets(height, width, size, crops):
    """[(top, left)] of 1 crop in the centre, or of 3 along the longer side: start, middle, end."""
    step_y, step_x = (height - size) // 2, (width - size) // 2
    return [(step_y, step_x)] if crops == 1 else [(k * step_y, k * step_x) for k in range(3)]


def resize(clip, size):
    """uint8 (T, H, W, 3) -> (T, size, size, 3), bilinear, no antialiasing, as released (cv2)."""
    if clip.shape[1:3] == (size, size):
        return clip
    return F.interpolate(
        clip.permute(0, 3, 1, 2), (size, size), mode="bilinear").permute(0, 2, 3, 1)


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
    views     None: training samples;       else CLIPSxCROPS: 1x1 is the released validation

    A sample is a dict: clip, uint8 (T, S, S, 3) in training and (views, T, S, S, 3) otherwise, S =
    image_size; label; index; bad, '' or why this video cannot be used; in training also flip, grey,
    colour (T, 4) and erase (4,), for `to_device`. A bad video is replaced in training, by a sample
    drawn from the same generator, and never in evaluation: there it stays, as zeros.
    """

    def __init__(self, clips, labels, classes, pipeline, num_frames, image_size, seed=0,
                 views=None):
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
        if self.views:
            return self.evaluation_sample(i)
        return self.training_sample(i, np.random.default_rng((self.seed, epoch, i)))

    def training_sample(self, i, rng):
        p, T, size, bad, j = self.pipeline, self.num_frames, self.image_size, "", i
        for _ in range(10):
            try:
                frames = self.read(j, frames_of(p, T, 1, rng), int(p["margin"] * size))
                break
            except BadVideo as error:
                bad, j = bad or str(error), int(rng.integers(len(self)))
        else:
            raise BadVideo(f"10 unusable videos in a row, the first is {bad}")
        if p["auto_augment"]:                                                # as released, before the crop
            frames = auto_augment(frames, rng)
        if p["crop"]:
            top, left, h, w = training_box(*frames.shape[1:3], p["crop"], rng)
            frames = frames[:, top:top+h, left:left+w]
        flip, grey, jitter = rng.random(3) < (p["flip"], p["grey"], p["jitter"])
        rows = T if p["jitter_per_frame"] else 1
        colour = rng.uniform((.6, .6, .8, -.1), (1.4, 1.4, 1.2, .1), (rows, 4))
        colour = np.broadcast_to(colour if jitter else (1, 1, 1, 0), (T, 4))   # brightness, contrast, saturation, hue
        return dict(clip=resize(frames, size), label=self.labels[j], index=i, bad=bad, flip=flip,
                    grey=grey, colour=torch.tensor(colour, dtype=torch.float32),
                    erase=torch.tensor(erase_box(size, size, rng, p["erase"])))

    def evaluation_sample(self, i):
        (clips, crops), T, size, bad = self.views, self.num_frames, self.image_size, ""
        # As released: three crops come from a frame with short side 224, the one crop from 256.
        short_side = size if crops == 3 else int(self.pipeline["margin"] * size)
        try:
            frames = self.read(i, frames_of(self.pipeline, T, clips, None), short_side)      # one decode for all
        except BadVideo as error:
            frames, bad = torch.zeros(clips * T, size, size, 3, dtype=torch.uint8), str(error)
        offsets = crop_offsets(*frames.shape[1:3], size, crops)
        views = [frames[:, y:y+size, x:x+size].unflatten(0, (clips, T)) for y, x in offsets]
        return dict(clip=torch.cat(views), label=self.labels[i], index=i, bad=bad)


# ----------------------------------------------------------------------------- AutoAugment

# Policy "v0" as in timm: 25 pairs of (operation, probability, level out of 10). Some do nothing, as
# released: probability 0, Solarize at 10. Posterize at 2 keeps 0 bits: a black clip.
AUTO_AUGMENT = (
    (("Equalize", .8, 1), ("ShearY", .8, 4)), (("Color", .4, 9), ("Equalize", .6, 3)),
    (("Color", .4, 1), ("Rotate", .6, 8)), (("Solarize", .8, 3), ("Equalize", .4, 7)),
    (("Solarize", .4, 2), ("Solarize", .6, 2)), (("Color", .2, 0), ("Equalize", .8, 8)),
    (("Equalize", .4, 8), ("SolarizeAdd", .8, 3)), (("ShearX", .2, 9), ("Rotate", .6, 8)),
    (("Color", .6, 1), ("Equalize", 1., 2)), (("Invert", .4, 9), ("Rotate", .6, 0)),
    (("Equalize", 1., 9), ("ShearY", .6, 3)), (("Color", .4, 7), ("Equalize", .6, 0)),
    (("Posterize", .4, 6), ("AutoContrast", .4, 7)), (("Solarize", .6, 8), ("Color", .6, 9)),
    (("Solarize", .2, 4), ("Rotate", .8, 9)), (("Rotate", 1., 7), ("TranslateYRel", .8, 9)),
    (("ShearX", 0., 0), ("Solarize", .8, 4)), (("ShearY", .8, 0), ("Color", .6, 4)),
    (("Color", 1., 0), ("Rotate", .6, 2)), (("Equalize", .8, 4), ("Equalize", 0., 8)),
    (("Equalize", 1., 4), ("AutoContrast", .6, 2)), (("ShearY", .4, 7), ("SolarizeAdd", .6, 7)),
    (("Posterize", .8, 2), ("Solarize", .6, 10)), (("Solarize", .6, 8), ("Equalize", .6, 1)),
    (("Color", .8, 6), ("Rotate", .4, 5)))



def affine(clip, a, b, c, d, e, f):
    """uint8 (T, H, W, 3): (x, y), from the centre, gets what was at (ax + by + c, dx + ey + f), and
    from outside timm's grey, 128. Bilinear, rounded down, as PIL; timm is bicubic half the time."""
    T, H, W, _ = clip.shape
    y, x = torch.meshgrid(*(torch.arange(n).double() + (1-n) / 2 for n in (H, W)), indexing="ij")
    grid = torch.stack([(a * x + b * y + c) * 2 / W, (d * x + e * y + f) * 2 / H], dim=-1)
    out = clip.permute(0, 3, 1, 2).reshape(1, T * 3, H, W).double()
    out = F.grid_sample(out, grid[None], padding_mode="border", align_corners=False)
    out[..., ((grid < -1) | (grid >= 1)).any(-1)] = 128
    return (out + 1e-6).to(torch.uint8).view(T, 3, H, W).permute(0, 2, 3, 1)     # 99.9... is 100


def augment(clip, name, level, sign):
    """An operation of AutoAugment: uint8 (T, H, W, 3), level 0..10, sign +-1, all frames alike."""
    T, H, W, _ = clip.shape
    m, s, turn = level / 10, sign * level / 10, sign * level / 10 * np.pi / 6
    moves = dict(ShearX=(1, .3 * s, .15 * s * H, 0, 1, 0), ShearY=(1, 0, 0, .3 * s, 1, .15 * s * W),
                 TranslateYRel=(1, 0, 0, 0, 1, .45 * s * H),               # shears fix the top left
                 Rotate=(np.cos(turn), -np.sin(turn), 0, np.sin(turn), np.cos(turn), 0))
    if name in moves:
        return affine(clip, *moves[name])
    if name == "Color":
        grey = (clip.float() @ torch.tensor([19595., 38470, 7471]) / 2**16 + 0.5).floor()[..., None]
        return (grey + (m * 1.8 + 0.1) * (clip - grey)).clamp(0, 255).to(torch.uint8)
    # The rest are tables of 256 values; Equalize and AutoContrast have one per frame and channel.
    at = clip + 256 * torch.arange(T * 3).view(T, 1, 1, 3)                 # in all tables, in a row
    i, low, high = torch.arange(256), clip.amin((1, 2))[..., None], clip.amax((1, 2))[..., None]
    if name == "Equalize":
        count = torch.bincount(at.flatten(), minlength=T * 768).view(T, 3, 256)
        step = (H * W - count.gather(2, high.long())) // 255
        table = (step // 2 + count.cumsum(2) - count) // step.clamp(min=1)
        table = torch.where(step > 0, table.clamp(max=255), i)
    elif name == "AutoContrast":
        scale = torch.tensor(255.) / (high - low).double()               # 255 / x is 255 * (1 / x)
        table = torch.where(high > low, (i * scale - low * scale).clamp(0, 255), i.double())
    else:
        table = dict(Invert=255 - i, Posterize=i & -(1 << 8 - int(m * 4)),
                     Solarize=torch.where(i < int(m * 256), i, 255 - i),
                     SolarizeAdd=torch.where(i < 128, (i + int(m * 110)).clamp(max=255), i))[name]
    return table.to(torch.uint8).expand(T, 3, 256).flatten()[at]


def auto_augment(clip, rng):
    """AutoAugment (arXiv:1805.09501) on uint8 (T, H, W, 3): 1 of the 25 pairs, all frames alike."""
    for name, probability, level in AUTO_AUGMENT[rng.integers(len(AUTO_AUGMENT))]:
        apply, minus = rng.random(2) < (probability, 0.5)
        if apply:
            clip = augment(clip, name, level, -1 if minus else 1)
    return clip


# ----------------------------------------------------------------------------- clips -> batch

def stream(n, batch_size, seed, start, stop, rank=0, world=1):
    """
    Batches `start` to `stop` - 1 of training, as lists of (epoch, i). Every epoch is a permutation
    of the n samples, drawn from (seed, epoch) and cut into global batches of world * batch_size;
    each process takes its part. What does not fill a batch is dropped, another rest every epoch.
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
    return torch.utils.data.DataLoader(
        dataset, batch_sampler=batches, num_workers=workers, pin_memory=device.type == "cuda",
        worker_init_fn=leave_ctrl_c_to_the_parent)


def grey_of(x):
    """(B, 3, ...) -> (B, 1, ...): the luma of ITU-R 601, as PIL and torchvision take it."""
    return 0.299 * x[:, 0:1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:3]


def colour_jitter(x, colour):
    """
    Brightness, contrast, saturation, hue, in this order, of every frame: x float (B, 3, T, H, W) in
    0..1, colour (B, T, 4): three factors, and a turn of the hue (1 = once round the colour circle).
    """
    brightness, contrast, saturation, hue = colour[:, None, :, None, None].unbind(-1)    # (B, 1, T, 1, 1)
    x = (x * brightness).clamp(0, 1)
    x = torch.lerp(grey_of(x).mean((-2, -1), keepdim=True), x, contrast).clamp(0, 1)
    x = torch.lerp(grey_of(x), x, saturation).clamp(0, 1)
    value, chroma = x.amax(1, keepdim=True), x.amax(1, keepdim=True) - x.amin(1, keepdim=True)
    r, g, b = x.split(1, dim=1)
    c = chroma.clamp(min=1e-8)                                     # grey has no hue: any will do
    h = torch.where(value == r, (g - b) / c,
                    torch.where(value == g, (b - r) / c + 2, (r - g) / c + 4))
    k = (torch.tensor([5., 3., 1.], device=x.device).view(1, 3, 1, 1, 1) + h + 6 * hue) % 6
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)    # HSV -> RGB, one formula for all three


def to_device(batch, pipeline, device):
    """A batch for the network: uint8 (.., T, S, S, 3) -> float (B, 3, T, S, S), normalised."""
    x = (batch["clip"].flatten(0, -5).to(device, non_blocking=True)
         .permute(0, 4, 1, 2, 3).float() / 255)
    if "flip" in batch and pipeline["flip"]:
        x = torch.where(batch["flip"].to(device)[:, None, None, None, None], x.flip(-1), x)
    if "colour" in batch and pipeline["jitter"]:
        x = colour_jitter(x, batch["colour"].to(device))
    if "grey" in batch and pipeline["grey"]:
        x = torch.where(batch["grey"].to(device)[:, None, None, None, None], grey_of(x), x)
    mean, std = (torch.tensor(pipeline[key], device=device).view(1, 3, 1, 1, 1)
                 for key in ("mean", "std"))
    x = (x - mean) / std
    if "erase" in batch and pipeline["erase"]:
        top, left, h, w = batch["erase"].to(device)[:, :, None, None].unbind(1)                  # (B, 1, 1)
        y, z = (torch.arange(x.shape[-2], device=device)[:, None],
                torch.arange(x.shape[-1], device=device))
        inside = (y >= top) & (y < top + h) & (z >= left) & (z < left + w)                       # (B, S, S)
        x = x.masked_fill(inside[:, None, None], 0)                     # the mean colour, in all frames
    return x


def mix(x, labels, num_classes, rng, mixup=0.0, cutmix=0.0, switch=0.5, smoothing=0.0):
    """
    Smoothed targets, then mixup or CutMix with a permutation of the batch, one lambda for all.
    x (B, 3, T, H, W), labels (B,) -> x, targets (B, num_classes). mixup, cutmix: alpha of the Beta,
    0 = off; switch: probability of CutMix if both are on. Source: arXiv:1710.09412, 1905.04899.
    """
    targets = torch.full((len(x), num_classes), smoothing / num_classes, device=x.device)
    targets.scatter_(1, labels[:, None], 1 - smoothing + smoothing / num_classes)
    if not (mixup or cutmix):
        return x, targets
    partner = torch.from_numpy(rng.permutation(len(x))).to(x.device)
    if cutmix and (not mixup or rng.random() < switch):
        H, W = x.shape[-2:]
        share = (1 - rng.beta(cutmix, cutmix))**0.5                # of each side; the same box in every frame
        cy, cx, half_h, half_w = (
            rng.integers(H), rng.integers(W), int(H * share) // 2, int(W * share) // 2)
        top, bottom, left, right = (max(cy - half_h, 0), min(cy + half_h, H),
                                    max(cx - half_w, 0), min(cx + half_w, W))
        x = x.clone()
        x[..., top:bottom, left:right] = x[partner][..., top:bottom, left:right]
        keep = 1 - (bottom - top) * (right - left) / (H * W)       # what is left of the clip, after clipping
    else:
        keep = rng.beta(mixup, mixup)
        x = keep * x + (1 - keep) * x[partner]
    return x, keep * targets + (1 - keep) * targets[partner]


# ----------------------------------------------------------------------------- the toy data

TOY_CLASSES = ["left", "right", "up", "down", "clockwise", "anticlockwise", "grow", "shrink"]


def toy_clips(n, seed, num_frames=8, size=64):
    """
    n clips of a moving L -> uint8 (n, T, S, S, 3), labels (n,), masks of the L bool (n, T, S, S).
    Lengths in units of half the canvas, [-1, 1] each way, y down; time from -.5 to .5. Every motion
    is odd in time: the reversed clip is a clip of the partner class, c ^ 1, with the same place,
    size, angle, speed and colours. The ranges are what makes it learnable: with any two colours,
    smaller shapes or slower turns a small network stays at chance. 3 ms a clip.
    """
    g = torch.Generator().manual_seed(seed)

    def uniform(low, high, *shape):
        return torch.rand(n, *shape, generator=g) * (high - low) + low

    labels = torch.arange(n) % 8
    t = torch.linspace(-0.5, 0.5, num_frames) * (labels % 2 * 2 - 1)[:, None]          # (n, T) even classes backwards
    left, up, turn, grow = (labels[:, None] // 2 == kind for kind in range(4))
    centre, angle, radius = uniform(-.3, .3, 2, 1), uniform(0, 2 * torch.pi, 1), uniform(.38, .5, 1)
    x = centre[:, 0] + left * t * uniform(.5, .9, 1)
    y = centre[:, 1] + up * t * uniform(.5, .9, 1)
    angle = angle - turn * t * uniform(1.3, 2.34, 1)                                   # radians; y is down
    radius = radius * torch.exp(grow * -t * uniform(.65, 1.17, 1))
    ground, colour = uniform(0, .3, 3), uniform(.3, 1, 3)

    grid = (torch.arange(size) + 0.5) * 2 / size - 1
    clips = torch.empty(n, num_frames, size, size, 3, dtype=torch.uint8)
    masks = torch.empty(n, num_frames, size, size, dtype=torch.bool)
    for i in range(0, n, 32):                                                          # 32 clips fit the cache
        x0, y0, a, r = (value[i:i+32, :, None, None] for value in (x, y, angle, radius))
        dx, dy = grid - x0, grid[:, None] - y0                                         # (32, T, 1, S), (32, T, S, 1)
        u, v = (dx * a.cos() + dy * a.sin()) / r, (dy * a.cos() - dx * a.sin()) / r    # in the frame of the L
        bar = torch.maximum(u.abs() - 1, (v - .6).abs() - .35)                         # distance to its foot, < 0 in it
        stem = torch.maximum((u - .65).abs() - .35, v.abs() - .95)                     # and to its stem
        alpha = (0.5 - torch.minimum(bar, stem) * r * size / 2).clamp(0, 1)            # one pixel of anti-aliasing
        low, high = (c[i:i+32, None, None, None] for c in (ground, colour))
        image = low + alpha[..., None] * (high - low)
        image += 0.05 * torch.randn(image.shape, generator=g)
        clips[i:i+32], masks[i:i+32] = (
            (image * 255 + 0.5).clamp(0, 255).to(torch.uint8), alpha > 0.5)
    return clips, labels, masks


@functools.lru_cache(maxsize=6)
def toy_split(split, seed, num_frames=8, size=64):
    """-> clips, labels. 'train': 2048. 'val': 256 others, then their exact reversals, noise too."""
    if split == "train":
        return toy_clips(2048, 2 * seed, num_frames, size)[:2]
    clips, labels, _ = toy_clips(256, 2 * seed + 1, num_frames, size)
    return torch.cat([clips, clips.flip(1)]), torch.cat([labels, labels ^ 1])


def make_toy(folder, seed=0):
    """The toy data as mp4 files, DIR/{train,val}/CLASS/00000.mp4: H.264, 8 frames a second."""
    for split in ("train", "val"):
        clips, labels = toy_split(split, seed)
        for name in TOY_CLASSES:
            os.makedirs(os.path.join(folder, split, name), exist_ok=True)
        for i, (clip, label) in enumerate(zip(clips.numpy(), labels)):
            with av.open(os.path.join(folder, split, TOY_CLASSES[label], f"{i:05d}.mp4"),
                         "w") as container:
                video = container.add_stream("libx264", rate=8, options={"crf": "12"})
                video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
                for image in clip:
                    container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
                container.mux(video.encode())
        print(f"{folder}/{split}: {len(clips)} videos in {len(TOY_CLASSES)} class folders")


# ----------------------------------------------------------------------------- what is on the disk

NO_DATA = """no {split} videos of {data} in {root}. One of these is expected there:
  {root}/annotations/{split}.csv and {root}/{split}/ID_START_END.mp4    Kinetics, as the CVDF \
scripts leave it
  {root}/{split}/CLASS/*.mp4    class folders (or videos_{split}/, {split}_256/)
  {root}/{split}.csv or .txt    a list, one 'path label' or 'path,label' a line
have the videos elsewhere: --root DIR      just looking: python train.py"""


def class_names(data):
    """The classes of a named data set, in the order of the released heads."""
    here = os.path.dirname(os.path.abspath(__file__))
    with open(os.path.join(here, "assets", "classes", data + ".txt"), encoding="utf-8") as file:
        return file.read().splitlines()


def plain(label):
    """'"Air_drumming"' -> 'air drumming': names circulate in several spellings."""
    return label.strip(' "').replace("_", " ").lower()


def videos_below(folder):
    return [os.path.join(where, name) for where, _, names in sorted(os.walk(folder))
            for name in sorted(names)
            if name.lower().endswith(VIDEO_FILES) and not name.startswith("._")]       # ._x.mp4: litter of archives


def find_split(data, root, split):
    """
    -> (where, rows, unlabelled) or None for nothing: rows are (path, label), path None if it is not
    on the disk; labels are strings, names or numbers. Raises ValueError for an unreadable list.
    """
    if os.path.isfile(data):                                       # my_train.txt brings my_val.txt, if there is one
        beside = os.path.join(os.path.dirname(data), os.path.basename(data).replace("train", split))
        lists, root = [beside, data], root if os.path.isdir(root) else os.path.dirname(data)
    else:
        lists = [os.path.join(root, name + kind) for name in (f"annotations/{split}", split)
                 for kind in (".csv", ".txt")]
    listing = next((path for path in lists if os.path.isfile(path)), None)
    names = (split, f"videos_{split}", f"{split}_256", f"videos/{split}")
    folder = next((path for name in names if os.path.isdir(path := os.path.join(root, name))), None)
    if listing is None:
        rows = [(path, os.path.basename(os.path.dirname(path)))
                for path in (videos_below(folder) if folder else [])
                if os.path.dirname(path) != folder]                # flat files have no class
        return (folder, rows, 0) if rows else None
    with open(listing, newline="", encoding="utf-8-sig") as file:
        lines = file.read().splitlines()
    if lines and lines[0].startswith("label,youtube_id"):          # Kinetics; an id is 11 of A-Z a-z 0-9 _ -
        videos = videos_below(folder) if folder else []
        if split == "train":                                       # repaired copies of broken videos win
            videos += videos_below(os.path.join(root, "replacement"))
        on_disk = {os.path.basename(path)[:11]: path for path in videos}
        rows = {row["youtube_id"]: row["label"] for row in csv.DictReader(lines)}
        return (listing, [(on_disk.get(key), label) for key, label in rows.items()],
                len(on_disk.keys() - rows.keys()))
    rows = []
    for number, line in enumerate(lines, 1):
        separator = "," if line.rpartition(",")[2].strip().isdigit() else None
        path, *label = line.rsplit(separator, 1)
        if not (label and label[0].strip().isdigit()):
            raise ValueError(f"{listing}, line {number}: {line!r} is not 'path label' "
                             "or 'path,label' with a number as label")
        path = os.path.join(root, path.strip())
        rows.append((path if os.path.isfile(path) else None, label[0].strip()))
    return listing, rows, 0


def open_data(data, root, splits, pipeline, num_frames, image_size, seed=0, views="1x1"):
    """
    A data set -> {split: VideoSet}; prints what was found. data: toy, a name of NAMED, a folder or
    a list file. 'train' has training's samples, any other split evaluation's. Class names that are
    all official have the official index, others their rank. Raises FileNotFoundError with the
    expected layout, ValueError for unknown names and labels.
    """
    if data == "toy":
        return {split: VideoSet(clips, labels.tolist(), TOY_CLASSES, pipeline, num_frames,
                                image_size, seed, None if split == "train" else views)
                for split in splits
                for clips, labels in [toy_split(split, seed, num_frames, image_size)]}
    if os.path.isdir(data) and data not in NAMED:
        root = data
    elif not os.path.isfile(data) and data not in NAMED:
        raise ValueError(f"--data {data}: neither a folder, nor a list file, "
                         f"nor one of toy, {', '.join(NAMED)}")
    found = {split: find_split(data, root, split) for split in ("train", "val")}
    labels = {label for part in found.values() if part for _, label in part[1]}
    classes = class_names(data) if data in NAMED else None
    if all(label.isdigit() for label in labels):
        classes = classes or [str(k) for k in range(max(map(int, labels), default=0) + 1)]
        index = {label: int(label) for label in labels}
        if labels and max(index.values()) >= len(classes):
            raise ValueError(f"label {max(index.values())} in {root}, but {data} has "
                             f"{len(classes)} classes, 0 to {len(classes) - 1}")
    else:
        official = {plain(name): k for k, name in enumerate(classes or [])}
        if not all(plain(label) in official for label in labels):
            classes = sorted(labels)
            official = {plain(name): k for k, name in enumerate(classes)}
        index = {label: official[plain(label)] for label in labels}
    sets = {}
    for split in splits:
        rows = [row for row in found[split][1] if row[0]] if found[split] else []
        if found[split]:
            where, listed, unlabelled = found[split]
            print(f"{split}: {where} lists {len(listed)} videos, {len(rows)} are there, "
                  f"{len(listed) - len(rows)} missing"
                  + f", {unlabelled} more have no label" * bool(unlabelled))
        if not rows:
            raise FileNotFoundError(NO_DATA.format(split=split, data=data, root=root))
        sets[split] = VideoSet([path for path, _ in rows], [index[label] for _, label in rows],
                               classes, pipeline, num_frames, image_size, seed,
                               None if split == "train" else views)
    return sets


# ----------------------------------------------------------------------------- looking at it

def contact_sheet(dataset, path, rows=8):
    """Draws training clips as the network gets them, one a row, labelled; each class once first."""
    try:
        import matplotlib
    except ImportError:
        sys.exit("--show draws with matplotlib: pip install matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    seen, turn = collections.Counter(), []
    for label in dataset.labels:
        turn.append(seen[label])
        seen[label] += 1
    chosen = np.lexsort((dataset.labels, turn))[:rows]
    batch = torch.utils.data.default_collate([dataset[0, int(i)] for i in chosen])
    as_is = dict(dataset.pipeline, mean=(0., 0., 0.), std=(1., 1., 1.))
    strips = (to_device(batch, as_is, torch.device("cpu")).clamp(0, 1)
              .permute(0, 3, 2, 4, 1).flatten(2, 3))                                   # (B, S, T*S, 3)
    figure, axes = plt.subplots(len(chosen), 1, figsize=(dataset.num_frames, 1.05 * len(chosen)),
                                squeeze=False)
    for axis, strip, label in zip(axes[:, 0], strips, batch["label"]):
        axis.imshow(strip)
        axis.set(xticks=[], yticks=[])
        axis.set_ylabel(dataset.classes[label], rotation=0, ha="right", va="center")
    figure.subplots_adjust(hspace=0.05)
    figure.savefig(path, dpi=80, bbox_inches="tight")
    print(f"{path}: {len(chosen)} clips, {dataset.num_frames} frames of "
          f"{dataset.image_size} x {dataset.image_size} pixels")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="Check a data set, draw what the network sees, write the toy data as mp4.")
    parser.add_argument("--data", default="toy", help=f"toy, {', '.join(NAMED)}, a folder, "
                        "or a list file (default toy)")
    parser.add_argument("--root", help="where the videos are (default data/NAME)")
    parser.add_argument("--show", metavar="PNG",
                        help="draw training clips as the network gets them")
    parser.add_argument("--make_toy", metavar="DIR",
                        help="write the toy data as mp4 files in class folders, then stop")
    args = parser.parse_args()
    if args.make_toy:
        sys.exit(make_toy(args.make_toy))
    toy = args.data == "toy"
    try:
        sets = open_data(args.data, args.root or os.path.join("data", args.data), ["train", "val"],
                         PIPELINES["toy" if toy else "focal"], 8, 64 if toy else 224)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
    for split, dataset in sets.items():
        print(f"{split}: {len(dataset)} clips of {len(set(dataset.labels))} "
              f"of {len(dataset.classes)} classes")
    if args.show:
        contact_sheet(sets["train"], args.show)
