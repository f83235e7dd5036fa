// How a normalization is told to TensorFlow's ops and to XLA's custom calls: one line of words, which stands in the
// graph as an attribute, and in which lengths that the graph does not know refer to dimensions of x.
//
//   krKR 3 1e-05 @0,3136@1,32,2 @0,32
//
//   labels of the runs, as Plan.labels     what is removed: ANYNORM_REMOVES_*     eps
//   length of each run, as a number times the dimensions of x behind each @        shape of mean and variance, likewise
#ifndef ANYNORM_TENSORFLOW_PROBLEM_H_
#define ANYNORM_TENSORFLOW_PROBLEM_H_

#include <stdint.h>

#include <string_view>
#include <vector>

#include "../anynorm.h"

namespace anynorm {

struct Length {
  int64_t known = 1;
  std::vector<int> dimensions;

  int64_t of(const std::vector<int64_t>& shape) const;
};

struct Told {
  anynorm_problem problem{};  // without extents, types and threads
  std::vector<Length> runs;
  std::vector<Length> kept;

  // False unless `line` is such a line.
  bool read(std::string_view line);

  // Sets the problem's extents; false where x of this shape does not have as many elements as the runs.
  bool fit(const std::vector<int64_t>& shape, anynorm_problem* problem) const;
};

// The words of `line` one after the other; empty at its end.
std::string_view next_word(std::string_view* line, char separator = ' ');

bool read_int(std::string_view word, int64_t* value);

// Elements of scale, and of a statistic.
int64_t affine_count(const anynorm_problem& problem);
int64_t kept_count(const anynorm_problem& problem);

// As TensorFlow sizes its own pool: by its configuration, where 0 stands for none, else by the environment, else by the
// processors, for which 0 is returned.
int threads_from(int configured);

const char* explain(int code);

}  // namespace anynorm

#endif
