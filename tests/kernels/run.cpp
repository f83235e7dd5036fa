#include "run.h"

#include <math.h>

#include "check.h"

Outputs::Outputs(const Case& c, int64_t shift)
    : y(c.problem.dtype, c.elements, shift),
      mean(work_of(c.problem.dtype), c.groups, shift),
      variance(work_of(c.problem.dtype), c.groups, shift),
      saved(ANYNORM_FLOAT64, 2 * c.groups, shift),
      dx(c.problem.dtype, c.elements, shift),
      dscale(c.problem.scale_dtype, c.affine, shift),
      doffset(c.problem.offset_dtype, c.affine, shift) {}

bool Outputs::same_bits(const Outputs& o) const {
  return y.same_bits(o.y) && mean.same_bits(o.mean) && variance.same_bits(o.variance) && saved.same_bits(o.saved) &&
         dx.same_bits(o.dx) && dscale.same_bits(o.dscale) && doffset.same_bits(o.doffset);
}

void call_forward(const Case& c, const Array& x, const Array& scale, const Array& offset, const Array& y,
                  const Array& mean, const Array& variance, const Array& saved) {
  const int status = anynorm_forward(&c.problem, x.data(), scale.data(), offset.data(), y.data(), mean.data(),
                                     variance.data(), saved.doubles());
  CHECK(status == ANYNORM_OK, "forward gives %d: %s", status, c.text().c_str());
}

void call_backward(const Case& c, const Array& x, const Array& dy, const Array& scale, const Array& saved,
                   const Array& dx, const Array& dscale, const Array& doffset) {
  const int status = anynorm_backward(&c.problem, x.data(), dy.data(), scale.data(), saved.doubles(), dx.data(),
                                      dscale.data(), doffset.data());
  CHECK(status == ANYNORM_OK, "backward gives %d: %s", status, c.text().c_str());
}

Outputs run_all(const Case& c) {
  Outputs out(c);
  call_forward(c, c.x, c.scale, c.offset, out.y, out.mean, out.variance, out.saved);
  call_backward(c, c.x, c.dy, c.scale, out.saved, out.dx, out.dscale, out.doffset);
  return out;
}

void near(const Case& c, const char* what, const Array& actual, const Numbers& wanted, const Numbers& size) {
  // Doubles are added to doubles one by one; floats only as far as a block goes.
  const double many = c.problem.dtype == ANYNORM_FLOAT64 ? 256 : 64;
  const double rounding = 1.01 * unit_of(actual.dtype()), work = many * unit_of(work_of(c.problem.dtype));
  CHECK(actual.size() == int64_t(wanted.size()), "%s: %lld numbers", what, (long long)actual.size());
  for (int64_t i = 0; i < actual.size(); ++i) {
    const double one = wanted[size_t(i)], error = fabs(actual[i] - one);
    // The last term is the smallest float16, below which it rounds absolutely.
    const double bound = fabs(one) * rounding + work * size[size_t(i)] + (rounding > 1e-4 ? 0x1p-24 : 0);
    if (error <= bound) continue;
    if (actual.dtype() == ANYNORM_FLOAT16 && fabs(one) + bound >= 65520 && isinf(actual[i])) continue;
    fail(__FILE__, __LINE__, "%s[%lld] is %.9g and not %.9g (+- %.2g): %s", what, (long long)i, actual[i], one, bound,
         c.text().c_str());
    return;
  }
}

namespace {

// Of numbers in pairs: every first, or every second.
Array half_of(const Array& pairs, int which) {
  Array out(pairs.dtype(), pairs.size() / 2);
  for (int64_t i = 0; i < out.size(); ++i) out.set(i, pairs[2 * i + which]);
  return out;
}

Array pairs_of(const Numbers& first, const Numbers& second) {
  Array out(ANYNORM_FLOAT64, 2 * int64_t(first.size()));
  for (size_t i = 0; i < first.size(); ++i) out.set(int64_t(2 * i), first[i]), out.set(int64_t(2 * i + 1), second[i]);
  return out;
}

Array array_of(int dtype, const Numbers& numbers) {
  Array out(dtype, int64_t(numbers.size()));
  for (size_t i = 0; i < numbers.size(); ++i) out.set(int64_t(i), numbers[i]);
  return out;
}

Numbers numbers_of(const Array& array) {
  Numbers out;
  for (int64_t i = 0; i < array.size(); ++i) out.push_back(array[i]);
  return out;
}

// One case and all that should come out of it, which is the same on every instruction set.
struct Checked {
  const Case& c;
  const Array nothing, &scale, &offset;
  const Wanted w;
  const Array saved;
  // Statistics that are not those of x, and sums that are not its own: a running mean's, or of two machines.
  Array other_mean, other_variance, other_sums;
  Numbers square, rstd_size, other_y, other_y_size, other_dx, other_dx_size;
  const double other_count;

  Checked(const Case& given, bool with_scale, bool with_offset)
      : c(given),
        scale(with_scale ? c.scale : nothing),
        offset(with_offset ? c.offset : nothing),
        w(expect(c, with_scale, with_offset)),
        saved(pairs_of(w.mean, w.rstd)),
        other_count(2 * double(c.count)) {
    Numbers mean = w.mean, variance = w.variance, g = w.sum_g, gh = w.sum_gh;
    for (size_t i = 0; i < mean.size(); ++i) {
      square.push_back(w.spread[i] * w.spread[i]);
      // Of 1 / sqrt(v + eps) the relative error is half of v's.
      rstd_size.push_back(w.rstd[i] * (1 + square[i] / (w.variance[i] + c.problem.eps)));
      mean[i] += 0.5, variance[i] += 1, g[i] += 0.5 * double(c.count), gh[i] -= 0.25 * double(c.count);
    }
    other_mean = array_of(work_of(c.problem.dtype), mean);
    other_variance = array_of(work_of(c.problem.dtype), variance);
    other_y = expect_apply(c, numbers_of(other_mean), numbers_of(other_variance), with_scale, with_offset);
    other_sums = pairs_of(g, gh);
    other_dx = expect_dx(c, w, with_scale, g, gh, other_count);
    other_y_size = w.y_size, other_dx_size = w.dx_size;
    for (double& one : other_y_size) one += 4;
    for (double& one : other_dx_size) one *= 3;
  }

  void ok(const char* function, int status) const {
    CHECK(status == ANYNORM_OK, "%s gives %d: %s", function, status, c.text().c_str());
  }

  void forward() const {
    Outputs out(c);
    call_forward(c, c.x, scale, offset, out.y, out.mean, out.variance, out.saved);
    near(c, "y", out.y, w.y, w.y_size);
    near(c, "mean", out.mean, w.mean, w.spread);
    near(c, "variance", out.variance, w.variance, square);
    near(c, "saved mean", half_of(out.saved, 0), w.mean, w.spread);
    near(c, "saved rstd", half_of(out.saved, 1), w.rstd, rstd_size);

    Outputs again(c);
    ok("moments", anynorm_moments(&c.problem, c.x.data(), again.mean.data(), again.variance.data(),
                                  again.saved.doubles()));
    CHECK(again.mean.same_bits(out.mean) && again.variance.same_bits(out.variance) && again.saved.same_bits(out.saved),
          "moments gives other statistics than forward: %s", c.text().c_str());
    ok("apply", anynorm_apply(&c.problem, c.x.data(), other_mean.data(), other_variance.data(), scale.data(),
                              offset.data(), again.y.data(), again.saved.doubles()));
    near(c, "applied y", again.y, other_y, other_y_size);
  }

  void backward() const {
    Outputs whole(c), out(c);
    call_backward(c, c.x, c.dy, scale, saved, whole.dx, whole.dscale, whole.doffset);
    near(c, "dx", whole.dx, w.dx, w.dx_size);
    near(c, "dscale", whole.dscale, w.dscale, w.affine_size);
    near(c, "doffset", whole.doffset, w.doffset, w.affine_size);

    const Array sums(ANYNORM_FLOAT64, 2 * c.groups);
    ok("backward_sums", anynorm_backward_sums(&c.problem, c.x.data(), c.dy.data(), scale.data(), saved.doubles(),
                                              sums.doubles(), out.dscale.data(), out.doffset.data()));
    near(c, "sum(g)", half_of(sums, 0), w.sum_g, w.sum_size);
    near(c, "sum(g * h)", half_of(sums, 1), w.sum_gh, w.sum_size);
    CHECK(out.dscale.same_bits(whole.dscale) && out.doffset.same_bits(whole.doffset),
          "backward_sums gives another dscale or doffset than backward: %s", c.text().c_str());
    ok("backward_apply", anynorm_backward_apply(&c.problem, c.x.data(), c.dy.data(), scale.data(), saved.doubles(),
                                                sums.doubles(), double(c.count), out.dx.data()));
    near(c, "dx of the halves", out.dx, w.dx, w.dx_size);
    ok("backward_apply", anynorm_backward_apply(&c.problem, c.x.data(), c.dy.data(), scale.data(), saved.doubles(),
                                                other_sums.doubles(), other_count, out.dx.data()));
    near(c, "dx of others' sums", out.dx, other_dx, other_dx_size);
  }
};

}  // namespace

void check(const Case& c, bool with_scale, bool with_offset) {
  const Checked checked(c, with_scale, with_offset);
  for (const char* isa : isas())
    for (const int64_t cache : {0, 1}) {  // results into the caches, and past them
      anynorm_use_isa(isa);
      anynorm_use_cache(cache);
      checked.forward();
      checked.backward();
    }
  anynorm_use_cache(-1);
}
