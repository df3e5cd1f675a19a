"""
Claims of the zoo, each checked against something that is not ours: outputs that were recorded from
the published code for weights made from their names (zoo/golden/), torch's operators, formulas
written out slowly, sizes that the papers give. Run: pytest zoo
"""
import math
import os
import signal
import zlib

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

import data as D
import linear_attn as A
import train
import zoo.kernels as K
from backbone import MIXERS, count_macs, create_model, load_weights, rename
from linear_attn import KERNELS
from zoo import (baselines, hybrid, inception3d, memory, patterns, resnet3d,  # noqa: F401
                 slowfast, videomae, vit)  # they register
from zoo.mvit import MViT
from zoo.timesformer import TimeSformer, cut, paste
from zoo.video_swin import VideoSwin, WindowAttention
from zoo.vivit import ViViT

close = torch.testing.assert_close


# --------------------------------------------------- recorded networks

# Tables of places and tokens, by the last part of their names.
TABLES = ("pos_embed", "position_embeddings", "time_embed", "time_embeddings", "cls_token",
          "mask_token", "class_token", "spatial_pos", "temporal_pos", "class_pos",
          "pos_embed_spatial", "pos_embed_temporal", "pos_embed_class", "cls_s", "cls_t", "cls",
          "pos_s", "pos_t", "pos")


def seeded(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64)


def golden(name, case):
    path = os.path.join(D.HERE, "zoo", "golden", name + ".pt")
    return torch.load(path, weights_only=True)[case]


def filled(manifest, gain=1.0, tables=TABLES):
    """
    {name: shape} -> the weights of a recorded network, each drawn from its name: norms 1 +- .2,
    kernels gain * N(0, 1/fan_in), biases +- .1, tables +- .3, running numbers of BatchNorm.
    """
    state = {}
    for name, shape in manifest.items():
        last = name.split(".")[-1]
        table = last in tables
        r = seeded(shape, zlib.crc32((name + ".bias" * table).encode()) % 2**31)
        norm = (1 + 0.2 * r).float()
        if last == "relative_position_index":  # the network computes it
            continue
        elif last == "num_batches_tracked":
            state[name] = torch.tensor(0)
        elif last == "running_mean":
            state[name] = 0.5 * (norm - 1)
        elif last == "running_var":
            state[name] = 0.5 * norm.abs() + 0.05
        elif table or name.endswith("bias"):
            state[name] = (0.1 * r).float() * (3 if table else 1)
        elif len(shape) == 1:
            state[name] = norm
        else:
            state[name] = (r * math.prod(shape[1:])**-0.5).float() * gain
    return state


def close_gradients(model, y, norms, rel=1e-3):
    """Gradients of (y * noise).sum() have the recorded norms, a dict by the model's names."""
    (y * seeded(y.shape, 7).to(y)).sum().backward()
    ours = {name: p.grad.norm().item() for name, p in model.named_parameters()}
    assert {name: ours[name] for name in norms} == pytest.approx(norms, rel=rel, abs=1e-5)


# --------------------------------------------------- kernels

TWELVE = ("efficient", "linformer", "performer", "orthoformer", "cosformer", "focused", "agent",
          "taylor", "hedgehog", "inline", "rala", "mala")


def qkv64(N, d=8, heads=2):
    torch.manual_seed(N)
    return torch.randn(3, 1, heads, N, d, dtype=torch.float64)


def ready(kernel, d, N, dtype=torch.float64):
    """A kernel as a layer uses it, (q, k, v) -> y; what it learns is drawn at random."""
    f, attend = KERNELS[kernel]
    if isinstance(attend, type):
        attend = attend(d, N).to(dtype)
        for p in attend.parameters():
            p.data = torch.randn(p.shape).to(dtype) * p.shape[-1]**-0.5
    return lambda q, k, v, **more: attend(f(q), f(k), v, **more)


def weights_of(act, q, k, **more):
    """The N x N weights that nobody builds: y for v = identity."""
    N = k.shape[-2]
    return act(q, k, torch.eye(N, dtype=k.dtype).expand(*k.shape[:-1], N), **more)


def normalised(a):
    return a / a.sum(-1, keepdim=True)


@pytest.mark.parametrize("kernel", TWELVE)
def test_kernels_of_other_papers_are_their_explicit_weights(kernel):
    """(f f^T) v = f (f^T v): y is linear in v; all weights but Linformer's sum to one."""
    for N in (1, 2, 17):
        q, k, v = qkv64(N)
        act = ready(kernel, 8, N)
        more = dict(L=6) if kernel == "orthoformer" else {}
        a = weights_of(act, q, k, **more)
        close(act(q, k, v, **more), a @ v, rtol=1e-10, atol=1e-10)
        some = a.sum(-1)[a.sum(-1) > 1e-3]  # a query without features has none
        if kernel != "linformer":
            close(some, torch.ones_like(some), rtol=1e-3, atol=0)


def test_kernels_of_other_papers_are_their_formulas_written_out_slowly():
    """The N x N weights of each, from its paper's formula, give the same output."""
    q, k, v = qkv64(9)
    q[0, 1, 3] = -q[0, 1, 3].abs()  # a query without relu features
    q[0, 1, 4] = q[0, 1, 4] * 1e-8  # and one whose sums are below 1e-6
    N, d = 9, 8
    s = d**-0.5
    fq = F.elu(q) + 1
    fk = F.elu(k) + 1
    t = s * q @ k.mT
    z = s * fq @ fk.mT

    # Products of features, each with its paper's guard; the positions of cosFormer count from 1.
    i = torch.arange(1, N + 1, dtype=torch.float64)
    near = torch.relu(q) @ torch.relu(k).mT * torch.cos(math.pi / 2 * (i[:, None] - i) / N)
    sharp = []
    for x in (q, k):
        x = F.relu(x) + 1e-6
        sharp.append(x**3 / (x**3).norm(dim=-1, keepdim=True) * x.norm(dim=-1, keepdim=True))
    cubes = sharp[0] @ sharp[1].mT
    alpha = N * (s * (fq.mean(-2, keepdim=True) @ fk.mT)).softmax(-1)  # (.., 1, N)

    # By way of a few tokens: agents are pooled queries, landmarks are queries.
    agents = q.unflatten(-2, (3, 3)).mean(-2)
    marks = torch.stack([q[0, h, K.landmarks(q, 4)[0, h]] for h in range(2)])[None]
    weights = dict(
        efficient=q.softmax(-1) @ k.softmax(-2).mT,
        orthoformer=(s * q @ marks.mT).softmax(-1) @ (s * marks @ k.mT).softmax(-1),
        cosformer=near / near.sum(-1, keepdim=True).clamp(min=1e-6),
        focused=cubes / (cubes.sum(-1, keepdim=True) + 1e-6 * math.log(2)**2 * N),
        agent=(s * q @ agents.mT).softmax(-1) @ (s * agents @ k.mT).softmax(-1),
        taylor=normalised(1 + t + t**2 / 2),
        inline=(t - t.mean(-1, keepdim=True) + 1) / N,
        rala=normalised(alpha * z),
        mala=normalised(z) + (z - z.mean(-1, keepdim=True)) / N)
    for kernel, a in weights.items():
        more = dict(agent=dict(n=3), orthoformer=dict(L=4)).get(kernel, {})
        tolerance = 1e-5 if kernel in ("rala", "mala", "taylor") else 1e-10  # our eps
        y = ready(kernel, d, N)(q, k, v, **more)
        close(y, a @ v, rtol=tolerance, atol=tolerance)

    # Learned maps: of tokens; of 20 features to 16; of features to as many, the identity at first.
    own = K.Linformer(d, N).double()
    y = torch.softmax(s * q @ (own.E @ k).mT, -1) @ (own.P @ v)
    close(own(q, k, v), y, rtol=1e-10, atol=1e-10)
    own = K.Taylor(20, N).double()
    q20, k20, v20 = qkv64(N, d=20)
    t = torch.einsum("...if,wf,wg,...jg->...ij", q20, own.W, own.W, k20) / 4
    close(own(q20, k20, v20), normalised(1 + t + t**2 / 2) @ v20, rtol=1e-5, atol=1e-5)
    own = K.Hedgehog(d, N).double()
    assert torch.equal(own.W, torch.eye(d, dtype=torch.float64))
    own.W.data = torch.randn(d, d, dtype=torch.float64)
    mapped = [torch.einsum("...if,wf->...iw", x, own.W) for x in (q, k)]
    spikes = [torch.cat([x.softmax(-1), (-x).softmax(-1)], -1) for x in mapped]
    close(own(q, k, v), normalised(spikes[0] @ spikes[1].mT) @ v, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", ("rala", "mala", "inline", "focused", "agent", "taylor",
                                    "efficient"))
def test_kernels_of_other_papers_compute_what_their_authors_classes_compute(kernel):
    record = golden("modern_linear", kernel)
    more = dict(agents=record["agents"]) if kernel == "agent" else {}
    y = ready(kernel, 8, 16)(record["q"], record["k"], record["v"], **more)
    close(y, record["y"], rtol=0, atol=1e-5)


def test_what_the_header_of_kernels_teaches():
    """Multiply-adds at d = 64; rank at most the number of features; length; negative weights."""
    table = dict(  # kernel: (products / N d, rank for d = 8)
        efficient=(128, 8), linformer=(1024, 40), performer=(256, 8), orthoformer=(319, 40),
        cosformer=(256, 16), focused=(128, 8), agent=(64, 16), taylor=(578, 40),
        hedgehog=(384, 16), inline=(128, 9), rala=(128, 8), mala=(128, 9))
    for kernel, (products, rank) in table.items():
        f, attend = KERNELS[kernel]
        q, k, v = torch.empty(3, 1, 1, 1000, 64, device="meta")
        attend = attend(64, 1000).to("meta") if isinstance(attend, type) else attend
        with FlopCounterMode(display=False) as counter:
            attend(f(q), f(k), v)
        assert counter.get_total_flops() / 2 / 1000 / 64 == pytest.approx(products, rel=0.02)
        q, k, _ = qkv64(40)
        act = ready(kernel, 8, 40)
        a = weights_of(act, q, k)
        assert torch.linalg.matrix_rank(a).max() <= rank
        assert (a.min() < -1e-3) == (kernel in ("linformer", "inline", "mala"))
        same = torch.allclose(weights_of(act, 2 * q, k), a, atol=1e-4)
        assert same == (kernel in ("cosformer", "focused"))
    a = weights_of(ready("taylor", 8, 60), *qkv64(60)[:2])
    assert torch.linalg.matrix_rank(a).max() == 1 + 8 + 36  # for 16: 1 + 16 + 136


def test_landmarks_are_chosen_one_by_one_each_the_least_like_those_before():
    q = qkv64(20)[0]
    for h in range(2):
        n = F.normalize(q[0, h], dim=-1)
        chosen = [0]
        while len(chosen) < 7:
            likeness = [max(abs(n[t] @ n[c]).item() for c in chosen) if t not in chosen else 10
                        for t in range(20)]
            chosen.append(int(np.argmin(likeness)))
        assert K.landmarks(q, 7)[0, h].tolist() == sorted(chosen)
    few = qkv64(5)  # fewer tokens than landmarks: all of them
    close(K.orthoformer(*few, 64), K.orthoformer(*few, 5))


def test_performer_is_unbiased_for_the_exponential_of_the_scaled_product():
    """2000 phi(q) . phi(k) average exp(q . k / sqrt d) to 4 standard errors; orthogonal rows."""
    d = 16
    torch.manual_seed(0)
    q, k = torch.randn(2, d, dtype=torch.float64)
    draws = []
    for _ in range(2000):
        omega = K.Performer(d, 1).omega.double()
        both = (omega @ (q + k) * d**-0.25).exp() * (-(q @ q + k @ k) / (2 * d**0.5)).exp()
        draws.append(both.mean())
    draws = torch.stack(draws)
    assert abs(draws.mean() - torch.exp(q @ k / d**0.5)) < 4 * draws.std() / 2000**0.5
    unit = F.normalize(omega, dim=1)
    close(unit @ unit.T, torch.eye(d, dtype=torch.float64), rtol=0, atol=1e-5)

    # The features by their formula: queries have a maximum each, keys share one per head.
    performer = K.Performer(d, 3).double()
    x = torch.randn(2, 3, d, dtype=torch.float64)
    logits = x * d**-0.25 @ performer.omega.T - x.square().sum(-1, keepdim=True) / 2 / d**0.5
    for keys, c in ((False, logits.amax(-1, keepdim=True)), (True, logits.amax((1, 2), True))):
        close(performer.features(x, keys), d**-0.5 * ((logits - c).exp() + 1e-4))
    fq = performer.features(x, False)
    fk = performer.features(x, True)
    close(performer(x, x, x), normalised(fq @ fk.mT) @ x)


@pytest.mark.parametrize("kernel", TWELVE)
@pytest.mark.parametrize("N, dtype, scale", (
    (1, torch.float32, 1), (70, torch.float32, 0), (70, torch.bfloat16, 1e4),
    (70, torch.float16, 0), (3136, torch.float16, 1)))
def test_kernels_of_other_papers_stay_finite_and_right(kernel, N, dtype, scale):
    """Values and gradients, of zero, huge and half-precision inputs; fp16 at N = 3136 is right."""
    torch.manual_seed(0)
    x = (torch.randn(3, 1, 1, N, 64) * scale).to(dtype).requires_grad_()
    torch.manual_seed(1)
    y = ready(kernel, 64, N, dtype)(*x)
    y.float().square().sum().backward()
    assert y.dtype == dtype and y.isfinite().all() and x.grad.isfinite().all()
    if N > 3000 and kernel != "orthoformer":  # in fp16 it may choose others
        f, attend = KERNELS[kernel]
        torch.manual_seed(1)
        exact = ready(kernel, 64, N)(*x.double())
        assert (y - exact).norm() / exact.norm() < 0.01


@pytest.mark.parametrize("kernel", TWELVE)
def test_networks_with_kernels_of_other_papers_train(kernel):
    """With the gate, under autocast, from a checkpoint; all gradients are there."""
    torch.manual_seed(0)
    clip = torch.randn(2, 3, 8, 64, 64)
    model = create_model("lvt_toy", kernel=kernel)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(clip)
    y.float().square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in model.parameters())
    assert count_macs(model) > 0
    other = create_model("lvt_toy", kernel=kernel)
    load_weights(other, model.state_dict())
    with torch.no_grad():
        close(other(clip), model(clip), rtol=0, atol=0)
        close(model(clip)[:1], model(clip[:1]), rtol=1e-3, atol=1e-4)  # clips are on their own


def test_linformer_takes_the_number_of_tokens_it_was_made_for():
    with pytest.raises(ValueError, match="9 tokens: this linformer was made for 25"):
        create_model("lvt_toy", kernel="linformer")(torch.randn(1, 3, 8, 32, 32))


# --------------------------------------------------- mixers

CUT = (2, 2, 3)
SIZE = (4, 4, 6)  # 96 tokens
WORDS = ("window", "shifted", "grid", "height", "width", "pooled")
PLAIN = dict(heads=2, fixation="none", temporal_shift=0, spatial_shift=0)


def make(word, size=SIZE, cut=CUT, **options):
    return MIXERS[word](16, size, options | ({} if word == "joint" else dict(cut=cut)))


def meet(word):
    """bool (N, N): which of the 96 tokens meet, written down from the definition of a word."""
    place = torch.stack(torch.meshgrid(*map(torch.arange, SIZE), indexing="ij")).flatten(1)
    side = torch.tensor(SIZE)[:, None]
    step = torch.tensor(CUT)[:, None]
    number = dict(window=place // step, grid=place % step, height=place[[0, 2]],
                  width=place[[0, 1]], shifted=(place - step // 2) % side // step,  # a ring
                  pooled=place[:0])[word]
    return (number[:, :, None] == number[:, None, :]).all(0)


def averaged(z):
    """(2, heads, N, d) -> (2, heads, N, d): each token has the mean of its window, torch's own."""
    z = F.avg_pool3d(z.unflatten(2, SIZE).permute(0, 1, 5, 2, 3, 4).flatten(0, 1), CUT)
    for axis, n in enumerate(CUT):
        z = z.repeat_interleave(n, 2 + axis)
    return z.flatten(2).mT.unflatten(0, (2, 2))


@pytest.mark.parametrize("shifts", (False, True))
@pytest.mark.parametrize("kernel", ("softmax", "relu"))
@pytest.mark.parametrize("word", WORDS)
def test_every_word_is_attention_over_all_tokens_under_a_mask(word, kernel, shifts):
    """
    Forward and gradients, float64. A mean stands in the place of each token that it is of; what the
    shifts bring comes from the whole clip.
    """
    torch.manual_seed(0)
    options = PLAIN | (dict(temporal_shift=4, spatial_shift=1) if shifts else {})
    layer = make(word, kernel=kernel, **options).double()
    x = torch.randn(2, *SIZE, 16, dtype=torch.float64, requires_grad=True)
    q, k, v = layer.qkv(x).chunk(3, -1)
    if shifts:
        k, v = (A.temporal_shift(A.spatial_shift(z, 1), 4) for z in (k, v))
    q, k, v = (z.reshape(2, 96, 2, 8).transpose(1, 2) for z in (q, k, v))
    if kernel == "relu":
        q, k = (F.relu(z) + 8**-0.5 for z in (q, k))
    if word == "pooled":
        k, v = averaged(k), averaged(v)
    a = (q @ k.mT / 8**0.5).exp() if kernel == "softmax" else q @ k.mT
    a = a * meet(word)
    eps = 0 if kernel == "softmax" else 1e-6 * (12 if word == "pooled" else 1)  # 12 for each mean
    y = a / (a.sum(-1, keepdim=True) + eps) @ v
    expected = layer.proj(y.transpose(1, 2).reshape(x.shape))
    close(layer(x), expected, rtol=1e-10, atol=1e-10)
    probe = torch.randn_like(x)
    leaves = [x, *layer.parameters()]
    ours, theirs = (torch.autograd.grad((y * probe).sum(), leaves, retain_graph=True)
                    for y in (layer(x), expected))
    close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("word, groups", (
    ("window", "aabbcc"), ("shifted", "caabbc"), ("grid", "ababab"), ("pooled", "aaaaaa")))
def test_six_tokens_in_a_line_meet_as_the_header_draws_them(word, groups):
    torch.manual_seed(0)
    layer = make(word, size=(6, 1, 1), cut=(2, 1, 1), kernel="softmax", **PLAIN)
    seen = torch.autograd.functional.jacobian(lambda x: layer(x).sum(-1).flatten(),
                                              torch.randn(1, 6, 1, 1, 16))
    seen = seen.abs().sum(-1).reshape(6, 6) > 1e-9
    assert seen.tolist() == [[one == other for other in groups] for one in groups]


@pytest.mark.parametrize("word, cut", (
    ("window", SIZE), ("shifted", SIZE), ("grid", (1, 1, 1)), ("pooled", (1, 1, 1))))
@pytest.mark.parametrize("first", (True, False))
def test_one_window_of_all_tokens_is_the_core_s_joint_attention(word, cut, first):
    """With the gate and both shifts, in either order; the parameters have the core's names."""
    torch.manual_seed(0)
    joint = make("joint", heads=2, shift_first=first).double()
    layer = make(word, cut=cut, heads=2, shift_first=first).double()
    layer.load_state_dict(joint.state_dict())
    x = torch.randn(2, *SIZE, 16, dtype=torch.float64)
    close(layer(x), joint(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("word, keys", list(zip(WORDS, (12, 12, 8, 4, 6, 8))))
def test_a_kernel_s_own_weights_are_made_for_the_keys_of_a_group(monkeypatch, word, keys):
    class Counts(torch.nn.Module):
        def __init__(self, d, N):
            super().__init__()
            assert N == keys

        def forward(self, q, k, v):
            assert k.shape[-2] == keys and q.shape[-1] == v.shape[-1] == 8
            return q
    monkeypatch.setitem(A.KERNELS, "counts", (lambda x: x, Counts))
    make(word, kernel="counts", **PLAIN)(torch.randn(1, *SIZE, 16))


@pytest.mark.parametrize("mixer", ("time+height+width", "window+grid", "window+shifted",
                                   "window+pooled", "conv3d", "conv2plus1d", "pool"))
@pytest.mark.parametrize("name", ("lvt_toy", "focal_toy"))
def test_both_trunks_run_them_and_keep_batch_items_apart(name, mixer):
    torch.manual_seed(0)
    model = create_model(name, mixer=mixer).eval()
    x = torch.randn(2, 3, 8, 64, 64)
    y = model(x)
    close(model(x[:1]), y[:1], rtol=1e-3, atol=1e-4)
    y.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("mixer, options, message", (
    ("grid", dict(cut=(3, 1, 1)), "does not divide 8 x 5 x 5 tokens.*8 frames use one of 1, 2, 4"),
    ("pooled", dict(cut=(2, 1, 2)), r"cut=\(2, 1, 2\) .*its 5 columns use one of 1, 5"),
    ("window", dict(cut=(2, 5)), "three whole numbers of tokens"),
    ("shifted", dict(cut=(1, 1, 1)), "a token would meet itself alone"),
    ("grid", dict(cut=(8, 5, 5)), "a token would meet itself alone"),
    ("height", dict(cut=(2, 1, 1)), "lvt_toy has no argument cut with mixer='height'"),
    ("conv3d", dict(heads=4), "lvt_toy has no argument heads with mixer='conv3d'")))
def test_patterns_that_cannot_be_say_the_value_the_rule_and_the_way_out(mixer, options, message):
    with pytest.raises(ValueError, match=message):
        create_model("lvt_toy", mixer=mixer, **options)


def test_a_clip_of_another_size_is_refused_not_cut_wrongly():
    """6 x 4 x 4 tokens are as many as 4 x 4 x 6."""
    for word in WORDS:
        with pytest.raises(ValueError, match="a clip of .6, 4, 4. tokens: .* made for .4, 4, 6."):
            make(word)(torch.randn(1, 6, 4, 4, 16))


def test_baselines_are_torch_s_operators():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 5, 6)
    first = x.permute(0, 4, 1, 2, 3)  # channels-first
    words = ("conv3d", "conv2plus1d", "pool")
    dense, split, pool = (MIXERS[word](6, (3, 4, 5), {}) for word in words)
    y = F.conv3d(first, dense.conv[0].weight, dense.conv[0].bias, padding=1)
    close(dense(x), y.permute(0, 2, 3, 4, 1))

    # In two steps: each image, then each pixel.
    frames = [F.conv2d(first[:, :, t], split.conv[0].weight[:, :, 0], split.conv[0].bias, padding=1)
              for t in range(3)]
    y = F.gelu(torch.stack(frames, 2)).permute(0, 3, 4, 1, 2).reshape(40, 6, 3)
    y = F.conv1d(y, split.conv[2].weight[..., 0, 0], split.conv[2].bias, padding=1)
    close(split(x), y.reshape(2, 4, 5, 6, 3).permute(0, 4, 1, 2, 3))

    # The mean of those that there are: torch's own, which takes no clip of one frame.
    close(pool(x), F.avg_pool3d(first, 3, 1, 1, count_include_pad=False).permute(0, 2, 3, 4, 1) - x)
    close(pool(x[:, :1])[0, 0, 0, 0], x[0, 0, 0:2, 0:2].mean((0, 1)) - x[0, 0, 0, 0])


# --------------------------------------------------- convolutional networks

SMALL = dict(num_frames=8, image_size=32, depths=(1, 1, 1, 1))
THIN = dict(num_frames=8, image_size=64, width=16, window=2, depths=(2, 2, 3, 2))
RECORDED = {  # preset: file, record, what makes the preset as small as the recorded network
    "r3d_18": ("resnet3d", "r3d_18", SMALL),
    "mc3_18": ("resnet3d", "mc3_18", SMALL),
    "r2plus1d_18": ("resnet3d", "r2plus1d_18", SMALL),
    "c3d": ("c3d", "mmaction2", dict(image_size=32)),
    "slow_r50": ("slowfast", "slow", THIN),
    "c2d_r50": ("slowfast", "c2d", THIN),
    "i3d_r50": ("slowfast", "i3d", THIN),
    "slowfast_r50": ("slowfast", "slowfast", THIN | dict(num_frames=16, depths=(1, 2, 2, 1))),
    "inception_i3d": ("i3d_inception", "rgb", {}),
    "s3d": ("s3d", "small", {}),
}


@pytest.mark.parametrize("name", RECORDED)
def test_convnets_give_the_recorded_logits_and_gradients(name):
    file, case, small = RECORDED[name]
    record = golden(file, case)
    model = create_model(name, num_classes=11, **small).eval()
    load_weights(model, filled(record["manifest"], record["gain"]))
    assert sum(p.numel() for p in model.parameters()) == record["n_params"]
    x = seeded(record["x_shape"], record["x_seed"]).float()
    backward = x.numel() < 10**6 and "grad_norms" in record  # not for 224 x 224
    with torch.set_grad_enabled(backward):
        y = model(x)
    close(y, record["logits"], rtol=0, atol=2e-5)
    if backward:
        close_gradients(model, y, model.our_names(record["grad_norms"]), rel=2e-3)
    if "logits64" in record:
        with torch.no_grad():
            close(model.double()(x.double()), record["logits64"], rtol=0, atol=1e-9)


def test_batchnorm_is_two_functions():
    """The batch's mean and variance in training, the running ones in evaluation."""
    model = create_model("r3d_toy").double()
    norm = model.stem[1]
    x = seeded((3, 3, 8, 64, 64), 0)
    z = model.stem[0](x).transpose(0, 1)  # channels first: (8, B, T, H, W)
    mean, var = z.mean((1, 2, 3, 4), keepdim=True), z.var((1, 2, 3, 4), correction=0, keepdim=True)
    close(model.stem(x).transpose(0, 1), F.relu((z - mean) / (var + 1e-5).sqrt()))
    close(norm.running_mean, 0.1 * mean.flatten())
    close(norm.running_var, 0.9 + 0.1 * z.flatten(1).var(1))  # n - 1
    assert (model(x)[:1] - model(x[:1])).abs().max() > 1e-3  # the other clips matter
    model.eval()
    close(model(x)[:1], model(x[:1]))
    mean, var = (n.view(-1, 1, 1, 1, 1) for n in (norm.running_mean, norm.running_var))
    close(model.stem(x).transpose(0, 1), F.relu((z - mean) / (var + 1e-5).sqrt()))


def test_a_number_behind_layer_2_of_r3d_sees_25_frames():
    model = create_model("r3d_18", width=4).eval()
    clip = torch.rand(1, 3, 64, 16, 16, requires_grad=True)
    model.layers[1](model.layers[0](model.stem(clip)))[:, :, 16].sum().backward()
    assert clip.grad.any(-1).any(-1).any(1).sum() == 25


def test_the_slow_way_gets_frames_from_the_first_to_the_last():
    for T, alpha, want in ((32, 4, [0, 4, 8, 13, 17, 22, 26, 31]), (32, 8, [0, 10, 20, 31]),
                           (8, 4, [0, 7]), (160, 4, torch.linspace(0, 159, 40).int().tolist())):
        model = create_model("slowfast_toy", num_frames=T, alpha=alpha).eval()
        seen = []
        model.slow[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        model(torch.arange(T).float().view(1, 1, T, 1, 1).expand(1, 3, T, 32, 32))
        assert seen[0][0, 0, :, 0, 0].tolist() == want


def test_the_head_pools_windows_of_the_training_size():
    """256 pixels are 8 x 8 places: four windows of 7 x 7, not one mean."""
    model = create_model("c2d_r50", width=4, depths=(1, 1, 1, 1)).eval()
    clip = seeded((1, 3, 8, 256, 256), 0).float()
    x = nn.Sequential(*model.slow)(clip)
    scores = [model.head(x[..., h:h+7, w:w+7].mean((2, 3, 4))) for h in (0, 1) for w in (0, 1)]
    close(model(clip), sum(scores) / 4)
    assert (model(clip) - model.head(x.mean((2, 3, 4)))).abs().max() > 1e-3


def test_same_padding_is_tensorflows():
    """Its definition: ceil(n / s) outputs; what they lack is added, the larger half at the end."""
    for n in range(1, 30):
        for k, s in ((7, 2), (3, 2), (2, 2), (3, 1), (1, 1), (1, 2), (3, 3)):
            lacks = max((math.ceil(n / s) - 1) * s + k - n, 0)
            x = torch.ones(1, n, 4, 4)
            want = F.pad(x, (0, 0, 0, 0, lacks // 2, lacks - lacks // 2))
            assert torch.equal(inception3d.same(x, (k, 1, 1), (s, 1, 1)), want), (n, k, s)


def test_other_layouts_load_and_wrong_weights_are_one_error():
    c3d = create_model("c3d", width=2, hidden=8, image_size=32)
    load_weights(c3d, {key.replace("head", "fc8"): v for key, v in c3d.state_dict().items()})
    i3d = create_model("inception_toy")
    load_weights(i3d, {key: v for key, v in i3d.state_dict().items() if "num_batches" not in key})
    for theirs, ours in (("r3d_18", "mc3_18"), ("slow_r50", "i3d_r50"), ("s3d", "inception_i3d")):
        with pytest.raises(ValueError, match="does not fit this network"):
            load_weights(create_model(ours, width=8), create_model(theirs, width=8).state_dict())
    for name, wrong in (("c3d", dict(num_frames=8)), ("slowfast_r50", dict(num_frames=30)),
                        ("r3d_18", dict(kind="r4d")), ("slow_r50", dict(kind="fast"))):
        with pytest.raises(ValueError, match="=(8|30|'r4d'|'fast'): "):
            create_model(name, **wrong)


# --------------------------------------------------- Swin and MViT

def small(record):
    """The small network of a record, with its weights."""
    if "swin" in record["model"]:
        model = VideoSwin(11, dim=24, depths=(2, 2, 2), heads=(2, 3, 4), window=(4, 3, 3))
    else:
        cfg = record["cfg"]
        model = MViT(11, cfg["temporal_size"], max(cfg["spatial_size"]), cfg.get("version", 2),
                     dim=16, depths=(1, 2, 1), kv_stride=4)
    load_weights(model, filled(record["manifest"]))
    return model.eval()


@pytest.mark.parametrize("name, case", [
    ("swin3d", "even"), ("swin3d", "pad"), ("swin3d_official", "pad"),
    ("swin3d_sizes", "time_shorter"), ("swin3d_sizes", "all_shorter"),  # than the window
    ("mvit_v1", "small"), ("mvit_v2", "small"), ("mvit_slowfast", "v1"), ("mvit_slowfast", "v2"),
    ("mvit_v2_sizes", "odd_grids"), ("mvit_v2_sizes", "not_square"),  # tables are stretched
])
def test_swin_and_mvit_compute_what_the_published_code_computes(name, case):
    """In float64 to 1e-9: a wrong eps would show. And the same gradients."""
    record = golden(name, case)
    model = small(record)
    x = seeded(record["x_shape"], record["x_seed"]).float()
    logits = model(x)
    close(logits, record["logits"], rtol=0, atol=2e-5)
    if "grad_norms" in record:
        theirs = {key: torch.tensor([norm]) for key, norm in record["grad_norms"].items()}
        theirs = {key: norm.item() for key, norm in model.our_names(theirs).items()}
        close_gradients(model, logits, theirs, rel=1e-4)
    close(model.double()(x.double()), record["logits64"], rtol=0, atol=1e-9)


def test_swin_from_image_weights_sees_a_still_clip_as_the_image_network_does():
    record = golden("swin_image", "image")
    model = small(record)
    image = seeded(record["x_shape"], record["x_seed"]).float()
    clip = image[:, :, None].expand(-1, -1, 16, -1, -1)
    close(model(clip), record["logits"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("shift", (False, True))
def test_shifted_windows_are_attention_among_tokens_of_the_same_window(shift):
    """No roll, mask or index: p and p' meet if (p - shift) // window agrees on each axis."""
    layer = WindowAttention(8, heads=2, window=(2, 3, 4), shift=shift).double()
    layer.offset_embed.data.normal_()
    x = torch.randn(1, 4, 6, 12, 8, dtype=torch.float64)
    place = torch.cartesian_prod(torch.arange(4), torch.arange(6), torch.arange(12))
    size = torch.tensor([2, 3, 4])
    window = (place - size // 2 * shift).div(size, rounding_mode="floor")
    meet = (window[:, None] == window).all(-1)
    t, h, w = (place[:, None] - place + size - 1).clamp(min=0).minimum(2*size - 2).unbind(-1)
    q, k, v = layer.qkv(x).view(288, 3, 2, 4).unbind(1)
    a = torch.einsum("ihd,jhd->ijh", q, k) / 2 + layer.offset_embed.unflatten(0, (3, 5, 7))[t, h, w]
    a = a.masked_fill(~meet[..., None], -math.inf).softmax(1)
    y = layer.proj(torch.einsum("ijh,jhd->ihd", a, v).flatten(1))
    close(layer(x).view(288, 8), y)


@pytest.mark.parametrize("name", ("swin_toy", "mvit_toy"))
def test_a_swin_or_mvit_takes_its_own_weights_and_says_in_a_line_what_does_not_fit(name):
    model = create_model(name, drop_path=0.5)
    assert not load_weights(create_model(name), model.state_dict())["fresh"]
    with pytest.raises(ValueError, match="does not fit this network"):
        load_weights(model, filled(golden("mvit_v1", "small")["manifest"]))
    model.train()(torch.rand(2, 3, 8, 64, 64)).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert create_model(name, num_classes=0)(torch.rand(1, 3, 8, 64, 64)).shape == (1, 64)


# --------------------------------------------------- TimeSformer and ViViT

TIMESFORMER = {"divided_space_time": "time+space", "joint_space_time": "joint",
               "space_only": "space"}


@pytest.mark.parametrize("case", TIMESFORMER)
def test_timesformer_computes_what_was_recorded(case):
    """Logits, gradients, clips of another size, Hugging Face's names; float64 pins eps."""
    record = golden("timesformer", case)
    scheme = TIMESFORMER[case]
    model = TimeSformer(11, 4, 32, 8, 48, 3, 4, scheme, drop_path=0.0).eval()
    weights = filled(record["manifest"], record["gain"])
    load_weights(model, {"model_state": {"model." + name: w for name, w in weights.items()}})
    x = seeded(record["x_shape"], record["x_seed"]).float()
    close(model(x), record["logits"], rtol=0, atol=5e-6)
    other = seeded(record["x_resize_shape"], record["x_resize_seed"]).float()
    close(model(other), record["logits_resize"], rtol=0, atol=5e-6)
    if "hf_from_official" in record:
        theirs = {name: weights[o] for name, o in record["hf_from_official"].items()}
        again = TimeSformer(11, 4, 32, 8, 48, 3, 4, scheme, drop_path=0.0).eval()
        load_weights(again, theirs)
        close(again(x), record["logits"], rtol=0, atol=5e-6)

    # Resized when loaded is resized when run.
    larger = TimeSformer(11, 6, 48, 8, 48, 3, 4, scheme, drop_path=0.0).eval()
    load_weights(larger, weights)
    square = seeded((1, 3, 6, 48, 48), 0).float()
    close(larger(square), model(square), rtol=0, atol=1e-6)
    y = model.double()(x.double())
    close(y, record["logits64"], rtol=0, atol=1e-9)
    theirs = [record["grad_norms"].get(name, 0) for name in record["manifest"]]
    close_gradients(model, y, dict(zip(model.our_names(weights), theirs)))


@pytest.mark.parametrize("step", ("time", "space", "joint", "width", "height", "local", "global"))
def test_the_steps_of_timesformer_are_groups_of_tokens_that_meet(step):
    """Each token is its own place: who shares a group, by the text of Figure 2; and back."""
    T, H, W = 4, 6, 8
    places = torch.cartesian_prod(*(torch.arange(n) for n in (T, H, W))).view(1, T, H, W, 3)
    groups = cut(places, step)[0]  # (G, n, 3)
    same = {"time": lambda t, h, w: (h, w), "space": lambda t, h, w: t,
            "joint": lambda t, h, w: 0, "width": lambda t, h, w: (t, h),
            "height": lambda t, h, w: (t, w), "local": lambda t, h, w: (h // 3, w // 4),
            "global": lambda t, h, w: (t % 2, h % 2, w % 2)}[step]
    keys = [{same(*place) for place in group.tolist()} for group in groups]
    assert all(len(key) == 1 for key in keys) and len(set.union(*keys)) == len(groups)
    assert torch.equal(paste(cut(places, step), step, T, H, W), places)


def test_vivit_computes_what_was_recorded():
    record = golden("vivit_hf", "model1")
    model = ViViT(11, 8, 32, 1, 2, 8, 48, 3, 2, 4).eval()
    load_weights(model, filled(record["manifest"], record["gain"]))
    x = seeded(record["x_shape"], record["x_seed"]).float()
    close(model(x), record["logits"], rtol=0, atol=5e-6)
    close(model.double()(x.double()), record["logits64"], rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match="places are learned for num_frames=8, image_size=32"):
        model(x[:, :, :4])


@pytest.mark.parametrize("number", (1, 2, 3, 4))
def test_vivits_four_models_compute_what_scenic_does(number):
    record = golden("vivit_scenic", f"model{number}")
    model = ViViT(11, 8, 32, number, 2, 8, 48, 3, 2, 4).eval()
    weights = filled(record["manifest"], record["gain"])
    weights = rename(weights, (
        (r"^(spatial|temporal)\.", r"\1.blocks."), (r"^(norm|pos|cls)_s\b", r"spatial.\1"),
        (r"^(norm|pos|cls)_t\b", r"temporal.\1"), (r"^(norm|pos|cls|blocks)\b", r"encoder.\1"),
        (r"\.pos$", ".pos_embed"), (r"\.cls$", ".cls_token"), (r"^embed\.proj", "patch_embed"),
        (r"\.norm_s\.", ".norm1."), (r"\.attn_s\.", ".attn."), (r"\.fc1\.", ".0."),
        (r"\.fc2\.", ".2.")))
    load_weights(model, weights)
    y = model(seeded(record["x_shape"], record["x_seed"]).float())
    close(y, record["logits"], rtol=0, atol=5e-6)
    theirs = [record["grad_norms"].get(name, 0) for name in record["manifest"]]
    close_gradients(model, y, dict(zip(weights, theirs)))


def test_vivit_from_an_image_vit_sees_the_central_frame_as_the_image():
    """A video whose tubelets have one picture in their central frame: Model 2 hears the ViT."""
    torch.manual_seed(0)
    image = ViViT(0, 1, 32, 1, 1, 8, 48, 2, 2, 4)  # a plain ViT
    state = {name.removeprefix("encoder."): w for name, w in image.state_dict().items()}
    state["patch_embed.weight"] = state["patch_embed.weight"][:, :, 0]
    pictures = torch.randn(2, 3, 8, 32, 32)
    for number in (1, 2, 3, 4):
        model = ViViT(0, 8, 32, number, 2, 8, 48, 2, 2, 4).eval()
        load_weights(model, dict(state))
        blinded = pictures.clone()
        blinded[:, :, ::2] = 9.0  # frames 0, 2, ..: the other one of each tubelet
        close(model(blinded), model(pictures))
        if number == 2:
            heard = model.spatial(model.patch_embed(pictures).flatten(3).permute(0, 2, 3, 1)
                                  .flatten(0, 1))
            frames = pictures[:, :, 1::2].transpose(1, 2).flatten(0, 1)[:, :, None]
            close(heard, image.eval()(frames), atol=1e-5, rtol=0)


# --------------------------------------------------- ViT, memory

CUTS = (1, 5, 2, 16, 1)  # frames a chunk, 25 together


def recorded(kind):
    """'avg' or 'token' -> (timm's weights, a still clip, timm's logits)."""
    record = golden("timm_vit", kind)
    image = seeded(record["x_shape"], record["x_seed"]).float()
    still = image[:, :, None].expand(-1, -1, 4, -1, -1)
    return filled(record["manifest"], tables=()), still, record["logits"]


def small_vit(**changes):
    size = dict(num_classes=10, num_frames=4, image_size=64, dim=64, depth=3, heads=2)
    return create_model("vit_s", **size | changes).eval()


@pytest.mark.parametrize("mixer", ("space", "time+space", "joint"))
@pytest.mark.parametrize("kind, pool", (("token", "token"), ("avg", "mean")))
def test_a_still_clip_is_timms_image_and_without_joint_a_clip_is_its_mean(kind, pool, mixer):
    state, still, logits = recorded(kind)
    model = small_vit(mixer=mixer, pool=pool)
    load_weights(model, {"model": {f"module.{name}": value for name, value in state.items()}})
    close(model(still), logits, rtol=0, atol=2e-6)
    moving = still * torch.tensor([1, 0.5, -1, 2])[:, None, None]
    mean = sum(model(moving[:, :, t:t+1].expand_as(still)) for t in range(4)) / 4
    assert ((model(moving) - mean).abs().max() < 2e-6) == (mixer != "joint")


def test_a_vit_resizes_its_table_drops_a_class_token_and_has_fresh_gates():
    state, _, _ = recorded("token")
    small, large = small_vit(), small_vit(image_size=96)
    other = small_vit(image_size=96, num_classes=7, pool="mean", kernel="relu", fixation="qkv")
    *_, done = [load_weights(model, state) for model in (small, large, other)]
    assert {"head.bias", "temp_embed", "blocks.2.space.f.q_gate.weight"} < set(done["fresh"])
    table = state["pos_embed"][:, 1:].mT.unflatten(2, (4, 4))
    table = F.interpolate(table, (6, 6), mode="bicubic", antialias=True)  # as in timm
    close(other.pos_embed, table.flatten(2).mT)
    close(small(torch.ones(1, 3, 4, 96, 96)), large(torch.ones(1, 3, 4, 96, 96)))


@pytest.mark.parametrize("keep", (None, 25, 2))  # None: a linear kernel
def test_chunks_with_a_memory_are_causal_attention_over_everything(keep):
    q, k, v = torch.rand(3, 2, 3, 25, 8, dtype=torch.float64)
    state, parts = None, []
    for chunk in zip(*(z.split(CUTS, dim=-2) for z in (q, k, v))):
        step = memory.linear_chunk if keep is None else memory.softmax_chunk
        y, state = step(*chunk, state, keep or 0)  # eps is 0
        parts.append(y)
    start = torch.tensor([0, *CUTS[:-1]]).cumsum(0).repeat_interleave(torch.tensor(CUTS))
    i = torch.arange(25)[:, None]
    a = q @ k.mT if keep is None else (q @ k.mT / 8**0.5).exp()
    a = a * ((i.mT <= i) & (i.mT >= start[:, None] - (keep or 25)))
    close(torch.cat(parts, dim=-2), a @ v / a.sum(-1, keepdim=True), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kernel", ("relu", "softmax"))
def test_a_network_says_of_chunks_what_it_says_of_all_frames_at_once(kernel):
    model = create_model("lvt_toy", mixer="memory+space", kernel=kernel, temp_embed=False,
                         temporal_shift=0, image_size=32).double().eval()
    tokens, sizes = [], set()
    model.norm.register_forward_hook(lambda module, x, y: tokens.append(y))
    clip = torch.randn(2, 3, 25, 32, 32, dtype=torch.float64, requires_grad=True)
    whole = model(clip)
    for y in memory.stream(model, clip.split(CUTS, dim=2)):
        sizes.add(sum(z.numel() for z in model.blocks[0].memory.f.attend.state[-2:]))
    close(torch.cat(tokens[1:], dim=1), tokens[0], rtol=0, atol=1e-10)
    assert len(sizes) == (1 if kernel == "relu" else 5)  # the softmax has not kept 64 yet
    grad, = torch.autograd.grad(y.sum(), clip)  # nothing goes back into an earlier chunk
    assert (grad[:, :, -1] != 0).any() and (grad[:, :, :-1] == 0).all()
    close((model(clip), model(clip)), (whole, whole))  # after a stream a clip has no past


# --------------------------------------------------- VideoMAE, hybrids

@pytest.mark.parametrize("case", ["classify", "pretrain"])
@pytest.mark.parametrize("layout", ["", "hf_"])
def test_videomae_computes_what_was_recorded(case, layout):
    record = golden("videomae", case)
    model = videomae.VideoMAE(11 * (case == "classify"), 8, 32, 2, 8, 48, 3, 4, 0.0)
    args = [seeded(record["x_shape"], record["x_seed"]).float()]
    if case == "pretrain":
        model = videomae.MaskedTubes(model, 32, 2, 2)
        args.append(record["mask"])
    load_weights(model, filled(record[layout + "manifest"]))
    if layout:
        close(model(*args), record["hf_logits"], rtol=0, atol=1e-5)  # with the authors' eps
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = 1e-12
        (model.norm if case == "classify" else model.decoder["norm"]).eps = 1e-5
    y = model(*args)
    close(y, record[layout + "logits"], rtol=0, atol=5e-6)
    if case == "pretrain":
        assert model.loss(*args).item() == pytest.approx(record[layout + "loss"], abs=2e-5)
    if not layout:
        close_gradients(model, y, model.our_names(record["grad_norms"]), rel=1e-4)
        close(model.double()(args[0].double(), *args[1:]), record["logits64"], rtol=0, atol=1e-9)


def test_hidden_tubes_are_the_same_places_in_all_frames():
    mask = videomae.mask_tubes(5, (4, 64), 0.9).view(5, 4, 64)
    assert (mask == mask[:, :1]).all() and (mask.sum(2) == 57).all() and (mask[0] != mask[1]).any()


@pytest.mark.parametrize("name", ["hybrid_toy", "hybrid_conv_toy"])
def test_hybrid_knows_the_order_of_frames_by_its_positions_only(name):
    clip = torch.randn(2, 3, 8, 64, 64)
    for pool in ("cls", "mean"):
        for positions in (True, False):
            model = create_model(name, pool=pool, positions=positions).eval()
            other = model(clip[:, :, [3, 1, 7, 0, 2, 6, 5, 4]])
            assert ((model(clip) - other).abs().max() > 1e-4) == positions
            model.train()(clip).square().sum().backward()
            assert all(p.grad.abs().sum() > 0 for p in model.parameters())


def test_hybrid_takes_an_image_focalnet_and_asks_it_frame_by_frame():
    image = create_model("focal_toy", num_frames=1, temporal=False)
    model = create_model("hybrid_toy")
    load_weights(model, image.state_dict())
    clip = torch.randn(2, 3, 8, 64, 64)
    image.head = nn.Identity()
    close(model.features(clip), torch.stack([image(clip[:, :, t:t+1]) for t in range(8)], dim=1))


# --------------------------------------------------- all networks

# preset and what is changed: parameters, 10^9 multiply-adds of a view (published, or worked out
# from the paper's figure), both for 400 classes if nothing else is said.
PUBLISHED = {
    "c3d image_size=112 num_classes=101": (78_409_573, 38.5),
    "r3d_18 image_size=112": (33_371_472, 40.7),
    "mc3_18 image_size=112": (11_695_440, 43.3),
    "r2plus1d_18 image_size=112": (31_505_325, 40.5),
    "c2d_r50 image_size=256": (24_327_632, 25.5),
    "i3d_r50 image_size=256": (28_043_472, 37.1),
    "slow_r50 image_size=256": (32_454_096, 54.5),
    "slowfast_r50 image_size=256": (34_566_488, 65.7),
    "slowfast_4x16 image_size=256": (34_480_216, 36.1),
    "inception_i3d": (12_697_264, 111.2),
    "s3d": (8_320_048, 143.8),
    "swin_t": (28_158_070, 87.76),
    "swin_s": (49_816_678, 165.68),
    "swin_b": (88_048_984, 281.33),
    "mvit_v1_b": (36_610_672, 70.60),
    "mvit_v2_s": (34_537_744, 64.22),
    "timesformer scheme=space": (86_106_256, 140.5),
    "timesformer scheme=joint": (86_112_400, 179.6),
    "timesformer": (121_566_352, 195.8),
    "timesformer scheme=local+global": (121_566_352, 206.9),
    "timesformer scheme=time+width+height": (157_020_304, 249.4),
    "vivit": (88_954_000, 451.5),
    "vivit_2": (115_062_928, 283.3),
    "vivit_3": (117_319_312, 371.1),
    "vivit_4": (88_952_464, 276.2),
    "videomae_b": (86_534_800, 180.3),
    "resnet_18 num_classes=1000": (11_689_512, None),
}
TOYS = ("r3d_toy", "slowfast_toy", "inception_toy", "s3d_toy", "swin_toy", "mvit_toy",
        "timesformer_toy", "vivit_toy", "vit_toy", "videomae_toy", "hybrid_toy")


@pytest.mark.parametrize("row", PUBLISHED)
def test_networks_have_the_published_sizes(row):
    name, *words = row.split()
    changes = dict(word.split("=") for word in words)
    changes = {key: int(v) if v.isdigit() else v for key, v in changes.items()}
    with torch.device("meta"):
        model = create_model(name, **{"num_classes": 400} | changes)
    parameters, giga = PUBLISHED[row]
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert giga is None or count_macs(model) / 1e9 == pytest.approx(giga, rel=0.01)


@pytest.mark.parametrize("name, published", [
    ("swin_t", (32, 2, "4x3", 0.485, 0.229)), ("mvit_v2_s", (16, 4, "5x1", 0.45, 0.225)),
    ("timesformer", (8, 32, "1x3", 0.45, 0.225)), ("vivit", (32, 2, "4x3", 0.5, 0.5)),
    ("videomae_b", (16, 4, "5x3", 0.485, 0.229))])
def test_networks_evaluate_as_published_without_flags(name, published):
    cfg = train.parse_args(["--model", name, "--data", "k400"])[0]
    assert (cfg.num_frames, cfg.interval, cfg.views, cfg.mean[0], cfg.std[0]) == published
    assert cfg.sampling == "dense" and cfg.image_size == 224


def test_every_recipe_is_settings_that_its_networks_take():
    for name in {row.split()[0] for row in PUBLISHED} | set(TOYS):
        for kind, recipe in train.RECIPES.get(name.split("_")[0], {}).items():
            assert recipe.keys() <= train.SETTINGS.keys()
            if (kind == "toy") == name.endswith("toy"):
                train.parse_args(["--model", name, "--data", "." if kind == "own" else kind])


@pytest.mark.parametrize("name", TOYS)
def test_toys_are_full_citizens(name, tmp_path, monkeypatch):
    """
    Train, stop, resume to the last bit, evaluate, predict; batch items are on their own; a head
    of other classes; another network's weights are one line.
    """
    monkeypatch.setattr(D, "toy_split", lambda split, *args: D.toy_clips(16, *args)[:2])
    words = ["--model", name, "--batch_size", 8, "--epochs", 2, "--device", "cpu"]
    metrics = train.main([*words, "--out", tmp_path / "one"])
    signals = [0, signal.SIGTERM]
    with monkeypatch.context() as patch:
        patch.setattr(train, "asked_to_stop", lambda cfg: signals.pop(0))
        with pytest.raises(SystemExit):
            train.main([*words, "--out", tmp_path / "two"])
    assert train.main(["--resume", "--out", tmp_path / "two"])["loss"] == metrics["loss"]
    one, two = (torch.load(tmp_path / run / "last.pt", weights_only=True)["model"]
                for run in ("one", "two"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    counts = {int(value) for key, value in one.items() if key.endswith("num_batches_tracked")}
    assert counts <= {4}  # the running numbers are those of all 4 steps
    last = ["--init", tmp_path / "one" / "last.pt"]
    assert train.main(["--eval", *last])["top1"] == metrics["top1"]
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    assert len(train.main(["--predict", tmp_path / "red.png", *last])["classes"]) == 5

    model = create_model(name, num_classes=5).eval()
    assert {key.split(".")[0] for key in load_weights(model, one)["left_over"]} == {"head"}
    clip = torch.rand(2, 3, 8, 64, 64)
    close(model(clip)[:1], model(clip[:1]), rtol=1e-3, atol=1e-4)
    assert create_model(name, num_classes=0)(clip).ndim == 2
    other = create_model("lvt_toy" if name != "vit_toy" else "focal_toy").state_dict()
    with pytest.raises(ValueError, match="does not fit this network"):
        load_weights(model, other)
