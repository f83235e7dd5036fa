// Columns, forward.

// y of some blocks of a unit, with statistics and coefficients that are at hand.
template <class T, class A>
void make_lines(const Slabs<T>& s, int64_t unit, const Statistic* statistics, A* lines) {
  const int64_t n = s.n(unit);
  const Work<T>* scale = static_cast<const Work<T>*>(s.call.scale);
  const Work<T>* offset = static_cast<const Work<T>*>(s.call.offset);
  const int64_t step = s.scale_step();
  s.over_stretches(unit, [&](int64_t first, int64_t length, int64_t group, int64_t affine) {
    const Centre<A> k(statistics[group]);
    A *mean = lines + first, *factor = mean + n, *summand = factor + n;
    for (int64_t i = 0; i < length; ++i, affine += step) {
      const A by = scale == nullptr ? A(1) : A(scale[affine]);
      mean[i] = k.mean;
      factor[i] = k.minus * by;
      summand[i] = k.rest * by + (offset == nullptr ? A(0) : A(offset[affine]));
    }
  });
  for (int64_t i = 0; i < 3; ++i) s.repeat_columns(lines + i * n);
}

template <class T, class A>
void apply_block(const Slabs<T>& s, int64_t unit, int64_t j, const A* lines) {
  const int64_t n = s.n(unit);
  const Block<T> b = s.block(unit, j, static_cast<const T*>(s.call.x));
  apply_columns<A>(b, static_cast<T*>(s.call.y) + (b.x - static_cast<const T*>(s.call.x)),
                   ColumnLine<A>{lines, lines + n, lines + 2 * n}, s.call.past);
}

template <class T>
int forward_columns(const Call& call) {
  typedef Work<T> W;
  const Slabs<T> s(call);
  if (s.failed()) return ANYNORM_NO_MEMORY;
  s.number_columns();
  const int64_t most_columns = s.n(0), most_groups = s.groups(0), blocks = s.blocks();
  const int64_t bytes = call.geometry.pieces.size * call.geometry.rows * s.columns(0) * int64_t(sizeof(T));
  const auto given = [&](int64_t unit) { return call.statistics + s.place(unit).group + s.first_group(unit); };
  if (!s.split(bytes)) {
    const int64_t each_task = grain(bytes);
    return each(call, (s.units + each_task - 1) / each_task, [&](int64_t task) {
      Buffer<double> room(4 * most_columns), lines(3 * most_columns);
      Buffer<Statistic> found(most_groups);
      if (room.failed() || lines.failed() || found.failed()) return int(ANYNORM_NO_MEMORY);
      for (int64_t unit = task * each_task; unit < least(s.units, (task + 1) * each_task); ++unit) {
        const int64_t n = s.n(unit);
        const Statistic* statistics = found.data;
        if (call.given) {
          statistics = given(unit);
        } else {
          double *mean = room.data, *m2 = mean + n;
          s.template all_moments<W, false>(unit, 1, reinterpret_cast<W*>(lines.data), mean, m2, m2 + n);
          if (const int failure = s.settle(unit, mean, m2, found.data)) return failure;
        }
        if (call.y == nullptr) continue;
        // Backwards: what was read last is still in the cache.
        if (any_wide<T>(statistics, s.groups(unit))) {
          make_lines<T, double>(s, unit, statistics, lines.data);
          s.backwards(1, [&](int64_t j) { apply_block<T, double>(s, unit, j, lines.data); });
        } else {
          W* own = reinterpret_cast<W*>(lines.data);
          make_lines<T, W>(s, unit, statistics, own);
          s.backwards(1, [&](int64_t j) { apply_block<T, W>(s, unit, j, own); });
        }
      }
      return 0;
    });
  }
  // Few large units: several threads work on one.
  Buffer<double> partial(call.given ? 0 : 2 * most_columns * s.units * blocks), lines(3 * most_columns * s.units);
  Buffer<Statistic> found(most_groups * s.units);
  Buffer<int> wide(s.units);
  if (partial.failed() || lines.failed() || found.failed() || wide.failed()) return ANYNORM_NO_MEMORY;
  const int64_t each_task = grain(kRowsSummed * most_columns * int64_t(sizeof(T)));
  const int64_t tasks = (blocks + each_task - 1) / each_task;
  const auto over_blocks = [&](auto work) {
    return each(call, s.units * tasks, [&](int64_t task) {
      const int64_t unit = task / tasks, from = task % tasks * each_task;
      return work(unit, from, least(blocks, from + each_task));
    });
  };
  int failure = 0;
  if (!call.given)
    failure = over_blocks([&](int64_t unit, int64_t from, int64_t to) {
      const int64_t n = s.n(unit);
      Buffer<W> scratch(3 * n);
      if (scratch.failed()) return int(ANYNORM_NO_MEMORY);
      for (int64_t j = from; j < to; ++j) {
        double* mean = partial.data + 2 * most_columns * (unit * blocks + j);
        s.template moments<W, false>(unit, j, 1, scratch.data, mean, mean + n);
      }
      return 0;
    });
  if (failure != 0) return failure;
  failure = each(call, s.units, [&](int64_t unit) {
    const int64_t n = s.n(unit);
    Statistic* statistics = found.data + unit * most_groups;
    if (call.given) {
      memcpy(static_cast<void*>(statistics), given(unit), size_t(s.groups(unit)) * sizeof(Statistic));
    } else {
      double* mean = partial.data + 2 * most_columns * unit * blocks;
      for (int64_t j = 1; j < blocks; ++j) {
        const double* other = mean + 2 * most_columns * j;
        s.merge(unit, j, mean, mean + n, other, other + n);
      }
      if (const int failed = s.settle(unit, mean, mean + n, statistics)) return failed;
    }
    double* own = lines.data + 3 * most_columns * unit;
    wide[unit] = any_wide<T>(statistics, s.groups(unit));
    if (call.y != nullptr && wide[unit]) make_lines<T, double>(s, unit, statistics, own);
    if (call.y != nullptr && !wide[unit]) make_lines<T, W>(s, unit, statistics, reinterpret_cast<W*>(own));
    return 0;
  });
  if (failure != 0 || call.y == nullptr) return failure;
  return over_blocks([&](int64_t unit, int64_t from, int64_t to) {
    const double* own = lines.data + 3 * most_columns * unit;
    for (int64_t j = from; j < to; ++j) {
      if (wide[unit])
        apply_block<T, double>(s, unit, j, own);
      else
        apply_block<T, W>(s, unit, j, reinterpret_cast<const W*>(own));
    }
    return 0;
  });
}
