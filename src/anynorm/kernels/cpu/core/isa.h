// The loops of the instruction set in use, among those that both this build and this machine have.
#ifndef ANYNORM_ISA_H
#define ANYNORM_ISA_H

#include "loops.h"

namespace anynorm {

bool has_loops();

// There must be some.
const Loops& loops();

// Take those of that name from now on, if they are there.
bool use_loops(const char* name);

}  // namespace anynorm

#endif
