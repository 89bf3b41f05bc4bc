// How the forward kernel spreads a head's recurrent weights over a cluster's blocks, warps and registers.
#pragma once

#include "../cells.cuh"
#include "../device.cuh"
#include "../elements.cuh"
#include "../memory.cuh"
#include "../place.cuh"

namespace fastrnn::cluster {

// A block owns UNITS / BLOCKS hidden units and all gates of them. Its warps are M_WARPS along units by K_WARPS along
// the sum over the units of the state before. Units are dealt in groups of 8.
//
// A tile of w_hh is 16 gate rows by TILE_K columns, two halves of 8 rows, each one gate of one group. Which they are is
// chosen so that a lane holds all gates of the units that it finishes, for G gates: where G is even a group has G / 2
// tiles of its own, gates (0, 1), (2, 3); where it is odd, a pair of groups has G tiles, each group's first G - 1 gates
// as before, and one tile of both groups' last gate.
template <class Cell_, class Element_, int UNITS_, int BLOCKS_, int M_WARPS_, int K_WARPS_>
struct ForwardShape {
  using Cell = Cell_;
  using Element = Element_;
  using Word = typename Element::Word;
  static_assert(Served<Cell>::value);
  static constexpr int UNITS = UNITS_;    // D, padded
  static constexpr int BLOCKS = BLOCKS_;  // of a cluster
  static constexpr int M_WARPS = M_WARPS_, K_WARPS = K_WARPS_, WARPS = M_WARPS * K_WARPS, THREADS = WARPS * 32;
  static constexpr int ROWS = Place::ROWS;  // sequences of a cluster
  static constexpr int TILE_K = Element::TILE_K;

  static constexpr int U_GATES = Cell::U_GATES;
  static constexpr int BLOCK_UNITS = UNITS / BLOCKS;
  static constexpr int GROUPS = BLOCK_UNITS / 8 / M_WARPS;  // of units, of a warp
  static constexpr int K_TILES = UNITS / TILE_K / K_WARPS;  // tiles along k, of a warp
  static constexpr int M_TILES = GROUPS * U_GATES / 2;      // tiles along gate rows, of a warp
  static constexpr int TILES = K_TILES * M_TILES;
  // Sums of a tile along gate rows that a warp has under way: one waits for the product before it, so that few tiles
  // need two, for even and odd tiles along k.
  static constexpr int CHAINS = M_TILES < 3 ? 2 : 1;

  // The warps that share units along k each finish a part: one of two columns of the product, and with four of them
  // one half of the groups. A lane finishes ITEMS groups by COLUMNS columns.
  static constexpr int ITEMS = K_WARPS == 4 ? GROUPS / 2 : GROUPS;
  static constexpr int COLUMNS = K_WARPS == 1 ? 2 : 1;

  // A lane's tile takes 4 of 255 registers, or of 168 with 12 warps. These are about the most tiles that leave enough
  // for the rest, and for the tiles that are under way from shared memory, as compiled by nvcc 13 without spilling.
  static constexpr int WARPS_OF_WIDE_REGISTERS = 8;
  static constexpr int USUAL_REGISTER_TILES = WARPS > WARPS_OF_WIDE_REGISTERS    ? 20
                                              : BLOCKS == 1 && sizeof(Word) == 4 ? 26
                                              : BLOCKS == 1                      ? 26
                                              : sizeof(Word) == 4                ? 32
                                                                                 : 38;
  // Tiles that make room for what other cells need. A block of a cluster has few items, and no shared memory to spare.
  static constexpr int EXTRA = ITEMS * (COLUMNS * Extra<Cell>::FORWARD + Cell::PARAMETERS);
  static constexpr int TAKEN = BLOCKS == 1 ? (EXTRA + 3) / 4 : 0;
  static constexpr int MOST_REGISTER_TILES = USUAL_REGISTER_TILES > TAKEN + 1 ? USUAL_REGISTER_TILES - TAKEN : 1;
  static constexpr int REGISTER_TILES = TILES < MOST_REGISTER_TILES ? TILES : MOST_REGISTER_TILES;
  static constexpr int SHARED_TILES = TILES - REGISTER_TILES;

  // Tiles in shared memory are spread evenly among the others, in the order of the product, so that neither its loads
  // nor the tensor cores wait for the other; and LOOKAHEAD of them are under way to registers that are free while a
  // warp waits for the state: weights do not depend on it.
  static constexpr int MOST_LOOKAHEAD = WARPS > WARPS_OF_WIDE_REGISTERS ? 6 : 4;
  static constexpr int LOOKAHEAD = SHARED_TILES < MOST_LOOKAHEAD ? (SHARED_TILES ? SHARED_TILES : 1) : MOST_LOOKAHEAD;
  // How many of the tiles before tile `i` lie in shared memory, and whether `i` does.
  static constexpr DEVICE int shared_before(int i) { return (i * SHARED_TILES + TILES - 1) / TILES; }
  static constexpr DEVICE bool lies_in_shared(int i) { return shared_before(i + 1) > shared_before(i); }

  // The state's slices arrive on barriers of their own, so that products start before all have arrived.
  static constexpr int ARRIVALS = BLOCKS == 1 ? 0 : 4;
  // Pairs of tiles along k whose state a warp has loaded ahead: a block on its own before it does anything else.
  static constexpr int STATE_PAIRS = BLOCKS == 1 ? 2 : 1;
  static constexpr int TILES_OF_ARRIVAL = ARRIVALS ? UNITS / TILE_K / ARRIVALS : K_TILES;

  // Units of a sequence that a word4 has: a group of them, or half of one; the lanes that have the same one to send,
  // and how many blocks each of them sends it to.
  static constexpr int WORD_UNITS = ROW_ELEMENTS<Word>;
  static constexpr int SENDERS = WORD_UNITS / COLUMNS;
  static constexpr int RECEIVERS = (BLOCKS + SENDERS - 1) / SENDERS;

  // Shared memory: barriers, the state in two buffers, the partial sums in two, weight tiles.
  static constexpr int TILE_BYTES = 32 * sizeof(word4);
  static constexpr int BARRIER_BYTES = 128;
  static constexpr int PRODUCT_BYTES = TILE_K * ROWS * sizeof(Word);  // of the state, that a tile is multiplied by
  static constexpr int STATE_BYTES = UNITS * ROWS * sizeof(Word);
  // Of a lane's item: a power of two, loaded at once or in fours.
  static constexpr int PARTIAL_FLOATS = U_GATES == 1 ? 1 : U_GATES <= 4 ? 4 : U_GATES <= 8 ? 8 : 16;
  static constexpr int PARTIAL_ITEM_BYTES = 32 * PARTIAL_FLOATS * sizeof(float);
  static constexpr int PARTIAL_BYTES = K_WARPS == 1 ? 0 : WARPS * K_WARPS * ITEMS * PARTIAL_ITEM_BYTES;
  static constexpr int SHARED_BYTES =
      BARRIER_BYTES + 2 * STATE_BYTES + 2 * PARTIAL_BYTES + WARPS * SHARED_TILES * TILE_BYTES;

  static constexpr int MOST_SHARED_BYTES = 227 << 10;              // of a block on sm_90
  static constexpr bool FITS = SHARED_BYTES <= MOST_SHARED_BYTES;  // whether the weights fit into the cluster

  static_assert(UNITS % BLOCKS == 0 && BLOCK_UNITS % (8 * M_WARPS) == 0, "a warp has whole groups");
  static_assert(U_GATES % 2 == 0 || GROUPS % 2 == 0, "a warp has whole tiles of gate rows");
  static_assert(UNITS % (2 * TILE_K * K_WARPS) == 0, "tiles along k are loaded in pairs");
  static_assert(K_WARPS == 1 || K_WARPS == 2 || (K_WARPS == 4 && GROUPS % 2 == 0), "each warp finishes a part");
  static_assert(!ARRIVALS || (ARRIVALS % K_WARPS == 0 && BLOCKS % ARRIVALS == 0 && TILES_OF_ARRIVAL % 2 == 0),
                "a slice that arrives is of whole blocks and whole pairs of tiles");

  // Tiles that a group has to itself; one where it has none, as a divisor.
  static constexpr int OWN_TILES = U_GATES == 1 ? 1 : U_GATES / 2;

  // The tile along gate rows, and the half of it, where gate `a` of the warp's group `u` lies.
  static constexpr DEVICE int tile_of(int u, int a) {
    if (U_GATES % 2 == 0) return u * OWN_TILES + a / 2;
    return u / 2 * U_GATES + (a == U_GATES - 1 ? U_GATES - 1 : u % 2 * OWN_TILES + a / 2);
  }
  static constexpr DEVICE int half_of(int u, int a) { return U_GATES % 2 == 1 && a == U_GATES - 1 ? u % 2 : a % 2; }

  // The group and the gate of a half of a tile: the other way round.
  static constexpr DEVICE int group_of(int tile, int half) {
    if (U_GATES % 2 == 0) return tile / OWN_TILES;
    return tile / U_GATES * 2 + (is_shared(tile) ? half : tile % U_GATES / OWN_TILES);
  }
  static constexpr DEVICE int gate_of(int tile, int half) {
    return is_shared(tile) ? U_GATES - 1 : (U_GATES % 2 == 0 ? tile : tile % U_GATES) % OWN_TILES * 2 + half;
  }
  static constexpr DEVICE bool is_shared(int tile) { return U_GATES % 2 == 1 && tile % U_GATES == U_GATES - 1; }
};

// What a lane is in its cluster.
template <class P>
struct ForwardLane {
  int lane, m_warp, k_warp, rank;
  int g, q;  // the row of its own and the pair of columns in a matrix of 8 x 8

  DEVICE ForwardLane() {
    const int warp = device::thread() / 32;
    lane = device::thread() % 32;
    m_warp = warp / P::K_WARPS;
    k_warp = warp % P::K_WARPS;
    rank = P::BLOCKS == 1 ? 0 : device::cluster_rank();
    g = lane / 4;
    q = lane % 4;
  }

  // The first unit of group `u` of the warp.
  DEVICE int group_unit(int u) const { return rank * P::BLOCK_UNITS + (m_warp * P::GROUPS + u) * 8; }
  // The first unit of item `i`, and the first column, of what the lane finishes; its own unit is `g` further on.
  DEVICE int item_unit(int i) const { return group_unit((P::K_WARPS == 4 ? k_warp / 2 * P::ITEMS : 0) + i); }
  DEVICE int column() const { return 2 * q + (P::K_WARPS == 1 ? 0 : k_warp % 2); }
  // After the exchange of an item a lane holds a word4 of one column's units, as do SENDERS lanes in all, which share
  // out the blocks to send it to. Where a word4 has eight units, lanes 4 n to 4 n + 3 hold those of column n, or where
  // the warp finishes half of the columns, of its column of n and n ^ 1. Where it has four, they are the lower or the
  // upper half of the group as the lane's own unit is, of its own column.
  static constexpr bool HALVES = P::WORD_UNITS == 4;
  static constexpr int SENDERS = P::SENDERS;
  DEVICE int sent_column() const {
    if (HALVES) return P::COLUMNS == 2 ? 2 * q + g % 2 : column();
    return P::COLUMNS == 2 ? g : (g & 6) | k_warp % 2;
  }
  DEVICE int sent_unit() const { return HALVES ? (g & 4) : 0; }  // from the group's first
  DEVICE int sender() const {
    if (HALVES) return P::COLUMNS == 2 ? g / 2 % 2 : g % 4;
    return P::COLUMNS == 2 ? q : q + 4 * (g & 1);
  }
};

}  // namespace fastrnn::cluster
