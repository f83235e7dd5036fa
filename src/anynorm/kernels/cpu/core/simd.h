// Vectors of the compiler's own kind, and how float32, float64, float16 and bfloat16 get into and out of them.
//
// Included once for each instruction set, inside a namespace of that set's name: functions of one name compiled with
// different flags must not be merged by the linker. For the same reason nothing of the standard library's templates is
// used below.
#include <stddef.h>

#if defined(__AVX512F__)
constexpr size_t kVectorBytes = 64;
#elif defined(__AVX__)
constexpr size_t kVectorBytes = 32;
#else
constexpr size_t kVectorBytes = 16;
#endif

template <class A>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float Type __attribute__((vector_size(kVectorBytes)));
  typedef int32_t Mask __attribute__((vector_size(kVectorBytes)));
  typedef int32_t Lane;
};
template <>
struct VectorOf<double> {
  typedef double Type __attribute__((vector_size(kVectorBytes)));
  typedef int64_t Mask __attribute__((vector_size(kVectorBytes)));
  typedef int64_t Lane;
};
template <class A>
using Vec = typename VectorOf<A>::Type;
template <class A>
constexpr int64_t kLanes = kVectorBytes / sizeof(A);

// R numbers that are computed together, whatever a vector holds.
template <class A, int R>
struct TogetherOf {
  typedef A Type __attribute__((vector_size(R * sizeof(A))));
};
template <class A, int R>
using Together = typename TogetherOf<A, R>::Type;

template <class A>
inline Vec<A> broadcast(A value) {
  return value - Vec<A>{};
}

// a * b + c. Written out, since a compiler that contracts by itself may do so in one copy of a loop and not in another,
// and a row would then depend on how many rows were taken at once.
#if defined(__AVX512F__)
inline Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return Vec<float>(_mm512_fmadd_ps(__m512(a), __m512(b), __m512(c)));
}
inline Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return Vec<double>(_mm512_fmadd_pd(__m512d(a), __m512d(b), __m512d(c)));
}
#elif defined(__FMA__)
inline Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return Vec<float>(_mm256_fmadd_ps(__m256(a), __m256(b), __m256(c)));
}
inline Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return Vec<double>(_mm256_fmadd_pd(__m256d(a), __m256d(b), __m256d(c)));
}
#elif defined(__aarch64__)
inline Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return Vec<float>(vfmaq_f32(float32x4_t(c), float32x4_t(a), float32x4_t(b)));
}
inline Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return Vec<double>(vfmaq_f64(float64x2_t(c), float64x2_t(a), float64x2_t(b)));
}
#else
template <class V>
inline V fma(V a, V b, V c) {
  return a * b + c;
}
#endif

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// --- whole vectors --------------------------------------------------------------------------------------------------

template <class T, class A>
struct Convert {  // any pair, lane by lane; the pairs that matter follow
  static inline Vec<A> load(const T* p) {
    Vec<A> v = {};
    for (int64_t i = 0; i < kLanes<A>; ++i) v[i] = A(widen(p[i]));
    return v;
  }
  static inline void store(T* p, Vec<A> v) {
    for (int64_t i = 0; i < kLanes<A>; ++i) narrow(A(v[i]), p + i);
  }
};

template <class A>
struct Convert<A, A> {
  static inline Vec<A> load(const A* p) {
    Vec<A> v;
    memcpy(&v, p, sizeof v);
    return v;
  }
  static inline void store(A* p, Vec<A> v) { memcpy(p, &v, sizeof v); }
};

template <>
struct Convert<float, double> {
  typedef float Narrow __attribute__((vector_size(kVectorBytes / 2)));
  static inline Vec<double> load(const float* p) {
    Narrow v;
    memcpy(&v, p, sizeof v);
    return __builtin_convertvector(v, Vec<double>);
  }
  static inline void store(float* p, Vec<double> v) {
    const Narrow out = __builtin_convertvector(v, Narrow);
    memcpy(p, &out, sizeof out);
  }
};

template <>
struct Convert<Brain, float> {
  typedef uint16_t Bits __attribute__((vector_size(kVectorBytes / 2)));
  typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));
  static inline Vec<float> load(const Brain* p) {
    Bits bits;
    memcpy(&bits, p, sizeof bits);
    return Vec<float>(widened(bits) << 16);
  }
  static inline void store(Brain* p, Vec<float> v) {
    const Bits out = bits(v);
    memcpy(p, &out, sizeof out);
  }
  static inline Bits bits(Vec<float> v) { return narrowed(rounded(v)); }
#if defined(__AVX2__) && !defined(__AVX512F__)
  static inline void store_two(Brain* p, Vec<float> v, Vec<float> w) {
    const __m256i halves = _mm256_packus_epi32(__m256i(rounded(v)), __m256i(rounded(w)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(halves, 0xd8));
  }
#endif

 private:
  // To nearest, ties to even. A NaN stays one: none whose lower half is full gets here, as dispatch.cpp sees to.
  static inline Words rounded(Vec<float> v) {
    const Words bits = Words(v);
    return (bits + (0x7fff + (bits >> 16 & 1))) >> 16;
  }
  // Of numbers below 2^16. Compilers take several times as many instructions for a conversion of AVX2's.
#if defined(__AVX2__) && !defined(__AVX512F__)
  static inline Words widened(Bits bits) { return Words(_mm256_cvtepu16_epi32(__m128i(bits))); }
  static inline Bits narrowed(Words words) {
    return Bits(_mm_packus_epi32(_mm256_castsi256_si128(__m256i(words)), _mm256_extracti128_si256(__m256i(words), 1)));
  }
#else
  static inline Words widened(Bits bits) { return __builtin_convertvector(bits, Words); }
  static inline Bits narrowed(Words words) { return __builtin_convertvector(words, Bits); }
#endif
};

#if defined(__AVX512F__)
template <>
struct Convert<Half, float> {
  static inline Vec<float> load(const Half* p) {
    return Vec<float>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
  }
  static inline void store(Half* p, Vec<float> v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(__m512(v), _MM_FROUND_TO_NEAREST_INT));
  }
};
#elif defined(__F16C__)
template <>
struct Convert<Half, float> {
  static inline Vec<float> load(const Half* p) {
    return Vec<float>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  static inline void store(Half* p, Vec<float> v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(__m256(v), _MM_FROUND_TO_NEAREST_INT));
  }
};
#elif defined(__aarch64__)
template <>
struct Convert<Half, float> {
  static inline Vec<float> load(const Half* p) {
    return Vec<float>(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&p->bits))));
  }
  static inline void store(Half* p, Vec<float> v) {
    vst1_u16(&p->bits, vreinterpret_u16_f16(vcvt_f16_f32(float32x4_t(v))));
  }
};
#endif

template <class A, class T>
inline Vec<A> load(const T* p) {
  return Convert<T, A>::load(p);
}
template <class A, class T>
inline void store(T* p, Vec<A> v) {
  Convert<T, A>::store(p, v);
}
// Two, one behind the other.
template <class A, class T>
inline void store_two(T* p, Vec<A> v, Vec<A> w) {
  store<A>(p, v), store<A>(p + kLanes<A>, w);
}
#if defined(__AVX2__) && !defined(__AVX512F__)
template <>
inline void store_two<float, Brain>(Brain* p, Vec<float> v, Vec<float> w) {
  Convert<Brain, float>::store_two(p, v, w);
}
#endif

// --- the first n lanes ----------------------------------------------------------------------------------------------

template <class A>
inline typename VectorOf<A>::Mask first(int64_t n) {
  typename VectorOf<A>::Mask lane;
  for (int64_t i = 0; i < kLanes<A>; ++i) lane[i] = typename VectorOf<A>::Lane(i);
  return lane < typename VectorOf<A>::Lane(n);
}

// The first n elements, and `fill` in the other lanes.
template <class A, class T>
inline Vec<A> load_part(const T* p, int64_t n, Vec<A> fill) {
  T whole[kLanes<A>] = {};
  for (int64_t i = 0; i < n; ++i) whole[i] = p[i];
  return first<A>(n) ? load<A>(whole) : fill;
}
template <class A, class T>
inline void store_part(T* p, int64_t n, Vec<A> v) {
  T whole[kLanes<A>];
  store<A>(whole, v);
  for (int64_t i = 0; i < n; ++i) p[i] = whole[i];
}

// Whether a part of a vector is stored as fast as a whole one; but for doubles to arrays of less.
#if defined(__AVX512F__)
constexpr bool kStoresParts = true;
#else
constexpr bool kStoresParts = false;
#endif

#if defined(__AVX512F__)
template <>
inline Vec<double> load_part<double, double>(const double* p, int64_t n, Vec<double> fill) {
  return Vec<double>(_mm512_mask_loadu_pd(__m512d(fill), __mmask8((1u << n) - 1), p));
}
template <>
inline void store_part<double, double>(double* p, int64_t n, Vec<double> v) {
  _mm512_mask_storeu_pd(p, __mmask8((1u << n) - 1), __m512d(v));
}
template <>
inline Vec<float> load_part<float, float>(const float* p, int64_t n, Vec<float> fill) {
  return Vec<float>(_mm512_mask_loadu_ps(__m512(fill), __mmask16((1u << n) - 1), p));
}
template <>
inline void store_part<float, float>(float* p, int64_t n, Vec<float> v) {
  _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), __m512(v));
}
template <>
inline Vec<float> load_part<float, Brain>(const Brain* p, int64_t n, Vec<float> fill) {
  const __mmask16 lanes = __mmask16((1u << n) - 1);
  const __m512i words = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, p));
  return Vec<float>(_mm512_mask_mov_ps(__m512(fill), lanes, _mm512_castsi512_ps(_mm512_slli_epi32(words, 16))));
}
template <>
inline Vec<float> load_part<float, Half>(const Half* p, int64_t n, Vec<float> fill) {
  const __mmask16 lanes = __mmask16((1u << n) - 1);
  return Vec<float>(_mm512_mask_mov_ps(__m512(fill), lanes, _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes, p))));
}
template <>
inline void store_part<float, Brain>(Brain* p, int64_t n, Vec<float> v) {
  _mm256_mask_storeu_epi16(p, __mmask16((1u << n) - 1), __m256i(Convert<Brain, float>::bits(v)));
}
template <>
inline void store_part<float, Half>(Half* p, int64_t n, Vec<float> v) {
  _mm256_mask_storeu_epi16(p, __mmask16((1u << n) - 1), _mm512_cvtps_ph(__m512(v), _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__AVX2__)
template <>
inline Vec<float> load_part<float, float>(const float* p, int64_t n, Vec<float> fill) {
  const auto lanes = first<float>(n);
  return lanes ? Vec<float>(_mm256_maskload_ps(p, __m256i(lanes))) : fill;
}
template <>
inline void store_part<float, float>(float* p, int64_t n, Vec<float> v) {
  _mm256_maskstore_ps(p, __m256i(first<float>(n)), __m256(v));
}
#endif
