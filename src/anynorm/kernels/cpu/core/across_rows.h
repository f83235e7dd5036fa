// Across: what is done to a few rows of a tile at once.

// R rows at once, so that what belongs to a column is loaded once for all of them; made before the first is stored, as
// in `make_vectors`, since rows may lie a multiple of 4096 bytes apart.
template <class A, int R, class T>
void apply_across(const T* x, T* y, int64_t n, int64_t stride, ColumnCentre<A> c, const A* scale, const A* offset,
                  bool past) {
  Vec<A> by[R], more[R];
  for (int r = 0; r < R; ++r) by[r] = broadcast(scale[r]), more[r] = broadcast(offset[r]);
  over_results<A>(n, past && can_go_past<A>(y, stride), x != y, [&](int64_t i, auto lanes) {
    const Centred<A> k = c.at(i, lanes);
    Vec<A> made[R];
    for (int r = 0; r < R; ++r) made[r] = fma(k.h(lanes.load(x + r * stride + i, k.mean)), by[r], more[r]);
    for (int r = 0; r < R; ++r) lanes.store(y + r * stride + i, made[r]);
  });
}

// R rows a page further on, or the next R where they are longer: nearer ones would be asked for too late.
template <int R, class T>
inline void fetch_next(const T* x, int64_t stride) {
  const T* const next = x + most(R * stride, 4096 / int64_t(sizeof(T)));
  for (int r = 0; r < R; ++r) fetch(next + r * stride);
}

// To each column's sums of g and g * h, and each row's own sums of dy and dy * h. What is next is fetched whatever the
// array's size: in a model even a small one has left the caches by then, and eight places are more than a processor
// follows by itself.
template <class A, int R, class T>
void sum_across(const T* x, const T* dy, int64_t n, int64_t stride, ColumnCentre<A> c, const A* scale, A* plain,
                A* with_h, Sums* rows) {
  Vec<A> by[R], row_plain[R] = {}, row_with_h[R] = {};
  for (int r = 0; r < R; ++r) by[r] = broadcast(scale[r]);
  over_vectors<A>(n, [&](int64_t i, auto lanes) {
    // What belongs to columns is there for whole vectors: a part that was stored could not be loaded at once.
    const Centred<A> k = c.at(i, Whole<A>());
    Vec<A> p = load<A>(plain + i), q = load<A>(with_h + i);
    fetch_next<R>(x + i, stride), fetch_next<R>(dy + i, stride);
    for (int pair = 0; pair < R; pair += 2) {
      Vec<A> of_g = {}, of_g_h = {};
      for (int r = pair; r < R && r < pair + 2; ++r) {
        const int64_t at = r * stride + i;
        const Vec<A> dy_here = lanes.load(dy + at), h = k.h(lanes.load(x + at, k.mean)), g = dy_here * by[r];
        row_plain[r] += dy_here;
        row_with_h[r] = fma(dy_here, h, row_with_h[r]);
        of_g = r == pair ? g : Vec<A>(of_g + g);
        of_g_h = r == pair ? Vec<A>(g * h) : fma(g, h, of_g_h);
      }
      p += of_g;
      q += of_g_h;
    }
    store<A>(plain + i, p), store<A>(with_h + i, q);
  });
  double all[R], all_with_h[R];
  sums_of_lanes<A, R>(row_plain, all), sums_of_lanes<A, R>(row_with_h, all_with_h);
  for (int r = 0; r < R; ++r) rows[r] = {all[r], all_with_h[r]};
}

// dx as `dx_of` says.
template <class A, int R, class T>
void project_across(const T* x, const T* dy, T* dx, int64_t n, int64_t stride, ColumnCentre<A> c,
                    ColumnProjection<A> p, const A* scale, bool past) {
  Vec<A> by[R];
  for (int r = 0; r < R; ++r) by[r] = broadcast(scale[r]);
  over_results<A>(n, past && can_go_past<A>(dx, stride), dx != x && dx != dy, [&](int64_t i, auto lanes) {
    const Centred<A> k = c.at(i, lanes);
    const Vec<A> rstd = lanes.load(p.factor + i), slope = lanes.load(p.slope + i), level = lanes.load(p.level + i);
    Vec<A> made[R];
    for (int r = 0; r < R; ++r) {
      const int64_t at = r * stride + i;
      made[r] = dx_of(k, lanes.load(x + at, k.mean), lanes.load(dy + at), Vec<A>(rstd * by[r]), slope, level);
    }
    for (int r = 0; r < R; ++r) lanes.store(dx + r * stride + i, made[r]);
  });
}
