#include "linear.h"

#include <math.h>

#include "vec.h"

#define QUADS (GROUP / 4)
#define TILES_PER_PIECE 64 /* so that their activations stay in the last level of cache from panel to panel */
#ifdef __AVX512F__
#define MAX_TILE 6 /* of the 32 registers, two integer and two float accumulators for each token */
#else
#define MAX_TILE 1
#endif

INLINE int code_bytes(int bits) { return GROUP * PANEL * bits / 8; }
INLINE int group_bytes(int bits) { return code_bytes(bits) + (bits == 4 ? PANEL * 2 : 0); }
int num_groups(int inputs) { return (inputs + GROUP - 1) / GROUP; }

static size_t panel_bytes(int bits, int inputs) {
  if (bits <= 8) return (size_t)num_groups(inputs) * (size_t)group_bytes(bits) + (bits == 8 ? PANEL * 4 : 0);
  return (size_t)inputs * PANEL * (size_t)bits / 8;
}

size_t linear_bytes(int bits, int inputs, int outputs) {
  return (size_t)((outputs + PANEL - 1) / PANEL) * panel_bytes(bits, inputs);
}

/* ---- Packing. */

typedef struct {
  int bits, inputs, outputs;
  const float *weights;
  uint8_t *panels;
} Packing;

/* The code of the largest magnitude is the lowest one, which has no positive counterpart: 8 or 128 steps from zero.
 * NaN if a weight is, or it would become a number. */
static float scale_for(const float *weights, int count, int zero) {
  float extreme = 0.0f;
  for (int i = 0; i < count; i++) {
    if (isnan(weights[i])) return NAN;
    if (fabsf(weights[i]) > fabsf(extreme)) extreme = weights[i];
  }
  return extreme / (float)-zero;
}

static int encode(float weight, float inverse, int zero) {
  float code = nearbyintf(weight * inverse) + (float)zero;
  if (isnan(code)) return zero;
  return code < 0.0f ? 0 : code > (float)(2 * zero - 1) ? 2 * zero - 1 : (int)code;
}

static void pack_quantized(const Packing *p, int panel, uint8_t *out) {
  int zero = p->bits == 8 ? 128 : 8, groups = num_groups(p->inputs);
  uint8_t *end = out + (size_t)groups * (size_t)group_bytes(p->bits);
  memset(out, 0, panel_bytes(p->bits, p->inputs));
  for (int c = 0; c < PANEL; c++) {
    int channel = panel * PANEL + c;
    int inputs = channel < p->outputs ? p->inputs : 0;
    const float *weights = p->weights + (inputs ? (size_t)channel * (size_t)inputs : 0);
    float scale = scale_for(weights, inputs, zero);
    if (p->bits == 8) ((float *)end)[c] = scale;
    for (int g = 0; g < groups; g++) {
      uint8_t *group = out + (size_t)g * (size_t)group_bytes(p->bits);
      int begin = inputs ? g * GROUP : 0, count = inputs - begin < GROUP ? inputs - begin : GROUP;
      if (p->bits == 4) {
        uint16_t rounded = to_bf16(scale_for(weights + begin, count, zero));
        ((uint16_t *)(group + code_bytes(4)))[c] = rounded;
        scale = from_bf16(rounded);
      }
      float inverse = scale == 0.0f ? 0.0f : 1.0f / scale;
      for (int i = 0; i < GROUP; i++) {
        int code = i < count ? encode(weights[begin + i], inverse, zero) : zero;
        if (p->bits == 8) group[i / 4 * PANEL * 4 + c * 4 + i % 4] = (uint8_t)code;
        else group[i / 4 * LANES * 4 + c % LANES * 4 + i % 4] |= (uint8_t)(c < LANES ? code : code << 4);
      }
    }
  }
}

static void pack_dense(const Packing *p, int panel, uint8_t *out) {
  for (int c = 0; c < PANEL; c++) {
    int channel = panel * PANEL + c;
    for (int i = 0; i < p->inputs; i++) {
      float weight = channel < p->outputs ? p->weights[(size_t)channel * (size_t)p->inputs + i] : 0.0f;
      if (p->bits == 16) ((uint16_t *)out)[i * PANEL + c] = to_bf16(weight);
      else ((float *)out)[i * PANEL + c] = weight;
    }
  }
}

static void pack_work(void *context, Member *member) {
  const Packing *p = context;
  int panels = (p->outputs + PANEL - 1) / PANEL;
  for (int panel; (panel = next_piece(member, panels)) >= 0;) {
    uint8_t *out = p->panels + (size_t)panel * panel_bytes(p->bits, p->inputs);
    if (p->bits > 8) pack_dense(p, panel, out);
    else pack_quantized(p, panel, out);
  }
  next_phase(member);
}

void linear_pack(Team *team, int bits, int inputs, int outputs, const float *weights, uint8_t *panels) {
  Packing packing = {bits, inputs, outputs, weights, panels};
  team_run(team, pack_work, &packing);
}

/* ---- Activations. */

#define SMALLEST 1e-36f /* 127 divided by less than this is infinite; such values count as zero */

static void quantize_group(const float *values, int count, int32_t codes[QUADS], float *scale, int32_t *sum) {
  typedef int8_t i8x16 __attribute__((vector_size(16)));
  float padded[GROUP];
  if (count < GROUP) {
    memset(padded, 0, sizeof padded);
    memcpy(padded, values, (size_t)count * sizeof(float));
    values = padded;
  }
  f32x16 v[GROUP / LANES], highest = splat(0.0f), zeros = splat(0.0f);
  for (int i = 0; i < GROUP / LANES; i++) {
    v[i] = load16(values + i * LANES);
    highest = max16(max16(v[i], -v[i]), highest);
    zeros = fma16(v[i], splat(0.0f), zeros);
  }
  float extreme = highest16(highest), finite = sum16(zeros);
  /* A NaN or an infinity among the values must not become a number: its product with zero is NaN, and the scale. */
  if (finite != 0.0f) {
    memset(codes, 0, GROUP);
    *scale = finite;
    *sum = 0;
    return;
  }
  float inverse = extreme > SMALLEST ? 127.0f / extreme : 0.0f;
  i32x16 total = {0};
  for (int i = 0; i < GROUP / LANES; i++) {
    /* Adding 1.5 * 2^23 leaves the nearest integer in the low bits. */
    i32x16 code = (i32x16)(fma16(v[i], splat(inverse), splat(12582912.0f))) - 0x4b400000;
    total += code;
    i8x16 narrow = __builtin_convertvector(code, i8x16);
    memcpy(codes + i * LANES / 4, &narrow, LANES);
  }
  *scale = extreme / 127.0f;
  *sum = sum16_int(total);
}

int num_tiles(int tokens) { return (tokens + MAX_TILE - 1) / MAX_TILE; }
int tile_start(int tokens, int tile) { return (int)((int64_t)tokens * tile / num_tiles(tokens)); }

void quantize_tile(const Activations *a, int tokens, int tile, int inputs, int first, int last) {
  int start = tile_start(tokens, tile), size = tile_start(tokens, tile + 1) - start, groups = num_groups(inputs);
  for (int g = first; g < last; g++) {
    size_t at = (size_t)start * (size_t)groups + (size_t)g * (size_t)size;
    int count = inputs - g * GROUP < GROUP ? inputs - g * GROUP : GROUP;
    for (int t = 0; t < size; t++) {
      int32_t codes[QUADS], *out = (int32_t *)(a->codes + at * GROUP) + t;
      const float *values = a->values + (size_t)(start + t) * (size_t)inputs + (size_t)g * GROUP;
      quantize_group(values, count, codes, a->scales + at + t, a->sums + at + t);
      for (int quad = 0; quad < QUADS; quad++) out[quad * size] = codes[quad];
    }
  }
}

/* ---- Products. */

/* acc + the products of four unsigned bytes per lane with four signed ones that all lanes share. */
INLINE i32x16 dot4(i32x16 acc, u8x64 w, int32_t a) {
#ifdef __AVX512VNNI__
  return (i32x16)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, _mm512_set1_epi32(a));
#else
  union { u8x64 v; __m256i h[2]; } x = {w};
  union { i32x16 v; __m256i h[2]; } y = {acc};
  __m256i even_a = _mm256_set1_epi32((int32_t)((uint32_t)(uint16_t)(int8_t)a | (uint32_t)(int32_t)(int8_t)(a >> 16) << 16));
  __m256i odd_a = _mm256_set1_epi32((int32_t)((uint32_t)(uint16_t)(int8_t)(a >> 8) | (uint32_t)(int32_t)(int8_t)(a >> 24) << 16));
  for (int i = 0; i < 2; i++) {
    __m256i even = _mm256_and_si256(x.h[i], _mm256_set1_epi16(0xff)), odd = _mm256_srli_epi16(x.h[i], 8);
    y.h[i] = _mm256_add_epi32(y.h[i], _mm256_add_epi32(_mm256_madd_epi16(even, even_a), _mm256_madd_epi16(odd, odd_a)));
  }
  return y.v;
#endif
}

/* Memory that will be needed soon: so many cache lines to fetch with each group. */
typedef struct {
  const uint8_t *at;
  int lines;
} Upcoming;

/* out[token][PANEL] of one panel for `n` tokens of quantized activations. */
INLINE void tile_quantized(const int n, const int bits, const uint8_t *panel, Upcoming next, int groups,
                           const int8_t *codes,
                           const float *scales, const int32_t *sums, float out[][PANEL]) {
  const int zero = bits == 8 ? 128 : 8;
  f32x16 total[MAX_TILE][2];
#pragma GCC unroll 8
  for (int t = 0; t < n; t++) total[t][0] = total[t][1] = (f32x16){0};
  for (int g = 0; g < groups; g++) {
    i32x16 acc[MAX_TILE][2];
    for (int line = 0; line < next.lines; line++, next.at += 64) __builtin_prefetch(next.at);
#pragma GCC unroll 8
    for (int t = 0; t < n; t++) acc[t][0] = acc[t][1] = (i32x16){0} - zero * sums[t];
    for (int quad = 0; quad < QUADS; quad++) {
      u8x64 low, high;
      if (bits == 8) {
        low = *(const u8x64_u *)(panel + quad * PANEL * 4);
        high = *(const u8x64_u *)(panel + quad * PANEL * 4 + 64);
      } else {
        typedef uint16_t u16x32 __attribute__((vector_size(64)));
        u8x64 both = *(const u8x64_u *)(panel + quad * PANEL * 2);
        low = both & 15;
        high = (u8x64)((u16x32)both >> 4) & 15;
      }
#pragma GCC unroll 8
      for (int t = 0; t < n; t++) {
        int32_t a;
        memcpy(&a, codes + (quad * n + t) * 4, 4);
        acc[t][0] = dot4(acc[t][0], low, a);
        acc[t][1] = dot4(acc[t][1], high, a);
      }
    }
    const uint16_t *weight_scales = (const uint16_t *)(panel + code_bytes(4));
    f32x16 one = splat(1.0f), scale0 = bits == 4 ? load_bf16(weight_scales) : one;
    f32x16 scale1 = bits == 4 ? load_bf16(weight_scales + LANES) : one;
#pragma GCC unroll 8
    for (int t = 0; t < n; t++) {
      f32x16 s = splat(scales[t]);
      f32x16 v0 = __builtin_convertvector(acc[t][0], f32x16), v1 = __builtin_convertvector(acc[t][1], f32x16);
      if (bits == 4) v0 *= scale0, v1 *= scale1;
      total[t][0] = fma16(v0, s, total[t][0]);
      total[t][1] = fma16(v1, s, total[t][1]);
    }
    panel += group_bytes(bits);
    codes += n * GROUP;
    scales += n;
    sums += n;
  }
  f32x16 scale0 = bits == 8 ? load16((const float *)panel) : splat(1.0f);
  f32x16 scale1 = bits == 8 ? load16((const float *)panel + LANES) : splat(1.0f);
#pragma GCC unroll 8
  for (int t = 0; t < n; t++) {
    store16(out[t], bits == 8 ? total[t][0] * scale0 : total[t][0]);
    store16(out[t] + LANES, bits == 8 ? total[t][1] * scale1 : total[t][1]);
  }
}

/* The same for dense weights: plain float arithmetic, input by input. */
INLINE void tile_dense(const int n, const int bits, const uint8_t *panel, int inputs, const float *values,
                       float out[][PANEL]) {
  f32x16 total[MAX_TILE][2];
#pragma GCC unroll 8
  for (int t = 0; t < n; t++) total[t][0] = total[t][1] = (f32x16){0};
  for (int i = 0; i < inputs; i++) {
    f32x16 w0, w1;
    if (bits == 16) {
      w0 = load_bf16((const uint16_t *)panel + i * PANEL);
      w1 = load_bf16((const uint16_t *)panel + i * PANEL + LANES);
    } else {
      w0 = load16((const float *)panel + i * PANEL);
      w1 = load16((const float *)panel + i * PANEL + LANES);
    }
#pragma GCC unroll 8
    for (int t = 0; t < n; t++) {
      f32x16 a = splat(values[(size_t)t * (size_t)inputs + (size_t)i]);
      total[t][0] = fma16(a, w0, total[t][0]);
      total[t][1] = fma16(a, w1, total[t][1]);
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < n; t++) {
    store16(out[t], total[t][0]);
    store16(out[t] + LANES, total[t][1]);
  }
}

/* One variant of a kernel for every size of a tile. */
#define TILES(F, ...)                 \
  switch (n) {                        \
    case 1: F(1, __VA_ARGS__); break; \
    MORE_TILES(F, __VA_ARGS__)        \
  }
#if MAX_TILE == 6
#define MORE_TILES(F, ...)            \
    case 2: F(2, __VA_ARGS__); break; \
    case 3: F(3, __VA_ARGS__); break; \
    case 4: F(4, __VA_ARGS__); break; \
    case 5: F(5, __VA_ARGS__); break; \
    case 6: F(6, __VA_ARGS__); break;
#else
#define MORE_TILES(F, ...)
#endif

static void tile(const Linear *l, const uint8_t *panel, Upcoming next, const Activations *a, int token, int n,
                 float out[][PANEL]) {
  int groups = num_groups(l->inputs);
  size_t at = (size_t)token * (size_t)groups;
  const float *values = a->values + (size_t)token * (size_t)l->inputs;
  switch (l->bits) {
    case 4: TILES(tile_quantized, 4, panel, next, groups, a->codes + at * GROUP, a->scales + at, a->sums + at, out) break;
    case 8: TILES(tile_quantized, 8, panel, next, groups, a->codes + at * GROUP, a->scales + at, a->sums + at, out) break;
    case 16: TILES(tile_dense, 16, panel, l->inputs, values, out) break;
    default: TILES(tile_dense, 32, panel, l->inputs, values, out)
  }
}

/* x / (1 + e^v). Where e^v would be infinite the result is zero for any x. */
INLINE f32x16 gate16(f32x16 x, f32x16 v) { return x / (splat(1.0f) + exp16(min16(splat(88.0f), v))); }

INLINE f32x16 silu16(f32x16 x) { return gate16(x, -x); }

/* x * (1 + tanh(u)) / 2 = x / (1 + e^-2u), u = sqrt(2 / pi) * (x + 0.044715 x^3). */
INLINE f32x16 gelu_tanh16(f32x16 x) {
  f32x16 u = splat(0.7978845608028654f) * fma16(splat(0.044715f) * x * x, x, x);
  return gate16(x, splat(-2.0f) * u);
}

/* Add a token's results of one panel to, or put them into, the PANEL places at `out`. */
INLINE void put(const float results[PANEL], const float *bias, float *out, const Epilogue epilogue, float scale) {
  f32x16 v0 = load16(results), v1 = load16(results + LANES);
  if (bias) v0 += load16(bias), v1 += load16(bias + LANES);
  if (epilogue == GATE_SILU) store16(out, silu16(v0) * v1);
  else if (epilogue == GATE_GELU_TANH) store16(out, gelu_tanh16(v0) * v1);
  else if (epilogue == ADD) {
    store16(out, fma16(splat(scale), v0, load16(out)));
    store16(out + LANES, fma16(splat(scale), v1, load16(out + LANES)));
  } else {
    store16(out, v0);
    store16(out + LANES, v1);
  }
}

INLINE void finish(const Linear *l, int panel, const float results[PANEL], float *out, const Epilogue epilogue, float scale) {
  const int is_gated = epilogue == GATE_SILU || epilogue == GATE_GELU_TANH;
  int first = panel * PANEL, count = l->outputs - first;
  const float *bias = l->bias ? l->bias + first : NULL;
  out += is_gated ? first / 2 : first;
  if (count >= PANEL) {
    put(results, bias, out, epilogue, scale);
    return;
  }
  float whole[PANEL] = {0}, whole_bias[PANEL] = {0}; /* the last panel, partly empty */
  size_t bytes = (size_t)(is_gated ? count / 2 : count) * sizeof(float);
  memcpy(whole, out, bytes);
  if (bias) memcpy(whole_bias, bias, (size_t)count * sizeof(float));
  put(results, bias ? whole_bias : NULL, whole, epilogue, scale);
  memcpy(out, whole, bytes);
}

/* Up to this many tokens a piece is a stretch of panels: memory is read best in long ones. */
#define FEW_TOKENS (TILES_PER_PIECE * MAX_TILE)
#define PIECES_PER_THREAD 6

static int panels_per_piece(const Member *member, int panels, int tokens) {
  int pieces = PIECES_PER_THREAD * team_size(member->team);
  return tokens > FEW_TOKENS || panels < 2 * pieces ? 1 : panels / pieces;
}

/* Each of the `tiles` that a panel is used for fetches a part of the next one, or the first of them would wait for
 * memory and the others leave it idle. More lines at a time than the processor can have under way would only block. */
#define MAX_LINES 6

static Upcoming upcoming(const Linear *l, int panel, int panels, int tile, int tiles) {
  if (panel >= panels || l->bits > 8) return (Upcoming){NULL, 0};
  int all = group_bytes(l->bits) / 64, lines = (all + tiles - 1) / tiles, begin = tile * lines;
  if (lines > MAX_LINES || begin >= all) return (Upcoming){NULL, 0};
  const uint8_t *next = l->panels + (size_t)panel * panel_bytes(l->bits, l->inputs);
  return (Upcoming){next + (size_t)num_groups(l->inputs) * (size_t)begin * 64, lines < all - begin ? lines : all - begin};
}

void linear_run(Member *member, const Linear *l, const Activations *a, int tokens, float *out, int stride,
                Epilogue epilogue, float scale) {
  int panels = (l->outputs + PANEL - 1) / PANEL, width = panels_per_piece(member, panels, tokens);
  int tiles = num_tiles(tokens), columns = (panels + width - 1) / width;
  int pieces = (tiles + TILES_PER_PIECE - 1) / TILES_PER_PIECE * columns;
  size_t bytes = panel_bytes(l->bits, l->inputs);
  for (int piece; (piece = next_piece(member, pieces)) >= 0;) {
    int first = piece / columns * TILES_PER_PIECE, first_panel = piece % columns * width;
    int last = first + TILES_PER_PIECE < tiles ? first + TILES_PER_PIECE : tiles;
    int last_panel = first_panel + width < panels ? first_panel + width : panels;
    int step = width == 1 ? team_size(member->team) : 1;
    for (int panel = first_panel; panel < last_panel; panel++)
      for (int i = first; i < last; i++) {
        float results[MAX_TILE][PANEL];
        int token = tile_start(tokens, i), n = tile_start(tokens, i + 1) - token;
        tile(l, l->panels + (size_t)panel * bytes, upcoming(l, panel + step, panels, i - first, last - first), a, token, n,
             results);
        float *to = out + (size_t)token * (size_t)stride;
        switch (epilogue) {
#define CASE(E) case E: for (int t = 0; t < n; t++) finish(l, panel, results[t], to + (size_t)t * (size_t)stride, E, scale); break;
          CASE(STORE) CASE(ADD) CASE(GATE_SILU) CASE(GATE_GELU_TANH)
#undef CASE
        }
      }
  }
}
