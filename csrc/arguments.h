// What a recurrence kernel reads and writes. Tensors are contiguous and aligned to 16 bytes; N is heads, D = H / N.
#pragma once

#include <cstdint>

#include "cells.h"

namespace fastrnn {

#define FASTRNN_KIND(Cell, name) k##Cell,
enum class CellKind { FASTRNN_CELLS(FASTRNN_KIND) };
#undef FASTRNN_KIND

enum class ElementKind { kBfloat16, kFloat16, kTf32 };  // the storage dtype; tf32: float32, multiplied as TF32

using Pair = const void* [2];  // of the first direction, and of the second or null

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
  X(const void*, h0)         /* (directions, B, H) */                                                   \
  X(const void*, c0)         /* as h0, or null for a cell with one state */                             \
  X(const int64_t*, lengths) /* (B,), or null */                                                        \
  X(const uint8_t*, resets)  /* (T, B), or null */                                                      \
  X(void*, ys)               /* (T, B, directions·H): written */                                        \
  X(float*, cs)              /* (T, B, directions·H): written, or null */                               \
  X(void*, gates)            /* (directions, T, B, S, H) float16, for tf32 float32: written, or null */ \
  X(void*, h_last)           /* (directions, B, H): written */                                          \
  X(void*, c_last)           /* as h_last, or null */                                                   \
  FASTRNN_SIZES(X)

#define FASTRNN_BACKWARD(X)                                                                                        \
  X(Pair, w_hh)         /* (N, Gu·D, D) */                                                                         \
  X(const void*, ys)    /* (T, B, directions·H) */                                                                 \
  X(const float*, cs)   /* (T, B, directions·H), or null */                                                        \
  X(const void*, gates) /* (directions, T, B, S, H): what forward saved, or preactivations in the storage dtype */ \
  X(bool, are_preactivations)                                                                                      \
  X(const void*, h0)         /* (directions, B, H) */                                                              \
  X(const void*, c0)         /* as h0, or null */                                                                  \
  X(const int64_t*, lengths) /* (B,), or null */                                                                   \
  X(const uint8_t*, resets)  /* (T, B), or null */                                                                 \
  X(const void*, dys)        /* (T, B, directions·H), or null for zero */                                          \
  X(const float*, dcs)       /* (T, B, directions·H), or null for zero */                                          \
  X(const void*, dh_last)    /* (directions, B, H), or null for zero */                                            \
  X(const void*, dc_last)    /* as dh_last, or null */                                                             \
  X(void*, dgates) /* (directions, T, B, W, H), W blocks: written, in the storage dtype, zero at t >= length */    \
  X(void*, dh0)    /* (directions, B, H): written */                                                               \
  X(void*, dc0)    /* as dh0, or null */                                                                           \
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
