// The least that a normalization does to the memory, with next to no arithmetic.
//
// `past`: results go past the caches, where a vector is large enough for that and the arrays begin at a whole one.
// A slab is read for its sums, then read again and stored; a slab of 0 leaves the sums out, so that every byte crosses
// once. The coefficients depend on the sums, so that no compiler can drop them.
#include <stdint.h>
#if defined(__AVX__)
#include <immintrin.h>
#endif

static inline float sum_of(const float* x, int64_t n) {
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += x[i];
  return sum * 0x1p-100f;
}

// value(i) to out[i] for all i in [from, to).
template <class F>
static inline void put(float* out, int64_t from, int64_t to, int past, const F& value) {
#if defined(__AVX__)
  if (past) {
    for (; from + 8 <= to; from += 8) {
      alignas(32) float some[8];
      for (int64_t j = 0; j < 8; ++j) some[j] = value(from + j);
      _mm256_stream_ps(out + from, _mm256_load_ps(some));
    }
    _mm_sfence();
  }
#endif
  for (; from < to; ++from) out[from] = value(from);
}

extern "C" void forward(const float* x, float* y, int64_t n, int64_t slab, int past) {
  const int64_t step = slab ? slab : n;
  for (int64_t at = 0; at < n; at += step) {
    const float a = 1.5f + (slab ? sum_of(x + at, step) : 0);
    put(y, at, at + step, past, [=](int64_t i) { return a * x[i] + 0.5f; });
  }
}

extern "C" void backward(const float* x, const float* dy, float* dx, int64_t n, int64_t slab, int past) {
  const int64_t step = slab ? slab : n;
  for (int64_t at = 0; at < n; at += step) {
    float a = 1.5f, sum = 0;
    if (slab) {
      for (int64_t i = at; i < at + step; ++i) sum += x[i] * dy[i];
      a += sum * 0x1p-100f;
    }
    put(dx, at, at + step, past, [=](int64_t i) { return a * dy[i] + 0.25f * x[i] + 0.5f; });
  }
}
