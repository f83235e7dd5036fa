// Rows, forward, of one block each: several at once.

// Bytes of a row up to which four are read at once.
constexpr int64_t kShortRow = 4096;

// Bytes of a row below which four are written at once: their calls cost more than their arithmetic. Longer ones may go
// past the caches, and a processor takes a load for the value of a store 4096 bytes away until that is done.
constexpr int64_t kNarrowRow = 1024;

// Groups of one block each, R at once: the processor works on one row's sums while another's are still on their way.
// A row's own arithmetic is the same for every R. A second moment is NaN, which nobody takes for a good one, where the
// shift lay far from the mean.
template <class A, bool Centred, int R, class T>
inline void short_moments(const T* const* x, int64_t n, bool ahead, double* mean, double* m2) {
  constexpr int64_t L = kLanes<A>;
  A shift[R];
  Vec<A> about[R], sum[R] = {}, square[R] = {};
  for (int r = 0; r < R; ++r) shift[r] = Centred ? amid<A, false>(x[r], n, A(1)) : A(0), about[r] = broadcast(shift[r]);
  const auto step = [&](int r, Vec<A> v) {
    if (Centred) {
      v = about[r] - v;
      sum[r] += v;
    }
    square[r] = fma(v, v, square[r]);
  };
  int64_t i = 0;
  for (; i + 2 * L <= n; i += 2 * L)
    for (int r = 0; r < R; ++r) {
      if (ahead) fetch(x[r] + R * n + i);
      step(r, load<A>(x[r] + i)), step(r, load<A>(x[r] + i + L));
    }
  if (i + L <= n) {
    for (int r = 0; r < R; ++r) step(r, load<A>(x[r] + i));
    i += L;
  }
  if (i < n)
    for (int r = 0; r < R; ++r) step(r, load_part<A>(x[r] + i, n - i, about[r]));
  const double share = 1 / double(n);
  for (int r = 0; r < R; ++r) mean[r] = Centred ? sum_lanes(sum[r]) : A(0), m2[r] = sum_lanes(square[r]);
  for (int r = 0; r < R; ++r) {
    const double less = mean[r] * share, lost = mean[r] * less;
    mean[r] = double(shift[r]) - less;
    m2[r] = lost > kFarShift * m2[r] ? double(NAN) : m2[r] < lost ? 0 : m2[r] - lost;
  }
}

// As above for R rows with the same scales and offsets, which are loaded once for all of them.
template <class A, int R, class T>
inline void scale_rows(const T* const* x, T* const* y, int64_t n, const Statistic* statistic, const Work<T>* scale,
                       const Work<T>* offset) {
  Centred<A> k[R];
  for (int r = 0; r < R; ++r) k[r] = Centred<A>(Centre<A>(statistic[r]));
  over_vectors<A>(n, [&](int64_t i, auto lanes) {
    const Vec<A> a = lanes.load(scale + i), b = offset == nullptr ? Vec<A>{} : lanes.load(offset + i);
    for (int r = 0; r < R; ++r) lanes.store(y[r] + i, fma(k[r].h(lanes.load(x[r] + i, k[r].mean)), a, b));
  });
}

// Whether R rows are there, with the same scales, and all of them ordinary.
template <class T, int R>
inline bool may_share(const Call& call, const Walk::Place* at, const Statistic* statistic, int64_t many) {
  if (many < R || call.scale == nullptr || call.geometry.s > 1) return false;
  bool all = true;
  for (int r = 0; r < R; ++r) all = all && at[r].affine == at[0].affine && !is_wide<T>(statistic[r]);
  return all;
}

// R rows at once, of which `many` are to be had: the last one stands for those that are not.
template <class T, int R>
inline void short_rows(const Call& call, const Blocks& b, int64_t group, int64_t many) {
  typedef Work<T> W;
  const Geometry& g = call.geometry;
  Walk::Place at[R];
  const T* x[R];
  for (int r = 0; r < R; ++r) {
    at[r] = place_at(g.outer, group + least(r, many - 1));
    x[r] = static_cast<const T*>(call.x) + at[r].x;
  }
  double mean[R], m2[R];
  const bool narrow = b.length * int64_t(sizeof(T)) < kNarrowRow, ahead = narrow || call.far;
  if (call.removes_mean)
    short_moments<W, true, R>(x, b.length, ahead, mean, m2);
  else
    short_moments<W, false, R>(x, b.length, ahead, mean, m2);
  Statistic found[R];
  if (!settle_at_once<T>(call, group, many, mean, m2, found))
    for (int r = 0; r < many; ++r) {
      const Finished f = row_statistic(call, b, x[r], {double(b.length), mean[r], m2[r], false});
      put<W>(call, group + r, f);
      found[r] = f.statistic;
    }
  if (call.y == nullptr) return;
  if (narrow && may_share<T, R>(call, at, found, many)) {
    const int64_t place = at[0].affine + place_at(g.pieces, 0).affine;
    T* y[R];
    for (int r = 0; r < R; ++r) y[r] = static_cast<T*>(call.y) + at[r].x;
    const W *scale = static_cast<const W*>(call.scale), *offset = static_cast<const W*>(call.offset);
    return scale_rows<W, R>(x, y, b.length, found, scale + place, offset == nullptr ? nullptr : offset + place);
  }
  for (int r = 0; r < many; ++r) apply_group<T>(call, at[r], found[r], 0, 1, 0, b.length);
}
