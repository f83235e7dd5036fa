// The C interface: checks, and conversions of the small arrays.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <memory>
#include <new>

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

#include "isa.h"
#include "loops.h"
#include "memory.h"
#include "threads.h"

namespace anynorm {

namespace {

#include "numbers.h"

// Bytes of the array, or -1 where no memory holds it, or holds its statistics: 16 bytes each, also where some other
// extent is 0. What is let through has products that no arithmetic below overflows with.
int64_t bytes_of(const anynorm_problem& p) {
  int64_t bytes = p.dtype == ANYNORM_FLOAT64 ? 8 : p.dtype == ANYNORM_FLOAT32 ? 4 : 2, most = 16;
  if (p.rank < 1 || p.rank > ANYNORM_MAX_RUNS) return -1;
  for (int i = 0; i < p.rank; ++i) {
    if (p.extents[i] < 0 || __builtin_mul_overflow(most, p.extents[i] > 0 ? p.extents[i] : 1, &most)) return -1;
    bytes *= p.extents[i];
  }
  return bytes;
}

// The one NaN for all of them: where it is rounded to bfloat16, a full lower half would carry into the exponent, and its
// sign depends on the order in which a compiler adds.
template <class W>
W one_nan(W value) {
  return value == value ? value : W(NAN);
}

// n numbers of type `dtype` in the work type.
template <class T, class W>
void widen_all(const void* from, int64_t n, W* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = one_nan(W(widen(static_cast<const T*>(from)[i])));
}
template <class W>
void to_work(const void* from, int dtype, int64_t n, W* to) {
  if (dtype == ANYNORM_FLOAT64) return widen_all<double>(from, n, to);
  if (dtype == ANYNORM_FLOAT32) return widen_all<float>(from, n, to);
  if (dtype == ANYNORM_FLOAT16) return widen_all<Half>(from, n, to);
  widen_all<Brain>(from, n, to);
}

// Sums[i].*which for all i in a small array of type `dtype`.
template <class T>
void narrow_all(const Sums* sums, double Sums::*which, int64_t n, void* to) {
  for (int64_t i = 0; i < n; ++i) narrow(one_nan(sums[i].*which), static_cast<T*>(to) + i);
}
void put(const Sums* sums, double Sums::*which, int dtype, int64_t n, void* to) {
  if (to == nullptr) return;
  if (dtype == ANYNORM_FLOAT64) return narrow_all<double>(sums, which, n, to);
  if (dtype == ANYNORM_FLOAT32) return narrow_all<float>(sums, which, n, to);
  if (dtype == ANYNORM_FLOAT16) return narrow_all<Half>(sums, which, n, to);
  narrow_all<Brain>(sums, which, n, to);
}

// Bytes of an array from which on it pays to fetch it ahead: no second-level cache holds it beside its gradient.
constexpr int64_t kFar = int64_t(1) << 20;

// Threads that work is shared out for, however many are asked for: a few times their number has to fit into an int.
constexpr int kMostThreads = 4096;

// One call, made ready: the geometry, and scale and offset in the work type.
struct Prepared {
  Denormals kept;
  Call call = {};
  std::unique_ptr<char[]> scale, offset;
  bool wide, brain, empty;
  int64_t bytes;

  int prepare(const anynorm_problem& p) {
    bytes = bytes_of(p);
    if (p.dtype < 0 || p.dtype > ANYNORM_BFLOAT16 || bytes < 0) return ANYNORM_UNSUPPORTED;
    if (!analyse(p, &call.geometry)) return ANYNORM_UNSUPPORTED;
    wide = p.dtype == ANYNORM_FLOAT64;
    brain = p.dtype == ANYNORM_BFLOAT16;
    empty = bytes == 0;
    call.eps = p.eps;
    call.removes_mean = p.removes & ANYNORM_REMOVES_MEAN;
    call.removes_scale = p.removes & ANYNORM_REMOVES_SCALE;
    const int threads = p.threads > 0 ? p.threads : processors();
    call.threads = bytes < 2 * 64 * 1024 ? 1 : threads < kMostThreads ? threads : kMostThreads;
    call.executor = p.executor;
    call.share = 1 / double(call.geometry.count);
    call.far = bytes > kFar;
    return ANYNORM_OK;
  }

  bool take(const void* small, int dtype, std::unique_ptr<char[]>* own, const void** out) {
    *out = small;
    if (small == nullptr || (!brain && dtype == (wide ? ANYNORM_FLOAT64 : ANYNORM_FLOAT32))) return true;
    const int64_t n = call.geometry.affine_size;
    own->reset(new (std::nothrow) char[size_t(n) * (wide ? 8 : 4)]);
    if (!*own) return false;
    if (wide)
      to_work(small, dtype, n, reinterpret_cast<double*>(own->get()));
    else
      to_work(small, dtype, n, reinterpret_cast<float*>(own->get()));
    *out = own->get();
    return true;
  }

  // Two numbers for each statistic, from the caller: a copy with the one NaN where bfloat16 needs it and any is NaN.
  bool take_pairs(const double* pairs, std::unique_ptr<double[]>* own, const double** out) {
    *out = pairs;
    if (!brain || pairs == nullptr) return true;
    const int64_t n = 2 * call.geometry.groups;
    bool any = false;
    for (int64_t i = 0; i < n; ++i) any |= pairs[i] != pairs[i];
    if (!any) return true;
    own->reset(new (std::nothrow) double[size_t(n)]);
    if (!*own) return false;
    for (int64_t i = 0; i < n; ++i) (*own)[i] = one_nan(pairs[i]);
    *out = own->get();
    return true;
  }

  // A lone offset is given a scale of ones where each element has its own, since the loops go by scale.
  bool complete() {
    if (call.scale != nullptr || call.offset == nullptr) return true;
    const int64_t n = call.geometry.affine_size;
    scale.reset(new (std::nothrow) char[size_t(n) * (wide ? 8 : 4)]);
    if (!scale) return false;
    for (int64_t i = 0; i < n; ++i) {
      if (wide)
        reinterpret_cast<double*>(scale.get())[i] = 1;
      else
        reinterpret_cast<float*>(scale.get())[i] = 1;
    }
    call.scale = scale.get();
    return true;
  }
};

void zero_statistics(const Prepared& p, void* mean, void* variance, double* saved) {
  const size_t groups = size_t(p.call.geometry.groups), each = p.wide ? 8 : 4;
  if (mean != nullptr) memset(mean, 0, groups * each);
  if (variance != nullptr) memset(variance, 0, groups * each);
  if (saved != nullptr) memset(saved, 0, groups * 16);
}

int run_forward(const anynorm_problem& problem, const void* x, const void* scale, const void* offset, void* y,
                void* mean, void* variance, double* saved) {
  Prepared p;
  if (const int failure = p.prepare(problem)) return failure;
  if (p.empty) {
    zero_statistics(p, mean, variance, saved);
    return ANYNORM_OK;
  }
  Call& call = p.call;
  if (!p.take(scale, problem.scale_dtype, &p.scale, &call.scale) ||
      !p.take(offset, problem.offset_dtype, &p.offset, &call.offset) || !p.complete())
    return ANYNORM_NO_MEMORY;
  if (y != x) use_large_pages(y, p.bytes);
  call.x = x;
  call.y = y;
  call.mean = mean;
  call.variance = variance;
  call.statistics = reinterpret_cast<Statistic*>(saved);
  call.past = goes_past(x, y, p.bytes);
  return loops().forward[problem.dtype](call);
}

int run_backward(const anynorm_problem& problem, const void* x, const void* dy, const void* scale, const double* saved,
                 double* sums, bool sums_given, double count, void* dx, void* dscale, void* doffset) {
  Prepared p;
  if (const int failure = p.prepare(problem)) return failure;
  Call& call = p.call;
  const int64_t n = call.geometry.affine_size;
  std::unique_ptr<Sums[]> affine;
  if (dscale != nullptr || doffset != nullptr) {
    affine.reset(new (std::nothrow) Sums[size_t(n)]());
    if (!affine) return ANYNORM_NO_MEMORY;
    call.affine_sums = affine.get();
  }
  const auto put_affine = [&] {
    put(affine.get(), &Sums::with_h, problem.scale_dtype, n, dscale);
    put(affine.get(), &Sums::plain, problem.offset_dtype, n, doffset);
    return ANYNORM_OK;
  };
  if (p.empty) {
    if (sums != nullptr && !sums_given) memset(sums, 0, size_t(call.geometry.groups) * sizeof(Sums));
    return put_affine();
  }
  if (saved == nullptr) return ANYNORM_UNSUPPORTED;
  if (!p.take(scale, problem.scale_dtype, &p.scale, &call.scale)) return ANYNORM_NO_MEMORY;
  std::unique_ptr<double[]> own_saved, own_sums;
  const double* given_sums = sums;
  if (!p.take_pairs(saved, &own_saved, &saved) || (sums_given && !p.take_pairs(sums, &own_sums, &given_sums)))
    return ANYNORM_NO_MEMORY;
  if (dx != dy) use_large_pages(dx, p.bytes);
  call.x = x;
  call.dy = dy;
  call.dx = dx;
  call.past = dx != x && goes_past(dy, dx, p.bytes);
  call.given = true;
  call.statistics = const_cast<Statistic*>(reinterpret_cast<const Statistic*>(saved));
  call.sums = const_cast<Sums*>(reinterpret_cast<const Sums*>(given_sums));
  call.sums_given = sums_given;
  if (count > 0) call.share = 1 / count;
  if (const int failure = loops().backward[problem.dtype](call)) return failure;
  return put_affine();
}

}  // namespace
}  // namespace anynorm

using namespace anynorm;

int anynorm_supported(const anynorm_problem* problem) {
  Geometry geometry;
  anynorm_problem p = *problem;
  for (int64_t& extent : p.extents) extent = 1;
  return analyse(p, &geometry) && has_loops();
}

int anynorm_forward(const anynorm_problem* problem, const void* x, const void* scale, const void* offset, void* y,
                    void* mean, void* variance, double* saved) {
  return run_forward(*problem, x, scale, offset, y, mean, variance, saved);
}

int anynorm_moments(const anynorm_problem* problem, const void* x, void* mean, void* variance, double* saved) {
  return run_forward(*problem, x, nullptr, nullptr, nullptr, mean, variance, saved);
}

int anynorm_apply(const anynorm_problem* problem, const void* x, const void* mean, const void* variance,
                  const void* scale, const void* offset, void* y, double* saved) {
  Prepared p;
  if (const int failure = p.prepare(*problem)) return failure;
  if (p.empty) {
    zero_statistics(p, nullptr, nullptr, saved);
    return ANYNORM_OK;
  }
  Call& call = p.call;
  if (!p.take(scale, problem->scale_dtype, &p.scale, &call.scale) ||
      !p.take(offset, problem->offset_dtype, &p.offset, &call.offset) || !p.complete())
    return ANYNORM_NO_MEMORY;
  const int64_t groups = call.geometry.groups;
  std::unique_ptr<double[]> own;
  if (saved == nullptr) {
    own.reset(new (std::nothrow) double[2 * size_t(groups)]);
    saved = own.get();
  }
  if (saved == nullptr) return ANYNORM_NO_MEMORY;
  Statistic* const statistics = reinterpret_cast<Statistic*>(saved);
  const auto at = [&](const void* array, int64_t i) {
    return p.wide ? static_cast<const double*>(array)[i] : double(static_cast<const float*>(array)[i]);
  };
  for (int64_t i = 0; i < groups; ++i) {
    const double v = at(variance, i) + problem->eps;
    statistics[i] = {mean == nullptr ? 0.0 : one_nan(at(mean, i)), v == 0 ? 0.0 : one_nan(1 / sqrt(v))};
  }
  if (y != x) use_large_pages(y, p.bytes);
  call.x = x;
  call.y = y;
  call.given = true;
  call.statistics = statistics;
  call.past = goes_past(x, y, p.bytes);
  return loops().forward[problem->dtype](call);
}

int anynorm_backward(const anynorm_problem* problem, const void* x, const void* dy, const void* scale,
                     const double* saved, void* dx, void* dscale, void* doffset) {
  return run_backward(*problem, x, dy, scale, saved, nullptr, false, 0, dx, dscale, doffset);
}

int anynorm_backward_sums(const anynorm_problem* problem, const void* x, const void* dy, const void* scale,
                          const double* saved, double* sums, void* dscale, void* doffset) {
  return run_backward(*problem, x, dy, scale, saved, sums, false, 0, nullptr, dscale, doffset);
}

int anynorm_backward_apply(const anynorm_problem* problem, const void* x, const void* dy, const void* scale,
                           const double* saved, const double* sums, double count, void* dx) {
  return run_backward(*problem, x, dy, scale, saved, const_cast<double*>(sums), true, count, dx, nullptr, nullptr);
}

const char* anynorm_isa(void) { return has_loops() ? loops().name : "none"; }

int anynorm_use_isa(const char* name) { return use_loops(name) ? ANYNORM_OK : ANYNORM_UNSUPPORTED; }

void anynorm_use_cache(int64_t bytes) { use_cache(bytes); }

int anynorm_abi(void) { return 2; }
