"""
Spatio-temporal focal modulation: gather context once, then let every token take what it needs.

Attention lets all N tokens look at each other: N^2 pairs. It interacts first and aggregates second;
focal modulation aggregates first. A short stack of convolutions gathers context *before* any token
asks for it, from near to far: level l sees k_l - 1 pixels more than level l - 1 (receptive fields
of 3, 7, 13, 21), and one more level sees everything (a mean). Each token holds one number per
level, its gate, and takes the gated sum. That sum, after a linear map h, is the modulator; it
multiplies the token's query, channel by channel.

A video is gathered from twice, in parallel: across each image, and along time at each pixel.

    z_0 = context, a linear map of x     z_l = gelu(conv_l(z_{l-1})),  z_{L+1} = gelu(mean(z_L))
    m_s = h(sum_l g_l * z_l)             l = 1..L+1; over (H, W), conv_l depthwise, k_l x k_l
    m_t = h_temporal(sum_l g'_l * z'_l)  over T, conv_l dense, k_l x 1, k_l = window + 2(l-1) = 3, 5
    y   = proj(q * m_s * m_t)            q = f(x): a linear map; * is elementwise

    x, y, q, z, z', m_s, m_t  (B, T, H, W, C)     g, g'  (B, T, H, W, L+1), one per token and level

                 +-- q ---------------------------------------------------------+
    x -----------+-- z_0 -> 3x3 -> 5x5 -> mean, times gates -> h -> m_s --------*- proj --> y
                 +-- z'_0 -> 3, 5 frames -> mean, times gates -> h_temporal -> m_t +

Cost in multiply-adds a token for L = 2: 14 C^2 + 40 C (of which 8 C^2 are the dense convolutions
along time), whatever the number of tokens N = T H W; attention pays 4 C^2 + 2 C N.

Source: Wasim et al. 2023, arXiv:2307.06947, Sec. 3 (video);
        Yang et al. 2022, arXiv:2203.11926, Sec. 3.2 (image).
Where the released code differs from the text, we follow the code, because its weights exist:
  - "pointwise convolutions" along time are dense, 3 and 5 frames wide, then a 1x1 one (h_temporal);
  - the gates are raw linear outputs: nothing keeps them in 0..1 or makes them sum to one;
  - the query comes from the spatial projection f alone.
Where ours differs from the code: tensors stay channels-last (B, T, H, W, C) throughout, so a 1x1
convolution is a Linear and little is copied to be permuted. And nothing is kept on the module: the
released layer stores its modulators and gates on itself, 220 MiB from one step to the next in the
tiny network. To look at them, hang a forward hook on h, h_temporal (modulators) or f (gates).

Try it: python focal.py    walks one clip through the layer and prints every shape, 1 s on a CPU
"""
import torch
import torch.nn as nn
import torch.nn.functional as F


# --------------------------------------------------- where a convolution looks

def across_space(conv, z):
    """(B, T, H, W, C) -> (B, T, H', W', C'): a 2-d conv sees the image of each frame alone."""
    B, T, H, W, C = z.shape
    # Frames become batch items. The permuted view is torch's channels_last: level 1 copies.
    z = z.reshape(B*T, H, W, C).permute(0, 3, 1, 2)
    z = conv(z).permute(0, 2, 3, 1)
    return z.unflatten(0, (B, T))


def along_time(conv, z):
    """(B, T, H, W, C) -> same: a k x 1 conv sees the T frames of each pixel alone."""
    B, T, H, W, C = z.shape
    # All pixels side by side: an image of T rows and H*W columns, convolved down its columns.
    z = z.reshape(B, T, H*W, C).permute(0, 3, 1, 2)
    z = conv(z).permute(0, 2, 3, 1)
    return z.unflatten(2, (H, W))


def across_both(conv, z):
    """(B, T, H, W, C) -> (B, T', H', W', C'): a 3-d conv sees the whole T x H x W volume."""
    z = z.permute(0, 4, 1, 2, 3)
    return conv(z).permute(0, 2, 3, 4, 1)


# --------------------------------------------------- the layer

class SpatioTemporalFocalModulation(nn.Module):
    """
    The mixer of Video-FocalNets, (B, T, H, W, C) -> (B, T, H, W, C), for any T, H and W.

    dim       C, the number of channels
    levels    L, levels of convolution; the global level is one more
    window    kernel of the first level, odd so that padding keeps T, H, W; each further is 2 wider
    global_level    False leaves the mean out, to see what it is good for (ours)
    temporal, spatial    False leaves that branch out: y = proj(q * m_s), or y = proj(q * m_t)
    design    'parallel'    both branches read x (the paper's choice, the only design released)
              'sequential'  the temporal branch reads m_s in place of x: space, then time
              'joint3d'     one branch with k_l x k_l x k_l depthwise convolutions and one modulator
              The paper (Sec. 3) compares such; its code has 'parallel', the others are our reading.
    fusion    how the modulators meet: 'multiply' q*m_s*m_t (released), 'add' q*(m_s + m_t),
              'average' q*(m_s + m_t)/2, 'project' q*W[m_s, m_t] with a learned W
    normalize_modulator    divide the gated sums by the number of levels, L + 1 (released option)
    postln_in_modulation   LayerNorm between the product and proj (released option)

    The parameters have the released names: f, focal_layers.l.0, h, proj, ln and f_temporal,
    focal_layers_temporal.l.0, h_temporal. ValueError for options that cannot go together.
    """

    def __init__(self, dim, levels=2, window=3, temporal=True, spatial=True, design="parallel",
                 fusion="multiply", normalize_modulator=False, postln_in_modulation=False,
                 global_level=True):
        super().__init__()
        # Refused here, with the rule, not in a later error about shapes, or in silence.
        if window % 2 == 0:
            raise ValueError(f"window={window}: a kernel must be odd to keep the number of tokens")
        if not (temporal or spatial):
            raise ValueError("temporal=False and spatial=False: nothing is left to modulate with")
        if design not in ("parallel", "sequential", "joint3d"):
            raise ValueError(f"design={design!r}: use 'parallel', 'sequential' or 'joint3d'")
        if fusion not in ("multiply", "add", "average", "project"):
            raise ValueError(f"fusion={fusion!r}: use 'multiply', 'add', 'average' or 'project'")
        one_modulator = design == "joint3d" or not (temporal and spatial)
        if one_modulator and fusion != "multiply":
            raise ValueError(f"fusion={fusion!r} needs two modulators, here is one: use 'multiply'")
        if design != "parallel" and not (temporal and spatial):
            raise ValueError(f"design={design!r} needs both branches: use design='parallel'")

        # With design='joint3d' the one branch looks along time as well: there is no second one.
        self.dim = dim
        self.global_level = global_level
        self.num_gates = levels + global_level  # of each token: one per level
        self.design = design
        self.fusion = fusion
        self.spatial = spatial
        self.temporal = temporal and design != "joint3d"
        self.normalize_modulator = normalize_modulator
        kernels = [window + 2*l for l in range(levels)]  # 3, 5, 7, 9

        # One Linear for all that space needs: the query, the context z_0, the gates.
        self.f = nn.Linear(dim, 2*dim + self.num_gates if spatial else dim)
        if spatial:
            self.focal_layers = nn.ModuleList()
            for k in kernels:
                if design == "joint3d":
                    conv = nn.Conv3d(dim, dim, k, padding=k//2, groups=dim, bias=False)
                else:
                    conv = nn.Conv2d(dim, dim, k, padding=k//2, groups=dim, bias=False)
                self.focal_layers.append(nn.Sequential(conv, nn.GELU()))
            self.h = nn.Linear(dim, dim)

        # Time has a context and gates of its own. These convolutions are dense (groups=1): every
        # output channel sees every input channel: about 36 % of a block's multiply-adds for L = 2.
        if self.temporal:
            self.f_temporal = nn.Linear(dim, dim + self.num_gates)  # context and gates, no query
            self.focal_layers_temporal = nn.ModuleList()
            for k in kernels:
                conv = nn.Conv2d(dim, dim, (k, 1), padding=(k//2, 0), bias=False)
                self.focal_layers_temporal.append(nn.Sequential(conv, nn.GELU()))
            self.h_temporal = nn.Linear(dim, dim)

        # Where both meet, and the way out. Only a checkpoint with these options has fuse or ln.
        if fusion == "project":
            self.fuse = nn.Linear(2*dim, dim)
        self.ln = nn.LayerNorm(dim) if postln_in_modulation else None
        self.proj = nn.Linear(dim, dim)

    def gather(self, z, gates, layers, look, axes):
        """
        The contexts of all levels, gated and summed: z (B, T, H, W, C), gates (B, T, H, W, L+1) ->
        like z. look: one of the three functions above; axes: those that the global level averages.
        """
        # Each level convolves the one before, so that it sees further.
        total = 0
        for l, layer in enumerate(layers):
            z = look(layer, z)
            total = total + z * gates[..., l:l+1]

        # The last level sees everything: one context, shared by all tokens along `axes`.
        if self.global_level:
            everything = F.gelu(z.mean(axes, keepdim=True))
            total = total + everything * gates[..., -1:]
        if self.normalize_modulator:
            total = total / self.num_gates
        return total

    def forward(self, x):
        """x: (B, T, H, W, C) -> same."""
        C = self.dim
        G = self.num_gates  # L, and one more for the global level if there is one

        # Space: the query and the modulator m_s, gathered across each image, or, with
        # design='joint3d', from the whole clip.
        if self.spatial:
            q, z, gates = self.f(x).split([C, C, G], dim=-1)
            if self.design == "joint3d":
                m_s = self.gather(z, gates, self.focal_layers, across_both, axes=(1, 2, 3))
            else:
                m_s = self.gather(z, gates, self.focal_layers, across_space, axes=(2, 3))
            m_s = self.h(m_s)  # (B, T, H, W, C)
        else:
            q = self.f(x)

        # Time: the modulator m_t, gathered along the frames of each pixel.
        if self.temporal:
            source = m_s if self.design == "sequential" else x
            z, gates = self.f_temporal(source).split([C, G], dim=-1)
            m_t = self.gather(z, gates, self.focal_layers_temporal, along_time, axes=(1,))
            m_t = self.h_temporal(m_t)  # (B, T, H, W, C)

        # The query meets its modulators, channel by channel.
        if not self.temporal:
            y = q * m_s
        elif not self.spatial:
            y = q * m_t
        elif self.fusion == "multiply":
            y = q * m_s * m_t
        elif self.fusion == "add":
            y = q * (m_s + m_t)
        elif self.fusion == "average":
            y = q * (m_s + m_t) / 2
        else:  # 'project'
            y = q * self.fuse(torch.cat([m_s, m_t], dim=-1))

        # The way out mixes channels, once more.
        if self.ln is not None:
            y = self.ln(y)
        return self.proj(y)


# --------------------------------------------------- the layer, step by step

def show(what, tensor):
    """One line of the walk: what it is, its shape, the mean of its absolute values."""
    shape = str(tuple(tensor.shape))
    print(f"{what:<58} {shape:<20} mean |.| {tensor.abs().mean():.3f}")


@torch.no_grad()
def walk():
    """A clip through the layer by hand, every shape printed, checked against the layer itself."""
    torch.manual_seed(0)
    layer = SpatioTemporalFocalModulation(dim=96)
    x = torch.randn(1, 8, 56, 56, 96)  # what stage 1 of focal_t sees
    show("x: 8 frames of 56 x 56 tokens with 96 channels", x)

    # One Linear makes all that space needs: 96 + 96 + 3 channels.
    q, z, gates = layer.f(x).split([96, 96, 3], dim=-1)
    show("q = f(x)[..., :96]           the query", q)
    show("z_0 = f(x)[..., 96:192]      what space is gathered from", z)
    show("g = f(x)[..., 192:]          one gate per token and level", gates)

    # Space, level by level.
    z_1 = across_space(layer.focal_layers[0], z)
    show("z_1 = gelu(conv 3x3 of z_0)  each frame on its own", z_1)
    z_2 = across_space(layer.focal_layers[1], z_1)
    show("z_2 = gelu(conv 5x5 of z_1)", z_2)
    z_3 = F.gelu(z_2.mean((2, 3), keepdim=True))
    show("z_3 = gelu(mean over H, W)   one context for the frame", z_3)

    # Each token takes as much of each level as its gates say.
    m_s = layer.h(z_1 * gates[..., 0:1] + z_2 * gates[..., 1:2] + z_3 * gates[..., 2:3])
    show("m_s = h(g_1 z_1 + g_2 z_2 + g_3 z_3)   spatial modulator", m_s)

    # Time, the same: it has a context and gates of its own, and shares the query. Its convolutions
    # are dense, so that channels meet here.
    z, gates = layer.f_temporal(x).split([96, 3], dim=-1)
    show("z'_0 = f_temporal(x)[..., :96]   what time is gathered from", z)
    z_1 = along_time(layer.focal_layers_temporal[0], z)
    show("z'_1 = gelu(conv of 3 frames of z'_0)   each pixel on its own", z_1)
    z_2 = along_time(layer.focal_layers_temporal[1], z_1)
    show("z'_2 = gelu(conv of 5 frames of z'_1)", z_2)
    z_3 = F.gelu(z_2.mean(1, keepdim=True))
    show("z'_3 = gelu(mean over T)     one context for the pixel", z_3)
    m_t = layer.h_temporal(z_1 * gates[..., 0:1] + z_2 * gates[..., 1:2] + z_3 * gates[..., 2:3])
    show("m_t = h_temporal(sum)        temporal modulator", m_t)

    # The query takes both, channel by channel.
    y = layer.proj(q * m_s * m_t)
    show("y = proj(q * m_s * m_t)", y)

    # The layer itself must agree.
    torch.testing.assert_close(y, layer(x))
    parameters = sum(p.numel() for p in layer.parameters())
    print(f"the layer itself gives the same y; {parameters:,} parameters")


if __name__ == "__main__":
    walk()
