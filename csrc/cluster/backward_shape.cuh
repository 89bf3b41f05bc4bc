// How the backward kernel spreads a head's recurrent weights over a cluster's blocks, warps and registers.
#pragma once

#include "../cells.cuh"
#include "../device.cuh"
#include "../elements.cuh"
#include "../memory.cuh"
#include "../place.cuh"

namespace fastrnn::cluster {

// A block owns UNITS / BLOCKS hidden units and all gates of them: their rows of w_hh, of which it multiplies the
// transpose by their gradients, for all units of the state before. A tile is 16 of those units, the rows of the
// product, by TILE_K of the block's gate rows, gate after gate, over which it sums. Warps divide the tiles along the
// units and never the sum.
//
// An item is one unit of one sequence, whose gates' gradients one thread computes. In a cluster what they need comes
// from all blocks, and a warp takes 16 units of its block by two sequences; a block on its own has nothing to wait for,
// and its lanes take the units and sequences that their sums hold.
template <class Cell_, class Element_, int UNITS_, int BLOCKS_, int M_WARPS_, int K_WARPS_>
struct BackwardShape {
  using Cell = Cell_;
  using Element = Element_;
  using Word = typename Element::Word;
  static_assert(Served<Cell>::value);
  static constexpr int UNITS = UNITS_;    // D, padded
  static constexpr int BLOCKS = BLOCKS_;  // of a cluster
  static constexpr int WARPS = M_WARPS_, THREADS = WARPS * 32;
  static constexpr int ROWS = Place::ROWS;
  static constexpr int TILE = 16;
  static constexpr int TILE_K = Element::TILE_K;

  static constexpr int U_GATES = Cell::U_GATES;
  static constexpr int BLOCK_UNITS = UNITS / BLOCKS;
  static constexpr int M_TILES = UNITS / TILE / WARPS;                // along units, of a warp
  static constexpr int K_TILES = U_GATES * BLOCK_UNITS / TILE_K;      // along gate rows
  static constexpr int TILES = M_TILES * K_TILES;                     // of a warp
  static constexpr int ITEMS = BLOCK_UNITS * ROWS / THREADS;          // of a thread
  static constexpr int UNIT_ITEMS = BLOCKS == 1 ? ITEMS / 2 : ITEMS;  // units among them
  static constexpr int OWNED_TILES = BLOCK_UNITS / TILE;              // of units, of a block
  static constexpr int PAIRS = ROWS / 2;                              // of sequences
  static constexpr int LANE_SUMS = TILE * ROWS / 32;                  // of a tile's product, in a lane

  // A lane's tile takes 4 of 255 registers, or of 168 with 12 warps. These are about the most tiles that leave enough
  // for the rest, and for the tiles that are under way from shared memory, as compiled by nvcc 13 without spilling.
  static constexpr int WARPS_OF_WIDE_REGISTERS = 8;
  static constexpr int USUAL_REGISTER_TILES = WARPS > WARPS_OF_WIDE_REGISTERS    ? 20
                                              : BLOCKS == 1 && sizeof(Word) == 4 ? 20
                                              : BLOCKS == 1                      ? 20
                                              : sizeof(Word) == 4                ? 40
                                                                                 : 44;
  // Tiles that make room for what other cells need, as in ForwardShape.
  static constexpr int EXTRA = ITEMS * Extra<Cell>::BACKWARD + UNIT_ITEMS * Cell::PARAMETERS;
  static constexpr int TAKEN = BLOCKS == 1 ? (EXTRA + 3) / 4 : 0;
  static constexpr int MOST_REGISTER_TILES = USUAL_REGISTER_TILES > TAKEN + 1 ? USUAL_REGISTER_TILES - TAKEN : 1;
  static constexpr int REGISTER_TILES = TILES < MOST_REGISTER_TILES ? TILES : MOST_REGISTER_TILES;
  static constexpr int SHARED_TILES = TILES - REGISTER_TILES;
  // Which tiles lie in shared memory, and how many of them are loaded ahead: as in ForwardShape.
  static constexpr int MOST_LOOKAHEAD = WARPS > WARPS_OF_WIDE_REGISTERS ? 6 : 4;
  static constexpr int LOOKAHEAD = SHARED_TILES < MOST_LOOKAHEAD ? (SHARED_TILES ? SHARED_TILES : 1) : MOST_LOOKAHEAD;
  static constexpr DEVICE int shared_before(int i) { return (i * SHARED_TILES + TILES - 1) / TILES; }
  static constexpr DEVICE bool lies_in_shared(int i) { return shared_before(i + 1) > shared_before(i); }
  static constexpr int WEIGHT_LOADS = 4;  // tiles at a time: registers are for the weights, not for loads in flight

  // Sums that a warp has under way at least, since a product waits for the one before in the same sum: where tiles
  // along units are fewer, each has several, for every so many tiles along gate rows one.
  static constexpr int LEAST_SUMS = 4;
  static constexpr int CHAINS = M_TILES < LEAST_SUMS ? LEAST_SUMS / M_TILES : 1;

  // Where in the product a block on its own does what need not wait for it: behind the first products. One of a cluster
  // does it while it waits for the others.
  static constexpr int K_MEANWHILE = 2;

  // Shared memory: barriers, the gates' gradients in two buffers, what other blocks send in two, weight tiles.
  static constexpr int TILE_BYTES = 32 * sizeof(word4);
  static constexpr int BARRIER_BYTES = 128;             // of which two barriers use 16: what follows is aligned to 128
  static constexpr int WORD_ROWS = ROW_ELEMENTS<Word>;  // gate rows of a word4
  static constexpr int PRODUCT_BYTES = TILE_K * ROWS * sizeof(Word);            // that a tile is multiplied by
  static constexpr int GRADIENT_BYTES = (K_TILES + 1) / 2 * 2 * PRODUCT_BYTES;  // tiles load in pairs
  static constexpr int PARTIAL_BYTES = BLOCKS == 1 ? 0 : UNITS * ROWS * sizeof(float);
  static constexpr int SHARED_BYTES =
      BARRIER_BYTES + 2 * GRADIENT_BYTES + 2 * PARTIAL_BYTES + WARPS * SHARED_TILES * TILE_BYTES;

  static constexpr int MOST_SHARED_BYTES = 227 << 10;              // of a block on sm_90
  static constexpr bool FITS = SHARED_BYTES <= MOST_SHARED_BYTES;  // whether the weights fit into the cluster

  static_assert(K_WARPS_ == 1, "a sum stays within a warp");
  static_assert(UNITS % BLOCKS == 0 && BLOCK_UNITS % TILE == 0, "a tile has one owner, and its gate rows one gate");
  static_assert(UNITS % (TILE * WARPS) == 0, "a warp has whole tiles");
  static_assert(BLOCK_UNITS * ROWS % THREADS == 0, "all threads have as many items");
  static_assert(BLOCKS == 1 || WARPS % OWNED_TILES == 0, "a warp's tiles lie at the same place in their owners");
  static_assert(BLOCKS == 1 || WARPS % PAIRS == 0, "a warp's items are all of the same two sequences");
};

// What a lane is in its cluster.
template <class P>
struct BackwardLane {
  int lane, warp, rank;
  int g, q;       // the row of its own and the pair of columns in a matrix of 8 x 8
  int unit, row;  // of item 0: its unit of the block's own, its sequence of the cluster's

  DEVICE BackwardLane() {
    lane = device::thread() % 32;
    warp = device::thread() / 32;
    rank = P::BLOCKS == 1 ? 0 : device::cluster_rank();
    g = lane / 4;
    q = lane % 4;
    unit = P::BLOCKS == 1 ? warp * P::TILE + g : warp / P::PAIRS * P::TILE + g + q / 2 * 8;
    row = P::BLOCKS == 1 ? 2 * q : warp % P::PAIRS * 2 + q % 2;
  }

  // From item 0 to item `x`.
  static constexpr DEVICE int units_to(int x) {
    if (P::BLOCKS > 1) return x * (P::WARPS / P::PAIRS) * P::TILE;
    return x / P::LANE_SUMS * P::WARPS * P::TILE + x % P::LANE_SUMS / 2 * 8;
  }
  static constexpr DEVICE int rows_to(int x) { return P::BLOCKS == 1 ? x % 2 : 0; }
  // Which of the lane's units item `x` is of.
  static constexpr DEVICE int unit_item(int x) { return P::BLOCKS == 1 ? x / 2 : x; }

  // The first unit of the warp's tile `m`, of the head, and the block that owns it.
  DEVICE int tile_unit(int m) const { return (m * P::WARPS + warp) * P::TILE; }
  DEVICE int owner(int m) const { return m * (P::WARPS / P::OWNED_TILES) + warp / P::OWNED_TILES; }

  // Where a lane's sums go within what the owner gets of a block, in words of 16 bytes: so that a warp of the owner,
  // whose items are 16 units by two sequences, reads 128 bytes in a row.
  DEVICE int sent_word() const { return warp % P::OWNED_TILES * 32 + q * 8 + g; }
  // Where item `x` lies there, in floats: sums (unit g, sequences 2q, 2q + 1), then unit g + 8.
  DEVICE int received_float(int x) const { return (x * P::WARPS + warp) * 32 + lane; }
};

}  // namespace fastrnn::cluster
