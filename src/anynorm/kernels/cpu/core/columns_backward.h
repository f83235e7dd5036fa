// Columns, backward.

// The six numbers of each column: mean, minus, rest, then factor, slope, level.
template <class A>
struct Lines {
  A* const data;
  const int64_t n;
  A* line(int64_t i) const { return data + i * n; }
  ColumnCentre<A> centre() const { return {line(0), line(1), line(2)}; }
  ColumnProjection<A> projection() const { return {line(3), line(4), line(5)}; }
  Lines from(int64_t i) const { return {data + i, n}; }
};

template <class T, class A>
void make_centres(const Slabs<T>& s, int64_t unit, Lines<A> l) {
  const Statistic* statistics = s.call.statistics + s.place(unit).group + s.first_group(unit);
  s.over_stretches(unit, [&](int64_t first, int64_t length, int64_t group, int64_t) {
    const Centre<A> k(statistics[group]);
    for (int64_t i = first; i < first + length; ++i)
      l.line(0)[i] = k.mean, l.line(1)[i] = k.minus, l.line(2)[i] = k.rest;
  });
  for (int64_t i = 0; i < 3; ++i) s.repeat_columns(l.line(i));
}

// Whether they fit.
template <class T, class A>
bool make_projections(const Slabs<T>& s, int64_t unit, const Sums* sums, Lines<A> l) {
  bool fit = true;
  const Statistic* statistics = s.call.statistics + s.place(unit).group + s.first_group(unit);
  const Work<T>* scale = static_cast<const Work<T>*>(s.call.scale);
  const int64_t step = s.scale_step();
  s.over_stretches(unit, [&](int64_t first, int64_t length, int64_t group, int64_t affine) {
    const Projection<A> p(s.call, statistics[group], sums[group]);
    const double rstd = statistics[group].rstd;
    for (int64_t i = first; i < first + length; ++i, affine += step) {
      l.line(3)[i] = A(scale == nullptr ? rstd : rstd * double(scale[affine]));
      l.line(4)[i] = p.slope, l.line(5)[i] = p.level;
    }
    fit &= p.fits;
  });
  for (int64_t i = 3; i < 6; ++i) s.repeat_columns(l.line(i));
  return fit;
}

// Sums of one block, column by column: 2 * n doubles, overwritten. `scratch` has room for 2 * n numbers.
template <class T, class A>
void sum_block(const Slabs<T>& s, int64_t unit, int64_t j, Lines<A> l, A* scratch, double* out) {
  const int64_t n = s.n(unit);
  const Block<T> b = s.block(unit, j, static_cast<const T*>(s.call.x));
  memset(static_cast<void*>(scratch), 0, size_t(2 * n) * sizeof(A));
  sum_columns<A>(b, static_cast<const T*>(s.call.dy) + (b.x - static_cast<const T*>(s.call.x)), l.centre(), scratch,
                 scratch + n);
  const A *minus = l.line(1), *rest = l.line(2);
  for (int64_t i = 0; i < b.n; ++i) {
    out[i] = double(scratch[i]);
    out[n + i] = scaled_sum(out[i], double(scratch[n + i]), minus[i], rest[i]);
  }
  for (int64_t i = b.n; i < n; ++i) out[i] = out[n + i] = 0;
}

// Columns of which dx is made at once: all that belongs to them stays in the first-level cache while the rows pass.
constexpr int64_t kProjected = 640;

template <class T, class A>
void project_block(const Slabs<T>& s, int64_t unit, int64_t j, Lines<A> l) {
  const Block<T> b = s.block(unit, j, static_cast<const T*>(s.call.x));
  const int64_t at = b.x - static_cast<const T*>(s.call.x);
  const T* const dy = static_cast<const T*>(s.call.dy) + at;
  T* const dx = static_cast<T*>(s.call.dx) + at;
  for (int64_t i = 0; i < b.n; i += kProjected) {
    const Block<T> part = {b.x + i, b.rows, least(kProjected, b.n - i), b.stride, false};
    const Lines<A> own = l.from(i);
    project_columns<A>(part, dy + i, dx + i, own.centre(), own.projection(), s.call.past);
  }
}

// A unit's sums, from columns to groups and, in `affine`, to the slab's columns.
template <class T>
void gather(const Slabs<T>& s, int64_t unit, const double* columns, Sums* groups, Sums* affine) {
  const Work<T>* scale = static_cast<const Work<T>*>(s.call.scale);
  const int64_t n = s.n(unit), width = s.columns(unit);
  for (int64_t k = 0; k < s.groups(unit); ++k) groups[k] = {0, 0};
  const int64_t step = s.scale_step();
  s.over_stretches(unit, [&](int64_t first, int64_t length, int64_t group, int64_t at) {
    const auto term = [&](int64_t i) {
      Pair total = {0, 0};
      for (int64_t j = i; j < n; j += width) total.a += columns[j], total.b += columns[n + j];
      if (affine != nullptr) affine[(unit / s.tiles) * s.width + s.first_column(unit) + i] = {total.a, total.b};
      const double by = scale == nullptr ? 1.0 : double(scale[at + (i - first) * step]);
      return Pair{by * total.a, by * total.b};
    };
    const Pair total = sum_of(first, first + length, term);
    groups[group].plain += total.a;
    groups[group].with_h += total.b;
  });
  if (s.call.sums != nullptr && !s.call.sums_given)
    memcpy(static_cast<void*>(s.call.sums + s.place(unit).group + s.first_group(unit)), groups,
           size_t(s.groups(unit)) * sizeof(Sums));
}

// Call work with lines from which dx can be made: `l`, whose centres are there, or where projections do not fit their
// type new ones in `room`, of 6 * n doubles.
template <class T, class A, class F>
int in_fitting_type(const Slabs<T>& s, int64_t unit, const Sums* sums, Lines<A> l, double* room, const F& work) {
  if (make_projections<T>(s, unit, sums, l)) return work(l);
  const Lines<double> wide = {room, l.n};
  make_centres<T>(s, unit, wide);
  make_projections<T>(s, unit, sums, wide);
  return work(wide);
}

// A whole unit, by one thread. `room` has space for 10 * n doubles.
template <class T, class A>
void backward_unit(const Slabs<T>& s, int64_t unit, double* room, Sums* groups, Sums* affine) {
  const int64_t n = s.n(unit), blocks = s.blocks();
  const Lines<A> l = {reinterpret_cast<A*>(room + 4 * n), n};
  make_centres<T>(s, unit, l);
  const Sums* sums = groups;
  if (s.call.sums_given) {
    sums = s.call.sums + s.place(unit).group + s.first_group(unit);
  } else {
    // The lines of the projection are made later; until then their place serves as scratch.
    double *total = room, *one = room + 2 * n;
    memset(static_cast<void*>(total), 0, size_t(2 * n) * sizeof(double));
    for (int64_t j = 0; j < blocks; ++j) {
      sum_block<T, A>(s, unit, j, l, l.line(3), one);
      for (int64_t i = 0; i < 2 * n; ++i) total[i] += one[i];
    }
    gather(s, unit, total, groups, affine);
  }
  if (s.call.dx == nullptr) return;
  // Backwards: what was read last is still in the cache.
  in_fitting_type<T>(s, unit, sums, l, room + 4 * n, [&](auto fitting) {
    s.backwards(2, [&](int64_t j) { project_block<T>(s, unit, j, fitting); });
    return 0;
  });
}

// Few large units: several threads work on one.
template <class T, class A>
int backward_unit_split(const Slabs<T>& s, int64_t unit, Sums* groups, Sums* affine) {
  const int64_t n = s.n(unit), blocks = s.blocks();
  const int64_t each_task = grain(2 * kRowsSummed * n * int64_t(sizeof(T))), tasks = (blocks + each_task - 1) / each_task;
  Buffer<double> room(6 * n);
  Buffer<double> partial(s.call.sums_given ? 0 : 2 * n * blocks);
  if (room.failed() || partial.failed()) return ANYNORM_NO_MEMORY;
  const Lines<A> l = {reinterpret_cast<A*>(room.data), n};
  make_centres<T>(s, unit, l);
  const Sums* sums = groups;
  if (s.call.sums_given) {
    sums = s.call.sums + s.place(unit).group + s.first_group(unit);
  } else {
    const int failure = each(s.call, tasks, [&](int64_t task) {
      Buffer<A> scratch(2 * n);
      if (scratch.failed()) return int(ANYNORM_NO_MEMORY);
      for (int64_t j = task * each_task; j < least(blocks, (task + 1) * each_task); ++j)
        sum_block<T, A>(s, unit, j, l, scratch.data, partial.data + 2 * n * j);
      return 0;
    });
    if (failure != 0) return failure;
    // From 0 on, as one thread does it.
    for (int64_t i = 0; i < 2 * n; ++i) partial[i] += 0.0;
    for (int64_t j = 1; j < blocks; ++j)
      for (int64_t i = 0; i < 2 * n; ++i) partial[i] += partial[2 * n * j + i];
    gather(s, unit, partial.data, groups, affine);
  }
  if (s.call.dx == nullptr) return 0;
  return in_fitting_type<T>(s, unit, sums, l, room.data, [&](auto fitting) {
    return each(s.call, tasks, [&](int64_t task) {
      for (int64_t j = task * each_task; j < least(blocks, (task + 1) * each_task); ++j)
        project_block<T>(s, unit, j, fitting);
      return 0;
    });
  });
}

template <class T>
int backward_columns(const Call& call) {
  typedef Work<T> W;
  const Slabs<T> s(call);
  const Geometry& g = call.geometry;
  const bool wants_affine = call.affine_sums != nullptr;
  Buffer<Sums> affine(wants_affine ? g.outer.size * s.width : 0);
  if (s.failed() || affine.failed()) return ANYNORM_NO_MEMORY;
  s.number_columns();
  const int64_t most_columns = s.n(0), most_groups = s.groups(0);
  const int64_t bytes = 2 * g.pieces.size * g.rows * s.columns(0) * int64_t(sizeof(T));
  const auto wide = [&](int64_t unit) {
    return any_wide<T>(call.statistics + s.place(unit).group + s.first_group(unit), s.groups(unit));
  };
  int failure = 0;
  if (!s.split(bytes)) {
    const int64_t each_task = grain(bytes);
    failure = each(call, (s.units + each_task - 1) / each_task, [&](int64_t task) {
      Buffer<double> room(10 * most_columns);
      Buffer<Sums> groups(most_groups);
      if (room.failed() || groups.failed()) return int(ANYNORM_NO_MEMORY);
      for (int64_t unit = task * each_task; unit < least(s.units, (task + 1) * each_task); ++unit) {
        if (wide(unit))
          backward_unit<T, double>(s, unit, room.data, groups.data, affine.data);
        else
          backward_unit<T, W>(s, unit, room.data, groups.data, affine.data);
      }
      return 0;
    });
  } else {
    Buffer<Sums> groups(most_groups);
    if (groups.failed()) return ANYNORM_NO_MEMORY;
    for (int64_t unit = 0; unit < s.units && failure == 0; ++unit)
      failure = wide(unit) ? backward_unit_split<T, double>(s, unit, groups.data, affine.data)
                           : backward_unit_split<T, W>(s, unit, groups.data, affine.data);
  }
  if (failure != 0 || !wants_affine) return failure;
  for (int64_t slab = 0; slab < g.outer.size; ++slab) {
    Sums* const into = call.affine_sums + g.outer.at(slab).affine;
    for (int64_t i = 0; i < s.width; ++i) {
      into[s.affine_of[i]].plain += affine[slab * s.width + i].plain;
      into[s.affine_of[i]].with_h += affine[slab * s.width + i].with_h;
    }
  }
  return 0;
}
