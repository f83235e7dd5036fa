#include "memory.h"

#include <stdio.h>

#include <atomic>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace anynorm {
namespace {

// Bytes of the last cache that may be ours: -1 until somebody asks, 0 where nobody tells.
std::atomic<int64_t> last_cache{-1};

// More of a last cache than most processors have for each of those that share it.
constexpr int64_t kShare = int64_t(24) << 20;

// Processors that share the last cache, from a list as "0-3,8"; 0 where nobody tells.
int64_t sharing() {
  FILE* file = fopen("/sys/devices/system/cpu/cpu0/cache/index3/shared_cpu_list", "r");
  if (file == nullptr) return 0;
  int64_t all = 0;
  long first, last;
  for (int read; (read = fscanf(file, "%ld-%ld", &first, &last)) > 0; fgetc(file))
    all += read == 2 ? last - first + 1 : 1;
  fclose(file);
  return all;
}

int64_t last_cache_bytes() {
  int64_t bytes = last_cache.load(std::memory_order_relaxed);
  if (bytes >= 0) return bytes;
#if defined(__linux__)
  // Not sysconf, which adds up the caches of all of a server's processors.
  long kib = 0;
  if (FILE* file = fopen("/sys/devices/system/cpu/cpu0/cache/index3/size", "r")) {
    if (fscanf(file, "%ldK", &kib) != 1) kib = 0;
    fclose(file);
  }
  bytes = int64_t(kib) * 1024;
  // A virtual machine of few processors is told of a server's whole cache, which others fill.
  const int64_t share = sharing() * kShare;
  if (share > 0 && bytes > share) bytes = share;
#else
  bytes = 0;
#endif
  last_cache.store(bytes, std::memory_order_relaxed);
  return bytes;
}

}  // namespace

bool goes_past(const void* from, const void* to, int64_t bytes) {
  const int64_t cache = last_cache_bytes();
  return from != to && cache > 0 && bytes > cache / 3;
}

void use_cache(int64_t bytes) { last_cache.store(bytes, std::memory_order_relaxed); }

void use_large_pages(void* fresh, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t(2) << 20;
  // The C library maps results of 32 MiB and more anew each time, and gives smaller ones back to the system, where it
  // does, at the end of its heap. Below four pages little of the memory would be in whole ones.
  if (fresh == nullptr || bytes < int64_t(4 * kPage)) return;
  const uintptr_t from = (uintptr_t(fresh) + kPage - 1) / kPage * kPage;
  const uintptr_t to = (uintptr_t(fresh) + uintptr_t(bytes)) / kPage * kPage;
  if (to > from) madvise(reinterpret_cast<void*>(from), to - from, MADV_HUGEPAGE);
#else
  (void)fresh, (void)bytes;
#endif
}

}  // namespace anynorm
