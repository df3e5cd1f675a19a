"""
Twelve attention kernels of other papers, 2018 to 2025: other ways not to pay N^2.

They share one idea. In softmax attention every query meets every key; here the keys meet something
of a fixed size first, and that is all a query ever sees:
    features      sum_j f(k_j)^T v_j, one row for each feature: the papers differ in f
    a few tokens  256 sums of tokens, 64 landmarks, 16 agents: a softmax over so few is cheap
So the N x N weights, which nobody builds, have a rank of at most that size. Where f(c x) = c f(x),
as in cosformer and focused, a query twice as long has the same weights. inline and mala bring its
length back by a covariance, and pay: some of their weights are negative, y is no longer an average.

    kernel      year  y, or the weights a_ij before they sum to one  products   rank  arXiv
    efficient   2018  softmax_features(q) [softmax_tokens(k)^T v]     2 N d^2      d  1812.01243
    linformer   2020  softmax(q (E k)^T / sqrt d) (P v)              1024 N d    256  2006.04768
    performer   2021  f = exp(omega x - |x|^2 / 2), random omega      4 N d^2      d  2009.14794
    orthoformer 2021  softmax(q R^T) [softmax(R k^T) v], R among q    319 N d     64  2106.05392
    cosformer   2022  relu(q_i) . relu(k_j) cos(pi (i - j) / 2N)      4 N d^2     2d  2202.08791
    focused     2023  f = t^3 |t| / |t^3|, t = relu(x) + 1e-6         2 N d^2      d  2308.00442
    agent       2023  softmax(q A^T) [softmax(A k^T) v], A: pooled q   64 N d     16  2312.08874
    taylor      2024  1 + t + t^2 / 2, t = q_i . k_j / sqrt d         578 N d    153  2402.18668
    hedgehog    2024  f = [softmax(W x), softmax(-W x)]               6 N d^2     2d  2402.04347
    inline      2024  mean v + q_i cov(k, v) / sqrt d                 2 N d^2  d + 1  2412.06590
    rala        2025  f(q_i) . f(k_j) alpha_j, f = elu + 1            2 N d^2      d  2411.07635
    mala        2025  mean v + (1 + 1/z_i) f(q_i) cov(f(k), v) / sqrt d  2 N d^2  d + 1  2507.00698

    products: multiply-adds of one head, leading term; plain linear has 2 N d^2, softmax 2 N^2 d.
    Measured, one CPU thread, d = 64: RACE

Try it, from the repository's root:
    python -m zoo.kernels --model lvt_toy --kernel performer    train.py with twelve kernels more
    python -m zoo.kernels --race                                all against the clock, two minutes

On the toy, top-1 of seeds 0, 1, 2, mean, spread; lvt_toy with both shifts and one gate from q, k
and v, 4 x 4 tokens a frame, no temporal embedding, which would tell direction by itself:

    relu        93.6  89.5  87.9   90.3   5.7        orthoformer 96.7  97.9  94.7   96.4   3.1
    relu_paper  95.1  96.7  89.6   93.8   7.0        cosformer   97.1  91.2  87.5   91.9   9.6
    elu         93.2  97.9  90.0   93.7   7.8        focused     98.0  97.3  90.4   95.2   7.6
    sigmoid     89.3  89.8  87.3   88.8   2.5        agent       96.9  98.8  95.1   96.9   3.7
    identity    13.7  16.4  19.9   16.7   6.2        taylor      89.5  85.9  95.9   90.4  10.0
    softmax     97.9  99.8  93.0   96.9   6.8        hedgehog    92.6  99.4  94.7   95.6   6.8
    efficient   92.2  97.5  90.8   93.5   6.6        inline     100.0  94.9  94.9   96.6   5.1
    linformer   99.6  99.6  98.4   99.2   1.2        rala        99.0  98.2  97.3   98.2   1.8
    performer   98.8  99.2  99.4   99.2   0.6        mala        95.9  90.0  90.4   92.1   5.9

    python -m zoo.kernels --model lvt_toy --kernel relu --seed 0 --image_size 32 --patch 8 \
        --stride 8 --temp_embed False --lr 0.002 --steps 320        and so on, 40 s a run
    Measured at commit 63d0020, 2 CPU cores (AMD EPYC), torch 2.13.0.

Decided: without a feature map (identity) hardly anything is learned (Table 5 of the paper: "does
not converge"). Likely ahead of relu here: linformer, performer, rala, agent, inline, orthoformer;
each of their seeds is above the best of relu's. In the paper performer and linformer are behind
(SSv2: 63.5 in Table 9, 57.2 in Table 1, relu 65.5), but groups of 8 and 16 tokens leave nothing to
compress: this says little about long sequences, which these kernels are for. Not decided:
everything else. Seeds of a row differ by 0.6 to 10 points, and three seeds are three seeds.
"""
import math
import sys
import time

import train  # before torch: it sets how threads wait

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from linear_attn import KERNELS, linear

# An attend function takes what f made of q and k, maybe gated, and v: all (.., N, d) -> (.., N, d).
# x.mT swaps the last two axes.


def full(x):
    """To float32, if it has less: exponentials and divisions by small sums need its range."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


# --------------------------------------------------- features

def efficient(q, k, v):
    """Shen et al. Each feature looks at all tokens in its own way: k.softmax over tokens."""
    return q.softmax(-1) @ (k.softmax(-2).mT @ v)


class Performer(nn.Module):
    """Choromanski et al. (FAVOR+): softmax on average, E[phi(q) . phi(k)] = exp(q . k / sqrt d)."""

    def __init__(self, d, tokens):
        super().__init__()
        self.register_buffer("omega", orthogonal_features(d))  # drawn once, and saved

    def features(self, x, keys):
        """
        phi(x) = d^-1/2 (exp(omega x~ - |x~|^2/2 - c) + 1e-4), x~ = x d^-1/4. c keeps exp finite and
        cancels in the end: the maximum over features for a query, over features and tokens for keys
        (the reference: over the whole batch, so that results depend on who else is in it).
        """
        x = full(x) * x.shape[-1]**-0.25
        logits = x @ self.omega.to(x.dtype).T - x.square().sum(-1, keepdim=True) / 2  # (.., N, d)
        c = logits.detach().amax((-2, -1) if keys else -1, keepdim=True)
        return x.shape[-1]**-0.5 * ((logits - c).exp() + 1e-4)

    def forward(self, q, k, v):
        # In float32, under autocast too, which knows no meta device.
        device = "cpu" if q.device.type == "meta" else q.device.type
        with torch.autocast(device, enabled=False):
            fq = self.features(q, keys=False)
            fk = self.features(k, keys=True)
            return linear(fq, fk, full(v), eps=0.0).to(v.dtype)


def orthogonal_features(d, generator=None):
    """omega (d, d): rows are orthogonal to each other, and as long as Gaussian vectors (chi_d)."""
    q, r = torch.linalg.qr(torch.randn(d, d, generator=generator))
    directions = q * r.diagonal().sign()  # qr prefers some signs
    lengths = torch.randn(d, d, generator=generator).norm(dim=1, keepdim=True)
    return directions * lengths


def cosformer(fq, fk, v):
    """Qin et al. Near tokens count more; cos(a - b) = sin a sin b + cos a cos b: features again."""
    # [x sin, x cos] of i pi / 2N for token i, in float32: bfloat16 knows no odd numbers above 256.
    N = v.shape[-2]
    angle = torch.arange(N, device=v.device, dtype=full(v).dtype) * math.pi / (2*N)
    sin = angle.sin()[:, None].to(fq.dtype)  # (N, 1)
    cos = angle.cos()[:, None].to(fq.dtype)
    fq = torch.cat([fq * sin, fq * cos], dim=-1)  # (.., N, 2d)
    fk = torch.cat([fk * sin, fk * cos], dim=-1)

    # `linear` with another guard: max(sum, 1e-6), not sum + 1e-6. Means, as there.
    kv = fk.mT @ (v / N)  # (.., 2d, d)
    z = full(fq @ fk.mean(-2, keepdim=True).mT)  # (.., N, 1)
    return (fq @ kv / z.clamp(min=1e-6 / N)).to(v.dtype)


def cubed(x):
    """t^3 at the length of t: sharper. In float32 inside, as 1e-6 to the third is 0 in fp16."""
    t = F.relu(full(x)) + 1e-6
    cube = t**3
    cube = cube * t.norm(dim=-1, keepdim=True) / cube.norm(dim=-1, keepdim=True)
    return cube.to(x.dtype)


def focused(fq, fk, v):
    """Han et al. (FLatten). As released, 1e-6 is added to a mean, of features 1 / ln 2 as large."""
    return linear(fq, fk, v, eps=1e-6 * math.log(2)**2 * fk.shape[-2])


class Taylor(nn.Module):
    """Arora et al. (Based). exp up to its square, never below 1/2. W makes d 16, as d^2 is many."""

    def __init__(self, d, tokens):
        super().__init__()
        self.W = nn.Parameter(torch.randn(16, d) * d**-0.5) if d > 16 else None

    def features(self, x):
        """(.., N, d) -> (.., N, 1 + d + d^2): [1, x, x (x) x / sqrt 2], x scaled by d^-1/4."""
        if self.W is not None:
            x = x @ self.W.T
        x = x * x.shape[-1]**-0.25
        pairs = (x[..., :, None] * x[..., None, :]).flatten(-2)  # each pair twice
        return torch.cat([torch.ones_like(x[..., :1]), x, pairs * 2**-0.5], dim=-1)

    def forward(self, q, k, v):
        return linear(self.features(q), self.features(k), v)


class Hedgehog(nn.Module):
    """Zhang et al. A learned f that can become as spiky as a softmax; W starts as the identity."""

    def __init__(self, d, tokens):
        super().__init__()
        self.W = nn.Parameter(torch.eye(d))

    def features(self, x):
        x = x @ self.W.T
        return torch.cat([x.softmax(-1), (-x).softmax(-1)], dim=-1)  # (.., N, 2d)

    def forward(self, q, k, v):
        return linear(self.features(q), self.features(k), v)


def rala(fq, fk, v):
    """Fan et al. alpha_j = softmax_j(mean f(q) . f(k_j) / sqrt d): do the queries ask for key j?"""
    asked = full(fq).mean(-2, keepdim=True) * fq.shape[-1]**-0.5  # (.., 1, d)
    logits = full(fk) @ asked.mT  # (.., N, 1)

    # A factor of alpha cancels, so the largest is one: theirs may be N, too much for fp16.
    alpha = (logits - logits.amax(-2, keepdim=True)).exp()
    return linear(fq, fk * alpha.to(fk.dtype), v)


def covariance(k, v):
    """The mean over j of (k_j - mean k)^T v_j, (.., d, d): the mean of v would cancel."""
    return (k - k.mean(-2, keepdim=True)).mT @ (v / k.shape[-2])


def inline(q, k, v):
    """Han et al. a_ij = (1 + q_i . (k_j - mean k) / sqrt d) / N: no f, no division by a sum."""
    return v.mean(-2, keepdim=True) + q @ covariance(k, v) * q.shape[-1]**-0.5


def mala(fq, fk, v):
    """Fan et al. z_i = f(q_i) . mean f(k) / sqrt d. Without the 1 in 1 + 1/z_i it is `linear`."""
    s = fq.shape[-1]**-0.5
    z = full(fq @ fk.mean(-2, keepdim=True).mT) * s  # (.., N, 1)
    length = 1 + 1 / (z + 1e-6)
    return (v.mean(-2, keepdim=True) + length * (fq @ covariance(fk, v)) * s).to(v.dtype)


# --------------------------------------------------- a few tokens

class Linformer(nn.Module):
    """Wang et al. Learned sums of tokens: made for one number of them. Heads share E and P."""

    def __init__(self, d, tokens):
        super().__init__()
        self.E = nn.Parameter(torch.randn(256, tokens) / 16)  # std 1/sqrt(256)
        self.P = nn.Parameter(torch.randn(256, tokens) / 16)

    def forward(self, q, k, v):
        if k.shape[-2] != self.E.shape[1]:
            raise ValueError(f"{k.shape[-2]} tokens: kernel='linformer' was made for "
                             f"{self.E.shape[1]} and takes no other number")
        return F.scaled_dot_product_attention(q, self.E @ k, self.P @ v)


def orthoformer(q, k, v, L=64):
    """Patrick et al. The landmarks R ask the keys, then the queries ask the landmarks."""
    q = q * q.shape[-1]**-0.25
    k = k * k.shape[-1]**-0.25
    R = q.detach()  # no gradient through them
    if q.shape[-2] > L:  # else each query is a landmark
        R = R.take_along_dim(landmarks(R, L)[..., None], -2)  # (.., L, d)
    y = F.scaled_dot_product_attention(R, k, v, scale=1.0)
    return F.scaled_dot_product_attention(q, R, y, scale=1.0)


@torch.no_grad()
def landmarks(q, L):
    """
    Indices (.., L) of queries that are as orthogonal as can be. Greedy: the next one is the token
    with the smallest largest |cosine| to those chosen; token 0 is the first (the released code
    starts at a random one, so its outputs change from run to run). L dependent steps: slow.
    """
    q = F.normalize(q.float(), dim=-1, eps=1e-8)
    at = torch.zeros_like(q[..., :1, 0], dtype=torch.long)  # (.., 1): token 0
    likeness = torch.zeros_like(q[..., 0])  # (.., N): largest |cosine| to those chosen
    chosen = [at]
    for _ in range(L - 1):
        latest = q.take_along_dim(at[..., None], -2)  # (.., 1, d)
        likeness = torch.maximum(likeness, (q @ latest.mT).abs()[..., 0])
        likeness = likeness.scatter(-1, at, 10.0)  # never again
        at = likeness.argmin(-1, keepdim=True)
        chosen.append(at)
    return torch.cat(chosen, -1).sort(-1).values


def agent(q, k, v, agents=None, n=16):
    """Han et al. The same with n agents: means of neighbouring queries, in raster order."""
    if agents is None:  # in float32: torch's pooling on a CPU knows no fp16
        pooled = F.adaptive_avg_pool1d(full(q).flatten(0, -3).mT, n).mT
        agents = pooled.unflatten(0, q.shape[:-2]).to(q.dtype)  # (.., n, d)
    y = F.scaled_dot_product_attention(agents, k, v)
    return F.scaled_dot_product_attention(q, agents, y)


# Most make their features later, so that the gate sees q and k themselves.
raw = KERNELS["identity"][0]
elu = KERNELS["elu"][0]
KERNELS |= {
    "efficient": (raw, efficient),
    "linformer": (raw, Linformer),
    "performer": (raw, Performer),
    "orthoformer": (raw, orthoformer),
    "cosformer": (F.relu, cosformer),
    "focused": (cubed, focused),
    "agent": (raw, agent),
    "taylor": (raw, Taylor),
    "hedgehog": (raw, Hedgehog),
    "inline": (raw, inline),
    "rala": (elu, rala),
    "mala": (elu, mala),
}


# --------------------------------------------------- the race

def best_ms(kernel, N, at_least_s):
    """The best of at least 4 runs and so many seconds, in ms: the minimum has the least noise."""
    f, attend = KERNELS[kernel]
    if isinstance(attend, type):
        attend = attend(64, N)
    q, k, v = torch.randn(3, 1, 8, N, 64)
    seconds = []
    while len(seconds) < 4 or sum(seconds) < at_least_s:
        start = time.perf_counter()
        attend(f(q), f(k), v)  # the features are part of the price
        seconds.append(time.perf_counter() - start)
    return 1000 * min(seconds)


@torch.no_grad()
def race():
    """Linear against fused softmax attention as N grows, then all kernels at two lengths."""
    torch.set_num_threads(1)  # so that only the mathematics decides
    print("8 heads, d = 64, float32, one CPU thread, forward; ms, the best of at least 4 runs")
    print(f"{'N':>6} {'linear':>9} {'softmax':>9} {'ratio':>6}")
    sizes = [16, 64, 196, 784, 3136, 12544]
    linear_ms = []
    softmax_ms = []
    for N in sizes:
        linear_ms.append(best_ms("relu", N, at_least_s=2))
        softmax_ms.append(best_ms("softmax", N, at_least_s=2))
        ratio = softmax_ms[-1] / linear_ms[-1]
        print(f"{N:>6} {linear_ms[-1]:>9.2f} {softmax_ms[-1]:>9.2f} {ratio:>6.1f}")

    # In logarithms a power of N is a straight line, and its slope is the power.
    x = np.log(sizes)
    ahead = np.log(softmax_ms) - np.log(linear_ms)
    print(f"linear overtakes softmax at about N = {np.exp(np.interp(0, ahead, x)):.0f}")
    for name, ms in (("linear", linear_ms), ("softmax", softmax_ms)):
        print(f"{name}: time ~ N^{np.polyfit(x[3:], np.log(ms[3:]), 1)[0]:.2f} from N = 784 on")

    print(f"\n{'kernel':<12} {'N = 196':>9} {'N = 3136':>9}")
    for kernel in KERNELS:
        ms = [best_ms(kernel, N, at_least_s=0.5) for N in (196, 3136)]
        print(f"{kernel:<12} {ms[0]:>9.2f} {ms[1]:>9.2f}")


if __name__ == "__main__":
    if "--race" in sys.argv:
        race()
    else:
        train.main()
