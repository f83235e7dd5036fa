// What the three families of loops share. Included for each instruction set, inside its namespace.

template <class T>
struct WorkOf {
  typedef float Type;
};
template <>
struct WorkOf<double> {
  typedef double Type;
};
template <class T>
using Work = typename WorkOf<T>::Type;
template <class T>
constexpr bool kIsDouble = sizeof(T) == 8;

// Bytes below which another thread costs more than it saves.
constexpr int64_t kGrain = 64 * 1024;

// Room that begins with a line of the cache: vectors of lines of numbers that are as long as whole ones are of one each.
template <class E>
struct Buffer {
  explicit Buffer(int64_t n)
      : block(n > 0 ? malloc(size_t(n) * sizeof(E) + kLine) : nullptr),
        empty(n <= 0),
        data(block == nullptr ? nullptr : reinterpret_cast<E*>((uintptr_t(block) / kLine + 1) * kLine)) {}
  Buffer(const Buffer&) = delete;
  ~Buffer() { free(block); }
  bool failed() const { return data == nullptr && !empty; }
  E& operator[](int64_t i) const { return data[i]; }
  void clear(int64_t n) const {
    if (n > 0) memset(static_cast<void*>(data), 0, size_t(n) * sizeof(E));
  }

 private:
  static constexpr uintptr_t kLine = 64;
  void* const block;
  const bool empty;

 public:
  E* const data;
};

// work(i) for each i below n, on several threads where there are several tasks; the first failure is returned.
template <class F>
int each(const Call& call, int64_t n, const F& work) {
  struct Shared {
    const F& work;
    bool past;
    int failure;
  } shared = {work, call.past, 0};
  struct Go {
    static void task(void* context, int64_t i) {
      Denormals kept;
      Shared& s = *static_cast<Shared*>(context);
      const int failure = s.work(i);
      if (s.past) past_is_written();
      if (failure != 0) __atomic_store_n(&s.failure, failure, __ATOMIC_RELAXED);
    }
  };
  parallel(call.executor, call.threads, n, Go::task, &shared);
  return shared.failure;
}

// How many of n equal pieces of work one task takes, so that it is worth a thread.
inline int64_t grain(int64_t bytes_each) { return most(1, kGrain / most(1, bytes_each)); }

// work(i) for n pieces of so many bytes, the last megabyte first, since what was read last is still in a cache; within a
// megabyte as memory lies.
template <class F>
inline void last_first(int64_t n, int64_t bytes_each, const F& work) {
  const int64_t some = most(1, (int64_t(1) << 20) / most(1, bytes_each));
  for (int64_t end = n; end > 0; end -= some)
    for (int64_t i = most(0, end - some); i < end; ++i) work(i);
}

// Fetch ahead of its use what the processor does not foresee: it looks no further than a page, and of several rows that
// are read at once each begins one. Into the second-level cache, or with 3 into the first. It may lie beyond the array,
// since nothing is read.
template <int Cache = 2, class T>
inline void fetch(const T* p) {
  __builtin_prefetch(p, 0, Cache);
}

// How many of something are taken at once.
template <int R>
struct AtOnce {
  static constexpr int value = R;
};

// A choice that the compiler knows.
template <bool Is>
struct Given {
  static constexpr bool value = Is;
};

// Most walks have no run or one, and a division costs as much as a vector's arithmetic.
inline int64_t offset(const Walk& walk, int64_t i) {
  return walk.rank == 0 ? 0 : walk.rank == 1 ? i * walk.x[0] : walk.at(i).x;
}
inline Walk::Place place_at(const Walk& walk, int64_t i) {
  if (walk.rank == 0) return {0, 0, 0};
  if (walk.rank == 1) return {i * walk.x[0], i * walk.affine[0], i * walk.group[0]};
  return walk.at(i);
}

// --- statistics -----------------------------------------------------------------------------------------------------

// Count, mean and sum of squared differences from it; of differences from 0 where the mean is not removed.
struct Moments {
  double count, mean, m2;
  bool bad;  // the shift lay far from the mean: too many digits were lost

  void merge(double n, double other_mean, double other_m2) {
    if (count == 0) {
      count = n, mean = other_mean, m2 = other_m2;
      return;
    }
    const double delta = other_mean - mean, share = n / (count + n);
    m2 += other_m2 + delta * delta * count * share;
    mean += delta * share;
    count += n;
  }
};

// Of differences from a shift to their mean and second moment.
constexpr double kFarShift = 0.96;  // beyond 5 standard deviations

// Variances between which single-precision squares neither overflow nor vanish beside eps.
constexpr double kLow = 0x1p-80, kHigh = 0x1p100;
// A factor that brings doubles back from where their squares overflow, and its inverse for where they vanish.
constexpr double kShrink = 0x1p-600;
// rstd outside of which differences, times a cotangent of ordinary size, leave float's range.
constexpr double kWideLow = 0x1p-40, kWideHigh = 0x1p40;

template <class T>
bool in_range(const Call& call, double variance) {
  const double low = kIsDouble<T> ? 0x1p-800 : kLow, high = kIsDouble<T> ? 0x1p900 : kHigh;
  return variance <= high && (!call.removes_scale || call.eps >= low || variance >= low);
}

// Needs arithmetic in double to be applied.
template <class T>
bool is_wide(const Statistic& s) {
  // Not where it is NaN: that group is lost, and its neighbours are to notice nothing.
  return !kIsDouble<T> && (((s.rstd < kWideLow) & (s.rstd != 0)) | (s.rstd > kWideHigh));
}

// Any of n, without a branch for each.
template <class T>
bool any_wide(const Statistic* s, int64_t n) {
  int64_t wide = 0;
  for (int64_t i = 0; i < n; ++i) wide |= is_wide<T>(s[i]);
  return wide != 0;
}

struct Finished {
  Statistic statistic;
  double variance;
};
inline Finished finish(const Call& call, const Moments& m, double factor) {
  const double variance = m.m2 * (1 / m.count);  // of x * factor
  Finished out;
  if (factor == 1) {  // the usual case, without its divisions
    const double denominator = variance + call.eps;
    out.variance = variance;
    out.statistic.mean = m.mean;
    // A constant group is all zeros without eps too.
    out.statistic.rstd = !call.removes_scale ? 1 : denominator == 0 ? 0 : 1 / __builtin_sqrt(denominator);
    return out;
  }
  out.variance = variance / factor / factor;
  out.statistic.mean = m.mean / factor;
  if (!call.removes_scale) {
    out.statistic.rstd = 1;
  } else if (factor < 1) {
    out.statistic.rstd = factor / __builtin_sqrt(variance + call.eps * factor * factor);
  } else if (call.eps > 0) {
    out.statistic.rstd = 1 / __builtin_sqrt(out.variance + call.eps);
  } else {
    out.statistic.rstd = variance == 0 ? 0 : factor / __builtin_sqrt(variance);
  }
  return out;
}

// Statistics of one group by `quick`, and where these are bad by `careful(factor)`.
template <class T, class Careful>
Finished settled(const Call& call, const Moments& quick, const Careful& careful) {
  if (!quick.bad && in_range<T>(call, quick.m2 / quick.count)) return finish(call, quick, 1);
  const Moments again = careful(1.0);
  const double variance = again.m2 / again.count;
  if (!kIsDouble<T> || in_range<T>(call, variance)) return finish(call, again, 1);
  const double factor = variance < 1 ? 1 / kShrink : kShrink;
  return finish(call, careful(factor), factor);
}

template <class W>
void put(const Call& call, int64_t group, const Finished& f) {
  if (call.statistics != nullptr) call.statistics[group] = f.statistic;
  if (call.mean != nullptr) static_cast<W*>(call.mean)[group] = W(f.statistic.mean);
  if (call.variance != nullptr) static_cast<W*>(call.variance)[group] = W(f.variance);
}

// Statistics of `n` groups from `first` on, with one count, where the moments of all are good, as they nearly always
// are: then all of them at once in vectors. They round as those of `finish`.
template <class T>
ANYNORM_APART bool settle_at_once(const Call& call, int64_t first, int64_t n, const double* mean, const double* m2,
                           Statistic* out) {
  const double share = 1 / double(call.geometry.count), eps = call.eps, high = kHigh;
  const double low = call.removes_scale && eps == 0 ? kLow : -1;
  if (kIsDouble<T> || (eps > 0 && eps < kLow)) return false;
  int bad = 0;
  for (int64_t i = 0; i < n; ++i) bad |= !(m2[i] * share >= low) | !(m2[i] * share <= high);
  if (bad) return false;
  for (int64_t i = 0; i < n; ++i)
    out[i] = {mean[i], call.removes_scale ? 1 / __builtin_sqrt(m2[i] * share + eps) : 1};
  typedef Work<T> W;
  if (call.statistics != nullptr) memcpy(static_cast<void*>(call.statistics + first), out, size_t(n) * sizeof *out);
  if (call.mean != nullptr)
    for (int64_t i = 0; i < n; ++i) static_cast<W*>(call.mean)[first + i] = W(mean[i]);
  if (call.variance != nullptr)
    for (int64_t i = 0; i < n; ++i) static_cast<W*>(call.variance)[first + i] = W(m2[i] * share);
  return true;
}

// A statistic as the loops use it: h = (mean - x) * minus + rest, where `rest` carries what a float mean cannot. It is
// mean - x since a subtraction may take its second operand from memory.
template <class A>
struct Centre {
  A mean = 0, minus = 0, rest = 0;
  Centre() {}
  explicit Centre(const Statistic& s)
      : mean(A(s.mean)), minus(A(-s.rstd)), rest(A(or_0(double(mean) - s.mean) * s.rstd)) {}

 private:
  // Without a branch, so that a loop over statistics becomes one over vectors.
  static double or_0(double lost) { return lost - lost == 0 ? lost : 0; }
};

// The same in all lanes. In registers: what lies in memory is read anew after each store, which might have changed it.
template <class A>
struct Centred {
  Vec<A> mean, minus, rest;
  Centred() {}
  explicit Centred(const Centre<A>& k) : mean(broadcast(k.mean)), minus(broadcast(k.minus)), rest(broadcast(k.rest)) {}
  Centred(Vec<A> mean, Vec<A> minus, Vec<A> rest) : mean(mean), minus(minus), rest(rest) {}
  inline Vec<A> h(Vec<A> v) const { return fma(Vec<A>(mean - v), minus, rest); }
  // In floats only mean - x: where all elements have one statistic, the rest can be done to their sums.
  inline Vec<A> unscaled_h(Vec<A> v) const { return kIsDouble<A> ? h(v) : Vec<A>(mean - v); }
};

// Of R statistics together.
template <class A, int R>
inline void centre_all(const Statistic* s, Centred<A>* k) {
  typedef Together<double, R> Wide;
  typedef Together<A, R> Narrow;
  Wide mean, rstd;
  for (int r = 0; r < R; ++r) mean[r] = s[r].mean, rstd[r] = s[r].rstd;
  const Narrow near = __builtin_convertvector(mean, Narrow);
  const Wide lost = __builtin_convertvector(near, Wide) - mean, none = {};
  const Narrow minus = __builtin_convertvector(-rstd, Narrow);
  const Narrow rest = __builtin_convertvector((lost - lost == 0 ? lost : none) * rstd, Narrow);
  for (int r = 0; r < R; ++r) k[r] = {broadcast(A(near[r])), broadcast(A(minus[r])), broadcast(A(rest[r]))};
}

// The sum of g * h from those of g and of g times the unscaled h.
template <class A>
inline double scaled_sum(double plain, double with_unscaled_h, A minus, A rest) {
  return kIsDouble<A> ? with_unscaled_h : double(minus) * with_unscaled_h + double(rest) * plain;
}

// dx = dy * (rstd * scale) + h * slope + level, this h unscaled: the two numbers of a group, or of a vector's worth of
// groups (D), and whether a slope is none that A holds.
template <class A, class D>
struct ProjectionOf {
  D slope, level;
  decltype(D() < D()) lost;
  ProjectionOf(const Call& call, D rstd, D rest, D plain, D with_h) {
    const D over = call.removes_scale ? D(-rstd * (with_h * call.share)) : D{};
    const D below = call.removes_mean ? D(-rstd * (plain * call.share)) : D{};
    if (kIsDouble<A>) {
      slope = over, level = below, lost = over < over;
      return;
    }
    const D by = -rstd * over, size = by < 0 ? D(-by) : by;
    slope = by, level = rest * over + below;
    // Where it is no number the group is lost, and its neighbours are to notice nothing.
    lost = ((size > 0) & (size < 0x1p-120)) | ((size > 0x1p120) & (size <= 0x1p1000));
  }
};

template <class A>
struct Projection {
  A slope, level;
  bool fits;
  Projection() {}
  Projection(const Call& call, const Statistic& s, const Sums& sums) {
    const ProjectionOf<A, double> p(call, s.rstd, double(Centre<A>(s).rest), sums.plain, sums.with_h);
    slope = A(p.slope), level = A(p.level), fits = !p.lost;
  }
};

// From x and g = dy to dx; `by` is rstd * scale.
template <class A>
inline Vec<A> dx_of(const Centred<A>& k, Vec<A> v, Vec<A> g, Vec<A> by, Vec<A> slope, Vec<A> level) {
  return fma(g, by, fma(k.unscaled_h(v), slope, level));
}
