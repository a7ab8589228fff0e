/* Causal attention of one key-value head over a paged cache.
 *
 * The cache of a layer holds, per block and key-value head, keys as [head size][BLOCK] and values as [BLOCK][head size],
 * in float or bfloat16. Keys are taken in stretches of STRETCH positions from 0 on, whatever the step computes, with a
 * running maximum between them (Dao et al., FlashAttention, 2022): a token's result does not depend on how its prompt
 * was cut into chunks, nor on its neighbours. */
#ifndef TGI_ATTENTION_H
#define TGI_ATTENTION_H

#include <stddef.h>
#include <stdint.h>

#define BLOCK 16
#define STRETCH 256
#define MAX_QUERIES 8 /* per call */

typedef struct {
  int32_t num_kv_heads;
  int32_t head_size; /* a multiple of 16 */
  int32_t is_bf16;
} CacheShape;

/* Where a block's keys or values of one head begin, in elements. */
static inline size_t cache_at(const CacheShape *shape, int block, int head) {
  return ((size_t)block * (size_t)shape->num_kv_heads + (size_t)head) * BLOCK * (size_t)shape->head_size;
}

void cache_write(const CacheShape *shape, void *keys, void *values, int block, int offset, int head, const float *key,
                 const float *value);

/* Where the call after this one will begin to read. */
typedef struct {
  const void *keys;
  const int32_t *table;
  int num_blocks, head;
} Upcoming;

/* `count` queries [head size], already scaled, at `positions`, each looking back over at most `window` positions (0: all)
 * of the sequence whose blocks `table` names. Results go to `out`. `upcoming` may be NULL. */
void attend(const CacheShape *shape, const void *keys, const void *values, int head, const int32_t *table, int count,
            const float *const *queries, const int32_t *positions, int window, float *const *out, const Upcoming *upcoming);

#endif
