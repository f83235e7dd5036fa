#include "geometry.h"

namespace anynorm {
namespace {

struct Run {
  int64_t extent, x, affine, group;  // extent, and what a step adds
  bool reduced, has_affine;
};

void add(Walk* walk, const Run& run) {
  walk->extent[walk->rank] = run.extent;
  walk->x[walk->rank] = run.x;
  walk->affine[walk->rank] = run.affine;
  walk->group[walk->rank] = run.group;
  ++walk->rank;
  walk->size *= run.extent;
}

// Contiguous elements below which a stretch of rows is not worth its overhead where columns would serve as well: with
// one scale for all of them, where a group has many such pieces far from each other, and with a scale each, which columns
// keep in place from row to row.
constexpr int64_t kShort = 32, kShortPiece = 64, kShortAffine = 512;
// So many pieces; or where there are enough neighbours to be taken together, so many that a cache holds few of them.
constexpr int64_t kManyPieces = 16, kManyPiecesTogether = 128, kNeighbours = 32;

}  // namespace

bool analyse(const anynorm_problem& problem, Geometry* g) {
  const int rank = problem.rank;
  if (rank < 1 || rank > ANYNORM_MAX_RUNS) return false;
  Run runs[ANYNORM_MAX_RUNS];
  int64_t elements = 1;
  for (int i = rank - 1; i >= 0; --i) {
    Run& run = runs[i];
    run.extent = problem.extents[i];
    run.reduced = problem.reduced >> i & 1;
    run.has_affine = problem.affine >> i & 1;
    run.x = elements;
    run.affine = run.has_affine ? g->affine_size : 0;
    run.group = run.reduced ? 0 : g->groups;
    elements *= run.extent;
    if (run.has_affine) g->affine_size *= run.extent;
    (run.reduced ? g->count : g->groups) *= run.extent;
  }

  // The last run over which neither statistic nor scale varies, with one behind it over which they do.
  int plain = rank - 1;
  bool varies_behind = false;
  for (; plain >= 0; --plain) {
    const bool varies = !runs[plain].reduced || runs[plain].has_affine;
    if (!varies && varies_behind) break;
    varies_behind = varies_behind || varies;
  }
  bool columns = plain >= 0;
  for (int i = 0; i < plain; ++i) columns = columns && !(runs[i].reduced && runs[i].has_affine);

  // What lies contiguously at the end and is reduced: [R...] [r...].
  int tail = rank;
  while (tail > 0 && runs[tail - 1].reduced && !runs[tail - 1].has_affine) --tail;
  const int plain_tail = tail;
  while (tail > 0 && runs[tail - 1].reduced && runs[tail - 1].has_affine) --tail;
  int64_t contiguous = 1;
  for (int i = tail; i < rank; ++i) contiguous *= runs[i].extent;

  int64_t pieces = 1;
  for (int i = 0; i < tail; ++i)
    if (runs[i].reduced) pieces *= runs[i].extent;
  const bool together = tail > 0 && tail == plain_tail && runs[tail - 1].extent >= kNeighbours;
  const int64_t many = together ? kManyPiecesTogether : kManyPieces;
  const int64_t enough = plain_tail == rank ? kShortAffine : pieces < many ? kShort : kShortPiece;
  if (tail < rank && !(columns && contiguous < enough)) {
    g->family = kRows;
    for (int i = tail; i < rank; ++i) (i < plain_tail ? g->c : g->s) *= runs[i].extent;
    for (int i = 0; i < tail; ++i) {
      add(runs[i].reduced ? &g->pieces : &g->outer, runs[i]);
      g->pieces_affine = g->pieces_affine || (runs[i].reduced && runs[i].has_affine);
    }
    return true;
  }
  if (columns) {
    g->family = kColumns;
    g->rows = runs[plain].extent;
    for (int i = 0; i < plain; ++i) add(runs[i].reduced ? &g->pieces : &g->outer, runs[i]);
    int reduced = 0;
    for (int i = plain + 1; i < rank; ++i) {
      add(&g->columns, runs[i]);
      reduced += runs[i].reduced;
    }
    // Whole groups stay together: any column may begin a tile, or any run of columns that ends in a reduced one.
    if (reduced > 0) g->align = reduced == 1 && runs[rank - 1].reduced ? runs[rank - 1].extent : g->columns.size;
    return true;
  }
  // One reduced run with a scale to each of its elements, and behind it nothing but kept runs without one.
  int row = 0;
  while (row < rank && !runs[row].reduced) ++row;
  if (row == rank || row == rank - 1) return false;
  for (int i = row + 1; i < rank; ++i)
    if (runs[i].reduced || runs[i].has_affine) return false;
  for (int i = 0; i < row; ++i) {
    if (runs[i].has_affine) return false;
    add(&g->outer, runs[i]);
  }
  g->family = kAcross;
  g->rows = runs[row].extent;
  for (int i = row + 1; i < rank; ++i) add(&g->columns, runs[i]);
  return true;
}

}  // namespace anynorm
