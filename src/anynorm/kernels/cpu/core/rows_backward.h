// Rows, backward: first the sums of each group, which are also those of scale and offset, then dx.

// One group: its statistic, and where its elements and its scales begin.
template <class T>
struct Stretches {
  const Call& call;
  const Strips& strips;
  const Statistic& statistic;
  const Walk::Place at;
  Stretches(const Call& call, const Strips& strips, int64_t group)
      : call(call), strips(strips), statistic(call.statistics[group]), at(place_at(call.geometry.outer, group)) {}

  double scale(const Strip& strip) const {
    return call.scale == nullptr ? 1.0 : double(static_cast<const Work<T>*>(call.scale)[at.affine + strip.affine]);
  }

  template <class A, class F>
  void sum_in(int64_t from, int64_t to, const F& into) const {
    const T *x = static_cast<const T*>(call.x) + at.x, *dy = static_cast<const T*>(call.dy) + at.x;
    const Centre<A> centre(statistic);
    if (strips.template are_taken_at_once<T>()) {
      return strips.over_neighbours(from, to, [&](int64_t i, const Strip& first, int64_t many) {
        const int64_t n = first.length;
        const auto some = [&](int64_t j, auto at_once) {
          constexpr int R = decltype(at_once)::value;
          Sums sums[R];
          short_strip_sums<A, R, false>(x + first.x + j * n, dy + first.x + j * n, n, 0,
                                 [&](int) -> const Centre<A>& { return centre; }, sums);
          for (int64_t r = 0; r < R; ++r)
            into(i + j + r, Strip{first.x + (j + r) * n, first.affine + j + r, first.place + j + r, n}, sums[r]);
        };
        int64_t j = 0;
        for (; j + 4 <= many; j += 4) some(j, AtOnce<4>());
        for (; j < many; ++j) some(j, AtOnce<1>());
      });
    }
    const auto sum = [&](auto ahead) {
      strips.over(from, to, [&](int64_t i, const Strip& s) {
        const int64_t next = strips.next(s);
        into(i, s, strip_sums<A, decltype(ahead)::value>(x + s.x, dy + s.x, s.length, next, centre));
      });
    };
    call.far ? sum(Given<true>()) : sum(Given<false>());
  }
  // into(i, strip, its sums) for the strips [from, to).
  template <class F>
  void sum(int64_t from, int64_t to, const F& into) const {
    if (is_wide<T>(statistic))
      sum_in<double>(from, to, into);
    else
      sum_in<Work<T>>(from, to, into);
  }

  template <class A>
  void project_in(int64_t from, int64_t to, const Projection<A>& p) const {
    const T *x = static_cast<const T*>(call.x) + at.x, *dy = static_cast<const T*>(call.dy) + at.x;
    T* dx = static_cast<T*>(call.dx) + at.x;
    const Projected<A> projected(statistic, p);
    if (strips.template are_short<T>()) {
      return strips.over_neighbours(from, to, [&](int64_t, const Strip& first, int64_t many) {
        // By a name of its own: what is reached through `this` is read anew after each store.
        const int64_t n = first.length;
        const double rstd = statistic.rstd;
        const Work<T>* by = static_cast<const Work<T>*>(call.scale);
        if (by != nullptr) by += at.affine + first.affine;
        for (int64_t j = 0, i = first.x; j < many; ++j, i += n)
          project_stretch<A>(x + i, dy + i, dx + i, n, A(by == nullptr ? rstd : rstd * double(by[j])), projected, false);
      });
    }
    strips.over(from, to, [&](int64_t, const Strip& strip) {
      project_stretch<A>(x + strip.x, dy + strip.x, dx + strip.x, strip.length, A(statistic.rstd * scale(strip)),
                         projected, call.past);
    });
  }
  void project(int64_t from, int64_t to, const Sums& sums) const {
    const Projection<Work<T>> p(call, statistic, sums);
    if (is_wide<T>(statistic) || !p.fits)
      project_in(from, to, Projection<double>(call, statistic, sums));
    else
      project_in(from, to, p);
  }
};

// The sums of one strip, whose scale is `by`, to those of its group and, unless that is NULL, to those of its scale.
inline void collect(const Sums& sums, double by, Sums* group, Sums* scale) {
  group->plain += by * sums.plain;
  group->with_h += by * sums.with_h;
  if (scale == nullptr) return;
  scale->plain += sums.plain;
  scale->with_h += sums.with_h;
}

// `many` neighbouring groups, none of them wide, from `group` on: their sums and dx, as of `Stretches` one by one.
template <class T>
void backward_neighbours(const Call& call, const Strips& strips, int64_t group, int64_t many, Sums* totals, Sums* affine) {
  typedef Work<T> W;
  const Geometry& g = call.geometry;
  const Walk::Place at = g.outer.at(group);
  const int64_t n = g.s, step = g.outer.affine[g.outer.rank - 1];
  const Statistic* const statistics = call.statistics + group;
  Centre<W> centre[kTogether];
  double scale[kTogether];
  for (int64_t k = 0; k < many; ++k) {
    centre[k] = Centre<W>(statistics[k]);
    scale[k] = call.scale == nullptr ? 1.0 : double(static_cast<const W*>(call.scale)[at.affine + k * step]);
  }
  const auto over_pieces = [&](const auto& work) {
    for (int64_t p = 0; p < g.pieces.size; ++p) {
      const int64_t first = at.x + place_at(g.pieces, p).x;
      work(static_cast<const T*>(call.x) + first, static_cast<const T*>(call.dy) + first, first);
    }
  };
  if (!call.sums_given) {
    const auto take = [&](int64_t k, const Sums& sums) {
      collect(sums, scale[k], totals + k, affine == nullptr ? nullptr : affine + k);
    };
    const bool are_short = strips.template are_short<T>();
    const int64_t next = strips.next(Strip{0, 0, 0, n});
    const auto sum = [&](const T* x, const T* dy, int64_t k, auto at_once) {
      constexpr int R = decltype(at_once)::value;
      Sums sums[R];
      const auto own = [&](int r) -> const Centre<W>& { return centre[k + r]; };
      if (call.far)
        short_strip_sums<W, R, true>(x + k * n, dy + k * n, n, next, own, sums);
      else
        short_strip_sums<W, R, false>(x + k * n, dy + k * n, n, next, own, sums);
      for (int r = 0; r < R; ++r) take(k + r, sums[r]);
    };
    over_pieces([&](const T* x, const T* dy, int64_t) {
      int64_t k = 0;
      for (; are_short && k + 4 <= many; k += 4) sum(x, dy, k, AtOnce<4>());
      for (; are_short && k < many; ++k) sum(x, dy, k, AtOnce<1>());
      for (; k < many; ++k)
        take(k, call.far ? strip_sums<W, true>(x + k * n, dy + k * n, n, next, centre[k])
                         : strip_sums<W, false>(x + k * n, dy + k * n, n, next, centre[k]));
    });
  }
  if (call.dx == nullptr) return;
  bool fit = true;
  Projected<W> projected[kTogether];
  for (int64_t k = 0; k < many; ++k) {
    const Projection<W> p(call, statistics[k], totals[k]);
    projected[k] = Projected<W>(statistics[k], p), fit &= p.fits;
  }
  if (!fit) {
    for (int64_t k = 0; k < many; ++k) Stretches<T>(call, strips, group + k).project(0, strips.number, totals[k]);
    return;
  }
  W by[kTogether];
  for (int64_t k = 0; k < many; ++k) by[k] = W(statistics[k].rstd * scale[k]);
  const bool past = call.past && !strips.template are_short<T>();
  over_pieces([&](const T* x, const T* dy, int64_t first) {
    T* const dx = static_cast<T*>(call.dx) + first;
    for (int64_t k = 0; k < many; ++k)
      project_stretch<W>(x + k * n, dy + k * n, dx + k * n, n, by[k], projected[k], past);
  });
}

// One scale for many contiguous elements.
template <class T>
int backward_stretches(const Call& call) {
  const Geometry& g = call.geometry;
  const Strips strips(g);
  const int64_t places = strips.places;
  const bool wants_affine = call.affine_sums != nullptr;
  const int64_t bytes = 2 * g.count * int64_t(sizeof(T));
  const bool split = call.threads > 1 && g.groups < 2 * call.threads && bytes > 8 * kGrain;
  Buffer<Sums> affine(wants_affine ? g.groups * places : 0), totals(g.groups), each_strip(split ? g.groups * strips.number : 0);
  if (affine.failed() || totals.failed() || each_strip.failed()) return ANYNORM_NO_MEMORY;
  if (wants_affine) affine.clear(g.groups * places);
  if (call.sums_given)
    memcpy(static_cast<void*>(totals.data), call.sums, size_t(g.groups) * sizeof(Sums));
  else
    totals.clear(g.groups);

  // Strip by strip in their order, whoever summed them.
  const auto collector = [&](int64_t group, const Stretches<T>& s, Sums* total) {
    Sums* const own = wants_affine ? affine.data + group * places : nullptr;
    return [=, &s](int64_t, const Strip& strip, const Sums& sums) {
      collect(sums, s.scale(strip), total, own == nullptr ? nullptr : own + strip.place);
    };
  };

  if (!split) {
    const Neighbours together = Neighbours::of<T>(call);
    const int64_t each_task = together.whole(grain(bytes));
    each(call, (g.groups + each_task - 1) / each_task, [&](int64_t task) {
      const int64_t end = least(g.groups, (task + 1) * each_task);
      for (int64_t i = task * each_task, many; i < end; i += many) {
        many = together.from(i, end);
        if (many > 1 && !any_wide<T>(call.statistics + i, many)) {
          backward_neighbours<T>(call, strips, i, many, totals.data + i, wants_affine ? affine.data + i : nullptr);
          continue;
        }
        many = 1;
        const Stretches<T> s(call, strips, i);
        Sums total = totals[i];
        if (!call.sums_given) s.sum(0, strips.number, collector(i, s, &total));
        if (call.dx != nullptr) s.project(0, strips.number, total);
        totals[i] = total;
      }
      return 0;
    });
  } else {
    const int64_t each_task = grain(2 * least(kStrip, g.s) * int64_t(sizeof(T)));
    const int64_t tasks = (strips.number + each_task - 1) / each_task;
    const auto over_tasks = [&](auto work) {
      each(call, g.groups * tasks, [&](int64_t task) {
        const int64_t i = task / tasks, from = task % tasks * each_task;
        work(i, Stretches<T>(call, strips, i), from, least(strips.number, from + each_task));
        return 0;
      });
    };
    if (!call.sums_given) {
      over_tasks([&](int64_t i, const Stretches<T>& s, int64_t from, int64_t to) {
        s.sum(from, to, [&](int64_t j, const Strip&, const Sums& sums) { each_strip[i * strips.number + j] = sums; });
      });
      for (int64_t i = 0; i < g.groups; ++i) {
        const Stretches<T> s(call, strips, i);
        const auto collect = collector(i, s, &totals[i]);
        strips.over(0, strips.number, [&](int64_t j, const Strip& strip) {
          collect(j, strip, each_strip[i * strips.number + j]);
        });
      }
    }
    if (call.dx != nullptr)
      over_tasks([&](int64_t i, const Stretches<T>& s, int64_t from, int64_t to) { s.project(from, to, totals[i]); });
  }
  if (call.sums != nullptr && !call.sums_given)
    memcpy(static_cast<void*>(call.sums), totals.data, size_t(g.groups) * sizeof(Sums));
  if (wants_affine)
    for (int64_t i = 0; i < g.groups; ++i) {
      const int64_t at = place_at(g.outer, i).affine;
      for (int64_t j = 0; j < places; ++j) {
        const int64_t piece = g.pieces_affine ? g.pieces.at(j / g.c).affine + j % g.c : j;
        call.affine_sums[at + piece].plain += affine[i * places + j].plain;
        call.affine_sums[at + piece].with_h += affine[i * places + j].with_h;
      }
    }
  return 0;
}
