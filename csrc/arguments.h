// What a recurrence kernel reads and writes. Tensors are contiguous and aligned to 16 bytes; N is heads, D = H / N.
#pragma once

#include <cstdint>

#include "cells.h"

namespace fastrnn {

#define FASTRNN_KIND(Cell, name) k##Cell,
enum class CellKind { FASTRNN_CELLS(FASTRNN_KIND) };
#undef FASTRNN_KIND

enum class ElementKind { kBfloat16, kFloat16, kTf32 };  // the storage dtype; tf32: float32, multiplied as TF32

// Pointers that depend on the direction are pairs: the first direction's, and the second's or null.
struct ForwardArguments {
  const void* gx;          // (directions, T, B, G, H): x W_ihᵀ + b_ih
  const void* w_hh[2];     // (N, G·D, D)
  const void* b_hh[2];     // (G, H), or null where it is part of gx
  const void* h0;          // (directions, B, H)
  const void* c0;          // as h0, or null for a cell with one state
  const int64_t* lengths;  // (B,), or null
  const uint8_t* resets;   // (T, B), or null
  void* ys;                // (T, B, directions·H): written
  float* cs;               // (T, B, directions·H): written, or null
  void* gates;             // (directions, T, B, S, H) float16, for tf32 float32: written, or null
  void* h_last;            // (directions, B, H): written
  void* c_last;            // as h_last, or null
  int T, B, H, heads, directions;
  bool reverse;  // whether the first direction runs from the end; the second always does
};

struct BackwardArguments {
  const void* w_hh[2];  // (N, G·D, D)
  const void* ys;       // (T, B, directions·H)
  const float* cs;      // (T, B, directions·H), or null
  const void* gates;    // (directions, T, B, S, H): what forward saved, or preactivations in the storage dtype
  bool are_preactivations;
  const void* h0;          // (directions, B, H)
  const void* c0;          // as h0, or null
  const int64_t* lengths;  // (B,), or null
  const uint8_t* resets;   // (T, B), or null
  const void* dys;         // (T, B, directions·H), or null for zero
  const float* dcs;        // (T, B, directions·H), or null for zero
  const void* dh_last;     // (directions, B, H), or null for zero
  const void* dc_last;     // as dh_last, or null
  void* dgates;            // (directions, T, B, max(S, G), H): written, in the storage dtype, zero at t >= length
  void* dh0;               // (directions, B, H): written
  void* dc0;               // as dh0, or null
  int T, B, H, heads, directions;
  bool reverse;
};

// How the blocks of a grid divide a recurrence. A team, `blocks` consecutive ones, has the weights of one head and
// direction and computes up to `tiles` tiles of the batch, of eight sequences each, in turn within every step.
struct Teams {
  int count, blocks, tiles;
};

}  // namespace fastrnn
