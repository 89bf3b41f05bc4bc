// What a team of blocks computes, and what each thread is in it.
#pragma once

#include "../arguments.h"
#include "../masks.cuh"
#include "shape.cuh"

namespace fastrnn::grid {

// A job is a head and direction. Its tiles of the batch are dealt in chunks of up to Teams::tiles. Chunks are numbered
// job after job, and a team has some in a row, so that it seldom loads weights.
//
// All this is computed where it is asked for: through a chunk, registers are for the weights.
template <class P, class Arguments>
DEVICE uint32_t chunks_of_job(const Arguments& a, const Teams& teams) {
  const int tiles = (device::hide(a.B) + P::ROWS - 1) / P::ROWS;
  return (tiles + teams.tiles - 1) / teams.tiles;
}

// The first chunk of this team's, or of the team's that is `beyond` further on.
template <class P, class Arguments>
DEVICE uint64_t first_chunk(const Arguments& a, const Teams& teams, int beyond) {
  const uint64_t jobs = uint32_t(device::hide(a.heads) * a.directions);
  const uint32_t team = device::hide(device::block()) / teams.blocks + beyond;
  return jobs * chunks_of_job<P>(a, teams) * team / uint32_t(device::hide(teams.count));
}

struct Job {
  int head, direction;
  bool backwards;  // whether the forward runs from the end
  int D;           // units of a head
  bool vectors;    // whether the rows of a head are of whole vectors

  template <class P, class Arguments>
  static DEVICE Job of(const Arguments& a, int number) {
    const int direction = number / a.heads, D = a.H / a.heads;
    return {number % a.heads, direction, direction == 1 || a.reverse, D, D % P::VECTOR == 0};
  }

  // A unit of the head among all of the layer.
  DEVICE int unit(int own) const { return device::hide(head) * D + own; }
};

struct Chunk {
  int first;  // the first sequence
  int tiles;

  template <class P, class Arguments>
  static DEVICE Chunk of(const Arguments& a, const Teams& teams, int number) {
    const int left = (a.B + P::ROWS - 1) / P::ROWS - number * teams.tiles;
    return {number * teams.tiles * P::ROWS, left < teams.tiles ? left : teams.tiles};
  }
};

// What a thread is in its team: what it reads for products, and the item that it finishes.
template <class P>
struct Lane {
  int warp, lane;
  int g, q;        // as a part of a product: the sequence of the tile whose row it reads, and which fourth of it
  int first_unit;  // that the block owns, of the head
  int unit;        // of its item, of the head
  int row;         // of its item: the sequence of the tile
  bool finishes;   // whether it has an item, as all of its warp

  DEVICE explicit Lane(const Teams& teams) {
    const int thread = device::thread();
    warp = thread / 32;
    lane = thread % 32;
    g = lane / 4;
    q = lane % 4;
    first_unit = device::block() % teams.blocks * P::BLOCK_UNITS;
    unit = first_unit + thread / (P::TILE * P::ROWS) * P::TILE + thread % P::TILE;
    row = thread / P::TILE % P::ROWS;
    finishes = thread < P::ITEMS;
  }

  // The first unit of a slice that it reads.
  DEVICE int read_unit(int slice) const { return slice * P::SLICE_UNITS + warp * P::WARP_UNITS + q * P::VECTOR; }
};

// A block's shared memory.
template <class P>
struct Memory {
  char* sums;         // [2][WARPS][M_TILES][TILE · ROWS]: see sums.cuh
  char* batch_tiles;  // [Teams::tiles], each [KEPT][ITEMS] numbers and [ROWS] lengths
  char* rest;         // the lane's part of the warp's weights that are not in registers: one every TILE_BYTES
  int slices;         // that a head of D units has

  DEVICE Memory(const Teams& teams, const Lane<P>& me, int D) {
    slices = (D + P::SLICE_UNITS - 1) / P::SLICE_UNITS;
    const int tiles = slices * P::SLICE_TILES, kept = tiles > P::REGISTER_TILES ? tiles - P::REGISTER_TILES : 0;
    sums = device::shared_memory();
    batch_tiles = sums + P::SHARED_BYTES;
    rest = batch_tiles + teams.tiles * P::BATCH_TILE_BYTES + me.warp * kept * P::TILE_BYTES + me.lane * sizeof(word4);
  }

  // The place of number `i` of this thread's item. No other thread touches it.
  DEVICE float& number(int tile, int i) const {
    return reinterpret_cast<float*>(batch_tiles + tile * P::BATCH_TILE_BYTES)[i * P::ITEMS + device::thread()];
  }

  // How many live steps the sequence in that row of the tile has, none beyond the batch.
  DEVICE int& length(int tile, int row) const {
    return reinterpret_cast<int*>(batch_tiles + (tile + 1) * P::BATCH_TILE_BYTES)[row - P::ROWS];
  }

  // Fills in the lengths of all tiles of a chunk. The block's threads may still read those of the chunk before.
  template <class Arguments>
  DEVICE void set_lengths(const Arguments& a, const Chunk& chunk) const {
    device::block_barrier();
#pragma unroll 1
    for (int i = device::thread(); i < chunk.tiles * P::ROWS; i += P::THREADS) {
      length(i / P::ROWS, i % P::ROWS) = masks::length(a, chunk.first + i);
    }
    device::block_barrier();
  }
};

// The reset between steps t - 1 and t of a sequence, zero where there is none; at t >= length it has no effect.
template <class Arguments>
DEVICE uint8_t load_reset(const Arguments& a, int t, int sequence) {
  const bool is_there = a.resets && sequence < a.B && static_cast<unsigned>(t) < static_cast<unsigned>(a.T);
  return is_there ? a.resets[int64_t(t) * a.B + sequence] : 0;
}

}  // namespace fastrnn::grid
