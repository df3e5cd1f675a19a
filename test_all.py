"""
The claims of this repository, each checked against something else: outputs of the released
networks, torch's or Python's own operators, formulas written out slowly, numbers worked by hand.

    pytest -q            everything, on a CPU     pytest -q -k focal     the claims about one thing

assets/golden/*.pt hold outputs of the released networks for weights and inputs that `filled` and
`seeded` make again from nothing but names, shapes and seeds, so no weights are shipped.
"""
import colorsys
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zlib

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import data as D
import train
from backbone import (MODELS, count_macs, create_model, load_weights, our_names, read_checkpoint)
from focal import SpatioTemporalFocalModulation
import linear_attn as A

HERE = os.path.dirname(os.path.abspath(__file__))
close = torch.testing.assert_close


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


def small_focal(**changes):
    return create_model("focal_t", **{
        **dict(num_classes=11, image_size=64, dim=32, depths=(1, 1, 2, 1)), **changes}).eval()


FOCAL = {"focal_tiny": {}, "focal_tiny_tubelet2": dict(tubelet=2),
         "focal_convembed": dict(conv_embed=True),
         "focal_layerscale_postln": dict(layerscale=True, postln=True)}


# ----------------------------------------------------------------------------- the focal network

@pytest.mark.parametrize("name", FOCAL)
def test_focal_computes_what_the_released_network_computes(name):
    record = golden(name)
    model = small_focal(**FOCAL[name])
    load_weights(model, filled(record["manifest"]))                       # strictly, in the released key names
    x = seeded(record["x_shape"], record["x_seed"]).transpose(1, 2)       # (B, T, 3, H, W) -> (B, 3, T, H, W)
    close(model(x), record["logits"], rtol=0, atol=2e-5)
    if "logits64" in record:                                              # and its gradients, in float64
        logits = model.double()(x.double())
        close(logits, record["logits64"], rtol=0, atol=1e-9)
        (logits * seeded(logits.shape, record["grad_probe_seed"]).double()).sum().backward()
        norms = {key: p.grad.norm().item() for key, p in model.named_parameters()}
        expected = {key: float(norm)
                    for key, norm in our_names(model, record["grad_norms"]).items()}
        assert norms == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("tubelet", (1, 2))
def test_inflated_image_network_with_identity_start_is_the_image_network_on_a_still_clip(tubelet):
    record = golden("image_focalnet_tiny")
    model = small_focal(num_classes=1000, tubelet=tubelet)
    done = load_weights(model, {"model": filled(record["manifest"])}, temporal_init="identity")
    assert all("_temporal" in key for key in done["fresh"]) and len(done["fresh"]) == 5 * 6
    image = seeded(record["x_shape"], record["x_seed"])
    close(model(image[:, :, None].expand(-1, -1, 8, -1, -1)), record["logits"], rtol=0, atol=2e-5)


def test_fresh_inflation_leaves_the_temporal_branch_and_swaps_the_head():
    torch.manual_seed(0)
    model = small_focal()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = filled(golden("image_focalnet_tiny")["manifest"])
    done = load_weights(model, state)
    after = model.state_dict()
    assert sorted(done["left_over"]) == ["head.bias", "head.weight"]
    assert all(torch.equal(before[key], after[key]) for key in done["fresh"])
    close(after["layers.0.blocks.0.branches.focal.f.weight"],
          state["layers.0.blocks.0.modulation.f.weight"])


def test_focal_parameters_and_multiply_adds():
    """The released parameters; the paper's figure says 63, 124, 149 G: 149 is not its network's."""
    for name, parameters, gmacs in (("focal_t", 49_553_272, 63.00), ("focal_s", 88_735_168, 124.33),
                                    ("focal_b", 157_389_216, 220.65)):
        with torch.device("meta"):
            model = create_model(name)
        assert sum(p.numel() for p in model.parameters()) == parameters
        dim, depths = MODELS[name]["dim"], MODELS[name]["depths"]
        macs, tokens = 8 * 56 * 56 * 48 * dim + 8 * dim * 400, 8 * 56 * 56            # stem, head
        for s, depth in enumerate(depths):
            c = dim * 2**s
            macs += depth * tokens * (c * (2*c + 3) + c * (c + 3) + 8*c*c + 34*c + 3*c*c + 8*c*c)
            macs += tokens // 4 * 4*c * 2*c if s < 3 else 0                            # downsampling
            tokens //= 4
        assert macs == count_macs(model)
        assert round(count_macs(model) / 1e9, 2) == gmacs


def slow_focal(layer, x):
    """Focal modulation by loops over levels and torch's functional convolutions, by the formula."""
    B, T, H, W, C = x.shape
    L, k0 = layer.levels, 3
    q, z, g = F.linear(x, layer.f.weight, layer.f.bias).split([C, C, L + 1], -1)
    total = 0
    for l in range(L):
        w = layer.focal_layers[l][0].weight
        z = F.gelu(F.conv2d(z.reshape(B*T, H, W, C).movedim(-1, 1), w, padding=k0 // 2 + l,
                            groups=C))
        z = z.movedim(1, -1).reshape(B, T, H, W, C)
        total = total + z * g[..., l, None]
    m_s = layer.h(total + F.gelu(z.mean((2, 3), keepdim=True)) * g[..., L, None])
    z, g = layer.f_temporal(m_s if layer.design == "sequential" else x).split([C, L + 1], -1)
    total = 0
    for l in range(L):
        w = layer.focal_layers_temporal[l][0].weight[..., 0]                           # (C, C, k)
        z = F.conv1d(z.permute(0, 2, 3, 4, 1).reshape(-1, C, T), w, padding=k0 // 2 + l)
        z = F.gelu(z.reshape(B, H, W, C, T).permute(0, 4, 1, 2, 3))
        total = total + z * g[..., l, None]
    return q, m_s, layer.h_temporal(total + F.gelu(z.mean(1, keepdim=True)) * g[..., L, None])


@pytest.mark.parametrize("design", ("parallel", "sequential"))
@pytest.mark.parametrize("levels", (1, 4))
def test_focal_layer_is_its_formula(design, levels):
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 5, 8, dtype=torch.float64)
    for fusion, join in dict(multiply=lambda a, b: a * b, add=lambda a, b: a + b,
                             average=lambda a, b: (a + b) / 2).items():
        layer = SpatioTemporalFocalModulation(8, levels, design=design, fusion=fusion).double()
        q, m_s, m_t = slow_focal(layer, x)
        y, maps = layer(x, return_maps=True)
        close(y, layer.proj(q * join(m_s, m_t)))
        close(maps["spatial"], m_s)
        close(maps["temporal"], m_t)
    half = SpatioTemporalFocalModulation(8, levels, design=design,
                                         normalize_modulator=True).double()
    half.load_state_dict(SpatioTemporalFocalModulation(8, levels).double().state_dict())
    with torch.no_grad():
        half.h.bias.zero_()
    whole = SpatioTemporalFocalModulation(8, levels, design=design).double()
    whole.load_state_dict(half.state_dict())
    close(half(x, True)[1]["spatial"] * (levels + 1), whole(x, True)[1]["spatial"])


def test_every_option_of_focal_runs_trains_and_keeps_batch_items_apart():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 32, 32)
    for options in (dict(temporal=False), dict(spatial=False), dict(design="sequential"),
                    dict(design="joint3d"), dict(fusion="project"), dict(levels=3),
                    dict(levels=(1, 4)), dict(postln_in_modulation=True),
                    dict(normalize_modulator=True), dict(tubelet=2),
                    dict(postln=True, layerscale=True)):
        model = create_model("focal_toy", 5, 4, 32, **options).eval()
        y = model(x)
        assert y.shape == (2, 5)
        close(y, model(x), rtol=0, atol=0)                                             # eval() has no dice
        close(model(x[:1]), y[:1], rtol=1e-4, atol=1e-5)
        y.sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_without_time_the_order_of_frames_does_not_matter_and_with_it_it_does():
    torch.manual_seed(0)
    x = torch.randn(1, 3, 8, 32, 32)
    blind, seeing = (create_model("focal_toy", 8, 8, 32, temporal=t).eval() for t in (False, True))
    close(blind(x), blind(x.flip(2)), rtol=1e-4, atol=1e-6)
    assert (seeing(x) - seeing(x.flip(2))).abs().max() > 1e-3


def test_other_sizes_run_and_sizes_that_the_strides_do_not_divide_raise():
    model = small_focal()
    assert model(torch.randn(1, 3, 3, 32, 96)).shape == (1, 11)
    with pytest.raises(ValueError, match="100 x 64 pixels.*multiples of 32.*nearest is 96 x 64"):
        model(torch.randn(1, 3, 8, 100, 64))
    with pytest.raises(ValueError, match="7 frames.*multiples of 2"):
        small_focal(tubelet=2, num_frames=7)


def test_drop_path_acts_per_frame_keeps_the_mean_and_rests_in_eval():
    """As released: a frame of a clip loses the branch, another frame of the same clip keeps it."""
    torch.manual_seed(0)
    block = create_model("focal_t", depths=(2,), dim=8, drop_path=0.5,
                         image_size=32).layers[0]["blocks"][1]
    assert block.drop_path == 0.5
    x = torch.randn(64, 8, 2, 2, 8)
    block.branches["mlp"] = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Identity())
    del block.branches["focal"], block.norms["focal"]
    full, train_ = block.eval()(x) - x, block.train()(x) - x
    kept = train_.abs().amax((2, 3, 4)) > 0                                            # (clips, frames)
    assert 0.42 < kept.float().mean() < 0.58 and (kept.any(1) & ~kept.all(1)).sum() > 50
    close(train_[kept], 2 * full[kept])


# ----------------------------------------------------------------------------- linear attention

LVT = {"lvt_default": {}, "lvt_separate": dict(fixation="qkv"),
       "lvt_baseline": dict(fixation="none", temporal_shift=0, spatial_shift=0),
       "lvt_softmax": dict(kernel="softmax", fixation="none"),
       "lvt_joint": dict(pattern="joint", fixation="none", temporal_shift=0, spatial_shift=0),
       "lvt_t4": dict(num_frames=4, image_size=84)}


def small_lvt(**changes):
    return create_model("lvt", **dict(num_classes=10, num_frames=8, image_size=56, dim=64, depth=2,
                                      heads=2, head_hidden=96) | changes).eval()


@pytest.mark.parametrize("name", LVT)
def test_lvt_computes_what_the_released_network_computes(name):
    record = golden(name)
    model = small_lvt(**LVT[name])
    load_weights(model, {"model_state": filled(record["manifest"])})
    x = seeded(record["x_shape"], record["x_seed"])
    logits = model(x)
    close(logits, record["logits"], rtol=0, atol=2e-6)
    if "grad_norms" in record:
        (logits * record["grad_probe"]).sum().backward()
        norms = {key: p.grad.norm().item() for key, p in model.named_parameters()}
        expected = {key: float(norm)
                    for key, norm in our_names(model, record["grad_norms"]).items()}
        assert norms == pytest.approx(expected, rel=2e-5)


def test_lvt_parameters_and_multiply_adds():
    """Live parameters (published counts hold an unused layer, 89,262); one view, one gate."""
    for frames, parameters in ((8, 51_919_278), (16, 51_919_278 + 8 * 512)):
        with torch.device("meta"):
            model = create_model("lvt", num_frames=frames)
        assert sum(p.numel() for p in model.parameters()) == parameters
    tokens, c, d = 16 * 17 * 17, 512, 64
    attention = 4*c*c + 3*d*c + 2*d*c + c                     # qkv and proj, gate, both sums over tokens, normaliser
    macs = tokens * (3 * 16 * 16 * c + 12 * (2 * attention + 8*c*c + 9 * 4*c)) + c * 768 + 768 * 174
    assert count_macs(model) == macs and round(macs / 1e9, 1) == 253.8
    layer_norm = tokens * 5 * c * (1 + 12 * 3 + 1)                                     # the paper's counter has these
    assert round((macs - tokens * 24 * c + layer_norm) / 1e9, 1) == 254.2              # and no normalisers


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


OWN = {"performer": lambda N: dict(omega=A.orthogonal_features(8, 8).double()),
       "orthoformer": lambda N: dict(L=6),
       "linformer": lambda N: dict(E=torch.randn(5, N, dtype=torch.float64),
                                   P=torch.randn(5, N, dtype=torch.float64))}


@pytest.mark.parametrize("kernel", A.KERNELS)
def test_attention_is_its_explicit_weights(kernel):
    """The N x N matrix no kernel builds, in closed form, gives the same: (f f^T) v = f (f^T v)."""
    for N in (1, 2, 17):
        q, k, v = qkv64(N)
        own = OWN.get(kernel, lambda N: {})(N)
        q, k = A.features(q, kernel), A.features(k, kernel)
        weights = A.attention_map(kernel, q, k, **own)
        assert weights.shape == (1, 2, N, N)
        close(A.attend(kernel, q, k, v, **own), weights @ v, rtol=1e-10, atol=1e-10)
        if kernel not in ("linformer", "identity"):                                    # every other kernel averages
            total = weights.sum(-1)                                                    # a query without features: 0
            close(total[total > 0], torch.ones_like(total[total > 0]), rtol=1e-3, atol=0)


def test_kernels_are_their_formulas_written_out_slowly():
    q, k, v = qkv64(9)
    i = torch.arange(1, 10, dtype=torch.float64)
    r, s = torch.relu, 8**-0.5
    near = torch.cos(math.pi / 2 * (i[:, None] - i) / 9)
    weights = dict(
        relu=(r(q) @ r(k).mT
              + s * (r(q).sum(-1)[..., None] + r(k).sum(-1)[..., None, :]) + 1, 1e-6),  # d s^2 = 1
        relu_paper=(r(q) @ r(k).mT, 1e-6), elu=((F.elu(q) + 1) @ (F.elu(k) + 1).mT, 1e-6),
        sigmoid=(q.sigmoid() @ k.sigmoid().mT, 1e-6), identity=(q @ k.mT, 1e-6),
        cosformer=((r(q) @ r(k).mT) * near, 0), softmax=((q @ k.mT / 8**0.5).exp(), 0))
    for kernel, (a, eps) in weights.items():
        y = a @ v / (a.sum(-1, keepdim=True) + eps).clamp(min=1e-6 if eps == 0 else -math.inf)
        close(A.attend(kernel, A.features(q, kernel), A.features(k, kernel), v), y,
              rtol=1e-10, atol=1e-10)
    E, P = torch.randn(2, 4, 9, dtype=torch.float64)
    y = torch.softmax(q @ (E @ k).mT / 8**0.5, -1) @ (P @ v)
    close(A.linformer(q, k, v, E, P), y, rtol=1e-10, atol=1e-10)
    few = torch.stack([q[0, h, A.landmarks(q, 4)[0, h]] for h in range(2)])[None] * 8**-0.25
    y = torch.softmax(q * 8**-0.25 @ few.mT, -1) @ (torch.softmax(few @ k.mT * 8**-0.25, -1) @ v)
    close(A.orthoformer(q, k, v, 4), y, rtol=1e-10, atol=1e-10)


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
    few = qkv64(5)
    close(A.orthoformer(*few, 64), A.orthoformer(*few, 5))                             # fewer tokens than landmarks


def test_performer_is_unbiased_for_the_exponential_of_the_scaled_product():
    """4000 phi(q) . phi(k) average exp(q . k / sqrt d) to 4 standard errors; orthogonal rows."""
    d, generator = 16, torch.Generator().manual_seed(0)
    q, k = torch.randn(2, d, generator=generator, dtype=torch.float64)
    draws = []
    for _ in range(4000):
        omega = A.orthogonal_features(d, d, generator).double()
        draws.append(((omega @ (q + k) * d**-0.25).exp()
                      * (-(q @ q + k @ k) / (2 * d**0.5)).exp()).mean())
    draws = torch.stack(draws)
    assert abs(draws.mean() - torch.exp(q @ k / d**0.5)) < 4 * draws.std() / 4000**0.5
    unit = F.normalize(omega, dim=1)
    close(unit @ unit.T, torch.eye(d, dtype=torch.float64), rtol=0, atol=1e-5)
    x = torch.randn(3, d, dtype=torch.float64)                                         # the features, by their formula
    logits = x * d**-0.25 @ omega.T - (x * d**-0.25).square().sum(-1, keepdim=True) / 2
    close(A.performer_features(x, omega, False),
          d**-0.5 * ((logits - logits.amax(-1, keepdim=True)).exp() + 1e-4))
    close(A.performer_features(x, omega, True), d**-0.5 * ((logits - logits.max()).exp() + 1e-4))


def test_linear_attention_counts_operations_in_proportion_to_tokens():
    from torch.utils.flop_counter import FlopCounterMode
    flops = {}
    for kernel in ("relu", "cosformer", "performer", "softmax"):
        for N in (1000, 2000):
            q, k, v = torch.empty(3, 1, 2, N, 8, device="meta")
            with FlopCounterMode(display=False) as counter:
                own = dict(omega=torch.empty(8, 8, device="meta")) if kernel == "performer" else {}
                A.attend(kernel, q, k, v, **own)
            flops[kernel, N] = counter.get_total_flops()
        growth = flops[kernel, 2000] / flops[kernel, 1000]
        assert growth == pytest.approx(4 if kernel == "softmax" else 2, rel=0.01)
    assert flops["relu", 1000] == 2 * 2 * 1000 * (2 * 8 * 8 + 8)                       # f(k)^T v, f(q) kv, f(q) . sum


@pytest.mark.parametrize("kernel", A.KERNELS)
def test_attention_stays_finite_where_it_is_tempted(kernel):
    """Zero queries and keys, one token, 1e4 in bf16: values and gradients; fp16 at N = 3136."""
    for N, dtype, scale in ((1, torch.float32, 1), (70, torch.float32, 0),
                            (70, torch.bfloat16, 1e4), (70, torch.float16, 0),
                            (3136, torch.float16, 1)):
        if kernel == "orthoformer" and N == 3136:
            continue                                                                   # 64 steps of it: slow
        torch.manual_seed(0)
        x = (torch.randn(3, 1, 1, N, 64) * scale).to(dtype).requires_grad_()
        own = {key: value.to(dtype) for key, value in dict(
            omega=A.orthogonal_features(64, 64), E=torch.randn(16, N) / 4,
            P=torch.randn(16, N) / 4).items()
            if (key == "omega") == (kernel == "performer") and kernel in ("performer", "linformer")}
        q, k = A.features(x[0], kernel), A.features(x[1], kernel)
        y = A.attend(kernel, q, k, x[2], **own)
        y.float().square().sum().backward()
        if kernel == "identity" and scale:                                             # signed weights: sums near zero
            continue
        assert y.dtype == dtype and y.isfinite().all() and x.grad.isfinite().all(), (N, dtype)
        if dtype == torch.float16 and scale:
            exact = A.attend(kernel, q.double(), k.double(), x[2].double(),
                             **{key: w.double() for key, w in own.items()})
            assert (y - exact).norm() / exact.norm() < 0.01


def test_fifty_thousand_tokens_are_finite_in_bf16():
    torch.manual_seed(0)
    x = torch.randn(3, 1, 1, 50_000, 32, dtype=torch.bfloat16, requires_grad=True)
    q, k = A.features(x[0], "relu"), A.features(x[1], "relu")
    y = A.linear(q, k, x[2])
    y.float().sum().backward()
    exact = A.linear(q.double(), k.double(), x[2].double())
    assert x.grad.isfinite().all() and (y - exact).norm() / exact.norm() < 0.01


@pytest.mark.parametrize("kernel", ("softmax", "relu"))
@pytest.mark.parametrize("pattern", ("time", "space", "joint"))
def test_every_pattern_is_full_attention_under_a_mask(pattern, kernel):
    torch.manual_seed(0)
    layer = A.Attention(8, 2, kernel, pattern, fixation="none").double()
    x = torch.randn(2, 3, 2, 4, 8, dtype=torch.float64)
    q, k, v = (t.reshape(2, 24, 2, 4).transpose(1, 2) for t in layer.qkv(x).chunk(3, -1))      # all 24 tokens
    frame, pixel = torch.arange(24) // 8, torch.arange(24) % 8
    allowed = dict(time=pixel[:, None] == pixel, space=frame[:, None] == frame,
                   joint=torch.ones(24, 24, dtype=bool))[pattern]
    a = (q @ k.mT / 2).exp() if kernel == "softmax" else (F.relu(q) + 0.5) @ (F.relu(k) + 0.5).mT
    a = a * allowed
    y = (a / a.sum(-1, keepdim=True) @ v).transpose(1, 2).reshape(2, 3, 2, 4, 8)
    close(layer(x), layer.proj(y), rtol=1e-6, atol=1e-6)


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
    order = {1: [(1, 0), (-1, 0), (0, 1), (0, -1), (-1, -1), (1, 1), (-1, 1), (1, -1)]}
    order[2] = [(2 * a, 2 * b) for a, b in order[1]] + [
        (-2, -1), (-2, 1), (-1, -2), (1, -2), (2, -1), (2, 1), (-1, 2), (1, 2)] + order[1]
    order[4] = [(4 * a, 4 * b) for a, b in order[1]]
    for size, f in ((1, 6), (2, 2), (4, 1)):                                           # C // 16, C // 48, C // 160
        x = torch.randn(1, 2, 6, 7, 160 if size == 4 else 96)
        y = A.spatial_shift(x, size)
        for (i, (dr, dc)), r, c in ((pair, r, c) for pair in enumerate(order[size])
                                    for r in range(6) for c in range(7)):
            there = 0 <= r + dr < 6 and 0 <= c + dc < 7
            expected = x[:, :, r + dr, c + dc] if there else x[:, :, r, c] * (i >= 4)
            close(y[:, :, r, c, i*f:(i+1)*f], expected[..., i*f:(i+1)*f])
        close(y[..., len(order[size])*f:], x[..., len(order[size])*f:])


def test_space_attention_with_the_temporal_shift_sees_three_frames():
    torch.manual_seed(0)
    layer = A.Attention(16, 2, "softmax", "space", "none", temporal_shift=4)
    x = torch.randn(1, 6, 2, 2, 16, requires_grad=True)
    layer(x)[0, 3].sum().backward()
    assert (x.grad.abs().amax((0, 2, 3, 4)) > 0).tolist() == [False, False, True, True, True, False]


def test_feature_fixation_is_equations_4_and_5():
    torch.manual_seed(0)
    q, k, v = (F.relu(t) + 0.5 for t in torch.randn(3, 1, 2, 2, 2, 2, 4))              # (B, T, H, W, heads, d)
    for fixation, by in [("separate", "concat")] + [
            (f, b) for f in ("qk", "qk_shared", "qkv", "qkv_shared")
            for b in ("concat", "add", "multiply")]:
        layer = A.Attention(8, 2, fixation=fixation, fixation_by=by)
        seen = [q, k, v] if "v" in fixation else [q, k]
        z = dict(concat=torch.cat(seen, -1), add=torch.stack(seen).sum(0),
                 multiply=torch.stack(seen).prod(0))[by]
        gates = [layer.pgate] * 2 if fixation.endswith("shared") else [layer.q_gate, layer.k_gate]
        for new, old, gate, source in zip(layer.fixate(q, k, v), (q, k), gates, (q, k)):
            z_here = source if fixation == "separate" else z
            close(new, old / (1 + torch.exp(-(z_here @ gate.weight.T + gate.bias))))
    first, last = (A.Attention(16, 2, shift_first=s, temporal_shift=4, spatial_shift=1)
                   for s in (True, False))
    last.load_state_dict(first.state_dict())
    x = torch.randn(1, 3, 3, 3, 16)
    assert (first(x) - last(x)).abs().max() > 1e-3                                     # the order of the two matters


def test_either_trunk_takes_either_mixer_and_every_option_trains():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 32, 32)
    for name, options in [("focal_toy", dict(mixer="attention", kernel=kernel, pattern=pattern))
                          for kernel in A.KERNELS for pattern in ("divided", "space", "joint")] + [
            ("lvt_toy", options) for options in (
                dict(mixer="focal"), dict(order="space_time"),
                dict(pattern="space", spatial_shift=0), dict(pattern="joint"),
                dict(fixation="separate"), dict(fixation_by="add"), dict(kernel="performer"),
                dict(kernel="linformer"), dict(mlp="plain", temp_embed=False),
                dict(spatial_shift=0, temporal_shift=(8, 2)), dict(drop_path=0.5))]:
        model = create_model(name, 5, 4, 32, **options).eval()
        y = model(x)
        close(y, model(x), rtol=0, atol=0)
        if options.get("kernel") != "identity":                                        # its sums may be near zero
            close(model(x[:1]), y[:1], rtol=1e-3, atol=1e-4)
        y.sum().backward()
        assert all(p.grad is not None for p in model.parameters()), (name, options)


def test_what_cannot_go_together_raises_with_the_reason():
    for options, message in (
            (dict(pattern="space"), "pattern='space' with spatial_shift=1.*spatial_shift=0"),
            (dict(pattern="axial"), "pattern='axial': use 'divided'"),
            (dict(kernel="exp"), "kernel='exp': use one of"),
            (dict(heads=5), "heads=5 does not divide"), (dict(order="both"), "order='both'"),
            (dict(fixation="separate", fixation_by="add"), "joins nothing"),
            (dict(mlp="big"), "mlp='big'"),
            (dict(spatial_shift=2, dim=32), "spatial_shift=2 needs 48 channels"),
            (dict(mixer="x"), "mixer='x'"),
            (dict(spatial_shift=3), "spatial_shift=3: use one of 0, 1, 2, 4")):
        with pytest.raises(ValueError, match=message):
            create_model("lvt_toy", **options)
    with pytest.raises(ValueError, match="4 frames: the temporal embedding has 8"):
        small_lvt()(torch.randn(1, 3, 4, 56, 56))
    with pytest.raises(ValueError, match="9 tokens: kernel='linformer' was made for 25"):
        create_model("lvt_toy", kernel="linformer")(torch.randn(1, 3, 8, 32, 32))


# ----------------------------------------------------------------------------- checkpoints

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
    path = str(tmp_path / "a.pt")
    torch.save({"model": Evil()}, path)
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        read_checkpoint(path)
    assert "must not run" not in capfd.readouterr().out
    torch.save({"model": {"w": torch.arange(1000.)}}, path)
    blob = bytearray(open(path, "rb").read())
    blob[len(blob) // 2] ^= 1                                                          # one bit of one weight
    open(path, "wb").write(blob)
    with pytest.raises(ValueError, match="checksum"):
        read_checkpoint(path)
    open(path, "wb").write(blob[:2000])
    with pytest.raises(ValueError, match="cannot be read"):
        read_checkpoint(path)


def test_weights_that_do_not_fit_name_what_is_wrong():
    model = small_focal()
    state = filled(golden("focal_tiny")["manifest"])
    with pytest.raises(ValueError, match="missing: layers.3.blocks.0.branches.focal.h.bias"):
        load_weights(model, {key: v for key, v in state.items()
                             if key != "layers.3.blocks.0.modulation.h.bias"})
    with pytest.raises(ValueError, match="unexpected: extra"):
        load_weights(model, state | {"extra": torch.ones(1)})
    with pytest.raises(ValueError, match=r"shape: patch_embed.proj.weight is \(32, 3, 4, 4\) there "
                                         r"and \(64, 3, 4, 4\)"):
        load_weights(small_focal(dim=64), state)
    own = small_focal()
    load_weights(own, {"model": model.state_dict()})                                   # our own names, too
    close(own.state_dict(), model.state_dict())


# --------------------------------------------------------------------- sampling, cropping, colours

def test_frame_indices_are_those_worked_by_hand():
    assert D.sample_val(300, 8, 4).tolist() == [18, 55, 92, 129, 167, 204, 241, 278]   # a = 297/8, floor(i a + a/2)
    assert D.sample_val(3, 8, 4).tolist() == [0] * 8
    drawn = np.stack([D.sample_train(300, 8, 4, np.random.default_rng(k)) for k in range(500)])
    assert drawn.min(0).tolist() == [37 * i for i in range(8)]                         # segments of (300 - 3) // 8 = 37
    assert drawn.max(0).tolist() == [37 * i + 36 for i in range(8)]
    assert D.sample_train(5, 8, 4, None).tolist() == [0, 0, 0, 1, 1, 1, 2, 2]          # around(i 2/8), half to even
    ten = D.sample_train(10, 8, 4, np.random.default_rng(0))                           # too short for segments
    assert (np.diff(ten) >= 0).all() and ten.max() < 7
    # a = 300/8 = 37.5; clip v takes floor(37.5 i + (v + .5) 37.5/4)
    assert D.sample_test(300, 8, 4)[0].tolist() == [4, 42, 79, 117, 154, 192, 229, 267]
    assert D.sample_test(300, 8, 4)[3].tolist() == [32, 70, 107, 145, 182, 220, 257, 295]
    assert D.sample_test(1, 8, 4).max() == 0


def test_crops_are_those_worked_by_hand():
    assert D.crop_offsets(256, 341, 224, 1) == [(16, 58)]
    assert D.crop_offsets(224, 299, 224, 3) == [(0, 0), (0, 37), (0, 74)]              # one column, 298, is never seen
    assert D.crop_offsets(400, 224, 224, 3) == [(0, 0), (88, 0), (176, 0)]
    shares = []
    for k in range(400):
        top, left, h, w = D.random_box(256, 340, (0.08, 1.0), np.random.default_rng(k))
        assert 0 <= top <= 256 - h and 0 <= left <= 340 - w and 0.74 < w / h < 1.35
        shares.append(h * w / (256 * 340))
    assert 0.075 < min(shares) < 0.1 and 0.7 < max(shares) <= 1
    assert D.random_box(10, 1000, (0.9, 1.0), np.random.default_rng(0)) == (0, 495, 10, 10)    # none fits: the centre


def test_colour_jitter_is_what_python_and_torch_compute_pixel_by_pixel():
    torch.manual_seed(0)
    x = torch.rand(2, 3, 2, 3, 4, dtype=torch.float64)
    x[0, :, 0, 0, 0] = 0.5                                                             # a grey pixel has no hue
    ones = torch.tensor([1., 1., 1., 0.], dtype=torch.float64).expand(2, 2, 4)
    close(D.colour_jitter(x, ones), x)
    turned = D.colour_jitter(x, ones + torch.tensor([0, 0, 0, 0.1], dtype=torch.float64))
    for where in np.ndindex(2, 2, 3, 4):
        b, t, i, j = where
        h, s, v = colorsys.rgb_to_hsv(*x[b, :, t, i, j].tolist())
        close(turned[b, :, t, i, j],
              torch.tensor(colorsys.hsv_to_rgb((h + 0.1) % 1, s, v), dtype=torch.float64))
    luma = (x * torch.tensor([.299, .587, .114], dtype=torch.float64).view(1, 3, 1, 1, 1)
            ).sum(1, keepdim=True)
    c = torch.tensor([1.3, 1., 1., 0.], dtype=torch.float64).expand(2, 2, 4)
    close(D.colour_jitter(x, c), (1.3 * x).clamp(0, 1))
    c = torch.tensor([1., .7, 1., 0.], dtype=torch.float64).expand(2, 2, 4)            # towards the mean of each frame
    close(D.colour_jitter(x, c), .7 * x + .3 * luma.mean((-2, -1), keepdim=True))
    c = torch.tensor([1., 1., .8, 0.], dtype=torch.float64).expand(2, 2, 4)
    close(D.colour_jitter(x, c), .8 * x + .2 * luma)


def test_to_device_flips_the_width_greys_and_normalises():
    clip = torch.randint(0, 256, (2, 2, 3, 4, 3), dtype=torch.uint8)                   # (B, T, H, W, 3)
    batch = dict(clip=clip, flip=torch.tensor([True, False]), grey=torch.tensor([False, True]),
                 colour=torch.tensor([1., 1., 1., 0.]).expand(2, 2, 4))
    x = D.to_device(batch, D.PIPELINES["focal"], torch.device("cpu"))
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    a = (clip[0].numpy()[:, :, ::-1].astype(float) - mean) / std
    close(x[0], torch.tensor(a.transpose(3, 0, 1, 2).copy(), dtype=torch.float32))
    g = clip[1].numpy() @ np.array([.299, .587, .114])
    close(x[1, 1], torch.tensor((g - mean[1]) / std[1], dtype=torch.float32))


def test_lvt_sampling_and_crops_are_those_worked_by_hand():
    ends = [0, 6, 12, 18, 24, 31, 37, 43, 49]                  # 50 frames, T 8: segments of 6.125, rounded half to even
    assert D.sample_tsn(50, 8).tolist() == [3, 9, 15, 21, 27, 34, 40, 46]              # test clip 0: their middles
    assert D.sample_tsn(50, 8, clip=1).tolist() == ends[:-1]                           # test clip 1: their starts
    drawn = np.array([D.sample_tsn(50, 8, np.random.default_rng(seed)) for seed in range(1000)])
    assert drawn.min(0).tolist() == ends[:-1] and drawn.max(0).tolist() == ends[1:]    # both ends included
    assert D.sample_dense(300, 8, 4, 0).tolist() == [0, 4, 8, 13, 17, 22, 26, 31]      # 31/7 apart
    assert D.sample_dense(300, 8, 4, 1).tolist() == [268, 272, 276, 281, 285, 290, 294, 299]
    assert D.sample_dense(20, 8, 4, .9).tolist() == [0, 4, 8, 13, 17, 19, 19, 19]      # over at 19
    p = D.PIPELINES["lvt_kinetics"]
    assert D.frames_of(p, 16, 4, None)(556)[::16].tolist() == [0, 75, 150, 225]        # (556 - 256) v/4
    boxes = {D.multi_scale_crop(256, 340, np.random.default_rng(k)) for k in range(5000)}
    assert {box[2:] for box in boxes} == {
        (a, b) for a in (256, 224, 192, 168) for b in (256, 224, 192, 168)
        if abs((256, 224, 192, 168).index(a) - (256, 224, 192, 168).index(b)) < 2}
    assert {box[:2] for box in boxes if box[2:] == (192, 168)} == {                    # 13 places, steps of 16 and 43
        (0, 0), (0, 172), (64, 0), (64, 172), (32, 86), (32, 0), (32, 172), (64, 86), (0, 86),
        (16, 43), (16, 129), (48, 43), (48, 129)}
    sides = [D.training_box(256, 340, ("short_side", 256/224, 320/224),
                            np.random.default_rng(k))[2] for k in range(500)]
    assert min(sides) in (179, 180, 181) and max(sides) in (223, 224)                  # 256 * 224/320, 256 * 224/256


def test_erasing_blanks_one_box_in_all_frames():
    p = D.PIPELINES["lvt_ssv2"]
    boxes = np.array([D.erase_box(224, 160, np.random.default_rng(k), p["erase"])
                      for k in range(2000)])
    erased = boxes[boxes[:, 2] > 0]
    shares, aspects = erased[:, 2] * erased[:, 3] / 224 / 160, erased[:, 2] / erased[:, 3]
    assert (0.45 < len(erased) / 2000 < 0.55 and 0.018 < shares.min() < 0.04
            and 0.3 < shares.max() < 0.34)
    assert 0.28 < aspects.min() < 0.4 and 2.7 < aspects.max() < 3.5
    clip = torch.randint(0, 256, (2, 3, 8, 8, 3), dtype=torch.uint8)
    batch = dict(clip=clip, erase=torch.tensor([[2, 1, 3, 4], [0, 0, 0, 0]]))
    x = D.to_device(batch, p, torch.device("cpu"))
    whole = D.to_device(dict(clip=clip), p, torch.device("cpu"))
    assert (x[0, :, :, 2:5, 1:5] == 0).all() and torch.equal(x[1], whole[1])
    x[0, :, :, 2:5, 1:5] = whole[0, :, :, 2:5, 1:5]
    assert torch.equal(x, whole)


def test_autoaugment_is_what_pil_computes():
    """Policy v0's operations at levels it uses, with timm's arguments to PIL, worked by hand."""
    pil = pytest.importorskip("PIL.Image")
    from PIL import ImageEnhance, ImageOps

    def move(*matrix):
        return lambda im: im.transform(im.size, pil.Transform.AFFINE, matrix,
                                       pil.Resampling.BILINEAR, fillcolor=(128,) * 3)
    y, x = np.mgrid[0:40, 0:56]
    smooth = np.stack([128 + 120 * np.sin(y / 5 + c) * np.cos(x / 7) for c in range(3)],
                      -1).astype(np.uint8)
    clip = np.stack([
        smooth, np.random.default_rng(0).integers(40, 200, smooth.shape).astype(np.uint8)])
    for name, level, sign, reference, tolerance in (
            ("Invert", 9, 1, ImageOps.invert, 0), ("Equalize", 4, 1, ImageOps.equalize, 0),
            ("AutoContrast", 2, 1, ImageOps.autocontrast, 0),
            ("Posterize", 6, 1, lambda im: ImageOps.posterize(im, 2), 0),
            ("Solarize", 3, 1, lambda im: ImageOps.solarize(im, 76), 0),
            ("SolarizeAdd", 7, 1,
             lambda im: im.point([i + 77 if i < 128 else i for i in range(256)] * 3), 0),
            ("Color", 9, 1, lambda im: ImageEnhance.Color(im).enhance(1.72), 1),
            ("ShearX", 9, -1, move(1, -.27, 0, 0, 1, 0), 1),
            ("ShearY", 4, 1, move(1, 0, 0, .12, 1, 0), 1),
            ("TranslateYRel", 9, 1, move(1, 0, 0, 0, 1, .405 * 40), 1),
            ("Rotate", 8, -1,
             lambda im: im.rotate(-24, pil.Resampling.BILINEAR, fillcolor=(128,) * 3), 1)):
        ours = D.augment(torch.from_numpy(clip), name, level, sign).numpy().astype(int)
        theirs = np.stack([np.asarray(reference(pil.fromarray(frame))) for frame in clip])
        assert np.abs(ours - theirs).max() <= tolerance, name
    # timm's policy v0: initials (A SolarizeAdd, O AutoContrast, T TranslateYRel), 10 p, level
    policy = ("E8,1 Y8,4|C4,9 E6,3|C4,1 R6,8|S8,3 E4,7|S4,2 S6,2|C2,0 E8,8|E4,8 A8,3|X2,9 R6,8|"
              "C6,1 E10,2|I4,9 R6,0|E10,9 Y6,3|C4,7 E6,0|P4,6 O4,7|S6,8 C6,9|S2,4 R8,9|R10,7 T8,9|"
              "X0,0 S8,4|Y8,0 C6,4|C10,0 R6,2|E8,4 E0,8|E10,4 O6,2|Y4,7 A6,7|P8,2 S6,10|S6,8 E6,1|"
              "C8,6 R4,5")
    letters = {"SolarizeAdd": "A", "AutoContrast": "O", "ShearX": "X", "ShearY": "Y"}
    assert policy == "|".join(" ".join(f"{letters.get(name, name[0])}{round(10 * p)},{level}"
                                       for name, p, level in pair) for pair in D.AUTO_AUGMENT)
    still = torch.from_numpy(clip[:1]).expand(3, -1, -1, -1)
    for seed in range(60):
        out = D.auto_augment(still, np.random.default_rng(seed))
        assert torch.equal(out, out[:1].expand_as(out))                                # all frames alike


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
        close(mixed[:, :1, :1].expand_as(mixed), mixed)                                # the same in channels and frames
        boxes += len(mixed[5].unique()) == 2 or bool((mixed == x).all())
    assert 8 < boxes < 32                                                              # CutMix every other time


# ----------------------------------------------------------------------------- decoding

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


@pytest.mark.parametrize("name, codec, options", (
    ("b_frames.mp4", "libx264", dict(g="250", bf="3", crf="10")),
    ("short_gop.mp4", "libx264", dict(g="12", crf="10")),
    ("vp9.webm", "libvpx-vp9", dict(crf="10", lag_in_frames="0")),
    ("packed.avi", "mpeg4", dict(qmin="2", qmax="2", bf="2")),
    ("h265.mkv", "libx265", {"x265-params": "log-level=none:crf=10"})))
def test_decoding_gives_the_frames_that_were_asked_for(tmp_path, monkeypatch, name, codec, options):
    def forbidden(path):
        raise AssertionError("decoded everything to get a few frames")
    if name != "packed.avi":
        monkeypatch.setattr(D, "every_frame", forbidden)
    frames = stairs(40)
    write_video(tmp_path / name, frames, codec, **options)
    for wanted in ([0, 39], [30], [38, 3, 3, 30, 12, 13, 14], list(range(40))):
        seen = []
        clip = D.read_clip(str(tmp_path / name), lambda n: seen.append(n) or wanted)
        assert seen == [40] and clip.shape == (len(wanted), 48, 64, 3) and clip.dtype == torch.uint8
        levels = clip[:, 8:40, 8:24].float().mean((1, 2, 3)).numpy()
        assert np.abs(levels - (20 + 5 * np.array(wanted))).max() < 2.5, levels        # neighbours differ by 5
    assert D.read_clip(str(tmp_path / name), lambda n: [0], short_side=24).shape == (1, 24, 32, 3)


def test_phone_videos_come_upright(tmp_path):
    """A quarter turn beside the pixels, put into the mp4's track header by hand (3 x 3 matrix)."""
    frames = stairs(8)
    write_video(tmp_path / "flat.mp4", frames, crf="10")
    blob = bytearray(open(tmp_path / "flat.mp4", "rb").read())
    at = blob.index(b"tkhd") + 4 + 40                                                  # the matrix: 16.16 fixed point
    turn = np.array([0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30], ">i4")           # 90 degrees clockwise
    blob[at:at+36] = turn.tobytes()
    open(tmp_path / "turned.mp4", "wb").write(blob)
    flat, turned = (D.read_clip(str(tmp_path / f"{name}.mp4"), lambda n: [3])
                    for name in ("flat", "turned"))
    close(turned[0], torch.rot90(flat[0], -1))


def test_videos_that_cannot_be_used_say_why(tmp_path):
    write_video(tmp_path / "good.mp4", stairs(40), g="60")
    blob = open(tmp_path / "good.mp4", "rb").read()
    for name, content in dict(empty=b"", html=b"<html>404</html>",
                              cut=blob[:len(blob) // 2]).items():
        path = tmp_path / f"{name}.mp4"
        path.write_bytes(content)
        with pytest.raises(D.BadVideo, match=f"{name}.mp4: "):
            D.read_clip(str(path), lambda n: range(n))
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp",
                                           layout="mono")
        frame.rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(D.BadVideo, match="sound.mp4: no video stream"):
        D.read_clip(str(tmp_path / "sound.mp4"), lambda n: [0])
    with pytest.raises(D.BadVideo, match="nowhere.mp4: No such file"):
        D.read_clip(str(tmp_path / "nowhere.mp4"), lambda n: [0])


def test_a_damaged_stretch_is_filled_with_the_nearest_good_frames_and_counted(tmp_path):
    write_video(tmp_path / "a.mp4", stairs(40), g="10", bf="0", crf="10")
    with av.open(str(tmp_path / "a.mp4")) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    blob = bytearray(open(tmp_path / "a.mp4", "rb").read())
    for pos, size in packets[20:26]:
        blob[pos:pos+size] = bytes(size)                                               # six frames of zeros
    open(tmp_path / "a.mp4", "wb").write(blob)
    with pytest.warns(UserWarning, match=r"a.mp4: 6 of 40 frames do not decode"):
        clip = D.read_clip(str(tmp_path / "a.mp4"), lambda n: range(n))
    levels = clip[:, 8:40, 8:24].float().mean((1, 2, 3))
    assert len(clip) == 40 and abs(levels[21] - levels[19]) < 1 and abs(levels[10] - 70) < 2.5
    with pytest.raises(D.BadVideo, match="4 of 6 frames do not decode"):
        D.read_clip(str(tmp_path / "a.mp4"), lambda n: [0, 20, 21, 22, 23, 39])


# ---------------------------------------------------------------------------- data sets and samples

@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    """Class folders: 2 classes, 12 training, 5 validation videos of 12 frames, 40 x 56 pixels."""
    root, rng = tmp_path_factory.mktemp("videos"), np.random.default_rng(0)
    for split, n in (("train", 12), ("val", 5)):
        for i in range(n):
            folder = root / split / ("brush hair" if i % 2 else "aim")
            folder.mkdir(parents=True, exist_ok=True)
            frames = np.kron(
                rng.integers(0, 256, (12, 5, 7, 3)), np.ones((1, 8, 8, 1))).astype(np.uint8)
            write_video(folder / f"{i}.mp4", frames)
    return root


def pipeline(**changes):
    return train.RECIPES["focal"]["k400"] | changes


def test_kinetics_csv_finds_files_by_their_id_and_counts_the_rest(videos, tmp_path, capsys):
    """As the CVDF scripts leave it: flat, quoted labels, ids with _ and -, gone or unlisted."""
    source = sorted(str(path) for path in videos.glob("train/*/*.mp4"))
    rows = {"train": [("zip, unzip", "-_3_lodo2M1", 59), ("abseiling", "a-b_c-d_e-f", 4),
                      ("zip, unzip", "gone_gone_1", 0)],
            "val": [("abseiling", "vvvvvvvvvv1", 7), ("walking (someone's dog)", "vvvvvvvvvv2", 7)]}
    os.makedirs(tmp_path / "annotations")
    for split, lines in rows.items():
        os.makedirs(tmp_path / split)
        with open(tmp_path / "annotations" / f"{split}.csv", "w") as file:
            file.write("label,youtube_id,time_start,time_end,split,is_cc\n")
            for label, key, start in lines:
                quoted = f'"{label}"' if "," in label else label
                file.write(f"{quoted},{key},{start},{start + 10},{split},0\n")
                if not key.startswith("gone"):
                    shutil.copy(source[0],
                                tmp_path / split / f"{key}_{start:06d}_{start + 10:06d}.mp4")
    shutil.copy(source[0], tmp_path / "train" / "no_row_here_000001_000011.mp4")
    repaired = tmp_path / "replacement" / "replacement_for_corrupted_k400"
    os.makedirs(repaired)
    shutil.copy(source[1], repaired / "a-b_c-d_e-f_000004_000014.mp4")
    sets = D.open_data("k400", str(tmp_path), ["train", "val"], pipeline(), 4, 32)
    assert "lists 3 videos, 2 are there, 1 missing, 1 more have no label" in capsys.readouterr().out
    assert sets["train"].classes == ["abseiling", "walking (someone's dog)", "zip, unzip"]
    assert sets["train"].labels == [2, 0] and sets["val"].labels == [0, 1]
    assert (sets["train"].clips[1].startswith(str(repaired))
            and "-_3_lodo2M1" in sets["train"].clips[0])


def test_class_folders_and_list_files(videos, tmp_path):
    sets = D.open_data(str(videos), None, ["train", "val"], pipeline(), 4, 32)
    assert (sets["train"].classes == ["aim", "brush hair"]
            and sorted(sets["train"].labels) == [0] * 6 + [1] * 6)
    with open(tmp_path / "my_train.txt", "w") as file:
        file.write("train/aim/0.mp4 2\ntrain/brush hair/1.mp4 0\ntrain/brush hair/3.mp4,1\n")
    with open(tmp_path / "my_val.txt", "w") as file:
        file.write("val/aim/0.mp4,1\nval/aim/missing.mp4,0\n")
    sets = D.open_data(str(tmp_path / "my_train.txt"), str(videos), ["train", "val"],
                       pipeline(), 4, 32)
    assert (sets["train"].labels == [2, 0, 1] and sets["val"].labels == [1]
            and len(sets["val"].classes) == 3)
    for folder in ("abseiling", "air_drumming", "zumba"):                              # official names and indices
        for split in ("train", "val"):
            os.makedirs(tmp_path / split / folder)
            shutil.copy(videos / "val" / "aim" / "0.mp4", tmp_path / split / folder)
    sets = D.open_data("k400", str(tmp_path), ["val"], pipeline(), 4, 32)
    assert sets["val"].labels == [0, 1, 399] and len(sets["val"].classes) == 400


def test_a_sample_depends_on_seed_epoch_and_index_only(videos):
    """Not on the worker that loads it, nor on the process, nor on what was loaded before."""
    data = D.open_data(str(videos), None, ["train"], pipeline(), 4, 32)["train"]
    cpu, whole = torch.device("cpu"), list(D.stream(12, 4, 0, 0, 6))
    alone = {key: data[key] for batch in reversed(whole) for key in batch}
    for workers in (0, 2):
        for keys, batch in zip(whole, D.loader(data, whole, workers, cpu)):
            for k, key in enumerate(keys):
                for name in ("clip", "colour"):
                    assert torch.equal(batch[name][k], alone[key][name])
    halves = [list(D.stream(12, 2, 0, 0, 6, rank, 2)) for rank in (0, 1)]
    assert [a + b for a, b in zip(*halves)] == whole                                   # two processes share a batch
    assert list(D.stream(12, 4, 0, 4, 6)) == whole[4:]                                 # a resume sees what comes next
    assert (sorted(i for batch in whole[:3] for _, i in batch) == list(range(12))
            and whole[0] != whole[3])
    assert not torch.equal(data[0, 5]["clip"], data[1, 5]["clip"])                     # another epoch, another crop


def test_a_change_in_the_last_frames_reaches_the_last_test_clip_only(tmp_path):
    """300 frames, 8 x 4 views: only clip 3 looks at frames after 290 (295); clips interleave."""
    frames = np.kron(np.random.default_rng(0).integers(0, 256, (300, 4, 5, 3)),
                     np.ones((1, 8, 8, 1))).astype(np.uint8)
    changed = frames.copy()
    changed[291:] = 255 - changed[291:]                                                # the last 3 %
    torch.manual_seed(0)
    model, logits = create_model("focal_toy", 5, 8, 32).eval(), []
    for name, content in (("a.mp4", frames), ("b.mp4", changed)):
        write_video(tmp_path / name, content, g="1", qp="10")                          # every frame on its own
        data = D.VideoSet([str(tmp_path / name)], [0], ["x"], pipeline(), 8, 32, views="4x3")
        logits.append(model(D.to_device(torch.utils.data.default_collate([data[0, 0]]),
                                        pipeline(), torch.device("cpu"))))
    differs = (logits[0] - logits[1]).abs().amax(1).view(3, 4) > 0                     # views are crop x clip
    assert differs.tolist() == [[False, False, False, True]] * 3


def test_bad_training_videos_are_named_and_replaced_by_the_same_sample_every_time(videos, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"")
    files = sorted(str(path) for path in videos.glob("train/*/*.mp4"))
    data = D.VideoSet([str(tmp_path / "bad.mp4")] + files, [0] + [1] * 12, ["a", "b"],
                      pipeline(), 4, 32)
    sample = data[3, 0]
    assert ("bad.mp4" in sample["bad"] and sample["label"] == 1
            and torch.equal(sample["clip"], data[3, 0]["clip"]))
    assert data[3, 1]["bad"] == ""
    nothing = D.VideoSet([str(tmp_path / "bad.mp4")], [0], ["a"], pipeline(), 4, 32)
    with pytest.raises(D.BadVideo, match="10 unusable videos in a row"):
        nothing[0, 0]


def test_the_toy_moves_as_its_labels_say_and_backwards_as_their_partners():
    """Judged from the masks alone, by centroid, turn of the centroid about its mean, and area."""
    clips, labels, masks = D.toy_clips(200, seed=3)

    def seen(mask):
        """mask bool (T, S, S) -> class"""
        area = mask.sum((1, 2)).float()
        y, x = ((mask * torch.arange(64.).view(*shape)).sum((1, 2)) / area
                for shape in ((1, 64, 1), (1, 1, 64)))
        dx, dy, growth = x[-1] - x[0], y[-1] - y[0], (area[-1] / area[0]).log()
        if growth.abs() > 0.8:
            return 6 if growth > 0 else 7
        u, v = x - x.mean(), y - y.mean()
        turn = (u[:-1] * v[1:] - v[:-1] * u[1:]).sum() / 2                             # > 0: clockwise, y points down
        if max(dx.abs(), dy.abs()) > 10 and turn.abs() < 5:
            return (0 if dx < 0 else 1) if dx.abs() > dy.abs() else (2 if dy < 0 else 3)
        return 4 if turn > 0 else 5
    judged = torch.tensor([seen(mask) for mask in masks])
    reverse = torch.tensor([seen(mask.flip(0)) for mask in masks])
    assert (judged == labels).float().mean() > 0.97, (judged != labels).nonzero()
    assert (reverse == labels ^ 1).float().mean() > 0.97
    names = [(D.TOY_CLASSES[c], D.TOY_CLASSES[c ^ 1]) for c in range(0, 8, 2)]
    assert names == [("left", "right"), ("up", "down"), ("clockwise", "anticlockwise"),
                     ("grow", "shrink")]


def test_no_network_that_is_blind_to_order_passes_half_of_the_toy_validation():
    """Each clip has its reversal under the partner's label: same answers are wrong on one."""
    clips, labels = D.toy_split("val", seed=0)
    assert (len(clips) == 512 and torch.equal(clips[:256].flip(1), clips[256:])
            and torch.equal(labels[:256] ^ 1, labels[256:]))
    assert labels.bincount().tolist() == [64] * 8
    assert (torch.equal(D.toy_split("val", seed=0)[0], clips)
            and not torch.equal(D.toy_split("val", seed=1)[0], clips))


# ----------------------------------------------------------------------------- the loop

def command(*words):
    """`python train.py words` in this process -> its exit: 0, a number, or the text of an error."""
    with pytest.raises(SystemExit) as stopped:
        train.main([str(word) for word in words])
    return stopped.value.code


def small(videos, out, *words):
    return ["--data", videos, "--model", "focal_toy", "--image_size", 32, "--num_frames", 4,
            "--workers", 0, "--out", out, "--device", "cpu", *words]


PLAIN = ["--set", "mixup=0", "cutmix=0", "views=1x1"]


def test_learning_rate_at_start_seam_and_end():
    """By hand, 100 steps, 20 of warm-up: a line, then a cosine from the peak: no jump there."""
    rates = [train.lr_at(step, 100, 20, 0.1, 0.001, 0.01) for step in range(101)]
    assert rates[0] == 0.001 and rates[10] == pytest.approx(0.0505) and rates[20] == 0.1
    assert rates[60] == pytest.approx(0.055) and rates[100] == pytest.approx(0.01)     # half way, and at the end
    assert rates[19] == pytest.approx(0.09505) and max(rates) == 0.1 and rates[21] > 0.0999
    assert train.lr_at(0, 10, 0, 0.1, 0.5, 0.0) == 0.1


def test_training_is_sgd_with_nesterov_momentum_worked_out_slowly(videos, tmp_path):
    """Windows of 4, then 2 batches of 2 (divided by 2), warm-up, scaled lr, clipping, smoothing."""
    assert command(*small(videos, tmp_path, "--batch_size", 2, "--accumulate", 4, "--epochs", 2,
                          *PLAIN, "clip_grad=6")) == 0
    done = read_checkpoint(tmp_path / "last.pt")
    torch.manual_seed(0)
    model = create_model("focal_toy", 2, 4, 32)
    data = D.open_data(str(videos), None, ["train"], pipeline(), 4, 32)["train"]
    peak, parameters = 0.1 * 8 / 512, list(model.parameters())
    speed = [torch.zeros_like(p) for p in parameters]
    keys = [key for batch in D.stream(12, 2, 0, 0, 12) for key in batch]
    for step, (a, b) in enumerate(((0, 8), (8, 12), (12, 20), (20, 24))):
        batch = torch.utils.data.default_collate([data[key] for key in keys[a:b]])
        logs = model(D.to_device(batch, pipeline(), torch.device("cpu"))).log_softmax(-1)
        right = logs[range(b - a), batch["label"]]
        loss = -(0.9 * right + 0.1 * logs.mean(1)).mean()
        grads = torch.autograd.grad(loss, parameters)
        norm = sum(g.square().sum() for g in grads).sqrt()
        lr = (peak * .01 + step * (peak - peak * .01) if step < 1 else                  # round(4 * 20/120) = 1 warms up
              peak * .01 + .5 * (peak - peak * .01) * (1 + math.cos(math.pi * (step - 1) / 3)))
        with torch.no_grad():
            for p, g, v in zip(parameters, grads, speed):
                g = g * min(1, 6 / (norm.item() + 1e-6))
                v.mul_(0.9).add_(g)
                p.sub_(lr * (g + 0.9 * v))
    for key, value in model.state_dict().items():
        close(done["model"][key], value, rtol=0, atol=2e-6)
    assert done["step"] == 4 and done["classes"] == ["aim", "brush hair"]


def test_accumulation_and_processes_do_not_change_the_result(videos, tmp_path):
    """A batch of 4 = 4 accumulated batches of 1 = 2 processes with 2 each; evaluation, too."""
    for name, words in dict(whole=["--batch_size", 4],
                            parts=["--batch_size", 1, "--accumulate", 4]).items():
        assert command(*small(videos, tmp_path / name, "--epochs", 2, *words, *PLAIN)) == 0
    words = small(videos, tmp_path / "two", "--epochs", 2, "--batch_size", 2, *PLAIN)
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2",
                    os.path.join(HERE, "train.py"), *map(str, words)], check=True,
                   capture_output=True, env=os.environ | dict(OMP_NUM_THREADS="1"))
    whole, parts, two = (read_checkpoint(tmp_path / name / "last.pt")
                         for name in ("whole", "parts", "two"))
    assert whole["step"] == parts["step"] == two["step"] == 6
    for key, value in whole["model"].items():
        close(parts["model"][key], value, rtol=0, atol=1e-6)
        close(two["model"][key], value, rtol=0, atol=1e-6)
    for key in ("top1", "top5", "mean_class", "videos", "bad"):
        assert whole["metrics"][key] == parts["metrics"][key] == two["metrics"][key]


def test_killed_and_resumed_is_the_same_as_never_stopped(videos, tmp_path):
    """3 SIGKILLs, a SIGINT; drop path, mixup, colours, accumulation, 2 workers: the same bits."""
    words = [str(word) for word in small(
        videos, tmp_path / "one", "--batch_size", 2, "--accumulate", 2, "--epochs", 12,
        "--workers", 2, "--set", "drop_path=0.1", "views=1x1")]
    start = [sys.executable, os.path.join(HERE, "train.py")]
    options = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                   start_new_session=True, env=os.environ | dict(OMP_NUM_THREADS="1"))
    reference = subprocess.Popen(start + words, **options)
    words[words.index(str(tmp_path / "one"))] = str(tmp_path / "two")
    log = tmp_path / "two" / "log.jsonl"
    for epochs, wait, blow in ((2, 0, signal.SIGKILL), (4, 0.1, signal.SIGKILL),
                               (6, 0.2, signal.SIGKILL), (8, 0.05, signal.SIGINT)):
        process = subprocess.Popen(start + words + ["--resume"] * log.exists(), **options)
        while (process.poll() is None
               and not (log.exists() and log.read_text().count("\n") >= epochs)):
            time.sleep(0.01)
        time.sleep(wait)
        os.killpg(process.pid, blow)
        said = process.communicate()[0]
        assert process.returncode == (-9 if blow == signal.SIGKILL else 130), said
    assert "stopped by SIGINT; saved" in said and "Traceback" not in said
    subprocess.run(start + ["--out", str(tmp_path / "two"), "--workers", "2", "--resume"],
                   check=True, capture_output=True, env=options["env"])                # sums depend on thread count
    reference.communicate()
    one, two = (read_checkpoint(tmp_path / name / "last.pt") for name in ("one", "two"))
    assert one["step"] == two["step"] == 36 and one["metrics"]["top1"] == two["metrics"]["top1"]
    assert all(torch.equal(one["model"][key], two["model"][key]) for key in one["model"])
    for a, b in zip(one["optimizer"]["state"].values(), two["optimizer"]["state"].values()):
        assert torch.equal(a["momentum_buffer"], b["momentum_buffer"])


def test_evaluation_averages_softmax_over_views_and_counts_unreadable_videos_as_wrong(
        videos, tmp_path, capsys):
    root = tmp_path / "v"
    shutil.copytree(videos, root)
    assert command(*small(root, tmp_path, "--batch_size", 4, "--steps", 1, *PLAIN)) == 0
    (root / "val" / "aim" / "broken.mp4").write_bytes(b"nothing")
    shown = []
    for batch_size in (1, 8, 100):
        capsys.readouterr()
        assert command("--eval", "--init", tmp_path / "last.pt", "--views", "2x3",
                       "--batch_size", batch_size, "--workers", 0) == 0
        shown.append(capsys.readouterr())
        assert "counted as wrong" in shown[-1].err and "broken.mp4" in shown[-1].err
    model = create_model("focal_toy", 2, 4, 32).eval()
    model.load_state_dict(read_checkpoint(tmp_path / "last.pt")["model"])
    data = D.open_data(str(root), None, ["val"], pipeline(), 4, 32, views="2x3")["val"]
    right = {0: [], 1: []}
    for i, label in enumerate(data.labels):
        sample = data[0, i]
        x = ((sample["clip"].movedim(-1, 1) / 255
              - torch.tensor([.485, .456, .406]).view(1, 3, 1, 1, 1))
             / torch.tensor([.229, .224, .225]).view(1, 3, 1, 1, 1))                   # 6 views
        scores = sum(model(view[None])[0].softmax(-1) for view in x) / 6
        right[label].append(sample["bad"] == "" and scores.argmax().item() == label)
    top1 = 100 * sum(map(sum, right.values())) / 6
    per_class = 50 * sum(sum(hits) / len(hits) for hits in right.values())
    for one in shown:                                          # top-5 of 2 classes: all but the broken one
        assert (f"6 videos, 2x3 views: top-1 {top1:.2f} %, top-5 83.33 %, "
                f"mean class accuracy {per_class:.2f} %, 1 unreadable") in one.out
    swapped = read_checkpoint(tmp_path / "last.pt")
    swapped["classes"].reverse()                               # the names count, not their order on the disk
    torch.save(swapped, tmp_path / "swapped.pt")
    words = ["--eval", "--init", tmp_path / "swapped.pt", "--views", "2x3", "--workers", 0]
    assert command(*words) == 0
    assert f"top-1 {100 * (5 - sum(map(sum, right.values()))) / 6:.2f} %" in capsys.readouterr().out



def test_a_view_that_is_very_sure_does_not_outvote_the_others():
    """By hand: logits (0, 10), (2, 0), (2, 0) sum to class 1, their softmaxes to class 0."""
    class Sure(torch.nn.Module):
        def forward(self, x):
            return torch.tensor([[0., 10.], [2., 0.], [2., 0.]])
    settings = D.PIPELINES["toy"] | dict(batch_size=4, dtype="float32")
    for label, top1 in ((0, 100), (1, 0)):
        clips = torch.zeros(1, 8, 8, 8, 3, dtype=torch.uint8)
        data = D.VideoSet(clips, [label], ["a", "b"], settings, 8, 8, views="3x1")
        assert train.evaluate(Sure(), data, settings, torch.device("cpu"), 0)["top1"] == top1


def test_prediction_prints_class_names_and_names_what_it_cannot_read(videos, tmp_path, capsys):
    assert command(*small(videos, tmp_path, "--batch_size", 4, "--steps", 1, *PLAIN)) == 0
    (tmp_path / "no.mp4").write_bytes(b"no")
    capsys.readouterr()
    good = videos / "val" / "aim" / "0.mp4"
    assert command("--predict", good, tmp_path / "no.mp4", "--init", tmp_path / "best.pt") == 1
    shown = capsys.readouterr()
    assert str(good) in shown.out and shown.out.count(" %") == 2 and "brush hair" in shown.out
    assert "error: " in shown.err and "no.mp4" in shown.err
    torch.save({"model": small_focal(num_classes=400).state_dict()}, tmp_path / "released.pt")      # no names inside
    words = ["--predict", good, "--init", tmp_path / "released.pt", "--model", "focal_t",
             "--image_size", 64, "--set", "dim=32", "depths=(1,1,2,1)", "--data"]
    assert command(*words, "k400") == 0
    lines = capsys.readouterr().out.splitlines()[-5:]                                  # '  12.3 %  abseiling'
    assert {line.split(" %  ")[1] for line in lines} < set(D.class_names("k400"))
    assert "has 400 classes and no names for them, --data ssv2 has 174" in command(*words, "ssv2")


def test_mistakes_end_with_one_line_that_says_the_value_the_rule_and_the_way_out(
        videos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.pt").write_text("not a checkpoint")
    (tmp_path / "list.txt").write_text("a.mp4 0\nb.mp4 zero\n")
    os.makedirs(tmp_path / "empty" / "train" / "aim")
    shutil.copytree(videos / "train" / "aim", tmp_path / "flat" / "train")
    os.makedirs(tmp_path / "three")
    for split in ("train", "val"):
        shutil.copytree(videos / split, tmp_path / "three" / split)
        shutil.copytree(videos / split / "aim", tmp_path / "three" / split / "third")
    assert command(*small(videos, tmp_path / "out", "--batch_size", 4, "--steps", 1, *PLAIN)) == 0
    here = ["--data", str(videos), "--model", "focal_toy", "--image_size", "32", "--workers", "0"]
    for words, message in (
            (["--data", "k400"],
             "no train videos of k400 in data/k400.*annotations/train.csv.*CLASS.*--root DIR"),
            (["--data", "empty"], "no train videos of empty"),
            (["--data", "flat"], "no train videos of flat"),
            (["--data", "nowhere"],
             "--data nowhere: neither a folder, nor a list file, nor one of toy, k400"),
            (["--data", "list.txt"], "list.txt, line 2: 'b.mp4 zero' is not 'path label'"),
            (["--model", "resnet"], "no model 'resnet'; there are focal_t, focal_s"),
            (["--set", "banana=1"], "--set banana=1: no such key.*drop_path.*smoothing"),
            (["--set", "levels=9"], "levels=9: focal modulation here has 1 to 4"),
            (["--set", "tubelet=2", "conv_embed=True", "patch=4"],
             "tubelet=2 with conv_embed=True"),
            (["--num_frames", "7", "--set", "tubelet=2"],
             "7 frames: this network takes multiples of 2"),
            (["--image_size", "50"], "50 x 50 pixels: .*multiples of 16.*nearest is 48 x 48"),
            (["--set", "kernel=softmax"], "kernel: means nothing to model focal_toy with mixer="),
            (["--steps", "0"], "steps=0: must be a number above 0"),
            (["--device", "gpu"], "--device gpu: Expected one of cpu"),
            (["--workers", "-1"], "--workers -1: must be 0"),
            (["--views", "4x2"], "views '4x2': write CLIPSxCROPS"),
            (["--batch_size", "0"], "batch_size=0: must be a number above 0"),
            (here + ["--batch_size", "100"],
             "12 training clips do not fill one batch of 100.*lower --batch_size"),
            (["--eval"], "need weights: --init FILE"),
            (["--eval", "--init", "nowhere.pt"], "nowhere.pt: no such checkpoint"),
            (["--init", "notes.pt"], "notes.pt cannot be read as a checkpoint"),
            (["--resume", "--out", "fresh"], "fresh/last.pt: no such checkpoint"),
            (["--resume", "out/last.pt", "--lr", "0.5", "--seed", "1"],
             "seed was 0, is 1.*leave these flags out"),
            (["--eval", "--init", "out/last.pt", "--data", "three"],
             "was not trained on the classes of three: it does not know 'third'"),
            (here + ["--init", "out/last.pt", "--set", "dim=64"],
             r"shape: patch_embed.proj.weight is \(32, 3, 8, 8\) there and \(64"),
    ):
        said = command(*words)
        assert isinstance(said, str) and said.startswith("error: "), (words, said)
        assert re.search(message, said, re.DOTALL), (words, said)
    done = subprocess.run([sys.executable, os.path.join(HERE, "train.py"), "--data", "nowhere"],
                          capture_output=True, text=True)
    assert (done.returncode == 1 and done.stderr.startswith("error: ")
            and "Traceback" not in done.stderr and not done.stdout)
