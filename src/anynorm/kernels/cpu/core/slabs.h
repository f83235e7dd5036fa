// The columns family: how an array is cut into units of work, and the statistics of one unit.
//
// A slab is a matrix of `rows` x `width`. Where it is wide it is cut into tiles of columns; where it is narrow or not a
// multiple of a vector, `repeat` rows are taken as one, so that loops run over whole vectors. A unit is one tile of one
// slab, its columns numbered 0..n-1; the rows that no longer fill a repeated one are its rest.

struct Pair {
  double a, b;
};
// Sums of what term(i) gives: four at a time, since one sum would wait for the addition before.
template <class F>
inline Pair sum_of(int64_t begin, int64_t end, const F& term) {
  Pair sums[4] = {};
  const auto add = [&](int64_t i, Pair& to) {
    const Pair one = term(i);
    to.a += one.a, to.b += one.b;
  };
  for (; begin + 4 <= end; begin += 4)
    for (int k = 0; k < 4; ++k) add(begin + k, sums[k]);
  for (; begin < end; ++begin) add(begin, sums[0]);
  return {(sums[0].a + sums[1].a) + (sums[2].a + sums[3].a), (sums[0].b + sums[1].b) + (sums[2].b + sums[3].b)};
}

template <class T>
struct Slabs {
  typedef Work<T> W;
  const Call& call;
  const Geometry& g;
  int64_t width, tile, tiles, units, repeat = 1, rows, rest = 0, per_piece, chunks;
  bool ahead;
  int64_t stretch = 1;  // neighbouring columns that are of one group, their scales being neighbours
  Buffer<int64_t> group_of, affine_of;  // of each column, within the slab

  static constexpr int64_t kNarrow = 256;  // columns below which rows are repeated

  explicit Slabs(const Call& c)
      : call(c), g(c.geometry), width(g.columns.size), group_of(width), affine_of(width) {
    constexpr int64_t kWidest = 4096, kTile = 1024;
    constexpr int64_t L = kLanes<W>;
    tile = width > kWidest ? least(width, g.align * most(1, kTile / g.align)) : width;
    tiles = (width + tile - 1) / tile;
    units = g.outer.size * tiles;
    if (tiles == 1 && width < kNarrow) {
      int64_t odd = 1;  // the least number of rows that fill whole vectors
      while (odd * width % L != 0) odd *= 2;
      while (odd * width < 4 * L) odd *= 2;
      if (odd * 4 <= g.rows) repeat = odd;
    }
    const int last = g.columns.rank - 1;
    if (last >= 0 && g.columns.group[last] == 0 && g.columns.affine[last] <= 1) stretch = g.columns.extent[last];
    rows = g.rows / repeat;
    ahead = tiles == 1 && worth_fetching<T>(n(0), g.outer.size * g.pieces.size * g.rows * width);
    rest = g.rows % repeat * width;
    per_piece = (rows + kRowsSummed - 1) / kRowsSummed;
    chunks = g.pieces.size * per_piece;
  }

  bool failed() const { return group_of.failed() || affine_of.failed(); }

  // Fill the two maps, as one counts: the innermost run fastest.
  void number_columns() const {
    int64_t digit[ANYNORM_MAX_RUNS] = {}, group = 0, affine = 0;
    const Walk& w = g.columns;
    for (int64_t i = 0; i < width; ++i) {
      group_of[i] = group, affine_of[i] = affine;
      for (int d = w.rank - 1; d >= 0; --d) {
        group += w.group[d], affine += w.affine[d];
        if (++digit[d] < w.extent[d]) break;
        group -= w.group[d] * w.extent[d], affine -= w.affine[d] * w.extent[d];
        digit[d] = 0;
      }
    }
  }

  int64_t first_column(int64_t unit) const { return unit % tiles * tile; }
  int64_t columns(int64_t unit) const { return least(tile, width - first_column(unit)); }
  int64_t n(int64_t unit) const { return tiles == 1 ? repeat * width : columns(unit); }
  Walk::Place place(int64_t unit) const { return g.outer.at(unit / tiles); }
  // Its groups: a stretch of all groups, since a tile is cut between groups.
  int64_t first_group(int64_t unit) const { return tiles == 1 ? 0 : group_of[first_column(unit)]; }
  int64_t groups(int64_t unit) const {
    if (tiles > 1) return group_of[first_column(unit) + columns(unit) - 1] - first_group(unit) + 1;
    return g.groups / most(1, g.outer.size);
  }

  // Where chunk j of a unit begins; the rests of its pieces follow the chunks proper.
  Block<T> block(int64_t unit, int64_t j, const T* array) const {
    const int64_t stride = tiles == 1 ? repeat * width : width;
    const bool is_rest = j >= chunks;
    const int64_t piece = is_rest ? j - chunks : j / per_piece, row = is_rest ? rows : j % per_piece * kRowsSummed;
    const T* x = array + place(unit).x + first_column(unit) + offset(g.pieces, piece) + row * stride;
    if (is_rest) return {x, 1, rest, stride, false};
    return {x, least(kRowsSummed, rows - row), n(unit), stride, ahead};
  }
  int64_t blocks() const { return chunks + (rest > 0 ? g.pieces.size : 0); }

  // work(j) for all blocks of so many arrays, what was read last first.
  template <class F>
  void backwards(int64_t arrays, const F& work) const {
    last_first(blocks(), arrays * kRowsSummed * n(0) * int64_t(sizeof(T)), work);
  }

  // Mean and second moment of each column of block j.
  template <class A, bool Scaled>
  void moments(int64_t unit, int64_t j, double factor, A* scratch, double* mean, double* m2) const {
    const Block<T> b = block(unit, j, static_cast<const T*>(call.x));
    if (call.removes_mean)
      block_columns<A, true, Scaled>(b, factor, scratch, b.n, mean, m2);
    else
      block_columns<A, false, Scaled>(b, factor, scratch, b.n, mean, m2);
  }

  // Block j's moments into those of the blocks before it.
  void merge(int64_t unit, int64_t j, double* mean, double* m2, const double* other_mean, const double* other_m2) const {
    if (j >= chunks)
      return merge_columns(double(g.pieces.size * rows + j - chunks), 1, rest, mean, m2, other_mean, other_m2);
    const int64_t before = j / per_piece * rows + j % per_piece * kRowsSummed;
    const int64_t here = least(kRowsSummed, rows - j % per_piece * kRowsSummed);
    merge_columns(double(before), double(here), n(unit), mean, m2, other_mean, other_m2);
  }

  // All of a unit's columns; `other` has room for 2 * n doubles.
  template <class A, bool Scaled>
  void all_moments(int64_t unit, double factor, A* scratch, double* mean, double* m2, double* other) const {
    moments<A, Scaled>(unit, 0, factor, scratch, mean, m2);
    for (int64_t j = 1; j < blocks(); ++j) {
      moments<A, Scaled>(unit, j, factor, scratch, other, other + n(unit));
      merge(unit, j, mean, m2, other, other + n(unit));
    }
  }

  // Of each column and its repetitions the moments of all of them, in its place.
  void fold(double* mean, double* m2) const {
    if (repeat == 1) return;
    const int64_t full = g.pieces.size * rows, longer = g.rows % repeat;
    const auto count = [&](int64_t k) { return double(k < longer ? full + g.pieces.size : full); };
    const double share = 1 / double(g.pieces.size * g.rows);
    double more[kNarrow] = {};
    // About the first one's mean, so that where all are equal the differences are exactly 0.
    for (int64_t k = 1; k < repeat; ++k)
      for (int64_t i = 0; i < width; ++i) more[i] += count(k) * (mean[k * width + i] - mean[i]);
    for (int64_t i = 0; i < width; ++i) {
      const double off = more[i] * share;
      m2[i] += count(0) * off * off, more[i] = mean[i] + off;
    }
    for (int64_t k = 1; k < repeat; ++k)
      for (int64_t i = 0; i < width; ++i) {
        const double off = mean[k * width + i] - more[i];
        m2[i] += m2[k * width + i] + count(k) * off * off;
      }
    memcpy(mean, more, size_t(width) * sizeof *mean);
  }

  // From columns, folded, to the groups of a unit; `out` has room for them.
  void to_groups(int64_t unit, const double* mean, const double* m2, Moments* out) const {
    const double count = double(g.pieces.size * g.rows);
    for (int64_t k = 0; k < groups(unit); ++k) out[k] = {0, 0, 0, false};
    // About one column's mean, so that in a constant group all differences are exactly 0.
    over_stretches(unit, [&](int64_t i, int64_t, int64_t group, int64_t) { out[group].m2 = mean[i]; });
    const auto over_all = [&](auto work) {
      over_stretches(unit, [&](int64_t i, int64_t length, int64_t group, int64_t) { work(out[group], i, i + length); });
    };
    over_all([&](Moments& m, int64_t begin, int64_t end) {
      const double about = m.m2;
      const Pair sums = sum_of(begin, end, [&](int64_t i) { return Pair{count, count * (mean[i] - about)}; });
      m.count += sums.a, m.mean += sums.b;
    });
    for (int64_t k = 0; k < groups(unit); ++k) out[k].mean = out[k].m2 + out[k].mean / out[k].count, out[k].m2 = 0;
    over_all([&](Moments& m, int64_t begin, int64_t end) {
      const double about = m.mean;
      const Pair sums = sum_of(begin, end, [&](int64_t i) {
        return Pair{m2[i], count * (mean[i] - about) * (mean[i] - about)};
      });
      m.m2 += sums.a + sums.b;
    });
  }

  // The unit's statistics from its columns' quick moments, which are folded: put where the caller wants them and into
  // `out`.
  int settle(int64_t unit, double* mean, double* m2, Statistic* out) const {
    fold(mean, m2);
    const int64_t many = groups(unit), columns = n(unit), at = place(unit).group + first_group(unit);
    // Each column is a group, as in instance normalization: its moments are the group's.
    const bool are_groups = g.columns.rank == 1 && g.columns.group[0] == 1;
    if (are_groups && settle_at_once<T>(call, at, many, mean, m2, out)) return 0;
    Buffer<Moments> quick(2 * many);
    if (quick.failed()) return ANYNORM_NO_MEMORY;
    to_groups(unit, mean, m2, quick.data);
    double done = 0;  // the factor for which careful moments are at hand
    int failure = 0;
    for (int64_t k = 0; k < many; ++k) {
      const Finished f = settled<T>(call, quick[k], [&](double factor) {
        if (factor != done) {
          Buffer<double> room(7 * columns);
          if (room.failed()) {
            failure = ANYNORM_NO_MEMORY;
            return quick[k];
          }
          double* const careful = room.data + 3 * columns;
          all_moments<double, true>(unit, factor, room.data, careful, careful + columns, careful + 2 * columns);
          fold(careful, careful + columns);
          to_groups(unit, careful, careful + columns, quick.data + many);
          done = factor;
        }
        return quick[many + k];
      });
      put<W>(call, at + k, f);
      out[k] = f.statistic;
    }
    return failure;
  }

  // Call work(column, how many from there on, their group, the first one's scale) for the columns of a unit, not
  // repeated. A tile is cut between groups.
  template <class F>
  void over_stretches(int64_t unit, const F& work) const {
    const int64_t first = first_group(unit), begin = first_column(unit), affine = place(unit).affine;
    for (int64_t i = 0; i < columns(unit); i += stretch)
      work(i, stretch, group_of[begin + i] - first, affine + affine_of[begin + i]);
  }
  // Elements of scale from one column of a stretch to the next.
  int64_t scale_step() const { return g.columns.rank > 0 ? least(1, g.columns.affine[g.columns.rank - 1]) : 0; }

  // Whatever is known for the columns once, for their repetitions too.
  template <class A>
  void repeat_columns(A* values) const {
    for (int64_t i = 1; i < repeat; ++i) memcpy(values + i * width, values, size_t(width) * sizeof(A));
  }

  // Whether several threads have to work on one unit for all to have work.
  bool split(int64_t bytes) const { return call.threads > 1 && units < 2 * call.threads && bytes > 4 * kGrain; }
};
