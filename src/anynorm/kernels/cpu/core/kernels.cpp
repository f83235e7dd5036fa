// The loops for one instruction set, which ANYNORM_ISA names. Compiled once for each, with that set's flags.
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "loops.h"
#include "threads.h"

namespace anynorm {
namespace ANYNORM_ISA {
namespace {

// In this order: each builds on those before it.
#include "numbers.h"
#include "simd.h"
#include "sums.h"
#include "over.h"
#include "common.h"
#include "rows.h"
#include "rows_short.h"
#include "rows_overlapped.h"
#include "rows_forward.h"
#include "rows_strips.h"
#include "rows_backward.h"
#include "rows_elements.h"
#include "columns.h"
#include "slabs.h"
#include "columns_forward.h"
#include "columns_backward.h"
#include "across_few.h"
#include "across_rows.h"
#include "across.h"

template <class T>
int forward(const Call& call) {
  switch (call.geometry.family) {
    case kRows:
      return forward_rows<T>(call);
    case kColumns:
      return forward_columns<T>(call);
    default:
      return forward_across<T>(call);
  }
}

template <class T>
int backward(const Call& given) {
  const Call call = given.geometry.family == kRows ? simplified(given) : given;
  switch (call.geometry.family) {
    case kRows:
      return call.geometry.c > 1 && call.geometry.s == 1 ? backward_elements<T>(call) : backward_stretches<T>(call);
    case kColumns:
      return backward_columns<T>(call);
    default:
      return backward_across<T>(call);
  }
}

}  // namespace

#define ANYNORM_NAME(isa) #isa
#define ANYNORM_NAME_OF(isa) ANYNORM_NAME(isa)
extern const Loops loops;
const Loops loops = {ANYNORM_NAME_OF(ANYNORM_ISA),
                     {forward<float>, forward<double>, forward<Half>, forward<Brain>},
                     {backward<float>, backward<double>, backward<Half>, backward<Brain>}};

}  // namespace ANYNORM_ISA
}  // namespace anynorm
