#include "arrays.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <map>
#include <mutex>
#include <vector>

#include "check.h"

int64_t bytes_of(int dtype) { return dtype == ANYNORM_FLOAT64 ? 8 : dtype == ANYNORM_FLOAT32 ? 4 : 2; }

const char* name_of(int dtype) {
  static const char* const names[] = {"float32", "float64", "float16", "bfloat16"};
  return names[dtype];
}

double unit_of(int dtype) {
  static const double units[] = {0x1p-24, 0x1p-53, 0x1p-11, 0x1p-8};
  return units[dtype];
}

int work_of(int dtype) { return dtype == ANYNORM_FLOAT64 ? ANYNORM_FLOAT64 : ANYNORM_FLOAT32; }

namespace {

template <class N>
N read(const void* array, int64_t i) {
  N number;
  memcpy(&number, static_cast<const char*>(array) + i * int64_t(sizeof number), sizeof number);
  return number;
}
template <class N>
void write(void* array, int64_t i, N number) {
  memcpy(static_cast<char*>(array) + i * int64_t(sizeof number), &number, sizeof number);
}

// Sign, exponent and fraction of a number of 16 bits, by arithmetic.
double from_16(uint16_t bits, int fraction_bits, int bias) {
  const int fraction = bits & ((1 << fraction_bits) - 1), exponent = (bits & 0x7fff) >> fraction_bits;
  const int largest = (0x7fff >> fraction_bits);
  const double sign = bits & 0x8000 ? -1 : 1;
  if (exponent == largest) return fraction ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * ldexp(fraction, 1 - bias - fraction_bits);
  return sign * ldexp(fraction + (1 << fraction_bits), exponent - bias - fraction_bits);
}

uint16_t to_16(double value, int fraction_bits, int bias) {
  const uint16_t sign = signbit(value) ? 0x8000 : 0, infinity = uint16_t(0x7fff >> fraction_bits << fraction_bits);
  if (isnan(value)) return uint16_t(sign | infinity | 1 << (fraction_bits - 1));
  value = fabs(value);
  if (isinf(value)) return sign | infinity;
  if (value == 0) return sign;
  int exponent = ilogb(value);
  if (exponent < 1 - bias) exponent = 1 - bias;
  // An integer of at most fraction_bits + 1 bits, rounded to even; a carry moves on into the exponent by itself.
  const int64_t digits = int64_t(nearbyint(ldexp(value, fraction_bits - exponent)));
  const int64_t bits = (int64_t(exponent + bias - 1) << fraction_bits) + digits;
  return bits >= infinity ? sign | infinity : uint16_t(sign | bits);
}

constexpr unsigned char kUntouched = 0xa5;
std::mutex guarded;
std::map<int64_t, std::vector<unsigned char*>> free_places;  // by capacity; of each the last page is closed

int64_t page() { return sysconf(_SC_PAGESIZE); }

unsigned char* take_place(int64_t capacity) {
  std::lock_guard<std::mutex> lock(guarded);
  std::vector<unsigned char*>& places = free_places[capacity];
  if (!places.empty()) {
    unsigned char* const place = places.back();
    places.pop_back();
    return place;
  }
  void* const fresh =
      mmap(nullptr, size_t(capacity + page()), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (fresh == MAP_FAILED) abort();
  unsigned char* const place = static_cast<unsigned char*>(fresh);
  mprotect(place + capacity, size_t(page()), PROT_NONE);
  return place;
}

}  // namespace

double get(const void* array, int dtype, int64_t i) {
  if (dtype == ANYNORM_FLOAT64) return read<double>(array, i);
  if (dtype == ANYNORM_FLOAT32) return double(read<float>(array, i));
  const uint16_t bits = read<uint16_t>(array, i);
  return dtype == ANYNORM_FLOAT16 ? from_16(bits, 10, 15) : from_16(bits, 7, 127);
}

void set(void* array, int dtype, int64_t i, double value) {
  if (dtype == ANYNORM_FLOAT64) return write<double>(array, i, value);
  if (dtype == ANYNORM_FLOAT32) return write<float>(array, i, float(value));
  write<uint16_t>(array, i, dtype == ANYNORM_FLOAT16 ? to_16(value, 10, 15) : to_16(value, 7, 127));
}

Array::Array(int dtype, int64_t size, int64_t shift) : dtype_(dtype), size_(size) {
  const int64_t bytes = size * bytes_of(dtype);
  if (kSanitized) {
    base_ = static_cast<unsigned char*>(malloc(size_t(bytes + shift * bytes_of(dtype))));
    data_ = base_ + shift * bytes_of(dtype);
  } else {
    // The end decides where the array lies, and so its alignment: that of an element where the length is odd.
    after_ = shift * bytes_of(dtype);
    for (capacity_ = page(); capacity_ < bytes + after_;) capacity_ *= 2;
    base_ = take_place(capacity_);
    unsigned char* const first = base_ + capacity_ - after_ - bytes;
    data_ = first;
    memset(first - watched(), kUntouched, size_t(watched()));
    memset(first + bytes, kUntouched, size_t(after_));
  }
  memset(data_, 0xff, size_t(bytes));  // NaN in every type
}

Array::~Array() {
  if (base_ == nullptr) return;
  if (kSanitized) {
    free(base_);
    return;
  }
  const unsigned char* const first = static_cast<unsigned char*>(data_);
  const int64_t bytes = size_ * bytes_of(dtype_);
  for (int64_t i = 1; i <= watched(); ++i)
    CHECK(first[-i] == kUntouched, "byte %lld before an array was written to", (long long)i);
  for (int64_t i = 0; i < after_; ++i)
    CHECK(first[bytes + i] == kUntouched, "byte %lld behind an array was written to", (long long)i);
  std::lock_guard<std::mutex> lock(guarded);
  free_places[capacity_].push_back(base_);
}

int64_t Array::watched() const {
  const int64_t room = capacity_ - after_ - size_ * bytes_of(dtype_);
  return room < 256 ? room : 256;
}

Array Array::copy(int64_t shift) const {
  if (!exists()) return none();
  Array out(dtype_, size_, shift);
  memcpy(out.data_, data_, size_t(size_ * bytes_of(dtype_)));
  return out;
}

bool Array::same_bits(const Array& other) const {
  return exists() == other.exists() && size_ == other.size_ &&
         (size_ == 0 || memcmp(data_, other.data_, size_t(size_ * bytes_of(dtype_))) == 0);
}
