// What the header promises beside the numbers: which pointers may be NULL, where arrays may lie, what is refused.
#include <math.h>
#include <string.h>

#include <functional>

#include "check.h"
#include "run.h"

namespace {

// One order for each family of loops and each special case in it, with lengths that fill no vector.
struct Shape {
  const char* order;
  std::vector<int64_t> extents;
};
const Shape kShapes[] = {{"kr", {5, 67}},       {"kR", {9, 67}},        {"kRr", {3, 4, 41}}, {"rkr", {5, 3, 37}},
                         {"krK", {2, 37, 5}},   {"krKR", {2, 19, 3, 5}}, {"kRk", {2, 7, 19}}, {"Rk", {9, 21}},
                         {"RkR", {3, 2, 600}}, {"r", {301}},            {"rK", {40, 35}},    {"kr", {41, 3}}};

void each_case(const std::function<void(const Case&)>& work) {
  uint64_t seed = 0;
  for (const Shape& shape : kShapes)
    for (int dtype = 0; dtype < 4; ++dtype) {
      const Case c(shape.order, shape.extents, dtype, ++seed);
      for (const char* isa : isas()) {
        anynorm_use_isa(isa);
        work(c);
      }
    }
}

// `array` where bit `bit` of `mask` is set, else NULL.
const Array& given(unsigned mask, int bit, const Array& array) {
  static const Array nothing;
  return mask >> bit & 1 ? array : nothing;
}

}  // namespace

TEST(forward_without_what_is_optional) {
  each_case([](const Case& c) {
    for (unsigned inputs = 0; inputs < 4; ++inputs) {
      const Array &scale = given(inputs, 0, c.scale), &offset = given(inputs, 1, c.offset);
      Outputs all(c);
      call_forward(c, c.x, scale, offset, all.y, all.mean, all.variance, all.saved);
      const Wanted w = expect(c, inputs & 1, inputs & 2);
      near(c, "y", all.y, w.y, w.y_size);
      for (unsigned outputs = 0; outputs < 8; ++outputs) {
        Outputs some(c);
        call_forward(c, c.x, scale, offset, some.y, given(outputs, 0, some.mean), given(outputs, 1, some.variance),
                     given(outputs, 2, some.saved));
        CHECK(some.y.same_bits(all.y), "y depends on what else is asked for (%u, %u): %s", inputs, outputs,
              c.text().c_str());
        CHECK(!(outputs & 1) || some.mean.same_bits(all.mean), "mean (%u): %s", outputs, c.text().c_str());
        CHECK(!(outputs & 2) || some.variance.same_bits(all.variance), "variance (%u): %s", outputs, c.text().c_str());
        CHECK(!(outputs & 4) || some.saved.same_bits(all.saved), "saved (%u): %s", outputs, c.text().c_str());
      }
    }
  });
}

TEST(moments_without_what_is_optional) {
  each_case([](const Case& c) {
    Outputs all(c);
    call_forward(c, c.x, c.scale, c.offset, all.y, all.mean, all.variance, all.saved);
    for (unsigned outputs = 0; outputs < 8; ++outputs) {
      Outputs some(c);
      const int status = anynorm_moments(&c.problem, c.x.data(), given(outputs, 0, some.mean).data(),
                                         given(outputs, 1, some.variance).data(),
                                         given(outputs, 2, some.saved).doubles());
      CHECK(status == ANYNORM_OK, "moments gives %d", status);
      CHECK(!(outputs & 1) || some.mean.same_bits(all.mean), "mean (%u): %s", outputs, c.text().c_str());
      CHECK(!(outputs & 2) || some.variance.same_bits(all.variance), "variance (%u): %s", outputs, c.text().c_str());
      CHECK(!(outputs & 4) || some.saved.same_bits(all.saved), "saved (%u): %s", outputs, c.text().c_str());
    }
  });
}

TEST(apply_without_what_is_optional) {
  each_case([](const Case& c) {
    Outputs out(c);
    anynorm_moments(&c.problem, c.x.data(), out.mean.data(), out.variance.data(), nullptr);
    Numbers mean, variance;
    for (int64_t i = 0; i < c.groups; ++i) mean.push_back(out.mean[i]), variance.push_back(out.variance[i]);
    for (unsigned inputs = 0; inputs < 8; ++inputs) {
      const int status = anynorm_apply(&c.problem, c.x.data(), given(inputs, 2, out.mean).data(), out.variance.data(),
                                       given(inputs, 0, c.scale).data(), given(inputs, 1, c.offset).data(),
                                       out.y.data(), nullptr);
      CHECK(status == ANYNORM_OK, "apply gives %d", status);
      Numbers size = expect(c, inputs & 1, inputs & 2).y_size;
      for (double& one : size) one += 20;
      near(c, "y", out.y, expect_apply(c, inputs & 4 ? mean : Numbers(), variance, inputs & 1, inputs & 2), size);
    }
  });
}

TEST(backward_without_what_is_optional) {
  each_case([](const Case& c) {
    Outputs all(c);
    call_forward(c, c.x, c.scale, c.offset, all.y, all.mean, all.variance, all.saved);
    for (unsigned inputs = 0; inputs < 2; ++inputs) {
      const Array& scale = given(inputs, 0, c.scale);
      const Wanted w = expect(c, inputs, true);
      Numbers size = w.dx_size;  // the kernels' own statistics, and not the oracle's
      for (double& one : size) one *= 4;
      call_backward(c, c.x, c.dy, scale, all.saved, all.dx, all.dscale, all.doffset);
      for (unsigned outputs = 0; outputs < 4; ++outputs) {
        Outputs some(c);
        const Array sums(ANYNORM_FLOAT64, 2 * c.groups);
        const Array &dscale = given(outputs, 0, some.dscale), &doffset = given(outputs, 1, some.doffset);
        call_backward(c, c.x, c.dy, scale, all.saved, some.dx, dscale, doffset);
        near(c, "dx", some.dx, w.dx, size);
        const auto same = [&] {
          CHECK(!(outputs & 1) || dscale.same_bits(all.dscale), "dscale (%u): %s", outputs, c.text().c_str());
          CHECK(!(outputs & 2) || doffset.same_bits(all.doffset), "doffset (%u): %s", outputs, c.text().c_str());
        };
        same();
        const int status = anynorm_backward_sums(&c.problem, c.x.data(), c.dy.data(), scale.data(), all.saved.doubles(),
                                                 sums.doubles(), dscale.data(), doffset.data());
        CHECK(status == ANYNORM_OK, "backward_sums gives %d", status);
        same();
      }
    }
  });
}

TEST(arrays_may_lie_anywhere_and_be_overwritten) {
  each_case([](const Case& c) {
    const Outputs plain = run_all(c);
    Outputs moved(c, 1);
    const Array x = c.x.copy(1), dy = c.dy.copy(3), scale = c.scale.copy(1), offset = c.offset.copy(3);
    call_forward(c, x, scale, offset, moved.y, moved.mean, moved.variance, moved.saved);
    call_backward(c, x, dy, scale, moved.saved, moved.dx, moved.dscale, moved.doffset);
    CHECK(moved.same_bits(plain), "the arrays' addresses matter: %s", c.text().c_str());
    call_forward(c, x, scale, offset, x, Array(), Array(), Array());
    CHECK(x.same_bits(plain.y), "y over x is another y: %s", c.text().c_str());
    call_backward(c, c.x, dy, scale, plain.saved, dy, moved.dscale, moved.doffset);
    CHECK(dy.same_bits(plain.dx) && moved.same_bits(plain), "dx over dy: %s", c.text().c_str());
  });
}

TEST(in_place_with_several_threads_on_one_group) {
  const Shape shapes[] = {
      {"r", {200003}}, {"kR", {3, 70001}}, {"rK", {5003, 17}}, {"krKR", {2, 1999, 5, 7}}, {"kRk", {2, 67, 999}}};
  for (const Shape& shape : shapes) {
    Case c(shape.order, shape.extents, ANYNORM_FLOAT32, 3);
    c.with_threads(3);
    const Outputs plain = run_all(c);
    const Array x = c.x.copy(), dy = c.dy.copy();
    call_forward(c, x, c.scale, c.offset, x, Array(), Array(), Array());
    call_backward(c, c.x, dy, c.scale, plain.saved, dy, Array(), Array());
    CHECK(x.same_bits(plain.y) && dy.same_bits(plain.dx), "%s", c.text().c_str());
  }
}

TEST(extents_of_nothing) {
  for (const Shape& shape : kShapes)
    for (size_t empty = 0; empty < shape.extents.size(); ++empty) {
      std::vector<int64_t> extents = shape.extents;
      extents[empty] = 0;
      for (int dtype = 0; dtype < 4; ++dtype) {
        const Case c(shape.order, extents, dtype, empty + 1);
        const Outputs out = run_all(c);
        const Array sums(ANYNORM_FLOAT64, 2 * c.groups);
        CHECK(!anynorm_moments(&c.problem, c.x.data(), out.mean.data(), out.variance.data(), nullptr) &&
                  !anynorm_apply(&c.problem, c.x.data(), out.mean.data(), out.variance.data(), nullptr, nullptr,
                                 out.y.data(), out.saved.doubles()) &&
                  !anynorm_backward_sums(&c.problem, c.x.data(), c.dy.data(), nullptr, out.saved.doubles(),
                                         sums.doubles(), nullptr, nullptr) &&
                  !anynorm_backward_apply(&c.problem, c.x.data(), c.dy.data(), nullptr, out.saved.doubles(),
                                          sums.doubles(), 1, out.dx.data()),
              "%s", c.text().c_str());
        for (int64_t i = 0; i < c.affine; ++i)
          CHECK(out.dscale[i] == 0 && out.doffset[i] == 0, "sums over nothing: %s", c.text().c_str());
        for (int64_t i = 0; i < c.groups; ++i)
          CHECK(out.mean[i] == 0 && out.variance[i] == 0 && sums[2 * i] == 0, "of nothing: %s", c.text().c_str());
      }
    }
}

TEST(what_is_refused) {
  const Case good("kr", {2, 3}, ANYNORM_FLOAT32);
  const Outputs out(good);
  const auto status = [&](const std::function<void(anynorm_problem*)>& change) {
    anynorm_problem p = good.problem;
    change(&p);
    return anynorm_forward(&p, good.x.data(), nullptr, nullptr, out.y.data(), nullptr, nullptr, nullptr);
  };
  CHECK(status([](anynorm_problem*) {}) == ANYNORM_OK, "nothing was changed");
  CHECK(status([](anynorm_problem* p) { p->rank = 0; }) == ANYNORM_UNSUPPORTED, "rank 0");
  CHECK(status([](anynorm_problem* p) { p->rank = ANYNORM_MAX_RUNS + 1; }) == ANYNORM_UNSUPPORTED, "rank 9");
  CHECK(status([](anynorm_problem* p) { p->dtype = 4; }) == ANYNORM_UNSUPPORTED, "dtype 4");
  CHECK(status([](anynorm_problem* p) { p->dtype = -1; }) == ANYNORM_UNSUPPORTED, "dtype -1");
  CHECK(status([](anynorm_problem* p) { p->extents[0] = -1; }) == ANYNORM_UNSUPPORTED, "a negative extent");
  CHECK(status([](anynorm_problem* p) { p->extents[0] = p->extents[1] = int64_t(1) << 40; }) == ANYNORM_UNSUPPORTED,
        "more bytes than can be counted");
  // The same where another extent is 0: the array is empty, but its statistics could not be counted either.
  CHECK(status([](anynorm_problem* p) {
          p->rank = 3, p->extents[0] = 0, p->extents[1] = p->extents[2] = int64_t(1) << 40;
        }) == ANYNORM_UNSUPPORTED, "more statistics than can be counted");
  CHECK(anynorm_use_isa("abacus") == ANYNORM_UNSUPPORTED, "an unknown instruction set");
  CHECK(anynorm_abi() == 2, "another interface");
  for (const char* isa : isas())
    CHECK(anynorm_use_isa(isa) == ANYNORM_OK && strcmp(anynorm_isa(), isa) == 0, "%s is not in use", isa);
  // Looks at the order alone: extents may be anything.
  anynorm_problem p = good.problem;
  p.extents[0] = p.extents[1] = INT64_MAX;
  CHECK(anynorm_supported(&p), "kr has loops");
}

TEST(not_a_number_stays_so_whatever_its_digits) {
  each_case([](const Case& c) {
    Outputs out(c);  // all bits of `saved` and of `sums` are set, unlike in the NaN that arithmetic makes
    const Array sums(ANYNORM_FLOAT64, 2 * c.groups), nothing;
    Outputs good = run_all(c);
    call_backward(c, c.x, c.dy, c.scale, out.saved, out.dx, nothing, nothing);
    for (int64_t i = 0; i < c.elements; ++i) CHECK(isnan(out.dx[i]), "dx[%lld]: %s", (long long)i, c.text().c_str());
    anynorm_backward_apply(&c.problem, c.x.data(), c.dy.data(), c.scale.data(), good.saved.doubles(), sums.doubles(),
                           double(c.count), good.dx.data());
    for (int64_t i = 0; i < c.elements; ++i) CHECK(isnan(good.dx[i]), "dx[%lld]: %s", (long long)i, c.text().c_str());
  });
}

// The caller's processor flags hold for the caller only: some frameworks' threads take denormal numbers for 0.
#if defined(__SSE2__)
#include <xmmintrin.h>
TEST(denormal_numbers_count_whatever_the_processor_is_told) {
  each_case([](const Case& c) {
    const int types[] = {ANYNORM_FLOAT32, ANYNORM_FLOAT16, ANYNORM_BFLOAT16};
    for (const int small : types) {
      const std::vector<int64_t> extents(c.problem.extents, c.problem.extents + c.problem.rank);
      Case tiny(c.order, extents, c.problem.dtype);
      tiny.problem.scale_dtype = tiny.problem.offset_dtype = small;
      tiny.scale = Array(small, c.affine), tiny.offset = Array(small, c.affine);
      const double least = small == ANYNORM_FLOAT16 ? 0x1p-24 : small == ANYNORM_BFLOAT16 ? 0x1p-133 : 0x1p-149;
      for (int64_t i = 0; i < c.affine; ++i) tiny.scale.set(i, 3 * least), tiny.offset.set(i, 5 * least);
      const Outputs wanted = run_all(tiny);
      const unsigned before = _mm_getcsr();
      _mm_setcsr(before | 0x8040);
      const Outputs found = run_all(tiny);
      CHECK((_mm_getcsr() & 0x8040) == 0x8040, "the flags were left changed");
      _mm_setcsr(before);
      CHECK(found.same_bits(wanted), "%s", tiny.text().c_str());
    }
  });
}
#endif
