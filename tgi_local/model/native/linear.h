/* Linear layers over packed weights of 4, 8, 16 or 32 bits.
 *
 * Weights lie in panels of PANEL output channels. At 16 (bfloat16) and 32 bits a panel is [inputs][PANEL]. At 4 and 8
 * bits its inputs come in groups of GROUP (the last filled up with zeros): weight = (code - zero point) * scale, zero
 * point 8 or 128. Codes are ordered [GROUP / 4][PANEL][4], which is how one instruction takes the products of four
 * bytes. At 4 bits the channels of the panel's first half are the low nibbles, and one bfloat16 scale per channel
 * follows each group; at 8 bits one float per channel follows the whole panel.
 *
 * Activations meet such weights as signed bytes, with a scale of their own per token and group. Sums of products of
 * codes are exact integers and every token is computed by the same operations in the same order, so a token's result
 * does not depend on how many others there are. */
#ifndef TGI_LINEAR_H
#define TGI_LINEAR_H

#include <stddef.h>
#include <stdint.h>

#include "threads.h"

#define PANEL 32
#define GROUP 64

typedef struct {
  int32_t bits;
  int32_t inputs;
  int32_t outputs;
  const uint8_t *panels;
  const float *bias; /* [outputs] or NULL */
} Linear;

/* A batch of activations as a linear takes them. Quantized ones lie tile by tile and group by group, so that a kernel
 * reads them in one stream. */
typedef struct {
  const float *values;  /* [tokens, inputs] */
  int8_t *codes;        /* per tile [groups, GROUP / 4, tokens of the tile, 4] */
  float *scales;        /* per tile [groups, tokens of the tile] */
  int32_t *sums;        /* the same, of the codes */
} Activations;

/* The gates are for linears whose panels are 16 gate channels and the 16 up channels they go with. */
typedef enum { STORE, ADD, GATE_SILU, GATE_GELU_TANH } Epilogue;

int num_groups(int inputs);
size_t linear_bytes(int bits, int inputs, int outputs);
/* Pack weights [outputs, inputs] into `panels`, in parallel. */
void linear_pack(Team *team, int bits, int inputs, int outputs, const float *weights, uint8_t *panels);
/* Tokens are taken in tiles as equal as can be (8 are 4 + 4): how many, and where each begins. */
int num_tiles(int tokens);
int tile_start(int tokens, int tile);
/* Quantize groups [first, last) of the values of one tile's tokens. */
void quantize_tile(const Activations *a, int tokens, int tile, int inputs, int first, int last);
/* One phase of a run: out [tokens, stride] = the linear of the activations, or += `scale` times it. */
void linear_run(Member *member, const Linear *linear, const Activations *a, int tokens, float *out, int stride,
                Epilogue epilogue, float scale);

#endif
