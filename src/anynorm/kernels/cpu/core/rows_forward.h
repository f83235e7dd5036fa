// Rows, forward: the whole.

// Without scale and offset, or with one of each alone, all of a piece is one stretch.
inline Call simplified(const Call& call) {
  Call out = call;
  Geometry& g = out.geometry;
  if (call.scale == nullptr && call.offset == nullptr && call.affine_sums == nullptr) g.s *= g.c, g.c = 1;
  return out;
}

template <class T>
int forward_rows(const Call& given) {
  const Call call = simplified(given);
  const Geometry& g = call.geometry;
  const Blocks b(g);
  const int64_t bytes = g.count * int64_t(sizeof(T)), length = b.length;
  const T* x = static_cast<const T*>(call.x);
  if (!(call.threads > 1 && g.groups < 2 * call.threads && bytes > 4 * kGrain)) {
    const Neighbours together = Neighbours::of<T>(call);
    const bool is_short = !call.given && g.pieces.size == 1 && bytes <= kShortRow;
    const int64_t at_once = is_short ? short_rows_of(bytes) : 1;
    const bool overlapped = is_short && are_overlapped<T>(call);
    // At either end of a task nothing overlaps: then larger ones, if enough of them are left for all threads.
    const int64_t longer = overlapped ? most(1, least(8, g.groups / grain(bytes) / call.threads / 4)) : 1;
    const int64_t each_task = (together.whole(longer * grain(bytes)) + at_once - 1) / at_once * at_once;
    return each(call, (g.groups + each_task - 1) / each_task, [&](int64_t task) {
      const int64_t end = least(g.groups, (task + 1) * each_task);
      int64_t i = task * each_task;
      if (overlapped) {
        call.removes_mean ? overlapped_rows<T, true>(call, b, i, end) : overlapped_rows<T, false>(call, b, i, end);
        return 0;
      }
      if (is_short) {
        for (; i < end; i += at_once) short_rows<T>(call, b, i, least(at_once, end - i));
        return 0;
      }
      for (int64_t many; i < end; i += many) {
        many = together.from(i, end);
        Statistic found[kTogether];
        if (!call.given) {
          const T* const group = x + g.outer.at(i).x;
          Moments m[kTogether];
          for (int64_t k = 0; k < many; ++k) m[k] = {};
          for (int64_t j = 0; j < b.number; ++j) block_moments<Work<T>, false>(call, b, group, many, j, 1, m);
          for (int64_t k = 0; k < many; ++k) {
            const Finished f = row_statistic(call, b, group + k * length, m[k]);
            put<Work<T>>(call, i + k, f);
            found[k] = f.statistic;
          }
        }
        if (call.y != nullptr) apply_neighbours<T>(call, i, many, call.given ? call.statistics + i : found);
      }
      return 0;
    });
  }
  // Few large groups: several threads work on one.
  Buffer<Statistic> statistics(g.groups);
  Buffer<Moments> partial(call.given ? 0 : g.groups * b.number);
  if (statistics.failed() || partial.failed()) return ANYNORM_NO_MEMORY;
  if (call.given) {
    memcpy(static_cast<void*>(statistics.data), call.statistics, size_t(g.groups) * sizeof(Statistic));
  } else {
    const int64_t each_task = grain(kBlock * int64_t(sizeof(T))), tasks = (b.number + each_task - 1) / each_task;
    each(call, g.groups * tasks, [&](int64_t task) {
      const int64_t i = task / tasks, from = task % tasks * each_task;
      for (int64_t j = from; j < least(b.number, from + each_task); ++j) {
        Moments& m = partial[i * b.number + j];
        m = Moments{};
        block_moments<Work<T>, false>(call, b, x + g.outer.at(i).x, 1, j, 1, &m);
      }
      return 0;
    });
    each(call, g.groups, [&](int64_t i) {
      Moments m = {};
      for (int64_t j = 0; j < b.number; ++j) {
        const Moments& part = partial[i * b.number + j];
        m.merge(part.count, part.mean, part.m2);
        m.bad = m.bad || part.bad;
      }
      const Finished f = row_statistic(call, b, x + g.outer.at(i).x, m);
      put<Work<T>>(call, i, f);
      statistics[i] = f.statistic;
      return 0;
    });
  }
  if (call.y == nullptr) return 0;
  const int64_t cut = most(length < 2 * kBlock ? length : 4 * kBlock, 1), cuts = (length + cut - 1) / cut;
  const int64_t all = g.pieces.size * cuts, each_task = grain(least(cut, length) * int64_t(sizeof(T)));
  const int64_t tasks = (all + each_task - 1) / each_task;
  return each(call, g.groups * tasks, [&](int64_t task) {
    const int64_t i = task / tasks, from = task % tasks * each_task;
    const Walk::Place at = g.outer.at(i);
    for (int64_t j = from; j < least(all, from + each_task); ++j) {
      const int64_t begin = j % cuts * cut;
      apply_group<T>(call, at, statistics[i], j / cuts, j / cuts + 1, begin, least(length, begin + cut));
    }
    return 0;
  });
}
