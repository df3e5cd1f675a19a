"""
Linear attention, and what makes it focus: attention for N tokens at the price of N, not N^2.

Attention mixes values with weights that say how well query i and key j agree, y_i = sum_j a_ij v_j.
The softmax needs every a_ij on its own: N^2 of them. If instead a_ij is a product of features,

    a_ij = f(q_i) . f(k_j) / sum_j' f(q_i) . f(k_j')

then the sums can change places and no N x N matrix is ever built (Eq. 2 and 3):

    y_i = f(q_i) [ sum_j f(k_j)^T v_j ]  /  f(q_i) . [ sum_j f(k_j) ]     [..] is the same for all i

    q, k, v, y  (B, heads, N, d)     f(k)^T v  (B, heads, d, d)     cost  2 N d^2, softmax  2 N^2 d

Such weights are smooth: they spread over all tokens where a softmax would pick a few. Two remedies:
    feature fixation           g = sigmoid(P [f(q), f(k), v]), then f(q) <- g f(q), f(k) <- g f(k):
                               the token says which of its features count (Eq. 4 and 5)
    neighbourhood association  some channels of k and v come from the token before, after, or beside
Who attends to whom is a matter of grouping tokens (`group`), how they do a matter of the kernel.

Source: "Linear Video Transformer with Feature Fixation", arXiv:2210.08164, and its released code.
Where the code differs from the text we follow the code, and the options have the text's version:
  - features are relu(x) + 1/sqrt(d), not the relu of Eq. 3. So every a_ij is at least 1 before it
    is normalised: no 0/0, and weights that are smoother still. kernel='relu_paper' is Eq. 3;
  - one gate per head, 3d -> d, with weights that all heads share; the text has D x D weights;
  - the gate sees v as it is, where Eq. 5 draws a breve over it; v itself is never gated;
  - the shifts are crossed: attention across space gets the temporal shift, and the reverse (the
    text mixes both in sequence): each attention is given what it cannot reach by itself;
  - at the border, the four straight neighbours that do not exist count as zero, but the diagonal
    ones as the token itself (the code copies, then overwrites). Kept: it is what the weights know.
Ours: the shared gate is computed once, not twice; the normaliser is N times smaller, see below.
Try it: python linear_attn.py    softmax against linear as N grows to 50,000, a minute on a CPU
"""
import ctypes
import math
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

KERNELS = ("softmax", "relu", "relu_paper", "elu", "sigmoid", "identity", "cosformer",
           "performer", "linformer", "orthoformer")
FIXATIONS = ("none", "separate", "qk", "qk_shared", "qkv", "qkv_shared")


# ----------------------------------------------------------------------------- kernels
# All take q, k, v (..., N, d) and give (..., N, d). The linear ones take features, from `features`.

def features(x, kernel):
    """f of a kernel, (..., N, d) -> same: what the gate sees and what linear kernels multiply."""
    if kernel == "relu":                                # as released; added in place, which F.relu
        return F.threshold(x, 0, 0).add_(x.shape[-1]**-0.5)                # would not survive
    if kernel in ("relu_paper", "cosformer"):
        return F.relu(x)                                # Eq. 3
    if kernel == "elu":
        return F.elu(x) + 1                             # Katharopoulos et al. 2020, arXiv:2006.16236
    if kernel == "sigmoid":
        return x.sigmoid()
    return x                                            # identity, and the kernels with softmax inside


def full(x):
    """To float32, if it has less: exponentials and divisions by small sums need its range."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def linear(fq, fk, v, eps=1e-6, clamp=False):
    """
    y_i = fq_i (sum_j fk_j^T v_j) / (fq_i . sum_j fk_j + eps), O(N d^2); clamp: max(., eps), not +.

    In fp16 both sums are taken of fk / N, with eps / N: the same mathematics, but at N = 3136 the
    plain normaliser passes 65504, where fp16 ends. The division is done in float32, since eps / N
    is below what fp16 can hold, and without it a query without features would give 0/0.
    """
    N = fk.shape[-2]
    if fk.dtype == torch.float16:
        fk, eps = fk / N, eps / N
    kv = fk.transpose(-2, -1) @ v                       # (.., d, d): tokens are summed first
    z = full(fq @ fk.sum(-2, keepdim=True).transpose(-2, -1))                            # (.., N, 1)
    z = z.clamp(min=eps) if clamp else z + eps
    return ((fq @ kv) / z).to(v.dtype)


def cosformer_features(x):
    """relu features (.., N, d) -> (.., N, 2d): [x sin, x cos] of i pi / 2N for token i = 1..N."""
    N = x.shape[-2]
    exact = torch.promote_types(x.dtype, torch.float32)
    angle = torch.arange(1, N + 1, device=x.device, dtype=exact)[:, None] * math.pi / (2 * N)
    return torch.cat([x * angle.sin().to(x.dtype), x * angle.cos().to(x.dtype)], dim=-1)


def cosformer(fq, fk, v):
    """
    a_ij = fq_i . fk_j cos(pi (i - j) / 2N): near tokens count more. The cosine, cos a cos b + sin a
    sin b, makes it a product of features, 2 d wide. Qin et al. 2022, arXiv:2202.08791. O(2 N d^2).
    """
    return linear(cosformer_features(fq), cosformer_features(fk), v, clamp=True)


def orthogonal_features(m, d, generator=None):
    """omega (m, d): directions orthogonal in blocks of d, lengths of Gaussian vectors (chi_d)."""
    blocks = []
    for _ in range(-(-m // d)):
        q, r = torch.linalg.qr(torch.randn(d, d, generator=generator))
        blocks.append(q * r.diagonal().sign())          # qr prefers some signs
    return torch.cat(blocks)[:m] * torch.randn(m, d, generator=generator).norm(dim=1, keepdim=True)


def performer_features(x, omega, keys):
    """
    FAVOR+: phi(x) = m^-1/2 (exp(omega x~ - |x~|^2/2 - c) + 1e-4), x~ = x d^-1/4, is (.., N, m) with
    E[phi(q) . phi(k)] = exp(q . k / sqrt d) up to c and the floor. c keeps exp finite and cancels
    in the normalisation: the maximum over features for a query, over features and tokens of a head
    for keys (the reference: over the whole batch, so that results depend on who else is in it).
    """
    x = full(x) * x.shape[-1]**-0.25
    logits = x @ omega.to(x.dtype).transpose(-2, -1) - x.square().sum(-1, keepdim=True) / 2     # (.., N, m)
    c = logits.detach().amax((-2, -1) if keys else -1, keepdim=True)
    return omega.shape[0]**-0.5 * ((logits - c).exp() + 1e-4)


def performer(q, k, v, omega):
    """Softmax by random features. Choromanski et al. 2021, arXiv:2009.14794. O(N m d)."""
    with torch.autocast(q.device.type.replace("meta", "cpu"), enabled=False):            # exp in float32
        y = linear(performer_features(q, omega, False), performer_features(k, omega, True),
                   full(v), eps=0.0)
    return y.to(v.dtype)


def linformer(q, k, v, E, P):
    """softmax(q (E k)^T / sqrt d) (P v), E and P (K, N) learned: N is fixed.
    Wang et al. 2020, arXiv:2006.04768. O(N K d)."""
    return F.scaled_dot_product_attention(q, E @ k, P @ v)


@torch.no_grad()
def landmarks(q, L):
    """
    Indices (.., L) of queries that are as orthogonal as can be: one after the other, the token
    whose largest |cosine| to those chosen is smallest, from token 0 on (the released code starts at
    a random one, so its outputs change from run to run). L dependent steps, so it is slow.
    """
    q = F.normalize(q.float(), dim=-1, eps=1e-8)
    at, nearest = torch.zeros_like(q[..., :1, 0], dtype=torch.long), torch.zeros_like(q[..., 0])
    chosen = [at]
    for _ in range(L - 1):
        one = q.gather(-2, at[..., None].expand(*at.shape, q.shape[-1]))                 # (.., 1, d)
        nearest = torch.maximum(nearest, (q @ one.transpose(-2, -1)).abs()[..., 0])
        nearest = nearest.scatter(-1, at, 10.0)                                          # never again
        at = nearest.argmin(-1, keepdim=True)
        chosen.append(at)
    return torch.cat(chosen, -1).sort(-1).values


def orthoformer(q, k, v, L=64):
    """softmax(q R^T) [softmax(R k^T) v], R: L landmarks among the queries.
    Patrick et al. 2021, arXiv:2106.05392. O(N L d)."""
    q, k = q * q.shape[-1]**-0.25, k * k.shape[-1]**-0.25
    R = q.detach()                                      # no gradient through the landmarks
    if q.shape[-2] > L:
        R = R.gather(-2, landmarks(R, L)[..., None].expand(*q.shape[:-2], L, q.shape[-1]))
    return F.scaled_dot_product_attention(
        q, R, F.scaled_dot_product_attention(R, k, v, scale=1.0), scale=1.0)


def attend(kernel, q, k, v, omega=None, E=None, P=None, L=64):
    """y (.., N, d) of a kernel; q, k `features`, maybe gated; omega: performer, E, P: linformer."""
    if kernel == "softmax":
        return F.scaled_dot_product_attention(q, k, v)  # fused: N^2 time, but no N x N memory
    if kernel == "cosformer":
        return cosformer(q, k, v)
    if kernel == "performer":
        return performer(q, k, v, omega)
    if kernel == "linformer":
        return linformer(q, k, v, E, P)
    if kernel == "orthoformer":
        return orthoformer(q, k, v, L)
    return linear(q, k, v)


def attention_map(kernel, q, k, omega=None, E=None, P=None, L=64):
    """The N x N weights `attend` never builds: attend(kernel, q, k, v) = attention_map() @ v."""
    d, N = q.shape[-1], k.shape[-2]
    if kernel == "softmax":
        return (q @ k.transpose(-2, -1) * d**-0.5).softmax(-1)
    if kernel == "linformer":
        return (q @ (E @ k).transpose(-2, -1) * d**-0.5).softmax(-1) @ P
    if kernel == "orthoformer":
        q, k = q * d**-0.25, k * d**-0.25
        R = q if N <= L else q.gather(-2, landmarks(q, L)[..., None].expand(*q.shape[:-2], L, d))
        return (q @ R.transpose(-2, -1)).softmax(-1) @ (R @ k.transpose(-2, -1)).softmax(-1)
    if kernel == "cosformer":
        i = torch.arange(N, device=q.device, dtype=torch.promote_types(q.dtype, torch.float32))
        a = q @ k.transpose(-2, -1) * ((i[:, None] - i) * math.pi / (2 * N)).cos().to(q.dtype)
        return a / a.sum(-1, keepdim=True).clamp(min=1e-6)
    if kernel == "performer":
        a = (performer_features(q, omega, False)
             @ performer_features(k, omega, True).transpose(-2, -1))
        return a / a.sum(-1, keepdim=True)
    a = q @ k.transpose(-2, -1)
    return a / (a.sum(-1, keepdim=True) + 1e-6)


# ------------------------------------------------------------------------ neighbourhood association

def temporal_shift(x, divisor, span=None):
    """
    x (B, T, H, W, C) -> same: of C // divisor channels each, the first take the next frame's value,
    the second the frame before's, the others their own; zero beyond the clip. With 4 and 8 heads:
    heads 0-1 look ahead, 2-3 back. span: frames the shift runs over; the released Kinetics configs
    shift 16 frames as two halves of 8.
    """
    T, f = x.shape[1], x.shape[-1] // divisor
    x = x.unflatten(1, (-1, span or T))                                                  # (B, T/span, span, H, W, C)
    ahead = F.pad(x[..., :f], (0, 0, 0, 0, 0, 0, -1, 1))                                 # out[t] = in[t + 1]
    back = F.pad(x[..., f:2*f], (0, 0, 0, 0, 0, 0, 1, -1))
    return torch.cat([ahead, back, x[..., 2*f:]], dim=-1).flatten(1, 2)


FAR = ((1, 0), (-1, 0), (0, 1), (0, -1), (-1, -1), (1, 1), (-1, 1), (1, -1))             # (down, right), times the size
KNIGHT = ((-2, -1), (-2, 1), (-1, -2), (1, -2), (2, -1), (2, 1), (-1, 2), (1, 2))


def neighbours(size):
    """[(down, right)] in channel-group order, and how many neighbours channels are split for."""
    far = [(size * y, size * x) for y, x in FAR]
    return (far + list(KNIGHT) + list(FAR) if size == 2 else far), (2*size + 1)**2 - 1   # size 4: 8 of 80, as released


def spatial_shift(x, size):
    """
    x (B, T, H, W, C) -> same: half of the channels in equal groups, one for each of the
    (2 size + 1)^2 - 1 neighbours, take that neighbour's value. Beyond the border groups 0 to 3 take
    zero, the others the token's own (see the header).
    """
    H, W, C = x.shape[2:]
    offsets, n = neighbours(size)
    f, parts = C // (2 * n), []
    rows, columns = (torch.arange(H, device=x.device)[:, None, None],
                     torch.arange(W, device=x.device)[:, None])
    for i, (dy, dx) in enumerate(offsets):
        own = x[..., i*f:(i+1)*f]
        part = F.pad(own, (0, 0, -dx, dx, -dy, dy))                                      # out[r, c] = in[r+dy, c+dx]
        if i >= 4:
            there = (rows + dy >= 0) & (rows + dy < H) & (columns + dx >= 0) & (columns + dx < W)     # (H, W, 1)
            part = torch.where(there, part, own)
        parts.append(part)
    return torch.cat(parts + [x[..., len(offsets)*f:]], dim=-1)


# ----------------------------------------------------------------------------- the mixer

def group(x, pattern):
    """(B, T, H, W, heads, d) -> (groups, heads, N, d): tokens attend within their group only."""
    if pattern == "time":
        return x.permute(0, 2, 3, 4, 1, 5).flatten(0, 2)                                 # B*H*W groups of T
    if pattern == "space":
        return x.flatten(2, 3).transpose(2, 3).flatten(0, 1)                             # B*T groups of H*W
    return x.flatten(1, 3).transpose(1, 2)                                               # B groups of T*H*W, joint


def ungroup(y, pattern, shape):
    """(groups, heads, N, d) -> (B, T, H, W, C), back from `group`; shape: (B, T, H, W)."""
    B, T, H, W = shape
    if pattern == "time":
        return y.unflatten(0, (B, H, W)).permute(0, 4, 1, 2, 3, 5).flatten(-2)
    return y.transpose(1, 2).reshape(B, T, H, W, -1)


class Attention(nn.Module):
    """
    The mixer, (B, T, H, W, dim) -> same: qkv -> shift k, v -> features -> gate -> attend -> proj.

    heads, kernel      one of KERNELS; pattern: 'time', 'space' or 'joint', who attends to whom
    fixation           one of FIXATIONS: what the gate sees, do q and k share it; 'separate': Eq. 4
    fixation_by        how they are joined: 'concat', 'add' or 'multiply'
    temporal_shift     channel divisor, or (divisor, span);  spatial_shift  size 1, 2, 4;  0 = off
    shift_first        shift, then gate (released), or gate, then shift
    size               (T, H, W) of the token grid, for linformer, whose weights depend on it

    Released names: qkv, proj, pgate (shared) or q_gate and k_gate. ValueError for what cannot be.
    """

    def __init__(self, dim, heads=8, kernel="relu", pattern="space", fixation="qkv_shared",
                 fixation_by="concat", temporal_shift=0, spatial_shift=0, shift_first=True,
                 size=None):
        super().__init__()
        for name, value, allowed in (
                ("kernel", kernel, KERNELS), ("pattern", pattern, ("time", "space", "joint")),
                ("fixation", fixation, FIXATIONS), ("spatial_shift", spatial_shift, (0, 1, 2, 4)),
                ("fixation_by", fixation_by, ("concat", "add", "multiply"))):
            if value not in allowed:
                raise ValueError(f"{name}={value!r}: use one of {', '.join(map(str, allowed))}")
        if dim % heads:
            raise ValueError(f"heads={heads} does not divide dim={dim}")
        if fixation in ("none", "separate") and fixation_by != "concat":
            raise ValueError(f"fixation_by={fixation_by!r}: fixation={fixation!r} joins nothing, "
                             "leave it at 'concat'")
        self.divisor, self.span = (temporal_shift if isinstance(temporal_shift, (tuple, list))
                                   else (temporal_shift, None))
        if self.divisor < 0 or 0 < self.divisor < 2 or dim < self.divisor:
            raise ValueError(f"temporal_shift={temporal_shift}: 0 (off), "
                             f"or a divisor from 2 to dim={dim}")
        if spatial_shift and dim < 2 * neighbours(spatial_shift)[1]:
            raise ValueError(
                f"spatial_shift={spatial_shift} needs {2 * neighbours(spatial_shift)[1]} channels "
                f"for one per neighbour, dim={dim} has fewer: use a smaller size")
        d = dim // heads
        self.heads, self.kernel, self.pattern, self.fixation, self.by = (
            heads, kernel, pattern, fixation, fixation_by)
        self.spatial_shift, self.shift_first = spatial_shift, shift_first
        self.qkv, self.proj = nn.Linear(dim, 3*dim), nn.Linear(dim, dim)
        if fixation != "none":
            joined = {"separate": 1, "qk": 2, "qkv": 3}[fixation.removesuffix("_shared")]
            width = d * joined if fixation_by == "concat" else d
            for name in ("pgate",) if fixation.endswith("shared") else ("q_gate", "k_gate"):
                self.add_module(name, nn.Linear(width, d))                               # the same for all heads
        if kernel == "performer":
            self.register_buffer("omega", orthogonal_features(d, d))                     # drawn once, and saved
        if kernel == "linformer":
            if size is None:
                raise ValueError("kernel='linformer' has weights per token: "
                                 "it needs size=(T, H, W)")
            T, H, W = size
            self.N = {"time": T, "space": H*W, "joint": T*H*W}[pattern]
            self.E, self.P = (nn.Parameter(torch.randn(256, self.N) / 16) for _ in "EP")      # K = 256, std 1/sqrt(K)

    def shift(self, x):
        """Both shifts on (B, T, H, W, C), space first as in the released joint attention."""
        if self.spatial_shift:
            x = spatial_shift(x, self.spatial_shift)
        return temporal_shift(x, self.divisor, self.span) if self.divisor else x

    def fixate(self, q, k, v):
        """Gated q, k, and the gate or gates, a number per feature, all (B, T, H, W, heads, d)."""
        if self.fixation == "separate":
            g_q, g_k = self.q_gate(q).sigmoid(), self.k_gate(k).sigmoid()                # Eq. 4
            return g_q * q, g_k * k, (g_q, g_k)
        z = (q, k, v) if "v" in self.fixation else (q, k)                                # Eq. 5
        if self.by == "concat":
            z = torch.cat(z, dim=-1)
        elif self.by == "add":
            z = sum(z)
        else:
            z = math.prod(z)
        if self.fixation.endswith("shared"):
            g = self.pgate(z).sigmoid()
            return g * q, g * k, (g,)
        g_q, g_k = self.q_gate(z).sigmoid(), self.k_gate(z).sigmoid()
        return g_q * q, g_k * k, (g_q, g_k)

    def forward(self, x, return_maps=False):
        """
        x: (B, T, H, W, C) -> same. With return_maps also a dict: q, k (groups, heads, N, d), for
        `attention_map`, and fixation, a tuple of gates (B, T, H, W, heads, d), empty without.
        """
        shape, fixation = x.shape[:4], ()
        q, k, v = self.qkv(x).chunk(3, dim=-1)                                           # (B, T, H, W, C) each
        if self.shift_first:
            k, v = self.shift(k), self.shift(v)
        q, k, v = (t.unflatten(-1, (self.heads, -1)) for t in (q, k, v))                 # (B, T, H, W, heads, d)
        q, k = features(q, self.kernel), features(k, self.kernel)
        if self.fixation != "none":
            q, k, fixation = self.fixate(q, k, v)
        if not self.shift_first:
            k, v = (self.shift(t.flatten(-2)).unflatten(-1, (self.heads, -1)) for t in (k, v))
        q, k, v = (group(t, self.pattern) for t in (q, k, v))                            # (groups, heads, N, d)
        own = {}
        if self.kernel == "performer":
            own = dict(omega=self.omega)
        elif self.kernel == "linformer":
            if k.shape[-2] != self.N:
                raise ValueError(f"{k.shape[-2]} tokens: kernel='linformer' was made for {self.N} "
                                 "and takes no other number")
            own = dict(E=self.E, P=self.P)
        y = self.proj(ungroup(attend(self.kernel, q, k, v, **own), self.pattern, shape))
        return (y, dict(q=q, k=k, fixation=fixation)) if return_maps else y


def peak_mib(run):
    """What run() adds to the resident memory at its peak, MiB (nan where /proc cannot tell)."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")                             # sets the high-water mark to where we are
        before = open("/proc/self/status").read()
        run()
        after = open("/proc/self/status").read()
    except OSError:
        return math.nan
    peak, base = (int(text.split(key)[1].split()[0])
                  for text, key in ((after, "VmHWM:"), (before, "VmRSS:")))
    return (peak - base) / 1024


def race(sizes=(64, 196, 784, 3136, 12544, 50176), limit_s=20):
    """Linear against fused softmax attention as N grows; runs over limit_s are skipped."""
    malloc = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if malloc:
        malloc(-3, 2**16)                               # give memory back at once: what is measured
    torch.set_num_threads(1)                            # is what is used (M_MMAP_THRESHOLD)
    print("8 heads, d = 64, float32, one CPU thread, forward; the best time of at least 4 runs")
    runs = dict(linear=lambda q, k, v: linear(features(q, "relu"), features(k, "relu"), v),
                softmax=F.scaled_dot_product_attention)
    memory, best, expected_s = {}, {}, 0
    for N in sizes:
        x = torch.randn(3, 1, 8, N, 64)
        for name, run in runs.items():
            if name == "linear" or expected_s <= limit_s:
                start = time.perf_counter()
                memory[name, N] = peak_mib(lambda: run(*x))
        expected_s = 16 * (time.perf_counter() - start)             # softmax, at 4 times as many
    if malloc:                                          # keep it (M_MMAP_MAX, M_TRIM_THRESHOLD): to
        malloc(-4, 0)                                   # get fresh pages for every large tensor is
        malloc(-1, 2**31 - 1)                           # half of what would be timed
    print(f"{'N':>6} {'linear ms':>10} {'softmax ms':>10} {'ratio':>6} {'linear MiB':>11} "
          f"{'softmax MiB':>11} {'N x N weights MiB':>18}")
    for N in sizes:
        x = torch.randn(3, 1, 8, N, 64)
        for name, run in runs.items():
            seconds = []
            while (name, N) in memory and (len(seconds) < 4 or sum(seconds) < 2):
                start = time.perf_counter()
                run(*x)
                seconds.append(time.perf_counter() - start)
            best[name, N] = 1000 * min(seconds, default=math.nan)
        slow, fast = best["softmax", N], best["linear", N]
        row = (f"{N:>6} {fast:>10.2f} {slow:>10.2f} {slow / fast:>6.1f} "
               f"{memory['linear', N]:>11.1f} {memory.get(('softmax', N), math.nan):>11.1f} "
               f"{8 * N * N * 4 / 2**20:>18,.0f}")
        print(row.replace("nan", "  -"))
    x, y = torch.tensor([[math.log(N), math.log(best["linear", N])] for N in sizes if N >= 784]).T
    x, y = x - x.mean(), y - y.mean()
    print(f"linear: time ~ N^{(x @ y / (x @ x)).item():.2f} from N = 784 on.   -: skipped, it "
          f"would take more than {limit_s} s a run")


if __name__ == "__main__":
    race()
