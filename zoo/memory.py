r"""
Memory: hours of video, a chunk of frames at a time, in constant memory.

Attention along time that looks back only: frame i sees the frames j <= i at its pixel. A network
that watches as it happens can do no more. With the softmax, all keys and values have to be kept,
and each new frame is compared with all of them. With a linear kernel the past is one sum:

    y_i = f(q_i) S_i / (f(q_i) . s_i + eps)      S_i = sum_{j<=i} f(k_j)^T v_j     (d, d)
                                                 s_i = sum_{j<=i} f(k_j)           (d)

An hour is as large as a second. Take a chunk of t frames at a time: within it, a t x t table with a
mask; for all before it, the state; then the chunk is added to the state, and forgotten.

    chunk 1 --> y          chunk 2 --> y          chunk 3 --> y        ...
       \--> (n, S, s) ------^  \--> (n, S, s) ------^

For each pixel and head a chunk costs 2 t^2 d + 2 t d^2 multiply-adds, the state is d^2 + d numbers.
The result is that of all frames at once, up to rounding: 5e-7 after 10,000 frames in float32. As in
the core we keep means, not sums: S / n and s / n fit into fp16 after any number of frames.

    softmax    there is no such sum. The keys and values of the last `keep` frames are kept: frame
               i sees those, and its chunk up to itself. Constant as well, but what is older is gone

In training no gradient goes into the state or what is kept: else the graph of the first chunk would
have to wait for the last. That is MeMViT's way (Wu et al. 2022, arXiv:2201.08383), which keeps keys
and values of the clips before, pooled, and compressed by a convolution; here they stay as they are.
The sum is that of "Transformers are RNNs", Katharopoulos et al. 2020, arXiv:2006.16236, here by
chunks, and with the gate. Not trained here beyond a few steps: this is about cost.

For a whole network to give in chunks what it gives at once it takes temp_embed=False, as there is
only one for each frame of a clip, and temporal_shift=0, as attention across space would take from
the next chunk's first frame. The spatial shift and the gate may stay.

Random frames of 64 x 64 through lvt_toy with memory+space, 25 tokens a frame, one thread:

                               ms per frame in the        MiB      MiB at
    kernel    chunk   frames   first tenth   last tenth   of state   the peak
    relu          8     1000          0.90         0.84       0.40          2
    relu          8    10000          0.79         0.85       0.40          2
    relu        100    10000          0.58         0.39       0.40         30
    softmax       8    10000          0.87         1.12       1.56          5
    softmax     100    10000          0.54         0.49       1.56         30
    relu        500      500          1.10         1.10       0.40        194
    relu       1000     1000          2.11         2.11       0.40        549
    relu       2000     2000          3.04         3.04       0.40       1826

2026-11-26, 2 shared CPU cores (AMD EPYC), torch 2.13.0, one run. Times are of the CPU, not of the
clock, on a busy machine: 0.58 and 0.39 are the same work. The peak is what the process needed
beyond the network. The last three rows take all frames at once: twice the frames, three times the
memory. In chunks neither has grown after 10,000 frames, and nothing is left that could.

As a mixer, from the root of the repository. Each clip of a training set is a past of its own:
    python -m zoo.memory --model lvt_toy --mixer memory+space       trains on the toy
    python -m zoo.memory                                            the table above, two minutes
In your own program, for one long video:
    for logits in stream(model, chunks): ...                        chunk (B, 3, t, H, W)
"""
import multiprocessing
import resource
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

import train
from backbone import MIXERS, OPTIONS, create_model
from linear_attn import KERNELS, Attention, linear

KEEP = 64  # frames that the softmax keeps


# --------------------------------------------------- one chunk

def linear_chunk(fq, fk, v, state=None, eps=1e-6):
    """
    The next t frames, with a linear kernel: fq, fk, v (.., t, d), the state after the frames before
    or None -> y (.., t, d), the new state. A state is (n, mean of f(k)^T v, mean of f(k)), the last
    two (.., d, d) and (.., 1, d), in float32 at least, without gradient.
    """
    *groups, t, features = fk.shape
    wide = torch.promote_types(v.dtype, torch.float32)
    if state is None:
        state = (0, v.new_zeros(*groups, features, v.shape[-1], dtype=wide),
                 v.new_zeros(*groups, 1, features, dtype=wide))
    n, kv, k_mean = state
    past = n / (n + t)  # the share of the past in a mean over all

    # This chunk: a t x t table, of which a frame sees what is not later than itself.
    a = (fq @ fk.mT).tril() / (n + t)  # (.., t, t)
    y = a @ v + past * (fq @ kv.to(fq.dtype))
    z = a.sum(-1, keepdim=True) + past * (fq @ k_mean.to(fq.dtype).mT)

    # In float32 at least, as in the core: eps / n is less than fp16 can hold.
    y = (y / (z.to(wide) + eps / (n + t))).to(v.dtype)

    # The chunk joins the past.
    kv = past * kv + fk.mT @ (v / (n + t))
    k_mean = past * k_mean + (fk / (n + t)).sum(-2, keepdim=True)
    return y, (n + t, kv.detach(), k_mean.detach())


def softmax_chunk(q, k, v, state=None, keep=KEEP):
    """
    The next t frames, with the softmax: q, k, v (.., t, d), state -> y, the new state: the keys and
    values of the last `keep` frames, (.., up to keep, d) each, without gradient.
    """
    t = q.shape[-2]
    if state is not None:
        k = torch.cat([state[0], k], dim=-2)
        v = torch.cat([state[1], v], dim=-2)

    # All that was kept, and of this chunk what is not later than oneself.
    n = k.shape[-2]
    seen = torch.ones(t, n, dtype=torch.bool, device=q.device).tril(n - t)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)

    # A copy: a view would keep the whole chunk alive.
    last = slice(max(n - keep, 0), n)
    return y, (k[..., last, :].detach().clone(), v[..., last, :].detach().clone())


# --------------------------------------------------- the mixer

class Causal(nn.Module):
    """
    The attend of a kernel, looking back only: q, k, v (pixels, heads, t, d) -> y like v. While
    `carry` is set, a call goes on where the last one ended; else each is a clip of its own.
    """

    def __init__(self, kernel, keep):
        super().__init__()
        if KERNELS[kernel][1] is not linear and kernel != "softmax":
            raise ValueError(f"kernel={kernel!r}: 'memory' needs a linear kernel, or 'softmax'")
        if kernel != "softmax" and keep != KEEP:
            raise ValueError(f"keep={keep} means nothing to kernel={kernel!r}, which has all the "
                             "past in one sum; leave it out, or use kernel='softmax'")
        self.softmax = kernel == "softmax"
        self.keep = keep
        self.carry = False
        self.state = None

    def forward(self, q, k, v):
        if self.softmax:
            y, state = softmax_chunk(q, k, v, self.state, self.keep)
        else:
            y, state = linear_chunk(q, k, v, self.state)
        if self.carry:
            self.state = state
        return y


class Memory(Attention):
    """
    Attention along time that looks back only, (B, T, H, W, dim) -> same, any T. options: those of
    Attention, and `keep`, how many frames the softmax keeps from chunk to chunk.
    """

    def __init__(self, dim, size, options):
        options = dict(options)
        keep = options.pop("keep", KEEP)
        super().__init__(dim, "time", size, **options)
        self.attend = Causal(options.get("kernel", "relu"), keep)


MIXERS["memory"] = Memory
OPTIONS["memory"] = OPTIONS["time"] | dict(keep=KEEP)


def stream(model, chunks):
    """
    One long video, (B, 3, t, H, W) at a time -> yields what the network says of each chunk, given
    all before it. In between the network must see nothing else. ValueError if it has no 'memory'.
    """
    memories = [module for module in model.modules() if isinstance(module, Causal)]
    if not memories:
        raise ValueError("this network has no memory: create it with mixer='memory+space'")
    for module in memories:
        module.carry = True
        module.state = None
    try:
        for chunk in chunks:
            yield model(chunk)
    finally:
        # The next clip knows nothing of this video.
        for module in memories:
            module.carry = False
            module.state = None


# --------------------------------------------------- the demonstration

def measure(kernel, t, frames):
    """
    A video of so many frames through a small network, t at a time -> ms of one CPU per frame in the
    first tenth, and the last; MiB of state; MiB that the process needed more at its peak.
    """
    torch.set_num_threads(1)
    model = create_model("lvt_toy", mixer="memory+space", kernel=kernel, temporal_shift=0,
                         temp_embed=False).eval()
    chunks = (torch.randn(1, 3, t, 64, 64) for _ in range(frames // t))
    with torch.no_grad():
        model(torch.randn(1, 3, 8, 64, 64))  # the first call is slow
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        times = [time.process_time()]
        for _ in stream(model, chunks):
            times.append(time.process_time())
            state = sum(part.numel() * part.element_size()
                        for module in model.modules() if isinstance(module, Causal)
                        for part in module.state if torch.is_tensor(part))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB on Linux
    tenth = max(len(times) // 10, 1)
    first = (times[tenth] - times[0]) / tenth / t
    last = (times[-1] - times[-1 - tenth]) / tenth / t
    return 1000 * first, 1000 * last, state / 2**20, peak / 2**10


def demonstrate():
    """Prints the table of the header."""
    print("                           ms per frame in the        MiB      MiB at")
    print("kernel    chunk   frames   first tenth   last tenth   of state   the peak")
    for kernel, t, frames in (("relu", 8, 1000), ("relu", 8, 10_000), ("relu", 100, 10_000),
                              ("softmax", 8, 10_000), ("softmax", 100, 10_000),
                              ("relu", 500, 500), ("relu", 1000, 1000), ("relu", 2000, 2000)):
        # A fresh process for each: the peak of a process never goes down.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            first, last, state, peak = pool.apply(measure, (kernel, t, frames))
        print(f"{kernel:<8} {t:>6} {frames:>8} {first:>13.2f} {last:>12.2f} {state:>10.2f} "
              f"{peak:>10.0f}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        train.main()
    else:
        demonstrate()
