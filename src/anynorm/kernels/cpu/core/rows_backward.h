// Rows, backward: first the sums of each group, which are also those of scale and offset, then dx.

// Elements of a strip, the unit in which sums over one channel's elements are taken.
constexpr int64_t kStrip = 8192;

// Four accumulators of dy and of dy * h. Ahead: what lies `next` elements further on is fetched.
template <class A, bool Ahead, class T>
inline Sums strip_sums(const T* x, const T* dy, int64_t n, int64_t next, Centre<A> centre) {
  constexpr int64_t L = kLanes<A>;
  const Centred<A> k(centre);
  Vec<A> plain[4] = {}, with_h[4] = {};
  const auto add = [&](int64_t j, Vec<A> v, Vec<A> g) {
    plain[j] += g;
    with_h[j] = fma(g, k.unscaled_h(v), with_h[j]);
  };
  int64_t i = 0;
  for (; i + 4 * L <= n; i += 4 * L)
    for (int64_t j = 0; j < 4; ++j) {
      if (Ahead) fetch(x + next + i + j * L), fetch(dy + next + i + j * L);
      add(j, load<A>(x + i + j * L), load<A>(dy + i + j * L));
    }
  for (; i + L <= n; i += L) add(0, load<A>(x + i), load<A>(dy + i));
  if (i < n) add(1, load_part<A>(x + i, n - i, k.mean), load_part<A>(dy + i, n - i, Vec<A>{}));
  const double all = sum_lanes(Vec<A>((plain[0] + plain[1]) + (plain[2] + plain[3])));
  const double all_with_h = sum_lanes(Vec<A>((with_h[0] + with_h[1]) + (with_h[2] + with_h[3])));
  return {all, scaled_sum(all, all_with_h, centre.minus, centre.rest)};
}

// As above for R short strips, one behind the other: one accumulator each, since the strips take turns. A strip's own
// arithmetic is the same for every R.
template <class A, int R, class T>
inline void short_strip_sums(const T* x, const T* dy, int64_t n, const Centre<A>& centre, Sums* out) {
  const Centred<A> k(centre);
  Vec<A> plain[R] = {}, with_h[R] = {};
  over_pairs<A>(n, [&](int64_t i, auto lanes) {
    for (int r = 0; r < R; ++r) {
      const Vec<A> g = lanes.load(dy + r * n + i);
      plain[r] += g;
      with_h[r] = fma(g, k.unscaled_h(lanes.load(x + r * n + i, k.mean)), with_h[r]);
    }
  });
  double all[R], all_with_h[R];
  sums_of_lanes<A, R>(plain, all), sums_of_lanes<A, R>(with_h, all_with_h);
  for (int r = 0; r < R; ++r) out[r] = {all[r], scaled_sum(all[r], all_with_h[r], centre.minus, centre.rest)};
}

// What dx needs besides x and dy and the factor of dy.
template <class A>
struct Projected {
  Centred<A> k;
  Vec<A> slope, level;
  Projected(const Statistic& s, const Projection<A>& p)
      : k(Centre<A>(s)), slope(broadcast(p.slope)), level(broadcast(p.level)) {}
};

template <class A, class T>
ANYNORM_APART void project_stretch_past(const T* x, const T* dy, T* dx, int64_t n, A factor, Projected<A> p) {
  const Vec<A> by = broadcast(factor);
  over_vectors_past<A>(n, [&](int64_t at, auto lanes) {
    lanes.store(dx + at, dx_of(p.k, lanes.load(x + at, p.k.mean), lanes.load(dy + at), by, p.slope, p.level));
  });
}

template <class A, class T>
inline void project_stretch(const T* x, const T* dy, T* dx, int64_t n, A factor, const Projected<A>& p, bool past) {
  constexpr int64_t L = kLanes<A>;
  // One by one: a whole structure is copied through memory, in halves for which the processor has to wait.
  const Centred<A> k(p.k.mean, p.k.minus, p.k.rest);
  const Vec<A> by = broadcast(factor), slope = p.slope, level = p.level;
  if (past && row_can_go_past<A>(dx, n)) return project_stretch_past<A>(x, dy, dx, n, factor, p);
  const auto one = [&](int64_t at) {
    store<A>(dx + at, dx_of(k, load<A>(x + at), load<A>(dy + at), by, slope, level));
  };
  int64_t i = 0;
  for (; i + 4 * L <= n; i += 4 * L)
    for (int64_t j = 0; j < 4; ++j) one(i + j * L);
  for (; i + L <= n; i += L) one(i);
  if (i == n) return;
  if (n >= L && dx != x && dx != dy) return one(n - L);
  const Part<A> rest = {n - i};
  rest.store(dx + i, dx_of(k, rest.load(x + i, k.mean), rest.load(dy + i), by, slope, level));
}

// The strips of a group: its pieces, their channels, and these cut where they are long. Where one lies within the group,
// in the array, in scale and among the group's `places` of scale.
struct Strip {
  int64_t x, affine, place, length;
};

struct Strips {
  const Geometry& g;
  const int64_t cuts, number, places;
  explicit Strips(const Geometry& g)
      : g(g),
        cuts((g.s + kStrip - 1) / kStrip),
        number(g.pieces.size * g.c * cuts),
        places((g.pieces_affine ? g.pieces.size : 1) * g.c) {}

  // From one strip to that which is read behind it, mostly: it is for what may be fetched in vain.
  int64_t next(const Strip& strip) const {
    return g.c == 1 && cuts == 1 && g.pieces.rank == 1 ? g.pieces.x[0] : strip.length;
  }

  // Whether strips are so short that to find them costs as much as their arithmetic.
  template <class T>
  bool are_short() const {
    return g.s * int64_t(sizeof(T)) < kNarrowRow;
  }
  // work(i, strip, many) for the strips [from, to), which nothing cuts: each and those of one piece that follow it.
  template <class F>
  void over_neighbours(int64_t from, int64_t to, const F& work) const {
    // Most begin at the first, and a division costs as much as a strip.
    int64_t piece = from == 0 ? 0 : from / g.c, channel = from - piece * g.c;
    for (int64_t i = from; i < to; channel = 0, ++piece) {
      const Walk::Place in = place_at(g.pieces, piece);
      const int64_t before = g.pieces_affine ? piece * g.c : 0, many = least(g.c - channel, to - i);
      work(i, Strip{in.x + channel * g.s, in.affine + channel, before + channel, g.s}, many);
      i += many;
    }
  }

  // work(i, strip) for the strips [from, to); counted on, since a division costs as much as a short strip.
  template <class F>
  void over(int64_t from, int64_t to, const F& work) const {
    int64_t cut = from % cuts, channel = from / cuts % g.c, piece = from / cuts / g.c;
    Walk::Place in = place_at(g.pieces, piece);
    for (int64_t i = from; i < to; ++i) {
      const int64_t begin = cut * kStrip, before = g.pieces_affine ? piece * g.c : 0;
      work(i, Strip{in.x + channel * g.s + begin, in.affine + channel, before + channel, least(kStrip, g.s - begin)});
      if (++cut < cuts) continue;
      cut = 0;
      if (++channel < g.c) continue;
      channel = 0;
      in = place_at(g.pieces, ++piece);
    }
  }
};

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
    if (strips.template are_short<T>() && strips.g.c >= 4) {
      return strips.over_neighbours(from, to, [&](int64_t i, const Strip& first, int64_t many) {
        const int64_t n = first.length;
        const auto some = [&](int64_t j, auto at_once) {
          constexpr int R = decltype(at_once)::value;
          Sums sums[R];
          short_strip_sums<A, R>(x + first.x + j * n, dy + first.x + j * n, n, centre, sums);
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
      const double by = s.scale(strip);
      total->plain += by * sums.plain;
      total->with_h += by * sums.with_h;
      if (own == nullptr) return;
      own[strip.place].plain += sums.plain;
      own[strip.place].with_h += sums.with_h;
    };
  };

  if (!split) {
    const int64_t each_task = grain(bytes);
    each(call, (g.groups + each_task - 1) / each_task, [&](int64_t task) {
      for (int64_t i = task * each_task; i < least(g.groups, (task + 1) * each_task); ++i) {
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
