// Rows, forward: a statistic is over `pieces` stretches of c * s contiguous elements.

// Elements whose differences are summed in the array's own precision before doubles take over.
constexpr int64_t kBlock = 4096;

// x * factor where Scaled says so: for doubles whose squares would leave the range.
template <class A, bool Scaled, class T>
inline Vec<A> scaled(const T* x, A factor) {
  return Scaled ? Vec<A>(load<A>(x) * factor) : load<A>(x);
}

// Of a block of a vector and more: a vector whose lanes' sum, times a share, is a number amid the block.
template <class A, bool Scaled, class T>
inline Vec<A> amid_lanes(const T* x, int64_t n, A factor, A* share) {
  constexpr int64_t L = kLanes<A>;
  *share = A((n >= 4 * L ? 0.25 : 1.0) / double(L));
  if (n < 4 * L) return scaled<A, Scaled>(x, factor);
  const int64_t step = n / 4;
  return (scaled<A, Scaled>(x, factor) + scaled<A, Scaled>(x + step, factor)) +
         (scaled<A, Scaled>(x + 2 * step, factor) + scaled<A, Scaled>(x + 3 * step, factor));
}

// A number amid the block, exactly x where the block is constant: sums of powers of two of equal numbers are exact.
template <class A, bool Scaled, class T>
inline A amid(const T* x, int64_t n, A factor) {
  if (n >= kLanes<A>) {
    A share;
    const A sum = sum_lanes(amid_lanes<A, Scaled>(x, n, factor, &share));
    return sum * share;
  }
  const A one = A(widen(x[0])), other = A(widen(x[n / 2]));
  return ((one - other) * A(0.5) + other) * (Scaled ? factor : A(1));
}

// Of shift - x, since a subtraction may take its second operand from memory.
template <class A>
struct BlockSums {
  Vec<A> sum[4], square[4];

  // Ahead: what lies at `next` is fetched, as far as four vectors are taken at once.
  template <bool Centred, bool Scaled, bool Ahead, class T>
  inline void add(const T* x, int64_t n, Vec<A> shift, A factor, const T* next) {
    constexpr int64_t L = kLanes<A>;
    int64_t i = 0;
    for (; i + 4 * L <= n; i += 4 * L)
      for (int64_t k = 0; k < 4; ++k) {
        if (Ahead) fetch<3>(next + i + k * L);
        step<Centred>(scaled<A, Scaled>(x + i + k * L, factor), k, shift);
      }
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

// Groups that are taken together at most.
constexpr int64_t kTogether = 32;

// Neighbouring groups that are taken together: where their pieces are short and far apart, piece by piece, so that memory
// is read as it lies, and so many that a second-level cache holds them, but a page of each piece at least. What is
// computed is the same for any number.
struct Neighbours {
  int64_t most_of = 1, run = 1;

  // Whether a geometry has such groups.
  static bool are_in(const Geometry& g) {
    const int last = g.outer.rank - 1;
    const bool apart = g.c == 1 && g.pieces.size > 1 && !g.pieces_affine && g.s < kBlock / 4;
    return apart && last >= 0 && g.outer.x[last] == g.s;
  }
  template <class T>
  static Neighbours of(const Call& call) {
    // Of few at a time memory is not read as it lies, however many threads there are.
    constexpr int64_t kCache = 256 * 1024, kFew = 8;
    const Geometry& g = call.geometry;
    if (!are_in(g)) return {};
    const int64_t run = g.outer.extent[g.outer.rank - 1], fit = kCache / (g.count * int64_t(sizeof(T)));
    const int64_t page = 4096 / (g.s * int64_t(sizeof(T))), share = run / (4 * call.threads);
    return {most(1, least(least(most(fit, page), kTogether), most(share, least(kFew, run / 2)))), run};
  }
  // Tasks of at least so many groups end where what is taken together does.
  int64_t whole(int64_t groups) const { return (groups + most_of - 1) / most_of * most_of; }
  int64_t from(int64_t group, int64_t end) const { return least(least(most_of, end - group), run - group % run); }
};

// Block i of `many` neighbouring groups, the first of which is `group`: more than one only where pieces are short.
template <class A, bool Centred, bool Scaled, class T>
inline void block_moments(const Call& call, const Blocks& b, const T* group, int64_t many, int64_t i, double factor,
                          Moments* m) {
  const A by = A(factor);
  if (b.per_piece > 0) {
    const int64_t begin = i % b.per_piece * kBlock, n = least(kBlock, b.length - begin);
    BlockSums<A> sums = {};
    const T* x = group + offset(call.geometry.pieces, i / b.per_piece) + begin;
    const A shift = Centred ? amid<A, Scaled>(x, n, by) : A(0);
    sums.template add<Centred, Scaled, false>(x, n, broadcast(shift), by, x);
    merge_block<Centred>(m, sums, shift, n);
    return;
  }
  const int64_t from = i * b.pieces_each, to = least(b.pieces, from + b.pieces_each);
  BlockSums<A> sums[kTogether];
  A shift[kTogether];
  const T* const middle = group + offset(call.geometry.pieces, (from + to) / 2);
  for (int64_t k = 0; k < many; ++k) {
    sums[k] = {};
    shift[k] = Centred ? amid<A, Scaled>(middle + k * b.length, b.length, by) : A(0);
  }
  const auto add = [&](auto ahead) {
    const T* x = group + offset(call.geometry.pieces, from);
    for (int64_t p = from; p < to; ++p) {
      const T* const next = group + offset(call.geometry.pieces, p + 1);
      for (int64_t k = 0, at = 0; k < many; ++k, at += b.length) {
        BlockSums<A> own = sums[k];  // in registers
        own.template add<Centred, Scaled, decltype(ahead)::value>(x + at, b.length, broadcast(shift[k]), by, next + at);
        sums[k] = own;
      }
      x = next;
    }
  };
  call.far ? add(Given<true>()) : add(Given<false>());
  for (int64_t k = 0; k < many; ++k) merge_block<Centred>(m + k, sums[k], shift[k], (to - from) * b.length);
}

template <class A, bool Scaled, class T>
inline void block_moments(const Call& call, const Blocks& b, const T* group, int64_t many, int64_t i, double factor,
                          Moments* m) {
  if (call.removes_mean)
    block_moments<A, true, Scaled>(call, b, group, many, i, factor, m);
  else
    block_moments<A, false, Scaled>(call, b, group, many, i, factor, m);
}

// From quick moments to the group's statistic.
template <class T>
Finished row_statistic(const Call& call, const Blocks& b, const T* group, const Moments& quick) {
  return settled<T>(call, quick, [&](double factor) {
    Moments m = {};
    for (int64_t i = 0; i < b.number; ++i) block_moments<double, true>(call, b, group, 1, i, factor, &m);
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
  const Vec<A> mean = broadcast(k.mean), a = broadcast(A(k.minus * scale)), b = broadcast(A(k.rest * scale + offset));
  if (past && row_can_go_past<A>(y, n)) return scale_stretch_past<A>(x, y, n, mean, a, b);
  make_vectors<A>(y, n, y != x, [&](int64_t i, auto lanes) { return fma(Vec<A>(mean - lanes.load(x + i, mean)), a, b); });
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
  const Centred<A> k(centre);
  const Vec<A> zero = {};
  if (past && row_can_go_past<A>(y, n)) return scale_elements_past<A>(x, y, n, k, scale, offset);
  // Plus 0 without an offset, as everywhere else: a product alone keeps a sign of zero that the others lose.
  const auto make = [&](const auto& more) {
    make_vectors<A>(y, n, y != x, [&](int64_t i, auto lanes) {
      return fma(k.h(lanes.load(x + i, k.mean)), lanes.load(scale + i), more(i, lanes));
    });
  };
  if (offset != nullptr)
    make([&](int64_t i, auto lanes) { return lanes.load(offset + i); });
  else
    make([&](int64_t, auto) { return zero; });
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

// y of `many` neighbouring groups from `group` on.
template <class T>
void apply_neighbours(const Call& call, int64_t group, int64_t many, const Statistic* statistics) {
  typedef Work<T> W;
  const Geometry& g = call.geometry;
  if (many == 1 || any_wide<T>(statistics, many)) {
    for (int64_t k = 0; k < many; ++k)
      apply_group<T>(call, g.outer.at(group + k), statistics[k], 0, g.pieces.size, 0, g.c * g.s);
    return;
  }
  const Walk::Place at = g.outer.at(group);
  const int64_t n = g.s, step = g.outer.affine[g.outer.rank - 1];
  const W *scale = static_cast<const W*>(call.scale), *offset = static_cast<const W*>(call.offset);
  Centre<W> centre[kTogether];
  W by[kTogether], more[kTogether];
  for (int64_t k = 0, place = at.affine; k < many; ++k, place += step) {
    centre[k] = Centre<W>(statistics[k]);
    by[k] = scale == nullptr ? W(1) : scale[place], more[k] = offset == nullptr ? W(0) : offset[place];
  }
  for (int64_t p = 0; p < g.pieces.size; ++p) {
    const int64_t first = at.x + place_at(g.pieces, p).x;
    const T* const x = static_cast<const T*>(call.x) + first;
    T* const y = static_cast<T*>(call.y) + first;
    for (int64_t k = 0; k < many; ++k) scale_stretch<W>(x + k * n, y + k * n, n, centre[k], by[k], more[k], call.past);
  }
}
