"""
The claims of this repository, each checked against something else: outputs of the released
networks, torch's or Python's own operators, formulas written out slowly, numbers worked by hand.

    pytest -q              the claims, on a CPU, in a minute
    pytest -q -k focal     those about one thing
    pytest -q -m slow      kills, full disks: some minutes more

assets/golden/*.pt hold outputs of the released networks for weights and inputs that `filled` and
`seeded` make again from nothing but names, shapes and seeds, so no weights are shipped. That
released *files* load was tested on files made in their layout: the real ones are not here.
"""
import colorsys
import json
import math
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import zlib
from types import SimpleNamespace

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in train.py, before torch comes

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

import backbone as B
import data as D
import linear_attn as A
import train
from backbone import MODELS, Branch, count_macs, create_model, load_weights, read_checkpoint
from focal import SpatioTemporalFocalModulation

TRAIN = [sys.executable, os.path.join(D.HERE, "train.py")]
close = torch.testing.assert_close


def golden(name):
    return torch.load(os.path.join(D.HERE, "assets", "golden", name + ".pt"), weights_only=True)


def seeded(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64).float()


def filled(manifest):
    """{key: shape} -> weights: norms 1 +- .2, matrices N(0, 1/fan_in), biases +- .1, gates x 2."""
    state = {}
    for key, shape in manifest.items():
        generator = torch.Generator().manual_seed(zlib.crc32(key.encode()) % 2**31)
        r = torch.randn(tuple(shape), generator=generator, dtype=torch.float64)
        if key.endswith("temp_embed"):
            r = 0.3 * r
        elif key.endswith("bias"):
            r = 0.1 * r
        elif len(shape) == 1:
            r = 1 + 0.2 * r
        else:
            r = r * math.prod(shape[1:])**-0.5 * (2 if "gate" in key else 1)
        state[key] = r.float()
    return state


def gradient_norms(model, logits, probe):
    """{name: norm of the gradient of sum(logits * probe)}"""
    (logits * probe).sum().backward()
    return {key: p.grad.norm().item() for key, p in model.named_parameters()}


def released_norms(model, record):
    return {key: float(norm) for key, norm in model.our_names(record["grad_norms"]).items()}


# --------------------------------------------------- the focal network

FOCAL = {
    "focal_tiny": dict(),
    "focal_tiny_tubelet2": dict(tubelet=2),
    "focal_convembed": dict(conv_embed=True),
    "focal_layerscale_postln": dict(layerscale=True, postln=True),
}


def small_focal(**changes):
    size = dict(num_classes=11, image_size=64, dim=32, depths=(1, 1, 2, 1))
    return create_model("focal_t", **size | changes).eval()


@pytest.mark.parametrize("name", FOCAL)
def test_focal_computes_what_the_released_network_computes(name):
    """Logits in float32, and in float64 to 1e-9 with the gradients, where the fixture has them."""
    record = golden(name)
    model = small_focal(**FOCAL[name])
    load_weights(model, filled(record["manifest"]))
    x = seeded(record["x_shape"], record["x_seed"]).transpose(1, 2)  # theirs is (B, T, 3, H, W)
    close(model(x), record["logits"], rtol=0, atol=2e-5)
    if "logits64" in record:
        logits = model.double()(x.double())
        close(logits, record["logits64"], rtol=0, atol=1e-9)
        probe = seeded(logits.shape, record["grad_probe_seed"]).double()
        norms = gradient_norms(model, logits, probe)
        assert norms == pytest.approx(released_norms(model, record), rel=1e-6)


@pytest.mark.parametrize("tubelet", (1, 2))
def test_inflated_image_network_with_identity_start_is_the_image_network_on_a_still_clip(tubelet):
    record = golden("image_focalnet_tiny")
    model = small_focal(num_classes=1000, tubelet=tubelet)
    done = load_weights(model, {"model": filled(record["manifest"])}, temporal_init="identity")
    assert all("_temporal" in key for key in done["fresh"])
    assert len(done["fresh"]) == 5 * 6  # blocks x tensors
    image = seeded(record["x_shape"], record["x_seed"])
    still = image[:, :, None].expand(-1, -1, 8, -1, -1)
    close(model(still), record["logits"], rtol=0, atol=1e-5)


def test_fresh_inflation_leaves_the_temporal_branch_and_swaps_the_head():
    model = small_focal()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = filled(golden("image_focalnet_tiny")["manifest"])
    done = load_weights(model, state)
    after = model.state_dict()
    assert sorted(done["left_over"]) == ["head.bias", "head.weight"]
    for key in done["fresh"]:
        assert torch.equal(before[key], after[key])
    close(after["layers.0.blocks.0.focal.f.f.weight"],
          state["layers.0.blocks.0.modulation.f.weight"])


@pytest.mark.parametrize("name, parameters, gmacs", (
    ("focal_t", 49_553_272, 63.00), ("focal_s", 88_735_168, 124.33),
    ("focal_b", 157_389_216, 220.65)))
def test_focal_parameters_and_multiply_adds(name, parameters, gmacs):
    """The released parameters; the paper's figure says 63, 124, 149 G: 149 is not its network's."""
    with torch.device("meta"):
        model = create_model(name)
    assert sum(p.numel() for p in model.parameters()) == parameters

    # By hand: stem and head, then stage by stage.
    dim = MODELS[name]["dim"]
    tokens = 8 * 56 * 56
    macs = tokens * 48 * dim + 8 * dim * 400
    for s, depth in enumerate(MODELS[name]["depths"]):
        c = dim * 2**s
        space = c * (2*c + 3) + (9 + 25) * c + c * c  # f, depthwise, h
        time = c * (c + 3) + 8*c*c + c * c  # f_temporal, 3 and 5 frames, h_temporal
        macs += depth * tokens * (space + time + c * c + 8*c*c)  # and proj, MLP
        if s < 3:
            macs += tokens // 4 * 4*c * 2*c  # downsampling
        tokens //= 4
    assert macs == count_macs(model)
    assert round(macs / 1e9, 2) == gmacs


def slow_focal(layer, x):
    """Focal modulation by the formula, with torch's functional convolutions -> q, m_s, m_t."""
    B, T, H, W, C = x.shape
    L = layer.num_gates - 1

    # Space: 2-d depthwise convolutions on the frames.
    q, z, g = F.linear(x, layer.f.weight, layer.f.bias).split([C, C, L + 1], -1)
    total = 0
    for l in range(L):
        frames = z.reshape(B*T, H, W, C).movedim(-1, 1)
        z = F.conv2d(frames, layer.focal_layers[l][0].weight, padding=1 + l, groups=C)
        z = F.gelu(z.movedim(1, -1).reshape(B, T, H, W, C))
        total = total + z * g[..., l, None]
    m_s = layer.h(total + F.gelu(z.mean((2, 3), keepdim=True)) * g[..., L, None])

    # Time: 1-d dense convolutions on the pixels.
    z, g = layer.f_temporal(m_s if layer.design == "sequential" else x).split([C, L + 1], -1)
    total = 0
    for l in range(L):
        pixels = z.permute(0, 2, 3, 4, 1).reshape(-1, C, T)
        weight = layer.focal_layers_temporal[l][0].weight[..., 0]  # (C, C, k)
        z = F.conv1d(pixels, weight, padding=1 + l)
        z = F.gelu(z.reshape(B, H, W, C, T).permute(0, 4, 1, 2, 3))
        total = total + z * g[..., l, None]
    m_t = layer.h_temporal(total + F.gelu(z.mean(1, keepdim=True)) * g[..., L, None])
    return q, m_s, m_t


@pytest.mark.parametrize("design", ("parallel", "sequential"))
@pytest.mark.parametrize("levels", (1, 4))
def test_focal_layer_is_its_formula(design, levels):
    """All fusions; the modulators are what a hook on h and h_temporal sees."""
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 5, 8, dtype=torch.float64)
    joins = dict(multiply=lambda a, b: a * b, add=lambda a, b: a + b,
                 average=lambda a, b: (a + b) / 2)
    for fusion, join in joins.items():
        layer = SpatioTemporalFocalModulation(8, levels, design=design, fusion=fusion).double()
        q, m_s, m_t = slow_focal(layer, x)
        seen = {}
        layer.h.register_forward_hook(lambda module, given, y: seen.update(m_s=y))
        layer.h_temporal.register_forward_hook(lambda module, given, y: seen.update(m_t=y))
        close(layer(x), layer.proj(q * join(m_s, m_t)))
        close(seen, dict(m_s=m_s, m_t=m_t))


def test_the_other_options_of_the_focal_layer_are_their_formulas():
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 5, 8, dtype=torch.float64)
    project = SpatioTemporalFocalModulation(8, fusion="project").double()
    q, m_s, m_t = slow_focal(project, x)
    close(project(x), project.proj(q * project.fuse(torch.cat([m_s, m_t], -1))))
    normed = SpatioTemporalFocalModulation(8, postln_in_modulation=True).double()
    q, m_s, m_t = slow_focal(normed, x)
    close(normed(x), normed.proj(F.layer_norm(q * m_s * m_t, (8,))))
    space = SpatioTemporalFocalModulation(8, temporal=False).double()
    time = SpatioTemporalFocalModulation(8, spatial=False).double()
    both = SpatioTemporalFocalModulation(8).double()
    space.load_state_dict(both.state_dict(), strict=False)
    time.load_state_dict({k: v[:8] if k.startswith("f.") else v for k, v in
                          both.state_dict().items() if not k.startswith(("focal_layers.", "h."))})
    q, m_s, m_t = slow_focal(both, x)
    close(space(x), both.proj(q * m_s))
    close(time(x), both.proj(q * m_t))

    # One branch with 3-d depthwise convolutions, whose last level is the mean of the whole clip.
    joint = SpatioTemporalFocalModulation(8, design="joint3d").double()
    q, z, g = F.linear(x, joint.f.weight, joint.f.bias).split([8, 8, 3], -1)
    total = 0
    for l in range(2):
        z = F.conv3d(z.movedim(-1, 1), joint.focal_layers[l][0].weight, padding=1 + l, groups=8)
        z = F.gelu(z.movedim(1, -1))
        total = total + z * g[..., l, None]
    total = total + F.gelu(z.mean((1, 2, 3), keepdim=True)) * g[..., 2, None]
    close(joint(x), joint.proj(q * joint.h(total)))

    # A normalised modulator is a mean over levels: without the bias of h, L + 1 times as small.
    mean = SpatioTemporalFocalModulation(8, normalize_modulator=True).double()
    mean.load_state_dict(both.state_dict())
    for layer in (mean, both):
        torch.nn.init.zeros_(layer.h.bias)
        torch.nn.init.zeros_(layer.h_temporal.bias)
        torch.nn.init.zeros_(layer.proj.bias)
    close(mean(x) * 3 * 3, both(x))


def test_without_the_global_level_its_gates_are_zero():
    """The gates are the last rows of both projections; far tokens are then out of sight."""
    torch.manual_seed(0)
    x = torch.randn(2, 16, 16, 16, 8, dtype=torch.float64)
    local = SpatioTemporalFocalModulation(8, global_level=False).double()
    whole = SpatioTemporalFocalModulation(8).double()
    state = local.state_dict()
    for key in ("f.weight", "f.bias", "f_temporal.weight", "f_temporal.bias"):
        state[key] = torch.cat([state[key], torch.zeros_like(state[key][:1])])
    whole.load_state_dict(state)
    close(local(x), whole(x))
    for place in ((0, 0, 8), (0, 8, 0), (8, 0, 0)):  # (t, h, w), the reach is 3 each way
        changed = x.clone()
        changed[(slice(None), *place)] += 1
        assert torch.equal(local(changed)[:, 0, 0, 0], local(x)[:, 0, 0, 0])


def test_without_time_the_order_of_frames_does_not_matter_and_with_it_it_does():
    torch.manual_seed(0)
    x = torch.randn(1, 3, 8, 32, 32)
    blind = create_model("focal_toy", temporal=False).eval()
    seeing = create_model("focal_toy").eval()
    close(blind(x), blind(x.flip(2)), rtol=1e-4, atol=1e-5)
    assert (seeing(x) - seeing(x.flip(2))).abs().max() > 1e-3


def test_drop_path_acts_per_frame_keeps_the_mean_and_rests_in_eval():
    """As released: a frame of a clip loses the branch, another frame of the same clip keeps it."""
    torch.manual_seed(0)
    branch = Branch(8, torch.nn.Linear(8, 8), drop_path=0.5, per_frame=True)
    x = torch.randn(64, 8, 2, 2, 8)
    whole = branch.eval()(x) - x
    dropped = branch.train()(x) - x
    kept = dropped.abs().amax((2, 3, 4)) > 0  # (clips, frames)
    assert 0.42 < kept.float().mean() < 0.58
    assert (kept.any(1) & ~kept.all(1)).sum() > 50
    close(dropped[kept], 2 * whole[kept])

    # In the transformer a clip loses it as a whole.
    branch.per_frame = False
    kept = (branch.train()(x) - x).abs().amax((2, 3, 4)) > 0
    assert torch.equal(kept.any(1), kept.all(1)) and 0.3 < kept.all(1).float().mean() < 0.7
    assert not any(part.per_frame for block in create_model("lvt_toy").blocks for part in block)

    # The last block has the whole rate, the first one none.
    model = create_model("focal_t", depths=(1, 2), dim=8, drop_path=0.5, image_size=32)
    parts = [part for stage in model.layers for block in stage["blocks"] for part in block]
    assert [part.drop_path for part in parts] == [0, 0, 0.25, 0.25, 0.5, 0.5]
    assert all(part.per_frame for part in parts)


# --------------------------------------------------- linear attention

LVT = {
    "lvt_default": dict(),
    "lvt_separate": dict(fixation="qkv"),
    "lvt_baseline": dict(fixation="none", temporal_shift=0, spatial_shift=0),
    "lvt_softmax": dict(kernel="softmax", fixation="none"),
    "lvt_joint": dict(mixer="joint", fixation="none", temporal_shift=0, spatial_shift=0),
    "lvt_t4": dict(num_frames=4, image_size=84),
}


def small_lvt(**changes):
    size = dict(num_classes=10, num_frames=8, image_size=56, dim=64, depth=2, heads=2,
                head_hidden=96)
    return create_model("lvt", **size | changes).eval()


@pytest.mark.parametrize("name", LVT)
def test_lvt_computes_what_the_released_network_computes(name):
    record = golden(name)
    model = small_lvt(**LVT[name])
    load_weights(model, {"model_state": filled(record["manifest"])})
    logits = model(seeded(record["x_shape"], record["x_seed"]))
    close(logits, record["logits"], rtol=0, atol=2e-6)
    if "grad_norms" in record:
        norms = gradient_norms(model, logits, record["grad_probe"])
        assert norms == pytest.approx(released_norms(model, record), rel=2e-5)


def test_lvt_parameters_and_multiply_adds():
    """Live parameters (published counts hold an unused layer, 89,262); one view, one gate."""
    with torch.device("meta"):
        for name, parameters in (("lvt", 51_923_374), ("lvt_s", 51_919_278), ("lvt_h", 51_931_566),
                                 ("lvt_hr", 51_923_374)):
            assert sum(p.numel() for p in create_model(name).parameters()) == parameters
        model = create_model("lvt")

    # By hand, for 16 frames. An attention: qkv and proj, gate, both means over tokens, normaliser.
    tokens = 16 * 17 * 17
    c = 512
    d = 64
    attention = 4*c*c + 3*d*c + 2*d*c + c
    mlp = 8*c*c + 9 * 4*c
    macs = tokens * (3 * 16 * 16 * c + 12 * (2 * attention + mlp)) + c * 768 + 768 * 174
    assert count_macs(model) == macs
    assert round(macs / 1e9, 1) == 253.8

    # The paper's counter has LayerNorm, 5 an element, and no normalisers.
    layer_norm = tokens * 5 * c * (1 + 12 * 3 + 1)
    assert round((macs - tokens * 24 * c + layer_norm) / 1e9, 1) == 254.2


def test_eight_long_temporal_embedding_is_repeated_along_time():
    model = small_lvt(num_frames=16)
    state = filled(golden("lvt_default")["manifest"])
    load_weights(model, state)
    assert torch.equal(model.temp_embed[:, 3], state["base_model.temp_embed"][:, 3])
    assert torch.equal(model.temp_embed[:, 11], state["base_model.temp_embed"][:, 3])
    with pytest.raises(ValueError, match="temp_embed is"):
        load_weights(small_lvt(num_frames=12), state)


def qkv64(N, d=8, heads=2):
    torch.manual_seed(N)
    return torch.randn(3, 1, heads, N, d, dtype=torch.float64)


def attend(kernel, q, k, v):
    f, act = A.KERNELS[kernel]
    return act(f(q), f(k), v)


@pytest.mark.parametrize("N", (1, 2, 17))
def test_linear_attention_is_its_quadratic_form(N):
    """(f f^T) v = f (f^T v), in values and gradients: the N x N matrix that is never built."""
    q, k, v = qkv64(N)
    s = 8**-0.5
    offsets = s * (F.relu(q).sum(-1)[..., None] + F.relu(k).sum(-1)[..., None, :]) + 1  # d s^2 = 1
    slow = dict(
        relu=lambda q, k: F.relu(q) @ F.relu(k).mT + offsets,
        relu_paper=lambda q, k: F.relu(q) @ F.relu(k).mT,
        elu=lambda q, k: (F.elu(q) + 1) @ (F.elu(k) + 1).mT,
        sigmoid=lambda q, k: q.sigmoid() @ k.sigmoid().mT,
        identity=lambda q, k: q @ k.mT,
        softmax=lambda q, k: (q @ k.mT * s).exp(),
    )
    assert list(slow) == list(A.KERNELS)[:6]  # the core's
    for kernel, weights in slow.items():
        a = weights(q, k)
        eps = 0 if kernel == "softmax" else 1e-6
        close(attend(kernel, q, k, v), a @ v / (a.sum(-1, keepdim=True) + eps), rtol=1e-9,
              atol=1e-9)

    inputs = [t.clone().requires_grad_() for t in (q, k, v)]
    a = (F.elu(inputs[0]) + 1) @ (F.elu(inputs[1]) + 1).mT
    y = a @ inputs[2] / (a.sum(-1, keepdim=True) + 1e-6)
    probe = torch.randn_like(v)
    gradients = [torch.autograd.grad((out * probe).sum(), inputs)
                 for out in (attend("elu", *inputs), y)]
    close(*gradients, rtol=1e-9, atol=1e-9)


def test_what_the_header_of_linear_attn_teaches():
    """One number for a query cancels, one per feature does not; rank is at most d; lengths."""
    q, k, v = qkv64(16)
    fq = F.elu(q) + 1
    fk = F.elu(k) + 1
    y = A.linear(fq, fk, v)
    scalar = torch.rand(1, 2, 16, 1, dtype=torch.float64) + 0.5
    per_feature = torch.rand(1, 2, 16, 8, dtype=torch.float64) + 0.5
    close(A.linear(scalar * fq, fk, v), y, rtol=1e-6, atol=1e-6)
    assert (A.linear(fq, scalar * fk, v) - y).abs().max() > 1e-3  # of keys it does not cancel
    assert (A.linear(per_feature * fq, fk, v) - y).abs().max() > 1e-3
    eye = torch.eye(16, dtype=torch.float64).expand(1, 2, 16, 16)  # y for v = 1: the weights
    assert torch.linalg.matrix_rank(A.linear(fq, fk, eye)).tolist() == [[8, 8]]
    assert torch.linalg.matrix_rank(attend("softmax", q, k, eye)).tolist() == [[16, 16]]
    close(attend("relu_paper", 2 * q, k, v), attend("relu_paper", q, k, v), rtol=1e-5, atol=1e-5)
    assert (attend("relu", 2 * q, k, v) - attend("relu", q, k, v)).abs().max() > 1e-3


def test_linear_attention_counts_operations_in_proportion_to_tokens():
    flops = {}
    for kernel in ("relu", "softmax"):
        for N in (1000, 2000):
            q, k, v = torch.empty(3, 1, 2, N, 8, device="meta")
            with FlopCounterMode(display=False) as counter:
                attend(kernel, q, k, v)
            flops[kernel, N] = counter.get_total_flops()
        growth = flops[kernel, 2000] / flops[kernel, 1000]
        assert growth == pytest.approx(4 if kernel == "softmax" else 2, rel=0.01)
    # f(k)^T v, f(q) kv, f(q) . mean; two heads, and a multiply-add counts as two
    assert flops["relu", 1000] == 2 * 2 * 1000 * (2 * 8 * 8 + 8)


@pytest.mark.parametrize("kernel", A.KERNELS)
@pytest.mark.parametrize("N, dtype, scale", (
    (1, torch.float32, 1), (70, torch.float32, 0), (70, torch.bfloat16, 1e4),
    (70, torch.float16, 0), (3136, torch.float16, 1), (50_000, torch.bfloat16, 1)))
def test_attention_stays_finite_for_zero_huge_and_half_precision_inputs(kernel, N, dtype, scale):
    """Values and gradients; fp16 at N = 3136, where a sum would be infinite, is right too."""
    if kernel == "identity" and scale or kernel == "softmax" and N > 4000:
        return  # signed weights: sums near zero are part of it; N^2
    torch.manual_seed(0)
    x = (torch.randn(3, 1, 1, N, 64) * scale).to(dtype).requires_grad_()
    y = attend(kernel, *x)
    y.float().square().sum().backward()
    assert y.dtype == dtype and y.isfinite().all() and x.grad.isfinite().all()
    if N > 3000:
        exact = attend(kernel, *x.double())
        assert (y - exact).norm() / exact.norm() < 0.01


def meet(word, T, H, W):
    """bool (N, N): which tokens meet, written down from the definition of a word."""
    places = torch.stack(torch.meshgrid(torch.arange(T), torch.arange(H), torch.arange(W),
                                        indexing="ij")).flatten(1)  # (3, N)
    same = places[:, :, None] == places[:, None, :]
    return dict(time=same[1] & same[2], space=same[0], joint=same[0] | True)[word]


@pytest.mark.parametrize("kernel", ("softmax", "relu"))
@pytest.mark.parametrize("word", ("time", "space", "joint"))
def test_attention_is_all_pairs_under_a_mask(word, kernel):
    """Forward and gradients, float64: the weights of pairs that do not meet are zero."""
    torch.manual_seed(0)
    layer = A.Attention(8, word, (4, 3, 5), 2, kernel, "none", temporal_shift=0,
                        spatial_shift=0).double()
    x = torch.randn(2, 4, 3, 5, 8, dtype=torch.float64, requires_grad=True)
    q, k, v = (part.reshape(2, 60, 2, 4).transpose(1, 2) for part in layer.qkv(x).chunk(3, -1))
    a = (q @ k.mT / 2).exp() if kernel == "softmax" else (F.relu(q) + .5) @ (F.relu(k) + .5).mT
    a = a * meet(word, 4, 3, 5)
    y = a / (a.sum(-1, keepdim=True) + (1e-6 if kernel == "relu" else 0)) @ v
    expected = layer.proj(y.transpose(1, 2).reshape(2, 4, 3, 5, 8))
    close(layer(x), expected, rtol=1e-10, atol=1e-10)
    probe = torch.randn_like(x)
    gradients = [torch.autograd.grad((out * probe).sum(), x, retain_graph=True)[0]
                 for out in (layer(x), expected)]
    close(*gradients, rtol=1e-10, atol=1e-10)


def test_shifts_move_what_the_released_code_moves():
    """Temporal: ahead, back, own; zero outside. Spatial: outside, straight zero, diagonal own."""
    torch.manual_seed(0)
    x = torch.randn(1, 4, 3, 5, 96)
    y = A.temporal_shift(x, 4)
    zero = torch.zeros(3, 5, 24)
    for t in range(4):
        close(y[0, t, ..., :24], x[0, t + 1, ..., :24] if t < 3 else zero)
        close(y[0, t, ..., 24:48], x[0, t - 1, ..., 24:48] if t > 0 else zero)
        close(y[0, t, ..., 48:], x[0, t, ..., 48:])

    # The released order of neighbours, (down, right).
    near = [(1, 0), (-1, 0), (0, 1), (0, -1), (-1, -1), (1, 1), (-1, 1), (1, -1)]
    knight = [(-2, -1), (-2, 1), (-1, -2), (1, -2), (2, -1), (2, 1), (-1, 2), (1, 2)]
    order = {1: near, 2: [(2*a, 2*b) for a, b in near] + knight + near,
             4: [(4*a, 4*b) for a, b in near]}
    for size, f in ((1, 6), (2, 2), (4, 1)):  # C // 16, C // 48, C // 160
        x = torch.randn(1, 2, 6, 7, 160 if size == 4 else 96)
        y = A.spatial_shift(x, size)
        for i, (down, right) in enumerate(order[size]):
            for r, c in np.ndindex(6, 7):
                expected = x[:, :, r, c] if i >= 4 else torch.zeros_like(x[:, :, r, c])
                if 0 <= r + down < 6 and 0 <= c + right < 7:
                    expected = x[:, :, r + down, c + right]
                close(y[:, :, r, c, i*f:(i+1)*f], expected[..., i*f:(i+1)*f])
        close(y[..., len(order[size])*f:], x[..., len(order[size])*f:])


def test_shifts_are_crossed_and_space_with_the_temporal_one_sees_three_frames():
    for word, shifts in (("time", (0, 1)), ("space", (4, 0)), ("joint", (4, 1))):
        layer = A.Attention(16, word, (6, 2, 2), 2)
        assert (layer.temporal_shift, layer.spatial_shift) == shifts
    torch.manual_seed(0)
    layer = A.Attention(16, "space", (6, 2, 2), 2, "softmax", "none")
    x = torch.randn(1, 6, 2, 2, 16, requires_grad=True)
    layer(x)[0, 3].sum().backward()
    seen = x.grad.abs().amax((0, 2, 3, 4)) > 0
    assert seen.tolist() == [False, False, True, True, True, False]


@pytest.mark.parametrize("fixation", A.FIXATIONS)
@pytest.mark.parametrize("by", ("concat", "add", "multiply"))
def test_feature_fixation_is_equations_4_and_5(fixation, by):
    if fixation in ("none", "separate") and by != "concat":
        return  # joins nothing
    torch.manual_seed(0)
    q, k, v = F.relu(torch.randn(3, 1, 2, 2, 2, 2, 4)) + 0.5  # (B, T, H, W, heads, d) each
    layer = A.Attention(8, "joint", (2, 2, 2), 2, fixation=fixation, fixation_by=by,
                        temporal_shift=4, spatial_shift=0)
    new_q, new_k = layer.gate(q, k, v)
    seen = [q, k, v] if "v" in fixation else [q, k]
    z = dict(concat=torch.cat(seen, -1), add=torch.stack(seen).sum(0),
             multiply=torch.stack(seen).prod(0))[by]
    for new, old, name in ((new_q, q, "q_gate"), (new_k, k, "k_gate")):
        if fixation == "none":
            assert new is old
            continue
        gate = layer.pgate if fixation.endswith("shared") else getattr(layer, name)
        told = old if fixation == "separate" else z
        close(new, old / (1 + torch.exp(-(told @ gate.weight.T + gate.bias))))


def test_fixation_before_or_after_the_shifts_matters():
    torch.manual_seed(0)
    first = A.Attention(16, "joint", (3, 3, 3), 2)
    last = A.Attention(16, "joint", (3, 3, 3), 2, shift_first=False)
    last.load_state_dict(first.state_dict())
    x = torch.randn(1, 3, 3, 3, 16)
    assert (first(x) - last(x)).abs().max() > 1e-3


# --------------------------------------------------- networks: options, forks, what cannot be

OPTIONS = [("focal_toy", options) for options in (
    dict(temporal=False), dict(spatial=False), dict(design="sequential"), dict(design="joint3d"),
    dict(fusion="project"), dict(levels=(1, 3)), dict(window=(5, 3)), dict(tubelet=2),
    dict(postln=True, layerscale=True), dict(global_level=False), dict(mixer="focal+joint"),
    dict(mixer="time+space", layerscale=True, heads=(2, 4)), dict(drop_path=0.5))]
OPTIONS += [("lvt_toy", options) for options in (
    dict(mixer="focal"), dict(mixer="space+time"), dict(mixer="space"), dict(mixer="joint"),
    dict(fixation="separate"), dict(fixation_by="add"), dict(temp_embed=False),
    dict(spatial_shift=0, temporal_shift=8), dict(patch=8, stride=8))]
OPTIONS += [("lvt_toy", dict(kernel=kernel)) for kernel in A.KERNELS]


@pytest.mark.parametrize("name, options", OPTIONS, ids=lambda value: str(value))
def test_every_option_runs_trains_and_keeps_batch_items_apart(name, options):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 32, 32)
    model = create_model(name, num_classes=5, num_frames=4, image_size=32, **options).eval()
    y = model(x)
    assert y.shape == (2, 5)
    close(y, model(x), rtol=0, atol=0)  # eval() has no dice
    if options.get("kernel") != "identity":  # its sums may be near zero
        close(model(x[:1]), y[:1], rtol=1e-3, atol=1e-4)
        assert y.isfinite().all()
    y.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_space_then_time_is_time_then_space_with_the_mixers_swapped():
    """The released weights find their places in either order."""
    state = filled(golden("lvt_default")["manifest"])
    one = small_lvt(mixer="time+space")
    two = small_lvt(mixer="space+time")
    load_weights(one, state)
    load_weights(two, state)
    close(one.state_dict(), two.state_dict())
    order = [[name for name, _ in block.named_children()] for block in two.blocks]
    assert order == [["space", "time", "mlp"]] * 2
    x = torch.randn(1, 3, 8, 56, 56)
    assert (one(x) - two(x)).abs().max() > 1e-3


def test_forks_are_one_line_in_a_table(videos, tmp_path, monkeypatch):
    """A linear kernel, a kernel with weights of its own, a mixer; a network trains, evaluates."""
    class Few(torch.nn.Module):
        def __init__(self, d, N):
            super().__init__()
            self.E = torch.nn.Parameter(torch.randn(2, N))
            assert d == 32

        def forward(self, q, k, v):
            return F.scaled_dot_product_attention(q, self.E @ k, self.E @ v)

    class Net(torch.nn.Module):
        def __init__(self, num_classes=3, num_frames=2, image_size=16, width=7):
            super().__init__()
            self.num_frames = num_frames
            self.image_size = image_size
            self.stem = torch.nn.Linear(3, width)
            self.head = torch.nn.Linear(width, num_classes)

        def forward(self, clip):
            return self.head(self.stem(clip.mean((2, 3, 4))))

    monkeypatch.setitem(A.KERNELS, "few", (lambda x: x, Few))
    monkeypatch.setitem(A.KERNELS, "square", (lambda x: F.relu(x)**2, A.linear))
    monkeypatch.setitem(B.MIXERS, "mine", lambda dim, size, options: torch.nn.Linear(dim, dim))
    monkeypatch.setitem(MODELS, "net", dict(trunk=Net, width=5))
    blocks = create_model("lvt_toy", kernel="few").blocks
    assert [part.f.attend.E.shape[1] for part in list(blocks[0])[:2]] == [8, 25]  # frames, pixels
    assert create_model("lvt_toy", kernel="square")(torch.randn(1, 3, 8, 64, 64)).shape == (1, 8)
    mine = create_model("focal_toy", mixer="mine+focal")
    assert isinstance(mine.layers[1]["blocks"][1].mine.f, torch.nn.Linear)
    assert create_model("net").head.in_features == 5
    assert create_model("net", width=6).head.in_features == 6
    words = small(videos, tmp_path, "--model", "net", "--width", 6, "--batch_size", 4, *PLAIN)
    top1 = command(*words, "--steps", 2)["top1"]
    assert command(*words, "--eval", "--init", tmp_path / "last.pt")["top1"] == top1


@pytest.mark.parametrize("name, options, message", (
    ("lvt_toy", dict(mixer="sideways"), "there is no 'sideways' here, but focal, time"),
    ("lvt_toy", dict(mixer="time+time"), "each word once"),
    ("lvt_toy", dict(kernel="nonsense"), "kernel 'nonsense': use one of relu"),
    ("lvt_toy", dict(heads=5), "heads=5 does not divide"),
    ("lvt_toy", dict(fixation="separate", fixation_by="add"), "joins nothing"),
    ("lvt_toy", dict(spatial_shift=2, dim=32), "spatial_shift=2 needs 48 channels"),
    ("lvt_toy", dict(spatial_shift=3), "spatial_shift 3: use one of 0, 1, 2, 4"),
    ("lvt_toy", dict(levels=2), "lvt_toy has no argument levels with mixer='time.space'"),
    ("focal_toy", dict(kernel="softmax"), "focal_toy has no argument kernel with mixer='focal'"),
    ("focal_toy", dict(levels=(1, 2, 3)), "levels=.*one number, or one for each of 2 stages"),
    ("focal_toy", dict(window=4), "window=4: a kernel must be odd"),
    ("focal_toy", dict(temporal=False, spatial=False), "nothing is left to modulate with"),
    ("focal_toy", dict(design="joint3d", fusion="add"), "needs two modulators"),
    ("focal_toy", dict(tubelet=2, conv_embed=True, patch=4), "conv_embed=True with patch=4"),
    ("focal_toy", dict(tubelet=2, num_frames=7), "7 frames: this network takes multiples of 2"),
    ("focal_toy", dict(image_size=50), "50 x 50 pixels: .*multiples of 16.*nearest is 48 x 48"),
    ("nonsense", dict(), "no model 'nonsense' here; there are focal_t")))
def test_networks_that_cannot_be_raise_with_the_value_and_the_rule(name, options, message):
    with pytest.raises(ValueError, match=message):
        create_model(name, **options)


def test_other_sizes_run_and_clips_that_do_not_fit_raise():
    assert small_focal()(torch.randn(1, 3, 3, 32, 96)).shape == (1, 11)
    with pytest.raises(ValueError, match="100 x 64 pixels.*multiples of 32.*nearest is 96 x 64"):
        small_focal()(torch.randn(1, 3, 8, 100, 64))
    with pytest.raises(ValueError, match="4 frames: the temporal embedding has 8"):
        small_lvt()(torch.randn(1, 3, 4, 56, 56))
    dropout = create_model("lvt_toy", num_classes=0, dropout=0.5)
    x = torch.randn(1, 3, 8, 64, 64)
    assert dropout.eval()(x).shape == (1, 64) and torch.equal(dropout(x), dropout(x))
    assert not torch.equal(dropout.train()(x), dropout(x))


def test_a_network_starts_so_that_it_learns_and_as_released_where_asked():
    torch.manual_seed(0)
    for start, std, bias in (("scratch", 32**-0.5, 1), ("released", 0.02, None)):
        model = create_model("focal_toy", weight_init=start)
        layer = model.layers[0]["blocks"][0].focal.f
        assert layer.f.weight.std().item() == pytest.approx(std, rel=0.1)
        assert (layer.h.bias == 1).all() == (bias == 1) and (layer.f.bias == 0).all()
    conv = create_model("lvt_toy").patch_embed.proj
    assert conv.weight.std().item() == pytest.approx((2 / (16 * 16 * 64))**0.5, rel=0.05)


# --------------------------------------------------- checkpoints

def test_released_checkpoint_with_a_pickled_yacs_node_is_read_as_data(tmp_path):
    """A file as released code writes it, made where `yacs.config` exists, read where it is not."""
    path = tmp_path / "ckpt.pth"
    script = f"""
import sys, types, torch
yacs, config = types.ModuleType('yacs'), types.ModuleType('yacs.config')
class CfgNode(dict): pass
CfgNode.__module__, config.CfgNode = 'yacs.config', CfgNode
sys.modules.update({{'yacs': yacs, 'yacs.config': config}})
node = CfgNode(DATA=CfgNode(NUM_FRAMES=8)); node.__dict__['__immutable__'] = True
torch.save({{'model': {{'w': torch.ones(2)}}, 'config': node, 'epoch': 119}}, r'{path}')
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    assert torch.equal(read_checkpoint(path)["model"]["w"], torch.ones(2))


class Evil:
    def __reduce__(self):
        return os.system, ("echo this must not run",)


def test_checkpoints_that_are_damaged_or_hold_more_than_weights_are_refused(tmp_path, capfd):
    path = tmp_path / "a.pt"
    for content, message in (({"model": Evil()}, "holds a (posix|nt).system, and only tensors"),
                             ({"model": {}, "best": np.float64(3)}, "holds a numpy.*scalar.*save"),
                             ({"model": {}, "args": SimpleNamespace(lr=1)}, "SimpleNamespace")):
        torch.save(content, path)
        with pytest.raises(ValueError, match=message):
            read_checkpoint(path)
    assert "must not run" not in capfd.readouterr().out

    # One bit of one weight; half of a file; nothing at all; another kind of file.
    torch.save({"model": {"w": torch.arange(1000.)}}, path)
    blob = bytearray(path.read_bytes())
    blob[len(blob) // 2] ^= 1
    for content, message in ((blob, "checksum"), (blob[:2000], "cannot be read"),
                             (b"", "cannot be read.*empty|EOF|Ran out"), (b"{}", "cannot be read")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_checkpoint(path)
    with pytest.raises(FileNotFoundError, match="nowhere.pt: no such checkpoint"):
        read_checkpoint("nowhere.pt")


@pytest.mark.parametrize("name, prefix", (("model", "module."), ("state_dict", "_orig_mod."),
                                          ("model_state_dict", "module._orig_mod."), (None, "")))
def test_weights_of_other_programs_load_without_their_prefixes(name, prefix):
    state = filled(golden("focal_tiny")["manifest"])
    prefixed = {prefix + key: value for key, value in state.items()}
    model = small_focal()
    load_weights(model, {name: prefixed, "epoch": 3} if name else prefixed)
    copy = small_focal()
    load_weights(copy, {"model": model.state_dict()})  # ours pass as they are
    close(copy.state_dict(), model.state_dict())
    close(copy.norm.weight, state["norm.weight"])


def test_weights_that_do_not_fit_name_what_is_wrong():
    model = small_focal()
    state = filled(golden("focal_tiny")["manifest"])
    lost = {key: value for key, value in state.items()
            if key != "layers.3.blocks.0.modulation.h.bias"}
    with pytest.raises(ValueError, match="missing: layers.3.blocks.0.focal.f.h.bias"):
        load_weights(model, lost)
    one = {key: value for key, value in state.items() if "h_temporal.bias" not in key}
    with pytest.raises(ValueError, match="(?s)5 problems.*missing: .*h_temporal.bias"):
        load_weights(model, one)  # all of time may lack, a part of it may not
    with pytest.raises(ValueError, match="unexpected: extra"):
        load_weights(model, state | {"extra": torch.ones(1)})
    with pytest.raises(ValueError, match=r"patch_embed.proj.weight is \(32, 3, 4, 4\) there "
                                         r"and \(64, 3, 4, 4\)"):
        load_weights(small_focal(dim=64), state)
    with pytest.raises(ValueError, match="is no image network"):
        load_weights(model, state, temporal_init="identity")
    with pytest.raises(ValueError, match="not finite: norm.weight"):
        load_weights(model, state | {"norm.weight": torch.full((256,), math.nan)})


# --------------------------------------------------- sampling, cropping, colours

def settings(**changes):
    """The settings of a Video-FocalNet on Kinetics as the command line makes them, but small."""
    cfg, _ = train.parse_args(["--data", "k400", "--model", "focal_toy"])
    train.where_to_run(cfg)
    size = dict(num_frames=4, image_size=32, device="cpu", precision="float32", workers=0)
    return SimpleNamespace(**vars(cfg) | size | changes)


def test_frame_numbers_are_those_worked_by_hand():
    """Of a video of n frames; a = (n - interval + 1) / T, or n / T."""
    for indices, by_hand in (
            # a = 297/8: floor(i a + a/2)
            (D.segments(300, 8, 4), [18, 55, 92, 129, 167, 204, 241, 278]),
            (D.segments(3, 8, 4), [0] * 8),
            # too short for segments: around(i 2/8), half to even
            (D.segments(5, 8, 4, rng=1), [0, 0, 0, 1, 1, 1, 2, 2]),
            (D.segments(8, 8, 4, rng=1), [0, 1, 1, 2, 2, 3, 4, 4]),
            # a = 37.5: clip v takes floor(37.5 i + (v + .5) 37.5/4)
            (D.segments(300, 8, 4, 4)[:8], [4, 42, 79, 117, 154, 192, 229, 267]),
            (D.segments(300, 8, 4, 4)[24:], [32, 70, 107, 145, 182, 220, 257, 295]),
            (D.segments(1, 8, 4, 4), [0] * 32),
            # segments of 49/8, rounded half to even, [0 6 12 18 24 31 37 43 49]: middles, starts
            (D.tsn(50, 8, 1), [3, 9, 15, 21, 27, 34, 40, 46]),
            (D.tsn(50, 8, 1, 2), [3, 9, 15, 21, 27, 34, 40, 46, 0, 6, 12, 18, 24, 31, 37, 43]),
            # 31/7 apart; at the start, and in the middle, 134 to 165
            (D.dense(300, 8, 4, 2)[:8], [0, 4, 8, 13, 17, 22, 26, 31]),
            (D.dense(300, 8, 4), [134, 138, 142, 147, 151, 156, 160, 165]),
            # the last one is over at 19
            (D.dense(20, 8, 4), [0, 4, 8, 13, 17, 19, 19, 19]),
            # four test clips of windows of 32 start at (556 - 32) v/4
            (D.dense(556, 8, 4, 4)[::8], [0, 131, 262, 393])):
        assert list(indices) == by_hand


def test_random_frame_numbers_stay_in_their_segments():
    def drawn(sample, n, interval, k):
        return np.stack([sample(n, 8, interval, rng=np.random.default_rng(i)) for i in range(k)])
    some = drawn(D.segments, 300, 4, 500)
    assert some.min(0).tolist() == [37 * i for i in range(8)]  # (300 - 3) // 8 = 37
    assert some.max(0).tolist() == [37 * i + 36 for i in range(8)]
    ten = drawn(D.segments, 10, 4, 1)[0]  # too short for segments
    assert (np.diff(ten) >= 0).all() and ten.max() < 7
    some = drawn(D.tsn, 50, 1, 1000)  # these share their ends
    assert some.min(0).tolist() == [0, 6, 12, 18, 24, 31, 37, 43]
    assert some.max(0).tolist() == [6, 12, 18, 24, 31, 37, 43, 49]
    some = drawn(D.dense, 300, 4, 1000)
    assert 0 <= some.min() < 5 and 295 < some.max() <= 299


def test_crops_are_those_worked_by_hand():
    assert D.crop_offsets(256, 341, 224, 1) == [(16, 58)]
    assert D.crop_offsets(224, 299, 224, 3) == [(0, 0), (0, 37), (0, 74)]  # never sees column 298
    assert D.crop_offsets(400, 224, 224, 3) == [(0, 0), (88, 0), (176, 0)]
    assert D.centre_box(40, 57, None, None) == (0, 8, 40, 40)

    # Random resized crop: inside, of the right shape, of all sizes.
    shares = []
    for k in range(400):
        top, left, h, w = D.random_box(256, 340, (0.08, 1.0), np.random.default_rng(k))
        assert 0 <= top <= 256 - h and 0 <= left <= 340 - w and 0.74 < w / h < 1.35
        shares.append(h * w / (256 * 340))
    assert 0.075 < min(shares) < 0.1 and 0.7 < max(shares) <= 1
    none_fits = D.random_box(10, 1000, (0.9, 1.0), np.random.default_rng(0))
    assert none_fits == (0, 495, 10, 10)  # the centre

    # TSN's: 4 sides at most one step apart, at 13 places, here in steps of 16 and 43.
    boxes = {D.multi_scale_box(256, 340, None, np.random.default_rng(k)) for k in range(5000)}
    sides = (256, 224, 192, 168)
    assert {box[2:] for box in boxes} == {
        (sides[i], sides[j]) for i in range(4) for j in range(4) if abs(i - j) < 2}
    assert {box[:2] for box in boxes if box[2:] == (192, 168)} == {
        (0, 0), (0, 172), (64, 0), (64, 172), (32, 86), (32, 0), (32, 172), (64, 86), (0, 86),
        (16, 43), (16, 129), (48, 43), (48, 129)}

    # The transformer's: 224 of a short side of 256 to 320.
    drawn = [D.short_side_box(256, 340, (256/224, 320/224), np.random.default_rng(k))[2]
             for k in range(500)]
    assert min(drawn) in (179, 180, 181) and max(drawn) in (223, 224)


def test_colour_jitter_is_what_python_and_torch_compute_pixel_by_pixel():
    torch.manual_seed(0)
    x = torch.rand(2, 3, 2, 3, 4, dtype=torch.float64)
    x[0, :, 0, 0, 0] = 0.5  # a grey pixel has no hue
    weights = torch.tensor([.299, .587, .114], dtype=torch.float64).view(1, 3, 1, 1, 1)
    luma = (x * weights).sum(1, keepdim=True)

    def jittered(brightness=1., contrast=1., saturation=1., hue=0.):
        row = torch.tensor([brightness, contrast, saturation, hue], dtype=torch.float64)
        return D.colour_jitter(x, row.expand(2, 2, 4))
    close(jittered(), x)
    close(jittered(brightness=1.3), (1.3 * x).clamp(0, 1))
    close(jittered(contrast=.7), .7 * x + .3 * luma.mean((-2, -1), keepdim=True))
    close(jittered(saturation=.8), .8 * x + .2 * luma)

    # Contrast comes before saturation, which shows where they clamp.
    first = jittered(contrast=3.)
    grey = (first * weights).sum(1, keepdim=True)
    close(jittered(contrast=3., saturation=2.), (2 * first - grey).clamp(0, 1))
    assert (first == 1).any() and (2 * first - grey > 1).any()
    turned = jittered(hue=0.1)
    for b, t, i, j in np.ndindex(2, 2, 3, 4):
        h, s, v = colorsys.rgb_to_hsv(*x[b, :, t, i, j].tolist())
        rgb = colorsys.hsv_to_rgb((h + 0.1) % 1, s, v)
        close(turned[b, :, t, i, j], torch.tensor(rgb, dtype=torch.float64))


def test_preparing_a_batch_flips_greys_normalises_erases_and_takes_differences():
    clip = torch.randint(0, 256, (2, 2, 8, 8, 3), dtype=torch.uint8)  # (B, T, H, W, 3)
    batch = dict(clip=clip, flip=torch.tensor([True, False]), grey=torch.tensor([False, True]),
                 colour=torch.tensor([1., 1., 1., 0.]).expand(2, 2, 4))
    x = D.prepare(batch, settings(), "cpu")
    mean = np.array([123.675, 116.28, 103.53])
    std = np.array([58.395, 57.12, 57.375])
    flipped = (clip[0].numpy()[:, :, ::-1].astype(float) - mean) / std
    close(x[0], torch.tensor(flipped.transpose(3, 0, 1, 2).copy(), dtype=torch.float32))
    grey = clip[1].numpy() @ np.array([.299, .587, .114])
    close(x[1, 1], torch.tensor((grey - mean[1]) / std[1], dtype=torch.float32))

    # A box, 0 in all frames; differences of neighbouring frames.
    box = dict(clip=clip, erase=torch.tensor([[2, 1, 3, 4], [0, 0, 0, 0]]))
    x = D.prepare(box, settings(erase=0.5), "cpu")
    whole = D.prepare(dict(clip=clip), settings(), "cpu")
    assert (x[0, :, :, 2:5, 1:5] == 0).all() and torch.equal(x[1], whole[1])
    x[0, :, :, 2:5, 1:5] = whole[0, :, :, 2:5, 1:5]
    assert torch.equal(x, whole)
    d = D.prepare(dict(clip=clip), settings(input="diff"), "cpu")
    assert (d[:, :, 0] == 0).all()
    close(d[:, :, 1], 2 * (whole[:, :, 1] - whole[:, :, 0]))


def test_random_erasing_and_autoaugment_do_what_they_are_asked_for():
    boxes = np.array([D.erase_box(224, 160, np.random.default_rng(k), 0.5) for k in range(2000)])
    erased = boxes[boxes[:, 2] > 0]
    shares = erased[:, 2] * erased[:, 3] / 224 / 160
    aspects = erased[:, 2] / erased[:, 3]
    assert 0.45 < len(erased) / 2000 < 0.55
    assert 0.018 < shares.min() < 0.04 and 0.3 < shares.max() < 0.34
    assert 0.28 < aspects.min() < 0.4 and 2.7 < aspects.max() < 3.5

    # All frames alike, and every pair runs; some are Pillow's operators as they are.
    still = torch.randint(0, 256, (1, 40, 56, 3), dtype=torch.uint8).expand(3, -1, -1, -1)
    changed = 0
    for seed in range(60):
        out = D.auto_augment(still, np.random.default_rng(seed))
        assert torch.equal(out, out[:1].expand_as(out)) and out.dtype == torch.uint8
        changed += not torch.equal(out, still)
    assert 40 < changed < 60
    image = Image.fromarray(still[0].numpy())
    for pair in D.AUTO_AUGMENT:
        for name, _, level in pair:
            assert D.OPERATIONS[name](image, level / 10).size == (56, 40)
    pixels = np.asarray(image)
    assert (np.asarray(D.OPERATIONS["Posterize"](image, -0.8)) == pixels & 0b11100000).all()
    assert (np.asarray(D.OPERATIONS["Solarize"](image, -0.5)) ==
            np.where(pixels < 128, pixels, 255 - pixels)).all()
    moved = np.asarray(D.OPERATIONS["TranslateYRel"](image, 1))  # 45 % of 40: 18 rows up
    assert (moved[:22] == pixels[18:]).all() and (moved[23:] == 128).all()


def test_mixing_keeps_the_promise_of_its_targets():
    """A clip of constant value v_i: after mixing its mean is the mixture that the targets state."""
    labels = torch.arange(6)
    x = labels.float().view(6, 1, 1, 1, 1).expand(6, 3, 4, 32, 48).clone()
    plain, targets = D.mix(x, labels, 6, np.random.default_rng(0), smoothing=0.1)
    assert plain is x
    close(targets[2], torch.tensor([.1 / 6] * 2 + [.9 + .1 / 6] + [.1 / 6] * 3))
    boxes = 0
    for k in range(40):
        mixed, targets = D.mix(x, labels, 6, np.random.default_rng(k), mixup=0.8, cutmix=1.0)
        close(targets.sum(1), torch.ones(6))
        close(mixed.mean((1, 2, 3, 4)), targets @ labels.float(), atol=2e-5, rtol=1e-5)
        close(mixed[:, :1, :1].expand_as(mixed), mixed)  # the same in channels and frames
        boxes += len(mixed[5].unique()) == 2 or bool((mixed == x).all())
    assert 8 < boxes < 32  # CutMix every other time


def test_no_two_uses_of_random_numbers_share_a_stream():
    """The first numbers of all uses, for small seeds, epochs, samples, steps: none twice."""
    small = range(4)
    keys = [(D.WEIGHTS, s) for s in small]
    keys += [(D.DRAWN, s, split) for s in small for split in (0, 1)]
    keys += [(D.ORDER, s, e) for s in small for e in small] + [(D.SPLIT, s) for s in small]
    keys += [(D.SAMPLE, s, e, i) for s in small for e in small for i in small]
    keys += [(D.STEP, s, t, k, r) for s in small for t in small for k in small for r in small]
    first = [int(D.generator(*key).integers(2**62)) for key in keys]
    assert len(set(first)) == len(keys) == 352


# --------------------------------------------------- decoding

def write_video(path, frames, codec="libx264", **options):
    """frames uint8 (T, H, W, 3), 30 a second"""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def stairs(n, height=48, width=64):
    """Frame i has the grey level 20 + 5 i in its left and 255 - that in its right half."""
    frames = np.empty((n, height, width, 3), np.uint8)
    frames[:, :, :width//2] = (20 + 5 * np.arange(n))[:, None, None, None]
    frames[:, :, width//2:] = 255 - frames[:, :, :width//2]
    return frames


def levels_of(clip):
    """The grey level in the left half of each frame of a `stairs` video."""
    return clip[:, 8:40, 8:24].float().mean((1, 2, 3)).numpy()


def read(path, choose=range, short_side=None, start=0.0, end=math.inf):
    return D.read_clip((str(path), start, end), choose, short_side)


@pytest.mark.parametrize("name, codec, options", (
    ("b_frames.mp4", "libx264", dict(g="250", bf="3", crf="10")),
    ("short_gop.mp4", "libx264", dict(g="12", crf="10")),
    ("vp9.webm", "libvpx-vp9", dict(crf="10", lag_in_frames="0")),
    ("packed.avi", "mpeg4", dict(qmin="2", qmax="2", bf="2")),
    ("stream.ts", "libx264", dict(g="12", crf="10")),
    ("h265.mkv", "libx265", {"x265-params": "log-level=none:crf=10"})))
def test_decoding_gives_the_frames_that_were_asked_for(tmp_path, monkeypatch, name, codec, options):
    """And decodes everything only where it has to; of a part the frames that are shown then."""
    def forbidden(path):
        raise AssertionError("decoded everything to get a few frames")
    if not name.endswith(("avi", "ts")):
        monkeypatch.setattr(D, "decode_all", forbidden)
    path = tmp_path / name
    write_video(path, stairs(40), codec, **options)
    for wanted in ([0, 39], [30], [38, 3, 3, 30, 12, 13, 14], list(range(40))):
        seen = []
        clip = read(path, lambda n: seen.append(n) or wanted)
        assert seen == [40]
        assert clip.shape == (len(wanted), 48, 64, 3) and clip.dtype == torch.uint8
        wrong = np.abs(levels_of(clip) - (20 + 5 * np.array(wanted)))
        assert wrong.max() < 2.5  # neighbours differ by 5
    for short_side, shape in ((24, (1, 24, 32, 3)), (26, (1, 26, 35, 3))):  # 34.67 is 35
        assert read(path, lambda n: [0], short_side).shape == shape
    for start, end, first, n in ((0.2, 0.5, 6, 9), (0.9, 90, 27, 13), (0.501, 0.505, 15, 1)):
        part = levels_of(read(path, range, start=start, end=end))
        assert len(part) == n and np.abs(part - (20 + 5 * np.arange(first, first + n))).max() < 2.5


def remuxed(source, target):
    """As `ffmpeg -i source -c copy target`."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        packets = [packet for packet in old.demux(stream) if packet.size]
        first = packets[0].dts
        for packet in packets:
            packet.dts -= first
            packet.pts = packet.dts  # what an avi knows
            packet.stream = copy
            new.mux(packet)


@pytest.mark.parametrize("codec, ending", (("libx264", "mp4"), ("libx264", "mkv"), ("mpeg4", "mov"),
                                           ("libx265", "mp4")))
def test_files_without_composition_times_come_in_the_order_they_are_shown(tmp_path, codec, ending):
    options = {"libx265": {"x265-params": "log-level=none:crf=10"},
               "mpeg4": dict(qmin="2", qmax="2")}
    options = options.get(codec, dict(crf="10"))
    write_video(tmp_path / "a.mp4", stairs(40), codec, bf="3", **options)
    remuxed(tmp_path / "a.mp4", tmp_path / f"b.{ending}")
    clip = read(tmp_path / f"b.{ending}")
    assert len(clip) == 40 and np.abs(levels_of(clip) - (20 + 5 * np.arange(40))).max() < 2.5


def test_videos_and_pictures_come_upright_whatever_the_camera_notes(tmp_path):
    """All eight ways to hold a camera: mp4's matrix by hand, (x, y) -> (ax + cy, bx + dy); EXIF."""
    write_video(tmp_path / "flat.mp4", stairs(8), crf="10")
    blob = bytearray((tmp_path / "flat.mp4").read_bytes())
    flat = read(tmp_path / "flat.mp4", lambda n: [3])[0].clone()
    at = blob.index(b"tkhd") + 4 + 40  # the matrix, in 16.16 fixed point
    corner = stairs(8)[3].copy()
    corner[:16] //= 2  # another top than bottom
    ways = {1: (1, 0, 0, 1), 2: (-1, 0, 0, 1), 3: (-1, 0, 0, -1), 4: (1, 0, 0, -1),
            5: (0, 1, 1, 0), 6: (0, 1, -1, 0), 7: (0, -1, -1, 0), 8: (0, -1, 1, 0)}
    for orientation, (a, b, c, d) in ways.items():
        matrix = np.array([a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30], ">i4")
        blob[at:at+36] = matrix.tobytes()
        (tmp_path / "turned.mp4").write_bytes(blob)
        exif = Image.Exif()
        exif[0x112] = orientation
        Image.fromarray(corner).save(tmp_path / "turned.png", exif=exif)
        for found, image in ((read(tmp_path / "turned.mp4", lambda n: [3])[0], flat),
                             (read(tmp_path / "turned.png")[0], torch.from_numpy(corner))):
            H, W = image.shape[:2]
            for y, x in ((3, 5), (40, 5), (40, 60)):
                u = a * x + c * y + (a + c < 0) * ((W if a else H) - 1)
                v = b * x + d * y + (b + d < 0) * ((H if d else W) - 1)
                assert torch.equal(found[v, u], image[y, x])


def test_pictures_are_videos_of_one_frame_and_folders_of_them_videos(tmp_path):
    """Transparency goes, 16 bits become 8, what is broken says so; frames in their order."""
    frames = stairs(12)
    Image.fromarray(frames[2]).convert("RGBA").save(tmp_path / "alpha.png")
    assert torch.equal(read(tmp_path / "alpha.png", lambda n: [0] * (3 * n)),
                       torch.from_numpy(frames[2]).expand(3, 48, 64, 3))
    assert read(tmp_path / "alpha.png", lambda n: [0], 24).shape == (1, 24, 32, 3)
    Image.fromarray(np.full((8, 8), 257 * 100, np.uint16)).save(tmp_path / "deep.png")
    assert (read(tmp_path / "deep.png") == 100).all()
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(D.BadVideo, match="broken.jpg: cannot identify image file"):
        read(tmp_path / "broken.jpg")
    (tmp_path / "v").mkdir()
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / "v" / f"img_{i + 1}.png")  # 1 10 11 12 2 ..
    assert levels_of(read(tmp_path / "v", lambda n: [0, 5, n - 1])).tolist() == [20, 45, 75]
    (tmp_path / "empty").mkdir()
    with pytest.raises(D.BadVideo, match="empty: a folder without pictures"):
        read(tmp_path / "empty")


def test_videos_that_cannot_be_used_say_why(tmp_path):
    write_video(tmp_path / "good.mp4", stairs(40), g="60")
    blob = (tmp_path / "good.mp4").read_bytes()
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "html.mp4").write_bytes(b"<html>404</html>")
    (tmp_path / "cut.mp4").write_bytes(blob[:len(blob) // 2])
    os.mkfifo(tmp_path / "pipe.mp4")  # would wait for a writer for ever
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp",
                                           layout="mono")
        frame.rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    for name, reason in (("empty", ""), ("html", ""), ("cut", ""), ("pipe", "not a regular file"),
                         ("sound", "no video stream"), ("nowhere", "No such file")):
        with pytest.raises(D.BadVideo, match=f"{name}.mp4: {reason}"):
            read(tmp_path / f"{name}.mp4")


def test_names_and_notes_in_any_encoding_are_read(tmp_path, monkeypatch):
    """A colon, a percent sign, bytes that are no UTF-8 in the name, and in a title."""
    monkeypatch.chdir(tmp_path)
    with av.open("title.mp4", "w") as container:
        container.metadata["title"] = "cafe"
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width = 48, 64
        for frame in stairs(12):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    blob = open("title.mp4", "rb").read()
    assert blob.count(b"cafe") == 1
    for name in (b"cam:1.mp4", b"a%03d.mp4", b"caf\xe9.mp4", b"--0ed.mp4"):
        open(name, "wb").write(blob.replace(b"cafe", b"caf\xe9"))
        assert len(read(os.fsdecode(name))) == 12


def test_the_good_frames_of_a_damaged_file_are_the_video(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, stairs(40), g="10", bf="0", crf="10")
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    blob = bytearray(path.read_bytes())
    for pos, size in packets[20:26]:
        blob[pos:pos+size] = bytes(size)  # six frames of zeros
    path.write_bytes(blob)
    with pytest.warns(UserWarning, match=r"a.mp4: 6 of 40 frames do not decode"):
        levels = levels_of(read(path))
    assert len(levels) == 34 and np.abs(levels[:20] - (20 + 5 * np.arange(20))).max() < 2.5
    assert len(read(path, lambda n: [0, 10])) == 2  # what is asked for is whole
    for pos, size in packets[15:39]:
        blob[pos:pos+size] = bytes(size)
    path.write_bytes(blob)
    with pytest.raises(D.BadVideo, match=r"a.mp4: 16 of 40 frames decode"):
        read(path)


# --------------------------------------------------- data sets and samples

@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    """Class folders: 2 classes, 12 training, 5 validation videos of 12 frames, 40 x 56 pixels."""
    root = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    for split, n in (("train", 12), ("val", 5)):
        for i in range(n):
            folder = root / split / ("brush hair" if i % 2 else "aim")
            folder.mkdir(parents=True, exist_ok=True)
            blocks = rng.integers(0, 256, (12, 5, 7, 3))
            frames = np.kron(blocks, np.ones((1, 8, 8, 1))).astype(np.uint8)
            write_video(folder / f"{i}.mp4", frames)
    return root


def opened(data, root="", splits=("train", "val"), **changes):
    return D.open_data(settings(data=str(data), root=str(root), **changes), splits)


def touch(root, *names):
    """Files that are found, not read."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def named(dataset):
    """{'78687.webm': 'its class'}"""
    return {os.path.basename(clip[0]): dataset.classes[label]
            for clip, label in zip(dataset.clips, dataset.labels)}


def test_kinetics_as_the_cvdf_scripts_leave_it(tmp_path, capsys):
    """Flat, quoted labels, ids with _ and -, one id twice, repaired copies, gone and unlisted."""
    rows = {"train": ['"zip, unzip",-_3_lodo2M1,59', "abseiling,a-b_c-d_e-f,4",
                      "abseiling,-_3_lodo2M1,7", '"zip, unzip",gone_gone_1,0'],
            "val": ["abseiling,vvvvvvvvvv1,7", "walking (someone's dog),vvvvvvvvvv2,7"]}
    os.makedirs(tmp_path / "annotations")
    for split, lines in rows.items():
        table = ["label,youtube_id,time_start,time_end,split,is_cc"]
        for line in lines:
            _, key, start = line.rsplit(",", 2)
            table.append(f"{line},{int(start) + 10},{split},0")
            if not key.startswith("gone"):
                touch(tmp_path, f"{split}/{key}_{int(start):06d}_{int(start) + 10:06d}.mp4")
        (tmp_path / "annotations" / f"{split}.csv").write_text("\n".join(table) + "\n")
    touch(tmp_path, "train/no_row_here_000001_000011.mp4",
          "replacement/replacement_for_corrupted_k400/a-b_c-d_e-f_000004_000014.mp4")
    sets = opened("k400", tmp_path)
    said = capsys.readouterr().out
    assert "lists 4 videos, 3 are there, 1 missing, 1 more have no label" in said
    assert sets["train"].classes == ["abseiling", "walking (someone's dog)", "zip, unzip"]
    assert named(sets["train"]) == {"-_3_lodo2M1_000059_000069.mp4": "zip, unzip",
                                    "-_3_lodo2M1_000007_000017.mp4": "abseiling",
                                    "a-b_c-d_e-f_000004_000014.mp4": "abseiling"}
    assert "/replacement/" in sets["train"].clips[1][0]


def test_something_something_and_diving48_as_they_are_published(tmp_path):
    """Under 20BN's and under Qualcomm's names; ids are text, templates have brackets, commas."""
    rows = {"train": [("78687", "Holding [something] next to [something]"),
                      ("5", "Approaching [something] with your camera")],
            "validation": [("2", "Pretending to put [something] into [something]")]}
    for form in ("a/something-something-v2-{}.json", "b/labels/{}.json"):
        for split, own in rows.items():
            table = [{"id": key, "template": template} for key, template in own]
            touch(tmp_path, form.format(split))
            (tmp_path / form.format(split)).write_text(json.dumps(table))
        root = tmp_path / form[0]
        touch(root, *(f"20bn-something-something-v2/{key}.webm" for key in (78687, 2, 5)))
        sets = opened("ssv2", root)
        assert named(sets["train"]) == {"78687.webm": "Holding something next to something",
                                        "5.webm": "Approaching something with your camera"}
        assert sets["train"].labels[1] == 0 and len(sets["val"].classes) == 174

    root = tmp_path / "diving"
    for split, keys in (("train", ("-mmq0PT-u8k_00155", "_x_00001")), ("test", ("a_00001",))):
        table = [{"vid_name": key, "label": 3 * k, "start_frame": 0, "end_frame": 48}
                 for k, key in enumerate(keys)]
        touch(root, f"Diving48_V2_{split}.json", *(f"rgb/{key}.mp4" for key in keys))
        (root / f"Diving48_V2_{split}.json").write_text(json.dumps(table))
    sets = opened("diving48", root)
    assert sets["train"].labels == [0, 3] and sets["val"].labels == [0]
    assert named(sets["train"])["_x_00001.mp4"] == D.class_names("diving48")[3]


def test_activitynet_has_a_clip_for_each_labelled_segment(tmp_path):
    database = {
        "5n7NCViB5TU": {"subset": "training", "annotations": [
            {"label": "Discus throw", "segment": [-0.1, 0.5]},
            {"label": "Archery", "segment": [0.9, 90.0]}]},
        "gone": {"subset": "training", "annotations": [{"label": "Archery", "segment": [0, 1]}]},
        "b": {"subset": "validation", "annotations": [{"label": "Archery", "segment": [0, 1]}]},
        "c": {"subset": "testing", "annotations": []}}
    touch(tmp_path, "v1-2/v_5n7NCViB5TU.mp4", "v1-3/v_b.mkv")
    (tmp_path / "activity_net.v1-3.min.json").write_text(json.dumps({"database": database}))
    sets = opened("activitynet", tmp_path)
    assert [sets["train"].classes[label] for label in sets["train"].labels] == [
        "Discus throw", "Archery"]
    assert [clip[1:] for clip in sets["train"].clips] == [(0, 0.5), (0.9, 90)]
    assert len(sets["val"]) == 1


def test_class_folders_are_names_and_each_video_is_there_once(tmp_path, capsys):
    """Numbers are names; links in a circle, hidden folders, thumbnails, others are left out."""
    for split in ("train", "val"):
        touch(tmp_path, *(f"{split}/{name}" for name in (
            "001/a.MP4", "001/deep/b.mts", "010/c.gif", "010/c.jpg", "010/._c.mp4",
            ".cache/x/d.mp4", "010/@eaDir/c.mp4", "010/notes.txt", "010/model.onnx", "beside.mp4")))
        (tmp_path / split / "001" / "again").symlink_to(tmp_path / split)
    sets = opened(tmp_path)
    assert sets["train"].classes == ["001", "010"] and sets["train"].labels == [0, 0, 1]
    assert "train: 2 other files left out, " in capsys.readouterr().out  # model.onnx, c.jpg

    # Official names have the official indices, whatever their spelling.
    for split in ("train", "val"):
        touch(tmp_path / "k400" / split, "abseiling/0.mp4", "air_drumming/0.mp4", "zumba/0.mp4")
    sets = opened("k400", tmp_path / "k400", ["val"])
    assert sets["val"].labels == [0, 1, 399] and len(sets["val"].classes) == 400


def test_a_folder_of_numbered_pictures_is_one_video(tmp_path):
    for split in ("train", "val"):
        for name in ("up", "down"):
            touch(tmp_path, *(f"{split}/{name}/v{v}/img_{i:05d}.jpg" for v in (1, 2)
                              for i in range(5)), f"{split}/{name}/still_1.jpg")
    sets = opened(tmp_path)
    assert len(sets["train"]) == 6  # v1, v2 and a picture, twice
    assert sorted(os.path.basename(clip[0]) for clip in sets["train"].clips) == [
        "still_1.jpg", "still_1.jpg", "v1", "v1", "v2", "v2"]
    (tmp_path / "a_train.txt").write_text("train/up/v1 0\ntrain/down/v2 1\n")
    (tmp_path / "a_val.txt").write_text("val/up/v1 0\n")
    assert len(opened(tmp_path / "a_train.txt")["train"]) == 2


def test_lists_of_any_form(tmp_path, capsys):
    """Spaces, commas, quotes, tabs, Windows' line ends, absolute paths; classes.txt; from 0, 1."""
    touch(tmp_path, "v/up 1.mp4", "v/down, 1.mp4", "v/x.mp4", "val.mp4")
    forms = {"a_train.csv": '"v/down, 1.mp4",1\r\nv/down, 1.mp4,1\r\n"v/up 1.mp4","0"\r\n',
             "b_train.txt": "v/up 1.mp4 0\n\nv/down, 1.mp4\t1\n"
                            f"{tmp_path}/v/x.mp4,0\nv/gone.mp4 1\n"}
    for name, text in forms.items():
        (tmp_path / name).write_bytes(text.encode())
        (tmp_path / name.replace("train", "val")).write_text("val.mp4 1\n")
        sets = opened(tmp_path / name)
        assert sets["train"].labels == ([1, 1, 0] if name[0] == "a" else [0, 1, 0])
        assert all(os.path.isfile(clip[0]) for clip in sets["train"].clips)
        assert sets["val"].classes == ["0", "1"]
    assert "lists 4 videos, 3 are there, 1 missing" in capsys.readouterr().out
    (tmp_path / "classes.txt").write_text("up\ndown\n\n")
    assert opened(tmp_path / "b_train.txt")["val"].classes == ["up", "down"]
    for name in ("b_train.txt", "b_val.txt"):
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_text(re.sub(r"\b[01]$", lambda m: str(int(m[0]) + 1), text,
                                            flags=re.MULTILINE))
    sets = opened(tmp_path / "b_train.txt")
    assert sets["train"].labels == [0, 1, 0] and sets["train"].classes == ["up", "down"]
    assert "labels start at 1" in capsys.readouterr().out
    (tmp_path / "c_train.txt").write_text("v/up 1.mp4 7\nv/x.mp4 201904\n")
    (tmp_path / "c_val.txt").write_text("val.mp4 7\n")
    os.remove(tmp_path / "classes.txt")
    opened(tmp_path / "c_train.txt")
    assert "warning: 2 of 201904 classes" in capsys.readouterr().out


def test_a_split_keeps_recordings_together_and_depends_on_names_and_seed_alone(tmp_path):
    """A fifth of each class, by the name before the last _; the order on the disk says nothing."""
    for k in range(10):
        for name in ("run", "walk"):
            touch(tmp_path, *(f"{name}/tape{k}_{piece}.mp4" for piece in range(3)))
    sets = opened(tmp_path, split="group")
    tapes = {split: {os.path.basename(clip[0])[:5] for clip in sets[split].clips} for split in sets}
    assert len(tapes["train"]) == 8 and len(tapes["val"]) == 2
    assert not tapes["train"] & tapes["val"]
    assert sorted(sets["val"].labels) == [0] * 6 + [1] * 6
    rows = [(D.whole(clip[0]), "x") for one in sets.values() for clip in one.clips]
    one, two = (D.split_rows(order, 3)["val"] for order in (rows, rows[::-1]))
    assert one == two and one != D.split_rows(rows, 4)["val"]
    touch(tmp_path, "jump/tape_1.mp4", "jump/tape_2.mp4")
    with pytest.raises(ValueError, match="the 2 videos of 'jump' are one recording"):
        opened(tmp_path, split="group")


def keys_of(n, first, last, **changes):
    return list(D.batch_keys(n, 0, first, last, **changes))


def test_the_order_of_an_epoch_is_one_permutation_whoever_reads_it():
    whole = keys_of(13, 0, 6, batch_size=4)
    assert len(whole) == 6 and {i for batch in whole for _, i in batch} == set(range(13))
    halves = [keys_of(13, 0, 6, batch_size=2, rank=rank, world=2) for rank in (0, 1)]
    assert [a + b for a, b in zip(*halves)] == whole  # two processes share a batch
    parts = keys_of(13, 0, 6, batch_size=2, accumulate=2)
    assert [a + b for a, b in zip(parts[::2], parts[1::2])] == whole  # two micro-batches
    assert keys_of(13, 4, 6, batch_size=4) == whole[4:]  # a resume sees what comes next
    assert len({i for batch in whole[:3] for _, i in batch}) == 12
    assert [epoch for batch in whole for epoch, _ in batch] == [0] * 12 + [1] * 12
    assert [i for batch in whole[:3] for _, i in batch] != [i for b in whole[3:] for _, i in b]


def test_a_sample_depends_on_seed_epoch_and_index_only(videos):
    """Not on the worker that loads it, nor on the process, nor on what was loaded before."""
    data = opened(videos)["train"]
    whole = keys_of(12, 0, 6, batch_size=4)
    alone = {key: data[key] for batch in reversed(whole) for key in batch}
    for workers in (0, 2):
        for keys, batch in zip(whole, D.loader(data, whole, workers)):
            for k, key in enumerate(keys):
                for name in ("clip", "colour"):
                    assert torch.equal(batch[name][k], alone[key][name])
    assert not torch.equal(data[0, 5]["clip"], data[1, 5]["clip"])  # another epoch, another crop


def test_augmentation_is_drawn_as_often_as_the_settings_say(monkeypatch):
    clips = torch.randint(0, 256, (1, 4, 32, 32, 3), dtype=torch.uint8).repeat(200, 1, 1, 1, 1)
    off = dict(crop="none", jitter=0.0, flip=0.0, grey=0.0, sampling="dense", interval=1)

    def samples(n, **changes):
        data = D.VideoSet(clips, [0] * 200, ["x"], settings(**off | changes))
        return [data[0, i] for i in range(n)]
    assert {(s["grey"], s["flip"]) for s in samples(20, grey=1.0)} == {(True, False)}
    assert {(s["grey"], s["flip"]) for s in samples(20, flip=1.0)} == {(False, True)}
    jittered = [bool((s["colour"][:, 0] != 1).any()) for s in samples(200, jitter=0.3)]
    assert 0.2 < np.mean(jittered) < 0.4
    for per_frame, rows in ((True, 4), (False, 1)):
        sample = samples(1, jitter=1.0, jitter_per_frame=per_frame)[0]
        assert len(sample["colour"].unique(dim=0)) == rows

    # As released: one crop is cut from a frame with short side 256 for 224, three from 224.
    asked = []

    def record(clip, choose, short_side):
        asked.append(short_side)
        return torch.zeros(4, 40, 40, 3, dtype=torch.uint8)
    monkeypatch.setattr(D, "read_clip", record)
    for views in ("1x1", "1x3"):
        D.VideoSet([D.whole("x.mp4")], [0], ["x"], settings(), views=views)[0, 0]
    assert asked == [36, 32]


def test_a_change_in_the_last_frames_reaches_the_last_test_clip_only(tmp_path):
    """300 frames, 8 x 4 views: only clip 3 looks at frames after 290 (295); clips interleave."""
    blocks = np.random.default_rng(0).integers(0, 256, (300, 4, 5, 3))
    frames = np.kron(blocks, np.ones((1, 8, 8, 1))).astype(np.uint8)
    changed = frames.copy()
    changed[291:] = 255 - changed[291:]  # the last 3 %
    cfg = settings(num_frames=8)
    clips = []
    for name, content in (("a.mp4", frames), ("b.mp4", changed)):
        write_video(tmp_path / name, content, g="1", qp="10")  # every frame on its own
        data = D.VideoSet([D.whole(str(tmp_path / name))], [0], ["x"], cfg, views="4x3")
        clips.append(data[0, 0]["clip"].float())
    differs = (clips[0] - clips[1]).abs().flatten(1).amax(1).view(3, 4) > 0  # crop x clip
    assert differs.tolist() == [[False, False, False, True]] * 3


def test_bad_training_videos_are_named_and_replaced_by_the_same_sample_every_time(videos, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"")
    bad = D.whole(str(tmp_path / "bad.mp4"))
    files = [D.whole(str(path)) for path in sorted(videos.glob("train/*/*.mp4"))]
    data = D.VideoSet([bad] + files, [0] + [1] * 12, ["a", "b"], settings())
    sample = data[3, 0]
    assert "bad.mp4" in sample["bad"] and sample["label"] == 1
    assert torch.equal(sample["clip"], data[3, 0]["clip"])
    assert data[3, 1]["bad"] == ""
    with pytest.raises(D.BadVideo, match="10 unusable videos in a row"):
        D.VideoSet([bad], [0], ["a"], settings())[0, 0]


def class_by_eye(mask):
    """mask of the L, bool (T, S, S) -> class, from its area, its centroid, and how that turns."""
    area = mask.sum((1, 2)).float()
    y = (mask * torch.arange(64.).view(1, 64, 1)).sum((1, 2)) / area
    x = (mask * torch.arange(64.).view(1, 1, 64)).sum((1, 2)) / area
    dx = x[-1] - x[0]
    dy = y[-1] - y[0]
    growth = (area[-1] / area[0]).log()
    if growth.abs() > 0.8:
        return 6 if growth > 0 else 7
    u = x - x.mean()
    v = y - y.mean()
    turn = (u[:-1] * v[1:] - v[:-1] * u[1:]).sum() / 2  # > 0: clockwise, y points down
    if max(dx.abs(), dy.abs()) > 10 and turn.abs() < 5:
        if dx.abs() > dy.abs():
            return 0 if dx < 0 else 1
        return 2 if dy < 0 else 3
    return 4 if turn > 0 else 5


def test_the_toy_moves_as_its_labels_say_and_backwards_as_their_partners():
    """Judged from the masks alone. So a network blind to order cannot pass half of validation."""
    _, labels, masks = D.toy_clips(200, seed=3)
    judged = torch.tensor([class_by_eye(mask) for mask in masks])
    reverse = torch.tensor([class_by_eye(mask.flip(0)) for mask in masks])
    assert (judged == labels).float().mean() > 0.97
    assert (reverse == labels ^ 1).float().mean() > 0.97
    names = [(D.TOY_CLASSES[c], D.TOY_CLASSES[c ^ 1]) for c in range(0, 8, 2)]
    assert names == [("left", "right"), ("up", "down"), ("clockwise", "anticlockwise"),
                     ("grow", "shrink")]
    clips, labels = D.toy_split("val", seed=0)
    assert len(clips) == 512 and labels.bincount().tolist() == [64] * 8
    assert torch.equal(clips[:256].flip(1), clips[256:])
    assert torch.equal(labels[:256] ^ 1, labels[256:])
    assert not torch.equal(D.toy_split("val", seed=1)[0], clips)


# --------------------------------------------------- the loop

def command(*words):
    """`python train.py words` in this process -> its metrics."""
    return train.main(list(words))


def small(videos, out, *words):
    """A run that takes a second: 12 videos, 4 frames of 32 x 32, focal_toy, Kinetics' recipe."""
    return ["--data", "k400", "--root", videos, "--model", "focal_toy", "--image_size", 32,
            "--num_frames", 4, "--workers", 0, "--out", out, "--device", "cpu", *words]


PLAIN = ["--mixup", 0, "--cutmix", 0, "--views", "1x1"]


def test_learning_rate_at_start_seam_and_end():
    """By hand, 100 steps, 20 of warm-up: a line, then a cosine from the peak: no jump there."""
    cfg = SimpleNamespace(warmup=0.2, peak=0.1, warmup_lr=0.01, min_lr=0.1)
    rates = [train.lr_at(step, 100, cfg) for step in range(101)]
    for step, by_hand in ((0, 0.001), (10, 0.0505), (19, 0.09505), (20, 0.1), (60, 0.055),
                          (100, 0.01)):
        assert rates[step] == pytest.approx(by_hand)
    assert max(rates) == 0.1 and rates[21] > 0.0999
    assert train.lr_at(0, 10, SimpleNamespace(warmup=0, peak=0.1, warmup_lr=0.5, min_lr=0)) == 0.1


def test_training_is_sgd_with_nesterov_momentum_worked_out_slowly(videos, tmp_path):
    """Two batches of 2 a step (divided by 2), warm-up, scaled lr, clipping, smoothing."""
    command(*small(videos, tmp_path, "--batch_size", 2, "--accumulate", 2, "--epochs", 2,
                   "--clip_grad", 6, *PLAIN))
    done = read_checkpoint(tmp_path / "last.pt")
    cfg = settings(data=str(videos))
    torch.manual_seed(D.torch_seed(D.generator(D.WEIGHTS, 0)))
    model = create_model("focal_toy", num_classes=2, num_frames=4, image_size=32)
    parameters = list(model.parameters())
    speed = [torch.zeros_like(p) for p in parameters]
    data = opened(videos)["train"]
    steps = keys_of(12, 0, 6, batch_size=4)

    # The rate by hand: 4 of 512 clips; round(6 steps * 20/120) = 1 warms up.
    peak = 0.1 * 4 / 512
    low = peak * 0.01
    rates = [low] + [low + (peak - low) / 2 * (1 + math.cos(math.pi * s / 5)) for s in range(5)]
    for lr, keys in zip(rates, steps, strict=True):
        batch = torch.utils.data.default_collate([data[key] for key in keys])
        logs = model(D.prepare(batch, cfg, "cpu")).log_softmax(-1)
        right = logs[range(4), batch["label"]]
        loss = -(0.9 * right + 0.1 * logs.mean(1)).mean()
        grads = torch.autograd.grad(loss, parameters)
        norm = sum(g.square().sum() for g in grads).sqrt()
        with torch.no_grad():
            for p, g, v in zip(parameters, grads, speed):
                g = g * min(1, 6 / (norm.item() + 1e-6))
                v.mul_(0.9).add_(g)
                p.sub_(lr * (g + 0.9 * v))
    for key, value in model.state_dict().items():
        close(done["model"][key], value, rtol=0, atol=2e-6)
    assert done["step"] == 6 and done["classes"] == ["aim", "brush hair"]


def test_adamw_lets_matrices_decay_and_nothing_else():
    """With a gradient of zero, a step shrinks matrices by lr * weight_decay and leaves the rest."""
    model = create_model("lvt_toy")
    torch.nn.init.ones_(model.temp_embed)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    cfg = settings(optimizer="adamw", weight_decay=0.5, peak=0.1)
    optimizer = train.make_optimizer(model, cfg)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        kept = p.ndim == 1 or name == "temp_embed"
        close(p.detach(), before[name] * (1 if kept else 1 - 0.1 * 0.5))


def test_accumulation_and_processes_do_not_change_the_result(videos, tmp_path):
    """A batch of 4 = 4 accumulated batches of 1 = 2 processes with 2 each; evaluation, too."""
    for name, words in (("whole", ["--batch_size", 4]),
                        ("parts", ["--batch_size", 1, "--accumulate", 4])):
        command(*small(videos, tmp_path / name, "--epochs", 2, *words, *PLAIN))
    words = small(videos, tmp_path / "two", "--epochs", 2, "--batch_size", 1, "--accumulate", 2,
                  *PLAIN)
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2",
                    TRAIN[1], *map(str, words)], check=True, capture_output=True,
                   env=os.environ | dict(OMP_NUM_THREADS="1"))
    whole = read_checkpoint(tmp_path / "whole" / "last.pt")
    for name in ("parts", "two"):
        other = read_checkpoint(tmp_path / name / "last.pt")
        assert whole["step"] == other["step"] == 6
        for key, value in whole["model"].items():
            close(other["model"][key], value, rtol=0, atol=1e-6)
        for key in ("top1", "top5", "mean_class", "videos", "bad"):
            assert whole["log"][-1][key] == other["log"][-1][key]


def start(words, **options):
    """`python train.py words` as a process of its own, in a group of its own."""
    return subprocess.Popen(TRAIN + [str(word) for word in words], stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, start_new_session=True,
                            env=os.environ | dict(OMP_NUM_THREADS="1"), **options)


def logged_steps(out):
    """The steps in log.jsonl; every line must be JSON, which knows no NaN."""
    def refuse(constant):
        raise AssertionError(constant)
    lines = (out / "log.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse)["step"] for line in lines]


def assert_same_end(one, two):
    """Two runs ended with the same bits, and logged the same."""
    a = read_checkpoint(one / "last.pt")
    b = read_checkpoint(two / "last.pt")
    assert a["step"] == b["step"]
    for key in a["model"]:
        assert torch.equal(a["model"][key], b["model"][key])
    for x, y in zip(a["optimizer"]["state"].values(), b["optimizer"]["state"].values()):
        assert torch.equal(x["momentum_buffer"], y["momentum_buffer"])
    for key in ("step", "loss", "grad_norm", "top1", "lr"):
        assert [line[key] for line in a["log"]] == [line[key] for line in b["log"]]
    assert logged_steps(one) == logged_steps(two)


def killed(words, out, blow, epochs, wait):
    """Starts, or goes on with, a run; kills it so many seconds after so many epochs are logged."""
    process = start([*words, "--resume"] if (out / "last.pt").exists() else words)
    log = out / "log.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") >= epochs):
        time.sleep(0.01)
    time.sleep(wait)
    assert process.poll() is None, process.communicate()[0]
    # A terminal sends Ctrl-C to all processes, kill and schedulers a SIGTERM to the first.
    (os.kill if blow == signal.SIGTERM else os.killpg)(process.pid, blow)
    said = process.communicate()[0]
    assert process.returncode == (-9 if blow == signal.SIGKILL else 128 + blow), said
    return said


def test_killed_and_resumed_is_the_same_as_never_stopped(videos, tmp_path):
    """SIGKILLs, SIGINT, SIGTERM; drop path, mixup, accumulation, 2 workers, moved data."""
    words = ["--batch_size", 2, "--accumulate", 2, "--epochs", 8, "--workers", 2,
             "--drop_path", 0.1, "--views", "1x1"]
    reference = start(small(videos, tmp_path / "one", *words))
    two = tmp_path / "two"
    moved = shutil.copytree(videos, tmp_path / "moved")
    for epochs, wait, blow in ((2, 0.1, signal.SIGKILL), (4, 0.1, signal.SIGTERM),
                               (6, 0.05, signal.SIGINT)):
        said = killed(small(videos, two, *words), two, blow, epochs, wait)
    assert "stopped by SIGINT; saved" in said and "Traceback" not in said

    # The settings come with the checkpoint; the data may be elsewhere.
    last = start(["--out", two, "--root", moved, "--workers", 2, "--resume"])
    said = last.communicate()[0]
    assert last.returncode == 0, said
    reference.communicate()
    assert_same_end(tmp_path / "one", two)
    assert logged_steps(two) == [3 * epoch for epoch in range(1, 9)]
    (moved / "train" / "aim" / "0.mp4").rename(moved / "train" / "aim" / "other.mp4")
    with pytest.raises(ValueError, match="goes on with the same clips"):
        command("--out", two, "--root", moved, "--workers", 0, "--resume")


def test_a_run_killed_while_it_validated_goes_on_by_validating(videos, tmp_path):
    """last.pt is that of the end of epoch 3, the log has two lines; junk lies about."""
    words = small(videos, tmp_path, "--batch_size", 4, "--epochs", 3, *PLAIN)
    metrics = command(*words)
    last = read_checkpoint(tmp_path / "last.pt")
    line = last["log"].pop()
    last |= dict(losses=3 * line["loss"], norms=3 * line["grad_norm"], counted=3, best=100.0)
    best = (tmp_path / "best.pt").read_bytes()
    torch.save(last, tmp_path / "last.pt")
    (tmp_path / "log.jsonl").open("a").write('{"step": 9, "torn' + "\0" * 9)
    again = command(*words, "--resume")
    assert again["top1"] == metrics["top1"] and again["loss"] == pytest.approx(line["loss"])
    assert logged_steps(tmp_path) == [3, 6, 9]
    assert (tmp_path / "best.pt").read_bytes() == best
    assert command(*words, "--resume") == again  # nothing is left to do


def test_best_pt_has_the_best_epoch_and_the_papers_views_come_last(videos, tmp_path, monkeypatch):
    tops = iter((50., 80., 60., 70., 10., 10.))
    views = []

    def evaluate(model, dataset, cfg):
        views.append(dataset.views)
        return dict(top1=next(tops), top5=0., mean_class=0., videos=5, bad=0)
    monkeypatch.setattr(train, "evaluate", evaluate)
    words = small(videos, tmp_path, "--batch_size", 4, "--epochs", 3, "--views", "2x1")
    assert command(*words)["top1"] == 70
    assert views == [(1, 1), (1, 1), (1, 1), (2, 1)]
    best = read_checkpoint(tmp_path / "best.pt")
    assert best["step"] == 6 and best["best"] == 80

    # A new run keeps the files of the old one.
    old = (tmp_path / "last.pt").read_bytes()
    command(*words, "--epochs", 1)
    assert (tmp_path / "last.pt.old").read_bytes() == old
    assert logged_steps(tmp_path) == [3]


def test_what_is_random_in_a_step_comes_from_seed_step_micro_batch_and_process(
        videos, tmp_path, monkeypatch):
    keys = []

    def record(use, *key):
        keys.append((use, *key))
        return D.generator(use, *key)
    monkeypatch.setattr(train, "generator", record)
    command(*small(videos, tmp_path, "--batch_size", 2, "--accumulate", 2, "--steps", 2,
                   "--seed", 7, *PLAIN))
    assert keys[0] == (D.WEIGHTS, 7)
    assert keys[1:] == [(D.STEP, 7, step, k, 0) for step in (0, 1) for k in (0, 1)]

    # The second process draws from another stream.
    keys.clear()
    cfg = settings(data=str(videos), rank=1, steps=1, batch_size=4, out=str(tmp_path))
    model = create_model("focal_toy", num_classes=2, num_frames=4, image_size=32)
    train.train(model, D.open_data(cfg, ["train", "val"]), cfg, {})
    assert keys == [(D.STEP, 0, 0, 0, 1)]


def test_files_are_whole_and_finite_or_not_written(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    train.write_whole(str(path), b"old")
    model = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(model.weight, math.nan)
    cfg = SimpleNamespace(out=str(tmp_path), rank=0)
    train.save("last.pt", model, None, None, dict(step=3), cfg)
    assert path.read_bytes() == b"old"

    def full(source, target):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="last.pt could not be written, it needs 0.0 MiB: No space"):
        train.write_whole(str(path), b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["last.pt"]


def test_training_that_diverges_stops_with_the_step_the_rate_and_the_clips(videos, tmp_path):
    """20 infinite gradients in a row; the weights on the disk are finite, the log is JSON."""
    words = small(videos, tmp_path, "--batch_size", 4, "--epochs", 50, "--lr", 1e6, "--warmup", 0)
    with pytest.raises(ValueError) as stopped:
        command(*words, *PLAIN)
    said = str(stopped.value)
    assert re.match(r"20 infinite gradients in a row, up to step \d+ at lr [\d.e+]+, with "
                    r"/.*\.mp4, /.*\.mp4.*: lower --lr", said), said
    state = read_checkpoint(tmp_path / "last.pt")
    assert all(value.isfinite().all() for value in state["model"].values())
    assert state["step"] == int(re.search(r"up to step (\d+)", said)[1])
    assert sum(line["infinite"] for line in state["log"]) >= 15
    logged_steps(tmp_path)


def test_half_precision_scales_gradients_and_auto_stays_auto(videos, tmp_path):
    words = small(videos, tmp_path, "--batch_size", 4, "--epochs", 1, *PLAIN)
    command(*words, "--dtype", "float16")
    saved = read_checkpoint(tmp_path / "last.pt")
    assert saved["scaler"]["scale"] > 1 and saved["step"] == 3
    command(*words)  # in a checkpoint of a GPU bfloat16 would be a surprise on a CPU
    assert read_checkpoint(tmp_path / "last.pt")["settings"]["dtype"] == "auto"


def test_a_second_run_in_the_same_folder_is_refused_while_the_first_lives(
        videos, tmp_path, monkeypatch, capsys):
    words = small(videos, tmp_path, "--batch_size", 4, "--epochs", 500, *PLAIN)
    first = start(words)
    while not (tmp_path / "log.jsonl").exists():
        time.sleep(0.05)
    second = start(words)
    said = second.communicate()[0]
    assert second.returncode == 1
    assert said.splitlines()[-1].startswith(f"error: another run is writing to {tmp_path}: ")
    assert first.poll() is None
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    command(*words, "--steps", 1)  # the lock went with its process

    def unknown(*args):
        raise OSError(38, "Function not implemented")
    monkeypatch.setattr("fcntl.lockf", unknown)
    command(*words, "--steps", 1)
    assert "cannot be locked (Function not implemented)" in capsys.readouterr().out


def test_evaluation_averages_softmax_over_views_and_counts_unreadable_videos_as_wrong(
        videos, tmp_path, capsys):
    root = tmp_path / "v"
    shutil.copytree(videos, root)
    command(*small(root, tmp_path, "--batch_size", 4, "--steps", 1, *PLAIN))
    (root / "val" / "aim" / "broken.mp4").write_bytes(b"nothing")
    words = ["--eval", "--init", tmp_path / "last.pt", "--views", "2x3", "--root", root,
             "--workers", 0, "--out", tmp_path]
    found = [command(*words, "--batch_size", batch_size) for batch_size in (1, 8, 100)]
    said = capsys.readouterr()
    assert "counted as wrong" in said.err and "broken.mp4" in said.err
    assert "1 unreadable counted as wrong" in said.out

    # Slowly: one view after the other.
    model = create_model("focal_toy", num_classes=2, num_frames=4, image_size=32).eval()
    model.load_state_dict(read_checkpoint(tmp_path / "last.pt")["model"])
    data = D.open_data(settings(data=str(root)), ["val"], "2x3")["val"]
    mean = torch.tensor([.485, .456, .406]).view(1, 3, 1, 1, 1)
    std = torch.tensor([.229, .224, .225]).view(1, 3, 1, 1, 1)
    right = {0: [], 1: []}
    for i, label in enumerate(data.labels):
        sample = data[0, i]
        views = (sample["clip"].movedim(-1, 1) / 255 - mean) / std
        scores = sum(model(view[None])[0].softmax(-1) for view in views) / 6
        right[label].append(sample["bad"] == "" and scores.argmax().item() == label)
    hits = sum(map(sum, right.values()))
    per_class = 50 * sum(sum(one) / len(one) for one in right.values())
    for one in found:
        assert one == pytest.approx(dict(top1=100 * hits / 6, top5=500 / 6, mean_class=per_class,
                                         videos=6, bad=1))

    # The names of the classes count, not their order on the disk.
    swapped = read_checkpoint(tmp_path / "last.pt")
    swapped["classes"].reverse()
    torch.save(swapped, tmp_path / "last.pt")
    assert command(*words)["top1"] == pytest.approx(100 * (5 - hits) / 6)


class Sure(torch.nn.Module):
    """Answers three views; only in eval mode, as dropout would change the answers."""
    def forward(self, x):
        assert not self.training
        return torch.tensor([[0., 10.], [2., 0.], [2., 0.]])


def test_a_view_that_is_very_sure_does_not_outvote_the_others(tmp_path):
    """By hand: logits (0, 10), (2, 0), (2, 0) sum to class 1, their softmaxes to class 0."""
    cfg = settings(num_frames=8, image_size=8, batch_size=4)
    clips = torch.zeros(1, 8, 8, 8, 3, dtype=torch.uint8)
    model = Sure().train()
    for label, top1 in ((0, 100), (1, 0)):
        data = D.VideoSet(clips, [label], ["a", "b"], cfg, views="3x1")
        assert train.evaluate(model, data, cfg)["top1"] == top1
        assert model.training  # it goes on with training
    write_video(tmp_path / "a.mp4", stairs(8))
    cfg.predict = str(tmp_path / "a.mp4")
    cfg.views = "3x1"
    assert train.predict(model, ["a", "b"], cfg)["classes"] == ["a", "b"]
    for label in (0, 1):  # a score that is nan is no answer
        nan = torch.full((1, 2), math.nan)
        assert train.accuracies(nan, torch.tensor([label]), torch.tensor([False]))["top1"] == 0


def test_prediction_prints_class_names(videos, tmp_path, capsys):
    command(*small(videos, tmp_path, "--batch_size", 4, "--steps", 1, *PLAIN))
    good = videos / "val" / "aim" / "0.mp4"
    found = command("--predict", good, "--init", tmp_path / "best.pt")
    said = capsys.readouterr().out
    assert str(good) in said and "%  brush hair" in said
    assert sorted(found["classes"]) == ["aim", "brush hair"]
    assert sum(found["probabilities"]) == pytest.approx(1)

    # A released checkpoint has no names inside: the data set's.
    torch.save({"model": small_focal(num_classes=400).state_dict()}, tmp_path / "released.pt")
    words = ["--predict", good, "--init", tmp_path / "released.pt", "--model", "focal_t",
             "--image_size", 64, "--dim", 32, "--depths", "1,1,2,1", "--data"]
    assert set(command(*words, "k400")["classes"]) < set(D.class_names("k400"))
    with pytest.raises(ValueError, match="has 400 classes and no names .*, --data ssv2 has 174"):
        command(*words, "ssv2")


def test_the_command_that_was_ordered_learns_from_nothing_and_released_with_image_weights():
    cfg, _ = train.parse_args(["--data", "k400", "--model", "focal_t"])
    assert (cfg.weight_init, cfg.epochs, cfg.views, cfg.base_lr) == ("scratch", 120, "4x3", 0.1)
    assert train.parse_args(["--data", "ssv2"])[0].flip == 0 and cfg.flip == 0.5
    lvt, _ = train.parse_args(["--data", "ssv2", "--model", "lvt"])
    assert (lvt.sampling, lvt.num_frames, lvt.views, lvt.mean) == ("tsn", 16, "2x3", (.5, .5, .5))


def test_an_image_network_becomes_a_video_network(videos, tmp_path, capsys):
    """Trained on images; on a clip of one repeated image, the inflated one says the same."""
    for path in videos.glob("*/*/*.mp4"):
        target = tmp_path / "images" / path.relative_to(videos).with_suffix(".jpg")
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(read(path, lambda n: [0])[0].numpy()).save(target)
    words = ["--image_size", 32, "--workers", 0, "--device", "cpu", "--batch_size", 4, "--data"]
    command(*words, tmp_path / "images", "--num_frames", 1, "--temporal", "False", "--steps", 3,
            "--out", tmp_path / "image")
    command(*words, videos, "--num_frames", 4, "--init", tmp_path / "image" / "last.pt",
            "--temporal_init", "identity", "--lr", 1e-9, "--steps", 1, "--out", tmp_path / "video")
    said = capsys.readouterr().out
    assert "inflated: 18 that it lacks start as the identity" in said
    x = torch.randn(2, 3, 1, 32, 32)
    scores = []
    for name, frames in (("image", 1), ("video", 4)):
        saved = read_checkpoint(tmp_path / name / "last.pt")
        start = saved["settings"]["weight_init"]  # from image weights as released
        assert start == ("scratch" if name == "image" else "released")
        model = create_model("focal_toy", num_classes=2, temporal=name == "video").eval()
        model.load_state_dict(saved["model"])
        scores.append(model(x.expand(-1, -1, frames, -1, -1)))
    close(*scores, atol=1e-5, rtol=0)


def test_a_folder_has_our_recipe_and_left_is_not_mirrored(videos, tmp_path, capsys):
    for k, name in enumerate(("TurnLeft", "turn_right")):
        for split in ("train", "val"):
            shutil.copytree(videos / split / "aim", tmp_path / "turns" / split / name)
    words = ["--image_size", 32, "--num_frames", 4, "--workers", 0, "--device", "cpu", "--steps", 1,
             "--batch_size", 4, "--out", tmp_path, "--data"]
    for data, flip in ((videos, 0.5), (tmp_path / "turns", 0.0)):
        command(*words, data)
        saved = read_checkpoint(tmp_path / "last.pt")["settings"]
        assert (saved["flip"], saved["optimizer"], saved["lr_batch"]) == (flip, "adamw", 0)
    assert "flip is off: mirrored, 'TurnLeft'" in capsys.readouterr().out


# --------------------------------------------------- mistakes

@pytest.fixture(scope="session")
def muddle(videos, tmp_path_factory):
    """A folder with everything that goes wrong."""
    root = tmp_path_factory.mktemp("muddle")
    (root / "notes.pt").write_text("not a checkpoint")
    (root / "list.txt").write_text("a.mp4 0\nb.mp4 zero\n")
    (root / "alone.txt").write_text("three/val/aim/0.mp4 0\nthree/val/aim/2.mp4 1\n")
    (root / "data").mkdir()
    (root / "data" / "k400").symlink_to(videos)
    for split in ("train", "val"):
        shutil.copytree(videos / split / "aim", root / "one" / split / "aim")
        shutil.copytree(videos / split, root / "three" / split)
        shutil.copytree(videos / split / "aim", root / "three" / split / "third")
    command(*small(videos, root / "out", "--batch_size", 4, "--steps", 1, *PLAIN))
    return root


@pytest.mark.parametrize("words, message", (
    ("--data k600", "no train videos of k600 in data/k600.*annotations/train.csv.*--root DIR"),
    ("--data one", "--data one: one class only, 'aim': nothing to tell apart"),
    ("--data nowhere", "--data nowhere: neither a folder, nor a list file, nor one of toy"),
    ("--data list.txt", "list.txt, line 2: 'b.mp4 zero' is not 'path label'"),
    ("--data alone.txt", "trained on and validated with"),
    ("--model nonsense", "no model 'nonsense' here; there are focal_t, focal_s.*zoo"),
    ("--mixer sideways", "there is no 'sideways' here.*zoo"),
    ("--eval", "--eval and --predict need weights: --init FILE"),
    ("--init notes.pt", "notes.pt cannot be read as a checkpoint"),
    ("--resume --out fresh", "fresh/last.pt: no such checkpoint"),
    ("--banana 1", "--banana 1: no such setting of focal_toy .*--help --model focal_toy lists"),
    ("--kernel relu", "--kernel relu: no such setting of focal_toy with --mixer focal"),
    ("--optimizer lamb", "--optimizer lamb: must be one of sgd, adamw"),
    ("--lr nan", "--lr nan: must be a number"),
    ("--batch_size 1.5", "--batch_size 1.5: must be a whole number"),
    ("--temporal no", "--temporal no: must be True or False"),
    ("--betas 0.9", "--betas 0.9: must be numbers with commas"),
    ("--dim 64,64", "--dim 64,64: must be a whole number"),
    ("--drop_path 2", "--drop_path 2: must be from 0 to 0.99"),
    ("--crop_range 1,0.5", "--crop_range 1,0.5: the lower number first"),
    ("--views 4x2", "views '4x2': write CLIPSxCROPS"),
    ("--device gpu", "--device gpu: Expected one of cpu"),
    ("--out notes.pt", "--out notes.pt: is a file"),
    ("--accumulate 1000", "2048 training clips do not fill one step of 32000"),
    ("--resume out/last.pt --lr 0.5 --seed 1", "lr was 0.0, is 0.5.*leave these flags out"),
    ("--resume out/last.pt --batch_size 2 --workers 0", "sizes were .12, 4., are .12, 2."),
    ("--eval --init out/last.pt --data three --workers 0",
     "was not trained on the classes of three: it does not know 'third'")))
def test_mistakes_say_the_value_the_rule_and_the_way_out(words, message, muddle, monkeypatch):
    monkeypatch.chdir(muddle)
    with pytest.raises((ValueError, OSError)) as mistake:
        command(*words.split())
    assert re.search(message, str(mistake.value), re.DOTALL), mistake.value


def test_a_mistake_is_one_line_and_exit_1_and_help_lists_everything(monkeypatch, capsys):
    for words, status, said in (("--data nowhere", "error: --data nowhere: neither", ""),
                                ("--help --model lvt_toy", 0, "[adamw]")):
        monkeypatch.setattr(sys, "argv", ["train.py", *words.split()])
        with pytest.raises(SystemExit) as ended:
            train.main()
        assert str(ended.value.code).startswith(str(status)) and said in capsys.readouterr().out
    told = train.Parser(train.SETTINGS).format_help()
    assert all(f"--{name} " in told for name in train.SETTINGS)


def test_a_worker_s_error_keeps_its_reason_and_a_long_tmpdir_is_no_deadlock(tmp_path):
    touch(tmp_path, "v/train/a/0.mp4", "v/train/b/1.mp4", "v/val/a/2.mp4")
    words = ["--data", str(tmp_path / "v"), "--workers", "1", "--batch_size", "2", "--steps", "1",
             "--out", str(tmp_path / "out"), "--device", "cpu"]
    long = str(tmp_path / ("x" * 120))
    os.mkdir(long)
    for more, message in (({}, "10 unusable videos in a row, the first is .*Invalid data"),
                          (dict(TMPDIR=long), "has a name too long")):
        done = subprocess.run(TRAIN + words, capture_output=True, text=True, env=os.environ | more)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert re.search(f"error: .*{message}", done.stderr.splitlines()[-1]), done.stderr


def test_names_that_the_terminal_cannot_show_do_not_end_a_run(videos, tmp_path):
    for split in ("train", "val"):
        for name, source in (("\u8dd1", "aim"), ("plain", "brush hair")):
            shutil.copytree(videos / split / source, tmp_path / "v" / split / name)
    shutil.copy(videos / "val" / "aim" / "0.mp4",
                os.path.join(os.fsencode(tmp_path), b"v/val/plain/caf\xe9.mp4"))
    (tmp_path / "v" / "val" / "\u8dd1" / "bad.mp4").write_bytes(b"")
    words = ["--data", str(tmp_path / "v"), "--workers", "0", "--batch_size", "4", "--steps", "1",
             "--image_size", "32", "--num_frames", "4", "--device", "cpu"]
    done = subprocess.run(TRAIN + words + ["--out=" + str(tmp_path / "out")], capture_output=True,
                          text=True, env=os.environ | dict(PYTHONIOENCODING="cp1252"))
    assert done.returncode == 0 and "7 videos, 1x1 views" in done.stdout, done.stderr
    assert r"\u8dd1" in done.stderr


# --------------------------------------------------- slow: pytest -m slow

@pytest.mark.slow
def test_twenty_kills_at_random_moments_leave_no_trace(videos, tmp_path):
    """Frequent saves: three steps an epoch. The same bits in the end, no epoch twice in the log."""
    words = ["--batch_size", 4, "--epochs", 200, "--views", "1x1"]
    start(small(videos, tmp_path / "one", *words)).communicate()
    rng = random.Random(0)
    two = tmp_path / "two"
    for _ in range(20):
        saved = (two / "last.pt").stat().st_mtime_ns if (two / "last.pt").exists() else 0
        process = start(small(videos, two, *words, *(["--resume"] if saved else [])))
        while process.poll() is None:
            if (two / "last.pt").exists() and (two / "last.pt").stat().st_mtime_ns != saved:
                break
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.5))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    last = start(small(videos, two, *words, "--resume"))
    said = last.communicate()[0]
    assert last.returncode == 0, said
    assert_same_end(tmp_path / "one", two)
    assert logged_steps(two) == [3 * epoch for epoch in range(1, 201)]


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_old_checkpoint_stays(videos, tmp_path):
    """Files are limited to 1 MiB: a checkpoint has 1.8."""
    words = small(videos, tmp_path, "--batch_size", 4, *PLAIN)
    command(*words, "--epochs", 1)
    before = (tmp_path / "last.pt").read_bytes()
    process = start([*words, "--epochs", 1],
                    preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20)))
    said = process.communicate()[0]
    assert process.returncode == 1 and "Traceback" not in said
    message = r"error: .*last.pt could not be written, it needs 1.\d MiB: File too large"
    assert re.search(message, said), said
    assert (tmp_path / "last.pt.old").read_bytes() == before
    assert not (tmp_path / "last.pt.tmp").exists()


@pytest.mark.slow
def test_a_killed_worker_is_one_line_and_the_last_epoch_stays(videos, tmp_path):
    words = small(videos, tmp_path, "--batch_size", 4, "--epochs", 500, "--workers", 2, *PLAIN)
    process = start(words)
    while not (tmp_path / "log.jsonl").exists():
        time.sleep(0.05)
    # The oldest child: those of validation come and go.
    oldest = subprocess.run(["pgrep", "-o", "-P", str(process.pid)], capture_output=True, text=True)
    os.kill(int(oldest.stdout), signal.SIGKILL)
    said = process.communicate()[0]
    assert process.returncode == 1
    assert said.strip().splitlines()[-1].startswith("error: DataLoader worker")
    assert read_checkpoint(tmp_path / "last.pt")["step"] % 3 == 0
