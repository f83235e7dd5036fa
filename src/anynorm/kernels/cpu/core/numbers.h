// Single numbers of every type. Included inside an unnamed namespace, so that no two instruction sets share a function.

// XLA and TensorFlow tell their threads to take denormal numbers for 0; here all frameworks are to agree, so
// each function of the interface counts them while it lives, and each task on whatever thread it runs.
#if defined(__SSE2__)
struct Denormals {
  const unsigned before = _mm_getcsr();
  Denormals() { _mm_setcsr(before & ~0x8040u); }
  ~Denormals() { _mm_setcsr(before); }
};
#elif defined(__aarch64__)
struct Denormals {
  uint64_t before;
  Denormals() {
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" : : "r"(before & ~(uint64_t(1) << 24)));
  }
  ~Denormals() { __asm__ volatile("msr fpcr, %0" : : "r"(before)); }
};
#else
struct Denormals {
  Denormals() {}
};
#endif

struct Half {
  uint16_t bits;
};
struct Brain {
  uint16_t bits;
};

inline float bits_to_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}

inline float widen(float value) { return value; }
inline double widen(double value) { return value; }
inline float widen(Brain value) { return bits_to_float(uint32_t(value.bits) << 16); }
inline float widen(Half value) {
  const uint32_t sign = uint32_t(value.bits & 0x8000) << 16, rest = value.bits & 0x7fff;
  if (rest >= 0x7c00) return bits_to_float(sign | 0x7f800000 | (rest & 0x3ff) << 13);
  // Half's exponent is biased by 15 and float's by 127; the product is exact, denormal halves included.
  return bits_to_float(sign | float_to_bits(bits_to_float(rest << 13) * 0x1p112f));
}

inline void narrow(float value, float* out) { *out = value; }
inline void narrow(double value, float* out) { *out = float(value); }
inline void narrow(double value, double* out) { *out = value; }
inline void narrow(float value, Brain* out) {
  const uint32_t bits = float_to_bits(value);
  out->bits = value != value ? uint16_t(bits >> 16 | 0x40) : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline void narrow(float value, Half* out) {
  const uint32_t bits = float_to_bits(value), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
  if (size > 0x7f800000) {
    out->bits = uint16_t(sign | 0x7e00);
  } else if (size >= 0x477ff000) {  // 65520 and more
    out->bits = uint16_t(sign | 0x7c00);
  } else if (size < 0x38800000) {  // below 2^-14: float's own addition rounds to multiples of 2^-24
    out->bits = uint16_t(sign | (float_to_bits(bits_to_float(size) + 0.5f) - 0x3f000000));
  } else {
    out->bits = uint16_t(sign | (size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13);
  }
}
inline void narrow(double value, Brain* out) { narrow(float(value), out); }
inline void narrow(double value, Half* out) { narrow(float(value), out); }
