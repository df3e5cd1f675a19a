"""
What does each network of the field cost, and what does it learn, on equal terms?

Why it matters: a survey copies accuracies from papers that differ in data, views, pixels and
machines. Here all networks run in one program.

    python -m experiments.cost zoo                      parameters to MiB, on any device
    python -m experiments.survey --seeds 0 1 2          the toy; or --models swin_toy vivit_toy

One view as published (C3D and ResNet-18: 112 pixels; ResNet-50: 256; else 224): multiply-adds in
10^9, seconds of a forward pass and MiB of the process on one CPU thread, float32. K400: top-1 of
the published weights as their authors or their library give it, with views of their own (I3D's:
the paper's, not looked up); ours: not run.

    network       year  idea                                   parameters      G     s   MiB  K400
    c3d           2014  3x3x3 convolutions, nothing else       79,634,576   38.5   0.9   819     -
    r3d_18        2017  the same as a residual network         33,371,472   40.7 0.822   560  63.2
    mc3_18        2017  motion early, form late                11,695,440   43.3  0.91   486  64.0
    r2plus1d_18   2017  space, then time, twice the ReLUs      31,505,325   40.5  1.29   704  67.5
    inception_i3d 2017  image kernels, inflated                12,697,264  111.2   4.2   741  71.1
    s3d           2017  the same, taken apart                   8,320,048  143.8   9.6  1474  68.4
    c2d_r50       2017  frames, averaged at the end            24,327,632   25.5  1.15   641  71.5
    i3d_r50       2017  a ResNet, inflated here and there      28,043,472   37.1  1.55   662  73.3
    slow_r50      2018  time late, few frames                  32,454,096   54.5  1.57   692  74.6
    slowfast_r50  2018  few frames closely, many thinly        34,566,488   65.7  2.59   732  76.9
    timesformer   2021  attention along time, then space      121,566,352  195.8  4.34   913  77.9
    vivit         2021  tubelets, all of them meet             88,954,000  451.5  11.1   929  79.9
    vivit_2       2021  frames first, then their summaries    115,062,928  283.3  8.71  1032  78.4
    swin_t        2021  windows that move                      28,158,070   87.8  5.12  1517  78.8
    swin_b        2021  the same, larger                       88,048,984  281.3  13.4  2046  80.6
    mvit_v1_b     2021  pooled keys, fewer and wider tokens    36,610,672   70.6  2.35   890  78.5
    mvit_v2_s     2021  the same, with offsets                 34,537,744   64.2  2.73   950  80.8
    videomae_b    2022  learns by filling masked tubes         86,534,800  180.3  4.33   801  81.5
    vit_b         2020  image weights, silent time            114,479,248  185.4  4.08   899     -
    hybrid_t      2022  frames first, a transformer over time  56,325,652   35.5  1.19   717     -
    lvt           2022  linear attention that is gated         51,923,374  253.8  6.73   884     -
    focal_t       2023  gather once, then take                 49,553,272   63.0  1.81   747  79.8
    focal_b       2023  the same, larger                      157,389,216  220.6  5.39  1208  83.6

On the toy, from nothing: small versions of similar cost, the same clips, each with the kind of
optimizer that it was published with, but for lvt, TimeSformer and ViViT (SGD there). Seven epochs,
convolutional networks three. Val top-1, last weights; chance is 12.5, a network that is blind to
the order of frames cannot pass 50.

    network           parameters  multiply-adds  optimizer  seeds 0, 1, 2             mean
    focal_toy            226,842       0.0401 G  sgd        100.00  100.00  100.00  100.00
    lvt_toy              208,168       0.0452 G  adamw      100.00  100.00   99.22   99.74
    inception_toy        201,816       0.0472 G  sgd        100.00  100.00  100.00  100.00
    s3d_toy              127,976       0.0199 G  sgd        100.00   99.80   37.11   78.97
    r3d_toy              228,640       0.0760 G  sgd        100.00  100.00  100.00  100.00
    slowfast_toy         321,652       0.0429 G  sgd         77.15   72.66   71.29   73.70
    timesformer_toy      193,352       0.0253 G  adamw       29.49   17.58   32.03   26.37
    vivit_toy            203,208       0.0138 G  adamw       98.24   98.63   98.63   98.50
    swin_toy             139,404       0.0619 G  adamw       98.44   99.02   98.63   98.70
    mvit_toy             136,328       0.0763 G  adamw      100.00  100.00  100.00  100.00
    videomae_toy         125,128       0.0482 G  adamw       96.29   97.46   98.44   97.40
    vit_toy              185,032       0.0250 G  adamw       99.02   99.41   99.02   99.15
    hybrid_toy           234,545       0.0252 G  adamw       85.94   86.13   88.67   86.91
    hybrid_conv_toy      178,584       0.1009 G  adamw       88.09   90.23   89.65   89.32

2 CPU cores (AMD EPYC, shared), one thread a run, torch 2.13.0, 2026-11-26.

Verdict: multiply-adds are not seconds. C3D and R3D run at the rate of a large matrix product (48 G
a second here), S3D and Swin-T at a third of it. Of the toy most networks learn all there is. Behind
are TimeSformer (time starts silent), SlowFast (its slow way gets two of the eight frames), hybrids,
and S3D with one seed of three; whether that is why was not tried. What this does not say: which is
best on real videos, or with the best recipe for each: nobody looked for it.
"""
import argparse
import glob
import importlib
import sys

import train  # before torch: it sets how threads wait

import torch

from backbone import MODELS, count_macs


def import_zoo():
    """Every file of zoo/ adds its networks, kernels and mixers."""
    for path in sorted(glob.glob("zoo/*.py")):  # from the repository's root
        if "test" not in path:
            importlib.import_module(path[:-3].replace("/", "."))


def main(words):
    """--models NAMES (all toys), --seeds NUMBERS -> {network: top-1 by seed}; prints a row each."""
    import_zoo()
    parser = argparse.ArgumentParser(description=__doc__, usage=argparse.SUPPRESS,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    toys = [name for name in MODELS if name.endswith("_toy")]
    parser.add_argument("--models", nargs="+", default=toys, choices=toys)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    args, flags = parser.parse_known_args(words)

    # Networks that are too large or cannot run are found before the first run.
    costs = {}
    for name in args.models:
        cfg, _ = train.parse_args(["--model", name, *flags])
        train.check(cfg)
        with torch.device("meta"):
            model = train.network(cfg)
        costs[name] = sum(p.numel() for p in model.parameters()), count_macs(model), cfg.optimizer
    top1 = {}
    for name, (parameters, macs, optimizer) in costs.items():
        words = ["--model", name, "--out", "out/survey", *flags]
        top1[name] = [train.main([*words, "--seed", seed])["top1"] for seed in args.seeds]
        print(f"    {name:<17} {parameters:>10,}  {macs / 1e9:>11.4f} G  {optimizer:<9}  "
              + "  ".join(f"{one:6.2f}" for one in top1[name])
              + f"  {sum(top1[name]) / len(top1[name]):6.2f}", flush=True)
    return top1


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
