// What a recurrence kernel reads and writes. Tensors are contiguous and aligned to 16 bytes; N is heads, D = H / N.
#pragma once

#include <cstdint>

#include "cells.h"

namespace fastrnn {

#define FASTRNN_KIND(Cell, name) k##Cell,
enum class CellKind { FASTRNN_CELLS(FASTRNN_KIND) };
#undef FASTRNN_KIND

enum class ElementKind { kBfloat16, kFloat16, kTf32 };  // the storage dtype; tf32: float32, multiplied as TF32

constexpr int MOST_STATES = 8, MOST_INPUTS = 8;  // of a cell

using Pair = const void* [2];              // of the first direction, and of the second or null
using States = const void* [MOST_STATES];  // of each of a cell's states, h first; null beyond them
using Written = void* [MOST_STATES];       // likewise
using Inputs = const void* [MOST_INPUTS];  // of each input of the steps; null beyond them

// The fields of what a kernel is handed, X(type, name) each. The names are the only thing that the Python side knows of
// them: module.cpp sets each from the value of its name.
#define FASTRNN_SIZES(X) \
  X(int, T)              \
  X(int, B)              \
  X(int, H)              \
  X(int, heads)          \
  X(int, directions)     \
  X(bool, reverse) /* whether the first direction runs from the end; the second always does */

#define FASTRNN_FORWARD(X)                                                                              \
  X(const void*, gx)         /* (directions, T, B, Gx, H): x W_ihᵀ + b_ih */                            \
  X(Pair, w_hh)              /* (N, Gu·D, D) */                                                         \
  X(Pair, b_hh)              /* (Gu, H), or null where it is part of gx */                              \
  X(States, states0)         /* (directions, B, H) each */                                              \
  X(const void*, parameters) /* (directions, P, H), or null */                                          \
  X(Inputs, inputs)          /* (directions, T, B, H) each; at t >= length they may be NaN */           \
  X(const int64_t*, lengths) /* (B,), or null */                                                        \
  X(const uint8_t*, resets)  /* (T, B), or null */                                                      \
  X(Written, histories)      /* (T, B, directions·H) each: written; those beside h float32, or null */  \
  X(void*, gates)            /* (directions, T, B, S, H) float16, for tf32 float32: written, or null */ \
  X(Written, finals)         /* (directions, B, H) each: written */                                     \
  FASTRNN_SIZES(X)

#define FASTRNN_BACKWARD(X)                                                                             \
  X(Pair, w_hh)         /* (N, Gu·D, D) */                                                              \
  X(States, histories)  /* (T, B, directions·H) each, those beside h float32 */                         \
  X(const void*, gates) /* (directions, T, B, S, H): what forward saved; or (directions, T, B, W, H)    \
                           in the storage dtype, preactivations in the first of W blocks */             \
  X(bool, are_preactivations)                                                                           \
  X(States, states0)         /* (directions, B, H) each */                                              \
  X(const void*, parameters) /* (directions, P, H), or null */                                          \
  X(Inputs, inputs)          /* (directions, T, B, H) each; at t >= length they may be NaN */           \
  X(const int64_t*, lengths) /* (B,), or null */                                                        \
  X(const uint8_t*, resets)  /* (T, B), or null */                                                      \
  X(States, d_histories)     /* as histories, or null for zero */                                       \
  X(States, d_finals)        /* (directions, B, H) each, or null for zero */                            \
  X(void*, dgates)           /* (directions, T, B, W, H), W blocks: written, in the storage dtype, zero \
                                at t >= length */                                                       \
  X(Written, d_states0)      /* (directions, B, H) each: written */                                     \
  FASTRNN_SIZES(X)

#define FASTRNN_FIELD(Type, name) Type name;
struct ForwardArguments {
  FASTRNN_FORWARD(FASTRNN_FIELD)
};
struct BackwardArguments {
  FASTRNN_BACKWARD(FASTRNN_FIELD)
};
#undef FASTRNN_FIELD

// How the blocks of a grid divide a recurrence. A team, `blocks` consecutive ones, has the weights of one head and
// direction and computes up to `tiles` tiles of the batch, of eight sequences each, in turn within every step.
struct Teams {
  int count, blocks, tiles;
};

}  // namespace fastrnn
