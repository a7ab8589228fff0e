/* The most likely token of each row of logits, and its log-probability. */
#ifndef TGI_GREEDY_H
#define TGI_GREEDY_H

#include <stdint.h>

#include "threads.h"

/* `rows` [count] name rows of logits [*, vocabulary]. Of equal logits the first wins; a row with a NaN, or an infinite
 * maximum, gets a NaN as its log-probability. */
void greedy_run(Team *team, const float *logits, const int32_t *rows, int count, int vocabulary, int32_t *ids,
                float *logprobs);

#endif
