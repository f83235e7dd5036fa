// The C interface of anynorm's CPU kernels: what every door (ctypes, XLA, TensorFlow) calls.
//
// An array is told as runs: neighbouring axes merged, outermost first, contiguous in memory. Each run is reduced (its
// elements share a statistic) or kept, and may carry scale and offset. No function knows a layer, a rank or a layout.
//
//   h  = (x - mean) * rstd                            rstd = (variance + eps)^-1/2
//   y  = h * scale + offset
//   dx = rstd * (g - mean(g) - h * mean(g * h))       g = dy * scale; one mean for each moment that is removed
//
// Statistics lie over the kept runs, scale and offset over the affine ones, both in the array's memory order.
#ifndef ANYNORM_H
#define ANYNORM_H

#include <stdint.h>

#if defined(_WIN32)
#define ANYNORM_API __declspec(dllexport)
#else
#define ANYNORM_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum { ANYNORM_MAX_RUNS = 8 };
enum { ANYNORM_FLOAT32 = 0, ANYNORM_FLOAT64 = 1, ANYNORM_FLOAT16 = 2, ANYNORM_BFLOAT16 = 3 };
enum { ANYNORM_REMOVES_MEAN = 1, ANYNORM_REMOVES_SCALE = 2 };
enum { ANYNORM_OK = 0, ANYNORM_UNSUPPORTED = 1, ANYNORM_NO_MEMORY = 2 };

// Threads that belong to somebody else, such as XLA. `schedule` makes one of them call task(argument) soon.
typedef struct anynorm_executor {
  void (*schedule)(void* self, void (*task)(void*), void* argument);
  void* self;
} anynorm_executor;

typedef struct anynorm_problem {
  int64_t extents[ANYNORM_MAX_RUNS];
  int32_t rank;          // number of runs
  uint32_t reduced;      // bit i: run i is reduced
  uint32_t affine;       // bit i: run i carries scale and offset
  uint32_t removes;      // ANYNORM_REMOVES_*
  int32_t dtype;         // of x, y, dy and dx
  int32_t scale_dtype;   // of scale and dscale
  int32_t offset_dtype;  // of offset and doffset
  int32_t threads;       // at most so many, the caller's included; 0: as many as there are processors
  double eps;
  const anynorm_executor* executor;  // NULL: anynorm's own threads
} anynorm_problem;

// "Work type" below: double for float64 arrays, float for all others. mean and variance are in the work type; `saved`
// is what the gradient needs, two doubles for each statistic: mean and rstd. Any pointer called optional may be NULL.
// Arrays need no alignment beyond their element's. y may be x, and dx may be dy.

// Whether there are loops for runs of this order; looks at rank, reduced and affine only.
ANYNORM_API int anynorm_supported(const anynorm_problem* problem);

// y; optionally mean, variance (biased) and saved. scale and offset are optional.
ANYNORM_API int anynorm_forward(const anynorm_problem* problem, const void* x, const void* scale, const void* offset,
                                void* y, void* mean, void* variance, double* saved);

// dx; dscale and doffset are optional, as is scale.
ANYNORM_API int anynorm_backward(const anynorm_problem* problem, const void* x, const void* dy, const void* scale,
                                 const double* saved, void* dx, void* dscale, void* doffset);

// mean, variance and saved of x, each optional.
ANYNORM_API int anynorm_moments(const anynorm_problem* problem, const void* x, void* mean, void* variance,
                                double* saved);

// y from statistics made elsewhere, such as running ones; optionally saved. mean is optional (then 0).
ANYNORM_API int anynorm_apply(const anynorm_problem* problem, const void* x, const void* mean, const void* variance,
                              const void* scale, const void* offset, void* y, double* saved);

// The first half of the gradient: for each statistic sum(g) and sum(g * h), two doubles; dscale and doffset.
ANYNORM_API int anynorm_backward_sums(const anynorm_problem* problem, const void* x, const void* dy, const void* scale,
                                      const double* saved, double* sums, void* dscale, void* doffset);

// The second half: dx from sums over `count` elements for each statistic, which may be more than lie here.
ANYNORM_API int anynorm_backward_apply(const anynorm_problem* problem, const void* x, const void* dy,
                                       const void* scale, const double* saved, const double* sums, double count,
                                       void* dx);

// The instruction set in use: "baseline", "avx2", "avx512" or "neon". anynorm_use_isa takes another one that this
// machine has, for tests; it returns ANYNORM_UNSUPPORTED where the machine or this build lacks it.
ANYNORM_API const char* anynorm_isa(void);
ANYNORM_API int anynorm_use_isa(const char* name);

// Results too large for the last cache are written past it. From now on it is taken to have so many bytes, for tests:
// 0 writes nothing past it, 1 everything, and -1 asks the system, as at first.
ANYNORM_API void anynorm_use_cache(int64_t bytes);

// The version of this interface; a door refuses another one.
ANYNORM_API int anynorm_abi(void);

#ifdef __cplusplus
}
#endif

#endif
