"""
Other ways to meet: attention within windows, within grids, along lines, to means.

The word of a mixer says which tokens meet, its kernel how. The core has three words: `time`,
`space` and `joint`. Here are six more. They were invented for the softmax, which costs 2 N^2 d for
N tokens that all meet, and 2 N n d in windows of n. Linear attention costs 2 N d^2 in windows as
well as without: for it a word only says what a token sees.

One line of 6 tokens, T = 6, in windows of 2 (`--cut 2,1,1`). Same letter: these meet.
    window    a a b b c c     its neighbours only
    grid      a b a b a b     one from each window, at the same place: far, and only far
    shifted   c a a b b c     windows that start half a window later; the last one closes the ring
    pooled    a a b b c c     each of the six looks at three means: of a a, of b b, of c c

    --mixer             a token looks                          known from
    time+space          along time, then across its frame      TimeSformer's divided, 2102.05095
    space+time          the other way round                    LVT's text, 2210.08164
    joint               at everything                          ViViT's model 1, 2103.15691
    space               across its frame, and, by the          XViT, 2106.05968
                        temporal shift, into those beside it
    time+height+width   along time, its column, its row        axial attention, 1912.12180
    window+grid         near, then far                         TimeSformer's L+G; MaxViT, 2204.01697
    window+shifted      in its window, then across the border  Swin, 2103.14030, 2106.13230
    pooled              at means of t x h x w tokens           MViT's keys and values, 2104.11227
    window+pooled       near as it is, far as means            Twins, 2104.13840

How: a window is a small clip of its own. Cut the clip up, let joint attention have each of the
small clips as if it were a whole one, put them back together:

    x (B, T, H, W, C) -- apart --> (B * windows, t, h, w, C) -- Attention --> together --> y like x

Except for the shifts of linear_attn.py: a token's neighbour may be in the next window, and a column
has nothing beside it at all. So keys and values are put together before they are shifted, over the
whole clip as always, and cut up again after. The shifts are crossed in the core: `time` does not
need the temporal one, nor `space` the spatial one. All words here take both, as `joint` does.

Taken from these papers (arXiv) is who meets, not their networks:
  - Swin masks `shifted` windows that lie around the border; we do not, as linear kernels have no
    place for a mask: the clip is a ring, and its last tokens meet its first. Swin also adds a bias
    for the distance of two tokens, and shifts in every second block; here a block has all its
    words, one after the other, each with weights of its own.
  - MViT's pooling is a convolution, and it pools queries too, between stages; ours is the mean.

Try it, from the root of the repository (toy data, two minutes):
    python -m zoo.patterns --model lvt_toy --mixer window+grid --cut 2,5,5
"""
import math

import torch.nn as nn

import train
from backbone import MIXERS, OPTIONS, defaults
from linear_attn import Attention

CUT = (2, 1, 1)  # (t, h, w), tokens: divides any even number of frames


# --------------------------------------------------- windows, grids, lines

class Within(Attention):
    """
    Joint attention of small clips, (B, T, H, W, dim) -> same, with the parameters of Attention.

    word       'window'          the t x h x w tokens around
               'shifted'         the same, of windows that start at half of their size
               'grid'            one token of each window, at the same place: T/t x H/h x W/w
               'height', 'width' its column, its row
    size       (T, H, W) of the token grid; a clip of another size raises ValueError
    options    those of Attention, and `cut`, the window (t, h, w); 'height' and 'width' have none
    """

    def __init__(self, dim, word, size, options):
        T, H, W = size
        options = dict(options)
        cut = options.pop("cut", CUT)
        # Lines are windows too, as long as the clip and one token thick.
        if word == "height":
            cut = (1, H, 1)
        elif word == "width":
            cut = (1, 1, W)
        check_cut(cut, size)

        # The small clips that attention gets.
        t, h, w = cut
        small = (T//t, H//h, W//w) if word == "grid" else cut
        if math.prod(small) == 1:
            raise ValueError(f"{word!r} with cut={cut} of {T} x {H} x {W} tokens: a token would "
                             "meet itself alone; give another --cut, or another word")
        super().__init__(dim, "joint", small, **options)
        self.pattern = word
        self.size = tuple(size)
        self.cut = cut

    def apart(self, x):
        """(B, T, H, W, C) -> (B * small clips, t, h, w, C); for a grid T/t, H/h, W/w of them."""
        t, h, w = self.cut
        if self.pattern == "shifted":  # what leaves at one end comes in at the other
            x = x.roll((-(t//2), -(h//2), -(w//2)), dims=(1, 2, 3))
        x = x.unflatten(3, (-1, w)).unflatten(2, (-1, h)).unflatten(1, (-1, t))

        # Now (B, T/t, t, H/h, h, W/w, w, C): which window, and where in it. A window keeps the
        # second of each pair together, a grid the first.
        if self.pattern == "grid":
            x = x.permute(0, 2, 4, 6, 1, 3, 5, 7)
        else:
            x = x.permute(0, 1, 3, 5, 2, 4, 6, 7)
        return x.flatten(0, 3)

    def together(self, x):
        """Back from `apart`: (B * small clips, ..) -> (B, T, H, W, C)."""
        T, H, W = self.size
        t, h, w = self.cut
        if self.pattern == "grid":
            x = x.unflatten(0, (-1, t, h, w)).permute(0, 4, 1, 5, 2, 6, 3, 7)
        else:
            x = x.unflatten(0, (-1, T//t, H//h, W//w)).permute(0, 1, 4, 2, 5, 3, 6, 7)
        x = x.flatten(5, 6).flatten(3, 4).flatten(1, 2)
        if self.pattern == "shifted":
            x = x.roll((t//2, h//2, w//2), dims=(1, 2, 3))
        return x

    def shift(self, x):
        """Neighbourhood association, small clips -> same: neighbours come from the whole clip."""
        return self.apart(super().shift(self.together(x)))

    def forward(self, x):
        """x: (B, T, H, W, C) -> same."""
        check_size(x, self.size)
        return self.together(super().forward(self.apart(x)))


# --------------------------------------------------- means

class Pooled(Attention):
    """
    Joint attention whose keys and values are means of t x h x w tokens, (B, T, H, W, dim) -> same.
    A softmax then costs N (N / thw). size, options: see Within; `cut` says of how many tokens.
    """

    def __init__(self, dim, size, options):
        T, H, W = size
        options = dict(options)
        cut = options.pop("cut", CUT)
        check_cut(cut, size)
        t, h, w = cut
        # A kernel with weights of its own is made for as many keys as there are means.
        super().__init__(dim, "joint", (T//t, H//h, W//w), **options)
        self.attend = ToMeans(self.attend, size, cut)
        self.size = tuple(size)

    def forward(self, x):
        """x: (B, T, H, W, C) -> same."""
        check_size(x, self.size)
        return super().forward(x)


class ToMeans(nn.Module):
    """The attend of a kernel, given means: q, k, v (B, heads, T*H*W, d) -> y like q."""

    def __init__(self, attend, size, cut):
        super().__init__()
        self.attend = attend
        T, H, W = size
        t, h, w = cut
        self.sizes = (T//t, t, H//h, h, W//w, w)

    def forward(self, q, k, v):
        k = k.unflatten(2, self.sizes).mean((3, 5, 7)).flatten(2, 4)  # (B, heads, N / thw, d)
        v = v.unflatten(2, self.sizes).mean((3, 5, 7)).flatten(2, 4)
        return self.attend(q, k, v)


# --------------------------------------------------- what cannot be

def check_cut(cut, size):
    """Raises ValueError unless cut is (t, h, w), whole numbers that divide size, (T, H, W)."""
    if len(cut) != 3 or any(type(n) is not int or n < 1 for n in cut):
        raise ValueError(f"cut={cut}: three whole numbers of tokens, frames, rows and columns, "
                         "as in --cut 2,5,5")
    for n, side, axis in zip(cut, size, ("frames", "rows", "columns")):
        if side % n:
            divisors = ", ".join(str(d) for d in range(1, side + 1) if side % d == 0)
            raise ValueError(f"cut={cut} does not divide {' x '.join(map(str, size))} tokens: "
                             f"for its {side} {axis} use one of {divisors}")


def check_size(x, size):
    """Raises ValueError unless x is (B, T, H, W, C) for the size (T, H, W)."""
    if x.shape[1:4] != size:
        raise ValueError(f"a clip of {tuple(x.shape[1:4])} tokens: this network was made for "
                         f"{size}; make one with its num_frames and image_size")


# --------------------------------------------------- the words, for --mixer

MIXERS.update({
    "window": lambda dim, size, options: Within(dim, "window", size, options),
    "shifted": lambda dim, size, options: Within(dim, "shifted", size, options),
    "grid": lambda dim, size, options: Within(dim, "grid", size, options),
    "height": lambda dim, size, options: Within(dim, "height", size, options),
    "width": lambda dim, size, options: Within(dim, "width", size, options),
    "pooled": lambda dim, size, options: Pooled(dim, size, options),
})

# One --cut for all words of a mixer, and for all stages of a pyramid. Lines need none.
lines = defaults(Attention)
windows = defaults(Attention) | {"cut": CUT}
OPTIONS.update(window=windows, shifted=windows, grid=windows, pooled=windows)
OPTIONS.update(height=lines, width=lines)


if __name__ == "__main__":
    train.main()
