#include "threads.h"

#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <new>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif
#include <pthread.h>

namespace anynorm {
namespace {

// Lives until the last thread that was asked to help has looked at it, which may be after the work is done.
struct Job {
  std::atomic<int64_t> next{0}, done{0};
  std::atomic<int> holders{1};
  int64_t tasks;
  void (*task)(void*, int64_t);
  void* context;
  std::mutex mutex;
  std::condition_variable finished;

  void work() {
    for (;;) {
      const int64_t i = next.fetch_add(1, std::memory_order_relaxed);
      if (i >= tasks) return;
      task(context, i);
      if (done.fetch_add(1, std::memory_order_acq_rel) + 1 == tasks) {
        std::lock_guard<std::mutex> lock(mutex);
        finished.notify_all();
      }
    }
  }

  void wait() {
    std::unique_lock<std::mutex> lock(mutex);
    finished.wait(lock, [this] { return done.load(std::memory_order_acquire) == tasks; });
  }

  void release() {
    if (holders.fetch_sub(1, std::memory_order_acq_rel) == 1) delete this;
  }

  static void help(void* self) {
    static_cast<Job*>(self)->work();
    static_cast<Job*>(self)->release();
  }
};

// Threads of our own, which sleep until something is scheduled. Never destroyed: they may outlive static destructors.
struct Pool {
  struct Call {
    void (*function)(void*);
    void* argument;
  };
  std::mutex mutex;
  std::condition_variable some;
  std::deque<Call> calls;
  int threads = 0;

  // Whether a thread will take the call.
  bool schedule(void (*function)(void*), void* argument, int wanted) {
    std::lock_guard<std::mutex> lock(mutex);
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
    some.notify_one();
    return true;
  }

  void serve() {
    std::unique_lock<std::mutex> lock(mutex);
    for (;;) {
      some.wait(lock, [this] { return !calls.empty(); });
      const Call call = calls.front();
      calls.pop_front();
      lock.unlock();
      call.function(call.argument);
      lock.lock();
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
  const int64_t helpers = (threads < tasks ? threads : tasks) - 1;
  Job* const job = helpers > 0 ? new (std::nothrow) Job : nullptr;
  if (job == nullptr) {
    for (int64_t i = 0; i < tasks; ++i) task(context, i);
    return;
  }
  job->tasks = tasks;
  job->task = task;
  job->context = context;
  job->holders.store(int(helpers) + 1, std::memory_order_relaxed);
  for (int64_t i = 0; i < helpers; ++i) {
    if (executor != nullptr)
      executor->schedule(executor->self, Job::help, job);
    else if (!pool().schedule(Job::help, job, int(helpers)))
      job->release();
  }
  job->work();
  job->wait();
  job->release();
}

}  // namespace anynorm
