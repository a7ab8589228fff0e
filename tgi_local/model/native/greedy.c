#include "greedy.h"

#include <math.h>

#include "vec.h"

/* A row is cut up the same way whatever the number of rows and threads, so its sum is always the same. */
#define PARTS 8
#define MAX_ROWS 64 /* at a time */

typedef struct {
  float maximum, sum; /* of e^(logit - maximum) */
} Part;

typedef struct {
  const float *logits;
  const int32_t *rows;
  int count, vocabulary;
  Part parts[MAX_ROWS][PARTS];
} Search;

static const float *part_of(const Search *s, int row, int part, int *size) {
  int first = (int)((int64_t)s->vocabulary * part / PARTS);
  *size = (int)((int64_t)s->vocabulary * (part + 1) / PARTS) - first;
  return s->logits + (size_t)s->rows[row] * (size_t)s->vocabulary + first;
}

static Part summarize(const float *v, int size) {
  f32x16 highest = splat(-INFINITY), total = {0};
  float maximum = -INFINITY, sum = 0.0f;
  int whole = size / LANES * LANES;
  for (int i = 0; i < whole; i += LANES) highest = max16(load16(v + i), highest);
  maximum = highest16(highest);
  for (int i = whole; i < size; i++) maximum = v[i] > maximum ? v[i] : maximum;
  if (maximum == -INFINITY) { /* all excluded, or NaN */
    for (int i = 0; i < size; i++) sum += v[i] == -INFINITY ? 0.0f : NAN;
    return (Part){maximum, sum};
  }
  for (int i = 0; i < whole; i += LANES) total += exp16(load16(v + i) - splat(maximum));
  float rest[LANES];
  for (int i = 0; i < LANES; i++) rest[i] = whole + i < size ? v[whole + i] : -INFINITY;
  total += exp16(load16(rest) - splat(maximum));
  return (Part){maximum, sum16(total)};
}

static void search_parts(void *context, Member *member) {
  Search *s = context;
  for (int piece; (piece = next_piece(member, s->count * PARTS)) >= 0;) {
    int size;
    const float *v = part_of(s, piece / PARTS, piece % PARTS, &size);
    s->parts[piece / PARTS][piece % PARTS] = summarize(v, size);
  }
  next_phase(member);
}

static int32_t first_equal(const Search *s, int row, int part, float value) {
  int size;
  const float *v = part_of(s, row, part, &size);
  for (int i = 0; i < size; i++)
    if (v[i] == value) return (int32_t)((int64_t)s->vocabulary * part / PARTS) + i;
  return 0; /* only beside a NaN */
}

void greedy_run(Team *team, const float *logits, const int32_t *rows, int count, int vocabulary, int32_t *ids,
                float *logprobs) {
  for (int first = 0; first < count; first += MAX_ROWS) {
    Search s = {.logits = logits, .rows = rows + first, .vocabulary = vocabulary};
    s.count = count - first < MAX_ROWS ? count - first : MAX_ROWS;
    team_run(team, search_parts, &s);
    for (int row = 0; row < s.count; row++) {
      int best = 0;
      float sum = 0.0f;
      for (int p = 1; p < PARTS; p++)
        if (s.parts[row][p].maximum > s.parts[row][best].maximum) best = p;
      float maximum = s.parts[row][best].maximum;
      for (int p = 0; p < PARTS; p++) sum += s.parts[row][p].sum * expf(s.parts[row][p].maximum - maximum);
      ids[first + row] = first_equal(&s, row, best, maximum);
      logprobs[first + row] = isinf(maximum) ? NAN : -logf(sum);
    }
  }
}
