// Calls of the C interface with arrays of its own for what comes out, and their comparison with the oracle.
#ifndef ANYNORM_RUN_H
#define ANYNORM_RUN_H

#include "oracle.h"

// Everything that a forward and a backward pass give.
struct Outputs {
  Array y, mean, variance, saved, dx, dscale, doffset;

  // `shift` as in Array; all of them begin as NaN.
  explicit Outputs(const Case& c, int64_t shift = 0);
  bool same_bits(const Outputs& other) const;
};

// Both passes with all that is optional; the backward pass takes what the forward pass saved.
Outputs run_all(const Case& c);

void call_forward(const Case& c, const Array& x, const Array& scale, const Array& offset, const Array& y,
                  const Array& mean, const Array& variance, const Array& saved);
void call_backward(const Case& c, const Array& x, const Array& dy, const Array& scale, const Array& saved,
                   const Array& dx, const Array& dscale, const Array& doffset);

// |actual - wanted| <= rounding of the result + some roundings of the work type at `size`.
void near(const Case& c, const char* what, const Array& actual, const Numbers& wanted, const Numbers& size);

// Every function of the header on every instruction set, with or without scale and offset, against the oracle.
void check(const Case& c, bool with_scale, bool with_offset);

#endif
