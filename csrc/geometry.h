// What the planner and the launch know of a compiled kernel. Plain data, which a kernel's own source can lay out too.
#pragma once

#include "arguments.h"
#include "words.h"

namespace fastrnn {

enum class Operation { kForward, kBackward };

// Where the weights live: spread over the blocks of a cluster, which send each other the state, or over as many blocks
// of the grid as they need, a team, which see it in the device's memory.
enum class Way { kCluster, kGrid };

// Of a grid kernel: how its team and its shared memory grow with a head.
struct Spread {
  int block_units;       // that a block owns
  int slice_units;       // units of a head, of which
  int slice_tiles;       // a warp has so many tiles of weights,
  int register_tiles;    // so many in registers at most,
  int tile_bytes;        // and the others in shared memory
  int batch_tile_bytes;  // of shared memory for each tile of the batch
};

// A compiled kernel: what it computes and how it is launched.
struct Geometry {
  Way way;
  Operation operation;
  CellKind cell;
  ElementKind element;
  int gradients;     // blocks of them, of a unit
  int units;         // of a head at most
  int blocks;        // of a cluster; of a team, for the most units
  int threads;       // of a block
  int rows;          // sequences of a cluster; of a team, of each tile of the batch
  int shared_bytes;  // of a block; of a grid kernel's, without what `spread` adds
  Spread spread;     // of no meaning for a cluster kernel
};

// The geometry of the cluster kernel of shape `Shape`.
template <class Shape>
HOST_DEVICE constexpr Geometry cluster_geometry(Operation operation) {
  return {Way::kCluster,       operation,           Shape::Cell::KIND, Shape::Element::KIND,
          Shape::Cell::BLOCKS, Shape::UNITS,        Shape::BLOCKS,     Shape::THREADS,
          Shape::ROWS,         Shape::SHARED_BYTES, Spread{}};
}

// The geometry of the grid kernel of shape `Shape`.
template <class Shape>
HOST_DEVICE constexpr Geometry grid_geometry(Operation operation) {
  const Spread spread{Shape::BLOCK_UNITS,    Shape::SLICE_UNITS, Shape::SLICE_TILES,
                      Shape::REGISTER_TILES, Shape::TILE_BYTES,  Shape::BATCH_TILE_BYTES};
  return {Way::kGrid,
          operation,
          Shape::Cell::KIND,
          Shape::Element::KIND,
          Shape::Cell::BLOCKS,
          Shape::MOST_UNITS,
          Shape::MOST_UNITS / Shape::BLOCK_UNITS,
          Shape::THREADS,
          Shape::ROWS,
          Shape::SHARED_BYTES,
          spread};
}

}  // namespace fastrnn
