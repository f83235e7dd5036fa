// From runs to loops: which of three families of loops serves, and with which extents.
//
//   rows      the innermost run is reduced: a statistic is over `pieces` stretches of c * s contiguous elements
//   columns   within, kept runs follow a reduced one: each slab is a matrix whose rows are reduced, column by column,
//             and whose columns may be combined further into groups
//   across    the same matrix where each row has a scale of its own (layer normalization over channels that come first)
#ifndef ANYNORM_GEOMETRY_H
#define ANYNORM_GEOMETRY_H

#include <stdint.h>

#include "../anynorm.h"

namespace anynorm {

// Indices over some of the runs, outermost first, and what a step along each adds.
struct Walk {
  int rank = 0;
  int64_t size = 1;
  int64_t extent[ANYNORM_MAX_RUNS];
  int64_t x[ANYNORM_MAX_RUNS];       // elements of the array
  int64_t affine[ANYNORM_MAX_RUNS];  // elements of scale and offset
  int64_t group[ANYNORM_MAX_RUNS];   // statistics

  struct Place {
    int64_t x, affine, group;
  };
  Place at(int64_t index) const {
    Place place = {0, 0, 0};
    for (int i = rank - 1; i >= 0; --i) {
      const int64_t digit = index % extent[i];
      index /= extent[i];
      place.x += digit * x[i];
      place.affine += digit * affine[i];
      place.group += digit * group[i];
    }
    return place;
  }
};

enum Family { kRows, kColumns, kAcross, kNone };

struct Geometry {
  Family family = kNone;
  int64_t groups = 1;       // statistics
  int64_t count = 1;        // elements of each
  int64_t affine_size = 1;  // elements of scale and offset
  Walk outer;               // kept runs before the loops' innermost part: a group (rows) or a slab
  Walk pieces;              // reduced runs before it
  bool pieces_affine = false;
  int64_t c = 1, s = 1;     // rows: contiguous elements, c with a scale each, s to each of them
  int64_t rows = 1;         // columns and across: rows of a slab
  Walk columns;             // and its columns
  int64_t align = 1;        // a slab may be cut at columns that are multiples of this
};

// False where no family serves these runs.
bool analyse(const anynorm_problem& problem, Geometry* geometry);

}  // namespace anynorm

#endif
