"""
Twelve attention kernels of other papers, 2018 to 2025: other ways not to pay N^2.

They share one idea. In softmax attention every query meets every key; here the keys meet something
of a fixed size first, and that is all a query ever sees:
    features      sum_j f(k_j)^T v_j, one row for each feature: the papers differ in f
    a few tokens  256 sums of tokens, 64 landmarks, 16 agents: a softmax over so few is cheap
So the N x N weights, which nobody builds, have a rank of at most that size. Where f(c x) = c f(x),
as in cosformer and focused, a query twice as long has the same weights. inline and mala bring its
length back by a covariance, and pay: some of their weights are negative, y is no longer an average.

    kernel      y, or the weights a_ij before they sum to one       products   rank  N = 196, 3136
    efficient   softmax_features(q) [softmax_tokens(k)^T v]          2 N d^2      d   0.45   8.8
    linformer   softmax(q (E k)^T / sqrt d) (P v)                   1024 N d    256   2.81  42.2
    performer   f = exp(omega x - |x|^2 / 2), random omega           4 N d^2      d   1.11  21.6
    orthoformer softmax(q R^T) [softmax(R k^T) v], R among q         319 N d     64   3.89  33.2
    cosformer   relu(q_i) . relu(k_j) cos(pi (i - j) / 2N)           4 N d^2     2d   0.81  19.5
    focused     f = t^3 |t| / |t^3|, t = relu(x) + 1e-6              2 N d^2      d   0.59  13.0
    agent       softmax(q A^T) [softmax(A k^T) v], A: pooled q        64 N d     16   0.29   6.0
    taylor      1 + t + t^2 / 2, t = q_i . k_j / sqrt d              578 N d    153   1.91  49.7
    hedgehog    f = [softmax(W x), softmax(-W x)]                    6 N d^2     2d   1.39  27.0
    inline      mean v + q_i cov(k, v) / sqrt d                      2 N d^2  d + 1   0.37   7.5
    rala        f(q_i) . f(k_j) alpha_j, f = elu + 1                 2 N d^2      d   0.74  13.0
    mala        mean v + (1 + 1/z_i) f(q_i) cov(f(k), v) / sqrt d    2 N d^2  d + 1   0.75  14.5

    products: multiply-adds of one head, leading term; linear has 2 N d^2, softmax 2 N^2 d. N = ..:
    ms, 8 heads, d = 64, one CPU thread (AMD EPYC), features included, the best of three races;
    relu 0.42 and 8.4, softmax 1.06 and 242. At 3136 a race may be up to three times slower, where
    the system hands out memory anew in each run. torch 2.13.0, 2026-11-26.

Try it, from the repository's root:
    python -m zoo.kernels --model lvt_toy --kernel performer    train.py with twelve kernels more
    python -m zoo.kernels --race                                all against the clock, one minute
    python -m experiments.ablations kernels                     what each learns; its table is there
"""
import math
import sys
import time

import train  # before torch: it sets how threads wait

import torch
import torch.nn as nn
import torch.nn.functional as F

from linear_attn import KERNELS, linear

# An attend function takes what f made of q and k, maybe gated, and v: all (.., N, d) -> (.., N, d).
# x.mT swaps the last two axes.


def full(x):
    """To float32, if it has less: exponentials and divisions need its range."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


# --------------------------------------------------- features

def efficient(q, k, v):
    """Shen et al. 2018, 1812.01243. Each feature of the keys is a softmax over all tokens."""
    return q.softmax(-1) @ (k.softmax(-2).mT @ v)


class Performer(nn.Module):
    """Choromanski et al. 2021, 2009.14794. On average E[phi(q) . phi(k)] = exp(q . k / sqrt d)."""

    def __init__(self, d, tokens):
        super().__init__()
        # Rows that are orthogonal, and as long as Gaussian vectors (chi_d). Drawn once, and saved.
        q, r = torch.linalg.qr(torch.randn(d, d))
        directions = q * r.diagonal().sign()  # qr prefers some signs
        self.register_buffer("omega", directions * torch.randn(d, d).norm(dim=1, keepdim=True))

    def features(self, x, keys):
        """
        phi(x) = d^-1/2 (exp(omega x~ - |x~|^2/2 - c) + 1e-4), x~ = x d^-1/4. c, a maximum, keeps
        exp finite and cancels (theirs is of the whole batch: results depend on who else is in it).
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


def cosformer(fq, fk, v):
    """Qin et al. 2022, 2202.08791. cos(a - b) = sin a sin b + cos a cos b: features."""
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
    """t^3 at the length of t: sharper. 1e-6 to the third is 0 in fp16."""
    t = F.relu(full(x)) + 1e-6
    cube = t**3
    cube = cube * t.norm(dim=-1, keepdim=True) / cube.norm(dim=-1, keepdim=True)
    return cube.to(x.dtype)


def focused(fq, fk, v):
    """Han et al. 2023, 2308.00442. 1e-6 is added to a mean, of features 1 / ln 2 as large."""
    return linear(fq, fk, v, eps=1e-6 * math.log(2)**2 * fk.shape[-2])


class Taylor(nn.Module):
    """Arora et al. 2024, 2402.18668. exp up to its square. W makes d 16, as d^2 is many."""

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
    """Zhang et al. 2024, 2402.04347. A learned f, as spiky as a softmax can be."""

    def __init__(self, d, tokens):
        super().__init__()
        self.W = nn.Parameter(torch.eye(d))

    def features(self, x):
        x = x @ self.W.T
        return torch.cat([x.softmax(-1), (-x).softmax(-1)], dim=-1)  # (.., N, 2d)

    def forward(self, q, k, v):
        return linear(self.features(q), self.features(k), v)


def rala(fq, fk, v):
    """Fan et al. 2025, 2411.07635. alpha_j = softmax_j(mean f(q) . f(k_j) / sqrt d)."""
    asked = full(fq).mean(-2, keepdim=True) * fq.shape[-1]**-0.5  # (.., 1, d)
    logits = full(fk) @ asked.mT  # (.., N, 1)

    # A factor of alpha cancels, so the largest is one: theirs may be N, too much for fp16.
    alpha = (logits - logits.amax(-2, keepdim=True)).exp()
    return linear(fq, fk * alpha.to(fk.dtype), v)


def covariance(k, v):
    """The mean of (k_j - mean k)^T v_j, (.., d, d): the mean of v would cancel."""
    return (k - k.mean(-2, keepdim=True)).mT @ (v / k.shape[-2])


def inline(q, k, v):
    """Han et al. 2024, 2412.06590. a_ij = (1 + q_i . (k_j - mean k) / sqrt d) / N."""
    return v.mean(-2, keepdim=True) + q @ covariance(k, v) * q.shape[-1]**-0.5


def mala(fq, fk, v):
    """Fan et al. 2025, 2507.00698. z_i = f(q_i) . mean f(k) / sqrt d; `linear` has no 1 +."""
    s = fq.shape[-1]**-0.5
    z = full(fq @ fk.mean(-2, keepdim=True).mT) * s  # (.., N, 1)
    length = 1 + 1 / (z + 1e-6)
    return (v.mean(-2, keepdim=True) + length * (fq @ covariance(fk, v)) * s).to(v.dtype)


# --------------------------------------------------- a few tokens

class Linformer(nn.Module):
    """Wang et al. 2020, 2006.04768. Learned sums of N tokens, for all heads alike."""

    def __init__(self, d, tokens):
        super().__init__()
        self.E = nn.Parameter(torch.randn(256, tokens) / 16)  # std 1/sqrt(256)
        self.P = nn.Parameter(torch.randn(256, tokens) / 16)

    def forward(self, q, k, v):
        N = self.E.shape[1]
        if k.shape[-2] != N:
            raise ValueError(f"{k.shape[-2]} tokens: this linformer was made for {N}")
        return F.scaled_dot_product_attention(q, self.E @ k, self.P @ v)


def orthoformer(q, k, v, L=64):
    """Patrick et al. 2021, 2106.05392. Landmarks ask the keys, queries the landmarks."""
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
    Indices (.., L) of queries that are as orthogonal as can be. Greedy: the next one has the least
    largest |cosine| to those chosen. Token 0 is the first (theirs is random: outputs change).
    """
    q = F.normalize(q.float(), dim=-1, eps=1e-8)
    at = torch.zeros_like(q[..., :1, 0], dtype=torch.long)  # (.., 1)
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
    """Han et al. 2023, 2312.08874. The same with n means of neighbouring queries."""
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

def best_ms(kernel, N):
    """Features included, as they are part of the price; the minimum has the least noise."""
    f, attend = KERNELS[kernel]
    if isinstance(attend, type):
        attend = attend(64, N)
    q, k, v = torch.randn(3, 1, 8, N, 64)
    seconds = []
    while len(seconds) < 4 or sum(seconds) < 0.5:
        start = time.perf_counter()
        attend(f(q), f(k), v)
        seconds.append(time.perf_counter() - start)
    return 1000 * min(seconds)


@torch.no_grad()
def race():
    """Prints a row for each kernel; ms, as N grows."""
    torch.set_num_threads(1)  # so that only the mathematics decides
    sizes = (16, 64, 100, 196, 784, 3136)
    best_ms("softmax", sizes[-1])  # who comes first waits for memory
    print("8 heads, d = 64, float32, one CPU thread, forward; ms, the best of at least 4 runs")
    print(f"{'N =':<12}" + "".join(f"{N:>9}" for N in sizes))
    for kernel in KERNELS:
        print(f"{kernel:<12}" + "".join(f"{best_ms(kernel, N):>9.2f}" for N in sizes), flush=True)


if __name__ == "__main__":
    if "--race" in sys.argv:
        race()
    else:
        train.main()
