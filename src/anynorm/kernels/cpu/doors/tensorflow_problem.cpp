#include "tensorflow_problem.h"

#include <charconv>
#include <cstdlib>

namespace anynorm {

int64_t Length::of(const std::vector<int64_t>& shape) const {
  int64_t length = known;
  for (int dimension : dimensions) length *= shape[dimension];
  return length;
}

std::string_view next_word(std::string_view* line, char separator) {
  const size_t end = line->find(separator);
  const std::string_view word = line->substr(0, end);
  line->remove_prefix(end == std::string_view::npos ? line->size() : end + 1);
  return word;
}

bool read_int(std::string_view word, int64_t* value) {
  const char* end = word.data() + word.size();
  const auto [stop, error] = std::from_chars(word.data(), end, *value);
  return error == std::errc() && stop == end && *value >= 0;
}

// "3136@1@2": a number, left out where it is 1, and dimensions of x.
static bool read_lengths(std::string_view list, std::vector<Length>* lengths) {
  while (!list.empty()) {
    std::string_view word = next_word(&list, ',');
    Length length;
    const std::string_view number = next_word(&word, '@');
    if (!number.empty() && !read_int(number, &length.known)) return false;
    while (!word.empty()) {
      int64_t dimension;
      if (!read_int(next_word(&word, '@'), &dimension)) return false;
      length.dimensions.push_back(static_cast<int>(dimension));
    }
    lengths->push_back(length);
  }
  return true;
}

bool Told::read(std::string_view line) {
  const std::string_view labels = next_word(&line);
  for (size_t i = 0; i < labels.size(); ++i) {
    const char label = labels[i];
    if (label == 'r' || label == 'R') problem.reduced |= 1u << i;
    if (label == 'K' || label == 'R') problem.affine |= 1u << i;
  }
  problem.rank = static_cast<int32_t>(labels.size());
  int64_t removes;
  if (!read_int(next_word(&line), &removes)) return false;
  problem.removes = static_cast<uint32_t>(removes);
  // Not strtod: that reads as the user's locale has it.
  const std::string_view eps = next_word(&line);
  if (std::from_chars(eps.data(), eps.data() + eps.size(), problem.eps).ec != std::errc()) return false;
  return read_lengths(next_word(&line), &runs) && read_lengths(next_word(&line), &kept) &&
         runs.size() == labels.size() && runs.size() <= ANYNORM_MAX_RUNS && !runs.empty();
}

bool Told::fit(const std::vector<int64_t>& shape, anynorm_problem* fitted) const {
  *fitted = problem;
  const auto missing = [&](const std::vector<Length>& lengths) {
    for (const Length& length : lengths) {
      for (int dimension : length.dimensions) {
        if (static_cast<size_t>(dimension) >= shape.size()) return true;
      }
    }
    return false;
  };
  if (missing(runs) || missing(kept)) return false;
  int64_t elements = 1, told = 1;
  for (int64_t n : shape) elements *= n;
  for (size_t i = 0; i < runs.size(); ++i) told *= fitted->extents[i] = runs[i].of(shape);
  return elements == told;
}

static int64_t count(const anynorm_problem& problem, uint32_t runs) {
  int64_t product = 1;
  for (int i = 0; i < problem.rank; ++i) product *= runs >> i & 1 ? problem.extents[i] : 1;
  return product;
}

int64_t affine_count(const anynorm_problem& problem) { return count(problem, problem.affine); }

int64_t kept_count(const anynorm_problem& problem) { return count(problem, ~problem.reduced); }

int threads_from(int configured) {
  const char* const environment = std::getenv("TF_NUM_INTRAOP_THREADS");
  const int threads = configured == 0 && environment ? std::atoi(environment) : configured;
  return threads > 0 ? threads : 0;
}

const char* explain(int code) {
  return code == ANYNORM_NO_MEMORY ? "no memory for the normalization's intermediate sums"
                                   : "this build has no loops for runs of this order";
}

}  // namespace anynorm
