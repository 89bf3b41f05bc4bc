// How the grid kernels spread a head's recurrent weights over a team's blocks, warps and registers.
#pragma once

#include "../cells.cuh"
#include "../device.cuh"
#include "../elements.cuh"

namespace fastrnn::grid {

// A block owns BLOCK_UNITS hidden units. Its product has their rows for its M, in M_GATES gates, eight sequences for
// its N, and sums over all units of the head in K_GATES gates; all of its warps share that sum.
//
// Units are summed over in slices of SLICE_UNITS: of a slice and gate a lane reads one vector of 16 bytes of one
// sequence's row, four lanes of a warp WARP_UNITS in a row, and its warps the slice. How many slices there are follows
// from the head's size, which is known only when the kernel runs; the weights of the first ones are in registers.
//
// KEPT is how many numbers an item, a unit of one sequence, keeps from step to step.
template <class Cell_, class Element_, int BLOCK_UNITS_, int REGISTER_TILES_, int M_GATES_, int K_GATES_, int KEPT_>
struct Shape {
  using Cell = Cell_;
  using Element = Element_;
  using Word = typename Element::Word;
  static_assert(Served<Cell>::value);
  static constexpr int WARPS = 8, THREADS = WARPS * 32;
  static constexpr int ROWS = 8;   // sequences of a tile of the batch: the least that a product takes
  static constexpr int TILE = 16;  // rows of a tile of weights
  static constexpr int BLOCK_UNITS = BLOCK_UNITS_, ITEMS = BLOCK_UNITS * ROWS;
  static constexpr int M_GATES = M_GATES_, K_GATES = K_GATES_, KEPT = KEPT_;

  static constexpr int VECTOR = VECTOR_BYTES / sizeof(Word);  // elements
  static constexpr int WARP_UNITS = 4 * VECTOR;
  static constexpr int SLICE_UNITS = WARPS * WARP_UNITS;
  static constexpr int K_TILES = WARP_UNITS / Element::TILE_K;  // that a vector is a part of
  static constexpr int UNIT_TILES = BLOCK_UNITS / TILE;
  static constexpr int M_TILES = M_GATES * UNIT_TILES;
  static constexpr int SLICE_TILES = K_GATES * K_TILES * M_TILES;  // of a warp

  // Vectors that a lane waits for at a time; as many again are on their way.
  static constexpr int GROUP = 4;
  // Sums of a tile of rows that a warp has under way: a product waits for the one before in the same sum.
  static constexpr int LEAST_SUMS = 4;
  static constexpr int CHAINS = M_TILES < LEAST_SUMS ? LEAST_SUMS / M_TILES : 1;

  // Shared memory: the warps' sums in two buffers; what the planner adds for each tile of the batch, the items' numbers
  // and the sequences' lengths; and for the head's size, weights that are not in registers.
  static constexpr int TILE_BYTES = 32 * sizeof(word4);
  static constexpr int SUM_BYTES = WARPS * M_TILES * TILE * ROWS * sizeof(float);
  static constexpr int SHARED_BYTES = 2 * SUM_BYTES;
  static constexpr int BATCH_TILE_BYTES = (ITEMS * KEPT + ROWS) * sizeof(float);

  // A lane's tile takes 4 of 255 registers.
  static constexpr int REGISTER_TILES = REGISTER_TILES_;
  static constexpr int MOST_SHARED_BYTES = 227 << 10;  // of a block on sm_90
  static constexpr int MOST_SHARED_TILES = (MOST_SHARED_BYTES - SHARED_BYTES - BATCH_TILE_BYTES) / (WARPS * TILE_BYTES);
  static constexpr int MOST_TILES = REGISTER_TILES + MOST_SHARED_TILES;
  static constexpr int LARGEST = 2048;  // units
  static constexpr int MOST_SLICES =
      MOST_TILES / SLICE_TILES < LARGEST / SLICE_UNITS ? MOST_TILES / SLICE_TILES : LARGEST / SLICE_UNITS;
  static constexpr int MOST_UNITS = MOST_SLICES * SLICE_UNITS;

  static_assert(K_TILES == 2, "a vector's words are two for each of two tiles");
  static_assert(BLOCK_UNITS % TILE == 0 && MOST_UNITS % BLOCK_UNITS == 0, "a block has whole tiles");
  static_assert(ITEMS <= THREADS && ITEMS % 32 == 0, "a thread finishes at most one item, and a warp all or none");
  static_assert(BATCH_TILE_BYTES % VECTOR_BYTES == 0, "weights behind the tiles of the batch are aligned");
};

// What is compiled: an RNN has one gate, so that a block of as many rows has more units.
template <class Cell>
constexpr int USUAL_UNITS = Cell::U_GATES == 1 ? 32 : 16;
constexpr int USUAL_TILES = 32;

// Rows of the product are the units' gates, the sum is over the state.
template <class Cell, class Element, int BLOCK_UNITS = USUAL_UNITS<Cell>, int REGISTER_TILES = USUAL_TILES>
struct ForwardShape : Shape<Cell, Element, BLOCK_UNITS, REGISTER_TILES, Cell::U_GATES, 1, Cell::STATES> {};

// Rows of the product are units, the sum is over the gates' gradients. An item keeps, beside the gradients of its
// states, whether the product's share of them counts.
template <class Cell, class Element, int BLOCK_UNITS = USUAL_UNITS<Cell>, int REGISTER_TILES = USUAL_TILES>
struct BackwardShape : Shape<Cell, Element, BLOCK_UNITS, REGISTER_TILES, 1, Cell::U_GATES, Cell::STATES + 1> {};

}  // namespace fastrnn::grid
