"""
The claims of this repository, each checked against something else: outputs of the released
networks, torch's or Python's own operators, formulas written out slowly, numbers worked by hand.

    pytest -q              the claims, on a CPU, in a minute
    pytest -q -k focal     those about one thing
    pytest -q -m slow      kills, full disks: some minutes more

assets/golden/*.pt hold outputs of the released networks for weights and inputs that `filled` and
`seeded` make again from nothing but names, shapes and seeds, so no weights are shipped.
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
import warnings
import zlib

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in train.py, before torch comes

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import backbone as B
import data as D
import linear_attn as A
import train
from backbone import (MODELS, Baseline, Block, attention_mixers, count_macs, create_model,
                      load_weights, our_names, read_checkpoint)
from focal import SpatioTemporalFocalModulation

HERE = os.path.dirname(os.path.abspath(__file__))
TRAIN = [sys.executable, os.path.join(HERE, "train.py")]
close = torch.testing.assert_close
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # pytest would like its marks listed in a file
    slow = pytest.mark.slow


@pytest.fixture(autouse=True)
def only_when_asked(request):
    """Slow tests run with -m slow only."""
    marked = request.node.get_closest_marker("slow")
    if marked and "slow" not in request.config.getoption("-m"):
        pytest.skip("slow: pytest -m slow")


def golden(name):
    return torch.load(os.path.join(HERE, "assets", "golden", name + ".pt"), weights_only=True)


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
    return {key: float(norm) for key, norm in our_names(model, record["grad_norms"]).items()}


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
    close(model(still), record["logits"], rtol=0, atol=2e-5)


def test_fresh_inflation_leaves_the_temporal_branch_and_swaps_the_head():
    torch.manual_seed(0)
    model = small_focal()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = filled(golden("image_focalnet_tiny")["manifest"])
    done = load_weights(model, state)
    after = model.state_dict()
    assert sorted(done["left_over"]) == ["head.bias", "head.weight"]
    for key in done["fresh"]:
        assert torch.equal(before[key], after[key])
    close(after["layers.0.blocks.0.mixers.0.f.weight"],
          state["layers.0.blocks.0.modulation.f.weight"])


@pytest.mark.parametrize("name, parameters, gmacs", (
    ("focal_t", 49_553_272, 63.00),
    ("focal_s", 88_735_168, 124.33),
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
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 5, 8, dtype=torch.float64)
    joins = dict(multiply=lambda a, b: a * b, add=lambda a, b: a + b,
                 average=lambda a, b: (a + b) / 2)
    for fusion, join in joins.items():
        layer = SpatioTemporalFocalModulation(8, levels, design=design, fusion=fusion).double()
        q, m_s, m_t = slow_focal(layer, x)
        y, maps = layer(x, return_maps=True)
        close(y, layer.proj(q * join(m_s, m_t)))
        close(maps["spatial"], m_s)
        close(maps["temporal"], m_t)


def test_the_other_options_of_the_layer_are_their_formulas():
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 5, 8, dtype=torch.float64)
    project = SpatioTemporalFocalModulation(8, fusion="project").double()
    q, m_s, m_t = slow_focal(project, x)
    close(project(x), project.proj(q * project.fuse(torch.cat([m_s, m_t], -1))))
    normed = SpatioTemporalFocalModulation(8, postln_in_modulation=True).double()
    q, m_s, m_t = slow_focal(normed, x)
    close(normed(x), normed.proj(F.layer_norm(q * m_s * m_t, (8,))))

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


def test_a_normalised_modulator_is_the_mean_over_levels():
    """Without the bias of h, which comes after: L + 1 times as small."""
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 5, 8, dtype=torch.float64)
    whole = SpatioTemporalFocalModulation(8, 3).double()
    torch.nn.init.zeros_(whole.h.bias)
    mean = SpatioTemporalFocalModulation(8, 3, normalize_modulator=True).double()
    mean.load_state_dict(whole.state_dict())
    close(mean(x, True)[1]["spatial"] * 4, whole(x, True)[1]["spatial"])


def test_without_time_the_order_of_frames_does_not_matter_and_with_it_it_does():
    torch.manual_seed(0)
    x = torch.randn(1, 3, 8, 32, 32)
    blind = create_model("focal_toy", 8, 8, 32, temporal=False).eval()
    seeing = create_model("focal_toy", 8, 8, 32).eval()
    close(blind(x), blind(x.flip(2)), rtol=1e-4, atol=1e-6)
    assert (seeing(x) - seeing(x.flip(2))).abs().max() > 1e-3


def test_other_sizes_run_and_sizes_that_the_strides_do_not_divide_raise():
    model = small_focal()
    assert model(torch.randn(1, 3, 3, 32, 96)).shape == (1, 11)
    with pytest.raises(ValueError, match="100 x 64 pixels.*multiples of 32.*nearest is 96 x 64"):
        model(torch.randn(1, 3, 8, 100, 64))


def test_drop_path_acts_per_frame_keeps_the_mean_and_rests_in_eval():
    """As released: a frame of a clip loses the branch, another frame of the same clip keeps it."""
    torch.manual_seed(0)
    block = Block(8, mixers=[], drop_path=0.5, per_frame=True)
    x = torch.randn(64, 8, 2, 2, 8)
    whole = block.eval()(x) - x
    dropped = block.train()(x) - x
    kept = dropped.abs().amax((2, 3, 4)) > 0  # (clips, frames)
    assert 0.42 < kept.float().mean() < 0.58
    assert (kept.any(1) & ~kept.all(1)).sum() > 50
    close(dropped[kept], 2 * whole[kept])

    # In the transformer a clip loses it as a whole.
    block.per_frame = False
    kept = (block.train()(x) - x).abs().amax((2, 3, 4)) > 0
    assert torch.equal(kept.any(1), kept.all(1)) and 0.3 < kept.all(1).float().mean() < 0.7
    assert not create_model("lvt_toy").blocks[0].per_frame

    # The last block has the whole rate, the first one none.
    model = create_model("focal_t", depths=(1, 2), dim=8, drop_path=0.5, image_size=32)
    rates = [block.drop_path for stage in model.layers for block in stage["blocks"]]
    assert rates == [0, 0.25, 0.5]
    assert all(block.per_frame for stage in model.layers for block in stage["blocks"])


# --------------------------------------------------- linear attention

LVT = {
    "lvt_default": dict(),
    "lvt_separate": dict(fixation="qkv"),
    "lvt_baseline": dict(fixation="none", temporal_shift=0, spatial_shift=0),
    "lvt_softmax": dict(kernel="softmax", fixation="none"),
    "lvt_joint": dict(pattern="joint", fixation="none", temporal_shift=0, spatial_shift=0),
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


def test_space_then_time_is_time_then_space_with_the_mixers_swapped():
    """The released weights find their places in either order of the pattern."""
    state = filled(golden("lvt_default")["manifest"])
    one = small_lvt(pattern="time+space")
    two = small_lvt(pattern="space+time")
    load_weights(one, state)
    load_weights(two, state)
    for a, b in zip(one.blocks, two.blocks):
        for i, j in ((0, 1), (1, 0)):
            close(a.mixers[i].qkv.weight, b.mixers[j].qkv.weight)
            close(a.norms[i].weight, b.norms[j].weight)
            assert a.mixers[i].pattern == b.mixers[j].pattern


def test_lvt_parameters_and_multiply_adds():
    """Live parameters (published counts hold an unused layer, 89,262); one view, one gate."""
    for frames, parameters in ((8, 51_919_278), (16, 51_919_278 + 8 * 512)):
        with torch.device("meta"):
            model = create_model("lvt", num_frames=frames)
        assert sum(p.numel() for p in model.parameters()) == parameters

    # By hand, for 16 frames. An attention: qkv and proj, gate, both sums over tokens, normaliser.
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


def own(kernel, N, d=8, dtype=torch.float64):
    """What a kernel takes beside q, k and v."""
    if kernel == "performer":
        return dict(omega=A.orthogonal_features(d, d).to(dtype))
    if kernel == "linformer":
        return dict(E=torch.randn(16, N).to(dtype) / 4, P=torch.randn(16, N).to(dtype) / 4)
    if kernel == "orthoformer":
        return dict(L=6)
    if kernel == "hedgehog":
        return dict(W=torch.randn(d, d).to(dtype) * d**-0.5)
    return {}


@pytest.mark.parametrize("kernel", A.KERNELS)
def test_attention_is_its_explicit_weights(kernel):
    """The N x N matrix that no kernel builds gives the same: (f f^T) v = f (f^T v)."""
    for N in (1, 2, 17):
        q, k, v = qkv64(N)
        extra = own(kernel, N)
        q = A.features(q, kernel)
        k = A.features(k, kernel)
        weights = A.attention_map(kernel, q, k, **extra)
        assert weights.shape == (1, 2, N, N)
        close(A.attend(kernel, q, k, v, **extra), weights @ v, rtol=1e-10, atol=1e-10)
        # A linear kernel's are the products of its features, normalised.
        if kernel in A.FEATURES:
            a = q @ k.mT
            close(weights, a / (a.sum(-1, keepdim=True) + 1e-6), rtol=1e-10, atol=1e-10)
        # Every kernel but two has weights that sum to one; a query without features has none.
        if kernel not in ("linformer", "identity"):
            total = weights.sum(-1)
            some = total[total > 1e-3]
            close(some, torch.ones_like(some), rtol=1e-3, atol=0)


def test_kernels_are_their_formulas_written_out_slowly():
    q, k, v = qkv64(9)
    relu_q = torch.relu(q)
    relu_k = torch.relu(k)
    s = 8**-0.5
    i = torch.arange(1, 10, dtype=torch.float64)
    near = torch.cos(math.pi / 2 * (i[:, None] - i) / 9)
    offsets = s * (relu_q.sum(-1)[..., None] + relu_k.sum(-1)[..., None, :]) + 1  # d s^2 = 1
    weights = dict(
        relu=relu_q @ relu_k.mT + offsets,
        relu_paper=relu_q @ relu_k.mT,
        elu=(F.elu(q) + 1) @ (F.elu(k) + 1).mT,
        sigmoid=q.sigmoid() @ k.sigmoid().mT,
        identity=q @ k.mT,
        cosformer=(relu_q @ relu_k.mT) * near,
        softmax=(q @ k.mT * s).exp(),
    )
    for kernel, a in weights.items():
        total = a.sum(-1, keepdim=True)
        if kernel == "cosformer":
            total = total.clamp(min=1e-6)
        elif kernel != "softmax":
            total = total + 1e-6
        y = A.attend(kernel, A.features(q, kernel), A.features(k, kernel), v)
        close(y, a @ v / total, rtol=1e-10, atol=1e-10)

    E, P = torch.randn(2, 4, 9, dtype=torch.float64)
    y = torch.softmax(q @ (E @ k).mT * s, -1) @ (P @ v)
    close(A.linformer(q, k, v, E, P), y, rtol=1e-10, atol=1e-10)

    # Orthoformer: queries ask few of themselves, which ask the keys.
    few = torch.stack([q[0, h, A.landmarks(q, 4)[0, h]] for h in range(2)])[None] * 8**-0.25
    told = torch.softmax(few @ k.mT * 8**-0.25, -1) @ v
    y = torch.softmax(q * 8**-0.25 @ few.mT, -1) @ told
    close(A.orthoformer(q, k, v, 4), y, rtol=1e-10, atol=1e-10)


def test_kernels_after_the_paper_are_their_formulas_written_out_slowly():
    """The N x N weights of each, from its paper's formula, give the same output."""
    q, k, v = qkv64(9)
    N, d = q.shape[-2:]
    s = d**-0.5
    elu_q = F.elu(q) + 1
    elu_k = F.elu(k) + 1
    t = s * q @ k.mT
    weights = dict()

    # Kernels: products of features, or what is as good as that, normalised.
    def normalised(a):
        return a / a.sum(-1, keepdim=True)
    weights["taylor"] = normalised(1 + t + t**2 / 2)
    spikes = [torch.cat([x.softmax(-1), (-x).softmax(-1)], -1) for x in (q, k)]
    weights["hedgehog"] = normalised(spikes[0] @ spikes[1].mT)
    cubes = [(F.relu(x) + 1e-6)**3 for x in (q, k)]
    lengths = [(F.relu(x) + 1e-6).norm(dim=-1, keepdim=True) for x in (q, k)]
    sharp = [c / c.norm(dim=-1, keepdim=True) * length for c, length in zip(cubes, lengths)]
    a = sharp[0] @ sharp[1].mT
    weights["focused"] = a / (a.sum(-1, keepdim=True) + 1e-6 * math.log(2)**2 * N)
    alpha = N * (s * (elu_q.mean(-2, keepdim=True) @ elu_k.mT)).softmax(-1)  # (.., 1, N)
    weights["rala"] = normalised(alpha * (elu_q @ elu_k.mT))

    # Weights that know the length of a query: the mean, plus what differs from it.
    weights["inline"] = (t - t.mean(-1, keepdim=True) + 1) / N
    z = s * elu_q @ elu_k.mT
    mean = z.mean(-1, keepdim=True)
    weights["mala"] = (1 + 1 / mean) * z / N - mean / N

    # Two softmaxes, over features and tokens, or by way of agents.
    weights["efficient"] = q.softmax(-1) @ k.softmax(-2).mT
    agents = q.unflatten(-2, (3, 3)).mean(-2)
    weights["agent"] = (s * q @ agents.mT).softmax(-1) @ (s * agents @ k.mT).softmax(-1)

    for kernel, a in weights.items():
        extra = dict(agents=agents) if kernel == "agent" else {}
        q_features = A.features(q, kernel)
        k_features = A.features(k, kernel)
        y = A.attend(kernel, q_features, k_features, v, **extra)
        tolerance = 1e-5 if kernel in ("rala", "mala", "taylor", "hedgehog") else 1e-10  # our eps
        close(y, a @ v, rtol=tolerance, atol=tolerance)
    close(A.agent(q, k, v, n=3), A.agent(q, k, v, agents))  # pooled by itself
    assert (weights["inline"] < 0).any() and (weights["mala"] < 0).any()


@pytest.mark.parametrize("kernel", ("rala", "mala", "inline", "focused", "agent", "taylor",
                                    "efficient"))
def test_kernels_after_the_paper_compute_what_their_authors_classes_compute(kernel):
    record = golden("modern_linear")[kernel]
    extra = dict(agents=record["agents"]) if kernel == "agent" else {}
    q = A.features(record["q"], kernel)
    k = A.features(record["k"], kernel)
    close(A.attend(kernel, q, k, record["v"], **extra), record["y"], rtol=0, atol=1e-5)


def test_what_the_kernels_teach():
    """A scalar gate cancels, a gate per feature does not; rank is at most the width of features."""
    q, k, v = qkv64(16)
    fq = A.features(q, "elu")
    fk = A.features(k, "elu")
    y = A.attend("elu", fq, fk, v)
    gate = torch.rand(1, 2, 16, 1, dtype=torch.float64) + 0.5
    close(A.attend("elu", gate * fq, fk, v), y, rtol=1e-6, atol=1e-6)
    per_feature = torch.rand(1, 2, 16, 8, dtype=torch.float64) + 0.5
    assert (A.attend("elu", per_feature * fq, fk, v) - y).abs().max() > 1e-3
    assert torch.linalg.matrix_rank(A.attention_map("elu", fq, fk)).tolist() == [[8, 8]]
    assert torch.linalg.matrix_rank(A.attention_map("softmax", q, k)).tolist() == [[16, 16]]


def test_landmarks_are_chosen_one_by_one_each_the_least_like_those_before():
    q = qkv64(20)[0]
    for h in range(2):
        n = F.normalize(q[0, h], dim=-1)
        chosen = [0]
        while len(chosen) < 7:
            likeness = [max(abs(n[t] @ n[c]).item() for c in chosen) if t not in chosen else 10
                        for t in range(20)]
            chosen.append(int(np.argmin(likeness)))
        assert A.landmarks(q, 7)[0, h].tolist() == sorted(chosen)
    few = qkv64(5)  # fewer tokens than landmarks: all of them
    close(A.orthoformer(*few, 64), A.orthoformer(*few, 5))


def test_performer_is_unbiased_for_the_exponential_of_the_scaled_product():
    """4000 phi(q) . phi(k) average exp(q . k / sqrt d) to 4 standard errors; orthogonal rows."""
    d = 16
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, d, generator=generator, dtype=torch.float64)
    draws = []
    for _ in range(4000):
        omega = A.orthogonal_features(d, d, generator).double()
        both = (omega @ (q + k) * d**-0.25).exp() * (-(q @ q + k @ k) / (2 * d**0.5)).exp()
        draws.append(both.mean())
    draws = torch.stack(draws)
    assert abs(draws.mean() - torch.exp(q @ k / d**0.5)) < 4 * draws.std() / 4000**0.5
    unit = F.normalize(omega, dim=1)
    close(unit @ unit.T, torch.eye(d, dtype=torch.float64), rtol=0, atol=1e-5)

    # The features by their formula: queries have a maximum each, keys share one.
    x = torch.randn(3, d, dtype=torch.float64)
    logits = x * d**-0.25 @ omega.T - (x * d**-0.25).square().sum(-1, keepdim=True) / 2
    for keys, c in ((False, logits.amax(-1, keepdim=True)), (True, logits.max())):
        close(A.performer_features(x, omega, keys), d**-0.5 * ((logits - c).exp() + 1e-4))


def test_linear_attention_counts_operations_in_proportion_to_tokens():
    flops = {}
    for kernel in ("relu", "cosformer", "performer", "softmax"):
        for N in (1000, 2000):
            q, k, v = torch.empty(3, 1, 2, N, 8, device="meta")
            extra = dict(omega=torch.empty(8, 8, device="meta")) if kernel == "performer" else {}
            with FlopCounterMode(display=False) as counter:
                A.attend(kernel, q, k, v, **extra)
            flops[kernel, N] = counter.get_total_flops()
        growth = flops[kernel, 2000] / flops[kernel, 1000]
        assert growth == pytest.approx(4 if kernel == "softmax" else 2, rel=0.01)
    # f(k)^T v, f(q) kv, f(q) . sum; two heads, and a multiply-add counts as two
    assert flops["relu", 1000] == 2 * 2 * 1000 * (2 * 8 * 8 + 8)


@pytest.mark.parametrize("kernel", A.KERNELS)
@pytest.mark.parametrize("N, dtype, scale", (
    (1, torch.float32, 1),
    (70, torch.float32, 0),
    (70, torch.bfloat16, 1e4),
    (70, torch.float16, 0),
    (3136, torch.float16, 1)))
def test_attention_stays_finite_for_zero_huge_and_half_precision_inputs(kernel, N, dtype, scale):
    """
    Values and gradients; fp16 at N = 3136, where a plain normaliser is infinite, is right too.
    """
    if kernel == "identity" and scale:
        return  # signed weights: sums near zero are part of it
    torch.manual_seed(0)
    x = (torch.randn(3, 1, 1, N, 64) * scale).to(dtype).requires_grad_()
    extra = own(kernel, N, d=64, dtype=dtype)
    q = A.features(x[0], kernel)
    k = A.features(x[1], kernel)
    y = A.attend(kernel, q, k, x[2], **extra)
    y.float().square().sum().backward()
    assert y.dtype == dtype and y.isfinite().all() and x.grad.isfinite().all()
    if dtype == torch.float16 and scale and kernel != "orthoformer":  # it may choose others
        extra = {name: value.double() for name, value in extra.items()}
        exact = A.attend(kernel, q.double(), k.double(), x[2].double(), **extra)
        assert (y - exact).norm() / exact.norm() < 0.01


def test_fifty_thousand_tokens_are_finite_in_bf16():
    torch.manual_seed(0)
    x = torch.randn(3, 1, 1, 50_000, 32, dtype=torch.bfloat16, requires_grad=True)
    q = A.features(x[0], "relu")
    k = A.features(x[1], "relu")
    y = A.linear(q, k, x[2])
    y.float().sum().backward()
    exact = A.linear(q.double(), k.double(), x[2].double())
    assert x.grad.isfinite().all()
    assert (y - exact).norm() / exact.norm() < 0.01


def allowed(word, T=4, H=4, W=6, window=(2, 2, 3)):
    """
    bool (N, N): which tokens meet, written down from the definition of a word. A word that is not
    here is checked against its axes: tokens meet that agree in all others.
    """
    t, h, w = torch.meshgrid(torch.arange(T), torch.arange(H), torch.arange(W), indexing="ij")
    places = torch.stack([t, h, w]).flatten(1)  # (3, N)
    size = torch.tensor(window)[:, None]

    def same(values):
        return (values[..., :, None] == values[..., None, :]).all(0)
    inside = places % size
    outside = places // size
    places6 = torch.stack([outside, inside], dim=1).flatten(0, 1)  # as in A.AXES
    rest = [axis for axis in range(6) if axis not in A.AXES[word]]
    known = {
        "joint": torch.ones(T*H*W, T*H*W, dtype=torch.bool),
        "time": same(places[1:]),
        "space": same(places[:1]),
        "height": same(places[[0, 2]]),
        "width": same(places[:2]),
        "window": same(places // size),
        "grid": same(places % size),
    }
    return known[word] if word in known else same(places6[rest])


def dense(layer, x):
    """
    What a layer of one word, or of two that split the heads, computes: all N x N pairs, masked.
    """
    B, T, H, W, C = x.shape
    N = T * H * W
    q, k, v = (part.reshape(B, N, layer.heads, -1).transpose(1, 2)
               for part in layer.qkv(x).chunk(3, -1))
    if layer.kernel == "softmax":
        a = (q @ k.mT * q.shape[-1]**-0.5).exp()
        eps = 0
    else:
        offset = q.shape[-1]**-0.5
        a = (F.relu(q) + offset) @ (F.relu(k) + offset).mT
        eps = 1e-6
    words = layer.pattern.split("|")
    masks = torch.stack([allowed(word, T, H, W, layer.window) for word in words])
    a = a * masks.repeat_interleave(layer.heads // len(words), 0)  # (B, heads, N, N)
    y = a / (a.sum(-1, keepdim=True) + eps) @ v
    return layer.proj(y.transpose(1, 2).reshape(B, T, H, W, C))


PATTERNS = [*A.AXES, "time|space", "window|grid", "time+space", "space+time", "time+height+width",
            "window+grid", "time|space+joint"]


@pytest.mark.parametrize("kernel", ("softmax", "relu"))
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern_is_full_attention_under_a_mask(pattern, kernel):
    """Forward and gradients, float64: the weights of pairs that do not meet are zero."""
    torch.manual_seed(0)
    layers = attention_mixers(8, pattern, 0, 0, heads=2, kernel=kernel, window=(2, 2, 3),
                              fixation="none")
    x = torch.randn(2, 4, 4, 6, 8, dtype=torch.float64, requires_grad=True)
    y = x
    expected = x
    for layer in layers:
        y = y + layer.double()(y)
        expected = expected + dense(layer, expected)
    close(y, expected, rtol=1e-10, atol=1e-10)
    probe = torch.randn_like(y)
    gradients = [torch.autograd.grad((out * probe).sum(), x)[0] for out in (y, expected)]
    close(*gradients, rtol=1e-10, atol=1e-10)


def test_windows_are_what_they_should_be():
    """
    The whole grid as window is joint; a window further in is a window further out; shifts roll.
    """
    torch.manual_seed(0)
    x = torch.randn(1, 4, 4, 6, 8, dtype=torch.float64)
    options = dict(heads=2, fixation="none")
    joint = A.Attention(8, pattern="joint", **options).double()
    whole = A.Attention(8, pattern="window", window=(4, 4, 6), **options).double()
    window = A.Attention(8, pattern="window", window=(2, 2, 3), **options).double()
    shifted = A.Attention(8, pattern="window", window=(2, 2, 3), shifted=True, **options).double()
    for layer in (whole, window, shifted):
        layer.load_state_dict(joint.state_dict())
    close(whole(x), joint(x), rtol=1e-10, atol=1e-10)
    close(window(x.roll((2, 2, 3), (1, 2, 3))), window(x).roll((2, 2, 3), (1, 2, 3)))
    by_hand = window(x.roll((-1, -1, -1), (1, 2, 3))).roll((1, 1, 1), (1, 2, 3))
    close(shifted(x), by_hand)
    assert (shifted(x) - window(x)).abs().max() > 1e-3


@pytest.mark.parametrize("word, kv_pool, window", (
    ("joint", (2, 2, 3), (1, 1, 1)),
    ("space", (1, 2, 1), (1, 1, 1)),
    ("window", (1, 1, 3), (2, 2, 3))))
def test_pooled_keys_and_values_are_means_of_the_tokens_they_stand_for(word, kv_pool, window):
    """
    Means put back in the place of each token that they are of: for a softmax the same average.
    """
    torch.manual_seed(0)
    layer = A.Attention(8, 2, "softmax", word, window=window, kv_pool=kv_pool, fixation="none")
    whole = A.Attention(8, 2, "softmax", word, window=window, fixation="none")
    whole.load_state_dict(layer.state_dict())
    x = torch.randn(1, 4, 4, 6, 8)
    t, h, w = kv_pool

    # The mean of k is k of the mean of x: only queries see the tokens themselves.
    mean = F.avg_pool3d(x.permute(0, 4, 1, 2, 3), kv_pool)
    mean = mean.repeat_interleave(t, 2).repeat_interleave(h, 3).repeat_interleave(w, 4)
    mean = mean.permute(0, 2, 3, 4, 1)
    q = whole.qkv(x)[..., :8].unflatten(-1, (2, 4))
    k, v = (part.unflatten(-1, (2, 4)) for part in whole.qkv(mean)[..., 8:].chunk(2, -1))
    y, _, _ = whole.attend_within(word, q, k, v)
    close(layer(x), whole.proj(y.flatten(-2)))


def test_every_second_block_has_shifted_windows_and_heads_double_with_the_channels():
    model = create_model("lvt_toy", pattern="window", window=(2, 1, 1), shifted=True)
    assert [block.mixers[0].shifted for block in model.blocks] == [False, True]
    model = create_model("focal_toy", mixer="attention")
    assert [stage["blocks"][0].mixers[0].heads for stage in model.layers] == [2, 4]
    assert A.Attention(8, 2, qkv_bias=False).qkv.bias is None


def test_the_transformer_s_dropout_acts_in_training_only_and_its_convolutions_start_as_released():
    torch.manual_seed(0)
    model = create_model("lvt_toy", num_classes=0, dropout=0.5)
    x = torch.randn(1, 3, 8, 64, 64)
    assert not torch.equal(model.train()(x), model(x))
    assert torch.equal(model.eval()(x), model(x))
    head = create_model("lvt_toy", dropout=0.5).head
    assert [layer.p for layer in head if isinstance(layer, torch.nn.Dropout)] == [0.5]
    fan_out = 16 * 16 * 64
    assert model.patch_embed.proj.weight.std().item() == pytest.approx((2 / fan_out)**0.5, rel=0.05)


def test_each_block_may_have_a_pattern_of_its_own():
    for pattern in (["space", "time|space"], "space,time|space"):
        model = create_model("lvt_toy", pattern=pattern, spatial_shift=0)
        assert [[m.pattern for m in block.mixers] for block in model.blocks] == [
            ["space"], ["time|space"]]


def test_shifts_move_what_the_released_code_moves():
    """Temporal: ahead, back, own; zero outside. Spatial: outside, straight zero, diagonal own."""
    torch.manual_seed(0)
    x = torch.randn(1, 4, 3, 5, 96)
    y = A.temporal_shift(x, 4)
    halves = A.temporal_shift(x, 4, span=2)
    zero = torch.zeros(3, 5, 24)
    for t in range(4):
        close(y[0, t, ..., :24], x[0, t + 1, ..., :24] if t < 3 else zero)
        close(y[0, t, ..., 24:48], x[0, t - 1, ..., 24:48] if t > 0 else zero)
        close(halves[0, t, ..., :24], x[0, t + 1, ..., :24] if t % 2 == 0 else zero)
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


def test_shifts_are_crossed():
    """Each attention gets the shift along what it does not see: time the spatial one, and so on."""
    for pattern, shifts in (("time+space", [(0, 1), (4, 0)]), ("joint", [(4, 1)]),
                            ("time+height+width", [(0, 1), (4, 1), (4, 1)])):
        mixers = create_model("lvt_toy", pattern=pattern).blocks[0].mixers
        assert [(m.temporal_shift, m.spatial_shift) for m in mixers] == shifts


def test_space_attention_with_the_temporal_shift_sees_three_frames():
    torch.manual_seed(0)
    layer = A.Attention(16, 2, "softmax", "space", fixation="none", temporal_shift=4)
    x = torch.randn(1, 6, 2, 2, 16, requires_grad=True)
    layer(x)[0, 3].sum().backward()
    seen = x.grad.abs().amax((0, 2, 3, 4)) > 0
    assert seen.tolist() == [False, False, True, True, True, False]


@pytest.mark.parametrize("fixation", A.FIXATIONS[1:])
@pytest.mark.parametrize("by", ("concat", "add", "multiply"))
def test_feature_fixation_is_equations_4_and_5(fixation, by):
    if fixation == "separate" and by != "concat":
        return  # joins nothing
    torch.manual_seed(0)
    q, k, v = F.relu(torch.randn(3, 1, 2, 2, 2, 2, 4)) + 0.5  # (B, T, H, W, heads, d) each
    layer = A.Attention(8, 2, fixation=fixation, fixation_by=by)
    new_q, new_k, _ = layer.gated(q, k, v)
    seen = [q, k, v] if "v" in fixation else [q, k]
    z = dict(concat=torch.cat(seen, -1), add=torch.stack(seen).sum(0),
             multiply=torch.stack(seen).prod(0))[by]
    shared = fixation.endswith("shared")
    for new, old, gate in ((new_q, q, layer.pgate if shared else layer.q_gate),
                           (new_k, k, layer.pgate if shared else layer.k_gate)):
        told = old if fixation == "separate" else z
        close(new, old / (1 + torch.exp(-(told @ gate.weight.T + gate.bias))))


def test_fixation_before_or_after_the_shifts_matters():
    torch.manual_seed(0)
    first = A.Attention(16, 2, temporal_shift=4, spatial_shift=1)
    last = A.Attention(16, 2, temporal_shift=4, spatial_shift=1, shift_first=False)
    last.load_state_dict(first.state_dict())
    x = torch.randn(1, 3, 3, 3, 16)
    assert (first(x) - last(x)).abs().max() > 1e-3


# --------------------------------------------------- baselines, and plain ViTs

def test_baselines_are_torch_s_operators():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 5, 6)
    channels_first = x.permute(0, 4, 1, 2, 3)

    def last(y):
        return y.permute(0, 2, 3, 4, 1)
    dense3d = Baseline(6, "conv3d")
    y = F.conv3d(channels_first, dense3d.conv.weight, dense3d.conv.bias, padding=1)
    close(dense3d(x), last(y))
    split = Baseline(6, "conv2plus1d")
    frames = [F.conv2d(channels_first[:, :, t], split.conv[0].weight[:, :, 0], split.conv[0].bias,
                       padding=1) for t in range(3)]
    y = F.gelu(torch.stack(frames, 2)).permute(0, 3, 4, 1, 2).reshape(40, 6, 3)
    y = F.conv1d(y, split.conv[2].weight[..., 0, 0], split.conv[2].bias, padding=1)
    close(split(x), y.reshape(2, 4, 5, 6, 3).permute(0, 4, 1, 2, 3))
    pooled = Baseline(6, "pool")(x)
    close(pooled[0, 1, 1, 1], x[0, 0:3, 0:3, 0:3].mean((0, 1, 2)) - x[0, 1, 1, 1])
    close(pooled[0, 0, 0, 4], x[0, 0:2, 0:2, 3:5].mean((0, 1, 2)) - x[0, 0, 0, 4])  # a corner


def small_vit(**changes):
    size = dict(num_classes=10, num_frames=4, image_size=64, dim=64, depth=3, heads=2)
    return create_model("vit_s", **size | changes).eval()


@pytest.mark.parametrize("pattern", ("space", "time+space"))
def test_a_vit_with_identity_start_is_timm_s_on_a_still_clip(pattern):
    record = golden("timm_vit")["avg"]
    model = small_vit(pattern=pattern)
    start = "identity" if "time" in pattern else "fresh"
    load_weights(model, filled(record["manifest"]), temporal_init=start)
    image = seeded(record["x_shape"], record["x_seed"])
    still = image[:, :, None].expand(-1, -1, 4, -1, -1)
    close(model(still), record["logits"], rtol=0, atol=2e-5)


def test_a_vit_with_a_class_token_loses_it_and_says_so(capsys):
    state = filled(golden("timm_vit")["token"]["manifest"])
    model = small_vit(image_size=96)
    load_weights(model, state, temporal_init="identity")
    assert "class token dropped" in capsys.readouterr().out

    # The table of positions without its first row, from 4 x 4 to 6 x 6.
    table = state["pos_embed"][:, 1:].reshape(1, 4, 4, 64).permute(0, 3, 1, 2)
    table = F.interpolate(table, (6, 6), mode="bicubic", antialias=True)
    close(model.pos_embed, table.permute(0, 2, 3, 1))


def test_image_weights_start_linear_attention_with_feature_fixation():
    """The paper's idea on weights that exist: gates are fresh, everything else is loaded."""
    state = filled(golden("timm_vit")["token"]["manifest"])
    model = small_vit(kernel="relu", fixation="qkv_shared")
    done = load_weights(model, state)
    assert all("gate" in key or "mixers.0" in key or "norms.0" in key or key == "temp_embed"
               for key in done["fresh"])
    close(model.blocks[1].mixers[1].qkv.weight, state["blocks.1.attn.qkv.weight"])
    with pytest.raises(ValueError, match="missing: blocks.0.mlp.fc1.bias"):
        load_weights(model, {key: value for key, value in state.items()
                             if key != "blocks.0.mlp.fc1.bias"})


@pytest.mark.parametrize("name, c, parameters", (
    ("vit_ti", 192, 7_386_064), ("vit_s", 384, 28_927_504), ("vit_b", 768, 114_477_712)))
def test_vit_parameters_and_multiply_adds(name, c, parameters):
    """
    TimeSformer's 121.4 M and 196 G have a projection of time more, 7.1 M, 11.1 G, and a class
    token.
    """
    with torch.device("meta"):
        model = create_model(name)
    attention = 4*c*c + 4*c + 2*c  # qkv, proj, biases, norm
    mlp = 8*c*c + 5*c + 2*c
    by_hand = 768*c + c + (196 + 8) * c + 12 * (2*attention + mlp) + 2*c + 400 * (c + 1)
    assert sum(p.numel() for p in model.parameters()) == by_hand == parameters
    tokens = 8 * 196
    macs = tokens * (768*c + 12 * (2 * 4*c*c + 8*c*c + 2 * 8*c + 2 * 196*c)) + 400*c
    assert count_macs(model) == macs


# --------------------------------------------------- every option, and what cannot be

OPTIONS = [("focal_toy", options) for options in (
    dict(temporal=False), dict(spatial=False), dict(design="sequential"), dict(design="joint3d"),
    dict(fusion="project"), dict(levels=3), dict(levels=(1, 4)), dict(postln_in_modulation=True),
    dict(normalize_modulator=True), dict(tubelet=2), dict(postln=True, layerscale=True),
    dict(mixer="attention", postln=True, layerscale=True), dict(mixer="conv3d"),
    dict(mixer="conv2plus1d"), dict(mixer="pool"))]
OPTIONS += [("focal_toy", dict(mixer="attention", kernel=kernel, pattern=pattern))
            for kernel in A.KERNELS for pattern in ("time+space", "space", "joint")]
OPTIONS += [("lvt_toy", options) for options in (
    dict(mixer="focal"), dict(pattern="space+time"), dict(pattern="space", spatial_shift=0),
    dict(pattern="joint"), dict(pattern="time+height+width"), dict(fixation="separate"),
    dict(pattern="window+grid", window=(2, 1, 1)), dict(fixation_by="add"),
    dict(pattern="window", window=(2, 3, 3), shifted=True), dict(pattern="time|space"),
    dict(pattern="joint", kv_pool=(2, 1, 1)), dict(pattern=["space", "joint"]),
    dict(pos_embed=True, embed_norm=False, head_hidden=0, qkv_bias=False), dict(mixer="conv3d"),
    dict(kernel="performer"), dict(kernel="linformer"), dict(mlp="plain", temp_embed=False),
    dict(spatial_shift=0, temporal_shift=(8, 2)), dict(drop_path=0.5))]


@pytest.mark.parametrize("name, options", OPTIONS, ids=lambda value: str(value))
def test_every_option_runs_trains_and_keeps_batch_items_apart(name, options):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 32, 32)
    model = create_model(name, 5, 4, 32, **options).eval()
    y = model(x)
    assert y.shape == (2, 5)
    close(y, model(x), rtol=0, atol=0)  # eval() has no dice
    if options.get("kernel") != "identity":  # its sums may be near zero
        close(model(x[:1]), y[:1], rtol=1e-3, atol=1e-4)
        assert y.isfinite().all()
    y.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name, options, message", (
    ("lvt_toy", dict(pattern="space"), "pattern='space' with spatial_shift=1.*spatial_shift=0"),
    ("lvt_toy", dict(pattern="time", spatial_shift=0), "pattern='time' with temporal_shift=4"),
    ("lvt_toy", dict(pattern="sideways"), "pattern='sideways': use one of time, space, joint"),
    ("lvt_toy", dict(pattern="time+sideways"), "pattern='sideways': use one of time"),
    ("lvt_toy", dict(pattern=["space"] * 3), "one pattern, or one for each of 2 blocks"),
    ("lvt_toy", dict(pattern="time|space", heads=1), "splits the heads in 2, heads=1"),
    ("lvt_toy", dict(pattern="joint", shifted=True), "only windows can be shifted"),
    ("lvt_toy", dict(pattern="joint", kv_pool=(2, 2, 2)), "does not divide 8 x 5 x 5 tokens"),
    ("lvt_toy", dict(kv_pool=(2, 1, 1)), "averages over tokens that do not meet"),
    ("lvt_toy", dict(pattern="grid", window=(2, 1, 1), kv_pool=(2, 1, 1)), "that do not meet"),
    ("lvt_toy", dict(pattern="joint", kernel="linformer", kv_pool=(2, 1, 1)), "weights per token"),
    ("lvt_toy", dict(kernel="nonsense"), "kernel='nonsense': use one of relu"),
    ("lvt_toy", dict(heads=5), "heads=5 does not divide"),
    ("lvt_toy", dict(fixation="separate", fixation_by="add"), "joins nothing"),
    ("lvt_toy", dict(fixation_by="magic"), "fixation_by='magic': use one of concat"),
    ("lvt_toy", dict(mlp="nonsense"), "mlp='nonsense'"),
    ("lvt_toy", dict(spatial_shift=2, dim=32), "spatial_shift=2 needs 48 channels"),
    ("lvt_toy", dict(spatial_shift=3), "spatial_shift=3: use one of 0, 1, 2, 4"),
    ("lvt_toy", dict(mixer="nonsense"), "mixer='nonsense'"),
    ("lvt_toy", dict(levels=2), "model lvt_toy has no argument levels; it takes num_classes"),
    ("focal_toy", dict(levels=9), "levels=9: focal modulation here has 1 to 4"),
    ("focal_toy", dict(levels=(1, 2, 3)), "levels=.*one number, or one for each of 2 stages"),
    ("focal_toy", dict(windows=4), "window=4: a kernel must be odd"),
    ("focal_toy", dict(design="upside"), "design='upside'"),
    ("focal_toy", dict(fusion="magic"), "fusion='magic'"),
    ("focal_toy", dict(temporal=False, spatial=False), "no context to modulate with"),
    ("focal_toy", dict(temporal=False, fusion="add"), "needs both branches"),
    ("focal_toy", dict(design="joint3d", fusion="add"), "there is nothing to fuse"),
    ("focal_toy", dict(kernel="softmax"), "kernel: means nothing to model focal_toy"),
    ("focal_toy", dict(tubelet=2, conv_embed=True, patch=4), "tubelet=2 with conv_embed=True"),
    ("focal_toy", dict(tubelet=2, num_frames=7), "7 frames: this network takes multiples of 2"),
    ("focal_toy", dict(image_size=50), "50 x 50 pixels: .*multiples of 16.*nearest is 48 x 48"),
    ("focal_toy", dict(weight_init="nonsense"), "weight_init='nonsense'"),
    ("focal_toy", dict(dim=0), "dim=0: must be a whole number from 1 on"),
    ("focal_toy", dict(depths=3), "depths=3: must be whole numbers from 1 on, as in 1,2"),
    ("focal_toy", dict(depths=()), "depths=.*must be whole numbers from 1 on"),
    ("focal_toy", dict(temporal="no"), "temporal='no': must be True or False"),
    ("focal_toy", dict(drop_path=2), "drop_path=2: must be a number from 0 to below 1"),
    ("resnet", dict(), "no model 'resnet'; there are focal_t, focal_s")))
def test_networks_that_cannot_be_raise_with_the_value_and_the_rule(name, options, message):
    with pytest.raises(ValueError, match=message):
        create_model(name, **options)


def test_clips_that_do_not_fit_raise_with_the_rule():
    with pytest.raises(ValueError, match="4 frames: the temporal embedding has 8"):
        small_lvt()(torch.randn(1, 3, 4, 56, 56))
    with pytest.raises(ValueError, match="9 tokens: kernel='linformer' was made for 25"):
        create_model("lvt_toy", kernel="linformer")(torch.randn(1, 3, 8, 32, 32))


def test_a_name_that_no_table_knows_raises_everywhere():
    q, k, v = qkv64(4)
    for act in (lambda: A.features(q, "nonsense"), lambda: A.attend("nonsense", q, k, v),
                lambda: A.attention_map("nonsense", q, k)):
        with pytest.raises(ValueError, match="kernel='nonsense': use one of relu"):
            act()
    with pytest.raises(ValueError, match="pattern='nonsense': use one of time"):
        A.group(torch.zeros(1, 2, 2, 2, 1, 4), "nonsense")
    cfg = settings(sampling="nonsense", crop="nonsense", optimizer="nonsense")
    with pytest.raises(ValueError, match="sampling='nonsense'"):
        D.choose_frames(10, cfg)
    with pytest.raises(ValueError, match="crop='nonsense'"):
        D.training_box(10, 10, cfg, None)
    with pytest.raises(ValueError, match="optimizer='nonsense'"):
        train.make_optimizer(torch.nn.Linear(2, 2), cfg, 0.1)


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


def test_checkpoints_that_are_damaged_or_hold_code_are_refused(tmp_path, capfd):
    path = tmp_path / "a.pt"
    torch.save({"model": Evil()}, path)
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        read_checkpoint(path)
    assert "must not run" not in capfd.readouterr().out

    # One bit of one weight.
    torch.save({"model": {"w": torch.arange(1000.)}}, path)
    blob = bytearray(path.read_bytes())
    blob[len(blob) // 2] ^= 1
    path.write_bytes(blob)
    with pytest.raises(ValueError, match="checksum"):
        read_checkpoint(path)
    path.write_bytes(blob[:2000])
    with pytest.raises(ValueError, match="cannot be read"):
        read_checkpoint(path)


def test_weights_that_do_not_fit_name_what_is_wrong():
    model = small_focal()
    state = filled(golden("focal_tiny")["manifest"])
    lost = {key: value for key, value in state.items()
            if key != "layers.3.blocks.0.modulation.h.bias"}
    with pytest.raises(ValueError, match="missing: layers.3.blocks.0.mixers.0.h.bias"):
        load_weights(model, lost)
    with pytest.raises(ValueError, match="unexpected: extra"):
        load_weights(model, state | {"extra": torch.ones(1)})
    with pytest.raises(ValueError, match=r"patch_embed.proj.weight is \(32, 3, 4, 4\) there "
                                         r"and \(64, 3, 4, 4\)"):
        load_weights(small_focal(dim=64), state)
    with pytest.raises(ValueError, match="is no image network"):
        load_weights(model, state, temporal_init="identity")

    # Our own names are known, too.
    copy = small_focal()
    load_weights(copy, {"model": model.state_dict()})
    close(copy.state_dict(), model.state_dict())


# --------------------------------------------------- sampling, cropping, colours

def settings(**changes):
    """The settings of a Video-FocalNet on Kinetics as the command line makes them, but small."""
    _, _, base = train.base_settings("focal_toy", "k400")
    size = dict(num_frames=4, image_size=32)
    here = dict(device="cpu", dtype="float32", workers=0, rank=0, world=1)
    return base | size | here | changes


def test_frame_numbers_are_those_worked_by_hand():
    """Of a video of n frames; a = (n - interval + 1) / T, or n / T."""
    dense = settings(sampling="dense", interval=4, num_frames=8)
    for indices, by_hand in (
            # a = 297/8: floor(i a + a/2)
            (D.sample_val(300, 8, 4), [18, 55, 92, 129, 167, 204, 241, 278]),
            (D.sample_val(3, 8, 4), [0] * 8),
            # too short for segments: around(i 2/8), half to even
            (D.sample_train(5, 8, 4, None), [0, 0, 0, 1, 1, 1, 2, 2]),
            (D.sample_train(8, 8, 4, None), [0, 1, 1, 2, 2, 3, 4, 4]),
            # a = 37.5: clip v takes floor(37.5 i + (v + .5) 37.5/4)
            (D.sample_test(300, 8, 4)[0], [4, 42, 79, 117, 154, 192, 229, 267]),
            (D.sample_test(300, 8, 4)[3], [32, 70, 107, 145, 182, 220, 257, 295]),
            (D.sample_test(1, 8, 4)[3], [0] * 8),
            # segments of 49/8, rounded half to even, [0 6 12 18 24 31 37 43 49]: middles, starts
            (D.sample_tsn(50, 8), [3, 9, 15, 21, 27, 34, 40, 46]),
            (D.sample_tsn(50, 8, clip=1), [0, 6, 12, 18, 24, 31, 37, 43]),
            # 31/7 apart; the last one is over at 19
            (D.sample_dense(300, 8, 4, 0), [0, 4, 8, 13, 17, 22, 26, 31]),
            (D.sample_dense(300, 8, 4, 1), [268, 272, 276, 281, 285, 290, 294, 299]),
            (D.sample_dense(20, 8, 4, 0.9), [0, 4, 8, 13, 17, 19, 19, 19]),
            # four test clips of windows of 32 start at (556 - 32) v/4
            (D.choose_frames(556, dense, clips=4)[::8], [0, 131, 262, 393]),
            # in training's validation in the middle, 134 to 165
            (D.choose_frames(300, dense), [134, 138, 142, 147, 151, 156, 160, 165]),
            # TSN's two test clips: middles, then starts
            (D.choose_frames(50, settings(sampling="tsn", num_frames=8), clips=2),
             [3, 9, 15, 21, 27, 34, 40, 46, 0, 6, 12, 18, 24, 31, 37, 43])):
        assert list(indices) == by_hand


def test_random_frame_numbers_stay_in_their_segments():
    drawn = np.stack([D.sample_train(300, 8, 4, np.random.default_rng(k)) for k in range(500)])
    assert drawn.min(0).tolist() == [37 * i for i in range(8)]  # (300 - 3) // 8 = 37
    assert drawn.max(0).tolist() == [37 * i + 36 for i in range(8)]
    ten = D.sample_train(10, 8, 4, np.random.default_rng(0))  # too short for segments
    assert (np.diff(ten) >= 0).all() and ten.max() < 7

    # TSN's segments share their ends.
    drawn = np.array([D.sample_tsn(50, 8, np.random.default_rng(k)) for k in range(1000)])
    assert drawn.min(0).tolist() == [0, 6, 12, 18, 24, 31, 37, 43]
    assert drawn.max(0).tolist() == [6, 12, 18, 24, 31, 37, 43, 49]


def test_crops_are_those_worked_by_hand():
    assert D.crop_offsets(256, 341, 224, 1) == [(16, 58)]
    assert D.crop_offsets(224, 299, 224, 3) == [(0, 0), (0, 37), (0, 74)]  # never sees column 298
    assert D.crop_offsets(400, 224, 224, 3) == [(0, 0), (88, 0), (176, 0)]

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
    boxes = {D.multi_scale_box(256, 340, np.random.default_rng(k)) for k in range(5000)}
    sides = (256, 224, 192, 168)
    assert {box[2:] for box in boxes} == {
        (sides[i], sides[j]) for i in range(4) for j in range(4) if abs(i - j) < 2}
    assert {box[:2] for box in boxes if box[2:] == (192, 168)} == {
        (0, 0), (0, 172), (64, 0), (64, 172), (32, 86), (32, 0), (32, 172), (64, 86), (0, 86),
        (16, 43), (16, 129), (48, 43), (48, 129)}

    # The transformer's: 224 of a short side of 256 to 320.
    cfg = settings(crop="short_side", crop_range=(256/224, 320/224))
    drawn = [D.training_box(256, 340, cfg, np.random.default_rng(k))[2] for k in range(500)]
    assert min(drawn) in (179, 180, 181) and max(drawn) in (223, 224)


def test_colour_jitter_is_what_python_and_torch_compute_pixel_by_pixel():
    torch.manual_seed(0)
    x = torch.rand(2, 3, 2, 3, 4, dtype=torch.float64)
    x[0, :, 0, 0, 0] = 0.5  # a grey pixel has no hue
    luma = (x * torch.tensor([.299, .587, .114], dtype=torch.float64).view(1, 3, 1, 1, 1)
            ).sum(1, keepdim=True)

    def jittered(brightness=1., contrast=1., saturation=1., hue=0.):
        row = torch.tensor([brightness, contrast, saturation, hue], dtype=torch.float64)
        return D.colour_jitter(x, row.expand(2, 2, 4))
    close(jittered(), x)
    close(jittered(brightness=1.3), (1.3 * x).clamp(0, 1))
    close(jittered(contrast=.7), .7 * x + .3 * luma.mean((-2, -1), keepdim=True))
    close(jittered(saturation=.8), .8 * x + .2 * luma)

    # Contrast comes before saturation, which shows where they clamp.
    first = jittered(contrast=3.)
    grey = (first * torch.tensor([.299, .587, .114], dtype=torch.float64).view(1, 3, 1, 1, 1)
            ).sum(1, keepdim=True)
    close(jittered(contrast=3., saturation=2.), (2 * first - grey).clamp(0, 1))
    assert (first == 1).any() and (2 * first - grey > 1).any()

    turned = jittered(hue=0.1)
    for b, t, i, j in np.ndindex(2, 2, 3, 4):
        h, s, v = colorsys.rgb_to_hsv(*x[b, :, t, i, j].tolist())
        rgb = colorsys.hsv_to_rgb((h + 0.1) % 1, s, v)
        close(turned[b, :, t, i, j], torch.tensor(rgb, dtype=torch.float64))


def test_preparing_a_batch_flips_the_width_greys_and_normalises():
    clip = torch.randint(0, 256, (2, 2, 3, 4, 3), dtype=torch.uint8)  # (B, T, H, W, 3)
    batch = dict(clip=clip, flip=torch.tensor([True, False]), grey=torch.tensor([False, True]),
                 colour=torch.tensor([1., 1., 1., 0.]).expand(2, 2, 4))
    x = D.prepare(batch, settings())
    mean = np.array([123.675, 116.28, 103.53])
    std = np.array([58.395, 57.12, 57.375])
    flipped = (clip[0].numpy()[:, :, ::-1].astype(float) - mean) / std
    close(x[0], torch.tensor(flipped.transpose(3, 0, 1, 2).copy(), dtype=torch.float32))
    grey = clip[1].numpy() @ np.array([.299, .587, .114])
    close(x[1, 1], torch.tensor((grey - mean[1]) / std[1], dtype=torch.float32))


def test_erasing_blanks_one_box_in_all_frames():
    boxes = np.array([D.erase_box(224, 160, np.random.default_rng(k), 0.5) for k in range(2000)])
    erased = boxes[boxes[:, 2] > 0]
    shares = erased[:, 2] * erased[:, 3] / 224 / 160
    aspects = erased[:, 2] / erased[:, 3]
    assert 0.45 < len(erased) / 2000 < 0.55
    assert 0.018 < shares.min() < 0.04 and 0.3 < shares.max() < 0.34
    assert 0.28 < aspects.min() < 0.4 and 2.7 < aspects.max() < 3.5

    clip = torch.randint(0, 256, (2, 3, 8, 8, 3), dtype=torch.uint8)
    cfg = settings(erase=0.5)
    x = D.prepare(dict(clip=clip, erase=torch.tensor([[2, 1, 3, 4], [0, 0, 0, 0]])), cfg)
    whole = D.prepare(dict(clip=clip), cfg)
    assert (x[0, :, :, 2:5, 1:5] == 0).all() and torch.equal(x[1], whole[1])
    x[0, :, :, 2:5, 1:5] = whole[0, :, :, 2:5, 1:5]
    assert torch.equal(x, whole)


def test_autoaugment_does_the_same_to_all_frames_and_every_pair_runs():
    pytest.importorskip("PIL")
    still = torch.randint(0, 256, (1, 40, 56, 3), dtype=torch.uint8).expand(3, -1, -1, -1)
    changed = 0
    for seed in range(60):
        out = D.auto_augment(still, np.random.default_rng(seed))
        assert torch.equal(out, out[:1].expand_as(out)) and out.dtype == torch.uint8
        changed += not torch.equal(out, still)
    assert 40 < changed < 60
    for (name, _, level), sign in zip(sum(D.AUTO_AUGMENT, []), [1, -1] * 25):
        from PIL import Image
        image = D.augment(Image.fromarray(still[0].numpy()), name, level, sign)
        assert image.size == (56, 40)


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
    keys = [(D.WEIGHTS, s) for s in small] + [(D.TOY, s, split) for s in small for split in (0, 1)]
    keys += [(D.ORDER, s, e) for s in small for e in small]
    keys += [(D.SAMPLE, s, e, i) for s in small for e in small for i in small]
    keys += [(D.STEP, s, t, k, r) for s in small for t in small for k in small for r in small]
    first = [int(D.generator(*key).integers(2**62)) for key in keys]
    assert len(set(first)) == len(keys) == 348


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


@pytest.mark.parametrize("name, codec, options", (
    ("b_frames.mp4", "libx264", dict(g="250", bf="3", crf="10")),
    ("short_gop.mp4", "libx264", dict(g="12", crf="10")),
    ("vp9.webm", "libvpx-vp9", dict(crf="10", lag_in_frames="0")),
    ("packed.avi", "mpeg4", dict(qmin="2", qmax="2", bf="2")),
    ("h265.mkv", "libx265", {"x265-params": "log-level=none:crf=10"})))
def test_decoding_gives_the_frames_that_were_asked_for(tmp_path, monkeypatch, name, codec, options):
    """And decodes everything only where it has to, in avi."""
    def forbidden(path):
        raise AssertionError("decoded everything to get a few frames")
    if name != "packed.avi":
        monkeypatch.setattr(D, "every_frame", forbidden)
    path = str(tmp_path / name)
    write_video(path, stairs(40), codec, **options)
    for wanted in ([0, 39], [30], [38, 3, 3, 30, 12, 13, 14], list(range(40))):
        seen = []
        clip = D.read_clip(path, lambda n: seen.append(n) or wanted)
        assert seen == [40]
        assert clip.shape == (len(wanted), 48, 64, 3) and clip.dtype == torch.uint8
        wrong = np.abs(levels_of(clip) - (20 + 5 * np.array(wanted)))
        assert wrong.max() < 2.5  # neighbours differ by 5
    for short_side, shape in ((24, (1, 24, 32, 3)), (26, (1, 26, 35, 3))):  # 34.67 is 35
        assert D.read_clip(path, lambda n: [0], short_side).shape == shape


def test_phone_videos_come_upright(tmp_path):
    """A quarter turn beside the pixels, put into the mp4's track header by hand (3 x 3 matrix)."""
    write_video(tmp_path / "flat.mp4", stairs(8), crf="10")
    blob = bytearray((tmp_path / "flat.mp4").read_bytes())
    at = blob.index(b"tkhd") + 4 + 40  # the matrix, in 16.16 fixed point
    clockwise = np.array([0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30], ">i4")
    blob[at:at+36] = clockwise.tobytes()
    (tmp_path / "turned.mp4").write_bytes(blob)
    flat = D.read_clip(str(tmp_path / "flat.mp4"), lambda n: [3])
    turned = D.read_clip(str(tmp_path / "turned.mp4"), lambda n: [3])
    close(turned[0], torch.rot90(flat[0], -1))


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
            D.read_clip(str(tmp_path / f"{name}.mp4"), lambda n: [0])


def test_a_damaged_stretch_is_filled_with_the_nearest_good_frames_and_counted(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, stairs(40), g="10", bf="0", crf="10")
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    blob = bytearray(path.read_bytes())
    for pos, size in packets[20:26]:
        blob[pos:pos+size] = bytes(size)  # six frames of zeros
    path.write_bytes(blob)
    with pytest.warns(UserWarning, match=r"a.mp4: 6 of 40 frames do not decode"):
        clip = D.read_clip(str(path), lambda n: range(n))
    levels = levels_of(clip)
    assert len(clip) == 40 and abs(levels[21] - levels[19]) < 1 and abs(levels[10] - 70) < 2.5
    with pytest.warns(UserWarning, match="2 of 4 frames"):  # half of them is not too many
        assert len(D.read_clip(str(path), lambda n: [0, 10, 21, 22])) == 4
    with pytest.raises(D.BadVideo, match="4 of 6 frames do not decode"):
        D.read_clip(str(path), lambda n: [0, 20, 21, 22, 23, 39])


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


def opened(data, root="", splits=("train", "val")):
    return D.open_data(settings(data=str(data), root=str(root)), splits)


def test_kinetics_csv_finds_files_by_their_id_and_counts_the_rest(videos, tmp_path, capsys):
    """As the CVDF scripts leave it: flat, quoted labels, ids with _ and -, gone or unlisted."""
    source = sorted(str(path) for path in videos.glob("train/*/*.mp4"))
    rows = {"train": ['"zip, unzip",-_3_lodo2M1,59', "abseiling,a-b_c-d_e-f,4",
                      '"zip, unzip",gone_gone_1,0'],
            "val": ["abseiling,vvvvvvvvvv1,7", "walking (someone's dog),vvvvvvvvvv2,7"]}
    os.makedirs(tmp_path / "annotations")
    for split, lines in rows.items():
        os.makedirs(tmp_path / split)
        table = ["label,youtube_id,time_start,time_end,split,is_cc"]
        for line in lines:
            _, key, start = line.rsplit(",", 2)
            table.append(f"{line},{int(start) + 10},{split},0")
            if not key.startswith("gone"):
                name = f"{key}_{int(start):06d}_{int(start) + 10:06d}.mp4"
                shutil.copy(source[0], tmp_path / split / name)
        (tmp_path / "annotations" / f"{split}.csv").write_text("\n".join(table) + "\n")
    shutil.copy(source[0], tmp_path / "train" / "no_row_here_000001_000011.mp4")
    repaired = tmp_path / "replacement" / "replacement_for_corrupted_k400"
    os.makedirs(repaired)
    shutil.copy(source[1], repaired / "a-b_c-d_e-f_000004_000014.mp4")

    sets = opened("k400", tmp_path)
    said = capsys.readouterr().out
    assert "lists 3 videos, 2 are there, 1 missing, 1 more have no label" in said
    assert sets["train"].classes == ["abseiling", "walking (someone's dog)", "zip, unzip"]
    assert sets["train"].labels == [2, 0] and sets["val"].labels == [0, 1]
    assert "-_3_lodo2M1" in sets["train"].clips[0]
    assert sets["train"].clips[1].startswith(str(repaired))


def test_class_folders_and_list_files(videos, tmp_path):
    sets = opened(videos)
    assert sets["train"].classes == ["aim", "brush hair"]
    assert sorted(sets["train"].labels) == [0] * 6 + [1] * 6

    # Lists: a space or a comma before the label, either in the path as well.
    (tmp_path / "my_train.txt").write_text(
        "train/aim/0.mp4 2\ntrain/brush hair/1.mp4 0\ntrain/brush hair/3.mp4,1\n")
    (tmp_path / "my_val.txt").write_text("val/aim/0.mp4,1\nval/aim/missing.mp4,0\n")
    sets = opened(tmp_path / "my_train.txt", videos)
    assert sets["train"].labels == [2, 0, 1] and sets["val"].labels == [1]
    assert len(sets["val"].classes) == 3

    # Folders with official names have the official indices; litter of archives is no video.
    for folder in ("abseiling", "air_drumming", "zumba"):
        for split in ("train", "val"):
            os.makedirs(tmp_path / split / folder)
            shutil.copy(videos / "val" / "aim" / "0.mp4", tmp_path / split / folder)
            (tmp_path / split / folder / "._0.mp4").write_bytes(b"litter")
    sets = opened("k400", tmp_path, ["val"])
    assert sets["val"].labels == [0, 1, 399] and len(sets["val"].classes) == 400


def test_a_sample_depends_on_seed_epoch_and_index_only(videos):
    """Not on the worker that loads it, nor on the process, nor on what was loaded before."""
    data = opened(videos)["train"]
    whole = keys_of(12, 6, batch_size=4)
    alone = {key: data[key] for batch in reversed(whole) for key in batch}
    for workers in (0, 2):
        for keys, batch in zip(whole, D.loader(data, whole, settings(workers=workers))):
            for k, key in enumerate(keys):
                for name in ("clip", "colour"):
                    assert torch.equal(batch[name][k], alone[key][name])
    assert not torch.equal(data[0, 5]["clip"], data[1, 5]["clip"])  # another epoch, another crop


def keys_of(n, last, first=0, **cfg):
    """The batches of a run's steps, one after the other, of n samples."""
    steps = D.step_keys(n, settings(**cfg), first, last)
    return [batch for step in steps for batch in step]


def test_the_order_of_an_epoch_is_one_permutation_whoever_reads_it():
    whole = keys_of(12, 6, batch_size=4)
    halves = [keys_of(12, 6, batch_size=2, rank=rank, world=2) for rank in (0, 1)]
    assert [a + b for a, b in zip(*halves)] == whole  # two processes share a batch
    assert keys_of(12, 6, first=4, batch_size=4) == whole[4:]  # a resume sees what comes next
    assert sorted(i for batch in whole[:3] for _, i in batch) == list(range(12))
    first = [i for batch in whole[:3] for _, i in batch]
    assert first != [i for batch in whole[3:] for _, i in batch]


def test_augmentation_is_drawn_as_often_as_the_settings_say(monkeypatch):
    pytest.importorskip("PIL")
    clips = torch.randint(0, 256, (1, 4, 32, 32, 3), dtype=torch.uint8).repeat(200, 1, 1, 1, 1)
    off = dict(crop="none", jitter=0.0, flip=0.0, grey=0.0, sampling="dense", interval=1)

    def samples(n=200, **changes):
        data = D.VideoSet(clips, [0] * 200, ["x"], settings(**off | changes))
        return [data[0, i] for i in range(n)]
    assert {(s["grey"], s["flip"]) for s in samples(20, grey=1.0)} == {(True, False)}
    assert {(s["grey"], s["flip"]) for s in samples(20, flip=1.0)} == {(False, True)}
    still = torch.tensor([1., 1., 1., 0.])
    jittered = [not torch.equal(s["colour"], still.expand(4, 4)) for s in samples(jitter=0.3)]
    assert 0.2 < np.mean(jittered) < 0.4
    for per_frame, rows in ((True, 4), (False, 1)):
        sample = samples(1, jitter=1.0, jitter_per_frame=per_frame)[0]
        assert len(sample["colour"].unique(dim=0)) == rows
    pairs = zip(samples(10), samples(10, auto_augment=True))
    assert any(not torch.equal(a["clip"], b["clip"]) for a, b in pairs)

    # As released: one crop is cut from a frame with short side 256 for 224, three from 224.
    asked = []

    def record(path, choose, short_side):
        asked.append(short_side)
        return torch.zeros(4, 40, 40, 3, dtype=torch.uint8)
    monkeypatch.setattr(D, "read_clip", record)
    for views in ("1x1", "1x3"):
        D.VideoSet(["x.mp4"], [0], ["x"], settings(), views=views)[0, 0]
    assert asked == [36, 32]


def test_the_stream_yields_the_batches_of_a_step():
    """
    7 batches of 2 clips in an epoch, 3 a step: 3, 3, 1 | 3, 3, 1; a resume goes on with step 4.
    """
    clips = torch.zeros(15, 4, 8, 8, 3, dtype=torch.uint8)
    cfg = settings(batch_size=2, accumulate=3, image_size=8)
    data = D.VideoSet(clips, [0] * 15, ["x"], cfg)
    steps = [[batch["index"].tolist() for batch in step] for step in D.stream(data, cfg, 0, 6)]
    assert [len(step) for step in steps] == [3, 3, 1, 3, 3, 1]
    keys = [[i for _, i in batch] for batch in keys_of(15, 14, batch_size=2)]
    assert sum(steps, []) == keys
    late = [[batch["index"].tolist() for batch in step] for step in D.stream(data, cfg, 4, 6)]
    assert late == steps[4:]


def test_a_change_in_the_last_frames_reaches_the_last_test_clip_only(tmp_path):
    """300 frames, 8 x 4 views: only clip 3 looks at frames after 290 (295); clips interleave."""
    blocks = np.random.default_rng(0).integers(0, 256, (300, 4, 5, 3))
    frames = np.kron(blocks, np.ones((1, 8, 8, 1))).astype(np.uint8)
    changed = frames.copy()
    changed[291:] = 255 - changed[291:]  # the last 3 %
    torch.manual_seed(0)
    model = create_model("focal_toy", 5, 8, 32).eval()
    cfg = settings(num_frames=8)
    logits = []
    for name, content in (("a.mp4", frames), ("b.mp4", changed)):
        path = str(tmp_path / name)
        write_video(path, content, g="1", qp="10")  # every frame on its own
        data = D.VideoSet([path], [0], ["x"], cfg, views="4x3")
        batch = torch.utils.data.default_collate([data[0, 0]])
        logits.append(model(D.prepare(batch, cfg)))
    differs = (logits[0] - logits[1]).abs().amax(1).view(3, 4) > 0  # views are crop x clip
    assert differs.tolist() == [[False, False, False, True]] * 3


def test_bad_training_videos_are_named_and_replaced_by_the_same_sample_every_time(videos, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"")
    files = sorted(str(path) for path in videos.glob("train/*/*.mp4"))
    data = D.VideoSet([str(bad)] + files, [0] + [1] * 12, ["a", "b"], settings())
    sample = data[3, 0]
    assert "bad.mp4" in sample["bad"] and sample["label"] == 1
    assert torch.equal(sample["clip"], data[3, 0]["clip"])
    assert data[3, 1]["bad"] == ""
    nothing = D.VideoSet([str(bad)], [0], ["a"], settings())
    with pytest.raises(D.BadVideo, match="10 unusable videos in a row"):
        nothing[0, 0]


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
    """Judged from the masks alone."""
    _, labels, masks = D.toy_clips(200, seed=3)
    judged = torch.tensor([class_by_eye(mask) for mask in masks])
    reverse = torch.tensor([class_by_eye(mask.flip(0)) for mask in masks])
    assert (judged == labels).float().mean() > 0.97
    assert (reverse == labels ^ 1).float().mean() > 0.97
    names = [(D.TOY_CLASSES[c], D.TOY_CLASSES[c ^ 1]) for c in range(0, 8, 2)]
    assert names == [("left", "right"), ("up", "down"), ("clockwise", "anticlockwise"),
                     ("grow", "shrink")]


def test_no_network_that_is_blind_to_order_passes_half_of_the_toy_validation():
    """Each clip has its reversal under the partner's label: same answers are wrong on one."""
    clips, labels = D.toy_split("val", seed=0)
    assert len(clips) == 512 and labels.bincount().tolist() == [64] * 8
    assert torch.equal(clips[:256].flip(1), clips[256:])
    assert torch.equal(labels[:256] ^ 1, labels[256:])
    assert not torch.equal(D.toy_split("val", seed=1)[0], clips)


# --------------------------------------------------- the loop

def command(*words):
    """`python train.py words` in this process -> its exit: 0, a number, or the text of an error."""
    with pytest.raises(SystemExit) as stopped:
        train.main([str(word) for word in words])
    return stopped.value.code


def small(videos, out, *words):
    """A run that takes a second: 12 videos, 4 frames of 32 x 32, focal_toy, Kinetics' recipe."""
    return ["--data", "k400", "--root", videos, "--model", "focal_toy", "--image_size", 32,
            "--num_frames", 4, "--workers", 0, "--out", out, "--device", "cpu", *words]


PLAIN = ["--mixup", 0, "--cutmix", 0, "--views", "1x1"]


def test_learning_rate_at_start_seam_and_end():
    """By hand, 100 steps, 20 of warm-up: a line, then a cosine from the peak: no jump there."""
    rates = [train.lr_at(step, 100, 20, 0.1, 0.001, 0.01) for step in range(101)]
    for step, by_hand in ((0, 0.001), (10, 0.0505), (19, 0.09505), (20, 0.1), (60, 0.055),
                          (100, 0.01)):
        assert rates[step] == pytest.approx(by_hand)
    assert max(rates) == 0.1 and rates[21] > 0.0999
    assert train.lr_at(0, 10, 0, 0.1, 0.5, 0.0) == 0.1


def test_training_is_sgd_with_nesterov_momentum_worked_out_slowly(videos, tmp_path):
    """Windows of 4, then 2 batches of 2 (divided by 2), warm-up, scaled lr, clipping, smoothing."""
    assert command(*small(videos, tmp_path, "--batch_size", 2, "--accumulate", 4, "--epochs", 2,
                          "--clip_grad", 6, *PLAIN)) == 0
    done = read_checkpoint(tmp_path / "last.pt")
    cfg = settings(data=str(videos))
    torch.manual_seed(D.torch_seed(D.generator(D.WEIGHTS, 0)))
    model = create_model("focal_toy", 2, 4, 32)
    parameters = list(model.parameters())
    speed = [torch.zeros_like(p) for p in parameters]
    data = opened(videos)["train"]
    keys = [key for batch in keys_of(12, 12, batch_size=2) for key in batch]

    # The rate by hand: 8 of 512 clips; round(4 steps * 20/120) = 1 warms up.
    peak = 0.1 * 8 / 512
    low = peak * 0.01
    rates = [low] + [low + (peak - low) / 2 * (1 + math.cos(math.pi * s / 3)) for s in range(3)]
    for lr, (a, b) in zip(rates, ((0, 8), (8, 12), (12, 20), (20, 24))):
        batch = torch.utils.data.default_collate([data[key] for key in keys[a:b]])
        logs = model(D.prepare(batch, cfg)).log_softmax(-1)
        right = logs[range(b - a), batch["label"]]
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
    assert done["step"] == 4 and done["classes"] == ["aim", "brush hair"]


def test_adamw_lets_matrices_decay_and_nothing_else():
    """With a gradient of zero, a step shrinks matrices by lr * weight_decay and leaves the rest."""
    model = create_model("lvt_toy", 5, 4, 32)
    torch.nn.init.ones_(model.temp_embed)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    cfg = settings(optimizer="adamw", weight_decay=0.5)
    optimizer = train.make_optimizer(model, cfg, 0.1)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        norm_or_bias = p.ndim == 1
        kept = norm_or_bias or name == "temp_embed"
        close(p.detach(), before[name] * (1 if kept else 1 - 0.1 * 0.5))


def test_accumulation_and_processes_do_not_change_the_result(videos, tmp_path):
    """A batch of 4 = 4 accumulated batches of 1 = 2 processes with 2 each; evaluation, too."""
    for name, words in (("whole", ["--batch_size", 4]),
                        ("parts", ["--batch_size", 1, "--accumulate", 4])):
        assert command(*small(videos, tmp_path / name, "--epochs", 2, *words, *PLAIN)) == 0
    words = small(videos, tmp_path / "two", "--epochs", 2, "--batch_size", 2, *PLAIN)
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
            assert whole["metrics"][key] == other["metrics"][key]


def start(words, **options):
    """`python train.py words` as a process of its own, in a group of its own."""
    return subprocess.Popen(TRAIN + [str(word) for word in words], stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, start_new_session=True,
                            env=os.environ | dict(OMP_NUM_THREADS="1"), **options)


def assert_same_end(one, two):
    """Two runs ended with the same bits."""
    one = read_checkpoint(one / "last.pt")
    two = read_checkpoint(two / "last.pt")
    assert one["step"] == two["step"] and one["metrics"]["top1"] == two["metrics"]["top1"]
    for key in one["model"]:
        assert torch.equal(one["model"][key], two["model"][key])
    for a, b in zip(one["optimizer"]["state"].values(), two["optimizer"]["state"].values()):
        assert torch.equal(a["momentum_buffer"], b["momentum_buffer"])


def logged_steps(out):
    """The steps in log.jsonl; every line must be JSON, which knows no NaN."""
    def refuse(constant):
        raise AssertionError(constant)
    lines = (out / "log.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse)["step"] for line in lines]


def test_killed_and_resumed_is_the_same_as_never_stopped(videos, tmp_path):
    """3 SIGKILLs, a SIGINT; drop path, mixup, colours, accumulation, 2 workers: the same bits."""
    words = ["--batch_size", 2, "--accumulate", 2, "--epochs", 12, "--workers", 2,
             "--drop_path", 0.1, "--views", "1x1"]
    reference = start(small(videos, tmp_path / "one", *words))
    log = tmp_path / "two" / "log.jsonl"
    for epochs, wait, blow in ((2, 0, signal.SIGKILL), (4, 0.1, signal.SIGKILL),
                               (6, 0.2, signal.SIGKILL), (8, 0.05, signal.SIGINT)):
        resume = ["--resume"] if log.exists() else []
        process = start(small(videos, tmp_path / "two", *words, *resume))
        while process.poll() is None:
            if log.exists() and log.read_text().count("\n") >= epochs:
                break
            time.sleep(0.01)
        time.sleep(wait)
        assert process.poll() is None, process.communicate()[0]
        os.killpg(process.pid, blow)
        said = process.communicate()[0]
        assert process.returncode == (-9 if blow == signal.SIGKILL else 130), said
    assert "stopped by SIGINT; saved" in said and "Traceback" not in said

    # The settings come with the checkpoint.
    last = start(["--out", tmp_path / "two", "--root", videos, "--workers", 2, "--resume"])
    said = last.communicate()[0]
    assert last.returncode == 0, said
    reference.communicate()
    assert_same_end(tmp_path / "one", tmp_path / "two")
    assert logged_steps(tmp_path / "two") == [3 * epoch for epoch in range(1, 13)]


def test_a_run_killed_between_its_log_and_its_checkpoint_logs_the_epoch_once(videos, tmp_path):
    """The log has the line of epoch 2, last.pt is that epoch's, not yet validated."""
    words = small(videos, tmp_path, "--batch_size", 4, "--epochs", 3, *PLAIN)
    assert command(*words) == 0
    whole = logged_steps(tmp_path)
    line = (tmp_path / "log.jsonl").read_text().splitlines()[-1]
    last = read_checkpoint(tmp_path / "last.pt")
    del last["metrics"]["top1"]
    last["best"] = 100.0  # a better epoch than any that comes
    best = (tmp_path / "best.pt").read_bytes()
    torch.save(last, tmp_path / "last.pt")
    (tmp_path / "log.jsonl").open("a").write('{"step": 9, "torn')
    (tmp_path / "last.pt.tmp").write_bytes(b"half a checkpoint")
    assert command(*words, "--resume") == 0
    assert logged_steps(tmp_path) == whole == [3, 6, 9]
    again = (tmp_path / "log.jsonl").read_text().splitlines()[-1]
    assert json.loads(again)["top1"] == json.loads(line)["top1"]
    assert not (tmp_path / "last.pt.tmp").exists()
    assert (tmp_path / "best.pt").read_bytes() == best


def test_best_pt_has_the_best_epoch_and_the_papers_views_come_last(videos, tmp_path, monkeypatch):
    tops = iter((50., 80., 60., 70.))
    views = []

    def evaluate(model, dataset, cfg):
        views.append(dataset.views)
        return dict(top1=next(tops), top5=0., mean_class=0., videos=5, bad=0)
    monkeypatch.setattr(train, "evaluate", evaluate)
    words = small(videos, tmp_path, "--batch_size", 4, "--epochs", 3, "--views", "2x1")
    assert command(*words) == 0
    assert views == [(1, 1), (1, 1), (1, 1), (2, 1)]
    best = read_checkpoint(tmp_path / "best.pt")
    assert best["step"] == 6 and best["best"] == 80

    # A new run keeps the files of the old one.
    old = (tmp_path / "last.pt").read_bytes()
    tops = iter((10., 10.))
    assert command(*words, "--epochs", 1) == 0
    assert (tmp_path / "last.pt.old").read_bytes() == old
    assert logged_steps(tmp_path) == [3]


def test_what_is_random_in_a_step_comes_from_seed_step_micro_batch_and_process(
        videos, tmp_path, monkeypatch):
    keys = []

    def record(use, *key):
        keys.append((use, *key))
        return D.generator(use, *key)
    monkeypatch.setattr(train, "generator", record)
    assert command(*small(videos, tmp_path, "--batch_size", 2, "--accumulate", 2, "--steps", 2,
                          "--seed", 7, *PLAIN)) == 0
    assert keys[0] == (D.WEIGHTS, 7)
    assert keys[1:] == [(D.STEP, 7, step, k, 0) for step in (0, 1) for k in (0, 1)]

    # The second process draws from another stream.
    keys.clear()
    cfg = settings(data=str(videos), rank=1, steps=1, batch_size=4, out=str(tmp_path))
    train.train(create_model("focal_toy", 2, 4, 32), D.open_data(cfg, ["train", "val"]), cfg)
    assert keys == [(D.STEP, 0, 0, 0, 1)]


def test_files_are_whole_and_finite_or_not_written(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    train.write_whole(str(path), b"old")
    model = torch.nn.Linear(2, 2)
    state = dict(step=3)
    cfg = train.resolve({}) | dict(out=str(tmp_path), rank=0)
    torch.nn.init.constant_(model.weight, math.nan)
    train.save("last.pt", dict(model=model), state, cfg)
    assert path.read_bytes() == b"old"

    def full(source, target):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="last.pt could not be written, it needs 0.0 MiB: No space"):
        train.write_whole(str(path), b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["last.pt"]


def test_infinite_gradients_are_counted_and_a_finite_one_ends_the_streak():
    tally = train.new_tally()
    state = dict(step=0, streak=0, sizes=dict(steps_per_epoch=10))
    for norm in (math.inf, math.nan, 1.0, math.inf):
        train.record_step(tally, state, loss=2.0, norm=norm, clips=4, waited=0.1)
    assert (state["step"], state["streak"], tally["infinite"]) == (4, 1, 3)
    assert tally["losses"] == [2.0] and tally["clips"] == 16


def test_the_scaler_of_float16_goes_on_where_it_was(videos, tmp_path):
    cfg = settings(data=str(videos), dtype="float16", batch_size=4)
    model = create_model("focal_toy", 2, 4, 32)
    data = opened(videos)["train"]
    schedule, parts, state = train.set_up(model, data, cfg, None)
    saved = {name: part.state_dict() for name, part in parts.items()} | state
    saved["scaler"]["scale"] = 1024.0
    _, parts, _ = train.set_up(model, data, cfg, saved)
    assert parts["scaler"].get_scale() == 1024


@slow
def test_twenty_kills_at_random_moments_leave_no_trace(videos, tmp_path):
    """Frequent saves: three steps an epoch. The same bits in the end, no epoch twice in the log."""
    words = ["--batch_size", 4, "--epochs", 200, "--views", "1x1"]
    reference = start(small(videos, tmp_path / "one", *words))
    reference.communicate()
    rng = random.Random(0)
    two = tmp_path / "two"
    for _ in range(20):
        resume = ["--resume"] if (two / "last.pt").exists() else []
        process = start(small(videos, two, *words, *resume))
        saved = (two / "last.pt").stat().st_mtime_ns if resume else 0
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


@slow
def test_a_full_disk_is_one_line_and_the_old_checkpoint_stays(videos, tmp_path):
    """Files are limited to 1 MiB: a checkpoint has 1.8."""
    words = small(videos, tmp_path, "--batch_size", 4, *PLAIN)
    assert command(*words, "--epochs", 1) == 0
    before = (tmp_path / "last.pt").read_bytes()
    process = start(["--out", tmp_path, "--root", videos, "--resume", "--workers", 0],
                    preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20)))
    said = process.communicate()[0]
    assert process.returncode == 0, said  # nothing left to do, nothing to write

    process = start([*words, "--epochs", 1, "--init", tmp_path / "last.pt"],
                    preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20)))
    said = process.communicate()[0]
    assert process.returncode == 1 and "Traceback" not in said
    message = r"error: .*last.pt could not be written, it needs 1.\d MiB: File too large"
    assert re.search(message, said), said
    assert (tmp_path / "last.pt.old").read_bytes() == before
    assert not (tmp_path / "last.pt.tmp").exists()


@slow
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
    assert said.strip().splitlines()[-1].startswith("error: a process that loads data was killed")
    assert read_checkpoint(tmp_path / "last.pt")["step"] % 3 == 0


def test_a_second_run_in_the_same_folder_is_refused_while_the_first_lives(videos, tmp_path):
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
    assert command(*words[:-6], "--steps", 1, *PLAIN) == 0  # the lock went with its process


def test_training_that_diverges_stops_with_the_step_the_rate_and_the_clips(videos, tmp_path):
    """20 infinite gradients in a row; the weights on the disk are finite, the log is JSON."""
    words = small(videos, tmp_path, "--batch_size", 4, "--epochs", 50, "--lr", 1e6, "--warmup", 0)
    said = command(*words, *PLAIN)
    assert re.match(r"error: 20 infinite gradients in a row, up to step \d+ at lr [\d.e+]+, with "
                    r"/.*\.mp4, /.*\.mp4.*: lower --lr", said), said
    state = read_checkpoint(tmp_path / "last.pt")
    assert all(value.isfinite().all() for value in state["model"].values())
    assert state["step"] == int(re.search(r"up to step (\d+)", said)[1])
    logged_steps(tmp_path)


def test_evaluation_averages_softmax_over_views_and_counts_unreadable_videos_as_wrong(
        videos, tmp_path, capsys):
    root = tmp_path / "v"
    shutil.copytree(videos, root)
    assert command(*small(root, tmp_path, "--batch_size", 4, "--steps", 1, *PLAIN)) == 0
    (root / "val" / "aim" / "broken.mp4").write_bytes(b"nothing")
    shown = []
    for batch_size in (1, 8, 100):
        capsys.readouterr()
        assert command("--eval", "--init", tmp_path / "last.pt", "--views", "2x3", "--root", root,
                       "--batch_size", batch_size, "--workers", 0, "--out", tmp_path) == 0
        shown.append(capsys.readouterr())

    # Slowly: one view after the other.
    model = create_model("focal_toy", 2, 4, 32).eval()
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
    for one in shown:
        assert "counted as wrong" in one.err and "broken.mp4" in one.err
        # top-5 of 2 classes: all but the broken one
        assert (f"6 videos, 2x3 views: top-1 {100 * hits / 6:.2f} %, top-5 83.33 %, "
                f"mean class accuracy {per_class:.2f} %, 1 unreadable") in one.out

    # The names of the classes count, not their order on the disk.
    swapped = read_checkpoint(tmp_path / "last.pt")
    swapped["classes"].reverse()
    torch.save(swapped, tmp_path / "swapped.pt")
    words = ["--eval", "--init", tmp_path / "swapped.pt", "--views", "2x3", "--workers", 0,
             "--root", root, "--out", tmp_path / "told"]
    assert command(*words) == 0
    assert f"top-1 {100 * (5 - hits) / 6:.2f} %" in capsys.readouterr().out


class Sure(torch.nn.Module):
    """Answers three views; only in eval mode, as dropout would change the answers."""
    def forward(self, x):
        assert not self.training
        return torch.tensor([[0., 10.], [2., 0.], [2., 0.]])


def test_a_view_that_is_very_sure_does_not_outvote_the_others(tmp_path, capsys):
    """By hand: logits (0, 10), (2, 0), (2, 0) sum to class 1, their softmaxes to class 0."""
    cfg = settings(num_frames=8, image_size=8, batch_size=4)
    clips = torch.zeros(1, 8, 8, 8, 3, dtype=torch.uint8)
    model = Sure().train()
    for label, top1 in ((0, 100), (1, 0)):
        data = D.VideoSet(clips, [label], ["a", "b"], cfg, views="3x1")
        assert train.evaluate(model, data, cfg)["top1"] == top1
        assert model.training  # it goes on with training

    # The same where it predicts; a score that is nan is no answer.
    write_video(tmp_path / "a.mp4", stairs(8))
    cfg |= dict(predict=[str(tmp_path / "a.mp4")], views="3x1")
    assert train.predict(model.train(), ["a", "b"], cfg) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].endswith("a") and lines[2].endswith("b")
    for label in (0, 1):
        nan = torch.full((1, 2), math.nan)
        no = torch.tensor([False])
        assert train.accuracies(nan, torch.tensor([label]), no)["top1"] == 0


def test_prediction_prints_class_names_and_names_what_it_cannot_read(videos, tmp_path, capsys):
    assert command(*small(videos, tmp_path, "--batch_size", 4, "--steps", 1, *PLAIN)) == 0
    (tmp_path / "no.mp4").write_bytes(b"no")
    capsys.readouterr()
    good = videos / "val" / "aim" / "0.mp4"
    assert command("--predict", good, tmp_path / "no.mp4", "--init", tmp_path / "best.pt") == 1
    shown = capsys.readouterr()
    assert str(good) in shown.out and shown.out.count(" %") == 2 and "brush hair" in shown.out
    assert "error: " in shown.err and "no.mp4" in shown.err

    # A released checkpoint has no names inside: the data set's.
    torch.save({"model": small_focal(num_classes=400).state_dict()}, tmp_path / "released.pt")
    words = ["--predict", good, "--init", tmp_path / "released.pt", "--model", "focal_t",
             "--image_size", 64, "--dim", 32, "--depths", "1,1,2,1", "--data"]
    assert command(*words, "k400") == 0
    lines = capsys.readouterr().out.splitlines()[-5:]  # '  12.3 %  abseiling'
    assert {line.split(" %  ")[1] for line in lines} < set(D.class_names("k400"))
    assert "has 400 classes and no names for them, --data ssv2 has 174" in command(*words, "ssv2")


def test_float16_on_a_cpu_works_and_says_that_it_is_slow(capsys):
    cfg = train.where_to_run(train.resolve(dict(dtype=["float16"], device=["cpu"])))
    assert cfg["dtype"] == "float16" and "several times slower" in capsys.readouterr().out


def test_a_sweep_is_a_table_of_rows_and_seeds(videos, tmp_path, capsys):
    """And finds every mistake before the first run."""
    words = small(videos, tmp_path, "--batch_size", 4, "--steps", 1, *PLAIN)
    words += ["--seeds", 2, "--sweep"]
    assert command(*words, "", "temporal=False levels=1", "lr=1e6 warmup=0 steps=40") == 0
    table = (tmp_path / "sweep.md").read_text()
    assert table in capsys.readouterr().out
    rows = table.splitlines()[-3:]
    assert rows[0].startswith("| (none) | ") and "| 226,452 |" in rows[0]
    assert rows[1].startswith("| temporal=False levels=1 | ") and rows[1].count("|") == 8
    assert "diverged, diverged" in rows[2]
    said = command(*words, "levels=1", "levles=2")
    assert said == "error: --levles: no such setting for focal_toy; did you mean --levels?"


def test_settings_come_from_defaults_recipe_checkpoint_and_flags_in_this_order():
    cfg = train.resolve(train.parse(["--data", "toy", "--lr=0.3", "--depths", "1,1"]))
    assert cfg["momentum"] == 0.9  # default
    assert cfg["epochs"] == 7 and cfg["patch"] == 8  # recipe, preset
    assert cfg["lr"] == 0.3 and cfg["depths"] == (1, 1)  # flags
    saved = train.deciding(cfg) | dict(epochs=3.0)
    again = train.resolve(train.parse(["--clip_grad", "2"]), saved)
    assert (again["epochs"], again["lr"], again["clip_grad"]) == (3.0, 0.3, 2.0)


def test_settings_of_another_version_are_named(capsys):
    cfg = train.deciding(train.resolve({}))
    old = {name: value for name, value in cfg.items() if name not in ("betas", "levels")}
    assert train.resolve({}, old)["betas"] == (0.9, 0.999)
    said = capsys.readouterr().out
    assert "not in the checkpoint, taken from the defaults: betas 0.9,0.999, levels 2" in said
    with pytest.raises(ValueError, match="this version does not know: peak_lr"):
        train.resolve({}, cfg | dict(peak_lr=0.1))


# --------------------------------------------------- data sets as they lie on disk

def empty_files(root, *names):
    """Files that are found, not read."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def named(dataset):
    """{'78687.webm': 'its class'}"""
    return {os.path.basename(clip): dataset.classes[label]
            for clip, label in zip(dataset.clips, dataset.labels)}


@pytest.mark.parametrize("form", ("something-something-v2-{}.json", "labels/{}.json"))
def test_something_something_as_it_is_published(tmp_path, form):
    """Under 20BN's and under Qualcomm's names; ids are text, templates have brackets, commas."""
    rows = {"train": [("78687", "Holding [something] next to [something]"),
                      ("1", "Moving [something] and [something] closer to each other"),
                      ("5", "Approaching [something] with your camera")],
            "validation": [("2", "Pretending to put [something] into [something]")]}
    for split, own in rows.items():
        table = [{"id": key, "label": "holding potato next to vicks vaporub bottle",
                  "template": template, "placeholders": ["potato"]} for key, template in own]
        (tmp_path / form.format(split)).parent.mkdir(exist_ok=True)
        (tmp_path / form.format(split)).write_text(json.dumps(table))
    empty_files(tmp_path, *(f"20bn-something-something-v2/{key}.webm" for key in (78687, 2, 5)))
    sets = opened("ssv2", tmp_path)
    assert named(sets["train"]) == {"78687.webm": "Holding something next to something",
                                    "5.webm": "Approaching something with your camera"}
    assert sets["train"].labels[1] == 0 and len(sets["val"].classes) == 174
    assert named(sets["val"]) == {"2.webm": "Pretending to put something into something"}


def test_diving48_as_it_is_published(tmp_path, capsys):
    for split, keys in (("train", ("-mmq0PT-u8k_00155", "_x_00001")), ("test", ("a_00001",))):
        table = [{"vid_name": key, "label": 3 * k, "start_frame": 0, "end_frame": 48}
                 for k, key in enumerate(keys)]
        (tmp_path / f"Diving48_V2_{split}.json").write_text(json.dumps(table))
        empty_files(tmp_path, *(f"rgb/{key}.mp4" for key in keys))
    sets = opened("diving48", tmp_path)
    assert sets["train"].labels == [0, 3] and sets["val"].labels == [0]
    assert named(sets["train"])["_x_00001.mp4"] == D.class_names("diving48")[3]
    assert "has 2 rows, V2's has 15027: is it another version?" in capsys.readouterr().out


def test_activitynet_has_a_clip_for_each_labelled_segment(tmp_path):
    """Frame i is shown at i / 30 s; times are those of the file, ids have no v_ in it."""
    database = {
        "5n7NCViB5TU": {"subset": "training", "duration": 1.3, "annotations": [
            {"label": "Discus throw", "segment": [0.2, 0.5]},
            {"label": "Archery", "segment": [0.9, 90.0]}]},
        "gone": {"subset": "training", "annotations": [{"label": "Archery", "segment": [0, 1]}]},
        "b": {"subset": "validation", "annotations": [{"label": "Archery", "segment": [0, 1]}]},
        "c": {"subset": "testing", "annotations": []}}
    (tmp_path / "activity_net.v1-3.min.json").write_text(json.dumps(
        {"database": database, "taxonomy": [], "version": "VERSION 1.3"}))
    for name in ("v1-2/v_5n7NCViB5TU.mp4", "v1-3/v_b.mkv"):
        (tmp_path / name).parent.mkdir()
        write_video(tmp_path / name, stairs(40), crf="10")
    sets = opened("activitynet", tmp_path)
    assert [sets["train"].classes[label] for label in sets["train"].labels] == [
        "Discus throw", "Archery"]
    assert len(sets["val"]) == 1
    for clip, first, n in zip(sets["train"].clips, (6, 27), (9, 13)):
        seen = []
        frames = D.read_clip(clip, lambda k: seen.append(k) or range(k))
        assert seen == [n]
        assert np.abs(levels_of(frames) - (20 + 5 * np.arange(first, first + n))).max() < 2.5


@pytest.mark.parametrize("name, codec, options", (
    ("b_frames.mp4", "libx264", dict(g="12", bf="3", crf="10")),
    ("one_key.mp4", "libx264", dict(g="250", bf="3", crf="10")),
    ("vp9.webm", "libvpx-vp9", dict(crf="10", lag_in_frames="0", g="20")),
    ("packed.avi", "mpeg4", dict(qmin="2", qmax="2", bf="2", g="12"))))
def test_a_part_of_a_video_has_the_frames_that_are_shown_then(tmp_path, name, codec, options):
    """Whatever key frames and the order of decoding are, and without reading what comes after."""
    path = str(tmp_path / name)
    write_video(path, np.concatenate([stairs(45), stairs(45), stairs(45)]), codec, **options)
    parts = [f"{path}#t={start},{end}" for start, end in ((0, 1.5), (1.5, 2), (2, 4.25), (4.25, 9))]
    frames = torch.cat([D.read_clip(part, lambda n: range(n)) for part in parts])
    assert torch.equal(frames, D.read_clip(path, lambda n: range(n))) and len(frames) == 135
    assert 4.4 < D.length_in_seconds(path) < 4.7
    assert D.segment_of(parts[1]) == (path, 1.5, 2.0) and D.segment_of(path)[1:] == (0, math.inf)
    with av.open(path) as container:
        stream = container.streams.video[0]
        packets, _, _ = D.packets_from(container, stream, 2, 2.5)
        assert len(list(packets)) <= 15 + 30 + (12 if options["g"] == "12" else 60) + 4
    with pytest.raises(D.BadVideo, match="#t=7,9: no frames in it"):
        D.read_clip(f"{path}#t=7,9", lambda n: range(n))


def test_ucf101_lists_start_at_1_and_say_their_names(tmp_path, capsys):
    """Train lists have numbers from 1, test lists none, lines may end as on Windows."""
    empty_files(tmp_path, "UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi",
                "UCF-101/Archery/v_Archery_g08_c01.avi", "UCF-101/Archery/v_Archery_g01_c01.avi")
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "trainlist01.txt").write_bytes(
        b"ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\r\nArchery/v_Archery_g08_c01.avi 2\r\n")
    (lists / "testlist01.txt").write_bytes(b"Archery/v_Archery_g01_c01.avi\r\n")
    for index in ("1 ApplyEyeMakeup\r\n2 Archery\r\n3 BabyCrawling\r\n", ""):
        if index:
            (lists / "classInd.txt").write_text(index)
        else:
            (lists / "classInd.txt").unlink()  # the folders say it
        sets = opened(lists / "trainlist01.txt", tmp_path / "UCF-101")
        assert sets["train"].labels == [0, 1] and sets["val"].labels == [1]
        assert sets["val"].classes == ["ApplyEyeMakeup", "Archery"]
        assert "labels start at 1" in capsys.readouterr().out

    # An official subset keeps its numbers; the highest one of all tells that they start at 1.
    names = D.class_names("k400")
    assert D.class_index({"1", "7"}, "k400", ".", {}) == (names, {"1": 1, "7": 7})
    assert D.class_index({"1", "400"}, "k400", ".", {}) == (names, {"1": 0, "400": 399})


def test_lists_may_hold_blank_lines_segments_bare_paths_and_links(tmp_path):
    empty_files(tmp_path, "far/a/x 1.MP4", "far/b/y.mp4", "far/b/deep/z.mp4")
    (tmp_path / "near").mkdir()
    (tmp_path / "near" / "linked").symlink_to(tmp_path / "far")
    (tmp_path / "near" / "train.txt").write_text(
        "linked/a/x 1.MP4\n\nlinked/b/y.mp4#t=3,7\nlinked/b/deep/z.mp4#t=3,7.5\t1\n"
        f"{tmp_path}/far/b/y.mp4,1\n")
    root = str(tmp_path / "near")
    rows = D.list_rows(os.path.join(root, "train.txt"), root, "train")
    assert [label for _, label in rows] == ["a", "b", "1", "1"]
    assert [clip.rpartition("/")[2] for clip, _ in rows] == [
        "x 1.MP4", "y.mp4#t=3,7", "z.mp4#t=3,7.5", "y.mp4"]
    assert [label for _, label in D.folder_rows(os.path.join(root, "linked"))] == ["a", "b", "b"]
    assert sorted(D.by_stem(root)) == ["x 1", "y", "z"]


def test_lists_have_the_names_of_classes_txt_or_of_their_folders(tmp_path):
    empty_files(tmp_path, "b/x_1.avi", "a/x_2.avi", "a/y_1.avi")
    (tmp_path / "train.txt").write_text("b/x_1.avi 0\na/x_2.avi 1\n")
    (tmp_path / "val.txt").write_text("a/y_1.avi 1\n")
    assert opened(tmp_path / "train.txt")["val"].classes == ["b", "a"]
    (tmp_path / "classes.txt").write_text("hug\nkick\n")
    assert opened(tmp_path / "train.txt")["val"].classes == ["hug", "kick"]
    assert opened(tmp_path)["val"].classes == ["hug", "kick"]  # the lists of a folder, too


def test_a_split_keeps_recordings_together_and_is_noted(tmp_path, capsys):
    """A fifth of each class, by the name before the last _; the note beside the weights counts."""
    root = tmp_path / "mine"
    for k in range(10):
        for name in ("run", "walk"):
            empty_files(root, *(f"{name}/tape{k}_{piece}.mp4" for piece in range(3)))
    cfg = settings(data=str(root), split="group", out=str(tmp_path / "out"))
    sets = D.open_data(cfg, ["train", "val"])
    tapes = {split: {os.path.basename(clip)[:5] for clip in sets[split].clips} for split in sets}
    assert len(tapes["train"]) == 8 and len(tapes["val"]) == 2
    assert not tapes["train"] & tapes["val"]
    assert sorted(sets["val"].labels) == [0] * 6 + [1] * 6
    assert D.open_data(cfg | dict(out=""), ["val"])["val"].clips == sets["val"].clips
    others = [D.open_data(cfg | dict(out="", seed=seed), ["val"])["val"].clips for seed in (1, 2)]
    assert sets["val"].clips not in others and others[0] != others[1]

    # The note: one file moves by hand, one is new; another seed does not change it.
    note = tmp_path / "out" / "split.csv"
    rows = note.read_text().splitlines()
    assert rows[0] == "path,label,split" and len(rows) == 61
    moved = next(k for k, row in enumerate(rows) if row.endswith(",train"))
    rows[moved] = rows[moved].replace(",train", ",val")
    note.write_text("\n".join(rows))
    empty_files(root, "run/new_1.mp4")
    capsys.readouterr()
    again = D.open_data(cfg | dict(seed=5), ["train", "val"])
    assert len(again["val"]) == 13 and len(again["train"]) == 47
    assert "1 videos are not in it: left out" in capsys.readouterr().out
    told = cfg | dict(eval=True, init=str(tmp_path / "out" / "best.pt"), out=str(tmp_path / "else"))
    assert len(D.open_data(told, ["val"])["val"]) == 13

    # By file, a class that is one recording can be split, too.
    empty_files(root, "jump/tape_1.mp4", "jump/tape_2.mp4")
    with pytest.raises(ValueError, match="'jump' cannot be in both splits, its 2 videos are 1 rec"):
        D.open_data(cfg | dict(out=""), ["train", "val"])
    assert len(D.open_data(cfg | dict(out="", split="file"), ["val"])["val"]) >= 13


def test_what_a_data_set_lacks_is_said(tmp_path, capsys):
    empty_files(tmp_path, "train/a/rec1_1.mp4", "train/b/rec2_1.mp4", "val/a/rec1_2.mp4",
                "val/c/rec3_1.mp4")
    opened(tmp_path)
    said = capsys.readouterr().out
    assert "warning: 1 of 2 recordings in val are in train too, rec1 for one" in said
    assert "warning: 1 classes have videos in val only, 'c' for one: they cannot be learned" in said


def test_images_are_videos_of_one_frame(tmp_path):
    """An image as it was drawn, upright, whatever the camera's note says; transparency is gone."""
    from PIL import Image
    image = Image.fromarray(stairs(3)[2])
    image.save(tmp_path / "a.png")
    image.convert("RGBA").save(tmp_path / "alpha.png")
    turned = Image.Exif()
    turned[0x112] = 6  # to be turned clockwise
    image.save(tmp_path / "turned.jpg", quality=98, exif=turned)
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    clip = D.read_clip(str(tmp_path / "a.png"), lambda n: [0] * (3 * n))
    assert torch.equal(clip, torch.from_numpy(stairs(3)[2]).expand(3, 48, 64, 3))
    assert torch.equal(D.read_clip(str(tmp_path / "alpha.png"), lambda n: [0]), clip[:1])
    turned = D.read_clip(str(tmp_path / "turned.jpg"), lambda n: [0])
    assert turned.shape == (1, 64, 48, 3)
    close(turned[0].float(), torch.rot90(clip[0], -1).float(), atol=4, rtol=0)
    with pytest.raises(D.BadVideo, match="broken.jpg: cannot identify image file"):
        D.read_clip(str(tmp_path / "broken.jpg"), lambda n: [0])
    assert D.read_clip(str(tmp_path / "a.png"), lambda n: [0], 24).shape == (1, 24, 32, 3)


def test_differences_are_those_of_neighbouring_frames():
    clip = torch.randint(256, (2, 4, 32, 32, 3), dtype=torch.uint8)
    x = D.prepare(dict(clip=clip), settings(input="rgb"))
    d = D.prepare(dict(clip=clip), settings(input="diff"))
    assert d[:, :, 0].abs().max() == 0
    for t in (1, 2, 3):
        close(d[:, :, t], 2 * (x[:, :, t] - x[:, :, t - 1]))


def test_frames_can_be_shown_in_another_order():
    """To an evaluation: all views alike, the labels unchanged."""
    clips = torch.arange(6, dtype=torch.uint8)[None, :, None, None, None].expand(1, 6, 32, 32, 3)
    def shown(word, index=0):
        data = D.VideoSet(clips.repeat(9, 1, 1, 1, 1), [0] * 9, ["a", "b"],
                          settings(num_frames=6, interval=1, frames=word), "1x3")
        return data[0, index]["clip"][:, :, 0, 0, 0].tolist()
    assert shown("normal") == [[0, 1, 2, 3, 4, 5]] * 3
    assert shown("reversed") == [[5, 4, 3, 2, 1, 0]] * 3
    assert shown("still") == [[3] * 6] * 3
    orders = [shown("shuffled", i) for i in range(9)]
    assert all(sorted(order[0]) == [0, 1, 2, 3, 4, 5] and order[0] == order[2] for order in orders)
    assert len({tuple(order[0]) for order in orders}) > 6


def test_a_smaller_copy_is_the_same_data_set(tmp_path, capsys):
    """Same frames, times and turns, the lists name the new files; a broken one is listed."""
    root = tmp_path / "big"
    out = tmp_path / "small"
    (root / "a").mkdir(parents=True)
    write_video(root / "a" / "x_1.avi", stairs(40, 96, 128), "mpeg4", qmin="2", qmax="2", bf="2")
    write_video(root / "a" / "odd.mp4", stairs(40, 90, 130), crf="10")
    (root / "a" / "broken.webm").write_bytes(b"")
    (root / "train.txt").write_text("a/x_1.avi 0\na/odd.mp4 1\n")
    (root / "val.txt").write_bytes(f"a/x_1.avi#t=0,1 0\r\n{root}/a/odd.mp4 1".encode())
    (root / "classes.txt").write_bytes(b"\xe9t\xe9\nhiver\n")  # latin-1
    assert D.copy_all(str(root / "train.txt"), "", 48, str(out)) is None
    said = capsys.readouterr().out
    assert "broken.webm: Invalid data" in said and "3 videos, 1 with problems" in said
    assert (out / "train.txt").read_text() == "a/x_1.mp4 0\na/odd.mp4 1\n"
    assert (out / "val.txt").read_bytes() == b"a/x_1.mp4#t=0,1 0\r\na/odd.mp4 1"
    clip = D.read_clip(str(out / "a" / "x_1.mp4"), lambda n: range(n))
    assert clip.shape == (40, 48, 64, 3)
    assert np.abs(levels_of(clip) - (20 + 5 * np.arange(40))).max() < 2.5
    assert D.read_clip(str(out / "a" / "odd.mp4"), lambda n: [0]).shape == (1, 48, 68, 3)
    with av.open(str(out / "a" / "x_1.mp4")) as container:
        keys = [k for k, p in enumerate(container.demux(video=0)) if p.is_keyframe]
    assert keys[0] == 0 and max(np.diff(keys + [40])) <= 12
    with pytest.raises(ValueError, match="choose a folder outside of"):
        D.copy_all(str(root), "", 48, str(root / "inside"))
    with pytest.raises(ValueError, match="would have the name of another, .*x_1.mp4"):
        write_video(root / "a" / "x_1.mp4", stairs(4))
        D.copy_all(str(root), "", 48, str(out))


@pytest.mark.parametrize("name, codec, pixels, matrix, span", (
    ("motion.avi", "mjpeg", "yuvj420p", None, 2), ("full.mp4", "libx264", "yuv420p", None, 2),
    ("bt709.mp4", "libx264", "yuv420p", 1, None), ("plain.mp4", "libx264", "yuv420p", None, None)))
def test_a_smaller_copy_keeps_the_colours(tmp_path, name, codec, pixels, matrix, span):
    """Whatever the file says about its range (2: full) and its matrix (1: BT.709)."""
    image = np.empty((96, 128, 3), np.uint8)
    image[:, :64] = 200, 60, 20
    image[:, 64:] = 30, 160, 90
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.height, stream.width = image.shape[:2]
        stream.pix_fmt = pixels
        for part, value in (("colorspace", matrix), ("color_range", span)):
            if value:
                setattr(stream.codec_context, part, value)
        for _ in range(4):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame = frame.reformat(format=pixels, dst_colorspace=matrix, dst_color_range=span)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    copy = tmp_path / "out" / "copy.mp4"
    assert D.copy_smaller((str(tmp_path / name), str(copy), 96)) == ""
    for path in (tmp_path / name, copy):
        clip = D.read_clip(str(path), lambda n: range(n)).float()
        for column, colour in ((20, (200, 60, 20)), (100, (30, 160, 90))):
            close(clip[:, 48, column], torch.tensor(colour).float().expand(4, 3), atol=6, rtol=0)


def test_a_smaller_copy_keeps_times_and_turns_and_goes_on(tmp_path, capsys):
    root = tmp_path / "big"
    root.mkdir()
    with av.open(str(root / "uneven.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=30, options=dict(crf="10"))
        stream.height, stream.width = 96, 128
        stream.pix_fmt = "yuv420p"
        stream.set_display_rotation(90)
        for k, image in enumerate(stairs(20, 96, 128)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = k if k < 10 else 3 * k  # one third of the speed from there on
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    D.copy_all(str(root), "", 48, str(tmp_path / "out"))
    copy = str(tmp_path / "out" / "uneven.mp4")
    clip = D.read_clip(copy, lambda n: range(n))
    original = D.read_clip(str(root / "uneven.mp4"), lambda n: range(n), 48)
    close(clip.float(), original.float(), atol=20, rtol=0)
    assert len(clip) == 20 and clip.shape[1:3] == (64, 48)
    assert len(D.read_clip(copy + "#t=1,2", lambda n: range(n))) == 10  # frames 10 to 19
    before = os.stat(copy).st_mtime_ns
    (tmp_path / "out" / "._99_other.mp4").write_bytes(b"of a copy that was stopped")
    D.copy_all(str(root), "", 48, str(tmp_path / "out"))
    assert os.stat(copy).st_mtime_ns == before and "1 are in" in capsys.readouterr().out
    assert os.listdir(tmp_path / "out") == ["uneven.mp4"]


# --------------------------------------------------- one's own classes

OWN = ["--image_size", 32, "--num_frames", 4, "--workers", 0, "--device", "cpu", "--batch_size", 4]


def test_a_folder_has_our_recipe_and_left_is_not_mirrored(videos, tmp_path, capsys):
    assert command("--data", videos, "--out", tmp_path, *OWN, "--steps", 1) == 0
    said = capsys.readouterr().out
    assert "recipe: focal on own (margin 1.143, crop area, crop_range 0.5,1, flip 0.5" in said
    assert "optimizer adamw" in said and "--input diff" in said and "flip is off" not in said
    assert read_checkpoint(tmp_path / "last.pt")["settings"]["flip"] == 0.5

    for k, name in enumerate(("TurnLeft", "turn_right")):
        for split in ("train", "val"):
            shutil.copytree(videos / split / "aim", tmp_path / "turns" / split / name)
    words = ["--data", tmp_path / "turns", "--out", tmp_path, *OWN, "--steps", 1, "--input", "diff"]
    assert command(*words) == 0
    assert "flip is off: mirrored, 'TurnLeft'" in capsys.readouterr().out
    assert read_checkpoint(tmp_path / "last.pt")["settings"]["flip"] == 0
    assert command(*words, "--flip", 0.5) == 0
    assert "flip is off" not in capsys.readouterr().out
    assert command(*words[:-1], "rgb", "--init", tmp_path / "last.pt") == 0
    assert "was trained with --input diff, now it is rgb" in capsys.readouterr().out


def test_the_toy_as_files_has_the_recipe_of_the_toy(tmp_path):
    for name in D.TOY_CLASSES:
        (tmp_path / "train" / name).mkdir(parents=True)
    assert train.base_settings("focal_toy", str(tmp_path))[1] == "toy"
    (tmp_path / "train" / "another").mkdir()
    assert train.base_settings("focal_toy", str(tmp_path))[1] == "own"


def test_an_image_network_becomes_a_video_network(videos, tmp_path, capsys):
    """Trained on images; on a clip of one repeated image, the inflated one says the same."""
    from PIL import Image
    for path in videos.glob("*/*/*.mp4"):
        target = tmp_path / "images" / path.relative_to(videos).with_suffix(".jpg")
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(D.read_clip(str(path), lambda n: [0])[0].numpy()).save(target)
    words = ["--data", tmp_path / "images", "--out", tmp_path / "image", *OWN]
    assert command(*words, "--num_frames", 1, "--temporal", "False", "--steps", 3) == 0
    assert command("--data", videos, "--init", tmp_path / "image" / "last.pt", "--out",
                   tmp_path / "video", *OWN, "--temporal_init", "identity", "--lr", 1e-9,
                   "--steps", 1) == 0
    said = capsys.readouterr().out
    assert "inflated from an image network, 18 temporal tensors start as the identity" in said

    def network(folder, **own):
        checkpoint = read_checkpoint(tmp_path / folder / "last.pt")
        model = create_model("focal_toy", 2, image_size=32, **own)
        model.load_state_dict(checkpoint["model"])
        return model.eval()
    x = torch.randn(2, 3, 1, 32, 32)
    image = network("image", num_frames=1, temporal=False)
    close(network("video", num_frames=4)(x.expand(-1, -1, 4, -1, -1)), image(x), atol=1e-5, rtol=0)


def test_a_linear_probe_is_logistic_regression_on_frozen_features(videos, tmp_path, capsys):
    """The rest of the network stays; at the end the gradient of the penalised loss is zero."""
    words = ["--data", videos, *OWN, "--drop_path", 0.5]  # left on, features would be random
    assert command(*words, "--out", tmp_path / "one", "--steps", 2) == 0
    assert command(*words, "--out", tmp_path / "two", "--freeze", "--init",
                   tmp_path / "one" / "last.pt") == 0
    assert "only the 130 parameters of the head are trained, on the features of 12" in (
        capsys.readouterr().out)
    one, two = (read_checkpoint(tmp_path / name / "last.pt")["model"] for name in ("one", "two"))
    for key in one:
        assert torch.equal(one[key], two[key]) != key.startswith("head.")

    # Slowly: the middle view of each clip, the mean of the gradients.
    model = create_model("focal_toy", 2, 4, 32)
    model.load_state_dict(two)
    model.eval()
    cfg = train.resolve({}, None) | read_checkpoint(tmp_path / "two" / "last.pt")["settings"]
    data = D.open_data(settings() | cfg | dict(out="", device="cpu"), ["train"])["train"]
    views = D.VideoSet(data.clips, data.labels, data.classes, data.cfg, "1x1")
    batch = torch.utils.data.default_collate([views[0, i] for i in range(12)])
    loss = F.cross_entropy(model(D.prepare(batch, data.cfg)), batch["label"])
    loss = loss + train.PROBE_DECAY / 2 * model.head.weight.square().sum()
    loss.backward()
    assert model.head.weight.grad.abs().max() < 1e-4 and model.head.bias.grad.abs().max() < 1e-4

    said = command("--resume", tmp_path / "two" / "last.pt", "--out", tmp_path / "two")
    assert "holds weights only, nothing to go on with" in said
    assert command("--predict", data.clips[0], "--init", tmp_path / "two" / "best.pt") == 0


def test_evaluation_writes_every_prediction_and_names_the_worst(videos, tmp_path, capsys):
    root = tmp_path / "v"
    shutil.copytree(videos, root)
    (root / "val" / "aim" / "broken.mp4").write_bytes(b"nothing")
    assert command("--data", root, "--out", tmp_path, *OWN, "--steps", 1) == 0
    capsys.readouterr()
    words = ["--init", tmp_path / "last.pt", "--workers", 0]
    assert command("--eval", "--out", tmp_path, *words) == 0
    said = capsys.readouterr().out
    with open(tmp_path / "predictions.csv") as file:
        rows = [line.rstrip("\n").split(",") for line in file]
    assert rows[0] == ["path", "label", "prediction", "probability"] and len(rows) == 7
    assert [row[2:] for row in rows if "broken" in row[0]] == [["", ""]]

    # --predict says the same of each file, to the last digit that it prints.
    good = [row for row in rows[1:] if row[2]]
    files = [row[0] for row in good]
    assert command("--predict", *files, *words) == 0
    lines = capsys.readouterr().out.splitlines()
    best = [lines[lines.index(path) + 1].split(" %  ") for path in files]
    for (_, _, prediction, probability), (percent, name) in zip(good, best):
        assert name == prediction and abs(float(percent) / 100 - float(probability)) < 1e-5

    # The lines, counted from the csv; the broken video is a miss of its class.
    for name in ("aim", "brush hair"):
        own = [row for row in rows[1:] if row[1] == name]
        share = 100 * sum(row[2] == name for row in own) / len(own)
        assert f"{name} {share:.1f} % of {len(own)}" in said
        wrong = sum(row[2] not in (name, "") for row in own)
        assert (f"{name} taken for" in said) == (wrong > 0)
        if wrong:
            assert re.search(f"{name} taken for [a-z ]+ {wrong} times", said)


def test_prediction_goes_through_folders_and_through_time(videos, tmp_path, capsys):
    """The windows of a timeline are what the same part of the video gets; the rest goes on."""
    assert command("--data", videos, "--out", tmp_path, *OWN, "--steps", 1) == 0
    (tmp_path / "clips" / "below").mkdir(parents=True)
    write_video(tmp_path / "clips" / "long.mp4", np.concatenate([stairs(45), stairs(45)[::-1]]))
    (tmp_path / "clips" / "aaa.mp4").write_bytes(b"")
    shutil.copy(videos / "val" / "aim" / "0.mp4", tmp_path / "clips" / "below" / "zzz.mp4")
    words = ["--init", tmp_path / "last.pt", "--predict"]
    capsys.readouterr()
    assert command(*words, tmp_path / "clips") == 1
    shown = capsys.readouterr()
    assert "long.mp4" in shown.out and "zzz.mp4" in shown.out and "aaa.mp4: Invalid" in shown.err

    long = f"{tmp_path}/clips/long.mp4"
    assert command(*words, long, "--every", 0.8) == 0  # 3 s: 0, .8, 1.6, 2.4 .. 3
    lines = capsys.readouterr().out.splitlines()[-4:]
    assert [line.split(" s ")[0].strip() for line in lines] == ["0.0", "0.8", "1.6", "2.4"]
    assert command(*words, *(f"{long}#t={start},{end}" for start, end in (
        (0, 0.8), (0.8, 1.6), (1.6, 2.4), (2.4, 9)))) == 0
    parts = capsys.readouterr().out.splitlines()[-12:]
    best = [line.strip() for line in parts[1::3]]
    assert [line.split(" s ")[1].strip() for line in lines] == best
    assert command(*words, long, "--every", 1.45) == 0  # the last tenth of a second is joined
    assert len(capsys.readouterr().out.splitlines()) == 4

    assert command(*words, f"{long}#t=1,2.6", "--every", 0.8) == 0  # of a part of it
    lines = capsys.readouterr().out.splitlines()[-2:]
    assert [line.split(" s ")[0].strip() for line in lines] == ["1.0", "1.8"]

    (tmp_path / "none").mkdir()
    assert "none: no video in this folder" in command(*words, tmp_path / "none")


# --------------------------------------------------- looking inside, the second toy, cost

def test_dependence_is_the_gradient_times_the_input(tmp_path):
    """By finite differences, and on a network that is linear: its weights times the input."""
    class Linear(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.Identity()
            self.weight = seeded((2, 3, 2, 4, 4), 3)

        def forward(self, x, maps):
            maps.append([{}])
            return self.norm((x[:, None] * self.weight).flatten(2).sum(-1))
    x = seeded((1, 3, 2, 4, 4), 4)
    model = Linear()
    scores, maps, gates = train.look_inside(model, x)
    winner = model(x, []).argmax()
    close(maps["what the answer depends on"], (model.weight[winner] * x[0]).abs().sum(0))
    close(scores, model(x, [])[0].softmax(-1))

    torch.manual_seed(0)
    net = create_model("focal_toy", 8, 4, 32).eval().double()
    x = torch.randn(1, 3, 4, 32, 32, dtype=torch.float64)
    scores, maps, gates = train.look_inside(net, x)
    winner = net(x).argmax()
    for place in ((0, 5, 7), (3, 20, 30)):
        total = 0
        for colour in range(3):
            step = torch.zeros_like(x)
            step[(0, colour, *place)] = 1e-4
            slope = (net(x + step) - net(x - step))[0, winner] / 2e-4
            total += (slope * x[(0, colour, *place)]).abs()
        close(maps["what the answer depends on"][place], total.detach(), rtol=1e-4, atol=1e-9)

    # Modulators and gates, as the first block gives them.
    found = []
    net(x, found)
    close(maps["spatial modulator, first block"], found[0][0]["spatial"][0].norm(dim=-1))
    close(maps["temporal modulator, last block"], found[-1][-1]["temporal"][0].norm(dim=-1))
    close(torch.tensor(gates["gates temporal, last block"]),
          found[-1][-1]["gates_temporal"].abs().mean((0, 1, 2, 3)), check_dtype=False)


@pytest.mark.parametrize("pattern", ("joint", "time+space", "space+time", "window+grid"))
def test_the_attention_that_is_shown_is_that_of_the_strongest_token(pattern):
    """Weights of softmax written out, for the tokens of its group, in their places."""
    torch.manual_seed(0)
    net = create_model("lvt_toy", 8, 4, 32, patch=8, stride=8, kernel="softmax", fixation="none",
                       pattern=pattern, window=(2, 2, 2)).eval()
    x = torch.randn(1, 3, 4, 32, 32)
    scores, maps, _ = train.look_inside(net, x)
    shown = maps["attention of the strongest token"]
    assert shown.shape == (4, 4, 4)

    # What the last attention got, and which of the final tokens argues most for the answer.
    mixer = net.blocks[-1].mixers[-1]
    got = {}
    mixer.qkv.register_forward_hook(lambda module, given, out: got.update(qkv=out))
    net.norm.register_forward_hook(lambda module, given, out: got.update(tokens=out))
    net(x)
    argues = net.head(got["tokens"])[0, ..., scores.argmax()]  # (4, 4, 4)
    t, h, w = (int(i) for i in np.unravel_index(int(argues.argmax()), (4, 4, 4)))
    q, k, v = got["qkv"].chunk(3, -1)
    k = mixer.shift(k) if mixer.shift_first else k
    seen = shown.isfinite()
    word = pattern.split("+")[-1]
    assert torch.equal(seen.flatten(), allowed(word, 4, 4, 4, (2, 2, 2))[16 * t + 4 * h + w])
    weights = 0
    for head in range(2):
        own = slice(32 * head, 32 * head + 32)
        weights = weights + (k[0][seen][:, own] @ q[0, t, h, w, own] / 32**0.5).softmax(-1) / 2
    close(shown[seen], weights)
    assert shown[seen].sum().item() == pytest.approx(1, abs=1e-5)


def test_shares_on_the_l_worked_by_hand():
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[0, :2] = True  # 8 of 32 pixels
    even = torch.ones(2, 2, 2)
    assert train.share_on(even, mask) == pytest.approx(1)
    assert train.share_on(mask.float(), mask) == pytest.approx(4)
    upper = torch.zeros(2, 2, 2)
    upper[0] = torch.tensor([[3., 3.], [1., 1.]])  # 3/4 on the L, which covers 1/4
    assert train.share_on(upper, mask) == pytest.approx(3)
    upper[1] = math.nan  # the second frame is out of sight: the L covers half of the rest
    assert train.share_on(upper, mask) == pytest.approx(1.5)


def test_looking_draws_a_picture_and_prints_a_table(videos, tmp_path, capsys):
    words = ["--out", tmp_path, "--device", "cpu"]
    assert command("--steps", 1, *words) == 0
    init = ["--init", tmp_path / "last.pt"]
    assert command("--look", "toy:clockwise", *init, *words) == 0
    assert re.search(r"look.png: [a-z]+, \d+.\d %", capsys.readouterr().out)
    from PIL import Image
    with Image.open(tmp_path / "look.png") as picture:
        assert picture.width > 900 and len(picture.getcolors(2**24)) > 1000
    assert command("--look", videos / "val" / "aim" / "0.mp4", *init, *words) == 0
    capsys.readouterr()
    assert command("--look", "toy", *init, *words) == 0
    said = capsys.readouterr().out
    assert "64 clips of the toy" in said and said.count("\n| ") == 6
    assert "the toy's classes are left, right" in command("--look", "toy:x", *init, *words)
    assert "--look needs weights: --init FILE" in command("--look", "toy", *words)


def test_the_second_toy_cannot_be_solved_from_one_of_its_two_letters():
    """Each first frame, each last frame, and what is between go with all classes alike."""
    for frames in (8, 16):
        clips, labels = D.far_split("val", 0, frames, 32)
        assert clips.shape == (512, frames, 32, 32, 3)
        for part in (clips[:, 0], clips[:, 1:-1], clips[:, -1], clips[:, :-1], clips[:, 1:]):
            classes = {}
            for image, label in zip(part.numpy(), labels.tolist()):
                classes.setdefault(image.tobytes(), []).append(label)
            assert all(sorted(own) == sorted([0, 1, 2, 3] * (len(own) // 4))
                       for own in classes.values())
        train_clips, train_labels = D.far_split("train", 0, frames, 32)
        assert not {clip.tobytes() for clip in train_clips[:, 0].numpy()} & {
            clip.tobytes() for clip in clips[:, 0].numpy()}
        assert torch.bincount(train_labels).tolist() == [512] * 4

    # The label, seen: the last L is the first one, turned by it (screen coordinates: clockwise).
    clips, labels = D.far_clips(32, 5, 8, 64)
    for clip, label in zip(clips.float().mean(-1), labels):
        level = (clip[0].max() + clip[1].mean()) / 2
        first, last = (image[tuple(slice(int(k.min()), int(k.max()) + 1) for k in
                                   torch.where(image > level))] > level for image in clip[[0, -1]])
        agree = []
        for turn in range(4):
            turned = torch.rot90(first, -turn)
            h = min(turned.shape[0], last.shape[0])
            w = min(turned.shape[1], last.shape[1])
            agree.append((turned[:h, :w] == last[:h, :w]).float().mean())
        assert int(np.argmax(agree)) == label


def test_how_far_the_tokens_of_the_far_table_see():
    """Frames each way: what a block adds, times three blocks."""
    reach = [(dict(mixer="conv3d"), 3 * 1),
             (dict(global_level=False), 3 * (1 + 2)),
             (dict(global_level=False, levels=4), 3 * (1 + 2 + 3 + 4)),
             (dict(), 40),  # all that there are
             (dict(mixer="attention", kernel="softmax"), 40)]
    for changes, expected in reach:
        torch.manual_seed(0)
        model = create_model("focal_toy", num_classes=4, num_frames=81, image_size=16, **changes)
        clip = torch.randn(1, 3, 81, 16, 16, requires_grad=True)
        tokens = []
        model.norm.register_forward_hook(lambda module, x, y: tokens.append(y))
        model(clip)
        # What the middle frame's tokens depend on; a plain sum after a LayerNorm is constant.
        (tokens[0][:, 40] ** 3).sum().backward()
        seen = clip.grad.abs().sum((0, 1, 3, 4)).nonzero().flatten().tolist()
        assert (40 - seen[0], seen[-1] - 40) == (expected, expected)


@slow
def test_a_distance_is_learned_from_the_weights_for_half_of_it(tmp_path):
    """The first row of the far table, up to 8 frames; from nothing those stay at chance."""
    words = ["--data", "toy_far", "--device", "cpu"]
    assert command(*words, "--num_frames", 2, "--out", tmp_path / "2") == 0
    for n in (4, 8):
        half = tmp_path / str(n // 2) / "last.pt"
        own = tmp_path / str(n)
        more = ["--num_frames", n, "--steps", 400, "--init", half, "--out", own]
        assert command(*words, *more) == 0
        last = (own / "log.jsonl").read_text().splitlines()[-1]
        assert json.loads(last)["top1"] > 99


def test_cost_against_size_is_measured_and_skips_what_takes_too_long(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(B, "SCALED", {"toy": dict(name="focal_toy")})
    monkeypatch.setattr(B, "FRAMES", [(2, 64), (4, 64), (4096, 64)])
    monkeypatch.setattr(B, "PIXELS", [(4, 64), (4, 96)])
    B.scale(limit=1)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| toy")]
    assert len(rows) == 4 and rows[2].endswith("skipped | |")
    macs = count_macs(create_model("focal_toy", 8, 4, 64)) / 1e9
    assert f"| 4 | 64 | {macs:.1f} G | " in rows[1] and float(rows[1].split("|")[6]) > 100
    assert (tmp_path / "scale.png").stat().st_size > 10000


# --------------------------------------------------- mistakes

@pytest.fixture(scope="session")
def muddle(videos, tmp_path_factory):
    """A folder with everything that goes wrong."""
    root = tmp_path_factory.mktemp("muddle")
    (root / "notes.pt").write_text("not a checkpoint")
    (root / "list.txt").write_text("a.mp4 0\nb.mp4 zero\n")
    (root / "alone.txt").write_text("three/val/aim/0.mp4 0\nthree/val/aim/2.mp4 1\n")
    os.makedirs(root / "empty" / "train" / "aim")
    os.makedirs(root / "data")
    os.symlink(videos, root / "data" / "k400")
    shutil.copytree(videos / "train" / "aim", root / "flat" / "train")
    shutil.copytree(videos / "train", root / "onlytrain" / "train")
    for split in ("train", "val"):
        shutil.copytree(videos / split / "aim", root / "one" / split / "aim")
        shutil.copytree(videos / split, root / "three" / split)
        shutil.copytree(videos / split / "aim", root / "three" / split / "third")
    assert command(*small(videos, root / "out", "--batch_size", 4, "--steps", 1, *PLAIN)) == 0
    return root


@pytest.mark.parametrize("words, message", (
    # what there is not
    ("--data k600",
     "no train videos of k600 in data/k600.*CLASS.*annotations/train.csv.*--root DIR"),
    ("--data empty", "no train videos of empty"),
    ("--data empty --split group", "no train videos of empty"),
    ("--data flat", "no train videos of flat.*--split group"),
    ("--data three/train", "no train videos of three/train.*--split group"),
    ("--data onlytrain", "no val videos of onlytrain"),
    ("--data one", "--data one: one class only, 'aim': nothing to tell apart"),
    ("--data nowhere", "--data nowhere: neither a folder, nor a list file, nor one of toy"),
    ("--data list.txt", "list.txt, line 2: 'b.mp4 zero' is not 'path label'"),
    ("--model resnet", "--model resnet: must be one of focal_t, focal_s"),
    ("--eval", "--eval needs weights: --init FILE"),
    ("--eval --predict a.mp4 --init out/last.pt", "--eval and --predict: one at a time"),
    ("--eval --init out/last.pt --data three --split group --workers 0", "no out/split.csv, where"),
    ("--eval --init nowhere.pt", "nowhere.pt: no such checkpoint"),
    ("--init notes.pt", "notes.pt cannot be read as a checkpoint"),
    ("--resume --out fresh", "fresh/last.pt: no such checkpoint"),
    # what is no setting
    ("--banana 1", "--banana: no such setting for focal_toy; --help --model focal_toy lists all"),
    ("--batch-size 4", "--batch-size: no such setting for focal_toy; did you mean --batch_size"),
    ("lr 0.1", "'lr': write --name value"),
    # what is no value for it
    ("--optimizer lamb", "--optimizer lamb: must be one of sgd, adamw"),
    ("--optimizer adam", "must be one of sgd, adamw; did you mean adamw"),
    ("--sampling foo", "--sampling foo: must be one of segments, tsn, dense"),
    ("--crop 3", "--crop 3: must be one of none, area"),
    ("--lr abc", "--lr abc: must be a number"),
    ("--lr nan", "--lr nan: must be a number"),
    ("--lr inf", "--lr inf: must be a number"),
    ("--lr 1 2", "--lr 1 2: takes one value"),
    ("--lr 0,1", "--lr 0,1: must be a number"),
    ("--sweep", "takes one value or more"),
    ("--batch_size 1.5", "--batch_size 1.5: must be a whole number"),
    ("--batch_size 0", "--batch_size 0: must be from 1 to 1e"),
    ("--epochs 0", "--epochs 0: must be from 0.001"),
    ("--clip_grad -1", "--clip_grad -1: must be from 0"),
    ("--smoothing 3", "--smoothing 3: must be from 0 to 1"),
    ("--seed -1", "--seed -1: must be from 0"),
    ("--workers -2", "--workers -2: must be from -1"),
    ("--flip yes", "--flip yes: must be a number"),
    ("--temporal no", "--temporal no: must be True or False"),
    ("--betas 0.9", "--betas 0.9: must be 2 numbers with commas"),
    ("--crop_range 1,0.5", "--crop_range 1,0.5: must be the lower number first"),
    ("--dim abc", "--dim abc: must be a whole number"),
    ("--dim 0", "dim=0: must be a whole number from 1 on"),
    ("--depths 3", "--depths 3: must be one or more numbers with commas, as in 1,2"),
    ("--drop_path 2", "drop_path=2.0: must be a number from 0 to below 1"),
    ("--views 4x2", "views '4x2': write CLIPSxCROPS"),
    ("--device gpu", "--device gpu: Expected one of cpu"),
    # what cannot be, or go together
    ("--resume out/last.pt --init out/last.pt", "leave --init, --eval, --predict"),
    ("--sweep levels=1 --eval", "--sweep trains, in one process"),
    ("--sweep seed=3", "seeds, folders and views are the sweep's"),
    ("--input diff --num_frames 1", "--input diff: one frame has no difference"),
    ("--accumulate 1000", "--accumulate 1000: an epoch has 64 micro-batches of 32 clips"),
    ("--crop area --crop_range 0.5,1.2", "with --crop area a share of the frame"),
    ("--data alone.txt --workers 0 --model focal_toy --image_size 32",
     "trained on and validated with"),
    ("--data alone.txt --root nowhere", "--root nowhere: no such folder"),
    ("--mixer attention --pattern window", "window=.1, 1, 1. with pattern='window': needs three"),
    ("--mixer attention --pattern window --window 3,3,3", "does not divide 8 x 8 x 8 tokens"),
    ("--mixer attention --pattern window --window 2,2", "needs three sizes"),
    ("--model lvt_toy --temporal_shift 0,8", "0 .off., a divisor from 2 to dim=64"),
    ("--model lvt_toy --temporal_shift 4,3", "3 does not divide 8 frames"),
    ("--out notes.pt", "--out notes.pt: is a file"),
    ("--levels 9", "levels=9: focal modulation here has 1 to 4"),
    ("--kernel softmax", "kernel: means nothing to model focal_toy with mixer="),
    ("--data three --model focal_toy --image_size 32 --workers 0 --batch_size 100",
     "18 training clips do not fill one batch of 100.*lower --batch_size"),
    ("--resume out/last.pt --lr 0.5 --seed 1", "lr was 0, is 0.5.*leave these flags out"),
    ("--resume out/last.pt --batch_size 2 --workers 0", "the checkpoint was made with"),
    ("--resume out/last.pt --model focal_t", "the checkpoint is of focal_toy; leave it out"),
    ("--eval --init out/last.pt --data three --workers 0",
     "was not trained on the classes of three: it does not know 'third'"),
    ("--data three --model focal_toy --image_size 32 --init out/last.pt --dim 64",
     r"shape: patch_embed.proj.weight is \(32, 3, 8, 8\) there and \(64")))
def test_mistakes_end_with_one_line_that_says_the_value_the_rule_and_the_way_out(
        words, message, muddle, monkeypatch):
    monkeypatch.chdir(muddle)
    said = command(*words.split())
    assert isinstance(said, str) and said.startswith("error: ")
    assert re.search(message, said, re.DOTALL), said


def test_a_mistake_of_the_command_line_is_one_line_and_exit_1():
    done = subprocess.run(TRAIN + ["--data", "nowhere"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_help_shows_every_setting_and_the_arguments_of_a_model(capsys):
    assert command("--help", "--model", "lvt_toy") is None
    said = capsys.readouterr().out
    for name in train.RUN | train.LEARNING | D.SETTINGS | train.arguments("lvt_toy"):
        assert f"--{name} " in said or name == "num_classes"
    assert "--optimizer adamw" in said and "A ViT for clips" in said
