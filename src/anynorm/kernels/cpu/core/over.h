// Loops over the vectors of an array, the last of which may be a part of one, and where their results are written to.

// One vector of an array, whole or its first n lanes; what is left to a loop over vectors is written once for both.
template <class A>
struct Whole {
  template <class T>
  static inline Vec<A> load(const T* p, Vec<A> = Vec<A>{}) {
    return Convert<T, A>::load(p);
  }
  template <class T>
  static inline void store(T* p, Vec<A> v) {
    Convert<T, A>::store(p, v);
  }
};
template <class A>
struct Part {
  const int64_t n;
  template <class T>
  inline Vec<A> load(const T* p, Vec<A> fill = Vec<A>{}) const {
    return load_part<A>(p, n, fill);
  }
  template <class T>
  inline void store(T* p, Vec<A> v) const {
    store_part<A>(p, n, v);
  }
};

// A whole vector of a result that goes past the caches: memory is not read before it is written, and the caches keep what
// they hold. To an address that is a multiple of the vector.
template <class A>
struct Past : Whole<A> {
  template <class T>
  static inline void store(T* p, Vec<A> v) {
    Whole<A>::store(p, v);
  }
#if defined(__AVX512F__)
  static inline void store(float* p, Vec<float> v) { _mm512_stream_ps(p, __m512(v)); }
  static inline void store(double* p, Vec<double> v) { _mm512_stream_pd(p, __m512d(v)); }
#elif defined(__AVX__)
  static inline void store(float* p, Vec<float> v) { _mm256_stream_ps(p, __m256(v)); }
  static inline void store(double* p, Vec<double> v) { _mm256_stream_pd(p, __m256d(v)); }
#endif
};

// Whether vectors at p, and in rows so many elements apart, are where `Past` can write them.
template <class A, class T>
inline bool can_go_past(const T* p, int64_t stride = 0) {
  return sizeof(T) == sizeof(A) && (uintptr_t(p) | uintptr_t(stride) * sizeof(T)) % sizeof(Vec<A>) == 0;
}

// For loops that only large arrays need, so that they take no registers from the others; short rows are not worth a call.
#define ANYNORM_APART __attribute__((noinline))

// For what runs over an array: all that it calls for a few rows becomes part of it. Left to itself the compiler stops at
// a size of the whole file, and each call it leaves costs as much as a hundred elements.
#define ANYNORM_FLAT __attribute__((flatten))

template <class A, class T>
inline bool row_can_go_past(const T* p, int64_t n) {
  return n * int64_t(sizeof(T)) >= 1024 && can_go_past<A>(p);
}

// Other threads see what went past the caches only behind this.
inline void past_is_written() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// work(i, lanes) for all vectors of n elements.
template <class A, class F>
inline void over_vectors(int64_t n, const F& work) {
  constexpr int64_t L = kLanes<A>;
  int64_t i = 0;
  for (; i + L <= n; i += L) work(i, Whole<A>());
  if (i < n) work(i, Part<A>{n - i});
}

// As above, two vectors a turn.
template <class A, class F>
inline void over_pairs(int64_t n, const F& work) {
  constexpr int64_t L = kLanes<A>;
  int64_t i = 0;
  for (; i + 2 * L <= n; i += 2 * L) work(i, Whole<A>()), work(i + L, Whole<A>());
  if (i + L <= n) work(i, Whole<A>()), i += L;
  if (i < n) work(i, Part<A>{n - i});
}

// out = of(i, lanes) for all vectors of n elements, four of them made before the first is stored: a load that follows
// close behind a store to the same place of another page waits for it. Where a part of a vector takes long to store and
// work may be done twice, as it may not be in place, the last vector is whole and begins among the one before.
template <class A, class T, class F>
inline void make_vectors(T* out, int64_t n, bool twice, const F& of) {
  constexpr int64_t L = kLanes<A>, V = 4;
  int64_t i = 0;
  for (; i + V * L <= n; i += V * L) {
    Vec<A> made[V];
    for (int64_t k = 0; k < V; ++k) made[k] = of(i + k * L, Whole<A>());
    for (int64_t k = 0; k < V; k += 2) store_two<A>(out + i + k * L, made[k], made[k + 1]);
  }
  for (; i + L <= n; i += L) store<A>(out + i, of(i, Whole<A>()));
  if (i == n) return;
  if (twice && !kStoresParts && n >= L) return store<A>(out + n - L, of(n - L, Whole<A>()));
  store_part<A>(out + i, n - i, of(i, Part<A>{n - i}));
}

// work(i, lanes) as above, the whole ones going past the caches.
template <class A, class F>
inline void over_vectors_past(int64_t n, const F& work) {
  constexpr int64_t L = kLanes<A>;
  int64_t i = 0;
  for (; i + 2 * L <= n; i += 2 * L) work(i, Past<A>()), work(i + L, Past<A>());
  if (i + L <= n) work(i, Past<A>()), i += L;
  if (i < n) work(i, Part<A>{n - i});
}

// The one or the other.
template <class A, class F>
inline void over_results(int64_t n, bool past, const F& work) {
  if (past)
    over_vectors_past<A>(n, work);
  else
    over_vectors<A>(n, work);
}

// As above; where a part of a vector takes long to store and work may be done twice, as it may not be in place, the last
// vector is whole and begins among the one before.
template <class A, class F>
inline void over_results(int64_t n, bool past, bool twice, const F& work) {
  constexpr int64_t L = kLanes<A>;
  if (past) return over_vectors_past<A>(n, work);
  const int64_t before = twice && !kStoresParts && n >= L ? n / L * L : n;
  over_vectors<A>(before, work);
  if (before < n) work(n - L, Whole<A>());
}

// work(j, i, lanes) for the N vectors of n elements, the last of them as above.
template <class A, int N, class F>
inline void over_few(int64_t n, bool twice, const F& work) {
  constexpr int64_t L = kLanes<A>, last = (N - 1) * L;
#pragma GCC unroll 8
  for (int j = 0; j < N - 1; ++j) work(j, j * L, Whole<A>());
  if (kStoresParts) return work(N - 1, last, Part<A>{n - last});
  if (n == N * L) return work(N - 1, last, Whole<A>());
  if (twice && N > 1) return work(N - 1, n - L, Whole<A>());
  work(N - 1, last, Part<A>{n - last});
}
