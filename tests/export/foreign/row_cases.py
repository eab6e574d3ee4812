"""Small graphs around one operator, and what becomes of their rows; see `test_convert_batch_axis`.

A case is a line, name :: inputs :: body that makes y, or goes on in lines that are indented; statements stand in
any order. What mixes rows also has the words of the reason: name :: inputs :: words :: body.
"""

from __future__ import annotations


def cases(text: str) -> dict[str, tuple[str, ...]]:
    """Return the cases by name."""
    joined = text.strip().replace("\n    ", " ").splitlines()
    return {name: tuple(rest) for name, *rest in (line.split(" :: ") for line in joined)}


KEPT = cases(r"""
arithmetic with a constant :: v :: y = Add (v, row)
a constant of lower rank :: s :: y = Mul (s, w44_row) w44_row = Gather (w44, zero)
two inputs :: v s :: m = ReduceSum <keepdims = 0> (s, i12) u = Unsqueeze (m, i1) y = Sub (v, u)
where :: v :: c = Greater (v, row) y = Where (c, v, row)
the type of another :: v ::
    a = CastLike (v, one_f) b = CastLike (one_f, v) y = Add (a, b) one_f = Constant <value_float = 1.0> ()
types :: v :: c = Cast <to = 7> (v) d = Cast <to = 1> (c) y = Identity (d)
convolution :: x :: y = Conv (x, k)
pooling :: x :: y = MaxPool <kernel_shape = [2, 2]> (x)
global pooling :: x :: y = GlobalAveragePool (x)
space to depth :: x :: y = SpaceToDepth <blocksize = 2> (x)
flatten :: x :: y = Flatten (x)
flatten and back :: x :: f = Flatten <axis = 0> (x) y = Reshape (f, back)
reshape by zero :: x :: y = Reshape (x, flat)
reshape by the shape :: x :: a = Shape (x) b = Gather (a, i0) c = Concat <axis = 0> (b, im1) y = Reshape (x, c)
merged and parted :: x :: m = Reshape (x, merge) r = Relu (m) y = Reshape (r, back)
transposed and back :: s :: t = Transpose <perm = [1, 0, 2]> (s) r = Relu (t) y = Transpose <perm = [1, 0, 2]> (r)
heads in time-major order :: s ::
    t = Transpose <perm = [1, 0, 2]> (s) h = Reshape (t, heads) heads = Constant <value_ints = [5, -1, 2]>
    () u = Transpose <perm = [1, 0, 2]> (h) a = Transpose <perm = [0, 2, 1]> (u) m = MatMul (u, a) p =
    Softmax <axis = -1> (m) q = MatMul (p, u) b = Transpose <perm = [1, 0, 2]> (q) whole = Constant
    <value_ints = [5, -1, 4]> () c = Reshape (b, whole) y = Transpose <perm = [1, 0, 2]> (c)
time-major rows merged :: s ::
    t = Transpose <perm = [1, 0, 2]> (s) m = Reshape (t, long) long = Constant <value_ints = [-1, 4]> () d =
    MatMul (m, w44) five = Constant <value_ints = [5, -1, 4]> () b = Reshape (d, five) y = Transpose <perm =
    [1, 0, 2]> (b)
squeeze and unsqueeze :: v :: a = Unsqueeze (v, i0) b = Unsqueeze (a, i2) c = Squeeze (b, i02) y = Relu (c)
matmul :: s :: y = MatMul (s, w44)
matmul from the left :: v :: t = Transpose (v) m = MatMul (w66, t) y = Transpose (m)
matmul of each row :: s :: t = Transpose <perm = [0, 2, 1]> (s) y = MatMul (s, t)
matmul with a vector :: s :: u = Gather (w44, zero) y = MatMul (s, u)
gemm :: v :: y = Gemm (v, w66, row)
gemm, transposed :: v :: t = Transpose (v) y = Gemm <transA = 1> (t, w66)
einsum :: s :: y = Einsum <equation = "nij,jk->nik"> (s, w44)
softmax :: v :: y = Softmax <axis = 1> (v)
layer normalization :: s :: g = Gather (w44, zero) y = LayerNormalization (s, g)
normalization by length :: v :: y = LpNormalization <axis = 1> (v)
reduced :: s :: y = ReduceMean <keepdims = 0> (s, i12)
reduced from the end :: s :: y = ReduceMax (s, im1)
not reduced :: s :: e = Constant <value_ints : ints = []> () y = ReduceSum <noop_with_empty_axes = 1> (s)
reduced before the rows :: s :: t = Transpose <perm = [1, 2, 0]> (s) y = ReduceSum <keepdims = 0> (t, axes01)
argmax :: s :: a = ArgMax <axis = 2, keepdims = 0> (s) y = Cast <to = 1> (a)
top k :: v :: y, i = TopK (v, i2)
cumulative :: v :: y = CumSum (v, one)
joined :: v :: y = Concat <axis = 1> (v, v)
parted :: v :: a, b = Split <axis = 1, num_outputs = 2> (v) y = Sub (a, b)
cut :: v :: y = Slice (v, i1, three_1, i1) three_1 = Constant <value_ints = [3]> ()
cut, rows left whole :: v :: y = Slice (v, starts, ends)
cut, rows up to their number :: v :: a = Shape (v) b = Gather (a, i0) y = Slice (v, i0, b, i0)
picked :: s :: y = Gather <axis = 1> (s, zero)
picked before the rows :: s :: t = Transpose <perm = [1, 0, 2]> (s) y = Gather (t, zero)
embedding :: ids :: y = Gather (table, ids)
picked elements :: s ids ::
    u = Unsqueeze (ids, im1) m = Mod (u, f) f = Constant <value_int = 4> () y = GatherElements <axis = 2>
    (s, m)
picked by row :: s ids ::
    m = Mod (ids, f) f = Constant <value_int = 5> () c = Slice (m, i0, i1, i1) y = GatherND <batch_dims = 1>
    (s, c)
scattered by row :: v ids ::
    m = Mod (ids, f) f = Constant <value_int = 6> () c = Slice (v, i0, five, i1) five = Constant <value_ints
    = [5]> () y = ScatterElements <axis = 1, reduction = "add"> (v, m, c)
one hot :: ids :: d = Constant <value_int = 7> () o = Constant <value_floats = [0.0, 1.0]> () y = OneHot (ids, d, o)
one hot, first :: ids ::
    d = Constant <value_int = 7> () o = Constant <value_floats = [0.0, 1.0]> () h = OneHot <axis = 0> (ids,
    d, o) y = Transpose <perm = [1, 0, 2]> (h)
padded :: v :: y = Pad (v, pads)
resized :: x :: z = Constant <value_floats = [1.0, 1.0, 2.0, 2.0]> () y = Resize <mode = "linear"> (x, , z)
resized to :: x ::
    a = Shape (x) b = Slice (a, i0, i2) c = Constant <value_ints = [6, 6]> () d = Concat <axis = 0> (b, c) y
    = Resize (x, , , d)
lower triangle :: x :: y = Trilu (x)
expanded constant :: v :: a = Shape (v) b = Expand (row, a) y = Add (b, v)
tiled constant :: v ::
    a = Shape (v) b = Gather (a, i0) c = Concat <axis = 0> (b, i1) d = Tile (row, c) y = Concat <axis = 1>
    (d, v)
constant of a shape :: v :: a = Shape (v) b = ConstantOfShape (a) y = Add (b, v)
expanded :: v :: u = Unsqueeze (v, i1) a = Constant <value_ints = [1, 5, 1]> () y = Expand (u, a)
tiled :: v :: a = Constant <value_ints = [1, 3]> () y = Tile (v, a)
recurrent :: s ::
    t = Transpose <perm = [1, 0, 2]> (s) a, h, c = LSTM <hidden_size = 3> (t, wl, rl) b = Squeeze (h, i0) y
    = Relu (b)
recurrent, its own zeros :: s ::
    t = Transpose <perm = [1, 0, 2]> (s) q = Shape (t) n = Gather (q, i1) h3 = Constant <value_ints = [3]>
    () z = Concat <axis = 0> (i1, n, h3) h = ConstantOfShape (z) a, l = LSTM <hidden_size = 3> (t, wl, rl, ,
    , h, h) b = Squeeze (a, i1) y = Transpose <perm = [1, 0, 2]> (b)
grid :: x ::
    g = Slice (x, i0, i2, im1) h = Slice (g, i0, two_1, i1) two_1 = Constant <value_ints = [2]> () t =
    Transpose <perm = [0, 2, 3, 1]> (h) u = Slice (t, i0, two_1, im1) y = GridSample (x, u)
quantized :: v :: z = Constant <value_float = 0.1> () q = QuantizeLinear (v, z) y = DequantizeLinear (q, z)
if over constants :: v ::
    c = Greater (one, zero) y0 = If (c) <then_branch = a () => (float t) { t = Identity (one_f) },
    else_branch = b () => (float e) { e = Neg (one_f) }> y = Mul (v, y0) one_f = Constant <value_float =
    2.0> ()
""")

MIXED = cases(r"""
mean over the rows :: v :: ReduceMean .* reduces the axis :: a = ReduceMean (v, i0) y = Sub (v, a)
mean over all :: v :: reduces all axes :: a = ReduceMean (v) y = Sub (v, a)
softmax over the rows :: v :: works along the axis :: y = Softmax <axis = 0> (v)
softmax over the rows, from the end :: v :: works along the axis :: y = Softmax <axis = -2> (v)
each with each :: v :: on different axes ::
    a = Unsqueeze (v, i0) b = Unsqueeze (v, i1) c = Sub (a, b) y = ReduceMax <keepdims = 0> (c, i1)
gram matrix :: v :: sums over the rows :: t = Transpose (v) g = MatMul (t, v) y = MatMul (v, g)
similarities :: v :: every row with every other :: t = Transpose (v) y = MatMul (v, t)
gemm over the rows :: v :: sums over the rows|2. input :: y0 = Gemm <transA = 1> (v, v) y = MatMul (v, y0)
einsum over the rows :: v :: sums over the rows :: a = Einsum <equation = "ni,nj->ij"> (v, v) y = MatMul (v, a)
einsum of pairs :: v :: every row with every other :: y = Einsum <equation = "ni,mi->nm"> (v, v)
cumulative over the rows :: v :: works along the axis :: y = CumSum (v, zero)
reversed :: v :: cuts along the axis :: y = Slice (v, im1, a, i0, im1) a = Constant <value_ints = [-2000]> ()
all but the first :: v :: cuts along the axis ::
    a = Shape (v) b = Slice (v, i0, im1, i0) z = Constant <value_ints = [1, 0, 0, 0]> () y = Pad (b, z)
the first for all :: v :: picks rows by number :: a = Gather (v, zero) y = Add (v, a)
joined to the rows :: v :: joins values along ::
    a = Concat <axis = 0> (v, v) b = Split <axis = 0, num_outputs = 2> (a) y = Identity (b)
padded rows :: v :: pads the axis :: y = Pad (v, pads_rows)
tiled rows :: v :: shape that is not one of rows :: a = Constant <value_ints = [2, 1]> () y = Tile (v, a)
numbered :: v :: numbers the rows ::
    a = Shape (v) b = Gather (a, zero) c = Range (zero, b, one) d = Cast <to = 1> (c) e = Unsqueeze (d, i1)
    y = Add (v, e)
counted :: v :: number of rows :: a = Shape (v) b = Gather (a, zero) c = Cast <to = 1> (b) y = Mul (v, c)
places of a maximum :: x :: counts over the rows :: a, i = MaxPool <kernel_shape = [2, 2]> (x) y = Cast <to = 1> (i)
merged to one :: v :: works along the axis :: a = Reshape (v, all) y = Softmax <axis = -1> (a)
merged by six :: s :: merges the rows :: a = Constant <value_ints = [5, -1]> () b = Reshape (s, a) y = Transpose (b)
rows as channels :: x :: where it expects channels ::
    a = Constant <value_ints = [1, -1, 4, 4]> () b = Reshape (x, a) y = GlobalAveragePool (b)
other rows by number :: v ids :: picks elements across rows|picks rows ::
    a = Slice (ids, i0, i1, i1) b = Mod (a, one) y = GatherND (v, b)
no rule :: v :: no rule says :: a = NonZero (v) b = Cast <to = 1> (a) c = ReduceSum (b) y = Add (v, c)
random :: v :: no rule says :: a = RandomNormalLike (v) y = Add (v, a)
control flow on the rows :: v :: reduces all axes|no rule says ::
    m = ReduceMax <keepdims = 0> (v) c = Greater (m, f) f = Constant <value_float = 0.5> () y = If (c)
    <then_branch = a () => (float[n, 6] t) { t = Identity (v) }, else_branch = b () => (float[n, 6] e) { e =
    Neg (v) }>
weights made of rows :: x :: 2. input :: y = Conv (x, x)
instance over rows :: v :: works along ::
    a = Unsqueeze (v, i0) b = Gather (w66, zero) y = LayerNormalization <axis = 0> (v, b)
""")
