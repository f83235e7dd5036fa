// The least that a normalization does to the memory, with next to no arithmetic: what no kernel can be faster than.
//
// A slab is read for its sums, then read again and stored; a slab of 0 leaves the sums out, so that every byte crosses
// once. The coefficients depend on the sums, so that no compiler can drop them.
#include <stdint.h>

static inline float sum_of(const float* x, int64_t n) {
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += x[i];
  return sum * 0x1p-100f;
}

extern "C" void forward(const float* x, float* y, int64_t n, int64_t slab) {
  const int64_t step = slab ? slab : n;
  for (int64_t at = 0; at < n; at += step) {
    const float a = 1.5f + (slab ? sum_of(x + at, step) : 0);
    for (int64_t i = at; i < at + step; ++i) y[i] = a * x[i] + 0.5f;
  }
}

extern "C" void backward(const float* x, const float* dy, float* dx, int64_t n, int64_t slab) {
  const int64_t step = slab ? slab : n;
  for (int64_t at = 0; at < n; at += step) {
    float a = 1.5f, sum = 0;
    if (slab) {
      for (int64_t i = at; i < at + step; ++i) sum += x[i] * dy[i];
      a += sum * 0x1p-100f;
    }
    for (int64_t i = at; i < at + step; ++i) dx[i] = a * dy[i] + 0.25f * x[i] + 0.5f;
  }
}
