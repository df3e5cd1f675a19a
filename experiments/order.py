"""
Does a network see motion, or pictures?

Why it matters: most classes of Kinetics can be told from one frame, so a high top-1 does not say
that a network sees time at all (the temporal branch of arXiv:2307.06947, the shifts of
arXiv:2210.08164). Its own answers to frames in another order do.

    python -m experiments.order --init out/best.pt
    python -m experiments.order --data ut/val.txt --init mine/last.pt

Any flags of `train.py --eval`. All clips of the validation set four times: as they are, backwards,
in a random order (one for the whole set), and their middle frame repeated. --input diff changes
along with the frames. A network of zoo/NAME.py needs an `import zoo.NAME` here.

    top-1                                       as it is  reversed  shuffled  one frame
    the toy, `python train.py`, seed 0             100.0       0.0      43.2       13.7
             --model lvt_toy, seed 0               100.0       0.0      82.8       12.1
                              seed 1               100.0       0.0      80.5       11.7
                              seed 2                99.2       0.6      89.3       12.3
    UT-Interaction, --input diff, seed 0            86.5      73.0      43.2       16.2
                                  seed 1            83.8      75.7      43.2       16.2
                                  seed 2            89.2      78.4      37.8       16.2
             image weights, seed 0, at 63d0020      78.4      64.9      56.8       24.3

Last weights; chance is 12.5 and 17 %. UT-Interaction: experiments/small_data.py, 37 clips, one is
2.7 points. 2 CPU cores (AMD EPYC), torch 2.13.0, 2026-11-26. At 63d0020 another random order gave
the first network 20.7 % (and UT-Interaction 43.2).

Verdict: of the toy, reversed, every answer is the partner class, as it should be. Shuffled, 16 of
the 28 pairs of frames keep their order, and the transformer can still tell most clips. Six actions
of two people have little direction (reversed costs 8 to 14 points), but their order counts. From
one picture nothing is known. What this does not say: a network that ignores time may have learned
to, because pictures were enough.
"""
import sys
from types import SimpleNamespace

import train  # before torch: it sets how threads wait

import numpy as np

from data import SAMPLING, BadVideo

# T -> the places in the clip that its T frames are taken from.
ORDERS = {
    "as it is": lambda T: np.arange(T),
    "reversed": lambda T: np.arange(T)[::-1],
    "shuffled": lambda T: np.random.default_rng(0).permutation(T),
    "one frame": lambda T: np.full(T, T // 2),
}


def reordered(name, order):
    """The way of sampling `name`, then its frames in another order: a function as those there."""
    def sample(n, T, interval, clips=1, rng=None):
        frames = SAMPLING[name](n, T, interval, clips, rng).reshape(-1, T)
        return frames[:, order(T)].reshape(-1)
    return sample


def main(words):
    """Flags of train.py -> {order: top-1}; prints them."""
    cfg, checkpoint = train.parse_args(["--eval", *words])
    train.check(cfg)
    train.where_to_run(cfg)
    val = train.open_sets(checkpoint, cfg)["val"]
    model = train.build_model(checkpoint, val.classes, cfg)
    top1 = {}
    for name, order in ORDERS.items():
        SAMPLING[name] = reordered(cfg.sampling, order)
        val.cfg = SimpleNamespace(**vars(cfg) | dict(sampling=name))
        top1[name] = train.evaluate(model, val, cfg)["top1"]
        print(f"{name:<10} {top1[name]:6.2f} % of {len(val)}")
    return top1


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (OSError, ValueError, BadVideo) as error:
        sys.exit(f"error: {error}")
