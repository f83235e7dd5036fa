// Sums over the lanes of a vector, always in the same order.

#if defined(__AVX512F__)
// Of the four quarters, one behind the other.
inline __m128 sum_quarters(__m512 v) {
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}
inline float sum_lanes(Vec<float> v) {
  const __m512 pairs = _mm512_add_ps(__m512(v), _mm512_permute_ps(__m512(v), 0x4e));
  return _mm_cvtss_f32(sum_quarters(_mm512_add_ps(pairs, _mm512_permute_ps(pairs, 0xb1))));
}
inline double sum_lanes(Vec<double> v) { return _mm512_reduce_add_pd(__m512d(v)); }
#elif defined(__AVX__)
inline float sum_lanes(Vec<float> v) {
  const __m256 pairs = _mm256_hadd_ps(__m256(v), __m256(v)), fours = _mm256_hadd_ps(pairs, pairs);
  return _mm_cvtss_f32(_mm_add_ss(_mm256_castps256_ps128(fours), _mm256_extractf128_ps(fours, 1)));
}
inline double sum_lanes(Vec<double> v) {
  const __m256d pairs = _mm256_hadd_pd(__m256d(v), __m256d(v));
  return _mm_cvtsd_f64(_mm_add_sd(_mm256_castpd256_pd128(pairs), _mm256_extractf128_pd(pairs, 1)));
}
#else
template <class V>
inline auto sum_lanes(V v) -> decltype(v[0] + v[0]) {
  decltype(v[0] + v[0]) lane[sizeof(V) / sizeof(v[0])];
  memcpy(lane, &v, sizeof v);
  for (size_t half = sizeof(V) / sizeof(v[0]) / 2; half > 0; half /= 2)
    for (size_t i = 0; i < half; ++i) lane[i] += lane[i + half];
  return lane[0];
}
#endif

// Of each of R vectors.
template <class A, int R>
inline void sums_of_lanes(const Vec<A>* v, double* out) {
  for (int i = 0; i < R; ++i) out[i] = sum_lanes(v[i]);
}
// Together, each in the order of `sum_lanes`.
#if defined(__AVX512F__)
template <>
inline void sums_of_lanes<float, 4>(const Vec<float>* v, double* out) {
  const auto pairs = [](Vec<float> a, Vec<float> b) {
    return _mm512_add_ps(_mm512_unpacklo_ps(__m512(a), __m512(b)), _mm512_unpackhi_ps(__m512(a), __m512(b)));
  };
  const __m512 one = pairs(v[0], v[1]), two = pairs(v[2], v[3]);
  const __m512 fours = _mm512_add_ps(_mm512_shuffle_ps(one, two, 0x44), _mm512_shuffle_ps(one, two, 0xee));
  const __m256d sums = _mm256_cvtps_pd(sum_quarters(fours));
  memcpy(out, &sums, sizeof sums);
}
#elif defined(__AVX__)
template <>
inline void sums_of_lanes<float, 4>(const Vec<float>* v, double* out) {
  const __m256 one = _mm256_hadd_ps(__m256(v[0]), __m256(v[1])), two = _mm256_hadd_ps(__m256(v[2]), __m256(v[3]));
  const __m256 all = _mm256_hadd_ps(one, two);
  const __m256d sums = _mm256_cvtps_pd(_mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
  memcpy(out, &sums, sizeof sums);
}
#endif
