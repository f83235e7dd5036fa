// Columns: matrices whose rows are reduced. What `columns` and `across` share: sums over rows, column by column.

// Rows whose sums are taken in the array's own precision before doubles take over.
constexpr int64_t kRowsSummed = 128;
// Rows pass through the arithmetic four at once, so that what belongs to a column is loaded once for all of them, or two
// at once: out of memory four streams come at two thirds of the speed. Sums are of pairs in either case, so that the
// choice, which looks at the whole array, is not seen in the result of a part of it.

// work(row, R) for all rows: R is 4 where `four` says so, then 2, then 1.
template <int R>
struct Rows {
  static constexpr int value = R;
};
template <class F>
inline void in_turn(int64_t rows, bool four, const F& work) {
  int64_t row = 0;
  if (four)
    for (; row + 4 <= rows; row += 4) work(row, Rows<4>());
  for (; row + 2 <= rows; row += 2) work(row, Rows<2>());
  if (row < rows) work(row, Rows<1>());
}

// A part of a matrix: `n` columns of `rows` rows that are `stride` elements apart.
template <class T>
struct Block {
  const T* x;
  int64_t rows, n, stride;
  bool four;
};

// Sums over rows of x - shift and its square; the loops run along memory and keep their sums in L1.
template <class A, bool Centred, bool Scaled, int R, class T>
inline void add_rows(const T* x, int64_t n, int64_t stride, A factor, const A* shift, A* sum, A* square) {
  constexpr int64_t L = kLanes<A>;
  const Vec<A> zero = {};
  int64_t i = 0;
  for (; i + L <= n; i += L) {
    const Vec<A> about = Centred ? load<A>(shift + i) : zero;
    Vec<A> s = Centred ? load<A>(sum + i) : zero, q = load<A>(square + i);
    for (int pair = 0; pair < R; pair += 2) {
      // First among themselves: the fewer numbers are added to one, the less is rounded away.
      Vec<A> here = {}, squares = {};
      for (int r = pair; r < R && r < pair + 2; ++r) {
        Vec<A> v = scaled<A, Scaled>(x + r * stride + i, factor);
        if (Centred) v -= about, here += v;
        squares = fma(v, v, squares);
      }
      if (Centred) s += here;
      q += squares;
    }
    if (Centred) store<A>(sum + i, s);
    store<A>(square + i, q);
  }
  if (i == n) return;
  const int64_t m = n - i;
  const Vec<A> about = Centred ? load_part<A>(shift + i, m, zero) : zero;
  Vec<A> s = Centred ? load_part<A>(sum + i, m, zero) : zero, q = load_part<A>(square + i, m, zero);
  for (int pair = 0; pair < R; pair += 2) {
    Vec<A> here = {}, squares = {};
    for (int r = pair; r < R && r < pair + 2; ++r) {
      Vec<A> v = load_part<A>(x + r * stride + i, m, zero);
      if (Scaled) v *= factor;
      if (Centred) v -= about, here += v;
      squares = fma(v, v, squares);
    }
    if (Centred) s += here;
    q += squares;
  }
  if (Centred) store_part<A>(sum + i, m, s);
  store_part<A>(square + i, m, q);
}

// Mean and second moment of each column of one block of at most kRowsSummed rows.
// `scratch` has room for 3 * n numbers. A column whose shift lay far from its mean, and only that one, gets NaN, which
// nobody takes for a good variance.
template <class A, bool Centred, bool Scaled, class T>
void block_columns(const Block<T>& b, double by, A* scratch, double* mean, double* m2) {
  constexpr int64_t L = kLanes<A>;
  const A factor = A(by);
  A *shift = scratch, *sum = scratch + b.n, *square = scratch + 2 * b.n;
  memset(static_cast<void*>(sum), 0, size_t(2 * b.n) * sizeof(A));
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
  in_turn(b.rows, b.four, [&](int64_t row, auto many) {
    add_rows<A, Centred, Scaled, decltype(many)::value>(b.x + row * b.stride, b.n, b.stride, factor, shift, sum, square);
  });
  const double n = double(b.rows), share = 1 / n;
  if (!Centred) {
    for (int64_t i = 0; i < b.n; ++i) mean[i] = 0, m2[i] = double(square[i]);
    return;
  }
  for (int64_t i = 0; i < b.n; ++i) {
    const double total = double(sum[i]), all = double(square[i]), lost = total * total * share;
    mean[i] = double(shift[i]) + total * share;
    m2[i] = !Scaled && lost > kFarShift * all ? double(NAN) : lost > all ? 0 : all - lost;
  }
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

// y = (x - mean) * factor + summand, each of them one number a column.
template <class A>
struct ColumnLine {
  const A *mean, *factor, *summand;
};

template <class A, int R, class T>
inline void apply_some_rows(const T* x, T* y, int64_t n, int64_t stride, ColumnLine<A> c) {
  constexpr int64_t L = kLanes<A>;
  int64_t i = 0;
  for (; i + L <= n; i += L) {
    const Vec<A> mean = load<A>(c.mean + i), a = load<A>(c.factor + i), b = load<A>(c.summand + i);
    for (int r = 0; r < R; ++r)
      store<A>(y + r * stride + i, fma(Vec<A>(load<A>(x + r * stride + i) - mean), a, b));
  }
  if (i == n) return;
  const int64_t m = n - i;
  const Vec<A> zero = {}, mean = load_part<A>(c.mean + i, m, zero), a = load_part<A>(c.factor + i, m, zero),
               b = load_part<A>(c.summand + i, m, zero);
  for (int r = 0; r < R; ++r)
    store_part<A>(y + r * stride + i, m, fma(Vec<A>(load_part<A>(x + r * stride + i, m, mean) - mean), a, b));
}

template <class A, class T>
void apply_columns(const Block<T>& b, T* y, ColumnLine<A> c) {
  in_turn(b.rows, b.four, [&](int64_t row, auto many) {
    apply_some_rows<A, decltype(many)::value>(b.x + row * b.stride, y + row * b.stride, b.n, b.stride, c);
  });
}

// h = (x - mean) * rstd + rest, column by column.
template <class A>
struct ColumnCentre {
  const A *mean, *rstd, *rest;
};

template <class A, int R, class T>
inline void sum_some_rows(const T* x, const T* dy, int64_t n, int64_t stride, ColumnCentre<A> c, A* plain, A* with_h) {
  constexpr int64_t L = kLanes<A>;
  int64_t i = 0;
  for (; i + L <= n; i += L) {
    const Vec<A> mean = load<A>(c.mean + i), rstd = load<A>(c.rstd + i), rest = load<A>(c.rest + i);
    Vec<A> all_plain = load<A>(plain + i), all_with_h = load<A>(with_h + i);
    for (int pair = 0; pair < R; pair += 2) {
      Vec<A> p = {}, q = {};
      for (int r = pair; r < R && r < pair + 2; ++r) {
        const Vec<A> g = load<A>(dy + r * stride + i);
        p += g;
        q = fma(g, fma(Vec<A>(load<A>(x + r * stride + i) - mean), rstd, rest), q);
      }
      all_plain += p;
      all_with_h += q;
    }
    store<A>(plain + i, all_plain), store<A>(with_h + i, all_with_h);
  }
  if (i == n) return;
  const int64_t m = n - i;
  const Vec<A> zero = {}, mean = load_part<A>(c.mean + i, m, zero), rstd = load_part<A>(c.rstd + i, m, zero),
               rest = load_part<A>(c.rest + i, m, zero);
  Vec<A> all_plain = load_part<A>(plain + i, m, zero), all_with_h = load_part<A>(with_h + i, m, zero);
  for (int pair = 0; pair < R; pair += 2) {
    Vec<A> p = {}, q = {};
    for (int r = pair; r < R && r < pair + 2; ++r) {
      const Vec<A> g = load_part<A>(dy + r * stride + i, m, zero);
      p += g;
      q = fma(g, fma(Vec<A>(load_part<A>(x + r * stride + i, m, mean) - mean), rstd, rest), q);
    }
    all_plain += p;
    all_with_h += q;
  }
  store_part<A>(plain + i, m, all_plain), store_part<A>(with_h + i, m, all_with_h);
}

// Sums over the rows of dy and dy * h, added to `plain` and `with_h`.
template <class A, class T>
void sum_columns(const Block<T>& b, const T* dy, ColumnCentre<A> c, A* plain, A* with_h) {
  in_turn(b.rows, b.four, [&](int64_t row, auto many) {
    sum_some_rows<A, decltype(many)::value>(b.x + row * b.stride, dy + row * b.stride, b.n, b.stride, c, plain, with_h);
  });
}

// dx = dy * factor + h * slope + level
template <class A>
struct ColumnProjection {
  const A *factor, *slope, *level;
};

template <class A, int R, class T>
inline void project_some_rows(const T* x, const T* dy, T* dx, int64_t n, int64_t stride, ColumnCentre<A> c,
                              ColumnProjection<A> p) {
  constexpr int64_t L = kLanes<A>;
  for (int64_t i = 0; i < n; i += L) {
    const int64_t m = least(L, n - i);
    const bool all = m == L;
    const Vec<A> zero = {};
    const auto of = [&](const A* column) { return all ? load<A>(column + i) : load_part<A>(column + i, m, zero); };
    const Vec<A> mean = of(c.mean), rstd = of(c.rstd), rest = of(c.rest);
    const Vec<A> by = of(p.factor), slope = of(p.slope), level = of(p.level);
    for (int r = 0; r < R; ++r) {
      const int64_t at = r * stride + i;
      const Vec<A> v = all ? load<A>(x + at) : load_part<A>(x + at, m, mean);
      const Vec<A> g = all ? load<A>(dy + at) : load_part<A>(dy + at, m, zero);
      const Vec<A> out = fma(g, by, fma(fma(Vec<A>(v - mean), rstd, rest), slope, level));
      if (all)
        store<A>(dx + at, out);
      else
        store_part<A>(dx + at, m, out);
    }
  }
}

template <class A, class T>
void project_columns(const Block<T>& b, const T* dy, T* dx, ColumnCentre<A> c, ColumnProjection<A> p) {
  in_turn(b.rows, b.four, [&](int64_t row, auto many) {
    const int64_t at = row * b.stride;
    project_some_rows<A, decltype(many)::value>(b.x + at, dy + at, dx + at, b.n, b.stride, c, p);
  });
}
