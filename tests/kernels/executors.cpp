// Threads that belong to somebody else: tasks may begin at once, late, after the call or never.
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "check.h"
#include "run.h"

namespace {

struct Task {
  void (*function)(void*);
  void* argument;
};

struct Executor : anynorm_executor {
  std::mutex mutex;
  std::deque<Task> tasks;
  int64_t scheduled = 0;

  explicit Executor(void (*how)(void*, void (*)(void*), void*)) {
    schedule = how;
    self = this;
  }
  void keep(Task task) {
    std::lock_guard<std::mutex> lock(mutex);
    tasks.push_back(task);
    ++scheduled;
  }
  bool take(Task* task) {
    std::lock_guard<std::mutex> lock(mutex);
    if (tasks.empty()) return false;
    *task = tasks.front();
    tasks.pop_front();
    return true;
  }
  int64_t run_all_tasks() {
    int64_t n = 0;
    for (Task task; take(&task); ++n) task.function(task.argument);
    return n;
  }
};

void keep(void* self, void (*function)(void*), void* argument) {
  static_cast<Executor*>(self)->keep({function, argument});
}

const std::vector<Case>& cases() {
  static const std::vector<Case> all = [] {
    std::vector<Case> list;
    list.emplace_back("kR", std::vector<int64_t>{131, 1031}, ANYNORM_FLOAT32, 1);
    list.emplace_back("r", std::vector<int64_t>{200003}, ANYNORM_FLOAT32, 2);
    list.emplace_back("krKR", std::vector<int64_t>{2, 1999, 9, 5}, ANYNORM_FLOAT32, 3);
    list.emplace_back("kRk", std::vector<int64_t>{3, 67, 1031}, ANYNORM_FLOAT32, 4);
    return list;
  }();
  return all;
}

// Both passes of all cases on the executor's threads, and the same numbers as with none.
void compute(const anynorm_executor* executor, const char* name) {
  for (const Case& c : cases()) {
    const Outputs wanted = run_all(c);
    Outputs found(c);
    anynorm_problem p = c.problem;
    p.threads = 4;
    p.executor = executor;
    anynorm_forward(&p, c.x.data(), c.scale.data(), c.offset.data(), found.y.data(), found.mean.data(),
                    found.variance.data(), found.saved.doubles());
    anynorm_backward(&p, c.x.data(), c.dy.data(), c.scale.data(), found.saved.doubles(), found.dx.data(),
                     found.dscale.data(), found.doffset.data());
    CHECK(found.same_bits(wanted), "%s: other numbers: %s", name, c.text().c_str());
  }
}

}  // namespace

TEST(an_executor_that_runs_tasks_at_once) {
  Executor inline_(+[](void*, void (*function)(void*), void* argument) { function(argument); });
  compute(&inline_, "at once");
}

TEST(an_executor_with_busy_threads) {
  Executor pool(keep);
  std::mutex stop_mutex;
  bool stop = false;
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i)
    threads.emplace_back([&, i] {
      for (;;) {
        {
          std::lock_guard<std::mutex> lock(stop_mutex);
          if (stop) return;
        }
        Task task;
        // The second comes late to everything, often when the call is over and the next has begun.
        if (i == 1) std::this_thread::sleep_for(std::chrono::milliseconds(2));
        if (pool.take(&task))
          task.function(task.argument);
        else
          std::this_thread::yield();
      }
    });
  for (int round = 0; round < (kSanitized ? 3 : 10); ++round) compute(&pool, "busy threads");
  {
    std::lock_guard<std::mutex> lock(stop_mutex);
    stop = true;
  }
  for (std::thread& thread : threads) thread.join();
  pool.run_all_tasks();
}

TEST(an_executor_that_runs_tasks_after_the_call) {
  Executor later(keep);
  compute(&later, "after the call");
  CHECK(later.scheduled > 0, "nothing was scheduled, so nothing was tested");
  // On another thread, when nothing of the call is left.
  int64_t ran = 0;
  std::thread([&] { ran = later.run_all_tasks(); }).join();
  CHECK(ran == later.scheduled, "%lld of %lld tasks", (long long)ran, (long long)later.scheduled);
}

TEST(an_executor_that_never_runs_tasks) {
  // Kept for good, so that what hangs on the tasks is not taken for lost.
  static Executor* const never = new Executor(keep);
  compute(never, "never");
  CHECK(never->scheduled > 0, "nothing was scheduled, so nothing was tested");
}
