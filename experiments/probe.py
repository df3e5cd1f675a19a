"""
What do frozen features know of an action? A linear probe: logistic regression on them.

Why it matters: whoever has a hundred videos would like to train in seconds, on what somebody else's
network has learned. And a start that helps may help because of its features, or as a mere start.

    python -m experiments.probe --data ut/train.txt --init images/last.pt

All flags are train.py's: the network is the one that training would start from, and the features
are those of the middle of each clip. UT-Interaction, 83 clips to train on, 37 to validate with (one
is 2.7 points; chance is 17 %), focal_toy; `toy` and `images`, and the same starts when everything
is trained, are in experiments/small_data.py; after its --resize 128:

    start                    input        flags                          seeds 0, 1, 2     mean
    nothing                  colours                                     16.2, 16.2, 21.6  18.0
    nothing                  differences  --input diff                   45.9, 45.9, 51.4  47.7
    the toy's weights        colours      --init toy/last.pt             24.3, 24.3, 24.3  24.3
    image weights, fresh     colours      --init images/last.pt          37.8, 43.2, 43.2  41.4
    image weights, identity  colours       .. --temporal_init identity   43.2, 43.2, 43.2  43.2
    image weights, identity  differences   .. and --input diff           64.9, 64.9, 64.9  64.9

2 CPU cores (AMD EPYC), torch 2.13.0, commit 63d0020; seconds each. The problem is convex: seeds
differ where some of the frozen weights are random. With copies made anew, alike to the eye (the
code of 2026-11-26), the second row is 48.6, 59.5, 45.9: five clips of 37 are noise.

Verdict: of frozen features only those that see differences say much about motion, even random ones
(47.7 %); the highest are those of image weights, 64.9 %. To train everything is far ahead with
every start (59.5 to 92.8 %): weights help as a start. What this does not say: a network of 200,000
weights, trained on small pictures, is not one that has seen millions of large ones.
"""
import sys

import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

import train
from data import BadVideo, VideoSet, loader, prepare


@torch.no_grad()
def features_of(model, dataset, cfg):
    """What a network without head says of each clip, in the middle view -> (n, C), labels (n,)."""
    views = VideoSet(dataset.clips, dataset.labels, dataset.classes, cfg, views="1x1")
    keys = [(0, i) for i in range(len(views))]
    batches = [keys[k:k+cfg.batch_size] for k in range(0, len(keys), cfg.batch_size)]
    features = []
    labels = []
    for batch in tqdm(loader(views, batches, cfg.workers), unit="batch", disable=None):
        with train.autocast(cfg):
            found = model(prepare(batch, cfg, cfg.device)).float()
        good = torch.tensor([bad == "" for bad in batch["bad"]])
        features.append(found[good.to(cfg.device)])
        labels.append(batch["label"][good])
        for bad in batch["bad"]:
            if bad:
                print(f"left out: {bad}", file=sys.stderr)
    return torch.cat(features), torch.cat(labels).to(cfg.device)


def fit(features, labels, num_classes, weight_decay=0.01):
    """Multinomial logistic regression on features (n, C) -> nn.Linear(C, num_classes)."""
    # Frozen features are one batch, and the problem is convex: no rate, no schedule, no seed.
    head = nn.Linear(features.shape[1], num_classes, device=features.device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        size = head.weight.square().sum()
        loss = F.cross_entropy(head(features), labels) + weight_decay / 2 * size
        loss.backward()
        return loss
    optimizer.step(closure)
    return head


def main(words):
    """train.py's flags -> the network, with its new head, and evaluation's metrics."""
    cfg, checkpoint = train.parse_args(words)
    train.check(cfg)
    train.where_to_run(cfg)
    sets = train.open_sets(checkpoint, cfg)
    classes = sets["val"].classes
    model = train.build_model(checkpoint, classes, cfg).eval()
    model.head = nn.Identity()
    features, labels = features_of(model, sets["train"], cfg)
    if not len(labels):
        raise BadVideo("none of the training clips can be read")
    model.head = fit(features, labels, len(classes))
    metrics = train.evaluate(model, sets["val"], cfg)
    print(f"{model.head.weight.numel() + len(classes):,} parameters trained on the features of "
          f"{len(labels)} clips; top-1 {metrics['top1']:.1f} % of {metrics['videos']}")
    return model, metrics


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (OSError, ValueError, BadVideo) as error:
        sys.exit(f"error: {error}")
