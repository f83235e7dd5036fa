// Columns: matrices whose rows are reduced. What `columns` and `across` share: sums over rows, column by column.

// Rows whose sums are taken in the array's own precision before doubles take over.
constexpr int64_t kRowsSummed = 128;

// work(row, R) for all rows: four at once, so that what belongs to a column is loaded once for all of them, then 2, then 1.
template <class F>
inline void in_turn(int64_t rows, const F& work) {
  int64_t row = 0;
  for (; row + 4 <= rows; row += 4) work(row, AtOnce<4>());
  for (; row + 2 <= rows; row += 2) work(row, AtOnce<2>());
  if (row < rows) work(row, AtOnce<1>());
}

// A part of a matrix: `n` columns of `rows` rows that are `stride` elements apart.
template <class T>
struct Block {
  const T* x;
  int64_t rows, n, stride;
  bool ahead;  // rows follow each other, and are to be fetched ahead of their use
};

// Whether rows of n elements that follow each other are fetched ahead: where the second-level cache does not hold the
// array, and in a model not even the third; rows of a line or two are so near to each other that the processor follows.
template <class T>
inline bool worth_fetching(int64_t n, int64_t all) {
  return n * int64_t(sizeof(T)) >= 128 && all * int64_t(sizeof(T)) > int64_t(1) << 18;
}

// Fetch what lies four pages behind a vector of R rows, as much as these take, in the order of memory: of rows that are
// read side by side the processor foresees little, and several of them fetched in turn are no better.
template <class A, int R, class T>
inline void fetch_on(const T* rows, int64_t i) {
  constexpr int64_t kFurther = 4 * 4096, kLine = 64, kBytes = R * kLanes<A> * int64_t(sizeof(T));
  const char* const next = reinterpret_cast<const char*>(rows + R * i) + kFurther;
  for (int64_t at = 0; at < kBytes; at += kLine) fetch(next + at);
}

// Sums over rows of shift - x and its square; the loops run along memory and keep their sums in L1.
template <class A, bool Centred, bool Scaled, int R, bool Ahead, class T>
inline void add_rows(const T* x, int64_t n, int64_t stride, A factor, const A* shift, A* sum, A* square) {
  const Vec<A> by = broadcast(factor);
  over_vectors<A>(n, [&](int64_t i, auto lanes) {
    if (Ahead) fetch_on<A, R>(x, i);
    const Vec<A> about = Centred ? lanes.load(shift + i) : Vec<A>{};
    const auto difference = [&](int r) {
      Vec<A> v = lanes.load(x + r * stride + i);
      if (Scaled) v *= by;
      return Centred ? Vec<A>(about - v) : v;
    };
    Vec<A> s = Centred ? lanes.load(sum + i) : Vec<A>{}, q = lanes.load(square + i);
    for (int r = 0; r < R; r += 2) {
      // First among themselves: the fewer numbers are added to one, the less is rounded away.
      const Vec<A> v = difference(r), w = r + 1 < R ? difference(r + 1) : Vec<A>{};
      if (Centred) s += r + 1 < R ? Vec<A>(v + w) : v;
      q += r + 1 < R ? fma(w, w, Vec<A>(v * v)) : Vec<A>(v * v);
    }
    if (Centred) lanes.store(sum + i, s);
    lanes.store(square + i, q);
  });
}

// Mean and second moment of each column of one block of at most kRowsSummed rows.
// `scratch` has room for 3 * line numbers, n or more of them a line. A column whose shift lay far from its mean, and only
// that one, gets NaN, which nobody takes for a good variance.
template <class A, bool Centred, bool Scaled, class T>
ANYNORM_FLAT void block_columns(const Block<T>& b, double by, A* scratch, int64_t line, double* mean, double* m2) {
  constexpr int64_t L = kLanes<A>;
  const A factor = A(by);
  A *shift = scratch, *sum = scratch + line, *square = sum + line;
  memset(static_cast<void*>(sum), 0, size_t(line + b.n) * sizeof(A));
  if (Centred) {
    // Of 8, 4 or 2 equal numbers the mean is exact, so that constant columns have differences of exactly 0.
    const int64_t some = b.rows >= 8 ? 8 : b.rows >= 4 ? 4 : b.rows >= 2 ? 2 : 1, step = b.rows / some * b.stride;
    const A share = 1 / A(some);
    const auto half_of = [&](const auto& at, int64_t r) { return at(r) + at(r + some / 2); };
    const auto total = [&](const auto& at) {
      if (some == 1) return at(0);
      auto sum = half_of(at, 0);
      if (some == 4) sum = sum + half_of(at, 1);
      if (some == 8) sum = (sum + half_of(at, 1)) + (half_of(at, 2) + half_of(at, 3));
      return sum;
    };
    int64_t i = 0;
    for (; i + L <= b.n; i += L)
      store<A>(shift + i, Vec<A>(total([&](int64_t r) { return scaled<A, Scaled>(b.x + r * step + i, factor); }) * share));
    for (; i < b.n; ++i)
      shift[i] = total([&](int64_t r) { return A(widen(b.x[r * step + i])) * (Scaled ? factor : A(1)); }) * share;
  }
  const auto add = [&](auto ahead) {
    in_turn(b.rows, [&](int64_t row, auto many) {
      constexpr bool kAhead = decltype(ahead)::value;
      const T* x = b.x + row * b.stride;
      add_rows<A, Centred, Scaled, decltype(many)::value, kAhead>(x, b.n, b.stride, factor, shift, sum, square);
    });
  };
  b.ahead ? add(Given<true>()) : add(Given<false>());
  const double n = double(b.rows), share = 1 / n;
  if (!Centred) {
    for (int64_t i = 0; i < b.n; ++i) mean[i] = 0, m2[i] = double(square[i]);
    return;
  }
  const Vec<double> none = {}, bad = broadcast(double(NAN));
  over_vectors<double>(b.n, [&](int64_t i, auto lanes) {
    const Vec<double> total = lanes.load(sum + i), all = lanes.load(square + i), lost = total * total * share;
    lanes.store(mean + i, Vec<double>(lanes.load(shift + i) - total * share));
    const Vec<double> left = lost > all ? none : Vec<double>(all - lost);
    lanes.store(m2 + i, !Scaled ? Vec<double>(lost > kFarShift * all ? bad : left) : left);
  });
}

// Column by column: moments of `count` rows and of `n` further ones into those of all of them.
inline void merge_columns(double count, double n, int64_t columns, double* mean, double* m2, const double* other_mean,
                          const double* other_m2) {
  const double share = n / (count + n), both = count * share;
  for (int64_t i = 0; i < columns; ++i) {
    const double delta = other_mean[i] - mean[i];
    mean[i] += delta * share;
    m2[i] += other_m2[i] + delta * delta * both;
  }
}

// y = (mean - x) * factor + summand, each of them one number a column.
template <class A>
struct ColumnLine {
  const A *mean, *factor, *summand;
};

// Row by row, as memory lies: what several rows would share is in the first-level cache, and stores to several places in
// turn take longer.
template <class A, class T>
ANYNORM_FLAT void apply_columns(const Block<T>& b, T* y, ColumnLine<A> c, bool past) {
  past = past && can_go_past<A>(y, b.stride);
  for (int64_t row = 0, at = 0; row < b.rows; ++row, at += b.stride) {
    const T* const from = b.x + at;
    T* const to = y + at;
    over_results<A>(b.n, past, [&](int64_t i, auto lanes) {
      const Vec<A> mean = lanes.load(c.mean + i), a = lanes.load(c.factor + i), b = lanes.load(c.summand + i);
      lanes.store(to + i, fma(Vec<A>(mean - lanes.load(from + i, mean)), a, b));
    });
  }
}

// What makes h, column by column.
template <class A>
struct ColumnCentre {
  const A *mean, *minus, *rest;
  template <class Lanes>
  inline Centred<A> at(int64_t i, Lanes lanes) const {
    return {lanes.load(mean + i), lanes.load(minus + i), lanes.load(rest + i)};
  }
  ColumnCentre from(int64_t i) const { return {mean + i, minus + i, rest + i}; }
};

template <class A, int R, bool Ahead, class T>
inline void sum_some_rows(const T* x, const T* dy, int64_t n, int64_t stride, ColumnCentre<A> c, A* plain, A* with_h) {
  over_vectors<A>(n, [&](int64_t i, auto lanes) {
    if (Ahead) fetch_on<A, R>(x, i), fetch_on<A, R>(dy, i);
    const Centred<A> k = c.at(i, lanes);
    Vec<A> all_plain = lanes.load(plain + i), all_with_h = lanes.load(with_h + i);
    const auto g = [&](int r) { return lanes.load(dy + r * stride + i); };
    const auto h = [&](int r) { return k.unscaled_h(lanes.load(x + r * stride + i, k.mean)); };
    for (int r = 0; r < R; r += 2) {
      const Vec<A> one = g(r), of_one = one * h(r);
      if (r + 1 < R) {
        const Vec<A> two = g(r + 1);
        all_plain += one + two;
        all_with_h += fma(two, h(r + 1), of_one);
      } else {
        all_plain += one;
        all_with_h += of_one;
      }
    }
    lanes.store(plain + i, all_plain), lanes.store(with_h + i, all_with_h);
  });
}

// Sums over the rows of dy and dy * h, this h unscaled, added to `plain` and `with_h`.
template <class A, class T>
ANYNORM_FLAT void sum_columns(const Block<T>& b, const T* dy, ColumnCentre<A> c, A* plain, A* with_h) {
  const auto sum = [&](auto ahead) {
    in_turn(b.rows, [&](int64_t row, auto many) {
      const int64_t at = row * b.stride;
      sum_some_rows<A, decltype(many)::value, decltype(ahead)::value>(b.x + at, dy + at, b.n, b.stride, c, plain, with_h);
    });
  };
  b.ahead ? sum(Given<true>()) : sum(Given<false>());
}

// dx as `dx_of` says.
template <class A>
struct ColumnProjection {
  const A *factor, *slope, *level;
};

template <class A, class T>
ANYNORM_FLAT void project_columns(const Block<T>& b, const T* dy, T* dx, ColumnCentre<A> c, ColumnProjection<A> p, bool past) {
  past = past && can_go_past<A>(dx, b.stride);
  for (int64_t row = 0, at = 0; row < b.rows; ++row, at += b.stride) {
    const T *const from = b.x + at, *const grad = dy + at;
    T* const to = dx + at;
    over_results<A>(b.n, past, [&](int64_t i, auto lanes) {
      const Centred<A> k = c.at(i, lanes);
      const Vec<A> by = lanes.load(p.factor + i), slope = lanes.load(p.slope + i), level = lanes.load(p.level + i);
      lanes.store(to + i, dx_of(k, lanes.load(from + i, k.mean), lanes.load(grad + i), by, slope, level));
    });
  }
}
