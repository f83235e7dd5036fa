// anynorm_kernel_tests [part of a name]: run all tests, or those whose names contain it.
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <atomic>
#include <chrono>

#include "anynorm.h"
#include "check.h"

namespace {
std::atomic<int> failures{0};
}

void fail(const char* file, int line, const char* format, ...) {
  if (failures.fetch_add(1) >= 20) return;
  char message[500];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  const char* name = strrchr(file, '/');
  fprintf(stderr, "%s:%d: %s\n", name == nullptr ? file : name + 1, line, message);
}

std::vector<Test>& Test::all() {
  static std::vector<Test> tests;
  return tests;
}

const std::vector<const char*>& isas() {
  static const std::vector<const char*> found = [] {
    std::vector<const char*> names;
    for (const char* name : {"baseline", "avx2", "avx512", "neon"})
      if (anynorm_use_isa(name) == ANYNORM_OK) names.push_back(name);
    return names;
  }();
  return found;
}

int main(int count, char** words) {
  setvbuf(stdout, nullptr, _IOLBF, 0);
  CHECK(!isas().empty(), "no instruction set");
  printf("instruction sets:");
  for (const char* name : isas()) printf(" %s", name);
  printf("\n");
  int run = 0;
  for (const Test& test : Test::all()) {
    if (count > 1 && strstr(test.name, words[1]) == nullptr) continue;
    const int before = failures;
    const auto start = std::chrono::steady_clock::now();
    test.run();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    printf("%-6s %-55s %6.2f s\n", failures == before ? "ok" : "FAILED", test.name, took.count());
    ++run;
  }
  if (run == 0) fail(__FILE__, __LINE__, "no test of that name");
  printf(failures == 0 ? "%d tests passed\n" : "%d tests, of which some failed\n", run);
  return failures == 0 ? 0 : 1;
}
