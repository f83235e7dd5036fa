// Arrays of the four types that end where memory ends, so that a read or a write beyond them is noticed.
#ifndef ANYNORM_ARRAYS_H
#define ANYNORM_ARRAYS_H

#include <stdint.h>

#include <utility>

#include "anynorm.h"

int64_t bytes_of(int dtype);
const char* name_of(int dtype);
// The difference between 1 and the next number, halved: what rounding once costs.
double unit_of(int dtype);
// The type in which statistics are returned and sums are taken.
int work_of(int dtype);

// One number, converted to and from double independently of the kernels.
double get(const void* array, int dtype, int64_t i);
void set(void* array, int dtype, int64_t i, double value);

// With AddressSanitizer or ThreadSanitizer from malloc; else a page that may not be touched follows, and bytes before
// it are known and looked at again when the array dies.
class Array {
 public:
  Array() = default;
  // Filled with NaN. `shift` moves it that many elements from where it would lie.
  Array(int dtype, int64_t size, int64_t shift = 0);
  Array(Array&& other) noexcept { swap(other); }
  Array& operator=(Array&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Array();

  static Array none() { return Array(); }  // stands for NULL
  Array copy(int64_t shift = 0) const;

  void* data() const { return data_; }
  double* doubles() const { return static_cast<double*>(data_); }
  int dtype() const { return dtype_; }
  int64_t size() const { return size_; }
  bool exists() const { return data_ != nullptr; }
  double operator[](int64_t i) const { return get(data_, dtype_, i); }
  void set(int64_t i, double value) { ::set(data_, dtype_, i, value); }
  bool same_bits(const Array& other) const;

 private:
  int64_t watched() const;  // bytes before the array that are looked at
  void swap(Array& other) {
    std::swap(base_, other.base_), std::swap(data_, other.data_), std::swap(dtype_, other.dtype_);
    std::swap(size_, other.size_), std::swap(capacity_, other.capacity_), std::swap(after_, other.after_);
  }
  unsigned char* base_ = nullptr;
  void* data_ = nullptr;
  int dtype_ = 0;
  int64_t size_ = 0, capacity_ = 0, after_ = 0;
};

#endif
