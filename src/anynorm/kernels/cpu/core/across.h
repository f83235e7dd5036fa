// Across: as columns, but each row has a scale of its own and every column is a group.

// Columns that are taken together, so that a tile of all rows stays in the second-level cache.
template <class T>
int64_t tile_across(const Geometry& g) {
  constexpr int64_t kTile = 256 * 1024, kLeast = 64, kMost = 2048;
  const int64_t fit = kTile / most(1, g.rows * int64_t(sizeof(T)));
  const int64_t tile = fit < kLeast ? kLeast : fit > kMost ? kMost : fit;
  const int64_t tiles = (g.columns.size + tile - 1) / tile, even = (g.columns.size + tiles - 1) / tiles;
  return (even + 15) / 16 * 16;
}

template <class A, class T>
void apply_row_across(const T* x, T* y, int64_t n, ColumnCentre<A> c, A scale, A offset) {
  constexpr int64_t L = kLanes<A>;
  const Vec<A> by = broadcast(scale), more = broadcast(offset);
  int64_t i = 0;
  for (; i + L <= n; i += L) {
    const Vec<A> h = (load<A>(x + i) - load<A>(c.mean + i)) * load<A>(c.rstd + i) + load<A>(c.rest + i);
    store<A>(y + i, Vec<A>(h * by + more));
  }
  if (i == n) return;
  const int64_t m = n - i;
  const Vec<A> zero = {}, mean = load_part<A>(c.mean + i, m, zero);
  const Vec<A> h = (load_part<A>(x + i, m, zero) - mean) * load_part<A>(c.rstd + i, m, zero) +
                   load_part<A>(c.rest + i, m, zero);
  store_part<A>(y + i, m, Vec<A>(h * by + more));
}

// Of one row: to each column's sums g and g * h, and the row's own sums of dy and dy * h.
template <class A, class T>
Sums sum_row_across(const T* x, const T* dy, int64_t n, ColumnCentre<A> c, A scale, A* plain, A* with_h) {
  constexpr int64_t L = kLanes<A>;
  const Vec<A> by = broadcast(scale), zero = {};
  Vec<A> row_plain = {}, row_with_h = {};
  for (int64_t i = 0; i < n; i += L) {
    const int64_t m = least(L, n - i);
    const bool all = m == L;
    const auto of = [&](const A* column) { return all ? load<A>(column + i) : load_part<A>(column + i, m, zero); };
    const Vec<A> g = all ? load<A>(dy + i) : load_part<A>(dy + i, m, zero);
    const Vec<A> v = all ? load<A>(x + i) : load_part<A>(x + i, m, zero);
    const Vec<A> g_h = g * ((v - of(c.mean)) * of(c.rstd) + of(c.rest));
    row_plain += g;
    row_with_h += g_h;
    const Vec<A> p = of(plain) + g * by, q = of(with_h) + g_h * by;
    if (all)
      store<A>(plain + i, p), store<A>(with_h + i, q);
    else
      store_part<A>(plain + i, m, p), store_part<A>(with_h + i, m, q);
  }
  return {double(sum_lanes(row_plain)), double(sum_lanes(row_with_h))};
}

// dx = rstd * (dy * scale) + h * slope + level
template <class A, class T>
void project_row_across(const T* x, const T* dy, T* dx, int64_t n, ColumnCentre<A> c, ColumnProjection<A> p, A scale) {
  constexpr int64_t L = kLanes<A>;
  const Vec<A> by = broadcast(scale), zero = {};
  for (int64_t i = 0; i < n; i += L) {
    const int64_t m = least(L, n - i);
    const bool all = m == L;
    const auto of = [&](const A* column) { return all ? load<A>(column + i) : load_part<A>(column + i, m, zero); };
    const Vec<A> g = all ? load<A>(dy + i) : load_part<A>(dy + i, m, zero);
    const Vec<A> v = all ? load<A>(x + i) : load_part<A>(x + i, m, zero), rstd = of(c.rstd);
    const Vec<A> h = (v - of(c.mean)) * rstd + of(c.rest);
    const Vec<A> out = g * (rstd * by) + (h * of(p.slope) + of(p.level));
    if (all)
      store<A>(dx + i, out);
    else
      store_part<A>(dx + i, m, out);
  }
}

template <class T>
struct Across {
  typedef Work<T> W;
  const Call& call;
  const Geometry& g;
  int64_t tile, tiles, units;

  explicit Across(const Call& c) : call(c), g(c.geometry), tile(tile_across<T>(g)) {
    tiles = (g.columns.size + tile - 1) / tile;
    units = g.outer.size * tiles;
  }
  int64_t n(int64_t unit) const { return least(tile, g.columns.size - unit % tiles * tile); }
  int64_t at(int64_t unit) const { return g.outer.at(unit / tiles).x + unit % tiles * tile; }
  int64_t group(int64_t unit) const { return g.outer.at(unit / tiles).group + unit % tiles * tile; }
  double scale(int64_t row) const { return call.scale == nullptr ? 1.0 : double(static_cast<const W*>(call.scale)[row]); }
  double offset(int64_t row) const {
    return call.offset == nullptr ? 0.0 : double(static_cast<const W*>(call.offset)[row]);
  }
  bool any_wide(const Statistic* s, int64_t n) const {
    for (int64_t i = 0; i < n; ++i)
      if (is_wide<T>(s[i])) return true;
    return false;
  }

  template <class A, bool Scaled>
  bool moments(int64_t unit, double factor, A* scratch, double* mean, double* m2, double* other) const {
    bool far = false;
    for (int64_t row = 0; row < g.rows; row += kRowsSummed) {
      const T* x = static_cast<const T*>(call.x) + at(unit) + row * g.columns.size;
      const Block<T> b = {x, least(kRowsSummed, g.rows - row), n(unit), g.columns.size};
      double *into_mean = row == 0 ? mean : other, *into_m2 = row == 0 ? m2 : other + b.n;
      far |= call.removes_mean ? block_columns<A, true, Scaled>(b, factor, scratch, into_mean, into_m2)
                               : block_columns<A, false, Scaled>(b, factor, scratch, into_mean, into_m2);
      if (row > 0) merge_columns(double(row), double(b.rows), b.n, mean, m2, into_mean, into_m2);
    }
    return far;
  }

  // `room`: 7 * n doubles.
  int statistics(int64_t unit, double* room, Statistic* out) const {
    const int64_t columns = n(unit);
    double *mean = room, *m2 = room + columns;
    const bool far = moments<W, false>(unit, 1, reinterpret_cast<W*>(room + 4 * columns), mean, m2, room + 2 * columns);
    double done = 0;
    int failure = 0;
    double* again = nullptr;
    for (int64_t i = 0; i < columns; ++i) {
      const Moments quick = {double(g.rows), mean[i], m2[i], far};
      const Finished f = settled<T>(call, quick, [&](double factor) {
        if (factor != done) {
          if (again == nullptr) again = static_cast<double*>(malloc(size_t(7 * columns) * sizeof(double)));
          if (again == nullptr) {
            failure = ANYNORM_NO_MEMORY;
            return quick;
          }
          moments<double, true>(unit, factor, again + 4 * columns, again, again + columns, again + 2 * columns);
          done = factor;
        }
        return Moments{double(g.rows), again[i], again[columns + i], false};
      });
      put<W>(call, group(unit) + i, f);
      out[i] = f.statistic;
    }
    free(again);
    return failure;
  }

  template <class A>
  void centre(const Statistic* s, Lines<A> l) const {
    for (int64_t i = 0; i < l.n; ++i) {
      const Centre<A> k(s[i]);
      l.line(0)[i] = k.mean, l.line(1)[i] = k.rstd, l.line(2)[i] = k.rest;
    }
  }

  template <class A>
  void apply(int64_t unit, const Statistic* s, double* room) const {
    const Lines<A> l = {reinterpret_cast<A*>(room), n(unit)};
    centre(s, l);
    for (int64_t row = 0; row < g.rows; ++row) {
      const int64_t place = at(unit) + row * g.columns.size;
      apply_row_across<A>(static_cast<const T*>(call.x) + place, static_cast<T*>(call.y) + place, l.n, l.centre(),
                          A(scale(row)), A(offset(row)));
    }
  }

  // `room`: 10 * n doubles; affine: room for the rows' sums, or NULL.
  template <class A>
  void backward(int64_t unit, double* room, Sums* affine) const {
    const Statistic* s = call.statistics + group(unit);
    const Lines<A> l = {reinterpret_cast<A*>(room + 4 * n(unit)), n(unit)};
    centre(s, l);
    const T *x = static_cast<const T*>(call.x) + at(unit), *dy = static_cast<const T*>(call.dy) + at(unit);
    const int64_t stride = g.columns.size;
    double *plain = room, *with_h = room + l.n;
    if (call.sums_given) {
      for (int64_t i = 0; i < l.n; ++i)
        plain[i] = call.sums[group(unit) + i].plain, with_h[i] = call.sums[group(unit) + i].with_h;
    } else {
      memset(static_cast<void*>(room), 0, size_t(2 * l.n) * sizeof(double));
      A *some_plain = l.line(3), *some_with_h = l.line(4);
      for (int64_t from = 0; from < g.rows; from += kRowsSummed) {
        memset(static_cast<void*>(some_plain), 0, size_t(2 * l.n) * sizeof(A));
        for (int64_t row = from; row < least(g.rows, from + kRowsSummed); ++row) {
          const Sums of_row = sum_row_across<A>(x + row * stride, dy + row * stride, l.n, l.centre(), A(scale(row)),
                                                some_plain, some_with_h);
          if (affine != nullptr) affine[row] = of_row;
        }
        for (int64_t i = 0; i < l.n; ++i) plain[i] += double(some_plain[i]), with_h[i] += double(some_with_h[i]);
      }
      if (call.sums != nullptr)
        for (int64_t i = 0; i < l.n; ++i) call.sums[group(unit) + i] = {plain[i], with_h[i]};
    }
    if (call.dx == nullptr) return;
    for (int64_t i = 0; i < l.n; ++i) {
      const Projection<A> p(call, s[i], Sums{plain[i], with_h[i]});
      l.line(4)[i] = p.slope, l.line(5)[i] = p.level;
    }
    T* dx = static_cast<T*>(call.dx) + at(unit);
    for (int64_t row = 0; row < g.rows; ++row)
      project_row_across<A>(x + row * stride, dy + row * stride, dx + row * stride, l.n, l.centre(), l.projection(),
                            A(scale(row)));
  }
};

template <class T>
int forward_across(const Call& call) {
  const Across<T> a(call);
  const int64_t each_task = grain(call.geometry.rows * a.tile * int64_t(sizeof(T)));
  return each(call, (a.units + each_task - 1) / each_task, [&](int64_t task) {
    Buffer<double> room(7 * a.tile);
    Buffer<Statistic> found(a.tile);
    if (room.failed() || found.failed()) return int(ANYNORM_NO_MEMORY);
    for (int64_t unit = task * each_task; unit < least(a.units, (task + 1) * each_task); ++unit) {
      const Statistic* s = found.data;
      if (call.given)
        s = call.statistics + a.group(unit);
      else if (const int failure = a.statistics(unit, room.data, found.data))
        return failure;
      if (call.y == nullptr) continue;
      if (a.any_wide(s, a.n(unit)))
        a.template apply<double>(unit, s, room.data);
      else
        a.template apply<Work<T>>(unit, s, room.data);
    }
    return 0;
  });
}

template <class T>
int backward_across(const Call& call) {
  const Across<T> a(call);
  const Geometry& g = call.geometry;
  const bool wants_affine = call.affine_sums != nullptr;
  Buffer<Sums> affine(wants_affine ? a.units * g.rows : 0);
  if (affine.failed()) return ANYNORM_NO_MEMORY;
  const int64_t each_task = grain(2 * g.rows * a.tile * int64_t(sizeof(T)));
  const int failure = each(call, (a.units + each_task - 1) / each_task, [&](int64_t task) {
    Buffer<double> room(10 * a.tile);
    if (room.failed()) return int(ANYNORM_NO_MEMORY);
    for (int64_t unit = task * each_task; unit < least(a.units, (task + 1) * each_task); ++unit) {
      Sums* rows = wants_affine ? affine.data + unit * g.rows : nullptr;
      if (a.any_wide(call.statistics + a.group(unit), a.n(unit)))
        a.template backward<double>(unit, room.data, rows);
      else
        a.template backward<Work<T>>(unit, room.data, rows);
    }
    return 0;
  });
  if (failure != 0 || !wants_affine) return failure;
  for (int64_t unit = 0; unit < a.units; ++unit)
    for (int64_t row = 0; row < g.rows; ++row) {
      call.affine_sums[row].plain += affine[unit * g.rows + row].plain;
      call.affine_sums[row].with_h += affine[unit * g.rows + row].with_h;
    }
  return 0;
}
