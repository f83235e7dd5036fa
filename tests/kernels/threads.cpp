// Threads: the same bits with any number of them, from several callers at once, and after fork().
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <thread>

#include "check.h"
#include "run.h"

namespace {

// Large enough for several threads, in every way in which they share the work.
std::vector<Case> large_cases() {
  std::vector<Case> cases;
  const auto add = [&](const char* order, const std::vector<int64_t>& extents, int dtype) {
    cases.emplace_back(order, extents, dtype, cases.size() + 1);
  };
  add("kr", {300, 401}, ANYNORM_FLOAT32);          // many rows
  add("kR", {131, 1031}, ANYNORM_FLOAT32);         // many rows with a scale for each element
  add("r", {300007}, ANYNORM_BFLOAT16);            // one long row
  add("kRr", {2, 7, 9001}, ANYNORM_FLOAT32);       // long rows of few samples
  add("kRr", {2, 2003, 49}, ANYNORM_FLOAT32);      // short strips, four of them at once
  add("rKr", {41, 3, 1031}, ANYNORM_FLOAT32);      // rows in pieces
  add("rKr", {37, 41, 117}, ANYNORM_FLOAT32);      // rows in short pieces, several at once
  add("rK", {4003, 37}, ANYNORM_FLOAT32);          // one narrow slab
  add("rK", {33, 4711}, ANYNORM_FLOAT64);          // one wide slab
  add("krKR", {2, 1999, 9, 5}, ANYNORM_FLOAT16);   // few slabs, groups of columns
  add("krK", {40, 99, 33}, ANYNORM_FLOAT32);       // many slabs
  add("kRk", {3, 67, 1031}, ANYNORM_FLOAT32);      // across
  return cases;
}

// What each case gives with one thread.
struct Known {
  std::vector<Case> cases = large_cases();
  std::vector<Outputs> outputs;
  Known() {
    for (const Case& c : cases) outputs.push_back(run_all(c));
  }
  // Whether all cases give the same with this many threads.
  bool again(int threads) const {
    bool same = true;
    for (size_t i = 0; i < cases.size(); ++i) {
      Outputs out(cases[i]);
      anynorm_problem p = cases[i].problem;
      p.threads = threads;
      const Case& c = cases[i];
      anynorm_forward(&p, c.x.data(), c.scale.data(), c.offset.data(), out.y.data(), out.mean.data(),
                      out.variance.data(), out.saved.doubles());
      anynorm_backward(&p, c.x.data(), c.dy.data(), c.scale.data(), out.saved.doubles(), out.dx.data(),
                       out.dscale.data(), out.doffset.data());
      same = same && out.same_bits(outputs[i]);
    }
    return same;
  }
};

}  // namespace

TEST(several_callers_with_several_threads_each) {
  const Known known;
  std::vector<std::thread> callers;
  std::atomic<int> wrong{0};
  for (int i = 0; i < 4; ++i)
    callers.emplace_back([&, i] {
      for (int round = 0; round < (kSanitized ? 2 : 5); ++round) wrong += !known.again(2 + (i + round) % 3);
    });
  for (std::thread& caller : callers) caller.join();
  CHECK(wrong == 0, "%d rounds gave other numbers", wrong.load());
}

TEST(any_number_of_threads_gives_the_same_bits) {
  for (const char* isa : isas()) {
    anynorm_use_isa(isa);
    const Known known;
    for (const int threads : {2, 3, 8, 0, 1000})
      CHECK(known.again(threads), "%d threads give other numbers on %s", threads, isa);
  }
}

namespace {

// Run `work` in a forked child, which has a minute; whether it returned true.
bool in_a_child(bool (*work)(const Known&), const Known& known) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);
    _exit(work(known) ? 0 : 1);
  }
  int status = -1;
  return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

}  // namespace

TEST(a_forked_child_has_threads_of_its_own) {
  if (kThreadSanitizer) return;  // it does not follow a child of several threads
  const Known known;
  CHECK(known.again(3), "before the fork");
  CHECK(in_a_child([](const Known& k) { return k.again(3); }, known), "the child failed or hung");
  const auto grandchild = [](const Known& k) {
    return in_a_child([](const Known& l) { return l.again(2); }, k) && k.again(3);
  };
  CHECK(in_a_child(grandchild, known), "the grandchild failed or hung");
  CHECK(known.again(3), "after the fork");
}

TEST(fork_while_others_compute) {
  if (kThreadSanitizer) return;
  const Known known;
  std::atomic<bool> stop{false};
  std::thread busy([&] {
    while (!stop) CHECK(known.again(3), "beside the fork");
  });
  for (int i = 0; i < 10; ++i)
    CHECK(in_a_child(
              [](const Known& k) {
                // Not through Array, whose own lock another thread may have held.
                const Case& c = k.cases[0];
                anynorm_problem p = c.problem;
                p.threads = 3;
                return anynorm_forward(&p, c.x.data(), c.scale.data(), c.offset.data(), k.outputs[0].y.data(), nullptr,
                                       nullptr, nullptr) == ANYNORM_OK;
              },
              known),
          "child %d failed or hung", i);
  stop = true;
  busy.join();
}
