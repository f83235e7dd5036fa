// Rows with a scale for each element (layer and RMS normalization), backward.

// dx of a row: row by row, though several would share scale, since a processor takes a load for the value of a store
// 4096 bytes away until that is done.
template <bool Past, class A, class T>
inline void project_row(const T* x, const T* dy, T* dx, int64_t n, const Work<T>* scale, double rstd,
                        const Projected<A>& p) {
  const Vec<A> factor = broadcast(A(rstd)), slope = p.slope, level = p.level;
  const Centred<A> k(p.k.mean, p.k.minus, p.k.rest);
  const auto of = [&](int64_t i, auto lanes) {
    return dx_of(k, lanes.load(x + i, k.mean), lanes.load(dy + i), Vec<A>(lanes.load(scale + i) * factor), slope, level);
  };
  if constexpr (Past)
    over_vectors_past<A>(n, [&](int64_t i, auto lanes) { lanes.store(dx + i, of(i, lanes)); });
  else
    make_vectors<A>(dx, n, dx != x && dx != dy, of);
}

// For a row whose projection no float holds.
template <class T>
ANYNORM_APART void project_row_in_doubles(const Call& call, const Statistic& s, const Sums& sums, const T* x,
                                          const T* dy, T* dx, int64_t n, const Work<T>* scale) {
  project_row<false, double>(x, dy, dx, n, scale, s.rstd, {s, Projection<double>(call, s, sums)});
}

// R rows at once, so that what is added to dscale and doffset is loaded and stored once for all of them.
template <class T, class A, int R>
struct RowsAtOnce {
  const T *x[R], *dy[R];
  Centre<A> k[R];

  // Sums of g and g * h into `sums`; of dy * h and dy into dscale and doffset unless they are NULL. Ahead: what lies
  // `next` elements further on is fetched.
  template <bool Affine, bool Ahead>
  inline void sum(const Work<T>* scale, A* dscale, A* doffset, int64_t n, int64_t next, Sums* sums) const {
    // By names of their own: what is reached through `this` is read anew after each store.
    const T *row[R], *grad[R];
    Centred<A> own[R];
    for (int r = 0; r < R; ++r) row[r] = x[r], grad[r] = dy[r], own[r] = Centred<A>(k[r]);
    for (int64_t begin = 0; begin < n; begin += kBlock) {
      Vec<A> each[2 * R] = {}, *const plain = each, *const with_h = each + R;
      const auto add = [&](int64_t at, auto lanes) {
        const int64_t i = begin + at;
        const Vec<A> by = lanes.load(scale + i);
        Vec<A> ds = Affine ? lanes.load(dscale + i) : Vec<A>{}, db = Affine ? lanes.load(doffset + i) : Vec<A>{};
        for (int r = 0; r < R; ++r) {
          if (Ahead) fetch(row[r] + next + i), fetch(grad[r] + next + i);
          const Vec<A> h = own[r].h(lanes.load(row[r] + i, own[r].mean)), g = lanes.load(grad[r] + i), scaled = g * by;
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
  const T *const x = static_cast<const T*>(call.x), *const dy = static_cast<const T*>(call.dy);
  const auto sum = [&](auto affine, auto ahead) {
    constexpr bool kAffine = decltype(affine)::value;
    for (int64_t i = 0; i < g.pieces.size; ++i) {
      const Walk::Place in = place_at(g.pieces, i);
      for (int r = 0; r < R; ++r) rows.x[r] = x + at[r].x + in.x, rows.dy[r] = dy + at[r].x + in.x;
      const int64_t place = at[0].affine + in.affine;
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
  for (int r = 0; r < R; ++r) {
    const Projection<A> p(call, statistic[r], sums[r]);
    const Projected<A> own(rows.k[r], p);
    for (int64_t i = 0; i < g.pieces.size; ++i) {
      const Walk::Place in = place_at(g.pieces, i);
      const T *from = x + at[r].x + in.x, *grad = dy + at[r].x + in.x;
      T* const to = static_cast<T*>(call.dx) + at[r].x + in.x;
      const Work<T>* by = scale + at[r].affine + in.affine;
      // Short rows only where all of them can.
      if (p.fits && call.past && (row_can_go_past<A>(to, g.c) || can_go_past<A>(to, g.c)))
        project_row<true, A>(from, grad, to, g.c, by, statistic[r].rstd, own);
      else if (p.fits)
        project_row<false, A>(from, grad, to, g.c, by, statistic[r].rstd, own);
      else
        project_row_in_doubles(call, statistic[r], sums[r], from, grad, to, g.c, by);
    }
  }
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
  int64_t at[kShortRows];
  Sums sums[kShortRows] = {};
  const T *const x = static_cast<const T*>(call.x), *const dy = static_cast<const T*>(call.dy);
  const auto sum = [&](auto affine) {
    for (int64_t r = 0; r < many; ++r) {
      auto& rows = pair[r / kPair];
      const int64_t k = r % kPair;
      at[r] = offset(call.geometry.outer, group + r);
      rows.x[k] = x + at[r], rows.dy[k] = dy + at[r], rows.k[k] = Centre<W>(statistics[r]);
      if (k == kPair - 1)
        rows.template sum<decltype(affine)::value, true>(scale, dscale, doffset, n, many * n, sums + r - k);
    }
  };
  dscale == nullptr ? sum(Given<false>()) : sum(Given<true>());
  if (call.sums != nullptr) memcpy(static_cast<void*>(call.sums + group), sums, size_t(many) * sizeof *sums);
  if (call.dx == nullptr) return;
  T* const dx = static_cast<T*>(call.dx);
  const auto project = [&](auto past) {
    for (int64_t r = 0; r < many; r += R) {
      D rstd, rest, plain, with_h;
      for (int i = 0; i < R; ++i) {
        rstd[i] = statistics[r + i].rstd, rest[i] = double(pair[(r + i) / kPair].k[i % kPair].rest);
        plain[i] = sums[r + i].plain, with_h[i] = sums[r + i].with_h;
      }
      const ProjectionOf<W, D> p(call, rstd, rest, plain, with_h);
      for (int i = 0; i < R; ++i) {
        const auto& rows = pair[(r + i) / kPair];
        const T *from = rows.x[i % kPair], *grad = rows.dy[i % kPair];
        T* const to = dx + at[r + i];
        const Projected<W> own(rows.k[i % kPair], W(p.slope[i]), W(p.level[i]));
        if (!p.lost[i])
          project_row<decltype(past)::value, W>(from, grad, to, n, scale, rstd[i], own);
        else
          project_row_in_doubles(call, statistics[r + i], sums[r + i], from, grad, to, n, scale);
      }
    }
  };
  // Of whole vectors, one behind the other: where the first can go past the caches all can.
  const bool past = call.past && can_go_past<W>(dx + at[0], n) && at[many - 1] == at[0] + (many - 1) * n;
  past ? project(Given<true>()) : project(Given<false>());
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
  const int64_t at_once = is_short ? kShortRows : 0;
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
