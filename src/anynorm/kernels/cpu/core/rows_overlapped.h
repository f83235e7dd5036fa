// Rows, forward, of one block each and with a scale for each element: while the results of one are written, the second
// one behind it is read and summed up. So memory is read and written at once, and the statistic of the row between them
// has the time of a row to arrive.

// The moments of a row, and the number about which its sums are taken.
template <class A>
struct RowMoments {
  Vec<A> about = {};
  double shift = 0, mean = 0, m2 = 0;
};

// y of a row, and the moments of a later one, as of `short_moments`. IsPast: y goes past the caches, and what follows the later row is fetched.
template <class A, bool Removes, bool IsPast, class T>
ANYNORM_APART void scale_and_sum(const T* x, T* y, int64_t n, const Centre<A>& centre, const Work<T>* scale,
                                 const Work<T>* offset, const T* later, RowMoments<A>* moments) {
  constexpr int64_t L = kLanes<A>;
  const Centred<A> k(centre);
  const Vec<A> about = moments->about;
  Vec<A> sum = {}, square = {};
  const auto over = [&](const auto& more) {
    const auto of = [&](int64_t i, auto lanes) {
      return fma(k.h(lanes.load(x + i, k.mean)), lanes.load(scale + i), more(i, lanes));
    };
    // All made before the first is stored, as in `make_vectors`.
    const auto some = [&](int64_t i, auto vectors) {
      constexpr int V = decltype(vectors)::value;
      Vec<A> made[V];
      for (int j = 0; j < V; ++j) made[j] = of(i + j * L, Whole<A>());
      for (int j = 0; j < V; j += 2) {
        const T* const from = later + i + j * L;
        if (IsPast) fetch(from + n);
        if (IsPast && sizeof(Vec<A>) == 64) fetch(from + n + L);
        add_two<A, Removes>(load<A>(from), load<A>(from + L), about, &sum, &square);
      }
      for (int j = 0; j < V; ++j) {
        if (IsPast)
          Past<A>::store(y + i + j * L, made[j]);
        else
          store<A>(y + i + j * L, made[j]);
      }
    };
    const auto one = [&](int64_t i, auto lanes) {
      const Vec<A> made = of(i, lanes);
      if (IsPast) fetch(later + n + i);
      add_one<A, Removes>(lanes.load(later + i, about), about, &sum, &square);
      lanes.store(y + i, made);
    };
    int64_t i = 0;
    for (; i + 4 * L <= n; i += 4 * L) some(i, AtOnce<4>());
    if (i + 2 * L <= n) some(i, AtOnce<2>()), i += 2 * L;
    // The last whole vector goes past the caches too: a line that is stored in both ways takes several times as long.
    if (i + L <= n) IsPast ? one(i, Past<A>()) : one(i, Whole<A>()), i += L;
    if (i < n) one(i, Part<A>{n - i});
  };
  // Plus 0 without an offset, as everywhere else: a product alone keeps a sign of zero that the others lose.
  if (offset != nullptr)
    over([&](int64_t i, auto lanes) { return lanes.load(offset + i); });
  else
    over([](int64_t, auto) { return Vec<A>{}; });
  moments_of<A, Removes, 1>(&moments->shift, &sum, &square, n, &moments->mean, &moments->m2);
}

// Whether all rows are such.
template <class T>
bool are_overlapped(const Call& call) {
  const Geometry& g = call.geometry;
  bool shared = true;  // one place of scale for all
  for (int i = 0; i < g.outer.rank; ++i) shared = shared && g.outer.affine[i] == 0;
  return shared && call.y != nullptr && call.scale != nullptr && g.s == 1 && may_overlap<T>(g.c);
}

// Statistics and y of the groups [from, to).
template <class T, bool Removes>
void overlapped_rows(const Call& call, const Blocks& b, int64_t from, int64_t to) {
  typedef Work<T> W;
  const Walk& outer = call.geometry.outer;
  const int64_t n = b.length;
  const T* const x = static_cast<const T*>(call.x);
  T* const y = static_cast<T*>(call.y);
  const W *scale = static_cast<const W*>(call.scale), *more = static_cast<const W*>(call.offset);
  // Of the row that is written, of the two behind it and of the one behind these: nothing is copied, since a processor
  // waits for halves of what was stored as a whole.
  constexpr int64_t kRing = 4;
  RowMoments<W> ring[kRing];
  const auto begin = [&](int64_t i) {
    RowMoments<W>& s = ring[i % kRing];
    const T* const row = x + offset(outer, i);
    if (Removes) amid_rows<W, 1>(&row, n, &s.shift, &s.about);
  };
  const auto sum = [&](int64_t i) {
    const T* const row = x + offset(outer, i);
    short_moments<W, Removes, 1>(&row, n, 0, &ring[i % kRing].mean, &ring[i % kRing].m2);
  };
  const auto settle = [&](int64_t i) {
    const RowMoments<W>& s = ring[i % kRing];
    const Finished f = row_statistic(call, b, x + offset(outer, i), {double(n), s.mean, s.m2, false});
    put<W>(call, i, f);
    return f.statistic;
  };
  for (int64_t i = from; i < least(to, from + 3); ++i) begin(i);
  for (int64_t i = from; i < least(to, from + 2); ++i) sum(i);
  Statistic now = settle(from), next = {};
  for (int64_t i = from; i < to; ++i) {
    if (i + 1 < to) next = settle(i + 1);
    if (i + 3 < to) begin(i + 3);
    const int64_t at = offset(outer, i);
    if (i + 2 >= to || is_wide<T>(now)) {
      apply_group<T>(call, place_at(outer, i), now, 0, 1, 0, n);
      if (i + 2 < to) sum(i + 2);
    } else {
      const T* const later = x + offset(outer, i + 2);
      RowMoments<W>* const moments = ring + (i + 2) % kRing;
      if (call.past && can_go_past<W>(y + at))
        scale_and_sum<W, Removes, true>(x + at, y + at, n, Centre<W>(now), scale, more, later, moments);
      else
        scale_and_sum<W, Removes, false>(x + at, y + at, n, Centre<W>(now), scale, more, later, moments);
    }
    now = next;
  }
}
