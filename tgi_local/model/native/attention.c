#include "attention.h"

#include <math.h>

#include "vec.h"

#define MAX_HEAD 256

INLINE f32x16 load_cached(const void *p, size_t at, const int is_bf16) {
  return is_bf16 ? load_bf16((const uint16_t *)p + at) : load16((const float *)p + at);
}

/* Blocks lie anywhere, so the processor does not foresee the next one. */
static void prefetch_block(const CacheShape *shape, const void *cache, int block, int head) {
  size_t width = shape->is_bf16 ? 2 : 4;
  const char *p = (const char *)cache + cache_at(shape, block, head) * width;
  for (size_t i = 0; i < (size_t)shape->head_size * BLOCK * width; i += 64) __builtin_prefetch(p + i, 0, 2);
}

void cache_write(const CacheShape *shape, void *keys, void *values, int block, int offset, int head, const float *key,
                 const float *value) {
  size_t at = cache_at(shape, block, head), size = (size_t)shape->head_size;
  for (size_t d = 0; d < size; d++) {
    size_t k = at + d * BLOCK + (size_t)offset, v = at + (size_t)offset * size + d;
    if (shape->is_bf16) ((uint16_t *)keys)[k] = to_bf16(key[d]), ((uint16_t *)values)[v] = to_bf16(value[d]);
    else ((float *)keys)[k] = key[d], ((float *)values)[v] = value[d];
  }
}

/* Scores of one block's positions: [n][BLOCK]. */
INLINE void score_block(const int n, const int is_bf16, const void *keys, size_t at, int size, const float *const *queries,
                        float scores[][STRETCH]) {
  f32x16 acc[MAX_QUERIES];
#pragma GCC unroll 8
  for (int q = 0; q < n; q++) acc[q] = (f32x16){0};
  for (int d = 0; d < size; d++) {
    f32x16 k = load_cached(keys, at + (size_t)d * BLOCK, is_bf16);
#pragma GCC unroll 8
    for (int q = 0; q < n; q++) acc[q] = fma16(splat(queries[q][d]), k, acc[q]);
  }
#pragma GCC unroll 8
  for (int q = 0; q < n; q++) store16(scores[q], acc[q]);
}

/* sums[n][size] += probabilities [n][count] times values, two registers of dimensions at a time. */
INLINE void add_values(const int n, const int is_bf16, const void *values, const CacheShape *shape, int head,
                       const int32_t *table, int count, float probabilities[][STRETCH], float sums[][MAX_HEAD],
                       const Upcoming *upcoming) {
  const int size = shape->head_size;
  for (int d = 0; d < size; d += 2 * LANES) {
    const int next = d + LANES < size ? LANES : 0; /* an odd number of registers: the last is done twice */
    f32x16 acc[MAX_QUERIES][2];
#pragma GCC unroll 8
    for (int q = 0; q < n; q++) acc[q][0] = load16(sums[q] + d), acc[q][1] = load16(sums[q] + d + next);
    for (int first = 0; first < count; first += BLOCK) {
      size_t at = cache_at(shape, table[first / BLOCK], head) + (size_t)d;
      if (d == 0 && upcoming && first / BLOCK < upcoming->num_blocks) prefetch_block(shape, upcoming->keys, upcoming->table[first / BLOCK], upcoming->head);
      int last = count - first < BLOCK ? count - first : BLOCK;
      for (int i = 0; i < last; i++, at += (size_t)size) {
        f32x16 v0 = load_cached(values, at, is_bf16), v1 = load_cached(values, at + (size_t)next, is_bf16);
#pragma GCC unroll 8
        for (int q = 0; q < n; q++) {
          f32x16 p = splat(probabilities[q][first + i]);
          acc[q][0] = fma16(p, v0, acc[q][0]);
          acc[q][1] = fma16(p, v1, acc[q][1]);
        }
      }
    }
#pragma GCC unroll 8
    for (int q = 0; q < n; q++) {
      store16(sums[q] + d, acc[q][0]);
      store16(sums[q] + d + next, acc[q][1]);
    }
  }
}

#define EACH_COUNT(CASE) CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)

static void score(int n, const CacheShape *shape, const void *keys, size_t at, const float *const *queries,
                  float scores[][STRETCH]) {
  switch (n) {
#define CASE(N)                                                                           \
  case N:                                                                                 \
    if (shape->is_bf16) score_block(N, 1, keys, at, shape->head_size, queries, scores);   \
    else score_block(N, 0, keys, at, shape->head_size, queries, scores);                  \
    break;
    EACH_COUNT(CASE)
#undef CASE
  }
}

static void weigh(int n, const CacheShape *shape, const void *values, int head, const int32_t *table, int count,
                  float probabilities[][STRETCH], float sums[][MAX_HEAD], const Upcoming *upcoming) {
  switch (n) {
#define CASE(N)                                                                                        \
  case N:                                                                                              \
    if (shape->is_bf16) add_values(N, 1, values, shape, head, table, count, probabilities, sums, upcoming);      \
    else add_values(N, 0, values, shape, head, table, count, probabilities, sums, upcoming);                     \
    break;
    EACH_COUNT(CASE)
#undef CASE
  }
}

/* Turn the scores of positions first .. first + count into probabilities relative to the new maximum. */
static void normalize(float *scores, int count, int first, int lowest, int position, float *maximum, float *total,
                      float *sums, int size) {
  int padded = (count + LANES - 1) / LANES * LANES;
  for (int i = 0; i < padded && first + i < lowest; i++) scores[i] = -INFINITY;
  for (int i = padded - 1; i >= 0 && first + i > position; i--) scores[i] = -INFINITY;
  f32x16 highest = splat(-INFINITY);
  for (int i = 0; i < padded; i += LANES) highest = max16(load16(scores + i), highest);
  float peak = highest16(highest), updated = peak > *maximum ? peak : *maximum;
  if (updated == -INFINITY) { /* nothing to see in this stretch, or ever yet */
    memset(scores, 0, (size_t)padded * sizeof(float));
    return;
  }
  float old[LANES];
  store16(old, exp16(splat(*maximum - updated)));
  f32x16 added = {0};
  for (int i = 0; i < padded; i += LANES) {
    f32x16 p = exp16(load16(scores + i) - splat(updated));
    store16(scores + i, p);
    added += p;
  }
  *total = *total * old[0] + sum16(added);
  *maximum = updated;
  for (int d = 0; d < size; d += LANES) store16(sums + d, load16(sums + d) * splat(old[0]));
}

void attend(const CacheShape *shape, const void *keys, const void *values, int head, const int32_t *table, int count,
            const float *const *queries, const int32_t *positions, int window, float *const *out, const Upcoming *upcoming) {
  const int size = shape->head_size;
  _Alignas(64) float scores[MAX_QUERIES][STRETCH];
  _Alignas(64) float sums[MAX_QUERIES][MAX_HEAD];
  float maxima[MAX_QUERIES], totals[MAX_QUERIES];
  int last = 0, lowest[MAX_QUERIES], begin = positions[0];
  for (int q = 0; q < count; q++) {
    maxima[q] = -INFINITY;
    totals[q] = 0.0f;
    memset(sums[q], 0, (size_t)size * sizeof(float));
    lowest[q] = window && positions[q] >= window ? positions[q] - window + 1 : 0;
    if (positions[q] > last) last = positions[q];
    if (lowest[q] < begin) begin = lowest[q];
  }
  for (int first = begin / STRETCH * STRETCH; first <= last; first += STRETCH) {
    int length = last + 1 - first < STRETCH ? last + 1 - first : STRETCH;
    for (int i = 0; i < length; i += BLOCK) {
      float(*at)[STRETCH] = (float(*)[STRETCH])(scores[0] + i);
      prefetch_block(shape, values, table[(first + i) / BLOCK], head);
      score(count, shape, keys, cache_at(shape, table[(first + i) / BLOCK], head), queries, at);
    }
    for (int q = 0; q < count; q++)
      normalize(scores[q], length, first, lowest[q], positions[q], maxima + q, totals + q, sums[q], size);
    weigh(count, shape, values, head, table + first / BLOCK, length, scores, sums, first + STRETCH > last ? upcoming : NULL);
  }
  for (int q = 0; q < count; q++) {
    f32x16 inverse = splat(1.0f / totals[q]);
    for (int d = 0; d < size; d += LANES) store16(out[q] + d, load16(sums[q] + d) * inverse);
  }
}
