"""
What does each network of the field cost, and what does it learn, on equal terms?

Why it matters: surveys of video transformers (arXiv:2201.05991, say) copy accuracies from papers
that differ in data, views, pixels and machines. Here all networks run in one program.

    python -m experiments.cost zoo                      the first table, on whatever device is there
    python -m experiments.survey --seeds 0 1 2          the second one; or --models swin_toy vivit_toy

One view, as published: parameters, multiply-adds, then seconds of a forward pass and MiB of the
process on one CPU thread. K400: top-1 of the published weights, by their authors or their library,
with the views that they say; ours: not run.

    network         year  idea                                  parameters       G     s   MiB  K400
@@COST@@

On the toy, from nothing: small versions of similar cost, the same clips; each with the kind of
optimizer that it was published with, but for TimeSformer and ViViT (SGD there), whose recipes here
are the transformer's. Seven epochs, convolutional networks three. Val top-1, last weights; chance
is 12.5, a network that is blind to the order of frames cannot pass 50.

    network           parameters  multiply-adds  optimizer   seeds 0, 1, 2           mean
@@TOY@@

2 CPU cores (AMD EPYC, shared), one thread a run, torch 2.13.0, 2026-11-26.

@@VERDICT@@
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
