// Passes of the kernels over float32, for valgrind to count: instructions PASS REPEATS REMOVES REDUCED AFFINE EXTENT...
//
// PASS is forward or backward; the others are those of anynorm_problem. One pass is what a repeat more costs more.
#include <stdlib.h>
#include <string.h>

#include <vector>

#include "anynorm.h"

int main(int count, char** words) {
  if (count < 7 || anynorm_use_isa("avx2") != ANYNORM_OK) return 2;
  anynorm_problem p = {};
  p.removes = unsigned(atoi(words[3]));
  p.reduced = unsigned(atoi(words[4]));
  p.affine = unsigned(atoi(words[5]));
  p.rank = count - 6;
  p.threads = 1;
  p.eps = 1e-5;
  size_t elements = 1, groups = 1, affine = 1;
  for (int i = 0; i < p.rank; ++i) {
    p.extents[i] = atoll(words[6 + i]);
    elements *= size_t(p.extents[i]);
    if (!(p.reduced >> i & 1)) groups *= size_t(p.extents[i]);
    if (p.affine >> i & 1) affine *= size_t(p.extents[i]);
  }
  std::vector<float> x(elements), dy(elements), out(elements);
  std::vector<float> scale(affine, 1.5f), offset(affine, 0.5f), dscale(affine), doffset(affine);
  std::vector<double> saved(2 * groups, 1.0);
  unsigned state = 1;
  for (size_t i = 0; i < elements; ++i) {
    state = state * 1664525 + 1013904223;
    x[i] = float(state >> 8) * 0x1p-24f;
    dy[i] = 1 - x[i];
  }
  const bool forward = strcmp(words[1], "forward") == 0;
  int failed = 0;
  for (int i = 0; i < atoi(words[2]); ++i) {
    if (forward)
      failed |= anynorm_forward(&p, x.data(), scale.data(), offset.data(), out.data(), nullptr, nullptr, saved.data());
    else
      failed |= anynorm_backward(&p, x.data(), dy.data(), scale.data(), saved.data(), out.data(), dscale.data(),
                                 doffset.data());
  }
  return failed;
}
