/* Runs the kernels in many small shapes with 1 to 4 threads, for the sanitizers: memory of exactly the size that is
 * promised, runs that begin while a late thread still leaves the last one, and phases whose number wraps around.
 * Includes threads.c to set that number. Exit status 1 and a line where a result is not what one thread computes. */
#include "threads.c" /* first: it asks the system's headers for more */

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "decoder.h"
#include "greedy.h"
#include "pages.h"

#define CHECK(CONDITION, ...)                                              \
  do {                                                                     \
    if (!(CONDITION)) printf(__VA_ARGS__), printf("\n"), exit(1);          \
  } while (0)

static uint32_t random_bits(void) {
  static uint32_t state = 1;
  return state = state * 1664525u + 1013904223u, state >> 8;
}
static int between(int low, int high) { return low + (int)(random_bits() % (uint32_t)(high - low + 1)); }
static float number(void) { return ((float)(random_bits() & 0xffff) - 32768.0f) / 32768.0f; }
static void *exactly(size_t size) {
  void *memory = malloc(size ? size : 1);
  CHECK(memory, "no memory");
  memset(memory, 0, size);
  return memory;
}
static float *numbers(int count) {
  float *v = exactly((size_t)count * sizeof(float));
  for (int i = 0; i < count; i++) v[i] = number();
  return v;
}

/* ---- Threads. */

#define MAX_PHASES 12
#define MAX_PIECES 9
typedef struct {
  int phases, totals[MAX_PHASES];
  int taken[MAX_PHASES][MAX_PIECES]; /* plain: a race, if two threads had the same piece or phases overlapped */
} Count;

static void count_pieces(void *context, Member *member) {
  Count *c = context;
  for (int phase = 0; phase < c->phases; phase++) {
    for (int piece; (piece = next_piece(member, c->totals[phase])) >= 0;) {
      for (int i = 0; phase && i < c->totals[phase - 1]; i++) CHECK(c->taken[phase - 1][i] == 1, "a phase began too early");
      c->taken[phase][piece]++;
    }
    next_phase(member);
  }
}

static void test_threads(int size, int runs) {
  Team *team = team_create(size);
  CHECK(team, "no team");
  atomic_store(&team->pieces, (uint64_t)(0u - 40u) << 32); /* nobody works yet */
  for (int run = 0; run < runs; run++) {
    Count c = {.phases = between(1, MAX_PHASES)};
    for (int phase = 0; phase < c.phases; phase++) c.totals[phase] = between(1, MAX_PIECES);
    team_run(team, count_pieces, &c);
    for (int phase = 0; phase < c.phases; phase++)
      for (int i = 0; i < MAX_PIECES; i++) CHECK(c.taken[phase][i] == (i < c.totals[phase]), "a piece was lost");
    memset(&c, 0xff, sizeof c); /* a thread still inside would be seen */
    if (run % 64 == 0) usleep((useconds_t)between(0, 3000)); /* until all sleep */
  }
  team_destroy(team);
}

/* ---- A decoder. */

#define ROWS 3
#define LAYERS 2
#define BLOCKS 24

static Linear make_linear(Team *team, int bits, int inputs, int outputs, int has_bias) {
  uint8_t *panels = exactly(linear_bytes(bits, inputs, outputs));
  float *weights = numbers(inputs * outputs);
  linear_pack(team, bits, inputs, outputs, weights, panels);
  free(weights);
  return (Linear){bits, inputs, outputs, panels, has_bias ? numbers(outputs) : NULL};
}

static void free_linear(Linear *l) { free((void *)l->panels), free((void *)l->bias); }

static void clear_caches(const Decoder *d, size_t size) {
  for (int i = 0; i < d->num_layers; i++) memset(d->layers[i].keys, 0, size), memset(d->layers[i].values, 0, size);
}

/* A prefill of `lengths` in two chunks, then a token for each row; the logits of the last step [ROWS, outputs]. */
static void run_steps(Team *team, const Decoder *d, const float *embeddings, const int lengths[ROWS], float *logits) {
  Workspace workspace = {0};
  int32_t tables[ROWS * 8], table_at[ROWS], start[ROWS] = {0}, first[ROWS + 1], kept[ROWS];
  for (int i = 0; i < ROWS * 8; i++) tables[i] = (i * 7 + 3) % BLOCKS;
  for (int step = 0; step < 3; step++) {
    first[0] = 0;
    for (int r = 0; r < ROWS; r++) {
      int count = step == 2 ? 1 : step == 1 ? lengths[r] - lengths[r] / 2 : lengths[r] / 2;
      table_at[r] = r * 8;
      first[r + 1] = first[r] + count;
      kept[r] = first[r + 1] - 1;
    }
    float *hidden = exactly((size_t)(first[ROWS] * d->hidden) * sizeof(float));
    memcpy(hidden, embeddings, (size_t)(first[ROWS] * d->hidden) * sizeof(float));
    Step s = {first[ROWS], ROWS, step == 0 ? 0 : ROWS, hidden, first, start, table_at, tables, kept, logits};
    CHECK(!decoder_run(team, d, &s, &workspace), "no memory");
    for (int r = 0; r < ROWS; r++) start[r] += first[r + 1] - first[r];
    free(hidden);
  }
  workspace_free(&workspace);
}

static void test_decoder(int bits, int is_bf16) {
  Team *team = team_create(1);
  int kv_heads = between(1, 2), heads = kv_heads * between(1, 9), head_size = 16 * between(1, 3);
  int hidden = between(17, 90), intermediate = 16 * between(1, 6), vocabulary = between(1, 70);
  int attended = heads * head_size, positions = 8 * BLOCK, lengths[ROWS];
  for (int r = 0; r < ROWS; r++) lengths[r] = between(2, positions - 1);
  Layer layers[LAYERS] = {0};
  Decoder d = {LAYERS, hidden, heads, intermediate, head_size, positions, between(0, 1), 1e-5f, 0.25f, 1.0f,
               {kv_heads, head_size, is_bf16}, layers, numbers(hidden), numbers(positions * head_size / 2),
               numbers(positions * head_size / 2), make_linear(team, bits, hidden, vocabulary, 0)};
  size_t cache = (size_t)(BLOCKS * BLOCK * kv_heads * head_size) * (is_bf16 ? 2 : 4);
  for (int i = 0; i < LAYERS; i++) {
    layers[i] = (Layer){make_linear(team, bits, hidden, attended + 2 * kv_heads * head_size, 1),
                        make_linear(team, bits, attended, hidden, 0),
                        make_linear(team, bits, hidden, 2 * intermediate, 0),
                        make_linear(team, bits, intermediate, hidden, 0),
                        numbers(hidden), numbers(hidden), i ? numbers(head_size) : NULL, i ? numbers(head_size) : NULL,
                        exactly(cache), exactly(cache), i ? between(1, 40) : 0, 1};
  }
  float *embeddings = numbers(ROWS * positions * hidden), *want = numbers(ROWS * vocabulary);
  float *got = numbers(ROWS * vocabulary), logprobs[ROWS];
  int32_t rows[ROWS] = {2, 0, 1}, ids[ROWS];
  run_steps(team, &d, embeddings, lengths, want);
  team_destroy(team);
  for (int size = 1; size <= 4; size++) {
    team = team_create(size);
    clear_caches(&d, cache);
    run_steps(team, &d, embeddings, lengths, got);
    CHECK(!memcmp(got, want, (size_t)(ROWS * vocabulary) * sizeof(float)), "%d bits, %d threads: other logits", bits, size);
    greedy_run(team, got, rows, ROWS, vocabulary, ids, logprobs);
    for (int r = 0; r < ROWS; r++) CHECK(logprobs[r] <= 1e-6f, "row %d: log-probability %f", r, (double)logprobs[r]);
    team_destroy(team);
  }
  for (int i = 0; i < LAYERS; i++) {
    Layer *l = layers + i;
    free_linear(&l->qkv), free_linear(&l->output), free_linear(&l->gate_up), free_linear(&l->down);
    free((void *)l->attention_norm), free((void *)l->mlp_norm), free((void *)l->query_norm), free((void *)l->key_norm);
    free(l->keys), free(l->values);
  }
  free_linear(&d.head), free((void *)d.final_norm), free((void *)d.cosines), free((void *)d.sines);
  free(embeddings), free(want), free(got);
}

/* ---- Numbers that a sanitizer could stumble over. */

typedef struct {
  const Linear *linear;
  const Activations *a;
  float *out;
} Call;

static void call_linear(void *context, Member *member) {
  const Call *c = context;
  linear_run(member, c->linear, c->a, 1, c->out, c->linear->outputs, STORE, 1.0f);
  next_phase(member);
}

static void test_extremes(void) {
  const float values[] = {0.0f, -0.0f, 1e-45f, -1e-38f, 1e-36f, 3e38f, -3e38f, INFINITY, -INFINITY, NAN};
  Team *team = team_create(2);
  for (int bits = 4; bits <= 32; bits *= 2)
    for (int i = 0; i < 10; i++) {
      float weights[33 * 65], input[65] = {0}, out[33], scales[2];
      int8_t codes[2 * GROUP];
      int32_t sums[2];
      for (int k = 0; k < 33 * 65; k++) weights[k] = k % 3 ? values[i] : 0.0f;
      for (int k = 0; k < 65; k += 2) input[k] = values[i];
      Linear linear = {bits, 65, 33, exactly(linear_bytes(bits, 65, 33)), NULL};
      linear_pack(team, bits, 65, 33, weights, (uint8_t *)linear.panels);
      Activations a = {input, codes, scales, sums};
      quantize_tile(&a, 1, 0, 65, 0, 2);
      team_run(team, call_linear, &(Call){&linear, &a, out});
      for (int k = 0; k < 33; k++) CHECK(i < 5 ? fabsf(out[k]) < 1e-30f : i < 7 || !isfinite(out[k]), "%d bits, value %d", bits, i);
      free_linear(&linear);
    }
  team_destroy(team);
}

static void test_pages(void) {
  const size_t large = (size_t)2 << 20, sizes[] = {1, 4095, 4096, 4097, large - 1, large, large + 1, 2 * large - 4095, 3 * large};
  CHECK(!pages_create(0) && !pages_create(SIZE_MAX) && !pages_create(SIZE_MAX / 2), "memory out of nothing");
  for (int i = 0; i < 9; i++)
    for (int repeat = 0; repeat < 20; repeat++) {
      uint8_t *memory = pages_create(sizes[i]), *other = pages_create(sizes[i]);
      CHECK(memory && other && !memory[0] && !memory[sizes[i] - 1], "%zu bytes", sizes[i]);
      memset(memory, 1, sizes[i]), memset(other, 2, sizes[i]);
      CHECK(memory[0] == 1 && memory[sizes[i] - 1] == 1, "%zu bytes overlap", sizes[i]);
      pages_free(memory, sizes[i]);
      CHECK(other[0] == 2 && other[sizes[i] - 1] == 2, "%zu bytes went with others", sizes[i]);
      pages_free(other, sizes[i]);
    }
}

int main(int count, char **arguments) {
  int repeats = count > 1 ? atoi(arguments[1]) : 1;
  for (int i = 0; i < repeats; i++) {
    for (int size = 1; size <= 4; size++) test_threads(size, 400), team_destroy(team_create(size));
    for (int bits = 4; bits <= 32; bits *= 2) test_decoder(bits, 0), test_decoder(bits, 1);
  }
  test_extremes();
  test_pages();
  puts("ok");
  return 0;
}
