#include "threads.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <new>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif
#include <pthread.h>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace anynorm {
namespace {

// How long a thread looks for something before it sleeps. To wake one takes a virtual machine as long as most tasks do,
// and the next work often follows at once, as the second pass of two does, or another layer.
constexpr std::chrono::microseconds kPatience(100);

typedef std::chrono::steady_clock Clock;

// Whether ready() comes true by then; meanwhile the thread gives way to whoever wants the processor.
template <class F>
bool comes_true(const F& ready, Clock::time_point end) {
  do {
    for (int i = 0; i < 16; ++i) {
      if (ready()) return true;
#if defined(__SSE2__)
      _mm_pause();
#endif
    }
    std::this_thread::yield();
  } while (Clock::now() < end);
  return ready();
}

// Each participant takes its own stretch of the tasks first, then what the others have left. Neighbouring tasks share
// lines of the cache, and processors fetch ahead: threads side by side would take each other's lines away.
//
// Lives until the last thread that was asked to help has looked at it, which may be after the work is done.
struct Job {
  struct alignas(64) Stretch {
    std::atomic<int64_t> next;
    int64_t end;
  };
  const int participants;
  const int64_t tasks;
  void (*const task)(void*, int64_t);
  void* const context;
  std::unique_ptr<Stretch[]> stretches;
  std::atomic<int> helpers{0}, holders;
  std::atomic<int64_t> done{0};
  std::mutex mutex;
  std::condition_variable finished;

  Job(int participants, int64_t tasks, void (*task)(void*, int64_t), void* context)
      : participants(participants), tasks(tasks), task(task), context(context),
        stretches(new (std::nothrow) Stretch[size_t(participants)]), holders(participants) {
    for (int64_t i = 0; stretches && i < participants; ++i) {
      stretches[i].next.store(tasks * i / participants, std::memory_order_relaxed);
      stretches[i].end = tasks * (i + 1) / participants;
    }
  }

  // The caller's stretch is always the first: of a second pass it has most in its caches.
  void work(int first) {
    for (int k = 0; k < participants; ++k) {
      Stretch& s = stretches[(first + k) % participants];
      // Looked at first: to add to what others add to takes the line away from them.
      while (s.next.load(std::memory_order_relaxed) < s.end) {
        const int64_t i = s.next.fetch_add(1, std::memory_order_relaxed);
        if (i >= s.end) break;
        task(context, i);
        if (done.fetch_add(1, std::memory_order_acq_rel) + 1 == tasks) {
          std::lock_guard<std::mutex> lock(mutex);
          finished.notify_all();
        }
      }
    }
  }

  void wait() {
    const auto is_done = [this] { return done.load(std::memory_order_acquire) == tasks; };
    if (comes_true(is_done, Clock::now() + kPatience)) return;
    std::unique_lock<std::mutex> lock(mutex);
    finished.wait(lock, is_done);
  }

  void release() {
    if (holders.fetch_sub(1, std::memory_order_acq_rel) == 1) delete this;
  }

  static void help(void* self) {
    Job* const job = static_cast<Job*>(self);
    job->work(job->helpers.fetch_add(1, std::memory_order_relaxed) + 1);
    job->release();
  }
};

// Threads of our own, which sleep when nothing is scheduled for a while. Never destroyed: they may outlive static
// destructors.
struct Pool {
  struct Call {
    void (*function)(void*);
    void* argument;
  };
  std::mutex mutex;
  std::condition_variable some;
  std::deque<Call> calls;
  std::atomic<int64_t> waiting{0};  // calls, for those who look without the mutex
  int threads = 0;

  // Whether a thread will take the call.
  bool schedule(void (*function)(void*), void* argument, int wanted) {
    std::unique_lock<std::mutex> lock(mutex);
    while (threads < wanted) {
      try {
        std::thread([this] { serve(); }).detach();
      } catch (...) {
        break;  // the system has no more threads to give: those that there are will do
      }
      ++threads;
    }
    if (threads == 0) return false;
    try {
      calls.push_back({function, argument});
    } catch (...) {
      return false;  // nor memory
    }
    lock.unlock();
    waiting.fetch_add(1, std::memory_order_release);
    some.notify_one();
    return true;
  }

  void serve() {
    std::unique_lock<std::mutex> lock(mutex);
    for (;;) {
      some.wait(lock, [this] { return !calls.empty(); });
      const Call call = calls.front();
      calls.pop_front();
      waiting.fetch_sub(1, std::memory_order_relaxed);
      lock.unlock();
      call.function(call.argument);
      // Of several threads that see a call one gets it.
      const auto end = Clock::now() + kPatience;
      while (comes_true([this] { return waiting.load(std::memory_order_acquire) > 0; }, end)) {
        lock.lock();
        if (!calls.empty()) break;
        lock.unlock();
      }
      if (!lock.owns_lock()) lock.lock();
    }
  }
};

alignas(Pool) char storage[sizeof(Pool)];

Pool& pool() {
  static Pool* const made = [] {
    Pool* const fresh = new (storage) Pool;
    // A forked child has the memory of the threads but not the threads; it begins anew.
    pthread_atfork(nullptr, nullptr, [] { new (storage) Pool; });
    return fresh;
  }();
  return *made;
}

}  // namespace

int processors() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
  const unsigned known = std::thread::hardware_concurrency();
  return known ? int(known) : 1;
}

void parallel(const anynorm_executor* executor, int threads, int64_t tasks, void (*task)(void*, int64_t),
              void* context) {
  const int participants = int(threads < tasks ? threads : tasks);
  Job* job = participants > 1 ? new (std::nothrow) Job(participants, tasks, task, context) : nullptr;
  if (job != nullptr && !job->stretches) delete job, job = nullptr;
  if (job == nullptr) {
    for (int64_t i = 0; i < tasks; ++i) task(context, i);
    return;
  }
  for (int i = 1; i < participants; ++i) {
    if (executor != nullptr)
      executor->schedule(executor->self, Job::help, job);
    else if (!pool().schedule(Job::help, job, participants - 1))
      job->release();
  }
  job->work(0);
  job->wait();
  job->release();
}

}  // namespace anynorm
