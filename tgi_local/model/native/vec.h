/* Sixteen floats at a time, on AVX-512 or on pairs of AVX2 registers; fixed operation order, so results do not depend
 * on what else a call computes. Compiled with -ffp-contract=off: a fused multiply-add is one that is written. */
#ifndef TGI_VEC_H
#define TGI_VEC_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#if !defined(__AVX2__) || !defined(__FMA__)
#error "these kernels need AVX2 and FMA"
#endif

#define INLINE static inline __attribute__((always_inline))
#define LANES 16

typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));
typedef uint8_t u8x64 __attribute__((vector_size(64)));
typedef float f32x16_u __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t u16x16_u __attribute__((vector_size(32), aligned(2), may_alias));
typedef uint8_t u8x64_u __attribute__((vector_size(64), aligned(1), may_alias));

INLINE f32x16 load16(const float *p) { return *(const f32x16_u *)p; }
INLINE void store16(float *p, f32x16 v) { *(f32x16_u *)p = v; }
INLINE f32x16 splat(float v) { return v - (f32x16){0}; }

INLINE f32x16 fma16(f32x16 a, f32x16 b, f32x16 c) {
#ifdef __AVX512F__
  return (f32x16)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#else
  union { f32x16 v; __m256 h[2]; } x = {a}, y = {b}, z = {c};
  z.h[0] = _mm256_fmadd_ps(x.h[0], y.h[0], z.h[0]);
  z.h[1] = _mm256_fmadd_ps(x.h[1], y.h[1], z.h[1]);
  return z.v;
#endif
}

/* `a` in the lanes where `mask` is set (all ones), else `b`. */
INLINE f32x16 select16(i32x16 mask, f32x16 a, f32x16 b) { return (f32x16)((mask & (i32x16)a) | (~mask & (i32x16)b)); }
/* Per lane the greater one; `b` where either is NaN. */
INLINE f32x16 max16(f32x16 a, f32x16 b) {
#ifdef __AVX512F__
  return (f32x16)_mm512_max_ps((__m512)a, (__m512)b);
#else
  return select16(a > b, a, b);
#endif
}
/* Per lane the lesser one; `b` where either is NaN. */
INLINE f32x16 min16(f32x16 a, f32x16 b) {
#ifdef __AVX512F__
  return (f32x16)_mm512_min_ps((__m512)a, (__m512)b);
#else
  return select16(a < b, a, b);
#endif
}

/* GCC knows __builtin_shufflevector from version 12 on, Clang never knew the other. */
#ifdef __clang__
#define SHUFFLE(V, ...) __builtin_shufflevector(V, V, __VA_ARGS__)
#else
#define SHUFFLE(V, ...) __builtin_shuffle(V, (i32x16){__VA_ARGS__})
#endif

#define FOLD(V, OP)                                                                      \
  do {                                                                                   \
    V = OP(V, SHUFFLE(V, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));         \
    V = OP(V, SHUFFLE(V, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));         \
    V = OP(V, SHUFFLE(V, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));         \
    V = OP(V, SHUFFLE(V, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));         \
  } while (0)
#define PLUS(A, B) ((A) + (B))

/* The order of additions is fixed: halves, quarters, pairs. */
INLINE float sum16(f32x16 v) { FOLD(v, PLUS); return v[0]; }
INLINE int32_t sum16_int(i32x16 v) { FOLD(v, PLUS); return v[0]; }
INLINE float highest16(f32x16 v) { FOLD(v, max16); return v[0]; }

/* bfloat16 is the upper half of a float. */
INLINE f32x16 load_bf16(const uint16_t *p) {
  return (f32x16)(__builtin_convertvector(*(const u16x16_u *)p, u32x16) << 16);
}

/* To the nearest, ties to even; a NaN stays one. */
INLINE uint16_t to_bf16(float v) {
  uint32_t bits;
  memcpy(&bits, &v, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(bits >> 16 | 0x40);
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

INLINE float from_bf16(uint16_t v) {
  uint32_t bits = (uint32_t)v << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

/* e^x for x <= 88, relative error below 2e-7; 0 below -87, -inf included; NaN stays NaN.
 * Range reduction by ln 2 in two parts and the polynomial of Cephes' expf. */
INLINE f32x16 exp16(f32x16 x) {
  const f32x16 lowest = splat(-87.0f);
  i32x16 is_low = x < lowest;
  f32x16 v = select16(is_low, lowest, x);
  f32x16 n = fma16(v, splat(1.44269504088896341f), splat(12582912.0f)) - splat(12582912.0f); /* rounds */
  f32x16 r = fma16(n, splat(-0.693359375f), v);
  r = fma16(n, splat(2.12194440e-4f), r);
  f32x16 p = splat(1.9875691500e-4f);
  p = fma16(p, r, splat(1.3981999507e-3f));
  p = fma16(p, r, splat(8.3334519073e-3f));
  p = fma16(p, r, splat(4.1665795894e-2f));
  p = fma16(p, r, splat(1.6666665459e-1f));
  p = fma16(p, r, splat(5.0000001201e-1f));
  p = fma16(p, r * r, r) + splat(1.0f);
  i32x16 power = (__builtin_convertvector(n, i32x16) + 127) << 23;
  f32x16 y = p * (f32x16)power;
  return select16(is_low, splat(0.0f), y);
}

#endif
