#include "isa.h"

#include <string.h>

#include <atomic>

#if defined(ANYNORM_HAS_AVX2) || defined(ANYNORM_HAS_AVX512)
#include <cpuid.h>
#endif

namespace anynorm {

#if defined(ANYNORM_HAS_AVX512)
namespace avx512 {
extern const Loops loops;
}
#endif
#if defined(ANYNORM_HAS_AVX2)
namespace avx2 {
extern const Loops loops;
}
#endif
#if defined(ANYNORM_HAS_NEON)
namespace neon {
extern const Loops loops;
}
#endif
#if defined(ANYNORM_HAS_BASELINE)
namespace baseline {
extern const Loops loops;
}
#endif

namespace {

#if defined(ANYNORM_HAS_AVX512)
// AMD's Zen 4 (and Zen 3, which lacks AVX-512) takes 512 bits in two halves, and where an array does not begin with a
// line of the cache each vector is of two lines: AVX2 is a little faster there, and on such arrays more so.
bool halves_vectors() {
  unsigned a, b, c, d;
  if (!__builtin_cpu_is("amd") || !__get_cpuid(1, &a, &b, &c, &d)) return false;
  return (a >> 8 & 0xf) + (a >> 20 & 0xff) == 0x19;
}
#endif

#if defined(ANYNORM_HAS_AVX2)
// F16C, which older compilers' __builtin_cpu_supports does not know by name.
bool converts_halves() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1);
}
#endif

struct Available {
  const Loops* loops[4] = {};
  int number = 0;

  // Best first.
  Available() {
#if defined(ANYNORM_HAS_AVX512)
    __builtin_cpu_init();
    const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                            __builtin_cpu_supports("fma");
    if (has_avx512 && !halves_vectors()) loops[number++] = &avx512::loops;
#endif
#if defined(ANYNORM_HAS_AVX2)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && converts_halves())
      loops[number++] = &avx2::loops;
#endif
#if defined(ANYNORM_HAS_AVX512)
    if (has_avx512 && halves_vectors()) loops[number++] = &avx512::loops;
#endif
#if defined(ANYNORM_HAS_NEON)
    loops[number++] = &neon::loops;
#endif
#if defined(ANYNORM_HAS_BASELINE)
    loops[number++] = &baseline::loops;
#endif
  }
};

const Available& available() {
  static const Available found;
  return found;
}

std::atomic<const Loops*> chosen{nullptr};

}  // namespace

bool has_loops() { return available().number > 0; }

const Loops& loops() {
  const Loops* now = chosen.load(std::memory_order_acquire);
  if (now == nullptr) {
    now = available().loops[0];
    chosen.store(now, std::memory_order_release);
  }
  return *now;
}

bool use_loops(const char* name) {
  for (int i = 0; i < available().number; ++i)
    if (strcmp(available().loops[i]->name, name) == 0) {
      chosen.store(available().loops[i], std::memory_order_release);
      return true;
    }
  return false;
}

}  // namespace anynorm
