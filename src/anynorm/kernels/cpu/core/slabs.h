// The columns family: how an array is cut into units of work, and the statistics of one unit.
//
// A slab is a matrix of `rows` x `width`. Where it is wide it is cut into tiles of columns; where it is narrow or not a
// multiple of a vector, `repeat` rows are taken as one, so that loops run over whole vectors. A unit is one tile of one
// slab, its columns numbered 0..n-1; the rows that no longer fill a repeated one are its rest.

template <class T>
struct Slabs {
  typedef Work<T> W;
  const Call& call;
  const Geometry& g;
  int64_t width, tile, tiles, units, repeat = 1, rows, rest = 0, per_piece, chunks;
  bool four;  // rows at once, or two
  Buffer<int64_t> group_of, affine_of;  // of each column, within the slab

  explicit Slabs(const Call& c)
      : call(c), g(c.geometry), width(g.columns.size), group_of(width), affine_of(width) {
    constexpr int64_t kWidest = 4096, kTile = 1024, kNarrow = 256;
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
    rows = g.rows / repeat;
    rest = g.rows % repeat * width;
    per_piece = (rows + kRowsSummed - 1) / kRowsSummed;
    chunks = g.pieces.size * per_piece;
    four = g.groups * g.count * int64_t(sizeof(T)) <= kInCache;
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
    return {x, least(kRowsSummed, rows - row), n(unit), stride, four};
  }
  int64_t blocks() const { return chunks + (rest > 0 ? g.pieces.size : 0); }

  // Mean and second moment of each column of block j.
  template <class A, bool Scaled>
  void moments(int64_t unit, int64_t j, double factor, A* scratch, double* mean, double* m2) const {
    const Block<T> b = block(unit, j, static_cast<const T*>(call.x));
    if (call.removes_mean)
      block_columns<A, true, Scaled>(b, factor, scratch, mean, m2);
    else
      block_columns<A, false, Scaled>(b, factor, scratch, mean, m2);
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

  // From columns to the groups of a unit; `out` has room for them.
  void to_groups(int64_t unit, const double* mean, const double* m2, Moments* out) const {
    const int64_t first = first_group(unit), begin = first_column(unit), across = columns(unit);
    const double full = double(g.pieces.size * rows), more = double(g.pieces.size);
    for (int64_t k = 0; k < groups(unit); ++k) out[k] = {0, 0, 0, false};
    // About one column's mean, so that in a constant group all differences are exactly 0.
    for (int64_t i = across - 1; i >= 0; --i) out[group_of[begin + i] - first].m2 = mean[i];
    const auto over_columns = [&](auto work) {
      for (int64_t i = 0, w = 0; i < n(unit); ++i) {
        work(out[group_of[begin + w] - first], i, i < rest ? full + more : full);
        if (++w == across) w = 0;
      }
    };
    over_columns([&](Moments& m, int64_t i, double count) {
      m.count += count;
      m.mean += count * (mean[i] - m.m2);
    });
    for (int64_t k = 0; k < groups(unit); ++k) out[k].mean = out[k].m2 + out[k].mean / out[k].count, out[k].m2 = 0;
    over_columns([&](Moments& m, int64_t i, double count) {
      const double delta = mean[i] - m.mean;
      m.m2 += m2[i] + count * delta * delta;
    });
  }

  // The unit's statistics from its columns' quick moments, put where the caller wants them and into `out`.
  int settle(int64_t unit, const double* mean, const double* m2, Statistic* out) const {
    const int64_t many = groups(unit), columns = n(unit);
    Buffer<Moments> quick(2 * many);
    if (quick.failed()) return ANYNORM_NO_MEMORY;
    to_groups(unit, mean, m2, quick.data);
    double done = 0;  // the factor for which careful moments are at hand
    int failure = 0;
    const int64_t at = place(unit).group + first_group(unit);
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

  // Call work(column, group, element of scale) for the columns of a unit, not repeated.
  template <class F>
  void over_columns(int64_t unit, const F& work) const {
    const int64_t first = first_group(unit), begin = first_column(unit), affine = place(unit).affine;
    for (int64_t i = 0; i < columns(unit); ++i) work(i, group_of[begin + i] - first, affine + affine_of[begin + i]);
  }

  // Whatever is known for the columns once, for their repetitions too.
  template <class A>
  void repeat_columns(A* values) const {
    for (int64_t i = 1; i < repeat; ++i) memcpy(values + i * width, values, size_t(width) * sizeof(A));
  }

  bool any_wide(int64_t unit, const Statistic* s) const {
    for (int64_t k = 0; k < groups(unit); ++k)
      if (is_wide<T>(s[k])) return true;
    return false;
  }

  // Whether several threads have to work on one unit for all to have work.
  bool split(int64_t bytes) const { return call.threads > 1 && units < 2 * call.threads && bytes > 4 * kGrain; }
};
