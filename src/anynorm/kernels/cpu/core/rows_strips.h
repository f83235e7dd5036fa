// Rows, backward: strips, the units in which sums are taken and dx is made where one scale is for many elements.

// Elements of a strip, the unit in which sums over one channel's elements are taken.
constexpr int64_t kStrip = 8192;

// Four accumulators of dy and of dy * h. Ahead: what lies `next` elements further on is fetched.
template <class A, bool Ahead, class T>
inline Sums strip_sums(const T* x, const T* dy, int64_t n, int64_t next, Centre<A> centre) {
  constexpr int64_t L = kLanes<A>;
  const Centred<A> k(centre);
  Vec<A> plain[4] = {}, with_h[4] = {};
  const auto add = [&](int64_t j, Vec<A> v, Vec<A> g) {
    plain[j] += g;
    with_h[j] = fma(g, k.unscaled_h(v), with_h[j]);
  };
  int64_t i = 0;
  for (; i + 4 * L <= n; i += 4 * L)
    for (int64_t j = 0; j < 4; ++j) {
      if (Ahead) fetch(x + next + i + j * L), fetch(dy + next + i + j * L);
      add(j, load<A>(x + i + j * L), load<A>(dy + i + j * L));
    }
  for (; i + L <= n; i += L) add(0, load<A>(x + i), load<A>(dy + i));
  if (i < n) add(1, load_part<A>(x + i, n - i, k.mean), load_part<A>(dy + i, n - i, Vec<A>{}));
  const double all = sum_lanes(Vec<A>((plain[0] + plain[1]) + (plain[2] + plain[3])));
  const double all_with_h = sum_lanes(Vec<A>((with_h[0] + with_h[1]) + (with_h[2] + with_h[3])));
  return {all, scaled_sum(all, all_with_h, centre.minus, centre.rest)};
}

// As above for R short strips, one behind the other: one accumulator each, since the strips take turns. A strip's own
// arithmetic is the same for every R. centre(r) is that of a strip.
template <class A, int R, bool Ahead, class T, class F>
inline void short_strip_sums(const T* x, const T* dy, int64_t n, int64_t next, const F& centre, Sums* out) {
  Centred<A> k[R];
  for (int r = 0; r < R; ++r) k[r] = Centred<A>(centre(r));
  Vec<A> plain[R] = {}, with_h[R] = {};
  over_pairs<A>(n, [&](int64_t i, auto lanes) {
    for (int r = 0; r < R; ++r) {
      if (Ahead) fetch(x + next + r * n + i), fetch(dy + next + r * n + i);
      const Vec<A> g = lanes.load(dy + r * n + i);
      plain[r] += g;
      with_h[r] = fma(g, k[r].unscaled_h(lanes.load(x + r * n + i, k[r].mean)), with_h[r]);
    }
  });
  double all[R], all_with_h[R];
  sums_of_lanes<A, R>(plain, all), sums_of_lanes<A, R>(with_h, all_with_h);
  for (int r = 0; r < R; ++r) {
    const Centre<A>& own = centre(r);
    out[r] = {all[r], scaled_sum(all[r], all_with_h[r], own.minus, own.rest)};
  }
}

// What dx needs besides x and dy and the factor of dy.
template <class A>
struct Projected {
  Centred<A> k;
  Vec<A> slope, level;
  Projected() {}
  Projected(const Centre<A>& k, A slope, A level) : k(k), slope(broadcast(slope)), level(broadcast(level)) {}
  Projected(const Centre<A>& k, const Projection<A>& p) : Projected(k, p.slope, p.level) {}
  Projected(const Statistic& s, const Projection<A>& p) : Projected(Centre<A>(s), p) {}
};

// dx past the caches.
template <class A, class T>
ANYNORM_APART void project_past(const T* x, const T* dy, T* dx, int64_t n, Vec<A> by, Projected<A> p) {
  over_vectors_past<A>(n, [&](int64_t i, auto lanes) {
    lanes.store(dx + i, dx_of(p.k, lanes.load(x + i, p.k.mean), lanes.load(dy + i), by, p.slope, p.level));
  });
}

template <class A, class T>
inline void project_stretch(const T* x, const T* dy, T* dx, int64_t n, A factor, const Projected<A>& p, bool past) {
  // One by one: a whole structure is copied through memory, in halves for which the processor has to wait.
  const Centred<A> k(p.k.mean, p.k.minus, p.k.rest);
  const Vec<A> by = broadcast(factor), slope = p.slope, level = p.level;
  if (past && row_can_go_past<A>(dx, n)) return project_past<A>(x, dy, dx, n, by, p);
  make_vectors<A>(dx, n, dx != x && dx != dy, [&](int64_t i, auto lanes) {
    return dx_of(k, lanes.load(x + i, k.mean), lanes.load(dy + i), by, slope, level);
  });
}

// The strips of a group: its pieces, their channels, and these cut where they are long. Where one lies within the group,
// in the array, in scale and among the group's `places` of scale.
struct Strip {
  int64_t x, affine, place, length;
};

struct Strips {
  const Geometry& g;
  const int64_t cuts, number, places;
  explicit Strips(const Geometry& g)
      : g(g),
        cuts((g.s + kStrip - 1) / kStrip),
        number(g.pieces.size * g.c * cuts),
        places((g.pieces_affine ? g.pieces.size : 1) * g.c) {}

  // From one strip to that which is read behind it, mostly: it is for what may be fetched in vain.
  int64_t next(const Strip& strip) const {
    return g.c == 1 && cuts == 1 && g.pieces.rank == 1 ? g.pieces.x[0] : strip.length;
  }

  // Whether strips are so short that to find them costs as much as their arithmetic.
  template <class T>
  bool are_short() const {
    return g.s * int64_t(sizeof(T)) < kNarrowRow;
  }
  // And whether there are several behind one another, of one group or of neighbouring ones.
  template <class T>
  bool are_taken_at_once() const {
    return are_short<T>() && (g.c >= 4 || Neighbours::are_in(g));
  }
  // work(i, strip, many) for the strips [from, to), which nothing cuts: each and those of one piece that follow it.
  template <class F>
  void over_neighbours(int64_t from, int64_t to, const F& work) const {
    // Most begin at the first, and a division costs as much as a strip.
    int64_t piece = from == 0 ? 0 : from / g.c, channel = from - piece * g.c;
    for (int64_t i = from; i < to; channel = 0, ++piece) {
      const Walk::Place in = place_at(g.pieces, piece);
      const int64_t before = g.pieces_affine ? piece * g.c : 0, many = least(g.c - channel, to - i);
      work(i, Strip{in.x + channel * g.s, in.affine + channel, before + channel, g.s}, many);
      i += many;
    }
  }

  // work(i, strip) for the strips [from, to); counted on, since a division costs as much as a short strip.
  template <class F>
  void over(int64_t from, int64_t to, const F& work) const {
    int64_t cut = from % cuts, channel = from / cuts % g.c, piece = from / cuts / g.c;
    Walk::Place in = place_at(g.pieces, piece);
    for (int64_t i = from; i < to; ++i) {
      const int64_t begin = cut * kStrip, before = g.pieces_affine ? piece * g.c : 0;
      work(i, Strip{in.x + channel * g.s + begin, in.affine + channel, before + channel, least(kStrip, g.s - begin)});
      if (++cut < cuts) continue;
      cut = 0;
      if (++channel < g.c) continue;
      channel = 0;
      in = place_at(g.pieces, ++piece);
    }
  }
};
