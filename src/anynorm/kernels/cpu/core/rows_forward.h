// Rows, forward: a statistic is over `pieces` stretches of c * s contiguous elements.

// Elements whose differences are summed in the array's own precision before doubles take over.
constexpr int64_t kBlock = 4096;

// x * factor where Scaled says so: for doubles whose squares would leave the range.
template <class A, bool Scaled, class T>
inline Vec<A> scaled(const T* x, A factor) {
  return Scaled ? Vec<A>(load<A>(x) * factor) : load<A>(x);
}

// A number amid the block, exactly x where the block is constant: sums of powers of two of equal numbers are exact.
template <class A, bool Scaled, class T>
inline A amid(const T* x, int64_t n, A factor) {
  constexpr int64_t L = kLanes<A>;
  if (n >= 4 * L) {
    const int64_t step = n / 4;
    const Vec<A> sum = (scaled<A, Scaled>(x, factor) + scaled<A, Scaled>(x + step, factor)) +
                       (scaled<A, Scaled>(x + 2 * step, factor) + scaled<A, Scaled>(x + 3 * step, factor));
    return sum_lanes(sum) * A(0.25 / double(L));
  }
  if (n >= L) return sum_lanes(scaled<A, Scaled>(x, factor)) * A(1 / double(L));
  const A one = A(widen(x[0])), other = A(widen(x[n / 2]));
  return ((one - other) * A(0.5) + other) * (Scaled ? factor : A(1));
}

// Of shift - x, since a subtraction may take its second operand from memory.
template <class A>
struct BlockSums {
  Vec<A> sum[4] = {}, square[4] = {};

  template <bool Centred, bool Scaled, class T>
  inline void add(const T* x, int64_t n, Vec<A> shift, A factor) {
    constexpr int64_t L = kLanes<A>;
    int64_t i = 0;
    for (; i + 4 * L <= n; i += 4 * L)
      for (int64_t k = 0; k < 4; ++k) step<Centred>(scaled<A, Scaled>(x + i + k * L, factor), k, shift);
    // Written out: an accumulator picked by a variable would live in memory.
    if (i + L <= n) step<Centred>(scaled<A, Scaled>(x + i, factor), 0, shift), i += L;
    if (i + L <= n) step<Centred>(scaled<A, Scaled>(x + i, factor), 1, shift), i += L;
    if (i + L <= n) step<Centred>(scaled<A, Scaled>(x + i, factor), 2, shift), i += L;
    if (i < n) {
      Vec<A> v = load_part<A>(x + i, n - i, shift);
      if (Scaled) v = first<A>(n - i) ? Vec<A>(v * factor) : shift;
      step<Centred>(v, 3, shift);
    }
  }

 private:
  template <bool Centred>
  inline void step(Vec<A> v, int64_t k, Vec<A> shift) {
    if (Centred) {
      v = shift - v;
      sum[k] += v;
    }
    square[k] = fma(v, v, square[k]);
  }
};

template <bool Centred, class A>
inline void merge_block(Moments* m, const BlockSums<A>& block, A shift, int64_t n) {
  const double square = sum_lanes(Vec<A>((block.square[0] + block.square[1]) + (block.square[2] + block.square[3])));
  if (!Centred) return m->merge(double(n), 0, square);
  const double sum = sum_lanes(Vec<A>((block.sum[0] + block.sum[1]) + (block.sum[2] + block.sum[3])));
  const double mean = sum / double(n), lost = sum * mean;
  m->bad = m->bad || lost > kFarShift * square;
  m->merge(double(n), double(shift) - mean, square > lost ? square - lost : square < lost ? 0 : square - lost);
}

// How a group is cut into blocks: many short pieces in one, or many in a long piece.
struct Blocks {
  int64_t length, pieces, per_piece, pieces_each, number;
  explicit Blocks(const Geometry& g) : length(g.c * g.s), pieces(g.pieces.size) {
    const bool is_long = length >= kBlock / 4 || pieces == 1;
    per_piece = is_long ? (length + kBlock - 1) / kBlock : 0;
    pieces_each = is_long ? 1 : kBlock / most(length, 1);
    number = is_long ? pieces * per_piece : (pieces + pieces_each - 1) / pieces_each;
  }
};

template <class A, bool Centred, bool Scaled, class T>
inline void block_moments(const Call& call, const Blocks& b, const T* group, int64_t i, double factor, Moments* m) {
  const A by = A(factor);
  BlockSums<A> sums;
  if (b.per_piece > 0) {
    const int64_t begin = i % b.per_piece * kBlock, n = least(kBlock, b.length - begin);
    const T* x = group + offset(call.geometry.pieces, i / b.per_piece) + begin;
    const A shift = Centred ? amid<A, Scaled>(x, n, by) : A(0);
    sums.template add<Centred, Scaled>(x, n, broadcast(shift), by);
    merge_block<Centred>(m, sums, shift, n);
    return;
  }
  const int64_t from = i * b.pieces_each, to = least(b.pieces, from + b.pieces_each);
  A shift = 0;
  if (Centred) {
    const T* middle = group + offset(call.geometry.pieces, (from + to) / 2);
    shift = amid<A, Scaled>(middle, b.length, by);
  }
  const Vec<A> about = broadcast(shift);
  for (int64_t p = from; p < to; ++p)
    sums.template add<Centred, Scaled>(group + offset(call.geometry.pieces, p), b.length, about, by);
  merge_block<Centred>(m, sums, shift, (to - from) * b.length);
}

template <class A, bool Scaled, class T>
inline void block_moments(const Call& call, const Blocks& b, const T* group, int64_t i, double factor, Moments* m) {
  if (call.removes_mean)
    block_moments<A, true, Scaled>(call, b, group, i, factor, m);
  else
    block_moments<A, false, Scaled>(call, b, group, i, factor, m);
}

// From quick moments to the group's statistic.
template <class T>
Finished row_statistic(const Call& call, const Blocks& b, const T* group, const Moments& quick) {
  return settled<T>(call, quick, [&](double factor) {
    Moments m = {};
    for (int64_t i = 0; i < b.number; ++i) block_moments<double, true>(call, b, group, i, factor, &m);
    return m;
  });
}

// --- apply ----------------------------------------------------------------------------------------------------------

template <class A, class T>
ANYNORM_APART void scale_stretch_past(const T* x, T* y, int64_t n, Vec<A> mean, Vec<A> a, Vec<A> b) {
  over_vectors_past<A>(n, [&](int64_t i, auto lanes) {
    lanes.store(y + i, fma(Vec<A>(mean - lanes.load(x + i, mean)), a, b));
  });
}

template <class A, class T>
inline void scale_stretch(const T* x, T* y, int64_t n, Centre<A> k, A scale, A offset, bool past) {
  constexpr int64_t L = kLanes<A>;
  const Vec<A> mean = broadcast(k.mean), a = broadcast(A(k.minus * scale)), b = broadcast(A(k.rest * scale + offset));
  const auto y_of = [&](Vec<A> v) { return fma(Vec<A>(mean - v), a, b); };
  if (past && row_can_go_past<A>(y, n)) return scale_stretch_past<A>(x, y, n, mean, a, b);
  int64_t i = 0;
  for (; i + 4 * L <= n; i += 4 * L)
    for (int64_t j = 0; j < 4; ++j) store<A>(y + i + j * L, y_of(load<A>(x + i + j * L)));
  for (; i + L <= n; i += L) store<A>(y + i, y_of(load<A>(x + i)));
  if (i < n) store_part<A>(y + i, n - i, y_of(load_part<A>(x + i, n - i, mean)));
}

template <class A, class T>
ANYNORM_APART void scale_elements_past(const T* x, T* y, int64_t n, Centred<A> k, const Work<T>* scale,
                                       const Work<T>* offset) {
  over_vectors_past<A>(n, [&](int64_t i, auto lanes) {
    const Vec<A> b = offset == nullptr ? Vec<A>{} : lanes.load(offset + i);
    lanes.store(y + i, fma(k.h(lanes.load(x + i, k.mean)), lanes.load(scale + i), b));
  });
}

// A scale and an offset for each element; `offset` may be NULL.
template <class A, class T>
inline void scale_elements(const T* x, T* y, int64_t n, Centre<A> centre, const Work<T>* scale, const Work<T>* offset,
                           bool past) {
  constexpr int64_t L = kLanes<A>;
  const Centred<A> k(centre);
  const Vec<A> zero = {};
  if (past && row_can_go_past<A>(y, n)) return scale_elements_past<A>(x, y, n, k, scale, offset);
  int64_t i = 0;
  if (offset != nullptr) {
    const auto one = [&](int64_t at) {
      store<A>(y + at, fma(k.h(load<A>(x + at)), load<A>(scale + at), load<A>(offset + at)));
    };
    for (; i + 4 * L <= n; i += 4 * L)
      for (int64_t j = 0; j < 4; ++j) one(i + j * L);
    for (; i + L <= n; i += L) one(i);
  } else {
    // Plus 0, as everywhere else: a product alone keeps a sign of zero that the others lose.
    const auto one = [&](int64_t at) { store<A>(y + at, fma(k.h(load<A>(x + at)), load<A>(scale + at), zero)); };
    for (; i + 4 * L <= n; i += 4 * L)
      for (int64_t j = 0; j < 4; ++j) one(i + j * L);
    for (; i + L <= n; i += L) one(i);
  }
  if (i < n) {
    const Vec<A> h = k.h(load_part<A>(x + i, n - i, k.mean));
    const Vec<A> b = offset == nullptr ? zero : load_part<A>(offset + i, n - i, zero);
    store_part<A>(y + i, n - i, fma(h, load_part<A>(scale + i, n - i, zero), b));
  }
}

// As above for R rows with the same scales and offsets, which are loaded once for all of them.
template <class A, int R, class T>
inline void scale_rows(const T* const* x, T* const* y, int64_t n, const Statistic* statistic, const Work<T>* scale,
                       const Work<T>* offset) {
  Centred<A> k[R];
  for (int r = 0; r < R; ++r) k[r] = Centred<A>(Centre<A>(statistic[r]));
  over_vectors<A>(n, [&](int64_t i, auto lanes) {
    const Vec<A> a = lanes.load(scale + i), b = offset == nullptr ? Vec<A>{} : lanes.load(offset + i);
    for (int r = 0; r < R; ++r) lanes.store(y[r] + i, fma(k[r].h(lanes.load(x[r] + i, k[r].mean)), a, b));
  });
}

// Elements [begin, end) of the pieces [from, to) of a group.
template <class A, class T>
void apply_pieces(const Call& call, const Walk::Place& at, const Centre<A>& k, int64_t from, int64_t to, int64_t begin,
                  int64_t end) {
  const Geometry& g = call.geometry;
  const Work<T> *scale = static_cast<const Work<T>*>(call.scale), *offset = static_cast<const Work<T>*>(call.offset);
  for (int64_t p = from; p < to; ++p) {
    const Walk::Place in = place_at(g.pieces, p);
    const T* x = static_cast<const T*>(call.x) + at.x + in.x;
    T* y = static_cast<T*>(call.y) + at.x + in.x;
    const Work<T>* by = scale == nullptr ? nullptr : scale + at.affine + in.affine;
    const Work<T>* more = offset == nullptr ? nullptr : offset + at.affine + in.affine;
    if (g.c > 1 && g.s == 1 && by != nullptr) {
      scale_elements<A>(x + begin, y + begin, end - begin, k, by + begin,
                        more == nullptr ? nullptr : more + begin, call.past);
      continue;
    }
    int64_t channel = begin == 0 ? 0 : begin / g.s;
    for (int64_t i = begin; i < end; ++channel) {
      const int64_t stop = least(end, (channel + 1) * g.s);
      scale_stretch<A>(x + i, y + i, stop - i, k, by == nullptr ? A(1) : A(by[channel]),
                       more == nullptr ? A(0) : A(more[channel]), call.past);
      i = stop;
    }
  }
}

template <class T>
void apply_group(const Call& call, const Walk::Place& at, const Statistic& statistic, int64_t from, int64_t to,
                 int64_t begin, int64_t end) {
  if (is_wide<T>(statistic))
    apply_pieces<double, T>(call, at, Centre<double>(statistic), from, to, begin, end);
  else
    apply_pieces<Work<T>, T>(call, at, Centre<Work<T>>(statistic), from, to, begin, end);
}

// --- short rows ------------------------------------------------------------------------------------------------------

// Groups of one block each, R at once: the processor works on one row's sums while another's are still on their way.
// A row's own arithmetic is the same for every R. A second moment is NaN, which nobody takes for a good one, where the
// shift lay far from the mean.
template <class A, bool Centred, int R, class T>
inline void short_moments(const T* const* x, int64_t n, double* mean, double* m2) {
  constexpr int64_t L = kLanes<A>;
  A shift[R];
  Vec<A> about[R], sum[R] = {}, square[R] = {};
  for (int r = 0; r < R; ++r) shift[r] = Centred ? amid<A, false>(x[r], n, A(1)) : A(0), about[r] = broadcast(shift[r]);
  const auto step = [&](int r, Vec<A> v) {
    if (Centred) {
      v = about[r] - v;
      sum[r] += v;
    }
    square[r] = fma(v, v, square[r]);
  };
  int64_t i = 0;
  for (; i + 2 * L <= n; i += 2 * L)
    for (int r = 0; r < R; ++r) {
      soon(x[r] + R * n + i);
      step(r, load<A>(x[r] + i)), step(r, load<A>(x[r] + i + L));
    }
  if (i + L <= n) {
    for (int r = 0; r < R; ++r) step(r, load<A>(x[r] + i));
    i += L;
  }
  if (i < n)
    for (int r = 0; r < R; ++r) step(r, load_part<A>(x[r] + i, n - i, about[r]));
  const double share = 1 / double(n);
  for (int r = 0; r < R; ++r) mean[r] = Centred ? sum_lanes(sum[r]) : A(0), m2[r] = sum_lanes(square[r]);
  for (int r = 0; r < R; ++r) {
    const double less = mean[r] * share, lost = mean[r] * less;
    mean[r] = double(shift[r]) - less;
    m2[r] = lost > kFarShift * m2[r] ? double(NAN) : m2[r] < lost ? 0 : m2[r] - lost;
  }
}

// Bytes of a row up to which four are read at once.
constexpr int64_t kShortRow = 4096;

// Bytes of a row below which four are written at once: their calls cost more than their arithmetic. Longer ones may go
// past the caches, and a processor takes a load for the value of a store 4096 bytes away until that is done.
constexpr int64_t kNarrowRow = 1024;

// Whether R rows are there, with the same scales, and all of them ordinary.
template <class T, int R>
inline bool may_share(const Call& call, const Walk::Place* at, const Statistic* statistic, int64_t many) {
  if (many < R || call.scale == nullptr || call.geometry.s > 1) return false;
  bool all = true;
  for (int r = 0; r < R; ++r) all = all && at[r].affine == at[0].affine && !is_wide<T>(statistic[r]);
  return all;
}

// R rows at once, of which `many` are to be had: the last one stands for those that are not.
template <class T, int R>
inline void short_rows(const Call& call, const Blocks& b, int64_t group, int64_t many) {
  typedef Work<T> W;
  const Geometry& g = call.geometry;
  Walk::Place at[R];
  const T* x[R];
  for (int r = 0; r < R; ++r) {
    at[r] = place_at(g.outer, group + least(r, many - 1));
    x[r] = static_cast<const T*>(call.x) + at[r].x;
  }
  double mean[R], m2[R];
  if (call.removes_mean)
    short_moments<W, true, R>(x, b.length, mean, m2);
  else
    short_moments<W, false, R>(x, b.length, mean, m2);
  Statistic found[R];
  if (!settle_at_once<T>(call, group, many, mean, m2, found))
    for (int r = 0; r < many; ++r) {
      const Finished f = row_statistic(call, b, x[r], {double(b.length), mean[r], m2[r], false});
      put<W>(call, group + r, f);
      found[r] = f.statistic;
    }
  if (call.y == nullptr) return;
  if (b.length * int64_t(sizeof(T)) < kNarrowRow && may_share<T, R>(call, at, found, many)) {
    const int64_t place = at[0].affine + place_at(g.pieces, 0).affine;
    T* y[R];
    for (int r = 0; r < R; ++r) y[r] = static_cast<T*>(call.y) + at[r].x;
    const W *scale = static_cast<const W*>(call.scale), *offset = static_cast<const W*>(call.offset);
    return scale_rows<W, R>(x, y, b.length, found, scale + place, offset == nullptr ? nullptr : offset + place);
  }
  for (int r = 0; r < many; ++r) apply_group<T>(call, at[r], found[r], 0, 1, 0, b.length);
}

// --- the whole ------------------------------------------------------------------------------------------------------

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
    const int64_t each_task = grain(bytes);
    const bool is_short = !call.given && g.pieces.size == 1 && bytes <= kShortRow;
    return each(call, (g.groups + each_task - 1) / each_task, [&](int64_t task) {
      const int64_t end = least(g.groups, (task + 1) * each_task);
      int64_t i = task * each_task;
      if (is_short) {
        for (; i < end; i += 4) short_rows<T, 4>(call, b, i, least(4, end - i));
        return 0;
      }
      for (; i < end; ++i) {
        const Walk::Place at = g.outer.at(i);
        Statistic statistic;
        if (call.given) {
          statistic = call.statistics[i];
        } else {
          Moments m = {};
          for (int64_t j = 0; j < b.number; ++j) block_moments<Work<T>, false>(call, b, x + at.x, j, 1, &m);
          const Finished f = row_statistic(call, b, x + at.x, m);
          put<Work<T>>(call, i, f);
          statistic = f.statistic;
        }
        if (call.y != nullptr) apply_group<T>(call, at, statistic, 0, g.pieces.size, 0, length);
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
        block_moments<Work<T>, false>(call, b, x + g.outer.at(i).x, j, 1, &m);
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
