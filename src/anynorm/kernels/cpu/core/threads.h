// Threads that share tasks. Nobody waits for a thread that has not begun: on a busy machine the caller does all the
// work itself. Before they sleep threads look around for a moment, giving way to whoever wants the processor.
#ifndef ANYNORM_THREADS_H
#define ANYNORM_THREADS_H

#include <stdint.h>

#include "../anynorm.h"

namespace anynorm {

// The number of processors that this process may use.
int processors();

// Call task(context, i) for each i below `tasks`, on the calling thread and at most `threads` - 1 others.
void parallel(const anynorm_executor* executor, int threads, int64_t tasks, void (*task)(void*, int64_t),
              void* context);

}  // namespace anynorm

#endif
