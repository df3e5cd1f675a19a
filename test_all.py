"""
The claims of this repository, each checked against something that is not it: outputs of the released
networks, torch's or Python's own operators, formulas written out slowly, numbers worked by hand.

    pytest -q            everything, on a CPU        pytest -q -k focal       the claims about one thing

assets/golden/*.pt hold outputs of the released networks for weights and inputs that `filled` and
`seeded` make again from nothing but names, shapes and seeds, so no weights are shipped.
"""
import colorsys
import math
import os
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

HERE = os.path.dirname(os.path.abspath(__file__))
close = torch.testing.assert_close


def golden(name):
    return torch.load(os.path.join(HERE, "assets", "golden", name + ".pt"), weights_only=True)


def seeded(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64).float()


def filled(manifest):
    """{key: shape} -> {key: weights}: norms 1 +- .2, matrices N(0, 1/fan_in), biases +- .1, gates twice."""
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
    return create_model("focal_t", **{**dict(num_classes=11, image_size=64, dim=32, depths=(1, 1, 2, 1)), **changes}).eval()


FOCAL = {"focal_tiny": {}, "focal_tiny_tubelet2": dict(tubelet=2), "focal_convembed": dict(conv_embed=True),
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
        expected = {key: float(norm) for key, norm in our_names(model, record["grad_norms"]).items()}
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
    close(after["layers.0.blocks.0.branches.focal.f.weight"], state["layers.0.blocks.0.modulation.f.weight"])


def test_focal_parameters_and_multiply_adds():
    """The released class has these parameters; the paper's figure says 63, 124 and 149 G: B's 149 is not its network's."""
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
    """Focal modulation by loops over levels and torch's functional convolutions, straight from the formula."""
    B, T, H, W, C = x.shape
    L, k0 = layer.levels, 3
    q, z, g = F.linear(x, layer.f.weight, layer.f.bias).split([C, C, L + 1], -1)
    total = 0
    for l in range(L):
        w = layer.focal_layers[l][0].weight
        z = F.gelu(F.conv2d(z.reshape(B*T, H, W, C).movedim(-1, 1), w, padding=k0 // 2 + l, groups=C))
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
    for fusion, join in dict(multiply=lambda a, b: a * b, add=lambda a, b: a + b, average=lambda a, b: (a + b) / 2).items():
        layer = SpatioTemporalFocalModulation(8, levels, design=design, fusion=fusion).double()
        q, m_s, m_t = slow_focal(layer, x)
        y, maps = layer(x, return_maps=True)
        close(y, layer.proj(q * join(m_s, m_t)))
        close(maps["spatial"], m_s)
        close(maps["temporal"], m_t)
    half = SpatioTemporalFocalModulation(8, levels, design=design, normalize_modulator=True).double()
    half.load_state_dict(SpatioTemporalFocalModulation(8, levels).double().state_dict())
    with torch.no_grad():
        half.h.bias.zero_()
    whole = SpatioTemporalFocalModulation(8, levels, design=design).double()
    whole.load_state_dict(half.state_dict())
    close(half(x, True)[1]["spatial"] * (levels + 1), whole(x, True)[1]["spatial"])


def test_every_option_of_focal_runs_trains_and_keeps_batch_items_apart():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 32, 32)
    for options in (dict(temporal=False), dict(spatial=False), dict(design="sequential"), dict(design="joint3d"),
                    dict(fusion="project"), dict(levels=3), dict(levels=(1, 4)), dict(postln_in_modulation=True),
                    dict(normalize_modulator=True), dict(tubelet=2), dict(postln=True, layerscale=True)):
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
    block = create_model("focal_t", depths=(2,), dim=8, drop_path=0.5, image_size=32).layers[0]["blocks"][1]
    assert block.drop_path == 0.5
    x = torch.randn(64, 8, 2, 2, 8)
    block.branches["mlp"] = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Identity())
    del block.branches["focal"], block.norms["focal"]
    full, train_ = block.eval()(x) - x, block.train()(x) - x
    kept = train_.abs().amax((2, 3, 4)) > 0                                            # (clips, frames)
    assert 0.42 < kept.float().mean() < 0.58 and (kept.any(1) & ~kept.all(1)).sum() > 50
    close(train_[kept], 2 * full[kept])


# ----------------------------------------------------------------------------- checkpoints

def test_released_checkpoint_with_a_pickled_yacs_node_is_read_as_data(tmp_path):
    """A file as the released code writes it, made where `yacs.config` exists, read where it does not."""
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
        load_weights(model, {key: v for key, v in state.items() if key != "layers.3.blocks.0.modulation.h.bias"})
    with pytest.raises(ValueError, match="unexpected: extra"):
        load_weights(model, state | {"extra": torch.ones(1)})
    with pytest.raises(ValueError, match=r"shape: patch_embed.proj.weight is \(32, 3, 4, 4\) there and \(64, 3, 4, 4\)"):
        load_weights(small_focal(dim=64), state)
    own = small_focal()
    load_weights(own, {"model": model.state_dict()})                                   # our own names, too
    close(own.state_dict(), model.state_dict())


# ----------------------------------------------------------------------------- sampling, cropping, colours

def test_frame_indices_are_those_worked_by_hand():
    assert D.sample_val(300, 8, 4).tolist() == [18, 55, 92, 129, 167, 204, 241, 278]   # a = 297/8, floor(i a + a/2)
    assert D.sample_val(3, 8, 4).tolist() == [0] * 8
    drawn = np.stack([D.sample_train(300, 8, 4, np.random.default_rng(k)) for k in range(500)])
    assert drawn.min(0).tolist() == [37 * i for i in range(8)]                         # segments of (300 - 3) // 8 = 37
    assert drawn.max(0).tolist() == [37 * i + 36 for i in range(8)]
    assert D.sample_train(5, 8, 4, None).tolist() == [0, 0, 0, 1, 1, 1, 2, 2]          # around(i 2/8): .5 -> 0, 1.5 -> 2
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
    assert D.random_box(10, 1000, (0.9, 1.0), np.random.default_rng(0)) == (0, 495, 10, 10)    # nothing fits: the centre


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
        close(turned[b, :, t, i, j], torch.tensor(colorsys.hsv_to_rgb((h + 0.1) % 1, s, v), dtype=torch.float64))
    luma = (x * torch.tensor([.299, .587, .114], dtype=torch.float64).view(1, 3, 1, 1, 1)).sum(1, keepdim=True)
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


def test_mixing_keeps_the_promise_of_its_targets():
    """A clip of constant value v_i: after mixup or CutMix its mean is the mixture that the targets state."""
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
    ("b_frames.mp4", "libx264", dict(g="250", bf="3", crf="10")), ("short_gop.mp4", "libx264", dict(g="12", crf="10")),
    ("vp9.webm", "libvpx-vp9", dict(crf="10", lag_in_frames="0")), ("packed.avi", "mpeg4", dict(qmin="2", qmax="2", bf="2")), ("h265.mkv", "libx265", {"x265-params": "log-level=none:crf=10"})))
def test_decoding_gives_the_frames_that_were_asked_for(tmp_path, name, codec, options):
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
    """A quarter turn noted beside the pixels, written into the mp4's track header by hand (its 3 x 3 matrix)."""
    frames = stairs(8)
    write_video(tmp_path / "flat.mp4", frames, crf="10")
    blob = bytearray(open(tmp_path / "flat.mp4", "rb").read())
    at = blob.index(b"tkhd") + 4 + 40                                                  # the matrix: 16.16 fixed point
    turn = np.array([0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30], ">i4")           # 90 degrees clockwise
    blob[at:at+36] = turn.tobytes()
    open(tmp_path / "turned.mp4", "wb").write(blob)
    flat, turned = (D.read_clip(str(tmp_path / f"{name}.mp4"), lambda n: [3]) for name in ("flat", "turned"))
    close(turned[0], torch.rot90(flat[0], -1))


def test_videos_that_cannot_be_used_say_why(tmp_path):
    write_video(tmp_path / "good.mp4", stairs(40), g="60")
    blob = open(tmp_path / "good.mp4", "rb").read()
    for name, content in dict(empty=b"", html=b"<html>404</html>", cut=blob[:len(blob) // 2]).items():
        path = tmp_path / f"{name}.mp4"
        path.write_bytes(content)
        with pytest.raises(D.BadVideo, match=f"{name}.mp4: "):
            D.read_clip(str(path), lambda n: range(n))
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
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
