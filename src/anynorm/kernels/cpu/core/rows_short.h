// Rows, forward, of one block each: several at once.

// Bytes of a row up to which four are read at once.
constexpr int64_t kShortRow = 4096;

// Bytes of a row below which a call costs more than its arithmetic.
constexpr int64_t kNarrowRow = 1024;

// And below which four are written at once, so that scale and offset are loaded once. Of longer ones stores to several
// places in turn take longer, and a processor takes a load for the value of a store 4096 bytes away until that is done.
constexpr int64_t kWrittenTogether = 512;

// Whether the sums of a row may be taken while another is written, for which fewer additions have to wait for one
// another: of shorter rows several are better taken at once, and where conversions take longer than the memory nothing is
// gained.
template <class T>
inline bool may_overlap(int64_t n) {
  return sizeof(T) == sizeof(Work<T>) && n * int64_t(sizeof(T)) >= 1536;
}

// To a row's sums of differences from `about`, or of the elements themselves, and of their squares.
template <class A, bool Centred>
inline void add_one(Vec<A> v, Vec<A> about, Vec<A>* sum, Vec<A>* square) {
  if (Centred) {
    v = about - v;
    *sum += v;
  }
  *square = fma(v, v, *square);
}
// Two vectors, first to each other: fewer additions wait for one another.
template <class A, bool Centred>
inline void add_two(Vec<A> v, Vec<A> w, Vec<A> about, Vec<A>* sum, Vec<A>* square) {
  if (Centred) {
    v = about - v, w = about - w;
    *sum += v + w;
  }
  *square += fma(w, w, Vec<A>(v * v));
}

// About what the sums of R rows are taken: a number amid each.
template <class A, int R, class T>
inline void amid_rows(const T* const* x, int64_t n, double* shift, Vec<A>* about) {
  if (n >= kLanes<A>) {
    A share;
    for (int r = 0; r < R; ++r) about[r] = amid_lanes<A, false>(x[r], n, A(1), &share);
    sums_of_lanes<A, R>(about, shift);
    for (int r = 0; r < R; ++r) shift[r] = A(shift[r] * share);
  } else {
    for (int r = 0; r < R; ++r) shift[r] = amid<A, false>(x[r], n, A(1));
  }
  for (int r = 0; r < R; ++r) about[r] = broadcast(A(shift[r]));
}

// Means and second moments of R rows from their sums. A second moment is NaN, which nobody takes for a good one, where
// the shift lay far from the mean.
template <class A, bool Centred, int R>
inline void moments_of(const double* shift, const Vec<A>* sum, const Vec<A>* square, int64_t n, double* mean,
                       double* m2) {
  const double share = 1 / double(n);
  typedef Together<double, R> Each;  // so that no row takes a branch of its own
  Each total = {}, all, about;
  double sums[R];
  if (Centred) sums_of_lanes<A, R>(sum, sums), memcpy(&total, sums, sizeof total);
  sums_of_lanes<A, R>(square, sums), memcpy(&all, sums, sizeof all), memcpy(&about, shift, sizeof about);
  const Each less = total * share, lost = total * less, none = {}, bad = NAN - none;
  const Each means = about - less, left = all < lost ? none : all - lost;
  const Each second = lost > kFarShift * all ? bad : left;
  memcpy(mean, &means, sizeof means), memcpy(m2, &second, sizeof second);
}

// Of groups of one block each, R at once: the processor works on one row's sums while another's are still on their way.
// A row's own arithmetic is the same for every R.
template <class A, bool Centred, int R, class T>
inline void short_moments(const T* const* x, int64_t n, int64_t ahead, double* mean, double* m2) {
  constexpr int64_t L = kLanes<A>;
  double shift[R] = {};
  Vec<A> about[R] = {}, sum[R] = {}, square[R] = {};
  if (Centred) amid_rows<A, R>(x, n, shift, about);
  int64_t i = 0;
  const auto in_twos = [&](auto together) {
    for (; i + 2 * L <= n; i += 2 * L)
      for (int r = 0; r < R; ++r) {
        if (ahead > 0) fetch(x[r] + ahead + i);
        const Vec<A> one = load<A>(x[r] + i), other = load<A>(x[r] + i + L);
        if (decltype(together)::value) {
          add_two<A, Centred>(one, other, about[r], sum + r, square + r);
        } else {
          add_one<A, Centred>(one, about[r], sum + r, square + r);
          add_one<A, Centred>(other, about[r], sum + r, square + r);
        }
      }
  };
  may_overlap<T>(n) ? in_twos(Given<true>()) : in_twos(Given<false>());
  if (i + L <= n) {
    for (int r = 0; r < R; ++r) add_one<A, Centred>(load<A>(x[r] + i), about[r], sum + r, square + r);
    i += L;
  }
  if (i < n)
    for (int r = 0; r < R; ++r)
      add_one<A, Centred>(load_part<A>(x[r] + i, n - i, about[r]), about[r], sum + r, square + r);
  moments_of<A, Centred, R>(shift, sum, square, n, mean, m2);
}

// y of R rows with the same scales and offsets.
template <class A, int R, class T>
inline void scale_rows(const T* const* x, T* const* y, int64_t n, const Statistic* statistic, const Work<T>* scale,
                       const Work<T>* offset, bool past) {
  Centred<A> k[R];
  centre_all<A, R>(statistic, k);
  // Several rows in turn past the caches only where they are of whole lines: the parts of one would be written far apart.
  const bool has_whole_lines = (uintptr_t(y[0]) | uintptr_t(n) * sizeof(T)) % 64 == 0;
  past = past && (R == 1 || has_whole_lines);
  for (int r = 0; r < R; ++r) past = past && can_go_past<A>(y[r], n);
  over_results<A>(n, past, [&](int64_t i, auto lanes) {
    const Vec<A> a = lanes.load(scale + i), b = offset == nullptr ? Vec<A>{} : lanes.load(offset + i);
    Vec<A> made[R];
    for (int r = 0; r < R; ++r) made[r] = fma(k[r].h(lanes.load(x[r] + i, k[r].mean)), a, b);
    for (int r = 0; r < R; ++r) lanes.store(y[r] + i, made[r]);
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
  double mean[kShortRows] = {}, m2[kShortRows] = {};
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
        scale_rows<W, R>(x + r, y, b.length, found + r, scale, offset, call.past);
      else
        for (int i = 0; i < R; ++i)
          scale_rows<W, 1>(x + r + i, y + i, b.length, found + r + i, scale, offset, call.past);
      continue;
    }
    for (int64_t i = r; i < least(many, r + R); ++i) apply_group<T>(call, at[i], found[i], 0, 1, 0, b.length);
  }
}
