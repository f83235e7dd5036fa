// Rows, backward: first the sums of each group, which are also those of scale and offset, then dx.

// Elements of a strip, the unit in which sums over one channel's elements are taken.
constexpr int64_t kStrip = 8192;

// Four accumulators of dy and of dy * h.
template <class A, class T>
inline Sums strip_sums(const T* x, const T* dy, int64_t n, Centre<A> k) {
  constexpr int64_t L = kLanes<A>;
  const Vec<A> mean = broadcast(k.mean), rstd = broadcast(k.rstd), rest = broadcast(k.rest);
  Vec<A> plain[4] = {}, with_h[4] = {};
  int64_t i = 0;
  for (; i + 4 * L <= n; i += 4 * L)
    for (int64_t j = 0; j < 4; ++j) {
      const Vec<A> g = load<A>(dy + i + j * L), h = fma(Vec<A>(load<A>(x + i + j * L) - mean), rstd, rest);
      plain[j] += g;
      with_h[j] = fma(g, h, with_h[j]);
    }
  for (; i + L <= n; i += L) {
    const Vec<A> g = load<A>(dy + i), h = fma(Vec<A>(load<A>(x + i) - mean), rstd, rest);
    plain[0] += g;
    with_h[0] = fma(g, h, with_h[0]);
  }
  if (i < n) {
    const Vec<A> g = load_part<A>(dy + i, n - i, Vec<A>{});
    const Vec<A> h = fma(Vec<A>(load_part<A>(x + i, n - i, mean) - mean), rstd, rest);
    plain[1] += g;
    with_h[1] = fma(g, h, with_h[1]);
  }
  return {double(sum_lanes(Vec<A>((plain[0] + plain[1]) + (plain[2] + plain[3])))),
          double(sum_lanes(Vec<A>((with_h[0] + with_h[1]) + (with_h[2] + with_h[3]))))};
}

// dx = dy * factor + h * slope + level
template <class A, class T>
inline void project_stretch(const T* x, const T* dy, T* dx, int64_t n, Centre<A> k, A factor, Projection<A> p) {
  constexpr int64_t L = kLanes<A>;
  const Vec<A> mean = broadcast(k.mean), rstd = broadcast(k.rstd), rest = broadcast(k.rest);
  const Vec<A> by = broadcast(factor), slope = broadcast(p.slope), level = broadcast(p.level);
  int64_t i = 0;
  for (; i + 2 * L <= n; i += 2 * L)
    for (int64_t j = 0; j < 2; ++j) {
      const Vec<A> h = fma(Vec<A>(load<A>(x + i + j * L) - mean), rstd, rest);
      store<A>(dx + i + j * L, fma(load<A>(dy + i + j * L), by, fma(h, slope, level)));
    }
  for (; i < n; i += L) {
    const int64_t here = least(L, n - i);
    const Vec<A> h = fma(Vec<A>(load_part<A>(x + i, here, mean) - mean), rstd, rest);
    store_part<A>(dx + i, here, fma(load_part<A>(dy + i, here, Vec<A>{}), by, fma(h, slope, level)));
    if (here < L) break;
  }
}

// The strips of a group: its pieces, their channels, and these cut where they are long.
struct Strips {
  int64_t channel, number;
  explicit Strips(const Geometry& g)
      : channel((g.s + kStrip - 1) / kStrip), number(g.pieces.size * g.c * channel) {}
};

struct Strip {
  int64_t x, affine, length;  // affine: within the piece
  int64_t piece;
  Strip(const Geometry& g, const Strips& strips, int64_t i) {
    const int64_t begin = strips.channel == 1 ? 0 : i % strips.channel * kStrip;
    if (strips.channel > 1) i /= strips.channel;
    affine = g.c == 1 ? 0 : i % g.c;
    piece = g.c == 1 ? i : i / g.c;
    x = offset(g.pieces, piece) + affine * g.s + begin;
    length = least(kStrip, g.s - begin);
  }
};

template <class T>
Sums sums_of(const Call& call, const Statistic& s, const Strip& strip, int64_t at) {
  const T* x = static_cast<const T*>(call.x) + at + strip.x;
  const T* dy = static_cast<const T*>(call.dy) + at + strip.x;
  if (is_wide<T>(s)) return strip_sums<double>(x, dy, strip.length, Centre<double>(s));
  return strip_sums<Work<T>>(x, dy, strip.length, Centre<Work<T>>(s));
}

template <class T>
void project_strip(const Call& call, const Statistic& s, const Sums& sums, const Strip& strip, int64_t at,
                   double scale) {
  const T* x = static_cast<const T*>(call.x) + at + strip.x;
  const T* dy = static_cast<const T*>(call.dy) + at + strip.x;
  T* dx = static_cast<T*>(call.dx) + at + strip.x;
  if (is_wide<T>(s))
    project_stretch<double>(x, dy, dx, strip.length, Centre<double>(s), s.rstd * scale,
                            Projection<double>(call, s, sums));
  else
    project_stretch<Work<T>>(x, dy, dx, strip.length, Centre<Work<T>>(s), Work<T>(s.rstd * scale),
                             Projection<Work<T>>(call, s, sums));
}

// One scale for many contiguous elements.
template <class T>
int backward_stretches(const Call& call) {
  const Geometry& g = call.geometry;
  const Strips strips(g);
  const Work<T>* scale = static_cast<const Work<T>*>(call.scale);
  const int64_t places = (g.pieces_affine ? g.pieces.size : 1) * g.c;  // of scale, in one group
  const bool wants_affine = call.affine_sums != nullptr;
  const int64_t bytes = 2 * g.count * int64_t(sizeof(T));
  const bool split = call.threads > 1 && g.groups < 2 * call.threads && bytes > 8 * kGrain;
  Buffer<Sums> affine(wants_affine ? g.groups * places : 0), totals(g.groups), each_strip(split ? g.groups * strips.number : 0);
  if (affine.failed() || totals.failed() || each_strip.failed()) return ANYNORM_NO_MEMORY;
  if (wants_affine) affine.clear(g.groups * places);

  const auto scale_at = [&](const Walk::Place& at, const Strip& strip) {
    return scale == nullptr ? 1.0 : double(scale[at.affine + place_at(g.pieces, strip.piece).affine + strip.affine]);
  };
  const auto collect = [&](int64_t group, const Walk::Place& at, const Strip& strip, const Sums& sums) {
    const double by = scale_at(at, strip);
    totals[group].plain += by * sums.plain;
    totals[group].with_h += by * sums.with_h;
    if (!wants_affine) return;
    Sums& place = affine[group * places + (g.pieces_affine ? strip.piece * g.c : 0) + strip.affine];
    place.plain += sums.plain;
    place.with_h += sums.with_h;
  };

  if (call.sums_given) {
    memcpy(static_cast<void*>(totals.data), call.sums, size_t(g.groups) * sizeof(Sums));
  } else {
    totals.clear(g.groups);
  }
  if (!split) {
    const int64_t each_task = grain(bytes);
    each(call, (g.groups + each_task - 1) / each_task, [&](int64_t task) {
      for (int64_t i = task * each_task; i < least(g.groups, (task + 1) * each_task); ++i) {
        const Walk::Place at = g.outer.at(i);
        const Statistic& s = call.statistics[i];
        if (!call.sums_given)
          for (int64_t j = 0; j < strips.number; ++j) {
            const Strip strip(g, strips, j);
            collect(i, at, strip, sums_of<T>(call, s, strip, at.x));
          }
        // Backwards: what was read last is still in the cache.
        if (call.dx != nullptr)
          for (int64_t j = strips.number - 1; j >= 0; --j) {
            const Strip strip(g, strips, j);
            project_strip<T>(call, s, totals[i], strip, at.x, scale_at(at, strip));
          }
      }
      return 0;
    });
  } else {
    const int64_t each_task = grain(2 * least(kStrip, g.s) * int64_t(sizeof(T)));
    const int64_t tasks = (strips.number + each_task - 1) / each_task;
    const auto over_strips = [&](auto work) {
      each(call, g.groups * tasks, [&](int64_t task) {
        const int64_t i = task / tasks, from = task % tasks * each_task;
        const Walk::Place at = g.outer.at(i);
        for (int64_t j = from; j < least(strips.number, from + each_task); ++j) work(i, at, j, Strip(g, strips, j));
        return 0;
      });
    };
    if (!call.sums_given) {
      over_strips([&](int64_t i, const Walk::Place& at, int64_t j, const Strip& strip) {
        each_strip[i * strips.number + j] = sums_of<T>(call, call.statistics[i], strip, at.x);
      });
      for (int64_t i = 0; i < g.groups; ++i) {
        const Walk::Place at = g.outer.at(i);
        for (int64_t j = 0; j < strips.number; ++j)
          collect(i, at, Strip(g, strips, j), each_strip[i * strips.number + j]);
      }
    }
    if (call.dx != nullptr)
      over_strips([&](int64_t i, const Walk::Place& at, int64_t, const Strip& strip) {
        project_strip<T>(call, call.statistics[i], totals[i], strip, at.x, scale_at(at, strip));
      });
  }
  if (call.sums != nullptr && !call.sums_given)
    memcpy(static_cast<void*>(call.sums), totals.data, size_t(g.groups) * sizeof(Sums));
  if (wants_affine)
    for (int64_t i = 0; i < g.groups; ++i) {
      const int64_t at = g.outer.at(i).affine;
      for (int64_t j = 0; j < places; ++j) {
        const int64_t piece = g.pieces_affine ? g.pieces.at(j / g.c).affine + j % g.c : j;
        call.affine_sums[at + piece].plain += affine[i * places + j].plain;
        call.affine_sums[at + piece].with_h += affine[i * places + j].with_h;
      }
    }
  return 0;
}
