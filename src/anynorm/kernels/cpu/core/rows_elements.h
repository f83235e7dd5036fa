// Rows with a scale for each element (layer and RMS normalization), backward.

template <class A, class T>
ANYNORM_APART void project_row_past(const T* x, const T* dy, T* dx, int64_t n, const Work<T>* scale, Vec<A> by,
                                    Projected<A> p) {
  over_vectors_past<A>(n, [&](int64_t i, auto lanes) {
    lanes.store(dx + i, dx_of(p.k, lanes.load(x + i, p.k.mean), lanes.load(dy + i), Vec<A>(lanes.load(scale + i) * by),
                              p.slope, p.level));
  });
}

// Row by row, though several would share scale: a processor takes a load for the value of a store 4096 bytes away until
// that is done.
template <class A, class T>
inline void project_row(const T* x, const T* dy, T* dx, int64_t n, const Work<T>* scale, Vec<A> by,
                        const Projected<A>& p, bool past) {
  if (past && row_can_go_past<A>(dx, n)) return project_row_past<A>(x, dy, dx, n, scale, by, p);
  const Centred<A> k(p.k.mean, p.k.minus, p.k.rest);
  const Vec<A> slope = p.slope, level = p.level;
  over_pairs<A>(n, [&](int64_t i, auto lanes) {
    lanes.store(dx + i, dx_of(k, lanes.load(x + i, k.mean), lanes.load(dy + i), Vec<A>(lanes.load(scale + i) * by),
                              slope, level));
  });
}

// R rows at once, so that what is added to dscale and doffset is loaded and stored once for all of them.
template <class T, class A, int R>
struct RowsAtOnce {
  const T *x[R], *dy[R];
  T* dx[R];
  Centre<A> k[R];
  Projection<A> p[R];
  A rstd[R];

  // What dx needs of row r; whether that fits.
  bool take(const Call& call, int r, const Statistic& statistic, const Sums& sums) {
    k[r] = Centre<A>(statistic), p[r] = Projection<A>(call, statistic, sums), rstd[r] = A(statistic.rstd);
    return p[r].fits;
  }

  // Sums of g and g * h into `sums`; of dy * h and dy into dscale and doffset unless they are NULL. Ahead: what lies
  // `next` elements further on is fetched.
  template <bool Affine, bool Ahead>
  inline void sum(const Work<T>* scale, A* dscale, A* doffset, int64_t n, int64_t next, Sums* sums) const {
    Centred<A> own[R];
    for (int r = 0; r < R; ++r) own[r] = Centred<A>(k[r]);
    for (int64_t begin = 0; begin < n; begin += kBlock) {
      Vec<A> each[2 * R] = {}, *const plain = each, *const with_h = each + R;
      const auto add = [&](int64_t at, auto lanes) {
        const int64_t i = begin + at;
        const Vec<A> by = lanes.load(scale + i);
        Vec<A> ds = Affine ? lanes.load(dscale + i) : Vec<A>{}, db = Affine ? lanes.load(doffset + i) : Vec<A>{};
        for (int r = 0; r < R; ++r) {
          if (Ahead) fetch(x[r] + next + i), fetch(dy[r] + next + i);
          const Vec<A> h = own[r].h(lanes.load(x[r] + i, own[r].mean)), g = lanes.load(dy[r] + i), scaled = g * by;
          if (Affine) {
            ds = fma(g, h, ds);
            db += g;
          }
          plain[r] += scaled;
          with_h[r] = fma(scaled, h, with_h[r]);
        }
        if (Affine) lanes.store(dscale + i, ds), lanes.store(doffset + i, db);
      };
      over_pairs<A>(least(kBlock, n - begin), add);
      double all[2 * R];
      sums_of_lanes<A, 2 * R>(each, all);
      for (int r = 0; r < R; ++r) sums[r].plain += all[r], sums[r].with_h += all[R + r];
    }
  }

  inline void project(const Work<T>* scale, int64_t n, bool past) const {
    for (int r = 0; r < R; ++r)
      project_row<A>(x[r], dy[r], dx[r], n, scale, broadcast(rstd[r]), {k[r], p[r]}, past);
  }
};

// Sums and dx of `R` groups that begin with `group`, all with one place of scale.
template <class T, class A, int R>
void backward_elements_at(const Call& call, int64_t group, const Work<T>* scale, A* dscale, A* doffset) {
  const Geometry& g = call.geometry;
  Statistic statistic[R] = {};
  Walk::Place at[R];
  Sums sums[R] = {};
  RowsAtOnce<T, A, R> rows;
  for (int r = 0; r < R; ++r) {
    at[r] = place_at(g.outer, group + r);
    statistic[r] = call.statistics[group + r];
    rows.k[r] = Centre<A>(statistic[r]);
    if (call.sums_given) sums[r] = call.sums[group + r];
  }
  const auto to_piece = [&](auto& rows, int64_t i) {
    const Walk::Place in = place_at(g.pieces, i);
    for (int r = 0; r < R; ++r) {
      rows.x[r] = static_cast<const T*>(call.x) + at[r].x + in.x;
      rows.dy[r] = static_cast<const T*>(call.dy) + at[r].x + in.x;
      rows.dx[r] = call.dx == nullptr ? nullptr : static_cast<T*>(call.dx) + at[r].x + in.x;
    }
    return at[0].affine + in.affine;
  };
  const auto sum = [&](auto affine, auto ahead) {
    constexpr bool kAffine = decltype(affine)::value;
    for (int64_t i = 0; i < g.pieces.size; ++i) {
      const int64_t place = to_piece(rows, i);
      rows.template sum<kAffine, decltype(ahead)::value>(scale + place, kAffine ? dscale + place : nullptr,
                                                         kAffine ? doffset + place : nullptr, g.c, R * g.c, sums);
    }
  };
  if (!call.sums_given) {
    if (dscale == nullptr)
      call.far ? sum(Given<false>(), Given<true>()) : sum(Given<false>(), Given<false>());
    else
      call.far ? sum(Given<true>(), Given<true>()) : sum(Given<true>(), Given<false>());
  }
  if (call.sums != nullptr && !call.sums_given)
    for (int r = 0; r < R; ++r) call.sums[group + r] = sums[r];
  if (call.dx == nullptr) return;
  const auto project = [&](auto& rows) {
    bool fit = true;
    for (int r = 0; r < R; ++r) fit &= rows.take(call, r, statistic[r], sums[r]);
    for (int64_t i = 0; fit && i < g.pieces.size; ++i) {
      const int64_t place = to_piece(rows, i);
      rows.project(scale + place, g.c, call.past);
    }
    return fit;
  };
  RowsAtOnce<T, double, R> wide;
  if (!project(rows)) project(wide);
}

// Bytes of a row below which what dx needs of it takes as long as its elements.
constexpr int64_t kShortGradient = 512;

// Sums and dx of `many` groups of one short piece each, a multiple of 4 of them, none wide, all with the first place of
// scale: first the sums of all, then what dx needs of four together.
template <class T>
ANYNORM_APART void backward_short(const Call& call, int64_t group, int64_t many, const Work<T>* scale,
                                  Work<T>* dscale, Work<T>* doffset) {
  typedef Work<T> W;
  constexpr int R = 4, kPair = 2;
  typedef Together<double, R> D;
  const int64_t n = call.geometry.c;
  const Statistic* const statistics = call.statistics + group;
  RowsAtOnce<T, W, kPair> pair[kShortRows / kPair];
  Sums sums[kShortRows] = {};
  const auto sum = [&](auto affine) {
    for (int64_t r = 0; r < many; ++r) {
      auto& rows = pair[r / kPair];
      const int64_t at = offset(call.geometry.outer, group + r), k = r % kPair;
      rows.x[k] = static_cast<const T*>(call.x) + at, rows.dy[k] = static_cast<const T*>(call.dy) + at;
      rows.dx[k] = call.dx == nullptr ? nullptr : static_cast<T*>(call.dx) + at;
      rows.k[k] = Centre<W>(statistics[r]);
      if (k == kPair - 1)
        rows.template sum<decltype(affine)::value, true>(scale, dscale, doffset, n, many * n, sums + r - k);
    }
  };
  dscale == nullptr ? sum(Given<false>()) : sum(Given<true>());
  if (call.sums != nullptr) memcpy(static_cast<void*>(call.sums + group), sums, size_t(many) * sizeof *sums);
  if (call.dx == nullptr) return;
  for (int64_t r = 0; r < many; r += R) {
    D rstd, rest, plain, with_h;
    for (int i = 0; i < R; ++i) {
      rstd[i] = statistics[r + i].rstd, rest[i] = double(pair[(r + i) / kPair].k[i % kPair].rest);
      plain[i] = sums[r + i].plain, with_h[i] = sums[r + i].with_h;
    }
    const ProjectionOf<W, D> p(call, rstd, rest, plain, with_h);
    for (int i = 0; i < R; ++i) {
      const auto& rows = pair[(r + i) / kPair];
      const int k = i % kPair;
      const T *x = rows.x[k], *dy = rows.dy[k];
      if (!p.lost[i]) {
        const Projected<W> own(rows.k[k], W(p.slope[i]), W(p.level[i]));
        project_row<W>(x, dy, rows.dx[k], n, scale, broadcast(W(rstd[i])), own, false);
      } else {
        const Projected<double> own(statistics[r + i], Projection<double>(call, statistics[r + i], sums[r + i]));
        project_row<double>(x, dy, rows.dx[k], n, scale, broadcast(double(rstd[i])), own, false);
      }
    }
  }
}

// n numbers to as many doubles; zeros stay behind.
template <class W>
void pour(W* from, double* into, int64_t n) {
  for (int64_t i = 0; i < n; ++i) into[i] += double(from[i]);
  memset(static_cast<void*>(from), 0, size_t(n) * sizeof(W));
}

// Groups are cut into batches by their number alone, so that sums do not depend on the threads.
template <class T>
int backward_elements(const Call& call) {
  const Geometry& g = call.geometry;
  const int64_t n = g.affine_size;
  const bool wants_affine = call.affine_sums != nullptr;
  constexpr int64_t kPour = 64;  // groups whose contributions to dscale are added in the array's own precision
  const int64_t bytes = 2 * g.count * int64_t(sizeof(T));
  const int64_t batch = wants_affine ? most(kPour, (g.groups + 63) / 64) : grain(bytes);
  const int64_t batches = (g.groups + batch - 1) / batch;
  bool shared = true;  // one place of scale for all groups
  for (int i = 0; i < g.outer.rank; ++i) shared = shared && g.outer.affine[i] == 0;
  const int64_t row = g.c * int64_t(sizeof(T));
  const bool is_short = shared && !call.sums_given && g.pieces.size == 1 && row < kShortGradient && !kIsDouble<T>;
  const int64_t at_once = is_short ? short_rows_of(row) : 0;
  Buffer<double> partial(wants_affine ? 2 * batches * n : 0);
  Buffer<Work<T>> ones(call.scale == nullptr ? n : 0);
  if (partial.failed() || ones.failed()) return ANYNORM_NO_MEMORY;
  if (call.scale == nullptr)
    for (int64_t i = 0; i < n; ++i) ones[i] = 1;
  const Work<T>* scale = call.scale == nullptr ? ones.data : static_cast<const Work<T>*>(call.scale);

  const int failure = each(call, batches, [&](int64_t task) {
    Buffer<Work<T>> own(wants_affine ? 2 * n : 0);
    if (own.failed()) return int(ANYNORM_NO_MEMORY);
    Work<T>*doffset = wants_affine ? own.data : nullptr, *dscale = wants_affine ? own.data + n : nullptr;
    double* const into = partial.data + 2 * task * n;
    if (wants_affine) own.clear(2 * n), memset(static_cast<void*>(into), 0, size_t(2 * n) * sizeof(double));
    const int64_t end = least(g.groups, (task + 1) * batch);
    int64_t poured = task * batch;
    for (int64_t i = task * batch; i < end;) {
      const int64_t several = least(at_once, end - i) / 4 * 4;
      const bool two = i + 1 < end && shared && !is_wide<T>(call.statistics[i]) && !is_wide<T>(call.statistics[i + 1]);
      if (several > 0 && !any_wide<T>(call.statistics + i, several)) {
        backward_short<T>(call, i, several, scale, dscale, doffset);
        i += several;
      } else if (two) {
        backward_elements_at<T, Work<T>, 2>(call, i, scale, dscale, doffset);
        i += 2;
      } else if (!is_wide<T>(call.statistics[i])) {
        backward_elements_at<T, Work<T>, 1>(call, i, scale, dscale, doffset);
        ++i;
      } else {
        Buffer<double> wider(wants_affine ? 2 * n : 0);
        if (wider.failed()) return int(ANYNORM_NO_MEMORY);
        wider.clear(wants_affine ? 2 * n : 0);
        backward_elements_at<T, double, 1>(call, i, scale, wants_affine ? wider.data + n : nullptr, wider.data);
        if (wants_affine) pour(wider.data, into, 2 * n);
        ++i;
      }
      if (wants_affine && (i - poured >= kPour || i == end)) {
        pour(own.data, into, 2 * n);
        poured = i;
      }
    }
    return 0;
  });
  if (failure != 0 || !wants_affine) return failure;
  constexpr int64_t kTile = 1024;
  return each(call, (n + kTile - 1) / kTile, [&](int64_t tile) {
    const int64_t begin = tile * kTile, end = least(n, begin + kTile);
    double *plain = partial.data, *with_h = partial.data + n;
    for (int64_t b = 1; b < batches; ++b)
      for (int64_t i = begin; i < end; ++i)
        plain[i] += partial[2 * b * n + i], with_h[i] += partial[(2 * b + 1) * n + i];
    for (int64_t i = begin; i < end; ++i) call.affine_sums[i] = {plain[i], with_h[i]};
    return 0;
  });
}
