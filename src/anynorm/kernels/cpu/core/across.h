// Across: as columns, but each row has a scale of its own and every column is a group.

// How columns are cut. Into parts, whatever the threads and the number of matrices: all rows of one stay in the
// second-level cache, its sums over a row are one number, and a column that needs doubles takes all of it there. And
// into tiles of several parts, whose rows are read at once.
struct Cut {
  int64_t part, tile;
  static constexpr int64_t kParts = 16;  // of a tile at most
};

template <class T>
Cut cut_across(const Call& call) {
  constexpr int64_t kTile = 256 * 1024, kLarge = 1024 * 1024, kPage = 4096 / int64_t(sizeof(T)), kTiles = 64;
  constexpr int64_t kLeast = 64, kShort = 256, kLong = 1024, kMost = 2048;
  const Geometry& g = call.geometry;
  const int64_t columns = g.columns.size, row = most(1, g.rows * int64_t(sizeof(T))), fit = kTile / row;
  // At multiples of a large power of two rows share a few sets of the cache, which holds only some of them, however
  // narrow a part is: then a page of each is read at once, if there is work for all threads.
  const int64_t bytes = columns * int64_t(sizeof(T)), step = bytes & -bytes;
  const bool collide = fit < kPage && step >= 4096 && g.rows * step > kLarge;
  Cut out;
  if (collide) {
    out.part = kPage / 4;
  } else {
    const int64_t most_columns = most(kLeast, least(fit, kMost)), some = (columns + most_columns - 1) / most_columns;
    out.part = ((columns + some - 1) / some + 15) / 16 * 16;  // whole lines of `line_of`
  }
  // Parts of many rows are so short a piece of each that the processor does not foresee it: then more of them, as far as
  // a larger cache would hold them and there are tiles for many threads.
  const int64_t wanted = collide ? kPage : fit > kShort ? 0 : least(kLong, kLarge / row);
  const int64_t enough = g.outer.size * columns / (collide ? 2 * call.threads : kTiles);
  const int64_t parts = (columns + out.part - 1) / out.part, together = least(wanted, enough) / out.part;
  const int64_t each = most(1, least(together, Cut::kParts)), tiles = (parts + each - 1) / each;
  out.tile = (parts + tiles - 1) / tiles * out.part;
  return out;
}

template <class T>
struct Across {
  typedef Work<T> W;
  const Call& call;
  const Geometry& g;
  const int64_t part, tile, parts, tiles, units;

  explicit Across(const Call& c) : Across(c, cut_across<T>(c)) {}
  Across(const Call& c, Cut cut)
      : call(c),
        g(c.geometry),
        part(cut.part),
        tile(cut.tile),
        parts((g.columns.size + part - 1) / part),
        tiles((g.columns.size + tile - 1) / tile),
        units(g.outer.size * tiles) {}

  // Some columns of a matrix: where they begin, their first group, their first part among all, and their number.
  struct Some {
    int64_t at, group, part, n;
  };
  Some unit(int64_t i) const {
    const Walk::Place in = g.outer.at(i / tiles);
    const int64_t first = i % tiles * tile;
    return {in.x + first, in.group + first, i / tiles * parts + first / part, least(tile, g.columns.size - first)};
  }
  // work(part of them, its first column among them).
  template <class F>
  void over_parts(const Some& some, const F& work) const {
    for (int64_t i = 0; i < some.n; i += part)
      work(Some{some.at + i, some.group + i, some.part + i / part, least(part, some.n - i)}, i);
  }
  // work(columns, their statistics, a zero of the type that they need): all at once, or part by part where one needs
  // doubles.
  template <class F>
  void in_type(const Some& some, const Statistic* s, const F& work) const {
    if (!any_wide<T>(s, some.n)) return work(some, s, W(0));
    over_parts(some, [&](const Some& own, int64_t i) {
      any_wide<T>(s + i, own.n) ? work(own, s + i, 0.0) : work(own, s + i, W(0));
    });
  }

  // Whether the columns are so few that all that belongs to them stays in registers. Of arrays in the precision of the
  // arithmetic alone: it is code of its own for every number of vectors.
  template <class A>
  bool are_few() const {
    return vectors_of<A>(g.columns.size) <= kFew && !call.past;
  }

  // work(row, how many from there on, their scales, their offsets) for all rows; backwards for results, since what was
  // read last is still in the cache, where several rows are taken at once.
  template <class A, class F>
  void over_rows(bool backwards, const F& work) const {
    const W *scale = static_cast<const W*>(call.scale), *offset = static_cast<const W*>(call.offset);
    // Backwards, the rows that are left over come first, and the others in the same parts from the last on.
    const int64_t first = backwards ? g.rows % 4 : 0;
    const auto pass = [&](int64_t row, auto many) {
      constexpr int R = decltype(many)::value;
      A by[R], more[R];
      for (int r = 0; r < R; ++r) {
        by[r] = scale == nullptr ? A(1) : A(scale[row + r]);
        more[r] = offset == nullptr ? A(0) : A(offset[row + r]);
      }
      work(row, many, by, more);
    };
    if (!backwards) return in_turn(g.rows, pass);
    // Where each row begins amid a line of the cache, vectors of two lines are stored, and take half as long if the
    // next one follows at once.
    if (g.columns.size * int64_t(sizeof(T)) % 64 != 0) {
      for (int64_t row = 0; row < g.rows; ++row) pass(row, AtOnce<1>());
      return;
    }
    in_turn(g.rows - first, [&](int64_t row, auto many) {
      pass(g.rows - row - decltype(many)::value, many);
    });
    in_turn(first, pass);
  }

  // Each line of numbers, one a column, begins with a whole vector.
  static int64_t line_of(int64_t n) { return (n + 15) / 16 * 16; }

  // `room`: 7 lines, into the first two of which go the means and the second moments.
  template <class A, bool Scaled>
  void moments(const Some& some, double factor, double* room) const {
    const int64_t line = line_of(some.n);
    double *mean = room, *m2 = room + line, *other = m2 + line;
    A* const scratch = reinterpret_cast<A*>(other + 2 * line);
    const bool is_all = some.n == g.columns.size;
    const bool ahead = is_all && worth_fetching<T>(some.n, g.outer.size * g.rows * some.n);
    for (int64_t row = 0; row < g.rows; row += kRowsSummed) {
      const T* x = static_cast<const T*>(call.x) + some.at + row * g.columns.size;
      const Block<T> b = {x, least(kRowsSummed, g.rows - row), some.n, g.columns.size, ahead};
      double *into_mean = row == 0 ? mean : other, *into_m2 = row == 0 ? m2 : other + line;
      if (call.removes_mean)
        block_columns<A, true, Scaled>(b, factor, scratch, line, into_mean, into_m2);
      else
        block_columns<A, false, Scaled>(b, factor, scratch, line, into_mean, into_m2);
      if (row > 0) merge_columns(double(row), double(b.rows), b.n, mean, m2, into_mean, into_m2);
    }
  }

  // `room`: as for `moments`.
  int statistics(const Some& some, double* room, Statistic* out) const {
    const int64_t columns = some.n, line = line_of(columns);
    const double *mean = room, *m2 = room + line;
    moments<W, false>(some, 1, room);
    if (settle_at_once<T>(call, some.group, columns, mean, m2, out)) return 0;
    double done = 0;
    int failure = 0;
    double* again = nullptr;
    for (int64_t i = 0; i < columns; ++i) {
      const Moments quick = {double(g.rows), mean[i], m2[i], false};
      const Finished f = settled<T>(call, quick, [&](double factor) {
        if (factor != done) {
          if (again == nullptr) again = static_cast<double*>(malloc(size_t(7 * line) * sizeof(double)));
          if (again == nullptr) {
            failure = ANYNORM_NO_MEMORY;
            return quick;
          }
          moments<double, true>(some, factor, again);
          done = factor;
        }
        return Moments{double(g.rows), again[i], again[line + i], false};
      });
      put<W>(call, some.group + i, f);
      out[i] = f.statistic;
    }
    free(again);
    return failure;
  }

  template <class A>
  void centre(const Statistic* s, int64_t n, Lines<A> l) const {
    for (int64_t i = 0; i < n; ++i) {
      const Centre<A> k(s[i]);
      l.line(0)[i] = k.mean, l.line(1)[i] = k.minus, l.line(2)[i] = k.rest;
    }
    for (int64_t i = n; i < l.n; ++i) l.line(0)[i] = l.line(1)[i] = l.line(2)[i] = 0;
  }

  template <class A>
  ANYNORM_FLAT void apply(const Some& some, const Statistic* s, double* room) const {
    const int64_t n = some.n;
    const Lines<A> l = {reinterpret_cast<A*>(room), line_of(n)};
    centre(s, n, l);
    if constexpr (sizeof(A) == sizeof(T)) {
      if (are_few<A>())
        return in_few(vectors_of<A>(n), [&](auto few) {
          apply_few<A, decltype(few)::value>(static_cast<const T*>(call.x) + some.at,
                                             static_cast<T*>(call.y) + some.at, g.rows, n, g.columns.size, l.centre(),
                                             static_cast<const W*>(call.scale), static_cast<const W*>(call.offset));
        });
    }
    over_rows<A>(true, [&](int64_t row, auto many, const A* by, const A* more) {
      const int64_t place = some.at + row * g.columns.size;
      apply_across<A, decltype(many)::value>(static_cast<const T*>(call.x) + place, static_cast<T*>(call.y) + place,
                                             n, g.columns.size, l.centre(), by, more, call.past);
    });
  }

  // `room`: 10 lines; affine: room for the rows' sums of all parts, or NULL.
  template <class A>
  ANYNORM_FLAT void backward(const Some& some, const Statistic* s, double* room, Sums* affine) const {
    const int64_t n = some.n, whole = line_of(n);
    const Lines<A> l = {reinterpret_cast<A*>(room + 4 * whole), whole};
    centre(s, n, l);
    const T *x = static_cast<const T*>(call.x) + some.at, *dy = static_cast<const T*>(call.dy) + some.at;
    const int64_t stride = g.columns.size;
    double *plain = room, *with_h = room + l.n, *rstd = room + 2 * l.n;
    memset(static_cast<void*>(room), 0, size_t(3 * l.n) * sizeof(double));
    for (int64_t i = 0; i < n; ++i) rstd[i] = s[i].rstd;
    if (call.sums_given) {
      for (int64_t i = 0; i < n; ++i)
        plain[i] = call.sums[some.group + i].plain, with_h[i] = call.sums[some.group + i].with_h;
    } else {
      A *some_plain = l.line(3), *some_with_h = l.line(4);
      memset(static_cast<void*>(some_plain), 0, size_t(2 * l.n) * sizeof(A));
      const auto pour = [&] {
        for (int64_t i = 0; i < l.n; ++i) plain[i] += double(some_plain[i]), with_h[i] += double(some_with_h[i]);
        memset(static_cast<void*>(some_plain), 0, size_t(2 * l.n) * sizeof(A));
      };
      over_rows<A>(false, [&](int64_t row, auto many, const A* by, const A*) {
        constexpr int R = decltype(many)::value;
        over_parts(some, [&](const Some& own, int64_t i) {
          const int64_t at = row * stride + i;
          Sums of_row[R];
          sum_across<A, R>(x + at, dy + at, own.n, stride, l.centre().from(i), by, some_plain + i, some_with_h + i,
                           of_row);
          for (int r = 0; affine != nullptr && r < R; ++r) affine[own.part * g.rows + row + r] = of_row[r];
        });
        if ((row + R) % kRowsSummed == 0) pour();
      });
      pour();
      if (call.sums != nullptr)
        for (int64_t i = 0; i < n; ++i) call.sums[some.group + i] = {plain[i], with_h[i]};
    }
    if (call.dx == nullptr) return;
    if (make_projection(whole, room, l)) return project(some, l);
    // Part by part, as if each were alone; those in doubles last, since their lines lie on those of the others.
    bool lost[Cut::kParts] = {};
    over_parts(some, [&](const Some& own, int64_t i) {
      const Lines<A> here = l.from(i);
      if (make_projection(line_of(own.n), room + i, here))
        project(own, here);
      else
        lost[i / part] = true;
    });
    over_parts(some, [&](const Some& own, int64_t i) {
      if (!lost[i / part]) return;
      const Lines<double> wide = {room + 4 * whole, whole};
      centre(s + i, own.n, wide);
      make_projection(line_of(own.n), room + i, wide);
      project(own, wide);
    });
  }

  // The projections of `n` columns, whole vectors of them, whose centres are at hand, from plain, with_h and rstd in
  // `room`, l.n numbers apart; whether they fit the type.
  template <class A>
  ANYNORM_APART bool make_projection(int64_t n, const double* room, Lines<A> l) const {
    typedef Vec<double> D;
    decltype(D() < D()) lost = {};
    for (int64_t i = 0; i < n; i += kLanes<double>) {
      const D plain = load<double>(room + i), with_h = load<double>(room + l.n + i);
      const D rstd = load<double>(room + 2 * l.n + i), rest = load<double>(l.line(2) + i);
      const ProjectionOf<A, D> p(call, rstd, rest, plain, with_h);
      store<double>(l.line(3) + i, rstd), store<double>(l.line(4) + i, p.slope), store<double>(l.line(5) + i, p.level);
      lost |= p.lost;
    }
    for (int64_t i = 0; i < kLanes<double>; ++i)
      if (lost[i]) return false;
    return true;
  }

  // dx, with centres and projections at hand.
  template <class A>
  ANYNORM_APART ANYNORM_FLAT void project(const Some& some, Lines<A> l) const {
    const int64_t n = some.n;
    if constexpr (sizeof(A) == sizeof(T)) {
      if (are_few<A>())
        return in_few(vectors_of<A>(n), [&](auto few) {
          project_few<A, decltype(few)::value>(static_cast<const T*>(call.x) + some.at,
                                               static_cast<const T*>(call.dy) + some.at,
                                               static_cast<T*>(call.dx) + some.at, g.rows, n, g.columns.size,
                                               l.centre(), l.projection(), static_cast<const W*>(call.scale));
        });
    }
    over_rows<A>(true, [&](int64_t row, auto many, const A* by, const A*) {
      const int64_t place = some.at + row * g.columns.size;
      project_across<A, decltype(many)::value>(static_cast<const T*>(call.x) + place,
                                               static_cast<const T*>(call.dy) + place,
                                               static_cast<T*>(call.dx) + place, n, g.columns.size, l.centre(),
                                               l.projection(), by, call.past);
    });
  }
};

template <class T>
int forward_across(const Call& call) {
  const Across<T> a(call);
  const int64_t each_task = grain(call.geometry.rows * a.tile * int64_t(sizeof(T)));
  return each(call, (a.units + each_task - 1) / each_task, [&](int64_t task) {
    Buffer<double> room(7 * a.tile);
    Buffer<Statistic> found(a.tile);
    if (room.failed() || found.failed()) return int(ANYNORM_NO_MEMORY);
    for (int64_t unit = task * each_task; unit < least(a.units, (task + 1) * each_task); ++unit) {
      const auto some = a.unit(unit);
      const Statistic* s = found.data;
      if (call.given)
        s = call.statistics + some.group;
      else if (const int failure = a.statistics(some, room.data, found.data))
        return failure;
      if (call.y == nullptr) continue;
      a.in_type(some, s, [&](const auto& own, const Statistic* s, auto zero) {
        a.template apply<decltype(zero)>(own, s, room.data);
      });
    }
    return 0;
  });
}

template <class T>
int backward_across(const Call& call) {
  const Across<T> a(call);
  const Geometry& g = call.geometry;
  const bool wants_affine = call.affine_sums != nullptr;
  const int64_t parts = g.outer.size * a.parts;
  Buffer<Sums> affine(wants_affine ? parts * g.rows : 0);
  if (affine.failed()) return ANYNORM_NO_MEMORY;
  const int64_t each_task = grain(2 * g.rows * a.tile * int64_t(sizeof(T)));
  const int failure = each(call, (a.units + each_task - 1) / each_task, [&](int64_t task) {
    Buffer<double> room(10 * a.tile);
    if (room.failed()) return int(ANYNORM_NO_MEMORY);
    for (int64_t unit = task * each_task; unit < least(a.units, (task + 1) * each_task); ++unit) {
      const auto some = a.unit(unit);
      a.in_type(some, call.statistics + some.group, [&](const auto& own, const Statistic* s, auto zero) {
        a.template backward<decltype(zero)>(own, s, room.data, affine.data);
      });
    }
    return 0;
  });
  if (failure != 0 || !wants_affine) return failure;
  for (int64_t part = 0; part < parts; ++part)
    for (int64_t row = 0; row < g.rows; ++row) {
      call.affine_sums[row].plain += affine[part * g.rows + row].plain;
      call.affine_sums[row].with_h += affine[part * g.rows + row].with_h;
    }
  return 0;
}
