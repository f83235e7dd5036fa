#include "oracle.h"

#include <math.h>

#include "check.h"

typedef long double Wide;

Case::Case(const std::string& runs, const std::vector<int64_t>& extents, int dtype, uint64_t seed) : order(runs) {
  const int rank = int(runs.size());
  problem.rank = rank;
  problem.dtype = dtype;
  problem.removes = ANYNORM_REMOVES_MEAN | ANYNORM_REMOVES_SCALE;
  problem.eps = 1e-3;
  problem.threads = 1;
  Random random(seed);
  problem.scale_dtype = int(random.below(4));
  problem.offset_dtype = int(random.below(4));
  for (int i = 0; i < rank; ++i) {
    problem.extents[i] = extents[size_t(i)];
    const bool reduced = runs[size_t(i)] == 'r' || runs[size_t(i)] == 'R';
    const bool has_affine = runs[size_t(i)] == 'K' || runs[size_t(i)] == 'R';
    if (reduced) problem.reduced |= 1u << i;
    if (has_affine) problem.affine |= 1u << i;
    elements *= problem.extents[i];
    (reduced ? count : groups) *= problem.extents[i];
    if (has_affine) affine *= problem.extents[i];
  }
  group_of.resize(size_t(elements));
  affine_of.resize(size_t(elements));
  std::vector<int64_t> index(size_t(rank), 0);
  for (int64_t e = 0; e < elements; ++e) {
    int64_t group = 0, place = 0;
    for (int i = 0; i < rank; ++i) {
      if (!(problem.reduced >> i & 1)) group = group * problem.extents[i] + index[size_t(i)];
      if (problem.affine >> i & 1) place = place * problem.extents[i] + index[size_t(i)];
    }
    group_of[size_t(e)] = group;
    affine_of[size_t(e)] = place;
    for (int i = rank - 1; i >= 0 && ++index[size_t(i)] == problem.extents[i]; --i) index[size_t(i)] = 0;
  }
  x = Array(dtype, elements);
  dy = Array(dtype, elements);
  scale = Array(problem.scale_dtype, affine);
  offset = Array(problem.offset_dtype, affine);
  for (int64_t e = 0; e < elements; ++e) {
    // Every group around a mean of its own, so that an element in the wrong group is far off.
    x.set(e, 2 * random.number() + double(group_of[size_t(e)] % 7 - 3));
    dy.set(e, random.number() + 0.25);
  }
  for (int64_t i = 0; i < affine; ++i) {
    scale.set(i, 0.5 + double(i % 11) / 8);
    offset.set(i, random.number());
  }
}

std::string Case::text() const {
  std::string out = order + " of";
  for (int i = 0; i < problem.rank; ++i) out += " " + std::to_string(problem.extents[i]);
  return out + " " + name_of(problem.dtype) + ", scale " + name_of(problem.scale_dtype) + ", offset " +
         name_of(problem.offset_dtype) + ", removes " + std::to_string(problem.removes) + ", threads " +
         std::to_string(problem.threads) + ", " + anynorm_isa();
}

namespace {

Wide scale_at(const Case& c, bool with_scale, int64_t e) {
  return with_scale ? Wide(c.scale[c.affine_of[size_t(e)]]) : 1;
}
Wide offset_at(const Case& c, bool with_offset, int64_t e) {
  return with_offset ? Wide(c.offset[c.affine_of[size_t(e)]]) : 0;
}

Numbers to_numbers(const std::vector<Wide>& wide) { return Numbers(wide.begin(), wide.end()); }

}  // namespace

Wanted expect(const Case& c, bool with_scale, bool with_offset) {
  const size_t groups = size_t(c.groups), n = size_t(c.elements), affine = size_t(c.affine);
  const bool removes_mean = c.problem.removes & ANYNORM_REMOVES_MEAN;
  const bool removes_scale = c.problem.removes & ANYNORM_REMOVES_SCALE;
  std::vector<Wide> mean(groups), variance(groups), square(groups), rstd(groups), sum_g(groups), sum_gh(groups),
      sum_size(groups), dscale(affine), doffset(affine), affine_size(affine), x(n), dy(n), h(n), h_size(n);
  for (size_t e = 0; e < n; ++e) {
    const size_t group = size_t(c.group_of[e]);
    x[e] = Wide(c.x[int64_t(e)]);
    dy[e] = Wide(c.dy[int64_t(e)]);
    square[group] += x[e] * x[e];
    if (removes_mean) mean[group] += x[e] / Wide(c.count);
  }
  for (size_t e = 0; e < n; ++e) {
    const size_t group = size_t(c.group_of[e]);
    variance[group] += (x[e] - mean[group]) * (x[e] - mean[group]) / Wide(c.count);
  }
  Wanted w;
  for (size_t group = 0; group < groups; ++group) {
    rstd[group] = removes_scale ? 1 / sqrtl(variance[group] + Wide(c.problem.eps)) : 1;
    w.spread.push_back(c.count == 0 ? 0 : double(sqrtl(square[group] / Wide(c.count))));
  }
  for (size_t e = 0; e < n; ++e) {
    const size_t group = size_t(c.group_of[e]), place = size_t(c.affine_of[e]);
    const Wide by = scale_at(c, with_scale, int64_t(e)), more = offset_at(c, with_offset, int64_t(e));
    const Wide g = dy[e] * by;
    h[e] = (x[e] - mean[group]) * rstd[group];
    // A mean in double is rounded where x is a double too.
    const Wide rough = c.problem.dtype == ANYNORM_FLOAT64 ? 1 + fabsl(mean[group]) * rstd[group] : 1;
    h_size[e] = fabsl(h[e]) + rough;
    w.y.push_back(double(h[e] * by + more));
    w.y_size.push_back(double(h_size[e] * fabsl(by) + fabsl(more)));
    sum_g[group] += g;
    sum_gh[group] += g * h[e];
    sum_size[group] += fabsl(g) * h_size[e];
    dscale[place] += dy[e] * h[e];
    doffset[place] += dy[e];
    affine_size[place] += fabsl(dy[e]) * h_size[e];
  }
  w.mean = to_numbers(mean), w.variance = to_numbers(variance), w.rstd = to_numbers(rstd);
  w.sum_g = to_numbers(sum_g), w.sum_gh = to_numbers(sum_gh), w.sum_size = to_numbers(sum_size);
  w.dscale = to_numbers(dscale), w.doffset = to_numbers(doffset), w.affine_size = to_numbers(affine_size);
  w.dx = expect_dx(c, w, with_scale, w.sum_g, w.sum_gh, double(c.count));
  for (size_t e = 0; e < n; ++e) {
    const size_t group = size_t(c.group_of[e]);
    const Wide g = fabsl(dy[e] * scale_at(c, with_scale, int64_t(e)));
    w.dx_size.push_back(double(rstd[group] * (g + sum_size[group] / Wide(c.count) * h_size[e])));
  }
  return w;
}

Numbers expect_dx(const Case& c, const Wanted& w, bool with_scale, const Numbers& sum_g, const Numbers& sum_gh,
                  double count) {
  Numbers dx;
  for (int64_t e = 0; e < c.elements; ++e) {
    const size_t group = size_t(c.group_of[size_t(e)]);
    const Wide h = (Wide(c.x[e]) - Wide(w.mean[group])) * Wide(w.rstd[group]);
    Wide out = Wide(c.dy[e]) * scale_at(c, with_scale, e);
    if (c.problem.removes & ANYNORM_REMOVES_MEAN) out -= Wide(sum_g[group]) / Wide(count);
    if (c.problem.removes & ANYNORM_REMOVES_SCALE) out -= h * Wide(sum_gh[group]) / Wide(count);
    dx.push_back(double(Wide(w.rstd[group]) * out));
  }
  return dx;
}

Numbers expect_apply(const Case& c, const Numbers& mean, const Numbers& variance, bool with_scale, bool with_offset) {
  Numbers y;
  for (int64_t e = 0; e < c.elements; ++e) {
    const size_t group = size_t(c.group_of[size_t(e)]);
    const Wide centred = Wide(c.x[e]) - (mean.empty() ? 0 : Wide(mean[group]));
    const Wide h = centred / sqrtl(Wide(variance[group]) + Wide(c.problem.eps));
    y.push_back(double(h * scale_at(c, with_scale, e) + offset_at(c, with_offset, e)));
  }
  return y;
}
