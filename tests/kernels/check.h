// The tests' own framework: named tests, checks that say with what they failed, and random numbers.
#ifndef ANYNORM_CHECK_H
#define ANYNORM_CHECK_H

#include <stdint.h>

#include <string>
#include <vector>

#if defined(__SANITIZE_THREAD__)
constexpr bool kThreadSanitizer = true;
#else
constexpr bool kThreadSanitizer = false;
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

// Count a failure and print it, the first few of them.
void fail(const char* file, int line, const char* format, ...) __attribute__((format(printf, 3, 4)));

// CHECK(condition, "format", ...): the message is made only where the condition is false.
#define CHECK(condition, ...) \
  do {                        \
    if (!(condition)) fail(__FILE__, __LINE__, __VA_ARGS__); \
  } while (false)

struct Test {
  const char* name;
  void (*run)();
  static std::vector<Test>& all();
  Test(const char* n, void (*r)()) : name(n), run(r) { all().push_back(*this); }
};

#define TEST(name)                         \
  static void name();                      \
  static const Test test_##name(#name, name); \
  static void name()

// The instruction sets that this machine and this build have.
const std::vector<const char*>& isas();

// Reproducible numbers.
struct Random {
  uint64_t state;
  explicit Random(uint64_t seed) : state(seed * 0x9e3779b97f4a7c15u + 1) {}
  uint64_t bits() {
    uint64_t z = (state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  int64_t below(int64_t n) { return int64_t(bits() % uint64_t(n)); }
  // Mean 0, variance 1, and no tails: the sum of three uniform numbers.
  double number() {
    double sum = 0;
    for (int i = 0; i < 3; ++i) sum += double(bits() >> 11) * 0x1p-53 * 2 - 1;
    return sum;
  }
};

#endif
