#include "decoder.h"

#include <math.h>

#include "pages.h"
#include "vec.h"

#define QUERY_TOKENS 8 /* of a prefill, that one piece of attention takes */

/* Intermediate results of a step: [tokens, ...]. */
typedef struct {
  float *normed, *qkv, *attended, *gated;
  int8_t *codes;
  float *scales;
  int32_t *sums;
} Scratch;

typedef struct {
  const Decoder *d;
  const Step *s;
  Scratch x;
  int32_t *row_of;     /* [tokens] */
  int32_t *piece_row, *piece_first; /* of attention: which row, from which of its tokens on */
  int num_pieces;
} Run;

static int max(int a, int b) { return a > b ? a : b; }
static int min(int a, int b) { return a < b ? a : b; }

/* ---- Token by token. */

/* Root mean square norm (Zhang and Sennrich, 2019). */
static void rms_norm(const float *in, const float *weight, int size, float epsilon, float *out) {
  f32x16 squares = {0};
  int whole = size / LANES * LANES;
  for (int i = 0; i < whole; i += LANES) squares = fma16(load16(in + i), load16(in + i), squares);
  float total = sum16(squares);
  for (int i = whole; i < size; i++) total += in[i] * in[i];
  float inverse = 1.0f / sqrtf(total / (float)size + epsilon);
  for (int i = 0; i < whole; i += LANES) store16(out + i, load16(in + i) * splat(inverse) * load16(weight + i));
  for (int i = whole; i < size; i++) out[i] = in[i] * inverse * weight[i];
}

static Activations activations(const Run *run, const float *values) {
  return (Activations){values, run->x.codes, run->x.scales, run->x.sums};
}

/* Quantize `values` for `next`. A tile is cut up by groups where there are few, so that no thread is idle. */
static void quantize_tokens(Member *member, const Run *run, const float *values, int tokens, const Linear *next) {
  if (next->bits > 8) return;
  Activations a = activations(run, values);
  int groups = num_groups(next->inputs), tiles = num_tiles(tokens), cuts = min(groups, tiles < 16 ? 4 : 1);
  for (int piece; (piece = next_piece(member, tiles * cuts)) >= 0;) {
    int cut = piece % cuts;
    quantize_tile(&a, tokens, piece / cuts, next->inputs, groups * cut / cuts, groups * (cut + 1) / cuts);
  }
  next_phase(member);
}

/* Norm and quantization of all tokens, or of those that `kept` names. */
static void norm_tokens(Member *member, const Run *run, const float *weight, const int32_t *kept, int tokens,
                        const Linear *next) {
  int size = run->d->hidden;
  Activations a = activations(run, run->x.normed);
  /* In one go where that keeps all threads busy, and of a single token, too. */
  int whole = tokens == 1 || tokens >= 64, pieces = whole ? num_tiles(tokens) : tokens;
  for (int piece; (piece = next_piece(member, pieces)) >= 0;) {
    int first = whole ? tile_start(tokens, piece) : piece, last = whole ? tile_start(tokens, piece + 1) : piece + 1;
    for (int t = first; t < last; t++)
      rms_norm(run->s->hidden + (size_t)(kept ? kept[t] : t) * (size_t)size, weight, size, run->d->epsilon,
               run->x.normed + (size_t)t * (size_t)size);
    if (whole && next->bits <= 8) quantize_tile(&a, tokens, piece, size, 0, num_groups(size));
  }
  next_phase(member);
  if (!whole) quantize_tokens(member, run, run->x.normed, tokens, next);
}

/* Rotary position embedding (Su et al., 2021) of the first `rotary` values, paired half by half. */
static void rotate(float *v, const float *cosines, const float *sines, int rotary) {
  int half = rotary / 2;
  for (int i = 0; i < half; i++) {
    float a = v[i], b = v[i + half];
    v[i] = a * cosines[i] - b * sines[i];
    v[i + half] = b * cosines[i] + a * sines[i];
  }
}

static void place_token(const Run *run, const Layer *layer, int token) {
  const Decoder *d = run->d;
  const Step *s = run->s;
  int row = run->row_of[token], position = s->start[row] + token - s->first[row], size = d->cache.head_size;
  int block = s->tables[s->table_at[row] + position / BLOCK];
  float *queries = run->x.qkv + (size_t)token * (size_t)layer->qkv.outputs;
  float *keys = queries + d->num_heads * size, *values = keys + d->cache.num_kv_heads * size;
  const float *cosines = d->cosines + (size_t)position * (size_t)(d->rotary_size / 2);
  const float *sines = d->sines + (size_t)position * (size_t)(d->rotary_size / 2);
  for (int h = 0; h < d->num_heads + d->cache.num_kv_heads; h++) {
    float *v = queries + h * size;
    const float *norm = h < d->num_heads ? layer->query_norm : layer->key_norm;
    if (norm) rms_norm(v, norm, size, d->epsilon, v);
    if (layer->is_rotary) rotate(v, cosines, sines, d->rotary_size);
    if (h < d->num_heads)
      for (int i = 0; i < size; i++) v[i] *= d->attention_scale;
  }
  for (int h = 0; h < d->cache.num_kv_heads; h++)
    cache_write(&d->cache, layer->keys, layer->values, block, position % BLOCK, h, keys + h * size, values + h * size);
}

/* ---- Attention: pieces of up to QUERY_TOKENS tokens of one row, for one key-value head. */

static void attend_unit(const Run *run, const Layer *layer, int unit, int next_unit) {
  const Decoder *d = run->d;
  const Step *s = run->s;
  int heads = d->cache.num_kv_heads, head = unit % heads, row = run->piece_row[unit / heads];
  int group = d->num_heads / heads, size = d->cache.head_size;
  int first = run->piece_first[unit / heads], tokens = min(s->first[row + 1] - first, QUERY_TOKENS);
  int next_row = run->piece_row[next_unit / heads];
  int next_length = min(s->start[next_row] + s->first[next_row + 1] - s->first[next_row], STRETCH);
  Upcoming next = {layer->keys, s->tables + s->table_at[next_row], (next_length + BLOCK - 1) / BLOCK, next_unit % heads};
  const float *queries[MAX_QUERIES];
  float *out[MAX_QUERIES];
  int32_t positions[MAX_QUERIES];
  for (int i = 0, n = 0; i < tokens * group; i++) {
    int token = first + i / group, h = head * group + i % group, is_last = i == tokens * group - 1;
    queries[n] = run->x.qkv + (size_t)token * (size_t)layer->qkv.outputs + h * size;
    out[n] = run->x.attended + ((size_t)token * (size_t)d->num_heads + (size_t)h) * (size_t)size;
    positions[n++] = s->start[row] + token - s->first[row];
    if (n == MAX_QUERIES || is_last) {
      attend(&d->cache, layer->keys, layer->values, head, s->tables + s->table_at[row], n, queries, positions,
             layer->window, out, is_last && next_unit != unit ? &next : NULL);
      n = 0;
    }
  }
}

static void attend_tokens(Member *member, const Run *run, const Layer *layer) {
  int units = run->num_pieces * run->d->cache.num_kv_heads;
  int width = max(1, min(4, units / (4 * team_size(member->team)))), pieces = (units + width - 1) / width;
  /* The longest contexts come last in a prefill: begin with them, so that the threads end together. */
  for (int piece; (piece = next_piece(member, pieces)) >= 0;) {
    int last = units - 1 - piece * width, end = max(last - width, -1);
    for (int unit = last; unit > end; unit--) attend_unit(run, layer, unit, max(unit - 1, 0));
  }
  next_phase(member);
}

/* ---- The whole. */

static void linear_phase(Member *member, const Linear *linear, const Run *run, const float *values, int tokens, float *out,
                         int stride, Epilogue epilogue) {
  Activations a = activations(run, values);
  linear_run(member, linear, &a, tokens, out, stride, epilogue, run->d->residual_scale);
  next_phase(member);
}

static void run_layer(Member *member, const Run *run, const Layer *layer) {
  const Decoder *d = run->d;
  const Step *s = run->s;
  const Scratch *x = &run->x;
  int tokens = s->num_tokens;
  norm_tokens(member, run, layer->attention_norm, NULL, tokens, &layer->qkv);
  linear_phase(member, &layer->qkv, run, x->normed, tokens, x->qkv, layer->qkv.outputs, STORE);
  for (int t; (t = next_piece(member, tokens)) >= 0;) place_token(run, layer, t);
  next_phase(member);
  attend_tokens(member, run, layer);
  quantize_tokens(member, run, x->attended, tokens, &layer->output);
  linear_phase(member, &layer->output, run, x->attended, tokens, s->hidden, d->hidden, ADD);
  norm_tokens(member, run, layer->mlp_norm, NULL, tokens, &layer->gate_up);
  linear_phase(member, &layer->gate_up, run, x->normed, tokens, x->gated, d->intermediate,
               d->is_gelu ? GATE_GELU_TANH : GATE_SILU);
  quantize_tokens(member, run, x->gated, tokens, &layer->down);
  linear_phase(member, &layer->down, run, x->gated, tokens, s->hidden, d->hidden, ADD);
}

static void run_member(void *context, Member *member) {
  const Run *run = context;
  for (int i = 0; i < run->d->num_layers; i++) run_layer(member, run, run->d->layers + i);
  if (!run->s->num_kept) return;
  norm_tokens(member, run, run->d->final_norm, run->s->kept, run->s->num_kept, &run->d->head);
  linear_phase(member, &run->d->head, run, run->x.normed, run->s->num_kept, run->s->logits, run->d->head.outputs, STORE);
}

/* Where each intermediate result lies in one stretch of memory; its size in bytes. */
static size_t lay_out(Run *run, uintptr_t memory) {
  const Decoder *d = run->d;
  int attended = d->num_heads * d->cache.head_size, qkv = attended + 2 * d->cache.num_kv_heads * d->cache.head_size;
  size_t n = (size_t)run->s->num_tokens, at = 0;
  size_t groups = (size_t)num_groups(max(max(d->hidden, attended), d->intermediate));
#define PLACE(MEMBER, COUNT) run->MEMBER = (void *)(memory + at), at += (n * (size_t)(COUNT) * sizeof *run->MEMBER + 4095) / 4096 * 4096
  PLACE(x.normed, d->hidden);
  PLACE(x.qkv, qkv);
  PLACE(x.attended, attended);
  PLACE(x.gated, d->intermediate);
  PLACE(x.codes, groups * GROUP);
  PLACE(x.scales, groups);
  PLACE(x.sums, groups);
  PLACE(row_of, 1);
  PLACE(piece_row, 1);
  PLACE(piece_first, 1);
#undef PLACE
  return at;
}

static int reserve(Workspace *w, size_t size) {
  if (size <= w->size) return 0;
  pages_free(w->memory, w->size);
  w->memory = pages_create(size);
  w->size = w->memory ? size : 0;
  return w->memory == NULL;
}

int decoder_run(Team *team, const Decoder *decoder, const Step *step, Workspace *workspace) {
  if (!step->num_tokens) return 0; /* a phase without pieces would never end */
  Run run = {.d = decoder, .s = step};
  if (reserve(workspace, lay_out(&run, 0))) return 1;
  lay_out(&run, (uintptr_t)workspace->memory);
  for (int r = 0; r < step->num_rows; r++) {
    for (int t = step->first[r]; t < step->first[r + 1]; t++) run.row_of[t] = r;
    for (int t = step->first[r]; t < step->first[r + 1]; t += QUERY_TOKENS) {
      run.piece_row[run.num_pieces] = r;
      run.piece_first[run.num_pieces++] = t;
    }
  }
  team_run(team, run_member, &run);
  return 0;
}

void workspace_free(Workspace *workspace) {
  pages_free(workspace->memory, workspace->size);
  *workspace = (Workspace){0};
}
