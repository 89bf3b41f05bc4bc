// The product of a block's weights with rows that the team exchanges: the weights, the product, the sum over warps.
#pragma once

#include "../memory.cuh"
#include "exchange.cuh"
#include "team.cuh"

namespace fastrnn::grid {

// The block's weights, of head and direction: to registers and, what does not fit there, to shared memory.
// `load(gate, k)(unit)` gives a vector along the sum from unit `k` on, for row `unit`, zero where there is none.
//
// A tile holds of its rows g and g + 8 what its lane's vector has of the sequences' rows: in the product's order (see
// device.cuh), though not in the order of units, which is free as long as both operands have the same.
template <class P, class Load>
DEVICE void load_weights(const Lane<P>& me, const Memory<P>& memory, word4 (&w)[P::REGISTER_TILES], const Load& load) {
#pragma unroll 1
  for (int slice = 0; slice < memory.slices; ++slice) {
#pragma unroll
    for (int n = 0; n < P::K_GATES; ++n) {
#pragma unroll
      for (int m = 0; m < P::M_TILES; ++m) {
        const int gate = P::K_GATES == 1 ? m / P::UNIT_TILES : n;
        const int unit = me.first_unit + m % P::UNIT_TILES * P::TILE + me.g;
        const int k = device::hide(me.read_unit(slice));
        const auto vector = load(gate, k);
        const word4 low = vector(unit), high = vector(unit + 8);
#pragma unroll
        for (int s = 0; s < P::K_TILES; ++s) {
          const int in_slice = (n * P::K_TILES + s) * P::M_TILES + m;
          const word4 tile = P::Element::operand({{low.x[2 * s], high.x[2 * s], low.x[2 * s + 1], high.x[2 * s + 1]}});
          // Registers have no index that is known only when the kernel runs.
#pragma unroll
          for (int i = in_slice; i < P::REGISTER_TILES; i += P::SLICE_TILES) {
            if (i / P::SLICE_TILES == slice) w[i] = tile;
          }
          const int i = slice * P::SLICE_TILES + in_slice;
          if (i >= P::REGISTER_TILES) store(memory.rest + (i - P::REGISTER_TILES) * P::TILE_BYTES, tile);
        }
        device::warp_barrier();  // no load ahead of it: registers are for the weights
      }
    }
  }
}

// Elements of `from`, `stride` apart, zero from `count` on. As a vector, `from` is aligned to 16 bytes, `stride` is 1
// and `count` a multiple of a vector's elements.
template <class Word>
DEVICE word4 load_vector(const Word* from, int stride, int count, bool as_vector) {
  if (as_vector) return count > 0 ? load_global<word4>(from) : word4{};
  constexpr int VECTOR = VECTOR_BYTES / sizeof(Word);
  Word words[VECTOR];
#pragma unroll
  for (int i = 0; i < VECTOR; ++i) {
    words[i] = i < count ? *from : Word(0);
    from += device::hide(stride);
  }
  return join(words);
}

// The warp's share of the sum over `row`, which it waits for: `sums` in the layout of the product's tiles.
template <class P>
DEVICE void multiply(const Row<typename P::Word>& row, const Memory<P>& memory, const word4 (&w)[P::REGISTER_TILES],
                     float (&sums)[P::M_TILES][4]) {
  constexpr int VECTORS = P::MOST_SLICES * P::K_GATES;
  float chains[P::CHAINS][P::M_TILES][4] = {};
  Window<P> window;
  window.issue(row, 0);
  window.issue(row, 1);
#pragma unroll
  for (int group = 0; group * P::GROUP < VECTORS; ++group) {
    if (group * P::GROUP >= memory.slices * P::K_GATES) continue;
    const auto& vectors = window.wait(row, group);
#pragma unroll
    for (int n = group * P::GROUP; n < (group + 1) * P::GROUP && n < VECTORS; ++n) {
      if (n / P::K_GATES >= memory.slices) continue;
      const word4 b = P::Element::operand(vectors[n % P::GROUP]);
#pragma unroll
      for (int i = n * P::K_TILES * P::M_TILES; i < (n + 1) * P::K_TILES * P::M_TILES; ++i) {
        const word4 tile = i < P::REGISTER_TILES ? w[i < P::REGISTER_TILES ? i : 0]
                                                 : load<word4>(memory.rest + (i - P::REGISTER_TILES) * P::TILE_BYTES);
        const int k = i / P::M_TILES, s = k % P::K_TILES;
        P::Element::mma(chains[k % P::CHAINS][i % P::M_TILES], tile, b.x[2 * s], b.x[2 * s + 1]);
      }
    }
    window.issue(row, group + 2);
  }
#pragma unroll
  for (int m = 0; m < P::M_TILES; ++m) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      sums[m][e] = chains[0][m][e];
#pragma unroll
      for (int chain = 1; chain < P::CHAINS; ++chain) sums[m][e] += chains[chain][m][e];
    }
  }
}

// Where a sum of a tile lies in shared memory, in floats: such that neither the lanes that store, two columns each, nor
// those that add up, 16 rows by two columns, meet in a bank.
DEVICE int place(int row, int column) { return row * 8 + (column ^ row / 4 % 4 * 2); }

// Shows the warp's sums to the block.
template <class P>
DEVICE void store_sums(const Lane<P>& me, const float (&sums)[P::M_TILES][4], char* to) {
  struct alignas(8) Pair {
    float x[2];
  };
  float* mine = reinterpret_cast<float*>(to) + me.warp * P::M_TILES * (P::TILE * P::ROWS);
#pragma unroll
  for (int m = 0; m < P::M_TILES; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Pair pair{{sums[m][2 * half], sums[m][2 * half + 1]}};
      store(mine + m * (P::TILE * P::ROWS) + place(me.g + 8 * half, 2 * me.q), pair);
    }
  }
}

// Adds up what all warps have of this thread's item, in the warps' order.
template <class P>
DEVICE void add_up(const Lane<P>& me, const char* from, float (&totals)[P::M_GATES]) {
  const int unit = me.unit - me.first_unit, at = place(unit % P::TILE, me.row);
#pragma unroll
  for (int gate = 0; gate < P::M_GATES; ++gate) {
    float total = 0.f;
#pragma unroll
    for (int warp = 0; warp < P::WARPS; ++warp) {
      const int tile = warp * P::M_TILES + gate * P::UNIT_TILES + unit / P::TILE;
      total += load<float>(reinterpret_cast<const float*>(from) + tile * (P::TILE * P::ROWS) + at);
    }
    totals[gate] = total;
  }
}

}  // namespace fastrnn::grid
