"""
Which parts of the two networks are needed? Both papers' tables as sweeps, on the toy data.

Why it matters: the ablations of arXiv:2307.06947 (branches, designs, fusions, levels) and Tables 1
and 3 to 6 of arXiv:2210.08164 (kernels, shifts, fixation, where attention looks) say what each part
brings on Kinetics and Something-Something. Here a run takes 40 s on 2 CPU cores.

    python -m experiments.ablations focal                    or lvt, kernels, mixers
    python -m experiments.ablations focal -- --steps 240     behind --: any flags of train.py
    python -m experiments.ablations lvt --seeds 0 --sweep "" "fixation=qk spatial_shift=0"
    python -m experiments.ablations --sweep "" "levels=1 window=5" -- --model focal_toy --steps 240

A row changes flags of the base; "" changes nothing. The base is the named table's, without a name
it is train.py's. Mistakes are found before the first run. After each row the table so far is
printed, as markdown. `kernels` and `mixers` import what zoo/ adds, also for rows of your own.

Below: val top-1 in percent, last weights, of seeds 0, 1, 2; their mean and spread (highest less
lowest); parameters; multiply-adds of a clip, G. Chance is 12.5. The 8 classes are pairs of time
reversals: a network that is blind to the order of frames cannot pass 50. Measured at commit
63d0020, 2 CPU cores (AMD EPYC), torch 2.13.0, one thread beside another run: clips/s are not for
comparing rows. Three were run again with this program, seed 0: design=sequential (240 steps, 98.0)
and mixer=space (91.4) gave the same, (none) of `lvt` 93.0: `linear` takes means now, and rounds
otherwise. The table of `mixers` stands in zoo/baselines.py.

Video-FocalNets, `focal` (320 steps), and the seeds of `focal -- --steps 240`:

    change                   320: 0, 1, 2       mean spread  240: 0, 1, 2      weights     G clips/s
    (none)                   100.0 100.0 100.0 100.0    0.0  100.0 100.0 100.0 226,842 0.040     245
    temporal=False            34.0  35.5  32.6  34.0    2.9   27.7  32.6  26.6 133,873 0.024     328
    spatial=False            100.0 100.0 100.0 100.0    0.0  100.0 100.0  98.4 202,161 0.036     318
    design=sequential         99.6  99.8 100.0  99.8    0.4   98.0  98.8  87.9 226,842 0.040     255
    design=joint3d           100.0  99.8  99.4  99.7    0.6   97.9 100.0  92.2 152,753 0.028     169
    fusion=add                99.4 100.0 100.0  99.8    0.6   93.8 100.0 100.0 226,842 0.040     263
    fusion=average           100.0 100.0 100.0 100.0    0.0   91.6 100.0 100.0 226,842 0.040     262
    fusion=project           100.0 100.0 100.0 100.0    0.0   89.3 100.0 100.0 245,434 0.043     231
    levels=1                 100.0 100.0 100.0 100.0    0.0  100.0 100.0 100.0 176,436 0.031     296
    levels=3                 100.0 100.0 100.0 100.0    0.0  100.0  99.6  99.4 299,520 0.053     210
    levels=4                 100.0 100.0 100.0 100.0    0.0  100.0 100.0  99.6 395,750 0.070     162
    global_level=False       100.0 100.0 100.0 100.0    0.0  100.0 100.0  98.6 226,516 0.040     257
    normalize_modulator=True 100.0 100.0 100.0 100.0    0.0   92.0 100.0 100.0 226,842 0.040     256

Decided: the temporal branch is needed. Without it the network is blind to order, and stays below
the 50 % that a blind one could reach. Not decided: everything else. All others solve the toy, and
before they do, after 240 steps, seeds of one row differ by up to 10.9 points and means by 5. The
paper has the parallel design ahead, on Kinetics: here that is neither confirmed nor refuted. It
would take a data set on which the rows do not meet at 100 %, and several seeds of each.

Linear Video Transformer, `lvt` (Tables 3, 4 and 6):

    change                                            0    1    2  mean spread weights     G clips/s
    (none)                                         93.6 89.5 87.9  90.3    5.7 170,792 0.024     264
    fixation=none temporal_shift=0 spatial_shift=0 49.8 49.8 50.0  49.9    0.2 158,376 0.021     376
    fixation=none temporal_shift=0                 49.2 50.0 49.2  49.5    0.8 158,376 0.021     357
    fixation=none spatial_shift=0                  90.8 90.0 86.9  89.3    3.9 158,376 0.021     337
    fixation=none                                  89.8 88.9 87.3  88.7    2.5 158,376 0.021     301
    temporal_shift=0 spatial_shift=0               49.6 50.0 49.6  49.7    0.4 170,792 0.024     261
    shift_first=False                              88.5 93.6 87.7  89.9    5.9 170,792 0.024     243
    fixation=separate                              87.3 89.5 90.0  88.9    2.7 166,824 0.023     214
    fixation=qk                                    96.3 98.4 84.2  93.0   14.3 175,016 0.025     192
    fixation=qk_shared                             87.9 93.8 93.8  91.8    5.9 166,696 0.023     158
    fixation=qkv                                   95.9 99.0 92.0  95.6    7.0 183,208 0.027     159
    fixation_by=add                                96.9 95.9 88.5  93.8    8.4 162,600 0.022     184
    fixation_by=multiply                           92.4 94.9 87.3  91.5    7.6 162,600 0.022     153
    mixer=joint                                    85.9 88.5 84.8  86.4    3.7 131,048 0.017     238
    mixer=space                                    91.4 98.8 92.0  94.1    7.4 131,048 0.017     265
    mixer=space+time                               91.8 97.1 88.7  92.5    8.4 170,792 0.024     282

Decided: without the temporal shift the network cannot tell a direction: 49 to 50 %, the ceiling of
a blind network. Attention does not know the order of its tokens, and there is no temporal embedding
here, so this shift is the only source of order: hence 40 points; on SSv2 it adds 2.5 (Table 3). Not
decided: what fixation adds (90.3 with it, 88.7 without; the paper's gain is 1.2); which gate is
best (two gates from q, k and v have the highest mean, 95.6; in the paper one shared gate is ahead
by 0.1); the order of fixation and shifts; joint, windowed (space, with the temporal shift) or
divided attention (86.4, 94.1, 90.3; in the paper 58, 61, 65). Seeds of a row differ by up to 14.

`kernels`, seeds 0, 1, 2, mean, spread (Tables 1, 5 and 9):

    relu        93.6  89.5  87.9   90.3   5.7        orthoformer 96.7  97.9  94.7   96.4   3.1
    relu_paper  95.1  96.7  89.6   93.8   7.0        cosformer   97.1  91.2  87.5   91.9   9.6
    elu         93.2  97.9  90.0   93.7   7.8        focused     98.0  97.3  90.4   95.2   7.6
    sigmoid     89.3  89.8  87.3   88.8   2.5        agent       96.9  98.8  95.1   96.9   3.7
    identity    13.7  16.4  19.9   16.7   6.2        taylor      89.5  85.9  95.9   90.4  10.0
    softmax     97.9  99.8  93.0   96.9   6.8        hedgehog    92.6  99.4  94.7   95.6   6.8
    efficient   92.2  97.5  90.8   93.5   6.6        inline     100.0  94.9  94.9   96.6   5.1
    linformer   99.6  99.6  98.4   99.2   1.2        rala        99.0  98.2  97.3   98.2   1.8
    performer   98.8  99.2  99.4   99.2   0.6        mala        95.9  90.0  90.4   92.1   5.9

Decided: without a feature map (identity) hardly anything is learned (Table 5: "does not converge").
Likely ahead of relu: linformer, performer, rala, agent, inline, orthoformer, each of whose seeds is
above its best. In the paper performer and linformer are behind (SSv2: 63.5 in Table 9, 57.2 in
Table 1, relu 65.5), but groups of 8 and 16 tokens leave nothing to compress. Not decided: the rest.

Tried as well, seeds 0, 1, 2: `focal` at 240 steps with weight_init=released 97.9, 83.2, 39.6, and
with a vertical flip 78.5, 72.5, 75.6, as up is down then, and clockwise anticlockwise; `lvt` with
mixer=focal 100, 100, 100, with the kernel relu(x)^2 97.5, 99.0, 91.4, with SGD at .1 chance.
"""
import argparse
import math
import sys

import train  # before torch: it sets how threads wait

import torch

from backbone import count_macs

# The pyramid with AdamW, as attention, a row of `mixers`, does not learn with SGD here. The
# transformer with tokens that do not overlap, and without the embedding of time, which would tell a
# direction by itself.
ADAMW = "--optimizer adamw --base_lr 0.003 --betas 0.9,0.98 --weight_decay 0.05"
LVT = ("--model lvt_toy --image_size 32 --patch 8 --stride 8 --temp_embed False --lr 0.002 "
       "--steps 320")

# name: (flags of the base, changes: a row each).
SWEEPS = {
    "focal": (ADAMW + " --steps 320", [
        "", "temporal=False", "spatial=False", "design=sequential", "design=joint3d", "fusion=add",
        "fusion=average", "fusion=project", "levels=1", "levels=3", "levels=4",
        "global_level=False", "normalize_modulator=True"]),
    "lvt": (LVT, [
        "", "fixation=none temporal_shift=0 spatial_shift=0", "fixation=none temporal_shift=0",
        "fixation=none spatial_shift=0", "fixation=none", "temporal_shift=0 spatial_shift=0",
        "shift_first=False", "fixation=separate", "fixation=qk", "fixation=qk_shared",
        "fixation=qkv", "fixation_by=add", "fixation_by=multiply", "mixer=joint", "mixer=space",
        "mixer=space+time"]),
    "kernels": (LVT, [
        "", "kernel=relu_paper", "kernel=elu", "kernel=sigmoid", "kernel=identity",
        "kernel=softmax", "kernel=efficient", "kernel=linformer", "kernel=performer",
        "kernel=orthoformer", "kernel=cosformer", "kernel=focused", "kernel=agent",
        "kernel=taylor", "kernel=hedgehog", "kernel=inline", "kernel=rala", "kernel=mala"]),
    "mixers": (ADAMW + " --steps 240", [
        "", "mixer=time+space heads=2,4", "mixer=conv3d", "mixer=conv3d dim=24",
        "mixer=conv2plus1d", "mixer=pool", "mixer=pool dim=48"]),
}


def cost(words):
    """Flags of train.py -> parameters, multiply-adds of a clip. ValueError for what cannot run."""
    cfg, _ = train.parse_args(words)
    train.check(cfg)
    with torch.device("meta"):  # no weights are made
        model = train.network(cfg)  # with the preset's number of classes
    return sum(p.numel() for p in model.parameters()), count_macs(model)


def run(words):
    """Flags of train.py -> top-1 in percent, clips/s of the last epoch; nan if it diverged."""
    try:
        metrics = train.main(words)
    except ValueError as error:
        if "20 infinite gradients" not in str(error):
            raise
        return math.nan, math.nan
    return metrics["top1"], metrics["clips_per_s"]


def line_of(change, runs, parameters, macs):
    """A row of the table; runs: [(top-1, clips/s), ..] of its seeds. A mean with nan is nan."""
    top1, speed = torch.tensor(runs, dtype=torch.float64).unbind(1)
    cells = ", ".join("diverged" if math.isnan(one) else f"{one:.1f}" for one in top1.tolist())
    return (f"| {change or '(none)'} | {cells} | {top1.mean():.1f} | {top1.max() - top1.min():.1f} "
            f"| {parameters:,} | {macs / 1e9:.3f} | {speed.mean():.0f} |")


def sweep(base, rows, seeds=(0, 1, 2)):
    """Trains each row with each seed, prints the table as it grows -> its lines. base: flags."""
    commands = [[*base, *(f"--{change}" for change in row.split())] for row in rows]
    for word in sum(commands, []):
        if word.startswith(("--seed", "--resume", "--eval", "--predict")):
            raise ValueError(f"{word}: a sweep trains, from the start, with seeds that --seeds 0 1 "
                             "2 in front of -- names: leave it out")
    costs = [cost(words) for words in commands]

    # Row by row. The runs print their own lines, so the whole table is printed anew each time.
    table = [f"| change | seeds {', '.join(map(str, seeds))} | mean | spread | parameters | GFLOPs "
             "| clips/s |", "|---|---|---|---|---|---|---|"]
    for row, words, (parameters, macs) in zip(rows, commands, costs):
        runs = [run([*words, "--seed", seed]) for seed in seeds]
        table.append(line_of(row, runs, parameters, macs))
        print("", *table, "", sep="\n", flush=True)
    return table


def main(words):
    """NAME, --sweep CHANGES or both, then --, then flags of train.py."""
    cut = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(description=__doc__, usage=argparse.SUPPRESS,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", choices=SWEEPS)
    parser.add_argument("--sweep", nargs="+", metavar="CHANGES", help='rows: "a=1" "b=2 c=3"')
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    args = parser.parse_args(words[:cut])
    if not (args.name or args.sweep):
        parser.error(f"a name ({', '.join(SWEEPS)}), or --sweep with a row for each change")

    # What a file of zoo/ adds is there once it is imported.
    if args.name == "kernels":
        import zoo.kernels
    if args.name == "mixers":
        import zoo.baselines
    flags, rows = SWEEPS[args.name] if args.name else ("", [])
    base = ["--out", "out/ablations", *flags.split(), *words[cut+1:]]
    return sweep(base, args.sweep or rows, args.seeds)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
