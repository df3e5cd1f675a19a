"""
Spatio-temporal focal modulation: gather context once, then let every token take what it needs.

Attention lets all N tokens look at each other: N^2 pairs, and the looking comes first, the summing
last. Focal modulation turns this round. A short stack of convolutions gathers context *before* any
token asks for it, from near to far: level l sees a window k_l wider than level l-1, and one more
level sees everything (a mean). Each token holds one number per level, its gate, and takes the gated
sum. That sum is the modulator; it multiplies the token's query, channel by channel.

A video is gathered from twice, in parallel: across each image, and along time at each pixel.

    z_0 = context, a linear map of x     z_l = gelu(conv_l(z_{l-1})),  z_{L+1} = gelu(mean(z_L))
    m_s = h(sum_l g_l * z_l)             over (H, W), conv_l depthwise, k_l x k_l,  l = 1..L
    m_t = h_temporal(sum_l g'_l * z'_l)  over T, conv_l dense, k_l x 1, k_l = window + 2(l-1) = 3, 5
    y   = proj(q * m_s * m_t)            q = f(x): a linear map; * is elementwise

    x, y, q, z, z', m_s, m_t  (B, T, H, W, C)     g, g'  (B, T, H, W, L+1), one per token and level

Cost in multiply-adds a token for L = 2: 14 C^2 + 40 C (of which 8 C^2 are the dense convolutions
along time), whatever the number of tokens N = T H W; attention pays 4 C^2 + 2 C N.

Source: Wasim et al. 2023, arXiv:2307.06947, Sec. 3 (video);
        Yang et al. 2022, arXiv:2203.11926, Sec. 3.2 (image).
Where the released code differs from the text, we follow the code, because its weights exist:
  - "pointwise convolutions" along time are dense, 3 and 5 frames wide, then a 1x1 one (h_temporal);
  - the gates are raw linear outputs: nothing keeps them in 0..1 or makes them sum to one;
  - the query comes from the spatial projection f alone.
Where ours differs from the code: tensors stay channels-last (B, T, H, W, C) throughout, so a 1x1
convolution is a Linear and nothing is copied to be permuted; and modulators and gates are returned
when asked for, never kept on the module (the released layer stores them on itself, which keeps the
activations of the last step alive: 220 MiB for the tiny network).

Try it: python focal.py    walks one clip through the layer and prints every shape, 1 s on a CPU
"""
import torch
import torch.nn as nn
import torch.nn.functional as F


def across_space(conv, z):
    """(B, T, H, W, C) -> (B, T, H', W', C'): conv, 2-d, sees the image of each frame alone."""
    B, T, H, W, C = z.shape
    z = z.reshape(B*T, H, W, C).permute(0, 3, 1, 2)         # (B*T, C, H, W)  a view: this is torch's channels_last
    return conv(z).permute(0, 2, 3, 1).unflatten(0, (B, T)) # back; a conv with a stride makes H and W smaller


def along_time(conv, z):
    """(B, T, H, W, C) -> same: conv, k x 1, sees a pixel's T frames: a column of a T x HW image."""
    B, T, H, W, C = z.shape
    z = z.reshape(B, T, H*W, C).permute(0, 3, 1, 2)         # (B, C, T, H*W)
    return conv(z).permute(0, 2, 3, 1).unflatten(2, (H, W))


def across_both(conv, z):
    """(B, T, H, W, C) -> same: conv, a 3-d one, sees the whole T x H x W volume."""
    return conv(z.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)


class SpatioTemporalFocalModulation(nn.Module):
    """
    The mixer of Video-FocalNets, (B, T, H, W, C) -> (B, T, H, W, C), for any T, H and W.

    dim       C, the number of channels
    levels    L, 1 to 4 levels of convolution; the global level is one more
    window    kernel of the first level, odd so that padding keeps T, H, W; each further is 2 wider
    temporal, spatial    leave a branch out: y = proj(q * m_s) or y = proj(q * m_t)
    design    'parallel'    both branches read x (the paper's choice, the only design released)
              'sequential'  the temporal branch reads m_s in place of x: space, then time
              'joint3d'     one branch with k_l x k_l x k_l depthwise convolutions and one modulator
              The paper (Sec. 3) compares such; its code has 'parallel', the others are our reading.
    fusion    how the modulators meet: 'multiply' q*m_s*m_t (released), 'add' q*(m_s + m_t),
              'average' q*(m_s + m_t)/2, 'project' q*W[m_s, m_t] with a learned W
    normalize_modulator    divide the gated sums by the number of levels, L + 1 (released option)
    postln_in_modulation   LayerNorm between the product and proj (released option)

    The parameters have the released names, so that a released checkpoint loads as it is: f,
    focal_layers.l.0, h, proj, ln and f_temporal, focal_layers_temporal.l.0, h_temporal. Raises
    ValueError for options that cannot go together.
    """

    def __init__(self, dim, levels=2, window=3, temporal=True, spatial=True, design="parallel",
                 fusion="multiply", normalize_modulator=False, postln_in_modulation=False):
        super().__init__()
        if design not in ("parallel", "sequential", "joint3d"):
            raise ValueError(f"design={design!r}: use 'parallel', 'sequential' or 'joint3d'")
        if fusion not in ("multiply", "add", "average", "project"):
            raise ValueError(f"fusion={fusion!r}: use 'multiply', 'add', 'average' or 'project'")
        if not 1 <= levels <= 4:
            raise ValueError(f"levels={levels}: focal modulation here has 1 to 4 levels")
        if window < 1 or window % 2 == 0:
            raise ValueError(f"window={window}: a kernel must be odd, "
                             "or its output would not align with its input")
        if not (temporal or spatial):
            raise ValueError("temporal=False and spatial=False leave no context to modulate with: "
                             "keep one of them")
        if not (temporal and spatial) and (design, fusion) != ("parallel", "multiply"):
            raise ValueError(f"design={design!r} with fusion={fusion!r} needs both branches; with "
                             "temporal=False or spatial=False use design='parallel', "
                             "fusion='multiply'")
        if design == "joint3d" and fusion != "multiply":
            raise ValueError(f"fusion={fusion!r}: design='joint3d' has one modulator, "
                             "there is nothing to fuse")
        self.dim, self.levels, self.design, self.fusion = dim, levels, design, fusion
        self.spatial, self.temporal = spatial, temporal and design != "joint3d"
        self.normalize_modulator = normalize_modulator
        kernels = [window + 2*l for l in range(levels)]                                # 3, 5, 7, 9

        # (conv, gelu) pairs: the keys read focal_layers.0.0.weight as released. No biases there.
        self.f = nn.Linear(dim, 2*dim + levels + 1 if spatial else dim)                # q, z_0, gates | q alone
        if spatial and design == "joint3d":
            self.focal_layers = nn.ModuleList(nn.Sequential(
                nn.Conv3d(dim, dim, k, padding=k//2, groups=dim, bias=False), nn.GELU())
                for k in kernels)
        elif spatial:
            self.focal_layers = nn.ModuleList(nn.Sequential(
                nn.Conv2d(dim, dim, k, padding=k//2, groups=dim, bias=False), nn.GELU())
                for k in kernels)
        if spatial:
            self.h = nn.Linear(dim, dim)
        if self.temporal:
            self.f_temporal = nn.Linear(dim, dim + levels + 1)                         # z'_0, gates
            self.focal_layers_temporal = nn.ModuleList(nn.Sequential(                  # dense: groups=1, 35% of a block
                nn.Conv2d(dim, dim, (k, 1), padding=(k//2, 0), bias=False), nn.GELU())
                for k in kernels)
            self.h_temporal = nn.Linear(dim, dim)
        if fusion == "project":
            self.fuse = nn.Linear(2*dim, dim)
        self.ln = nn.LayerNorm(dim) if postln_in_modulation else None
        self.proj = nn.Linear(dim, dim)

    def gather(self, z, gates, layers, look, axes):
        """z (B, T, H, W, C), gates (B, T, H, W, L+1) -> like z: the contexts, gated and summed."""
        total = 0
        for l, layer in enumerate(layers):
            z = look(layer, z)                                      # z_l = gelu(conv_l(z_{l-1})): each sees further
            total = total + z * gates[..., l:l+1]
        everything = F.gelu(z.mean(axes, keepdim=True))             # z_{L+1}: 1 in place of every axis in `axes`
        total = total + everything * gates[..., -1:]
        return total / (self.levels + 1) if self.normalize_modulator else total

    def forward(self, x, return_maps=False):
        """
        x: (B, T, H, W, C) -> same. With return_maps also a dict, for the branches that exist:
        'spatial', 'temporal' (the modulators, like x), 'gates', 'gates_temporal' (B, T, H, W, L+1).
        """
        C, G, maps = self.dim, self.levels + 1, {}
        y = self.f(x)                                                                  # (B, T, H, W, 2C+G) or (.., C)
        if self.spatial:
            y, z, gates = y.split([C, C, G], dim=-1)                                   # y is the query q from here on
            look, axes = ((across_both, (1, 2, 3)) if self.design == "joint3d"
                          else (across_space, (2, 3)))
            m_s = self.h(self.gather(z, gates, self.focal_layers, look, axes))         # (B, T, H, W, C)
            maps |= dict(spatial=m_s, gates=gates)
        if self.temporal:
            source = m_s if self.design == "sequential" else x
            z, gates = self.f_temporal(source).split([C, G], dim=-1)
            m_t = self.h_temporal(
                self.gather(z, gates, self.focal_layers_temporal, along_time, (1,)))
            maps |= dict(temporal=m_t, gates_temporal=gates)

        if not self.temporal:
            y = y * m_s
        elif not self.spatial:
            y = y * m_t
        elif self.fusion == "multiply":
            y = y * m_s * m_t
        elif self.fusion == "add":
            y = y * (m_s + m_t)
        elif self.fusion == "average":
            y = y * (m_s + m_t) / 2
        else:
            y = y * self.fuse(torch.cat([m_s, m_t], dim=-1))
        if self.ln is not None:
            y = self.ln(y)
        y = self.proj(y)
        return (y, maps) if return_maps else y


if __name__ == "__main__":
    torch.manual_seed(0)
    layer, x = SpatioTemporalFocalModulation(dim=96), torch.randn(1, 8, 56, 56, 96)   # what stage 1 of focal_t sees

    def show(what, tensor):
        print(f"{what:<58} {str(tuple(tensor.shape)):<20} mean |.| {tensor.abs().mean():.3f}")

    with torch.no_grad():
        show("x: 8 frames of 56 x 56 tokens with 96 channels", x)
        q, z, gates = layer.f(x).split([96, 96, 3], dim=-1)
        show("q = f(x)[..., :96]           the query", q)
        show("z_0 = f(x)[..., 96:192]      what space is gathered from", z)
        show("g = f(x)[..., 192:]          one gate per token and level", gates)
        m_s = 0
        for l, (k, conv) in enumerate(zip((3, 5), layer.focal_layers)):
            z = across_space(conv, z)
            m_s = m_s + gates[..., l:l+1] * z
            show(f"z_{l+1} = gelu(conv {k}x{k} of z_{l})   each frame on its own", z)
        z = F.gelu(z.mean((2, 3), keepdim=True))
        show("z_3 = gelu(mean over H, W)   one context for the frame", z)
        m_s = layer.h(m_s + gates[..., 2:] * z)
        show("m_s = h(g_1 z_1 + g_2 z_2 + g_3 z_3)   spatial modulator", m_s)
        z, gates = layer.f_temporal(x).split([96, 3], dim=-1)
        show("z'_0 = f_temporal(x)[..., :96]   what time is gathered from", z)
        m_t = 0
        for l, (k, conv) in enumerate(zip((3, 5), layer.focal_layers_temporal)):
            z = along_time(conv, z)
            m_t = m_t + gates[..., l:l+1] * z
            show(f"z'_{l+1} = gelu(conv of {k} frames of z'_{l})   each pixel on its own", z)
        z = F.gelu(z.mean(1, keepdim=True))
        show("z'_3 = gelu(mean over T)     one context for the pixel", z)
        m_t = layer.h_temporal(m_t + gates[..., 2:] * z)
        show("m_t = h_temporal(sum)        temporal modulator", m_t)
        y = layer.proj(q * m_s * m_t)
        show("y = proj(q * m_s * m_t)", y)
        torch.testing.assert_close(y, layer(x))
        print("the layer itself gives the same y; "
              f"{sum(p.numel() for p in layer.parameters()):,} parameters")
