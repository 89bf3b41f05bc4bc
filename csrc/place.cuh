// Which sequences, head and direction a cluster computes, and what masks them.
#pragma once

#include "arguments.h"
#include "device.cuh"
#include "masks.cuh"

namespace fastrnn {

// Clusters are numbered by tiles of the batch first, then heads, then directions. Each lane answers for one sequence of
// the tile, lane i for the one in row i % ROWS: how long it is, and where it is cut. All know by a ballot.
struct Place {
  static constexpr int ROWS = 8;  // sequences of a tile: the least that a product on tensor cores takes

  int first;  // the tile's first sequence
  int head, direction;
  bool backwards;  // whether the forward runs from the end
  int D, wide;     // units of a head; elements of a row of ys
  int asked;       // the sequence that this lane answers for
  int length;      // its live steps, none beyond the batch

  template <class Arguments>
  DEVICE explicit Place(const Arguments& a) {
    const int tiles = (a.B + ROWS - 1) / ROWS, id = device::cluster_id();
    first = id % tiles * ROWS;
    head = id / tiles % a.heads;
    direction = id / tiles / a.heads;
    backwards = direction == 1 || a.reverse;
    D = a.H / a.heads;
    wide = a.directions * a.H;
    asked = first + device::thread() % ROWS;
    length = masks::length(a, asked);
  }

  // The reset between steps t - 1 and t of the asked sequence, `at` in (T, B); zero outside of its live steps. It is
  // not compared to zero here: that would wait for the load.
  template <class Arguments>
  DEVICE uint8_t load_reset(const Arguments& a, int t, int64_t at) const {
    return a.resets && static_cast<unsigned>(t) < static_cast<unsigned>(length) ? a.resets[at] : 0;
  }
};

}  // namespace fastrnn
