"""
What can be learned from a hundred videos of one's own?

Why it matters: both papers (arXiv:2307.06947, arXiv:2210.08164) train on 100,000 clips and more,
from image weights. Nobody has filmed 100,000 clips.

    python -m experiments.small_data --resize 128 my_videos small          once: smaller copies
    python train.py --data small --split group --input diff --out mine     the best row

UT-Interaction (Ryoo and Aggarwal 2010), six actions of two people, 83 clips to train on, 37 to
validate with (one is 2.7 points; chance is 17 %), focal_toy, 8 frames of 64 x 64, last weights:

    start                    input        --data ut/train.txt and       seeds 0, 1, 2      mean
    nothing                  differences  --input diff                  89.2, 89.2, 100.0  92.8
    nothing                  colours                                    59.5, 48.6, 70.3   59.5
    the toy's weights        colours      --init toy/last.pt            67.6, 81.1, 67.6   72.1
    image weights, fresh     colours      --init images/last.pt         81.1, 81.1, 83.8   82.0
    image weights, identity  colours       .. --temporal_init identity  73.0, 78.4, 83.8   78.4

`toy` is `python train.py --out toy`. `images` are 20,000 pictures of 64 x 64 in 200 class folders
(a part of Tiny-ImageNet), videos of one frame; 9 min 33 s on one core, 17.0 % of 200 classes:
`python train.py --data images_64 --num_frames 1 --temporal False --batch_size 128 --lr 0.003
--epochs 30 --out images`. experiments/probe.py has the same starts with all but the head frozen.

What did not help, --input diff, 120 epochs (83.8, 86.5 then), two seeds: drop path .1 (83.8, 78.4),
weight decay .2 (89.2, 83.8), crops from .3 of the frame (81.1, one seed). A rate of .001 did (91.9,
91.9), but not where the other place of recording is kept out (76.7, 73.3 against 73.3, 78.3), and
not from image weights (78.4, 70.3 against 81.1, 83.8).

Clips a second that one process reads, 8 frames of 64 x 64: UT-Interaction (avi, 300 to 450 pixels
wide) 53, after --resize 128 174; 72 Kinetics-like clips (mp4, 320 x 240) 153, after it 247.
The table is after --resize 128, one thread a run; on two, a run takes 3 min 6 s. All: 2 CPU cores
(AMD EPYC), torch 2.13.0, commit 63d0020. The first row again on another machine, 2026-11-26: 86.5,
83.8, 89.2, and 89.2 by the code of 63d0020 there, seed 2. Last bits differ, and then everything.

Verdict: a small network learns the backgrounds of a few clips by heart. A background that stands
still has no differences, so they leave the motion: 92.8 % for 59.5. Image weights help, 82.0 %, and
time that starts at random is not behind time that starts as the identity. The toy's weights help
less: it is worth starting from something trained, not necessarily from synthetic motion. What this
does not say: seeds differ by up to 22 points, and one validation set chose the recipe. With the
other place of recording kept out (60 clips to train on, 60 to validate with) --input diff reaches
83.3 % (one seed) one way and 68.3, 68.3 % the other; after 120 epochs 73.3, 78.3 and 78.3 % (one
seed). And the copies are not free: they are H.264 of short side 128, and no larger crop is left.
"""
import collections
import glob
import itertools
import multiprocessing
import os
import re
import sys
import tempfile
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from fractions import Fraction
from functools import partial

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image
from tqdm import tqdm

from data import (PICTURES, VIDEOS, BadVideo, decode_all, ignore_ctrl_c, open_video, read_clip,
                  read_packets, resized_to, upright, videos_below, whole)


def copy_picture(source, target, side):
    """A picture, upright, with its short side at `side` pixels or less."""
    image = Image.fromarray(read_clip(whole(source), range)[0].numpy())
    height, width = resized_to(image.height, image.width, min(side, *image.size))
    image.resize((width, height), Image.Resampling.BILINEAR).save(target, quality=95)


def copy_video(source, target, side):
    """A video, frame by frame, upright, each at its time -> how many frames do not decode."""
    # Times are kept where they can be trusted; elsewhere (avi) frames are counted.
    packets, trusted, zero, _, _ = read_packets(source)
    with open_video(source) as (_, stream):
        rate = stream.average_rate or 25
        unit = stream.time_base if trusted else 1 / Fraction(rate)

    # The first frame tells the size, and no copy is larger. The colours of 4:2:0 have half of it:
    # sides are even.
    frames = decode_all(source)
    first = next(frames, None)
    if first is None:
        raise BadVideo(f"{source}: no frames in it")
    size = resized_to(first.height, first.width, min(side, first.height, first.width))
    height, width = (max(2, length // 2 * 2) for length in size)
    reformatter = VideoReformatter()

    def smaller(frame):
        """-> uint8 (3, H, W), upright, in the colours that a file without notes is taken for."""
        small = reformatter.reformat(frame, width, height, "yuv444p", interpolation="BILINEAR",
                                     dst_colorspace="ITU601", dst_color_range="MPEG")
        image = upright(small.to_ndarray().transpose(1, 2, 0), frame)  # no way over rgb: it rounds
        return np.ascontiguousarray(image.transpose(2, 0, 1))

    # A key frame every 12 frames, so that any frame is near one.
    _, height_shown, width_shown = smaller(first).shape
    with av.open("file:" + target, "w", format="mp4") as container:
        video = container.add_stream(
            "libx264", rate=rate, width=width_shown, height=height_shown, pix_fmt="yuv420p",
            time_base=unit, options=dict(crf="18", g="12", preset="fast", tune="fastdecode"))
        video.codec_context.thread_count = 1  # files are the parallelism

        # No frame may come before the last one, whatever its time says.
        written = 0
        pts = -1
        for frame in itertools.chain([first], frames):
            small = av.VideoFrame.from_ndarray(smaller(frame), format="yuv444p")
            small = small.reformat(format="yuv420p")
            pts = max(frame.pts - zero if trusted else written, pts + 1)
            small.pts = pts
            small.time_base = unit
            container.mux(video.encode(small))
            written += 1
        container.mux(video.encode())
    return sum(shown for _, _, shown in packets) - written if trusted else 0


def copy_smaller(job, side, unfinished):
    """job: (source, target) -> is the copy there?, and '' or what is wrong with it."""
    # Written elsewhere and renamed: a file with its final name is whole, and a second call skips
    # it. A short name there, as the final one may be as long as names can be.
    source, target = job
    part = os.path.join(unfinished, f"{os.getpid()}{os.path.splitext(target)[1]}")
    lost = 0
    try:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if source.lower().endswith(PICTURES):
            copy_picture(source, part, side)
        else:
            lost = copy_video(source, part, side)
        os.replace(part, target)
    except BadVideo as error:
        return False, str(error)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        return False, f"{source}: {getattr(error, 'strerror', None) or error}"
    return True, f"{source}: {lost} frames do not decode, the others are there" if lost > 0 else ""


def copy_list(source, target, roots):
    """A list, a table or class names: videos end in .mp4, and begin at the new root."""
    # Bytes, so that line ends and letters stay as they are.
    with open(source, "rb") as file:
        text = file.read()
    for root in roots:
        text = re.sub(rb'(?m)(^|[\s,"])' + re.escape(os.fsencode(root)) + rb"/", rb"\1", text)
    endings = "|".join(ending[1:] for ending in VIDEOS).encode()
    text = re.sub(rb'(?im)\.(' + endings + rb')(?=[\s,"]|$)', b".mp4", text)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with open(target, "wb") as file:
        file.write(text)
    elsewhere = len(re.findall(rb'(?m)^"?/', text))
    if elsewhere:
        print(f"{source}: {elsewhere} lines name files outside of it, these were not copied")


def copy_all(side, root, out):
    """
    A data set again, its short side at `side` pixels (never enlarged), in the same layout. What is
    there already is not made again -> exit status, 1 if nothing could be copied.
    """
    # Not into itself: a copy inside of the original would be taken for a part of it.
    here = os.path.join(os.path.realpath(root), "")  # it may be a link
    there = os.path.join(os.path.realpath(out), "")
    if not os.path.isdir(root) or here.startswith(there) or there.startswith(here):
        raise ValueError(f"--resize {side} {root} {out}: two folders, each outside of the other")
    if not 16 <= side <= 4096:
        raise ValueError(f"--resize {side}: must be from 16 to 4096 pixels")

    # What there is, and what it will be called. A folder of numbered pictures is one video.
    sources = []
    for path in videos_below(root):
        inside = sorted(os.listdir(path)) if os.path.isdir(path) else []
        pictures = [name for name in inside if name.lower().endswith(PICTURES)]
        sources += [os.path.join(path, name) for name in pictures] or [path]
    targets = []
    for path in sources:
        stem, ending = os.path.splitext(os.path.join(out, os.path.relpath(path, root)))
        targets.append(stem + (ending if ending.lower() in PICTURES else ".mp4"))
    twice = [name for name, n in collections.Counter(targets).items() if n > 1]
    if twice:
        raise ValueError(f"{len(twice)} copies would have the name of another, {twice[0]} for one: "
                         "rename or remove one of the two videos")

    # Lists first: they are quick. They are in the root, or one folder below.
    for path in itertools.chain(*(glob.glob(os.path.join(glob.escape(root), pattern))
                                  for pattern in ("*", "*/*"))):
        if path.endswith((".txt", ".csv", ".json")):
            copy_list(path, os.path.join(out, os.path.relpath(path, root)),
                      (os.path.abspath(root), os.path.realpath(root)))

    # In as many processes as there are cores. What is unfinished is in a folder of this call, whose
    # name begins with a dot, so that nobody takes it for a video; it goes with Ctrl-C as well.
    # Spawned: a fork of a process whose threads have run networks may wait for ever.
    todo = [job for job in zip(sources, targets) if not os.path.exists(job[1])]
    print(f"{root}: {len(sources)} videos, {len(sources) - len(todo)} are in {out} already")
    os.makedirs(out, exist_ok=True)
    with (tempfile.TemporaryDirectory(prefix="._unfinished_", dir=out) as unfinished,
          ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn"),
                              initializer=ignore_ctrl_c, initargs=(0,)) as pool):
        done = pool.map(partial(copy_smaller, side=side, unfinished=unfinished), todo)
        results = list(tqdm(done, total=len(todo), unit="video", disable=None))

    # What is wrong comes last, where it is seen.
    print("".join(problem + "\n" for _, problem in results if problem), end="")
    failed = sum(not is_there for is_there, _ in results)
    print(f"{out}: {len(sources) - failed} of {len(sources)} are there")
    return int(failed == len(sources))


def main(words):
    if len(words) != 4 or words[0] != "--resize" or not words[1].isdigit():
        raise ValueError("write --resize SIDE IN OUT, as in --resize 128 my_videos small")
    return copy_all(int(words[1]), words[2], words[3])


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # names that the terminal cannot show
    try:
        sys.exit(main(sys.argv[1:]))
    except (OSError, ValueError, BrokenExecutor) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
