// Rows, forward, of one block each: several at once.

// Bytes of a row up to which four are read at once.
constexpr int64_t kShortRow = 4096;

// Bytes of a row below which it never goes past the caches, and a call costs more than its arithmetic.
constexpr int64_t kNarrowRow = 1024;

// And below which four are written at once, so that scale and offset are loaded once. Of longer ones stores to several
// places in turn take longer, and a processor takes a load for the value of a store 4096 bytes away until that is done.
constexpr int64_t kWrittenTogether = 512;

// Groups of one block each, R at once: the processor works on one row's sums while another's are still on their way.
// A row's own arithmetic is the same for every R. A second moment is NaN, which nobody takes for a good one, where the
// shift lay far from the mean.
template <class A, bool Centred, int R, class T>
inline void short_moments(const T* const* x, int64_t n, int64_t ahead, double* mean, double* m2) {
  constexpr int64_t L = kLanes<A>;
  double shift[R] = {};
  Vec<A> about[R] = {}, sum[R] = {}, square[R] = {};
  if (Centred) {
    if (n >= L) {
      A share;
      for (int r = 0; r < R; ++r) about[r] = amid_lanes<A, false>(x[r], n, A(1), &share);
      sums_of_lanes<A, R>(about, shift);
      for (int r = 0; r < R; ++r) shift[r] = A(shift[r] * share);
    } else {
      for (int r = 0; r < R; ++r) shift[r] = amid<A, false>(x[r], n, A(1));
    }
    for (int r = 0; r < R; ++r) about[r] = broadcast(A(shift[r]));
  }
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
      if (ahead > 0) fetch(x[r] + ahead + i);
      step(r, load<A>(x[r] + i)), step(r, load<A>(x[r] + i + L));
    }
  if (i + L <= n) {
    for (int r = 0; r < R; ++r) step(r, load<A>(x[r] + i));
    i += L;
  }
  if (i < n)
    for (int r = 0; r < R; ++r) step(r, load_part<A>(x[r] + i, n - i, about[r]));
  const double share = 1 / double(n);
  typedef Together<double, R> Each;  // so that no row takes a branch of its own
  Each total = {}, all, about_all;
  double sums[R];
  if (Centred) sums_of_lanes<A, R>(sum, sums), memcpy(&total, sums, sizeof total);
  sums_of_lanes<A, R>(square, sums), memcpy(&all, sums, sizeof all), memcpy(&about_all, shift, sizeof about_all);
  const Each less = total * share, lost = total * less, none = {}, bad = NAN - none;
  const Each means = about_all - less, left = all < lost ? none : all - lost;
  const Each second = lost > kFarShift * all ? bad : left;
  memcpy(mean, &means, sizeof means), memcpy(m2, &second, sizeof second);
}

// As above for R rows with the same scales and offsets.
template <class A, int R, class T>
inline void scale_rows(const T* const* x, T* const* y, int64_t n, const Statistic* statistic, const Work<T>* scale,
                       const Work<T>* offset) {
  Centred<A> k[R];
  centre_all<A, R>(statistic, k);
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

// Rows that are taken together at most: first the sums of all, then the statistics of all, then their results, since each
// of these waits for the one before, and a processor waits for several rows as long as for one.
constexpr int64_t kShortRows = 16;

// And how many of so many bytes: the first-level cache holds them.
inline int64_t short_rows_of(int64_t bytes) {
  constexpr int64_t kCache = 8 * 1024;
  return most(4, least(kShortRows, kCache / bytes / 4 * 4));
}

// `many` neighbouring groups of one block each, four at once: the last one stands for those that are not there.
template <class T>
inline void short_rows(const Call& call, const Blocks& b, int64_t group, int64_t many) {
  typedef Work<T> W;
  constexpr int R = 4;
  const Geometry& g = call.geometry;
  Walk::Place at[kShortRows];
  const T* x[kShortRows];
  for (int64_t r = 0; r < (many + R - 1) / R * R; ++r) {
    at[r] = place_at(g.outer, group + least(r, many - 1));
    x[r] = static_cast<const T*>(call.x) + at[r].x;
  }
  double mean[kShortRows], m2[kShortRows];
  const bool narrow = b.length * int64_t(sizeof(T)) < kNarrowRow;
  const int64_t ahead = narrow || call.far ? many * b.length : 0;
  for (int64_t r = 0; r < many; r += R) {
    if (call.removes_mean)
      short_moments<W, true, R>(x + r, b.length, ahead, mean + r, m2 + r);
    else
      short_moments<W, false, R>(x + r, b.length, ahead, mean + r, m2 + r);
  }
  Statistic found[kShortRows];
  if (!settle_at_once<T>(call, group, many, mean, m2, found))
    for (int64_t r = 0; r < many; ++r) {
      const Finished f = row_statistic(call, b, x[r], {double(b.length), mean[r], m2[r], false});
      put<W>(call, group + r, f);
      found[r] = f.statistic;
    }
  if (call.y == nullptr) return;
  for (int64_t r = 0; r < many; r += R) {
    if (narrow && may_share<T, R>(call, at + r, found + r, many - r)) {
      const int64_t place = at[r].affine + place_at(g.pieces, 0).affine;
      T* y[R];
      for (int i = 0; i < R; ++i) y[i] = static_cast<T*>(call.y) + at[r + i].x;
      const W *scale = static_cast<const W*>(call.scale), *offset = static_cast<const W*>(call.offset);
      scale += place;
      if (offset != nullptr) offset += place;
      if (b.length * int64_t(sizeof(T)) < kWrittenTogether)
        scale_rows<W, R>(x + r, y, b.length, found + r, scale, offset);
      else
        for (int i = 0; i < R; ++i) scale_rows<W, 1>(x + r + i, y + i, b.length, found + r + i, scale, offset);
      continue;
    }
    for (int64_t i = r; i < least(many, r + R); ++i) apply_group<T>(call, at[i], found[i], 0, 1, 0, b.length);
  }
}
