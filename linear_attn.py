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

What the bracket costs: the N x N weights have a rank of at most d, and how sharp they are no longer
depends on the length of the query. With f = relu a query twice as long has the same weights, as it
stands above and below. The released f adds a constant: a short query has nearly uniform weights.

Such weights are smooth: they spread over all tokens where a softmax would pick a few. Two remedies:
    feature fixation           g = sigmoid(P [f(q), f(k), v]), then f(q) <- g f(q), f(k) <- g f(k):
                               the token says which of its features count (Eq. 4 and 5). One number
                               for a whole query would cancel; g has one for each feature
    neighbourhood association  some channels of k and v come from the token before, after, or beside

    x -- qkv --+-- q ------------> f --+--> g * f(q) --+
               +-- k --> shift --> f --+--> g * f(k) --+-- attend --> y (B, T, H, W, C) --> proj
               +-- v --> shift --------+--> v ---------+      within groups of tokens: `group`
                                       +--> g = sigmoid(P [f(q), f(k), v])

Source: "Linear Video Transformer with Feature Fixation", arXiv:2210.08164, and its released code.
Where the code differs from the text we follow the code; the first has an option for the text:
  - features are relu(x) + 1/sqrt(d), not the relu of Eq. 3. Without the gate every a_ij is then at
    least 1 before it is normalised: no 0/0, and weights that are smoother still.
    kernel='relu_paper' is Eq. 3;
  - one gate per head, 3d -> d, with weights that all heads share; the text has D x D weights;
  - the gate sees v as it is, where Eq. 5 draws a breve over it; v itself is never gated;
  - the shifts are crossed: attention across space gets the temporal shift, and the reverse (the
    text applies both, one after the other): each attention is given what it cannot reach by itself;
  - at the border, the first four neighbours of the list that do not exist (the straight ones, if
    the size is 1) count as zero, all others as the token itself. Kept: the weights know it.
Ours: the shared gate is computed once, not twice; `linear` takes means where the code takes sums.

Try it: python linear_attn.py    walks one clip through the layer and prints every shape, 2 s
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F


# --------------------------------------------------- linear attention

def linear(fq, fk, v, eps=1e-6):
    """
    y_i = fq_i (sum_j fk_j^T v_j) / (fq_i . sum_j fk_j + eps), O(N d^2): fq, fk (.., N, features),
    v (.., N, d) -> (.., N, d).
    """
    # Tokens are averaged before any query comes: this is all that a query ever sees. Means, above
    # and below the line, are the same mathematics as sums, and fit into fp16 for any N.
    N = fk.shape[-2]
    kv = (fk / N).transpose(-2, -1) @ v  # (.., features, d)
    k_mean = fk.mean(-2, keepdim=True)  # (.., 1, features)

    # The normaliser, in float32 at least: without eps a query without features would give 0/0, and
    # eps / N is less than what fp16 can hold.
    z = fq @ k_mean.transpose(-2, -1)  # (.., N, 1)
    z = z.to(torch.promote_types(z.dtype, torch.float32)) + eps / N

    # Each query takes its share: O(N d^2), and no N x N weights anywhere.
    return (fq @ kv / z).to(v.dtype)


# name: (f, attend). The gate sees f(q), f(k) and v; y = attend(f(q), f(k), v), all (.., N, d).
# A new linear kernel is one line. An attend with weights of its own is an nn.Module class, made for
# (d, tokens of a group).
KERNELS = {
    "relu": (lambda x: F.relu(x) + x.shape[-1]**-0.5, linear),  # as released
    "relu_paper": (F.relu, linear),  # Eq. 3
    "elu": (lambda x: F.elu(x) + 1, linear),  # Katharopoulos et al. 2020, arXiv:2006.16236
    "sigmoid": (torch.sigmoid, linear),  # Table 5
    "identity": (lambda x: x, linear),  # Table 5, "no kernel": it does not learn
    # What all of them replace: O(N^2 d). torch's fused form needs no N x N memory either.
    "softmax": (lambda x: x, F.scaled_dot_product_attention),
}


# --------------------------------------------------- feature fixation: the gate

FIXATIONS = ("none", "separate", "qk", "qk_shared", "qkv", "qkv_shared")  # Table 4


def fixate(fq, fk, v, q_gate, k_gate, fixation="qkv_shared", by="concat"):
    """
    Eq. 4 and 5: the gated features g_q * fq, g_k * fk, all (.., d).

    q_gate, k_gate: Linear layers; the same one twice is a shared gate. fixation: 'separate' (each
    gate sees its own features, Eq. 4), or what both see: 'qk..' or 'qkv..' (Eq. 5). by: how these
    are joined, 'concat' (then the layers are 2d -> d or 3d -> d), 'add' or 'multiply'.
    """
    # Eq. 4: query and key decide on their own.
    if fixation == "separate":
        return q_gate(fq).sigmoid() * fq, k_gate(fk).sigmoid() * fk

    # Eq. 5: query, key and value decide together which features count.
    seen = [fq, fk, v] if fixation.startswith("qkv") else [fq, fk]
    if by == "concat":
        z = torch.cat(seen, dim=-1)
    elif by == "add":
        z = sum(seen)
    else:  # 'multiply'
        z = math.prod(seen)

    # A shared gate is computed once; the released code computes it twice.
    g_q = q_gate(z).sigmoid()
    g_k = g_q if k_gate is q_gate else k_gate(z).sigmoid()
    return g_q * fq, g_k * fk


# --------------------------------------------------- neighbourhood association: the shifts

def temporal_shift(x, divisor):
    """
    x (B, T, H, W, C) -> same: of C // divisor channels each, the first take the next frame's value,
    the second the frame before's, the others their own; zero beyond the clip. With divisor 4 and 8
    heads: heads 0-1 look ahead, 2-3 back.
    """
    f = x.shape[-1] // divisor

    # F.pad counts axes from the last: C, W, H, then time, here (left, right).
    ahead = F.pad(x[..., :f], (0, 0, 0, 0, 0, 0, -1, 1))  # out[t] = in[t + 1]
    back = F.pad(x[..., f:2*f], (0, 0, 0, 0, 0, 0, 1, -1))  # out[t] = in[t - 1]
    return torch.cat([ahead, back, x[..., 2*f:]], dim=-1)


# Where neighbours are, (down, right), in the order of their channels. Size 2 reaches two tokens,
# to knights' places too, and takes those in between as well; size 4 has only the eight.
NEAR = [(1, 0), (-1, 0), (0, 1), (0, -1), (-1, -1), (1, 1), (-1, 1), (1, -1)]
KNIGHTS = [(-2, -1), (-2, 1), (-1, -2), (1, -2), (2, -1), (2, 1), (-1, 2), (1, 2)]
NEIGHBOURS = {
    1: NEAR,
    2: [(2*down, 2*right) for down, right in NEAR] + KNIGHTS + NEAR,
    4: [(4*down, 4*right) for down, right in NEAR],
}


def spatial_shift(x, size):
    """
    x (B, T, H, W, C) -> same: half of the channels are split for (2 size + 1)^2 - 1 neighbours; the
    group of each neighbour that is there takes that neighbour's value. Beyond the border groups 0
    to 3 take zero, all later ones the token's own (see the header).
    """
    H, W, C = x.shape[2:]
    f = C // (2 * ((2*size + 1)**2 - 1))  # channels per neighbour: C // 16 for size 1
    row = torch.arange(H, device=x.device)[:, None, None]
    column = torch.arange(W, device=x.device)[:, None]

    # One group of channels after the other, each from its neighbour.
    parts = []
    for i, (down, right) in enumerate(NEIGHBOURS[size]):
        own = x[..., i*f:(i+1)*f]
        moved = F.pad(own, (0, 0, -right, right, -down, down))  # out[r, c] = in[r+down, c+right]
        # The released code copies all but the first four groups before it overwrites them.
        if i >= 4:
            inside = (row + down >= 0) & (row + down < H)
            inside = inside & (column + right >= 0) & (column + right < W)  # (H, W, 1)
            moved = torch.where(inside, moved, own)
        parts.append(moved)

    # The other channels stay where they are.
    parts.append(x[..., len(parts)*f:])
    return torch.cat(parts, dim=-1)


# --------------------------------------------------- groups: which tokens meet

def group(x, word):
    """(B, T, H, W, heads, d) -> (groups, heads, N, d): tokens attend within their group only."""
    if word == "time":  # one group per pixel: its T frames
        return x.permute(0, 2, 3, 4, 1, 5).flatten(0, 2)
    elif word == "space":  # one per frame: its H*W pixels
        return x.permute(0, 1, 4, 2, 3, 5).flatten(3, 4).flatten(0, 1)
    elif word == "joint":  # one per clip: everything
        return x.permute(0, 4, 1, 2, 3, 5).flatten(2, 4)
    else:
        raise ValueError(f"attention along {word!r}: use 'time', 'space' or 'joint'")


def ungroup(y, word, shape):
    """(groups, heads, N, d) -> (B, T, H, W, heads, d), back from `group`; shape: (B, T, H, W)."""
    B, T, H, W = shape
    if word == "time":
        return y.unflatten(0, (B, H, W)).permute(0, 4, 1, 2, 3, 5)
    elif word == "space":
        return y.unflatten(2, (H, W)).unflatten(0, (B, T)).permute(0, 1, 3, 4, 2, 5)
    else:  # 'joint'
        return y.unflatten(2, (T, H, W)).permute(0, 2, 3, 4, 1, 5)


# --------------------------------------------------- the layer

class Attention(nn.Module):
    """
    The mixer, (B, T, H, W, dim) -> same: qkv -> shift k, v -> features -> gate -> attend -> proj.

    word            where a token looks: 'time' (its pixel in all frames), 'space' (its frame),
                    'joint' (everything)
    size            (T, H, W) of the token grid, for kernels whose weights depend on it
    heads           number of heads, divides dim
    kernel          one of KERNELS
    fixation        one of FIXATIONS: what the gates see; '_shared': one gate for q and k
    fixation_by     how they are joined: 'concat', 'add' or 'multiply'
    temporal_shift  channel divisor (released: 4 for SSv2, 8 for Kinetics); 0: off
    spatial_shift   size 1, 2 or 4; 0: off
    shift_first     shift, then gate (released), or gate, then shift (the text compares)

    The shifts are crossed: 'time' takes the spatial one only, 'space' the temporal one only.
    Released names: qkv, proj, pgate (shared) or q_gate and k_gate. ValueError for what cannot be.
    """

    def __init__(self, dim, word, size, heads=8, kernel="relu", fixation="qkv_shared",
                 fixation_by="concat", temporal_shift=4, spatial_shift=1, shift_first=True):
        super().__init__()
        check_options(dim, word, heads, kernel, fixation, fixation_by, temporal_shift,
                      spatial_shift)
        self.word = word
        self.heads = heads
        self.fixation = fixation
        self.fixation_by = fixation_by
        self.temporal_shift = temporal_shift if word != "time" else 0
        self.spatial_shift = spatial_shift if word != "space" else 0
        self.shift_first = shift_first

        # The way in and the way out.
        self.qkv = nn.Linear(dim, 3*dim)
        self.proj = nn.Linear(dim, dim)

        # The kernel; some have weights of their own.
        d = dim // heads
        T, H, W = size
        self.f, attend = KERNELS[kernel]
        if isinstance(attend, type):
            attend = attend(d, {"time": T, "space": H*W, "joint": T*H*W}[word])
        self.attend = attend

        # The gate, d features -> d numbers from 0 to 1, the same weights for all heads.
        seen = {"none": 0, "separate": 1, "qk": 2, "qkv": 3}[fixation.removesuffix("_shared")]
        width = d * seen if fixation_by == "concat" else d
        if fixation.endswith("_shared"):
            self.pgate = nn.Linear(width, d)
        elif fixation != "none":
            self.q_gate = nn.Linear(width, d)
            self.k_gate = nn.Linear(width, d)

    def shift(self, x):
        """Neighbourhood association, (B, T, H, W, C) -> same; space first, as released."""
        if self.spatial_shift:
            x = spatial_shift(x, self.spatial_shift)
        if self.temporal_shift:
            x = temporal_shift(x, self.temporal_shift)
        return x

    def gate(self, fq, fk, v):
        """Feature fixation with this layer's gates: features (.., heads, d) -> gated ones."""
        if self.fixation == "none":
            return fq, fk
        shared = self.fixation.endswith("_shared")
        q_gate = self.pgate if shared else self.q_gate
        k_gate = self.pgate if shared else self.k_gate
        return fixate(fq, fk, v, q_gate, k_gate, self.fixation, self.fixation_by)

    def forward(self, x):
        """x: (B, T, H, W, C) -> same."""
        # Query, key and value of each token.
        q, k, v = self.qkv(x).chunk(3, dim=-1)  # (B, T, H, W, C) each

        # Neighbourhood association: some channels of keys and values come from a neighbour.
        if self.shift_first:
            k = self.shift(k)
            v = self.shift(v)

        # Each head has its own d channels. Their features, and which of them count.
        q = q.unflatten(-1, (self.heads, -1))  # (B, T, H, W, heads, d)
        k = k.unflatten(-1, (self.heads, -1))
        v = v.unflatten(-1, (self.heads, -1))
        q, k = self.gate(self.f(q), self.f(k), v)

        # The paper compares: fixation first, then the shifts.
        if not self.shift_first:
            k = self.shift(k.flatten(-2)).view_as(k)
            v = self.shift(v.flatten(-2)).view_as(v)

        # Tokens attend within their group.
        q = group(q, self.word)  # (groups, heads, N, d)
        k = group(k, self.word)
        v = group(v, self.word)
        y = self.attend(q, k, v)
        y = ungroup(y, self.word, x.shape[:4])

        # Heads side by side again, and mixed.
        return self.proj(y.flatten(-2))


def check_options(dim, word, heads, kernel, fixation, fixation_by, temporal_shift, spatial_shift):
    """Raises ValueError, with the value and the rule, for invalid options and combinations."""
    # Names that a table knows.
    for name, value, allowed in (
            ("attention along", word, ("time", "space", "joint")),
            ("kernel", kernel, KERNELS),
            ("fixation", fixation, FIXATIONS),
            ("fixation_by", fixation_by, ("concat", "add", "multiply")),
            ("spatial_shift", spatial_shift, (0, *NEIGHBOURS))):
        if value not in allowed:
            raise ValueError(f"{name} {value!r}: use one of {', '.join(map(str, allowed))}")

    # What would do nothing, in silence, or cannot be.
    if dim % heads:
        raise ValueError(f"heads={heads} does not divide dim={dim}")
    if fixation in ("none", "separate") and fixation_by != "concat":
        raise ValueError(f"fixation_by={fixation_by!r}: fixation={fixation!r} joins nothing")
    if temporal_shift and not 2 <= temporal_shift <= dim:
        raise ValueError(f"temporal_shift={temporal_shift}: 0 (off), or from 2 to dim={dim}")
    needed = 2 * ((2*spatial_shift + 1)**2 - 1)
    if dim < needed:
        raise ValueError(f"spatial_shift={spatial_shift} needs {needed} channels, one for each "
                         f"neighbour, dim={dim} has fewer: use a smaller size, or 0 (off)")


# --------------------------------------------------- the layer, step by step

def show(what, tensor):
    """One line of the walk: what it is, its shape, the mean of its absolute values."""
    shape = str(tuple(tensor.shape))
    print(f"{what:<58} {shape:<24} mean |.| {tensor.abs().mean():.3f}")


@torch.no_grad()
def walk():
    """A clip through the layer by hand, every shape printed, checked against the layer itself."""
    torch.manual_seed(0)
    layer = Attention(dim=512, word="space", size=(16, 17, 17))  # as in lvt
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
    print(f"the layer itself gives the same y; {parameters:,} parameters")


if __name__ == "__main__":
    walk()
