// Arrays of more than 2^31 elements. Their memory is one small piece, mapped again and again, so that the elements
// repeat and so do the results; an index that overflows lands where nothing is mapped.
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"
#include "run.h"

namespace {

constexpr int64_t kElements = int64_t(1) << 19, kRepeats = (int64_t(1) << 12) + 1;  // 2^31 + 2^19 elements in all
constexpr int64_t kPeriod = kElements * 2;                                           // bytes, of float16

// A file of one period, mapped kRepeats times in a row; a page that is closed follows.
class Repeated {
 public:
  Repeated() : bytes_(kRepeats * kPeriod) {
    char name[] = "/tmp/anynorm-XXXXXX";
    const int file = mkstemp(name);
    unlink(name);
    if (file < 0 || ftruncate(file, kPeriod) != 0) abort();
    constexpr int kReserve = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* const whole = mmap(nullptr, size_t(bytes_ + kPeriod), PROT_NONE, kReserve, -1, 0);
    if (whole == MAP_FAILED) abort();
    data_ = static_cast<char*>(whole);
    for (int64_t i = 0; i < kRepeats; ++i) {
      char* const at = data_ + i * kPeriod;
      if (mmap(at, size_t(kPeriod), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0) != at) abort();
    }
    close(file);
  }
  ~Repeated() { munmap(data_, size_t(bytes_ + kPeriod)); }
  Repeated(const Repeated&) = delete;
  void* data() const { return data_; }

 private:
  int64_t bytes_;
  char* data_;
};

// One period as a Case of its own, and the same with kRepeats times as many in the first run, whose elements, means and
// gradients are the small one's again and again.
void check_repeated(const char* order, const std::vector<int64_t>& extents, bool with_affine, bool backward) {
  Case c(order, extents, ANYNORM_FLOAT16);
  CHECK(c.elements == kElements, "%s does not fill a period", order);
  c.problem.scale_dtype = c.problem.offset_dtype = ANYNORM_FLOAT32;
  c.scale = Array(ANYNORM_FLOAT32, c.affine), c.offset = Array(ANYNORM_FLOAT32, c.affine);
  for (int64_t i = 0; i < c.affine; ++i) c.scale.set(i, 0.5 + double(i % 7) / 8), c.offset.set(i, double(i % 5) - 2);
  const Wanted w = expect(c, with_affine, with_affine);
  const Repeated x, y;
  memcpy(x.data(), c.x.data(), size_t(kPeriod));

  anynorm_problem p = c.problem;
  p.extents[0] *= kRepeats;
  p.threads = 2;
  const bool kept = !(p.reduced & 1);
  const int64_t groups = c.groups * (kept ? kRepeats : 1);
  const Array mean(ANYNORM_FLOAT32, groups), variance(ANYNORM_FLOAT32, groups), saved(ANYNORM_FLOAT64, 2 * groups);
  const void *scale = with_affine ? c.scale.data() : nullptr, *offset = with_affine ? c.offset.data() : nullptr;
  CHECK(!anynorm_forward(&p, x.data(), scale, offset, y.data(), mean.data(), variance.data(), saved.doubles()), "%s",
        order);
  const auto one_period = [&] {
    Array out(ANYNORM_FLOAT16, kElements);
    memcpy(out.data(), y.data(), size_t(kPeriod));
    return out;
  };
  near(c, "y", one_period(), w.y, w.y_size);
  Array last(ANYNORM_FLOAT32, c.groups);
  for (int64_t i = 0; i < c.groups; ++i) last.set(i, mean[groups - c.groups + i]);
  near(c, "the last means", last, w.mean, w.spread);
  if (!backward) return;

  const Repeated dy;
  memcpy(dy.data(), c.dy.data(), size_t(kPeriod));
  const Array dscale(ANYNORM_FLOAT32, c.affine), doffset(ANYNORM_FLOAT32, c.affine);
  CHECK(!anynorm_backward(&p, x.data(), dy.data(), scale, saved.doubles(), y.data(), dscale.data(), doffset.data()),
        "%s", order);
  near(c, "dx", one_period(), w.dx, w.dx_size);
  const auto repeated = [](Numbers numbers) {
    for (double& one : numbers) one *= double(kRepeats);
    return numbers;
  };
  near(c, "dscale", dscale, repeated(w.dscale), repeated(w.affine_size));
  near(c, "doffset", doffset, repeated(w.doffset), repeated(w.affine_size));
}

}  // namespace

TEST(more_than_2_to_the_31_elements) {
  if (kSanitized) return;  // the shadow of so much memory would be memory
  anynorm_use_isa(isas().back());
  check_repeated("r", {kElements}, false, false);
  check_repeated("kR", {128, 4096}, true, true);
  check_repeated("rK", {256, 2048}, true, true);
  check_repeated("Rk", {2, kElements / 2}, false, false);
}
