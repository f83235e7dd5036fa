// Rows with a scale for each element (layer and RMS normalization), backward.

// R rows at once, so that what is added to dscale and doffset is loaded and stored once for all of them.
template <class T, class A, int R>
struct RowsAtOnce {
  const T *x[R], *dy[R];
  T* dx[R];
  Centre<A> k[R];

  // Sums of g and g * h into `sums`; of dy * h and dy into dscale and doffset unless they are NULL.
  template <bool Affine>
  inline void sum(const Work<T>* scale, A* dscale, A* doffset, int64_t n, Sums* sums) const {
    constexpr int64_t L = kLanes<A>;
    for (int64_t begin = 0; begin < n; begin += kBlock) {
      const int64_t end = least(n, begin + kBlock);
      Vec<A> plain[R] = {}, with_h[R] = {};
      int64_t i = begin;
      for (; i + L <= end; i += L) {
        const Vec<A> by = load<A>(scale + i);
        Vec<A> ds = Affine ? load<A>(dscale + i) : Vec<A>{}, db = Affine ? load<A>(doffset + i) : Vec<A>{};
        for (int r = 0; r < R; ++r) one<Affine>(r, load<A>(x[r] + i), load<A>(dy[r] + i), by, ds, db, plain, with_h);
        if (Affine) store<A>(dscale + i, ds), store<A>(doffset + i, db);
      }
      if (i < end) {
        const int64_t m = end - i;
        const Vec<A> zero = {}, by = load_part<A>(scale + i, m, zero);
        Vec<A> ds = Affine ? load_part<A>(dscale + i, m, zero) : zero;
        Vec<A> db = Affine ? load_part<A>(doffset + i, m, zero) : zero;
        for (int r = 0; r < R; ++r)
          one<Affine>(r, load_part<A>(x[r] + i, m, broadcast(k[r].mean)), load_part<A>(dy[r] + i, m, zero), by, ds, db, plain, with_h);
        if (Affine) store_part<A>(dscale + i, m, ds), store_part<A>(doffset + i, m, db);
      }
      for (int r = 0; r < R; ++r) {
        sums[r].plain += sum_lanes(plain[r]);
        sums[r].with_h += sum_lanes(with_h[r]);
      }
    }
  }

  inline void project(const Work<T>* scale, int64_t n, const Projection<A>* p) const {
    constexpr int64_t L = kLanes<A>;
    for (int r = 0; r < R; ++r) {
      const Vec<A> slope = broadcast(p[r].slope), level = broadcast(p[r].level);
      int64_t i = 0;
      for (; i + L <= n; i += L) {
        const Vec<A> by = load<A>(scale + i) * k[r].rstd, here = h(r, load<A>(x[r] + i));
        store<A>(dx[r] + i, fma(load<A>(dy[r] + i), by, fma(here, slope, level)));
      }
      if (i < n) {
        const Vec<A> zero = {}, by = load_part<A>(scale + i, n - i, zero) * k[r].rstd;
        const Vec<A> here = h(r, load_part<A>(x[r] + i, n - i, broadcast(k[r].mean)));
        store_part<A>(dx[r] + i, n - i, fma(load_part<A>(dy[r] + i, n - i, zero), by, fma(here, slope, level)));
      }
    }
  }

 private:
  inline Vec<A> h(int r, Vec<A> v) const { 
    return fma(Vec<A>(v - k[r].mean), broadcast(k[r].rstd), broadcast(k[r].rest));
  }

  template <bool Affine>
  inline void one(int r, Vec<A> v, Vec<A> g, Vec<A> by, Vec<A>& ds, Vec<A>& db, Vec<A>* plain, Vec<A>* with_h) const {
    const Vec<A> here = h(r, v);
    if (Affine) {
      ds = fma(g, here, ds);
      db += g;
    }
    g *= by;
    plain[r] += g;
    with_h[r] = fma(g, here, with_h[r]);
  }
};

// Sums and dx of `R` groups that begin with `group`, all with one place of scale.
template <class T, class A, int R>
void backward_elements_at(const Call& call, int64_t group, const Work<T>* scale, A* dscale, A* doffset) {
  const Geometry& g = call.geometry;
  Statistic statistic[R];
  Walk::Place at[R];
  Sums sums[R] = {};
  RowsAtOnce<T, A, R> rows;
  for (int r = 0; r < R; ++r) {
    at[r] = place_at(g.outer, group + r);
    statistic[r] = call.statistics[group + r];
    rows.k[r] = Centre<A>(statistic[r]);
    if (call.sums_given) sums[r] = call.sums[group + r];
  }
  const auto piece = [&](int64_t i) {
    const Walk::Place in = place_at(g.pieces, i);
    for (int r = 0; r < R; ++r) {
      rows.x[r] = static_cast<const T*>(call.x) + at[r].x + in.x;
      rows.dy[r] = static_cast<const T*>(call.dy) + at[r].x + in.x;
      rows.dx[r] = call.dx == nullptr ? nullptr : static_cast<T*>(call.dx) + at[r].x + in.x;
    }
    return at[0].affine + in.affine;
  };
  if (!call.sums_given)
    for (int64_t i = 0; i < g.pieces.size; ++i) {
      const int64_t place = piece(i);
      if (dscale != nullptr)
        rows.template sum<true>(scale + place, dscale + place, doffset + place, g.c, sums);
      else
        rows.template sum<false>(scale + place, nullptr, nullptr, g.c, sums);
    }
  if (call.sums != nullptr && !call.sums_given)
    for (int r = 0; r < R; ++r) call.sums[group + r] = sums[r];
  if (call.dx == nullptr) return;
  Projection<A> p[R];
  for (int r = 0; r < R; ++r) p[r] = Projection<A>(call, statistic[r], sums[r]);
  for (int64_t i = 0; i < g.pieces.size; ++i) {
    const int64_t place = piece(i);
    rows.project(scale + place, g.c, p);
  }
}

template <class W>
void pour(W* dscale, W* doffset, Sums* into, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    into[i].with_h += double(dscale[i]);
    into[i].plain += double(doffset[i]);
  }
  memset(static_cast<void*>(dscale), 0, size_t(n) * sizeof(W));
  memset(static_cast<void*>(doffset), 0, size_t(n) * sizeof(W));
}

// Groups are cut into batches by their number alone, so that sums do not depend on the threads.
template <class T>
int backward_elements(const Call& call) {
  const Geometry& g = call.geometry;
  const int64_t n = g.affine_size;
  const bool wants_affine = call.affine_sums != nullptr;
  constexpr int64_t kPour = 64;  // groups whose contributions to dscale are added in the array's own precision
  const int64_t bytes = 2 * g.count * int64_t(sizeof(T));
  const int64_t batch = wants_affine ? most(32, (g.groups + 63) / 64) : grain(bytes);
  const int64_t batches = (g.groups + batch - 1) / batch;
  bool shared = true;  // one place of scale for all groups
  for (int i = 0; i < g.outer.rank; ++i) shared = shared && g.outer.affine[i] == 0;
  Buffer<Sums> partial(wants_affine ? batches * n : 0);
  Buffer<Work<T>> ones(call.scale == nullptr ? n : 0);
  if (partial.failed() || ones.failed()) return ANYNORM_NO_MEMORY;
  if (call.scale == nullptr)
    for (int64_t i = 0; i < n; ++i) ones[i] = 1;
  const Work<T>* scale = call.scale == nullptr ? ones.data : static_cast<const Work<T>*>(call.scale);

  const int failure = each(call, batches, [&](int64_t task) {
    Buffer<Work<T>> own(wants_affine ? 2 * n : 0);
    if (own.failed()) return int(ANYNORM_NO_MEMORY);
    Work<T>*dscale = wants_affine ? own.data : nullptr, *doffset = wants_affine ? own.data + n : nullptr;
    Sums* into = partial.data + task * n;
    if (wants_affine) own.clear(2 * n), memset(static_cast<void*>(into), 0, size_t(n) * sizeof(Sums));
    const int64_t end = least(g.groups, (task + 1) * batch);
    int64_t poured = task * batch;
    for (int64_t i = task * batch; i < end;) {
      const bool two = i + 1 < end && shared && !is_wide<T>(call.statistics[i]) && !is_wide<T>(call.statistics[i + 1]);
      if (two) {
        backward_elements_at<T, Work<T>, 2>(call, i, scale, dscale, doffset);
        i += 2;
      } else if (!is_wide<T>(call.statistics[i])) {
        backward_elements_at<T, Work<T>, 1>(call, i, scale, dscale, doffset);
        ++i;
      } else {
        Buffer<double> wider(wants_affine ? 2 * n : 0);
        if (wider.failed()) return int(ANYNORM_NO_MEMORY);
        wider.clear(wants_affine ? 2 * n : 0);
        backward_elements_at<T, double, 1>(call, i, scale, wider.data, wants_affine ? wider.data + n : nullptr);
        if (wants_affine) pour(wider.data, wider.data + n, into, n);
        ++i;
      }
      if (wants_affine && (i - poured >= kPour || i == end)) {
        pour(dscale, doffset, into, n);
        poured = i;
      }
    }
    return 0;
  });
  if (failure != 0 || !wants_affine) return failure;
  constexpr int64_t kTile = 1024;
  return each(call, (n + kTile - 1) / kTile, [&](int64_t tile) {
    for (int64_t b = 0; b < batches; ++b)
      for (int64_t i = tile * kTile; i < least(n, (tile + 1) * kTile); ++i) {
        call.affine_sums[i].plain += partial[b * n + i].plain;
        call.affine_sums[i].with_h += partial[b * n + i].with_h;
      }
    return 0;
  });
}
