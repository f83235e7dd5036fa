// The equations of anynorm.h over every index, in long double: slow, and independent of how the kernels are made.
#ifndef ANYNORM_ORACLE_H
#define ANYNORM_ORACLE_H

#include <stdint.h>

#include <string>
#include <vector>

#include "anynorm.h"
#include "arrays.h"

typedef std::vector<double> Numbers;

// One problem with its inputs. `order` has a letter for each run: k kept, r reduced, K and R with scale and offset.
struct Case {
  std::string order;
  anynorm_problem problem = {};
  int64_t elements = 1, groups = 1, count = 1, affine = 1;
  std::vector<int64_t> group_of, affine_of;  // of each element
  Array x, dy, scale, offset;

  Case(const std::string& order, const std::vector<int64_t>& extents, int dtype, uint64_t seed = 1);

  // The same with another set of what is removed, of threads.
  Case& removing(uint32_t removes) {
    problem.removes = removes;
    return *this;
  }
  Case& with_threads(int threads) {
    problem.threads = threads;
    return *this;
  }
  std::string text() const;
};

// What should come out, and beside it how large the numbers are whose roundings it carries.
struct Wanted {
  Numbers y, y_size, dx, dx_size;
  Numbers mean, variance, rstd, spread;  // spread: the root of the mean square of x
  Numbers sum_g, sum_gh, sum_size;
  Numbers dscale, doffset, affine_size;
};

// With or without scale and offset.
Wanted expect(const Case& c, bool with_scale, bool with_offset);
// y from these statistics; `mean` may be empty.
Numbers expect_apply(const Case& c, const Numbers& mean, const Numbers& variance, bool with_scale, bool with_offset);
// dx from these sums over `count` elements.
Numbers expect_dx(const Case& c, const Wanted& w, bool with_scale, const Numbers& sum_g, const Numbers& sum_gh,
                  double count);

#endif
