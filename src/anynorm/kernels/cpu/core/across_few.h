// Across, results of few columns: all rows in one loop, functions of their own so that each compiles by itself.

// Vectors of columns up to which all that belongs to them stays in registers, as far as there are, while the rows pass,
// from the first on: a processor takes a load for the value of a store 4096 bytes away, and backwards each row would
// begin where the one before was stored in an array that lies so.
constexpr int kFew = 8;

// work(N) for as many vectors.
template <int N = kFew, class F>
inline void in_few(int64_t vectors, const F& work) {
  if constexpr (N > 1)
    if (vectors < N) return in_few<N - 1>(vectors, work);
  work(AtOnce<N>());
}
template <class A>
inline int64_t vectors_of(int64_t n) {
  return (n + kLanes<A> - 1) / kLanes<A>;
}

template <class A, int N, class T, class W>
ANYNORM_APART ANYNORM_FLAT void apply_few(const T* x, T* y, int64_t rows, int64_t n, int64_t stride,
                                          ColumnCentre<A> c, const W* scale, const W* offset) {
  const bool twice = x != y;
  Centred<A> k[N];
  over_few<A, N>(n, twice, [&](int j, int64_t i, auto lanes) { k[j] = c.at(i, lanes); });
  for (int64_t row = 0; row < rows; ++row) {
    const Vec<A> by = broadcast(scale == nullptr ? A(1) : A(scale[row]));
    const Vec<A> more = broadcast(offset == nullptr ? A(0) : A(offset[row]));
    over_few<A, N>(n, twice, [&](int j, int64_t i, auto lanes) {
      const int64_t at = row * stride + i;
      lanes.store(y + at, fma(k[j].h(lanes.load(x + at, k[j].mean)), by, more));
    });
  }
}

template <class A, int N, class T, class W>
ANYNORM_APART ANYNORM_FLAT void project_few(const T* x, const T* dy, T* dx, int64_t rows, int64_t n, int64_t stride,
                                            ColumnCentre<A> c, ColumnProjection<A> p, const W* scale) {
  const bool twice = dx != x && dx != dy;
  Centred<A> k[N];
  Vec<A> rstd[N], slope[N], level[N];
  over_few<A, N>(n, twice, [&](int j, int64_t i, auto lanes) {
    k[j] = c.at(i, lanes);
    rstd[j] = lanes.load(p.factor + i), slope[j] = lanes.load(p.slope + i), level[j] = lanes.load(p.level + i);
  });
  for (int64_t row = 0; row < rows; ++row) {
    const Vec<A> by = broadcast(scale == nullptr ? A(1) : A(scale[row]));
    over_few<A, N>(n, twice, [&](int j, int64_t i, auto lanes) {
      const int64_t at = row * stride + i;
      const Vec<A> v = lanes.load(x + at, k[j].mean), g = lanes.load(dy + at);
      lanes.store(dx + at, dx_of(k[j], v, g, Vec<A>(rstd[j] * by), slope[j], level[j]));
    });
  }
}
