// Large results: which pages they get, and whether they go past the caches.
#ifndef ANYNORM_MEMORY_H
#define ANYNORM_MEMORY_H

#include <stdint.h>

namespace anynorm {

// Whether a result of this size goes past the caches: with what it is made of, and what will be made of it, it would not
// stay there. Written in place it is there already.
bool goes_past(const void* from, const void* to, int64_t bytes);

// As anynorm_use_cache.
void use_cache(int64_t bytes);

// Fresh memory of this size is all page faults; in pages of 2 MiB there are 500 times fewer.
void use_large_pages(void* fresh, int64_t bytes);

}  // namespace anynorm

#endif
