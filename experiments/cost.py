"""
What does a network cost, and how does that grow with frames and pixels?

Why it matters: linear attention is there for its cost (Table 8 of arXiv:2210.08164, videos a second
for 16 to 96 frames, 224 to 448 pixels), and arXiv:2307.06947 draws accuracy against multiply-adds.
But multiply-adds are not seconds, and neither of them is memory.

    python -m experiments.cost                       the table below on a CPU, and scale.png
    python -m experiments.cost "lvt kernel=softmax fixation=none num_frames="{8,16}" batch=8 \
        precision=bfloat16 compile=True train=True"  any rows, on a GPU if there is one
    timeout 290 python -m experiments.cost --gpu     all that is wanted of a GPU, to paste here
    python -m experiments.cost zoo                   all networks; experiments/survey.py has the table

forward: evaluation, without gradients. backward: of a training step. step: forward, backward, SGD.
Best times, in seconds. MiB: on a CPU the peak of a process of its own, Python and torch included;
on a GPU the peak of what torch has taken. share: multiply-adds a second against those of a large
matrix product in that precision; a step counts as three forwards. (float32 on a GPU: torch does
convolutions in TF32, products not.) Skipped: over 30 s, on a GPU 2 s, at the best pace of the rows
before. --gpu: training, Table 8's sizes in float32, torch.compile, bfloat16. No av, no videos.

One clip forward, float32, one CPU thread (AMD EPYC), torch 2.13.0, commit 63d0020: multiply-adds in
G, seconds, MiB; softmax without fixation. assets/scale.png is drawn from it.

    frames x   focal_t             lvt                 lvt, softmax        lvt, joint softmax
    pixels         G     s  MiB        G     s  MiB        G     s  MiB        G     s  MiB
     4 x 224    31.5  0.57  592     63.5  1.67  541     63.1  1.44  524     60.8  1.31  457
     8 x 224    63.0  1.24  710    126.9  3.09  609    126.2  2.76  609    154.4  3.41  511
    16 x 224   126.0  2.52  842    253.8  6.36  656    252.9  5.68  700    440.1  9.77  624
    32 x 224   252.0  6.15  931    507.6 12.99  932    507.6 11.33  944   1405.7  skipped
    64 x 224   504.0 14.05 1425   1015.3 32.99  988   1022.5 27.79  982   4913.3  skipped
     8 x 128    20.6  0.41  524     43.9  0.94  498     41.8  0.95  496     38.6  0.83  441
     8 x 320   128.6  2.83  833    232.3  5.83  690    243.5  5.60  695    382.4  8.23  566
     8 x 448   252.0  6.39  940    478.2 12.70  980    561.3 12.33  898   1266.9 26.63  827

Backward, step and share: not run. Everything on a GPU: not run.

Verdict: as released, along time and across space in turn, softmax costs what linear attention with
its gate costs: groups have T or 289 tokens, 252.9 G against 253.8 G for 16 frames, and as many
seconds. Over all tokens at once it grows with their square: 440 G for 16 frames, too much at 32.
Not measured: the paper's advantage of linear attention (Table 8, on a GPU, against softmax that
stores its N x N weights; torch's fused one never holds them). Nor can its figures be compared: its
program times the loader as well, and does not wait for the GPU.
"""
import ast
import contextlib
import gc
import glob
import importlib
import math
import multiprocessing
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import torch
import torch.nn.functional as F

from backbone import MODELS, count_macs, create_model

# A row of the table in words: a preset, its arguments, and how it is measured.
HOW = dict(batch=1, precision="float32", compile=False, train=False)
NETWORKS = ["focal_t", "lvt", "lvt kernel=softmax fixation=none",
            "lvt kernel=softmax fixation=none mixer=joint"]
FRAMES = [(4, 224), (8, 224), (16, 224), (32, 224), (64, 224)]
PIXELS = [(8, 128), (8, 224), (8, 320), (8, 448)]
COLUMNS = {"forward": ".3g", "MiB": ".0f", "share": ".0%", "backward": ".3g", "step": ".3g",
           "step MiB": ".0f", "step share": ".0%"}


def sized(network, frames, pixels):
    """A row for another clip; focal_t takes multiples of 32 pixels: 320 for 336."""
    pixels = 320 if network == "focal_t" and pixels == 336 else pixels
    return f"{network} num_frames={frames} image_size={pixels}"


def rows_for_gpu():
    """What --gpu measures, in this order: the most wanted first."""
    training = [f"{network} batch=8 train=True precision={precision}"
                for precision in ("bfloat16", "float32")
                for network in [*NETWORKS, "focal_s", "focal_b"]]
    table_8 = [sized(network, frames, pixels) for network in NETWORKS
               for frames in (16, 32, 64, 96) for pixels in (224, 336, 448)]
    return (training + table_8 + [f"{row} compile=True" for row in training[:2]]
            + [f"{row} precision=bfloat16" for row in table_8])


def parse(row):
    """'lvt kernel=softmax batch=8' -> 'lvt', its arguments, and HOW with what the row says."""
    name, *words = row.split()
    options = dict(word.split("=") for word in words)
    for key, value in options.items():
        with contextlib.suppress(ValueError, SyntaxError):  # a word stays one
            options[key] = ast.literal_eval(value)
    return name, options, {key: options.pop(key, default) for key, default in HOW.items()}


def best_time(f, device, prepare=lambda: None):
    """Seconds of f(prepare()), without prepare: the best of 2 to 10 runs, as many as 2 s allow."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    times = []
    while len(times) < 2 or len(times) < 10 and sum(times[1:]) < 2:  # the first one may compile
        given = prepare()
        wait()
        started = time.perf_counter()
        f(given)
        wait()
        times.append(time.perf_counter() - started)
    return min(times)


def peak_memory(device):
    """MiB at most: of torch's on a GPU; on a CPU (Linux) of this process, which should be new."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    with open("/proc/self/status") as file:
        return int(re.search(r"VmHWM:\s+(\d+) kB", file.read())[1]) / 2**10


def measure(row, device):
    """A row -> {'forward', 'MiB'}, with train=True 'backward', 'step', 'step MiB' too; seconds."""
    if device == "cuda":  # nothing is left of the row before
        torch.compiler.reset()
        gc.collect()
        torch.cuda.reset_peak_memory_stats()
    else:
        torch.set_num_threads(1)
    name, options, how = parse(row)
    precision = how["precision"]
    with torch.device(device):
        model = create_model(name, **options)
        side = model.image_size
        clips = torch.randn(how["batch"], 3, model.num_frames, side, side)
        labels = torch.zeros(how["batch"], dtype=torch.long)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9, nesterov=True)
    net = torch.compile(model) if how["compile"] else model

    def loss(_=None):
        with torch.autocast(device, getattr(torch, precision), enabled=precision != "float32"):
            logits = net(clips)
        return F.cross_entropy(logits.float(), labels)

    def step(_):
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    # Evaluation, then training.
    model.eval()
    with torch.no_grad():
        found = dict(forward=best_time(loss, device), MiB=peak_memory(device))
    if how["train"]:
        model.train()
        found["backward"] = best_time(torch.Tensor.backward, device, prepare=loss)
        found["step"] = best_time(step, device)
        found["step MiB"] = peak_memory(device)
    return found


def in_new_process(row, device):
    """As from measure. What was used before would count as memory: a new process."""
    spawn = multiprocessing.get_context("spawn")
    zoo = import_zoo if "zoo" in sys.modules else None  # what is imported here, is there
    with ProcessPoolExecutor(1, spawn, initializer=zoo) as pool:
        return pool.submit(measure, row, device).result()


def show(rows, device):
    """Measures row after row, prints each, in markdown -> {row: as from measure}."""
    if device == "cuda":
        where, limit, n = torch.cuda.get_device_name(), 2, 8192
    else:
        where, limit, n = "CPU, one thread", 30, 2048
        torch.set_num_threads(1)
    print(f"{where}, torch {torch.__version__}")
    rate = {}  # of a matrix product of n x n, multiply-adds a second
    for precision in sorted({parse(row)[2]["precision"] for row in rows}):
        a = torch.randn(n, n, device=device, dtype=getattr(torch, precision))
        rate[precision] = n**3 / best_time(lambda _: a @ a, device)
        print(f"{precision}: {rate[precision] / 1e12:.3g} T multiply-adds/s in a matrix product")
    print("\n| network | frames x pixels | parameters | multiply-adds | "
          f"{' | '.join(COLUMNS)} |\n" + "|---" * (4 + len(COLUMNS)) + "|")
    table = {}
    pace = {}  # precision: seconds for a multiply-add, the best so far
    for row in rows:
        name, options, how = parse(row)
        precision = how["precision"]
        with torch.device("meta"):
            model = create_model(name, **options)
        macs = how["batch"] * count_macs(model)
        found = {}
        why = "skipped"
        if macs * pace.get(precision, 0) <= limit:
            try:
                found = (measure if device == "cuda" else in_new_process)(row, device)
            except (torch.OutOfMemoryError, BrokenProcessPool):
                why = "out of memory"
        if found:
            table[row] = found
            pace[precision] = min(found["forward"] / macs, pace.get(precision, math.inf))
            found["share"] = macs / found["forward"] / rate[precision]
        if "step" in found:
            found["step share"] = 3 * macs / found["step"] / rate[precision]
        cells = [format(found[key], form) if key in found else "" for key, form in COLUMNS.items()]
        print(f"| {row} | {model.num_frames} x {model.image_size} | "
              f"{sum(p.numel() for p in model.parameters()):,} | {macs / 1e9:.1f} G | "
              f"{cells[0] or why} | {' | '.join(cells[1:])} |", flush=True)
    return table


def draw(table, path):
    """Seconds and MiB of the default rows against frames and pixels; table: as from show."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(13, 3.6))
    axes = figure.subplots(1, 4)
    for i, axis in enumerate(axes):
        what = ("forward", "forward", "MiB", "MiB")[i]
        along = i % 2  # 0: frames, 1: pixels
        sizes = (FRAMES, PIXELS)[along]
        ticks = [size[along] for size in sizes]
        for network in NETWORKS:
            # One line for each network; what was skipped is missing.
            rows = [sized(network, *size) for size in sizes]
            axis.plot(ticks, [table.get(row, {}).get(what, math.nan) for row in rows], "o-",
                      label=network)

        # Time: straight lines are powers. Memory has a constant part, and is drawn from 0.
        axis.set_title(("seconds", "MiB")[i // 2])
        axis.set_xlabel(("frames of 224 x 224", "pixels a side, 8 frames")[along])
        axis.set_xscale("log")
        axis.set_xticks(ticks, ticks)
        if what == "forward":
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter("{x:g}")
        else:
            axis.set_ylim(bottom=0)
        axis.minorticks_off()
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncols=4)
    figure.savefig(path, dpi=80)


def import_zoo():
    """Every file of zoo/ adds its networks, kernels and mixers."""
    for path in sorted(glob.glob("zoo/*.py")):  # from the repository's root
        if "test" not in path:
            importlib.import_module(path[:-3].replace("/", "."))


if __name__ == "__main__":
    words = sys.argv[1:]
    if "--help" in words:
        sys.exit(__doc__)
    elif words == ["--gpu"]:
        rows = rows_for_gpu()
    elif words == ["zoo"]:
        import_zoo()
        rows = list(MODELS)
    else:
        rows = words or [sized(network, *size) for network in NETWORKS
                         for size in dict.fromkeys(FRAMES + PIXELS)]
    try:
        found = show(rows, "cuda" if torch.cuda.is_available() else "cpu")
    except ValueError as error:
        sys.exit(f"error: {error}")
    if not words:
        draw(found, "scale.png")
