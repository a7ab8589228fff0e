/* A decoder-only transformer of the common kind: RMS norms, rotary positions, grouped-query attention, gated MLP. */
#ifndef TGI_DECODER_H
#define TGI_DECODER_H

#include <stdint.h>

#include "attention.h"
#include "linear.h"
#include "threads.h"

typedef struct {
  Linear qkv;      /* hidden -> heads, then keys, then values */
  Linear output;   /* heads -> hidden */
  Linear gate_up;  /* hidden -> 2 x intermediate, gated */
  Linear down;     /* intermediate -> hidden */
  const float *attention_norm, *mlp_norm;        /* [hidden] */
  const float *query_norm, *key_norm;            /* [head size] or NULL */
  void *keys, *values;                           /* this layer's cache */
  int32_t window;                                /* positions a token looks back over; 0: all */
  int32_t is_rotary;
} Layer;

typedef struct {
  int32_t num_layers, hidden, num_heads, intermediate, rotary_size, max_positions, is_gelu;
  float epsilon, attention_scale, residual_scale;
  CacheShape cache;
  const Layer *layers;
  const float *final_norm;  /* [hidden] */
  const float *cosines, *sines;  /* [max_positions, rotary_size / 2] */
  Linear head;
} Decoder;

/* One step. Row r has the tokens first[r] .. first[r + 1], at positions from start[r] on, in the cache blocks named from
 * tables[table_at[r]] on. */
typedef struct {
  int32_t num_tokens, num_rows, num_kept;
  float *hidden;              /* [num_tokens, hidden]: embeddings in, the last layer's output out */
  const int32_t *first, *start, *table_at, *tables;
  const int32_t *kept;        /* tokens whose logits are wanted */
  float *logits;              /* [num_kept, head.outputs] */
} Step;

/* Memory for intermediate results, kept from step to step. */
typedef struct {
  void *memory;
  size_t size;
} Workspace;

/* Returns 0, or 1 when memory for intermediate results is not to be had. A step without tokens does nothing. */
int decoder_run(Team *team, const Decoder *decoder, const Step *step, Workspace *workspace);
void workspace_free(Workspace *workspace);

#endif
