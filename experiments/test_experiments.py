"""
Claims of the experiments, each checked against something that is not theirs: `pytest experiments`.
"""
import glob
import math
import os
import re
import subprocess
import sys

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import backbone
import data as D
import train
from backbone import create_model
from experiments import (ablations, cost, look, order, probe, small_data, survey,
                         timeline)
from focal import along_time

close = torch.testing.assert_close


def write_video(path, frames, times=None, codec="libx264", turn=0, **options):
    """uint8 (n, H, W, 3) at 25 a second, frame k at times[k] / 25."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        if turn:
            stream.set_display_rotation(turn)
        for k, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = k if times is None else times[k]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def stairs(n, height=96, width=128):
    """Frame k is 20 + 3 k in its left half, and 255 minus that in its right one."""
    frames = np.empty((n, height, width, 3), np.uint8)
    frames[:, :, :width//2] = (20 + 3 * np.arange(n))[:, None, None, None]
    frames[:, :, width//2:] = 255 - frames[:, :, :width//2]
    return frames


def read(path, start=0.0, end=math.inf, short_side=None):
    return D.read_clip((str(path), start, end), range, short_side)


def levels(clip):
    return clip[:, 8:40, 8:24].float().mean((1, 2, 3)).numpy()


def checkpoint(path, classes, name="focal_toy", **changes):
    torch.manual_seed(0)
    model = create_model(name, num_classes=len(classes), **changes).eval()
    torch.save(dict(model=model.state_dict(), classes=list(classes)), path)
    return model, ["--init", str(path), "--device", "cpu", "--out", str(path.parent / "out")]


@pytest.mark.parametrize("name", ("focal", "lvt"))
def test_the_rows_of_a_sweep_are_those_of_its_page_and_cost_what_it_says(name):
    flags, rows = ablations.SWEEPS[name]
    for change in rows:
        words = [*flags.split(), *(f"--{word}" for word in change.split())]
        parameters, macs = ablations.cost(words)
        line = rf"\n    {re.escape(change or '(none)')} +\d.* {parameters:,} {macs / 1e9:.3f} "
        found = re.findall(line, ablations.__doc__)
        assert len(found) == (2 if change == "" and parameters == 0 else 1), change


def test_a_sweep_is_the_command_line_for_each_row_and_seed(monkeypatch, tmp_path, capsys):
    """Mean, spread and cells by hand; a run that diverges is said, another mistake is raised."""
    top1 = {("--levels=1", 0): 50.0, ("--levels=1", 1): 75.0, ("--window=5", 0): 20.0}
    asked = []

    def fake(words):
        asked.append(words)
        if (words[-3], words[-1]) not in top1:
            raise ValueError("20 infinite gradients in a row, up to step 21")
        return dict(top1=top1[words[-3], words[-1]], clips_per_s=100.0)
    monkeypatch.setattr(train, "main", fake)
    table = ablations.main(["--seeds", "0", "1", "--sweep", "levels=1", "levels=1 window=5", "--",
                            "--model", "focal_toy", "--steps", "7"])
    base = ["--out", "out/ablations", "--model", "focal_toy", "--steps", "7", "--levels=1"]
    assert asked == [base + ["--seed", 0], base + ["--seed", 1],
                     base + ["--window=5", "--seed", 0], base + ["--window=5", "--seed", 1]]
    window = backbone.create_model("focal_toy", levels=1, window=5)
    parameters = sum(p.numel() for p in window.parameters())
    macs = backbone.count_macs(window) / 1e9
    assert table[2:] == [
        "| levels=1 | 50.0, 75.0 | 62.5 | 25.0 | 176,436 | 0.031 | 100 |",
        f"| levels=1 window=5 | 20.0, diverged | nan | nan | {parameters:,} | {macs:.3f} | nan |"]
    assert "\n".join(table) in capsys.readouterr().out
    asked.clear()
    for words, message in ((["levels=1", "level=1"], "--level=1: no such setting"),
                           (["seed=1"], "--seed=1: a sweep trains")):
        with pytest.raises(ValueError, match=message):
            ablations.main(["--sweep", *words])
    assert not asked  # mistakes are found before the first run


def test_a_row_is_what_train_says(tmp_path):
    words = ["--steps", "1", "--num_frames", "2", "--image_size", "32", "--out", str(tmp_path)]
    table = ablations.main(["--seeds", "3", "--sweep", "temporal=False", "--", *words])
    metrics = train.main([*words, "--temporal", "False", "--seed", "3"])
    assert table[2].startswith(f"| temporal=False | {metrics['top1']:.1f} |")


def test_the_multiply_adds_on_the_page_of_cost_are_counted():
    for frames, pixels in ((8, 224), (8, 448)):
        line = re.search(rf"\n +{frames} x {pixels} +(.*)", cost.__doc__)[1]
        for network, said in zip(cost.NETWORKS, re.findall(r"\d+\.\d(?= )", line), strict=True):
            name, options, _ = cost.parse(cost.sized(network, frames, pixels))
            with torch.device("meta"):
                model = backbone.create_model(name, **options)
            assert f"{backbone.count_macs(model) / 1e9:.1f}" == said
    rows = cost.rows_for_gpu()
    assert len(set(rows)) == len(rows) == 110
    assert cost.parse(rows[0]) == ("focal_t", {}, dict(cost.HOW, batch=8, precision="bfloat16",
                                                       train=True))
    assert "lvt num_frames=96 image_size=448" in rows  # Table 8
    assert not any(row.startswith("focal") and "=336" in row for row in rows)


def test_a_row_of_cost_times_forward_backward_and_step(monkeypatch, capsys):
    now = [0.0]
    steps = iter([9.0, 3.0, 1.0, 2.0])  # sums from the second on: 3, 4: over 2 s
    monkeypatch.setattr(cost.time, "perf_counter", lambda: now[0])
    assert cost.best_time(lambda _: now.__setitem__(0, now[0] + next(steps)), "cpu",
                          lambda: now.__setitem__(0, now[0] + 50)) == 3.0
    monkeypatch.undo()
    one, = cost.show(["focal_toy train=True batch=2"], "cpu").values()
    assert 0 < one["backward"] < one["step"] and 0 < one["forward"] < one["step"]
    assert 100 < one["MiB"] <= one["step MiB"]
    macs = 2 * backbone.count_macs(backbone.create_model("focal_toy"))
    assert one["step share"] / one["share"] == pytest.approx(3 * one["forward"] / one["step"])
    row = capsys.readouterr().out.splitlines()[-1]
    assert row.startswith("| focal_toy train=True batch=2 | 8 x 64 | 226,842 | 0.1 G |")
    assert round(macs / 1e9, 1) == 0.1


def test_cost_needs_no_videos_and_knows_what_zoo_adds():
    script = ("import sys; from experiments import cost; before = set(sys.modules); "
              "assert not {'av', 'data', 'train'} & before; cost.import_zoo(); "
              "print(*sorted(name for name in sys.modules if name.startswith('zoo.')))")
    done = subprocess.run([sys.executable, "-c", script], cwd=D.HERE, capture_output=True,
                          text=True, check=True)
    files = {os.path.basename(path)[:-3] for path in glob.glob(os.path.join(D.HERE, "zoo", "*.py"))}
    assert {f"zoo.{name}" for name in files if "test" not in name} == set(done.stdout.split())


def test_the_ledger_names_tests_that_are_there():
    for path, tests in (("test_all.py", 1), ("zoo/test_zoo.py", 3)):
        if not os.path.exists(os.path.join(D.HERE, path)):
            continue
        with open(os.path.join(D.HERE, path)) as file:
            there = re.findall(r"^def (test_\w+)", file.read(), re.MULTILINE)
        with open(os.path.join(D.HERE, "experiments", "ledger.md")) as file:
            parts = file.read().split("\n## ")[1:]
        for part in parts[2:] if tests == 3 else parts[:2]:
            for name in re.findall(r"`(\w+)`", "".join(re.findall(r"\|([^|]*)\|\n", part))):
                assert any(name in test for test in there), name


def test_looking_finds_modulators_gates_and_what_the_answer_depends_on():
    """The layer's formula, by hand; finite differences."""
    torch.manual_seed(0)
    model = create_model("focal_toy", num_frames=4, image_size=32).eval().double()
    x = torch.randn(1, 3, 4, 32, 32, dtype=torch.float64)
    scores, maps, gates = look.look_inside(model, x)
    close(scores, model(x)[0].softmax(-1))
    mixer = model.layers[0].blocks[0].focal.f
    given = model.layers[0].blocks[0].focal.norm(model.patch_embed(x.permute(0, 2, 3, 4, 1)))
    z, g = mixer.f_temporal(given).split([32, 3], -1)
    z_1 = along_time(mixer.focal_layers_temporal[0], z)
    z_2 = along_time(mixer.focal_layers_temporal[1], z_1)
    total = z_1 * g[..., :1] + z_2 * g[..., 1:2] + F.gelu(z_2.mean(1, keepdim=True)) * g[..., 2:]
    modulator = mixer.h_temporal(total)
    close(maps["temporal modulator, first block"], modulator[0].norm(dim=-1).detach())
    close(gates["temporal gates, first block"], g.abs().mean((0, 1, 2, 3)).tolist())
    assert [len(maps), len(gates)] == [5, 4] and maps["spatial modulator, last block"].ndim == 3
    steps = torch.zeros(3, *x.shape, dtype=torch.float64)
    steps[range(3), 0, range(3), 2, 5, 7] = 1e-4  # one colour of one pixel
    slopes = [(model(x + s) - model(x - s))[0, scores.argmax()] / 2e-4 for s in steps]
    expected = (torch.stack(slopes) * x[0, :, 2, 5, 7]).abs().sum().detach()
    close(maps["what the answer depends on"][2, 5, 7], expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("kernel", ("softmax", "relu_paper"))
@pytest.mark.parametrize("mixer", ("joint", "time+space", "space+time"))
def test_the_attention_that_is_shown_is_that_of_the_strongest_token(kernel, mixer):
    """The N x N weights, written out, for the tokens of its group, in their places."""
    torch.manual_seed(0)
    net = create_model("lvt_toy", num_frames=4, image_size=32, patch=8, stride=8, kernel=kernel,
                       fixation="none", mixer=mixer).eval()
    x = torch.randn(1, 3, 4, 32, 32)
    scores, maps, _ = look.look_inside(net, x)
    shown = maps["attention of the strongest token"]
    word = mixer.split("+")[-1]
    layer = net.blocks[-1][-2].f
    got = {}
    layer.qkv.register_forward_hook(lambda module, given, out: got.update(qkv=out))
    net.norm.register_forward_hook(lambda module, given, out: got.update(tokens=out))
    net(x)
    argues = net.head(got["tokens"])[0, ..., scores.argmax()]  # (4, 4, 4)
    t, h, w = (int(i) for i in np.unravel_index(int(argues.argmax()), (4, 4, 4)))
    group = dict(joint=np.s_[:], time=np.s_[:, h, w], space=np.s_[t])[word]
    q, k, _ = got["qkv"].chunk(3, -1)
    k = layer.shift(k)[0][group].reshape(-1, 64)
    weights = 0
    for own in (slice(0, 32), slice(32, 64)):
        row = k[:, own] @ q[0, t, h, w, own] / 32**0.5
        relu = F.relu(k[:, own]) @ F.relu(q[0, t, h, w, own])
        weights = weights + (row.softmax(-1) if kernel == "softmax" else relu / relu.sum()) / 2
    close(shown[group].flatten(), weights.detach(), atol=1e-5, rtol=1e-4)
    assert shown.isfinite().sum() == len(weights)


def test_shares_on_the_l_worked_by_hand_and_the_command_draws(tmp_path, capsys):
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[0, :2] = True  # 8 of 32 pixels
    assert look.share_on(torch.ones(2, 2, 2), mask) == pytest.approx(1)
    assert look.share_on(mask.float(), mask) == pytest.approx(4)
    upper = torch.tensor([[[3., 3], [1, 1]], [[0, 0], [0, 0]]])  # 3/4 on the L, which covers 1/4
    assert look.share_on(upper, mask) == pytest.approx(3)
    upper[1] = math.nan  # out of sight: the L covers half of the rest
    assert look.share_on(upper, mask) == pytest.approx(1.5)

    _, flags = checkpoint(tmp_path / "a.pt", D.TOY_CLASSES)
    write_video(tmp_path / "clip.mp4", stairs(12))
    for what in ("toy:clockwise", str(tmp_path / "clip.mp4")):
        look.main([what, *flags])
        assert re.search(r"look.png: [a-z]+, \d+.\d %", capsys.readouterr().out)
    with pytest.raises(D.BadVideo, match="toy:x: No such file"):
        look.main(["toy:x", *flags])
    size = dict(num_frames=4, image_size=32)
    _, flags = checkpoint(tmp_path / "b.pt", D.TOY_CLASSES, "lvt_toy", **size)
    flags += ["--model", "lvt_toy", "--num_frames", "4", "--image_size", "32"]
    assert set(look.main(["toy", *flags])) == {"attention of the strongest token",
                                               "what the answer depends on"}


def test_windows_are_the_parts_of_a_video_and_its_length_is_what_is_shown(tmp_path):
    """read_clip's parts; frames are counted where times lie; a gap keeps its last picture."""
    path = str(tmp_path / "a.mp4")
    write_video(path, stairs(75), bf="3", crf="10")
    for seconds, edges in ((0.8, (0, .8, 1.6, 2.4, 9)), (1.45, (0, 1.45, 9)), (9, (0, 9))):
        found = list(timeline.windows(path, seconds, 48))
        assert [second for second, _ in found] == pytest.approx(edges[:-1])
        for (_, frames), start, end in zip(found, edges, edges[1:]):
            assert torch.equal(frames, read(path, start, end, 48))
    write_video(path, stairs(50), [k + 125 * (k >= 25) for k in range(50)], bf="3")  # 1 to 6: none
    *_, (length, _) = timeline.timed_frames(path)
    assert length == pytest.approx(7)
    found = [frames for _, frames in timeline.windows(path, 1, None)]
    assert [len(frames) for frames in found] == [25, 1, 1, 1, 1, 1, 25]
    assert all(torch.equal(frames, found[0][-1:]) for frames in found[1:6])
    write_video(tmp_path / "a.avi", stairs(50), codec="mpeg4", bf="2", qmin="2", qmax="2")
    seconds, frames = zip(*timeline.timed_frames(str(tmp_path / "a.avi")))
    assert seconds == pytest.approx([k / 25 for k in range(51)])
    assert (np.diff([frame.to_ndarray()[:40, :40].mean() for frame in frames[:-1]]) > 0).all()


def test_a_folder_becomes_a_table_and_what_cannot_be_read_is_named(tmp_path, capsys):
    for k, name in enumerate(("up/a", "up/b", "down/a")):
        (tmp_path / "v" / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(tmp_path / "v" / f"{name}.mp4", stairs(30)[::1 - 2 * (k % 2)])
    (tmp_path / "v" / "down" / "bad.mp4").write_bytes(b"")
    model, flags = checkpoint(tmp_path / "a.pt", ["down", "up"])
    rows = timeline.main([str(tmp_path / "v"), *flags, "--csv", str(tmp_path / "p.csv")])
    said = capsys.readouterr()
    assert "bad.mp4: Invalid data" in said.err and [row[3] == "" for row in rows] == [0, 1, 0, 0]
    assert [row[2] for row in rows] == ["down", "down", "up", "up"]
    for label, videos in (("down", rows[:2]), ("up", rows[2:])):
        right = sum(row[3] == label for row in videos)
        assert f"{label} {50 * right:.1f} % of 2" in said.out
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 5
    timeline.print_mistakes([("", 0, *pair, 1) for pair in ["ab", "ab", "ac", "bb", ("b", "")]])
    assert capsys.readouterr().out == ("worst classes: a 0.0 % of 3, b 50.0 % of 2\nmost frequent "
                                       "confusions: a taken for b 2 times, a taken for c 1 times\n")

    # A window, slowly: 8 frames, segment by segment, as the toy's recipe has it.
    path = str(tmp_path / "v" / "up" / "a.mp4")
    rows = timeline.main([path, "--every", "0.8", *flags])
    clip = read(path, 0, 0.8, 64)[[20 * (2*i + 1) // 16 for i in range(8)], :, 10:74]
    x = (clip.movedim(-1, 0)[None] / 255 - 0.35) / 0.3
    best, c = model(x)[0].softmax(-1).max(0)
    assert rows[0][1:] == (0, "", ["down", "up"][c], pytest.approx(best.item(), abs=1e-5))
    assert len(rows) == 2 and (tmp_path / "out" / "a.png").stat().st_size > 1000


def test_a_smaller_copy_is_the_same_data_set(tmp_path, capsys):
    """Frames, times, turns, colours, lists; a link, a long name; a second call goes on."""
    root = tmp_path / "big" / "in"
    out = tmp_path / "out"
    (root / "a").mkdir(parents=True)
    (tmp_path / "link").symlink_to(root)
    long = "x" * 250 + ".avi"
    write_video(root / "a" / long, stairs(40, 90, 130), codec="mpeg4", bf="2", qmin="2", qmax="2")
    write_video(root / "vfr.mp4", stairs(20), [k if k < 10 else 3 * k for k in range(20)], turn=90)
    colours = np.zeros((4, 96, 128, 3), np.uint8) + np.uint8([200, 60, 20])
    write_video(root / "c.mp4", colours, crf="10")
    (root / "train.txt").write_bytes(f"a/{long} 0\r\n{root}/vfr.mp4 1\n".encode())
    (root / "val.txt").write_text(f"{tmp_path}/link/vfr.mp4 1\n/elsewhere/c.mp4 1\n")
    (root / "classes.txt").write_bytes(b"\xe9t\xe9.mp3\nhiver\n")  # latin-1
    command = ["--resize", "48", str(tmp_path / "link"), str(out)]
    assert small_data.main(command) == 0
    assert "val.txt: 1 lines name files outside" in capsys.readouterr().out
    assert (out / "train.txt").read_bytes() == f"a/{long[:-4]}.mp4 0\r\nvfr.mp4 1\n".encode()
    assert (out / "val.txt").read_text() == "vfr.mp4 1\n/elsewhere/c.mp4 1\n"
    assert (out / "classes.txt").read_bytes() == (root / "classes.txt").read_bytes()

    clip = read(out / "a" / (long[:-4] + ".mp4"))
    assert clip.shape == (40, 48, 68, 3) and abs(levels(clip) - 20 - 3 * np.arange(40)).max() < 2.5
    copy = read(out / "vfr.mp4")
    close(copy.float(), read(root / "vfr.mp4", short_side=48).float(), atol=20, rtol=0)
    assert copy.shape == (20, 64, 48, 3) and len(read(out / "vfr.mp4", 1.2, 2)) == 7  # 10 to 16
    close(read(out / "c.mp4").float().mean((0, 1, 2)), torch.tensor([200., 60, 20]), atol=4, rtol=0)
    with av.open(str(out / "a" / (long[:-4] + ".mp4"))) as container:
        keys = [k for k, packet in enumerate(container.demux(video=0)) if packet.is_keyframe]
    assert max(np.diff(keys + [40])) <= 12

    # What is there stays, what fails is named, what another call has not finished is not touched.
    before = os.stat(out / "vfr.mp4").st_mtime_ns
    (out / "._unfinished_other").mkdir()
    (root / "bad.mp4").write_bytes(b"")
    assert small_data.main(command) == 0
    said = capsys.readouterr().out
    assert "4 videos, 3 are in" in said and "bad.mp4: Invalid data" in said and "3 of 4" in said
    assert os.stat(out / "vfr.mp4").st_mtime_ns == before and not (out / "bad.mp4").exists()
    assert [name for name in os.listdir(out) if name[0] == "."] == ["._unfinished_other"]
    command[2:] = [str(tmp_path / "pictures"), str(tmp_path / "o")]
    (tmp_path / "pictures" / "c" / "v").mkdir(parents=True)
    for k in range(2):  # the frames of one video
        D.Image.fromarray(stairs(2)[k]).save(tmp_path / "pictures" / "c" / "v" / f"{k}.png")
    assert small_data.main(command) == 0
    assert read(tmp_path / "o" / "c" / "v").shape == (2, 48, 64, 3)
    command[2:] = [str(tmp_path / "none"), str(tmp_path / "empty")]
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "bad.mp4").write_bytes(b"")
    assert small_data.main(command) == 1
    with pytest.raises(ValueError, match="each outside of the other"):
        small_data.main(["--resize", "48", str(root), str(root / "inside")])
    write_video(root / "c.avi", stairs(4), codec="mpeg4")
    with pytest.raises(ValueError, match="would have the name of another, .*c.mp4"):
        small_data.main(["--resize", "48", str(root), str(out)])


def test_a_linear_probe_is_logistic_regression_on_frozen_features(tmp_path):
    """The penalised loss, written out, has no gradient; all but the head is as it was."""
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / "v" / split / name).mkdir(parents=True)
            for k in range(3):
                frames = stairs(12)[::1 - 2 * (name == "b")] // (k + 1)
                write_video(tmp_path / "v" / split / name / f"{k}.mp4", frames)
    frozen, flags = checkpoint(tmp_path / "a.pt", ["a", "b"])
    words = ["--data", str(tmp_path / "v"), "--image_size", "64", "--workers", "0"]
    model, metrics = probe.main([*words, *flags, "--batch_size", "4"])
    for (name, one), two in zip(frozen.state_dict().items(), model.state_dict().values()):
        assert name.startswith("head.") or torch.equal(one, two)
    cfg, _ = train.parse_args(words)
    views = D.open_data(cfg, ["train"])["train"]
    views = D.VideoSet(views.clips, views.labels, views.classes, cfg, "1x1")
    batch = torch.utils.data.default_collate([views[0, i] for i in range(6)])
    loss = F.cross_entropy(model(D.prepare(batch, cfg, "cpu")), batch["label"])
    (loss + 0.01 / 2 * model.head.weight.square().sum()).backward()
    assert model.head.weight.grad.abs().max() < 3e-4 and model.head.bias.grad.abs().max() < 3e-4
    assert metrics["videos"] == 6 and model.head.weight.abs().max() > 0.1  # the penalty pulls, 1e-3


def test_the_order_of_frames_is_what_is_changed(tmp_path, monkeypatch):
    """Places worked by hand; to a network that is blind to time, all orders are one."""
    places = {name: order.reordered("segments", at)(16, 8, 1, clips=2).tolist()
              for name, at in order.ORDERS.items()}
    clips = [list(range(0, 16, 2)), list(range(1, 16, 2))]  # two clips that interleave
    assert places["as it is"] == sum(clips, [])
    assert places["reversed"] == sum([clip[::-1] for clip in clips], [])
    assert places["one frame"] == [8] * 8 + [9] * 8
    assert sorted(places["shuffled"]) == list(range(16)) and places["shuffled"] != sorted(
        places["shuffled"]) and [k + 1 for k in places["shuffled"][:8]] == places["shuffled"][8:]

    # The toy's second half is its first half backwards, and classes are pairs of reversals: where
    # the answer is the same in both orders, one of them is wrong.
    clips, labels = (part[-16:] for part in D.toy_split("val", 0))
    both = torch.cat([clips, clips.flip(1)]), torch.cat([labels, labels ^ 1])
    monkeypatch.setattr(D, "toy_split", lambda *args: both)
    _, flags = checkpoint(tmp_path / "a.pt", D.TOY_CLASSES)
    top1 = order.main([*flags, "--model", "focal_toy"])
    assert list(top1) == list(order.ORDERS) and top1["as it is"] + top1["reversed"] <= 100
    blind, flags = checkpoint(tmp_path / "b.pt", D.TOY_CLASSES, temporal=False)
    top1 = order.main([*flags, "--temporal", "False"])
    assert top1["as it is"] == top1["reversed"] == top1["shuffled"]


def test_the_networks_of_the_survey_have_the_parameters_that_its_page_says(tmp_path, monkeypatch):
    survey.import_zoo()
    rows = re.findall(r"\n    (\w+) +(?:\d{4}  .*?)?([\d,]{6,}) ", survey.__doc__)
    assert len(rows) == 23 + 14
    for name, said in rows:
        with torch.device("meta"):
            model = create_model(name)
        assert f"{sum(p.numel() for p in model.parameters()):,}" == said, name
    monkeypatch.setattr(D, "toy_split", lambda split, *args: D.toy_clips(16, *args)[:2])
    words = ["--steps", "1", "--batch_size", "8", "--out", str(tmp_path)]
    top1 = survey.main(["--models", "r3d_toy", "--seeds", "3", *words])
    again = train.main(["--model", "r3d_toy", "--seed", "3", *words])["top1"]
    assert top1 == {"r3d_toy": [again]}
