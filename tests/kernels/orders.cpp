// Every order of runs that the kernels support, small and with lengths around those at which the loops change.
#include <string>
#include <vector>

#include "check.h"
#include "run.h"

namespace {

typedef std::vector<int64_t> Extents;

bool supported(const std::string& order) {
  const Case c(order, Extents(order.size(), 1), ANYNORM_FLOAT32);
  return anynorm_supported(&c.problem);
}

// All orders of `runs` runs that have loops; without neighbours of one kind, which a caller merges, unless asked for.
std::vector<std::string> orders(size_t runs, bool with_equal_neighbours) {
  std::vector<std::string> out;
  for (int64_t code = 0; code < int64_t(1) << (2 * runs); ++code) {
    std::string order;
    bool merged = true;
    for (size_t i = 0; i < runs; ++i) {
      order += "kKrR"[code >> (2 * i) & 3];
      merged = merged && (i == 0 || order[i] != order[i - 1]);
    }
    if ((merged || with_equal_neighbours) && supported(order)) out.push_back(order);
  }
  return out;
}

// Mostly both moments, at times the scale alone, seldom the mean alone or nothing.
uint32_t removes_of(uint64_t i) {
  constexpr uint32_t kMean = ANYNORM_REMOVES_MEAN, kScale = ANYNORM_REMOVES_SCALE;
  return i % 8 < 5 ? kMean | kScale : i % 8 < 7 ? kScale : i / 8 % 2 ? kMean : 0;
}

}  // namespace

TEST(every_order_of_up_to_five_runs) {
  if (kThreadSanitizer) return;  // threads.cpp goes the same ways
  uint64_t seed = 0;
  for (size_t runs = 1; runs <= 5; ++runs)
    for (const std::string& order : orders(runs, runs <= 4))
      for (int dtype = 0; dtype < 4; ++dtype) {
        ++seed;
        if (kSanitized && runs == 5 && seed % 4 != uint64_t(seed / 4 % 4)) continue;
        // Distinct extents, so that none can be taken for another; which of them comes first varies.
        static const int64_t some[] = {2, 3, 5, 4, 7, 2, 3};
        const Extents extents(some + seed % 3, some + seed % 3 + runs);
        Case c(order, extents, dtype, seed);
        c.removing(removes_of(seed));
        check(c, seed % 5 != 0, seed % 7 != 0);
      }
}

TEST(lengths_around_vectors_blocks_and_tiles) {
  if (kThreadSanitizer) return;  // threads.cpp goes the same ways
  static const int64_t lengths[] = {1,  2,  3,   7,   8,   9,   15,  16,  17,  31,  32,   33,   63,   64,  65,
                                    66, 127, 128, 129, 130, 255, 257, 511, 513, 1031, 4095, 4096, 4097, 8193};
  const int64_t draws = kSanitized ? 4 : 10, most = kSanitized ? 20000 : 60000;
  Random random(5);
  uint64_t seed = 0;
  for (size_t runs = 1; runs <= 3; ++runs)
    for (const std::string& order : orders(runs, false))
      for (int64_t draw = 0; draw < draws * (runs == 1 ? 4 : 1); ++draw) {
        Extents extents(runs);
        int64_t elements;
        do {
          elements = 1;
          for (int64_t& extent : extents) elements *= extent = lengths[random.below(29)];
        } while (elements > most);
        ++seed;
        Case c(order, extents, int(random.below(4)), seed);
        c.removing(removes_of(seed)).with_threads(1 + int(random.below(4)));
        check(c, seed % 5 != 0, seed % 7 != 0);
      }
}

// Large enough that several threads share a group or a slab, and that slabs are cut into tiles.
TEST(large_arrays) {
  if (kThreadSanitizer) return;  // threads.cpp goes the same ways
  static const struct {
    const char* order;
    Extents extents;
  } shapes[] = {
      {"r", {300007}}, {"R", {100003}}, {"kr", {3, 70001}}, {"kR", {130, 1031}}, {"kR", {5, 40009}},
      {"kRr", {3, 7, 8200}}, {"kRr", {2, 9000, 9}}, {"kRr", {2, 2003, 49}}, {"Kr", {5, 33000}}, {"kKr", {2, 3, 20011}},
      {"rKr", {9, 5, 2100}}, {"rKr", {7, 61, 117}}, {"rKr", {3, 45, 667}}, {"rkr", {9, 70, 49}}, {"rKr", {40, 66, 49}},
      {"krKr", {2, 5, 37, 70}}, {"rKkr", {6, 5, 19, 65}}, {"rK", {4099, 80}}, {"krKR", {2, 2711, 12, 9}},
      {"rK", {5003, 17}}, {"rK", {40, 4200}}, {"krK", {2, 1111, 65}}, {"krK", {3, 515, 127}},
      {"krKR", {2, 411, 9, 17}}, {"krKR", {2, 7, 700, 11}}, {"krR", {2, 3001, 29}}, {"krR", {1, 9, 9001}},
      {"kRk", {3, 67, 1031}}, {"kRk", {2, 700, 100}}, {"Rk", {5, 30011}}, {"rkrk", {7, 3, 33, 130}},
      {"rkr", {33, 7, 700}}, {"rkR", {19, 4, 1100}}, {"RkR", {7, 5, 3001}},
  };
  uint64_t seed = 0;
  for (const auto& shape : shapes)
    for (const int dtype : {int(ANYNORM_FLOAT32), int(seed % 4)}) {
      Case c(shape.order, shape.extents, dtype, ++seed);
      CHECK(anynorm_supported(&c.problem), "no loops for %s", shape.order);
      check(c.with_threads(3).removing(removes_of(seed)), seed % 5 != 0, seed % 7 != 0);
      if (kSanitized) break;
    }
}
