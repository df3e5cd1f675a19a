"""
Linear attention, and what makes it focus: attention for N tokens at the price of N, not N^2.

Attention mixes values with weights that say how well query i and key j agree, y_i = sum_j a_ij v_j.
The softmax needs every a_ij on its own: N^2 of them. Let a_ij be a product of features instead.
Then three lines of algebra do without the N x N matrix (Eq. 2 and 3):

    y_i = sum_j (f(q_i) . f(k_j)) v_j / sum_j f(q_i) . f(k_j)         as it stands:    N^2 products
        = sum_j f(q_i) (f(k_j)^T v_j) / sum_j f(q_i) . f(k_j)         move a bracket
        = f(q_i) [sum_j f(k_j)^T v_j] / f(q_i) . [sum_j f(k_j)]       [..] is the same for all i

    q, k, v, y  (B, heads, N, d)     f(k)^T v  (B, heads, d, d)     cost  2 N d^2, softmax  2 N^2 d
    q_i, k_j and v_j are rows of d numbers.

So linear attention does fewer multiply-adds as soon as N > d; measured, with d = 64, it overtakes
torch's fused softmax between N = 64 and 196. What the bracket costs:
    rank         its N x N weights have a rank of at most the width of the features
    length       a query twice as long has the same weights: f(q_i) stands above and below. So a
                 gate with one number per token would cancel; feature fixation has one per feature
    sign         `inline` and `mala` bring the length back; their weights still sum to one, but some
                 are negative: y is no longer an average of values

Such weights are smooth: they spread over all tokens where a softmax would pick a few. Two remedies:
    feature fixation           g = sigmoid(P [f(q), f(k), v]), then f(q) <- g f(q), f(k) <- g f(k):
                               the token says which of its features count (Eq. 4 and 5)
    neighbourhood association  some channels of k and v come from the token before, after, or beside

    x -- qkv --+-- q ------------> f --+--> g * f(q) --+
               +-- k --> shift --> f --+--> g * f(k) --+-- attend --> y (B, T, H, W, C) --> proj
               +-- v --> shift --------+--> v ---------+      within groups of tokens: `group`
                                       +--> g = sigmoid(P [f(q), f(k), v])

The pattern decides which tokens attend to which; the kernel decides how.

Source: "Linear Video Transformer with Feature Fixation", arXiv:2210.08164, and its released code.
Where the code differs from the text we follow the code, and the options have the text's version:
  - features are relu(x) + 1/sqrt(d), not the relu of Eq. 3. Without the gate every a_ij is then at
    least 1 before it is normalised: no 0/0, and weights that are smoother still.
    kernel='relu_paper' is Eq. 3;
  - one gate per head, 3d -> d, with weights that all heads share; the text has D x D weights;
  - the gate sees v as it is, where Eq. 5 draws a breve over it; v itself is never gated;
  - the shifts are crossed: attention across space gets the temporal shift, and the reverse (the
    text applies both, one after the other): each attention is given what it cannot reach by itself;
  - at the border, the four straight neighbours that do not exist count as zero, but the diagonal
    ones as the token itself (the code copies, then overwrites). Kept: it is what the weights know.
Ours: the shared gate is computed once, not twice; in fp16 the sums are N times smaller, see
`linear`.
Try it: python linear_attn.py    one clip through the layer, every shape; then softmax against
                                 linear as N grows to 50,000, and all kernels; two minutes on a CPU
"""
import math
import time

import torch
import torch.nn as nn
import torch.nn.functional as F


# --------------------------------------------------- feature maps: one line is one linear kernel

def full(x):
    """To float32, if it has less: exponentials and divisions by small sums need its range."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


FEATURES = {
    "relu": lambda x: F.relu(x) + x.shape[-1]**-0.5,  # as released
    "relu_paper": F.relu,  # Eq. 3
    "elu": lambda x: F.elu(x) + 1,  # Katharopoulos et al. 2020, arXiv:2006.16236
    "sigmoid": torch.sigmoid,  # Table 5
    "identity": lambda x: x,  # Table 5, "no kernel": it does not learn
}


def features(x, kernel):
    """f of a kernel, (..., N, d) -> same: what the gate sees and what linear kernels multiply."""
    if kernel in FEATURES:
        return FEATURES[kernel](x)
    # What others did stands further down, in a table of its own.
    if kernel in OTHERS:
        return OTHERS[kernel][0](x)
    raise ValueError(f"kernel={kernel!r}: use one of {', '.join(KERNELS)}")


# --------------------------------------------------- linear attention

def linear(fq, fk, v, eps=1e-6, clamp=False):
    """
    y_i = fq_i (sum_j fk_j^T v_j) / (fq_i . sum_j fk_j + eps), O(N d^2): fq, fk (.., N, features),
    v (.., N, d) -> (.., N, d). clamp: divide by max(., eps) instead.
    """
    # In fp16 both sums are taken of fk / N, with eps / N: the same mathematics, but at N = 3136 the
    # plain normaliser passes 65504, where fp16 ends.
    if fk.dtype == torch.float16:
        N = fk.shape[-2]
        fk = fk / N
        eps = eps / N

    # Tokens are summed before any query comes: this is all that a query ever sees.
    kv = fk.transpose(-2, -1) @ v  # (.., features, d)
    k_sum = fk.sum(-2, keepdim=True)  # (.., 1, features)

    # The normaliser, in float32: eps / N is below what fp16 can hold, and without it a query
    # without features would give 0/0.
    z = full(fq @ k_sum.transpose(-2, -1))  # (.., N, 1)
    z = z.clamp(min=eps) if clamp else z + eps

    # Each query takes its share of the sum: O(N d^2), and no N x N weights anywhere.
    return ((fq @ kv) / z).to(v.dtype)


# --------------------------------------------------- feature fixation: the gate

FIXATIONS = ("none", "separate", "qk", "qk_shared", "qkv", "qkv_shared")


def fixate(fq, fk, v, q_gate, k_gate, fixation="qkv_shared", by="concat"):
    """
    Eq. 4 and 5: gated features g_q * fq, g_k * fk, and the pair (g_q, g_k), all (.., d).

    q_gate, k_gate: Linear layers; the same one twice is a shared gate. fixation: 'separate' (each
    gate sees its own features, Eq. 4), or what both see: 'qk..' or 'qkv..' (Eq. 5). by: how these
    are joined, 'concat' (then the layers are 2d -> d or 3d -> d), 'add' or 'multiply'.
    """
    # Eq. 4: query and key decide on their own.
    if fixation == "separate":
        g_q = q_gate(fq).sigmoid()
        g_k = k_gate(fk).sigmoid()
        return g_q * fq, g_k * fk, (g_q, g_k)

    # Eq. 5: query, key and value decide together which features count.
    seen = [fq, fk, v] if fixation.startswith("qkv") else [fq, fk]
    if by == "concat":
        z = torch.cat(seen, dim=-1)
    elif by == "add":
        z = sum(seen)
    elif by == "multiply":
        z = math.prod(seen)
    else:
        raise ValueError(f"fixation_by={by!r}: use one of concat, add, multiply")

    # A shared gate is computed once; the released code computes it twice.
    g_q = q_gate(z).sigmoid()
    g_k = g_q if k_gate is q_gate else k_gate(z).sigmoid()
    return g_q * fq, g_k * fk, (g_q, g_k)


# --------------------------------------------------- neighbourhood association: the shifts

def temporal_shift(x, divisor, span=None):
    """
    x (B, T, H, W, C) -> same: of C // divisor channels each, the first take the next frame's value,
    the second the frame before's, the others their own; zero beyond the clip. With 4 and 8 heads:
    heads 0-1 look ahead, 2-3 back. span: frames the shift runs over; the released Kinetics configs
    shift 16 frames as two halves of 8.
    """
    T = x.shape[1]
    f = x.shape[-1] // divisor

    if T % (span or T):
        raise ValueError(f"temporal_shift=({divisor}, {span}): {span} does not divide {T} frames")

    # Nothing passes from one span to the next.
    x = x.unflatten(1, (-1, span or T))  # (B, T/span, span, H, W, C)

    # F.pad counts axes from the last: C, W, H, then time, here (left, right).
    ahead = F.pad(x[..., :f], (0, 0, 0, 0, 0, 0, -1, 1))  # out[t] = in[t + 1]
    back = F.pad(x[..., f:2*f], (0, 0, 0, 0, 0, 0, 1, -1))  # out[t] = in[t - 1]
    x = torch.cat([ahead, back, x[..., 2*f:]], dim=-1)
    return x.flatten(1, 2)


# Where neighbours are, (down, right), in the order of their channels.
STRAIGHT = [(1, 0), (-1, 0), (0, 1), (0, -1)]
DIAGONAL = [(-1, -1), (1, 1), (-1, 1), (1, -1)]
KNIGHT = [(-2, -1), (-2, 1), (-1, -2), (1, -2), (2, -1), (2, 1), (-1, 2), (1, 2)]


def neighbours(size):
    """
    -> [(down, right)] of the spatial shift, and how many neighbours the channels are split for.
    """
    # Size 1 are the eight around; size 2 reaches two tokens, and takes those in between as well.
    around = STRAIGHT + DIAGONAL
    far = [(size * down, size * right) for down, right in around]
    if size == 2:
        far = far + KNIGHT + around
    # Size 4 has 8 neighbours but channels for 80, as released.
    return far, (2*size + 1)**2 - 1


def spatial_shift(x, size):
    """
    x (B, T, H, W, C) -> same: half of the channels are split for (2 size + 1)^2 - 1 neighbours; the
    group of each neighbour that is there takes that neighbour's value. Beyond the border groups 0
    to 3 take zero, all later ones the token's own (see the header).
    """
    H, W, C = x.shape[2:]
    offsets, count = neighbours(size)
    f = C // (2 * count)  # channels per neighbour
    row = torch.arange(H, device=x.device)[:, None, None]
    column = torch.arange(W, device=x.device)[:, None]

    # One group of channels after the other, each from its neighbour.
    parts = []
    for i, (down, right) in enumerate(offsets):
        own = x[..., i*f:(i+1)*f]
        moved = F.pad(own, (0, 0, -right, right, -down, down))  # out[r, c] = in[r+down, c+right]
        # The released code copies all but the first four groups before it overwrites them.
        if i >= 4:
            inside = (row + down >= 0) & (row + down < H)
            inside = inside & (column + right >= 0) & (column + right < W)  # (H, W, 1)
            moved = torch.where(inside, moved, own)
        parts.append(moved)

    # The other channels stay where they are.
    parts.append(x[..., len(offsets)*f:])
    return torch.cat(parts, dim=-1)


# --------------------------------------------------- patterns: which tokens meet

# The grid of tokens is cut into windows of t x h x w: (T/t, t, H/h, h, W/w, w). A word names the
# axes of these six over which a token looks; the others are batch.
AXES = {
    "time": (0, 1),  # the same pixel in all frames
    "space": (2, 3, 4, 5),  # all of its own frame
    "joint": (0, 1, 2, 3, 4, 5),  # everything
    "height": (2, 3),  # its column
    "width": (4, 5),  # its row
    "window": (1, 3, 5),  # its window
    "grid": (0, 2, 4),  # the same place in all windows
}


def check_divides(name, steps, grid):
    """Raises ValueError unless each of three steps divides its side of the grid (T, H, W)."""
    if any(side % step for side, step in zip(grid, steps)):
        tokens = " x ".join(map(str, grid))
        raise ValueError(f"{name}={tuple(steps)} does not divide {tokens} tokens")


def group(x, word, window=(1, 1, 1)):
    """(B, T, H, W, heads, d) -> (groups, heads, N, d): tokens attend within their group only."""
    if word not in AXES:
        raise ValueError(f"pattern={word!r}: use one of {', '.join(AXES)}")
    B, T, H, W, heads, d = x.shape
    t, h, w = window
    check_divides("window", window, (T, H, W))
    x = x.reshape(B, T//t, t, H//h, h, W//w, w, heads, d)

    # The axes that a token sees come last, all others are batch.
    seen = [1 + axis for axis in AXES[word]]
    rest = [axis for axis in range(7) if axis not in seen]  # the clips first
    x = x.permute(*rest, 7, *seen, 8)
    return x.flatten(len(rest) + 1, -2).flatten(0, len(rest) - 1)


def ungroup(y, word, shape, window=(1, 1, 1)):
    """(groups, heads, N, d) -> (B, T, H, W, heads, d), back from `group`; shape: (B, T, H, W)."""
    B, T, H, W = shape
    t, h, w = window
    sizes = (B, T//t, t, H//h, h, W//w, w, y.shape[1], y.shape[-1])
    seen = [1 + axis for axis in AXES[word]]
    rest = [axis for axis in range(7) if axis not in seen]
    order = [*rest, 7, *seen, 8]

    # Undo the flattening, then the permutation.
    y = y.reshape([sizes[axis] for axis in order])
    back = [order.index(axis) for axis in range(9)]
    return y.permute(back).reshape(B, T, H, W, y.shape[len(rest)], -1)


# --------------------------------------------------- the mixer

class Attention(nn.Module):
    """
    The mixer, (B, T, H, W, dim) -> same: qkv -> shift k, v -> features -> gate -> attend -> proj.

    heads              number of heads, divides dim
    kernel             one of KERNELS
    pattern            a word of AXES: over which axes a token looks; or two, 'time|space': half of
                       the heads look along time, half across space (ViViT's model 4)
    window             (t, h, w), tokens: the windows of 'window' and 'grid'
    shifted            windows start at half of their size; what leaves at one end comes in at the
                       other, so border windows see both ends (Swin masks that, we do not)
    kv_pool            (t, h, w): so many tokens of keys and values are averaged to one (MViT)
    fixation           one of FIXATIONS: what the gates see; '_shared': one gate for q and k
    fixation_by        how they are joined: 'concat', 'add' or 'multiply'
    temporal_shift     channel divisor, or (divisor, span);  spatial_shift  size 1, 2, 4;  0 = off
    shift_first        shift, then gate (released), or gate, then shift
    size               (T, H, W) of the token grid, for linformer, whose weights depend on it

    Released names: qkv, proj, pgate (shared) or q_gate and k_gate. ValueError for what cannot be.
    """

    def __init__(self, dim, heads=8, kernel="relu", pattern="space", window=(1, 1, 1),
                 shifted=False, kv_pool=(1, 1, 1), fixation="qkv_shared", fixation_by="concat",
                 temporal_shift=0, spatial_shift=0, shift_first=True, qkv_bias=True, size=None):
        super().__init__()
        check_options(dim=dim, heads=heads, kernel=kernel, fixation=fixation,
                      fixation_by=fixation_by, temporal_shift=temporal_shift,
                      spatial_shift=spatial_shift)
        check_pattern(heads=heads, kernel=kernel, pattern=pattern, window=window, shifted=shifted,
                      kv_pool=kv_pool)
        if size is not None:
            check_divides("window", window, size)
            check_divides("kv_pool", kv_pool, size)

        # Which tokens meet, how, and what helps them: see the docstring.
        self.heads = heads
        self.kernel = kernel
        self.pattern = pattern
        self.window = window
        self.shifted = shifted
        self.kv_pool = kv_pool
        self.fixation = fixation
        self.fixation_by = fixation_by
        self.temporal_shift = temporal_shift
        self.spatial_shift = spatial_shift
        self.shift_first = shift_first

        # The way in and the way out.
        self.qkv = nn.Linear(dim, 3*dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

        # The gate, d features -> d numbers from 0 to 1, the same weights for all heads.
        d = dim // heads
        width = d
        if fixation_by == "concat":
            width = d * {"none": 0, "separate": 1, "qk": 2, "qkv": 3}[fixation.split("_")[0]]
        if fixation.endswith("_shared"):
            self.pgate = nn.Linear(width, d)
        elif fixation != "none":
            self.q_gate = nn.Linear(width, d)
            self.k_gate = nn.Linear(width, d)

        # What some kernels own.
        if kernel == "performer":
            self.register_buffer("omega", orthogonal_features(d, d))  # drawn once, and saved
        # Learned maps of features: one starts as the identity, the other makes them few, as their
        # number is squared.
        if kernel == "hedgehog":
            self.W = nn.Parameter(torch.eye(d))
        if kernel == "taylor" and d > 16:
            self.W = nn.Parameter(torch.randn(16, d) * d**-0.5)
        if kernel == "linformer":
            if size is None:
                raise ValueError("kernel='linformer' has weights per token: "
                                 "it needs size=(T, H, W)")
            # E and P project N tokens to K = 256.
            self.N = tokens_seen(pattern, size, window)
            self.E = nn.Parameter(torch.randn(256, self.N) / 16)  # std 1/sqrt(K)
            self.P = nn.Parameter(torch.randn(256, self.N) / 16)

    def shift(self, x):
        """Both shifts on (B, T, H, W, C), space first as in the released joint attention."""
        if self.spatial_shift:
            x = spatial_shift(x, self.spatial_shift)
        if isinstance(self.temporal_shift, (tuple, list)):
            x = temporal_shift(x, *self.temporal_shift)
        elif self.temporal_shift:
            x = temporal_shift(x, self.temporal_shift)
        return x

    def gated(self, q, k, v):
        """Features q, k with the gate of this layer, and the gates."""
        if self.fixation.endswith("_shared"):
            q_gate = self.pgate
            k_gate = self.pgate
        else:
            q_gate = self.q_gate
            k_gate = self.k_gate
        return fixate(q, k, v, q_gate=q_gate, k_gate=k_gate, fixation=self.fixation,
                      by=self.fixation_by)

    def kernel_arguments(self, N):
        """What the kernel takes beside q, k and v, for `attend`; N: tokens of a group."""
        if self.kernel == "performer":
            return dict(omega=self.omega)
        if hasattr(self, "W"):
            return dict(W=self.W)
        if self.kernel == "linformer":
            if N != self.N:
                raise ValueError(f"{N} tokens: kernel='linformer' was made for {self.N} "
                                 "and takes no other number")
            return dict(E=self.E, P=self.P)
        return {}

    def forward(self, x, return_maps=False):
        """
        x: (B, T, H, W, C) -> same. With return_maps also a dict: q, k (groups, heads, N, d), for
        `attention_map`, of the last word, and fixation, gates (B, T, H, W, heads, d) or ().
        """
        shape = x.shape[:4]
        gates = ()

        # Query, key and value of each token.
        q, k, v = self.qkv(x).chunk(3, dim=-1)  # (B, T, H, W, C) each

        # Neighbourhood association: some channels of keys and values come from a neighbour.
        if self.shift_first:
            k = self.shift(k)
            v = self.shift(v)

        # Each head has its own d channels: (B, T, H, W, heads, d).
        q = q.unflatten(-1, (self.heads, -1))
        k = k.unflatten(-1, (self.heads, -1))
        v = v.unflatten(-1, (self.heads, -1))
        q = features(q, self.kernel)
        k = features(k, self.kernel)

        # Feature fixation: the token says which of its features count.
        if self.fixation != "none":
            q, k, gates = self.gated(q, k, v)

        # The paper compares: fixation first, then the shifts.
        if not self.shift_first:
            k = self.shift(k.flatten(-2)).view_as(k)
            v = self.shift(v.flatten(-2)).view_as(v)

        # Windows may start elsewhere, and keys and values may be means of several tokens.
        if self.shifted:
            q = roll(q, self.window, -1)
            k = roll(k, self.window, -1)
            v = roll(v, self.window, -1)
        k = pool(k, self.kv_pool)
        v = pool(v, self.kv_pool)

        # Tokens attend within their group. Of two words, each has half of the heads.
        words = self.pattern.split("|")
        share = self.heads // len(words)
        parts = []
        for i, word in enumerate(words):
            own = slice(i * share, (i + 1) * share)
            part, q_seen, k_seen = self.attend_within(
                word, q[..., own, :], k[..., own, :], v[..., own, :])
            parts.append(part)
        y = torch.cat(parts, dim=-2)  # (B, T, H, W, heads, d)
        if self.shifted:
            y = roll(y, self.window, 1)

        # Heads side by side again, and mixed.
        y = self.proj(y.flatten(-2))
        return (y, dict(q=q_seen, k=k_seen, fixation=gates)) if return_maps else y

    def attend_within(self, word, q, k, v):
        """
        q, k, v (B, T, H, W, heads, d) -> y like q, and q and k as groups (groups, heads, N, d).
        """
        # Where keys are pooled, their windows have fewer tokens; queries have all of theirs. As
        # many groups of the one as of the other: `check_pattern` sees to that.
        shape = q.shape[:4]
        pooled = [max(1, size // step) for size, step in zip(self.window, self.kv_pool)]
        q = group(q, word, self.window)
        k = group(k, word, pooled)
        v = group(v, word, pooled)
        y = attend(self.kernel, q, k, v, **self.kernel_arguments(k.shape[-2]))
        return ungroup(y, word, shape, self.window), q, k


def roll(x, window, direction):
    """x (B, T, H, W, heads, d): moves the grid by half a window, cyclically."""
    return x.roll([direction * (size // 2) for size in window], dims=(1, 2, 3))


def pool(x, kv_pool):
    """(B, T, H, W, heads, d) -> (B, T/t, H/h, W/w, heads, d), means of t x h x w tokens."""
    t, h, w = kv_pool
    T, H, W = x.shape[1:4]
    check_divides("kv_pool", kv_pool, (T, H, W))
    x = x.unflatten(3, (W//w, w)).unflatten(2, (H//h, h)).unflatten(1, (T//t, t))
    return x.mean((2, 4, 6))


def tokens_seen(word, size, window=(1, 1, 1)):
    """Tokens of a group: 'space' of (8, 14, 14) -> 196."""
    (T, H, W), (t, h, w) = size, window
    axes = (T//t, t, H//h, h, W//w, w)
    return math.prod(axes[axis] for axis in AXES[word])


def check_options(dim, heads, kernel, fixation, fixation_by, temporal_shift, spatial_shift):
    """Raises ValueError, with the value and the rule, for invalid options and combinations."""
    # Names that a table knows.
    for name, value, allowed in (
            ("kernel", kernel, KERNELS),
            ("fixation", fixation, FIXATIONS),
            ("fixation_by", fixation_by, ("concat", "add", "multiply")),
            ("spatial_shift", spatial_shift, (0, 1, 2, 4))):
        if value not in allowed:
            raise ValueError(f"{name}={value!r}: use one of {', '.join(map(str, allowed))}")

    # What cannot go together.
    if heads < 1 or dim % heads:
        raise ValueError(f"heads={heads} does not divide dim={dim}")
    if fixation in ("none", "separate") and fixation_by != "concat":
        raise ValueError(f"fixation_by={fixation_by!r}: fixation={fixation!r} joins nothing, "
                         "leave it at 'concat'")

    # The shifts need channels for each direction or neighbour.
    pair = isinstance(temporal_shift, (tuple, list))
    divisor = temporal_shift[0] if pair else temporal_shift
    good = divisor == 0 and not pair or 2 <= divisor <= dim
    if not good or pair and (len(temporal_shift) != 2 or temporal_shift[1] < 1):
        raise ValueError(f"temporal_shift={temporal_shift}: 0 (off), a divisor from 2 to "
                         f"dim={dim}, or a pair (divisor, frames that it runs over)")
    if spatial_shift:
        needed = 2 * neighbours(spatial_shift)[1]
        if dim < needed:
            raise ValueError(f"spatial_shift={spatial_shift} needs {needed} channels "
                             f"for one per neighbour, dim={dim} has fewer: use a smaller size")


def check_pattern(heads, kernel, pattern, window, shifted, kv_pool):
    """Raises ValueError, with the value and the rule, for patterns that cannot be."""
    # A pattern is one word, or two for half of the heads each.
    words = pattern.split("|")
    if any(word not in AXES for word in words):
        raise ValueError(f"pattern={pattern!r}: use one of {', '.join(AXES)}, or two joined by |, "
                         "as in time|space")
    if len(window) != 3 or "window" in words and max(window) == 1:
        raise ValueError(f"window={tuple(window)} with pattern={pattern!r}: needs three sizes, in "
                         "tokens, (t, h, w), that make windows of more than one token")

    # Heads are split evenly; a shift of windows needs windows.
    if heads % len(words):
        raise ValueError(f"pattern={pattern!r} splits the heads in {len(words)}, heads={heads} is "
                         "not a multiple of it")
    if shifted and not {"window", "grid"} & set(words):
        raise ValueError(f"shifted=True with pattern={pattern!r}: only windows can be shifted, "
                         "use 'window' or 'grid'")

    # Weights per token belong to one number of tokens; a pool has to stay within what a word sees.
    if kernel == "linformer" and (len(words) > 1 or max(kv_pool) > 1):
        raise ValueError("kernel='linformer' has weights per token: it takes one word as pattern, "
                         "and no kv_pool")
    if len(kv_pool) != 3:
        raise ValueError(f"kv_pool={tuple(kv_pool)}: three sizes, (t, h, w) tokens")

    # Along each axis: the tokens of a pool must be seen together, in one window or in all of them.
    for word in words:
        for axis, (step, size) in enumerate(zip(kv_pool, window)):
            whole = 2*axis in AXES[word] and size == 1
            if step > 1 and (2*axis + 1 not in AXES[word] or size % step and not whole):
                raise ValueError(f"kv_pool={tuple(kv_pool)} with pattern={pattern!r}, window="
                                 f"{tuple(window)}: averages over tokens that do not meet; pool "
                                 "along what the word sees, within its windows")


# --------------------------------------------------- attention of any kernel

def attend(kernel, q, k, v, **own):
    """y (.., N, d) of a kernel; own: what it takes beside q, k and v, by name (see OTHERS)."""
    if kernel in FEATURES:
        return linear(q, k, v)
    if kernel in OTHERS:
        return OTHERS[kernel][1](q, k, v, **own)
    raise ValueError(f"kernel={kernel!r}: use one of {', '.join(KERNELS)}")


def attention_map(kernel, q, k, **own):
    """
    The weights (.., N, N) that `attend` never builds: attention is linear in v, so its weights are
    its output for v = identity, token j holding a one in channel j. For looking and for tests.
    """
    N = k.shape[-2]
    identity = torch.eye(N, dtype=k.dtype, device=k.device)
    return attend(kernel, q, k, identity.expand(*k.shape[:-1], N), **own)


# --------------------------------------------------- what others did

# All take q, k, v (..., N, d), what `features` makes of them, maybe gated, and give (..., N, d).
# The table at the end says which there are.

def cosformer(fq, fk, v):
    """
    a_ij = fq_i . fk_j cos(pi (i - j) / 2N): near tokens count more. The cosine, cos a cos b + sin a
    sin b, makes it a product of features, 2 d wide. Qin et al. 2022, arXiv:2202.08791. O(2 N d^2).
    """
    return linear(cosformer_features(fq), cosformer_features(fk), v, clamp=True)


def cosformer_features(x):
    """relu features (.., N, d) -> (.., N, 2d): [x sin, x cos] of i pi / 2N for token i = 1..N."""
    N = x.shape[-2]

    # In float32 at least: bfloat16 knows no odd numbers above 256.
    precise = torch.promote_types(x.dtype, torch.float32)
    i = torch.arange(1, N + 1, device=x.device, dtype=precise)[:, None]
    angle = i * math.pi / (2 * N)
    return torch.cat([x * angle.sin().to(x.dtype), x * angle.cos().to(x.dtype)], dim=-1)


def performer(q, k, v, omega):
    """Softmax by random features. Choromanski et al. 2021, arXiv:2009.14794. O(N m d)."""
    # The exponentials stay in float32, under autocast too.
    device = "cpu" if q.device.type == "meta" else q.device.type
    with torch.autocast(device, enabled=False):
        fq = performer_features(q, omega, keys=False)
        fk = performer_features(k, omega, keys=True)
        y = linear(fq, fk, full(v), eps=0.0)
    return y.to(v.dtype)


def performer_features(x, omega, keys):
    """
    FAVOR+: phi(x) = m^-1/2 (exp(omega x~ - |x~|^2/2 - c) + 1e-4), x~ = x d^-1/4, is (.., N, m) with
    E[phi(q) . phi(k)] = exp(q . k / sqrt d) up to c and the floor. c keeps exp finite and cancels
    in the normalisation: the maximum over features for a query, over features and tokens of a head
    for keys (the reference: over the whole batch, so that results depend on who else is in it).
    """
    # Half of the softmax's scale for the query, half for the key.
    x = full(x) * x.shape[-1]**-0.25
    logits = x @ omega.to(x.dtype).transpose(-2, -1)  # (.., N, m)
    logits = logits - x.square().sum(-1, keepdim=True) / 2

    # The largest becomes exp(0).
    c = logits.detach().amax((-2, -1) if keys else -1, keepdim=True)
    return omega.shape[0]**-0.5 * ((logits - c).exp() + 1e-4)


def orthogonal_features(m, d, generator=None):
    """omega (m, d): directions orthogonal in blocks of d, lengths of Gaussian vectors (chi_d)."""
    # Directions: the orthogonal factor of a random matrix, as often as needed.
    blocks = []
    for _ in range(math.ceil(m / d)):
        q, r = torch.linalg.qr(torch.randn(d, d, generator=generator))
        blocks.append(q * r.diagonal().sign())  # qr prefers some signs
    directions = torch.cat(blocks)[:m]

    # Lengths: those that independent Gaussian vectors would have.
    lengths = torch.randn(m, d, generator=generator).norm(dim=1, keepdim=True)
    return directions * lengths


def linformer(q, k, v, E, P):
    """softmax(q (E k)^T / sqrt d) (P v), E and P (K, N) learned: N is fixed.
    Wang et al. 2020, arXiv:2006.04768. O(N K d)."""
    return F.scaled_dot_product_attention(q, E @ k, P @ v)


def orthoformer(q, k, v, L=64):
    """softmax(q R^T) [softmax(R k^T) v], R: L landmarks among the queries.
    Patrick et al. 2021, arXiv:2106.05392. O(N L d)."""
    d = q.shape[-1]
    q = q * d**-0.25
    k = k * d**-0.25

    # A few queries stand for all of them; up to L tokens, all do.
    R = q.detach()  # no gradient through the landmarks
    if q.shape[-2] > L:
        at = landmarks(R, L)  # (.., L)
        R = R.gather(-2, at[..., None].expand(*at.shape, d))

    # The landmarks ask the keys, then the queries ask the landmarks.
    y = F.scaled_dot_product_attention(R, k, v, scale=1.0)  # (.., L, d)
    return F.scaled_dot_product_attention(q, R, y, scale=1.0)


@torch.no_grad()
def landmarks(q, L):
    """
    Indices (.., L) of queries that are as orthogonal as can be. Greedy: the next one is the token
    with the smallest largest |cosine| to those chosen; token 0 is the first (the released code
    starts at a random one, so its outputs change from run to run). L dependent steps, so it is
    slow.
    """
    q = F.normalize(q.float(), dim=-1, eps=1e-8)
    at = torch.zeros_like(q[..., :1, 0], dtype=torch.long)  # (.., 1): token 0
    likeness = torch.zeros_like(q[..., 0])  # (.., N): largest |cosine| to those chosen
    chosen = [at]
    for _ in range(L - 1):
        # How like are all tokens to the one that was chosen last?
        latest = q.gather(-2, at[..., None].expand(*at.shape, q.shape[-1]))  # (.., 1, d)
        cosine = (q @ latest.transpose(-2, -1)).abs()[..., 0]
        likeness = torch.maximum(likeness, cosine)
        likeness = likeness.scatter(-1, at, 10.0)  # never again
        at = likeness.argmin(-1, keepdim=True)
        chosen.append(at)
    return torch.cat(chosen, -1).sort(-1).values


def efficient(q, k, v):
    """softmax over features of q, times [softmax over tokens of k]^T v: each feature is a map of
    its own. Shen et al. 2018, arXiv:1812.01243. O(N d^2)."""
    return q.softmax(-1) @ (k.softmax(-2).transpose(-2, -1) @ v)


def agent(q, k, v, agents=None, n=16):
    """softmax(q A^T) [softmax(A k^T) v], A: queries pooled to n tokens, neighbours in raster order.
    Han et al. 2023, arXiv:2312.08874. O(N n d)."""
    # In float32: torch's pooling on a CPU knows no fp16.
    if agents is None:
        pooled = F.adaptive_avg_pool1d(full(q).flatten(0, -3).transpose(-2, -1), n)
        agents = pooled.transpose(-2, -1).unflatten(0, q.shape[:-2]).to(q.dtype)
    y = F.scaled_dot_product_attention(agents, k, v)  # (.., n, d)
    return F.scaled_dot_product_attention(q, agents, y)


def taylor(q, k, v, W=None):
    """
    f(q) . f(k) = 1 + t + t^2/2, t = q . k / sqrt d: the softmax's exponential, cut off; always at
    least 1/2. W (16, d): first to a width of 16, as 1 + d + d^2 features are many.
    Based: Arora et al. 2024, arXiv:2402.18668. O(N d^3).
    """
    if W is not None:
        q = q @ W.transpose(-2, -1)
        k = k @ W.transpose(-2, -1)
    return linear(taylor_features(q), taylor_features(k), v)


def taylor_features(x):
    """(.., N, d) -> (.., N, 1 + d + d^2): [1, x, x (x) x / sqrt 2], x scaled by d^-1/4."""
    # All products of two channels, each pair twice.
    x = x * x.shape[-1]**-0.25
    pairs = (x[..., :, None] * x[..., None, :]).flatten(-2)
    return torch.cat([torch.ones_like(x[..., :1]), x, pairs * 2**-0.5], dim=-1)


def hedgehog(q, k, v, W=None):
    """f(x) = [softmax(W x), softmax(-W x)], W (d, d) learned, the identity at first, so that it can
    become as spiky as a softmax. Zhang et al. 2024, arXiv:2402.04347. O(2 N d^2)."""
    if W is not None:
        q = q @ W.transpose(-2, -1)
        k = k @ W.transpose(-2, -1)
    fq = torch.cat([q.softmax(-1), (-q).softmax(-1)], dim=-1)
    fk = torch.cat([k.softmax(-1), (-k).softmax(-1)], dim=-1)
    return linear(fq, fk, v)


def inline(q, k, v):
    """
    a_ij = (q_i . (k_j - mean k) / sqrt d + 1) / N: no feature map, no division by a sum. So
    y_i = mean v + q_i cov(k, v) / sqrt d. Han et al. 2024, arXiv:2412.06590. O(N d^2).
    """
    # What all keys have in common is taken out, so that the weights' sum does not depend on q.
    N, d = k.shape[-2:]
    k = k - k.mean(-2, keepdim=True)
    cov = (k / N).transpose(-2, -1) @ v  # (.., d, d); the mean of v cancels
    return v.mean(-2, keepdim=True) + q @ cov * d**-0.5


def rala(fq, fk, v):
    """
    Linear attention with f = elu + 1, whose keys count by alpha_j = N softmax_j(mean f(q) . f(k_j)
    / sqrt d): of higher rank. Fan et al. 2025, arXiv:2411.07635. O(N d^2).
    """
    # Which keys are asked for by all queries together? N, so that alpha is one on average.
    N, d = fk.shape[-2:]
    asked = full(fq).mean(-2, keepdim=True) * d**-0.5  # (.., 1, d)
    alpha = N * (full(fk) @ asked.transpose(-2, -1)).softmax(-2)  # (.., N, 1)
    return linear(fq, fk * alpha.to(fk.dtype), v)


def mala(fq, fk, v, eps=1e-6):
    """
    Linear attention with f = elu + 1 that knows the length of a query, z_i = f(q_i) . mean f(k) /
    sqrt d:  y_i = (1 + 1/z_i) f(q_i) [mean f(k)^T v] / sqrt d - z_i mean v.
    Fan et al. 2025, arXiv:2507.00698. O(N d^2).
    """
    # Means in place of sums, so that fp16 does not overflow.
    N, d = fk.shape[-2:]
    kv = (fk / N).transpose(-2, -1) @ v  # (.., d, d)

    # eps: a query without features would give 0/0.
    z = full(fq) @ full(fk).mean(-2, keepdim=True).transpose(-2, -1) * d**-0.5  # (.., N, 1)
    y = (1 + 1 / (z + eps)) * full(fq @ kv) * d**-0.5 - z * full(v).mean(-2, keepdim=True)
    return y.to(v.dtype)


def focused(fq, fk, v):
    """
    Linear attention with f(x) = t^3 at the length of t, t = relu(x) + 1e-6: sharper. FLatten, Han
    et al. 2023, arXiv:2308.00442. O(N d^2). As released, 1e-6 is added to the mean over keys, of
    features that are 1 / ln 2 as large.
    """
    return linear(fq, fk, v, eps=1e-6 * math.log(2)**2 * fk.shape[-2])


def focused_features(x):
    """(.., N, d) -> same, in float32 inside: 1e-6 to the third power is 0 in fp16."""
    t = F.relu(full(x)) + 1e-6
    cube = t**3
    cube = cube * t.norm(dim=-1, keepdim=True) / cube.norm(dim=-1, keepdim=True)
    return cube.to(x.dtype)


def raw(x):
    """The features of a kernel that makes its own from q and k, so that the gate sees these."""
    return x


# name: (what the gate sees of q and k and the function gets, the function), by their years. Softmax
# is torch's own, fused: N^2 time, but no N x N memory.
OTHERS = {
    "softmax": (raw, F.scaled_dot_product_attention),
    "efficient": (raw, efficient),
    "linformer": (raw, linformer),  # E, P (K, N)
    "performer": (raw, performer),  # omega (m, d)
    "orthoformer": (raw, orthoformer),  # L landmarks
    "cosformer": (F.relu, cosformer),
    "focused": (focused_features, focused),
    "agent": (raw, agent),  # agents (.., n, d), or they are pooled
    "taylor": (raw, taylor),  # W (16, d)
    "hedgehog": (raw, hedgehog),  # W (d, d)
    "inline": (raw, inline),
    "rala": (FEATURES["elu"], rala),
    "mala": (FEATURES["elu"], mala),
}
KERNELS = (*FEATURES, *OTHERS)


# --------------------------------------------------- the layer, step by step, and the race

def show(what, tensor):
    """One line of the walk: what it is, its shape, the mean of its absolute values."""
    shape = str(tuple(tensor.shape))
    print(f"{what:<58} {shape:<24} mean |.| {tensor.abs().mean():.3f}")


@torch.no_grad()
def walk():
    """A clip through the layer by hand, every shape printed, checked against the layer itself."""
    torch.manual_seed(0)
    layer = Attention(dim=512, heads=8, pattern="space", temporal_shift=4)  # as in lvt
    x = torch.randn(1, 16, 17, 17, 512)
    show("x: 16 frames of 17 x 17 tokens with 512 channels", x)

    # Keys and values bring something of the frames around.
    q, k, v = layer.qkv(x).chunk(3, dim=-1)
    show("q, k, v = qkv(x)", q)
    k = temporal_shift(k, 4)
    v = temporal_shift(v, 4)
    show("k, v: 1/4 of the channels from the next frame, 1/4 before", k)

    # Features and gates, head by head.
    q = q.unflatten(-1, (8, 64))
    k = k.unflatten(-1, (8, 64))
    v = v.unflatten(-1, (8, 64))
    fq = F.relu(q) + 64**-0.5
    fk = F.relu(k) + 64**-0.5
    show("f(q) = relu(q) + 1/sqrt(64)   8 heads of 64", fq)
    g = layer.pgate(torch.cat([fq, fk, v], dim=-1)).sigmoid()
    show("g = sigmoid(P [f(q), f(k), v])   which features count", g)

    # Only tokens of the same frame meet.
    fq = (g * fq).flatten(0, 1).flatten(1, 2).transpose(1, 2)
    fk = (g * fk).flatten(0, 1).flatten(1, 2).transpose(1, 2)
    v = v.flatten(0, 1).flatten(1, 2).transpose(1, 2)
    show("g f(q), g f(k), v in groups of one frame", fq)

    # Keys and values meet first, queries come last.
    kv = fk.transpose(-2, -1) @ v
    show("sum_j f(k_j)^T v_j            all that a query sees", kv)
    z = fq @ fk.sum(-2)[..., None]
    show("z_i = f(q_i) . sum_j f(k_j)   the normaliser", z)
    y = fq @ kv / (z + 1e-6)
    show("y_i = f(q_i) [sum_j f(k_j)^T v_j] / z_i", y)
    y = layer.proj(y.transpose(1, 2).reshape(1, 16, 17, 17, 512))
    show("proj(y)", y)

    # The layer itself must agree.
    torch.testing.assert_close(y, layer(x))
    parameters = sum(p.numel() for p in layer.parameters())
    print(f"the layer itself gives the same y; {parameters:,} parameters\n")


def best_ms(run, *inputs, at_least=2):
    """The best of at least 4 runs and so many seconds, in ms: the minimum has the least noise."""
    seconds = []
    while len(seconds) < 4 or sum(seconds) < at_least:
        start = time.perf_counter()
        run(*inputs)
        seconds.append(time.perf_counter() - start)
    return 1000 * min(seconds)


@torch.no_grad()
def race(sizes=(64, 196, 784, 3136, 12544, 50176), limit_s=20):
    """Linear against fused softmax attention as N grows; runs over limit_s are skipped."""
    # One thread, so that only the mathematics decides.
    torch.set_num_threads(1)
    print("8 heads, d = 64, float32, one CPU thread, forward; the best time of at least 4 runs")
    print(f"{'N':>6} {'linear ms':>10} {'softmax ms':>10} {'ratio':>6}")
    logs = []
    softmax_ms = 0
    for N in sizes:
        q, k, v = torch.randn(3, 1, 8, N, 64)
        # The features are part of the price.
        linear_ms = best_ms(lambda: linear(features(q, "relu"), features(k, "relu"), v))
        if N >= 784:
            logs.append((math.log(N), math.log(linear_ms)))

        # Four times the tokens will take the softmax 16 times as long.
        if 16 * softmax_ms > 1000 * limit_s:
            print(f"{N:>6} {linear_ms:>10.2f} {'-':>10} {'-':>6}")
            continue
        softmax_ms = best_ms(F.scaled_dot_product_attention, q, k, v)
        print(f"{N:>6} {linear_ms:>10.2f} {softmax_ms:>10.2f} {softmax_ms / linear_ms:>6.1f}")

    # The slope of log(time) over log(N), by least squares.
    x, y = torch.tensor(logs).T
    x = x - x.mean()
    slope = (x @ (y - y.mean()) / (x @ x)).item()
    print(f"linear: time ~ N^{slope:.2f} from N = 784 on.   -: skipped, it would take more than "
          f"{limit_s} s a run")


@torch.no_grad()
def race_all(sizes=(196, 3136)):
    """All kernels at two lengths, as layers use them: features, then attention."""
    lengths = "".join(f"{f'N = {N}':>10}" for N in sizes)
    print(f"\nall kernels, the same; ms\n{'kernel':<12}{lengths}")
    for kernel in KERNELS:
        line = f"{kernel:<12}"
        for N in sizes:
            # A layer knows what its kernel owns; it is asked for it.
            layer = Attention(512, 8, kernel, "space", size=(1, 1, N))
            own = layer.kernel_arguments(N)
            q, k, v = torch.randn(3, 1, 8, N, 64)
            ms = best_ms(lambda: attend(kernel, features(q, kernel), features(k, kernel), v, **own),
                         at_least=0.5)
            line += f"{ms:>10.2f}"
        print(line)


if __name__ == "__main__":
    walk()
    race()
    race_all()
