// What the loops are given, and the table of them that each instruction set has.
#ifndef ANYNORM_LOOPS_H
#define ANYNORM_LOOPS_H

#include "geometry.h"

namespace anynorm {

// Two doubles a statistic: what `saved` holds.
struct Statistic {
  double mean, rstd;
};
// Two doubles a statistic or an element of scale.
struct Sums {
  double plain, with_h;  // sum(g) or sum(dy), sum(g * h) or sum(dy * h)
};

struct Call {
  Geometry geometry;
  double eps;
  bool removes_mean, removes_scale;
  int threads;
  const anynorm_executor* executor;
  bool past;  // y or dx goes past the caches, being too large for them
  bool far;   // x is so large that it is taken to come from memory, and fetched ahead of its use
  const void* x;
  const void* scale;   // in the work type, as is offset; NULL stands for ones and zeros
  const void* offset;

  // Forward: statistics unless they are given, then y unless it is NULL.
  bool given;             // `statistics` is read, not written
  Statistic* statistics;  // NULL where nobody wants them
  void* mean;             // in the work type; optional
  void* variance;
  void* y;

  // Backward: sums unless they are given, then dx unless it is NULL.
  const void* dy;
  void* dx;
  bool sums_given;
  Sums* sums;         // for each statistic; NULL where nobody wants them
  double share;       // 1 / the number of elements of a statistic
  Sums* affine_sums;  // for each element of scale, zero at first; NULL where nobody wants them
};

// By dtype of the array; 0, or ANYNORM_NO_MEMORY.
struct Loops {
  const char* name;
  int (*forward[4])(const Call&);
  int (*backward[4])(const Call&);
};

}  // namespace anynorm

#endif
